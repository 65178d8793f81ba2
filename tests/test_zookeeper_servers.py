"""The servers and the network that other tests rely on do what they say."""

from __future__ import annotations

import os
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from kazoo.exceptions import NoAuthError

from .tcp_proxy import UNKNOWN_BEFORE_3_6, Proxy, open_proxy
from .zookeeper import (
    CLASS_PATH,
    PATIENCE,
    Certificates,
    ZooKeeperServer,
    expire,
    needs_zookeeper,
    old_class_path,
    open_tree,
    running_ensemble,
    running_zookeeper,
)

PING = struct.pack(">iii", 8, -2, 11)
ANSWER = 20  # bytes, when there is nothing but a header


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def receive(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = await stream.receive_some(count - len(data))
        if not chunk:
            raise EOFError(f"{data!r} and no more")
        data += chunk
    return data


@asynccontextmanager
async def greeted(port: int) -> AsyncIterator[trio.SocketStream]:
    """Connect, and make a session of 10 s."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(struct.pack(">iiqiqi", 45, 0, 0, 10_000, 0, 16) + bytes(17))
        await receive(stream, 41)
        yield stream


def request(xid: int, opcode: int) -> bytes:
    packet = struct.pack(">iii", xid, opcode, 1) + b"/" + b"\1"  # the root; "watch it", where that can be asked
    return struct.pack(">i", len(packet)) + packet


@needs_zookeeper
async def test_a_server_keeps_its_data_and_its_port_when_it_is_killed_or_stopped(tmp_path: Path) -> None:
    async with running_zookeeper(tmp_path) as server, open_tree(server.hosts, timeout=1) as tree:
        await tree.create("/a/b", b"1")
        await server.restart()
        await tree.set("/a/b", b"2")
        await server.stop()
        assert await server.mode() is None
        await server.start()
        await tree.create("/a/c", b"3", ephemeral=True)
        assert await tree.get_all("/a") == {"/a": b"", "/a/b": b"2", "/a/c": b"3"}


@needs_zookeeper
async def test_nothing_is_left_running(tmp_path: Path) -> None:
    pids: list[int] = []
    with trio.CancelScope() as scope:
        async with running_zookeeper(tmp_path / "one") as server, running_ensemble(tmp_path / "three") as ensemble:
            pids += [one.pid for one in (server, *ensemble.servers) if one.pid]
            assert all(map(lives, pids))
            scope.cancel()
            await trio.sleep_forever()
    assert len(pids) == 4
    assert not any(map(lives, pids))
    with pytest.raises(RuntimeError, match=r"doesn't serve; its log:(.|\n)*NumberFormatException"):
        async with running_zookeeper(tmp_path / "broken", settings={"tickTime": "soon"}):
            pass


@needs_zookeeper
async def test_a_tree_writes_and_reads_ten_thousand_znodes(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with open_tree(shared_zookeeper.hosts) as tree:
        nodes = {f"{zookeeper_root}/{n % 10}/{n}": b"%d" % n for n in range(10_000)}
        with trio.fail_after(PATIENCE):
            await tree.create_many(nodes)
            await tree.set_many({path: data * 2 for path, data in nodes.items()})
            part = f"{zookeeper_root}/3"
            assert await tree.get_all(part) == {
                path: data * 2 for path, data in nodes.items() if path.startswith(f"{part}/")
            } | {part: b""}
            await tree.delete(zookeeper_root)
        assert await tree.get_all(zookeeper_root) == {}


@needs_zookeeper
async def test_a_server_tells_its_sessions_connections_and_watches(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with open_tree(shared_zookeeper.hosts) as tree:
        session, _ = tree.client_id
        assert session in await shared_zookeeper.sessions()
        connections = await shared_zookeeper.connections()
        assert [one.session for one in connections if one.session in {session, None}] == [session]
        before = await shared_zookeeper.watch_count()
        async with greeted(shared_zookeeper.port) as stream:
            await stream.send_all(request(1, 3))  # does it exist?
            await receive(stream, ANSWER)
            assert await shared_zookeeper.watch_count() == before + 1

        await tree.create(f"{zookeeper_root}/mortal", ephemeral=True)
        await expire(shared_zookeeper, (session, tree.client_id[1]))
        assert session not in await shared_zookeeper.sessions()
        assert await tree.get_all(zookeeper_root) == {zookeeper_root: b""}
        assert tree.client_id[0] != session


@needs_zookeeper
async def test_permissions(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create(zookeeper_root)
        await tree.set_acl(zookeeper_root, "cdwa")
        with pytest.raises(NoAuthError):
            await tree.get_all(zookeeper_root)
        await tree.set_acl(zookeeper_root, "cdrwa")
        assert await tree.get_all(zookeeper_root)


@needs_zookeeper
async def test_an_ensemble_elects_another_leader(tmp_path: Path) -> None:
    async with running_ensemble(tmp_path) as ensemble, open_tree(ensemble.hosts) as tree:
        first = await ensemble.leader()
        await tree.create("/a", b"1")
        first.kill()
        second = await ensemble.leader()
        assert second is not first
        await tree.set("/a", b"2")
        await first.start()
        assert await first.mode() == "follower"
        async with open_tree(first.hosts) as other:
            assert await other.get_all("/a") == {"/a": b"2"}


@needs_zookeeper
async def test_tls(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path)
    async with running_zookeeper(tmp_path / "server", certificates=certificates, client_auth="need") as server:
        port = server.tls_port
        assert port is not None

        async def ask(context: ssl.SSLContext) -> bytes:
            async with await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context) as stream:
                await stream.send_all(b"ruok")
                return await receive(stream, 4)

        assert await ask(certificates.context(client=True)) == b"imok"
        with pytest.raises(trio.BrokenResourceError):
            await ask(certificates.context())
        with pytest.raises(trio.BrokenResourceError):
            await ask(ssl.create_default_context())


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def echo_through_proxy(nursery: trio.Nursery) -> trio.SocketListener:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, [listener])
    return listener


class TestProxy:
    """What a proxy does to a server that sends back what it gets."""

    async def talk(self, proxy: Proxy, data: bytes = b"hello") -> float:
        """Send and get back over a new connection, and return how long that took."""
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream, trio.open_nursery() as nursery:
            start = trio.current_time()
            nursery.start_soon(stream.send_all, data)
            assert await receive(stream, len(data)) == data
            return trio.current_time() - start

    async def test_delay_is_one_of_each_way_and_costs_no_throughput(self, nursery: trio.Nursery) -> None:
        listener = await echo_through_proxy(nursery)
        async with open_proxy(listener.socket.getsockname()[1]) as proxy:
            assert await self.talk(proxy) < 0.2
            proxy.delay = 0.1
            assert 0.2 <= await self.talk(proxy) < 0.4
            data = bytes(10_000_000)  # 150 chunks: 30 s, if each waited for the one before
            assert 0.2 <= await self.talk(proxy, data) < 3
            assert proxy.bytes_to_server == proxy.bytes_to_client == len(data) + 10
            assert proxy.accepted == 3

    async def test_a_partition_holds_everything_until_it_heals(self, nursery: trio.Nursery) -> None:
        listener = await echo_through_proxy(nursery)
        async with open_proxy(listener.socket.getsockname()[1]) as proxy:
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                await stream.send_all(b"1")
                assert await receive(stream, 1) == b"1"
                proxy.partition()
                for sender in (stream, await trio.open_tcp_stream("127.0.0.1", proxy.port)):
                    with trio.move_on_after(0.2) as scope:
                        await sender.send_all(b"2")
                        await receive(sender, 1)
                    assert scope.cancelled_caught
                await sender.aclose()
                proxy.heal()
                assert await receive(stream, 1) == b"2"
            assert await self.talk(proxy) < 0.2

    async def test_reset_breaks_both_ends_and_refusal_keeps_the_present(self, nursery: trio.Nursery) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, open_proxy(listener.socket.getsockname()[1]) as proxy:
            client = await trio.open_tcp_stream("127.0.0.1", proxy.port)
            async with client, await listener.accept() as server:
                proxy.refuse()
                with pytest.raises(OSError, match="all attempts to connect"):
                    await trio.open_tcp_stream("127.0.0.1", proxy.port)
                await client.send_all(b"still")
                assert await receive(server, 5) == b"still"
                proxy.reset()
                for end in (client, server):
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await end.receive_some()
                    assert isinstance(caught.value.__cause__, ConnectionResetError)
            await proxy.accept()
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as client:
                server = await listener.accept()
                assert proxy.connections == 1
            async with server:
                assert await server.receive_some() == b""


@needs_zookeeper
@pytest.mark.parametrize(
    "real",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(not old_class_path(), reason="no TRIO_SD_OLD_ZOOKEEPER")),
    ],
)
async def test_an_old_server(tmp_path: Path, real: bool) -> None:
    """Behind the proxy it is what the real one is: an answer that says "unimplemented", and the end."""
    async with (
        running_zookeeper(tmp_path, class_path=old_class_path() or CLASS_PATH if real else CLASS_PATH) as server,
        open_proxy(server.port) as proxy,
    ):
        if not real:
            proxy.unknown = UNKNOWN_BEFORE_3_6
        for opcode in UNKNOWN_BEFORE_3_6:
            sessions = len(await server.sessions())
            async with greeted(proxy.port) as stream:
                await stream.send_all(PING)
                assert await receive(stream, ANSWER)
                await stream.send_all(request(7, opcode))
                assert await receive(stream, ANSWER) == struct.pack(">iiqi", 16, 7, -1, -6)
                assert await stream.receive_some() == b""
                assert len(await server.sessions()) == sessions + 1


@needs_zookeeper
async def test_a_server_that_hangs_up_at_a_request(shared_zookeeper: ZooKeeperServer) -> None:
    async with open_proxy(shared_zookeeper.port) as proxy:
        proxy.dropped = {106}
        async with greeted(proxy.port) as stream:
            await stream.send_all(PING)
            assert await receive(stream, ANSWER)
            await stream.send_all(request(7, 106))
            assert await stream.receive_some() == b""
