"""Figures: what was measured, at whom, at which size, and how it compares.

A benchmark yields figures. Those of one ``what`` belong together: they differ in who was measured, and in the size of
what was measured; tables, plots and comparisons go by that. All samples are kept, so that a plot shows what a median
hides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias

__all__ = ["FLOOR", "OURS", "Aim", "Figure", "Unit", "at_least", "at_most", "interleaved", "missing", "ratio", "spent"]

OURS: Final = "trio-sd"
FLOOR: Final = "floor"
"""What the same costs with nothing but what it can't be done without."""

Unit: TypeAlias = Literal["s", "B", "/s", "×", ""]
"""Seconds, bytes, a rate a second, a quotient, a count."""


@dataclass(frozen=True)
class Aim:
    """What a figure aims at.

    Attributes:
      limit: in the unit of the figure.
      least: whether the figure is to be as much at least, and not at most.
    """

    limit: float
    least: bool

    def met(self, value: float) -> bool:
        """Return whether a value is as good as this."""
        return value >= self.limit if self.least else value <= self.limit


def at_most(limit: float) -> Aim:
    """Return the aim to be no more than that."""
    return Aim(limit, least=False)


def at_least(limit: float) -> Aim:
    """Return the aim to be no less than that."""
    return Aim(limit, least=True)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured thing.

    Attributes:
      what: what was measured; the same for all that are compared.
      who: :data:`OURS`, :data:`FLOOR`, or the name and version of a peer.
      unit: of the samples.
      samples: what was measured, round by round; none if it could not be, and then ``note`` says why.
      size: how large that was which it depends on, such as the number of groups; ``None`` if there is no such thing.
      aim: of the median.
      note: what one must know to read it.
    """

    what: str
    who: str = OURS
    unit: Unit = "s"
    samples: tuple[float, ...]
    size: int | None = None
    aim: Aim | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        what: str,
        samples: Iterable[float] | float,
        unit: Unit = "s",
        *,
        who: str = OURS,
        size: int | None = None,
        aim: Aim | None = None,
        note: str = "",
    ) -> Self:
        """Return the figure with these samples, or this single one."""
        taken = (float(samples),) if isinstance(samples, int | float) else tuple(samples)
        return cls(what=what, who=who, unit=unit, samples=taken, size=size, aim=aim, note=note)

    @property
    def median(self) -> float:
        """The median of the samples; not a number if there are none."""
        return statistics.median(self.samples) if self.samples else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """Between which the middle eight tenths of the samples lie. All of them, if there are few."""
        if not self.samples:
            return self.median, self.median
        if len(self.samples) < 10:
            return min(self.samples), max(self.samples)
        deciles = statistics.quantiles(self.samples, n=10, method="inclusive")
        return deciles[0], deciles[-1]

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; ``None`` without an aim, or without a sample."""
        return self.aim.met(self.median) if self.aim and self.samples else None


def missing(what: str, who: str, why: str, *, size: int | None = None) -> Figure:
    """Return the figure that says that something could not be measured, and why."""
    return Figure(what=what, who=who, unit="", samples=(), size=size, note=why)


def ratio(what: str, one: Figure, other: Figure, *, aim: Aim | None = None) -> Figure:
    """Return how many times as much ``one`` is as ``other``.

    Where both were measured by turns, round for round, so are the quotients: what slowed down a round slowed down both.
    Otherwise it is the quotient of the medians.
    """
    if not (one.samples and other.samples):
        return missing(what, one.who, one.note or other.note, size=one.size)
    if len(one.samples) == len(other.samples):
        quotients = [a / b for a, b in zip(one.samples, other.samples, strict=True)]
    else:
        quotients = [one.median / other.median]
    note = f"{one.who} / {other.who}"
    return Figure.of(what, quotients, "×", who=one.who, size=one.size, aim=aim, note=note)


def spent(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


async def interleaved(
    rounds: int, contenders: Mapping[str, Callable[[], Awaitable[float]]]
) -> Mapping[str, Sequence[float]]:
    """Measure contenders by turns, so that a busy moment of the machine hits all of them alike.

    Args:
      rounds: how often each is measured. Who begins changes from round to round.
      contenders: measure once and return the sample, by name.
    """
    samples: dict[str, list[float]] = {who: [] for who in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for who in order:
            samples[who].append(await contenders[who]())
        order.append(order.pop(0))
    return samples
