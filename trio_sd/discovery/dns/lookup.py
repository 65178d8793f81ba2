"""Asks name servers.

Servers and domains are tried as in Prometheus: each name that may be meant, of each server in turn, until one knows the
name, which may then have no records of the type. That all of them say that there is no such name is an answer, too. But
if for one of the names no server has an answer, nobody knows.

Messages are dnspython's. Its sockets are not, because one that is cancelled while it connects is never closed, and
because only a connected socket learns at once that nobody listens at the other end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype
import trio

from ...errors import DiscoveryError
from ...messages import one_line, printable, quote
from .resolv_conf import ResolvConf

if TYPE_CHECKING:
    from .config import RecordType

__all__ = ["Found", "Resolver", "open_resolver"]

RESOLV_CONF: Final = "/etc/resolv.conf"
_PORT: Final = 53
_PATIENCE: Final = 2.0  # seconds that a server has, for UDP and for TCP, as in Prometheus
_LARGEST: Final = 4096  # bytes of an answer by UDP that are asked for, as in Prometheus
_LONGEST_FILE: Final = 1_000_000  # characters of resolv.conf
_PAUSE: Final = 1.0  # seconds between two looks whether resolv.conf has changed


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out of a name.

    Attributes:
      records: those of the type.
      note: what an operator should know, such as that there is no such name; or an empty text.
      tcp: whether the answer was too long for UDP.
    """

    records: Sequence[dns.rdata.Rdata]
    note: str = ""
    tcp: bool = False


class _NoAnswerError(Exception):
    """One server has none; the message says why."""


class Resolver:
    """Looks up names, by the servers that ``resolv.conf`` names at the time.

    Args:
      path: of that file.
      port: of the servers.
    """

    def __init__(self, path: str, port: int) -> None:
        self.port: Final = port
        """Of the servers."""
        self._path = path
        self._conf: ResolvConf | None = None
        self._status: tuple[int, ...] = ()
        self._next_look = 0.0
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # a disk that hangs takes one thread, not all of the program's

    async def look_up(self, name: str, record_type: RecordType) -> Found:
        """Return the records of a name.

        Raises:
          DiscoveryError: nobody knows, or the file can't be read.
        """
        conf = await self._current_conf()
        troubles = []
        for candidate in conf.candidates(name):
            try:
                query = dns.message.make_query(candidate, record_type, use_edns=0, payload=_LARGEST)
            except dns.exception.DNSException as error:
                # It may be the domain that makes it too long: the names that are left have nothing to do with that.
                troubles.append(f"{quote(candidate)} is no name of DNS: {error}")
                continue
            try:
                response, tcp = await self._ask_servers(conf.servers, query)
            except _NoAnswerError as error:
                troubles.append(f"{candidate}: {error}")
                continue
            if response.rcode() == dns.rcode.NOERROR:
                return _found(response, record_type, tcp=tcp)
        if troubles:
            raise DiscoveryError(f"no server has an answer; {'; '.join(troubles)}")
        return Found((), note="does not exist")

    async def _ask_servers(
        self, servers: Sequence[str], query: dns.message.QueryMessage
    ) -> tuple[dns.message.Message, bool]:
        """Return the first answer that tells, and whether it came by TCP."""
        troubles = []
        for server in servers:
            try:
                response, tcp = await self._ask(server, query), False
                if response.flags & dns.flags.TC:
                    response, tcp = await self._ask_by_tcp(server, query), True
                if response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    return response, tcp
                raise _NoAnswerError(dns.rcode.to_text(response.rcode()))
            except _NoAnswerError as error:
                troubles.append(f"{printable(server)}: {error}")
            except OSError as error:
                troubles.append(f"{printable(server)}: {one_line(error.strerror or str(error))}")
        raise _NoAnswerError(", ".join(troubles))

    async def _ask(self, server: str, query: dns.message.QueryMessage) -> dns.message.Message:
        """Ask one server by UDP, from a port of its own; what is no answer to the query is not listened to."""
        family, address = await _address(server, self.port)
        with trio.socket.socket(family, socket.SOCK_DGRAM) as endpoint, trio.move_on_after(_PATIENCE):
            await endpoint.connect(address)
            await endpoint.send(query.to_wire())
            while True:
                response = _decoded(await endpoint.recv(0xFFFF), query)
                if response is not None:
                    return response
        raise _NoAnswerError(f"no answer within {_PATIENCE:g} s")

    async def _ask_by_tcp(self, server: str, query: dns.message.QueryMessage) -> dns.message.Message:
        family, address = await _address(server, self.port)
        with trio.socket.socket(family, socket.SOCK_STREAM) as endpoint, trio.move_on_after(_PATIENCE):
            await endpoint.connect(address)
            wire = query.to_wire()
            await trio.SocketStream(endpoint).send_all(len(wire).to_bytes(2, "big") + wire)
            length = int.from_bytes(await _receive(endpoint, 2), "big")
            response = _decoded(await _receive(endpoint, length), query)
            if response is None or response.flags & dns.flags.TC:
                raise _NoAnswerError("no whole answer by TCP")
            return response
        raise _NoAnswerError(f"no answer by TCP within {_PATIENCE:g} s")

    async def _current_conf(self) -> ResolvConf:
        """Return what the file says, which is looked at once a second at the most, and read when it has changed."""
        if self._conf is None or trio.current_time() >= self._next_look:
            if self._conf is not None and self._turn.locked():
                return self._conf  # somebody is looking, and may have to wait
            async with self._turn:
                if self._conf is None or trio.current_time() >= self._next_look:
                    await trio.to_thread.run_sync(self._read, abandon_on_cancel=True, limiter=self._limiter)
                    self._next_look = trio.current_time() + _PAUSE
        assert self._conf is not None
        return self._conf

    def _read(self) -> None:
        try:
            found = os.stat(self._path)
            status = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if status != self._status:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._conf = ResolvConf.parse(file.read(_LONGEST_FILE))
                self._status = status
        except OSError as error:
            raise DiscoveryError(f"can't read {quote(self._path)}: {error.strerror}") from None


