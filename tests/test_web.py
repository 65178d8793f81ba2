"""The application, asked without a server: what each path answers, and who is refused."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import bcrypt
import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from trio_sd.config import parse_config
from trio_sd.discovery import default_registry
from trio_sd.discovery.consul import ConsulSDConfig
from trio_sd.discovery.http import HTTPSDConfig
from trio_sd.durations import Duration
from trio_sd.errors import ConfigError
from trio_sd.manager import Manager, open_manager
from trio_sd.reload import Reloader
from trio_sd.snapshots import Layout
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group
from trio_sd.web import Guarding, ListenAddress, bodies, load_web_config, open_application
from trio_sd.web.auth import Authenticator
from trio_sd.web.bodies import Basis, Bodies
from trio_sd.web.http_sd import http_sd_groups

from .asgi import ask, streaming
from .http_servers import Response, json_response, open_http_server
from .managing import AT_ONCE, synced

if TYPE_CHECKING:
    from starlette.types import ASGIApp

CONFIG = b"""\
scrape_configs:
  - job_name: web
    static_configs: [{targets: ["a:1", "a:2", "a:3"], labels: {zone: x}}]
    relabel_configs: [{source_labels: [__address__], regex: "a:2", action: drop}]
  - job_name: team/api
    static_configs: [{targets: ["b:1"]}]
