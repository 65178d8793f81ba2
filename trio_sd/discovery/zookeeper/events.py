"""What happens to a session: the words that its rooms share. No I/O, no kazoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import DiscoveryError
from .protocol import EventType

__all__ = [
    "Changed",
    "Closed",
    "Connected",
    "ConnectionEvent",
    "Disconnected",
    "Expired",
    "LateError",
    "LostError",
    "RefusedError",
]


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection. Of the watches that were set before, none is left."""

    session_id: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is lost, and is being made again; the session may live on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expired:
    """The session has ended on the server. A new one is begun."""


@dataclass(frozen=True, slots=True)
class Closed:
    """There will be no connection any more."""

    reason: str


ConnectionEvent = Connected | Disconnected | Expired | Closed


@dataclass(frozen=True, slots=True)
class Changed:
    """Watches were triggered: the znodes, each with all that was told of it."""

    paths: Mapping[str, frozenset[EventType]]


class LostError(DiscoveryError):
    """The connection was lost before the answer came."""


class LateError(DiscoveryError):
    """No answer came in time, though the connection seems to be there."""


class RefusedError(DiscoveryError):
    """The server does not allow to read what everything begins with."""
