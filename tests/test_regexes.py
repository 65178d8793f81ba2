"""Regular expressions: what is refused, how templates are filled, and that every tier answers as RE2 does."""

from __future__ import annotations

import re
import time
from operator import mul
from typing import Any

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sd.regexes import Regex, Tier, check_regex

# --- What is no regular expression ---


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(", "missing )"),
        ("a**", "bad repetition operator: **"),
        ("[z-a]", "invalid character class range: z-a"),
        ("(?=a)", "invalid perl operator: (?="),
        (r"\Z", r"invalid escape sequence: \Z"),
        (r"a\C", r"invalid escape sequence: \C"),
        ("a{1001}", "invalid repetition size: {1001}"),
        ("(?P<é>a)", "invalid named capture: (?P<é>"),
        ("\udcff", "invalid UTF-8"),
        ("a\\", "missing )"),
    ],
)
def test_what_is_no_regular_expression_is_refused(regex: str, reason: str) -> None:
    for use in (check_regex, Regex):
        with pytest.raises(ValueError, match=f"^error parsing regexp: {re.escape(reason)}"):
            use(regex)


@pytest.mark.parametrize(
    "regex", [r"\\C", r"\Q\C\E", r"[(?P<n>)](?P<n>a)", r"[]](?P<n>a)", r"\((?P<n>a)", "(?<n>a)", "(?P<n>a)(?P<n>b)"]
)
def test_what_only_looks_wrong_is_accepted(regex: str) -> None:
    check_regex(regex)
    Regex(regex)


# --- Templates ---


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$0", "abcdefghij"),
        ("$1", "a"),
        ("${1}", "a"),
        ("${10}", "j"),
        ("$10", "j"),
        ("$11", ""),
        ("$1x", ""),
        ("${1}x", "ax"),
        ("$1_", ""),
        ("$1-$2", "a-b"),
        ("$1$2", "ab"),
        ("$$", "$"),
        ("$$1", "$1"),
        ("$$$1", "$a"),
        ("$", "$"),
        ("a$", "a$"),
        ("$-", "$-"),
        ("${", "${"),
        ("${}", "${}"),
        ("${1", "${1"),
        ("${1$2}", "${1b}"),
        ("${ 1}", "${ 1}"),
        ("$ {1}", "$ {1}"),
        ("$01", ""),
        ("${01}", ""),
        ("$00", ""),
        ("$named", ""),
        ("$é", ""),
        ("$1é", ""),
        ("$1²", "a²"),
        ("$٣", ""),
        ("$1000000000000", ""),
        ("$999999999", ""),
        ("$_x", ""),
        ("\\1", "\\1"),
        ("{0}{}%s$1", "{0}{}%sa"),
    ],
)
def test_templates_are_filled_by_gos_rules(template: str, filled: str) -> None:
    text = "abcdefghij"
    quick, slow = Regex("".join(f"({char})" for char in text)), Regex("".join(f"({char}{{1}})" for char in text))
    assert (quick.tier, slow.tier) == ("python", "re2")
    assert quick.expander(template)(text) == filled
    assert slow.expander(template)(text) == filled


def test_templates_name_groups() -> None:
    named = Regex("(?P<name>.+):(?P<01>.+)")
    for template, filled in {"$name": "h", "${name}d+$01": "hd+1", "$named": "", "$1": "h"}.items():
        assert named.expander(template)("h:1") == filled


@pytest.mark.parametrize(
    ("regex", "text", "filled"),
    [
        ("(?P<n>x)|(?P<n>y)", "y", "<y>"),
        ("(?P<n>x*)(?P<n>y)", "y", "<>"),
        (r"(a)?\((?:(?P<n>x)|([(](?<n>y)))", "((y", "<y>"),
        ("(?P<n>x)?(?P<m>.)(?P<n>z)?", "y", "<>"),
    ],
)
def test_of_groups_with_one_name_the_first_that_took_part_counts(regex: str, text: str, filled: str) -> None:
    assert Regex(regex).expander("<$n>")(text) == filled


@pytest.mark.parametrize("regex", ["(a)|(b)", "(a)?(b)", "(a+)|(b+)", "(a|aa)?(b)c*?c*", "(a{1})?(b)"])
def test_a_group_that_took_no_part_is_empty(regex: str) -> None:
    assert Regex(regex).expander("[$1|$2]")("b") == "[|b]"


def test_the_default_expression_matches_everything() -> None:
    everything = Regex("(.*)")
    for text in ("", "a", "\n", "\udcff", "a" * 1000):
        assert everything.matches(text)
        assert everything.expander("$1")(text) == text
        assert everything.expander("<$0$1>")(text) == f"<{text}{text}>"
        assert everything.expander("x")(text) == "x"


# --- Every tier answers as RE2 does ---

