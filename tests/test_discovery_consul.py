"""Discovery from Consul: what is asked, what is believed, and what is told.

Servers are real, on loopback; the clock runs fast, and is moved where Consul would wait for two minutes.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_sd
from trio_sd.discoverer import DiscovererOptions
from trio_sd.discovery.consul import ConsulSDConfig
from trio_sd.discovery.consul import discoverer as room
from trio_sd.discovery.consul.services import parse_instances
from trio_sd.durations import Duration
from trio_sd.errors import ConfigError
from trio_sd.http_config import Authorization, BasicAuth
from trio_sd.manager import Manager, open_manager
from trio_sd.polling import PollingDiscoverer
from trio_sd.resources import Resources
from trio_sd.secrets import Secret
from trio_sd.subscription import Throttle
from trio_sd.targets import ADDRESS_LABEL, Labels, TargetGroup
from trio_sd.testing import cancel_everywhere, check_discoverer

from .consul import SERF, ConsulServer, Tenancy, Token, open_consul
from .http_servers import Answer as Sent
from .http_servers import (
    Certificates,
    Handler,
    Raw,
    Request,
    Response,
    Route,
    basic,
    hang,
    lying_length,
    open_http_server,
    sequence,
    stall,
)

SECRET: Final = "hunter2"
CATALOG: Final = "/v1/catalog/services"
AGENT: Final = "/v1/agent/self"
WEB: Final = "/v1/health/service/web"
PACE: Final = 0.3  # seconds between two queries for the same, where a test does not say otherwise
WAITS: Final = 127.6  # seconds after which a query that blocks is answered, with what the server adds at random

PATIENCE: Final = 500  # seconds for what should take few; tests move the clock by some minutes

Shown = dict[str, list[str]]


@pytest.fixture
def clock() -> MockClock:
    return MockClock(rate=10)


@pytest.fixture
async def consul(clock: MockClock) -> AsyncIterator[ConsulServer]:
    async with open_consul() as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "trio_sd")
    yield
    assert SECRET not in caplog.text


def watching(address: str, pace: str = f"{PACE * 1000:.0f}ms", **keys: Any) -> ConsulSDConfig:  # Any: the keys' values
    return ConsulSDConfig(server=address, refresh_interval=Duration.of(pace), **{"datacenter": "dc1", **keys})


def shown_by(groups: Sequence[TargetGroup]) -> Shown:
    return {group.source: [target[ADDRESS_LABEL] for target in group.targets] for group in groups}


class Following:
    """A discoverer that runs."""

    def __init__(self, discoverer: PollingDiscoverer, sent: trio.MemoryReceiveChannel[Sequence[TargetGroup]]) -> None:
        self.discoverer = discoverer
        self.groups: dict[str, TargetGroup] = {}
        self.seen: list[Shown] = []  # each state that was told
        self._sent = sent

    @property
    def shown(self) -> Shown:
        """The addresses of each service that has any."""
        return shown_by([group for group in self.groups.values() if group.targets])

    async def next(self) -> Sequence[TargetGroup]:
        """Return what is sent next."""
        sent = await self._sent.receive()
        self.groups.update({group.source: group for group in sent})
        self.seen.append(self.shown)
        return sent

    async def until(self, expected: Shown) -> None:
        """Wait until this is what was told in all."""
        while self.shown != expected or not self.seen:
            await self.next()

    async def reached(self, holds: Callable[[], object]) -> None:
        """Take what is sent until something holds."""
        while not holds():
            with trio.move_on_after(PACE / 5):
                await self.next()

    async def failing(self, text: str) -> None:
        """Wait until an error tells ``text``."""
        await self.reached(lambda: any(text in error for error in self.errors))

    async def failures(self, more: int) -> None:
        """Wait until so many looks more have failed."""
        wanted = self.counters["failures"] + more
        await self.reached(lambda: self.counters["failures"] >= wanted)

    async def looks(self, wanted: int) -> None:
        """Wait until there were so many looks in all."""
        await self.reached(lambda: self.counters["looks"] >= wanted)

    @property
    def errors(self) -> tuple[str, ...]:
        errors = self.discoverer.statistics().errors
        assert not any(SECRET in error for error in errors)
        return errors

    @property
    def notes(self) -> tuple[str, ...]:
        return self.discoverer.statistics().notes

    @property
    def counters(self) -> Mapping[str, int]:
        return self.discoverer.statistics().counters


@asynccontextmanager
async def following(
    config: ConsulSDConfig, last_known: Mapping[str, TargetGroup] | None = None
) -> AsyncIterator[Following]:
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with trio.fail_after(PATIENCE), send, receive:
        async with trio.open_nursery() as nursery:
            discoverer = config.discoverer(DiscovererOptions(Resources(nursery), last_known=lambda: last_known or {}))
            nursery.start_soon(discoverer.run, send)
            yield Following(discoverer, receive)
            nursery.cancel_scope.cancel()


async def reached(holds: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not holds():
            await wait_all_tasks_blocked(0.002)


def asked(consul: ConsulServer, path: str) -> list[Mapping[str, tuple[str, ...]]]:
    """Return the parameters of each request for ``path``."""
    return [request.query for request in consul.requests if request.path == path]


def known(**addresses: str) -> dict[str, TargetGroup]:
    return {name: TargetGroup(name, [{ADDRESS_LABEL: address}]) for name, address in addresses.items()}


# --- servers that say what a test says ---


def instances(*ports: int) -> list[dict[str, object]]:
    return [{"Node": {"Address": "a"}, "Service": {"Port": port}} for port in ports]


def told(value: object, index: object = None, *headers: tuple[str, str]) -> Response:
    index_header = () if index is None else (("X-Consul-Index", str(index)),)
    return Response(200, (("Content-Type", "application/json"), *index_header, *headers), json.dumps(value).encode())


class Script:
    """Answers queries for the service web one after the other, and lets all that come later wait.

    Attributes:
      queries: what was asked, without the parameters that all have.
      times: when.
    """

    def __init__(self, *routes: Route) -> None:
        self.queries: list[str] = []
        self.times: list[float] = []
        self._answer: Handler = sequence(*routes, hang)

    async def __call__(self, request: Request) -> Sent:
        assert request.path == WEB
        query = request.query.split("&")
        self.queries.append("&".join(part for part in query if part not in ("dc=dc1", "wait=120000ms")))
        self.times.append(trio.current_time())
        return await self._answer(request)


@asynccontextmanager
async def scripted(*routes: Route, **keys: Any) -> AsyncIterator[tuple[Script, Following]]:  # Any: the keys' values
    script = Script(*routes)
    async with (
        open_http_server(script) as server,
        following(watching(server.address, **{"services": ("web",), **keys})) as found,
    ):
        yield script, found


def later(route: Response, seconds: float) -> Handler:
    async def handle(request: Request) -> Sent:
        await trio.sleep(seconds)
        return route

    return handle


# --- what is told ---


async def test_every_label_of_an_instance(consul: ConsulServer, clock: MockClock) -> None:
    consul.register(
        "node-1",
        "web",
        id="web-1",
        address="2001:db8::5",
        port=80,
        tags=["b", "a"],
        meta={"version": "1.0", "größe.x": ""},
        node_address="10.0.0.1",
        node_meta={"rack-1": "r1"},
        tagged_addresses={"wan": "1.2.3.4"},
        checks={"http": "warning"},
        tenancy=Tenancy("east", "team"),
    )
    config = watching(consul.address, datacenter="", namespace="team", partition="east", tag_separator="|")
    async with following(config) as found:
        assert await found.next() == [
            TargetGroup(
                "web",
                [
                    {
                        "__address__": "[2001:db8::5]:80",
                        "__meta_consul_address": "10.0.0.1",
                        "__meta_consul_health": "warning",
                        "__meta_consul_metadata_rack_1": "r1",
                        "__meta_consul_namespace": "team",
                        "__meta_consul_node": "node-1",
                        "__meta_consul_partition": "east",
                        "__meta_consul_service_address": "2001:db8::5",
                        "__meta_consul_service_id": "web-1",
                        "__meta_consul_service_metadata_gr__e_x": "",
                        "__meta_consul_service_metadata_version": "1.0",
                        "__meta_consul_service_port": "80",
                        "__meta_consul_tagged_address_wan": "1.2.3.4",
                        "__meta_consul_tags": "|b|a|",
                    }
                ],
                {"__meta_consul_service": "web", "__meta_consul_dc": "dc1"},
            )
        ]


@pytest.mark.parametrize("services", [(), ("web",)])
async def test_the_datacenter_of_the_label_is_the_one_that_is_asked_of(
    services: tuple[str, ...], clock: MockClock
) -> None:
    async with open_consul(datacenters=("dc1", "dc2")) as consul:
        consul.register("n", "web", port=1)
        consul.register("n", "web", port=2, datacenter="dc2")
        for datacenter, expected, port in (("", "dc1", 1), ("dc1", "dc1", 1), ("dc2", "dc2", 2)):
            async with following(watching(consul.address, datacenter=datacenter, services=services)) as found:
                await found.until({"web": [f"127.0.0.1:{port}"]})
                assert found.groups["web"].labels["__meta_consul_dc"] == expected


async def test_it_keeps_the_contract(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    found = await check_discoverer(watching(consul.address, datacenter="", pace="100ms"), patience=50)
    assert shown_by(found) == {"db": ["127.0.0.1:2"], "web": ["127.0.0.1:1"]}
    await reached(lambda: consul.open == 0)


# --- what is asked ---

BLOCKING: Final = {"wait": ("120000ms",)}
STALE: Final = {"stale": ("",), **BLOCKING}


@pytest.mark.parametrize(
    ("keys", "agent", "catalog", "health"),
    [
        ({}, {}, STALE, STALE),
        ({"allow_stale": False}, {}, BLOCKING, BLOCKING),
        ({"datacenter": "dc1"}, None, {"dc": ("dc1",), **STALE}, {"dc": ("dc1",), **STALE}),
        (
            {"namespace": "default", "partition": "default"},
            {"ns": ("default",), "partition": ("default",)},
            {"ns": ("default",), "partition": ("default",), **STALE},
            {"ns": ("default",), "partition": ("default",), **STALE},
        ),
        ({"tags": ("a", "b", "ü &")}, {}, STALE, {"tag": ("a", "b", "ü &"), **STALE}),
        (
            {"node_meta": Labels({"rack": "1", "os": "a b:c"})},
            {},
            {"node-meta": ("os:a b:c", "rack:1"), **STALE},
            {"node-meta": ("os:a b:c", "rack:1"), **STALE},
        ),
        ({"filter": 'ServiceName == "web"'}, {}, {"filter": ('ServiceName == "web"',), **STALE}, STALE),
        ({"health_filter": "Service.Port == 1"}, {}, STALE, {"filter": ("Service.Port == 1",), **STALE}),
        ({"services": ("web",)}, {}, None, STALE),
        ({"services": ("web",), "tags": ("a",)}, {}, STALE, {"tag": ("a",), **STALE}),
        (
            {"services": ("web",), "filter": 'ServiceName == "web"'},
            {},
            {"filter": ('ServiceName == "web"',), **STALE},
            STALE,
        ),
        (
            {"services": ("web",), "node_meta": Labels({"rack": "1"}), "health_filter": "Service.Port == 1"},
            {},
            None,
            {"node-meta": ("rack:1",), "filter": ("Service.Port == 1",), **STALE},
        ),
        ({"services": ("web",), "datacenter": "dc1"}, None, None, {"dc": ("dc1",), **STALE}),
    ],
)
async def test_queries(
    keys: dict[str, Any],  # the keys' values
    agent: dict[str, tuple[str, ...]] | None,
    catalog: dict[str, tuple[str, ...]] | None,
    health: dict[str, tuple[str, ...]],
    consul: ConsulServer,
    clock: MockClock,
) -> None:
    consul.register(
        "n", "web", port=1, tags=["b", "x", "a", "ü &"], node_meta={"rack": "1", "os": "a b:c"}, meta={"m": "1"}
    )
    config = watching(consul.address, **{"datacenter": "", **keys})
    blocking = 1 if catalog is None else 2
    async with following(config) as found:
        await found.until({"web": ["127.0.0.1:1"]})
        await found.reached(lambda: consul.blocked == blocking)
    index = {"index": (str(consul.index()),)}
    for path, expected in ((AGENT, agent), (CATALOG, catalog), (WEB, health)):
        queries = [] if expected is None else [expected] if path == AGENT else [expected, {**expected, **index}]
        assert asked(consul, path) == queries
    for request in consul.requests:
        assert request.method == "GET"
        assert request.headers["accept"] == "application/json"
        assert "x-consul-token" not in request.headers
        assert "authorization" not in request.headers


async def test_the_token_goes_with_every_request_and_beside_a_password(clock: MockClock) -> None:
    async with open_consul(tokens={SECRET: Token()}) as consul:
        consul.register("n", "web", port=1)
        config = watching(
            consul.address, datacenter="", token=Secret(SECRET), username="me", password=Secret("password")
        )
        async with following(config) as found:
            await found.until({"web": ["127.0.0.1:1"]})
        assert {request.path for request in consul.requests} == {AGENT, CATALOG, WEB}
        for request in consul.requests:
            assert request.headers["x-consul-token"] == SECRET
            assert request.headers["authorization"] == basic("me", "password")
            assert SECRET not in str(request.query)


async def test_a_token_that_no_header_can_hold_is_not_shown(consul: ConsulServer, clock: MockClock) -> None:
    config = watching(consul.address, services=("web",), token=Secret(f"{SECRET}\nX-Evil: 1"))
    with trio.fail_after(PATIENCE):
        async with open_manager({"web": [config]}) as manager:
            await reached(lambda: manager.statistics().providers[0].state == "failing")
            assert SECRET not in repr(manager.statistics())


async def test_white_space_around_a_token_does_not_count(clock: MockClock) -> None:
    """As in Go's net/http, which trims what it sends."""
    async with open_consul(tokens={"secret": Token()}) as consul:
        consul.register("n", "web", port=1)
        async with following(watching(consul.address, services=("web",), token=Secret(" secret\t"))) as found:
            await found.reached(lambda: found.shown or found.errors)
            assert found.shown == {"web": ["127.0.0.1:1"]}


