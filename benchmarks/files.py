"""File discovery: from the rename of a file to the consumer, many files, and the rest while nothing changes.

*Rename.* A file, of which the first group gets one target more, is moved to its place; measured is the time until who
follows it has the targets. The floor is a bare Trio program: it is woken by inotify, reads the file, and decodes it
with the decoder that ours uses, but makes nothing of what it says. Of Prometheus, its gauge
``prometheus_sd_discovered_targets`` is looked at; what its discovery finds goes out every 5 s, so the renames are
spread over those. The size is the number of groups.

*Many.* A thousand jobs with a file of ten targets each: from the start of the process until all are found. Prometheus
takes an inotify instance a job, of which a user may have a limited number; a job that gets none finds nothing.

*Rest.* What a process with a hundred such jobs does of its own accord. The size is the number of jobs.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio
import yaml
from inotify_simple import INotify, flags

from trio_sd.discovery.file import FileSDConfig
from trio_sd.manager import open_manager
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle

from .figures import FLOOR, OURS, Figure, at_least, at_most, interleaved, missing, ratio
from .process import NOT_INSTALLED, configuration, cpu_seconds, replace, running_command, switches, until
from .prometheus import PROMETHEUS, installed, running_prometheus, version
from .reload import running_command as running_jsonl

PATIENCE: Final = 60.0
TICK: Final = 5.0  # seconds from one time that Prometheus passes on what it has found to the next
JOBS: Final = 1_000
TARGETS: Final = 10  # in each of their files
MANY_PATIENCE: Final = {True: 12.0, False: 25.0}  # for Prometheus with them; quick or not
IDLE_JOBS: Final = 100
IDLE: Final = {True: 3.0, False: 10.0}
SETTLED: Final = (
    12.0  # seconds after which threads that only wait for more to do have ended, and the scraper has looked
)
INSTANCES: Final = Path("/proc/sys/fs/inotify/max_user_instances")


def as_json(count: int, extra: int) -> bytes:
    """Return ``count`` groups of one target and one label, and ``extra`` targets in the first of them."""
    groups = [
        {"targets": [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:9100"], "labels": {"zone": f"zone-{i % 7}"}}
        for i in range(count)
    ]
    groups[0]["targets"] = [f"extra-{number}:9100" for number in range(extra + 1)]
    return json.dumps(groups).encode()


def as_other_json(count: int, extra: int) -> bytes:
    """Return the same groups, all of them with another label for each ``extra``."""
    return as_json(count, extra).replace(b'"zone-', f'"zone-{extra}-'.encode())


def as_yaml(count: int, extra: int) -> bytes:
    """Return the same groups as YAML."""
    groups = json.loads(as_json(count, extra))
    lines = [f"- targets: {group['targets']}\n  labels: {{zone: {group['labels']['zone']}}}\n" for group in groups]
    return "".join(lines).encode()


def decode_json(content: bytes) -> int:
    """Decode as ours does; return how many groups there are."""
    document = json.loads(content.decode("utf-8", "replace"), object_pairs_hook=tuple, parse_int=float)
    return len(document)


def decode_yaml(content: bytes) -> int:
    """Take the events of libyaml, as ours does; return how many groups there are."""
    loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as in trio_sd/config/nodes.py
    # The document and two lists and two mappings; the labels are the last mapping of a group.
    events = yaml.parse(content, Loader=loader)
    return sum(isinstance(event, yaml.MappingEndEvent) for event in events) // 2


@dataclass(frozen=True)
class Format:
    """A format of target files.

    Attributes:
      name: as people call it.
      suffix: of the names of files.
      write: makes a file of so many groups with so many targets more in the first.
      decode: what the floor does with the content; returns how many groups there are.
      all_change: whether every group differs from version to version, and not the first only.
    """

    name: str
    suffix: str
    write: Callable[[int, int], bytes]
    decode: Callable[[bytes], int]
    all_change: bool = False


JSON: Final = Format("JSON", ".json", as_json, decode_json)
OTHER_JSON: Final = Format("JSON, every group another one", ".json", as_other_json, decode_json, all_change=True)
YAML: Final = Format("YAML", ".yml", as_yaml, decode_yaml)


class File:
    """A target file in a directory of its own, so that who watches it sees nothing but renames."""

    def __init__(self, directory: Path, form: Format, count: int) -> None:
        directory.mkdir()
        self.form = form
        self.count = count
        self.targets = count
        self.path = directory / f"targets{form.suffix}"
        self._new = directory.with_suffix(".new")
        self.prepare(0)
        self.rename()

    def prepare(self, more: int = 1) -> None:
        """Write the next version elsewhere."""
        self.targets += more
        self._new.write_bytes(self.form.write(self.count, self.targets - self.count))
        gc.collect()  # what writing it has left is nobody's

    def rename(self) -> float:
        """Move it to its place, and return the moment before."""
        began = time.perf_counter()
        self._new.replace(self.path)
        return began


class Bare:
    """Follows a file with nothing but inotify and a decoder."""

    def __init__(self, file: File, inotify: INotify) -> None:
        self._file = file
        self._inotify = inotify
        inotify.add_watch(file.path.parent, flags.MOVED_TO)

    async def rename(self) -> float:
        """Return the seconds from a rename until the file is decoded."""
        self._file.prepare()
        gc.freeze()  # a bare program has not all that ours holds for the garbage collector to go through
        try:
            began = self._file.rename()
            with trio.fail_after(PATIENCE):
                await trio.lowlevel.wait_readable(self._inotify.fileno())
            names = [event.name for event in self._inotify.read(timeout=0)]
            groups = self._file.form.decode(self._file.path.read_bytes())
            seconds = time.perf_counter() - began
        finally:
            gc.unfreeze()
        assert names == [self._file.path.name]
        assert groups == self._file.count
        return seconds


class Ours:
    """Follows a file as a subscriber without throttle."""

    def __init__(self, file: File, updates: trio.MemoryReceiveChannel[Update]) -> None:
        self._file = file
        self._updates = updates

    async def ready(self) -> None:
        """Wait until the whole file was found."""
        with trio.fail_after(PATIENCE):
            async for update in self._updates:
                if update.snapshot.target_count("job") == self._file.targets:
                    return

    async def rename(self) -> float:
        """Return the seconds from a rename until the consumer has the change."""
        self._file.prepare()
        began = self._file.rename()
        with trio.fail_after(PATIENCE):
            update = await self._updates.receive()
            changes = update.changes["job"]
        seconds = time.perf_counter() - began
        assert update.snapshot.target_count("job") == self._file.targets
        assert len(changes.updated) == (self._file.count if self._file.form.all_change else 1)
        return seconds


@asynccontextmanager
async def followed(directory: Path, form: Format, count: int) -> AsyncIterator[tuple[Bare, Ours]]:
    """Follow two files of so many groups for the time of the block, as the floor and by ours."""
    file = File(directory / "ours", form, count)
    configs = {"job": [FileSDConfig(files=(str(file.path),))]}
    with INotify(nonblocking=True) as inotify:
        floor = Bare(File(directory / "floor", form, count), inotify)
        async with open_manager(configs, throttle=Throttle(0, 0)) as manager, manager.subscribe() as updates:
            ours = Ours(file, updates)
            await ours.ready()
            yield floor, ours


async def renames(form: Format, count: int, rounds: int, directory: Path) -> Mapping[str, Sequence[float]]:
    """Return the seconds of so many renames: the floor's, and ours."""
    async with followed(directory, form, count) as (floor, ours):
        await floor.rename()  # the first of anything is slower
        await ours.rename()
        return await interleaved(rounds, {FLOOR: floor.rename, OURS: ours.rename})


