"""Target files: what is in them, when they are written, and what is left alone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.discovery.file.parse import FILEPATH_LABEL, parse
from trio_sd.limits import Limits
from trio_sd.manager import Manager, open_manager
from trio_sd.outputs import file_sd
from trio_sd.outputs.file_sd import TargetFiles, encode_groups, file_name
from trio_sd.outputs.health import target_files_line
from trio_sd.targets import ADDRESS_LABEL, TargetGroup
from trio_sd.testing import FakeDiscoverer, group

from .managing import AT_ONCE, PATIENCE, synced
from .processes import run_command, running
from .real_prometheus import NOWHERE, needs_prometheus, running_prometheus

LIST: Final = ".trio-sd-files"

# --- names ---


@pytest.mark.parametrize(
    ("set_name", "expected"),
    [
        ("web", "web.json"),
        ("config-0", "config-0.json"),
        ("a.b_c~d", "a.b_c~d.json"),
        ("a b", "a%20b.json"),
        ("../etc", "%2E.%2Fetc.json"),
        ("/", "%2F.json"),
        (".", "%2E.json"),
        (".hidden", "%2Ehidden.json"),
        ("ü", "%C3%BC.json"),
        ("%", "%25.json"),
        ("*[?]", "%2A%5B%3F%5D.json"),
        ("\0\n", "%00%0A.json"),
        ("", "%.json"),
        ("x" * 250, "x" * 250 + ".json"),
    ],
)
def test_names_of_files(set_name: str, expected: str) -> None:
    assert file_name(set_name) == expected


def test_a_long_name_is_cut_and_stays_different_from_others() -> None:
    names = ["x" * 251, "x" * 252, "ü" * 200, "ü" * 199 + "u", "x" * 10_000]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all(len(file) <= 255 for file in files)
    assert files[0].startswith("x" * 150 + "%~")


@given(st.lists(st.text(st.characters(), max_size=100), max_size=5, unique=True))
def test_every_name_is_a_safe_one_of_its_own(names: list[str]) -> None:
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(files)
    for file in files:
        assert len(os.fsencode(file)) <= 255
        assert file.isascii()
        assert not set(file) & set("/\0*?[]\\ ")
        assert not file.startswith(".")
        assert file.endswith(".json")


# --- content ---


def target(address: str, **labels: str) -> dict[str, str]:
    return {ADDRESS_LABEL: address, **labels}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], []),
        ([group("s", "a:1", "a:2")], [{"labels": {}, "targets": ["a:1", "a:2"]}]),
        (
            [group("s", "a:1", labels={"b": "1", "a": ""}), group("t", "a:1")],
            [{"labels": {"a": "", "b": "1"}, "targets": ["a:1"]}, {"labels": {}, "targets": ["a:1"]}],
        ),
        (
            [TargetGroup("s", [target("a:1"), target("a:2", x="1"), target("a:3"), target("a:4", x="1")], {"x": "0"})],
            [{"labels": {"x": "0"}, "targets": ["a:1", "a:3"]}, {"labels": {"x": "1"}, "targets": ["a:2", "a:4"]}],
        ),
        ([TargetGroup("s", [target("a:1", x="")], {"x": "0"})], [{"labels": {"x": ""}, "targets": ["a:1"]}]),
        (
            [TargetGroup("s", [{}, {"x": "1"}])],
            [{"labels": {}, "targets": [""]}, {"labels": {"x": "1"}, "targets": [""]}],
        ),
        ([TargetGroup("s", [{}, target("a:1")], {ADDRESS_LABEL: "g:1"})], [{"labels": {}, "targets": ["g:1", "a:1"]}]),
        (
            [TargetGroup("s", [target("a:1", __scheme__="https")], {"__meta_x": "y"})],
            [{"labels": {"__meta_x": "y", "__scheme__": "https"}, "targets": ["a:1"]}],
        ),
    ],
)
def test_content(groups: Sequence[TargetGroup], expected: object) -> None:
    encoded = encode_groups(groups)
    assert json.loads(encoded.content) == expected
    assert encoded.left_out == ()


def test_the_bytes_are_a_group_a_line() -> None:
    found = encode_groups([TargetGroup("s", [target("ä:1", y="\n", x='"')]), group("t", "b:1")])
    assert found.content.decode() == (
        '[\n{"labels": {"x": "\\"", "y": "\\n"}, "targets": ["ä:1"]},\n{"labels": {}, "targets": ["b:1"]}\n]\n'
    )
    assert encode_groups([]).content == b"[]\n"


def test_labels_that_no_file_may_have_are_left_out_and_told() -> None:
    encoded = encode_groups([TargetGroup("s", [{**target("a:1"), "a.b": "1", "ü": "2"}], {"good": "3", "": "4"})])
    assert json.loads(encoded.content) == [{"labels": {"good": "3"}, "targets": ["a:1"]}]
    assert encoded.left_out == ("", "a.b", "ü")


label_names = st.from_regex("[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True).filter(lambda n: n != FILEPATH_LABEL)
label_values = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
label_sets = st.dictionaries(label_names, label_values, max_size=3)
targets = st.builds(lambda address, labels: {**labels, ADDRESS_LABEL: address}, label_values, label_sets)
target_groups = st.builds(TargetGroup, st.text(max_size=3), st.lists(targets, max_size=4), label_sets)


def whole_targets(groups: Sequence[TargetGroup]) -> list[list[tuple[str, str]]]:
    """Return all that is said of each target, in any order."""
    found = [{**one.labels, **each} for one in groups for each in one.targets]
    return sorted([sorted(labels.items()) for labels in found])


@given(st.lists(target_groups, max_size=4))
def test_what_trio_sd_reads_back_is_equal(groups: list[TargetGroup]) -> None:
    content = encode_groups(groups).content
    assert content == encode_groups(groups).content
    read = [
        TargetGroup(one.source, one.targets, {k: v for k, v in one.labels.items() if k != FILEPATH_LABEL})
        for one in parse(content, "x.json", Limits())
    ]
    assert whole_targets(read) == whole_targets(groups)
    assert encode_groups(read).content == content


# --- the writer ---


@asynccontextmanager
async def writing(manager: Manager, directory: Path, *, relabel: bool = False) -> AsyncIterator[TargetFiles]:
    """Write target files for the time of the block."""
    files = TargetFiles(directory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(files.run, manager, relabel=relabel, throttle=AT_ONCE))
        yield files
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 (what happens in a file wakes nobody)
            await trio.sleep(0.005)


async def at_rest(files: TargetFiles) -> None:
    """Wait until no step is under way; none begins before the test waits for something again."""
    await until(lambda: files._thread.borrowed_tokens == 0)


def says(path: Path) -> list[str] | None:
    """Return the addresses in a file, or ``None`` if there is none. It is whole whenever it is looked at."""
    try:
        return [address for entry in json.loads(path.read_text()) for address in entry["targets"]]
    except FileNotFoundError:
        return None


def version(path: Path) -> tuple[int, int]:
    """Return what differs once a file was written again, though it may say the same."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def listed(directory: Path) -> list[str]:
    found: list[str] = json.loads((directory / LIST).read_text())["sets"]
    return found


