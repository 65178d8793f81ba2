"""Looking up names: whose word counts, what bad answers and bad settings do, and what is left when it is cancelled."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_sd.discovery.dns import lookup as room
from trio_sd.discovery.dns.config import RecordType
from trio_sd.discovery.dns.records import target_group
from trio_sd.discovery.dns.resolv_conf import ResolvConf
from trio_sd.errors import DiscoveryError
from trio_sd.manager import open_manager
from trio_sd.testing import cancel_everywhere

from .managing import AT_ONCE
from .name_servers import Names, answering, reply

Result = tuple[list[str], str]

PATIENCE = 10.0
CUT = dns.flags.TC


async def good(query: dns.message.Message) -> Sequence[bytes]:
    return [reply(query, "10.0.0.1").to_wire()]


async def too_long(query: dns.message.Message) -> Sequence[bytes]:
    return [reply(query, flags=CUT).to_wire()]


def framed(response: dns.message.Message) -> bytes:
    """Return what is sent by TCP."""
    wire = response.to_wire()
    return len(wire).to_bytes(2, "big") + wire


async def found(resolver: room.Resolver, name: str) -> Result:
    """Return the addresses of a name, and what is noted."""
    with trio.fail_after(PATIENCE):
        answer = await resolver.look_up(name, "A")
    return [record.to_text() for record in answer.records], answer.note


# --- whose word counts ---

ADDRESS: Result = (["10.0.0.1"], "")
NO_RECORD: Result = ([], "has no record of the type A")
NOT_THERE: Result = ([], "does not exist")


@pytest.mark.parametrize(
    ("in_a", "in_b", "as_it_is", "expected", "asked"),
    [
        ("ADDRESS", "ADDRESS", "ADDRESS", ADDRESS, 1),
        ("NXDOMAIN", "ADDRESS", "ADDRESS", ADDRESS, 2),
        ("NXDOMAIN", "NXDOMAIN", "ADDRESS", ADDRESS, 3),
        ("NXDOMAIN", "NXDOMAIN", "NXDOMAIN", NOT_THERE, 3),
        ("NOERROR", "ADDRESS", "ADDRESS", NO_RECORD, 1),  # it exists: others of the list are not meant
        ("NXDOMAIN", "NOERROR", "ADDRESS", NO_RECORD, 2),
        ("SERVFAIL", "ADDRESS", "NXDOMAIN", ADDRESS, 2),
        ("REFUSED", "NXDOMAIN", "NOERROR", NO_RECORD, 3),
        ("SERVFAIL", "NXDOMAIN", "NXDOMAIN", "web.a.test.: 127.0.0.1: SERVFAIL", 3),
        ("NXDOMAIN", "FORMERR", "NXDOMAIN", "web.b.test.: 127.0.0.1: FORMERR", 3),
        ("NXDOMAIN", "NXDOMAIN", "NOTIMP", "web.: 127.0.0.1: NOTIMP", 3),
        ("SERVFAIL", "REFUSED", "NXDOMAIN", "web.a.test.: 127.0.0.1: SERVFAIL; web.b.test.: 127.0.0.1: REFUSED", 3),
    ],
)
async def test_nobody_knows_unless_one_has_it_or_all_deny_it(
    tmp_path: Path, in_a: str, in_b: str, as_it_is: str, expected: Result | str, asked: int
) -> None:
    answers = {"web.a.test.": in_a, "web.b.test.": in_b, "web.": as_it_is}
    queries = []

    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        queries.append(name := query.question[0].name.to_text())
        if answers[name] == "ADDRESS":
            return await good(query)
        response = reply(query)
        response.set_rcode(dns.rcode.from_text(answers[name]))
        return [response.to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch a.test b.test\n")
        if isinstance(expected, str):
            with pytest.raises(DiscoveryError) as raised:
                await found(resolver, "web")
            assert str(raised.value) == f"no server has an answer; {expected}"
        else:
            assert await found(resolver, "web") == expected
    assert len(queries) == asked


async def test_a_failure_names_each_server_and_what_it_said(tmp_path: Path) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        response = reply(query)
        response.set_rcode(dns.rcode.SERVFAIL)
        return [response.to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.2\nnameserver 127.0.0.1\nnameserver \x1b[2J\n")
        with pytest.raises(DiscoveryError) as raised:
            await found(resolver, "web.test.")
    told = r'web.test.: 127.0.0.2: Connection refused, 127.0.0.1: SERVFAIL, "\u001b[2J": not an address'
    assert str(raised.value) == f"no server has an answer; {told}"


@pytest.mark.parametrize(
    ("domain", "name"),
    [("a..b", "web"), ("x" * 64, "web"), (".".join(["long" * 5] * 9), ".".join(["web" * 5] * 6))],
)
async def test_a_domain_that_makes_no_name_hides_no_other(tmp_path: Path, domain: str, name: str) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        if query.question[0].name.to_text() == f"{name}.":
            return await good(query)
        response = reply(query)
        response.set_rcode(dns.rcode.NXDOMAIN)
        return [response.to_wire()]

    async with answering(tmp_path, by_udp) as resolver:
        (tmp_path / "resolv.conf").write_text(f"nameserver 127.0.0.1\nsearch {domain} b.test\noptions ndots:9\n")
        assert await found(resolver, name) == ADDRESS
        with pytest.raises(
            DiscoveryError, match="is no name of DNS"
        ):  # and that of all others there is none, is no news
            await found(resolver, f"x{name}")


@pytest.mark.parametrize(
    ("text", "ndots"),
    [("options ndots:1 ndots:5", 5), ("options ndots:5\noptions rotate", 5), ("options ndots:5\noptions ndots:2", 2)],
)
def test_the_last_ndots_counts(text: str, ndots: int) -> None:
    assert ResolvConf.parse(text).ndots == ndots


# --- what is too long ---


@pytest.mark.parametrize("cut", [1, 3, 16, 17, 30])
async def test_an_answer_cut_amid_a_record_is_fetched_by_tcp(tmp_path: Path, cut: int) -> None:
    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        response = reply(query, "10.6.6.6", "10.6.6.7", flags=CUT)
        response.use_edns(False)
        return [response.to_wire()[:-cut]]

    async def by_tcp(query: dns.message.Message) -> Sequence[bytes]:
        return [framed(reply(query, "10.0.0.1"))]

    async with answering(tmp_path, by_udp, by_tcp) as resolver:
        assert await found(resolver, "web.test.") == ADDRESS


async def test_tcp_is_given_two_seconds_of_its_own(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def by_tcp(query: dns.message.Message) -> Sequence[bytes]:
        await trio.sleep(1000)
        return ()

    async with answering(tmp_path, too_long, by_tcp) as resolver:
        begun = trio.current_time()
        with pytest.raises(DiscoveryError, match=r"127\.0\.0\.1: no answer by TCP within 2 s"):
            await resolver.look_up("web.test.", "A")
        assert trio.current_time() - begun == pytest.approx(2)


# --- what is cancelled, what is there twice, what is garbage ---


async def test_a_lookup_that_is_cancelled_leaves_no_socket(tmp_path: Path) -> None:
    """At any of its steps: by UDP, while it connects, and by TCP."""
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    resolver = room.Resolver(str(tmp_path / "resolv.conf"), port)

    async def by_tcp(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # by a client that does not wait for the answer
            query = bytes(await stream.receive_some())[2:]
            if query:
                wire = framed(reply(dns.message.from_wire(query), "10.0.0.1"))
                await stream.send_all(wire[:1])
                await stream.send_all(wire[1:])
        await stream.aclose()

    async def by_udp() -> None:
        while True:
            wire, sender = await endpoint.recvfrom(4096)
            [answer] = await too_long(dns.message.from_wire(wire))
            await endpoint.sendto(answer, sender)

    def check(completed: bool) -> None:
        assert _connected_to(port) == 0

    async def scenario() -> None:
        with trio.fail_after(PATIENCE):
            answer = await resolver.look_up("web.test.", "A")
        assert answer.tcp

    with trio.socket.socket(type=socket.SOCK_DGRAM) as endpoint:
        await endpoint.bind(("127.0.0.1", port))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(by_udp)
            nursery.start_soon(trio.serve_listeners, by_tcp, [listener])
            await wait_all_tasks_blocked()
            assert await cancel_everywhere(scenario, check) > 5
            nursery.cancel_scope.cancel()


def _connected_to(port: int) -> int:
    """Return how many sockets of this process have this port at their other end."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of this very listing, and sockets that are not connected
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    count += one.getpeername()[1:2] == (port,)
    return count