@pytest.mark.parametrize("prefix", ["", "/consul", "/a/b"])
@pytest.mark.parametrize("form", ["http://{address}{prefix}/", "{address}", " {address}\n"])
async def test_where_it_is_asked(form: str, prefix: str, clock: MockClock) -> None:
    async with open_consul(prefix=prefix) as consul:
        consul.register("n", "web", port=1)
        server = form.format(address=consul.address, prefix=prefix)
        path_prefix = "unused" if "//" in server and prefix else prefix.strip("/")
        async with following(watching(server, datacenter="", path_prefix=path_prefix)) as found:
            await found.until({"web": ["127.0.0.1:1"]})
        assert {request.path for request in consul.requests} == {prefix + path for path in (AGENT, CATALOG, WEB)}


async def test_over_tls(tmp_path: Path, clock: MockClock) -> None:
    certificates = Certificates(tmp_path)
    async with open_consul(tls=certificates.server()) as consul:
        consul.register("n", "web", port=1)
        tls = f"tls_config: {{ca_file: '{certificates.path('authority.crt')}'}}"
        for server in (
            f"{{server: 'https://localhost:{consul.port}', {tls}}}",
            (f"{{server: 'localhost:{consul.port}', scheme: https, {tls}}}"),
        ):
            async with following(load(tmp_path, server)) as found:
                await found.until({"web": ["127.0.0.1:1"]})


@pytest.mark.parametrize("name", ["a/b", "a b", "a?b#c", "100%", "a%2Fb", "bücher", "🦊", "a:1", "+", "a&b=c", "\x7f"])
async def test_services_of_any_name(name: str, consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", name, port=1)
    async with following(watching(consul.address)) as found:
        await found.until({name: ["127.0.0.1:1"]})
        assert found.groups[name].labels["__meta_consul_service"] == name
    assert {request.path for request in consul.requests} == {CATALOG, f"/v1/health/service/{name}"}


# --- which services are watched ---


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"api", "db", "web"}),
        ({"services": ("web", "api", "web", "none")}, {"api", "web"}),
        ({"tags": ("v1",)}, {"api", "web"}),
        ({"tags": ("v1", "http")}, {"web"}),
        ({"tags": ("http", "none")}, set()),
        ({"tags": ("V1",)}, set()),
        ({"services": ("db", "web"), "tags": ("v1",)}, {"web"}),
        ({"services": ("db",), "tags": ("v1",)}, set()),
        ({"services": ("db", "web"), "filter": "ServicePort != 1"}, {"db"}),
        ({"filter": "ServicePort != 1"}, {"api", "db"}),
        ({"health_filter": "Service.Port != 1"}, {"api", "db"}),
        ({"node_meta": Labels({"rack": "2"})}, {"api"}),
        ({"services": ("web", "api"), "node_meta": Labels({"rack": "2"})}, {"api"}),
    ],
)
async def test_the_services_that_the_configuration_wants(
    keys: dict[str, Any], expected: set[str], consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1, tags=["http", "v1"])
    consul.register("n", "db", port=2)
    consul.register("m", "api", port=3, tags=["v1"], node_meta={"rack": "2"})
    async with following(watching(consul.address, **keys)) as found:
        await found.next()
        assert found.shown.keys() == expected
    if "tags" in keys:
        watched = {request.path.rpartition("/")[2] for request in consul.requests if request.path != CATALOG}
        assert watched == expected, "no other service is asked about"


async def test_tags_are_wanted_of_one_instance(consul: ConsulServer, clock: MockClock) -> None:
    """The catalog tells the tags of all instances of a service together; none of them may have both."""
    consul.register("n", "web", id="1", port=1, tags=["a"])
    consul.register("n", "web", id="2", port=2, tags=["b"])
    async with following(watching(consul.address, tags=("a", "b"))) as found:
        assert [(group.source, group.targets) for group in await found.next()] == [("web", ())]
        consul.register("n", "web", id="3", port=3, tags=["b", "c", "a"])
        await found.until({"web": ["127.0.0.1:3"]})


