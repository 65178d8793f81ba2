"""Nothing is left of a reload: the process after 1,000 of them is the process after 50, in real time on real things.

The configurations are of all kinds at once: files, lists, ZooKeeper, and discoverers that crash, hang, or take their
time to clean up. They alternate, so that sets and providers come, stay and go; some reloads follow the one before
before anything of it has reported. What is counted is what the process and the ZooKeeper server say there is, and every
object of a class of this project, whichever class that is.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import trio
import trio.testing

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.static import StaticConfig
from trio_sd.discovery.zookeeper import NerveSDConfig, ServersetSDConfig
from trio_sd.errors import ConfigError
from trio_sd.manager import Manager, open_manager
from trio_sd.provider import Backoff
from trio_sd.reload import Reloader
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import group

from .zookeeper import ZooKeeperServer, available, needs_zookeeper, open_tree

RELOADS = 1_000
WARM = 50  # reloads after which every cache is filled, and every module imported

PATIENCE = 100.0  # a leak may also be something that never ends

AT_ONCE = Throttle(0, 0)
Updates = trio.MemorySendChannel[Sequence[TargetGroup]]
Configs = dict[str, list[DiscovererConfig]]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fdinfo"), reason="the counts are Linux' /proc")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Have no log records made: a thousand crashes are what is wanted here, and kept records would be a leak."""
    logger = logging.getLogger("trio_sd")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


# --- discoverers that behave badly ---


Restart = Literal["all", "changed"]
Habit = Literal["unmakable", "crashes", "crashes later", "says nothing", "hangs", "is slow to end", "is stuck", "talks"]


@dataclass(frozen=True)
class Odd(DiscovererConfig):
    """Makes discoverers of one bad habit; ``number`` tells configurations apart."""

    mechanism: ClassVar[str] = "odd"
    habit: Habit
    number: int = 0
    release: trio.Event = field(default_factory=trio.Event, compare=False)  # what the stuck wait for

    def discoverer(self, options: DiscovererOptions) -> OddDiscoverer:
        if self.habit == "unmakable":
            raise OSError("it can't even be made")
        return OddDiscoverer(self, options)


class OddDiscoverer:
    """What an `Odd` makes. Anew for every run, so that one which is kept is counted."""

    def __init__(self, config: Odd, options: DiscovererOptions) -> None:
        self.config = config
        self.options = options

    async def run(self, updates: Updates) -> None:
        habit = self.config.habit
        if habit == "says nothing":
            return
        if habit == "crashes":
            raise RuntimeError("crashed")
        if habit != "hangs":
            await updates.send([group("odd", "o:1"), group(f"odd-{self.config.number}", "o:2")])
        if habit == "crashes later":
            raise RuntimeError("crashed later")
        if habit == "talks":
            for number in range(3):
                await updates.send([group("odd", f"o:{number}")])
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                if habit == "is slow to end":
                    await trio.sleep(0.001)
                elif habit == "is stuck":
                    await self.config.release.wait()


# --- what is counted ---


def tasks() -> Counter[str]:
    """Return the tasks of the whole run by name, whoever started them."""
    root = trio.lowlevel.current_root_task()
    found: Counter[str] = Counter()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        found[re.sub(r"\d+", "N", task.name)] += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def threads() -> Counter[str]:
    """Return the threads that do something. Trio keeps idle ones for ten seconds, and names them "Trio thread …"."""
    names = [thread.name for thread in threading.enumerate()]
    return Counter(re.sub(r"\d+", "N", name) for name in names if not name.startswith("Trio thread "))


