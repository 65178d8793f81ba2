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

A thread of the engine's own runs anyio's portal on Trio. What is asked for runs as a task of the portal; its answer
comes back through a ``queue.SimpleQueue``, and it is cancelled by a cancel scope of its own, posted to Trio. The
caller's thread waits for nothing else, because of KeyboardInterrupt: that may be raised in the middle of anything
written in Python, such as a ``concurrent.futures.Future`` or a ``threading.Event``, and leave a lock locked that the
engine needs as well. Every task answers, also one that is cancelled because the portal ends, so that nobody waits for
ever.

What is entered is held by a task of the engine's thread, which enters and leaves it, as Trio's context managers ask
for; the caller's block has an event that tells the task to leave. When the manager's block ends, however it ends, first
the manager is closed, which ends all updates and whatever still waits in other threads, then the tasks that hold
subscriptions are cancelled, and at last the thread ends. Who is interrupted while waiting for that goes on waiting, and
is told afterwards.

A wait that is interrupted, by KeyboardInterrupt or because an asyncio task was cancelled, is cancelled in the engine,
too. An update may arrive in that very moment, when the engine has handed it out and nobody is there to take it: it is
kept, and the next wait begins with it. The engine learns what became of a wait from two flags that the caller's frame
sets as it is left; it rests on CPython looking at signals after calls and at jumps only, and so never between the flag
and the assignment of what ``receive`` returns. A wait whose caller is gone takes nothing any more, wherever it was
interrupted: the next one cancels it, and has its turn when it is over. So updates come in order.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from queue import SimpleQueue
from typing import Literal, TypedDict, TypeVar, Unpack

import anyio
import trio
from anyio.from_thread import BlockingPortal

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


@dataclass(frozen=True, slots=True)
class _Raised:
    """The answer of a task that raised."""

    error: BaseException


def _result(answer: T | _Raised) -> T:
    if isinstance(answer, _Raised):
        raise answer.error
    return answer


