"""File discovery: decoding a file, and the time from a rename to the consumer."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable

import trio

from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.file.parse import parse
from trio_sd.limits import Limits
from trio_sd.manager import open_manager
from trio_sd.subscription import Throttle

from .report import Row


def as_json(count: int, port: int = 9100) -> bytes:
    """Return a JSON file of ``count`` groups with one target and one label each."""
    groups = [
        {"targets": [f"10.{i >> 8}.{i & 255}.1:{port}"], "labels": {"zone": f"zone-{i % 7}"}} for i in range(count)
    ]
    return json.dumps(groups).encode()


def as_yaml(count: int) -> bytes:
    """Return the same groups as YAML."""
    lines = [f"- targets: ['10.{i >> 8}.{i & 255}.1:9100']\n  labels: {{zone: zone-{i % 7}}}\n" for i in range(count)]
    return "".join(lines).encode()


def decoding(content: bytes, decode: Callable[[bytes], object], rounds: int) -> list[float]:
    """Return the seconds that decoding takes."""
    latencies = []
    for _ in range(rounds):
        begin = time.perf_counter()
        decode(content)
        latencies.append(time.perf_counter() - begin)
    return latencies


async def rename_latencies(count: int, rounds: int) -> list[float]:
    """Return the seconds from the rename of a file of ``count`` groups, of which one differs, to the consumer."""
    latencies = []
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "targets.json")
        _replace(path, as_json(count))
        configs = {"set": [FileSDConfig(files=(path,))]}
        async with open_manager(configs, throttle=Throttle(0, 0)) as manager, manager.subscribe() as updates:
            while (await updates.receive()).snapshot.group_count("set") < count:
                pass
            before = as_json(count)
            for port in range(10_000, 10_000 + rounds):
                content = before.replace(b":9100", f":{port}".encode(), 1)
                begin = time.perf_counter()
                _replace(path, content)
                await updates.receive()
                latencies.append(time.perf_counter() - begin)
    return latencies


def _replace(path: str, content: bytes) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(content)
    os.replace(f"{path}.new", path)


def run(*, quick: bool) -> list[Row]:
    """Measure, and return one row a figure."""
    rounds = 3 if quick else 10
    limits = Limits()
    size = 10_000
    rows = [
        Row.of_seconds(f"floor: json.loads of {size:,} groups", decoding(as_json(size), json.loads, rounds)),
        Row.of_seconds(
            f"groups from JSON, {size:,}", decoding(as_json(size), lambda text: parse(text, "x.json", limits), rounds)
        ),
        Row.of_seconds(
            f"groups from YAML, {size:,}", decoding(as_yaml(size), lambda text: parse(text, "x.yml", limits), rounds)
        ),
    ]
    for count, times in ((10, 10 * rounds), (size, rounds)):
        rows.append(
            Row.of_seconds(f"rename → consumer, {count:,} groups in JSON", trio.run(rename_latencies, count, times))
        )
    return rows
