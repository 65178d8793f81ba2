"""Tokens of OAuth 2.0: what to ask for them with, and what the answers say. Nothing here opens a connection.

The rules are those of ``golang.org/x/oauth2`` and, for the grant type of RFC 7523, of ``oauth_assertion.go`` in
``prometheus/common``. Answers to both grant types are read alike.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qs, quote_plus, urlencode

from .errors import DiscoveryError
from .http_config import JWT_BEARER, OAuth2, secret_of, sendable
from .messages import is_utf8, one_line, quote
from .secrets import Secret

__all__ = ["Token", "TokenRequest", "parse_token", "read_secret", "token_requests"]

_EARLIER: Final = 10.0  # seconds before its end that a token is given up: it has a way to go, and clocks differ
_ASSERTED: Final = 600  # seconds that a JWT is good for
_LONGEST: Final = 2**31 - 1  # seconds that a token is taken to be good for
_FORMS: Final = ("application/x-www-form-urlencoded", "text/plain")
_WHOLE_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_TYPES: Final = MappingProxyType({"": "Bearer", "bearer": "Bearer", "mac": "MAC", "basic": "Basic"})


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for a token, to be sent with the method POST.

    Attributes:
      url: where to.
      headers: names and values.
      body: a form.
    """

    url: str
    headers: tuple[tuple[str, Secret], ...]
    body: Secret


@dataclass(frozen=True, slots=True)
class Token:
    """What shows who one is, for a while.

    Attributes:
      access_token: the token itself.
      type: how to show it; ``Bearer`` if nothing else is said.
      expires_at: when it ends, on the clock of whoever asked for it, in seconds; ``None`` if it never does.
    """

    access_token: Secret
    type: str = ""
    expires_at: float | None = None

    def __post_init__(self) -> None:
        # RFC 6749, section 5.1: the case of a type does not count. Servers that are asked for something may know less.
        object.__setattr__(self, "type", _TYPES.get(self.type.lower(), self.type))

    def header(self) -> Secret:
        """Return the value of the header ``Authorization``.

        Raises:
          SecretError: the token is what no header can hold; :func:`parse_token` returns no such token.
        """
        return sendable("Authorization", Secret(f"{self.type} {self.access_token.reveal()}"), "the token")

    def usable(self, now: float) -> bool:
        """Tell whether the token will still do ``now``; not in the ten seconds before it ends."""
        return self.expires_at is None or now <= self.expires_at - _EARLIER


def read_secret(oauth2: OAuth2) -> Secret:
    """Return what the requests of a section are made with, as its file holds it now. Blocks: call it in a thread.

    It is the client's secret or, for the grant type ``jwt-bearer``, the key that signs; empty if the section has none.

    Raises:
      SecretError: the file can't be read, or there is no secret manager to ask.
    """
    if oauth2.grant_type == JWT_BEARER:
        key, file, ref = (
            oauth2.client_certificate_key,
            oauth2.client_certificate_key_file,
            oauth2.client_certificate_key_ref,
        )
        return secret_of("client_certificate_key", key, file, ref)
    return secret_of("client_secret", oauth2.client_secret, oauth2.client_secret_file, oauth2.client_secret_ref)


def token_requests(oauth2: OAuth2, secret: Secret, *, now: float) -> Sequence[TokenRequest]:
    """Return the requests that may get a token: the second is for when the first gets none.

    For ``client_credentials`` there are two, because servers differ in where they look for the client and its secret:
    in the header ``Authorization``, as they should, or in the form. For ``jwt-bearer`` there is one.

    Args:
      oauth2: what the section says.
      secret: what :func:`read_secret` returns.
      now: seconds since the epoch.

    Raises:
      DiscoveryError: ``endpoint_params`` take the name of a parameter that is already there; the key is not an RSA key;
        or what signs is not installed. Shows nothing of the secret.
    """
    scope = {"scope": " ".join(oauth2.scopes)} if oauth2.scopes else {}
    if oauth2.grant_type == JWT_BEARER:
        claims = {**_claims(oauth2, now), **scope, **(oauth2.claims.values() if oauth2.claims else {})}
        assertion = _signed(claims, oauth2, secret)
        return (_request(oauth2, _form(oauth2, {"grant_type": JWT_BEARER, "assertion": assertion, **scope})),)
    form = _form(oauth2, {"grant_type": "client_credentials", **scope})
    client = {"client_id": oauth2.client_id} | ({"client_secret": secret.reveal()} if secret else {})
    pair = f"{quote_plus(oauth2.client_id)}:{quote_plus(secret.reveal())}"  # RFC 6749, section 2.3.1
    basic = ("Authorization", Secret(f"Basic {base64.b64encode(pair.encode()).decode()}"))
    return _request(oauth2, form, basic), _request(oauth2, form | client)


