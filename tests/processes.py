"""The ``trio-sd`` command as its users run it: a process of its own, real files, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

COMMAND = [sys.executable, "-X", "faulthandler", "-W", "error", "-m", "trio_sd"]
# Processes are started by the hundred: none is to compile everything again, though the environment may say so.
ENVIRONMENT = {
    **os.environ,
    "PYTHONUNBUFFERED": "",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": os.path.join(tempfile.gettempdir(), f"trio-sd-tests-{os.getuid()}"),
}
PATIENCE = 30.0


def run_command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=cwd,
        env=ENVIRONMENT,
        check=False,
    )


class Running:
    """A command that runs."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._rest = {"stdout": b"", "stderr": b""}
        self.log: list[str] = []

    async def _line(self, stream: str) -> str:
        source = getattr(self.process, stream)
        while b"\n" not in self._rest[stream]:
            data = await source.receive_some(1 << 20)
            if not data:
                raise EOFError(f"{stream} ended; the log was: {self.log}")
            self._rest[stream] += data
        line, _, self._rest[stream] = self._rest[stream].partition(b"\n")
        return line.decode()

    async def update(self) -> dict[str, Any]:
        """Return the next line of stdout, decoded."""
        with trio.fail_after(PATIENCE):
            decoded: dict[str, Any] = json.loads(await self._line("stdout"))
            return decoded

    async def update_with(self, set_name: str) -> dict[str, Any]:
        """Return what the next update that changes ``set_name`` says of it."""
        while True:
            update = await self.update()
            found: dict[str, Any] = update["sets"].get(set_name, {})
            if any(found.values()):
                return found

    async def logged(self, text: str) -> str:
        """Return the next log line that contains ``text``."""
        with trio.fail_after(PATIENCE):
            while True:
                line = await self._line("stderr")
                self.log.append(line)
                if text in line:
                    return line

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def end(self) -> int:
        """Wait for its end, and return its exit status."""
        with trio.fail_after(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def running(*arguments: str | Path, cwd: Path | None = None) -> AsyncIterator[Running]:
    """Start the command, and kill it in the end if it still runs."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=ENVIRONMENT,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()
