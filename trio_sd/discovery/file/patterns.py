"""Path patterns in the language of Go's ``path/filepath``: ``*``, ``?``, ``[a-z]``, ``[^a-z]`` and ``\\`` escapes.

``*`` matches hidden files too, unlike in a shell. A class is negated by ``^``, may hold escapes, and is refused when it
is malformed, unlike in Python's :mod:`fnmatch`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ...messages import quote

__all__ = ["Pattern", "clean"]

_MAGIC: Final = re.compile(r"[*?\[\\]")
_LONGEST: Final = 4096  # characters; Linux takes no longer path
_DEEPEST: Final = 100  # elements, each of which is a pattern of its own


def clean(path: str) -> str:
    """Return ``path`` in its shortest spelling, as Go's ``filepath.Clean`` does; symbolic links are not followed."""
    shortest = os.path.normpath(path)
    return shortest[1:] if shortest.startswith("//") else shortest


@dataclass(frozen=True)
class Pattern:
    """A pattern, split where a walk of the file system needs it split.

    Attributes:
      text: the pattern as it was spelled.

    Raises:
      ValueError: if the pattern is malformed.
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > _LONGEST:
            raise ValueError(f"pattern {quote(self.text)} has more than {_LONGEST} characters")
        if self.text.count("/") > _DEEPEST and _MAGIC.search(self.directory):
            raise ValueError(f"pattern {quote(self.text)} has more than {_DEEPEST} elements")
        _ = self.parent and self.parent.name, self.name  # compiles them all, so that a bad one is refused here

    @cached_property
    def directory(self) -> str:
        """The part before the last element: ``/etc/sd`` of ``/etc/sd/*.json``."""
        head, slash, _ = self.text.rpartition("/")
        return head or slash or "."

    @cached_property
    def last(self) -> str:
        """The last element: ``*.json`` of ``/etc/sd/*.json``."""
        return self.text.rpartition("/")[2]

    @cached_property
    def parent(self) -> Pattern | None:
        """The directory as a pattern, if it is one."""
        return Pattern(self.directory) if _MAGIC.search(self.directory) else None

    @cached_property
    def name(self) -> re.Pattern[str] | None:
        """What matches the last element's names in full; ``None`` when it is one name, spelled out."""
        return re.compile(_translate(self.last)) if _MAGIC.search(self.last) else None

    def path(self, directory: str, name: str) -> str:
        """Return how a match ``name`` in ``directory`` is spelled; matched paths are shortened."""
        if self.name is None and self.parent is None:
            return self.text
        return clean(f"{directory}/{name}")

    def matches(self, path: str) -> bool:
        """Return whether ``path``, spelled as :meth:`path` spells it, could be one of this pattern's matches."""
        if self.name is None and self.parent is None:
            return path == self.text
        head, slash, last = path.rpartition("/")
        if not (self.name.fullmatch(last) if self.name else last == self.last):
            return False
        directory = head or slash or "."
        return self.parent.matches(directory) if self.parent else directory == clean(self.directory)


def _translate(pattern: str) -> str:
    """Return a regular expression that matches in full what the element ``pattern`` matches.

    Each star takes the shortest text up to the next match of what follows it and never gives it back (an atomic
    group): a later match could only leave less for the rest. So no pattern is slower than pattern times name.
    """
    chunks = [""]
    rest = pattern
    while rest:
        char, rest = rest[0], rest[1:]
        if char == "*":
            chunks.append("")
            continue
        if char == "?":
            chunks[-1] += "."
        elif char == "[":
            expression, rest = _class(pattern, rest)
            chunks[-1] += expression
        elif char == "\\":
            if not rest:
                raise ValueError(f"pattern {quote(pattern)} ends in the middle of an escape")
            chunks[-1] += re.escape(rest[0])
            rest = rest[1:]
        else:
            chunks[-1] += re.escape(char)
    first, *later = chunks
    if later:
        *middle, end = later
        first += "".join(f"(?>.*?{chunk})" for chunk in middle if chunk) + ".*" + end
    return f"(?s:{first})"


def _class(pattern: str, rest: str) -> tuple[str, str]:
    """Translate a character class; ``rest`` starts behind its bracket. Return it and what follows it."""
    negated = rest.startswith("^")
    rest = rest[negated:]
    ranges = ""
    count = 0
    while not (count and rest.startswith("]")):
        low, rest = _class_character(pattern, rest)
        high = low
        if rest.startswith("-"):
            high, rest = _class_character(pattern, rest[1:])
        if low <= high:
            ranges += f"{re.escape(low)}-{re.escape(high)}"
        count += 1
    if not ranges:  # only empty ranges, such as [z-a]
        return ("." if negated else "(?!)"), rest[1:]
    return f"[{'^' * negated}{ranges}]", rest[1:]


def _class_character(pattern: str, rest: str) -> tuple[str, str]:
    if not rest or rest[0] in "-]":
        raise ValueError(f"pattern {quote(pattern)} has a malformed character class")
    if rest[0] == "\\":
        rest = rest[1:]
        if not rest:
            raise ValueError(f"pattern {quote(pattern)} ends in the middle of an escape")
    return rest[0], rest[1:]
