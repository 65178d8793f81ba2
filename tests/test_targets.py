"""The values that everything else shares: label sets and target groups."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import tracemalloc
from collections import UserDict, deque
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from types import MappingProxyType
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.targets import ADDRESS_LABEL, META_LABEL_PREFIX, Labels, TargetGroup, join_host_port

label_dicts = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=6)


class Name(str):
    """A string that is not quite a string."""

    __slots__ = ()


# --- Labels: a mapping ---


@given(label_dicts)
def test_labels_are_a_mapping_ordered_by_name(labels: dict[str, str]) -> None:
    made = Labels(labels)
    assert dict(made) == labels
    assert list(made) == sorted(labels)
    assert list(made.items()) == sorted(labels.items())
    assert list(made.values()) == [value for _, value in sorted(labels.items())]
    assert len(made) == len(labels)
    assert bool(made) == bool(labels)
    for name, value in labels.items():
        assert made[name] == value
        assert name in made


@given(label_dicts, st.text(max_size=8))
def test_labels_lookup_agrees_with_dict(labels: dict[str, str], name: str) -> None:
    made = Labels(labels)
    assert (name in made) == (name in labels)
    assert made.get(name, "fallback") == labels.get(name, "fallback")
    if name not in labels:
        with pytest.raises(KeyError) as caught:
            made[name]
        assert caught.value.args == (name,)


def test_labels_value_is_never_taken_for_a_name() -> None:
    made = Labels({"a": "b", "c": "d"})
    assert "b" not in made
    assert "d" not in made
    assert made.get("b") is None


@given(label_dicts, label_dicts)
def test_labels_equality_and_hash_agree_with_dict(one: dict[str, str], other: dict[str, str]) -> None:
    assert (Labels(one) == Labels(other)) == (one == other)
    assert (Labels(one) == other) == (one == other)
    assert (other == Labels(one)) == (one == other)
    assert (Labels(one) != other) == (one != other)
    if one == other:
        assert hash(Labels(one)) == hash(Labels(other))


@given(label_dicts)
def test_labels_order_of_insertion_does_not_matter(labels: dict[str, str]) -> None:
    backwards = dict(reversed(labels.items()))
    assert Labels(labels) == Labels(backwards)
    assert hash(Labels(labels)) == hash(Labels(backwards))
    assert repr(Labels(labels)) == repr(Labels(backwards)) == repr(dict(sorted(labels.items())))


@pytest.mark.parametrize("other", [None, 1, "a", (), ("a", "b"), [("a", "b")], {"a"}, object()])
def test_labels_are_unequal_to_what_is_no_mapping(other: object) -> None:
    assert Labels({"a": "b"}) != other
    assert Labels() != other


@pytest.mark.parametrize("kind", [dict, MappingProxyType, UserDict, Labels])
def test_labels_are_made_of_any_mapping(kind: Any) -> None:
    source = cast("Mapping[str, str]", kind({"b": "2", "a": "1"}))
    assert Labels(source) == {"a": "1", "b": "2"}
    assert Labels(source) == source


@pytest.mark.parametrize("labels", [{}, {"a": "1"}, {"b": "2", "a": "1"}])
def test_labels_do_not_change_with_the_dict_they_were_made_of(labels: dict[str, str]) -> None:
    before = dict(labels)
    made = Labels(labels)
    labels["z"] = "later"
    labels.pop("a", None)
    assert made == before


def test_labels_are_immutable() -> None:
    made: Any = Labels({"a": "1"})
    with pytest.raises(TypeError):
        made["a"] = "2"
    with pytest.raises(TypeError):
        del made["a"]
    with pytest.raises(AttributeError):
        made.extra = 1
    for method in ("update", "pop", "clear", "setdefault", "popitem"):
        assert not hasattr(made, method)
    assert made == {"a": "1"}


@pytest.mark.parametrize(
    "labels",
    [
        {"a": 1},
        {"a": None},
        {"a": b"x"},
        {"a": ["x"]},
        {"a": {"b": "c"}},
        {1: "x"},
        {None: "x"},
        {"a": "x", "b": 2},
        {"a": "x", 2: "y"},
        {1: "x", 2: "y"},
        {"a": Name("x")},
        {Name("a"): "x"},
    ],
)
def test_labels_of_anything_but_str_are_refused(labels: Any) -> None:
    with pytest.raises(TypeError):
        Labels(labels)
    with pytest.raises(TypeError):
        TargetGroup("s", [labels])
    with pytest.raises(TypeError):
        TargetGroup("s", [], labels)


def test_labels_refusal_names_what_was_found() -> None:
    with pytest.raises(TypeError, match=r"str, not int: 9090"):
        Labels(cast("Mapping[str, str]", {"port": 9090}))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_labels_and_groups_survive_pickling(protocol: int) -> None:
    labels = Labels({"b": "2", "a": "1"})
    group = TargetGroup("s", [{ADDRESS_LABEL: "h:1"}], labels)
    for value in (labels, Labels(), group):
        back = pickle.loads(pickle.dumps(value, protocol))
        assert type(back) is type(value)
        assert back == value
        assert hash(back) == hash(value)


def test_labels_and_groups_survive_copying() -> None:
    group = TargetGroup("s", [{ADDRESS_LABEL: "h:1"}], {"a": "1"})
    for value in (group.labels, group):
        for copied in (copy.copy(value), copy.deepcopy(value)):
            assert type(copied) is type(value)
            assert copied == value


def test_labels_of_labels_share_their_content() -> None:
    content = {f"name-{n}": "v" * 100 for n in range(100)}
    first = Labels(content)
    gc.collect()
    tracemalloc.start()
    try:
        copies = [Labels(first) for _ in range(1_000)]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(copies) == 1_000
    assert size < 1_000 * 200


@given(label_dicts)
def test_labels_of_what_is_in_order_are_like_any_other(labels: dict[str, str]) -> None:
    plain = Labels(labels)
    made = Labels.of_sorted(tuple([text for item in sorted(labels.items()) for text in item]))
    assert made == plain
    assert made == labels
    assert hash(made) == hash(plain)
    assert list(made.items()) == list(plain.items())


def test_labels_take_half_the_memory_of_a_dict() -> None:
    names = [ADDRESS_LABEL]
    gc.collect()
    tracemalloc.start()
    try:
        kept = [Labels({names[0]: names[0]}) for _ in range(10_000)]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    a_dict = sys.getsizeof({names[0]: names[0]})
    assert size / len(kept) < 120 < a_dict


# --- TargetGroup ---


def test_group_is_frozen() -> None:
    group: Any = TargetGroup("s", [{"a": "1"}], {"b": "2"})
    for name in ("source", "targets", "labels"):
        with pytest.raises(FrozenInstanceError):
            setattr(group, name, "x")
        with pytest.raises(FrozenInstanceError):
            delattr(group, name)
    with pytest.raises((AttributeError, TypeError)):
        group.extra = 1
    with pytest.raises(TypeError):
        group.targets[0] = {}
    with pytest.raises(TypeError):
        group.targets[0]["a"] = "2"
    with pytest.raises(TypeError):
        group.labels["b"] = "3"
    assert group == TargetGroup("s", [{"a": "1"}], {"b": "2"})


def test_group_does_not_change_with_what_it_was_made_of() -> None:
    target = {"a": "1"}
    targets = [target]
    labels = {"b": "2"}
    group = TargetGroup("s", targets, labels)
    target["a"] = "changed"
    targets.append({"c": "3"})
    labels["b"] = "changed"
    assert group.targets == ({"a": "1"},)
    assert group.labels == {"b": "2"}


def test_group_equality_and_hash() -> None:
    group = TargetGroup("s", [{"a": "1"}], {"b": "2"})
    same = TargetGroup("s", ({"a": "1"},), Labels({"b": "2"}))
    assert group == same
    assert hash(group) == hash(same)
    assert len({group, same}) == 1
    for different in (
        TargetGroup("t", [{"a": "1"}], {"b": "2"}),
        TargetGroup("s", [{"a": "2"}], {"b": "2"}),
        TargetGroup("s", [{"a": "1"}]),
        TargetGroup("s", [{"a": "1"}, {"a": "1"}], {"b": "2"}),
        TargetGroup("s", [], {"b": "2"}),
    ):
        assert group != different


def test_group_order_of_targets_is_part_of_its_value() -> None:
    assert TargetGroup("s", [{"a": "1"}, {"a": "2"}]) != TargetGroup("s", [{"a": "2"}, {"a": "1"}])


def test_group_labels_default_to_one_shared_empty_set() -> None:
    assert TargetGroup("s", []).labels == {}
    assert TargetGroup("s", []).labels is TargetGroup("t", []).labels


def test_group_keeps_the_label_sets_it_is_given() -> None:
    target, labels = Labels({"a": "1"}), Labels({"b": "2"})
    group = TargetGroup("s", [target], labels)
    assert group.targets[0] is target
    assert group.labels is labels


@pytest.mark.parametrize("kind", [list, tuple, iter, deque])
def test_group_of_one_target_is_the_same_whatever_the_target_comes_in(kind: Any) -> None:
    for target in ({"a": "1"}, Labels({"a": "1"})):
        group = TargetGroup("s", kind([target]))
        assert group == TargetGroup("s", [{"a": "1"}])
        assert type(group.targets) is tuple
        assert type(group.targets[0]) is Labels


def test_group_takes_any_iterable_of_targets() -> None:
    group = TargetGroup("s", cast("Any", ({"n": str(n)} for n in range(3))))
    assert group.targets == ({"n": "0"}, {"n": "1"}, {"n": "2"})


@pytest.mark.parametrize("source", [None, 1, b"s", ["s"], object()])
def test_group_source_of_another_type_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="source is a str, not"):
        TargetGroup(source, [])


@pytest.mark.parametrize("targets", [None, 1])
def test_group_targets_that_are_no_sequence_are_refused(targets: Any) -> None:
    with pytest.raises(TypeError):
        TargetGroup("s", targets)


@pytest.mark.parametrize("targets", ["host:80", ["host:80"], ("host:80",), [None], (None,), [1], [[("a", "b")]]])
def test_group_targets_that_are_no_mappings_are_refused(targets: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        TargetGroup("s", targets)


def test_group_with_odd_text() -> None:
    text = "ä\x00\n\ud800" + "x" * 10_000
    assert TargetGroup(text, [{text: text}], {text: ""}).targets[0][text] == text
    assert TargetGroup("", [{"": ""}]).targets == ({"": ""},)


def test_label_names_are_prometheus_own() -> None:
    assert ADDRESS_LABEL == "__address__"
    assert META_LABEL_PREFIX == "__meta_"


# --- join_host_port ---


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("example.org", 80, "example.org:80"),
        ("example.org", "80", "example.org:80"),
        ("10.0.0.1", 9090, "10.0.0.1:9090"),
        ("::1", 80, "[::1]:80"),
        ("[::1]", 80, "[::1]:80"),
        ("2001:db8::1", 443, "[2001:db8::1]:443"),
        ("fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
        ("::ffff:10.0.0.1", 0, "[::ffff:10.0.0.1]:0"),
        ("", 80, ":80"),
        ("host", "http", "host:http"),
    ],
)
def test_join_host_port(host: str, port: int | str, expected: str) -> None:
    assert join_host_port(host, port) == expected
