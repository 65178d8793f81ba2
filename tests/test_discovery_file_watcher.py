from __future__ import annotations

import errno
import os
import re
from collections.abc import Set
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_sd.discovery.file import watcher as watching
from trio_sd.discovery.file.result import WatchedNames
from trio_sd.discovery.file.watcher import Event, FileEvents, Watcher, WatchError, open_watcher


class FakeKernel:
    """Counts watches; a directory has the same descriptor until it is removed."""

    def __init__(self) -> None:
        self.watched: dict[str, int] = {}
        self.removed: list[int] = []
        self._last = 0

    def add_watch(self, path: str, mask: int) -> int:
        if path not in self.watched:
            self._last += 1
            self.watched[path] = self._last
        return self.watched[path]

    def rm_watch(self, wd: int) -> None:
        self.removed.append(wd)
        for path in [path for path, known in self.watched.items() if known == wd]:
            del self.watched[path]

    def fileno(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def named(**paths: str) -> WatchedNames:
    return WatchedNames({name.replace("_", "."): {path} for name, path in paths.items()})


def follow(events: FileEvents, path: str, names: WatchedNames) -> int:
    events.scan_started()
    wd = events.watch(path)
    events.scan_ended({wd: names})
    return wd


def pending(events: FileEvents) -> bool:
    return events._anything or bool(events._ready or events._written)


async def test_an_event_on_a_name_tells_what_to_read_again() -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        wd = follow(events, "/d", named(a_json="/d/a.json"))
        watcher.dispatch(Event(wd, watching.IN_MOVED_TO, "a.json"))
        assert await events.changed() == {"/d/a.json"}


async def test_events_that_concern_nobody_are_dropped() -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        wd = follow(events, "/d", named(a_json="/d/a.json"))
        watcher.dispatch(Event(wd, watching.IN_MOVED_TO, "noise"))
        watcher.dispatch(Event(wd + 1, watching.IN_MOVED_TO, "a.json"))
        watcher.dispatch(Event(wd, watching.IN_ATTRIB, ""))
        assert not pending(events)


async def test_a_glob_tells_the_file_or_the_pattern() -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        files = (re.compile(r".*\.json"), "spelled")
        directories = (re.compile("x.*"), "x*/a.json")
        wd = follow(events, "/d", WatchedNames(files={files}, directories={directories}))
        watcher.dispatch(Event(wd, watching.IN_DELETE, "a.json"))
        watcher.dispatch(Event(wd, watching.IN_CREATE | watching.IN_ISDIR, "x1"))
        watcher.dispatch(Event(wd, watching.IN_DELETE, "noise"))
        assert await events.changed() == {"spelled/a.json", "x*/a.json"}
        assert not pending(events)


@pytest.mark.parametrize(
    "mask", [watching.IN_DELETE_SELF, watching.IN_MOVE_SELF, watching.IN_UNMOUNT, watching.IN_IGNORED]
)
async def test_a_directory_that_goes_means_anything_may_have_changed(mask: int) -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        wd = follow(events, "/d", WatchedNames())
        watcher.dispatch(Event(wd, mask, ""))
        assert await events.changed() is None


async def test_an_overflow_means_anything_may_have_changed_for_everybody() -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as one, watcher.subscribe() as other:
        follow(one, "/d", named(a="/d/a"))
        other.scan_started()
        watcher.dispatch(Event(-1, watching.IN_Q_OVERFLOW, ""))
        other.scan_ended({})
        assert await one.changed() is None
        assert await other.changed() is None
        assert not pending(one)


async def test_of_the_events_during_a_scan_those_that_matter_to_it_are_kept() -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        old = follow(events, "/old", named(a="/old/a"))
        events.scan_started()
        new = events.watch("/new")
        watcher.dispatch(Event(new, watching.IN_CLOSE_WRITE, "a"))
        watcher.dispatch(Event(new, watching.IN_CLOSE_WRITE, "noise"))
        watcher.dispatch(Event(old, watching.IN_CLOSE_WRITE, "a"))
        assert not pending(events)
        events.scan_ended({new: named(a="/new/a")})
        assert await events.changed() == {"/new/a"}


async def test_too_many_events_during_a_scan_mean_anything_may_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_RECORD_LIMIT", 10)
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        events.scan_started()
        wd = events.watch("/d")
        for n in range(12):
            watcher.dispatch(Event(wd, watching.IN_CREATE, f"noise{n}"))
        events.scan_ended({wd: WatchedNames()})
        assert await events.changed() is None


async def test_a_file_being_written_is_waited_for_until_it_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        wd = follow(events, "/d", named(a="/d/a"))
        async with trio.open_nursery() as nursery:
            watcher.dispatch(Event(wd, watching.IN_CREATE, "a"))
            watcher.dispatch(Event(wd, watching.IN_MODIFY, "a"))

            @nursery.start_soon
            async def close() -> None:
                await trio.sleep(0.04)
                watcher.dispatch(Event(wd, watching.IN_CLOSE_WRITE, "a"))

            assert await events.changed() == {"/d/a"}
            assert trio.current_time() == pytest.approx(0.04)
        assert not pending(events)


async def test_a_file_that_stays_open_is_read_after_a_tenth_of_a_second(autojump_clock: trio.testing.MockClock) -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        wd = follow(events, "/d", named(a="/d/a", b="/d/b"))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def keep_busy() -> None:
                for _ in range(5):
                    watcher.dispatch(Event(wd, watching.IN_MODIFY, "a"))
                    watcher.dispatch(Event(wd, watching.IN_CLOSE_WRITE, "b"))
                    await trio.sleep(0.03)

            told: list[Set[str]] = []
            while "/d/a" not in (changed := await events.changed() or set()):
                told.append(changed)
            assert trio.current_time() == pytest.approx(0.12, abs=0.03)
            assert {"/d/b"} in told


async def test_a_change_that_arrives_while_waiting_wakes_and_cancellation_loses_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watcher = Watcher(FakeKernel())
    with watcher.subscribe() as events:
        wd = follow(events, "/d", named(a="/d/a"))
        with trio.move_on_after(1):
            await events.changed()
        watcher.dispatch(Event(wd, watching.IN_MODIFY, "a"))
        with trio.move_on_after(0.05):
            await events.changed()
        assert await events.changed() == {"/d/a"}


async def test_a_shared_watch_is_removed_with_its_last_holder() -> None:
    kernel = FakeKernel()
    watcher = Watcher(kernel)
    with watcher.subscribe() as one:
        with watcher.subscribe() as other:
            wd = follow(one, "/d", named(a="/d/a"))
            assert follow(other, "/d", named(b="/d/b")) == wd
            assert watcher.watches == 1
        assert kernel.removed == []
        watcher.dispatch(Event(wd, watching.IN_MOVED_TO, "a"))
        assert await one.changed() == {"/d/a"}
    assert kernel.removed == [wd]
    assert watcher.watches == 0


async def test_a_watch_that_a_scan_no_longer_needs_is_removed() -> None:
    kernel = FakeKernel()
    watcher = Watcher(kernel)
    with watcher.subscribe() as events:
        old = follow(events, "/old", named(a="/old/a"))
        new = follow(events, "/new", named(a="/new/a"))
        assert kernel.removed == [old]
        assert kernel.watched == {"/new": new}


async def test_watches_of_a_scan_that_was_cut_short_are_removed_now_and_later() -> None:
    kernel = FakeKernel()
    watcher = Watcher(kernel)
    with watcher.subscribe() as events:
        events.scan_started()
        events.watch("/d")
    assert kernel.watched == {}
    events.watch("/late")  # by a thread that was left behind
    assert kernel.watched == {}


async def test_a_watch_that_is_removed_during_a_scan_makes_it_scan_again() -> None:
    kernel = FakeKernel()
    watcher = Watcher(kernel)
    with watcher.subscribe() as scanning:
        with watcher.subscribe() as leaving:
            wd = follow(leaving, "/d", named(a="/d/a"))
            scanning.scan_started()
            assert scanning.watch("/d") == wd
        watcher.dispatch(Event(wd, watching.IN_IGNORED, ""))  # the kernel's answer to the removal
        scanning.scan_ended({wd: named(a="/d/a")})
        assert await scanning.changed() is None


async def test_real_events_arrive(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with open_watcher() as watcher:
            with watcher.subscribe() as events:
                follow(events, str(tmp_path), named(a_json="A"))
                (tmp_path / "noise").write_text("x")
                (tmp_path / "a.json").write_text("x")
                assert await events.changed() == {"A"}


async def test_a_real_watch_fails_with_the_kernels_reason(tmp_path: Path) -> None:
    async with open_watcher() as watcher:
        with watcher.subscribe() as events:
            with pytest.raises(FileNotFoundError):
                events.watch(str(tmp_path / "missing"))
            (tmp_path / "file").write_text("")
            with pytest.raises(NotADirectoryError):
                events.watch(str(tmp_path / "file"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        events.watch(str(tmp_path))


async def test_closing_leaves_no_descriptor() -> None:
    async with open_watcher():
        pass
    before = os.listdir("/proc/self/fd")
    async with open_watcher():
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "max_user_instances"),
        (OSError(errno.ENOSYS, "Function not implemented"), "inotify: Function not implemented"),
        (ImportError("inotify_simple"), "there is no inotify on this system"),
    ],
)
async def test_where_there_is_no_inotify_that_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(watching, "_open", fail)
    with pytest.raises(WatchError, match=message):
        async with open_watcher():
            pass
