"""ZooKeeper discovery beside its peers, Prometheus and kazoo's ``TreeCache``, at one real server.

* first sync: members a second, on loopback and with a round trip of 5 ms; watches held on the server;
* the time from a change to the consumer, and a burst of changes;
* sessions and threads for a thousand configurations.

All follow the same members and take turns, so that a busy moment of the machine hits all of them. Ours is measured from
``open_manager``, with kazoo's import and the opening of the session, until a consumer holds every group. Of Prometheus
only the reading of the tree is measured, from the moment when the server knows its session until it has received two
requests a znode: its start and the up to 5 s until it passes on what it found do not count. ``TreeCache`` is measured
from kazoo's import to its event INITIALIZED; it parses nothing.

Servers, and the proxy that makes a round trip long, are those of the tests: run this in the repository, with what
``pip install '.[test]'`` installs.
"""

from __future__ import annotations

import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import trio

from .prometheus import PROMETHEUS, installed, running_prometheus
from .report import Row

try:
    from tests.tcp_proxy import open_proxy
    from tests.zookeeper import Connection, Tree, ZooKeeperServer, available, open_tree, running_zookeeper
except ImportError as error:  # installed without what tests need, or not run in the repository
    MISSING: str | None = f"{error.name} is missing"
else:
    MISSING = available()

REPOSITORY = Path(__file__).parent.parent
ROUND_TRIP = 0.005
POLL = 0.02
REST = 0.005  # until the next write, so that everybody has come to rest
PATIENCE = 120.0
OURS, TREECACHE = "trio-sd", "TreeCache"

COUNTS = MappingProxyType({"/300": 300, "/1000": 1_000, "/10000": 10_000, "/10000-too": 10_000})
SMALL, LARGE, BURST = "/10000", "/100000", "/burst"
JOBS = [f"/jobs/{number:04}" for number in range(1_000)]


def member(number: int, port: int = 31_000) -> bytes:
    """Return a serverset's member as Aurora announces it."""
    endpoint = {"host": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "port": port}
    return json.dumps(
        {"serviceEndpoint": endpoint, "additionalEndpoints": {"http": endpoint}, "status": "ALIVE", "shard": number}
    ).encode()


def members(root: str, count: int) -> dict[str, bytes]:
    """Return that many members below ``root``."""
    return {f"{root}/member_{number:010}": member(number) for number in range(count)}


@dataclass
class Sync:
    """A first sync: how long it took, and what it holds when it is done."""

    seconds: float
    watches: int
    sessions: int
    threads: int = 0
    close: float = 0.0


async def until(condition: Callable[[], Awaitable[bool]], pause: float = POLL) -> None:
    """Wait until the condition holds."""
    with trio.fail_after(PATIENCE):
        while True:
            if await condition():
                return
            await trio.sleep(pause)


class Client:
    """A follower in a process of its own; see ``benchmarks.zookeeper_clients``."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._text = b""

    async def line(self) -> Mapping[str, float]:
        """Return what it tells next."""
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._text:
                chunk = await self._process.stdout.receive_some()
                if not chunk:
                    raise RuntimeError("a follower has ended before its time")
                self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        found: Mapping[str, float] = json.loads(line)
        return found

    async def end(self) -> float:
        """Let it close, and return the seconds that this took."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        while "close" not in (line := await self.line()):
            pass
        await self._process.wait()
        return line["close"]


@asynccontextmanager
async def follower(who: str, hosts: str, count: int, *roots: str) -> AsyncIterator[Client]:
    """Run a follower for the time of the block."""
    name = "ours" if who == OURS else "treecache"
    command = [sys.executable, "-m", "benchmarks.zookeeper_clients", name, hosts, str(count), *roots]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=str(REPOSITORY)
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


