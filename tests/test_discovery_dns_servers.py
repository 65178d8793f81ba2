"""Discovery from DNS against a real name server whose zone changes, and against what no real one does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_sd.config import parse_config
from trio_sd.discovery import default_registry
from trio_sd.discovery.dns import DNSSDConfig
from trio_sd.discovery.dns.config import RecordType
from trio_sd.discovery.dns.lookup import Resolver
from trio_sd.errors import ConfigError, DiscoveryError
from trio_sd.manager import Manager, open_manager
from trio_sd.testing import check_discoverer

from .managing import AT_ONCE
from .name_servers import Names, NameServer, answering, needs_dnsmasq, open_name_server, reply

ZONE = """
host-record=web.svc.test,10.0.0.1,fd00::1
host-record=web.svc.test,10.0.0.2
host-record=only.other.test,10.0.0.3
cname=alias.svc.test,web.svc.test
srv-host=_http._tcp.svc.test,web.svc.test,8080
mx-host=svc.test,mail.svc.test,10
dns-rr=svc.test,2,026e73047465737400
"""


def names(server: NameServer, *wanted: str, record_type: RecordType = "A", interval: float = 0.05) -> Names:
    return Names(wanted, record_type, str(server.resolv_conf), server.port, interval)


def addresses(manager: Manager) -> list[str]:
    return [target["__address__"] for group in manager.snapshot()["job"] for target in group.targets]


async def wait_for(manager: Manager, *expected: str) -> None:
    """Wait until exactly these addresses are shown."""
    with trio.fail_after(10):
        async with manager.subscribe(throttle=AT_ONCE) as updates:
            async for _ in updates:
                if sorted(addresses(manager)) == sorted(expected):
                    return


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells of but statistics."""
    with trio.fail_after(10):
        while not condition():
            await wait_all_tasks_blocked(0.01)


# --- a real server ---


@needs_dnsmasq
async def test_records_of_each_type_are_found(tmp_path: Path) -> None:
    async with open_name_server(tmp_path, ZONE) as server:
        resolver = Resolver(str(server.resolv_conf), server.port)
        found = {}
        for name, record_type in (
            ("web.svc.test", "A"),
            ("web", "AAAA"),
            ("alias", "A"),
            ("only", "A"),
            ("_http._tcp", "SRV"),
            ("svc.test.", "MX"),
            ("svc.test", "NS"),
        ):
            answer = await resolver.look_up(name, record_type)  # type: ignore[arg-type]  # mypy sees any text here
            assert (answer.note, answer.tcp) == ("", False)
            found[name, record_type] = sorted(record.to_text() for record in answer.records)
    assert found == {
        ("web.svc.test", "A"): ["10.0.0.1", "10.0.0.2"],
        ("web", "AAAA"): ["fd00::1"],
        ("alias", "A"): ["10.0.0.1", "10.0.0.2"],
        ("only", "A"): ["10.0.0.3"],
        ("_http._tcp", "SRV"): ["0 0 8080 web.svc.test."],
        ("svc.test.", "MX"): ["10 mail.svc.test."],
        ("svc.test", "NS"): ["ns.test."],
    }


@needs_dnsmasq
async def test_what_does_not_exist_is_empty_and_told(tmp_path: Path) -> None:
    async with open_name_server(tmp_path, ZONE) as server:
        resolver = Resolver(str(server.resolv_conf), server.port)
        assert await resolver.look_up("none.svc.test.", "A") == await resolver.look_up("none.test.", "SRV")
        assert (await resolver.look_up("none.svc.test.", "A")).note == "does not exist"
        nothing = await resolver.look_up("_http._tcp.svc.test.", "A")
        assert (list(nothing.records), nothing.note) == ([], "has no record of the type A")


@needs_dnsmasq
async def test_a_server_that_refuses_knows_nothing(tmp_path: Path) -> None:
    async with open_name_server(tmp_path, ZONE) as server:
        resolver = Resolver(str(server.resolv_conf), server.port)
        with pytest.raises(DiscoveryError, match=r"no server has an answer; prometheus.io.: 127.0.0.1: REFUSED"):
            await resolver.look_up("prometheus.io.", "A")
        # The domains of the search list say no, but about the name itself nobody says anything.
        with pytest.raises(DiscoveryError, match="REFUSED"):
            await resolver.look_up("prometheus.io", "A")


@needs_dnsmasq
async def test_an_answer_that_is_too_long_is_fetched_by_tcp(tmp_path: Path) -> None:
    zone = "\n".join(f"srv-host=_many._tcp.svc.test,host-{n}.svc.test,{8000 + n}" for n in range(300))
    async with open_name_server(tmp_path, zone) as server:
        answer = await Resolver(str(server.resolv_conf), server.port).look_up("_many._tcp", "SRV")
        assert answer.tcp
        assert len(answer.records) == 300
        async with open_manager({"job": [names(server, "_many._tcp", record_type="SRV")]}) as manager:
            await manager.wait_synced()
            assert len(addresses(manager)) == 300
            assert manager.statistics().providers[0].details.counters["tcp_lookups"] >= 1


