from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.file.parse import parse
from trio_sd.discovery.file.patterns import Pattern, clean
from trio_sd.durations import Duration
from trio_sd.errors import ConfigError, FieldError
from trio_sd.limits import Limits
from trio_sd.targets import TargetGroup

A_NAME = "; expected letters, digits and _, no digit first"

_NAME = "file_sd_cases.json"
_SHARED = Path(__file__).parents[2] / "shared/facts" / _NAME
FACTS = _SHARED if _SHARED.exists() else Path(__file__).parent / "data/file_sd" / _NAME
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in json.loads(FACTS.read_text())}

LIMITS = Limits()


def groups(content: str | bytes, path: str = "a.json", limits: Limits = LIMITS) -> tuple[TargetGroup, ...]:
    return parse(content.encode() if isinstance(content, str) else content, path, limits)


def plain(found: tuple[TargetGroup, ...]) -> list[dict[str, Any]]:
    return [
        {"source": g.source, "targets": [t["__address__"] for t in g.targets], "labels": dict(g.labels)} for g in found
    ]


def refused(content: str | bytes, path: str = "a.json", limits: Limits = LIMITS) -> str:
    with pytest.raises(ConfigError) as caught:
        groups(content, path, limits)
    return str(caught.value)


@pytest.mark.parametrize("case", [c for c in CASES.values() if "content" in c and "file" in c], ids=lambda c: c["id"])
def test_fact_about_content(case: dict[str, Any]) -> None:
    expected = case["expected"]
    if isinstance(expected, list):
        assert json.loads(json.dumps(expected).replace("{file}", case["file"])) == plain(
            groups(case["content"], case["file"])
        )
    elif expected.startswith("the file is refused"):
        refused(case["content"], case["file"])
    else:
        assert "the group is sent as it is" in expected
        assert plain(groups(case["content"], case["file"]))[0]["targets"] == ["http://h:1/x"]


@pytest.mark.parametrize("case", [c for c in CASES.values() if "pattern" in c], ids=lambda c: c["id"])
def test_fact_about_a_path(case: dict[str, Any]) -> None:
    config = FileSDConfig((case["pattern"],))
    if case["expected"] == "accepted":
        config.validate()
    else:
        with pytest.raises(FieldError) as caught:
            config.validate()
        assert caught.value.field == ("files", 0)
        assert f"refused: {caught.value}".startswith(case["expected"])


def test_a_config_without_paths_is_refused() -> None:
    with pytest.raises(FieldError, match=r"^file service discovery config must contain at least one path name$"):
        FileSDConfig().validate()


def test_a_refresh_interval_of_zero_is_refused_and_five_minutes_are_the_default() -> None:
    assert FileSDConfig(("a.json",)).refresh_interval.seconds == 300
    with pytest.raises(FieldError, match="greater than zero"):
        FileSDConfig(("a.json",), Duration.of("0s")).validate()


def test_relative_paths_are_taken_from_the_directory_of_the_configuration() -> None:
    config = FileSDConfig(("a.json", "./b/../c/*.yml", "/x//y.json")).with_directory("/etc/prom")
    assert config.files == ("/etc/prom/a.json", "/etc/prom/c/*.yml", "/x//y.json")
    assert FileSDConfig(("a.json",)).with_directory("").files == ("a.json",)
    assert config.with_directory("/other") == config
    assert hash(config) == hash(config.with_directory("/other"))


def test_equal_keys_follow_go() -> None:
    assert plain(groups('[{"targets":["a"],"TARGETS":["b"],"targets":["c"]}]'))[0]["targets"] == ["c"]
    assert plain(groups('[{"targets":["a"],"Targets":["b"]}]'))[0]["targets"] == ["b"]
    labels = plain(groups('[{"labels":{"a":"1","b":"1","a":"2"},"Labels":{"b":"3"}}]'))[0]["labels"]
    assert labels == {"a": "2", "b": "3", "__meta_filepath": "a.json"}


