"""YAML becomes a tree of raw texts with places, or a ConfigError: never anything else, however hostile the text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trio_sd.config import MappingNode, Node, Scalar, SequenceNode, describe, is_null, nodes, parse_yaml
from trio_sd.errors import ConfigError
from trio_sd.limits import Limits

LIMITS = Limits()

# 306 bytes that say more than 400 million nodes.
ALIAS_BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{name}: &{name} [{','.join([f'*{previous}'] * 9)}]\n".encode()
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True, params=["libyaml", "pure Python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with both of PyYAML's parsers; the second is what is left where libyaml is missing."""
    if request.param == "pure Python":
        monkeypatch.setattr(nodes, "_LOADER", yaml.SafeLoader)


def parse(text: str | bytes, **limits: int) -> Any:  # Any: each test knows what is in its text
    return parse_yaml(text if isinstance(text, bytes) else text.encode(), file="f.yml", limits=Limits(**limits))


def refused(text: str | bytes, **limits: int) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, **limits)
    return str(caught.value)


def plain(node: Node | None) -> Any:  # Any: a tree of three types
    """Return the tree as lists, dicts and texts."""
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    if isinstance(node, MappingNode):
        return {key.text: plain(value) for key, value in node.entries}
    return node and node.text


def test_scalars_keep_their_raw_text() -> None:
    assert plain(parse("[010, no, 1_000, 0x10, 'a ''b''', \"c\\n\", ~, 2001-01-01, !!int 5]")) == [
        "010", "no", "1_000", "0x10", "a 'b'", "c\n", "~", "2001-01-01", "5",
    ]  # fmt: skip


def test_every_node_knows_its_place() -> None:
    root = parse("a: 1\nlist:\n  - x\n  - {k: 'ü', l: w}\n")
    (_, one), (_, items) = root.entries
    inner = items.items[1]
    places = [root, one, items, items.items[0], inner, inner.keys[1], inner.get("l")]
    assert [str(node.position) for node in places] == [
        "f.yml:1:1", "f.yml:1:4", "f.yml:3:3", "f.yml:3:5", "f.yml:4:5", "f.yml:4:14", "f.yml:4:17",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", " \n", "# only a comment\n", "---\n", "--- ~\n", "---\n---\n...\n", "\ufeff"])
def test_an_empty_document_is_nothing(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "null"),
    [
        ("[~]", True), ("[null]", True), ("[Null]", True), ("[NULL]", True), ("[!!null x]", True),
        ("-", True), ("['']", False), ("['null']", False), ("[nUll]", False), ("[!!str ~]", False), ("[[]]", False),
    ],
)  # fmt: skip
def test_null_is_told_from_text(text: str, null: bool) -> None:
    assert is_null(parse(text).items[0]) is null


def test_a_missing_node_is_null() -> None:
    assert is_null(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[a]", "a list"), ("{a: b}", "a mapping"), ('"a\\nb"', '"a\\nb"'), ("x" * 90, '"' + "x" * 77 + '..."')],
)
def test_nodes_are_described(text: str, words: str) -> None:
    assert describe(parse(text)) == words


def test_null_is_described() -> None:
    assert describe(parse("[~]").items[0]) == "null"


# Keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yml:3:1: field a already set in this mapping, first at line 1"),
        ("a: 1\n'a': 3\n", "f.yml:2:1: field a already set in this mapping, first at line 1"),
        ("x:\n  - {k: 1, k: 2}", "f.yml:2:12: field k already set in this mapping, first at line 2"),
        ("? [a]\n: b\n", "f.yml:1:3: found a list as a key, expected a scalar"),
        ("x: &x {a: b}\n? *x\n: c\n", "f.yml:1:4: found a mapping as a key, expected a scalar"),
    ],
)
def test_keys_that_are_refused(text: str, message: str) -> None:
    assert refused(text) == message


# Anchors, aliases, merge keys


def test_an_alias_shares_the_node_of_its_anchor() -> None:
    root = parse("a: &x [1, 2]\nb: *x\n*k : 3\n".replace("*k", "c"))
    assert root.get("b") is root.get("a")


