r"""Relabeling: rules that rewrite, keep or drop label sets, as Prometheus applies them.

A :class:`RelabelConfig` says what a rule does, a :class:`Relabeler` does it. Every rule becomes one function when the
relabeler is made, so that nothing about a rule is looked up again for each target.

Regular expressions are RE2's, anchored at both ends, and ``.`` matches a newline. A call of RE2 costs some
microseconds, most of them to get into C++ and back, while the usual expressions say little. So an expression is read
once, and takes the first of these ways whose answers are the same as RE2's for every text:

1. *Words*: it matches a few texts, such as ``https?`` or ``a|b``. A dictionary of them, with what their groups hold.
2. *Wildcard*: literals around one ``.*`` or ``.+``, such as ``__meta_(.+)``. The ends are compared, groups are slices.
3. *One way*: the next character alone always says how to go on, as in ``([^:]+):(\d+)``. There is nothing to
   try twice, so Python's ``re`` can't be slow either; its possessive quantifiers make that certain.
4. *RE2*: everything else, such as ``(.+?)(:\d+)?``. Linear time for every expression and text.

Rejected: Python's ``re`` throughout, for which ``(a+)+`` and 27 characters are seconds of work; a cache of results by
value, because addresses hardly repeat. Names of labels do repeat, so that rules about names remember their answers for
a limited number of names, in the relabeler.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias, TypeGuard, TypeVar

import re2

from .errors import FieldError
from .messages import is_utf8, quote
from .targets import Labels

__all__ = [
    "ACTIONS",
    "LabelChange",
    "NameScheme",
    "RelabelConfig",
    "Relabeler",
    "Step",
    "Trace",
    "explain",
    "is_valid_label_name",
    "relabel",
]

T = TypeVar("T")

NameScheme: TypeAlias = Literal["legacy", "utf8"]
"""Which label names are valid: ASCII letters, digits and ``_`` only, or any text that is UTF-8."""

ACTIONS: Final = (
    "replace",
    "keep",
    "drop",
    "keepequal",
    "dropequal",
    "hashmod",
    "labelmap",
    "labeldrop",
    "labelkeep",
    "lowercase",
    "uppercase",
)
"""What a rule can do."""

_DEFAULT_SEPARATOR: Final = ";"
_DEFAULT_REGEX: Final = "(.*)"
_DEFAULT_REPLACEMENT: Final = "$1"
_NULL_IS_EMPTY: Final = MappingProxyType({"null": "empty"})
"""For the decoder: a null in the text is no default here, but the empty string."""

_WRITING: Final = frozenset({"replace", "hashmod", "lowercase", "uppercase"})
_COMPARING: Final = frozenset({"keepequal", "dropequal"})
_CASE: Final = frozenset({"lowercase", "uppercase"})
_BY_NAME: Final = frozenset({"labeldrop", "labelkeep"})
_BY_VALUE: Final = frozenset({"replace", "keep", "drop"})
"""Actions whose regular expression is matched against the value, not against names of labels."""

_LEGACY_NAME: Final = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
_LEGACY_TEMPLATE: Final = re.compile(r"(?:[a-zA-Z_]|\$\{\w+\}|\$\w)(?:\w|\$\{\w+\}|\$\w)*+", re.ASCII)
"""A name with ``$1`` or ``${1}`` in it."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_REPLACEMENT_CHARACTER: Final = "\ufffd"

_REMEMBERED: Final = 1024  # names of labels a rule
_UINT64: Final = 2**64


def is_valid_label_name(name: str, scheme: NameScheme) -> bool:
    """Tell whether ``name`` is a valid name of a label under ``scheme``."""
    if scheme == "legacy":
        return _LEGACY_NAME.fullmatch(name) is not None
    return name != "" and is_utf8(name)