async def test_a_service_comes_gets_tags_loses_tags_goes_and_comes_back(consul: ConsulServer, clock: MockClock) -> None:
    async with following(watching(consul.address, tags=("a",))) as found:
        assert await found.next() == []
        consul.register("n", "web", port=1)
        consul.register("n", "db", port=2, tags=["a"])
        await found.until({"db": ["127.0.0.1:2"]})
        consul.register("n", "web", port=1, tags=["b", "a"])
        await found.until({"db": ["127.0.0.1:2"], "web": ["127.0.0.1:1"]})
        consul.register("n", "web", port=1, tags=["b"])
        await found.until({"db": ["127.0.0.1:2"]})
        await found.reached(lambda: consul.blocked == 2)
        consul.register("n", "web", port=3, tags=["a"])
        await found.until({"db": ["127.0.0.1:2"], "web": ["127.0.0.1:3"]})
        consul.deregister("n", "web")
        await found.until({"db": ["127.0.0.1:2"]})
        consul.register("n", "web", port=4, tags=["a"])
        await found.until({"db": ["127.0.0.1:2"], "web": ["127.0.0.1:4"]})
        consul.deregister("n")
        await found.until({})
        await found.reached(lambda: consul.blocked == 1)
        assert found.errors == ()


async def test_instances_come_change_their_health_and_go(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", id="1", port=1)

    def health() -> list[str]:
        return [target["__meta_consul_health"] for target in found.groups["web"].targets]

    async with following(watching(consul.address)) as found:
        await found.until({"web": ["127.0.0.1:1"]})
        consul.register("n", "web", id="2", port=2, checks={"http": "critical"})
        await found.until({"web": ["127.0.0.1:1", "127.0.0.1:2"]})
        assert health() == ["passing", "critical"]
        consul.set_check("n", "http", "passing", id="2")
        await found.reached(lambda: health() == ["passing", "passing"])
        consul.set_check("n", SERF, "warning")
        await found.reached(lambda: health() == ["warning", "warning"])
        consul.set_check("n", "_service_maintenance:1", "critical", id="1")
        await found.reached(lambda: health() == ["maintenance", "warning"])
        consul.deregister("n", "1")
        await found.until({"web": ["127.0.0.1:2"]})


async def test_an_empty_catalog_is_news(consul: ConsulServer, clock: MockClock) -> None:
    async with following(watching(consul.address)) as found:
        assert await found.next() == []
        assert found.errors == ()


async def test_a_service_without_instances_is_an_empty_group(consul: ConsulServer, clock: MockClock) -> None:
    async with following(watching(consul.address, services=("web",))) as found:
        [group] = await found.next()
        assert (group.source, group.targets) == ("web", ())
        consul.register("n", "web", port=1)
        await found.until({"web": ["127.0.0.1:1"]})
        consul.deregister("n")
        await found.until({})
        assert found.errors == ()
    assert asked(consul, CATALOG) == []


async def test_the_first_full_set_waits_once_for_all_services(consul: ConsulServer, clock: MockClock) -> None:
    for number in range(5):
        consul.register("n", f"s{number}", port=number)
    consul.hang("/v1/health/service/s3")
    consul.fail(500, path="/v1/health/service/s4")
    async with following(watching(consul.address)) as found:
        await reached(lambda: consul.blocked == 4)  # the catalog and three services
        with pytest.raises(trio.WouldBlock):
            found._sent.receive_nowait()
        consul.heal()
        consul.drop_connections()
        first = shown_by(await found.next())
        assert first.keys() >= {"s0", "s1", "s2", "s3"}, "one that can't be read is not waited for"
        await found.until({f"s{number}": [f"127.0.0.1:{number}"] for number in range(5)})
        consul.hang("/v1/health/service/late")
        consul.register("n", "late", port=9)
        consul.register("n", "other", port=8)
        await found.reached(lambda: "other" in found.shown)
        assert "late" not in found.shown, "those that come later are not waited for"


@pytest.mark.parametrize("trouble", ["hang", "fail", "garbage"])
async def test_one_service_in_trouble_delays_no_other(trouble: str, consul: ConsulServer, clock: MockClock) -> None:
    for name, port in (("bad", 1), ("good", 2)):
        consul.register("n", name, port=port)
    async with following(watching(consul.address)) as found:
        await found.until({"bad": ["127.0.0.1:1"], "good": ["127.0.0.1:2"]})
        getattr(consul, trouble)(path="/v1/health/service/bad")
        consul.drop_connections()
        for port in range(3, 8):
            consul.register("n", "good", port=port)
            await found.until({"bad": ["127.0.0.1:1"], "good": [f"127.0.0.1:{port}"]})
        consul.register("n", "new", port=9)
        await found.reached(lambda: found.shown.get("new"))
        assert all("service bad of " in error for error in found.errors)
        assert bool(found.errors) is (trouble != "hang")


async def test_many_services(consul: ConsulServer, clock: MockClock) -> None:
    for number in range(300):
        consul.register(f"n{number % 10}", f"s{number}", port=number)
    expected = {f"s{number}": [f"127.0.0.1:{number}"] for number in range(300)}
    async with following(watching(consul.address, pace="60s")) as found:
        await found.next()
        assert found.shown == expected
        assert found.counters["failures"] == 0
    paths = Counter(request.path for request in consul.requests)
    assert set(paths.values()) == {1}, "no more is asked than has to be"
    await reached(lambda: consul.open == 0)


async def test_many_services_are_followed(clock: MockClock, consul: ConsulServer) -> None:
    for number in range(100):
        consul.register("n", f"s{number}", port=number)
    async with following(watching(consul.address, pace="60s")) as found:
        await found.next()
        clock.jump(60)
        await reached(lambda: consul.blocked == 101)
        clock.jump(60)
        consul.register("n", "s50", port=1000)
        await found.reached(lambda: found.shown["s50"] == ["127.0.0.1:1000"])
        consul.deregister("n", "s7")
        await found.reached(lambda: "s7" not in found.shown)
        assert len(found.shown) == 99
        assert found.errors == ()


# --- a service that goes while something is done for it ---


class Decoding:
    """Holds up the thread in which the answers for one service are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = trio.Event()
        self.go_on = threading.Event()
        self._times = 0
        monkeypatch.setattr(room, "parse_instances", self.parse)

    def parse(self, body: bytes, *, service: str, datacenter: str, tag_separator: str) -> TargetGroup:
        found = parse_instances(body, service, datacenter, tag_separator)
        if service == "large":
            self._times += 1
            if self._times == 2:
                trio.from_thread.run_sync(self.begun.set)
                assert self.go_on.wait(10)
        return found


LARGE: Final = {"text": "x" * 200_000}  # more than is decoded in the loop


async def test_a_service_may_go_while_its_answer_is_decoded_in_a_thread(
    consul: ConsulServer, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    decoding = Decoding(monkeypatch)
    consul.register("n", "large", port=1, meta=LARGE)
    consul.register("n", "web", port=2)
    async with following(watching(consul.address)) as found:
        await found.until({"large": ["127.0.0.1:1"], "web": ["127.0.0.1:2"]})
        await found.reached(lambda: consul.blocked == 3)
        consul.register("n", "large", port=3, meta=LARGE)
        await found.reached(decoding.begun.is_set)
        consul.deregister("n", "large")
        await found.until({"web": ["127.0.0.1:2"]})
        decoding.go_on.set()
        consul.register("n", "web", port=4)
        await found.until({"web": ["127.0.0.1:4"]})
        assert found.errors == ()


async def test_a_service_may_come_back_while_its_watch_is_ending(
    consul: ConsulServer, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    decoding = Decoding(monkeypatch)
    consul.register("n", "large", port=1, meta=LARGE)
    async with following(watching(consul.address)) as found:
        await found.until({"large": ["127.0.0.1:1"]})
        await found.reached(lambda: consul.blocked == 2)
        consul.register("n", "large", port=3, meta=LARGE)
        await found.reached(decoding.begun.is_set)
        consul.deregister("n", "large")
        await found.until({})
        consul.register("n", "large", port=5)
        await found.until({"large": ["127.0.0.1:5"]})
        before = len(found.seen)
        decoding.go_on.set()
        await found.reached(lambda: consul.blocked == 2)
        consul.register("n", "large", port=6)
        await found.until({"large": ["127.0.0.1:6"]})
        assert all(shown["large"] in (["127.0.0.1:5"], ["127.0.0.1:6"]) for shown in found.seen[before:])


async def test_a_service_that_flaps_is_followed(consul: ConsulServer, clock: MockClock) -> None:
    """It goes and comes back again and again, while its queries are under way or not."""
    consul.register("n", "web", port=1)
    async with following(watching(consul.address, pace="20ms")) as found:
        await found.next()
        for port in range(2, 20):
            consul.deregister("n", "web")
            if port % 2:
                await found.next()
            if port % 3:
                await found.reached(lambda: consul.blocked)
            consul.register("n", "web", port=port)
            if port % 5 == 0:
                await found.until({"web": [f"127.0.0.1:{port}"]})
        await found.until({"web": ["127.0.0.1:19"]})
        await found.reached(lambda: consul.blocked == 2)
        assert found.errors == ()


# --- the index ---


async def test_nothing_is_told_when_the_time_of_a_query_is_over(clock: MockClock, consul: ConsulServer) -> None:
    consul.register("n", "web", port=1)
    async with following(watching(consul.address)) as found:
        await found.next()
        await found.reached(lambda: consul.blocked == 2)
        requests, looks = len(consul.requests), found.counters["looks"]
        clock.jump(WAITS)
        await found.reached(lambda: found.counters["looks"] == looks + 2 and consul.blocked == 2)
        assert len(consul.requests) == requests + 2
        assert all("index" in request.query for request in consul.requests[-2:]), "it goes on to wait"
        assert found.counters["failures"] == 0
        assert found.seen == [{"web": ["127.0.0.1:1"]}] * len(found.seen)


async def test_an_answer_with_the_same_index_is_not_looked_at(clock: MockClock) -> None:
    """After the full wait it says that nothing has happened, whatever stands in it."""
    async with scripted(told(instances(1), 7), later(Response(200, (("X-Consul-Index", "7"),), b"?"), 121)) as (
        script,
        found,
    ):
        await found.next()
        await found.reached(lambda: len(script.queries) == 2)
        clock.jump(121)
        await found.reached(lambda: len(script.queries) == 3)
        assert script.queries == ["stale=", "stale=&index=7", "stale=&index=7"]
        assert found.errors == ()
        assert found.shown == {"web": ["a:1"]}


async def test_a_wake_up_without_news_tells_nothing(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    async with following(watching(consul.address)) as found:
        await found.next()
        for _ in range(3):
            await found.reached(lambda: consul.blocked == 2)
            looks = found.counters["looks"]
            consul.touch()
            await found.looks(looks + 2)
        assert found.seen == [{"web": ["127.0.0.1:1"]}] * len(found.seen)


async def test_the_early_answer_that_tells_nothing_new_is_asked_about_anew(clock: MockClock) -> None:
    """So is a query answered that waits while a snapshot is restored; its index may lie in the future now."""
    restored = told(instances(2), 30)
    early = later(told(instances(1), 50), 1)
    async with scripted(told(instances(1), 50), early, restored, restored) as (script, found):
        await found.until({"web": ["a:2"]})
        assert found.seen == [{"web": ["a:1"]}] * (len(found.seen) - 1) + [{"web": ["a:2"]}]
        assert script.queries[:4] == ["stale=", "stale=&index=50", "stale=", ""], "and of the leader, as it is older"


@pytest.mark.parametrize("allow_stale", [True, False])
async def test_a_snapshot_that_is_restored_is_noticed_at_once(
    allow_stale: bool, consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", id="1", port=1)
    snapshot = consul.snapshot()
    consul.register("n", "web", id="2", port=2)
    consul.register("n", "db", port=3)
    async with following(watching(consul.address, allow_stale=allow_stale)) as found:
        await found.until({"db": ["127.0.0.1:3"], "web": ["127.0.0.1:1", "127.0.0.1:2"]})
        await found.reached(lambda: consul.blocked == 3)
        began = trio.current_time()
        consul.restore_snapshot(snapshot)
        await found.until({"web": ["127.0.0.1:1"]})
        assert trio.current_time() - began < 60, "it does not wait for the old index to come again"
        await found.reached(lambda: consul.blocked == 2)
        consul.register("n", "web", id="1", port=5)
        await found.until({"web": ["127.0.0.1:5"]})


@pytest.mark.parametrize("allow_stale", [True, False])
async def test_a_cluster_that_was_built_anew_is_noticed(
    allow_stale: bool, consul: ConsulServer, clock: MockClock
) -> None:
    for port in range(20):
        consul.register("n", "web", port=port)
    async with following(watching(consul.address, allow_stale=allow_stale)) as found:
        await found.until({"web": ["127.0.0.1:19"]})
        await found.reached(lambda: consul.blocked == 2)
        consul.set_index(3)
        await found.reached(lambda: consul.blocked == 2 and asked(consul, WEB)[-1]["index"] == ("3",))
        consul.register("n", "web", port=50)
        await found.until({"web": ["127.0.0.1:50"]})
        assert found.errors == ()


async def test_what_is_older_is_not_believed_before_the_leader_says_so(clock: MockClock) -> None:
    leader = told(instances(1, 2), 50)
    async with scripted(leader, later(told([], 40), 121), leader, told(instances(3), 51)) as (script, found):
        await found.next()
        await found.reached(lambda: len(script.queries) == 2)
        clock.jump(121)
        await found.until({"web": ["a:3"]})
        assert script.queries[:4] == ["stale=", "stale=&index=50", "", "stale=&index=50"]
        assert all(shown in ({"web": ["a:1", "a:2"]}, {"web": ["a:3"]}) for shown in found.seen), (
            "nothing is taken away"
        )


async def test_what_the_leader_says_is_believed_though_it_is_older(clock: MockClock) -> None:
    older = told(instances(1), 40)
    async with scripted(told(instances(1, 2), 50), older, older, told(instances(3), 41)) as (script, found):
        await found.until({"web": ["a:1", "a:2"]})
        await found.until({"web": ["a:1"]})
        await found.until({"web": ["a:3"]})
        assert script.queries[:4] == ["stale=", "stale=&index=50", "", "stale="], "it does not wait for 50 again"


async def test_only_the_leader_answers_without_stale(clock: MockClock) -> None:
    async with scripted(
        told(instances(1, 2), 50), told(instances(1), 40), told(instances(3), 41), allow_stale=False
    ) as (script, found):
        await found.until({"web": ["a:3"]})
        assert script.queries[:3] == ["", "index=50", ""]
        assert {"web": ["a:1"]} in found.seen


async def test_while_the_leader_can_not_be_asked_what_was_found_is_kept(clock: MockClock) -> None:
    older, refused = told([], 40), Response(500, body=b"No cluster leader")
    async with scripted(told(instances(1), 50), older, refused, told(instances(2), 52)) as (_, found):
        await found.next()
        await found.failing("500 Internal Server Error: No cluster leader")
        await found.until({"web": ["a:2"]})
        assert all(found.seen), "nothing was taken away"
        assert found.errors == ()


class Cluster:
    """A leader and a follower that lags behind: what is asked with ``stale`` is answered by the follower.

    Attributes:
      down: whether nobody answers.
    """

    def __init__(self) -> None:
        self.leader = told(instances(1), 40)
        self.follower = told(instances(1), 40)
        self.down = False
        self.stale_answers = 0
        self.changed = trio.Event()

    async def __call__(self, request: Request) -> Sent:
        while True:
            changed = self.changed
            if self.down:
                return Response(500, body=b"rpc error making call: EOF")
            stale = "stale=" in request.query
            found = self.follower if stale else self.leader
            asked_after = re.search(r"index=(\d+)", request.query)
            if asked_after is None or int(dict(found.headers)["X-Consul-Index"]) > int(asked_after[1]):
                self.stale_answers += stale
                return found
            await changed.wait()

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


async def test_a_follower_that_lags_behind_takes_nothing_away_after_a_failure(clock: MockClock) -> None:
    """The query after a failure has no index; what it is told may still be older than what is known."""
    cluster = Cluster()
    async with (
        open_http_server(cluster) as server,
        following(watching(server.address, services=("web",))) as found,
    ):
        await found.until({"web": ["a:1"]})
        cluster.leader = cluster.follower = told(instances(1, 2), 50)
        cluster.tell()
        await found.until({"web": ["a:1", "a:2"]})
        await found.reached(lambda: len(server.requests) >= 3)
        cluster.down = True
        cluster.tell()
        await found.failing("EOF")
        cluster.follower = told(instances(1), 40)  # one that has just come back
        before = cluster.stale_answers
        cluster.down = False
        await found.reached(lambda: cluster.stale_answers > before and not found.errors)
        cluster.follower = cluster.leader = told(instances(1, 2, 3), 60)
        cluster.tell()
        await found.until({"web": ["a:1", "a:2", "a:3"]})
        assert {"web": ["a:1"]} not in found.seen[found.seen.index({"web": ["a:1", "a:2"]}) :]


async def test_a_follower_that_lags_behind_takes_nothing_away_after_an_early_answer(clock: MockClock) -> None:
    """As it is after a server has gone in the middle of a query, or a snapshot was restored."""

    async def serve(request: Request) -> Sent:
        if "stale=" not in request.query:
            return told(instances(1, 2), 50)
        return await stale(request)

    stale = sequence(
        told(instances(1, 2), 50), told(instances(1, 2), 50), told(instances(1), 40), told(instances(3), 60), hang
    )
    async with open_http_server(serve) as server, following(watching(server.address, services=("web",))) as found:
        await found.until({"web": ["a:3"]})
        assert {"web": ["a:1"]} not in found.seen


@pytest.mark.parametrize("attribute", ["index_zero", "omit_index_header"])
async def test_without_an_index_nothing_blocks_and_everything_is_news(
    attribute: str, consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1)
    setattr(consul, attribute, True)
    async with following(watching(consul.address)) as found:
        await found.until({"web": ["127.0.0.1:1"]})
        consul.register("n", "web", port=2)
        consul.register("n", "db", port=3)
        await found.until({"web": ["127.0.0.1:2"], "db": ["127.0.0.1:3"]})
        consul.deregister("n", "web")
        await found.until({"db": ["127.0.0.1:3"]})
        assert not any("index" in request.query for request in consul.requests)
        setattr(consul, attribute, False)
        await found.reached(lambda: consul.blocked == 2)


async def test_an_index_that_is_no_longer_told(clock: MockClock) -> None:
    async with scripted(
        told(instances(1), 50), told(instances(2)), told(instances(2)), told(instances(3)), told(instances(4), 9)
    ) as (script, found):
        await found.until({"web": ["a:4"]})
        assert script.queries[:2] == ["stale=", "stale=&index=50"]
        assert not any("index" in query for query in script.queries[2:5])


# --- the pace ---


async def test_queries_keep_the_interval_however_often_something_changes(
    consul: ConsulServer, clock: MockClock
) -> None:
    """https://github.com/hashicorp/consul/issues/3712"""
    times: dict[str, list[float]] = {CATALOG: [], WEB: []}

    def look() -> bool:
        for path, found_at in times.items():
            if len(asked(consul, path)) > len(found_at):
                found_at.append(trio.current_time())
        if consul.blocked:
            consul.touch()
        return min(map(len, times.values())) >= 6

    consul.register("n", "web", port=1)
    async with following(watching(consul.address, pace="1s")) as found:
        await found.next()
        await reached(look)
    for found_at in times.values():
        # The second one is early on purpose: what began together spreads out.
        assert found_at[-1] - found_at[1] > (len(found_at) - 2) * 0.9


async def test_news_after_quiet_are_told_at_once(clock: MockClock, consul: ConsulServer) -> None:
    consul.register("n", "web", port=1)
    async with following(watching(consul.address, pace="100s")) as found:
        await found.next()
        clock.jump(100)
        await found.reached(lambda: consul.blocked == 2)
        clock.jump(101)
        began = trio.current_time()
        consul.register("n", "web", port=2)
        await found.until({"web": ["127.0.0.1:2"]})
        consul.register("n", "db", port=3)
        await found.until({"web": ["127.0.0.1:2"], "db": ["127.0.0.1:3"]})
        assert trio.current_time() - began < 30


@pytest.mark.parametrize("status", [429, 503])
async def test_who_wants_to_be_left_alone_is(status: int, clock: MockClock) -> None:
    refusal = Response(status, (("Retry-After", "3"),), b"Your IP is issuing too many concurrent connections")
    async with scripted(told(instances(1), 7), refusal, told(instances(2), 8)) as (script, found):
        await found.next()
        await found.failing(f"{status} ")
        await found.until({"web": ["a:2"]})
        assert script.times[2] - script.times[1] >= 3
        assert script.queries[2] == "stale="


# --- failures ---


@pytest.mark.parametrize(
    ("route", "error"),
    [
        (Response(500, body=b"No cluster leader"), "server returned HTTP status 500 Internal Server Error: No cluster"),
        (Response(500), "server returned HTTP status 500 Internal Server Error"),
        (Response(400, body=b"Invalid index"), "400 Bad Request: Invalid index"),
        (Response(403, body=b"Permission denied:\n\tsee\x1b[0m"), "403 Forbidden: Permission denied:"),
        (Response(404), "404"),
        (Response(204, (("X-Consul-Index", "9"),)), "204"),
        (Response(500, body="\u00e9".encode("latin-1") * 300), "500 Internal Server Error: \ufffd"),
        (Response(200, (("X-Consul-Index", "9"),)), "not JSON"),
        (Response(200, (("X-Consul-Index", "9"),), b"<html>"), "not JSON"),
        (told({}, 9), "found an object, expected a list of instances"),
        (told([*instances(1), {"Node": {"Address": 7}}], 9), "found a number for Address"),
        (lying_length(100, b"[]"), ""),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]"), ""),
        (Raw(b"nonsense\r\n\r\n"), ""),
        (Raw(), ""),
    ],
    ids=lambda value: value or "any" if isinstance(value, str) else "",
)
async def test_what_is_no_answer_keeps_what_was_found(route: Route, error: str, clock: MockClock) -> None:
    """The client tries three times where another try may help."""
    async with scripted(told(instances(1), 7), route, route, route, told(instances(2), 8), pace="200ms") as (
        script,
        found,
    ):
        await found.next()
        await found.failing(error)
        [shown] = found.errors
        assert shown.isprintable()
        assert len(shown) < 600
        await found.until({"web": ["a:2"]})
        assert found.seen[:-1] == [{"web": ["a:1"]}] * (len(found.seen) - 1), "nothing was taken away"
        assert found.errors == ()
        assert script.queries[:2] == ["stale=", "stale=&index=7"]
        assert script.queries[2:4] in (["stale=&index=7"] * 2, ["stale="] * 2)
        assert script.queries[4] == "stale=", "once it has failed, no query blocks"


