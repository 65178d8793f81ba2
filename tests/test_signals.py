"""Signals for real: a process that is told to reload, and to end, while it is busy; what it says stays consistent.

The configuration may be a pipe. That is how these tests know that a reload is under way: it is, from the moment when
somebody reads the pipe until it has been written and closed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from .processes import PATIENCE, Running, running

PROMPTLY = 1.0  # seconds from SIGTERM to the end of the process


def replace(path: Path, text: str) -> None:
    """Write a file by rename, as configuration management does."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    os.replace(temporary, path)


class Jobs:
    """Jobs and their target files: each has a target that is always there, and one that changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "prometheus.yml"
        self.names: list[str] = []
        self.targets: dict[str, list[str]] = {}
        self.more = ""  # jobs that find nothing

    def configure(self, names: Iterable[str]) -> None:
        self.names = list(names)
        replace(self.config, self.text())

    def text(self) -> str:
        lines = [f"- {{job_name: {n}, file_sd_configs: [{{files: ['{n}/*.json']}}]}}" for n in self.names]
        return "\n".join(["scrape_configs:", *lines, self.more])

    def configure_badly(self) -> str:
        """Put a file in place that can't be used; return where the mistake is."""
        replace(self.config, self.text() + "- {job_name: bad, oops: 1}\n")
        return f"{self.config}:{len(self.names) + 2}:19"

    def change(self, name: str, value: int) -> None:
        """Write the targets of a job."""
        (self.directory / name).mkdir(exist_ok=True)
        self.targets[name] = [f"{name}-always:1", f"{name}-{value}:1"]
        replace(self.directory / name / "targets.json", json.dumps([{"targets": self.targets[name]}]))

    def truth(self) -> dict[str, list[str]]:
        return {name: self.targets[name] for name in self.names}


class Heard:
    """What the lines of a process add up to, each of them checked as it comes."""

    def __init__(self, process: Running, staying: Iterable[str]) -> None:
        self.process = process
        self.staying = set(staying)  # jobs that are in every configuration
        self.revisions = {"scrape": -1, "notify": -1}
        self.groups: dict[str, dict[str, list[str]]] = {}
        self.seen: set[str] = set()  # those of them that have had targets
        self.lines = 0
        self.log: list[str] = []
        self.news = trio.Event()

    async def listen(self) -> None:
        """Take lines until stdout ends."""
        try:
            while True:
                self.take(await self.process.update())
                self.tell()
        except EOFError:
            pass

    def take(self, update: dict[str, object]) -> None:
        manager, revision, sets = update["manager"], update["revision"], update["sets"]
        assert isinstance(manager, str)
        assert isinstance(revision, int)
        assert isinstance(sets, dict)
        assert revision > self.revisions[manager], "revisions rise"
        self.revisions[manager] = revision
        self.lines += 1
        for name, found in sets.items():
            groups = self.groups.setdefault(name, {})
            for source in found["removed"]:
                assert source in groups, f"{name} had no {source} to remove"
                del groups[source]
            for source in {group["source"] for group in found["updated"]}:
                groups[source] = [
                    target["__address__"]
                    for group in found["updated"]
                    if group["source"] == source
                    for target in group["targets"]
                ]
        for name in self.staying & self.seen:
            assert f"{name}-always:1" in self.addresses(name), f"{name} has lost its target in revision {revision}"
        self.seen |= {name for name in self.staying if self.addresses(name)}

    def addresses(self, name: str) -> list[str]:
        return [address for addresses in self.groups.get(name, {}).values() for address in addresses]

    def state(self) -> dict[str, list[str]]:
        """Return the addresses of each job that has any."""
        return {name: found for name in self.groups if (found := self.addresses(name))}

    async def follow_log(self) -> None:
        """Take log lines until stderr ends."""
        try:
            while True:
                self.log.append(await self.process._line("stderr"))
                self.tell()
        except EOFError:
            pass

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds of what was heard or logged."""
        with trio.fail_after(PATIENCE):
            while not holds():
                await self.news.wait()

    async def until_logged(self, text: str, times: int = 1) -> None:
        await self.until(lambda: self.logged(text) >= times)

    def logged(self, text: str) -> int:
        return sum(text in line for line in self.log)


@asynccontextmanager
async def started(jobs: Jobs, staying: Iterable[str]) -> AsyncIterator[Heard]:
    """Start the command, and wait until it has said what the files say; in the end it must have ended by itself."""
    async with running("run", jobs.config, "--output", "jsonl") as process, trio.open_nursery() as nursery:
        heard = Heard(process, staying)
        nursery.start_soon(heard.listen)
        nursery.start_soon(heard.follow_log)
        await heard.until(lambda: heard.state() == jobs.truth())
        await heard.until_logged("is in force")
        yield heard
        assert process.process.returncode == 0
    assert not heard.logged("Traceback")


async def end(process: Running, number: signal.Signals = signal.SIGTERM) -> None:
    """Have it end, which it must do at once and with status 0."""
    before = time.monotonic()
    process.signal(number)
    assert await process.end() == 0
    assert time.monotonic() - before < PROMPTLY


async def reload_from_pipe(jobs: Jobs, process: Running) -> int:
    """Begin a reload that goes on until what this returns, the configuration's pipe, has been written and closed."""
    pipe = jobs.directory / "pipe"
    os.mkfifo(pipe)
    os.replace(pipe, jobs.config)
    process.signal(signal.SIGHUP)
    with trio.fail_after(PATIENCE):  # it opens when the other side does
        return await trio.to_thread.run_sync(partial(os.open, jobs.config, os.O_WRONLY), abandon_on_cancel=True)


