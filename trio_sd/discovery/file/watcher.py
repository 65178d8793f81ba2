"""File events: one inotify instance that all file discoverers of a manager share.

Theory of operation
===================

The kernel allows few inotify instances (128 a user) and many watches. So there is one instance, and it watches a
directory once, however many discoverers need it. One task reads the events and passes each to the subscribers that it
concerns. There is no thread and no timer.

Each discoverer is a subscriber; its :class:`FileEvents` is told of events. A scan runs in a thread and sets watches
there, because any system call on a path may hang. Which names matter in those directories is known only when the scan
is over. So ``FileEvents`` records all events while a scan runs, and keeps those that matter when it ends.

A watch is removed when no subscriber needs it any more. A scan of another subscriber that is under way may just have
asked for the same directory, and got the same watch. The removal causes an ``IN_IGNORED`` event, which that subscriber
records, so it scans again and sets the watch again.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Set
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple, Protocol, TypeVar

import trio

from ...errors import DiscoveryError
from .result import WatchedNames

__all__ = ["Event", "FileEvents", "Kernel", "WatchError", "Watcher", "open_watcher"]

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
"""Seconds that a file which is being written may stay open before it is read as it is."""

_RECORD_LIMIT: Final = 10_000
"""How many events are recorded during a scan; if there are more, anything may have changed."""


K = TypeVar("K")


class Event(NamedTuple):
    """One event: the watch descriptor, its bits, and the name in the watched directory (empty for the directory)."""

    wd: int
    mask: int
    name: str


class WatchError(DiscoveryError):
    """File events can't be had on this system, or not now."""


class Kernel(Protocol):
    """The part of an inotify instance that is used; ``inotify_simple`` has no types."""

    def add_watch(self, path: str, mask: int) -> int:
        """Watch ``path`` for the events in ``mask``, and return the watch descriptor."""

    def rm_watch(self, wd: int) -> None:
        """Remove a watch."""

    def fileno(self) -> int:
        """Return the file descriptor that events are read from."""

    def close(self) -> None:
        """Close the instance; the kernel removes its watches."""


class _Watch:
    """The subscribers of one watched directory."""

    __slots__ = ("by_name", "by_pattern", "holders")

    def __init__(self) -> None:
        self.holders: set[FileEvents] = set()  # all of them
        self.by_pattern: dict[re.Pattern[str], set[FileEvents]] = {}  # those for whom the names that match matter
        self.by_name: dict[str, set[FileEvents]] = {}  # those for whom a single name matters


