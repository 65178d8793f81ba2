"""What the configuration says about discovery from Consul."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, Final
from urllib.parse import urlsplit

from ...discoverer import DiscovererConfig, DiscovererOptions
from ...durations import Duration
from ...errors import FieldError
from ...http_config import BasicAuth, HTTPClientConfig, check_url
from ...messages import printable, quote
from ...polling import PollingDiscoverer
from ...secrets import Secret
from ...targets import Labels
from .discoverer import ConsulDiscovery
from .query import Place

__all__ = ["ConsulSDConfig"]

_REFRESH_INTERVAL: Final = Duration.of("30s")
_NO_SECRET: Final = Secret()
_NO_LABELS: Final = Labels({})
_NULL_IS_EMPTY: Final = MappingProxyType({"null": "empty"})  # as in Go: `allow_stale:` without a value is false


@dataclass(frozen=True, kw_only=True)
class ConsulSDConfig(HTTPClientConfig, DiscovererConfig):
    """One item of ``consul_sd_configs``.

    Attributes: those of :class:`~trio_sd.http_config.HTTPClientConfig`, and
      server: host and port; or a URL, whose path stands before the paths of the API.
      path_prefix: what else stands before them.
      token: the token of Consul's access control.
      datacenter: which one to ask of; the server's own if empty.
      namespace: of Consul Enterprise.
      partition: of Consul Enterprise.
      tag_separator: what stands between tags in a label.
      scheme: http or https.
      username: an older way to say that of ``basic_auth``.
      password: likewise.
      allow_stale: whether any server may answer, rather than the leader; its answer may be a little out of date.
      refresh_interval: the least time between two queries for the same; news in between wait.
      services: names of services; all if empty.
      tags: which an instance must have, all of them.
      node_meta: which its node must have.
      filter: which services of the catalog to ask for.
      health_filter: which instances.
    """

    mechanism: ClassVar[str] = "consul"

    server: str = field(default="localhost:8500", metadata=_NULL_IS_EMPTY)
    path_prefix: str = ""
    token: Secret = _NO_SECRET
    datacenter: str = ""
    namespace: str = ""
    partition: str = ""
    tag_separator: str = field(default=",", metadata=_NULL_IS_EMPTY)
    scheme: str = field(default="http", metadata=_NULL_IS_EMPTY)
    username: str = ""
    password: Secret = _NO_SECRET
    allow_stale: bool = field(default=True, metadata=_NULL_IS_EMPTY)
    refresh_interval: Duration = _REFRESH_INTERVAL
    services: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    node_meta: Mapping[str, str] = _NO_LABELS
    filter: str = ""
    health_filter: str = ""

    def validate(self) -> None:
        """Check the server, the interval, and who to be.

        Raises:
          FieldError: there is no server, the interval is zero, or there are two ways to say who to be.
        """
        if not self.server.strip():
            raise FieldError("server", "consul SD configuration requires a server address")
        if (self.username or self.password) and self.basic_auth is not None:
            message = "at most one of consul SD configuration username and password and basic auth can be configured"
            raise FieldError("username", message)
        if self.token and (self.authorization is not None or self.oauth2 is not None):
            raise FieldError("token", "at most one of consul SD token, authorization, or oauth2 can be configured")
        if not self.refresh_interval.seconds > 0:
            raise FieldError("refresh_interval", "the refresh interval must be greater than zero")
        self._base()
        self.client_config().validate()

    def client_config(self) -> HTTPClientConfig:
        """Return how to speak HTTP."""
        config = super().client_config()
        if self.username or self.password:
            config = replace(config, basic_auth=BasicAuth(username=self.username, password=self.password))
        return config

    def _base(self) -> str:
        """Return the URL before which nothing of the API stands, as Consul's own client puts it together.

        Raises:
          FieldError: the keys make none.
        """
        scheme, prefix = self.scheme or "http", self.path_prefix
        protocol, found, address = self.server.strip().partition("://")
        if not found:
            address = protocol
        elif protocol not in ("http", "https"):
            message = f"found {printable(protocol)}, expected http or https before the address of the server"
            raise FieldError("server", message)
        else:
            scheme = "https" if protocol == "https" else scheme
            address, slash, path = address.partition("/")
            prefix = f"/{path}" if slash else prefix
        if scheme not in ("http", "https"):
            raise FieldError("scheme", f"found {printable(scheme)}, expected http or https")
        prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        base = f"{scheme}://{address}{prefix}"
        try:
            check_url(base)
            url = urlsplit(base)
            if not url.hostname or url.query or url.fragment:
                raise ValueError("expected a host, and a port and a path at the most")
        except ValueError as error:
            shown = "what is found here" if "@" in self.server else quote(self.server)  # a password may stand before it
            raise FieldError("server", f"{shown} is no address of a server: {error}") from None
        return base

    def __repr__(self) -> str:
        server = re.sub("[^/@]*@", "xxxxx@", self.server)  # a password may stand there
        return f"{type(self).__name__}(server={server!r}, services={self.services}, tags={self.tags})"

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        """Return a new discoverer of these services. Opens nothing."""
        place = Place(self._base(), self.datacenter, self.namespace, self.partition)
        return PollingDiscoverer(options, ConsulDiscovery(self, place).poll)
