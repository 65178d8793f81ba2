"""What the link to kazoo relies on, each thing by itself, and what it does with servers that are there, or are not."""

from __future__ import annotations

import inspect
import logging
import os
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import kazoo.version
import pytest
import trio
from kazoo.client import KazooClient
from kazoo.exceptions import (
    EXCEPTIONS,
    AuthFailedError,
    ConfigurationError,
    ConnectionClosedError,
    ConnectionLoss,
    KazooException,
    NoAuthError,
    NoNodeError,
    SessionExpiredError,
    SessionMovedError,
)
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import ConnectionHandler
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from trio_sd.discovery.zookeeper import link as link_module
from trio_sd.discovery.zookeeper.ensemble import DigestAuth, Ensemble
from trio_sd.discovery.zookeeper.events import Closed, Connected, Disconnected, Expired, LostError
from trio_sd.discovery.zookeeper.link import Delivery, Link, check_kazoo, lost_or_refused
from trio_sd.discovery.zookeeper.protocol import (
    Data,
    EventType,
    ProtocolError,
    Read,
    Refusal,
    Reply,
    Request,
    ZnodeEvent,
    add_watch,
    answer_of,
    single_read,
)
from trio_sd.errors import DiscoveryError
from trio_sd.secrets import Secret
from trio_sd.tls import TLSConfig

from .fake_zookeeper import FakeConnection, Greeting, fake_zookeeper
from .tcp_proxy import open_proxy
from .zookeeper import ZooKeeperServer, expire, needs_zookeeper, open_tree

T = TypeVar("T")

VERSION = kazoo.version.__version__
PASSWORD = "correct-horse-battery-staple"


def changed(what: str) -> str:
    """Return the message of a test that finds kazoo's inside another than before."""
    return f"kazoo {VERSION} changed {what}, which trio_sd/discovery/zookeeper/link.py relies on"


