"""The servers and proxies that tests of HTTP use do what they say: seen by a client that is not ours."""

from __future__ import annotations

import gzip
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Final, TypeAlias
from urllib.parse import urlencode

import h2.connection
import h2.settings
import httpcore2
import jwt
import pytest
import trio
import trio.testing

from trio_sd.tls import TLSConfig

from .http_proxies import SocksRequest, open_http_proxy, open_socks5_proxy
from .http_servers import (
    Answer,
    Certificates,
    HTTPServer,
    Raw,
    Request,
    Response,
    Route,
    Switch,
    TargetList,
    TokenEndpoint,
    basic,
    busy,
    drip,
    endless,
    gzipped,
    hang,
    json_response,
    lying_length,
    new_rsa_key,
    open_http_server,
    pieces,
    redirect,
    requires_basic,
    requires_header,
    sequence,
    stale,
    stall,
)

Fields: TypeAlias = dict[bytes | str, bytes | str]

ENDED: Final = httpcore2.RemoteProtocolError
LATE: Final = httpcore2.ReadTimeout


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def trusting(certificates: Certificates, cert: str = "") -> ssl.SSLContext:
    """Return what a client needs that trusts the authority, and shows the certificate of that name."""
    files = {kind: certificates.path(f"{cert}.{kind}") if cert else "" for kind in ("crt", "key")}
    ca_file = certificates.path("authority.crt")
    return TLSConfig(ca_file=ca_file, cert_file=files["crt"], key_file=files["key"]).context()


@asynccontextmanager
async def serving(
    route: Route | Mapping[str, Route], context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[HTTPServer, httpcore2.AsyncConnectionPool]]:
    """Serve, and open a client, for a few seconds at the most."""
    routes = route if isinstance(route, Mapping) else {"/": route}
    with trio.fail_after(5):
        async with open_http_server(routes) as server, httpcore2.AsyncConnectionPool(context) as client:
            yield server, client


def header(response: httpcore2.Response, name: str) -> str | None:
    return {key.lower(): value.decode() for key, value in response.headers}.get(name.lower().encode())


# --- requests and connections ---


async def test_requests_are_logged_and_connections_kept_alive() -> None:
    async def echo(request: Request) -> Answer:
        return Response(201, (("X-Echo", request.query),), request.body)

    async with serving({"/echo": echo}) as (server, client):
        first = await client.request("POST", server.url("/echo?a=1&b"), headers={"X-A": "b"}, content=b"body")
        assert (first.status, first.content, header(first, "x-echo")) == (201, b"body", "a=1&b")
        assert (await client.request("GET", server.url("/none"))).status == 404
        one, two = server.requests
        assert (one.method, one.path, one.query, one.body, one.http) == ("POST", "/echo", "a=1&b", b"body", "1.1")
        assert ("x-a", "b") in one.headers
        assert one.header("host") == server.address
        assert [(request.connection, request.nth) for request in (one, two)] == [(1, 1), (1, 2)]
        assert one.tls is None
        assert (server.accepted, server.open) == (1, 1)
        last = await client.request("GET", server.url("/none"), headers={"Connection": "close"})
        assert header(last, "connection") == "close"
        await server.wait_open(0)


async def test_requests_and_dropped_connections_are_waited_for() -> None:
    async with serving(hang) as (server, client):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(httpcore2.RemoteProtocolError):
                    await client.request("GET", server.url())

            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await server.wait_requests(2)
            assert server.open == 2
            server.drop_connections()
        await server.wait_open(0)
        assert server.accepted == 2


