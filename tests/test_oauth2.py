"""Tokens are asked for, and answers are read, as Prometheus does; nobody sees a secret on the way."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.errors import DiscoveryError
from trio_sd.http_config import JWT_BEARER, Claims, OAuth2
from trio_sd.oauth2 import Token, TokenRequest, parse_token, read_secret, token_requests
from trio_sd.secrets import Secret, SecretError

NOW = 1_700_000_000.7
FORM = "application/x-www-form-urlencoded"


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption = NoEncryption(),  # noqa: B008 (immutable)
) -> str:
    return key.private_bytes(Encoding.PEM, form, encryption).decode()


def public_pem() -> str:
    return rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def client(**fields: Any) -> OAuth2:  # Any: whatever the fields are
    return OAuth2(**{"client_id": "me", "token_url": "https://login/token", **fields})


def bearer(**fields: Any) -> OAuth2:  # Any: likewise
    return client(grant_type=JWT_BEARER, **fields)


def form(request: TokenRequest) -> dict[str, str]:
    pairs = parse_qsl(request.body.reveal(), keep_blank_values=True, strict_parsing=True)
    assert pairs == sorted(pairs)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def headers(request: TokenRequest) -> dict[str, str]:
    return {name: value.reveal() for name, value in request.headers}


def asked(oauth2: OAuth2, secret: str = "hunter2") -> list[dict[str, str]]:
    """Return the forms of the requests for a token."""
    requests = token_requests(oauth2, Secret(secret), now=NOW)
    assert {request.url for request in requests} == {"https://login/token"}
    assert {headers(request)["Content-Type"] for request in requests} == {FORM}
    assert "hunter2" not in repr(requests)
    return [form(request) for request in requests]


# The secret


def test_the_secret_of_a_section(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("other")
    config = client(client_secret_file=str(file))
    assert read_secret(config) == Secret("other")
    file.write_text(" hunter2\n")
    assert read_secret(config) == read_secret(client(client_secret=Secret("hunter2"))) == Secret("hunter2")
    assert read_secret(bearer(client_certificate_key_file=str(file), client_secret=Secret("x"))) == Secret("hunter2")
    assert read_secret(bearer(client_certificate_key=Secret("hunter2"))) == Secret("hunter2")
    assert read_secret(client(client_certificate_key=Secret("hunter2"))) == Secret()
    assert read_secret(bearer(client_secret=Secret("hunter2"))) == Secret()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (client(client_secret_ref="r"), 'can\'t use client_secret_ref "r": there is no secret manager to ask'),
        (
            bearer(client_certificate_key_ref="r"),
            'can\'t use client_certificate_key_ref "r": there is no secret manager to ask',
        ),
        (client(client_secret_file="/no/file"), 'can\'t read "/no/file": No such file or directory'),
        (bearer(client_certificate_key_file="/no/file"), 'can\'t read "/no/file": No such file or directory'),
    ],
)
def test_a_secret_that_can_not_be_had(config: OAuth2, message: str) -> None:
    with pytest.raises(SecretError) as caught:
        read_secret(config)
    assert str(caught.value) == message


# client_credentials


def test_the_client_is_told_in_a_header_and_where_that_does_not_help_in_the_form() -> None:
    first, second = token_requests(client(client_id="m e:/ü", scopes=("r", "w x")), Secret("hunter2 :+~"), now=NOW)
    assert form(first) == {"grant_type": "client_credentials", "scope": "r w x"}
    assert headers(first).keys() == {"Content-Type", "Authorization"}
    kind, _, pair = headers(first)["Authorization"].partition(" ")
    assert (kind, b64decode(pair)) == ("Basic", b"m+e%3A%2F%C3%BC:hunter2+%3A%2B~")
    assert headers(second) == {"Content-Type": FORM}
    assert form(second) == {**form(first), "client_id": "m e:/ü", "client_secret": "hunter2 :+~"}


def test_without_scopes_and_secret_there_are_none() -> None:
    assert asked(client(), "") == [
        {"grant_type": "client_credentials"},
        {"grant_type": "client_credentials", "client_id": "me"},
    ]
    [first, _] = token_requests(client(), Secret(), now=NOW)
    assert headers(first)["Authorization"] == "Basic bWU6"


def test_endpoint_params_are_told_as_well() -> None:
    params = {"tenant": Secret("hunter2"), "grant_type": Secret("own"), "scope": Secret("s"), "client_id": Secret("x")}
    found = {"tenant": "hunter2", "grant_type": "own", "scope": "s"}
    assert asked(client(endpoint_params=params)) == [
        {**found, "client_id": "x"},
        {**found, "client_id": "me", "client_secret": "hunter2"},
    ]


def test_any_other_grant_type_is_client_credentials() -> None:
    assert asked(client(grant_type="password"))[0] == {"grant_type": "client_credentials"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (client(scopes=("r",), endpoint_params={"scope": Secret("hunter2")}), "scope"),
        (bearer(scopes=("r",), endpoint_params={"scope": Secret("hunter2")}), "scope"),
        (bearer(endpoint_params={"assertion": Secret("hunter2")}), "assertion"),
    ],
)
def test_endpoint_params_take_no_name_that_is_there(config: OAuth2, name: str) -> None:
    with pytest.raises(DiscoveryError) as caught:
        token_requests(config, Secret(pem(rsa_key())), now=NOW)
    assert str(caught.value) == f'endpoint_params can\'t set "{name}", which the request for a token has already'


# jwt-bearer


def signed(oauth2: OAuth2, key: str = "") -> tuple[dict[str, object], dict[str, object]]:
    """Return header and claims of the JWT in the one request, whose signature is right."""
    [request] = token_requests(oauth2, Secret(key or pem(rsa_key())), now=NOW)
    assert headers(request) == {"Content-Type": FORM}
    assertion = form(request)["assertion"]
    options: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_iss": False}
    options |= {"verify_sub": False}
    claims = jwt.decode(assertion, rsa_key().public_key(), algorithms=["RS256", "RS384", "RS512"], options=options)
    return jwt.get_unverified_header(assertion), claims


def test_a_jwt_says_who_asks_whom() -> None:
    header, claims = signed(bearer())
    assert header == {"alg": "RS256", "typ": "JWT"}
    assert isinstance(claims.pop("jti"), str)
    assert claims == {
        "iss": "me",
        "sub": "me",
        "aud": "https://login/token",
        "iat": 1_700_000_000,
        "exp": 1_700_000_600,
    }


def test_a_jwt_says_what_the_section_says() -> None:
    claims = Claims.of({"tenant": {"id": 1, "of": [True, None, 0.5, "ü"]}, "sub": "someone", "exp": 5})
    config = bearer(
        client_certificate_key_id="k", iss="i", audience="a", scopes=("r", "w"), claims=claims, endpoint_params=None
    )
    header, found = signed(config)
    assert header == {"alg": "RS256", "typ": "JWT", "kid": "k"}
    found.pop("jti")
    assert found == {
        "iss": "i",
        "sub": "someone",
        "aud": "a",
        "iat": 1_700_000_000,
        "exp": 5,
        "scope": "r w",
        "tenant": {"id": 1, "of": [True, None, 0.5, "ü"]},
    }


def test_no_two_jwts_have_the_same_name() -> None:
    assert signed(bearer())[1]["jti"] != signed(bearer())[1]["jti"]


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512"])
def test_a_jwt_is_signed_as_the_section_says(algorithm: str) -> None:
    assert signed(bearer(signature_algorithm=algorithm))[0]["alg"] == algorithm


def test_a_key_may_be_in_either_form() -> None:
    signed(bearer(), pem(rsa_key(), PrivateFormat.TraditionalOpenSSL))


def test_a_jwt_stands_in_the_form() -> None:
    [found] = asked(bearer(scopes=("r", "w"), endpoint_params={"tenant": Secret("hunter2")}), pem(rsa_key()))
    assert found.pop("assertion").count(".") == 2
    assert found == {"grant_type": JWT_BEARER, "scope": "r w", "tenant": "hunter2"}
    [found] = asked(bearer(endpoint_params={"grant_type": Secret("own")}), pem(rsa_key()))
    assert found.keys() == {"grant_type", "assertion"}
    assert found["grant_type"] == "own"


KEYS: dict[str, Callable[[], str]] = {
    "none": lambda: "",
    "no key": lambda: "hunter2",
    "a broken one": lambda: "-----BEGIN PRIVATE KEY-----\nhunter2=\n-----END PRIVATE KEY-----\n",
    "one of a curve": lambda: pem(ec.generate_private_key(ec.SECP256R1())),
    "one with a passphrase": lambda: pem(rsa_key(), encryption=BestAvailableEncryption(b"hunter2")),
    "a public one": public_pem,
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_no_rsa_key_is_told_and_not_shown(kind: str) -> None:
    key = KEYS[kind]()
    for config, source in (
        (bearer(client_certificate_key_file="f.key"), '"f.key"'),
        (bearer(), "of the field client_certificate_key"),
    ):
        with pytest.raises(DiscoveryError) as caught:
            token_requests(config, Secret(key), now=NOW)
        expected = "expected an RSA private key as PEM without a passphrase"
        assert str(caught.value) == f"can't use the client certificate key {source}: {expected}"
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("missing", ["jwt", "cryptography.hazmat.primitives.serialization"])
def test_what_signs_may_not_be_installed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DiscoveryError, match=r"the extra trio-sd\[http\] has them"):
        token_requests(bearer(), Secret("hunter2"), now=NOW)
    assert len(token_requests(client(), Secret("hunter2"), now=NOW)) == 2


# Answers


def answer(**fields: object) -> bytes:
    return json.dumps({"access_token": "hunter2", **fields}).encode()


def refusal(status: int, content_type: str, body: bytes) -> str:
    with pytest.raises(DiscoveryError) as caught:
        parse_token(status, content_type, body, now=NOW)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "", "text/html", ";"])
def test_what_is_no_form_is_json(content_type: str) -> None:
    token = parse_token(200, content_type, answer(token_type="bearer", expires_in=60, more=[1]), now=NOW)
    assert token == Token(Secret("hunter2"), "Bearer", NOW + 60)


@pytest.mark.parametrize("content_type", [FORM, "text/plain", f" {FORM.upper()} ;charset=x"])
def test_forms(content_type: str) -> None:
    body = b"access_token=hunter2%2B+x&access_token=y&token_type=mac&expires_in=60&scope=&more=\xff"
    assert parse_token(201, content_type, body, now=NOW) == Token(Secret("hunter2+ x"), "MAC", NOW + 60)


@pytest.mark.parametrize(
    ("expires_in", "expires_at"),
    [
        (None, None),
        (0, None),
        ("0", None),
        (60, NOW + 60),
        ("60", NOW + 60),
        (-60, NOW - 60),
        (10**12, NOW + 2**31 - 1),
    ],
)
def test_when_a_token_ends(expires_in: object, expires_at: float | None) -> None:
    assert parse_token(200, "", answer(expires_in=expires_in), now=NOW).expires_at == expires_at
    if expires_in is not None:
        body = f"access_token=x&expires_in={expires_in}".encode()
        assert parse_token(200, FORM, body, now=NOW).expires_at == expires_at


@pytest.mark.parametrize("expires_in", ["soon", "", "1.5", "9" * 5000])
def test_a_form_that_does_not_say_when_a_token_ends_leaves_it_open(expires_in: str) -> None:
    body = f"access_token=x&expires_in={expires_in}".encode()
    assert parse_token(200, FORM, body, now=NOW).expires_at is None


@pytest.mark.parametrize("expires_in", ["soon", "", "1.5", 1.5, True, [60], 10**30, float("nan"), float("inf")])
def test_json_that_says_it_wrongly_is_refused(expires_in: object) -> None:
    message = "can't read the answer to the request for a token: expected a whole number of seconds as expires_in"
    assert refusal(200, "", answer(expires_in=expires_in)) == message


@pytest.mark.parametrize(
    ("type_", "header"),
    [
        ("", "Bearer"),
        ("bEaReR", "Bearer"),
        ("mac", "MAC"),
        ("BASIC", "Basic"),
        ("DPoP", "DPoP"),
    ],
)
def test_a_token_is_shown_by_its_type(type_: str, header: str) -> None:
    assert Token(Secret("hunter2"), type_).header().reveal() == f"{header} hunter2"
    assert parse_token(200, "", answer(token_type=type_ or None), now=NOW).header().reveal() == f"{header} hunter2"


def test_a_token_is_used_until_ten_seconds_before_its_end() -> None:
    token = Token(Secret("hunter2"), expires_at=100)
    assert [token.usable(now) for now in (0, 90, 90.1, 100, 101)] == [True, True, False, False, False]
    assert Token(Secret("hunter2")).usable(1e12)


def test_tokens_are_values_that_show_no_secret() -> None:
    token = parse_token(200, "", answer(), now=NOW)
    assert hash(token) == hash(parse_token(200, "", answer(), now=NOW))
    assert "hunter2" not in repr(token) + str(token.header())


READ = "can't read the answer to the request for a token"
ASKED = "asked for a token, found the status"


@pytest.mark.parametrize(
    ("status", "content_type", "body", "message"),
    [
        (200, "", b'{"access": "hunter2"}', f"{READ}: access_token is missing"),
        (200, "", b'{"access_token": ""}', f"{READ}: access_token is missing"),
        (200, "text/plain", b'{"access_token": "hunter2"}', f"{READ}: access_token is missing"),
        (200, FORM, b"access_token=&hunter2", f"{READ}: access_token is missing"),
        (200, "", b'{"access_token": ["hunter2"]}', f"{READ}: expected a string as access_token"),
        (200, "", b'{"access_token": "hunter2", "token_type": 1}', f"{READ}: expected a string as token_type"),
        (200, "", b'{"access_token": "hunter2", "error": 1}', f"{READ}: expected a string as error"),
        (200, "", b'["hunter2"]', f"{READ}: expected a JSON object"),
        (200, "", b"null", f"{READ}: expected a JSON object"),
        (200, "", b"", f"{READ}: it is not JSON"),
        (200, "", b"hunter2", f"{READ}: it is not JSON"),
        (200, "", b'{"access_token": "hunter2\xff"}', f"{READ}: it is not JSON"),
        (200, "", b'{"access_token": "x", "y": ' + b"1" * 5000 + b"}", f"{READ}: it is not JSON"),
        (200, "", b"[" * 1_000_000, f"{READ}: it is not JSON"),
        (200, "", b'{"access_token": "hunter2\\ud800"}', f"{READ}: the token is not valid UTF-8"),
        (200, "", b'{"access_token": "hunter2\\r\\nX: y"}', f"{READ}: found a control character in the token, "),
        (200, FORM, b"access_token=x&token_type=hunter2%0a", f"{READ}: found a control character in the token, "),
        (400, "", b'{"error": "invalid_client"}', f'{ASKED} 400: "invalid_client"'),
        (
            401,
            "application/json",
            b'{"access_token": "hunter2", "error": "a", "error_description": "b \\u001b[2J", "error_uri": "c"}',
            f'{ASKED} 401: "a": "b \\u001b[2J"',
        ),
        (400, FORM, b"error=a&error_description=b+c", f'{ASKED} 400: "a": "b c"'),
        (200, "", answer(error="a"), f'{ASKED} 200: "a"'),
        (200, FORM, b"access_token=hunter2&error=a", f'{ASKED} 200: "a"'),
        (403, "", b'{"error_description": "b"}', f'{ASKED} 403: "b"'),
        (302, "", answer(), f"{ASKED} 302"),
        (500, "text/html", b"<p>hunter2</p>", f"{ASKED} 500"),
        (400, "", b'{"error": ["hunter2"]}', f"{ASKED} 400"),
        (199, "", b"", f"{ASKED} 199"),
    ],
)
def test_answers_without_a_token(status: int, content_type: str, body: bytes, message: str) -> None:
    told = refusal(status, content_type, body)
    assert told.startswith(message) if message.endswith(" ") else told == message


def test_what_a_server_tells_of_its_error_has_an_end() -> None:
    assert (
        len(refusal(400, "", json.dumps({"error": "e" * 100_000, "error_description": "d" * 100_000}).encode())) < 3000
    )


def token_or_error(status: int, content_type: str, body: bytes) -> Token | None:
    try:
        return parse_token(status, content_type, body, now=NOW)
    except DiscoveryError as error:
        told = str(error)
    assert told.isprintable()
    return None


@given(status=st.integers(100, 599), content_type=st.sampled_from(["", FORM, "text/plain", "a/b"]), body=st.binary())
def test_any_answer_brings_a_token_or_an_error(status: int, content_type: str, body: bytes) -> None:
    if token := token_or_error(status, content_type, body):
        assert token.access_token


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["access_token", "token_type", "expires_in", "error", "error_description"])


@given(fields=st.dictionaries(NAMES, JSON))
def test_any_json_brings_a_token_that_a_header_can_hold_or_an_error(fields: dict[str, object]) -> None:
    if token := token_or_error(200, "", json.dumps(fields).encode()):
        assert token.header().reveal().encode()
