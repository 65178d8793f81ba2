"""The run loop of ZooKeeper discovery.

Theory of operation
===================

The loop waits for what its :class:`~.session.Follower` tells, finds out by reading what it means, and sends what
differs as one update.

- A connection is there: set the watches, then read everything (a *full read*). Watches come first, so no change
  between the two is missed. What differs from what was known is one update.
- A watch was triggered: read what it names. An event says only *what* may have changed; what it is now, a read finds
  out, so events that come while reading merely cause one more read.
- The connection is lost: nothing. What is known stays true until something else was read.
- The refresh interval is over: read everything, although nothing was told. What differs, and is not about to be told
  by an event that has arrived meanwhile, is *mended*, and counted. It should be nothing, ever.

A server from 3.6 on keeps one recursive watch a root, which stays set and tells of every znode below; after the first
time, only data are read. On an older one each znode has a watch for its data, and one for its children if it can have
any; they are set by the reads themselves, and each ends when it is triggered.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence, Set
from typing import TYPE_CHECKING, Final

import trio

from ...discoverer import DiscovererOptions, DiscovererStatistics
from ...extras import require
from ...messages import quote
from ...targets import TargetGroup
from .ensemble import Ensemble
from .events import Changed, Connected, Disconnected, LateError, LostError, RefusedError
from .members import Parse
from .protocol import EventType, ProtocolError, Read
from .tree import Tree, above, excerpt
from .walk import Walk

if TYPE_CHECKING:
    from .session import Follower, Session

__all__ = ["ZooKeeperDiscoverer"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0  # seconds after a read that failed; doubles each time
_LONGEST_PAUSE: Final = 10.0  # and is never longer than this, or the refresh interval
_FREE_LOSSES: Final = 3  # connections that may be lost over a full read before there is a pause
_LOGGED: Final = 20  # troubles and notes that are logged one by one, of those that were found at once

_Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


class ZooKeeperDiscoverer:
    """Finds members at and below some znodes, and follows their changes.

    Args:
      ensemble: the servers; all discoverers of one manager with an equal one share a session.
      roots: the znodes to begin at, none of which lies below another.
      chroot: what stands before each path on the servers; empty if nothing does.
      parse: makes a member's labels.
      refresh_interval: seconds after which everything is read again, give or take a tenth.
      options: what the engine hands over.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        roots: Sequence[str],
        *,
        chroot: str,
        parse: Parse,
        refresh_interval: float,
        options: DiscovererOptions,
    ) -> None:
        self._ensemble = ensemble
        self._paths = tuple(roots)
        self._roots = tuple(chroot + root if root != "/" else chroot or "/" for root in roots)
        self._refresh_interval = refresh_interval
        self._resources = options.resources
        self._name = options.name
        self._rng = random.Random()
        self._tree = Tree(parse, chroot, options.last_known)
        self._session: Session | None = None
        self._recursive = True
        self._synced = False
        self._failure = ""
        self._logged: frozenset[str] = frozenset()
        self._pause = _FIRST_PAUSE
        self._losses = 0  # connections lost over reading since the last success
        self._read_in_session = 0  # the session in which everything was last read
        self._full_reads = self._mended = self._answers = 0

    def statistics(self) -> DiscovererStatistics:
        """Return what fails at present, what an operator should know, and how much was done."""
        tree = self._tree
        # What could not be read, and what is shown though it may be out of date, is an error; a payload that never
        # made sense is left out, and only noted.
        failing = [trouble for trouble in tree.troubles if trouble.stale or trouble.unread]
        left_out = [trouble for trouble in tree.troubles if not (trouble.stale or trouble.unread)]
        errors = [self._failure] if self._failure else []
        counters = {
            "znodes": len(tree),
            "members": tree.members,
            "stale_members": sum(trouble.stale for trouble in failing),
            "bad_members": len(left_out),
            "full_reads": self._full_reads,
            "answers": self._answers,
            "mended": self._mended,
            "recursive_watches": len(self._roots) if self._recursive and self._synced else 0,
        }
        if self._session is not None:
            session = self._session.statistics()
            if session.trouble:
                errors.insert(0, session.trouble)
            counters |= {
                "session_connections": session.connections,
                "session_expirations": session.expirations,
                "session_followers": session.followers,
                "session_events": session.events,
                "session_requests": session.requests,
            }
        return DiscovererStatistics((*errors, *excerpt(failing)), (*self._notes(), *excerpt(left_out)), counters)

    def _notes(self) -> Iterator[str]:
        if self._synced:
            for path, root in zip(self._paths, self._roots, strict=True):
                if root not in self._tree:
                    yield f"znode {quote(path)} does not exist"
            if not self._recursive:
                yield "the server has no recursive watches; each znode is watched by itself"

    async def run(self, updates: _Updates) -> None:
        """Send the members of all roots, then what changes, until cancelled.

        Cancellation leaves no watch behind, and if nobody else uses the session, no session and no thread.

        Args:
          updates: where groups are sent; the source of each is its znode's path.

        Raises:
          DiscoveryError: kazoo is missing, or the session can't go on.
        """
        require("kazoo", "ZooKeeper discovery", "zookeeper")
        from .session import open_session

        async with (
            self._resources.use(self._ensemble, lambda: open_session(self._ensemble)) as session,
            session.follow(self._roots) as follower,
        ):
            self._session = session
            await self._follow(updates, session, follower)

    async def _follow(self, updates: _Updates, session: Session, follower: Follower) -> None:
        """Take one event after the other; for ever."""
        current = False  # whether the watches are set and everything was read since
        read_all_at = math.inf
        while True:
            event: Connected | Disconnected | Changed | None = None
            with trio.move_on_at(read_all_at):
                event = await follower.next_event()
            if type(event) is Disconnected:
                current, read_all_at = False, math.inf
                continue
            if type(event) is Changed and not current:  # the server is alive: don't wait longer than need be
                read_all_at = min(read_all_at, trio.current_time() + _FIRST_PAUSE)
                continue
            try:
                if type(event) is Changed:
                    await self._look_at(session, event)
                else:
                    await self._pause_after_losses()
                    await self._read_all(session, follower, reconcile=current and event is None)
                    current, read_all_at = True, trio.current_time() + self._next_refresh()
            except (LostError, LateError, RefusedError, ProtocolError) as error:
                current = False
                read_all_at = self._failed(error, session)
                continue
            self._failure, self._pause, self._losses = "", _FIRST_PAUSE, 0
            await self._send(updates, full=type(event) is not Changed)

    def _next_refresh(self) -> float:
        return self._refresh_interval * self._rng.uniform(0.9, 1.1)

    async def _pause_after_losses(self) -> None:
        """Wait, if full reads were broken off again and again: perhaps it is they what breaks the connection."""
        if self._losses > _FREE_LOSSES:
            doubled = min(self._losses - _FREE_LOSSES - 1, 10)
            await trio.sleep(min(_FIRST_PAUSE * 2.0**doubled, _LONGEST_PAUSE))

    def _failed(self, error: Exception, session: Session) -> float:
        """Note that a read failed, and return when to try again."""
        if isinstance(error, LostError):
            self._losses += 1
        if not session.connected:
            return math.inf  # an event will tell when it is
        if not self._failure:
            logger.warning("%s: %s; what was found stays", self._name, error)
        self._failure = str(error)
        pause = min(self._pause, _LONGEST_PAUSE, self._refresh_interval)
        self._pause *= 2
        return trio.current_time() + pause

    async def _read_all(self, session: Session, follower: Follower, *, reconcile: bool) -> None:
        """Set the watches, and read everything; with ``reconcile``, count what watches should have told of."""
        self._recursive = await session.watch_recursively(self._roots)  # changes nothing where they are set
        session_id = session.session_id  # another one may have begun when this is done; with that, all is read again
        self._tree.begin_full_read(trusting=session_id == self._read_in_session)
        await self._walk(session, [(Read.DATA, root) for root in self._roots], full=True)
        self._tree.end_full_read()
        self._log_troubles()
        if not self._synced:
            self._require_roots()
        session.completed_full_read()
        self._read_in_session = session_id
        self._full_reads += 1
        if reconcile:
            mended = self._untold(follower.changed_paths)  # an event arrives before any answer that shows the change
            if mended:
                self._mended += len(mended)
                logger.error("%s: %d znodes had changed without an event: %s …", self._name, len(mended), mended[0])

    def _untold(self, told: Set[str]) -> list[str]:
        """Return the znodes that have changed though no event told so.

        A recursive watch tells of each znode; one-shot watches tell of new ones by the nearest that was there before.
        """
        if self._recursive:
            return [path for path in self._tree.changed_paths if path not in told]
        return [path for path in self._tree.changed_paths if told.isdisjoint((path, *above(path)))]

    def _require_roots(self) -> None:
        """Check that no root is unknown because it may not be read: that would be taken for "nothing there".

        Raises:
          RefusedError: one is.
        """
        for trouble in self._tree.troubles:
            if trouble.unread and not trouble.stale and trouble.path in self._paths:
                raise RefusedError(f"znode {quote(trouble.path)}: {trouble.reason}")

    async def _look_at(self, session: Session, changed: Changed) -> None:
        """Read what watches have told of."""
        reads = []
        for path, told in changed.paths.items():
            if EventType.DELETED in told:
                self._tree.remove(path)  # if it was created again, it is another one
            if self._recursive:
                if told != {EventType.DELETED}:
                    reads.append((Read.DATA, path))
            else:
                if told != {EventType.CHILDREN}:
                    reads.append((Read.DATA, path))
                if EventType.CHILDREN in told:
                    reads.append((Read.CHILDREN, path))
        await self._walk(session, reads, full=False)

    async def _walk(self, session: Session, reads: Sequence[tuple[Read, str]], *, full: bool) -> None:
        walk = Walk(session, self._tree, self._roots, watch=not self._recursive, full=full)
        try:
            await walk.run(reads)
        finally:
            self._answers += walk.count
            self._log_troubles()

    def _log_notes(self) -> None:
        """Log each note once when it appears, and once when it is gone."""
        logged, self._logged = self._logged, frozenset(self._notes())
        self._log(logging.WARNING, "", sorted(self._logged - logged))
        self._log(logging.INFO, "no longer: ", sorted(logged - self._logged))

    def _log_troubles(self) -> None:
        """Log each trouble once when it appears, and once when it is over."""
        self._log(logging.WARNING, "", self._tree.take_new_troubles())
        self._log(logging.INFO, "no longer: ", self._tree.take_ended_troubles())

    def _log(self, level: int, prefix: str, texts: Sequence[object]) -> None:
        for text in texts[:_LOGGED]:
            logger.log(level, "%s: %s: %s%s", self._name, self._ensemble, prefix, text)
        if len(texts) > _LOGGED:
            logger.log(level, "%s: %s: %s%d more like that", self._name, self._ensemble, prefix, len(texts) - _LOGGED)

    async def _send(self, updates: _Updates, *, full: bool) -> None:
        groups = self._tree.take_changes() if self._synced else self._tree.take_all()
        if groups or full:  # sending no groups says "looked again, nothing changed"
            await updates.send(groups)
        self._synced = True
        self._log_notes()