def test_an_anchor_may_be_set_anew() -> None:
    assert plain(parse("[&x a, *x, &x b, *x]")) == ["a", "a", "b", "b"]


def test_an_alias_may_be_a_key() -> None:
    assert plain(parse("- &x a\n- {*x : b}\n")) == ["a", {"a": "b"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: *x\n", "f.yml:1:4: unknown anchor; a text that begins with * needs quotes"),
        ("a: &x\n  - *x\n", 'f.yml:2:5: anchor "x" contains itself'),
        ("&x a: &y {b: [*y]}\n", 'f.yml:1:15: anchor "y" contains itself'),
        ("--- &x ~\n--- *x\n", "f.yml:2:5: unknown anchor; a text that begins with * needs quotes"),
    ],
)
def test_aliases_that_are_refused(text: str, message: str) -> None:
    assert refused(text) == message


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("{<<: *a, c: 3}", {"c": "3", "x": "1", "y": "1"}),
        ("{x: 3, <<: *a}", {"x": "1", "y": "1"}),  # as in Go, what comes later wins
        ("{<<: *a, x: 3}", {"x": "3", "y": "1"}),
        ("{<<: [*a, *b]}", {"x": "1", "y": "1", "z": "2"}),
        ("{<<: [*b, *a]}", {"x": "2", "z": "2", "y": "1"}),
        ("{<<: *b, <<: *a}", {"x": "1", "z": "2", "y": "1"}),
        ("{'<<': 1}", {"<<": "1"}),
        ("{<<: {}}", {}),
    ],
)
def test_merge_keys(text: str, merged: dict[str, str]) -> None:
    root = parse(f"a: &a {{x: 1, y: 1}}\nb: &b {{x: 2, z: 2}}\nm: {text}\n")
    assert plain(root.get("m")) == merged


def test_mappings_under_one_key_are_united_when_merged() -> None:
    root = parse("a: &a {params: {p: x, q: x}, list: [x]}\nm: {<<: *a, params: {q: y, r: y}, list: [y]}\n")
    assert plain(root.get("m")) == {"params": {"p": "x", "q": "y", "r": "y"}, "list": ["y"]}


@pytest.mark.parametrize("value", ["1", "[1]", "[[]]", "~"])
def test_only_mappings_can_be_merged(value: object) -> None:
    assert "to merge, expected a mapping or a list of mappings" in refused(f"<<: {value}")


@pytest.mark.parametrize(("text", "place"), [("? <<", ":1:3: "), ("a: 1\n? <<", ":2:3: "), ("<<:", ":1:1: ")])
def test_nothing_to_merge_is_told_of_at_a_place_that_there_is(text: str, place: str) -> None:
    assert f"{place}found null to merge" in refused(text)


# Limits


@pytest.mark.parametrize(
    ("text", "place"),
    [(b"[" * 200_000, "1:101"), (b"- " * 200_000, "1:201"), (b"{a: " * 200_000, "1:401"), (b"? " * 200_000, "1:201")],
)
def test_bottomless_nesting_is_refused(text: bytes, place: str) -> None:
    assert refused(text) == f"f.yml:{place}: nested more than 100 levels deep (limit: depth)"


def test_nesting_up_to_the_limit_is_taken() -> None:
    assert plain(parse("[" * 100 + "]" * 100)) is not None
    assert "limit: depth" in refused("[" * 101 + "]" * 101)


def test_an_alias_bomb_is_refused_unexpanded() -> None:
    assert len(ALIAS_BOMB) == 306
    assert refused(ALIAS_BOMB) == (
        "f.yml:7:14: more than 2000000 nodes, aliases counted as what they repeat (limit: nodes)"
    )


def test_aliases_count_as_what_they_repeat() -> None:
    text = "- &a [x, y]\n- *a\n- *a\n"  # the list, and three times a list of two
    assert len(parse(text, nodes=10).items) == 3
    assert refused(text, nodes=9) == "f.yml:3:3: more than 9 nodes, aliases counted as what they repeat (limit: nodes)"


def test_a_file_that_is_too_large_is_refused() -> None:
    assert refused("a: bcd", file_bytes=5) == "f.yml:1:1: larger than the 5 bytes that the limit file_bytes allows"
    assert parse("a: bc", file_bytes=5)


