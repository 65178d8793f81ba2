"""Targets after relabeling: the view of a store beside a simple model, and what subscribers of a manager get of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_sd
from trio_sd import Labels, SetConfigs, TargetGroup, relabeled
from trio_sd.config import ScrapeJob
from trio_sd.manager import Manager, open_manager
from trio_sd.relabel import RelabelConfig, Relabeler
from trio_sd.relabeled import RelabeledTargets, RelabelStatistics
from trio_sd.set_configs import Labeling
from trio_sd.snapshots import Snapshot, Update
from trio_sd.store import TargetStore
from trio_sd.target_labels import Labeler, TargetLabeler
from trio_sd.testing import FakeDiscoverer, cancel_everywhere, group

from .managing import AT_ONCE, sources, synced, until

PATIENCE: Final = 20.0

DROP_ODD: Final = RelabelConfig(("__address__",), regex=".*[13579]", action="drop")
SHARD: Final = RelabelConfig(("__address__",), regex="(.).*", target_label="__address__", replacement="$1")


def job(*rules: RelabelConfig, name: str = "web") -> ScrapeJob:
    return ScrapeJob(job_name=name, relabel_configs=rules)


def addresses(state: Mapping[str, Sequence[TargetGroup]], set_name: str = "web") -> list[str]:
    return [target["__address__"] for found in state[set_name] for target in found.targets]


# A model: everything anew, each time

Shown = dict[str, list[tuple[str, list[Labels]]]]


def expected(store: TargetStore, labelings: Mapping[tuple[str, str], Labeling | None]) -> Shown:
    shown: Shown = {}
    for set_name, providers in store.arrangement().items():
        seen: set[Labels] = set()
        rows = shown[set_name] = []
        for provider in providers:
            labeling = labelings[set_name, provider]
            for source, found in sorted(store.groups(provider).items()):
                labels = [labels_of(labeling, target, found.labels) for target in found.targets]
                new = [one for one in dict.fromkeys(labels) if one is not None and one not in seen]
                seen.update(new)
                if new:
                    rows.append((source, new))
    return shown


def labels_of(labeling: Labeling | None, target: Mapping[str, str], group: Mapping[str, str]) -> Labels | None:
    if labeling is None:
        return Labels({name: value for name, value in {**group, **target}.items() if value})
    labeler = labeling.labeler()
    labels = labeler.target_labels(labeler.discovered_labels(target, group)).labels
    return None if labels is None else Labels(labels)


def shown(snapshot: Snapshot) -> Shown:
    for groups in snapshot.values():
        assert all(found.labels == {} and found.targets for found in groups)
    return {name: [(g.source, [Labels(t) for t in g.targets]) for g in groups] for name, groups in snapshot.items()}


class Copy:
    """What a consumer knows that only ever looks at changes."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, list[TargetGroup]]] = {}

    def take(self, update: Update) -> None:
        for name, found in update.changes.items():
            mine = self.sets.setdefault(name, {})
            for source in {one.source for one in found.updated}.union(found.removed):
                mine.pop(source, None)
            for one in found.updated:
                mine.setdefault(one.source, []).append(one)
            if name not in update.snapshot:
                assert not self.sets.pop(name)
        assert self.sets.keys() == update.snapshot.keys()
        for name, groups in update.snapshot.items():
            assert {source: list(found) for source, found in self.sets[name].items()} == by_source(groups)


def by_source(groups: Sequence[TargetGroup]) -> dict[str, list[TargetGroup]]:
    found: dict[str, list[TargetGroup]] = {}
    for one in groups:
        found.setdefault(one.source, []).append(one)
    return found


PROVIDERS: Final = ("a/0", "b/0", "c/0")
RULES: Final = (None, job(), job(DROP_ODD), job(SHARD), job(SHARD, name="db"))


@st.composite
def some_groups(draw: st.DrawFn) -> list[TargetGroup]:
    sources = draw(st.lists(st.sampled_from("rst"), max_size=3, unique=True))
    names = st.lists(st.sampled_from(["x1", "x2", "y1", "y2", "z/bad"]), max_size=4)
    labels = st.sampled_from([{}, {"l": "1"}, {"l": ""}])
    return [group(source, *draw(names), labels=draw(labels)) for source in sources]


