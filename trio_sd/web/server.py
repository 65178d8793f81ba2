"""Runs an ASGI application on Trio, by hypercorn, so that no client can hold up anything but itself.

Theory of operation
===================

hypercorn speaks HTTP; connections are ours. ``hypercorn.trio.serve`` shields what it sends from cancellation, without
a deadline, so a client that reads nothing would keep it from ever ending. Here each connection is a
:class:`_BoundedStream`, which gives up on a client that takes nothing for a while, and which can be closed from
outside. hypercorn also lets an exception of one connection end all of them; here a connection is a boundary. And it
keeps the task of a client that has gone until the time for its next request is over, so that a few hundred clients
which come and go would take all places; :class:`_Server` does not.

Connections run in a nursery that is shielded from the cancellation of :func:`serve`. When that comes, nothing is
accepted any more, idle connections end, and requests under way have the grace time to end; then they are cancelled, and
what is shielded is closed.

HTTP/1.1 is all that is spoken, by ALPN, by upgrade and by prior knowledge. With HTTP/2 one client may open a hundred
streams, take nothing of any, and so have a hundred bodies held for it, at no socket that could be too slow; and a few
kilobytes of priorities keep hypercorn's tree of them busy for seconds. Nobody who discovers targets needs it.

A connection without a request makes way for a new one, the one that has been so for longest, if all places are taken.
So those who only connect keep nobody out.

The inner classes that this uses are hypercorn's own affair: only versions that the tests ran with.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeAlias, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from ..errors import TrioSDError
from ..targets import join_host_port

if TYPE_CHECKING:
    import h11
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.typing import AppWrapper, ASGIFramework
    from starlette.types import ASGIApp

__all__ = ["ListenAddress", "ServeError", "TLSSource", "serve"]

logger = logging.getLogger(__name__)

_LOOPBACK: Final = "127.0.0.1"
_CONNECTIONS: Final = 500  # half of the descriptors that a process usually may have
_IDLE: Final = 15.0  # seconds that a client has to send a request, the first one and each one after it
_SENDING: Final = 20.0  # seconds that it has to take one piece
_PIECE: Final = 64 * 1024

TLSSource: TypeAlias = ssl.SSLContext | Callable[[], Awaitable[ssl.SSLContext]]
"""How connections are encrypted, or what tells it of each new one."""


class ServeError(TrioSDError):
    """An address can't be listened on."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen.

    Attributes:
      host: a name or an address.
      port: 0 for any that is free.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``HOST:PORT``, ``[ADDRESS]:PORT`` or ``:PORT`` says; the last is on the loopback interface.

        Raises:
          ValueError: it says none.
        """
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"found {text!r}, expected an IPv6 address in brackets: [::1]:9099")
        if not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"found {text!r}, expected HOST:PORT")
        return cls(host or _LOOPBACK, int(port))

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


async def serve(
    app: ASGIApp,
    address: ListenAddress,
    *,
    tls: TLSSource | None = None,
    grace: float = 3.0,
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until cancelled: ``urls = await nursery.start(serve, app, ListenAddress.parse(":9099"))``.

    Started when clients can connect; what ``start`` returns is where.

    Args:
      app: an ASGI application.
      address: where to listen.
      tls: for HTTPS: a context, or what is awaited for one at each new connection. If that raises, the connection ends.
      grace: seconds that requests under way have to end once this is cancelled.

    Raises:
      ServeError: the address can't be listened on.

    Cancelled, it takes the grace time at the most, and leaves no task and no connection behind.
    """
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise ServeError(f"can't listen on {address}: {error.strerror or error}") from None
    connections = _Connections(app, tls)
    over = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            holder = await nursery.start(connections.hold, over, grace)
            try:
                await nursery.start(partial(trio.serve_listeners, connections.run, listeners, handler_nursery=holder))
                scheme = "http" if tls is None else "https"
                task_status.started([f"{scheme}://{_name(listener)}" for listener in listeners])
                await trio.sleep_forever()
            finally:
                over.set()
    finally:
        for listener in listeners:
            listener.socket.close()


