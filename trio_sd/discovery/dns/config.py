"""What the configuration says about discovery from DNS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias, get_args

from ...discoverer import DiscovererConfig, DiscovererOptions
from ...durations import Duration
from ...errors import FieldError
from ...messages import printable
from ...polling import PollingDiscoverer
from .discoverer import DNSDiscovery

__all__ = ["DNSSDConfig", "RecordType"]

RecordType: TypeAlias = Literal["A", "AAAA", "SRV", "MX", "NS"]

_REFRESH_INTERVAL: Final = Duration.of("30s")
_TYPES: Final[tuple[RecordType, ...]] = get_args(RecordType)


@dataclass(frozen=True, slots=True, kw_only=True)
class DNSSDConfig(DiscovererConfig):
    """One item of ``dns_sd_configs``.

    Attributes:
      names: what to look up.
      type: of the records: A, AAAA, SRV, MX or NS, in any case.
      port: of the targets; SRV records have their own.
      refresh_interval: how often each name is looked up.
    """

    mechanism: ClassVar[str] = "dns"

    names: tuple[str, ...] = ()
    type: str = "SRV"
    port: int = 0
    refresh_interval: Duration = _REFRESH_INTERVAL

    def validate(self) -> None:
        """Check the names, the type, the port and the interval.

        Raises:
          FieldError: there is no name, no such type, no port where one is needed, or the interval is zero.
        """
        if not self.names:
            raise FieldError("names", "DNS-SD config must contain at least one SRV record name")
        if self.type.upper() not in _TYPES:
            message = f"invalid DNS-SD records type {printable(self.type)}, expected one of: {', '.join(_TYPES)}"
            raise FieldError("type", message)
        if self.type.upper() != "SRV" and not self.port:
            raise FieldError("port", "a port is required in DNS-SD configs for all record types except SRV")
        if not 0 <= self.port <= 65535:
            raise FieldError("port", f"found {self.port}, expected a port from 1 to 65535")
        if not self.refresh_interval.seconds > 0:
            raise FieldError("refresh_interval", "the refresh interval must be greater than zero")

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        """Return a new discoverer of these names. Opens nothing."""
        record_type = next(name for name in _TYPES if name == self.type.upper())
        discovery = DNSDiscovery(self.names, record_type, self.port, self.refresh_interval.seconds)
        return PollingDiscoverer(options, discovery.poll)
