"""The web configuration file, in the shape that Prometheus and its exporters share: encryption, users, headers."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from ..config import IGNORED, Ignored, decode, parse_yaml
from ..errors import ConfigError, FieldError
from ..limits import Limits
from ..messages import quote
from ..secrets import Secret

__all__ = ["HTTPServerConfig", "TLSServerConfig", "WebConfig", "load_web_config", "parse_web_config"]

# The last character of the salt has two bits only.
_BCRYPT: Final = re.compile(r"\$2[aby]\$(?P<cost>[0-3][0-9])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_SHA256: Final = re.compile("[0-9a-fA-F]{64}")
_COST: Final = range(4, 19)  # 18 takes about 15 seconds
_LIMITS: Final = Limits(file_bytes=1024 * 1024)

_Version: TypeAlias = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
_ClientAuth: TypeAlias = Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"]

_VERSIONS: Final = MappingProxyType(
    {
        "TLS10": ssl.TLSVersion.TLSv1,
        "TLS11": ssl.TLSVersion.TLSv1_1,
        "TLS12": ssl.TLSVersion.TLSv1_2,
        "TLS13": ssl.TLSVersion.TLSv1_3,
    }
)
_VERIFY: Final = MappingProxyType(
    {
        "NoClientCert": ssl.CERT_NONE,
        "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
        "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
    }
)
_HEADERS: Final = frozenset(
    {
        "Content-Security-Policy",
        "Strict-Transport-Security",
        "X-Content-Type-Options",
        "X-Frame-Options",
        "X-XSS-Protection",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSServerConfig:
    """The section ``tls_server_config``.

    Attributes:
      cert_file: the server's certificate, with those that link it to its authority, as PEM.
      key_file: its private key, as PEM, without a passphrase.
      client_auth_type: whether clients must show a certificate. What asks for one and does not check it is not there.
      client_ca_file: who signs the certificates of clients.
      min_version: the oldest version to speak.
      max_version: the newest version to speak; the newest there is if ``None``.
      prefer_server_cipher_suites: has no effect, there either.
    """

    cert_file: str = ""
    key_file: str = ""
    client_auth_type: _ClientAuth = "NoClientCert"
    client_ca_file: str = ""
    min_version: _Version = "TLS12"
    max_version: _Version | None = None
    prefer_server_cipher_suites: Ignored = IGNORED

    def validate(self) -> None:
        """Check that the fields go together. Reads no files.

        Raises:
          FieldError: a file is missing, or is of no use, or no version is both new and old enough.
        """
        named = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.client_ca_file}
        for name, path in named.items():
            if "\0" in path:
                raise FieldError(name, f"found {quote(path)}, which can't be the name of a file")
        if not self.cert_file:
            raise FieldError(None, "field cert_file is missing")
        if not self.key_file:
            raise FieldError(None, "field key_file is missing")
        if self.client_auth_type != "NoClientCert" and not self.client_ca_file:
            raise FieldError("client_auth_type", f"{self.client_auth_type} needs a client_ca_file")
        if self.client_ca_file and self.client_auth_type == "NoClientCert":
            raise FieldError("client_ca_file", "a client_ca_file needs a client_auth_type that verifies by it")
        if self.max_version is not None and self.max_version < self.min_version:
            raise FieldError("max_version", f"found {self.max_version}, which is older than {self.min_version}")

    def files(self) -> tuple[str, ...]:
        """Return the files that are named."""
        return tuple([file for file in (self.cert_file, self.key_file, self.client_ca_file) if file])

    def context(self) -> ssl.SSLContext:
        """Return a context for connections from clients, made of what the files hold now.

        Blocks: call it in a thread.

        Raises:
          ConfigError: a file can't be read, or what it holds can't be used. Names the files, shows nothing of them.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self.min_version]
        if self.max_version is not None:
            context.maximum_version = _VERSIONS[self.max_version]
        context.verify_mode = _VERIFY[self.client_auth_type]
        try:
            context.load_cert_chain(self.cert_file, self.key_file, password="")  # or OpenSSL asks on the terminal
        except OSError as error:  # which an SSLError is as well
            names = f"the certificate {quote(self.cert_file)} with the key {quote(self.key_file)}"
            raise ConfigError(f"can't use {names}: {_reason(error)}") from None
        if self.client_ca_file:
            try:
                context.load_verify_locations(self.client_ca_file)
            except OSError as error:
                raise ConfigError(f"can't use client_ca_file {quote(self.client_ca_file)}: {_reason(error)}") from None
        return context


