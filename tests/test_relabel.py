"""Relabeling: rules, actions and the trace."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sd.errors import FieldError
from trio_sd.messages import quote
from trio_sd.relabel import (
    ACTIONS,
    LabelChange,
    NameScheme,
    RelabelConfig,
    Relabeler,
    RelabelError,
    explain,
    is_valid_label_name,
    relabel,
)

_SHARED = Path(__file__).parents[2] / "shared/facts"
FACTS = _SHARED if _SHARED.exists() else Path(__file__).parent / "data/relabel"


def facts(name: str) -> list[Any]:
    cases: list[Any] = json.loads((FACTS / f"relabel_{name}.json").read_text())
    return [pytest.param(case, id=case["id"]) for case in cases]


def rule(**given: Any) -> RelabelConfig:
    """Return a rule as the configuration spells it; null is the empty value there."""
    values: dict[str, Any] = {name: "" if value is None else value for name, value in given.items()}
    values["source_labels"] = tuple(values.get("source_labels", ()))
    return RelabelConfig(**values)


def rules(case: dict[str, Any]) -> list[RelabelConfig]:
    return [rule(**given) for given in case["relabel_configs"]]


# --- What the facts say ---


@pytest.mark.parametrize("case", [*facts("cases"), *facts("bench_cases")])
def test_labels_become_what_prometheus_makes_of_them(case: dict[str, Any]) -> None:
    given = dict(case["input"])
    scheme = case["name_validation_scheme"]
    assert relabel(given, rules(case), scheme) == case["output"]
    assert given == case["input"]
    trace = explain(given, rules(case), scheme)
    assert trace.labels == case["output"]
    assert (trace.dropped_by is None) is case["keep"]


@pytest.mark.parametrize("case", facts("errors"))
def test_rules_are_refused_as_prometheus_refuses_them(case: dict[str, Any]) -> None:
    (config,) = rules(case)
    if case["error_contains"] is None:
        config.validate(case["name_validation_scheme"])
    else:
        with pytest.raises(FieldError) as caught:
            config.validate(case["name_validation_scheme"])
        assert case["error_contains"] in str(caught.value)


@pytest.mark.parametrize("case", facts("target_label_legacy"))
def test_templates_of_legacy_names(case: dict[str, Any]) -> None:
    config = rule(target_label=case["target_label"])
    if case["valid_legacy"]:
        config.validate("legacy")
        config.validate("utf8")
    else:
        with pytest.raises(FieldError, match="is invalid 'target_label' for replace action"):
            config.validate("legacy")


# --- Rules that can't be used ---

_HASHMOD = {"action": "hashmod", "target_label": "a", "modulus": 2}


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"action": ""}, "action", "relabel action cannot be empty"),
        ({"action": "erase"}, "action", 'unknown relabel action "erase"; expected one of: replace, keep'),
        ({}, "target_label", "relabel configuration for replace action requires 'target_label' value"),
        ({"target_label": "\udcff"}, "target_label", "\"\\xff\" is invalid 'target_label' for replace action"),
        ({"source_labels": ["a", ""], "action": "keep"}, ("source_labels", 1), '"" is not a valid label name'),
        ({"source_labels": ["\udcff"], "action": "keep"}, ("source_labels", 0), '"\\xff" is not a valid label name'),
        ({**_HASHMOD, "modulus": 0}, "modulus", "relabel configuration for hashmod requires non-zero modulus"),
        ({**_HASHMOD, "modulus": -1}, "modulus", "found -1, expected a whole number from 0"),
        ({**_HASHMOD, "modulus": 2**64}, "modulus", "expected a whole number from 0"),
        ({**_HASHMOD, "target_label": ""}, "target_label", "hashmod action requires 'target_label' value"),
        ({"action": "labelmap", "replacement": ""}, "replacement", "\"\" is invalid 'replacement' for labelmap action"),
        *[
            ({"action": action}, "target_label", f"relabel configuration for {action} action requires 'target_label'")
            for action in ("lowercase", "uppercase", "keepequal", "dropequal")
        ],
        *[
            (
                {"action": action, "target_label": "a", "replacement": "b"},
                "replacement",
                f"'replacement' can not be set for {action} action",
            )
            for action in ("lowercase", "uppercase", "keepequal", "dropequal")
        ],
        *[
            (
                {"action": action, "target_label": "a", name: value},
                name,
                f"{action} action requires only 'source_labels' and `target_label`, and no other fields",
            )
            for action in ("keepequal", "dropequal")
            for name, value in {"regex": "a", "modulus": 1, "separator": ""}.items()
        ],
        *[
            ({"action": action, name: value}, name, f"{action} action requires only 'regex', and no other fields")
            for action in ("labeldrop", "labelkeep")
            for name, value in {
                "source_labels": ["a"],
                "target_label": "a",
                "modulus": 1,
                "separator": "",
                "replacement": "",
            }.items()
        ],
    ],
)
def test_a_rule_that_cant_be_used_names_its_field(given: dict[str, Any], field: Any, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        rule(**given).validate()
    assert message in caught.value.message == str(caught.value)
    assert caught.value.field == field
    with pytest.raises(FieldError):
        Relabeler([rule(**given)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_label": "a-b"}, "\"a-b\" is invalid 'target_label' for replace action"),
        ({"target_label": "${1}-"}, "\"${1}-\" is invalid 'target_label' for replace action"),
        ({**_HASHMOD, "target_label": "a$1"}, "\"a$1\" is invalid 'target_label' for hashmod action"),
        ({"action": "keepequal", "target_label": "é"}, "\"é\" is invalid 'target_label' for keepequal action"),
        ({"action": "labelmap", "replacement": "$1-x"}, "\"$1-x\" is invalid 'replacement' for labelmap action"),
        ({"target_label": "a\n"}, "is invalid 'target_label'"),
    ],
)
def test_legacy_names_are_fewer(given: dict[str, Any], message: str) -> None:
    rule(**given).validate("utf8")
    with pytest.raises(FieldError) as caught:
        rule(**given).validate("legacy")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ({"action": "keepequal", "source_labels": ["a"], "target_label": "b"}, "regex"),
        ({"action": "dropequal", "source_labels": ["a"], "target_label": "b"}, "regex"),
        ({"action": "labeldrop", "regex": "a"}, "source_labels"),
        ({"action": "labelkeep", "regex": "a"}, "source_labels"),
    ],
)
def test_some_fields_are_refused_even_at_their_default(given: dict[str, Any], spelled: str) -> None:
    config = rule(**given)
    config.validate()
    config.validate(given=given.keys() | {"separator"})
    with pytest.raises(FieldError, match="and no other fields") as caught:
        config.validate(given=given.keys() | {spelled})
    assert caught.value.field == spelled


def test_a_regular_expression_that_go_refuses_can_not_be_used() -> None:
    with pytest.raises(FieldError) as caught:
        rule(action="keep", regex="(").validate()
    assert str(caught.value).startswith("error parsing regexp: missing )")
    assert caught.value.field == "regex"


def test_actions_are_written_in_any_case() -> None:
    assert rule(action="LabelDrop", regex="a") == rule(action="labeldrop", regex="a")
    assert {rule(action="KEEP").action, *ACTIONS} == set(ACTIONS)


def test_a_rule_is_a_value() -> None:
    config = RelabelConfig()
    assert [field.name for field in fields(config)] == [
        "source_labels",
        "separator",
        "regex",
        "modulus",
        "target_label",
        "replacement",
        "action",
    ]
    assert hash(config) == hash(RelabelConfig())
    with pytest.raises(FrozenInstanceError):
        config.action = "keep"  # type: ignore[misc]  # that is what must fail


# --- Names and texts ---


@pytest.mark.parametrize(
    ("name", "legacy", "utf8"),
    [
        ("a", True, True),
        ("_a1", True, True),
        ("", False, False),
        ("1a", False, True),
        ("a.b", False, True),
        ("é", False, True),
        ("a\n", False, True),
        ("\udcff", False, False),
    ],
)
def test_names_of_labels(name: str, legacy: bool, utf8: bool) -> None:
    assert is_valid_label_name(name, "legacy") is legacy
    assert is_valid_label_name(name, "utf8") is utf8


def test_quotes_are_printable() -> None:
    assert quote('a"\n') == '"a\\"\\n"'
    assert quote("é") == '"é"'
    assert quote("é\udcff\ud800") == '"é\\xff\\ud800"'


# --- Actions ---


def one(labels: dict[str, str], **given: Any) -> dict[str, str] | None:
    return relabel(labels, [rule(**given)])


def test_replace() -> None:
    assert one({"a": "1", "b": "2"}, source_labels=["a", "b", "c"], target_label="d") == {
        "a": "1",
        "b": "2",
        "d": "1;2;",
    }
    assert one({"a": "1"}, source_labels=["a"], separator="", target_label="b") == {"a": "1", "b": "1"}
    assert one({"a": "1", "b": "2"}, source_labels=["c"], target_label="b") == {"a": "1"}
    assert one({"a": "1"}, target_label="b", replacement="x") == {"a": "1", "b": "x"}
    assert one({"a": "1"}, target_label="a", replacement="") == {}
    assert one({"a": "1"}, source_labels=["a"], regex="", target_label="a", replacement="x") == {"a": "1"}
    assert one({}, source_labels=["a"], regex="", target_label="a", replacement="x") == {"a": "x"}
    assert one({"a": "1\n2"}, source_labels=["a"], regex="1.2", target_label="a", replacement="x") == {"a": "x"}


def test_replace_with_a_templated_target() -> None:
    given = {"source_labels": ["a"], "regex": "(.*)=(.*)", "target_label": "x_$1", "replacement": "$2"}
    assert one({"a": "k=v"}, **given) == {"a": "k=v", "x_k": "v"}
    assert one({"a": "k=", "x_k": "old"}, **given) == {"a": "k="}
    assert one({"a": "none"}, **given) == {"a": "none"}
    assert one({"a": "é=v"}, **given) == {"a": "é=v", "x_é": "v"}
    assert relabel({"a": "é=v"}, [rule(**given)], "legacy") == {"a": "é=v"}
    assert one({"a": "=v"}, **{**given, "target_label": "$1"}) == {"a": "=v"}
    assert one({"a": "x"}, source_labels=["a"], target_label="$$b") == {"a": "x", "$b": "x"}


def test_keep_and_drop() -> None:
    given = {"source_labels": ["a"], "regex": "1|2"}
    for value, kept in {"1": True, "2": True, "12": False, "": False}.items():
        assert (one({"a": value, "b": "x"}, action="keep", **given) is not None) is kept
        assert (one({"a": value, "b": "x"}, action="drop", **given) is None) is kept


def test_keepequal_and_dropequal() -> None:
    given = {"source_labels": ["a"], "target_label": "b"}
    for labels, equal in [({"a": "1", "b": "1"}, True), ({"a": "1"}, False), ({}, True), ({"b": "1"}, False)]:
        assert one(labels, action="keepequal", **given) == (labels if equal else None)
        assert one(labels, action="dropequal", **given) == (None if equal else labels)


def test_hashmod() -> None:
    given: dict[str, Any] = {"source_labels": ["a"], "target_label": "h", "action": "hashmod"}
    assert one({"a": "baz"}, modulus=1000, **given) == {"a": "baz", "h": "976"}
    assert one({}, modulus=1, **given) == {"h": "0"}
    expected = int(hashlib.md5(b"\xff").hexdigest()[16:], 16)
    assert one({"a": "\udcff"}, modulus=2**64 - 1, **given) == {"a": "\udcff", "h": str(expected % (2**64 - 1))}


def test_lower_and_upper_case_go_character_by_character() -> None:
    def case(action: str, text: str) -> str:
        result = one({"a": text}, source_labels=["a"], target_label="b", action=action)
        return (result or {}).get("b", "")

    assert case("lowercase", "ABC") == "abc"
    assert case("uppercase", "abc") == "ABC"
    assert case("lowercase", "ÄΣİ") == "ä\u03c3i"
    assert case("uppercase", "äßﬁŉᾳς") == "ÄßﬁŉᾼΣ"
    assert case("lowercase", "é\udcff") == "é\ufffd"
    assert case("uppercase", "") == ""


def test_labelmap() -> None:
    labels = {"m_a": "1", "m_b": "2", "b": "3", "c": "4"}
    assert one(labels, action="labelmap", regex="m_(.+)") == {**labels, "a": "1", "b": "2"}
    assert one(labels, action="labelmap", regex="m_.+", replacement="x") == {**labels, "x": "2"}
    assert one(dict(reversed(labels.items())), action="labelmap", regex="m_.+", replacement="x") == {**labels, "x": "2"}
    # What a label is renamed to is not renamed again, nor is its new value copied on.
    assert one({"a": "1", "ab": "2"}, action="labelmap", regex="(a.*)", replacement="${1}b") == {
        "a": "1",
        "ab": "1",
        "abb": "2",
    }
    # Nor does anything look at the new name.
    assert one({"m_": "1"}, action="labelmap", regex="m_(.*)") == {"m_": "1", "": "1"}


def test_labeldrop_and_labelkeep() -> None:
    labels = {"a": "1", "ab": "2", "b": "3"}
    assert one(labels, action="labeldrop", regex="a.*") == {"b": "3"}
    assert one(labels, action="labelkeep", regex="a.*") == {"a": "1", "ab": "2"}


def test_a_label_without_a_value_is_not_there() -> None:
    assert relabel({"a": "", "b": "1"}, []) == {"b": "1"}
    assert one({"a": ""}, action="labelmap", regex="a", replacement="b") == {}


def test_names_are_remembered_but_not_without_end() -> None:
    relabeler = Relabeler([rule(action="labelmap", regex="(?:x|xx)([0-9]+)")])
    for index in range(3000):
        assert relabeler.relabel({f"x{index}": "v"}) == {f"x{index}": "v", str(index): "v"}


# --- The trace ---


def test_the_trace_says_what_each_rule_did() -> None:
    configs = [
        rule(source_labels=["a", "b"], target_label="a", regex="1;2", replacement="9"),
        rule(source_labels=["a"], target_label="c", regex="no"),
        rule(action="labeldrop", regex="b"),
        rule(source_labels=["a"], action="drop", regex="9"),
        rule(source_labels=["a"], target_label="never", replacement="x"),
    ]
    trace = explain({"a": "1", "b": "2"}, configs)
    assert trace.labels is None
    assert trace.dropped_by is trace.steps[3]
    assert [(s.index, s.config, s.value, s.matched, s.changes, s.kept) for s in trace.steps] == [
        (0, configs[0], "1;2", True, (LabelChange("a", "1", "9"),), True),
        (1, configs[1], "9", False, (), True),
        (2, configs[2], None, None, (LabelChange("b", "2", None),), True),
        (3, configs[3], "9", True, (), False),
    ]
    assert explain({"a": ""}, []).labels == {}
    assert hash(explain({"a": "1"}, configs)) == hash(explain({"a": "1"}, configs))


_NAMES = st.sampled_from(["a", "b", "ab", "é", "__meta_a", "__meta_b"])
_RULES = st.builds(
    RelabelConfig,
    source_labels=st.lists(_NAMES, max_size=3).map(tuple),
    separator=st.sampled_from([";", "", "ab"]),
    regex=st.sampled_from(["(.*)", "", "a", "a|b", "(a).*", "(.+)b", "__meta_(.+)", "(a*)(b*)", "(?:a|ab)(b?)"]),
    modulus=st.integers(0, 5),
    target_label=st.sampled_from(["a", "b", "new", "$1", "x${2}", ""]),
    replacement=st.sampled_from(["$1", "", "x", "${2}$1", "$0"]),
    action=st.sampled_from(ACTIONS),
)


@settings(max_examples=2 * settings().max_examples)
@given(
    st.dictionaries(_NAMES, st.text("ab;é\udcff", max_size=3)),
    st.lists(_RULES, max_size=6),
    st.sampled_from(["utf8", "legacy"]),
)
def test_the_trace_ends_where_relabeling_ends(
    labels: dict[str, str], configs: list[RelabelConfig], scheme: NameScheme
) -> None:
    valid = []
    for config in configs:
        try:
            config.validate(scheme)
        except FieldError:
            continue
        config.validate("utf8")
        valid.append(config)
    relabeler = Relabeler(valid, scheme)
    before = dict(labels)
    trace = relabeler.explain(labels)
    result = relabeler.relabel(labels)
    assert labels == before
    assert trace.labels == result
    assert (trace.dropped_by is not None) is (result is None)
    # Its changes, one after the other, lead from the labels to the result.
    current = {name: value for name, value in labels.items() if value}
    for step in trace.steps:
        for change in step.changes:
            assert current.pop(change.name, None) == change.before
            if change.after is not None:
                current[change.name] = change.after
        assert "" not in current.values()
    assert result is None or current == result


# --- Rules that double something ---


@pytest.mark.parametrize(
    ("rules", "made"),
    [
        ([rule(source_labels=["a", "a"], target_label="a")] * 30, "characters"),
        ([rule(source_labels=["a", "b", "a"], target_label="a")] * 30, "characters"),
        ([rule(source_labels=["a"], target_label="a", replacement="$1$1")] * 30, "characters"),
        ([rule(source_labels=["a"], target_label="a", replacement="$1$1"), rule(action="keep")] * 30, "characters"),
        ([rule(action="labelmap", regex="(.*)", replacement="$1$1")] * 30, "characters"),
        ([rule(action="labelmap", regex="(.*)", replacement=f"x{n}_$1") for n in range(30)], "labels"),
    ],
)
def test_rules_that_double_something_do_not_fill_the_memory(rules: list[RelabelConfig], made: str) -> None:
    relabeler = Relabeler(rules)
    labels = {"a": "value", "b": "other"}
    with pytest.raises(RelabelError, match=rf"the rules make .*{made}, expected 1\d+ at the most"):
        relabeler.relabel(labels)
    trace = relabeler.explain(labels)
    assert (trace.labels, trace.dropped_by) == (None, None)
    assert 5 < len(trace.steps) < len(rules)
    assert trace.error is not None
    assert trace.error.startswith("the rules make")


def test_a_name_that_rules_double_is_bounded_too() -> None:
    config = rule(source_labels=["a"], target_label="${1}${1}", replacement="x")
    with pytest.raises(RelabelError, match="a text of 1200000 characters, expected 1048576 at the most"):
        relabel({"a": "x" * 600_000}, [config])
    assert relabel({"a": "x" * 500_000}, [config]) is not None


def test_what_is_long_already_may_stay_long() -> None:
    long = "x" * 2_000_000
    rules = [rule(source_labels=["a"], target_label="b"), rule(source_labels=["a"], action="keep", regex="x+")]
    assert relabel({"a": long}, rules) == {"a": long, "b": long}
