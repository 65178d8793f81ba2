"""Real ZooKeeper servers for tests: Debian's, each a process in a directory of its own, on loopback ports of its own.

A server starts in half a second, an ensemble of three in two, on busy cores in twice that. They live in real time: a
test that uses them can't use a clock that jumps. Every process is gone when its block ends; should the tests themselves
be killed, the kernel kills the servers.

A client that connects in the first moments of a server's life may never get an answer, not even an end of the
connection (3.8.0 forgets it): clients need a deadline for their first answer.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pytest
import trio
from kazoo.client import KazooClient
from kazoo.exceptions import (
    KazooException,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from kazoo.security import make_acl

from .tcp_proxy import free_port

T = TypeVar("T")

JAR = Path("/usr/share/java/zookeeper.jar")
# Beside what the jar itself asks for: a logger, and what Netty needs for TLS.
CLASS_PATH = ":".join(
    f"{JAR.parent}/{name}.jar"
    for name in ("zookeeper", "slf4j-simple", "netty-codec", "netty-resolver", "netty-transport-native-unix-common")
)
MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
# What starts fastest and is content with little memory; written data need not survive a power cut.
JAVA_OPTIONS = (
    *("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
    *("-Dzookeeper.forceSync=no", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
)
PATIENCE = 30.0


def available() -> str | None:
    """Return None when a server can be started, else what is missing."""
    missing = [
        *([] if shutil.which("java") else ["no java (apt install default-jre-headless)"]),
        *([] if JAR.exists() else [f"no {JAR} (apt install libzookeeper-java)"]),
    ]
    return f"ZooKeeper can't be started: {', '.join(missing)}" if missing else None


# Where servers are required, as in continuous integration, a test without one fails rather than being skipped.
needs_zookeeper = pytest.mark.skipif(
    available() is not None and not os.environ.get("TRIO_SD_REQUIRE_SERVERS"), reason=available() or "it is there"
)


def old_class_path() -> str | None:
    """Return the class path of a ZooKeeper before 3.6 that this machine has, as the environment tells it."""
    return os.environ.get("TRIO_SD_OLD_ZOOKEEPER")


@dataclass(frozen=True)
class Certificates:
    """A certificate authority, and what a server and a client show that it vouches for, in files."""

    authority: Path
    server: Path  # key and certificate
    client: Path  # key and certificate

    @classmethod
    def make(cls, directory: Path) -> Self:
        """Make them, for 127.0.0.1 and localhost."""

        def openssl(name: str, *arguments: str) -> Path:
            key, certificate, both = (directory / f"{name}.{end}" for end in ("key", "crt", "pem"))
            subprocess.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                    *("-nodes", "-days", "2", "-subj", f"/CN=trio-sd test {name}"),
                    *("-keyout", str(key), "-out", str(certificate), *arguments),
                ],
                check=True,
                capture_output=True,
            )
            both.write_text(key.read_text() + certificate.read_text())
            return both

        directory.mkdir(parents=True, exist_ok=True)
        openssl("authority")
        authority = directory / "authority.crt"
        signed = ("-CA", str(authority), "-CAkey", str(directory / "authority.key"))
        usable = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE")
        return cls(authority, *(openssl(name, *signed, *usable) for name in ("server", "client")))

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        """Return a client's context that trusts the authority; with ``client`` it also shows a certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if client:
            context.load_cert_chain(self.client)
        return context


@dataclass(frozen=True)
class Connection:
    """A connection to a server as its ``cons`` tells it."""

    port: int  # the client's
    session: int | None
    received: int
    sent: int


