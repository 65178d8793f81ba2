"""What a manager keeps over a restart of the process, and for how old and how true it takes that.

Most tests run on the real clock, because a clock that jumps does so while a thread works.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.static import StaticConfig
from trio_sd.discovery.zookeeper.config import NerveSDConfig
from trio_sd.discovery.zookeeper.ensemble import DigestAuth
from trio_sd.manager import Manager, open_manager
from trio_sd.outputs.jsonl import encode_update
from trio_sd.secrets import Secret
from trio_sd.snapshots import Update
from trio_sd.state import SavedProvider, State, decode, encode, fingerprint
from trio_sd.state_file import StateFile
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group

from .managing import AT_ONCE, PATIENCE, Telling, of, sources, synced, until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def saved(path: Path, manager: str = "scrape") -> State:
    with path.open("rb") as file:
        return decode(file, manager)


def saved_sources(path: Path) -> dict[str, list[str]]:
    state = saved(path)
    return {
        name: [one.source for n in numbers for one in sorted(state.providers[n].groups, key=lambda one: one.source)]
        for name, numbers in state.sets.items()
    }


async def run_once(path: Path, configs: Mapping[str, Iterable[FakeDiscoverer]], **options: Any) -> None:
    """Run a process that finds everything that its fakes find first, and ends."""
    by_set = {name: [fake.config for fake in fakes] for name, fakes in configs.items()}
    async with open_manager(by_set, state_path=path, **options) as manager:
        with trio.fail_after(PATIENCE):
            await manager.wait_synced()


async def test_what_was_found_is_shown_at_once_and_marked_until_it_is_found_again(path: Path) -> None:
    before = time.time()
    await run_once(path, {"web": [synced("a", "p", "q")], "db": [synced("b")], "none": []})
    after = time.time()
    assert saved_sources(path) == {"web": ["p", "q"], "db": ["b"], "none": []}
    fake, other = FakeDiscoverer("a"), FakeDiscoverer("b")
    async with open_manager(state_path=path, throttle=AT_ONCE) as manager:
        assert list(manager.snapshot()) == ["web", "db", "none"], "before there is a configuration"
        assert sources(manager.snapshot()) == ["p", "q"]
        await manager.apply_config({"web": [fake.config], "db": [other.config], "none": []})
        async with manager.subscribe() as updates:
            update = await until(updates, lambda _: True)
            assert sources(update.snapshot) == ["p", "q"]
            assert list(update.snapshot.stale) == ["web", "db"]
            assert all(before <= since <= after for since in update.snapshot.stale.values())
            assert [one.state for one in manager.statistics().providers] == ["starting", "starting"]
            assert [one.stale for one in manager.statistics().providers] == [True, True]
            age = of(manager).age
            assert age is not None
            assert 0 <= age <= time.time() - before + 1
            line = json.loads(encode_update("scrape", 1, update.changes, update.snapshot.stale))
            assert line["stale"] == dict(update.snapshot.stale)
            await fake.send(group("q", "1"), group("r", "1"))
            update = await until(updates, lambda update: list(update.snapshot.stale) == ["db"])
            assert sources(update.snapshot) == ["q", "r"]
            assert update.changes["web"].removed == ("p",)
            assert [one.source for one in update.changes["web"].updated] == ["r"]
            await other.send(group("b", "1"))
            update = await until(updates, lambda update: not update.snapshot.stale)
            assert update.changes == {}, "it is still so, which is news"
            assert "stale" not in json.loads(encode_update("scrape", 1, update.changes, update.snapshot.stale))
            assert not any(one.stale for one in manager.statistics().providers)


async def test_an_empty_result_is_restored_and_an_unknown_one_is_not(path: Path) -> None:
    empty, unknown = FakeDiscoverer("a", first=[]), FakeDiscoverer("b")
    async with open_manager({"web": [empty.config], "db": [unknown.config]}, state_path=path) as manager:
        await manager.wait_synced("web")
    assert len(saved(path).providers) == 1
    async with open_manager({"web": [empty.config], "db": [unknown.config]}, state_path=path) as manager:
        assert {name: list(found) for name, found in manager.snapshot().items()} == {"web": [], "db": []}
        assert "db" not in manager.snapshot().stale


async def test_configurations_that_are_there_no_more_go_as_by_a_reload(path: Path) -> None:
    await run_once(
        path, {"web": [synced("a")], "alone": [synced("b")], "removed": [synced("c")], "both": [synced("a")]}
    )
    same, joins = FakeDiscoverer("a"), FakeDiscoverer("new")
    configs = {"web": [joins.config], "alone": [], "both": [same.config, joins.config]}
    async with open_manager(configs, state_path=path, throttle=AT_ONCE) as manager:
        assert {name: sources(manager.snapshot(), name) for name in manager.snapshot()} == {
            "web": ["a"],
            "alone": [],
            "both": ["a"],
        }
        assert manager.statistics().sets[0].leaving == ("fake/0",)
        assert joins.options is None or set(joins.options.last_known()) == {"a"}
        await joins.send(group("n", "1"))
        assert sources(manager.snapshot(), "web") == ["n"]
        assert sources(manager.snapshot(), "both") == ["a", "n"]
        assert list(manager.snapshot().stale) == ["both"]
        await same.send(group("a", "1"))
        assert manager.snapshot().stale == {}


async def test_what_has_left_is_shown_until_the_warm_up_time_is_over(path: Path) -> None:
    await run_once(path, {"web": [synced("a")]})
    async with (
        open_manager({"web": [FakeDiscoverer("b").config]}, state_path=path, warm_up=0.2, throttle=AT_ONCE) as manager,
        manager.subscribe() as updates,
    ):
        await until(updates, lambda update: sources(update.snapshot) == [])
        assert manager.snapshot().stale == {}


async def test_nothing_is_written_before_there_is_a_configuration(path: Path) -> None:
    await run_once(path, {"web": [synced("a")]})
    before = path.read_bytes()
    async with open_manager(state_path=path) as manager:
        with pytest.raises(TypeError):
            await manager.apply_config({"web": [5]})  # type: ignore[list-item]
        with pytest.raises(KeyError):
            await manager.wait_synced("web")
        await wait_all_tasks_blocked()
    assert path.read_bytes() == before
    async with open_manager(state_path=path) as manager:
        await manager.apply_config({})
    assert saved_sources(path) == {}


async def test_a_configuration_that_can_not_be_used_leaves_what_was_restored(path: Path) -> None:
    fake = synced("a")
    await run_once(path, {"web": [fake]})
    async with open_manager(state_path=path) as manager:
        with pytest.raises(TypeError):
            await manager.apply_config({"web": [fake.config, "no"]})  # type: ignore[list-item]
        await manager.apply_config({"web": [FakeDiscoverer("a").config]})
        assert sources(manager.snapshot()) == ["a"]
        assert of(manager).stale


async def test_the_end_of_the_block_writes_what_is_shown_then(path: Path) -> None:
    fake = FakeDiscoverer("a")
    for source in "p", "q":
        async with open_manager({"web": [fake.config]}, state_path=path):
            await fake.send(group(source, "1"))
        assert saved_sources(path) == {"web": [source]}
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with open_manager({"web": [fake.config]}, state_path=path):
            await fake.send(group("r", "1"))
            raise ZeroDivisionError
    assert saved_sources(path) == {"web": ["r"]}
    with trio.CancelScope() as scope:
        async with open_manager({"web": [fake.config]}, state_path=path):
            await fake.send(group("s", "1"))
            scope.cancel()
            await trio.sleep_forever()
    assert saved_sources(path) == {"web": ["s"]}


async def test_what_was_restored_and_not_found_again_keeps_its_time(path: Path) -> None:
    await run_once(path, {"web": [synced("a")]})
    known_good = saved(path).providers[0].known_good
    for _ in range(3):
        async with open_manager({"web": [FakeDiscoverer("a").config]}, state_path=path) as manager:
            assert manager.snapshot().stale == {"web": known_good}
        assert saved(path).providers[0].known_good == known_good
        assert saved(path).saved > known_good


def write(path: Path, *providers: SavedProvider, **sets: Sequence[int]) -> None:
    state = State("scrape", time.time(), {name: tuple(numbers) for name, numbers in sets.items()}, providers)
    path.write_bytes(b"".join(encode(state)))


def provider(fake: FakeDiscoverer, *found: TargetGroup, age: float = 0.0) -> SavedProvider:
    return SavedProvider("fake", fingerprint(fake.config), time.time() - age, found)


async def test_what_is_too_old_is_not_restored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = FakeDiscoverer("old"), FakeDiscoverer("new")
    configs = {"web": [old.config, new.config], "db": [old.config]}
    for max_age, shown in ((None, ["o", "n"]), (3_601, ["o", "n"]), (3_599, ["n"]), (0.0, [])):
        path = tmp_path / f"{max_age}"
        write(
            path, provider(old, group("o", "1"), age=3_600), provider(new, group("n", "1"), age=60), web=[0, 1], db=[0]
        )
        caplog.clear()
        async with open_manager(configs, state_path=path, state_max_age=max_age) as manager:
            assert sources(manager.snapshot()) == shown
            assert list(manager.snapshot()) == ["web", "db"]
            told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
            assert len(told) == 2 - len(shown)
            ages = {one.name: one.age for one in manager.statistics().providers if one.age is not None}
            expected = {"o": 3_600, "n": 60}
            assert list(ages.values()) == [pytest.approx(expected[source], abs=5) for source in shown]


async def test_a_clock_that_went_back_makes_nothing_too_old(path: Path) -> None:
    fake = FakeDiscoverer("a")
    write(path, provider(fake, group("p", "1"), age=-3_600), web=[0])
    async with open_manager({"web": [fake.config]}, state_path=path, state_max_age=60) as manager:
        assert sources(manager.snapshot()) == ["p"]
        age = of(manager).age
        assert age is not None
        assert 0 <= age < 10
        assert of(manager).stale
        await fake.send(group("p", "1"))
        assert manager.snapshot().stale == {}


async def test_what_is_taken_from_what_was_restored_confirms_nothing_while_something_fails(path: Path) -> None:
    fake = Telling("a")
    write(path, provider(fake, group("p", "1"), group("q", "2"), group("r", "3"), age=50), web=[0])
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        since = dict(manager.snapshot().stale)
        await wait_all_tasks_blocked()
        assert fake.options is not None
        known = fake.options.last_known()
        fake.errors = ("p and q can't be read",)
        await fake.send(known["p"], known["q"], group("r", "4"))
        assert manager.snapshot().stale == since
        assert of(manager).stale
        assert (of(manager).age or 0) >= 50
        assert of(manager).state == "failing"
        fake.errors = ("q can't be read",)
        await fake.send(group("p"))
        assert manager.snapshot().stale == since
        await fake.send()
        assert manager.snapshot().stale == since
        await fake.send(group("q", "2"))
        assert manager.snapshot().stale == {}, "all of it was found"
        assert (of(manager).age or 0) < 10


async def test_one_that_fails_no_more_confirms_all(path: Path) -> None:
    fake = Telling("a")
    write(path, provider(fake, group("p", "1"), group("q", "2"), age=50), web=[0])
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        await wait_all_tasks_blocked()
        assert fake.options is not None
        fake.errors = ("p can't be read",)
        await fake.send(*fake.options.last_known().values())
        fake.errors = ()
        await fake.send()
        assert manager.snapshot().stale == {}


async def test_files_are_stale_until_they_could_be_read(tmp_path: Path, path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('[{"targets": ["1"]}]')
    bad.write_text('[{"targets": ["2"]}]')
    configs = {"web": [FileSDConfig((os.fspath(good), os.fspath(bad)))]}
    async with open_manager(configs, state_path=path) as manager:
        await manager.wait_synced()
    bad.write_text("[")
    async with (
        open_manager(configs, state_path=path, throttle=AT_ONCE) as manager,
        manager.subscribe() as updates,
    ):
        with trio.fail_after(PATIENCE):
            await manager.wait_synced()
        assert sources(manager.snapshot()) == [f"{bad}:0", f"{good}:0"]
        assert list(manager.snapshot().stale) == ["web"]
        bad.write_text('[{"targets": ["2"]}]')
        await until(updates, lambda update: not update.snapshot.stale)


async def test_files_that_could_all_be_read_again_are_not_stale_because_another_one_never_could(
    tmp_path: Path, path: Path
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('[{"targets": ["1"]}]')
    bad.write_text("[")  # nothing is shown of it, ever
    configs = {"web": [FileSDConfig((os.fspath(good), os.fspath(bad)))]}
    for _ in range(2):
        async with open_manager(configs, state_path=path) as manager:
            with trio.fail_after(PATIENCE):
                await manager.wait_synced()
            assert sources(manager.snapshot()) == [f"{good}:0"]
            assert manager.snapshot().stale == {}


async def test_configurations_that_differ_in_their_secrets_only_are_not_taken_for_each_other(path: Path) -> None:
    def config(password: str) -> NerveSDConfig:
        auth = DigestAuth(username="me", password=Secret(password))
        return NerveSDConfig(servers=("127.0.0.1:1",), paths=("/a",), digest_auth=auth)

    one = SavedProvider("nerve", fingerprint(config("one")), time.time(), (group("p", "1"),))
    for saved_providers, configs, shown in (
        ([one], [config("one")], {"nerve/0": 1}),
        ([one], [config("one"), config("two")], {"nerve/1": 0, "nerve/2": 0}),
        ([one, one], [config("one")], {"nerve/2": 0}),
        ([one, one], [config("one"), config("two")], {"nerve/2": 0, "nerve/3": 0}),
    ):
        write(path, *saved_providers, web=range(len(saved_providers)))
        async with open_manager({"web": configs}, state_path=path) as manager:
            assert {one.name: one.groups for one in manager.statistics().providers} == shown


async def test_no_secret_reaches_the_file(path: Path) -> None:
    auth = DigestAuth(username="me", password=Secret("hunter2"))
    config = NerveSDConfig(servers=("127.0.0.1:1",), paths=("/a",), digest_auth=auth)
    write(path, SavedProvider("nerve", fingerprint(config), time.time(), (group("p", "1"),)), web=[0])
    path_before = saved(path)
    async with open_manager({"web": [config]}, state_path=path):
        pass
    assert saved(path).saved > path_before.saved
    assert saved(path).providers[0].fingerprint == path_before.providers[0].fingerprint
    assert b"hunter2" not in path.read_bytes()


async def test_managers_with_files_of_their_own_do_not_meet(tmp_path: Path) -> None:
    async with (
        open_manager({"web": [synced("a").config]}, state_path=tmp_path / "1") as one,
        open_manager({"web": [synced("b").config]}, name="notify", state_path=tmp_path / "2") as two,
    ):
        await one.wait_synced()
        await two.wait_synced()
    assert (saved(tmp_path / "1").providers[0].groups, saved(tmp_path / "2", "notify").providers[0].groups) == (
        [group("a", "1")],
        [group("b", "1")],
    )
    async with (
        open_manager(state_path=tmp_path / "1") as one,
        open_manager(name="notify", state_path=tmp_path / "2") as two,
        open_manager(name="third", state_path=tmp_path / "3") as three,
    ):
        assert (sources(one.snapshot()), sources(two.snapshot()), list(three.snapshot())) == (["a"], ["b"], [])


@pytest.mark.parametrize("unusable", [b"", b"{}", b'{"format": "trio-sd state"'], ids=["empty", "foreign", "cut off"])
async def test_a_file_that_can_not_be_used_changes_nothing_but_its_name(path: Path, unusable: bytes) -> None:
    path.write_bytes(unusable)
    await run_once(path, {"web": [synced("a")]})
    assert Path(f"{path}.unusable-1").read_bytes() == unusable
    assert saved_sources(path) == {"web": ["a"]}


@pytest.mark.parametrize("where", ["/dev/full", "/dev/null", "/", "/nonexistent/state", "/proc/self/state"])
async def test_a_path_that_can_not_be_written_disturbs_nothing(caplog: pytest.LogCaptureFixture, where: str) -> None:
    fake = FakeDiscoverer("a")
    with trio.fail_after(PATIENCE):
        async with open_manager({"web": [fake.config]}, state_path=where, throttle=AT_ONCE) as manager:
            async with manager.subscribe() as updates:
                await fake.send(group("p", "1"))
                await until(updates, lambda update: sources(update.snapshot) == ["p"])
            statistics = manager.statistics().state_file
            assert statistics is not None
            assert statistics.saves == 0
    assert len([one for one in caplog.records if "can't be written" in one.getMessage()]) == 1
    assert os.path.lexists(where) == (where in ("/dev/full", "/dev/null", "/"))


def saves(manager: Manager) -> int:
    statistics = manager.statistics().state_file
    assert statistics is not None
    return statistics.saves


class SlowWrites:
    """Counts what is written, and holds it up in its thread when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.ended = 0
        self.reached = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        write = StateFile._write

        def slow_write(file: StateFile, state: State) -> None:
            self.begun += 1
            self.reached.set()
            assert self.gate.wait(PATIENCE)
            try:
                write(file, state)
            finally:
                self.ended += 1

        monkeypatch.setattr(StateFile, "_write", slow_write)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


