"""Pausing and resuming, and removals that wait, as users of a manager see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.manager import Manager, open_manager
from trio_sd.targets import TargetGroup
from trio_sd.testing import CancelAfter, FakeDiscoverer, group

from .managing import AT_ONCE, Telling, of, sources, synced, until

# --- pausing and resuming ---


async def test_what_a_paused_provider_has_found_stays_and_its_discoverer_ends(autojump_clock: MockClock) -> None:
    fake, other = synced("a"), synced("b")
    async with open_manager({"web": [fake.config, other.config]}, throttle=AT_ONCE) as manager:
        await manager.wait_synced()
        revision = manager.snapshot().revision
        await manager.pause("fake/0")
        assert (fake.running, other.running) == (0, 1)
        assert (of(manager).state, of(manager, "fake/1").state) == ("paused", "synced")
        assert manager.snapshot().revision == revision
        assert sources(manager.snapshot()) == ["a", "b"]
        await manager.wait_synced()
        assert manager.unsynced() == ()
        await manager.refresh()
        assert (fake.started, other.started) == (1, 2)
        await trio.sleep(10_000)
        assert fake.running == 0
        assert of(manager).age == 10_000
        await manager.resume("fake/0")
        assert manager.unsynced() == ("fake/0",)
        assert of(manager).state == "starting"
        await manager.wait_synced()
        assert (fake.started, fake.running, of(manager).state, of(manager).age) == (2, 1, "synced", 0)
        assert of(manager).restarts == 0


async def test_what_a_resumed_provider_finds_first_replaces_what_it_had_found(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager:
        await fake.send(group("p", "1"), group("q", "2"))
        await manager.pause("fake/0")
        await manager.resume("fake/0")
        await wait_all_tasks_blocked()
        assert sources(manager.snapshot()) == ["p", "q"]
        revision = manager.snapshot().revision
        await fake.send(group("q", "3"))
        assert sources(manager.snapshot()) == ["q"]
        assert manager.snapshot().revision == revision + 1


async def test_pausing_twice_and_resuming_twice_is_pausing_and_resuming_once(autojump_clock: MockClock) -> None:
    fake = synced("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.resume("fake/0")
        await manager.wait_synced()
        assert fake.started == 1
        await manager.pause("fake/0")
        await manager.pause("fake/0")
        await manager.resume("fake/0")
        await manager.resume("fake/0")
        await manager.wait_synced()
        assert fake.started == 2


@pytest.mark.parametrize("restart", ["all", "changed"])
async def test_a_provider_stays_paused_over_reloads(autojump_clock: MockClock, restart: Any) -> None:
    fake, other = synced("a"), synced("b")
    async with open_manager({"web": [fake.config, other.config]}) as manager:
        await manager.wait_synced()
        await manager.pause("fake/0")
        for _ in range(3):
            await manager.apply_config({"web": [other.config, fake.config], "too": [fake.config]}, restart=restart)
            await manager.wait_synced()
            assert (of(manager).state, fake.started) == ("paused", 1)
            assert sources(manager.snapshot()) == ["b", "a"]
            assert manager.statistics().stuck == ()
        await manager.resume("fake/0")
        await manager.wait_synced()
        assert fake.started == 2


async def test_a_provider_is_paused_no_more_when_its_configuration_was_gone(autojump_clock: MockClock) -> None:
    fake = synced("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.wait_synced()
        await manager.pause("fake/0")
        await manager.apply_config({"web": []})
        await manager.apply_config({"web": [fake.config]})
        await manager.wait_synced()
        assert fake.started == 2


async def test_a_provider_is_paused_no_more_when_its_configuration_was_gone_but_still_shown(
    autojump_clock: MockClock,
) -> None:
    fake, slow = synced("a"), FakeDiscoverer("slow")
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.wait_synced()
        await manager.pause("fake/0")
        await manager.apply_config({"web": [slow.config]})
        assert sources(manager.snapshot()) == ["a"], "it is leaving"
        await manager.apply_config({"web": [fake.config]})
        await wait_all_tasks_blocked()
        assert [one.state for one in manager.statistics().providers] == ["synced"]
        assert fake.started == 2


async def test_a_reload_while_a_provider_is_told_to_pause_keeps_it_paused(autojump_clock: MockClock) -> None:
    fake = synced("a", linger=2)
    async with open_manager({"web": [fake.config]}) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.pause, "fake/0")
        await wait_all_tasks_blocked()
        await manager.apply_config({"web": [fake.config]})
        await trio.sleep(100)
        assert (of(manager).state, fake.started, fake.running) == ("paused", 1, 0)
        assert manager.statistics().stuck == ()


@pytest.mark.parametrize("when", ["at work", "after a failure", "after its end", "before its start"])
async def test_a_provider_can_be_paused_at_any_time(autojump_clock: MockClock, when: str) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}) as manager:
        if when != "before its start":
            await fake.send(group("p", "1"))
        if when == "after a failure":
            await fake.fail(ValueError("oops"))
        elif when == "after its end":
            await fake.finish()
        if when != "before its start":
            await wait_all_tasks_blocked()
        started = fake.started
        await manager.pause("fake/0")
        await trio.sleep(1_000)
        assert (fake.started, fake.running, of(manager).state) == (started, 0, "paused")
        await manager.resume("fake/0")
        await fake.send(group("q", "1"))
        assert (fake.started, of(manager).state) == (started + 1, "synced")
        assert sources(manager.snapshot()) == ["q"]


async def test_what_a_run_sends_after_it_was_told_to_pause_is_ignored(autojump_clock: MockClock) -> None:
    class Late(FakeDiscoverer):
        async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
            try:
                await super().run(updates)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
                    with suppress(trio.BrokenResourceError):
                        await updates.send([group("late", "1")])
                    await trio.sleep(1)

    fake = Late("a", first=[group("p", "1")])
    async with open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.pause, "fake/0")
        await trio.sleep(0.5)
        await manager.resume("fake/0")
        assert of(manager).state == "starting"
        await trio.sleep(1)
        assert sources(manager.snapshot()) == ["p"]
        assert fake.started == 1, "no two runs overlap"
        await manager.wait_synced()
        assert trio.current_time() == pytest.approx(2)
        assert (fake.started, fake.running) == (2, 1)
        assert sources(manager.snapshot()) == ["p"]


async def test_a_discoverer_that_does_not_end_is_told_and_waited_for_no_more(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = synced("a", linger=100)
    async with open_manager({"web": [fake.config]}, grace=3) as manager:
        await manager.wait_synced()
        await manager.pause("fake/0")
        assert trio.current_time() == pytest.approx(3)
        assert "provider fake/0 has not paused within 3 s" in caplog.text
        assert manager.statistics().stuck == ("fake/0",)
        assert of(manager).state == "paused"
        await trio.sleep(100)
        assert manager.statistics().stuck == ()
        await manager.resume("fake/0")
        await manager.wait_synced()
        assert manager.statistics().stuck == ()
        caplog.clear()
        with trio.move_on_after(1):
            await manager.pause("fake/0")
        assert manager.statistics().stuck == (), "not past its grace time"
        assert of(manager).state == "paused"
        with trio.fail_after(200):
            await manager.resume("fake/0")
            await manager.wait_synced()


async def test_who_waits_for_what_is_paused_waits_no_more(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(manager.wait_synced)
        nursery.start_soon(manager.refresh)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await manager.pause("fake/0")
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert manager.unsynced() == ()


async def test_pausing_and_resuming_in_one_step_waits_for_the_new_run(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    done = []

    async def wait(manager: Manager) -> None:
        await manager.wait_synced()
        done.append(fake.started)

    async with open_manager({"web": [fake.config]}) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(wait, manager)
        nursery.start_soon(manager.pause, "fake/0")
        nursery.start_soon(manager.resume, "fake/0")
        await wait_all_tasks_blocked()
        await manager.resume("fake/0")
        await fake.send(group("p", "1"))
        await wait_all_tasks_blocked()
        assert len(done) == 1


async def test_what_can_not_be_paused_is_told() -> None:
    fake = synced("a")
    async with open_manager({"web": [fake.config]}) as manager:
        for method in manager.pause, manager.resume:
            with pytest.raises(KeyError):
                await method("fake/7")
            with pytest.raises(KeyError):
                await method("web")
        await manager.wait_synced()
    for method in manager.pause, manager.resume:
        with pytest.raises(trio.ClosedResourceError):
            await method("fake/0")


async def test_a_manager_that_is_closed_lets_go_who_waits_for_a_pause(autojump_clock: MockClock) -> None:
    fake = synced("a", linger=4)

    async def pause() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await manager.pause("fake/0")

    async with trio.open_nursery() as nursery, open_manager({"web": [fake.config]}) as manager:
        await manager.wait_synced()
        nursery.start_soon(pause)
        await wait_all_tasks_blocked()


async def test_a_pause_that_is_cancelled_pauses_all_the_same(autojump_clock: MockClock) -> None:
    cancelled, steps = True, 0
    while cancelled:
        steps += 1
        fake = synced("a", linger=1)
        async with open_manager({"web": [fake.config]}) as manager:
            await manager.wait_synced()
            with trio.CancelScope() as scope, CancelAfter(steps, scope):
                await manager.pause("fake/0")
            cancelled = scope.cancelled_caught
            assert of(manager).state == "paused"
            await trio.sleep(2)
            assert (fake.running, of(manager).state) == (0, "paused")
            with trio.CancelScope() as scope, CancelAfter(1, scope):
                await manager.resume("fake/0")
            await manager.wait_synced()
            assert (fake.running, of(manager).state) == (1, "synced")
    assert steps > 1


# --- removals that wait ---


async def test_a_removal_is_seen_exactly_when_the_delay_is_over(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with (
        open_manager({"web": [fake.config]}, removal_delay=30, throttle=AT_ONCE) as manager,
        manager.subscribe() as updates,
    ):
        await fake.send(group("p", "1"), group("q", "2"))
        await until(updates, lambda update: sources(update.snapshot) == ["p", "q"])
        await trio.sleep(5)
        await fake.send(group("q"))
        with trio.fail_after(100):
            while not (update := await updates.receive()).changes:
                pass
        assert trio.current_time() == pytest.approx(35)
        assert update.changes["web"].removed == ("q",)
        assert sources(manager.snapshot()) == ["p"]


async def test_a_target_that_comes_back_in_time_is_never_seen_to_leave(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with (
        open_manager({"web": [fake.config]}, removal_delay=30, throttle=AT_ONCE) as manager,
        manager.subscribe() as updates,
    ):
        await fake.send(group("p", "1", "2"))
        await until(updates, lambda update: sources(update.snapshot) == ["p"])
        for _ in range(5):
            await fake.send(group("p", "1"))
            await trio.sleep(29)
            await fake.send(group("p", "1", "2"))
            await trio.sleep(29)
        with trio.move_on_after(100) as scope:
            await updates.receive()
        assert scope.cancelled_caught


async def test_a_reload_takes_away_at_once_and_its_new_runs_do_not(autojump_clock: MockClock) -> None:
    fake, other = FakeDiscoverer("a"), synced("b")
    async with open_manager({"web": [fake.config, other.config]}, removal_delay=30) as manager:
        await fake.send(group("p", "1"), group("q", "2"))
        await manager.wait_synced()
        await manager.apply_config({"web": [fake.config]})
        assert sources(manager.snapshot()) == ["p", "q"], "what is gone from the configuration is gone"
        await fake.send(group("p", "1"))
        assert sources(manager.snapshot()) == ["p", "q"]
        assert fake.options is not None
        assert set(fake.options.last_known()) == {"p"}
        await manager.apply_config({"web": [fake.config]})
        assert set(fake.options.last_known()) == {"p"}
        await fake.send(group("p", "1"))
        await trio.sleep(30.001)
        assert sources(manager.snapshot()) == ["p"]


def next_deadline() -> float:
    """Return when anything at all is due; for ever if nothing ticks."""
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


async def test_nothing_ticks_while_nothing_lingers(mock_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, removal_delay=30) as manager:
        await fake.send(group("p", "1", "2"))
        await wait_all_tasks_blocked()
        assert next_deadline() == math.inf
        await fake.send(group("p", "1"))
        assert next_deadline() == 30
        await fake.send(group("p", "1", "2"))
        assert next_deadline() == math.inf
        await fake.send(group("p", "1"))
        mock_clock.jump(30)
        await wait_all_tasks_blocked()
        assert next_deadline() == math.inf
        assert manager.statistics().sets[0].targets == 1


async def test_nothing_ticks_when_what_lingered_was_taken_away_by_a_reload(mock_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, removal_delay=30) as manager:
        await fake.send(group("p", "1", "2"))
        await fake.send(group("p", "1"))
        await manager.apply_config({"web": []})
        await wait_all_tasks_blocked()
        assert sources(manager.snapshot()) == []
        assert next_deadline() == math.inf


@pytest.mark.parametrize("wrong", [{"removal_delay": -1.0}, {"removal_delay": math.nan}, {"state_max_age": -1.0}])
async def test_a_negative_number_of_seconds_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        async with open_manager(state_path=tmp_path / "state", **wrong):
            pass


async def test_the_first_of_two_pauses_is_not_told_to_have_waited_for_the_second(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = synced("a", linger=1)
    async with open_manager({"web": [fake.config]}, grace=5) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.pause, "fake/0")
        await trio.sleep(0.05)
        await manager.resume("fake/0")
        await manager.pause("fake/0")
        assert fake.running == 0
    assert not caplog.records


@pytest.mark.parametrize("what", ["resume", "refresh"])
async def test_a_run_that_does_not_end_is_named_though_nobody_wants_it_to_stay_ended(
    what: str, autojump_clock: MockClock
) -> None:
    fake = synced("a", linger=100)
    async with open_manager({"web": [fake.config]}, grace=3) as manager:
        await manager.wait_synced()
        if what == "resume":
            with trio.move_on_after(1):
                await manager.pause("fake/0")
            await manager.resume("fake/0")
        else:
            with trio.move_on_after(1):
                await manager.refresh()
        assert manager.statistics().stuck == ()
        await trio.sleep(3)
        assert manager.statistics().stuck == ("fake/0",), "and that is why it is not synced"
        await manager.wait_synced()
        assert manager.statistics().stuck == ()


async def test_a_pause_overtaken_by_a_reload_waits_for_the_end_all_the_same(autojump_clock: MockClock) -> None:
    fake = synced("a", linger=2)
    async with open_manager({"web": [fake.config]}) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.apply_config, {"web": []})
        nursery.start_soon(manager.pause, "fake/0")
        await trio.sleep(0.1)
        assert fake.running == 1
        assert nursery.child_tasks
        await trio.sleep(2)
        assert (fake.running, len(nursery.child_tasks)) == (0, 0)


async def test_what_left_is_shown_for_the_warm_up_time_where_what_joined_is_paused(autojump_clock: MockClock) -> None:
    old, new = synced("old"), FakeDiscoverer("new")
    async with open_manager({"web": [old.config]}, warm_up=15) as manager:
        await manager.wait_synced()
        await manager.apply_config({"web": [new.config]})
        await manager.pause("fake/1")
        await trio.sleep(14)
        assert sources(manager.snapshot()) == ["old"]
        await trio.sleep(2)
        assert sources(manager.snapshot()) == []


async def test_last_known_does_not_change_under_the_feet_of_who_was_given_it(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, removal_delay=10):
        await fake.send(group("p", "1"))
        assert fake.options is not None
        known = fake.options.last_known()
        await fake.send(group("q", "2"))
        assert set(known) == {"p"}


async def test_the_age_of_what_can_not_be_read_does_not_begin_anew_with_a_reload(autojump_clock: MockClock) -> None:
    fake = Telling("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await fake.send(group("p", "1"), group("q", "2"))
        await trio.sleep(5)
        fake.errors = ("p can't be read",)
        await fake.send(group("q", "3"))
        await trio.sleep(5)
        for _ in range(3):
            await manager.apply_config({"web": [fake.config]})
            assert fake.options is not None
            await fake.send(fake.options.last_known()["p"], group("q", "4"))
            assert (of(manager).state, of(manager).age) == ("failing", 10)
        fake.errors = ()
        await fake.send()
        assert of(manager).age == 0


async def test_a_changed_configuration_does_not_make_what_can_not_be_read_younger(autojump_clock: MockClock) -> None:
    old, new = Telling("old"), Telling("new")
    async with open_manager({"web": [old.config]}) as manager:
        await old.send(group("p", "1"))
        await trio.sleep(60)
        await manager.apply_config({"web": [new.config]})
        await wait_all_tasks_blocked()
        assert new.options is not None
        new.errors = ("p can't be read",)
        await new.send(new.options.last_known()["p"])
        assert of(manager, "fake/1").age == 60
        new.errors = ()
        await new.send(group("p", "1"))
        assert of(manager, "fake/1").age == 0


async def test_a_changed_configuration_that_found_everything_itself_is_new(autojump_clock: MockClock) -> None:
    old, new = Telling("old"), Telling("new")
    async with open_manager({"web": [old.config]}) as manager:
        await old.send(group("p", "1"))
        await trio.sleep(60)
        await manager.apply_config({"web": [new.config]})
        await wait_all_tasks_blocked()
        assert new.options is not None
        assert set(new.options.last_known()) == {"p"}
        new.errors = ("something that never gave anything can't be read",)
        await new.send(group("p", "1"))
        assert of(manager, "fake/1").age == 0


async def test_a_provider_that_was_resumed_is_not_paused_by_the_next_reload(autojump_clock: MockClock) -> None:
    fake = synced("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.wait_synced()
        await manager.pause("fake/0")
        await manager.resume("fake/0")
        await manager.apply_config({"web": [fake.config]})
        await manager.wait_synced()
        assert (of(manager).state, fake.running, fake.started) == ("synced", 1, 3)


async def test_a_paused_provider_that_is_configured_no_more_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake, other = synced("a"), synced("b")
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.pause("fake/0")
        await manager.apply_config({"web": [other.config]})
        assert "provider fake/0, which was paused, is not configured any more" in caplog.text
        with pytest.raises(KeyError, match="no provider fake/0; it has: fake/1"):
            await manager.resume("fake/0")


class Stubborn(FakeDiscoverer):
    """Fails when it is cancelled."""

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        try:
            await super().run(updates)
        finally:
            raise OSError("broken as it was told to end")


async def test_an_error_raised_as_it_is_paused_is_no_failure(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Stubborn("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await fake.send(group("p", "1"))
        await manager.pause("fake/0")
        assert (of(manager).failure_streak, of(manager).last_error) == (0, "OSError: broken as it was told to end")
        assert not caplog.records
        began = trio.current_time()
        await manager.resume("fake/0")
        await fake.send(group("p", "1"))
        assert trio.current_time() == began, "nothing is held back"


async def test_a_run_that_does_not_end_is_named_however_often_it_is_told_to(autojump_clock: MockClock) -> None:
    fake = synced("a", linger=100)
    async with open_manager({"web": [fake.config]}, grace=4) as manager:
        await manager.wait_synced()
        for _ in range(3):
            with trio.move_on_after(2):
                await manager.refresh()
        assert manager.statistics().stuck == ("fake/0",)


class OneShot(Telling):
    """Takes what it can't read from what is known, tells so, and returns."""

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        assert self.options is not None
        known = tuple(self.options.last_known().values())
        await updates.send(known or (group("p", "1"),))
        self.errors = ("p can't be read",) if known else ()


async def test_what_returns_with_an_error_is_not_right_for_ever(autojump_clock: MockClock) -> None:
    fake = OneShot("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.wait_synced()
        await trio.sleep(100)
        assert of(manager).age == 0, "it has said all that there is to say"
        await manager.refresh()
        await trio.sleep(5)
        assert (of(manager).state, of(manager).age) == ("failing", 5), "until the refresh it was right"


@pytest.mark.parametrize("what", ["reload", "refresh", "pause"])
async def test_what_was_right_until_now_does_not_grow_old_at_once(what: str, autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await fake.send(group("p", "1"))
        await fake.finish()
        await trio.sleep(100)
        assert of(manager).age == 0
        if what == "pause":
            await manager.pause("fake/0")
        elif what == "reload":
            await manager.apply_config({"web": [fake.config]})
        else:
            with trio.move_on_after(0):
                await manager.refresh()
        await trio.sleep(7)
        assert of(manager).age == pytest.approx(7)
