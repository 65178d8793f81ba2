"""Where the groups of a large JSON file stand in its text, so that those whose text stays are not decoded again.

Theory of operation
===================

A file of a hundred thousand groups takes a quarter of a second to decode, and mostly one of them has changed. So the
text is kept, with the place of each group in it. What the new text has in common with it at its beginning and its end
takes a few milliseconds to find out. Groups that end within the common beginning, and groups that begin within the
common end, are the same as before; only what is between them is decoded.

This is right because JSON is read from left to right, and a reader in front of an element of the outermost list has
nothing to remember but that it is there. If it gets to the place where a group began, and everything from there on is
as it was, it reads what it had read. Where it does not get to that very place, or anything else is out of the ordinary,
nothing is concluded: the caller decodes the text as a whole, and finds the errors that there are.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..targets import TargetGroup

__all__ = ["GroupSource", "Outline", "Parsed", "read_groups"]

_SPACE: Final = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """The text of a file, and where in it each of its groups stands.

    Attributes:
      text: all of it.
      starts: where each group begins.
      ends: where each one ends.
    """

    text: str
    starts: array[int]
    ends: array[int]


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A file that was parsed.

    Attributes:
      groups: what it says, in its order.
      outline: where each group stands; ``None`` if it is not worth the while to know.
    """

    groups: tuple[TargetGroup, ...]
    outline: Outline | None = None


class GroupSource(Protocol):
    """Makes the groups of one file."""

    def make(self, index: int, item: object) -> TargetGroup:
        """Return the group that a decoded element says.

        Raises:
          ValueError: it says none.
        """

    def renumbered(self, index: int, group: TargetGroup) -> TargetGroup:
        """Return a group as it is at another place in the list."""


def read_groups(
    text: str, decoder: json.JSONDecoder, source: GroupSource, most: int, before: Parsed | None = None
) -> Parsed | None:
    """Return the groups of a text, decoding what differs from the text of ``before`` only.

    Args:
      text: a JSON list of objects, or anything else.
      decoder: decodes its elements.
      source: makes groups of them.
      most: how many groups there may be.
      before: an earlier state of the same file, read in the same way.

    Returns ``None`` if the text has anything wrong or unusual.
    """
    if before is None or before.outline is None:
        before = Parsed((), Outline("", array("Q"), array("Q")))
    assert before.outline is not None
    kept = _Kept.of(before.outline, text)
    try:
        found = _read(text, decoder, source, kept)
    except (ValueError, IndexError, RecursionError):  # a bad element, the end of the text, nested too deep
        return None
    if found is None:
        return None
    groups, starts, ends = found
    tail = before.groups[kept.trail :]
    shift = kept.lead + len(groups) - kept.trail
    if shift:
        tail = tuple([source.renumbered(kept.trail + shift + i, group) for i, group in enumerate(tail)])
    whole = (*before.groups[: kept.lead], *groups, *tail)
    if len(whole) > most:
        return None
    outline = Outline(
        text,
        before.outline.starts[: kept.lead] + starts + _moved(before.outline.starts[kept.trail :], kept.moved),
        before.outline.ends[: kept.lead] + ends + _moved(before.outline.ends[kept.trail :], kept.moved),
    )
    return Parsed(whole, outline)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What of an earlier text needs not be decoded again.

    Attributes:
      lead: how many groups at its beginning.
      trail: the first group of those at its end.
      begin: where decoding begins in the new text: after the last one of the former, or at 0 if there is none.
      stop: where the first one of the latter is in the new text; ``None`` if there is none.
      moved: by how much those are further on than they were.
    """

    lead: int
    trail: int
    begin: int
    stop: int | None
    moved: int

    @classmethod
    def of(cls, outline: Outline, text: str) -> _Kept:
        old = outline.text
        least = min(len(old), len(text))
        head = _longest(least, lambda low, high: old[low:high] == text[low:high])
        ends = len(old), len(text)
        tail = _longest(
            least - head, lambda low, high: old[ends[0] - high : ends[0] - low] == text[ends[1] - high : ends[1] - low]
        )
        lead = bisect_right(outline.ends, head)
        trail = bisect_left(outline.starts, len(old) - tail, lo=lead)
        moved = len(text) - len(old)
        return cls(
            lead,
            trail,
            outline.ends[lead - 1] if lead else 0,
            outline.starts[trail] + moved if trail < len(outline.starts) else None,
            moved,
        )


def _longest(most: int, same: Callable[[int, int], bool]) -> int:
    """Return up to where two texts are the same, at the most ``most``; each part is compared twice on the average."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _read(
    text: str, decoder: json.JSONDecoder, source: GroupSource, kept: _Kept
) -> tuple[Sequence[TargetGroup], array[int], array[int]] | None:
    groups: list[TargetGroup] = []
    starts, ends = array("Q"), array("Q")
    at = _after_space(text, kept.begin)
    if text[at] != ("," if kept.lead else "["):
        # Only a list that ends here can go on in another way.
        ends_here = kept.lead and text[at] == "]" and kept.stop is None
        return (groups, starts, ends) if ends_here and _after_space(text, at + 1) == len(text) else None
    while True:
        at = _after_space(text, at + 1)
        if at == kept.stop:
            return groups, starts, ends
        if kept.stop is not None and at > kept.stop:
            return None
        item, end = decoder.raw_decode(text, at)
        groups.append(source.make(kept.lead + len(groups), item))
        starts.append(at)
        ends.append(end)
        at = _after_space(text, end)
        if text[at] != ",":
            done = text[at] == "]" and kept.stop is None and _after_space(text, at + 1) == len(text)
            return (groups, starts, ends) if done else None


def _after_space(text: str, at: int) -> int:
    if text[at : at + 1] in " \t\n\r":
        space = _SPACE.match(text, at)
        return space.end() if space else at
    return at


def _moved(places: array[int], by: int) -> array[int]:
    return array("Q", [place + by for place in places]) if by else places