# Documents and characters


def test_a_second_document_is_refused() -> None:
    assert plain(parse("---\n---\na: b\n---\n")) == {"a": "b"}
    assert refused("a: b\n---\nc: d\n") == (
        "f.yml:3:1: a second document; the first is at line 1, and only one is expected"
    )


def test_a_byte_order_mark_is_no_content() -> None:
    node = parse("\ufeffa: b")
    assert (plain(node), str(node.position)) == ({"a": "b"}, "f.yml:1:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: b\nc: \xff", "f.yml:2:4: found byte 0xff, expected UTF-8"),
        ("ü: ".encode() + b"\xc3", "f.yml:1:4: found byte 0xc3, expected UTF-8"),
        (b"\xff\xfea\0", "f.yml:1:1: found byte 0xff, expected UTF-8"),
        (b"\xed\xa0\x80", "f.yml:1:1: found byte 0xed, expected UTF-8"),
        (b"a: b\n\0", "f.yml:2:1: character U+0000 is not allowed in YAML"),
        ("ü: ü\x01".encode(), "f.yml:1:5: character U+0001 is not allowed in YAML"),
    ],
)
def test_bytes_and_characters_that_are_refused(text: bytes, message: str) -> None:
    assert refused(text) == message


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("- a\n- 'b", "2:5", "found unexpected end of stream"),
        ("a: b: c", "1:5", "mapping values are not allowed"),
        ("\ta: b", "1:1", "found character .* that cannot start any token"),
        ("a: [1\nb: 2", "2:2", "(did not find expected|expected) ',' or ']'"),
        ("a: @x", "1:4", "found character .* that cannot start any token"),
        ("%YAML 3.0\n--- a", "1:1", "found incompatible YAML document"),
    ],
)
def test_what_the_parser_refuses_has_its_place_and_problem(text: str, place: str, problem: str) -> None:
    message = refused(text)
    assert message.startswith(f"f.yml:{place}: ")
    assert re.search(problem.replace(" .* ", " .*"), message)


@pytest.mark.parametrize(
    ("text", "content"), [("!!binary aGk=", "hi"), ("!!binary '/w=='", "\udcff"), ("!!binary aG\\\n k=", None)]
)
def test_binary_scalars_are_decoded(text: str, content: str | None) -> None:
    if content is None:
        assert "invalid base64" in refused(text)
    else:
        assert parse(text).text == content


# Anything at all


@given(st.text() | st.text(alphabet="[]{}&*a:,- \n'\"<?!|>%#~\t"))
@example("&a [*a]")
@example("? ? ?")
def test_any_text_is_a_tree_or_a_config_error(text: str) -> None:
    try:
        parse(text.encode("utf-8", "surrogatepass"))
    except ConfigError as error:
        assert str(error)  # noqa: PT017 (either outcome is fine)


@given(st.binary())
def test_any_bytes_are_a_tree_or_a_config_error(content: bytes) -> None:
    try:
        parse(content)
    except ConfigError as error:
        assert str(error)  # noqa: PT017 (either outcome is fine)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff\ufffe\uffff"))
documents = st.recursive(
    texts, lambda inner: st.lists(inner, min_size=1) | st.dictionaries(texts, inner, min_size=1), max_leaves=20
)


@given(documents, st.booleans())
def test_the_tree_is_what_pyyaml_loads(document: object, flow: bool) -> None:
    text = yaml.safe_dump(document, default_flow_style=flow, allow_unicode=True)
    try:
        expected = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        return  # PyYAML can't read all that it writes
    root = parse(text)
    assert (plain(root) if root is not None else "") == expected


@given(documents)
def test_json_is_yaml(document: object) -> None:
    root = parse(json.dumps(document, ensure_ascii=False))
    assert plain(root) == document


def test_a_scalar_says_how_it_is_written() -> None:
    quoted, bare, tagged = parse("['1', 1, !!str 1]").items
    assert isinstance(quoted, Scalar)
    assert (quoted.plain, bare.plain, tagged.tag) == (False, True, "tag:yaml.org,2002:str")
