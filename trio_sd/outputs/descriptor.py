"""Writing to a file descriptor that may not take anything for a long time: a pipe, or a terminal that is held."""

from __future__ import annotations

import os
import select

import trio

__all__ = ["write", "write_blocking"]


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data`` in a thread.

    Raises:
      BrokenPipeError: nobody reads any more.

    If cancelled while the other side does not read, part of ``data`` may have been written, and the thread is left
    behind; it ends when the other side reads or goes away, or with the process.
    """
    # A limiter of its own: threads that wait for readers must not take those of the application.
    await trio.to_thread.run_sync(write_blocking, fd, data, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))


def write_blocking(fd: int, data: bytes) -> None:
    """Write all of ``data``; for use in a thread."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # somebody who shares it has made it non-blocking
            select.select([], [fd], [])
