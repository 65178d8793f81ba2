"""The run loop of file discovery.

Theory of operation
===================

A *scan* (:mod:`.scan`) goes through the patterns, sets watches on everything on the way, and reads the files that may
have changed. It runs in a worker thread, because any system call on a path may hang, on a network file system for
ever. The loop is: scan, send what differs, wait until something changes or the refresh interval is over, scan again.

- A scan watches a directory before it reads it, so no change between two scans is missed. The :mod:`.watcher` records
  the events that arrive during a scan; together they cause one more scan.
- An event says only *what* may have changed. What it is now, a scan finds out. So editors may write files in any way,
  and the kernel may merge events.
- The refresh interval limits the wait: after it, everything is read again. If directories can't be watched, this is
  the only way to see changes; the notes say so, and each interval tries again to watch.
- A file that can't be used keeps its last good groups, and its error is reported. While a scan hangs, all files keep
  theirs: nothing is sent until the scan returns, and no second one is started.
- If a file can't be used in the first scan, the groups of the previous run stand in for it, so a reload loses nothing.
  For this, the loop starts with the files of the previous run as if a scan had found them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager

import trio

from ...discoverer import DiscovererOptions, DiscovererStatistics
from ...targets import TargetGroup
from .parse import Parse, parse_again
from .result import File, ScanResult, all_groups, changes, restore
from .scan import ScanRequest, scan
from .watcher import FileEvents, Watcher, WatchError, open_watcher
from .workers import DEADLINE, open_workers, run_sync

__all__ = ["FileDiscoverer"]

logger = logging.getLogger(__name__)

_FIRST_RETRY = 1.0  # seconds after an error that may pass; doubles, up to the refresh interval

_Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


class FileDiscoverer:
    """Finds targets in files, and follows the changes of those files.

    Args:
      files: paths and patterns.
      refresh_interval: after so many seconds, everything is read again.
      options: what the engine hands over.
      parse: makes target groups of a file's content; called in a thread.
      opener: opens the source of file events, which all discoverers of a manager share.
    """

    def __init__(
        self,
        files: Sequence[str],
        refresh_interval: float,
        options: DiscovererOptions,
        *,
        parse: Parse = parse_again,
        opener: Callable[[], AbstractAsyncContextManager[Watcher]] = open_watcher,
    ) -> None:
        self._patterns = tuple(files)
        self._refresh_interval = refresh_interval
        self._options = options
        self._parse = parse
        self._opener = opener
        self._result = ScanResult()
        self._known: Mapping[str, File] = {}
        self._synced = False
        self._overdue = False
        self._unwatched = ""
        self._logged: set[str] = set()
        self._scans = self._reads = self._decoded = self._read_errors = 0
        self._scan_time = 0.0

    def statistics(self) -> DiscovererStatistics:
        """Return what fails at present, what an operator should know, and how much was done."""
        errors = self._result.all_errors()
        if self._overdue:
            errors = (f"reading {', '.join(self._patterns)} has not returned for {DEADLINE:g} s", *errors)
        notes = tuple(self._result.notes)
        if self._unwatched:
            notes = (f"{self._unwatched}; the files are read every {self._refresh_interval:g} s", *notes)
        files = self._result.files.values()
        counters = {
            "files": len(files),
            "bad_files": sum(file.error is not None for file in files),
            "watches": len(self._result.watched),
            "scans": self._scans,
            "scan_microseconds": round(self._scan_time * 1e6),
            "reads": self._reads,
            "decoded": self._decoded,
            "read_errors": self._read_errors,
        }
        return DiscovererStatistics(errors, notes, counters)

    async def run(self, updates: _Updates) -> None:
        """Send the groups of all files, then what changes, until cancelled.

        Cancellation leaves no watch and no file open. A thread that hangs in the kernel is left behind.

        Args:
          updates: where groups are sent; the source of each is ``path:index``.
        """
        resources = self._options.resources
        if known := self._options.last_known():
            # In a thread, because there may be many groups.
            self._known = await trio.to_thread.run_sync(restore, known, limiter=trio.CapacityLimiter(1))
        async with resources.use(("file workers",), open_workers) as limiter:
            while True:
                try:
                    async with resources.use(("inotify",), self._opener) as watcher:
                        self._unwatched = ""
                        with watcher.subscribe() as events:
                            await self._follow(updates, limiter, events)
                except WatchError as error:
                    self._unwatched = str(error)
                await self._scan_once(updates, limiter, None, None)
                await trio.sleep(self._refresh_interval)

    async def _follow(self, updates: _Updates, limiter: trio.CapacityLimiter, events: FileEvents) -> None:
        """Scan, wait for changes, scan again; for ever."""
        refresh_at = -math.inf
        retry_after = _FIRST_RETRY
        changed: Set[str] | None = None
        late = False
        while True:
            if changed is None:
                events.forget()
                refresh_at = trio.current_time() + self._refresh_interval
            was_late = late
            late = await self._scan_once(updates, limiter, events, changed)
            changed = None
            # What a scan saw before it hung may be long out of date, so another full scan follows at once. If that is
            # late too, the file system is just slow.
            if late and not was_late:
                continue
            deadline = refresh_at
            if self._result.may_pass:  # no event will tell that there are file descriptors again
                deadline = min(refresh_at, trio.current_time() + retry_after)
            retry_after = retry_after * 2 if self._result.may_pass else _FIRST_RETRY
            with trio.CancelScope(deadline=deadline):
                changed = await events.changed()

    async def _scan_once(
        self,
        updates: _Updates,
        limiter: trio.CapacityLimiter,
        events: FileEvents | None,
        changed: Set[str] | None,
    ) -> bool:
        """Scan once and send what is new; return whether the scan was overdue."""
        abandoned = False
        request = ScanRequest(
            patterns=self._patterns,
            before=self._known,
            changed=changed,
            watch=events.watch if events else None,
            limits=self._options.limits,
            stopped=lambda: abandoned,
            parse=self._parse,
        )
        try:
            result, groups = await run_sync(
                lambda: self._scan_and_compare(request),
                limiter,
                on_start=events.scan_started if events else lambda: None,
                on_overdue=self._scan_is_overdue,
            )
        finally:
            abandoned = True
        late, self._overdue = self._overdue, False
        if events:
            events.scan_ended(result.watched)
        self._result = result
        self._known = result.files
        self._scans += 1
        self._reads += result.reads
        self._decoded += result.decoded
        self._read_errors += result.read_errors
        self._log_news()
        if self._synced:
            # Sending no groups says "scanned again, nothing changed". A scan that failed in part can't say that.
            if groups or not result.all_errors():
                await updates.send(groups)
        elif result.can_be_sent_first():
            await updates.send(groups)
            self._synced = True
        return late

    def _scan_and_compare(self, request: ScanRequest) -> tuple[ScanResult, list[TargetGroup]]:
        """Scan, and work out which groups to send. Called in the thread."""
        began = time.perf_counter()
        result = scan(request)
        self._scan_time += time.perf_counter() - began
        groups = changes(request.before, result.files) if self._synced else all_groups(result.files)
        return result, groups

    def _scan_is_overdue(self) -> None:
        self._overdue = True
        self._log_news()

    def _log_news(self) -> None:
        """Log each error and note once when it appears, and once when it is gone."""
        statistics = self.statistics()
        logged, self._logged = self._logged, {*statistics.errors, *statistics.notes}
        for text in sorted(self._logged - logged):
            logger.warning("%s", text)
        for text in sorted(logged - self._logged):
            logger.info("no longer: %s", text)
