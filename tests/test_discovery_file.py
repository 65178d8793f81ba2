from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from trio_sd.discoverer import DiscovererOptions
from trio_sd.discovery.file import FileSDConfig, workers
from trio_sd.discovery.file import watcher as watching
from trio_sd.discovery.file.discoverer import FileDiscoverer
from trio_sd.discovery.file.parse import Parse, parse_again
from trio_sd.discovery.file.result import all_groups
from trio_sd.discovery.file.scan import ScanRequest, scan
from trio_sd.discovery.file.watcher import Event, Watcher, WatchError, open_watcher
from trio_sd.durations import Duration
from trio_sd.limits import Limits
from trio_sd.resources import Resources
from trio_sd.target_lists import Parsed
from trio_sd.targets import TargetGroup

_NAME = "file_sd_cases.json"
_SHARED = Path(__file__).parents[2] / "shared/facts" / _NAME
FACTS = _SHARED if _SHARED.exists() else Path(__file__).parent / "data/file_sd" / _NAME
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in json.loads(FACTS.read_text())}

HOUR = 3600.0
LIMITS = Limits()


class Following:
    """A running discoverer, and what it has told."""

    def __init__(self, discoverer: FileDiscoverer, received: trio.MemoryReceiveChannel[Sequence[TargetGroup]]) -> None:
        self.discoverer = discoverer
        self.received = received
        self.groups: dict[str, TargetGroup] = {}

    @property
    def state(self) -> dict[str, list[str]]:
        """The addresses of each source, named by the file's name and index."""
        return {
            os.path.basename(source): [target["__address__"] for target in group.targets]
            for source, group in self.groups.items()
        }

    async def next(self) -> Sequence[TargetGroup]:
        with trio.fail_after(5):
            sent = await self.received.receive()
        for group in sent:
            if group.targets or group.labels:
                self.groups[group.source] = group
            else:
                self.groups.pop(group.source, None)
        return sent

    async def until(self, state: Mapping[str, list[str]]) -> None:
        with trio.fail_after(5):
            while self.state != state:
                await self.next()

    async def until_errors(self, *texts: str) -> tuple[str, ...]:
        """Wait until the errors hold these texts, in order; a failed read sends nothing that could be waited for."""
        with trio.fail_after(5):
            while True:
                errors = self.discoverer.statistics().errors
                if len(errors) == len(texts) and all(text in error for text, error in zip(texts, errors, strict=True)):
                    return errors
                with trio.move_on_after(0.01):
                    await self.next_quietly()

    async def next_quietly(self) -> None:
        for group in await self.received.receive():
            assert group.targets, "a failed read takes nothing away"

    def quiet(self) -> bool:
        try:
            self.received.receive_nowait()
        except trio.WouldBlock:
            return True
        return False

    @property
    def counters(self) -> Mapping[str, int]:
        return self.discoverer.statistics().counters

    @property
    def notes(self) -> str:
        return "\n".join(self.discoverer.statistics().notes)

    @property
    def errors(self) -> tuple[str, ...]:
        return self.discoverer.statistics().errors


@asynccontextmanager
async def following(
    *patterns: Path | str,
    interval: float = HOUR,
    known: Mapping[str, TargetGroup] | None = None,
    limits: Limits = LIMITS,
    parse: Parse = parse_again,
    opener: Callable[[], AbstractAsyncContextManager[Watcher]] = open_watcher,
    resources: Resources | None = None,
) -> AsyncIterator[Following]:
    updates, received = trio.open_memory_channel[Sequence[TargetGroup]](0)
    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        options = DiscovererOptions(resources or Resources(outer), limits, lambda: known or {})
        discoverer = FileDiscoverer(tuple(map(str, patterns)), interval, options, parse=parse, opener=opener)
        nursery.start_soon(discoverer.run, updates)
        with updates, received:
            yield Following(discoverer, received)
            nursery.cancel_scope.cancel()


def targets(*addresses: str) -> str:
    return json.dumps([{"targets": [address]} for address in addresses])


def rename_over(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content)
    temporary.rename(path)


class NoWatcher(AbstractAsyncContextManager[Watcher]):
    """What opening a watcher comes to where there is no inotify."""

    async def __aenter__(self) -> Watcher:
        raise WatchError("inotify: not yet")

    async def __aexit__(self, *_: object) -> None:
        """Never entered."""


# What the facts say.

RULES_COVERED = frozenset(
    {
        "file-rule-bad-json-then-good",
        "file-rule-file-gone",
        "file-rule-no-files",
        "file-rule-read-error-keeps",
        "file-rule-refresh-order",
        "file-rule-relative",
    }
)
RULES_NOT_COVERED = frozenset(
    {
        "file-rule-mtime-metric",  # a metric of when each file was modified is for later
    }
)


