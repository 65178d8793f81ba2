"""ZooKeeper's wire format, as far as discovery speaks it: requests to bytes, bytes to answers. No I/O.

Two operations of ZooKeeper 3.6 are what makes discovery quick, and kazoo knows neither: ``addWatch`` sets one watch
for a whole subtree that stays set, and ``multiRead`` answers hundreds of reads at once. A request's body, and what is
answered, are those of ``zookeeper.jute`` in ZooKeeper's source; all numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
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
_PART_HEADER: Final = struct.Struct("!i?ii")  # the same, and the integer that the part begins with
_STAT: Final = struct.Struct("!qq28xq4xi8x")  # only czxid, mzxid, ephemeralOwner and numChildren are of interest
_ERROR: Final = -1  # instead of the operation, where it was refused
_MULTI_END: Final = _MULTI_HEADER.pack(_ERROR, True, -1)


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
      czxid: the transaction that created the znode. One that was deleted and created again is another znode.
    """

    content: bytes
    mzxid: int
    ephemeral: bool
    children: int
    czxid: int


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
    parts: list[bytes] = []
    for what, path in reads:
        encoded = path.encode()
        parts += (_PART_HEADER.pack(what, False, -1, len(encoded)), encoded, b"\0")  # no watch
    parts.append(_MULTI_END)
    return Request(_MULTI_READ, b"".join(parts))


# Answers


def answer_of(what: Read, reply: Reply) -> Answer:
    """Return what a single read was answered with.

    Raises:
      ProtocolError: the bytes are no such answer.
    """
    try:
        answer, end = _answer(what, *reply)
        _require_end(reply.buffer, end)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"the answer of a read can't be understood: {error}") from None
    return answer


def _answer(what: Read, buffer: bytes, offset: int) -> tuple[Answer, int]:
    if what is Read.EXISTS:
        return Exists(), offset + _STAT.size
    (number,) = _INT.unpack_from(buffer, offset)
    return (_data if what is Read.DATA else _names)(number, buffer, offset + _INT.size)


def answers_of(reads: Sequence[tuple[Read, str]], reply: Reply) -> list[Answer]:
    """Return what each of the ``reads`` of a :func:`multi_read` was answered with.

    Raises:
      ProtocolError: the bytes are no such answers.
    """
    try:
        return _answers(reads, *reply)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"the answer of a multiRead can't be understood: {error}") from None


def _answers(reads: Sequence[tuple[Read, str]], buffer: bytes, offset: int) -> list[Answer]:
    answers: list[Answer] = []
    for what, path in reads:
        # An integer follows each header but the last: a length of data, a number of names, or an error.
        operation, done, _, number = _PART_HEADER.unpack_from(buffer, offset)
        offset += _PART_HEADER.size
        if done or operation not in (what, _ERROR):
            raise ValueError(f"found operation {operation}, expected {what} of {path!r}")
        if operation == _GET_DATA:
            data, offset = _data(number, buffer, offset)
            answers.append(data)
        elif operation == _GET_CHILDREN:
            names, offset = _names(number, buffer, offset)
            answers.append(names)
        else:
            answers.append(Refusal(number))
    _, done, _ = _MULTI_HEADER.unpack_from(buffer, offset)
    if not done:
        raise ValueError(f"there are more than {len(reads)} answers")
    _require_end(buffer, offset + _MULTI_HEADER.size)
    return answers


def _data(length: int, buffer: bytes, offset: int) -> tuple[Data, int]:
    """Return the data of that many bytes and the stat that stand at ``offset``, and where they end."""
    end = offset + length if length > 0 else offset  # -1 where there is none
    czxid, mzxid, owner, children = _STAT.unpack_from(buffer, end)
    return Data(buffer[offset:end], mzxid, owner != 0, children, czxid), end + _STAT.size


def _names(count: int, buffer: bytes, offset: int) -> tuple[tuple[str, ...], int]:
    """Return that many names at ``offset``, and where they end."""
    names = []
    for _ in range(count):
        name, offset = _buffer(buffer, offset)
        names.append(name.decode())
    return tuple(names), offset


def _require_end(buffer: bytes, offset: int) -> None:
    if offset != len(buffer):
        raise ValueError(f"{len(buffer) - offset} bytes follow its end")


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