def descriptors() -> Counter[str]:
    """Return the open file descriptors by what they are."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that lists them
            continue
        found[re.sub(r"\d+", "N", kind)] += 1
    return found


def watches() -> int:
    """Return the number of inotify watches of the process."""
    count = 0
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            text = Path(f"/proc/self/fdinfo/{name}").read_text()
        except FileNotFoundError:
            continue
        count += sum(line.startswith("inotify ") for line in text.splitlines())
    return count


def objects() -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return the live objects by class: this project's things, its values, and all others.

    Values are what is compared by value. Equal ones may be one object or several, as it happens.
    """
    own: Counter[str] = Counter()
    values: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for kind, living in Counter(map(type, gc.get_objects())).items():
        module = str(kind.__module__)
        mine = module == __name__ or module.partition(".")[0] == "trio_sd"
        by_value = any("__eq__" in vars(base) for base in kind.__mro__[:-1])
        found = others if not mine else values if by_value else own
        found[f"{module}.{kind.__qualname__}"] += living
    return own, values, others


class _Mallinfo2(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def c_allocated() -> int:
    """Return the bytes that the C library has given out and not got back; 0 where it does not tell.

    That is what does not fit into the interpreter's own blocks of up to 512 bytes, which are counted apart.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


@dataclass
class Count:
    """What there is at one moment."""

    tasks: Counter[str]
    threads: Counter[str]
    descriptors: Counter[str]
    watches: int
    sessions: int
    own: Counter[str]
    values: Counter[str]
    others: Counter[str]
    kernel_threads: int
    blocks: int
    allocated: int
    resident: int


def more(before: Counter[str], after: Counter[str], allowed: int = 0) -> list[str]:
    return [f"{after[n] - before[n]} more {n}" for n in sorted(after) if after[n] - before[n] > allowed]


# Equal values are shared or not by the history of the last few reloads; that is a matter of single objects.
VALUES = 10
# Trio keeps idle threads for ten seconds, as many as were busy at once: those of the file workers, and a few others.
IDLE = 10


# Trio keeps the deadlines of scopes that have ended until a thousand have gathered, or they come due.
DEADLINES = ("trio.CancelScope", "trio._core._run.CancelReason", "builtins.tuple")


def leaks(before: Count, after: Count, reloads: int) -> list[str]:
    """Tell what there is after some reloads that there was not before."""
    found = []
    # What runs or is open must be the same; fewer would mean that something has died, or was counted too early.
    for kind in ("tasks", "threads", "descriptors", "own"):
        was, now = getattr(before, kind), getattr(after, kind)
        found += [f"{kind}: {text}" for text in [*more(was, now), *[f"not {text}" for text in more(now, was)]]]
    if (before.watches, before.sessions) != (after.watches, after.sessions):
        found.append(f"watches, sessions: {before.watches, before.sessions} → {after.watches, after.sessions}")
    found += [f"values: {text}" for text in more(before.values, after.values, VALUES)]
    others = after.others.copy()
    for name in DEADLINES:
        del others[name]
    found += [f"others: {text}" for text in more(before.others, others, max(50, reloads // 2))]
    if after.kernel_threads - before.kernel_threads > IDLE:
        found.append(f"kernel threads: {before.kernel_threads} → {after.kernel_threads}")
    return found


# What a reload may leave in memory, on the average of 500. Measured are 0.3 blocks, 50 bytes and 500 bytes of resident
# memory: dictionaries and the like that have not reached their final size, and how C's heap breaks into pieces. The
# bounds leave room for a thousand more of Trio's deadlines, of four blocks each, and for other machines. The
# smallest provider is forty blocks and a kilobyte. Resident memory is the coarse net, for what neither the interpreter
# nor C's heap gives out: a leak in one of these would first fill the holes of it before it showed there.
BLOCKS_A_RELOAD = 10.0
BYTES_A_RELOAD = 400.0
RESIDENT_A_RELOAD = 2_000.0


def growth(before: Count, after: Count, reloads: int) -> list[str]:
    """Tell by how much memory has grown, where that is more than it may."""
    bounds = {"blocks": BLOCKS_A_RELOAD, "allocated": BYTES_A_RELOAD, "resident": RESIDENT_A_RELOAD}
    rates = {name: (getattr(after, name) - getattr(before, name)) / reloads for name in bounds}
    return [f"{name}: {rates[name]:.1f} a reload" for name, bound in bounds.items() if rates[name] > bound]


# --- what is reloaded ---


class Mixture:
    """Configurations of all kinds, and the real things that they tell of."""

    def __init__(self, directory: Path, zookeeper: ZooKeeperServer | None, root: str) -> None:
        self.directory = directory
        self.zookeeper = zookeeper
        self.root = root
        self.main_file = directory / "prometheus.yml"
        for name in ("web", "db"):
            (directory / name).mkdir()
            for number in range(3):
                self.write_targets(name, number, 0)

    def write(self, path: Path, text: str) -> None:
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def write_targets(self, name: str, number: int, value: int) -> None:
        targets = [{"targets": [f"{name}-{number}:{value % 100}", "same:1"], "labels": {"zone": "a"}}]
        self.write(self.directory / name / f"{number}.json", json.dumps(targets))

    def files(self, *patterns: str) -> FileSDConfig:
        return FileSDConfig(tuple([f"{self.directory}/{pattern}" for pattern in patterns]))

    def serverset(self, *paths: str) -> list[DiscovererConfig]:
        if self.zookeeper is None:
            return []
        return [ServersetSDConfig(servers=(self.zookeeper.hosts,), paths=tuple(self.root + path for path in paths))]

    def nerve(self, *paths: str) -> list[DiscovererConfig]:
        if self.zookeeper is None:
            return []
        return [NerveSDConfig(servers=(self.zookeeper.hosts,), paths=tuple(self.root + path for path in paths))]

    async def plant(self) -> None:
        """Create what ZooKeeper discovery finds."""
        if self.zookeeper is None:
            return
        endpoint = {"host": "z", "port": 1}
        member = {"serviceEndpoint": endpoint, "additionalEndpoints": {}, "status": "ALIVE"}
        async with open_tree(self.zookeeper.hosts) as tree:
            for number in range(3):
                await tree.create(f"{self.root}/serverset/member_{number}", json.dumps(member).encode())
                await tree.create(f"{self.root}/nerve/{number}", json.dumps({**endpoint, "name": "z"}).encode())

    def calm(self) -> Configs:
        """Return the configuration at which counts are taken: all that comes to rest is in it."""
        return {
            "always": [StaticConfig((group("0", "a:1"),)), self.files("web/0.json")],
            "files": [self.files("web/*.json", "db/*.json"), self.files("db/1.json")],
            "zookeeper": [*self.serverset("/serverset"), *self.nerve("/nerve")],
            "odd": [Odd("is slow to end"), Odd("talks")],
            "hangs": [Odd("hangs")],
        }

    def configs(self, number: int) -> Configs:
        """Return the configuration of one reload: sets and providers come, stay, change, move and go."""
        found: Configs = {"always": [StaticConfig((group("0", "a:1"),)), self.files("web/0.json")]}
        # Never seen before or after: what is kept of it is kept for ever.
        found[f"new-{number}"] = [StaticConfig((group("0", f"new-{number}:1"),))]
        if number % 2:
            found["odd"] = [Odd("is slow to end", number)]
            found["files"] = [self.files("web/*.json", f"db/{number % 3}.json")]
        if number % 4 == 1:
            found["nothing"] = [self.files("gone/*.json")]
        if number % 10 == 1:
            found["zookeeper"] = [*self.serverset("/serverset"), *self.nerve("/nerve", f"/none-{number % 3}")]
        elif number % 10 == 6:
            found["zookeeper"] = [*self.nerve("/nerve")]
        if number % 3:
            habits: list[Habit] = ["unmakable", "crashes", "crashes later", "says nothing", "hangs", "talks"]
            found["broken"] = [Odd(habits[number // 3 % 6], number % 4)]
        return found

    def document(self, number: int) -> str:
        """Return a configuration as the file that says it."""
        jobs: list[dict[str, object]] = [
            {"job_name": "always", "static_configs": [{"targets": ["a:1"]}]},
            {"job_name": f"written-{number}", "file_sd_configs": [{"files": ["db/*.json"]}]},
        ]
        if self.zookeeper is not None:
            section = [{"servers": [self.zookeeper.hosts], "paths": [f"{self.root}/serverset"]}]
            jobs.append({"job_name": "zookeeper", "serverset_sd_configs": section})
        return json.dumps({"scrape_configs": jobs})


class Process:
    """A manager that is reloaded, and what the process holds because of that."""

    def __init__(self, manager: Manager, mixture: Mixture, others: set[int], each: Callable[[], object]) -> None:
        self.manager = manager
        self.mixture = mixture
        self.reloader = Reloader(mixture.main_file, scrape=manager)
        self.others = others  # sessions that were there before
        self.each = each
        self.heard = -1
        self.news = trio.Event()
        self.number = 0

    async def listen(self) -> None:
        """Be the subscriber that stays."""
        async with self.manager.subscribe(throttle=AT_ONCE, name="stays") as updates:
            async for update in updates:
                assert update.changes is not None
                self.heard = update.revision
                del update
                self.news.set()
                self.news = trio.Event()

    async def visit(self, scope: trio.CancelScope) -> None:
        """Be a subscriber that comes and goes, and meanwhile takes nothing but its first update."""
        with scope:
            async with self.manager.subscribe(throttle=AT_ONCE, name="visits") as updates:
                await updates.receive()
                await trio.sleep_forever()

    async def reload(self, times: int) -> None:
        visits: list[trio.CancelScope] = []
        async with trio.open_nursery() as visitors:
            for _ in range(times):
                self.number += 1
                number = self.number
                if number % 3 == 1:
                    visits.append(trio.CancelScope())
                    visitors.start_soon(self.visit, visits[-1])
                if len(visits) > 2:
                    visits.pop(0).cancel()
                if number % 6 == 0:
                    self.mixture.write_targets("web", number % 3, number)
                if number % 20 == 0:
                    await self.reload_file(number)
                else:
                    restart: Restart = "all" if number % 4 == 0 else "changed"
                    await self.manager.apply_config(self.mixture.configs(number), restart=restart)
                # Without this the next reload comes before anything has been opened; some do.
                if number % 5 == 0:
                    for name in self.manager.snapshot().keys() - {"odd", "broken"}:
                        await self.manager.wait_synced(name)
                self.each()
            visitors.cancel_scope.cancel()

    async def reload_file(self, number: int) -> None:
        if number % 40 == 0:
            self.mixture.write(self.mixture.main_file, "scrape_configs: [{job_name: 1, oops: 2}]")
            with pytest.raises(ConfigError):
                await self.reloader.reload()
        self.mixture.write(self.mixture.main_file, self.mixture.document(number))
        await self.reloader.reload()

    async def settled(self, restart: Restart = "all") -> Count:
        """Put the calm configuration in force, wait until nothing moves any more, and count."""
        calm = self.mixture.calm()
        for _ in range(2):  # what one configuration shows until the next has reported is known for one reload more
            await self.manager.apply_config(calm, restart=restart)
        for name in calm.keys() - {"hangs"}:
            await self.manager.wait_synced(name)
        while self.heard != self.manager.snapshot().revision:
            await self.news.wait()
        statistics = self.manager.statistics()
        assert not any(found.leaving for found in statistics.sets)
        assert [found.name for found in statistics.subscriptions] == ["stays"]
        del statistics
        await trio.testing.wait_all_tasks_blocked()
        return await count(self.mixture.zookeeper, self.others)


async def count(zookeeper: ZooKeeperServer | None, others: set[int]) -> Count:
    sessions = await zookeeper.sessions() if zookeeper is not None else set()
    # What one pass finalizes may have held what only the next one finds.
    for _ in range(3):
        gc.collect()
    own, values, foreign = objects()
    return Count(
        tasks=tasks(),
        threads=threads(),
        descriptors=descriptors(),
        watches=watches(),
        sessions=len(sessions - others),
        own=own,
        values=values,
        others=foreign,
        kernel_threads=len(os.listdir("/proc/self/task")),
        blocks=sys.getallocatedblocks(),
        allocated=c_allocated(),
        resident=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
    )


@asynccontextmanager
async def opened(
    directory: Path, zookeeper: ZooKeeperServer | None, root: str, each: Callable[[], object] = lambda: None
) -> AsyncIterator[Process]:
    mixture = Mixture(directory, zookeeper, root)
    await mixture.plant()
    others = await zookeeper.sessions() if zookeeper is not None else set()
    with trio.fail_after(PATIENCE):
        async with open_manager(backoff=Backoff(0.02, 0.02)) as manager, trio.open_nursery() as nursery:
            process = Process(manager, mixture, others, each)
            nursery.start_soon(process.listen)
            yield process
            nursery.cancel_scope.cancel()


@pytest.fixture
def zookeeper(request: pytest.FixtureRequest) -> ZooKeeperServer | None:
    """The server, where there is one; the reloads go on without it elsewhere."""
    if available() is not None and not os.environ.get("TRIO_SD_REQUIRE_SERVERS"):
        return None
    server: ZooKeeperServer = request.getfixturevalue("shared_zookeeper")
    return server


async def test_1000_reloads_of_all_kinds_leave_nothing(
    tmp_path: Path, zookeeper: ZooKeeperServer | None, zookeeper_root: str
) -> None:
    async with opened(tmp_path, zookeeper, zookeeper_root) as process:
        await process.reload(WARM)
        warm = await process.settled()
        assert warm.watches > 0
        assert warm.sessions == (0 if zookeeper is None else 1)
        await process.reload(RELOADS // 2 - WARM)
        half = await process.settled()
        await process.reload(RELOADS - RELOADS // 2)
        end = await process.settled()
        assert leaks(warm, end, RELOADS - WARM) == []
        assert growth(half, end, RELOADS - RELOADS // 2) == []
        assert process.manager.statistics().reloads > RELOADS
        assert process.reloader.statistics().succeeded == RELOADS // 20
        assert process.reloader.statistics().failed == RELOADS // 40


@needs_zookeeper
async def test_no_session_outlives_its_last_user(
    tmp_path: Path, shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with opened(tmp_path, shared_zookeeper, zookeeper_root) as process:
        manager, mixture = process.manager, process.mixture
        configs: list[Configs] = [
            {"z": mixture.serverset("/serverset")},
            {"z": mixture.nerve("/nerve"), "y": mixture.serverset("/serverset")},
            {},
        ]

        async def cycle() -> None:
            for number, config in enumerate(configs * 2):
                await manager.apply_config(config)
                if number < len(configs):  # the second time round nothing has connected when the next reload comes
                    await manager.wait_synced()
                    expected = 1 if config else 0
                    assert len(await shared_zookeeper.sessions() - process.others) == expected

        await cycle()
        before = await process.settled()
        for _ in range(10):
            await cycle()
        assert leaks(before, await process.settled(), 60) == []


async def test_what_goes_leaves_nothing_with_what_it_shared(
    tmp_path: Path, zookeeper: ZooKeeperServer | None, zookeeper_root: str
) -> None:
    async def server_watches() -> int:
        return await zookeeper.watch_count() if zookeeper is not None else 0

    # What stays keeps the inotify instance and the session open all the time, so that nothing is cleared by their end.
    async with opened(tmp_path, zookeeper, zookeeper_root) as process:
        mixture = process.mixture

        async def cycle(times: int) -> Count:
            for number in range(times):
                guests = [
                    mixture.files("db/*.json", f"web/{number % 3}.json"),
                    mixture.files(f"gone-{number % 5}/*.json"),
                ]
                members = [*mixture.nerve(f"/none-{number % 4}"), *mixture.serverset("/nerve", "/serverset")]
                await process.manager.apply_config(mixture.calm() | {"guests": guests + members}, restart="changed")
                if number % 2:
                    await process.manager.wait_synced("guests")
            return await process.settled("changed")

        await process.settled()
        before, watched = await cycle(10), await server_watches()
        sessions = await zookeeper.sessions() if zookeeper is not None else set()
        assert leaks(before, await cycle(60), 60) == []
        assert await server_watches() == watched
        # Those that others have left behind may expire meanwhile.
        assert zookeeper is None or await zookeeper.sessions() - process.others == sessions - process.others


async def test_what_outstays_its_grace_leaves_nothing_once_it_ends(tmp_path: Path) -> None:
    async with open_manager(grace=0.0, warm_up=0.0) as manager:
        always: Configs = {"always": [StaticConfig((group("0", "a:1"),))]}

        async def cycle(times: int) -> Count:
            release = trio.Event()
            for number in range(times):
                await manager.apply_config({**always, "stuck": [Odd("is stuck", number, release)]})
                await manager.wait_synced()
            await manager.apply_config({})
            assert len(manager.statistics().stuck) >= times
            release.set()
            await trio.testing.wait_all_tasks_blocked()
            assert manager.statistics().stuck == ()
            for _ in range(2):
                await manager.apply_config(always)
            await manager.wait_synced()
            await trio.testing.wait_all_tasks_blocked()
            return await count(None, set())

        before = await cycle(10)
        assert leaks(before, await cycle(100), 100) == []


async def test_a_manager_that_is_closed_leaves_nothing(
    tmp_path: Path, zookeeper: ZooKeeperServer | None, zookeeper_root: str
) -> None:
    async def life(number: int) -> Count:
        directory = tmp_path / str(number)
        directory.mkdir()
        async with opened(directory, zookeeper, f"{zookeeper_root}-{number}") as process:
            others = process.others
            await process.reload(23)  # the last one leaves providers that have not reported
        del process
        return await count(zookeeper, others)

    before = await life(0)
    await life(1)
    after = await life(2)
    assert leaks(before, after, 46) == []
    assert after.own["trio_sd.manager.Manager"] == 0
    assert after.sessions == after.watches == 0


# --- the counts themselves ---


async def test_one_small_thing_that_each_reload_leaves_is_caught(tmp_path: Path) -> None:
    times = 40
    hoard: list[object] = []
    async with trio.open_nursery() as nursery, opened(tmp_path, None, "") as process:

        def provider() -> None:
            hoard.append(copy.copy(next(iter(process.manager._providers.values()))))

        def value() -> None:
            hoard.append(FileSDConfig(("x.json",)))

        def task() -> None:
            nursery.start_soon(trio.sleep_forever)

        def descriptor() -> None:
            hoard.append(os.open("/dev/null", os.O_RDONLY))

        def kilobyte() -> None:
            hoard.append(bytes(1_000))

        def strings() -> None:
            hoard.extend([f"{number} of {len(hoard)}" for number in range(20)])

        kept: list[tuple[tuple[Callable[[], None], ...], tuple[str, ...]]] = [
            (
                (provider, value, task, descriptor),
                (
                    f"own: {times} more trio_sd.provider.Provider",
                    f"values: {times} more trio_sd.discovery.file.config.FileSDConfig",
                    f"tasks: {times} more trio.sleep_forever",
                    f"descriptors: {times} more /dev/null",
                ),
            ),
            ((strings,), ("blocks: 2",)),
            ((kilobyte,), ("allocated: 1",) if c_allocated() else ()),
        ]
        await process.reload(20)
        before = await process.settled()
        for keep, told in kept:
            process.each = lambda keep=keep: [one() for one in keep]  # type: ignore[misc]  # its default is its type
            await process.reload(times)
            after = await process.settled()
            found = [*leaks(before, after, times), *growth(before, after, times)]
            assert [start for start in told if any(text.startswith(start) for text in found)] == list(told), found
            before = after
        nursery.cancel_scope.cancel()
    for kind in hoard:
        if isinstance(kind, int):
            os.close(kind)
