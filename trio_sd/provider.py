"""One provider: runs the discoverer of one configuration, whatever it does.

Theory of operation
===================

A provider is one task with one cancel scope. Each attempt has a nursery of its own, which holds what the discoverer
runs in and the pump that carries its updates into the store; when the attempt ends, however it ends, nothing of it is
left. The updates channel has capacity 0, so a discoverer is held back while the engine is busy and nothing queues.

This is the one supervision boundary of the engine: what a discoverer raises ends here. It is told in statistics and
in the log, what the discoverer had sent stays, and a new discoverer is made after a pause. The pause doubles with
every failure in a row and is drawn at random from its upper half, so that a thousand providers whose server went away
do not come back in step.

A pause, a refresh and the end of a provider bump its *generation*: what a run hands over from then on comes too late,
and is ignored, however long that run takes to end. No two runs overlap: the next one begins when the one before it has
ended, its clean-up included.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import trio

from .discoverer import DiscovererConfig, DiscovererOptions, DiscovererStatistics, ReportsStatistics
from .errors import DiscoveryError, unwrapped
from .store import TargetStore
from .targets import TargetGroup

__all__ = ["Backoff", "Provider", "ProviderState", "ProviderStatistics"]

logger = logging.getLogger(__name__)

ProviderState = Literal["starting", "synced", "failing", "paused", "stopped"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a discoverer that failed is run again.

    Attributes:
      initial: seconds after the first failure, at the most.
      maximum: seconds after many failures in a row, at the most.
    """

    initial: float = 1.0
    maximum: float = 60.0

    def pause(self, streak: int, jitter: float) -> float:
        """Return the pause in seconds after ``streak`` failures in a row; ``jitter`` is drawn from 0 to 1."""
        longest = min(self.initial * 2.0 ** min(streak - 1, 60), self.maximum)
        return longest * (1 + jitter) / 2


@dataclass(frozen=True, slots=True)
class ProviderStatistics:
    """How a provider fares. Times are ``trio.current_time()`` of the run that it is in.

    Attributes:
      name: ``<mechanism>/<n>``; an equal configuration keeps it over reloads.
      sets: the sets that it feeds.
      state: ``starting`` until the first full set of this run; ``synced``; ``failing`` while the last attempt failed
        or the mechanism tells of errors; ``paused`` by :meth:`Manager.pause`; ``stopped`` once cancelled.
      last_attempt: when the discoverer was last started, or ``None``.
      last_success: when it last sent something, and told of no failure, since it was last started by a reload; or
        ``None``.
      last_error: what last went wrong since then, as ``Type: message``, or ``None``.
      last_failure: when that was, or ``None``.
      failure_streak: attempts that failed since the last success.
      groups: groups held of it.
      targets: targets held of it.
      updates: updates that it has sent since it was last started by a reload.
      restarts: how often it was run again after a failure since then.
      duplicates: groups lost because another one in the same update had the same source.
      age: seconds since everything that is shown of it was last known to be right: since its last report, or the one
        before a part could not be read any more, be that in a run before a reload or in an earlier process. 0 if its
        discoverer has said all that there is to say; ``None`` if nothing was ever heard of it.
      stale: whether something that is shown of it comes from the state file, and was not found out since.
      details: what the mechanism tells of itself.
    """

    name: str
    sets: tuple[str, ...]
    state: ProviderState
    last_attempt: float | None
    last_success: float | None
    last_error: str | None
    last_failure: float | None
    failure_streak: int
    groups: int
    targets: int
    updates: int
    restarts: int
    duplicates: int
    age: float | None
    stale: bool
    details: DiscovererStatistics = field(default_factory=DiscovererStatistics)