def parameters(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


def ensemble(
    *ports: int,
    timeout: float = 3.0,
    auth: DigestAuth | None = None,
    tls: TLSConfig | None = None,
    host: str = "127.0.0.1",
) -> Ensemble:
    return Ensemble(tuple((host, port) for port in ports), timeout, auth, tls)


def counted(**fields: Any) -> tuple[DigestAuth, list[float]]:
    """Return credentials, and the times at which they were read: each time that a connection was to be made."""
    times: list[float] = []

    class Counted(DigestAuth):
        def credential(self) -> Secret:
            times.append(time.monotonic())
            return super().credential()

    return Counted(username="me", **fields), times


def descriptors() -> set[tuple[str, str]]:
    """Return what is open, with what it is, but for what Trio and the test itself need while they look."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            continue
    return {(number, name) for number, name in found if name.startswith(("socket:", "pipe:", "anon_inode:"))}


def threads() -> set[threading.Thread]:
    """Return the threads that live, without those that Trio keeps for the next one that is needed."""
    return {one for one in threading.enumerate() if "trio" not in one.name.lower()}


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until what another thread does has been done; the caller bounds the time."""
    while True:
        if condition():
            return
        await trio.sleep(0.005)


class Inbox:
    """What a link delivers, or answers, brought to Trio's thread."""

    def __init__(self) -> None:
        self.items: list[object] = []
        self.threads: set[int] = set()
        self._token = trio.lowlevel.current_trio_token()
        self._arrived = trio.Event()

    def deliver(self, item: object) -> None:
        self._token.run_sync_soon(self._take, item, threading.get_ident())

    def pending(self, name: str = "") -> Pending:
        return Pending(self, name)

    def _take(self, item: object, thread: int) -> None:
        self.items.append(item)
        self.threads.add(thread)
        self._arrived.set()

    async def until(self, kind: type[T], count: int = 1) -> T:
        """Return the last of so many of a kind."""
        while len(found := [item for item in self.items if isinstance(item, kind)]) < count:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return found[count - 1]


class Answered:
    """What a request was answered with."""

    def __init__(self, name: str, outcome: object) -> None:
        self.name = name
        self.outcome = outcome


class Pending:
    """Takes an answer to where the deliveries go, so that their order shows."""

    def __init__(self, inbox: Inbox, name: str) -> None:
        self._inbox = inbox
        self._name = name

    def set(self, reply: Reply | None) -> None:
        self._inbox.deliver(Answered(self._name, reply))

    def set_exception(self, error: Exception) -> None:
        self._inbox.deliver(Answered(self._name, lost_or_refused(error)))


@asynccontextmanager
async def open_link(servers: Ensemble) -> AsyncIterator[tuple[Link, Inbox]]:
    """Start a link, and end it, by force if need be."""
    inbox = Inbox()
    link = Link(servers, inbox.deliver)
    link.start()
    try:
        with trio.fail_after(10):
            yield link, inbox
    finally:
        with trio.CancelScope(shield=True):
            await closed(link, abort_after=3)


async def closed(link: Link, *, abort_after: float) -> float:
    """Close a link, and abort that after so many seconds; return how long it took."""
    begun = trio.current_time()
    with trio.fail_after(abort_after + 3):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def abort() -> None:
                await trio.sleep(abort_after)
                link.abort()

            await trio.to_thread.run_sync(link.close, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
    return trio.current_time() - begun


# --- What is used of kazoo, each thing by itself ---


def test_kazoo_has_a_call_path_that_takes_a_request_and_where_its_answer_goes() -> None:
    assert parameters(KazooClient._call) == ["self", "request", "async_object"], changed("KazooClient._call")


def test_kazoo_reads_watch_events_in_a_method_of_its_connection() -> None:
    found = parameters(ConnectionHandler._read_watch_event)
    assert found == ["self", "buffer", "offset"], changed("ConnectionHandler._read_watch_event")


def test_kazoo_makes_a_connection_with_a_method_that_takes_a_timeout() -> None:
    found = parameters(ConnectionHandler._invoke)
    assert found == ["self", "timeout", "request", "xid"], changed("ConnectionHandler._invoke")


def test_kazoos_connection_is_made_of_a_client_a_retry_and_a_logger() -> None:
    found = parameters(ConnectionHandler.__init__)
    assert found[:4] == ["self", "client", "retry_sleeper", "logger"], changed("the making of a ConnectionHandler")


def test_kazoos_client_takes_what_the_link_gives_it() -> None:
    needed = {"hosts", "timeout", "handler", "connection_retry", "logger"}
    assert needed <= set(parameters(KazooClient.__init__)), changed("the making of a KazooClient")


def test_kazoos_retry_takes_what_the_link_gives_it() -> None:
    needed = {"max_tries", "delay", "backoff", "max_delay", "sleep_func"}
    assert needed <= set(parameters(KazooRetry.__init__)), changed("the making of a KazooRetry")
    retry = KazooRetry(max_tries=-1, sleep_func=print)
    assert retry.copy().sleep_func is print, changed("KazooRetry.copy")


def test_kazoo_waits_with_what_its_handler_waits_with() -> None:
    handler = SequentialThreadingHandler()
    try:
        KazooClient(handler=handler, connection_retry=KazooRetry(sleep_func=print))
    except ConfigurationError:
        pass
    else:
        pytest.fail(changed("the check that retry and handler sleep alike"))
    own = threading.Event()
    handler.sleep_func = own.wait
    KazooClient(handler=handler, connection_retry=KazooRetry(sleep_func=own.wait))


def test_kazoo_keeps_the_retry_that_it_was_given_and_its_connection_where_they_are_looked_for() -> None:
    handler = SequentialThreadingHandler()
    retry = KazooRetry(sleep_func=handler.sleep_func)
    client = KazooClient(handler=handler, connection_retry=retry)
    assert client._conn_retry is retry, changed("KazooClient._conn_retry")
    assert isinstance(client._connection, ConnectionHandler), changed("KazooClient._connection")
    assert retry.interrupt is not None, changed("the interruption of retries by stop()")
    assert client.auth_data == set(), changed("KazooClient.auth_data")
    assert client.client_id is None, changed("KazooClient.client_id")
    assert client.client_state == KeeperState.CLOSED, changed("KazooClient.client_state")


@pytest.mark.parametrize(
    "name",
    ["select", "create_connection", "create_socket_pair", "spawn", "event_object", "start", "stop", "sleep_func"],
)
def test_kazoos_handler_has_what_is_replaced_or_used(name: str) -> None:
    assert hasattr(SequentialThreadingHandler, name), changed(f"SequentialThreadingHandler.{name}")


@pytest.mark.parametrize("name", ["start", "stop", "select", "create_connection"])
def test_what_the_links_handler_replaces_is_there(name: str) -> None:
    assert name in vars(link_module._Handler)
    assert name in vars(SequentialThreadingHandler), changed(f"SequentialThreadingHandler.{name}")


def test_kazoos_states_have_their_names() -> None:
    states = (KazooState.CONNECTED, KazooState.SUSPENDED, KazooState.LOST)
    assert len(set(states)) == 3, changed("KazooState")
    keeper = (KeeperState.EXPIRED_SESSION, KeeperState.AUTH_FAILED, KeeperState.CLOSED, KeeperState.CONNECTING)
    assert len(set(keeper)) == 4, changed("KeeperState")


@pytest.mark.parametrize("code", [-1, -4, -6, -8, -101, -102, -112, -115, -118, -121, -124, -127])
def test_kazoo_knows_the_errors_that_servers_answer_with(code: int) -> None:
    # One that it does not know ends its thread.
    error = EXCEPTIONS[code]()
    assert isinstance(error, KazooException), changed(f"the exception for error {code}")
    assert error.code == code, changed(f"the code of {type(error).__name__}")


def test_this_kazoo_is_of_the_range_that_the_project_names() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    match = re.search(r'"kazoo>=(\d+)\.(\d+),<(\d+)\.(\d+)"', text)
    assert match is not None
    low, high = tuple(map(int, match.groups()[:2])), tuple(map(int, match.groups()[2:]))
    assert low <= tuple(map(int, VERSION.split(".")[:2])) < high


# --- What is missing from another kazoo is named ---


def test_this_kazoo_can_be_used() -> None:
    check_kazoo(KazooClient())


def test_what_a_client_has_not_is_named() -> None:
    class Other:
        _connection = None

    with pytest.raises(DiscoveryError, match=r"kazoo .*_call, _conn_retry") as caught:
        check_kazoo(Other())
    assert VERSION in str(caught.value)
    assert "_connection" not in str(caught.value)


def test_what_a_connection_has_not_is_named_and_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ConnectionHandler, "_read_watch_event")
    before = descriptors()
    with pytest.raises(DiscoveryError, match=r"ConnectionHandler\._read_watch_event"):
        Link(ensemble(1), print)
    assert not descriptors() - before


@pytest.mark.parametrize("error", [ConnectionLoss, ConnectionClosedError, SessionExpiredError, SessionMovedError])
def test_what_says_that_the_connection_was_lost_is_told_as_that(error: type[KazooException]) -> None:
    assert isinstance(lost_or_refused(error()), LostError)
    assert error.__name__ in str(lost_or_refused(error()))


def test_errors_of_the_server_are_told_by_their_code() -> None:
    assert lost_or_refused(NoNodeError()) == Refusal(-101)
    assert lost_or_refused(NoAuthError()) == Refusal(-102)
    assert isinstance(lost_or_refused(AuthFailedError()), LostError)
    assert isinstance(lost_or_refused(ValueError("odd")), LostError)


# --- How kazoo calls, with a server that does what the test says ---


async def test_a_request_of_our_own_is_sent_as_it_is_and_its_answer_handed_over_as_it_came() -> None:
    seen: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()

    def script(connection: FakeConnection) -> None:
        connection.greet()
        request = connection.request()
        seen.put((request.opcode, request.body))
        connection.answer(request.xid, b"the answer")
        connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (link, inbox):
            await inbox.until(Connected)
            link.send(Request(4242, b"the body"), inbox.pending())
            reply = (await inbox.until(Answered)).outcome
    assert seen.get_nowait() == (4242, b"the body"), changed("how KazooClient._call sends a request")
    assert isinstance(reply, Reply), changed("how a request's answer is made of bytes")
    assert reply.buffer[reply.offset :] == b"the answer", changed("where an answer begins")


async def test_an_error_in_an_answer_is_handed_over_by_its_code() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        for code in (-101, -102, -6, -121):
            connection.answer(connection.request().xid, error=code)
        connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (link, inbox):
            await inbox.until(Connected)
            for what in (Read.DATA, Read.CHILDREN, Read.DATA, Read.DATA):
                link.send(single_read(what, "/a", watch=False), inbox.pending())
            await inbox.until(Answered, 4)
            outcomes = [item.outcome for item in inbox.items if isinstance(item, Answered)]
    assert outcomes == [Refusal(-101), Refusal(-102), Refusal(-6), Refusal(-121)]


async def test_that_a_znode_does_not_exist_is_answered_with_nothing() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.answer(connection.request().xid, error=-101)
        connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (link, inbox):
            await inbox.until(Connected)
            link.send(single_read(Read.EXISTS, "/a", watch=True), inbox.pending())
            outcome = (await inbox.until(Answered)).outcome
            assert outcome is None, changed("what it makes of NoNode for the operation exists, and for that alone")


async def test_events_are_handed_over_between_answers_in_their_order_and_by_one_thread() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet(session=0x77)
        for number in range(3):
            request = connection.request()
            connection.event(1 + number, f"/event/{number}")
            connection.answer(request.xid)
        connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (link, inbox):
            await inbox.until(Connected)
            for number in range(3):
                link.send(Request(4, b""), inbox.pending(str(number)))
            await inbox.until(Answered, 3)
            assert [one.name if isinstance(one, Answered) else one for one in inbox.items] == [
                Connected(0x77),
                ZnodeEvent(EventType.CREATED, "/event/0"),
                "0",
                ZnodeEvent(EventType.DELETED, "/event/1"),
                "1",
                ZnodeEvent(EventType.DATA, "/event/2"),
                "2",
            ], changed("the order in which it calls")
            assert len(inbox.threads) == 1, changed("on which thread it calls")
            assert threading.get_ident() not in inbox.threads


@pytest.mark.parametrize("kind", [-1, 0, 5, 99])
async def test_an_event_that_is_not_known_is_handed_over_as_an_error(kind: int) -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.event(kind, "/a")
        connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (_, inbox):
            assert "notification" in str(await inbox.until(ProtocolError))


async def test_who_waits_for_an_answer_is_told_of_a_lost_connection_before_the_state() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        if connection.number == 0:
            connection.request()
        else:
            connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (link, inbox):
            await inbox.until(Connected)
            link.send(Request(4, b""), inbox.pending())
            await inbox.until(Connected, 2)
            kinds = [type(item) for item in inbox.items]
            assert kinds == [Connected, Answered, Disconnected, Connected], changed("the order in which it calls")
            assert isinstance((await inbox.until(Answered)).outcome, LostError)
            assert (await inbox.until(Disconnected)).reason
            assert link.last_trouble == ""


async def test_requests_that_are_lost_before_the_credentials_were_taken_never_block_who_sends() -> None:
    # kazoo says that it is connected before the credentials are answered, and takes no wake-ups until they are.
    hang_up: queue.SimpleQueue[None] = queue.SimpleQueue()
    losses, batch = 4, 130

    def script(connection: FakeConnection) -> None:
        connection.greet()
        credentials = connection.request()
        if connection.number < losses:
            hang_up.get(timeout=20)
        else:
            connection.answer(credentials.xid)
            connection.serve_rest()

    auth = DigestAuth(username="me", password=Secret(PASSWORD))
    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port, auth=auth, timeout=20)) as (link, inbox):

            def send() -> None:
                for _ in range(batch):
                    link.send(Request(4, b""), inbox.pending())

            for number in range(losses):
                await inbox.until(Connected, number + 1)
                with trio.move_on_after(2) as scope:
                    await trio.to_thread.run_sync(send, abandon_on_cancel=True)
                hang_up.put(None)
                assert not scope.cancelled_caught, f"blocked at connection {number}"
                await inbox.until(Answered, (number + 1) * batch)
            await inbox.until(Connected, losses + 1)
            assert all(isinstance(item.outcome, LostError) for item in inbox.items if isinstance(item, Answered))
            for _ in range(batch):  # more wake-ups than requests hurt nobody
                link.send(Request(4, b""), inbox.pending("last"))
            await inbox.until(Answered, (losses + 1) * batch)
            last = [item for item in inbox.items if isinstance(item, Answered) and item.name == "last"]
            assert len(last) == batch
            assert all(isinstance(item.outcome, Reply) for item in last)