@needs_dnsmasq
async def test_a_zone_that_changes_is_followed(tmp_path: Path) -> None:
    async with (
        open_name_server(tmp_path, ZONE) as server,
        open_manager({"job": [names(server, "web", "new.svc.test.")]}, throttle=AT_ONCE) as manager,
    ):
        await wait_for(manager, "10.0.0.1:80", "10.0.0.2:80")
        assert manager.statistics().providers[0].details.notes == ("new.svc.test. A: does not exist",)
        server.set_hosts("10.0.0.9 new.svc.test\n")
        await wait_for(manager, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80")
        server.set_hosts("10.0.0.8 new.svc.test\n")
        await wait_for(manager, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.8:80")
        server.set_hosts("")
        await wait_for(manager, "10.0.0.1:80", "10.0.0.2:80")


@needs_dnsmasq
async def test_a_server_that_goes_takes_no_target_with_it(tmp_path: Path) -> None:
    async with (
        open_name_server(tmp_path, ZONE) as server,
        open_manager({"job": [names(server, "web")]}, throttle=AT_ONCE) as manager,
    ):
        await wait_for(manager, "10.0.0.1:80", "10.0.0.2:80")
        await server.stop()
        await wait_until(lambda: manager.statistics().providers[0].state == "failing")
        (error,) = manager.statistics().providers[0].details.errors
        assert re.fullmatch(r"web A: no server has an answer; .*127.0.0.1: Connection refused", error)
        assert addresses(manager) == ["10.0.0.1:80", "10.0.0.2:80"]
        await manager.apply_config({"job": [names(server, "web")]})
        await wait_until(lambda: manager.statistics().providers[0].state == "failing")
        assert addresses(manager) == ["10.0.0.1:80", "10.0.0.2:80"]
        await server.start(ZONE.replace("10.0.0.2", "10.0.0.7"))
        await wait_for(manager, "10.0.0.1:80", "10.0.0.7:80")
        await wait_until(lambda: manager.statistics().providers[0].state == "synced")


@needs_dnsmasq
async def test_records_in_another_order_are_no_news(tmp_path: Path) -> None:
    async with (
        open_name_server(tmp_path, ZONE) as server,  # which turns them round with each answer
        open_manager({"job": [names(server, "web", interval=0.02)]}, throttle=AT_ONCE) as manager,
    ):
        await manager.wait_synced()
        revision = manager.snapshot().revision
        await wait_until(lambda: manager.statistics().providers[0].details.counters["looks"] > 10)
        assert manager.snapshot().revision == revision


@needs_dnsmasq
async def test_discovery_from_dns_keeps_the_contract(tmp_path: Path) -> None:
    async with open_name_server(tmp_path, ZONE) as server:
        found = await check_discoverer(names(server, "web", "_http._tcp", record_type="A"))
    assert [group.source for group in found] == ["web"]


# --- what no real server does ---


async def test_what_is_no_answer_to_the_question_is_not_listened_to(tmp_path: Path) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        good = reply(query, "10.0.0.1").to_wire()
        other_id = bytes([good[0] ^ 1]) + good[1:]
        other = dns.message.make_query("other.test.", "A", id=query.id)
        return [b"", b"x", other_id, good[:20], reply(other, "10.6.6.6").to_wire(), query.to_wire(), good]

    async with answering(tmp_path, by_udp) as resolver:
        found = await resolver.look_up("web.test.", "A")
    assert [record.to_text() for record in found.records] == ["10.0.0.1"]


async def test_a_server_that_is_silent_is_given_two_seconds(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        return ()

    async with answering(tmp_path, by_udp) as resolver:
        begun = trio.current_time()
        with pytest.raises(DiscoveryError, match=r"127\.0\.0\.1: no answer within 2 s"):
            await resolver.look_up("web.test.", "A")
        assert trio.current_time() - begun == pytest.approx(2)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], "the server has closed the connection"),
        ([b"\x00\x50half"], "the server has closed the connection"),
        ([b"\x00\x04none"], "no whole answer by TCP"),
        (None, "no whole answer by TCP"),
    ],
)
async def test_what_is_no_whole_answer_by_tcp_is_none(tmp_path: Path, parts: list[bytes] | None, told: str) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        return [reply(query, flags=dns.flags.TC).to_wire()]

    async def by_tcp(query: dns.message.Message) -> Sequence[bytes]:
        if parts is None:
            wire = reply(query, "10.0.0.1", flags=dns.flags.TC).to_wire()
            return [len(wire).to_bytes(2, "big") + wire]
        return parts

    async with answering(tmp_path, by_udp, by_tcp) as resolver:
        with pytest.raises(DiscoveryError, match=told):
            await resolver.look_up("web.test.", "A")


