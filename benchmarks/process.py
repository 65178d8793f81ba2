"""Whole processes: what ``trio-sd run`` takes of memory and processor, beside Prometheus that discovers the same.

The size of these figures is the number of targets, which one JSON file holds: a target in each group, or ten. Both
processes read it; a rule drops every target of it, so that Prometheus has nothing to scrape. It goes on to hold what
was dropped, to show it, which is work that its discovery alone has not. So what ``promtool check service-discovery``
takes is told, too: it is the discoverer of Prometheus and nothing else, no storage, no scraper and no server, at the
moment when it has read the file once.

The seconds of the processor are those of the whole process, from its start on: of ours, a third of a second goes by
before it begins. Each change of the file replaces it as a whole, with one target more; the next one follows when both
have read it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from .figures import OURS, Figure, Unit, at_most, missing, ratio
from .processes import running
from .prometheus import PROMETHEUS, Prometheus, installed, running_prometheus, version

__all__ = ["Command", "Switches", "cpu_seconds", "replace", "running_command", "switches", "until"]

NOT_INSTALLED: Final = "not installed (apt install prometheus)"
PROMTOOL: Final = "promtool"
PATIENCE: Final = 60.0
POLL: Final = 0.05
SELDOM: Final = 0.25  # seconds from one question to the next where what the answers cost is measured, too
SCRAPER: Final = 6.0  # seconds after which its scraper, too, has what its discovery has passed on: it looks every 5 s
PROMTOOL_READS: Final = {False: 3.0, True: 6.0}  # seconds until it tells what it has found; of large files
LARGE: Final = 50_000
ALONE: Final = "promtool (discoverer alone)"
RECEIVED: Final = "prometheus_sd_received_updates_total"

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Return how long all threads of a process have run, those that have ended too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # those of the kernel for it, too


def memory(pid: int) -> Mapping[str, int]:
    """Return the bytes that a process holds, by how they are counted: shared pages fully, or by how many share them."""
    found = {"RSS": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE}
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if rollup.exists() and (proportional := re.search(r"^Pss:\s*(\d+) kB", rollup.read_text(), re.MULTILINE)):
        found["PSS"] = int(proportional[1]) * 1024
    return found


@dataclass(frozen=True)
class Switches:
    """How often threads have given up the processor.

    Attributes:
      voluntary: to wait for something; each of these is a wake-up.
      involuntary: because another one was to run.
    """

    voluntary: int
    involuntary: int


def switches(pid: int) -> Switches:
    """Return the switches of all threads that a process has now."""
    voluntary = involuntary = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        told = dict(re.findall(r"^(\w+ctxt_switches):\s*(\d+)$", (thread / "status").read_text(), re.MULTILINE))
        voluntary += int(told["voluntary_ctxt_switches"])
        involuntary += int(told["nonvoluntary_ctxt_switches"])
    return Switches(voluntary, involuntary)


def replace(path: Path, content: bytes) -> None:
    """Write a file elsewhere, and move it to its place."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


async def until(
    count: Callable[[], Awaitable[int]], wanted: int, *, patience: float = PATIENCE, pause: float = POLL
) -> float:
    """Ask for a count until there are so many, or more, and return the ``time.perf_counter()`` of that moment.

    Raises:
      RuntimeError: there are fewer until the end of the patience.
    """
    deadline = trio.current_time() + patience
    while (found := await count()) < wanted:
        if trio.current_time() > deadline:
            raise RuntimeError(f"there are {found} of {wanted} after {patience:g} s")
        await trio.sleep(pause)
    return time.perf_counter()


