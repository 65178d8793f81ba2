"""``trio-sd run --listen`` as its clients know it: a process of its own, real sockets, the real Prometheus."""

from __future__ import annotations

import base64
import json
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trio

from .processes import Running, run_command, running
from .real_prometheus import NOWHERE, needs_prometheus, running_prometheus
from .test_cli import FILES, STATIC, write, write_targets
from .zookeeper import ZooKeeperServer, needs_zookeeper, open_tree


@asynccontextmanager
async def listening(config: Path, *arguments: str | Path) -> AsyncIterator[tuple[Running, int]]:
    """Run the command, and say at which port it listens."""
    options = ("--output", "none", "--listen", "127.0.0.1:0", *arguments)
    async with running("run", config, *options) as process:
        line = await process.logged("listening on")
        yield process, int(line.rstrip('"').rpartition(":")[2])


async def exchange(port: int, data: bytes, patience: float = 10.0) -> bytes:
    """Send ``data``, and return everything that is answered until the connection ends."""
    answer = b""
    with trio.fail_after(patience):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            # It may close while something is unread. What it said before is there to read, mostly.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data)
            with suppress(trio.BrokenResourceError):
                while received := await stream.receive_some(65536):
                    answer += received
    return answer


def request(target: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode("latin-1")


async def get(port: int, target: str, *fields: str, method: str = "GET") -> tuple[int, bytes]:
    answer = await exchange(port, request(target, "Connection: close", *fields, method=method))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def until_ready(port: int) -> None:
    with trio.fail_after(20):
        while (await get(port, "/-/ready"))[0] != 200:  # noqa: ASYNC110 (it is another process)
            await trio.sleep(0.05)


async def test_bad_requests_get_a_clear_answer_and_harm_nobody(tmp_path: Path) -> None:
    async with listening(write(tmp_path / "p.yml", STATIC)) as (process, port):
        cases = {
            b"GET /sd/alpha HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n": 421,
            b"GET /sd/alpha HTTP/1.1\r\n\r\n": 400,
            b"GET /sd/alpha HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n": 400,
            b"nonsense\r\n\r\n": 400,
            b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n": 400,
            request("/../../etc/passwd", "Connection: close"): 404,
            request("/sd/%2e%2e/%2e%2e/etc/passwd", "Connection: close"): 404,
            request("/%c0%ae", "Connection: close"): 400,
            request("/", "X: " + "a" * 100_000): 431,
            request("/", *[f"X-{n}: y" for n in range(100)], "Connection: close"): 431,
            request("/-/reload", "Content-Length: 3000000", method="POST") + b"x" * 3_000_000: 413,
            request("/-/reload", "Transfer-Encoding: chunked", method="POST") + b"10000\r\n" + b"x" * 60_000: 413,
            request("/-/reload", "Connection: close", method="GET"): 405,
        }
        answers = {}

        async def ask(data: bytes) -> None:
            answers[data] = await exchange(port, data)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for data in cases:
                    nursery.start_soon(ask, data)
        statuses = {data[:60]: int(answers[data].split()[1]) for data in cases if answers[data]}
        assert statuses == {data[:60]: status for data, status in cases.items() if answers[data]}
        # What is unread when a connection is closed may take the answer with it; what is small is always answered.
        assert [data[:60] for data in cases if not answers[data] and len(data) < 60_000] == []
        assert await get(port, "/sd/alpha") == (200, b'[{"targets":["a:1","a:2"],"labels":{"zone":"x"}}]')
        assert (await get(port, "/-/reload", method="POST"))[0] == 403
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
        assert not [line for line in process.log if "Traceback" in line]


async def test_clients_that_send_or_read_nothing_hold_up_neither_others_nor_the_end(tmp_path: Path) -> None:
    many = [{"targets": [f"host-{n}:80"], "labels": {"n": "x" * 600, "i": str(n)}} for n in range(10_000)]
    write(tmp_path / "targets" / "x.json", json.dumps(many))
    async with listening(write(tmp_path / "p.yml", FILES)) as (process, port):
        await until_ready(port)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        for one in silent[:10]:
            one.sendall(b"GET /sd HTT")
        for one in silent[10:20]:
            one.sendall(request("/sd/web"))  # megabytes, of which nothing is read
        for one in silent[20:30]:
            one.sendall(request("/api/v1/events"))
        try:
            began = time.monotonic()
            status, body = await get(port, "/sd/web")
            assert (status, len(json.loads(body))) == (200, 10_000)
            assert (await get(port, "/-/healthy"))[0] == 200
            assert time.monotonic() - began < 5
            began = time.monotonic()
            process.signal(signal.SIGTERM)
            assert await process.end() == 0
            assert time.monotonic() - began < 5  # the grace time is 3 s
        finally:
            for one in silent:
                one.close()


async def test_those_who_follow_events_do_not_delay_the_end(tmp_path: Path) -> None:
    write_targets(tmp_path / "targets" / "x.json", "w:1")
    async with listening(write(tmp_path / "p.yml", FILES)) as (process, port):  # noqa: SIM117 (the port comes first)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request("/api/v1/events"))
            answer = b""
            with trio.fail_after(10):
                while b"w:1" not in answer:
                    answer += await stream.receive_some()
                write_targets(tmp_path / "targets" / "x.json", "w:2")
                while b"w:2" not in answer:
                    answer += await stream.receive_some()
                began = time.monotonic()
                process.signal(signal.SIGTERM)
                while received := await stream.receive_some():
                    answer += received
            assert answer.endswith(b"0\r\n\r\n")  # it was not cut off
            assert await process.end() == 0
            assert time.monotonic() - began < 2


def make_certificate(directory: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command, *subject, *files], cwd=directory, check=True, capture_output=True)