async def test_an_answer_by_tcp_may_come_in_parts(tmp_path: Path) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        return [reply(query, flags=dns.flags.TC).to_wire()]

    async def by_tcp(query: dns.message.Message) -> Sequence[bytes]:
        wire = reply(query, "10.0.0.1").to_wire()
        wire = len(wire).to_bytes(2, "big") + wire
        return [wire[i : i + 1] for i in range(len(wire))]

    async with answering(tmp_path, by_udp, by_tcp) as resolver:
        found = await resolver.look_up("web.test.", "A")
    assert found.tcp
    assert len(found.records) == 1


async def test_records_of_other_types_are_passed_over_and_told(tmp_path: Path) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        response = reply(query, "10.0.0.1")
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "TXT", '"x"'))
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "CNAME", "other.test."))
        return [response.to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        found = await resolver.look_up("web.test.", "A")
    assert found.note == "passed over records of the type TXT"
    assert len(found.records) == 1


async def test_the_next_server_is_asked_where_one_has_no_answer(tmp_path: Path) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        return [reply(query, "10.0.0.1").to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        (tmp_path / "resolv.conf").write_text("nameserver name\nnameserver 127.0.0.2\nnameserver 127.0.0.1\n")
        assert len((await resolver.look_up("web.test.", "A")).records) == 1
        (tmp_path / "resolv.conf").unlink()
        assert len((await resolver.look_up("web.test.", "A")).records) == 1  # it is looked at once a second


async def test_resolv_conf_is_read_when_it_has_changed(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        return [reply(query, "10.0.0.1").to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        file = tmp_path / "resolv.conf"
        content = file.read_text()
        await resolver.look_up("web.test.", "A")
        file.write_text("nameserver nobody\n")
        mock_clock.jump(1)
        with pytest.raises(DiscoveryError, match="nobody: not an address"):
            await resolver.look_up("web.test.", "A")
        file.unlink()
        mock_clock.jump(1)
        with pytest.raises(DiscoveryError, match=r"can't read .*resolv.conf\": No such file"):
            await resolver.look_up("web.test.", "A")
        file.write_text(content)
        assert len((await resolver.look_up("web.test.", "A")).records) == 1


async def test_a_name_that_hangs_delays_no_other_of_its_configuration(tmp_path: Path) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        return () if "hang" in str(query.question[0].name) else [reply(query, "10.0.0.1").to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        config = Names(("hang.test.", "web.test."), "A", str(tmp_path / "resolv.conf"), resolver.port, 0.02)
        async with open_manager({"job": [config]}, throttle=AT_ONCE) as manager:
            with trio.fail_after(10):
                await manager.wait_synced()  # which waits for the name that hangs, but only for its deadline
            before = manager.statistics().providers[0].details.counters["looks"]
            assert before > 20
            assert addresses(manager) == ["10.0.0.1:80"]
            assert "hang.test. A: " in manager.statistics().providers[0].details.errors[0]


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", ".".join(["long"] * 60)])
async def test_what_is_no_name_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    with pytest.raises(DiscoveryError, match="is no name of DNS"):
        await Resolver(str(tmp_path / "resolv.conf"), 9).look_up(name, "A")


# --- configuration ---


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("{}", "DNS-SD config must contain at least one SRV record name"),
        ("{names: [a], type: A}", "a port is required in DNS-SD configs for all record types except SRV"),
        ("{names: [a], type: aaaa}", "a port is required"),
        ("{names: [a], type: TXT}", "invalid DNS-SD records type TXT, expected one of: A, AAAA, SRV, MX, NS"),
        ("{names: [a], type: A, port: 65536}", "found 65536, expected a port from 1 to 65535"),
        ("{names: [a], refresh_interval: 0s}", "the refresh interval must be greater than zero"),
        ("{names: [a], server: x}", "field server not found"),
    ],
)
def test_what_can_not_be_used_is_refused(section: str, told: str) -> None:
    text = f"scrape_configs: [{{job_name: j, dns_sd_configs: [{section}]}}]"
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_config(text.encode(), file="p.yml", registry=default_registry())


def test_the_defaults_are_those_of_prometheus() -> None:
    text = b"scrape_configs: [{job_name: j, dns_sd_configs: [{names: [a, b]}, {names: [c], type: mx, port: 25}]}]"
    first, second = parse_config(text, file="p.yml", registry=default_registry()).scrape["j"]
    assert first == DNSSDConfig(names=("a", "b"))
    assert isinstance(first, DNSSDConfig)
    assert (first.type, first.refresh_interval.seconds) == ("SRV", 30)
    assert second == DNSSDConfig(names=("c",), type="mx", port=25)
