"""The manager's contracts: reload, truth, subscription, no globals; and that nothing is ever left behind."""

from __future__ import annotations

import gc
import logging
import math
import random
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import pytest
import trio
from trio.testing import MockClock, Sequencer, wait_all_tasks_blocked

from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions
from trio_sd.limits import Limits
from trio_sd.manager import Manager, open_manager
from trio_sd.provider import Backoff, Provider
from trio_sd.snapshots import Snapshot, Update
from trio_sd.subscription import Subscription, Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import CancelAfter, FakeConfig, FakeDiscoverer, cancel_everywhere, group

AT_ONCE = Throttle(0, 0)
Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


def synced(name: str, *sources: str) -> FakeDiscoverer:
    """Return a fake whose every run sends these sources first; its own name if none is given."""
    return FakeDiscoverer(name, first=[group(source, "1") for source in sources or (name,)])


def sources(state: Mapping[str, Sequence[TargetGroup]], set_name: str) -> list[str]:
    return [found.source for found in state[set_name]]


class Lasting:
    """A discoverer that takes ``linger`` seconds to end, and then tries to send."""

    def __init__(self, name: str, linger: float) -> None:
        self.name = name
        self.linger = linger
        self.running = 0
        self.config = LastingConfig(name, self)

    async def run(self, updates: Updates) -> None:
        self.running += 1
        await updates.send([group(self.name, "1")])
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.linger)
                try:
                    await updates.send([group("late", "1")])
                except trio.BrokenResourceError:
                    self.running -= 1


class LastingConfig(DiscovererConfig):
    """Equal to another of the same name."""

    mechanism: ClassVar[str] = "lasting"

    def __init__(self, name: str, made: Discoverer) -> None:
        self.name = name
        self._made = made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LastingConfig) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        return self._made