def test_every_rule_of_the_facts_is_covered_or_listed() -> None:
    assert {name for name in CASES if name.startswith("file-rule-")} == RULES_COVERED | RULES_NOT_COVERED


def fixture(name: str) -> str:
    content = CASES[f"file-fixture-{name}"]["content"]
    assert isinstance(content, str)
    return content


def told(sent: Sequence[TargetGroup]) -> list[dict[str, Any]]:
    return [
        {"source": g.source, "targets": [t["__address__"] for t in g.targets], "labels": dict(g.labels)} for g in sent
    ]


def expected(case: str, file: Path) -> Any:
    return json.loads(json.dumps(CASES[case]["expected"]).replace("{file}", str(file)))


@pytest.mark.parametrize("name", ["valid.yml", "valid.json"])
async def test_fact_initial_update(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(fixture(name))
    async with following(tmp_path / f"*{file.suffix}") as found:
        assert told(await found.next()) == expected(f"file-TestInitialUpdate-{name}", file)


@pytest.mark.parametrize("name", ["invalid_nil.yml", "invalid_nil.json"])
async def test_fact_invalid_file_sends_nothing(tmp_path: Path, name: str) -> None:
    content = fixture("invalid_nil.yml") if name.endswith("yml") else '[{"targets": ["localhost:9090"]}, null]'
    (tmp_path / name).write_text(content)
    async with following(tmp_path / f"*.{name.partition('.')[2]}") as found:
        await found.until_errors("nil target group item found")
        assert found.quiet()
        assert found.groups == {}


async def test_fact_noop_update_says_that_nothing_changed(tmp_path: Path) -> None:
    file = tmp_path / "valid.yml"
    file.write_text(fixture("valid.yml"))
    async with following(tmp_path / "*.yml") as found:
        await found.next()
        rename_over(file, fixture("valid3.yml"))
        assert list(await found.next()) == []
        assert told(list(found.groups.values())) == expected("file-TestNoopFileUpdate", file)


async def test_fact_file_update(tmp_path: Path) -> None:
    file = tmp_path / "valid.yml"
    file.write_text(fixture("valid.yml"))
    async with following(tmp_path / "*.yml") as found:
        await found.next()
        rename_over(file, fixture("valid2.yml"))
        assert told(await found.next()) == expected("file-TestFileUpdate", file)


async def test_fact_partial_writes(tmp_path: Path) -> None:
    file = tmp_path / "valid.yml"
    file.write_text(fixture("valid.yml"))
    case = CASES["file-TestUpdateFileWithPartialWrites"]
    async with following(tmp_path / "*.yml") as found:
        before = told(await found.next())
        file.write_text(case["written"][0])
        await found.until_errors(f"{file}:1:")
        assert told(list(found.groups.values())) == before
        with file.open("a") as opened:
            opened.write(case["written"][1])
        assert told(await found.next()) == expected("file-TestUpdateFileWithPartialWrites", file)
        assert found.errors == ()


async def test_fact_remove_file(tmp_path: Path) -> None:
    file = tmp_path / "valid.yml"
    file.write_text(fixture("valid.yml"))
    async with following(tmp_path / "*.yml") as found:
        await found.next()
        file.unlink()
        assert told(await found.next()) == expected("file-TestRemoveFile", file)
        assert "no file matches" in found.notes


async def test_rule_refresh_order_is_patterns_then_names(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", ".c.json", "a.yml"):
        (tmp_path / name).write_text(targets(name))
    async with following(tmp_path / "*.yml", tmp_path / "*.json") as found:
        sent = await found.next()
        assert [t["__address__"] for g in sent for t in g.targets] == ["a.yml", ".c.json", "a.json", "b.json"]
        assert [g.source for g in sent] == [f"{tmp_path}/{n}:0" for n in ("a.yml", ".c.json", "a.json", "b.json")]


async def test_rule_read_error_keeps_and_the_next_good_content_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("old:1", "old:2"))
    async with following(file) as found:
        await found.next()
        rename_over(file, '[{"targets":')
        (error,) = await found.until_errors(f"{file}:1:13: not JSON")
        assert found.counters["read_errors"] >= 1
        assert found.counters["bad_files"] == 1
        assert error
        rename_over(file, targets("new:1"))
        await found.until({"a.json:0": ["new:1"]})
        assert found.errors == ()


async def test_rule_file_gone_empties_every_index_it_had(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a", "b", "c"))
    async with following(tmp_path / "*.json") as found:
        await found.next()
        file.rename(tmp_path / "a.json.bak")
        assert await found.next() == [TargetGroup(f"{file}:{n}", ()) for n in range(3)]


# The ways in which files change.


async def test_rename_over_sends_only_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a", "b", "c"))
    async with following(file) as found:
        await found.next()
        kept = found.groups[f"{file}:0"]
        rename_over(file, targets("a", "B"))
        assert await found.next() == [
            TargetGroup(f"{file}:1", ({"__address__": "B"},), {"__meta_filepath": str(file)}),
            TargetGroup(f"{file}:2", ()),
        ]
        assert found.discoverer._known[str(file)].groups[0] is kept


async def test_written_in_place(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("old"))
    async with following(file) as found:
        await found.next()
        file.write_text(targets("new"))
        await found.until({"a.json:0": ["new"]})


async def test_deleted_and_created_again(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("old"))
    async with following(file) as found:
        await found.next()
        file.unlink()
        await found.until({})
        file.write_text(targets("new"))
        await found.until({"a.json:0": ["new"]})


async def test_an_editor_that_moves_the_old_file_to_a_backup(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("old"))
    async with following(tmp_path / "*.json") as found:
        await found.next()
        file.rename(tmp_path / "a.json~")
        file.write_text(targets("new"))
        await found.until({"a.json:0": ["new"]})


async def test_a_hard_link_appears(tmp_path: Path) -> None:
    (tmp_path / "source").write_text(targets("a"))
    async with following(tmp_path / "*.json") as found:
        assert list(await found.next()) == []
        (tmp_path / "a.json").hardlink_to(tmp_path / "source")
        await found.until({"a.json:0": ["a"]})


async def test_a_file_appears_and_only_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    async with following(tmp_path / "*.json") as found:
        await found.next()
        rename_over(tmp_path / "b.json", targets("b"))
        await found.until({"a.json:0": ["a"], "b.json:0": ["b"]})
        assert found.counters["reads"] == 2
        assert found.counters["files"] == 2


def test_content_that_is_known_is_not_decoded_again(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))
    first = scan(ScanRequest([str(file)], {}, None, None))
    again = scan(ScanRequest([str(file)], first.files, None, None))
    assert (first.reads, first.decoded) == (1, 1)
    assert (again.reads, again.decoded) == (1, 0)
    assert again.files[str(file)].groups is first.files[str(file)].groups


async def test_a_config_map_swap_is_seen_by_event(tmp_path: Path) -> None:
    """``a.json -> ..data/a.json``, ``..data -> ..1``: Kubernetes renames a new ``..data`` over the old."""
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1/a.json").write_text(targets("one"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.json").symlink_to("..data/a.json")
    async with following(tmp_path / "*.json") as found:
        await found.until({"a.json:0": ["one"]})
        for n in range(2, 6):
            new = tmp_path / f"..{n}"
            new.mkdir()
            (new / "a.json").write_text(targets(f"n{n}"))
            (tmp_path / "..data_tmp").symlink_to(new.name)
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            shutil.rmtree(tmp_path / f"..{n - 1}")
            await found.until({"a.json:0": [f"n{n}"]})
        assert found.errors == ()