async def test_each_set_is_a_file_that_follows_it(tmp_path: Path) -> None:
    web, db = FakeDiscoverer("web"), FakeDiscoverer("db")
    async with (
        open_manager({"web": [web.config], "db": [db.config], "none": []}) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: says(tmp_path / "none.json") == [])
        assert sorted(os.listdir(tmp_path)) == [LIST, "none.json"], "nothing is known of the others"
        await web.send(group("s", "w:1"))
        await until(lambda: says(tmp_path / "web.json") == ["w:1"])
        before = (tmp_path / "web.json").stat()
        await db.send()
        await until(lambda: says(tmp_path / "db.json") == [])
        await db.send(group("s", "d:1"))
        await until(lambda: says(tmp_path / "db.json") == ["d:1"])
        assert (tmp_path / "web.json").stat() == before
        await web.send(group("t", "w:2"))
        await until(lambda: says(tmp_path / "web.json") == ["w:1", "w:2"])
        await until(lambda: files.statistics().writes == 5)
        statistics = files.statistics()
        assert (statistics.files, statistics.removals, statistics.failures) == (3, 0, 0)
        assert statistics.last_written is not None
        assert (statistics.directory, statistics.errors) == (str(tmp_path), ())
    assert sorted(os.listdir(tmp_path)) == [LIST, "db.json", "none.json", "web.json"], "all stays in the end"
    assert says(tmp_path / "web.json") == ["w:1", "w:2"]
    assert listed(tmp_path) == ["db", "none", "web"]


async def test_others_may_read_the_files_if_the_umask_allows(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
            await until(lambda: says(tmp_path / "web.json") == ["1"])
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "web.json").stat().st_mode) == 0o640


