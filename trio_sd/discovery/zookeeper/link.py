"""The one room that touches kazoo's inside.

kazoo is used for what it does well: finding a server, the handshake, pings, sessions and their expiry, reconnecting.
What it does not know is done from here, over its connection:

- Requests of our own (:mod:`.protocol`) are given to the client's call path, ``KazooClient._call``. All that this asks
  of a request is a ``type``, ``serialize()`` and ``deserialize()``, and of the object for its answer ``set()`` and
  ``set_exception()``.
- Watch events are taken where the connection reads them, ``ConnectionHandler._read_watch_event``. kazoo looks events
  up in tables of one-shot watches by their exact path, where those of a recursive watch are not found.
- kazoo's handler, which it lets anyone replace, is one without the two threads for callbacks, which have nothing to
  do here; with waiting that can be broken off at once, so that closing takes no longer than it has to; and with
  credentials and certificates that are read anew for every connection, so that rotated ones are taken up.

kazoo's one thread runs nothing of ours but the making of a connection and handing things over, to ``deliver``.

The names with an underscore are kazoo's own affair, so ``pyproject.toml`` bounds its version, :func:`check_kazoo` names
what is missing from another one, and ``tests/test_discovery_zookeeper_link.py`` tries each of them by itself.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import kazoo.version
from kazoo.client import KazooClient
from kazoo.exceptions import (
    AuthFailedError,
    ConnectionClosedError,
    ConnectionLoss,
    SessionExpiredError,
    SessionMovedError,
)
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import ConnectionHandler
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from ...errors import DiscoveryError
from .ensemble import Ensemble
from .events import Closed, Connected, ConnectionEvent, Disconnected, Expired, LostError
from .protocol import ProtocolError, Refusal, Reply, Request, ZnodeEvent, parse_event

__all__ = ["Delivery", "Link", "PendingReply", "check_kazoo", "lost_or_refused"]

logger = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.1  # seconds until all servers are tried again; then 1.5 times as long each time
_LONGEST_RETRY: Final = 0.4  # and never longer, plus kazoo's jitter of 40 %: a server that is back is found at once
_HANDSHAKE: Final = 3.0  # seconds for a server to answer a new connection, or a third of the session's timeout
_AHEAD: Final = 64 * 1024  # bytes that are read at once
_NO_TROUBLE: Final = frozenset({"Transition to CONNECTING", "Session has expired"})  # warnings that states tell better
_ENDED: Final = 2.0  # after so many timeouts without a connection, a session is taken to have ended
_LONGEST_PAUSE: Final = 10.0  # seconds between connections that fail for a password or a certificate
_SHORTEST_TIMEOUT: Final = 1.0  # seconds; kazoo also bounds the making of a connection with the session's timeout


class _Socket(Protocol):
    """What is waited for."""

    def fileno(self) -> int: ...


class PendingReply(Protocol):
    """Takes the answer to a request. Called on kazoo's thread."""

    def set(self, reply: Reply | None) -> None:
        """Take the answer; ``None`` says that a znode whose existence was asked for is not there."""

    def set_exception(self, error: Exception) -> None:
        """Take what came instead of an answer."""


Delivery = ConnectionEvent | ZnodeEvent | ProtocolError


