"""``trio-sd demo``: the whole engine on nothing but a temporary directory.

Real files, a real SIGHUP, the real tables; only the operator is scripted. Every step waits until what it did is seen,
so a demo that ends well has shown what it says.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import trio
import trio_util

from .errors import TrioSDError
from .manager import Manager
from .reload import Reloader

__all__ = ["DemoError", "demo_files", "play"]

_PAUSE = 1.2  # seconds for which a person looks at a step
_PATIENCE = 5.0  # seconds within which a step must be seen

_CONFIG = """\
global:
  scrape_interval: 15s
scrape_configs:
  - job_name: prometheus
    static_configs:
      - targets: ["localhost:9090"]
  - job_name: web
    file_sd_configs:
      - files: ["targets/*.json"]
"""
_CONFIG_WITH_DATABASE = (
    _CONFIG
    + """\
  - job_name: database
    file_sd_configs:
      - files: ["database.yml"]
"""
)


class DemoError(TrioSDError):
    """A step of the demo was not seen in time."""


@contextmanager
def demo_files() -> Iterator[str]:
    """Write the demo's configuration and target files; yield the configuration's path; remove them in the end."""
    with tempfile.TemporaryDirectory(prefix="trio-sd-demo-") as directory:
        os.mkdir(os.path.join(directory, "targets"))
        path = os.path.join(directory, "prometheus.yml")
        _write(path, _CONFIG)
        _write_targets(directory, "a.json", ["web-1:80", "web-2:80"], {"zone": "a"})
        _write(os.path.join(directory, "database.yml"), "- targets: [db-1:5432]\n  labels: {role: primary}\n")
        yield path


async def play(path: str, manager: Manager, reloader: Reloader, caption: Callable[[str], None]) -> None:
    """Change the files at ``path`` step by step, and wait until each step is seen.

    Args:
      path: as :func:`demo_files` gave it.
      manager: runs that configuration.
      reloader: reloads it on SIGHUP.
      caption: told what happens.

    Raises:
      DemoError: a step was not seen within five seconds.
    """
    directory = os.path.dirname(path)
    script = _Script(manager, caption)

    def rename_over() -> None:
        _write_targets(directory, "a.json", ["web-1:80", "web-2:80", "web-3:80"], {"zone": "a"})

    def new_file() -> None:
        _write_targets(directory, "b.json", ["web-4:80"], {"zone": "b"})

    def half_written() -> None:
        _write(os.path.join(directory, "targets", "a.json"), '[{"targets": ["web-1:80", "we', rename=False)

    def written_out() -> None:
        text = json.dumps([{"targets": ["web-1:80", "web-2:80"], "labels": {"zone": "c"}}])
        _write(os.path.join(directory, "targets", "a.json"), text, rename=False)

    def sighup() -> None:
        _write(path, _CONFIG_WITH_DATABASE)
        os.kill(os.getpid(), signal.SIGHUP)

    def bad_sighup() -> None:
        _write(path, _CONFIG_WITH_DATABASE.replace("file_sd_configs", "fiel_sd_configs"))
        os.kill(os.getpid(), signal.SIGHUP)

    def remove() -> None:
        os.remove(os.path.join(directory, "targets", "b.json"))

    await script.step(
        "two jobs: one static, one from files", None, lambda: script.counts == {"prometheus": 1, "web": 2}
    )
    await script.step("a.json is replaced by rename: web-3 is new", rename_over, lambda: script.counts["web"] == 3)
    await script.step("b.json appears: web-4 is new", new_file, lambda: script.counts["web"] == 4)
    await script.step("a.json is half written: its last good targets stay", half_written, lambda: script.failing)
    await script.step(
        "a.json is whole again: web-3 goes, the zone changes", written_out, lambda: script.counts["web"] == 3
    )
    await script.step(
        "SIGHUP: a job is added; nothing else flickers", sighup, lambda: script.counts.get("database") == 1
    )
    await script.step(
        "SIGHUP with a typing error: refused, everything goes on",
        bad_sighup,
        lambda: reloader.statistics().failed == 1 and script.counts["web"] == 3,
    )
    await script.step("b.json is removed: web-4 goes", remove, lambda: script.counts["web"] == 2)


class _Script:
    """Carries out steps, and sees what became of them."""

    def __init__(self, manager: Manager, caption: Callable[[str], None]) -> None:
        self._manager = manager
        self._caption = caption
        self._number = 0

    @property
    def counts(self) -> Mapping[str, int]:
        return {one.name: one.targets for one in self._manager.statistics().sets}

    @property
    def failing(self) -> bool:
        return any(provider.state == "failing" for provider in self._manager.statistics().providers)

    async def step(self, text: str, action: Callable[[], None] | None, seen: Callable[[], bool]) -> None:
        self._number += 1
        self._caption(f"{self._number}. {text}")
        if action is not None:
            action()
        with trio.move_on_after(_PATIENCE):
            # Health changes without an update, so there is no event to wait for; a demo may look.
            async for _ in trio_util.periodic(0.02):
                if seen():
                    break
            self._caption(f"{self._number}. {text}")
            await trio.sleep(_PAUSE)
            return
        raise DemoError(f"not seen within {_PATIENCE:g} s: {text}")


def _write_targets(directory: str, name: str, targets: list[str], labels: dict[str, str]) -> None:
    _write(os.path.join(directory, "targets", name), json.dumps([{"targets": targets, "labels": labels}]))


def _write(path: str, text: str, *, rename: bool = True) -> None:
    written = f"{path}.new" if rename else path
    with open(written, "w") as file:
        file.write(text)
    if rename:
        os.replace(written, path)