async def test_nothing_is_written_again_after_a_restart(tmp_path: Path) -> None:
    configs = {name: [synced(name).config] for name in ("web", "db")}
    async with open_manager(configs) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == says(tmp_path / "db.json") == ["1"])
    before = (tmp_path / "web.json").stat(), (tmp_path / "db.json").stat()
    fakes = {name: FakeDiscoverer(name) for name in ("web", "db", "last")}
    async with (
        open_manager({name: [fake.config] for name, fake in fakes.items()}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        for name, fake in fakes.items():
            await fake.send(group(name, "1"))
        await until(lambda: says(tmp_path / "last.json") == ["1"])
        await until(lambda: files.statistics().writes == 1)
    assert before == ((tmp_path / "web.json").stat(), (tmp_path / "db.json").stat())


async def test_what_was_in_a_file_stays_until_it_is_found_out(tmp_path: Path) -> None:
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    late, other = FakeDiscoverer("a"), synced("b")
    async with open_manager({"web": [late.config], "db": [other.config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "db.json") == ["1"])
        assert says(tmp_path / "web.json") == ["1"]
        await late.send()
        await until(lambda: says(tmp_path / "web.json") == [])


@pytest.mark.parametrize("relabel", [False, True])
async def test_a_set_waits_for_all_of_its_providers_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relabel: bool
) -> None:
    monkeypatch.setattr(file_sd, "_PATIENCE", 0.3)
    early, late, never = FakeDiscoverer("a"), FakeDiscoverer("b"), FakeDiscoverer("c")
    configs = {"web": [early.config, late.config], "never": [never.config], "half": [early.config, never.config]}
    async with open_manager(configs, throttle=AT_ONCE) as manager, writing(manager, tmp_path, relabel=relabel):
        await early.send(group("s", "a:1"))
        await trio.sleep(0.05)
        assert says(tmp_path / "web.json") is None
        await late.send()
        await until(lambda: says(tmp_path / "web.json") == ["a:1"])
        await until(lambda: says(tmp_path / "half.json") == ["a:1"])
        assert says(tmp_path / "never.json") is None
        await never.send()
        await until(lambda: says(tmp_path / "never.json") == [])


async def test_what_is_restored_is_known(tmp_path: Path) -> None:
    state, directory = tmp_path / "state", tmp_path / "files"
    async with open_manager({"web": [synced("a").config]}, state_path=state) as manager:
        await manager.wait_synced()
    async with (
        open_manager({"web": [FakeDiscoverer("a").config]}, state_path=state) as manager,
        writing(manager, directory),
    ):
        await until(lambda: says(directory / "web.json") == ["1"])


async def test_nothing_is_done_before_there_is_a_configuration(tmp_path: Path) -> None:
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    async with open_manager() as manager, writing(manager, tmp_path, relabel=True):
        await trio.sleep(0.05)
        assert says(tmp_path / "web.json") == ["1"]
        await manager.apply_config({"web": [synced("a", "p", "q").config]})
        await until(lambda: says(tmp_path / "web.json") == ["1"])


async def test_the_file_of_a_set_that_goes_away_is_emptied_and_then_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_REMOVAL", 0.3)
    configs = {"web": [synced("a").config], "db": [synced("b").config]}
    async with open_manager(configs, throttle=AT_ONCE) as manager, writing(manager, tmp_path) as files:
        await until(lambda: says(tmp_path / "web.json") == says(tmp_path / "db.json") == ["1"])
        await manager.apply_config({"db": [synced("b").config]})
        await until(lambda: says(tmp_path / "web.json") == [])
        await until(lambda: says(tmp_path / "web.json") is None)
        await until(lambda: files.statistics().removals == 1)
        assert (listed(tmp_path), says(tmp_path / "db.json")) == (["db"], ["1"])
        await manager.apply_config({**configs, "web": [synced("c").config]})
        await until(lambda: says(tmp_path / "web.json") == ["1"])


async def test_a_set_that_comes_back_in_time_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sd, "_REMOVAL", 0.2)
    async with (
        open_manager({"web": [synced("a").config]}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
        await manager.apply_config({})
        await until(lambda: says(tmp_path / "web.json") == [])
        await manager.apply_config({"web": [synced("a").config]})
        await until(lambda: says(tmp_path / "web.json") == ["1"])
        await trio.sleep(0.3)
        assert says(tmp_path / "web.json") == ["1"]
        assert files.statistics().removals == 0


async def test_files_of_sets_that_went_away_meanwhile_are_found_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_REMOVAL", 0.1)
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    async with open_manager({}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") is None)
    assert os.listdir(tmp_path) == [LIST]


async def test_an_emptied_file_that_somebody_has_written_into_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_REMOVAL", 0.2)
    async with (
        open_manager({"web": [synced("a").config]}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
        await manager.apply_config({})
        await until(lambda: says(tmp_path / "web.json") == [])
        (tmp_path / "web.json").write_text("mine")
        await until(lambda: files.statistics().removals == 1)
    assert (tmp_path / "web.json").read_text() == "mine"
    assert listed(tmp_path) == []


async def test_final_labels_are_written_with_relabel(tmp_path: Path) -> None:
    async with (
        open_manager({"web": [synced("a", "p").config]}) as manager,
        writing(manager, tmp_path, relabel=True),
    ):
        await until(lambda: says(tmp_path / "web.json") == ["1"])


async def test_labels_that_are_left_out_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeDiscoverer("a")
    async with (
        open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        for number in range(3):
            await fake.send(TargetGroup("s", [target(f"a:{number}")], {"a.b": "1"}))
            await until(lambda n=number: says(tmp_path / "web.json") == [f"a:{n}"])  # type: ignore[misc]
        await until(lambda: files.statistics().left_out == {"web": ("a.b",)})
        assert "is without labels a.b" in target_files_line(files.statistics(), 0.0)
        await fake.send(group("s", "a:9"))
        await until(lambda: says(tmp_path / "web.json") == ["a:9"])
        await until(lambda: files.statistics().left_out == {})
    assert caplog.text.count("without labels that it can't have: a.b") == 1


async def test_it_ends_with_the_manager(tmp_path: Path) -> None:
    files = TargetFiles(tmp_path)
    async with trio.open_nursery() as nursery, open_manager({"web": [synced("a").config]}) as manager:
        nursery.start_soon(files.run, manager)
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    with pytest.raises(trio.ClosedResourceError):
        await files.run(manager)
    with trio.fail_after(PATIENCE), pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery, open_manager() as manager:
            nursery.start_soon(files.run, manager)
            await trio.sleep(0.01)


async def test_it_sleeps_when_there_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sd, "_PATIENCE", 0.05)
    async with (
        open_manager({"web": [synced("a").config], "none": [FakeDiscoverer("b").config]}) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
        await until(lambda: files._next_turn() == files._check)
        assert 50 < files._next_turn() - trio.current_time() <= 60, "all that ticks looks for what others did"


async def test_it_looks_for_what_others_did_again_and_again_and_sleeps_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_CHECK", 0.1)
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path) as files:
        await until(lambda: files.statistics().writes == 1)
        for _ in range(2):
            due = files._next_turn()
            await until(lambda due=due: files._next_turn() > due)  # type: ignore[misc]
            assert files._next_turn() >= due + 0.1


# --- what others have made ---


async def test_a_file_that_somebody_else_has_made_is_left_alone_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    caplog.set_level("INFO")
    (tmp_path / "web.json").write_text("[]")
    async with (
        open_manager({"web": [synced("a").config], "db": [synced("b").config]}) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: says(tmp_path / "db.json") == ["1"])
        await until(lambda: files.statistics().failures > 2)
        assert (tmp_path / "web.json").read_text() == "[]"
        assert files.statistics().errors == ("somebody else has made it",)
        assert "failing: somebody else has made it" in target_files_line(files.statistics(), 0.0)
        assert listed(tmp_path) == ["db"]
        assert caplog.text.count("somebody else has made it: web.json") == 1
        os.remove(tmp_path / "web.json")
        await until(lambda: says(tmp_path / "web.json") == ["1"])
        await until(lambda: files.statistics().errors == ())
    assert "are written again" in caplog.text


@pytest.mark.parametrize("what", ["directory", "link", "dangling link"])
async def test_what_is_no_regular_file_is_not_written_over(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "files"
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, directory):
        await until(lambda: says(directory / "web.json") == ["1"])
    os.remove(directory / "web.json")
    (tmp_path / "other").write_text("mine")
    if what == "directory":
        (directory / "web.json").mkdir()
    else:
        (directory / "web.json").symlink_to(tmp_path / ("other" if what == "link" else "none"))
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, directory) as files:
        await until(lambda: files.statistics().errors == ("it is not a regular file",))
    assert (tmp_path / "other").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["files", "other"]


@pytest.mark.parametrize("how", ["removed", "truncated", "edited", "replaced", "list removed", "list damaged", "all"])
async def test_what_others_change_is_written_again_though_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    monkeypatch.setattr(file_sd, "_CHECK", 0.05)
    directory = tmp_path / "files"
    web, db, list_file = directory / "web.json", directory / "db.json", directory / LIST
    async with (
        open_manager({"web": [synced("a").config], "db": [synced("b").config]}) as manager,
        writing(manager, directory) as files,
    ):
        await until(lambda: files.statistics().writes == 2)
        before, text = version(db), web.read_bytes()
        await at_rest(files)
        if how == "removed":
            web.unlink()
        elif how == "truncated":
            os.truncate(web, 0)
        elif how == "edited":
            web.write_bytes(text.replace(b'"1"', b'"2"'))
        elif how == "replaced":
            (directory / "x").write_bytes(text.replace(b'"1"', b'"2"'))
            os.replace(directory / "x", web)
        elif how == "list removed":
            list_file.unlink()
        elif how == "list damaged":
            list_file.write_text("[")
        else:
            shutil.rmtree(directory)
        await until(lambda: "written again" in caplog.text)
        await until(lambda: says(web) == says(db) == ["1"])
        assert listed(directory) == ["db", "web"]
        assert (version(db) == before) == (how != "all"), "only what differs is written"
        await trio.sleep(0.15)
        assert files.statistics().writes == {"list": 2, "all": 4}.get(how.split()[0], 3)
    what = str(directory) if how == "all" else LIST if "list" in how else "web.json"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1, told
    assert what in told[0]


async def test_a_file_that_was_only_touched_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_sd, "_CHECK", 0.05)
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path) as files:
        await until(lambda: files.statistics().writes == 1)
        await at_rest(files)
        os.utime(tmp_path / "web.json", (1, 1))
        os.utime(tmp_path / LIST, None)
        await until(lambda: LIST in caplog.text)  # so there was a look at both
        assert (tmp_path / "web.json").stat().st_mtime == 1
        assert files.statistics().writes == 1


@pytest.mark.parametrize("what", ["directory", "pipe", "link", "dangling link"])
async def test_what_comes_in_the_place_of_a_file_is_told_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(file_sd, "_CHECK", 0.05)
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    directory, fake = tmp_path / "files", FakeDiscoverer("b", first=[])
    web, other = directory / "web.json", tmp_path / "other"
    other.write_text("mine")
    async with (
        open_manager({"web": [synced("a").config], "db": [fake.config]}, throttle=AT_ONCE) as manager,
        writing(manager, directory) as files,
    ):
        await until(lambda: files.statistics().writes == 2)
        await at_rest(files)
        web.unlink()
        if what == "directory":
            web.mkdir()
        elif what == "pipe":
            os.mkfifo(web)
        else:
            web.symlink_to(other if what == "link" else tmp_path / "none")
        await until(lambda: files.statistics().errors == ("it is not a regular file",))
        await fake.send(group("s", "d:1"))
        await until(lambda: says(directory / "db.json") == ["d:1"])
        web.rmdir() if what == "directory" else web.unlink()
        await until(lambda: says(web) == ["1"])
        await until(lambda: files.statistics().errors == ())
    assert caplog.text.count("it is not a regular file: web.json") == 1
    assert other.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["files", "other"]


async def test_a_pipe_that_comes_in_the_place_of_a_file_while_it_is_looked_at_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    swapped: list[str] = []
    open_it = os.open

    def swap_and_open(path: str, *arguments: Any, **options: Any) -> int:  # as os.open
        if path == "web.json" and not swapped:
            swapped.append(path)
            (tmp_path / "web.json").unlink()
            os.mkfifo(tmp_path / "web.json")
        return open_it(path, *arguments, **options)

    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path) as files:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", swap_and_open)
            await until(lambda: files.statistics().writes == 1)
        assert says(tmp_path / "web.json") == ["1"]


async def test_what_comes_in_the_place_of_an_emptied_file_holds_up_no_other_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_REMOVAL", 0.2)
    async with (
        open_manager({"web": [synced("a").config], "db": [synced("b").config]}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: files.statistics().writes == 2)
        await manager.apply_config({})
        await until(lambda: files.statistics().writes == 4)
        (tmp_path / "web.json").unlink()
        (tmp_path / "web.json").mkdir()
        await until(lambda: files.statistics().removals == 2)
        assert files.statistics().errors == ()
    assert sorted(os.listdir(tmp_path)) == [LIST, "web.json"]
    assert listed(tmp_path) == []


async def test_where_no_lock_keeps_two_apart_none_takes_the_content_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, go_on = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    turns = iter(range(2))
    fsync = os.fsync

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # what NFS says of directories

    def hang_at_first(fd: int) -> None:
        if (turn := next(turns, None)) is not None:
            arrived[turn].set()
            go_on[turn].wait(PATIENCE)
        fsync(fd)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "fsync", hang_at_first)
    async with (
        open_manager({"web": [synced("a").config]}) as one,
        open_manager({"db": [synced("b").config]}) as two,
        writing(one, tmp_path) as first,
    ):
        await until(arrived[0].is_set)  # it has written its list, under another name
        async with writing(two, tmp_path) as second:
            await until(arrived[1].is_set)
            go_on[0].set()
            await until(lambda: first.statistics().writes == 1)
            assert listed(tmp_path) == ["web"], "its own"
            go_on[1].set()
            await until(lambda: second.statistics().writes == 1)
            assert (says(tmp_path / "web.json"), says(tmp_path / "db.json")) == (["1"], ["1"])
            assert first.statistics().failures == second.statistics().failures == 0


async def test_two_who_were_given_the_same_directory_do_not_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    async with (
        open_manager({"web": [synced("a").config]}) as one,
        open_manager({"db": [synced("b").config]}) as two,
    ):
        async with writing(one, tmp_path):
            await until(lambda: says(tmp_path / "web.json") == ["1"])
            async with trio.open_nursery() as nursery:
                second = TargetFiles(tmp_path)
                nursery.start_soon(second.run, two)
                await until(lambda: second.statistics().failures > 2)
                assert (says(tmp_path / "web.json"), says(tmp_path / "db.json")) == (["1"], None)
                assert caplog.text.count("somebody else writes target files there") == 1
                nursery.cancel_scope.cancel()
        async with writing(two, tmp_path):
            await until(lambda: says(tmp_path / "db.json") == ["1"])


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"version": 2, "sets": []}', '{"version": 1, "sets": [1]}'])
async def test_a_list_that_can_not_be_used_is_told_and_nothing_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / LIST).write_text(content)
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path) as files:
        await until(lambda: files.statistics().failures > 0)
    assert "can't be used: remove it" in caplog.text
    assert os.listdir(tmp_path) == [LIST]