class Watcher:
    """One inotify instance and its subscribers.

    Args:
      kernel: the instance.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._watches: dict[int, _Watch] = {}
        self._subscribers: set[FileEvents] = set()
        self._told_everything: set[FileEvents] = set()

    @contextmanager
    def subscribe(self) -> Iterator[FileEvents]:
        """Yield the events for a new subscriber; its watches are given up on leaving."""
        subscriber = FileEvents(self)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)
            subscriber.close()

    @property
    def watches(self) -> int:
        """How many directories are watched for somebody."""
        return len(self._watches)

    def dispatch(self, event: Event) -> None:
        """Pass an event to the subscribers that it concerns. For a name that nobody needs, this is one look-up."""
        if event.mask & IN_Q_OVERFLOW:
            for subscriber in self._subscribers:
                subscriber.overflowed()
            return
        concerned = self._told_everything
        watch = self._watches.get(event.wd)
        if watch is not None:
            if event.mask & _DIRECTORY_ITSELF:
                concerned = concerned | watch.holders
            else:
                concerned = concerned | watch.by_name.get(event.name, frozenset())
                for names, subscribers in watch.by_pattern.items():
                    if names.fullmatch(event.name):
                        concerned = concerned | subscribers
        for subscriber in concerned:
            subscriber.notice(event)

    async def read_events(self) -> None:
        """Read the events of the instance and dispatch them, until cancelled. A cancelled read loses nothing."""
        from inotify_simple import parse_events

        descriptor = self._kernel.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            with suppress(BlockingIOError):
                # A file that is written causes several events; together they say the same as each of them.
                masks: dict[tuple[int, str], int] = {}
                for wd, mask, _, name in parse_events(os.read(descriptor, 65536)):
                    masks[wd, name] = masks.get((wd, name), 0) | mask
                for (wd, name), mask in masks.items():
                    self.dispatch(Event(wd, mask, name))
                    await trio.lowlevel.checkpoint()  # a thousand patterns in one directory take a while

    # For subscribers.

    def add(self, path: str) -> int:
        """Watch a directory and return the watch descriptor. Called in the thread of a scan; may hang.

        Raises:
          OSError: it can't be watched.
        """
        try:
            return self._kernel.add_watch(path, _MASK)
        except ValueError:  # the instance was closed after the scan had been left behind
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def remove(self, wd: int) -> None:
        """Remove a watch, if it still exists. Called in any thread."""
        with suppress(OSError, ValueError):  # the directory is gone, and the watch with it; or the instance is closed
            self._kernel.rm_watch(wd)

    def tell_everything(self, subscriber: FileEvents) -> None:
        """Tell a subscriber of every event from now on, until it calls :meth:`hold`."""
        self._told_everything.add(subscriber)

    def hold(
        self,
        subscriber: FileEvents,
        watched: Mapping[int, WatchedNames],
        *,
        before: Mapping[int, WatchedNames],
        added: Collection[int],
    ) -> None:
        """Keep watches for a subscriber, and tell it of events on their names only.

        Args:
          subscriber: who needs the watches.
          watched: the watches that it needs from now on.
          before: the watches that it has needed so far.
          added: the watches that its scan has added. Of these and of ``before``, what nobody needs is removed.
        """
        self._told_everything.discard(subscriber)
        if before != watched:
            for wd, names in before.items():
                self._leave(subscriber, wd, names)
            for wd, names in watched.items():
                self._join(subscriber, wd, names)
        for wd in before.keys() | added:
            watch = self._watches.get(wd)
            if watch is None or not watch.holders:
                self._watches.pop(wd, None)
                self.remove(wd)

    def _join(self, subscriber: FileEvents, wd: int, names: WatchedNames) -> None:
        watch = self._watches.setdefault(wd, _Watch())
        watch.holders.add(subscriber)
        for pattern, _ in names.files | names.directories:
            watch.by_pattern.setdefault(pattern, set()).add(subscriber)
        for name in names.names:
            watch.by_name.setdefault(name, set()).add(subscriber)

    def _leave(self, subscriber: FileEvents, wd: int, names: WatchedNames) -> None:
        watch = self._watches.get(wd)
        if watch is None:
            return
        watch.holders.discard(subscriber)
        for pattern, _ in names.files | names.directories:
            _remove(watch.by_pattern, pattern, subscriber)
        for name in names.names:
            _remove(watch.by_name, name, subscriber)


def _remove(subscribers: dict[K, set[FileEvents]], key: K, subscriber: FileEvents) -> None:
    others = subscribers.get(key)
    if others is not None:
        others.discard(subscriber)
        if not others:
            del subscribers[key]


class FileEvents:
    """What one subscriber is told of the file system. Made by :meth:`Watcher.subscribe`.

    A scan is bracketed by :meth:`scan_started` and :meth:`scan_ended`; :meth:`changed` waits for what to scan next.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._watched: Mapping[int, WatchedNames] = {}
        self._added: list[int] = []  # by the scan that runs; its thread appends to it
        self._closed = False
        self._recorded: dict[tuple[int, str], int] | None = None  # the bits of events, while a scan runs
        self._anything = False
        self._ready: set[str] = set()
        self._written: set[str] = set()
        self._written_since = 0.0
        self._change = trio.lowlevel.ParkingLot()

    def watch(self, path: str) -> int:
        """Watch a directory and return its watch descriptor. Called in the thread of a scan; may hang.

        Raises:
          OSError: it can't be watched.
        """
        wd = self._watcher.add(path)
        self._added.append(wd)
        if self._closed:
            # The scan was left behind, and nobody else will remove the watch. Subscribers that need it are told of
            # the removal, and set it again.
            self._watcher.remove(wd)
        return wd

    def scan_started(self) -> None:
        """Record every event from now on."""
        self._recorded = {}
        self._watcher.tell_everything(self)

    def scan_ended(self, watched: Mapping[int, WatchedNames]) -> None:
        """Keep the watches that the scan needs, give up the others, and take from the recorded events what matters."""
        added, self._added = self._added, []
        before, self._watched = self._watched, watched
        self._watcher.hold(self, watched, before=before, added=added)
        recorded, self._recorded = self._recorded or {}, None
        for (wd, name), mask in recorded.items():
            self.notice(Event(wd, mask, name))

    async def changed(self) -> Set[str] | None:
        """Wait for changes, and return the paths and patterns to read again; ``None`` means all.

        If a file is being written, this waits until it is closed, but not for long. Cancellation loses nothing.
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
        """Forget the changes so far, because everything is about to be read."""
        self._anything = False
        self._ready = set()
        self._written = set()

    # For the watcher.

    def notice(self, event: Event) -> None:
        """Take an event: record it while a scan runs, otherwise note what has to be read again because of it."""
        if self._recorded is not None:
            self._record(event, self._recorded)
            return
        names = self._watched.get(event.wd)
        if names is None:
            return
        if event.mask & _DIRECTORY_ITSELF:
            self._anything = True
        else:
            paths_and_patterns = names.paths_and_patterns(event.name)
            if not paths_and_patterns:
                return
            if event.mask & _MASK & ~_BEING_WRITTEN or event.mask & IN_ISDIR:
                self._ready |= paths_and_patterns
                self._written -= paths_and_patterns
            else:
                if not self._written:
                    self._written_since = trio.current_time()
                self._written |= paths_and_patterns
        self._change.unpark_all()

    def overflowed(self) -> None:
        """Note that events were lost, so anything may have changed."""
        if self._recorded is not None:
            self._recorded.clear()
        self._anything = True
        self._change.unpark_all()

    def close(self) -> None:
        """Give up all watches."""
        self._closed = True
        # A thread that was left behind may still append to the list. It can't do so during `copy`, but it could during
        # an iteration. A watch that it appends after the copy it also removes, because it looks at `_closed` last.
        added = self._added.copy()
        self._watcher.hold(self, {}, before=self._watched, added=added)

    def _record(self, event: Event, recorded: dict[tuple[int, str], int]) -> None:
        if len(recorded) >= _RECORD_LIMIT:
            self.overflowed()
        elif not self._anything:
            key = (event.wd, event.name)
            recorded[key] = recorded.get(key, 0) | event.mask


def _open() -> Kernel:
    from inotify_simple import INotify

    inotify: Kernel = INotify(nonblocking=True)
    return inotify


@asynccontextmanager
async def open_watcher() -> AsyncIterator[Watcher]:
    """Open an inotify instance, and read its events until the body ends.

    Raises:
      WatchError: there is no inotify here, or the limit on its instances is reached.
    """
    try:
        # In a thread, because the first use searches for the C library, which takes 20 ms.
        inotify = await trio.to_thread.run_sync(_open, limiter=trio.CapacityLimiter(1))
    except ImportError:
        raise WatchError("there is no inotify on this system") from None
    except OSError as error:
        full = "fs.inotify.max_user_instances or the open files are used up" if error.errno == errno.EMFILE else ""
        raise WatchError(f"inotify: {full or error.strerror}") from None
    try:
        watcher = Watcher(inotify)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.read_events)
            try:
                yield watcher
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            # In a thread, because the kernel takes 10 ms; without waiting for one of the application's threads.
            await trio.to_thread.run_sync(inotify.close, limiter=trio.CapacityLimiter(1))