async def test_a_session_that_has_expired_is_told_and_a_new_one_is_begun() -> None:
    def script(connection: FakeConnection) -> None:
        if connection.number == 0:
            connection.greet(session=1)
        elif connection.number == 1:
            connection.greet(session=0, timeout=0)
        else:
            connection.greet(session=2)
            connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port)) as (_, inbox):
            assert (await inbox.until(Connected, 2)).session_id == 2
            kinds = [type(item) for item in inbox.items]
            assert kinds == [Connected, Disconnected, Expired, Connected], changed("how it tells of an expired session")


async def test_servers_that_have_lost_their_data_get_a_new_session_when_the_old_one_is_over() -> None:
    # Such a server hangs up on a client that has seen later transactions than it has itself.
    refused: queue.SimpleQueue[Greeting] = queue.SimpleQueue()
    accepted: queue.SimpleQueue[Greeting] = queue.SimpleQueue()

    def script(connection: FakeConnection) -> None:
        greeting = connection.greeting()
        if greeting.zxid > 0:
            refused.put(greeting)
            return
        accepted.put(greeting)
        connection.welcome(session=70 + connection.number, timeout=1_000)
        connection.answer(connection.request().xid)  # so it has seen a transaction
        if connection.number:
            connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port, timeout=1)) as (link, inbox):
            assert (await inbox.until(Connected)).session_id == 70
            link.send(Request(4, b""), inbox.pending())
            await inbox.until(Disconnected)
            lost = time.monotonic()
            assert (await inbox.until(Connected, 2)).session_id > 70
            assert 1.9 < time.monotonic() - lost < 5, "two timeouts, and not before: the session might live"
            states = [type(item) for item in inbox.items if isinstance(item, Connected | Expired | Closed)]
            assert states == [Connected, Expired, Connected]
            link.send(Request(4, b""), inbox.pending())
            assert isinstance((await inbox.until(Answered, 2)).outcome, Reply)
    assert refused.qsize() > 1
    assert refused.get_nowait() == Greeting(1, 1_000, 70)
    assert [accepted.get_nowait().session for _ in range(2)] == [0, 0]
    assert accepted.empty()


