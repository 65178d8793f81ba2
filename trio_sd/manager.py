"""The manager: runs the providers of a configuration, and hands the newest state to subscribers.

Everything that it starts lives in one nursery, which :func:`open_manager` opens and closes. Decisions are made in
sync code, between two awaits; what is awaited is only the end of what was told to stop. So a cancelled
:meth:`Manager.apply_config` leaves either the old configuration or the new one, never something between.

With a state file, what an earlier process showed last is restored first, and the first configuration then is a reload
like any other: see :mod:`~trio_sd.last_known_good`.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

import trio

from .discoverer import DiscovererConfig, DiscovererOptions
from .last_known_good import LastKnownGood
from .limits import Limits
from .provider import Backoff, Provider, ProviderStatistics
from .relabeled import Labelings, RelabeledTargets, RelabelStatistics
from .resources import Resources
from .set_configs import Labeling, SetConfigs
from .snapshots import History, Snapshot, Update
from .state import State
from .state_file import PACE, StateFile, StateFileStatistics
from .store import TargetStore
from .subscription import Subscribers, Subscription, SubscriptionStatistics, Throttle

__all__ = ["Manager", "ManagerStatistics", "SetStatistics", "open_manager"]

logger = logging.getLogger(__name__)

_LAST_SAVE = 10.0  # seconds

Configs = Mapping[str, Iterable[DiscovererConfig]]


@dataclass(frozen=True, slots=True)
class SetStatistics:
    """One target set at one moment.

    Attributes:
      name: the set's name.
      groups: groups in it.
      targets: targets in it.
      providers: the names of the providers that make it up, in the order of the configuration.
      leaving: providers that have left it, and are shown until those that joined it have reported.
      relabeled: what relabeling makes of its targets; ``None`` while nobody subscribes to that.
    """

    name: str
    groups: int
    targets: int
    providers: tuple[str, ...]
    leaving: tuple[str, ...]
    relabeled: RelabelStatistics | None = None


@dataclass(frozen=True, slots=True)
class ManagerStatistics:
    """A manager at one moment. Times are ``trio.current_time()`` of the run that it is in.

    Attributes:
      name: as given to :func:`open_manager`.
      revision: the number of the newest state.
      sets: in the order of the configuration.
      providers: in the order of their first set.
      subscriptions: in the order in which they were made, those after relabeling last.
      stuck: names of providers of which a run was told to end, and has not within the grace time.
      resources: users of each shared resource.
      reloads: how many configurations were applied.
      last_reload: when the last one was.
      state_file: how the state file fares, or ``None`` if there is none.
      received: updates that providers have sent, those included that do not run any more.
      delivered: updates that subscribers have taken, those included that have gone.
      skipped: revisions that subscribers have not seen because a later one took their place, likewise.
    """

    name: str
    revision: int
    sets: tuple[SetStatistics, ...]
    providers: tuple[ProviderStatistics, ...]
    subscriptions: tuple[SubscriptionStatistics, ...]
    stuck: tuple[str, ...]
    resources: Mapping[str, int]
    reloads: int
    last_reload: float | None
    state_file: StateFileStatistics | None
    received: int = 0
    delivered: int = 0
    skipped: int = 0


class Manager:
    """Runs one provider for each distinct configuration. Made by :func:`open_manager`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        name: str,
        throttle: Throttle,
        limits: Limits,
        warm_up: float,
        grace: float,
        backoff: Backoff,
        rng: random.Random,
        removal_delay: float,
        state_file: StateFile | None,
        state_max_age: float | None,
    ) -> None:
        if not (warm_up >= 0 and grace >= 0 and removal_delay >= 0):
            raise ValueError(f"warm_up, grace and removal_delay are seconds, not {warm_up}, {grace}, {removal_delay}")
        self.name = name
        self._nursery = nursery
        self._throttle = throttle
        self._limits = limits
        self._warm_up = warm_up
        self._grace = grace
        self._backoff = backoff
        self._rng = rng
        self._resources = Resources(nursery)
        self._store = TargetStore(self._notify, self._set_alarm, removal_delay)
        self._turn = trio.Lock()
        self._sets: dict[str, tuple[str, ...]] = {}
        self._providers: dict[str, Provider] = {}
        self._stopping: list[Provider] = []  # told to stop by an apply_config that was cancelled since
        self._stuck: list[Provider] = []
        self._paused: set[str] = set()
        self._names: dict[DiscovererConfig, str] = {}
        self._names_given = 0
        self._state_file = state_file
        self._state_max_age = state_max_age
        self._last_known_good = LastKnownGood(name, self._store)
        self._applied = trio.Event()
        self._keeping_state = trio.CancelScope()
        self._subscribers = Subscribers()
        self._labelings: Labelings = {}
        self._relabeled: RelabeledTargets | None = None  # while somebody subscribes to it
        self._relabeled_users = 0
        self._alarm = trio.CancelScope()  # its deadline is when something that is shown must go
        self._closed = False
        self._reloads = 0
        self._last_reload: float | None = None
        self._received_before = 0  # from providers that were replaced
        self._delivered_before = self._skipped_before = 0  # to subscribers that have gone

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._sets)} sets, {len(self._providers)} providers"
        return f"<Manager {self.name}: {state}, revision {self._store.revision}>"

    async def apply_config(self, configs: Configs, *, restart: Literal["all", "changed"] = "all") -> None:
        """Replace the configuration: stop every old provider, start every new one.

        Returns when all the old ones have exited and the new ones have started, or when the grace time is over; an
        old one that still runs then is named in the log and in :meth:`statistics`, and not listened to any more.
        Subscribers see no flap: what stays is shown until its new run has reported, what left a set until those who
        joined it have, or until the warm-up time is over. Calls take turns in the order in which they were made.

        Args:
          configs: the discoverer configurations of each set. Equal ones share one provider. ``Config.scrape`` and
            ``Config.notify`` also say how labels are made for those who subscribe with ``relabel``; see
            :class:`~trio_sd.SetConfigs`.
          restart: ``"changed"`` leaves the providers of configurations that stay running.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          TypeError: a configuration is not a :class:`DiscovererConfig`, or can't be hashed; the name of a set is no
            ``str``. Nothing was changed.
          ValueError: ``restart`` is something else. Nothing was changed.

        Cancelled while it waits for its turn, it changes nothing. Cancelled later, the new configuration is in force
        and running, only the end of the old providers was not waited for.
        """
        if restart not in ("all", "changed"):
            raise ValueError(f'restart is "all" or "changed", not {restart!r}')
        if not isinstance(configs, Mapping):
            raise TypeError(f"configs maps set names to configurations, as Config.scrape does; it is {configs!r}")
        wanted = {name: tuple(dict.fromkeys(members)) for name, members in configs.items()}
        for set_name in wanted:
            if not isinstance(set_name, str):
                raise TypeError(f"the name of a set is a str, not {type(set_name).__name__}: {set_name!r}")
        for member in (member for members in wanted.values() for member in members):
            if not isinstance(member, DiscovererConfig):
                raise TypeError(f"a set consists of DiscovererConfig values, not {type(member).__name__}: {member!r}")
        async with self._turn:
            self._check_open()
            labeling = configs.labeling if isinstance(configs, SetConfigs) else {}
            new = self._switch(wanted, labeling, keep_running=restart == "changed")
            try:
                with trio.move_on_after(self._grace):
                    while self._stopping:
                        await self._stopping[-1].stopped.wait()
                        self._stopping.pop()
                self._give_up_on(self._stopping, "stopped")
                self._stuck += self._stopping
                self._stopping = []
            finally:
                # Also when cancelled: the new configuration is in force, and a promise of this method.
                if not self._closed:
                    for provider in new:
                        self._nursery.start_soon(provider.run, name=f"provider {provider.name}")
            self._check_open()
            for provider in new:
                await provider.started.wait()

    def _switch(
        self,
        wanted: Mapping[str, tuple[DiscovererConfig, ...]],
        labeling: Mapping[str, Labeling],
        *,
        keep_running: bool,
    ) -> list[Provider]:
        """Put the new configuration in force, tell old providers to stop, return those to start when they have."""
        self._assign_names(wanted)
        self._sets = {set_name: tuple([self._names[m] for m in members]) for set_name, members in wanted.items()}
        old = self._providers
        self._providers = {}
        new = []
        for config in dict.fromkeys(member for members in wanted.values() for member in members):
            name = self._names[config]
            provider = old.pop(name, None) if keep_running else None
            if provider is None:
                provider = self._make_provider(name, config)
                new.append(provider)
            self._providers[name] = provider
        for name in self._paused - self._providers.keys():
            logger.warning("manager %s: provider %s, which was paused, is not configured any more", self.name, name)
        self._paused &= self._providers.keys()
        now = trio.current_time()
        self._store.apply(self._sets, restarted=[p.name for p in new], deadline=now + self._warm_up)
        self._labelings = self._new_labelings(labeling)
        self._stuck = [provider for provider in self._stuck if provider.ending]
        for provider in old.values():
            provider.stop()
            self._received_before += provider.updates
            self._stopping.append(provider)
        for provider in self._providers.values():
            provider.wake_waiting()  # it may run on in other sets
        self._reloads += 1
        self._last_reload = now
        self._applied.set()
        return new

    def _new_labelings(self, labeling: Mapping[str, Labeling]) -> Labelings:
        """Return how the labels of each part are made; what leaves a set keeps the rules that were written for it."""
        labelings: dict[tuple[str, str], Labeling | None] = {}
        leaving = self._store.leaving
        for set_name, shown in self._store.arrangement().items():
            keeping = set(leaving.get(set_name, ()))
            for key in [(set_name, provider) for provider in shown]:
                keeps = key[1] in keeping and key in self._labelings
                labelings[key] = self._labelings[key] if keeps else labeling.get(set_name)
        return labelings

    def _assign_names(self, wanted: Mapping[str, tuple[DiscovererConfig, ...]]) -> None:
        """Name every configuration's provider: as before, for as long as it runs or something of it is shown."""
        alive = {name for shown in self._store.arrangement().values() for name in shown} | self._providers.keys()
        configs = [member for members in wanted.values() for member in members]
        self._names = {config: name for config, name in self._names.items() if name in alive}
        self._names |= self._last_known_good.taken_over(configs)
        for config in configs:
            if config not in self._names:
                self._names[config] = name = self._new_name(config.mechanism)
                if self._state_file is not None:
                    self._last_known_good.identify(name, config)
        self._last_known_good.keep_only(alive.union(self._names.values()))

    def _new_name(self, mechanism: str) -> str:
        self._names_given += 1
        return f"{mechanism}/{self._names_given - 1}"

    def _make_provider(self, name: str, config: DiscovererConfig) -> Provider:
        options = DiscovererOptions(self._resources, self._limits, partial(self._store.last_known, name), name)
        paused = name in self._paused
        return Provider(name, config, options, self._store, backoff=self._backoff, rng=self._rng, paused=paused)

    def _give_up_on(self, providers: Iterable[Provider], what: str) -> None:
        """Name those of ``providers`` in the log whose grace time is over."""
        for provider in providers:
            if provider.ending:
                logger.error(
                    "manager %s: provider %s has not %s within %g s; going on without it",
                    self.name,
                    provider.name,
                    what,
                    self._grace,
                )

    async def _keep_time(self) -> None:
        """Let go what has reached its deadline, at that moment. Sleeps without a timer while there is nothing."""
        while True:
            with self._alarm:
                await trio.sleep_forever()
            self._alarm = trio.CancelScope()
            self._store.expire(trio.current_time())

    def _set_alarm(self) -> None:
        deadline = self._store.next_deadline
        self._alarm.deadline = inf if deadline is None else deadline

    @asynccontextmanager
    async def subscribe(
        self, *, relabel: bool = False, throttle: Throttle | None = None, name: str = ""
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Update]]:
        """Subscribe to updates: ``async with manager.subscribe() as updates: async for update in updates: ...``.

        The first update, the state as it is, comes at once. Each later one is the newest state at the moment when it
        is taken; a consumer that takes its time skips revisions, and holds up nobody. The channel ends when the
        manager is closed.

        Args:
          relabel: whether targets come as they are after relabeling, by the rules that :class:`~trio_sd.SetConfigs`
            such as ``Config.scrape`` hold. Then each target has its final labels, and its group has none; targets that
            rules drop, that can't be used, or that have the labels of another target of the set are left out, and
            counted in :meth:`statistics`. A revision that changes nothing of that is skipped. The work is done once
            for all who ask for it; entering waits until it is done for what there is. Empty until a configuration was
            applied.
          throttle: the pace; the manager's own if ``None``.
          name: shows up in statistics.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        self._check_open()
        if relabel:
            async with (
                self._open_relabeled() as relabeled,
                self._subscribe(relabeled, relabeled.subscribers, throttle, name) as updates,
            ):
                yield updates
        else:
            async with self._subscribe(self._store, self._subscribers, throttle, name) as updates:
                yield updates

    @asynccontextmanager
    async def _subscribe(
        self, history: History, subscribers: Subscribers, throttle: Throttle | None, name: str
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Update]]:
        subscription = subscribers.add(history, throttle or self._throttle, name)
        ended = trio.Event()
        self._nursery.start_soon(self._deliver, subscription, subscribers, ended, name=f"subscription {name}")
        try:
            with subscription.updates:
                yield subscription.updates
        finally:
            subscription.scope.cancel()
            with trio.CancelScope(shield=True):  # for one step of a task that has no cleaning up to do
                await ended.wait()

    @asynccontextmanager
    async def _open_relabeled(self) -> AsyncIterator[RelabeledTargets]:
        """Have the targets relabeled for as long as somebody wants them."""
        if self._relabeled is None:
            self._relabeled = RelabeledTargets(self._store, lambda: self._labelings, self.name)
            self._nursery.start_soon(self._relabeled.run, name="relabeling")
        relabeled = self._relabeled
        self._relabeled_users += 1
        try:
            await relabeled.wait_caught_up()
            self._check_open()
            yield relabeled
        finally:
            self._relabeled_users -= 1
            if not self._relabeled_users:
                self._relabeled = None
                relabeled.scope.cancel()
                with trio.CancelScope(shield=True):  # for one step of it
                    await relabeled.ended.wait()

    async def _deliver(self, subscription: Subscription, subscribers: Subscribers, ended: trio.Event) -> None:
        try:
            await subscription.run()
        finally:
            statistics = subscription.statistics()
            self._delivered_before += statistics.delivered
            self._skipped_before += statistics.skipped
            subscribers.remove(subscription)
            ended.set()

    def _notify(self) -> None:
        self._subscribers.notify()
        if self._relabeled is not None:
            self._relabeled.notify()

    def snapshot(self) -> Snapshot:
        """Return the newest state: every set and its groups. Costs nothing; never blocks."""
        return self._store.snapshot()

    async def wait_configured(self) -> None:
        """Wait until a configuration was applied; until then nobody knows which sets there are.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        await self._applied.wait()
        self._check_open()

    async def wait_synced(self, set_name: str | None = None) -> None:
        """Wait until every provider (of a set, if named) has reported its first full set since it was last started.

        If somebody subscribes to targets after relabeling, also until what is there by then is relabeled.
        A reload while this waits makes it wait for the providers of the new configuration.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          KeyError: there is no set of that name.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            unsettled = [p for p in self._chosen(set_name) if not p.settled]
            if not unsettled:
                if self._relabeled is not None:
                    await self._relabeled.wait_caught_up()
                    self._check_open()
                return
            reloads = self._reloads
            for provider in unsettled:
                if reloads == self._reloads:  # otherwise there may be others to wait for
                    await provider.wait_settled()

    async def refresh(self, set_name: str | None = None) -> None:
        """Have every provider (of a set, if named) look again now, and wait until each has reported.

        What is shown stays until then. A provider that waits for its next attempt does not wait any longer.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          KeyError: there is no set of that name.
        """
        self._check_open()
        for provider in self._chosen(set_name):
            provider.refresh()
        await self.wait_synced(set_name)

    async def pause(self, provider: str) -> None:
        """Stop the discoverer of a provider, named as in :meth:`statistics`, until it is resumed.

        What it has found stays shown. Returns when the discoverer has ended, or when the grace time is over; then it
        is named in the log and in the statistics, and not listened to any more. A provider stays paused over reloads
        for as long as its configuration stays equal; one that a changed configuration makes is another provider, and
        runs. Nobody waits for what is paused: it counts as synced, and a refresh
        passes it over. What left a set is shown for the whole warm-up time, though, where one that joined it is paused.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          KeyError: there is no provider of that name.

        Cancelled, it is paused all the same, only the end of its discoverer was not waited for.
        """
        self._check_open()
        chosen = self._provider(provider)
        self._paused.add(provider)
        chosen.pause()
        with trio.move_on_after(self._grace) as scope:
            await chosen.wait_quiet()
        self._check_open()
        if scope.cancelled_caught:
            self._give_up_on([chosen], "paused")

    async def resume(self, provider: str) -> None:
        """Run the discoverer of a paused provider again; without effect on one that is not paused.

        What is shown stays until its first full set replaces it. :meth:`wait_synced` waits for that.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          KeyError: there is no provider of that name.
        """
        self._check_open()
        self._provider(provider).resume()
        self._paused.discard(provider)
        await trio.lowlevel.checkpoint()

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            raise KeyError(
                f"manager {self.name} has no provider {name}; it has: {', '.join(self._providers) or 'none'}"
            )
        return self._providers[name]

    def unsynced(self) -> tuple[str, ...]:
        """Return the names of the providers that :meth:`wait_synced` would wait for."""
        return tuple([p.name for p in self._providers.values() if not p.settled])

    def labelings(self) -> Labelings:
        """Return how the labels of what each provider shows in each set are made, by (set, provider).

        ``None`` where there are no rules. A provider that leaves a set keeps the rules that it was running with.
        """
        return self._labelings

    def _chosen(self, set_name: str | None) -> list[Provider]:
        if set_name is None:
            return list(self._providers.values())
        return [self._providers[name] for name in self._sets[set_name]]

    def statistics(self) -> ManagerStatistics:
        """Return how everything fares at this moment. Work in proportion to the number of sets and providers."""
        snapshot = self._store.snapshot()
        leaving = self._store.leaving
        sets_of: dict[str, list[str]] = {}
        for set_name, names in self._sets.items():
            for name in names:
                sets_of.setdefault(name, []).append(set_name)
        providers = tuple([p.statistics(tuple(sets_of[name])) for name, p in self._providers.items()])
        subscriptions = tuple([subscription.statistics() for subscription in self._all_subscriptions()])
        return ManagerStatistics(
            name=self.name,
            revision=snapshot.revision,
            sets=tuple(
                [
                    SetStatistics(
                        name=set_name,
                        groups=snapshot.group_count(set_name),
                        targets=snapshot.target_count(set_name),
                        providers=tuple([name for name in shown if name not in leaving.get(set_name, ())]),
                        leaving=tuple(leaving.get(set_name, ())),
                        relabeled=self._relabeled.statistics(set_name) if self._relabeled is not None else None,
                    )
                    for set_name, shown in self._store.arrangement().items()
                ]
            ),
            providers=providers,
            subscriptions=subscriptions,
            stuck=self._stuck_names(),
            resources=self._resources.statistics(),
            reloads=self._reloads,
            last_reload=self._last_reload,
            state_file=self._state_file.statistics() if self._state_file is not None else None,
            received=self._received_before + sum([one.updates for one in providers]),
            delivered=self._delivered_before + sum([one.delivered for one in subscriptions]),
            skipped=self._skipped_before + sum([one.skipped for one in subscriptions]),
        )

    def _all_subscriptions(self) -> list[Subscription]:
        return [*self._subscribers, *(self._relabeled.subscribers if self._relabeled is not None else ())]

    def _stuck_names(self) -> tuple[str, ...]:
        providers = (*self._stuck, *self._stopping, *self._providers.values())
        return tuple(dict.fromkeys([provider.name for provider in providers if provider.overdue(self._grace)]))

    def _known_right(self, name: str) -> float | None:
        provider = self._providers.get(name)
        return self._store.known_right(name) if provider is None else provider.known_right

    async def _keep_state(self, state_file: StateFile) -> None:
        """Keep the state file up to date, from the first configuration on: until then it is not ours to write."""
        with self._keeping_state:
            await self._applied.wait()
            subscription = self._subscribers.add(self._store, PACE, "state file")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, subscription, self._subscribers, trio.Event())
                await state_file.keep(subscription.updates, lambda: self._last_known_good.state(self._known_right))

    async def _restore(self) -> None:
        if self._state_file is not None:
            state = await self._state_file.read()
            if state is not None:
                self._last_known_good.restore(state, self._state_max_age, self._new_name)
            self._nursery.start_soon(self._keep_state, self._state_file)

    async def _close(self) -> None:
        """Stop everything, and save the state for the last time."""
        state = self._last_known_good.state(self._known_right) if self._state_file and self._applied.is_set() else None
        self._closed = True
        for provider in self._providers.values():
            provider.stop()  # also wakes those who wait for it to settle
        self._keeping_state.cancel()
        self._applied.set()  # wakes those who wait for a configuration
        if self._state_file is not None and state is not None:
            await self._save_last_state(self._state_file, state)

    async def _save_last_state(self, state_file: StateFile, state: State) -> None:
        with trio.move_on_after(_LAST_SAVE, shield=True) as scope:
            if not await state_file.save(state):
                error = state_file.statistics().last_error
                logger.error("manager %s: the last state was not saved: %s", self.name, error)
        if scope.cancelled_caught:
            logger.error("manager %s: the last state was not saved within %g s", self.name, _LAST_SAVE)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"manager {self.name} is closed")


@asynccontextmanager
async def open_manager(
    configs: Configs | None = None,
    *,
    name: str = "scrape",
    throttle: Throttle = Throttle(),
    limits: Limits = Limits(),
    warm_up: float = 15.0,
    grace: float = 5.0,
    backoff: Backoff = Backoff(),
    rng: random.Random | None = None,
    removal_delay: float = 0.0,
    state_path: str | os.PathLike[str] | None = None,
    state_max_age: float | None = None,
) -> AsyncIterator[Manager]:
    """Open a manager, apply ``configs``, and close it at the end of the block with everything that it started.

    An exception of the block comes out as it is, not in a group.

    Args:
      configs: the discoverer configurations of each set, as :attr:`Config.scrape` has them; ``None`` to apply them
        later.
      name: tells managers apart in logs and outputs.
      throttle: the pace of subscribers that do not name their own.
      limits: bounds on what discoverers read.
      warm_up: how many seconds a configuration that left a set by a reload stays visible in it at most, while those
        that joined the set start.
      grace: seconds that a provider has to stop, before a reload goes on without it.
      backoff: the pauses before a discoverer that failed is run again.
      rng: draws their jitter; a generator of its own if ``None``.
      removal_delay: seconds for which a target is still shown after its removal was found out; one that comes back
        meanwhile was never seen to leave. Additions do not wait, nor does what a reload takes away by configuration.
      state_path: the file in which what is shown is kept over a restart of the process, each manager in a file of its
        own. At the start its content is shown at once, marked as stale (``Snapshot.stale``, ``ProviderStatistics``),
        and each provider's part is replaced by its first full set. A file that can't be used is logged and set aside.
      state_max_age: what was last known to be right more than so many seconds ago is not restored; all is if ``None``.
        If given, the file is written at least ten times in that time, so that a crash after a long quiet loses nothing.

    Raises:
      ValueError: a number of seconds is negative.

    Cancelled, the block ends first and what the manager runs is cancelled with it. The state is saved once more at
    the end of the block, shielded, for 10 seconds at the most.
    """
    if state_max_age is not None and not state_max_age >= 0:
        raise ValueError(f"state_max_age is a number of seconds, not {state_max_age}")
    async with _open_service_nursery() as nursery:
        # Where an age matters it is told again before long, though nothing changes.
        refresh = inf if state_max_age is None else max(1.0, state_max_age / 10)
        state_file = StateFile(state_path, name, refresh=refresh) if state_path is not None else None
        manager = Manager(
            nursery,
            name=name,
            throttle=throttle,
            limits=limits,
            warm_up=warm_up,
            grace=grace,
            backoff=backoff,
            rng=rng if rng is not None else random.Random(),
            removal_delay=removal_delay,
            state_file=state_file,
            state_max_age=state_max_age,
        )
        nursery.start_soon(manager._keep_time)
        await manager._restore()
        try:
            if configs is not None:
                await manager.apply_config(configs)
            yield manager
        finally:
            await manager._close()


@asynccontextmanager
async def _open_service_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for services: cancelled when the block has ended, however it has ended.

    An exception of the block never passes through the nursery, which would wrap it in a group. It is kept, and raised
    again when the services are gone. Services raise nothing but a fatal error (KeyboardInterrupt, say, or what a
    labeler of the program's own raised), which comes out in a group, together with an exception of the block if that is
    not just the cancellation that it caused.
    """
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as raised:  # noqa: BLE001 (raised again below, whatever it is)
                error = raised
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        _, fatal = group.split(trio.Cancelled)
        if error is None:
            raise
        if fatal is not None:
            _, own = BaseExceptionGroup("", [error]).split(trio.Cancelled)
            if own is None:
                raise
            raise BaseExceptionGroup("the block and what the manager ran failed", [*own.exceptions, fatal]) from None
    try:
        if error is not None:
            raise error
    finally:
        del error  # the traceback refers to this frame
