"""The HTTP client asks, follows and gives up as Prometheus does, leaves nothing open, and shows no secret.

Servers and proxies are real, on loopback. Names are made up, and all are 127.0.0.1. Where time has to pass, it is that
of a clock that runs faster than others, or is moved.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.config import decode, parse_yaml
from trio_sd.errors import TrioSDError
from trio_sd.http_client import Answer, HTTPClient, HTTPError, open_http_client, shared_http_client
from trio_sd.http_config import JWT_BEARER, HTTPClientConfig
from trio_sd.limits import Limits
from trio_sd.resources import Resources
from trio_sd.secrets import Secret, SecretError
from trio_sd.testing import CancelAfter
from trio_sd.tls import TLSConfig, TLSError

from .http_proxies import open_http_proxy, open_socks5_proxy
from .http_servers import Answer as Sent
from .http_servers import (
    Certificates,
    Raw,
    Request,
    Response,
    Route,
    Switch,
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
    redirect,
    requires_basic,
    sequence,
    stale,
    stall,
)

SECRET: Final = "hunter2"
OK: Final = json_response([])
NAMES: Final = ("a.test", "sub.a.test", "nota.test", "b.test", "c.test")


@pytest.fixture
def clock() -> MockClock:
    """Runs fast, for what pauses; and can be moved."""
    return MockClock(rate=20)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert SECRET not in caplog.text


class Lookups:
    """What stands for the system's ``getaddrinfo``: knows some names, and hangs with others until the test is over."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *args: Any, **options: Any) -> Any:  # Any: whatever the real one has
        if not str(host).endswith((".test", ".invalid")):
            return self._real(host, *args, **options)
        self.asked[host] += 1
        if host.startswith("hanging"):
            self.over.wait(20)
        if host in NAMES:
            return self._real("127.0.0.1", *args, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    lookups = Lookups()
    monkeypatch.setattr(socket, "getaddrinfo", lookups)
    yield lookups
    lookups.over.set()


def config(**keys: object) -> HTTPClientConfig:
    node = parse_yaml(json.dumps(keys).encode(), file="f.yml", limits=Limits())
    return HTTPClientConfig() if node is None else decode(node, HTTPClientConfig)


@asynccontextmanager
async def opened(**keys: object) -> AsyncIterator[HTTPClient]:
    with trio.fail_after(100):
        async with open_http_client(config(**keys)) as client:
            yield client


async def get(
    client: HTTPClient,
    url: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    credentials: Sequence[tuple[str, Secret]] = (),
    deadline: float = 60,
    max_bytes: int = 100_000,
) -> Answer:
    return await client.get(url, headers=headers, credentials=credentials, deadline=deadline, max_bytes=max_bytes)


async def refused(client: HTTPClient, url: str, *, deadline: float = 60, max_bytes: int = 100_000) -> str:
    """Return why there is no answer that can be used."""
    with pytest.raises(TrioSDError) as caught:
        await get(client, url, deadline=deadline, max_bytes=max_bytes)
    assert SECRET not in f"{caught.value} {caught.value!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def open_files() -> Counter[str]:
    """Return how many file descriptors there are of each kind, but Trio's own and those of idle threads."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            kinds[os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]] += 1
    return kinds


# --- requests ---


async def test_a_request_says_who_asks_and_asks_for_no_compression() -> None:
    async with open_http_server(lambda _: _ok()) as server, opened() as client:
        answer = await get(client, server.url("/sd?a=b"), headers=[("Accept", "application/json"), ("X-A", "b")])
        assert (answer.status, answer.reason, answer.body) == (200, "OK", b"[]")
        assert answer.header("content-type") == "application/json"
        [request] = server.requests
        assert request.method == "GET"
        assert sorted(request.headers) == [
            ("accept", "application/json"),
            ("host", server.address),
            ("user-agent", "trio-sd"),
            ("x-a", "b"),
        ]


async def _ok() -> Sent:
    return OK


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/"),
        ("?a=b", "/?a=b"),
        ("/a%2Fb/c%20d", "/a%2Fb/c%20d"),
        ("/a b", "/a%20b"),
        ("/é?ü=ö", "/%C3%A9?%C3%BC=%C3%B6"),
        ("/a;b=c,d@e:f", "/a;b=c,d@e:f"),
        ("/a?x=1&y=a+b%26c&z=http://h/p?q", "/a?x=1&y=a+b%26c&z=http://h/p?q"),
        ("/a#fragment", "/a"),
        ("//a/../b", "//a/../b"),
    ],
)
async def test_a_path_is_asked_for_as_it_was_written(path: str, target: str) -> None:
    async with open_http_server(lambda _: _ok()) as server, opened() as client:
        await get(client, server.url(path))
        assert [request.target for request in server.requests] == [target]


@pytest.mark.parametrize("host", ["a.test", "A.Test"])
@pytest.mark.usefixtures("lookups")
async def test_the_host_is_named(host: str) -> None:
    async with open_http_server(lambda _: _ok()) as server, opened() as client:
        await get(client, server.url(host=host))
        assert server.requests[0].header("host") == f"a.test:{server.port}"


async def test_an_ipv6_address_is_a_host() -> None:
    async with open_http_server(lambda _: _ok(), host="::1") as server, opened() as client:
        await get(client, server.url())
        assert server.requests[0].header("host") == f"[::1]:{server.port}"


@pytest.mark.parametrize(
    "url", ["ftp://h/", "http://", "http:///a", "h:80", "http://h:x/", "http://[::1/", "http://h:99999/", "", "\n"]
)
async def test_what_is_no_url_of_http_is_an_error(url: str) -> None:
    async with opened() as client:
        assert "can't ask" in await refused(client, url)


async def test_a_name_that_is_none_is_an_error(clock: MockClock) -> None:
    async with opened() as client:
        for host in "a..b", "x" * 64, "." * 3 + "a", f"{'é' * 64}.test":
            assert await refused(client, f"http://{host}/")


# --- connections ---


async def test_connections_are_kept_and_do_not_grow_in_number() -> None:
    both = trio.Event()

    async def together(request: Request) -> Sent:
        if len(server.requests) % 5 == 0:
            both.set()
        await both.wait()
        return OK

    async with open_http_server(together) as server, opened() as client:
        for _ in range(4):
            both = trio.Event()
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(get, client, server.url())
        assert len(server.requests) == 20
        assert (server.accepted, server.open) == (5, 5)
    await server.wait_open(0)


async def test_a_connection_that_the_server_closes_after_each_answer_leaves_nothing_behind() -> None:
    closing = Response(200, (("Connection", "close"),), b"[]", closes=True)

    def streams() -> int:
        gc.collect()
        return sum(isinstance(thing, trio.SocketStream) for thing in gc.get_objects())

    async with open_http_server({"/": closing}) as server, opened() as client:
        await get(client, server.url())
        await server.wait_open(0)
        await wait_all_tasks_blocked()
        before = streams()
        for _ in range(10):
            await get(client, server.url())
        await server.wait_open(0)
        await wait_all_tasks_blocked()
        assert server.accepted == 11
        assert streams() <= before + 1


async def test_a_kept_connection_that_the_server_closes_at_the_next_request_is_not_noticed(clock: MockClock) -> None:
    async with open_http_server({"/": stale(OK)}) as server, opened() as client:
        for _ in range(3):
            assert (await get(client, server.url())).status == 200
        assert [(request.connection, request.nth) for request in server.requests] == [
            *((1, 1), (1, 2), (2, 1), (2, 2), (3, 1))
        ]


async def test_a_connection_that_was_closed_meanwhile_is_not_tried() -> None:
    async with open_http_server({"/": OK}) as server, opened() as client:
        await get(client, server.url())
        server.drop_connections()
        await server.wait_open(0)
        began = trio.current_time()
        await get(client, server.url())
        assert trio.current_time() - began < 0.09, "no pause was made"
        assert (server.accepted, len(server.requests)) == (2, 2)


async def test_what_nobody_needs_for_five_minutes_is_closed(mock_clock: MockClock) -> None:
    async with (
        open_http_server({"/": OK}) as server,
        open_http_server({"/": OK}) as other,
        open_http_client(config()) as client,
    ):
        await get(client, server.url())
        mock_clock.jump(299)
        await get(client, other.url())
        await wait_all_tasks_blocked()
        assert (server.open, other.open) == (1, 1)
        mock_clock.jump(61)
        await get(client, other.url())
        await server.wait_open(0)
        assert (other.open, other.accepted) == (1, 1)


async def test_two_clients_share_nothing() -> None:
    async with open_http_server({"/": OK}) as server, opened() as one, opened() as two:
        for client in one, two, one, two:
            await get(client, server.url())
        assert [request.connection for request in server.requests] == [1, 2, 1, 2]
        one.close()
        await server.wait_open(1)
        await get(two, server.url())
        assert server.accepted == 2


async def test_everything_is_closed_with_the_client() -> None:
    before = open_files()
    async with open_http_server({"/": OK}) as server:
        listening = open_files()
        async with opened() as client:
            await get(client, server.url())
            assert open_files() - listening
        await server.wait_open(0)
        assert open_files() == listening
    assert open_files() == before


# --- who one is ---


@pytest.mark.parametrize(
    ("keys", "authorization"),
    [
        ({"basic_auth": {"username": "u", "password": SECRET}}, basic("u", SECRET)),
        ({"basic_auth": {"username": "u"}}, basic("u", "")),
        ({"basic_auth": {"password": "é:" + SECRET}}, basic("", "é:" + SECRET)),
        ({"bearer_token": SECRET}, f"Bearer {SECRET}"),
        ({"authorization": {"credentials": SECRET}}, f"Bearer {SECRET}"),
        ({"authorization": {"type": " Token ", "credentials": SECRET}}, f"Token {SECRET}"),
        ({"authorization": {}}, "Bearer"),
    ],
)
async def test_who_one_is_is_told(keys: dict[str, object], authorization: str) -> None:
    async with open_http_server(lambda _: _ok()) as server, opened(**keys) as client:
        await get(client, server.url())
        assert server.requests[0].header("authorization") == authorization


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"basic_auth": {"username": "u", "password_file": "FILE"}}, lambda text: basic("u", text)),
        ({"basic_auth": {"username_file": "FILE", "password": "p"}}, lambda text: basic(text, "p")),
        ({"bearer_token_file": "FILE"}, "Bearer {}".format),
        ({"authorization": {"credentials_file": "FILE"}}, "Bearer {}".format),
    ],
)
async def test_files_are_read_for_each_request(
    keys: dict[str, object], expected: Callable[[str], str], tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    named = json.loads(json.dumps(keys).replace("FILE", str(file)))
    async with open_http_server(lambda _: _ok()) as server, opened(**named) as client:
        for text in SECRET, "rotated":
            file.write_text(f" {text}\n")
            await get(client, server.url())
            assert server.requests[-1].header("authorization") == expected(text)
        file.unlink()
        assert await refused(client, server.url()) == f'can\'t read "{file}": No such file or directory'
        file.write_text("back")
        await get(client, server.url())
        assert [request.connection for request in server.requests] == [1, 1, 1], "no request without a secret"


async def test_headers_have_all_their_values(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from a file\n")
    headers = {
        "X-One": {"values": ["a"]},
        "X-Many": {"values": ["a", "b"], "secrets": [SECRET], "files": [str(tmp_path / "f")]},
        "X-None": {},
    }
    async with open_http_server(lambda _: _ok()) as server, opened(http_headers=headers) as client:
        await get(client, server.url())
        found = [(name, value) for name, value in server.requests[0].headers if name.startswith("x-")]
        assert found == [
            ("x-one", "a"),
            ("x-many", "a"),
            ("x-many", "b"),
            ("x-many", SECRET),
            ("x-many", "from a file"),
        ]
        (tmp_path / "f").write_bytes(b"a\nb")
        assert "control character" in await refused(client, server.url())


@pytest.mark.parametrize("name", ["X Y", "X\u00e9", "X:Y", ""])
async def test_a_header_that_none_can_be_is_an_error_that_does_not_show_it(name: str, clock: MockClock) -> None:
    headers = {name: {"secrets": [SECRET]}}
    async with open_http_server({"/": OK}) as server, opened(http_headers=headers) as client:
        assert await refused(client, server.url())


async def test_a_user_in_the_url_wins() -> None:
    keys = {"basic_auth": {"username": "other", "password": "other"}}
    async with open_http_server({"/": requires_basic("us:er", SECRET, OK)}) as server, opened(**keys) as client:
        url = server.url().replace("//", f"//us%3Aer:{SECRET}@")
        assert (await get(client, url)).status == 200
        assert server.requests[0].header("authorization") == basic("us:er", SECRET)
        assert len([name for name, _ in server.requests[0].headers if name == "authorization"]) == 1
        await get(client, server.url())
        assert server.requests[1].header("authorization") == basic("other", "other")


async def test_a_password_in_the_url_is_not_shown(clock: MockClock) -> None:
    async with open_http_server({"/": Raw(), "/to": redirect(f"ftp://u:{SECRET}@h/")}) as server, opened() as client:
        assert "disconnected" in await refused(client, server.url("/").replace("//", f"//u:{SECRET}@"))
        assert "ftp://u:xxxxx@h/" in await refused(client, server.url("/to"))
        for url in f"http://u:{SECRET}@h:x/", f"http://u:{SECRET}@[/", f"ftp://u:{SECRET}@h/", f"http://u:{SECRET}@/":
            assert await refused(client, url)


# --- OAuth 2 ---


def oauth2(token_url: str, **keys: object) -> dict[str, object]:
    return {"oauth2": {"client_id": "client", "client_secret": SECRET, "token_url": token_url, **keys}}


def endpoint(**options: Any) -> TokenEndpoint:  # Any: whatever it has
    return TokenEndpoint(("client", SECRET), **options)


@asynccontextmanager
async def guarded(
    tokens: TokenEndpoint, route: Route = OK, **keys: object
) -> AsyncIterator[tuple[list[Request], str, HTTPClient]]:
    async with (
        open_http_server({"/token": tokens, "/": tokens.protect(route)}) as server,
        opened(**oauth2(server.url("/token"), **keys)) as client,
    ):
        yield server.requests, server.url(), client


def paths(requests: Sequence[Request]) -> list[str]:
    return [request.path for request in requests]


@pytest.mark.parametrize(
    ("style", "asked"), [("basic", ["/token", "/", "/"]), ("form", ["/token", "/token", "/", "/"])]
)
async def test_a_token_is_got_once(style: str, asked: list[str]) -> None:
    async with guarded(endpoint(styles=[style]), scopes=["a", "b"], endpoint_params={"x": "y"}) as (seen, url, client):
        assert [(await get(client, url)).status for _ in range(2)] == [200, 200]
        assert paths(seen) == asked
        form = {"grant_type": "client_credentials", "scope": "a b", "x": "y"}
        assert seen[0].form == form
        assert seen[0].header("authorization") == basic("client", SECRET)
        if style == "form":
            assert seen[1].form == {**form, "client_id": "client", "client_secret": SECRET}
            assert seen[1].header("authorization") is None
        assert seen[-1].header("authorization") == "Bearer token-1"


async def test_a_token_that_ends_is_replaced_in_time(clock: MockClock) -> None:
    tokens = endpoint(expires_in=100)
    async with guarded(tokens) as (_, url, client):
        assert (await get(client, url)).status == 200
        clock.jump(80)
        assert (await get(client, url)).status == 200
        assert tokens.issued == ["token-1"]
        clock.jump(12)
        assert (await get(client, url)).status == 200
        assert tokens.issued == ["token-1", "token-2"]


async def test_another_secret_in_the_file_takes_another_token(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    async with (
        open_http_server({"/token": (tokens := endpoint()), "/": tokens.protect(OK)}) as server,
        opened(
            oauth2={"client_id": "client", "client_secret_file": str(file), "token_url": server.url("/token")}
        ) as client,
    ):
        assert (await get(client, server.url())).status == 200
        file.write_text("wrong")
        reason = await refused(client, server.url())
        assert (
            reason
            == f'no token from "{server.url("/token")}": asked for a token, found the status 401: "invalid_client"'
        )
        file.write_text(f"{SECRET}\n")
        assert (await get(client, server.url())).status == 200
        assert len(tokens.issued) == 2


async def test_a_token_that_is_refused_is_replaced_for_the_next_request() -> None:
    tokens = endpoint()
    async with guarded(tokens) as (_, url, client):
        assert (await get(client, url)).status == 200
        tokens._good_until.clear()
        assert (await get(client, url)).status == 401
        assert (await get(client, url)).status == 200
        assert len(tokens.issued) == 2


async def test_requests_at_one_time_get_one_token() -> None:
    tokens = endpoint()
    async with guarded(tokens) as (seen, url, client):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(get, client, url)
        assert paths(seen) == ["/token"] + ["/"] * 5
        assert len(tokens.issued) == 1


async def test_who_waits_for_a_token_is_not_held_up_by_one_that_gives_up(clock: MockClock) -> None:
    tokens = endpoint()
    switch = Switch(hang)
    async with (
        open_http_server({"/token": switch, "/": tokens.protect(OK)}) as server,
        opened(**oauth2(server.url("/token"))) as client,
        trio.open_nursery() as nursery,
    ):
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await get(client, server.url())).status)

        scope = trio.CancelScope()

        async def ask_in_vain() -> None:
            with scope:
                await ask()

        nursery.start_soon(ask_in_vain)
        await server.wait_requests(1)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        switch.route = tokens
        scope.cancel()
        while not statuses:
            await trio.testing.wait_all_tasks_blocked()
        assert statuses == [200]


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (json_response({"error": "invalid_client", "error_description": "no\x1b[1m"}, 401), "invalid_client"),
        (Response(500, (), SECRET.encode()), "found the status 500"),
        (redirect("/elsewhere"), "found the status 302"),
        (json_response({"token_type": "Bearer"}), "access_token is missing"),
        (Response(200, (), f"{SECRET} <html>".encode()), "it is not JSON"),
        (json_response({"access_token": f"{SECRET}\n"}), "control character"),
        (Raw(), "disconnected"),
        (Raw(SECRET.encode() * 99_999), "no token from"),
        (Response(200, (), endless()), "longer than"),
    ],
)
async def test_a_token_that_can_not_be_had_is_told_without_secrets(route: Route, reason: str, clock: MockClock) -> None:
    async with (
        open_http_server({"/token": route, "/": OK}) as server,
        opened(**oauth2(server.url("/token").replace("//", f"//u:{SECRET}@"))) as client,
    ):
        message = await refused(client, server.url())
        assert message.startswith(f'no token from "{server.url("/token").replace("//", "//u:xxxxx@")}": ')
        assert reason in message
        assert "/" not in paths(server.requests)


async def test_where_tokens_are_got_has_an_encryption_and_a_proxy_of_its_own(certificates: Certificates) -> None:
    tokens = endpoint()
    trusted = {"ca_file": certificates.path("authority.crt")}
    async with (
        open_http_server({"/token": tokens}, tls=certificates.server()) as issuer,
        open_http_server({"/": tokens.protect(OK)}) as server,
        open_http_proxy(credentials=("p", SECRET)) as proxy,
    ):
        proxy_url = proxy.url.replace("//", f"//p:{SECRET}@")
        async with opened(**oauth2(issuer.url("/token"), tls_config=trusted, proxy_url=proxy_url)) as client:
            assert (await get(client, server.url())).status == 200
            assert [request.target for request in proxy.requests] == [issuer.address]
        async with opened(**oauth2(issuer.url("/token"))) as client:
            assert "certificate of the server can't be trusted" in await refused(client, server.url())
        async with opened(**oauth2(issuer.url("/token"), tls_config=trusted, proxy_url=proxy.url)) as client:
            assert "407" in await refused(client, server.url())


async def test_a_token_for_a_signed_assertion() -> None:
    private, public = new_rsa_key()
    tokens = TokenEndpoint(public_key=public)
    async with open_http_server({"/token": tokens, "/": tokens.protect(OK)}) as server:
        section = {
            "client_id": "me",
            "client_certificate_key": private,
            "client_certificate_key_id": "k1",
            "grant_type": JWT_BEARER,
            "claims": {"team": {"a": [1, True]}},
            "audience": "them",
            "token_url": server.url("/token"),
        }
        async with opened(oauth2=section) as client:
            assert (await get(client, server.url())).status == 200
        [(header, claims)] = tokens.assertions
        assert header["kid"] == "k1"
        assert (claims["iss"], claims["sub"], claims["aud"]) == ("me", "me", "them")
        assert claims["team"] == {"a": [1, True]}


async def test_a_token_is_shown_though_the_url_has_a_user() -> None:
    """As golang.org/x/oauth2 does: its transport sets the header whatever there is."""
    async with guarded(endpoint()) as (seen, url, client):
        assert (await get(client, url.replace("//", "//u:p@"))).status == 200
        assert seen[-1].header("authorization") == "Bearer token-1"


async def test_another_host_that_refuses_a_request_says_nothing_about_the_token() -> None:
    tokens = endpoint()
    async with (
        open_http_server({"/": Response(401)}) as elsewhere,
        guarded(tokens, redirect(elsewhere.url(host="localhost"))) as (_, url, client),
    ):
        for _ in range(3):
            assert (await get(client, url)).status == 401
        assert elsewhere.requests[0].header("authorization") is None
        assert tokens.issued == ["token-1"]


# --- TLS ---


def trusting(certificates: Certificates, **keys: object) -> dict[str, object]:
    return {"tls_config": {"ca_file": certificates.path("authority.crt"), **keys}}


@pytest.mark.parametrize(
    ("server", "keys", "reason"),
    [
        ("server", {}, "unable to get local issuer certificate"),
        ("server", {"ca_file": "other.crt"}, "certificate"),
        ("misnamed", {"ca_file": "authority.crt"}, "127.0.0.1"),
        ("server", {"ca_file": "authority.crt", "server_name": "x.example"}, "x.example"),
        ("server", {"ca_file": "authority.crt"}, ""),
        ("misnamed", {"ca_file": "authority.crt", "server_name": "misnamed.example"}, ""),
        ("misnamed", {"insecure_skip_verify": True}, ""),
        ("stranger", {"insecure_skip_verify": True, "server_name": "x.example"}, ""),
        ("server", {"ca": "authority.crt"}, ""),
    ],
)
async def test_who_the_server_is_is_checked(
    certificates: Certificates, server: str, keys: dict[str, Any], reason: str
) -> None:
    section = dict(keys)
    if "ca_file" in keys:
        section["ca_file"] = certificates.path(keys["ca_file"])
    if "ca" in keys:
        section["ca"] = Path(certificates.path(keys["ca"])).read_text()
    async with (
        open_http_server({"/": OK}, tls=certificates.server(server)) as listening,
        opened(tls_config=section, bearer_token=SECRET) as client,
    ):
        if reason:
            message = await refused(client, listening.url())
            assert message.startswith("the certificate of the server can't be trusted: ")
            assert reason in message
            assert (listening.accepted, listening.requests) == (1, []), "nothing is told, and nothing tried again"
        else:
            assert (await get(client, listening.url())).status == 200
            facts = listening.requests[0].tls
            assert facts
            assert (facts.sni, facts.version) == (keys.get("server_name"), "TLSv1.3")


async def test_the_name_of_the_host_is_asked_for(certificates: Certificates) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server()) as server,
        opened(**trusting(certificates)) as client,
    ):
        await get(client, server.url(host="localhost"))
        assert server.requests[0].tls
        assert server.requests[0].tls.sni == "localhost"


@pytest.mark.parametrize("name", [".example", "a..b", "x" * 64])
async def test_a_name_that_no_server_has_is_an_error(certificates: Certificates, name: str, clock: MockClock) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server()) as server,
        opened(**trusting(certificates, server_name=name)) as client,
    ):
        assert await refused(client, server.url())


async def test_a_server_that_wants_a_certificate(certificates: Certificates, clock: MockClock) -> None:
    async with open_http_server({"/": OK}, tls=certificates.server(asks_for_a_certificate=True)) as server:
        async with opened(**trusting(certificates)) as client:
            assert "TLS: " in await refused(client, server.url())
        for name in "client", "stranger":
            files = {"cert_file": certificates.path(f"{name}.crt"), "key_file": certificates.path(f"{name}.key")}
            async with opened(**trusting(certificates, **files)) as client:
                if name == "stranger":
                    assert "TLS: " in await refused(client, server.url())
                else:
                    await get(client, server.url())
        assert [request.tls and request.tls.client for request in server.requests] == ["client"]


class Rotated:
    """Files of a client's certificate, which others take the place of."""

    def __init__(self, certificates: Certificates, directory: Path) -> None:
        self._certificates = certificates
        self._directory = directory
        self.keys = trusting(certificates, cert_file=str(directory / "crt"), key_file=str(directory / "key"))

    def put(self, name: str, *kinds: str) -> None:
        for kind in kinds or ("crt", "key"):
            shutil.copy(self._certificates.path(f"{name}.{kind}"), self._directory / "new")
            (self._directory / "new").rename(self._directory / kind)


async def test_another_certificate_is_taken_and_connections_with_the_old_one_go(
    certificates: Certificates, tmp_path: Path
) -> None:
    rotated = Rotated(certificates, tmp_path)
    rotated.put("client")
    async with (
        open_http_server({"/": OK}, tls=certificates.server(asks_for_a_certificate=True)) as server,
        opened(**rotated.keys) as client,
    ):
        for _ in range(2):
            await get(client, server.url())
        rotated.put("server")
        for _ in range(2):
            await get(client, server.url())
        assert [(request.connection, request.tls and request.tls.client) for request in server.requests] == [
            *((1, "client"), (1, "client"), (2, "server"), (2, "server"))
        ]
        with trio.fail_after(5):
            await server.wait_open(1)


async def test_a_connection_that_was_in_use_when_the_certificate_changed_goes_as_well(
    certificates: Certificates, tmp_path: Path
) -> None:
    rotated = Rotated(certificates, tmp_path)
    rotated.put("client")
    release = trio.Event()

    async def held(request: Request) -> Sent:
        await release.wait()
        return OK

    async with (
        open_http_server({"/": OK, "/held": held}, tls=certificates.server(asks_for_a_certificate=True)) as server,
        opened(**rotated.keys) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, client, server.url("/held"))
            await server.wait_requests(1)
            rotated.put("server")
            await get(client, server.url())
            release.set()
        with trio.fail_after(0.3):
            await server.wait_open(1)


async def test_half_of_another_certificate_is_an_error_for_as_long_as_it_is_half(
    certificates: Certificates, tmp_path: Path
) -> None:
    rotated = Rotated(certificates, tmp_path)
    rotated.put("client")
    async with (
        open_http_server({"/": OK}, tls=certificates.server()) as server,
        opened(**rotated.keys) as client,
    ):
        await get(client, server.url())
        rotated.put("server", "crt")
        with pytest.raises(TLSError, match="the key belongs to another certificate"):
            await get(client, server.url())
        (tmp_path / "key").unlink()
        with pytest.raises(TLSError, match="can't read the client key"):
            await get(client, server.url())
        rotated.put("server", "key")
        assert (await get(client, server.url())).status == 200


@pytest.mark.parametrize(
    ("newest", "keys", "version"),
    [
        (ssl.TLSVersion.TLSv1_2, {"min_version": "TLS13"}, None),
        (ssl.TLSVersion.TLSv1_2, {}, "TLSv1.2"),
        (None, {"max_version": "TLS12"}, "TLSv1.2"),
        (None, {"min_version": "TLS13"}, "TLSv1.3"),
    ],
)
async def test_versions(
    certificates: Certificates,
    newest: ssl.TLSVersion | None,
    keys: dict[str, object],
    version: str | None,
    clock: MockClock,
) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server(newest=newest)) as server,
        opened(**trusting(certificates, **keys)) as client,
    ):
        if version is None:
            assert "TLS: " in await refused(client, server.url())
        else:
            await get(client, server.url())
            assert server.requests[0].tls
            assert server.requests[0].tls.version == version


