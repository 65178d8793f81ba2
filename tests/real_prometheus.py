"""The real promtool and Prometheus, asked about very many configurations by few processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .tcp_proxy import free_port

__all__ = ["NOWHERE", "Fate", "RealPrometheus", "needs_prometheus", "refusals", "running_prometheus", "write_document"]

NOWHERE = "http://127.0.0.1:1"
"""A proxy that is not there: with it a scrape ends at once, and nobody is asked for a name."""

_missing = [name for name in ("promtool", "prometheus") if shutil.which(name) is None]
needs_prometheus = pytest.mark.skipif(
    bool(_missing) and not os.environ.get("TRIO_SD_REQUIRE_SERVERS"),
    reason=f"{' and '.join(_missing)} not installed: nothing to compare with",
)

_FILES_AT_ONCE = 2_000
_ANSWER = 60.0  # seconds that it has for an answer
_START = 60.0  # and until it has made all targets

_REFUSED_TARGET = re.compile(
    r'scrape_pool=(?P<job>"[^"]*"|\S+) .*msg="Creating target failed"'
    r' err="instance \d+ in group [^ ]*: (?P<reason>.*)"$'
)
_SYNCED = re.compile(r'^prometheus_target_scrape_pool_sync_total\{scrape_job="([^"]*)"\} [1-9]', re.MULTILINE)
_ODD = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def write_document(file: Path, document: object) -> None:
    """Write ``document`` as JSON that Go's YAML reads as the same text: pairs of escapes are two characters to it."""
    text = json.dumps(document, ensure_ascii=False)
    file.write_text(_ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def refusals(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """Return why promtool refuses files in ``directory``, by their names; those that it accepts are not there."""
    found = {}
    asked = list(names)
    while asked:
        told = subprocess.run(
            ["promtool", "check", "config", "--syntax-only", *asked[:_FILES_AT_ONCE]],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ANSWER,
            check=False,
        )
        _, *answers = re.split("^Checking (.*)$", told.stdout.decode(), flags=re.MULTILINE)
        for name, answer in zip(answers[::2], answers[1::2], strict=True):
            assert name == asked.pop(0)
            # It also makes the targets of static_configs, which is another question than whether the file is good.
            # It breaks down at some mistakes; then it has not looked at the files after this one.
            if "panic: " in answer or "  FAILED: parsing YAML file " in answer:
                found[name] = answer.strip()
        assert answers, told.stdout.decode()
    return found


@dataclass
class Fate:
    """What became of the targets of one job.

    Attributes:
      labels: the final labels of those that are scraped, each different set once; without hidden ones.
      refused: why others can't be used, in the server's words.
    """

    labels: set[frozenset[tuple[str, str]]] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)


class RealPrometheus:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log

    def _ask(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=_ANSWER) as answer:
            text: str = answer.read().decode()
        return text

    def wait(self, jobs: Collection[str]) -> None:
        """Wait until it has made the targets of these jobs, which takes it five seconds at the least."""
        deadline = time.monotonic() + _START
        missing = set(jobs)
        while True:
            with suppress(urllib.error.URLError, ConnectionError):  # it may not have begun to listen
                missing.difference_update(_SYNCED.findall(self._ask("/metrics")))
            if not missing:
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"prometheus has not made the targets of {sorted(missing)[:5]}; it said: {said}")
            time.sleep(0.25)

    def value(self, query: str) -> float | None:
        """Return the one number that a query finds now, if it finds anything."""
        answer = json.loads(self._ask(f"/api/v1/query?query={urllib.parse.quote(query)}"))
        found = answer["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def fates(self) -> tuple[dict[str, Fate], int]:
        """Return what became of the targets of each job that has any, and how many were dropped in all."""
        targets: Mapping[str, Any] = json.loads(self._ask("/api/v1/targets"))["data"]
        found: dict[str, Fate] = defaultdict(Fate)
        for target in targets["activeTargets"]:
            found[target["scrapePool"]].labels.add(frozenset(target["labels"].items()))
        for line in self._log.read_text().splitlines():
            match = _REFUSED_TARGET.search(line)
            if match:
                found[match["job"].strip('"')].refused.append(json.loads(f'"{match["reason"]}"'))
        return found, len(targets["droppedTargets"])


@contextmanager
def running_prometheus(directory: Path, config: Path) -> Iterator[RealPrometheus]:
    """Run a server for the time of the block. It keeps in ``directory`` what it writes."""
    port, log = free_port(), directory / "prometheus.log"
    command = [
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data", "--log.level=error"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=no-default-scrape-port"),
    ]
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
    try:
        yield RealPrometheus(process, port, log)
    finally:
        process.kill()
        process.wait()
