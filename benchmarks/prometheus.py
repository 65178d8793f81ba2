"""The real Prometheus, which benchmarks run beside ours where it is installed."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.tcp_proxy import free_port

from .processes import running

__all__ = ["PROMETHEUS", "Prometheus", "installed", "running_prometheus", "version"]

PROMETHEUS = "prometheus"
ANSWER = 10.0  # seconds that it has for an answer
START = 30.0  # and until it answers at all


def installed() -> bool:
    """Tell whether there is one."""
    return shutil.which(PROMETHEUS) is not None


def version() -> str:
    """Return the version of the one that is installed, "2.42.0" say."""
    told = subprocess.run([PROMETHEUS, "--version"], capture_output=True, text=True, timeout=ANSWER, check=True)
    words = (told.stdout or told.stderr).split()  # "prometheus, version 2.42.0+ds (branch: …"
    return words[2].partition("+")[0]


class Prometheus:
    """One that runs."""

    def __init__(self, process: trio.Process, port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    async def ask(self, path: str, method: str = "GET") -> bytes:
        """Return what it answers.

        Raises:
          RuntimeError: it answers with an error, or not at all; what it said last is told.
        """
        try:
            status, body = await trio.to_thread.run_sync(self._ask, path, method)
        except OSError as error:
            raise RuntimeError(f"{self._who()} does not answer {path}: {error}; it said last: {self._last()}") from None
        if status != http.client.OK:
            raise RuntimeError(f"{self._who()} answers {path} with {status}: {body.decode(errors='replace')}")
        return body

    def _ask(self, path: str, method: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _who(self) -> str:
        ended = self._process.poll()
        return PROMETHEUS if ended is None else f"{PROMETHEUS}, which has ended with status {ended},"

    def _last(self) -> str:
        return (self._log.read_text(errors="replace").splitlines() or ["nothing"])[-1]

    async def ready(self) -> None:
        """Wait until it answers.

        Raises:
          RuntimeError: it does not in time.
        """
        deadline = trio.current_time() + START
        while True:
            try:
                await self.ask("/-/ready")
            except RuntimeError:
                if self._process.poll() is not None or trio.current_time() > deadline:
                    raise
                await trio.sleep(0.1)
            else:
                return

    async def scraped(self, metric: str) -> int:
        """Return the sum of a metric of its discovery over all jobs that are scraped."""
        (found,) = await self.all_scraped(metric)
        return found

    async def all_scraped(self, *metrics: str) -> tuple[int, ...]:
        """Return such sums of one moment."""
        told = (await self.ask("/metrics")).decode()
        return tuple([_sum(told, metric) for metric in metrics])

    async def discovered(self) -> int:
        """Return how many targets its discovery has passed on."""
        return await self.scraped("prometheus_sd_discovered_targets")

    async def reload(self) -> None:
        """Have it read its configuration again, and wait until it has put it in force."""
        await self.ask("/-/reload", "POST")


def _sum(told: str, metric: str) -> int:
    found = re.findall(rf'^{metric}\{{[^}}]*name="scrape"[^}}]*\}} (\S+)$', told, re.MULTILINE)
    return int(sum(map(float, found)))


@asynccontextmanager
async def running_prometheus(directory: Path, configuration: Mapping[str, object]) -> AsyncIterator[Prometheus]:
    """Run one for the time of the block. What it reads and writes is in ``directory``, which is not cleaned up.

    It reads ``prometheus.yml`` there, which is written first. It may not answer yet when the block begins.
    """
    config, log, port = directory / "prometheus.yml", directory / "prometheus.log", free_port()
    config.write_text(json.dumps(configuration))  # JSON is YAML
    command = [
        *(PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={directory}/data", "--log.level=error"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--web.enable-lifecycle"),
    ]
    with log.open("wb") as said:
        async with running(command, stdout=subprocess.DEVNULL, stderr=said) as process:
            yield Prometheus(process, port, log)
