"""What consumers see while reloads restart every provider, beside Prometheus where it is installed.

A hundred files of ten targets each are discovered, and nothing about them changes. What each reload alters is the
``refresh_interval`` of every configuration, which makes Prometheus, too, restart every provider. In the end every file
changes, to see which targets still follow. The files are arranged in two ways, because a job of several configurations
can lose a part of its targets.

Of Prometheus three counts are told, which differ:

* *told to its scraper*: what its discovery passes on, as ours does to a consumer. It is the gauge
  ``prometheus_sd_discovered_targets``, read once ``prometheus_sd_updates_total`` has grown after a reload.
* *its gauge*: the same at any time. A reload sets it to 0, which the scraper does not notice.
* *held by its scraper*: ``/api/v1/targets``. The scraper keeps the targets of a job of which it is told nothing. So a
  job whose provider has given up looks well, and only does not follow.

Ours are the JSON lines of ``trio-sd run``, added up, and a subscriber without throttle in this process. All take turns,
because the inotify instances that a user may have are shared.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from trio_sd.manager import Manager, open_manager
from trio_sd.reload import Reloader, reload_on_sighup
from trio_sd.subscription import Throttle

from .prometheus import PROMETHEUS, Prometheus, installed, running_prometheus, version
from .report import Row

OURS = "trio-sd"
FILES = 100
TARGETS = 10  # in each file
TOTAL = FILES * TARGETS
BEFORE, AFTER = ":9100", ":9200"  # the ports of all targets, until the files change and from then on
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")

PATIENCE = 30.0
POLL = 0.02
OUR_REST = 1.0  # seconds from one reload to the next
THEIR_REST = 6.0  # what is new goes to its scraper every 5 s
FOLLOW = 12.0  # the same, 5 s more until the scraper looks, and some


@dataclass(frozen=True)
class Scene:
    """The configuration and the files that all find, in a directory. ``per_job`` files make up a job."""

    directory: Path
    per_job: int

    @property
    def config(self) -> Path:
        """The configuration's file."""
        return self.directory / "prometheus.yml"

    def _files(self) -> list[Path]:
        # In a directory of their own, so that who watches it is not woken when the configuration is written.
        return [self.directory / "targets" / f"{number:03}.json" for number in range(FILES)]

    def configure(self, turn: int) -> Mapping[str, object]:
        """Write the configuration for the reload of that number, and return it; 0 is the first load."""
        found = [{"files": [str(path)], "refresh_interval": f"{5 + turn}m"} for path in self._files()]
        jobs = [found[begin : begin + self.per_job] for begin in range(0, FILES, self.per_job)]
        configuration = {
            "global": {"scrape_interval": "1d"},  # there is nothing to scrape
            "scrape_configs": [{"job_name": f"job-{n:03}", "file_sd_configs": job} for n, job in enumerate(jobs)],
        }
        _replace(self.config, configuration)
        return configuration

    def write_targets(self, port: str) -> None:
        """Write every file, with that port for every target."""
        for number, path in enumerate(self._files()):
            path.parent.mkdir(exist_ok=True)
            _replace(path, [{"targets": [f"127.0.{number}.{host}{port}" for host in range(TARGETS)]}])


