"""Discovery from HTTP endpoints: what servers say is told as Prometheus tells it, and what they do not say is not.

Servers are real, on loopback; the clock runs fast, and is moved to the next time at which to ask.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_sd
from trio_sd.discoverer import DiscovererOptions
from trio_sd.discovery.http import HTTPDiscovery, HTTPSDConfig
from trio_sd.discovery.http import discoverer as room
from trio_sd.durations import Duration
from trio_sd.errors import ConfigError
from trio_sd.http_config import Authorization, BasicAuth
from trio_sd.limits import Limits
from trio_sd.manager import Manager, open_manager
from trio_sd.polling import PollingDiscoverer
from trio_sd.resources import Resources
from trio_sd.secrets import Secret
from trio_sd.target_lists import parse_json
from trio_sd.targets import TargetGroup
from trio_sd.testing import check_discoverer

from .http_servers import Answer as Sent
from .http_servers import (
    Certificates,
    HTTPServer,
    Raw,
    Request,
    Response,
    Route,
    Switch,
    TargetList,
    busy,
    drip,
    endless,
    gzipped,
    hang,
    json_response,
    lying_length,
    open_http_server,
    redirect,
    requires_basic,
    sequence,
    stall,
)

SECRET: Final = "hunter2"
JSON: Final = (("Content-Type", "application/json"),)


@pytest.fixture
def clock() -> MockClock:
    return MockClock(rate=20)


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert SECRET not in caplog.text


def groups(*addresses: str) -> list[dict[str, object]]:
    return [{"targets": [address], "labels": {"own": address}} for address in addresses]


def body(content: str | bytes, *headers: tuple[str, str]) -> Response:
    return Response(200, (*JSON, *headers), content.encode() if isinstance(content, str) else content)


def every(url: str, interval: str = "60s", **keys: Any) -> HTTPSDConfig:  # Any: whatever the keys are
    return HTTPSDConfig(url=url, refresh_interval=Duration.of(interval), **keys)


class Following:
    """A discoverer that runs."""

    def __init__(
        self,
        discoverer: PollingDiscoverer,
        sent: trio.MemoryReceiveChannel[Sequence[TargetGroup]],
        clock: MockClock,
    ) -> None:
        self.discoverer = discoverer
        self._sent = sent
        self._clock = clock
        self._failures = 0

    async def next(self) -> Sequence[TargetGroup]:
        """Return what is sent next."""
        return await self._sent.receive()

    async def again(self) -> Sequence[TargetGroup]:
        """Have it look again, and return what it sends."""
        await wait_all_tasks_blocked()
        self._clock.jump(60)
        return await self.next()

    async def failure(self) -> str:
        """Wait for the next look that fails, and return why; nothing may be sent instead."""
        while self.counters["failures"] == self._failures:
            await wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                self._sent.receive_nowait()
        self._failures = self.counters["failures"]
        [error] = self.discoverer.statistics().errors
        assert SECRET not in error
        return error

    @property
    def counters(self) -> Mapping[str, int]:
        return self.discoverer.statistics().counters


@asynccontextmanager
async def following(
    config: HTTPSDConfig,
    clock: MockClock,
    *,
    limits: Limits = Limits(),
    last_known: Callable[[], Mapping[str, TargetGroup]] = dict,
) -> AsyncIterator[Following]:
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with trio.fail_after(600), send, receive:
        async with trio.open_nursery() as nursery:
            options = DiscovererOptions(Resources(nursery), limits, last_known)
            discoverer = config.discoverer(options)
            nursery.start_soon(discoverer.run, send)
            yield Following(discoverer, receive, clock)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def asking(
    route: Route, clock: MockClock, **options: Any
) -> AsyncIterator[tuple[HTTPServer, Following]]:  # Any: those of `following`
    async with (
        open_http_server({"/sd": route}) as server,
        following(every(server.url("/sd")), clock, **options) as found,
    ):
        yield server, found


# --- what is told ---


async def test_groups_have_the_url_as_a_label_and_in_their_source(clock: MockClock) -> None:
    content = [{"targets": ["a:1", "b:2"], "labels": {"zone": "eu"}}, {"targets": [], "labels": {}}, {}]
    async with asking(json_response(content), clock) as (server, found):
        url = server.url("/sd")
        assert await found.next() == [
            TargetGroup(
                f"{url}:0", [{"__address__": "a:1"}, {"__address__": "b:2"}], {"zone": "eu", "__meta_url": url}
            ),
            TargetGroup(f"{url}:1", [], {"__meta_url": url}),
            TargetGroup(f"{url}:2", [], {"__meta_url": url}),
        ]


async def test_the_url_wins_over_a_label_of_its_name(clock: MockClock) -> None:
    async with asking(json_response([{"labels": {"__meta_url": "x"}}]), clock) as (server, found):
        assert (await found.next())[0].labels["__meta_url"] == server.url("/sd")


async def test_it_keeps_the_contract(clock: MockClock) -> None:
    async with open_http_server({"/sd": json_response(groups("a:1", "b:1"))}) as server:
        found = await check_discoverer(every(server.url("/sd")), patience=100)
        assert len(found) == 2


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("60s", "60"), ("1m30s", "90"), ("500ms", "0.5"), ("1h", "3600"), ("1s1ms", "1.001"), ("100y", "3153600000")],
)
async def test_the_request_is_as_prometheus_makes_it(interval: str, seconds: str, clock: MockClock) -> None:
    async with open_http_server({"/sd": json_response([])}) as server:
        async with following(every(server.url("/sd?a=b"), interval), clock):
            await server.wait_requests(1)
        request = server.requests[0]
        assert (request.method, request.target) == ("GET", "/sd?a=b")
        assert request.header("accept") == "application/json"
        assert request.header("accept-encoding") is None
        assert request.header("x-prometheus-refresh-interval-seconds") == seconds
        assert request.header("if-none-match") is request.header("if-modified-since") is None


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "APPLICATION/Json",
        " application/json ",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json;   charset=utf-8",
    ],
)
async def test_content_types_that_are_taken(content_type: str, clock: MockClock) -> None:
    async with asking(Response(200, (("Content-Type", content_type),), b"[]"), clock) as (_, found):
        assert await found.next() == []


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "text/html; charset=utf-8",
        "application/jsonp",
        "application/json; charset=latin1",
        "application/json;",
        "application/json; charset=utf-8; x=y",
        "application/json ; charset=utf-8",
        "application/json, application/json",
        "application/vnd.api+json",
        "application/json; charset=\u212aoi8",
    ],
)
async def test_content_types_that_are_refused(content_type: str, clock: MockClock) -> None:
    sent = content_type.encode().decode("latin-1")
    async with asking(Response(200, (("Content-Type", sent),), b"[]"), clock) as (_, found):
        assert "unsupported content type" in await found.failure()


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "null"])
async def test_nothing_is_news(content: str, clock: MockClock) -> None:
    async with asking(sequence(json_response(groups("a:1")), body(content)), clock) as (server, found):
        await found.next()
        assert await found.again() == [TargetGroup(f"{server.url('/sd')}:0", ())]
        assert found.discoverer.statistics().errors == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "line 1, column 1: not JSON"),
        ("{}", "line 1, column 1: expected a list of target groups, found an object"),
        ("[{}", "not JSON"),
        ('[{"targets": ["a:1"]},\n  null]', "line 2, column 3: [1]: nil target group item found"),
        ('[{},\n{"target": ["a:1"]}]', 'line 2, column 1: [1]: unknown field "target"'),
        ('[{"targets": [1]}]', "line 1, column 2: [0].targets[0]: expected a string, found a number"),
        ('[{"labels": {"a-b": "c"}}]', '"a-b" is not a valid label name'),
        ('[{"labels": {"a": 1}}]', "[0].labels.a: expected a string"),
        ("[\n\n  {]", "line 3, column 4: not JSON"),
        ("[] x", "not JSON"),
        ("[" * 5000, "nested too deep"),
        ("\ufeff[]", "BOM"),
        ("<html>\x1b[2J", "not JSON"),
    ],
)
async def test_what_can_not_be_read_is_told_with_its_place(content: str, reason: str, clock: MockClock) -> None:
    async with asking(body(content), clock) as (server, found):
        error = await found.failure()
        assert error.startswith(f"{server.url('/sd')}: ")
        assert reason in error
        assert error.isprintable()


async def test_keys_may_be_there_twice(clock: MockClock) -> None:
    content = '[{"targets": ["a:1"], "targets": ["b:1"], "LABELS": {"a": "1"}, "labels": {"b": "2", "b": "3"}}]'
    async with asking(body(content), clock) as (server, found):
        [group] = await found.next()
        assert [dict(target) for target in group.targets] == [{"__address__": "b:1"}]
        assert dict(group.labels) == {"a": "1", "b": "3", "__meta_url": server.url("/sd")}


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (Response(204), "server returned HTTP status 204"),
        (Response(304), "server returned HTTP status 304"),
        (Response(404, JSON, b"[]"), "server returned HTTP status 404 Not Found"),
        (Response(500, JSON, b"[]"), "server returned HTTP status 500"),
        (Response(206, JSON, b"[]"), "server returned HTTP status 206"),
        (Response(503, JSON, b"[]"), "server returned HTTP status 503"),
        (redirect("ftp://h/"), "can't ask"),
        (redirect("http://[x/"), "can't ask"),
        (redirect("/sd"), "redirected 10 times"),
        (Response(200, JSON, endless()), "the limit http_body_bytes"),
        (Response(200, (*JSON, ("Content-Length", "1000001")), stall()), "the limit http_body_bytes"),
        (Response(200, (*JSON, ("Content-Length", "100")), json.dumps(groups("a:1")).encode(), closes=True), ""),
        (lying_length(100, b"[]"), ""),
        (
            Raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"),
            "",
        ),
        (Raw(b"\xff" * 1000), ""),
        (Raw(), ""),
        (gzipped(json_response(groups("a:1"))), ""),
    ],
)
async def test_what_is_no_answer_keeps_what_was_found(route: Route, reason: str, clock: MockClock) -> None:
    async with asking(
        sequence(json_response(groups("a:1")), route), clock, limits=Limits(http_body_bytes=1_000_000)
    ) as (server, found):
        await found.next()
        await wait_all_tasks_blocked()
        clock.jump(60)
        error = await found.failure()
        assert error.startswith(f"{server.url('/sd')}: ")
        assert reason in error
        assert error.isprintable()


@pytest.mark.parametrize("route", [hang, Response(200, JSON, stall(b"[")), Raw(stall(b"HTTP/1.1 200 OK\r\n"))])
async def test_what_is_not_there_within_the_interval_is_given_up(route: Route, clock: MockClock) -> None:
    async with asking(sequence(json_response(groups("a:1")), route), clock) as (server, found):
        await found.next()
        await wait_all_tasks_blocked()
        clock.jump(60)
        await server.wait_requests(2)
        clock.jump(60)
        assert await found.failure() == f"{server.url('/sd')}: no answer within 60 s"
        await server.wait_open(0)


async def test_the_limit_is_that_of_the_engine(clock: MockClock) -> None:
    content = json.dumps([{"targets": ["a:1"] * 100}])
    async with asking(body(content), clock, limits=Limits(http_body_bytes=len(content))) as (_, found):
        assert len((await found.next())[0].targets) == 100
    async with asking(body(content), clock, limits=Limits(http_body_bytes=len(content) - 1)) as (_, found):
        assert f"{len(content) - 1} bytes that the limit http_body_bytes allows" in await found.failure()
    async with asking(body("[{}, {}]"), clock, limits=Limits(groups=1)) as (_, found):
        assert "2 groups are more than the 1 that the limit groups allows" in await found.failure()


async def test_what_is_slow_but_in_time_is_read(clock: MockClock) -> None:
    content = json.dumps(groups("a:1")).encode()
    async with asking(Response(200, JSON, drip(content, 0.1)), clock) as (_, found):
        assert len(await found.next()) == 1


# --- what changes ---


async def test_only_what_differs_is_sent(clock: MockClock) -> None:
    many = groups(*(f"host-{number}:80" for number in range(2000)))
    answers = TargetList(many, etag=False, last_modified=False)
    async with asking(answers, clock) as (server, found):
        url = server.url("/sd")
        assert [group.source for group in await found.next()] == [f"{url}:{number}" for number in range(2000)]
        assert await found.again() == [], "nothing has changed"
        answers.groups = [*many[:1000], {"targets": ["new:1"]}, *many[1001:]]
        [changed] = await found.again()
        assert changed == TargetGroup(f"{url}:1000", [{"__address__": "new:1"}], {"__meta_url": url})
        answers.groups = many[:1000]
        assert await found.again() == [TargetGroup(f"{url}:{number}", ()) for number in range(1000, 2000)]
        answers.groups = many[:1001]
        assert [group.source for group in await found.again()] == [f"{url}:1000"]


@pytest.mark.parametrize(
    ("etag", "last_modified", "sent"),
    [
        (True, True, {"if-none-match", "if-modified-since"}),
        (True, False, {"if-none-match"}),
        (False, True, {"if-modified-since"}),
    ],
)
async def test_nothing_has_changed_where_the_server_says_so(
    etag: bool, last_modified: bool, sent: set[str], clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []

    def counted(content: bytes, *rest: Any) -> Any:
        read.append(content)
        return parse_json(content, *rest)

    monkeypatch.setattr(room, "parse_json", counted)
    answers = TargetList(groups("a:1"), etag=etag, last_modified=last_modified)
    async with asking(answers, clock) as (server, found):
        await found.next()
        for number in 1, 2:
            assert await found.again() == []
            assert (answers.not_modified, found.counters["not_modified"]) == (number, number)
        for name in "if-none-match", "if-modified-since":
            assert (server.requests[-1].header(name) is not None) == (name in sent)
        assert len(read) == 1, "what has not changed is not read"
        answers.groups = groups("b:1")
        assert len(await found.again()) == 1
        assert await found.again() == []
        assert (answers.not_modified, len(read)) == (3, 2)


@pytest.mark.parametrize("etag", ['"a"', 'W/"a"', '"\xe9\xff"', '"a,b"', "a"])
async def test_a_tag_goes_back_as_it_came(etag: str, clock: MockClock) -> None:
    async with asking(body("[]", ("ETag", etag)), clock) as (server, found):
        await found.next()
        await found.again()
        assert server.requests[1].header("if-none-match") == etag


async def test_what_could_not_be_used_has_no_tag_to_send_back(clock: MockClock) -> None:
    route = sequence(
        body('[{"targets": ["a:1"]}]', ("ETag", '"good"')),
        body("[{]", ("ETag", '"bad"')),
        Response(500, (*JSON, ("ETag", '"error"')), b"[]"),
        Response(200, (("Content-Type", "text/html"), ("ETag", '"page"')), b"[]"),
        Response(304),
    )
    async with asking(route, clock) as (server, found):
        await found.next()
        await wait_all_tasks_blocked()
        clock.jump(60)
        for _ in range(3):
            await found.failure()
        assert await found.next() == []
        assert [request.header("if-none-match") for request in server.requests] == [None, *['"good"'] * 4]


async def test_an_answer_without_a_tag_takes_the_old_one_away(clock: MockClock) -> None:
    async with asking(sequence(body("[]", ("ETag", '"a"')), body("[{}]"), body("[]")), clock) as (server, found):
        await found.next()
        await found.again()
        await found.again()
        assert [request.header("if-none-match") for request in server.requests] == [None, '"a"', None]


async def test_what_was_read_a_little_late_is_not_lost(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look may not be told "as it was" of what nobody has taken."""

    def slow(*args: Any) -> Any:  # Any: those of `parse_json`
        monkeypatch.setattr(room, "parse_json", parse_json)
        trio.from_thread.run_sync(clock.jump, 62)
        threading.Event().wait(0.05)  # the loop sees that the time is over, and can do nothing about this thread
        return parse_json(*args)

    monkeypatch.setattr(room, "parse_json", slow)
    answers = TargetList([{"targets": ["a:1"], "labels": {"large": "x" * 200_000}}])
    async with asking(answers, clock) as (_, found):
        assert len(await found.next()) == 1, "this is the full set"
        assert await found.again() == []
        assert answers.not_modified