def _reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return "expected PEM, and of a key one without a passphrase"


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPServerConfig:
    """The section ``http_server_config``.

    Attributes:
      http2: has no effect: HTTP/1.1 is all that is spoken.
      headers: what every answer carries; the same few names as there.
    """

    http2: Ignored = IGNORED
    headers: Mapping[str, str] = field(default_factory=dict)

    def validate(self) -> None:
        """Check the names and values of the headers.

        Raises:
          FieldError: a name is not one of those, or a value can't be sent.
        """
        for name, value in self.headers.items():
            if name not in _HEADERS:
                raise FieldError("headers", f"found {quote(name)}, expected one of: {', '.join(sorted(_HEADERS))}")
            if not (value.isascii() and value.isprintable()):
                raise FieldError("headers", f"the value of {name} can't be sent")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """A web configuration file.

    Attributes:
      tls_server_config: how connections are encrypted; they are not if ``None``.
      http_server_config: what answers carry.
      basic_auth_users: bcrypt hashes of passwords, by user; everybody may ask if there are none, and no tokens.
      bearer_tokens: SHA-256 sums of tokens, in hexadecimal, by a name for each. Prometheus' own file does not have it.
    """

    tls_server_config: TLSServerConfig | None = None
    http_server_config: HTTPServerConfig = field(default_factory=HTTPServerConfig)
    basic_auth_users: Mapping[str, Secret] = field(default_factory=dict)
    bearer_tokens: Mapping[str, Secret] = field(default_factory=dict)

    def validate(self) -> None:
        """Check the users and the tokens.

        Raises:
          FieldError: a name has a colon, or something is no bcrypt hash that can be checked in seconds, or no SHA-256
            sum.
        """
        for section, names in ("bearer_tokens", self.bearer_tokens), ("basic_auth_users", self.basic_auth_users):
            if not all(secret for secret in names.values()):
                # `{me:hunter2}`, without a space after the colon, is one long name.
                raise FieldError(section, "found a name with nothing after it, not shown because it may hold a secret")
        for name, token in self.bearer_tokens.items():
            if not _SHA256.fullmatch(token.reveal()):
                raise FieldError("bearer_tokens", f"what {quote(name)} has is no SHA-256 sum in hexadecimal")
        for user, hashed in self.basic_auth_users.items():
            if not user or ":" in user:
                raise FieldError(
                    "basic_auth_users", "found no name, or one with a colon, expected a name without a colon"
                )
            match = _BCRYPT.fullmatch(hashed.reveal())
            if match is None:
                raise FieldError("basic_auth_users", f"what user {quote(user)} has is no bcrypt hash")
            if int(match["cost"]) not in _COST:
                raise FieldError("basic_auth_users", f"the hash of user {quote(user)} has a cost not from 4 to 18")

    def users(self) -> dict[str, bytes]:
        """Return the hashes, to check passwords by and for nothing else."""
        return {user: hashed.reveal().encode() for user, hashed in self.basic_auth_users.items()}

    def tokens(self) -> tuple[bytes, ...]:
        """Return the sums of the tokens."""
        return tuple([bytes.fromhex(token.reveal()) for token in self.bearer_tokens.values()])


def load_web_config(path: str | os.PathLike[str]) -> WebConfig:
    """Read a web configuration file. Relative paths in it are taken from its directory.

    Blocks: call it in a thread.

    Raises:
      ConfigError: it can't be read, or what it says can't be used; with the place.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as opened:
            text = opened.read(_LIMITS.file_bytes + 1)
    except OSError as error:
        raise ConfigError(f"can't read {quote(file)}: {error.strerror}") from None
    except ValueError as error:  # a path with a NUL in it
        raise ConfigError(f"can't read {quote(file)}: {error}") from None
    return parse_web_config(text, file=file)


def parse_web_config(text: bytes, *, file: str) -> WebConfig:
    """Do as :func:`load_web_config` does, with the file's content as ``text``. Reads no files.

    Args:
      text: what the file contains.
      file: its path: for positions, and to find what relative paths mean.

    Raises:
      ConfigError: what it says can't be used.
    """
    node = parse_yaml(text, file=file, limits=_LIMITS)
    config = WebConfig() if node is None else decode(node, WebConfig)
    tls = config.tls_server_config
    if tls is None:
        return config
    directory = os.path.dirname(os.path.abspath(file))
    ca_file = os.path.join(directory, tls.client_ca_file) if tls.client_ca_file else ""
    cert_file, key_file = os.path.join(directory, tls.cert_file), os.path.join(directory, tls.key_file)
    tls = replace(tls, cert_file=cert_file, key_file=key_file, client_ca_file=ca_file)
    return replace(config, tls_server_config=tls)
