"""Polling: five hundred HTTP endpoints and five hundred names, each asked for every second, on one core.

The sources, in a process on another core, note when each was asked for. *Interval* is the mean time between two
requests of a source: what drifts has more than a second. *Late* is how much later than by its own rhythm the latest
request of a source came. One more endpoint and one more name, which never answer, are there all the time. The real
Prometheus asks the same endpoints, for the processor that it takes; names it asks only servers at port 53 for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import trio

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.dns import DNSDiscovery
from trio_sd.discovery.dns.lookup import open_resolver
from trio_sd.discovery.http import HTTPSDConfig
from trio_sd.durations import Duration
from trio_sd.manager import open_manager
from trio_sd.polling import PollingDiscoverer

from .figures import Figure, at_most, missing
from .process import NOT_INSTALLED, cpu_seconds
from .processes import running
from .prometheus import PROMETHEUS, installed, running_prometheus, version

SOURCES: Final = {True: 50, False: 500}  # of each kind; quick or not
SECONDS: Final = {True: 5.0, False: 30.0}
SETTLED: Final = 4.0  # seconds until all have their rhythm
SECOND: Final = Duration.of("1s")
PROCESSOR: Final = "of a second; each is asked once in it"


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure."""
    yield from trio.run(_ours, SOURCES[quick], SECONDS[quick])
    yield from trio.run(_theirs, SOURCES[quick], SECONDS[quick])


@dataclass
class _Sources:
    """The process that is asked.

    Attributes:
      http: the port of its endpoints.
      dns: the port of its name server.
      asked: when each path and name was asked for, once the process has ended.
    """

    process: trio.Process
    http: int
    dns: int
    asked: Mapping[str, Sequence[float]]

    async def end(self) -> None:
        """Let it end, and tell."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        await self.process.stdin.aclose()
        told = bytearray()
        async for part in self.process.stdout:
            told += part
        self.asked = json.loads(told)


@asynccontextmanager
async def _sources() -> AsyncIterator[_Sources]:
    command = [sys.executable, "-m", "benchmarks.polling_sources"]
    async with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some(100)
        http, dns = map(int, line.split())
        yield _Sources(process, http, dns, {})


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this process to one core for the time of the block; the sources take the other, if there is one."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


async def _ours(count: int, seconds: float) -> Sequence[Figure]:
    figures = []
    async with _sources() as sources:
        names = [*(str(index) for index in range(count)), "hang"]
        endpoints = [_endpoint(sources, name) for name in names]
        hosts = [_Names((f"{name}.test",), sources.dns) for name in names]
        for what, configs in (("HTTP endpoints", endpoints), ("names", hosts)):
            with _on_one_core():
                share, _, _ = await _polled(configs, seconds)
            figures.append(Figure.of(f"polling {what}: processor", share, size=count, note=PROCESSOR))
        with _on_one_core():
            share, begin, end = await _polled([*endpoints, *hosts], seconds)
        figures.append(Figure.of("polling both: processor", share, size=2 * count, note=PROCESSOR))
        await sources.end()
    for what, path in ("HTTP endpoint", "/"), ("name", ""):
        asked = [
            [moment for moment in moments if begin <= moment < end]
            for name, moments in sources.asked.items()
            if "hang" not in name and name.startswith("/") == bool(path)
        ]
        intervals = [(moments[-1] - moments[0]) / (len(moments) - 1) for moments in asked]
        figures += [
            Figure.of(f"polling: mean interval of one {what}", intervals, size=2 * count, aim=at_most(1.002)),
            Figure.of(f"polling: latest request of one {what}", map(_late, asked), size=2 * count, aim=at_most(0.1)),
        ]
    return figures


async def _polled(configs: Sequence[DiscovererConfig], seconds: float) -> tuple[float, float, float]:
    """Poll for some time; return the part of it that the processor was taken, when it began and when it ended."""
    async with open_manager({"set": configs}):
        await trio.sleep(SETTLED)
        begin, before = time.perf_counter(), time.process_time()
        await trio.sleep(seconds)
        end, after = time.perf_counter(), time.process_time()
    return (after - before) / (end - begin), begin, end


def _late(moments: Sequence[float]) -> float:
    """Return by how much the latest request came later than by the rhythm of the earliest."""
    offsets = [moment - index for index, moment in enumerate(moments)]
    return max(offsets) - min(offsets)


def _endpoint(sources: _Sources, name: str) -> HTTPSDConfig:
    return HTTPSDConfig(url=f"http://127.0.0.1:{sources.http}/{name}", refresh_interval=SECOND)


@dataclass(frozen=True)
class _Names(DiscovererConfig):
    """Names at a server whose port is not that of DNS, which no configuration can say."""

    mechanism: ClassVar[str] = "dns"

    names: tuple[str, ...]
    port: int

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        opener = partial(open_resolver, os.devnull, self.port)
        discovery = DNSDiscovery(self.names, "A", 80, SECOND.seconds, opener=opener)
        return PollingDiscoverer(options, discovery.poll)


async def _theirs(count: int, seconds: float) -> Sequence[Figure]:
    what = "polling HTTP endpoints: processor"
    if not installed():
        return [missing(what, PROMETHEUS, NOT_INSTALLED, size=count)]
    with tempfile.TemporaryDirectory() as directory:
        async with _sources() as sources:
            names = [*(str(index) for index in range(count)), "hang"]
            http_sd = [{"url": _endpoint(sources, name).url, "refresh_interval": "1s"} for name in names]
            drop_all = {"action": "drop", "source_labels": ["__address__"], "regex": ".*"}
            job = {"job_name": "job", "http_sd_configs": http_sd, "relabel_configs": [drop_all]}
            async with running_prometheus(Path(directory), {"scrape_configs": [job]}) as prometheus:
                await prometheus.ready()
                await trio.sleep(SETTLED)
                before = cpu_seconds(prometheus.pid)
                await trio.sleep(seconds)
                share = (cpu_seconds(prometheus.pid) - before) / seconds
    who = f"{PROMETHEUS} {version()}"
    return [Figure.of(what, share, "s", who=who, size=count, note=PROCESSOR)]