async def test_a_server_that_wants_to_be_left_alone_is(clock: MockClock) -> None:
    async with asking(sequence(busy("300", 429), json_response([])), clock) as (server, found):
        assert "429" in await found.failure()
        clock.jump(280)
        await wait_all_tasks_blocked(0.01)
        assert len(server.requests) == 1
        clock.jump(21)
        assert await found.next() == []


async def test_a_name_and_a_password_in_the_url_are_sent_and_not_shown(clock: MockClock) -> None:
    async with open_http_server({"/sd": requires_basic("me", SECRET, json_response(groups("a:1")))}) as server:
        url = server.url("/sd").replace("//", f"//me:{SECRET}@")
        config = every(url, basic_auth=BasicAuth(username="other", password=Secret("other")))
        async with following(config, clock) as found:
            [group] = await found.next()
            shown = server.url("/sd").replace("//", "//me:xxxxx@")
            assert (group.source, group.labels["__meta_url"]) == (f"{shown}:0", shown)
        server.drop_connections()
        for text in repr(config), str(config), repr(config.discoverer), f"{found.discoverer.statistics()}":
            assert SECRET not in text
        wrong = every(server.url("/none").replace("//", f"//me:{SECRET}@"))
        async with following(wrong, clock) as found:
            assert "me:xxxxx@" in await found.failure()


