"""A session with real servers, over a network that does what the test says, and its followers."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress

import pytest
import trio
import trio.lowlevel

from trio_sd.discovery.zookeeper import session as session_module
from trio_sd.discovery.zookeeper.ensemble import DigestAuth, Ensemble
from trio_sd.discovery.zookeeper.events import Changed, Connected, Disconnected, LateError, LostError
from trio_sd.discovery.zookeeper.protocol import (
    Answer,
    Data,
    EventType,
    Exists,
    ProtocolError,
    Read,
    Refusal,
    Reply,
    Request,
    ZnodeEvent,
    answer_of,
    multi_read,
    single_read,
)
from trio_sd.discovery.zookeeper.session import Follower, Session, open_session
from trio_sd.errors import DiscoveryError
from trio_sd.secrets import Secret

from .fake_zookeeper import FakeConnection, fake_zookeeper
from .tcp_proxy import UNKNOWN_BEFORE_3_6, Proxy, open_proxy
from .test_discovery_zookeeper_link import (
    black_hole,
    counted,
    descriptors,
    ensemble,
    eventually,
    greets_only,
    mute,
    threads,
)
from .zookeeper import ZooKeeperServer, expire, needs_zookeeper, open_tree

NO_NODE = Refusal(-101)
NO_AUTH = Refusal(-102)
WINDOW = 128


async def connected(follower: Follower) -> Connected:
    """Wait until there is a connection."""
    while not isinstance(event := await follower.next_event(), Connected):
        pass
    return event


@asynccontextmanager
async def followed(
    servers: Ensemble, *roots: str, patience: float = 10, watch: bool = True
) -> AsyncIterator[tuple[Session, Follower]]:
    """Open a session, follow the roots, and wait until there is a connection and they are watched."""
    with trio.fail_after(patience):
        async with open_session(servers) as session, session.follow(roots) as follower:
            await connected(follower)
            if watch:
                assert await session.watch_recursively(roots)
            yield session, follower


async def read(session: Session, *reads: tuple[Read, str], watch: bool = False) -> list[Answer]:
    """Return the answers, which come in the order of the reads."""
    found: list[tuple[Read, str]] = []
    answers: list[Answer] = []

    def take(what: Read, path: str, answer: Answer) -> None:
        found.append((what, path))
        answers.append(answer)

    await session.read(reads, take, watch=watch)
    assert found == list(reads)
    return answers


async def read_data(session: Session, path: str) -> bytes:
    [answer] = await read(session, (Read.DATA, path))
    assert isinstance(answer, Data)
    return answer.content


async def watch_count_is(server: ZooKeeperServer, count: int) -> None:
    """Wait until the server has so many watches."""
    with trio.fail_after(3):
        while True:
            if await server.watch_count() == count:
                return
            await trio.sleep(0.01)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions that a group consists of."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


# --- Reading ---


@needs_zookeeper
@pytest.mark.parametrize("watch", [False, True])
async def test_reads_are_answered_in_their_order(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str, watch: bool
) -> None:
    root = zookeeper_root
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create_many({f"{root}/{number}": b"%d" % number for number in range(700)})
        await tree.create(f"{root}/名前/x", ephemeral=True)
        await tree.create(f"{root}/secret")
        await tree.set_acl(f"{root}/secret", "a")
        async with followed(ensemble(shared_zookeeper.port), root) as (session, _):
            answers = await read(
                session,
                *((Read.DATA, f"{root}/{number}") for number in range(701)),
                (Read.DATA, f"{root}/secret"),
                (Read.CHILDREN, f"{root}/secret"),
                (Read.CHILDREN, f"{root}/名前"),
                (Read.CHILDREN, f"{root}/none"),
                (Read.DATA, f"{root}/名前/x"),
                watch=watch,
            )
            assert [answer.content for answer in answers[:700] if isinstance(answer, Data)] == [
                b"%d" % number for number in range(700)
            ]
            assert answers[700:705] == [NO_NODE, NO_AUTH, NO_AUTH, ("x",), NO_NODE]
            last = answers[705]
            assert isinstance(last, Data)
            assert last.ephemeral


@needs_zookeeper
async def test_whether_a_znode_exists_is_answered_whether_it_does_or_not(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), zookeeper_root, watch=False) as (session, follower),
    ):
        assert await read(session, (Read.EXISTS, zookeeper_root), watch=True) == [NO_NODE]
        await tree.create(zookeeper_root)
        assert await follower.next_event() == Changed({zookeeper_root: frozenset({EventType.CREATED})})
        [answer] = await read(session, (Read.EXISTS, zookeeper_root), watch=True)
        assert type(answer) is Exists


@needs_zookeeper
async def test_twenty_thousand_znodes_are_read_with_few_requests(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    nodes = {f"{zookeeper_root}/{number % 20}/{number}": b"%d" % number for number in range(20_000)}
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create_many(nodes)
        async with followed(ensemble(shared_zookeeper.port, timeout=10), zookeeper_root) as (session, _):
            before = session.statistics().requests
            answers = await read(session, *((Read.DATA, path) for path in nodes))
            assert [answer.content for answer in answers if isinstance(answer, Data)] == list(nodes.values())
            assert session.statistics().requests - before < 100
        await tree.delete(zookeeper_root)


@needs_zookeeper
async def test_large_znodes_are_read_in_answers_of_a_bounded_size(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    root, content = zookeeper_root, b"x" * 1_000_000
    async with open_tree(shared_zookeeper.hosts) as tree:
        for number in range(24):
            await tree.create(f"{root}/{number}", content)
        async with followed(ensemble(shared_zookeeper.port, timeout=10), root) as (session, _):
            await read(session, (Read.DATA, root), (Read.CHILDREN, root))  # of which it learns that znodes are small
            sizes: list[int] = []
            send = session._send

            def measured(request: Request) -> session_module._Pending:
                pending = send(request)
                hand_over = pending._hand_over

                def measure(done: session_module._Pending) -> None:
                    if isinstance(done._received, Reply):
                        sizes.append(len(done._received.buffer))
                    hand_over(done)

                pending._hand_over = measure
                return pending

            session._send = measured  # type: ignore[method-assign]
            answers = await read(session, *((Read.DATA, f"{root}/{number}") for number in range(24)))
            assert all(isinstance(answer, Data) and answer.content == content for answer in answers)
            assert max(sizes) < 5 * session_module._BATCH_BYTES
        await tree.delete(root)


@pytest.mark.parametrize("name", ["x", "名", "x" * 500, "名" * 5_000, "é" * 200_000])
def test_the_reads_of_one_request_are_bounded_by_the_bytes_of_their_paths(name: str) -> None:
    reads = [(Read.DATA, f"/{number}/{name}") for number in range(1_200)]
    position, found = 0, list[tuple[Read, str]]()
    while position < len(reads):
        batch = session_module._fitting(reads, position, 500)
        assert 1 <= len(batch) <= 500
        assert len(batch) == 1 or len(multi_read(batch).body) < 512 * 1024  # a server takes 1 MB
        if len(name) < 10:
            assert len(batch) == min(500, len(reads) - position), "short paths are not held up"
        found += batch
        position += len(batch)
    assert found == reads


async def test_long_paths_are_read_in_requests_that_a_server_takes() -> None:
    sizes: list[int] = []

    def script(connection: FakeConnection) -> None:
        connection.greet()
        while True:
            request = connection.request()
            sizes.append(len(request.body))
            if request.opcode == -11 or len(request.body) > 1_000_000:
                return
            count = request.body.count(b"/long/")
            refused = struct.pack(">i?ii", -1, False, -101, -101)
            connection.answer(request.xid, refused * count + struct.pack(">i?i", -1, True, -1))

    reads = [(Read.DATA, f"/long/{'x' * 5_000}{number}") for number in range(1_000)]
    with fake_zookeeper(script) as port:
        async with followed(ensemble(port), "/long", watch=False) as (session, _):
            assert await read(session, *reads) == [NO_NODE] * len(reads)
    assert 50_000 < max(sizes) < 512 * 1024


# --- Events ---


@needs_zookeeper
async def test_the_event_of_a_change_comes_before_an_answer_that_shows_it(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create(zookeeper_root, b"0")
        async with followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, _):
            shown = 0

            def take(what: Read, path: str, answer: Answer) -> None:
                nonlocal shown
                assert isinstance(answer, Data)
                shown = int(answer.content)
                assert shown <= session.statistics().events  # each change is one event

            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def write() -> None:
                    for number in range(1, 200):
                        await tree.set(zookeeper_root, b"%d" % number)

                while shown != 199:
                    await session.read([(Read.DATA, zookeeper_root)] * 3, take, watch=False)


@needs_zookeeper
async def test_events_of_a_znode_melt_into_one(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, follower),
    ):
        await tree.create(zookeeper_root)
        for number in range(50):
            await tree.set(zookeeper_root, b"%d" % number)
        await tree.create(f"{zookeeper_root}/a")
        await tree.delete(f"{zookeeper_root}/a")
        await read(session, (Read.DATA, zookeeper_root))
        assert await follower.next_event() == Changed(
            {
                zookeeper_root: frozenset({EventType.CREATED, EventType.DATA}),
                f"{zookeeper_root}/a": frozenset({EventType.CREATED, EventType.DELETED}),
            }
        )
        assert not follower.changed_paths
        assert session.statistics().events == 53


@needs_zookeeper
async def test_no_event_is_lost_when_waiting_is_cancelled(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    paths = {f"{zookeeper_root}/{number}" for number in range(300)}
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), zookeeper_root) as (_, follower),
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def write() -> None:
            for path in sorted(paths):
                await tree.create(path)

        seen: set[str] = set()
        rounds = 0
        while not paths <= seen:
            rounds += 1
            with trio.move_on_after(0.0005 * (rounds % 4)):
                event = await follower.next_event()
                assert isinstance(event, Changed)
                seen |= event.paths.keys()


@pytest.mark.parametrize("steps", range(2, 6))
async def test_an_event_that_is_cancelled_while_it_is_taken_is_there_still(steps: int) -> None:
    follower = Follower()
    follower._connection_changed(Connected(1))
    follower._changed(ZnodeEvent(EventType.DATA, "/a"))
    taken: list[object] = []
    with trio.fail_after(5):
        for step in range(10):
            with trio.CancelScope() as scope:
                if step % steps == 0:
                    scope.cancel()
                taken.append(await follower.next_event())
            if len(taken) == 2:
                break
    assert taken == [Connected(1), Changed({"/a": frozenset({EventType.DATA})})]


@needs_zookeeper
async def test_a_new_connection_comes_first_and_what_was_told_before_it_is_dropped(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with open_proxy(shared_zookeeper.port) as proxy, open_tree(shared_zookeeper.hosts) as tree:
        await tree.create(zookeeper_root)
        async with followed(ensemble(proxy.port), zookeeper_root) as (session, follower):
            await tree.set(zookeeper_root, b"1")
            await eventually(lambda: zookeeper_root in follower.changed_paths)
            proxy.reset()
            await eventually(lambda: session.statistics().connections == 2)
            assert not follower.changed_paths
            await session.watch_recursively([zookeeper_root])
            await tree.create(f"{zookeeper_root}/a")
            await read_data(session, f"{zookeeper_root}/a")
            assert isinstance(await follower.next_event(), Connected)
            assert await follower.next_event() == Changed({f"{zookeeper_root}/a": frozenset({EventType.CREATED})})
            proxy.refuse()
            proxy.reset()
            assert isinstance(await follower.next_event(), Disconnected)
            assert session.statistics().trouble
            await proxy.accept()
            assert isinstance(await follower.next_event(), Connected)
            assert session.statistics().trouble == ""


@needs_zookeeper
async def test_each_follower_hears_of_what_is_below_its_roots(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    root = zookeeper_root
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), "/") as (session, all_of_it),
        session.follow([f"{root}/a"]) as upper,
        session.follow([f"{root}/a/b", f"{root}/c"]) as lower,
        session.follow([f"{root}/a", f"{root}/a/b"]) as both,
        session.follow([]) as nothing,
    ):
        for follower in (upper, lower, both, nothing):
            assert isinstance(await follower.next_event(), Connected)
        await session.watch_recursively([f"{root}/a", f"{root}/a/b", f"{root}/c"])
        for path in ("a", "a/b", "a/b/x", "a/y", "ab", "c", "d"):
            await tree.create(f"{root}/{path}")
        await read(session, (Read.DATA, "/"))

        def heard(follower: Follower) -> set[str]:
            return {path.removeprefix(root + "/") for path in follower.changed_paths if path.startswith(root + "/")}

        assert heard(upper) == {"a", "a/b", "a/b/x", "a/y"}
        assert heard(lower) == {"a/b", "a/b/x", "c"}
        assert heard(both) == heard(upper)
        assert heard(all_of_it) == {"a", "a/b", "a/b/x", "a/y", "ab", "c", "d"}
        assert not heard(nothing)
        assert session.statistics().followers == 5


@needs_zookeeper
async def test_a_slow_follower_holds_up_nobody(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, quick),
        session.follow([zookeeper_root]) as slow,
    ):
        seen: set[str] = set()
        for number in range(20):
            await tree.create(f"{zookeeper_root}/{number}")
            while f"{zookeeper_root}/{number}" not in seen:
                event = await quick.next_event()
                assert isinstance(event, Changed)
                seen |= event.paths.keys()
        assert isinstance(await slow.next_event(), Connected)
        event = await slow.next_event()
        assert isinstance(event, Changed)
        assert event.paths.keys() == seen


# --- Taking watches back ---


@needs_zookeeper
async def test_watches_are_taken_back_when_their_last_follower_leaves(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    root = zookeeper_root
    others = await shared_zookeeper.watch_count()
    async with followed(ensemble(shared_zookeeper.port), f"{root}/stays") as (session, _):
        one = await shared_zookeeper.watch_count() - others  # 3.8 counts a recursive watch twice
        assert one in (1, 2)
        async with session.follow([f"{root}/a", f"{root}/shared"]):
            await session.watch_recursively([f"{root}/a", f"{root}/shared"])
            async with session.follow([f"{root}/shared", f"{root}/b", f"{root}/b/below"]):
                await session.watch_recursively([f"{root}/shared", f"{root}/b", f"{root}/b/below"])
                assert await shared_zookeeper.watch_count() - others == 5 * one
            await watch_count_is(shared_zookeeper, others + 3 * one)
        await watch_count_is(shared_zookeeper, others + one)
    await watch_count_is(shared_zookeeper, others)


@needs_zookeeper
async def test_hundreds_of_watches_are_taken_back_over_a_slow_network(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    roots = [f"{zookeeper_root}/{number}" for number in range(400)]
    others = await shared_zookeeper.watch_count()
    async with (
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port), f"{zookeeper_root}/stays", patience=20) as (session, _),
    ):
        stays = await shared_zookeeper.watch_count()
        proxy.delay = 0.005
        async with session.follow(roots):
            await session.watch_recursively(roots)
            assert await shared_zookeeper.watch_count() == stays + 400 * (stays - others)
            begun = trio.current_time()
        assert trio.current_time() - begun < 1
        assert await shared_zookeeper.watch_count() == stays
        assert window(session) == WINDOW


@needs_zookeeper
async def test_a_watch_above_survives_that_of_a_follower_below(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    root = zookeeper_root
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), root) as (session, follower),
    ):
        async with session.follow([f"{root}/a"]):
            await session.watch_recursively([f"{root}/a"])
        await tree.create(f"{root}/a/x")
        await read(session, (Read.DATA, root))
        assert {root, f"{root}/a", f"{root}/a/x"} <= follower.changed_paths


@needs_zookeeper
@pytest.mark.parametrize("delay", [0.0, 0.01])
async def test_a_follower_that_comes_while_another_leaves_keeps_its_watch(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str, delay: float
) -> None:
    root = f"{zookeeper_root}/a"
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port), f"{zookeeper_root}/stays") as (session, _),
    ):
        proxy.delay = delay
        for steps in range(8):
            entered, leave = trio.Event(), trio.Event()

            async def first(entered: trio.Event, leave: trio.Event) -> None:
                async with session.follow([root]):
                    await session.watch_recursively([root])
                    entered.set()
                    await leave.wait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(first, entered, leave)
                await entered.wait()
                leave.set()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                async with session.follow([root]) as second:
                    await session.watch_recursively([root])
                    await eventually(lambda: not nursery.child_tasks)
                    await tree.create(f"{root}/{steps}-{delay}")
                    await read(session, (Read.DATA, root))
                    assert f"{root}/{steps}-{delay}" in second.changed_paths


@needs_zookeeper
async def test_who_leaves_without_a_watch_disturbs_nobody(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, _):
        async with session.follow([f"{zookeeper_root}/never watched"]):
            pass
        assert await read(session, (Read.DATA, zookeeper_root)) == [NO_NODE]
        assert session.statistics().connections == 1


@needs_zookeeper
async def test_who_leaves_a_server_without_recursive_watches_disturbs_nobody(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    # removeWatches is younger than what such a server may be: it drops the connection over it.
    async with open_proxy(shared_zookeeper.port) as proxy:
        proxy.unknown = UNKNOWN_BEFORE_3_6 | {18}
        async with followed(ensemble(proxy.port), zookeeper_root, watch=False) as (session, follower):
            while session.recursive_watches.usable:
                with suppress(LostError):
                    await session.watch_recursively([zookeeper_root])
                await connected(follower)
            before = session.statistics().connections
            async with session.follow([f"{zookeeper_root}/a"]):
                assert not await session.watch_recursively([f"{zookeeper_root}/a"])
                await read(session, (Read.EXISTS, f"{zookeeper_root}/a"), watch=True)
            assert await read(session, (Read.DATA, zookeeper_root)) == [NO_NODE]
            assert session.statistics().connections == before


@needs_zookeeper
async def test_leaving_is_not_held_up_by_a_server_that_is_silent(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with (
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port, timeout=10), f"{zookeeper_root}/stays") as (session, _),
    ):
        async with session.follow([zookeeper_root]):
            await session.watch_recursively([zookeeper_root])
            proxy.partition()
            begun = trio.current_time()
        assert trio.current_time() - begun < 1.5
        proxy.heal()


# --- What servers can ---


@needs_zookeeper
async def test_not_being_connected_is_no_reason_to_give_up_recursive_watches(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with (
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port), zookeeper_root, watch=False) as (session, follower),
    ):
        proxy.refuse()
        proxy.reset()
        assert isinstance(await follower.next_event(), Disconnected)
        for _ in range(5):
            with pytest.raises(LostError):  # nothing was sent, so no connection was lost over it
                await session.watch_recursively([zookeeper_root])
        await proxy.accept()
        await connected(follower)
        assert await session.watch_recursively([zookeeper_root])


@needs_zookeeper
async def test_one_lost_connection_counts_once_however_many_have_asked(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with (
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port), zookeeper_root, watch=False) as (session, follower),
    ):
        proxy.partition()
        async with trio.open_nursery() as nursery:
            for number in range(3):

                async def ask(number: int) -> None:
                    with pytest.raises(LostError):
                        await session.watch_recursively([f"{zookeeper_root}/{number}"])

                nursery.start_soon(ask, number)
            await eventually(lambda: session.statistics().requests == 3)
            proxy.reset()
            proxy.heal()
        await connected(follower)
        assert await session.watch_recursively([zookeeper_root])


def usable(operation: session_module._Operation) -> bool:
    """Return whether it is, now."""
    return operation.usable


def test_an_operation_that_connections_were_lost_over_is_forgiven() -> None:
    operation = session_module._Operation()
    for _ in range(2):
        operation.lost(1)
        assert usable(operation)
        operation.lost(2)
        assert not usable(operation)
        operation.forgive()
        assert usable(operation)


def test_an_operation_that_was_refused_is_not_forgiven() -> None:
    operation = session_module._Operation()
    operation.lost(1)
    operation.refused()
    operation.forgive()
    assert not usable(operation)


@needs_zookeeper
@pytest.mark.parametrize("opcode", [106, 22])
async def test_what_was_given_up_is_tried_again_after_a_connection_on_which_everything_was_read(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str, opcode: int
) -> None:
    async with open_proxy(shared_zookeeper.port) as proxy:
        proxy.dropped = {opcode}
        async with followed(ensemble(proxy.port), zookeeper_root, watch=False, patience=20) as (session, follower):
            operation = session.recursive_watches if opcode == 106 else session.batched_reads

            async def use() -> None:
                await session.watch_recursively([zookeeper_root])
                assert await read(session, *[(Read.DATA, zookeeper_root)] * 3) == [NO_NODE] * 3

            async def reconnect() -> None:
                proxy.reset()
                await connected(follower)

            for _ in range(2):
                while operation.usable:
                    with pytest.raises(LostError):
                        await use()
                    await connected(follower)
                await reconnect()
                assert not operation.usable
                await use()
                session.completed_full_read()
                assert not operation.usable, "not on this connection"
                await reconnect()
                assert operation.usable
            proxy.dropped = ()
            await reconnect()
            await use()
            assert await session.watch_recursively([zookeeper_root])


@needs_zookeeper
async def test_what_a_server_has_refused_is_not_tried_again(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with open_proxy(shared_zookeeper.port) as proxy:
        proxy.unknown = UNKNOWN_BEFORE_3_6
        async with followed(ensemble(proxy.port), zookeeper_root, watch=False) as (session, follower):
            while session.recursive_watches.usable:
                with suppress(LostError):
                    await session.watch_recursively([zookeeper_root])
                await connected(follower)
            session.completed_full_read()
            proxy.reset()
            await connected(follower)
            assert not await session.watch_recursively([zookeeper_root])


# --- The window ---


def window(session: Session) -> int:
    """Return how many requests may be sent."""
    return session._window.value


@needs_zookeeper
async def test_thousands_of_reads_end_when_connections_are_cut(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    outcomes = {"answered": 0, "lost": 0}
    async with (
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port, timeout=5), zookeeper_root, patience=15) as (session, follower),
    ):

        async def reader(number: int) -> None:
            reads = [(Read.DATA, f"{zookeeper_root}/{number}")] * (1 + number % 3)
            try:
                assert await read(session, *reads, watch=number % 2 == 0) == [NO_NODE] * len(reads)
                outcomes["answered"] += 1
            except LostError:
                outcomes["lost"] += 1

        for cut in (proxy.reset, proxy.partition, proxy.reset):
            async with trio.open_nursery() as nursery:
                for number in range(1_000):
                    nursery.start_soon(reader, number)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                cut()
                proxy.reset()
                proxy.heal()
            while not session.connected:
                await follower.next_event()
        assert sum(outcomes.values()) == 3_000
        assert outcomes["lost"]
        assert await read(session, (Read.DATA, zookeeper_root)) == [NO_NODE]
        assert window(session) == WINDOW
        assert not session._under_way


@needs_zookeeper
async def test_readers_that_are_cancelled_leave_nothing_in_the_window(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, _):

        async def reader() -> None:
            await read(session, *[(Read.DATA, zookeeper_root)] * 3, watch=True)

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(reader)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert await read(session, *[(Read.DATA, zookeeper_root)] * WINDOW, watch=True) == [NO_NODE] * WINDOW
        assert window(session) == WINDOW


@needs_zookeeper
async def test_a_partition_is_noticed_in_time(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with (
        open_proxy(shared_zookeeper.port) as proxy,
        followed(ensemble(proxy.port, timeout=1.5), zookeeper_root) as (session, _),
    ):
        proxy.partition()
        begun = trio.current_time()
        with pytest.raises((LateError, LostError)):
            await read(session, (Read.DATA, zookeeper_root))
        assert trio.current_time() - begun < 2
        proxy.heal()


@contextmanager
def late_server() -> Iterator[tuple[int, threading.Event]]:
    """Yield the port of a server that answers nothing until an event is set, and then that nothing is there."""
    answering = threading.Event()

    def script(connection: FakeConnection) -> None:
        connection.greet()
        while True:
            request = connection.request()
            answering.wait(10)
            connection.answer(request.xid, error=0 if request.opcode == -11 else -101)

    with fake_zookeeper(script) as port:
        try:
            yield port, answering
        finally:
            answering.set()


async def test_a_server_that_is_silent_is_late_and_may_answer_after_that() -> None:
    with late_server() as (port, answering):
        async with followed(ensemble(port, timeout=0.2), "/a", watch=False) as (session, _):
            begun = trio.current_time()
            with pytest.raises(LateError, match=r"0\.2 s"):
                await read(session, (Read.DATA, "/a"))
            assert 0.15 < trio.current_time() - begun < 1
            assert session.connected
            assert window(session) == WINDOW - 1
            answering.set()
            assert await read(session, (Read.DATA, "/a")) == [NO_NODE]
            assert window(session) == WINDOW


async def test_who_gets_no_room_waits_until_there_is_some() -> None:
    outcomes = {"late": 0, "answered": 0}

    async def reader() -> None:
        try:
            assert await read(session, (Read.DATA, "/a")) == [NO_NODE]
            outcomes["answered"] += 1
        except LateError:
            outcomes["late"] += 1

    with late_server() as (port, answering):
        async with followed(ensemble(port, timeout=0.3), "/a", watch=False) as (session, _):
            async with trio.open_nursery() as nursery:
                for _ in range(3 * WINDOW):
                    nursery.start_soon(reader)
                await eventually(lambda: outcomes["late"] == WINDOW)
                assert window(session) == 0
                answering.set()
            assert sum(outcomes.values()) == 3 * WINDOW
            await eventually(lambda: window(session) == WINDOW)
            assert await read(session, (Read.DATA, "/a")) == [NO_NODE]


async def test_connections_that_are_lost_again_and_again_never_block_the_loop() -> None:
    # kazoo's thread is woken through a socket that holds 278 wake-ups here; more of them block who sends.
    ended = time.monotonic() + 1.5

    def script(connection: FakeConnection) -> None:
        connection.greet()
        if time.monotonic() > ended:
            connection.serve_rest()

    longest = 0.0
    with fake_zookeeper(script) as port:
        async with (
            followed(ensemble(port), "/a", watch=False, patience=20) as (session, _),
            trio.open_nursery() as nursery,
        ):

            async def reader() -> None:
                while True:
                    with suppress(LostError, LateError, DiscoveryError):
                        await read(session, (Read.DATA, "/a"))
                    await trio.sleep(0.001)

            for _ in range(WINDOW):
                nursery.start_soon(reader)
            last = time.monotonic()
            while last < ended:
                await trio.sleep(0.01)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            nursery.cancel_scope.cancel()
    assert longest < 0.5


async def test_connections_that_are_lost_before_the_credentials_were_taken_never_block_the_loop() -> None:
    # kazoo says that it is connected before the credentials are answered, and takes no wake-ups until they are.
    asked = threading.Semaphore(0)
    losses = 4

    def script(connection: FakeConnection) -> None:
        connection.greet()
        credentials = connection.request()
        if connection.number < losses:
            asked.acquire(timeout=1)  # not for ever: the loop that releases it may be blocked
        else:
            connection.answer(credentials.xid)
            connection.serve_rest()

    longest = 0.0
    auth = DigestAuth(username="me", password=Secret("secret"))
    with fake_zookeeper(script) as port:
        async with (
            followed(ensemble(port, auth=auth), "/a", watch=False, patience=20) as (session, _),
            trio.open_nursery() as nursery,
        ):

            async def reader() -> None:
                while True:
                    with suppress(DiscoveryError, ProtocolError):
                        await read(session, (Read.DATA, "/a"))
                    await trio.sleep(0.001)

            @nursery.start_soon
            async def release() -> None:
                for number in range(losses):
                    await eventually(lambda count=(number + 1) * WINDOW: session.statistics().requests >= count)  # type: ignore[misc]
                    asked.release()

            for _ in range(WINDOW):
                nursery.start_soon(reader)
            last = time.monotonic()
            while session.statistics().requests < (losses + 2) * WINDOW:
                await trio.sleep(0.01)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            nursery.cancel_scope.cancel()
    assert longest < 0.5


# --- Statistics ---


@needs_zookeeper
async def test_statistics_tell_how_a_session_fares(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with open_proxy(shared_zookeeper.port) as proxy, open_tree(shared_zookeeper.hosts) as tree:
        proxy.refuse()
        with trio.fail_after(10):
            async with open_session(ensemble(proxy.port)) as session:
                before = session.statistics()
                assert (before.connected, before.session_id, before.connections) == (False, 0, 0)
                assert "not connected to zookeeper 127.0.0.1" in before.trouble
                assert (before.followers, before.events, before.requests, before.expirations) == (0, 0, 0, 0)
                await eventually(lambda: "refused" in session.statistics().trouble)
                await proxy.accept()
                async with session.follow([zookeeper_root]) as follower:
                    event = await connected(follower)
                    await session.watch_recursively([zookeeper_root])
                    await tree.create(zookeeper_root)
                    await read_data(session, zookeeper_root)
                    now = session.statistics()
                    assert (now.connected, now.trouble, now.session_id) == (True, "", event.session_id)
                    assert (now.followers, now.events, now.requests, now.connections) == (1, 1, 2, 1)
                    assert now.session_id in await shared_zookeeper.sessions()
                    await expire(shared_zookeeper, session._link._client.client_id)
                    await eventually(lambda: session.statistics().expirations == 1 and session.connected)
                    later = session.statistics()
                    assert later.session_id != now.session_id
                    assert later.connections >= 2
                assert session.statistics().followers == 0


# --- The end ---


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that no thread and no descriptor is left behind."""
    await trio.to_thread.run_sync(int)  # a thread of Trio's own opens nothing after the first
    before, opened = threads(), descriptors()
    yield
    assert not threads() - before
    assert not descriptors() - opened