async def test_the_last_write_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trio_sd.manager._LAST_SAVE", 0.1)
    slow = SlowWrites(monkeypatch)
    fake = synced("a")
    with trio.fail_after(PATIENCE), slow.held_up():
        async with open_manager({"web": [fake.config]}, state_path=path) as manager:
            await manager.wait_synced()
            assert sources(manager.snapshot()) == ["a"]
            assert await trio.to_thread.run_sync(slow.reached.wait, PATIENCE)
    assert "the last state was not saved within 0.1 s" in caplog.text


async def test_the_last_write_is_the_last_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change shortly before the end waits for its turn when the end comes."""
    monkeypatch.setattr("trio_sd.manager.PACE", Throttle(0.03, 0.03))
    monkeypatch.setattr("trio_sd.state_file._SHARE", 0)
    save, calls = StateFile.save, 0
    queued = trio.Event()

    async def noted_save(file: StateFile, state: State) -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:
            queued.set()
        return await save(file, state)

    monkeypatch.setattr(StateFile, "save", noted_save)
    slow = SlowWrites(monkeypatch)

    async def let_go() -> None:
        with trio.move_on_after(0.2):
            await queued.wait()
        await wait_all_tasks_blocked()
        slow.gate.set()

    for _ in range(10):  # which of two tasks that may run goes first is a matter of chance
        calls, queued = 0, trio.Event()
        slow.reached.clear()
        fake = FakeDiscoverer("a")
        async with trio.open_nursery() as nursery:
            async with open_manager({"web": [fake.config]}, state_path=path) as manager:
                assert await trio.to_thread.run_sync(slow.reached.wait, PATIENCE)
                while not saves(manager):
                    await trio.lowlevel.checkpoint()
                await fake.send(group("p", "1"))
                slow.gate.clear()
                nursery.start_soon(let_go)
            left = slow.begun - slow.ended
        assert not left, "nothing is written after the end"


class Saved:
    """Takes what would be written to the disk, on a clock that jumps; fails as often as it is told to.

    Args:
      failures: so many writes fail.
      seconds: so long each takes, and so much of a core.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0, seconds: float = 0.0) -> None:
        self.states: list[State] = []
        self.times: list[float] = []

        async def save(file: StateFile, state: State) -> bool:
            self.times.append(trio.current_time())
            self.states.append(state)
            file._cpu = seconds
            await trio.sleep(seconds)
            return len(self.states) > failures

        async def read(file: StateFile) -> None:
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(StateFile, "save", save)
        monkeypatch.setattr(StateFile, "read", read)