class ZooKeeperServer:
    """A ZooKeeper server in a directory of its own.

    ``tick_time`` bounds what sessions can ask for: their timeout is at least two ticks. ``class_path`` may be that of
    another release, ``settings`` are further lines of its configuration.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tick_time: int = 200,
        max_buffer: int | None = None,
        class_path: str = CLASS_PATH,
        java_options: Sequence[str] = JAVA_OPTIONS,
        certificates: Certificates | None = None,
        client_auth: Literal["none", "need"] = "none",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.tls_port = free_port() if certificates else None
        self.hosts = f"127.0.0.1:{self.port}"
        buffer = [] if max_buffer is None else [f"-Djute.maxbuffer={max_buffer}"]
        self._command = ["java", *java_options, *buffer, "-cp", class_path, MAIN, str(directory / "zoo.cfg")]
        if setpriv := shutil.which("setpriv"):
            self._command[:0] = [setpriv, "--pdeathsig", "KILL"]
        self._log = directory / "zookeeper.log"
        self._process: subprocess.Popen[bytes] | None = None
        lines = {
            "tickTime": str(tick_time),
            "dataDir": str(directory / "data"),
            "clientPort": str(self.port),
            "clientPortAddress": "127.0.0.1",
            "maxSessionTimeout": "60000",
            "maxClientCnxns": "0",
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
        }
        if certificates:
            lines |= {
                "secureClientPort": str(self.tls_port),
                "secureClientPortAddress": "127.0.0.1",
                "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
                "ssl.keyStore.location": str(certificates.server),
                "ssl.keyStore.type": "PEM",
                "ssl.trustStore.location": str(certificates.authority),
                "ssl.trustStore.type": "PEM",
                "ssl.clientAuth": client_auth,
            }
        (directory / "data").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}={value}\n" for key, value in (lines | dict(settings or {})).items())
        (directory / "zoo.cfg").write_text(text)

    @property
    def pid(self) -> int | None:
        """The process, None when none runs."""
        return self._process.pid if self._process else None

    def launch(self) -> None:
        """Start the process, and don't wait until it answers."""
        assert self._process is None
        if missing := available():
            raise RuntimeError(missing)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.directory
            )

    async def wait_serving(self) -> None:
        """Wait until it serves requests: it has read its data, and is part of a quorum if it needs one."""
        with trio.move_on_after(PATIENCE):
            while self._process and self._process.poll() is None:
                if await self.mode() and (self.tls_port is None or await _listens(self.tls_port)):
                    return
                await trio.sleep(0.02)
        raise RuntimeError(f"ZooKeeper in {self.directory} doesn't serve; its log:\n{self._log.read_text()[-4000:]}")

    async def start(self) -> None:
        """Start it, and wait until it serves requests."""
        self.launch()
        await self.wait_serving()

    def kill(self) -> None:
        """Kill it as a crash would, whatever state it is in."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def stop(self) -> None:
        """Let it end in good order."""
        if self._process:
            self._process.terminate()
            with trio.move_on_after(PATIENCE):
                await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
            self.kill()

    async def restart(self) -> None:
        """Kill it, and start it on the same ports with the same data."""
        self.kill()
        await self.start()

    async def _ask(self, word: str) -> tuple[str, int]:
        """Return the answer, and the port that asked."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(word.encode())
            answer = b"".join([chunk async for chunk in stream])
            return answer.decode(), stream.socket.getsockname()[1]

    async def four_letter(self, word: str) -> str:
        """Return what it answers to one of its four letter words: mntr, wchs, wchp, cons, dump, srvr, …"""
        return (await self._ask(word))[0]

    async def mode(self) -> str | None:
        """Return what it is ("standalone", "leader", "follower"), None while it serves nobody.

        One that is asked in the first moments of its life forgets to hang up: this waits for the answer, not for that.
        """
        answer = b""
        with suppress(OSError), trio.move_on_after(1):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(b"srvr")
                while b"Node count" not in answer and b"not currently serving" not in answer:
                    answer += (chunk := await stream.receive_some())
                    if not chunk:
                        break
        found = re.search(r"^Mode: (\w+)", answer.decode(), re.MULTILINE)
        return found and found[1]

    async def sessions(self) -> set[int]:
        """Return the ids of all sessions that live, connected or not; in an ensemble ask the leader."""
        dump = (await self.four_letter("dump")).partition("ephemeral nodes dump:")[0]
        return {int(found, 16) for found in re.findall(r"^\s+(0x[0-9a-f]+)$", dump, re.MULTILINE)}

    async def connections(self) -> list[Connection]:
        """Return its connections, without the one that asks."""
        answer, own = await self._ask("cons")
        found = []
        for port, rest in re.findall(r"^ .*:(\d+)\[\d+\]\((.*)\)$", answer, re.MULTILINE):
            facts = dict(fact.split("=", 1) for fact in rest.split(",") if "=" in fact)
            session = int(facts["sid"], 16) if "sid" in facts else None
            found.append(Connection(int(port), session, int(facts["recved"]), int(facts["sent"])))
        return [connection for connection in found if connection.port != own]

    async def watch_count(self) -> int:
        """Return how many watches clients have on it, of all kinds."""
        return int((await self.statistics())["zk_watch_count"])

    async def statistics(self) -> dict[str, str]:
        """Return what ``mntr`` tells."""
        lines = (await self.four_letter("mntr")).splitlines()
        return dict(line.split("\t", 1) for line in lines if "\t" in line)


async def _listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


