"""How a section says to speak HTTP, with the keys of Prometheus' HTTP client configuration: whom to be, through what.

Only what is said is here, and the headers that follow from it; nothing opens a connection. The rules are those of
``prometheus/common``.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import unquote

from .errors import FieldError
from .messages import printable, quote
from .secrets import Secret, SecretError
from .tls import TLSConfig

__all__ = [
    "JWT_BEARER",
    "RESERVED_HEADERS",
    "Authorization",
    "BasicAuth",
    "Claims",
    "HTTPClientConfig",
    "HTTPHeader",
    "OAuth2",
    "ProxyConfig",
    "check_url",
    "secret_of",
    "sendable",
    "without_password",
]

RESERVED_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "user-agent",
        "www-authenticate",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-security-token",
        "x-prometheus-remote-read-version",
        "x-prometheus-remote-write-version",
        "x-prometheus-scrape-timeout-seconds",
    }
)
"""Names, in lower case, of headers that ``http_headers`` may not set: they belong to the connection or the client."""

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""The grant type of RFC 7523, of which the client signs what it says of itself."""

_NO_SECRET: Final = Secret()
_NO_TLS: Final = TLSConfig()
_NULL_IS_EMPTY: Final = MappingProxyType({"null": "empty"})  # as in Go: `follow_redirects:` without a value is false
_SIGNATURE_ALGORITHMS: Final = ("RS256", "RS384", "RS512")

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_FORBIDDEN_IN_HEADERS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_USER_INFO: Final = re.compile(r"[a-zA-Z0-9._:~!$&'()*+,;=%@-]*")
_HOST_CHARACTER: Final = r"""[a-zA-Z0-9._~!$&'()*+,;=:<>"-]|[^\x00-\x7f]"""
_HOST: Final = re.compile(rf"(?:{_HOST_CHARACTER}|\]|%25|%[89a-fA-F][0-9a-fA-F])*+")
_BRACKETED: Final = re.compile(rf"\[((?:{_HOST_CHARACTER}|%[0-9a-fA-F]{{2}})*+)\](?::[0-9]*)?")
_DIGITS: Final = re.compile(r"[0-9]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9a-fA-F]{2})")


def check_url(url: str) -> None:
    """Check that Go's ``url.Parse`` takes ``url``, as Prometheus does: a relative URL will do, an empty one as well.

    Raises:
      ValueError: it is no URL. The message shows nothing of it, because a URL may hold a password.
    """
    rest, _, fragment = url.partition("#")
    _check_escapes(fragment)
    if _CONTROL.search(rest):
        raise ValueError("not a valid URL: found a control character in it")
    if rest.startswith(":"):
        raise ValueError("not a valid URL: found no scheme before the first colon, expected one such as http")
    scheme = _SCHEME.match(rest)
    rest = rest[scheme.end() if scheme else 0 :].partition("?")[0]
    if scheme and not rest.startswith("/"):  # `mailto:x` has nothing that could be wrong
        return
    if ":" in rest.partition("/")[0]:
        raise ValueError("not a valid URL: the first path segment in a URL without a scheme cannot contain a colon")
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        _check_authority(authority)
        rest = slash + path
    _check_escapes(rest)


def without_password(url: str) -> str:
    """Return a URL as it may be shown: with ``xxxxx`` for a password in it, as Prometheus shows it."""
    head, at, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user_info, found, host = authority.rpartition("@")
    user, colon, _ = user_info.partition(":")
    return f"{head}{at}{user}:xxxxx@{host}{slash}{path}" if found and colon else url


def _check_authority(authority: str) -> None:
    user_info, _, host = authority.rpartition("@")
    if not _USER_INFO.fullmatch(user_info):
        raise ValueError("not a valid URL: found a character in its user or password that must be escaped")
    _check_escapes(user_info)
    if "[" in host:
        _check_bracketed(host)
        return
    name, colon, port = host.rpartition(":")
    if not _DIGITS.fullmatch(port if colon else ""):
        raise ValueError("not a valid URL: invalid port after its host, expected a number")
    if not _HOST.fullmatch(name if colon else host):
        raise ValueError("not a valid URL: found a character in its host that no host has")


def _check_bracketed(host: str) -> None:
    match = _BRACKETED.fullmatch(host)
    try:
        ipaddress.IPv6Address(unquote(match[1]) if match else "")
    except ValueError:
        raise ValueError("not a valid URL: expected an IPv6 address in the brackets of its host") from None


