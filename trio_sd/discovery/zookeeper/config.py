"""What the configuration says about discovery from ZooKeeper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from ...discoverer import DiscovererConfig, DiscovererOptions
from ...durations import Duration
from ...errors import FieldError
from ...messages import printable
from ...tls import TLSConfig
from .discoverer import ZooKeeperDiscoverer
from .ensemble import DigestAuth, Ensemble, normal_path, parse_servers
from .members import Parse, parse_nerve_member, parse_serverset_member

__all__ = ["NerveSDConfig", "ServersetSDConfig"]

_TIMEOUT: Final = Duration.of("10s")
_LONGEST_TIMEOUT: Final = 24 * 60 * 60  # a server grants a minute at the most, unless it is told otherwise
_REFRESH_INTERVAL: Final = Duration.of("5m")


@dataclass(frozen=True, slots=True)
class _ZooKeeperSDConfig(DiscovererConfig):
    """What both mechanisms say; they differ in how a member is written."""

    servers: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    timeout: Duration = _TIMEOUT
    refresh_interval: Duration = _REFRESH_INTERVAL
    digest_auth: DigestAuth | None = None
    tls_config: TLSConfig | None = None

    def validate(self) -> None:
        """Check the servers, the paths and the times.

        Raises:
          FieldError: there is no server or no path, or one that can't be used, or a time is zero.
        """
        if not self.servers:
            raise FieldError("servers", f"{self.mechanism} SD config must contain at least one Zookeeper server")
        parse_servers(self.servers)
        if not self.paths:
            raise FieldError("paths", f"{self.mechanism} SD config must contain at least one path")
        for index, path in enumerate(self.paths):
            if not path.startswith("/"):
                message = f"{self.mechanism} SD config paths must begin with '/': {printable(path)}"
                raise FieldError(("paths", index), message)
            try:
                normal_path(path)
            except ValueError as error:  # it would hold nothing, ever
                raise FieldError(("paths", index), str(error)) from None
        if not self.timeout.seconds > 0:
            raise FieldError("timeout", "the timeout must be greater than zero")
        if self.timeout.seconds > _LONGEST_TIMEOUT:
            raise FieldError("timeout", f"the timeout must be {_LONGEST_TIMEOUT} s at the most")
        if not self.refresh_interval.seconds > 0:
            raise FieldError("refresh_interval", "the refresh interval must be greater than zero")

    def with_directory(self, directory: str) -> Self:
        """Return this configuration with relative paths of files taken from ``directory``."""
        return replace(
            self,
            digest_auth=self.digest_auth and self.digest_auth.with_directory(directory),
            tls_config=self.tls_config and self.tls_config.with_directory(directory),
        )

    def roots(self) -> tuple[str, ...]:
        """Return the paths to watch: without slashes at the end, and without those that lie at or below another."""
        paths = dict.fromkeys(normal_path(path) for path in self.paths)
        return tuple(path for path in paths if not _lies_below_one(path, paths))

    def _discoverer(self, parse: Parse, options: DiscovererOptions) -> ZooKeeperDiscoverer:
        servers, chroot = parse_servers(self.servers)
        ensemble = Ensemble(servers, self.timeout.seconds, self.digest_auth, self.tls_config)
        return ZooKeeperDiscoverer(
            ensemble,
            self.roots(),
            chroot=chroot,
            parse=parse,
            refresh_interval=self.refresh_interval.seconds,
            options=options,
        )


def _lies_below_one(path: str, others: Iterable[str]) -> bool:
    return any(path != other and path.startswith(f"{other.rstrip('/')}/") for other in others)


@dataclass(frozen=True, slots=True)
class ServersetSDConfig(_ZooKeeperSDConfig):
    """One item of ``serverset_sd_configs``: members as Twitter's serversets write them.

    Attributes:
      servers: hosts with or without a port, or connection strings; see :func:`~.ensemble.parse_servers`.
      paths: members are the nodes at and below these.
      timeout: after how long a silent server is given up.
      refresh_interval: how often everything is read again, whatever the watches say.
      digest_auth: who to be to the servers; nobody in particular if ``None``.
      tls_config: how to encrypt; not at all if ``None``.
    """

    mechanism: ClassVar[str] = "serverset"

    def discoverer(self, options: DiscovererOptions) -> ZooKeeperDiscoverer:
        """Return a new discoverer of the members at these paths. Opens nothing."""
        return self._discoverer(parse_serverset_member, options)


@dataclass(frozen=True, slots=True)
class NerveSDConfig(_ZooKeeperSDConfig):
    """One item of ``nerve_sd_configs``: members as Airbnb's Nerve writes them.

    Attributes: those of :class:`ServersetSDConfig`.
    """

    mechanism: ClassVar[str] = "nerve"

    def discoverer(self, options: DiscovererOptions) -> ZooKeeperDiscoverer:
        """Return a new discoverer of the members at these paths. Opens nothing."""
        return self._discoverer(parse_nerve_member, options)
