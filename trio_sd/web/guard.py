"""What every request passes before it is answered, and what every answer carries.

Pages of other sites must not get at this server through a visitor's browser. They can't name it by its own name, if
the names it has are known (``Host``); they can't send it orders, if those that come from elsewhere are refused
(``Origin``); and they can't read it, because nothing here allows them to, unless :attr:`Guarding.cors_origin` does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import trio

from ..regexes import Regex
from .auth import Authenticator

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "Guarding"]

_LOOPBACK_NAMES: Final = frozenset({"localhost", "localhost.localdomain"})
_HEADERS: Final = 64
_TARGET: Final = 4_096  # bytes of path and query
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.%]+\]|[^:\[\]/?#@\\\s]+)(:[0-9]{1,5})?")

_SECURITY_HEADERS: Final = MappingProxyType(
    {
        "content-security-policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
)

_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, HEAD"),
    (b"access-control-allow-headers", b"Accept, Authorization, If-None-Match, Last-Event-ID, Origin"),
)


@dataclass(frozen=True)
class Guarding:
    """Who may ask.

    Attributes:
      hosts: names by which clients may call the server, besides ``localhost`` and addresses. An address needs not be
        told, because no page can make a browser take it for a name.
      users: bcrypt hashes of passwords by user; everybody may ask if there are none, and no tokens.
      tokens: SHA-256 sums of tokens, of which bearers may ask.
      headers: what every answer carries besides, or instead of, the security headers that it has anyway.
      cors_origin: an expression in RE2's syntax that must match the whole origin, such as ``https://a.example``, of a
        page whose scripts may read the answers; those of no other site may if ``None``. They can never give orders, and
        browsers don't send them the user and password that were typed elsewhere.
      latest: awaited at each request for what holds from now on, where that changes. If it raises, nothing is answered.
    """

    hosts: Iterable[str] = ()
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    tokens: Iterable[bytes] = field(default=(), repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    cors_origin: str | None = None
    latest: Callable[[], Awaitable[Guarding]] | None = field(default=None, compare=False, repr=False)


class _Rules:
    """What a :class:`Guarding` says, made ready.

    Attributes:
      answering: what is being answered to those who were let in by these rules.
    """

    def __init__(self, guarding: Guarding) -> None:
        self.guarding = guarding
        self.hosts = _LOOPBACK_NAMES | {host.lower().rstrip(".") for host in guarding.hosts}
        protected = guarding.users or guarding.tokens
        self.auth = Authenticator(guarding.users, guarding.tokens) if protected else None
        headers = {**_SECURITY_HEADERS, **{name.lower(): value.strip() for name, value in guarding.headers.items()}}
        self.headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.answering: set[trio.CancelScope] = set()
        self._may_read = None if guarding.cors_origin is None else Regex(guarding.cors_origin).matches

    def knows(self, host: str) -> bool:
        """Tell whether the server goes by that name."""
        return host in self.hosts or _is_address(host)

    def reader(self, headers: Iterable[tuple[str, str]]) -> str | None:
        """Return the origin of the page that asks, if it may read what is answered."""
        origins = [value for name, value in headers if name == "origin"]
        return origins[0] if self._may_read is not None and len(origins) == 1 and self._may_read(origins[0]) else None

    def cors_headers(self, reader: str | None) -> list[tuple[bytes, bytes]]:
        """Return what tells browsers, and caches, who may read an answer."""
        if self._may_read is None:
            return []
        vary = (b"vary", b"Origin")
        if reader is None:
            return [vary]
        allowed = (b"access-control-allow-origin", reader.encode("latin-1"))
        return [vary, allowed, (b"access-control-expose-headers", b"Date, ETag")]


@dataclass(frozen=True)
class _Refusal:
    status: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Guard:
    """An ASGI application that refuses what is not meant for ``app``, and passes on the rest.

    Args:
      app: answers what passes.
      guarding: who may ask.

    Raises:
      ValueError: ``cors_origin`` is no regular expression.
    """

    def __init__(self, app: ASGIApp, guarding: Guarding) -> None:
        self._app = app
        self._latest = guarding.latest
        self._rules = _Rules(guarding)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A websocket is refused; the lifespan protocol has nothing to do here."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _current(self) -> _Rules:
        """Return the rules that hold now. What is remembered of passwords goes with the old ones.

        If others may ask now, answers under way end: some go on for ever, and who gets them may not be let in again.
        """
        if self._latest is not None and (found := await self._latest()) != self._rules.guarding:
            before, self._rules = self._rules, _Rules(found)
            if (before.guarding.users, before.guarding.tokens) == (found.users, found.tokens):
                self._rules.answering = before.answering
            else:
                for answer in before.answering:
                    answer.cancel()
        return self._rules

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        rules = await self._current()
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        values = dict(headers)
        reader = rules.reader(headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message.get("headers", ())}
                more = [header for header in rules.headers if header[0] not in given]
                more += rules.cors_headers(reader)
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        refusal = _refusal(rules, scope, headers)
        is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in values
        app = _allow if is_preflight and reader is not None else self._app
        if refusal is None and rules.auth is not None and app is self._app:  # a browser asks first without a password
            refusal = await _unauthorized(rules.auth, values.get("authorization", ""))
        async with trio.open_nursery() as nursery:
            rules.answering.add(nursery.cancel_scope)
            try:
                incoming = _Incoming(receive)
                nursery.start_soon(incoming.discard)
                if refusal is None:
                    await app(scope, incoming.receive, send_with_headers)
                else:
                    await _refuse(refusal, send_with_headers)
            finally:
                rules.answering.discard(nursery.cancel_scope)
            nursery.cancel_scope.cancel()


def _refusal(rules: _Rules, scope: Scope, headers: list[tuple[str, str]]) -> _Refusal | None:
    values = dict(headers)
    hosts = [value for name, value in headers if name == "host"]
    if len(headers) > _HEADERS:
        return _Refusal(431, f"more than {_HEADERS} header fields")
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _TARGET:
        return _Refusal(414, f"path and query have more than {_TARGET} bytes")
    if len(hosts) > 1:
        return _Refusal(400, "more than one Host")
    host = hosts[0] if hosts else ""
    if scope["http_version"] == "1.0" and not hosts:
        pass  # it knows no such field, and no browser speaks it
    elif (name := _name_of(host)) is None:
        return _Refusal(400, "the Host can't be read")
    elif not rules.knows(name):
        return _Refusal(421, "this server does not go by the name in Host; --web-host tells it another one")
    if values.get("content-length", "0").strip("0") or "transfer-encoding" in values:
        return _Refusal(413, "no request here has a body")
    if scope["method"] not in ("GET", "HEAD", "OPTIONS") and (refusal := _foreign(values, host)):
        return refusal
    return _path_refusal(scope)


async def _unauthorized(auth: Authenticator, header: str) -> _Refusal | None:
    if auth.busy:
        return _Refusal(429, "too many passwords to check", {"retry-after": "1"})
    if await auth.check(header):
        return None
    challenge = 'Basic realm="trio-sd", charset="UTF-8"' if auth.has_users else 'Bearer realm="trio-sd"'
    return _Refusal(401, "a user and a password, or a token, are needed", {"www-authenticate": challenge})


def _name_of(host: str) -> str | None:
    """Return the name or address in a Host field, or ``None`` if there is none."""
    match = _HOST.fullmatch(host)
    return match["name"].strip("[]").lower().rstrip(".") if match else None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _foreign(headers: Mapping[str, str], host: str) -> _Refusal | None:
    """Refuse an order that the page of another site sends."""
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    if (origin is not None and origin.partition("://")[2] != host) or site not in ("none", "same-origin"):
        return _Refusal(403, "this comes from another site")
    return None


def _path_refusal(scope: Scope) -> _Refusal | None:
    """Refuse a path that does not say one thing in one way."""
    raw: bytes | None = scope.get("raw_path")
    path: str = scope["path"]
    if raw is not None:
        try:
            path = unquote_to_bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            return _Refusal(400, "the path is not UTF-8")
    if not path.startswith("/") or _CONTROL.search(path):
        return _Refusal(400, "the path can't be read")
    return None


class _Incoming:
    """What a client sends after the head of a request: nothing that anybody wants to know, but that it has gone.

    It is taken all the same, because what nobody takes would fill the server's queue, and keep the connection from ever
    ending.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = trio.Event()
        self._begun = False

    async def discard(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def receive(self) -> Message:
        """Be the ``receive`` of an application: an empty body, and later that the client has gone."""
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def _refuse(refusal: _Refusal, send: Send) -> None:
    body = f"{refusal.reason}\n".encode()
    headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **refusal.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _allow(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell a browser what the page of another site may ask for."""
    await send({"type": "http.response.start", "status": 204, "headers": list(_PREFLIGHT)})
    await send({"type": "http.response.body", "body": b""})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
