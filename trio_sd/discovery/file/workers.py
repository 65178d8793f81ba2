"""Worker threads for a file system that may hang.

Theory of operation
===================

A thread that hangs in the kernel can't be stopped; it can only be left behind. All file discoverers of a manager share
a few threads. A thread that is slow no longer counts towards that limit, so the scans of other jobs go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar, cast

import trio

__all__ = ["DEADLINE", "open_workers", "run_sync"]

DEADLINE: Final = 10.0
"""Seconds after which a thread is reported as overdue."""

_SLOW: Final = 0.5
"""Seconds after which a thread no longer counts: it waits for something, and does not use the interpreter."""

_GRACE: Final = 1.0
"""Seconds that a cancelled task waits for its thread to end before it leaves the thread behind."""

_THREADS: Final = 4  # they share the interpreter; more only pay while the file system keeps them waiting

T = TypeVar("T")


@asynccontextmanager
async def open_workers() -> AsyncIterator[trio.CapacityLimiter]:
    """Yield the limit on threads that all file discoverers of a manager share."""
    yield trio.CapacityLimiter(_THREADS)


async def run_sync(
    function: Callable[[], T],
    limiter: trio.CapacityLimiter,
    *,
    on_start: Callable[[], object],
    on_overdue: Callable[[], object],
) -> T:
    """Run a function in a thread, and return what it returns.

    The wait for a free thread can be cancelled at once. While the function runs, cancellation first waits a second
    for it, so that usually nothing of it is left, and then leaves the thread behind.

    Args:
      function: what to run; it may hang.
      limiter: the limit on threads; see :func:`open_workers`.
      on_start: called once when there is a free thread, before the function is.
      on_overdue: called once if the function has run for :data:`DEADLINE` seconds. The wait goes on after that.

    Raises:
      ExceptionGroup: it holds what the function raised.
    """
    seat = _Seat(limiter)
    await seat.take()
    on_start()
    started = trio.current_time()
    results: list[T] = []
    thread_scope = trio.CancelScope(shield=True)

    async def watch_the_time() -> None:
        try:
            await trio.sleep_until(started + _SLOW)
            seat.free_early()
            await trio.sleep_until(started + DEADLINE)
            on_overdue()
            await trio.sleep_forever()
        finally:
            thread_scope.deadline = trio.current_time() + _GRACE

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_the_time)
        with thread_scope:
            # Trio's annotation asks for the class, its documentation only for the methods that a seat has.
            seat_as_limiter = cast("trio.CapacityLimiter", seat)
            results.append(await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=seat_as_limiter))
        if thread_scope.cancelled_caught:
            seat.free_early()
        nursery.cancel_scope.cancel()
    return results[0]


class _Seat:
    """One place under the limit. It is given back when its thread has really ended.

    The documentation of :func:`trio.to_thread.run_sync` allows any "CapacityLimiter-like object" as the limiter: one
    with the methods ``acquire_on_behalf_of`` and ``release_on_behalf_of``. It promises that the limiter "is only
    released after the thread has *actually* finished", also when the caller was cancelled before. Nothing else tells
    when a thread that was left behind ends.
    """

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._freed_early = False
        self._given_back = False

    async def take(self) -> None:
        """Wait for a free place. This is apart from starting the thread because only this wait ends when cancelled."""
        await self._limiter.acquire_on_behalf_of(self)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Called by Trio before it starts the thread; the place has been taken already."""

    def release_on_behalf_of(self, borrower: object) -> None:
        """Called by Trio when the thread has ended."""
        self._given_back = True
        self._limiter.release_on_behalf_of(self)
        if self._freed_early:
            self._limiter.total_tokens -= 1

    def free_early(self) -> None:
        """Allow one more thread for as long as this one runs."""
        if not self._given_back and not self._freed_early:
            self._freed_early = True
            self._limiter.total_tokens += 1
