"""Scale on paper: what the measured figures say of sizes that nobody has measured.

Two laws are fitted by least squares. Times follow a power of the size, ``a · n ** b``, a straight line through their
logarithms; memory is linear, ``base + each · n``. Each fit tells how far it is from the farthest measured point, and
none is better than that. What is not among the results is left out, and so is what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .figures import OURS, Figure
from .report import Results, text

__all__ = ["CHANGE", "HEAP", "NEEDED", "RESIDENT", "RULES", "SYNC", "Line", "Power", "run"]

CHANGE: Final = "one group changed: provider → consumer"
HEAP: Final = "heap of a one-target group"
RESIDENT: Final = "memory (RSS), first sync, one target a group"
SYNC: Final = "first sync of members, loopback"
RULES: Final = "relabel, five rules: target-rules"
NEEDED: Final = MappingProxyType({CHANGE: "s", HEAP: "B", RESIDENT: "B", SYNC: "/s", RULES: "/s"})
"""What is taken from the benchmarks, and in which unit. A test looks whether they still have it."""

MEMORY: Final = 4e9
"""Bytes for what was discovered: half of an ordinary 8 GB machine, the other half being for what reads it."""
FIRST_SYNC: Final = 15.0
"""Seconds for a first sync: the ``warm_up``, for which a reload keeps what left a job. Beyond it, gaps may be seen."""
LATENCY: Final = 0.005
"""Seconds for one change: a twentieth of the least throttle, 100 ms, so that no consumer notices the engine's part."""
LIFE: Final = 3600.0
"""Seconds that a target stays the same. Most stay for days; an hour is a fleet that is deployed all day long."""
SHARE: Final = 0.5
"""Of a core for changes, so that reloads and first syncs have the other half."""
RULES_EACH: Final = 5
"""Rules that a target is put through, as in the benchmark of relabeling."""
FAR: Final = 1_000_000
"""The size that is predicted."""
FARTHEST: Final = 100 * FAR
"""Beyond it, what was fitted to a few sizes says nothing; a limit that is farther off is not told."""


@dataclass(frozen=True)
class Power:
    """A cost of ``factor · n ** exponent``; ``residual`` is how many times off the farthest point is, 1 being none."""

    factor: float
    exponent: float
    residual: float

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float]]) -> Power:
        """Return the power law that is nearest to points of two sizes or more."""
        logs = [(math.log(n), math.log(cost)) for n, cost in points]
        slope, start = _least_squares(logs)
        off = max(abs(y - start - slope * x) for x, y in logs)
        return cls(math.exp(start), slope, math.exp(off))

    def at(self, n: float) -> float:
        """Return the cost at that size."""
        return self.factor * math.pow(n, self.exponent)

    def size_at(self, cost: float) -> float:
        """Return the size at which the cost is that; infinity if it does not grow."""
        if self.exponent <= 0:
            return math.inf
        power = math.log(cost / self.factor) / self.exponent
        return math.exp(power) if power < 700 else math.inf  # more than a float can say


@dataclass(frozen=True)
class Line:
    """A cost of ``base + each · n``; ``residual`` is which part of its value the farthest point is off by."""

    base: float
    each: float
    residual: float

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float]]) -> Line:
        """Return the line that is nearest to points of two sizes or more."""
        each, base = _least_squares(points)
        return cls(base, each, max(abs(cost - base - each * n) / cost for n, cost in points))

    def at(self, n: float) -> float:
        """Return the cost at that size."""
        return self.base + self.each * n

    def size_at(self, cost: float) -> float:
        """Return the size at which the cost is that; infinity if it does not grow."""
        return (cost - self.base) / self.each if self.each > 0 else math.inf


def _least_squares(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return slope and start of the line through points."""
    count = len(points)
    x_mean, y_mean = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    return slope, y_mean - slope * x_mean


def run(results: Results) -> Iterator[Figure]:
    """Yield what follows from the figures of a run."""
    limits: dict[str, float] = {}
    if change := _points(results, CHANGE):
        law = Power.fit(change)
        about = f"{_of(change)}; off by {law.residual:.2f} × at most"
        yield Figure.of("one change: power of the size that it grows with", law.exponent, "", note=about)
        yield Figure.of("one change", law.at(FAR), size=FAR, note=about)
        yield Figure.of("changes a second, a core", 1 / law.at(FAR), "/s", size=FAR, note="one after the other")
        limits[f"one change takes {text(LATENCY, 's')}"] = law.size_at(LATENCY)
        # n targets change n / LIFE times a second, and each change costs what it costs among n.
        busy = Power(law.factor / LIFE, law.exponent + 1, law.residual)
        limits[f"changes take {SHARE:.0%} of a core, if each target changes once an hour"] = busy.size_at(SHARE)
    if resident := _points(results, RESIDENT):
        line = Line.fit(resident)
        about = f"{_of(resident)}; off by {line.residual:.1%} at most"
        yield Figure.of("memory of the process", line.at(FAR), "B", size=FAR, note=about)
        limits[f"the process takes {text(MEMORY, 'B')}"] = line.size_at(MEMORY)
    elif heap := [(n, each * n) for n, each in _points(results, HEAP)]:
        line = Line.fit(heap)
        about = f"{_of(heap)}; off by {line.residual:.1%} at most; heap of the store alone"
        yield Figure.of("heap", line.at(FAR), "B", size=FAR, note=about)
        limits[f"the heap is {text(MEMORY, 'B')}"] = line.size_at(MEMORY)
    if sync := [(n, n / rate) for n, rate in _points(results, SYNC)]:
        law = Power.fit(sync)
        about = f"{_of(sync)}; off by {law.residual:.2f} × at most"
        yield Figure.of("first sync from ZooKeeper, loopback", law.at(FAR), size=FAR, note=about)
        limits[f"the first sync from ZooKeeper takes {text(FIRST_SYNC, 's')}"] = law.size_at(FIRST_SYNC)
    for figure in _measured(results, RULES):
        rate = figure.median / RULES_EACH
        yield Figure.of("relabeling all targets", FAR / rate, size=FAR, note=f"{RULES_EACH} rules each, one core")
        limits[f"relabeling all targets takes {text(FIRST_SYNC, 's')}"] = rate * FIRST_SYNC
    reached = {limit: size for limit, size in limits.items() if size <= FARTHEST}
    for limit, size in reached.items():
        yield Figure.of(f"targets until {limit}", size, "")
    if reached:
        first = min(reached, key=reached.__getitem__)
        yield Figure.of("targets from which on to shard", reached[first], "", note=f"then {first}")


def _measured(results: Results, what: str) -> list[Figure]:
    return [
        figure
        for figure in results.figures()
        if (figure.what, figure.unit, figure.who) == (what, NEEDED[what], OURS) and figure.median > 0
    ]


def _points(results: Results, what: str) -> list[tuple[float, float]]:
    """Return medians by size, or nothing unless there are two sizes."""
    points = [(float(figure.size), figure.median) for figure in _measured(results, what) if figure.size]
    return points if len({size for size, _ in points}) > 1 else []


def _of(points: Sequence[tuple[float, float]]) -> str:
    sizes = [size for size, _ in points]
    return f"fitted to {len(points)} sizes, {min(sizes):,.0f} to {max(sizes):,.0f}"
