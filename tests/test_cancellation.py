"""Whole scenarios, cancelled at every step: after each, the state is whole and nothing is left running."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_sd import FileSDConfig, ServersetSDConfig, open_manager
from trio_sd.reload import Reloader
from trio_sd.state import decode
from trio_sd.subscription import Throttle
from trio_sd.testing import FakeDiscoverer, cancel_everywhere, group

from .zookeeper import ZooKeeperServer, needs_zookeeper, open_tree

AT_ONCE = Throttle(0, 0)


def open_files() -> Counter[str]:
    """Return how many file descriptors there are of each kind, but Trio's own and those of idle threads."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            kinds[os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]] += 1
    return kinds


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    before, threads = open_files(), [thread.name for thread in threading.enumerate()]
    yield
    assert open_files() == before
    left = [thread.name for thread in threading.enumerate() if thread.name not in threads]
    assert all(name.startswith(("Trio thread", "trio")) for name in left), "only Trio's own, which wait for work"


@pytest.mark.parametrize("linger", [0, 1])
async def test_pausing_resuming_and_refreshing(linger: float, autojump_clock: MockClock) -> None:
    fakes = [FakeDiscoverer(name, linger=linger, first=[group(name, "1")]) for name in "ab"]
    async with open_manager({"s": [fake.config for fake in fakes]}) as manager:
        await manager.wait_synced()
        provider = manager.statistics().providers[0].name

        async def scenario() -> None:
            await manager.pause(provider)
            await manager.refresh()
            await manager.resume(provider)
            await manager.wait_synced()
            await manager.pause(provider)

        def check(completed: bool) -> None:
            assert [one.source for one in manager.snapshot()["s"]] == ["a", "b"], "nothing of it takes anything away"
            state = manager.statistics().providers[0].state
            if not linger:  # otherwise the run before may take a second more to end
                assert fakes[0].running == (state != "paused")
                assert fakes[1].running == 1

        assert await cancel_everywhere(scenario, check) > 5
        assert manager.statistics().providers[0].state == "paused"
        await manager.resume(provider)
        await manager.wait_synced()
        assert fakes[0].running == 1


@pytest.mark.usefixtures("nothing_stays_open")
async def test_files_reloads_and_a_state_file(tmp_path: Path) -> None:
    targets, config, state = tmp_path / "t.json", tmp_path / "prometheus.yml", tmp_path / "state"
    targets.write_text('[{"targets": ["a:1"]}]')
    config.write_text("scrape_configs: [{job_name: j, file_sd_configs: [{files: [t.json]}]}]")
    saved: list[bool] = []

    async def scenario() -> None:
        async with open_manager(state_path=state) as manager, manager.subscribe(throttle=AT_ONCE) as updates:
            await updates.receive()
            reloader = Reloader(config, scrape=manager)
            await reloader.reload()
            await manager.wait_synced()
            await reloader.reload()
            await updates.receive()

    def check(completed: bool) -> None:
        # Whenever it was cancelled: there is no state yet, or a whole one, and nothing lies about beside it.
        assert sorted(set(os.listdir(tmp_path)) - {"state", "state.new"}) == ["prometheus.yml", "t.json"]
        if state.exists():
            saved.append(completed)
            with state.open("rb") as file:
                assert [len(one.groups) for one in decode(file, "scrape").providers] in ([], [1])

    assert await cancel_everywhere(scenario, check) > 10
    assert len(saved) > 5
    assert saved[-1]


@pytest.mark.usefixtures("nothing_stays_open")
@needs_zookeeper
async def test_zookeeper(shared_zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"targets": ["f:1"]}]')
    configs = [ServersetSDConfig(servers=(shared_zookeeper.hosts,), paths=(zookeeper_root,))]
    async with open_tree(shared_zookeeper.hosts) as tree:
        member = b'{"serviceEndpoint": {"host": "h", "port": 1}, "additionalEndpoints": {}}'
        await tree.create_many({zookeeper_root: b"", f"{zookeeper_root}/a": member})

        async def scenario() -> None:
            async with open_manager({"z": configs}) as manager:
                await manager.wait_synced()
                await manager.apply_config({"z": configs, "f": [FileSDConfig(files=(str(tmp_path / "t.json"),))]})
                await manager.wait_synced()
                assert [len(groups) for groups in manager.snapshot().values()] == [1, 1]

        with trio.fail_after(60):
            assert await cancel_everywhere(scenario) > 5
