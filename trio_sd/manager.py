"""The manager: runs the providers of a configuration, and hands the newest state to subscribers.

Everything that it starts lives in one nursery, which :func:`open_manager` opens and closes. Decisions are made in
sync code, between two awaits; what is awaited is only the end of what was told to stop. So a cancelled
:meth:`Manager.apply_config` leaves either the old configuration or the new one, never something between.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import trio

from .discoverer import DiscovererConfig, DiscovererOptions
from .limits import Limits
from .provider import Backoff, Provider, ProviderStatistics
from .resources import Resources
from .store import Snapshot, TargetStore, Update
from .subscription import Subscription, SubscriptionStatistics, Throttle

__all__ = ["Manager", "ManagerStatistics", "SetStatistics", "open_manager"]

logger = logging.getLogger(__name__)

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
    """

    name: str
    groups: int
    targets: int
    providers: tuple[str, ...]
    leaving: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManagerStatistics:
    """A manager at one moment. Times are ``trio.current_time()`` of the run that it is in.

    Attributes:
      name: as given to :func:`open_manager`.
      revision: the number of the newest state.
      sets: in the order of the configuration.
      providers: in the order of their first set.
      subscriptions: in the order in which they were made.
      stuck: names of providers that were told to stop and have not, past their grace time.
      resources: users of each shared resource.
      reloads: how many configurations were applied.
      last_reload: when the last one was.
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
    ) -> None:
        if not (warm_up >= 0 and grace >= 0):
            raise ValueError(f"warm_up and grace are seconds, not {warm_up} and {grace}")
        self.name = name
        self._nursery = nursery
        self._throttle = throttle
        self._limits = limits
        self._warm_up = warm_up
        self._grace = grace
        self._backoff = backoff
        self._rng = rng
        self._resources = Resources(nursery)
        self._store = TargetStore(self._notify)
        self._turn = trio.Lock()
        self._sets: dict[str, tuple[str, ...]] = {}
        self._providers: dict[str, Provider] = {}
        self._stopping: list[Provider] = []  # told to stop by an apply_config that was cancelled since
        self._stuck: list[Provider] = []
        self._names: dict[DiscovererConfig, str] = {}
        self._names_given = 0
        self._subscriptions: dict[Subscription, None] = {}
        self._expiring: trio.CancelScope | None = None
        self._closed = False
        self._reloads = 0
        self._last_reload: float | None = None

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
          configs: the discoverer configurations of each set. Equal ones share one provider.
          restart: ``"changed"`` leaves the providers of configurations that stay running.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          TypeError: a configuration is not a :class:`DiscovererConfig`, or can't be hashed. Nothing was changed.
          ValueError: ``restart`` is something else. Nothing was changed.

        Cancelled while it waits for its turn, it changes nothing. Cancelled later, the new configuration is in force
        and running, only the end of the old providers was not waited for.
        """
        if restart not in ("all", "changed"):
            raise ValueError(f'restart is "all" or "changed", not {restart!r}')
        if not isinstance(configs, Mapping):
            raise TypeError(f"configs maps set names to configurations, as Config.scrape does; it is {configs!r}")
        wanted = {name: tuple(dict.fromkeys(members)) for name, members in configs.items()}
        for member in (member for members in wanted.values() for member in members):
            if not isinstance(member, DiscovererConfig):
                raise TypeError(f"a set consists of DiscovererConfig values, not {type(member).__name__}: {member!r}")
        async with self._turn:
            self._check_open()
            new = self._switch(wanted, keep_running=restart == "changed")
            try:
                with trio.move_on_after(self._grace):
                    while self._stopping:
                        await self._stopping[-1].stopped.wait()
                        self._stopping.pop()
                self._give_up_on_stuck()
            finally:
                # Also when cancelled: the new configuration is in force, and a promise of this method.
                if not self._closed:
                    for provider in new:
                        self._nursery.start_soon(provider.run, name=f"provider {provider.name}")
            self._check_open()
            for provider in new:
                await provider.started.wait()

    def _switch(self, wanted: Mapping[str, tuple[DiscovererConfig, ...]], *, keep_running: bool) -> list[Provider]:
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
        now = trio.current_time()
        self._store.apply(self._sets, restarted=[p.name for p in new], deadline=now + self._warm_up)
        self._stuck = [provider for provider in self._stuck if not provider.stopped.is_set()]
        for provider in old.values():
            provider.stop()
            self._stopping.append(provider)
        if self._store.next_deadline is not None and self._expiring is None:
            self._expiring = trio.CancelScope()
            self._nursery.start_soon(self._expire_leaving, self._expiring)
        self._reloads += 1
        self._last_reload = now
        return new

    def _assign_names(self, wanted: Mapping[str, tuple[DiscovererConfig, ...]]) -> None:
        """Name every configuration's provider: as before, for as long as it runs or something of it is shown."""
        alive = {name for leaving in self._store.leaving.values() for name in leaving} | self._providers.keys()
        self._names = {config: name for config, name in self._names.items() if name in alive}
        for config in (member for members in wanted.values() for member in members):
            if config not in self._names:
                self._names[config] = f"{config.mechanism}/{self._names_given}"
                self._names_given += 1

    def _make_provider(self, name: str, config: DiscovererConfig) -> Provider:
        options = DiscovererOptions(self._resources, self._limits, partial(self._store.last_known, name), name)
        return Provider(name, config, options, self._store, backoff=self._backoff, rng=self._rng)

    def _give_up_on_stuck(self) -> None:
        """Name the providers whose grace time is over, and wait for them no more."""
        stuck = [provider for provider in self._stopping if not provider.stopped.is_set()]
        self._stopping = []
        self._stuck += stuck
        for provider in stuck:
            logger.error(
                "manager %s: provider %s has not stopped within %g s; the reload goes on without it",
                self.name,
                provider.name,
                self._grace,
            )

    async def _expire_leaving(self, scope: trio.CancelScope) -> None:
        """Let leaving providers go at their deadlines. Runs only while there are any."""
        with scope:
            while (deadline := self._store.next_deadline) is not None:
                await trio.sleep_until(deadline)
                self._store.expire(trio.current_time())  # a change, so that _notify ends this when all have gone

    @asynccontextmanager
    async def subscribe(
        self, *, throttle: Throttle | None = None, name: str = ""
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Update]]:
        """Subscribe to updates: ``async with manager.subscribe() as updates: async for update in updates: ...``.

        The first update, the state as it is, comes at once. Each later one is the newest state at the moment when it
        is taken; a consumer that takes its time skips revisions, and holds up nobody. The channel ends when the
        manager is closed.

        Args:
          throttle: the pace; the manager's own if ``None``.
          name: shows up in statistics.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        self._check_open()
        subscription = Subscription(self._store, throttle or self._throttle, name)
        self._subscriptions[subscription] = None
        ended = trio.Event()
        self._nursery.start_soon(self._deliver, subscription, ended, name=f"subscription {name}")
        try:
            with subscription.updates:
                yield subscription.updates
        finally:
            subscription.scope.cancel()
            with trio.CancelScope(shield=True):  # for one step of a task that has no cleaning up to do
                await ended.wait()

    async def _deliver(self, subscription: Subscription, ended: trio.Event) -> None:
        try:
            await subscription.run()
        finally:
            del self._subscriptions[subscription]
            ended.set()

    def _notify(self) -> None:
        if self._expiring is not None and not self._store.leaving_any:
            self._expiring.cancel()
            self._expiring = None
        for subscription in self._subscriptions:
            subscription.notify()

    def snapshot(self) -> Snapshot:
        """Return the newest state: every set and its groups. Costs nothing; never blocks."""
        return self._store.snapshot()

    async def wait_synced(self, set_name: str | None = None) -> None:
        """Wait until every provider (of a set, if named) has reported its first full set since it was last started.

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
                return
            for provider in unsettled:
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

    def unsynced(self) -> tuple[str, ...]:
        """Return the names of the providers that :meth:`wait_synced` would wait for."""
        return tuple([p.name for p in self._providers.values() if not p.settled])

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
        return ManagerStatistics(
            name=self.name,
            revision=snapshot.revision,
            sets=tuple(
                [
                    SetStatistics(
                        name=set_name,
                        groups=snapshot.group_count(set_name),
                        targets=snapshot.target_count(set_name),
                        providers=names,
                        leaving=tuple(leaving.get(set_name, ())),
                    )
                    for set_name, names in self._sets.items()
                ]
            ),
            providers=tuple([p.statistics(tuple(sets_of[name])) for name, p in self._providers.items()]),
            subscriptions=tuple([subscription.statistics() for subscription in self._subscriptions]),
            stuck=tuple([p.name for p in (*self._stuck, *self._stopping) if not p.stopped.is_set()]),
            resources=MappingProxyType(self._resources.statistics()),
            reloads=self._reloads,
            last_reload=self._last_reload,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"manager {self.name} is closed")

    def _close(self) -> None:
        self._closed = True
        for provider in self._providers.values():
            provider.stop()  # also wakes those who wait for it to settle


