"""Updates as JSON lines: one update a line, on a file descriptor."""

from __future__ import annotations

import json
from collections.abc import Mapping

import trio

from ..snapshots import Changes, Update
from ..targets import TargetGroup
from .descriptor import write_blocking

__all__ = ["JsonLines", "encode_update"]


def _group(group: TargetGroup) -> dict[str, object]:
    return {
        "source": group.source,
        "targets": [dict(target) for target in group.targets],
        "labels": dict(group.labels),
    }


def encode_update(manager: str, revision: int, changes: Changes, stale: Mapping[str, float]) -> bytes:
    """Return one update as a line of JSON: what changed in each set since the update before.

    ``{"revision": 7, "manager": "scrape", "sets": {SET: {"updated": [{"source": …, "targets": [{…}],
    "labels": {…}}], "removed": [source, …]}}}``, and ``"stale": {SET: Unix time}`` if sets show something that comes
    from the state file, of which that time was the last when it was known to be right.
    """
    sets = {
        name: {"updated": [_group(group) for group in found.updated], "removed": list(found.removed)}
        for name, found in changes.items()
    }
    document = {"revision": revision, "manager": manager, "sets": sets, **({"stale": stale} if stale else {})}
    line = json.dumps(document, ensure_ascii=False)
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
