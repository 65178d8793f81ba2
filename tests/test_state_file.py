"""The state file on disk: always whole, never in the way of anything, and read only if it is to be trusted.

What happens in threads is held up by events; nothing here waits for time to pass.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import settings
from trio.testing import wait_all_tasks_blocked

from trio_sd.state import SavedProvider, State, decode, encode
from trio_sd.state_file import StateFile
from trio_sd.testing import group

ROOT: Final = Path(__file__).parent.parent
MANAGER: Final = "scrape"
PATIENCE: Final = 20.0


def a_state(number: int = 0, groups: int = 3) -> State:
    """Return a state that says its number."""
    found = [group(f"{n:05}", f"host-{n}:80", labels={"number": f"{number}"}) for n in range(groups)]
    return State(MANAGER, float(number), {"web": (0,)}, (SavedProvider("fake", "f", float(number), tuple(found)),))


def content(state: State) -> bytes:
    return b"".join(encode(state))


def number_in(path: Path) -> float:
    """Return which state a whole file says."""
    with path.open("rb") as file:
        return decode(file, MANAGER).saved


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- writing ---


async def test_what_was_saved_is_read_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = StateFile(path, MANAGER)
    assert await file.read() is None
    assert await file.save(a_state(1))
    assert await file.save(a_state(2))
    restored = await StateFile(os.fspath(path), MANAGER).read()
    assert restored is not None
    assert content(restored) == content(a_state(2)) == path.read_bytes()
    assert os.listdir(tmp_path) == ["state"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    statistics = file.statistics()
    assert (statistics.path, statistics.saves, statistics.failures, statistics.last_error) == (
        os.fspath(path),
        2,
        0,
        None,
    )
    assert statistics.last_saved is not None


async def test_the_new_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    told: list[str] = []
    fsync, rename = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        told.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")
        fsync(fd)

    def noted_replace(old: str, new: str) -> None:
        told.append(f"to {os.path.basename(new)}")
        assert os.path.dirname(old) == os.path.dirname(new)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    assert await StateFile(path, MANAGER).save(a_state())
    assert told == [f"file of {len(content(a_state()))}", "to state", "directory"]


@pytest.mark.parametrize("at", ["fsync", "replace", "open", "write"])
async def test_whatever_fails_the_old_file_stays_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    path = tmp_path / "state"
    file = StateFile(path, MANAGER)
    await file.save(a_state(1))
    opened = os.listdir("/proc/self/fd")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if at == "write":
            patch.setattr("trio_sd.state_file.encode", fail)
        else:
            patch.setattr(os, at, fail)
        for failures in range(1, 4):
            assert not await file.save(a_state(2))
            assert file.statistics().failures == failures
    assert os.listdir(tmp_path) == ["state"]
    assert number_in(path) == 1
    assert sorted(os.listdir("/proc/self/fd")) == sorted(opened)
    assert file.statistics().last_error == f"[Errno {errno.ENOSPC}] No space left on device"
    assert len(errors(caplog)) == 1, "told once"
    assert await file.save(a_state(3))
    assert file.statistics().last_error is None
    assert number_in(path) == 3
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        await file.save(a_state(4))
    assert len(errors(caplog)) == 2, "told again when it had worked meanwhile"


async def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "state"
    (tmp_path / "state.new").write_bytes(b"half a fi")
    (tmp_path / "state.new").chmod(0o444)
    assert await StateFile(path, MANAGER).save(a_state(1))
    assert number_in(path) == 1
    assert await StateFile(path, MANAGER).save(a_state(2))
    assert number_in(path) == 2


@pytest.mark.parametrize(
    "target", ["state-elsewhere", "folder/state", "gone"], ids=["beside it", "in a folder", "not there yet"]
)
async def test_a_symbolic_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    link, real = tmp_path / "link", tmp_path / target
    if target != "gone":
        real.write_bytes(content(a_state(1)))
    link.symlink_to(target)
    file = StateFile(link, MANAGER)
    restored = await file.read()
    assert (restored is None) == (target == "gone")
    assert await file.save(a_state(2))
    assert os.readlink(link) == target
    assert number_in(real) == number_in(link) == 2
    real.write_bytes(b"damaged")
    assert await StateFile(link, MANAGER).read() is None
    assert os.readlink(link) == target
    assert Path(f"{real}.unusable-1").read_bytes() == b"damaged"


async def test_a_path_is_where_it_was_when_the_directory_of_the_process_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    file = StateFile("state", MANAGER)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert await file.save(a_state(1))
    assert number_in(tmp_path / "state") == 1


# --- what can't be written ---


def a_directory(folder: Path) -> Path:
    (folder / "state").mkdir()
    return folder / "state"


def a_file_for_a_folder(folder: Path) -> Path:
    (folder / "file").write_text("keep")
    return folder / "file" / "state"


def a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def a_directory_in_the_way(folder: Path) -> Path:
    (folder / "state.new").mkdir()
    return folder / "state"


UNWRITABLE: Final[dict[str, Callable[[Path], Path]]] = {
    "a directory": a_directory,
    "a device": lambda _: Path("/dev/full"),
    "another device": lambda _: Path("/dev/null"),
    "no folder": lambda folder: folder / "missing" / "state",
    "a file for a folder": a_file_for_a_folder,
    "a loop of links": a_loop,
    "a name that is too long": lambda folder: folder / ("n" * 300),
    "the root": lambda _: Path("/"),
    "a directory in the way": a_directory_in_the_way,
    "a file of the kernel's": lambda _: Path("/proc/self/state"),
}


def everything_in(folder: Path) -> list[tuple[str, int]]:
    return sorted((os.fspath(path), path.lstat().st_mode) for path in folder.rglob("*"))


@pytest.mark.parametrize("make", UNWRITABLE.values(), ids=UNWRITABLE)
async def test_what_can_not_be_written_is_told_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    before, device = everything_in(tmp_path), os.path.lexists(path) and path.lstat().st_mode
    file = StateFile(path, MANAGER)
    with trio.fail_after(PATIENCE):
        assert await file.read() is None
        told_when_read = len(errors(caplog))
        assert told_when_read <= 1
        for _ in range(3):
            assert not await file.save(a_state())
    assert len(errors(caplog)) == told_when_read + 1
    assert everything_in(tmp_path) == before
    assert (os.path.lexists(path) and path.lstat().st_mode) == device
    assert not os.path.lexists(f"{path}.unusable-1")


async def test_a_pipe_as_path_delays_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To open one waits for somebody who writes into it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    try:
        with trio.move_on_after(1) as scope:
            assert await StateFile(path, MANAGER).read() is None
    finally:
        for _ in range(100):  # a thread that waits for that is let go
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                break
    assert not scope.cancelled_caught
    assert len(errors(caplog)) == 1
    assert stat.S_ISFIFO(path.lstat().st_mode)


SAVE_ON_A_FULL_DISK: Final = """
import os, resource, sys, trio
from trio_sd.state import SavedProvider, State
from trio_sd.state_file import StateFile
from trio_sd.testing import group

