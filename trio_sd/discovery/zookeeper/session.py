"""One ZooKeeper session, as Trio sees it.

Theory of operation
===================

kazoo runs the connection in a thread of its own (:mod:`.link`). What happens there, answers, watch events and changes
of state, is appended to one list and handed over with ``run_sync_soon``, in the order in which it happened. That order
is what correctness rests on: a server sends the event of a change before any answer that shows the change, so at the
moment when an answer is read, every event that belongs to it has been recorded.

Each *follower*, one a discoverer, has a record of what it has to look at: the znodes below its roots for which events
came, or that the connection was lost or made again. It takes the record when it is ready to, through a channel of
capacity one; until then, events melt into it. So nothing queues, however slow a follower is, and ten thousand changes
of one znode are one entry.

The server's watches belong to the connection: whoever hears :class:`Connected` sets its watches, and then reads.

One session serves any number of followers. What they ask for shares one window of requests under way, so kazoo's
queue stays short, and each request has its deadline.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import trio

from ...errors import DiscoveryError
from .ensemble import Ensemble
from .events import Changed, Closed, Connected, ConnectionEvent, Disconnected, Expired, LateError, LostError
from .link import Delivery, Link, lost_or_refused
from .protocol import (
    NO_NODE,
    Answer,
    EventType,
    ProtocolError,
    Read,
    Refusal,
    Reply,
    Request,
    ZnodeEvent,
    add_watch,
    answer_of,
    answers_of,
    multi_read,
    remove_watches,
    single_read,
)

__all__ = ["Follower", "Session", "SessionStatistics", "open_session"]

logger = logging.getLogger(__name__)

_WINDOW: Final = 128  # requests under way
_BATCHES: Final = 4  # multiReads of one reader under way
_SINGLES: Final = 64  # single reads of one reader under way
_BATCH: Final = 500  # reads in a multiRead, at the most
_UTF8: Final = 3  # bytes of a character, at the most: ZooKeeper takes no other ones in a path
_TURN: Final = 100  # answers that are taken before other tasks get their turn: some milliseconds of parsing
_REQUEST_BYTES: Final = 256 * 1024  # paths in a multiRead; a server hangs up at 1 MB
_BATCH_BYTES: Final = 2 * 1024 * 1024  # what a multiRead should answer at the most; a znode may have 1 MB
_FIRST_BATCH: Final = 8  # reads in the first multiRead of many, whose sizes nobody knows
_DRAIN: Final = 1_000  # deliveries that are taken over in one step of the Trio loop
_GRACE: Final = 2.0  # seconds for a server to end the session
_CONNECTING_GRACE: Final = 0.5  # the same where there is no connection: one that is being made may have a session
_ABORT_GRACE: Final = 2.0  # seconds for kazoo's thread to end once it was told to drop everything
_PARTING: Final = 1.0  # seconds for taking back the watches of a follower that leaves
_LOSSES: Final = 2  # connections lost over a new operation before it is taken to be the cause


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """How a session fares.

    Attributes:
      connected: whether there is a connection now.
      trouble: why there is none; empty if there is one.
      session_id: the present session's number on the server, 0 before the first.
      connections: how often a connection was made.
      expirations: how often the session ended on the server.
      followers: discoverers that use it.
      events: watch events that arrived.
      requests: requests that were sent.
    """

    connected: bool
    trouble: str
    session_id: int
    connections: int
    expirations: int
    followers: int
    events: int
    requests: int


class _Pending:
    """A request under way."""

    def __init__(self, hand_over: Callable[[_Pending], None]) -> None:
        self.arrived = trio.Event()
        self.outcome: Reply | Refusal | LostError | None = None
        self._hand_over = hand_over
        self._received: Reply | Refusal | LostError | None = None

    def set(self, reply: Reply | None) -> None:
        """Take the answer. Called on kazoo's thread."""
        self._received = reply or Refusal(NO_NODE)
        self._hand_over(self)

    def set_exception(self, error: Exception) -> None:
        """Take what came instead. Called on kazoo's thread."""
        self._received = lost_or_refused(error)
        self._hand_over(self)

    def settle(self, outcome: Reply | Refusal | LostError | None = None) -> None:
        """Wake up who waits, with what was received or with ``outcome``."""
        self.outcome = outcome or self._received
        self.arrived.set()