async def test_an_answer_that_can_not_be_decoded_is_not_passed_over(clock: MockClock) -> None:
    broken = Response(200, (("X-Consul-Index", "9"),), b'[{"Node"')
    async with scripted(told(instances(1), 7), broken, told(instances(2), 9)) as (script, found):
        await found.until({"web": ["a:2"]})
        assert script.queries[:3] == ["stale=", "stale=&index=7", "stale="]


@pytest.mark.parametrize("route", [hang, Response(200, (("Content-Length", "9"),), stall(b"["))])
async def test_what_never_comes_to_an_end_is_given_up(route: Route, clock: MockClock) -> None:
    async with scripted(told(instances(1), 7), route, told(instances(2), 8)) as (script, found):
        await found.next()
        await found.reached(lambda: len(script.queries) == 2)
        clock.jump(128)
        await wait_all_tasks_blocked(0.01)
        assert found.errors == (), "a server may take a sixteenth more time than it was given"
        clock.jump(10)
        await found.failing("no answer within 135 s")
        await found.until({"web": ["a:2"]})
        assert script.queries[2] == "stale="


@pytest.mark.parametrize("path", [AGENT, CATALOG, WEB])
@pytest.mark.parametrize("trouble", ["fail", "garbage"])
async def test_nothing_is_told_before_something_was_read(
    path: str, trouble: str, consul: ConsulServer, clock: MockClock
) -> None:
    if path != WEB:
        consul.register("n", "web", port=1)
    getattr(consul, trouble)(path=path)
    services = ("web",) if path == WEB else ()
    async with following(watching(consul.address, datacenter="", services=services)) as found:
        await reached(lambda: found.counters["failures"] == 2)
        with pytest.raises(trio.WouldBlock):
            found._sent.receive_nowait()
        consul.heal()
        expected = {} if path == WEB else {"web": ["127.0.0.1:1"]}
        await found.next()
        assert found.shown == expected
        assert found.errors == ()


