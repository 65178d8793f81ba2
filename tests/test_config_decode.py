"""Nodes become dataclasses by the types of their fields; what does not fit is refused where it stands."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.config import IGNORED, Duration, Ignored, Node, SequenceNode, decode, decode_target_group, parse_yaml
from trio_sd.config.groups import decode_labels
from trio_sd.errors import ConfigError, FieldError
from trio_sd.http_config import Claims
from trio_sd.limits import Limits
from trio_sd.targets import Labels

A_NAME = "; expected letters, digits and _, no digit first"


class Role(Enum):
    NODE = "node"
    POD = "pod"


@dataclass(frozen=True)
class Upper:
    text: str

    @classmethod
    def decode(cls, node: Node, path: str) -> Self:
        text = decode(node, str, path=path)
        if not text:
            raise ValueError("found nothing to shout")
        return cls(text.upper())


@dataclass(frozen=True)
class Server:
    host: str
    port: int = 80


@dataclass(frozen=True)
class Everything:
    text: str = "default"
    truth: bool = True
    count: int = 7
    ratio: float = 0.5
    every: Duration = Duration(1)  # noqa: RUF009 (immutable)
    kind: Literal["A", "SRV"] = "A"
    role: Role = Role.NODE
    maybe: int | None = None
    names: tuple[str, ...] = ("x",)
    ports: tuple[int, ...] = ()
    meta: Mapping[str, str] = Labels()
    params: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    server: Server | None = None
    servers: tuple[Server, ...] = ()
    loud: Upper | None = None
    passed: Ignored = IGNORED
    from_: str = field(default="", metadata={"key": "from"})
    hidden: int = field(default=3, init=False)


@dataclass(frozen=True)
class Required:
    text: str
    truth: bool
    names: tuple[str, ...]
    every: Duration
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Checked:
    files: tuple[str, ...] = ()
    low: int = field(default=0, metadata={"key": "min"})
    high: int = 0

    def validate(self) -> None:
        for index, file in enumerate(self.files):
            if not file.endswith(".yml"):
                raise FieldError(("files", index), f"{file} is no YAML")
        if self.low < 0:
            raise FieldError("low", "below zero")
        if not self.files and self.high:
            raise FieldError("files", "no files")
        if self.low > self.high:
            raise ValueError("min greater than high")


@dataclass(frozen=True)
class Undecodable:
    value: Any = None


@dataclass(frozen=True)
class Ambiguous:
    value: int | str | None = None


def parse(text: str) -> Node:
    node = parse_yaml(text.encode(), file="f.yml", limits=Limits())
    assert node is not None
    return node


def read(text: str, cls: Any, *, path: str = "", elsewhere: Set[str] = frozenset()) -> Any:  # Any: whatever `cls` is
    return decode(parse(text), cls, path=path, elsewhere=elsewhere)


def refused(text: str, cls: type, *, path: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, cls, path=path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("text: 010", "text", "010"),
        ("text: no", "text", "no"),
        ("text: !!int 1_0", "text", "1_0"),
        ("text: !!binary aGk=", "text", "hi"),
        ("text: ~", "text", "default"),
        ("text: ''", "text", ""),
        *[(f"truth: {word}", "truth", False) for word in ("n", "N", "no", "No", "NO", "off", "FALSE", "false")],
        *[(f"truth: {word}", "truth", True) for word in ("y", "Y", "yes", "Yes", "YES", "on", "TRUE", "true")],
        ("truth: ~", "truth", True),
        ("count: 12", "count", 12),
        ("count: -12", "count", -12),
        ("count: +1_000", "count", 1000),
        ("count: 010", "count", 8),
        ("count: 0o10", "count", 8),
        ("count: 0x1F", "count", 31),
        ("count: -0b11", "count", -3),
        ("count: 1e3", "count", 1000),
        ("count: 2.0", "count", 2),
        ("count: 0", "count", 0),
        ("ratio: 1.25", "ratio", 1.25),
        ("ratio: .5", "ratio", 0.5),
        ("ratio: -1e-2", "ratio", -0.01),
        ("ratio: 3", "ratio", 3.0),
        ("ratio: -.inf", "ratio", -math.inf),
        ("every: 1m30s", "every", Duration(90_000)),
        ("every: 0", "every", Duration()),
        ("every: ", "every", Duration(1)),
        ("kind: SRV", "kind", "SRV"),
        ("role: pod", "role", Role.POD),
        ("maybe: 3", "maybe", 3),
        ("maybe: null", "maybe", None),
        ("names: [a, 1, ~]", "names", ("a", "1", "")),
        ("names: []", "names", ()),
        ("names: ~", "names", ("x",)),
        ("ports: [1, 2]", "ports", (1, 2)),
        ("meta: {b: 1, a: ~}", "meta", Labels({"a": "", "b": "1"})),
        ("params: {m: [a, b], n: []}", "params", {"m": ("a", "b"), "n": ()}),
        ("server: {host: h}", "server", Server("h", 80)),
        ("servers: [{host: h}, {host: i, port: 1}]", "servers", (Server("h"), Server("i", 1))),
        ("loud: hey", "loud", Upper("HEY")),
        ("passed: {anything: [at, all]}", "passed", IGNORED),
        ("from: here", "from_", "here"),
    ],
)
def test_values_are_read_by_the_type_of_their_field(text: str, name: str, value: object) -> None:
    record = read(text, Everything)
    assert getattr(record, name) == value
    assert type(getattr(record, name)) is type(value) or isinstance(value, dict)


def test_what_is_read_is_hashable() -> None:
    text = "{meta: {a: b}, params: {m: [a]}, servers: [{host: h}]}"
    assert hash(read(text, Everything)) == hash(read(text, Everything))


def test_nan_is_a_number() -> None:
    assert math.isnan(read("ratio: .nan", Everything).ratio)


def test_null_without_a_default_is_the_empty_value() -> None:
    text = "{text: ~, truth: ~, names: ~, every: ~, meta: ~}"
    assert read(text, Required) == Required("", False, (), Duration(), Labels())


@pytest.mark.parametrize(
    ("text", "of", "value"), [("5", int, 5), ("[a]", tuple[str, ...], ("a",)), ("1m", Duration, Duration(60_000))]
)
def test_a_type_alone_can_be_read(text: str, of: type, value: object) -> None:
    assert read(text, of) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text: [a]", "f.yml:1:7: j.text: found a list, expected a string"),
        ("text: {a: b}", "f.yml:1:7: j.text: found a mapping, expected a string"),
        ("text: !!binary /w==", 'f.yml:1:7: j.text: "\\xff" is not valid UTF-8'),
        ("truth: 'true'", 'f.yml:1:8: j.truth: found "true", expected true or false'),
        ("truth: tRue", 'f.yml:1:8: j.truth: found "tRue", expected true or false'),
        ("truth: []", "f.yml:1:8: j.truth: found a list, expected true or false"),
        ("count: '5'", 'f.yml:1:8: j.count: found "5", expected a whole number'),
        ("count: 1.5", 'f.yml:1:8: j.count: found "1.5", expected a whole number'),
        ("count: 1x", 'f.yml:1:8: j.count: found "1x", expected a whole number'),
        ("count: 99999999999999999999", 'f.yml:1:8: j.count: found "99999999999999999999", expected a whole number'),
        ("count: .inf", 'f.yml:1:8: j.count: found ".inf", expected a whole number'),
        ("count: {}", "f.yml:1:8: j.count: found a mapping, expected a whole number"),
        ("ratio: a", 'f.yml:1:8: j.ratio: found "a", expected a number'),
        ("ratio: " + "9" * 70, f'f.yml:1:8: j.ratio: found "{"9" * 70}", expected a number'),
        ("every: [1m]", "f.yml:1:8: j.every: found a list, expected a duration such as 1m30s"),
        (
            "every: 10",
            'f.yml:1:8: j.every: not a valid duration string: "10"; expected a form such as 1h30m, 5s or 100ms',
        ),
        ("kind: a", 'f.yml:1:7: j.kind: found "a", expected one of: A, SRV'),
        ("role: x", 'f.yml:1:7: j.role: found "x", expected one of: node, pod'),
        ("maybe: x", 'f.yml:1:8: j.maybe: found "x", expected a whole number'),
        ("names: a", 'f.yml:1:8: j.names: found "a", expected a list'),
        ("names:\n- a\n- [b]", "f.yml:3:3: j.names[1]: found a list, expected a string"),
        ("meta: [a]", "f.yml:1:7: j.meta: found a list, expected a mapping"),
        ("meta: {a.b: [c]}", "f.yml:1:13: j.meta.a.b: found a list, expected a string"),
        ("params: {m: a}", 'f.yml:1:13: j.params.m: found "a", expected a list'),
        ("server: secret", "f.yml:1:9: j.server: found a string, expected a mapping"),
        ("servers: [{host: h}, {port: 1}]", "f.yml:1:22: j.servers[1]: field host is missing"),
        ("servers: [~]", "f.yml:1:11: j.servers[0]: found null, expected a mapping"),
        ("servers: [{host: h, port: x}]", 'f.yml:1:27: j.servers[0].port: found "x", expected a whole number'),
        ("loud: ''", "f.yml:1:7: j.loud: found nothing to shout"),
        ("loud: []", "f.yml:1:7: j.loud: found a list, expected a string"),
        (
            "server: {host: h, prot: 1}",
            ("f.yml:1:19: j.server.prot: field prot not found in this section; did you mean port?"),
        ),
        (
            "server: {host: h, '\\n': 1}".replace("'\\n'", '"\\n"'),
            'f.yml:1:19: j.server."\\n": field "\\n" not found in this section; expected one of: host, port',
        ),
        ("[a]", "f.yml:1:1: j: found a list, expected a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(text: str, message: str) -> None:
    assert refused(text, Everything, path="j") == message


def test_fields_that_can_not_be_set_are_unknown_keys() -> None:
    assert "field hidden not found" in refused("hidden: 1", Everything)


def test_keys_that_someone_else_reads_are_passed_over() -> None:
    assert read("{host: h, static_configs: [x]}", Server, elsewhere={"static_configs"}) == Server("h")
    with pytest.raises(ConfigError, match="did you mean static_configs"):
        read("{host: h, static_config: [x]}", Server, elsewhere={"static_configs"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("files:\n- a.yml\n- b.txt", "f.yml:3:3: files[1]: b.txt is no YAML"),
        ("{high: 1, min: -1}", "f.yml:1:16: min: below zero"),
        ("\n{high: 1}", "f.yml:2:1: files: no files"),
        ("{min: 1}", "f.yml:1:1: min greater than high"),
    ],
)
def test_what_an_object_says_of_itself_is_told_where_it_stands(text: str, message: str) -> None:
    assert refused(text, Checked) == message


@pytest.mark.parametrize("cls", [Undecodable, Ambiguous, object, tuple[int, str], Mapping[int, str]])
def test_types_that_can_not_be_read_are_a_programming_error(cls: type) -> None:
    with pytest.raises(TypeError, match="can't decode a field of type"):
        read("{value: 1}", cls)


# Claims


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, None) for word in ("", "~", "null", "!!null x")],
        *[(word, True) for word in ("y", "Yes", "on", "TRUE")],
        *[(word, False) for word in ("n", "No", "off", "FALSE")],
        *[("12", 12), ("-1_2", -12), ("+0x1F", 31), ("010", 8), ("0b11", 3), ("18446744073709551615", 2**64 - 1)],
        *[("1.5", 1.5), (".5", 0.5), ("-1e3", -1000.0), ("08", 8.0)],
        *[(word, word) for word in ("a", "tRue", "1x", "_", "2001-01-01", "1:30", "0x", "nan", "a" * 1000)],
        *[(f"{quote}{word}{quote}", word) for quote in "\"'" for word in ("", "~", "yes", "12", ".nan")],
        *[("!!str 12", "12"), ("! yes", "yes"), ("!!binary aGk=", "hi"), ("|\n  1\n", "1\n")],
        ("[]", []),
        ("[1, [no], {b: }]", [1, [False], {"b": None}]),
        ("{}", {}),
        ("{1: a, ~: b, yes: c}", {"1": "a", "": "b", "yes": "c"}),
        ("{<<: {b: 1, c: 2}, c: 3}", {"b": 1, "c": 3}),
    ],
)
def test_claims_are_what_yaml_takes_them_for(text: str, value: object) -> None:
    found = read(f"a: {text}", Claims)
    assert found == Claims.of({"a": value})
    assert found.values() == {"a": value}


TEXTS = st.text("a1.-_~yn{}:,#'\"\\ \nü", max_size=5)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e3, 1e3) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)


@given(st.dictionaries(TEXTS, VALUES))
def test_claims_written_as_json_are_what_they_are(values: dict[str, object]) -> None:
    assert read(json.dumps(values), Claims) == Claims.of(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]", "f.yml:1:1: j: found a list, expected a mapping"),
        ("a", "f.yml:1:1: j: found a string, expected a mapping"),
        *[
            (f"a: {word}", f'f.yml:1:4: j.a: found "{word}", expected a number from -2^63 to 2^64, or quotes around it')
            for word in (".nan", "-.Inf", "18446744073709551616", "1e400", "9" * 65)
        ],
        (
            "a:\n- b\n- {c: .inf}",
            'f.yml:3:7: j.a[1].c: found ".inf", expected a number from -2^63 to 2^64, or quotes around it',
        ),
        ("a: !!binary /w==", 'f.yml:1:4: j.a: "\\xff" is not valid UTF-8'),
        ("!!binary /w==: a", 'f.yml:1:1: j: "\\xff" is not valid UTF-8'),
        (
            "a: [!!int 3]",
            'f.yml:1:5: j.a[0]: found the tag "tag:yaml.org,2002:int", expected none, or the one of a string',
        ),
    ],
)
def test_claims_that_are_refused(text: str, message: str) -> None:
    assert refused(text, Claims, path="j") == message


# Target groups


def group(text: str) -> tuple[tuple[Labels, ...], Labels]:
    return decode_target_group(parse(text), "[0]")


def test_a_target_group() -> None:
    targets, labels = group("targets: ['a:1', 2, ~, no]\nlabels: {x: 010, y: ~, _z: 'ü'}")
    assert targets == tuple(Labels({"__address__": text}) for text in ("a:1", "2", "", "no"))
    assert labels == {"x": "010", "y": "", "_z": "ü"}


@pytest.mark.parametrize("text", ["{}", "{targets: ~}", "{labels: ~}", "{targets: [], labels: {}}"])
def test_a_target_group_may_be_empty(text: str) -> None:
    assert group(text) == ((), Labels())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]", "f.yml:1:1: [0]: found a list, expected a mapping with targets and labels"),
        ("targets: a", 'f.yml:1:10: [0].targets: found "a", expected a list of addresses'),
        ("targets: [a, [b]]", "f.yml:1:14: [0].targets[1]: found a list, expected an address"),
        ("targets: [!!binary /w==]", 'f.yml:1:11: [0].targets[0]: found "\\xff", expected an address'),
        ("labels: [a]", "f.yml:1:9: [0].labels: found a list, expected a mapping of label names to values"),
        ("labels: {a: [b]}", "f.yml:1:13: [0].labels.a: found a list, expected a label value"),
        ("labels: {a: !!binary /w==}", 'f.yml:1:13: [0].labels.a: "\\xff" is not a valid label value'),
        (
            "labels: {9a: b}",
            'f.yml:1:10: [0].labels.9a: "9a" is not a valid label name' + A_NAME,
        ),
        (
            "labels: {'': b}",
            'f.yml:1:10: [0].labels."": "" is not a valid label name' + A_NAME,
        ),
        (
            'labels: {"a\\n": b}',
            'f.yml:1:10: [0].labels."a\\n": "a\\n" is not a valid label name' + A_NAME,
        ),
        (
            "labels: {!!binary /w== : b}",
            'f.yml:1:10: [0].labels."\\xff": "\\xff" is not a valid label name' + A_NAME,
        ),
        (
            "target: [a]",
            ("f.yml:1:1: [0].target: field target not found in a target group; did you mean targets?"),
        ),
    ],
)
def test_target_groups_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        group(text)
    assert str(caught.value) == message


def test_a_null_group_is_refused() -> None:
    root = parse("- ~")
    assert isinstance(root, SequenceNode)
    with pytest.raises(ConfigError, match=r"^f.yml:1:3: \[0\]: nil target group item found$"):
        decode_target_group(root.items[0], "[0]")


def test_label_names_may_be_any_text_where_that_is_asked_for() -> None:
    assert decode_labels(parse("{a.b: c}"), any_name=True) == {"a.b": "c"}
    with pytest.raises(ConfigError, match="is not a valid label name"):
        decode_labels(parse("{'': c}"), any_name=True)
