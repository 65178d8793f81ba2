"""Members of serversets and of Nerve mean what Prometheus takes them for, or are refused with what is wrong."""

from __future__ import annotations

import base64
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_sd.discovery.zookeeper.gojson import decode, fold
from trio_sd.discovery.zookeeper.members import MemberError, Parse, parse_nerve_member, parse_serverset_member
from trio_sd.targets import Labels

PARSERS: dict[str, Parse] = {"serverset": parse_serverset_member, "nerve": parse_nerve_member}

_SHARED = Path(__file__).parents[2] / "shared/facts/zookeeper_cases.json"
_COPY = Path(__file__).parent / "data/zookeeper/members.json"
_COPIED: list[dict[str, Any]] = json.loads(_COPY.read_text())
CASES = [c for c in json.loads(_SHARED.read_text()) if c["type"] == "payload"] if _SHARED.exists() else _COPIED

PATH = "/aurora/jobs/web/member_0000000001"
ENDPOINT = {"host": "h", "port": 80}
SERVERSET = "__meta_serverset_"
NERVE = "__meta_nerve_"
FIELDS = {"serviceendpoint", "additionalendpoints", "status", "shard", "host", "port", "name"}
LONG_S = "\u017f"


def encoded(member: object) -> bytes:
    """Return what is given as bytes or JSON text as it is, and all else as JSON."""
    if isinstance(member, bytes):
        return member
    return (member if isinstance(member, str) else json.dumps(member)).encode()


def serverset(member: object) -> Labels:
    return parse_serverset_member(encoded(member), PATH)


def nerve(member: object) -> Labels:
    return parse_nerve_member(encoded(member), PATH)


def refused(member: object, parse: Parse = parse_serverset_member) -> str:
    with pytest.raises(MemberError) as caught:
        parse(encoded(member), PATH)
    assert PATH not in str(caught.value)
    assert len(str(caught.value)) < 300
    return str(caught.value)


# --- What the facts say ---


def test_the_copy_of_the_facts_is_up_to_date() -> None:
    assert CASES == _COPIED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_fact(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["payload_base64"]) if "payload_base64" in case else case["payload"].encode()
    parse = PARSERS[case["kind"]]
    if case["labels"] is None:
        with pytest.raises(MemberError):
            parse(data, case["path"])
        return
    expected = dict(case["labels"])
    if case["id"] == "serverset-ipv6-already-bracketed":
        assert expected["__address__"] == "[[::1]]:80"
        expected["__address__"] = "[::1]:80"  # the one deviation on purpose
    assert parse(data, case["path"]) == expected


# --- Labels ---


def test_a_serverset_member_has_all_labels_even_the_empty_ones() -> None:
    assert serverset("{}") == {
        "__address__": ":0",
        "__meta_serverset_endpoint_host": "",
        "__meta_serverset_endpoint_port": "0",
        "__meta_serverset_path": PATH,
        "__meta_serverset_shard": "0",
        "__meta_serverset_status": "",
    }


def test_a_nerve_member_has_all_labels_even_the_empty_ones() -> None:
    assert nerve("null") == {
        "__address__": ":0",
        "__meta_nerve_endpoint_host": "",
        "__meta_nerve_endpoint_name": "",
        "__meta_nerve_endpoint_port": "0",
        "__meta_nerve_path": PATH,
    }


@pytest.mark.parametrize(("host", "address"), [("[::1]", "[::1]:80"), ("::1", "[::1]:80"), ("h", "h:80")])
def test_a_host_has_one_pair_of_brackets_in_the_address_and_is_left_alone_in_its_label(host: str, address: str) -> None:
    from_serverset = serverset({"serviceEndpoint": {"host": host, "port": 80}})
    from_nerve = nerve({"host": host, "port": 80})
    assert from_serverset["__address__"] == from_nerve["__address__"] == address
    assert from_serverset[SERVERSET + "endpoint_host"] == from_nerve[NERVE + "endpoint_host"] == host


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("http", "http"),
        ("9p", "9p"),
        ("a-b.c", "a_b_c"),
        ("", ""),
        ("x\N{GRINNING FACE}", "x_"),
        ("é\n", "__"),
        ("\N{CYRILLIC SMALL LETTER A}", "_"),
    ],
)
def test_a_name_of_an_endpoint_becomes_part_of_a_label_name(name: str, part: str) -> None:
    labels = serverset({"additionalEndpoints": {name: {"host": "h1", "port": 1}}})
    assert labels[f"{SERVERSET}endpoint_host_{part}"] == "h1"
    assert labels[f"{SERVERSET}endpoint_port_{part}"] == "1"
    assert len(labels) == 8


