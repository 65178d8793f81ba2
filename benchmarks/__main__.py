"""``python -m benchmarks [--quick]``: measure and print."""

from __future__ import annotations

import argparse
import os
import platform

import trio

from . import manager
from .report import table


def main() -> None:
    """Run the benchmarks and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure trio-sd on this machine.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds instead of a minute")
    arguments = parser.parse_args()
    print(
        f"Python {platform.python_version()}, Trio {trio.__version__}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores\n"
    )
    print(table(manager.run(quick=arguments.quick)))


if __name__ == "__main__":
    main()