async def test_encryption_and_users(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    hashed = bcrypt.hashpw(b"hunter2", bcrypt.gensalt(4)).decode()
    web = write(
        tmp_path / "web.yml",
        f"tls_server_config: {{cert_file: cert.pem, key_file: key.pem}}\nbasic_auth_users: {{me: {hashed}}}\n",
    )
    async with listening(write(tmp_path / "p.yml", STATIC), "--web-config", web, "--enable-reload") as (process, port):
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")

        def ask(path: str, user: str, **more: Any) -> tuple[int, bytes]:
            encoded = base64.b64encode(user.encode()).decode()
            asked = urllib.request.Request(f"https://localhost:{port}{path}", **more)
            asked.add_header("Authorization", f"Basic {encoded}")
            try:
                with urllib.request.urlopen(asked, timeout=10, context=context) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

        assert (await trio.to_thread.run_sync(ask, "/sd/alpha", "me:hunter2"))[0] == 200
        assert (await trio.to_thread.run_sync(ask, "/sd/alpha", "me:hunter3"))[0] == 401
        status, text = await trio.to_thread.run_sync(lambda: ask("/-/reload", "me:hunter2", method="POST"))
        assert (status, text) == (200, b"reloaded\n")
        assert await exchange(port, request("/")) == b""  # this is no TLS
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
        assert hashed not in "".join(process.log)
        assert "hunter" not in "".join(process.log)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--listen", "nonsense"], "expected HOST:PORT"),
        (["--web-host", "a"], "--web-host is of no use without --listen"),
        (["--enable-reload"], "--enable-reload is of no use without --listen"),
        (["--listen", "192.0.2.1:1"], "can't listen on 192.0.2.1:1"),
        (["--listen", ":0", "--web-config", "none.yml"], 'can\'t read "none.yml"'),
    ],
)
def test_what_can_not_be_served_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run_command("run", write(tmp_path / "p.yml", STATIC), "--output", "none", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def promtool(metrics: bytes) -> tuple[int, bytes]:
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=metrics, capture_output=True, timeout=20, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_prometheus
async def test_metrics_pass_promtool(tmp_path: Path) -> None:
    async with listening(write(tmp_path / "p.yml", STATIC)) as (_, port):
        assert (await get(port, "/sd?relabel=1"))[0] == 200
        status, body = await get(port, "/metrics")
        assert status == 200
        assert await trio.to_thread.run_sync(promtool, body) == (0, b"")


JOB = """\
  - job_name: {name}
    scrape_interval: 1d
    proxy_url: {proxy}
    {mechanism}
    relabel_configs: [{{action: labelmap, regex: "__(.*)", replacement: shown_$1}}]
"""


@needs_prometheus
async def test_prometheus_finds_the_same_by_http_as_by_its_own_files(tmp_path: Path) -> None:
    def write_web(generation: int) -> None:
        groups = [
            {"targets": [f"host-{n}:80", f"host-{n}:81"], "labels": {"n": str(n), "generation": str(generation)}}
            for n in range(20 + generation)
        ]
        write(tmp_path / "targets" / "x.json", json.dumps(groups))

    write_web(0)
    files = f'file_sd_configs: [{{files: ["{tmp_path}/targets/*.json"]}}]'
    ours = write(tmp_path / "p.yml", "scrape_configs:\n" + f"  - job_name: web\n    {files}\n")
    async with listening(ours) as (process, port):
        over_http = f'http_sd_configs: [{{url: "http://localhost:{port}/sd/web", refresh_interval: 500ms}}]'
        jobs = JOB.format(name="file", proxy=NOWHERE, mechanism=files)
        jobs += JOB.format(name="http", proxy=NOWHERE, mechanism=over_http)
        theirs = write(tmp_path / "prometheus.yml", "scrape_configs:\n" + jobs)
        with running_prometheus(tmp_path, theirs) as prometheus, trio.fail_after(30):
            for generation in range(1, 9):  # while it starts, which takes it five seconds
                write_web(generation)
                if generation % 2:
                    process.signal(signal.SIGHUP)
                await trio.sleep(0.5)
            await trio.to_thread.run_sync(prometheus.wait, ["file", "http"])
            least, found = 10_000, dict[str, set[frozenset[tuple[str, str]]]]()
            while found.get("http") != found.get("file") or "http" not in found or len(found["http"]) != 56:
                fates, _ = await trio.to_thread.run_sync(prometheus.fates)
                found = {name: {_own(labels) for labels in fates[name].labels} for name in ("file", "http")}
                least = min(least, len(found["http"]))
                await trio.sleep(0.2)
            assert least >= 40


def _own(labels: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Return labels without those by which the two jobs must differ."""
    return frozenset(pair for pair in labels if pair[0] not in ("job", "shown_meta_url", "shown_meta_filepath"))


@needs_prometheus
@needs_zookeeper
async def test_prometheus_finds_the_same_by_us_as_by_its_own_zookeeper_discovery(
    shared_zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    """By http_sd and by written files; and it scrapes our metrics."""

    def members(numbers: Iterable[int], port: int) -> dict[str, bytes]:
        endpoint = {"host": "h", "port": port}
        return {
            f"{zookeeper_root}/m{number:03}": json.dumps(
                {"serviceEndpoint": endpoint | {"host": f"h{number}"}, "status": "ALIVE", "shard": number}
            ).encode()
            for number in numbers
        }

    servers = f'serverset_sd_configs: [{{servers: ["{shared_zookeeper.hosts}"], paths: ["{zookeeper_root}"]}}]'
    ours = write(tmp_path / "p.yml", "scrape_configs:\n" + f"  - job_name: web\n    {servers}\n")
    written = tmp_path / "written"
    written.mkdir()
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create_many(members(range(30), 1))
        async with listening(ours, "--file-sd-dir", written) as (process, port):
            mechanisms = {
                "zookeeper": servers,
                "http": f'http_sd_configs: [{{url: "http://localhost:{port}/sd/web", refresh_interval: 500ms}}]',
                "written": f'file_sd_configs: [{{files: ["{written}/*.json"]}}]',
            }
            jobs = [JOB.format(name=name, proxy=NOWHERE, mechanism=how) for name, how in mechanisms.items()]
            scraped = f'static_configs: [{{targets: ["localhost:{port}"]}}]'
            jobs.append(f"  - {{job_name: metrics, scrape_interval: 1s, {scraped}}}\n")
            theirs = write(tmp_path / "prometheus.yml", "scrape_configs:\n" + "".join(jobs))
            with running_prometheus(tmp_path, theirs) as prometheus, trio.fail_after(40):
                for generation in range(1, 5):  # while it starts
                    await tree.set_many(members(range(0, 30, 2), generation))
                    await tree.create_many(members(range(30 * generation, 30 * (generation + 1)), 1))
                    process.signal(signal.SIGHUP)
                    await trio.sleep(0.5)
                await trio.to_thread.run_sync(prometheus.wait, [*mechanisms, "metrics"])
                found = dict[str, set[frozenset[tuple[str, str]]]]()
                while not (found and all(found[name] == found["zookeeper"] for name in mechanisms)) or (
                    len(found["zookeeper"]) != 150
                ):
                    fates, _ = await trio.to_thread.run_sync(prometheus.fates)
                    found = {name: {_own(labels) for labels in fates[name].labels} for name in mechanisms}
                    await trio.sleep(0.2)
                while await trio.to_thread.run_sync(prometheus.value, 'up{job="metrics"}') != 1:  # noqa: ASYNC110
                    await trio.sleep(0.2)
                query = 'sum(trio_sd_provider_targets{job="metrics"})'
                assert await trio.to_thread.run_sync(prometheus.value, query) == 150
