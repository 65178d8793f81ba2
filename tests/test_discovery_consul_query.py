"""How Consul is asked, and what its index means.

The rules are those of https://developer.hashicorp.com/consul/api-docs/features/blocking.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.discovery.consul.query import DEADLINE, WAIT, Place, Position, index_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INDEXES = st.integers(0, 2**64 - 1)


def test_an_answer_is_waited_for_longer_than_a_server_may_take() -> None:
    assert (WAIT, DEADLINE) == (120, 135)
    assert DEADLINE > WAIT * (1 + 1 / 16)


@pytest.mark.parametrize(
    ("place", "path", "query", "expected"),
    [
        (Place("http://c:1"), ("agent", "self"), (), "http://c:1/v1/agent/self"),
        (Place("http://c:1/consul"), ("agent", "self"), (), "http://c:1/consul/v1/agent/self"),
        (Place("http://c:1", "dc1"), ("a",), (), "http://c:1/v1/a?dc=dc1"),
        (Place("http://c:1", "dc1", "team", "east"), ("a",), (), "http://c:1/v1/a?dc=dc1&ns=team&partition=east"),
        (Place("http://c:1", "", "", "east"), ("a",), [("stale", "")], "http://c:1/v1/a?partition=east&stale="),
        (
            Place("http://c:1"),
            ("a",),
            [("tag", "x"), ("tag", "y"), ("tag", "x")],
            "http://c:1/v1/a?tag=x&tag=y&tag=x",
        ),
        (Place("http://c:1", "a&b=c"), ("a",), (), "http://c:1/v1/a?dc=a%26b%3Dc"),
        (Place("http://c:1"), ("a",), [("filter", 'A == "x y"')], "http://c:1/v1/a?filter=A+%3D%3D+%22x+y%22"),
        (Place("http://c:1"), ("a",), [("node-meta", "rack:1")], "http://c:1/v1/a?node-meta=rack%3A1"),
        (Place("http://c:1"), ("health", "a/b?c#d e"), (), "http://c:1/v1/health/a%2Fb%3Fc%23d%20e"),
        (Place("http://c:1"), ("health", "100%"), (), "http://c:1/v1/health/100%25"),
        (Place("http://c:1"), ("health", "bücher"), (), "http://c:1/v1/health/b%C3%BCcher"),
        (Place("http://c:1"), ("health", "+"), (), "http://c:1/v1/health/%2B"),
    ],
)
def test_urls(place: Place, path: Sequence[str], query: Sequence[tuple[str, str]], expected: str) -> None:
    assert place.url(*path, query=query) == expected


@given(TEXT, TEXT, TEXT, TEXT.filter(bool), st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=4))
def test_whatever_is_asked_for_arrives(
    datacenter: str, namespace: str, partition: str, name: str, query: list[tuple[str, str]]
) -> None:
    url = Place("http://c:1/x", datacenter, namespace, partition).url("health", "service", name, query=query)
    assert url.isascii()
    parts = urlsplit(url)
    assert (parts.netloc, parts.fragment) == ("c:1", "")
    assert parts.path.count("/") == 5
    assert unquote(parts.path) == f"/x/v1/health/service/{name}"
    own = [("dc", datacenter), ("ns", namespace), ("partition", partition)]
    assert parse_qsl(parts.query, keep_blank_values=True) == [*((key, value) for key, value in own if value), *query]


@pytest.mark.parametrize(
    ("index", "stale", "expected"),
    [
        (0, False, [("wait", "120000ms")]),
        (0, True, [("stale", ""), ("wait", "120000ms")]),
        (7, False, [("index", "7"), ("wait", "120000ms")]),
        (7, True, [("stale", ""), ("index", "7"), ("wait", "120000ms")]),
        (2**64 - 1, False, [("index", "18446744073709551615"), ("wait", "120000ms")]),
    ],
)
def test_a_query_blocks_after_an_index_only(index: int, stale: bool, expected: list[tuple[str, str]]) -> None:
    assert list(Position(index).query(stale=stale)) == expected


@pytest.mark.parametrize(
    ("before", "answered", "waited", "asked_next", "news", "back"),
    [
        pytest.param(0, 7, 0.0, 7, True, False, id="the first answer"),
        pytest.param(7, 8, 0.0, 8, True, False, id="news at once"),
        pytest.param(7, 8, 130.0, 8, True, False, id="news at the last moment"),
        pytest.param(7, 7, 120.0, 7, False, False, id="nothing happened"),
        pytest.param(7, 7, 127.5, 7, False, False, id="nothing happened, and the server added its share"),
        pytest.param(7, 7, 119.0, 0, False, False, id="woken by a snapshot that is restored"),
        pytest.param(7, 7, 0.0, 0, False, False, id="woken at once"),
        pytest.param(7, 6, 0.0, 0, True, True, id="backwards"),
        pytest.param(7, 1, 130.0, 0, True, True, id="backwards after the wait"),
        pytest.param(7, 0, 130.0, 0, True, True, id="no index any more"),
        pytest.param(0, 0, 0.0, 0, True, False, id="never an index"),
        pytest.param(0, 1, 130.0, 1, True, False, id="a first answer that took long"),
    ],
)
def test_where_an_answer_leads(
    before: int, answered: int, waited: float, asked_next: int, news: bool, back: bool
) -> None:
    position = Position(before, before)
    after = position.after(answered, waited)
    assert after == Position(asked_next, answered)
    assert position.is_news(answered) is news
    assert position.goes_back(answered) is back


@given(INDEXES, INDEXES, st.floats(0, 200))
def test_the_rules_hold_for_all_indexes(before: int, answered: int, waited: float) -> None:
    position = Position(before, before)
    after = position.after(answered, waited)
    assert after.index in (0, answered)
    assert after.known == answered
    assert position.goes_back(answered) is (answered < before)
    if answered < before:
        assert after.index == 0, "an index that goes backwards is forgotten"
    if answered != before:
        assert position.is_news(answered), "what may be news is never passed over"
    if after.index == 0:
        assert ("index", "0") not in after.query(stale=True), "a query without an index does not block"
    assert not (answered == before != 0 and waited < WAIT and after.index), "who came back early is asked anew"


@given(INDEXES, INDEXES, INDEXES)
def test_what_is_known_is_not_forgotten_with_the_index(index: int, known: int, answered: int) -> None:
    """So an answer that is older is recognised after a failure as well."""
    anew = Position(index, known).anew()
    assert anew.query(stale=True) == Position().query(stale=True), "the query does not block"
    assert anew.goes_back(answered) is (answered < known)
    assert anew.is_news(answered), "the answer before was lost"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("7", 7),
        ("0", 0),
        ("", 0),
        ("18446744073709551615", 2**64 - 1),
        ("007", 7),
        ("-7", 0),
        ("+7", 0),
        ("7.0", 0),
        ("0x7", 0),
        ("7 8", 0),
        ("seven", 0),
        ("²", 0),
        ("\u0667", 0),
        ("1_000", 0),
    ],
)
def test_indexes(header: str, expected: int) -> None:
    assert index_of(header) == expected


def test_a_header_with_endless_digits_does_no_harm() -> None:
    assert index_of("9" * 100_000) < 10**20
