"""Polling: when to look, what is sent of what is found, and that no part holds up another."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.errors import ConfigError, DiscoveryError
from trio_sd.manager import open_manager
from trio_sd.polling import CATALOG, Findings, Look, Polling, PollingDiscoverer, Schedule
from trio_sd.resources import Resources
from trio_sd.targets import TargetGroup
from trio_sd.testing import cancel_everywhere, group

from .managing import AT_ONCE

INTERVAL = 30.0


class Drawn(random.Random):
    """Draws the same number each time."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number

    def random(self) -> float:
        return self._number


# --- Schedule ---


@pytest.mark.parametrize(
    ("interval", "drawn", "first"), [(30, 0, 0), (30, 0.5, 0.125), (0.1, 0.5, 0.05), (math.inf, 1, 0.25)]
)
def test_the_first_look_is_within_a_quarter_of_a_second(interval: float, drawn: float, first: float) -> None:
    assert Schedule(interval, 100, Drawn(drawn)).due == 100 + first


@given(st.floats(0.01, 1e4), st.lists(st.floats(0, 0.999), min_size=1, max_size=30), st.integers())
def test_looks_that_are_shorter_than_the_interval_do_not_drift(
    interval: float, lengths: list[float], seed: int
) -> None:
    schedule = Schedule(interval, 0, random.Random(seed))
    first = schedule.due
    assert 0 <= first <= min(interval, 0.25)
    schedule.succeeded(first)
    second = schedule.due
    assert first + interval / 2 <= second <= first + interval
    for number, part in enumerate(lengths, 1):
        schedule.succeeded(schedule.due + part * interval)
        assert schedule.due == pytest.approx(second + number * interval)


def test_a_look_that_takes_longer_than_the_interval_is_followed_by_the_next() -> None:
    schedule = Schedule(10, 0, Drawn(0))
    schedule.succeeded(0)
    assert schedule.due == 5
    schedule.succeeded(25)
    assert schedule.due == 25
    schedule.succeeded(26)
    assert schedule.due == 35


@pytest.mark.parametrize(("drawn", "part"), [(0.0, 0.5), (1.0, 1.0)])
def test_pauses_after_failures_double_up_to_a_minute(drawn: float, part: float) -> None:
    schedule = Schedule(300, 0, Drawn(drawn))
    pauses = []
    for _ in range(9):
        schedule.failed(1000)
        pauses.append(schedule.due - 1000)
    assert pauses == [part * pause for pause in (1, 2, 4, 8, 16, 32, 60, 60, 60)]
    schedule.succeeded(1000)
    schedule.failed(1000)
    assert schedule.due == 1000 + part


@pytest.mark.parametrize("drawn", [0, 0.5, 1])
def test_who_fails_is_asked_no_more_often_than_who_does_not(drawn: float) -> None:
    schedule = Schedule(0.5, 0, Drawn(drawn))
    for _ in range(5):
        schedule.failed(10)
        assert schedule.due == 10.5
    schedule = Schedule(10, 0, Drawn(drawn))
    pauses = []
    for _ in range(6):
        schedule.failed(0)
        pauses.append(schedule.due)
    assert pauses[-2:] == [10, 10]


@pytest.mark.parametrize(("wish", "pause"), [(None, 1), (0, 1), (0.5, 1), (20, 20), (601, 600), (math.inf, 600)])
def test_who_wants_to_be_left_alone_is(wish: float | None, pause: float) -> None:
    schedule = Schedule(INTERVAL, 0, Drawn(1))
    schedule.failed(0, wish)
    assert schedule.due == pause


# --- Findings ---


def findings(*parts: str, known: Mapping[str, TargetGroup] | None = None) -> Findings:
    made = Findings(lambda: known or {})
    for part in parts:
        made.add(part, part)
    return made


def test_the_first_full_set_waits_for_every_part() -> None:
    made = findings("a", "b")
    made.found("a", [group("a", "1")])
    assert made.take() is None
    made.found("b", [])
    assert made.take() == [group("a", "1")]
    assert made.take() is None


def test_an_empty_first_set_is_sent() -> None:
    made = findings("a")
    made.found("a", [])
    assert made.take() == []


def test_without_any_part_there_is_nothing_to_wait_for() -> None:
    assert findings().take() == []


def test_the_first_full_set_does_not_wait_for_what_fails_but_for_something_that_is_read() -> None:
    made = findings("a", "b")
    made.failed("a", "no")
    made.failed("b", "no")
    assert made.take() is None
    made.found("b", [group("b", "1")])
    assert made.take() == [group("b", "1")]
    assert made.errors() == ["a: no"]


