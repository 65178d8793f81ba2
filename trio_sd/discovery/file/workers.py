"""Threads for work on a file system that may hang.

A thread that hangs in the kernel can't be stopped, only left behind. So few threads are used at a time, but one that
is overdue no longer counts among them: other jobs' work goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar, cast

import trio

__all__ = ["DEADLINE", "Work", "open_workers"]

DEADLINE: Final = 10.0
"""Seconds after which work is overdue."""

_GRACE: Final = 1.0
"""Seconds that a cancelled task waits for its thread to come back before it leaves it behind."""

_THREADS: Final = 4  # they share the interpreter; more only pay while the file system keeps them waiting

T = TypeVar("T")


@asynccontextmanager
async def open_workers() -> AsyncIterator[trio.CapacityLimiter]:
    """Yield the limit on threads that all file discoverers of a manager share."""
    yield trio.CapacityLimiter(_THREADS)


class _Seat:
    """One place under the limit, taken when a thread starts and left when that thread is really back."""

    def __init__(self, limiter: trio.CapacityLimiter, scope: trio.CancelScope) -> None:
        self._limiter = limiter
        self._scope = scope
        self.taken = trio.Event()
        self._overdue = False
        self._left = False

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self._scope.shield = True  # until here there was no thread to wait for
        self.taken.set()

    def release_on_behalf_of(self, borrower: object) -> None:
        self._left = True
        self._limiter.release_on_behalf_of(borrower)
        if self._overdue:
            self._limiter.total_tokens -= 1

    def overdue(self) -> None:
        """Make room for another thread for as long as this one is stuck."""
        if not self._left and not self._overdue:
            self._overdue = True
            self._limiter.total_tokens += 1


class Work(Generic[T]):
    """A sync function that runs in a thread, and is waited for.

    Args:
      function: what to run; it may hang.
      limiter: the limit on threads; see :func:`open_workers`.
      on_overdue: called once if the function has run for :data:`DEADLINE` seconds; it is then waited for further.
    """

    def __init__(
        self, function: Callable[[], T], limiter: trio.CapacityLimiter, on_overdue: Callable[[], object]
    ) -> None:
        self._function = function
        self._scope = trio.CancelScope()
        self._seat = _Seat(limiter, self._scope)
        self._on_overdue = on_overdue
        self._done = trio.Event()
        self._results: list[T] = []

    async def result(self) -> T:
        """Return what the function returns; called once.

        When cancelled, this waits a second at most for the thread, so that usually nothing of it is left, and
        leaves it behind after that. It counts as overdue then, until it is back.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                await self._seat.taken.wait()
                with trio.move_on_after(DEADLINE):
                    await self._done.wait()
                if not self._done.is_set():
                    self._seat.overdue()
                    self._on_overdue()
                    await self._done.wait()
            finally:
                self._scope.deadline = trio.current_time() + _GRACE
        return self._results[0]

    async def _run(self) -> None:
        with self._scope:
            self._results.append(
                await trio.to_thread.run_sync(
                    self._function,
                    abandon_on_cancel=True,
                    # Trio asks for no more than these two methods, but its annotation names the class.
                    limiter=cast("trio.CapacityLimiter", self._seat),
                )
            )
        if self._scope.cancelled_caught:
            self._seat.overdue()
        self._done.set()
