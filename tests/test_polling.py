"""Polling: when to look, what is sent of what is found, and that no part holds up another.

Time is virtual, and every point of it exact.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Final, TypeAlias

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions, DiscovererStatistics
from trio_sd.errors import ConfigError, DiscoveryError, TrioSDError
from trio_sd.manager import Manager, open_manager
from trio_sd.polling import CATALOG, Findings, Look, Polling, PollingDiscoverer, Schedule
from trio_sd.provider import Backoff
from trio_sd.resources import Resources
from trio_sd.targets import TargetGroup
from trio_sd.testing import CancelAfter, cancel_everywhere, group

from .managing import AT_ONCE, of, sources

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
            made.found(part, [])
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


Groups: TypeAlias = Sequence[TargetGroup]
Answer: TypeAlias = Callable[[], Awaitable[Groups | None]]
Updates: TypeAlias = trio.MemorySendChannel[Groups]

LOGGER: Final = "trio_sd.polling"


# --- the schedule ---

DYADIC: Final = st.integers(0, 64).map(lambda n: n / 64)  # floats that add up exactly


@given(
    draw=DYADIC,
    interval=st.integers(1, 4096).map(lambda n: n / 8),
    looks=st.lists(st.tuples(DYADIC, DYADIC), min_size=1, max_size=50),
)
def test_it_never_drifts(draw: float, interval: float, looks: list[tuple[float, float]]) -> None:
    schedule = Schedule(interval, 0, Drawn(draw))
    phase = schedule.due + interval * (1 + draw) / 2
    for n, (late, lasting) in enumerate(looks):
        # A look may begin late, and takes its time, but is over before the next one is due.
        schedule.succeeded(schedule.due + (late + lasting) * interval / 4)
        assert schedule.due == phase + n * interval


@pytest.mark.parametrize("over", [10.0, 10.5, 25.0, 1e6])
def test_a_look_that_overruns_is_followed_by_the_next_at_once(over: float) -> None:
    schedule = Schedule(10, 0, Drawn(0))
    schedule.succeeded(1)
    assert schedule.due == 5
    schedule.succeeded(5 + over)
    assert schedule.due == 5 + over
    schedule.succeeded(5 + over + 1)
    assert schedule.due == 5 + over + 10, "and what was missed is not made up for"


def test_a_first_look_that_overruns_is_followed_by_the_second_at_once() -> None:
    schedule = Schedule(10, 0, Drawn(0))
    schedule.succeeded(7)
    assert schedule.due == 7


@pytest.mark.parametrize(
    ("interval", "draw", "pauses"),
    [
        (300.0, 1.0, [1, 2, 4, 8, 16, 32, 60, 60]),
        (300.0, 0.0, [0.5, 1, 2, 4, 8, 16, 30, 30]),
        (300.0, 0.5, [0.75, 1.5, 3, 6, 12, 24, 45, 45]),
        (math.inf, 1.0, [1, 2, 4, 8, 16, 32, 60, 60]),
        (60.0, 1.0, [1, 2, 4, 8, 16, 32, 60, 60]),
        (60.0, 0.0, [0.5, 1, 2, 4, 8, 16, 60, 60]),
        (8.0, 1.0, [1, 2, 4, 8, 8]),
        (5.0, 1.0, [1, 2, 4, 5, 5]),
        (5.0, 0.0, [0.5, 1, 2, 5, 5]),
        (0.25, 1.0, [0.25, 0.25]),
    ],
)
def test_pauses_after_failures(interval: float, draw: float, pauses: list[float]) -> None:
    schedule = Schedule(interval, 0, Drawn(draw))
    for number, pause in enumerate(pauses):
        now = 1000.0 * number
        schedule.failed(now)
        assert schedule.due - now == pause


def test_pauses_never_overflow() -> None:
    schedule = Schedule(300, 0, Drawn(1))
    for _ in range(5_000):
        schedule.failed(8)
    assert schedule.due == 68


@given(interval=st.floats(0.01, 1e6), failures=st.integers(1, 200), seed=st.integers(0, 100))
def test_pauses_are_drawn_from_the_upper_half_or_are_the_interval(interval: float, failures: int, seed: int) -> None:
    schedule = Schedule(interval, 0, random.Random(seed))
    for number in range(failures):
        schedule.failed(0)
        longest = min(2.0**number, 60)
        assert schedule.due == interval if longest >= interval else longest / 2 <= schedule.due <= longest


@pytest.mark.parametrize(
    ("wish", "pause"),
    [
        (None, 1.0),
        (0.0, 1.0),
        (-5.0, 1.0),
        (0.5, 1.0),
        (7.0, 7.0),
        (120.0, 120.0),
        (600.0, 600.0),
        (600.5, 600.0),
        (1e12, 600.0),
        (math.inf, 600.0),
        (math.nan, 1.0),
    ],
)
def test_who_wants_to_be_left_alone_is_for_ten_minutes_at_the_most(wish: float | None, pause: float) -> None:
    schedule = Schedule(30, 0, Drawn(1))
    schedule.failed(100, wish)
    assert schedule.due == 100 + pause


def test_a_success_ends_the_streak_and_the_next_look_is_an_interval_later() -> None:
    schedule = Schedule(10, 0, Drawn(1))
    schedule.succeeded(0.25)
    for now in (10.25, 12, 20):
        schedule.failed(now)
    assert schedule.due == 24
    schedule.succeeded(24.5)
    assert schedule.due == 34
    schedule.failed(34)
    assert schedule.due == 35


def test_what_failed_together_at_first_spreads_out_after_its_first_success() -> None:
    schedule = Schedule(10, 0, Drawn(0))
    schedule.failed(2)
    schedule.succeeded(schedule.due)
    assert schedule.due == 2.5 + 5
    schedule.succeeded(schedule.due)
    assert schedule.due == 2.5 + 5 + 10


def test_what_begins_together_spreads_out() -> None:
    rng = random.Random(7)
    schedules = [Schedule(60, 0, rng) for _ in range(1000)]
    for schedule in schedules:
        schedule.succeeded(schedule.due)
    fullest = Counter(int(schedule.due) for schedule in schedules).most_common(1)[0][1]
    assert fullest < 60, "of a thousand, about 33 come in each second of the second half"


# --- findings ---


def known(*groups: TargetGroup) -> Mapping[str, TargetGroup]:
    return MappingProxyType({one.source: one for one in groups})


def synced_findings(*parts: str) -> Findings:
    """Return findings of which the first full set, one group a part, was taken."""
    made = findings(*parts)
    for part in parts:
        made.found(part, [group(part, "1")])
    assert made.take() == [group(part, "1") for part in parts]
    return made


def taken(made: Findings) -> list[TargetGroup]:
    """Take what is to be sent, which must be something, no source of it twice; in order."""
    groups = made.take()
    assert groups is not None
    assert len({one.source for one in groups}) == len(groups)
    return sorted(groups, key=lambda one: one.source)


def test_nothing_is_sent_while_nothing_could_be_read_and_nothing_is_known() -> None:
    made = findings("a", "b")
    made.failed("a", "no")
    made.failed("b", "no")
    assert made.take() is None
    made.failed("a", "still no")
    assert made.take() is None
    made.found("b", [])
    assert made.take() == [], "now something was read, though it is empty"


def test_what_is_found_again_before_the_first_full_set_is_sent_once() -> None:
    made = findings("a", "b")
    made.found("a", [group("a", "1"), group("a:1", "1")])
    made.found("a", [group("a", "2")])
    made.found("b", [])
    assert taken(made) == [group("a", "2")]
    assert made.take() is None


def test_a_part_that_goes_before_the_first_full_set_is_not_waited_for() -> None:
    made = findings("a", "b")
    made.found("a", [group("a", "1")])
    made.remove("b")
    assert taken(made) == [group("a", "1")]


def test_a_part_that_was_found_and_goes_before_the_first_full_set_is_not_in_it() -> None:
    made = findings("a", "b")
    made.found("a", [group("a", "1")])
    made.remove("a")
    made.found("b", [group("b", "1")])
    assert taken(made) == [group("b", "1")]
    assert made.take() is None


def test_when_all_parts_have_gone_there_is_nothing() -> None:
    made = findings("a")
    made.remove("a")
    assert made.take() == []


def test_a_part_that_goes_takes_its_groups_with_it_and_may_come_back() -> None:
    made = synced_findings("a", "b")
    made.remove("b")
    assert taken(made) == [group("b")]
    made.add("b", "b")
    assert made.take() is None
    made.found("b", [group("b", "1")])
    assert taken(made) == [group("b", "1")]


def test_a_part_that_goes_and_comes_back_while_the_engine_is_busy_is_not_lost() -> None:
    made = synced_findings("a", "b")
    made.remove("b")
    made.add("b", "b")
    made.found("b", [group("b", "1")])
    assert taken(made) == [group("b", "1")]


def test_only_the_newest_is_sent() -> None:
    made = synced_findings("a")
    for n in "2345":
        made.found("a", [group("a", n)])
    assert taken(made) == [group("a", "5")]


@pytest.mark.parametrize("sequence", [list, tuple])
def test_equal_groups_are_not_sent_again(sequence: type[list[TargetGroup] | tuple[TargetGroup, ...]]) -> None:
    made = findings("a", "b")
    made.found("a", [group("a:0", "1"), group("a:1", "1")])
    made.failed("b", "no")
    taken(made)
    made.found("a", sequence([group("a:1", "1"), group("a:0", "1")]))
    assert made.take() is None
    made.found("a", None)
    assert made.take() is None
    made.found("a", sequence([group("a:1", "1"), group("a:0", "2")]))
    assert taken(made) == [group("a:0", "2")]


def test_a_change_of_the_labels_is_a_change() -> None:
    made = synced_findings("a")
    labeled = TargetGroup("a", group("a", "1").targets, {"x": "y"})
    made.found("a", [labeled])
    assert taken(made) == [labeled]


def test_a_part_that_fails_keeps_its_groups() -> None:
    made = synced_findings("a", "b")
    made.failed("a", "no")
    assert made.take() is None
    assert made.errors() == ["a: no"]
    made.found("a", [group("a", "2")])
    assert taken(made) == [group("a", "2")]
    assert made.errors() == []


def test_errors_and_what_is_over_are_told() -> None:
    made = synced_findings("a")
    assert made.failed("a", "no") is True
    assert made.failed("a", "no") is False
    assert made.failed("a", "other") is True
    assert made.found("a", None) == "other"
    assert made.found("a", None) == ""
    assert made.failed("a", "other") is True


# --- findings: duplicates, and nothing ---


def test_what_was_refused_is_not_taken_for_what_there_is() -> None:
    """Who asks keeps in mind what was answered last, and says that it is the same; it was never taken, though."""
    made = synced_findings("a")
    twice = [group("x", "1"), group("x", "2")]
    with pytest.raises(DiscoveryError) as refused:
        made.found("a", twice)
    made.failed("a", str(refused.value))
    with pytest.raises(DiscoveryError, match='"x"'):
        made.found("a", None)
    assert made.errors()


def test_nothing_new_before_anything_was_found_takes_nothing_away() -> None:
    made = findings("a", known=known(group("a", "1")))
    try:
        made.found("a", None)
    except DiscoveryError as error:
        made.failed("a", str(error))
    assert taken(made) == [group("a", "1")], "what it was is what is shown"


def test_nothing_new_after_the_first_answer_was_refused_takes_nothing_away() -> None:
    made = findings("a", known=known(group("a", "1")))
    made.add("slow", "slow")
    with pytest.raises(DiscoveryError) as refused:
        made.found("a", [group("x", "1"), group("x", "2")])
    made.failed("a", str(refused.value))
    try:
        made.found("a", None)
    except DiscoveryError as error:
        made.failed("a", str(error))
    made.found("slow", [])
    assert taken(made) == [group("a", "1")]


def test_nothing_new_of_a_part_that_others_stand_in_for_does_not_make_them_right() -> None:
    made = findings("a", known=known(group("a", "1")))
    made.failed("a", "no")
    assert taken(made) == [group("a", "1")]
    try:
        made.found("a", None)
    except DiscoveryError as error:
        made.failed("a", str(error))
    assert made.take() is None, "nobody has found out that it is still so"


# --- findings: what stands in ---

A, A1, A3, B, HOST, HOST2 = (group(source, "known") for source in ("a", "a:1", "name:3", "b", "host:80", "host:80:2"))


@pytest.mark.parametrize(
    ("parts", "last_known", "stand_in"),
    [
        (["a"], [A], [A]),
        (["a"], [A, A1], [A, A1]),
        (["a"], [B], []),
        (["name"], [A3], [A3]),
        (["host:80"], [HOST, HOST2], [HOST, HOST2]),
        (["host"], [HOST], [HOST]),
        (["host"], [HOST2], []),
        (["a", "a:1"], [A, A1], [A, A1]),
        (["a"], [group("a:x", "1"), group("ab", "1"), group("a:", "1"), group(":a", "1"), group("", "1")], []),
        (["a"], [group("a:²", "1"), group("a:-1", "1"), group("a:٣", "1"), group("a: 1", "1")], []),
        ([""], [group("", "1"), group(":1", "1")], [group("", "1"), group(":1", "1")]),
        (
            ["http://h:80/x"],
            [group("http://h:80/x:12", "1"), group("http://h:80", "1")],
            [group("http://h:80/x:12", "1")],
        ),
        (["[::1]:80"], [group("[::1]:80:0", "1")], [group("[::1]:80:0", "1")]),
        ([CATALOG], [A, A1, HOST2, B], [A, A1, B, HOST2]),
        ([CATALOG, "a"], [A, A1, B], [A, A1, B]),
    ],
)
def test_what_cannot_be_read_at_first_is_what_it_was(
    parts: list[str], last_known: list[TargetGroup], stand_in: list[TargetGroup]
) -> None:
    made = findings(*parts, "other", known=known(*last_known))
    for part in parts:
        made.failed(part, "no")
    made.found("other", [])
    first = taken(made)
    assert first == sorted(stand_in, key=lambda one: one.source)
    by_source = {one.source: one for one in last_known}
    assert all(by_source[one.source] is one for one in first), "the store knows by that how old it is"


def test_what_was_read_is_not_taken_from_the_run_before() -> None:
    made = findings("a", "b", known=known(A, A1, B))
    made.found("a", [group("a", "new")])
    made.failed("b", "no")
    assert taken(made) == [group("a", "new"), B]


def test_what_stood_in_is_replaced_by_what_is_found() -> None:
    made = findings("a", "b", known=known(A, A1, B))
    made.failed("a", "no")
    made.failed("b", "no")
    assert taken(made) == [A, A1, B]
    made.found("a", [group("a", "known"), group("a:2", "1")])
    assert taken(made) == [group("a:1"), group("a:2", "1")]
    made.remove("b")
    assert taken(made) == [group("b")]


def test_what_was_found_and_then_could_not_be_read_is_what_was_found() -> None:
    made = findings("a", "b", known=known(A, B))
    made.found("a", [group("a", "new")])
    made.failed("a", "no")
    made.found("b", [])
    assert taken(made) == [group("a", "new")]


@pytest.mark.parametrize("failing", ["a", "a:1"])
def test_a_part_named_like_the_source_of_another_does_not_make_a_source_come_twice(failing: str) -> None:
    made = findings("a", "a:1", known=known(A, A1))
    read = {"a": [group("a", "new"), group("a:1", "new")], "a:1": [group("a:1", "new")]}
    del read[failing]
    for part, groups in read.items():
        made.found(part, groups)
    made.failed(failing, "no")
    first = taken(made)
    assert group("a:1", "new") in first, "what was just read is right"


def test_a_part_that_is_empty_takes_nothing_from_another_that_it_is_named_like() -> None:
    made = findings("a", "a:1", known=known(A, A1))
    made.found("a", [group("a", "new"), group("a:1", "new")])
    made.failed("a:1", "no")
    assert taken(made) == [group("a", "new"), group("a:1", "new")]
    made.found("a:1", [])
    assert not made.take(), "it never had that group"


# --- findings: the catalog ---


def catalog_failed(*last_known: TargetGroup) -> Findings:
    """Return findings of a catalog that could not be read, and what stands in for all of it was taken."""
    made = findings(CATALOG, known=known(*last_known))
    made.failed(CATALOG, "no")
    assert taken(made) == sorted(last_known, key=lambda one: one.source)
    return made


def test_the_parts_of_the_catalog_take_over_what_is_theirs_and_the_rest_goes() -> None:
    made = catalog_failed(A, A1, B, HOST, HOST2)
    for part in ("a", "host:80", "new"):
        made.add(part, part)
    made.found(CATALOG, ())
    assert taken(made) == [group("b")]
    made.failed("host:80", "no")
    assert made.take() is None
    made.found("a", [group("a", "known")])
    assert taken(made) == [group("a:1")]
    made.remove("host:80")
    assert taken(made) == [group("host:80"), group("host:80:2")]


@pytest.mark.parametrize("parts", [["a", "a:1"], ["a:1", "a"]])
def test_it_does_not_matter_in_which_order_the_catalog_adds(parts: list[str]) -> None:
    made = catalog_failed(A, A1)
    for part in parts:
        made.add(part, part)
    made.found(CATALOG, ())
    made.found("a", [A])
    assert not made.take(), "the part a:1 was not read"
    made.found("a:1", [])
    assert taken(made) == [group("a:1")]


def test_what_a_part_has_found_already_stays_when_the_catalog_is_through() -> None:
    """A catalog of several pages adds parts, and waits for the next page."""
    made = catalog_failed(A, A1, B)
    made.add("a", "a")
    made.found("a", [group("a", "new")])
    shown = {one.source: one for one in (A, A1, B)}
    apply(shown, made.take() or [])
    made.found(CATALOG, ())
    apply(shown, taken(made))
    assert shown == known(group("a", "new"))


def test_what_a_part_has_found_stays_though_the_catalog_failed_once_more() -> None:
    made = catalog_failed(A, B)
    shown = {one.source: one for one in (A, B)}
    made.add("a", "a")
    made.failed(CATALOG, "no second page")
    made.found("a", [group("a", "new")])
    apply(shown, made.take() or [])
    made.add("b", "b")
    made.found(CATALOG, ())
    apply(shown, made.take() or [])
    made.failed("b", "no")
    apply(shown, made.take() or [])
    assert shown == known(group("a", "new"), B)


def test_a_catalog_that_was_read_leaves_it_to_the_parts_what_is_known_of_them() -> None:
    made = findings(CATALOG, known=known(A, A1, B))
    made.add("a", "a")
    made.add("c", "c")
    made.found(CATALOG, ())
    assert made.take() is None
    made.failed("a", "no")
    assert made.take() is None
    made.found("c", [group("c", "1")])
    assert taken(made) == [A, A1, group("c", "1")], "b is not there any more"


def test_a_catalog_that_finds_nothing_says_so() -> None:
    made = findings(CATALOG, known=known(A))
    made.found(CATALOG, ())
    assert made.take() == []


def test_a_part_that_shows_what_the_run_before_has_found_is_told_of() -> None:
    """As long as that is so, what is shown was not found out: it is as old as it was."""
    made = catalog_failed(A, B)
    made.add("a", "a")
    made.found(CATALOG, ())
    assert made.errors(), "nobody has looked at a"
    made.found("a", [group("a", "1")])
    assert made.errors() == []


# --- findings: confirmations ---


def test_that_nothing_has_changed_is_said_once_all_parts_were_looked_at() -> None:
    made = synced_findings("a", "b", "c")
    made.found("a", None)
    made.found("b", [group("b", "1")])
    made.found("a", None)
    assert made.take() is None
    made.found("c", None)
    assert made.take() == []
    made.found("c", None)
    made.found("a", None)
    assert made.take() is None
    made.found("b", None)
    assert made.take() == []


def test_that_nothing_has_changed_is_not_said_while_a_part_fails() -> None:
    made = synced_findings("a", "b")
    made.found("b", None)
    made.failed("b", "no")
    made.found("a", None)
    assert made.take() is None
    made.found("a", None)
    assert made.take() is None


def test_that_nothing_has_changed_is_said_once_the_last_one_has_recovered() -> None:
    made = synced_findings("a", "b")
    made.found("b", None)
    made.failed("b", "no")
    made.found("a", None)
    made.take()
    made.found("b", None)
    assert made.take() == []


def test_that_nothing_has_changed_is_not_said_by_a_part_that_fails_before_it_is_taken() -> None:
    made = synced_findings("a", "b")
    made.found("a", None)
    made.found("b", None)
    made.failed("b", "no")
    assert made.take() is None


def test_that_nothing_has_changed_waits_for_a_part_that_was_added_but_not_for_one_that_went() -> None:
    made = synced_findings("a", "b")
    made.add("c", "c")
    made.found("a", None)
    made.found("b", None)
    assert made.take() is None
    made.remove("c")
    made.take()
    made.found("a", None)
    made.found("b", None)
    assert made.take() == []


# --- findings: against a model ---


def apply(shown: dict[str, TargetGroup], groups: Groups) -> None:
    """Take an update as the engine does."""
    for one in groups:
        if one.targets:
            shown[one.source] = one
        else:
            shown.pop(one.source, None)


NAMES: Final = ("a", "b", "c:1", "d:e")
SUFFIXES: Final = ("", ":0", ":1", ":22")
KNOWN: Final = st.dictionaries(
    st.tuples(st.sampled_from((*NAMES, "gone")), st.sampled_from(SUFFIXES)), st.sampled_from("12"), max_size=6
).map(lambda found: known(*(group(part + suffix, name) for (part, suffix), name in found.items())))
FOUND: Final = st.dictionaries(st.sampled_from(SUFFIXES), st.sampled_from(("", "1", "2")), max_size=4)
STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.one_of(FOUND, st.sampled_from(["same", "same", "failed", "failed", "add", "remove", "take", "take"])),
    ),
    max_size=60,
)


class Model:
    """What must be shown, worked out anew each time: the union of what each part found last, or had at first."""

    def __init__(self, last_known: Mapping[str, TargetGroup]) -> None:
        self.made = Findings(lambda: last_known)
        self.last_known = last_known
        self.parts: dict[str, dict[str, TargetGroup] | None] = {}  # None: it was not read
        self.added_late: set[str] = set()
        self.settled: set[str] = set()
        self.failing: set[str] = set()
        self.synced = False
        self.shown: dict[str, TargetGroup] = {}
        self.sent: dict[str, TargetGroup] = {}
        self.succeeded: set[str] = set()  # since it was last said that nothing has changed

    def step(self, part: str, do: str | Mapping[str, str]) -> None:
        if (part in self.parts) == (do == "add") and do != "take":
            return
        if do == "add":
            self.made.add(part, part)
            self.parts[part] = None
            if self.synced:
                self.added_late.add(part)
        elif do == "remove":
            self.made.remove(part)
            del self.parts[part]
            for those in (self.added_late, self.settled, self.failing, self.succeeded):
                those.discard(part)
        elif do == "failed":
            self.made.failed(part, "no")
            self.settled.add(part)
            self.failing.add(part)
        elif do != "take":
            if isinstance(do, str):
                if self.parts[part] is None:
                    return
                self.made.found(part, None)
            else:
                groups = [TargetGroup(part + s, [{"__address__": name}] if name else ()) for s, name in do.items()]
                self.made.found(part, groups)
                self.parts[part] = {one.source: one for one in groups}
            self.settled.add(part)
            self.failing.discard(part)
            self.succeeded.add(part)

    def union(self) -> dict[str, TargetGroup]:
        expected: dict[str, TargetGroup] = {}
        for part, groups in self.parts.items():
            if groups is None and part not in self.added_late:
                groups = {part + s: self.last_known[part + s] for s in SUFFIXES if part + s in self.last_known}
            expected.update(groups or {})
        return {source: one for source, one in expected.items() if one.targets}

    def take(self, *, at_every_step: bool) -> None:
        groups = self.made.take()
        if not self.synced:
            ready = self.settled >= self.parts.keys()
            nothing = bool(self.parts) and all(found is None for found in self.parts.values()) and not self.union()
            assert (groups is not None) == (ready and not nothing)
        if groups is not None:
            assert len({one.source for one in groups}) == len(groups)
            everything = self.succeeded >= self.parts.keys()
            if at_every_step and self.synced:
                for one in groups:
                    assert one.targets == () or self.sent.get(one.source) != one, "it was sent before"
                if not groups:
                    assert not self.failing
                    assert self.succeeded >= {p for p, found in self.parts.items() if found is not None}
            if everything if not self.synced else not groups:
                self.succeeded.clear()
            self.synced = True
            apply(self.shown, groups)
            self.sent.update((one.source, one) for one in groups)
        if self.synced:
            assert self.shown == self.union()
        assert sorted(self.made.errors()) == sorted(f"{part}: no" for part in self.failing)


@given(last_known=KNOWN, first=st.lists(st.sampled_from(NAMES), unique=True), steps=STEPS)
def test_what_is_sent_adds_up(
    last_known: Mapping[str, TargetGroup], first: list[str], steps: list[tuple[str, str]]
) -> None:
    model = Model(last_known)
    for part in first:
        model.step(part, "add")
    for part, do in steps:
        model.step(part, do)
        if do == "take":
            model.take(at_every_step=False)
    model.take(at_every_step=False)


@given(last_known=KNOWN, first=st.lists(st.sampled_from(NAMES), unique=True), steps=STEPS)
def test_what_is_sent_at_every_step_is_no_more_than_what_differs(
    last_known: Mapping[str, TargetGroup], first: list[str], steps: list[tuple[str, str]]
) -> None:
    model = Model(last_known)
    for part in first:
        model.step(part, "add")
    model.take(at_every_step=True)
    for part, do in steps:
        model.step(part, do)
        model.take(at_every_step=True)


# --- who is asked ---


class Asked:
    """Somebody who is asked. Answers in turn; the last answer again and again."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.times: list[float] = []
        self.under_way = 0

    async def look(self) -> Groups | None:
        self.times.append(trio.current_time())
        self.under_way += 1
        try:
            return await self._answers[min(len(self.times), len(self._answers)) - 1]()
        finally:
            self.under_way -= 1


