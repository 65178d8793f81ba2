"""A discoverer that does what the test says, when it says it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import trio

from ..discoverer import DiscovererConfig, DiscovererOptions
from ..targets import ADDRESS_LABEL, TargetGroup

__all__ = ["FakeConfig", "FakeDiscoverer", "group"]

_Action = Callable[[trio.MemorySendChannel[Sequence[TargetGroup]]], Awaitable[bool]]


def group(source: str, *addresses: str, labels: Mapping[str, str] | None = None) -> TargetGroup:
    """Return a group of targets that have an address and nothing else."""
    return TargetGroup(source, [{ADDRESS_LABEL: address} for address in addresses], labels or {})


class FakeDiscoverer:
    """A discoverer that does what the test says, when it says it.

    Put its :attr:`config` into a manager's configuration; equal names make equal configurations. Every run that the
    engine starts takes its orders from here; an order waits until a run is there to take it, and returns when it has
    been carried out.

    Args:
      name: tells configurations apart.
      linger: seconds that a run takes to end when cancelled, shielded, as clean-up may.
      first: what every run sends first of all without being told, or ``None`` to wait for orders.
    """

    def __init__(self, name: str, *, linger: float = 0.0, first: Iterable[TargetGroup] | None = None) -> None:
        self.config = FakeConfig(name, self)
        self.started = 0
        """How many runs have begun."""
        self.running = 0
        """How many runs are under way."""
        self.options: DiscovererOptions | None = None
        """What the engine handed to the latest run."""
        self._first = None if first is None else tuple(first)
        self._linger = linger
        self._orders, self._inbox = trio.open_memory_channel[_Action](0)

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        """Carry out orders until one of them ends the run."""
        self.started += 1
        self.running += 1
        try:
            if self._first is not None:
                await updates.send(self._first)
            while await (await self._inbox.receive())(updates):
                pass
        finally:
            with trio.CancelScope(shield=True):
                if self._linger:
                    await trio.sleep(self._linger)
            self.running -= 1

    async def send(self, *groups: TargetGroup) -> None:
        """Have the run send ``groups``, and wait until the engine has taken them.

        Raises:
          trio.BrokenResourceError: the run was cancelled instead.
        """
        taken = False
        done = trio.Event()

        async def action(updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> bool:
            nonlocal taken
            try:
                await updates.send(groups)
                taken = True
            finally:
                done.set()
            return True

        await self._orders.send(action)
        await done.wait()
        if not taken:
            raise trio.BrokenResourceError("the run was cancelled before the engine took what it sent")

    async def fail(self, error: Exception) -> None:
        """Have the run raise ``error``."""

        async def action(updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> bool:
            raise error

        await self._orders.send(action)

    async def finish(self) -> None:
        """Have the run return."""

        async def action(updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> bool:
            return False

        await self._orders.send(action)


@dataclass(frozen=True)
class FakeConfig(DiscovererConfig):
    """The configuration of a :class:`FakeDiscoverer`; equal to another of the same name."""

    mechanism: ClassVar[str] = "fake"
    name: str
    fake: FakeDiscoverer = field(compare=False, repr=False)

    def discoverer(self, options: DiscovererOptions) -> FakeDiscoverer:
        """Return the fake that the test holds."""
        self.fake.options = options
        return self.fake