async def renames_by_prometheus(form: Format, count: int, rounds: int, directory: Path) -> Sequence[float]:
    """Return the seconds of so many renames until Prometheus has passed on what it has found."""
    file = File(directory / "files", form, count)
    seconds = []
    async with running_prometheus(directory, configuration({"job": file.path})) as prometheus:
        await prometheus.ready()
        await until(prometheus.discovered, file.targets)
        for turn in range(rounds):
            file.prepare()
            await trio.sleep(TICK * (turn + 0.5) / rounds)  # it has just passed on something
            began = file.rename()
            seconds.append(await until(prometheus.discovered, file.targets) - began)
    return seconds


def _renames(form: Format, count: int, rounds: int, their_rounds: int) -> Iterator[Figure]:
    what = f"rename → consumer, {form.name}"
    with tempfile.TemporaryDirectory() as directory:
        seconds = trio.run(renames, form, count, rounds, Path(directory))
    floor, ours = (Figure.of(what, seconds[who], who=who, size=count) for who in (FLOOR, OURS))
    yield from (floor, ours)
    if not installed():
        yield missing(what, PROMETHEUS, NOT_INSTALLED, size=count)
    elif their_rounds:
        with tempfile.TemporaryDirectory() as directory:
            theirs = trio.run(renames_by_prometheus, form, count, their_rounds, Path(directory))
        peer = Figure.of(what, theirs, who=f"Prometheus {version()}", size=count, note=f"looks every {TICK:g} s")
        yield peer
        yield ratio(f"{what}: Prometheus over {OURS}", peer, ours, aim=at_least(1))
    yield ratio(f"{what}: over the floor", ours, floor, aim=at_most(2))


def jobs(directory: Path, count: int) -> Mapping[str, object]:
    """Write a file of ten targets for each of so many jobs, and return their configuration."""
    files = {f"job-{number:04}": directory / "targets" / f"{number:04}.json" for number in range(count)}
    (directory / "targets").mkdir()
    for number, path in enumerate(files.values()):
        targets = [f"10.{number >> 8}.{number & 255}.{host}:9100" for host in range(TARGETS)]
        replace(path, json.dumps([{"targets": targets}]).encode())
    settings = configuration(files)
    (directory / "prometheus.yml").write_text(json.dumps(settings))
    return settings


