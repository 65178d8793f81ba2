"""Followers of a ZooKeeper tree in processes of their own, which ``benchmarks.zookeeper`` starts and measures.

``python -m benchmarks.zookeeper_clients ours|treecache HOSTS MEMBERS ROOT …`` follows the roots, each of them as a job
of its own, and writes a line of JSON when it has that many members, and one for each change from then on. When its
stdin ends, it closes what it has opened, and tells how long that took.

A process of its own, so that kazoo's import is measured too, and that who writes does not share an interpreter with
who follows. Times of changes are ``time.perf_counter()``, which Linux counts alike in all processes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import trio

from trio_sd.discovery.zookeeper import ServersetSDConfig
from trio_sd.manager import Manager, open_manager
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup


def tell(**facts: float) -> None:
    """Write a line."""
    print(json.dumps(facts), flush=True)


async def ours(hosts: str, members: int, roots: Sequence[str]) -> None:
    """Follow with a manager, as a consumer that holds every group."""
    configs = {root: [ServersetSDConfig(servers=(hosts,), paths=(root,))] for root in roots}
    end = 0.0
    begin = time.perf_counter()
    async with open_manager(configs, throttle=Throttle(0, 0)) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(_consume, manager, members, begin)
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
            await stdin.receive_some()
        nursery.cancel_scope.cancel()
        end = time.perf_counter()
    tell(close=time.perf_counter() - end)


async def _consume(manager: Manager, members: int, begin: float) -> None:
    held: dict[tuple[str, str], TargetGroup] = {}
    complete = False
    async with manager.subscribe() as updates:
        async for update in updates:
            for job, changes in update.changes.items():
                held.update({(job, group.source): group for group in changes.updated})
                for source in changes.removed:
                    del held[job, source]
            if complete:
                tell(at=time.perf_counter(), members=len(held))
            elif len(held) >= members:
                complete = True
                tell(seconds=time.perf_counter() - begin, threads=threading.active_count(), members=len(held))


def treecache(hosts: str, root: str) -> None:
    """Follow with kazoo's recipe."""
    begin = time.perf_counter()
    from kazoo.client import KazooClient
    from kazoo.recipe.cache import TreeCache, TreeEvent

    held: dict[str, bytes] = {}  # also the root, which is no member
    complete = False

    def listen(event: Any) -> None:  # noqa: ANN401 (kazoo has no types)
        nonlocal complete
        if event.event_type == TreeEvent.INITIALIZED:
            complete = True
            tell(seconds=time.perf_counter() - begin, threads=threading.active_count(), members=len(held) - 1)
        elif event.event_data is not None:
            held[event.event_data.path] = event.event_data.data
            if complete:
                tell(at=time.perf_counter(), members=len(held) - 1)

    client = KazooClient(hosts)
    client.start()
    cache = TreeCache(client, root)
    cache.listen(listen)
    cache.start()
    sys.stdin.read()
    end = time.perf_counter()
    cache.close()
    client.stop()
    client.close()
    tell(close=time.perf_counter() - end)


if __name__ == "__main__":
    who, hosts, members, *roots = sys.argv[1:]
    if who == "ours":
        trio.run(ours, hosts, int(members), roots)
    else:
        treecache(hosts, *roots)