class Link:
    """The kazoo client of one session.

    Args:
      ensemble: the servers, and how to talk to them.
      deliver: takes what happens; called on kazoo's thread, in the order in which it happens.

    Raises:
      DiscoveryError: the kazoo that is installed is not one that this works with.
    """

    def __init__(self, ensemble: Ensemble, deliver: Callable[[Delivery], None]) -> None:
        self._deliver = deliver
        self._told: set[str] = set()  # why there is no connection
        self._session_ends = math.inf  # when to take the session for ended though no server has said so
        self._log = _Log(logger, self._on_warning)
        self._handler = _Handler(ensemble, self._before_connecting)
        self._ensemble = ensemble
        retry = KazooRetry(
            max_tries=-1,
            delay=_FIRST_RETRY,
            backoff=1.5,
            max_delay=_LONGEST_RETRY,
            sleep_func=self._handler.sleep_func,
        )
        self._client = KazooClient(
            hosts=",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in ensemble.servers),
            timeout=max(ensemble.timeout, _SHORTEST_TIMEOUT),
            handler=self._handler,
            connection_retry=retry,
            logger=self._log,
        )
        try:
            check_kazoo(self._client)
        except DiscoveryError:
            self._handler.close()
            raise
        self._client._connection = _Connection(self._client, deliver, self._log)
        self._client.add_listener(self._on_state)

    def start(self) -> None:
        """Begin to connect, in kazoo's thread."""
        self._client.start_async()

    @property
    def last_trouble(self) -> str:
        """What kazoo last said about not being connected; empty if nothing."""
        return self._log.last_warning

    def send(self, request: Request, pending: PendingReply) -> None:
        """Send a request. Never blocks."""
        self._client._call(_Request(request), pending)

    def close(self) -> None:
        """End the session and its thread. Blocks until the server has answered, or :meth:`abort` was called."""
        self._client.stop()
        self._client.close()
        self._handler.close()

    def abort(self) -> None:
        """Break off whatever kazoo's thread waits for, so that :meth:`close` returns."""
        self._handler.abort()

    def _before_connecting(self) -> None:
        """Give up a session that must have ended, and read the password anew. Called on kazoo's thread.

        A server that has lost its data refuses, for ever, a client that has seen more than it holds. By the time that
        the session has ended, nothing is lost by being a new client; and if a server has granted it more time than was
        asked for, nothing hangs on it but watches that the lost connection has taken with it.
        """
        if time.monotonic() > self._session_ends:
            self._session_ends = math.inf
            self._client._session_callback(KeeperState.EXPIRED_SESSION)
        if (digest := self._ensemble.digest_auth) is not None:
            self._client.auth_data = {("digest", digest.credential().reveal())}

    def _on_warning(self, text: str) -> None:
        """Tell why there is no connection, each reason once; called on kazoo's thread.

        Only that a connection was lost is told by a change of state, not why there is no first one, or no other one.
        """
        if self._client.client_state != KeeperState.CONNECTED and text not in self._told:
            self._told.add(text)
            self._deliver(Disconnected(text))

    def _on_state(self, state: str) -> None:
        """Hand over a change of state. Called on kazoo's thread."""
        if state == KazooState.CONNECTED:
            self._told.clear()
            self._handler.connected()
            self._session_ends = math.inf
            self._log.last_warning = ""
            self._deliver(Connected(self._client.client_id[0]))
        elif state == KazooState.SUSPENDED:
            self._session_ends = time.monotonic() + _ENDED * self._client._session_timeout / 1000
            self._told.add(self._log.last_warning)
            self._deliver(Disconnected(self._log.last_warning))
        elif self._client.client_state == KeeperState.EXPIRED_SESSION:
            self._deliver(Expired())
        elif self._client.client_state == KeeperState.AUTH_FAILED:
            self._deliver(Closed("the server refuses the credentials"))
        else:
            self._deliver(Closed(self._log.last_warning or "kazoo's connection has ended"))


def check_kazoo(client: object) -> None:
    """Check that what this module uses of kazoo's inside is there.

    Raises:
      DiscoveryError: it is not; the message names kazoo's version and what is missing.
    """
    ours = ("_call", "_connection", "_conn_retry", "_session_callback", "_session_timeout")
    missing = [name for name in ours if not hasattr(client, name)]
    missing += [
        f"ConnectionHandler.{name}"
        for name in ("zk_loop", "_invoke", "_read_watch_event")
        if not hasattr(ConnectionHandler, name)
    ]
    if missing:
        raise DiscoveryError(
            f"kazoo {kazoo.version.__version__} can't be used: it has no {', '.join(missing)}; "
            "expected a version of the range that trio-sd[zookeeper] names"
        )


def lost_or_refused(error: Exception) -> LostError | Refusal:
    """Return what an error in place of an answer says: that the connection was lost, or the server's refusal."""
    code = getattr(error, "code", None)
    connection = (AuthFailedError, ConnectionClosedError, ConnectionLoss, SessionExpiredError, SessionMovedError)
    if isinstance(error, connection) or not isinstance(code, int):
        return LostError(f"the connection to ZooKeeper was lost before the answer came ({type(error).__name__})")
    return Refusal(code)


