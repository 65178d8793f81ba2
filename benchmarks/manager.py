"""The manager: what a change of one group costs on its way from a provider to consumers.

* Latency, one group changed among many, and one change to many subscribers. The floor is what the same hops cost on
  bare Trio channels: from the provider to a relay, and from there to every consumer.
* Allocations of one change. *Kept* is what is there afterwards and was not before, while every earlier state is held
  too: so nothing that the change has allocated for the new state is set off by what it replaces. *At once* is the most
  that is traced during the change, over what was before: temporaries included. The changed group counts in both.
  Python does not count what is allocated and freed in between, so the number of temporaries is not told.
* A burst of changes to a consumer that takes its time.
* Heap of a one-target group.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import trio
import trio.testing

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.manager import open_manager
from trio_sd.snapshots import Changes, Update
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup

from .figures import FLOOR, OURS, Figure, at_most, interleaved, ratio, spent

UNTHROTTLED = Throttle(0, 0)
Updates = trio.MemorySendChannel[Sequence[TargetGroup]]

SLICE = 20  # changes in a row: with fewer, it counts how cold the others have left the processor's caches
BURST_GROUPS = 10_000  # as many as the longest burst changes, so that each of its changes is of another group
NAP = 0.01  # seconds that the slow consumer takes for an update
PATIENCE = 300.0  # seconds for all that is measured on one line, and for a burst


def one_target_group(index: int, port: int = 9100) -> TargetGroup:
    """Return the group of an ordinary exporter: one target, no labels of its own."""
    return TargetGroup(f"zone/service:{index}", [{"__address__": f"10.{index >> 8}.{index & 255}.1:{port}"}])


class Feeder:
    """A discoverer whose updates are handed in from outside, and which notes when it sends."""

    def __init__(self) -> None:
        self.feed, self._inbox = trio.open_memory_channel[Sequence[TargetGroup]](1)
        self.sent = 0.0

    async def run(self, updates: Updates) -> None:
        """Pass on what is fed."""
        async for groups in self._inbox:
            self.sent = time.perf_counter()
            await updates.send(groups)


class Waiter:
    """A discoverer that reports nothing found, and then waits."""

    async def run(self, updates: Updates) -> None:
        """Send an empty full set, then wait."""
        await updates.send(())
        await trio.sleep_forever()


@dataclass(frozen=True)
class BenchConfig(DiscovererConfig):
    """Makes a discoverer that waits; told apart by number."""

    mechanism: ClassVar[str] = "bench"
    number: int

    def discoverer(self, options: DiscovererOptions) -> Waiter:
        """Return a discoverer that waits."""
        return Waiter()


@dataclass(frozen=True)
class FeederConfig(DiscovererConfig):
    """Makes the one feeder that it was given."""

    mechanism: ClassVar[str] = "bench"
    feeder: Feeder

    def discoverer(self, options: DiscovererOptions) -> Feeder:
        """Return the feeder."""
        return self.feeder


class Line:
    """From a feeder of ``size`` groups to consumers that wait, whatever is in between.

    Attributes:
      arrived: when the last consumer took what it was given last.
      taken: what that was.
    """

    def __init__(self, size: int, consumers: int) -> None:
        self.feeder = Feeder()
        self.arrived = 0.0
        self.taken: object = None
        self._size = size
        self._consumers = self._missing = consumers
        self._everybody = trio.Event()
        self._turn = 0

    def take(self, taken: object) -> None:
        """Note that one more consumer has taken something."""
        self._missing -= 1
        if not self._missing:
            self.arrived = time.perf_counter()
            self.taken = taken
            self._everybody.set()

    async def wait(self) -> None:
        """Wait until every consumer has taken something, and begin to count anew."""
        await self._everybody.wait()
        self._missing = self._consumers
        self._everybody = trio.Event()

    async def change(self) -> float:
        """Change one group; return the seconds from the feeder's sending to the last consumer's taking."""
        self._turn += 1
        group = one_target_group(self._turn * 7919 % self._size, port=20_000 + self._turn)
        self.feeder.feed.send_nowait([group])  # so that this task waits by the time the feeder runs, and does nothing
        await self.wait()
        return self.arrived - self.feeder.sent

    @property
    def update(self) -> Update:
        """What the last consumer has taken, of those who subscribe."""
        assert isinstance(self.taken, Update)
        return self.taken

    def look_up(self) -> Changes:
        """Return what has changed, as the last consumer gets to know it."""
        return self.update.changes

    def read(self) -> Sequence[TargetGroup]:
        """Return all groups in order, as the last consumer gets them."""
        return self.update.snapshot["set"]

    async def checked_change(self) -> float:
        """As :meth:`change`, through a manager: what arrives is just that one group."""
        revision = self.update.revision
        seconds = await self.change()
        assert self.update.revision == revision + 1
        assert len(self.update.changes["set"].updated) == 1
        return seconds


@asynccontextmanager
async def bare(consumers: int) -> AsyncIterator[Line]:
    """Run a line of bare channels for the time of the block."""
    line = Line(1, consumers)
    to_relay, relayed = trio.open_memory_channel[Sequence[TargetGroup]](0)
    channels = [trio.open_memory_channel[Sequence[TargetGroup]](1) for _ in range(consumers)]

    async def relay() -> None:
        async for groups in relayed:
            for send, _ in channels:
                send.send_nowait(groups)

    async def consume(receive: trio.MemoryReceiveChannel[Sequence[TargetGroup]]) -> None:
        async for groups in receive:
            line.take(groups)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.feeder.run, to_relay)
            nursery.start_soon(relay)
            for _, receive in channels:
                nursery.start_soon(consume, receive)
            await trio.testing.wait_all_tasks_blocked()
            yield line
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def managed(size: int, consumers: int) -> AsyncIterator[Line]:
    """Run a line through a manager that holds ``size`` groups for the time of the block. All have the first update."""
    line = Line(size, consumers)
    with trio.fail_after(PATIENCE):
        async with (
            open_manager({"set": [FeederConfig(line.feeder)]}, throttle=UNTHROTTLED) as manager,
            trio.open_nursery() as nursery,
        ):

            async def consume() -> None:
                async with manager.subscribe() as updates:
                    async for update in updates:
                        line.take(update)

            await line.feeder.feed.send([one_target_group(index) for index in range(size)])
            await manager.wait_synced()
            for _ in range(consumers):
                nursery.start_soon(consume)
            await line.wait()
            assert line.update.snapshot.group_count("set") == size
            await trio.testing.wait_all_tasks_blocked()
            yield line
            nursery.cancel_scope.cancel()


@contextmanager
def frozen() -> Iterator[None]:
    """Keep what is there out of garbage collections for the time of the block.

    A collection goes through all groups, whatever changes. That is the collector's cost and not that of a change, and a
    daemon with so many groups freezes them, too.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def traced() -> Iterator[None]:
    """Trace what is allocated for the time of the block."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def in_slices(
    rounds: int, contenders: Mapping[str, Callable[[], Awaitable[float]]]
) -> Mapping[str, Sequence[float]]:
    """Measure contenders by turns of some changes in a row; return all samples by name."""
    samples: dict[str, list[float]] = {who: [] for who in contenders}

    async def measure_slice(who: str) -> float:
        samples[who] += [await contenders[who]() for _ in range(SLICE)]
        return sum(samples[who][-SLICE:])

    await interleaved(rounds // SLICE, {who: partial(measure_slice, who) for who in contenders})
    return samples


@dataclass(frozen=True)
class Seconds:
    """How long one change among many groups takes.

    Attributes:
      floor: the way to the consumer, on bare channels.
      ours: the same through the manager, by number of groups.
      looking: until a consumer has looked up what has changed.
      reading: until a consumer has all groups in order.
    """

    floor: Sequence[float]
    ours: Mapping[int, Sequence[float]]
    looking: Mapping[int, Sequence[float]]
    reading: Mapping[int, Sequence[float]]


async def one_changed(sizes: Sequence[int], rounds: int) -> Seconds:
    """Measure all sizes and the floor by turns."""
    async with AsyncExitStack() as stack:
        floor = await stack.enter_async_context(bare(1))
        lines = {size: await stack.enter_async_context(managed(size, 1)) for size in sizes}
        with frozen():
            contenders = {FLOOR: floor.change, **{str(size): line.checked_change for size, line in lines.items()}}
            found = await in_slices(rounds, contenders)
            looking: dict[int, list[float]] = {size: [] for size in sizes}
            reading: dict[int, list[float]] = {size: [] for size in sizes}
            for size, line in lines.items():
                line.read()  # sorts them all; from then on they are put right
                for _ in range(rounds // 10):
                    await line.change()
                    looking[size].append(spent(line.look_up))
                    reading[size].append(spent(line.read))
                assert len(line.read()) == size
    return Seconds(found[FLOOR], {size: found[str(size)] for size in sizes}, looking, reading)


async def to_subscribers(count: int, rounds: int) -> Mapping[str, Sequence[float]]:
    """Return the seconds until the last of that many subscribers has a change: ours, and the floor."""
    async with bare(count) as floor, managed(1_000, count) as ours:
        with frozen():
            return await in_slices(rounds, {FLOOR: floor.change, OURS: ours.checked_change})


@dataclass(frozen=True)
class Allocated:
    """What each change has allocated; see the module.

    Attributes:
      blocks: kept.
      kept: bytes of them.
      at_once: bytes.
    """

    blocks: Sequence[int]
    kept: Sequence[int]
    at_once: Sequence[int]


async def allocations(size: int, rounds: int) -> Allocated:
    """Measure what one change among ``size`` groups allocates."""
    held: list[object] = [None] * rounds
    blocks, kept, at_once = ([0] * rounds for _ in range(3))
    async with managed(size, 1) as line:
        with frozen(), traced():
            for turn in range(rounds):
                tracemalloc.reset_peak()
                bytes_before, _ = tracemalloc.get_traced_memory()
                blocks_before = sys.getallocatedblocks()
                await line.change()
                held[turn] = line.taken
                blocks[turn] = sys.getallocatedblocks() - blocks_before
                now, peak = tracemalloc.get_traced_memory()
                kept[turn], at_once[turn] = now - bytes_before, peak - bytes_before
    return Allocated(blocks, kept, at_once)


@dataclass(frozen=True)
class Burst:
    """What a slow consumer has of a burst.

    Attributes:
      updates: that it has got, the last state included.
      lasted: seconds from the first change to the last.
      lag: seconds from the last change to the last state at the consumer.
      held: bytes at the most, over what was before the burst. 0 if they were not traced.
    """

    updates: int
    lasted: float
    lag: float
    held: int


async def burst(changes: int) -> Burst:
    """Make that many changes without a pause, for a consumer that rests before it takes the next update."""
    feeder = Feeder()
    newest = {index: one_target_group(index) for index in range(BURST_GROUPS)}

    async def feed() -> None:
        for index in range(changes):
            newest[index] = one_target_group(index, port=20_000)
            await feeder.feed.send([newest[index]])

    async with (
        open_manager({"set": [FeederConfig(feeder)]}, throttle=UNTHROTTLED) as manager,
        trio.open_nursery() as nursery,
    ):
        await feeder.feed.send(tuple(newest.values()))
        await manager.wait_synced()
        async with manager.subscribe() as updates:
            update = await updates.receive()
            last = update.revision + changes
            taken = 0
            gc.collect()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            began = time.perf_counter()
            nursery.start_soon(feed)
            with trio.fail_after(PATIENCE):
                while update.revision < last:
                    await trio.sleep(NAP)
                    update = await updates.receive()
                    taken += 1
            arrived = time.perf_counter()
            _, peak = tracemalloc.get_traced_memory()
            assert set(update.snapshot["set"]) == set(newest.values())
    return Burst(taken, feeder.sent - began, arrived - feeder.sent, peak - before)


async def heap_per_group(size: int) -> float:
    """Return the bytes of heap that each of ``size`` one-target groups takes, once it is in the store."""
    feeder = Feeder()
    async with open_manager({"set": [FeederConfig(feeder)]}) as manager:
        gc.collect()
        with traced():
            before, _ = tracemalloc.get_traced_memory()
            await feeder.feed.send([one_target_group(i) for i in range(size)])
            await manager.wait_synced()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        assert manager.snapshot().group_count("set") == size
    return (after - before) / size


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure as it is there."""
    sizes = (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    yield from _latency(sizes, rounds=500 if quick else 5_000)
    yield from _allocations(sizes)
    for changes in (1_000, 10_000):
        yield from _burst(changes, repeats=2 if quick else 5)
    yield from _subscribers((1, 10, 1_000), rounds=60 if quick else 500)
    for size in (10_000, 100_000):
        yield Figure.of("heap of a one-target group", trio.run(heap_per_group, size), "B", size=size, aim=at_most(500))


def _latency(sizes: Sequence[int], rounds: int) -> Iterator[Figure]:
    what = "one group changed: provider → consumer"
    seconds = trio.run(one_changed, sizes, rounds)
    yield (floor := Figure.of(what, seconds.floor, who=FLOOR, note="two hops on bare channels"))
    ours = {size: Figure.of(what, seconds.ours[size], size=size) for size in sizes}
    yield from ours.values()
    for figure in ours.values():
        yield ratio("one group changed: over the floor", figure, floor, aim=at_most(2))
    yield ratio("one group changed: over that among 1,000", ours[100_000], ours[1_000], aim=at_most(1.5))
    for size in sizes:
        yield Figure.of("its changes looked up in the update", seconds.looking[size], size=size)
    for size in sizes:
        yield Figure.of("all groups read in order, after one changed", seconds.reading[size], size=size)


def _allocations(sizes: Sequence[int]) -> Iterator[Figure]:
    found = {size: trio.run(allocations, size, 100) for size in sizes}
    for size in sizes:
        yield Figure.of("one group changed: blocks kept", found[size].blocks, "", size=size)
    for size in sizes:
        yield Figure.of("one group changed: bytes kept", found[size].kept, "B", size=size)
    for size in sizes:
        yield Figure.of("one group changed: bytes at once", found[size].at_once, "B", size=size)


def _burst(changes: int, repeats: int) -> Iterator[Figure]:
    bursts = [trio.run(burst, changes) for _ in range(repeats)]
    with traced():  # which makes all slower, so the times are of the others
        held = [trio.run(burst, changes).held for _ in range(2)]
    slow = f"the consumer takes an update every {NAP * 1000:g} ms"
    yield Figure.of("burst: changes taken in", [changes / each.lasted for each in bursts], "/s", size=changes)
    yield Figure.of("burst: updates to a slow consumer", [b.updates for b in bursts], "", size=changes, note=slow)
    yield Figure.of("burst: its end → last state", [each.lag for each in bursts], size=changes, note=slow)
    yield Figure.of("burst: held meanwhile", held, "B", size=changes, note=f"{slow}; traced, which slows all of it")


def _subscribers(counts: Sequence[int], rounds: int) -> Iterator[Figure]:
    what = "one change → the last subscriber"
    figures: dict[tuple[str, int], Figure] = {}
    for count in counts:
        for who, seconds in trio.run(to_subscribers, count, rounds).items():
            figures[who, count] = figure = Figure.of(what, seconds, who=who, size=count)
            yield figure
    for count in counts:
        yield ratio(f"{what}: over the floor", figures[OURS, count], figures[FLOOR, count], aim=at_most(2))
    few, many = min(counts), max(counts)
    for who in (FLOOR, OURS):
        each = [(seconds - figures[who, few].median) / (many - few) for seconds in figures[who, many].samples]
        yield Figure.of("one change: a subscriber more", each, who=who, size=many)
