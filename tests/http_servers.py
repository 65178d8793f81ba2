"""HTTP servers on loopback that do what a test says: in real sockets, on Trio, by Trio's clock.

    async with open_http_server({"/sd": TargetList([]), "/slow": hang}, tls=certificates.server()) as server:
        ...  # ask for server.url("/sd"), look at server.requests

A route is an answer, or an async function that is given the request and returns one. HTTP/1.1 is read by h11, and
written by hand, because h11 tells no lies: a :class:`Response` is sent with the headers that it has, be they right or
wrong. HTTP/2 is hypercorn's. An answer under way is cancelled when its client goes away.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import math
import ssl
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.client import responses
from itertools import count
from pathlib import Path
from typing import Final, Generic, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote_plus

import h11
import jwt
import trio
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ConnectionState, Scope
from trio_util import AsyncValue

from trio_sd.targets import join_host_port

logger = logging.getLogger(__name__)

Header: TypeAlias = tuple[str, str]
Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"
Body: TypeAlias = bytes | Callable[[], AsyncGenerator[bytes, None]]
T = TypeVar("T")

_JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"


# --- what is asked and answered ---


@dataclass(frozen=True, slots=True)
class TLSFacts:
    """What a handshake led to.

    Attributes:
      version: such as ``TLSv1.3``.
      alpn: the protocol that was agreed on, or ``None``.
      sni: the name that the client asked for, or ``None``; it does not ask for addresses.
      client: the common name of the certificate that the client has shown, or ``None``.
    """

    version: str | None
    alpn: str | None
    sni: str | None
    client: str | None


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection of a client, and its number, from 1."""

    stream: Stream
    number: int
    tls: TLSFacts | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked.

    Attributes:
      target: path and query as they were sent; to a proxy, a whole URL, or host and port.
      headers: names in lower case.
      http: the version, ``2`` or ``1.1``.
      connection: the number of its connection, from 1.
      nth: its number among those of its connection, from 1.
    """

    method: str
    target: str
    headers: tuple[Header, ...]
    body: bytes
    http: str
    connection: int
    nth: int
    tls: TLSFacts | None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form that was sent."""
        return dict(parse_qsl(self.body.decode("latin-1"), keep_blank_values=True))

    @property
    def keeps_alive(self) -> bool:
        """Whether the client may use the connection again."""
        return self.http != "1.0" and (self.header("connection") or "").lower() != "close"

    def header(self, name: str) -> str | None:
        """Return the values of the header ``name``, in lower case, with commas between them."""
        return ", ".join(value for key, value in self.headers if key == name) or None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Its body is bytes, or yields pieces, which take the time that they take.

    Without ``Content-Length`` among its headers, bytes get the right one, and pieces are chunked.

    Attributes:
      informational: the statuses of answers that come before this one; not over HTTP/2.
      closes: whether the connection ends after it, though it has not said so; not over HTTP/2.
    """

    status: int = 200
    headers: tuple[Header, ...] = ()
    body: Body = b""
    informational: tuple[int, ...] = ()
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """What is sent in the place of an answer, until the connection is closed. Over HTTP/2, it is only closed."""

    body: Body = b""


Answer: TypeAlias = Response | Raw
Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]
Route: TypeAlias = Handler | Answer


async def answer(route: Route, request: Request) -> Answer:
    """Return what ``route`` answers."""
    return route if isinstance(route, Response | Raw) else await route(request)


# --- misbehaviour ---


async def hang(request: Request) -> Answer:
    """Never answer."""
    await trio.sleep_forever()


def pieces(*parts: bytes, every: float = 0) -> Body:
    """Make a body of parts, with so many seconds before each."""

    async def body() -> AsyncGenerator[bytes, None]:
        for part in parts:
            await trio.sleep(every)
            yield part

    return body


def drip(content: bytes, every: float) -> Body:
    """Make a body of which a byte comes every so many seconds."""
    return pieces(*(bytes([byte]) for byte in content), every=every)


def stall(before: bytes = b"") -> Body:
    """Make a body that does not go on after ``before``."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield before
        await trio.sleep_forever()

    return body


def endless(chunk: bytes = b" " * 65536) -> Body:
    """Make a body that never ends."""

    async def body() -> AsyncGenerator[bytes, None]:
        while True:
            yield chunk

    return body


def lying_length(claimed: int, body: bytes) -> Response:
    """Say that the body has another length than it has, and close the connection after it."""
    return Response(200, (("Content-Length", str(claimed)),), body, closes=True)


