"""From the records of an answer to targets. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from dns.rdata import Rdata
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.NS import NS
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from ...targets import ADDRESS_LABEL, META_LABEL_PREFIX, TargetGroup, join_host_port

__all__ = ["target_group"]

_PREFIX: Final = META_LABEL_PREFIX + "dns_"


def target_group(name: str, port: int, records: Iterable[Rdata]) -> TargetGroup:
    """Return the targets that a name has, in the order of their addresses: servers may give them in another each time.

    Args:
      name: as the configuration has it; it becomes the source.
      port: of the targets, but those of SRV records.
      records: of the types that there are targets for.
    """
    targets = [target for record in records if (target := _target(name, port, record)) is not None]
    return TargetGroup(name, sorted(targets, key=lambda labels: tuple(labels.values())))


def _target(name: str, port: int, record: Rdata) -> Mapping[str, str] | None:
    """Return the labels of one target, or ``None`` where the record says that there is none (RFC 2782, RFC 7505)."""
    host = srv_target = srv_port = mx_target = ns_target = ""
    match record:
        case SRV():
            host = srv_target = record.target.to_text()
            port = record.port
            srv_port = str(port)
        case MX():
            host = mx_target = record.exchange.to_text()
        case NS():
            host = ns_target = record.target.to_text()
        case A() | AAAA():
            host = _address(record.address)
    host = host.rstrip(".")
    if not host:
        return None
    return {
        ADDRESS_LABEL: join_host_port(host, str(port)),
        f"{_PREFIX}name": name,
        # Prometheus sets all of these, whatever the type is.
        f"{_PREFIX}srv_record_target": srv_target,
        f"{_PREFIX}srv_record_port": srv_port,
        f"{_PREFIX}mx_record_target": mx_target,
        f"{_PREFIX}ns_record_target": ns_target,
    }


def _address(text: str) -> str:
    """Return an address as Go writes it: one of IPv4 in a record of IPv6 as what it is."""
    address = ipaddress.ip_address(text)
    return str(getattr(address, "ipv4_mapped", None) or address)