@pytest.mark.parametrize(("duration", "expected"), [(0.0, (20, 30)), (0.05, (20, 30)), (1.0, (5, 6))])
async def test_the_file_is_written_at_a_bounded_pace(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, duration: float, expected: tuple[int, int]
) -> None:
    """How often in 100 seconds of constant change, and how soon after a change when all was quiet."""
    begun = Saved(monkeypatch, seconds=duration).times
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, state_path=path):
        for number in range(1_000):
            await fake.send(group("p", f"{number}"))
            await trio.sleep(0.1)
        assert expected[0] <= len(begun) <= expected[1]
        assert min(later - earlier for earlier, later in pairwise(begun)) >= max(0.99, 20 * duration)
        await trio.sleep(100)
        quiet = len(begun)
        await trio.sleep(10_000)
        assert len(begun) == quiet
        await fake.send(group("p", "new"))
        await trio.sleep(0.001)
        assert begun[-1] == pytest.approx(trio.current_time(), abs=0.01), (
            "a first change after quiet is written at once"
        )


async def test_a_target_whose_removal_waits_is_not_taken_for_found_by_the_next_process(path: Path) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, state_path=path, removal_delay=1_000) as manager:
        await fake.send(group("p", "1"), group("q", "2"))
        await fake.send(group("q"))
        assert sources(manager.snapshot()) == ["p", "q"]
    async with open_manager({"web": [fake.config]}, state_path=path, removal_delay=1_000) as manager:
        await wait_all_tasks_blocked()
        assert fake.options is not None
        assert set(fake.options.last_known()) == {"p"}