def test_what_can_not_be_read_at_first_is_what_it_was() -> None:
    known = {each.source: each for each in (group("a:0", "1"), group("a:1", "2"), group("b", "3"), group("gone", "4"))}
    made = findings("a", "b", known=known)
    made.failed("a", "no")
    made.found("b", [group("b", "9")])
    assert made.take() == [group("a:0", "1"), group("a:1", "2"), group("b", "9")]
    made.found("a", [group("a:0", "1")])
    assert made.take() == [TargetGroup("a:1", ())]


@pytest.mark.parametrize("source", ["a", "a:7", "x:80:2"])
def test_whose_a_group_is_tells_its_source(source: str) -> None:
    made = findings("a", "x:80", "x", known={source: group(source, "1")})
    for part in ("a", "x:80", "x"):
        made.failed(part, "no")
    assert made.take() == [group(source, "1")]
    made.found("x", [])
    assert made.take() is None


def test_only_what_differs_is_sent() -> None:
    made = findings("a")
    made.found("a", [group("a:0", "1"), group("a:1", "2")])
    made.take()
    made.found("a", [group("a:0", "1"), group("a:1", "3"), group("a:2", "4")])
    assert made.take() == [group("a:1", "3"), group("a:2", "4")]
    made.found("a", [group("a:2", "4")])
    assert sorted(each.source for each in made.take() or ()) == ["a:0", "a:1"]


def test_that_nothing_has_changed_is_told_once_all_parts_were_read() -> None:
    made = findings("a", "b")
    made.found("a", [])
    made.found("b", [])
    assert made.take() == []
    made.found("a", None)
    made.found("a", None)
    assert made.take() is None
    made.found("b", None)
    assert made.take() == []
    made.found("a", None)
    made.failed("b", "no")
    assert made.take() is None, "what fails confirms nothing"
    assert made.found("b", None) == "no"
    assert made.take() == []


def test_of_two_groups_with_one_source_neither_is_taken() -> None:
    made = findings("a")
    made.found("a", [group("a", "1")])
    made.take()
    with pytest.raises(DiscoveryError, match='two target groups with the source "a"'):
        made.found("a", [group("a", "2"), group("a", "3")])
    assert made.take() is None


def test_a_part_that_is_removed_takes_its_groups_along() -> None:
    made = findings("a", "b")
    made.found("a", [group("a", "1")])
    made.found("b", [])
    made.take()
    made.remove("a")
    assert made.take() == [TargetGroup("a", ())]
    made.add("a", "a")
    made.found("a", [group("a", "2")])
    assert made.take() == [group("a", "2")]


def test_until_the_catalog_is_read_all_that_is_known_is_its_own() -> None:
    known = {source: group(source, "1") for source in ("web", "web:1", "web:1:1", "gone")}
    made = findings(CATALOG, known=known)
    made.failed(CATALOG, "no")
    assert made.take() == list(known.values())
    for part in ("web", "web:1", "web:1:1", "new"):
        made.add(part, part)
    made.found(CATALOG, [])
    assert made.take() == [TargetGroup("gone", ())], "nothing of a service that is still there"
    made.failed("web:1", "no")
    made.found("web", [group("web", "1")])
    made.found("web:1:1", [group("web:1:1", "2")])
    assert made.take() == [group("web:1:1", "2")]


PARTS = st.sampled_from("abc")
ACTIONS = st.lists(
    st.tuples(PARTS, st.one_of(st.none(), st.just("fail"), st.just("gone"), st.dictionaries(st.integers(0, 2), PARTS)))
    | st.none(),
    max_size=30,
)


@given(ACTIONS)
def test_what_is_sent_adds_up_to_the_newest_of_each_part(actions: list[tuple[str, object] | None]) -> None:
    made = findings("a", "b", "c")
    newest: dict[str, dict[str, TargetGroup]] = {part: {} for part in "abc"}
    shown: dict[str, TargetGroup] = {}
    for part in "abc":
        made.found(part, [])

    def apply() -> None:
        for each in made.take() or ():
            shown[each.source] = each

    for action in actions:
        if action is None:
            apply()
            continue
        part, what = action
        if what == "gone":
            if newest.pop(part, None) is not None:
                made.remove(part)
        elif part not in newest:
            made.add(part, part)
            newest[part] = {}
        elif what == "fail":
            made.failed(part, "no")
        elif isinstance(what, dict):
            groups = [group(f"{part}:{index}", address) for index, address in what.items()]
            newest[part] = {each.source: each for each in groups}
            made.found(part, groups)
        else:
            made.found(part, None)
    apply()
    expected = {source: each for groups in newest.values() for source, each in groups.items()}
    assert {source: each for source, each in shown.items() if each.targets} == expected


# --- Polling ---