# --- directories ---


async def test_the_directory_is_made_but_not_the_one_that_it_is_in(tmp_path: Path) -> None:
    async with open_manager({"web": [synced("a").config]}) as manager:
        async with writing(manager, tmp_path / "files"):
            await until(lambda: says(tmp_path / "files" / "web.json") == ["1"])
        async with writing(manager, tmp_path / "none" / "files") as files:
            await until(lambda: files.statistics().errors == ("No such file or directory",))
    async with open_manager({}) as manager, writing(manager, tmp_path / "empty") as files:
        await trio.sleep(0.05)
        assert files.statistics().errors == ()
    assert os.listdir(tmp_path) == ["files"], "where there is nothing to write none is made"


async def test_a_file_in_the_place_of_the_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("mine")
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path / "files") as files:
        await until(lambda: files.statistics().errors == ("Not a directory",))
    assert (tmp_path / "files").read_text() == "mine"


async def test_a_symbolic_link_is_followed_and_noticed_when_it_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    link, fake = tmp_path / "link", FakeDiscoverer("a")
    link.symlink_to("one")
    async with (
        open_manager({"web": [fake.config], "db": [synced("b").config]}, throttle=AT_ONCE) as manager,
        writing(manager, link),
    ):
        await fake.send(group("s", "a:1"))
        await until(lambda: says(tmp_path / "one" / "web.json") == ["a:1"])
        (tmp_path / "new").symlink_to("two")
        os.replace(tmp_path / "new", link)
        await fake.send(group("s", "a:2"))
        await until(lambda: says(tmp_path / "two" / "web.json") == ["a:2"])
        await until(lambda: says(tmp_path / "two" / "db.json") == ["1"])
    assert says(tmp_path / "one" / "web.json") == ["a:1"]


