"""A stand-in for Consul: the part of its HTTP API that finds services, on loopback, on Trio, by Trio's clock.

    async with open_consul() as consul:
        consul.register("node-1", "web", port=80, tags=["a"])
        ...  # ask consul.url, look at consul.requests
        await consul.wait_until_blocked(1)
        consul.deregister("node-1", "web")

It answers what a server of the cluster answers, after https://developer.hashicorp.com/consul/api-docs (agent, catalog,
health, features/blocking, features/consistency, features/filtering) and, where that is silent, after the source of
Consul: texts of errors, which write moves which index, what becomes of a query that waits when a snapshot is restored.

What it leaves out: writes over HTTP, peering, the mesh, the agent's cache, ``near``, wildcards for namespaces, limits
of rate, and the seconds for which a real server holds a request until there is a leader again. Tags in
``/v1/catalog/services`` are sorted; Consul's are in no order.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, Self, TypeAlias, TypedDict, Unpack
from urllib.parse import parse_qs, unquote

import h11
import re2
import trio
from trio_util import AsyncValue

Record: TypeAlias = dict[str, Any]  # JSON, with the fields that Consul's has
Header: TypeAlias = tuple[str, str]
Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

SERF: Final = "serfHealth"

# --- filters ---
#
# What Consul filters by is go-bexpr 0.1.2, which knows the type of every field: a selector that does not exist, or an
# operator that its type does not have, is refused before anything is looked at.

Predicate: TypeAlias = Callable[[Record], bool]
Schema: TypeAlias = "type[object] | tuple[Schema] | Mapping[str, Schema]"
"""The type of a field: a tuple is a list, "*" any key of a map."""


def _fields(strings: str, **others: Schema) -> Schema:
    return MappingProxyType({**dict.fromkeys(strings.split(), str), **others})


_MAP: Final = MappingProxyType({"*": str})
_WEIGHTS: Final = _fields("", Passing=int, Warning=int)
_NODE: Final = _fields("ID Node Address Datacenter", TaggedAddresses=_MAP, Meta=_MAP)
_SERVICE: Final = _fields(
    "ID Service Address", Tags=(str,), Meta=_MAP, Port=int, Weights=_WEIGHTS, EnableTagOverride=bool
)
_CHECK: Final = _fields("Node CheckID Name Status Notes Output ServiceID ServiceName", ServiceTags=(str,))
HEALTH_FIELDS: Final = _fields("", Node=_NODE, Service=_SERVICE, Checks=(_CHECK,))
CATALOG_FIELDS: Final = _fields(
    "ID Node Address Datacenter ServiceID ServiceName ServiceAddress",
    TaggedAddresses=_MAP,
    NodeMeta=_MAP,
    ServiceTags=(str,),
    ServiceMeta=_MAP,
    ServicePort=int,
    ServiceWeights=_WEIGHTS,
    ServiceEnableTagOverride=bool,
)

_NAME: Final = r"[a-zA-Z][a-zA-Z0-9_/]*"
_STRING: Final = r'"[^"]*"|`[^`]*`'
_TOKEN: Final = re.compile(
    rf"\s*(?:(?P<symbol>==|!=|[()])|(?P<string>{_STRING})|(?P<selector>{_NAME}(?:\.{_NAME}|\[(?:{_STRING})\])*)"
    r"|(?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?)(?=[\s)]|$))"
)
_PART: Final = re.compile(rf"{_NAME}|\[({_STRING})\]")


class FilterError(ValueError):
    """An expression that is refused; the text is go-bexpr's, but for what it says it has expected."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    offset: int

    @property
    def value(self) -> str:
        return self.text[1:-1] if self.kind == "string" else self.text

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(found[1][1:-1] if found[1] else found[0] for found in _PART.finditer(self.text))


def parse_filter(expression: str, fields: Schema) -> Predicate:
    """Return what tells whether a record passes.

    Raises:
      FilterError: it cannot be read, or it is not for records with these fields.
    """
    return _Parser(expression, fields).parse()