@dataclass
class Source:
    """What the parts of a test answer, when they are looked at, and when that was."""

    answers: dict[str, Callable[[], Awaitable[Sequence[TargetGroup] | None]]] = field(default_factory=dict)
    looks: dict[str, list[float]] = field(default_factory=dict)

    def look(self, part: str) -> Look:
        async def look() -> Sequence[TargetGroup] | None:
            self.looks.setdefault(part, []).append(trio.current_time())
            return await self.answers[part]()

        return look

    async def poll(self, polling: Polling) -> None:
        async with trio.open_nursery() as nursery:
            for part in self.answers:
                polling.add(part)
            for part in self.answers:

                async def poll(part: str = part) -> None:
                    await polling.poll(part, self.look(part), interval=INTERVAL, deadline=10)

                nursery.start_soon(poll)


def answering(*groups: TargetGroup) -> Callable[[], Awaitable[Sequence[TargetGroup]]]:
    async def answer() -> Sequence[TargetGroup]:
        return groups

    return answer


def failing(error: BaseException) -> Callable[[], Awaitable[Sequence[TargetGroup]]]:
    async def answer() -> Sequence[TargetGroup]:
        raise error

    return answer


async def hang() -> Sequence[TargetGroup]:
    await trio.sleep_forever()
    raise AssertionError


@asynccontextmanager
async def polled(
    source: Source, known: Mapping[str, TargetGroup] | None = None
) -> AsyncIterator[tuple[PollingDiscoverer, trio.MemoryReceiveChannel[Sequence[TargetGroup]]]]:
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    async with trio.open_nursery() as nursery:
        options = DiscovererOptions(Resources(nursery), last_known=lambda: known or {}, name="test/0")
        discoverer = PollingDiscoverer(options, source.poll, rng=Drawn(0))
        with send, receive:
            nursery.start_soon(discoverer.run, send)
            yield discoverer, receive
            nursery.cancel_scope.cancel()


async def test_each_part_is_looked_at_in_its_rhythm(autojump_clock: MockClock) -> None:
    source = Source({"a": answering(group("a", "1")), "b": answering()})
    begun = trio.current_time()
    async with polled(source) as (_, receive):
        for _ in range(4):
            await receive.receive()
    assert [moment - begun for moment in source.looks["a"]] == [0, 15, 45, 75]