async def test_a_session_that_is_found_again_in_time_is_gone_on_with() -> None:
    greetings: queue.SimpleQueue[Greeting] = queue.SimpleQueue()

    def script(connection: FakeConnection) -> None:
        greetings.put(connection.greeting())
        connection.welcome(session=70, timeout=1_000)
        if connection.number < 5:
            connection.answer(connection.request().xid)
        else:
            connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port, timeout=1)) as (link, inbox):
            for number in range(1, 6):  # in all, longer than a session lives alone
                await inbox.until(Connected, number)
                await trio.sleep(0.5)
                link.send(Request(4, b""), inbox.pending())
            await inbox.until(Connected, 6)
            assert not [item for item in inbox.items if isinstance(item, Expired | Closed)]
    assert [greetings.get_nowait().session for _ in range(6)] == [0, 70, 70, 70, 70, 70]


async def test_credentials_are_sent_first_and_those_that_are_refused_end_everything() -> None:
    seen: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()

    def script(connection: FakeConnection) -> None:
        connection.greet()
        request = connection.request()
        seen.put((request.opcode, request.body))
        connection.answer(request.xid, error=-115)

    auth = DigestAuth(username="me", password=Secret(PASSWORD))
    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port, auth=auth)) as (_, inbox):
            assert "credentials" in (await inbox.until(Closed)).reason
    credential = f"me:{PASSWORD}".encode()
    expected = struct.pack(">ii6si", 0, 6, b"digest", len(credential)) + credential
    assert seen.get_nowait() == (100, expected), changed("how it sends KazooClient.auth_data")