@needs_zookeeper
async def test_a_session_that_is_left_is_ended_on_the_server(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with nothing_left():
        for _ in range(3):
            async with followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, _):
                number = session.statistics().session_id
                begun = trio.current_time()
            assert trio.current_time() - begun < 1
            assert number not in await shared_zookeeper.sessions()


@needs_zookeeper
async def test_a_session_that_is_left_while_it_is_made_leaves_none_on_the_server(
    shared_zookeeper: ZooKeeperServer,
) -> None:
    before = await shared_zookeeper.sessions()
    async with nothing_left():
        for pause in (0.0, 0.001, 0.002, 0.005, 0.01):
            with trio.fail_after(5):
                async with open_session(ensemble(shared_zookeeper.port)):
                    await trio.sleep(pause)
    with trio.fail_after(1):
        while True:
            if not await shared_zookeeper.sessions() - before:
                return
            await trio.sleep(0.01)


@needs_zookeeper
@pytest.mark.parametrize("trouble", ["partition", "refuse", "reset", "partition and more"])
async def test_a_session_that_lost_its_server_is_left_in_bounded_time(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str, trouble: str
) -> None:
    async with open_proxy(shared_zookeeper.port) as proxy, nothing_left_but(proxy):
        async with followed(ensemble(proxy.port, timeout=30), zookeeper_root) as (session, _):
            match trouble:
                case "partition":
                    proxy.partition()
                case "refuse":
                    proxy.refuse()
                    proxy.reset()
                case "reset":
                    proxy.reset()
                case _:
                    proxy.partition()
                    with trio.move_on_after(0.01):
                        await read(session, *[(Read.DATA, zookeeper_root)] * 500, watch=True)
            begun = trio.current_time()
        assert trio.current_time() - begun < 4
        proxy.heal()


