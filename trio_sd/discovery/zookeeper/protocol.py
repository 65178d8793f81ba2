"""ZooKeeper's wire format, as far as discovery speaks it: requests to bytes, bytes to answers. No I/O.

Two operations of ZooKeeper 3.6 are what makes discovery quick, and kazoo knows neither: ``addWatch`` sets one watch
for a whole subtree that stays set, and ``multiRead`` answers hundreds of reads at once. A request's body, and what is
answered, are those of ``zookeeper.jute`` in ZooKeeper's source; all numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = [
    "NO_AUTH",
    "NO_NODE",
    "Answer",
    "Data",
    "EventType",
    "ProtocolError",
    "Read",
    "Refusal",
    "Reply",
    "Request",
    "ZnodeEvent",
    "add_watch",
    "answer_of",
    "answers_of",
    "multi_read",
    "parse_event",
    "remove_watches",
    "single_read",
]

NO_NODE: Final = -101
"""The error of a znode that is not there."""
NO_AUTH: Final = -102
"""The error of a znode that this session may not read."""

_EXISTS: Final = 3
_GET_DATA: Final = 4
_GET_CHILDREN: Final = 8
_REMOVE_WATCHES: Final = 18
_MULTI_READ: Final = 22
_ADD_WATCH: Final = 106

_PERSISTENT_RECURSIVE: Final = 1
_ANY_WATCHER: Final = 3

_INT: Final = struct.Struct("!i")
_MULTI_HEADER: Final = struct.Struct("!i?i")  # operation, whether this is the end, error
_STAT: Final = struct.Struct("!8xq28xq4xi8x")  # only mzxid, ephemeralOwner and numChildren are of interest
_MULTI_END: Final = _MULTI_HEADER.pack(-1, True, -1)


class ProtocolError(ValueError):
    """The server's answer is not what the protocol says."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its operation and its body."""

    opcode: int
    body: bytes


class Read(IntEnum):
    """What to read of a znode. The value is the operation's number."""

    EXISTS = _EXISTS
    DATA = _GET_DATA
    CHILDREN = _GET_CHILDREN


class Data(NamedTuple):
    """A znode as it was read.

    Attributes:
      content: its data; empty also where there is none.
      mzxid: the transaction that last changed the data, or created the znode. No two states share one.
      ephemeral: whether it belongs to a session. Such a znode never has children.
      children: how many it has.
    """

    content: bytes
    mzxid: int
    ephemeral: bool
    children: int


class Refusal(NamedTuple):
    """The server answered with an error."""

    code: int

    def __str__(self) -> str:
        return f"ZooKeeper error {self.code}"


class Exists(NamedTuple):
    """The znode is there."""


Answer = Data | tuple[str, ...] | Exists | Refusal
"""Of :attr:`Read.DATA`, :attr:`Read.CHILDREN` (the names), :attr:`Read.EXISTS`, or of any of them."""


class Reply(NamedTuple):
    """The bytes that answer a request: those of ``buffer`` from ``offset`` on."""

    buffer: bytes
    offset: int


class EventType(IntEnum):
    """What a watch tells."""

    CREATED = 1
    DELETED = 2
    DATA = 3
    CHILDREN = 4


class ZnodeEvent(NamedTuple):
    """A watch was triggered."""

    type: EventType
    path: str


# Requests


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _INT.pack(len(encoded)) + encoded


def add_watch(path: str) -> Request:
    """Return the request for one watch on ``path`` and all below it, which stays set. ``path`` need not exist."""
    return Request(_ADD_WATCH, _text(path) + _INT.pack(_PERSISTENT_RECURSIVE))


def remove_watches(path: str) -> Request:
    """Return the request that ends every watch of this session on ``path``."""
    return Request(_REMOVE_WATCHES, _text(path) + _INT.pack(_ANY_WATCHER))


def single_read(what: Read, path: str, *, watch: bool) -> Request:
    """Return the request for one read, which also sets a one-shot watch if ``watch`` is true."""
    return Request(what, _text(path) + bytes((watch,)))


def multi_read(reads: Sequence[tuple[Read, str]]) -> Request:
    """Return the request for many reads of data and children at once."""
    body = bytearray()
    for what, path in reads:
        body += _MULTI_HEADER.pack(what, False, -1)
        body += _text(path)
        body += b"\0"  # no watch
    body += _MULTI_END
    return Request(_MULTI_READ, bytes(body))


# Answers


def answer_of(what: Read, reply: Reply) -> Answer:
    """Return what a single read was answered with.

    Raises:
      ProtocolError: the bytes are no such answer.
    """
    try:
        return _answer(what, *reply)[0]
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"the answer of a read can't be understood: {error}") from None


def answers_of(reads: Sequence[tuple[Read, str]], reply: Reply) -> list[Answer]:
    """Return what each of the ``reads`` of a :func:`multi_read` was answered with.

    Raises:
      ProtocolError: the bytes are no such answers.
    """
    try:
        answers = list(_answers(*reply))
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"the answer of a multiRead can't be understood: {error}") from None
    if len(answers) != len(reads):
        raise ProtocolError(f"a multiRead of {len(reads)} reads was answered with {len(answers)}")
    return answers


def _answers(buffer: bytes, offset: int) -> Iterator[Answer]:
    while True:
        operation, done, _ = _MULTI_HEADER.unpack_from(buffer, offset)
        offset += _MULTI_HEADER.size
        if done:
            return
        if operation < 0:
            yield Refusal(_INT.unpack_from(buffer, offset)[0])
            offset += _INT.size
        else:
            answer, offset = _answer(Read(operation), buffer, offset)
            yield answer


def _answer(what: Read, buffer: bytes, offset: int) -> tuple[Answer, int]:
    """Return one answer, and where the next one begins."""
    if what is Read.CHILDREN:
        (count,) = _INT.unpack_from(buffer, offset)
        offset += _INT.size
        names = []
        for _ in range(count):
            name, offset = _buffer(buffer, offset)
            names.append(name.decode())
        return tuple(names), offset
    content = b""
    if what is Read.DATA:
        content, offset = _buffer(buffer, offset)
    mzxid, owner, children = _STAT.unpack_from(buffer, offset)
    offset += _STAT.size
    return (Exists() if what is Read.EXISTS else Data(content, mzxid, owner != 0, children)), offset


def _buffer(buffer: bytes, offset: int) -> tuple[bytes, int]:
    """Return the bytes that stand at ``offset`` behind their length, and where they end."""
    (length,) = _INT.unpack_from(buffer, offset)
    offset += _INT.size
    if length <= 0:
        return b"", offset
    end = offset + length
    if end > len(buffer):
        raise ValueError(f"{length} bytes are announced at {offset}, and {len(buffer) - offset} are there")
    return buffer[offset:end], end


def parse_event(reply: Reply) -> ZnodeEvent:
    """Return the event that a watch's notification tells.

    Raises:
      ProtocolError: the bytes are no such event.
    """
    buffer, offset = reply
    try:
        (kind,) = _INT.unpack_from(buffer, offset)
        path, _ = _buffer(buffer, offset + 2 * _INT.size)  # the session's state stands between
        return ZnodeEvent(EventType(kind), path.decode())
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"the notification of a watch can't be understood: {error}") from None