async def test_a_directory_that_was_removed_is_written_anew(tmp_path: Path) -> None:
    directory, fake = tmp_path / "files", FakeDiscoverer("a")
    async with (
        open_manager({"web": [fake.config], "db": [synced("b").config]}, throttle=AT_ONCE) as manager,
        writing(manager, directory),
    ):
        await fake.send(group("s", "a:1"))
        await until(lambda: says(directory / "web.json") == ["a:1"])
        os.rename(directory, tmp_path / "old")
        await fake.send(group("s", "a:2"))
        await until(lambda: says(directory / "web.json") == ["a:2"] and says(directory / "db.json") == ["1"])


async def test_a_directory_that_was_removed_on_another_machine_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, fake = tmp_path / "files", FakeDiscoverer("a")
    fstat = os.fstat

    def stale(fd: int) -> os.stat_result:
        status = fstat(fd)
        if stat.S_ISDIR(status.st_mode) and not status.st_nlink:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # what NFS says of it
        return status

    monkeypatch.setattr(os, "fstat", stale)
    async with (
        open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager,
        writing(manager, directory),
    ):
        await fake.send(group("s", "a:1"))
        await until(lambda: says(directory / "web.json") == ["a:1"])
        shutil.rmtree(directory)
        await fake.send(group("s", "a:2"))
        await until(lambda: says(directory / "web.json") == ["a:2"])


