"""Watches services in Consul.

Theory of operation
===================

One part tells which services there are: the catalog, which is watched by a blocking query, or the configuration, where
it names them and says nothing that only the catalog knows. Each service is a part of its own, watched by a blocking
query for its instances. See :mod:`.query` for what the index means, and :mod:`trio_sd.polling` for what a part is.

- A query is sent as soon as the one before is answered, but no more often than once in the refresh interval; only the
  second one comes somewhere within the first interval. So news are there at once, if it was quiet for that long.
- A service that leaves the catalog takes its targets with it. One that has no instances is an empty group.
- After a failure the next query does not block: what happened meanwhile is found out at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from ...errors import DiscoveryError
from ...extras import require
from ...http_config import sendable
from ...messages import one_line
from ...polling import CATALOG, Polling
from ...secrets import Secret
from ...targets import TargetGroup
from .query import AT_ONCE, DEADLINE, Place, Position, index_of
from .services import parse_agent, parse_catalog, parse_instances

if TYPE_CHECKING:
    from ...http_client import Answer, HTTPClient
    from .config import ConsulSDConfig

__all__ = ["ConsulDiscovery"]

T = TypeVar("T")

_LOOK: Final = 3 * DEADLINE  # a look is three queries at the most, each of which has a deadline of its own
_SHOWN: Final = 200  # characters of what Consul says of an error


class ConsulDiscovery:
    """Watches the services that a configuration wants.

    Args:
      config: what it says.
      place: which Consul to ask.
    """

    def __init__(self, config: ConsulSDConfig, place: Place) -> None:
        self._config = config
        self._place = place

    async def poll(self, polling: Polling) -> None:
        """Watch until cancelled. Cancellation leaves no connection that others do not use."""
        require("httpcore2", "Consul discovery", "http")
        from ...http_client import shared_http_client

        config = self._config
        polling.add(CATALOG, shown=f"catalog of {self._place.shown}")
        async with (
            shared_http_client(polling.options.resources, config) as client,
            trio.open_nursery() as nursery,
        ):
            run = _Run(config, _Consul(client, config, polling), self._place, polling, nursery)
            if config.services and not config.tags and not config.filter:
                await polling.find(CATALOG, run.watch_configured_services, deadline=_LOOK)
                polling.remove(CATALOG)
            else:
                interval = config.refresh_interval.seconds
                await polling.poll(CATALOG, run.look_at_catalog, interval=interval, deadline=_LOOK)


class _Consul:
    """Asks Consul."""

    def __init__(self, client: HTTPClient, config: ConsulSDConfig, polling: Polling) -> None:
        self._client = client
        self._credentials: Sequence[tuple[str, Secret]] = ()
        if config.token:
            self._credentials = (("X-Consul-Token", sendable("X-Consul-Token", config.token, "the field token")),)
        self._max_bytes = polling.options.limits.http_body_bytes
        self._counters = polling.counters

    async def get(self, url: str, deadline: float) -> Answer:
        """Return the answer to one query, which has so many seconds.

        Raises:
          DiscoveryError: there is none, or not the one that was hoped for.
        """
        answer = await self._client.get(
            url,
            headers=(("Accept", "application/json"),),
            credentials=self._credentials,
            deadline=deadline,
            max_bytes=self._max_bytes,
        )
        if answer.status != 200:
            # Consul says in the body what is wrong, in a line.
            said = one_line(answer.body[:_SHOWN].decode("utf-8", "replace").strip())
            error = answer.unexpected()
            raise DiscoveryError(f"{error}: {said}" if said else str(error), retry_after=error.retry_after)
        return answer


class _Watch:
    """Follows what one query finds.

    Args:
      consul: whom to ask.
      url: makes the URL of a query that has these parameters besides its own.
      allow_stale: whether any server may answer.
      note: takes what an operator should know of the answers.
    """

    def __init__(
        self,
        consul: _Consul,
        url: Callable[[Sequence[tuple[str, str]]], str],
        note: Callable[[str], None],
        *,
        allow_stale: bool,
    ) -> None:
        self._consul = consul
        self._url = url
        self._note = note
        self._allow_stale = allow_stale
        self._position = Position()

    async def next(self, decode: Callable[[bytes], T]) -> T | None:
        """Return what is found, once that may have changed; ``None`` if it has not for some time.

        Raises:
          DiscoveryError: it can't be found out.
        """
        position = self._position
        self._position = position.anew()  # where it stays, should anything fail
        began = trio.current_time()
        deadline = DEADLINE if position.index else AT_ONCE
        answer = await self._consul.get(self._url(position.query(stale=self._allow_stale)), deadline)
        index = index_of(answer.header("x-consul-index"))
        if self._allow_stale and position.goes_back(index):
            answer = await self._consul.get(self._url(Position().query(stale=False)), AT_ONCE)
            index = index_of(answer.header("x-consul-index"))
        found = await answer.decoded(decode) if position.is_news(index) else None
        await trio.lowlevel.checkpoint_if_cancelled()  # a part may have gone while it was decoded
        self._position = position.after(index, trio.current_time() - began)
        self._note("; ".join(_notes(answer)))
        return found


def _notes(answer: Answer) -> Iterable[str]:
    if answer.header("x-consul-results-filtered-by-acls") == "true":
        yield "the token may not see everything: results are filtered by ACLs"
    if answer.header("x-consul-knownleader") == "false":
        yield "the server knows no leader: what it tells may be old"


class _Run:
    """One run of the discoverer: the services that are watched."""

    def __init__(
        self, config: ConsulSDConfig, consul: _Consul, place: Place, polling: Polling, nursery: trio.Nursery
    ) -> None:
        self._config = config
        self._consul = consul
        self._place = place
        self._polling = polling
        self._nursery = nursery
        self._datacenter = place.datacenter
        self._watches: dict[str, trio.CancelScope] = {}  # by service
        query = [*_node_meta(config), *((("filter", config.filter),) if config.filter else ())]
        self._catalog = self._watch(CATALOG, ("catalog", "services"), query)

    def _watch(self, part: str, path: Sequence[str], query: Sequence[tuple[str, str]]) -> _Watch:
        def url(more: Sequence[tuple[str, str]]) -> str:
            return self._place.url(*path, query=(*query, *more))

        note = partial(self._polling.note, part)
        return _Watch(self._consul, url, note, allow_stale=self._config.allow_stale)

    async def watch_configured_services(self) -> Sequence[TargetGroup]:
        """Begin to watch what the configuration names."""
        await self._learn_datacenter()
        self._watch_these(dict.fromkeys(self._config.services))
        return ()

    async def look_at_catalog(self) -> Sequence[TargetGroup] | None:
        """Wait until the catalog may have changed, and watch the services that it has now."""
        await self._learn_datacenter()
        services = await self._catalog.next(parse_catalog)
        if services is None:
            return None
        self._watch_these([name for name, tags in services.items() if self._is_wanted(name, tags)])
        return ()

    async def _learn_datacenter(self) -> None:
        if not self._datacenter:
            answer = await self._consul.get(self._place.url("agent", "self"), AT_ONCE)
            self._datacenter = await answer.decoded(parse_agent)

    def _is_wanted(self, service: str, tags: Sequence[str]) -> bool:
        config = self._config
        return (not config.services or service in config.services) and set(config.tags) <= set(tags)

    def _watch_these(self, services: Iterable[str]) -> None:
        """Begin to watch those that are new, and end it with those that are gone."""
        gone = self._watches.keys() - services
        for service in gone:
            self._watches.pop(service).cancel()
            self._polling.remove(service)
        for service in services:
            if service not in self._watches:
                self._watches[service] = trio.CancelScope()
                self._polling.add(service, shown=f"service {service} of {self._place.shown}")
                self._nursery.start_soon(self._watch_service, service, self._watches[service])

    async def _watch_service(self, service: str, scope: trio.CancelScope) -> None:
        config = self._config
        query = [
            *(("tag", tag) for tag in config.tags),
            *_node_meta(config),
            *((("filter", config.health_filter),) if config.health_filter else ()),
        ]
        watch = self._watch(service, ("health", "service", service), query)
        decode = partial(
            parse_instances, service=service, datacenter=self._datacenter, tag_separator=config.tag_separator
        )

        async def look() -> Sequence[TargetGroup] | None:
            group = await watch.next(decode)
            return None if group is None else (group,)

        with scope:
            await self._polling.poll(service, look, interval=config.refresh_interval.seconds, deadline=_LOOK)


def _node_meta(config: ConsulSDConfig) -> Iterable[tuple[str, str]]:
    return (("node-meta", f"{name}:{value}") for name, value in config.node_meta.items())