"""


@asynccontextmanager
async def serving(*fakes: FakeDiscoverer, guarding: Guarding | None = None) -> AsyncIterator[tuple[ASGIApp, Manager]]:
    """Serve a manager with a set for each fake, by its name."""
    configs = {fake.config.name: [fake.config] for fake in fakes}
    async with (
        open_manager(configs, throttle=AT_ONCE) as manager,
        open_application(manager, guarding=guarding) as app,
    ):
        yield app, manager


@asynccontextmanager
async def serving_config() -> AsyncIterator[ASGIApp]:
    config = parse_config(CONFIG, file="p.yml", registry=default_registry())
    async with open_manager(config.scrape) as manager, open_application(manager) as app:
        await manager.wait_synced()
        yield app


# http_sd


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], []),
        ([group("s", "a:1", "a:2", labels={"x": "y"})], [{"targets": ["a:1", "a:2"], "labels": {"x": "y"}}]),
        (
            [
                TargetGroup(
                    "s", [{"__address__": "a"}, {"__address__": "b", "x": "z"}, {"__address__": "c"}], {"x": "y"}
                )
            ],
            [{"targets": ["a", "c"], "labels": {"x": "y"}}, {"targets": ["b"], "labels": {"x": "z"}}],
        ),
        ([TargetGroup("s", [{"x": "y"}])], [{"targets": [""], "labels": {"x": "y"}}]),
        ([TargetGroup("s", [{}], {"__address__": "a"})], [{"targets": ["a"], "labels": {}}]),
    ],
)
def test_groups_in_the_format_of_http_sd(groups: list[TargetGroup], expected: list[Mapping[str, object]]) -> None:
    assert http_sd_groups(groups) == expected


async def test_a_set_and_all_sets() -> None:
    async with serving_config() as app:
        answer = await ask(app, "/sd/web")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json == [{"targets": ["a:1", "a:2", "a:3"], "labels": {"zone": "x"}}]
        assert (await ask(app, "/sd/team%2Fapi")).json == [{"targets": ["b:1"], "labels": {}}]
        assert [found["labels"]["__meta_trio_sd_set"] for found in (await ask(app, "/sd")).json] == ["web", "team/api"]
        relabeled = (await ask(app, "/sd/web?relabel=1")).json
        assert [found["targets"] for found in relabeled] == [["a:1"], ["a:3"]]
        assert relabeled[0]["labels"]["instance"] == "a:1"
        head = await ask(app, "/sd/web", "HEAD")
        assert (head.status, head.headers["etag"]) == (200, answer.headers["etag"])


async def test_what_is_not_known_yet_is_no_empty_list() -> None:
    fake = FakeDiscoverer("web")
    async with serving(fake, synced("other")) as (app, manager):
        await manager.wait_synced("other")
        early = await ask(app, "/sd/web")
        assert (early.status, early.headers["retry-after"]) == (503, "5")
        assert "fake/0" in early.text
        assert (await ask(app, "/sd/web?partial=1")).json == []
        assert (await ask(app, "/sd/other")).status == 200
        assert (await ask(app, "/sd")).status == 503
        assert (await ask(app, "/sd?partial=1")).status == 200
        assert (await ask(app, "/-/ready")).status == 503
        assert "fake/0 of web" in (await ask(app, "/-/ready")).text
        await fake.send()
        assert (await ask(app, "/sd/web")).json == []
        assert (await ask(app, "/sd/web?relabel=1")).json == []
        assert (await ask(app, "/-/ready")).status == 200
        await fake.fail(RuntimeError("gone"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await ask(app, "/sd/web")).json == []  # the last known good
        assert (await ask(app, "/-/ready")).status == 200


async def test_before_a_configuration_was_applied() -> None:
    async with open_manager() as manager, open_application(manager) as app:
        for path, status in {"/sd": 503, "/sd/web": 404, "/-/ready": 503, "/-/healthy": 200, "/metrics": 200}.items():
            assert (await ask(app, path)).status == status, path


async def test_a_body_is_made_once_for_each_change_and_told_by_its_etag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SHARE", 0)  # however long that takes
    fake = FakeDiscoverer("web")
    many = [group(f"s{n}", f"host-{n}:80", labels={"n": str(n)}) for n in range(300)]
    async with serving(fake) as (app, _):
        await fake.send(*many)
        first = await ask(app, "/sd/web", accept_encoding="br, gzip;q=0.5")
        assert first.headers["content-encoding"] == "gzip"
        assert first.headers["vary"] == "Accept-Encoding"
        assert len(first.json) == 300
        plain = await ask(app, "/sd/web", accept_encoding="gzip;q=0")
        assert "content-encoding" not in plain.headers
        assert plain.json == first.json
        tag = first.headers["etag"]
        again = await ask(app, "/sd/web", if_none_match=f'"other", {tag}')
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        await fake.send(group("s7", "host-7:81"))
        changed = await ask(app, "/sd/web", if_none_match=tag)
        assert changed.status == 200
        assert changed.json[-1] != first.json[-1] or changed.json != first.json
        await fake.send(many[7])
        assert (await ask(app, "/sd/web")).headers["etag"] == tag


async def test_a_body_that_took_long_is_good_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SHARE", 1e9)
    small, large = FakeDiscoverer("small"), FakeDiscoverer("large")
    async with (
        open_manager({"small": [small.config], "large": [large.config]}) as manager,
        open_application(manager) as app,
    ):
        await small.send(group("s", "a:1"))
        await large.send(*[group(f"s{n}", f"host-{n}:80") for n in range(300)])
        for name, fake in ("small", small), ("large", large):
            tag = (await ask(app, f"/sd/{name}")).headers["etag"]
            await fake.send(group("s", "b:1"))
            again = await ask(app, f"/sd/{name}", if_none_match=tag)
            assert again.status == (200 if name == "small" else 304)


@pytest.mark.parametrize("query", ["", "relabel=1"])
async def test_a_body_without_a_provider_never_stands_for_one_with_it(
    monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(bodies, "_SHARE", 1e9)
    one, other = FakeDiscoverer("one"), FakeDiscoverer("other")
    async with open_manager({"web": [one.config, other.config]}) as manager, open_application(manager) as app:
        await one.send(*[group(f"s{n}", f"host-{n}:80") for n in range(300)])
        assert len((await ask(app, f"/sd/web?partial=1&{query}")).json) == 300
        assert (await ask(app, f"/sd/web?{query}")).status == 503
        await other.send(group("t", "a:1"))
        assert len((await ask(app, f"/sd/web?{query}")).json) == 301
        assert len((await ask(app, f"/sd/web?partial=1&{query}")).json) == 301


async def test_a_body_from_before_a_reload_never_stands_for_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SHARE", 1e9)
    one, other = FakeDiscoverer("one"), synced("other")
    async with open_manager({"web": [one.config]}) as manager, open_application(manager) as app:
        await one.send(*[group(f"s{n}", f"host-{n}:80") for n in range(300)])
        assert len((await ask(app, "/sd/web")).json) == 300
        await manager.apply_config({"web": [one.config, other.config]}, restart="changed")
        await manager.wait_synced()
        assert len((await ask(app, "/sd/web")).json) == 301


async def test_who_comes_with_an_older_state_gets_the_newer_body_and_keeps_nothing_older() -> None:
    kept, layout, other = Bodies(), Layout(), Layout()

    async def get(revision: int, layout: Layout) -> bytes:
        basis = Basis(revision, layout, (), (object(),))
        return (await kept.get("web", basis, lambda _: b"%d" % revision, work=1)).content

    assert await get(7, layout) == b"7"
    assert await get(6, layout) == b"7"
    assert await get(5, other) == b"5"
    assert await get(7, layout) == b"7"
    assert await get(8, other) == b"8"
    assert await get(9, other) == b"9"


async def hold_manager(over: trio.Event, *, task_status: trio.TaskStatus[Manager]) -> None:
    async with open_manager({"web": [synced("web").config]}) as manager:
        await manager.wait_synced()
        task_status.started(manager)
        await over.wait()


@pytest.mark.parametrize("relabeling", [False, True])
async def test_a_site_outlives_its_manager(relabeling: bool) -> None:
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        manager = await nursery.start(hold_manager, over)
        async with open_application(manager) as app:
            if relabeling:
                assert (await ask(app, "/sd/web?relabel=1")).status == 200
            over.set()
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                assert (await ask(app, "/sd/web?relabel=1")).status == 503
                await trio.testing.wait_all_tasks_blocked()
            assert (await ask(app, "/-/healthy")).status == 200


async def test_a_site_begins_after_its_manager_has_ended() -> None:
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        manager = await nursery.start(hold_manager, over)
        over.set()
    async with open_application(manager) as app:
        await trio.testing.wait_all_tasks_blocked()
        assert (await ask(app, "/-/healthy")).status == 200


async def test_relabeled_targets_are_never_older_than_the_request() -> None:
    fake = FakeDiscoverer("web")
    async with serving(fake) as (app, _):
        for n in range(5):
            await fake.send(group("s", f"host-{n}:80"))
            [found] = (await ask(app, "/sd/web?relabel=1")).json
            assert found["targets"] == [f"host-{n}:80"]


# Refusals


@pytest.mark.parametrize(
    ("target", "method", "headers", "status"),
    [
        ("/", "GET", {}, 200),
        ("/", "GET", {"host": "127.0.0.1"}, 200),
        ("/", "GET", {"host": "[::1]:80"}, 200),
        ("/", "GET", {"host": "LOCALHOST."}, 200),
        ("/", "GET", {"host": "sd.example:9"}, 200),
        ("/", "GET", {"host": "192.0.2.7:9099"}, 200),
        ("/", "GET", {"host": "evil.example"}, 421),
        ("/", "GET", {"host": "localhost.evil.example"}, 421),
        ("/", "GET", {"host": ""}, 400),
        ("/", "GET", {"host": "a b"}, 400),
        ("/", "GET", {"host": "localhost:x"}, 400),
        ("/", "GET", {"host": "user@localhost"}, 400),
        ("/sd/nothing", "GET", {}, 404),
        ("/sd/", "GET", {}, 404),
        ("/sd/../metrics", "GET", {}, 404),
        ("/sd/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "GET", {}, 404),
        ("//metrics", "GET", {}, 404),
        ("/%ff", "GET", {}, 400),
        ("/sd/%00", "GET", {}, 400),
        ("/sd/a%0d%0ab", "GET", {}, 400),
        ("http://localhost/", "GET", {}, 400),
        ("*", "OPTIONS", {}, 400),
        ("/" + "a" * 5_000, "GET", {}, 414),
        ("/?" + "a" * 5_000, "GET", {}, 414),
        ("/", "GET", {f"x-{n}": "y" for n in range(100)}, 431),
        ("/", "GET", {"content-length": "5"}, 413),
        ("/", "GET", {"content-length": "0"}, 200),
        ("/", "GET", {"transfer-encoding": "chunked"}, 413),
        ("/", "DELETE", {}, 405),
        ("/sd/web", "POST", {}, 405),
        ("/-/reload", "GET", {}, 405),
        ("/-/reload", "POST", {}, 403),  # it is not enabled
        ("/-/reload", "POST", {"origin": "http://localhost:9099"}, 403),
        ("/sd?manager=nothing", "GET", {}, 404),
        ("/sd?relabel=maybe", "GET", {}, 400),
        ("/api/v1/targets?state=sad", "GET", {}, 400),
        ("/nothing", "GET", {}, 404),
    ],
)
async def test_who_and_what_is_refused(target: str, method: str, headers: dict[str, str], status: int) -> None:
    async with serving(synced("web"), guarding=Guarding(hosts=["SD.example"])) as (app, _):
        answer = await ask(app, target, method, **headers)
        assert answer.status == status, answer
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert not any(name.startswith("access-control") for name in answer.headers)
        if status == 405:
            assert answer.headers["allow"]


async def test_a_client_of_http_1_0_needs_no_host() -> None:
    async with serving(synced("web")) as (app, _):
        assert (await ask(app, "/", http_version="1.0", host="")).status == 200


async def test_websockets_are_refused_and_the_lifespan_protocol_is_spoken() -> None:
    async with serving(synced("web")) as (app, _):
        sent = []
        incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> dict[str, str]:
            return incoming.pop(0)

        async def send(message: object) -> None:
            sent.append(message)

        await app({"type": "lifespan"}, receive, send)
        await app({"type": "websocket"}, receive, send)
        assert sent[:2] == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
        assert sent[2] == {"type": "websocket.close", "code": 1008}


# Users

HASH = bcrypt.hashpw(b"hunter2", b"$2b$04$abcdefghijklmnopqrstuu")  # the same in every worker


def basic(user: str, password: str) -> str:

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (basic("me", "hunter2"), True),
        (basic("me", "hunter2").replace("Basic", "bAsIc"), True),
        (basic("me", "hunter3"), False),
        (basic("you", "hunter2"), False),
        (basic("me", "hunter2\0more"), False),
        (basic("me", "x" * 100), False),
        (basic("me", ""), False),
        ("", False),
        ("Basic", False),
        ("Basic !!!", False),
        ("Basic aGk=", False),
        ("Bearer hunter2", False),
    ],
)
async def test_passwords(header: str, right: bool) -> None:
    async with serving(synced("web"), guarding=Guarding(users={"me": HASH})) as (app, _):
        for _ in range(2):
            answer = await ask(app, "/-/healthy", authorization=header)
            assert answer.status == (200 if right else 401)
            assert ("www-authenticate" in answer.headers) != right


@pytest.mark.parametrize(
    ("header", "right"),
    [
        ("Bearer s3cr3t", True),
        ("bearer  s3cr3t ", True),
        ("Bearer", False),
        ("Bearer s3cr3", False),
        ("Basic s3cr3t", False),
        ("", False),
        (basic("me", "hunter2"), False),
    ],
)
async def test_tokens(header: str, right: bool) -> None:
    guarding = Guarding(tokens=[hashlib.sha256(b"other").digest(), hashlib.sha256(b"s3cr3t").digest()])
    async with serving(synced("web"), guarding=guarding) as (app, _):
        answer = await ask(app, "/-/healthy", authorization=header)
        assert answer.status == (200 if right else 401)
        if not right:
            assert answer.headers["www-authenticate"].startswith("Bearer ")


async def test_users_and_tokens_go_together() -> None:
    guarding = Guarding(users={"me": HASH}, tokens=[hashlib.sha256(b"s3cr3t").digest()])
    async with serving(synced("web"), guarding=guarding) as (app, _):
        for header in basic("me", "hunter2"), "Bearer s3cr3t":
            assert (await ask(app, "/-/healthy", authorization=header)).status == 200


async def test_what_is_remembered_of_a_password_is_no_plain_text() -> None:
    authenticator = Authenticator({"me": HASH})
    assert await authenticator.check(basic("me", "hunter2"))
    assert "hunter2" not in repr(vars(authenticator))
    assert "$2b$" not in repr(authenticator)
    assert "$2b$" not in repr(Guarding(users={"me": HASH}))


# The web configuration file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tls_server_config: {cert_file: a}", ":1:20: tls_server_config: field key_file is missing"),
        ("tls_server_config: {cert: a}", "cert"),
        ("tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequestClientCert}", "expected one of"),
        ("tls_server_config: {cert_file: a, key_file: b, client_ca_file: c}", "needs a client_auth_type"),
        ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS13, max_version: TLS12}", "older than TLS13"),
        ("basic_auth_users: {me: hunter2}", 'what user "me" has is no bcrypt hash'),
        ("basic_auth_users: {'a:b': hunter2}", "without a colon"),
        (f"basic_auth_users: {{me: {HASH.decode().replace('$04$', '$31$')}}}", "cost"),
        ("bearer_tokens: {me: hunter2}", 'what "me" has is no SHA-256 sum'),
        ("basic_auth_user: {me: x}", "did you mean basic_auth_users?"),
        ("http_server_config: {headers: {Set-Cookie: x}}", "expected one of"),
        ("[", "p.yml:1"),
    ],
)
def test_a_web_configuration_that_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "p.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_web_config(file)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_web_configuration(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text(
        f"tls_server_config: {{cert_file: a, key_file: /b}}\nbasic_auth_users: {{me: {HASH.decode()}}}\n"
        f"bearer_tokens: {{prometheus: {hashlib.sha256(b's3cr3t').hexdigest()}}}\n"
        "http_server_config: {http2: true, headers: {X-Frame-Options: SAMEORIGIN}}\n"
    )
    config = load_web_config(file)
    assert config.tls_server_config is not None
    assert config.tls_server_config.cert_file == str(tmp_path / "a")
    assert config.tls_server_config.key_file == "/b"
    assert config.users() == {"me": HASH}
    assert config.tokens() == (hashlib.sha256(b"s3cr3t").digest(),)
    assert HASH.decode() not in repr(config)
    file.write_text("")
    assert load_web_config(file).users() == {}


async def test_headers_of_the_web_configuration_replace_ours() -> None:
    async with serving(synced("web"), guarding=Guarding(headers={"X-Frame-Options": "SAMEORIGIN"})) as (app, _):
        assert (await ask(app, "/")).headers["x-frame-options"] == "SAMEORIGIN"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("localhost:0", "localhost:0"),
        (":9099", "127.0.0.1:9099"),
        ("[::1]:1", "[::1]:1"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("::1:80", None),
        ("9099", None),
        ("a:b", None),
        ("a:65536", None),
        ("a:", None),
        ("", None),
        ("a:-1", None),
    ],
)
def test_listen_addresses(text: str, told: str | None) -> None:
    if told is None:
        with pytest.raises(ValueError, match="expected"):
            ListenAddress.parse(text)
    else:
        assert str(ListenAddress.parse(text)) == told


# Metrics


async def test_metrics_in_both_formats() -> None:
    fake = FakeDiscoverer("web", first=[group("s", "a:1", "a:2")])
    registry = CollectorRegistry()
    Gauge("own", "Of the program.", registry=registry).set(7)
    async with (
        open_manager({"web": [fake.config]}, throttle=AT_ONCE) as scrape,
        open_manager({"web": [synced("other").config]}, name="notify", throttle=AT_ONCE) as notify,
        open_application(scrape, notify, registry=registry) as app,
        scrape.subscribe(name="twin") as one,
        scrape.subscribe(name="twin"),
    ):
        await scrape.wait_synced()
        await notify.wait_synced()
        await one.receive()
        await trio.testing.wait_all_tasks_blocked()  # until the subscription has counted that
        old = await ask(app, "/metrics")
        new = await ask(app, "/metrics", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert old.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert new.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    opened = list(openmetrics_families(new.text))  # type: ignore[no-untyped-call]
    for families in list(text_families(old.text)), opened:
        samples = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
        assert len(samples) == sum([len(family.samples) for family in families])  # no series twice
        assert samples["own",] == 7
        assert samples["prometheus_sd_discovered_targets", ("config", "web"), ("name", "scrape")] == 2
        assert samples["prometheus_sd_discovered_targets", ("config", "web"), ("name", "notify")] == 1
        assert samples["prometheus_sd_received_updates_total", ("name", "scrape")] == 1
        assert samples["prometheus_sd_updates_total", ("name", "scrape")] in (2, 3)  # to "one", and to the page
        assert samples["trio_sd_provider_up", ("manager", "scrape"), ("provider", "fake/0")] == 1
        assert samples["trio_sd_subscribers", ("manager", "scrape"), ("name", "twin")] == 2


async def test_refreshes_are_told_as_prometheus_tells_them() -> None:
    minute = Duration.of("1m")
    async with open_http_server({"/good": json_response([{"targets": ["a:1"]}]), "/bad": Response(404)}) as server:
        good, bad = (HTTPSDConfig(url=server.url(path), refresh_interval=minute) for path in ("/good", "/bad"))
        consul = ConsulSDConfig(server=server.address, datacenter="dc", services=("web",), refresh_interval=minute)
        async with (
            open_manager({"one": [good, bad], "two": [good, consul]}, throttle=AT_ONCE) as manager,
            open_application(manager) as app,
        ):
            with trio.fail_after(5):  # failures are told to nobody but the statistics
                while [len(each.details.errors) for each in manager.statistics().providers] != [0, 1, 1] or (
                    not manager.statistics().providers[0].updates
                ):
                    await trio.testing.wait_all_tasks_blocked(0.01)
            families = text_families((await ask(app, "/metrics")).text)
    samples = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    labels = [(("config", name), ("mechanism", "http")) for name in ("one", "two")]
    assert [samples["prometheus_sd_refresh_failures_total", *names] for names in labels] == [1, 0]
    assert [samples["prometheus_sd_refresh_duration_seconds_count", *names] for names in labels] == [2, 1]
    assert all(0 < samples["prometheus_sd_refresh_duration_seconds_sum", *names] < 5 for names in labels)
    assert samples["prometheus_sd_http_failures_total",] == 1
    assert samples["prometheus_sd_consul_rpc_failures_total",] == 1
    assert ("prometheus_sd_dns_lookups_total",) not in samples


async def test_totals_never_fall() -> None:
    fake = synced("web")
    async with serving(fake) as (app, manager):
        seen = 0.0
        for _ in range(3):
            async with manager.subscribe() as updates:
                await updates.receive()
            await manager.apply_config({"web": [fake.config]})
            await manager.wait_synced()
            families = text_families((await ask(app, "/metrics")).text)
            values = [s.value for family in families for s in family.samples if s.name.endswith("updates_total")]
            assert sum(values) > seen
            seen = sum(values)


# Targets


async def test_targets_as_prometheus_shows_them() -> None:
    async with serving_config() as app:
        answer = (await ask(app, "/api/v1/targets")).json
        assert answer["status"] == "success"
        data = answer["data"]
        assert [(t["scrapePool"], t["labels"]["instance"]) for t in data["activeTargets"]] == [
            ("web", "a:1"),
            ("web", "a:3"),
            ("team/api", "b:1"),
        ]
        assert data["activeTargets"][0]["discoveredLabels"]["__address__"] == "a:1"
        assert data["activeTargets"][0]["scrapeUrl"] == "http://a:1/metrics"
        assert [t["discoveredLabels"]["__address__"] for t in data["droppedTargets"]] == ["a:2"]
        assert data["droppedTargetCounts"] == {"web": 1, "team/api": 0}
        active = (await ask(app, "/api/v1/targets?state=active&scrapePool=team%2Fapi")).json["data"]
        assert len(active["activeTargets"]) == 1
        assert active["droppedTargets"] == []
        assert (await ask(app, "/api/v1/targets?state=dropped")).json["data"]["activeTargets"] == []


# Events


@pytest.mark.parametrize("others", [0, 300])
async def test_events_tell_every_update_and_resume(others: int) -> None:
    fake = FakeDiscoverer("web")
    async with serving(fake) as (app, manager):
        await fake.send(group("s", "a:1"), *[group(f"x{n}", f"x:{n}") for n in range(others)])
        async with streaming(app, "/api/v1/events") as stream:
            first = await stream.event()
            assert first["event"] == "state"
            assert json.loads(first["data"])["sets"]["web"]["updated"][0]["targets"] == [{"__address__": "a:1"}]
            await fake.send(group("t", "b:1"))
            second = await stream.event()
            assert second["event"] == "update"
            assert second["id"].endswith(f"-{manager.snapshot().revision}")
            assert [g["source"] for g in json.loads(second["data"])["sets"]["web"]["updated"]] == ["t"]
        await fake.send(group("u", "c:1"))
        await fake.send(TargetGroup("s", []))
        async with streaming(app, "/api/v1/events", last_event_id=second["id"]) as stream:
            third = await stream.event()
            assert third["event"] == "update"
            changes = json.loads(third["data"])["sets"]["web"]
            assert ([g["source"] for g in changes["updated"]], changes["removed"]) == (["u"], ["s"])
        for unknown in ("1", f"00000000-{manager.snapshot().revision}", f"{second['id']}999", "x" * 1000):
            async with streaming(app, "/api/v1/events", last_event_id=unknown) as stream:
                assert (await stream.event())["event"] == "state"
        assert not [s for s in manager.statistics().subscriptions if s.name == "events"]


@pytest.mark.parametrize("others", [0, 300])
async def test_a_state_is_encoded_once_for_those_who_come_soon_after_each_other(others: int) -> None:
    def state(event: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
        assert event["event"] == "state"
        return {found["source"]: found["targets"] for found in json.loads(event["data"])["sets"]["web"]["updated"]}

    fake = FakeDiscoverer("web")
    async with serving(fake) as (app, manager):
        await fake.send(group("s", "a:1"), *[group(f"x{n}", f"x:{n}") for n in range(others)])
        async with streaming(app, "/api/v1/events") as first:
            before = await first.event()
            assert state(before)["s"] == [{"__address__": "a:1"}]
            await fake.send(group("s", "a:2"))
            await first.event()
            async with streaming(app, "/api/v1/events") as second:
                assert await second.event() == before  # as it was
                after = await second.event()  # and at once what has changed since
                assert after["event"] == "update"
                assert after["id"].endswith(f"-{manager.snapshot().revision}")
                (changed,) = json.loads(after["data"])["sets"]["web"]["updated"]
                assert changed["targets"] == [{"__address__": "a:2"}]
            for n in range(40):  # until that state is not known any more
                await fake.send(group("s", f"b:{n}"))
                await first.event()
            async with streaming(app, "/api/v1/events") as third:
                assert state(await third.event())["s"] == [{"__address__": "b:39"}]
        await trio.testing.wait_all_tasks_blocked()
        await fake.send(group("s", "c:1"))
        async with streaming(app, "/api/v1/events") as alone:
            assert state(await alone.event())["s"] == [{"__address__": "c:1"}]


async def test_events_have_a_heartbeat_and_a_client_that_takes_nothing_is_dropped(autojump_clock: object) -> None:
    fake = FakeDiscoverer("web")
    async with serving(fake) as (app, manager), streaming(app, "/api/v1/events") as stream:
        await stream.event()
        began = trio.current_time()
        assert await stream.event() == {"": "nothing new"}
        assert trio.current_time() - began == pytest.approx(15)
        await fake.send(group("s", "a:1"))
        await trio.sleep(40)
        assert not [s for s in manager.statistics().subscriptions if s.name == "events"]


async def test_what_is_encoded_for_those_who_follow_events_is_forgotten_with_the_last_of_them() -> None:
    def versions() -> int:
        gc.collect()
        return len([one for one in gc.get_objects() if isinstance(one, TargetGroup) and one.source == "forgotten"])

    fake = FakeDiscoverer("web")
    async with serving(fake) as (app, _):
        async with streaming(app, "/api/v1/events") as one:
            await one.event()
            async with streaming(app, "/api/v1/events") as other:
                await other.event()
                for n in range(100):
                    await fake.send(group("forgotten", f"a:{n}"))
                    await one.event()
                    await other.event()
            await trio.testing.wait_all_tasks_blocked()
            assert versions() >= 100
        await trio.testing.wait_all_tasks_blocked()
        assert versions() < 40  # the states that a client may come back to


async def test_events_end_with_the_application() -> None:
    fake = synced("web")
    async with open_manager({"web": [fake.config]}) as manager, trio.open_nursery() as nursery:
        async with open_application(manager) as app:
            over = trio.Event()

            async def follow() -> None:
                answer = await ask(app, "/api/v1/events")
                assert answer.status == 200
                over.set()

            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            await over.wait()


# Reload


@pytest.mark.parametrize(
    ("headers", "text", "status"),
    [
        ({}, CONFIG, 200),
        ({}, b"scrape_configs: [", 500),
        ({"origin": "http://evil.example"}, CONFIG, 403),
        ({"origin": "null"}, CONFIG, 403),
        ({"sec_fetch_site": "cross-site"}, CONFIG, 403),
        ({"origin": "http://localhost:9099", "sec_fetch_site": "same-origin"}, CONFIG, 200),
    ],
)
async def test_reload(tmp_path: Path, headers: dict[str, str], text: bytes, status: int) -> None:
    file = tmp_path / "p.yml"
    file.write_bytes(text)
    async with open_manager() as manager:
        reloader = Reloader(file, scrape=manager)
        async with open_application(manager, reloader=reloader, enable_reload=True) as app:
            answer = await ask(app, "/-/reload", "POST", **headers)
            assert answer.status == status, answer.text
            assert (list(manager.snapshot()) == ["web", "team/api"]) == (status == 200)
            if status == 500:
                assert f"{file}:1" in answer.text
                assert "trio_sd_config_last_reload_successful 0" in (await ask(app, "/metrics")).text
