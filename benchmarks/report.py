"""Results of a run: the document, and the table on a terminal."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Self

from .figures import Aim, Figure, Unit
from .prometheus import installed as prometheus_installed
from .prometheus import version as prometheus_version

__all__ = ["HEADINGS", "NUMBERS", "Results", "aim_text", "cells", "machine", "table", "text"]

_LIBRARIES: Final = ("trio_sd", "trio", "kazoo", "PyYAML", "immutables", "google-re2", "hypercorn")


def machine() -> dict[str, str]:
    """Return what the machine is, and the versions of what was measured on it."""
    cpu = _line("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine()
    memory = _line("/proc/meminfo", r"MemTotal:\s*(\d+) kB")
    told = {
        "processor": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory) / 2**20:.0f} GiB" if memory else "?",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "Prometheus": prometheus_version() if prometheus_installed() else "not installed (apt install prometheus)",
    }
    for name in _LIBRARIES:
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            told[name] = "not installed"
    return told


def _line(path: str, pattern: str) -> str | None:
    try:
        with open(path) as file:
            found = re.search(pattern, file.read())
    except OSError:
        return None
    return found[1] if found else None


@dataclass
class Results:
    """What a run has measured.

    Attributes:
      began: when, as ISO 8601.
      quick: whether fewer rounds were taken.
      machine: as :func:`machine`.
      benchmarks: the figures by benchmark.
    """

    began: str
    quick: bool
    machine: Mapping[str, str]
    benchmarks: dict[str, list[Figure]] = field(default_factory=dict)

    def figures(self) -> Iterator[Figure]:
        """Yield the figures of all benchmarks."""
        for found in self.benchmarks.values():
            yield from found

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "began": self.began,
            "quick": self.quick,
            "machine": dict(self.machine),
            "benchmarks": {name: [_as_json(figure) for figure in found] for name, found in self.benchmarks.items()},
        }

    def text(self) -> str:
        """Return the document as text, to print or to keep: a line for each figure."""
        document = self.document()
        benchmarks = []
        for name, found in document.pop("benchmarks").items():
            lines = ",\n".join([json.dumps(each, ensure_ascii=False) for each in found])
            benchmarks.append(f"{json.dumps(name)}: [\n{lines}\n]")
        listed = ",\n".join(benchmarks)
        return f'{json.dumps(document, ensure_ascii=False)[:-1]}, "benchmarks": {{\n{listed}\n}}}}\n'

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the results that a document tells of."""
        benchmarks = {name: [_from_json(each) for each in found] for name, found in document["benchmarks"].items()}
        return cls(document["began"], document["quick"], document["machine"], benchmarks)


def _as_json(figure: Figure) -> dict[str, Any]:
    low, high = figure.spread
    return {
        "what": figure.what,
        "who": figure.who,
        "size": figure.size,
        "unit": figure.unit,
        "median": _short(figure.median) if figure.samples else None,
        "low": _short(low) if figure.samples else None,
        "high": _short(high) if figure.samples else None,
        "aim": None if figure.aim is None else {"limit": figure.aim.limit, "least": figure.aim.least},
        "met": figure.met,
        "note": figure.note,
        "samples": [_short(sample) for sample in figure.samples],
    }


def _short(value: float) -> float:
    """Return a value in six digits: a document of many samples is half as long, and no clock tells more."""
    return float(f"{value:.6g}")


def _from_json(document: Mapping[str, Any]) -> Figure:
    aim = document["aim"]
    return Figure(
        what=document["what"],
        who=document["who"],
        unit=document["unit"],
        samples=tuple(document["samples"]),
        size=document["size"],
        aim=aim and Aim(aim["limit"], aim["least"]),
        note=document["note"],
    )


def text(value: float, unit: Unit) -> str:
    """Return a value as people read it."""
    match unit:
        case "s":
            for factor, name in ((1, "s"), (1e3, "ms")):
                if value * factor >= 1:
                    return f"{_digits(value * factor)} {name}"
            return f"{_digits(value * 1e6)} µs"
        case "B":
            for factor, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
                if abs(value) >= factor:
                    return f"{_digits(value / factor)} {name}"
            return f"{_digits(value)} B"
        case "/s":
            return f"{_digits(value)}/s"
        case "×":
            return f"{value:,.0f} ×" if value >= 100 else f"{value:.2f} ×" if value >= 0.1 else f"{value:.2g} ×"
        case _:
            return _digits(value)


def _digits(value: float) -> str:
    """Return three digits that tell, or all of those before the point; never an exponent such as 1e+03."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def aim_text(figure: Figure) -> str:
    """Return what a figure aims at, and whether it is met, in words: the page has colours, but not only."""
    if figure.aim is None:
        return ""
    mark = {True: ", met", False: ", missed", None: ""}[figure.met]
    return f"{'≥' if figure.aim.least else '≤'} {text(figure.aim.limit, figure.unit)}{mark}"


HEADINGS: Final = ("what", "size", "who", "median", "10 % – 90 %", "aim", "note")
NUMBERS: Final = (1, 3)
"""Which columns are numbers, and stand to the right."""


def cells(figure: Figure) -> tuple[str, ...]:
    """Return what a table says of a figure, under each of the headings."""
    size = "" if figure.size is None else f"{figure.size:,}"
    if not figure.samples:
        return figure.what, size, figure.who, "–", "", "", f"not measured: {figure.note}"
    low, high = figure.spread
    spread = f"{text(low, figure.unit)} – {text(high, figure.unit)}" if len(figure.samples) > 1 else ""
    # A quotient's note is who is compared with whom.
    who, note = (figure.note, "") if figure.unit == "×" and figure.note else (figure.who, figure.note)
    return figure.what, size, who, text(figure.median, figure.unit), spread, aim_text(figure), note


def table(figures: Iterable[Figure]) -> str:
    """Return figures as lines of text under a heading. What the line above says too is left out."""
    rows = [cells(figure) for figure in figures]
    before = ""
    shown: list[tuple[str, ...]] = [HEADINGS]
    for row in rows:
        shown.append(("", *row[1:]) if row[0] == before else row)
        before = row[0]
    widths = [max(len(row[column]) for row in shown) for column in range(len(HEADINGS))]
    lines = []
    for row in shown:
        parts = [
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