@asynccontextmanager
async def nothing_left_but(proxy: Proxy) -> AsyncIterator[None]:
    """Check that no thread of kazoo's is left, and no connection at the proxy."""
    before = threads()
    yield
    assert not threads() - before
    with trio.fail_after(3):
        await eventually(lambda: not proxy.connections)


@pytest.mark.parametrize("place", [black_hole, mute])
async def test_a_session_without_an_answer_is_left_in_bounded_time(
    place: Callable[[], AbstractContextManager[int]],
) -> None:
    with place() as port:
        async with nothing_left():
            with trio.fail_after(5):
                async with open_session(ensemble(port, timeout=60)) as session:
                    await trio.sleep(0.05)
                    assert not session.connected
                    begun = trio.current_time()
            assert trio.current_time() - begun < 3


async def test_a_session_that_the_server_does_not_end_is_left_in_bounded_time() -> None:
    before = threads()
    with greets_only() as port:
        with trio.fail_after(8):
            async with followed(ensemble(port, timeout=60), "/a", watch=False):
                begun = trio.current_time()
        assert trio.current_time() - begun < 4
        assert not [one for one in threads() - before if "zk_loop" in one.name]


async def test_a_session_with_a_name_that_does_not_resolve_is_left_in_bounded_time() -> None:
    async with nothing_left():
        with trio.fail_after(8):
            async with open_session(ensemble(2181, host="no-such-host.invalid")) as session:
                await eventually(lambda: "no-such-host.invalid" in session.trouble)
                begun = trio.current_time()
        assert trio.current_time() - begun < 3


