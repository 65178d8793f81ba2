"""What work costs, counted and not timed: task steps, tasks, memory and system calls. The guard against getting slower.

A bound here is what it takes, with little to spare. Who has to raise one says in the commit what is gained by it.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.file.result import changes
from trio_sd.discovery.file.scan import ScanRequest, scan
from trio_sd.manager import Manager, open_manager
from trio_sd.subscription import Throttle
from trio_sd.target_lists import decode
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group

from .managing import AT_ONCE, PATIENCE
from .processes import COMMAND, ENVIRONMENT

SIZES: Final = (10, 10_000)
NONE_STEPS: Final = 3  # of a change that nobody waits for: the fake, what carries its updates, and the fake again
CALLS: Final = 14  # that name the directory or what is in it


class Counting(trio.abc.Instrument):
    """Counts what the scheduler does, but for the steps of the task that looks."""

    def __init__(self) -> None:
        self.steps = 0
        self.names: list[str] = []
        self.spawned = 0
        self._self = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self._self:
            self.steps += 1
            self.names.append(task.name)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.spawned += 1


@contextmanager
def counting() -> Iterator[Counting]:
    counts = Counting()
    trio.lowlevel.add_instrument(counts)
    try:
        yield counts
    finally:
        trio.lowlevel.remove_instrument(counts)


def groups(count: int, port: int = 80) -> list[TargetGroup]:
    return [group(f"s{n:06}", f"host-{n}:{port}") for n in range(count)]


async def steps_of_a_change(size: int, subscribers: int) -> int:
    """Return how many task steps a change of one group among many takes until all subscribers have it."""
    fake = FakeDiscoverer("web")
    received = 0

    async def consume(manager: Manager) -> None:
        nonlocal received
        async with manager.subscribe() as updates:
            async for _ in updates:
                received += 1

    async with (
        open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager,
        trio.open_nursery() as nursery,
    ):
        await fake.send(*groups(size))
        for _ in range(subscribers):
            nursery.start_soon(consume, manager)
        await wait_all_tasks_blocked()
        received = 0
        with counting() as counts:
            await fake.send(group("s000003", "other:80"))
            await wait_all_tasks_blocked()
        assert received == subscribers
        nursery.cancel_scope.cancel()
    return counts.steps


async def test_a_change_takes_as_many_task_steps_whatever_the_size() -> None:
    small, large = [await steps_of_a_change(size, 1) for size in SIZES]
    assert small == large


async def test_a_change_takes_one_task_step_for_each_subscriber_that_waits() -> None:
    none, one, eleven = [await steps_of_a_change(10, count) for count in (0, 1, 11)]
    assert eleven - one == 10
    assert one - none == 1
    assert none <= NONE_STEPS


async def test_a_change_takes_no_step_for_subscribers_that_stay_away_or_pause() -> None:
    fake = FakeDiscoverer("web")
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(open_manager({"web": [fake.config]}, throttle=AT_ONCE))
        await fake.send(*groups(10))
        before = await steps_of(fake, manager)
        for throttle in (AT_ONCE, Throttle(100, 100)) * 10:
            updates = await stack.enter_async_context(manager.subscribe(throttle=throttle))
            await updates.receive()
        await steps_of(fake, manager)  # now something is on offer, or waits for the end of a pause
        assert await steps_of(fake, manager) == before


async def steps_of(fake: FakeDiscoverer, manager: Manager) -> int:
    await wait_all_tasks_blocked()
    revision = manager.snapshot().revision
    with counting() as counts:
        await fake.send(group("s000003", f"other:{revision}"))
        await wait_all_tasks_blocked()
    assert manager.snapshot().revision == revision + 1
    return counts.steps


async def test_a_change_takes_hardly_more_memory_among_many() -> None:
    def cost(size: int) -> int:
        return trio.run(memory_of_a_change, size)

    small, large = [await trio.to_thread.run_sync(cost, size) for size in SIZES]
    # A persistent map copies the nodes on the way to what differs: as many as the map is deep.
    assert large <= 3 * small
    assert large <= 10_000


async def memory_of_a_change(size: int) -> int:
    """Return how many bytes more there are at the most while one group changes."""
    fake = FakeDiscoverer("web")
    async with open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager, manager.subscribe() as updates:
        await fake.send(*groups(size))
        while (await updates.receive()).snapshot.group_count("web") < size:
            pass
        costs = []
        for port in range(5):
            changed = group("s000003", f"other:{port}")
            gc.collect()
            tracemalloc.start()
            await fake.send(changed)
            update = await updates.receive()
            assert len(update.changes["web"].updated) == 1
            costs.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return min(costs)


@dataclass(frozen=True)
class WaitingConfig(DiscovererConfig):
    """Reports that there is nothing, and waits."""

    mechanism: ClassVar[str] = "waiting"
    number: int

    def discoverer(self, options: DiscovererOptions) -> Waiting:
        return Waiting()


class Waiting:
    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        await updates.send(())
        await trio.sleep_forever()


async def cost_of_a_reload(providers: int) -> tuple[int, int]:
    configs = {f"set-{n}": [WaitingConfig(n)] for n in range(providers)}
    async with open_manager(configs) as manager:
        await manager.wait_synced()
        await wait_all_tasks_blocked()
        with counting() as counts:
            await manager.apply_config(configs)
            await manager.wait_synced()
            await wait_all_tasks_blocked()
    return counts.spawned, counts.steps


async def test_a_reload_spawns_two_tasks_for_each_provider_and_takes_steps_in_proportion() -> None:
    (few_spawned, few_steps), (many_spawned, many_steps) = [await cost_of_a_reload(count) for count in (10, 210)]
    assert many_spawned - few_spawned == 200 * 2
    assert many_steps - few_steps <= 200 * 8


async def test_nothing_runs_while_nothing_changes(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.json" for n in range(20)]
    for file in files:
        file.write_text('[{"targets": ["a:1"]}]')
    configs = {file.stem: [FileSDConfig(files=(str(file),))] for file in files}
    async with open_manager(configs, throttle=AT_ONCE) as manager, manager.subscribe() as updates:
        while (await updates.receive()).snapshot.unheard("0"):
            pass
        await manager.wait_synced()
        await wait_all_tasks_blocked(0.2)
        with counting() as counts:
            await trio.sleep(1.5)  # longer than any pace that could be meant
        # The directories above are watched, too, and others may write there.
        assert [name for name in counts.names if "Watcher.read_events" not in name] == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt install strace)")
def test_a_changed_file_takes_few_system_calls_and_none_for_other_files(tmp_path: Path) -> None:
    if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not allowed to trace here")
    watched, aside = tmp_path / "watched", tmp_path / "aside"
    watched.mkdir()
    aside.mkdir()
    files = [watched / f"{n}.json" for n in range(20)]
    for file in files:
        file.write_text('[{"targets": ["a:1"]}]')
    # Each is read by a job of its own, but for the last ten, which one job reads.
    jobs = [{"job_name": file.stem, "file_sd_configs": [{"files": [str(file)]}]} for file in files[:10]]
    jobs.append({"job_name": "many", "file_sd_configs": [{"files": [str(watched / "1?.json")]}]})
    config, log = aside / "p.yml", aside / "strace"
    config.write_text(json.dumps({"scrape_configs": jobs}))
    # -D: what is started, and told to end, is the command itself.
    command = ["strace", "-D", "-f", "-qq", "-e", "trace=file,desc", "-o", str(log), *COMMAND]
    with subprocess.Popen(
        [*command, "run", str(config), "--output", "jsonl"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        try:
            found: set[str] = set()
            while len(found) < len(files):
                for change in json.loads(process.stdout.readline())["sets"].values():
                    found |= {one["source"] for one in change["updated"]}
            before = len(log.read_text().splitlines())
            (aside / "new").write_text('[{"targets": ["b:1"]}]')
            (aside / "new").rename(files[13])
            while "many" not in json.loads(process.stdout.readline())["sets"]:
                pass
            calls = [line for line in log.read_text().splitlines()[before:] if str(watched) in line]
        finally:
            process.terminate()
            process.wait(PATIENCE)
    reads = [line for line in calls if "openat(" in line and ".json" in line]
    assert [line for line in reads if "/13.json" not in line] == []
    assert len(reads) == 1
    # The directory is listed, and its files are looked at, because of the pattern.
    assert len(calls) <= CALLS, "\n".join(calls)


def test_a_large_file_of_which_one_group_changed_is_decoded_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    make = decode._JSONGroups.make

    def count(source: decode._JSONGroups, index: int, item: object) -> TargetGroup:
        nonlocal made
        made += 1
        return make(source, index, item)

    monkeypatch.setattr(decode._JSONGroups, "make", count)
    file = tmp_path / "a.json"
    content = [{"targets": [f"host-{n}:80"], "labels": {"zone": f"z{n}"}} for n in range(2_000)]
    file.write_text(json.dumps(content))
    first = scan(ScanRequest([str(file)], {}, None, None))
    assert made == 2_000
    content[7]["targets"] = ["other:80"]
    file.write_text(json.dumps(content))
    second = scan(ScanRequest([str(file)], first.files, None, None))
    assert made == 2_001
    assert [found.targets[0]["__address__"] for found in changes(first.files, second.files)] == ["other:80"]
