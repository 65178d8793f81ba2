"""One provider: whatever a discoverer does ends here, at exact times, and never spoils what is shown."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions, DiscovererStatistics
from trio_sd.errors import DiscoveryError
from trio_sd.provider import Backoff, Provider
from trio_sd.resources import Resources
from trio_sd.store import TargetStore
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group

Updates = trio.MemorySendChannel[Sequence[TargetGroup]]
Script = Callable[[Updates], Awaitable[None]]


class Steady(random.Random):
    """Draws the same number again and again: 1.0 makes every pause as long as it can be."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@dataclass(frozen=True)
class Scripted(DiscovererConfig):
    """A mechanism whose runs are functions: the first run the first, and so on; the last one again and again."""

    mechanism: ClassVar[str] = "scripted"
    scripts: tuple[Script, ...]
    attempts: list[float] = field(default_factory=list, compare=False)

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        self.attempts.append(trio.current_time())
        return ScriptedDiscoverer(self.scripts[min(len(self.attempts), len(self.scripts)) - 1])


class ScriptedDiscoverer:
    def __init__(self, script: Script) -> None:
        self._script = script

    async def run(self, updates: Updates) -> None:
        await self._script(updates)


class Stage:
    """A store with one set, and a provider of it."""

    def __init__(self, nursery: trio.Nursery, config: DiscovererConfig, backoff: Backoff, rng: random.Random) -> None:
        self.store = TargetStore()
        self.store.apply({"a": ["p"]}, restarted=["p"], deadline=0)
        options = DiscovererOptions(Resources(nursery))
        self.provider = Provider("p", config, options, self.store, backoff=backoff, rng=rng)

    @property
    def sources(self) -> list[str]:
        return [found.source for found in self.store.snapshot()["a"]]

    @property
    def state(self) -> str:
        return self.provider.statistics(("a",)).state


@asynccontextmanager
async def running(
    config: DiscovererConfig,
    *,
    backoff: Backoff = Backoff(),
    rng: random.Random | None = None,
) -> AsyncIterator[Stage]:
    """Run a provider, and stop it at the end, when nothing of it may be left."""
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        stage = Stage(nursery, config, backoff, rng or Steady())
        nursery.start_soon(stage.provider.run)
        yield stage
        stage.provider.stop()
        with trio.fail_after(1000):
            await stage.provider.stopped.wait()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def fails(updates: Updates) -> None:
    raise OSError("no route")


def sends(*sources: str) -> Script:
    async def script(updates: Updates) -> None:
        await updates.send([group(source, "1") for source in sources])
        await trio.sleep_forever()

    return script


def sends_then_fails(*sources: str, after: float = 0) -> Script:
    async def script(updates: Updates) -> None:
        await updates.send([group(source, "1") for source in sources])
        await trio.sleep(after)
        raise OSError("gone again")

    return script


# --- backoff ---


@pytest.mark.parametrize(
    ("streak", "jitter", "pause"),
    [
        (1, 0.0, 0.5),
        (1, 0.5, 0.75),
        (1, 1.0, 1.0),
        (2, 1.0, 2.0),
        (3, 0.0, 2.0),
        (3, 1.0, 4.0),
        (6, 1.0, 32.0),
        (7, 1.0, 60.0),
        (7, 0.0, 30.0),
        (8, 1.0, 60.0),
        (1_000, 1.0, 60.0),
        (10**9, 0.5, 45.0),
    ],
)
def test_backoff_pauses(streak: int, jitter: float, pause: float) -> None:
    assert Backoff().pause(streak, jitter) == pause


@pytest.mark.parametrize(("backoff", "pauses"), [(Backoff(0, 0), [0, 0, 0]), (Backoff(3, 5), [3, 5, 5])])
def test_backoff_of_other_bounds(backoff: Backoff, pauses: list[float]) -> None:
    assert [backoff.pause(streak, 1.0) for streak in (1, 2, 3)] == pauses


