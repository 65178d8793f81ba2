"""The run loop of file discovery.

Theory of operation
===================

A *look* (:mod:`.scan`) walks the patterns, sets watches on everything on the way, and reads the files that may have
changed. It runs in a worker thread, because any call on a path may hang, on a network file system for ever. The loop
is: look, send what differs, wait until something changes or the refresh interval is over, look again.

- Every watch is set before what it watches is looked at, so nothing can change unseen between two looks; events that
  arrive during a look are recorded by the :mod:`.watcher` and cause exactly one more.
- Events say *what* may have changed, never what it is now; only a look says that. So it does not matter which of the
  many ways an editor has to write a file was taken, or that events melt together.
- The refresh interval is a deadline on the wait, and the safety net: everything is read again. Where directories
  can't be watched it is all there is; that is told in the notes, and watching is tried again each time.
- A file that can't be used keeps its last good groups, and its error is told. So does one whose look hangs: nothing
  is sent until the look returns, and no second one is started.
- The groups of the run before this one stand in for files that can't be used in the first look, so a reload loses
  nothing. The state that a look compares with is then simply not empty at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager

import trio

from ...discoverer import DiscovererOptions, DiscovererStatistics
from ...targets import TargetGroup
from .findings import File, Findings, all_groups, changes, restore
from .scan import Request, scan
from .watcher import Subscription, Watcher, WatchError, open_watcher
from .workers import DEADLINE, Work, open_workers

__all__ = ["FileDiscoverer"]

_Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


class FileDiscoverer:
    """Finds targets in files, and follows the changes of those files.

    Args:
      files: paths and patterns.
      refresh_interval: seconds between two readings of everything.
      options: what the engine hands over.
      look: looks at the file system; in a thread.
      opener: opens what tells of file events; shared by all discoverers of a manager.
    """

    def __init__(
        self,
        files: Sequence[str],
        refresh_interval: float,
        options: DiscovererOptions,
        *,
        look: Callable[[Request], Findings] = scan,
        opener: Callable[[], AbstractAsyncContextManager[Watcher]] = open_watcher,
    ) -> None:
        self._patterns = tuple(files)
        self._refresh_interval = refresh_interval
        self._options = options
        self._look = look
        self._opener = opener
        self._findings = Findings()
        self._known: Mapping[str, File] = {}
        self._synced = False
        self._overdue = False
        self._unwatched = ""
        self._looks = self._reads = self._decoded = self._read_errors = 0

    def statistics(self) -> DiscovererStatistics:
        """Return what fails at present, what should be known, and how much was done."""
        errors = self._findings.all_errors()
        if self._overdue:
            errors = (f"reading {', '.join(self._patterns)} has not returned for {DEADLINE:g} s", *errors)
        notes = tuple(self._findings.notes)
        if self._unwatched:
            notes = (f"{self._unwatched}; the files are read every {self._refresh_interval:g} s", *notes)
        files = self._findings.files.values()
        counters = {
            "files": len(files),
            "bad_files": sum(file.error is not None for file in files),
            "watches": len(self._findings.interests),
            "scans": self._looks,
            "reads": self._reads,
            "decoded": self._decoded,
            "read_errors": self._read_errors,
        }
        return DiscovererStatistics(errors, notes, counters)

    def modified(self) -> Mapping[str, int]:
        """Return when each file that was read had last been modified, in seconds since 1970, by its path."""
        return {path: file.modified for path, file in self._findings.files.items() if file.modified is not None}

    async def run(self, updates: _Updates) -> None:
        """Send the groups of all files, then what changes, until cancelled.

        Cancellation leaves no watch and no file open. A thread that hangs in the kernel is left behind.

        Args:
          updates: where groups go; a file's groups have the sources ``path:index``.
        """
        resources = self._options.resources
        self._known = await trio.to_thread.run_sync(restore, self._options.last_known())
        async with resources.use(("file workers",), open_workers) as limiter:
            while True:
                try:
                    async with resources.use(("inotify",), self._opener) as watcher:
                        self._unwatched = ""
                        with watcher.subscribe() as subscription:
                            await self._follow(updates, limiter, subscription)
                except WatchError as error:
                    self._unwatched = str(error)
                await self._examine(updates, limiter, None, None)
                await trio.sleep(self._refresh_interval)

    async def _follow(self, updates: _Updates, limiter: trio.CapacityLimiter, subscription: Subscription) -> None:
        """Look, wait for changes, look again; for ever."""
        refresh_at = -math.inf
        dirty: Set[str] | None = None
        late = False
        while True:
            if dirty is None:
                subscription.forget()
                refresh_at = trio.current_time() + self._refresh_interval
            subscription.record()
            was_late = late
            late = await self._examine(updates, limiter, subscription, dirty)
            dirty = None
            # What the file system said before it hung may be long out of date; but if it is just slow, once is enough.
            if not late or was_late:
                with trio.CancelScope(deadline=refresh_at):
                    dirty = await subscription.changed()

    async def _examine(
        self,
        updates: _Updates,
        limiter: trio.CapacityLimiter,
        subscription: Subscription | None,
        dirty: Set[str] | None,
    ) -> bool:
        """Look once and send what is new; return whether the look was overdue."""
        abandoned = False
        request = Request(
            patterns=self._patterns,
            before=self._known,
            dirty=dirty,
            watch=subscription.add if subscription else None,
            limits=self._options.limits,
            stopped=lambda: abandoned,
        )
        try:
            findings, groups = await Work(lambda: self._compare(request), limiter, self._told_overdue).result()
        finally:
            abandoned = True
        late, self._overdue = self._overdue, False
        if subscription:
            subscription.keep(findings.interests)
        self._findings = findings
        self._known = findings.files
        self._looks += 1
        self._reads += findings.reads
        self._decoded += findings.decoded
        errors = findings.all_errors()
        self._read_errors += findings.read_errors
        if self._synced:
            # No groups say "looked again, nothing changed", which a look that failed in part can't say.
            if groups or not errors:
                await updates.send(groups)
        elif findings.is_news():
            await updates.send(groups)
            self._synced = True
        return late

    def _compare(self, request: Request) -> tuple[Findings, list[TargetGroup]]:
        """Look, and work out what to send; in the thread."""
        findings = self._look(request)
        groups = changes(request.before, findings.files) if self._synced else all_groups(findings.files)
        return findings, groups

    def _told_overdue(self) -> None:
        self._overdue = True
