"""What is known of the znodes below some roots: from what was read to the target groups that changed. No I/O.

Every znode is a source of its own, as in Prometheus. Three rules decide what is shown:

- A znode that is gone takes its group with it, also if another one of its name has taken its place.
- A znode that can't be used, because its data don't parse or may not be read, is a *trouble*. It keeps the group that
  it had, in this run or in the one before; if it had none, it is left out. A znode that never had data is nothing to
  talk about: the parents of members are such.
- Removal needs proof: a znode is gone when its own read said so, or when a *full read* was completed without meeting
  it, or any znode above it that may not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Final

from ...messages import quote
from ...targets import NO_LABELS, TargetGroup
from .members import MemberError, Parse
from .protocol import NO_AUTH, Data, Refusal

__all__ = ["Tree", "Trouble", "above", "excerpt"]

_UNREAD: Final = -1  # instead of a transaction's number: the data are not known


@dataclass(frozen=True, slots=True)
class Trouble:
    """A znode that can't be used.

    Attributes:
      path: the znode.
      reason: what is wrong with it.
      stale: whether its last good group is still shown; otherwise it is left out.
      unread: whether it could not be read; otherwise its data make no sense.
    """

    path: str
    reason: str
    stale: bool
    unread: bool = False

    def __str__(self) -> str:
        consequence = "its last good target is still shown" if self.stale else "it is left out"
        return f"znode {quote(self.path)}: {self.reason}; {consequence}"


@dataclass(slots=True)
class _Znode:
    mzxid: int  # the transaction that made its data what they are
    group: TargetGroup | None  # what is shown of it
    met: int  # the number of the full read that last met it


class Tree:
    """The znodes below the roots of one discoverer.

    Args:
      parse: makes labels of a znode's data and path.
      chroot: what stands before each path on the server, and is not shown; empty if nothing does.
      last_known: returns, by source, the groups that the run before this one has found.
    """

    def __init__(
        self,
        parse: Parse,
        chroot: str = "",
        last_known: Callable[[], Mapping[str, TargetGroup]] = lambda: MappingProxyType({}),
    ) -> None:
        self._parse = parse
        self._chroot = chroot
        self._last_known = last_known
        self._known: Mapping[str, TargetGroup] = MappingProxyType({})
        self._znodes: dict[str, _Znode] = {}
        self._changed: dict[str, TargetGroup | None] = {}  # what was last taken of those that may differ from it
        self._troubles: dict[str, Trouble] = {}
        self._new_troubles: dict[str, None] = {}
        self._ended_troubles: list[Trouble] = []
        self._unread: set[str] = set()  # the znodes whose data could not be read
        self._members = 0
        self._full_read = 0
        self._trusting = True

    def __contains__(self, path: str) -> bool:
        return path in self._znodes

    def has_read(self, path: str) -> bool:
        """Tell whether a znode is there and could be read; what is below it is known, then."""
        return path in self._znodes and path not in self._unread

    def __len__(self) -> int:
        return len(self._znodes)

    @property
    def members(self) -> int:
        """How many znodes have a group."""
        return self._members

    @property
    def troubles(self) -> Collection[Trouble]:
        """The znodes that can't be used at present."""
        return self._troubles.values()

    @property
    def changed_paths(self) -> Collection[str]:
        """The znodes whose group is not what was last taken."""
        return [path for path, taken in self._changed.items() if self._group(path) != taken]

    def take_new_troubles(self) -> list[Trouble]:
        """Return each trouble once, when it is new."""
        new, self._new_troubles = self._new_troubles, {}
        return [self._troubles[path] for path in new]

    def take_ended_troubles(self) -> list[Trouble]:
        """Return each trouble that was taken once more, when it is over."""
        ended, self._ended_troubles = self._ended_troubles, []
        return ended

    def take_changes(self) -> list[TargetGroup]:
        """Return the groups that differ from what was last taken; one without targets for each that is gone."""
        changed = self.changed_paths
        self._changed = {}
        return [self._group(path) or TargetGroup(self._source(path), ()) for path in changed]

    def take_all(self) -> list[TargetGroup]:
        """Return all groups, as what was taken."""
        self._changed = {}
        return [znode.group for znode in self._znodes.values() if znode.group is not None]

    # What was read

    def put(self, path: str, data: Data) -> None:
        """Take what a znode was found to be."""
        znode = self._znodes.get(path)
        if znode is not None and znode.mzxid == data.mzxid and self._trusting:
            znode.met = self._full_read
            return
        group, reason = self._parsed(path, data.content)
        if group is not None:
            self._no_trouble(path)
            self._set(path, data.mzxid, group)
            return
        if znode is None:
            last_good = self._known.get(self._source(path))
        else:
            last_good = znode.group if data.czxid <= znode.mzxid or path in self._unread else None
        if reason or last_good is not None:
            self._trouble(path, reason or "its data are empty", stale=last_good is not None)
        else:
            self._no_trouble(path)
        self._set(path, data.mzxid, last_good)

    def refuse(self, path: str, refusal: Refusal) -> None:
        """Take that the server did not let a znode be read."""
        znode = self._znodes.get(path)
        group = znode.group if znode is not None else self._known.get(self._source(path))
        reason = "the server does not allow to read it" if refusal.code == NO_AUTH else str(refusal)
        self._trouble(path, reason, stale=group is not None, unread=True)
        self._set(path, _UNREAD, group)
        self._unread.add(path)

    def remove(self, path: str) -> None:
        """Take that a znode is not there."""
        znode = self._znodes.pop(path, None)
        self._unread.discard(path)
        if znode is not None and znode.group is not None:
            self._members -= 1
            self._changed.setdefault(path, znode.group)
        self._no_trouble(path)

    def keep_children(self, path: str, names: Collection[str]) -> None:
        """Take the names of all that is right below a znode.

        What is gone tells so itself, by a watch of its own, but for a znode that may not be read.
        """
        for child in [child for child in self._unread if (child.rpartition("/")[0] or "/") == path]:
            if child.rpartition("/")[2] not in names:
                self.remove(child)

    def begin_full_read(self, *, trusting: bool = True) -> None:
        """Begin to prove which znodes are gone; a read that is not completed proves nothing.

        Args:
          trusting: whether data that were changed last by the same transaction are the same. They may be other ones
            where the servers have lost everything, and count from the beginning again.
        """
        if not self._full_read:
            self._known = self._last_known()
        self._full_read += 1
        self._trusting = trusting

    def end_full_read(self) -> None:
        """Remove the znodes that the full read did not meet, but those below one that may not be read."""
        self._trusting = True
        unmet = [path for path, znode in self._znodes.items() if znode.met != self._full_read]
        unread = {path for path in self._unread if self._znodes[path].met == self._full_read}
        for path in unmet:
            if unread.isdisjoint(above(path)):
                self.remove(path)
        if unread and self._known:
            self._keep_known_below(unread)
        self._known = MappingProxyType({})

    def _keep_known_below(self, unread: set[str]) -> None:
        """Show what the run before this one has found below znodes that may not be read any more."""
        for source, group in self._known.items():
            path = self._chroot + source if source != "/" else self._chroot or "/"
            if path not in self._znodes and not unread.isdisjoint(above(path)):
                self._trouble(path, "a znode above it may not be read", stale=True, unread=True)
                self._set(path, _UNREAD, group)
                self._unread.add(path)

    # How it is kept

    def _parsed(self, path: str, content: bytes) -> tuple[TargetGroup | None, str]:
        """Return the group that ``content`` makes, and what is wrong with it."""
        if not content:
            return None, ""
        source = self._source(path)
        try:
            return TargetGroup(source, (self._parse(content, source),), NO_LABELS), ""
        except MemberError as error:
            return None, str(error)

    def _set(self, path: str, mzxid: int, group: TargetGroup | None) -> None:
        self._unread.discard(path)
        znode = self._znodes.get(path)
        if znode is None:  # no group is compared with None: that takes long, ten thousand times
            self._znodes[path] = _Znode(mzxid, group, self._full_read)
            if group is not None:
                self._members += 1
                self._changed.setdefault(path, None)
            return
        if group != znode.group:
            self._members += (group is not None) - (znode.group is not None)
            self._changed.setdefault(path, znode.group)
        znode.mzxid, znode.group, znode.met = mzxid, group, self._full_read

    def _trouble(self, path: str, reason: str, *, stale: bool, unread: bool = False) -> None:
        if path not in self._troubles:
            self._new_troubles[path] = None
        self._troubles[path] = Trouble(self._source(path), reason, stale, unread)

    def _no_trouble(self, path: str) -> None:
        if not self._troubles or (trouble := self._troubles.pop(path, None)) is None:
            return
        if path in self._new_troubles:
            del self._new_troubles[path]
        else:
            self._ended_troubles.append(trouble)

    def _group(self, path: str) -> TargetGroup | None:
        znode = self._znodes.get(path)
        return None if znode is None else znode.group

    def _source(self, path: str) -> str:
        return path[len(self._chroot) :] or "/"


def above(path: str) -> Iterator[str]:
    """Yield the paths above ``path``, the nearest first."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def excerpt(troubles: Collection[Trouble], length: int = 10) -> tuple[str, ...]:
    """Return what to tell of many troubles: the first few of them, and how many more there are."""
    texts = [str(trouble) for trouble in islice(troubles, length)]
    return (*texts, f"{len(troubles) - length} more znodes like that") if len(troubles) > length else tuple(texts)
