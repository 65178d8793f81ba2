"""Connections that are kept for the next request.

Each is a pool of httpcore2 with room for one: it knows how to connect through proxies and which protocol was agreed on.
Rejected: one pool for all, because it goes through all of its connections for every request, seven times as expensive
with five hundred of them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpcore2
import trio

from ..proxies import Proxy
from ..secrets import Secret
from .network import Names, Network

__all__ = ["Connections", "Route"]

_KEPT: Final = 300.0  # seconds that a connection is kept while nobody needs it, as in Prometheus
_SWEPT: Final = 60.0  # seconds between looks for those that nobody needed for so long


@dataclass(frozen=True)
class Route:
    """What connections have in common that can stand in for each other.

    Attributes:
      origin: scheme, host and port of the server.
      proxy: through which to connect, or ``None``.
      connect_headers: what else to tell a proxy that is asked for a tunnel.
      context: how to encrypt, to the server as to a proxy; ``None`` if neither needs it.
      http2: whether HTTP/2 may be spoken.
    """

    origin: tuple[str, str, int]
    proxy: Proxy | None
    connect_headers: tuple[tuple[str, Secret], ...]
    context: ssl.SSLContext | None
    http2: bool


@dataclass(slots=True, eq=False)
class _Connection:
    pool: httpcore2.AsyncConnectionPool
    network: Network
    idle_since: float = 0.0


class Connections:
    """The connections of one client.

    Args:
      names: finds addresses.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._idle: dict[Route, list[_Connection]] = {}  # those used last are last
        self._next_sweep = 0.0
        self._generation = 0  # counts what makes connections in use worth no keeping

    @contextmanager
    def use(self, route: Route) -> Iterator[httpcore2.AsyncConnectionPool]:
        """Give one connection for one request; what ends by an exception closes it, else it is kept."""
        idle = self._idle.get(route)
        connection = idle.pop() if idle else self._new(route)
        generation = self._generation
        good = False
        try:
            yield connection.pool
            good = True
        finally:
            if good and generation == self._generation:
                self._keep(route, connection)
            else:
                connection.network.close()

    def _new(self, route: Route) -> _Connection:
        network = Network(self._names)
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=route.context,
            proxy=_proxy(route),
            max_connections=1,
            http2=route.http2,
            keepalive_expiry=_KEPT,
            network_backend=network,
        )
        return _Connection(pool, network)

    def _keep(self, route: Route, connection: _Connection) -> None:
        now = connection.idle_since = trio.current_time()
        self._idle.setdefault(route, []).append(connection)
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEPT
            for other in list(self._idle):
                self._sweep(other, now - _KEPT)

    def _sweep(self, route: Route, before: float) -> None:
        """Close the connections of a route that nobody has used since ``before``."""
        idle = self._idle[route]
        while idle and idle[0].idle_since <= before:
            idle.pop(0).network.close()
        if not idle:
            del self._idle[route]

    def close(self) -> None:
        """Close all connections; those that are in use, when they no longer are."""
        self._generation += 1
        for idle in self._idle.values():
            for connection in idle:
                connection.network.close()
        self._idle.clear()


def _proxy(route: Route) -> httpcore2.Proxy | None:
    proxy = route.proxy
    if proxy is None:
        return None
    user, password = proxy.credentials or (None, None)
    tunnel = route.origin[0] == "https" and proxy.scheme in ("http", "https")
    return httpcore2.Proxy(
        httpcore2.URL(scheme=proxy.scheme.encode(), host=proxy.host.encode("ascii"), port=proxy.port, target=b"/"),
        auth=(user.reveal().encode(), password.reveal().encode())
        if user is not None and password is not None
        else None,
        headers=[(name.encode(), value.reveal().encode()) for name, value in route.connect_headers] if tunnel else None,
        ssl_context=route.context if proxy.scheme == "https" else None,
    )
