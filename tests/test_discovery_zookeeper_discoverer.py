"""The run loop of ZooKeeper discovery, on a clock that jumps: a session that does what the test says, and no server."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_sd.discoverer import DiscovererOptions
from trio_sd.discovery.zookeeper.discoverer import ZooKeeperDiscoverer
from trio_sd.discovery.zookeeper.ensemble import Ensemble
from trio_sd.discovery.zookeeper.events import Connected, Disconnected, LateError, LostError
from trio_sd.discovery.zookeeper.members import parse_nerve_member
from trio_sd.discovery.zookeeper.protocol import (
    Answer,
    Data,
    EventType,
    Exists,
    ProtocolError,
    Read,
    Refusal,
    ZnodeEvent,
)
from trio_sd.discovery.zookeeper.session import Follower, SessionStatistics
from trio_sd.resources import Resources
from trio_sd.targets import ADDRESS_LABEL, TargetGroup

LOGGER = "trio_sd.discovery.zookeeper.discoverer"
NO_NODE = Refusal(-101)
NO_AUTH = Refusal(-102)
HOUR = 3600.0


def member(host: str) -> bytes:
    return json.dumps({"host": host, "port": 1, "name": host}).encode()


class FakeSession:
    """Znodes, and a connection that is there until the test says otherwise. It tells of nothing by itself.

    ``on_read`` is called before each answer, with the znode's path: it may raise, write, or tell of something.
    ``latency``: seconds that each call of ``read`` takes.
    """

    def __init__(self, **members: str) -> None:
        self.znodes: dict[str, tuple[bytes, int]] = {"/r": (b"", 1)}
        self.refused: set[str] = set()
        self.connected = True
        self.recursive = True
        self.session_id = 1
        self.latency = 0.0
        self.on_read: Callable[[str], None] = lambda path: None
        self.tries: list[float] = []
        """When everything began to be read."""
        self.completed = 0
        """How often the discoverer said that everything was read."""
        self.trouble = ""
        self.follower = Follower()
        self._zxid = 1
        self._created = {"/r": 1}
        for name, host in members.items():
            self.write(f"/r/{name}", member(host))
        self.connect()

    # What the test says

    def write(self, path: str, content: bytes) -> None:
        self._zxid += 1
        if path not in self.znodes:
            self._created[path] = self._zxid
        self.znodes[path] = (content, self._zxid)

    def connect(self) -> None:
        self.connected = True
        self.follower._connection_changed(Connected(self.session_id))

    def disconnect(self) -> None:
        self.connected = False
        self.follower._connection_changed(Disconnected("it is lost"))

    def tell(self, kind: EventType, path: str) -> None:
        self.follower._changed(ZnodeEvent(kind, path))

    def fail(self, error: Exception | None) -> None:
        """Let each read fail, or none."""

        def on_read(path: str) -> None:
            if error is not None:
                raise error

        self.on_read = on_read

    # What the discoverer asks for

    @asynccontextmanager
    async def follow(self, roots: Collection[str]) -> AsyncIterator[Follower]:
        yield self.follower

    async def watch_recursively(self, roots: Sequence[str]) -> bool:
        await trio.lowlevel.checkpoint()
        self.tries.append(trio.current_time())
        return self.recursive

    async def read(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None], *, watch: bool
    ) -> None:
        await trio.sleep(self.latency)
        for what, path in reads:
            self.on_read(path)
            take(what, path, self._answer(what, path))

    def completed_full_read(self) -> None:
        self.completed += 1

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(
            connected=self.connected,
            trouble=self.trouble,
            session_id=self.session_id,
            connections=1,
            expirations=0,
            followers=1,
            events=0,
            requests=0,
        )

    def _answer(self, what: Read, path: str) -> Answer:
        if path not in self.znodes:
            return NO_NODE
        if path in self.refused:
            return NO_AUTH
        names = tuple(one.rpartition("/")[2] for one in self.znodes if one.rpartition("/")[0] == path)
        if what is Read.EXISTS:
            return Exists()
        if what is Read.CHILDREN:
            return names
        content, zxid = self.znodes[path]
        return Data(content=content, mzxid=zxid, ephemeral=False, children=len(names), czxid=self._created[path])


class FakeResources(Resources):
    """Resources that are the one session of the test."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session

    @asynccontextmanager
    async def use(self, key: Hashable, opener: Callable[[], AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
        yield self._session


class Following:
    """A discoverer that runs, and what it has sent, with the time: the host by path, ``None`` for what is gone."""

    def __init__(self, discoverer: ZooKeeperDiscoverer) -> None:
        self.discoverer = discoverer
        self.sent: list[tuple[float, dict[str, str | None]]] = []

    @property
    def updates(self) -> list[dict[str, str | None]]:
        return [update for _, update in self.sent]

    @property
    def errors(self) -> tuple[str, ...]:
        return self.discoverer.statistics().errors

    @property
    def notes(self) -> tuple[str, ...]:
        return self.discoverer.statistics().notes

    def counter(self, name: str) -> int:
        return self.discoverer.statistics().counters[name]

    async def take(self, updates: trio.MemoryReceiveChannel[Sequence[TargetGroup]]) -> None:
        async for groups in updates:
            update = {
                one.source: one.targets[0][ADDRESS_LABEL].removesuffix(":1") if one.targets else None for one in groups
            }
            assert len(update) == len(groups)
            self.sent.append((trio.current_time(), update))


@asynccontextmanager
async def following(
    session: FakeSession, *, refresh_interval: float = HOUR, root: str = "/r"
) -> AsyncIterator[Following]:
    """Run a discoverer with ``session``; yields once it has done what it can without the time going on."""
    discoverer = ZooKeeperDiscoverer(
        Ensemble((("zk", 2181),), 10.0),
        (root,),
        chroot="",
        parse=parse_nerve_member,
        refresh_interval=refresh_interval,
        options=DiscovererOptions(FakeResources(session)),
    )
    found = Following(discoverer)
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(discoverer.run, send)
        nursery.start_soon(found.take, receive)
        await soon()
        yield found
        nursery.cancel_scope.cancel()


async def soon() -> None:
    """Let everything happen that needs no time."""
    await trio.sleep(0.001)


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Return the discoverer's records in which this stands."""
    return [one.getMessage() for one in caplog.records if one.name == LOGGER and text in one.getMessage()]


def gaps(times: Sequence[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in pairwise(times)]


# --- What is sent ---


async def test_the_first_send_is_the_full_set_and_later_ones_are_what_changed(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1", b="h2")
    async with following(session) as found:
        assert found.updates == [{"/r/a": "h1", "/r/b": "h2"}]
        session.write("/r/b", member("h3"))
        session.tell(EventType.DATA, "/r/b")
        session.write("/r/c", member("h4"))
        session.tell(EventType.CREATED, "/r/c")
        await soon()
        del session.znodes["/r/a"]
        session.tell(EventType.DELETED, "/r/a")
        await soon()
        assert found.updates[1:] == [{"/r/b": "h3", "/r/c": "h4"}, {"/r/a": None}]
        assert len(session.tries) == session.completed == 1


async def test_nothing_there_is_a_full_set_too(autojump_clock: MockClock) -> None:
    session = FakeSession()
    session.znodes.clear()
    async with following(session) as found:
        assert found.updates == [{}]


async def test_nothing_is_sent_before_everything_was_read(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1", b="h2")
    broken = True

    def on_read(path: str) -> None:
        if path == "/r/b" and broken:
            raise LateError("no answer")

    session.on_read = on_read
    async with following(session) as found:
        session.tell(EventType.DATA, "/r/a")  # also where an event comes meanwhile
        await trio.sleep(100)
        assert len(session.tries) > 3
        assert (found.updates, session.completed) == ([], 0)
        broken = False
        await trio.sleep(10)
        assert found.updates == [{"/r/a": "h1", "/r/b": "h2"}]
        assert session.completed == 1


async def test_an_event_that_changes_nothing_sends_nothing(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session) as found:
        for path in ("/r/a", "/r"):
            session.tell(EventType.DATA, path)
        session.tell(EventType.CREATED, "/r/gone again")
        session.tell(EventType.DELETED, "/r/gone again")
        await soon()
        assert found.updates == [{"/r/a": "h1"}]


async def test_no_groups_are_sent_after_a_refresh_that_finds_nothing(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session, refresh_interval=10) as found:
        await trio.sleep(11.5)
        assert found.updates == [{"/r/a": "h1"}, {}]


async def test_no_groups_are_sent_after_a_reconnection_that_finds_nothing(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session) as found:
        session.disconnect()
        await soon()
        session.connect()
        await soon()
        assert found.updates == [{"/r/a": "h1"}, {}]


async def test_what_changed_while_there_was_no_connection_is_one_update_and_not_mended(
    autojump_clock: MockClock,
) -> None:
    session = FakeSession(a="h1", b="h2")
    async with following(session) as found:
        session.disconnect()
        del session.znodes["/r/a"]
        session.write("/r/b", member("h3"))
        await trio.sleep(100)
        session.connect()
        await soon()
        assert found.updates[1:] == [{"/r/a": None, "/r/b": "h3"}]
        assert found.counter("mended") == 0


async def test_a_root_that_may_not_be_read_is_not_taken_for_an_empty_one(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.refused.add("/r")
    async with following(session) as found:
        await trio.sleep(100)
        assert found.updates == []
        assert "does not allow" in " ".join(found.errors)
        session.refused.clear()
        await trio.sleep(10)
        assert found.updates == [{"/r/a": "h1"}]
        assert not found.errors


# --- Failing, and trying again ---


async def test_a_read_that_is_late_is_tried_again_after_pauses_that_grow_to_ten_seconds(
    autojump_clock: MockClock,
) -> None:
    session = FakeSession(a="h1")
    session.fail(LateError("no answer within 10 s"))
    async with following(session) as found:
        await trio.sleep(60)
        assert gaps(session.tries) == [1, 2, 4, 8, 10, 10, 10, 10]
        assert list(found.errors) == ["no answer within 10 s"]
        assert found.updates == []
        session.fail(None)
        await trio.sleep(10)
        assert found.updates == [{"/r/a": "h1"}]
        assert not found.errors
        assert len(session.tries) == 10


async def test_no_pause_is_longer_than_the_refresh_interval(autojump_clock: MockClock) -> None:
    session = FakeSession()
    session.fail(LateError("no answer"))
    async with following(session, refresh_interval=3):
        await trio.sleep(13)
        assert gaps(session.tries) == [1, 2, 3, 3, 3]


async def test_after_a_success_the_pauses_are_short_again(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.fail(LateError("no answer"))
    async with following(session) as found:
        await trio.sleep(20)
        session.fail(None)
        await trio.sleep(10)
        assert not found.errors
        session.tries.clear()
        session.fail(LateError("no answer"))
        session.tell(EventType.DATA, "/r/a")
        begun = trio.current_time()
        await trio.sleep(8)
        assert found.errors == ("no answer",)
        assert gaps([begun, *session.tries]) == [1, 2, 4]
        assert found.updates == [{"/r/a": "h1"}], "what was found stays"


async def test_an_answer_that_makes_no_sense_is_tried_again_as_well(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.fail(ProtocolError("it makes no sense"))
    async with following(session) as found:
        assert found.errors == ("it makes no sense",)
        session.fail(None)
        await trio.sleep(1)
        assert found.updates == [{"/r/a": "h1"}]
        assert not found.errors


async def test_a_failure_is_logged_once_however_often_it_is_tried_again(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    session = FakeSession()
    session.fail(LateError("no answer"))
    async with following(session):
        await trio.sleep(60)
    assert len(logged(caplog, "no answer")) == 1


@pytest.mark.parametrize("after", [0.5, 5.0, 9.5])
async def test_an_event_brings_the_next_try_forward(after: float, autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.fail(LateError("no answer"))
    async with following(session) as found:
        await trio.sleep(25)
        assert gaps(session.tries) == [1, 2, 4, 8, 10]
        await trio.sleep(after)
        session.fail(None)
        session.tell(EventType.DATA, "/r/a")
        await trio.sleep(1.01)
        assert gaps(session.tries)[5:] == [round(min(10, after + 1.001), 3)]
        assert found.updates == [{"/r/a": "h1"}]


async def test_events_that_keep_coming_do_not_put_off_the_next_try(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.fail(LateError("no answer"))
    async with following(session):
        for _ in range(200):
            await trio.sleep(0.1)
            session.tell(EventType.DATA, "/r/a")
        assert max(gaps(session.tries)) <= 1.1
        assert len(session.tries) <= 21


async def test_an_event_that_comes_early_does_not_put_off_the_first_try(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.fail(LateError("no answer"))
    async with following(session):
        await trio.sleep(0.9)
        session.tell(EventType.DATA, "/r/a")
        await trio.sleep(0.2)
        assert gaps(session.tries) == [1]


async def test_without_a_connection_nothing_is_tried_until_an_event_says_that_there_is_one(
    autojump_clock: MockClock,
) -> None:
    session = FakeSession(a="h1")

    def on_read(path: str) -> None:
        session.disconnect()
        raise LostError("lost")

    session.on_read = on_read
    async with following(session, refresh_interval=10) as found:
        await trio.sleep(1000)
        assert session.tries == [0]
        session.fail(None)
        session.connect()
        begun = trio.current_time()
        await soon()
        assert session.tries == [0, begun]
        assert found.updates == [{"/r/a": "h1"}]
        assert not found.errors


async def test_losing_the_connection_stops_the_refresh_timer(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session, refresh_interval=10) as found:
        session.disconnect()
        await trio.sleep(100)
        assert session.tries == [0]
        session.connect()
        begun = trio.current_time()
        await trio.sleep(11.5)
        assert session.tries[1] == begun
        assert len(session.tries) == 3, "and the next connection starts it again"
        assert found.counter("full_reads") == 3


async def test_what_the_session_says_is_told_first(autojump_clock: MockClock) -> None:
    session = FakeSession()
    session.fail(LateError("no answer"))
    session.trouble = "not connected"
    async with following(session) as found:
        assert found.errors == ("not connected", "no answer")


def lose(session: FakeSession) -> Callable[[str], None]:
    """Return what loses the connection at each read, and has it again at once."""

    def on_read(path: str) -> None:
        session.disconnect()
        session.connect()
        raise LostError("lost over it")

    return on_read


async def test_connections_that_are_lost_over_full_reads_again_and_again_are_paced(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.latency = 0.25
    session.on_read = lose(session)
    async with following(session) as found:
        await trio.sleep(100)
        pauses = [round(gap - session.latency, 3) for gap in gaps(session.tries)]
        assert pauses[:2] == [0, 0]
        assert pauses == sorted(pauses)
        assert 0 < pauses[6] < 10, "they grow"
        assert pauses[-1] == 10
        assert found.updates == []
        session.on_read = lambda path: None
        await trio.sleep(11)
        assert found.updates[0] == {"/r/a": "h1"}


async def test_a_full_read_that_was_completed_ends_the_pauses(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.latency = 0.25
    session.on_read = lose(session)
    async with following(session) as found:
        await trio.sleep(100)
        session.on_read = lambda path: None
        await trio.sleep(20)
        assert found.updates
        session.on_read = lose(session)
        session.tries.clear()
        session.connect()
        begun = trio.current_time()
        await trio.sleep(0.6)
        assert gaps([begun, *session.tries]) == [0, 0.25, 0.25]


async def test_thousands_of_losses_are_borne(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.latency = 0.25
    session.on_read = lose(session)
    async with following(session) as found:
        await trio.sleep(6 * HOUR)
        assert max(gaps(session.tries)) == 10.25
        session.on_read = lambda path: None
        await trio.sleep(11)
        assert found.updates[0] == {"/r/a": "h1"}


async def test_thousands_of_late_answers_are_borne(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.fail(LateError("no answer"))
    async with following(session) as found:
        await trio.sleep(6 * HOUR)
        assert max(gaps(session.tries)) == 10
        session.fail(None)
        await trio.sleep(10)
        assert found.updates == [{"/r/a": "h1"}]


# --- The refresh ---


async def test_the_refresh_interval_is_jittered_by_a_tenth(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session, refresh_interval=100):
        await trio.sleep(30_000)
    found = gaps(session.tries)
    assert len(found) > 270
    assert 90 <= min(found) < 94
    assert 106 < max(found) <= 110


async def test_an_event_does_not_put_off_the_refresh(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session, refresh_interval=10):
        for _ in range(23):
            await trio.sleep(0.5)
            session.tell(EventType.DATA, "/r/a")
        assert len(session.tries) == 2


async def test_changes_without_an_event_are_mended_by_the_refresh_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    session = FakeSession(a="h1", b="h2", c="h3")
    async with following(session, refresh_interval=10) as found:
        session.write("/r/a", member("h9"))
        del session.znodes["/r/b"]
        session.write("/r/c", member("h3"))  # written, but the same
        await trio.sleep(11.5)
        assert found.updates[1:] == [{"/r/a": "h9", "/r/b": None}]
        assert found.counter("mended") == 2
        assert len(logged(caplog, "without an event")) == 1
        await trio.sleep(50)
        assert found.counter("mended") == 2
        assert len(logged(caplog, "without an event")) == 1


@pytest.mark.parametrize("told", ["/r/new", "/r", "/r/new/below"])
async def test_changes_that_an_event_tells_of_meanwhile_are_not_mended(
    told: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    session = FakeSession(a="h1")
    session.recursive = told != "/r"  # only one-shot watches tell of a new znode by the one above it
    async with following(session, refresh_interval=10) as found:

        def on_read(path: str) -> None:
            if path == "/r" and "/r/new" not in session.znodes:
                session.write("/r/new", member("h2"))
                session.tell(EventType.CHILDREN if told == "/r" else EventType.CREATED, told)

        session.on_read = on_read
        await trio.sleep(11.5)
        assert found.updates[1] == {"/r/new": "h2"}
        expected = 1 if told == "/r/new/below" else 0  # what is told of a znode below is not told of this one
        assert found.counter("mended") == expected
        assert len(logged(caplog, "without an event")) == expected


async def test_what_is_below_a_znode_that_an_event_tells_of_is_not_mended(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    session.recursive = False  # its children are known to nobody, so no event can tell of them
    async with following(session, refresh_interval=10) as found:

        def on_read(path: str) -> None:
            if path == "/r" and "/r/new" not in session.znodes:
                session.write("/r/new", b"")
                session.write("/r/new/deep", b"")
                session.write("/r/new/deep/x", member("h2"))
                session.tell(EventType.CHILDREN, "/r")

        session.on_read = on_read
        await trio.sleep(11.5)
        assert found.updates[1] == {"/r/new/deep/x": "h2"}
        assert found.counter("mended") == 0


# --- Troubles and notes ---


def break_members(session: FakeSession, count: int) -> None:
    for number in range(count):
        session.write(f"/r/{number}", b"no member")


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (20, 20), (21, 21), (500, 21)])
async def test_of_many_troubles_that_are_found_at_once_twenty_are_logged_and_the_rest_counted(
    count: int, lines: int, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    session = FakeSession()
    break_members(session, count)
    async with following(session, refresh_interval=10) as found:
        assert len(logged(caplog, "")) == lines
        assert len(logged(caplog, "it is left out")) == min(count, 20)
        rest = logged(caplog, f"{count - 20} more")
        assert len(rest) == (count > 20)
        assert found.counter("bad_members") == count
        await trio.sleep(100)
        assert len(logged(caplog, "")) == lines, "each is logged once"


async def test_a_trouble_that_ends_is_logged_once(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    session = FakeSession(a="h1")
    async with following(session, refresh_interval=10) as found:
        session.write("/r/a", b"no member")
        session.tell(EventType.DATA, "/r/a")
        await trio.sleep(50)
        assert "/r/a" in " ".join(found.errors)
        assert len(logged(caplog, "/r/a")) == 1
        assert not logged(caplog, "no longer")
        session.write("/r/a", member("h2"))
        session.tell(EventType.DATA, "/r/a")
        await trio.sleep(50)
        assert found.errors == ()
        [ended] = logged(caplog, "no longer")
        assert "/r/a" in ended
        assert len(logged(caplog, "/r/a")) == 2


async def test_a_trouble_of_a_znode_that_goes_is_over(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    session = FakeSession()
    session.write("/r/a", b"no member")
    async with following(session) as found:
        del session.znodes["/r/a"]
        session.tell(EventType.DELETED, "/r/a")
        await soon()
        assert len(logged(caplog, "no longer")) == 1
        assert not found.notes


async def test_of_many_troubles_that_end_at_once_twenty_are_logged_and_the_rest_counted(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    session = FakeSession()
    break_members(session, 50)
    async with following(session):
        for path in [path for path in session.znodes if path != "/r"]:
            session.write(path, member("h"))
            session.tell(EventType.DATA, path)
        await soon()
    ended = logged(caplog, "no longer")
    assert len(ended) == 21
    assert "30 more" in ended[-1]


async def test_an_absent_root_is_noted_and_logged_once_and_once_more_when_it_is_there(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    session = FakeSession()
    session.znodes.clear()
    async with following(session, refresh_interval=10) as found:
        await trio.sleep(50)
        [note] = found.notes
        assert "/r" in note
        assert "does not exist" in note
        assert len(logged(caplog, note)) == 1
        session.write("/r", b"")
        session.tell(EventType.CREATED, "/r")
        await trio.sleep(50)
        assert found.notes == ()
        assert len(logged(caplog, f"no longer: {note}")) == 1
        assert len(logged(caplog, note)) == 2


async def test_a_server_without_recursive_watches_is_noted_until_there_is_another(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    session = FakeSession(a="h1")
    session.recursive = False
    async with following(session, refresh_interval=10) as found:
        await trio.sleep(50)
        [note] = found.notes
        assert "recursive" in note
        assert found.counter("recursive_watches") == 0
        session.recursive = True
        session.connect()
        await soon()
        assert found.notes == ()
        assert found.counter("recursive_watches") == 1
        assert len(logged(caplog, note)) == 2
        assert len(logged(caplog, f"no longer: {note}")) == 1


async def test_numbers_of_another_session_that_begins_meanwhile_are_not_trusted(autojump_clock: MockClock) -> None:
    session = FakeSession(a="h1")
    async with following(session) as found:
        await trio.sleep(1)
        number = session.znodes["/r/a"][1]

        def on_read(path: str) -> None:
            if session.session_id == 2:
                session.znodes["/r/a"] = (member("h2"), number)
            elif path == "/r/a":  # read a last time, and then a server that counts anew takes the place of this one
                session.session_id = 2
                session.connect()

        session.on_read = on_read
        session.connect()
        await trio.sleep(1)
        assert found.updates[-1] == {"/r/a": "h2"}