def finds(*groups: TargetGroup, after: float = 0) -> Answer:
    async def answer() -> Groups:
        await trio.sleep(after)
        return groups

    return answer


async def same() -> None:
    await trio.lowlevel.checkpoint()


def raises(error: Exception, after: float = 0) -> Answer:
    async def answer() -> Groups:
        await trio.sleep(after)
        raise error

    return answer


class Following:
    """A discoverer that runs, and an engine that takes what it sends, unless it is busy."""

    def __init__(self, discoverer: PollingDiscoverer) -> None:
        self.discoverer = discoverer
        self.sent: list[tuple[float, list[TargetGroup]]] = []
        self.shown: dict[str, TargetGroup] = {}
        self._free = trio.Event()
        self._free.set()

    def told(self) -> DiscovererStatistics:
        return self.discoverer.statistics()

    @property
    def times(self) -> list[float]:
        """When something was sent."""
        return [when for when, _ in self.sent]

    def busy(self) -> None:
        self._free = trio.Event()

    def free(self) -> None:
        self._free.set()

    async def take(self, updates: trio.MemoryReceiveChannel[Groups]) -> None:
        while True:
            await self._free.wait()
            groups = await updates.receive()
            apply(self.shown, groups)
            self.sent.append((trio.current_time(), sorted(groups, key=lambda one: one.source)))