_TIERS: dict[str, Tier] = {
    "(.*)": "any",
    "": "words",
    "abc": "words",
    "a|b|": "words",
    "team-a, team-b": "words",
    "|".join(f"http://host-{index}:80/" for index in range(1000)): "words",
    "https?": "python",
    "(https?)": "python",
    "(a|b)-(c|d)": "python",
    r"10\.0\.0\.1": "python",
    ".+": "python",
    ".*?": "python",
    "__meta_(.+)": "python",
    ".*-metrics": "python",
    "(a)(.*)(b)()": "python",
    r"([^:]+):(\d+)": "python",
    r"([^:]+)(?::\d+)?": "python",
    r"(.+?)(:\d+)?": "python",
    "(?:a|b)": "python",
    # More places to choose at than Python may have:
    r"([^:]+)(?::\d+)?;(\d+)": "re2",
    "a?b?c?d?": "re2",
    "(a|b|c|d|e)": "re2",
    "(?:a|b)" * 20: "re2",
    "a" * 101 + ".": "re2",
    # Parts that are not on the short list:
    "^abc$": "re2",
    "(a+)+": "re2",
    "(?i)abc": "re2",
    "a)|(b": "re2",
    "a\ufffd": "re2",
    "é": "re2",
    "[a-c]": "re2",
    "[[:alpha:]]": "re2",
    r"\s": "re2",
    "a{2}": "re2",
    "(?P<n>a)": "re2",
    r"\bab\b": "re2",
}

_TEXTS = [
    "",
    "a",
    "b",
    "ab",
    "abc",
    "aab",
    "acc",
    "http",
    "https",
    "10.0.0.1",
    "10x0x0x1",
    "h:80",
    "h:80;90",
    "a\nb",
    "aéb",
    "a\udcffb",
    "a\ufffdb",
    "\n",
    "x.y.",
    "x-1.y",
    "127.0",
    "__meta_",
    "__meta_a\n",
    "x-metrics",
    "-metrics",
    "a" * 64,
    "a" * 65,
    "a" * 63 + "b",
    "é" * 64,
    "é" * 65,
    "h" * 61 + ":80",
    "h" * 62 + ":80",
    "__meta_" + "é" * 100,
    "x" * 1000 + "-metrics",
]
_ASKED = ["$0", "$1", "[$1|$2]", "[$3]$4$0%s{}", "const", "$1$1"]


def assert_equal_to_re2(pattern: str, texts: list[str]) -> None:
    regex = Regex(pattern)
    oracle = re2.compile(f"^(?s:{pattern})$")
    expanders = {template: regex.expander(template) for template in _ASKED}
    renamers = {template: regex.renamer(template) for template in _ASKED}
    for text in texts:
        found = oracle.search(re.sub("[\ud800-\udfff]", "\ufffd", text))  # RE2 reads each of these as one character
        assert regex.matches(text) is (found is not None), text
        for template in _ASKED:
            expected = None if found is None else filled(template, text, found)
            assert expanders[template](text) == expected, (text, template)
            if found is None or found.span() == (0, len(text)):  # else part of the name stays, as shown below
                assert renamers[template](text) == expected, (text, template)


def filled(template: str, text: str, found: Any) -> str:
    """Return what RE2's answer makes of a template that has nothing but literals and ``$`` with one digit."""

    def held(reference: re.Match[str]) -> str:
        group = int(reference[1])
        start, stop = found.span(group) if group <= found.re.groups else (0, 0)
        return text[start:stop]

    return re.sub(r"\$(\d)", held, template)


@pytest.mark.parametrize(("pattern", "tier"), _TIERS.items(), ids=lambda value: value[:20])
def test_an_expression_goes_to_the_first_tier_that_it_fits(pattern: str, tier: Tier) -> None:
    assert Regex(pattern).tier == tier
    assert_equal_to_re2(pattern, _TEXTS)