@pytest.mark.parametrize("names", [["a-b", "a.b", "a_b"], ["a_b", "a.b", "a-b"], ["a.b", "a_b", "a-b"]])
def test_of_names_that_become_equal_the_last_in_order_gives_host_and_port(names: list[str]) -> None:
    endpoints = {name: {"host": f"host of {name}", "port": ord(name[1])} for name in names}
    labels = serverset({"additionalEndpoints": endpoints})
    assert labels[SERVERSET + "endpoint_host_a_b"] == "host of a_b"
    assert labels[SERVERSET + "endpoint_port_a_b"] == str(ord("_"))
    assert len(labels) == 8


# --- Field names ---


def test_only_two_characters_beyond_ascii_are_the_same_as_a_letter() -> None:
    for code in range(128, sys.maxunicode + 1):
        folded = fold(chr(code))
        assert (folded in "sk") == (code in (0x17F, 0x212A))
        assert folded in "sk" or not folded.isascii()


def test_field_names_are_matched_by_simple_folding() -> None:
    labels = serverset(
        '{"~tatu~": "1", "\\u017Fhard": 5, "~erviceEndpoint": {"ho~t": "h", "\\u0070ort": 1}}'.replace("~", LONG_S)
    )
    assert labels[SERVERSET + "status"] == "1"
    assert labels[SERVERSET + "shard"] == "5"
    assert labels["__address__"] == "h:1"


@pytest.mark.parametrize("key", ["\ufb06atus", "status\u0307", " status", "stat_us", "statuß", ""])
def test_what_is_only_alike_is_an_unknown_field(key: str) -> None:
    assert serverset({key: 1}) == serverset("{}")


def test_unknown_fields_may_hold_anything() -> None:
    odd = '{"a": [1, {"port": "x"}, null, true, 1e999, "\\ud800"]}'
    for unknown in (odd, "-0.5e+3", "9" * 5000, "-" + "9" * 100_000, "1" + "0" * 5000 + ".5", "1e" + "9" * 5000):
        member = f'{{"other": {unknown}, "serviceEndpoint": {{"host": "h", "x": {unknown}, "port": 80}}}}'
        assert serverset(member)["__address__"] == "h:80"
        assert nerve(f'{{"other": {unknown}, "port": 80}}')["__address__"] == ":80"


# --- Repetition and null ---


