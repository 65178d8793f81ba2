"""The least that drives an ASGI application: one request, and what is answered."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import trio

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope

__all__ = ["Answer", "ask", "streaming"]


@dataclass(frozen=True)
class Answer:
    """What is answered to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        packed = self.headers.get("content-encoding") == "gzip"
        return json.loads(gzip.decompress(self.body) if packed else self.body)


def scope_of(target: str, method: str, headers: Mapping[str, str], http_version: str = "1.1") -> Scope:
    path, _, query = target.partition("?")
    fields = {"host": "localhost:9099", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": http_version,
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items() if value],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 9099),
    }


def receiving(gone: trio.Event) -> Receive:
    """Return the ``receive`` of a request without a body, whose client goes away when ``gone``."""
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await gone.wait()
            return {"type": "http.disconnect"}
        return messages.pop()

    return receive


async def ask(app: ASGIApp, target: str, method: str = "GET", http_version: str = "1.1", **headers: str) -> Answer:
    """Ask once, with fields of the head such as ``if_none_match="…"``."""
    sent: list[Message] = []
    receive = receiving(trio.Event())

    async def send(message: Message) -> None:
        sent.append(message)
        await trio.lowlevel.checkpoint()

    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    await app(scope_of(target, method, fields, http_version), receive, send)
    assert [message["type"] for message in sent[:1]] == ["http.response.start"], sent
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], {n.decode(): v.decode() for n, v in sent[0]["headers"]}, body)


class Streaming:
    """An answer that goes on."""

    def __init__(self, messages: trio.MemoryReceiveChannel[Message]) -> None:
        self._messages = messages

    async def event(self) -> dict[str, str]:
        """Return the fields of the next event; a comment has the name of nothing."""
        while True:
            message = await self._messages.receive()
            if body := message.get("body"):
                lines = body.decode().rstrip("\n").split("\n")
                return {name: value.removeprefix(" ") for name, _, value in (line.partition(":") for line in lines)}


@asynccontextmanager
async def streaming(app: ASGIApp, target: str, **headers: str) -> AsyncIterator[Streaming]:
    """Ask, read while the block lasts, and go away. Nothing is read ahead."""
    put, messages = trio.open_memory_channel[Any](0)
    gone = trio.Event()
    receive = receiving(gone)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}

    async def send(message: Message) -> None:
        if not gone.is_set():
            await put.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, scope_of(target, "GET", fields), receive, send)
        start = await messages.receive()
        assert start["status"] == 200, start
        yield Streaming(messages)
        gone.set()
        with trio.move_on_after(0.1):
            async for _ in messages:
                pass