layouts = st.dictionaries(
    st.sampled_from(["web", "db"]),
    st.tuples(st.lists(st.sampled_from(PROVIDERS), unique=True, max_size=3), st.sampled_from(RULES)),
    max_size=2,
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from(PROVIDERS), some_groups()),
        st.tuples(st.just("apply"), layouts, st.booleans()),
        st.tuples(st.just("expire"), st.none(), st.none()),
        st.tuples(st.just("follow"), st.none(), st.none()),
        st.tuples(st.just("take"), st.none(), st.none()),
    ),
    min_size=3,
    max_size=14,
)


@given(operations)
@settings(deadline=None)
def test_the_view_is_what_relabeling_everything_anew_would_show(steps: list[tuple[str, object, object]]) -> None:
    store = TargetStore()
    labelings: dict[tuple[str, str], Labeling | None] = {}
    view = RelabeledTargets(store, lambda: labelings, "scrape")
    early, late = view.reader(), view.reader()
    early_copy, late_copy = Copy(), Copy()

    def follow() -> None:
        for _ in view.follow():
            pass
        assert shown(view.snapshot()) == expected(store, labelings)
        update = early.read()
        early.given(update)
        early_copy.take(update)

    for kind, first, second in steps:
        if kind == "report":
            assert isinstance(first, str)
            assert isinstance(second, list)
            store.report(first, second)
        elif kind == "apply":
            assert isinstance(first, dict)
            sets = {name: providers for name, (providers, _) in first.items()}
            store.apply(sets, restarted=PROVIDERS if second else (), deadline=1.0)
            before = labelings
            labelings = {
                (name, provider): before.get((name, provider))
                if provider in store.leaving.get(name, ())
                else first[name][1]
                for name, providers in store.arrangement().items()
                for provider in providers
            }
        elif kind == "expire":
            store.expire(1.0)
        elif kind == "take":
            update = late.read()
            late.given(update)
            late_copy.take(update)
        else:
            follow()
    follow()
    update = late.read()
    late.given(update)
    late_copy.take(update)


def test_the_work_is_proportional_to_the_change_and_done_in_small_steps() -> None:
    calls = 0

    @dataclass(frozen=True)
    class Counting:
        def labeler(self) -> Labeler:
            return CountingLabeler(job(), Relabeler(()))

    class CountingLabeler(TargetLabeler):
        def target_labels(self, discovered: Mapping[str, str]) -> trio_sd.target_labels.Outcome:
            nonlocal calls
            calls += 1
            return super().target_labels(discovered)

    store = TargetStore()
    store.apply({"web": ["a/0"], "db": ["a/0", "b/0"]}, restarted=["a/0", "b/0"], deadline=0.0)
    labelings = {key: Counting() for key in [("web", "a/0"), ("db", "a/0"), ("db", "b/0")]}
    view = RelabeledTargets(store, lambda: labelings, "scrape")
    store.report("a/0", [group(f"{n:05}", f"a{n}") for n in range(2_000)])
    store.report("b/0", [group(f"{n:05}", f"b{n}") for n in range(2_000)])
    steps, most = 0, 0
    before = calls
    for _ in view.follow():
        steps, most, before = steps + 1, max(most, calls - before), calls
    assert calls == 6_000
    assert steps > 20
    assert most <= 256
    assert view.snapshot().target_count("db") == 4_000
    calls = 0
    store.report("b/0", [group("00007", "changed")])
    for _ in view.follow():
        pass
    assert calls == 1
    store.report("a/0", [group("00007", "changed")])
    for _ in view.follow():
        pass
    assert calls == 3
    assert view.snapshot().target_count("db") == 3_999  # both say "changed"


# What subscribers of a manager get


async def test_targets_have_their_final_labels(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    meta = RelabelConfig(("__meta_zone",), target_label="zone")
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job(meta, DROP_ODD)})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        first = await updates.receive()
        assert dict(first.snapshot) == {"web": ()}
        targets = [{"__address__": "x:80"}, {"__address__": "x:81"}]
        await fake.send(TargetGroup("s", targets, {"__meta_zone": "e"}))
        update = await updates.receive()
        (found,) = update.snapshot["web"]
        assert found.source == "s"
        assert found.labels == {}
        assert found.targets == (
            {
                "__address__": "x:80",
                "__metrics_path__": "/metrics",
                "__scheme__": "http",
                "__scrape_interval__": "1m",
                "__scrape_timeout__": "10s",
                "instance": "x:80",
                "job": "web",
                "zone": "e",
            },
        )
        assert update.changes["web"].updated == (found,)
        assert update.revision == update.snapshot.revision == manager.snapshot().revision
        (statistics,) = manager.statistics().sets
        assert statistics.relabeled == RelabelStatistics(1, 1, 0, 0, ())


