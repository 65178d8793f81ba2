"""Resources that several discoverers of one manager share.

An inotify instance or a ZooKeeper session is opened for its first user and closed when its last user has gone. It
lives in a task of the manager's nursery, so it may have a nursery of its own and can't outlive the manager. That task
is shielded from the manager's end, and ends when its last user has gone, so no user outlives what it uses.
Rejected: opening it in the first user's task, because that user may well be the first to leave.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar, cast

import trio

from .errors import unwrapped

__all__ = ["Resources"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Shared:
    """One open resource: the task that holds it open, and its users."""

    def __init__(self) -> None:
        self.users: set[trio.CancelScope] = set()
        self.scope = trio.CancelScope(shield=True)  # cancelled by the last user to leave
        self.settled = trio.Event()  # open, or failed to
        self.closed = trio.Event()
        self.value: Any = None  # of the type that its opener yields; `use` gives it back its type
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None


class Resources:
    """The resources that the discoverers of one manager share, each found by a key.

    Args:
      nursery: owns the tasks that hold resources open.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._shared: dict[Hashable, _Shared] = {}

    @asynccontextmanager
    async def use(self, key: Hashable, opener: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """Use the resource named ``key``, which ``opener`` opens if nobody uses it yet.

        The key is told in statistics, so it holds no secrets.

        The last user to leave waits until the resource is closed, so that nothing of it is left when a reload ends;
        that wait is shielded, and as long as the resource takes to close. A resource that breaks while in use
        cancels the bodies of all its users, who then see what broke it.

        Raises:
          Exception: whatever opening the resource raised, or what broke it while it was used.
        """
        while (shared := self._shared.get(key)) is not None and shared.scope.cancel_called:
            await shared.closed.wait()
        if shared is None:
            shared = self._shared[key] = _Shared()
            self._nursery.start_soon(self._hold, key, shared, opener)
        user = trio.CancelScope()
        shared.users.add(user)
        try:
            await shared.settled.wait()
            if shared.error is None:
                with user:
                    yield cast("T", shared.value)
            if shared.error is not None:
                # One exception for all users: without this, its traceback would grow with each of them.
                raise shared.error.with_traceback(shared.traceback)
        finally:
            shared.users.discard(user)
            if not shared.users:
                shared.scope.cancel()
                with trio.CancelScope(shield=True):
                    await shared.closed.wait()

    async def _hold(
        self, key: Hashable, shared: _Shared, opener: Callable[[], AbstractAsyncContextManager[object]]
    ) -> None:
        """Open the resource and keep it open until its last user has gone, or it breaks."""
        try:
            with shared.scope:
                async with opener() as shared.value:
                    shared.settled.set()
                    await trio.sleep_forever()
        # Whatever breaks the resource is raised in its users, who are supervised; here it would end the manager.
        except* Exception as errors:
            shared.error = unwrapped(errors)
            shared.traceback = shared.error.__traceback__
            if not shared.users:
                logger.warning("a shared resource failed as it was closed: %s", shared.error, exc_info=shared.error)
        finally:
            del self._shared[key]
            shared.settled.set()
            for user in shared.users:
                user.cancel()
            shared.closed.set()

    def statistics(self) -> dict[str, int]:
        """Return the number of users of each open resource, by the text of its key.

        Keys may have the same text, because secrets are not shown: the second one is followed by ``#2``, and so on.
        """
        found: dict[str, int] = {}
        for key, shared in self._shared.items():
            text, number = str(key), 2
            while text in found:
                text, number = f"{key} #{number}", number + 1
            found[text] = len(shared.users)
        return found