class _Parser:
    """A method a rule of the grammar."""

    def __init__(self, expression: str, fields: Schema) -> None:
        self._fields = fields
        self._tokens: list[_Token] = []
        offset, end = 0, len(expression.rstrip())
        while offset < end:
            match = _TOKEN.match(expression, offset)
            if not match:
                raise _no_match(offset)
            kind = match.lastgroup or ""
            self._tokens.append(_Token(kind, match[kind], match.start(kind)))
            offset = match.end()
        self._tokens.append(_Token("end", "", end))

    def parse(self) -> Predicate:
        found = self._or()
        if self._tokens[0].kind != "end":
            raise _no_match(self._tokens[0].offset)
        return found

    def _take(self, text: str) -> bool:
        found = self._tokens[0].kind != "string" and self._tokens[0].text == text
        if found:
            del self._tokens[0]
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise _no_match(self._tokens[0].offset)

    def _operand(self, *kinds: str) -> _Token:
        if self._tokens[0].kind not in kinds:
            raise _no_match(self._tokens[0].offset)
        return self._tokens.pop(0)

    def _or(self) -> Predicate:
        left = self._and()
        if not self._take("or"):
            return left
        right = self._or()
        return lambda record: left(record) or right(record)

    def _and(self) -> Predicate:
        left = self._not()
        if not self._take("and"):
            return left
        right = self._and()
        return lambda record: left(record) and right(record)

    def _not(self) -> Predicate:
        if self._take("not"):
            inner = self._not()
            return lambda record: not inner(record)
        if self._take("("):
            inner = self._or()
            self._expect(")")
            return inner
        return self._match()

    def _match(self) -> Predicate:
        first = self._operand("selector", "string", "number")
        negated = self._take("!=")
        if negated or self._take("=="):
            return self._test(first, "==", negated, self._operand("selector", "string", "number").value)
        if self._take("is"):
            negated = self._take("not")
            self._expect("empty")
            return self._test(first, "empty", negated)
        negated = self._take("not")
        if self._take("in"):
            return self._test(self._operand("selector"), "in", negated, first.value)
        operator = "in" if self._take("contains") else "matches"
        if operator == "matches":
            self._expect("matches")
        return self._test(first, operator, negated, self._operand("selector", "string", "number").value)

    def _test(self, selector: _Token, operator: str, negated: bool, text: str = "") -> Predicate:
        if selector.kind != "selector":
            raise _no_match(selector.offset)
        path, fields = selector.path, self._fields
        for depth, name in enumerate(path, 1):
            inner = fields[0] if isinstance(fields, tuple) else fields
            found = inner.get(name, inner.get("*")) if isinstance(inner, Mapping) else None
            if found is None:
                raise FilterError(f'Selector "{".".join(path[:depth])}" is not valid')
            fields = found
        if operator not in _operators(fields):
            raise FilterError(f'Invalid match operator "{operator}" for selector "{".".join(path)}"')
        try:
            holds = _leaf(operator, _coerced(text, fields, operator))
        except (ValueError, re2.error) as error:
            raise FilterError(f'Failed to coerce value "{text}" for selector "{".".join(path)}": {error}') from error
        # A key that a map does not have is equal to nothing and holds nothing, but it matches, and does not match.
        absent = (operator, negated) not in {("==", False), ("in", False)}

        def select(value: Any, rest: tuple[str, ...]) -> bool:
            if not rest:
                return holds(value) != negated
            if isinstance(value, list):  # one is enough, also for "!="
                return any(select(item, rest) for item in value)
            return select(value[rest[0]], rest[1:]) if rest[0] in (value or {}) else absent

        return lambda record: select(record, path)


def _no_match(offset: int) -> FilterError:
    return FilterError(f"1:{offset + 1} ({offset}): no match found")


def _operators(fields: Schema) -> tuple[str, ...]:
    if fields is str:
        return ("==", "in", "matches")
    if fields in (int, bool):
        return ("==",)
    if isinstance(fields, tuple):
        return ("empty", "in") if fields[0] is str else ("empty",)
    return ("empty", "in") if isinstance(fields, Mapping) and "*" in fields else ()


def _coerced(text: str, fields: Schema, operator: str) -> object:
    if operator == "matches":
        return re2.compile(text)
    if fields is bool:
        return _go_bool(text)
    return int(text, 0) if fields is int else text


def _go_bool(text: str) -> bool:
    if text not in {"1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"}:
        raise ValueError("invalid syntax")
    return text[0] in "1tT"


def _leaf(operator: str, wanted: Any) -> Callable[[Any], bool]:
    match operator:
        case "==":
            return lambda value: bool(value == wanted)
        case "in":  # a part of a string, an item of a list, a key of a map
            return lambda value: wanted in (value or ())
        case "matches":
            return lambda value: wanted.search(value) is not None
    return lambda value: not value


# --- the state of a datacenter ---

