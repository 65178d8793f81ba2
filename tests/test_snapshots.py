"""Snapshots: orders that are put right, changes in sets of several providers, and what is stale."""

from __future__ import annotations

import pytest
from immutables import Map

from trio_sd.snapshots import NO_GROUPS, Layout, Snapshot
from trio_sd.store import TargetStore
from trio_sd.testing import group


def test_an_order_is_put_right_after_several_changes_that_nobody_looked_at() -> None:
    groups, _, _ = NO_GROUPS.merged([group("a", "1"), group("c", "3"), group("d", "4")])
    assert [one.source for one in groups.ordered] == ["a", "c", "d"]
    for changed in group("b", "2"), group("c"), group("e", "5"):
        groups, _, _ = groups.merged([changed])
    assert [one.source for one in groups.ordered] == ["a", "b", "d", "e"]


@pytest.mark.parametrize("count", [9_999, 10_001, 12_345, 40_000])
def test_an_order_of_many_is_that_of_their_sources(count: int) -> None:
    # In no order, some of one beginning, and few of the others.
    sources = [f"{'common/' * (n % 3)}{n * 7919 % count:06}" for n in range(count)]
    groups, _, _ = NO_GROUPS.merged([group(source, "1") for source in sources])
    assert [one.source for one in groups.ordered] == sorted(sources)


def test_an_earlier_order_is_not_held_longer_than_needed() -> None:
    groups, _, _ = NO_GROUPS.merged([group("a", "1")])
    _ = groups.ordered
    groups, _, _ = groups.merged([group("b", "2")])
    before, _ = groups._order
    assert before is not None
    ordered = groups.ordered
    assert groups._order == (ordered, ())


def test_it_is_known_of_which_providers_nothing_was_ever_heard() -> None:
    store = TargetStore()
    store.apply({"web": ["a/0", "b/0"], "none": []}, restarted=["a/0", "b/0"], deadline=0.0)
    assert store.snapshot().unheard("web") == ("a/0", "b/0")
    assert store.snapshot().unheard("none") == store.snapshot().unheard("gone") == ()
    reader = store.reader()
    reader.given(reader.read())
    store.report("b/0", [])
    update = reader.read()
    assert (update.snapshot.unheard("web"), dict(update.changes)) == (("a/0",), {})
    assert update.snapshot.heard_of("b/0")
    store.report("a/0", [group("s", "1")])
    store.begin_run("a/0")
    assert store.snapshot().unheard("web") == ()


def test_changes_of_a_set_of_several_providers_come_in_order() -> None:
    names = [f"s{n:02}" for n in range(40)]  # enough that no set of texts is in order by chance
    store = TargetStore()
    store.apply({"web": ["a/0", "b/0"]}, restarted=["a/0", "b/0"], deadline=0.0)
    store.report("a/0", [group("zz", "0")])
    store.report("b/0", [group("zz", "0")])
    reader = store.reader()
    reader.given(reader.read())
    store.report("b/0", [group(name, "1") for name in reversed(names)])
    store.report("a/0", [group(name, "1") for name in reversed(names)])
    update = reader.read()
    assert [one.source for one in update.changes["web"].updated] == [*names, *names]
    reader.given(update)
    store.report("a/0", [group(name) for name in names])
    store.report("b/0", [group(name) for name in names])
    assert reader.read().changes["web"].removed == tuple(names)


def test_a_set_is_as_stale_as_its_oldest_part_and_sets_are_in_order() -> None:
    layout = Layout().followed_by({"web": ("a/0", "b/0"), "db": ("b/0",)})
    held, _, _ = NO_GROUPS.merged([group("s", "1")])
    providers = Map({"a/0": held, "b/0": held})
    snapshot = Snapshot(1, 1, layout, providers, Map({"b/0": 20.0, "a/0": 10.0}))
    assert snapshot.stale == {"web": 10.0, "db": 20.0}
    names = [f"s{n}" for n in range(20)]  # enough that they are in order by no chance
    layout = Layout().followed_by({name: (f"p/{name}",) for name in names})
    restored = Map({f"p/{name}": 1.0 for name in reversed(names)})
    assert list(Snapshot(1, 1, layout, Map(dict.fromkeys(restored, held)), restored).stale) == names
