"""What the README shows, run as it stands there."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

import trio_sd

from .http_servers import json_response, open_http_server, requires_basic

README = (Path(__file__).parent.parent / "README.md").read_text()


def shown(name: str) -> str:
    """Return the code block that the README marks as tested under ``name``."""
    match = re.search(rf"<!-- tested: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_every_marked_block_is_tested_here() -> None:
    assert re.findall(r"<!-- tested: (\w+) -->", README) == [
        "embed",
        "sighup",
        "relabel",
        "blocking",
        "serve",
        "discoverer",
        "kit",
    ]


async def wait_printed(program: str, pattern: bytes, directory: Path) -> None:
    """Run a program until it has printed something."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, cwd=directory
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            seen = b""
            while not re.search(pattern, seen):
                data = await process.stdout.receive_some()
                assert data, "the example ended"
                seen += data
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def test_the_embedding_example_prints_updates(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs: [{job_name: alpha, static_configs: [{targets: ['a:1']}]}]\n"
    )
    await wait_printed(shown("embed"), rb"\d+ alpha \['0'\] \(\)", tmp_path)


async def test_the_relabel_example_prints_final_labels(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs: [{job_name: alpha, static_configs: [{targets: ['a:1', 'b:1']}], "
        "relabel_configs: [{source_labels: [__address__], regex: 'b.*', action: drop}]}]\n"
    )
    program = "import trio, trio_sd\n" + shown("relabel") + "\ntrio.run(main)\n"
    await wait_printed(
        program, rb"alpha \[\{'__address__': 'a:1',.*'instance': 'a:1', 'job': 'alpha'\}\] \(\)", tmp_path
    )


async def test_the_blocking_example_prints_updates(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs: [{job_name: alpha, static_configs: [{targets: ['a:1']}]}]\n"
    )
    await wait_printed(shown("blocking"), rb"\d+ \{'alpha': 1\}", tmp_path)


async def test_the_serving_example_says_where_it_listens(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text("scrape_configs: [{job_name: alpha}]\n")
    await wait_printed(shown("serve"), rb"http://127.0.0.1:\d+", tmp_path)


async def test_the_sighup_example_reloads(tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs: [{job_name: alpha}]\n")
    program = "from functools import partial\nimport trio, trio_sd\n" + shown("sighup") + "\ntrio.run(main)\n"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            seen = b""
            for job, reload in (b"alpha", True), (b"beta", False):
                while job not in seen:
                    data = await process.stdout.receive_some()
                    assert data, "the example ended"
                    seen += data
                if reload:
                    config.write_text("scrape_configs: [{job_name: beta}]\n")
                    process.send_signal(signal.SIGHUP)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def test_the_discoverer_example_counts_down(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    names: dict[str, Any] = {"dataclass": dataclass, "trio": trio, "trio_sd": trio_sd, "Sequence": Sequence}
    exec(shown("discoverer"), names)
    registry = trio_sd.default_registry(countdown_sd_configs=names["CountdownConfig"])
    path = tmp_path / "prometheus.yml"
    path.write_text("scrape_configs: [{job_name: ten, countdown_sd_configs: [{start: 2}]}]\n")
    config = trio_sd.load_config(path, registry=registry)
    counts = []
    async with (
        trio_sd.open_manager(config.scrape, throttle=trio_sd.Throttle(0, 0)) as manager,
        manager.subscribe() as updates,
    ):
        with trio.move_on_after(10):
            async for update in updates:
                count = sum(len(group.targets) for group in update.snapshot["ten"])
                counts.append(count)
        assert manager.statistics().providers[0].state == "synced"
    assert counts[-3:] == [2, 1, 0]


async def test_the_mechanism_of_the_kit_finds_what_its_service_tells(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(shown("kit"), "kit", "exec", dont_inherit=True), names)
    racks = json_response([{"name": "r1", "hosts": ["10.0.0.1:80", "10.0.0.2:80"]}])
    async with open_http_server({"/racks": requires_basic("me", "secret", racks)}) as server:
        section = {"url": server.url("/racks"), "basic_auth": {"username": "me", "password": "secret"}}
        path = tmp_path / "prometheus.yml"
        path.write_text(json.dumps({"scrape_configs": [{"job_name": "job", "racks_sd_configs": [section]}]}))
        registry = trio_sd.default_registry(racks_sd_configs=names["RacksConfig"])
        config = trio_sd.load_config(path, registry=registry)
        async with trio_sd.open_manager(config.scrape) as manager:
            with trio.fail_after(10):
                await manager.wait_synced()
            (group,) = manager.snapshot()["job"]
    assert [target["__address__"] for target in group.targets] == ["10.0.0.1:80", "10.0.0.2:80"]
    assert dict(group.labels) == {"__meta_racks_name": "r1"}
