"""A network between a client and a server that does what a test says: late, cut, reset, refused, or of an older day."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

# What ZooKeeper's clients can ask since 3.6 only: multiRead, getEphemerals, getAllChildrenNumber, setWatches2,
# addWatch, whoAmI.
UNKNOWN_BEFORE_3_6 = frozenset({22, 103, 104, 105, 106, 107})
UNIMPLEMENTED = -6
CHUNK = 1 << 16


_GIVEN: Final[set[int]] = set()


def free_port() -> int:
    """Return a port that is free, below those that the kernel gives to outgoing connections.

    So it is still free when one that stopped listening wants it again. No port is given twice in a process.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # hypothesis seeds the other one
        if port in _GIVEN:
            continue
        _GIVEN.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Proxy:
    """Forwards TCP connections to a server. What is set while it runs holds for present connections, too.

    ``delay``: seconds that each byte takes, each way. However long it is, it costs no throughput.

    For ZooKeeper's plain protocol, for connections that come after they were set:

    ``unknown``: opcodes that the server shall not know. `UNKNOWN_BEFORE_3_6` makes it one before 3.6. A real 3.4.6
    answers such a request with a reply header alone (the request's xid, zxid -1, error -6 "unimplemented") and then
    closes the connection in good order; the session lives on. The answer overtakes those to requests that were sent
    before and are still being worked on, which are never sent. What was sent after it is carried out, but not
    answered. So does this.

    ``dropped``: opcodes at which the connection is closed at once, without an answer; the server never gets them.
    """

    def __init__(self, nursery: trio.Nursery, host: str, port: int) -> None:
        self.delay = 0.0
        self.unknown: Collection[int] = ()
        self.dropped: Collection[int] = ()
        self.port = free_port()
        self.accepted = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        self._target = (host, port)
        self._nursery = nursery
        self._listener: trio.SocketListener | None = None
        self._present: set[_Connection] = set()
        self._passable = trio.Event()
        self._passable.set()

    @property
    def hosts(self) -> str:
        """Where it listens, as clients are told."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._present)

    def partition(self) -> None:
        """Let nothing through, not even an end: what is sent waits in buffers. New connections wait, too."""
        if self._passable.is_set():
            self._passable = trio.Event()

    def heal(self) -> None:
        """End the partition: what waited goes on its way."""
        self._passable.set()

    def reset(self) -> None:
        """Break all present connections, at both ends, with a TCP reset."""
        for connection in self._present:
            connection.reset()

    def refuse(self) -> None:
        """Refuse new connections, as where nobody listens. Present ones stay."""
        if self._listener:
            self._listener.socket.close()
            self._listener = None

    async def accept(self) -> None:
        """Accept new connections (again)."""
        if self._listener is None:
            [self._listener] = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self._nursery.start_soon(self._serve, self._listener)

    async def passable(self) -> None:
        """Wait until there is no partition."""
        while not self._passable.is_set():
            await self._passable.wait()

    async def _serve(self, listener: trio.SocketListener) -> None:
        with suppress(trio.ClosedResourceError):
            while True:
                self._nursery.start_soon(self._connect, await listener.accept())

    async def _connect(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        connection = _Connection(self, client)
        self._present.add(connection)
        try:
            await connection.run(*self._target)
        finally:
            self._present.discard(connection)


class _Connection:
    """One connection of a proxy: for each way a task that reads and one that writes, with a queue between them."""

    def __init__(self, proxy: Proxy, client: trio.SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._server: trio.SocketStream | None = None
        self._scope = trio.CancelScope()
        self._packets = bool(proxy.unknown or proxy.dropped)
        # What is under way, with the time of its arrival: many chunks, so that a long way is a wide one.
        self._to_server = trio.open_memory_channel[tuple[float, bytes]](1024)
        self._to_client = trio.open_memory_channel[tuple[float, bytes]](1024)
        self._hanging_up = False

    async def run(self, host: str, port: int) -> None:
        """Forward until both sides have ended, or one broke, which then breaks the other."""
        try:
            with self._scope:
                await self._proxy.passable()
                self._server = await trio.open_tcp_stream(host, port)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, self._client, self._to_server[0])
                    nursery.start_soon(self._read, self._server, self._to_client[0])
                    nursery.start_soon(self._write_to_server, self._server)
                    nursery.start_soon(self._write_to_client)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.reset()
        finally:
            self._close()

    def reset(self) -> None:
        """Break both ends: what is closed without lingering sends a reset."""
        for stream in (self._client, self._server):
            if stream and stream.socket.fileno() != -1:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def _close(self) -> None:
        self._scope.cancel()
        for stream in (self._client, self._server):
            if stream:
                stream.socket.close()

    async def _read(self, source: trio.SocketStream, way: trio.MemorySendChannel[tuple[float, bytes]]) -> None:
        rest = b""
        while True:
            await self._proxy.passable()
            chunk = await source.receive_some(CHUNK)
            parts, rest = _packets(rest + chunk) if self._packets else ([chunk], b"")
            for part in parts if chunk else [b""]:
                await way.send((trio.current_time() + self._proxy.delay, part))
            if not chunk:
                return

    async def _next(self, way: trio.MemoryReceiveChannel[tuple[float, bytes]]) -> bytes:
        """Return what was read next when it is its time, b"" for the end."""
        due, part = await way.receive()
        await trio.sleep_until(due)
        await self._proxy.passable()
        return part

    async def _write_to_server(self, server: trio.SocketStream) -> None:
        greeted = False
        while part := await self._next(self._to_server[1]):
            if self._packets and greeted and await self._refused(part):
                continue
            greeted = True
            await server.send_all(part)
            self._proxy.bytes_to_server += len(part)
        await server.send_eof()

    async def _write_to_client(self) -> None:
        while part := await self._next(self._to_client[1]):
            await self._client.send_all(part)
            self._proxy.bytes_to_client += len(part)
        await self._client.send_eof()
        if self._hanging_up:
            self._close()

    async def _refused(self, request: bytes) -> bool:
        """Tell whether the server must not get this request; if so, hang up, or answer and hang up."""
        xid, opcode = struct.unpack_from(">ii", request, 4)
        if opcode in self._proxy.dropped:
            self._close()
            return True
        if opcode in self._proxy.unknown:
            self._hanging_up = True
            for part in (struct.pack(">iiqi", 16, xid, -1, UNIMPLEMENTED), b""):
                await self._to_client[0].send((trio.current_time() + self._proxy.delay, part))
            return True
        return False


def _packets(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole packets in the data, each with its length before it, and what remains."""
    packets = []
    start = 0
    while len(data) >= start + 4 and len(data) >= (end := start + 4 + int.from_bytes(data[start : start + 4], "big")):
        packets.append(data[start:end])
        start = end
    return packets, data[start:]


@asynccontextmanager
async def open_proxy(port: int, *, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Forward connections to the server on this port for the time of the block."""
    async with trio.open_nursery() as nursery:
        proxy = Proxy(nursery, host, port)
        await proxy.accept()
        try:
            yield proxy
        finally:
            proxy.refuse()
            nursery.cancel_scope.cancel()