def _replace(path: Path, document: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.replace(path)


@dataclass(frozen=True)
class Seen:
    """How many targets a consumer has seen: the fewest, the last, and for how many seconds some were missing."""

    who: str
    fewest: int
    last: int
    below: float


class Sight:
    """How many targets a consumer sees, from the moment when all are there for the first time."""

    def __init__(self) -> None:
        self.complete = False
        self._fewest = self._last = TOTAL
        self._since: float | None = None
        self._below = 0.0

    def see(self, count: int) -> None:
        """Take what is seen now."""
        self.complete = self.complete or count == TOTAL
        if not self.complete:
            return
        self._below = self._longest()
        if count >= TOTAL:
            self._since = None
        elif self._since is None:
            self._since = time.perf_counter()
        self._fewest = min(self._fewest, count)
        self._last = count

    def seen(self, who: str) -> Seen:
        """Return what was seen until now."""
        return Seen(who, self._fewest, self._last, self._longest())

    def _longest(self) -> float:
        return self._below if self._since is None else max(self._below, time.perf_counter() - self._since)


async def until(condition: Callable[[], bool], *, patience: float = PATIENCE, pause: float = POLL) -> bool:
    """Wait until the condition holds, and return whether it does so in time."""
    deadline = trio.current_time() + patience
    while True:
        if condition():
            return True
        if trio.current_time() > deadline:
            return False
        await trio.sleep(pause)


async def follow(scene: Scene, count: Callable[[], int]) -> int:
    """Change every file, and return how many targets have followed in time."""
    scene.write_targets(AFTER)
    await until(lambda: count() == TOTAL, patience=FOLLOW)
    return count()


class Command:
    """``trio-sd run``: a consumer of its JSON lines that adds them up, and its log."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.sight = Sight()
        self._held: dict[tuple[str, str], list[str]] = {}
        self._log = ""

    def count(self, port: str) -> int:
        """Return how many targets with that port there are."""
        return sum(address.endswith(port) for addresses in self._held.values() for address in addresses)

    async def read_updates(self, stdout: trio.abc.ReceiveStream) -> None:
        """Add up lines until the command ends."""
        rest = b""
        async for chunk in stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                update: dict[str, Any] = json.loads(line)
                for job, changes in update["sets"].items():
                    for source in changes["removed"]:
                        del self._held[job, source]
                    for group in changes["updated"]:
                        self._held[job, group["source"]] = [target["__address__"] for target in group["targets"]]
                self.sight.see(self.count(""))

    async def read_log(self, stderr: trio.abc.ReceiveStream) -> None:
        """Take the log until the command ends."""
        async for chunk in stderr:
            self._log += chunk.decode(errors="replace")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds.

        Raises:
          RuntimeError: the command has ended, or the condition does not hold in time. The end of the log is told.
        """
        await until(lambda: condition() or self._process.poll() is not None)
        if not condition():
            raise RuntimeError(f"{OURS} run has not done what it should; its log ends with: {self._log[-500:]}")

    async def reload(self) -> None:
        """Send SIGHUP, and wait until the configuration is in force."""
        before = self._loaded()
        self._process.send_signal(signal.SIGHUP)
        await self.until(lambda: self._loaded() > before)

    def _loaded(self) -> int:
        return self._log.count("is in force")


@asynccontextmanager
async def running_command(config: Path) -> AsyncIterator[Command]:
    """Run the command for the time of the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "trio_sd", "run", str(config), "--output", "jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        command = Command(process)
        async with process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(command.read_updates, process.stdout)
            nursery.start_soon(command.read_log, process.stderr)
            yield command
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def by_command(scene: Scene, rounds: int) -> tuple[Seen, int]:
    """Reload the command that often; return what its reader saw, and how many targets follow their files then."""
    scene.configure(0)
    async with running_command(scene.config) as command:
        await command.until(lambda: command.sight.complete)
        for turn in range(1, rounds + 1):
            scene.configure(turn)
            await command.reload()
            await trio.sleep(OUR_REST)
        seen = command.sight.seen(f"{OURS} run")
        return seen, await follow(scene, lambda: command.count(AFTER))


async def by_subscriber(scene: Scene, rounds: int) -> tuple[Seen, list[float]]:
    """Reload an engine in this process; return what a subscriber saw, and how long each reload took."""
    scene.configure(0)
    sight = Sight()
    seconds = []
    async with open_manager(throttle=Throttle(0, 0)) as manager, trio.open_nursery() as nursery:
        reloader: Reloader = await nursery.start(partial(reload_on_sighup, scene.config, scrape=manager))
        await reloader.reload()
        await manager.wait_synced()
        nursery.start_soon(_look, manager, sight)
        for turn in range(1, rounds + 1):
            scene.configure(turn)
            begin = time.perf_counter()
            os.kill(os.getpid(), signal.SIGHUP)
            if not await until(_has_reloaded(reloader, turn), pause=0.001):
                raise RuntimeError(f"reload {turn} of {OURS} is not done: {reloader.statistics().last_error}")
            with trio.fail_after(PATIENCE):
                await manager.wait_synced()
            seconds.append(time.perf_counter() - begin)
            await trio.sleep(OUR_REST)
        nursery.cancel_scope.cancel()
    return sight.seen(f"{OURS}, a subscriber without throttle"), seconds


def _has_reloaded(reloader: Reloader, turn: int) -> Callable[[], bool]:
    return lambda: reloader.statistics().succeeded > turn  # the first load is one, too


async def _look(manager: Manager, sight: Sight) -> None:
    async with manager.subscribe() as updates:
        async for update in updates:
            sight.see(sum([update.snapshot.target_count(job) for job in update.snapshot]))


class Watch:
    """Looks at the counts of a Prometheus all the time."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self.told, self.gauge, self.held = Sight(), Sight(), Sight()
        self.followed = 0
        self._updates = 0.0  # how many its discovery has passed on, and how many of them before the last reload
        self._updates_before = 0.0

    async def discovery(self) -> None:
        """Look at its discovery."""
        while True:
            metrics = (await self._prometheus.ask("/metrics")).decode()
            count = int(_sum(metrics, "prometheus_sd_discovered_targets"))
            updates = _sum(metrics, "prometheus_sd_updates_total")
            self.gauge.see(count)
            # Counted just before the gauge is set, so only what has been so for a while counts.
            if self._updates == updates > self._updates_before:
                self.told.see(count)
            self._updates = updates
            await trio.sleep(POLL)

    async def scraper(self) -> None:
        """Look at its scraper."""
        while True:
            answer = json.loads(await self._prometheus.ask("/api/v1/targets?state=active"))
            addresses = [target["discoveredLabels"]["__address__"] for target in answer["data"]["activeTargets"]]
            self.held.see(len(addresses))
            self.followed = sum(address.endswith(AFTER) for address in addresses)
            await trio.sleep(POLL)

    async def complete(self) -> None:
        """Wait until all targets were seen everywhere.

        Raises:
          RuntimeError: they were not in time.
        """
        if not await until(lambda: self.told.complete and self.gauge.complete and self.held.complete):
            raise RuntimeError(f"{PROMETHEUS} has not found all targets within {PATIENCE:g} s after its start")

    async def reload(self) -> None:
        """Have it reload. What the gauge says from then on was not passed on before the next update."""
        self._updates_before = self._updates
        await self._prometheus.reload()


def _sum(metrics: str, name: str) -> float:
    """Return the sum of a metric over all jobs that are scraped."""
    return sum(map(float, re.findall(rf'^{name}\{{[^}}]*name="scrape"[^}}]*\}} (\S+)$', metrics, re.MULTILINE)))


async def by_prometheus(scene: Scene, rounds: int, who: str) -> tuple[Seen, Seen, Seen, int]:
    """Reload Prometheus; return what was told, the gauge, what was held, and how many targets follow then."""
    async with running_prometheus(scene.directory, scene.configure(0)) as prometheus, trio.open_nursery() as nursery:
        await prometheus.ready()
        watch = Watch(prometheus)
        nursery.start_soon(watch.discovery)
        nursery.start_soon(watch.scraper)
        await watch.complete()
        for turn in range(1, rounds + 1):
            scene.configure(turn)
            await watch.reload()
            await trio.sleep(THEIR_REST)
        await trio.sleep(FOLLOW - THEIR_REST)  # until the scraper has looked, too
        told = watch.told.seen(f"{who}, told to its scraper")
        gauge = watch.gauge.seen(f"{who}, its gauge")
        held = watch.held.seen(f"{who}, held by its scraper")
        followed = await follow(scene, lambda: watch.followed)
        nursery.cancel_scope.cancel()
    return told, gauge, held, followed


def measure(per_job: int, rounds: int) -> list[Row]:
    """Measure with that many configurations, of a file each, in a job."""
    what = f"{FILES // per_job} jobs of {per_job} file{'s' if per_job > 1 else ''}"
    with tempfile.TemporaryDirectory() as directory:
        scene = Scene(Path(directory), per_job)
        scene.write_targets(BEFORE)
        subscriber, seconds = trio.run(by_subscriber, scene, rounds)
        command, followed = trio.run(by_command, scene, rounds)
        all_seen, seen, follows = [command, subscriber], [command], {OURS: followed}
        if installed():
            who = f"{PROMETHEUS} {version()}"
            scene.write_targets(BEFORE)
            told, gauge, held, follows[who] = trio.run(by_prometheus, scene, rounds, who)
            all_seen += [told, gauge, held]
            seen += [told, held]
    fewest = f"{what}: fewest of {TOTAL:,} during {rounds} reloads"
    return [
        Row.of_seconds(f"{what}: SIGHUP → every provider restarted and synced: {OURS}", seconds),
        *_rows(fewest, {one.who: f"{one.fewest:,}" for one in all_seen}),
        *_rows(f"{what}: in the end", {one.who: f"{one.last:,}" for one in seen}),
        *_rows(f"{what}: some missing, at the longest", {one.who: _span(one) for one in seen}, aim="0 s"),
        *_rows(f"{what}: follow when their files change then", {who: f"{count:,}" for who, count in follows.items()}),
    ]


def _rows(what: str, figures: Mapping[str, str], aim: str = f"{TOTAL:,}") -> Sequence[Row]:
    return [Row(f"{what}: {who}", text, aim=aim if who.startswith(OURS) else "") for who, text in figures.items()]


def _span(seen: Seen) -> str:
    return f"{seen.below:.2g} s" + ("" if seen.last >= TOTAL else ", to the end")


def run(*, quick: bool) -> list[Row]:
    """Measure, and return one row a figure."""
    rows = []
    if not installed():
        rows.append(Row(PROMETHEUS, "not installed (apt install prometheus)"))
    elif INSTANCES.exists():
        # Prometheus takes one for each configuration of files. Where there is none left, a provider gives up.
        rows.append(
            Row(
                "inotify instances that a user may have here; Prometheus takes one a file, and two as it reloads",
                INSTANCES.read_text().strip(),
            )
        )
    for per_job in (1,) if quick else (1, 2):
        rows += measure(per_job, rounds=2 if quick else 10)
    return rows