def test_null_leaves_a_value_empty() -> None:
    assert plain(groups('[{"targets":null,"labels":null}, {"targets":[null],"labels":{"a":null}}, {}]')) == [
        {"source": "a.json:0", "targets": [], "labels": {"__meta_filepath": "a.json"}},
        {"source": "a.json:1", "targets": [""], "labels": {"a": "", "__meta_filepath": "a.json"}},
        {"source": "a.json:2", "targets": [], "labels": {"__meta_filepath": "a.json"}},
    ]


def test_groups_without_labels_share_one_label_set() -> None:
    for path, content in (("a.json", '[{"targets":["a"]},{"targets":["b"]}]'), ("a.yml", "- targets: [a]\n- {}\n")):
        first, second = groups(content, path)
        assert first.labels is second.labels


def test_the_own_meta_label_wins_over_the_files() -> None:
    assert groups('[{"labels":{"__meta_filepath":"fake"}}]')[0].labels == {"__meta_filepath": "a.json"}


@pytest.mark.parametrize("path", ["a.json", "a.yml", "a.YAML"])
@pytest.mark.parametrize("content", ["", "\n", "  \n\t"])
def test_an_empty_file_is_refused(path: str, content: str) -> None:
    assert refused(content, path).startswith(f"{path}:1:1: the file is empty")


@pytest.mark.parametrize("content", ["null", "~", "# nothing yet", "---", "[]"])
def test_a_yaml_file_that_says_nothing_on_purpose_is_an_empty_list(content: str) -> None:
    assert groups(content, "a.yml") == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"targets": ["a"]},\n {"Targets": [7]}]', "a.json:3:2: [1].targets[0]: expected a string, found"),
        ('[{"targets": "a"}]', "a.json:1:2: [0].targets: expected a list of strings, found a string"),
        ('[{"labels": []}]', "a.json:1:2: [0].labels: expected an object of strings, found a list"),
        ('[{"labels": {"a": {}}}]', "a.json:1:2: [0].labels.a: expected a string, found an object"),
        (
            '[{}, {"labels": {"9a": "b"}}]',
            'a.json:1:6: [1].labels: "9a" is not a valid label name' + A_NAME,
        ),
        ('[{"x": 1}]', 'a.json:1:2: [0]: unknown field "x"; a target group has targets and labels'),
        ("[null]", "a.json:1:2: [0]: nil target group item found"),
        ("[[]]", "a.json:1:2: [0]: expected a target group, found a list"),
        ('{"targets": []}', "a.json:1:1: expected a list of target groups, found an object"),
        ("true", "a.json:1:1: expected a list of target groups, found true or false"),
        ("[NaN]", "a.json:1:1: not JSON: NaN"),
        ('[{"targets":\n["a" "b"]}]', "a.json:2:6: not JSON: Expecting ',' delimiter"),
        ('[{"targets": ["a"', "a.json:1:18: not JSON: Expecting ',' delimiter"),
        ("[]\n[]", "a.json:2:1: not JSON: Extra data"),
        ("[" * 100_000, "a.json:1:1: not a list of target groups: nested too deep"),
        ("\ufeff[]", "a.json:1:1: not JSON: Unexpected UTF-8 BOM"),
    ],
)
def test_a_json_error_names_the_place(content: str, message: str) -> None:
    assert refused(content).startswith(message)


def test_a_yaml_error_names_the_place() -> None:
    assert refused("- targets: [a]\n- targets: {}\n", "dir/a.yml").startswith("dir/a.yml:2:12: [1]")
    assert refused("- targets: [a\n", "a.yml").startswith("a.yml:2:1")
    assert "expected a list of target groups" in refused("targets: [h:1]\n", "a.yml")