@asynccontextmanager
async def running_zookeeper(directory: Path, **options: Any) -> AsyncIterator[ZooKeeperServer]:
    """Run a server for the time of the block; ``options`` are those of `ZooKeeperServer`."""
    server = ZooKeeperServer(directory, **options)
    try:
        await server.start()
        yield server
    finally:
        server.kill()


class Ensemble:
    """Servers that elect a leader; each is a `ZooKeeperServer` that can be killed and restarted."""

    def __init__(self, directory: Path, *, size: int = 3, **options: Any) -> None:
        members = {f"server.{number}": f"127.0.0.1:{free_port()}:{free_port()}" for number in range(1, size + 1)}
        # Patience for slow machines, in ticks. Who dies is noticed at once, by its connections.
        settings = {"initLimit": "100", "syncLimit": "50", **members}
        self.servers = [
            ZooKeeperServer(directory / str(number), settings=settings, **options) for number in range(1, size + 1)
        ]
        for number, server in enumerate(self.servers, 1):
            (server.directory / "data" / "myid").write_text(f"{number}\n")
        self.hosts = ",".join(server.hosts for server in self.servers)

    async def start(self) -> None:
        """Start all that don't run, and wait until they serve."""
        for server in self.servers:
            if server.pid is None:
                server.launch()
        for server in self.servers:
            await server.wait_serving()

    async def leader(self) -> ZooKeeperServer:
        """Return the leader, as soon as there is one."""
        with trio.fail_after(PATIENCE):
            while True:
                for server in self.servers:
                    if server.pid is not None and await server.mode() == "leader":
                        return server
                await trio.sleep(0.02)

    def kill(self) -> None:
        """Kill all members."""
        for server in self.servers:
            server.kill()


@asynccontextmanager
async def running_ensemble(directory: Path, **options: Any) -> AsyncIterator[Ensemble]:
    """Run an ensemble for the time of the block."""
    ensemble = Ensemble(directory, **options)
    try:
        await ensemble.start()
        yield ensemble
    finally:
        ensemble.kill()


