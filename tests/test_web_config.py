"""The web configuration: what it may say, how it changes under a running server, and who gets past it, in real sockets.

Certificates are real, and so are handshakes. Time is the test's own where something has to wait.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shutil
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import bcrypt
import pytest
import trio
import trio.testing

from trio_sd.errors import ConfigError
from trio_sd.manager import open_manager
from trio_sd.reload import Reloader
from trio_sd.web import Guarding, ListenAddress, load_web_config, open_application, serve, server
from trio_sd.web.auth import Authenticator
from trio_sd.web.live_config import LiveWebConfig

from .asgi import ask, receiving, scope_of
from .managing import AT_ONCE, synced
from .processes import run_command
from .test_cli import STATIC, write
from .test_tls import Certificates
from .test_web_processes import exchange, listening, request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from trio_sd.web.server import TLSSource

HASH: Final = bcrypt.hashpw(b"hunter2", b"$2b$04$abcdefghijklmnopqrstuu").decode()
SUM: Final = hashlib.sha256(b"s3cr3t").hexdigest()
ORIGIN: Final = "https://a.example"


def basic(user: str, password: str | bytes) -> str:
    encoded = password if isinstance(password, bytes) else password.encode()
    return "Basic " + base64.b64encode(user.encode() + b":" + encoded).decode()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl (apt install openssl)")
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    for authority in "authority", "other":
        made.make(authority, "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
    for name in "server", "renewed":
        made.make(name, "subjectAltName=DNS:localhost,IP:127.0.0.1\n", authority="authority")
    made.make("client", "extendedKeyUsage=clientAuth\n", authority="authority")
    made.make("stranger", "extendedKeyUsage=clientAuth\n", authority="other")
    return made


@pytest.fixture
def folder(tmp_path: Path, certificates: Certificates) -> Path:
    """A folder with the files of a server."""
    for kind in "crt", "key":
        shutil.copy(certificates.path(f"server.{kind}"), tmp_path / f"tls.{kind}")
    shutil.copy(certificates.path("authority.crt"), tmp_path / "clients.crt")
    return tmp_path


TLS: Final = "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n"
MUTUAL: Final = TLS.replace("}", ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: clients.crt}")


@asynccontextmanager
async def application(guarding: Guarding | None = None) -> AsyncIterator[ASGIApp]:
    fake = synced("web")
    async with (
        open_manager({"web": [fake.config]}, throttle=AT_ONCE) as manager,
        open_application(manager, guarding=guarding) as app,
    ):
        await manager.wait_synced()
        yield app


@asynccontextmanager
async def serving(tls: TLSSource | None, guarding: Guarding | None = None) -> AsyncIterator[int]:
    """Serve at a port of this process."""
    async with application(guarding) as app, trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(serve, app, ListenAddress("127.0.0.1", 0), tls=tls, grace=0.1))
        yield int(url.rpartition(":")[2])
        nursery.cancel_scope.cancel()


def trusting(certificates: Certificates, own: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.path("authority.crt"))
    if own:
        context.load_cert_chain(certificates.path(f"{own}.crt"), certificates.path(f"{own}.key"))
    return context


async def connect(port: int, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def answer(stream: trio.abc.Stream, *fields: str) -> bytes:
    """Ask over a connection, and return the first that is answered; nothing if the other side closes it."""
    with trio.fail_after(10), suppress(trio.BrokenResourceError):
        await stream.send_all(request("/-/healthy", *fields))
        return bytes(await stream.receive_some())
    return b""


async def shown_certificate(port: int, context: ssl.SSLContext) -> bytes:
    async with await connect(port, context) as stream:
        certificate: bytes = stream.getpeercert(binary_form=True)
        return certificate


def der(certificates: Certificates, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(
        certificates.text(f"{name}.crt").partition("-----BEGIN")[1]
        + certificates.text(f"{name}.crt").partition("-----BEGIN")[2]
    )


def renew(certificates: Certificates, folder: Path) -> None:
    for kind in "crt", "key":
        shutil.copy(certificates.path(f"renewed.{kind}"), folder / f"tls.{kind}")


# What a file may say


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"basic_auth_users: {{me:{HASH}}}", "a name with nothing after it"),
        (f"bearer_tokens: {{me:{SUM}}}", "a name with nothing after it"),
        (f"basic_auth_users: {{'me:{HASH}': x}}", "expected a name without a colon"),
        (f"basic_auth_users: {{'': '{HASH}'}}", "expected a name without a colon"),
        (f"basic_auth_users: {{me: {HASH[:28]}B{HASH[29:]}}}", "no bcrypt hash"),  # a salt that can't be read
        (
            'tls_server_config: {cert_file: "a\\0b", key_file: b}',
            ':1:32: tls_server_config.cert_file: found "a\\u0000b"',
        ),
        ('tls_server_config: {cert_file: a, key_file: "\\0"}', ":1:45: tls_server_config.key_file"),
    ],
)
def test_what_is_refused_is_told_without_secrets(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path / "web.yml", text)
    with pytest.raises(ConfigError) as caught:
        load_web_config(file)
    assert told in str(caught.value)
    assert f"{file}:1:" in str(caught.value)
    assert HASH[7:] not in str(caught.value)
    assert SUM not in str(caught.value)


async def test_header_values_are_sent_without_the_space_around_them() -> None:
    async with serving(None, Guarding(headers={"X-Frame-Options": " SAMEORIGIN\t"})) as port:
        found = await exchange(port, request("/-/healthy", "Connection: close"))
    assert found.startswith(b"HTTP/1.1 200")
    assert b"\r\nx-frame-options: SAMEORIGIN\r\n" in found


# Passwords and tokens


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
async def test_hashes_of_all_kinds(prefix: str) -> None:
    authenticator = Authenticator({"me": prefix.encode() + HASH[4:].encode()})
    assert await authenticator.check(basic("me", "hunter2"))
    assert not await authenticator.check(basic("me", "hunter3"))
    assert not await authenticator.check(basic("you", "hunter2"))


async def test_passwords_and_tokens_are_the_bytes_that_were_sent() -> None:
    salt = b"$2b$04$abcdefghijklmnopqrstuu"
    users = {"mé": bcrypt.hashpw("pässwörd".encode(), salt), "nul": bcrypt.hashpw(b"before", salt)}
    guarding = Guarding(users=users, tokens=[hashlib.sha256("tökén".encode()).digest()])
    async with application(guarding) as app:
        for header, status in {
            basic("mé", "pässwörd"): 200,
            basic("mé", "pässwörd".encode("latin-1")): 401,
            basic("nul", "before"): 200,
            basic("nul", "before\0after"): 401,
            basic("nul", "\0before"): 401,
            basic("nul\0", "before"): 401,
            "Bearer " + "tökén".encode().decode("latin-1"): 200,
            "Bearer tökén": 401,
        }.items():
            assert (await ask(app, "/-/healthy", authorization=header)).status == status, header


async def test_an_authenticator_is_made_at_once_however_much_its_hashes_cost() -> None:
    """Some of these hashes take 15 seconds to check."""
    Authenticator({"me": b"$2b$31$" + b"." * 53})


@pytest.mark.parametrize(("length", "status"), [(0, 401), (12_000, 401), (100_000, 431)])
async def test_long_authorization_fields_are_refused(length: int, status: int) -> None:
    async with serving(None, Guarding(users={"me": HASH.encode()})) as port:
        for scheme in "Basic", "Bearer":
            found = await exchange(port, request("/", f"Authorization: {scheme} {'A' * length}", "Connection: close"))
            # What is unread when a connection is closed may take the answer with it.
            assert found.startswith(b"HTTP/1.1 %d" % status) or (not found and length == 100_000)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert b" 200 " in await answer(stream, f"Authorization: {basic('me', 'hunter2')}")


# Changes


class Looks:
    """Counts the looks at a file, and holds them up."""

    def __init__(self, file: Path, stat: Callable[..., os.stat_result]) -> None:
        self._file = str(file)
        self._stat = stat
        self.count = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, path: str, **more: object) -> os.stat_result:
        if path == self._file:
            self.count += 1
            self.begun.set()
            self.go_on.wait()
        return self._stat(path, **more)


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """Looks at ``web.yml``."""
    counting = Looks(tmp_path / "web.yml", os.stat)
    monkeypatch.setattr(os, "stat", counting)
    yield counting
    counting.go_on.set()


async def test_users_tokens_and_headers_change_without_a_restart(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_sd.web")
    file = write(tmp_path / "web.yml", f"basic_auth_users: {{me: {HASH}}}\n")
    live = await LiveWebConfig.read(str(file), Guarding(hosts=["sd.example"]))
    assert not live.encrypts
    async with application(live.guarding) as app:

        async def status(header: str, host: str = "sd.example") -> int:
            return (await ask(app, "/-/healthy", authorization=header, host=host)).status

        assert await status(basic("me", "hunter2")) == 200
        assert await status("Bearer s3cr3t") == 401
        write(file, f"bearer_tokens: {{me: {SUM}}}\nhttp_server_config: {{headers: {{X-Frame-Options: x}}}}\n")
        mock_clock.jump(1)
        assert await status(basic("me", "hunter2")) == 401  # what was remembered of it is forgotten
        assert await status("Bearer s3cr3t") == 200
        assert await status("Bearer s3cr3t", host="evil.example") == 421
        assert (await ask(app, "/", authorization="Bearer s3cr3t")).headers["x-frame-options"] == "x"
    assert [record.getMessage() for record in caplog.records] == [f"web configuration {file} is in force"]


@pytest.mark.parametrize("half", ["", "basic_auth_users:\n", "http_server_config: {headers: {}}\n"])
async def test_half_a_file_does_not_open_the_door(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, half: str
) -> None:
    caplog.set_level(logging.INFO, "trio_sd.web")
    file = write(tmp_path / "web.yml", f"basic_auth_users: {{me: {HASH}}}\n")
    live = await LiveWebConfig.read(str(file), Guarding())
    async with application(live.guarding) as app:
        write(file, half)
        for _ in range(3):
            mock_clock.jump(1)
            assert (await ask(app, "/-/healthy")).status == 401
        assert (await ask(app, "/-/healthy", authorization=basic("me", "hunter2"))).status == 200
        (complaint,) = [record.getMessage() for record in caplog.records]
        assert "has no users and no tokens any more, which takes a restart; the old one stays in force" in complaint
        write(file, f"basic_auth_users: {{you: {HASH}}}\n")
        mock_clock.jump(1)
        assert (await ask(app, "/-/healthy", authorization=basic("you", "hunter2"))).status == 200


@pytest.mark.parametrize("path", ["/api/v1/events", "/api/v1/page/status"])
async def test_streams_end_when_others_may_ask_and_only_then(
    tmp_path: Path, mock_clock: trio.testing.MockClock, path: str
) -> None:
    file = write(tmp_path / "web.yml", f"basic_auth_users: {{me: {HASH}}}\n")
    live = await LiveWebConfig.read(str(file), Guarding())
    async with application(live.guarding) as app, trio.open_nursery() as nursery:
        ended = trio.Event()

        began = trio.Event()

        async def send(message: Message) -> None:
            if message.get("body"):
                began.set()
            await trio.lowlevel.checkpoint()

        async def follow() -> None:
            scope = scope_of(path, "GET", {"authorization": basic("me", "hunter2")})
            await app(scope, receiving(trio.Event()), send)
            ended.set()

        nursery.start_soon(follow)
        await began.wait()
        write(file, f"basic_auth_users: {{me: {HASH}}}\nhttp_server_config: {{headers: {{X-Frame-Options: x}}}}\n")
        mock_clock.jump(1)
        assert (await ask(app, "/-/healthy", authorization=basic("me", "hunter2"))).status == 200
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        write(file, f"basic_auth_users: {{you: {HASH}}}\n")
        mock_clock.jump(1)
        assert (await ask(app, "/-/healthy", authorization=basic("me", "hunter2"))).status == 401
        with trio.fail_after(5):
            await ended.wait()


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UPGRADE: Final = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")


async def test_nothing_but_http_1_1_is_spoken(certificates: Certificates, plain_context: ssl.SSLContext) -> None:
    async with serving(None) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(PREFACE)
            with trio.fail_after(10):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 4")
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert (await answer(stream, *UPGRADE)).startswith(b"HTTP/1.1 200")
    plain_context.set_alpn_protocols(["h2", "http/1.1"])  # an embedder's own
    async with serving(plain_context) as port:
        offering = trusting(certificates)
        offering.set_alpn_protocols(["h2", "http/1.1"])
        async with await connect(port, offering) as stream:
            assert stream.selected_alpn_protocol() == "http/1.1"
            assert (await answer(stream)).startswith(b"HTTP/1.1 200")


async def test_who_only_connects_makes_way_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 10)
    async with serving(None) as port, AsyncExitStack() as stack:

        async def client() -> trio.SocketStream:
            return await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))

        followers = [await client() for _ in range(8)]
        for follower in followers:
            await follower.send_all(request("/api/v1/events"))
            assert (await follower.receive_some()).startswith(b"HTTP/1.1 200")
        idle = [await client() for _ in range(20)]
        await idle[-1].send_all(b"GET / HT")
        for _ in range(3):
            asking = await client()
            assert (await answer(asking)).startswith(b"HTTP/1.1 200")
        with trio.fail_after(5):
            assert await idle[0].receive_some() == b""  # it was without a request for longest
        late = [await client() for _ in range(2)]
        for follower in late:
            await follower.send_all(request("/api/v1/events"))
            assert (await follower.receive_some()).startswith(b"HTTP/1.1 200")
        assert await answer(await client()) == b""  # all places are taken by those who asked
        for follower in followers:  # nothing has happened to them
            with trio.move_on_after(0.01):
                assert await follower.receive_some() != b""


async def test_what_can_not_be_used_is_told_once_and_the_last_good_stays(
    folder: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_sd.web")
    file = write(folder / "web.yml", TLS)
    live = await LiveWebConfig.read(str(file), Guarding())
    first = await live.latest_context()

    async def told(*changes: Callable[[], object]) -> list[tuple[str, str]]:
        """Return what is logged after each change, and some looks after it."""
        caplog.clear()
        for change in changes:
            change()
            for _ in range(3):
                mock_clock.jump(1)
                await live.latest_context()
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    def bad(text: str) -> Callable[[], object]:
        return lambda: write(file, text)

    stays = "; the old one stays in force"
    in_force = ("INFO", f"web configuration {file} is in force")
    colon = "found no name, or one with a colon, expected a name without a colon"
    assert await told(bad("basic_auth_users: {'a:b': c}"), bad("basic_auth_users: {'a:b':  c}")) == [
        ("ERROR", f"web configuration {file} can't be used, {file}:1:19: basic_auth_users: {colon}{stays}")
    ]
    assert await told(file.unlink) == [
        ("ERROR", f"web configuration {file} can't be used, can't read \"{file}\": No such file or directory{stays}")
    ]
    assert await live.latest_context() is first
    assert await told(bad(TLS)) == [in_force]
    key = (folder / "tls.key").read_text()
    ((level, message),) = await told(lambda: write(folder / "tls.key", "nonsense"))
    assert level == "ERROR"
    assert f'the certificate "{folder}/tls.crt" with the key "{folder}/tls.key"' in message
    assert await told(lambda: write(folder / "tls.key", key)) == [in_force]
    assert await told(bad("")) == [
        ("WARNING", f"web configuration {file} turns encryption off, which takes a restart{stays}")
    ]
    assert await told(bad(TLS), bad("")) == [
        in_force,
        ("WARNING", f"web configuration {file} turns encryption off, which takes a restart{stays}"),
    ]
    assert live.encrypts


async def test_encryption_is_not_turned_on_without_a_restart(
    folder: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(folder / "web.yml", f"basic_auth_users: {{me: {HASH}}}\n")
    live = await LiveWebConfig.read(str(file), Guarding())
    write(file, TLS)
    mock_clock.jump(1)
    assert list((await live.latest_guarding()).users) == ["me"]  # nobody gets in who did not before
    assert [record.getMessage() for record in caplog.records] == [
        f"web configuration {file} turns encryption on, which takes a restart; the old one stays in force"
    ]
    assert not live.encrypts


async def test_a_storm_looks_once_a_second_and_nobody_looks_while_nobody_comes(
    tmp_path: Path, looks: Looks, mock_clock: trio.testing.MockClock
) -> None:
    file = write(tmp_path / "web.yml", "")
    live = await LiveWebConfig.read(str(file), Guarding())
    assert looks.count == 1
    mock_clock.jump(100)
    await trio.testing.wait_all_tasks_blocked()
    assert looks.count == 1
    for second in range(1, 4):
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(live.latest_guarding)
        assert looks.count == 1 + second
        mock_clock.jump(0.9)
        await live.latest_guarding()
        assert looks.count == 1 + second
        mock_clock.jump(0.1)


async def test_a_change_is_seen_by_all_who_come_while_it_is_looked_for(
    tmp_path: Path, looks: Looks, mock_clock: trio.testing.MockClock
) -> None:
    file = write(tmp_path / "web.yml", "")
    live = await LiveWebConfig.read(str(file), Guarding())
    write(file, f"basic_auth_users: {{me: {HASH}}}\n")
    mock_clock.jump(1)
    looks.go_on.clear()
    found = []

    async def come() -> None:
        found.append(list((await live.latest_guarding()).users))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        looks.go_on.set()
    assert found == [["me"]] * 5


async def test_files_that_hang_hold_up_only_those_who_come_first_and_for_five_seconds(
    tmp_path: Path, looks: Looks, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_sd.web")
    file = write(tmp_path / "web.yml", "")
    live = await LiveWebConfig.read(str(file), Guarding())
    looks.go_on.clear()
    looks.begun.clear()
    mock_clock.jump(1)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(live.latest_guarding)
        await trio.to_thread.run_sync(looks.begun.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 5
        mock_clock.jump(5)
    for _ in range(3):
        mock_clock.jump(10)
        await live.latest_guarding()  # with this clock it would wait for ever
    hung = f"web configuration {file} can't be used, not read within 5 s; the old one stays in force"
    assert [record.getMessage() for record in caplog.records] == [hung]
    assert looks.count == 2
    looks.go_on.set()
    while looks.count == 2:  # until the thread has ended
        mock_clock.jump(1)
        await live.latest_guarding()
    assert caplog.records[-1].getMessage() == f"web configuration {file} is in force"


async def test_the_first_reading_is_bounded(tmp_path: Path, looks: Looks, mock_clock: trio.testing.MockClock) -> None:
    looks.go_on.clear()
    refused = []

    async def read() -> None:
        with pytest.raises(ConfigError, match="not read within 30 s") as caught:
            await LiveWebConfig.read(str(tmp_path / "web.yml"), Guarding())
        refused.append(caught)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(30)
    assert refused


async def test_one_who_leaves_while_files_are_looked_at_takes_nothing_from_others(
    tmp_path: Path, looks: Looks, mock_clock: trio.testing.MockClock
) -> None:
    file = write(tmp_path / "web.yml", "")
    live = await LiveWebConfig.read(str(file), Guarding())
    write(file, f"basic_auth_users: {{me: {HASH}}}\n")
    mock_clock.jump(1)
    looks.go_on.clear()
    found = []

    async def come() -> None:
        found.append(list((await live.latest_guarding()).users))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            leaving.start_soon(live.latest_guarding)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        looks.go_on.set()
    assert found == [["me"]]


async def test_a_renewed_certificate_is_shown_to_new_connections(
    folder: Path, certificates: Certificates, mock_clock: trio.testing.MockClock
) -> None:
    live = await LiveWebConfig.read(str(write(folder / "web.yml", TLS)), Guarding())
    context = trusting(certificates)
    async with serving(live.latest_context, live.guarding) as port:
        assert await shown_certificate(port, context) == der(certificates, "server")
        async with await connect(port, context) as stream:
            renew(certificates, folder)
            mock_clock.jump(1)
            assert await shown_certificate(port, context) == der(certificates, "renewed")
            assert b" 200 " in await answer(stream)  # the one that was open goes on


async def test_links_are_followed_as_kubernetes_replaces_them(
    tmp_path: Path, certificates: Certificates, mock_clock: trio.testing.MockClock
) -> None:
    """``tls.crt`` is a link to ``..data/tls.crt``, and ``..data`` a link that is replaced by another one."""

    def mount(name: str, server: str) -> None:
        (tmp_path / name).mkdir()
        for kind in "crt", "key":
            shutil.copy(certificates.path(f"{server}.{kind}"), tmp_path / name / f"tls.{kind}")
            os.utime(tmp_path / name / f"tls.{kind}", (1, 1))
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").replace(tmp_path / "..data")

    mount("..1", "server")
    for kind in "crt", "key":
        (tmp_path / f"tls.{kind}").symlink_to(f"..data/tls.{kind}")
    live = await LiveWebConfig.read(str(write(tmp_path / "web.yml", TLS)), Guarding())
    async with serving(live.latest_context) as port:
        mount("..2", "renewed")
        shutil.rmtree(tmp_path / "..1")
        mock_clock.jump(1)
        assert await shown_certificate(port, trusting(certificates)) == der(certificates, "renewed")


async def test_who_signs_client_certificates_may_change(
    folder: Path, certificates: Certificates, mock_clock: trio.testing.MockClock
) -> None:
    live = await LiveWebConfig.read(str(write(folder / "web.yml", MUTUAL)), Guarding())
    async with serving(live.latest_context) as port:

        async def gets_in(own: str) -> bool:
            async with await connect(port, trusting(certificates, own)) as stream:
                return b" 200 " in await answer(stream)

        assert [own for own in ("", "client", "stranger") if await gets_in(own)] == ["client"]
        shutil.copy(certificates.path("other.crt"), folder / "clients.crt")
        mock_clock.jump(1)
        assert [own for own in ("", "client", "stranger") if await gets_in(own)] == ["stranger"]


async def test_a_program_may_tell_who_may_ask_from_now_on() -> None:
    async def latest() -> Guarding:
        return now

    now = Guarding(tokens=[hashlib.sha256(b"a").digest()], latest=latest)
    async with application(now) as app:
        assert (await ask(app, "/-/healthy", authorization="Bearer a")).status == 200
        now = Guarding(tokens=[hashlib.sha256(b"b").digest()])
        assert (await ask(app, "/-/healthy", authorization="Bearer a")).status == 401
        assert (await ask(app, "/-/healthy", authorization="Bearer b")).status == 200


# Handshakes that don't come to an end


@pytest.fixture
def plain_context(certificates: Certificates) -> ssl.SSLContext:
    return certificates.server()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the counts are Linux' /proc")
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    "first",
    [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100],
    ids=["nothing", "half a greeting", "plain HTTP", "nonsense"],
)
async def test_nothing_is_left_of_a_thousand_connections_that_end_at_once(
    first: bytes, encrypted: bool, plain_context: ssl.SSLContext
) -> None:
    async def come_and_go(port: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            if first:
                await stream.send_all(first)

    async with serving(plain_context if encrypted else None) as port:
        await come_and_go(port)
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = descriptors(), tasks()
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(come_and_go, port)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (descriptors(), tasks()) == before


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("field", ["", "Connection: close", "Connection: keep-alive"])
async def test_clients_that_have_gone_take_no_places_whether_they_asked_or_not(
    field: str, encrypted: bool, certificates: Certificates, plain_context: ssl.SSLContext
) -> None:
    async def come_and_go(port: int) -> None:
        stream: trio.abc.Stream
        if encrypted:
            stream = await connect(port, trusting(certificates))
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            assert not field or b" 200 " in await answer(stream, field)

    async with serving(plain_context if encrypted else None) as port:
        await come_and_go(port)
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = tasks()
        for _ in range(50):
            await come_and_go(port)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert tasks() == before


async def test_a_handshake_that_goes_nowhere_ends_and_delays_nobody(
    certificates: Certificates, plain_context: ssl.SSLContext, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(plain_context) as port:
        before = tasks()
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(50)]
        for one in silent[:25]:
            await one.send_all(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a greeting
        async with await connect(port, trusting(certificates)) as stream:
            assert b" 200 " in await answer(stream)
        mock_clock.jump(15)
        for one in silent:
            assert await one.receive_some() == b""
            await one.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert tasks() == before


async def test_the_end_does_not_wait_for_handshakes(plain_context: ssl.SSLContext) -> None:
    with trio.fail_after(5):
        async with serving(plain_context) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
            await trio.testing.wait_all_tasks_blocked(0.01)
    async with stream:
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


async def test_what_is_no_tls_is_let_go_and_harms_nobody(
    certificates: Certificates, plain_context: ssl.SSLContext
) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("PSK")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(plain_context) as port:
        for data in request("/"), b"\x16\x03\x01\xff\xff" + b"\0" * 70_000, b"\x80\x2e\x01\0\x02":
            found = await exchange(port, data) if len(data) != 5 else b""
            assert b"HTTP" not in found
        with pytest.raises(trio.BrokenResourceError):  # they have no cipher in common
            await connect(port, old)
        async with await connect(port, trusting(certificates)) as stream:
            assert b" 200 " in await answer(stream)


async def test_a_context_that_can_not_be_told_ends_the_connection_and_nothing_else(
    certificates: Certificates, plain_context: ssl.SSLContext
) -> None:
    contexts: list[ssl.SSLContext] = []

    async def latest() -> ssl.SSLContext:
        return contexts[0]

    async with serving(latest) as port:
        with pytest.raises(trio.BrokenResourceError):
            await connect(port, trusting(certificates))
        contexts.append(plain_context)
        async with await connect(port, trusting(certificates)) as stream:
            assert b" 200 " in await answer(stream)


# Pages of other sites


def allowed(headers: object) -> dict[str, str]:
    assert isinstance(headers, dict)
    return {name: value for name, value in headers.items() if name.startswith("access-control") or name == "vary"}


READABLE: Final = {
    "access-control-allow-origin": ORIGIN,
    "access-control-expose-headers": "Date, ETag",
    "vary": "Origin",
}


@pytest.mark.parametrize(
    ("pattern", "origin", "told"),
    [
        (None, ORIGIN, {}),
        (None, "", {}),
        (r"https://a\.example", ORIGIN, READABLE),
        (r"https://(a|b)\.example", ORIGIN, READABLE),
        (".*", ORIGIN, READABLE),
        (r"https://a\.example", "", {"vary": "Origin"}),
        (r"https://a\.example", "https://a.example.evil", {"vary": "Origin"}),
        (r"https://a\.example", "evil-https://a.example", {"vary": "Origin"}),
        (r"https://a\.example|https://b\.example", "https://a.example.evil", {"vary": "Origin"}),
        (r"https://a\.example", "HTTPS://A.EXAMPLE", {"vary": "Origin"}),
        (r"https://a\.example", "null", {"vary": "Origin"}),
        ("", ORIGIN, {"vary": "Origin"}),
    ],
)
async def test_pages_read_what_they_are_allowed_to(pattern: str | None, origin: str, told: dict[str, str]) -> None:
    async with application(Guarding(cors_origin=pattern, tokens=[hashlib.sha256(b"a").digest()])) as app:
        for header, status in {"Bearer a": 200, "": 401}.items():
            found = await ask(app, "/-/healthy", origin=origin, authorization=header)
            assert (found.status, allowed(found.headers)) == (status, told)


async def test_caches_are_told_of_encodings_as_well_as_of_origins() -> None:
    async with serving(None, Guarding(cors_origin=".*")) as port:
        found = await exchange(port, request("/sd/web", f"Origin: {ORIGIN}", "Connection: close"))
    assert {line for line in found.lower().split(b"\r\n") if line.startswith(b"vary:")} == {
        b"vary: accept-encoding",
        b"vary: origin",
    }


async def test_a_browser_may_ask_first_without_a_password() -> None:
    guarding = Guarding(cors_origin=r"https://a\.example", users={"me": HASH.encode()})
    preflight = {"origin": ORIGIN, "access_control_request_method": "GET"}
    async with application(guarding) as app:
        found = await ask(app, "/sd/web", "OPTIONS", **preflight)
        assert (found.status, found.body) == (204, b"")
        assert allowed(found.headers) == READABLE | {
            "access-control-allow-methods": "GET, HEAD",
            "access-control-allow-headers": "Accept, Authorization, If-None-Match, Last-Event-ID, Origin",
        }
        for changed, status in (
            ({"host": "evil.example"}, 421),
            ({"origin": "https://b.example"}, 401),
            ({"access_control_request_method": ""}, 401),
        ):
            refused = await ask(app, "/sd/web", "OPTIONS", **{**preflight, **changed})
            assert refused.status == status
            assert "access-control-allow-methods" not in refused.headers


async def test_pages_that_may_read_still_give_no_orders(tmp_path: Path) -> None:
    file = write(tmp_path / "p.yml", STATIC)
    async with open_manager() as manager:
        reloader = Reloader(file, scrape=manager)
        guarding = Guarding(cors_origin=".*")
        async with open_application(manager, reloader=reloader, enable_reload=True, guarding=guarding) as app:
            found = await ask(app, "/-/reload", "POST", origin=ORIGIN)
            assert found.status == 403
            assert reloader.statistics().succeeded == 0
            preflight = await ask(app, "/-/reload", "OPTIONS", origin=ORIGIN, access_control_request_method="POST")
            assert "POST" not in preflight.headers["access-control-allow-methods"]
            assert (await ask(app, "/-/reload", "POST")).status == 200


def test_an_expression_for_origins_that_is_none_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", STATIC)
    for arguments, told in (
        (["--listen", ":0", "--web-cors-origin", "("], "--web-cors-origin: error parsing regexp: missing )"),
        (["--web-cors-origin", "a"], "--web-cors-origin is of no use without --listen"),
    ):
        done = run_command("run", config, "--output", "none", *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert told in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


# The command


async def test_the_command_takes_up_what_changes(folder: Path, certificates: Certificates) -> None:
    web = write(folder / "web.yml", f"{TLS}basic_auth_users: {{me: {HASH}}}\n")
    config = write(folder / "p.yml", STATIC)
    context = trusting(certificates)
    options = ("--web-config", web, "--web-cors-origin", ORIGIN)
    async with listening(config, *options) as (process, port):
        async with await connect(port, context) as stream:
            found = await answer(stream, f"Authorization: {basic('me', 'hunter2')}", f"Origin: {ORIGIN}")
            assert b" 200 " in found
            assert b"access-control-allow-origin: https://a.example\r\n" in found
        renew(certificates, folder)
        write(web, f"{TLS}bearer_tokens: {{me: {SUM}}}\n")
        with trio.fail_after(20):
            while await shown_certificate(port, context) != der(certificates, "renewed"):  # noqa: ASYNC110
                await trio.sleep(0.1)  # files are looked at once a second
        async with await connect(port, context) as stream:
            assert b" 401 " in await answer(stream, f"Authorization: {basic('me', 'hunter2')}")
        async with await connect(port, context) as stream:
            assert b" 200 " in await answer(stream, "Authorization: Bearer s3cr3t")
        await process.logged("is in force")
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
        assert not [line for line in process.log if "Traceback" in line or HASH in line or SUM in line]
