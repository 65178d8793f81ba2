"""How Consul is asked, and what its index means. Pure.

A *blocking query* tells the index of the answer before, and is answered when there is a later one, or after a while
with the same. https://developer.hashicorp.com/consul/api-docs/features/blocking has the rules for clients:

- an answer whose index is the one before says nothing new;
- an index that goes backwards, as after a snapshot is restored, is forgotten, and the next query does not block;
- neither does a query after an index of zero, which says that there is none;
- nor, by a rule of our own, one after an answer that came early and says nothing new. So are queries answered that wait
  while a snapshot is restored; who went on from their index would wait for it to come again, for two minutes.

What a client is told may be old: with ``stale`` by any server, which may lag behind. An index that goes backwards may
be the sign of one; so before such an answer is believed, the leader is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from ...http_config import without_password

__all__ = ["AT_ONCE", "DEADLINE", "WAIT", "Place", "Position", "index_of"]

WAIT: Final = 120.0
"""Seconds for which a server is asked to wait, as in Prometheus."""

DEADLINE: Final = WAIT + 15.0
"""Seconds for which to wait for an answer: servers wait up to a sixteenth longer than they are asked to."""

AT_ONCE: Final = 15.0
"""Seconds for which to wait for an answer to a query that does not block, so that none holds up the first full set."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which Consul to ask, and of what part of it.

    Attributes:
      base: the URL of the server, without a slash at its end.
      datacenter: the server's own if empty.
      namespace: the default one if empty.
      partition: that of the server if empty.
    """

    base: str
    datacenter: str = ""
    namespace: str = ""
    partition: str = ""

    @property
    def shown(self) -> str:
        """The URL of the server, as it may be shown."""
        return without_password(self.base)

    def url(self, *path: str, query: Sequence[tuple[str, str]] = ()) -> str:
        """Return the URL of ``path`` below ``/v1``, with what is to be asked of it."""
        own = (("dc", self.datacenter), ("ns", self.namespace), ("partition", self.partition))
        text = urlencode([*((name, value) for name, value in own if value), *query])
        return f"{self.base}/v1/{'/'.join(quote(part, safe='') for part in path)}{'?' if text else ''}{text}"


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the history of one query a client is.

    Attributes:
      index: that the next query goes on from; 0 if it does not block.
      known: that of the newest answer that was believed.
    """

    index: int = 0
    known: int = 0

    def query(self, *, stale: bool) -> Sequence[tuple[str, str]]:
        """Return what makes a query block until something happens after this position."""
        query = [("stale", "")] if stale else []
        if self.index:
            query.append(("index", str(self.index)))
        return [*query, ("wait", f"{WAIT * 1000:.0f}ms")]

    def after(self, answered: int, waited: float) -> Position:
        """Return the position after an answer with the index ``answered``, for which one has waited so many seconds."""
        early = answered == self.index and waited < WAIT
        return Position(0 if answered < self.index or early else answered, answered)

    def anew(self) -> Position:
        """Return the position from which the next query does not block."""
        return Position(0, self.known)

    def is_news(self, answered: int) -> bool:
        """Return whether an answer with that index may differ from the one before."""
        return not answered or answered != self.index

    def goes_back(self, answered: int) -> bool:
        """Return whether an answer with that index is older than what is known."""
        return answered < max(self.index, self.known)


def index_of(header: str) -> int:
    """Return the index that the header ``X-Consul-Index`` tells, 0 if it tells none."""
    return int(header[:20]) if header.isascii() and header.isdigit() else 0
