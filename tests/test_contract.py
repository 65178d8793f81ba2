"""Every mechanism keeps every rule of the contract.

To add a mechanism: write a source that does what it is told, and add what opens it to ``SOURCES``.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import dns.message
import dns.rcode
import pytest
import trio

from trio_sd import ConsulSDConfig, FileSDConfig, HTTPSDConfig, ServersetSDConfig
from trio_sd.discovery.consul import discoverer, query
from trio_sd.discovery.dns import lookup
from trio_sd.discovery.static import StaticConfig
from trio_sd.durations import Duration
from trio_sd.testing import ContractRule, ContractSource, OpenSource, contract_rules, group

from .consul import ConsulServer, open_consul
from .http_servers import Response, Switch, TargetList, hang, open_http_server
from .name_servers import Names, answering, reply
from .tcp_proxy import Proxy, open_proxy
from .zookeeper import Tree, ZooKeeperServer, needs_zookeeper, open_tree

PATIENCE = 10.0


def check(rule: ContractRule, open_source: OpenSource) -> None:
    trio.run(partial(rule.check, open_source, patience=PATIENCE))


class StaticSource(ContractSource):
    def __init__(self) -> None:
        self.config = StaticConfig()

    async def show(self, *addresses: str) -> None:
        self.config = StaticConfig(tuple([group(str(i), address) for i, address in enumerate(addresses)]))


@asynccontextmanager
async def open_static() -> AsyncIterator[ContractSource]:
    yield StaticSource()


class FileSource(ContractSource):
    can = frozenset({"change", "fail"})

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.config = FileSDConfig(files=(f"{directory}/*.json",))

    async def show(self, *addresses: str) -> None:
        self._write(json.dumps([{"targets": [address]} for address in addresses]))

    async def fail(self) -> None:
        self._write('[{"targets": [')

    def _write(self, text: str) -> None:
        (self._directory / "new").write_text(text)
        os.replace(self._directory / "new", self._directory / "t.json")


@asynccontextmanager
async def open_files() -> AsyncIterator[ContractSource]:
    with tempfile.TemporaryDirectory() as directory:
        source = FileSource(Path(directory))
        await source.show()
        yield source


class HTTPSource(ContractSource):
    can = frozenset({"change", "fail", "hang"})

    def __init__(self, switch: Switch, url: str) -> None:
        self._switch = switch
        self.config = HTTPSDConfig(url=url, refresh_interval=Duration.of("200ms"))

    async def show(self, *addresses: str) -> None:
        self._switch.route = TargetList([{"targets": [address]} for address in addresses])

    async def fail(self) -> None:
        self._switch.route = Response(500)

    async def hang(self) -> None:
        self._switch.route = hang


@asynccontextmanager
async def open_http() -> AsyncIterator[ContractSource]:
    switch = Switch(TargetList([]))
    async with open_http_server({"/": switch}) as server:
        yield HTTPSource(switch, server.url())


class DNSSource(ContractSource):
    can = frozenset({"change", "fail", "hang"})

    def __init__(self, directory: Path, port: int) -> None:
        self._shown: Sequence[str] = ()
        self._state = "good"
        self.config = self._names = Names(("web.test.",), "A", str(directory / "resolv.conf"), port)

    async def show(self, *addresses: str) -> None:
        self._shown = [address.partition(":")[0] for address in addresses]
        self._state = "good"
        if addresses:
            self._names = replace(self._names, target_port=int(addresses[0].partition(":")[2]))
            self.config = self._names

    async def fail(self) -> None:
        self._state = "failing"

    async def hang(self) -> None:
        self._state = "hanging"

    async def answer(self, query: dns.message.Message) -> Sequence[bytes]:
        """Return what the name server sends."""
        if self._state == "hanging":
            return ()
        response = reply(query, *self._shown)
        if self._state == "failing":
            response.set_rcode(dns.rcode.SERVFAIL)
        return [response.to_wire()]


@asynccontextmanager
async def open_dns() -> AsyncIterator[ContractSource]:
    source: DNSSource | None = None

    async def answer(query: dns.message.Message) -> Sequence[bytes]:
        assert source is not None
        return await source.answer(query)

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_PATIENCE", 0.3)
        async with answering(Path(directory), answer) as resolver:
            source = DNSSource(Path(directory), resolver.port)
            yield source


class ConsulSource(ContractSource):
    can = frozenset({"change", "fail", "hang"})

    def __init__(self, server: ConsulServer) -> None:
        self._server = server
        self._shown: set[str] = set()
        self.config = ConsulSDConfig(server=server.address, refresh_interval=Duration.of("50ms"))

    async def show(self, *addresses: str) -> None:
        self._server.heal()
        for address in self._shown.difference(addresses):
            self._server.deregister("node", address)
        for address in set(addresses) - self._shown:
            host, _, port = address.partition(":")
            self._server.register("node", "web", id=address, address=host, port=int(port))
        self._shown = set(addresses)

    async def fail(self) -> None:
        self._server.fail()
        self._server.drop_connections()

    async def hang(self) -> None:
        self._server.hang()
        self._server.drop_connections()


@asynccontextmanager
async def open_consul_source() -> AsyncIterator[ContractSource]:
    async with open_consul() as server:
        # A query that hangs can't be told from one that waits, so that takes as long: here, not for two minutes.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(query, "WAIT", 0.3)
            patch.setattr(discoverer, "DEADLINE", 0.6)
            patch.setattr(discoverer, "AT_ONCE", 0.6)
            yield ConsulSource(server)


SOURCES = [
    pytest.param(open_static, id="static"),
    pytest.param(open_files, id="file"),
    pytest.param(open_http, id="http"),
    pytest.param(open_dns, id="dns"),
    pytest.param(open_consul_source, id="consul"),
]


@pytest.mark.parametrize("rule", contract_rules(), ids=str)
@pytest.mark.parametrize("open_source", SOURCES)
def test_the_contract(open_source: OpenSource, rule: ContractRule) -> None:
    check(rule, open_source)


class ServersetSource(ContractSource):
    can = frozenset({"change", "fail", "hang"})

    def __init__(self, proxy: Proxy, tree: Tree, root: str) -> None:
        self._proxy = proxy
        self._tree = tree
        self._root = root
        self._shown: set[str] = set()
        self.config = ServersetSDConfig(servers=(proxy.hosts,), paths=(root,), timeout=Duration.of("1s"))

    async def show(self, *addresses: str) -> None:
        for address in self._shown.difference(addresses):
            await self._tree.delete(f"{self._root}/{address}")
        for address in set(addresses) - self._shown:
            host, _, port = address.partition(":")
            member = {"serviceEndpoint": {"host": host, "port": int(port)}, "additionalEndpoints": {}}
            await self._tree.create(f"{self._root}/{address}", json.dumps(member).encode())
        self._shown = set(addresses)
        self._proxy.heal()
        await self._proxy.accept()

    async def fail(self) -> None:
        self._proxy.refuse()
        self._proxy.reset()

    async def hang(self) -> None:
        self._proxy.partition()


@needs_zookeeper
@pytest.mark.parametrize("rule", contract_rules(), ids=str)
def test_the_contract_of_serversets(shared_zookeeper: ZooKeeperServer, rule: ContractRule) -> None:
    @asynccontextmanager
    async def open_serverset() -> AsyncIterator[ContractSource]:
        root = f"/test-{uuid.uuid4().hex}"
        async with open_proxy(shared_zookeeper.port) as proxy, open_tree(shared_zookeeper.hosts) as tree:
            await tree.create(root)
            yield ServersetSource(proxy, tree, root)

    check(rule, open_serverset)