Body: TypeAlias = Callable[[Polling], Awaitable[None]]


@asynccontextmanager
async def following(
    body: Body, *, draw: float = 0.0, known: Mapping[str, TargetGroup] = MappingProxyType({}), busy: bool = False
) -> AsyncIterator[Following]:
    """Run a discoverer; cancelled in the end, it leaves no task."""
    before = trio.lowlevel.current_statistics().tasks_living
    send, receive = trio.open_memory_channel[Groups](0)
    with trio.fail_after(10_000), send, receive:
        async with trio.open_nursery() as nursery:
            options = DiscovererOptions(Resources(nursery), last_known=lambda: known, name="polled/0")
            run = Following(PollingDiscoverer(options, body, rng=Drawn(draw)))
            if busy:
                run.busy()
            nursery.start_soon(run.take, receive)
            nursery.start_soon(run.discoverer.run, send)
            yield run
            nursery.cancel_scope.cancel()
    assert trio.lowlevel.current_statistics().tasks_living == before


def parts(asked: Mapping[str, Asked], *, interval: float = 8, deadline: float = 5) -> Body:
    """Return a body that polls all of these."""

    async def body(polling: Polling) -> None:
        for part in asked:
            polling.add(part)
        async with trio.open_nursery() as nursery:
            for part, one in asked.items():
                nursery.start_soon(partial(polling.poll, part, one.look, interval=interval, deadline=deadline))

    return body