class Writer:
    """Another client, as quick as can be: it speaks to the server without kazoo."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._xid = 0

    async def _ask(self, body: bytes) -> bytes:
        await self._stream.send_all(struct.pack(">i", len(body)) + body)
        answer = b""
        while len(answer) < 4 or len(answer) < 4 + int.from_bytes(answer[:4], "big"):
            chunk = await self._stream.receive_some()
            if not chunk:
                raise RuntimeError("the server has hung up")
            answer += chunk
        return answer

    async def greet(self) -> None:
        """Open a session."""
        await self._ask(struct.pack(">iqiqi", 0, 0, 30_000, 0, 16) + bytes(17))

    async def set(self, path: str, data: bytes) -> None:
        """Write a znode."""
        self._xid += 1
        name = path.encode()
        body = struct.pack(">iii", self._xid, 5, len(name)) + name
        answer = await self._ask(body + struct.pack(">i", len(data)) + data + struct.pack(">i", -1))
        assert struct.unpack_from(">iqi", answer, 4)[2] == 0, "the server refuses"


@asynccontextmanager
async def open_writer(port: int) -> AsyncIterator[Writer]:
    """Open a session to write with."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        writer = Writer(stream)
        await writer.greet()
        yield writer


class Bench:
    """One server, who is measured at it, and where they find what they need."""

    def __init__(self, server: ZooKeeperServer, directory: Path) -> None:
        self.server = server
        self._directory = directory
        self._own: set[int | None] = set()

    async def settle(self) -> None:
        """Wait until no follower is left, and remember who else is connected."""
        await until(lambda: self._watches(0))
        self._own = {connection.session for connection in await self.server.connections()}

    async def followers(self) -> list[Connection]:
        """Return the connections of those that came since."""
        found = await self.server.connections()
        return [connection for connection in found if connection.session and connection.session not in self._own]

    async def sync(self, who: str, roots: Sequence[str], count: int, *, hosts: str = "") -> Sync:
        """Let ``who`` find the ``count`` members below ``roots``, each of these being a configuration."""
        hosts = hosts or self.server.hosts
        await self.settle()
        if who == PROMETHEUS:
            return await self._prometheus(hosts, roots, count)
        async with follower(who, hosts, count, *roots) as client:
            line = await client.line()
            sync = Sync(line["seconds"], await self.server.watch_count(), len(await self.followers()))
            sync.threads = int(line["threads"])
            sync.close = await client.end()
        return sync

    async def _prometheus(self, hosts: str, roots: Sequence[str], count: int) -> Sync:
        reads = 2 * (count + len(roots))
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            found = [{"servers": [hosts], "paths": [root]} for root in roots]
            # Nothing is scraped: every target is dropped.
            rules = [{"source_labels": ["__address__"], "action": "drop"}]
            job = {"job_name": "job", "serverset_sd_configs": found, "relabel_configs": rules}
            async with running_prometheus(Path(directory), {"scrape_configs": [job]}):
                await until(lambda: self._received(-1), POLL / 4)
                begin = time.perf_counter()
                await until(lambda: self._received(reads))
                seconds = time.perf_counter() - begin
                await until(lambda: self._watches(reads))  # the last answers are on their way
                return Sync(seconds, reads, len(await self.followers()))

    async def _received(self, requests: int) -> bool:
        """Tell whether followers are there and have asked for as much, beside a session each."""
        followers = await self.followers()
        return bool(followers) and sum([follower.received - 1 for follower in followers]) >= requests

    async def _watches(self, count: int) -> bool:
        """Tell whether clients have that many watches."""
        return await self.server.watch_count() == count


