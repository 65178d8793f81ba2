"""Reloads: what it costs to restart every provider, and what consumers see meanwhile, beside Prometheus.

The floor of the cost is bare nurseries with a channel each: as many are cancelled, and when they have ended, as many
are started, until each has sent its first message.

What consumers see: a hundred files of ten targets each are discovered, and nothing about them changes. What each reload
alters is the ``refresh_interval`` of every configuration, which makes Prometheus, too, restart every provider. In the
end every file changes, to see which targets still follow. The files are arranged in two ways, because a job of several
configurations can lose a part of its targets.

The size of these figures is the number of files in a job. Of Prometheus three counts are told, which differ:

* *told to the consumer*, its scraper: what its discovery passes on, as ours does to a consumer. It is the gauge
  ``prometheus_sd_discovered_targets``, read once ``prometheus_sd_updates_total`` has grown after a reload.
* *its gauge*: the same at any time. A reload sets it to 0, which the scraper does not notice.
* *held by the consumer*: ``/api/v1/targets``. The scraper keeps the targets of a job of which it is told nothing. So a
  job whose provider has given up looks well, and only does not follow.

Ours are what a subscriber without throttle in this process is told, and what a consumer of the JSON lines of
``trio-sd run`` holds. Each runs alone, because the inotify instances that a user may have are shared.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from trio_sd.manager import Manager, open_manager
from trio_sd.reload import Reloader, reload_on_sighup
from trio_sd.subscription import Throttle

from .figures import FLOOR, OURS, Figure, at_least, at_most, interleaved, missing, ratio
from .manager import BenchConfig
from .processes import running
from .prometheus import PROMETHEUS, Prometheus, installed, running_prometheus, version

FEWEST_TOLD: Final = "targets, at the fewest: told to the consumer"
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

    fewest: int
    last: int
    below: float


@dataclass(frozen=True)
class Sights:
    """What was seen over all reloads: told, in the gauge, held; and how many targets followed their files then."""

    told: Seen
    gauge: Seen | None
    held: Seen
    followed: int


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

    def seen(self) -> Seen:
        """Return what was seen until now."""
        return Seen(self._fewest, self._last, self._longest())

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
    arguments = [sys.executable, "-m", "trio_sd", "run", str(config), "--output", "jsonl"]
    async with running(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        command = Command(process)
        async with process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(command.read_updates, process.stdout)
            nursery.start_soon(command.read_log, process.stderr)
            yield command
            nursery.cancel_scope.cancel()


async def by_command(scene: Scene, rounds: int) -> tuple[Seen, int]:
    """Reload the command that often; return what its reader saw, and how many targets follow their files then."""
    scene.configure(0)
    async with running_command(scene.config) as command:
        await command.until(lambda: command.sight.complete)
        for turn in range(1, rounds + 1):
            scene.configure(turn)
            await command.reload()
            await trio.sleep(OUR_REST)
        seen = command.sight.seen()
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
    return sight.seen(), seconds


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
        self._updates = 0  # how many its discovery has passed on, and how many of them before the last reload
        self._updates_before = 0

    async def discovery(self) -> None:
        """Look at its discovery."""
        while True:
            count, updates = await self._prometheus.all_scraped(
                "prometheus_sd_discovered_targets", "prometheus_sd_updates_total"
            )
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


async def by_prometheus(scene: Scene, rounds: int) -> Sights:
    """Reload Prometheus that often; return what was seen."""
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
        told, gauge, held = watch.told.seen(), watch.gauge.seen(), watch.held.seen()
        followed = await follow(scene, lambda: watch.followed)
        nursery.cancel_scope.cancel()
    return Sights(told, gauge, held, followed)


class Bare:
    """As many tasks as there would be providers, each with a nursery, a channel and what sends into it."""

    def __init__(self, owner: trio.Nursery, count: int) -> None:
        self._owner = owner
        self._count = count
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()
        self._missing = 0
        self._heard = trio.Event()

    async def reload(self) -> float:
        """Cancel all, wait until they have ended, start as many; return the seconds until each has sent something."""
        gc.collect()  # what another one has left is not counted here
        began = time.perf_counter()
        self._scope.cancel()
        with trio.fail_after(PATIENCE):
            await self._ended.wait()
            self._missing, self._heard = self._count, trio.Event()
            self._owner.start_soon(self._run)
            await self._heard.wait()
        return time.perf_counter() - began

    async def _run(self) -> None:
        self._ended = trio.Event()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                for _ in range(self._count):
                    nursery.start_soon(self._child)
        self._ended.set()

    async def _child(self) -> None:
        send, receive = trio.open_memory_channel[tuple[()]](0)

        async def take() -> None:
            async for _ in receive:
                self._missing -= 1
                if not self._missing:
                    self._heard.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await send.send(())
            await trio.sleep_forever()


class Managed:
    """A manager with that many sets of one provider each."""

    def __init__(self, manager: Manager, count: int) -> None:
        self._manager = manager
        self._configs = {f"set-{number}": [BenchConfig(number)] for number in range(count)}

    async def reload(self) -> float:
        """Apply the same configuration again; return the seconds until each provider, started anew, has synced."""
        before = self._manager.statistics()
        gc.collect()
        began = time.perf_counter()
        with trio.fail_after(PATIENCE):
            await self._manager.apply_config(self._configs)
            await self._manager.wait_synced()
        seconds = time.perf_counter() - began
        after = self._manager.statistics()
        assert after.reloads == before.reloads + 1
        assert after.received == before.received + len(self._configs)
        assert not after.stuck
        return seconds


async def restart(count: int, rounds: int) -> Mapping[str, Sequence[float]]:
    """Return the seconds of each reload of that many: ours, and the floor."""
    async with open_manager() as manager, trio.open_nursery() as nursery:
        floor, ours = Bare(nursery, count), Managed(manager, count)
        await floor.reload()  # the first only starts them
        await ours.reload()
        found = await interleaved(rounds, {FLOOR: floor.reload, OURS: ours.reload})
        nursery.cancel_scope.cancel()
    return found


def _restarts(counts: Mapping[int, int]) -> Iterator[Figure]:
    what = "all providers cancelled, restarted, synced"
    pairs = []
    for count, rounds in counts.items():
        seconds = trio.run(restart, count, rounds)
        floor, ours = (Figure.of(what, seconds[who], who=who, size=count) for who in (FLOOR, OURS))
        yield from (floor, ours)
        pairs.append((ours, floor))
    for ours, floor in pairs:
        yield ratio(f"{what}: over the floor", ours, floor, aim=at_most(2))


def _seen(per_job: int, rounds: int) -> Iterator[Figure]:
    """Measure what is seen with that many configurations, of a file each, in a job."""
    jobs = f"{FILES // per_job} jobs of {per_job} file{'s' if per_job > 1 else ''}, {rounds} reloads"
    with tempfile.TemporaryDirectory() as directory:
        scene = Scene(Path(directory), per_job)
        scene.write_targets(BEFORE)
        told, seconds = trio.run(by_subscriber, scene, rounds)
        yield Figure.of("SIGHUP → all providers restarted, synced", seconds, size=per_job, note=jobs)
        held, followed = trio.run(by_command, scene, rounds)
        yield from _figures(OURS, Sights(told, None, held, followed), per_job, jobs)
        if not installed():
            yield missing(FEWEST_TOLD, PROMETHEUS, "not installed (apt install prometheus)", size=per_job)
            return
        scene.write_targets(BEFORE)
        sights = trio.run(by_prometheus, scene, rounds)
        yield from _figures(f"Prometheus {version()}", sights, per_job, jobs + _instances())


def _figures(who: str, sights: Sights, per_job: int, note: str) -> Iterator[Figure]:
    all_targets, at_once = (at_least(TOTAL), at_most(0)) if who == OURS else (None, None)

    def count(what: str, targets: int) -> Figure:
        return Figure.of(what, targets, "", who=who, size=per_job, aim=all_targets, note=note)

    yield count(FEWEST_TOLD, sights.told.fewest)
    if sights.gauge is not None:
        yield count("targets, at the fewest: its gauge", sights.gauge.fewest)
    yield count("targets, at the fewest: held by the consumer", sights.held.fewest)
    for how, seen in (("told to", sights.told), ("held by", sights.held)):
        what = f"some missing, at the longest: {how} the consumer"
        lasting = note if seen.last >= TOTAL else f"{note}; to the end"
        yield Figure.of(what, seen.below, who=who, size=per_job, aim=at_once, note=lasting)
        yield count(f"targets in the end: {how} the consumer", seen.last)
    yield count("targets that follow their files then", sights.followed)


def _instances() -> str:
    """Tell what Prometheus may run out of: where there is no inotify instance left, a provider gives up."""
    if not INSTANCES.exists():
        return ""
    return f"; it takes an inotify instance a file, two as it reloads, of {INSTANCES.read_text().strip()}"


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure as it is there."""
    yield from _restarts({10: 50, 100: 20, 1_000: 5} if quick else {10: 500, 100: 200, 1_000: 30, 10_000: 5})
    for per_job in (1,) if quick else (1, 2):
        yield from _seen(per_job, rounds=2 if quick else 7)