# --- when one looks ---


@pytest.mark.parametrize(("draw", "times"), [(0.0, [0, 4, 12, 20, 28]), (1.0, [0.25, 8.25, 16.25, 24.25])])
async def test_looks_come_at_exact_times(draw: float, times: list[float], autojump_clock: MockClock) -> None:
    asked = Asked(finds(group("a", "1"), after=0.5), same)
    async with following(parts({"a": asked}), draw=draw) as run:
        await trio.sleep(30)
        assert asked.times == times
        assert run.sent[0] == (times[0] + 0.5, [group("a", "1")])
        assert run.sent[1:] == [(when, []) for when in times[1:]]
        assert run.told().counters == {"looks": len(times), "failures": 0, "look_microseconds": 500_000}


async def test_a_hanging_look_is_given_up_at_its_deadline(autojump_clock: MockClock) -> None:
    asked = Asked(finds(group("a", "1")), hang, hang, finds(group("a", "2")))
    async with following(parts({"a": asked}), draw=1.0) as run:
        await trio.sleep(13)
        assert run.told().errors == ()
        await trio.sleep(0.5)
        assert run.told().errors == ("a: no answer within 5 s",)
        await trio.sleep(1)
        assert asked.times == [0.25, 8.25, 14.25]
        assert asked.under_way == 1
        await trio.sleep(5)
        assert (asked.under_way, run.sent[1:]) == (0, [])
        await trio.sleep(10)
        assert asked.times == [0.25, 8.25, 14.25, 21.25, 29.25]
        assert run.sent[1] == (21.25, [group("a", "2")])
        assert run.told().errors == ()
        assert run.told().counters == {"looks": 5, "failures": 2, "look_microseconds": 10_000_000}


async def test_after_failures_one_looks_sooner_and_then_as_usual(autojump_clock: MockClock) -> None:
    failing = [raises(OSError("no route"))] * 5
    asked = Asked(*failing, finds(group("a", "1")))
    async with following(parts({"a": asked}), draw=1.0) as run:
        await trio.sleep(45)
        assert asked.times == [0.25, 1.25, 3.25, 7.25, 15.25, 23.25, 31.25, 39.25]
        assert run.sent == [(23.25, [group("a", "1")]), (31.25, []), (39.25, [])]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (DiscoveryError("busy", retry_after=100), 100.25),
        (DiscoveryError("busy", retry_after=1e9), 600.25),
        (DiscoveryError("busy", retry_after=0.5), 1.25),
        (DiscoveryError("busy"), 1.25),
        (ExceptionGroup("level", [ExceptionGroup("level", [DiscoveryError("busy", retry_after=100)])]), 100.25),
        (TrioSDError("busy"), 1.25),
        (OSError("busy"), 1.25),
    ],
)
async def test_who_is_busy_is_asked_again_when_he_wants(
    error: Exception, again: float, autojump_clock: MockClock
) -> None:
    asked = Asked(raises(error), finds(group("a", "1")))
    async with following(parts({"a": asked}), draw=1.0) as run:
        await trio.sleep(again + 1)
        assert asked.times == [0.25, again]
        assert run.times == [again]


