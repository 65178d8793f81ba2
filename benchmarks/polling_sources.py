"""What is polled in the benchmark of polling, in a process of its own: ``python -m benchmarks.polling_sources``.

An HTTP endpoint for each path, and a name server that knows an address for each name. It prints their two ports, and
once its input ends, when each path and name was asked for, in seconds. What is called ``hang`` is never answered.
"""

from __future__ import annotations

import json
import sys
import time

import trio

__all__: list[str] = []

_BODY = b'[{"targets": ["10.0.0.1:9100"], "labels": {"zone": "a"}}]'
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
_RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x0a\x00\x00\x01"  # the name asked for is at 10.0.0.1
_HANG = "hang"


class _Sources:
    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = {}

    def _note(self, name: str) -> None:
        self.asked.setdefault(name, []).append(time.perf_counter())

    async def answer_http(self, stream: trio.SocketStream) -> None:
        received = b""
        try:
            async with stream:
                async for data in stream:
                    received += data
                    while b"\r\n\r\n" in received:
                        head, _, received = received.partition(b"\r\n\r\n")
                        path = head.split(b" ", 2)[1].decode()
                        self._note(path)
                        if _HANG in path:
                            await trio.sleep_forever()
                        await stream.send_all(_HEAD + _BODY)
        except trio.BrokenResourceError:
            pass  # the client has given up

    async def answer_dns(self, socket: trio.socket.SocketType) -> None:
        while True:
            query, sender = await socket.recvfrom(4096)
            end = query.index(b"\0", 12)
            name = query[13:end].decode("latin-1")
            self._note(name)
            if _HANG not in name:
                # One question, one answer, nothing else.
                head = query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00"
                await socket.sendto(head + query[12 : end + 5] + _RECORD, sender)


async def _main() -> None:
    sources = _Sources()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", 0))
        print(listeners[0].socket.getsockname()[1], socket.getsockname()[1], flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, sources.answer_http, listeners)
            nursery.start_soon(sources.answer_dns, socket)
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()
    print(json.dumps(sources.asked))


if __name__ == "__main__":
    trio.run(_main)