async def test_what_can_not_be_told_apart_in_other_processes_is_not_taken_over(path: Path) -> None:
    class Config(DiscovererConfig):
        mechanism = "own"

        def discoverer(self, options: DiscovererOptions) -> FakeDiscoverer:
            return fake

    fake = synced("a")
    config = Config()
    async with open_manager({"web": [config]}, state_path=path) as manager:
        await manager.wait_synced()
    assert saved(path).providers[0].fingerprint is None
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [config]}, state_path=path) as manager:
        assert sources(manager.snapshot()) == ["a"]
        assert manager.statistics().sets[0].leaving == ("own/0",)


async def test_static_targets_are_never_stale_for_long(path: Path) -> None:
    configs = {"web": [StaticConfig((group("0", "1"),))]}
    for _ in range(2):
        async with open_manager(configs, state_path=path) as manager:
            await manager.wait_synced()
            assert manager.snapshot().stale == {}
            assert of(manager, "static/0").state == "synced"


async def test_a_changed_configuration_shows_what_was_restored_as_what_it_is(path: Path) -> None:
    old, new = Telling("old"), Telling("new")
    write(path, provider(old, group("p", "1"), group("q", "2"), age=50), web=[0])
    async with open_manager({"web": [new.config]}, state_path=path) as manager:
        since = dict(manager.snapshot().stale)
        await wait_all_tasks_blocked()
        assert new.options is not None
        known = new.options.last_known()
        new.errors = ("p can't be read",)
        await new.send(known["p"], group("q", "3"))
        assert sources(manager.snapshot()) == ["p", "q"]
        assert manager.snapshot().stale == since
        assert (of(manager, "fake/1").age or 0) >= 50
    assert saved(path).providers[0].known_good == pytest.approx(since["web"], abs=1)
    write(path, provider(old, group("p", "1"), age=50), web=[0])
    new = Telling("new")
    async with open_manager({"web": [new.config]}, state_path=path) as manager:
        await wait_all_tasks_blocked()
        new.errors = ("something else can't be read",)
        assert new.options is not None
        assert set(new.options.last_known()) == {"p"}
        await new.send(group("p", "1"))
        assert manager.snapshot().stale == {}, "it has found that itself"