class _Operation:
    """Whether the servers know an operation that came with ZooKeeper 3.6.

    An older server answers that it knows no such thing, and drops the connection; what stands between may do the
    latter only. So an operation over which connections are lost, and that never worked, counts as unknown too.
    """

    def __init__(self) -> None:
        self.usable = True
        self._refused = False
        self._worked = False
        self._lost_on: set[int] = set()

    def refused(self) -> None:
        """Note that the server does not do it."""
        self.usable = False
        self._refused = True

    def worked(self) -> None:
        """Note that it was answered."""
        self._worked = True

    def lost(self, connection: int) -> None:
        """Note that the connection of this number was lost before it was answered."""
        self._lost_on.add(connection)
        if not self._worked and len(self._lost_on) >= _LOSSES:
            self.usable = False

    def forgive(self) -> None:
        """Try once more, if the losses were all that spoke against it: a bad day of the network may be over."""
        if self._lost_on:
            self.usable = self.usable or not self._refused
            self._lost_on.clear()


class Session:
    """A session that is open; :func:`open_session` makes it."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._timeout = ensemble.timeout
        self._token = trio.lowlevel.current_trio_token()
        self._inbox: deque[Delivery | _Pending] = deque()
        self._link = Link(ensemble, self._hand_over)
        self._window = trio.Semaphore(_WINDOW)
        self._under_way: set[_Pending] = set()
        self._followers: dict[str, set[Follower]] = {}  # by each of their roots
        self._follower_count = 0
        self._state: ConnectionEvent | None = None
        self._session_id = 0
        self._connections = self._expirations = self._events = self._requests = 0
        self._ended = trio.Event()
        self._why_ended = ""
        self._closing = False
        self._read_completely = False
        self.recursive_watches = _Operation()
        """Whether the servers know ``addWatch``."""
        self.batched_reads = _Operation()
        """Whether the servers know ``multiRead``."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return type(self._state) is Connected

    @property
    def trouble(self) -> str:
        """Why there is no connection; empty if there is one."""
        if self.connected:
            return ""
        reason = self._link.last_trouble or "no server has answered yet"
        return f"not connected to {self._ensemble}: {reason}"

    @property
    def session_id(self) -> int:
        """The present session's number on the server; 0 before the first."""
        return self._session_id

    def statistics(self) -> SessionStatistics:
        """Return the state of this moment."""
        return SessionStatistics(
            connected=self.connected,
            trouble=self.trouble,
            session_id=self._session_id,
            connections=self._connections,
            expirations=self._expirations,
            followers=self._follower_count,
            events=self._events,
            requests=self._requests,
        )

    # What kazoo's thread hands over

    def _hand_over(self, delivery: Delivery | _Pending) -> None:
        """Pass ``delivery`` to Trio's thread. Called on kazoo's thread."""
        self._inbox.append(delivery)
        with suppress(trio.RunFinishedError):  # kazoo's thread was left behind, and nobody listens any more
            self._token.run_sync_soon(self._drain, idempotent=True)

    def _drain(self) -> None:
        for _ in range(min(len(self._inbox), _DRAIN)):
            delivery = self._inbox.popleft()
            if type(delivery) is _Pending:
                self._settle(delivery)
            elif type(delivery) is ZnodeEvent:
                self._events += 1
                self._dispatch(delivery)
            elif isinstance(delivery, ProtocolError):
                self._end(str(delivery))
            else:
                self._change_state(delivery)  # type: ignore[arg-type]  # mypy does not narrow by `type() is`
        if self._inbox:  # others get their turn
            self._token.run_sync_soon(self._drain, idempotent=True)

    def _settle(self, pending: _Pending, outcome: LostError | None = None) -> None:
        if pending in self._under_way:  # it may have been given up as lost
            self._under_way.remove(pending)
            self._window.release()
            pending.settle(outcome)

    def _dispatch(self, event: ZnodeEvent) -> None:
        """Record an event with all who follow its path or one above it."""
        path = event.path
        while True:
            for follower in self._followers.get(path, ()):
                follower._changed(event)
            if path == "/":
                return
            path = path.rpartition("/")[0] or "/"

    def _change_state(self, state: ConnectionEvent) -> None:
        if self._closing:
            return
        was_connected, self._state = self.connected, state
        for pending in tuple(self._under_way):
            self._settle(pending, LostError(f"the connection to {self._ensemble} was lost before the answer came"))
        match state:
            case Connected(session_id):
                if self._read_completely:
                    self._read_completely = False
                    self.recursive_watches.forgive()
                    self.batched_reads.forgive()
                logger.info("connected to %s, session %#x", self._ensemble, session_id)
                self._session_id = session_id
                self._connections += 1
            case Disconnected(reason):
                again = "still no connection" if self._connections else "no connection yet"
                what = "lost the connection" if was_connected else again
                logger.warning("%s to %s; targets that are known stay: %s", what, self._ensemble, reason)
            case Expired():
                logger.warning("the session with %s has expired; a new one is begun", self._ensemble)
                self._expirations += 1
                state = Disconnected("the session has expired")
            case Closed(reason):
                self._end(reason)
                state = Disconnected(reason)
        for follower in {follower for followers in self._followers.values() for follower in followers}:
            follower._connection_changed(state)

    def _end(self, reason: str) -> None:
        """Let the session fail."""
        self._why_ended = reason
        self._ended.set()

    async def _wait_ended(self) -> None:
        """Wait until the session can't go on.

        Raises:
          DiscoveryError: it can't.
        """
        await self._ended.wait()
        raise DiscoveryError(f"the session with {self._ensemble} has ended: {self._why_ended}")

    # What followers ask for

    async def _make_room(self) -> None:
        """Wait until one more request may be under way, and claim its place.

        There is no deadline: this waits for the answers to others, who have one, and ends with the connection.

        Raises:
          LostError: there is no connection.
        """
        await self._window.acquire()
        if not self.connected:
            self._window.release()
            raise LostError(self.trouble)

    def _send(self, request: Request) -> _Pending:
        """Send a request in the place that was made for it."""
        pending = _Pending(self._hand_over)
        self._under_way.add(pending)
        self._requests += 1
        self._link.send(request, pending)
        return pending

    async def _reply(self, pending: _Pending) -> Reply | Refusal:
        """Wait for the answer.

        Raises:
          LostError: the connection was lost before it came.
          LateError: it did not come in time.
        """
        with trio.move_on_after(self._timeout):
            await pending.arrived.wait()
        match pending.outcome:
            case None:
                raise self._late()
            case LostError() as error:
                raise error
            case outcome:
                return outcome

    def _late(self) -> LateError:
        return LateError(f"{self._ensemble} has not answered within {self._timeout:g} s")

    async def watch_recursively(self, roots: Sequence[str]) -> bool:
        """Set one watch on each of the ``roots`` and all below it; return whether the server does that.

        Raises:
          LostError: the connection was lost.
          LateError: an answer did not come in time.
        """
        if not self.recursive_watches.usable:
            return False
        connection = self._connections
        under_way: list[_Pending] = []
        try:
            for root in roots:
                await self._make_room()
                under_way.append(self._send(add_watch(root)))
            outcomes = [await self._reply(pending) for pending in under_way]
        except LostError:
            if under_way:
                self.recursive_watches.lost(connection)
            raise
        if any(isinstance(outcome, Refusal) for outcome in outcomes):
            self.recursive_watches.refused()
            return False
        self.recursive_watches.worked()
        return True

    def completed_full_read(self) -> None:
        """Note that a follower has read everything: the connection can be used."""
        self._read_completely = True

    async def read(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None], *, watch: bool
    ) -> None:
        """Read many znodes, and give each answer to ``take`` as it comes, in the order of ``reads``.

        Several requests are under way at a time, each with many reads where the server can. With ``watch``, each read
        sets a one-shot watch as well; there are no batches of those.

        Raises:
          LostError: the connection was lost.
          LateError: an answer did not come in time.
          ProtocolError: an answer can't be understood.
        """
        if watch or not self.batched_reads.usable or len(reads) == 1:
            await self._read_singly(reads, take, watch=watch)
        else:
            await self._read_in_batches(reads, take)

    async def _read_singly(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None], *, watch: bool
    ) -> None:
        under_way: deque[tuple[Read, str, _Pending]] = deque()
        position = 0
        while position < len(reads) or under_way:
            if position < len(reads) and len(under_way) < _SINGLES:
                what, path = reads[position]
                position += 1
                await self._make_room()
                under_way.append((what, path, self._send(single_read(what, path, watch=watch))))
                continue
            what, path, pending = under_way.popleft()
            outcome = await self._reply(pending)
            take(what, path, outcome if isinstance(outcome, Refusal) else answer_of(what, outcome))

    async def _read_in_batches(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None]
    ) -> None:
        under_way: deque[tuple[Sequence[tuple[Read, str]], _Pending]] = deque()
        position = 0
        size = _FIRST_BATCH
        while position < len(reads) or under_way:
            if position < len(reads) and len(under_way) < _BATCHES:
                batch = _fitting(reads, position, size)
                position += len(batch)
                await self._make_room()
                under_way.append((batch, self._send(multi_read(batch))))
                continue
            batch, pending = under_way.popleft()
            reply = await self._batch_reply(pending)
            answers = answers_of(batch, reply)
            for number, ((what, path), answer) in enumerate(zip(batch, answers, strict=True), 1):
                take(what, path, answer)
                if number % _TURN == 0:
                    await trio.lowlevel.checkpoint()
            # As many as should keep the answer within bounds; what comes may be larger than what came, so not at once.
            fitting = _BATCH_BYTES * len(batch) // max(1, len(reply.buffer) - reply.offset)
            size = max(1, min(2 * size, fitting, _BATCH))

    async def _batch_reply(self, pending: _Pending) -> Reply:
        connection = self._connections
        try:
            outcome = await self._reply(pending)
        except LostError:
            self.batched_reads.lost(connection)
            raise
        if isinstance(outcome, Refusal):
            self.batched_reads.refused()
            raise LostError(f"{self._ensemble} does not do multiRead")  # it drops the connection with that answer
        self.batched_reads.worked()
        return outcome

    @asynccontextmanager
    async def follow(self, roots: Collection[str]) -> AsyncIterator[Follower]:
        """Record what happens to the znodes ``roots`` and below, for as long as the block lasts.

        On leaving, the recursive watches of roots that nobody else follows are taken back; that takes a second at the
        most, and is not waited for where the session itself ends.
        """
        follower = Follower()
        if self._state is not None:
            follower._connection_changed(
                self._state if isinstance(self._state, Connected) else Disconnected(self.trouble)
            )
        for root in roots:
            self._followers.setdefault(root, set()).add(follower)
        self._follower_count += 1
        try:
            yield follower
        finally:
            self._follower_count -= 1
            for root in roots:
                self._followers[root].remove(follower)
                if not self._followers[root]:
                    del self._followers[root]
            # Without followers, the session is about to be closed, and its watches with it.
            if self._follower_count and self.connected and self.recursive_watches.usable:
                with trio.move_on_after(_PARTING) as scope:
                    scope.shield = True
                    await self._take_back_watches(roots)

    async def _take_back_watches(self, roots: Collection[str]) -> None:
        under_way = []
        try:
            for root in roots:
                await self._make_room()
                if root in self._followers:  # somebody has begun to follow it; the watch may have been set already
                    self._window.release()
                else:
                    under_way.append(self._send(remove_watches(root)))
            for pending in under_way:
                await self._reply(pending)
        except (LostError, LateError):
            pass  # watches end with the connection, and what they tell is passed over