async def test_https_asked_of_a_server_without_it_is_told(certificates: Certificates, clock: MockClock) -> None:
    async with open_http_server({"/": OK}) as server, opened(**trusting(certificates)) as client:
        assert "TLS: " in await refused(client, server.url().replace("http:", "https:"))


async def test_requests_that_begin_together_share_what_is_read(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = TLSConfig.context

    def counted(config: TLSConfig) -> ssl.SSLContext:
        made.append(config)
        return make(config)

    monkeypatch.setattr(TLSConfig, "context", counted)
    async with (
        open_http_server({"/": OK}, tls=certificates.server()) as server,
        opened(**trusting(certificates)) as client,
    ):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(get, client, server.url())
        assert len(made) == 1, "the system's certificates take long to read"
        assert server.accepted <= 5, "connections are kept for those who come next"


# --- HTTP/2 ---


@pytest.mark.parametrize(("enabled", "version"), [(True, "2"), (False, "1.1"), (None, "2")])
async def test_http2_is_spoken_where_it_may_be(certificates: Certificates, enabled: bool | None, version: str) -> None:
    keys = trusting(certificates) | ({} if enabled is None else {"enable_http2": enabled})
    headers = {"X-Many": {"values": ["a", "b"]}}
    async with (
        open_http_server({"/": OK}, tls=certificates.server(), http2=True) as server,
        opened(**keys, http_headers=headers, bearer_token=SECRET) as client,
    ):
        for _ in range(3):
            answer = await get(client, server.url("/?a=é"))
            assert (answer.status, answer.body) == (200, b"[]")
        assert {(request.http, request.target, request.connection) for request in server.requests} == {
            (version, "/?a=%C3%A9", 1)
        }
        assert server.requests[2].header("authorization") == f"Bearer {SECRET}"
        assert server.requests[2].header("x-many") == "a, b"


async def test_no_http2_without_encryption() -> None:
    async with open_http_server({"/": OK}) as server, opened(enable_http2=True) as client:
        await get(client, server.url())
        assert server.requests[0].http == "1.1"


async def test_http2_that_goes_away_is_tried_again(certificates: Certificates, clock: MockClock) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server(), http2=True) as server,
        opened(**trusting(certificates)) as client,
    ):
        await get(client, server.url())
        server.drop_connections()
        await server.wait_open(0)
        assert (await get(client, server.url())).status == 200


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("length", [1, 100])
async def test_a_body_of_another_length_than_it_says_is_an_error(
    certificates: Certificates, http2: bool, length: int, clock: MockClock
) -> None:
    async with (
        open_http_server({"/": lying_length(length, b"[12345]")}, tls=certificates.server(), http2=http2) as server,
        opened(**trusting(certificates)) as client,
    ):
        if http2 or length > 7:
            with pytest.raises(HTTPError):
                await get(client, server.url())
        else:
            assert (await get(client, server.url())).body == b"["


