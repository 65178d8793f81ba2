"""Encryption as a ``tls_config`` section says it, for every mechanism that has one."""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, Self, TypeAlias

from .errors import FieldError, TrioSDError
from .messages import quote
from .secrets import Secret

__all__ = ["TLSConfig", "TLSError"]

_Version: TypeAlias = Literal["TLS10", "TLS11", "TLS12", "TLS13"]

_NO_SECRET: Final = Secret()
_VERSIONS: Final = MappingProxyType(
    {
        "TLS10": ssl.TLSVersion.TLSv1,
        "TLS11": ssl.TLSVersion.TLSv1_1,
        "TLS12": ssl.TLSVersion.TLSv1_2,
        "TLS13": ssl.TLSVersion.TLSv1_3,
    }
)


class TLSError(TrioSDError, ValueError):
    """A certificate or a key can't be read, or can't be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """A section ``tls_config``, with the keys that Prometheus has.

    Attributes:
      ca: certificates to trust instead of the system's, as PEM.
      ca_file: a file of them.
      ca_ref: what a secret manager calls them. Neither Prometheus nor this package has one.
      cert: the certificate to show to servers, with those that link it to its authority, as PEM.
      cert_file: a file of it.
      cert_ref: what a secret manager calls it.
      key: the private key of that certificate, as PEM, without a passphrase.
      key_file: a file of it.
      key_ref: what a secret manager calls it.
      server_name: the name that the server's certificate must have; that of the host if empty.
      insecure_skip_verify: whether any certificate of a server will do.
      min_version: the oldest version to speak; TLS 1.2 if ``None``. The system's OpenSSL may still refuse older ones.
      max_version: the newest version to speak; the newest there is if ``None``.
    """

    ca: str = ""
    ca_file: str = ""
    ca_ref: str = ""
    cert: str = ""
    cert_file: str = ""
    cert_ref: str = ""
    key: Secret = _NO_SECRET
    key_file: str = ""
    key_ref: str = ""
    server_name: str = ""
    insecure_skip_verify: bool = False
    min_version: _Version | None = None
    max_version: _Version | None = None

    def validate(self) -> None:
        """Check that the fields go together. Reads no files.

        Raises:
          FieldError: something is given twice, a certificate has no key or a key no certificate, or no version is
            both new and old enough.
        """
        for name in "ca", "cert", "key":
            given = [field for field in (name, f"{name}_file", f"{name}_ref") if getattr(self, field)]
            if len(given) > 1:
                raise FieldError(given[1], f"at most one of {name}, {name}_file & {name}_ref must be configured")
        has_cert = bool(self.cert or self.cert_file or self.cert_ref)
        has_key = bool(self.key or self.key_file or self.key_ref)
        if has_cert and not has_key:
            message = "exactly one of key or key_file must be configured when a client certificate is configured"
            raise FieldError(None, message)
        if has_key and not has_cert:
            message = "exactly one of cert or cert_file must be configured when a client key is configured"
            raise FieldError(None, message)
        if self.min_version and self.max_version and self.max_version < self.min_version:
            message = (
                "max_version must be greater than or equal to min_version if both are specified, "
                f"found {self.max_version} and {self.min_version}"
            )
            raise FieldError("max_version", message)

    def with_directory(self, directory: str) -> Self:
        """Return this configuration with relative paths of files taken from ``directory``."""
        return replace(
            self,
            ca_file=_joined(directory, self.ca_file),
            cert_file=_joined(directory, self.cert_file),
            key_file=_joined(directory, self.key_file),
        )

    @property
    def files(self) -> tuple[str, ...]:
        """The files that :meth:`context` reads."""
        return tuple(file for file in (self.ca_file, self.cert_file, self.key_file) if file)

    def context(self) -> ssl.SSLContext:
        """Return a new context for connections to servers, made of what the files hold now.

        Blocks: call it in a thread. Names are checked unless ``insecure_skip_verify``; pass ``server_name``, or the
        host's, as ``server_hostname`` where a connection is wrapped.

        Raises:
          TLSError: a file can't be read, or what it holds can't be used; or there is only a name, and no secret
            manager to ask. Names the file, and shows nothing of it.
        """
        for name in "ca_ref", "cert_ref", "key_ref":
            if ref := getattr(self, name):
                raise TLSError(f"can't use {name} {quote(ref)}: there is no secret manager to ask")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = _VERSIONS[self.min_version or "TLS12"]
        if self.max_version:
            context.maximum_version = _VERSIONS[self.max_version]
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._load_authorities(context)
        self._load_certificate(context)
        return context

    def _load_authorities(self, context: ssl.SSLContext) -> None:
        if not self.ca and not self.ca_file:
            context.load_default_certs()
            return
        pem = _read("CA certificate", self.ca_file) if self.ca_file else self.ca.encode()
        try:
            # What is no ASCII is a comment between certificates, and ssl refuses it.
            context.load_verify_locations(cadata=pem.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            name = _name(self.ca_file, "ca")
            raise TLSError(f"can't use the CA certificate {name}: expected one certificate or more as PEM") from None

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        if not self.cert and not self.cert_file:
            return
        cert = _read("client certificate", self.cert_file) if self.cert_file else self.cert.encode()
        key = _read("client key", self.key_file) if self.key_file else self.key.reveal().encode()
        try:
            with _as_file(cert) as cert_path, _as_file(key) as key_path:
                context.load_cert_chain(cert_path, key_path, password="")  # or OpenSSL asks for one on the terminal
        except OSError as error:  # which an SSLError is as well
            names = f"the client certificate {_name(self.cert_file, 'cert')} with the key {_name(self.key_file, 'key')}"
            raise TLSError(f"can't use {names}: {_reason(error)}") from None


def _joined(directory: str, name: str) -> str:
    return os.path.join(directory, name) if name else name


def _name(file: str, field: str) -> str:
    return quote(file) if file else f"of the field {field}"


def _read(what: str, file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise TLSError(f"can't read the {what} {quote(file)}: {error.strerror}") from None
    except ValueError as error:  # a path with a NUL in it
        raise TLSError(f"can't read the {what} {quote(file)}: {error}") from None


def _reason(error: OSError) -> str:
    """Return why a certificate and its key can't be used; OpenSSL says ``PEM lib`` of most mistakes."""
    if not isinstance(error, ssl.SSLError):
        return str(error.strerror)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return "expected a certificate as PEM, and a private key as PEM without a passphrase"


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give ``content`` a path for as long as the context lasts: ssl takes certificates and keys from files only.

    Where the system can, the file is memory that no directory lists, so that a key never gets to a disk.
    """
    if sys.platform == "linux":
        with open(os.memfd_create("tls"), "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # of this user alone
            file.write(content)
            file.flush()
            yield file.name