class Watch:
    """Takes every update of a manager as soon as it comes, and keeps what it showed."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, list[str]]]] = []
        self.ended = False

    async def run(self, manager: Manager, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            async for update in updates:
                self.seen.append((update.revision, {name: sources(update.snapshot, name) for name in update.snapshot}))
                if len(self.seen) == 1:
                    task_status.started()
        self.ended = True

    @property
    def last(self) -> dict[str, list[str]]:
        return self.seen[-1][1]


@asynccontextmanager
async def watched(
    configs: Mapping[str, Iterable[DiscovererConfig]], **options: Any
) -> AsyncIterator[tuple[Manager, Watch]]:
    watch = Watch()
    async with open_manager(configs, **options) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        await nursery.start(watch.run, manager)
        yield manager, watch
        nursery.cancel_scope.cancel()


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


# --- reload ---


async def test_reload_contract_every_provider_is_cancelled_and_started_anew(autojump_clock: MockClock) -> None:
    fakes = [synced(name) for name in "abc"]
    async with open_manager({"s": [fake.config for fake in fakes]}) as manager:
        await manager.wait_synced()
        for count in (2, 3):
            await manager.apply_config({"s": [fake.config for fake in fakes]})
            await wait_all_tasks_blocked()
            assert [fake.started for fake in fakes] == [count] * 3
            assert [fake.running for fake in fakes] == [1] * 3


async def test_reload_contract_returns_when_every_old_provider_has_exited(autojump_clock: MockClock) -> None:
    old = [FakeDiscoverer(f"old-{n}", linger=n, first=[]) for n in range(4)]
    new = synced("new")
    async with open_manager({"s": [fake.config for fake in old]}) as manager:
        await manager.wait_synced()
        before = tasks_living()
        await manager.apply_config({"s": [new.config]})
        assert trio.current_time() == 3
        assert [fake.running for fake in old] == [0] * 4
        assert manager.statistics().stuck == ()
        await wait_all_tasks_blocked()
        # Of four providers of three tasks each (run, its nursery's pump) only those of the new one live.
        assert tasks_living() < before


async def test_reload_contract_new_providers_start_after_the_old_have_exited(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f", linger=2, first=[])
    most: list[int] = []

    async with open_manager({"s": [fake.config]}) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.apply_config, {"s": [fake.config]})
        for _ in range(30):
            await trio.sleep(0.1)
            most.append(fake.running)
        assert max(most) == 1
        assert fake.started == 2


async def test_reload_contract_new_providers_have_started_when_apply_returns(autojump_clock: MockClock) -> None:
    for _ in range(50):
        fakes = [FakeDiscoverer(str(n)) for n in range(3)]
        async with open_manager() as manager:
            await manager.apply_config({"s": [fake.config for fake in fakes]})
            assert [fake.running for fake in fakes] == [1, 1, 1]


async def test_reload_contract_nobody_sees_a_flap(autojump_clock: MockClock) -> None:
    slow, quick = FakeDiscoverer("slow"), synced("quick")
    async with open_manager({"s": [slow.config, quick.config]}) as manager, trio.open_nursery() as nursery:
        with trio.fail_after(1000):
            await slow.send(group("slow", "1"), group("gone", "1"))
            watch = Watch()
            await nursery.start(watch.run, manager)
            start = len(watch.seen)
            await manager.apply_config({"s": [slow.config, quick.config]})
            await trio.sleep(60)
            assert watch.last == {"s": ["gone", "slow", "quick"]}
            await slow.send(group("slow", "1"), group("new", "1"))
            await wait_all_tasks_blocked()
        assert [shown["s"] for _, shown in watch.seen[start:]] == [
            ["gone", "slow", "quick"],  # every reload is a revision
            ["new", "slow", "quick"],  # what has really gone disappears as the new comes, in one step
        ]
        nursery.cancel_scope.cancel()


async def test_reload_contract_leavers_are_shown_until_the_joiners_have_reported(autojump_clock: MockClock) -> None:
    old, stays, new, other = synced("old"), synced("stays"), FakeDiscoverer("new"), FakeDiscoverer("other")
    async with watched({"s": [old.config, stays.config]}) as (manager, watch):
        with trio.fail_after(1000):
            await manager.apply_config({"s": [stays.config, new.config, other.config]})
            await trio.sleep(5)
            assert watch.last == {"s": ["stays", "old"]}
            assert old.running == 0
            (told,) = manager.statistics().sets
            assert (told.providers, told.leaving) == (("fake/1", "fake/2", "fake/3"), ("fake/0",))
            assert (told.groups, told.targets) == (2, 2)
            await new.send(group("new", "1"))
            await wait_all_tasks_blocked()
            assert watch.last == {"s": ["stays", "new", "old"]}
            await other.send()
            await wait_all_tasks_blocked()
            assert watch.last == {"s": ["stays", "new"]}
            assert manager.statistics().sets[0].leaving == ()


@pytest.mark.parametrize("warm_up", [15.0, 3.0])
async def test_reload_contract_warm_up_deadline(warm_up: float, autojump_clock: MockClock) -> None:
    old, new = synced("old"), FakeDiscoverer("new")
    options = {} if warm_up == 15 else {"warm_up": warm_up}
    async with watched({"s": [old.config]}, **options) as (manager, watch):
        await trio.sleep(10)
        await manager.apply_config({"s": [new.config]})
        gone: list[float] = []

        async with trio.open_nursery() as nursery:

            async def when_gone() -> None:
                async with manager.subscribe(throttle=AT_ONCE) as updates:
                    async for update in updates:
                        if not update.snapshot["s"]:
                            gone.append(trio.current_time())
                            return

            nursery.start_soon(when_gone)
        assert gone == [10 + warm_up]
        await wait_all_tasks_blocked()
        assert watch.last == {"s": []}
        with trio.fail_after(1):
            await new.send(group("new", "1"))
            await wait_all_tasks_blocked()
        assert watch.last == {"s": ["new"]}


async def test_reload_contract_warm_up_is_not_prolonged_by_another_reload(autojump_clock: MockClock) -> None:
    old, new, newer = synced("old"), FakeDiscoverer("new"), FakeDiscoverer("newer")
    async with open_manager({"s": [old.config]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({"s": [new.config]})
        await trio.sleep(10)
        await manager.apply_config({"s": [newer.config]})
        await trio.sleep(4.9)
        assert sources(manager.snapshot(), "s") == ["old"]
        await trio.sleep(0.2)
        assert sources(manager.snapshot(), "s") == []


async def test_reload_contract_deadlines_of_reloads_far_apart(autojump_clock: MockClock) -> None:
    fakes = [synced(str(n)) for n in range(3)]
    async with open_manager({}) as manager:
        for fake in fakes:
            await manager.apply_config({"s": [fake.config]})
            await manager.wait_synced()
            silent = FakeDiscoverer("silent")
            await manager.apply_config({"s": [silent.config]})
            await trio.sleep(14.9)
            assert sources(manager.snapshot(), "s") == [fake.config.name]
            await trio.sleep(0.2)
            assert sources(manager.snapshot(), "s") == []


async def test_reload_contract_where_none_joined_leavers_go_at_once(autojump_clock: MockClock) -> None:
    one, two = synced("one"), synced("two")
    async with watched({"s": [one.config, two.config]}) as (manager, watch):
        await manager.apply_config({"s": [one.config]})
        assert sources(manager.snapshot(), "s") == ["one"]
        await wait_all_tasks_blocked()
        assert watch.last == {"s": ["one"]}


async def test_reload_contract_two_reloads_in_a_row_make_no_flap(autojump_clock: MockClock) -> None:
    old, skipped, new = synced("old"), FakeDiscoverer("skipped"), FakeDiscoverer("new")
    async with watched({"s": [old.config]}) as (manager, watch):
        with trio.fail_after(100):
            await manager.apply_config({"s": [skipped.config]})
            await manager.apply_config({"s": [new.config]})
            await new.send(group("new", "1"))
            await wait_all_tasks_blocked()
        assert {tuple(shown["s"]) for _, shown in watch.seen} == {("old",), ("new",)}


async def test_reload_contract_what_left_and_comes_back_in_time_was_never_missed(autojump_clock: MockClock) -> None:
    fake, other = synced("f"), FakeDiscoverer("other")
    async with watched({"s": [fake.config]}) as (manager, watch):
        for _ in range(3):
            await manager.apply_config({"s": [other.config]})
            await manager.apply_config({"s": [fake.config]})
            await manager.wait_synced()
        await wait_all_tasks_blocked()
        assert {tuple(shown["s"]) for _, shown in watch.seen} == {("f",)}
        assert manager.statistics().providers[0].name == "fake/0", "and it keeps its name"


async def test_reload_contract_a_removed_set_is_emptied_and_dropped_at_once(autojump_clock: MockClock) -> None:
    one, two = synced("one"), synced("two")
    async with open_manager({"a": [one.config], "b": [two.config]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            await updates.receive()
            await manager.apply_config({"b": [two.config]})
            assert list(manager.snapshot()) == ["b"]
            with trio.fail_after(1):
                update = await updates.receive()
        assert update.changes["a"].removed == ("one",)
        assert list(update.snapshot) == ["b"]
        assert [told.name for told in manager.statistics().sets] == ["b"]


async def test_reload_contract_an_added_set_of_a_shared_provider_is_filled_at_once(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"a": [fake.config]}) as manager:
        with trio.fail_after(100):
            await fake.send(group("x", "1"))
        await manager.apply_config({"a": [fake.config], "b": [fake.config]})
        assert dict(manager.snapshot()) == {"a": (group("x", "1"),), "b": (group("x", "1"),)}


async def test_reload_contract_a_renamed_set_is_filled_at_once(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"a": [fake.config]}) as manager:
        with trio.fail_after(100):
            await fake.send(group("x", "1"))
        await manager.apply_config({"b": [fake.config]})
        assert dict(manager.snapshot()) == {"b": (group("x", "1"),)}


async def test_reload_contract_restart_changed_restarts_only_what_differs(autojump_clock: MockClock) -> None:
    stays, leaves, comes = synced("stays"), synced("leaves"), synced("comes")
    async with open_manager({"s": [stays.config, leaves.config]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({"s": [comes.config, stays.config]}, restart="changed")
        await manager.wait_synced()
        assert (stays.started, leaves.started, comes.started) == (1, 1, 1)
        assert (stays.running, leaves.running, comes.running) == (1, 0, 1)
        assert sources(manager.snapshot(), "s") == ["comes", "stays"]
        await manager.apply_config({"s": [comes.config, stays.config]}, restart="changed")
        assert (stays.started, comes.started) == (1, 1)
        with trio.fail_after(10):
            await stays.send(group("more", "1"))
        assert sources(manager.snapshot(), "s") == ["comes", "more", "stays"], "it is still listened to"


async def test_reload_contract_restart_changed_moves_a_running_provider_to_another_set(
    autojump_clock: MockClock,
) -> None:
    fake, other = synced("f"), synced("other")
    async with watched({"a": [fake.config], "b": [other.config]}) as (manager, watch):
        await manager.apply_config({"a": [other.config], "b": [fake.config]}, restart="changed")
        await wait_all_tasks_blocked()
        assert watch.last == {"a": ["other"], "b": ["f"]}
        assert (fake.started, other.started) == (1, 1)


async def test_reload_contract_what_is_stuck_is_told_by_name_and_holds_up_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, prompt = Lasting("stuck", 60), synced("prompt")
    async with open_manager({"s": [stuck.config, prompt.config]}, name="mine") as manager:
        await manager.wait_synced()
        await manager.apply_config({"s": [prompt.config]})
        assert trio.current_time() == 5, "the grace time"
        assert manager.statistics().stuck == ("lasting/0",)
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.getMessage() == (
            "manager mine: provider lasting/0 has not stopped within 5 s; going on without it"
        )
        await manager.apply_config({"s": [prompt.config]})
        assert trio.current_time() == 5, "the next reload does not wait for it again"
        assert manager.statistics().stuck == ("lasting/0",), "but it is still told"
        await trio.sleep(60)
        assert stuck.running == 0, "what it sent at its end was refused"
        assert manager.statistics().stuck == ()
        assert sources(manager.snapshot(), "s") == ["prompt"]


@pytest.mark.parametrize("grace", [0.0, 0.5, 10.0])
async def test_reload_contract_grace_is_exact(grace: float, autojump_clock: MockClock) -> None:
    stuck = Lasting("stuck", 60)
    async with open_manager({"s": [stuck.config]}, grace=grace) as manager:
        await manager.wait_synced()
        await manager.apply_config({})
        assert trio.current_time() == grace
        assert manager.statistics().stuck == ("lasting/0",)


async def test_reload_contract_a_stuck_run_is_not_listened_to_beside_its_successor(autojump_clock: MockClock) -> None:
    stuck = Lasting("s", 20)
    async with open_manager({"a": [stuck.config]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({"a": [stuck.config]})
        await manager.wait_synced()
        assert stuck.running == 2
        told = manager.statistics()
        assert told.stuck == ("lasting/0",)
        assert [provider.name for provider in told.providers] == ["lasting/0"]
        await trio.sleep(60)
        assert stuck.running == 1
        assert sources(manager.snapshot(), "a") == ["s"]


async def test_reload_contract_reloads_take_turns_and_the_last_one_wins(autojump_clock: MockClock) -> None:
    slow = FakeDiscoverer("slow", linger=2, first=[])
    fakes = [FakeDiscoverer(str(n), linger=1, first=[]) for n in range(4)]
    done: list[tuple[int, float]] = []
    async with open_manager({"s": [slow.config]}) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()

        async def reload(number: int) -> None:
            await manager.apply_config({f"set-{number}": [fakes[number].config]})
            done.append((number, trio.current_time()))

        for number in range(4):
            nursery.start_soon(reload, number)
            await wait_all_tasks_blocked()
        await trio.sleep(10)
        assert done == [(0, 2), (1, 3), (2, 4), (3, 5)]
        assert list(manager.snapshot()) == ["set-3"]
        assert [fake.running for fake in fakes] == [0, 0, 0, 1]
        assert manager.statistics().reloads == 5


async def test_reload_contract_cancelled_while_waiting_for_its_turn_it_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    slow, good, never = FakeDiscoverer("slow", linger=2, first=[]), synced("good"), synced("never")
    async with open_manager({"s": [slow.config]}) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.apply_config, {"s": [good.config]})
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await manager.apply_config({"never": [never.config]})
        assert scope.cancelled_caught
        await trio.sleep(10)
        assert list(manager.snapshot()) == ["s"]
        assert (good.running, never.started) == (1, 0)
        assert manager.statistics().reloads == 2


async def test_reload_contract_cancelled_while_the_old_end_the_new_is_in_force(autojump_clock: MockClock) -> None:
    slow, new, newer = FakeDiscoverer("slow", linger=2, first=[]), synced("new"), synced("newer")
    async with open_manager({"s": [slow.config]}) as manager:
        await manager.wait_synced()
        with trio.move_on_after(1) as scope:
            await manager.apply_config({"s": [new.config]})
        assert scope.cancelled_caught
        with trio.fail_after(1):
            await manager.wait_synced()
        assert (slow.running, new.running) == (1, 1)
        assert sources(manager.snapshot(), "s") == ["new"]
        await manager.apply_config({"s": [newer.config]})
        await manager.wait_synced()
        assert (new.running, newer.running) == (0, 1)
        await trio.sleep(5)
        assert slow.running == 0


class Unhashable(DiscovererConfig):
    mechanism: ClassVar[str] = "unhashable"
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        raise AssertionError("never made")


@pytest.mark.parametrize(
    "bad",
    [
        {"s": [None]},
        {"s": ["text"]},
        {"s": "text"},
        {"s": [{"a": 1}]},
        {"s": [FakeDiscoverer]},
        {"s": 5},
        {"s": None},
        {"s": [Unhashable()]},
        {"good": [], "s": [3]},
    ],
)
async def test_reload_contract_what_is_no_configuration_changes_nothing(bad: Any, autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with open_manager({"a": [fake.config]}) as manager:
        await manager.wait_synced()
        before, told = manager.snapshot(), manager.statistics()
        with pytest.raises(TypeError):
            await manager.apply_config(bad)
        await wait_all_tasks_blocked()
        assert manager.snapshot() is before
        assert manager.statistics() == told
        assert (fake.started, fake.running) == (1, 1)
    with pytest.raises(TypeError):
        async with open_manager(bad):
            raise AssertionError("never here")


async def test_configs_are_read_once_and_not_changed(autojump_clock: MockClock) -> None:
    fakes = [synced(name) for name in "ab"]
    configs = {"s": [fake.config for fake in fakes]}
    copy = {name: list(members) for name, members in configs.items()}
    async with open_manager({"s": (fake.config for fake in fakes)}) as manager:
        await manager.wait_synced()
        assert sources(manager.snapshot(), "s") == ["a", "b"]
        await manager.apply_config(configs)
        assert configs == copy
        configs["s"].clear()
        configs["t"] = []
        await wait_all_tasks_blocked()
        assert list(manager.snapshot()) == ["s"]
        assert [fake.running for fake in fakes] == [1, 1]


# --- providers: names and sharing ---


async def test_provider_contract_equal_configurations_share_one_provider(autojump_clock: MockClock) -> None:
    one, equal = synced("same"), synced("same")
    async with open_manager({"a": [one.config, equal.config], "b": [equal.config]}) as manager:
        await manager.wait_synced()
        assert one.started + equal.started == 1
        assert dict(manager.snapshot()) == {"a": (group("same", "1"),), "b": (group("same", "1"),)}
        (told,) = manager.statistics().providers
        assert (told.name, told.sets) == ("fake/0", ("a", "b"))


async def test_provider_contract_equal_configurations_are_found_by_hash(autojump_clock: MockClock) -> None:
    compared = 0

    class Counted(LastingConfig):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__eq__(other)

        __hash__ = LastingConfig.__hash__

    fake = synced("f")
    sets = {f"set-{n}": [Counted("same", fake), Counted(f"own-{n % 50}", fake)] for n in range(2_000)}
    async with open_manager(sets) as manager:
        await manager.wait_synced()
        assert len(manager.statistics().providers) == 51
        started = time.perf_counter()
        await manager.apply_config(sets)
        assert time.perf_counter() - started < 2
        assert compared < 50_000, "every one is compared to the one that it equals, a few times, and to no other"
        assert len(manager.snapshot()) == 2_000
        assert len(manager.snapshot()["set-1999"]) == 2


async def test_provider_names_are_stable_over_reloads_and_never_used_again(autojump_clock: MockClock) -> None:
    a, b, c = synced("a"), synced("b"), synced("c")
    lasting = Lasting("d", 0)

    def names() -> list[str]:
        return [told.name for told in manager.statistics().providers]

    async with open_manager({"s": [a.config, b.config]}) as manager:
        assert names() == ["fake/0", "fake/1"]
        await manager.apply_config({"s": [b.config, a.config]})
        assert names() == ["fake/1", "fake/0"]
        await manager.apply_config({"s": [lasting.config, b.config]})
        assert names() == ["lasting/2", "fake/1"]
        await manager.wait_synced()
        await manager.apply_config({"s": [b.config]})
        await manager.apply_config({"s": [c.config, b.config]})
        assert names() == ["fake/3", "fake/1"]
        await manager.wait_synced()
        await manager.apply_config({"s": [a.config]})
        assert names() == ["fake/4"], "it was forgotten, and is another one now"


async def test_last_known_is_what_is_still_shown_of_an_equal_configuration(autojump_clock: MockClock) -> None:
    first, second = synced("f"), FakeDiscoverer("f")
    async with open_manager({"s": [first.config]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({"s": [second.config]})
        await wait_all_tasks_blocked()
        assert second.options is not None
        assert dict(second.options.last_known()) == {"f": group("f", "1")}
        with trio.fail_after(1):
            await second.send()
        assert dict(second.options.last_known()) == {}


async def test_discoverers_get_the_managers_limits_and_resources(autojump_clock: MockClock) -> None:
    one, two = synced("one"), synced("two")
    limits = Limits(groups=7)
    async with open_manager({"s": [one.config, two.config]}, limits=limits) as manager:
        await manager.wait_synced()
        assert one.options is not None
        assert two.options is not None
        assert one.options.limits is limits
        assert one.options.resources is two.options.resources


async def test_provider_contract_siblings_never_notice(autojump_clock: MockClock) -> None:
    bad, good = FakeDiscoverer("bad"), FakeDiscoverer("good")
    async with open_manager({"s": [bad.config, good.config]}, rng=random.Random(1)) as manager:
        with trio.fail_after(1000):
            await good.send(group("good", "1"))
            for number in range(5):
                await bad.fail(OSError(str(number)))
                await good.send(group("good", str(number)))
        assert (good.started, good.running) == (1, 1)
        await wait_all_tasks_blocked()
        states = {told.name: told.state for told in manager.statistics().providers}
        assert states == {"fake/0": "failing", "fake/1": "synced"}
        assert manager.snapshot()["s"] == (group("good", "4"),)


# --- truth ---


async def test_truth_contract_a_configured_set_is_always_present(autojump_clock: MockClock) -> None:
    silent = FakeDiscoverer("silent")
    async with open_manager({"b": [silent.config], "a": [], "c": ()}) as manager:
        assert list(manager.snapshot().items()) == [("b", ()), ("a", ()), ("c", ())]
        async with manager.subscribe() as updates:
            with trio.fail_after(1):
                update = await updates.receive()
        assert list(update.snapshot) == ["b", "a", "c"]
        assert list(update.changes) == ["b", "a", "c"]


async def test_truth_contract_an_empty_result_is_delivered_and_a_failure_is_not(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}) as manager, trio.open_nursery() as nursery:
        watch = Watch()
        await nursery.start(watch.run, manager)
        with trio.fail_after(1000):
            await fake.send()
            await fake.send(group("x", "1"))
            await wait_all_tasks_blocked()
            start = len(watch.seen)
            await fake.fail(OSError("can't read"))
            await trio.sleep(0.4)
            assert len(watch.seen) == start
            (told,) = manager.statistics().providers
            assert (told.state, told.groups, told.last_success) == ("failing", 1, 0)
            await fake.send()
            await wait_all_tasks_blocked()
            assert watch.last == {"s": []}
        revisions = [revision for revision, _ in watch.seen]
        assert revisions == sorted(set(revisions))
        assert len(watch.seen) == start + 1
        nursery.cancel_scope.cancel()


async def test_truth_contract_every_reload_is_an_update(autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with watched({"s": [fake.config]}) as (manager, watch):
        start = len(watch.seen)
        for _ in range(5):
            await manager.apply_config({"s": [fake.config]})
            await manager.wait_synced()
            await wait_all_tasks_blocked()
        assert [shown for _, shown in watch.seen[start:]] == [{"s": ["f"]}] * 5


# --- waiting, refreshing, statistics ---


async def test_wait_synced_waits_for_a_set_or_for_all(autojump_clock: MockClock) -> None:
    a, b = FakeDiscoverer("a"), FakeDiscoverer("b")
    seq = Sequencer()
    async with open_manager({"a": [a.config], "b": [b.config], "empty": []}) as manager:
        assert manager.unsynced() == ("fake/0", "fake/1")
        with trio.fail_after(10):
            await manager.wait_synced("empty")

            async def wait_for(set_name: str | None, position: int) -> None:
                await manager.wait_synced(set_name)
                async with seq(position):
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for, "b", 1)
                nursery.start_soon(wait_for, None, 3)
                async with seq(0):
                    await b.send()
                    assert manager.unsynced() == ("fake/0",)
                async with seq(2):
                    await a.send()
                    assert manager.unsynced() == ()
            await manager.wait_synced()


async def test_wait_synced_waits_for_the_providers_of_a_reload_in_between(autojump_clock: MockClock) -> None:
    old, new = FakeDiscoverer("old"), FakeDiscoverer("new")
    async with open_manager({"s": [old.config]}) as manager, trio.open_nursery() as nursery:
        synced_at: list[float] = []

        async def wait() -> None:
            await manager.wait_synced("s")
            synced_at.append(trio.current_time())

        nursery.start_soon(wait)
        await trio.sleep(1)
        await manager.apply_config({"s": [new.config]})
        await trio.sleep(1)
        assert synced_at == []
        await new.send()
        await wait_all_tasks_blocked()
        assert synced_at == [2]


@pytest.mark.parametrize("after", [{"s": []}, {}])
async def test_wait_synced_of_a_set_does_not_wait_for_what_a_reload_took_out_of_it(
    after: dict[str, Any], autojump_clock: MockClock
) -> None:
    moved = FakeDiscoverer("moved")
    async with open_manager({"s": [moved.config]}) as manager, trio.open_nursery() as nursery:

        async def reload() -> None:
            await manager.apply_config({**after, "t": [moved.config]}, restart="changed")

        nursery.start_soon(reload)
        with trio.fail_after(60):
            if after:
                await manager.wait_synced("s")
            else:
                with pytest.raises(KeyError):
                    await manager.wait_synced("s")


async def test_wait_synced_and_refresh_of_unknown_sets(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}) as manager, trio.open_nursery() as nursery:
        with pytest.raises(KeyError):
            await manager.wait_synced("nope")
        with pytest.raises(KeyError):
            await manager.refresh("nope")

        async def dropped() -> None:
            with pytest.raises(KeyError):
                await manager.wait_synced("s")

        nursery.start_soon(dropped)
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await manager.apply_config({})


async def test_refresh_looks_again_and_keeps_what_is_shown(autojump_clock: MockClock) -> None:
    a, b = FakeDiscoverer("a"), FakeDiscoverer("b")
    async with open_manager({"a": [a.config], "b": [b.config]}) as manager, trio.open_nursery() as nursery:
        with trio.fail_after(100):
            await a.send(group("x", "1"))
            await b.send(group("y", "1"))
            nursery.start_soon(manager.refresh, "a")
            await trio.sleep(1)
            assert (a.started, b.started) == (2, 1)
            assert sources(manager.snapshot(), "a") == ["x"]
            assert manager.unsynced() == ("fake/0",)
            assert manager.statistics().providers[0].state == "starting"
            await a.send(group("z", "1"))
            await wait_all_tasks_blocked()
            assert sources(manager.snapshot(), "a") == ["z"]
            assert not nursery.child_tasks


async def test_refresh_of_all(autojump_clock: MockClock) -> None:
    fakes = [synced(name) for name in "abc"]
    async with open_manager({"s": [fake.config for fake in fakes]}) as manager:
        await manager.wait_synced()
        with trio.fail_after(1):
            await manager.refresh()
        assert [fake.started for fake in fakes] == [2, 2, 2]


@pytest.mark.parametrize("first", ["wait_synced", "refresh"])
async def test_a_refresh_while_somebody_waits_leaves_nobody_waiting(first: str, autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}) as manager:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getattr(manager, first))
                await wait_all_tasks_blocked()
                nursery.start_soon(manager.refresh)
                await wait_all_tasks_blocked()
                await fake.send()


async def test_refresh_during_a_reload(autojump_clock: MockClock) -> None:
    slow, new = FakeDiscoverer("slow", linger=2, first=[]), synced("new")
    async with open_manager({"s": [slow.config]}) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        nursery.start_soon(manager.apply_config, {"s": [new.config]})
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await manager.refresh()
        assert sources(manager.snapshot(), "s") == ["new"]
        assert trio.current_time() == 2


async def test_statistics_of_everything(autojump_clock: MockClock) -> None:
    ok, failing, silent = synced("ok", "x", "y"), FakeDiscoverer("failing"), FakeDiscoverer("silent")
    configs = {"b": [ok.config, failing.config], "a": [silent.config, ok.config]}
    async with open_manager(configs, name="notify") as manager:
        await trio.sleep(3)
        with trio.fail_after(1):
            await failing.fail(OSError("why"))
        await wait_all_tasks_blocked()
        told = manager.statistics()
        assert (told.name, told.revision, told.reloads, told.last_reload) == ("notify", 2, 1, 0)
        assert (told.stuck, dict(told.resources), told.subscriptions) == ((), {}, ())
        assert [(s.name, s.groups, s.targets, s.providers, s.leaving) for s in told.sets] == [
            ("b", 2, 2, ("fake/0", "fake/1"), ()),
            ("a", 2, 2, ("fake/2", "fake/0"), ()),
        ]
        assert [(p.name, p.sets, p.state, p.groups, p.updates, p.last_error) for p in told.providers] == [
            ("fake/0", ("b", "a"), "synced", 2, 1, None),
            ("fake/1", ("b",), "failing", 0, 0, "OSError: why"),
            ("fake/2", ("a",), "starting", 0, 0, None),
        ]
        async with manager.subscribe(name="me"):
            assert [s.name for s in manager.statistics().subscriptions] == ["me"]
        assert manager.statistics().subscriptions == ()
    assert {p.state for p in manager.statistics().providers} == {"stopped"}


async def test_shared_resources_contract_one_manager_opens_once_and_closes_with_the_last_user(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def opener() -> AsyncIterator[str]:
        log.append("open")
        try:
            yield "thing"
        finally:
            log.append("close")

    @dataclass(frozen=True)
    class Using(DiscovererConfig):
        mechanism: ClassVar[str] = "using"
        number: int

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            return User(options)

    class User:
        def __init__(self, options: DiscovererOptions) -> None:
            self._options = options

        async def run(self, updates: Updates) -> None:
            async with self._options.resources.use("key", opener) as thing:
                await updates.send([group(thing, "1")])
                await trio.sleep_forever()

    async with open_manager({"s": [Using(n) for n in range(10)]}) as manager:
        with trio.fail_after(1):
            await manager.wait_synced()
        assert (log, dict(manager.statistics().resources)) == (["open"], {"key": 10})
        await manager.apply_config({"s": [Using(1)]})
        assert log == ["open", "close"] or log == ["open", "close", "open"]
        await manager.wait_synced()
        assert log == ["open", "close", "open"], "no resource outlives a reload"
        await manager.apply_config({})
        assert log[-1] == "close"
        assert dict(manager.statistics().resources) == {}
        await manager.apply_config({"s": [Using(1)]})
        await manager.wait_synced()
    assert log == ["open", "close"] * 3


def slow_user(log: list[str]) -> DiscovererConfig:
    """Return a mechanism that goes on using a shared resource for a second after it was cancelled."""

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        try:
            yield
        finally:
            log.append("closed")

    class User:
        def __init__(self, options: DiscovererOptions) -> None:
            self._options = options

        async def run(self, updates: Updates) -> None:
            async with self._options.resources.use("key", opener):
                await updates.send([])
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1)
                    log.append("used to the end")

    @dataclass(frozen=True)
    class Using(DiscovererConfig):
        mechanism: ClassVar[str] = "using"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            return User(options)

    return Using()


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_shared_resources_contract_at_the_managers_end_they_are_closed_after_their_users(
    how: str, autojump_clock: MockClock
) -> None:
    log: list[str] = []

    with trio.CancelScope() as scope:
        async with open_manager({"s": [slow_user(log)]}) as manager:
            await manager.wait_synced()
            if how == "cancel":
                scope.cancel()
                await trio.sleep_forever()
    assert log == ["used to the end", "closed"]


async def test_reload_contract_a_resource_is_closed_after_a_user_that_takes_its_time(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []

    async with open_manager({"s": [slow_user(log)]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({})
        assert log == ["used to the end", "closed"]


# --- subscriptions ---


async def test_subscription_contract_first_delivery_is_the_current_state(autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with open_manager({"s": [fake.config]}) as manager:
        await manager.wait_synced()
        for _ in range(3):
            async with manager.subscribe() as updates:
                with trio.fail_after(1):
                    update = await updates.receive()
                assert update.snapshot == manager.snapshot()
                assert update.revision == manager.snapshot().revision
        assert trio.current_time() == 0


async def test_subscription_contract_throttle_of_the_manager_or_ones_own(autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with open_manager({"s": [fake.config]}, throttle=Throttle(3, 3)) as manager:
        await manager.wait_synced()

        async def second(throttle: Throttle | None) -> float:
            async with manager.subscribe(throttle=throttle) as updates:
                await updates.receive()
                start = trio.current_time()
                await manager.apply_config({"s": [fake.config]})
                await updates.receive()
                return trio.current_time() - start

        assert await second(None) == 3
        assert await second(Throttle(0, 0)) == 0
        assert await second(Throttle(1, 1)) == 1


async def test_subscription_contract_a_slow_consumer_holds_up_nobody(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}) as manager, manager.subscribe(throttle=AT_ONCE, name="slow") as slow:
        with trio.fail_after(1):
            async with manager.subscribe(throttle=AT_ONCE) as quick:
                for number in range(100):
                    await fake.send(group("x", str(number)))
                    update = await quick.receive()
                    if not update.snapshot["s"]:  # what was there before the first one
                        update = await quick.receive()
                    assert update.snapshot["s"] == (group("x", str(number)),)
            update = await slow.receive()
            assert update.snapshot["s"] == (group("x", "99"),)


async def test_subscription_contract_a_subscriber_that_leaves_is_forgotten(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}) as manager:
        await wait_all_tasks_blocked()
        before = tasks_living()
        async with manager.subscribe() as updates:
            await updates.receive()
            updates.close()
            with trio.fail_after(1):
                await fake.send(group("x", "1"))
                await fake.send(group("x", "2"))
        with pytest.raises(RuntimeError, match="mine"):
            async with manager.subscribe():
                raise RuntimeError("mine")
        with trio.move_on_after(1) as scope:
            async with manager.subscribe() as updates:
                await updates.receive()
                await updates.receive()
        assert scope.cancelled_caught
        assert manager.statistics().subscriptions == ()
        assert tasks_living() == before
        with pytest.raises(trio.ClosedResourceError):
            await updates.receive()
        with trio.fail_after(1):
            await fake.send(group("x", "3"))


async def test_subscription_contract_the_channel_ends_with_the_manager(autojump_clock: MockClock) -> None:
    watch = Watch()
    async with trio.open_nursery() as nursery:
        async with open_manager({"s": []}) as manager:
            await nursery.start(watch.run, manager)
        with trio.fail_after(1):
            await wait_all_tasks_blocked()
        assert watch.ended
        assert not nursery.child_tasks


async def test_no_polling_contract_an_idle_manager_has_no_timer(autojump_clock: MockClock) -> None:
    fakes = [synced(name) for name in "abc"]
    async with open_manager({"s": [fake.config for fake in fakes]}) as manager, manager.subscribe() as updates:
        await manager.wait_synced()
        await updates.receive()
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_no_polling_contract_nothing_ticks_once_leavers_have_gone(autojump_clock: MockClock) -> None:
    old, new = synced("old"), synced("new")
    async with open_manager({"s": [old.config]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({"s": [new.config]})
        await manager.wait_synced()
        await trio.sleep(15)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


# --- no globals ---


async def test_no_globals_contract_two_managers_do_not_meet(autojump_clock: MockClock) -> None:
    one, other = FakeDiscoverer("same"), FakeDiscoverer("same")
    async with (
        open_manager({"s": [one.config]}, name="one") as first,
        open_manager({"s": [other.config]}, name="other") as second,
    ):
        with trio.fail_after(10):
            await one.send(group("x", "1"))
            assert sources(second.snapshot(), "s") == []
            await other.send(group("y", "1"))
        assert (sources(first.snapshot(), "s"), sources(second.snapshot(), "s")) == (["x"], ["y"])
        assert [m.statistics().providers[0].name for m in (first, second)] == ["fake/0", "fake/0"]
        await first.apply_config({})
        assert (one.running, other.running) == (0, 1)
        assert list(second.snapshot()) == ["s"]


async def test_no_globals_contract_a_manager_after_another(autojump_clock: MockClock) -> None:
    for _ in range(3):
        fake = synced("f")
        async with open_manager({"s": [fake.config]}) as manager:
            await manager.wait_synced()
            assert manager.snapshot().revision == 2
            assert manager.statistics().providers[0].name == "fake/0"


# --- the end ---


async def test_closed_everything_says_so(autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with open_manager({"s": [fake.config]}, name="mine") as manager:
        await manager.wait_synced()
    assert fake.running == 0
    closed = pytest.raises(trio.ClosedResourceError, match="manager mine is closed")
    with closed:
        await manager.apply_config({})
    with closed:
        await manager.wait_synced()
    with closed:
        await manager.refresh()
    with closed:
        async with manager.subscribe():
            raise AssertionError("never here")
    assert sources(manager.snapshot(), "s") == ["f"], "the last state can still be looked at"


async def test_who_waits_while_the_manager_closes_is_told(autojump_clock: MockClock) -> None:
    silent, slow = FakeDiscoverer("silent"), FakeDiscoverer("slow", linger=2, first=[])
    told: list[str] = []

    async with trio.open_nursery() as nursery:
        async with open_manager({"s": [silent.config, slow.config]}) as manager:

            async def waits(name: str, call: Callable[[], Awaitable[None]]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await call()
                told.append(name)

            nursery.start_soon(waits, "wait_synced", manager.wait_synced)
            await wait_all_tasks_blocked()
            nursery.start_soon(waits, "apply", lambda: manager.apply_config({"s": [silent.config]}))
            await wait_all_tasks_blocked()
            nursery.start_soon(waits, "its turn", lambda: manager.apply_config({"s": []}))
            await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await wait_all_tasks_blocked()
    assert sorted(told) == ["apply", "its turn", "wait_synced"]
    assert (silent.running, slow.running) == (0, 0)


class MineError(Exception):
    """The exception of a body."""


@pytest.mark.parametrize("crashing", [False, True], ids=["quiet", "with a crashing discoverer"])
async def test_an_exception_of_the_body_comes_out_as_it_is(crashing: bool, autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f", first=None if crashing else [])
    error = MineError("1")
    with pytest.raises(MineError) as caught:  # noqa: PT012
        async with open_manager({"s": [fake.config]}) as manager:
            if crashing:
                await fake.fail(OSError("at the same time"))
            else:
                await manager.wait_synced()
            raise error
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert fake.running == 0


async def test_an_exception_of_the_body_keeps_its_cause_and_context(autojump_clock: MockClock) -> None:
    with pytest.raises(MineError) as caught:  # noqa: PT012
        async with open_manager():
            try:
                raise KeyError("before")
            except KeyError as before:
                raise MineError from before
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value.__context__, KeyError)
    assert caught.value.__suppress_context__

    with pytest.raises(MineError) as caught:  # noqa: PT012
        async with open_manager():
            try:
                raise KeyError("before")
            except KeyError:
                raise MineError  # noqa: B904 (the context is what is tested)
    assert caught.value.__cause__ is None
    assert isinstance(caught.value.__context__, KeyError)

    outer = OSError("around it all")
    with pytest.raises(MineError) as caught:  # noqa: PT012
        try:
            raise outer
        except OSError:
            async with open_manager():
                raise MineError  # noqa: B904
    assert caught.value.__context__ is outer


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, KeyboardInterrupt, SystemExit, trio.EndOfChannel])
async def test_odd_exceptions_of_the_body_come_out_too(kind: type[BaseException], autojump_clock: MockClock) -> None:
    error = kind()
    fake = synced("f")
    caught: list[BaseException] = []
    try:
        async with open_manager({"s": [fake.config]}):
            raise error
    except BaseException as raised:  # noqa: BLE001
        caught.append(raised)
    assert caught == [error]


async def test_a_group_of_the_body_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    error = ExceptionGroup("mine", [MineError("1"), ExceptionGroup("inner", [MineError("2")])])
    caught: list[BaseException] = []
    try:
        async with open_manager():
            raise error
    except BaseException as raised:  # noqa: BLE001
        caught.append(raised)
    assert caught[0] is error


async def test_an_exception_of_a_body_cancelled_from_outside_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    fake = synced("f")
    error = MineError("while cleaning up")
    caught: list[BaseException] = []
    with trio.CancelScope() as scope:
        try:
            async with open_manager({"s": [fake.config]}):
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    raise error
        except BaseException as raised:  # noqa: BLE001
            caught.append(raised)
    assert caught == [error]


class Fatal(BaseException):
    """Not for anybody's ``except Exception``."""


