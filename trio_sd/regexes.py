r"""Regular expressions as Go reads them: one expression becomes functions that match a text and fill a template.

An expression is written in RE2's syntax. It must match the whole text, and ``.`` matches a newline too. RE2 needs
linear time for every expression and every text. But each call from Python to RE2 costs about 4 µs, even for ``a|b``,
and relabeling makes a call for each rule and each target. So an expression goes to the first of these tiers that it
fits. Every tier gives exactly the answers of RE2.

"any"
  The expression is ``(.*)``, which is the default of every rule. It matches every text, so there is nothing to run.

"words"
  The expression is a list of plain words with ``|`` between them, such as ``http|https``. No character in it has a
  special meaning, so it matches these words and nothing else. A set answers in constant time.

"python"
  Python's :mod:`re` runs the expression if all of its parts are on a short list: plain characters, ``.``, ``\d``,
  ``\w``, simple classes, ``*``, ``+`` and ``?`` after one character, their lazy forms, groups, ``?`` after a group, and
  ``|``. Python and RE2 read these parts alike, once Python is told ``re.ASCII`` and ``re.DOTALL``. Both try the ways to
  match in the same order and take the first that reaches the end of the text. They disagree about what a group holds
  after it matched several times, but no group on this list can do so.

  Python tries one way to match after another, so the number of ways needs a bound. Each ``*`` or ``+`` can stop at any
  character of the text. Each ``?`` or ``|`` doubles the number of ways. An expression may have at most two ``*`` or
  ``+``, at most three of these signs in all, and at most 100 characters. A text of more than 64 characters goes to RE2.
  So there are at most 4,290 ways. The slowest expression that we found takes 3 ms, and RE2 takes 0.2 ms for it. A usual
  expression such as ``([^:]+):(\d+)`` takes 0.7 µs, and RE2 takes 4.4 µs for it.

"re2"
  RE2 runs all other expressions, such as ``([^:]+)(?::\d+)?;(\d+)`` with its three ``+``.

We rejected four other designs:

- RE2 for everything is the simplest design. With it the five rules of ``benchmarks/relabel.py`` take several times as
  long.
- Python's :mod:`re` for everything is not safe: ``(a+)+`` takes seconds for 27 characters.
- Our own parser can prove for more expressions that there is only one way to match, and can answer some of them by
  slicing the text. This took 350 more lines and was not faster in the benchmark.
- A cache of answers does not help with values of labels, because addresses hardly ever repeat.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol, TypeAlias

import re2

from .messages import is_utf8, quote

__all__ = ["Regex", "Tier", "check_regex", "readable"]

Tier: TypeAlias = Literal["any", "words", "python", "re2"]
"""What answers for an expression; the head of this module explains each."""

_ANY: Final = "(.*)"

_WORDS: Final = re.compile(r"[\w:/@=,; -]*+(?:\|[\w:/@=,; -]*+)*+", re.ASCII)
"""An expression of plain words."""

_SIMPLE: Final = re.compile(
    r"""
    (?:
        (?: [\w:/@=,;\x20-] | \\[dw.:/+*$-] | \. | \[ \^? [\w:/@=,;.]+ \] ) (?: [*+?] \?? )?   # one character
        | \( (?: \?: | (?!\?) )   # the start of a group
        | \) \??                  # the end of a group
        | \|
    )*+
    """,
    re.ASCII | re.VERBOSE,
)
"""An expression of which every part means the same to Python and to RE2."""

_ENDLESS: Final = re.compile(r"[*+]")
_CHOICE: Final = re.compile(r"[*+|]|(?<![(*+])\?")
_MOST_ENDLESS: Final = 2
_MOST_CHOICES: Final = 3
_LONGEST_EXPRESSION: Final = 100
_LONGEST_TEXT: Final = 64
"""The limits of the tier "python"; together they bound what it has to try."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_REPLACEMENT_CHARACTER: Final = "\ufffd"

_SYNTAX: Final = re.compile(
    r"""
    (?s: \\Q .*? (?: \\E | \Z ) )                   # quoted
    | (?P<byte> \\C )
    | (?s: \\. )
    | \[ \^? \]? (?: \[: \^? \w+ :\] | (?s: \\. ) | [^\]\\] )* \]   # a class
    | (?P<group> \( (?: (?!\?) | \? P? < (?P<name> [^>]* ) > ) )
    """,
    re.VERBOSE,
)
_GROUP_NAME: Final = re.compile("[A-Za-z0-9_]+")


class _Match(Protocol):
    """What a match of re2 has."""

    def span(self, group: int = 0) -> tuple[int, int]: ...