class Provider:
    """Runs the discoverer of ``config`` and reports to ``store`` under ``name``, until it is stopped.

    Args:
      name: unique in the store.
      config: makes the discoverers.
      options: handed to them.
      store: where updates go, by sync calls.
      backoff: the pauses after failures.
      rng: draws the jitter.
      paused: whether it begins paused.
    """

    def __init__(
        self,
        name: str,
        config: DiscovererConfig,
        options: DiscovererOptions,
        store: TargetStore,
        *,
        backoff: Backoff,
        rng: random.Random,
        paused: bool = False,
    ) -> None:
        self.name = name
        self.config = config
        self.started = trio.Event()
        """Set when the provider has taken its first step."""
        self.stopped = trio.Event()
        """Set when nothing of the provider is left running."""
        self._options = options
        self._store = store
        self._backoff = backoff
        self._rng = rng
        self._scope = trio.CancelScope()
        self._round = trio.CancelScope()
        self._settled = trio.Event()  # the present run has reported, or there is nothing to wait for any more
        self._generation = 0  # counts what makes updates under way come too late: stops, refreshes and pauses
        self._resumed = trio.Event()
        self._quiet = trio.Event()  # nothing runs that was told to pause
        if not paused:
            self._resumed.set()
        self._reports: ReportsStatistics | None = None  # the discoverer, if it tells of itself
        self._done = False  # the discoverer has returned
        self._run: int | None = None  # the generation of the run under way
        self._told_to_end = 0.0  # when the run under way was
        self._last_attempt: float | None = None
        self._last_success: float | None = None
        self._last_error: str | None = None
        self._last_failure: float | None = None
        self._failure_streak = 0
        self._backoff_streak = 0
        self._updates = 0
        self._restarts = 0
        self._duplicates = 0

    def stop(self) -> None:
        """Begin to stop: cancel the discoverer, and ignore what it may still send. Wait for :attr:`stopped`."""
        self._outdate()
        self._scope.cancel()
        self._settled.set()

    def refresh(self) -> None:
        """Begin a new run now, without a pause; what is shown stays until its first full set replaces it.

        Without effect on one that is paused or stopped.
        """
        if not self.paused and not self._scope.cancel_called:
            self._outdate()
            self.wake_waiting()
            self._settled = trio.Event()
            self._round.cancel()

    @property
    def updates(self) -> int:
        """How many updates the discoverer has sent."""
        return self._updates

    def pause(self) -> None:
        """Begin to pause: cancel the discoverer, and ignore what it may still send. Wait with :meth:`wait_quiet`."""
        if not self.paused and not self._scope.cancel_called:
            self._outdate()
            self._resumed = trio.Event()
            self._quiet = trio.Event()
            self._settled.set()
            self._round.cancel()

    def resume(self) -> None:
        """Begin a new run, if paused; what is shown stays until its first full set replaces it."""
        if self.paused:
            self._settled = trio.Event()
            self._quiet.set()
            self._resumed.set()

    def _outdate(self) -> None:
        """Let what the run under way may still send come too late."""
        if not self.ending:
            self._told_to_end = trio.current_time()
        if self._stays_right():
            self._store.confirm(self.name, trio.current_time())  # until now
        self._done = False
        self._generation += 1

    @property
    def paused(self) -> bool:
        """Whether it was told to pause, and not to resume since."""
        return not self._resumed.is_set()

    @property
    def ending(self) -> bool:
        """Whether a run is under way that was told to end, by a stop, a refresh or a pause."""
        return self._run is not None and self._run != self._generation

    def overdue(self, grace: float) -> bool:
        """Whether a run is under way that was told to end ``grace`` seconds ago, or longer."""
        return self.ending and trio.current_time() >= self._told_to_end + grace

    async def wait_quiet(self) -> None:
        """Wait until nothing runs that was told to pause, or it was told to resume since."""
        await self._quiet.wait()

    @property
    def settled(self) -> bool:
        """Whether there is no first full set to wait for: it is there, or the provider was told to pause or stop."""
        return self.paused or self._settled.is_set()

    async def wait_settled(self) -> None:
        """Wait until :attr:`settled`, or until those who wait are to look anew what they have to wait for."""
        await self._settled.wait()

    def wake_waiting(self) -> None:
        """Have those who wait until it is settled look anew what they have to wait for."""
        if not self._settled.is_set():
            self._settled.set()
            self._settled = trio.Event()

    async def run(self) -> None:
        """Run until stopped. Raises nothing that a discoverer raised."""
        self.started.set()
        try:
            with self._scope:
                while True:
                    while self.paused:
                        self._quiet.set()
                        await self._resumed.wait()
                    with trio.CancelScope() as self._round:
                        self._done = await self._attempt()
                        if self._done:
                            await trio.sleep_forever()
                        await trio.sleep(self._backoff.pause(self._backoff_streak, self._rng.random()))
                        self._restarts += 1
                    self._store.begin_run(self.name)
        finally:
            self.stopped.set()
            self._quiet.set()

    async def _attempt(self) -> bool:
        """Run one discoverer; return whether it is done for good, rather than failed."""
        self._last_attempt = trio.current_time()
        self._run = self._generation
        self._done = False  # the one before may have returned in the very tick in which it was told to end
        updates_before = self._updates
        done = False
        try:
            discoverer = self.config.discoverer(self._options)
            # Asking whether it is an instance of the protocol says the same, and costs as much as a task.
            tells = callable(getattr(discoverer, "statistics", None))
            self._reports = cast("ReportsStatistics", discoverer) if tells else None
            send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, receive, self._generation)
                with send:
                    await discoverer.run(send)
            if self._updates == updates_before:
                raise DiscoveryError("the discoverer returned without sending a full set")
            done = True
        # This is the supervision boundary: whatever a mechanism raises ends here, and is told.
        except* Exception as errors:  # noqa: BLE001
            self._failed(errors)
        finally:
            self._run = None
        return done

    async def _pump(self, receive: trio.MemoryReceiveChannel[Sequence[TargetGroup]], generation: int) -> None:
        with receive:
            async for groups in receive:
                if generation == self._generation:  # what was handed over as it was told to end comes too late
                    self._take(groups)

    def _take(self, groups: Sequence[TargetGroup]) -> None:
        now = trio.current_time()
        failing = self._reports is not None and bool(self._details().errors)
        duplicates = self._store.report(self.name, groups, now=now, failing=failing).duplicates
        self._updates += 1
        if not failing:
            self._last_success = now
        self._failure_streak = 0
        if duplicates:
            if not self._duplicates:
                logger.warning(
                    "provider %s sent %d groups with the source of another group in the same update; "
                    "the last one of each source counts (told once; statistics go on counting)",
                    self.name,
                    duplicates,
                )
            self._duplicates += duplicates
        self._settled.set()

    def _failed(self, errors: ExceptionGroup[Exception]) -> None:
        error = unwrapped(errors)
        self._last_error = f"{type(error).__name__}: {error}"
        self._last_failure = trio.current_time()
        if self._scope.cancel_called or self.paused:
            return
        self._failure_streak += 1
        # A discoverer that fails soon after each success is held back too; one that ran for long begins anew.
        assert self._last_attempt is not None
        lived_long = trio.current_time() - self._last_attempt > self._backoff.maximum
        self._backoff_streak = 1 if lived_long else self._backoff_streak + 1
        logger.warning("provider %s failed: %s", self.name, self._last_error, exc_info=error)

    @property
    def known_right(self) -> float | None:
        """When everything that is shown of it was last known to be right, on Trio's clock; ``None`` if never."""
        return trio.current_time() if self._stays_right() else self._store.known_right(self.name)

    def _stays_right(self) -> bool:
        """Whether the discoverer has said all that there is to say."""
        return self._done and not self._details().errors

    def statistics(self, sets: tuple[str, ...]) -> ProviderStatistics:
        """Return how the provider fares at this moment; ``sets`` are those that it feeds."""
        groups, targets = self._store.counts(self.name)
        known_right = self.known_right
        details = self._details()
        return ProviderStatistics(
            name=self.name,
            sets=sets,
            state=self._state(details),
            last_attempt=self._last_attempt,
            last_success=self._last_success,
            last_error=self._last_error,
            last_failure=self._last_failure,
            failure_streak=self._failure_streak,
            groups=groups,
            targets=targets,
            updates=self._updates,
            restarts=self._restarts,
            duplicates=self._duplicates,
            age=None if known_right is None else trio.current_time() - known_right,
            stale=self._store.stale_since(self.name) is not None,
            details=details,
        )

    def _details(self) -> DiscovererStatistics:
        if self._reports is None:
            return DiscovererStatistics()
        try:
            return self._reports.statistics()
        # The same boundary as for what it raises when it runs: a mechanism's mistake is told, and hurts nobody else.
        except Exception as error:  # noqa: BLE001
            return DiscovererStatistics(errors=(f"its statistics failed, {type(error).__name__}: {error}",))

    def _state(self, details: DiscovererStatistics) -> ProviderState:
        if self._scope.cancel_called:
            return "stopped"
        if self.paused:
            return "paused"
        if self._failure_streak or details.errors:
            return "failing"
        return "synced" if self.settled else "starting"
