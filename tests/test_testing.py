"""The contract kit: good discoverers pass, and each broken rule is named."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar, cast

import pytest
import trio
from trio.testing import MockClock

from trio_sd.config import FrozenMapping
from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions, DiscovererStatistics
from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.static import StaticConfig
from trio_sd.secrets import Secret
from trio_sd.targets import Labels, TargetGroup
from trio_sd.testing import (
    ContractError,
    ContractSource,
    FakeDiscoverer,
    OpenSource,
    RuleSkipped,
    check_contract,
    check_discoverer,
    contract_rules,
    group,
)

P = ParamSpec("P")
T = TypeVar("T")
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
async def test_what_breaks_the_contract_is_named(how: str, rule: str, autojump_clock: MockClock) -> None:
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


# --- The rules, with a source in memory: a good discoverer keeps them all, and for each there is one that breaks it ---


class Board(ContractSource):
    """Addresses to discover. ``world`` is what outlives it: what a module would hold."""

    can = frozenset({"change", "fail", "hang"})

    def __init__(self, how: str, world: dict[str, Any]) -> None:
        self.config = BoardConfig(how, f"board {len(world.setdefault('boards', []))}", self)
        world["boards"].append(self)
        self.world = world
        self.addresses: tuple[str, ...] = ()
        self.state = "shown"
        self.closed = False

    async def show(self, *addresses: str) -> None:
        self.addresses = addresses
        self.state = "shown"

    async def fail(self) -> None:
        self.state = "fails"

    async def hang(self) -> None:
        self.state = "hangs"

    async def read(self, how: str) -> tuple[str, ...]:
        """Return the addresses, as a server would."""
        await trio.lowlevel.checkpoint()
        if self.state == "hangs":
            with trio.CancelScope(shield=how == "reads on"), trio.move_on_after(20 if how == "reads on" else math.inf):
                await trio.sleep_forever()
        if self.state == "fails" or self.closed:
            raise OSError("the board is gone")
        return self.addresses


@dataclass(frozen=True)
class BoardConfig(DiscovererConfig):
    mechanism: ClassVar[str] = "board"
    how: str
    name: str
    board: Board = field(compare=False, repr=False)

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        return BoardReader(self.board, options, self.how)


class BoardReader:
    def __init__(self, board: Board, options: DiscovererOptions, how: str) -> None:
        self.board = board
        self.options = options
        self.how = how
        self.sent: list[str] | None = None
        self.errors: tuple[str, ...] = ()

    def statistics(self) -> DiscovererStatistics:
        return DiscovererStatistics(() if self.how == "keeps quiet" else self.errors)

    async def run(self, updates: Updates) -> None:
        if self.how == "leaves a file open":
            self.board.world.setdefault("open", []).append(os.open("/dev/null", os.O_RDONLY))
        if self.how == "has one lock for every run":
            await self.board.world.setdefault("lock", trio.Lock()).acquire()
        try:
            async with self.options.resources.use(("lock",), open_lock) as lock, trio.open_nursery() as nursery:
                queue, waiting = trio.open_memory_channel[list[TargetGroup]](math.inf)
                if self.how == "queues":
                    nursery.start_soon(self.empty, waiting, updates)
                while True:
                    async with lock if self.how == "reads one after the other" else nullcontext():
                        groups = await self.look()
                    if groups is not None:
                        await (queue.send(groups) if self.how == "queues" else self.send(groups, updates))
                    await trio.sleep(0.05)
        finally:
            if self.how == "closes what all share":
                self.board.closed = True
            if self.how == "lingers":
                with trio.CancelScope(shield=True):
                    await trio.sleep(20)

    async def empty(self, waiting: trio.MemoryReceiveChannel[list[TargetGroup]], updates: Updates) -> None:
        async for groups in waiting:
            await updates.send(groups)

    async def send(self, groups: list[TargetGroup], updates: Updates) -> None:
        for part in [[one] for one in groups] if self.how == "sends one by one" else [groups]:
            await updates.send(part)
        if self.how == "closes the channel":
            updates.close()

    async def look(self) -> list[TargetGroup] | None:
        """Return what to send, or ``None`` if there is nothing."""
        try:
            patient = self.how in ("waits for ever", "reads one after the other", "reads on")
            with trio.fail_after(math.inf if patient else 1):
                found = sorted(await self.board.read(self.how))
        except (OSError, trio.TooSlowError) as error:
            return await self.failed(error)
        self.errors = ()
        before, self.sent = self.sent, found
        if found == before or (self.how == "says nothing of nothing" and not (found or before)):
            return None
        gone = [group(address) for address in before or () if address not in found]
        if self.how == "tells of the last ones only" and not found:
            gone = []
        new = [self.group(address) for address in found if address not in (before or ())]
        if self.how == "sends parts of groups":
            return [group("all", *[one.source for one in new])]
        if self.how == "sends a source twice":
            new *= 2
        return [*new, *gone]

    async def failed(self, error: Exception) -> list[TargetGroup] | None:
        if self.how == "raises":
            raise error
        self.errors = (repr(error),)
        if self.how == "gives up":
            await trio.sleep_forever()
        if self.how == "takes failure for empty":
            before, self.sent = self.sent, []
            return [group(address) for address in before or ()]
        return None

    def group(self, address: str) -> TargetGroup:
        match self.how:
            case "sends no address":
                return TargetGroup(address, [{"a": "b"}])
            case "sends bytes that are no text":
                return TargetGroup(address, [{"__address__": address, "a": "\udcff"}])
            case "sends numbers":
                return TargetGroup(address, [Labels.of_sorted(("__address__", address, "a", cast("str", 1)))])
            case "sends labels without a name":
                return TargetGroup(address, [{"__address__": address, "": "b"}])
        return group(address, address)


@asynccontextmanager
async def open_lock() -> AsyncIterator[trio.Lock]:
    yield trio.Lock()


def opener(how: str, world: dict[str, Any], source: type[Board] = Board) -> OpenSource:
    @asynccontextmanager
    async def open_board() -> AsyncIterator[ContractSource]:
        async with trio.open_nursery():  # as a server would: what is raised in here comes out in a group
            yield source(how, world)

    return open_board


def run(check: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    return trio.run(partial(check, *args, **kwargs), clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("how", ["well", "raises"])
def test_a_good_discoverer_keeps_every_rule(how: str) -> None:
    assert run(check_contract, opener(how, {})) == ()


class FixedBoard(Board):
    can = frozenset()


def test_rules_that_a_source_is_not_able_to_show_are_skipped_by_name(caplog: pytest.LogCaptureFixture) -> None:
    names = [rule.name for rule in contract_rules() if rule.needs]
    assert list(run(check_contract, opener("well", {}, FixedBoard))) == names
    assert [message.partition(" ")[0] for message in caplog.messages] == names
    hanging = next(rule for rule in contract_rules() if rule.name == "hanging-is-told")
    with pytest.raises(RuleSkipped, match=r"^hanging-is-told is not checked: the source can't hang$"):
        run(hanging.check, opener("well", {}, FixedBoard))


BROKEN = [
    ("first-send-is-the-full-set", "sends one by one", "the first send is the full set"),
    ("first-send-is-the-full-set", "sends a source twice", "no two groups of an update have the same source"),
    ("first-send-is-the-full-set", "sends no address", "every target has an __address__"),
    ("first-send-is-the-full-set", "sends bytes that are no text", "labels are valid UTF-8"),
    ("first-send-is-the-full-set", "sends numbers", "labels are texts"),
    ("first-send-is-the-full-set", "sends labels without a name", "labels have a name"),
    ("managers-do-not-meet", "closes the channel", "the channel is the engine's to close"),
    ("empty-is-sent", "says nothing of nothing", "a first full set that is empty is sent"),
    ("targets-that-go-are-removed", "tells of the last ones only", "targets that have gone are removed"),
    ("updates-add-up", "sends parts of groups", "whole groups, put together by source, are what there is"),
    ("failure-keeps-what-was-good", "takes failure for empty", "an update took away 127.0.0.1:9100"),
    ("failure-keeps-what-was-good", "keeps quiet", "a failure is told"),
    ("failure-keeps-what-was-good", "gives up", "once it can be found out again, it is"),
    ("failed-first-read-sends-nothing", "takes failure for empty", "nothing is sent before anything was found out"),
    ("last-known-stays", "takes failure for empty", "an update took away 127.0.0.1:9100"),
    ("cancelled-it-leaves-nothing", "leaves a file open", "nothing stays open or alive"),
    ("cancelled-it-leaves-nothing", "lingers", "it ends within 5 s"),
    ("cancelled-while-hanging-it-ends", "reads on", "cancelled, it ends within 5 s, but took"),
    ("cancelled-while-hanging-it-ends", "leaves a file open", "cancelled while reading hangs, it leaves nothing"),
    ("hanging-is-told", "waits for ever", "a failure is told"),
    ("hanging-is-told", "takes failure for empty", "nothing is sent before anything was found out"),
    ("hanging-holds-nobody-up", "reads one after the other", "another source is read while one hangs"),
    ("hanging-holds-nobody-up", "waits for ever", "once it can be found out again, it is"),
    ("held-back-it-sends-the-newest-state", "queues", "nothing queues while it is held back"),
    ("managers-do-not-meet", "closes what all share", "the end of one manager does not concern another"),
    ("works-in-every-run", "has one lock for every run", "it works in one trio.run after the other"),
]


@pytest.mark.parametrize(("name", "how", "message"), BROKEN, ids=[f"{name}-{how}" for name, how, _ in BROKEN])
def test_a_broken_rule_is_named(name: str, how: str, message: str) -> None:
    world: dict[str, Any] = {}
    rule = next(rule for rule in contract_rules() if rule.name == name)
    patience = 0.5 if name == "works-in-every-run" else 5.0  # that one has runs of its own, on the real clock
    try:
        with pytest.raises(ContractError) as caught:
            run(rule.check, opener(how, world), patience=patience)
    finally:
        for descriptor in world.get("open", ()):
            os.close(descriptor)
    assert str(caught.value).startswith(f"{name}: broken: ")
    assert message in str(caught.value)


def test_there_is_a_broken_discoverer_for_every_rule() -> None:
    assert {name for name, *_ in BROKEN} | {"configuration-is-a-value"} == {rule.name for rule in contract_rules()}


class AnyConfig(DiscovererConfig):
    mechanism: ClassVar[str] = "any"

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        raise NotImplementedError


@dataclass(frozen=True)
class Good(AnyConfig):
    text: str = "a"
    place: int = field(default=1, compare=False)
    secrets: tuple[Mapping[str, Secret], ...] = (FrozenMapping({"a": Secret("hunter2")}),)


class NoDataclass(AnyConfig):
    pass


@dataclass
class Thawed(AnyConfig):
    pass


@dataclass(frozen=True)
class Unhashable(AnyConfig):
    __hash__ = None  # type: ignore[assignment]  # that is the point


@dataclass(frozen=True, eq=False)
class ByIdentity(AnyConfig):
    pass


@dataclass(frozen=True)
class Undiscerning(AnyConfig):
    text: str = "a"

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


@dataclass(frozen=True)
class Nameless(AnyConfig):
    mechanism: ClassVar[str] = ""


@dataclass(frozen=True)
class Chatty(AnyConfig):
    password: Secret = field(default_factory=lambda: Secret("hunter2"))

    def __str__(self) -> str:
        return f"Chatty({self.password.reveal()})"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Good(), None),
        (Nameless(), "has a mechanism"),
        (NoDataclass(), "is a frozen dataclass"),
        (Thawed(), "is a frozen dataclass"),
        (Unhashable(), "is hashable"),
        (ByIdentity(), "equals a copy of itself"),
        (Undiscerning(), "differs from one with another text"),
        (Chatty(), "shows no secret"),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, AnyConfig) else "",
)
def test_a_configuration_is_a_value(config: AnyConfig, message: str | None) -> None:
    class Source(ContractSource):
        async def show(self, *addresses: str) -> None:
            self.config = config

    @asynccontextmanager
    async def open_source() -> AsyncIterator[ContractSource]:
        yield Source()

    rule = contract_rules()[0]
    if message is None:
        run(rule.check, open_source)
        return
    with pytest.raises(ContractError, match=f"^configuration-is-a-value: broken: .*{message}"):
        run(rule.check, open_source)