STAYING = ("web", "db", "queue")
GUESTS = ("blue", "green", "red")


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    made = Jobs(tmp_path)
    for name in (*STAYING, *GUESTS):
        made.change(name, 0)
    made.configure(STAYING)
    return made


# --- reloads ---


async def test_a_stream_of_sighups_while_targets_change(jobs: Jobs) -> None:
    async with started(jobs, STAYING) as heard:
        with trio.fail_after(PATIENCE):
            for number in itertools.count(1):
                jobs.change(STAYING[number % 3], number)
                if number % 2:
                    jobs.configure([*STAYING[: number % 3], GUESTS[number % 3], *STAYING[number % 3 :]])
                jobs.change(GUESTS[number % 2], number)
                heard.process.signal(signal.SIGHUP)
                if number >= 20 and heard.logged("is in force") >= 6:
                    break
                await trio.sleep(0.02)  # a pace: some come while the one before is under way, some after it
        await heard.until(lambda: heard.state() == jobs.truth())
        assert heard.lines > 3
        await end(heard.process)


async def test_ten_sighups_at_once_put_the_newest_file_in_force(jobs: Jobs) -> None:
    async with started(jobs, STAYING) as heard:
        for number in range(1, 3):
            jobs.configure([*STAYING, GUESTS[number % 3]])
            before = time.monotonic()
            for _ in range(10):
                heard.process.signal(signal.SIGHUP)
            assert time.monotonic() - before < 0.1
            jobs.change("web", number)
            await heard.until(lambda: heard.state() == jobs.truth())
        await end(heard.process)


async def test_sighups_during_a_reload_cause_exactly_one_more(jobs: Jobs) -> None:
    async with started(jobs, STAYING) as heard:
        pipe = await reload_from_pipe(jobs, heard.process)
        text = jobs.text()
        jobs.configure([*STAYING, "blue"])
        for number in (1, 2):
            heard.process.signal(signal.SIGHUP)
            jobs.change("db", number)
            # That a reload is under way holds up nothing; and what is heard shows that the signal was taken.
            await heard.until(lambda: heard.addresses("db") == jobs.targets["db"])
        with os.fdopen(pipe, "w") as opened:
            opened.write(text)
        await heard.until(lambda: heard.state() == jobs.truth())
        jobs.configure([*STAYING, "green"])
        heard.process.signal(signal.SIGHUP)  # whatever was asked for before comes before
        await heard.until(lambda: heard.state() == jobs.truth())
        await heard.until_logged("is in force", 4)
        await end(heard.process)
        assert heard.logged("is in force") == 4  # at first, from the pipe, one for both, and the last