@asynccontextmanager
async def open_manager(
    configs: Configs = MappingProxyType({}),
    *,
    name: str = "scrape",
    throttle: Throttle = Throttle(),
    limits: Limits = Limits(),
    warm_up: float = 15.0,
    grace: float = 5.0,
    backoff: Backoff = Backoff(),
    rng: random.Random | None = None,
) -> AsyncIterator[Manager]:
    """Open a manager, apply ``configs``, and close it at the end of the block with everything that it started.

    An exception of the block comes out as it is, not in a group.

    Args:
      configs: the discoverer configurations of each set, as :attr:`Config.scrape` has them.
      name: tells managers apart in logs and outputs.
      throttle: the pace of subscribers that do not name their own.
      limits: bounds on what discoverers read.
      warm_up: how many seconds a configuration that left a set by a reload stays visible in it at most, while those
        that joined the set start.
      grace: seconds that a provider has to stop, before a reload goes on without it.
      backoff: the pauses before a discoverer that failed is run again.
      rng: draws their jitter; a generator of its own if ``None``.

    Cancelled, the block ends first and what the manager runs is cancelled with it.
    """
    async with _open_service_nursery() as nursery:
        manager = Manager(
            nursery,
            name=name,
            throttle=throttle,
            limits=limits,
            warm_up=warm_up,
            grace=grace,
            backoff=backoff,
            rng=rng if rng is not None else random.Random(),
        )
        try:
            if configs:
                await manager.apply_config(configs)
            yield manager
        finally:
            manager._close()


@asynccontextmanager
async def _open_service_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for services: cancelled when the block has ended, however it has ended.

    An exception of the block never passes through the nursery, which would wrap it in a group. It is kept, and raised
    again when the services are gone. Services raise nothing but a fatal error (KeyboardInterrupt, say), which comes
    out in a group, together with an exception of the block if that is not just the cancellation that it caused.
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
