"""The contract kit: good discoverers pass, and each broken rule is named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions
from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.static import StaticConfig
from trio_sd.targets import TargetGroup
from trio_sd.testing import ContractError, FakeDiscoverer, check_discoverer, group

Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


async def test_static_discovery_keeps_the_contract() -> None:
    groups = (group("0", "a:1"), group("1", "b:1"))
    assert await check_discoverer(StaticConfig(groups)) == groups


async def test_file_discovery_keeps_the_contract(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"targets": ["a:1"]}]')
    found = await check_discoverer(FileSDConfig(files=(f"{tmp_path}/*.json",)))
    assert [one.source for one in found] == [f"{tmp_path}/a.json:0"]


@dataclass(frozen=True)
class Broken(DiscovererConfig):
    mechanism: ClassVar[str] = "broken"
    how: str
    opened: list[int] = field(default_factory=list, compare=False)

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        if self.how == "opens early":
            self.opened.append(os.open("/dev/null", os.O_RDONLY))
        return BrokenDiscoverer(self.how, self.opened)

    def __eq__(self, other: object) -> bool:
        return self.how != "unequal" and isinstance(other, Broken) and other.how == self.how

    def __hash__(self) -> int:
        return 1


class BrokenDiscoverer:
    def __init__(self, how: str, opened: list[int]) -> None:
        self.how = how
        self.opened = opened

    async def run(self, updates: Updates) -> None:
        if self.how == "silent":
            await trio.sleep_forever()
        if self.how == "leaks":
            self.opened.append(os.open("/dev/null", os.O_RDONLY))
            await trio.lowlevel.checkpoint()
        found: Any = [group("a", "1"), group("a", "2")] if self.how == "duplicates" else [group("a", "1")]
        await updates.send(["a"] if self.how == "garbage" else found)  # type: ignore[list-item]  # that is the point
        if self.how == "closes":
            updates.close()
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("unequal", "equals a copy of itself"),
        ("opens early", "nothing is opened before run"),
        ("silent", "the first full set comes within 5 s"),
        ("duplicates", "no two groups"),
        ("garbage", "consists of target groups"),
        ("closes", "the channel is the engine's to close"),
        ("leaks", "nothing stays open"),
    ],
)
async def test_what_breaks_the_contract_is_named(how: str, rule: str, autojump_clock: trio.testing.MockClock) -> None:
    config = Broken(how)
    try:
        with pytest.RaisesGroup(
            pytest.RaisesExc(ContractError, match=rule), flatten_subgroups=True, allow_unwrapped=True
        ):
            await check_discoverer(config)
    finally:
        for descriptor in config.opened:
            os.close(descriptor)


async def test_the_fake_tells_when_its_run_is_cancelled_with_an_order_in_hand() -> None:
    fake = FakeDiscoverer("a")
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with send, receive:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def run() -> None:
                with scope:
                    await fake.run(send)

            async def order() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await fake.send(group("x", "1"))

            nursery.start_soon(run)
            nursery.start_soon(order)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