async def test_without_sets_nothing_of_what_was_restored_is_shown(path: Path) -> None:
    await run_once(path, {"web": [synced("a")]})
    async with open_manager({}, state_path=path) as manager:
        assert dict(manager.snapshot()) == {}
    assert saved(path).sets == {}


async def test_where_an_age_matters_the_file_is_written_though_nothing_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    begun = Saved(monkeypatch).times
    fake = synced("a")
    async with open_manager({"web": [fake.config]}, state_path=path, state_max_age=1_000) as manager:
        await manager.wait_synced()
        await trio.sleep(10_000)
        assert len(begun) == pytest.approx(100, abs=3)


async def test_a_time_to_come_is_taken_for_now(path: Path) -> None:
    fake = FakeDiscoverer("a")
    write(path, provider(fake, group("p", "1"), age=-1_000_000), web=[0])
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        assert manager.snapshot().stale["web"] <= time.time()
    assert saved(path).providers[0].known_good <= time.time(), "so that it grows old from now on"


async def test_a_thread_that_can_not_be_started_disturbs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(file: StateFile, state: State) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(StateFile, "_write", fail)
    fake = synced("a")
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        await manager.wait_synced()
        assert sources(manager.snapshot()) == ["a"]
    assert "can't start new thread" in caplog.text


