"""Updates as JSON lines: one update a line, on a file descriptor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import trio

from ..store import SetChanges, Update
from ..targets import TargetGroup

__all__ = ["JsonLines", "encode_update"]


def _group(group: TargetGroup) -> dict[str, object]:
    return {
        "source": group.source,
        "targets": [dict(target) for target in group.targets],
        "labels": dict(group.labels),
    }


def encode_update(manager: str, revision: int, changes: Mapping[str, SetChanges]) -> bytes:
    """Return one update as a line of JSON: what changed in each set since the update before.

    ``{"revision": 7, "manager": "scrape", "sets": {SET: {"updated": [{"source": …, "targets": [{…}],
    "labels": {…}}], "removed": [source, …]}}}``
    """
    sets = {
        name: {"updated": [_group(group) for group in found.updated], "removed": list(found.removed)}
        for name, found in changes.items()
    }
    line = json.dumps({"revision": revision, "manager": manager, "sets": sets}, ensure_ascii=False)
    return line.encode("utf-8", "replace") + b"\n"


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

    async def write(self, manager: str, update: Update) -> None:
        """Write one update.

        Raises:
          BrokenPipeError: nobody reads any more.

        Cancelled while the reader does not read, part of the line may have been written.
        """
        changes = update.changes  # worked out here: an update belongs to the thread that reads the store
        async with self._turn:
            await trio.to_thread.run_sync(self._write, manager, update.revision, changes, abandon_on_cancel=True)

    def _write(self, manager: str, revision: int, changes: Mapping[str, SetChanges]) -> None:
        rest = memoryview(encode_update(manager, revision, changes))
        while rest:
            rest = rest[os.write(self._fd, rest) :]
