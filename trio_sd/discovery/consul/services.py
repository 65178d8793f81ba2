"""From Consul's answers to target groups. Pure: nobody is asked here.

The labels are those of Prometheus. Of keys of metadata that make the same label, the last in the order of their names
wins; in Prometheus it is a random one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ...errors import DiscoveryError
from ...targets import ADDRESS_LABEL, META_LABEL_PREFIX, TargetGroup, join_host_port

__all__ = ["parse_agent", "parse_catalog", "parse_instances"]

_PREFIX: Final = META_LABEL_PREFIX + "consul_"
_NOT_IN_LABELS: Final = re.compile("[^a-zA-Z0-9_]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NODE_MAINTENANCE: Final = "_node_maintenance"
_SERVICE_MAINTENANCE: Final = "_service_maintenance:"
_HEALTH: Final = ("maintenance", "critical", "warning", "passing")  # the worst first

_Object = Mapping[str, Any]  # Any: JSON, of which each part is checked where it is used


def parse_agent(body: bytes) -> str:
    """Return the datacenter of the agent that answered ``/v1/agent/self``.

    Raises:
      DiscoveryError: it does not tell.
    """
    datacenter = _section(_object(_decoded(body), "the agent"), "Config").get("Datacenter")
    if not isinstance(datacenter, str):
        raise DiscoveryError(f"found {_kind(datacenter)} for Config.Datacenter of the agent, expected a string")
    return datacenter


def parse_catalog(body: bytes) -> Mapping[str, Sequence[str]]:
    """Return the tags of each service, from the answer to ``/v1/catalog/services``.

    Raises:
      DiscoveryError: it is something else.
    """
    document = _decoded(body)
    services = {} if document is None else _object(document, "the catalog")
    return {name: _texts(tags, f"the tags of the service {name}") for name, tags in services.items()}


def parse_instances(body: bytes, service: str, datacenter: str, tag_separator: str) -> TargetGroup:
    """Return the target group of a service, from the answer to ``/v1/health/service/SERVICE``.

    Args:
      body: the answer.
      service: the name of the service, which becomes the source.
      datacenter: where it is.
      tag_separator: what stands between tags, and before and after them.

    Raises:
      DiscoveryError: it is no list of instances.
    """
    document = _decoded(body)
    if document is None:
        document = []
    if not isinstance(document, list):
        raise DiscoveryError(f"found {_kind(document)}, expected a list of instances")
    targets = [_target(_object(entry, f"instance {i}"), tag_separator) for i, entry in enumerate(document)]
    return TargetGroup(service, targets, {f"{_PREFIX}service": service, f"{_PREFIX}dc": datacenter})


def _target(entry: _Object, tag_separator: str) -> dict[str, str]:
    node, service = _section(entry, "Node"), _section(entry, "Service")
    port = str(_port(service))
    tags = _texts(service.get("Tags"), "Service.Tags")
    labels = {
        # The service's own address counts where it has one, because it may have been registered from another node.
        ADDRESS_LABEL: join_host_port(_text(service, "Address") or _text(node, "Address"), port),
        f"{_PREFIX}address": _text(node, "Address"),
        f"{_PREFIX}node": _text(node, "Node"),
        f"{_PREFIX}namespace": _text(service, "Namespace"),
        f"{_PREFIX}partition": _text(service, "Partition"),
        # With the separator around them, so that a rule need not care where in the list a tag is.
        f"{_PREFIX}tags": f"{tag_separator}{tag_separator.join(tags)}{tag_separator}",
        f"{_PREFIX}service_address": _text(service, "Address"),
        f"{_PREFIX}service_port": port,
        f"{_PREFIX}service_id": _text(service, "ID"),
        f"{_PREFIX}health": _health(entry.get("Checks")),
    }
    labels.update(_prefixed("metadata_", _section(node, "Meta")))
    labels.update(_prefixed("service_metadata_", _section(service, "Meta")))
    labels.update(_prefixed("tagged_address_", _section(node, "TaggedAddresses")))
    return labels


def _prefixed(prefix: str, values: _Object) -> Iterable[tuple[str, str]]:
    for name in sorted(values):
        yield f"{_PREFIX}{prefix}{_NOT_IN_LABELS.sub('_', name)}", _text(values, name)


def _health(checks: object) -> str:
    """Return the worst status of all checks; none at all pass, and one that nobody knows makes it unknown."""
    if not isinstance(checks, (list, type(None))):
        raise DiscoveryError(f"found {_kind(checks)} for Checks, expected a list")
    found = {"passing"}
    for check in checks or ():
        check_id, status = _text(_object(check, "a check"), "CheckID"), _text(check, "Status")
        if check_id == _NODE_MAINTENANCE or check_id.startswith(_SERVICE_MAINTENANCE):
            found.add("maintenance")
        elif status in _HEALTH[1:]:
            found.add(status)
        else:
            return ""
    return next(status for status in _HEALTH if status in found)


def _decoded(body: bytes) -> object:
    text = body.decode("utf-8", "replace")  # as Go does
    try:
        document: object = json.loads(text)
        return _mended(document) if "\\ud" in text.lower() else document  # only an escape can make half of a pair
    except (ValueError, RecursionError) as error:
        raise DiscoveryError(f"not JSON: {error}") from None


def _mended(value: object) -> object:
    """Return decoded JSON with each half of a surrogate pair replaced, as Go does: it has no bytes in UTF-8."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _mended(item) for key, item in value.items()}
    return value


def _object(value: object, what: str) -> _Object:
    if not isinstance(value, dict):
        raise DiscoveryError(f"found {_kind(value)} for {what}, expected an object")
    return value


def _section(parent: _Object, name: str) -> _Object:
    value = parent.get(name)
    return {} if value is None else _object(value, name)


def _text(parent: _Object, name: str) -> str:
    value = parent.get(name)
    if not isinstance(value, (str, type(None))):
        raise DiscoveryError(f"found {_kind(value)} for {name}, expected a string")
    return value or ""


def _texts(value: object, what: str) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DiscoveryError(f"found {_kind(value)} for {what}, expected a list of strings")
    for item in value:
        if not isinstance(item, str):
            raise DiscoveryError(f"found {_kind(item)} in the list for {what}, expected a list of strings")
    return value


def _port(service: _Object) -> int:
    port = service.get("Port")
    if not isinstance(port, (int, type(None))) or isinstance(port, bool):
        found = "a number with a fraction or an exponent" if isinstance(port, float) else _kind(port)
        raise DiscoveryError(f"found {found} for Service.Port, expected a number")
    return port or 0


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"
    }  # fmt: skip
    return kinds.get(type(value), "null")