@dataclass(frozen=True, slots=True)
class RelabelConfig:
    """One rule, in the words of the dialect.

    Attributes:
      source_labels: names of the labels whose values are joined; a label that is missing counts as empty.
      separator: what stands between the joined values.
      regex: what the joined value (for labelmap, labeldrop and labelkeep: a label's name) must match as a whole.
      modulus: for hashmod, what the hash is taken modulo of.
      target_label: the label that is written or compared; for replace, groups of ``regex`` may be named in it.
      replacement: the value to write; groups of ``regex`` may be named in it. For labelmap, the new name.
      action: one of :data:`ACTIONS`, in lower or upper case.
    """

    source_labels: tuple[str, ...] = ()
    separator: str = field(default=_DEFAULT_SEPARATOR, metadata=_NULL_IS_EMPTY)
    regex: str = field(default=_DEFAULT_REGEX, metadata=_NULL_IS_EMPTY)
    modulus: int = 0
    target_label: str = ""
    replacement: str = field(default=_DEFAULT_REPLACEMENT, metadata=_NULL_IS_EMPTY)
    action: str = field(default="replace", metadata=_NULL_IS_EMPTY)

    def __post_init__(self) -> None:
        object.__setattr__(self, "action", self.action.lower())

    def validate(self, scheme: NameScheme = "utf8", *, given: Collection[str] = ()) -> None:
        """Check what the types of the fields can't say. What "legacy" accepts, "utf8" accepts as well.

        Args:
          scheme: which names of labels are valid.
          given: fields that the configuration sets. A value that differs from its default is known to be set; this
            is for the two places where Prometheus refuses even the default when it is written out: ``regex`` of
            keepequal and dropequal, ``source_labels`` of labeldrop and labelkeep.

        Raises:
          FieldError: the rule can't be used.
        """
        for index, name in enumerate(self.source_labels):
            if not is_valid_label_name(name, "utf8"):  # whatever the scheme: such a label may well be there
                raise FieldError(("source_labels", index), f"{quote(name)} is not a valid label name")
        _check_regex(self.regex)
        if not 0 <= self.modulus < _UINT64:
            raise FieldError("modulus", f"found {self.modulus}, expected a whole number from 0 to 2^64 - 1")
        if not self.action:
            raise FieldError("action", "relabel action cannot be empty")
        if self.action not in ACTIONS:
            message = f"unknown relabel action {quote(self.action)}; expected one of: {', '.join(ACTIONS)}"
            raise FieldError("action", message)
        self._check_names(scheme)
        self._check_unused(given)

    def _check_names(self, scheme: NameScheme) -> None:
        action, target = self.action, self.target_label
        if action == "hashmod" and not self.modulus:
            message = "relabel configuration for hashmod requires non-zero modulus"
            raise FieldError("modulus", message)
        if action in _WRITING or action in _COMPARING:
            if not target:
                message = f"relabel configuration for {action} action requires 'target_label' value"
                raise FieldError("target_label", message)
            named = is_valid_label_name if action != "replace" else _is_valid_name_template
            if not named(target, scheme):
                raise FieldError("target_label", f"{quote(target)} is invalid 'target_label' for {action} action")
        if action == "labelmap" and not _is_valid_map_template(self.replacement, scheme):
            message = f"{quote(self.replacement)} is invalid 'replacement' for labelmap action"
            raise FieldError("replacement", message)

    def _check_unused(self, given: Collection[str]) -> None:
        action = self.action
        unused: tuple[str, ...]
        if (action in _CASE or action in _COMPARING) and self.replacement != _DEFAULT_REPLACEMENT:
            raise FieldError("replacement", f"'replacement' can not be set for {action} action")
        if action in _COMPARING:
            used, unused = "'source_labels' and `target_label`", ("regex", "modulus", "separator")
            even_if_default = "regex"
        elif action in _BY_NAME:
            used, unused = "'regex'", ("source_labels", "target_label", "modulus", "separator", "replacement")
            even_if_default = "source_labels"
        else:
            return
        for name in unused:
            if getattr(self, name) != getattr(_DEFAULT, name) or (name == even_if_default and name in given):
                raise FieldError(name, f"{action} action requires only {used}, and no other fields")


_DEFAULT: Final = RelabelConfig()


def _is_valid_name_template(template: str, scheme: NameScheme) -> bool:
    if "$" in template:
        return _is_valid_map_template(template, scheme)
    return is_valid_label_name(template, scheme)


def _is_valid_map_template(template: str, scheme: NameScheme) -> bool:
    # Under "utf8" a name may contain $ and braces anyway.
    if scheme == "legacy":
        return _LEGACY_TEMPLATE.fullmatch(template) is not None
    return is_valid_label_name(template, scheme)


# Templates


def _template(text: str, groups: int, names: Mapping[str, int]) -> tuple[str | int, ...]:
    """Return ``text`` as literal pieces and numbers of groups, by the rules of Go's ``Regexp.Expand``.

    ``$name`` takes as many letters, digits and underscores as there are, so that ``$1x`` is ``${1x}``. A number without
    leading zeros is a group's; anything else is a name, ``01`` too. An unknown group is empty. ``$$`` is a dollar, and
    so is one that no name follows.
    """
    pieces: list[str | int] = []
    literal, rest = "", text
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
        group = _group_number(name)
        if group is None:
            group = names.get(name)
        if group is not None and group <= groups:
            pieces += [literal, group] if literal else [group]
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


# Regular expressions

