"""What changed lately, source by source."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from ..manager import Manager
from ..snapshots import SetChanges, Snapshot, Update
from ..subscription import Throttle
from ..targets import ADDRESS_LABEL, TargetGroup
from .catalogue import SetKey

__all__ = ["Change", "Recent"]

_REMEMBERED: Final = 50
_TOLD: Final = 10  # sources of a set in one update that are told one by one
_ADDRESSES: Final = 3
_PACE: Final = Throttle(0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Change:
    """What changed at one source of a set.

    Attributes:
      time: when, as Unix time.
      key: the set.
      came: how many targets came.
      went: how many went.
      what: their addresses, some of them.
      source: the source; nothing if it were many.
    """

    time: float
    key: SetKey
    came: int
    went: int
    what: str
    source: str


class Recent:
    """The latest changes.

    Attributes:
      changes: the latest one first.
      news: set when something changes; then there is another one.
    """

    def __init__(self) -> None:
        self.changes: deque[Change] = deque(maxlen=_REMEMBERED)
        self.news = trio.Event()

    async def follow(self, name: str, manager: Manager) -> None:
        """Note what changes in the manager of that name, until it is closed."""
        before: Snapshot | None = None
        with suppress(trio.ClosedResourceError):  # it was closed before
            async with manager.subscribe(name="page", throttle=_PACE) as updates:
                async for update in updates:
                    if before is not None:
                        self.changes.extendleft(_changes(name, before, update))
                    before = update.snapshot
                    self.news.set()
                    self.news = trio.Event()


def _changes(manager: str, before: Snapshot, update: Update) -> Iterable[Change]:
    now, after = time.time(), update.snapshot
    for set_name, found in update.changes.items():
        key = manager, set_name
        sources = dict.fromkeys([*[group.source for group in found.updated], *found.removed])
        if len(sources) > _TOLD:
            yield _many(now, key, found, before, after)
        else:
            for source in sources:
                yield _one(now, key, source, before, after)


def _one(now: float, key: SetKey, source: str, before: Snapshot, after: Snapshot) -> Change:
    had, has = (_groups(snapshot, key[1], source) for snapshot in (before, after))
    # With the labels of their groups, because these may be what changed.
    old, new = ({(target, group.labels) for group in groups for target in group.targets} for groups in (had, has))
    came, went = new - old, old - new
    shown = sorted({target.get(ADDRESS_LABEL, "?") for target, _ in came or went})
    more = f" and {len(shown) - _ADDRESSES:,} more" if len(shown) > _ADDRESSES else ""
    return Change(now, key, len(came), len(went), ", ".join(islice(shown, _ADDRESSES)) + more, source)


def _groups(snapshot: Snapshot, set_name: str, source: str) -> list[TargetGroup]:
    providers = snapshot.layout.providers.get(set_name, ())
    found = [snapshot.groups_of(provider).get(source) for provider in providers]
    return [group for group in found if group is not None]


def _many(now: float, key: SetKey, found: SetChanges, before: Snapshot, after: Snapshot) -> Change:
    had, has = (snapshot.target_count(key[1]) if key[1] in snapshot else 0 for snapshot in (before, after))
    told = {"new or changed": len(found.updated), "gone": len(found.removed)}
    what = ", ".join([f"{count:,} groups {kind}" for kind, count in told.items() if count])
    return Change(now, key, max(0, has - had), max(0, had - has), what, "")