@pytest.mark.parametrize(
    ("pairs", "address"),
    [
        ('"serviceEndpoint": {"host": "a", "port": 1}, "serviceEndpoint": {"host": "b"}', "b:1"),
        ('"serviceEndpoint": {"host": "a", "port": 1}, "SERVICEENDPOINT": {"Port": 2, "port": 3}', "a:3"),
        ('"serviceEndpoint": {"host": "a", "host": null, "port": 1, "port": null}', "a:1"),
        ('"serviceEndpoint": {"host": "a", "port": 1}, "serviceEndpoint": null', "a:1"),
        ('"serviceEndpoint": null, "serviceEndpoint": {"port": 1}', ":1"),
        ('"serviceEndpoint": {"host": "a", "port": 1}, "serviceEndpoint": {}', "a:1"),
        ('"serviceEndpoint": {"host": "a", "port": 1}, "serviceEndpoint": {"host": "b", "port": 2}', "b:2"),
        ('"serviceEndpoint": {"host": "a", "port": 1}, "serviceEndpoint": {"host": null, "port": 2}', "a:2"),
        ('"serviceEndpoint": {"host": "a", "port": 1}, "serviceEndpoint": {"host": "b", "port": null}', "b:1"),
        ('"serviceEndpoint": {"port": 1, "host": "a"}', "a:1"),
        ('"serviceEndpoint": {"port": 1, "port": 2}', ":2"),
    ],
)
def test_repeated_structs_are_one(pairs: str, address: str) -> None:
    assert serverset(f"{{{pairs}}}")["__address__"] == address


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ('"additionalEndpoints": {"a": {"port": 1}}, "AdditionalEndpoints": {"b": {"port": 2}}', {"a": "1", "b": "2"}),
        ('"additionalEndpoints": {"a": {"port": 1}}, "additionalEndpoints": null', {}),
        (
            '"additionalEndpoints": {"a": {}}, "additionalEndpoints": null, "additionalEndpoints": {"b": {"port": 2}}',
            {"b": "2"},
        ),
        ('"additionalEndpoints": {"a": {"port": 1}}, "additionalEndpoints": {}', {"a": "1"}),
        ('"additionalEndpoints": {"a": {"port": 1}, "a": {"host": "h"}}', {"a": "0"}),
        ('"additionalEndpoints": {"a": {"port": 1}}, "additionalEndpoints": {"a": {"host": "h"}}', {"a": "0"}),
        ('"additionalEndpoints": {"a": {"port": 1}, "a": null}', {"a": "0"}),
        ('"additionalEndpoints": {"a": {"port": 1}, "A": {"port": 2}}', {"a": "1", "A": "2"}),
        ('"additionalEndpoints": {"\\ud800": {"port": 1}, "\\udfff": {"port": 2}}', {"_": "2"}),
    ],
)
def test_repeated_maps_are_one_whose_entries_start_anew(pairs: str, expected: dict[str, str]) -> None:
    prefix = SERVERSET + "endpoint_port_"
    labels = serverset(f"{{{pairs}}}")
    assert {name.removeprefix(prefix): labels[name] for name in labels if name.startswith(prefix)} == expected


def test_of_repeated_strings_and_numbers_the_last_that_is_not_null_counts() -> None:
    labels = serverset('{"status": "a", "Status": "b", "status": null, "shard": 1, "SHARD": -2, "shard": null}')
    assert labels[SERVERSET + "status"] == "b"
    assert labels[SERVERSET + "shard"] == "-2"


def test_a_wrong_type_refuses_even_where_a_later_value_replaces_it() -> None:
    assert refused('{"shard": "1", "shard": 1}').startswith("shard: found a string")
    assert refused('{"additionalEndpoints": {"a": 1, "a": {}}}').startswith("additionalEndpoints.a: found a number")
    assert refused('{"additionalEndpoints": {"a": 1}, "additionalEndpoints": null}').startswith("additionalEndpoints.a")


# --- Numbers ---


@pytest.mark.parametrize("literal", ["0", "-0", "65536", "9223372036854775807", "-9223372036854775808"])
@pytest.mark.parametrize("padding", ["", " " * 5000])
def test_any_integer_of_64_bits_is_a_port(literal: str, padding: str) -> None:
    assert nerve(f'{{"port": {literal}{padding}}}')[NERVE + "endpoint_port"] == str(int(literal))


@pytest.mark.parametrize(
    ("literal", "found"),
    [
        ("80.0", "a number with a fraction or an exponent"),
        ("3e3", "a number with a fraction or an exponent"),
        ("0E0", "a number with a fraction or an exponent"),
        ("9223372036854775808", "a number of more than 64 bits"),
        ("-9223372036854775809", "a number of more than 64 bits"),
        ("1" * 5000, "a number of more than 64 bits"),
        ("-" + "1" * 5000, "a number of more than 64 bits"),
        ("true", "true or false"),
        ("false", "true or false"),
        ('"80"', "a string"),
        ("[]", "a list"),
        ("{}", "an object"),
    ],
)
def test_nothing_else_is_a_port(literal: str, found: str) -> None:
    message = f"found {found}, expected a whole number"
    assert refused(f'{{"port": {literal}}}', parse_nerve_member) == f"port: {message}"
    assert refused(f'{{"serviceEndpoint": {{"port": {literal}}}}}') == f"serviceEndpoint.port: {message}"


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_not_a_number_is_not_json_wherever_it_stands(literal: str) -> None:
    for member in (literal, f'{{"port": {literal}}}', f'{{"unknown": [{literal}]}}', literal + " " * 5000):
        assert refused(member).startswith(f"not JSON: found {literal}")


# --- Text ---


