"""The state file: writing it, what that costs everybody else, and what a restart takes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

import trio

from trio_sd.manager import open_manager
from trio_sd.state import SavedProvider, State
from trio_sd.state_file import StateFile

from .figures import Figure
from .manager import one_target_group


async def measure(count: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds that writing takes, that a loop beside it was held up at the longest, and a restart takes."""
    groups = [one_target_group(index) for index in range(count)]
    writes, pauses, restarts = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "state")
        state = State("scrape", time.time(), {"set": (0,)}, (SavedProvider("fake", None, time.time(), groups),))
        for _ in range(rounds):
            file = StateFile(path, "scrape")
            longest = 0.0

            async def tick() -> None:
                nonlocal longest
                while True:
                    begin = time.perf_counter()
                    await trio.sleep(0.001)
                    longest = max(longest, time.perf_counter() - begin - 0.001)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                begin = time.perf_counter()
                if not await file.save(state):
                    raise RuntimeError(f"not written: {file.statistics().last_error}")
                writes.append(time.perf_counter() - begin)
                nursery.cancel_scope.cancel()
            pauses.append(longest)
            begin = time.perf_counter()
            async with open_manager(state_path=path) as manager:
                restarts.append(time.perf_counter() - begin)
                if manager.snapshot().target_count("set") != count:
                    raise RuntimeError(f"restored {manager.snapshot()!r}, not {count} targets")
    return writes, pauses, restarts


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure."""
    count = 100_000
    writes, pauses, restarts = trio.run(measure, count, 3 if quick else 10)
    yield Figure.of("state file: written, to the disk", writes, size=count)
    yield Figure.of("state file: the loop held up beside that, at the longest", pauses, size=count)
    yield Figure.of("state file: read, restored and shown", restarts, size=count)