async def test_provider_contract_a_failing_discoverer_is_run_again_at_exact_times(autojump_clock: MockClock) -> None:
    config = Scripted((fails,))
    async with running(config) as stage:
        await trio.sleep(200)
        assert config.attempts == [0, 1, 3, 7, 15, 31, 63, 123, 183]
        told = stage.provider.statistics(("a",))
        assert (told.state, told.failure_streak, told.restarts) == ("failing", 9, 8)
        assert (told.last_attempt, told.last_success, told.updates) == (183, None, 0)
        assert not stage.provider.settled


async def test_provider_contract_pauses_are_drawn_from_the_upper_half(autojump_clock: MockClock) -> None:
    config = Scripted((fails,))
    async with running(config, rng=Steady(0.0)):
        await trio.sleep(8)
        assert config.attempts == [0, 0.5, 1.5, 3.5, 7.5]


async def test_pauses_follow_the_seed(autojump_clock: MockClock) -> None:
    config = Scripted((fails,))
    async with running(config, rng=random.Random(42)):
        await trio.sleep(50)
    rng, expected = random.Random(42), [0.0]
    for streak in range(1, len(config.attempts)):
        expected.append(expected[-1] + Backoff().pause(streak, rng.random()))
    assert config.attempts == pytest.approx(expected)
    assert len(config.attempts) > 5


async def test_a_success_ends_the_streak(autojump_clock: MockClock) -> None:
    config = Scripted((fails, fails, sends("x")))
    async with running(config) as stage:
        await trio.sleep(2)
        assert (stage.state, stage.provider.statistics(()).failure_streak) == ("failing", 2)
        await trio.sleep(2)
        told = stage.provider.statistics(("a",))
        assert (told.state, told.failure_streak, told.restarts) == ("synced", 0, 2)
        assert (told.last_attempt, told.last_success) == (3, 3)
        assert told.last_error == "OSError: no route", "it is still told what it was"
        assert stage.provider.settled


async def test_a_crash_soon_after_each_success_is_held_back_too(autojump_clock: MockClock) -> None:
    config = Scripted((sends_then_fails("x"),))
    async with running(config) as stage:
        await trio.sleep(14)
        assert config.attempts == [0, 1, 3, 7]
        told = stage.provider.statistics(("a",))
        assert (told.state, told.failure_streak, told.updates, told.last_success) == ("failing", 1, 4, 7)
        assert stage.sources == ["x"]


async def test_a_crash_long_after_the_start_begins_anew(autojump_clock: MockClock) -> None:
    config = Scripted((fails, fails, sends_then_fails("x", after=61), sends("x")))
    async with running(config):
        await trio.sleep(100)
        assert config.attempts == [0, 1, 3, 65]


# --- what is shown, and what is told ---


async def test_provider_contract_last_good_groups_stay_while_it_fails(autojump_clock: MockClock) -> None:
    config = Scripted((sends_then_fails("x", "y", after=5), fails, fails, sends("y", "z")))
    async with running(config) as stage:
        await trio.sleep(4)
        assert (stage.sources, stage.state) == (["x", "y"], "synced")
        revision = stage.store.revision
        await trio.sleep(7)
        assert (stage.sources, stage.state) == (["x", "y"], "failing")
        assert stage.provider.statistics(("a",)).last_success == 0, "the age of what is shown"
        await trio.sleep(0.5)
        assert stage.store.revision == revision
        await trio.sleep(1)
        assert stage.sources == ["y", "z"], "the first full set of the new run replaces them"
        assert stage.store.revision == revision + 1


async def test_a_run_that_fails_before_its_full_set_does_not_make_the_next_one_a_merge(
    autojump_clock: MockClock,
) -> None:
    config = Scripted((sends_then_fails("x"), fails, sends("y")))
    async with running(config) as stage:
        await trio.sleep(10)
        assert stage.sources == ["y"]