def as_go_reads(data: bytes) -> str:
    """Return the text of ``data`` one UTF-8 character at a time, with one U+FFFD for a byte that starts none."""
    text = ""
    while data:
        for length in range(1, 5):
            with suppress(UnicodeDecodeError):
                character = data[:length].decode()
                break
        else:
            length, character = 1, "\ufffd"
        text += character
        data = data[length:]
    return text


in_strings = st.binary(max_size=12).map(
    lambda data: bytes(byte for byte in data if byte >= 0x20 and byte not in b'"\\')
)


@given(in_strings)
@example(b"\xe2\x82")  # cut short: one for each byte
@example(b"\xf0\x9f\x98x")
@example(b"\xed\xa0\x80")  # a surrogate
@example(b"\xc0\x80")  # longer than needed
@example(b"\xf4\x90\x80\x80")  # beyond Unicode
@example("é\ufffd\N{GRINNING FACE}".encode())
def test_each_byte_that_is_not_utf8_becomes_one_replacement_character(data: bytes) -> None:
    assert nerve(b'{"name": "' + data + b'"}')[NERVE + "endpoint_name"] == as_go_reads(data)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\ud83d\ude00", "\N{GRINNING FACE}"),
        (r"\uD83D\uDE00", "\N{GRINNING FACE}"),
        (r"x\uD800y", "x\ufffdy"),
        (r"\ud83d\ud83d\ude00", "\ufffd\N{GRINNING FACE}"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\n\ude00", "\ufffd\n\ufffd"),
        (r"\\ud800", r"\ud800"),
        (r"\\\ud800", "\\\ufffd"),
        (r"\\\\ud83d\u0041", r"\\ud83d" + "A"),
        (r"\/\"\b\f\n\r\t\u0000", '/"\b\f\n\r\t\0'),
        ("\x7f\u2028", "\x7f\u2028"),
    ],
)
def test_escapes(escaped: str, text: str) -> None:
    assert nerve(f'{{"name": "{escaped}"}}')[NERVE + "endpoint_name"] == text


@pytest.mark.parametrize(
    "data",
    [
        *(b'{"x": "a' + bytes([code]) + b'"}' for code in range(0x20)),
        b'\xef\xbb\xbf{"port": 1}',
        '{"port": 1}'.encode("utf-16"),
        b'{"port": 1}\x00',
        b'\xff{"port": 1}',
        b'{"port": 1}\xc2\xa0',
        b"{'port': 1}",
        b'{"port": 1,}',
        b'{"port": 01}',
        b'{"port": +1}',
        b'{"port": .5}',
        b'{"x": 1.}',
        b'{"x": 0x1}',
        b'{"x": 1_000}',
        b'{"x": \xd9\xa1}',
        b'{"x": "\\x41"}',
        b'{"x": "\\u00g0"}',
        b'{"x": "\\ud8"}',
        b'{"x": "\\\xff"}',
        b'{"x": "a}',
        b'{"port": 1}{}',
        b'{"port": 1} // x',
        b'{"x": nul}',
        b'{"x": True}',
        b"{x: 1}",
        b"",
        b" \n",
    ],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    for parse in PARSERS.values():
        assert refused(data, parse).startswith("not JSON: ")


@pytest.mark.parametrize("unclosed", [b"[", b'{"a":', b'{"serviceEndpoint":', b'{"additionalEndpoints":{"a":'])
def test_too_deep_nesting_is_refused(unclosed: bytes) -> None:
    assert refused(unclosed * 100_000) == "nested too deep"


def test_some_nesting_is_fine() -> None:
    assert serverset('{"x": ' + "[" * 100 + "]" * 100 + "}") == serverset("{}")


# --- Messages ---


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("[]", "found a list, expected an object"),
        ("7", "found a number, expected an object"),
        ('{"serviceEndpoint": []}', "serviceEndpoint: found a list, expected an object"),
        ('{"SERVICEENDPOINT": {"Host": 7}}', "SERVICEENDPOINT.Host: found a number, expected a string"),
        ('{"serviceEndpoint": [["host", "h"], ["port", 1]]}', "serviceEndpoint: found a list, expected an object"),
        (
            '{"serviceEndpoint": {"host": 7, "port": "x"}}',
            "serviceEndpoint.host: found a number, expected a string",
        ),
        (
            '{"serviceEndpoint": {"host": "h", "port": true}}',
            "serviceEndpoint.port: found true or false, expected a whole number",
        ),
        (
            '{"serviceEndpoint": {"host": "h", "port": 9223372036854775808}}',
            "serviceEndpoint.port: found a number of more than 64 bits, expected a whole number",
        ),
        ('{"additionalEndpoints": "x"}', "additionalEndpoints: found a string, expected an object"),
        (
            '{"additionalEndpoints": {"a b": {"port": "1"}}}',
            'additionalEndpoints."a b".port: found a string, expected a whole number',
        ),
        ('{"status": true}', "status: found true or false, expected a string"),
        ("member_0001", "not JSON: Expecting value at column 1"),
        ('{"shard": 1', "not JSON: Expecting ',' delimiter at column 12"),
        ('\n  {"shard": 1;}', "not JSON: Expecting ',' delimiter at line 2, column 14"),
        ('  {"x": "\\ud800", "y"}', "not JSON: Expecting ':' delimiter at column 22"),
        ('{"x": "a\n"}', "not JSON: Invalid control character at column 9"),
        ("10.0.1.5:3000", "not JSON: Extra data at column 5"),
        ("", "not JSON: there is no data"),
    ],
)
def test_a_message_tells_what_was_found_and_where(member: str, message: str) -> None:
    assert refused(member) == message