async def test_what_is_no_exception_in_a_discoverer_ends_the_manager(autojump_clock: MockClock) -> None:
    @dataclass(frozen=True)
    class Fatally(DiscovererConfig):
        mechanism: ClassVar[str] = "fatally"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            raise Fatal

    watch, good = Watch(), synced("good")
    with pytest.RaisesGroup(Fatal, flatten_subgroups=True):
        async with open_manager({"s": [good.config]}) as manager:
            await manager.apply_config({"s": [good.config, Fatally()]})
            await watch.run(manager)
            await trio.sleep_forever()
    assert good.running == 0


async def test_a_failing_body_and_a_fatal_discoverer_are_both_told(autojump_clock: MockClock) -> None:
    class Fatally:
        async def run(self, updates: Updates) -> None:
            await updates.send([])
            try:
                await trio.sleep_forever()
            finally:
                raise Fatal

    with pytest.RaisesGroup(MineError, Fatal, flatten_subgroups=True):
        async with open_manager({"s": [LastingConfig("f", Fatally())]}) as manager:
            await manager.wait_synced()
            raise MineError


async def test_a_fatal_discoverer_comes_out_alone_though_the_block_had_tasks_of_its_own(
    autojump_clock: MockClock,
) -> None:
    class Fatally:
        async def run(self, updates: Updates) -> None:
            await updates.send([])
            await trio.sleep(1)
            raise Fatal

    caught: list[BaseException] = []
    try:
        async with open_manager({"s": [LastingConfig("f", Fatally())]}), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
    except BaseException as raised:  # noqa: BLE001
        caught.append(raised)
    assert len(caught) == 1
    leaves = caught
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in leaves):
        leaves = [
            inner for leaf in leaves for inner in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else (leaf,))
        ]
    assert [type(leaf) for leaf in leaves] == [Fatal], "the cancellation of the block was the manager's own"


