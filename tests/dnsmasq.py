"""Debian's dnsmasq: a real name server on loopback, whose zone a test writes."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from .tcp_proxy import free_port

__all__ = ["NameServer", "needs_dnsmasq", "open_name_server"]

_DNSMASQ = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_dnsmasq = pytest.mark.skipif(
    _DNSMASQ is None and not os.environ.get("TRIO_SD_REQUIRE_SERVERS"),
    reason="dnsmasq is not installed (apt install dnsmasq-base)",
)

# It stays who started it, or it could not read the files of a test again.
_FIXED = """
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
no-daemon
user={user}
log-facility=-
local=/test/
"""


class NameServer:
    """A name server that knows the names below ``test``, and refuses all others.

    Args:
      directory: for its files.
    """

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.resolv_conf = directory / "resolv.conf"
        self._config = directory / "dnsmasq.conf"
        self._hosts = directory / "hosts"
        self._process: trio.Process | None = None
        self.resolv_conf.write_text("nameserver 127.0.0.1\nsearch svc.test other.test\n")
        self._hosts.write_text("")

    async def start(self, zone: str = "") -> None:
        """Start it with these lines of configuration, or those that it had; return once it listens."""
        if zone:
            self._config.write_text(f"{_FIXED.format(user=getpass.getuser())}port={self.port}\naddn-hosts={self._hosts}\n{zone}\n")
        assert _DNSMASQ is not None, "dnsmasq is not installed"
        command = [_DNSMASQ, f"--conf-file={self._config}"]
        self._process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
        await self._logged(b"started")

    async def change(self, zone: str) -> None:
        """Restart it with another zone."""
        await self.stop()
        await self.start(zone)

    def set_hosts(self, lines: str) -> None:
        """Change names with addresses, which it soon knows, without a restart: it reads them again on SIGHUP."""
        self._hosts.write_text(lines)
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Stop it; its port is closed then."""
        if self._process is not None:
            self._process.kill()
            with trio.CancelScope(shield=True):
                await self._process.wait()
                assert self._process.stderr is not None
                await self._process.stderr.aclose()
            self._process = None

    async def _logged(self, text: bytes) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with trio.fail_after(10):
            seen = b""
            while text not in seen:
                data = await self._process.stderr.receive_some()
                assert data, seen.decode()
                seen += data


@asynccontextmanager
async def open_name_server(directory: Path, zone: str) -> AsyncIterator[NameServer]:
    """Run one for the time of the block."""
    server = NameServer(directory)
    try:
        await server.start(zone)
        yield server
    finally:
        await server.stop()