async def test_a_password_is_read_anew_for_every_connection(tmp_path: Path) -> None:
    seen: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    file = tmp_path / "password"
    file.write_text("first")

    def script(connection: FakeConnection) -> None:
        connection.greet()
        request = connection.request()
        seen.put(request.body[18:])
        file.write_text("second")
        connection.answer(request.xid)
        if connection.number:
            connection.serve_rest()

    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port, auth=DigestAuth(username="me", password_file=str(file)))) as (_, inbox):
            await inbox.until(Connected, 2)
            with trio.fail_after(5):
                found = [await trio.to_thread.run_sync(seen.get) for _ in range(2)]
    assert found == [b"me:first", b"me:second"]


async def until_trouble(link: Link, text: str) -> None:
    """Wait until the link's trouble tells of this; what happens while connecting is delivered to nobody."""
    with trio.move_on_after(4):
        await eventually(lambda: text in link.last_trouble)
    assert text in link.last_trouble


async def test_a_password_file_that_is_missing_is_the_trouble_until_it_is_there(tmp_path: Path) -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.serve_rest()

    file = tmp_path / "password"
    with fake_zookeeper(script) as port:
        async with open_link(ensemble(port, auth=DigestAuth(username="me", password_file=str(file)))) as (link, inbox):
            await until_trouble(link, str(file))
            file.write_text("now")
            await inbox.until(Connected)
            assert link.last_trouble == ""


