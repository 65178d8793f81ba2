"""Removals that wait: what is shown is what is found, and what went less than the delay ago.

The model is a plain reference: the targets that are found, and a list of those that went and when. It counts each
target by its labels, whatever group they are written in; an empty value is no label. A target that is found twice has
not gone as long as it is found once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from trio_sd.damping import Damping
from trio_sd.store import TargetStore
from trio_sd.targets import ADDRESS_LABEL, TargetGroup
from trio_sd.testing import group

DELAY: Final = 10.0

LabelSet = frozenset[tuple[str, str]]


def effective(found: TargetGroup, target: Mapping[str, str]) -> LabelSet:
    """Return the labels that a target has, as everybody who uses it sees them."""
    return frozenset((name, value) for name, value in {**found.labels, **target}.items() if value)


def each(groups: Iterable[TargetGroup]) -> Counter[LabelSet]:
    return Counter(effective(one, target) for one in groups for target in one.targets)


def address(labels: LabelSet) -> str:
    return dict(labels).get(ADDRESS_LABEL, "")


def addresses(groups: Iterable[TargetGroup]) -> list[str]:
    """Return the addresses of all targets in the order in which they are shown."""
    return [address(effective(one, target)) for one in groups for target in one.targets]


# --- the model ---


@dataclass
class Model:
    """One provider: what is found of it, and what went and when, in that order."""

    delay: float = DELAY
    found: dict[str, TargetGroup] = field(default_factory=dict)
    gone: list[tuple[float, LabelSet]] = field(default_factory=list)

    def report(self, groups: Sequence[TargetGroup], now: float, *, full: bool) -> None:
        before = each(self.found.values())
        after = {} if full else dict(self.found)
        after |= {one.source: one for one in groups}
        self.found = {source: one for source, one in after.items() if one.targets}
        has = each(self.found.values())
        added = has.keys() - before.keys()
        having = Counter(address(labels) for labels in has)
        removed = [labels for labels in before if labels not in has]
        self.gone += [(now, labels) for labels in removed]
        self.gone = [(at, labels) for at, labels in self.gone if labels not in has]
        had = Counter(address(labels) for _, labels in self.gone)
        same = {one for labels in added if having[one := address(labels)] == had[one] == 1} - {""}
        self.gone = [(at, labels) for at, labels in self.gone if address(labels) not in same]

    def expire(self, now: float) -> None:
        self.gone = [(at, labels) for at, labels in self.gone if at + self.delay > now]

    @property
    def shown(self) -> Counter[LabelSet]:
        return each(self.found.values()) + Counter(labels for _, labels in self.gone)

    @property
    def next_deadline(self) -> float | None:
        return min([at + self.delay for at, _ in self.gone], default=None)


# --- the store beside the model ---

label_sets = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2", ""]), max_size=2)


@st.composite
def groups(draw: st.DrawFn) -> TargetGroup:
    labels = draw(label_sets)
    shared = draw(st.sampled_from([None, None, None, "x:1"]))
    if shared is not None:
        labels[ADDRESS_LABEL] = shared
    targets = []
    for own in draw(st.lists(label_sets, max_size=3)):
        if shared is None or draw(st.booleans()):
            own[ADDRESS_LABEL] = draw(st.sampled_from(["x:1", "y:1", "z:1", ""]))
        targets.append(own)
    return TargetGroup(draw(st.sampled_from(["p", "q", "r"])), targets, labels)


@dataclass(frozen=True)
class Report:
    groups: tuple[TargetGroup, ...]


@dataclass(frozen=True)
class NewRun:
    """The next report is a full set."""


@dataclass(frozen=True)
class Pass:
    """Time passes."""

    seconds: float


steps = st.lists(
    st.one_of(
        st.builds(Report, st.lists(groups(), max_size=3).map(tuple)),
        st.builds(Report, st.lists(groups(), max_size=3).map(tuple)),
        st.builds(NewRun),
        st.builds(Pass, st.sampled_from([0.0, 1.0, 3.0, DELAY / 2, DELAY, 2 * DELAY])),
    ),
    max_size=25,
)


@settings(max_examples=max(100, settings().max_examples))
@given(steps)
def test_what_is_shown_is_what_is_found_and_what_went_less_than_the_delay_ago(sequence: list[object]) -> None:
    store = TargetStore(removal_delay=DELAY)
    store.apply({"set": ["one"]}, restarted=["one"], deadline=inf)
    model = Model()
    now, full = 100.0, True
    for step in sequence:
        before = store.snapshot()
        match step:
            case Report(sent):
                model.report(sent, now, full=full)
                store.report("one", sent, now=now)
                full = False
            case NewRun():
                store.begin_run("one")
                full = True
            case Pass(seconds):
                until = now + seconds
                while (deadline := store.next_deadline) is not None and deadline <= until:
                    # At every moment before its deadline it is there, at its deadline it is not.
                    store.expire(deadline - 1e-6)
                    assert each(store.snapshot()["set"]) == model.shown
                    model.expire(deadline)
                    store.expire(deadline)
                    event("something was let go")
                    assert each(store.snapshot()["set"]) == model.shown
                now = until
        shown = store.snapshot()["set"]
        assert each(shown) == model.shown
        assert store.next_deadline == model.next_deadline
        assert store.counts("one") == (len(shown), sum(model.shown.values()))
        assert dict(store.last_known("one")) == model.found
        assert [one.source for one in shown] == sorted({one.source for one in shown})
        assert all(one.targets for one in shown)
        if model.gone:
            event("something lingers")
        if each(before["set"]) == each(shown) and isinstance(step, Report) and model.gone:
            event("a report that changes nothing to see")


# --- examples ---


def a_store(delay: float = DELAY) -> TargetStore:
    store = TargetStore(removal_delay=delay)
    store.apply({"set": ["one"]}, restarted=["one"], deadline=inf)
    return store


def shown(store: TargetStore) -> dict[str, list[str]]:
    """Return the addresses that are shown, by source."""
    return {one.source: addresses([one]) for one in store.snapshot()["set"]}


def labelled(source: str, *targets: Mapping[str, str], **labels: str) -> TargetGroup:
    return TargetGroup(source, targets, labels)


def at(host: str, **labels: str) -> dict[str, str]:
    return {ADDRESS_LABEL: host, **labels}


def test_a_removal_waits_and_an_addition_does_not() -> None:
    store = a_store()
    store.report("one", [group("p", "1", "2")], now=0)
    store.report("one", [group("p", "2", "3")], now=5)
    assert shown(store) == {"p": ["2", "3", "1"]}
    assert store.next_deadline == 15
    store.expire(14.999)
    assert shown(store) == {"p": ["2", "3", "1"]}
    store.expire(15)
    assert shown(store) == {"p": ["2", "3"]}
    assert store.next_deadline is None


def test_a_group_that_goes_whole_keeps_its_labels_until_then() -> None:
    store = a_store()
    store.report("one", [labelled("p", at("1"), zone="a")], now=0)
    before = store.snapshot()
    store.report("one", [group("p")], now=1)
    assert store.snapshot()["set"][0] is before["set"][0]
    assert store.revision == before.revision, "what nobody is to see yet is no news"
    store.expire(11)
    assert store.snapshot()["set"] == ()
    assert store.revision == before.revision + 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([group("p", "1", "2")], [group("p", "1")]),
        ([group("p", "1", "2"), group("q", "3")], [group("q"), group("p", "2", "1")]),
        ([labelled("p", at("1"), at("2"), v="1")], [labelled("p", at("1", v="1"))]),
        ([labelled("p", at("1"), v="1")], [group("p")]),
    ],
)
def test_a_target_that_comes_back_was_never_seen_to_leave(first: list[TargetGroup], second: list[TargetGroup]) -> None:
    store = a_store()
    store.report("one", first, now=0)
    reader = store.reader()
    reader.given(reader.read())
    was = each(store.snapshot()["set"])
    for now in range(1, 100, 9):
        store.report("one", second, now=now)
        assert each(store.snapshot()["set"]) == was
        store.expire(now + 8)
        store.report("one", first, now=now + 8)
        assert each(store.snapshot()["set"]) == was
        assert store.next_deadline is None
    changes = reader.read().changes
    assert each(one for found in changes.values() for one in found.updated) in (Counter(), was)
    assert all(not found.removed for found in changes.values())


def test_the_order_in_which_targets_are_shown_does_not_change_by_a_removal_that_waits() -> None:
    store = a_store()
    store.report("one", [group("p", "1", "2", "3")], now=0)
    was = store.snapshot()["set"]
    for left in ["1", "3"], ["3"], ["2"], []:
        store.report("one", [group("p", *left)], now=1)
        assert store.snapshot()["set"] == was
    store.report("one", [group("p", "1", "2", "3")], now=2)
    assert store.snapshot()["set"] == was
    assert store.next_deadline is None


@pytest.mark.parametrize(
    ("now_found", "expected"),
    [
        pytest.param([labelled("p", at("1"), v="new")], {"p": ["1"]}, id="the group's label"),
        pytest.param([labelled("p", at("1", v="new"), v="old")], {"p": ["1"]}, id="its own label"),
        pytest.param([group("p"), labelled("q", at("1"), v="new")], {"q": ["1"]}, id="and its source"),
        pytest.param([group("p"), labelled("q", at("1"), v="old")], {"q": ["1"]}, id="its source only"),
        pytest.param([group("p"), labelled("q", at("1", v="old"))], {"q": ["1"]}, id="where its label is written"),
        pytest.param([labelled("p", at("2"), v="old")], {"p": ["2", "1"]}, id="another target"),
        pytest.param(
            [labelled("p", at("1", probe="a"), at("1", probe="b"), v="old")], {"p": ["1", "1", "1"]}, id="ambiguous"
        ),
    ],
)
def test_a_target_whose_labels_change_has_not_gone(
    now_found: list[TargetGroup], expected: dict[str, list[str]]
) -> None:
    store = a_store()
    store.report("one", [labelled("p", at("1"), v="old")], now=0)
    store.report("one", now_found, now=1)
    assert shown(store) == expected
    again = a_store()  # the same, when it is seen to go before it is seen to come
    again.report("one", [labelled("p", at("1"), v="old")], now=0)
    again.report("one", [group("p")], now=1)
    again.report("one", now_found, now=2)
    assert {source: sorted(found) for source, found in shown(again).items()} == {
        source: sorted(found) for source, found in expected.items()
    }


def test_what_lingers_keeps_its_labels_when_those_of_its_group_change() -> None:
    store = a_store()
    store.report("one", [labelled("p", at("1"), at("2"), a="1", b="2")], now=0)
    store.report("one", [labelled("p", at("1"), a="1", b="2")], now=1)
    store.report("one", [labelled("p", at("1"), b="3", c="4")], now=2)
    assert each(store.snapshot()["set"]) == Counter(
        [
            frozenset({(ADDRESS_LABEL, "1"), ("b", "3"), ("c", "4")}),
            frozenset({(ADDRESS_LABEL, "2"), ("a", "1"), ("b", "2")}),
        ]
    )
    store.report("one", [group("p")], now=3)
    store.expire(11)  # now what is left came last from another group than what went first
    assert each(store.snapshot()["set"]) == Counter([frozenset({(ADDRESS_LABEL, "1"), ("b", "3"), ("c", "4")})])
    store.expire(13)
    assert store.snapshot()["set"] == ()


def test_the_first_full_set_of_a_new_run_is_a_removal_like_any_other() -> None:
    store = a_store()
    store.report("one", [group("p", "1"), group("q", "2")], now=0)
    store.begin_run("one")
    store.report("one", [group("p", "1")], now=1)
    assert shown(store) == {"p": ["1"], "q": ["2"]}
    assert dict(store.last_known("one")) == {"p": group("p", "1")}
    store.expire(11)
    assert shown(store) == {"p": ["1"]}


def test_what_a_reload_takes_away_goes_by_the_rules_of_reloads() -> None:
    store = a_store()
    store.report("one", [group("p", "1", "2")], now=0)
    store.report("one", [group("p", "1")], now=1)
    store.apply({"set": []}, restarted=[], deadline=100)
    assert store.snapshot()["set"] == ()
    assert store.next_deadline is None
    store.apply({"set": ["one"]}, restarted=["one"], deadline=100)
    assert store.snapshot()["set"] == (), "and comes not back with its configuration"


def test_what_leaves_by_a_reload_shows_what_lingers_until_one_of_both_is_over() -> None:
    store = a_store()
    store.report("one", [group("p", "1", "2")], now=0)
    store.report("one", [group("p", "1")], now=1)
    store.apply({"set": ["two"]}, restarted=["two"], deadline=16)
    assert shown(store) == {"p": ["1", "2"]}
    assert set(store.last_known("two")) == {"p"}
    assert addresses(store.last_known("two").values()) == ["1"], "what lingers is not known to anybody"
    assert store.next_deadline == 11
    store.expire(11)
    assert shown(store) == {"p": ["1"]}
    assert store.next_deadline == 16
    store.expire(16)
    assert shown(store) == {}
    assert store.next_deadline is None


def test_providers_do_not_touch_each_others_targets() -> None:
    store = TargetStore(removal_delay=DELAY)
    store.apply({"set": ["one", "two"], "other": ["two"]}, restarted=["one", "two"], deadline=inf)
    store.report("one", [group("p", "1")], now=0)
    store.report("two", [group("q", "2")], now=0)
    store.report("one", [group("p")], now=1)
    store.report("two", [group("q", "1", "2")], now=2)
    assert shown(store) == {"p": ["1"], "q": ["1", "2"]}
    store.report("two", [group("q", "2")], now=3)
    store.expire(11)
    assert shown(store) == {"q": ["1", "2"]}
    store.expire(13)
    assert shown(store) == {"q": ["2"]}
    assert addresses(store.snapshot()["other"]) == ["2"]


def test_only_groups_that_change_cost_anything() -> None:
    """What does not change is the same object in every snapshot, also where other targets linger."""
    store = a_store()
    store.report("one", [group(f"{n:03}", f"{n}", f"{n}'") for n in range(200)], now=0)
    was = store.snapshot()["set"]
    store.report("one", [group("007", "7")], now=1)
    store.report("one", [group("008", "8", "new")], now=1)
    now_shown = store.snapshot()["set"]
    assert [one.source for one, before in zip(now_shown, was, strict=True) if one is not before] == ["008"]


# --- nothing is left behind ---


def bookkeeping(damping: Damping) -> list[object]:
    """Return everything that it holds of providers."""
    return [damping._queue, damping._providers]


def random_groups(rng: random.Random) -> list[TargetGroup]:
    addresses = [f"{n}" for n in range(8)]
    return [
        TargetGroup(f"{source}", [at(rng.choice(addresses)) for _ in range(rng.randrange(4))], {"w": rng.choice("01")})
        for source in rng.sample(range(6), rng.randrange(1, 4))
    ]


def test_nothing_grows_over_very_many_changes_and_nothing_is_left_in_the_end() -> None:
    rng = random.Random(1)
    damping = Damping(DELAY)
    held: dict[str, dict[str, TargetGroup]] = {"one": {}, "two": {}}

    def show(name: str, changed: list[TargetGroup]) -> None:
        for one in changed:
            if one.targets:
                held[name][one.source] = one
            else:
                held[name].pop(one.source, None)

    now, longest, steps_left = 0.0, 0, max(3_000, 2 * settings().max_examples)
    while steps_left or damping.next_deadline < inf:
        now += 0.5
        for name, changed in damping.expire(now, held.__getitem__).items():
            show(name, changed)
        if steps_left:
            steps_left -= 1
            name = rng.choice(list(held))
            sent = {one.source: one for one in random_groups(rng)}
            show(name, damping.take(name, sent, held[name], full=rng.random() < 0.1, now=now))
            longest = max(longest, len(damping._queue))
    assert longest < 20 * 6 * 3, "no more than what went within one delay"
    for name, known in held.items():
        assert known == dict(damping.found(name) or {}), "nothing else is shown any more"
        state = damping._providers[name]
        assert not state.lingering
        assert not state.by_address
        assert state.addresses == Counter(address(labels) for labels in each(known.values()))
        damping.forget(name)
    assert not any(bookkeeping(damping))


def test_a_provider_that_is_forgotten_lets_nothing_expire() -> None:
    damping = Damping(DELAY)
    before = {"p": group("p", "1")}
    damping.take("one", {}, before, full=True, now=0)
    damping.take("two", {}, before, full=True, now=1)
    assert damping.next_deadline == 10
    damping.forget("one")
    assert damping.next_deadline == 11
    damping.forget("two")
    damping.forget("nobody")
    assert damping.next_deadline == inf
    assert damping.expire(100, lambda _: {}) == {}
    assert not any(bookkeeping(damping))


@pytest.mark.parametrize("delay", [0.0, -0.0])
def test_without_a_delay_nothing_passes_through_here(delay: float) -> None:
    store = a_store(delay)
    sent = group("p", "1", "2")
    store.report("one", [sent], now=0)
    assert store.snapshot()["set"][0] is sent
    store.report("one", [group("p", "1")], now=0)
    assert shown(store) == {"p": ["1"]}
    store.begin_run("one")
    store.report("one", [], now=0)
    assert shown(store) == {}
    assert store.next_deadline is None


# --- where the rules at the head of the module are not kept ---


def test_an_endless_delay_keeps_what_went_and_does_not_double_what_comes_back() -> None:
    store = a_store(inf)
    store.report("one", [group("p", "1")], now=0)
    store.report("one", [group("p")], now=1)
    assert shown(store) == {"p": ["1"]}
    store.report("one", [group("p", "1")], now=2)
    assert shown(store) == {"p": ["1"]}
    store.report("one", [group("p")], now=3)
    assert shown(store) == {"p": ["1"]}


def test_an_empty_label_is_no_label_when_targets_are_told_apart() -> None:
    """Two probes of one address: their address does not tell which is which, but their labels do."""
    store = a_store()
    store.report("one", [labelled("p", at("1", probe="a"), at("1", probe="b"))], now=0)
    was = each(store.snapshot()["set"])
    store.report("one", [labelled("p", at("1", probe="a"), at("1", probe="b"), zone="")], now=1)
    assert each(store.snapshot()["set"]) == was


def test_targets_without_an_address_are_not_taken_for_each_other() -> None:
    store = a_store()
    store.report("one", [labelled("p", {"job": "a"})], now=0)
    store.report("one", [labelled("p", {"job": "b"})], now=1)
    assert each(store.snapshot()["set"]) == Counter([frozenset({("job", "a")}), frozenset({("job", "b")})])


def test_a_target_that_is_still_found_in_another_group_does_not_linger_beside_itself() -> None:
    """It moves from one group to another, and is seen to come before it is seen to go."""
    store = a_store()
    store.report("one", [group("p", "1")], now=0)
    store.report("one", [group("q", "1")], now=1)
    store.report("one", [group("p")], now=2)
    assert shown(store) == {"q": ["1"]}
    assert store.next_deadline is None