async def test_find_looks_until_something_is_found_and_no_longer(autojump_clock: MockClock) -> None:
    asked = Asked(raises(OSError("no")), hang, finds(group("a", "1")))
    ended: list[float] = []

    async def body(polling: Polling) -> None:
        polling.add("a")
        await polling.find("a", asked.look, deadline=5)
        ended.append(trio.current_time())
        await trio.sleep_forever()

    async with following(body, draw=1.0) as run:
        await trio.sleep(5_000)
        assert asked.times == [0.25, 1.25, 8.25]
        assert ended == [8.25]
        assert run.sent == [(8.25, [group("a", "1")])]


async def test_find_goes_on_with_the_longest_pause(autojump_clock: MockClock) -> None:
    asked = Asked(raises(OSError("no")))

    async def body(polling: Polling) -> None:
        polling.add("a")
        await polling.find("a", asked.look, deadline=5)

    async with following(body, draw=1.0):
        await trio.sleep(250)
        assert asked.times == [0.25, 1.25, 3.25, 7.25, 15.25, 31.25, 63.25, 123.25, 183.25, 243.25]


# --- what is sent ---


async def test_the_first_send_waits_for_all_parts(autojump_clock: MockClock) -> None:
    asked = {name: Asked(finds(group(name, "1"), after=n)) for n, name in enumerate("abc")}
    async with following(parts(asked)) as run:
        await trio.sleep(3)
        assert run.sent == [(2, [group("a", "1"), group("b", "1"), group("c", "1")])]


async def test_a_part_that_hang_delays_the_first_send_until_its_deadline_and_nothing_later(
    autojump_clock: MockClock,
) -> None:
    asked = {"a": Asked(finds(group("a", "1")), finds(group("a", "2")), finds(group("a", "3"))), "b": Asked(hang)}
    async with following(parts(asked, deadline=50), draw=1.0) as run:
        await trio.sleep(50)
        assert run.sent == []
        await trio.sleep(1)
        assert run.sent == [(50.25, [group("a", "3")])]
        assert run.told().errors == ("b: no answer within 50 s",)

    asked = {"a": Asked(finds(group("a", "1")), finds(group("a", "2")), finds(group("a", "3"))), "b": Asked(hang)}
    async with following(parts(asked, deadline=5), draw=1.0) as run:
        start = trio.current_time()
        await trio.sleep(20)
        assert [(when - start, groups) for when, groups in run.sent] == [
            (5.25, [group("a", "1")]),
            (8.25, [group("a", "2")]),  # while b is looked at for the second time
            (16.25, [group("a", "3")]),
        ]
        assert [when - start for when in asked["b"].times] == [0.25, 6.25, 13.25]


async def test_what_fails_at_first_is_what_it_was_and_recovers(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(finds(group("a", "1")), same), "b": Asked(raises(OSError("no")), finds(group("b", "2")), same)}
    async with following(parts(asked), draw=1.0, known=known(A, B, HOST)) as run:
        await trio.sleep(2)
        assert run.sent == [(0.25, [group("a", "1"), B]), (1.25, [group("b", "2")])]
        await trio.sleep(10)
        assert run.shown == known(group("a", "1"), group("b", "2"))


async def test_last_good_is_kept_however_long_it_fails(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(finds(group("a", "1")), raises(OSError("no"))), "b": Asked(finds(group("b", "1")), same)}
    async with following(parts(asked)) as run:
        await trio.sleep(5_000)
        assert run.shown == known(group("a", "1"), group("b", "1"))
        assert run.times == [0], "there is nothing to say"
        assert run.told().errors == ("a: no",)


async def test_while_a_part_fails_nobody_says_that_nothing_has_changed(autojump_clock: MockClock) -> None:
    quick = Asked(finds(group("quick", "1")), same, raises(OSError("no")))
    slow = Asked(finds(group("slow", "1")), same)

    async def body(polling: Polling) -> None:
        polling.add("quick")
        polling.add("slow")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(polling.poll, "quick", quick.look, interval=4, deadline=1))
            nursery.start_soon(partial(polling.poll, "slow", slow.look, interval=16, deadline=1))

    async with following(body) as run:
        await trio.sleep(20)
        assert quick.times[:3] == [0, 2, 6]
        assert slow.times == [0, 8]
        assert run.times == [0]


async def test_two_groups_of_one_source_are_an_error_of_their_part(autojump_clock: MockClock) -> None:
    twice = finds(group("x", "1"), group("x", "2"))
    asked = {"a": Asked(finds(group("a", "1")), twice, finds(group("a", "2"))), "b": Asked(finds(group("b", "1")))}
    async with following(parts(asked), draw=1.0) as run:
        await trio.sleep(9)
        assert run.told().errors == ('a: found two target groups with the source "x"',)
        assert run.shown == known(group("a", "1"), group("b", "1"))
        await trio.sleep(1)
        assert asked["a"].times == [0.25, 8.25, 9.25]
        assert run.shown == known(group("a", "2"), group("b", "1"))
        assert run.told().errors == ()


async def test_a_look_that_has_nothing_new_before_anything_was_found_takes_nothing_away(
    autojump_clock: MockClock,
) -> None:
    asked = {"a": Asked(same), "b": Asked(finds(group("b", "1")))}
    async with following(parts(asked), known=known(A, A1, B)) as run:
        await trio.sleep(100)
        assert run.shown == known(A, A1, group("b", "1"))


async def test_a_slow_engine_gets_what_is_newest(autojump_clock: MockClock) -> None:
    numbers = iter(range(1_000))

    async def count() -> Groups:
        return [group("a", str(next(numbers)))]

    asked = Asked(count)
    async with following(parts({"a": asked}, interval=1)) as run:
        await trio.sleep(0.1)
        assert run.sent == [(0, [group("a", "0")])]
        run.busy()  # once it has taken the next one, which it waits for
        await trio.sleep(500.2)
        run.free()
        await wait_all_tasks_blocked()
        last = len(asked.times) - 1
        assert last == 500
        taken = [int(groups[0].targets[0]["__address__"]) for _, groups in run.sent]
        assert taken == [0, 1, 2, last], "2 was on its way when the engine became busy"


async def test_an_engine_that_is_busy_at_first_gets_all_that_is_shown_in_the_end(autojump_clock: MockClock) -> None:
    asked = {
        "a": Asked(finds(group("a", "1")), finds(group("a:1", "1")), finds()),
        "b": Asked(raises(OSError("no")), finds(group("b", "2"))),
    }
    async with following(parts(asked), known=known(B), busy=True) as run:
        await trio.sleep(100)
        run.free()
        await wait_all_tasks_blocked()
        assert run.shown == known(group("b", "2"))
        assert len(run.sent) == 2


# --- parts that come and go ---