async def test_a_change_that_rules_hide_is_no_update(autojump_clock: MockClock) -> None:
    fake = synced("a", "s")
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job(DROP_ODD)})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await updates.receive()
        revision = manager.snapshot().revision
        await fake.send(group("t", "1"), group("u", "3"))
        await wait_all_tasks_blocked()
        assert manager.snapshot().revision > revision
        with pytest.raises(trio.WouldBlock):
            updates.receive_nowait()
        (subscription,) = manager.statistics().subscriptions
        assert (subscription.lag, subscription.behind_since) == (0, None)
        await fake.send(group("u", "2"))
        update = await updates.receive()
        assert [one.source for one in update.changes["web"].updated] == ["u"]
        await fake.send(group("u", "3"))
        assert (await updates.receive()).changes["web"].removed == ("u",)


async def test_what_is_taken_after_syncing_is_complete(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a", first=[group("s", "x")])
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await manager.wait_synced()
        assert addresses((await updates.receive()).snapshot) == ["x"]
        async with manager.subscribe(relabel=True) as others:
            assert addresses((await others.receive()).snapshot) == ["x"]
        await fake.send(group("s", "y"))
        assert addresses((await updates.receive()).snapshot) == ["y"]  # the offer of "x" was withdrawn


async def test_truth_contract_an_offer_is_withdrawn_when_the_store_changes(autojump_clock: MockClock) -> None:
    fake = synced("a", "s")
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await manager.wait_synced()
        await wait_all_tasks_blocked()
        manager._store.report("fake/0", [group("s", "newer")])
        with pytest.raises(trio.WouldBlock):
            updates.receive_nowait()  # and not what it was a moment ago
        assert addresses((await updates.receive()).snapshot) == ["newer"]


async def test_new_rules_apply_at_once_to_what_stays(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a", first=[group("s", "1", "2")])
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await until(updates, lambda update: addresses(update.snapshot) == ["1", "2"])
        await manager.apply_config(SetConfigs({"web": [fake.config]}, {"web": job(DROP_ODD)}), restart="changed")
        assert addresses((await updates.receive()).snapshot) == ["2"]
        assert fake.started == 1


async def test_reload_contract_what_leaves_keeps_its_own_rules(autojump_clock: MockClock) -> None:
    """New rules are for the new discoverer; what the old one had found must not disappear because of them."""
    old, new = FakeDiscoverer("old", first=[group("s", "1")]), FakeDiscoverer("new")
    async with (
        open_manager(SetConfigs({"web": [old.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await until(updates, lambda update: addresses(update.snapshot) == ["1"])
        await manager.apply_config(SetConfigs({"web": [new.config]}, {"web": job(DROP_ODD)}))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            updates.receive_nowait()
        await new.send(group("t", "1", "2"))
        update = await updates.receive()
        assert addresses(update.snapshot) == ["2"]
        assert update.changes["web"].removed == ("s",)


async def test_duplicates_are_shown_once_by_the_first_that_has_them(autojump_clock: MockClock) -> None:
    one, two = synced("a", "s"), synced("b", "r")
    async with (
        open_manager(SetConfigs({"web": [one.config, two.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        update = await until(updates, lambda update: manager.statistics().sets[0].targets == 2)
        assert [(g.source, len(g.targets)) for g in update.snapshot["web"]] == [("s", 1)]
        await one.send(group("s", "2"))
        update = await updates.receive()
        assert [(g.source, g.targets[0]["__address__"]) for g in update.snapshot["web"]] == [("s", "2"), ("r", "1")]
        await one.send(group("s", "1", "1"))
        update = await updates.receive()
        assert update.changes["web"].removed == ("r",)
        assert manager.statistics().sets[0].relabeled == RelabelStatistics(1, 0, 2, 0, ())


async def test_targets_that_cant_be_used_are_left_out_and_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fake = FakeDiscoverer("a", first=[group("s", "http://x/", "y")])
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await manager.wait_synced()
        assert addresses((await updates.receive()).snapshot) == ["y"]
        message = '"http://x/" is not a valid hostname'
        assert manager.statistics().sets[0].relabeled == RelabelStatistics(1, 0, 0, 1, (message,))
        assert caplog.messages == [f"manager scrape: 1 targets of web can't be used: {message}"]
        await fake.send(group("s", "x"))
        assert manager.statistics().sets[0].relabeled is not None
        await updates.receive()
        assert manager.statistics().sets[0].relabeled == RelabelStatistics(1, 0, 0, 0, ())


async def test_without_rules_a_target_has_the_labels_of_its_group(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a", first=[group("s", "x", labels={"zone": "e", "__address__": "hidden"})])
    async with open_manager({"web": [fake.config]}) as manager, manager.subscribe(relabel=True) as updates:
        await manager.wait_synced()
        assert (await updates.receive()).snapshot["web"][0].targets == ({"__address__": "x", "zone": "e"},)


async def test_nothing_runs_when_the_last_subscriber_has_gone(autojump_clock: MockClock) -> None:
    fake = synced("a", "s")
    async with open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager:
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with manager.subscribe(relabel=True):
            async with manager.subscribe(relabel=True) as updates:
                await manager.wait_synced()
                await updates.receive()
            assert manager.statistics().sets[0].relabeled is not None
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert manager.statistics().sets[0].relabeled is None
        assert manager.statistics().subscriptions == ()


async def test_the_channel_ends_when_the_manager_is_closed(autojump_clock: MockClock) -> None:
    fake = synced("a", "s")
    held: list[Manager] = []
    ready, over = trio.Event(), trio.Event()

    async def consume() -> None:
        async with held[0].subscribe(relabel=True) as updates:
            ready.set()
            async for _ in updates:
                pass
        over.set()

    async with trio.open_nursery() as nursery:
        async with open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager:
            held.append(manager)
            nursery.start_soon(consume)
            await ready.wait()
        with trio.fail_after(PATIENCE):
            await over.wait()
        with pytest.raises(trio.ClosedResourceError):
            async with manager.subscribe(relabel=True):
                pass


async def test_before_the_first_configuration_there_is_nothing(tmp_path: Path) -> None:
    """What was restored is not shown without rules."""
    fake = FakeDiscoverer("a", first=[group("s", "1", "2")])
    configs = SetConfigs({"web": [fake.config]}, {"web": job(DROP_ODD)})
    async with open_manager(configs, state_path=tmp_path / "state") as manager:
        await manager.wait_synced()
    silent = FakeDiscoverer("a")
    async with (
        open_manager(state_path=tmp_path / "state") as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        assert dict((await updates.receive()).snapshot) == {}
        await manager.apply_config(SetConfigs({"web": [silent.config]}, {"web": job(DROP_ODD)}))
        update = await updates.receive()
        assert addresses(update.snapshot) == ["2"]
        assert update.snapshot.stale.keys() == {"web"}
        await silent.send(group("s", "1", "2"))
        assert (await updates.receive()).snapshot.stale == {}


async def test_cancelled_at_any_step_it_leaves_nothing() -> None:
    async def scenario() -> None:
        fake = synced("a", "s")
        async with (
            open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
            manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
        ):
            await until(updates, lambda update: addresses(update.snapshot) == ["1"])
            await manager.apply_config(SetConfigs({"web": [fake.config]}, {"web": job(SHARD)}))
            await fake.send(group("s", "2"))
            await until(updates, lambda update: addresses(update.snapshot) == ["2"])

    await cancel_everywhere(scenario)


async def test_a_loaded_configuration_brings_its_rules(tmp_path: Path, autojump_clock: MockClock) -> None:
    rules = [{"source_labels": ["__address__"], "regex": "b.*", "action": "drop"}]
    static = [{"targets": ["a:1", "b:1"]}]
    document = {
        "scrape_configs": [{"job_name": "web", "static_configs": static, "relabel_configs": rules}],
        "alerting": {"alertmanagers": [{"static_configs": static, "relabel_configs": rules, "path_prefix": "/x"}]},
    }
    (tmp_path / "p.yml").write_text(json.dumps(document))
    config = trio_sd.load_config(tmp_path / "p.yml")
    async with open_manager(config.scrape) as manager, manager.subscribe(relabel=True) as updates:
        await manager.wait_synced()
        assert [t["instance"] for t in (await updates.receive()).snapshot["web"][0].targets] == ["a:1"]
    async with open_manager(config.notify, name="notify") as manager, manager.subscribe(relabel=True) as updates:
        await manager.wait_synced()
        (target,) = (await updates.receive()).snapshot["config-0"][0].targets
        assert target == {"__address__": "a:1", "__scheme__": "http", "__alerts_path__": "/x/api/v2/alerts"}


async def test_truth_contract_what_is_taken_after_syncing_is_the_newest(autojump_clock: MockClock) -> None:
    """Also when a long pass is under way as the change comes."""
    fake = FakeDiscoverer("a", first=[group("s", *map(str, range(5_000)))])
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await until(updates, lambda update: len(addresses(update.snapshot)) == 5_000)
        await fake.send(group("s", *map(str, range(4_000))))
        await trio.lowlevel.checkpoint()
        await fake.send(group("s", "last"))
        await manager.wait_synced()
        assert addresses((await updates.receive()).snapshot) == ["last"]


async def test_who_takes_every_update_has_skipped_none(autojump_clock: MockClock) -> None:
    fake = synced("a", "s")
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job(DROP_ODD)})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as updates,
    ):
        await manager.wait_synced()
        await updates.receive()
        for number in range(1, 21):
            await fake.send(group("s", str(2 * number + 1)))  # dropped
        await fake.send(group("s", "2"))
        await manager.wait_synced()
        (before,) = manager.statistics().subscriptions
        await updates.receive()
        await wait_all_tasks_blocked()
        (after,) = manager.statistics().subscriptions
    assert (before.lag, before.skipped, after.lag, after.skipped, after.delivered) == (1, 0, 0, 0, 2)
    assert before.behind_since is not None
    assert after.behind_since is None


def test_sets_that_settle_one_by_one_cost_work_for_themselves_only() -> None:
    """Of a reload that changes every set, each leaver that goes is work in its own set."""
    count = 300
    store = TargetStore()
    sets = {f"web-{number}": [f"old/{number}"] for number in range(count)}
    store.apply(sets, restarted=(), deadline=0.0)
    for (name,) in sets.values():
        store.report(name, [group("s", name)])
    labelings: dict[tuple[str, str], Labeling | None] = {(s, p): None for s, (p,) in sets.items()}
    view = RelabeledTargets(store, lambda: labelings, "scrape")
    list(view.follow())
    new = {f"web-{number}": [f"new/{number}"] for number in range(count)}
    store.apply(new, restarted=[name for (name,) in new.values()], deadline=9.0)
    labelings = {(s, p): None for s, providers in store.arrangement().items() for p in providers}
    list(view.follow())
    looked_at = 0

    def counted(one_set: object) -> Iterator[int]:
        nonlocal looked_at
        looked_at += 1
        yield from settle(one_set)  # type: ignore[arg-type]  # of a set, which is private to the room

    settle = relabeled._Set.settle
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relabeled._Set, "settle", counted)
        for number in range(count):
            store.report(f"new/{number}", [group("s", "x")])
            list(view.follow())
    assert looked_at == count
    assert shown(view.snapshot()) == expected(store, labelings)


def test_one_large_group_is_done_in_small_steps() -> None:
    store = TargetStore()
    store.apply({"web": ["a/0"]}, restarted=["a/0"], deadline=0.0)
    labelings = {("web", "a/0"): job()}
    view = RelabeledTargets(store, lambda: labelings, "scrape")
    store.report("a/0", [group("s", *map(str, range(5_000)))])
    assert len(list(view.follow())) > 20
    store.report("a/0", [group("s", *map(str, range(4_999)))])
    assert len(list(view.follow())) > 20


def test_what_rules_hide_is_not_stale() -> None:
    store = TargetStore()
    store.restore({"web": ["a/0"], "db": ["a/0"]}, {"a/0": ([group("s", "1")], 100.0, 0.0)})
    labelings = {("web", "a/0"): job(), ("db", "a/0"): job(DROP_ODD)}
    view = RelabeledTargets(store, lambda: labelings, "scrape")
    list(view.follow())
    assert view.snapshot().stale == {"web": 100.0}


async def test_targets_that_cant_be_used_are_told_once_a_set_and_again_for_another_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fakes = [FakeDiscoverer(name, first=[group("s", f"{name}/")]) for name in "abc"]
    async with (
        open_manager(SetConfigs({"web": [fake.config for fake in fakes]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True),
    ):
        await manager.wait_synced()
        told = len(caplog.messages)
        assert "3 targets of web can't be used: " in caplog.messages[-1]
        await fakes[0].send(group("s", "a/", "a/b"))
        await manager.wait_synced()
        assert len(caplog.messages) == told + 1
        assert '4 targets of web can\'t be used: "b/" is' in caplog.messages[-1]
        await fakes[1].send(group("t", "fine"))
        await manager.wait_synced()
        assert len(caplog.messages) == told + 1


def test_what_can_not_make_labels_is_refused() -> None:
    with pytest.raises(TypeError, match="the labeling of set web has no method labeler: 1"):
        SetConfigs({}, {"web": 1})  # type: ignore[dict-item]  # that is the point


# What several have, what is not done twice, and who is told

SAME: Final = RelabelConfig(("__address__",), target_label="__address__", replacement="same")


class Viewed:
    """A store, and its view by one labeling of everything."""

    def __init__(self, labeling: Labeling, *providers: str) -> None:
        self.labeling = labeling
        self.store = TargetStore()
        self.labelings: dict[tuple[str, str], Labeling | None] = {}
        self.apply(*providers)
        self.view = RelabeledTargets(self.store, lambda: self.labelings, "scrape")

    def apply(self, *providers: str) -> None:
        self.store.apply({"web": providers}, restarted=[], deadline=0.0)
        self.labelings = {("web", provider): self.labeling for provider in providers}


def test_what_several_have_is_shown_by_the_first_in_the_order_of_now() -> None:
    """A reload that only changes the order of the configurations moves it."""
    viewed = Viewed(job(SAME), "a/0", "b/0")
    viewed.store.report("a/0", [group("a", "1")])
    viewed.store.report("b/0", [group("b", "2")])
    list(viewed.view.follow())
    assert sources(viewed.view.snapshot()) == ["a"]
    viewed.apply("b/0", "a/0")
    list(viewed.view.follow())
    assert sources(viewed.view.snapshot()) == ["b"]


def test_one_that_comes_first_takes_over_from_the_one_that_showed_it() -> None:
    viewed = Viewed(job(SAME), "a/0", "b/0", "c/0")
    viewed.store.report("b/0", [group("b", "2")])
    viewed.store.report("c/0", [group("c", "3")])
    list(viewed.view.follow())
    assert sources(viewed.view.snapshot()) == ["b"]
    viewed.store.report("a/0", [group("a", "1")])
    list(viewed.view.follow())
    assert sources(viewed.view.snapshot()) == ["a"]


def test_what_was_done_once_is_not_looked_at_again() -> None:
    viewed = Viewed(job(), "a/0")
    viewed.store.report("a/0", [group(str(n), f"x{n}") for n in range(100)])
    list(viewed.view.follow())
    viewed.store.report("a/0", [group("0", "y")])
    assert viewed.view._reader.read().touched == {"a/0": {"0"}}


def test_equal_rules_are_the_same_rules() -> None:
    """As after every reload: what is equal is relabeled by nobody again."""

    class Counting:
        made = 0

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Counting)

        __hash__ = object.__hash__

        def labeler(self) -> trio_sd.target_labels.Labeler:
            Counting.made += 1
            return job().labeler()

    viewed = Viewed(Counting(), "a/0")
    viewed.store.report("a/0", [group("a", "1")])
    list(viewed.view.follow())
    viewed.labeling = Counting()
    viewed.apply("a/0")
    list(viewed.view.follow())
    assert Counting.made == 1


async def test_nobody_waits_for_a_view_that_has_ended() -> None:
    viewed = Viewed(job(), "a/0")
    viewed.store.report("a/0", [group("a", "1")])
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(viewed.view.wait_caught_up)
            await trio.testing.wait_all_tasks_blocked()
            viewed.view.scope.cancel()
            await viewed.view.run()


async def test_all_subscribers_are_told(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a", first=[group("a", "1")])
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as early,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as late,
    ):
        for updates in early, late:
            await until(updates, lambda update: sources(update.snapshot) == ["a"])
        await fake.send(group("b", "2"))
        for updates in early, late:
            await until(updates, lambda update: sources(update.snapshot) == ["a", "b"])


async def test_the_rules_stay_while_one_of_several_subscribers_goes(autojump_clock: MockClock) -> None:
    fake = synced("a", "a")
    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager,
        manager.subscribe(relabel=True, throttle=AT_ONCE) as stays,
    ):
        async with manager.subscribe(relabel=True, name="goes"):
            assert [one.name for one in manager.statistics().subscriptions] == ["", "goes"]
        await until(stays, lambda update: sources(update.snapshot) == ["a"])
        await fake.send(group("b", "2"))
        await until(stays, lambda update: sources(update.snapshot) == ["a", "b"])


async def test_who_still_waits_when_the_manager_closes_is_told(autojump_clock: MockClock) -> None:
    fake = synced("a", "a")
    told = trio.Event()
    async with trio.open_nursery() as nursery:
        async with open_manager(SetConfigs({"web": [fake.config]}, {"web": job()})) as manager:
            await manager.wait_synced()

            async def subscribe() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    async with manager.subscribe(relabel=True):
                        raise AssertionError("it was opened though the manager is closed")
                told.set()

            nursery.start_soon(subscribe)
            while manager._relabeled is None:  # until the moment when it waits
                await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            await told.wait()


def test_what_errors_say_is_told_once_each_and_all_are_counted() -> None:
    url = RelabelConfig(("__address__",), regex="(.).*", target_label="__address__", replacement="http://$1")
    viewed = Viewed(job(url), "a/0")
    viewed.store.report("a/0", [group("s", "a1", "a2", "b1", "c1", "d1", "e1")])
    list(viewed.view.follow())
    found = viewed.view.statistics("web")
    assert found is not None
    assert found.unusable == 6
    assert found.errors == tuple([f'"http://{name}" is not a valid hostname' for name in "abc"])


def test_the_log_tells_of_errors_when_there_are_more_and_not_at_each_change(caplog: pytest.LogCaptureFixture) -> None:
    url = RelabelConfig(("__address__",), regex="(x.*)", target_label="__address__", replacement="http://$1")
    viewed = Viewed(job(url), "a/0")
    viewed.store.report("a/0", [group("bad", "x1"), group("good", "a1")])
    list(viewed.view.follow())
    assert len(caplog.records) == 1
    viewed.store.report("a/0", [group("good", "a2")])
    list(viewed.view.follow())
    assert len(caplog.records) == 1


def test_set_configs_stay_what_they_were() -> None:
    members = [FakeDiscoverer("a").config]
    configs, labeling = {"web": members}, {"web": job()}
    made = SetConfigs(configs, labeling)
    members.clear()
    del labeling["web"]
    assert len(made["web"]) == 1
    assert isinstance(made["web"], tuple)
    assert made.labeling.keys() == {"web"}


async def test_a_waiting_consumer_gets_nothing_for_a_change_that_shows_nothing_and_the_next_one_at_once(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDiscoverer("web")
    got: list[tuple[float, list[str]]] = []

    async def consume(updates: trio.MemoryReceiveChannel[Update]) -> None:
        async for update in updates:
            got.append((trio.current_time(), addresses(update.snapshot)))  # noqa: PERF401 (seen while it grows)

    async with (
        open_manager(SetConfigs({"web": [fake.config]}, {"web": job()}), throttle=trio_sd.Throttle(1, 5)) as manager,
        manager.subscribe(relabel=True) as updates,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(consume, updates)
        await fake.send(group("s", "h:1"))
        await trio.sleep(60)
        before = len(got)
        for source in "t", "u":
            await fake.send(group(source, "h:1"))  # a target that another group has
            await wait_all_tasks_blocked()
        assert len(got) == before
        await fake.send(group("v", "h:2"))
        await wait_all_tasks_blocked()
        assert got[before:] == [(trio.current_time(), ["h:1", "h:2"])]
        assert manager.statistics().subscriptions[0].behind_since is None
        nursery.cancel_scope.cancel()
