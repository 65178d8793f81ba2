"""The server under load: clients of http_sd and followers of events, while targets change all the time.

Some clients read nothing, or slowly, or stall within a request; the server must drop these, and the others not notice.
Measured are what the clients see, and the engine's own latency meanwhile, from a provider's send to a consumer in the
same process, beside the same without any client.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace

import trio

from trio_sd.manager import Manager, open_manager
from trio_sd.web import ListenAddress, open_application, serve

from .manager import UNTHROTTLED, Feeder, FeederConfig, one_target_group
from .report import Row, table
from .serve_clients import Load, Seen

_PACE = 0.02  # seconds between two changes
_ASKING = (5.0, 1.0)
_IDLE = 10.0  # seconds without clients


def run(*, quick: bool, asking: Sequence[float] = _ASKING) -> list[Row]:
    """Measure, and return a row for each figure.

    Args:
      quick: whether to take fewer clients and less time. No client is dropped so soon.
      asking: seconds from one request of a client to its next; measured with each.
    """
    clients, misbehaving, size, seconds = (50, 5, 2_000, 4.0) if quick else (200, 20, 10_000, 45.0)
    loads = [Load(0, clients, misbehaving, seconds, each) for each in asking]
    return [row for load in loads for row in trio.run(_measure, load, size)]


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


async def _measure(load: Load, size: int) -> list[Row]:
    churn = _Churn(size)
    async with open_manager({"set": [FeederConfig(churn.feeder)]}) as manager, _served(manager) as port:
        await churn.fill(manager)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn.run, manager)
            await trio.sleep(_IDLE)
            idle = churn.taken()
            before = _resident()
            seen = Seen()
            async with trio.open_nursery() as clients:
                clients.start_soon(_run_clients, replace(load, port=port), seen)
                await trio.sleep(load.seconds)
                loaded, grown = churn.taken(), _resident() - before
            nursery.cancel_scope.cancel()
    over = statistics.median(loaded) / statistics.median(idle)
    rate, volume = seen.answers / load.seconds, seen.bytes / 1e6 / load.seconds
    return [
        Row(f"{load.clients} clients that ask every {load.asking:g} s, and {load.clients} followers", ""),
        Row.of_seconds("  engine latency, nobody asks", idle),
        Row.of_seconds("  engine latency, all of them ask", loaded),
        Row("  over that without them", f"{over:.2f} ×", aim="under 2 ×"),
        Row("  answers to /sd/SET", f"{rate:,.0f}/s", f"{volume:,.0f} MB/s"),
        Row.of_seconds("  time of an answer", seen.times),
        Row("  events to followers", f"{seen.events / load.seconds:,.0f}/s"),
        Row("  errors", str(seen.errors), aim="0"),
        *[
            Row(f"  dropped of those who {kind}", f"{count} of {load.misbehaving}", f"after {load.seconds:g} s")
            for kind, count in seen.dropped.items()
        ],
        Row("  memory that all of them took", f"{grown / 1e6:,.0f} MB"),
    ]


async def _run_clients(load: Load, seen: Seen) -> None:
    """Run the clients, and note what they have seen."""
    command = [sys.executable, "-m", "benchmarks.serve_clients", json.dumps(asdict(load))]
    done = await trio.run_process(command, capture_stdout=True)
    vars(seen).update(json.loads(done.stdout))


@asynccontextmanager
async def _served(manager: Manager) -> AsyncIterator[int]:
    async with open_application(manager) as app, trio.open_nursery() as nursery:
        urls = await nursery.start(serve, app, ListenAddress("127.0.0.1", 0))
        yield int(urls[0].rpartition(":")[2])
        nursery.cancel_scope.cancel()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure with clients that ask as often as one wants to know."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description="Measure the server under load.")
    parser.add_argument("--asking", type=float, nargs="+", default=_ASKING, metavar="SECONDS", help="default: 5 and 1")
    parser.add_argument("--quick", action="store_true", help="fewer clients and a shorter time")
    arguments = parser.parse_args()
    print(table(run(quick=arguments.quick, asking=arguments.asking)))


if __name__ == "__main__":
    main()