class Rates:
    """Members a second, of first syncs that all have in common but who does them, and how many members there are."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._rates: dict[tuple[str, int], list[float]] = {}

    def add(self, who: str, count: int, seconds: float) -> None:
        """Take one first sync."""
        self._rates.setdefault((who, count), []).append(count / seconds)

    def rows(self, aims: Mapping[str, str]) -> list[Row]:
        """Return what each does, and how many times as quick we are as each peer."""
        rows = []
        for (who, count), rates in self._rates.items():
            spread = ""
            if len(rates) > 1:
                deciles = statistics.quantiles(rates, n=10, method="inclusive")
                spread = f"{deciles[0]:,.0f} – {deciles[-1]:,.0f}"
            name = f"first sync, {count:,} members, {self._what}: {who}"
            rows.append(Row(name, f"{statistics.median(rates):,.0f}/s", spread))
        medians = {who: statistics.median(rates) for (who, _), rates in self._rates.items()}
        for peer in [who for who in medians if who != OURS]:
            times = medians[OURS] / medians[peer]
            rows.append(Row(f"first sync, {self._what}: {OURS} over {peer}", f"{times:.1f} ×", aim=aims.get(peer, "")))
        return rows


async def first_sync(bench: Bench, roots: Mapping[str, str], rounds: Mapping[str, int]) -> list[Row]:
    """Measure first syncs on loopback, each with the members below its root, and the watches that they leave."""
    rates = Rates("loopback")
    watches = {}
    for turn in range(max(rounds.values())):
        for who, root in roots.items():
            if turn < rounds[who]:
                count = int(root.strip("/"))
                sync = await bench.sync(who, [root], count)
                rates.add(who, count, sync.seconds)
                watches[f"watches on the server, {count:,} members of one path: {who}"] = sync.watches
    aim = "2: one, which the server counts among those of data and of children"
    rows = rates.rows({PROMETHEUS: "at least 15 ×"})
    return rows + [Row(what, f"{held:,}", aim=aim if OURS in what else "") for what, held in watches.items()]


async def far_sync(bench: Bench, roots: Mapping[str, str], rounds: Mapping[str, int]) -> list[Row]:
    """Measure first syncs with a long round trip.

    Prometheus reads one znode after the other, so its rate does not depend on their number, and it is given few.
    """
    rates = Rates(f"round trip of {ROUND_TRIP * 1e3:g} ms")
    async with open_proxy(bench.server.port) as proxy:
        proxy.delay = ROUND_TRIP / 2
        for turn in range(max(rounds.values())):
            for who, root in roots.items():
                if turn < rounds[who]:
                    count = int(root.strip("/"))
                    rates.add(who, count, (await bench.sync(who, [root], count, hosts=proxy.hosts)).seconds)
    return rates.rows({PROMETHEUS: "at least 300 ×"})


async def change_latencies(bench: Bench, peer_root: str, rounds: int) -> list[Row]:
    """Measure the time from a write to the consumer, for ours and kazoo's by turns, each among its own members."""
    await bench.settle()
    answers: list[float] = []
    roots = {OURS: SMALL, TREECACHE: peer_root}
    latencies: dict[str, list[float]] = {who: [] for who in roots}
    hosts = bench.server.hosts
    async with (
        follower(OURS, hosts, COUNTS[SMALL], SMALL) as ours,
        follower(TREECACHE, hosts, COUNTS[peer_root], peer_root) as theirs,
        open_writer(bench.server.port) as writer,
    ):
        clients = {OURS: ours, TREECACHE: theirs}
        for client in clients.values():
            await client.line()
        for turn in range(rounds):
            for who, root in roots.items():
                number = turn * 7919 % COUNTS[root]
                begin = time.perf_counter()
                await writer.set(f"{root}/member_{number:010}", member(number, 20_000 + turn))
                answers.append(time.perf_counter() - begin)
                line = await clients[who].line()
                latencies[who].append(line["at"] - begin)
                await trio.sleep(REST)
    aims = {OURS: "under 10 ms"}
    return [
        Row.of_seconds("floor: write → the server's answer", answers),
        *[
            Row.of_seconds(f"write → consumer, one of {COUNTS[roots[who]]:,}: {who}", latencies[who], aims.get(who, ""))
            for who in roots
        ],
    ]


async def burst(bench: Bench, tree: Tree, who: str, count: int) -> Row:
    """Measure how long after the last of many creations everything has arrived."""
    root = f"{BURST}/{who}"
    await tree.create(root)
    await bench.settle()
    async with follower(who, bench.server.hosts, 0, root) as client:
        await client.line()
        await tree.create_many(members(root, count))
        created = time.perf_counter()
        updates = 1
        while (line := await client.line())["members"] < count:
            updates += 1
        what = f"burst: last of {count:,} creations answered → consumer has all: {who}"
        return Row(what, f"{line['at'] - created:.3g} s", f"{updates:,} updates")