class _Compiled(Protocol):
    """What a compiled expression of re2 has."""

    @property
    def groups(self) -> int: ...

    def search(self, text: str | bytes) -> _Match | None: ...

    def finditer(self, text: str | bytes) -> Iterator[_Match]: ...


def check_regex(text: str) -> None:
    """Refuse what Go refuses.

    Raises:
      ValueError: ``text`` is no regular expression.
    """
    if text != _ANY:
        _checked(text)


def _checked(text: str) -> _Compiled:
    """Return ``text`` compiled by RE2, to be matched as a whole.

    Raises:
      ValueError: it is no regular expression.
    """
    if not is_utf8(text):
        raise _refusal("invalid UTF-8", text)
    try:
        compiled = _compiled(f"^(?s:{text})$")
    except re2.error as error:
        raise _refusal(_reason(error), text) from None
    # RE2 has an escape for single bytes, and takes letters of every script in the name of a group. Go does not.
    for match in _SYNTAX.finditer(text):
        if match["byte"]:
            raise _refusal(r"invalid escape sequence: \C", text)
        if match["name"] is not None and not _GROUP_NAME.fullmatch(match["name"]):
            raise _refusal(f"invalid named capture: {match[0]}", text)
    return compiled


def _groups_by_name(text: str) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the groups that each name has; RE2 itself tells the first one only."""
    names: dict[str, tuple[int, ...]] = {}
    groups = [match["name"] for match in _SYNTAX.finditer(text) if match["group"]]
    for number, name in enumerate(groups, 1):
        if name is not None:
            names[name] = (*names.get(name, ()), number)
    return names


def _compiled(text: str) -> _Compiled:
    options = re2.Options()
    options.log_errors = False
    compiled: _Compiled = re2.compile(text, options)
    re2.purge()  # or the 128 compiled last stay in memory, whoever needs them: up to a gigabyte
    return compiled


def _refusal(reason: str, text: str) -> ValueError:
    return ValueError(f"error parsing regexp: {reason}, in {quote(text)}")


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else b""
    reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    # After "missing )" RE2 prints all of the expression, with what we put around it.
    return reason.partition(": ^(?s:")[0]


class Regex:
    """A regular expression that must match a text as a whole.

    Args:
      text: the expression.

    Attributes:
      tier: what answers for this expression. The answers don't depend on it.
      matches: tells whether a text matches.

    Raises:
      ValueError: ``text`` is no regular expression.
    """

    __slots__ = ("_anchored", "_compiled", "_names", "_python", "matches", "tier")

    tier: Tier
    matches: Callable[[str], bool]
    _python: Callable[[str], re.Match[str] | None] | None

    def __init__(self, text: str) -> None:
        self._compiled = _checked(text)
        self._names = _groups_by_name(text) if "<" in text else {}
        self._anchored = _is_anchored(text)
        self.tier = _tier(text) if self._anchored else "re2"
        # With "any" a template such as "x$1" still needs something that fills it.
        has_python = self.tier == "python" or self.tier == "any"
        self._python = python = re.compile(text, re.ASCII | re.DOTALL).fullmatch if has_python else None
        search = self._search
        if self.tier == "any":
            self.matches = lambda text: True
        elif self.tier == "words":
            self.matches = frozenset(text.split("|")).__contains__
        elif python is not None:
            self.matches = lambda text: (python(text) if len(text) <= _LONGEST_TEXT else search(text)) is not None
        else:
            self.matches = lambda text: search(text) is not None

    def expander(self, template: str) -> Callable[[str], str | None]:
        """Return a function that fills ``template`` for a text that matches, and returns ``None`` for other texts.

        ``template`` follows the rules of Go's ``Regexp.Expand``: ``$1``, ``${1}`` and ``${name}`` stand for what a
        group holds, and ``$$`` for a dollar.
        """
        pieces = self._pieces(template)
        matches, python, search = self.matches, self._python, self._search
        if len(pieces) == 1 and isinstance(pieces[0], str):
            constant = pieces[0]
            return lambda text: constant if matches(text) else None
        if len(pieces) == 1 and self.tier == "any":
            return str  # both groups hold the whole text, and this built-in returns it as it is

        def fill(text: str) -> str | None:
            found = search(text)
            return None if found is None else _filled(pieces, text, found)

        if python is None:
            return fill
        form = _format(pieces)

        def fill_quickly(text: str) -> str | None:
            if len(text) > _LONGEST_TEXT:
                return fill(text)
            found = python(text)
            return None if found is None else form(text, *found.groups(""))  # the whole text is group 0

        return fill_quickly

    def renamer(self, template: str) -> Callable[[str], str | None]:
        """Return a function that replaces every match within a text by ``template``; ``None`` stands for no match.

        There is one match, which is the whole text, except where a parenthesis closes what holds the expression to
        both ends of the text, as in ``a)|(b``.
        """
        if self._anchored:
            return self.expander(template)
        pieces = self._pieces(template)
        return lambda text: "".join(self._replaced(pieces, text)) if self.matches(text) else None

    def _replaced(self, pieces: Sequence[_Piece], text: str) -> Iterator[str]:
        """Yield the parts of ``text`` with each match replaced. An empty match right after another one is left out."""
        end = -1
        for match in self._compiled.finditer(readable(text)):
            start, stop = match.span()
            if stop > end:
                yield text[max(end, 0) : start]
                yield _filled(pieces, text, match)
                end = stop
        yield text[max(end, 0) :]

    def _search(self, text: str) -> _Match | None:
        # RE2 wants bytes. In ASCII an offset in bytes is an offset in characters.
        return self._compiled.search(text.encode() if text.isascii() else readable(text))

    def _pieces(self, template: str) -> Sequence[_Piece]:
        return _pieces(template, self._compiled.groups, self._names)


def _is_anchored(text: str) -> bool:
    """Tell whether the expression must match the whole text; ``a)|(b`` is held to one end only."""
    try:
        _compiled(text)
    except re2.error:
        return False
    return True


def _tier(text: str) -> Tier:
    if text == _ANY:
        return "any"
    if _WORDS.fullmatch(text):
        return "words"
    is_simple = (
        len(text) <= _LONGEST_EXPRESSION
        and len(_ENDLESS.findall(text)) <= _MOST_ENDLESS
        and len(_CHOICE.findall(text)) <= _MOST_CHOICES
        and _SIMPLE.fullmatch(text)
    )
    return "python" if is_simple else "re2"


def readable(text: str) -> str:
    """Return ``text`` with each byte that is no UTF-8 replaced by one character, as Go reads it."""
    return _SURROGATE.sub(_REPLACEMENT_CHARACTER, text)


# Templates

_Piece: TypeAlias = "str | tuple[int, ...]"
"""A part of a template: literal text, or numbers of groups, of which the first that took part in the match counts."""


def _filled(pieces: Sequence[_Piece], text: str, match: _Match) -> str:
    parts = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
            continue
        for group in piece:
            start, stop = match.span(group)
            if start >= 0:
                parts.append(text[start:stop])
                break
    return "".join(parts)


def _format(pieces: Sequence[_Piece]) -> Callable[..., str]:
    """Return what fills ``pieces``, given what group 0 and each other group holds; no name is there more than once."""
    escaped = [
        piece.replace("{", "{{").replace("}", "}}") if isinstance(piece, str) else f"{{{piece[0]}}}" for piece in pieces
    ]
    return "".join(escaped).format


def _pieces(template: str, groups: int, names: Mapping[str, tuple[int, ...]]) -> tuple[_Piece, ...]:
    """Return ``template`` as literal pieces and numbers of groups, by the rules of Go's ``Regexp.Expand``.

    ``$name`` takes as many letters, digits and underscores as there are, so that ``$1x`` is ``${1x}``. A number without
    leading zeros is a group's; anything else is a name, ``01`` too. An unknown group is empty. ``$$`` is a dollar, and
    so is one that no name follows.
    """
    pieces: list[_Piece] = []
    literal, rest = "", template
    while True:
        before, dollar, rest = rest.partition("$")
        literal += before
        if not dollar:
            break
        if rest.startswith("$"):
            literal, rest = literal + "$", rest[1:]
            continue
        name, after = _reference(rest)
        if not name:
            literal += "$"
            continue
        rest = after
        number = _group_number(name)
        numbers = names.get(name, ()) if number is None else (number,)
        if numbers and numbers[0] <= groups:
            pieces += [literal, numbers] if literal else [numbers]
            literal = ""
    return (*pieces, literal) if literal or not pieces else tuple(pieces)


def _reference(text: str) -> tuple[str, str]:
    """Return the name that ``text``, which follows a dollar, begins with, and what follows that; or no name."""
    start = 1 if text.startswith("{") else 0
    end = start
    while end < len(text) and _is_name_character(text[end]):
        end += 1
    if not start:
        return text[:end], text[end:]
    return (text[1:end], text[end + 1 :]) if text[end : end + 1] == "}" else ("", "")


def _is_name_character(char: str) -> bool:
    if char.isascii():
        return char.isalnum() or char == "_"
    category = unicodedata.category(char)
    return category.startswith("L") or category == "Nd"


def _group_number(name: str) -> int | None:
    if not (name.isascii() and name.isdigit()) or (name.startswith("0") and len(name) > 1) or len(name) > 9:
        return None
    return int(name)