class Command:
    """``trio-sd run --output none``, which is asked by SIGUSR1 how it fares, and says so in its log."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._tell, self._told = trio.open_memory_channel[int](1)
        self._log = ""

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    async def read_log(self, stderr: trio.abc.ReceiveStream, *, task_status: trio.TaskStatus[None]) -> None:
        """Take the log until the command ends; started once a configuration is in force, as no signal may come before.

        Raises:
          RuntimeError: the command has ended.
        """
        rest = ""
        started = False
        async for chunk in stderr:
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            for line in lines:
                self._log = line
                if not started and "is in force" in line:
                    started = True
                    task_status.started()
                if told := re.search(r"manager scrape: .* (\d+) targets", line):
                    await self._tell.send(int(told[1]))
        raise RuntimeError(f"{OURS} run has ended; it said last: {self._log}")

    async def discovered(self) -> int:
        """Return how many targets it has discovered."""
        self._process.send_signal(signal.SIGUSR1)
        with trio.fail_after(PATIENCE):
            return await self._told.receive()


@asynccontextmanager
async def running_command(config: Path) -> AsyncIterator[Command]:
    """Run the command for the time of the block, which begins when the configuration is in force."""
    arguments = [sys.executable, "-m", "trio_sd", "run", str(config), "--output", "none"]
    async with running(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        command = Command(process)
        async with process.stderr, trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                await nursery.start(command.read_log, process.stderr)
            yield command
            nursery.cancel_scope.cancel()


def targets_file(count: int, per_group: int, extra: int = 0) -> bytes:
    """Return a JSON file of ``count`` targets, and ``extra`` ones in its first group."""
    addresses = [f'"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:9100"' for i in range(count)]
    addresses[0] = ",".join([addresses[0], *(f'"extra-{number}:9100"' for number in range(extra))])
    groups = [
        f'{{"targets":[{",".join(addresses[begin : begin + per_group])}],"labels":{{"zone":"zone-{begin % 7}"}}}}'
        for begin in range(0, count, per_group)
    ]
    return f"[{','.join(groups)}]".encode()


def configuration(files: Mapping[str, Path]) -> Mapping[str, object]:
    """Return the configuration of a job for each file, none of which has anything to scrape in the end."""
    drop_all = {"action": "drop", "source_labels": ["__address__"], "regex": ".*"}
    jobs = [
        {"job_name": job, "file_sd_configs": [{"files": [str(path)]}], "relabel_configs": [drop_all]}
        for job, path in files.items()
    ]
    return {"scrape_configs": jobs}


@dataclass(frozen=True)
class Taken:
    """What a process has taken so far: seconds of the processor, and bytes by how they are counted."""

    cpu: float
    memory: Mapping[str, int]

    @classmethod
    def by(cls, pid: int) -> Taken:
        """Return what that process has taken."""
        return cls(cpu_seconds(pid), memory(pid))


async def taken(count: int, per_group: int, changes: int, directory: Path) -> Mapping[str, tuple[Taken, Taken]]:
    """Return what each process has taken when it has found all, and after that many changes of the file."""
    path, config = directory / "targets" / "targets.json", directory / "prometheus.yml"
    path.parent.mkdir()  # of its own, so that who watches it is not woken by what Prometheus writes
    replace(path, targets_file(count, per_group))
    settings = configuration({"job": path})
    config.write_text(json.dumps(settings))
    async with AsyncExitStack() as stack:
        running: dict[str, Command | Prometheus] = {}
        theirs: Prometheus | None = None
        if installed():
            theirs = await stack.enter_async_context(running_prometheus(directory, settings))
            running[PROMETHEUS] = theirs
            await theirs.ready()
            await until(theirs.discovered, count, pause=SELDOM)
        ours = running[OURS] = await stack.enter_async_context(running_command(config))
        await until(ours.discovered, count, pause=SELDOM)
        await trio.sleep(SCRAPER)
        synced = {who: Taken.by(each.pid) for who, each in running.items()}
        for extra in range(1, changes + 1):
            received = 0 if theirs is None else await theirs.scraped(RECEIVED)
            replace(path, targets_file(count, per_group, extra))
            await until(ours.discovered, count + extra, pause=SELDOM)
            if theirs is not None:  # one update a change, or two, if it reads twice
                await until(partial(theirs.scraped, RECEIVED), received + 1, pause=SELDOM)
        for each in running.values():
            await until(each.discovered, count + changes, pause=SELDOM)
            assert await each.discovered() == count + changes
        await trio.sleep(SCRAPER)
        return {who: (synced[who], Taken.by(each.pid)) for who, each in running.items()}


def by_promtool(count: int, per_group: int, directory: Path) -> Taken:
    """Return what the bare discoverer of Prometheus has taken when it has read the file."""
    path, config = directory / "promtool.json", directory / "promtool.yml"
    path.write_bytes(targets_file(count, per_group))
    config.write_text(json.dumps(configuration({"job": path})))
    reads = PROMTOOL_READS[count >= LARGE]
    command = [PROMTOOL, "check", "service-discovery", str(config), "job", f"--timeout={reads:g}s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        time.sleep(reads - 1)  # it tells what it has found when its time is over, and ends
        found = Taken.by(process.pid)
        told, _ = process.communicate(timeout=PATIENCE)
    if (told_of := told.count(b'"__address__"')) != count:
        raise RuntimeError(f"{PROMTOOL} has found {told_of} of {count} targets")
    return found


def _figures(count: int, per_group: int, changes: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        found = trio.run(taken, count, per_group, changes, Path(directory))
        alone = by_promtool(count, per_group, Path(directory)) if shutil.which(PROMTOOL) else None
    how = "one target a group" if per_group == 1 else f"{per_group} targets a group"
    names = {OURS: OURS, PROMETHEUS: f"Prometheus {version()}"} if installed() else {OURS: OURS}

    def compared(what: str, unit: Unit, values: Mapping[str, float], note: str = "") -> Iterator[Figure]:
        figures = {who: Figure.of(what, values[who], unit, who=names[who], size=count, note=note) for who in names}
        yield from figures.values()
        if PROMETHEUS in figures:
            yield ratio(f"{what}: over Prometheus", figures[OURS], figures[PROMETHEUS], aim=at_most(1))
        else:
            yield missing(what, PROMETHEUS, NOT_INSTALLED, size=count)

    for kind in found[OURS][0].memory:
        what = f"memory ({kind}), first sync, {how}"
        yield from compared(what, "B", {who: synced.memory[kind] for who, (synced, _) in found.items()})
        if alone is not None:
            yield Figure.of(what, alone.memory[kind], "B", who=ALONE, size=count)
        if changes:
            what = f"memory ({kind}), after changes, {how}"
            values = {who: after.memory[kind] for who, (_, after) in found.items()}
            yield from compared(what, "B", values, note=f"{changes} changes")
    what = f"processor, until the first sync, {how}"
    yield from compared(what, "s", {who: synced.cpu for who, (synced, _) in found.items()})
    if alone is not None:
        yield Figure.of(what, alone.cpu, "s", who=ALONE, size=count)
    if changes:
        each = {who: (after.cpu - synced.cpu) / changes for who, (synced, after) in found.items()}
        yield from compared(f"processor, each change, {how}", "s", each, note=f"mean of {changes} changes")


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure as it is there."""
    changes = 4 if quick else 10
    yield from _figures(1, 1, 0)  # what there is without targets
    for count in (10_000, 100_000):
        for per_group in (1, 10):
            yield from _figures(count, per_group, changes)
