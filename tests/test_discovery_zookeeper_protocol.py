"""ZooKeeper's wire format: bytes made by hand, bytes that a real server sent, and bytes that nobody should send."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_sd.discovery.zookeeper.protocol import (
    Answer,
    Data,
    EventType,
    Exists,
    ProtocolError,
    Read,
    Refusal,
    Reply,
    ZnodeEvent,
    add_watch,
    answer_of,
    answers_of,
    multi_read,
    parse_event,
    remove_watches,
    single_read,
)

# --- Bytes made by hand, as zookeeper.jute tells ---

END = struct.pack(">i?i", -1, True, -1)
NAMES = ("a", "ünï", "名前", "with space", "x" * 300, "")


def text(value: str | bytes | None) -> bytes:
    """Return a string or a buffer; null has the length -1."""
    if value is None:
        return struct.pack(">i", -1)
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack(">i", len(encoded)) + encoded


def stat(mzxid: int = 7, owner: int = 0, children: int = 0) -> bytes:
    """Return a Stat with values of its own in every other field."""
    czxid, ctime, mtime, version, cversion, aversion, length, pzxid = 101, 102, 103, 104, 105, 106, 107, 108
    return struct.pack(
        ">qqqqiiiqiiq", czxid, mzxid, ctime, mtime, version, cversion, aversion, owner, length, children, pzxid
    )


def data_bytes(content: bytes | None, mzxid: int = 7, owner: int = 0, children: int = 0) -> bytes:
    return text(content) + stat(mzxid, owner, children)


def children_bytes(names: Sequence[str]) -> bytes:
    return struct.pack(">i", len(names)) + b"".join(map(text, names))


def item(operation: int, body: bytes) -> bytes:
    """Return one answer of a multiRead."""
    return struct.pack(">i?i", operation, False, 0) + body


def error_item(code: int) -> bytes:
    return struct.pack(">i?ii", -1, False, code, code)


def event_bytes(kind: int, path: str, state: int = 3) -> bytes:
    return struct.pack(">ii", kind, state) + text(path)


# --- Requests ---


@pytest.mark.parametrize("path", ["/", "/a/b", "/ünï/名前", "/" + "x" * 100_000])
def test_requests_are_what_the_protocol_says(path: str) -> None:
    assert add_watch(path).opcode == 106
    assert add_watch(path).body == text(path) + struct.pack(">i", 1)
    assert remove_watches(path).opcode == 18
    assert remove_watches(path).body == text(path) + struct.pack(">i", 3)
    for what, opcode in ((Read.EXISTS, 3), (Read.DATA, 4), (Read.CHILDREN, 8)):
        for watch in (False, True):
            request = single_read(what, path, watch=watch)
            assert (request.opcode, request.body) == (opcode, text(path) + struct.pack(">?", watch))


def test_a_multi_read_holds_its_reads_in_order_and_an_end() -> None:
    reads = [(Read.DATA, "/a"), (Read.CHILDREN, "/ünï"), (Read.DATA, "/")]
    request = multi_read(reads)
    expected = b"".join(struct.pack(">i?i", what, False, -1) + text(path) + b"\0" for what, path in reads)
    assert (request.opcode, request.body) == (22, expected + END)
    assert multi_read([]).body == END


# --- Answers ---


@pytest.mark.parametrize("padding", [b"", b"header and more"])
@pytest.mark.parametrize(
    ("what", "buffer", "expected"),
    [
        (Read.DATA, data_bytes(b"content", 9, 0, 3), Data(b"content", 9, False, 3, 101)),
        (Read.DATA, data_bytes(b"", 9), Data(b"", 9, False, 0, 101)),
        (Read.DATA, data_bytes(None, 9), Data(b"", 9, False, 0, 101)),
        (Read.DATA, data_bytes(b"\0\xff" * 500_000, 9), Data(b"\0\xff" * 500_000, 9, False, 0, 101)),
        (Read.DATA, data_bytes(b"x", 2**63 - 1, 1), Data(b"x", 2**63 - 1, True, 0, 101)),
        (Read.DATA, data_bytes(b"x", 1, -(2**63)), Data(b"x", 1, True, 0, 101)),  # sessions of servers 128 to 255
        (Read.CHILDREN, children_bytes(()), ()),
        (Read.CHILDREN, children_bytes(NAMES), NAMES),
        (Read.CHILDREN, struct.pack(">i", -1), ()),  # a null vector
        (Read.EXISTS, stat(), Exists()),
    ],
    ids=lambda value: None if isinstance(value, bytes | Data) else str(value)[:20],
)
def test_an_answer_is_read(what: Read, buffer: bytes, expected: Answer, padding: bytes) -> None:
    answer = answer_of(what, Reply(padding + buffer, len(padding)))
    assert (type(answer), answer) == (type(expected), expected)


def test_a_multi_reads_answers_are_read_in_order_with_errors_among_them() -> None:
    reads = [(Read.DATA, f"/{number}") for number in range(3)] + [(Read.CHILDREN, "/3"), (Read.CHILDREN, "/4")]
    body = (
        item(4, data_bytes(b"one", 1)) + error_item(-101) + item(4, data_bytes(None, 2, 5)) + error_item(-102)
    ) + item(8, children_bytes(NAMES))
    assert answers_of(reads, Reply(b"16 bytes before!" + body + END, 16)) == [
        Data(b"one", 1, False, 0, 101),
        Refusal(-101),
        Data(b"", 2, True, 0, 101),
        Refusal(-102),
        NAMES,
    ]
    assert answers_of([], Reply(END, 0)) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_answers_than_reads_is_an_error(count: int) -> None:
    reads = [(Read.DATA, "/a"), (Read.DATA, "/b")]
    with pytest.raises(ProtocolError, match="multiRead"):
        answers_of(reads, Reply(item(4, data_bytes(b"")) * count + END, 0))


@pytest.mark.parametrize(
    ("what", "answered"),
    [
        (Read.DATA, item(8, children_bytes(("a",)))),
        (Read.CHILDREN, item(4, data_bytes(b"x"))),
        (Read.DATA, item(3, stat())),
    ],
    ids=["names for data", "data for names", "a stat for data"],
)
def test_an_answer_to_another_question_is_an_error(what: Read, answered: bytes) -> None:
    with pytest.raises(ProtocolError):
        answers_of([(what, "/a")], Reply(answered + END, 0))


def test_an_answer_of_an_operation_that_was_not_asked_for_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        answers_of([(Read.DATA, "/a")], Reply(item(1, text("/a")) + END, 0))


# --- Events ---


@pytest.mark.parametrize("path", ["/", "/a/ünï/名前"])
@pytest.mark.parametrize("kind", EventType)
def test_each_kind_of_event_is_read(kind: EventType, path: str) -> None:
    event = parse_event(Reply(b"header" + event_bytes(kind, path), 6))
    assert event == ZnodeEvent(kind, path)
    assert type(event.type) is EventType


def test_events_have_the_numbers_of_the_protocol() -> None:
    assert {kind.name: kind.value for kind in EventType} == {"CREATED": 1, "DELETED": 2, "DATA": 3, "CHILDREN": 4}


@pytest.mark.parametrize("kind", [-1, 0, 5, 6, 7, 2**31 - 1, -(2**31)])
def test_an_unknown_event_is_an_error(kind: int) -> None:
    with pytest.raises(ProtocolError, match="notification"):
        parse_event(Reply(event_bytes(kind, "/a"), 0))


# --- What a server of 3.8.0 sent ---

# To a multiRead of data and names of /a, the data of /a/ünï, /nope and /a/secret, the names of /nope, and the data of
# /a/e: there are /a/ünï with five bytes, /a/e, ephemeral and empty, and /a/secret, which may not be read.
RECORDED_MULTI = bytes.fromhex(
    "0000000400000000000000000000000000000000030000000000000003000001a203af7ee1000001a203af7ee10000000000000003000000"
    "0000000000000000000000000000000003000000000000000600000008000000000000000003000000067365637265740000000165000000"
    "05c3bc6ec3af000000040000000000000000057878787878000000000000000400000000"
    "00000004000001a203af7eeb000001a203af7eeb00000000000000000000000000000000000000000000000500000000000000000000"
    "0004ffffffff00ffffff9bffffff9bffffffff00ffffff9affffff9affffffff00ffffff9bffffff9b00000004000000000000000000"
    "00000000000000050000000000000005000001a203af7ef0000001a203af7ef0000000000000000000000000"
    "010000c47d3b000000000000000000000000000000000005ffffffff01ffffffff"
)
RECORDED_READS = [
    (Read.DATA, "/a"),
    (Read.CHILDREN, "/a"),
    (Read.DATA, "/a/ünï"),
    (Read.DATA, "/nope"),
    (Read.DATA, "/a/secret"),
    (Read.CHILDREN, "/nope"),
    (Read.DATA, "/a/e"),
]
RECORDED_STAT = bytes.fromhex(
    "00000000000000030000000000000003000001a203af7ee1000001a203af7ee1000000000000000300000000000000000000000000000000"
    "000000030000000000000006"
)
RECORDED_NAMES = bytes.fromhex("00000003000000067365637265740000000165" + "00000005c3bc6ec3af")
RECORDED_EVENTS = {
    "0000000300000003000000022f61": ZnodeEvent(EventType.DATA, "/a"),
    "0000000100000003000000042f612f6e": ZnodeEvent(EventType.CREATED, "/a/n"),
    "0000000200000003000000042f612f6e": ZnodeEvent(EventType.DELETED, "/a/n"),
}


def test_what_a_server_answered_to_a_multi_read_is_read() -> None:
    assert answers_of(RECORDED_READS, Reply(RECORDED_MULTI, 0)) == [
        Data(b"", 3, False, 3, 3),
        ("secret", "e", "ünï"),
        Data(b"xxxxx", 4, False, 0, 4),
        Refusal(-101),
        Refusal(-102),
        Refusal(-101),
        Data(b"", 5, True, 0, 5),
    ]


def test_what_a_server_answered_to_single_reads_is_read() -> None:
    assert answer_of(Read.DATA, Reply(bytes(4) + RECORDED_STAT, 0)) == Data(b"", 3, False, 3, 3)
    assert answer_of(Read.CHILDREN, Reply(RECORDED_NAMES, 0)) == ("secret", "e", "ünï")
    assert type(answer_of(Read.EXISTS, Reply(RECORDED_STAT, 0))) is Exists


@pytest.mark.parametrize(("recorded", "event"), RECORDED_EVENTS.items())
def test_what_a_server_told_of_is_read(recorded: str, event: ZnodeEvent) -> None:
    assert parse_event(Reply(bytes.fromhex(recorded), 0)) == event


# --- Bytes that nobody should send ---

ONE_ANSWER = [(Read.DATA, "/a")]
PARSERS: dict[str, Callable[[bytes], object]] = {
    "data": lambda buffer: answer_of(Read.DATA, Reply(buffer, 0)),
    "children": lambda buffer: answer_of(Read.CHILDREN, Reply(buffer, 0)),
    "exists": lambda buffer: answer_of(Read.EXISTS, Reply(buffer, 0)),
    "multi": lambda buffer: answers_of(RECORDED_READS, Reply(buffer, 0)),
    "event": lambda buffer: parse_event(Reply(buffer, 0)),
}
GOOD = {
    "data": data_bytes(b"content"),
    "children": children_bytes(NAMES[:-1]),
    "exists": stat(),
    "multi": RECORDED_MULTI,
    "event": event_bytes(1, "/a/ünï"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_cut_short_anywhere_is_an_error(kind: str) -> None:
    whole = GOOD[kind]
    PARSERS[kind](whole)
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            PARSERS[kind](whole[:length])


def test_an_offset_behind_the_end_is_an_error() -> None:
    for what in Read:
        with pytest.raises(ProtocolError):
            answer_of(what, Reply(b"abc", 16))
    with pytest.raises(ProtocolError):
        answers_of(ONE_ANSWER, Reply(b"abc", 16))
    with pytest.raises(ProtocolError):
        parse_event(Reply(b"", 16))


@pytest.mark.parametrize("kind", PARSERS)
@given(buffer=st.binary(max_size=400))
@example(buffer=b"\xff" * 200)
@example(buffer=b"\x7f" * 200)
@example(buffer=bytes(200))
def test_any_bytes_are_read_or_are_an_error(kind: str, buffer: bytes) -> None:
    with suppress(ProtocolError):
        PARSERS[kind](buffer)


@pytest.mark.parametrize("kind", GOOD)
@given(data=st.data())
def test_any_change_of_good_bytes_is_read_or_is_an_error(kind: str, data: st.DataObject) -> None:
    changed = bytearray(GOOD[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 4))
        value = data.draw(st.sampled_from([-1, 0, 2**31 - 1, -(2**31), 100_000, len(changed)]) | st.integers(0, 300))
        struct.pack_into(">i", changed, position, value)
    with suppress(ProtocolError):
        PARSERS[kind](bytes(changed))


@pytest.mark.parametrize("announced", [2**31 - 1, 10**9, 1_000_000, -1, -(2**31)])
@pytest.mark.parametrize("kind", PARSERS)
def test_an_announced_size_costs_nothing_until_it_is_there(kind: str, announced: int) -> None:
    size = struct.pack(">i", announced)
    buffer = {
        "data": size + bytes(100),
        "children": size + bytes(100),
        "exists": size,
        "multi": item(8, size + bytes(100)),
        "event": struct.pack(">ii", 1, 3) + size + bytes(100),
    }[kind]
    tracemalloc.start()
    try:
        PARSERS[kind](buffer)
    except ProtocolError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("name", [b"\xff", b"\xed\xa0\x80", b"a\xc3"])
def test_a_name_that_is_no_text_is_an_error(name: bytes) -> None:
    for buffer, parse in (
        (struct.pack(">i", 1) + text(name), PARSERS["children"]),
        (struct.pack(">ii", 1, 3) + text(name), PARSERS["event"]),
    ):
        with pytest.raises(ProtocolError):
            parse(buffer)


@given(
    st.lists(
        st.builds(
            Data,
            st.binary(max_size=50),
            st.integers(0, 2**63 - 1),
            st.booleans(),
            st.integers(0, 2**31 - 1),
            st.just(101),
        ).map(lambda data: (Read.DATA, data))
        | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9)).map(
            lambda names: (Read.CHILDREN, tuple(names))
        )
        | st.integers(-200, -1).map(lambda code: (Read.DATA, Refusal(code)))
    )
)
def test_what_was_written_is_read(answers: list[tuple[Read, Answer]]) -> None:
    body = b""
    for _, answer in answers:
        match answer:
            case Data(content, mzxid, ephemeral, children, _):
                body += item(4, data_bytes(content, mzxid, int(ephemeral) * 77, children))
            case Refusal(code):
                body += error_item(code)
            case names:
                body += item(8, children_bytes(names))
    found = answers_of([(what, "/a") for what, _ in answers], Reply(body + END, 0))
    assert found == [answer for _, answer in answers]
    assert list(map(type, found)) == [type(answer) for _, answer in answers]