@pytest.mark.parametrize("body", [endless(), b" " * 200_000])
async def test_http2_bodies_are_limited(certificates: Certificates, body: Any) -> None:
    async with (
        open_http_server({"/": Response(200, (), body)}, tls=certificates.server(), http2=True) as server,
        opened(**trusting(certificates)) as client,
    ):
        assert "limit http_body_bytes" in await refused(client, server.url())


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 400 Bad\r\n\r\n" * 9,
        bytes.fromhex("00000c040000000000"),  # a frame of settings that ends too early
        bytes.fromhex("00000408000000000000000000"),  # a window that does not grow
        bytes.fromhex("000001000400000007") + b"x",  # data of a stream that there is not
        bytes.fromhex("000002010400000001") + b"\xff\xff",  # headers that can't be decoded
        b"",
    ],
)
@pytest.mark.parametrize("after_headers", [False, True])
async def test_nonsense_instead_of_http2_is_an_error(
    certificates: Certificates, nonsense: bytes, after_headers: bool, clock: MockClock
) -> None:
    context = certificates.server()
    context.set_alpn_protocols(["h2"])
    settings, head = bytes.fromhex("000000040000000000"), bytes.fromhex("00000101040000000188")  # `:status: 200`

    async def serve(transport: trio.SocketStream) -> None:
        stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.receive_some()
            await stream.send_all(settings)
            if after_headers:
                await stream.send_all(head)
                await stream.receive_some()  # it has read that, and answered to the settings
            await stream.send_all(nonsense)
        await transport.aclose()

    async with serving_bytes(serve) as port, opened(**trusting(certificates)) as client:
        assert "can't be sent" not in await refused(client, f"https://127.0.0.1:{port}/"), "the server is to blame"