async def test_a_catalog_in_trouble_keeps_its_services_and_they_are_followed(
    consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    async with following(watching(consul.address)) as found:
        await found.until({"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]})
        consul.fail(500, path=CATALOG)
        consul.drop_connections()
        await found.failing("catalog of http://")
        consul.register("n", "web", port=3)
        await found.until({"web": ["127.0.0.1:3"], "db": ["127.0.0.1:2"]})
        consul.deregister("n", "db")
        consul.register("n", "api", port=4)
        await found.until({"web": ["127.0.0.1:3"]})
        consul.heal()
        await found.until({"web": ["127.0.0.1:3"], "api": ["127.0.0.1:4"]})
        assert found.errors == ()
    first_after = [query for query in asked(consul, CATALOG) if "index" not in query]
    assert len(first_after) >= 2, "after a failure no query blocks"


async def test_a_server_that_restarts(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    async with following(watching(consul.address)) as found:
        await found.until({"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]})
        await found.reached(lambda: consul.blocked == 3)
        await consul.stop()
        await found.reached(lambda: len(found.errors) == 3)
        assert all("Connection refused" in error for error in found.errors)
        consul.register("n", "web", port=3)
        consul.deregister("n", "db")
        await consul.start()
        await found.until({"web": ["127.0.0.1:3"]})
        await found.reached(lambda: not found.errors)
        assert all("web" in shown for shown in found.seen), "the service that stays is always shown"


async def test_connections_that_break_are_no_failure(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    async with following(watching(consul.address)) as found:
        await found.next()
        for port in range(2, 6):
            await found.reached(lambda: consul.blocked == 2)
            consul.drop_connections()
            consul.register("n", "web", port=port)
            await found.until({"web": [f"127.0.0.1:{port}"]})
        assert found.counters["failures"] == 0


@pytest.mark.parametrize("allow_stale", [True, False])
async def test_a_cluster_without_a_leader(allow_stale: bool, clock: MockClock, consul: ConsulServer) -> None:
    consul.register("n", "web", port=1)
    async with following(watching(consul.address, allow_stale=allow_stale)) as found:
        await found.until({"web": ["127.0.0.1:1"]})
        await found.reached(lambda: consul.blocked == 2)
        consul.lose_leader()
        consul.touch()
        if allow_stale:
            await found.reached(lambda: len(found.notes) == 2)
            assert all("the server knows no leader: what it tells may be old" in note for note in found.notes)
            assert found.errors == ()
        else:
            await found.reached(lambda: len(found.errors) == 2)
            assert all("500 Internal Server Error: No cluster leader" in error for error in found.errors)
        assert found.shown == {"web": ["127.0.0.1:1"]}
        consul.elect_leader()
        consul.register("n", "web", port=2)
        await found.until({"web": ["127.0.0.1:2"]})
        await found.reached(lambda: consul.blocked == 2)
        consul.touch()
        await found.reached(lambda: not found.errors and not found.notes)


# --- access control ---


async def test_a_wrong_token_keeps_what_was_found(clock: MockClock) -> None:
    tokens = {SECRET: Token()}
    async with open_consul(tokens=tokens) as consul:
        consul.register("n", "web", port=1)
        async with following(watching(consul.address, token=Secret(SECRET))) as found:
            await found.until({"web": ["127.0.0.1:1"]})
            await found.reached(lambda: consul.blocked == 2)
            del tokens[SECRET]
            consul.touch()
            await found.failing("403 Forbidden: ACL not found")
            await found.failures(3)
            assert found.shown == {"web": ["127.0.0.1:1"]}
            tokens[SECRET] = Token()
            consul.register("n", "web", port=2)
            await found.until({"web": ["127.0.0.1:2"]})


async def test_who_may_not_see_everything_is_told_so(clock: MockClock) -> None:
    tokens = {"narrow": Token(frozenset({"web"})), "all": Token()}
    async with open_consul(tokens=tokens) as consul:
        consul.register("n", "web", port=1)
        consul.register("n", "db", port=2)
        async with following(watching(consul.address, token=Secret("narrow"))) as found:
            assert shown_by(await found.next()) == {"web": ["127.0.0.1:1"]}
            [note] = found.notes
            assert note.endswith("the token may not see everything: results are filtered by ACLs")
            assert note.startswith(f"catalog of http://{consul.address}")
            assert found.errors == ()
        async with following(watching(consul.address, token=Secret("narrow"), services=("web", "db"))) as found:
            await found.until({"web": ["127.0.0.1:1"]})
            [note] = found.notes
            assert note.startswith(f"service db of http://{consul.address}")
        async with following(watching(consul.address, token=Secret("all"))) as found:
            await found.until({"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]})
            assert found.notes == ()


async def test_a_token_that_may_not_ask_the_agent(clock: MockClock) -> None:
    async with open_consul(tokens={SECRET: Token(agent=False)}) as consul:
        consul.register("n", "web", port=1)
        async with following(watching(consul.address, datacenter="", token=Secret(SECRET))) as found:
            await found.failing("403 Forbidden: Permission denied: token lacks permission 'agent:read'")
        async with following(watching(consul.address, token=Secret(SECRET))) as found:
            await found.until({"web": ["127.0.0.1:1"]})


async def test_a_filter_that_consul_refuses(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    async with following(watching(consul.address, filter="Nothing == 1")) as found:
        await found.failing('Selector "Nothing" is not valid')
    async with following(watching(consul.address, health_filter="ServiceName == web")) as found:
        await found.failing('Selector "ServiceName" is not valid')
        assert found.errors[0].startswith("service web of ")


# --- what messages show ---


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_a_password_in_the_address_is_sent_and_not_shown(
    scheme: str, consul: ConsulServer, clock: MockClock
) -> None:
    config = watching(f"{scheme}me:{SECRET}@{consul.address}")
    consul.register("n", "web", port=1)
    consul.fail(500, path=WEB)
    async with following(config) as found:
        await found.failing("service web of http://me:xxxxx@127.0.0.1")
        consul.heal()
        await found.until({"web": ["127.0.0.1:1"]})
        consul.fail(500)
        consul.drop_connections()
        await found.reached(lambda: len(found.errors) == 2)
        assert SECRET not in repr(found.discoverer.statistics())
    assert {request.headers["authorization"] for request in consul.requests} == {basic("me", SECRET)}
    assert SECRET not in repr(config)


async def test_messages_do_a_terminal_no_harm(
    consul: ConsulServer, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    name = "a\nlevel=error \x1b[2J"
    consul.register("n", name, port=1)
    consul.fail(500, path="/v1/health/service")
    async with following(watching(consul.address)) as found:
        await reached(lambda: found.counters["failures"])
        [error] = found.errors
        assert error.isprintable()
        messages = [record.getMessage() for record in caplog.records if record.name.startswith("trio_sd")]
        assert messages
        assert all(message.isprintable() for message in messages)


async def test_a_name_that_is_no_text_ends_nothing(clock: MockClock) -> None:
    """Consul never sends half of a surrogate pair; whoever does takes no other service away."""
    bodies = {CATALOG: rb'{"web": [], "\ud800": []}', WEB: json.dumps(instances(1)).encode()}

    async def serve(request: Request) -> Sent:
        return (
            await hang(request)
            if "index=" in request.query
            else Response(200, INDEX_7, bodies.get(request.path, b"[]"))
        )

    async with open_http_server(serve) as server, following(watching(server.address)) as found:
        await found.until({"web": ["a:1"]})


INDEX_7: Final = (("X-Consul-Index", "7"),)


# --- what was known before ---


@pytest.mark.parametrize("datacenter", ["", "dc1"])
@pytest.mark.parametrize("services", [(), ("web", "db")])
async def test_while_consul_is_down_what_was_known_is_told_and_its_return_takes_nothing_away(
    services: tuple[str, ...], datacenter: str, consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    before = known(web="127.0.0.1:1", db="127.0.0.1:2", gone="127.0.0.1:3")
    consul.fail(500)
    config = watching(consul.address, datacenter=datacenter, services=services)
    async with following(config, before) as found:
        await found.next()
        kept = {"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]}
        assert {name: shown for name, shown in found.shown.items() if name != "gone"} == kept
        knows_services = bool(services) and bool(datacenter)
        assert ("gone" in found.shown) is not knows_services, "a service is only gone where something says so"
        await found.failures(2)
        consul.heal()
        await found.reached(lambda: not found.errors and found.shown == kept and consul.blocked)
        await found.reached(lambda: found.groups["web"].labels and found.groups["db"].labels)
        assert all(shown.items() >= kept.items() for shown in found.seen), "nothing flickers"


async def test_what_a_service_was_known_to_have_stands_in_while_only_that_can_not_be_read(
    consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    consul.fail(500, path="/v1/health/service/db")
    async with following(watching(consul.address), known(web="old:1", db="old:2", gone="old:3")) as found:
        await found.next()
        assert found.shown == {"web": ["127.0.0.1:1"], "db": ["old:2"]}
        consul.heal()
        await found.until({"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]})
        assert found.seen[0] == {"web": ["127.0.0.1:1"], "db": ["old:2"]}


async def test_services_are_kept_that_can_not_be_read_though_the_catalog_can_be_again(
    consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    consul.fail(500)
    async with following(watching(consul.address), known(web="old:1", db="old:2", gone="old:3")) as found:
        await found.until({"web": ["old:1"], "db": ["old:2"], "gone": ["old:3"]})
        consul.heal()
        consul.fail(500, path="/v1/health/service/db")
        await found.until({"web": ["127.0.0.1:1"], "db": ["old:2"]})
        consul.deregister("n", "db")
        await found.until({"web": ["127.0.0.1:1"]})
        assert all("db" in shown for shown in found.seen[:-1])


async def test_services_whose_names_look_alike_keep_what_was_known_of_each(
    consul: ConsulServer, clock: MockClock
) -> None:
    """``web:1`` is a service, and not the second group of the service ``web``."""
    consul.register("n", "web", port=1)
    consul.register("n", "web:1", port=2)
    consul.register("n", "web:1:1", port=3)
    consul.fail(500)
    before = known(web="127.0.0.1:1", **{"web:1": "127.0.0.1:2", "web:1:1": "127.0.0.1:3"})
    expected = shown_by(list(before.values()))
    async with following(watching(consul.address), before) as found:
        await found.until(expected)
        consul.heal()
        await found.reached(lambda: consul.blocked == 4)
        assert found.shown == expected
        assert all(shown == expected for shown in found.seen), "nothing flickers"


# --- the end ---


@pytest.mark.parametrize("hanging", ["", AGENT, CATALOG, WEB])
async def test_cancelled_at_any_step_it_leaves_nothing(hanging: str, consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    if hanging:
        consul.hang(hanging)
    config = watching(consul.address, datacenter="", pace="10ms")
    expected = {AGENT: 1, CATALOG: 2, WEB: 3}.get(hanging, 6)

    async def scenario() -> None:
        send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
        before = len(consul.requests)
        with send, receive:
            async with trio.open_nursery() as nursery:
                discoverer = config.discoverer(DiscovererOptions(Resources(nursery)))
                nursery.start_soon(discoverer.run, send)
                for count in range(1, expected + 1):
                    await consul.wait_requests(before + count)
                nursery.cancel_scope.cancel()

    def check(completed: bool) -> None:
        assert consul.open == 0
        assert consul.blocked == 0

    with trio.fail_after(PATIENCE):
        assert await cancel_everywhere(scenario, check) >= 2


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0])
async def test_cancelled_at_any_time_it_leaves_no_connection(
    seconds: float, consul: ConsulServer, clock: MockClock
) -> None:
    for number in range(5):
        consul.register("n", f"s{number}", port=number)
    async with following(watching(consul.address, datacenter="", pace="200ms")):
        await trio.sleep(seconds)
    await reached(lambda: consul.open == 0)
    assert consul.blocked == 0


async def test_a_service_that_goes_leaves_no_query(consul: ConsulServer, clock: MockClock) -> None:
    for number in range(5):
        consul.register("n", f"s{number}", port=number)
    async with following(watching(consul.address)) as found:
        await found.reached(lambda: consul.blocked == 6)
        consul.deregister("n")
        await found.until({})
        await found.reached(lambda: consul.blocked == 1 and consul.open <= 6)
        assert "index" in asked(consul, CATALOG)[-1], "only the catalog is waited for"


# --- with a manager ---


def shown_of(manager: Manager, job: str = "job") -> Shown:
    return shown_by([group for group in manager.snapshot()[job] if group.targets])


async def test_a_manager_shows_what_there_is_and_what_changes(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    async with (
        open_manager({"job": [watching(consul.address)]}, throttle=Throttle(0, 0)) as manager,
        manager.subscribe() as updates,
    ):
        with trio.fail_after(PATIENCE):
            await manager.wait_synced()
            assert shown_of(manager) == {"web": ["127.0.0.1:1"]}
            consul.register("n", "db", port=2)
            async for update in updates:
                if "db" in shown_by(update.snapshot["job"]):
                    break
            consul.deregister("n", "web")
            async for update in updates:
                if update.changes["job"].removed:
                    assert update.changes["job"].removed == ("web",)
                    break
            [provider] = manager.statistics().providers
            assert (provider.name, provider.state, provider.restarts) == ("consul/0", "synced", 0)
    await reached(lambda: consul.open == 0)


async def test_a_reload_while_consul_is_down_takes_nothing_away(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    config = watching(consul.address, datacenter="")
    both = {"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]}
    with trio.fail_after(PATIENCE):
        async with open_manager({"job": [config]}) as manager:
            await manager.wait_synced()
            assert shown_of(manager) == both
            await consul.stop()
            for _ in range(3):
                await manager.apply_config({"job": [config]})
                assert shown_of(manager) == both
                await reached(lambda: manager.statistics().providers[0].state == "failing")
                assert shown_of(manager) == both
            # Something joins: what was known is told as the full set, and goes on to be shown after the warm-up.
            await manager.apply_config({"job": [config, watching(consul.address, namespace="other")]})
            clock.jump(16)
            await reached(lambda: shown_of(manager) == both)
            assert shown_of(manager) == both
            consul.deregister("n", "db")
            await manager.apply_config({"job": [config]})
            await consul.start()
            await reached(lambda: shown_of(manager) == {"web": ["127.0.0.1:1"]})
            await reached(lambda: manager.statistics().providers[0].state == "synced")
            assert manager.statistics().providers[0].restarts == 0


async def test_reloads_leave_nothing(consul: ConsulServer, clock: MockClock) -> None:
    for number in range(5):
        consul.register("n", f"s{number}", port=number)
    config = watching(consul.address)
    with trio.fail_after(PATIENCE):
        async with open_manager({"job": [config]}) as manager:
            for _ in range(4):
                await manager.wait_synced()
                assert len(shown_of(manager)) == 5
                await manager.apply_config({"job": [config]})
                assert len(shown_of(manager)) == 5, "a reload takes nothing away"
            await manager.wait_synced()
            await reached(lambda: consul.blocked == 6)
            assert consul.open == 6
            assert manager.statistics().resources == {"HTTP client": 1}
            await manager.apply_config({})
            assert manager.statistics().resources == {}
            await reached(lambda: consul.open == 0)


async def test_equal_ways_to_ask_share_a_client(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    configs = [
        watching(consul.address, services=("web",)),
        watching(consul.address, services=("web",), token=Secret(SECRET), tag_separator=";"),
        watching(consul.address, services=("web",), username="me", password=Secret(SECRET)),
        watching(consul.address, services=("web",), basic_auth=BasicAuth(username="me", password=Secret(SECRET))),
        watching(consul.address, services=("web",), authorization=Authorization(credentials=Secret(SECRET))),
    ]
    with trio.fail_after(PATIENCE):
        async with open_manager({f"job-{number}": [config] for number, config in enumerate(configs)}) as manager:
            await manager.wait_synced()
            statistics = manager.statistics()
            assert sorted(statistics.resources.values()) == [1, 2, 2]
            assert SECRET not in repr(statistics)


async def test_the_age_is_that_of_the_last_answers(clock: MockClock, consul: ConsulServer) -> None:
    consul.register("n", "web", port=1)
    with trio.fail_after(PATIENCE):
        async with open_manager({"job": [watching(consul.address)]}) as manager:
            await manager.wait_synced()
            await reached(lambda: consul.blocked == 2)
            revision = manager.snapshot().revision
            clock.jump(WAITS)
            await reached(lambda: (manager.statistics().providers[0].age or 999) < 60)
            assert manager.snapshot().revision == revision, "nobody is told of nothing"
            assert manager.statistics().providers[0].state == "synced"


async def test_refresh_asks_again(consul: ConsulServer, clock: MockClock) -> None:
    consul.register("n", "web", port=1)
    with trio.fail_after(PATIENCE):
        async with open_manager({"job": [watching(consul.address, pace="1h")]}) as manager:
            await manager.wait_synced()
            consul.register("n", "db", port=2)
            await manager.refresh()
            await reached(lambda: shown_of(manager) == {"web": ["127.0.0.1:1"], "db": ["127.0.0.1:2"]})


# --- what the configuration says ---


def load(tmp_path: Path, text: str) -> ConsulSDConfig:
    file = tmp_path / "prometheus.yml"
    file.write_text(f"scrape_configs: [{{job_name: j, consul_sd_configs: [{text}]}}]", encoding="utf-8")
    [config] = trio_sd.load_config(file).scrape["j"]
    assert isinstance(config, ConsulSDConfig)
    return config


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "{}")
    assert config == ConsulSDConfig()
    assert config.mechanism == "consul"
    assert (config.server, config.scheme, config.path_prefix) == ("localhost:8500", "http", "")
    assert (config.token, config.username, config.password) == (Secret(), "", Secret())
    assert (config.datacenter, config.namespace, config.partition) == ("", "", "")
    assert (config.tag_separator, config.allow_stale, config.refresh_interval) == (",", True, Duration.of("30s"))
    assert (config.services, config.tags, config.node_meta, config.filter, config.health_filter) == ((), (), {}, "", "")
    assert (config.follow_redirects, config.enable_http2) == (True, True)


NULLS: Final = (
    *("path_prefix", "token", "datacenter", "namespace", "partition", "username", "password", "services", "tags"),
    *("node_meta", "filter", "health_filter", "basic_auth", "authorization", "oauth2", "tls_config"),
)


@pytest.mark.parametrize("key", NULLS)
def test_null_is_nothing(key: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"{{{key}: }}") == ConsulSDConfig()


@pytest.mark.parametrize(
    ("key", "value"), [("tag_separator", ""), ("scheme", ""), ("allow_stale", False), ("follow_redirects", False)]
)
def test_null_is_the_empty_value_where_there_is_a_default_as_in_go(key: str, value: object, tmp_path: Path) -> None:
    assert getattr(load(tmp_path, f"{{{key}: }}"), key) == value


def test_what_is_said(tmp_path: Path) -> None:
    assert load(tmp_path, EVERYTHING) == ConsulSDConfig(
        server="https://consul:8501/a/",
        path_prefix="b",
        token=Secret(SECRET),
        datacenter="dc2",
        namespace="team",
        partition="east",
        tag_separator="|",
        scheme="https",
        username="me",
        password=Secret(SECRET),
        allow_stale=False,
        refresh_interval=Duration.of("1m30s"),
        services=("web", "010"),
        tags=("a", "yes"),
        node_meta=Labels({"rack": "1", "os": "x"}),
        filter="A == 1",
        health_filter="B == 2",
        tls_config=load(tmp_path, "{tls_config: {ca_file: ca, cert_file: /c, key_file: key}}").tls_config,
    )


EVERYTHING: Final = f"""{{
    server: 'https://consul:8501/a/', path_prefix: b, token: {SECRET}, datacenter: dc2, namespace: team,
    partition: east, tag_separator: '|', scheme: https, username: me, password: {SECRET}, allow_stale: no,
    refresh_interval: 1m30s, services: [web, 010], tags: [a, yes], node_meta: {{rack: 1, os: x}}, filter: A == 1,
    health_filter: B == 2, tls_config: {{ca_file: ca, cert_file: /c, key_file: key}} }}"""


def test_configurations_are_values_that_show_no_secret(tmp_path: Path) -> None:
    one, two = load(tmp_path, EVERYTHING), load(tmp_path, EVERYTHING)
    assert one == two
    assert len({one, two, load(tmp_path, EVERYTHING.replace("1m30s", "90s"))}) == 1
    for before, after in (
        *(("consul:8501/a/", "consul:8501/b"), ("path_prefix: b", "path_prefix: c"), ("dc2", "dc3")),
        *(("namespace: team", "namespace: t"), ("east", "west"), ("'|'", "';'"), ("username: me", "username: you")),
        *(
            (f"token: {SECRET}", "token: x"),
            (f"password: {SECRET}", "password: x"),
            ("allow_stale: no", "allow_stale: yes"),
        ),
        *(("1m30s", "1m"), ("[web, 010]", "[010, web]"), ("[a, yes]", "[a]"), ("rack: 1", "rack: 2")),
        *(("A == 1", "A == 2"), ("B == 2", "B == 1"), ("ca_file: ca", "ca_file: other")),
    ):
        assert before in EVERYTHING
        assert load(tmp_path, EVERYTHING.replace(before, after)) != one
    for shown in repr(one), str(one), repr(one.client_config()), repr(one.discoverer):
        assert SECRET not in shown


def test_files_are_taken_from_the_directory_of_the_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, EVERYTHING)
    assert config.tls_config.files == (str(tmp_path / "ca"), "/c", str(tmp_path / "key"))
    assert config.services == ("web", "010")
    other = load(tmp_path, "{authorization: {credentials_file: c}}")
    assert other.authorization
    assert other.authorization.credentials_file == str(tmp_path / "c")
    moved = ConsulSDConfig(basic_auth=BasicAuth(password_file="p")).with_directory("/etc")
    assert moved == ConsulSDConfig(basic_auth=BasicAuth(password_file="/etc/p"))


def test_a_user_and_a_password_are_basic_authentication(tmp_path: Path) -> None:
    for keys, expected in (
        ("{username: me, password: x}", BasicAuth(username="me", password=Secret("x"))),
        ("{username: me}", BasicAuth(username="me")),
        ("{password: x}", BasicAuth(password=Secret("x"))),
        ("{basic_auth: {username: me}}", BasicAuth(username="me")),
        ("{basic_auth: {username: me}, token: x}", BasicAuth(username="me")),
        ("{username: me, token: x}", BasicAuth(username="me")),
        ("{token: x}", None),
    ):
        assert load(tmp_path, keys).client_config().basic_auth == expected


TWO_WAYS: Final = "at most one of consul SD configuration username and password and basic auth can be configured"
TOKENS: Final = "at most one of consul SD token, authorization, or oauth2 can be configured"
OAUTH2: Final = "oauth2: {client_id: a, token_url: 'http://t'}"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("{server: ''}", "server", "consul SD configuration requires a server address"),
        ("{server: }", "server", "consul SD configuration requires a server address"),
        ("{server: ' \\t'}".replace("'", '"'), "server", "consul SD configuration requires a server address"),
        ("{server: x, username: u, basic_auth: {username: u}}", "username", TWO_WAYS),
        (f"{{password: {SECRET}, basic_auth: {{}}}}", "", TWO_WAYS),
        ("{token: x, authorization: {credentials: y}}", "token", TOKENS),
        ("{token: x, authorization: {}}", "token", TOKENS),
        (f"{{token: x, {OAUTH2}}}", "token", TOKENS),
        ("{username: u, authorization: {}}", "", "at most one of basic_auth, oauth2 & authorization"),
        (f"{{username: u, {OAUTH2}}}", "", "at most one of basic_auth, oauth2 & authorization"),
        ("{username: u, bearer_token: x}", "bearer_token", "at most one of basic_auth, oauth2, bearer_token"),
        ("{basic_auth: {password: a, password_file: b}}", "basic_auth", "at most one of basic_auth password"),
        ("{oauth2: {client_id: a}}", "oauth2", "token_url must be configured"),
        ("{http_headers: {Authorization: {values: [a]}}}", "http_headers", "is not allowed"),
        ("{no_proxy: a}", "no_proxy", "proxy_url must also be configured"),
        ("{proxy_url: 'http://p:x'}", "proxy_url", "invalid port"),
        ("{tls_config: {cert: a}}", "tls_config", "exactly one of key or key_file"),
        ("{refresh_interval: 0s}", "refresh_interval", "must be greater than zero"),
        ("{refresh_interval: 5}", "refresh_interval", "duration"),
        ("{refresh_interval: -1s}", "refresh_interval", "duration"),
        ("{scheme: ftp}", "scheme", "found ftp, expected http or https"),
        ("{server: 'ftp://c'}", "server", "found ftp, expected http or https"),
        ("{server: 'unix:///run/consul'}", "server", "found unix, expected http or https"),
        ("{server: 'c:port'}", "server", "invalid port"),
        ("{server: 'a b'}", "server", "no address of a server"),
        ("{server: '[::1:8500'}", "server", "no address of a server"),
        ("{server: 'http://'}", "server", ""),
        ("{server: 'http:///consul'}", "server", ""),
        ("{server: '::1'}", "server", ""),
        (f"{{server: 'http://me:{SECRET}@consul:port'}}", "server", "invalid port"),
        (f"{{server: 'me:{SECRET}@consul:port'}}", "server", "invalid port"),
        (f"{{server: 'http://me:{SECRET}/x@consul:8500'}}", "server", "invalid port"),  # the slash is to be escaped
        ("{server: 'consul:8500?dc=dc1'}", "server", ""),
        ("{server: 'consul:8500#dc1'}", "server", ""),
        ("{services: web}", "services", "found"),
        ("{services: {a: b}}", "services", "found"),
        ("{services: [[web]]}", "services[0]", "found"),
        ("{tags: a}", "tags", "found"),
        ("{node_meta: [a]}", "node_meta", "found"),
        ("{node_meta: {a: [b]}}", "node_meta.a", "found"),
        ("{allow_stale: 1}", "allow_stale", "found"),
        ("{service: [web]}", "service", "did you mean services?"),
        ("[]", "", "found"),
    ],
)
def test_what_can_not_be_used_is_refused_at_its_place(tmp_path: Path, text: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    error = str(caught.value)
    assert message in error
    assert re.search(r"prometheus\.yml:1:\d+: scrape_configs\[0\]\.consul_sd_configs\[0\]", error)
    assert path in caught.value.path
    assert SECRET not in error


@pytest.mark.parametrize("more", ["bearer_token: x", "bearer_token_file: x", "basic_auth: {}", "username: u"])
def test_what_may_stand_beside_a_token(more: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"{{token: {SECRET}, {more}}}").token == Secret(SECRET)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("{}", "http://localhost:8500"),
        ("{server: 'c:1'}", "http://c:1"),
        ("{server: ' c:1 '}", "http://c:1"),
        ("{server: c}", "http://c"),
        ("{server: '[::1]:8500'}", "http://[::1]:8500"),
        ("{server: 'c:1', scheme: https}", "https://c:1"),
        ("{server: 'c:1', scheme: ''}", "http://c:1"),
        ("{server: 'http://c:1'}", "http://c:1"),
        ("{server: 'https://c:1'}", "https://c:1"),
        ("{server: 'https://c:1', scheme: http}", "https://c:1"),
        ("{server: 'http://c:1', scheme: https}", "https://c:1"),
        ("{server: 'http://[::1]:1/p'}", "http://[::1]:1/p"),
        ("{server: 'c:1', path_prefix: /p}", "http://c:1/p"),
        ("{server: 'c:1', path_prefix: p/q/}", "http://c:1/p/q"),
        ("{server: 'c:1', path_prefix: /}", "http://c:1"),
        ("{server: 'http://c:1', path_prefix: /p}", "http://c:1/p"),
        ("{server: 'http://c:1/', path_prefix: /p}", "http://c:1"),
        ("{server: 'http://c:1/q', path_prefix: /p}", "http://c:1/q"),
        ("{server: 'http://c:1/proxy/http://d:2'}", "http://c:1/proxy/http://d:2"),
    ],
)
async def test_the_server_is_what_consuls_own_client_makes_of_it(
    keys: str, expected: str, tmp_path: Path, clock: MockClock
) -> None:
    """https://pkg.go.dev/github.com/hashicorp/consul/api#NewClient"""
    assert load(tmp_path, keys)._base() == expected


async def test_a_service_that_hangs_at_first_holds_up_the_first_full_set_for_seconds_only(
    consul: ConsulServer, clock: MockClock
) -> None:
    consul.register("n", "web", port=1)
    consul.register("n", "db", port=2)
    consul.hang(path=WEB)
    began = trio.current_time()
    async with following(watching(consul.address)) as found:
        await found.until({"db": ["127.0.0.1:2"]})
        assert trio.current_time() - began < 30