_COPIED: Final = ("Tags", "Address", "Meta", "Port", "Weights", "EnableTagOverride")


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Where services live in a datacenter. Nodes live in the partition."""

    partition: str = "default"
    namespace: str = "default"


DEFAULT: Final = Tenancy()


class Registration(TypedDict, total=False):
    """What may be said of an instance of a service; ``None`` leaves a node as it is.

    Attributes:
      id: that of the instance, as its node knows it; the name of the service by default.
      address: that of the service; the node's counts if it is empty.
      checks: the status of each check of the instance.
    """

    id: str
    address: str
    port: int
    tags: Iterable[str]
    meta: Mapping[str, str] | None
    checks: Mapping[str, str]
    node_address: str | None
    node_meta: Mapping[str, str] | None
    tagged_addresses: Mapping[str, str] | None
    tenancy: Tenancy


@dataclass(slots=True)
class _Node:
    """A node, with its checks and its instances by (namespace, ID); its own checks are in no namespace."""

    partition: str
    record: Record
    checks: dict[tuple[str, str], Record] = field(default_factory=dict)
    instances: dict[tuple[str, str], Record] = field(default_factory=dict)


class Catalog:
    """Nodes, instances and checks, and the indexes of Raft that a datacenter keeps of them.

    Every write is an entry of Raft and gets the next ``index``. What it changes gets that index, and what it does not
    change keeps the one it has:

    - the table of services: instances that come, change and go;
    - a service: its instances, their nodes, and the checks of both;
    - services that are not there: the last time that a service lost its last instance, so that a query that waits for
      one is answered when it goes, and the index does not go back; before any has gone, the newest of all tables.

    Attributes:
      index: that of the last write.
    """

    def __init__(self, datacenter: str, *, enterprise: bool) -> None:
        self.datacenter = datacenter
        self.index = 10  # a cluster has some entries before anyone registers
        self._enterprise = enterprise
        self._nodes: dict[tuple[str, str], _Node] = {}
        self._names: dict[Tenancy, dict[str, set[tuple[str, str]]]] = {}
        self._indexes: dict[tuple[str, str, str], int] = {}

    # writes

    def register(self, node: str, service: str, **given: Unpack[Registration]) -> None:
        self.index += 1
        tenancy = given.get("tenancy", DEFAULT)
        held = self._put_node(node, tenancy.partition, given)
        key = tenancy.namespace, given.get("id", service)
        old = held.instances.get(key)
        if old is not None and old["Service"] != service:
            self._remove_instance(held, key)
            old = None
        record = self._changed(
            old,
            {
                "ID": key[1],
                "Service": service,
                "Tags": list(given.get("tags", ())),
                "Address": given.get("address", ""),
                "Meta": _map(given.get("meta")),
                "Port": given.get("port", 0),
                "Weights": {"Passing": 1, "Warning": 1},
                "EnableTagOverride": False,
                "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}},
                "Connect": {},
                "PeerName": "",
                **self._place(Namespace=key[0], Partition=tenancy.partition),
            },
        )
        if record:
            held.instances[key] = record
            self._names.setdefault(tenancy, {}).setdefault(service, set()).add((node, key[1]))
            self._move(tenancy.partition, "", "nodes")
            self._move(tenancy.partition, key[0], "services", f"service.{service}")
        for check, status in given.get("checks", {}).items():
            self._put_check(held, check, status, key)

    def deregister(self, node: str, id: str | None, tenancy: Tenancy) -> None:
        held = self._nodes[tenancy.partition, node]
        keys = list(held.instances) if id is None else [(tenancy.namespace, id)]
        self.index += 1
        for key in keys:
            self._remove_instance(held, key)
        self._move(tenancy.partition, "", "nodes")
        if id is None:
            del self._nodes[tenancy.partition, node]

    def set_check(self, node: str, check: str, status: str, id: str | None, output: str, tenancy: Tenancy) -> None:
        held = self._nodes[tenancy.partition, node]
        self.index += 1
        self._put_check(held, check, status, None if id is None else (tenancy.namespace, id), output)

    def touch(self) -> None:
        self.index += 1
        self._move("default", "default", "services")
        for key in self._indexes:
            self._indexes[key] = self.index

    def rewind(self, index: int) -> None:
        self.index = index
        self._indexes = {key: min(found, index) for key, found in self._indexes.items()}

    # reads

    def index_of_services(self, tenancy: Tenancy, *, by_node: bool) -> int:
        """Return the index of ``/v1/catalog/services``; nodes count where it is asked for some of them."""
        found = self._at(tenancy.partition, tenancy.namespace, "services")
        return max(found, self._at(tenancy.partition, "", "nodes")) if by_node else found

    def index_of_service(self, tenancy: Tenancy, service: str) -> int:
        """Return the index of ``/v1/health/service/<service>``."""
        at = tenancy.partition, tenancy.namespace
        if self._names.get(tenancy, {}).get(service):
            return self._at(*at, f"service.{service}")
        return self._at(*at, "extinction") or max(
            self._at(tenancy.partition, "", "nodes"), *(self._at(*at, name) for name in ("services", "checks"))
        )

    def services(self, tenancy: Tenancy) -> Iterator[Record]:
        """Yield the records that ``/v1/catalog/services`` is made of, and filtered by."""
        for name in sorted(self._names.get(tenancy, {})):
            for entry in self.instances(tenancy, name):
                node, instance = entry["Node"], entry["Service"]
                yield {
                    **{key: node[key] for key in ("ID", "Node", "Address", "Datacenter", "TaggedAddresses")},
                    "NodeMeta": node["Meta"],
                    "ServiceID": instance["ID"],
                    "ServiceName": name,
                    **{f"Service{key}": instance[key] for key in _COPIED},
                }

    def instances(self, tenancy: Tenancy, service: str) -> Iterator[Record]:
        """Yield the entries of ``/v1/health/service/<service>``, by node and ID."""
        for node, id in sorted(self._names.get(tenancy, {}).get(service, ())):
            held = self._nodes[tenancy.partition, node]
            checks = [
                check
                for (namespace, _), check in sorted(held.checks.items())
                if not namespace or (namespace, check["ServiceID"]) == (tenancy.namespace, id)
            ]
            yield {"Node": held.record, "Service": held.instances[tenancy.namespace, id], "Checks": checks}

    # tables

    def _put_node(self, node: str, partition: str, given: Registration) -> _Node:
        held = self._nodes.get((partition, node))
        if held is None:
            held = self._nodes[partition, node] = _Node(partition, {})
        told = {
            "Address": given.get("node_address"),
            "TaggedAddresses": _map(given.get("tagged_addresses")),
            "Meta": _map(given.get("node_meta")),
        }
        id = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{node}.{partition}.{self.datacenter}"))
        record = self._changed(
            held.record or None,
            {
                "ID": id,
                "Node": node,
                "Address": "127.0.0.1",
                "Datacenter": self.datacenter,
                "TaggedAddresses": None,
                "Meta": None,
                **self._place(Partition=partition),
                **_without_indexes(held.record),
                **{name: value for name, value in told.items() if value is not None},
            },
        )
        if record:
            known, held.record = bool(held.record), record
            self._move(partition, "", "nodes")
            self._move_services_of(held)
            if not known:  # agents tell of their node that it lives
                self._put_check(held, SERF, "passing", None, "Agent alive and reachable")
        return held

    def _put_check(
        self, held: _Node, check: str, status: str, instance: tuple[str, str] | None, output: str = ""
    ) -> None:
        service = {"ID": "", "Service": "", "Tags": []} if instance is None else held.instances[instance]
        namespace = instance[0] if instance else ""
        record = self._changed(
            held.checks.get((namespace, check)),
            {
                "Node": held.record["Node"],
                "CheckID": check,
                "Name": "Serf Health Status" if check == SERF else check,
                "Status": status,
                "Notes": "",
                "Output": output,
                "ServiceID": service["ID"],
                "ServiceName": service["Service"],
                "ServiceTags": service["Tags"],
                "Type": "",
                "Definition": {},
                **self._place(Namespace=namespace or "default", Partition=held.partition),
            },
        )
        if record:
            held.checks[namespace, check] = record
            self._move(held.partition, namespace or "default", "checks")
            if instance:
                self._move(held.partition, namespace, f"service.{service['Service']}")
            else:
                self._move_services_of(held)

    def _remove_instance(self, held: _Node, key: tuple[str, str]) -> None:
        partition, instance = held.partition, held.instances.pop(key)
        held.checks = {at: check for at, check in held.checks.items() if (at[0], check["ServiceID"]) != key}
        names = self._names[Tenancy(partition, key[0])]
        names[instance["Service"]].discard((held.record["Node"], key[1]))
        self._move(partition, key[0], "services", "checks")
        if names[instance["Service"]]:
            self._move(partition, key[0], f"service.{instance['Service']}")
        else:
            del names[instance["Service"]]
            del self._indexes[partition, key[0], f"service.{instance['Service']}"]
            self._move(partition, key[0], "extinction")

    def _changed(self, old: Record | None, new: Record) -> Record | None:
        """Return what to keep of ``new``, or ``None`` if ``old`` says the same: such a write moves no index."""
        if old is not None and _without_indexes(old) == new:
            return None
        return {**new, "CreateIndex": old["CreateIndex"] if old else self.index, "ModifyIndex": self.index}

    def _place(self, **names: str) -> Record:
        return dict(names) if self._enterprise else {}

    def _move_services_of(self, held: _Node) -> None:
        for (namespace, _), instance in held.instances.items():
            self._move(held.partition, namespace, f"service.{instance['Service']}")

    def _move(self, partition: str, namespace: str, *tables: str) -> None:
        self._indexes.update({(partition, namespace, table): self.index for table in tables})

    def _at(self, partition: str, namespace: str, table: str) -> int:
        return self._indexes.get((partition, namespace, table), 0)


def _map(given: Mapping[str, str] | None) -> Record | None:
    return None if given is None else dict(given)


def _without_indexes(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in ("CreateIndex", "ModifyIndex")}


# --- what is asked and answered ---


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked.

    Attributes:
      path: with its prefix, decoded.
      query: the values of each parameter, in order; a parameter without a value has an empty one.
      headers: names in lower case.
    """

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]]
    headers: Mapping[str, str]

    def parameter(self, name: str) -> str:
        """Return the first value of a parameter, or an empty one."""
        return self.query.get(name, ("",))[0]


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    headers: tuple[Header, ...] = (("Content-Type", "text/plain; charset=utf-8"),)