class _Request:
    """A request of ours, in the shape that kazoo's call path takes."""

    def __init__(self, request: Request) -> None:
        self.type = request.opcode
        self._body = request.body

    def serialize(self) -> bytes:
        return self._body

    def deserialize(self, buffer: bytes, offset: int) -> Reply:
        return Reply(buffer, offset)


class _Connection(ConnectionHandler):  # type: ignore[misc]  # kazoo has no types
    """kazoo's connection, with events handed over as they come."""

    def __init__(self, client: KazooClient, deliver: Callable[[Delivery], None], log: _Log) -> None:
        super().__init__(client, client._conn_retry.copy(), logger=log)
        self._deliver = deliver

    def zk_loop(self) -> None:
        """Run the connection until it is closed. The whole of kazoo's thread runs in here."""
        try:
            super().zk_loop()
        # What ends the thread would be printed and forgotten; a name of a host that can't be encoded is one such thing.
        except Exception as error:  # noqa: BLE001
            self._deliver(Closed(f"{type(error).__name__}: {error}"))

    def _invoke(self, timeout: float, request: object, xid: int | None = None) -> object:
        # Part of making a connection. A server of 3.8 that has just been started may forget to answer the first ones.
        patience = max(_HANDSHAKE, self.client._session_timeout / 1000 / 3)
        return super()._invoke(min(timeout, patience), request, xid)

    def _read_watch_event(self, buffer: bytes, offset: int) -> None:
        try:
            self._deliver(parse_event(Reply(buffer, offset)))
        except ProtocolError as error:  # in kazoo's thread it would be lost
            self._deliver(error)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]  # kazoo has no types
    """What kazoo waits with: everything in here ends at once when :meth:`abort` is called."""

    def __init__(self, ensemble: Ensemble, before_connecting: Callable[[], None]) -> None:
        super().__init__()
        self._tls = ensemble.tls_config
        self._before_connecting = before_connecting
        self._aborted = threading.Event()
        self._pause = 0.0  # seconds before the next connection is made
        self._abort_receiver, self._abort_sender = socket.socketpair()
        self.sleep_func = self._aborted.wait

    def start(self) -> None:
        """Start no threads: nothing here is called back by kazoo's."""

    def stop(self) -> None:
        """Stop no threads."""

    def abort(self) -> None:
        """Break off all waiting, now and from now on."""
        self._aborted.set()
        with suppress(OSError):  # closed: nothing waits any more
            self._abort_sender.send(b"\0")

    def close(self) -> None:
        """Release what waiting needs; called when nothing waits any more."""
        self._abort_receiver.close()
        self._abort_sender.close()

    def create_socket_pair(self) -> tuple[socket.socket, _WakeUp]:
        """Return the sockets with which others wake kazoo's thread: the end to read, and the one to write."""
        receiver, sender = socket.socketpair()
        return receiver, _WakeUp(sender)

    def select(
        self,
        rlist: Sequence[_Socket],
        wlist: Sequence[_Socket],
        xlist: Sequence[_Socket],
        timeout: float | None = None,
    ) -> tuple[list[_Socket], list[_Socket], list[_Socket]]:
        """Wait until one of the sockets is ready; as ``select.select``.

        Raises:
          OSError: :meth:`abort` was called.
        """
        ahead = [sock for sock in rlist if isinstance(sock, _ReadAhead) and sock.pending()]
        poll = select.poll()
        for sock in rlist:
            poll.register(sock, select.POLLIN)
        for sock in wlist:
            poll.register(sock, select.POLLOUT)
        poll.register(self._abort_receiver, select.POLLIN)
        wait = 0 if ahead else None if timeout is None else math.ceil(timeout * 1000)
        ready = {fd for fd, _ in poll.poll(wait)}
        ready.update(sock.fileno() for sock in ahead)
        if self._abort_receiver.fileno() in ready:
            raise OSError(errno.ECONNABORTED, "closed")
        return [s for s in rlist if s.fileno() in ready], [s for s in wlist if s.fileno() in ready], []

    def create_connection(
        self, address: tuple[str, int], hostname: str = "", timeout: float = 0.0, **_: object
    ) -> _ReadAhead:
        """Return a socket connected to ``address``, over TLS if that is wanted.

        Raises:
          OSError: it can't be; kazoo tries again.
        """
        self._aborted.wait(self._pause)
        deadline = time.monotonic() + timeout
        try:
            self._before_connecting()
            context = None if self._tls is None else self._tls.context()
            sock = self._over_tcp(address, deadline)
            if context is not None:
                self._grow_pause()  # a TLS mistake shows in the handshake, or only when the server hangs up later
                sock = self._over_tls(context, sock, hostname, deadline)
        except ValueError as error:  # a password or a certificate that can't be used
            self._grow_pause()
            raise OSError(errno.EINVAL, str(error)) from error  # kazoo shows the second
        return _ReadAhead(sock)

    def connected(self) -> None:
        """Note that there is a session."""
        self._pause = 0.0

    def _grow_pause(self) -> None:
        """Wait longer before the next try: what a person has to mend is not tried five times a second."""
        self._pause = min(max(_FIRST_RETRY, 2 * self._pause), _LONGEST_PAUSE)

    def _over_tcp(self, address: tuple[str, int], deadline: float) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect_ex(address)  # what it says now, it says again below
            self._wait(sock, deadline, writable=True)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise
        return sock

    def _over_tls(self, context: ssl.SSLContext, plain: socket.socket, hostname: str, deadline: float) -> socket.socket:
        assert self._tls is not None
        name = self._tls.server_name or hostname
        sock = plain
        try:
            sock = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
            while True:
                try:
                    sock.do_handshake()
                except ssl.SSLWantReadError:
                    self._wait(sock, deadline, writable=False)
                except ssl.SSLWantWriteError:
                    self._wait(sock, deadline, writable=True)
                else:
                    return sock
        except BaseException:
            sock.close()
            raise

    def _wait(self, sock: socket.socket, deadline: float, *, writable: bool) -> None:
        left = max(0.0, deadline - time.monotonic())
        if not any(self.select([] if writable else [sock], [sock] if writable else [], [], left)):
            raise TimeoutError(errno.ETIMEDOUT, "the connection could not be made in time")