async def test_files_that_are_good_and_bad_in_turn(jobs: Jobs) -> None:
    async with started(jobs, STAYING) as heard:
        place = ""  # of the mistake, always the same
        for number in range(1, 4):
            jobs.configure([*STAYING, GUESTS[number % 3]])
            heard.process.signal(signal.SIGHUP)
            await heard.until_logged("is in force", number + 1)
            place = jobs.configure_badly()
            heard.process.signal(signal.SIGHUP)
            await heard.until_logged("reload refused", number)
            jobs.change("web", number)
        await heard.until(lambda: heard.state() == jobs.truth())  # what was in force goes on
        for number in range(20):  # and faster than reloads are
            if number % 2:
                jobs.configure_badly()
            else:
                jobs.configure([*STAYING, GUESTS[number % 3]])
            heard.process.signal(signal.SIGHUP)
            await trio.sleep(0.005)
        jobs.configure([*STAYING, "red"])
        heard.process.signal(signal.SIGHUP)
        await heard.until(lambda: heard.state() == jobs.truth())
        await end(heard.process)
    refused = [line for line in heard.log if "reload refused" in line]
    assert all(place in line for line in refused), refused
    assert all("level=INFO" in line or line in refused for line in heard.log), heard.log


# --- the end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_at_once_when_at_rest(jobs: Jobs, number: signal.Signals) -> None:
    async with started(jobs, STAYING) as heard:
        await end(heard.process, number)


async def test_it_ends_at_once_while_it_reads_a_configuration(jobs: Jobs) -> None:
    async with started(jobs, STAYING) as heard:
        pipe = await reload_from_pipe(jobs, heard.process)
        try:
            await end(heard.process)
        finally:
            os.close(pipe)
        assert heard.logged("is in force") == 1


async def test_it_ends_at_once_while_a_reload_waits_for_the_end_of_providers(jobs: Jobs) -> None:
    pytest.importorskip("kazoo")
    # A server that says nothing: a session with it takes half a second to give up when it is told to end.
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        jobs.more = f"- {{job_name: mute, nerve_sd_configs: [{{servers: ['127.0.0.1:{port}'], paths: [/x]}}]}}\n"
        jobs.configure(STAYING)
        async with started(jobs, STAYING) as heard:
            async with await listener.accept():  # it has connected
                jobs.configure([*STAYING, "blue"])
                heard.process.signal(signal.SIGHUP)
                await heard.until(lambda: "blue" in heard.groups)  # told as the new configuration is put in force
                await end(heard.process)
            assert heard.logged("is in force") == 1  # the reload was not over


async def test_it_ends_at_once_after_ten_sighups(jobs: Jobs) -> None:
    async with started(jobs, STAYING) as heard:
        jobs.configure([*STAYING, *GUESTS])
        for _ in range(10):
            heard.process.signal(signal.SIGHUP)
        await end(heard.process)


async def test_it_ends_at_once_while_nobody_reads_what_it_writes(jobs: Jobs) -> None:
    many = ["web-always:1", *[f"many-{number}:1" for number in range(10_000)]]  # a pipe holds a fifth of it
    replace(jobs.directory / "web" / "targets.json", json.dumps([{"targets": many}]))
    async with running("run", jobs.config, "--output", "jsonl") as process, trio.open_nursery() as nursery:
        heard = Heard(process, ())
        nursery.start_soon(heard.follow_log)
        assert process.process.stdout is not None
        taken = 0
        with trio.fail_after(PATIENCE):
            while taken < 10_000:  # it is in the middle of the long line
                taken += len(await process.process.stdout.receive_some(4_096))
        for number in range(3):
            process.signal(signal.SIGHUP)
            await heard.until_logged("is in force", number + 2)  # reloads don't wait for the reader either
        await end(process)
    assert not heard.logged("Traceback")