@asynccontextmanager
async def serving_bytes(handler: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    """Serve by hand, and give the port."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handler, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(
    "name", ["Transfer-Encoding", "TE", "Upgrade", "Proxy-Connection", "Expect", "Trailer", "Accept", "If-None-Match"]
)
async def test_a_header_with_a_meaning_of_its_own_is_sent_or_is_an_error(
    certificates: Certificates, name: str, http2: bool, clock: MockClock
) -> None:
    headers = {name: {"secrets": [SECRET]}}
    async with (
        open_http_server({"/": OK}, tls=certificates.server(), http2=True) as server,
        opened(**trusting(certificates), http_headers=headers, enable_http2=http2) as client,
    ):
        try:
            assert (await get(client, server.url())).status in (200, 400, 417, 501)
        except HTTPError as error:
            told = str(error)
        else:
            told = ""
        assert SECRET not in told


# --- proxies ---

CONNECT_HEADERS: Final = {"X-Proxy": [SECRET, "two"]}


async def test_a_proxy_forwards(certificates: Certificates) -> None:
    async with open_http_server({"/a": OK}) as server, open_http_proxy(credentials=("us:er", SECRET)) as proxy:
        url = proxy.url.replace("//", f"//us%3Aer:{SECRET}@")
        async with opened(proxy_url=url, proxy_connect_header=CONNECT_HEADERS, bearer_token="token") as client:
            assert (await get(client, server.url("/a?b"))).status == 200
        [asked], [forwarded] = proxy.requests, server.requests
        assert asked.target == server.url("/a?b")
        assert asked.header("proxy-authorization") == basic("us:er", SECRET)
        assert forwarded.header("proxy-authorization") is None
        assert forwarded.header("authorization") == asked.header("authorization") == "Bearer token"
        assert forwarded.header("host") == server.address
        assert forwarded.header("x-proxy") is asked.header("x-proxy") is None, "these are for CONNECT"


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("http2", [False, True])
async def test_a_proxy_makes_a_tunnel(certificates: Certificates, encrypted: bool, http2: bool) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server(), http2=True) as server,
        open_http_proxy(credentials=("u", SECRET), tls=certificates.server() if encrypted else None) as proxy,
        opened(
            **trusting(certificates),
            proxy_url=proxy.url.replace("//", f"//u:{SECRET}@"),
            proxy_connect_header=CONNECT_HEADERS,
            enable_http2=http2,
            bearer_token="token",
            http_headers={"X-Mine": {"values": ["a"]}},
        ) as client,
    ):
        for _ in range(2):
            assert (await get(client, server.url(host="localhost"))).status == 200
        [asked], [forwarded, _] = proxy.requests, server.requests
        assert (asked.method, asked.target) == ("CONNECT", f"localhost:{server.port}")
        assert asked.header("x-proxy") == f"{SECRET}, two"
        assert asked.header("proxy-authorization") == basic("u", SECRET)
        assert asked.header("authorization") is asked.header("x-mine") is None, "the server's affair"
        assert forwarded.header("x-proxy") is forwarded.header("proxy-authorization") is None
        assert forwarded.header("authorization") == "Bearer token"
        assert forwarded.http == ("2" if http2 else "1.1")
        assert forwarded.tls
        assert forwarded.tls.sni == "localhost"


async def test_a_proxy_of_its_own_name_with_a_server_of_another(certificates: Certificates) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server("misnamed")) as server,
        open_http_proxy(tls=certificates.server()) as proxy,
        opened(**trusting(certificates, server_name="misnamed.example"), proxy_url=proxy.url) as client,
    ):
        assert (await get(client, server.url())).status == 200


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_refuses_is_told(certificates: Certificates, scheme: str) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server()) as server,
        open_http_proxy(credentials=("u", "right")) as proxy,
        opened(**trusting(certificates), proxy_url=proxy.url.replace("//", f"//u:{SECRET}@")) as client,
    ):
        url = server.url().replace("https:", f"{scheme}:")
        if scheme == "http":
            assert (await get(client, url)).status == 407
        else:
            assert "the proxy answers: 407 Proxy Authentication Required" in await refused(client, url)
        assert len(proxy.requests) == 1
        assert server.accepted == 0


@pytest.mark.usefixtures("lookups")
async def test_what_no_proxy_is_for() -> None:
    async with (
        open_http_server({"/": OK}) as server,
        open_http_proxy() as proxy,
        opened(proxy_url=proxy.url, no_proxy="a.test, .c.test") as client,
    ):
        for host in "a.test", "sub.a.test", "127.0.0.1":
            await get(client, server.url(host=host))
        assert proxy.requests == []
        for host in "b.test", "nota.test", "c.test":
            await get(client, server.url(host=host))
        assert len(proxy.requests) == 3


@pytest.mark.usefixtures("lookups")
async def test_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD":
        monkeypatch.delenv(name, raising=False)
    async with open_http_server({"/": OK}) as server, open_http_proxy(credentials=("u", SECRET)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", f"//u:{SECRET}@"))
        monkeypatch.setenv("NO_PROXY", "a.test")
        async with opened(proxy_from_environment=True) as client:
            await get(client, server.url(host="a.test"))
            assert proxy.requests == []
            await get(client, server.url(host="b.test"))
            assert len(proxy.requests) == 1
            monkeypatch.setenv("NO_PROXY", "b.test")
            await get(client, server.url(host="b.test"))
            assert len(proxy.requests) == 1
            monkeypatch.setenv("HTTP_PROXY", f"gopher://u:{SECRET}@h")
            assert "HTTP_PROXY" in await refused(client, server.url(host="c.test"))
        async with opened() as client:
            await get(client, server.url(host="c.test"))
            assert len(proxy.requests) == 1, "the environment counts where it was asked for"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("credentials", [None, ("us:er", SECRET)])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_socks_proxy(
    certificates: Certificates, scheme: str, credentials: tuple[str, str] | None, encrypted: bool
) -> None:
    tls = certificates.server() if encrypted else None
    async with open_http_server({"/": OK}, tls=tls) as server, open_socks5_proxy(credentials=credentials) as proxy:
        user = f"us%3Aer:{SECRET}@" if credentials else ""
        async with opened(**trusting(certificates), proxy_url=f"{scheme}://{user}{proxy.address}") as client:
            for host in "server.example", "server.example", "127.0.0.1":
                assert (await get(client, server.url(host=host))).status == 200
        assert [(one.kind, one.host, one.credentials) for one in proxy.requests] == [
            *(("name", "server.example", credentials), ("ipv4", "127.0.0.1", credentials))
        ], "the proxy finds names"


async def test_a_socks_proxy_that_refuses_is_told(clock: MockClock) -> None:
    async with open_http_server({"/": OK}) as server, open_socks5_proxy(credentials=("u", "right")) as proxy:
        for user in f"u:{SECRET}@", "":
            async with opened(proxy_url=proxy.url.replace("//", f"//{user}")) as client:
                assert "the proxy answers: " in await refused(client, server.url())
    async with open_socks5_proxy() as proxy, opened(proxy_url=proxy.url) as client:
        assert "Connection refused" in await refused(client, server.url())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x05", b"\x05\x00\x05", b"\xff" * 99])
async def test_what_is_no_socks_proxy_is_an_error(answer: bytes, clock: MockClock) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            if answer:
                await stream.send_all(answer)
        await stream.aclose()

    async with serving_bytes(serve) as port, opened(proxy_url=f"socks5://127.0.0.1:{port}") as client:
        with pytest.raises(HTTPError):
            await get(client, "http://a.test/")


async def test_a_password_that_is_too_long_for_a_socks_proxy_is_an_error(clock: MockClock) -> None:
    async with (
        open_socks5_proxy(credentials=("u", "p")) as proxy,
        opened(proxy_url=proxy.url.replace("//", f"//u:{SECRET * 50}@")) as client,
    ):
        assert await refused(client, "http://127.0.0.1/")


@pytest.mark.parametrize(
    ("scheme", "target"), [("http", "http://[::1]:8080/a"), ("https", "[::1]:8080")], ids=["forward", "tunnel"]
)
async def test_a_proxy_is_given_an_ipv6_address_in_brackets(scheme: str, target: str) -> None:
    async def refuse(request: Request) -> Sent:
        return Response(403, (("Connection", "close"),))

    async with open_http_server(refuse) as proxy, opened(proxy_url=proxy.url()) as client:
        with suppress(HTTPError):
            await get(client, f"{scheme}://[::1]:8080/a")
        assert [request.target for request in proxy.requests] == [target]
        assert proxy.requests[0].header("host") == "[::1]:8080"


@pytest.mark.parametrize("proxied", ["", "http", "https", "socks5"])
@pytest.mark.parametrize("http2", [False, True])
async def test_an_ipv6_address_is_spoken_to_with_encryption(
    certificates: Certificates, proxied: str, http2: bool
) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server(), http2=True, host="::1") as server,
        open_http_proxy() as http,
        open_http_proxy(tls=certificates.server()) as https,
        open_socks5_proxy() as socks,
    ):
        proxy_url = {"http": http.url, "https": https.url, "socks5": socks.url}.get(proxied, "")
        async with opened(**trusting(certificates), proxy_url=proxy_url, enable_http2=http2) as client:
            for _ in range(2):
                assert (await get(client, server.url())).status == 200
        assert {request.header("host") for request in server.requests} <= {server.address, None}
        assert len(server.requests) == 2
        assert server.accepted == 1
        assert [request.target for request in [*http.requests, *https.requests]] == (
            [server.address] if proxied in ("http", "https") else []
        )


async def test_a_proxy_that_can_not_be_reached_is_named(clock: MockClock) -> None:
    port = await unused_port()
    async with opened(proxy_url=f"http://u:{SECRET}@127.0.0.1:{port}") as client:
        message = await refused(client, "http://a.test/")
        assert "Connection refused" in message
        assert str(port) in message, "not the server, whose URL is shown before the message"


async def unused_port() -> int:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@pytest.mark.parametrize("value", [f"{SECRET}\n", f"\x00{SECRET}", f"a\r\nX: {SECRET}"])
async def test_a_header_for_a_proxy_that_none_can_be_is_not_shown(
    certificates: Certificates, value: str, clock: MockClock
) -> None:
    async with (
        open_http_server({"/": OK}, tls=certificates.server()) as server,
        open_http_proxy() as proxy,
        opened(**trusting(certificates), proxy_url=proxy.url, proxy_connect_header={"X-Key": [value]}) as client,
    ):
        assert await refused(client, server.url())
        assert server.accepted == 0


@pytest.mark.parametrize("proxied", ["", "http", "socks5"])
@pytest.mark.parametrize("http2", [False, True])
async def test_no_secret_is_logged_at_any_level(
    certificates: Certificates, proxied: str, http2: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="hypercorn")
    async with (
        open_http_server({"/": OK}, tls=certificates.server(), http2=True) as server,
        open_http_proxy(credentials=("u", SECRET)) as http,
        open_socks5_proxy(credentials=("u", SECRET)) as socks,
    ):
        caplog.clear()
        through = {"http": http.url, "socks5": socks.url}.get(proxied, "")
        url = {"proxy_url": through.replace("//", f"//u:{SECRET}@")}
        keys = {**trusting(certificates), **url, "bearer_token": SECRET, "enable_http2": http2}
        async with opened(**keys, http_headers={"X-Key": {"secrets": [SECRET]}}) as client:
            await get(client, server.url())
        # The server is in this process, and logs what it decodes: that is not the client's.
        records = [record for record in caplog.records if not record.getMessage().startswith("Decod")]
        shown = [f"{record.name}: {record.getMessage()}" for record in records]
        caplog.clear()
        assert [line for line in shown if SECRET in line] == []


async def test_a_password_that_a_server_sends_is_not_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    to = Switch(OK)
    async with open_http_server({"/": to, "/to": OK}) as server, opened() as client:
        to.route = redirect(server.url("/to").replace("//", f"//u:{SECRET}@"))
        await get(client, server.url())
        assert server.requests[1].header("authorization") == basic("u", SECRET)
    shown = [f"{record.name}: {record.getMessage()}" for record in caplog.records]
    caplog.clear()
    assert [line for line in shown if SECRET in line] == []


# --- redirects ---

PRIVATE: Final = {
    "bearer_token": SECRET,
    "http_headers": {
        "X-Secret": {"secrets": [SECRET]},
        "X-Public": {"values": ["all"]},
        "Cookie": {"values": [f"session={SECRET}"]},
    },
}
OTHERS: Final = (("X-Token", Secret(SECRET)),)


def shows(request: Request) -> tuple[bool, ...]:
    """Return whether a request shows each of what is secret; what is public it always shows."""
    assert request.header("x-public") == "all"
    return tuple(request.header(name) is not None for name in ("authorization", "cookie", "x-secret", "x-token"))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["a.test", "a.test"], [True, True]),
        (["a.test", "sub.a.test"], [True, True]),
        (["a.test", "b.test"], [True, False]),
        (["a.test", "nota.test"], [True, False]),
        (["sub.a.test", "a.test"], [True, False]),
        (["a.test", "b.test", "a.test"], [True, False, False]),
        (["a.test", "sub.a.test", "a.test", "b.test", "sub.a.test"], [True, True, True, False, False]),
        (["127.0.0.1", "localhost"], [True, False]),
        (["localhost", "127.0.0.1"], [True, False]),
    ],
)
@pytest.mark.usefixtures("lookups")
async def test_credentials_stay_at_home(hosts: list[str], expected: list[bool]) -> None:
    async def follow(request: Request) -> Sent:
        step = int(request.path.strip("/")) + 1
        return redirect(server.url(f"/{step}", host=hosts[step])) if step < len(hosts) else OK

    async with open_http_server(follow) as server, opened(**PRIVATE) as client:
        answer = await get(client, server.url("/0", host=hosts[0]), credentials=OTHERS)
        assert answer.status == 200
        assert [shows(request) for request in server.requests] == [(kept,) * 4 for kept in expected]
        assert (await get(client, server.url(f"/{len(hosts) - 1}", host=hosts[0]), credentials=OTHERS)).status == 200
        assert all(shows(server.requests[-1])), "the next request begins at home"


async def test_another_port_of_a_host_is_the_same_host() -> None:
    async with (
        open_http_server({"/": OK}) as other,
        open_http_server({"/": redirect(other.url())}) as server,
        opened(**PRIVATE) as client,
    ):
        await get(client, server.url(), credentials=OTHERS)
        assert all(shows(other.requests[0]))


async def test_oauth2_shows_its_token_to_no_other_host() -> None:
    tokens = endpoint()
    async with (
        open_http_server({"/": OK}) as elsewhere,
        guarded(tokens, redirect(elsewhere.url(host="localhost"))) as (_, url, client),
    ):
        assert (await get(client, url)).status == 200
        assert elsewhere.requests[0].header("authorization") is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?c=d", "/b?c=d"),
        ("b", "/a/b"),
        ("?c", "/a/?c"),
        ("../b", "/b"),
        ("/caf\xc3\xa9", "/caf%C3%A9"),
        ("/a b", "/a%20b"),
        ("/b#c", "/b"),
    ],
)
async def test_a_redirect_is_followed(status: int, location: str, target: str) -> None:
    async def follow(request: Request) -> Sent:
        return redirect(location, status) if request.target == "/a/" else OK

    async with open_http_server(follow) as server, opened() as client:
        await get(client, server.url("/a/").replace("//", "//u:p@"))
        assert [request.target for request in server.requests] == ["/a/", target]
        assert server.requests[1].header("authorization") == basic("u", "p"), "a relative one keeps the user of the URL"


@pytest.mark.parametrize("location", ["ftp://h/", "mailto:x", "http://[::1/", "http://h:x/", "http://[x", "//["])
async def test_a_redirect_to_nowhere_is_an_error(location: str) -> None:
    async with open_http_server({"/": redirect(location)}) as server, opened() as client:
        with pytest.raises(HTTPError):
            await get(client, server.url())
        assert len(server.requests) == 1


async def test_a_redirect_without_a_location_is_an_answer() -> None:
    async with open_http_server({"/": Response(302)}) as server, opened() as client:
        assert (await get(client, server.url())).status == 302


async def test_redirects_in_a_circle_end() -> None:
    async with open_http_server({"/": redirect("/")}) as server, opened() as client:
        assert "redirected 10 times" in await refused(client, server.url())
        assert len(server.requests) == 10


async def test_redirects_are_not_followed_where_they_are_not_to_be() -> None:
    async with open_http_server({"/": redirect("/b")}) as server, opened(follow_redirects=False) as client:
        answer = await get(client, server.url())
        assert (answer.status, answer.header("location"), len(server.requests)) == (302, "/b", 1)


async def test_a_redirect_to_where_nobody_listens_names_that(clock: MockClock) -> None:
    port = await unused_port()
    async with open_http_server({"/": redirect(f"http://127.0.0.1:{port}/")}) as server, opened() as client:
        message = await refused(client, server.url())
        assert "Connection refused" in message
        assert str(port) in message


# --- bodies ---


@pytest.mark.parametrize(("size", "good"), [(1000, True), (1001, False)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_has_a_limit(size: int, good: bool, chunked: bool) -> None:
    body: Any = drip(b" " * size, 0) if chunked else b" " * size
    async with open_http_server({"/": Response(200, (), body)}) as server, opened() as client:
        if good:
            assert len((await get(client, server.url(), max_bytes=1000)).body) == size
        else:
            message = "the answer is longer than the 1000 bytes that the limit http_body_bytes allows"
            assert await refused(client, server.url(), max_bytes=1000) == message
            await server.wait_open(0)


async def test_what_says_that_it_is_too_long_is_not_read() -> None:
    for length in "1001", "9" * 19:
        route = Response(200, (("Content-Length", length),), stall())
        async with open_http_server({"/": route}) as server, opened() as client:
            assert "limit http_body_bytes" in await refused(client, server.url(), max_bytes=1000)


async def test_what_never_ends_is_given_up_at_the_limit() -> None:
    async with open_http_server({"/": Response(200, (), endless())}) as server, opened() as client:
        assert "limit http_body_bytes" in await refused(client, server.url(), max_bytes=1_000_000)
        await server.wait_open(0)


async def test_headers_have_a_limit(clock: MockClock) -> None:
    async with open_http_server({"/": Response(200, (("X", "x" * 300_000),))}) as server, opened() as client:
        assert await refused(client, server.url())


@pytest.mark.parametrize(
    "route",
    [
        Response(200, (), drip(b" " * 10_000, 1)),
        Response(200, (), stall(b"[")),
        Response(200, (("Content-Length", "9"),), stall(b"[")),
        hang,
        Raw(stall(b"HTTP/1.1 200 OK\r\n")),
        Raw(drip(b"X" * 1000, 1)),
    ],
)
async def test_what_is_slow_is_given_up_in_time(route: Route, clock: MockClock) -> None:
    async with open_http_server({"/": route}) as server, opened() as client:
        began = trio.current_time()
        assert await refused(client, server.url(), deadline=5) == "no answer within 5 s"
        assert 5 <= trio.current_time() - began < 30
        await server.wait_open(0)


async def test_the_reason_for_trying_again_is_told_if_time_is_up(clock: MockClock) -> None:
    async with open_http_server({"/": sequence(Response(503), hang)}) as server, opened() as client:
        message = "no answer within 5 s; server returned HTTP status 503 Service Unavailable"
        assert await refused(client, server.url(), deadline=5) == message


@pytest.mark.parametrize(
    "route",
    [
        lying_length(100, b"[]"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]"),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n[]"),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        Raw(b"HTTP/1.1 OK\r\n\r\n"),
        Raw(b"\x16\x03\x01garbage\xff\x00\n\n"),
        Raw(b"220 mail.example ESMTP\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n"),
        Raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n[]"),
        Raw(),
    ],
)
async def test_half_an_answer_is_an_error_after_three_tries(route: Route, clock: MockClock) -> None:
    async with open_http_server({"/": route}) as server, opened() as client:
        message = await refused(client, server.url())
        assert message.isprintable()
        assert (server.accepted, len(server.requests)) == (3, 3)
        await server.wait_open(0)


async def test_an_answer_that_ends_with_the_connection_is_one() -> None:
    async with open_http_server({"/": Raw(b"HTTP/1.0 200 OK\r\n\r\n[]")}) as server, opened() as client:
        assert (await get(client, server.url())).body == b"[]"


async def test_what_is_compressed_without_being_asked_for_is_not_opened() -> None:
    async with open_http_server({"/": gzipped(json_response(" " * 10_000))}) as server, opened() as client:
        assert (await get(client, server.url())).body[:2] == b"\x1f\x8b"


async def test_answers_that_come_before_the_answer() -> None:
    early = Response(200, (), b"[]", informational=(100, 103))
    async with open_http_server({"/": early}) as server, opened() as client:
        assert (await get(client, server.url())).body == b"[]"


# --- trying again ---


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_what_may_pass_is_tried_again(status: int, clock: MockClock) -> None:
    async with open_http_server({"/": sequence(Response(status), Response(status), OK)}) as server, opened() as client:
        began = trio.current_time()
        assert (await get(client, server.url())).status == 200
        assert trio.current_time() - began >= 0.3, "pauses are made"
    async with open_http_server({"/": Response(status)}) as server, opened() as client:
        answer = await get(client, server.url())
        assert answer.status == status
        assert str(answer.unexpected()).startswith(f"server returned HTTP status {status} ")
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [200, 204, 206, 304, 400, 401, 403, 404, 429, 500, 501, 599, 999])
async def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    async with open_http_server({"/": Response(status)}) as server, opened() as client:
        assert (await get(client, server.url())).status == status
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("route", "wish"),
    [
        (busy("7"), 7.0),
        (busy("7", 429), 7.0),
        (busy("0", 429), 0.0),
        (busy("Wed, 21 Oct 2015 07:28:00 GMT"), None),
        (busy("7", 502), None),
        (busy("-7"), None),
        (busy("9" * 500), float("inf")),
    ],
)
async def test_a_server_that_wants_to_be_left_alone_is(route: Route, wish: float | None) -> None:
    async with open_http_server({"/": route}) as server, opened() as client:
        answer = await get(client, server.url())
        assert answer.unexpected().retry_after == wish
        assert len(server.requests) == 1


async def test_a_server_that_comes_back_is_not_missed(clock: MockClock) -> None:
    port = await unused_port()
    async with opened() as client, trio.open_nursery() as nursery:
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await get(client, f"http://127.0.0.1:{port}/")).status)

        began = trio.current_time()
        assert "Connection refused" in await refused(client, f"http://127.0.0.1:{port}/")
        assert trio.current_time() - began >= 0.3, "it was tried three times"
        nursery.start_soon(ask)
        [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")

        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        await nursery.start(trio.serve_listeners, serve, [listener])
        while not answers:
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert answers == [200]


async def test_a_reset_is_told(clock: MockClock) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    async with serving_bytes(reset) as port, opened() as client:
        assert "Connection reset by peer" in await refused(client, f"http://127.0.0.1:{port}/")


# --- names ---


async def test_a_name_that_there_is_not_is_told(lookups: Lookups, clock: MockClock) -> None:
    async with opened() as client:
        message = await refused(client, "http://nobody.invalid/")
        assert "Name or service not known" in message
        assert "nobody.invalid" in message
        assert lookups.asked == {"nobody.invalid": 3}


async def test_a_name_that_hangs_takes_one_thread_and_delays_no_other(lookups: Lookups, clock: MockClock) -> None:
    async with open_http_server({"/": OK}) as server, opened() as client, trio.open_nursery() as nursery:

        async def ask_in_vain() -> None:
            assert "no answer within" in await refused(client, "http://hanging.test/", deadline=20)

        for _ in range(50):
            nursery.start_soon(ask_in_vain)
        await wait_all_tasks_blocked()
        for host in "a.test", "b.test", "127.0.0.1":
            assert (await get(client, server.url(host=host))).status == 200
        clock.jump(20)
    assert lookups.asked["hanging.test"] == 1


async def test_a_client_does_not_wait_for_a_name_at_its_end(lookups: Lookups) -> None:
    with trio.fail_after(5):
        async with opened() as client:
            with trio.move_on_after(0.01):
                await get(client, "http://hanging.test/")
    assert lookups.asked == {"hanging.test": 1}
    assert not lookups.over.is_set()


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, clock: MockClock) -> None:
    real = socket.getaddrinfo
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: found if host == "x.test" else real(host, *a, **k))
    async with open_http_server({"/": OK}) as server, opened() as client:
        assert (await get(client, server.url(host="x.test"))).status == 200


# --- cancellation ---


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def connected_to(ports: set[int]) -> int:
    """Return how many sockets are connected to one of the ports, and not from one, as those of servers are."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of this very listing, and sockets that listen
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(fd))) as one:
                    inet = one.family in (socket.AF_INET, socket.AF_INET6)
                    found += inet and one.getpeername()[1] in ports and one.getsockname()[1] not in ports
    return found