# --- cancellation everywhere ---


@pytest.mark.parametrize("linger", [0, 1])
async def test_cancelled_at_every_step_of_a_managers_life_nothing_is_left(
    linger: float, autojump_clock: MockClock
) -> None:
    fakes = [FakeDiscoverer(name, linger=linger, first=[group(name, "1")]) for name in "abc"]
    reached: list[str] = []

    async def life() -> None:
        async with open_manager({"s": [fake.config for fake in fakes[:2]]}) as manager:
            async with manager.subscribe(throttle=AT_ONCE) as updates:
                await updates.receive()
                await manager.wait_synced()
                await manager.apply_config({"s": [fake.config for fake in fakes[1:]]})
                await manager.refresh()
                await updates.receive()
            reached.append("end")
            await manager.apply_config({})

    def check(done: bool) -> None:
        assert [fake.running for fake in fakes] == [0, 0, 0]

    assert await cancel_everywhere(life, check) > 10
    assert reached


@pytest.mark.parametrize("restart", ["all", "changed"])
async def test_apply_cancelled_at_every_step_leaves_the_old_or_the_new(restart: Any, autojump_clock: MockClock) -> None:
    fakes = {name: FakeDiscoverer(name, linger=1, first=[group(name, "1")]) for name in ("old", "stays", "new")}
    old = {"s": [fakes["old"].config, fakes["stays"].config]}
    new = {"s": [fakes["stays"].config, fakes["new"].config], "t": [fakes["new"].config]}
    async with open_manager(old) as manager:
        await manager.wait_synced()
        done = False
        steps = -1
        outcomes = set()
        while not done:
            steps += 1
            with trio.fail_after(1000), trio.CancelScope() as scope:
                if steps == 0:
                    scope.cancel()
                with CancelAfter(steps, scope):
                    await manager.apply_config(new, restart=restart)
            done = not scope.cancelled_caught
            with trio.fail_after(100):
                await manager.wait_synced()
            await trio.sleep(5)
            running = {name: fake.running for name, fake in fakes.items()}
            shown = {name: sources(manager.snapshot(), name) for name in manager.snapshot()}
            if "t" in shown:
                outcomes.add("new")
                assert running == {"old": 0, "stays": 1, "new": 1}
                assert shown == {"s": ["stays", "new"], "t": ["new"]}
            else:
                outcomes.add("old")
                assert running == {"old": 1, "stays": 1, "new": 0}
                assert shown == {"s": ["old", "stays"]}
            assert manager.statistics().stuck == ()
            await manager.apply_config(old)
            await manager.wait_synced()
        assert steps > 2
        assert outcomes == {"old", "new"}


