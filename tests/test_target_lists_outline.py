"""A large JSON list of which a part has changed says what it says when it is read as a whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_sd.errors import ConfigError
from trio_sd.limits import Limits
from trio_sd.target_lists import Origin, Parsed, decode, parse_json
from trio_sd.targets import TargetGroup

LIMITS = Limits(groups=60)
ORIGIN = Origin("/t.json", "__meta_filepath")


@pytest.fixture(autouse=True)
def _every_list_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_WORTH_AN_OUTLINE", 0)


def whole(content: bytes) -> tuple[TargetGroup, ...] | str:
    """Return what a list says, read by the one that knows no outlines, or why it can't be used."""
    try:
        return tuple(decode._decode_json(content.decode("utf-8", "replace"), ORIGIN, LIMITS))
    except ConfigError as error:
        return str(error)


def again(content: bytes, before: Parsed | None) -> Parsed | str:
    try:
        return parse_json(content, ORIGIN, LIMITS, before)
    except ConfigError as error:
        return str(error)


def group(*addresses: str, **labels: str) -> dict[str, object]:
    return {"targets": list(addresses), "labels": labels}


def text_of(*groups: object, indent: int | None = None) -> bytes:
    return json.dumps(groups, indent=indent).encode()


GROUPS = [group(f"h{n}:80", zone=f"z{n % 3}") for n in range(20)]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize(
    "groups",
    [
        [*GROUPS[:7], group("other:80"), *GROUPS[8:]],  # one is another
        [group("other:80"), *GROUPS[1:]],
        [*GROUPS[:-1], group("other:80")],
        [*GROUPS[:7], *GROUPS[8:]],  # one has gone
        GROUPS[1:],
        GROUPS[:-1],
        [*GROUPS[:7], group("more:80"), group("more:81"), *GROUPS[7:]],  # some have come
        [group("more:80"), *GROUPS],
        [*GROUPS, group("more:80")],
        GROUPS * 2,
        [],
        [group("other:80")],
        [*GROUPS[:3], *GROUPS[10:12], *GROUPS[3:10], *GROUPS[12:]],  # some have moved
        GROUPS[::-1],
    ],
)
def test_what_has_changed_is_read_as_if_all_of_it_were(groups: list[object], indent: int | None) -> None:
    before = again(text_of(*GROUPS, indent=indent), None)
    assert isinstance(before, Parsed)
    content = text_of(*groups, indent=indent)
    after = again(content, before)
    assert isinstance(after, Parsed)
    assert after.groups == whole(content)
    back = again(text_of(*GROUPS, indent=indent), after)
    assert isinstance(back, Parsed)
    assert back.groups == before.groups


def test_groups_whose_text_stays_are_the_same_objects() -> None:
    before = again(text_of(*GROUPS), None)
    assert isinstance(before, Parsed)
    after = again(text_of(*GROUPS[:7], group("other:80", zone="much longer"), *GROUPS[8:]), before)
    assert isinstance(after, Parsed)
    assert [n for n in range(20) if after.groups[n] is not before.groups[n]] == [7]


def test_only_what_has_changed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = again(text_of(*GROUPS), None)
    assert isinstance(before, Parsed)
    made: list[int] = []
    make = decode._JSONGroups.make

    def note(source: decode._JSONGroups, index: int, item: object) -> TargetGroup:
        made.append(index)
        return make(source, index, item)

    monkeypatch.setattr(decode._JSONGroups, "make", note)
    again(text_of(*GROUPS[:7], group("other:80"), *GROUPS[8:]), before)
    assert made == [7]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b"[]",
        b" [ ] ",
        b"[]x",
        b"null",
        b"{}",
        b"[null]",
        b"[{}]",
        b"[{},]",
        b"[{} {}]",
        b"[{},{}",
        b"[{},{}]]",
        b"[{},{}]\n\n",
        b"[{},{}] null",
        b'[{"targets": [1]}]',
        b'[{"targets": ["a"]}, {"x": 1}]',
        b'[{"targets": ["\\ud800"]}]',
        b'[{"targets": ["\xff"]}]',
        b"[" * 100_000,
        b"[" + b"{}," * 60 + b"{}]",
    ],
)
def test_what_is_unusual_is_what_it_is_when_read_as_a_whole(content: bytes) -> None:
    befores = [None, again(b"[{},{}]", None), again(b'[{"targets": ["a"]}, {"targets": ["b"]}]', None)]
    for before in befores:
        assert not isinstance(before, str)
        found = again(content, before)
        expected = whole(content) if content.strip() else found
        assert (found if isinstance(found, str) else found.groups) == expected


@given(
    st.lists(st.sampled_from([*GROUPS[:4], {}, group(), group('a"b', x="],[{"), group("é:1", y="☃")]), max_size=8),
    st.sampled_from([None, 0, 1]),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.text(alphabet='[]{},:" \n\\étargelbs0', max_size=6)),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
@example([GROUPS[0], GROUPS[1]], None, [(0.5, 0, ",")], True)
@settings(max_examples=400, deadline=None)
def test_any_edit_of_the_text_is_read_as_if_all_of_it_were(
    groups: list[object], indent: int | None, edits: list[tuple[float, int, str]], escaped: bool
) -> None:
    text = json.dumps(groups, indent=indent, ensure_ascii=escaped)
    before = again(text.encode(), None)
    assert isinstance(before, Parsed)
    for place, gone, come in edits:
        at = round(place * len(text))
        text = text[:at] + come + text[at + gone :]
        after = again(text.encode(), before)
        if not text.strip():
            assert isinstance(after, str)
            continue
        assert (after if isinstance(after, str) else after.groups) == whole(text.encode())
        if isinstance(after, Parsed):
            before = after
