"""Speaks HTTP as a section of the configuration says: whom to be, how to encrypt, through what proxy.

Theory of operation
===================

One client serves all who share a configuration. A request is sent on a connection of its own, kept from an earlier one
or new, so no request waits for another. What it takes (headers, certificates) is read from files anew for each request,
in a thread; if a certificate has changed, the connections that were made with the old one go.

A request is over when its time is, whatever it does: looking up a name, connecting, waiting, following redirects,
reading. What fails on the way to an answer is tried twice more, and so are the answers 502, 503 and 504, after short
random pauses: a server that restarts, or a kept connection that the server has closed in this very moment, is no news.
A redirect to another host takes no credentials there, nor anywhere after that, as in Go.

An answer is read up to a limit. No compression is asked for, as in Prometheus: a small answer could fill the memory.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Final, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.parse import quote as percent_quote

import httpcore2
import trio
from h2.exceptions import H2Error
from socksio.exceptions import SOCKSError

from ..errors import DiscoveryError
from ..http_config import HTTPClientConfig, OAuth2, ProxyConfig, check_url, without_password
from ..messages import one_line, quote
from ..oauth2 import Token, parse_token, read_secret, token_requests
from ..proxies import choose_proxy
from ..resources import Resources
from ..secrets import Secret
from .connections import Connections, Route
from .network import Names

__all__ = ["Answer", "HTTPClient", "HTTPError", "open_http_client", "shared_http_client"]

_USER_AGENT: Final = "trio-sd"
_TRIES: Final = 3
_FIRST_PAUSE: Final = 0.2  # seconds before the second try, at the most; twice as much before the third
_PASSING: Final = frozenset({502, 503, 504})  # a proxy that misses its server, or one that starts
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REQUESTS: Final = 10  # of a chain of redirects, as in Go
_STAY_AT_HOME: Final = frozenset(  # headers that no redirect takes to another host, as in Go's net/http
    {"authorization", "www-authenticate", "cookie", "cookie2", "proxy-authorization", "proxy-authenticate"}
)
_TALKATIVE: Final = ("hpack", "httpcore2")  # loggers that show headers and passwords, unless told not to
_LARGE: Final = 100_000  # bytes of a body that take a millisecond to decode
_TOKEN_BYTES: Final = 1024 * 1024  # of an answer with a token, as in golang.org/x/oauth2
_PORTS: Final = (("http", 80), ("https", 443))

T = TypeVar("T")

_Headers = Sequence[tuple[str, Secret]]


class HTTPError(DiscoveryError):
    """There is no answer, or none that can be used. Tells neither headers nor passwords."""


class _PassingError(HTTPError):
    """There is no answer, but another try may get one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server has answered.

    Attributes:
      status: the status code.
      reason: what stands after it.
      headers: names in lower case, and values.
      body: all of it.
    """

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """Return the value of a header, by its name in lower case; the first one, or an empty text."""
        return next((value for key, value in self.headers if key == name), "")

    async def decoded(self, decode: Callable[[bytes], T]) -> T:
        """Return what ``decode`` makes of the body; in a thread, where that may hold up the loop for long."""
        if len(self.body) <= _LARGE:
            return decode(self.body)
        return await trio.to_thread.run_sync(decode, self.body)

    def unexpected(self) -> HTTPError:
        """Return the error that the status is not what was hoped for."""
        retry_after = self.header("retry-after")
        seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
        text = f"server returned HTTP status {self.status} {one_line(self.reason)}".rstrip()
        return HTTPError(text, retry_after=seconds if self.status in (429, 503) else None)


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL, taken apart.

    Attributes:
      url: all of it.
      scheme: http or https.
      host: in ASCII, without brackets.
      port: of the server.
      path: what is asked for, with its query.
      authorization: the header that a user in the URL makes, or ``None``.
    """

    url: str
    scheme: str
    host: str
    port: int
    path: str
    authorization: Secret | None

    @classmethod
    def of(cls, url: str) -> _Target:
        """Take ``url`` apart.

        Raises:
          HTTPError: it is none, or none of HTTP.
        """
        try:
            check_url(url)
            parts = urlsplit(url)
            host = (parts.hostname or "").encode("idna" if not url.isascii() else "ascii").decode()
            port = parts.port
        except ValueError as error:  # UnicodeError is one
            raise HTTPError(f"can't ask {quote(without_password(url))}: {error}") from None
        if parts.scheme not in ("http", "https") or not host or host.startswith("."):
            message = "expected a URL that begins with http:// or https:// and a host"
            raise HTTPError(f"can't ask {quote(without_password(url))}: {message}")
        path = percent_quote(_bytes(parts.path or "/"), safe="/%:@!$&'()*+,;=~")
        if parts.query:
            path += "?" + percent_quote(_bytes(parts.query), safe="/?%:@!$&'()*+,;=~[]{}|\\^`\"<>")
        return cls(url, parts.scheme, host, port or dict(_PORTS)[parts.scheme], path, _user_of(parts))

    def host_header(self) -> str:
        """Return the value of the header ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if (self.scheme, self.port) in _PORTS else f"{host}:{self.port}"


def _joined(url: str, location: str) -> str:
    """Return where an answer of ``url`` points.

    Raises:
      HTTPError: nowhere.
    """
    try:
        return urljoin(url, location)
    except ValueError:
        raise HTTPError(f"can't ask {quote(without_password(location))}: not a valid URL") from None


def _check_server_name(name: str) -> None:
    """Refuse what a certificate can't be checked for.

    Raises:
      HTTPError: it is no name of a server.
    """
    try:
        good = bool(name) and not name.startswith(".")
        name.encode("idna")
    except UnicodeError:
        good = False
    if not good:
        raise HTTPError(f"{quote(name)} is no name of a server, expected one that a certificate can have")


def _user_of(parts: SplitResult) -> Secret | None:
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Secret(f"Basic {base64.b64encode(pair.encode()).decode()}")


def _same_site(host: str, home: str) -> bool:
    """Return whether ``host`` is ``home`` or lies below it; an address never lies below anything."""
    return host == home or (":" not in host and host.endswith(f".{home}"))


@dataclass(frozen=True, slots=True)
class _Request:
    """What to ask, of whomever."""

    method: str
    headers: _Headers
    credentials: _Headers
    body: bytes
    max_bytes: int


@dataclass(frozen=True, slots=True)
class _Identity:
    """What was read of files, or needs none.

    Attributes:
      headers: to send with each request.
      statuses: of the files that certificates and keys are in, from before they were read.
      context: how to encrypt, or ``None`` while nobody needs to know.
    """

    headers: _Headers
    statuses: Sequence[tuple[int, ...]]
    context: ssl.SSLContext | None


def _read_identity(config: HTTPClientConfig, before: _Identity | None, *, encrypted: bool) -> _Identity:
    """Read what requests need. Blocks.

    Raises:
      SecretError: a file can't be read, or used for a header.
      TLSError: a certificate or a key can't be.
    """
    statuses = [_status(file) for file in config.tls_config.files]
    context = before.context if before and before.statuses == statuses else None
    if encrypted and context is None:
        context = config.tls_config.context()
    return _Identity(config.request_headers(), statuses, context)


def _status(file: str) -> tuple[int, ...]:
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return ()  # who reads it tells why it can't be
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class HTTPClient:
    """Asks servers as one configuration says. Get one from :func:`shared_http_client` or :func:`open_http_client`.

    Args:
      config: how to ask.
      nursery: owns what the client leaves running; it is cancelled when the client is no longer needed.
    """

    def __init__(self, config: HTTPClientConfig, nursery: trio.Nursery) -> None:
        self._config = config
        self._connections = Connections(Names(nursery))
        self._identity: _Identity | None = None
        self._identity_turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # a file that hangs takes one thread, not all of the program's
        self._rng = random.Random()
        self._secret_names = _STAY_AT_HOME | {
            name.lower() for name, header in (config.http_headers or {}).items() if header and header.is_secret
        }
        self._token: Token | None = None
        self._token_secret: Secret | None = None
        self._token_turn = trio.Lock()
        self._token_client = _token_client(config, nursery)

    def close(self) -> None:
        """Close the connections; those that are in use, when they no longer are."""
        self._connections.close()
        if self._token_client is not None:
            self._token_client.close()

    async def get(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        credentials: _Headers = (),
        deadline: float,
        max_bytes: int,
    ) -> Answer:
        """Ask for ``url``, and return the answer, whatever its status.

        Args:
          url: what to ask for.
          headers: more headers to send.
          credentials: headers that no redirect takes to another host.
          deadline: seconds that all of it may take.
          max_bytes: how long a body may be.

        Raises:
          HTTPError: there is no answer in that time, or a longer one, or a redirect that leads nowhere.
          SecretError: the file of a password or token can't be read.
          TLSError: a certificate or key can't be used.

        Cancelled, it closes the connection.
        """
        public = tuple((name, Secret(value)) for name, value in headers)
        return await self._ask(url, _Request("GET", public, tuple(credentials), b"", max_bytes), deadline)

    async def _ask(self, url: str, request: _Request, deadline: float) -> Answer:
        target = _Target.of(url)
        trouble: _PassingError | None = None
        with trio.move_on_after(deadline):
            pause = _FIRST_PAUSE
            for left in reversed(range(_TRIES)):
                try:
                    answer = await self._follow(request, target)
                except _PassingError as error:
                    if not left:
                        raise
                    trouble = error
                else:
                    if not left or answer.status not in _PASSING or answer.header("retry-after"):
                        return answer
                    trouble = _PassingError(str(answer.unexpected()))
                await trio.sleep(pause * (1 + self._rng.random()) / 2)
                pause *= 2
        raise HTTPError(f"no answer within {deadline:g} s{f'; {trouble}' if trouble else ''}")

    async def _follow(self, request: _Request, target: _Target) -> Answer:
        """Ask, and go where the answer points."""
        home, away = target.host, False
        for _ in range(_MOST_REQUESTS):
            answer = await self._exchange(request, target, away=away)
            location = answer.header("location")
            if answer.status not in _REDIRECTS or not location or not self._config.follow_redirects or request.body:
                return answer
            target = _Target.of(_joined(target.url, location))
            away = away or not _same_site(target.host, home)
        raise HTTPError(f"redirected {_MOST_REQUESTS} times, last to {quote(without_password(target.url))}")

    async def _exchange(self, request: _Request, target: _Target, *, away: bool) -> Answer:
        """Send one request and read its answer; ``away`` from the host that credentials are for."""
        proxy = choose_proxy(self._config, target.url, os.environ)
        identity = await self._current_identity(
            encrypted=target.scheme == "https" or (proxy is not None and proxy.scheme == "https")
        )
        sent = [*identity.headers, *request.headers]
        if away:
            sent = [(name, value) for name, value in sent if name.lower() not in self._secret_names]
        else:
            sent += request.credentials
        authorization = target.authorization  # which wins over that of the configuration, but for tokens, as in Go
        if self._config.oauth2 and not away:
            authorization = await self._token_header(self._config.oauth2)
        if authorization:
            sent = [(name, value) for name, value in sent if name.lower() != "authorization"]
            sent.append(("Authorization", authorization))
        if request.body:
            sent.append(("Content-Length", Secret(str(len(request.body)))))
        route = Route(
            origin=(target.scheme, target.host, target.port),
            proxy=proxy,
            connect_headers=_connect_headers(self._config),
            context=identity.context,
            http2=self._config.enable_http2,
        )
        server_name = self._config.tls_config.server_name or target.host
        if target.scheme == "https":
            _check_server_name(server_name)
        # Proxies are told an address of IPv6 in brackets, and httpcore2 adds none.
        bracketed = ":" in target.host and proxy is not None and proxy.scheme in ("http", "https")
        try:
            with self._connections.use(route) as connection:
                async with connection.stream(
                    request.method,
                    httpcore2.URL(
                        scheme=target.scheme.encode(),
                        host=(f"[{target.host}]" if bracketed else target.host).encode(),
                        port=target.port,
                        target=target.path.encode(),
                    ),
                    headers=[
                        (b"Host", target.host_header().encode()),
                        (b"User-Agent", _USER_AGENT.encode()),
                        *((name.encode(), _bytes(value.reveal())) for name, value in sent),
                    ],
                    content=request.body or None,
                    extensions={"sni_hostname": server_name},
                ) as response:
                    answer = Answer(
                        response.status,
                        _text(response.extensions.get("reason_phrase", b"")),
                        [(_text(name).lower(), _text(value)) for name, value in response.headers],
                        await _body(response, request.max_bytes),
                    )
        except (httpcore2.NetworkError, httpcore2.RemoteProtocolError, httpcore2.TimeoutException) as error:
            refused = _certificate_error(error)
            raise (HTTPError if refused else _PassingError)(refused or _reason(error)) from None
        except H2Error as error:  # httpcore2 lets some of these out
            raise _PassingError(f"HTTP/2: {type(error).__name__}") from None
        except (httpcore2.ProxyError, SOCKSError) as error:
            raise HTTPError(f"the proxy answers: {_reason(error)}") from None
        except (httpcore2.LocalProtocolError, OverflowError) as error:
            if error.args and isinstance(error.args[0], H2Error):  # about what the server has sent, for all that
                raise _PassingError(f"HTTP/2: {type(error.args[0]).__name__}") from None
            # Its words are those that can't be sent.
            raise HTTPError("the request can't be sent: found a header or a password that none can be") from None
        if answer.status == 401 and not away:
            self._token = None  # the next request gets a new one
        return answer

    async def _current_identity(self, *, encrypted: bool) -> _Identity:
        reads_files = self._config.reads_files
        async with self._identity_turn:
            before = self._identity
            if before is not None and not reads_files and (before.context or not encrypted):
                return before
            read = partial(_read_identity, self._config, before, encrypted=encrypted)
            self._identity = await self._in_thread(read) if encrypted or reads_files else read()
            if before is not None and before.context is not None and before.context is not self._identity.context:
                self._connections.close()
            return self._identity

    async def _in_thread(self, read: Callable[[], T]) -> T:
        """Call what may hang. Cancelled, it leaves the thread behind, and who comes next waits for that to end."""
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._limiter)

    async def _token_header(self, oauth2: OAuth2) -> Secret:
        """Return the header with a token, after getting one if there is none that can be used."""
        async with self._token_turn:
            secret = (
                await self._in_thread(partial(read_secret, oauth2)) if self._config.reads_files else read_secret(oauth2)
            )
            if self._token is None or secret != self._token_secret or not self._token.usable(trio.current_time()):
                self._token = None
                self._token = await self._new_token(oauth2, secret)
                self._token_secret = secret
            return self._token.header()

    async def _new_token(self, oauth2: OAuth2, secret: Secret) -> Token:
        assert self._token_client is not None
        trouble: DiscoveryError | None = None
        where = quote(without_password(oauth2.token_url))
        for asked in token_requests(oauth2, secret, now=time.time()):
            request = _Request("POST", asked.headers, (), asked.body.reveal().encode(), _TOKEN_BYTES)
            try:
                answer = await self._token_client._follow(request, _Target.of(asked.url))
                content_type = answer.header("content-type")
                return parse_token(answer.status, content_type, answer.body, now=trio.current_time())
            except _PassingError as error:
                raise _PassingError(f"no token from {where}: {error}") from None
            except DiscoveryError as error:
                trouble = error
        raise HTTPError(f"no token from {where}: {trouble}")


def _token_client(config: HTTPClientConfig, nursery: trio.Nursery) -> HTTPClient | None:
    oauth2 = config.oauth2
    if oauth2 is None:
        return None
    proxy = {name.name: getattr(oauth2, name.name) for name in fields(ProxyConfig)}
    return HTTPClient(HTTPClientConfig(tls_config=oauth2.tls_config, enable_http2=False, **proxy), nursery)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(header: bytes) -> str:
    """Return what a server says, so that it can be said back to it whatever its encoding is."""
    return header.decode("utf-8", "surrogateescape")


def _connect_headers(config: HTTPClientConfig) -> tuple[tuple[str, Secret], ...]:
    return tuple((name, value) for name, values in (config.proxy_connect_header or {}).items() for value in values)


async def _body(response: httpcore2.Response, limit: int) -> bytes:
    """Read a body to its end.

    Raises:
      HTTPError: it is longer than ``limit`` bytes.
    """
    length = next((value for name, value in response.headers if name.lower() == b"content-length"), b"")
    found = int(length[:20]) if length.isdigit() else 0
    parts = []
    async with aclosing(response.aiter_stream()) as stream:
        if found <= limit:
            found = 0
            async for part in stream:
                parts.append(part)
                found += len(part)
                if found > limit:
                    break
    if found > limit:
        raise HTTPError(f"the answer is longer than the {limit} bytes that the limit http_body_bytes allows")
    return b"".join(parts)


def _certificate_error(error: BaseException) -> str:
    """Return why a certificate was not trusted, or an empty text if that is not what went wrong."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return one_line(f"the certificate of the server can't be trusted: {cause.verify_message}")
    return ""


