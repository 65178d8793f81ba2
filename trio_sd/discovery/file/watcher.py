"""File events: one inotify instance, shared by every file discoverer of a manager.

The kernel allows few instances (128 a user) and many watches, so the instance is shared, and each directory is
watched once however many discoverers look at it. One task reads the events as they come and hands them out by sync
calls; there is no thread, and no timer.

A discoverer's look at the file system runs in a thread and sets watches there, because naming a path to the kernel
may hang. Their descriptors, and what is of interest in them, are known only when the look is over. So a subscription
*records* every event from before the look until then, and sifts them afterwards. A watch that nobody needs any more
is removed; if a look that is under way just got the same descriptor, the kernel's farewell for it (``IN_IGNORED``) is
among the events recorded by that look, which makes its discoverer look again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Set
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, NamedTuple, Protocol

import trio

from ...errors import DiscoveryError
from .findings import Interest

__all__ = ["Event", "Subscription", "WatchError", "Watcher", "open_watcher"]

# From <sys/inotify.h>; spelled out so that this module can be imported where there is no inotify.
IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_UNMOUNT: Final = 0x2000
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x1000000
IN_ISDIR: Final = 0x40000000

# One mask for all, because a second watch of a directory would replace the mask of the first.
_MASK: Final = (
    IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
)  # fmt: skip
_DIRECTORY_ITSELF: Final = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED
_BEING_WRITTEN: Final = IN_MODIFY | IN_CREATE

_CLOSE_DELAY: Final = 0.1
"""How long a file that is being written may stay open before it is read as it is."""

_RECORD_LIMIT: Final = 10_000
"""How many events a look may record; beyond that it is told that anything may have changed."""


class Event(NamedTuple):
    """One event: the watch descriptor, its bits, and the name in the watched directory (empty for the directory)."""

    wd: int
    mask: int
    name: str


class WatchError(DiscoveryError):
    """There are no file events to be had here."""


class Kernel(Protocol):
    """The part of an inotify instance that is used."""

    def add_watch(self, path: str, mask: int) -> int: ...
    def rm_watch(self, wd: int) -> None: ...


class _Watch:
    """Who is interested in one watched directory."""

    __slots__ = ("globs", "holders", "names")

    def __init__(self) -> None:
        self.holders: set[Subscription] = set()
        self.globs: set[Subscription] = set()
        self.names: dict[str, set[Subscription]] = {}


class Watcher:
    """One inotify instance and its subscriptions.

    Args:
      kernel: the instance.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._watches: dict[int, _Watch] = {}
        self._subscriptions: set[Subscription] = set()
        self._recording: set[Subscription] = set()

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Return a new subscription; its watches are released on leaving."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._recording.discard(subscription)
            subscription._close()

    @property
    def watches(self) -> int:
        """How many directories are watched for somebody."""
        return len(self._watches)

    def dispatch(self, event: Event) -> None:
        """Hand an event to those whom it concerns. An event on a name that nobody asked for costs one look-up."""
        if event.mask & IN_Q_OVERFLOW:
            for subscription in self._subscriptions:
                subscription._overflowed()
            return
        for subscription in self._recording:
            subscription._record(event)
        watch = self._watches.get(event.wd)
        if watch is None:
            return
        if event.mask & _DIRECTORY_ITSELF:
            concerned = set(watch.holders)
        else:
            concerned = watch.globs | watch.names.get(event.name, frozenset())
        for subscription in concerned - self._recording:
            subscription._notice(event)

    async def read_events(self, descriptor: int) -> None:
        """Dispatch the events of an inotify file descriptor until cancelled. A cancelled read loses nothing."""
        from inotify_simple import parse_events

        while True:
            await trio.lowlevel.wait_readable(descriptor)
            with suppress(BlockingIOError):
                for wd, mask, _, name in parse_events(os.read(descriptor, 65536)):
                    self.dispatch(Event(wd, mask, name))

    # For subscriptions.

    def _add(self, path: str) -> int:
        try:
            return self._kernel.add_watch(path, _MASK)
        except ValueError:  # closed under the thread of an abandoned look
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def _remove(self, wd: int) -> None:
        with suppress(OSError, ValueError):  # gone already, with its directory or with the instance
            self._kernel.rm_watch(wd)

    def _hold(self, subscription: Subscription, wd: int, interest: Interest) -> None:
        watch = self._watches.setdefault(wd, _Watch())
        watch.holders.add(subscription)
        if interest.globs:
            watch.globs.add(subscription)
        for name in interest.names:
            watch.names.setdefault(name, set()).add(subscription)

    def _release(self, subscription: Subscription, wd: int, interest: Interest) -> None:
        watch = self._watches.get(wd)
        if watch is None:
            return
        watch.holders.discard(subscription)
        watch.globs.discard(subscription)
        for name in interest.names:
            if (others := watch.names.get(name)) is not None:
                others.discard(subscription)
                if not others:
                    del watch.names[name]

    def _sweep(self, wds: Set[int]) -> None:
        for wd in wds:
            watch = self._watches.get(wd)
            if watch is None or not watch.holders:
                self._watches.pop(wd, None)
                self._remove(wd)


