"""A ZooKeeper server that does what a test says, in threads of its own: it serves also who blocks the loop."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

CONNECT_ANSWER = struct.Struct(">iiqi16s?")


class FakeRequest(NamedTuple):
    xid: int
    opcode: int
    body: bytes


class Greeting(NamedTuple):
    """What a client says first.

    Attributes:
      zxid: the last transaction that it has seen.
      timeout: milliseconds for which a session shall live without it.
      session: the session that it goes on with, or 0 for a new one.
    """

    zxid: int
    timeout: int
    session: int


class HungUpError(Exception):
    """The client has ended the connection, or the test is over."""


class FakeConnection:
    """A connection of a client.

    Attributes:
      number: how many there were before it.
    """

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                chunk = self.sock.recv(count - len(data))
            except OSError:
                chunk = b""
            if not chunk:
                raise HungUpError
            data += chunk
        return data

    def packet(self) -> bytes:
        """Return what comes next."""
        return self._receive(int.from_bytes(self._receive(4), "big"))

    def send_packet(self, packet: bytes) -> None:
        """Send it, with its length before it."""
        try:
            self.sock.sendall(struct.pack(">i", len(packet)) + packet)
        except OSError:
            raise HungUpError from None

    def greet(self, session: int = 77, timeout: int = 10_000) -> bytes:
        """Take the client's greeting and answer it; a timeout of 0 says that the session has expired."""
        greeting = self.packet()
        self.welcome(session, timeout)
        return greeting

    def greeting(self) -> Greeting:
        """Take the client's greeting, and return what it says."""
        _, zxid, timeout, session = struct.unpack_from(">iqiq", self.packet())
        return Greeting(zxid, timeout, session)

    def welcome(self, session: int = 77, timeout: int = 10_000) -> None:
        """Answer a greeting."""
        self.send_packet(CONNECT_ANSWER.pack(0, timeout, session, 16, b"session-password", False))

    def request(self) -> FakeRequest:
        """Return the next request but pings, which are answered."""
        while True:
            packet = self.packet()
            xid, opcode = struct.unpack_from(">ii", packet)
            if opcode != 11:
                return FakeRequest(xid, opcode, packet[8:])
            self.answer(xid)

    def answer(self, xid: int, body: bytes = b"", *, error: int = 0) -> None:
        """Answer a request."""
        self.send_packet(struct.pack(">iqi", xid, 1, error) + body)

    def event(self, kind: int, path: str) -> None:
        """Tell that a watch was triggered."""
        encoded = path.encode()
        self.answer(-1, struct.pack(">iii", kind, 3, len(encoded)) + encoded)

    def serve_rest(self) -> None:
        """Answer all that comes with nothing, until the client hangs up."""
        while True:
            request = self.request()
            self.answer(request.xid)
            if request.opcode == -11:
                raise HungUpError


@contextmanager
def fake_zookeeper(script: Callable[[FakeConnection], None]) -> Iterator[int]:
    """Run ``script`` with each connection, in a thread; it hangs up when that returns. Yields the port."""
    connections: list[FakeConnection] = []
    threads: list[threading.Thread] = []

    def serve(connection: FakeConnection) -> None:
        with suppress(HungUpError), connection.sock:
            script(connection)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            connection = FakeConnection(len(connections), sock)
            connections.append(connection)
            threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(5)
            for connection in connections:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(5)