async def test_parts_come_and_go(autojump_clock: MockClock) -> None:
    scopes: dict[str, trio.CancelScope] = {}
    catalog = iter([["a", "b"], ["b", "c"], [], ["a"]])

    async def body(polling: Polling) -> None:
        async with trio.open_nursery() as nursery:

            async def poll_one(part: str, scope: trio.CancelScope) -> None:
                with scope:
                    await polling.poll(part, Asked(finds(group(part, "1"), after=0.5)).look, interval=100, deadline=5)

            async def look() -> Groups:
                wanted = next(catalog)
                for part in scopes.keys() - set(wanted):
                    scopes.pop(part).cancel()
                    polling.remove(part)
                for part in wanted:
                    if part not in scopes:
                        scopes[part] = trio.CancelScope()
                        polling.add(part)
                        nursery.start_soon(poll_one, part, scopes[part])
                return ()

            polling.add(CATALOG, shown="catalog")
            await polling.poll(CATALOG, look, interval=8, deadline=5)

    async with following(body) as run:
        await trio.sleep(27)
        assert [one for one in run.sent if one[1]] == [
            (0.5, [group("a", "1"), group("b", "1")]),
            (4, [group("a")]),
            (4.5, [group("c", "1")]),
            (12, [group("b"), group("c")]),
            (20.5, [group("a", "1")]),
        ]


@pytest.mark.parametrize("how", ["returns groups", "raises", "raises a group", "returns nothing new"])
async def test_what_a_look_at_a_part_that_was_removed_still_finds_is_not_heard(
    how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def defiant() -> Groups | None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        if how == "raises":
            raise OSError("too late")
        if how == "raises a group":
            raise ExceptionGroup("two", [OSError("too late"), DiscoveryError("too late")])
        return [group("a", "1")] if how == "returns groups" else None

    ended: list[float] = []

    async def body(polling: Polling) -> None:
        polling.add("a")
        polling.add("b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(polling.poll, "b", Asked(finds(group("b", "1"))).look, interval=100, deadline=5))
            with trio.CancelScope() as scope:
                nursery.start_soon(trio.sleep, 1000)
                async with trio.open_nursery() as inner:
                    inner.start_soon(partial(polling.poll, "a", defiant, interval=8, deadline=5))
                    await trio.sleep(1)
                    scope.cancel()
                    polling.remove("a")
            ended.append(trio.current_time())

    async with following(body) as run:
        await trio.sleep(10)
        assert ended == [3]
        assert run.sent == [(1, [group("b", "1")])]
        assert run.told().errors == ()
    assert caplog.records == []


# --- what is told ---


async def test_a_failure_is_logged_when_it_appears_and_when_it_is_over(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    no, other = raises(OSError("no")), raises(ConfigError("other"))
    asked = Asked(no, no, no, other, other, finds(group("a", "1")), same, no, same)
    async with following(parts({"a": asked})):
        await trio.sleep(100)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "polled/0: a: no"),
        ("WARNING", "polled/0: a: other"),
        ("INFO", "polled/0: a: no longer: other"),
        ("WARNING", "polled/0: a: no"),
        ("INFO", "polled/0: a: no longer: no"),
    ]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(), "OSError"),
        (DiscoveryError(""), "DiscoveryError"),
        (TimeoutError("in time"), "in time"),
        (ConnectionRefusedError(111, "refused"), "[Errno 111] refused"),
        (DiscoveryError("two\nlines \x1b[31m"), "two\\u000alines \\u001b[31m"),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [DiscoveryError("why")])]), "why"),
    ],
)
async def test_what_goes_wrong_is_told(
    error: Exception, text: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(parts({"a": Asked(raises(error))})) as run:
        await trio.sleep(1)
        assert run.told().errors == (f"a: {text}",)
    assert [record.getMessage() for record in caplog.records] == [f"polled/0: a: {text}"]


async def test_of_several_reasons_the_first_is_told(autojump_clock: MockClock) -> None:
    """A look that asks for several pages at once fails with a group; its own text names no reason."""
    error = ExceptionGroup("Exceptions from Trio nursery", [DiscoveryError("first reason"), OSError("second reason")])
    async with following(parts({"a": Asked(raises(error))})) as run:
        await trio.sleep(1)
        assert "first reason" in run.told().errors[0]


async def test_what_names_come_from_elsewhere_are_told_on_one_line(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    name = "web\nWARNING forged \x1b[31m"

    async def body(polling: Polling) -> None:
        polling.add(name)
        polling.note(name, "seen\nat \x1b[31m")
        await polling.poll(name, Asked(raises(OSError("no"))).look, interval=8, deadline=5)

    async with following(body) as run:
        await trio.sleep(0.1)
        for text in (*run.told().errors, *run.told().notes, *(record.getMessage() for record in caplog.records)):
            assert text.isprintable()
        assert len(caplog.records) == len(run.told().errors) == len(run.told().notes) == 1


@pytest.mark.parametrize(("count", "told"), [(0, 0), (1, 1), (20, 20), (21, 21), (25, 21)])
async def test_of_many_errors_and_notes_some_are_told(count: int, told: int, autojump_clock: MockClock) -> None:
    names = [f"part-{n:02}" for n in range(count)]

    async def body(polling: Polling) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                polling.add(name, shown=f"the {name}")
                polling.note(name, "noted")
                asked = Asked(raises(OSError("no")))
                nursery.start_soon(partial(polling.poll, name, asked.look, interval=8, deadline=5))
            nursery.start_soon(trio.sleep_forever)

    async with following(body) as run:
        await trio.sleep(0.1)
        more = (f"{count - 20} more like that",) if count > 20 else ()
        assert run.told().errors == (*(f"the {name}: no" for name in names[:20]), *more)
        assert run.told().notes == (*(f"the {name}: noted" for name in names[:20]), *more)
        assert len(run.told().errors) == told
        assert run.told().counters["failures"] == count


async def test_notes_are_told_until_there_is_another(autojump_clock: MockClock) -> None:
    pollings: list[Polling] = []

    async def body(polling: Polling) -> None:
        pollings.append(polling)
        polling.add("a", shown="service a")
        polling.add("b")
        await trio.sleep_forever()

    async with following(body) as run:
        await wait_all_tasks_blocked()
        (polling,) = pollings
        polling.note("a", "one")
        polling.note("b", "two")
        assert run.told().notes == ("service a: one", "b: two")
        polling.note("a", "three")
        polling.note("b", "")
        assert run.told().notes == ("service a: three",)
        polling.remove("a")
        assert run.told().notes == ()
        polling.counters["pages"] += 2
        assert run.told().counters["pages"] == 2


# --- what ends the run ---


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake"),
        ExceptionGroup("g", [OSError("no"), ValueError("a mistake")]),
        ExceptionGroup("g", [ExceptionGroup("h", [ValueError("a mistake"), DiscoveryError("no")])]),
    ],
    ids=["plain", "in a group", "deep"],
)
async def test_a_look_that_raises_something_else_ends_the_run(error: Exception, autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Groups](0)
    other = Asked(hang)
    asked = {"a": Asked(raises(error, after=1)), "b": other}
    with (
        send,
        receive,
        trio.fail_after(100),
        pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="a mistake"), flatten_subgroups=True),
    ):
        async with trio.open_nursery() as nursery:
            options = DiscovererOptions(Resources(nursery))
            await PollingDiscoverer(options, parts(asked), rng=Drawn(0)).run(send)
    assert (trio.current_time(), other.under_way) == (1, 0)


async def test_a_body_that_raises_ends_the_run(autojump_clock: MockClock) -> None:
    async def body(polling: Polling) -> None:
        polling.add("a")
        raise DiscoveryError("needs something that is not installed")

    send, receive = trio.open_memory_channel[Groups](0)
    with (
        send,
        receive,
        trio.fail_after(100),
        pytest.RaisesGroup(pytest.RaisesExc(DiscoveryError, match="not installed"), flatten_subgroups=True),
    ):
        async with trio.open_nursery() as nursery:
            await PollingDiscoverer(DiscovererOptions(Resources(nursery)), body).run(send)


async def test_a_body_that_returns_leaves_what_it_has_found(autojump_clock: MockClock) -> None:
    async def body(polling: Polling) -> None:
        polling.add("a")
        polling.add("b")
        await polling.find("a", Asked(finds(group("a", "1"))).look, deadline=5)
        await polling.find("b", Asked(finds(group("b", "1"))).look, deadline=5)

    async with following(body, busy=True) as run:
        await trio.sleep(50)
        run.free()
        await trio.sleep(1)
        assert run.sent == [(50, [group("a", "1"), group("b", "1")])]