async def test_the_first_full_set_is_what_was_known_while_nothing_can_be_read(clock: MockClock) -> None:
    async with open_http_server({"/sd": (switch := Switch(Response(500)))}) as server:
        url = server.url("/sd")
        known = {f"{url}:0": TargetGroup(f"{url}:0", [{"__address__": "old:1"}])}
        async with following(every(url), clock, last_known=lambda: known) as found:
            assert await found.next() == list(known.values())
            assert "500" in await found.failure()
            switch.route = json_response([])
            assert await found.next() == [TargetGroup(f"{url}:0", ())]


# --- with a manager ---


def scrape(*configs: HTTPSDConfig) -> dict[str, list[HTTPSDConfig]]:
    return {f"job-{index}": [config] for index, config in enumerate(configs)}


def addresses(manager: Manager, job: str = "job-0") -> list[str]:
    return [target["__address__"] for group in manager.snapshot()[job] for target in group.targets]


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(300):
        while not holds():
            await wait_all_tasks_blocked()


async def test_a_server_that_goes_away_and_comes_back(clock: MockClock) -> None:
    answers = TargetList(groups("a:1"))
    async with open_http_server({"/sd": (switch := Switch(answers))}) as server:
        config = every(server.url("/sd"))
        async with open_manager(scrape(config)) as manager:
            await manager.wait_synced()
            [before] = manager.statistics().providers
            assert before.state == "synced"
            switch.route = Raw()
            clock.jump(60)
            await until(lambda: manager.statistics().providers[0].state == "failing")
            [failing] = manager.statistics().providers
            assert failing.details.errors[0].startswith(server.url("/sd"))
            assert failing.restarts == 0
            assert addresses(manager) == ["a:1"]
            age = manager.statistics().providers[0].age
            assert age is not None
            assert age > 59
            switch.route = answers
            answers.groups = groups("a:1", "b:1")
            await until(lambda: manager.statistics().providers[0].state == "synced")
            assert addresses(manager) == ["a:1", "b:1"]


