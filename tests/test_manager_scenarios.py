"""What Prometheus' own manager is tested for, with our manager.

The scenarios are data; the behaviours, told in words there, have a test each, found by its identifier. Where our
contracts go further they stand, and the test says so. Throughout:

- a group without targets is removed, not kept (``snapshots_by_head_rule``, where the table differs);
- a reload restarts every provider, and what is shown is kept until the new runs have reported;
- a set that is removed is missing at once from the next update;
- an update with equal content is no revision, except that every ``apply_config`` is one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions
from trio_sd.manager import Manager, open_manager
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "facts" / "manager_scenarios.json"
FACTS: dict[str, list[dict[str, Any]]] = json.loads(
    (SHARED if SHARED.exists() else HERE / "data" / "manager_scenarios.json").read_text()
)

Updates = trio.MemorySendChannel[Sequence[TargetGroup]]
Test = Callable[..., Any]
AT_ONCE = Throttle(0, 0)

COVERED: dict[str, str] = {}
"""The name of the test of each behaviour, filled by :func:`fact`."""

ELSEWHERE = {
    "TestCoordinationWithReceiver": "test_coordination_with_receiver",
    "TestUnregisterMetrics": "test_manager.py::test_no_globals_contract_a_manager_after_another",
    "code-close": "test_provider.py::test_discoverer_contract_what_was_sent_stays_after_returning",
    "code-throttle": "test_subscription.py::test_subscription_contract_the_pace_backs_off_from_100_ms_to_5_s",
}
"""The tests of what is covered under another name, here or in another file."""


def fact(identifier: str) -> Callable[[Test], Test]:
    """Say which fact a test is about."""

    def note(test: Test) -> Test:
        assert identifier not in COVERED
        COVERED[identifier] = test.__name__
        return test

    return note


# --- mechanisms to play with ---


def groups_of(data: Sequence[Mapping[str, Any]]) -> list[TargetGroup]:
    return [TargetGroup(item["source"], item["targets"], item.get("labels", {})) for item in data]


@dataclass(frozen=True)
class Timed(DiscovererConfig):
    """Sends each of the updates (seconds to wait, groups), and then stays or returns."""

    mechanism: ClassVar[str] = "timed"
    name: str
    updates: tuple[tuple[float, tuple[TargetGroup, ...]], ...]
    returns: bool = False

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        return TimedDiscoverer(self)


class TimedDiscoverer:
    def __init__(self, config: Timed) -> None:
        self._config = config

    async def run(self, updates: Updates) -> None:
        for seconds, groups in self._config.updates:
            await trio.sleep(seconds)
            await updates.send(groups)
        if not self._config.returns:
            await trio.sleep_forever()


def timed(name: str, updates: Sequence[Mapping[str, Any]], *, returns: bool = False) -> Timed:
    return Timed(
        name, tuple([(update["after_ms"] / 1000, tuple(groups_of(update["groups"]))) for update in updates]), returns
    )


@dataclass(frozen=True)
class Static(DiscovererConfig):
    """One group for each address, as Prometheus' own tests have them."""

    mechanism: ClassVar[str] = "static"
    addresses: tuple[str, ...]

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        return StaticDiscoverer(self.addresses)


class StaticDiscoverer:
    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def run(self, updates: Updates) -> None:
        await updates.send([group(str(n), address) for n, address in enumerate(self._addresses)])


def static(*addresses: str) -> Static:
    return Static(addresses)


@dataclass(frozen=True)
class CannotBeBuilt(DiscovererConfig):
    mechanism: ClassVar[str] = "broken"
    number: int

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        raise RuntimeError(f"no discoverer {self.number}")


Shown = dict[str, list[str]]


def shown(state: Mapping[str, Sequence[TargetGroup]]) -> Shown:
    """Return the addresses of each set."""
    return {
        name: [target["__address__"] for found in groups for target in found.targets] for name, groups in state.items()
    }


async def shown_next(updates: trio.MemoryReceiveChannel[Update]) -> Shown:
    with trio.fail_after(60):
        return shown((await updates.receive()).snapshot)


def providers(manager: Manager) -> dict[str, tuple[str, ...]]:
    return {told.name: told.providers for told in manager.statistics().sets}


# --- the order of updates ---


