"""From a znode's data to a target's labels: the members of serversets and of Nerve. Pure: no server is asked here.

The data is JSON, decoded as Prometheus decodes it: :mod:`trio_sd.discovery.zookeeper.gojson` tells how. No member is
filtered out: a status is a label and nothing more, and any whole number is a port.

Different from Prometheus: a host that has brackets already, ``[::1]``, gets no second pair in the address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from ...targets import ADDRESS_LABEL, META_LABEL_PREFIX, Labels, join_host_port
from .gojson import GoJSONError, Place, decode, fold, integer, pairs, string

__all__ = ["MemberError", "Parse", "parse_nerve_member", "parse_serverset_member"]

Parse = Callable[[bytes, str], Labels]
"""Makes a target's labels of a znode's data and path, or raises :class:`MemberError`."""


class MemberError(ValueError):
    """A znode's data is no member. The message says what was found and what was expected, but not in which znode."""


_Endpoint = tuple[str, int]
"""A host and a port."""
_Endpoints = Mapping[str, _Endpoint]
_ServersetMember = tuple[_Endpoint, _Endpoints, str, int]
"""The service's endpoint, the additional ones by name, status and shard."""
_NerveMember = tuple[str, int, str]
"""Host, port and name."""

_TOP: Final[Place] = ()
_NO_ENDPOINT: Final[_Endpoint] = ("", 0)
_NO_ENDPOINTS: Final[_Endpoints] = MappingProxyType({})

_FOLDED: Final = MappingProxyType(
    {name: fold(name) for name in ("serviceEndpoint", "additionalEndpoints", "status", "shard", "host", "port", "name")}
)
"""The usual spellings, because looking one up is quicker than folding it."""

_NOT_IN_LABEL_NAMES: Final = re.compile("[^a-zA-Z0-9_]")

_SERVERSET: Final = META_LABEL_PREFIX + "serverset_"
_SERVERSET_PATH: Final = _SERVERSET + "path"
_SERVERSET_HOST: Final = _SERVERSET + "endpoint_host"
_SERVERSET_PORT: Final = _SERVERSET + "endpoint_port"
_SERVERSET_STATUS: Final = _SERVERSET + "status"
_SERVERSET_SHARD: Final = _SERVERSET + "shard"

_NERVE: Final = META_LABEL_PREFIX + "nerve_"
_NERVE_PATH: Final = _NERVE + "path"
_NERVE_HOST: Final = _NERVE + "endpoint_host"
_NERVE_PORT: Final = _NERVE + "endpoint_port"
_NERVE_NAME: Final = _NERVE + "endpoint_name"


def parse_serverset_member(data: bytes, path: str) -> Labels:
    """Return the labels of a serverset's member, as Finagle and Aurora write it.

    The names of additional endpoints end up in label names, with ``_`` for every character that can't be there. Where
    that makes two equal, the last in the order of the names gives both labels, host and port.

    Raises:
      MemberError: the data is no such member.
    """
    try:
        (host, port), endpoints, status, shard = _serverset_member(decode(data))
    except GoJSONError as error:
        raise MemberError(str(error)) from None
    additional = _additional_labels(tuple(endpoints)) if endpoints else ()
    labels = [ADDRESS_LABEL, join_host_port(host, port), _SERVERSET_HOST, host]
    for name, host_label, _ in additional:
        labels += (host_label, endpoints[name][0])
    labels += (_SERVERSET_PORT, str(port))
    for name, _, port_label in additional:
        labels += (port_label, str(endpoints[name][1]))
    labels += (_SERVERSET_PATH, path, _SERVERSET_SHARD, str(shard), _SERVERSET_STATUS, status)
    return Labels.of_sorted(tuple(labels))


def parse_nerve_member(data: bytes, path: str) -> Labels:
    """Return the labels of a member that Nerve announced.

    Raises:
      MemberError: the data is no such member.
    """
    try:
        host, port, name = _nerve_member(decode(data))
    except GoJSONError as error:
        raise MemberError(str(error)) from None
    address = join_host_port(host, port)
    return Labels.of_sorted(
        (ADDRESS_LABEL, address, _NERVE_HOST, host, _NERVE_NAME, name, _NERVE_PORT, str(port), _NERVE_PATH, path)
    )


def _serverset_member(document: object) -> _ServersetMember:
    service, additional, status, shard = _NO_ENDPOINT, _NO_ENDPOINTS, "", 0
    for key, value in pairs(document, _TOP):
        match _FOLDED.get(key) or fold(key):
            case "serviceendpoint":
                service = _endpoint(value, service, (key,))
            case "additionalendpoints":
                additional = _endpoints(value, additional, key)
            case "status":
                status = string(value, status, _TOP, key)
            case "shard":
                shard = integer(value, shard, _TOP, key)
    return service, additional, status, shard


def _nerve_member(document: object) -> _NerveMember:
    host, port, name = "", 0, ""
    for key, value in pairs(document, _TOP):
        match _FOLDED.get(key) or fold(key):
            case "host":
                host = string(value, host, _TOP, key)
            case "port":
                port = integer(value, port, _TOP, key)
            case "name":
                name = string(value, name, _TOP, key)
    return host, port, name


def _endpoint(value: object, before: _Endpoint, place: Place) -> _Endpoint:
    host, port = before
    if type(value) is tuple and len(value) == 2:
        (first, first_item), (second, second_item) = value
        if first == "host" and second == "port":  # what nearly all are, without a look at each key
            return string(first_item, host, place, first), integer(second_item, port, place, second)
    for key, item in pairs(value, place):
        match _FOLDED.get(key) or fold(key):
            case "host":
                host = string(item, host, place, key)
            case "port":
                port = integer(item, port, place, key)
    return host, port


def _endpoints(value: object, before: _Endpoints, key: str) -> _Endpoints:
    if value is None:
        return _NO_ENDPOINTS
    found = {name: _endpoint(item, _NO_ENDPOINT, (key, name)) for name, item in pairs(value, (key,))}
    return {**before, **found} if before else found


# Nearly all members of a tree have endpoints of the same names. This is remembered for all managers together, because
# it is pure and bounded: the names alone make the result, and nothing of one manager is seen by another.
@lru_cache(maxsize=64)
def _additional_labels(names: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    """Return each endpoint's name and its labels for host and port, in the order of the labels."""
    last = {_label_part(name): name for name in sorted(names)}
    return tuple([(last[part], f"{_SERVERSET_HOST}_{part}", f"{_SERVERSET_PORT}_{part}") for part in sorted(last)])


def _label_part(name: str) -> str:
    if name.isascii() and name.isidentifier():  # nearly all are, and substitution takes ten times as long
        return name
    return _NOT_IN_LABEL_NAMES.sub("_", name)