class _Engine:
    """The engine's thread, as other threads use it."""

    def __init__(self) -> None:
        self._portal: BlockingPortal | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread: threading.Thread | None = None
        self._opened: SimpleQueue[None] = SimpleQueue()  # told when there is a portal, or will be none
        self._ended: SimpleQueue[None] = SimpleQueue()  # told when the thread is done
        self._running = False  # from before the thread is there until it is done
        self._ending = trio.Event()
        self._starting: set[object] = set()  # one for each task that is being handed to the portal; any thread
        self._handed = trio.Event()
        self._closed = False
        self._error: BaseException | None = None

    def open(self) -> None:
        """Start the thread. If it raises, :meth:`close` is still to be called."""
        # An interrupt can't come between the two; and it finds no lock of threading.Thread.start() in its hands.
        self._running = True
        _thread.start_new_thread(self._start_thread, ())
        self._opened.get()
        if self._error is not None:
            raise self._error

    def _start_thread(self) -> None:
        try:
            # A daemon, so that it can't hold up the program's end where an interrupt has hit contextlib's own code.
            self._thread = threading.Thread(target=self._run, name="trio-sd engine", daemon=True)
            self._thread.start()
        except BaseException as error:  # noqa: BLE001 (there can be no more threads, say; it is the caller's)
            self._done(error)

    def _run(self) -> None:
        try:
            anyio.run(self._hold_portal, backend="trio")
        except BaseException as error:  # noqa: BLE001 (close() raises it)
            self._done(error)
        else:
            self._done(None)

    def _done(self, error: BaseException | None) -> None:
        self._error = error
        self._running = False
        self._opened.put(None)
        self._ended.put(None)

    async def _hold_portal(self) -> None:
        async with BlockingPortal() as portal:
            self._portal = portal
            self._token = trio.lowlevel.current_trio_token()
            self._opened.put(None)
            if not self._closed:  # stop() sets it before it looks for the token
                await self._ending.wait()
            await portal.stop(cancel_remaining=True)
            # The portal refuses what comes now, but a thread may have been let in before. anyio warns of a coroutine
            # that is never awaited if that one comes in the very tick in which its nursery ends.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                while self._starting:
                    self._handed = trio.Event()
                    await self._handed.wait()

    def _tell_handed(self) -> None:
        self._handed.set()

    def stop(self) -> None:
        """Refuse what is asked for from now on, cancel what is under way, and have the thread end."""
        self._closed = True
        self._post(self._ending.set)

    def close(self) -> None:
        """Stop, and wait until the thread has ended.

        Who is interrupted waits all the same; the interrupt is raised at the end.

        Raises:
          BaseException: what the thread has ended with, if something is wrong in Trio itself.
        """
        interrupted: BaseException | None = None
        while self._running:
            try:
                self.stop()
                if self._thread is not None and self._thread.ident == _thread.get_ident():
                    return  # a block that was never left was collected as garbage here, of all places
                self._ended.get()
            except BaseException as error:  # noqa: BLE001 (raised below)
                interrupted = error
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()
        if interrupted is not None:
            raise interrupted
        if self._error is not None:
            raise self._error

    def _post(self, function: Callable[[], None]) -> None:
        """Have a sync function called in the engine's thread, and do not wait for it; of no effect if it has ended."""
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function)

    def _start(
        self,
        function: Callable[[], Awaitable[T]],
        scope: trio.CancelScope,
        answer: Callable[[T | _Raised], None],
    ) -> None:
        """Start an async function in the engine's thread; it answers once, however it ends.

        Raises:
          trio.ClosedResourceError: the manager is closed. There will be no answer.
        """

        async def answered() -> None:
            result: T | _Raised = _Raised(trio.ClosedResourceError("the manager is closed"))
            try:
                with scope:
                    result = await function()
            except trio.Cancelled:  # the portal ends
                raise
            except BaseException as error:  # noqa: BLE001 (it is the caller's)
                result = _Raised(error)
            finally:
                answer(result)

        if self._portal is None:
            raise RuntimeError("the engine was never opened")
        mark = object()
        try:
            self._starting.add(mark)
            self._portal.start_task_soon(answered)
        except RuntimeError as error:
            if not self._closed:
                raise
            raise trio.ClosedResourceError("the manager is closed") from error
        finally:
            self._starting.discard(mark)
            if self._closed:
                self._post(self._tell_handed)

    def call(self, function: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        """Run an async function in the engine's thread, and return what it returns.

        Raises:
          trio.ClosedResourceError: the manager is closed.
          TimeoutError: it took longer than ``timeout`` seconds.
        """

        async def bounded() -> T:
            with trio.fail_after(inf if timeout is None else timeout):
                return await function()

        scope = trio.CancelScope()
        answers: SimpleQueue[T | _Raised] = SimpleQueue()
        try:
            self._start(bounded, scope, answers.put)
            return _result(answers.get())
        except trio.TooSlowError:
            raise TimeoutError(f"not done within {timeout} s") from None
        except BaseException:  # KeyboardInterrupt, say, while it waits
            self._post(scope.cancel)
            raise

    async def call_from_asyncio(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in the engine's thread, while a task of asyncio waits; return what it returns.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T | _Raised] = loop.create_future()

        def take(result: T | _Raised) -> None:
            if not answered.done():
                answered.set_result(result)

        def answer(result: T | _Raised) -> None:
            with suppress(RuntimeError):  # the loop is closed; nobody waits any more
                loop.call_soon_threadsafe(take, result)

        scope = trio.CancelScope()
        try:
            self._start(function, scope, answer)
            return _result(await answered)
        except BaseException:  # it was cancelled, say
            self._post(scope.cancel)
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

        Interrupted while it is entered or left, it is cancelled, and not waited for.

        Raises:
          trio.ClosedResourceError: the manager is closed.
        """
        leave = trio.Event()
        scope = trio.CancelScope()
        answers: SimpleQueue[T | _Raised] = SimpleQueue()  # one when it is entered, and one when it is left

        async def held() -> T:
            async with opening as opened:
                answers.put(opened)
                await leave.wait()
            return opened

        try:
            self._start(held, scope, answers.put)
            opened = _result(answers.get())
            try:
                yield opened
            finally:
                self._post(leave.set)
                with suppress(trio.ClosedResourceError):  # the thread has ended, and has left it before
                    _result(answers.get())
        except BaseException:
            self._post(scope.cancel)
            raise


class _Wait:
    """One wait for an update.

    Attributes:
      scope: cancelled when its caller is gone.
      update: what it took; written in the engine's thread.
      taken: whether the caller has it; written by the caller, as is the next.
      gone: whether the caller waits no longer.
    """

    __slots__ = ("gone", "scope", "taken", "update")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.update: Update | None = None
        self.taken = False
        self.gone = False


class BlockingUpdates:
    """The updates of one subscription: an iterator, and an async iterator for asyncio. Made by ``subscribe``.

    The first one is the state as it is; each later one is the newest state at the moment when it is taken. An update
    may be used in any thread. Iteration ends when the manager is closed, also in the middle of a wait.

    No update is lost or comes out of order when :meth:`receive`, a ``for`` loop, or an ``async for`` loop is
    interrupted or cancelled, and tried again. What can't be excluded is an interrupt when the update was returned, but
    something around has not passed it on: ``next()``, a debugger, or a task of asyncio that was made for the one call.
    Then its changes are not told again; ``snapshot`` of the next update is whole in any case. If several threads or
    tasks share the updates, each update comes to one of them; after an interrupt an older one may come to one of them
    while another has the next already.
    """

    def __init__(self, engine: _Engine, updates: trio.MemoryReceiveChannel[Update]) -> None:
        self._engine = engine
        self._updates = updates
        self._turn = trio.Lock()
        self._waits: list[_Wait] = []  # that wait, or have an update that may come back; the engine's thread only

    def receive(self, timeout: float | None = None) -> Update:
        """Wait for the next update and return it.

        Args:
          timeout: how many seconds to wait at most; for ever if ``None``.

        Raises:
          TimeoutError: there was none. None was missed.
          trio.EndOfChannel: the manager is closed.
          trio.ClosedResourceError: the subscription's block has ended.
        """
        wait = _Wait()
        try:
            update = self._engine.call(partial(self._receive, wait), timeout)
            wait.taken = True
        finally:
            wait.gone = True
        return update  # no call may stand between this and what says that it is taken

    async def _receive(self, wait: _Wait) -> Update:
        self._waits = [one for one in self._waits if not one.taken]
        self._waits.append(wait)
        # Perhaps this one, too: Trio starts tasks in any order, and the caller's next wait may be here before it.
        for one in self._waits:
            if one.gone:
                one.scope.cancel()
        try:
            with wait.scope:
                async with self._turn:
                    update = self._left_over()
                    if update is None:
                        update = await self._updates.receive()
                    wait.update = update
                    _ = update.changes  # worked out in this thread; from then on they are safe to look at in any
                    return update
        finally:
            if wait.update is None:
                self._waits.remove(wait)
        raise trio.ClosedResourceError("nobody waits any more")

    def _left_over(self) -> Update | None:
        """Return the first update that was handed to somebody who did not take it any more."""
        left = {
            one.update.revision: one for one in self._waits if one.update is not None and one.gone and not one.taken
        }
        if not left:
            return None
        first = left[min(left)]
        self._waits.remove(first)
        return first.update

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
        wait = _Wait()
        try:
            update = await self._engine.call_from_asyncio(partial(self._receive, wait))
            wait.taken = True
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopAsyncIteration from None
        finally:
            wait.gone = True
        return update


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
    comes out as it is. Interrupted in the middle of entering or leaving, it still ends the thread, and waits until it
    has ended, which takes as long as the engine needs to be cancelled; the interrupt comes out then. Of several
    interrupts within microseconds one may come out before. One that hits ``contextlib``, around all this, takes effect
    when its traceback is let go.
    """
    engine = _Engine()
    try:
        engine.open()
        with engine.hold(open_trio_manager(configs, **options)) as manager:
            yield BlockingManager(engine, manager)
    finally:
        try:
            _thread.start_new_thread(engine.stop, ())  # no interrupt can come before that, nor into it
            engine.close()
        except BaseException:
            engine.close()  # it may have been interrupted before its first step
            raise
