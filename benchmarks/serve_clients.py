"""The clients of the benchmark of the server, in a process of their own: ``python -m benchmarks.serve_clients LOAD``.

Most of them behave. Some read nothing of what they ask for, some a few bytes a second, and some never finish asking.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

import trio
from trio_util import periodic

__all__ = ["MISBEHAVIOURS", "Load", "Seen"]

MISBEHAVIOURS = ("read nothing", "read 10 bytes/s", "ask half")
_HEAD = b"HTTP/1.1 200"
_EVENTS = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
_RECEIVING = 8 * 1024  # bytes that the kernel takes for who does not read
_LEFT = 5.0  # seconds in which what the server had sent before it gave up is read


@dataclass(frozen=True)
class Load:
    """Who asks, and for how long.

    Attributes:
      port: of the server.
      clients: how many ask, and how many follow events.
      misbehaving: how many of each kind.
      seconds: how long.
      asking: seconds from one request of a client to its next.
    """

    port: int
    clients: int
    misbehaving: int
    seconds: float
    asking: float


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
      answers: how many they got.
      events: how many those who follow got.
      bytes: of all answers.
      errors: answers that are none, and connections that were lost, of clients that behave.
      times: seconds that each answer took.
      dropped: how many of those who misbehave the server had given up at the end, by what they do.
    """

    answers: int = 0
    events: int = 0
    bytes: int = 0
    errors: int = 0
    times: list[float] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISBEHAVIOURS, 0))


async def _all(load: Load) -> Seen:
    seen = Seen()
    async with trio.open_nursery() as nursery:
        for _ in range(load.misbehaving):
            for kind, behave in zip(MISBEHAVIOURS, (_read_nothing, _read_slowly, _ask_half), strict=True):
                nursery.start_soon(_misbehave, load, seen, kind, behave)
        with trio.move_on_after(load.seconds):
            async with trio.open_nursery() as behaving:
                for number in range(load.clients):
                    behaving.start_soon(_follow, load, seen)
                    behaving.start_soon(_ask, load, seen, number / load.clients)
    return seen


async def _ask(load: Load, seen: Seen, delay: float) -> None:
    """Ask again and again on one connection, as an eager Prometheus would; by default it asks every minute."""
    await trio.sleep(delay * load.asking)
    async with await trio.open_tcp_stream("127.0.0.1", load.port) as stream:
        while True:
            began = trio.current_time()
            await stream.send_all(b"GET /sd/set HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
            length = await _answer(stream)
            if length is None:
                seen.errors += 1
                return
            seen.answers += 1
            seen.bytes += length
            seen.times.append(trio.current_time() - began)
            await trio.sleep(max(0.0, load.asking - (trio.current_time() - began)))


async def _answer(stream: trio.SocketStream) -> int | None:
    """Return the length of an answer; ``None`` if it is none."""
    got = b""
    while b"\r\n\r\n" not in got:
        chunk = await _some(stream)
        if not chunk:
            return None
        got += chunk
    head, _, body = got.partition(b"\r\n\r\n")
    if not head.startswith(_HEAD):
        return None
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    missing = length - len(body)
    while missing > 0:
        chunk = await _some(stream)
        if not chunk:
            return None
        missing -= len(chunk)
    return length


async def _some(stream: trio.SocketStream) -> bytes:
    """Return what comes next; nothing if the connection has ended, however it did."""
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def _follow(load: Load, seen: Seen) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", load.port) as stream:
        await stream.send_all(_EVENTS)
        chunk = await _some(stream)
        if chunk.startswith(_HEAD):
            while chunk:
                seen.events += chunk.count(b"event: ")
                chunk = await _some(stream)
        seen.errors += 1  # nobody ends it but the one who follows


async def _misbehave(load: Load, seen: Seen, kind: str, behave: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    """Do it for as long as the others behave, and then find out whether the server has given up."""
    connection = trio.socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVING)
    await connection.connect(("127.0.0.1", load.port))
    async with trio.SocketStream(connection) as stream:
        with trio.move_on_after(load.seconds):
            await behave(stream)
            await trio.sleep_forever()
        with trio.move_on_after(_LEFT):
            while await _some(stream):
                pass
            seen.dropped[kind] += 1


async def _read_nothing(stream: trio.SocketStream) -> None:
    await stream.send_all(_EVENTS)


async def _read_slowly(stream: trio.SocketStream) -> None:
    await stream.send_all(_EVENTS)
    async for _ in periodic(1):
        if not await stream.receive_some(10):
            return


async def _ask_half(stream: trio.SocketStream) -> None:
    await stream.send_all(_EVENTS[:20])


if __name__ == "__main__":
    print(json.dumps(asdict(trio.run(_all, Load(**json.loads(sys.argv[1]))))), flush=True)
    os._exit(0)