def nested(error: Exception, depth: int) -> Exception:
    for level in range(depth):
        error = ExceptionGroup(f"level {level}", [error])
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("plain"), "ValueError: plain"),
        (nested(ValueError("deep"), 5), "ValueError: deep"),
        (
            nested(ExceptionGroup("two", [ValueError("one"), OSError("other")]), 2),
            "ExceptionGroup: two (2 sub-exceptions)",
        ),
        (DiscoveryError("ours"), "DiscoveryError: ours"),
    ],
)
async def test_the_error_told_is_taken_out_of_its_groups(
    error: Exception, text: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(updates: Updates) -> None:
        raise error

    async with running(Scripted((script,))) as stage:
        await wait_all_tasks_blocked()
        assert stage.provider.statistics(()).last_error == text
    (record,) = caplog.records
    assert record.getMessage() == f"provider p failed: {text}"
    assert record.levelno == logging.WARNING


async def test_a_config_that_cannot_make_a_discoverer_is_the_providers_failure(autojump_clock: MockClock) -> None:
    @dataclass(frozen=True)
    class Broken(DiscovererConfig):
        mechanism: ClassVar[str] = "broken"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            raise RuntimeError("can't be built")

    async with running(Broken()) as stage:
        await trio.sleep(2)
        told = stage.provider.statistics(("a",))
        assert (told.state, told.last_error, told.failure_streak) == ("failing", "RuntimeError: can't be built", 2)


async def test_what_is_no_discoverer_is_the_providers_failure(autojump_clock: MockClock) -> None:
    @dataclass(frozen=True)
    class Nothing(DiscovererConfig):
        mechanism: ClassVar[str] = "nothing"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            return cast("Discoverer", None)

    async with running(Nothing()) as stage:
        await wait_all_tasks_blocked()
        assert stage.state == "failing"


async def test_states_in_turn(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with running(fake.config) as stage:
        assert stage.state == "starting"
        with trio.fail_after(100):
            await fake.send()
            assert stage.state == "synced"
            await fake.fail(OSError("x"))
            await wait_all_tasks_blocked()
            assert stage.state == "failing"
            await fake.send(group("x", "1"))
            assert stage.state == "synced"
        assert trio.current_time() == 1
        stage.provider.stop()
        assert stage.state == "stopped"


async def test_a_mechanism_that_tells_of_errors_is_failing(autojump_clock: MockClock) -> None:
    @dataclass
    class Telling:
        errors: tuple[str, ...] = ()

        async def run(self, updates: Updates) -> None:
            await updates.send([])
            await trio.sleep_forever()

        def statistics(self) -> DiscovererStatistics:
            return DiscovererStatistics(errors=self.errors, counters={"looks": 3})

    telling = Telling()

    @dataclass(frozen=True)
    class Config(DiscovererConfig):
        mechanism: ClassVar[str] = "telling"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            return telling

    async with running(Config()) as stage:
        await wait_all_tasks_blocked()
        assert stage.state == "synced"
        telling.errors = ("one file can't be read",)
        assert stage.state == "failing"
        assert stage.provider.statistics(()).details.counters == {"looks": 3}
        telling.errors = ()
        assert stage.state == "synced"


async def test_a_mechanism_that_fails_to_tell_of_itself_is_failing(autojump_clock: MockClock) -> None:
    class Telling:
        async def run(self, updates: Updates) -> None:
            await updates.send([group("x", "1")])
            await trio.sleep_forever()

        def statistics(self) -> DiscovererStatistics:
            raise OSError("no idea")

    @dataclass(frozen=True)
    class Config(DiscovererConfig):
        mechanism: ClassVar[str] = "telling"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            return Telling()

    async with running(Config()) as stage:
        await wait_all_tasks_blocked()
        told = stage.provider.statistics(())
        assert (told.state, told.groups) == ("failing", 1)
        assert "no idea" in str(told.details.errors)


async def test_statistics_count(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with running(fake.config) as stage:
        with trio.fail_after(100):
            await trio.sleep(3)
            await fake.send(group("x", "1", "2"), group("y", "1"))
            await trio.sleep(1)
            await fake.send(group("y"))
            await fake.send()
        told = stage.provider.statistics(("a", "b"))
        assert (told.name, told.sets) == ("p", ("a", "b"))
        assert (told.groups, told.targets, told.updates, told.duplicates) == (1, 2, 3, 0)
        assert (told.last_attempt, told.last_success, told.last_error) == (0, 4, None)
        assert told.details == DiscovererStatistics()


async def test_duplicates_are_counted_and_told_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeDiscoverer("f")
    async with running(fake.config) as stage:
        with trio.fail_after(100):
            await fake.send(group("x", "1"), group("x", "2"))
            await fake.send(group("x", "3"), group("x", "4"), group("x", "5"))
            await wait_all_tasks_blocked()
        assert stage.provider.statistics(()).duplicates == 3
        assert stage.store.snapshot()["a"] == (group("x", "5"),)
    assert len(caplog.records) == 1
    assert "sent 1 groups with the source of another group" in caplog.text


# --- returning ---


async def test_discoverer_contract_what_was_sent_stays_after_returning(autojump_clock: MockClock) -> None:
    async def script(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        await updates.send([group("y", "1")])

    config = Scripted((script,))
    async with running(config) as stage:
        await trio.sleep(10_000)
        assert stage.sources == ["x", "y"]
        assert stage.state == "synced"
        assert config.attempts == [0], "it has nothing more to say"


async def test_returning_without_having_sent_is_a_failure(autojump_clock: MockClock) -> None:
    async def returns(updates: Updates) -> None:
        await trio.lowlevel.checkpoint()

    config = Scripted((returns, sends("x")))
    async with running(config) as stage:
        await trio.sleep(0.5)
        told = stage.provider.statistics(())
        assert told.state == "failing"
        assert told.last_error == "DiscoveryError: the discoverer returned without sending a full set"
        await trio.sleep(1)
        assert stage.state == "synced"


async def test_returning_without_having_sent_in_a_later_run_is_a_failure_too(autojump_clock: MockClock) -> None:
    async def returns(updates: Updates) -> None:
        await trio.lowlevel.checkpoint()

    async with running(Scripted((sends_then_fails("x"), returns))) as stage:
        await trio.sleep(2)
        assert stage.state == "failing"
        assert stage.sources == ["x"]


async def test_closing_the_channel_oneself_spoils_nothing(autojump_clock: MockClock) -> None:
    async def script(updates: Updates) -> None:
        async with updates:
            await updates.send([group("x", "1")])
        await trio.sleep_forever()

    config = Scripted((script,))
    async with running(config) as stage:
        await trio.sleep(100)
        assert (stage.sources, stage.state, config.attempts) == (["x"], "synced", [0])


async def test_a_discoverer_is_held_back_by_a_channel_without_capacity(autojump_clock: MockClock) -> None:
    seen: list[int] = []

    async def script(updates: Updates) -> None:
        seen.append(updates.statistics().max_buffer_size)  # type: ignore[arg-type]
        await updates.send([])
        await trio.sleep_forever()

    async with running(Scripted((script,))):
        await wait_all_tasks_blocked()
    assert seen == [0]


# --- garbage ---


@pytest.mark.parametrize(
    "garbage",
    [None, 5, "text", [None], ["x"], [1, 2], [group("y", "1"), None], [("x", [])], [[group("y", "1")]], object()],
)
@pytest.mark.parametrize("when", ["first", "later"])
async def test_garbage_is_the_providers_failure_and_changes_nothing(
    garbage: Any, when: str, autojump_clock: MockClock
) -> None:
    async def good(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        if when == "later":
            await updates.send(garbage)
            await trio.sleep_forever()
        raise OSError("on to the next run")

    async def bad(updates: Updates) -> None:
        await updates.send(garbage)
        await trio.sleep_forever()

    config = Scripted((good, sends("z")) if when == "later" else (good, bad, sends("z")))
    async with running(config) as stage:
        await trio.sleep(0.5 if when == "later" else 1.5)
        told = stage.provider.statistics(())
        assert told.state == "failing"
        assert told.updates == 1
        assert told.last_error is not None
        assert told.last_error.split(":")[0] in ("TypeError", "AttributeError")
        assert stage.sources == ["x"]
        await trio.sleep(10)
        assert (stage.sources, stage.state) == (["z"], "synced")


async def test_what_only_looks_like_a_group_is_garbage_too(autojump_clock: MockClock) -> None:
    @dataclass(frozen=True)
    class Lookalike:
        source: Any
        targets: Any

    async def script(updates: Updates) -> None:
        lookalikes: Any = [Lookalike(1, ["x"]), Lookalike("s", ["x"])]
        await updates.send(lookalikes)
        await trio.sleep_forever()

    async with running(Scripted((script,))) as stage:
        await wait_all_tasks_blocked()
        assert stage.state == "failing"
        assert stage.sources == []


# --- stopping ---


async def idle(updates: Updates) -> None:
    await trio.sleep_forever()


async def returns_at_once(updates: Updates) -> None:
    await updates.send([group("x", "1")])


@pytest.mark.parametrize(
    ("script", "at"),
    [(idle, 0), (idle, 1), (sends("x"), 1), (fails, 0.5), (fails, 1), (returns_at_once, 1)],
    ids=["before it began", "starting", "running", "backing off", "as the pause ends", "returned"],
)
async def test_stop_at_any_time(script: Script, at: float, autojump_clock: MockClock) -> None:
    async with running(Scripted((script,))) as stage:
        if at:
            await trio.sleep(at)
        sources = stage.sources
        stage.provider.stop()
        assert stage.provider.settled, "who waits for it does not wait for ever"
        with trio.fail_after(1):
            await stage.provider.stopped.wait()
        assert trio.current_time() == at
        assert stage.state == "stopped"
        assert stage.sources == sources, "what was sent stays until somebody arranges otherwise"
        stage.provider.stop()


async def test_a_discoverer_that_shields_itself_is_waited_for_and_not_listened_to(autojump_clock: MockClock) -> None:
    late: list[str] = []

    async def script(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(7)
                try:
                    await updates.send([group("late", "1")])
                except trio.BrokenResourceError:
                    late.append("nobody listens")

    async with running(Scripted((script,))) as stage:
        await wait_all_tasks_blocked()
        stage.provider.stop()
        await wait_all_tasks_blocked()
        assert not stage.provider.stopped.is_set()
        with trio.fail_after(100):
            await stage.provider.stopped.wait()
        assert trio.current_time() == 7
        assert stage.sources == ["x"]
        assert late == ["nobody listens"]


async def test_what_is_handed_over_in_the_tick_of_the_stop_is_ignored(autojump_clock: MockClock) -> None:
    stages: list[Stage] = []

    async def script(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        await wait_all_tasks_blocked()
        updates.send_nowait([group("late", "1")])  # the engine waits for it, so it is handed over here
        stages[0].provider.stop()
        await trio.sleep_forever()

    async with running(Scripted((script,))) as stage:
        stages.append(stage)
        with trio.fail_after(10):
            await stage.provider.stopped.wait()
        assert stage.sources == ["x"]
        assert stage.provider.statistics(()).updates == 1


async def test_errors_mixed_with_cancellation_at_the_stop_stay_inside(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def bad() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("on the way out")

    async def script(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bad)
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(bad)

    async with running(Scripted((script,))) as stage:
        await wait_all_tasks_blocked()
        stage.provider.stop()
        with trio.fail_after(1):
            await stage.provider.stopped.wait()
        told = stage.provider.statistics(())
        assert (told.state, told.failure_streak) == ("stopped", 0)
        assert told.last_error is not None
        assert "OSError" in told.last_error or "ExceptionGroup" in told.last_error
    assert caplog.records == []


@pytest.mark.parametrize("replaces", [True, False], ids=["instead of Cancelled", "in a group"])
async def test_an_error_raised_when_stopped_does_not_start_another_run(
    replaces: bool, autojump_clock: MockClock
) -> None:
    async def script(updates: Updates) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if replaces:
                raise OSError("on the way out")
            raise ExceptionGroup("on the way out", [OSError("1"), ValueError("2")])

    config = Scripted((script,))
    async with running(config, backoff=Backoff(0, 0)) as stage:
        await wait_all_tasks_blocked()
        stage.provider.stop()
        with trio.fail_after(1):
            await stage.provider.stopped.wait()
        assert config.attempts == [0]


class Fatal(BaseException):
    """Not for anybody's ``except Exception``."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Fatal])
@pytest.mark.parametrize("mixed", [False, True])
async def test_what_is_no_exception_is_not_swallowed(
    kind: type[BaseException], mixed: bool, autojump_clock: MockClock
) -> None:
    async def script(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        if mixed:
            raise BaseExceptionGroup("both", [OSError("not this"), kind()])
        raise kind

    stopped: list[bool] = []
    with pytest.RaisesGroup(kind, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            stage = Stage(nursery, Scripted((script,)), Backoff(), Steady())
            try:
                await stage.provider.run()
            finally:
                stopped.append(stage.provider.stopped.is_set())
    assert stopped == [True]


async def test_cancelled_from_outside_it_ends_and_says_so(autojump_clock: MockClock) -> None:
    for steps in range(1, 12):
        async with trio.open_nursery() as nursery:
            stage = Stage(nursery, Scripted((fails, sends("x"))), Backoff(0, 0), Steady())
            nursery.start_soon(stage.provider.run)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert stage.provider.stopped.is_set()


# --- refresh ---


async def test_refresh_runs_again_at_once_and_keeps_what_is_shown(autojump_clock: MockClock) -> None:
    config = Scripted((sends("x", "y"), sends("y")))
    async with running(config) as stage:
        await trio.sleep(5)
        stage.provider.refresh()
        assert not stage.provider.settled
        assert stage.sources == ["x", "y"]
        with trio.fail_after(1):
            await stage.provider.wait_settled()
        assert (stage.sources, config.attempts) == (["y"], [0, 5])
        assert stage.provider.statistics(()).restarts == 0, "it was asked to"


@pytest.mark.parametrize("script", [fails, returns_at_once], ids=["backing off", "returned"])
async def test_refresh_ends_a_pause(script: Script, autojump_clock: MockClock) -> None:
    config = Scripted((script, sends("z")))
    async with running(config, backoff=Backoff(100, 100)) as stage:
        await trio.sleep(5)
        stage.provider.refresh()
        with trio.fail_after(1):
            await stage.provider.wait_settled()
        assert (stage.sources, config.attempts) == (["z"], [0, 5])


async def test_refresh_of_a_stopped_provider_does_nothing(autojump_clock: MockClock) -> None:
    config = Scripted((sends("x"),))
    async with running(config) as stage:
        await wait_all_tasks_blocked()
        stage.provider.stop()
        stage.provider.refresh()
        assert stage.provider.settled
        with trio.fail_after(1):
            await stage.provider.stopped.wait()
        assert config.attempts == [0]


async def test_who_waits_for_it_to_settle_is_not_forgotten_by_a_refresh(autojump_clock: MockClock) -> None:
    config = Scripted((idle, sends("x")))
    async with running(config) as stage:

        async def wait() -> None:
            while not stage.provider.settled:
                await stage.provider.wait_settled()

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                stage.provider.refresh()
        assert stage.state == "synced"


async def test_what_is_handed_over_in_the_tick_of_a_refresh_does_not_settle_it(autojump_clock: MockClock) -> None:
    stages: list[Stage] = []

    async def script(updates: Updates) -> None:
        await updates.send([group("x", "1")])
        await wait_all_tasks_blocked()
        updates.send_nowait([group("old", "1")])
        stages[0].provider.refresh()
        await trio.sleep_forever()

    config = Scripted((script, idle))
    async with running(config) as stage:
        stages.append(stage)
        await trio.sleep(1)
        assert config.attempts == [0, 0]
        assert not stage.provider.settled, "the new run has not reported anything"