def stale(route: Route) -> Handler:
    """Answer the first request of each connection, and close the connection when there is a second."""

    async def handle(request: Request) -> Answer:
        return Raw() if request.nth > 1 else await answer(route, request)

    return handle


# --- good behaviour ---


def json_response(value: object, status: int = 200, headers: tuple[Header, ...] = ()) -> Response:
    return Response(status, (("Content-Type", "application/json"), *headers), json.dumps(value).encode())


def gzipped(response: Response) -> Response:
    """Compress an answer that has bytes."""
    assert isinstance(response.body, bytes)
    return Response(response.status, (*response.headers, ("Content-Encoding", "gzip")), gzip.compress(response.body))


def redirect(to: str, status: int = 302) -> Response:
    return Response(status, (("Location", to),))


def busy(retry_after: str, status: int = 503) -> Response:
    """Ask to come back in so many seconds, or at a date."""
    return Response(status, (("Retry-After", retry_after),))


def sequence(*routes: Route) -> Handler:
    """Answer each request by the next route, and all others by the last."""
    left = list(routes)

    async def handle(request: Request) -> Answer:
        return await answer(left.pop(0) if len(left) > 1 else left[0], request)

    return handle


class Switch:
    """Answers by ``route``, which may be changed at any time."""

    def __init__(self, route: Route) -> None:
        self.route = route

    async def __call__(self, request: Request) -> Answer:
        return await answer(self.route, request)


class TargetList:
    """Answers as an endpoint for ``http_sd_configs`` does, and says if nothing has changed since what the client has.

    ``groups`` may be changed at any time.

    Attributes:
      not_modified: how many answers were 304.

    Args:
      etag: whether to send the header.
      last_modified: whether to send the header; each change is a second after the one before.
    """

    def __init__(self, groups: object, *, etag: bool = True, last_modified: bool = True) -> None:
        self.not_modified = 0
        self._groups = groups
        self._offered = {name for name, offered in (("ETag", etag), ("Last-Modified", last_modified)) if offered}
        self._changed = datetime(2024, 1, 1, tzinfo=UTC)

    @property
    def groups(self) -> object:
        return self._groups

    @groups.setter
    def groups(self, groups: object) -> None:
        self._groups = groups
        self._changed += timedelta(seconds=1)

    async def __call__(self, request: Request) -> Answer:
        tag = f'"{hashlib.sha256(json.dumps(self._groups).encode()).hexdigest()[:16]}"'
        date = format_datetime(self._changed, usegmt=True)
        offered = {"ETag": tag, "Last-Modified": date}
        headers = tuple((name, value) for name, value in offered.items() if name in self._offered)
        known = request.header("if-none-match")
        # RFC 9110, 13.2.2: a date counts only without tags.
        if known is None and "Last-Modified" in self._offered:
            same = request.header("if-modified-since") == date
        else:
            same = "ETag" in self._offered and tag in (known or "").replace("W/", "").split(", ")
        self.not_modified += same
        return Response(304, headers) if same else json_response(self._groups, headers=headers)


# --- who may ask ---