@pytest.mark.parametrize("how", ["made again", "link swapped"])
async def test_another_directory_is_noticed_though_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    monkeypatch.setattr(file_sd, "_CHECK", 0.05)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    directory = tmp_path / "link"
    directory.symlink_to("one")
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, directory) as files:
        await until(lambda: files.statistics().writes == 1)
        await at_rest(files)
        if how == "made again":
            shutil.rmtree(tmp_path / "one")
            (tmp_path / "one").mkdir()
        else:
            (tmp_path / "new").symlink_to("two")
            os.replace(tmp_path / "new", directory)
        await until(lambda: files.statistics().writes == 2)
        assert says(directory / "web.json") == ["1"]
    assert caplog.text.count(f"directory {directory} was changed by somebody else; written again") == 1


# --- many, hostile, renamed ---


async def test_hostile_names_stay_in_the_directory_and_keep_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_REMOVAL", 0.05)
    directory = tmp_path / "files"
    names = ["../../etc/x", "", ".", "..", "/", "x" * 10_000, "a\0b", "a\nb", "\ud800", "\udfff", LIST, "*", "%"]
    async with open_manager({name: [synced(name).config] for name in names}) as manager:
        async with writing(manager, directory):
            await until(lambda: all(says(directory / file_name(name)) == ["1"] for name in names))
        before = {file: version(directory / file) for file in os.listdir(directory)}
        async with writing(manager, directory) as files:
            await until(lambda: files.statistics().files == len(names) and not files._due)
        assert before == {file: version(directory / file) for file in os.listdir(directory)}
    assert os.listdir(tmp_path) == ["files"]
    assert sorted(before) == sorted([LIST, *map(file_name, names)])
    async with open_manager({}) as manager, writing(manager, directory) as files:
        await until(lambda: files.statistics().removals == len(names))
    assert os.listdir(directory) == [LIST]