async def test_subscribe_cancelled_at_every_step_leaves_no_subscriber(autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with open_manager({"s": [fake.config]}) as manager:
        await manager.wait_synced()

        async def subscribe() -> None:
            async with manager.subscribe() as updates:
                await updates.receive()
                await trio.lowlevel.checkpoint()

        def check(done: bool) -> None:
            assert manager.statistics().subscriptions == ()

        assert await cancel_everywhere(subscribe, check) > 2


async def test_a_reload_racing_the_close(autojump_clock: MockClock) -> None:
    for linger in (0.0, 1.0):
        for checkpoints in range(12):
            fake, other = FakeDiscoverer("f", linger=linger, first=[]), FakeDiscoverer("g", linger=linger, first=[])
            before = tasks_living()
            outcome: list[str] = []

            async def reload(manager: Manager, new: FakeConfig, outcome: list[str] = outcome) -> None:
                try:
                    await manager.apply_config({"s": [new]})
                    outcome.append("applied")
                except trio.ClosedResourceError:
                    outcome.append("closed")

            with trio.fail_after(100):
                async with trio.open_nursery() as nursery:  # noqa: SIM117 (two ends, one after the other)
                    async with open_manager({"s": [fake.config]}) as manager:
                        await manager.wait_synced()
                        nursery.start_soon(reload, manager, other.config)
                        for _ in range(checkpoints):
                            await trio.lowlevel.checkpoint()
            assert len(outcome) == 1
            assert (fake.running, other.running) == (0, 0)
            assert tasks_living() == before


async def test_the_close_racing_a_reload_that_comes_after(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f", linger=5, first=[])
    seen: list[str] = []
    async with trio.open_nursery() as nursery:  # noqa: SIM117 (two ends, one after the other)
        async with open_manager({"s": [fake.config]}) as manager:
            await manager.wait_synced()

            async def later() -> None:
                await trio.sleep(1)  # while the manager waits for what it closes
                with pytest.raises(trio.ClosedResourceError):
                    await manager.apply_config({"s": [fake.config]})
                with pytest.raises(trio.ClosedResourceError):
                    async with manager.subscribe():
                        raise AssertionError("never here")
                seen.append("told")

            nursery.start_soon(later)
    assert seen == ["told"]
    assert (fake.started, fake.running) == (1, 0)


# --- many, and often ---


async def test_1000_applies_with_1000_updates(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    revisions: list[int] = []
    async with open_manager({"set-0": [fake.config]}) as manager, trio.open_nursery() as nursery:

        async def consume() -> None:
            async with manager.subscribe(throttle=AT_ONCE) as updates:
                async for update in updates:
                    revisions.append(update.revision)  # noqa: PERF401 (seen while it grows)

        async def update() -> None:
            for number in range(1_000):
                await fake.send(group("x", str(number)))

        async def apply() -> None:
            for number in range(1, 1_001):
                await manager.apply_config({f"set-{number}": [fake.config]}, restart="changed")

        nursery.start_soon(consume)
        with trio.fail_after(1000):
            async with trio.open_nursery() as work:
                work.start_soon(update)
                work.start_soon(apply)
        await wait_all_tasks_blocked()
        assert dict(manager.snapshot()) == {"set-1000": (group("x", "999"),)}
        assert revisions == sorted(set(revisions))
        assert revisions[-1] == manager.snapshot().revision == 2_001
        assert fake.started == 1
        nursery.cancel_scope.cancel()


def counts(kinds: tuple[type[Any], ...]) -> dict[str, int]:
    gc.collect()
    found = dict.fromkeys((kind.__name__ for kind in kinds), 0)
    for thing in gc.get_objects():
        if type(thing) in kinds:
            found[type(thing).__name__] += 1
    return found


async def test_reload_contract_nothing_outlives_a_reload(autojump_clock: MockClock) -> None:
    kinds = (Provider, Subscription, Snapshot, Update, trio.CancelScope, trio.Event, trio.Nursery, DiscovererOptions)
    fakes = [synced(name) for name in "abcd"]
    configs = [
        {"s": [fakes[0].config, fakes[1].config], "t": [fakes[1].config]},
        {"s": [fakes[1].config, fakes[2].config]},
        {"t": [fakes[3].config], "s": [fakes[0].config]},
    ]

    async def cycle(manager: Manager) -> None:
        for config in configs:
            await manager.apply_config(config)
            async with manager.subscribe(throttle=AT_ONCE) as updates:
                await updates.receive()
            await manager.wait_synced()
        await trio.sleep(20)
        await wait_all_tasks_blocked()

    async with open_manager() as manager:
        await cycle(manager)
        tasks, before = tasks_living(), counts(kinds)
        for _ in range(67):
            await cycle(manager)
        assert (tasks_living(), counts(kinds)) == (tasks, before)
        assert manager.statistics().reloads > 200


async def test_nothing_is_left_of_a_closed_manager(autojump_clock: MockClock) -> None:
    fake = synced("f")
    async with open_manager({"s": [fake.config]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            await updates.receive()
    gone = weakref.ref(manager)
    fake.options = None
    del manager, updates
    gc.collect()
    assert gone() is None


async def test_backoff_and_seed_are_the_managers(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}, backoff=Backoff(10, 10), rng=random.Random(7)):
        expected = 10 * (1 + random.Random(7).random()) / 2
        with trio.fail_after(100):
            await fake.fail(OSError("x"))
            await fake.send()
        assert trio.current_time() == pytest.approx(expected)


async def test_open_manager_is_a_context_manager_of_its_own(autojump_clock: MockClock) -> None:
    made = cast("AbstractAsyncContextManager[Manager]", open_manager(name="x"))
    async with made as manager:
        assert manager.name == "x"
        assert dict(manager.snapshot()) == {}
        await manager.wait_synced()
        await manager.refresh()
        assert manager.unsynced() == ()
