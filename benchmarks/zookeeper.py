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
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as version_of
from operator import attrgetter
from pathlib import Path

import trio

from .figures import FLOOR, OURS, Aim, Figure, at_least, at_most, interleaved, missing, ratio
from .processes import running
from .prometheus import PROMETHEUS, installed, running_prometheus, version

try:
    from tests.tcp_proxy import open_proxy
    from tests.zookeeper import Connection, ZooKeeperServer, available, open_tree
except ImportError as error:  # installed without what tests need, or not run in the repository
    MISSING: str | None = f"{error.name} is missing"
else:
    MISSING = available()

REPOSITORY = Path(__file__).parent.parent
ROUND_TRIP = 0.005
POLL = 0.02
REST = 0.005  # until the next write, so that everybody has come to rest
PATIENCE = 120.0
MANY_PATIENCE = 30.0  # with Prometheus and a thousand configurations

TREECACHE = "treecache"
NEAR = "first sync of members, loopback"
FAR = f"first sync of members, round trip {ROUND_TRIP * 1e3:g} ms"
FEW, SMALL, LARGE = 300, 10_000, 100_000  # members, below a root of that name
PEERS_OWN = "/peers-own"
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
    name = "ours" if who == OURS else who
    command = [sys.executable, "-m", "benchmarks.zookeeper_clients", name, hosts, str(count), *roots]
    async with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        yield Client(process)


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
    """One server, and who is measured at it.

    Attributes:
      server: the server.
      names: what figures call each.
      absent: who can't be measured here, and why.
    """

    def __init__(self, server: ZooKeeperServer, directory: Path) -> None:
        self.server = server
        self.names = {OURS: OURS, PROMETHEUS: "Prometheus", TREECACHE: f"TreeCache (kazoo {version_of('kazoo')})"}
        self.absent: dict[str, str] = {}
        if installed():
            self.names[PROMETHEUS] = f"Prometheus {version()}"
        else:
            self.absent[PROMETHEUS] = "not installed (apt install prometheus)"
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

    async def sync(self, who: str, roots: Sequence[str], count: int, hosts: str) -> Sync:
        """Let ``who`` find the ``count`` members below ``roots``, each of these being a configuration."""
        await self.settle()
        if who == PROMETHEUS:
            return await self._prometheus(hosts, roots, count)
        async with follower(who, hosts, count, *roots) as client:
            line = await client.line()
            assert line["members"] == count, line
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


@contextmanager
def open_bench() -> Iterator[Bench]:
    """Run a server for the time of the block."""
    with tempfile.TemporaryDirectory() as directory:
        server = ZooKeeperServer(Path(directory) / "server", tick_time=2000)
        try:
            trio.run(server.start)
            yield Bench(server, Path(directory))
        finally:
            server.kill()


async def fill(bench: Bench, *trees: Mapping[str, bytes]) -> None:
    """Create what is to be found."""
    async with open_tree(bench.server.hosts, timeout=30) as tree:
        for znodes in trees:
            await tree.create_many(znodes)


@dataclass(frozen=True)
class Contest:
    """First syncs by turns.

    Attributes:
      bench: where.
      what: what their figures are called.
      counts: how many members each finds.
      left_out: who of them does not take part, and why.
    """

    bench: Bench
    what: str
    counts: Mapping[str, int]
    left_out: Mapping[str, str]

    async def syncs(self, rounds: int, hosts: str) -> Mapping[str, Sequence[Sync]]:
        """Return the first syncs of each that takes part."""
        syncs: dict[str, list[Sync]] = {who: [] for who in self.counts if who not in self.left_out}

        async def sync(who: str) -> float:
            count = self.counts[who]
            syncs[who].append(await self.bench.sync(who, [f"/{count}"], count, hosts))
            return syncs[who][-1].seconds

        await interleaved(rounds, {who: partial(sync, who) for who in syncs})
        return syncs

    def rates(self, syncs: Mapping[str, Sequence[Sync]], aim: Aim) -> list[Figure]:
        """Return members a second, and how many times as quick we are as each peer; ``aim`` is that over Prometheus."""
        figures = {}
        for who, count in self.counts.items():
            name = self.bench.names[who]
            if who in self.left_out:
                figures[who] = missing(self.what, name, self.left_out[who], size=count)
            else:
                taken = [count / sync.seconds for sync in syncs[who]]
                figures[who] = Figure.of(self.what, taken, "/s", who=name, size=count)
        over = [
            ratio(f"{self.what}, over a peer", figures[OURS], figures[who], aim=aim if who == PROMETHEUS else None)
            for who in syncs
            if who != OURS
        ]
        return [*figures.values(), *over]


async def near_syncs(bench: Bench, count: int, rounds: int, left_out: Mapping[str, str]) -> list[Figure]:
    """Measure first syncs on loopback, and the watches that they leave."""
    contest = Contest(bench, NEAR, dict.fromkeys(bench.names, count), left_out)
    syncs = await contest.syncs(rounds, bench.server.hosts)
    what, note = "watches on the server, one path", "one watch, which the server counts for data and for children"
    watches = [
        Figure.of(what, syncs[OURS][-1].watches, "", size=count, aim=at_most(2), note=note),
        *[
            Figure.of(what, found[-1].watches, "", who=bench.names[who], size=count)
            for who, found in syncs.items()
            if who != OURS
        ],
    ]
    return [*contest.rates(syncs, at_least(15)), *watches]