async def test_an_answer_that_nothing_has_changed_refreshes_the_age(clock: MockClock) -> None:
    answers = TargetList(groups("a:1"))
    async with open_http_server({"/sd": answers}) as server, open_manager(scrape(every(server.url("/sd")))) as manager:
        await manager.wait_synced()
        revision = manager.statistics().revision
        clock.jump(60)
        await until(lambda: answers.not_modified)
        await until(lambda: (manager.statistics().providers[0].age or 99) < 30)
        assert manager.statistics().revision == revision, "nobody is told of nothing"


async def test_a_reload_while_a_request_hangs_is_quick_and_keeps_what_was_found(clock: MockClock) -> None:
    async with open_http_server({"/sd": (switch := Switch(json_response(groups("a:1"))))}) as server:
        config = every(server.url("/sd"))
        listening = connections()
        async with open_manager(scrape(config)) as manager:
            await manager.wait_synced()
            switch.route = hang
            clock.jump(60)
            await server.wait_requests(2)
            for _ in range(3):
                asked = len(server.requests)
                with trio.fail_after(20):  # a second by other clocks
                    await manager.apply_config(scrape(config))
                assert addresses(manager) == ["a:1"]
                await server.wait_requests(asked + 1)
                await server.wait_open(1)
            assert manager.statistics().resources == {"HTTP client": 1}
            switch.route = Response(500)
            await manager.apply_config(scrape(config))
            await until(lambda: manager.statistics().providers[0].state == "failing")
            assert addresses(manager) == ["a:1"]
            await manager.apply_config({})
            assert manager.statistics().resources == {}
            await server.wait_open(0)
            assert connections() == listening