def a_state(number, groups):
    found = [group(f"{n}", f"host-{n}:80") for n in range(groups)]
    return State("scrape", number, {"web": (0,)}, (SavedProvider("fake", "f", number, found),))

async def main():
    file = StateFile(sys.argv[1], "scrape")
    assert await file.save(a_state(1, groups=3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    for _ in range(3):
        assert not await file.save(a_state(2, groups=2_000))
    print(file.statistics().last_error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert sorted(os.listdir(os.path.dirname(sys.argv[1]))) == ["state"], os.listdir(os.path.dirname(sys.argv[1]))

trio.run(main)
"""


def test_a_file_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state"
    result = subprocess.run(
        [sys.executable, "-c", SAVE_ON_A_FULL_DISK, path], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (result.returncode, result.stderr.count("can't be written")) == (0, 1), result.stderr
    assert "File too large" in result.stdout
    assert number_in(path) == 1


# --- reading ---

UNUSABLE: Final = {
    "empty": (b"", "it is empty"),
    "foreign": (b"scrape_configs: []\n", "it is not a state file of trio-sd"),
    "binary": (random.Random(0).randbytes(5_000), "it is not a state file of trio-sd"),
    "cut off": (content(a_state())[: content(a_state()).rindex(b"{")], "it is cut off"),
    "damaged": (content(a_state()).replace(b"host-1", b"host-7"), "its content and its digest differ"),
    "of a later version": (
        content(a_state()).replace(b'"version": 1', b'"version": 2'),
        "it has version 2 of the format; this trio-sd reads 1",
    ),
    "of another manager": (
        content(a_state()).replace(b'"manager": "scrape"', b'"manager": "notify"'),
        "it is of the manager 'notify', not of 'scrape'",
    ),
}


@pytest.mark.parametrize(("damaged", "reason"), UNUSABLE.values(), ids=UNUSABLE)
async def test_a_file_that_can_not_be_used_is_told_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bytes, reason: str
) -> None:
    path = tmp_path / "state"
    for number in 1, 2, 4:
        path.write_bytes(damaged)
        caplog.clear()
        file = StateFile(path, MANAGER)
        assert await file.read() is None
        assert not path.exists()
        (told,) = errors(caplog)
        assert reason in told
        assert os.fspath(path) in told
        assert f"set aside as {path}.unusable-{number}" in told
        assert Path(f"{path}.unusable-{number}").read_bytes() == damaged
        Path(f"{path}.unusable-3").mkdir(exist_ok=True)  # another's
        assert await file.save(a_state(5))
        assert number_in(path) == 5


async def test_a_large_foreign_file_is_set_aside_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()
    os.truncate(path, 100 << 30)
    with trio.fail_after(PATIENCE):
        assert await StateFile(path, MANAGER).read() is None
    assert os.listdir(tmp_path) == ["state.unusable-1"]


# --- threads that do not come back in time ---


class Gate:
    """Holds up threads at a place until told to go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()

    async def wait_reached(self) -> None:
        assert await trio.to_thread.run_sync(self.reached.wait, PATIENCE)


async def test_a_write_that_was_left_to_itself_does_not_come_after_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    file = StateFile(path, MANAGER)
    gate, fsync = Gate(), os.fsync

    def slow_once(fd: int) -> None:
        if not gate.reached.is_set():
            gate.wait()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.save, a_state(1))
        await gate.wait_reached()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.save, a_state(2))
        await wait_all_tasks_blocked()
        gate.open()
    assert number_in(path) == 2
    assert os.listdir(tmp_path) == ["state"]


async def test_a_write_that_another_user_of_the_path_left_to_itself_does_not_tear_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk hangs for longer than the grace time; meanwhile another manager, or process, has taken over."""
    path = tmp_path / "state"
    gate, fsync, write = Gate(), os.fsync, StateFile._write
    ended = threading.Event()

    def slow_fsync(fd: int) -> None:
        if not gate.reached.is_set():
            gate.wait()
        fsync(fd)

    def noted_write(self: StateFile, state: State) -> None:
        try:
            write(self, state)
        finally:
            if state.saved == 1:
                ended.set()

    monkeypatch.setattr(os, "fsync", slow_fsync)
    monkeypatch.setattr(StateFile, "_write", noted_write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(StateFile(path, MANAGER).save, a_state(1))
        await gate.wait_reached()
        nursery.cancel_scope.cancel()
    second = StateFile(path, MANAGER)
    assert not await second.save(a_state(2)), "nobody writes beside it"
    assert "somebody else is writing it" in str(second.statistics().last_error)
    gate.open()
    assert await trio.to_thread.run_sync(ended.wait, PATIENCE)
    assert number_in(path) == 1
    assert await second.save(a_state(3))
    assert number_in(path) == 3
    assert os.listdir(tmp_path) == ["state"]


# --- processes that die ---

SAVE_CONSTANTLY: Final = """
import sys, trio
from trio_sd.state import SavedProvider, State
from trio_sd.state_file import StateFile
from trio_sd.testing import group

def a_state(number, groups):
    found = [group(f"{n}", f"host-{n}:80", labels={"number": f"{number}"}) for n in range(groups)]
    return State("scrape", number, {"web": (0,)}, (SavedProvider("fake", "f", number, found),))

async def main():
    file = StateFile(sys.argv[1], "scrape")
    restored = await file.read()
    number = 0 if restored is None else int(restored.saved)
    while True:
        number += 1
        assert await file.save(a_state(number, groups=500))
        print(number, flush=True)

trio.run(main)
"""


def test_whenever_a_process_is_killed_the_file_is_whole_and_not_older_than_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "state"
    rng = random.Random(0)
    done = 0
    for _ in range(max(2, settings().max_examples // 100)):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_CONSTANTLY, path], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout is not None
        with process, process.stdout:
            for _ in range(rng.randrange(1, 30)):
                process.stdout.readline()
            time.sleep(rng.random() / 100)  # anywhere in the middle of a write
            process.send_signal(signal.SIGKILL)
            told = process.stdout.read().split("\n")
        process.wait()
        done = max([done, *[int(line) for line in told if line]])
        assert number_in(path) >= done
    assert set(os.listdir(tmp_path)) <= {"state", "state.new"}


async def test_what_could_not_be_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be good, and only the disk was not at that moment."""
    path = tmp_path / "state"
    assert await StateFile(path, MANAGER).save(a_state(1))
    file = StateFile(path, MANAGER)

    def fail(file: StateFile) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "_content", fail)
        assert await file.read() is None
    assert "can't be read, [Errno 5]" in caplog.text
    assert os.listdir(tmp_path) == ["state"]
    for number in (2, 3):
        assert await file.save(a_state(number))
    assert sorted(os.listdir(tmp_path)) == ["state", "state.unusable-1"]
    assert (number_in(path), number_in(tmp_path / "state.unusable-1")) == (3, 1)