@pytest.mark.parametrize("scenario", FACTS["scenarios"], ids=lambda scenario: str(scenario["id"]))
async def test_updates_order(scenario: dict[str, Any], autojump_clock: MockClock) -> None:
    """All providers feed one set. Every state is seen, in order, at the time when it comes about."""
    expected = [groups_of(snapshot) for snapshot in scenario["expected_snapshots"]]
    if not scenario["table_agrees_with_head_rule"]:
        # Groups without targets are removed, not kept.
        expected = [groups_of(snapshot) for snapshot in scenario["snapshots_by_head_rule"]]
    assert len(expected) == len(scenario["arrival_order"])
    seen: list[tuple[float, list[TargetGroup]]] = []

    async def consume() -> None:
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            async for update in updates:
                found = sorted(update.snapshot["set"], key=lambda item: item.source)
                seen.append((trio.current_time(), found))

    configs = {"set": [timed(name, updates) for name, updates in scenario["providers"].items()]}
    async with open_manager() as manager, trio.open_nursery() as nursery:
        silent = FakeDiscoverer("silent")
        await manager.apply_config({"set": [silent.config]})
        nursery.start_soon(consume)
        await wait_all_tasks_blocked()
        assert seen.pop() == (0, []), "the first update is the state that is there, with the set though it is empty"
        start = manager.snapshot().revision
        await manager.apply_config(configs)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()

    # The reload is an update too. It may come in one with what is found in the very same moment.
    at_once = sum(arrival["at_ms"] == 0 for arrival in scenario["arrival_order"])
    if at_once:
        seen = [state for state in seen if state != (0, [])]
    else:
        assert seen.pop(0) == (0, [])
    arrivals = [arrival["at_ms"] / 1000 for arrival in scenario["arrival_order"]]
    assert [found for _, found in seen] == expected
    assert [at for at, _ in seen] == pytest.approx(arrivals)
    assert manager.snapshot().revision == start + 1 + len(expected)


# --- how it reaches a receiver ---


@pytest.mark.parametrize("scenario", FACTS["coordination_with_receiver"], ids=lambda scenario: str(scenario["id"]))
async def test_coordination_with_receiver(scenario: dict[str, Any], autojump_clock: MockClock) -> None:
    """Each provider feeds a set of its own name, added one after the other; a reader takes its time."""
    configs: dict[str, list[DiscovererConfig]] = {
        name: [timed(name, provider["updates"], returns=provider["then"] == "closes its channel")]
        for name, provider in scenario["providers"].items()
    }
    pace = scenario["throttle_ms"] / 1000
    wanted = [
        {name: groups_of(groups) for name, groups in expected["sets"].items()} for expected in scenario["expected"]
    ]
    with trio.fail_after(5):
        async with open_manager(configs, throttle=Throttle(pace, pace)) as manager, manager.subscribe() as updates:
            for expected, state in zip(scenario["expected"], wanted, strict=True):
                await trio.sleep(expected["reader_waits_ms_before_reading"] / 1000)
                while True:
                    update = await updates.receive()
                    got = {
                        name: sorted(update.snapshot[name], key=lambda item: item.source) for name in update.snapshot
                    }
                    if got == state:
                        break
                    # What was there before anything was found is delivered as well: at once, as contracted.
                    assert all(groups in ([], *(later[name] for later in wanted)) for name, groups in got.items())
                    assert expected is scenario["expected"][0]
            await wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                updates.receive_nowait()


# --- behaviours ---


@fact("TestTargetSetTargetGroupsPresentOnStartup/startup wait with long interval times out")
async def test_startup_with_a_long_interval_the_first_update_does_not_wait_for_the_initial_pause(
    autojump_clock: MockClock,
) -> None:
    """Ours goes further: the state that is there is delivered at once; only what comes after waits 100 ms."""
    long = Throttle(0.1, 360_000)
    async with open_manager({"prometheus": [static("foo:9090")]}, throttle=long) as manager:
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
            assert trio.current_time() == 0
            await manager.apply_config({"prometheus": [static("bar:9090")]})
            with trio.move_on_after(0.099) as scope:
                await updates.receive()
            assert scope.cancelled_caught
            assert await shown_next(updates) == {"prometheus": ["bar:9090"]}
            assert trio.current_time() == pytest.approx(0.1)


