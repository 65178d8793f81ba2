"""Updates as JSON lines: one update a line, on a file descriptor."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio

from ..snapshots import Changes, Update
from ..targets import TargetGroup
from .descriptor import write_blocking

__all__ = ["GroupEncoder", "JsonLines", "encode_group", "encode_update"]


def encode_group(group: TargetGroup) -> str:
    """Return one group as JSON."""
    targets = [dict(target) for target in group.targets]
    return _json({"source": group.source, "targets": targets, "labels": dict(group.labels)})


class GroupEncoder:
    """Does what :func:`encode_group` does, once for groups that are asked for again and again. Any thread may ask.

    Args:
      most: how many characters are kept, before all are forgotten and it begins anew. Groups, not only their text, are
        held for as long; they take some times more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: dict[int, tuple[TargetGroup, str]] = {}  # by identity, which the group keeps
        self._size = 0

    def __call__(self, group: TargetGroup) -> str:
        """Return the group as JSON."""
        known = self._known.get(id(group))
        if known is None:
            known = group, encode_group(group)
            self._keep(known)
        return known[1]

    def _keep(self, encoded: tuple[TargetGroup, str]) -> None:
        with self._lock:
            if self._size + len(encoded[1]) > self._most:
                self._known, self._size = {}, 0
            if id(encoded[0]) not in self._known and len(encoded[1]) <= self._most:
                self._known[id(encoded[0])] = encoded
                self._size += len(encoded[1])

    def forget(self) -> None:
        """Let go of all groups."""
        with self._lock:
            self._known, self._size = {}, 0


def encode_update(
    manager: str,
    revision: int,
    changes: Changes,
    stale: Mapping[str, float],
    encode: Callable[[TargetGroup], str] = encode_group,
) -> bytes:
    """Return one update as a line of JSON: what changed in each set since the update before.

    ``{"revision": 7, "manager": "scrape", "sets": {SET: {"updated": [{"source": …, "targets": [{…}],
    "labels": {…}}], "removed": [source, …]}}}``, and ``"stale": {SET: Unix time}`` if sets show something that comes
    from the state file, of which that time was the last when it was known to be right.

    Args:
      manager: its name.
      revision: of the update.
      changes: what differs, by set.
      stale: as :attr:`Snapshot.stale`.
      encode: encodes one group.
    """
    sets = []
    for name, found in changes.items():
        updated, removed = ", ".join(map(encode, found.updated)), _json(list(found.removed))
        sets.append(f'{_json(name)}: {{"updated": [{updated}], "removed": {removed}}}')
    more = f', "stale": {_json(stale)}' if stale else ""
    line = f'{{"revision": {revision}, "manager": {_json(manager)}, "sets": {{{", ".join(sets)}}}{more}}}\n'
    return line.encode("utf-8", "replace")


_json: Final = partial(json.dumps, ensure_ascii=False)


class JsonLines:
    """Writes updates of any number of managers to a file descriptor, a whole line at a time.

    Encoding and writing happen in a thread: a reader that does not read holds up its own updates, which melt into one
    meanwhile, and nothing else.

    Args:
      fd: where to write; not closed.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # not the application's threads

    async def write(self, manager: str, update: Update) -> None:
        """Write one update.

        Raises:
          BrokenPipeError: nobody reads any more.

        Cancelled while the reader does not read, part of the line may have been written.
        """
        changes = update.changes  # computed here, because an update is not safe to use from two threads
        async with self._turn:
            await trio.to_thread.run_sync(
                self._write,
                manager,
                update.revision,
                changes,
                update.snapshot.stale,
                abandon_on_cancel=True,
                limiter=self._limiter,
            )

    def _write(self, manager: str, revision: int, changes: Changes, stale: Mapping[str, float]) -> None:
        write_blocking(self._fd, encode_update(manager, revision, changes, stale))
