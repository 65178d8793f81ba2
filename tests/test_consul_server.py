"""The stand-in for Consul keeps what Consul's documentation and its source promise."""

from __future__ import annotations

import gzip
import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpcore2
import pytest
import trio
import trio.testing
import trustme

from .consul import (
    CATALOG_FIELDS,
    HEALTH_FIELDS,
    SERF,
    ConsulServer,
    FilterError,
    Tenancy,
    Token,
    open_consul,
    parse_filter,
    parse_wait,
)

PATIENCE = 10.0
SERVICES = "/v1/catalog/services"
WEB = "/v1/health/service/web"

Query = Iterable[tuple[str, object]]


BLOCKING = f"GET {SERVICES}?index=99 HTTP/1.1\r\nHost: consul\r\n\r\n".encode()


async def end(stream: trio.abc.ReceiveStream) -> bytes:
    """Return what comes until the connection ends."""
    return b"".join([bytes(part) async for part in stream])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # whatever the body says
        return json.loads(self.body)

    @property
    def index(self) -> int:
        return int(self.headers["x-consul-index"])

    @property
    def ids(self) -> list[str]:
        return [entry["Service"]["ID"] for entry in self.json]


class Client:
    """Asks a server, over as many connections as there are questions at a time."""

    def __init__(self, consul: ConsulServer, pool: httpcore2.AsyncConnectionPool) -> None:
        self.consul = consul
        self._pool = pool

    async def get(
        self, path: str, query: Query = (), headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> Answer:
        url = f"{self.consul.url}{path}?{urlencode(list(query))}"
        response = await self._pool.request(method, url, headers=list((headers or {}).items()))
        found = {name.decode().lower(): value.decode() for name, value in response.headers}
        return Answer(response.status, found, response.content)

    @asynccontextmanager
    async def waiting(self, path: str, query: Query) -> AsyncIterator[Callable[[], Answer]]:
        """Ask in the background; the block begins when the query waits, and ends when it is answered."""
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await self.get(path, query))

        before = self.consul.blocked
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await self.consul.wait_until_blocked(before + 1)
            yield lambda: answers[0]