@pytest.mark.usefixtures("nothing_stays_open")
@pytest.mark.parametrize("how", ["plain", "tls", "http2", "tunnel", "forward", "socks", "https proxy"])
async def test_whenever_it_is_cancelled_nothing_is_left(certificates: Certificates, how: str) -> None:
    tls = None if how in ("plain", "forward", "socks") else certificates.server()
    tokens = endpoint()
    routes: dict[str, Route] = {"/token": tokens, "/": tokens.protect(redirect("/to")), "/to": tokens.protect(OK)}
    async with (
        open_http_server(routes, tls=tls, http2=how == "http2") as server,
        open_http_proxy(tls=certificates.server() if how == "https proxy" else None) as proxy,
        open_socks5_proxy() as socks,
    ):
        urls = {"tunnel": proxy.url, "forward": proxy.url, "https proxy": proxy.url, "socks": socks.url}
        keys = trusting(certificates) | {"proxy_url": urls.get(how, "")}
        section = config(**keys, **oauth2(server.url("/token"), **keys))
        ports = {proxy.port, socks.port} if how in urls else {server.port}  # a proxy connects to the server
        steps, completed = 0, False
        while not completed:
            steps += 1
            with trio.fail_after(20), trio.CancelScope() as scope, CancelAfter(steps, scope):
                async with open_http_client(section) as client:
                    assert (await get(client, server.url())).status == 200
            completed = not scope.cancelled_caught
            assert connected_to(ports) == 0, f"cancelled after {steps} steps"
        assert steps > 10