@needs_zookeeper
async def test_a_session_that_is_cancelled_at_any_moment_leaves_nothing(shared_zookeeper: ZooKeeperServer) -> None:
    async with nothing_left():
        for pause in (0.0, 0.002, 0.01, 0.05):
            with trio.fail_after(10), trio.move_on_after(pause):
                async with open_session(ensemble(shared_zookeeper.port)) as session, session.follow(["/a"]) as follower:
                    while True:
                        await connected(follower)


@needs_zookeeper
async def test_an_error_of_the_user_is_the_only_one(shared_zookeeper: ZooKeeperServer) -> None:
    with trio.fail_after(5), pytest.raises(BaseException) as caught:  # noqa: PT012
        async with open_session(ensemble(shared_zookeeper.port)) as session, session.follow(["/a"]) as follower:
            await connected(follower)
            raise ZeroDivisionError
    assert [type(one) for one in leaves(caught.value)] == [ZeroDivisionError]


async def test_followers_hear_why_there_is_no_first_connection_and_it_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    auth, tries = counted(password=Secret("secret"))
    with fake_zookeeper(lambda connection: None) as port:
        pass
    with trio.fail_after(10):
        async with open_session(ensemble(port, auth=auth)) as session, session.follow(["/a"]) as follower:
            event = await follower.next_event()
            assert isinstance(event, Disconnected)
            assert "refused" in event.reason
            await eventually(lambda: len(tries) >= 6)
            with trio.move_on_after(0):
                raise AssertionError(await follower.next_event())
    told = [one.getMessage() for one in caplog.records if "refused" in one.getMessage() and one.levelname == "WARNING"]
    assert len(told) == 1
    assert "no connection yet" in told[0]


