"""The engine for programs that do not run on Trio: synchronous ones, and those on asyncio.

Needs the extra ``blocking``. The engine runs in a thread of its own; everything here may be called from any other
thread, also from several at once::

    with trio_sd.blocking.open_manager(config.scrape) as manager:
        manager.wait_synced(timeout=10)
        with manager.subscribe() as updates:
            for update in updates:
                print(update.revision, dict(update.changes))

On asyncio nothing else is needed. Updates are also an async iterator, which uses no further thread, and what waits is
called in one::

    with trio_sd.blocking.open_manager(config.scrape) as manager:
        await asyncio.to_thread(manager.wait_synced, timeout=10)
        with manager.subscribe() as updates:
            async for update in updates:
                print(update.revision, dict(update.changes))

Theory of operation
===================

What is entered is held by a task of the engine's thread, which enters and leaves it, as Trio's context managers ask
for; the caller's block has an event that tells the task to leave. When the manager's block ends, however it ends, first
the manager is closed, which ends all updates and whatever still waits in other threads, then the tasks that hold
subscriptions are told to leave, and at last the thread ends. A wait that is interrupted, by KeyboardInterrupt or
because an asyncio task was cancelled, is cancelled in the engine, too. An update may arrive in that very moment, when
the engine has handed it out and nobody is there to take it: it is kept, and the next wait begins with it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from math import inf
from typing import Literal, TypedDict, TypeVar, Unpack

import trio
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal

from .limits import Limits
from .manager import Configs, Manager, ManagerStatistics
from .manager import open_manager as open_trio_manager
from .provider import Backoff
from .snapshots import Snapshot, Update
from .subscription import Throttle

__all__ = ["BlockingManager", "BlockingUpdates", "ManagerOptions", "open_manager"]

T = TypeVar("T")


class ManagerOptions(TypedDict, total=False):
    """What :func:`trio_sd.open_manager` takes besides configurations; it tells what each is for."""

    name: str
    throttle: Throttle
    limits: Limits
    warm_up: float
    grace: float
    backoff: Backoff
    rng: random.Random | None
    removal_delay: float
    state_path: str | os.PathLike[str] | None
    state_max_age: float | None


class _Engine:
    """The engine's thread, as other threads use it.

    Args:
      portal: leads there.
    """

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._held: set[trio.Event] = set()  # touched in the engine's thread only
        self._closed = False

    def start(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start an async function in the engine's thread.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        with self._closing_told():
            return self._portal.start_task_soon(function)

    def call(self, function: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        """Run an async function in the engine's thread, and return what it returns.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          TimeoutError: it took longer than ``timeout`` seconds.
        """

        async def bounded() -> T:
            with trio.fail_after(inf if timeout is None else timeout):
                return await function()

        future = self.start(bounded)
        try:
            with self._closing_told():
                return future.result()
        except trio.TooSlowError:
            raise TimeoutError(f"not done within {timeout} s") from None
        except BaseException:  # KeyboardInterrupt, say, while it waits
            future.cancel()
            raise

    def look(self, function: Callable[[], T]) -> T:
        """Call a function in the engine's thread, and return what it returns.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """

        async def looked() -> T:
            return function()

        return self.call(looked)

    @contextmanager
    def hold(self, opening: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Enter an async context manager for the time of the block. What it raises in the end comes out of the block.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        leave = trio.Event()
        try:
            with self._closing_told():
                future, opened = self._portal.start_task(self._held_open, opening, leave)
        except BaseException:  # KeyboardInterrupt, say, while it is entered
            with suppress(RuntimeError):
                self._portal.start_task_soon(leave.set)
            raise
        try:
            yield opened
        finally:
            with suppress(RuntimeError):  # the thread has ended, and has left it before
                self._portal.call(leave.set)
            with suppress(CancelledError):  # the same
                future.result()

    async def _held_open(
        self, opening: AbstractAsyncContextManager[T], leave: trio.Event, *, task_status: TaskStatus[T]
    ) -> None:
        self._held.add(leave)
        try:
            async with opening as opened:
                task_status.started(opened)
                await leave.wait()
        finally:
            self._held.discard(leave)

    def close(self) -> None:
        """Leave everything that is held, and refuse what is asked for from now on."""
        self._closed = True
        with suppress(RuntimeError):  # the thread has ended
            self._portal.call(self._leave_all)

    def _leave_all(self) -> None:
        for leave in self._held:
            leave.set()

    @contextmanager
    def _closing_told(self) -> Iterator[None]:
        """Have it told in one way that there is nobody any more to do what was asked for."""
        try:
            yield
        except (RuntimeError, CancelledError) as error:
            if not self._closed:
                raise
            raise trio.ClosedResourceError("the manager is closed") from error


class _Wait:
    """One wait for an update. Written in the engine's thread.

    Attributes:
      update: what it took.
      over: whether it takes nothing any more.
    """

    __slots__ = ("over", "update")

    def __init__(self) -> None:
        self.update: Update | None = None
        self.over = False


class BlockingUpdates:
    """The updates of one subscription: an iterator, and an async iterator for asyncio. Made by ``subscribe``.

    The first one is the state as it is; each later one is the newest state at the moment when it is taken. An update
    may be used in any thread. Iteration ends when the manager is closed, also in the middle of a wait.
    """

    def __init__(self, engine: _Engine, updates: trio.MemoryReceiveChannel[Update]) -> None:
        self._engine = engine
        self._updates = updates
        self._turn = trio.Lock()
        self._interrupted: list[_Wait] = []  # those whose callers are gone; any thread appends

    def receive(self, timeout: float | None = None) -> Update:
        """Wait for the next update and return it.

        Args:
          timeout: how many seconds to wait at most; for ever if ``None``.

        Raises:
          TimeoutError: there was none. None was missed.
          trio.EndOfChannel: the manager is closed.
          trio.ClosedResourceError: the subscription's block has ended.
        """
        with self._waiting() as wait:
            return self._engine.call(partial(self._receive, wait), timeout)

    @contextmanager
    def _waiting(self) -> Iterator[_Wait]:
        wait = _Wait()
        try:
            yield wait
        except BaseException:
            self._interrupted.append(wait)
            raise

    async def _receive(self, wait: _Wait) -> Update:
        try:
            async with self._turn:
                update = self._left_over()
                if update is None:
                    update = await self._updates.receive()
                wait.update = update
                _ = update.changes  # worked out in this thread; from then on they are safe to look at in any
                return update
        finally:
            wait.over = True

    def _left_over(self) -> Update | None:
        """Return the first update that was handed to somebody who did not take it any more."""
        for wait in list(self._interrupted):
            if wait.over:
                self._interrupted.remove(wait)
                if wait.update is not None:
                    return wait.update
        return None

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        try:
            return self.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopIteration from None

    def __aiter__(self) -> BlockingUpdates:
        return self

    async def __anext__(self) -> Update:
        try:
            with self._waiting() as wait:
                return await asyncio.wrap_future(self._engine.start(partial(self._receive, wait)))
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopAsyncIteration from None


class BlockingManager:
    """A :class:`trio_sd.Manager` for other threads than the engine's. Made by :func:`open_manager`.

    Where a method has a ``timeout``, it is in seconds, ``None`` for no limit; when it is over, TimeoutError is raised,
    and the wait is cancelled as the manager's method tells. After the manager's block, every method raises
    ``trio.ClosedResourceError``; what waits does so when the manager is closed.
    """

    def __init__(self, engine: _Engine, manager: Manager) -> None:
        self._engine = engine
        self._manager = manager

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._manager)[1:]}"

    @property
    def name(self) -> str:
        """The manager's name."""
        return self._manager.name

    def apply_config(
        self, configs: Configs, *, restart: Literal["all", "changed"] = "all", timeout: float | None = None
    ) -> None:
        """Replace the configuration; see :meth:`trio_sd.Manager.apply_config`.

        Raises:
          TimeoutError: the timeout is over. It may be in force, and only the end of old providers not waited for.
          TypeError: ``configs`` is something else. Nothing was changed.
          ValueError: ``restart`` is something else. Nothing was changed.
        """
        self._engine.call(lambda: self._manager.apply_config(configs, restart=restart), timeout)

    @contextmanager
    def subscribe(
        self, *, relabel: bool = False, throttle: Throttle | None = None, name: str = ""
    ) -> Iterator[BlockingUpdates]:
        """Subscribe to updates for the time of the block; see :meth:`trio_sd.Manager.subscribe`.

        Args:
          relabel: whether targets come as they are after relabeling.
          throttle: the pace; the manager's own if ``None``.
          name: shows up in statistics.
        """
        with self._engine.hold(self._manager.subscribe(relabel=relabel, throttle=throttle, name=name)) as updates:
            yield BlockingUpdates(self._engine, updates)

    def snapshot(self) -> Snapshot:
        """Return the newest state: every set and its groups. It stays what it is, and may be used in any thread."""
        return self._engine.look(self._manager.snapshot)

    def statistics(self) -> ManagerStatistics:
        """Return how everything fares at this moment. Times in it are those of :meth:`current_time`."""
        return self._engine.look(self._manager.statistics)

    def current_time(self) -> float:
        """Return the time on the engine's clock, which is that of statistics and no other."""
        return self._engine.look(trio.current_time)

    def unsynced(self) -> tuple[str, ...]:
        """Return the names of the providers that :meth:`wait_synced` would wait for."""
        return self._engine.look(self._manager.unsynced)

    def wait_synced(self, set_name: str | None = None, *, timeout: float | None = None) -> None:
        """Wait until every provider (of a set, if named) has reported; see :meth:`trio_sd.Manager.wait_synced`.

        Raises:
          TimeoutError: the timeout is over.
          KeyError: there is no set of that name.
        """
        self._engine.call(lambda: self._manager.wait_synced(set_name), timeout)

    def refresh(self, set_name: str | None = None, *, timeout: float | None = None) -> None:
        """Have every provider (of a set, if named) look again now, and wait until each has reported.

        Raises:
          TimeoutError: the timeout is over. They look again all the same.
          KeyError: there is no set of that name.
        """
        self._engine.call(lambda: self._manager.refresh(set_name), timeout)

    def pause(self, provider: str) -> None:
        """Stop the discoverer of a provider until it is resumed; see :meth:`trio_sd.Manager.pause`.

        Raises:
          KeyError: there is no provider of that name.
        """
        self._engine.call(lambda: self._manager.pause(provider))

    def resume(self, provider: str) -> None:
        """Run the discoverer of a paused provider again; see :meth:`trio_sd.Manager.resume`.

        Raises:
          KeyError: there is no provider of that name.
        """
        self._engine.call(lambda: self._manager.resume(provider))


@contextmanager
def open_manager(configs: Configs | None = None, **options: Unpack[ManagerOptions]) -> Iterator[BlockingManager]:
    """Run a manager in a thread of its own for the time of the block; at the end nothing of it is left.

    Args:
      configs: the discoverer configurations of each set, as :attr:`Config.scrape` has them; ``None`` to apply them
        later.
      **options: those of :func:`trio_sd.open_manager`.

    Raises:
      ValueError: an option can't be used.

    A fatal error of the engine closes the manager, and comes out at the end of the block. An exception of the block
    comes out as it is. Interrupted in the middle of entering or leaving, it still ends the thread.
    """
    with start_blocking_portal("trio") as portal:
        thread = _Engine(portal)
        try:
            with thread.hold(open_trio_manager(configs, **options)) as manager:
                yield BlockingManager(thread, manager)
        finally:
            thread.close()