class _RefusalError(Exception):
    """A request that gets an error with a line of text, as Consul has it."""

    def __init__(self, status: int, text: str, *headers: Header) -> None:
        super().__init__(text)
        self.response = Response(status, text.encode(), (*Response(0, b"").headers, *headers))


@dataclass(frozen=True, slots=True)
class Token:
    """What the bearer of a secret may read.

    Attributes:
      services: the names of services; all, if it is ``None``.
      agent: whether ``/v1/agent/self``.
    """

    services: frozenset[str] | None = None
    agent: bool = True

    def reads(self, service: str) -> bool:
        return self.services is None or service in self.services


_NOBODY: Final = Token(frozenset(), agent=False)
_EVERYBODY: Final = Token()


@dataclass(frozen=True, slots=True)
class _Options:
    """What all queries have in common."""

    datacenter: str
    tenancy: Tenancy
    index: int
    wait: float
    level: str
    token: Token
    anonymous: bool
    node_meta: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Result:
    """What a query finds; ``withheld``, if the token is not allowed to see all of it."""

    index: int
    value: object
    withheld: bool


@dataclass(frozen=True, slots=True)
class _Query:
    """The index of what is asked for, and what there is."""

    index: Callable[[Catalog], int]
    read: Callable[[Catalog], tuple[object, bool]]

    def result(self, catalog: Catalog) -> _Result:
        # Never 0: a client that asks for what comes after 0 would not wait.
        return _Result(max(self.index(catalog), 1), *self.read(catalog))