def test_messages_stay_short_and_on_one_line() -> None:
    for name in ("x" * 100_000, "\n" * 100_000, "\N{GRINNING FACE}" * 100_000):
        message = refused({"additionalEndpoints": {name: {"port": "9" * 100_000}}})
        assert "…" in message
        assert "\n" not in message


# --- Properties ---

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
integers = st.integers(-(2**63), 2**63 - 1)
endpoints = st.fixed_dictionaries({}, optional={"host": text, "port": integers})
serverset_members = st.fixed_dictionaries(
    {},
    optional={
        "serviceEndpoint": endpoints,
        "additionalEndpoints": st.dictionaries(st.from_regex("[a-zA-Z0-9_]{0,5}", fullmatch=True), endpoints),
        "status": text,
        "shard": integers,
    },
)
nerve_members = st.fixed_dictionaries({}, optional={"host": text, "port": integers, "name": text})
json_values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["serviceEndpoint", "additionalEndpoints", "Host", "port", "x"]), inner)
    ),
)
unknown_fields = st.dictionaries(text.filter(lambda key: fold(key) not in FIELDS), json_values, max_size=3)


def address(endpoint: dict[str, Any]) -> str:
    host = endpoint.get("host", "")
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{bracketed}:{endpoint.get('port', 0)}"


@given(serverset_members, st.booleans())
def test_every_serverset_member_has_its_values_in_labels(member: dict[str, Any], ascii_only: bool) -> None:
    service = member.get("serviceEndpoint", {})
    expected = {
        "__address__": address(service),
        SERVERSET + "path": PATH,
        SERVERSET + "status": member.get("status", ""),
        SERVERSET + "shard": str(member.get("shard", 0)),
        SERVERSET + "endpoint_host": service.get("host", ""),
        SERVERSET + "endpoint_port": str(service.get("port", 0)),
    }
    for name, endpoint in member.get("additionalEndpoints", {}).items():
        expected[f"{SERVERSET}endpoint_host_{name}"] = endpoint.get("host", "")
        expected[f"{SERVERSET}endpoint_port_{name}"] = str(endpoint.get("port", 0))
    assert serverset(json.dumps(member, ensure_ascii=ascii_only)) == expected


endpoint_names = st.text("aZ0_-.\N{LATIN SMALL LETTER E WITH ACUTE}", max_size=3)