def test_limits_refuse_loudly() -> None:
    two = '[{"targets":["a"]},{"labels":{"a":"1","b":"2"}}]'
    for path in ("a.json", "a.yml"):  # this JSON is YAML, too
        assert "2 groups are more than the 1 that the limit groups allows" in refused(two, path, Limits(groups=1))
        assert "2 labels are more than the 1 that the limit labels allows" in refused(two, path, Limits(labels=1))
        assert "limit file_bytes" in refused(two, path, Limits(file_bytes=len(two) - 1))
        assert len(groups(two, path, Limits(groups=2, labels=2, file_bytes=len(two)))) == 2


def test_escaped_surrogates_are_joined_or_replaced() -> None:
    assert plain(groups(r'[{"targets":["\ud83d\ude00","x\uD800y"]}]'))[0]["targets"] == ["😀", "x\ufffdy"]


def test_bytes_that_are_not_utf8_are_replaced_as_go_does() -> None:
    assert plain(groups(b'[{"targets":["a\xffb"]}]'))[0]["targets"] == ["a\ufffdb"]


text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=8)
label_names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True).filter(lambda name: name != "__address__")
some_groups = st.lists(
    st.fixed_dictionaries({"targets": st.lists(text, max_size=3), "labels": st.dictionaries(label_names, text)}),
    max_size=4,
)


@given(some_groups)
def test_json_and_yaml_of_the_same_groups_mean_the_same(values: list[dict[str, Any]]) -> None:
    from_json = parse(json.dumps(values).encode(), "a.json", Limits())
    from_yaml = parse(yaml.safe_dump(values, allow_unicode=True).encode(), "a.yml", Limits())
    assert [(g.targets, {**g.labels, "__meta_filepath": ""}) for g in from_json] == [
        (g.targets, {**g.labels, "__meta_filepath": ""}) for g in from_yaml
    ]


@given(st.binary(max_size=200) | text.map(str.encode), st.sampled_from(["a.json", "a.yml"]))
def test_no_bytes_raise_anything_but_a_config_error(content: bytes, path: str) -> None:
    with suppress(ConfigError):
        parse(content, path, LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["targets", "Labels", "x"]), inner),
)


@given(json_values, st.sampled_from(["a.json", "a.yml"]))
def test_no_document_raises_anything_but_a_config_error(value: object, path: str) -> None:
    with suppress(ConfigError):
        parse(json.dumps(value).encode(), path, LIMITS)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.json", "a.json", True),
        ("*.json", ".hidden.json", True),
        ("*.json", "a.jsonx", False),
        ("a*b*c.yml", "a-b-b-c.yml", True),
        ("a*b*c.yml", "a-c-b.yml", False),
        ("?.yml", "ä.yml", True),
        ("[ab].yml", "b.yml", True),
        ("[^ab].yml", "b.yml", False),
        ("[^ab].yml", "c.yml", True),
        ("[a-c].yml", "b.yml", True),
        ("[c-a].yml", "b.yml", False),
        ("[!a].yml", "!.yml", True),
        (r"[\]].yml", "].yml", True),
        (r"\*.yml", "*.yml", True),
        (r"\*.yml", "a.yml", False),
        ("*" * 50 + "x.yml", "y" * 250 + ".yml", False),
        ("a\n?.yml", "a\nb.yml", True),
    ],
)
def test_names_match_as_in_go(pattern: str, name: str, matches: bool) -> None:
    assert Pattern(f"/d/{pattern}").matches(f"/d/{name}") is matches


@pytest.mark.parametrize("pattern", ["[", "[a", "[]a].yml", "[-a].yml", "[a-].yml", "x\\", "[a\\", "[b/x.yml"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r'^pattern "'):
        Pattern(pattern)


def test_matched_paths_are_shortened_and_spelled_out_ones_are_not() -> None:
    assert Pattern("./d//*.json").path("./d/", "a.json") == "d/a.json"
    assert Pattern("./d//a.json").path("./d/", "a.json") == "./d//a.json"
    assert Pattern("*.json").matches("a.json")
    assert Pattern("/d[12]/a.json").matches("/d2/a.json")
    assert not Pattern("/d[12]/a.json").matches("/d3/a.json")
    assert clean("//a//b/../c/") == "/a/c"
