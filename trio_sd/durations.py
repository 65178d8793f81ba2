"""Durations as Prometheus writes them: ``1h30m``, ``5s``, ``100ms``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from .messages import quote

__all__ = ["Duration", "format_duration"]

_UNITS: Final = MappingProxyType(
    {
        "y": 365 * 24 * 60 * 60 * 1000,
        "w": 7 * 24 * 60 * 60 * 1000,
        "d": 24 * 60 * 60 * 1000,
        "h": 60 * 60 * 1000,
        "m": 60 * 1000,
        "s": 1000,
        "ms": 1,
    }
)
"""Milliseconds of each unit, in the order in which units may follow each other."""

_ONLY_WHOLE: Final = frozenset({"y", "w"})  # 90d reads better than 12w6d
_PATTERN: Final = re.compile("".join(f"(?:([0-9]+){unit})?" for unit in _UNITS))
_MAXIMUM: Final = (2**63 - 1) // 1_000_000  # Prometheus counts nanoseconds in 64 bits


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A length of time, in whole milliseconds.

    Args:
      milliseconds: how long; not negative.

    Raises:
      ValueError: if ``milliseconds`` is negative.
    """

    milliseconds: int = 0

    def __post_init__(self) -> None:
        if self.milliseconds < 0:
            raise ValueError(f"a duration is not negative: {self.milliseconds} ms")

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the duration that ``text`` says, such as ``1h30m``, ``100ms`` or ``0``.

        Numbers are whole; units are y, w, d, h, m, s and ms, each at most once and in that order.

        Raises:
          ValueError: ``text`` is not a duration, or is longer than 292 years.
        """
        return cls(_milliseconds(text))

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.milliseconds / 1000

    def __str__(self) -> str:
        return format_duration(self)


def _milliseconds(text: str) -> int:
    if text == "0":
        return 0
    match = _PATTERN.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"not a valid duration string: {quote(text)}; expected a form such as 1h30m, 5s or 100ms")
    # 9,999,999,999,999,999,999 ms is too long already, and int() refuses thousands of digits.
    counts = [count.lstrip("0")[:19] or "0" if count else "0" for count in match.groups()]
    total = sum(int(count) * unit for count, unit in zip(counts, _UNITS.values(), strict=True))
    if total > _MAXIMUM:
        raise ValueError(f"duration out of range: {quote(text)}")
    return total


def format_duration(duration: Duration) -> str:
    """Return the canonical text of ``duration``: ``1m30s``, ``90d``, ``0s``."""
    rest = duration.milliseconds
    parts = []
    for unit, length in _UNITS.items():
        if unit in _ONLY_WHOLE and rest % length:
            continue
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