async def test_it_never_closes_the_channel_which_is_the_engines(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Groups](1)
    with send, receive:
        async with trio.open_nursery() as nursery:
            discoverer = PollingDiscoverer(DiscovererOptions(Resources(nursery)), parts({"a": Asked(finds(A))}))
            nursery.start_soon(discoverer.run, send)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert receive.receive_nowait() == [A]
        send.send_nowait([])


async def test_an_engine_that_has_gone_ends_the_run(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Groups](0)
    await receive.aclose()
    with send, trio.fail_after(100), pytest.RaisesGroup(trio.BrokenResourceError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            discoverer = PollingDiscoverer(DiscovererOptions(Resources(nursery)), parts({"a": Asked(finds(A))}))
            await discoverer.run(send)


# --- cancellation ---


class Opened:
    """Counts what is open."""

    def __init__(self) -> None:
        self.count = 0

    @asynccontextmanager
    async def resource(self) -> AsyncIterator[None]:
        self.count += 1
        try:
            await trio.lowlevel.checkpoint()
            yield
        finally:
            self.count -= 1


async def take_all(receive: trio.MemoryReceiveChannel[Groups]) -> None:
    async for _ in receive:
        await trio.sleep(1)


@pytest.mark.parametrize("whose", ["look", "nursery", "send"])
async def test_cancelled_at_any_step_of_any_task_it_leaves_nothing(whose: str, autojump_clock: MockClock) -> None:
    opened = Opened()

    async def scenario() -> None:
        seen = 0

        async def look() -> Groups | None:
            nonlocal seen
            seen += 1
            async with opened.resource():
                await trio.sleep(0.5)
                if seen == 3:
                    raise OSError("no")
                if seen == 5:
                    await trio.sleep_forever()
                return None if seen == 2 else [group("a", str(seen))]

        async def poll(polling: Polling) -> None:
            async with opened.resource():
                polling.add("a")
                await polling.poll("a", look, interval=4, deadline=2)

        async def body(polling: Polling) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(poll, polling)

        send, receive = trio.open_memory_channel[Groups](0)
        with trio.move_on_after(25), send, receive:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_all, receive)
                options = DiscovererOptions(Resources(nursery))
                if whose == "send":
                    polling = Polling(options, Drawn(0))
                    nursery.start_soon(poll, polling)
                    await polling.send(send)
                else:
                    await PollingDiscoverer(options, poll if whose == "look" else body, rng=Drawn(0)).run(send)
        assert seen > 5

    def check(completed: bool) -> None:
        assert opened.count == 0

    # Who waits for a nursery takes few steps himself; every other one takes one for each thing that he waits for.
    least = {"look": 20, "nursery": 3, "send": 8}[whose]
    assert await cancel_everywhere(scenario, check) >= least


