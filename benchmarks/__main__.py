"""``python -m benchmarks [NAME …] [--quick]``: measure, and tell on the terminal, as JSON, and as a page with plots."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Final

from . import scale
from .figures import Figure
from .report import Results, machine, table

BENCHMARKS: Final = ("manager", "reload", "files", "zookeeper", "polling", "relabel", "process", "state", "serve")
"""The modules that have a benchmark. One is imported when it is to run: it may need what others do without."""

_EPILOG: Final = """\
examples:
  python -m benchmarks                              everything: half an hour
  python -m benchmarks manager zookeeper --quick    two of them, a few minutes
  python -m benchmarks --json r.json --html r.html  with a report to keep
  python -m benchmarks --from r.json --html r.html  the page of an earlier run

What is measured beside a peer takes turns with it in the same run. Where a peer is not installed, its row says so
(apt install prometheus). Exits with 0 also if an aim is not met: that depends on the machine.
"""


def main() -> None:
    """Run the benchmarks and tell their figures."""
    arguments = _parser().parse_args()
    if unknown := set(arguments.names).difference(BENCHMARKS):
        _parser().error(f"no such benchmark: {', '.join(sorted(unknown))}; there is: {', '.join(BENCHMARKS)}")
    # Before half an hour of measuring, rather than after it.
    page = _page() if arguments.html is not None else None
    if arguments.earlier is not None:
        results = Results.from_document(json.loads(arguments.earlier.read_text()))
    else:
        results = Results(datetime.now(UTC).isoformat(timespec="seconds"), arguments.quick, machine())
    try:
        if arguments.earlier is None:
            for name in arguments.names or BENCHMARKS:
                _measure(name, results)
            if predicted := list(scale.run(results)):
                results.benchmarks["scale"] = predicted
    finally:  # what was measured before something went wrong is told all the same
        _tell(results, arguments.format)
        if arguments.json is not None:
            arguments.json.write_text(results.text())
        if page is not None:
            arguments.html.write_text(page(results))


def _page() -> Callable[[Results], str]:
    try:
        from .page import page
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise SystemExit("--html draws with matplotlib, which is not installed: pip install 'trio-sd[bench]'") from None
    return page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure trio-sd on this machine, beside the real Prometheus.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all if none is named"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: minutes, less certain")
    parser.add_argument(
        "--format",
        choices=("table", "json"),
        default="table" if sys.stdout.isatty() else "json",
        help="of what is printed; a table on a terminal, else JSON",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots there")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="earlier", help="tell of an earlier run's JSON; measure nothing"
    )
    return parser


def _measure(name: str, results: Results) -> None:
    """Run one benchmark. Figures are told of as they come, because it is long work."""
    found = results.benchmarks[name] = []
    began = time.monotonic()
    run: Callable[..., Iterable[Figure]] = import_module(f"{__package__}.{name}").run
    for figure in run(quick=results.quick):
        found.append(figure)
        size = "" if figure.size is None else f", {figure.size:,}"
        print(f"{time.monotonic() - began:6.1f} s  {name}: {figure.what}{size}: {figure.who}", file=sys.stderr)


def _tell(results: Results, form: str) -> None:
    if form == "json":
        print(results.text(), end="")
        return
    print(", ".join(f"{name} {value}" for name, value in results.machine.items()))
    for name, found in results.benchmarks.items():
        print(f"\n{name}\n{table(found)}")


if __name__ == "__main__":
    main()
