"""Looks up names, again and again.

Each name is a part of its own, so one that nobody answers for delays no other; :mod:`trio_sd.polling` tells the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ...extras import require
from ...polling import Polling
from ...targets import TargetGroup

if TYPE_CHECKING:
    from .config import RecordType
    from .lookup import Resolver

__all__ = ["DNSDiscovery"]

_DEADLINE: Final = 30.0  # seconds for all servers and all domains of the search list, each of which takes up to two


class DNSDiscovery:
    """Looks up the names of one configuration.

    Args:
      names: what to look up.
      record_type: of the records.
      port: of the targets, but those of SRV records.
      interval: seconds from one lookup of a name to the next.
      opener: opens what looks names up, which all discoverers of a manager share that have the same; it asks the
        system's servers if ``None``.
    """

    def __init__(
        self,
        names: Sequence[str],
        record_type: RecordType,
        port: int,
        interval: float,
        *,
        opener: Callable[[], AbstractAsyncContextManager[Resolver]] | None = None,
    ) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._type = record_type
        self._port = port
        self._interval = interval
        self._opener = opener

    async def poll(self, polling: Polling) -> None:
        """Look up until cancelled. Cancellation leaves no socket open."""
        require("dns", "DNS discovery", "dns", package="dnspython")
        from .lookup import open_resolver
        from .records import target_group

        for name in self._names:
            polling.add(name, shown=f"{name} {self._type}")
        opener = self._opener or open_resolver
        key = ("DNS resolver", self._opener) if self._opener else ("DNS resolver",)
        async with (
            polling.options.resources.use(key, opener) as resolver,
            trio.open_nursery() as nursery,
        ):

            async def look(name: str) -> Sequence[TargetGroup]:
                found = await resolver.look_up(name, self._type)
                polling.counters["tcp_lookups"] += found.tcp
                polling.note(name, found.note)
                group = target_group(name, self._port, found.records)
                return (group,) if group.targets else ()

            poll = partial(polling.poll, interval=self._interval, deadline=max(self._interval, _DEADLINE))
            for name in self._names:
                nursery.start_soon(poll, name, partial(look, name))
