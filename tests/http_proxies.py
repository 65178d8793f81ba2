"""Proxies on loopback that log what they are asked, and do what a test says.

They never leave this machine: whatever a name is, it is loopback, so that only who lets the proxy resolve names gets to
``server.example``.
"""

from __future__ import annotations

import ipaddress
import ssl
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import trio

from .http_servers import HTTP1, Connection, Loopback, Request, Response, Stream, basic

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "proxy-authorization", "proxy-connection"})


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """What a SOCKS proxy was asked.

    Attributes:
      kind: ``ipv4``, ``ipv6`` or ``name``: how the host was given.
      credentials: user and password, if it has asked for them.
    """

    kind: str
    host: str
    port: int
    credentials: tuple[str, str] | None


class HTTPProxy(Loopback[Request]):
    """What :func:`open_http_proxy` yields.

    Attributes:
      hangs: whether requests are only logged; may be changed at any time.
    """

    def __init__(self, credentials: tuple[str, str] | None, tls: ssl.SSLContext | None) -> None:
        super().__init__("127.0.0.1", tls, ["http/1.1"])
        self.hangs = False
        self._authorization = basic(*credentials) if credentials else None

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.address}"

    async def _serve(self, connection: Connection) -> None:
        stream = connection.stream
        client = HTTP1(connection)
        request = await client.read()
        if request is None:
            return
        self._log(request)
        if self.hangs:
            await _until_gone(stream)
            return
        if self._authorization and request.header("proxy-authorization") != self._authorization:
            refusal = (("Proxy-Authenticate", 'Basic realm="proxy"'), ("Connection", "close"))
            await client.send(Response(407, refusal), request)
            return
        url = urlsplit(f"//{request.target}" if request.method == "CONNECT" else request.target)
        try:
            server = await _connected(url.hostname or "", url.port or 80)
        except OSError:
            await client.send(Response(502, (("Connection", "close"),)), request)
            return
        async with server:
            if request.method == "CONNECT":
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                target = url._replace(scheme="", netloc="").geturl() or "/"
                await server.send_all(_head(request, target) + request.body)
            await _splice(stream, server)


class SocksProxy(Loopback[SocksRequest]):
    """What :func:`open_socks5_proxy` yields. It speaks as RFC 1928 and RFC 1929 say.

    Attributes:
      hangs: whether requests are only logged; may be changed at any time.
    """

    def __init__(self, credentials: tuple[str, str] | None) -> None:
        super().__init__("127.0.0.1", None, ())
        self.hangs = False
        self._credentials = credentials

    @property
    def url(self) -> str:
        return f"socks5://{self.address}"

    async def _serve(self, connection: Connection) -> None:
        stream = connection.stream
        _, count = await _exactly(stream, 2)
        method = 2 if self._credentials else 0
        if method not in await _exactly(stream, count):
            await stream.send_all(b"\x05\xff")
            return
        await stream.send_all(bytes([5, method]))
        credentials = None
        if self._credentials:
            await _exactly(stream, 1)
            credentials = await _text(stream), await _text(stream)
            await stream.send_all(bytes([1, credentials != self._credentials]))
            if credentials != self._credentials:
                return
        *_, kind = await _exactly(stream, 4)
        if kind == 3:
            name, host = "name", await _text(stream)
        else:
            name, size = ("ipv4", 4) if kind == 1 else ("ipv6", 16)
            host = str(ipaddress.ip_address(await _exactly(stream, size)))
        port = int.from_bytes(await _exactly(stream, 2), "big")
        self._log(SocksRequest(name, host, port, credentials))
        if self.hangs:
            await _until_gone(stream)
            return
        try:
            server = await _connected(host, port)
        except OSError:
            await stream.send_all(b"\x05\x05\0\x01" + bytes(6))
            return
        async with server:
            await stream.send_all(b"\x05\0\0\x01" + bytes(6))
            await _splice(stream, server)


def open_http_proxy(
    *, credentials: tuple[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> AbstractAsyncContextManager[HTTPProxy]:
    """Forward requests, and connections by ``CONNECT``, for the time of the block.

    Args:
      credentials: the user and the password to ask for, or ``None``.
      tls: for a proxy that is itself spoken to by HTTPS.
    """
    return HTTPProxy(credentials, tls).serving()


def open_socks5_proxy(*, credentials: tuple[str, str] | None = None) -> AbstractAsyncContextManager[SocksProxy]:
    """Forward connections for the time of the block.

    Args:
      credentials: the user and the password to ask for, or ``None``.
    """
    return SocksProxy(credentials).serving()


def _head(request: Request, target: str) -> bytes:
    """Return the head of a request for the server: it is told to close the connection, which is for one request."""
    headers = [header for header in request.headers if header[0] not in _HOP_BY_HOP]
    lines = [f"{name}: {value}" for name, value in (*headers, ("connection", "close"))]
    return "\r\n".join([f"{request.method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


async def _connected(host: str, port: int) -> trio.SocketStream:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = "127.0.0.1"
    return await trio.open_tcp_stream(host, port)


async def _exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        received = await stream.receive_some(count - len(data))
        if not received:
            raise trio.BrokenResourceError("the client has gone")
        data += received
    return data


async def _text(stream: Stream) -> str:
    """Return a string that has its length before it."""
    [length] = await _exactly(stream, 1)
    return (await _exactly(stream, length)).decode()


async def _until_gone(stream: Stream) -> None:
    while await stream.receive_some():
        pass


async def _splice(client: Stream, server: trio.SocketStream) -> None:
    """Forward both ways, until either side ends."""

    async def forward(source: Stream, sink: Stream, over: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some():
                await sink.send_all(data)
        over.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward, client, server, nursery.cancel_scope)
        nursery.start_soon(forward, server, client, nursery.cancel_scope)