def _patterns(
    atoms: st.SearchStrategy[str], quantifiers: list[str], groups: list[str], leaves: int
) -> st.SearchStrategy[str]:
    quantified = st.tuples(atoms, st.sampled_from(quantifiers)).map("".join)

    def sequences(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        sequence = st.lists(inner, max_size=4).map("".join)
        alternatives = st.lists(sequence, min_size=1, max_size=3).map("|".join)
        return st.builds(str.format, st.sampled_from(groups), alternatives) | sequence

    pattern = st.recursive(atoms | quantified, sequences, max_leaves=leaves)
    return pattern | st.lists(pattern, min_size=1, max_size=3).map("|".join)


_LITERALS = st.sampled_from(["a", "b", "c", "ab", r"\.", "-", "é", ":", "1", " ", "\n", "%", "/", "_", r"\$", "€", "{"])
_SETS = st.sampled_from([".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]", "[^:]", "[^ab]", "[a-c]", r"[\w-]"])
_MORE_SETS = st.sampled_from([r"[^\d.]", "[a-]", "[-b]", "[[:alpha:]]", "[:a:]", "[.]", "[^.]", "[,;=@/]"])
_ANY_PATTERN = st.one_of(
    _patterns(
        _LITERALS | _SETS | _MORE_SETS,
        ["", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0,1}", "{1,}", "{0}", "{a}"],
        ["({})", "(?:{})", "({})?", "(?:{})?", "({})*", "(?P<n>{})", "({})??"],
        leaves=8,
    ),
    st.lists(_LITERALS | st.sampled_from(["(.*)", ".+", "(.+)", ".*", "()", "^", "$"]), max_size=5).map("".join),
    st.text("ab().*+?|[]^$\\{}1:", max_size=8),
)
_EASY_PATTERN = _patterns(
    st.sampled_from(["a", "b", "ab", ":", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[^:.]", "1", "-", " "]),
    ["", "", "", "*", "+", "?", "*?", "+?", "??"],
    ["({})", "({})", "(?:{})", "({})?", "(?:{})?"],
    leaves=6,
)
"""Patterns of the parts that Python may run; about half of them have few enough of these parts."""

_SHORT_TEXT = st.text("abc.-1: \né%_/$€{\udcff\ufffd", max_size=8)
_TEXT = _SHORT_TEXT | st.builds(mul, st.text("ab1:é", max_size=4), st.integers(1, 40))
_SUBJECTS = st.lists(_TEXT, min_size=1, max_size=12).map(lambda texts: [*texts, "", "a", "ab", "ab:1"])


@settings(max_examples=2 * settings().max_examples)
@given(_ANY_PATTERN, _SUBJECTS)
def test_every_expression_gets_the_answer_of_re2(pattern: str, texts: list[str]) -> None:
    try:
        check_regex(pattern)
    except ValueError:
        return
    assert_equal_to_re2(pattern, texts)


@settings(max_examples=2 * settings().max_examples)
@given(_EASY_PATTERN, _SUBJECTS)
def test_every_easy_expression_gets_the_answer_of_re2(pattern: str, texts: list[str]) -> None:
    assert_equal_to_re2(pattern, texts)


@pytest.mark.parametrize("pattern", ["a(.)b", "(?:a|aa)(.)b", "a(.{1})b"])
def test_a_byte_that_is_no_utf8_is_read_as_one_character(pattern: str) -> None:
    assert Regex(pattern).expander("$1")("a\udcffb") == "\udcff"


@pytest.mark.parametrize(
    ("regex", "name", "renamed"),
    [
        ("a)|(b", "axxb", "<>xx<b>"),
        ("a)|(b", "xb", "x<b>"),
        ("a)|(b", "ba", None),
        ("a)|(x*", "ab", "<>b<>"),
        ("a)|(x*", "a", "<>"),
        ("a)|(x*", "éxx", "é<xx>"),
        ("a)|(.", "a\udcff", "<><\udcff>"),
    ],
)
def test_parentheses_may_close_the_anchors(regex: str, name: str, renamed: str | None) -> None:
    assert Regex(regex).renamer("<$1>")(name) == renamed


# --- Nothing takes long ---


@pytest.mark.parametrize(
    "regex", ["(a+)+", "(a*)*b", "(a|aa)+$", "([^:]+)(?::a+)?;(a+)", "(.*)(.*)(.*)x", "a*a*a*a*b", "([ab]+)c?d?e?f"]
)
def test_no_expression_takes_long_for_a_long_text(regex: str) -> None:
    made = Regex(regex)
    started = time.process_time()
    made.matches("a" * 50_000 + "!")
    made.expander("$1")("a" * 50_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "regex",
    [
        "a*?.*a?" + "()" * 43,
        "a*?a*?a?" + "(" * 42 + ")" * 42,
        "a*a*(a|a)" + "a" * 40 + ":",
        "(a*)(a*)(?:a)?" + "[ab]" * 21 + ":",
        "(.+)(.+)(a|:)" + r"\w" * 32 + ":",
        "(a|a)(a|a)a*" + "a" * 60 + ":",
    ],
)
def test_the_hardest_expressions_for_python_take_milliseconds(regex: str) -> None:
    made = Regex(f"{regex}:")
    assert made.tier == "python"
    for length in (63, 64, 65, 100_000):
        started = time.process_time()
        assert not made.matches("a" * length)
        assert time.process_time() - started < 0.1


@given(_EASY_PATTERN, st.sampled_from(["a", "ab", "a:", "1"]))
def test_no_easy_expression_takes_long(pattern: str, part: str) -> None:
    made = Regex(f"{pattern}-")
    started = time.process_time()
    for text in (part * (64 // len(part)), part * 5000):
        made.matches(text)
        made.expander("$1")(text)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "regex",
    [
        "a" * 100_000,
        "a|" * 50_000,
        "(" * 900 + ")" * 900,
        "a?" * 300 + "a" * 300,
        "(a|b)" * 300,
        "x{1000}" * 50,
        "(?:a" * 900 + ")" * 900,
    ],
)
def test_no_expression_takes_long_to_read(regex: str) -> None:
    started = time.process_time()
    Regex(regex).expander("$0")("a")
    assert time.process_time() - started < 1