async def _address(server: str, port: int) -> tuple[socket.AddressFamily, Any]:  # Any: as the system has it
    """Return the family and the address of a server; names are no addresses here."""
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        ((family, _, _, _, address), *_) = await trio.socket.getaddrinfo(server, port, flags=flags)
    except OSError:
        raise _NoAnswerError("not an address") from None
    return family, address


async def _receive(endpoint: trio.socket.SocketType, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        part = await endpoint.recv(length - len(received))
        if not part:
            raise _NoAnswerError("the server has closed the connection")
        received += part
    return bytes(received)


def _decoded(wire: bytes, query: dns.message.QueryMessage) -> dns.message.Message | None:
    """Return an answer to the query, or ``None`` for what is none."""
    if wire[:2] != query.id.to_bytes(2, "big"):
        return None
    try:
        response = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=True)
    except dns.message.Truncated as truncated:
        # Without what follows a record that was cut in two; dnspython has no types here.
        response = truncated.message()  # type: ignore[no-untyped-call]
    except dns.exception.DNSException:
        return None
    return response if query.is_response(response) else None


def _found(response: dns.message.Message, record_type: RecordType, *, tcp: bool) -> Found:
    wanted = dns.rdatatype.from_text(record_type)
    records = [record for records in response.answer if records.rdtype == wanted for record in records]
    others = sorted(
        {dns.rdatatype.to_text(each.rdtype) for each in response.answer} - {record_type, "CNAME", "DNAME", "RRSIG"}
    )
    note = f"passed over records of the type {', '.join(others)}" if others else ""
    return Found(records, note or ("" if records else f"has no record of the type {record_type}"), tcp)


@asynccontextmanager
async def open_resolver(path: str = RESOLV_CONF, port: int = _PORT) -> AsyncIterator[Resolver]:
    """Yield what looks names up; nothing of it stays open between lookups.

    Args:
      path: of the file that names the servers.
      port: of the servers.
    """
    yield Resolver(path, port)
