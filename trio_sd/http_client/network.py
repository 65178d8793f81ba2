"""Connections as the client needs them: none outlives its owner, and no name that can't be looked up holds up another.

A lookup is a call into the system's library, which may hang for half a minute, in a thread that nobody can stop. Those
who want the same name share one such thread, so there are never more than there are names. Rejected: Trio's own
``open_tcp_stream`` with a name, because a few names that hang would use up the threads of the whole program.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Final

import httpcore2
import trio

__all__ = ["Names", "Network"]

_HEAD_START: Final = 0.25  # seconds that an address has before the next one is tried, too (RFC 8305)


class _Lookup:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.addresses: Sequence[str] = ()
        self.error: OSError | None = None


class Names:
    """Finds the addresses of hosts.

    Args:
      nursery: owns the lookups; when it is cancelled, threads that hang are left behind.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._lookups: dict[str, _Lookup] = {}

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the addresses of ``host``, in the order in which to try them.

        Raises:
          OSError: it has none, or that can't be found out.
        """
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return (host,)
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _Lookup()
            self._nursery.start_soon(self._look_up, host, lookup)
        await lookup.done.wait()
        if lookup.error is not None:
            raise type(lookup.error)(*lookup.error.args)  # each one who waits has an exception of his own
        return lookup.addresses

    async def _look_up(self, host: str, lookup: _Lookup) -> None:
        try:
            lookup.addresses = await trio.to_thread.run_sync(
                _addresses, host, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
        except OSError as error:
            lookup.error = error
        except UnicodeError:
            lookup.error = OSError(f"not a valid name of a host: {host}")
        finally:
            del self._lookups[host]
            lookup.done.set()


def _addresses(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class Network(httpcore2.TrioBackend):
    """Opens the connections of one place in a pool, and can close all of them.

    httpcore2 leaves a connection open whose TLS handshake is cancelled; so what was opened is remembered here.

    Args:
      names: finds addresses.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._streams: list[httpcore2.AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore2 has it)
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Return a connection to the first address of ``host`` that answers. What was opened before is closed.

        Raises:
          httpcore2.ConnectError: none does.
        """
        self.close()  # a pool with room for one asks for another when that one is of no use any more
        try:
            addresses = await self._names.addresses(host)
        except OSError as error:
            raise httpcore2.ConnectError(f"can't find the address of {host}: {error.strerror or error}") from error
        won: list[httpcore2.AsyncNetworkStream] = []
        errors: list[httpcore2.ConnectError] = []
        connect = super().connect_tcp

        async def attempt(address: str, over: trio.Event) -> None:
            try:
                stream = await connect(address, port, timeout, local_address, socket_options or ())
                self._streams.append(stream)
                won.append(stream)
                nursery.cancel_scope.cancel()
            except httpcore2.ConnectError as error:
                errors.append(error)
            finally:
                over.set()

        async with trio.open_nursery() as nursery:
            for address in addresses:
                over = trio.Event()
                nursery.start_soon(attempt, address, over)
                with trio.move_on_after(_HEAD_START):
                    await over.wait()
        if not won:
            raise errors[0]
        return won[0]

    def close(self) -> None:
        """Close whatever was opened, at once."""
        for stream in self._streams:
            stream.get_extra_info("socket").close()
        self._streams.clear()