async def test_no_old_state_is_held_while_nothing_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    Saved(monkeypatch)
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, state_path=path):
        await fake.send(group("p", "1"))
        await trio.sleep(100)
        gc.collect()
        assert not [one for one in gc.get_objects() if type(one) is Update]


async def test_what_was_last_heard_of_long_ago_is_saved_as_that_old(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    disk = Saved(monkeypatch)
    quiet, failing, done = FakeDiscoverer("quiet"), FakeDiscoverer("failing"), FakeDiscoverer("done")
    configs = {"web": [quiet.config, failing.config, done.config]}
    async with open_manager(configs, state_path=path) as manager:
        for fake in quiet, failing, done:
            await fake.send(group(fake.config.name, "1"))
        await done.finish()
        await trio.sleep(60)
        await failing.fail(OSError("broken"))
        await trio.sleep(40)
        assert [one.age for one in manager.statistics().providers] == [100, 100, 0]
    last = disk.states[-1]
    ages = [round(last.saved - one.known_good, 3) for one in last.providers]
    assert ages == [100, 100, 0], "one that has nothing more to say is right for ever"


async def test_what_could_not_be_written_is_tried_again_though_nothing_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    disk = Saved(monkeypatch, failures=3)
    fake = synced("a")
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        await manager.wait_synced()
        await trio.sleep(1_000)
        assert len(disk.times) == 4
        assert disk.times[-1] - disk.times[-2] == pytest.approx(30)


async def test_that_the_last_state_was_not_written_is_always_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    Saved(monkeypatch, failures=1_000)
    fake = synced("a")
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        await manager.wait_synced()
        await trio.sleep(100)
    assert "the last state was not saved" in caplog.text


async def test_nobody_follows_the_state_before_there_is_a_configuration(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    disk = Saved(monkeypatch)
    async with open_manager(state_path=path) as manager:
        await trio.sleep(100)
        assert manager.statistics().subscriptions == ()
    assert not disk.states


async def test_statistics_can_be_taken_apart(path: Path) -> None:
    fake = synced("a")
    async with open_manager({"web": [fake.config]}, state_path=path) as manager:
        await manager.wait_synced()
        assert dataclasses.asdict(manager.statistics())["providers"][0]["state"] == "synced"