async def test_one_that_hangs_delays_no_other(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    source = Source({"a": answering(group("a", "1")), "b": hang})
    begun = trio.current_time()
    async with polled(source) as (discoverer, receive):
        assert await receive.receive() == [group("a", "1")]
        assert trio.current_time() - begun == 10, "the first full set waits, but only until the deadline"
        assert discoverer.statistics().errors == ("b: no answer within 10 s",)
        source.answers["a"] = answering(group("a", "2"))
        assert await receive.receive() == [group("a", "2")]
        assert trio.current_time() - begun == 15
        source.answers["b"] = answering(group("b", "1"))
        assert await receive.receive() == [group("b", "1")]
        assert discoverer.statistics().errors == ()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["test/0: b: no answer within 10 s", "test/0: b: no longer: no answer within 10 s"]


@pytest.mark.parametrize(
    "error",
    [
        DiscoveryError("no"),
        ConfigError("no"),
        OSError(111, "no"),
        ExceptionGroup("", [DiscoveryError("no")]),
        ExceptionGroup("", [ExceptionGroup("", [OSError("no")])]),
    ],
)
async def test_what_fails_keeps_what_was_found_and_is_told(error: Exception, autojump_clock: MockClock) -> None:
    source = Source({"a": answering(group("a", "1"))})
    async with polled(source) as (discoverer, receive):
        await receive.receive()
        source.answers["a"] = failing(error)
        begun = trio.current_time()
        with trio.move_on_after(INTERVAL):
            await receive.receive()
            pytest.fail("nothing is sent")
        assert "no" in discoverer.statistics().errors[0]
        counters = discoverer.statistics().counters
        assert counters["failures"] == counters["looks"] - 1 > 2
        assert [round(moment - begun, 2) for moment in source.looks["a"][1:5]] == [15, 15.5, 16.5, 18.5]
        source.answers["a"] = answering(group("a", "1"))
        assert await receive.receive() == []


async def test_a_mistake_of_the_mechanism_ends_its_run(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(KeyError), flatten_subgroups=True):
        async with polled(Source({"a": failing(KeyError("x"))})) as (_, receive):
            await receive.receive()


async def test_what_is_read_a_little_too_late_counts(autojump_clock: MockClock) -> None:
    async def slow() -> Sequence[TargetGroup]:
        with trio.CancelScope(shield=True):
            await trio.sleep(11)
        return [group("a", "1")]

    async with polled(Source({"a": slow})) as (discoverer, receive):
        assert await receive.receive() == [group("a", "1")]
        assert discoverer.statistics().errors == ()


async def test_while_nobody_takes_it_only_the_newest_is_kept(autojump_clock: MockClock) -> None:
    numbers = iter(range(1_000))

    async def next_one() -> Sequence[TargetGroup]:
        return [group("a", str(next(numbers)))]

    async with polled(Source({"a": next_one})) as (_, receive):
        await trio.sleep(300)
        assert await receive.receive() == [group("a", "0")], "which waited to be taken all the time"
        assert await receive.receive() == [group("a", "10")]


async def test_many_errors_are_told_in_brief(autojump_clock: MockClock) -> None:
    source = Source({str(number): failing(DiscoveryError("no")) for number in range(30)})
    async with polled(source) as (discoverer, _):
        await trio.sleep(1)
        errors = discoverer.statistics().errors
        assert errors[:2] == ("0: no", "1: no")
        assert (len(errors), errors[-1]) == (21, "10 more like that")


async def test_a_part_may_be_found_once_and_others_follow(autojump_clock: MockClock) -> None:
    failures = [DiscoveryError("no"), DiscoveryError("no")]

    async def body(polling: Polling) -> None:
        async def look() -> Sequence[TargetGroup]:
            if failures:
                raise failures.pop()
            polling.add("web")
            return ()

        async def watch() -> Sequence[TargetGroup]:
            return [group("web", "1")]

        polling.add(CATALOG)
        await polling.find(CATALOG, look, deadline=1)
        polling.remove(CATALOG)
        await polling.poll("web", watch, interval=1, deadline=1)

    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    known = {"web": group("web", "1"), "gone": group("gone", "1")}
    async with trio.open_nursery() as nursery:
        options = DiscovererOptions(Resources(nursery), last_known=lambda: known)
        nursery.start_soon(PollingDiscoverer(options, body, rng=Drawn(0)).run, send)
        assert await receive.receive() == list(known.values())
        assert await receive.receive() == [TargetGroup("gone", ())]
        assert await receive.receive() == []
        nursery.cancel_scope.cancel()


async def test_cancelled_at_any_step_it_leaves_nothing(autojump_clock: MockClock) -> None:
    async def scenario() -> None:
        async with polled(Source({"a": answering(group("a", "1")), "b": hang})) as (_, receive):
            await receive.receive()

    assert await cancel_everywhere(scenario) >= 3


# --- with a manager ---


@dataclass(frozen=True)
class Polled(DiscovererConfig):
    mechanism: ClassVar[str] = "polled"
    source: Source = field(hash=False)

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        return PollingDiscoverer(options, self.source.poll, rng=Drawn(0))


async def test_age_tells_since_when_not_all_is_known_to_be_right(autojump_clock: MockClock) -> None:
    source = Source({"a": answering(group("a", "1")), "b": answering(group("b", "1"))})
    async with open_manager({"job": [Polled(source)]}, throttle=AT_ONCE) as manager:
        await manager.wait_synced()
        await trio.sleep(16)
        (provider,) = manager.statistics().providers
        assert provider.state == "synced"
        assert provider.age == pytest.approx(1)
        source.answers["b"] = failing(DiscoveryError("no"))
        await trio.sleep(100)
        (provider,) = manager.statistics().providers
        assert (provider.state, provider.details.errors) == ("failing", ("b: no",))
        assert provider.age == pytest.approx(101)
        assert len(manager.snapshot()["job"]) == 2
        source.answers["b"] = answering(group("b", "1"))
        await trio.sleep(61)
        (provider,) = manager.statistics().providers
        assert provider.state == "synced"
        assert provider.age is not None
        assert provider.age < INTERVAL


async def test_a_refresh_looks_at_once(autojump_clock: MockClock) -> None:
    source = Source({"a": answering(group("a", "1"))})
    async with open_manager({"job": [Polled(source)]}, throttle=AT_ONCE) as manager:
        await manager.wait_synced()
        await trio.sleep(1)
        source.answers["a"] = answering(group("a", "2"))
        await manager.refresh("job")
        await wait_all_tasks_blocked()
        assert manager.snapshot()["job"] == (group("a", "2"),)
        assert len(source.looks["a"]) == 2


async def test_a_reload_while_nothing_can_be_read_keeps_everything(autojump_clock: MockClock) -> None:
    source = Source({"a": answering(group("a", "1"), group("a:1", "2"))})
    async with open_manager({"job": [Polled(source)]}, throttle=AT_ONCE) as manager:
        await manager.wait_synced()
        source.answers["a"] = failing(DiscoveryError("no"))
        await manager.apply_config({"job": [Polled(source)]})
        await trio.sleep(100)
        assert manager.snapshot()["job"] == (group("a", "1"), group("a:1", "2"))
        assert manager.statistics().providers[0].state == "failing"
        source.answers["a"] = answering(group("a:1", "2"))
        await trio.sleep(61)
        assert manager.snapshot()["job"] == (group("a:1", "2"),)