async def test_why_there_is_no_first_connection_is_told_once_for_each_reason(tmp_path: Path) -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.serve_rest()

    file = tmp_path / "password"
    auth, tries = counted(password_file=str(file))
    with fake_zookeeper(lambda connection: None) as port:
        pass
    async with open_link(ensemble(port, auth=auth)) as (link, inbox):
        await eventually(lambda: len(tries) >= 3)
        file.write_text("now")
        before = len(tries)
        await eventually(lambda: len(tries) >= before + 4)
        assert [type(item) for item in inbox.items] == [Disconnected, Disconnected]
        reasons = [item.reason for item in inbox.items if isinstance(item, Disconnected)]
        assert str(file) in reasons[0]
        assert "refused" in reasons[1]
        assert link.last_trouble == reasons[1]
        for prefix in ("Connection dropped", "socket connection error", "Connection time-out"):
            assert prefix not in " ".join(reasons)


async def test_why_a_lost_connection_can_not_be_made_again_is_told_once_each_time() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        while True:
            connection.answer(connection.request().xid)

    auth, tries = counted(password=Secret(PASSWORD))
    with fake_zookeeper(script) as port:
        async with open_proxy(port) as proxy, open_link(ensemble(proxy.port, auth=auth)) as (_, inbox):
            for number in (1, 2):
                await inbox.until(Connected, number)
                inbox.items[:-1] = []
                before = len(tries)
                proxy.refuse()
                proxy.reset()
                await eventually(lambda before=before: len(tries) >= before + 4)  # type: ignore[misc]
                reasons = [item.reason for item in inbox.items if isinstance(item, Disconnected)]
                assert len(reasons) == len(inbox.items) - 1
                assert len(set(reasons)) == len(reasons)
                assert "refused" in reasons[-1]
                inbox.items[:] = [Connected(0)] * number
                await proxy.accept()


async def gaps_between(times: Callable[[], list[float]], count: int) -> list[float]:
    """Wait for so many tries, and return the seconds between them."""
    await eventually(lambda: len(times()) >= count)
    return [later - earlier for earlier, later in pairwise(times()[:count])]


async def test_a_password_that_can_not_be_read_is_tried_again_after_growing_pauses(tmp_path: Path) -> None:
    auth, tries = counted(password_file=str(tmp_path / "password"))
    with mute() as port:
        async with open_link(ensemble(port, auth=auth)):
            gaps = await gaps_between(lambda: tries, 5)
    assert gaps[3] > 0.8 > gaps[0]


async def test_a_tls_handshake_that_fails_is_tried_again_after_growing_pauses() -> None:
    tries: list[float] = []
    with fake_zookeeper(lambda connection: tries.append(time.monotonic())) as port:
        async with open_link(ensemble(port, tls=TLSConfig())) as (link, _):
            gaps = await gaps_between(lambda: tries, 5)
            assert link.last_trouble
    assert gaps[3] > 0.8 > gaps[0]


async def test_a_certificate_that_can_not_be_read_is_tried_again_after_growing_pauses(tmp_path: Path) -> None:
    file = str(tmp_path / "ca.pem")
    auth, tries = counted(password=Secret(PASSWORD))
    with mute() as port:
        async with open_link(ensemble(port, auth=auth, tls=TLSConfig(ca_file=file))) as (link, _):
            gaps = await gaps_between(lambda: tries, 5)
            assert file in link.last_trouble
    assert gaps[3] > 0.8 > gaps[0]


async def test_refused_connections_are_tried_again_quickly() -> None:
    auth, tries = counted(password=Secret(PASSWORD))
    with fake_zookeeper(lambda connection: None) as port:
        pass
    async with open_link(ensemble(port, auth=auth)):
        gaps = await gaps_between(lambda: tries, 7)
    assert sum(gaps) < 4  # with growing pauses, it would be twice that


async def test_pauses_grow_to_ten_seconds_and_end_with_a_connection_or_an_abort(tmp_path: Path) -> None:
    auth, tries = counted(password_file=str(tmp_path / "password"))
    link = Link(ensemble(1, auth=auth), print)
    for _ in range(2_000):
        link._handler._grow_pause()
    assert link._handler._pause == 10
    link._handler.connected()
    assert link._handler._pause == 0
    for _ in range(2_000):
        link._handler._grow_pause()
    link.start()
    with trio.move_on_after(0.1):  # it is in the pause, or is about to be
        await eventually(lambda: bool(tries))
    assert not tries
    assert await closed(link, abort_after=0.1) < 1