def _name(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return join_host_port(host, port)


class _BoundedStream(trio.abc.HalfCloseableStream):
    """A connection that is given up when the other side takes nothing for a while."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket  # hypercorn looks up the addresses there

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            with trio.move_on_after(_SENDING) as patience:
                await self._stream.send_all(view[start : start + _PIECE])
            if patience.cancelled_caught:
                self.abort()
                raise trio.BrokenResourceError(f"the client has taken nothing for {_SENDING:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        """Close the connection at once. Whoever sends or receives is told."""
        self._stream.socket.close()


class _HTTP11(H11Protocol):
    """HTTP/1.1, also for those who would rather speak something else."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Take no offer."""


class _Server(TCPServer):
    """hypercorn's server of one connection, for HTTP/1.1 only.

    It does not wait for another request once nothing more can be received.

    Args:
      note_idle: told whether a request is under way, each time that this changes.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        context: WorkerContext,
        stream: _BoundedStream | trio.SSLStream[_BoundedStream],
        note_idle: Callable[[bool], None],
    ) -> None:
        # It has another name for what is no more than a stream.
        super().__init__(app, config, context, ConnectionState({}), cast("trio.SSLStream[trio.SocketStream]", stream))
        self._bounded = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._encrypts = isinstance(stream, trio.SSLStream)
        self._note_idle = note_idle
        self._over = False

    async def run(self) -> None:
        try:
            if self._encrypts:
                with trio.fail_after(self.config.ssl_handshake_timeout):
                    await self.stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):
            return
        socket = self._bounded.socket
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with TaskGroup() as self._task_group:
                protocol = _HTTP11(
                    self.app,
                    self.config,
                    self.context,
                    self._task_group,
                    ConnectionState({}),
                    self._encrypts,
                    client,
                    server,
                    self.protocol_send,
                )
                self.protocol = cast("ProtocolWrapper", protocol)  # which only chooses between protocols
                await protocol.initiate()
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def _read_data(self) -> None:
        await super()._read_data()
        self._over = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._note_idle(event.idle)
            if self._over:
                return  # it may begin such a wait
        await super().protocol_send(event)


class _Connections:
    """The connections that there are."""

    def __init__(self, app: ASGIApp, tls: TLSSource | None) -> None:
        self._app = ASGIWrapper(cast("ASGIFramework", app))  # two names for one thing
        self._tls = tls
        self._context = WorkerContext(None)
        self._config = HypercornConfig()
        self._config.errorlog = logger
        self._config.accesslog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = _IDLE
        self._config.ssl_handshake_timeout = _IDLE
        self._open: set[_BoundedStream] = set()
        self._idle: dict[_BoundedStream, None] = {}  # those without a request, for the longest time first

    async def hold(self, over: trio.Event, grace: float, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Keep the nursery of the connections, until ``over``, and then for the grace time at the most."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as clock:
                async with trio.open_nursery() as nursery:
                    task_status.started(nursery)
                    await over.wait()
                    await self._context.terminated.set()
                    clock.start_soon(self._end_after, grace, nursery.cancel_scope)
                clock.cancel_scope.cancel()

    async def _end_after(self, grace: float, scope: trio.CancelScope) -> None:
        await trio.sleep(grace)
        scope.cancel()
        for stream in self._open:
            stream.abort()  # what is being sent is shielded

    async def run(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it ends."""
        bounded = _BoundedStream(stream)
        if not self._make_room():
            bounded.abort()
            return
        self._open.add(bounded)
        self._idle[bounded] = None
        try:
            secured = await self._secured(bounded)
            await _Server(self._app, self._config, self._context, secured, partial(self._note_idle, bounded))
        # This is a boundary: whatever hypercorn makes of what a client sends ends here, and is told.
        except* Exception as errors:
            logger.debug("a connection failed", exc_info=errors)
        finally:
            self._forget(bounded)
            bounded.abort()

    def _make_room(self) -> bool:
        """Return whether there is room for one more connection, once one that can be done without was ended."""
        if len(self._open) < _CONNECTIONS:
            return True
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        self._forget(longest)
        longest.abort()
        return True

    def _note_idle(self, stream: _BoundedStream, idle: bool) -> None:
        self._idle.pop(stream, None)
        if idle and stream in self._open:
            self._idle[stream] = None

    def _forget(self, stream: _BoundedStream) -> None:
        self._open.discard(stream)
        self._idle.pop(stream, None)

    async def _secured(self, stream: _BoundedStream) -> _BoundedStream | trio.SSLStream[_BoundedStream]:
        """Return the stream with the encryption that belongs on it."""
        if self._tls is None:
            return stream
        context = self._tls if isinstance(self._tls, ssl.SSLContext) else await self._tls()
        context.set_alpn_protocols(["http/1.1"])
        return trio.SSLStream(stream, context, server_side=True, https_compatible=True)