async def test_a_name_that_is_configured_twice_is_looked_up_once(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    async def by_udp(query: dns.message.Message) -> Sequence[bytes]:
        asked[query.question[0].name.to_text()] += 1
        return await good(query)

    async with answering(tmp_path, by_udp) as resolver:
        names = ("web.test.", "db.test.", "web.test.")
        config = Names(names, "A", str(tmp_path / "resolv.conf"), resolver.port, 1000.0)
        async with open_manager({"job": [config]}, throttle=AT_ONCE) as manager:
            with trio.fail_after(PATIENCE):
                await manager.wait_synced()
            assert [group.source for group in manager.snapshot()["job"]] == ["db.test.", "web.test."]
    assert asked == {"web.test.": 1, "db.test.": 1}


ANSWERS: dict[RecordType, tuple[str, ...]] = {
    "A": ("10.0.0.1", "10.0.0.2"),
    "AAAA": ("::1", "fd00::2"),
    "SRV": ("1 2 80 a.b.test.", "0 0 0 ."),
    "MX": ("10 mail.test.", "20 other.test."),
    "NS": ("ns.test.",),
}


@given(
    st.sampled_from(sorted(ANSWERS)),
    st.lists(st.tuples(st.integers(2, 200), st.sampled_from([0, 1, 0x0C, 0x3F, 0x80, 0xC0, 0xFF])), max_size=6),
    st.integers(2, 200),
    st.binary(max_size=8),
)
def test_no_answer_however_garbled_ends_the_run(
    record_type: RecordType, changes: list[tuple[int, int]], length: int, more: bytes
) -> None:
    query = dns.message.make_query("web.test.", record_type, use_edns=0, payload=4096)
    wire = bytearray(reply(query, *ANSWERS[record_type], record_type=record_type).to_wire())
    for place, byte in changes:
        if place < len(wire):
            wire[place] = byte
    response = room._decoded(bytes(wire[:length]) + more, query)
    if response is not None:
        answer = room._found(response, record_type, tcp=False)
        target_group("web.test.", 80, answer.records)
