"""Processes that a benchmark runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import trio

__all__ = ["running"]


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | IO[bytes] | None = None,
    cwd: Path | None = None,
) -> AsyncIterator[trio.Process]:
    """Run a process for the time of the block, and kill it at the end if it still runs.

    Args:
      command: the program and its arguments.
      stdin: as :class:`subprocess.Popen` has it, as have the other two.
      stdout: where it writes.
      stderr: where it complains.
      cwd: where it runs.
    """
    process = await trio.lowlevel.open_process(list(command), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