async def many_jobs(bench: Bench, *, prometheus: bool) -> list[Row]:
    """Measure a thousand configurations of one path with one member each."""
    count = len(JOBS)
    what = f"{count:,} configurations"
    sync = await bench.sync(OURS, JOBS, count)
    rows = [
        Row(f"{what}: sessions on the server: {OURS}", f"{sync.sessions:,}", aim="1"),
        Row(f"{what}: threads in the process: {OURS}", f"{sync.threads:,}", aim="2"),
        Row(f"{what}: watches on the server: {OURS}", f"{sync.watches:,}", aim="2,000: one a path, counted twice"),
        Row(f"{what}: first sync of all: {OURS}", f"{sync.seconds:.3g} s"),
        Row(f"{what}: closing: {OURS}", f"{sync.close:.3g} s"),
    ]
    if prometheus:
        try:
            with trio.fail_after(30):
                theirs = await bench.sync(PROMETHEUS, JOBS, count)
        except trio.TooSlowError:
            return [*rows, Row(f"{what}: {PROMETHEUS}", "not done within 30 s")]
        rows += [
            Row(f"{what}: sessions on the server: {PROMETHEUS}", f"{theirs.sessions:,}"),
            Row(f"{what}: watches on the server: {PROMETHEUS}", f"{theirs.watches:,}"),
            Row(f"{what}: first sync of all: {PROMETHEUS}", f"{theirs.seconds:.3g} s"),
        ]
    return rows


async def measure(directory: Path, *, quick: bool) -> list[Row]:
    """Start a server, fill it, and measure everything."""
    beside = installed()
    slow = "/1000" if quick else SMALL  # for kazoo's
    near = {OURS: SMALL, PROMETHEUS: SMALL, TREECACHE: slow}
    far = {OURS: SMALL, PROMETHEUS: "/300", TREECACHE: "/1000"}
    large = {OURS: LARGE} if quick else {OURS: LARGE, PROMETHEUS: LARGE}
    if not beside:
        for roots in near, far, large:
            roots.pop(PROMETHEUS, None)
    rounds = {OURS: 2, PROMETHEUS: 1, TREECACHE: 1} if quick else {OURS: 3, PROMETHEUS: 3, TREECACHE: 2}
    async with running_zookeeper(directory / "server", tick_time=2000) as server:
        bench = Bench(server, directory)
        rows = [] if beside else [Row(PROMETHEUS, "is missing (apt install prometheus)")]
        async with open_tree(server.hosts, timeout=30) as tree:
            for root, count in COUNTS.items():
                await tree.create_many(members(root, count))
            await tree.create_many({f"{root}/member_0000000000": member(number) for number, root in enumerate(JOBS)})
            rows += await first_sync(bench, near, rounds)
            rows += await far_sync(bench, far, rounds)
            rows += await change_latencies(bench, "/1000" if quick else "/10000-too", 50 if quick else 300)
            rows.append(await burst(bench, tree, OURS, 10_000))
            rows.append(await burst(bench, tree, TREECACHE, 1_000 if quick else 5_000))
            rows += await many_jobs(bench, prometheus=beside)
            await tree.create_many(members(LARGE, 100_000))
            rows += await first_sync(bench, large, dict.fromkeys(large, 1))
            rows.append(Row(f"first sync, 100,000 members, loopback: {TREECACHE}", "left out: it takes minutes"))
            if quick and beside:
                rows.append(Row(f"first sync, 100,000 members, loopback: {PROMETHEUS}", "left out: --quick"))
    return rows


def run(*, quick: bool) -> list[Row]:
    """Measure, and return one row a figure."""
    if MISSING is not None:
        return [Row("zookeeper", f"not measured: {MISSING}")]
    with tempfile.TemporaryDirectory() as directory:
        return trio.run(lambda: measure(Path(directory), quick=quick))