@asynccontextmanager
async def asking(consul: ConsulServer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    async with httpcore2.AsyncConnectionPool(ssl_context=tls) as pool:
        with trio.fail_after(PATIENCE):
            yield Client(consul, pool)


@pytest.fixture
async def consul() -> AsyncIterator[ConsulServer]:
    async with open_consul() as server:
        yield server


@pytest.fixture
async def client(consul: ConsulServer) -> AsyncIterator[Client]:
    async with asking(consul) as asker:
        yield asker


# --- what is there ---


async def test_the_agent_tells_its_datacenter(client: Client) -> None:
    answer = await client.get("/v1/agent/self")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["Config"]["Datacenter"] == "dc1"
    assert "x-consul-index" not in answer.headers


async def test_services_have_the_tags_of_all_their_instances(client: Client) -> None:
    assert (await client.get(SERVICES)).json == {}
    client.consul.register("node-1", "web", tags=["b", "a"])
    client.consul.register("node-2", "web", tags=["c", "a"])
    client.consul.register("node-2", "db")
    assert (await client.get(SERVICES)).json == {"web": ["a", "b", "c"], "db": []}


@pytest.mark.parametrize("enterprise", [True, False])
async def test_the_fields_of_an_instance(enterprise: bool) -> None:
    async with open_consul(enterprise=enterprise) as consul, asking(consul) as client:
        consul.register(
            "node-1",
            "web",
            id="web-1",
            address="10.0.0.5",
            port=80,
            tags=["a"],
            meta={"version": "1"},
            node_address="10.0.0.1",
            node_meta={"rack": "r1"},
            tagged_addresses={"wan": "1.2.3.4"},
            checks={"http": "warning"},
        )
        [entry] = (await client.get(WEB)).json
    place = {"Partition": "default", "Namespace": "default"} if enterprise else {}
    node, service, [serf, http] = entry["Node"], entry["Service"], entry["Checks"]
    assert len(node.pop("ID")) == 36
    assert node == {
        "Node": "node-1",
        "Address": "10.0.0.1",
        "Datacenter": "dc1",
        "TaggedAddresses": {"wan": "1.2.3.4"},
        "Meta": {"rack": "r1"},
        "CreateIndex": 11,
        "ModifyIndex": 11,
        **({"Partition": "default"} if enterprise else {}),
    }
    assert service == {
        "ID": "web-1",
        "Service": "web",
        "Tags": ["a"],
        "Address": "10.0.0.5",
        "Meta": {"version": "1"},
        "Port": 80,
        "Weights": {"Passing": 1, "Warning": 1},
        "EnableTagOverride": False,
        "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}},
        "Connect": {},
        "PeerName": "",
        "CreateIndex": 11,
        "ModifyIndex": 11,
        **place,
    }
    assert (serf["CheckID"], serf["Status"], serf["ServiceID"], serf["ServiceName"]) == (SERF, "passing", "", "")
    assert http == {
        "Node": "node-1",
        "CheckID": "http",
        "Name": "http",
        "Status": "warning",
        "Notes": "",
        "Output": "",
        "ServiceID": "web-1",
        "ServiceName": "web",
        "ServiceTags": ["a"],
        "Type": "",
        "Definition": {},
        "CreateIndex": 11,
        "ModifyIndex": 11,
        **place,
    }


async def test_maps_that_nobody_gave_are_null(client: Client) -> None:
    client.consul.register("node-1", "web")
    client.consul.register("node-2", "web", meta={}, node_meta={}, tagged_addresses={})
    one, two = (await client.get(WEB)).json
    for entry, empty in ((one, None), (two, {})):
        assert (entry["Node"]["TaggedAddresses"], entry["Node"]["Meta"], entry["Service"]["Meta"]) == (empty,) * 3


async def test_an_instance_shows_its_own_checks_and_those_of_its_node(client: Client) -> None:
    client.consul.register("node-1", "web", id="a", checks={"x": "passing"})
    client.consul.register("node-1", "web", id="b", checks={"y": "critical"})
    client.consul.set_check("node-1", "disk", "warning")
    entries = (await client.get(WEB)).json
    assert [[check["CheckID"] for check in entry["Checks"]] for entry in entries] == [
        ["disk", SERF, "x"],
        ["disk", SERF, "y"],
    ]
    client.consul.deregister("node-1", "a")
    client.consul.register("node-1", "web", id="a")
    assert [check["CheckID"] for check in (await client.get(WEB)).json[0]["Checks"]] == ["disk", SERF]


async def test_orders_about_what_is_not_there(consul: ConsulServer) -> None:
    with pytest.raises(KeyError):
        consul.deregister("node-1")
    consul.register("node-1", "web")
    with pytest.raises(KeyError):
        consul.set_check("node-1", "http", "passing", id="db")
    with pytest.raises(KeyError):
        consul.register("node-1", "web", datacenter="dc2")
    async with open_consul(enterprise=False) as free:
        with pytest.raises(ValueError, match="Consul Enterprise"):
            free.register("node-1", "web", tenancy=Tenancy("default", "team"))


# --- queries that wait ---


async def test_an_index_is_never_0(client: Client) -> None:
    assert (await client.get(SERVICES)).index == (await client.get(WEB)).index == 1


@pytest.mark.parametrize("path", [SERVICES, WEB])
async def test_a_query_waits_only_for_what_comes_after_the_index_it_has(client: Client, path: str) -> None:
    client.consul.register("node-1", "web")
    index = (await client.get(path)).index
    for query in ([], [("index", 0)], [("index", "")], [("index", index - 1)], [("wait", "10m")]):
        assert (await client.get(path, query)).index == index
    for known in (index, index + 1):
        async with client.waiting(path, [("index", known)]) as answer:
            assert client.consul.blocked == 1
            while client.consul.blocked:
                client.consul.touch()
        assert answer().index == client.consul.index() == known + 1
        index = answer().index


@pytest.mark.parametrize(
    ("order", "services", "web"),
    [
        (lambda consul: consul.register("node-3", "other"), True, False),
        (lambda consul: consul.register("node-3", "web"), True, True),
        (lambda consul: consul.register("node-1", "web", tags=["a"]), False, False),  # as it is
        (lambda consul: consul.register("node-1", "web", tags=["b"]), True, True),
        (lambda consul: consul.register("node-1", "db", node_meta={"rack": "r1"}), True, True),
        (lambda consul: consul.set_check("node-1", "http", "critical", id="web"), False, True),
        (lambda consul: consul.set_check("node-1", SERF, "critical"), False, True),
        (lambda consul: consul.set_check("node-2", SERF, "critical"), False, False),
        (lambda consul: consul.set_check("node-2", "http", "critical", id="other"), False, False),
        (lambda consul: consul.deregister("node-1", "web"), True, True),
        (lambda consul: consul.deregister("node-1"), True, True),
        (lambda consul: consul.deregister("node-2", "other"), True, False),
        (lambda consul: consul.register("node-1", "renamed", id="web"), True, True),
        (lambda consul: consul.touch(), True, True),
    ],
)
async def test_what_a_write_moves(
    client: Client, order: Callable[[ConsulServer], None], services: bool, web: bool
) -> None:
    consul = client.consul
    consul.register("node-1", "web", tags=["a"])
    consul.register("node-2", "other")
    consul.register("node-4", "web", id="more")
    before = [(await client.get(path)).index for path in (SERVICES, WEB)]
    last = consul.index()
    async with (
        client.waiting(SERVICES, [("index", before[0])]),
        client.waiting(WEB, [("index", before[1])]),
    ):
        order(consul)
        assert consul.index() == last + 1  # it is an entry of Raft in any case
        after = [(await client.get(path)).index for path in (SERVICES, WEB)]
        assert [new > old for new, old in zip(after, before, strict=True)] == [services, web]
        assert consul.blocked == [services, web].count(False)
        consul.touch()


async def test_an_answer_is_what_there_is_when_it_is_given(client: Client) -> None:
    client.consul.register("node-1", "web")
    index = (await client.get(WEB)).index
    async with client.waiting(WEB, [("index", index)]) as answer:
        client.consul.register("node-2", "web", id="two")
        client.consul.register("node-3", "web", id="three")
    assert answer().ids == ["web", "two", "three"]
    assert answer().index == client.consul.index()


async def test_a_service_that_is_not_there(client: Client) -> None:
    """Before any has gone it has the newest index there is; then that of the last that went."""
    consul = client.consul
    consul.register("node-1", "other")
    assert (await client.get(WEB)).index == consul.index()
    async with client.waiting(WEB, [("index", consul.index())]) as answer:
        consul.register("node-2", "third")
    assert (answer().json, answer().index) == ([], consul.index())
    async with client.waiting(WEB, [("index", consul.index())]):
        consul.set_check("node-2", "disk", "critical")
    consul.deregister("node-1", "other")
    gone = consul.index()
    consul.register("node-1", "fourth")
    assert (await client.get(WEB)).index == gone
    async with client.waiting(WEB, [("index", gone)]) as answer:
        consul.register("node-1", "fifth")
        assert consul.blocked == 1
        consul.register("node-1", "web")
    assert (answer().ids, answer().index) == (["web"], consul.index())
    async with client.waiting(WEB, [("index", consul.index())]) as answer:
        consul.deregister("node-1", "web")
    assert (answer().json, answer().index) == ([], consul.index())


class Late(random.Random):
    """Adds all of the jitter that there can be."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_when_its_time_is_over_a_query_is_answered_with_what_it_knows(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with open_consul(rng=Late()) as consul, httpcore2.AsyncConnectionPool() as pool:
        client = Client(consul, pool)
        consul.register("node-1", "web")
        known = await client.get(WEB)
        async with client.waiting(WEB, [("index", known.index), ("wait", "160s")]) as answer:
            mock_clock.jump(169.9)
            await trio.testing.wait_all_tasks_blocked(0)
            assert consul.blocked == 1
            mock_clock.jump(0.2)
        assert (answer().status, answer().index, answer().body) == (200, known.index, known.body)
        async with client.waiting(WEB, [("index", known.index + 5), ("wait", "1s")]) as answer:
            mock_clock.jump(1.1)
        assert answer().index == known.index  # who sees a lower index than its own starts anew
        assert consul.blocked == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("", 300.0), ("0", 300.0), ("0s", 300.0), ("-5s", 300.0), ("10s", 10.0), ("2m", 120.0)),
        *(("120000ms", 120.0), ("1m30s", 90.0), ("1.5s", 1.5), (".5s", 0.5), ("+1s", 1.0), ("10m", 600.0)),
        *(("1h", 600.0), ("5us", 5e-6), ("7ns", 7e-9)),
    ],
)
def test_waiting_times(text: str, seconds: float) -> None:
    assert parse_wait(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["10", "s", "+", "1x", "1 s", "1s ", "1,5s", "ten", "1d"])
def test_what_is_no_waiting_time(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_wait(text)


async def test_a_touch_wakes_without_news(client: Client) -> None:
    client.consul.register("node-1", "web")
    for path in (SERVICES, WEB):
        known = await client.get(path)
        async with client.waiting(path, [("index", known.index)]) as answer:
            client.consul.touch()
        assert (answer().body, answer().index) == (known.body, client.consul.index())


async def test_a_filter_does_not_keep_a_query_from_waking(client: Client) -> None:
    client.consul.register("node-1", "web", tags=["a"])
    index = (await client.get(WEB)).index
    async with client.waiting(WEB, [("index", index), ("tag", "a")]) as answer:
        client.consul.register("node-2", "web", id="other")
    assert (answer().ids, answer().index) == (["web"], client.consul.index())


async def test_a_snapshot_releases_with_the_old_and_goes_on_from_the_old(client: Client) -> None:
    consul = client.consul
    consul.register("node-1", "web", id="old")
    snapshot = consul.snapshot()
    consul.register("node-1", "web", id="new")
    known = await client.get(WEB)
    async with client.waiting(WEB, [("index", known.index)]) as answer:
        consul.restore_snapshot(snapshot)
    assert (answer().body, answer().index) == (known.body, known.index)
    fresh = await client.get(WEB)
    assert (fresh.ids, fresh.index) == (["old"], known.index - 1)
    async with client.waiting(WEB, [("index", known.index)]) as answer:
        consul.register("node-2", "web", id="after")
    assert (answer().ids, answer().index) == (["old", "after"], known.index + 1)


async def test_an_index_that_goes_backwards(client: Client) -> None:
    consul = client.consul
    consul.set_index(2**63)
    consul.register("node-1", "web")
    known = await client.get(WEB)
    assert known.index == 2**63 + 1
    async with client.waiting(WEB, [("index", known.index)]) as answer:
        consul.set_index(5)
    assert (answer().index, answer().ids) == (known.index, ["web"])
    fresh = await client.get(WEB)
    assert (fresh.index, fresh.ids) == (5, ["web"])
    async with client.waiting(WEB, [("index", known.index)]):
        consul.register("node-2", "web")
        assert (consul.index(), consul.blocked) == (6, 1)
        consul.set_index(5)


async def test_indexes_that_are_no_use(client: Client) -> None:
    client.consul.register("node-1", "web")
    client.consul.index_zero = True
    assert (await client.get(WEB)).headers["x-consul-index"] == "0"
    client.consul.omit_index_header = True
    assert "x-consul-index" not in (await client.get(WEB)).headers


async def test_a_client_that_goes_away_no_longer_waits(consul: ConsulServer) -> None:
    with trio.fail_after(PATIENCE):
        async with (
            await trio.open_tcp_stream("127.0.0.1", consul.port) as one,
            await trio.open_tcp_stream("127.0.0.1", consul.port) as two,
        ):
            for stream in (one, two):
                await stream.send_all(BLOCKING)
            await consul.wait_until_blocked(2)
            await one.aclose()
            await consul.wait_until_blocked(1)
        await consul.wait_until_blocked(0)


# --- what is asked for ---


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ([], ["a", "b", "c"]),
        ([("tag", "blue")], ["a", "b"]),
        ([("tag", "BLUE"), ("tag", "big")], ["a"]),
        ([("node-meta", "rack:r1")], ["a", "b"]),
        ([("node-meta", "rack:r1"), ("node-meta", "os:linux:x")], ["a"]),
        ([("passing", "")], ["a", "c"]),
        ([("passing", "1")], ["a", "c"]),
        ([("passing", "false")], ["a", "b", "c"]),
        ([("filter", "Service.Meta.v == 2 or Node.Meta.rack != r1")], ["b", "c"]),
        ([("filter", '"blue" in Service.Tags'), ("passing", "true"), ("tag", "big")], ["a"]),
    ],
)
async def test_choosing_instances(client: Client, query: Query, ids: list[str]) -> None:
    client.consul.register("node-1", "web", id="a", tags=["blue", "big"], node_meta={"rack": "r1", "os": "linux:x"})
    client.consul.register(
        "node-2", "web", id="b", tags=["Blue"], meta={"v": "2"}, node_meta={"rack": "r1"}, checks={"x": "warning"}
    )
    client.consul.register("node-3", "web", id="c")
    assert (await client.get(WEB, query)).ids == ids


@pytest.mark.parametrize(
    ("query", "services"),
    [
        ([("node-meta", "rack:r1")], {"web": ["a"]}),
        ([("filter", 'ServiceName == "db"')], {"db": []}),
        ([("filter", "b in ServiceTags")], {"web": ["b"]}),
        ([("filter", "NodeMeta.rack == r1 and ServicePort != 1")], {"web": ["a"]}),
    ],
)
async def test_choosing_services(client: Client, query: Query, services: Mapping[str, list[str]]) -> None:
    client.consul.register("node-1", "web", tags=["a"], node_meta={"rack": "r1"}, port=80)
    client.consul.register("node-2", "web", tags=["b"])
    client.consul.register("node-2", "db")
    assert (await client.get(SERVICES, query)).json == services


async def test_nodes_move_the_index_of_services_that_are_chosen_by_them(client: Client) -> None:
    client.consul.register("node-1", "web")
    client.consul.set_check("node-1", "disk", "passing")
    before = (await client.get(SERVICES)).index
    client.consul.register("node-1", "web", node_meta={"rack": "r1"})
    assert (await client.get(SERVICES)).index == before
    chosen = await client.get(SERVICES, [("node-meta", "rack:r1")])
    assert (chosen.json, chosen.index) == ({"web": []}, client.consul.index())


INSTANCE = {
    "Node": {"Node": "n-1", "Address": "10.0.0.1", "Meta": {"rack": "r1", "x-y": "1"}, "TaggedAddresses": None},
    "Service": {
        "Service": "web",
        "Address": "",
        "Tags": ["blue", "v1"],
        "Meta": {"version": "1.2"},
        "Port": 80,
        "EnableTagOverride": False,
        "Weights": {"Passing": 10, "Warning": 1},
    },
    "Checks": [{"Status": "passing", "ServiceTags": []}, {"Status": "critical", "ServiceTags": ["blue"]}],
}


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("Service.Service == web", True),
        ('Service.Service=="web"', True),
        ("Service.Service == `web`", True),
        ("Service.Service != web", False),
        ("we in Service.Service", True),  # a part of a string
        ('Service.Tags contains "blue"', True),
        ("Service.Tags not contains blue", False),
        ('"v2" not in Service.Tags', True),
        ("blu in Service.Tags", False),
        ("Service.Tags is empty", False),
        ("Service.Tags is not empty", True),
        ("rack in Node.Meta", True),
        ("r1 in Node.Meta", False),
        ("Node.Meta.rack == r1", True),
        ('Node.Meta["x-y"] == 1', True),
        ('Node.Meta["none"] == r1', False),
        ("Node.Meta.none != r1", True),
        ("r1 in Node.Meta.none", False),
        ("Node.Meta.none not contains r1", True),
        ("Node.Meta.none matches x", True),
        ("Node.Meta.none not matches x", True),
        ("Node.TaggedAddresses is empty", True),
        ("Node.TaggedAddresses.lan == x", False),
        ('Service.Meta.version matches "^1[.]"', True),
        ('Service.Meta.version matches "2"', True),  # anywhere
        ('Service.Meta.version not matches "[3-9]"', True),
        ("Service.Port == 80", True),
        ("Service.Port == `0x50`", True),
        ("Service.Weights.Passing != 10", False),
        ("Service.EnableTagOverride == false", True),
        ("Checks.Status == critical", True),  # one of them
        ("Checks.Status != critical", True),  # one of them, too
        ("not Checks.Status == critical", False),
        ("blue in Checks.ServiceTags", True),
        ("not not Service.Port == 80", True),
        ("Service.Port == 1 and Service.Port == 1 or Service.Port == 80", True),
        ("Service.Port == 80 or Service.Port == 80 and Service.Port == 1", True),
        ("(Service.Port == 80 or Service.Port == 80) and Service.Port == 1", False),
        ("not (Service.Port == 80 and (Service.Port == 1))", True),
        ("  Service.Port == 80  ", True),
    ],
)
def test_filters(expression: str, passes: bool) -> None:
    assert parse_filter(expression, HEALTH_FIELDS)(INSTANCE) == passes


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("foo", "1:4 (3): no match found"),
        ("Service.Port ==", "1:16 (15): no match found"),
        ("Service.Port = 80", "1:13 (12): no match found"),
        ("Node.Address == 10.0.0.1", "1:16 (15): no match found"),
        ('Service.Service == "web', "1:19 (18): no match found"),
        ("(Service.Port == 80", "1:20 (19): no match found"),
        ("Service.Port == 80)", "1:19 (18): no match found"),
        ("Service.Port == 80 Service.Port == 80", "1:20 (19): no match found"),
        ("Service.Tags is blue", "1:17 (16): no match found"),
        ('"80" == Service.Port', "1:1 (0): no match found"),
        ("Service.Tags in blue", 'Selector "blue" is not valid'),
        ("Service.Bar == 1", 'Selector "Service.Bar" is not valid'),
        ("Service.Service.x == 1", 'Selector "Service.Service.x" is not valid'),
        ("ServiceName == web", 'Selector "ServiceName" is not valid'),
        ("Service.Tags == blue", 'Invalid match operator "==" for selector "Service.Tags"'),
        ("Service.Service is empty", 'Invalid match operator "empty" for selector "Service.Service"'),
        ("Service == web", 'Invalid match operator "==" for selector "Service"'),
        ("Service.Port == http", 'Failed to coerce value "http" for selector "Service.Port"'),
        ('Service.Service matches "["', 'Failed to coerce value "[" for selector "Service.Service"'),
    ],
)
def test_filters_that_are_refused(expression: str, error: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(expression, HEALTH_FIELDS)
    assert str(caught.value).startswith(error)


def test_services_and_instances_have_other_fields() -> None:
    parse_filter("ServiceName == web and NodeMeta.rack == r1", CATALOG_FIELDS)
    with pytest.raises(FilterError):
        parse_filter("Service.Service == web", CATALOG_FIELDS)


NO_EVALUATOR = "Failed to create boolean expression evaluator: "


@pytest.mark.parametrize(
    ("path", "query", "status", "text"),
    [
        (WEB, [("filter", "foo")], 500, NO_EVALUATOR + "1:4 (3): no match found"),
        (SERVICES, [("filter", "Service.Tags is empty")], 500, NO_EVALUATOR + 'Selector "Service" is not valid'),
        (WEB, [("wait", "10")], 400, "Invalid wait time"),
        (WEB, [("index", "-1")], 400, "Invalid index"),
        (WEB, [("index", 2**64)], 400, "Invalid index"),
        (
            WEB,
            [("stale", ""), ("consistent", "")],
            400,
            "Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
        (WEB, [("passing", "maybe")], 400, "Invalid value for ?passing"),
        ("/v1/health/service/", [], 400, "Missing service name"),
        (WEB, [("dc", "elsewhere")], 500, "No path to datacenter"),
        (SERVICES, [("dc", "elsewhere")], 500, "No path to datacenter"),
        ("/v1/health", [], 404, "Invalid URL path: not a recognized HTTP API endpoint\n"),
        ("/", [], 404, "Invalid URL path: not a recognized HTTP API endpoint\n"),
    ],
)
async def test_requests_that_are_refused(client: Client, path: str, query: Query, status: int, text: str) -> None:
    answer = await client.get(path, query)
    assert (answer.status, answer.body.decode()) == (status, text)
    assert answer.headers["content-type"].startswith("text/plain")


async def test_only_reads(client: Client) -> None:
    answer = await client.get(SERVICES, method="PUT")
    assert (answer.status, answer.headers["allow"], answer.body) == (405, "OPTIONS,GET", b"method PUT not allowed")


async def test_places_know_nothing_of_each_other() -> None:
    async with open_consul(datacenters=("dc1", "dc2")) as consul, asking(consul) as client:
        places: list[tuple[str, Tenancy, list[tuple[str, str]]]] = [
            ("dc1", Tenancy(), [("dc", "dc1"), ("ns", "default"), ("partition", "default")]),
            ("dc2", Tenancy(), [("dc", "dc2")]),
            ("dc1", Tenancy("other"), [("partition", "other")]),
            ("dc1", Tenancy(namespace="team"), [("ns", "team")]),
        ]
        for number, (datacenter, tenancy, _) in enumerate(places):
            consul.register("node-1", "web", id=f"web-{number}", datacenter=datacenter, tenancy=tenancy)
        for number, (datacenter, tenancy, query) in enumerate(places):
            answer = await client.get(WEB, query)
            assert answer.ids == [f"web-{number}"]
            [entry] = answer.json
            service = entry["Service"]
            assert (entry["Node"]["Datacenter"], entry["Node"]["Partition"]) == (datacenter, tenancy.partition)
            assert (service["Partition"], service["Namespace"]) == (tenancy.partition, tenancy.namespace)
            async with client.waiting(SERVICES, [*query, ("index", (await client.get(SERVICES, query)).index)]):
                for other_datacenter, other, _ in places:
                    if (other_datacenter, other) != (datacenter, tenancy):
                        consul.register("node-2", f"db-{number}", datacenter=other_datacenter, tenancy=other)
                assert consul.blocked == 1
                consul.deregister("node-1", f"web-{number}", datacenter=datacenter, tenancy=tenancy)
        assert (await client.get(WEB, [("ns", "nobody")])).json == []


async def test_the_free_edition_has_no_namespaces() -> None:
    async with open_consul(enterprise=False) as consul, asking(consul) as client:
        for name, feature in (("ns", "Namespaces"), ("partition", "Partitions")):
            answer = await client.get(WEB, [(name, "default")])
            text = f'Invalid query parameter: "{name}" - {feature} are a Consul Enterprise feature'
            assert (answer.status, answer.body.decode()) == (400, text)


# --- who asks ---


@pytest.mark.parametrize(
    ("headers", "agent", "services", "ids", "filtered"),
    [
        ({"X-Consul-Token": "all"}, 200, ["db", "web"], ["web"], False),
        ({"Authorization": "Bearer all"}, 200, ["db", "web"], ["web"], False),
        ({"X-Consul-Token": "db"}, 403, ["db"], [], True),
        ({}, 403, [], [], False),  # who shows no token is not told that there is more
        ({"Authorization": "Basic all"}, 403, [], [], False),
    ],
)
async def test_tokens(
    headers: Mapping[str, str], agent: int, services: list[str], ids: list[str], filtered: bool
) -> None:
    tokens = {"all": Token(), "db": Token(frozenset({"db"}), agent=False)}
    async with open_consul(tokens=tokens) as consul, asking(consul) as client:
        consul.register("node-1", "web")
        consul.register("node-1", "db")
        told = await client.get("/v1/agent/self", headers=headers)
        assert told.status == agent
        assert agent == 200 or told.body.startswith(b"Permission denied")
        found = await client.get(SERVICES, headers=headers)
        assert sorted(found.json) == services
        instances = await client.get(WEB, headers=headers)
        assert instances.ids == ids
        for answer in (found, instances):
            assert answer.headers.get("x-consul-results-filtered-by-acls") == ("true" if filtered else None)
            assert answer.headers["x-consul-default-acl-policy"] == "deny"
        # What a filter keeps away is not kept away by ACLs.
        other = await client.get(SERVICES, [("filter", "ServiceName == db")], headers)
        assert ("x-consul-results-filtered-by-acls" in other.headers) is False


@pytest.mark.parametrize("path", ["/v1/agent/self", SERVICES, WEB])
async def test_a_token_that_nobody_knows(path: str) -> None:
    async with open_consul(tokens={}) as consul, asking(consul) as client:
        answer = await client.get(path, headers={"X-Consul-Token": "unknown"})
        assert (answer.status, answer.body) == (403, b"ACL not found")


# --- the cluster ---


@pytest.mark.parametrize("path", [SERVICES, WEB])
async def test_without_a_leader_only_what_is_stale_is_answered(client: Client, path: str) -> None:
    async def facts(*query: str) -> tuple[int, str, str]:
        answer = await client.get(path, [(name, "") for name in query])
        known = answer.headers.get("x-consul-knownleader", "")
        return answer.status, known, answer.headers.get("x-consul-effective-consistency", "")

    assert await facts() == (200, "true", "leader")
    assert await facts("stale") == (200, "true", "stale")
    assert await facts("consistent") == (200, "true", "consistent")
    assert (await client.get(path)).headers["x-consul-lastcontact"] == "0"
    client.consul.lose_leader()
    assert await facts("stale") == (200, "false", "stale")
    assert await facts() == await facts("consistent") == (500, "", "")
    assert (await client.get(path)).body == b"No cluster leader"
    assert (await client.get("/v1/agent/self")).status == 200
    client.consul.elect_leader()
    assert await facts() == (200, "true", "leader")


async def test_a_leader_lost_while_a_query_waits(client: Client) -> None:
    async with (
        client.waiting(SERVICES, [("index", 1)]) as answer,
        client.waiting(SERVICES, [("index", 1), ("consistent", "")]) as consistent,
    ):
        client.consul.lose_leader()
        client.consul.register("node-1", "web")
    assert (answer().json, answer().headers["x-consul-knownleader"]) == ({"web": []}, "false")
    assert (consistent().status, consistent().body) == (500, b"No cluster leader")


async def test_the_last_contact_is_as_long_ago_as_the_leader(mock_clock: trio.testing.MockClock) -> None:
    async with open_consul() as consul, httpcore2.AsyncConnectionPool() as pool:
        consul.lose_leader()
        mock_clock.jump(1.5)
        answer = await Client(consul, pool).get(SERVICES, [("stale", "")])
        assert answer.headers["x-consul-lastcontact"] == "1500"


# --- HTTP ---


async def test_paths_have_a_prefix_and_names_are_encoded() -> None:
    async with open_consul(prefix="/proxy/consul") as consul, asking(consul) as client:
        consul.register("node-1", "a/b ü%")
        assert (await client.get("/v1/health/service/a%2Fb%20%C3%BC%25")).ids == ["a/b ü%"]
        assert consul.requests[-1].path == "/proxy/consul/v1/health/service/a/b ü%"
        consul.prefix = "/elsewhere"
        assert consul.url.endswith("/elsewhere")
        assert (await client.get(SERVICES)).status == 200
        consul.prefix = ""
        assert (await client.get("/proxy/consul" + SERVICES)).status == 404
    async with open_consul(prefix="/consul") as consul, httpcore2.AsyncConnectionPool() as pool:
        for path in (SERVICES, "/other" + SERVICES, "/consulate" + SERVICES):
            assert (await pool.request("GET", f"http://{consul.address}{path}")).status == 404


async def test_the_log(client: Client) -> None:
    await client.get(SERVICES, [("tag", "a"), ("stale", ""), ("tag", "b"), ("index", 0)], {"X-Consul-Token": "x"})
    await client.consul.wait_requests(1)
    [request] = client.consul.requests
    assert (request.method, request.path) == ("GET", SERVICES)
    assert request.query == {"tag": ("a", "b"), "stale": ("",), "index": ("0",)}
    assert (request.parameter("tag"), request.parameter("stale"), request.parameter("wait")) == ("a", "", "")
    assert request.headers["x-consul-token"] == "x"


async def test_faults_last_until_they_are_healed(client: Client) -> None:
    consul = client.consul
    consul.fail(503, "busy")
    consul.garbage("/v1/health/")
    answer = await client.get(SERVICES)
    assert (answer.status, answer.body) == (503, b"busy")
    answer = await client.get(WEB)
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        _ = answer.json
    consul.hang(SERVICES)
    async with await trio.open_tcp_stream("127.0.0.1", consul.port) as stream:
        await stream.send_all(BLOCKING)
        await consul.wait_requests(3)
        assert (await client.get("/v1/agent/self")).status == 503
        assert consul.blocked == 0
        consul.drop_connections()
        assert await end(stream) == b""
    consul.heal()
    assert ((await client.get(SERVICES)).json, (await client.get(WEB)).json) == ({}, [])


async def test_a_connection_has_many_requests_even_if_they_come_at_once(consul: ConsulServer) -> None:
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream("127.0.0.1", consul.port) as stream:
            head = "HTTP/1.1\r\nHost: consul\r\n"
            await stream.send_all(f"GET {SERVICES}?index=1 {head}\r\nGET /v1/agent/self {head}\r\n".encode())
            await consul.wait_until_blocked(1)
            await stream.send_all(f"GET {WEB} {head}Connection: close\r\n\r\n".encode())
            await trio.testing.wait_all_tasks_blocked()
            assert len(consul.requests) == 1  # one after the other
            consul.register("node-1", "web")
            received = await end(stream)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    bodies = (b'{"web":[]}', b'{"Config":', b'[{"Node":')
    assert sorted(bodies, key=received.index) == list(bodies)
    assert (consul.accepted, len(consul.requests)) == (1, 3)


async def test_nonsense_is_refused(consul: ConsulServer) -> None:
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream("127.0.0.1", consul.port) as stream:
            await stream.send_all(b"nonsense\r\n\r\n")
            assert (await end(stream)).startswith(b"HTTP/1.1 400 ")
    assert consul.requests == []


async def test_answers_are_compressed_for_who_likes_it(client: Client) -> None:
    client.consul.register("node-1", "web")
    answer = await client.get(SERVICES, headers={"Accept-Encoding": "deflate, gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer.body)) == {"web": []}
    assert "content-encoding" not in (await client.get(SERVICES)).headers


async def test_connections_that_are_dropped(consul: ConsulServer) -> None:
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream("127.0.0.1", consul.port) as stream:
            await stream.send_all(BLOCKING)
            await consul.wait_until_blocked(1)
            assert consul.open == 1
            consul.drop_connections()
            assert (consul.open, consul.blocked) == (0, 0)
            assert await end(stream) == b""


async def test_a_server_that_is_away_for_a_while(client: Client) -> None:
    consul = client.consul
    consul.register("node-1", "web")
    port = consul.port
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(BLOCKING)
        await consul.wait_until_blocked(1)
        await consul.stop()
        assert await end(stream) == b""
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", port)
    await consul.start()
    assert consul.port == port
    assert (await client.get(SERVICES)).json == {"web": []}


async def test_leaving_ends_what_waits() -> None:
    with trio.fail_after(PATIENCE):
        async with open_consul() as consul:
            stream = await trio.open_tcp_stream("127.0.0.1", consul.port)
            await stream.send_all(BLOCKING)
            await consul.wait_until_blocked(1)
        async with stream:
            assert await end(stream) == b""
        assert (consul.open, consul.blocked) == (0, 0)


async def test_tls() -> None:
    authority = trustme.CA()
    server, browser = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(browser)
    async with open_consul(tls=server) as consul, asking(consul, browser) as client:
        assert consul.url.startswith("https://")
        for _ in range(2):
            index = (await client.get(SERVICES)).index
            async with client.waiting(SERVICES, [("index", index)]) as answer:
                consul.register(f"node-{index}", "web")
            assert answer().json == {"web": []}
        assert consul.accepted == 1
        with pytest.raises(httpcore2.ConnectError):
            async with httpcore2.AsyncConnectionPool() as pool:
                await Client(consul, pool).get(SERVICES)
        assert (await client.get(SERVICES)).status == 200