def _reason(error: BaseException) -> str:
    """Return what went wrong in words; the words are mostly those of the innermost cause."""
    for cause in reversed(list(_causes(error))):
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return f"TLS: {cause.reason.lower().replace('_', ' ')}"
        if isinstance(cause, OSError) and cause.strerror:
            return one_line(cause.strerror)
        if str(cause):
            return one_line(str(cause))
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else None
        # httpcore2 tells the cause in the arguments, and forgets it as the cause.
        told = seen.args[0] if seen.args and isinstance(seen.args[0], BaseException) else None
        seen = seen.__cause__ or inner or told or (None if seen.__suppress_context__ else seen.__context__)


@asynccontextmanager
async def open_http_client(config: HTTPClientConfig) -> AsyncIterator[HTTPClient]:
    """Open a client, and close its connections at the end.

    Args:
      config: how to ask; of a section that has more keys, its :meth:`~.HTTPClientConfig.client_config`.
    """
    for name in _TALKATIVE:
        library = logging.getLogger(name)
        if library.level == logging.NOTSET:
            library.setLevel(logging.INFO)
    async with trio.open_nursery() as nursery:
        client = HTTPClient(config, nursery)
        try:
            yield client
        finally:
            client.close()
            nursery.cancel_scope.cancel()


@dataclass(frozen=True)
class _Key:
    """The key of a shared client; its text is told in statistics."""

    config: HTTPClientConfig

    def __str__(self) -> str:
        return "HTTP client"


def shared_http_client(resources: Resources, config: HTTPClientConfig) -> AbstractAsyncContextManager[HTTPClient]:
    """Return the client that all discoverers of one manager share which ask in the same way; for ``async with``.

    Args:
      resources: what the discoverers of the manager share.
      config: how to ask. Keys of a section that are not about that do not count.
    """
    config = config.client_config()
    return resources.use(_Key(config), lambda: open_http_client(config))
