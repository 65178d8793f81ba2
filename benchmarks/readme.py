"""``python -m benchmarks.readme [RESULTS.json] [--check]``: the figures that the README quotes, from those of a run.

They stand between two marks, and nothing else in the README is a measured figure. The run that they are of is kept
beside, with low, median and high of its samples only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from .figures import FLOOR, OURS, Figure
from .report import Results, text

__all__ = ["KEPT", "README", "ROWS", "put", "reduced", "section"]

README: Final = Path(__file__).parent.parent / "README.md"
KEPT: Final = Path(__file__).parent / "results.json"
BEGIN: Final = "<!-- benchmarks: begin -->\n"
END: Final = "<!-- benchmarks: end -->"

ROWS: Final[tuple[tuple[str, int | None], ...]] = (
    ("one group changed: provider → consumer", 1_000),
    ("one group changed: provider → consumer", 100_000),
    ("one change → the last subscriber", 1_000),
    ("heap of a one-target group", 100_000),
    ("all providers cancelled, restarted, synced", 1_000),
    ("targets, at the fewest: told to the consumer", 1),
    ("targets that follow their files then", 1),
    ("first sync of members, loopback", 10_000),
    ("first sync of members, loopback", 100_000),
    ("watches on the server, one path", 10_000),
    ("write → consumer, one member of many", 10_000),
    ("rename → consumer, JSON", 10),
    ("rename → consumer, JSON", 10_000),
    ("rename → consumer, JSON", 100_000),
    ("rename → consumer, YAML", 10_000),
    ("targets found", 1_000),
    ("nothing changes: wake-ups", 100),
    ("memory (RSS), first sync, one target a group", 100_000),
    ("processor, each change, one target a group", 100_000),
    ("relabel, five rules: target-rules", None),
    ("state file: read, restored and shown", 100_000),
)
"""What the README tells, and at which size. A test looks whether a benchmark still has it."""


def reduced(results: Results) -> Results:
    """Return results small enough to keep: low, median and high of each figure, which have the same spread."""

    def short(figure: Figure) -> Figure:
        if len(figure.samples) < 3:
            return figure
        low, high = figure.spread
        return replace(figure, samples=(low, figure.median, high))

    found = {name: [short(figure) for figure in figures] for name, figures in results.benchmarks.items()}
    return replace(results, benchmarks=found)


def section(results: Results) -> str:
    """Return the table for the README, and in a line which machine it is of.

    Raises:
      LookupError: ours of a row were not measured.
    """
    lines = ["| what | size | trio-sd | floor | Prometheus | trio-sd is |", "|---|--:|--:|--:|--:|--:|"]
    lines += [_row(results, what, size) for what, size in ROWS]
    machine = results.machine
    quick = ", with `--quick`" if results.quick else ""
    told = (
        f"Medians of {results.began[:10]}{quick}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory']}, {machine['system']}, Python {machine['Python']}, Prometheus {machine['Prometheus']}."
    )
    return "\n".join([*lines, "", told, ""])


def _row(results: Results, what: str, size: int | None) -> str:
    # A floor may be the same at all sizes; then it has none.
    found = [figure for figure in results.figures() if figure.what == what and figure.size in (size, None)]
    ours, floor, theirs = (
        next((figure for figure in found if figure.samples and figure.who.startswith(who)), None)
        for who in (OURS, FLOOR, "Prometheus")
    )
    if ours is None:
        raise LookupError(f"not among the results: {what!r}, size {size}")
    shown = ["–" if figure is None else text(figure.median, figure.unit) for figure in (ours, floor, theirs)]
    over = [
        f"{text(ours.median / other.median, '×')} {name}"
        for name, other in (("the floor", floor), ("Prometheus", theirs))
        if other is not None and other.median
    ]
    count = "" if size is None else f"{size:,}"
    return f"| {what} | {count} | {' | '.join(shown)} | {', '.join(over)} |"


def put(readme: str, told: str) -> str:
    """Return the README with that between the marks.

    Raises:
      LookupError: it has not these marks, once each.
    """
    new, count = re.subn(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: told, readme, flags=re.DOTALL)
    if count != 1:
        raise LookupError(f"the README has the marks {BEGIN.strip()} and {END} {count} times")
    return new


def main() -> None:
    """Write the section and keep the results, or check that the section is what it would be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description="Have the README tell the figures of a run."
    )
    parser.add_argument("results", nargs="?", type=Path, default=KEPT, help="what --json wrote; else what was kept")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the README differs")
    arguments = parser.parse_args()
    try:
        kept = reduced(Results.from_document(json.loads(arguments.results.read_text()))).text()
        results = Results.from_document(json.loads(kept))  # which has no more digits than what is kept
        before = README.read_text()
        after = put(before, section(results))
    except (OSError, LookupError) as error:
        sys.exit(str(error))
    if arguments.check:
        sys.exit(None if before == after else f"the README does not tell the figures of {arguments.results}")
    README.write_text(after)
    KEPT.write_text(kept)


if __name__ == "__main__":
    main()
