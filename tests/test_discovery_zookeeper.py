"""ZooKeeper discovery against real servers: what consumers see is what is in ZooKeeper, whatever happens on the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_sd.discoverer import DiscovererOptions, DiscovererStatistics
from trio_sd.discovery.zookeeper import NerveSDConfig
from trio_sd.discovery.zookeeper.ensemble import DigestAuth, Ensemble
from trio_sd.discovery.zookeeper.protocol import remove_watches
from trio_sd.discovery.zookeeper.session import open_session
from trio_sd.durations import Duration
from trio_sd.errors import DiscoveryError
from trio_sd.manager import Manager, open_manager
from trio_sd.resources import Resources
from trio_sd.secrets import Secret
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle
from trio_sd.targets import ADDRESS_LABEL, TargetGroup
from trio_sd.testing import check_discoverer
from trio_sd.tls import TLSConfig

from .tcp_proxy import UNKNOWN_BEFORE_3_6, Proxy, open_proxy
from .zookeeper import (
    Certificates,
    Tree,
    ZooKeeperServer,
    needs_zookeeper,
    old_class_path,
    open_tree,
    running_ensemble,
    running_zookeeper,
)

pytestmark = needs_zookeeper

PATIENCE = 20.0
SOON = 1.0  # what may pass between the return of a connection and the truth
JOB = "job"

# So often everything is read again in these tests: what no watch has told of is found, and counted, while they run.
REFRESH = Duration.of("150ms")
# Where that would disturb: full reads are counted, or a full read is most of the work.
NO_REFRESH = Duration.of("5m")


def member(host: str, port: int = 1) -> bytes:
    """Return the data of a member at ``host:1``."""
    return json.dumps({"host": host, "port": port, "name": host}).encode()


def config(hosts: str, *paths: str, refresh_interval: Duration = REFRESH, **options: Any) -> NerveSDConfig:
    return NerveSDConfig(servers=(hosts,), paths=paths, refresh_interval=refresh_interval, **options)


async def recursive_watches(server: ZooKeeperServer) -> int:
    """Return how many watches there are; mntr would count each of these twice."""
    return int((await server.four_letter("wchs")).rpartition("Total watches:")[2])


class View:
    """What a consumer sees that takes each update at once: address by source, and what happened on the way.

    It never looks away, unless told to: what is gone for a moment only would be missed.
    """

    def __init__(self, manager: Manager, updates: trio.MemoryReceiveChannel[Update]) -> None:
        self.manager = manager
        self._updates = updates
        self._taken = trio.Event()
        self._looking = trio.Event()
        self._looking.set()
        self.addresses: dict[str, str] = {}
        self.sizes: list[int] = []
        """How many targets there were after each update."""
        self.removed: list[str] = []
        """The sources that updates have removed, in that order, also where they came back."""

    async def look(self) -> None:
        """Take one update after the other; for ever."""
        while True:
            await self._looking.wait()
            update = await self._updates.receive()
            for changes in update.changes.values():
                for group in changes.updated:
                    self.addresses[group.source] = group.targets[0][ADDRESS_LABEL]
                for source in changes.removed:
                    del self.addresses[source]
                self.removed += changes.removed
            assert self.addresses.keys() == {group.source for group in update.snapshot[JOB]}
            self.sizes.append(len(self.addresses))
            self._taken.set()
            self._taken = trio.Event()

    def look_away(self) -> None:
        """Take no update, but for one that may be on its way."""
        self._looking = trio.Event()

    def look_again(self) -> None:
        """Take updates again."""
        self._looking.set()

    async def next(self) -> None:
        """Wait for one more update."""
        await self._taken.wait()

    async def until(self, expected: Mapping[str, str], patience: float = PATIENCE) -> None:
        """Wait until exactly the ``expected`` targets are seen."""
        with trio.move_on_after(patience):
            while self.addresses != expected:
                await self.next()
        differ = {key: (self.addresses.get(key), expected.get(key)) for key in self.addresses.keys() | expected.keys()}
        differ = dict([item for item in differ.items() if item[1][0] != item[1][1]][:10])
        assert self.addresses == expected, f"after {patience} s (seen, expected): {differ}"

    async def until_soon(self, expected: Mapping[str, str]) -> None:
        """Wait until exactly the ``expected`` targets are seen; it must not take long while there is a connection."""
        with trio.fail_after(PATIENCE):
            while self.addresses != expected:
                counters = (await self.until_details(errors=None)).counters
                connections = counters["session_connections"]
                with trio.move_on_after(SOON):
                    while self.addresses != expected:
                        await self.next()
                lost = any("not connected" in error for error in self.details().errors)
                if not lost and self.details().counters["session_connections"] == connections:
                    await self.until(expected, 0)

    async def until_refreshed(self) -> None:
        """Wait until everything was read again, twice since some may be under way: watches have told of it all."""
        full_reads = self.details().counters["full_reads"]
        with trio.fail_after(PATIENCE):
            while self.details().counters["full_reads"] < full_reads + 2:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.02)
        assert self.details().counters["mended"] == 0

    def details(self) -> DiscovererStatistics:
        """Return what the discoverer tells of itself."""
        [provider] = self.manager.statistics().providers
        return provider.details

    async def until_details(self, *, errors: str | None = "", notes: str = "", **counters: int) -> DiscovererStatistics:
        """Wait until the discoverer tells these texts and figures; nothing says when, so look from time to time.

        No ``errors`` are to be told unless some are given; with None, only a lack of a connection is none of them.
        """
        with trio.move_on_after(PATIENCE):
            while True:
                details = self.details()
                told = " ".join(details.errors)
                fits = "not connected" not in told if errors is None else errors in told and bool(errors) == bool(told)
                if fits and notes in " ".join(details.notes) and counters.items() <= details.counters.items():
                    return details
                await trio.sleep(0.02)
        raise AssertionError(f"{self.details()}, expected {errors=} {notes=} {counters=}")


@asynccontextmanager
async def following(*configs: NerveSDConfig) -> AsyncIterator[View]:
    """Follow what ``configs`` find, in one job."""
    with trio.fail_after(2 * PATIENCE):
        async with (
            open_manager({JOB: configs}, throttle=Throttle(0, 0)) as manager,
            manager.subscribe() as updates,
            trio.open_nursery() as nursery,
        ):
            view = View(manager, updates)
            nursery.start_soon(view.look)
            yield view
            nursery.cancel_scope.cancel()


async def until_ended(server: ZooKeeperServer, session: int) -> None:
    """Wait until the server has ended a session; it tells nobody."""
    with trio.fail_after(PATIENCE):
        while session in await server.sessions():  # noqa: ASYNC110 (another process, which has no event)
            await trio.sleep(0.02)


@pytest.fixture(params=["recursive watches", "one-shot watches"])
async def proxy(request: pytest.FixtureRequest, shared_zookeeper: ZooKeeperServer) -> AsyncIterator[Proxy]:
    """A way to the server that can be cut; in one case the server knows nothing of ZooKeeper 3.6."""
    async with open_proxy(shared_zookeeper.port) as proxy:
        if request.param == "one-shot watches":
            proxy.unknown = UNKNOWN_BEFORE_3_6
        yield proxy


@pytest.fixture
async def tree(shared_zookeeper: ZooKeeperServer) -> AsyncIterator[Tree]:
    async with open_tree(shared_zookeeper.hosts) as tree:
        yield tree


async def test_every_change_is_seen(proxy: Proxy, tree: Tree, zookeeper_root: str) -> None:
    root = zookeeper_root
    await tree.create(root)
    await tree.create(f"{root}/m1", member("h1"))
    async with following(config(proxy.hosts, root)) as view:
        await view.until({f"{root}/m1": "h1:1"})
        await tree.create(f"{root}/m2", member("h2"), ephemeral=True)
        await view.until({f"{root}/m1": "h1:1", f"{root}/m2": "h2:1"})
        await tree.set(f"{root}/m2", member("h3"))
        await view.until({f"{root}/m1": "h1:1", f"{root}/m2": "h3:1"})
        await tree.set(f"{root}/m2", member("h4"))  # a one-shot watch was set again
        await view.until({f"{root}/m1": "h1:1", f"{root}/m2": "h4:1"})
        await tree.create(f"{root}/m1/sub/deep", member("h5"))
        await view.until({f"{root}/m1": "h1:1", f"{root}/m2": "h4:1", f"{root}/m1/sub/deep": "h5:1"})
        await tree.create(f"{root}/m1/sub/deep/more", member("h6"))
        await tree.delete(f"{root}/m2")
        await view.until({f"{root}/m1": "h1:1", f"{root}/m1/sub/deep": "h5:1", f"{root}/m1/sub/deep/more": "h6:1"})
        await tree.set(root, member("parent"))
        await tree.delete(f"{root}/m1")
        await view.until({root: "parent:1"})
        assert view.details().errors == ()
        assert sorted(view.removed) == [f"{root}/{path}" for path in ("m1", "m1/sub/deep", "m1/sub/deep/more", "m2")]
        await view.until_refreshed()


async def test_the_kind_of_watches_is_chosen_and_told(proxy: Proxy, tree: Tree, zookeeper_root: str) -> None:
    await tree.create(f"{zookeeper_root}/m1", member("h1"))
    async with following(config(proxy.hosts, zookeeper_root)) as view:
        await view.until({f"{zookeeper_root}/m1": "h1:1"})
        details = view.details()
        old = bool(proxy.unknown)
        assert details.counters["recursive_watches"] == (not old)
        assert details.notes == (
            ("the server has no recursive watches; each znode is watched by itself",) if old else ()
        )


async def test_a_server_that_hangs_up_on_new_operations_is_followed(
    shared_zookeeper: ZooKeeperServer, tree: Tree, zookeeper_root: str
) -> None:
    await tree.create_many({f"{zookeeper_root}/{n}": member(f"h{n}") for n in range(20)})
    async with open_proxy(shared_zookeeper.port) as proxy:
        for dropped in ({106}, {22}, {22, 106}):
            proxy.dropped = dropped
            async with following(config(proxy.hosts, zookeeper_root)) as view:
                await view.until({f"{zookeeper_root}/{n}": f"h{n}:1" for n in range(20)})


async def test_one_watch_a_path_and_none_when_it_is_over(tmp_path: Path) -> None:
    async with running_zookeeper(tmp_path) as server:
        async with open_tree(server.hosts) as tree:
            await tree.create_many({f"/{top}/{n}": member(f"h{n}") for n in range(100) for top in "ab"})
        async with open_manager(throttle=Throttle(0, 0)) as manager:
            both = (
                config(server.hosts, "/a", "/b"),
                replace(config(server.hosts, "/a"), refresh_interval=Duration(60_000)),
            )
            await manager.apply_config({JOB: both})
            await manager.wait_synced()
            assert await recursive_watches(server) == 2
            assert len(await server.sessions()) == 1
            await manager.apply_config({JOB: both[1:]}, restart="changed")
            assert await recursive_watches(server) == 1  # /a is still followed
        assert await recursive_watches(server) == 0
        assert len(await server.sessions()) == 0


async def test_an_absent_root_is_an_empty_result_and_seen_when_it_comes(
    proxy: Proxy, tree: Tree, zookeeper_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = zookeeper_root
    async with following(config(proxy.hosts, f"{root}/a/b", refresh_interval=NO_REFRESH)) as view:
        await view.manager.wait_synced()
        assert view.details().notes[0] == f'znode "{root}/a/b" does not exist'
        for _ in range(3):  # created, deleted, created again
            await tree.create(f"{root}/a/b/m", member("h"))
            await view.until({f"{root}/a/b/m": "h:1"}, SOON)
            await tree.delete(root)
            await view.until({}, SOON)
        assert view.details().counters["full_reads"] == 1  # all of it by watches
    messages = [record.message for record in caplog.records]
    for told in (f'znode "{root}/a/b" does not exist', f'no longer: znode "{root}/a/b" does not exist'):
        assert any(message.endswith(told) for message in messages)


async def test_nothing_goes_when_a_connection_is_lost_and_one_update_brings_the_truth(
    proxy: Proxy, tree: Tree, zookeeper_root: str
) -> None:
    root = zookeeper_root
    nodes = {f"{root}/{n}": member(f"h{n}") for n in range(50)}
    await tree.create_many(nodes)
    expected = {path: f"h{n}:1" for n, path in enumerate(nodes)}
    async with following(config(proxy.hosts, root)) as view:
        await view.until(expected)
        deleted = []
        for round_ in range(3):
            proxy.refuse()
            proxy.reset()
            await view.until_details(errors=f"not connected to zookeeper {proxy.hosts}: ")
            changed = {f"{root}/{n}": member(f"r{round_}") for n in range(round_, 10)}
            await tree.set_many(changed)
            await tree.delete(f"{root}/{49 - round_}")
            await tree.create(f"{root}/new{round_}", member("new"))
            expected |= dict.fromkeys(changed, f"r{round_}:1") | {f"{root}/new{round_}": "new:1"}
            del expected[f"{root}/{49 - round_}"]
            updates = len(view.sizes)
            await proxy.accept()
            await view.until(expected, SOON)
            assert len(view.sizes) == updates + 1
            deleted.append(f"{root}/{49 - round_}")
            assert view.removed == deleted
        await view.until_refreshed()


async def test_a_partition_that_heals_before_and_after_the_session_expires(
    shared_zookeeper: ZooKeeperServer, proxy: Proxy, tree: Tree, zookeeper_root: str
) -> None:
    root = zookeeper_root
    await tree.create(f"{root}/m", member("h0"))
    others = await shared_zookeeper.sessions()
    async with following(config(proxy.hosts, root, timeout=Duration.of("1s"))) as view:
        await view.until({f"{root}/m": "h0:1"})
        [session] = await shared_zookeeper.sessions() - others
        proxy.partition()
        await tree.set(f"{root}/m", member("h1"))
        proxy.heal()
        await view.until({f"{root}/m": "h1:1"}, SOON)
        proxy.partition()
        await tree.set(f"{root}/m", member("h2"))
        await view.until_details(errors="not connected")
        await until_ended(shared_zookeeper, session)
        proxy.heal()
        await view.until_soon({f"{root}/m": "h2:1"})
        await view.until_details(session_expirations=1)
        await tree.set(f"{root}/m", member("h3"))  # the new session has watches, too
        await view.until({f"{root}/m": "h3:1"}, SOON)
        assert view.removed == []
        await view.until_refreshed()


async def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    async with running_zookeeper(tmp_path) as server, open_tree(server.hosts) as tree:
        await tree.create_many({f"/{n}": member(f"h{n}") for n in range(10)})
        expected = {f"/{n}": f"h{n}:1" for n in range(10)}
        async with following(config(server.hosts, "/")) as view:
            await view.until(expected)
            for n in range(2):
                server.kill()
                await view.until_details(errors="not connected")
                await server.start()
                await tree.set(f"/{n}", member("back"))  # found by a full read, or told by a watch
                await view.until_soon(expected | {f"/{n}": "back:1"})
                await tree.set(f"/{n}", member("changed"))  # told by a watch
                expected[f"/{n}"] = "changed:1"
                await view.until_soon(expected)
            assert view.removed == []
            await view.until_refreshed()


async def lose_everything(server: ZooKeeperServer) -> None:
    """Kill the server, and start it with no data."""
    server.kill()
    shutil.rmtree(server.directory / "data")
    (server.directory / "data").mkdir()
    await server.start()


async def test_a_server_that_lost_its_data_and_got_others_in_the_same_transactions(tmp_path: Path) -> None:
    """Transactions are counted from the beginning again: their numbers say nothing about data from before."""

    async def fill(address: str) -> int:
        async with open_tree(server.hosts) as tree:
            await tree.create("/r", b"")
            await tree.create("/r/m", member(address))
            for n in range(20):  # so that the server has seen as much as any client
                await tree.create(f"/other{n}")
            _, stat = await trio.to_thread.run_sync(tree._client.get, "/r/m")
            return int(stat.mzxid)

    async with running_zookeeper(tmp_path) as server, open_proxy(server.port) as proxy:
        before = await fill("before")
        async with following(config(proxy.hosts, "/r", timeout=Duration.of("1s"))) as view:
            await view.until({"/r/m": "before:1"})
            proxy.refuse()
            await lose_everything(server)
            assert await fill("after") == before
            for n in range(20):
                async with open_tree(server.hosts) as tree:
                    await tree.create(f"/more{n}")
            await proxy.accept()
            await view.until_soon({"/r/m": "after:1"})
            assert view.removed == []
            async with open_tree(server.hosts) as tree:
                await tree.set("/r/m", member("changed"))
            await view.until({"/r/m": "changed:1"}, SOON)


async def test_a_server_that_lost_its_data_and_has_seen_less_than_its_clients(tmp_path: Path) -> None:
    """Such a server refuses them, without a reason, until they come as new ones."""
    async with running_zookeeper(tmp_path) as server:
        async with open_tree(server.hosts) as tree:
            for n in range(50):
                await tree.create(f"/r/{n}", member(f"h{n}"))
        async with following(config(server.hosts, "/r", timeout=Duration.of("1s"))) as view:
            await view.until({f"/r/{n}": f"h{n}:1" for n in range(50)})
            await lose_everything(server)
            async with open_tree(server.hosts) as tree:
                await tree.create("/r/one", member("one"))
                # Two timeouts of one second, the longest pause between two tries, and what is granted anyhow.
                await view.until({"/r/one": "one:1"}, 2 + SOON)
                await view.until_details(session_expirations=1)
                await tree.set("/r/one", member("changed"))
                await view.until({"/r/one": "changed:1"}, SOON)


async def test_paths_that_are_too_long_for_many_reads_in_one_request(
    shared_zookeeper: ZooKeeperServer, tree: Tree, zookeeper_root: str
) -> None:
    """500 of them are more than the megabyte at which a server hangs up on a request."""
    parent = zookeeper_root + f"/{'x' * 240}" * 8
    nodes = {f"{parent}/{n:x>240}": member(f"h{n}") for n in range(1_200)}
    assert 500 * len(min(nodes)) > 1 << 20
    await tree.create_many(nodes)
    async with following(config(shared_zookeeper.hosts, zookeeper_root, refresh_interval=NO_REFRESH)) as view:
        await view.until({path: f"h{n}:1" for n, path in enumerate(nodes)})
        await view.until_details(session_connections=1, full_reads=1, recursive_watches=1)


async def test_what_becomes_of_a_connection_is_logged(
    shared_zookeeper: ZooKeeperServer, proxy: Proxy, tree: Tree, zookeeper_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_sd")
    root = zookeeper_root
    await tree.create(f"{root}/m", member("h"))
    others = await shared_zookeeper.sessions()
    name = f"zookeeper {proxy.hosts}"
    came, lost = (logging.INFO, f"connected to {name}, "), (logging.WARNING, f"lost the connection to {name}; ")
    expired = (logging.WARNING, f"the session with {name} has expired")
    starts = (came[1], lost[1], expired[1])

    def told() -> list[tuple[int, str]]:
        messages = [(record.levelno, record.getMessage()) for record in caplog.records]
        known = [(level, start) for level, message in messages for start in starts if message.startswith(start)]
        return [entry for n, entry in enumerate(known) if n == 0 or known[n - 1] != entry]  # why may be told anew

    async with following(config(proxy.hosts, root, timeout=Duration.of("1s"))) as view:
        await view.until({f"{root}/m": "h:1"})
        begun = [came, lost] if proxy.unknown else []  # such a server hangs up on what it does not know
        assert told() == [*begun, came]
        [session] = await shared_zookeeper.sessions() - others
        proxy.reset()
        await view.until_details(errors=None, session_connections=2 + len(begun) // 2)
        assert told() == [*begun, came, lost, came]
        proxy.refuse()
        proxy.reset()
        await until_ended(shared_zookeeper, session)
        await proxy.accept()
        await view.until_details(session_expirations=1, session_connections=3 + len(begun) // 2)
        assert told() == [*begun, came, lost, came, lost, expired, came]
    assert not any("no connection yet" in record.getMessage() for record in caplog.records)


async def test_a_server_that_is_absent_from_the_start_is_told_once(
    proxy: Proxy, tree: Tree, zookeeper_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_sd")
    await tree.create(f"{zookeeper_root}/m", member("h"))
    proxy.refuse()
    async with following(config(proxy.hosts, zookeeper_root)) as view:
        await view.until_details(errors=f"not connected to zookeeper {proxy.hosts}: ")
        await trio.sleep(1.5)  # some tries more, none of which is told
        told = [record for record in caplog.records if record.getMessage().startswith("no connection yet to ")]
        assert [record.levelno for record in told] == [logging.WARNING]
        assert told[0].getMessage().startswith(f"no connection yet to zookeeper {proxy.hosts}; ")
        assert "refused" in told[0].getMessage()
        assert not any("lost the connection" in record.getMessage() for record in caplog.records)
        await proxy.accept()
        await view.until_soon({f"{zookeeper_root}/m": "h:1"})
    assert len([record for record in caplog.records if record.getMessage().startswith("no connection yet to ")]) == 1


async def test_failover_in_an_ensemble(tmp_path: Path) -> None:
    async with running_ensemble(tmp_path) as ensemble, open_tree(ensemble.hosts) as tree:
        await tree.create_many({f"/r/{n}": member(f"h{n}") for n in range(10)})
        expected = {f"/r/{n}": f"h{n}:1" for n in range(10)}
        async with following(config(ensemble.hosts, "/r")) as view:
            await view.until(expected)
            for number, server in enumerate(ensemble.servers):
                server.kill()
                await tree.set("/r/0", member(f"without{number}"))
                expected["/r/0"] = f"without{number}:1"
                await view.until_soon(expected)
                await ensemble.start()
            assert view.removed == []
            await view.until_refreshed()


async def test_a_burst_of_changes_and_a_slow_consumer(proxy: Proxy, tree: Tree, zookeeper_root: str) -> None:
    root = zookeeper_root
    await tree.create(root)
    async with following(config(proxy.hosts, root)) as view:
        await view.manager.wait_synced()
        # One-shot watches need a read for each event: 10,000 take half a minute through this proxy, which looks at each
        # packet, so here they are fewer.
        nodes = {f"{root}/{n}": member(f"a{n}") for n in range(10_000 if not proxy.unknown else 1_000)}
        view.look_away()
        await tree.create_many(nodes)
        await tree.set_many({path: member(f"b{n}") for n, path in enumerate(nodes)})
        view.look_again()
        await view.until({path: f"b{n}:1" for n, path in enumerate(nodes)})
        assert view.removed == []
        view.look_away()
        await tree.delete(root)
        view.look_again()
        await view.until({})
        await view.until_refreshed()


async def test_large_znodes_and_deep_trees(proxy: Proxy, tree: Tree, zookeeper_root: str) -> None:
    root = zookeeper_root
    deep = root + "".join(f"/{level}" for level in range(50))
    await tree.create(deep, member("deep"))
    large = json.dumps({"host": "large", "port": 1, "padding": "x" * 1_000_000}).encode()
    for n in range(5):
        await tree.create(f"{root}/large{n}", large)
    expected = {deep: "deep:1", **{f"{root}/large{n}": "large:1" for n in range(5)}}
    async with following(config(proxy.hosts, root)) as view:
        await view.until(expected)
        await tree.set(deep, member("deeper"))
        await view.until(expected | {deep: "deeper:1"}, SOON)


async def test_a_bad_payload_keeps_what_was_good_and_leaves_out_what_is_new(
    shared_zookeeper: ZooKeeperServer, tree: Tree, zookeeper_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = zookeeper_root
    await tree.create(f"{root}/good", member("good"))
    await tree.create(f"{root}/never", b"not json")
    async with following(config(shared_zookeeper.hosts, root)) as view:
        with caplog.at_level(logging.WARNING):
            await view.until({f"{root}/good": "good:1"})
            details = await view.until_details(bad_members=1, stale_members=0)
            assert f'znode "{root}/never": ' in details.notes[0]
            assert "it is left out" in details.notes[0]
            await tree.set(f"{root}/good", b'{"host": 7}')
            details = await view.until_details(errors=f"{root}/good", stale_members=1)
            assert view.manager.statistics().providers[0].state == "failing"
            await tree.set(f"{root}/good", b'{"host": 8}')
            await tree.create(f"{root}/other", member("other"))
            await view.until({f"{root}/good": "good:1", f"{root}/other": "other:1"})
        assert [f"{root}/never" in record.message for record in caplog.records].count(True) == 1
        assert [f"{root}/good" in record.message for record in caplog.records].count(True) == 1  # once
        # over a reload, too
        await view.manager.apply_config({JOB: [config(shared_zookeeper.hosts, root)]})
        await view.manager.wait_synced()
        await view.until({f"{root}/good": "good:1", f"{root}/other": "other:1"})
        await tree.set(f"{root}/good", member("again"))
        await view.until({f"{root}/good": "again:1", f"{root}/other": "other:1"})
        await view.until_details(stale_members=0)
        assert view.removed == []


async def test_what_may_not_be_read_keeps_its_last_good_targets(proxy: Proxy, tree: Tree, zookeeper_root: str) -> None:
    root = zookeeper_root
    expected = {f"{root}/open": "open:1", f"{root}/shut": "shut:1", f"{root}/shut/below": "below:1"}
    await tree.create_many({path: member(address.partition(":")[0]) for path, address in expected.items()})
    async with following(config(proxy.hosts, root)) as view:
        await view.until(expected)
        await tree.set_acl(f"{root}/shut", "cdwa")
        proxy.reset()
        await view.until_details(errors="does not allow")
        await view.manager.apply_config({JOB: [config(proxy.hosts, root)]})
        await view.manager.wait_synced()
        assert view.addresses == expected
        await view.until_details(errors="does not allow", stale_members=2)
        await tree.set(f"{root}/open", member("changed"))  # the others are followed all the same
        await view.until(expected | {f"{root}/open": "changed:1"}, SOON)
        await tree.set_acl(f"{root}/shut", "cdrwa")
        proxy.reset()
        await view.until_details()
        assert view.removed == []


async def test_a_root_that_may_not_be_read_is_no_result_until_it_may(
    proxy: Proxy, tree: Tree, zookeeper_root: str
) -> None:
    """An empty result would remove the targets that a run before this one has found elsewhere."""
    root = zookeeper_root
    await tree.create_many({root: b"", f"{root}/m": member("h"), f"{root}-open/m": member("open")})
    await tree.set_acl(root, "cdwa")
    async with following(config(proxy.hosts, root, f"{root}-open", refresh_interval=NO_REFRESH)) as view:
        details = await view.until_details(errors=f'znode "{root}": the server does not allow to read it')
        requests = details.counters["session_requests"]
        with trio.move_on_after(1) as scope:
            await view.manager.wait_synced()
        assert scope.cancelled_caught
        [provider] = view.manager.statistics().providers
        assert (provider.state, provider.restarts) == ("failing", 0)
        assert view.addresses == {}
        # It is tried again after a second, not all the time; a try is a request for each watch, and some reads.
        assert view.details().counters["session_requests"] <= requests + 2 * 10
        await tree.set_acl(root, "cdrwa")  # no watch tells of that
        await view.until({f"{root}/m": "h:1", f"{root}-open/m": "open:1"}, 5)
        await view.manager.wait_synced()
        await view.until_details()
        await tree.set(f"{root}/m", member("changed"))
        await view.until({f"{root}/m": "changed:1", f"{root}-open/m": "open:1"}, SOON)


async def test_a_root_that_may_not_be_read_any_more_keeps_its_targets_over_a_reload(
    proxy: Proxy, tree: Tree, zookeeper_root: str
) -> None:
    root = zookeeper_root
    await tree.create_many({root: member("root"), f"{root}/m": member("h"), f"{root}-open/m": member("open")})
    expected = {root: "root:1", f"{root}/m": "h:1", f"{root}-open/m": "open:1"}
    one = config(proxy.hosts, root, f"{root}-open")
    async with following(one) as view:
        await view.until(expected)
        await tree.set_acl(root, "cdwa")
        for changed in (one, replace(one, timeout=Duration.of("9s"))):
            await view.manager.apply_config({JOB: [changed]})
            with trio.fail_after(SOON):
                await view.manager.wait_synced()
            await view.until_details(errors=f'znode "{root}": the server does not allow to read it')
            assert view.addresses == expected
            assert view.manager.statistics().providers[0].state == "failing"
        await tree.set(f"{root}-open/m", member("changed"))  # what may be read is followed
        await view.until(expected | {f"{root}-open/m": "changed:1"}, SOON)
        await tree.set_acl(root, "cdrwa")
        await view.until_details()
        assert view.removed == []


async def test_a_refused_znode_is_an_error_whether_its_targets_are_known_or_not(
    proxy: Proxy, tree: Tree, zookeeper_root: str
) -> None:
    root = zookeeper_root
    await tree.create_many({f"{root}/{name}": member(name) for name in ("open", "never", "once")})
    await tree.set_acl(f"{root}/never", "cdwa")
    async with following(config(proxy.hosts, root)) as view:
        await view.until({f"{root}/open": "open:1", f"{root}/once": "once:1"})
        told = f'znode "{root}/never": the server does not allow to read it; it is left out'
        details = await view.until_details(errors=told, stale_members=0)
        assert "never" not in " ".join(details.notes)
        await tree.set_acl(f"{root}/once", "cdwa")  # seen when it is read again
        details = await view.until_details(errors=f'znode "{root}/once": ', stale_members=1)
        assert told in details.errors
        assert "does not allow" not in " ".join(details.notes)
        assert view.manager.statistics().providers[0].state == "failing"
        for name in ("never", "once"):
            await tree.set_acl(f"{root}/{name}", "cdrwa")
        await view.until_details()
        await view.until({f"{root}/{name}": f"{name}:1" for name in ("open", "never", "once")})
        assert view.removed == []


async def test_a_lost_watch_is_mended_and_counted(
    shared_zookeeper: ZooKeeperServer, tree: Tree, zookeeper_root: str, nursery: trio.Nursery
) -> None:
    root = zookeeper_root
    await tree.create(f"{root}/m", member("h"))
    resources = Resources(nursery)
    one = config(shared_zookeeper.hosts, root, refresh_interval=Duration.of("500ms"))
    discoverer = one.discoverer(DiscovererOptions(resources))
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as running:
            running.start_soon(discoverer.run, send)
            await receive.receive()
            while not await receive.receive():  # a refresh that finds nothing says so
                break
            ensemble = Ensemble((("127.0.0.1", shared_zookeeper.port),), 10.0)
            async with resources.use(ensemble, lambda: open_session(ensemble)) as session:
                assert session.statistics().followers == 1  # it is the same session
                await session._reply(session._send(remove_watches(root)))
            await tree.set(f"{root}/m", member("unseen"))
            while not (groups := await receive.receive()):
                pass
            assert groups[0].targets[0][ADDRESS_LABEL] == "unseen:1"
            assert discoverer.statistics().counters["mended"] == 1
            while await receive.receive():  # a refresh; watches are set again with each
                pass
            await tree.set(f"{root}/m", member("seen"))
            while not await receive.receive():
                pass
            assert discoverer.statistics().counters["mended"] == 1
            running.cancel_scope.cancel()


async def test_a_thousand_jobs_share_one_session_and_one_thread(tmp_path: Path) -> None:
    async with running_zookeeper(tmp_path) as server:
        async with open_tree(server.hosts) as tree:
            await tree.create_many(
                {f"/{n}{below}": member(f"h{n}") if below else b"" for n in range(1_000) for below in ("", "/m")}
            )
        threads = threading.active_count()
        jobs = {f"job{n}": [config(server.hosts, f"/{n}", refresh_interval=NO_REFRESH)] for n in range(1_000)}
        async with open_manager(jobs) as manager:
            with trio.fail_after(PATIENCE):
                await manager.wait_synced()
            assert threading.active_count() <= threads + 1
            assert len(await server.sessions()) == 1
            assert await recursive_watches(server) == 1_000
            assert all(manager.snapshot().group_count(job) == 1 for job in jobs)
        assert len(await server.sessions()) == 0


async def test_reloads_leave_nothing(tmp_path: Path) -> None:
    async with running_zookeeper(tmp_path) as server, open_tree(server.hosts) as tree:
        await tree.create_many({f"/r/{n}": member(f"h{n}") for n in range(10)})
        expected = {f"/r/{n}": f"h{n}:1" for n in range(10)}
        async with following(config(server.hosts, "/r")) as view:
            await view.until(expected)
            descriptors, threads = os.listdir("/proc/self/fd"), threading.active_count()
            for n in range(30):
                await view.manager.apply_config({JOB: [config(server.hosts, "/r", timeout=Duration(5_000 + n))]})
                if n % 3:
                    await view.manager.wait_synced()
                await tree.set(f"/r/{n % 10}", member(f"changed{n}"))
                expected[f"/r/{n % 10}"] = f"changed{n}:1"
            await view.manager.wait_synced()
            await view.until(expected)
            assert len(await server.sessions() - {tree.client_id[0]}) == 1
            assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (len(descriptors), threads)
            assert len(view.sizes) > 10  # what was changed between the reloads was seen
            assert view.removed == []


@pytest.mark.parametrize("state", ["there", "refusing", "partitioned", "partitioned later", "unresolvable"])
async def test_it_ends_within_a_bounded_time(
    state: str, shared_zookeeper: ZooKeeperServer, tree: Tree, zookeeper_root: str
) -> None:
    await tree.create(f"{zookeeper_root}/m", member("h"))
    threads = threading.active_count()
    async with open_proxy(shared_zookeeper.port) as proxy:
        if state == "refusing":
            proxy.refuse()
        elif state == "partitioned":
            proxy.partition()
        hosts = "unreachable.invalid:2181" if state == "unresolvable" else proxy.hosts
        async with following(config(hosts, zookeeper_root)) as view:
            if state in ("there", "partitioned later"):
                await view.manager.wait_synced()
            else:
                await view.until_details(errors={"unresolvable": "Cannot resolve"}.get(state, "not connected"))
            if state == "partitioned later":
                proxy.partition()
            begin = trio.current_time()
        assert trio.current_time() - begin < 3
    assert threading.active_count() <= threads


async def test_it_keeps_the_contract_of_discoverers(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    # A client that stays open may connect anew, and have another descriptor, in the middle of it.
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create(zookeeper_root, b"")
        await tree.create(f"{zookeeper_root}/m", member("h"))
    await trio.to_thread.run_sync(lambda: None)  # Trio's own thread is there before descriptors are counted
    found = await check_discoverer(config(shared_zookeeper.hosts, zookeeper_root))
    assert [group.source for group in found] == [f"{zookeeper_root}/m"]


@pytest.mark.parametrize("suffix", ["", "/", "///"])
async def test_slashes_at_the_end_of_a_path_are_no_matter(
    suffix: str, shared_zookeeper: ZooKeeperServer, tree: Tree, zookeeper_root: str
) -> None:
    await tree.create(f"{zookeeper_root}/m", member("h"))
    async with following(config(shared_zookeeper.hosts, zookeeper_root + suffix)) as view:
        await view.until({f"{zookeeper_root}/m": "h:1"})


async def test_a_chroot_stands_before_every_path_and_is_not_shown(
    proxy: Proxy, tree: Tree, zookeeper_root: str
) -> None:
    root = zookeeper_root
    await tree.create(f"{root}/app/m", member("h"))
    await tree.create(root + "x", member("not below"))
    async with (
        following(config(f"{proxy.hosts}{root}", "/app")) as app,
        following(config(f"{proxy.hosts}{root}", "/")) as everything,
    ):
        for view in (app, everything):
            await view.until({"/app/m": "h:1"})
        await tree.create(f"{root}/app/m/sub", member("sub"))
        for view in (app, everything):
            await view.until({"/app/m": "h:1", "/app/m/sub": "sub:1"})
        [group] = [group for group in app.manager.snapshot()[JOB] if group.source == "/app/m"]
        assert group.targets[0]["__meta_nerve_path"] == "/app/m"


async def test_digest_authentication_reads_what_only_its_user_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    async with running_zookeeper(tmp_path / "server") as server, open_tree(server.hosts) as tree:
        await tree.create("/r/m", member("h"))
        client = tree._client
        await trio.to_thread.run_sync(client.add_auth, "digest", "reader:hunter2")
        from kazoo.security import make_digest_acl

        await trio.to_thread.run_sync(client.set_acls, "/r/m", [make_digest_acl("reader", "hunter2", all=True)])
        inline = DigestAuth(username="reader", password=Secret("hunter2"))
        from_file = DigestAuth(username="reader", password_file=str(password))
        for auth, seen in ((inline, True), (from_file, True), (replace(inline, password=Secret("wrong")), False)):
            async with following(config(server.hosts, "/r", digest_auth=auth)) as view:
                await view.manager.wait_synced()
                await view.until({"/r/m": "h:1"} if seen else {})
                assert ("does not allow" in " ".join(view.details().errors)) == (not seen)
                assert "does not allow" not in " ".join(view.details().notes)
    ours = [record for record in caplog.records if record.name.startswith("trio_sd")]
    assert ours
    assert not [record for record in ours if "hunter2" in record.getMessage()]


async def test_a_password_that_was_changed_is_taken_up_by_the_next_connection(tmp_path: Path) -> None:
    from kazoo.security import make_digest_acl

    password = tmp_path / "password"
    password.write_text("old")
    async with (
        running_zookeeper(tmp_path / "server") as server,
        open_tree(server.hosts) as tree,
        open_proxy(server.port) as proxy,
    ):
        await tree.create_many({"/r/open": member("open"), "/r/m": member("h")})
        acl = [make_digest_acl("reader", "new", read=True)]
        await trio.to_thread.run_sync(tree._client.set_acls, "/r/m", acl)
        auth = DigestAuth(username="reader", password_file=str(password))
        async with following(config(proxy.hosts, "/r", digest_auth=auth)) as view:
            await view.until({"/r/open": "open:1"})
            await view.until_details(errors='znode "/r/m": the server does not allow to read it')
            proxy.refuse()
            proxy.reset()
            await view.until_details(errors="not connected")
            password.write_text("new\n")
            await proxy.accept()
            await view.until_soon({"/r/open": "open:1", "/r/m": "h:1"})
            await view.until_details(session_connections=2)


async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path / "tls")
    other = Certificates.make(tmp_path / "other")
    async with (
        running_zookeeper(tmp_path / "server", certificates=certificates, client_auth="need") as server,
        open_tree(server.hosts) as tree,
    ):
        await tree.create_many({f"/r/{n}": member("h" * 1_000) for n in range(1_000)})
        tls = TLSConfig(
            ca_file=str(certificates.authority),
            cert_file=str(certificates.client),
            key_file=str(certificates.client),
        )
        hosts = f"127.0.0.1:{server.tls_port}"
        async with following(config(hosts, "/r", tls_config=tls)) as view:
            await view.until({f"/r/{n}": f"{'h' * 1_000}:1" for n in range(1_000)})
            await tree.set("/r/0", member("changed"))
            while view.addresses["/r/0"] != "changed:1":
                await view.next()
        for wrong, told in (
            (replace(tls, ca_file=str(other.authority)), "certificate verify failed"),
            (replace(tls, server_name="elsewhere.example"), "certificate verify failed"),
            (replace(tls, key_file=str(tmp_path / "absent.pem")), "absent.pem"),
        ):
            async with following(config(hosts, "/r", tls_config=wrong)) as view:
                await view.until_details(errors=told)
                if told == "absent.pem":  # files are read for each connection
                    (tmp_path / told).write_text(certificates.client.read_text())
                    await view.manager.wait_synced()


async def test_without_kazoo_the_provider_fails_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    discoverer = config("h", "/r").discoverer(DiscovererOptions(Resources(nursery)))
    send, _ = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with pytest.raises(DiscoveryError, match=r"needs kazoo.*trio-sd\[zookeeper\]"):
        await discoverer.run(send)


async def test_several_paths_are_one_full_set(proxy: Proxy, tree: Tree, zookeeper_root: str) -> None:
    root = zookeeper_root
    await tree.create_many({f"{root}/{top}/{n}": member(f"{top}{n}") for top in "abc" for n in range(3)})
    async with following(config(proxy.hosts, *(f"{root}/{top}" for top in "abcd"))) as view:
        await view.manager.wait_synced()
        await view.until({f"{root}/{top}/{n}": f"{top}{n}:1" for top in "abc" for n in range(3)})
        assert view.sizes in ([9], [0, 9])  # not one path after the other
        assert view.details().notes[0] == f'znode "{root}/d" does not exist'


@pytest.mark.skipif(old_class_path() is None, reason="no TRIO_SD_OLD_ZOOKEEPER: no real server before 3.6")
async def test_a_real_server_before_3_6_is_followed(tmp_path: Path) -> None:
    async with (
        running_zookeeper(tmp_path, class_path=old_class_path()) as server,
        open_tree(server.hosts) as tree,
    ):
        await tree.create_many({f"/r/{n}": member(f"h{n}") for n in range(100)})
        expected = {f"/r/{n}": f"h{n}:1" for n in range(100)}
        async with following(config(server.hosts, "/r", "/later")) as view:
            await view.until(expected)
            await tree.set("/r/3", member("changed"))
            await tree.create("/r/3/deep/x", member("deep"))
            await tree.delete("/r/9")
            await tree.create("/later/m", member("late"))
            expected |= {"/r/3": "changed:1", "/r/3/deep/x": "deep:1", "/later/m": "late:1"}
            del expected["/r/9"]
            await view.until(expected)
            await server.restart()
            await tree.set("/r/4", member("after"))
            await view.until(expected | {"/r/4": "after:1"})
            assert view.details().counters["mended"] == 0
