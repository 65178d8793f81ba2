"""Rows of figures, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "table"]


@dataclass(frozen=True)
class Row:
    """One measured figure: what, the figure with its unit, its spread, and what it aims at."""

    what: str
    figure: str
    spread: str = ""
    aim: str = ""

    @classmethod
    def of_seconds(cls, what: str, seconds: Sequence[float], aim: str = "") -> Row:
        """Return the median of ``seconds`` with its 10th and 90th percentile, in the unit that suits it."""
        deciles = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(what, _text(statistics.median(seconds)), f"{_text(deciles[0])} – {_text(deciles[-1])}", aim)


def _text(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as lines of text under a heading."""
    lines = [("what", "median", "10 % – 90 %", "aim"), *[(r.what, r.figure, r.spread, r.aim) for r in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