async def test_a_link_whose_target_changes_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sd").mkdir()
    target = tmp_path / "elsewhere/targets"
    target.write_text(targets("one"))
    (tmp_path / "sd/a.json").symlink_to("../elsewhere/targets")
    async with following(tmp_path / "sd/*.json") as found:
        await found.until({"a.json:0": ["one"]})
        target.write_text(targets("two"))
        await found.until({"a.json:0": ["two"]})
        target.unlink()
        await found.until_errors(f"{tmp_path}/sd/a.json: No such file")
        assert found.state == {"a.json:0": ["two"]}
        target.write_text(targets("three"))
        await found.until({"a.json:0": ["three"]})


async def test_a_half_written_file_keeps_the_groups(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("old"))
    async with following(file) as found:
        await found.next()
        whole = targets("new")
        with file.open("w") as opened:
            opened.write(whole[:10])
            opened.flush()
            await found.until_errors(f"{file}:1:")
            assert found.state == {"a.json:0": ["old"]}
            opened.write(whole[10:])
        await found.until({"a.json:0": ["new"]})
        assert found.errors == ()


async def test_a_file_of_zero_bytes_keeps_the_groups(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("- targets: [old]\n")
    async with following(file) as found:
        await found.next()
        rename_over(file, "")
        await found.until_errors("the file is empty")
        assert found.state == {"a.yml:0": ["old"]}
        rename_over(file, "[]")
        await found.until({})
        assert found.errors == ()


async def test_a_file_that_is_too_large_keeps_the_groups(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("old"))
    async with following(file, limits=Limits(file_bytes=100)) as found:
        await found.next()
        rename_over(file, targets("new") + " " * 100)
        await found.until_errors("limit file_bytes")
        assert found.state == {"a.json:0": ["old"]}


async def test_special_files_are_refused_by_name_and_never_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    (tmp_path / "c.json").symlink_to("/dev/null")
    (tmp_path / "d.json").symlink_to("d.json")
    async with following(tmp_path / "*.json") as found:
        await found.until_errors("a FIFO", "a directory", "a character device", "Too many levels of symbolic links")
        assert found.quiet()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user, to be refused")
async def test_permission_is_refused_and_granted_again() -> None:
    pytest.importorskip("inotify_simple")  # now, because another user may not be allowed to read it
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "a.json"
        file.write_text(targets("a"))
        os.chmod(name, 0o755)
        os.seteuid(65534)
        try:
            async with following(f"{name}/*.json") as found:
                await found.until({"a.json:0": ["a"]})
                os.seteuid(0)
                file.chmod(0)
                os.seteuid(65534)
                await found.until_errors(f"{file}: Permission denied")
                os.seteuid(0)
                os.chmod(name, 0)
                file.chmod(0o644)
                os.seteuid(65534)
                await found.until_errors(f"{name}: Permission denied", f"{file}: Permission denied")
                assert found.state == {"a.json:0": ["a"]}
                os.seteuid(0)
                os.chmod(name, 0o755)
                os.seteuid(65534)
                assert [one.source for one in await found.next()] == [f"{file}:0"], "known again, not just kept"
                assert found.state == {"a.json:0": ["a"]}
                assert not found.errors
        finally:
            os.seteuid(0)


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.json", "w") as file:
        file.write(targets("a"))
    (error,) = scan(ScanRequest([f"{tmp_path}/*.json"], {}, None, None)).all_errors()
    assert "the name is not UTF-8" in error
    error.encode()


# Directories.


async def test_a_missing_directory_appears(tmp_path: Path) -> None:
    file = tmp_path / "x/y/a.json"
    async with following(tmp_path / "x/y/*.json", file) as found:
        assert list(await found.next()) == []
        assert f"{tmp_path}/x/y/*.json: no file matches" in found.notes
        assert f"{file}: no file matches" in found.notes
        file.parent.mkdir(parents=True)
        file.write_text(targets("a"))
        await found.until({"a.json:0": ["a"]})
        assert found.notes == ""


async def test_a_directory_is_deleted_and_made_again(tmp_path: Path) -> None:
    file = tmp_path / "x/y/a.json"
    file.parent.mkdir(parents=True)
    file.write_text(targets("one"))
    async with following(tmp_path / "x/y/*.json") as found:
        await found.next()
        shutil.rmtree(tmp_path / "x")
        await found.until({})
        file.parent.mkdir(parents=True)
        file.write_text(targets("two"))
        await found.until({"a.json:0": ["two"]})


async def test_a_directory_is_renamed_away_and_back(tmp_path: Path) -> None:
    file = tmp_path / "x/y/a.json"
    file.parent.mkdir(parents=True)
    file.write_text(targets("one"))
    async with following(tmp_path / "x/y/*.json") as found:
        await found.next()
        (tmp_path / "x").rename(tmp_path / "z")
        await found.until({})
        (tmp_path / "z/y/a.json").write_text(targets("two"))
        (tmp_path / "z").rename(tmp_path / "x")
        await found.until({"a.json:0": ["two"]})


async def test_a_linked_parent_is_pointed_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name / "sd").mkdir(parents=True)
        (tmp_path / name / "sd/a.json").write_text(targets(name))
    link = tmp_path / "current"
    link.symlink_to("one")
    async with following(link / "sd/*.json") as found:
        await found.until({"a.json:0": ["one"]})
        (tmp_path / "new").symlink_to(tmp_path / "two")
        (tmp_path / "new").rename(link)
        await found.until({"a.json:0": ["two"]})
        link.unlink()
        link.symlink_to("./one/../three")
        await found.until({"a.json:0": ["three"]})


