"""The manager against its floors.

* latency from a provider's send to the consumer's receipt, one group changed among many, against what the same hops
  cost on bare Trio channels;
* heap of a one-target group;
* starting and cancelling many providers, against bare nurseries with a channel.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import trio

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.manager import Manager, open_manager
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup

from .report import Row

UNTHROTTLED = Throttle(0, 0)
Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


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
    """Makes the given discoverer; told apart by number."""

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


async def floor_latencies(rounds: int) -> list[float]:
    """Return the seconds that a value takes through a capacity-0 and then a capacity-1 channel."""
    first_send, first = trio.open_memory_channel[float](0)
    second_send, second = trio.open_memory_channel[float](1)
    third_send, third = trio.open_memory_channel[float](0)
    latencies = []

    async def relay() -> None:
        async for value in first:
            await second_send.send(value)

    async def produce() -> None:
        async for _ in third:
            await first_send.send(time.perf_counter())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay)
        nursery.start_soon(produce)
        for _ in range(rounds):
            await third_send.send(0.0)
            sent = await second.receive()
            latencies.append(time.perf_counter() - sent)
        nursery.cancel_scope.cancel()
    return latencies


async def change_latencies(size: int, rounds: int) -> list[float]:
    """Return the seconds from a provider's send of one changed group to the consumer's receipt of the update."""
    feeder = Feeder()
    latencies = []
    async with (
        open_manager({"set": [FeederConfig(feeder)]}, throttle=UNTHROTTLED) as manager,
        manager.subscribe() as updates,
    ):
        await feeder.feed.send([one_target_group(i) for i in range(size)])
        while len((await updates.receive()).snapshot["set"]) < size:
            pass
        gc.collect()
        gc.freeze()
        for i in range(rounds):
            await feeder.feed.send([one_target_group(i * 7919 % size, port=20000 + i)])
            update = await updates.receive()
            latencies.append(time.perf_counter() - feeder.sent)
            assert len(update.changes["set"].updated) == 1
        gc.unfreeze()
    return latencies


async def snapshot_latencies(size: int, rounds: int) -> list[float]:
    """Return the seconds that it takes to get a set's groups in order from the snapshot, after one has changed."""
    feeder = Feeder()
    latencies = []
    async with open_manager({"set": [FeederConfig(feeder)]}) as manager:
        await feeder.feed.send([one_target_group(i) for i in range(size)])
        await manager.wait_synced()
        _ = manager.snapshot()["set"]
        for i in range(rounds):
            revision = manager.snapshot().revision
            await feeder.feed.send([one_target_group(i * 7919 % size, port=20000 + i)])
            while manager.snapshot().revision == revision:
                await trio.lowlevel.checkpoint()
            begin = time.perf_counter()
            groups = manager.snapshot()["set"]
            latencies.append(time.perf_counter() - begin)
            assert len(groups) == size
    return latencies


async def heap_per_group(size: int) -> float:
    """Return the bytes of heap that each of ``size`` one-target groups takes, once it is in the store."""
    feeder = Feeder()
    async with open_manager({"set": [FeederConfig(feeder)]}) as manager:
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await feeder.feed.send([one_target_group(i) for i in range(size)])
        await manager.wait_synced()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return (after - before) / size


async def bare_nurseries(count: int) -> float:
    """Return the seconds for starting and cancelling bare child nurseries, each with a channel and one message."""

    async def child(parent: trio.Nursery, done: trio.MemorySendChannel[None]) -> None:
        send, receive = trio.open_memory_channel[tuple[TargetGroup, ...]](0)

        async def work() -> None:
            await send.send(())
            await trio.sleep_forever()

        with trio.CancelScope():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await receive.receive()
                await done.send(None)
                await receive.receive()

    begin = time.perf_counter()
    done, each = trio.open_memory_channel[None](count)
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(child, nursery, done)
        for _ in range(count):
            await each.receive()
        nursery.cancel_scope.cancel()
    return time.perf_counter() - begin


async def start_and_cancel(count: int) -> float:
    """Return the seconds for opening a manager with that many providers, all synced, and closing it."""
    configs = {f"set-{i}": [BenchConfig(i)] for i in range(count)}
    begin = time.perf_counter()
    async with open_manager(configs) as manager:
        await manager.wait_synced()
    return time.perf_counter() - begin


async def reload_all(count: int) -> float:
    """Return the seconds for a reload that cancels and restarts that many providers, until all have synced."""
    configs = {f"set-{i}": [BenchConfig(i)] for i in range(count)}
    async with open_manager(configs) as manager:
        await manager.wait_synced()
        begin = time.perf_counter()
        await _reload(manager, configs)
        return time.perf_counter() - begin


async def _reload(manager: Manager, configs: dict[str, list[BenchConfig]]) -> None:
    await manager.apply_config(configs)
    await manager.wait_synced()


def run(*, quick: bool) -> list[Row]:
    """Measure, and return one row a figure."""
    rounds = 300 if quick else 2_000
    rows = []
    floor = trio.run(floor_latencies, rounds)
    rows.append(Row.of_seconds("floor: through two bare channels", floor))
    at: dict[int, float] = {}
    for size in (1_000, 10_000, 100_000):
        latencies = trio.run(change_latencies, size, rounds)
        at[size] = statistics.median(latencies)
        rows.append(Row.of_seconds(f"provider → consumer, one of {size:,} groups changed", latencies))
    over_floor = at[100_000] / statistics.median(floor)
    aim = "under 3.8 × (50 µs where the floor is 13 µs)"
    rows.append(Row("cost at 100,000 groups over the floor", f"{over_floor:.2f} ×", aim=aim))
    rows.append(Row("cost at 100,000 groups over cost at 1,000", f"{at[100_000] / at[1_000]:.2f} ×", aim="under 1.5 ×"))
    reading = trio.run(snapshot_latencies, 100_000, 30)
    rows.append(Row.of_seconds("reading all of 100,000 groups in order, after one has changed", reading))
    rows.append(Row("heap of a one-target group", f"{trio.run(heap_per_group, 100_000):.0f} B", aim="at most 500 B"))
    repeats = 3 if quick else 7
    bare, managed, reload_ = [], [], []
    for _ in range(repeats):  # interleaved, so that a busy moment of the machine hits all of them
        bare.append(trio.run(bare_nurseries, 1_000))
        managed.append(trio.run(start_and_cancel, 1_000))
        reload_.append(trio.run(reload_all, 1_000))
    rows.append(Row.of_seconds("floor: 1,000 bare nurseries started and cancelled", bare))
    rows.append(Row.of_seconds("1,000 providers started, synced and cancelled", managed))
    ratio = statistics.median(managed) / statistics.median(bare)
    rows.append(Row("providers over bare nurseries", f"{ratio:.2f} ×", aim="at most 2 ×"))
    rows.append(Row.of_seconds("reload of 1,000 providers, all cancelled, restarted, synced", reload_))
    return rows