async def test_a_write_that_waits_for_a_slow_disk_is_not_followed_by_a_long_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, ended = os.fsync, threading.Event()

    def slow_fsync(fd: int) -> None:
        ended.wait(0.2)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    file = StateFile(tmp_path / "state", MANAGER)
    assert await file.save(a_state())
    assert file._cpu < 0.1


@pytest.mark.parametrize("what", ["read", "save"])
async def test_a_disk_that_hangs_is_told_and_waited_for_no_more(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def hang(*_: object) -> None:
        assert gate.wait(PATIENCE)

    monkeypatch.setattr("trio_sd.state_file._DEADLINE", 0.05)
    monkeypatch.setattr(StateFile, "_content" if what == "read" else "_write", hang)
    file = StateFile(tmp_path / "state", MANAGER)
    try:
        assert not (await file.read() if what == "read" else await file.save(a_state()))
        assert "not done within 0.05 s" in caplog.text
        assert file.statistics().failures == (what == "save")
    finally:
        gate.set()


async def test_what_a_killed_process_has_left_beside_it_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "state"
    (tmp_path / "state.new").write_bytes(b"x" * 1_000_000)
    assert await StateFile(path, MANAGER).save(a_state(7))
    assert number_in(path) == 7
    assert os.listdir(tmp_path) == ["state"]


async def test_somebody_else_who_writes_the_same_file_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = StateFile(tmp_path / "state", MANAGER), StateFile(tmp_path / "state", MANAGER)
    for number in range(3):
        assert await one.save(a_state(number))
    assert not caplog.records
    for number in range(3):
        assert await two.save(a_state(number))
        assert await one.save(a_state(number))
    assert [record.getMessage().count("is written by somebody else, too") for record in caplog.records] == [1, 1]


async def test_it_is_its_owners_alone_whoever_has_made_the_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    (tmp_path / "state.new").touch()
    (tmp_path / "state.new").chmod(0o666)
    assert await StateFile(path, MANAGER).save(a_state())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_write_that_fails_is_followed_by_a_rest_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    file = StateFile(tmp_path / "state", MANAGER)
    assert not await file.save(a_state())
    assert file._cpu >= 0.02


async def test_a_directory_is_left_alone_and_not_left_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert await StateFile(tmp_path, MANAGER).read() is None
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "Trio's thread may have come"
    assert "not a regular file" in caplog.text
