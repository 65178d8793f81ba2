"""What is secret stays so, wherever it is shown, and whatever is wrong with the text around it."""

from __future__ import annotations

import copy
import json
import pprint
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pytest
from rich.pretty import pretty_repr

from trio_sd.config import FrozenMapping, decode, parse_yaml
from trio_sd.errors import ConfigError, TrioSDError
from trio_sd.limits import Limits
from trio_sd.secrets import Secret, SecretError

NONE: Final = Secret()


@dataclass(frozen=True)
class Account:
    user: str = ""
    password: Secret = NONE
    old: tuple[Secret, ...] = ()
    named: Mapping[str, Secret] = FrozenMapping()
    maybe: Secret | None = None


def read(text: str) -> Account:
    node = parse_yaml(text.encode(), file="f.yml", limits=Limits())
    assert node is not None
    return decode(node, Account)


# The value


def test_a_secret_shows_nothing() -> None:
    secret = Secret("hunter2")
    assert {str(secret), repr(secret), f"{secret}", f"{secret!r}", "%s" % secret, "%r" % secret} == {"<secret>"}  # noqa: UP031 (what is tested)
    account = Account("u", secret, (secret,), FrozenMapping({"a": secret}))
    for shown in (
        repr(account),
        str(asdict(account)),
        pprint.pformat(account),
        pretty_repr(account),
        str(vars(account)),
    ):
        assert "hunter2" not in shown
        assert "<secret>" in shown
    with pytest.raises(TypeError) as caught:
        json.dumps(secret)
    assert "hunter2" not in str(caught.value)


def test_a_secret_is_revealed_on_purpose() -> None:
    assert Secret("hunter2").reveal() == "hunter2"
    assert copy.deepcopy(Secret("hunter2")).reveal() == "hunter2"


def test_secrets_are_values() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b"), "a"}) == 3
    assert not hasattr(Secret("a"), "__dict__")


def test_an_empty_secret_is_none() -> None:
    assert not Secret()
    assert Secret("0")


# From files


@pytest.mark.parametrize("content", ["hunter2", "hunter2\n", " \thunter2\r\n\n"])
def test_white_space_around_a_secret_in_a_file_is_not_part_of_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "p"
    file.write_bytes(content.encode())
    assert Secret.read(str(file)) == Secret("hunter2")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xffhunter2", "it is not UTF-8"), (b" \n", "is empty, expected a secret in it")],
)
def test_a_file_without_a_secret_is_named_and_not_shown(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "p"
    file.write_bytes(content)
    with pytest.raises(SecretError, match=message) as caught:
        Secret.read(str(file))
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/none/p", 'can\'t read "/none/p": No such file or directory'),
        ("/", 'can\'t read "/": Is a directory'),
        ("a\0b", 'can\'t read "a\\u0000b": embedded null byte'),
    ],
)
def test_a_file_that_can_not_be_read_is_named(name: str, message: str) -> None:
    with pytest.raises(SecretError) as caught:
        Secret.read(name)
    assert str(caught.value) == message
    assert isinstance(caught.value, TrioSDError)


# In a configuration


@pytest.mark.parametrize(
    ("text", "value"),
    [("hunter2", "hunter2"), ("010", "010"), ("no", "no"), ("''", ""), ("~", ""), ("!!binary aHVudGVyMg==", "hunter2")],
)
def test_a_secret_is_the_raw_text(text: str, value: str) -> None:
    assert read(f"password: {text}").password == Secret(value)


def test_secrets_may_stand_wherever_a_text_may() -> None:
    account = read("{old: [a, b], named: {x: c}, maybe: d}")
    assert account.old == (Secret("a"), Secret("b"))
    assert account.named == {"x": Secret("c")}
    assert account.maybe == Secret("d")
    assert read("maybe: ~").maybe is None
    assert isinstance(hash(account), int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("password: [hunter2]", "f.yml:1:11: password: found a list, expected a string"),
        ("password: {hunter2: hunter2}", "f.yml:1:11: password: found a mapping, expected a string"),
        ("password: {hunter2}", "f.yml:1:11: password: found a mapping, expected a string"),
        # 0xff, then hunter2
        ("password: !!binary /2h1bnRlcjI=", "f.yml:1:11: password: what is found here is not valid UTF-8"),
        ("password: !!binary hunter2", "f.yml:1:11: !!binary value contains invalid base64 data"),
        ("maybe: [hunter2]", "f.yml:1:8: maybe: found a list, expected a string"),
        ("old: hunter2", "f.yml:1:6: old: found a string, expected a list"),
        ("old: {hunter2: ~}", "f.yml:1:6: old: found a mapping, expected a list"),
        ("old: [[hunter2]]", "f.yml:1:7: old[0]: found a list, expected a string"),
        ("named: hunter2", "f.yml:1:8: named: found a string, expected a mapping"),
        ("named: {a: [hunter2]}", "f.yml:1:12: named.a: found a list, expected a string"),
        ("hunter2", "f.yml:1:1: found a string, expected a mapping"),
        ("[hunter2]", "f.yml:1:1: found a list, expected a mapping"),
        ("password:hunter2", "f.yml:1:1: found a string, expected a mapping"),
        ("{user: u, password:hunter2}", "f.yml:1:11: found a key without a value that is not known here, not shown"),
        ("{u:hunter2}", "f.yml:1:2: found a key without a value that is not known here, not shown"),
        ("{user: u, hunter2}", "f.yml:1:11: found a key without a value that is not known here, not shown"),
        ("user: u\npassword: hunter2\npasword: hunter2", "f.yml:3:1: pasword: field pasword not found"),
        ("user: u\npassword: hunter2\nuser: u", "f.yml:3:1: field user already set"),
        ("user: [u]\npassword: hunter2", "f.yml:1:7: user: found a list, expected a string"),
        ("user: u\npassword:hunter2", "f.yml:"),
        ("password: a: hunter2", "f.yml:"),
        ('password: "hunter2', "f.yml:"),
        ('password: "hunter2\\q"', "f.yml:1:19: "),
        ("password: 'hunter2'x", "f.yml:1:20: "),
        ("password: @hunter2", "f.yml:1:11: "),
        ("password: %hunter2", "f.yml:1:11: "),
        ("password: |hunter2", "f.yml:1:12: "),
        ("password: !hunter2!a b", "f.yml:1:11: "),
        ("password: hunter2\x01", "f.yml:1:18: character U+0001 is not allowed in YAML"),
    ],
)
def test_no_error_shows_a_secret(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


def test_keys_without_a_value_are_told_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"expected one of: maybe, named, old, password, user$"):
        read("{password:hunter2}")