@dataclass(eq=False, slots=True)
class _Waiter:
    """A blocking query that waits."""

    query: _Query
    options: _Options
    catalog: Catalog
    released: trio.Event = field(default_factory=trio.Event)


_UNITS: Final = MappingProxyType(
    {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
)
_DURATION: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|ms|s|m|h)")


def parse_wait(text: str) -> float:
    """Return for how many seconds a query waits at most, without jitter.

    Raises:
      ValueError: it is no duration as Go's ``time.ParseDuration`` reads it.
    """
    parts = _DURATION.findall(text)
    sign, rest = (text[:1], text[1:]) if text[:1] in ("+", "-") else ("", text)
    if text and rest != "0" and (not parts or "".join(number + unit for number, unit in parts) != rest):
        raise ValueError(text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return min(seconds, 600.0) if seconds > 0 and sign != "-" else 300.0


# --- the server ---

_AGENT: Final = "/v1/agent/self"
_SERVICES: Final = "/v1/catalog/services"
_HEALTH: Final = "/v1/health/service/"


class ConsulServer:
    """What :func:`open_consul` yields: a server of the first datacenter, which knows the others.

    Orders that change what is registered answer the queries that wait for it, before they return: what they wait for
    afterwards, as :attr:`blocked` tells, are new queries.

    Attributes:
      port: where it listens.
      prefix: what paths begin with.
      requests: all that it was asked.
      accepted: how many connections there were.
      index_zero: whether to say that every index is 0, as some proxies and old versions do.
      omit_index_header: whether to tell no index.
    """

    def __init__(
        self,
        datacenters: Iterable[str],
        prefix: str,
        tokens: Mapping[str, Token] | None,
        tls: ssl.SSLContext | None,
        rng: random.Random,
        *,
        enterprise: bool,
    ) -> None:
        self.port = 0
        self.prefix = prefix
        self.requests: list[Request] = []
        self.accepted = 0
        self.index_zero = False
        self.omit_index_header = False
        self._catalogs = {name: Catalog(name, enterprise=enterprise) for name in datacenters}
        self._datacenter = next(iter(self._catalogs))
        self._enterprise = enterprise
        self._tokens = tokens
        self._tls = tls
        self._rng = rng
        self._leaderless_since: float | None = None
        self._faults: list[tuple[str, Response | None]] = []
        self._present: set[trio.SocketStream] = set()
        self._waiting: set[_Waiter] = set()
        self._blocked = AsyncValue(0)
        self._asked = AsyncValue(0)
        self._accepting = trio.CancelScope()
        self._stopped = trio.Event()
        self._nursery: trio.Nursery | None = None

    # what a test looks at

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}{self.prefix}"

    @property
    def blocked(self) -> int:
        """How many blocking queries wait."""
        return int(self._blocked.value)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._present)

    def index(self, datacenter: str = "") -> int:
        """Return the index of the last write."""
        return self._catalogs[datacenter or self._datacenter].index

    async def wait_until_blocked(self, number: int) -> None:
        """Wait until ``number`` blocking queries wait, no more and no fewer."""
        await self._blocked.wait_value(number)

    async def wait_requests(self, number: int) -> None:
        """Wait until it was asked ``number`` times in all."""
        await self._asked.wait_value(lambda asked: asked >= number)

    # orders: what is registered

    def register(self, node: str, service: str, *, datacenter: str = "", **given: Unpack[Registration]) -> None:
        """Register an instance of a service, or change it: :class:`Registration` tells what may be said.

        An instance that is registered as it already is moves no index.
        """
        self._known(given.get("tenancy", DEFAULT))
        self._catalogs[datacenter or self._datacenter].register(node, service, **given)
        self._release()

    def deregister(self, node: str, id: str | None = None, *, datacenter: str = "", tenancy: Tenancy = DEFAULT) -> None:
        """Remove an instance and its checks, or a node with all that it has.

        Raises:
          KeyError: there is none.
        """
        self._catalogs[datacenter or self._datacenter].deregister(node, id, self._known(tenancy))
        self._release()

    def set_check(
        self,
        node: str,
        check: str,
        status: str,
        *,
        id: str | None = None,
        output: str = "",
        datacenter: str = "",
        tenancy: Tenancy = DEFAULT,
    ) -> None:
        """Set a check of the instance ``id``, or of the node; :data:`SERF` is the one that each node has.

        Raises:
          KeyError: there is no such node or instance.
        """
        catalog = self._catalogs[datacenter or self._datacenter]
        catalog.set_check(node, check, status, id, output, self._known(tenancy))
        self._release()

    def touch(self, datacenter: str = "") -> None:
        """Move all indexes, and change nothing: queries that wait get the answer that they had."""
        self._catalogs[datacenter or self._datacenter].touch()
        self._release()

    # orders: the cluster

    def snapshot(self, datacenter: str = "") -> Catalog:
        """Return what there is now, for :meth:`restore_snapshot`."""
        return copy.deepcopy(self._catalogs[datacenter or self._datacenter])

    def restore_snapshot(self, snapshot: Catalog) -> None:
        """Put back what there was, with its indexes; those of writes to come go on from where they are.

        Queries that wait are answered with what they last saw, and its index. Who asks again with that index, which is
        now in the future, waits until the future has come, or until it is told a lower index when its time is over.
        """
        restored = copy.deepcopy(snapshot)
        restored.index = max(self._catalogs[snapshot.datacenter].index, snapshot.index)
        self._catalogs[snapshot.datacenter] = restored
        self._release()

    def set_index(self, index: int, datacenter: str = "") -> None:
        """Let the next write be ``index`` + 1 and no index be higher, as after a cluster was built anew.

        Queries that wait are answered as after :meth:`restore_snapshot`.
        """
        catalog = self.snapshot(datacenter)
        catalog.rewind(index)
        self._catalogs[catalog.datacenter] = catalog
        self._release()

    def lose_leader(self) -> None:
        """Refuse what is not ``stale``; queries that wait go on, and ``consistent`` ones are refused when they end."""
        self._leaderless_since = trio.current_time()

    def elect_leader(self) -> None:
        self._leaderless_since = None

    # orders: faults

    def fail(self, status: int = 500, body: str = "rpc error making call: EOF", path: str = "/") -> None:
        """Answer so what is asked from now on below ``path``, which has no prefix; the last such order counts."""
        self._faults.insert(0, (path, Response(status, body.encode())))

    def garbage(self, path: str = "/", body: bytes = b"<html>not JSON</html>") -> None:
        """Answer with 200 and what is no JSON, as :meth:`fail` does."""
        self._faults.insert(0, (path, Response(200, body, (("Content-Type", "application/json"),))))

    def hang(self, path: str = "/") -> None:
        """Answer nothing, where :meth:`fail` would fail."""
        self._faults.insert(0, (path, None))

    def heal(self) -> None:
        """End all faults, for requests to come."""
        self._faults.clear()

    def drop_connections(self) -> None:
        """Close all connections at once; their queries wait no more."""
        for transport in self._present:
            transport.socket.close()
        self._present.clear()
        self._waiting.clear()
        self._blocked.value = 0

    async def stop(self) -> None:
        """Drop all connections and refuse new ones. What is registered stays."""
        self._accepting.cancel()
        await self._stopped.wait()
        self.drop_connections()

    async def start(self) -> None:
        """Listen again, where it has listened before."""
        assert self._nursery
        await self._nursery.start(self._accept)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        async with trio.open_nursery() as self._nursery:
            await self.start()
            try:
                yield self
            finally:
                self._nursery.cancel_scope.cancel()

    # answers

    async def _answer(self, request: Request) -> Response:
        path = request.path.removeprefix(self.prefix) if request.path.startswith(self.prefix) else ""
        for below, response in self._faults:
            if path.startswith(below):
                return response or await trio.sleep_forever()
        if path not in (_AGENT, _SERVICES) and not path.startswith(_HEALTH):
            raise _RefusalError(404, "Invalid URL path: not a recognized HTTP API endpoint\n")
        if request.method != "GET":
            raise _RefusalError(405, f"method {request.method} not allowed", ("Allow", "OPTIONS,GET"))
        options = self._options(request)
        if path == _AGENT:
            return self._agent(options)
        name = path.removeprefix(_HEALTH)
        query = self._services(request, options) if path == _SERVICES else self._health(request, options, name)
        return self._told(await self._run(query, options), options)

    def _options(self, request: Request) -> _Options:
        for name, feature in (("ns", "Namespaces"), ("partition", "Partitions")):
            if request.parameter(name) and not self._enterprise:
                text = f'Invalid query parameter: "{name}" - {feature} are a Consul Enterprise feature'
                raise _RefusalError(400, text)
        if {"stale", "consistent"} <= request.query.keys():
            raise _RefusalError(400, "Cannot specify ?stale with ?consistent, conflicting semantics.")
        try:
            wait = parse_wait(request.parameter("wait"))
        except ValueError:
            raise _RefusalError(400, "Invalid wait time") from None
        index = request.parameter("index") or "0"
        if not (index.isascii() and index.isdecimal()) or int(index) >= 2**64:
            raise _RefusalError(400, "Invalid index")
        datacenter = request.parameter("dc") or self._datacenter
        if datacenter not in self._catalogs:
            raise _RefusalError(500, "No path to datacenter")
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        secret = request.parameter("token") or request.headers.get("x-consul-token", "")
        secret = secret or (bearer.strip() if kind.lower() == "bearer" else "")
        token = _EVERYBODY if self._tokens is None else self._tokens.get(secret) if secret else _NOBODY
        if token is None:
            raise _RefusalError(403, "ACL not found")
        return _Options(
            datacenter,
            Tenancy(request.parameter("partition") or "default", request.parameter("ns") or "default"),
            int(index),
            wait,
            next((name for name in ("stale", "consistent") if name in request.query), "leader"),
            token,
            not secret,
            {pair.partition(":")[0]: pair.partition(":")[2] for pair in request.query.get("node-meta", ())},
        )

    def _agent(self, options: _Options) -> Response:
        name, catalog = "agent-1", self._catalogs[self._datacenter]
        if not options.token.agent:
            raise _RefusalError(403, f"Permission denied: token lacks permission 'agent:read' on \"{name}\"")
        member = {"Name": name, "Addr": "127.0.0.1", "Port": 8301, "Tags": {"dc": self._datacenter, "role": "consul"}}
        return _json(
            {
                "Config": {
                    "Datacenter": self._datacenter,
                    "PrimaryDatacenter": self._datacenter,
                    "NodeName": name,
                    "NodeID": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
                    "Revision": "0000000",
                    "Server": True,
                    "Version": "1.20.0",
                },
                "Coord": {"Vec": [0.0] * 8, "Error": 1.5, "Adjustment": 0, "Height": 1e-05},
                "Member": {**member, "Status": 1},
                "Stats": {"raft": {"last_log_index": str(catalog.index)}},
                "Meta": {"consul-network-segment": ""},
            }
        )

    def _services(self, request: Request, options: _Options) -> _Query:
        passes = _filter(request, CATALOG_FIELDS)

        def read(catalog: Catalog) -> tuple[object, bool]:
            found: dict[str, set[str]] = {}
            for record in catalog.services(options.tenancy):
                if options.node_meta.items() <= (record["NodeMeta"] or {}).items() and passes(record):
                    found.setdefault(record["ServiceName"], set()).update(record["ServiceTags"])
            seen = {name: sorted(tags) for name, tags in found.items() if options.token.reads(name)}
            return seen, len(seen) < len(found)

        by_node = bool(options.node_meta)
        return _Query(lambda catalog: catalog.index_of_services(options.tenancy, by_node=by_node), read)

    def _health(self, request: Request, options: _Options, name: str) -> _Query:
        if not name:
            raise _RefusalError(400, "Missing service name")
        try:
            only_passing = "passing" in request.query and _go_bool(request.parameter("passing") or "true")
        except ValueError:
            raise _RefusalError(400, "Invalid value for ?passing") from None
        passes = _filter(request, HEALTH_FIELDS)
        tags = {tag.lower() for tag in request.query.get("tag", ())}

        def read(catalog: Catalog) -> tuple[object, bool]:
            found = [
                entry
                for entry in catalog.instances(options.tenancy, name)
                if tags <= {tag.lower() for tag in entry["Service"]["Tags"]}
                and options.node_meta.items() <= (entry["Node"]["Meta"] or {}).items()
                and passes(entry)
            ]
            if not options.token.reads(name):
                return [], bool(found)
            if only_passing:
                found = [entry for entry in found if all(check["Status"] == "passing" for check in entry["Checks"])]
            return found, False

        return _Query(lambda catalog: catalog.index_of_service(options.tenancy, name), read)

    async def _run(self, query: _Query, options: _Options) -> _Result:
        if options.level != "stale":
            self._require_leader()
        catalog = self._catalogs[options.datacenter]
        result = query.result(catalog)
        if result.index <= options.index:
            # Up to a sixteenth of the time is added, so that not all come back at once.
            with trio.move_on_after(options.wait + self._rng.uniform(0, options.wait / 16)):
                await self._wait(_Waiter(query, options, catalog))
                if catalog is not self._catalogs[options.datacenter]:
                    return result  # what it looked at was abandoned for a snapshot
                if options.level == "consistent":
                    self._require_leader()
                return query.result(catalog)
        return result

    async def _wait(self, waiter: _Waiter) -> None:
        self._waiting.add(waiter)
        self._blocked.value = len(self._waiting)
        try:
            await waiter.released.wait()
        finally:
            self._waiting.discard(waiter)
            self._blocked.value = len(self._waiting)

    def _release(self) -> None:
        """Release the queries that have something to answer."""
        for waiter in tuple(self._waiting):
            catalog = self._catalogs[waiter.options.datacenter]
            if catalog is not waiter.catalog or waiter.query.index(catalog) > waiter.options.index:
                self._waiting.discard(waiter)
                waiter.released.set()
        self._blocked.value = len(self._waiting)

    def _require_leader(self) -> None:
        if self._leaderless_since is not None:
            raise _RefusalError(500, "No cluster leader")

    def _told(self, result: _Result, options: _Options) -> Response:
        since = self._leaderless_since
        contact = 0 if since is None else int((trio.current_time() - since) * 1000)
        index = 0 if self.index_zero else result.index
        # Who shows no token is not told that there is more.
        withheld = result.withheld and not options.anonymous
        return _json(
            result.value,
            ("X-Consul-Default-ACL-Policy", "allow" if self._tokens is None else "deny"),
            ("X-Consul-Effective-Consistency", options.level),
            *([] if self.omit_index_header else [("X-Consul-Index", str(index))]),
            ("X-Consul-KnownLeader", "true" if since is None else "false"),
            ("X-Consul-LastContact", str(contact)),
            ("X-Consul-Query-Backend", "blocking-query"),
            *([("X-Consul-Results-Filtered-By-ACLs", "true")] if withheld else []),
        )

    def _known(self, tenancy: Tenancy) -> Tenancy:
        if not self._enterprise and tenancy != DEFAULT:
            raise ValueError("partitions and namespaces are a feature of Consul Enterprise")
        return tenancy

    # connections

    async def _accept(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._accepting, self._stopped = trio.CancelScope(), trio.Event()
        with self._accepting:
            serve = trio.serve_listeners
            await serve(self._connect, listeners, handler_nursery=self._nursery, task_status=task_status)
        self._stopped.set()

    async def _connect(self, transport: trio.SocketStream) -> None:
        if self._stopped.is_set():  # accepted just before
            return
        self.accepted += 1
        self._present.add(transport)
        try:
            if self._tls is None:
                await self._serve(transport)
            else:
                await self._serve(trio.SSLStream(transport, self._tls, server_side=True, https_compatible=True))
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # clients come and go
        finally:
            self._present.discard(transport)

    async def _serve(self, stream: Stream) -> None:
        http = h11.Connection(h11.SERVER)
        while request := await self._read(http, stream):
            self.requests.append(request)
            self._asked.value = len(self.requests)
            with trio.CancelScope() as present:
                response = await self._answered(http, stream, request, present)
            if present.cancelled_caught:
                return
            await self._send(http, stream, response, zipped="gzip" in request.headers.get("accept-encoding", ""))
            if http.our_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _answered(
        self, http: h11.Connection, stream: Stream, request: Request, present: trio.CancelScope
    ) -> Response:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, http, stream, present)
            try:
                response = await self._answer(request)
            except _RefusalError as refusal:
                response = refusal.response
            nursery.cancel_scope.cancel()
        return response

    async def _watch(self, http: h11.Connection, stream: Stream, scope: trio.CancelScope) -> None:
        """Notice that the client has gone; what it says meanwhile is for later."""
        while received := await stream.receive_some():
            http.receive_data(bytes(received))
        scope.cancel()

    async def _read(self, http: h11.Connection, stream: Stream) -> Request | None:
        head: h11.Request | None = None
        try:
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    http.receive_data(bytes(await stream.receive_some()))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.ConnectionClosed):
                    return None
        except h11.RemoteProtocolError as error:
            await self._send(http, stream, Response(error.error_status_hint, b"Bad Request"), zipped=False)
            return None
        assert head
        path, _, query = head.target.decode("latin-1").partition("?")
        return Request(
            head.method.decode(),
            unquote(path),
            {name: tuple(values) for name, values in parse_qs(query, keep_blank_values=True).items()},
            {name.decode(): value.decode("latin-1") for name, value in head.headers},
        )

    async def _send(self, http: h11.Connection, stream: Stream, response: Response, *, zipped: bool) -> None:
        body = gzip.compress(response.body) if zipped else response.body
        encoding = [("Content-Encoding", "gzip")] if zipped else []
        headers = [*response.headers, ("Vary", "Accept-Encoding"), *encoding, ("Content-Length", str(len(body)))]
        head = h11.Response(status_code=response.status, headers=headers, reason=HTTPStatus(response.status).phrase)
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        await stream.send_all(b"".join(http.send(event) or b"" for event in events))