async def test_cancelled_at_any_step_of_a_look_nothing_is_told_of_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled is not failed, not even where the look makes something else of it."""
    for steps in range(1, 30):
        asked = Asked(finds(A, after=0.5), finds(B, after=0.5))

        async def look(asked: Asked = asked) -> Groups | None:
            try:
                return await asked.look()
            except trio.Cancelled as cancelled:
                raise OSError("the connection was closed") from cancelled

        send, receive = trio.open_memory_channel[Groups](0)
        with send, receive, trio.move_on_after(40):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_all, receive)
                polling = Polling(DiscovererOptions(Resources(nursery)), Drawn(0))
                nursery.start_soon(polling.send, send)
                polling.add("a")
                with trio.CancelScope() as scope, CancelAfter(steps, scope):
                    await polling.poll("a", look, interval=8, deadline=5)
                assert scope.cancelled_caught
                assert polling.statistics().errors == ()
                nursery.cancel_scope.cancel()
        assert asked.under_way == 0
    assert caplog.records == []


@pytest.mark.parametrize("answer", ["groups", "error"])
async def test_a_look_that_does_not_end_at_its_deadline_is_heard_when_it_does(
    answer: str, autojump_clock: MockClock
) -> None:
    async def defiant() -> Groups:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        if answer == "error":
            raise OSError("after all that time")
        return [group("a", "late")]

    asked = {"a": Asked(defiant, hang), "b": Asked(finds(group("b", "1")))}
    async with following(parts(asked)) as run:
        await trio.sleep(19)
        assert run.sent == []
        await trio.sleep(2)
        late = [group("a", "late")] if answer == "groups" else []
        assert run.sent == [(20, [*late, group("b", "1")])]
        assert run.told().errors == (() if late else ("a: after all that time",))
        assert asked["a"].times == ([0, 20] if late else [0, 20.5])


async def test_a_look_with_a_nursery_whose_tasks_fail_as_the_deadline_comes_fails_once(
    autojump_clock: MockClock,
) -> None:
    async def closing() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("closed under us")

    async def look() -> Groups:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closing)
            nursery.start_soon(trio.sleep_forever)
        return ()

    async with following(parts({"a": Asked(look)})) as run:
        await trio.sleep(5.1)
        assert run.told().errors == ("a: closed under us",)
        assert run.told().counters["failures"] == 1


# --- with the manager ---


@dataclass(frozen=True, eq=False)
class PolledConfig(DiscovererConfig):
    mechanism: ClassVar[str] = "polled"
    body: Body
    draw: float = 0.0

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        return PollingDiscoverer(options, self.body, rng=Drawn(self.draw))


@asynccontextmanager
async def managed(config: DiscovererConfig) -> AsyncIterator[Manager]:
    with trio.fail_after(10_000):
        async with open_manager({"web": [config]}, throttle=AT_ONCE, rng=Drawn(1), backoff=Backoff()) as manager:
            yield manager


def told(manager: Manager) -> tuple[str, float | None, list[str]]:
    """Return the state of the provider, the age of what it shows, and what that is."""
    statistics = of(manager, "polled/0")
    return statistics.state, statistics.age, sources(manager.snapshot())


async def test_refresh_looks_again_at_once(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(finds(A)), "b": Asked(finds(B), finds(B), finds(B, after=1))}
    async with managed(PolledConfig(parts(asked))) as manager:
        await manager.wait_synced()
        await trio.sleep(7)
        assert told(manager) == ("synced", 3, ["a", "b"])
        await manager.refresh()
        assert trio.current_time() == 8, "it waits for what is found"
        assert asked["a"].times == [0, 4, 7]
        assert asked["b"].times == [0, 4, 7]
        assert told(manager) == ("synced", 0, ["a", "b"])


async def test_refresh_ends_the_wait_of_a_part_that_fails(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(finds(A), raises(DiscoveryError("busy", retry_after=600)), finds(group("a", "new")))}
    async with managed(PolledConfig(parts(asked))) as manager:
        await trio.sleep(50)
        assert told(manager) == ("failing", 50, ["a"])
        await manager.refresh()
        assert asked["a"].times == [0, 4, 50]
        assert told(manager) == ("synced", 0, ["a"])
        assert manager.snapshot()["web"] == (group("a", "new"),)


async def test_the_age_is_true_while_a_part_fails_and_recovers(autojump_clock: MockClock) -> None:
    no = raises(OSError("no"))
    asked = {"a": Asked(finds(A)), "b": Asked(finds(B), same, no, no, same)}
    async with managed(PolledConfig(parts(asked))) as manager:
        await trio.sleep(3)
        assert told(manager) == ("synced", 3, ["a", "b"])
        await trio.sleep(2)
        assert told(manager) == ("synced", 1, ["a", "b"])
        await trio.sleep(6)
        assert told(manager) == ("synced", 7, ["a", "b"])
        await trio.sleep(2)
        assert asked["b"].times == [0, 4, 12, 12.5]
        assert told(manager) == ("failing", 9, ["a", "b"])
        assert of(manager, "polled/0").details.errors == ("b: no",)
        await trio.sleep(1)
        assert asked["b"].times == [0, 4, 12, 12.5, 13.5]
        assert told(manager) == ("synced", 0.5, ["a", "b"])


async def test_news_of_one_part_do_not_make_another_that_fails_younger(autojump_clock: MockClock) -> None:
    asked = {
        "a": Asked(*(finds(group("a", str(n))) for n in range(100))),
        "b": Asked(finds(B), raises(OSError("no"))),
    }
    async with managed(PolledConfig(parts(asked))) as manager:
        for now in (11, 45, 211):
            await trio.sleep_until(now)
            assert told(manager) == ("failing", now, ["a", "b"])
        assert of(manager, "polled/0").updates == len(asked["a"].times)


async def test_failing_from_the_start_it_is_neither_synced_nor_of_any_age(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(raises(OSError("no")), hang, finds())}
    async with managed(PolledConfig(parts(asked))) as manager:
        await trio.sleep(0.1)
        assert told(manager) == ("failing", None, [])
        assert manager.unsynced() == ("polled/0",)
        await manager.wait_synced()
        assert trio.current_time() == 6.5
        assert told(manager) == ("synced", 0, [])


async def test_a_reload_keeps_what_was_good_while_the_new_run_can_not_read_it(autojump_clock: MockClock) -> None:
    no = raises(OSError("no"))
    asked = {"a": Asked(finds(A)), "b": Asked(finds(B), same, no, no, finds(group("b", "new")))}
    config = PolledConfig(parts(asked))
    async with managed(config) as manager:
        await trio.sleep(10)
        await manager.apply_config({"web": [config]})
        await manager.wait_synced()
        assert told(manager) == ("failing", 6, ["a", "b"]), "as old as when b was last read"
        await trio.sleep(0.75)
        assert told(manager) == ("failing", 6.75, ["a", "b"])
        assert manager.snapshot()["web"] == (A, B)
        await trio.sleep(1)
        assert asked["b"].times == [0, 4, 10, 10.5, 11.5]
        assert told(manager) == ("synced", 0.25, ["a", "b"])
        assert manager.snapshot()["web"] == (A, group("b", "new"))


async def test_a_changed_configuration_keeps_what_was_good(autojump_clock: MockClock) -> None:
    config = PolledConfig(parts({"a": Asked(finds(A)), "b": Asked(finds(B)), "c": Asked(finds(group("c", "1")))}))
    asked = {"a": Asked(raises(OSError("no"))), "b": Asked(finds(group("b", "new")))}
    async with managed(config) as manager:
        await trio.sleep(10)
        await manager.apply_config({"web": [PolledConfig(parts(asked))]})
        await manager.wait_synced()
        assert manager.snapshot()["web"] == (A, group("b", "new"))
        await trio.sleep(20)
        assert sources(manager.snapshot()) == ["a", "b"]
        statistics = of(manager, "polled/1")
        assert (statistics.state, statistics.age) == ("failing", 26)


async def test_pause_and_resume(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(finds(A), hang, raises(OSError("no")), finds(group("a", "new")))}
    async with managed(PolledConfig(parts(asked))) as manager:
        await trio.sleep(5)
        assert asked["a"].under_way == 1
        await manager.pause("polled/0")
        assert asked["a"].under_way == 0
        await trio.sleep(100)
        assert asked["a"].times == [0, 4]
        assert told(manager) == ("paused", 105, ["a"])
        await manager.resume("polled/0")
        await manager.wait_synced()
        assert told(manager) == ("failing", 105, ["a"])
        await trio.sleep(1)
        assert asked["a"].times == [0, 4, 105, 105.5]
        assert told(manager) == ("synced", 0.5, ["a"])


async def test_a_mistake_in_a_look_ends_the_run_and_another_follows(autojump_clock: MockClock) -> None:
    asked = {"a": Asked(finds(A), raises(ValueError("a mistake")), finds(group("a", "new"))), "b": Asked(finds(B))}
    async with managed(PolledConfig(parts(asked))) as manager:
        await trio.sleep(4.5)
        assert told(manager) == ("failing", 4.5, ["a", "b"])
        assert of(manager, "polled/0").last_error == "ValueError: a mistake"
        await trio.sleep(1)
        assert asked["a"].times == [0, 4, 5]
        assert told(manager) == ("synced", 0.5, ["a", "b"])
        assert of(manager, "polled/0").restarts == 1
        assert manager.snapshot()["web"] == (group("a", "new"), B)


def catalog(names: Answer, looks: Mapping[str, Look]) -> Body:
    """Return a body with a catalog: ``names`` finds a group for each part, named like it."""

    async def body(polling: Polling) -> None:
        async with trio.open_nursery() as nursery:
            added: set[str] = set()

            async def look() -> Groups:
                for one in await names() or ():
                    if one.source not in added:
                        added.add(one.source)
                        polling.add(one.source)
                        poll = partial(polling.poll, one.source, looks[one.source], interval=60, deadline=5)
                        nursery.start_soon(poll)
                return ()

            polling.add(CATALOG, shown="catalog")
            await polling.poll(CATALOG, look, interval=60, deadline=5)

    return body


async def test_what_the_run_before_has_found_is_as_old_as_it_is_until_it_was_read(autojump_clock: MockClock) -> None:
    """The catalog is back, and takes something away; a, which it names, was not read since the reload."""
    names = Asked(finds(A, B), same, same, raises(OSError("no")), finds(A))
    a = Asked(finds(A), same, same, hang, finds(group("a", "new")))
    config = PolledConfig(catalog(names.look, {"a": a.look, "b": Asked(finds(B), same).look}))
    async with managed(config) as manager:
        await trio.sleep(100)
        assert told(manager) == ("synced", 10, ["a", "b"])
        await manager.apply_config({"web": [config]})
        await manager.wait_synced()
        assert names.times == [0, 30, 90, 100]
        assert told(manager) == ("failing", 10, ["a", "b"])
        await trio.sleep(1)
        assert names.times[-1] == 100.5
        assert (sources(manager.snapshot()), of(manager, "polled/0").age) == (["a"], 11)
        await trio.sleep(4.75)
        assert told(manager) == ("failing", 15.75, ["a"])
        await trio.sleep(1.25)
        assert a.times[-2:] == [100.5, 106]
        assert told(manager) == ("synced", 1, ["a"])
        assert manager.snapshot()["web"] == (group("a", "new"),)


async def test_a_catalog_that_can_not_be_read_after_a_reload_takes_nothing_away(autojump_clock: MockClock) -> None:
    names = Asked(finds(A, B), raises(OSError("no")), raises(OSError("no")), finds(A, B))
    looks = {"a": Asked(finds(A)), "b": Asked(finds(B), raises(OSError("no")))}
    config = PolledConfig(catalog(names.look, {part: asked.look for part, asked in looks.items()}))
    shown: set[tuple[str, ...]] = set()
    async with managed(config) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()

        async def watch() -> None:
            async with manager.subscribe() as updates:
                async for update in updates:
                    shown.add(tuple(sources(update.snapshot)))

        nursery.start_soon(watch)
        await trio.sleep(20)
        await manager.apply_config({"web": [config]})
        await trio.sleep(100)
        assert told(manager)[::2] == ("failing", ["a", "b"])
        assert shown == {("a", "b")}
        nursery.cancel_scope.cancel()


def test_a_catalog_that_is_read_does_not_make_an_empty_set_of_parts_that_are_not() -> None:
    made = findings(CATALOG)
    made.add("web", "web")
    made.found(CATALOG, [])
    made.failed("web", "403 Permission denied")
    assert made.take() is None, "nobody knows whether there is anything"
    made.found("web", [group("web", "1")])
    assert made.take() == [group("web", "1")]


@given(st.integers(1, 12), st.floats(1, 200), st.integers())
def test_no_pause_is_longer_than_a_minute_or_the_interval(count: int, interval: float, seed: int) -> None:
    schedule = Schedule(interval, 0, random.Random(seed))
    for number in range(count):
        schedule.failed(0)
        longest = min(2.0**number, 60, interval)
        assert longest / 2 <= schedule.due <= longest