class _WakeUp:
    """The end of a socket pair to which a byte is written for each request.

    kazoo's own may block for ever: the bytes of requests that were lost with a connection stay in it until there is
    another connection, some 270 fill it, and the next writer would be Trio's loop.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.close = sock.close

    def send(self, data: bytes) -> int:
        """Write without waiting. Where it is full, kazoo's thread finds more wake-ups than there are requests."""
        with suppress(BlockingIOError):
            return self._sock.send(data)
        return len(data)


class _ReadAhead:
    """A socket of which as much is read at once as is there.

    kazoo waits and reads twice for each event and each answer, and every system call gives up the interpreter to other
    threads. In a burst of ten thousand events, those calls were most of the time.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = b""
        self._position = 0
        self.send = sock.send
        self.close = sock.close
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking

    def pending(self) -> int:
        """Return how much can be read without waiting, as of an SSL socket; kazoo asks for it before it waits.

        TLS itself holds nothing back: a record is smaller than what is read at once.
        """
        return len(self._ahead) - self._position

    def recv(self, size: int) -> bytes:
        """Return at most ``size`` bytes; empty at the end."""
        if self._position == len(self._ahead):
            if size >= _AHEAD:  # the rest of a long answer
                return self._sock.recv(size)
            self._ahead, self._position = self._sock.recv(_AHEAD), 0
        begin, self._position = self._position, min(self._position + size, len(self._ahead))
        return self._ahead[begin : self._position]


class _Log(logging.LoggerAdapter[logging.Logger]):
    """kazoo's log, in the background: the session itself tells what matters, once.

    kazoo's debug messages are dropped, because those of requests show passwords.
    """

    def __init__(self, to: logging.Logger, on_warning: Callable[[str], None]) -> None:
        super().__init__(to, {})
        self.last_warning = ""
        self._on_warning = on_warning

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401 (as LoggerAdapter's)
        """Pass a message on as one for debugging, and remember a warning."""
        if level >= logging.WARNING:
            text = str(msg) % args if args else str(msg)
            for prefix in ("Connection dropped: ", "Connection time-out: ", "socket connection error: "):
                text = text.removeprefix(prefix)  # nothing was dropped where nothing was connected
            if text not in _NO_TROUBLE:
                self.last_warning = text
                self._on_warning(text)
        if level > logging.DEBUG:
            super().log(logging.DEBUG, f"kazoo: {msg}", *args, **kwargs)
