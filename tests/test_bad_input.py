"""Bad input is refused at a place in the text: it never crashes, hangs, or takes more than 200 MB."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.config import Config, prometheus, sections
from trio_sd.discovery import default_registry
from trio_sd.errors import ConfigError, Position
from trio_sd.relabel import RelabelConfig
from trio_sd.web import WebConfig

from .bad_input import MEGABYTES, check, check_config, check_targets, check_web_config, secrets_of
from .large_inputs import large_inputs
from .mutations import SEEDS, mutated

FUZZ: Final = Path(__file__).parent / "data" / "fuzz"
EVERY_KEY: Final = sorted(FUZZ.glob("every-key-*.yml"))
WEB: Final = FUZZ / "web-every-key.yml"

JOB: Final = "scrape_configs:\n- job_name: a\n"


def refused(text: str) -> str:
    found = check_config(text.encode())
    assert isinstance(found, ConfigError)
    return str(found)


def refused_web(text: str) -> str:
    found = check_web_config(text.encode())
    assert isinstance(found, ConfigError)
    return str(found)


# What the fuzzer found


@pytest.mark.parametrize("path", sorted(FUZZ.iterdir()), ids=lambda path: path.name)
def test_the_corpus_does_no_harm(path: Path) -> None:
    check(path.read_bytes())


def test_the_corpus_is_small() -> None:
    sizes = [path.stat().st_size for path in FUZZ.iterdir()]
    assert len(sizes) <= 150
    assert sum(sizes) <= 300_000


@pytest.mark.parametrize("path", EVERY_KEY, ids=lambda path: path.name)
def test_configurations_with_every_key_are_accepted(path: Path) -> None:
    assert isinstance(check_config(path.read_bytes()), Config)


def test_a_web_configuration_with_every_key_is_accepted() -> None:
    assert isinstance(check_web_config(WEB.read_bytes()), WebConfig)
    assert {key for key in keys_of(WebConfig, set()) if f"{key}:" not in WEB.read_text()} == set()


def test_secrets_are_known_where_they_stand() -> None:
    assert len(list(secrets_of((FUZZ / "every-key-jobs.yml").read_bytes()))) > 5
    assert len(list(secrets_of(WEB.read_bytes()))) == 2


# Truncated


@pytest.mark.parametrize("name", ["merges.yml", "targets.yml", "targets.json", "anchors.yml", "rules.yml", WEB.name])
def test_every_prefix_does_no_harm(name: str) -> None:
    content = (FUZZ / name).read_bytes()
    for end in range(len(content)):
        check(content[:end])


@pytest.mark.parametrize("path", EVERY_KEY, ids=lambda path: path.name)
def test_prefixes_of_large_configurations_do_no_harm(path: Path) -> None:
    content = path.read_bytes()
    for end in range(0, len(content), 17):
        check_config(content[:end])


# Mutated


@given(st.sampled_from(SEEDS), st.integers(min_value=0, max_value=2**32))
def test_changed_lines_and_words_do_no_harm(content: bytes, seed: int) -> None:
    check(mutated(content, random.Random(seed)))


@given(st.sampled_from(SEEDS), st.data())
def test_changed_bytes_do_no_harm(content: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(min_value=0, max_value=len(content)))
    length = data.draw(st.integers(min_value=0, max_value=3))
    check(content[:start] + data.draw(st.binary(max_size=3)) + content[start + length :])


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(content: bytes) -> None:
    check(content)


# Values of wrong types

WRONG: Final = [
    "~", "[]", "{a: {b: [[c]]}}", "-1", "text", "true", ".nan", f"{10**30}", "!!binary /w==", "&x [*x]",
    "{<<: {a: b}}", '"\\0\\x9b\\u202e"', "a" * 3000,
]  # fmt: skip

HOLE: Final = "\N{REPLACEMENT CHARACTER}"


def documents() -> Iterator[Any]:  # Any: what YAML says
    """Yield a document of each item of each list, and of each other section, of the configurations with every key."""
    for path in EVERY_KEY:
        for key, value in yaml.safe_load(path.read_bytes()).items():
            for item in value if isinstance(value, list) else [value]:
                yield {key: [item] if isinstance(value, list) else item}


def with_a_hole(value: Any) -> Iterator[Any]:
    """Yield ``value`` with each part of it in turn taken out."""
    yield HOLE
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: changed} for changed in with_a_hole(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], changed, *value[index + 1 :]] for changed in with_a_hole(inner))


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[:20])
def test_a_value_of_a_wrong_type_does_no_harm_anywhere(wrong: str) -> None:
    for document in documents():
        for changed in with_a_hole(document):
            check_config(json.dumps(changed, ensure_ascii=False).replace(f'"{HOLE}"', wrong).encode())


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[:20])
def test_a_value_of_a_wrong_type_does_no_harm_in_a_web_configuration(wrong: str) -> None:
    for changed in with_a_hole(yaml.safe_load(WEB.read_bytes())):
        check_web_config(json.dumps(changed, ensure_ascii=False).replace(f'"{HOLE}"', wrong).encode())


def keys_of(of: Any, seen: set[object]) -> Iterator[str]:
    """Yield the keys that can stand in a ``of``, and below."""
    for part in typing.get_args(of):
        yield from keys_of(part, seen)
    if isinstance(of, type) and dataclasses.is_dataclass(of) and of not in seen:
        seen.add(of)
        hints = typing.get_type_hints(of)
        for field in dataclasses.fields(of):
            yield field.metadata.get("key", field.name)
            yield from keys_of(hints[field.name], seen)


def test_configurations_with_every_key_have_every_key() -> None:
    sections_of_all = [
        prometheus._Main, prometheus._Global, prometheus._Scrape, prometheus._Alerting, prometheus._Alertmanager,
        sections._OtherSections, RelabelConfig,
        *(cls for key, cls in default_registry().items() if key != "static_configs"),
    ]  # fmt: skip
    seen: set[object] = set()
    known = {key for of in sections_of_all for key in keys_of(of, seen)}
    known -= {"milliseconds", "text"}  # of a duration, and of claims
    text = "".join(path.read_text() for path in EVERY_KEY)
    assert {key for key in known if f"{key}:" not in text} == set()


# What once did harm


def test_escapes_of_characters_that_do_not_exist_are_refused() -> None:
    assert refused("a: !<%ED%A0%80> b").endswith("yml:1:6: found an escape of a character that does not exist")


def test_a_path_with_a_nul_is_refused_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prometheus.parse_config(
            b'scrape_config_files: ["\\0/*.yml"]', file=str(tmp_path / "p.yml"), registry=default_registry()
        )
    assert caught.value.position == Position(str(tmp_path / "p.yml"), 1, 23)
    assert str(caught.value).endswith("embedded null byte")


def test_a_path_with_a_nul_is_refused_in_a_web_configuration() -> None:
    for field in "cert_file", "key_file", "client_ca_file":
        files = {"cert_file": "a", "key_file": "b"} | {field: "\0"}
        message = refused_web(f"tls_server_config: {json.dumps(files)}")
        assert message.endswith(f'tls_server_config.{field}: found "\\u0000", which can\'t be the name of a file')


@pytest.mark.parametrize("section", ["basic_auth_users", "bearer_tokens"])
def test_a_hash_right_after_a_colon_is_not_shown(section: str) -> None:
    _, secret = secrets_of(WEB.read_bytes())
    for text in f"{section}: {{me:{secret}}}", f"{section}:\n  ? me:{secret}\n  :", f"{section}:\n  me:{secret}":
        assert secret not in refused_web(text)


def test_what_the_parser_refuses_at_the_end_is_in_the_last_line() -> None:
    assert "yml:1:6: " in refused("a: [b")
    assert "yml:2:2: " in refused("a: [b\n ")


def test_lines_are_counted_as_yaml_does() -> None:
    assert ":3:2: character U+0001" in refused("a\r\nb\rc\x01")


def test_aliases_can_not_nest_deeper_than_text() -> None:
    chain = "".join(f"- &a{n + 1} {{k: *a{n}}}\n" for n in range(1200))
    message = refused(f"x:\n- &a0 {{}}\n{chain}m: {{<<: [*a1200, *a1200]}}\n")
    assert message.endswith("nested more than 100 levels deep (limit: depth)")


def test_a_pattern_of_many_patterns_is_refused() -> None:
    assert "has more than 100 elements" in refused(f"{JOB}  file_sd_configs: [{{files: ['{'[a]/' * 400}*.json']}}]")


@pytest.mark.parametrize("char", ["\x7f", "\x9b", "\u2028", "\u202e"])
def test_messages_give_no_orders_to_a_terminal(char: str) -> None:
    escaped = json.dumps(char)
    assert f"\\u{ord(char):04x}" in refused(f"scrape_configs:\n- job_name: {escaped}\n- job_name: {escaped}\n")
    for text in f"[{{{escaped}: 1}}]", f'[{{"labels": {{{escaped}: "a"}}}}]', f'[{{"labels": {{{escaped}: 1}}}}]':
        found = check_targets(text.encode(), "/nowhere/targets.json")
        assert isinstance(found, ConfigError)


def test_messages_about_long_texts_are_short() -> None:
    message = refused(f"{JOB}  scrape_interval: {'9' * 100_000}")
    assert len(message) < 2_100
    assert message.endswith("expected a form such as 1h30m, 5s or 100ms")


# Large


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500_000,
        "#" * 1_100_000,
        f"basic_auth_users: {{{','.join(f'a{n}: x' for n in range(10_000))}}}",
        f"basic_auth_users: {{me: {'a' * 500_000}}}",
        f"basic_auth_users: {{{'a' * 500_000}: x}}",
        f"bearer_tokens: {{me: {'0' * 500_000}}}",
        f"http_server_config: {{headers: {{{','.join(f'a{n}: x' for n in range(10_000))}}}}}",
        f"tls_server_config: {{min_version: {'a' * 500_000}}}",
    ],
    ids=lambda text: text[:40],
)
def test_a_large_web_configuration_is_refused_in_few_words(text: str) -> None:
    assert len(refused_web(text)) < 2_100


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float, float]]:
    """Hand in the large inputs to a process of their own, in which nothing else has taken space yet."""
    command = [sys.executable, "-m", "tests.large_inputs"]
    done = subprocess.run(command, cwd=FUZZ.parents[2], capture_output=True, text=True, timeout=120, check=True)
    return {name: (harm, seconds, space) for name, harm, seconds, space in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", large_inputs())
def test_large_input_takes_little_time_and_space(name: str, outcomes: dict[str, tuple[str, float, float]]) -> None:
    harm, seconds, space = outcomes[name]
    assert harm == ""
    assert seconds < 10
    assert space < MEGABYTES
