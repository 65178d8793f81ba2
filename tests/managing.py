"""What tests of a manager share: fakes, and short ways to look at what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from trio_sd.discoverer import DiscovererStatistics
from trio_sd.manager import Manager
from trio_sd.provider import ProviderStatistics
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group

AT_ONCE: Final = Throttle(0, 0)
PATIENCE: Final = 20.0


def synced(name: str, *sources: str, linger: float = 0.0) -> FakeDiscoverer:
    """Return a fake whose every run sends these sources first; its own name if none is given."""
    return FakeDiscoverer(name, first=[group(source, "1") for source in sources or (name,)], linger=linger)


def sources(state: Mapping[str, Sequence[TargetGroup]], set_name: str = "web") -> list[str]:
    return [found.source for found in state[set_name]]


def of(manager: Manager, name: str = "fake/0") -> ProviderStatistics:
    (found,) = [one for one in manager.statistics().providers if one.name == name]
    return found


async def until(updates: trio.MemoryReceiveChannel[Update], holds: Callable[[Update], bool]) -> Update:
    """Return the first update of which something holds."""
    with trio.fail_after(PATIENCE):
        async for update in updates:
            if holds(update):
                return update
    raise AssertionError("the updates ended")


class Telling(FakeDiscoverer):
    """Tells of errors."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.errors: tuple[str, ...] = ()

    def statistics(self) -> DiscovererStatistics:
        return DiscovererStatistics(errors=self.errors)
