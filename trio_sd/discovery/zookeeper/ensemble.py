"""Which ZooKeeper servers to speak to, and how: the value that names one session."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Self

from ...errors import FieldError
from ...messages import printable, quote
from ...secrets import Secret
from ...tls import TLSConfig

__all__ = ["DEFAULT_PORT", "DigestAuth", "Ensemble", "normal_path", "parse_servers"]

DEFAULT_PORT: Final = 2181
"""Where a ZooKeeper server listens unless it is told otherwise."""

_NO_SECRET: Final = Secret()

_SERVER: Final = re.compile(r"(?:\[(?P<v6>[^][]*)\]|(?P<name>[^][:@\s\x00-\x1f]+))(?::(?P<port>[0-9]{1,5}))?")
_REFUSED_CHARACTER: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestAuth:
    """Who a session says that it is, by ZooKeeper's scheme ``digest``.

    Attributes:
      username: the user; not empty, and without the ``:`` that ends it on the wire.
      password: the password itself.
      password_file: the file that holds the password instead.
    """

    username: str = ""
    password: Secret = _NO_SECRET
    password_file: str = ""

    def validate(self) -> None:
        """Check that there is one user and one password.

        Raises:
          FieldError: the user name can't be used, or there is no password, or there are two.
        """
        if not self.username:
            raise FieldError("username", "digest_auth needs a username, and found none")
        if ":" in self.username:  # what follows is likely to be the password: not shown
            raise FieldError("username", 'found a ":" in the username, expected none: the password has its own field')
        if bool(self.password) == bool(self.password_file):
            found = "both" if self.password else "none"
            message = f"exactly one of digest_auth password & password_file must be configured, found {found}"
            raise FieldError("password_file" if self.password else None, message)

    def with_directory(self, directory: str) -> Self:
        """Return this with a relative ``password_file`` taken from ``directory``."""
        if not self.password_file:
            return self
        return replace(self, password_file=os.path.join(directory, self.password_file))

    def credential(self) -> Secret:
        """Return ``username:password``, as ZooKeeper wants to be told, with the password that the file holds now.

        Blocks where there is a ``password_file``.

        Raises:
          SecretError: the file can't be read.
        """
        password = Secret.read(self.password_file) if self.password_file else self.password
        return Secret(f"{self.username}:{password.reveal()}")


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Servers that hold the same tree, and how to speak to them. Equal ensembles can share one session.

    Neither ``str`` nor ``repr`` shows a secret.

    Attributes:
      servers: host and port of each, sorted and unique, as of :func:`parse_servers`.
      timeout: seconds after which a silent server is given up, and the session with it.
      digest_auth: who to be; nobody in particular if ``None``.
      tls_config: how to encrypt; not at all if ``None``.
    """

    servers: tuple[tuple[str, int], ...]
    timeout: float
    digest_auth: DigestAuth | None = None
    tls_config: TLSConfig | None = None

    def __str__(self) -> str:
        name = f"zookeeper {','.join(_address(host, port) for host, port in self.servers)}"
        if self.digest_auth is not None:
            name += f" as {printable(self.digest_auth.username)}"
        return name if self.tls_config is None else f"{name} over TLS"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_servers(servers: Sequence[str]) -> tuple[tuple[tuple[str, int], ...], str]:
    """Return the hosts and ports that ``servers`` name, sorted and unique, and the chroot: ``""`` if there is none.

    An item is ``host``, ``host:port``, ``[IPv6 address]:port``, or a whole connection string such as
    ``zk1:2181,zk2:2181/chroot``. The port is 2181 unless given. A chroot is a path that all others are taken from. It
    may stand after the last server only, as in ZooKeeper's own connection strings, or alike after each one; that goes
    for the servers in one item, and for the items. A chroot of ``/`` is none.

    Raises:
      FieldError: an item is no such text, or its chroot contradicts that of others.
    """
    hosts: set[tuple[str, int]] = set()
    chroots = []
    for index, item in enumerate(servers):
        try:
            found, chroot = _connection_string(item)
        except ValueError as error:
            message = f"{quote(item)} is not valid: {error}"
            if "@" in item:  # what is before it is likely to be a password: not shown
                message = 'found a "@", expected host:port; who to be is said by digest_auth'
            raise FieldError(("servers", index), message) from None
        hosts.update(found)
        chroots.append(chroot)
    odd = _odd_chroot(chroots)
    if odd is not None:
        message = f"{quote(servers[odd])} is not valid: {_contradiction(chroots[odd], chroots[-1])}"
        raise FieldError(("servers", odd), message)
    return tuple(sorted(hosts)), chroots[-1] if chroots else ""


def _connection_string(item: str) -> tuple[list[tuple[str, int]], str]:
    hosts, chroots = [], []
    for part in item.split(","):
        server, slash, path = part.strip().partition("/")
        hosts.append(_host_and_port(server))
        chroots.append(normal_path(slash + path).rstrip("/") if slash else "")
    odd = _odd_chroot(chroots)
    if odd is not None:
        raise ValueError(_contradiction(chroots[odd], chroots[-1]))
    return hosts, chroots[-1]


def _host_and_port(server: str) -> tuple[str, int]:
    match = _SERVER.fullmatch(server)
    if match is not None and 0 < (port := int(match["port"] or DEFAULT_PORT)) < 2**16:
        with suppress(ipaddress.AddressValueError):
            return (match["name"] or str(ipaddress.IPv6Address(match["v6"]))).lower(), port
    expected = "host, host:port or [IPv6 address]:port, with a port from 1 to 65535"
    raise ValueError(f"found {quote(server)}, expected {expected}")


def _odd_chroot(chroots: Sequence[str]) -> int | None:
    """Return the place of the one that contradicts the last, or ``None`` if all agree or only the last is there."""
    if not chroots or set(chroots[:-1]) in ({""}, {chroots[-1]}, set()):
        return None
    others = [index for index, chroot in enumerate(chroots) if chroot not in ("", chroots[-1])]
    return others[0] if others else chroots.index("")


def _contradiction(chroot: str, last: str) -> str:
    found = f"{_chroot(chroot)} here, and {_chroot(last)} after the last server"
    return f"found {found}; expected one after the last server only, or the same after each"


def _chroot(chroot: str) -> str:
    return f"the chroot {quote(chroot)}" if chroot else "no chroot"


def normal_path(path: str) -> str:
    """Return ``path`` without slashes at its end; ``/`` stays what it is.

    What a path may be is ZooKeeper's rule (``PathUtils.validatePath``): a server takes no node of another name.

    Raises:
      ValueError: ``path`` doesn't begin with ``/``, has an element that is empty, ``.`` or ``..``, or a character
        that ZooKeeper refuses.
    """
    if not path.startswith("/"):
        raise ValueError(f"found the path {quote(path)}, expected one that begins with '/'")
    path = path.rstrip("/")
    for element in path.split("/")[1:]:
        if element in ("", ".", ".."):
            raise ValueError(f"found {quote(element)} in the path {quote(path)}, expected a name between slashes")
    refused = _REFUSED_CHARACTER.search(path)
    if refused is not None:
        code = f"U+{ord(refused[0]):04X}"
        raise ValueError(f"found the character {code} in the path {quote(path)}, which ZooKeeper refuses")
    return path or "/"