@pytest.mark.parametrize("where", ["handshake", "headers", "body", "proxy", "socks", "https proxy"])
async def test_cancelled_while_the_other_side_hangs_it_closes_the_connection(
    certificates: Certificates, where: str
) -> None:
    gone = trio.Event()
    asked = trio.Event()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[" if where == "body" else b""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            if answer:
                await stream.send_all(answer)
            asked.set()
            while await stream.receive_some():
                pass
        gone.set()

    async with serving_bytes(serve) as port:
        here = f"127.0.0.1:{port}"
        keys: dict[str, object] = trusting(certificates)
        url = f"http://{here}/"
        if where == "handshake":
            url = f"https://{here}/"
        elif where in ("proxy", "socks", "https proxy"):
            keys["proxy_url"] = f"{ {'proxy': 'http', 'socks': 'socks5'}.get(where, 'https') }://{here}"
            url = "https://a.test/"
        async with opened(**keys) as client, trio.open_nursery() as nursery:
            nursery.start_soon(get, client, url)
            await asked.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await gone.wait()


async def test_a_file_that_hangs_holds_up_no_cancellation(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    async with open_http_server({"/": OK}) as server, opened(bearer_token_file=str(tmp_path / "fifo")) as client:
        for _ in range(3):
            with trio.fail_after(5), trio.move_on_after(0.01):
                await get(client, server.url())
        with (tmp_path / "fifo").open("w") as writer:  # there is a reader: exactly one thread waits
            writer.write("token")
        with (tmp_path / "fifo2").open("w") as other:
            other.write("token")
        (tmp_path / "fifo2").rename(tmp_path / "fifo")
        assert (await get(client, server.url())).status == 200


# --- sharing ---


async def test_equal_configurations_share_a_client_that_shows_nothing() -> None:
    async with open_http_server({"/": OK}) as server, trio.open_nursery() as nursery:
        resources = Resources(nursery)
        mine = config(bearer_token=SECRET)
        async with shared_http_client(resources, mine) as one:
            async with shared_http_client(resources, config(bearer_token=SECRET)) as two:
                assert one is two
                assert resources.statistics() == {"HTTP client": 2}
                async with shared_http_client(resources, config(bearer_token="other")) as three:
                    assert three is not one
                    assert resources.statistics() == {"HTTP client": 2, "HTTP client #2": 1}
                await get(one, server.url())
            assert resources.statistics() == {"HTTP client": 1}
            await get(one, server.url())
            assert server.accepted == 1
        assert resources.statistics() == {}
        await server.wait_open(0)


async def test_errors_of_secrets_are_of_their_kind() -> None:
    async with opened(bearer_token_file="/none/token") as client:
        with pytest.raises(SecretError, match=r"/none/token"):
            await get(client, "http://127.0.0.1:1/")
