"""Discoverers under observation: run as the engine runs them, with a look at everything that they send.

A :class:`ManagedRun` is what a manager is to its discoverers: it owns what they share, and in the end cancels them all.
An :class:`Observed` is what a provider is to one: it makes another discoverer when one fails, hands it what is still
shown, and holds what was sent by source. Both are simpler than the engine's own, and pause for a moment only.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Final

import trio

from ..discoverer import Discoverer, DiscovererConfig, DiscovererOptions, ReportsStatistics
from ..errors import DiscoveryError, unwrapped
from ..messages import is_utf8
from ..resources import Resources
from ..targets import ADDRESS_LABEL, TargetGroup
from .cancellation import living_tasks

__all__ = [
    "ContractError",
    "ManagedRun",
    "Observed",
    "check_update",
    "managed_run",
    "most_held",
    "require",
    "require_released",
    "what_is_held",
]

_TICK: Final = 0.01  # seconds from one look at statistics to the next: no event tells that they have changed
_LOOKS: Final = 5  # at what is held, before
_PAUSE: Final = 0.05  # seconds until a discoverer that raised is followed by another


class ContractError(AssertionError):
    """A discoverer breaks the contract; the message says which rule."""


def require(holds: bool, rule: str) -> None:
    """Raise :class:`ContractError` unless the rule ``holds``."""
    if not holds:
        raise ContractError(f"broken: {rule}")


class Observed:
    """Runs the discoverers of one configuration, one after the other.

    Args:
      config: makes the discoverers.
      resources: what they share with others.
      last_known: by source, what an earlier run has found.
      patience: seconds for what should take little time.
    """

    def __init__(
        self, config: DiscovererConfig, resources: Resources, last_known: Mapping[str, TargetGroup], patience: float
    ) -> None:
        self._config = config
        self._resources = resources
        self._patience = patience
        self._discoverer: Discoverer | None = None
        self._raised: Exception | None = None
        self._running = self._synced = False
        self._taking = trio.Event()
        self._taking.set()
        self.shown = dict(last_known)
        """The groups that an engine would show, by source."""
        self.first: list[str] | None = None
        """The addresses in the very first update."""
        self.updates = 0
        """How many updates were sent."""
        self.keep: Sequence[str] = ()
        """Addresses that no update may take away."""

    @property
    def addresses(self) -> list[str]:
        """The addresses of all targets that are shown, in order."""
        return sorted(
            [
                target.get(ADDRESS_LABEL) or group.labels[ADDRESS_LABEL]
                for group in self.shown.values()
                for target in group.targets
            ]
        )

    @property
    def trouble(self) -> tuple[str, ...]:
        """What the discoverer tells of failing, by its statistics or by what it has raised."""
        found = self._discoverer
        told = found.statistics().errors if isinstance(found, ReportsStatistics) else ()
        return told if self._raised is None else (*told, f"{type(self._raised).__name__}: {self._raised}")

    def hold(self) -> None:
        """Take no update until :meth:`release`, but for one that may be on its way."""
        self._taking = trio.Event()

    def release(self) -> None:
        """Take updates again."""
        self._taking.set()

    async def run(self) -> None:
        """Run one discoverer after the other until one returns; for ever if none does.

        Raises:
          ContractError: an update breaks the contract.
        """
        done = False
        while not done:
            try:
                await self._attempt()
                done = True
            except* ContractError:
                raise
            # Whatever a discoverer raises is news of it, as it is to the engine.
            except* Exception as errors:  # noqa: BLE001
                self._raised = unwrapped(errors)
            await trio.sleep(_PAUSE)

    async def _attempt(self) -> None:
        self._synced = False
        known = MappingProxyType(dict(self.shown))
        self._discoverer = self._config.discoverer(DiscovererOptions(self._resources, last_known=lambda: known))
        send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
        async with trio.open_nursery() as nursery:
            self._running = True
            nursery.start_soon(self._pump, receive)
            with send:
                try:
                    await self._discoverer.run(send)
                finally:
                    self._running = False
        if not self._synced:
            raise DiscoveryError("the discoverer returned without sending a full set")

    async def _pump(self, receive: trio.MemoryReceiveChannel[Sequence[TargetGroup]]) -> None:
        with receive:
            while True:
                await self._taking.wait()
                try:
                    groups = await receive.receive()
                except trio.EndOfChannel:
                    require(not self._running, "the channel is the engine's to close")
                    return
                self._take(groups)

    def _take(self, groups: Sequence[TargetGroup]) -> None:
        check_update(groups)
        if not self._synced:
            self.shown.clear()
        self._synced = True
        for group in groups:
            if group.targets:
                self.shown[group.source] = group
            else:
                self.shown.pop(group.source, None)
        self._raised = None
        self.updates += 1
        if self.first is None:
            self.first = self.addresses
        lost = set(self.keep).difference(self.addresses)
        require(
            not lost, f"what was good stays while it can't be found out anew, but an update took away {_list(lost)}"
        )

    async def until(self, holds: Callable[[], bool], rule: str) -> None:
        """Wait until the rule ``holds``.

        Raises:
          ContractError: it does not in time.
        """
        with trio.move_on_after(self._patience):
            while not holds():  # noqa: ASYNC110 (there is no event)
                await trio.sleep(_TICK)
        require(holds(), f"{rule} within {self._patience:g} s; it tells: {_list(self.trouble)}")

    async def until_shown(self, addresses: Sequence[str], rule: str) -> None:
        """Wait until what was sent adds up to targets with exactly these ``addresses``.

        Raises:
          ContractError: it does not in time.
        """
        expected = sorted(addresses)
        try:
            await self.until(lambda: self.updates > 0 and self.addresses == expected, rule)
        except ContractError as error:
            found = _list(self.addresses) if self.updates else "no update"
            raise ContractError(f"{error}; expected {_list(expected)}, found {found}") from None

    async def until_told(self) -> None:
        """Wait until the discoverer tells that something fails, and look on for a while.

        Raises:
          ContractError: it does not in time.
        """
        await self.until(lambda: bool(self.trouble), "a failure is told, in statistics().errors or by raising,")
        await trio.sleep(4 * _PAUSE)

    async def until_mended(self, addresses: Sequence[str]) -> None:
        """Wait until exactly these ``addresses`` are shown and nothing fails any more.

        Raises:
          ContractError: it does not in time.
        """
        self.keep = ()
        await self.until_shown(addresses, "once it can be found out again, it is")
        await self.until(lambda: not self.trouble, "once it can be found out again, no failure is told")


def _list(texts: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(texts)) or "nothing"


def check_update(groups: Sequence[TargetGroup]) -> None:
    """Check one update by itself.

    Raises:
      ContractError: it is no sequence of target groups, two are of one source, a target has no address, or a label's
        name or value is no text.
    """
    require(
        isinstance(groups, Sequence) and all(type(one) is TargetGroup for one in groups),
        "an update consists of target groups",
    )
    twice = [source for source, count in Counter(one.source for one in groups).items() if count > 1]
    require(not twice, f"no two groups of an update have the same source, but there are several of {_list(twice)}")
    for group in groups:
        for labels in (group.labels, *group.targets):
            for name, value in labels.items():
                where = f"of {group.source}: {name!r}: {value!r}"
                require(isinstance(name, str) and isinstance(value, str), f"labels are texts, but not {where}")
                require(is_utf8(name) and is_utf8(value), f"labels are valid UTF-8, but not {where}")
                require(bool(name), f"labels have a name, but not {where}")
        for target in group.targets:
            address = target.get(ADDRESS_LABEL) or group.labels.get(ADDRESS_LABEL)
            require(bool(address), f"every target has an {ADDRESS_LABEL}, but not of {group.source}: {target!r}")


class ManagedRun:
    """What the discoverers of one manager have in common.

    Args:
      nursery: they run in it.
      resources: they share it.
      patience: seconds for what should take little time.
    """

    def __init__(self, nursery: trio.Nursery, resources: Resources, patience: float) -> None:
        self._nursery = nursery
        self._resources = resources
        self._patience = patience

    def observe(
        self, config: DiscovererConfig, last_known: Mapping[str, TargetGroup] = MappingProxyType({})
    ) -> Observed:
        """Begin to run the discoverers of ``config``."""
        observed = Observed(config, self._resources, last_known, self._patience)
        self._nursery.start_soon(observed.run)
        return observed


@asynccontextmanager
async def managed_run(patience: float) -> AsyncIterator[ManagedRun]:
    """Run discoverers beside the body, and cancel them at its end.

    Raises:
      ContractError: an update breaks the contract, or they don't end in time.
    """
    async with trio.open_nursery() as owner:
        resources = Resources(owner)
        async with trio.open_nursery() as nursery:
            yield ManagedRun(nursery, resources, patience)
            nursery.cancel_scope.cancel()
            cancelled_at = trio.current_time()
    took = trio.current_time() - cancelled_at
    require(took <= patience, f"cancelled, it ends within {patience:g} s, but took {took:g} s")


def what_is_held() -> Counter[str]:
    """Return what lives and is open at this moment: tasks, threads and file descriptors, by their kinds.

    Worker threads of Trio are left out: they wait for more work, and end by themselves.
    """
    found = Counter({f"task {name}": count for name, count in living_tasks().items()})
    found.update(f"thread {one.name}" for one in threading.enumerate() if not one.name.startswith("Trio thread"))
    if os.path.isdir("/proc/self/fd"):
        for descriptor in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the descriptor of this very listing
                found[f"descriptor of {os.readlink(f'/proc/self/fd/{descriptor}').partition(':[')[0]}"] += 1
    return found


async def most_held() -> Counter[str]:
    """Return the most that is held of each kind over a moment: a source's own threads open and close what they need."""
    found = what_is_held()
    for _ in range(_LOOKS):
        await trio.sleep(_TICK)
        found |= what_is_held()
    return found


async def require_released(held: Counter[str], rule: str, patience: float) -> None:
    """Wait until nothing is held that was not ``held`` before.

    A server in this process may take a moment to see that its client has gone.

    Raises:
      ContractError: something still is when ``patience`` is over.
    """
    with trio.move_on_after(patience):
        while what_is_held() - held:  # noqa: ASYNC110 (there is no event)
            await trio.sleep(_TICK)
    left = what_is_held() - held
    require(not left, f"{rule}, but there is: {_list(set(left))}")