async def many_by_us(directory: Path) -> tuple[float, int]:
    """Return the seconds until our command has told of all targets of a thousand jobs, and how many they are."""
    jobs(directory, JOBS)
    began = time.perf_counter()
    async with running_jsonl(directory / "prometheus.yml") as command:
        await command.until(lambda: command.count("") >= JOBS * TARGETS)
        return time.perf_counter() - began, command.count("")


async def many_by_prometheus(directory: Path, patience: float) -> tuple[float | None, int]:
    """Return the same of Prometheus; no seconds, if it does not find all in time."""
    settings = jobs(directory, JOBS)
    began = time.perf_counter()
    async with running_prometheus(directory, settings) as prometheus:
        await prometheus.ready()
        try:
            end = await until(prometheus.discovered, JOBS * TARGETS, patience=patience)
        except RuntimeError:
            return None, await prometheus.discovered()
        return end - began, JOBS * TARGETS


def _many(patience: float) -> Iterator[Figure]:
    time_what, count_what = "start of the process → all targets found", "targets found"
    with tempfile.TemporaryDirectory() as directory:
        seconds, found = trio.run(many_by_us, Path(directory))
    yield Figure.of(time_what, seconds, size=JOBS)
    yield Figure.of(count_what, found, "", size=JOBS, aim=at_least(JOBS * TARGETS))
    if not installed():
        yield missing(time_what, PROMETHEUS, NOT_INSTALLED, size=JOBS)
        return
    with tempfile.TemporaryDirectory() as directory:
        their_seconds, found = trio.run(many_by_prometheus, Path(directory), patience)
    who = f"Prometheus {version()}"
    if their_seconds is None:
        limit = f"; a user may have {INSTANCES.read_text().strip()} inotify instances" if INSTANCES.exists() else ""
        yield missing(time_what, who, f"has not found all in {patience:g} s{limit}", size=JOBS)
    else:
        yield Figure.of(time_what, their_seconds, who=who, size=JOBS)
    yield Figure.of(count_what, found, "", who=who, size=JOBS)


@dataclass(frozen=True)
class Rest:
    """What a process has done of its own accord."""

    cpu: float
    voluntary: int
    involuntary: int


async def rest(directory: Path, seconds: float) -> Mapping[str, Rest]:
    """Return what each process does in so many seconds in which nothing changes, with the same hundred jobs."""
    settings = jobs(directory, IDLE_JOBS)
    async with running_command(directory / "prometheus.yml") as command:
        await until(command.discovered, IDLE_JOBS * TARGETS)
        if not installed():
            return await _rests({OURS: command.pid}, seconds)
        async with running_prometheus(directory, settings) as prometheus:
            await prometheus.ready()
            await until(prometheus.discovered, IDLE_JOBS * TARGETS)
            return await _rests({OURS: command.pid, f"Prometheus {version()}": prometheus.pid}, seconds)


async def _rests(pids: Mapping[str, int], seconds: float) -> Mapping[str, Rest]:
    await trio.sleep(SETTLED)
    before = {who: (cpu_seconds(pid), switches(pid)) for who, pid in pids.items()}
    await trio.sleep(seconds)
    found = {}
    for who, pid in pids.items():
        cpu, switched = before[who]
        now = switches(pid)
        voluntary, involuntary = now.voluntary - switched.voluntary, now.involuntary - switched.involuntary
        found[who] = Rest(cpu_seconds(pid) - cpu, voluntary, involuntary)
    return found


def _rest(seconds: float) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        found = trio.run(rest, Path(directory), seconds)
    note = f"in {seconds:g} s"  # of which the kernel counts hundredths
    for who, done in found.items():
        figure = partial(Figure.of, who=who, size=IDLE_JOBS, note=note)
        yield figure("nothing changes: seconds of the processor", done.cpu)
        yield figure("nothing changes: wake-ups", done.voluntary, "", aim=at_most(0) if who == OURS else None)
        yield figure("nothing changes: involuntary switches", done.involuntary, "")
    if not installed():
        yield missing("nothing changes: wake-ups", PROMETHEUS, NOT_INSTALLED, size=IDLE_JOBS)


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure as it is there."""
    plan = [
        (JSON, 10, 100, 5),
        (JSON, 10_000, 20, 5),
        (JSON, 100_000, 8, 5),
        (OTHER_JSON, 10_000, 20, 0),  # to Prometheus it is all the same
        (YAML, 10, 100, 5),
        (YAML, 10_000, 8, 5),
    ]
    if quick:
        plan = [(form, count, max(3, rounds // 4), min(theirs, 3)) for form, count, rounds, theirs in plan]
    else:
        plan.append((YAML, 100_000, 3, 3))
    for form, count, rounds, their_rounds in plan:
        yield from _renames(form, count, rounds, their_rounds)
    yield from _many(MANY_PATIENCE[quick])
    yield from _rest(IDLE[quick])
