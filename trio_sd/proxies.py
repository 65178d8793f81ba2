"""Through which proxy a request goes, if through any: what a section or the environment says, and what it excepts.

The rules are those of ``golang.org/x/net/http/httpproxy``, which Prometheus follows, but for one: a proxy that can't be
used is an error wherever it stands. There, a bad one in the environment means that servers are spoken to directly.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias
from urllib.parse import unquote

from .errors import DiscoveryError
from .http_config import ProxyConfig, check_url
from .secrets import Secret

__all__ = ["Proxy", "choose_proxy"]

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_PROXY_PORTS: Final = MappingProxyType({"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080})
_PORTS: Final = MappingProxyType({"http": "80", "https": "443"})
_HAS_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_URL: Final = re.compile(r"([^:/?#]+)://(?:([^/?#]*)@)?(?:\[([^]]*)\]|([^:/?#]*))(?::([0-9]*))?(?![^/?#])")
_WITH_PORT: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([^:\[\]]*)")
_CIDR: Final = re.compile(r"[0-9a-fA-F:.]+/[0-9]+")  # not a mask such as 10.0.0.0/255.0.0.0, which Python takes as well


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy to connect to.

    Attributes:
      scheme: how to speak to it: http, https, socks5 or socks5h.
      host: its name in ASCII, or its address without brackets.
      port: its port.
      credentials: the user and the password to be there, if the proxy's URL has a user; the password may be empty.
    """

    scheme: str
    host: str
    port: int
    credentials: tuple[Secret, Secret] | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a URL says of a server; ``port`` is empty, and ``user_info`` is None, where it leaves them out."""

    scheme: str
    user_info: str | None
    host: str
    port: str


def choose_proxy(config: ProxyConfig, url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a request, or ``None`` where it goes to the server directly.

    A ``proxy_url`` alone is for all requests. With ``no_proxy``, or if the environment is to say all of it, there are
    exceptions: ``localhost`` and loopback addresses always, and the items between the commas of the list. Such an item
    is an address, a network such as ``10.0.0.0/8``, or a domain: ``a.b`` stands for itself and for what is below it,
    ``.a.b`` and ``*.a.b`` for what is below it, ``*`` for everything. Addresses and domains may have a port. What is
    none of these excepts nothing.

    Args:
      config: what the section says.
      url: where the request goes: a URL with a host, its scheme http or https.
      environ: the variables of the environment. Those with names in upper case win; an empty one counts as not set.

    Raises:
      DiscoveryError: the proxy is none that can be used; or ``REQUEST_METHOD`` is set, as for a CGI program, for which
        whoever sends a request can set ``HTTP_PROXY``. Tells where the proxy stands, and shows nothing of it.
    """
    if config.proxy_from_environment:
        return _from_environment(_destination(url), environ)
    if not config.proxy_url:
        return None
    if config.no_proxy and _is_excepted(_destination(url), config.no_proxy):
        return None
    return _parsed(config.proxy_url.reveal(), "proxy_url")


def _from_environment(destination: _Parts, environ: Mapping[str, str]) -> Proxy | None:
    name, proxy = _variable(environ, f"{destination.scheme.upper()}_PROXY")
    if not proxy:
        return None
    if destination.scheme == "http" and environ.get("REQUEST_METHOD"):
        raise DiscoveryError(f"can't use the proxy of the variable {name}: REQUEST_METHOD is set, as for a CGI program")
    _, no_proxy = _variable(environ, "NO_PROXY")
    return None if _is_excepted(destination, no_proxy) else _parsed(proxy, f"the variable {name}")


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return name and value of the variable, which may be written in lower case."""
    return next(((spelled, environ[spelled]) for spelled in (name, name.lower()) if environ.get(spelled)), (name, ""))


def _destination(url: str) -> _Parts:
    try:
        parts = _split(url)
        if parts.scheme not in _PORTS:
            raise ValueError(f"expected a URL with one of the schemes {', '.join(_PORTS)}")
    except ValueError as error:
        raise DiscoveryError(f"can't choose a proxy: {error}") from None
    return _Parts(parts.scheme, None, parts.host.partition("%")[0], parts.port or _PORTS[parts.scheme])


def _parsed(proxy: str, source: str) -> Proxy:
    """Return the proxy that a URL names; without a scheme, it is one of HTTP."""
    try:
        parts = _split(proxy if _HAS_SCHEME.match(proxy) else f"http://{proxy.removeprefix('//')}")
        if parts.scheme not in _PROXY_PORTS:
            raise ValueError(f"expected a URL with one of the schemes {', '.join(_PROXY_PORTS)}")
        if not parts.host or not parts.host.isascii():
            raise ValueError("expected a URL with the name or the address of a host")
        port = _port_number(parts.port) if parts.port else _PROXY_PORTS[parts.scheme]
        return Proxy(parts.scheme, parts.host, port, _credentials(parts.user_info))
    except ValueError as error:
        raise DiscoveryError(f"can't use the proxy of {source}: {error}") from None


def _port_number(text: str) -> int:
    number = int(text) if len(text) <= 5 else 0
    if not 0 < number < 2**16:
        raise ValueError("found another port in the URL, expected one from 1 to 65535")
    return number


def _credentials(user_info: str | None) -> tuple[Secret, Secret] | None:
    if user_info is None:
        return None
    user, _, password = user_info.partition(":")
    try:
        return Secret(unquote(user, errors="strict")), Secret(unquote(password, errors="strict"))
    except UnicodeDecodeError:  # which shows the bytes
        raise ValueError("the user or the password in the URL is not UTF-8") from None


def _split(url: str) -> _Parts:
    """Return the parts of a URL.

    Raises:
      ValueError: it is none, or names no server. Shows nothing of it.
    """
    check_url(url)
    match = _URL.match(url)
    if match is None:
        raise ValueError("expected a URL such as http://host:80")
    scheme, user_info, address, name, port = match.groups()
    return _Parts(scheme.lower(), user_info, _normal(unquote(name if address is None else address)), port or "")


def _normal(host: str) -> str:
    """Return the name of a host as it is compared and looked up, or as it is if no host can have that name."""
    host = host.lower()
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


# What is spoken to directly


def _is_excepted(destination: _Parts, no_proxy: str) -> bool:
    """Tell whether no proxy is for a destination."""
    address = _address(destination.host)
    if destination.host == "localhost" or (address and address.is_loopback):
        return True
    return any(_matches(item.strip(), destination, address) for item in no_proxy.split(","))


def _matches(item: str, destination: _Parts, address: _Address | None) -> bool:
    """Tell whether an item of ``no_proxy`` is about a destination, whose host is the ``address`` or a name."""
    if item == "*":
        return True
    network = _network(item)
    if network is not None:
        return address is not None and address in network
    match = _WITH_PORT.fullmatch(item)
    name, port = (match[1] or match[2], match[3]) if match else (item, "")
    if not name or (port and port != destination.port):
        return False
    if address is not None:
        return address == _address(name)
    if name.startswith("*."):
        name = name.removeprefix("*")
    domain = _normal(name.removeprefix("."))
    return destination.host.endswith(f".{domain}") or (destination.host == domain and not name.startswith("."))


def _address(text: str) -> _Address | None:
    """Return the address that ``text`` is; one of IPv4, if it is such a one in the clothes of IPv6."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _network(text: str) -> _Network | None:
    """Return the network that ``text`` is, as :func:`_address` does."""
    if not _CIDR.fullmatch(text):
        return None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        return ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network
