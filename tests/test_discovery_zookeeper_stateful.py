"""Whatever happens to a tree and on the way to it, in any order: once it is quiet, consumers see what is there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from kazoo.exceptions import NoNodeError

from trio_sd.discovery.zookeeper import NerveSDConfig
from trio_sd.discovery.zookeeper.ensemble import Ensemble
from trio_sd.discovery.zookeeper.session import open_session
from trio_sd.durations import Duration
from trio_sd.manager import Manager, open_manager
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle
from trio_sd.targets import ADDRESS_LABEL

from .tcp_proxy import UNKNOWN_BEFORE_3_6, Proxy, open_proxy
from .zookeeper import Tree, ZooKeeperServer, expire, needs_zookeeper, open_tree

pytestmark = needs_zookeeper

PATIENCE: Final = 20.0
TIMEOUT: Final = Duration.of("3s")
REFRESH: Final = Duration.of("150ms")  # so often everything is read again, and what no watch has told of is counted
EXAMPLES: Final = max(6, settings().max_examples // 25)  # each takes a second of real time
JOB: Final = "job"

PATHS: Final = ("", "/a", "/b", "/a/a", "/a/b", "/b/a", "/a/a/a")
GOOD: Final = tuple(json.dumps({"host": f"h{n}", "port": 1}).encode() for n in range(4))
BAD: Final = (b"", b"x", b'{"host": 1}')

Step = tuple[str, str, bytes]
STEPS: Final[st.SearchStrategy[Step]] = st.one_of(
    st.tuples(st.sampled_from(("write", "write", "delete")), st.sampled_from(PATHS), st.sampled_from(GOOD + BAD)),
    st.tuples(
        st.sampled_from(("reset", "cut", "join", "partition", "heal", "expire", "kill", "quiet", "quiet")),
        st.just(""),
        st.just(b""),
    ),
)


@pytest.fixture(scope="module")
def mortal_zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """A server that may be killed."""
    server = ZooKeeperServer(tmp_path_factory.mktemp("mortal"))
    try:
        trio.run(server.start)
        yield server
    finally:
        server.kill()


def address(data: bytes) -> str | None:
    """Return the address that a member's data tell; None if they are no member's."""
    return None if data in BAD else f"{json.loads(data)['host']}:1"


class Case:
    """A tree below ``root``, a way to it, and a consumer at its end."""

    def __init__(
        self,
        server: ZooKeeperServer,
        proxy: Proxy,
        tree: Tree,
        manager: Manager,
        updates: trio.MemoryReceiveChannel[Update],
        root: str,
        last: str,
    ) -> None:
        self.server = server
        self.proxy = proxy
        self.tree = tree
        self.manager = manager
        self.updates = updates
        self.root = root
        self.last = last
        """A znode that is written last when it becomes quiet. Once that is seen, nothing earlier is under way."""
        self.there: dict[str, bytes] = {}
        self.seen: dict[str, str] = {}
        self.once_good: dict[str, set[str | None]] = {}
        """The addresses that a path has had. While its data are bad, one of them may still be shown."""
        self.deleted: set[str] = set()
        """What was deleted since it was last quiet, with all below it. Nothing else may ever go, not for a moment."""
        self.quiets = 0
        self.changed = trio.Event()

    async def look(self) -> None:
        """Take each update at once, and check that nothing goes that nobody has deleted; for ever."""
        async for update in self.updates:
            for changes in update.changes.values():
                self.seen |= {group.source: group.targets[0][ADDRESS_LABEL] for group in changes.updated}
                for source in changes.removed:
                    assert self.was_deleted(source), f"{source} went, and nobody had deleted it"
                    del self.seen[source]
            self.changed.set()
            self.changed = trio.Event()

    def was_deleted(self, path: str) -> bool:
        return any(path == deleted or path.startswith(f"{deleted}/") for deleted in self.deleted)

    async def take(self, step: Step) -> None:
        name, path, data = step
        match name:
            case "write":
                await self.write(self.root + path, data)
            case "delete":
                self.deleted.add(self.root + path)
                with suppress(NoNodeError):
                    await self.tree.delete(self.root + path)
            case "reset":
                self.proxy.reset()
            case "cut":
                self.proxy.refuse()
                self.proxy.reset()
            case "join":
                await self.proxy.accept()
            case "partition":
                self.proxy.partition()
            case "heal":
                self.proxy.heal()
            case "expire":
                await self.expire()
            case "kill":
                await self.server.restart()
            case "quiet":
                await self.quiet()

    async def write(self, path: str, data: bytes) -> None:
        try:
            await self.tree.set(path, data)
        except NoNodeError:
            await self.tree.create(path, data)
        self.once_good.setdefault(path, {None}).add(address(data))

    async def expire(self) -> None:
        ensemble = Ensemble((("127.0.0.1", self.proxy.port),), TIMEOUT.seconds)
        async with self.manager._resources.use(ensemble, lambda: open_session(ensemble)) as session:
            client_id = session._link._client.client_id
        if client_id is not None:
            await expire(self.server, client_id)

    async def quiet(self) -> None:
        """Let everything through, and wait until what is seen is what is there."""
        await self.proxy.accept()
        self.proxy.heal()
        self.quiets += 1
        await self.write(self.last, json.dumps({"host": f"h{self.quiets}", "port": 1}).encode())
        self.there = await self.tree.get_all(self.root) | await self.tree.get_all(self.last)
        with trio.move_on_after(PATIENCE) as scope:
            while not self.agrees():
                await self.changed.wait()
        assert not scope.cancelled_caught, f"seen: {self.seen}, there: {self.there}"
        self.deleted.clear()

    async def refreshed(self) -> None:
        """Wait until everything was read again, twice since some may be under way: watches have told of it all."""
        full_reads = self.counters()["full_reads"]
        with trio.fail_after(PATIENCE):
            while self.counters()["full_reads"] < full_reads + 2:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.02)
        assert self.counters()["mended"] == 0

    def counters(self) -> Mapping[str, int]:
        [provider] = self.manager.statistics().providers
        assert provider.restarts == 0
        return provider.details.counters

    def agrees(self) -> bool:
        if not self.seen.keys() <= self.there.keys():
            return False
        for path, data in self.there.items():
            good = address(data)
            if self.seen.get(path) not in ({good} if good else self.once_good.get(path, {None})):
                return False
        return True


async def carry_out(steps: Sequence[Step], server: ZooKeeperServer, *, old: bool) -> None:
    root = f"/test-{uuid.uuid4().hex}"
    async with open_proxy(server.port) as proxy, open_tree(server.hosts) as tree:
        proxy.unknown = UNKNOWN_BEFORE_3_6 if old else ()
        last = f"{root}-last"
        config = NerveSDConfig(servers=(proxy.hosts,), paths=(root, last), timeout=TIMEOUT, refresh_interval=REFRESH)
        async with (
            open_manager({JOB: [config]}, throttle=Throttle(0, 0)) as manager,
            manager.subscribe() as updates,
            trio.open_nursery() as nursery,
        ):
            case = Case(server, proxy, tree, manager, updates, root, last)
            nursery.start_soon(case.look)
            for step in steps:
                await case.take(step)
            await case.quiet()
            await case.refreshed()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("old", [False, True], ids=["recursive watches", "one-shot watches"])
@given(steps=st.lists(STEPS, min_size=5, max_size=30))
@settings(max_examples=EXAMPLES)
def test_once_it_is_quiet_consumers_see_what_is_there(
    mortal_zookeeper: ZooKeeperServer, old: bool, steps: Sequence[Step]
) -> None:
    trio.run(lambda: carry_out(steps, mortal_zookeeper, old=old))