def connections() -> int:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(link.startswith("socket:") for link in links)


async def test_one_that_hangs_delays_no_other() -> None:
    """A hundred sources, asked every 300 ms, of which one never answers: within 10 intervals all others are asked."""
    paths: Counter[str] = Counter()

    async def serve(request: Request) -> Sent:
        paths[request.path] += 1
        return await hang(request) if request.path == "/50" else json_response(groups("a:1"))

    async with open_http_server(serve) as server:
        configs = [every(server.url(f"/{number}"), "300ms") for number in range(100)]
        async with open_manager(scrape(*configs)) as manager:
            assert manager.statistics().resources in ({}, {"HTTP client": 100})
            with trio.fail_after(10):
                while min(paths[f"/{number}"] for number in range(100) if number != 50) < 5:
                    await server.wait_requests(len(server.requests) + 50)
            most = max(paths[f"/{number}"] for number in range(100))
            assert most <= 9, "all keep the pace"
            assert server.accepted <= 110, "connections are kept; that which hangs takes a new one each time"
            states = Counter(provider.state for provider in manager.statistics().providers)
            assert states["synced"] == 99
            assert manager.statistics().resources == {"HTTP client": 100}


async def test_equal_ways_to_ask_share_a_client(clock: MockClock) -> None:
    async with open_http_server({"/a": json_response([]), "/b": json_response([])}) as server:
        bearer = Authorization(credentials=Secret(SECRET))
        configs = [
            every(server.url("/a")),
            every(server.url("/b"), "30s"),
            every(server.url("/a"), authorization=bearer),
        ]
        async with open_manager(scrape(*configs)) as manager:
            await manager.wait_synced()
            statistics = manager.statistics()
            assert sorted(statistics.resources) == ["HTTP client", "HTTP client #2"]
            assert sorted(statistics.resources.values()) == [1, 2]
            assert SECRET not in repr(statistics)
            await manager.apply_config(scrape(configs[2]))
            await manager.wait_synced()
            assert manager.statistics().resources == {"HTTP client": 1}


