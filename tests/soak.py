"""``python -m tests.soak [SECONDS] [SEED]``: a real ``trio-sd run`` under random changes and reloads.

Target files are replaced, written in place, half written, removed, and their directories swapped; jobs come and go by
SIGHUP. What the JSON lines add up to must come to equal what the files say, no job may lose a target that is still in
its file, and threads and file descriptors must be as few in the end as in the beginning. Every minute the process is
killed or ended, files and configuration change while it is away, and another one takes over its state file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import trio

from .processes import Running, running

JOBS = 20
CONVERGENCE = 10.0  # seconds
LIFE = 60.0  # seconds of one process, which keeps its state in a file


class Soak:
    """The files, what they say, and what was heard of them."""

    process: Running

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory = directory
        self.config = directory / "prometheus.yml"
        self.rng = rng
        self.jobs = list(range(JOBS))
        self.files: dict[int, list[str]] = {}
        self.heard: dict[str, dict[str, list[str]]] = {}
        self.news = trio.Event()
        self.operations = self.reloads = 0

    def folder(self, job: int) -> Path:
        return self.directory / f"job{job}"

    def write_config(self) -> None:
        jobs = [f"- {{job_name: job{n}, file_sd_configs: [{{files: ['job{n}/*.json']}}]}}" for n in self.jobs]
        self.replace(self.config, "scrape_configs:\n" + "\n".join(jobs))

    @staticmethod
    def replace(path: Path, text: str) -> None:
        path.with_suffix(".new").write_text(text)
        os.replace(path.with_suffix(".new"), path)

    async def operate(self) -> None:
        """Do something to the files of one job, or to the configuration."""
        job = self.rng.randrange(JOBS)
        path = self.folder(job) / "targets.json"
        kind = self.rng.choice(["rename", "rename", "in place", "half", "remove", "swap", "reload"])
        targets = [f"h{n}:{self.rng.randrange(9)}" for n in range(self.rng.randrange(5))]
        text = json.dumps([{"targets": targets}])
        if kind == "reload":
            self.jobs = sorted({*self.jobs, job} if self.rng.random() < 0.6 else {*self.jobs} - {job})
            self.write_config()
            if self.process.process.returncode is None:
                self.process.signal(signal.SIGHUP)
            self.reloads += 1
        elif kind == "remove":
            path.unlink(missing_ok=True)
            self.files.pop(job, None)
        else:
            if kind == "half":
                path.write_text(text[: len(text) // 2])
                await trio.sleep(self.rng.choice([0, 0.01, 0.15]))
            if kind == "swap":
                moved = self.folder(job).rename(self.directory / f"old{self.operations}")
                self.folder(job).mkdir()
                (moved / "targets.json").unlink(missing_ok=True)
                moved.rmdir()
            if kind in ("in place", "half"):
                path.write_text(text)
            else:
                self.replace(path, text)
            self.files[job] = targets
        self.operations += 1

    async def listen(self) -> None:
        """Add up the updates."""
        while True:
            update = await self.process.update()
            for name, found in update["sets"].items():
                groups = self.heard.setdefault(name, {})
                for source in found["removed"]:
                    groups.pop(source, None)
                for group in found["updated"]:
                    groups[group["source"]] = [target["__address__"] for target in group["targets"]]
            self.news.set()
            self.news = trio.Event()

    def differences(self) -> list[str]:
        """Return the jobs of which something else was heard than is true."""
        return [
            f"job{job}: heard {heard}, expected {wanted}"
            for job in range(JOBS)
            if (wanted := self.files.get(job, []) if job in self.jobs else [])
            != (heard := [t for ts in self.heard.get(f"job{job}", {}).values() for t in ts])
        ]

    async def converge(self) -> None:
        with trio.move_on_after(CONVERGENCE):
            while self.differences():
                await self.news.wait()
            return
        sys.exit(f"not the truth after {CONVERGENCE:g} s:\n" + "\n".join(self.differences()))

    def resources(self) -> tuple[list[str], int]:
        """Return what the open file descriptors are, and the number of threads."""
        proc = f"/proc/{self.process.process.pid}"
        kinds = [os.readlink(f"{proc}/fd/{fd}").partition(":[")[0] for fd in os.listdir(f"{proc}/fd")]
        return sorted(kinds), len(os.listdir(f"{proc}/task"))


async def main(seconds: float, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for job in range(JOBS):
            (directory / f"job{job}").mkdir()
        soak = Soak(directory, random.Random(seed))
        soak.write_config()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await live(soak, min(end, time.monotonic() + LIFE))
            for _ in range(soak.rng.randrange(10)):
                await soak.operate()  # nobody is there to see it


async def live(soak: Soak, end: float) -> None:
    """Run the command until ``end``; kill it then, or look whether it has kept anything and end it."""
    async with running("run", soak.config, "--state-file", soak.directory / "state") as process:
        soak.process = process
        soak.heard.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(soak.listen)
            nursery.start_soon(drain_log, process)
            await soak.news.wait()  # before that, SIGHUP would end it
            for job in range(JOBS):  # every watch is set before anything is counted
                soak.replace(soak.folder(job) / "targets.json", '[{"targets": ["first:1"]}]')
                soak.files[job] = ["first:1"]
            await soak.converge()
            before = soak.resources()
            while time.monotonic() < end:
                for _ in range(soak.rng.randrange(1, 30)):
                    await soak.operate()
                    await trio.sleep(soak.rng.choice([0, 0, 0.001, 0.02]))
                await soak.converge()
            if soak.rng.random() < 0.5:
                process.signal(signal.SIGKILL)
                how = "killed"
            else:
                soak.jobs = list(range(JOBS))
                soak.write_config()
                process.signal(signal.SIGHUP)
                await soak.converge()
                await trio.sleep(11)  # idle worker threads leave after ten seconds
                after = soak.resources()
                how = f"fds and threads {before} -> {after}"
                if len(after[0]) > len(before[0]) or after[1] > before[1]:
                    sys.exit(f"something leaked: {how}")
            print(f"{soak.operations} operations, {soak.reloads} reloads; {how}", flush=True)
            nursery.cancel_scope.cancel()


async def drain_log(process: Running) -> None:
    while True:
        await process._line("stderr")


if __name__ == "__main__":
    trio.run(main, float(sys.argv[1]) if sys.argv[1:] else 60.0, int(sys.argv[2]) if sys.argv[2:] else 1)