@pytest.mark.parametrize("full", [False, True])
async def test_a_renamed_set_is_never_without_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    replaced: list[str] = []
    no_room = False
    replace = os.replace

    def note(source: str, target: str, **directories: int) -> None:
        if no_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target, **directories)
        replaced.append(target)

    monkeypatch.setattr(os, "replace", note)
    fake = FakeDiscoverer("a", first=[group("s", "1")])
    async with (
        open_manager({"old": [fake.config]}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        await until(lambda: says(tmp_path / "old.json") == ["1"])
        replaced.clear()
        if full:  # so the old name waits in front of the new one
            no_room = True
            await fake.send(group("s", "2"))
            await until(lambda: files.statistics().failures > 0)
            no_room = False
        await manager.apply_config({"new": [fake.config]})
        await until(lambda: says(tmp_path / "old.json") == [])
    assert replaced[:3] == [LIST, "new.json", "old.json"]


async def test_a_thousand_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sd, "_CHECK", 0.05)
    names = [f"s{n}" for n in range(1000)]
    async with open_manager({name: [synced("a").config] for name in names}) as manager:
        await manager.wait_synced()
        start = time.perf_counter()
        async with writing(manager, tmp_path) as files:
            await until(lambda: files.statistics().writes == 1000)
            print(f"1,000 files: {time.perf_counter() - start:.2f} s")
            os.remove(tmp_path / "s999.json")
            await until(lambda: files.statistics().writes == 1001)
    assert sorted(os.listdir(tmp_path)) == sorted([LIST, *map(file_name, names)])
    assert all(says(tmp_path / file_name(name)) == ["1"] for name in names)


# --- faults ---


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a file system of 64 KiB at a path, for the time of the block."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a full disk was NOT tested: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Have nobody change a file or directory, not even root, for the time of the block."""
    done = subprocess.run(["chattr", "+i", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"what may not be changed was NOT tested: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="a full disk was NOT tested: not root")
async def test_on_a_full_disk_the_old_file_stays_whole_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    disk, web, small = tmp_path / "disk", FakeDiscoverer("web"), FakeDiscoverer("small")
    many = [group(f"g{n}", f"host-{n}:9100") for n in range(700)]  # 32 KB and more
    with small_disk(disk):
        async with (
            open_manager({"web": [web.config], "small": [small.config]}, throttle=AT_ONCE) as manager,
            writing(manager, disk) as files,
        ):
            await web.send(group("s", "a:1"))
            await small.send(group("s", "b:1"))
            await until(lambda: files.statistics().writes == 2)
            (disk / "ballast").write_bytes(b"x" * 40_000)
            await web.send(*many)
            await until(lambda: files.statistics().failures > 2)
            assert files.statistics().errors == ("No space left on device",)
            assert says(disk / "web.json") == ["a:1"]
            await small.send(group("s", "b:2"))
            await until(lambda: says(disk / "small.json") == ["b:2"])
            assert sorted(os.listdir(disk)) == [LIST, "ballast", "small.json", "web.json"], "nothing takes room in vain"
            os.remove(disk / "ballast")
            await until(lambda: len(says(disk / "web.json") or ()) == 701)
            await until(lambda: files.statistics().errors == ())


@pytest.mark.skipif(
    shutil.which("chattr") is None or os.geteuid() != 0, reason="immutable files were NOT tested: not root"
)
@pytest.mark.parametrize("what", ["file", "directory"])
async def test_what_may_not_be_changed_is_told_and_written_when_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    web, db = FakeDiscoverer("web"), FakeDiscoverer("db")
    async with (
        open_manager({"web": [web.config], "db": [db.config]}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        await web.send(group("s", "a:1"))
        await db.send(group("s", "b:1"))
        await until(lambda: files.statistics().writes == 2)
        with immutable(tmp_path / "web.json" if what == "file" else tmp_path):
            await web.send(group("s", "a:2"))
            await db.send(group("s", "b:2"))
            await until(lambda: files.statistics().failures > 4)
            assert files.statistics().errors == ("Operation not permitted",)
            assert says(tmp_path / "web.json") == ["a:1"]
            assert says(tmp_path / "db.json") == (["b:2"] if what == "file" else ["b:1"])
        await until(lambda: (says(tmp_path / "web.json"), says(tmp_path / "db.json")) == (["a:2"], ["b:2"]))
        await until(lambda: files.statistics().errors == ())
    assert sorted(os.listdir(tmp_path)) == [LIST, "db.json", "web.json"]


async def test_sets_that_went_away_are_found_also_after_a_disk_hung_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    lets_go = threading.Event()
    flock = fcntl.flock

    def hang(fd: int, operation: int) -> None:
        lets_go.wait(PATIENCE)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", hang)
    async with open_manager({"db": [synced("b").config]}) as manager, writing(manager, tmp_path) as files:
        with monkeypatch.context() as patch:
            patch.setattr(file_sd, "_DEADLINE", 0.05)
            await until(lambda: files.statistics().failures >= 2)
        lets_go.set()
        await until(lambda: says(tmp_path / "db.json") == ["1"])
        await until(lambda: says(tmp_path / "web.json") == [])


@pytest.mark.parametrize("at", ["fsync", "replace", "open"])
async def test_whatever_fails_the_old_file_stays_and_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    fakes = [FakeDiscoverer(name) for name in "abcde"]

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with (
        open_manager({f.config.name: [f.config] for f in fakes}, throttle=AT_ONCE) as manager,
        writing(manager, tmp_path) as files,
    ):
        for fake in fakes:
            await fake.send(group("s", "a:1"))
        await until(lambda: files.statistics().writes == 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, at, fail)
            for fake in fakes:
                await fake.send(group("s", "a:2"))
            await until(lambda: files.statistics().failures > 20)
        await until(lambda: all(says(tmp_path / f"{name}.json") == ["a:2"] for name in "abcde"))
        await until(lambda: files.statistics().errors == ())
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [text.count("No space left on device") for text in told] == [1]
    assert sorted(os.listdir(tmp_path)) == [LIST, *[f"{name}.json" for name in "abcde"]]


async def test_a_disk_that_hangs_holds_up_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sd, "_RETRY", 0.05)
    monkeypatch.setattr(file_sd, "_LAST_STEP", 0.05)
    reading, writing_end = os.pipe()
    fsync = os.fsync

    def hang(fd: int) -> None:
        os.read(reading, 1)
        fsync(fd)

    fakes = [synced(f"f{n}") for n in range(20)]
    async with (
        open_manager({f.config.name: [f.config] for f in fakes}) as manager,
        writing(manager, tmp_path) as files,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", hang)
            patch.setattr(file_sd, "_DEADLINE", 0.05)
            await until(lambda: files.statistics().failures >= 3)
            assert files.statistics().errors == ("not done within 0.05 s",)
            os.close(writing_end)  # it lets go
        await until(lambda: all(says(tmp_path / f"f{n}.json") == ["1"] for n in range(20)))
        await until(lambda: files.statistics().errors == ())
    os.close(reading)


WRITE_MUCH: Final = """
import logging, resource, signal, sys, trio
from trio_sd.manager import open_manager
from trio_sd.outputs.file_sd import TargetFiles
from trio_sd.testing import FakeDiscoverer, group

async def main():
    fakes = {"much": FakeDiscoverer("a", first=[group(f"{n}", f"h:{n}") for n in range(1000)]),
             "little": FakeDiscoverer("b", first=[group("s", "h:1")])}
    files = TargetFiles(sys.argv[1])
    async with open_manager({n: [f.config] for n, f in fakes.items()}) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(files.run, manager)
        while not files.statistics().failures:
            await trio.sleep(0.01)
        print(files.statistics().errors)
        nursery.cancel_scope.cancel()

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
trio.run(main)
"""


def test_a_file_that_grows_too_large_is_never_half_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WRITE_MUCH, tmp_path], capture_output=True, text=True, timeout=PATIENCE
    )
    assert "('File too large',)" in done.stdout, done.stderr
    assert says(tmp_path / "little.json") == ["h:1"]
    assert sorted(os.listdir(tmp_path)) == [LIST, "little.json"]


async def test_what_a_killed_process_has_left_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".trio-sd-new").write_text("half a fi")
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    assert sorted(os.listdir(tmp_path)) == [LIST, "web.json"]


DIE_WRITING: Final = """
import os, sys, threading, trio
from trio_sd.manager import open_manager
from trio_sd.outputs.file_sd import TargetFiles
from trio_sd.testing import FakeDiscoverer, group

def hang(fd):
    print("writes", flush=True)
    threading.Event().wait()

async def main():
    files, fake = TargetFiles(sys.argv[1]), FakeDiscoverer("a", first=[group("s", "a:2")])
    async with open_manager({"web": [fake.config]}) as manager:
        os.fsync = hang
        await files.run(manager)

trio.run(main)
"""


def kill_while_it_writes(directory: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", DIE_WRITING, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writes\n"
        process.kill()


async def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file_and_is_cleared_up_after(
    tmp_path: Path,
) -> None:
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    kill_while_it_writes(tmp_path)
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 3, "it has left something"
    assert not [file for file in left if file not in (LIST, "web.json") and Path(file).suffix in (".json", ".yml")]
    assert says(tmp_path / "web.json") == ["1"]
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path) as files:
        await until(lambda: files.statistics().files == 1)
        assert sorted(os.listdir(tmp_path)) == [LIST, "web.json"]


async def test_where_no_lock_tells_who_lives_only_what_is_old_is_cleared_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    young, old, other = (f".trio-sd-new-{'0' * 15}1", f".trio-sd-new-{'0' * 15}2", ".trio-sd-news")
    for name in (young, old, other):
        (tmp_path / name).write_text("half a fi")
    os.utime(tmp_path / old, (time.time() - 301, time.time() - 301))
    async with open_manager({"web": [synced("a").config]}) as manager, writing(manager, tmp_path):
        await until(lambda: says(tmp_path / "web.json") == ["1"])
    assert sorted(os.listdir(tmp_path)) == [LIST, young, other, "web.json"]


async def test_cancelled_anywhere_it_lets_go_of_the_directory(tmp_path: Path) -> None:
    opened = len(os.listdir("/proc/self/fd"))
    async with open_manager({f"s{n}": [synced("a").config] for n in range(20)}) as manager:
        for wait in range(20):
            with trio.move_on_after(wait / 2000):
                await TargetFiles(tmp_path).run(manager)
        async with writing(manager, tmp_path):
            await until(lambda: all(says(tmp_path / f"s{n}.json") == ["1"] for n in range(20)))
    assert len(os.listdir("/proc/self/fd")) <= opened + 1, "Trio's thread may have come"


# --- the command ---

JOBS: Final = """\
alerting: {alertmanagers: [{static_configs: [{targets: ['am:9093']}]}]}
scrape_configs:
  - job_name: web
    file_sd_configs: [{files: ["targets/*.json"]}]
    relabel_configs:
      - {source_labels: [__meta_zone], target_label: zone}
      - {source_labels: [__address__], regex: "drop:.*", action: drop}
"""


def write_targets(directory: Path, *addresses: str, **labels: str) -> None:
    directory.mkdir(exist_ok=True)
    new = directory / "new"
    new.write_text(json.dumps([{"targets": addresses, "labels": labels}]))
    os.replace(new, directory / "x.json")


async def test_the_command_writes_both_managers_files(tmp_path: Path) -> None:
    directory, config = tmp_path / "files", tmp_path / "p.yml"
    config.write_text(JOBS)
    directory.mkdir()
    write_targets(tmp_path / "targets", "a:1", "drop:1", __meta_zone="z")
    async with running("run", config, "--file-sd-dir", directory) as process:
        assert (await process.update_with("web"))["updated"]
        await until(lambda: says(directory / "web.json") == ["a:1", "drop:1"])
        await until(lambda: says(directory / "notify" / "config-0.json") == ["am:9093"])
        process.signal(signal.SIGUSR1)
        assert "1 files, 1 writes" in await process.logged(f"target files in {directory}:")
        await process.logged(f"target files in {directory}/notify: 1 files")
        config.write_text("scrape_configs: []")
        process.signal(signal.SIGHUP)
        await until(lambda: says(directory / "web.json") == says(directory / "notify" / "config-0.json") == [])
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
    assert says(directory / "web.json") == []


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "p.yml"
    config.write_text(JOBS)
    done = run_command("run", config, "--file-sd-dir", tmp_path / "none")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


@needs_prometheus
async def test_the_real_prometheus_ends_with_the_same_targets(tmp_path: Path) -> None:
    directory, config, server = tmp_path / "files", tmp_path / "p.yml", tmp_path / "server"
    directory.mkdir()
    server.mkdir()
    config.write_text(JOBS)
    server_config = server / "prometheus.yml"
    server_config.write_text(
        f"scrape_configs: [{{job_name: all, proxy_url: '{NOWHERE}', "
        f"file_sd_configs: [{{files: ['{directory}/*.json']}}]}}]"
    )
    write_targets(tmp_path / "targets", "a:1", "drop:1", __meta_zone="z")

    def found() -> set[frozenset[tuple[str, str]]]:
        fates, dropped = prometheus.fates()
        assert dropped == 0
        return fates["all"].labels

    def expected(*instances: str, **labels: str) -> set[frozenset[tuple[str, str]]]:
        return {frozenset({"job": "web", "instance": name, **labels}.items()) for name in instances}

    async def seen(wanted: set[frozenset[tuple[str, str]]], at_least: int = 0) -> None:
        with trio.fail_after(PATIENCE):
            while (now := await trio.to_thread.run_sync(found)) != wanted:
                assert len(now) >= at_least
                await trio.sleep(0.1)

    async with running("run", config, "--output", "none", "--relabel", "--file-sd-dir", directory) as process:
        await until(lambda: says(directory / "web.json") == ["a:1"])
        with running_prometheus(server, server_config) as prometheus:
            await trio.to_thread.run_sync(prometheus.wait, ["all"])
            await seen(expected("a:1", zone="z"))
            write_targets(tmp_path / "targets", "a:1", "a:2", "a:3")
            config.write_text(JOBS.replace("drop:", "a:3"))
            for _ in range(3):  # whatever it sees in the middle of reloads, it is never less than what stays
                process.signal(signal.SIGHUP)
                await process.logged("is in force")
            await seen(expected("a:1", "a:2"), at_least=1)
            config.write_text("scrape_configs: []")
            process.signal(signal.SIGHUP)
            await seen(set())
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
