"""``python -m benchmarks [NAME …] [--quick]``: measure and print."""

from __future__ import annotations

import argparse
import os
import platform
from types import MappingProxyType

import trio

from . import files, manager, relabel, reload, serve, state, zookeeper
from .report import table

BENCHMARKS = MappingProxyType(
    {
        "manager": manager.run,
        "files": files.run,
        "reload": reload.run,
        "state": state.run,
        "relabel": relabel.run,
        "serve": serve.run,
        "zookeeper": zookeeper.run,
    }
)


def main() -> None:
    """Run the benchmarks and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure trio-sd on this machine.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all if none is named"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds instead of a minute")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    print(
        f"Python {platform.python_version()}, Trio {trio.__version__}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores\n"
    )
    for name in arguments.names or BENCHMARKS:
        print(f"{name}\n{table(BENCHMARKS[name](quick=arguments.quick))}\n")


if __name__ == "__main__":
    main()
