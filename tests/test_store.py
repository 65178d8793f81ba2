"""The store: what is held, in which order it is shown, what is a revision, and what a reload keeps."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sd.snapshots import Reader, SetChanges, Snapshot, Update
from trio_sd.store import TargetStore
from trio_sd.targets import TargetGroup
from trio_sd.testing import group

LATE = 1e9


def store_of(sets: Mapping[str, Sequence[str]]) -> TargetStore:
    """Return a store with these sets, in which no provider has reported yet."""
    store = TargetStore()
    apply_all(store, sets)
    return store


def apply_all(store: TargetStore, sets: Mapping[str, Sequence[str]], deadline: float = LATE) -> None:
    """Apply a configuration that restarts every provider, as a reload does."""
    store.apply(sets, restarted={p for members in sets.values() for p in members}, deadline=deadline)


def sources(store: TargetStore, set_name: str) -> list[str]:
    return [found.source for found in store.snapshot()[set_name]]


def take(reader: Reader) -> Mapping[str, SetChanges]:
    update = reader.read()
    reader.given(update)
    return update.changes


# --- truth: what is a revision ---


def test_a_new_store_is_empty_at_revision_zero() -> None:
    store = TargetStore()
    assert store.revision == 0
    assert dict(store.snapshot()) == {}
    assert store.counts("p") == (0, 0)
    assert dict(store.groups("p")) == {}
    assert store.next_deadline is None
    assert store.leaving == {}


def test_truth_contract_a_configured_set_is_always_present() -> None:
    store = store_of({"a": ["p"], "b": []})
    assert dict(store.snapshot()) == {"a": (), "b": ()}
    assert "a" in store.snapshot()
    assert "c" not in store.snapshot()
    with pytest.raises(KeyError):
        store.snapshot()["c"]


def test_truth_contract_an_empty_first_report_is_news() -> None:
    store = store_of({"a": ["p"]})
    before = store.revision
    reported = store.report("p", [])
    assert reported.changed == 0
    assert store.revision == before + 1
    assert store.snapshot()["a"] == ()


def test_truth_contract_an_equal_report_is_no_news() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1"), group("y", "2")])
    before = store.snapshot()
    for groups in ([group("x", "1")], [], [group("x", "1"), group("y", "2")], [group("gone")]):
        assert store.report("p", groups).changed == 0
        assert store.snapshot() is before


def test_truth_contract_an_equal_first_report_of_a_new_run_is_no_news() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    store.begin_run("p")
    before = store.revision
    store.report("p", [group("x", "1")])
    assert store.revision == before
    store.begin_run("p")
    store.report("p", [])
    assert store.revision == before + 1, "an empty result that was really read is news"
    assert store.snapshot()["a"] == ()


def test_every_apply_is_a_revision_even_if_nothing_differs() -> None:
    store = store_of({"a": ["p"]})
    for expected in (2, 3, 4):
        apply_all(store, {"a": ["p"]})
        assert store.revision == expected


def test_on_change_is_called_once_for_each_revision_with_the_new_state_in_place() -> None:
    seen: list[int] = []
    store = TargetStore(lambda: seen.append(store.revision))
    apply_all(store, {"a": ["p"]})
    store.report("p", [group("x", "1"), group("y", "1")])
    store.report("p", [group("x", "1")])
    store.report("nobody", [group("x", "1")])
    apply_all(store, {"a": ["q"]}, deadline=5)
    store.expire(4.999)
    store.expire(5)
    store.expire(6)
    assert seen == [1, 2, 3, 4]


def test_a_report_of_an_unknown_provider_is_ignored() -> None:
    store = store_of({"a": ["p"]})
    before = store.snapshot()
    assert store.report("q", [group("x", "1"), group("x", "2")]) == store.report("q", [])
    assert store.snapshot() is before
    apply_all(store, {"a": ["q"]})
    assert store.snapshot()["a"] == ()


def test_a_late_report_of_a_provider_that_was_let_go_is_ignored() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": []})
    before = store.snapshot()
    store.report("p", [group("x", "2")])
    assert store.snapshot() is before
    assert dict(store.groups("p")) == {}


# --- truth: merging ---


def test_first_report_is_the_full_set_and_later_ones_replace_group_by_group() -> None:
    store = store_of({"a": ["p"]})
    assert store.report("p", [group("x", "1"), group("y", "2")]).changed == 2
    assert store.report("p", [group("y", "3"), group("z", "4")]).changed == 2
    assert store.snapshot()["a"] == (group("x", "1"), group("y", "3"), group("z", "4"))
    assert store.counts("p") == (3, 3)


def test_a_group_without_targets_removes_its_source() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1"), group("y", "2", "3")])
    assert store.report("p", [group("x")]).changed == 1
    assert sources(store, "a") == ["y"]
    assert store.report("p", [group("x")]).changed == 0
    assert store.counts("p") == (1, 2)


def test_a_group_without_targets_in_the_first_report_is_not_held() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x"), group("y", "1")])
    assert sources(store, "a") == ["y"]
    assert store.counts("p") == (1, 1)


def test_a_group_without_targets_does_not_count_as_change_even_with_labels() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [])
    assert store.report("p", [group("x", labels={"a": "b"})]).changed == 0


def test_first_report_of_a_new_run_drops_what_it_does_not_name() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1"), group("y", "2")])
    store.begin_run("p")
    assert sources(store, "a") == ["x", "y"], "kept until the new run reports"
    before = store.revision
    assert store.report("p", [group("y", "3"), group("z", "4")]).changed == 3
    assert store.revision == before + 1, "in one revision"
    assert store.snapshot()["a"] == (group("y", "3"), group("z", "4"))


def test_duplicates_in_one_report_are_counted_and_the_last_one_wins() -> None:
    store = store_of({"a": ["p"]})
    first = store.report("p", [group("x", "1"), group("x", "2"), group("x", "3"), group("y", "1")])
    assert (first.changed, first.duplicates) == (2, 2)
    assert store.snapshot()["a"] == (group("x", "3"), group("y", "1"))
    later = store.report("p", [group("x", "4"), group("x", "3")])
    assert (later.changed, later.duplicates) == (0, 1)
    removed = store.report("p", [group("y", "9"), group("y")])
    assert (removed.changed, removed.duplicates) == (1, 1)
    assert store.counts("p") == (1, 1)


@pytest.mark.parametrize("begun", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("garbage", [None, 7, "text", [None], ["x"], [group("y", "2"), None], [group("x"), 5], [[]]])
def test_garbage_raises_and_changes_nothing(garbage: Any, begun: bool) -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    if begun:
        store.begin_run("p")
    before, counts = store.snapshot(), store.counts("p")
    with pytest.raises((TypeError, AttributeError)):
        store.report("p", garbage)
    assert store.snapshot() is before
    assert store.counts("p") == counts
    assert store.snapshot()["a"] == (group("x", "1"),)
    store.report("p", [group("z", "1")])
    assert sources(store, "a") == (["z"] if begun else ["x", "z"]), "the run's place is not lost either"


@settings(max_examples=6 * settings().max_examples // 10)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 3)), max_size=5).map(
            lambda pairs: [group(source, *map(str, range(count))) for source, count in pairs]
        ),
        min_size=1,
        max_size=8,
    )
)
def test_counts_agree_with_what_is_held(reports: list[list[TargetGroup]]) -> None:
    store = store_of({"a": ["p"], "b": ["p", "q"]})
    expected: dict[str, TargetGroup] = {}
    for number, groups in enumerate(reports):
        if number == 4:
            store.begin_run("p")
            expected = {}
        store.report("p", groups)
        expected.update({found.source: found for found in groups})
        expected = {source: found for source, found in expected.items() if found.targets}
        assert dict(store.groups("p")) == expected
        assert store.counts("p") == (len(expected), sum(len(found.targets) for found in expected.values()))
        assert store.snapshot().group_count("b") == len(expected)
        assert store.snapshot().target_count("b") == store.counts("p")[1]


# --- truth: order ---


def test_order_is_that_of_the_configuration_then_of_the_sources() -> None:
    store = store_of({"z": ["q", "p"], "a": ["p"], "m": []})
    store.report("p", [group("b", "1"), group("a", "1")])
    store.report("q", [group("d", "1"), group("c", "1")])
    assert list(store.snapshot()) == ["z", "a", "m"]
    assert sources(store, "z") == ["c", "d", "a", "b"]
    assert sources(store, "a") == ["a", "b"]
    apply_all(store, {"m": [], "a": ["p"], "z": ["p", "q"]})
    assert list(store.snapshot()) == ["m", "a", "z"]
    assert sources(store, "z") == ["a", "b", "c", "d"]


def test_order_of_leavers_is_behind_those_who_stay() -> None:
    store = store_of({"a": ["p", "q"]})
    store.report("p", [group("p", "1")])
    store.report("q", [group("q", "1")])
    apply_all(store, {"a": ["r", "q"]})
    assert sources(store, "a") == ["q", "p"]
    store.report("q", [group("q", "1")])
    assert sources(store, "a") == ["q", "p"]
    store.report("r", [group("r", "1")])
    assert sources(store, "a") == ["r", "q"]


def test_order_does_not_depend_on_the_order_of_reports() -> None:
    forward, backward = store_of({"a": ["p", "q"]}), store_of({"a": ["p", "q"]})
    groups = {"p": [group("2", "1"), group("1", "1")], "q": [group("0", "1")]}
    for provider in ("p", "q"):
        forward.report(provider, groups[provider])
    for provider in ("q", "p"):
        backward.report(provider, list(reversed(groups[provider])))
    assert forward.snapshot()["a"] == backward.snapshot()["a"]


# --- several providers and sets ---


def test_a_provider_named_twice_in_a_set_is_shown_once() -> None:
    store = store_of({"a": ["p", "p"]})
    store.report("p", [group("x", "1")])
    assert store.snapshot()["a"] == (group("x", "1"),)


def test_a_shared_provider_fills_all_its_sets_in_one_revision() -> None:
    names = [f"set-{n}" for n in range(50)]
    store = store_of({name: ["p"] for name in names})
    before = store.revision
    store.report("p", [group("x", "1")])
    assert store.revision == before + 1
    assert dict(store.snapshot()) == dict.fromkeys(names, (group("x", "1"),))
    tuples = {id(store.snapshot()[name]) for name in names}
    assert len(tuples) == 1, "and is held once"


def test_reload_contract_a_set_added_with_a_shared_provider_is_filled_at_once() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["p"], "b": ["p"]})
    assert store.snapshot()["b"] == (group("x", "1"),)


def test_the_groups_of_a_source_are_told_when_their_providers_swap_places() -> None:
    store = store_of({"a": ["p", "q"]})
    reader = store.reader()
    for provider in "p", "q":
        store.report(provider, [group("x", provider), group(f"only-{provider}", "1")])
    take(reader)
    store.apply({"a": ["q", "p"]}, restarted=(), deadline=0.0)
    assert take(reader) == {"a": SetChanges((group("x", "q"), group("x", "p")))}


def test_same_source_in_two_providers_keeps_both_groups() -> None:
    store = store_of({"a": ["p", "q"]})
    reader = store.reader()
    store.report("p", [group("x", "1")])
    store.report("q", [group("x", "2")])
    assert store.snapshot()["a"] == (group("x", "1"), group("x", "2"))
    assert take(reader) == {"a": SetChanges((group("x", "1"), group("x", "2")))}
    store.report("q", [group("x", "3")])
    assert take(reader) == {"a": SetChanges((group("x", "1"), group("x", "3")))}, "both are told though one changed"
    store.report("p", [group("x")])
    assert take(reader) == {"a": SetChanges((group("x", "3"),))}, "a source is not removed while one has it"
    store.report("q", [group("x")])
    assert take(reader) == {"a": SetChanges((), ("x",))}


# --- snapshots ---


def test_a_snapshot_never_changes() -> None:
    store = store_of({"a": ["p"], "b": ["p", "q"]})
    store.report("p", [group("x", "1")])
    looked_at, not_looked_at = store.snapshot(), store.snapshot()
    expected = {"a": (group("x", "1"),), "b": (group("x", "1"),)}
    assert dict(looked_at) == expected
    store.report("p", [group("x", "2"), group("y", "1")])
    store.report("q", [group("z", "1")])
    apply_all(store, {"c": ["q"]})
    assert dict(looked_at) == expected
    assert dict(not_looked_at) == expected
    assert not_looked_at.revision == 2


def test_a_snapshot_cannot_be_changed() -> None:
    snapshot: Any = store_of({"a": ["p"]}).snapshot()
    with pytest.raises(TypeError):
        snapshot["a"] = ()
    with pytest.raises(TypeError):
        del snapshot["a"]
    with pytest.raises(AttributeError):
        snapshot.extra = 1


def test_a_snapshot_is_a_mapping() -> None:
    store = store_of({"a": ["p"], "b": []})
    store.report("p", [group("x", "1", "2")])
    snapshot = store.snapshot()
    assert len(snapshot) == 2
    assert snapshot.get("nope") is None
    assert list(snapshot.items()) == [("a", (group("x", "1", "2"),)), ("b", ())]
    assert repr(snapshot) == "<Snapshot revision 2: a: 1 groups, b: 0 groups>"
    assert repr(TargetStore().snapshot()) == "<Snapshot revision 0: no sets>"
    assert (snapshot.group_count("a"), snapshot.target_count("a")) == (1, 2)
    with pytest.raises(KeyError):
        snapshot.group_count("nope")


def test_a_set_that_does_not_change_shares_its_tuple_with_later_snapshots() -> None:
    store = store_of({"a": ["p"], "b": ["q"]})
    store.report("p", [group("x", "1")])
    before = store.snapshot()["a"]
    store.report("q", [group("y", "1")])
    assert store.snapshot()["a"] is before


def test_what_nobody_holds_is_freed() -> None:
    store = store_of({"a": ["p"]})
    reader = store.reader()
    gc.collect()

    def alive(kind: type[Any]) -> int:
        return sum(type(thing) is kind for thing in gc.get_objects())

    counted = {kind: alive(kind) for kind in (Snapshot, Update, type(store._changes_end))}
    for number in range(200):
        store.report("p", [group(f"s{number}", "1"), group(f"s{number - 1}")])
        reader.given(reader.read())
    gc.collect()
    assert {kind: alive(kind) for kind in counted} == counted


def test_a_reader_that_keeps_up_does_not_grow() -> None:
    store = store_of({"a": ["p"]})
    reader = store.reader()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(2_000):
            store.report("p", [group(f"s{number}", "1"), group(f"s{number - 1}")])
            reader.given(reader.read())
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 20_000


def test_a_long_history_that_nobody_read_is_freed_without_recursion() -> None:
    store = store_of({"a": ["p"]})
    reader = store.reader()
    for number in range(20_000):
        store.report("p", [group("x", str(number % 7))])
    assert reader.behind == store.revision
    assert take(reader) == {"a": SetChanges(store.snapshot()["a"])}
    assert reader.behind == 0


# --- readers ---


def test_the_first_update_is_the_whole_state() -> None:
    store = store_of({"b": ["q"], "a": ["p"], "e": []})
    store.report("p", [group("y", "1"), group("x", "1")])
    assert list(take(store.reader()).items()) == [
        ("b", SetChanges()),
        ("a", SetChanges((group("x", "1"), group("y", "1")))),
        ("e", SetChanges()),
    ]
    assert take(TargetStore().reader()) == {}


def test_changes_tell_what_differs_from_what_was_given() -> None:
    store = store_of({"a": ["p"], "b": ["q"]})
    reader = store.reader()
    take(reader)
    assert take(reader) == {}
    store.report("p", [group("x", "1"), group("y", "1"), group("z", "1")])
    assert take(reader) == {"a": SetChanges((group("x", "1"), group("y", "1"), group("z", "1")))}
    store.report("p", [group("z"), group("y", "2"), group("x")])
    assert take(reader) == {"a": SetChanges((group("y", "2"),), ("x", "z"))}


def test_all_groups_of_a_set_that_had_none_are_told_in_its_order() -> None:
    store = store_of({"a": ["q", "p"], "b": ["p"]})
    reader = store.reader()
    take(reader)
    store.report("p", [group("b", "1"), group("a", "1")])
    assert take(reader) == {
        "a": SetChanges((group("a", "1"), group("b", "1"))),
        "b": SetChanges((group("a", "1"), group("b", "1"))),
    }
    store.report("p", [group("a"), group("b")])
    assert take(reader) == dict.fromkeys("ab", SetChanges((), ("a", "b")))
    store.report("p", [group("b", "2"), group("a", "2")])
    store.report("q", [group("d", "1"), group("a", "1")])
    assert take(reader) == {
        "a": SetChanges((group("a", "1"), group("d", "1"), group("a", "2"), group("b", "2"))),
        "b": SetChanges((group("a", "2"), group("b", "2"))),
    }


def test_changes_of_a_set_whose_one_provider_is_another_now() -> None:
    store = store_of({"a": ["p"], "b": ["q"]})
    store.report("p", [group("x", "1"), group("y", "1"), group("z", "1")])
    store.report("q", [group("y", "1"), group("z", "2")])
    reader = store.reader()
    take(reader)
    store.apply({"a": ["q"], "b": ["q"]}, restarted=(), deadline=LATE)
    assert take(reader) == {"a": SetChanges((group("z", "2"),), ("x",))}


def test_changes_that_cancel_out_are_not_told() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    reader = store.reader()
    take(reader)
    store.report("p", [group("x", "2"), group("y", "1")])
    store.report("p", [group("x", "1"), group("y")])
    update = reader.read()
    assert update.changes == {}
    assert update.revision == store.revision


def test_a_reader_may_read_without_being_given() -> None:
    store = store_of({"a": ["p"]})
    reader = store.reader()
    thrown_away = reader.read()
    store.report("p", [group("x", "1")])
    also = reader.read()
    store.report("p", [group("y", "1")])
    assert take(reader) == {"a": SetChanges((group("x", "1"), group("y", "1")))}
    assert also.changes == {"a": SetChanges((group("x", "1"),))}
    assert thrown_away.changes == {"a": SetChanges()}


def test_changes_asked_for_late_are_those_of_then() -> None:
    store = store_of({"a": ["p"]})
    reader = store.reader()
    take(reader)
    store.report("p", [group("x", "1")])
    update = reader.read()
    reader.given(update)
    store.report("p", [group("x", "2"), group("y", "1")])
    reader.given(reader.read())
    apply_all(store, {})
    assert update.changes == {"a": SetChanges((group("x", "1"),))}
    assert update.changes is update.changes


def test_changes_cannot_be_changed() -> None:
    changes: Any = take(store_of({"a": []}).reader())
    with pytest.raises(TypeError):
        changes["a"] = None


def test_readers_do_not_meet() -> None:
    store = store_of({"a": ["p"]})
    fast, slow = store.reader(), store.reader()
    take(fast)
    store.report("p", [group("x", "1")])
    assert take(fast) == {"a": SetChanges((group("x", "1"),))}
    store.report("p", [group("x"), group("y", "1")])
    late = store.reader()
    assert take(fast) == {"a": SetChanges((group("y", "1"),), ("x",))}
    assert take(slow) == take(late) == {"a": SetChanges((group("y", "1"),))}


def test_added_and_removed_sets_are_named() -> None:
    store = store_of({"a": ["p"], "e": []})
    store.report("p", [group("x", "1"), group("y", "1")])
    reader = store.reader()
    take(reader)
    apply_all(store, {"b": ["p"], "f": []})
    assert list(take(reader).items()) == [
        ("b", SetChanges((group("x", "1"), group("y", "1")))),
        ("f", SetChanges()),
        ("a", SetChanges((), ("x", "y"))),
        ("e", SetChanges()),
    ]


def test_a_provider_let_go_and_taken_back_between_two_reads_is_told_right() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1"), group("y", "1")])
    reader = store.reader()
    take(reader)
    apply_all(store, {"a": []})
    apply_all(store, {"a": ["p"]})
    store.report("p", [group("y", "1"), group("z", "1")])
    changes = take(reader)["a"]
    assert changes.removed == ("x",)
    assert group("z", "1") in changes.updated


# --- reload ---


def test_reload_contract_what_stays_is_kept_until_its_new_run_reports() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1"), group("gone", "1")])
    apply_all(store, {"a": ["p"]})
    assert sources(store, "a") == ["gone", "x"]
    before = store.revision
    store.report("p", [group("x", "1")])
    assert store.revision == before + 1
    assert sources(store, "a") == ["x"], "a target that has really gone disappears in that same step"


def test_reload_contract_leavers_stay_until_every_joiner_has_reported() -> None:
    store = store_of({"a": ["p", "q"]})
    for provider in ("p", "q"):
        store.report(provider, [group(provider, "1")])
    apply_all(store, {"a": ["q", "r", "s"]})
    assert sources(store, "a") == ["q", "p"]
    assert store.leaving == {"a": ("p",)}
    store.report("q", [group("q", "1")])
    assert sources(store, "a") == ["q", "p"], "q has not joined, it was there"
    store.report("r", [group("r", "1")])
    assert sources(store, "a") == ["q", "r", "p"]
    before = store.revision
    store.report("s", [group("s", "1")])
    assert sources(store, "a") == ["q", "r", "s"]
    assert store.revision == before + 1, "the last to join and the leaver change places in one revision"
    assert store.leaving == {}
    assert store.next_deadline is None


def test_reload_contract_an_empty_report_settles_a_joiner_too() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["q"]})
    store.report("q", [])
    assert store.snapshot()["a"] == ()
    assert dict(store.groups("p")) == {}


def test_reload_contract_leavers_go_at_once_where_none_joined() -> None:
    store = store_of({"a": ["p", "q"]})
    for provider in ("p", "q"):
        store.report(provider, [group(provider, "1")])
    before = store.revision
    apply_all(store, {"a": ["p"]})
    assert sources(store, "a") == ["p"]
    assert store.revision == before + 1
    assert store.next_deadline is None


def test_reload_contract_leavers_go_at_the_deadline() -> None:
    store = store_of({"a": ["p"], "b": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["q"], "b": ["q"]}, deadline=15)
    deadlines = [store.next_deadline]
    before = store.revision
    store.expire(14.999)
    assert store.revision == before
    assert sources(store, "a") == ["x"]
    store.expire(15)
    assert store.revision == before + 1
    assert dict(store.snapshot()) == {"a": (), "b": ()}
    deadlines.append(store.next_deadline)
    assert deadlines == [15, None]
    store.report("q", [group("y", "1")])
    assert sources(store, "a") == ["y"]


def test_reload_contract_a_set_that_goes_away_is_dropped_with_what_only_it_had() -> None:
    store = store_of({"a": ["p"], "b": ["q"]})
    store.report("p", [group("x", "1")])
    store.report("q", [group("y", "1")])
    apply_all(store, {"b": ["q"]})
    assert list(store.snapshot()) == ["b"]
    assert dict(store.groups("p")) == {}
    assert store.counts("p") == (0, 0)


def test_reload_contract_a_provider_leaves_one_set_and_stays_in_another() -> None:
    store = store_of({"a": ["p"], "b": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["q"], "b": ["p"]})
    assert store.leaving == {"a": ("p",)}
    store.report("p", [group("x", "2")])
    assert store.snapshot()["a"] == (group("x", "2"),), "while it is shown it is shown as it is"
    store.report("q", [])
    assert dict(store.snapshot()) == {"a": (), "b": (group("x", "2"),)}


def test_reload_contract_a_provider_that_joins_a_set_and_has_reported_needs_no_waiting() -> None:
    store = store_of({"a": ["p"], "b": ["q"]})
    store.report("p", [group("x", "1")])
    store.report("q", [group("y", "1")])
    store.apply({"a": ["p"], "b": ["p"]}, restarted=(), deadline=LATE)
    assert dict(store.snapshot()) == {"a": (group("x", "1"),), "b": (group("x", "1"),)}
    assert store.leaving == {}


def test_reload_contract_a_provider_that_joins_and_is_restarted_is_waited_for() -> None:
    store = store_of({"a": ["p"], "b": ["q"]})
    store.report("p", [group("x", "1")])
    store.report("q", [group("y", "1")])
    apply_all(store, {"a": ["p"], "b": ["p"]})
    assert sources(store, "b") == ["x", "y"]
    store.report("p", [group("x", "1")])
    assert sources(store, "b") == ["x"]


def test_reload_contract_a_leaver_that_comes_back_never_vanished() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1"), group("y", "1")])
    apply_all(store, {"a": ["q"]}, deadline=15)
    apply_all(store, {"a": ["p"]}, deadline=16)
    assert sources(store, "a") == ["x", "y"]
    assert store.next_deadline is None
    store.expire(100)
    assert sources(store, "a") == ["x", "y"], "it is no leaver any more"
    store.report("p", [group("y", "1")])
    assert sources(store, "a") == ["y"]


def test_reload_contract_a_leaver_that_comes_back_is_a_joiner_to_the_others() -> None:
    store = store_of({"a": ["p", "q"]})
    for provider in ("p", "q"):
        store.report(provider, [group(provider, "1")])
    apply_all(store, {"a": ["r"]}, deadline=15)
    apply_all(store, {"a": ["p"]}, deadline=20)
    assert sources(store, "a") == ["p", "q"]
    assert store.next_deadline == 15
    store.report("p", [group("p", "1")])
    assert sources(store, "a") == ["p"]


def test_reload_contract_two_reloads_in_a_row_make_no_flap() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["q"]}, deadline=15)
    apply_all(store, {"a": ["q"]}, deadline=20)
    assert sources(store, "a") == ["x"], "q joined by the reload before, and has still not reported"
    assert store.next_deadline == 15, "a leaver's time is not made longer by another reload"
    store.report("q", [group("y", "1")])
    assert sources(store, "a") == ["y"]


def test_reload_contract_a_joiner_replaced_before_it_reported_hands_its_turn_on() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["q"]}, deadline=15)
    apply_all(store, {"a": ["r"]}, deadline=20)
    assert sources(store, "a") == ["x"]
    assert store.leaving == {"a": ("p",)}, "q has never been shown, so there is nothing of it to keep"
    store.report("r", [group("z", "1")])
    assert sources(store, "a") == ["z"]


def test_reload_contract_leavers_of_two_reloads_have_each_their_deadline() -> None:
    store = store_of({"a": ["p", "q"]})
    for provider in ("p", "q"):
        store.report(provider, [group(provider, "1")])
    apply_all(store, {"a": ["q", "r"]}, deadline=15)
    apply_all(store, {"a": ["r"]}, deadline=20)
    assert sources(store, "a") == ["q", "p"], "q was a member for longer"
    store.expire(15)
    assert sources(store, "a") == ["q"]
    assert store.next_deadline == 20
    store.expire(20)
    assert sources(store, "a") == []


def test_reload_contract_a_joiner_dropped_again_lets_leavers_go() -> None:
    store = store_of({"a": ["p", "q"]})
    for provider in ("p", "q"):
        store.report(provider, [group(provider, "1")])
    apply_all(store, {"a": ["q", "r"]}, deadline=15)
    store.report("q", [group("q", "1")])
    apply_all(store, {"a": ["q"]}, deadline=20)
    assert sources(store, "a") == ["q"]
    assert store.next_deadline is None


def test_reload_contract_a_restart_after_failure_does_not_undo_settling() -> None:
    store = store_of({"a": ["p"]})
    store.report("p", [group("x", "1")])
    apply_all(store, {"a": ["q"]})
    store.begin_run("q")
    assert sources(store, "a") == ["x"]
    store.report("q", [group("y", "1")])
    store.begin_run("q")
    assert sources(store, "a") == ["y"]
    assert store.leaving == {}


# --- all of it against a model of plain dicts ---


@dataclass
class Model:
    """What the store must do, written as simply as can be: everything is recomputed and copied."""

    members: dict[str, list[str]] = field(default_factory=dict)
    leaving: dict[str, dict[str, float]] = field(default_factory=dict)  # in order
    owing: dict[str, set[str]] = field(default_factory=dict)
    held: dict[str, dict[str, TargetGroup]] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def shown(self, name: str) -> list[str]:
        return self.members.get(name, []) + list(self.leaving.get(name, {}))

    def known(self) -> set[str]:
        return {p for name in self.members for p in self.shown(name)}

    def apply(self, sets: dict[str, list[str]], restarted: set[str], deadline: float) -> None:
        self.reported -= restarted
        after = Model()
        for name, members in sets.items():
            old_members = self.members.get(name, [])
            settled = {p for p in old_members if p not in self.owing.get(name, set())}
            after.members[name] = members
            after.owing[name] = {p for p in members if p not in settled and p not in self.reported}
            if after.owing[name]:
                # The order in which they are shown: members first, then those who were leaving already.
                for p in self.shown(name):
                    if p not in members and p in self.held:
                        after.leaving.setdefault(name, {})[p] = self.leaving.get(name, {}).get(p, deadline)
        self.members, self.owing, self.leaving = after.members, after.owing, after.leaving
        self.forget()

    def report(self, p: str, groups: list[TargetGroup]) -> None:
        if p not in self.known():
            return
        if p not in self.reported:
            self.held[p] = {}
            self.reported.add(p)
            for name, owing in self.owing.items():
                owing.discard(p)
                if not owing:
                    self.leaving.pop(name, None)
        for found in groups:
            self.held[p].pop(found.source, None)
            if found.targets:
                self.held[p][found.source] = found
        self.forget()

    def expire(self, now: float) -> None:
        for name, leaving in self.leaving.items():
            self.leaving[name] = {p: deadline for p, deadline in leaving.items() if deadline > now}
        self.forget()

    def forget(self) -> None:
        known = self.known()
        self.held = {p: groups for p, groups in self.held.items() if p in known}
        self.reported &= known
        self.leaving = {name: leaving for name, leaving in self.leaving.items() if leaving}

    def content(self) -> dict[str, tuple[TargetGroup, ...]]:
        return {
            name: tuple(found for p in self.shown(name) for _, found in sorted(self.held.get(p, {}).items()))
            for name in self.members
        }


SETS = ("a", "b", "c")
PROVIDERS = 4

group_lists = st.lists(
    st.builds(
        lambda source, targets: group(source, *targets),
        st.sampled_from(["x", "y", "z"]),
        st.lists(st.sampled_from(["1", "2"]), max_size=2),
    ),
    max_size=4,
)
layouts = st.dictionaries(
    st.sampled_from(SETS), st.lists(st.integers(0, PROVIDERS - 1), max_size=3, unique=True), max_size=3
).flatmap(lambda sets: st.permutations(list(sets.items())))
steps = st.one_of(
    st.tuples(st.just("report"), st.integers(0, PROVIDERS - 1), group_lists),
    st.tuples(st.just("report"), st.integers(0, PROVIDERS - 1), group_lists),
    st.tuples(st.just("apply"), layouts, st.booleans()),
    st.tuples(st.just("begin"), st.integers(0, PROVIDERS - 1), st.none()),
    st.tuples(st.just("expire"), st.integers(0, 4), st.none()),
    st.tuples(st.just("read"), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("reader"), st.integers(0, 2), st.none()),
)

State = dict[str, dict[str, list[TargetGroup]]]


def by_source(content: Mapping[str, Sequence[TargetGroup]]) -> State:
    state: State = {name: {} for name in content}
    for name, groups in content.items():
        for found in groups:
            state[name].setdefault(found.source, []).append(found)
    return state


def follow(state: State, update: Update) -> State:
    """Do to ``state`` what the changes say, as a consumer would that keeps its own copy."""
    state = {name: dict(groups) for name, groups in state.items()}
    for name, changes in update.changes.items():
        mine = state.setdefault(name, {})
        updated = {found.source for found in changes.updated}
        assert changes.updated == tuple(g for g in update.snapshot.get(name, ()) if g.source in updated), "in order"
        assert changes.removed == tuple(sorted(changes.removed))
        for source in changes.removed:
            assert source in mine, "what is removed was there"
            del mine[source]
        for source, found in by_source({name: changes.updated})[name].items():
            assert found != mine.get(source), "what is updated differs"
            assert source not in changes.removed
            mine[source] = found
        if name not in update.snapshot:
            assert not mine, "a set that goes away is emptied"
            del state[name]
    return state


def same(one: State, other: State) -> bool:
    """Compare without regard to the order of groups that share a source."""
    return {n: {s: Counter(g) for s, g in groups.items()} for n, groups in one.items()} == {
        n: {s: Counter(g) for s, g in groups.items()} for n, groups in other.items()
    }


class Follower:
    """A subscriber that keeps its own copy, up to date by changes alone."""

    def __init__(self, store: TargetStore) -> None:
        self.reader = store.reader()
        self.state: State = {}
        self.revision = 0

    def read(self, *, give: bool, look: bool = True) -> None:
        update = self.reader.read()
        assert update.revision >= self.revision
        if not give:
            if look:
                follow(self.state, update)
            return
        self.reader.given(update)
        self.revision = update.revision
        assert self.reader.behind == 0
        self.state = follow(self.state, update)
        assert same(self.state, by_source(update.snapshot))


@settings(max_examples=2 * settings().max_examples)
@given(st.lists(steps, min_size=1, max_size=40))
def test_the_store_agrees_with_a_model_of_plain_dicts(sequence: list[tuple[str, Any, Any]]) -> None:
    calls: list[int] = []
    store = TargetStore(lambda: calls.append(store.revision))
    model = Model()
    followers = [Follower(store) for _ in range(3)]
    kept: list[tuple[Snapshot, dict[str, tuple[TargetGroup, ...]]]] = []
    generations = Counter[int]()  # the manager gives a forgotten provider a new name; so is it here
    now = 0

    def name_of(number: int) -> str:
        return f"p{number}.{generations[number]}"

    for what, first, second in sequence:
        before, revision, content = store.snapshot(), store.revision, model.content()
        known = model.known()
        if what == "report":
            model.report(name_of(first), second)
            store.report(name_of(first), second)
        elif what == "apply":
            sets = {name: [name_of(p) for p in members] for name, members in first}
            wanted = {p for members in sets.values() for p in members}
            running = {p for members in model.members.values() for p in members}
            restarted = wanted if second else wanted - running
            model.apply(sets, restarted, now + 3)
            store.apply(sets, restarted=restarted, deadline=now + 3)
            assert store.revision == revision + 1, "every apply is a revision"
            for name in sets.keys() & content.keys():
                if model.owing[name]:  # no flap: while somebody is waited for, nothing goes
                    assert not Counter(content[name]) - Counter(store.snapshot()[name])
        elif what == "begin":
            model.reported.discard(name_of(first))
            store.begin_run(name_of(first))
            assert store.snapshot() is before
        elif what == "expire":
            now += first
            model.expire(now)
            store.expire(now)
            assert store.next_deadline is None or store.next_deadline > now
        elif what == "read":
            followers[first].read(give=second)
        else:
            followers[first] = Follower(store)
        for provider in known - model.known():
            generations[int(provider[1])] += 1

        snapshot, expected = store.snapshot(), model.content()
        assert dict(snapshot) == expected
        assert list(snapshot) == list(expected)
        assert {name: tuple(leaving) for name, leaving in model.leaving.items()} == store.leaving
        deadlines = [deadline for leaving in model.leaving.values() for deadline in leaving.values()]
        assert store.next_deadline == min(deadlines, default=None)
        for name, groups in expected.items():
            assert snapshot.group_count(name) == len(groups)
            assert snapshot.target_count(name) == sum(len(found.targets) for found in groups)
        for provider in known | model.known():
            assert dict(store.groups(provider)) == model.held.get(provider, {})
        assert revision <= store.revision <= revision + 1
        assert (snapshot is before) == (store.revision == revision)
        if expected != content:
            assert store.revision == revision + 1, "what can be seen to differ is a revision"
        assert calls == list(range(1, store.revision + 1))
        kept.append((snapshot, expected))

    for follower in followers:
        follower.read(give=True)
        assert same(follower.state, by_source(model.content()))
        follower.read(give=True)
    for snapshot, expected in kept:
        assert dict(snapshot) == expected, "a snapshot taken earlier never changes"


# --- the age of what is shown ---


def restored_store(*groups: TargetGroup) -> TargetStore:
    """Return a store with what an earlier process has found, which was right at 7, and now its provider runs."""
    store = TargetStore()
    store.restore({"s": ["p"]}, {"p": (groups, 1_007.0, 7.0)})
    store.apply({"s": ["p"]}, restarted=["p"], deadline=10_000.0)
    return store


def test_what_is_confirmed_piece_by_piece_is_as_old_as_the_first_piece() -> None:
    s, u = group("s", "1"), group("u", "1")
    store = restored_store(s, u)
    known = store.last_known("p")
    store.report("p", [group("s", "1"), known["u"]], now=1_000, failing=True)
    assert (store.known_right("p"), store.stale_since("p")) == (7, 1_007)
    store.report("p", [group("u", "1")], now=5_000, failing=True)
    assert (store.known_right("p"), store.stale_since("p")) == (1_000, None), "the first may be unreadable by now"
    store.report("p", [], now=6_000)
    assert store.known_right("p") == 6_000


def test_who_had_nothing_and_shows_what_it_was_lent_is_as_old_as_that() -> None:
    store = TargetStore()
    store.restore({"s": ["old"]}, {"old": ((group("x", "1"),), 1_007.0, 7.0)})
    store.apply({"s": ["old"], "t": ["p"]}, restarted=["p"], deadline=10_000.0)
    store.report("p", [], now=500)
    store.apply({"s": ["p"], "t": ["p"]}, restarted=["p"], deadline=10_000.0)
    store.report("p", [store.last_known("p")["x"]], now=600, failing=True)
    assert (store.known_right("p"), store.stale_since("p")) == (7, 1_007)
    assert store.snapshot().stale == {"s": 1_007, "t": 1_007}