def _fitting(reads: Sequence[tuple[Read, str]], position: int, size: int) -> Sequence[tuple[Read, str]]:
    """Return the reads from ``position`` on that go into one request: ``size`` of them, or fewer if paths are long."""
    batch = reads[position : position + size]
    lengths = accumulate(len(path) * _UTF8 for _, path in batch)
    return batch[: max(1, sum(length <= _REQUEST_BYTES for length in lengths))]


class Follower:
    """What one discoverer has to look at. :meth:`Session.follow` makes it."""

    def __init__(self) -> None:
        self._connection: Connected | Disconnected | None = None
        self._paths: dict[str, frozenset[EventType]] = {}
        # Capacity one: a full trigger already says that there is something.
        self._trigger, self._triggered = trio.open_memory_channel[None](1)

    def _pull_trigger(self) -> None:
        with suppress(trio.WouldBlock):
            self._trigger.send_nowait(None)

    def _changed(self, event: ZnodeEvent) -> None:
        self._paths[event.path] = self._paths.get(event.path, frozenset()) | {event.type}
        self._pull_trigger()

    def _connection_changed(self, state: Connected | Disconnected) -> None:
        self._connection = state
        self._paths.clear()  # with the next connection, everything is read
        self._pull_trigger()

    @property
    def changed_paths(self) -> Set[str]:
        """The znodes for which events came that were not taken yet."""
        return self._paths.keys()

    async def next_event(self) -> Connected | Disconnected | Changed:
        """Wait until there is something to look at, and take it.

        If the connection was lost and made again since the last event, only the latter is told. Nothing is lost when
        this is cancelled.
        """
        while True:
            await self._triggered.receive()
            if (connection := self._connection) is not None:
                self._connection = None
                if self._paths:
                    self._pull_trigger()
                return connection
            if self._paths:
                paths, self._paths = self._paths, {}
                return Changed(paths)


