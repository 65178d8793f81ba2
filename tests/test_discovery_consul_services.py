"""From Consul's answers to target groups, as Prometheus makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.discovery.consul.services import parse_agent, parse_catalog, parse_instances
from trio_sd.errors import DiscoveryError
from trio_sd.targets import TargetGroup

JSON = dict[str, Any]  # whatever an answer holds

ENTRY: JSON = {
    "Node": {
        "ID": "b78c2e48-5ef3-1814-31b8-0d880f50471e",
        "Node": "node1",
        "Address": "1.1.1.1",
        "Datacenter": "another-dc",
        "TaggedAddresses": {"lan": "192.168.10.10", "wan": "10.0.10.10"},
        "Meta": {"rack_name": "2304"},
        "CreateIndex": 1,
        "ModifyIndex": 1,
    },
    "Service": {
        "ID": "test-1",
        "Service": "test",
        "Tags": ["tag1"],
        "Address": "",
        "TaggedAddresses": {"lan_ipv4": {"Address": "10.9.9.9", "Port": 1}},
        "Meta": {"version": "1.0.0", "environment": "staging"},
        "Port": 3341,
        "Weights": {"Passing": 1, "Warning": 1},
        "Namespace": "team",
        "Partition": "east",
    },
    "Checks": [{"Node": "node1", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing"}],
}


def group(*entries: object, service: str = "test", datacenter: str = "dc1", separator: str = ",") -> TargetGroup:
    return parse_instances(json.dumps(entries).encode(), service, datacenter, separator)


def entry(node: JSON | None = None, service: JSON | None = None, **other: object) -> JSON:
    return {
        **ENTRY,
        "Node": {**ENTRY["Node"], **(node or {})},
        "Service": {**ENTRY["Service"], **(service or {})},
        **other,
    }


def target(
    node: JSON | None = None, service: JSON | None = None, separator: str = ",", **other: object
) -> Mapping[str, str]:
    [found] = group(entry(node, service, **other), separator=separator).targets
    return found


def check(check_id: str, status: str) -> JSON:
    return {"CheckID": check_id, "Status": status}


# --- labels ---


def test_every_label() -> None:
    found = group(ENTRY)
    assert found.source == "test"
    assert found.labels == {"__meta_consul_service": "test", "__meta_consul_dc": "dc1"}
    assert [dict(labels) for labels in found.targets] == [
        {
            "__address__": "1.1.1.1:3341",
            "__meta_consul_address": "1.1.1.1",
            "__meta_consul_health": "passing",
            "__meta_consul_metadata_rack_name": "2304",
            "__meta_consul_namespace": "team",
            "__meta_consul_node": "node1",
            "__meta_consul_partition": "east",
            "__meta_consul_service_address": "",
            "__meta_consul_service_id": "test-1",
            "__meta_consul_service_metadata_environment": "staging",
            "__meta_consul_service_metadata_version": "1.0.0",
            "__meta_consul_service_port": "3341",
            "__meta_consul_tagged_address_lan": "192.168.10.10",
            "__meta_consul_tagged_address_wan": "10.0.10.10",
            "__meta_consul_tags": ",tag1,",
        }
    ]


@pytest.mark.parametrize("empty", [{}, {"Node": None, "Service": None, "Checks": None}, {"Node": {}, "Service": {}}])
def test_what_is_not_there_is_empty(empty: JSON) -> None:
    [found] = group(empty, datacenter="").targets
    assert dict(found) == {
        "__address__": ":0",
        "__meta_consul_address": "",
        "__meta_consul_health": "passing",
        "__meta_consul_namespace": "",
        "__meta_consul_node": "",
        "__meta_consul_partition": "",
        "__meta_consul_service_address": "",
        "__meta_consul_service_id": "",
        "__meta_consul_service_port": "0",
        "__meta_consul_tags": ",,",
    }


def test_null_is_the_empty_value_of_each_field() -> None:
    node = dict.fromkeys(["Node", "Address", "Meta", "TaggedAddresses"])
    service = dict.fromkeys(["ID", "Address", "Port", "Tags", "Meta", "Namespace", "Partition"])
    found = target(node, service, Checks=[{"CheckID": None, "Status": "passing"}])
    assert found["__address__"] == ":0"
    assert found["__meta_consul_tags"] == ",,"
    assert not [name for name in found if "metadata" in name or "tagged" in name]


def test_each_instance_is_a_target_in_the_order_of_the_answer() -> None:
    found = group(entry(service={"Port": 2}), entry(service={"Port": 1}), entry(service={"Port": 2}))
    assert [labels["__address__"] for labels in found.targets] == ["1.1.1.1:2", "1.1.1.1:1", "1.1.1.1:2"]


@pytest.mark.parametrize("body", [b"[]", b"null", b" [ ] \n"])
def test_a_service_without_instances_is_an_empty_group(body: bytes) -> None:
    assert parse_instances(body, "a:1", "dc", ",") == TargetGroup(
        "a:1", [], {"__meta_consul_service": "a:1", "__meta_consul_dc": "dc"}
    )


@pytest.mark.parametrize(
    ("node", "service", "port", "expected"),
    [
        ("1.1.1.1", "", 80, "1.1.1.1:80"),
        ("1.1.1.1", "2.2.2.2", 80, "2.2.2.2:80"),
        ("", "2.2.2.2", 0, "2.2.2.2:0"),
        ("::1", "", 80, "[::1]:80"),
        ("1.1.1.1", "2001:db8::1", 443, "[2001:db8::1]:443"),
        ("fe80::1%eth0", "", 80, "[fe80::1%eth0]:80"),
        ("web.example", "", 65535, "web.example:65535"),
        ("bücher.example", "", 80, "bücher.example:80"),
        ("", "", 0, ":0"),
    ],
)
def test_addresses(node: str, service: str, port: int, expected: str) -> None:
    found = target({"Address": node}, {"Address": service, "Port": port})
    assert found["__address__"] == expected
    assert found["__meta_consul_address"] == node
    assert found["__meta_consul_service_address"] == service
    assert found["__meta_consul_service_port"] == str(port)


@pytest.mark.parametrize(
    ("tags", "separator", "expected"),
    [
        (["a", "b"], ",", ",a,b,"),
        (["a", "b"], "||", "||a||b||"),
        (["a", "b"], "", "ab"),
        (["b", "a", "b"], ",", ",b,a,b,"),
        ([], ",", ",,"),
        ([], "", ""),
        ([""], ",", ",,"),
        (["", ""], ",", ",,,"),
        (["a,b", "c"], ",", ",a,b,c,"),
        (["straße", "🦊"], "·", "·straße·🦊·"),
        (["a"], "\n", "\na\n"),
    ],
)
def test_tags(tags: list[str], separator: str, expected: str) -> None:
    assert target(service={"Tags": tags}, separator=separator)["__meta_consul_tags"] == expected


def named(found: Mapping[str, str], kind: str) -> dict[str, str]:
    prefix = f"__meta_consul_{kind}_"
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


META = {"a-b.c/d": "1", "ü": "2", "🦊": "", "": "4", "9": "5", "A_z9": "6", "é": "7"}
SANITISED = {"a_b_c_d": "1", "_": "", "": "4", "9": "5", "A_z9": "6"}


@pytest.mark.parametrize(
    ("kind", "node", "service"),
    [
        ("metadata", {"Meta": META}, {"Meta": {}}),
        ("service_metadata", {"Meta": {}}, {"Meta": META}),
        ("tagged_address", {"TaggedAddresses": META}, {}),
    ],
)
def test_names_of_metadata_become_parts_of_labels(kind: str, node: JSON, service: JSON) -> None:
    """Of names that make the same label the last one counts, so that the label does not change from look to look."""
    expected = {**SANITISED, "_": META[max(name for name in META if name in {"ü", "🦊", "é"})]}
    assert named(target(node, service), kind) == expected


def test_the_order_of_metadata_does_not_matter() -> None:
    one, two = {"a.b": "1", "a-b": "2"}, {"a-b": "2", "a.b": "1"}
    assert target({"Meta": one}) == target({"Meta": two})
    assert named(target({"Meta": one}), "metadata") == {"a_b": "1"}


def test_metadata_of_the_node_that_is_called_like_another_label() -> None:
    """``__meta_consul_metadata_x`` and ``__meta_consul_service_metadata_x`` are two; nothing is overwritten."""
    found = target({"Meta": {"x": "n"}}, {"Meta": {"x": "s", "id": "y"}})
    assert found["__meta_consul_metadata_x"] == "n"
    assert found["__meta_consul_service_metadata_x"] == "s"
    assert found["__meta_consul_service_id"] == "test-1"


# --- health ---

CHECKS = {
    "passing": check("serfHealth", "passing"),
    "warning": check("disk", "warning"),
    "critical": check("service:web", "critical"),
    "node maintenance": check("_node_maintenance", "critical"),
    "service maintenance": check("_service_maintenance:web-1", "critical"),
    "unknown": check("odd", "maintenance"),
}


def worst(names: Sequence[str]) -> str:
    """What HealthChecks.AggregatedStatus of github.com/hashicorp/consul/api returns."""
    if "unknown" in names:
        return ""
    for name, health in (("maintenance", "maintenance"), ("critical", "critical"), ("warning", "warning")):
        if any(found.endswith(name) for found in names):
            return health
    return "passing"


@pytest.mark.parametrize("there", list(product((False, True), repeat=len(CHECKS))))
def test_the_worst_of_all_checks_counts(there: tuple[bool, ...]) -> None:
    names = [name for name, present in zip(CHECKS, there, strict=True) if present]
    for order in (names, names[::-1]):
        found = target(Checks=[CHECKS[name] for name in order])
        assert found["__meta_consul_health"] == worst(names)


@pytest.mark.parametrize(
    ("check_id", "status", "expected"),
    [
        ("_node_maintenance", "passing", "maintenance"),
        ("_node_maintenance", "who knows", "maintenance"),
        ("_node_maintenance_", "passing", "passing"),
        ("_node_maintenanc", "critical", "critical"),
        ("_service_maintenance:", "passing", "maintenance"),
        ("_service_maintenance:a:b", "passing", "maintenance"),
        ("_service_maintenance", "passing", "passing"),
        ("x_service_maintenance:a", "passing", "passing"),
        ("a", "Passing", ""),
        ("a", "unknown", ""),
        ("a", "", ""),
        ("", "warning", "warning"),
    ],
)
def test_a_single_check(check_id: str, status: str, expected: str) -> None:
    assert target(Checks=[check(check_id, status)])["__meta_consul_health"] == expected


@pytest.mark.parametrize("checks", [[], None])
def test_nothing_to_check_passes(checks: object) -> None:
    assert target(Checks=checks)["__meta_consul_health"] == "passing"


# --- agent and catalog ---


def test_the_agent() -> None:
    assert parse_agent(b'{"Config": {"Datacenter": "dc1", "Server": true}, "Member": null}') == "dc1"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"Config": {"Datacenter": 7}}', "found a number for Config.Datacenter of the agent, expected a string"),
        (b'{"Config": {"Datacenter": null}}', "found null for Config.Datacenter of the agent, expected a string"),
        (b'{"Config": {}}', "found null for Config.Datacenter of the agent, expected a string"),
        (b'{"Config": null}', "found null for Config.Datacenter of the agent, expected a string"),
        (b"{}", "found null for Config.Datacenter of the agent, expected a string"),
        (b'{"Config": []}', "found a list for Config, expected an object"),
        (b"[]", "found a list for the agent, expected an object"),
        (b"null", "found null for the agent, expected an object"),
        (b"", "not JSON"),
    ],
)
def test_an_agent_that_does_not_tell(body: bytes, message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        parse_agent(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", {}),
        (b"null", {}),
        (b'{"b": ["y", "x"], "a": [], "c": null}', {"b": ["y", "x"], "a": [], "c": []}),
        ('{"bücher": ["ä"], "a/b c": [""]}'.encode(), {"bücher": ["ä"], "a/b c": [""]}),
        (b'{"a": ["x"], "a": ["y"]}', {"a": ["y"]}),
    ],
)
def test_the_catalog(body: bytes, expected: Mapping[str, Sequence[str]]) -> None:
    assert {name: list(tags) for name, tags in parse_catalog(body).items()} == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "found a list for the catalog, expected an object"),
        (b'"x"', "found a string for the catalog, expected an object"),
        (b"true", "found true or false for the catalog, expected an object"),
        (b"1", "found a number for the catalog, expected an object"),
        (b'{"web": "x"}', "found a string for the tags of the service web, expected a list of strings"),
        (b'{"web": {}}', "found an object for the tags of the service web, expected a list of strings"),
        (b'{"web": ["x", 7]}', "the tags of the service web"),
        (b'{"web": [null]}', "the tags of the service web"),
    ],
)
def test_a_catalog_that_is_none(body: bytes, message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        parse_catalog(body)


# --- what is no answer of Consul's ---

GARBAGE = [
    b"",
    b"   ",
    b"<html>502</html>",
    b"No cluster leader",
    b"{",
    b"[",
    b'[{"Node": {"Node": "a"',
    b'{"a": ["x"]} {"b": []}',
    b"[] []",
    b"\xff\xfe\xfd",
    b'["\xff"]',
    b"[" * 200_000,
    b'{"a":' * 200_000,
    *(b"[" * depth + rb'"\ud800"' + b"]" * depth for depth in (300, 600, 900, 1_500)),
    b"[1" + b"0" * 5_000 + b"]",
    b"\x00",
]


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: repr(body[:16]))
def test_garbage_is_refused(body: bytes) -> None:
    for parse in (parse_agent, parse_catalog, lambda text: parse_instances(text, "web", "dc1", ",")):
        with pytest.raises(DiscoveryError):
            parse(body)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "found null for instance 1, expected an object"),
        ([], "found a list for instance 1, expected an object"),
        ("x", "found a string for instance 1, expected an object"),
        ({"Node": []}, "found a list for Node, expected an object"),
        ({"Service": "web"}, "found a string for Service, expected an object"),
        ({"Checks": {}}, "found an object for Checks, expected a list"),
        ({"Checks": [None]}, "found null for a check, expected an object"),
        ({"Checks": [{"CheckID": 1}]}, "found a number for CheckID, expected a string"),
        ({"Checks": [{"Status": True}]}, "found true or false for Status, expected a string"),
        ({"Node": {"Node": 1.5}}, "found a number for Node, expected a string"),
        ({"Node": {"Address": ["a"]}}, "found a list for Address, expected a string"),
        ({"Node": {"Meta": ["a"]}}, "found a list for Meta, expected an object"),
        ({"Node": {"Meta": {"rack": 1}}}, "found a number for rack, expected a string"),
        ({"Node": {"TaggedAddresses": {"lan": {}}}}, "found an object for lan, expected a string"),
        ({"Service": {"ID": 1}}, "found a number for ID, expected a string"),
        ({"Service": {"Address": False}}, "found true or false for Address, expected a string"),
        ({"Service": {"Namespace": 1}}, "found a number for Namespace, expected a string"),
        ({"Service": {"Partition": 1}}, "found a number for Partition, expected a string"),
        ({"Service": {"Meta": {"a": None, "b": 1}}}, "found a number for b, expected a string"),
        ({"Service": {"Port": "80"}}, "found a string for Service.Port, expected a"),
        ({"Service": {"Port": True}}, "found true or false for Service.Port, expected a"),
        ({"Service": {"Port": [80]}}, "found a list for Service.Port, expected a"),
        ({"Service": {"Tags": "a"}}, "found a string for Service.Tags, expected a list of strings"),
        ({"Service": {"Tags": [1]}}, "Service.Tags"),
        ({"Service": {"Tags": {"a": 1}}}, "found an object for Service.Tags, expected a list of strings"),
    ],
)
def test_one_broken_instance_is_enough_and_what_is_wrong_is_named(broken: object, message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        group(ENTRY, broken)


def test_no_list_of_instances() -> None:
    with pytest.raises(DiscoveryError, match="found an object, expected a list of instances"):
        parse_instances(b"{}", "web", "dc1", ",")


@pytest.mark.parametrize("tags", ["[1]", '["a", null]'])
def test_a_list_with_something_else_in_it_is_not_said_to_be_what_was_expected(tags: str) -> None:
    """'found a list, expected a list of strings' would leave open what is wrong with it."""
    for parse in (
        lambda: parse_catalog(f'{{"web": {tags}}}'.encode()),
        lambda: parse_instances(f'[{{"Service": {{"Tags": {tags}}}}}]'.encode(), "web", "dc1", ","),
    ):
        with pytest.raises(DiscoveryError) as error:
            parse()
        assert "found a list for" not in str(error.value)


@pytest.mark.parametrize("port", ["80.5", "8e1", "1e400"])
def test_a_port_that_is_no_whole_number_is_not_said_to_be_what_was_expected(port: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        parse_instances(f'[{{"Service": {{"Port": {port}}}}}]'.encode(), "web", "dc1", ",")
    found, expected = str(error.value).split(" for Service.Port, expected ")
    assert found.removeprefix("found ") != expected


@pytest.mark.parametrize("half", [r"\ud800", r"\udfff", r"x\ud83e", r"\udd8a\ud83e"])
def test_half_of_a_surrogate_pair_is_replaced_as_in_go(half: str) -> None:
    """It has no bytes in UTF-8, so that who wrote it into a URL or an output would fail."""
    [name] = parse_catalog(f'{{"{half}": []}}'.encode())
    name.encode()
    [(_, [tag])] = parse_catalog(f'{{"web": ["{half}"]}}'.encode()).items()
    tag.encode()
    entry = f'[{{"Node": {{"Meta": {{"{half}": "{half}"}}}}, "Service": {{"ID": "{half}", "Tags": ["{half}"]}}}}]'
    [found] = parse_instances(entry.encode(), "web", "dc1", ",").targets
    for text in (*found, *found.values()):
        text.encode()


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert list(parse_catalog(rb'{"\ud83e\udd8a": ["\ud83e\udd8a"]}').items()) == [("🦊", ["🦊"])]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("Config", "Datacenter", "Node", "Service", "Checks", "Address", "Port", "Tags", "Meta", "ID"),
                    *("CheckID", "Status", "TaggedAddresses", "Namespace", "Partition", "x"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(VALUES)
def test_any_json_is_understood_or_refused(value: object) -> None:
    body = json.dumps(value).encode()
    for parse in (parse_agent, parse_catalog, lambda text: parse_instances(text, "web", "dc1", ",")):
        with suppress(DiscoveryError):
            parse(body)


@given(st.lists(st.fixed_dictionaries({"Node": VALUES, "Service": VALUES, "Checks": VALUES}), min_size=1, max_size=2))
def test_any_instance_is_understood_or_refused(entries: list[object]) -> None:
    with suppress(DiscoveryError):
        assert len(group(*entries).targets) == len(entries)