async def test_a_directory_that_can_not_be_listed_keeps_its_files(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    directory.mkdir()
    (directory / "a.json").write_text(targets("a"))
    async with following(directory / "*.json", tmp_path / "x/[a].json") as found:
        await found.next()
        directory.rename(tmp_path / "y")
        await found.until({})
        (tmp_path / "y").rename(directory)
        await found.until({"a.json:0": ["a"]})
        (tmp_path / "loop").symlink_to("loop")
        os.rename(directory, tmp_path / "y2")
        await found.until({})
    before = scan(ScanRequest([f"{tmp_path}/y2/*.json"], {}, None, None)).files
    (tmp_path / "y2").rename(tmp_path / "y3")
    (tmp_path / "y2").symlink_to("y2")
    after = scan(ScanRequest([f"{tmp_path}/y2/*.json"], before, None, None))
    assert after.files == before
    assert after.all_errors() == (f"{tmp_path}/y2: Too many levels of symbolic links",)


async def test_patterns_in_directories_are_followed(tmp_path: Path) -> None:
    async with following(tmp_path / "team-[ab]/sd/a.json") as found:
        assert list(await found.next()) == []
        for team in ("team-b", "team-c", "team-a"):
            (tmp_path / team / "sd").mkdir(parents=True)
            rename_over(tmp_path / team / "sd/a.json", targets(team))
        with trio.fail_after(5):
            while len(found.groups) < 2:
                await found.next()
        assert sorted(found.groups) == [f"{tmp_path}/team-{x}/sd/a.json:0" for x in "ab"]
        shutil.rmtree(tmp_path / "team-b")
        await found.until({"a.json:0": ["team-a"]})


def test_a_scan_says_what_to_read_again_when_a_name_changes(tmp_path: Path) -> None:
    one, many = f"{tmp_path}/x-*/sd/a.json", f"{tmp_path}/x-1/sd/*.json"
    directory = tmp_path / "x-1/sd"
    directory.mkdir(parents=True)
    (directory / "a.json").write_text(targets("a"))
    descriptors: dict[str, int] = {}
    result = scan(ScanRequest([one, many], {}, None, lambda path: descriptors.setdefault(path, len(descriptors))))

    def read_again(directory: Path, name: str) -> set[str]:
        return result.watched[descriptors[str(directory)]].paths_and_patterns(name)

    assert read_again(tmp_path, "x-2") == {one}
    assert read_again(tmp_path / "x-1", "sd") == {one, many}
    assert read_again(directory, "a.json") == {f"{directory}/a.json"}
    assert read_again(directory, "b.json") == {f"{directory}/b.json"}
    assert read_again(directory, "noise") == set()


async def test_noise_beside_the_files_causes_no_scan(tmp_path: Path) -> None:
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd/a.json").write_text(targets("a"))
    async with following(tmp_path / "sd/*.json") as found:
        await found.next()
        scans = found.counters["scans"]
        for n in range(100):
            (tmp_path / f"noise{n}").write_text("x")
            (tmp_path / "sd" / f"noise{n}").write_text("x")
        rename_over(tmp_path / "sd/a.json", targets("b"))
        await found.until({"a.json:0": ["b"]})
        assert found.counters["scans"] == scans + 1


async def test_relative_paths_are_taken_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with following("./x/*.json", "b.json") as found:
        await found.next()
        (tmp_path / "x").mkdir()
        (tmp_path / "x/a.json").write_text(targets("a"))
        (tmp_path / "b.json").write_text(targets("b"))
        await found.until({"a.json:0": ["a"], "b.json:0": ["b"]})
        assert set(found.groups) == {"x/a.json:0", "b.json:0"}


# Patterns.


async def test_a_pattern_that_matches_nothing_is_told_and_an_empty_set_is_sent(tmp_path: Path) -> None:
    async with following(tmp_path / "*.json") as found:
        assert list(await found.next()) == []
        assert found.notes == f"{tmp_path}/*.json: no file matches"
        assert found.errors == ()


async def test_a_malformed_pattern_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    async with following(tmp_path / "[a.json", tmp_path / "a.json") as found:
        await found.until({"a.json:0": ["a"]})
        assert found.errors == (f'{tmp_path}/[a.json: pattern "[a.json" has a malformed character class',)


async def test_a_file_that_two_patterns_match_is_read_and_sent_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    async with following(tmp_path / "*.json", tmp_path / "a.json", tmp_path / "[a].json") as found:
        assert len(await found.next()) == 1
        assert found.counters["reads"] == 1
        rename_over(tmp_path / "a.json", targets("b"))
        assert len(await found.next()) == 1


async def test_two_spellings_of_a_file_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    async with following(tmp_path / "a.json", f"{tmp_path}/./a.json") as found:
        assert [g.source for g in await found.next()] == [f"{tmp_path}/a.json:0", f"{tmp_path}/./a.json:0"]


# The first scan, and the run before it.


def remembered(path: Path, *addresses: str) -> dict[str, TargetGroup]:
    return {f"{path}:{n}": TargetGroup(f"{path}:{n}", ({"__address__": a},)) for n, a in enumerate(addresses)}


async def test_a_bad_file_in_the_first_scan_has_its_last_known_groups(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text("[")
    good.write_text(targets("new"))
    known = {
        **remembered(bad, "b0", "b1"),
        **remembered(good, "old", "older"),
        **remembered(tmp_path / "gone.json", "g"),
        f"{bad}:x": TargetGroup(f"{bad}:x", ({"__address__": "odd"},)),
    }
    async with following(tmp_path / "*.json", known=known) as found:
        await found.next()
        assert found.state == {"bad.json:0": ["b0"], "bad.json:1": ["b1"], "good.json:0": ["new"]}
        assert len(found.errors) == 1
        rename_over(bad, targets("mended"))
        await found.until({"bad.json:0": ["mended"], "good.json:0": ["new"]})


async def test_a_directory_that_can_not_be_listed_in_the_first_scan_has_its_last_known_groups(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    directory.symlink_to("x")
    known = {**remembered(directory / "a.json", "a"), **remembered(tmp_path / "other.json", "o")}
    async with following(directory / "*.json", known=known) as found:
        await found.next()
        assert found.state == {"a.json:0": ["a"]}


async def test_nothing_is_sent_until_one_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[")
    (tmp_path / "b.json").write_text("[")
    async with following(tmp_path / "*.json", tmp_path / "none-*.json") as found:
        await found.until_errors("a.json", "b.json")
        assert found.quiet()
        rename_over(tmp_path / "b.json", targets("b"))
        assert len(await found.next()) == 1
        assert len(found.errors) == 1


# Without events, or with some missing.


async def test_an_overflow_reads_everything_again(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    (tmp_path / "b.json").write_text(targets("b"))
    watchers: list[Watcher] = []

    @asynccontextmanager
    async def opener() -> AsyncIterator[Watcher]:
        async with open_watcher() as watcher:
            watchers.append(watcher)
            yield watcher

    async with following(tmp_path / "*.json", opener=opener) as found:
        await found.next()
        watchers[0].dispatch(Event(-1, watching.IN_Q_OVERFLOW, ""))
        assert list(await found.next()) == []
        assert found.counters["reads"] == 4
        assert found.counters["decoded"] == 2


async def test_without_inotify_files_are_read_every_interval_and_that_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))
    attempts = 0

    def opener() -> AbstractAsyncContextManager[Watcher]:
        nonlocal attempts
        attempts += 1
        return NoWatcher() if attempts < 3 else open_watcher()

    async with following(file, interval=0.01, opener=opener) as found:
        await found.next()
        assert found.notes == "inotify: not yet; the files are read every 0.01 s"
        rename_over(file, targets("b"))
        await found.until({"a.json:0": ["b"]})
        with trio.fail_after(5):
            while found.notes:
                await found.next()
        assert found.counters["watches"] > 0


class Full:
    """A kernel whose watches are used up, or that refuses them."""

    def __init__(self, number: int) -> None:
        self._number = number

    def add_watch(self, path: str, mask: int) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def rm_watch(self, wd: int) -> None:
        pass

    def fileno(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "fs.inotify.max_user_watches"), (errno.EACCES, "Permission denied")]
)
async def test_directories_that_can_not_be_watched_are_told_and_read_every_interval(
    tmp_path: Path, number: int, reason: str
) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))

    @asynccontextmanager
    async def opener() -> AsyncIterator[Watcher]:
        yield Watcher(Full(number))

    async with following(file, interval=0.01, opener=opener) as found:
        await found.next()
        assert f"{tmp_path}: can't be watched for changes: " in found.notes
        assert reason in found.notes
        rename_over(file, targets("b"))
        await found.until({"a.json:0": ["b"]})