@pytest.mark.parametrize("http2", [False, True])
async def test_an_answer_under_way_ends_when_its_client_goes_away(
    certificates: Certificates, http2: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended = trio.Event()

    async def never(request: Request) -> Answer:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    context = trusting(certificates)
    with trio.fail_after(5):
        async with open_http_server(never, tls=certificates.server(), http2=http2) as server:
            async with httpcore2.AsyncConnectionPool(context, http2=http2) as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.request, "GET", server.url())
                await server.wait_requests(1)
                assert not ended.is_set()
                nursery.cancel_scope.cancel()
            await ended.wait()
            await server.wait_open(0)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def greedy() -> bytes:
    """Return what an HTTP/2 client sends that asks once, and will take any amount of data at any time."""
    client = h2.connection.H2Connection()
    client.local_settings = h2.settings.Settings(
        initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}
    )
    client.initiate_connection()
    client.increment_flow_control_window(2**30)
    client.send_headers(1, [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a")], True)
    return client.data_to_send()


@pytest.mark.parametrize(("alpn", "sent"), [("http/1.1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), ("h2", greedy())])
async def test_the_end_waits_for_no_client(certificates: Certificates, alpn: str, sent: bytes) -> None:
    context = trusting(certificates)
    context.set_alpn_protocols([alpn])
    with trio.fail_after(5):
        async with open_http_server({"/": Response(body=endless())}, tls=certificates.server(), http2=True) as server:
            stream = await trio.open_ssl_over_tcp_stream(server.host, server.port, ssl_context=context)
            await stream.send_all(sent)
            await server.wait_requests(1)
            await trio.testing.wait_all_tasks_blocked(0.01)  # nothing is read: the server can't send
        assert server.open == 0
        await trio.aclose_forcefully(stream)
        with pytest.raises(OSError, match="attempts to connect"):
            await trio.open_tcp_stream(server.host, server.port)


async def test_requests_may_come_before_they_are_asked_for() -> None:
    goes_on = trio.Event()

    async def slow(request: Request) -> Answer:
        await goes_on.wait()
        return Response(200 + request.nth)

    first, last = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"
    async with serving(slow) as (server, _), await trio.open_tcp_stream(server.host, server.port) as stream:
        await stream.send_all(first + first)
        await server.wait_requests(1)
        await stream.send_all(last)
        await trio.testing.wait_all_tasks_blocked()
        goes_on.set()
        received = b"".join([part async for part in stream])
        assert [line[9:12] for line in received.split(b"\r\n") if line.startswith(b"HTTP")] == [b"201", b"202", b"203"]
        assert [request.http for request in server.requests] == ["1.1", "1.1", "1.0"]


async def test_nonsense_from_a_client_is_answered_and_harms_nobody() -> None:
    async with serving(Response(204)) as (server, client):
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(b"\x16\x03\x01 what https sends\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert (await client.request("GET", server.url())).status == 204
        assert len(server.requests) == 1


async def test_a_mistake_of_a_handler_is_raised() -> None:
    async def wrong(request: Request) -> Answer:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(wrong) as (server, client):
            with suppress(httpcore2.RemoteProtocolError):
                await client.request("GET", server.url())


# --- misbehaviour ---


async def read(client: httpcore2.AsyncConnectionPool, url: str, limit: int = 100_000) -> tuple[bytes, object]:
    """Return what can be read of a body, and what ended it."""
    body = b""
    try:
        async with (
            client.stream("GET", url, extensions={"timeout": {"read": 1.0}}) as response,
            aclosing(response.aiter_stream()) as parts,
        ):
            async for part in parts:
                body += part
                if len(body) > limit:
                    return body, "limit"
    except (httpcore2.ReadTimeout, httpcore2.RemoteProtocolError) as error:
        return body, type(error)
    return body, "end"


@pytest.mark.parametrize(
    ("route", "body", "end"),
    [
        (hang, b"", LATE),
        (Response(body=stall()), b"", LATE),
        (Response(body=stall(b"some")), b"some", LATE),
        (Response(headers=(("Content-Length", "9"),), body=stall(b"some")), b"some", LATE),
        (Response(body=drip(b"abc", every=0.9)), b"abc", "end"),
        (Response(body=drip(b"abc", every=1.1)), b"", LATE),
        (Response(body=pieces(b"a", b"", b"bc")), b"abc", "end"),
        (Raw(pieces(b"HTTP/1.1 200 O", b"K\r\n\r\nx", every=0.9)), b"x", "end"),
        (lying_length(9, b"short"), b"short", ENDED),
        (lying_length(4, b"longer"), b"long", "end"),
        (Response(headers=(("Transfer-Encoding", "chunked"),), body=b"zz\r\n"), b"", ENDED),
        (Raw(b"SSH-2.0-OpenSSH_9.2\r\n"), b"", ENDED),
        (Raw(), b"", ENDED),
        (Response(headers=(("X-Big", "x" * 200_000),)), b"", ENDED),
        (Response(informational=(100, 103), body=b"at last"), b"at last", "end"),
        (Response(204), b"", "end"),
        (Response(304, (("ETag", '"x"'),)), b"", "end"),
    ],
)
async def test_misbehaviour_is_what_a_client_gets(
    route: Route, body: bytes, end: object, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(route) as (server, client):
        assert await read(client, server.url()) == (body, end)


@pytest.mark.parametrize("headers", [(), (("Content-Length", "1000000000"),)])
async def test_a_body_may_be_endless(headers: tuple[tuple[str, str], ...]) -> None:
    async with serving(Response(headers=headers, body=endless())) as (server, client):
        body, end = await read(client, server.url())
        assert (len(body) > 100_000, end) == (True, "limit")


async def test_a_connection_may_end_after_an_answer_that_does_not_say_so() -> None:
    async with serving({"/": Response(body=b"x", closes=True), "/stale": stale(Response())}) as (server, client):
        assert header(await client.request("GET", server.url()), "connection") is None
        await server.wait_open(0)
        assert (await client.request("GET", server.url("/stale"))).status == 200
        assert server.accepted == 2
        with pytest.raises(httpcore2.RemoteProtocolError, match="without sending a response"):
            await client.request("GET", server.url("/stale"))
        assert [(request.connection, request.nth) for request in server.requests] == [(1, 1), (2, 1), (2, 2)]


async def test_head_has_no_body_and_gzip_is_what_it_says() -> None:
    async with serving(gzipped(json_response([1]))) as (server, client):
        for method, content in ("HEAD", b""), ("GET", b"[1]"):
            response = await client.request(method, server.url())
            assert header(response, "content-encoding") == "gzip"
            assert (gzip.decompress(response.content) if response.content else b"") == content


@pytest.mark.parametrize(
    ("method", "answer", "sent"),
    [
        ("GET", Response(204, body=b"x"), "204 No Content\r\n@"),
        ("GET", Response(304, (("ETag", "x"),), b"x"), "304 Not Modified\r\nETag: x\r\n@"),
        ("HEAD", Response(body=b"x"), "200 OK\r\nContent-Length: 1\r\n@"),
        (
            "GET",
            Response(299, body=b"x", informational=(103,)),
            "103 Early Hints\r\n\r\nHTTP/1.1 299 \r\nContent-Length: 1\r\n@x",
        ),
        ("GET", Response(body=pieces(b"abc", b"")), "200 OK\r\nTransfer-Encoding: chunked\r\n@3\r\nabc\r\n0\r\n\r\n"),
    ],
)
async def test_answers_are_sent_as_they_are(method: str, answer: Response, sent: str) -> None:
    async with serving(answer) as (server, _), await trio.open_tcp_stream(server.host, server.port) as stream:
        await stream.send_all(f"{method} / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n".encode())
        received = b"".join([part async for part in stream]).decode()
        assert received == "HTTP/1.1 " + sent.replace("@", "Connection: close\r\n\r\n")


# --- good behaviour ---


async def test_a_target_list_tells_whether_it_has_changed() -> None:
    groups = [{"targets": ["a:1"]}]
    lists = {
        "/both": TargetList(groups),
        "/tag": TargetList(groups, last_modified=False),
        "/date": TargetList(groups, etag=False),
        "/none": TargetList(groups, etag=False, last_modified=False),
    }
    async with serving(lists) as (server, client):
        for path, target_list in lists.items():
            answered = await client.request("GET", server.url(path))
            assert (answered.status, header(answered, "content-type")) == (200, "application/json")
            assert json.loads(answered.content) == groups
            tag, date = header(answered, "etag"), header(answered, "last-modified")
            assert (tag is not None, date is not None) == (path in ("/both", "/tag"), path in ("/both", "/date"))
            known = {"If-None-Match": tag, "If-Modified-Since": date}
            conditions: Fields = {name: value for name, value in known.items() if value}
            again = await client.request("GET", server.url(path), headers=conditions)
            assert (again.status, again.content == b"") == ((304, True) if conditions else (200, False))
            assert target_list.not_modified == bool(conditions)
            target_list.groups = []
            assert (await client.request("GET", server.url(path), headers=conditions)).content == b"[]"
        date = header(await client.request("GET", server.url("/both")), "last-modified")
        assert date == "Mon, 01 Jan 2024 00:00:01 GMT"
        conditions = {"If-None-Match": '"other"', "If-Modified-Since": date}
        assert (await client.request("GET", server.url("/both"), headers=conditions)).status == 200


async def test_sequences_switches_and_redirects() -> None:
    switch = Switch(busy("7"))
    routes: dict[str, Route] = {
        "/": sequence(busy("120"), Response(429), Response()),
        "/switch": switch,
        "/away": redirect("/switch", 308),
    }
    async with serving(routes) as (server, client):
        answers = [await client.request("GET", server.url()) for _ in range(4)]
        assert [(one.status, header(one, "retry-after")) for one in answers] == [
            (503, "120"),
            (429, None),
            (200, None),
            (200, None),
        ]
        assert (await client.request("GET", server.url("/switch"))).status == 503
        switch.route = Response(206)
        assert (await client.request("GET", server.url("/switch"))).status == 206
        away = await client.request("GET", server.url("/away"))
        assert (away.status, header(away, "location")) == (308, "/switch")


async def test_routes_that_ask_who_it_is() -> None:
    routes = {
        "/basic": requires_basic("ann", "p:w", Response()),
        "/header": requires_header("x-key", "k", Response(), Response(403)),
    }
    async with serving(routes) as (server, client):
        refused = await client.request("GET", server.url("/basic"))
        assert (refused.status, header(refused, "www-authenticate")) == (401, 'Basic realm="test"')
        for path, name, value, refusal in (
            ("/basic", "Authorization", basic("ann", "p:w"), 401),
            ("/header", "X-Key", "k", 403),
        ):
            assert (await client.request("GET", server.url(path), headers={name: value})).status == 200
            assert (await client.request("GET", server.url(path), headers={name: value + "x"})).status == refusal


async def post(
    client: httpcore2.AsyncConnectionPool, url: str, form: Mapping[str, str], headers: Fields | None = None
) -> httpcore2.Response:
    fields: Fields = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
    return await client.request("POST", url, headers=fields, content=urlencode(form).encode())


@pytest.mark.parametrize("styles", [("basic",), ("form",), ("basic", "form")])
async def test_tokens_are_issued_to_who_shows_the_secret(
    styles: tuple[str, ...], autojump_clock: trio.testing.MockClock
) -> None:
    tokens = TokenEndpoint(("me", "s&cret"), styles=styles, expires_in=1)
    async with serving({"/token": tokens, "/": tokens.protect(Response())}) as (server, client):

        async def ask(headers: Fields, **fields: str) -> tuple[int, dict[str, object]]:
            form = {"grant_type": "client_credentials", **fields}
            answered = await post(client, server.url("/token"), form, headers)
            return answered.status, json.loads(answered.content)

        async def use(token: object) -> int:
            return (await client.request("GET", server.url(), headers={"Authorization": f"Bearer {token}"})).status

        # In the header, both are encoded as in a form.
        by_header = await ask({"Authorization": basic("me", "s%26cret")})
        by_form = await ask({}, client_id="me", client_secret="s&cret")
        assert [by_header[0], by_form[0]] == [200 if style in styles else 401 for style in ("basic", "form")]
        assert (await ask({"Authorization": basic("me", "x")}, client_id="me", client_secret="x"))[0] == 401
        assert (await ask({}, grant_type="password"))[1]["error"] == "unsupported_grant_type"
        assert len(tokens.issued) == len(styles)
        assert {200: by_header, 401: by_form}[by_header[0]][1]["expires_in"] == 1
        assert await use(tokens.issued[-1]) == 200
        assert await use("other") == 401
        await trio.sleep(1)
        assert await use(tokens.issued[-1]) == 401


async def test_tokens_are_issued_for_assertions_that_are_signed() -> None:
    private, public = new_rsa_key()
    stranger, _ = new_rsa_key()
    tokens = TokenEndpoint(public_key=public, expires_in=None)
    claims = {"iss": "me", "exp": datetime.now(UTC) + timedelta(minutes=1), "aud": "https://a.example/token"}
    late = {**claims, "exp": datetime.now(UTC) - timedelta(minutes=1)}
    async with serving(tokens) as (server, client):
        statuses = []
        for key, payload in (private, claims), (private, late), (stranger, claims):
            assertion = jwt.encode(payload, key, "RS384", headers={"kid": "k1"})
            grant = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
            answered = await post(client, server.url(), grant)
            statuses.append((answered.status, json.loads(answered.content).get("error")))
        assert statuses == [(200, None), (400, "invalid_grant"), (400, "invalid_grant")]
        [(headers, found)] = tokens.assertions
        assert (headers["kid"], headers["alg"], found["aud"]) == ("k1", "RS384", "https://a.example/token")


# --- encryption ---


@pytest.mark.parametrize("http2", [False, True])
async def test_both_versions_of_http_are_served_by_the_same_routes(certificates: Certificates, http2: bool) -> None:
    async def echo(request: Request) -> Answer:
        return Response(200, (("X-Query", request.query),), request.body)

    routes: dict[str, Route] = {
        "/echo": echo,
        "/pieces": Response(body=pieces(b"a", b"b")),
        "/raw": Raw(b"x"),
        "/none": Response(204),
    }
    context = trusting(certificates, "client")
    tls = certificates.server(asks_for_a_certificate=True)
    with trio.fail_after(5):
        async with open_http_server(routes, tls=tls, http2=True) as server:
            async with httpcore2.AsyncConnectionPool(context, http2=http2) as client:
                named = {"sni_hostname": "server.example"}
                answered = await client.request("POST", server.url("/echo?a"), content=b"body", extensions=named)
                version = "2" if http2 else "1.1"
                assert (answered.status, answered.content, header(answered, "x-query")) == (200, b"body", "a")
                assert header(answered, "content-length") == "4"
                assert answered.extensions["http_version"] == f"HTTP/{version}".encode()
                assert (await client.request("GET", server.url("/pieces"))).content == b"ab"
                assert (await client.request("GET", server.url("/none"))).status == 204
                with pytest.raises(httpcore2.RemoteProtocolError):
                    await client.request("GET", server.url("/raw"))
                assert (await client.request("GET", server.url("/none"))).status == 204
                assert server.open == 1
            await server.wait_open(0)
            first = server.requests[0]
            assert (first.http, first.path, first.query, first.body) == (version, "/echo", "a", b"body")
            assert first.header("host") == server.address
            assert [(one.connection, one.nth) for one in server.requests] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
            assert first.tls is not None
            assert first.tls.version == "TLSv1.3"
            assert first.tls.alpn == ("h2" if http2 else "http/1.1")
            assert (first.tls.sni, first.tls.client) == ("server.example", "client")


async def test_an_http2_connection_stays_and_other_streams_go_on_when_one_hangs(
    certificates: Certificates, autojump_clock: trio.testing.MockClock
) -> None:
    routes: dict[str, Route] = {"/hang": hang, "/": Response(body=drip(b"abc", every=100))}
    with trio.fail_after(1000):
        async with (
            open_http_server(routes, tls=certificates.server(), http2=True) as server,
            httpcore2.AsyncConnectionPool(trusting(certificates), http2=True) as client,
            trio.open_nursery() as nursery,
        ):
            assert (await client.request("GET", server.url())).content == b"abc"
            await trio.sleep(100)  # idle connections stay
            nursery.start_soon(client.request, "GET", server.url("/hang"))
            await server.wait_requests(2)
            assert (await client.request("GET", server.url())).content == b"abc"
            assert (server.accepted, server.open) == (1, 1)
            nursery.cancel_scope.cancel()


async def test_certificates_are_good_for_what_they_are_for(certificates: Certificates) -> None:
    async def ask(client: ssl.SSLContext, server_context: ssl.SSLContext) -> str:
        async with (
            open_http_server({"/": Response()}, tls=server_context) as server,
            httpcore2.AsyncConnectionPool(client) as pool,
        ):
            try:
                await pool.request("GET", server.url())
            except (httpcore2.ConnectError, httpcore2.ReadError) as error:
                return str(error.args[0].__cause__)
            assert server.requests[0].tls
            return str(server.requests[0].tls.version)

    mutual = certificates.server(asks_for_a_certificate=True)
    trust = trusting(certificates)
    with trio.fail_after(5):
        assert await ask(trust, certificates.server()) == "TLSv1.3"
        assert await ask(trust, certificates.server(newest=ssl.TLSVersion.TLSv1_2)) == "TLSv1.2"
        assert "unable to get local issuer" in await ask(trust, certificates.server("stranger"))
        assert "IP address mismatch" in await ask(trust, certificates.server("misnamed"))
        assert await ask(trusting(certificates, "client"), mutual) == "TLSv1.3"
        assert "certificate required" in (await ask(trust, mutual)).replace("_", " ").lower()
        assert "unknown ca" in (await ask(trusting(certificates, "stranger"), mutual)).lower()


# --- proxies ---


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_proxy_forwards_requests_and_connections(certificates: Certificates, encrypted: bool) -> None:
    context = trusting(certificates)
    routes = {"/a": Response(body=b"found")}
    with trio.fail_after(5):
        async with (
            open_http_server(routes) as plain,
            open_http_server(routes, tls=certificates.server(), http2=True) as secure,
            open_http_proxy(credentials=("u", "p"), tls=certificates.server() if encrypted else None) as proxy,
        ):
            through = httpcore2.Proxy(
                proxy.url, ("u", "p"), {"X-Proxy": "1"}, trusting(certificates) if encrypted else None
            )
            async with httpcore2.AsyncConnectionPool(context, through, http2=True) as client:
                for server in plain, secure:
                    url = server.url("/a?b", host="server.example")
                    answered = await client.request("POST", url, content=b"body", headers={"Connection": "keep-alive"})
                    assert answered.content == b"found"
                    [request] = server.requests
                    assert (request.method, request.target, request.body) == ("POST", "/a?b", b"body")
                    assert request.header("proxy-authorization") is None
                assert plain.requests[0].header("connection") == "close"
                again = await client.request("GET", plain.url("/a"))
                assert again.content == b"found"
            forwarded, tunnelled, _ = proxy.requests
            assert (forwarded.method, forwarded.target) == ("POST", f"http://server.example:{plain.port}/a?b")
            assert (tunnelled.method, tunnelled.target) == ("CONNECT", f"server.example:{secure.port}")
            assert all(request.header("x-proxy") == "1" for request in proxy.requests)
            assert [request.tls is not None for request in proxy.requests] == [encrypted] * 3
            assert [request.http for request in secure.requests] == ["2"]
            await proxy.wait_open(0)


async def test_a_proxy_refuses_fails_and_hangs(certificates: Certificates) -> None:
    with trio.fail_after(5):
        async with open_http_server(hang) as gone:
            pass
        async with open_http_proxy(credentials=("u", "p")) as proxy:
            for scheme in "http", "https":
                url = f"{scheme}://127.0.0.1:{gone.port}/"
                for credentials, status in (("u", "x"), 407), (None, 407), (("u", "p"), 502):
                    async with httpcore2.AsyncConnectionPool(
                        trusting(certificates), httpcore2.Proxy(proxy.url, credentials)
                    ) as client:
                        if scheme == "https":
                            with pytest.raises(httpcore2.ProxyError, match=str(status)):
                                await client.request("GET", url)
                        else:
                            assert (await client.request("GET", url)).status == status
            proxy.hangs = True
            async with (
                httpcore2.AsyncConnectionPool(proxy=httpcore2.Proxy(proxy.url)) as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(client.request, "GET", f"http://127.0.0.1:{gone.port}/")
                await proxy.wait_requests(7)
                await trio.testing.wait_all_tasks_blocked()
                assert proxy.open == 1
                nursery.cancel_scope.cancel()
            await proxy.wait_open(0)


@pytest.mark.parametrize("credentials", [None, ("u", "p")])
async def test_a_socks_proxy_forwards_connections(
    certificates: Certificates, credentials: tuple[str, str] | None
) -> None:
    with trio.fail_after(5):
        async with (
            open_http_server({"/": Response(body=b"found")}, tls=certificates.server()) as server,
            open_socks5_proxy(credentials=credentials) as proxy,
        ):
            through = httpcore2.Proxy(proxy.url, credentials)
            async with httpcore2.AsyncConnectionPool(trusting(certificates), through) as client:
                for host in "127.0.0.1", "server.example":
                    assert (await client.request("GET", server.url(host=host))).content == b"found"
            assert proxy.requests == [
                SocksRequest("ipv4", "127.0.0.1", server.port, credentials),
                SocksRequest("name", "server.example", server.port, credentials),
            ]
            await proxy.wait_open(0)


@pytest.mark.parametrize(
    ("credentials", "sent", "answer"),
    [
        (("u", "p"), b"\x05\x01\0", b"\x05\xff"),  # the client offers no way to show credentials
        (None, b"\x05\x01\x02", b"\x05\xff"),  # the client wants to show some
        (("u", "p"), b"\x05\x02\0\x02\x01\x01u\x01x", b"\x05\x02\x01\x01"),
        (None, b"\x05\x01\0\x05\x01\0\x04" + IPv6Address("::1").packed + b"%b", b"\x05\0\x05\x05\0\x01" + bytes(6)),
        (None, b"\x05\x01\0\x05\x01\0\x03\x01a%b", b"\x05\0\x05\x05\0\x01" + bytes(6)),
    ],
)
async def test_a_socks_proxy_refuses_and_fails(credentials: tuple[str, str] | None, sent: bytes, answer: bytes) -> None:
    with trio.fail_after(5):
        async with open_http_server(hang) as gone:
            pass
        async with open_socks5_proxy(credentials=credentials) as proxy:
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as stream:
                await stream.send_all(sent.replace(b"%b", gone.port.to_bytes(2, "big")))
                answered = b""
                while received := await stream.receive_some():
                    answered += received
            assert answered == answer
            asked = [("ipv6", "::1") if b"\x04" in sent else ("name", "a")] if b"%b" in sent else []
            assert proxy.requests == [SocksRequest(kind, host, gone.port, None) for kind, host in asked]


async def test_a_socks_proxy_hangs() -> None:
    with trio.fail_after(5):
        async with open_socks5_proxy() as proxy:
            proxy.hangs = True
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as stream:
                await stream.send_all(b"\x05\x01\0\x05\x01\0\x03\x01a\0\x50")
                await proxy.wait_requests(1)
                await trio.testing.wait_all_tasks_blocked()
                assert await stream.receive_some() == b"\x05\0"
                assert proxy.open == 1
            await proxy.wait_open(0)