@asynccontextmanager
async def open_session(ensemble: Ensemble) -> AsyncIterator[Session]:
    """Open a session with ``ensemble``; it is connected, and connected again, in the background.

    On leaving, the session is ended on the server, and kazoo's thread and sockets are gone. If the server does not
    answer, that takes some seconds at the most; the session then ends on the server when its time is over. Only a
    thread that hangs in the resolver of names is left behind, and ends by itself.

    Raises:
      DiscoveryError: this kazoo can't be used; or, in an exception group, the session can't go on.
    """
    session = Session(ensemble)
    async with trio.open_nursery() as nursery:
        session._link.start()
        try:
            nursery.start_soon(session._wait_ended)
            yield session
        finally:
            nursery.cancel_scope.cancel()
            session._closing = True
            with trio.CancelScope(shield=True):
                await _close(session)


async def _close(session: Session) -> None:
    closed = trio.Event()

    async def close() -> None:
        # In a thread of its own, because it blocks: other work in threads must not delay it.
        await trio.to_thread.run_sync(session._link.close, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with trio.move_on_after(_GRACE if session.connected else _CONNECTING_GRACE):
            await closed.wait()
        if not closed.is_set():
            session._link.abort()
            with trio.move_on_after(_ABORT_GRACE):
                await closed.wait()
            if not closed.is_set():
                logger.warning("kazoo's thread does not end, and is left behind")
            nursery.cancel_scope.cancel()
