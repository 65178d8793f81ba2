"""Name servers on loopback: Debian's dnsmasq, whose zone a test writes, and one that does what no real one does."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import dns.flags
import dns.message
import dns.rrset
import pytest
import trio

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.dns import DNSDiscovery
from trio_sd.discovery.dns.config import RecordType
from trio_sd.discovery.dns.lookup import Resolver, open_resolver
from trio_sd.polling import PollingDiscoverer

from .tcp_proxy import free_port

__all__ = ["NameServer", "Names", "answering", "needs_dnsmasq", "open_name_server", "reply"]

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
            self._config.write_text(
                f"{_FIXED.format(user=getpass.getuser())}port={self.port}\naddn-hosts={self._hosts}\n{zone}\n"
            )
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


@dataclass(frozen=True)
class Names(DiscovererConfig):
    """Names that are looked up at a server of the test, whose port no configuration can say."""

    mechanism: ClassVar[str] = "dns"

    names: tuple[str, ...]
    record_type: RecordType
    resolv_conf: str
    server_port: int
    interval: float = 0.05
    target_port: int = 80

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        opener = partial(open_resolver, self.resolv_conf, self.server_port)
        return PollingDiscoverer(
            options, DNSDiscovery(self.names, self.record_type, self.target_port, self.interval, opener=opener).poll
        )


Answer = Callable[[dns.message.Message], Awaitable[Sequence[bytes]]]


@asynccontextmanager
async def answering(tmp_path: Path, by_udp: Answer, by_tcp: Answer | None = None) -> AsyncIterator[Resolver]:
    """Run a server that answers with what a function returns: any number of datagrams, or bytes over TCP."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    with trio.socket.socket(type=socket.SOCK_DGRAM) as endpoint:
        await endpoint.bind(("127.0.0.1", port))

        async def serve_udp() -> None:
            while True:
                wire, sender = await endpoint.recvfrom(4096)
                for datagram in await by_udp(dns.message.from_wire(wire)):
                    await endpoint.sendto(datagram, sender)

        async def serve_tcp(stream: trio.SocketStream) -> None:
            async with stream:
                wire = await stream.receive_some(4096)
                assert by_tcp is not None
                for part in await by_tcp(dns.message.from_wire(bytes(wire)[2:])):
                    await stream.send_all(part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(trio.serve_listeners, serve_tcp, [listener])
            yield Resolver(str(tmp_path / "resolv.conf"), port)
            nursery.cancel_scope.cancel()


def reply(query: dns.message.Message, *texts: str, record_type: str = "A", flags: int = 0) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.flags |= flags
    if texts:
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", record_type, *texts))
    return response