def basic(user: str, password: str) -> str:
    """Return the value of ``Authorization`` for a user and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def requires_header(name: str, value: str, route: Route, refusal: Response = Response(401)) -> Handler:
    """Answer by ``route`` where a header, named in lower case, has the value, and refuse other requests."""

    async def handle(request: Request) -> Answer:
        return await answer(route, request) if request.header(name) == value else refusal

    return handle


def requires_basic(user: str, password: str, route: Route) -> Handler:
    refusal = Response(401, (("WWW-Authenticate", 'Basic realm="test"'),))
    return requires_header("authorization", basic(user, password), route, refusal)


class TokenEndpoint:
    """Issues OAuth 2 tokens to a client that shows its secret, or a JWT that it has signed.

    Attributes:
      expires_in: how many seconds tokens to come are good for; for ever, without saying so, if ``None``.
      issued: all tokens, in order.
      assertions: of each JWT that was good: its headers and its claims.

    Args:
      client: the client and its secret.
      styles: where the secret may be: in ``basic`` authentication, in the ``form``.
      public_key: as PEM, for the grant type ``jwt-bearer``.
    """

    def __init__(
        self,
        client: tuple[str, str] = ("client", "secret"),
        *,
        styles: Iterable[str] = ("basic", "form"),
        public_key: str | None = None,
        expires_in: float | None = 3600,
    ) -> None:
        self.expires_in = expires_in
        self.issued: list[str] = []
        self.assertions: list[tuple[Mapping[str, object], Mapping[str, object]]] = []
        self._client = client
        self._styles = frozenset(styles)
        self._public_key = public_key
        self._good_until: dict[str, float] = {}

    async def __call__(self, request: Request) -> Answer:
        if request.method != "POST" or request.header("content-type") != "application/x-www-form-urlencoded":
            return self._refusal(400, "invalid_request")
        match request.form:
            case {"grant_type": "client_credentials"}:
                return self._issue() if self._client in self._shown(request) else self._refusal(401, "invalid_client")
            case {"grant_type": grant, "assertion": assertion} if grant == _JWT_BEARER and self._public_key:
                return self._exchange(assertion, self._public_key)
        return self._refusal(400, "unsupported_grant_type")

    def protect(self, route: Route) -> Handler:
        """Answer by ``route`` those who show a token that is good, and no others."""

        async def handle(request: Request) -> Answer:
            token = (request.header("authorization") or "").removeprefix("Bearer ")
            good = trio.current_time() < self._good_until.get(token, -math.inf)
            return await answer(route, request) if good else Response(401, (("WWW-Authenticate", "Bearer"),))

        return handle

    def _shown(self, request: Request) -> Iterable[tuple[str, str]]:
        """Yield the clients that a request says it is from, with their secrets."""
        form = request.form
        if "form" in self._styles:
            yield form.get("client_id", ""), form.get("client_secret", "")
        kind, _, value = (request.header("authorization") or "").partition(" ")
        if "basic" in self._styles and kind == "Basic":
            name, _, secret = base64.b64decode(value).decode().partition(":")
            yield unquote_plus(name), unquote_plus(secret)  # RFC 6749, 2.3.1

    def _exchange(self, assertion: str, public_key: str) -> Response:
        options: jwt.types.Options = {"verify_aud": False, "require": ["exp", "iss"]}
        try:
            found = jwt.decode_complete(assertion, public_key, ["RS256", "RS384", "RS512"], options=options)
        except jwt.InvalidTokenError as error:
            return self._refusal(400, "invalid_grant", str(error))
        self.assertions.append((found["header"], found["payload"]))
        return self._issue()

    def _issue(self) -> Response:
        token = f"token-{len(self.issued) + 1}"
        self.issued.append(token)
        self._good_until[token] = trio.current_time() + (math.inf if self.expires_in is None else self.expires_in)
        expiry = {} if self.expires_in is None else {"expires_in": self.expires_in}
        return json_response({"access_token": token, "token_type": "Bearer", **expiry})

    def _refusal(self, status: int, error: str, description: str = "") -> Response:
        return json_response({"error": error, "error_description": description}, status)


# --- servers ---


class Loopback(Generic[T]):
    """What listens on loopback, and logs what it is asked.

    Clients may go away, fail in a handshake and speak nonsense: that ends their connection, quietly. So does an
    ``OSError`` of whatever else.

    Attributes:
      port: where it listens.
      accepted: how many connections there were.
      requests: what it was asked.
    """

    def __init__(self, host: str, tls: ssl.SSLContext | None, protocols: Iterable[str]) -> None:
        self.host = host
        self.port = 0
        self.accepted = 0
        self.requests: list[T] = []
        self._tls = tls
        self._scheme = "https" if tls else "http"
        self._present: set[trio.SocketStream] = set()
        self._asked = AsyncValue(0)
        self._open = AsyncValue(0)
        # The name that each client asks for: the callback is called in the task of the connection.
        self._names: dict[trio.lowlevel.Task, str | None] = {}
        if tls:
            tls.set_alpn_protocols(list(protocols))
            tls.sni_callback = lambda _, name, __: self._names.update({trio.lowlevel.current_task(): name})

    @property
    def address(self) -> str:
        return join_host_port(self.host, self.port)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._present)

    def drop_connections(self) -> None:
        """Close all connections at once."""
        for transport in self._present:
            transport.socket.close()

    async def wait_requests(self, number: int) -> None:
        """Wait until it was asked ``number`` times in all."""
        await self._asked.wait_value(lambda asked: asked >= number)

    async def wait_open(self, number: int) -> None:
        """Wait until there are ``number`` connections."""
        await self._open.wait_value(number)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        [listener] = await trio.open_tcp_listeners(0, host=self.host)
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._connect, [listener])
            try:
                yield self
            finally:
                self.drop_connections()  # hypercorn shields what it sends
                nursery.cancel_scope.cancel()

    @abstractmethod
    async def _serve(self, connection: Connection) -> None: ...

    def _log(self, asked: T) -> None:
        self.requests.append(asked)
        self._asked.value = len(self.requests)

    async def _connect(self, transport: trio.SocketStream) -> None:
        self.accepted += 1
        number = self.accepted
        self._present.add(transport)
        self._open.value = self.open
        try:
            if self._tls:
                await self._serve(await self._handshake(transport, self._tls, number))
            else:
                await self._serve(Connection(transport, number))
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            transport.socket.close()
            self._present.discard(transport)
            self._open.value = self.open

    async def _handshake(self, transport: trio.SocketStream, context: ssl.SSLContext, number: int) -> Connection:
        stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            # Trio keeps what is wrong to itself, other servers tell it. There is no public way to get at it.
            if alert := stream._outgoing.read():
                await transport.send_all(alert)
            raise
        finally:
            name = self._names.pop(trio.lowlevel.current_task(), None)
        subject = (stream.getpeercert() or {}).get("subject", ())
        common_name = {key: value for [(key, value)] in subject}.get("commonName")
        facts = TLSFacts(stream.version(), stream.selected_alpn_protocol(), name, common_name)
        return Connection(stream, number, facts)


class HTTP1:
    """The side of a server of an HTTP/1.1 connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._asked = count(1)
        self._rest = b""

    async def read(self) -> Request | None:
        """Return the next request, or ``None`` if there is none; nonsense is answered with 400, and is the end."""
        parser = h11.Connection(h11.SERVER)
        if self._rest:
            parser.receive_data(self._rest)
        head, body = None, b""
        try:
            while not isinstance(event := parser.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif received := await self._stream.receive_some():
                    parser.receive_data(bytes(received))
                else:
                    return None
        except h11.RemoteProtocolError as error:
            await self._stream.send_all(_head(error.error_status_hint, (("Connection", "close"),)))
            return None
        assert head
        self._rest = parser.trailing_data[0]
        return Request(
            head.method.decode(),
            head.target.decode("latin-1"),
            _decoded(head.headers),
            body,
            head.http_version.decode(),
            self._connection.number,
            next(self._asked),
            self._connection.tls,
        )

    @asynccontextmanager
    async def while_present(self) -> AsyncIterator[None]:
        """Cancel the block when the client goes away."""

        async def watch(scope: trio.CancelScope) -> None:
            while received := await self._stream.receive_some():
                self._rest += received
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def send(self, answer: Answer, request: Request) -> bool:
        """Send the answer to a request, and return whether the connection goes on."""
        if isinstance(answer, Raw):
            await self._send_body(answer.body)
            return False
        for status in answer.informational:
            await self._stream.send_all(_head(status, ()))
        headers = _with_length(answer)
        chunked = callable(answer.body) and "content-length" not in {name.lower() for name, _ in headers}
        if chunked:
            headers += (("Transfer-Encoding", "chunked"),)
        if not request.keeps_alive:
            headers += (("Connection", "close"),)
        await self._stream.send_all(_head(answer.status, headers))
        if request.method != "HEAD" and answer.status not in (204, 304):
            await self._send_body(answer.body, chunked=chunked)
        return request.keeps_alive and not answer.closes

    async def _send_body(self, body: Body, *, chunked: bool = False) -> None:
        async with aclosing(_pieces(body)) as parts:
            async for part in parts:
                await self._stream.send_all(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            await self._stream.send_all(b"0\r\n\r\n")


def _head(status: int, headers: tuple[Header, ...]) -> bytes:
    lines = [f"HTTP/1.1 {status} {responses.get(status, '')}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _with_length(response: Response) -> tuple[Header, ...]:
    """Return the headers, with ``Content-Length`` where bytes have none."""
    told = "content-length" in {name.lower() for name, _ in response.headers}
    if told or not isinstance(response.body, bytes) or response.status in (204, 304):
        return response.headers
    return (*response.headers, ("Content-Length", str(len(response.body))))


async def _pieces(body: Body) -> AsyncGenerator[bytes, None]:
    """Yield what is to be sent; an empty piece would end a body that is chunked."""
    if isinstance(body, bytes):
        if body:
            yield body
        return
    async with aclosing(body()) as parts:
        async for part in parts:
            if part:
                yield part


class _HTTP2(TCPServer):
    """hypercorn's server of one connection. It ends with the connection, and does not wait for another request."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.context.terminated.set()


class HTTPServer(Loopback[Request]):
    """What :func:`open_http_server` yields."""

    def __init__(
        self, routes: Handler | Mapping[str, Route], host: str, tls: ssl.SSLContext | None, *, http2: bool
    ) -> None:
        super().__init__(host, tls, ["h2", "http/1.1"] if http2 else ["http/1.1"])
        self._routes = routes
        self._config = HypercornConfig()
        self._config.errorlog = logger
        self._config.include_server_header = False
        self._config.keep_alive_timeout = math.inf

    def url(self, path: str = "/", *, host: str = "") -> str:
        """Return where ``path`` is, on this host or on one of that name."""
        return f"{self._scheme}://{join_host_port(host or self.host, self.port)}{path}"

    async def _serve(self, connection: Connection) -> None:
        if isinstance(connection.stream, trio.SSLStream) and connection.tls and connection.tls.alpn == "h2":
            app = ASGIWrapper(partial(self._application, connection, count(1)))
            await _HTTP2(app, self._config, WorkerContext(None), ConnectionState({}), connection.stream)
            return
        http, goes_on = HTTP1(connection), True
        while goes_on and (request := await http.read()):
            goes_on = False
            async with http.while_present():
                goes_on = await http.send(await self._answer(request), request)

    async def _answer(self, request: Request) -> Answer:
        """Log a request, and return what to answer: 404 if there is no such route."""
        self._log(request)
        found = self._routes.get(request.path, Response(404)) if isinstance(self._routes, Mapping) else self._routes
        return await answer(found, request)

    async def _application(
        self,
        connection: Connection,
        asked: Iterator[int],
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        """Be the ASGI application of an HTTP/2 connection."""
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body, more = body + message["body"], message["more_body"]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        request = Request(
            scope["method"],
            target.decode("latin-1"),
            _decoded(scope["headers"]),
            body,
            scope["http_version"],
            connection.number,
            next(asked),
            connection.tls,
        )

        async def watch(scope: trio.CancelScope) -> None:
            await receive()  # all that can come is that the client has gone
            scope.cancel()

        sent = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            found = await self._answer(request)
            if isinstance(found, Raw):
                await connection.stream.aclose()
            else:
                await self._send(found, send)
                sent = True
            nursery.cancel_scope.cancel()
        if sent:  # this tells the watch, too, that the client has gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, response: Response, send: ASGISendCallable) -> None:
        """Send all but the end."""
        pairs = _with_length(response)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await send({"type": "http.response.start", "status": response.status, "headers": headers, "trailers": False})
        async with aclosing(_pieces(response.body)) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})


def open_http_server(
    routes: Handler | Mapping[str, Route],
    *,
    tls: ssl.SSLContext | None = None,
    http2: bool = False,
    host: str = "127.0.0.1",
) -> AbstractAsyncContextManager[HTTPServer]:
    """Serve for the time of the block; connections that are left end with it.

    Args:
      routes: what to answer, for each path or for all.
      tls: for HTTPS; a context that no other server has.
      http2: whether clients may have HTTP/2, with TLS. An exception of a handler is then a line of the log and 500,
        while over HTTP/1.1 it is raised by the block.
      host: an address of the loopback interface.
    """
    return HTTPServer(routes, host, tls, http2=http2).serving()


# --- certificates and keys ---


class Certificates:
    """Files of two authorities, ``authority`` and ``other``, and of certificates: ``<name>.crt`` and ``<name>.key``.

    ``server`` is for 127.0.0.1, ::1, localhost and server.example, ``misnamed`` for another name, ``client`` for a
    client. ``stranger`` is of the other authority, and good for a server and a client.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        authority, other = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(self.path("authority.crt"))
        other.cert_pem.write_to_path(self.path("other.crt"))
        names = ("127.0.0.1", "::1", "localhost", "server.example")
        self._issue(authority, "server", *names)
        self._issue(authority, "misnamed", "misnamed.example")
        self._issue(authority, "client", "client.example")
        self._issue(other, "stranger", *names)

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def server(
        self, name: str = "server", *, asks_for_a_certificate: bool = False, newest: ssl.TLSVersion | None = None
    ) -> ssl.SSLContext:
        """Return a new context of a server that shows the certificate ``name``.

        Args:
          asks_for_a_certificate: whether clients must show one of the authority.
          newest: the newest version to speak.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        if asks_for_a_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("authority.crt"))
        if newest:
            context.maximum_version = newest
        return context

    def _issue(self, authority: trustme.CA, name: str, *identities: str) -> None:
        issued = authority.issue_cert(*identities, common_name=name)
        issued.private_key_pem.write_to_path(self.path(f"{name}.key"))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(self.path(f"{name}.crt"), append=True)


def new_rsa_key() -> tuple[str, str]:
    """Return a private key and its public key as PEM, to sign JWTs with and to check them."""
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private.decode(), key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