async def test_a_refused_connection_is_the_trouble() -> None:
    with fake_zookeeper(lambda connection: None) as port:
        pass
    async with open_link(ensemble(port)) as (link, _):
        await until_trouble(link, "refused")


async def test_a_connection_that_is_not_made_in_time_is_the_trouble() -> None:
    with black_hole() as port:
        async with open_link(ensemble(port, timeout=1)) as (link, _):
            await until_trouble(link, "in time")


async def test_a_name_that_does_not_resolve_is_the_trouble() -> None:
    async with open_link(ensemble(2181, host="no-such-host.invalid")) as (link, _):
        await until_trouble(link, "no-such-host.invalid")


@pytest.mark.parametrize(("session_timeout", "bound"), [(1.0, 1.0), (3.0, 3.0), (9.0, 3.0), (12.0, 4.0), (60.0, 20.0)])
async def test_a_server_has_a_third_of_the_sessions_timeout_to_answer_a_new_connection_but_three_seconds_at_least(
    session_timeout: float, bound: float
) -> None:
    # Or all of it, where that is less.
    waits: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    with mute() as port:
        link = Link(ensemble(port, timeout=session_timeout), print)
        select = link._handler.select

        def recorded(rlist: Any, wlist: Any, xlist: Any, timeout: float | None = None) -> Any:
            if rlist:
                waits.put(timeout)
            return select(rlist, wlist, xlist, timeout)

        link._handler.select = recorded  # type: ignore[method-assign]
        link.start()
        try:
            with trio.fail_after(5):
                assert await trio.to_thread.run_sync(waits.get, abandon_on_cancel=True) == pytest.approx(bound)
        finally:
            link.abort()
            await closed(link, abort_after=1)