async def far_syncs(bench: Bench, rounds: int) -> list[Figure]:
    """Measure first syncs with a long round trip.

    Prometheus reads one znode after the other, so its rate does not depend on their number, and it is given few.
    """
    contest = Contest(bench, FAR, {OURS: SMALL, PROMETHEUS: FEW, TREECACHE: SMALL}, bench.absent)
    async with open_proxy(bench.server.port) as proxy:
        proxy.delay = ROUND_TRIP / 2
        syncs = await contest.syncs(rounds, proxy.hosts)
    return contest.rates(syncs, at_least(300))


async def changes(bench: Bench, rounds: int) -> list[Figure]:
    """Measure the time from a write to the consumer, for ours and kazoo's by turns, each among its own members."""
    await bench.settle()
    answers: list[float] = []
    roots = {OURS: f"/{SMALL}", TREECACHE: PEERS_OWN}
    async with (
        follower(OURS, bench.server.hosts, SMALL, roots[OURS]) as ours,
        follower(TREECACHE, bench.server.hosts, SMALL, roots[TREECACHE]) as theirs,
        open_writer(bench.server.port) as writer,
    ):
        clients = {OURS: ours, TREECACHE: theirs}
        for client in clients.values():
            await client.line()

        async def latency(who: str) -> float:
            await trio.sleep(REST)
            number = len(answers)
            begin = time.perf_counter()
            await writer.set(f"{roots[who]}/member_{number * 7919 % SMALL:010}", member(number, 20_000 + number))
            answers.append(time.perf_counter() - begin)
            line = await clients[who].line()
            assert line["members"] == SMALL, line
            assert line["at"] > begin, "it is of an earlier write"
            return line["at"] - begin

        latencies = await interleaved(rounds, {who: partial(latency, who) for who in clients})
    what = "write → consumer, one member of many"
    return [
        Figure.of(what, answers, who=FLOOR, size=SMALL, note="write → the server's answer"),
        Figure.of(what, latencies[OURS], size=SMALL, aim=at_most(0.010)),
        Figure.of(what, latencies[TREECACHE], who=bench.names[TREECACHE], size=SMALL),
    ]


async def burst(bench: Bench, who: str, count: int) -> list[Figure]:
    """Measure how long after the last of many creations everything has arrived."""
    root = f"/burst/{who}"
    updates = 1
    async with open_tree(bench.server.hosts, timeout=30) as tree:
        await tree.create(root)
        await bench.settle()
        async with follower(who, bench.server.hosts, 0, root) as client:
            await client.line()
            await tree.create_many(members(root, count))
            created = time.perf_counter()
            while (line := await client.line())["members"] < count:
                updates += 1
    name = bench.names[who]
    return [
        Figure.of("burst: last creation answered → consumer has all", line["at"] - created, who=name, size=count),
        Figure.of("burst: updates to the consumer", updates, "", who=name, size=count),
    ]


async def many_configurations(bench: Bench) -> list[Figure]:
    """Measure a thousand configurations of one path with one member each."""
    count, hosts = len(JOBS), bench.server.hosts
    sync = await bench.sync(OURS, JOBS, count, hosts)
    figures = [
        *_costs(sync, OURS, {"sessions": at_most(1), "watches": at_most(2 * count)}),
        Figure.of("many configurations: threads in the process", sync.threads, "", size=count, aim=at_most(2)),
        Figure.of("many configurations: closing", sync.close, size=count),
    ]
    name, why = bench.names[PROMETHEUS], bench.absent.get(PROMETHEUS)
    if why is None:
        with trio.move_on_after(MANY_PATIENCE) as scope:
            figures += _costs(await bench.sync(PROMETHEUS, JOBS, count, hosts), name, {})
        if scope.cancelled_caught:
            why = f"not done within {MANY_PATIENCE:g} s"
    if why is not None:
        figures.append(missing("many configurations: first sync of all", name, why, size=count))
    return sorted(figures, key=attrgetter("what"))


def _costs(sync: Sync, name: str, aims: Mapping[str, Aim]) -> list[Figure]:
    what, size = "many configurations", len(JOBS)
    return [
        Figure.of(f"{what}: first sync of all", sync.seconds, who=name, size=size),
        Figure.of(f"{what}: sessions on the server", sync.sessions, "", who=name, size=size, aim=aims.get("sessions")),
        Figure.of(f"{what}: watches on the server", sync.watches, "", who=name, size=size, aim=aims.get("watches")),
    ]


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure. The server outlives each event loop, and nothing outlives the server."""
    if MISSING is not None:
        yield missing(NEAR, OURS, MISSING)
        return
    rounds = 2 if quick else 3
    with open_bench() as bench:
        jobs = {f"{root}/member_0000000000": member(number) for number, root in enumerate(JOBS)}
        trees = [members(f"/{FEW}", FEW), members(f"/{SMALL}", SMALL), members(PEERS_OWN, SMALL), jobs]
        trio.run(fill, bench, *trees)
        yield from trio.run(near_syncs, bench, SMALL, rounds, bench.absent)
        yield from trio.run(far_syncs, bench, rounds)
        yield from trio.run(changes, bench, 50 if quick else 300)
        bursts = trio.run(burst, bench, OURS, 10_000) + trio.run(burst, bench, TREECACHE, 1_000 if quick else 5_000)
        yield from sorted(bursts, key=attrgetter("what"))
        yield from trio.run(many_configurations, bench)
        trio.run(fill, bench, members(f"/{LARGE}", LARGE))
        too_long = {PROMETHEUS: "left out: --quick"} if quick else {}
        too_long[TREECACHE] = "left out: it takes minutes"
        yield from trio.run(near_syncs, bench, LARGE, 1, {**too_long, **bench.absent})
