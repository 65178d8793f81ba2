"""The server under load: clients of http_sd and followers of events, while targets change all the time.

The clients are in a process of their own. Measured are what they see, and the engine's own latency meanwhile, from a
provider's send to a consumer in the same process, beside the same without any client.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from trio_sd.manager import Manager, open_manager
from trio_sd.web import ListenAddress, open_application, serve

from .manager import UNTHROTTLED, Feeder, FeederConfig, one_target_group
from .report import Row

_PACE = 0.02  # seconds between two changes
_ASKING = 5.0
_HEAD = b"HTTP/1.1 200"


def run(*, quick: bool) -> list[Row]:
    """Measure, and return a row for each figure."""
    clients, size, seconds = (50, 2_000, 4.0) if quick else (200, 10_000, 20.0)
    return trio.run(_measure, clients, size, seconds)


@dataclass
class _Churn:
    """Changes one group after the other, and notes how long each takes to its consumer.

    Args:
      size: how many groups there are.
    """

    size: int
    feeder: Feeder = field(default_factory=Feeder)
    latencies: list[float] = field(default_factory=list)
    count: int = 0

    async def fill(self, manager: Manager) -> None:
        await self.feeder.feed.send([one_target_group(index) for index in range(self.size)])
        await manager.wait_synced()

    async def run(self, manager: Manager) -> None:
        async with manager.subscribe(throttle=UNTHROTTLED, name="bench") as updates:
            await updates.receive()
            while True:
                await trio.sleep(_PACE)
                self.count += 1
                index, port = self.count * 7919 % self.size, 9_000 + self.count % 99
                await self.feeder.feed.send([one_target_group(index, port)])
                await updates.receive()
                self.latencies.append(time.perf_counter() - self.feeder.sent)

    def taken(self) -> list[float]:
        """Return the latencies since the last call."""
        found, self.latencies = self.latencies, []
        return found


async def _measure(clients: int, size: int, seconds: float) -> list[Row]:
    churn = _Churn(size)
    async with open_manager({"set": [FeederConfig(churn.feeder)]}) as manager, _served(manager) as port:
        await churn.fill(manager)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn.run, manager)
            await trio.sleep(seconds / 2)
            idle = churn.taken()
            rss = _resident()
            command = [sys.executable, "-m", "benchmarks.serve", str(port), str(clients), str(seconds)]
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            told = b"".join([chunk async for chunk in process.stdout])
            await process.wait()
            loaded = churn.taken()
            grown = _resident() - rss
            nursery.cancel_scope.cancel()
    seen = json.loads(told)
    over = statistics.median(loaded) / statistics.median(idle)
    return [
        Row.of_seconds("engine latency, nobody asks", idle),
        Row.of_seconds(f"engine latency, {clients} clients and {clients} followers", loaded),
        Row("  over that without them", f"{over:.2f} ×", aim="under 2 ×"),
        Row("answers to /sd/SET", f"{seen['answers'] / seconds:,.0f}/s", f"{seen['bytes'] / 1e6 / seconds:,.0f} MB/s"),
        Row.of_seconds("  time of an answer", seen["times"]),
        Row("events to followers", f"{seen['events'] / seconds:,.0f}/s"),
        Row("errors", str(seen["errors"]), aim="0"),
        Row("memory that all of them took", f"{grown / 1e6:,.0f} MB"),
    ]


@asynccontextmanager
async def _served(manager: Manager) -> AsyncIterator[int]:
    async with open_application(manager) as app, trio.open_nursery() as nursery:
        urls = await nursery.start(serve, app, ListenAddress("127.0.0.1", 0))
        yield int(urls[0].rpartition(":")[2])
        nursery.cancel_scope.cancel()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


# The clients


@dataclass
class _Seen:
    answers: int = 0
    events: int = 0
    bytes: int = 0
    errors: int = 0
    times: list[float] = field(default_factory=list)


async def _client_process(port: int, clients: int, seconds: float) -> _Seen:
    seen = _Seen()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(_follow, port, seen)
                nursery.start_soon(_ask, port, seen, number / clients)
    return seen


async def _ask(port: int, seen: _Seen, delay: float) -> None:
    """Ask every five seconds on one connection, as an eager Prometheus would; by default it asks every minute."""
    await trio.sleep(delay * _ASKING)
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        while True:
            began = trio.current_time()
            await stream.send_all(b"GET /sd/set HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
            got = b""
            while b"\r\n\r\n" not in got:
                chunk = await stream.receive_some()
                if not chunk:
                    break
                got += chunk
            head, _, body = got.partition(b"\r\n\r\n")
            if not head.startswith(_HEAD):
                seen.errors += 1
                return
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            missing = length - len(body)
            while missing > 0:
                missing -= len(await stream.receive_some())
            seen.answers += 1
            seen.bytes += length
            seen.times.append(trio.current_time() - began)
            await trio.sleep(max(0.0, _ASKING - (trio.current_time() - began)))


async def _follow(port: int, seen: _Seen) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = await stream.receive_some()
        if not first.startswith(_HEAD):
            seen.errors += 1
            return
        async for chunk in stream:
            seen.events += chunk.count(b"event: ")


if __name__ == "__main__":
    print(json.dumps(trio.run(_client_process, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).__dict__))
    os._exit(0)