def _check_escapes(part: str) -> None:
    if _BAD_ESCAPE.search(part):
        raise ValueError("not a valid URL: invalid URL escape, expected two hexadecimal digits after each %")


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicAuth:
    """A section ``basic_auth``: a user and a password, each given directly, by a file, or by the name of a secret.

    Attributes:
      username: the user.
      username_file: the file that holds the user.
      username_ref: what a secret manager calls the user. Neither Prometheus nor this package has one.
      password: the password.
      password_file: the file that holds the password.
      password_ref: what a secret manager calls the password.
    """

    username: str = ""
    username_file: str = ""
    username_ref: str = ""
    password: Secret = _NO_SECRET
    password_file: str = ""
    password_ref: str = ""

    def validate(self) -> None:
        """Check that nothing is given twice.

        Raises:
          FieldError: the user is, or the password.
        """
        for name in "username", "password":
            message = f"at most one of basic_auth {name}, {name}_file & {name}_ref must be configured"
            _at_most_one(self, (name, f"{name}_file", f"{name}_ref"), message)

    def with_directory(self, directory: str) -> Self:
        """Return this with relative paths of files taken from ``directory``."""
        return replace(
            self,
            username_file=_joined(directory, self.username_file),
            password_file=_joined(directory, self.password_file),
        )

    def header(self) -> Secret:
        """Return the value of the header ``Authorization``, with what the files hold now. Blocks.

        Raises:
          SecretError: a file can't be read, or there is no secret manager to ask.
        """
        username = secret_of("username", Secret(self.username), self.username_file, self.username_ref)
        password = secret_of("password", self.password, self.password_file, self.password_ref)
        pair = f"{username.reveal()}:{password.reveal()}"
        return Secret(f"Basic {base64.b64encode(pair.encode()).decode()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """A section ``authorization``: the header of that name.

    Attributes:
      type: the first word of the header, without white space around it; ``Bearer`` if nothing else is said.
      credentials: the rest of the header.
      credentials_file: the file that holds it.
      credentials_ref: what a secret manager calls it. Neither Prometheus nor this package has one.
    """

    type: str = ""
    credentials: Secret = _NO_SECRET
    credentials_file: str = ""
    credentials_ref: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type.strip() or "Bearer")

    def validate(self) -> None:
        """Check the type, and that the credentials are not given twice.

        Raises:
          FieldError: the type is the one that has a section of its own, or there is more than one credential.
        """
        message = "at most one of authorization credentials & credentials_file must be configured"
        _at_most_one(self, ("credentials", "credentials_file", "credentials_ref"), message)
        if self.type.lower() == "basic":
            raise FieldError("type", 'authorization type cannot be set to "basic", use "basic_auth" instead')

    def with_directory(self, directory: str) -> Self:
        """Return this with a relative ``credentials_file`` taken from ``directory``."""
        return replace(self, credentials_file=_joined(directory, self.credentials_file))

    def header(self) -> Secret:
        """Return the value of the header ``Authorization``, with what the file holds now. Blocks.

        Raises:
          SecretError: the file can't be read, or holds what no header can, or there is no secret manager to ask.
        """
        credentials = secret_of("credentials", self.credentials, self.credentials_file, self.credentials_ref)
        value = Secret(f"{self.type} {credentials.reveal()}")
        return sendable("Authorization", value, _source("credentials", self.credentials_file))


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """The keys that say through which proxy to speak, for sections that have them among their own.

    Attributes:
      proxy_url: the proxy; a secret because a URL may hold a password. None if ``None`` or empty.
      no_proxy: hosts, addresses and networks, with commas between them, to speak to directly.
      proxy_from_environment: whether the environment's variables say all of that instead.
      proxy_connect_header: headers for the proxy's method CONNECT, with the values of each.
    """

    # Without slots, as is HTTPClientConfig: of several bases of a class, only one may have them.

    proxy_url: Secret | None = None
    no_proxy: str = ""
    proxy_from_environment: bool = False
    proxy_connect_header: Mapping[str, tuple[Secret, ...]] | None = None

    def validate(self) -> None:
        """Check the URL, and that the keys go together.

        Raises:
          FieldError: they do not.
        """
        if self.proxy_url:
            try:
                check_url(self.proxy_url.reveal())
            except ValueError as error:
                raise FieldError("proxy_url", str(error)) from None
        if self.proxy_connect_header and not self.proxy_from_environment and not self.proxy_url:
            message = (
                "if proxy_connect_header is configured, proxy_url or proxy_from_environment must also be configured"
            )
            raise FieldError("proxy_connect_header", message)
        if self.proxy_from_environment and self.proxy_url:
            message = "if proxy_from_environment is configured, proxy_url must not be configured"
            raise FieldError("proxy_url", message)
        if self.proxy_from_environment and self.no_proxy:
            raise FieldError("no_proxy", "if proxy_from_environment is configured, no_proxy must not be configured")
        if self.no_proxy and self.proxy_url is None:
            raise FieldError("no_proxy", "if no_proxy is configured, proxy_url must also be configured")


@dataclass(frozen=True, slots=True)
class Claims:
    """What ``claims`` adds to a JWT: any mapping, as JSON.

    A text can be hashed, and tells 1 from true, which mappings that are compared do not.

    Attributes:
      text: the JSON; use :meth:`of`, so that equal claims are equal texts.
    """

    text: str = "{}"

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Return the claims ``values``: what JSON can hold, with lists and dictionaries.

        Raises:
          ValueError: a number is infinite, or none.
        """
        return cls(json.dumps(values, allow_nan=False, sort_keys=True, separators=(",", ":")))

    def values(self) -> Mapping[str, object]:
        """Return the claims by their names."""
        values: dict[str, object] = json.loads(self.text)
        return values


@dataclass(frozen=True, kw_only=True)
class OAuth2(ProxyConfig):
    """A section ``oauth2``: where to get a token, and whom to be there.

    Attributes: those of :class:`ProxyConfig`, and
      client_id: the client; not empty.
      client_secret: its secret, for the grant type ``client_credentials``.
      client_secret_file: the file that holds the secret.
      client_secret_ref: what a secret manager calls it. Neither Prometheus nor this package has one.
      client_certificate_key_id: names the key that signs the JWT, for the grant type ``jwt-bearer`` (RFC 7523).
      client_certificate_key: that key, an RSA key as PEM.
      client_certificate_key_file: the file that holds the key.
      client_certificate_key_ref: what a secret manager calls it.
      grant_type: ``client_credentials`` unless it is ``urn:ietf:params:oauth:grant-type:jwt-bearer``.
      signature_algorithm: of the JWT: RS256, RS384 or RS512; RS256 if empty.
      iss: who issues the JWT; the client if empty.
      audience: whom the JWT is for; the token's URL if empty.
      claims: what else the JWT says.
      scopes: what to ask for.
      token_url: where to ask; not empty.
      endpoint_params: more parameters to ask with.
      tls_config: how to encrypt when asking.
    """

    client_id: str = ""
    client_secret: Secret = _NO_SECRET
    client_secret_file: str = ""
    client_secret_ref: str = ""
    client_certificate_key_id: str = ""
    client_certificate_key: Secret = _NO_SECRET
    client_certificate_key_file: str = ""
    client_certificate_key_ref: str = ""
    grant_type: str = ""
    signature_algorithm: str = ""
    iss: str = ""
    audience: str = ""
    claims: Claims | None = None
    scopes: tuple[str, ...] = ()
    token_url: str = field(default="", repr=False)  # which may hold a password
    endpoint_params: Mapping[str, Secret] | None = None
    tls_config: TLSConfig = _NO_TLS

    def validate(self) -> None:
        """Check that there is a client, where to ask, and one secret at the most.

        Raises:
          FieldError: one of them is missing, or given twice, or the keys of the proxy do not go together.
        """
        super().validate()
        if not self.client_id:
            raise FieldError("client_id", "oauth2 client_id must be configured")
        if not self.token_url:
            raise FieldError("token_url", "oauth2 token_url must be configured")
        jwt = self.grant_type == JWT_BEARER
        name = "client_certificate_key" if jwt else "client_secret"
        names = (name, f"{name}_file", f"{name}_ref")
        message = f"at most one of oauth2 {names[0]}, {names[1]} & {names[2]} must be configured using grant-type="
        _at_most_one(self, names, message + (JWT_BEARER if jwt else "client_credentials"))
        if jwt and self.signature_algorithm and self.signature_algorithm not in _SIGNATURE_ALGORITHMS:
            raise FieldError("signature_algorithm", "valid signature algorithms are RS256, RS384 and RS512")

    def with_directory(self, directory: str) -> Self:
        """Return this with relative paths of files taken from ``directory``."""
        return replace(
            self,
            client_secret_file=_joined(directory, self.client_secret_file),
            client_certificate_key_file=_joined(directory, self.client_certificate_key_file),
            tls_config=self.tls_config.with_directory(directory),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPHeader:
    """One item of ``http_headers``: the values of a header.

    Attributes:
      values: those that anybody may see.
      secrets: those that nobody may.
      files: files that hold one each, and that nobody may see either.
    """

    values: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    files: tuple[str, ...] = ()

    def with_directory(self, directory: str) -> Self:
        """Return this with relative paths of files taken from ``directory``."""
        return replace(self, files=tuple(_joined(directory, file) for file in self.files))

    @property
    def is_secret(self) -> bool:
        """Whether it has a value that nobody may see."""
        return bool(self.secrets or self.files)

    def read(self, name: str) -> Iterator[Secret]:
        """Yield the values of the header ``name``, those of files as the files are now. Blocks.

        Raises:
          SecretError: a file can't be read, or a value is what no header can be.
        """
        for value in self.values:
            yield sendable(name, Secret(value), "the field values")
        for secret in self.secrets:
            yield sendable(name, secret, "the field secrets")
        for file in self.files:
            yield sendable(name, Secret.read(file), quote(file))


@dataclass(frozen=True, kw_only=True)
class HTTPClientConfig(ProxyConfig):
    """The keys that say how to speak HTTP, for sections that have them among their own.

    Attributes: those of :class:`ProxyConfig`, and
      basic_auth: a user and a password.
      authorization: the header of that name.
      oauth2: where to get a token for that header.
      bearer_token: an older way to say what ``authorization`` does.
      bearer_token_file: an older way to say its ``credentials_file``.
      tls_config: how to encrypt, where a URL says that it should be.
      follow_redirects: whether to go where an answer points.
      enable_http2: whether HTTP/2 may be spoken.
      http_headers: more headers by their names.
    """

    basic_auth: BasicAuth | None = None
    authorization: Authorization | None = None
    oauth2: OAuth2 | None = None
    bearer_token: Secret = _NO_SECRET
    bearer_token_file: str = ""
    tls_config: TLSConfig = _NO_TLS
    follow_redirects: bool = field(default=True, metadata=_NULL_IS_EMPTY)
    enable_http2: bool = field(default=True, metadata=_NULL_IS_EMPTY)
    http_headers: Mapping[str, HTTPHeader | None] | None = None

    def validate(self) -> None:
        """Check that there is one way to say who to be, that the keys of the proxy go together, and the headers.

        Raises:
          FieldError: two ways are used, a header is reserved, or the proxy can't be used.
        """
        self._check_authentication()
        super().validate()
        for name in self.http_headers or ():
            if name.lower() in RESERVED_HEADERS:
                raise FieldError("http_headers", f"setting header {quote(name.title())} is not allowed")

    def _check_authentication(self) -> None:
        message = "at most one of bearer_token & bearer_token_file must be configured"
        _at_most_one(self, ("bearer_token", "bearer_token_file"), message)
        bearer = "bearer_token" if self.bearer_token else "bearer_token_file" if self.bearer_token_file else ""
        if bearer and (self.basic_auth or self.oauth2):
            message = "at most one of basic_auth, oauth2, bearer_token & bearer_token_file must be configured"
            raise FieldError(bearer, message)
        if bearer and self.authorization:
            raise FieldError(bearer, "authorization is not compatible with bearer_token & bearer_token_file")
        message = "at most one of basic_auth, oauth2 & authorization must be configured"
        _at_most_one(self, ("basic_auth", "authorization", "oauth2"), message)

    @property
    def authentication(self) -> tuple[str, ...]:
        """The keys that say who to be; an older ``bearer_token`` counts as the ``authorization`` that it stands for."""
        names = {"basic_auth": self.basic_auth, "authorization": self._bearer(), "oauth2": self.oauth2}
        return tuple(name for name, section in names.items() if section is not None)

    def _bearer(self) -> Authorization | None:
        """Return ``authorization``, or what the older keys say instead."""
        if self.bearer_token or self.bearer_token_file:
            return Authorization(credentials=self.bearer_token, credentials_file=self.bearer_token_file)
        return self.authorization

    def with_directory(self, directory: str) -> Self:
        """Return this configuration with relative paths of files taken from ``directory``."""
        return replace(
            self,
            basic_auth=self.basic_auth and self.basic_auth.with_directory(directory),
            authorization=self.authorization and self.authorization.with_directory(directory),
            oauth2=self.oauth2 and self.oauth2.with_directory(directory),
            bearer_token_file=_joined(directory, self.bearer_token_file),
            tls_config=self.tls_config.with_directory(directory),
            http_headers=self.http_headers and _headers_with_directory(self.http_headers, directory),
        )

    def client_config(self) -> HTTPClientConfig:
        """Return these keys alone, of a section that has more."""
        return HTTPClientConfig(**{key.name: getattr(self, key.name) for key in fields(HTTPClientConfig)})

    @property
    def reads_files(self) -> bool:
        """Whether who speaks as this says has to read files, and so may have to wait for a disk."""
        basic, bearer, oauth2 = self.basic_auth, self._bearer(), self.oauth2
        return any(
            (
                basic and (basic.username_file or basic.password_file),
                bearer and bearer.credentials_file,
                oauth2 and (oauth2.client_secret_file or oauth2.client_certificate_key_file),
                self.tls_config.files,
                *(header.files for header in (self.http_headers or {}).values() if header),
            )
        )

    def request_headers(self) -> tuple[tuple[str, Secret], ...]:
        """Return names and values of the headers to send, with what the files hold now: read anew at each call.

        These are ``Authorization``, unless OAuth 2 is to provide it, and those of ``http_headers``; a header with
        several values is there several times. What a file holds counts without the white space around it.

        Blocks: call it in a thread.

        Raises:
          SecretError: a file can't be read, is empty, or holds what no header can; or a secret has only a name, and
            there is no secret manager to ask. Names the file, and shows nothing of it.
        """
        authorization = self.basic_auth or self._bearer()
        headers = [("Authorization", authorization.header())] if authorization else []
        for name, header in (self.http_headers or {}).items():
            headers.extend((name, value) for value in (header.read(name) if header else ()))
        return tuple(headers)


def _at_most_one(section: object, names: tuple[str, ...], message: str) -> None:
    """Refuse the second of the fields ``names`` that has something in it."""
    given = [name for name in names if getattr(section, name)]
    if len(given) > 1:
        raise FieldError(given[1], message)


def _joined(directory: str, name: str) -> str:
    return os.path.join(directory, name) if name else name


def _headers_with_directory(
    headers: Mapping[str, HTTPHeader | None], directory: str
) -> Mapping[str, HTTPHeader | None]:
    resolved = {name: header and header.with_directory(directory) for name, header in headers.items()}
    return type(headers)(resolved)  # type: ignore[call-arg]  # as hashable as it was: a mapping made of a dictionary


def secret_of(name: str, given: Secret, file: str, ref: str) -> Secret:
    """Return what was ``given``, or what ``file`` holds now; without either, an empty secret. Blocks.

    Args:
      name: what the field is called that it may be given by.
      given: what stands in that field.
      file: what stands in the field ``<name>_file``.
      ref: what stands in the field ``<name>_ref``.

    Raises:
      SecretError: the file can't be read, or there is no secret manager to ask.
    """
    if ref:
        raise SecretError(f"can't use {name}_ref {quote(ref)}: there is no secret manager to ask")
    return Secret.read(file) if file else given


def _source(name: str, file: str) -> str:
    return quote(file) if file else f"the field {name}"


def sendable(name: str, value: Secret, source: str) -> Secret:
    """Return the value of a header as it is sent: no white space around it.

    Args:
      name: the name of the header.
      value: what to send.
      source: what to call the place that the value is from.

    Raises:
      SecretError: it has a control character, and would end the header; a client's own error might show it.
    """
    if _FORBIDDEN_IN_HEADERS.search(value.reveal()):
        message = f"found a control character in {source}, expected what the header {printable(name)} can hold"
        raise SecretError(message)
    return Secret(value.reveal().strip(" \t"))
