"""The state as a value and as bytes: what was written is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf, isfinite
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions
from trio_sd.discovery.file import FileSDConfig
from trio_sd.discovery.static import StaticConfig
from trio_sd.discovery.zookeeper.config import NerveSDConfig, ServersetSDConfig
from trio_sd.discovery.zookeeper.ensemble import DigestAuth
from trio_sd.durations import Duration
from trio_sd.secrets import Secret
from trio_sd.state import SavedProvider, State, StateError, decode, encode, fingerprint
from trio_sd.targets import Labels, TargetGroup
from trio_sd.testing import FakeDiscoverer, group
from trio_sd.tls import TLSConfig

NAME: Final = "scrape"


def written(state: State) -> bytes:
    return b"".join(encode(state))


def read(content: bytes, manager: str = NAME) -> State:
    return decode(io.BytesIO(content), manager)


def comparable(state: State) -> State:
    """Return it with groups in a tuple, since any collection will do."""
    return replace(state, providers=tuple([replace(one, groups=tuple(one.groups)) for one in state.providers]))


def handmade(*lines: object) -> bytes:
    """Return the given lines, each a value or already text, with the digest that belongs to them."""
    content = b"".join([(one if isinstance(one, str) else json.dumps(one)).encode() + b"\n" for one in lines])
    return content + json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n"


def header(**different: object) -> dict[str, object]:
    content: dict[str, object] = {"format": "trio-sd state", "version": 1, "manager": NAME, "saved": 1.5, "sets": {}}
    return {name: value for name, value in {**content, **different}.items() if value is not ...}


def provider(**different: object) -> dict[str, object]:
    content: dict[str, object] = {"mechanism": "file", "fingerprint": "f" * 64, "known_good": 1.0, "groups": 0}
    return {name: value for name, value in {**content, **different}.items() if value is not ...}


def a_group(**different: object) -> list[dict[str, object]]:
    """Return a line of one group."""
    content: dict[str, object] = {"source": "p", "targets": [{"__address__": "1"}], "labels": {}}
    return [{name: value for name, value in {**content, **different}.items() if value is not ...}]


# --- round trip ---

# Of two halves of a surrogate pair that stand side by side JSON makes the character that they are the halves of.
texts = st.text(st.sampled_from('a"\\\n\0 é€😀\u2028\ud800\ud8ff{}'), max_size=3)
labels = st.dictionaries(texts, texts, max_size=3)
groups = st.builds(TargetGroup, texts, st.lists(labels, max_size=3), labels)
times = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def states(draw: st.DrawFn) -> State:
    providers = draw(
        st.lists(
            st.builds(SavedProvider, texts, st.none() | texts, times, st.lists(groups, max_size=4).map(tuple)),
            max_size=4,
        )
    )
    numbers = st.lists(st.sampled_from(range(len(providers))), unique=True) if providers else st.just([])
    return State(
        draw(texts), draw(times), draw(st.dictionaries(texts, numbers.map(tuple), max_size=3)), tuple(providers)
    )


@settings(max_examples=max(40, settings().max_examples // 3))
@given(states())
def test_what_was_written_is_read_again(state: State) -> None:
    content = written(state)
    assert comparable(read(content, state.manager)) == state
    assert content.isascii()
    assert written(read(content, state.manager)) == content
    assert all(json.loads(line) is not None for line in content.splitlines())


def test_many_groups_are_written_in_many_short_pieces() -> None:
    found = [group(f"{n:05}", f"host-{n}:80") for n in range(2_050)]
    state = State(NAME, 0.0, {"web": (0, 1, 2)}, tuple([SavedProvider("file", None, 0.0, found)] * 3))
    assert comparable(read(written(state))) == comparable(state)
    assert max(len(piece) for piece in encode(state)) < 20_000


EXAMPLE: Final = written(
    State(
        NAME,
        1767225600.0,
        {"web": (0, 1), "db": (1,), "none": ()},
        (
            SavedProvider("file", "a" * 64, 1767225600.0, (group("/a.json:0", "1", "2", labels={"zone": "é\ud800"}),)),
            SavedProvider("fake", None, 1767225500.5, ()),
            SavedProvider("static", "b" * 64, 0.0, (group("0", "3"), group("1", "4"))),
        ),
    )
)


def unharmed_or_refused(content: bytes) -> None:
    """Check that ``content`` is refused, or says the same as the example: white space at its end changes nothing."""
    try:
        state = read(content)
    except StateError:
        return
    assert comparable(state) == comparable(read(EXAMPLE))


def test_every_file_that_was_cut_off_is_refused() -> None:
    for length in range(len(EXAMPLE) - 1):
        with pytest.raises(StateError):
            read(EXAMPLE[:length])


def test_every_file_of_which_a_part_is_missing_is_refused() -> None:
    lines = EXAMPLE.splitlines(keepends=True)
    for number in range(len(lines)):
        with pytest.raises(StateError):
            read(b"".join(lines[:number] + lines[number + 1 :]))
        with pytest.raises(StateError):
            read(b"".join([*lines[: number + 1], *lines[number:]]))


@pytest.mark.parametrize("bits", [0x01, 0x04, 0x20, 0x80, 0xFF])
def test_every_file_with_another_byte_is_refused(bits: int) -> None:
    end = EXAMPLE.rindex(b"{")
    for place in range(len(EXAMPLE)):
        content = EXAMPLE[:place] + bytes([EXAMPLE[place] ^ bits]) + EXAMPLE[place + 1 :]
        if place < end:
            with pytest.raises(StateError):
                read(content)
        else:
            unharmed_or_refused(content)


@given(st.binary(max_size=60), st.integers(0, len(EXAMPLE)), st.integers(0, 60))
def test_a_file_with_anything_written_into_it_is_refused(noise: bytes, place: int, over: int) -> None:
    unharmed_or_refused(EXAMPLE[:place] + noise + EXAMPLE[place + over :])


@given(st.binary())
def test_noise_is_refused(content: bytes) -> None:
    with pytest.raises(StateError):
        read(content)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"\n", "it is not a state file of trio-sd"),
        (b"\x7fELF\x02\x01\x01" + bytes(1000), "it is not a state file of trio-sd"),
        (b'{"format": "other"}\n', "it is not a state file of trio-sd"),
        (b"scrape_configs: []\n", "it is not a state file of trio-sd"),
        (EXAMPLE[: EXAMPLE.index(b"\n") + 1], "it is cut off"),
        (EXAMPLE[: EXAMPLE.rindex(b"{")], "it is cut off"),
        (EXAMPLE + EXAMPLE, "it is damaged: its content and its digest differ"),
        (EXAMPLE + b"\n", "it is damaged: its content and its digest differ"),
        (EXAMPLE.replace(b'"1"', b'"9"'), "it is damaged: its content and its digest differ"),
        (handmade(header(version=2)), "it has version 2 of the format; this trio-sd reads 1"),
        (handmade(header(version="1")), "it has version '1' of the format; this trio-sd reads 1"),
        (handmade(header(manager="notify")), "it is of the manager 'notify', not of 'scrape'"),
        (handmade(header(version=2, manager="notify", sets=None)), "it has version 2 of the format"),
        (handmade(header(sets={"web": [99]})), "it is damaged: there is no provider 99"),
        (handmade(header(sets={"web": [-1]}), provider()), "it is damaged: there is no provider -1"),
    ],
)
def test_why_a_file_is_refused_is_told(content: bytes, told: str) -> None:
    with pytest.raises(StateError) as caught:
        read(content)
    assert str(caught.value).startswith(told)


DEEP: Final = "[" * 100_000 + "]" * 100_000

WRONG: Final[Mapping[str, bytes]] = {
    "no version": handmade(header(version=...)),
    "a version that is a list": handmade(header(version=[1])),
    "no manager": handmade(header(manager=...)),
    "no time": handmade(header(saved=...)),
    "a time that is null": handmade(header(saved=None)),
    "a time that is a text": handmade(header(saved="then")),
    "a time that is too large": handmade(header(saved=10**400)),
    "no sets": handmade(header(sets=...)),
    "sets that are a list": handmade(header(sets=[[0]]), provider()),
    "sets that are null": handmade(header(sets=None)),
    "a set that is null": handmade(header(sets={"web": None})),
    "a set that is a number": handmade(header(sets={"web": 0}), provider()),
    "a set that is a text": handmade(header(sets={"web": "0"}), provider()),
    "a set of texts": handmade(header(sets={"web": ["0"]}), provider()),
    "a set of truths": handmade(header(sets={"web": [False]}), provider()),
    "a set of fractions": handmade(header(sets={"web": [0.0]}), provider()),
    "a set of sets": handmade(header(sets={"web": [[0]]}), provider()),
    "a set of the first number too many": handmade(header(sets={"web": [0, 1]}), provider()),
    "no mechanism": handmade(header(), provider(mechanism=...)),
    "a mechanism that is null": handmade(header(), provider(mechanism=None)),
    "a mechanism that is a mapping": handmade(header(), provider(mechanism={"a": 1})),
    "no fingerprint": handmade(header(), provider(fingerprint=...)),
    "a fingerprint that is a list": handmade(header(), provider(fingerprint=["f"])),
    "a fingerprint that is a mapping": handmade(header(), provider(fingerprint={"f": 1})),
    "a fingerprint that is a number": handmade(header(), provider(fingerprint=5)),
    "no known_good": handmade(header(), provider(known_good=...)),
    "a known_good that is null": handmade(header(), provider(known_good=None)),
    "a known_good that is a text": handmade(header(), provider(known_good="12")),
    "a known_good that is a list": handmade(header(), provider(known_good=[1])),
    "a known_good that is no number": handmade(header(), provider(known_good=float("nan"))),
    "a known_good without an end": handmade(header(), provider(known_good=inf)),
    "a known_good without a beginning": handmade(header(), provider(known_good=-inf)),
    "a known_good that is too large": handmade(header(), provider(known_good=10**400)),
    "a known_good of very many digits": handmade(header(), json.dumps(provider()).replace("1.0", "9" * 5_000)),
    "no count of groups": handmade(header(), provider(groups=...)),
    "a count of groups that is null": handmade(header(), provider(groups=None)),
    "a count of groups that is a text": handmade(header(), provider(groups="1"), a_group()),
    "a count of groups that is a list": handmade(header(), provider(groups=[])),
    "too few groups": handmade(header(), provider(groups=2), a_group()),
    "too few groups, and another provider": handmade(header(), provider(groups=2), a_group(), provider()),
    "too many groups": handmade(header(), provider(groups=1), a_group(), a_group()),
    "too many groups in a line": handmade(header(), provider(groups=1), a_group() * 2),
    "groups that are a mapping": handmade(header(), provider(groups=1), a_group()[0]),
    "groups that are a number": handmade(header(), provider(groups=1), 1),
    "groups that are null": handmade(header(), provider(groups=1), None),
    "groups that are a text": handmade(header(), provider(groups=1), "p"),
    "groups that are texts": handmade(header(), provider(groups=1), ["sha256"]),
    "a negative count of groups": handmade(header(), provider(groups=-1), a_group()),
    "half a group": handmade(header(), provider(groups=0.5), a_group()),
    "no source": handmade(header(), provider(groups=1), a_group(source=...)),
    "a source that is a number": handmade(header(), provider(groups=1), a_group(source=5)),
    "a source that is null": handmade(header(), provider(groups=1), a_group(source=None)),
    "no targets": handmade(header(), provider(groups=1), a_group(targets=...)),
    "targets that are null": handmade(header(), provider(groups=1), a_group(targets=None)),
    "targets that are a mapping": handmade(header(), provider(groups=1), a_group(targets={"a": "b"})),
    "targets that are a text": handmade(header(), provider(groups=1), a_group(targets="host:80")),
    "a target that is a text": handmade(header(), provider(groups=1), a_group(targets=["host:80"])),
    "a target that is null": handmade(header(), provider(groups=1), a_group(targets=[None])),
    "a target that is a list": handmade(header(), provider(groups=1), a_group(targets=[["__address__", "1"]])),
    "no labels": handmade(header(), provider(groups=1), a_group(labels=...)),
    "labels that are a list": handmade(header(), provider(groups=1), a_group(labels=[])),
    "labels that are null": handmade(header(), provider(groups=1), a_group(labels=None)),
    "a label that is a number": handmade(header(), provider(groups=1), a_group(labels={"a": 1})),
    "nested labels": handmade(header(), provider(groups=1), a_group(labels={"a": {"b": "c"}})),
    "a nested target": handmade(header(), provider(groups=1), a_group(targets=[{"a": ["b"]}])),
    "a provider that is a list": handmade(header(), []),
    "a provider that is a number": handmade(header(), 5),
    "a provider that is null": handmade(header(), None),
    "a group that is a list": handmade(header(), provider(groups=1), [["source", "targets", "labels"]]),
    "an empty line": handmade(header(), ""),
    "a digest among the content": handmade(header(), {"sha256": "0"}, provider()),
    "a digest that is a text": EXAMPLE[: EXAMPLE.rindex(b"{")] + b'"sha256"\n',
    "a digest that is null": EXAMPLE[: EXAMPLE.rindex(b"{")] + b'{"sha256": null}\n',
    "a header with two values": handmade(json.dumps(header()) + " {}"),
    "depth in the header": handmade(json.dumps(header(sets="DEEP")).replace('"DEEP"', DEEP)),
    "depth in a provider": handmade(header(), DEEP),
    "depth in a group": handmade(header(), provider(groups=1), json.dumps(a_group(labels="D")).replace('"D"', DEEP)),
}
"""Files of which nothing is to be used, though their digests are right."""


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_file_of_wrong_types_is_refused_though_its_digest_is_right(content: bytes) -> None:
    with pytest.raises(StateError):
        read(content)


def test_a_file_made_by_hand_is_read_if_it_is_right() -> None:
    state = read(handmade(header(sets={"web": [0]}, saved=5), provider(groups=1, known_good=7), a_group()))
    assert comparable(state) == State(
        NAME, 5.0, {"web": (0,)}, (SavedProvider("file", "f" * 64, 7.0, (group("p", "1"),)),)
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.data())
def test_a_file_with_any_value_in_any_place_is_refused_or_of_the_right_types(data: st.DataObject) -> None:
    lines: list[Any] = [header(sets={"web": [0]}), provider(groups=1), a_group()]
    changed = data.draw(st.sampled_from([*lines[:2], *lines[2]]))
    name = data.draw(st.sampled_from(sorted(set(changed) - {"format"})))
    changed[name] = data.draw(json_values)
    try:
        state = read(handmade(*lines))
    except StateError:
        return
    assert isfinite(state.saved)
    for one in state.providers:
        assert isinstance(one.mechanism, str)
        assert one.fingerprint is None or isinstance(one.fingerprint, str)
        assert isfinite(one.known_good)
        assert all(isinstance(found, TargetGroup) for found in one.groups)
    assert all(0 <= number < len(state.providers) for numbers in state.sets.values() for number in numbers)


class Counting(io.BytesIO):
    """Content of which is counted how much is read."""

    longest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.longest = max(self.longest, self.tell())
        return content


def test_of_a_large_foreign_file_only_the_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 100 << 20)
    file: BinaryIO
    with path.open("rb") as file:
        with pytest.raises(StateError, match="not a state file"):
            decode(file, NAME)
        assert file.tell() < 1 << 20
    with pytest.raises(StateError):
        decode(counting := Counting(b"[" * 1_000_000), NAME)
    assert counting.longest < 1_000


# --- fingerprints ---


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Inner:
    number: float = 0
    text: str = ""


@dataclass(frozen=True)
class AnyConfig(DiscovererConfig):
    """Has a value of any type."""

    mechanism: ClassVar[str] = "any"
    value: object = None
    not_compared: object = field(default=None, compare=False)

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        return FakeDiscoverer("any")


@dataclass(frozen=True)
class OtherConfig(AnyConfig):
    """As the other one, of another mechanism."""


class PlainConfig(DiscovererConfig):
    """No dataclass: nobody knows what makes two of them equal."""

    mechanism: ClassVar[str] = "plain"

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        return FakeDiscoverer("plain")


def all_configs() -> dict[str, DiscovererConfig]:
    """Return configurations of every mechanism, no two of which are the same; made anew at each call."""
    zookeeper: dict[str, Any] = {"servers": ("zk1:2181", "zk2"), "paths": ("/a", "/b")}
    static = TargetGroup("0", [{"__address__": "1"}], {"a": "1", "b": "2"})
    return {
        "file": FileSDConfig(("/a.json", "/b.yml")),
        "file, other order": FileSDConfig(("/b.yml", "/a.json")),
        "file, one path": FileSDConfig(("/a.json/b.yml",)),
        "file, one path more": FileSDConfig(("/a.json", "/b.yml", "/c.yml")),
        "file, interval": FileSDConfig(("/a.json", "/b.yml"), Duration.of("1m")),
        "static, empty": StaticConfig(),
        "static": StaticConfig((static,)),
        "static, own label": StaticConfig((TargetGroup("0", [{"__address__": "1", "a": "1"}], {"b": "2"}),)),
        "static, other label": StaticConfig((replace_labels(static, {"a": "1", "b": "3"}),)),
        "static, other name": StaticConfig((replace_labels(static, {"a": "1", "c": "2"}),)),
        "static, no targets": StaticConfig((TargetGroup("0", [], {"a": "1", "b": "2"}),)),
        "static, an empty target": StaticConfig((TargetGroup("0", [{}], {"a": "1", "b": "2"}),)),
        "static, target twice": StaticConfig((TargetGroup("0", [{"__address__": "1"}] * 2, static.labels),)),
        "static, twice": StaticConfig((static, TargetGroup("1", static.targets, static.labels))),
        "static, surrogate": StaticConfig((TargetGroup("0", [{"__address__": "\ud800"}]),)),
        "serverset": ServersetSDConfig(**zookeeper),
        "nerve": NerveSDConfig(**zookeeper),
        "nerve, timeout": NerveSDConfig(**zookeeper, timeout=Duration.of("11s")),
        "nerve, interval": NerveSDConfig(**zookeeper, refresh_interval=Duration.of("11s")),
        "nerve, user": NerveSDConfig(**zookeeper, digest_auth=DigestAuth(username="one", password=Secret("hunter2"))),
        "nerve, other user": NerveSDConfig(
            **zookeeper, digest_auth=DigestAuth(username="two", password=Secret("hunter2"))
        ),
        "nerve, password file": NerveSDConfig(**zookeeper, digest_auth=DigestAuth(username="one", password_file="pw")),
        "nerve, tls": NerveSDConfig(**zookeeper, tls_config=TLSConfig()),
        "nerve, key": NerveSDConfig(**zookeeper, tls_config=TLSConfig(cert="c", key=Secret("hunter2"))),
        "nerve, key file": NerveSDConfig(**zookeeper, tls_config=TLSConfig(cert="c", key_file="k")),
        "nerve, version": NerveSDConfig(**zookeeper, tls_config=TLSConfig(min_version="TLS13")),
        "any": AnyConfig(),
        "any, of another class": OtherConfig(),
        **{f"any, {value!r}": AnyConfig(value) for value in (0, "0", False, "None", (), ("",), ("", ""), (("",),))},
        **{f"any, {value}": AnyConfig(value) for value in Colour},
        "any, inner": AnyConfig(Inner()),
        "any, inner number": AnyConfig(Inner(1.5)),
        "any, inner text": AnyConfig(Inner(text="0")),
        "any, mapping": AnyConfig(Labels({"a": "1", "b": "2"})),
        "any, set": AnyConfig(frozenset({"a", "b", "c", "d", "e"})),
        "any, mixed set": AnyConfig(frozenset({"a", 1, None, ("b",), Colour.RED})),
    }


def replace_labels(found: TargetGroup, labels: Mapping[str, str]) -> TargetGroup:
    return TargetGroup(found.source, found.targets, labels)


def test_equal_configurations_have_the_same_fingerprint_and_different_ones_have_not() -> None:
    configs, again = all_configs(), all_configs()
    known = {name: fingerprint(config) for name, config in configs.items()}
    assert known == {name: fingerprint(config) for name, config in again.items()}
    assert configs == again
    assert None not in known.values()
    assert len(set(known.values())) == len(known)
    assert len(set(configs.values())) >= len(known) - 1, "two of them are equal, the false and the zero"


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = (
        "import json; from tests.test_state import all_configs; from trio_sd.state import fingerprint;"
        "print(json.dumps({n: fingerprint(c) for n, c in all_configs().items()}))"
    )
    here = {name: fingerprint(config) for name, config in all_configs().items()}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert json.loads(result.stdout) == here


@pytest.mark.parametrize("mechanism", [ServersetSDConfig, NerveSDConfig])
def test_a_fingerprint_is_not_made_of_secrets(mechanism: type[ServersetSDConfig] | type[NerveSDConfig]) -> None:
    def config(secret: str) -> DiscovererConfig:
        auth = DigestAuth(username="me", password=Secret(secret))
        return mechanism(
            servers=("zk",), paths=("/a",), digest_auth=auth, tls_config=TLSConfig(cert="c", key=Secret(secret))
        )

    assert config("one") != config("two")
    assert fingerprint(config("one")) == fingerprint(config("two")) is not None


@pytest.mark.parametrize(
    "value", [object(), b"bytes", lambda: None, Inner, 1j, (1, object()), {"a": object()}, frozenset([b""])]
)
def test_what_has_a_value_of_another_type_has_no_fingerprint(value: object) -> None:
    assert fingerprint(AnyConfig(value)) is None


def test_what_is_no_dataclass_has_no_fingerprint() -> None:
    assert fingerprint(PlainConfig()) is None


def test_what_equality_does_not_compare_is_not_in_the_fingerprint() -> None:
    assert fingerprint(AnyConfig(1, object())) == fingerprint(AnyConfig(1, "other"))
    assert fingerprint(FakeDiscoverer("a").config) == fingerprint(FakeDiscoverer("a").config) is not None
    assert fingerprint(FakeDiscoverer("a").config) != fingerprint(FakeDiscoverer("b").config)
