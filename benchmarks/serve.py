"""The server under load: clients of http_sd and followers of events, while targets change all the time.

Some clients read nothing, or slowly, or stall within a request; the server must drop these, and the others not notice.
Measured are what the clients see, and the engine's own latency meanwhile, from a provider's send to a consumer in the
same process, beside the same without any client.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace

import trio

from trio_sd.manager import Manager, open_manager
from trio_sd.web import ListenAddress, open_application, serve

from .figures import Figure, at_least, at_most, ratio
from .manager import UNTHROTTLED, Feeder, FeederConfig, one_target_group
from .serve_clients import Load, Seen

_PACE = 0.02  # seconds between two changes
_IDLE = 10.0  # seconds without clients
_LONGEST_PATIENCE = 35.0  # seconds of the server, with one who takes nothing


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure. In a quick run no client is dropped yet."""
    clients, misbehaving, size = (50, 5, 2_000) if quick else (200, 20, 10_000)
    for asking, bad, seconds in ((5.0, 0, 20.0), (1.0, 0, 20.0), (5.0, misbehaving, 45.0)):
        yield from trio.run(_measure, Load(0, clients, bad, 4.0 if quick else seconds, asking), size)


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


async def _measure(load: Load, size: int) -> Sequence[Figure]:
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
    each = f"{load.clients} ask every {load.asking:g} s, as many follow"
    if load.misbehaving:
        each += f", {load.misbehaving} misbehave in each of {len(seen.dropped)} ways"
    latency = f"engine latency, {each}"
    alone, beside = Figure.of(latency, idle, who="nobody asks"), Figure.of(latency, loaded)
    aim = at_least(load.misbehaving) if load.seconds > _LONGEST_PATIENCE else None
    return [
        alone,
        beside,
        ratio(f"{latency}: over nobody", beside, alone, aim=None if load.misbehaving else at_most(2)),
        Figure.of(f"answers to /sd/SET, {each}", seen.answers / load.seconds, "/s"),
        Figure.of(f"time of an answer, {each}", seen.times),
        Figure.of(f"events, {each}", seen.events / load.seconds, "/s"),
        Figure.of(f"errors, {each}", seen.errors, "", aim=at_most(0)),
        *[
            Figure.of(f"dropped of {load.misbehaving} who {kind}", count, "", aim=aim)
            for kind, count in seen.dropped.items()
            if load.misbehaving
        ],
        Figure.of(f"memory, {each}", grown, "B"),
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