@settings(max_examples=3 * settings().max_examples)
@given(st.dictionaries(endpoint_names, endpoints, max_size=8))
@example({})
@example({"a-": {"port": 1}, "a": {"port": 2}, "a_": {"port": 3}, "a.": {"port": 4}})
def test_the_labels_of_endpoints_are_in_order_whatever_their_names(additional: dict[str, Any]) -> None:
    expected = {
        "__address__": "h:80",
        SERVERSET + "path": PATH,
        SERVERSET + "status": "",
        SERVERSET + "shard": "0",
        SERVERSET + "endpoint_host": "h",
        SERVERSET + "endpoint_port": "80",
    }
    for name, endpoint in sorted(additional.items()):
        part = re.sub("[^a-zA-Z0-9_]", "_", name)
        expected[f"{SERVERSET}endpoint_host_{part}"] = endpoint.get("host", "")
        expected[f"{SERVERSET}endpoint_port_{part}"] = str(endpoint.get("port", 0))
    labels = serverset({"serviceEndpoint": ENDPOINT, "additionalEndpoints": additional})
    assert labels == Labels(expected)
    backwards = dict(reversed(additional.items()))
    assert serverset({"serviceEndpoint": ENDPOINT, "additionalEndpoints": backwards}) == labels


@given(nerve_members, st.booleans())
def test_every_nerve_member_has_its_values_in_labels(member: dict[str, Any], ascii_only: bool) -> None:
    expected = {
        "__address__": address(member),
        NERVE + "path": PATH,
        NERVE + "endpoint_host": member.get("host", ""),
        NERVE + "endpoint_port": str(member.get("port", 0)),
        NERVE + "endpoint_name": member.get("name", ""),
    }
    assert nerve(json.dumps(member, ensure_ascii=ascii_only)) == Labels(expected), "which are also in order"


def respelled(value: object, spell: st.DataObject, names: bool = True) -> object:
    """Return ``value`` with its fields' names in any case; the keys of a map stay as they are."""
    if not isinstance(value, dict):
        return value
    spelled = {}
    for key, item in value.items():
        chars = [spell.draw(st.sampled_from([c, c.upper(), *(LONG_S * (c == "s"))])) for c in key] if names else key
        spelled["".join(chars)] = respelled(item, spell, names=key != "additionalEndpoints")
    return spelled


@given(serverset_members, st.data())
def test_the_case_of_field_names_does_not_matter(member: dict[str, Any], spell: st.DataObject) -> None:
    assert serverset(respelled(member, spell)) == serverset(member)


@given(serverset_members, unknown_fields, unknown_fields)
def test_unknown_fields_are_ignored(member: dict[str, Any], top: dict[str, Any], inner: dict[str, Any]) -> None:
    more = {**top, **member}
    if "serviceEndpoint" in member:
        more["serviceEndpoint"] = {**member["serviceEndpoint"], **inner}
    assert serverset(more) == serverset(member)


@given(serverset_members, serverset_members)
def test_a_repeated_field_goes_into_what_is_there(first: dict[str, Any], second: dict[str, Any]) -> None:
    both = f"{json.dumps(first)[:-1]}, {json.dumps(second)[1:]}" if first and second else {**first, **second}
    merged = {**first, **second}
    for field in ("serviceEndpoint", "additionalEndpoints"):
        merged[field] = {**first.get(field, {}), **second.get(field, {})}
    assert serverset(both) == serverset(merged)


@given(serverset_members, st.integers(0, 3))
def test_the_order_of_fields_does_not_matter(member: dict[str, Any], turn: int) -> None:
    items = list(member.items())
    assert serverset(dict(items[turn:] + items[:turn])) == serverset(member)


@given(st.binary(max_size=200) | json_values.map(encoded) | json_values.map(json.dumps).map(encoded))
def test_no_data_raise_anything_but_a_member_error(data: bytes) -> None:
    for parse in PARSERS.values():
        with suppress(MemberError):
            labels = parse(data, PATH)
            assert "".join(labels.values()).encode()  # no halves of surrogate pairs


@given(st.dictionaries(st.sampled_from(["serviceEndpoint", "additionalEndpoints", "status", "shard"]), json_values))
def test_no_document_raises_anything_but_a_member_error(document: dict[str, Any]) -> None:
    with suppress(MemberError):
        serverset(document)


@given(json_values)
def test_the_document_is_the_json_value(value: object) -> None:
    def plain(found: object) -> object:
        if isinstance(found, tuple):
            return {key: plain(item) for key, item in found}
        return [plain(item) for item in found] if isinstance(found, list) else found

    assert plain(decode(json.dumps(value).encode())) == value