async def test_a_password_file_that_changes_is_noticed(clock: MockClock, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old")
    async with open_http_server({"/sd": requires_basic("me", SECRET, json_response(groups("a:1")))}) as server:
        config = every(server.url("/sd"), basic_auth=BasicAuth(username="me", password_file=str(file)))
        async with following(config, clock) as found:
            assert "401" in await found.failure()
            file.unlink()
            assert f'can\'t read "{file}"' in await found.failure()
            file.write_text(f"{SECRET}\n")
            assert len(await found.next()) == 1


# --- what the configuration says ---


def load(tmp_path: Path, text: str) -> HTTPSDConfig:
    file = tmp_path / "prometheus.yml"
    file.write_text(f"scrape_configs: [{{job_name: j, http_sd_configs: [{text}]}}]")
    [config] = trio_sd.load_config(file).scrape["j"]
    assert isinstance(config, HTTPSDConfig)
    return config


def test_what_is_said_and_what_is_not(tmp_path: Path) -> None:
    config = load(tmp_path, "{url: 'http://h/'}")
    assert (config.url, config.refresh_interval) == ("http://h/", Duration.of("60s"))
    assert (config.follow_redirects, config.enable_http2) == (True, True)
    assert config == HTTPSDConfig(url="http://h/")
    assert config.mechanism == "http"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("{}", "", "URL is missing"),
        ("{url: ''}", "url", "URL is missing"),
        ("{url: 'ftp://h/'}", "url", "URL scheme must be 'http' or 'https'"),
        ("{url: 'h:80/sd'}", "url", "URL scheme must be"),
        ("{url: '/sd'}", "url", "URL scheme must be"),
        ("{url: 'http:///sd'}", "url", "host is missing in URL"),
        ("{url: 'http:sd'}", "url", "host is missing in URL"),
        ("{url: 'http://h:x/'}", "url", "invalid port"),
        ("{url: 'http://h/%zz'}", "url", "invalid URL escape"),
        ("{url: 'http://[::1/'}", "url", "not a valid URL"),
        (f"{{url: 'http://u:{SECRET}@h:x/'}}", "url", "invalid port"),
        ("{url: 'http://h', refresh_interval: 0s}", "refresh_interval", "must be greater than zero"),
        ("{url: 'http://h', refresh_interval: 5}", "refresh_interval", "duration"),
        ("{url: 'http://h', refresh_interval: -1s}", "refresh_interval", "duration"),
        ("{url: 'http://h', urls: []}", "urls", "field urls not found"),
        ("{url: 'http://h', basic_auth: {password: a, password_file: b}}", "basic_auth", "at most one of basic_auth"),
        ("{url: 'http://h', basic_auth: {}, bearer_token: a}", "bearer_token", "at most one of basic_auth"),
        (
            "{url: 'http://h', bearer_token: a, bearer_token_file: b}",
            "bearer_token_file",
            "at most one of bearer_token",
        ),
        ("{url: 'http://h', authorization: {type: Basic}}", "authorization.type", 'cannot be set to "basic"'),
        ("{url: 'http://h', authorization: {}, basic_auth: {username: u}}", "", "at most one of basic_auth, oauth2"),
        ("{url: 'http://h', oauth2: {client_id: a}}", "oauth2", "token_url must be configured"),
        ("{url: 'http://h', oauth2: {token_url: a}}", "oauth2", "client_id must be configured"),
        ("{url: 'http://h', tls_config: {cert: a}}", "tls_config", "exactly one of key or key_file"),
        ("{url: 'http://h', tls_config: {ca: a, ca_file: b}}", "tls_config", "at most one of ca"),
        (
            "{url: 'http://h', tls_config: {min_version: TLS13, max_version: TLS12}}",
            "tls_config.max_version",
            "max_version must be greater",
        ),
        ("{url: 'http://h', http_headers: {Authorization: {values: [a]}}}", "http_headers", "is not allowed"),
        ("{url: 'http://h', no_proxy: a}", "no_proxy", "proxy_url must also be configured"),
        ("{url: 'http://h', proxy_url: 'http://p:x'}", "proxy_url", "invalid port"),
        (
            "{url: 'http://h', proxy_url: 'http://p', proxy_from_environment: true}",
            "proxy_url",
            "must not be configured",
        ),
        ("{url: 'http://h', proxy_connect_header: {a: [b]}}", "proxy_connect_header", "must also be configured"),
    ],
)
def test_what_can_not_be_used_is_refused_at_its_place(tmp_path: Path, text: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    error = str(caught.value)
    assert message in error
    assert re.search(r"prometheus\.yml:1:\d+: scrape_configs\[0\]\.http_sd_configs\[0\]", error)
    assert path in caught.value.path
    assert SECRET not in error


EVERYTHING: Final = f"""{{
    url: 'https://u:{SECRET}@h/sd', refresh_interval: 1m30s, basic_auth: {{username: u, password: {SECRET}}},
    tls_config: {{ca_file: ca, cert_file: cert, key_file: /key}}, follow_redirects: false, enable_http2: false,
    http_headers: {{X: {{secrets: [{SECRET}], files: [header]}}}}, proxy_url: 'http://u:{SECRET}@p',
    proxy_connect_header: {{Y: [{SECRET}]}} }}"""


def test_configurations_are_values_that_show_no_secret(tmp_path: Path) -> None:
    one, two = load(tmp_path, EVERYTHING), load(tmp_path, EVERYTHING)
    assert one == two
    assert len({one, two, load(tmp_path, EVERYTHING.replace("1m30s", "90s"))}) == 1
    for before, after in (
        *((f"u:{SECRET}@h", "u:other@h"), ("1m30s", "1m"), ("ca_file: ca", "ca_file: b"), ("X:", "Z:")),
        *(("follow_redirects: false, ", ""), ("enable_http2: false", "enable_http2: true")),
        *((f"secrets: [{SECRET}]", "secrets: [other]"), (f"password: {SECRET}", "password: other")),
    ):
        assert before in EVERYTHING
        assert load(tmp_path, EVERYTHING.replace(before, after)) != one
    assert SECRET not in f"{one!r} {one}"
    assert SECRET not in repr(one.client_config())


def test_a_password_in_the_url_of_tokens_is_not_shown(tmp_path: Path) -> None:
    config = load(tmp_path, f"{{url: 'http://h', oauth2: {{client_id: a, token_url: 'http://u:{SECRET}@t'}}}}")
    for shown in repr(config), repr(config.client_config()), repr(config.oauth2):
        assert SECRET not in shown


def test_files_are_taken_from_the_directory_of_the_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, EVERYTHING)
    assert config.tls_config.files == (str(tmp_path / "ca"), str(tmp_path / "cert"), "/key")
    assert config.http_headers
    header = config.http_headers["X"]
    assert header
    assert header.files == (str(tmp_path / "header"),)
    other = load(
        tmp_path,
        "{url: 'http://h', oauth2: "
        "{client_id: a, token_url: 'http://t', client_secret_file: s, tls_config: {ca_file: c}}}",
    )
    assert other.oauth2
    assert other.oauth2.client_secret_file == str(tmp_path / "s")
    assert other.oauth2.tls_config.files == (str(tmp_path / "c"),)
    basic = load(tmp_path, "{url: 'http://h', basic_auth: {username_file: u, password_file: p}}")
    assert basic.basic_auth
    assert (basic.basic_auth.username_file, basic.basic_auth.password_file) == (
        str(tmp_path / "u"),
        str(tmp_path / "p"),
    )