class Tree:
    """What tests write to znodes and read from them, by kazoo's own client.

    Every call is tried again while the server is away, for ``PATIENCE`` at most. What an earlier try of the same call
    may have done already is then no error.
    """

    # As large as the server's default limit allows by far, and few enough to be answered at once.
    BATCH = 500
    BATCH_BYTES = 250_000

    def __init__(self, hosts: str, *, timeout: float = 3.0) -> None:
        retry = {"max_tries": -1, "delay": 0.02, "max_delay": 0.2, "ignore_expire": True}
        quiet = logging.getLogger("tests.zookeeper.kazoo")
        quiet.setLevel(logging.CRITICAL)
        self._client = KazooClient(
            hosts,
            timeout=timeout,
            connection_retry=retry,
            command_retry={**retry, "deadline": PATIENCE},
            logger=quiet,
        )
        self._limiter = trio.CapacityLimiter(4)

    @property
    def client_id(self) -> tuple[int, bytes]:
        """Its own session: id and password."""
        session, password = self._client.client_id
        return session, password

    async def _run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def _retried(self, call: Callable[[], T], done: type[KazooException] | None = None) -> T | None:
        """Call until the server answers; ``done`` says that a try was carried out before it whose answer was lost."""
        tries = 0

        def attempt() -> T | None:
            nonlocal tries
            tries += 1
            try:
                return call()
            except KazooException as error:
                if tries == 1 or done is None or not isinstance(error, done):
                    raise
                return None

        return await self._run(partial(self._client.retry, attempt))

    async def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False) -> None:
        """Create a znode, and its parents where they are missing."""
        call = partial(self._client.create, path, data, ephemeral=ephemeral, makepath=True)
        await self._retried(call, NodeExistsError)

    async def set(self, path: str, data: bytes) -> None:
        """Write a znode that is there."""
        await self._retried(partial(self._client.set, path, data))

    async def delete(self, path: str) -> None:
        """Delete a znode and all below it, in transactions of some hundreds where these have nothing below them."""
        children = await self._retried(partial(self._client.get_children, path)) or ()
        below = [f"{path.rstrip('/')}/{child}" for child in children]
        for start in range(0, len(below), self.BATCH):
            batch = below[start : start + self.BATCH]
            try:
                await self._transactions([("delete", (child,)) for child in batch], NoNodeError)
            except NotEmptyError:
                for child in batch:
                    await self.delete(child)
        await self._retried(partial(self._client.delete, path), NoNodeError)

    async def create_many(self, nodes: Mapping[str, bytes]) -> None:
        """Create znodes and the parents that they need, in transactions of some hundreds: 10,000 in half a second."""
        for parent in {path.rpartition("/")[0] for path in nodes} - set(nodes) - {""}:
            await self._retried(partial(self._client.ensure_path, parent))
        await self._transactions([("create", (path, nodes[path])) for path in sorted(nodes)], NodeExistsError)

    async def set_many(self, nodes: Mapping[str, bytes]) -> None:
        """Write znodes that are there, in transactions of some hundreds."""
        await self._transactions([("set_data", item) for item in nodes.items()])

    async def get_all(self, path: str) -> dict[str, bytes]:
        """Read the znode and all below it as they are now; empty when it isn't there."""
        await self._retried(partial(self._client.sync, "/"))
        return await self._walk(path)

    async def set_acl(self, path: str, permissions: str) -> None:
        """Allow everybody what the letters say: c(reate), d(elete), r(ead), w(rite), a(dmin). Keep "a" to undo it."""
        names = {"c": "create", "d": "delete", "r": "read", "w": "write", "a": "admin"}
        acl = make_acl("world", "anyone", **{names[letter]: True for letter in permissions})
        await self._retried(partial(self._client.set_acls, path, [acl]))

    async def _walk(self, path: str) -> dict[str, bytes]:
        """Read the znode and all below it, level by level."""
        found: dict[str, bytes] = {}
        level = [path]
        while level:
            read = dict(zip(level, await self._each(self._client.get_async, level), strict=True))
            found |= {name: answer[0] or b"" for name, answer in read.items() if answer is not None}
            parents = [name for name, answer in read.items() if answer is not None and answer[1].numChildren]
            listed = zip(parents, await self._each(self._client.get_children_async, parents), strict=True)
            level = [f"{name.rstrip('/')}/{child}" for name, children in listed for child in children or ()]
        return found

    async def _each(self, method: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
        """Call for each path without waiting for the answers in between; None for one that isn't there."""

        def outcome(answer: Any) -> Any:
            try:
                return answer.get()
            except NoNodeError:
                return None

        def batch(names: Sequence[str]) -> list[Any]:
            return [outcome(answer) for answer in [method(name) for name in names]]

        found: list[Any] = []
        for start in range(0, len(paths), self.BATCH):
            found += await self._retried(partial(batch, paths[start : start + self.BATCH])) or []
        return found

    async def _transactions(
        self, steps: Iterable[tuple[str, tuple[Any, ...]]], done: type[KazooException] | None = None
    ) -> None:
        def commit(batch: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
            transaction = self._client.transaction()
            for method, arguments in batch:
                getattr(transaction, method)(*arguments)
            # The first failure that isn't "rolled back because of another" is the reason.
            errors = [answer for answer in transaction.commit_async().get() if isinstance(answer, Exception)]
            if errors:
                raise next((error for error in errors if type(error).__name__ != "RolledBackError"), errors[0])

        for batch in self._batches(steps):
            await self._retried(partial(commit, batch), done)

    def _batches(self, steps: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
        batch: list[tuple[str, tuple[Any, ...]]] = []
        size = 0
        for step in steps:
            step_size = sum(map(len, step[1]))
            if batch and (len(batch) == self.BATCH or size + step_size > self.BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(step)
            size += step_size
        if batch:
            yield batch

    def open(self) -> None:
        """Connect."""
        self._client.start(timeout=PATIENCE)

    def close(self) -> None:
        """End the session, and with it its ephemeral znodes; where no server hears it, its timeout does that."""
        self._client.stop()
        self._client.close()


@asynccontextmanager
async def open_tree(hosts: str, **options: Any) -> AsyncIterator[Tree]:
    """Write and read at these servers for the time of the block; ``options`` are those of `Tree`."""
    tree = Tree(hosts, **options)
    try:
        await trio.to_thread.run_sync(tree.open)
        yield tree
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tree.close)


async def expire(server: ZooKeeperServer, client_id: tuple[int, bytes]) -> None:
    """Expire a session on the real server at once, as its timeout would: its client is told on its next connect.

    A second connection takes the session over and closes it. The server drops the session's own connection at that;
    should its client be back, and have taken the session back, before the close is read, this tries again.
    """
    session, password = client_id
    connect = struct.pack(">iqiqi", 0, 0, 10_000, session, len(password)) + password + b"\0"
    close = struct.pack(">ii", 1, -11)
    request = b"".join(struct.pack(">i", len(packet)) + packet for packet in (connect, close))
    with trio.fail_after(PATIENCE):
        while session in await server.sessions():
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                try:
                    await stream.send_all(request)
                    async for _ in stream:  # until the server closes, which it does when the session is closed
                        pass
                except trio.BrokenResourceError:
                    pass