_SYNTAX: Final = re.compile(
    r"""
    (?s: \\Q .*? (?: \\E | \Z ) )                   # quoted
    | (?P<byte> \\C )
    | (?s: \\. )
    | \[ \^? \]? (?: \[: \^? \w+ :\] | (?s: \\. ) | [^\]\\] )* \]   # a class
    | \( \? P? < (?P<name> [^>]* ) >
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

    @property
    def groupindex(self) -> Mapping[str, int]: ...

    def search(self, text: str | bytes) -> _Match | None: ...

    def finditer(self, text: str | bytes) -> Iterator[_Match]: ...


def _compiled(pattern: str) -> _Compiled:
    options = re2.Options()
    options.log_errors = False
    compiled: _Compiled = re2.compile(pattern, options)
    return compiled


def _wrapped(regex: str) -> str:
    return f"^(?s:{regex})$"


def _check_regex(regex: str) -> None:
    """Refuse what Go refuses.

    Raises:
      FieldError: it is no regular expression.
    """
    if regex == _DEFAULT_REGEX:
        return
    if not is_utf8(regex):
        raise _regex_error("invalid UTF-8", regex)
    try:
        _compiled(_wrapped(regex))
    except re2.error as error:
        raise _regex_error(_reason(error), regex) from None
    # RE2 itself knows single bytes and takes any group name any number of times.
    names: set[str] = set()
    for match in _SYNTAX.finditer(regex):
        if match["byte"]:
            raise _regex_error(r"invalid escape sequence: \C", regex)
        name = match["name"]
        if name is not None:
            if name in names:
                raise _regex_error(f"duplicate capture group name: {name}", regex)
            if not _GROUP_NAME.fullmatch(name):
                raise _regex_error(f"invalid named capture: {match[0]}", regex)
            names.add(name)


def _regex_error(reason: str, regex: str) -> FieldError:
    return FieldError("regex", f"error parsing regexp: {reason}, in {quote(regex)}")


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else b""
    reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    # What is missing is followed by all of the expression, as it was wrapped.
    return reason.partition(": ^(?s:")[0]


class _Regex(ABC):
    """A regular expression that knows the quickest way to its answers."""

    matches: Callable[[str], bool]
    groups: int
    names: Mapping[str, int]

    def __init__(self, groups: int, names: Mapping[str, int]) -> None:
        self.groups = groups
        self.names = names

    def expander(self, template: str) -> Callable[[str], str | None]:
        """Return what makes of a text that matches what ``template`` says, and ``None`` of others."""
        pieces = _template(template, self.groups, self.names)
        if len(pieces) == 1 and type(pieces[0]) is str:
            constant, matches = pieces[0], self.matches
            if matches is _always:
                return lambda text: constant
            return lambda text: constant if matches(text) else None
        return self._filler(pieces)

    def renamer(self, template: str) -> Callable[[str], str | None]:
        """Return what replaces every match in a text by what ``template`` says; ``None`` stands for no match."""
        return self.expander(template)  # anchored: there is one match, and it is the whole text

    @abstractmethod
    def _filler(self, pieces: Sequence[str | int]) -> Callable[[str], str | None]:
        """Do as ``expander``, for a template that names a group."""


def _always(text: str) -> bool:
    return True


_ALL: Final = slice(0, None)


class _Words(_Regex):
    """Matches some texts; what the groups hold is known for each."""

    def __init__(self, words: Mapping[str, Mapping[int, str]], groups: int) -> None:
        super().__init__(groups, {})
        self._words = words
        # A dictionary's method and a string's are called without a Python frame.
        self.matches = next(iter(words)).__eq__ if len(words) == 1 else frozenset(words).__contains__

    def expander(self, template: str) -> Callable[[str], str | None]:
        return self._filler(_template(template, self.groups, {}))  # a constant is as quickly looked up

    def _filler(self, pieces: Sequence[str | int]) -> Callable[[str], str | None]:
        return {
            word: "".join([piece if isinstance(piece, str) else held.get(piece, "") for piece in pieces])
            for word, held in self._words.items()
        }.get


class _Wildcard(_Regex):
    """Matches what has the right ends; groups are slices."""

    def __init__(self, prefix: str, suffix: str, least: int, slices: Sequence[slice]) -> None:
        super().__init__(len(slices) - 1, {})
        self._slices = slices
        self.matches = _ends(prefix, suffix, least)

    def _filler(self, pieces: Sequence[str | int]) -> Callable[[str], str | None]:
        matches, slices = self.matches, self._slices
        parts = [piece if isinstance(piece, str) else slices[piece] for piece in pieces]
        only, *others = parts
        if others or isinstance(only, str):
            return lambda text: (
                "".join([part if isinstance(part, str) else text[part] for part in parts]) if matches(text) else None
            )
        if matches is _always and only == _ALL:
            return str
        return lambda text: text[only] if matches(text) else None


def _ends(prefix: str, suffix: str, least: int) -> Callable[[str], bool]:
    """Return what tells whether a text has these ends, with at least ``least`` characters in between."""
    length = len(prefix) + len(suffix) + least
    if not length:
        return _always
    if length == 1 and least:
        return bool
    if length == len(prefix):
        return lambda text: text.startswith(prefix)
    if length == len(suffix):
        return lambda text: text.endswith(suffix)
    if not suffix:
        return lambda text: text.startswith(prefix) and len(text) >= length
    return lambda text: len(text) >= length and text.startswith(prefix) and text.endswith(suffix)


class _OneWay(_Regex):
    """Matches with Python's ``re``, which has no choice anywhere."""

    def __init__(self, pattern: str) -> None:
        compiled = re.compile(pattern, re.DOTALL)
        super().__init__(compiled.groups, {})
        self._match = match = compiled.fullmatch
        self.matches = lambda text: match(text) is not None

    def _filler(self, pieces: Sequence[str | int]) -> Callable[[str], str | None]:
        match = self._match
        groups = [piece for piece in pieces if isinstance(piece, int)]
        if len(groups) == 1:
            group = groups[0]
            at = pieces.index(group)
            before, after = "".join(map(str, pieces[:at])), "".join(map(str, pieces[at + 1 :]))

            def fill_one(text: str) -> str | None:
                found = match(text)
                return None if found is None else f"{before}{found[group] or ''}{after}"

            return fill_one
        form = "".join(["%s" if isinstance(piece, int) else piece.replace("%", "%%") for piece in pieces])

        def fill(text: str) -> str | None:
            found = match(text)
            if found is None:
                return None
            held: tuple[str | None, ...] = found.group(*groups)
            return form % (held if None not in held else tuple([text or "" for text in held]))

        return fill


class _RE2(_Regex):
    """Matches with RE2."""

    def __init__(self, regex: str, *, anchored: bool) -> None:
        compiled = _compiled(_wrapped(regex))
        super().__init__(compiled.groups, compiled.groupindex)
        self._compiled = compiled
        self._anchored = anchored
        self.matches = lambda text: self._search(text) is not None

    def _search(self, text: str) -> _Match | None:
        # Offsets in bytes are offsets in characters here, and bytes are what RE2 wants.
        return self._compiled.search(text.encode() if text.isascii() else _readable(text))

    def _filler(self, pieces: Sequence[str | int]) -> Callable[[str], str | None]:
        search = self._search

        def fill(text: str) -> str | None:
            found = search(text)
            return None if found is None else _filled(pieces, text, found)

        return fill

    def renamer(self, template: str) -> Callable[[str], str | None]:
        if self._anchored:
            return self.expander(template)
        pieces = _template(template, self.groups, self.names)

        def rename(text: str) -> str | None:
            return "".join(self._replaced(pieces, text)) if self.matches(text) else None

        return rename

    def _replaced(self, pieces: Sequence[str | int], text: str) -> Iterator[str]:
        """Yield the parts of ``text`` with every match replaced; an empty match at the end of another one is none."""
        end = -1
        for found in self._compiled.finditer(_readable(text)):
            start, stop = found.span()
            if stop > end:
                yield text[max(end, 0) : start]
                yield _filled(pieces, text, found)
                end = stop
        yield text[max(end, 0) :]


def _readable(text: str) -> str:
    """Return ``text`` with every byte that is no UTF-8 replaced by one character, as Go reads it."""
    return _SURROGATE.sub(_REPLACEMENT_CHARACTER, text)


def _filled(pieces: Sequence[str | int], text: str, found: _Match) -> str:
    parts = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        else:
            start, stop = found.span(piece)  # -1 and -1 where the group took no part: an empty slice
            parts.append(text[start:stop])
    return "".join(parts)


def _regex(regex: str) -> _Regex:
    """Return the quickest way to match ``regex``, which must be valid."""
    try:
        _compiled(regex)
    except re2.error:
        # Parentheses close what the wrapping opens, as in "a)|(b": neither end need be anchored.
        return _RE2(regex, anchored=False)
    try:
        options, groups = _Parser(regex).parse()
    except _BeyondShapesError:
        return _RE2(regex, anchored=True)
    for make in (_words, _wildcard, _one_way):
        try:
            return make(options, groups)
        except _BeyondShapesError:
            pass
    return _RE2(regex, anchored=True)


# The shapes of regular expressions

_LONGEST: Final = 4096  # characters of an expression that is looked at
_DEEPEST: Final = 10  # groups within groups
_MOST_WORDS: Final = 256

# A set of characters is a bit for each ASCII character, and one for all others together.
_OTHERS: Final = 1 << 128
_ANY: Final = (1 << 129) - 1
_CLASSES: Final = MappingProxyType(
    {
        "d": sum(1 << ord(char) for char in "0123456789"),
        "s": sum(1 << ord(char) for char in "\t\n\f\r "),
        "w": sum(1 << code for code in range(128) if chr(code).isalnum() or chr(code) == "_"),
    }
)
_COUNTS: Final = re.compile(r"\{([0-9]{1,4})(,([0-9]{0,4}))?\}")


class _BeyondShapesError(Exception):
    """The expression has to be left to RE2."""


@dataclass(slots=True)
class _Characters:
    """Characters of a set, some number of times; or, once, a literal of one or more characters."""

    first: int  # the set; of a longer literal, its first character
    literal: str | None = None
    low: int = 1
    high: int | None = 1

    @property
    def once(self) -> bool:
        return self.low == 1 == self.high


@dataclass(slots=True)
class _Group:
    options: _Options
    number: int | None  # unless it does not capture
    optional: bool = False


_Options: TypeAlias = "list[list[_Characters | _Group]]"


def _bit(char: str) -> int:
    return 1 << ord(char) if char.isascii() else _OTHERS


class _Parser:
    """Reads an expression that RE2 accepts, as far as it is made of what the shapes need."""

    def __init__(self, regex: str) -> None:
        if len(regex) > _LONGEST:
            raise _BeyondShapesError
        self._regex = regex
        self._at = 0
        self._groups = 0

    def parse(self) -> tuple[_Options, int]:
        """Return the options between which ``|`` stands, and the number of groups."""
        return self._options(0), self._groups

    def _peek(self, ahead: int = 0) -> str:
        return self._regex[self._at + ahead : self._at + ahead + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _options(self, depth: int) -> _Options:
        options = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence(depth))
        return options

    def _sequence(self, depth: int) -> list[_Characters | _Group]:
        nodes: list[_Characters | _Group] = []
        if depth == 0 and self._peek() == "^":  # anchored it is anyway
            self._at += 1
            self._refuse_quantifier()
        while self._peek() not in ("", "|", ")"):
            if depth == 0 and self._peek() == "$" and self._peek(1) in ("", "|"):
                self._at += 1
                break
            _append(nodes, self._quantified(self._atom(depth)))
        return nodes

    def _atom(self, depth: int) -> _Characters | _Group:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == ".":
            return _Characters(_ANY)
        if char == "[":
            return _Characters(self._class())
        if char == "\\":
            char = self._next()
            if char.lower() in _CLASSES:
                return _Characters(_CLASSES[char] if char.islower() else _ANY & ~_CLASSES[char.lower()])
            _refuse_escape(char)
        elif char in "^$*+?{}]":
            raise _BeyondShapesError
        if char == _REPLACEMENT_CHARACTER:  # it also matches a byte that is no UTF-8
            raise _BeyondShapesError
        return _Characters(_bit(char), char)

    def _group(self, depth: int) -> _Group:
        number = None
        if self._peek() != "?":
            self._groups += 1
            number = self._groups
        elif self._peek(1) == ":":
            self._at += 2
        else:
            raise _BeyondShapesError
        if depth == _DEEPEST:
            raise _BeyondShapesError
        options = self._options(depth + 1)
        self._at += 1  # the closing parenthesis
        return _Group(options, number)

    def _class(self) -> int:
        negated = self._peek() == "^"
        self._at += negated
        if self._peek() == "]":
            raise _BeyondShapesError
        found = 0
        while (char := self._next()) != "]":
            if char == "\\":
                char = self._next()
                if char in _CLASSES:
                    found |= _CLASSES[char]
                    continue
                _refuse_escape(char)
            elif char == "[":
                raise _BeyondShapesError
            last = char
            if self._peek() == "-" and self._peek(1) != "]":
                last = self._peek(1)
                self._at += 2
                if last in "\\[":
                    raise _BeyondShapesError
            if not (char.isascii() and last.isascii()):
                raise _BeyondShapesError
            for code in range(ord(char), ord(last) + 1):
                found |= 1 << code
        return _ANY & ~found if negated else found

    def _quantified(self, node: _Characters | _Group) -> _Characters | _Group:
        counts = self._counts()
        if counts is None:
            return node
        low, high = counts
        lazy = self._peek() == "?"
        self._at += lazy
        self._refuse_quantifier()
        if isinstance(node, _Group):
            if counts != (0, 1) or lazy:
                raise _BeyondShapesError
            node.optional = True
        else:
            # Of words, a lazy quantifier prefers others. An endless one is used only where nothing is to be preferred.
            if high == 0 or (lazy and high is not None):
                raise _BeyondShapesError
            node.low, node.high = low, high
        return node

    def _counts(self) -> tuple[int, int | None] | None:
        char = self._peek()
        if char == "{":
            match = _COUNTS.match(self._regex, self._at)
            if match is None:
                raise _BeyondShapesError
            self._at = match.end()
            low = int(match[1])
            if match[2] is None:
                return low, low
            return low, int(match[3]) if match[3] else None
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if char not in simple:
            return None
        self._at += 1
        return simple[char]

    def _refuse_quantifier(self) -> None:
        if self._peek() and self._peek() in "*+?{":
            raise _BeyondShapesError


def _refuse_escape(char: str) -> None:
    """Refuse an escape that is more than a literal character."""
    if not char.isascii() or char.isalnum():
        raise _BeyondShapesError


def _append(nodes: list[_Characters | _Group], node: _Characters | _Group) -> None:
    last = nodes[-1] if nodes else None
    if _is_plain(last) and _is_plain(node):
        nodes[-1] = _Characters(last.first, f"{last.literal}{node.literal}")
    else:
        nodes.append(node)


def _is_plain(node: _Characters | _Group | None) -> TypeGuard[_Characters]:
    return isinstance(node, _Characters) and node.literal is not None and node.once


def _words(options: _Options, groups: int) -> _Regex:
    """Return the expression as a list of the texts that it matches.

    Raises:
      _BeyondShapesError: they are endless, or too many.
    """
    words: dict[str, Mapping[int, str]] = {}
    for word, held in _listed(options):
        words.setdefault(word, {**held, 0: word})  # the first way to match a text is the one that counts
    return _Words(words, groups)


def _listed(options: _Options) -> list[tuple[str, dict[int, str]]]:
    listed = []
    for nodes in options:
        words: list[tuple[str, dict[int, str]]] = [("", {})]
        for node in nodes:
            endings = _endings(node)
            if len(words) * len(endings) > _MOST_WORDS:
                raise _BeyondShapesError
            words = [(word + end, held | more) for word, held in words for end, more in endings]
            if any(len(word) > _LONGEST for word, _ in words):
                raise _BeyondShapesError
        listed += words
    if len(listed) > _MOST_WORDS:
        raise _BeyondShapesError
    return listed


def _endings(node: _Characters | _Group) -> list[tuple[str, dict[int, str]]]:
    """Return the texts that ``node`` matches, the preferred ones first, with what groups then hold."""
    if isinstance(node, _Characters):
        if node.literal is None or node.high is None:
            raise _BeyondShapesError
        literal = node.literal
        return [(literal * count, {}) for count in range(node.high, node.low - 1, -1)]
    endings = _listed(node.options)
    if node.number is not None:
        endings = [(word, {**held, node.number: word}) for word, held in endings]
    if node.optional:
        endings.append(("", {}))
    return endings


def _wildcard(options: _Options, groups: int) -> _Regex:
    """Return the expression as literals around one wildcard.

    Raises:
      _BeyondShapesError: it is something else.
    """
    ends = ["", ""]
    least: int | None = None  # characters for the wildcard; unknown as long as it has not come
    bounds: list[list[int | None]] = [[0, None]] + [[None, None] for _ in range(groups)]
    places: list[tuple[int, int, int, int]] = []  # group, 0 for its start or 1 for its end, which of `ends`, how far

    def walk(options: _Options) -> None:
        nonlocal least
        if len(options) != 1:
            raise _BeyondShapesError
        for node in options[0]:
            side = 0 if least is None else 1
            if isinstance(node, _Group):
                if node.optional:
                    raise _BeyondShapesError
                start = side, len(ends[side])
                walk(node.options)
                side = 0 if least is None else 1
                if node.number is not None:
                    places.extend([(node.number, 0, *start), (node.number, 1, side, len(ends[side]))])
            elif node.literal is not None and node.low == node.high:
                ends[side] += node.literal * node.low
            elif node.first == _ANY and node.high is None and least is None:
                least = node.low
            else:
                raise _BeyondShapesError

    walk(options)
    if least is None:
        raise _BeyondShapesError
    prefix, suffix = ends
    for group, bound, side, length in places:
        # Counted from the left before the wildcard, from the right after it.
        left = length - len(suffix)
        bounds[group][bound] = length if side == 0 else left or (sys.maxsize if bound == 0 else None)
    return _Wildcard(prefix, suffix, least, [slice(start, stop) for start, stop in bounds])


def _one_way(options: _Options, groups: int) -> _Regex:
    """Return the expression for Python's ``re``.

    Raises:
      _BeyondShapesError: there is more than one way to match some text, or to fail.
    """
    source, _ = _options_source(options, 0)
    return _OneWay(source)


def _options_source(options: _Options, follow: int) -> tuple[str, int]:
    """Return the expression for ``re``, and the characters that can come first.

    Args:
      options: what is to be matched.
      follow: the characters that can come after it. Those can come first as well, if it can match nothing.

    Raises:
      _BeyondShapesError: the next character does not always say how to go on.
    """
    sources = []
    found = 0
    for nodes in options:
        first = follow
        source = ""
        for node in reversed(nodes):
            text, first = _node_source(node, first)
            source = text + source
        if first & found:
            raise _BeyondShapesError
        found |= first
        sources.append(source)
    return "|".join(sources), found


def _node_source(node: _Characters | _Group, follow: int) -> tuple[str, int]:
    if isinstance(node, _Characters):
        text = _class_source(node.first) if node.literal is None else re.escape(node.literal)
        if node.low == node.high:
            return text if node.once else f"{text}{{{node.low}}}", node.first
        if node.first & follow:
            raise _BeyondShapesError
        high = "" if node.high is None else node.high
        return f"{text}{{{node.low},{high}}}+", node.first | (0 if node.low else follow)
    inner, first = _options_source(node.options, follow)
    text = f"(?:{inner})" if node.number is None else f"({inner})"
    if not node.optional:
        return text, first
    if first & follow:
        raise _BeyondShapesError
    return f"{text}?", first | follow


def _class_source(characters: int) -> str:
    if characters == _ANY:
        return "."
    negated = characters & _OTHERS
    if negated:
        characters = ~characters
    listed = "".join(f"\\x{code:02x}" for code in range(128) if characters >> code & 1)
    if not listed:  # RE2 has a way to write a set of nothing
        raise _BeyondShapesError
    return f"[^{listed}]" if negated else f"[{listed}]"


# Rules

_Values: TypeAlias = "dict[str, str]"  # the labels at work; a label without a value is not there


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule made ready.

    Attributes:
      apply: changes labels in place; tells whether they are kept.
      value: reads what the rule looks at; ``None`` for rules that look at names.
      matches: tells whether the regular expression matches that; ``None`` where none is asked.
    """

    config: RelabelConfig
    apply: Callable[[_Values], bool]
    value: Callable[[_Values], str] | None
    matches: Callable[[str], bool] | None


def _rule(config: RelabelConfig, scheme: NameScheme) -> _Rule:
    regex = _regex(config.regex)
    action = config.action
    if action in _BY_NAME or action == "labelmap":
        by_name = _labelmap(config, regex) if action == "labelmap" else _labeldrop(config, regex)
        return _Rule(config, by_name, None, None)
    value = _reader(config)
    if action in _BY_VALUE:
        by_value = _replace(config, regex, value, scheme) if action == "replace" else _keep(config, regex, value)
        return _Rule(config, by_value, value, regex.matches)
    if action in _COMPARING:
        return _Rule(config, _keepequal(config, value), value, None)
    return _Rule(config, _computed(config, value), value, None)


def _reader(config: RelabelConfig) -> Callable[[_Values], str]:
    """Return what reads and joins the values of the source labels."""
    names, separator = config.source_labels, config.separator
    if not names:
        return lambda labels: ""
    if len(names) == 1:
        only = names[0]
        return lambda labels: labels.get(only, "")
    if len(names) == 2:
        first, second = names
        return lambda labels: f"{labels.get(first, '')}{separator}{labels.get(second, '')}"
    return lambda labels: separator.join([labels.get(name, "") for name in names])


def _keep(config: RelabelConfig, regex: _Regex, value: Callable[[_Values], str]) -> Callable[[_Values], bool]:
    matches = regex.matches
    if config.action == "keep":
        return lambda labels: matches(value(labels))
    return lambda labels: not matches(value(labels))


def _keepequal(config: RelabelConfig, value: Callable[[_Values], str]) -> Callable[[_Values], bool]:
    target = config.target_label
    if config.action == "keepequal":
        return lambda labels: labels.get(target, "") == value(labels)
    return lambda labels: labels.get(target, "") != value(labels)


def _replace(
    config: RelabelConfig, regex: _Regex, value: Callable[[_Values], str], scheme: NameScheme
) -> Callable[[_Values], bool]:
    target = config.target_label
    expand = regex.expander(config.replacement)
    if "$" not in target:

        def replace(labels: _Values) -> bool:
            result = expand(value(labels))
            if result:
                labels[target] = result
            elif result is not None:
                labels.pop(target, None)
            return True

        return replace
    expand_name = regex.expander(target)

    def replace_named(labels: _Values) -> bool:
        text = value(labels)
        name = expand_name(text)
        if name is not None and is_valid_label_name(name, scheme):
            _assign(labels, name, expand(text) or "")
        return True

    return replace_named


def _computed(config: RelabelConfig, value: Callable[[_Values], str]) -> Callable[[_Values], bool]:
    target, modulus = config.target_label, config.modulus
    compute: Callable[[str], str] = {
        "lowercase": _lower,
        "uppercase": _upper,
        "hashmod": lambda text: _hash_modulo(text, modulus),
    }[config.action]

    def write(labels: _Values) -> bool:
        _assign(labels, target, compute(value(labels)))
        return True

    return write


def _assign(labels: _Values, name: str, value: str) -> None:
    if value:
        labels[name] = value
    else:
        labels.pop(name, None)


def _hash_modulo(text: str, modulus: int) -> str:
    digest = hashlib.md5(text.encode(errors="surrogateescape"), usedforsecurity=False).digest()
    return str(int.from_bytes(digest[8:], "big") % modulus)


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(map(_lower_character, _readable(text)))


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else "".join(map(_upper_character, _readable(text)))


# Go maps character by character: no final sigma, and one character never becomes two.


def _lower_character(char: str) -> str:
    lower = char.lower()
    return lower if len(lower) == 1 else "i"  # İ is the one letter whose lower case is longer


def _upper_character(char: str) -> str:
    upper = char.upper()
    if len(upper) == 1:
        return upper
    title = char.title()  # of Greek letters with an iota subscript the simple upper case is this one
    return title if len(title) == 1 else char


def _labelmap(config: RelabelConfig, regex: _Regex) -> Callable[[_Values], bool]:
    renamed = _Remembered(regex.renamer(config.replacement))

    def labelmap(labels: _Values) -> bool:
        found = [(name, new, value) for name, value in labels.items() if (new := renamed[name]) is not None]
        if len(found) > 1:
            found.sort()  # of labels that get the same name, the last one by name wins
        for _, new, value in found:
            labels[new] = value
        return True

    return labelmap


def _labeldrop(config: RelabelConfig, regex: _Regex) -> Callable[[_Values], bool]:
    matches = _Remembered(regex.matches)
    unwanted = config.action == "labeldrop"

    def labeldrop(labels: _Values) -> bool:
        for name in [name for name in labels if matches[name] is unwanted]:
            del labels[name]
        return True

    return labeldrop


class _Remembered(dict[str, T]):
    """The results of a function by the names of labels, as many as have a place.

    A dictionary that fills itself is asked without a Python frame for a name that it knows.
    """

    def __init__(self, function: Callable[[str], T]) -> None:
        self._function = function

    def __missing__(self, name: str) -> T:
        if len(self) >= _REMEMBERED:
            self.clear()
        result = self[name] = self._function(name)
        return result


# Relabeling


@dataclass(frozen=True, slots=True)
class LabelChange:
    """What a rule did to one label; ``None`` where there is no such label.

    Attributes:
      name: the label's name.
      before: its value before.
      after: its value after.
    """

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What one rule did.

    Attributes:
      index: the number of the rule, counted from 0.
      config: the rule.
      value: what the rule looked at: the joined values of its source labels. ``None`` for a rule about names.
      matched: whether ``regex`` matched that value; ``None`` for a rule that does not ask.
      changes: the labels that changed, ordered by name.
      kept: whether the target was kept.
    """

    index: int
    config: RelabelConfig
    value: str | None
    matched: bool | None
    changes: tuple[LabelChange, ...]
    kept: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """What the rules did to a label set, one after the other.

    Attributes:
      steps: one for each rule that was reached.
      labels: the result, or ``None`` if the target was dropped.
    """

    steps: tuple[Step, ...]
    labels: Labels | None

    @property
    def dropped_by(self) -> Step | None:
        """The step that dropped the target, if one did."""
        return self.steps[-1] if self.labels is None else None


class Relabeler:
    """Rules made ready to be applied to many label sets.

    Args:
      configs: the rules, in order.
      scheme: which names of labels are valid.

    Attributes:
      configs: the rules.

    Raises:
      FieldError: a rule can't be used.
    """

    __slots__ = ("_appliers", "_rules", "configs")

    def __init__(self, configs: Sequence[RelabelConfig], scheme: NameScheme = "utf8") -> None:
        self.configs = tuple(configs)
        for config in self.configs:
            config.validate(scheme)
        self._rules = tuple(_rule(config, scheme) for config in self.configs)
        self._appliers = tuple(rule.apply for rule in self._rules)

    def relabel(self, labels: Mapping[str, str]) -> dict[str, str] | None:
        """Return what the rules make of ``labels``, or ``None`` if they drop the target.

        A label with an empty value counts as missing, and is not returned.
        """
        result = _copied(labels)
        for apply in self._appliers:
            if not apply(result):
                return None
        return result

    def explain(self, labels: Mapping[str, str]) -> Trace:
        """Return what each of the rules does, on the way to what :meth:`relabel` returns."""
        result = _copied(labels)
        steps = []
        for index, rule in enumerate(self._rules):
            before = result.copy()
            value = None if rule.value is None else rule.value(before)
            matched = None if rule.matches is None or value is None else rule.matches(value)
            kept = rule.apply(result)
            steps.append(Step(index, rule.config, value, matched, _changes(before, result), kept))
            if not kept:
                return Trace(tuple(steps), None)
        return Trace(tuple(steps), Labels(result))


def _copied(labels: Mapping[str, str]) -> dict[str, str]:
    # items() of other mappings is quicker than look-ups by name.
    result = labels.copy() if type(labels) is dict else dict(labels.items())
    if not all(result.values()):
        return {name: value for name, value in result.items() if value}
    return result


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[LabelChange, ...]:
    names = sorted(before.keys() | after.keys())
    changes = [LabelChange(name, before.get(name), after.get(name)) for name in names]
    return tuple([change for change in changes if change.before != change.after])


def relabel(
    labels: Mapping[str, str], configs: Sequence[RelabelConfig], scheme: NameScheme = "utf8"
) -> dict[str, str] | None:
    """Do as :meth:`Relabeler.relabel`, once. For many label sets make a :class:`Relabeler`.

    >>> relabel({"a": "x:80"}, [RelabelConfig(("a",), regex="(.*):80", target_label="host")])
    {'a': 'x:80', 'host': 'x'}
    """
    return Relabeler(configs, scheme).relabel(labels)


def explain(labels: Mapping[str, str], configs: Sequence[RelabelConfig], scheme: NameScheme = "utf8") -> Trace:
    """Do as :meth:`Relabeler.explain`, once. For many label sets make a :class:`Relabeler`."""
    return Relabeler(configs, scheme).explain(labels)
