"""What is pure of discovery from DNS: which names are looked up, and what records become."""

from __future__ import annotations

import dns.rdata
import pytest

from trio_sd.discovery.dns.records import target_group
from trio_sd.discovery.dns.resolv_conf import ResolvConf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ResolvConf(("127.0.0.1",), (), 1)),
        ("nameserver 10.0.0.1\nnameserver fe80::1%eth0\n", ResolvConf(("10.0.0.1", "fe80::1%eth0"))),
        ("nameserver\t10.0.0.1 more\n", ResolvConf(("10.0.0.1",))),
        ("search a.test b.test.\ndomain c.test\n", ResolvConf(search=("c.test",))),
        ("domain c.test\nsearch a.test\tb.test\n", ResolvConf(search=("a.test", "b.test"))),
        ("search a.test\nsearch\n", ResolvConf(search=())),
        ("options timeout:1 ndots:5 rotate\n", ResolvConf(ndots=5)),
        ("options ndots:99\n", ResolvConf(ndots=15)),
        ("options ndots:0\n", ResolvConf(ndots=0)),
        ("options ndots:many ndots\n", ResolvConf(ndots=1)),
        ("# nameserver 1.1.1.1\n;search x\nwhatever 1\n\n  nameserver 10.0.0.9\n", ResolvConf(("10.0.0.9",))),
    ],
)
def test_resolv_conf_is_read_as_others_read_it(text: str, expected: ResolvConf) -> None:
    assert ResolvConf.parse(text) == expected


@pytest.mark.parametrize(
    ("name", "ndots", "expected"),
    [
        ("web", 1, ["web.a.test.", "web.b.test.", "web."]),
        ("web.x", 1, ["web.x.", "web.x.a.test.", "web.x.b.test."]),
        ("web.x", 2, ["web.x.a.test.", "web.x.b.test.", "web.x."]),
        ("web", 0, ["web.", "web.a.test.", "web.b.test."]),
        ("web.", 5, ["web."]),
        ("web.a.test.", 5, ["web.a.test."]),
    ],
)
def test_the_search_list_is_gone_through_in_the_order_of_prometheus(name: str, ndots: int, expected: list[str]) -> None:
    assert list(ResolvConf(search=("a.test", "b.test.", "."), ndots=ndots).candidates(name)) == expected


def targets(record_type: str, *texts: str, port: int = 80) -> list[dict[str, str]]:
    records = [dns.rdata.from_text("IN", record_type, text) for text in texts]
    return [dict(target) for target in target_group("name", port, records).targets]


EMPTY = {
    "__meta_dns_name": "name",
    "__meta_dns_srv_record_target": "",
    "__meta_dns_srv_record_port": "",
    "__meta_dns_mx_record_target": "",
    "__meta_dns_ns_record_target": "",
}


@pytest.mark.parametrize(
    ("record_type", "text", "expected"),
    [
        ("A", "192.0.2.2", {"__address__": "192.0.2.2:80"}),
        ("AAAA", "2001:DB8:0::1", {"__address__": "[2001:db8::1]:80"}),
        ("AAAA", "::ffff:192.0.2.2", {"__address__": "192.0.2.2:80"}),
        (
            "SRV",
            "1 2 3306 db1.Example.com.",
            {
                "__address__": "db1.Example.com:3306",
                "__meta_dns_srv_record_target": "db1.Example.com.",
                "__meta_dns_srv_record_port": "3306",
            },
        ),
        (
            "MX",
            "10 smtp.example.com.",
            {"__address__": "smtp.example.com:80", "__meta_dns_mx_record_target": "smtp.example.com."},
        ),
        (
            "NS",
            "ns1.example.com.",
            {"__address__": "ns1.example.com:80", "__meta_dns_ns_record_target": "ns1.example.com."},
        ),
    ],
)
def test_records_become_the_targets_of_prometheus(record_type: str, text: str, expected: dict[str, str]) -> None:
    assert targets(record_type, text) == [{**EMPTY, **expected}]


def test_the_order_of_targets_is_that_of_their_addresses_however_a_server_rotates_them() -> None:
    texts = ["1 1 80 b.test.", "1 1 80 a.test.", "1 1 79 b.test."]
    assert targets("SRV", *texts) == targets("SRV", *reversed(texts))
    assert [target["__address__"] for target in targets("SRV", *texts)] == ["a.test:80", "b.test:79", "b.test:80"]


@pytest.mark.parametrize(("record_type", "text"), [("SRV", "0 0 0 ."), ("MX", "0 .")])
def test_a_record_that_says_that_there_is_no_service_is_no_target(record_type: str, text: str) -> None:
    assert targets(record_type, text) == []


def test_the_group_has_the_name_as_it_is_configured() -> None:
    group = target_group("Web.", 80, [dns.rdata.from_text("IN", "A", "192.0.2.1")])
    assert group.source == "Web."
    assert group.targets[0]["__meta_dns_name"] == "Web."
    assert dict(group.labels) == {}