class Subscription:
    """What one discoverer is told of the file system. Made by :meth:`Watcher.subscribe`."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._interests: Mapping[int, Interest] = {}
        self._added: list[int] = []  # by the look under way; appended to by its thread
        self._recorded: dict[tuple[int, str], int] = {}
        self._closed = False
        self._anything = False
        self._ready: set[str] = set()
        self._written: set[str] = set()
        self._written_since = 0.0
        self._change = trio.lowlevel.ParkingLot()

    def add(self, path: str) -> int:
        """Watch a directory and return its watch descriptor. Called by the thread of a look; may hang as long as it.

        Raises:
          OSError: it can't be watched.
        """
        wd = self._watcher._add(path)
        self._added.append(wd)
        if self._closed:  # Nobody is left to release it. If others hold it, they will notice and set it again.
            self._watcher._remove(wd)
        return wd

    def record(self) -> None:
        """Keep every event from now on: a look is about to begin."""
        self._watcher._recording.add(self)

    def keep(self, interests: Mapping[int, Interest]) -> None:
        """End recording: hold the watches that the look has set, release those it no longer needs, sift the record."""
        watcher = self._watcher
        before, self._interests = self._interests, interests
        if before != interests:
            for wd, interest in before.items():
                watcher._release(self, wd, interest)
            for wd, interest in interests.items():
                watcher._hold(self, wd, interest)
        added, self._added = self._added, []
        watcher._sweep((before.keys() | set(added)) - interests.keys())
        watcher._recording.discard(self)
        recorded, self._recorded = self._recorded, {}
        for (wd, name), mask in recorded.items():
            self._notice(Event(wd, mask, name))

    async def changed(self) -> Set[str] | None:
        """Wait for changes, and return the subjects that they concern; ``None`` says that anything may have changed.

        A file that is being written is waited for until it is closed, but not for long. Cancellation loses nothing.
        """
        while not (self._anything or self._ready or self._written):
            await self._change.park()
        with trio.CancelScope(deadline=self._written_since + _CLOSE_DELAY):
            while not (self._anything or self._ready):
                await self._change.park()
        if self._anything:
            self.forget()
            return None
        ready = self._ready
        if trio.current_time() >= self._written_since + _CLOSE_DELAY:
            ready |= self._written
            self._written = set()
        self._ready = set()
        return ready

    def forget(self) -> None:
        """Forget the changes that were noticed so far: everything is about to be looked at."""
        self._anything = False
        self._ready = set()
        self._written = set()

    # For the watcher.

    def _record(self, event: Event) -> None:
        if len(self._recorded) >= _RECORD_LIMIT:
            self._overflowed()
        elif not self._anything:
            key = (event.wd, event.name)
            self._recorded[key] = self._recorded.get(key, 0) | event.mask

    def _overflowed(self) -> None:
        self._recorded.clear()
        self._anything = True
        self._change.unpark_all()

    def _notice(self, event: Event) -> None:
        interest = self._interests.get(event.wd)
        if interest is None:
            return
        if event.mask & _DIRECTORY_ITSELF:
            self._anything = True
        else:
            subjects = interest.subjects(event.name)
            if not subjects:
                return
            if event.mask & _MASK & ~_BEING_WRITTEN or event.mask & IN_ISDIR:
                self._ready |= subjects
                self._written -= subjects
            else:
                if not self._written:
                    self._written_since = trio.current_time()
                self._written |= subjects
        self._change.unpark_all()

    def _close(self) -> None:
        self._closed = True
        for wd, interest in self._interests.items():
            self._watcher._release(self, wd, interest)
        self._watcher._sweep(self._interests.keys() | set(self._added.copy()))


def _open() -> Any:  # noqa: ANN401 (an INotify; its package has no types)
    from inotify_simple import INotify

    return INotify(nonblocking=True)


@asynccontextmanager
async def open_watcher() -> AsyncIterator[Watcher]:
    """Open an inotify instance, and read its events until the body ends.

    Raises:
      WatchError: there is no inotify here, or the limit on its instances is reached.
    """
    try:
        # In a thread, because the first use looks for the C library, which takes 20 ms.
        inotify = await trio.to_thread.run_sync(_open)
    except ImportError:
        raise WatchError("there is no inotify on this system") from None
    except OSError as error:
        full = "fs.inotify.max_user_instances or the open files are used up" if error.errno == errno.EMFILE else ""
        raise WatchError(f"inotify: {full or error.strerror}") from None
    try:
        watcher = Watcher(inotify)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.read_events, inotify.fileno())
            try:
                yield watcher
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(inotify.close)  # the kernel takes 10 ms for it