async def test_credentials_that_are_refused_end_the_session_of_its_users() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.answer(connection.request().xid, error=-115)

    auth = DigestAuth(username="me", password=Secret("secret"))
    with fake_zookeeper(script) as port, trio.fail_after(5), pytest.raises(BaseException) as caught:
        async with open_session(ensemble(port, auth=auth)) as session, session.follow(["/a"]):
            await trio.sleep_forever()
    [error] = leaves(caught.value)
    assert isinstance(error, DiscoveryError)
    assert "credentials" in str(error)
    assert "secret" not in str(error)


async def test_an_event_that_can_not_be_understood_ends_the_session() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.event(99, "/a")
        connection.serve_rest()

    with fake_zookeeper(script) as port, trio.fail_after(5), pytest.raises(BaseException) as caught:
        async with open_session(ensemble(port)):
            await trio.sleep_forever()
    [error] = leaves(caught.value)
    assert isinstance(error, DiscoveryError)
    assert "notification" in str(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_answer_with_an_error_that_nobody_knows_hangs_nobody() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.answer(connection.request().xid, error=-9999)
        connection.serve_rest()

    outcome: list[BaseException | Answer] = []
    with fake_zookeeper(script) as port, trio.fail_after(8):
        try:
            async with followed(ensemble(port), "/a", watch=False) as (session, _):
                try:
                    outcome += await read(session, (Read.DATA, "/a"))
                except LostError as error:
                    outcome.append(error)
                    await trio.sleep(0.2)
        except BaseExceptionGroup as errors:
            outcome += leaves(errors)
    assert outcome
    assert all(isinstance(one, DiscoveryError | Refusal) for one in outcome)


def test_what_arrives_when_trio_has_ended_hurts_nobody() -> None:
    sessions: list[Session] = []

    async def main() -> None:
        sessions.append(Session(ensemble(1)))

    trio.run(main)
    [session] = sessions
    session._hand_over(ZnodeEvent(EventType.DATA, "/a"))
    session._link._handler.close()


@needs_zookeeper
async def test_a_megabyte_is_an_answer(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with (
        open_tree(shared_zookeeper.hosts) as tree,
        followed(ensemble(shared_zookeeper.port), zookeeper_root) as (session, _),
    ):
        await tree.create(zookeeper_root, b"\0" * 1_000_000)
        await session._make_room()
        pending = session._send(single_read(Read.DATA, zookeeper_root, watch=False))
        reply = await session._reply(pending)
        assert isinstance(reply, Reply)
        answer = answer_of(Read.DATA, reply)
        assert isinstance(answer, Data)
        assert answer.content == b"\0" * 1_000_000
