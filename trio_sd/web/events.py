"""Server-sent events: every update as it happens, to each client at the pace at which it reads.

Each client is a subscriber of its own, so one that reads slowly skips states and holds up nobody. An event has the
JSON of a line of ``run --output jsonl``; ``event: state`` says that it is everything, ``event: update`` that it is what
changed. The ``id`` is the revision, after a few characters that tell one process from the next: a client that comes
back with it gets what changed since, if that state is still known, and everything if it is not.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from ..manager import Manager
from ..outputs.jsonl import GroupEncoder, encode_update
from ..snapshots import Snapshot, Update
from .streaming import cancel_when_gone, cancel_when_set

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "Remembered"]

T = TypeVar("T")

_HEARTBEAT: Final = 15.0
_PATIENCE: Final = 30.0  # seconds that a client has to take an event
_SNAPSHOTS: Final = 32
_ENCODED: Final = 16_000_000  # characters of groups that are kept encoded; some 60 MB with the groups
_WORTH_A_THREAD: Final = 200  # groups


class Remembered:
    """The states that clients were last sent, of one manager. Persistent maps, so they cost what differs.

    Attributes:
      run: tells this process from others.
      limiter: of the threads that encode.
      encode: encodes a group, once for all clients.
      turn: to be held by who makes the event of a whole state, which others may then send as well.
    """

    def __init__(self) -> None:
        self.run: Final = secrets.token_hex(4)
        self.limiter: Final = trio.CapacityLimiter(2)  # not the application's threads
        self.encode: Final = GroupEncoder(_ENCODED)
        self.turn: Final = trio.Lock()
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self._whole: tuple[Snapshot, bytes] | None = None

    def note(self, snapshot: Snapshot) -> str:
        """Remember a state that is sent, and return its identifier."""
        self._snapshots[snapshot.revision] = snapshot
        self._snapshots.move_to_end(snapshot.revision)
        if len(self._snapshots) > _SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return f"{self.run}-{snapshot.revision}"

    def whole(self) -> tuple[Snapshot, bytes] | None:
        """Return a state and the event that tells all of it, if what came after that state can still be told."""
        if self._whole is not None and self._whole[0].revision not in self._snapshots:
            self._whole = None
        return self._whole

    def keep_whole(self, snapshot: Snapshot, body: bytes) -> None:
        """Keep the event that tells all of a state."""
        self._whole = snapshot, body

    def forget_encoded(self) -> None:
        """Let go of what is kept because encoding it is work. Clients that come back are still known."""
        self._whole = None
        self.encode.forget()

    def find(self, identifier: str) -> Snapshot | None:
        """Return the state of that identifier, if it is still known."""
        run, _, revision = identifier.partition("-")
        if run != self.run or not (revision.isascii() and revision.isdigit() and len(revision) < 20):
            return None
        return self._snapshots.get(int(revision))


class EventStream:
    """An ASGI application that sends the updates of a manager to one client, until either ends.

    Args:
      manager: whose updates.
      relabel: whether targets come after relabeling.
      remembered: the states that clients were sent.
      last_seen: the identifier of the event that the client has seen last, or nothing.
      ending: set when the server ends.
    """

    def __init__(
        self, manager: Manager, *, relabel: bool, remembered: Remembered, last_seen: str, ending: trio.Event
    ) -> None:
        self._manager = manager
        self._relabel = relabel
        self._remembered = remembered
        self._last_seen = last_seen
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        async with (
            self._manager.subscribe(relabel=self._relabel, name="events") as updates,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            nursery.start_soon(cancel_when_set, self._ending, nursery.cancel_scope)
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with trio.move_on_after(_PATIENCE) as patience:
                await self._send_updates(updates, send, patience)
            nursery.cancel_scope.cancel()
        with trio.move_on_after(1):
            await send({"type": "http.response.body", "body": b""})

    async def _send_updates(
        self, updates: trio.MemoryReceiveChannel[Update], send: Send, patience: trio.CancelScope
    ) -> None:
        """Send until the manager is closed; the deadline of ``patience`` is moved on by each thing that was taken."""
        base = self._remembered.find(self._last_seen)
        told: Mapping[str, float] | None = None  # what was stale in what was sent last
        while True:
            patience.deadline = inf
            with trio.move_on_after(_HEARTBEAT) as quiet:
                try:
                    update = await updates.receive()
                except trio.EndOfChannel:
                    return
            patience.deadline = trio.current_time() + _PATIENCE
            if quiet.cancelled_caught:
                await _send_body(send, b": nothing new\n\n")
                continue
            if told is None:
                if base is None:
                    base, body = await self._whole(update)
                    await _send_body(send, body)
                    patience.deadline = trio.current_time() + _PATIENCE
                    told = base.stale
                update = await self._since(base, update.snapshot)
            if told is None or update.changes or update.snapshot.stale != told:
                told = update.snapshot.stale
                await _send_body(send, await self._event("update", update))

    async def _whole(self, update: Update) -> tuple[Snapshot, bytes]:
        """Return a state and the event that tells all of it: that of ``update``, or one that others were sent lately.

        Hundreds may come at once, and a large state takes long to encode.
        """
        async with self._remembered.turn:
            if (kept := self._remembered.whole()) is not None:
                return kept
            body = await self._event("state", update)
            self._remembered.keep_whole(update.snapshot, body)
            return update.snapshot, body

    async def _event(self, kind: str, update: Update) -> bytes:
        changes = update.changes  # computed here, because an update is not safe to use from two threads
        arguments = self._manager.name, update.revision, changes, update.snapshot.stale
        encode = partial(encode_update, *arguments, self._remembered.encode)
        work = sum([len(found.updated) + len(found.removed) for found in changes.values()])
        line = encode() if work < _WORTH_A_THREAD else await self._in_thread(encode)
        identifier = self._remembered.note(update.snapshot)
        return b"event: %s\nid: %s\ndata: %s\n" % (kind.encode(), identifier.encode(), line)

    async def _since(self, base: Snapshot, newest: Snapshot) -> Update:
        """Return what differs between two states. Work in proportion to what the providers that differ have."""
        names = {*base.layout.feeds, *newest.layout.feeds}
        differing = [name for name in names if base.groups_of(name) is not newest.groups_of(name)]
        update = Update(base, newest, dict.fromkeys(differing))
        work = sum([len(state.groups_of(name)) for name in differing for state in (base, newest)])
        if work >= _WORTH_A_THREAD:
            # Many clients come back at once when a network does. Nobody else has this update, so a thread may have it.
            await self._in_thread(lambda: update.changes)
        return update

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._remembered.limiter)


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