@fact("TestTargetSetTargetGroupsPresentOnStartup/startup wait with short interval succeeds")
async def test_startup_with_a_short_interval(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo:9090")]}, throttle=Throttle(0.01, 0.01)) as manager:
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
        assert providers(manager) == {"prometheus": ("static/0",)}


@fact("TestTargetSetTargetGroupsPresentOnStartup/skip startup wait")
async def test_startup_the_first_update_is_not_held_back_for_the_interval(autojump_clock: MockClock) -> None:
    async with (
        open_manager({"prometheus": [static("foo:9090")]}, throttle=Throttle(0.1, 360_000)) as manager,
        manager.subscribe() as updates,
    ):
        with trio.fail_after(0.3):
            while shown((await updates.receive()).snapshot) != {"prometheus": ["foo:9090"]}:
                pass


@fact("TestTargetSetTargetGroupsPresentOnConfigReload")
async def test_targets_present_on_config_reload(autojump_clock: MockClock) -> None:
    """Ours restarts the provider, under the same name; the update comes at once all the same."""
    config = {"prometheus": [static("foo:9090")]}
    async with open_manager(config) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            before = await updates.receive()
            await manager.apply_config(config)
            with trio.fail_after(1):
                after = await updates.receive()
            assert shown(after.snapshot) == {"prometheus": ["foo:9090"]}
            assert after.revision > before.revision
            assert after.changes == {}
            assert trio.current_time() == 0
        assert providers(manager) == {"prometheus": ("static/0",)}


@fact("TestTargetSetTargetGroupsPresentOnConfigRename")
async def test_targets_present_on_config_rename(autojump_clock: MockClock) -> None:
    config = static("foo:9090")
    async with open_manager({"prometheus": [config]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
            await manager.apply_config({"prometheus2": [config]})
            assert await shown_next(updates) == {"prometheus2": ["foo:9090"]}
        assert providers(manager) == {"prometheus2": ("static/0",)}


@fact("TestTargetSetTargetGroupsPresentOnConfigDuplicateAndDeleteOriginal")
async def test_targets_present_on_config_duplicate_and_delete_original(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo:9090")]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
            await manager.apply_config({"prometheus": [static("foo:9090")], "prometheus2": [static("foo:9090")]})
            assert await shown_next(updates) == {"prometheus": ["foo:9090"], "prometheus2": ["foo:9090"]}
            assert providers(manager) == {"prometheus": ("static/0",), "prometheus2": ("static/0",)}
            await manager.apply_config({"prometheus2": [static("foo:9090")]})
            assert await shown_next(updates) == {"prometheus2": ["foo:9090"]}
            assert providers(manager) == {"prometheus2": ("static/0",)}


@fact("TestTargetSetTargetGroupsPresentOnConfigChange")
async def test_targets_present_on_config_change(autojump_clock: MockClock) -> None:
    slow = FakeDiscoverer("slow")
    async with open_manager({"prometheus": [static("foo:9090")]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
            await manager.apply_config({"prometheus": [static("foo:9090")], "prometheus2": [slow.config]})
            assert await shown_next(updates) == {"prometheus": ["foo:9090"], "prometheus2": []}
            with trio.fail_after(1):
                await slow.send(group("0", "bar:9090"))
            assert await shown_next(updates) == {"prometheus": ["foo:9090"], "prometheus2": ["bar:9090"]}
            assert providers(manager) == {"prometheus": ("static/0",), "prometheus2": ("fake/1",)}
            await manager.apply_config({"prometheus": [static("foo:9090")]})
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
            assert providers(manager) == {"prometheus": ("static/0",)}


@fact("TestTargetSetRecreatesTargetGroupsOnConfigChange")
async def test_recreates_target_groups_on_config_change(autojump_clock: MockClock) -> None:
    """Ours shows the old groups until the new provider has reported; then they change places in one update."""
    async with open_manager({"prometheus": [static("foo:9090", "bar:9090")]}) as manager:
        await manager.wait_synced()
        seen: list[Shown] = []
        async with trio.open_nursery() as nursery:

            async def consume() -> None:
                async with manager.subscribe(throttle=AT_ONCE) as updates:
                    async for update in updates:
                        seen.append(shown(update.snapshot))  # noqa: PERF401 (seen while it grows)

            nursery.start_soon(consume)
            await wait_all_tasks_blocked()
            await manager.apply_config({"prometheus": [static("foo:9090")]})
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert seen[0] == {"prometheus": ["foo:9090", "bar:9090"]}
        assert seen[-1] == {"prometheus": ["foo:9090"]}
        assert all(state in (seen[0], seen[-1]) for state in seen)
        assert providers(manager) == {"prometheus": ("static/1",)}


@fact("TestDiscovererConfigs")
async def test_two_configs_of_one_mechanism(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo:9090", "bar:9090"), static("baz:9090")]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090", "bar:9090", "baz:9090"]}
        assert providers(manager) == {"prometheus": ("static/0", "static/1")}


@fact("TestTargetSetRecreatesEmptyStaticConfigs")
async def test_recreates_empty_static_configs(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo:9090")]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"]}
            await manager.apply_config({"prometheus": [Timed("empty", ((0, (TargetGroup("0", []),)),), returns=True)]})
            await manager.wait_synced()
            assert await shown_next(updates) == {"prometheus": []}
        (told,) = manager.statistics().providers
        assert (told.name, told.groups, told.state) == ("timed/1", 0, "synced")


@fact("TestIdenticalConfigurationsAreCoalesced")
async def test_identical_configurations_are_coalesced(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo:9090")], "prometheus2": [static("foo:9090")]}) as manager:
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090"], "prometheus2": ["foo:9090"]}
        assert providers(manager) == {"prometheus": ("static/0",), "prometheus2": ("static/0",)}
        assert len(manager.statistics().providers) == 1


@fact("TestApplyConfigDoesNotModifyStaticTargets")
async def test_apply_config_does_not_modify_the_configuration(autojump_clock: MockClock) -> None:
    configs = {"prometheus": [static("foo:9090", "bar:9090", "baz:9090")]}
    before = copy.deepcopy(configs)
    async with open_manager(configs) as manager:
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            assert await shown_next(updates) == {"prometheus": ["foo:9090", "bar:9090", "baz:9090"]}
    assert configs == before


@fact("TestGaugeFailedConfigs")
async def test_failed_configs_are_told_and_forgotten_with_the_next_reload(autojump_clock: MockClock) -> None:
    """Ours tells of each by name, and goes on trying."""
    async with open_manager({"prometheus": [CannotBeBuilt(n) for n in range(3)]}) as manager:
        async with manager.subscribe() as updates:
            assert await shown_next(updates) == {"prometheus": []}
        await wait_all_tasks_blocked()
        assert [(told.name, told.state, told.last_error) for told in manager.statistics().providers] == [
            (f"broken/{n}", "failing", f"RuntimeError: no discoverer {n}") for n in range(3)
        ]
        await manager.apply_config({"prometheus": [static("foo:9090")]})
        await manager.wait_synced()
        assert [told.state for told in manager.statistics().providers] == ["synced"]


@fact("TestTargetSetTargetGroupsUpdateDuringApplyConfig")
async def test_updates_during_apply_config(autojump_clock: MockClock) -> None:
    """With every provider restarted, so that it starts again 100 times; the 1000 of each are in test_manager.py."""
    fake = FakeDiscoverer("f")
    async with open_manager({"set-0": [fake.config]}) as manager:
        sent: list[int] = []

        async def update(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            for number in range(1_000):
                with trio.move_on_after(0.001):  # a run that is cancelled takes its order with it
                    await fake.send(group("0", f"host-{number}"))
                    sent.append(number)

        with trio.fail_after(1_000):
            async with trio.open_nursery() as nursery:
                await nursery.start(update)
                for number in range(1, 101):
                    await manager.apply_config({f"set-{number}": [fake.config]})
            await fake.send(group("0", "last"))
        assert len(sent) > 500
        assert shown(manager.snapshot()) == {"set-100": ["last"]}
        assert (fake.started, fake.running) == (101, 1)


@fact("TestMetricsCleanupAfterConfigReload")
async def test_statistics_of_what_a_reload_removed_are_gone(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo", "bar")], "other": [static("baz")]}) as manager:
        await manager.wait_synced()
        assert [told.name for told in manager.statistics().sets] == ["prometheus", "other"]
        assert [told.targets for told in manager.statistics().providers] == [2, 1]
        await manager.apply_config({"other": [static("baz")]})
        assert [(told.name, told.targets) for told in manager.statistics().sets] == [("other", 1)]
        assert [(told.name, told.targets) for told in manager.statistics().providers] == [("static/1", 1)]


@fact("TestConfigReloadAndShutdownRace")
@pytest.mark.parametrize("close_first", [False, True])
async def test_config_reload_and_shutdown_race(close_first: bool, autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f", first=[group("0", "foo")])
    ended: list[str] = []

    async def reload(manager: Manager) -> None:
        try:
            await manager.apply_config({})
        except trio.ClosedResourceError:
            ended.append("closed")
        else:
            ended.append("applied")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with open_manager({"prometheus": [fake.config]}) as manager:
                    await manager.wait_synced()
                    if close_first:
                        scope.cancel()
                    nursery.start_soon(reload, manager)
                    if not close_first:
                        await trio.lowlevel.checkpoint()
                        scope.cancel()
                    await trio.sleep_forever()
    assert len(ended) == 1
    assert fake.running == 0


@fact("TestGaugeLastUpdateTimestamp")
async def test_the_time_of_the_last_success(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [Timed("t", ((2, (group("0", "foo"),)),))]}) as manager:
        await manager.wait_synced()
        await trio.sleep(5)
        (told,) = manager.statistics().providers
        assert (told.last_attempt, told.last_success) == (0, 2)


# --- rules read from the source ---


@fact("code-identical-config-in-one-set")
async def test_identical_config_in_one_set(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [static("foo"), static("foo")]}) as manager:
        await manager.wait_synced()
        assert shown(manager.snapshot()) == {"prometheus": ["foo"]}
        assert providers(manager) == {"prometheus": ("static/0",)}


@fact("code-removed-set-last-update")
async def test_a_removed_set_is_missing_from_the_update_that_follows(autojump_clock: MockClock) -> None:
    async with open_manager({"a": [static("foo")], "b": []}) as manager:
        await manager.wait_synced()
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            await updates.receive()
            await manager.apply_config({"b": []})
            assert await shown_next(updates) == {"b": []}
            await manager.apply_config({})
            assert await shown_next(updates) == {}


@fact("code-empty-set")
async def test_an_empty_set_is_an_empty_list(autojump_clock: MockClock) -> None:
    """Ours needs no provider to stand in for it."""
    async with open_manager({"empty": [], "failed": [CannotBeBuilt(1)]}) as manager, manager.subscribe() as updates:
        assert await shown_next(updates) == {"empty": [], "failed": []}
        assert providers(manager)["empty"] == ()


@fact("code-failed-config-retry")
async def test_a_failed_config_is_tried_again(autojump_clock: MockClock) -> None:
    """Ours does not even wait for a reload."""
    fails = {"left": 2}

    @dataclass(frozen=True)
    class Twice(DiscovererConfig):
        mechanism: ClassVar[str] = "twice"

        def discoverer(self, options: DiscovererOptions) -> Discoverer:
            if fails["left"]:
                fails["left"] -= 1
                raise RuntimeError("not yet")
            return StaticDiscoverer(["foo"])

    async with open_manager({"prometheus": [Twice()]}) as manager:
        await wait_all_tasks_blocked()
        assert fails["left"] == 1
        await manager.apply_config({"prometheus": [Twice()]})
        await wait_all_tasks_blocked()
        assert fails["left"] == 0
        with trio.fail_after(1):
            await manager.wait_synced()
        assert shown(manager.snapshot()) == {"prometheus": ["foo"]}


@fact("code-partly-failed-set")
async def test_a_partly_failed_set(autojump_clock: MockClock) -> None:
    async with open_manager({"prometheus": [CannotBeBuilt(1), static("foo")]}) as manager:
        await wait_all_tasks_blocked()
        assert shown(manager.snapshot()) == {"prometheus": ["foo"]}
        assert [told.state for told in manager.statistics().providers] == ["failing", "synced"]


@fact("code-equality")
async def test_equality_is_that_of_values_and_types(autojump_clock: MockClock) -> None:
    @dataclass(frozen=True)
    class Other(Static):
        mechanism: ClassVar[str] = "other"

    configs = {"a": [static("foo"), Other(("foo",))], "b": [static("foo")], "c": [Other(("foo",)), static("bar")]}
    async with open_manager(configs) as manager:
        assert providers(manager) == {
            "a": ("static/0", "other/1"),
            "b": ("static/0",),
            "c": ("other/1", "static/2"),
        }


@fact("code-provider-names")
async def test_provider_numbers_are_not_used_again(autojump_clock: MockClock) -> None:
    async with open_manager({"s": [static("0")]}) as manager:
        for number in range(1, 4):
            await manager.wait_synced()
            await manager.apply_config({"s": [static(str(number))]})
            assert providers(manager) == {"s": (f"static/{number}",)}


@fact("code-group-merge")
async def test_groups_are_merged_by_source(autojump_clock: MockClock) -> None:
    """A group that is no group is not skipped: it is the provider's failure, and nothing of its update counts."""
    fake = FakeDiscoverer("f")
    nothing: Any = None
    async with open_manager({"s": [fake.config]}) as manager:
        with trio.fail_after(10):
            await fake.send(group("a", "1"), group("b", "2"))
            await fake.send(group("b", "3"))
            assert shown(manager.snapshot()) == {"s": ["1", "3"]}
            await fake.send(group("a"))
            assert shown(manager.snapshot()) == {"s": ["3"]}
            await fake.send(group("c", "4"), nothing)
        await wait_all_tasks_blocked()
        assert shown(manager.snapshot()) == {"s": ["3"]}
        assert manager.statistics().providers[0].state == "failing"


@fact("code-same-source-two-providers")
async def test_sources_are_told_apart_by_provider(autojump_clock: MockClock) -> None:
    async with open_manager({"s": [static("foo"), static("bar")]}) as manager:
        await manager.wait_synced()
        assert [found.source for found in manager.snapshot()["s"]] == ["0", "0"]
        assert shown(manager.snapshot()) == {"s": ["foo", "bar"]}


@fact("code-order")
async def test_order_is_that_of_the_configuration_then_of_the_sources(autojump_clock: MockClock) -> None:
    """Ours is defined within a provider as well."""
    first = FakeDiscoverer("first", first=[group("b", "2"), group("a", "1"), group("c", "3")])
    async with open_manager({"z": [static("0"), first.config], "a": [first.config, static("0")]}) as manager:
        await manager.wait_synced()
        assert list(shown(manager.snapshot()).items()) == [("z", ["0", "1", "2", "3"]), ("a", ["1", "2", "3", "0"])]


@fact("code-slow-receiver")
async def test_a_slow_receiver_gets_the_state_of_the_time_when_it_reads(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f")
    async with open_manager({"s": [fake.config]}) as manager, manager.subscribe() as updates:
        with trio.fail_after(1_000):
            await updates.receive()
            for number in range(100):
                await fake.send(group("0", str(number)))
                await trio.sleep(1)
        assert await shown_next(updates) == {"s": ["99"]}
        await trio.sleep(100)
        with pytest.raises(trio.WouldBlock):
            updates.receive_nowait()


@fact("code-stop")
async def test_the_end_cancels_providers_and_ends_the_channel(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f", first=[])
    ended = trio.Event()

    async def consume() -> None:
        async with manager.subscribe() as updates:
            async for _ in updates:
                pass
        ended.set()

    async with trio.open_nursery() as nursery:
        async with open_manager({"s": [fake.config]}) as manager:
            nursery.start_soon(consume)
            await wait_all_tasks_blocked()
        assert fake.running == 0
        with trio.fail_after(1):
            await ended.wait()


@fact("code-reload-obsolete")
async def test_a_reload_waits_until_an_obsolete_provider_has_cleaned_up(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("f", linger=3, first=[group("0", "foo")])
    async with open_manager({"s": [fake.config], "t": [static("bar")]}) as manager:
        await manager.wait_synced()
        await manager.apply_config({"t": [static("bar")]})
        assert (trio.current_time(), fake.running) == (3, 0)
        assert shown(manager.snapshot()) == {"t": ["bar"]}
        assert [told.name for told in manager.statistics().providers] == ["static/1"]


# --- and nothing is left out ---


def test_no_scenario_is_left_out() -> None:
    tables = FACTS["scenarios"] + FACTS["coordination_with_receiver"]
    assert len({scenario["id"] for scenario in tables}) == len(tables) > 10
    told = {item["id"] for item in FACTS["behaviours"] + FACTS["behaviours_read_from_manager_go"]}
    assert COVERED.keys() & ELSEWHERE.keys() == set()
    assert COVERED.keys() | ELSEWHERE.keys() == told
    for name in [*COVERED.values(), *ELSEWHERE.values()]:
        file, _, test = name.rpartition("::")
        text = (HERE / (file or Path(__file__).name)).read_text()
        assert f"\nasync def {test}(" in text or f"\ndef {test}(" in text, name


def test_the_scenarios_kept_here_are_the_shared_ones() -> None:
    assert json.loads((HERE / "data" / "manager_scenarios.json").read_text()) == FACTS