async def test_the_refresh_interval_reads_everything_though_no_event_came(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    async with following(tmp_path / "*.json", interval=0.01) as found:
        await found.next()
        assert list(await found.next()) == []
        assert list(await found.next()) == []
        assert found.counters["reads"] >= 3
        assert found.counters["decoded"] == 1


# A file system that hangs.


class Hanging:
    """Parses only when it is let; stands in for a read that hangs, which happens in the same thread."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.calls = 0
        self.began = threading.Event()

    def __call__(self, content: bytes, path: str, limits: Limits, before: Parsed | None) -> Parsed:
        self.calls += 1
        self.began.set()
        self.let.wait()
        return parse_again(content, path, limits, before)


async def began(*hanging: Hanging, count: int = 1) -> None:
    """Wait until so many of them hang, and everybody waits for them."""
    while sum(one.began.is_set() for one in hanging) < count:
        await trio.testing.wait_all_tasks_blocked(0.001)
    await trio.testing.wait_all_tasks_blocked()


async def test_a_hung_read_is_told_keeps_the_groups_and_no_second_one_is_started(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))
    hanging = Hanging()
    hanging.let.set()
    try:
        async with following(file, interval=60, parse=hanging, opener=NoWatcher) as found:
            await found.next()
            hanging.let.clear()
            hanging.began.clear()
            rename_over(file, targets("b"))
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(60)
            await began(hanging)
            mock_clock.jump(workers.DEADLINE)
            await trio.testing.wait_all_tasks_blocked()
            assert found.errors == (f"reading {file} has not returned for 10 s",)
            mock_clock.jump(1000)
            await trio.testing.wait_all_tasks_blocked()
            assert hanging.calls == 2
            assert found.state == {"a.json:0": ["a"]}
            hanging.let.set()
            await found.until({"a.json:0": ["b"]})
            assert not found.errors
    finally:
        hanging.let.set()


async def test_after_a_hung_read_it_scans_once_more(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))
    hanging = Hanging()

    @asynccontextmanager
    async def opener() -> AsyncIterator[Watcher]:
        yield Watcher(Full(errno.EACCES))

    try:
        async with following(file, parse=hanging, opener=opener) as found:
            await began(hanging)
            mock_clock.jump(workers.DEADLINE)
            await trio.testing.wait_all_tasks_blocked()
            hanging.let.set()
            await found.next()
            assert list(await found.next()) == []
            await trio.testing.wait_all_tasks_blocked(0.05)  # time enough for a third scan to end
            assert found.counters["scans"] == 2
    finally:
        hanging.let.set()


async def test_stuck_threads_do_not_starve_the_other_jobs(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))
    stuck = [Hanging() for _ in range(6)]
    try:
        async with trio.open_nursery() as nursery:
            resources = Resources(nursery)
            async with trio.open_nursery() as inner:
                for hanging in stuck:

                    @inner.start_soon
                    async def hold(hanging: Hanging = hanging) -> None:
                        async with following(file, parse=hanging, opener=NoWatcher, resources=resources):
                            await trio.sleep_forever()

                await began(*stuck, count=4)
                assert sum(hanging.calls for hanging in stuck) == 4
                mock_clock.jump(workers.DEADLINE)
                await began(*stuck, count=6)
                mock_clock.jump(workers.DEADLINE)
                await trio.testing.wait_all_tasks_blocked()
                async with resources.use(("file workers",), workers.open_workers) as limiter:
                    assert limiter.total_tokens == 4 + 6
                    async with following(file, opener=NoWatcher, resources=resources) as found:
                        await found.next()
                    for hanging in stuck[:5]:
                        hanging.let.set()
                    with trio.fail_after(5):
                        while limiter.total_tokens != 4 + 1:
                            await trio.testing.wait_all_tasks_blocked(0.001)
                    stuck[5].let.set()
                    inner.cancel_scope.cancel()
    finally:
        for hanging in stuck:
            hanging.let.set()


async def test_a_stuck_thread_is_left_behind_after_a_grace_and_then_stops(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(targets(name))
    hanging = Hanging()

    try:
        async with trio.open_nursery() as nursery:
            resources = Resources(nursery)
            async with resources.use(("file workers",), workers.open_workers) as limiter:
                async with following(tmp_path / "*.json", parse=hanging, opener=NoWatcher, resources=resources):
                    await began(hanging)
                assert limiter.total_tokens == 4 + 1
                assert limiter.borrowed_tokens == 1
                hanging.let.set()
                with trio.fail_after(5):
                    while limiter.borrowed_tokens:
                        await trio.testing.wait_all_tasks_blocked(0.001)
                assert limiter.total_tokens == 4
        assert hanging.calls == 1, "no further file is read when nobody waits"
    finally:
        hanging.let.set()


# Leaving.


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope when its tasks have been scheduled so many times."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.scope = scope
        self.steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps -= 1
        if self.steps == 0:
            self.scope.cancel()


async def test_cancellation_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(targets("a"))
    async with open_watcher():  # the first one loads the C library
        pass
    clean = descriptors()
    completed = False
    steps = 0
    while not completed:
        steps += 1
        assert steps < 500
        async with trio.open_nursery() as nursery:
            resources = Resources(nursery)
            with trio.CancelScope() as scope:
                instrument = CancelAfter(scope, steps)
                trio.lowlevel.add_instrument(instrument)
                try:
                    async with following(tmp_path / "*.json", resources=resources) as found:
                        await found.next()
                        rename_over(file, targets(f"b{steps}"))
                        await found.until({"a.json:0": [f"b{steps}"]})
                        completed = True
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert resources.statistics() == {}
            assert descriptors() == clean
    assert steps > 10


async def test_leaving_removes_the_watches_and_keeps_those_of_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_text(targets(name))
    async with trio.open_nursery() as nursery:
        resources = Resources(nursery)
        async with resources.use(("inotify",), open_watcher) as watcher:
            async with following(tmp_path / "a/*.json", resources=resources) as one:
                await one.next()
                alone = watcher.watches
                async with following(tmp_path / "b/*.json", resources=resources) as other:
                    await other.next()
                    assert watcher.watches == alone + 1
                with trio.fail_after(5):
                    while watcher.watches != alone:
                        await trio.lowlevel.checkpoint()
                rename_over(tmp_path / "a/x.json", targets("still"))
                await one.until({"x.json:0": ["still"]})
            assert watcher.watches == 0


# Many at once, and none at work.


async def test_a_thousand_jobs_share_one_inotify_instance(tmp_path: Path) -> None:
    jobs = 1000
    for n in range(jobs):
        (tmp_path / f"job-{n}.json").write_text(targets(f"h{n}"))
    before = descriptors()
    arrived: dict[str, TargetGroup] = {}
    done = trio.Event()
    updates, received = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with trio.fail_after(30):
        async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
            options = DiscovererOptions(Resources(outer))

            async def receive() -> None:
                async for groups in received:
                    arrived.update({group.source: group for group in groups})
                    if len(arrived) == jobs:
                        done.set()

            nursery.start_soon(receive)
            for n in range(jobs):
                config = FileSDConfig((f"{tmp_path}/job-{n}.json",))
                nursery.start_soon(config.discoverer(options).run, updates)
            await done.wait()
            assert len(descriptors()) == len(before) + 1
            assert options.resources.statistics()["('inotify',)"] == jobs
            nursery.cancel_scope.cancel()
    assert descriptors() == before


class OtherSteps(trio.abc.Instrument):
    """Counts the steps of all tasks but one."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is not self.task


async def test_idle_means_no_wake_ups(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    async with following(tmp_path / "*.json", interval=HOUR) as found:
        await found.next()
        await trio.testing.wait_all_tasks_blocked()
        steps = OtherSteps(trio.lowlevel.current_task())
        trio.lowlevel.add_instrument(steps)
        mock_clock.jump(HOUR - 60)
        await trio.testing.wait_all_tasks_blocked()
        assert steps.count == 0
        mock_clock.jump(60)
        assert list(await found.next()) == []
        assert steps.count > 0


async def test_the_config_makes_a_discoverer(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(targets("a"))
    config = FileSDConfig(("*.json",), Duration.of("1h")).with_directory(str(tmp_path))
    updates, received = trio.open_memory_channel[Sequence[TargetGroup]](0)
    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        nursery.start_soon(config.discoverer(DiscovererOptions(Resources(outer))).run, updates)
        with trio.fail_after(5):
            assert len(await received.receive()) == 1
        nursery.cancel_scope.cancel()


# Everything together.


DIRECTORIES = ("sd", "sd/one", "sd/two", "sd/one", "sd/two", "other")


def change_something(random: Random, root: Path) -> None:
    """Do one of the things that people and programs do to files and directories."""
    place = root / random.choice(DIRECTORIES)
    file = place / random.choice(["a.json", "b.json", "noise"])
    content = targets(*(f"{random.random()}" for _ in range(random.randrange(1, 4))))
    with suppress(OSError):
        match random.randrange(12):
            case 0 | 1 | 2:
                place.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
            case 3 | 4 | 5:
                place.mkdir(parents=True, exist_ok=True)
                rename_over(file, content)
            case 6:
                file.unlink()
            case 7:
                place.unlink() if place.is_symlink() else shutil.rmtree(place)
            case 8:
                place.rename(root / random.choice(DIRECTORIES))
            case 9:
                place.symlink_to(root / random.choice(DIRECTORIES))
            case 10:
                file.symlink_to(random.choice(["../one/a.json", "b.json", "../../other/a.json"]))
            case 11:
                file.write_text(random.choice(["", "[", "[]"]))


@pytest.mark.parametrize("seed", range(20))
async def test_after_any_changes_what_is_followed_is_what_a_fresh_scan_finds(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    patterns = [f"{tmp_path}/sd/one/*.json", f"{tmp_path}/sd/two/a.json", f"{tmp_path}/sd/[ot]??/b.json"]
    compared = 0
    async with following(*patterns) as found:
        await found.next()
        for _ in range(60):
            for _ in range(random.randrange(1, 6)):
                change_something(random, tmp_path)
            fresh = scan(ScanRequest(patterns, {}, None, None))
            if fresh.errors:  # links in a circle: what was found before stays until they are gone
                for link in [tmp_path / name for name in set(DIRECTORIES)]:
                    if link.is_symlink():
                        link.unlink()
                continue
            bad = {path for path, file in fresh.files.items() if file.error}
            expected = {group.source: group for group in all_groups(fresh.files)}
            compared += len(expected)
            while {s: g for s, g in found.groups.items() if s.rpartition(":")[0] not in bad} != expected:
                await found.next()
    assert compared > 20