@pytest.mark.parametrize("host", ["zk..example.invalid", "x" * 70 + ".invalid"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_name_that_can_be_no_name_is_the_trouble_or_the_end(host: str) -> None:
    async with open_link(ensemble(2181, host=host)) as (link, inbox):
        with trio.move_on_after(2):
            await eventually(lambda: bool(link.last_trouble or inbox.items))
        assert link.last_trouble or inbox.items, "nobody is told that kazoo's thread has ended"


# --- Closing, and breaking that off ---


@contextmanager
def black_hole() -> Iterator[int]:
    """Yield a port where connections are neither made nor refused: too many wait to be accepted."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()[1]
        finally:
            for one in waiting:
                one.close()


@contextmanager
def mute() -> Iterator[int]:
    """Yield a port where connections are made, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def greets_only() -> Iterator[int]:
    """Yield the port of a server that makes sessions, and answers nothing else."""

    def script(connection: FakeConnection) -> None:
        connection.greet()
        while True:
            connection.packet()

    with fake_zookeeper(script) as port:
        yield port


@pytest.mark.parametrize("place", [black_hole, mute, greets_only])
async def test_closing_can_be_broken_off_whatever_it_waits_for(
    place: Callable[[], AbstractContextManager[int]],
) -> None:
    with place() as port:
        before, opened = threads(), descriptors()
        inbox = Inbox()
        link = Link(ensemble(port, timeout=60), inbox.deliver)
        link.start()
        if place is greets_only:
            with trio.fail_after(5):
                await inbox.until(Connected)
        assert await closed(link, abort_after=0.2) < 1.5
        if place is not greets_only:
            assert threads() == before
            assert descriptors() == opened
        assert not [one for one in threads() - before if "zk_loop" in one.name]


@pytest.mark.parametrize("place", [black_hole, mute])
async def test_an_abort_before_closing_lets_it_return_at_once(place: Callable[[], AbstractContextManager[int]]) -> None:
    with place() as port:
        before, opened = threads(), descriptors()
        link = Link(ensemble(port, timeout=60), print)
        link.start()
        link.abort()
        assert await closed(link, abort_after=5) < 2
        link.abort()  # nothing happens
        assert (threads(), descriptors()) == (before, opened)


async def test_a_link_without_a_server_closes_at_once() -> None:
    with fake_zookeeper(lambda connection: None) as port:
        pass
    before, opened = threads(), descriptors()
    link = Link(ensemble(port), print)
    link.start()
    assert await closed(link, abort_after=5) < 2
    assert (threads(), descriptors()) == (before, opened)


async def test_a_link_whose_thread_has_ended_closes() -> None:
    def script(connection: FakeConnection) -> None:
        connection.greet()
        connection.answer(connection.request().xid, error=-115)

    with fake_zookeeper(script) as port:
        inbox = Inbox()
        link = Link(ensemble(port, auth=DigestAuth(username="me", password=Secret("x"))), inbox.deliver)
        link.start()
        with trio.fail_after(5):
            await inbox.until(Closed)
        assert await closed(link, abort_after=5) < 2
        link.send(Request(4, b""), inbox.pending())
        with trio.fail_after(5):
            assert isinstance((await inbox.until(Answered)).outcome, LostError)


# --- A real server ---


@needs_zookeeper
async def test_a_link_reads_and_hears_of_changes(shared_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with open_tree(shared_zookeeper.hosts) as tree, open_link(ensemble(shared_zookeeper.port)) as (link, inbox):
        await tree.create(zookeeper_root, b"content")
        session = (await inbox.until(Connected)).session_id
        assert session in await shared_zookeeper.sessions()
        link.send(add_watch(zookeeper_root), inbox.pending())
        link.send(single_read(Read.DATA, zookeeper_root, watch=False), inbox.pending())
        reply = (await inbox.until(Answered, 2)).outcome
        assert isinstance(reply, Reply)
        answer = answer_of(Read.DATA, reply)
        assert isinstance(answer, Data)
        assert answer.content == b"content"
        await tree.create(f"{zookeeper_root}/名前")
        assert await inbox.until(ZnodeEvent) == ZnodeEvent(EventType.CREATED, f"{zookeeper_root}/名前")
        await tree.set(f"{zookeeper_root}/名前", b"x")
        assert await inbox.until(ZnodeEvent, 2) == ZnodeEvent(EventType.DATA, f"{zookeeper_root}/名前")
        assert len(inbox.threads) == 1


@needs_zookeeper
async def test_closing_leaves_no_thread_no_socket_and_no_session(shared_zookeeper: ZooKeeperServer) -> None:
    before, opened = threads(), descriptors()
    for _ in range(3):
        inbox = Inbox()
        link = Link(ensemble(shared_zookeeper.port), inbox.deliver)
        link.start()
        with trio.fail_after(5):
            session = (await inbox.until(Connected)).session_id
        assert await closed(link, abort_after=5) < 2
        assert session not in await shared_zookeeper.sessions()
        assert isinstance(inbox.items[-1], Closed)
    assert (threads(), descriptors()) == (before, opened)


@needs_zookeeper
async def test_no_record_of_any_level_shows_a_password(
    shared_zookeeper: ZooKeeperServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    for name in ("", "kazoo", "kazoo.client", "trio_sd"):
        caplog.set_level(1, name)
    async with open_proxy(shared_zookeeper.port) as proxy:
        for auth in (
            DigestAuth(username="me", password=Secret(PASSWORD)),
            DigestAuth(username="me", password_file=str(file)),
        ):
            async with open_link(ensemble(proxy.port, auth=auth)) as (link, inbox):
                await inbox.until(Connected)
                link.send(single_read(Read.DATA, "/", watch=False), inbox.pending())
                await inbox.until(Answered)
                proxy.reset()
                await inbox.until(Connected, 2)
                link.send(single_read(Read.DATA, "/", watch=False), inbox.pending())
                await inbox.until(Answered, 2)
    assert caplog.records
    assert any(record.name.startswith("trio_sd") for record in caplog.records)
    for record in caplog.records:
        assert PASSWORD not in f"{record.getMessage()} {record.args} {record.msg} {record.exc_info}"
    assert {record.levelno for record in caplog.records if record.name.startswith(("trio_sd", "kazoo"))} <= {
        logging.DEBUG
    }


@needs_zookeeper
async def test_an_expired_session_is_followed_by_another(shared_zookeeper: ZooKeeperServer) -> None:
    async with open_link(ensemble(shared_zookeeper.port)) as (link, inbox):
        first = await inbox.until(Connected)
        await expire(shared_zookeeper, link._client.client_id)
        await inbox.until(Expired)
        second = [item for item in inbox.items if isinstance(item, Connected)][-1]
        while second.session_id == first.session_id:
            second = await inbox.until(Connected, len([i for i in inbox.items if isinstance(i, Connected)]) + 1)
        assert second.session_id in await shared_zookeeper.sessions()


def test_everything_that_is_delivered_has_a_kind() -> None:
    expected = {Connected, Disconnected, Expired, Closed, ZnodeEvent, ProtocolError}
    assert set(Delivery.__args__) == expected