def _filter(request: Request, fields: Schema) -> Predicate:
    expression = request.parameter("filter")
    if not expression:
        return lambda record: True
    try:
        return parse_filter(expression, fields)
    except FilterError as error:
        # 500, though it is the client's fault: https://github.com/hashicorp/consul/issues/7338
        raise _RefusalError(500, f"Failed to create boolean expression evaluator: {error}") from error


def _json(value: object, *headers: Header) -> Response:
    return Response(
        200, json.dumps(value, separators=(",", ":")).encode(), (("Content-Type", "application/json"), *headers)
    )


def open_consul(
    *,
    datacenters: Iterable[str] = ("dc1",),
    prefix: str = "",
    enterprise: bool = True,
    tokens: Mapping[str, Token] | None = None,
    tls: ssl.SSLContext | None = None,
    rng: random.Random | None = None,
) -> AbstractAsyncContextManager[ConsulServer]:
    """Serve for the time of the block; connections that are left end with it.

    Args:
      datacenters: the first is the server's own.
      prefix: what all paths begin with, such as ``/consul``.
      enterprise: whether there are partitions and namespaces; the free edition refuses to hear of them.
      tokens: what each secret allows; without, there are no ACLs. With, who shows none may read nothing.
      tls: for HTTPS.
      rng: for the jitter of waiting times.
    """
    rng = rng or random.Random(0)
    return ConsulServer(datacenters, prefix, tokens, tls, rng, enterprise=enterprise).serving()