def _request(oauth2: OAuth2, form: Mapping[str, str], *headers: tuple[str, Secret]) -> TokenRequest:
    content_type = ("Content-Type", Secret("application/x-www-form-urlencoded"))
    return TokenRequest(oauth2.token_url, (content_type, *headers), Secret(urlencode(sorted(form.items()))))


def _form(oauth2: OAuth2, form: Mapping[str, str]) -> dict[str, str]:
    """Return ``form`` with ``endpoint_params``; they may name another grant type, for servers that have their own."""
    params = {name: value.reveal() for name, value in (oauth2.endpoint_params or {}).items()}
    for name in params:
        if name in form and name != "grant_type":
            raise DiscoveryError(f"endpoint_params can't set {quote(name)}, which the request for a token has already")
    return {**form, **params}


# JWT


def _claims(oauth2: OAuth2, now: float) -> dict[str, object]:
    return {
        "iss": oauth2.iss or oauth2.client_id,
        "sub": oauth2.client_id,
        "jti": str(uuid.uuid4()),
        "aud": oauth2.audience or oauth2.token_url,
        "iat": int(now),
        "exp": int(now) + _ASSERTED,
    }


def _signed(claims: Mapping[str, object], oauth2: OAuth2, key: Secret) -> str:
    """Return ``claims`` as a JWT."""
    try:  # only here, because they belong to the extra
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from jwt import PyJWS
    except ImportError:
        message = "the grant type jwt-bearer needs PyJWT and cryptography, of which one is not installed; "
        raise DiscoveryError(message + "the extra trio-sd[http] has them") from None
    try:
        private_key = load_pem_private_key(key.reveal().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # a TypeError if it is encrypted
        private_key = None
    if not isinstance(private_key, RSAPrivateKey):
        file = oauth2.client_certificate_key_file
        source = quote(file) if file else "of the field client_certificate_key"
        expected = "expected an RSA private key as PEM without a passphrase"
        raise DiscoveryError(f"can't use the client certificate key {source}: {expected}")
    # Not jwt.encode(), which has opinions about claims: those of the section are the server's affair.
    return PyJWS().encode(
        json.dumps(claims).encode(),
        private_key,
        algorithm=oauth2.signature_algorithm or "RS256",
        headers={"kid": oauth2.client_certificate_key_id} if oauth2.client_certificate_key_id else None,
    )


# Answers


def parse_token(status: int, content_type: str, body: bytes, *, now: float) -> Token:
    """Return the token that an answer brings.

    Args:
      status: the status code.
      content_type: the header of that name; what is neither a form nor plain text is read as JSON.
      body: what was answered.
      now: when, on the clock that :meth:`Token.usable` is asked about.

    Raises:
      DiscoveryError: the answer brings none. Tells the error that the server names, and shows nothing else of it.
    """
    failed = not 200 <= status <= 299
    try:
        answer = _form_answer(body) if _media_type(content_type) in _FORMS else _json_answer(body)
        error, description = _text(answer, "error"), _text(answer, "error_description")
        if not failed and not error:
            return _token(answer, now)
    except ValueError as problem:
        if not failed:
            raise DiscoveryError(f"can't read the answer to the request for a token: {problem}") from None
        error, description = "", ""  # a page for people, say
    told = ": ".join(quote(text) for text in (error, description) if text)
    raise DiscoveryError(one_line(f"asked for a token, found the status {status}{': ' if told else ''}{told}"))


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _form_answer(body: bytes) -> Mapping[str, object]:
    fields = {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
    if not _WHOLE_NUMBER.fullmatch(fields.get("expires_in", "")):
        fields.pop("expires_in", None)  # as Go has it for forms: not told
    return fields


def _json_answer(body: bytes) -> Mapping[str, object]:
    try:
        answer: Any = json.loads(body)  # Any: whatever the server sends
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(answer, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 (of the server's, not of the caller's)
    return answer


def _text(answer: Mapping[str, object], name: str) -> str:
    value = answer.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"expected a string as {name}")  # noqa: TRY004 (likewise)
    return value


def _token(answer: Mapping[str, object], now: float) -> Token:
    access_token = _text(answer, "access_token")
    if not access_token:
        raise ValueError("access_token is missing")
    lifetime = _lifetime(answer.get("expires_in"))
    token = Token(Secret(access_token), _text(answer, "token_type"), now + lifetime if lifetime else None)
    if not is_utf8(token.header().reveal()):  # a SecretError is a ValueError as well
        raise ValueError("the token is not valid UTF-8")
    return token


def _lifetime(value: object) -> int:
    """Return for how many seconds a token is good; 0 if that is not said."""
    if value is None:
        return 0
    if not isinstance(value, int | str) or not _WHOLE_NUMBER.fullmatch(str(value)):
        raise ValueError("expected a whole number of seconds as expires_in")
    return min(int(value), _LONGEST)