def test_a_discoverer_opens_nothing_before_it_runs() -> None:
    discovery = HTTPDiscovery("http://127.0.0.1:1/", 1, HTTPSDConfig(url="http://127.0.0.1:1/"))
    assert SECRET not in repr(discovery)


async def test_everything_at_once_over_tls(clock: MockClock, tmp_path: Path) -> None:
    """A whole section of a file, against a server that wants a certificate, a password and HTTP/2."""
    certificates = Certificates(tmp_path)
    tls = certificates.server(asks_for_a_certificate=True)
    answers = requires_basic("me", SECRET, TargetList(groups("a:1")))
    (tmp_path / "password").write_text(f"{SECRET}\n")
    async with open_http_server({"/sd": answers}, tls=tls, http2=True) as server:
        for name in "crt", "key":
            shutil.copy(certificates.path(f"client.{name}"), tmp_path / f"my.{name}")
        config = load(
            tmp_path,
            f"""{{url: '{server.url("/sd", host="localhost")}', basic_auth: {{username: me, password_file: password}},
                tls_config: {{ca_file: authority.crt, cert_file: my.crt, key_file: my.key}}}}""",
        )
        async with following(config, clock) as found:
            assert len(await found.next()) == 1
            assert await found.again() == []
            assert found.counters["not_modified"] == 1
        assert [(request.http, request.tls and request.tls.client) for request in server.requests] == [
            ("2", "client")
        ] * 2
