"""A live picture of what managers show, on a terminal; elsewhere one picture below the other.

On a terminal the picture fills the alternate screen, as ``top`` does, and is drawn again when something changes and
every second, because it tells ages. The last picture stays on the normal screen at the end. All writing is done in
threads: a terminal that is held (Ctrl-S) holds nothing else. For the same reason log lines do not go to that terminal
directly while the picture is there, but become part of it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import trio
from rich.cells import set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from ..manager import Manager, ManagerStatistics
from ..snapshots import Snapshot, Update
from ..targets import META_LABEL_PREFIX
from .descriptor import write
from .health import Reloads
from .logfmt import BriefFormatter
from .table import Event, addresses, events_table, providers_table, render, targets_table
from .text import printable

__all__ = ["Screen"]

_FRESH = 5.0  # seconds for which a change is marked
_LOG_LINES = 5  # that have room in any case
_LAST_LOG_LINES = 50  # that are left on the normal screen
_FARAWAY = 200  # lines of a picture that is not on a terminal
_UNLIMITED = 10_000  # columns of it
_WIDE = 120  # columns from which on more is told of providers
_PATIENCE = 0.5  # seconds for the last picture

_ENTER = b"\x1b[?1049h\x1b[?25l"  # alternate screen, no cursor
_LEAVE = b"\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """Draws what managers show and how their providers fare.

    Args:
      title: stands above the tables; the configuration's path.
      managers: whose state to draw.
      reloads: returns how reloads went.
      fd: where to draw.
      relabel: whether to show targets as they are after relabeling.
    """

    def __init__(
        self,
        title: str,
        managers: Sequence[Manager],
        reloads: Callable[[], Reloads],
        fd: int = 1,
        *,
        relabel: bool = False,
    ) -> None:
        self._title = title
        self._managers = managers
        self._reloads = reloads
        self._fd = fd
        self._relabel = relabel
        self._shown: dict[str, Snapshot] = {}  # after relabeling, by manager
        self._terminal = os.isatty(fd) and os.environ.get("TERM") not in (None, "dumb")
        self._caption = ""
        self._events: deque[Event] = deque(maxlen=500)
        self._changed: dict[tuple[str, str], float] = {}
        self._log: deque[str] = deque(maxlen=_LAST_LOG_LINES)
        self._set_dirty, self._dirty = trio.open_memory_channel[None](1)

    def caption(self, text: str) -> None:
        """Show a line of text above the tables from now on."""
        self._caption = text
        self._redraw_soon()

    async def run(self) -> None:
        """Draw until cancelled.

        Raises:
          BrokenPipeError: the terminal has gone, or nobody reads any more.
        """
        async with trio.open_nursery() as nursery:
            for manager in self._managers:
                nursery.start_soon(self._follow, manager)
            if self._terminal:
                with self._taking_log_lines():
                    await self._draw_in_place()
            else:
                await self._draw_one_below_the_other()

    async def _follow(self, manager: Manager) -> None:
        async with manager.subscribe(relabel=self._relabel, name="screen") as updates:
            first = True
            async for update in updates:
                if self._relabel:
                    self._shown[manager.name] = update.snapshot
                self._note(update, mark=not first)
                first = False
                self._redraw_soon()

    def _redraw_soon(self) -> None:
        with suppress(trio.WouldBlock):
            self._set_dirty.send_nowait(None)

    def _note(self, update: Update, *, mark: bool) -> None:
        now = trio.current_time()
        self._changed = {key: since for key, since in self._changed.items() if now - since < _FRESH}
        for set_name, found in update.changes.items():
            for group in found.updated:
                if mark:
                    self._changed[set_name, group.source] = now
                self._events.append(Event(now, "+", set_name, group.source, addresses(group)))
            for source in found.removed:
                self._events.append(Event(now, "-", set_name, source, ""))

    @contextmanager
    def _taking_log_lines(self) -> Iterator[None]:
        """Show what is logged in the picture, if it would go to a terminal otherwise."""
        root = logging.getLogger()
        before = root.handlers[:]
        if not os.isatty(2) or not before:
            yield
            return
        handler = _LogLines(self._log, self._redraw_soon)
        handler.setFormatter(BriefFormatter())
        root.handlers[:] = [handler]
        try:
            yield
        finally:
            root.handlers[:] = before

    async def _draw_one_below_the_other(self) -> None:
        async for _ in self._dirty:
            text = render(self.picture(_FARAWAY), width=_UNLIMITED, terminal=False)
            lines = [line.rstrip() for line in text.splitlines()]
            await write(self._fd, "\n".join([*lines, "", ""]).encode())

    async def _draw_in_place(self) -> None:
        try:
            await write(self._fd, _ENTER)
            while True:
                frame = _HOME + "".join(f"{line}{_END_OF_LINE}\r\n" for line in self._lines()) + _END_OF_SCREEN
                await write(self._fd, frame.encode())
                with trio.move_on_after(1.0):  # the ages go on
                    await self._dirty.receive()
        except OSError as error:  # a terminal that was closed; SIGHUP, which also says so, means "reload" here
            raise BrokenPipeError(*error.args) from error
        finally:
            # Shielded, because the terminal must not be left as it is; bounded, because it may be held.
            with trio.move_on_after(_PATIENCE, shield=True), suppress(OSError):
                left = [*self._lines(log=False), *map(printable, self._log.copy())]
                await write(self._fd, _LEAVE + "".join(f"{line}\r\n" for line in left).encode())

    def _lines(self, *, log: bool = True) -> list[str]:
        """Return the lines of a picture that fits the terminal, the last of them left free for the cursor.

        What was logged last is below it, if ``log``: some lines in any case, and more where there is room.
        """
        size = os.get_terminal_size(self._fd)
        width, height = max(20, size.columns or 80), size.lines or 24  # a terminal may not know its size
        # A copy, because threads log, too.
        logged = [set_cell_size(printable(line), width).rstrip() for line in self._log.copy()] if log else []
        least = min(len(logged), _LOG_LINES, max(0, height - 2))
        text = render(self.picture(height - least, wide=width >= _WIDE), width=width, terminal=True)
        lines = text.splitlines()[: max(1, height - 1 - least)]
        room = max(least, height - 1 - len(lines))
        return [*lines, *logged[max(0, len(logged) - room) :]]

    def picture(self, height: int, *, wide: bool = False) -> RenderableType:
        """Return what to draw at this moment, in about ``height`` lines: all targets, or the latest changes."""
        now = trio.current_time()
        statistics = [manager.statistics() for manager in self._managers]
        snapshots = [*self._shown.values()] if self._relabel else [manager.snapshot() for manager in self._managers]
        total = sum(snapshot.target_count(name) for snapshot in snapshots for name in snapshot)
        above = [self._headline(statistics, total), *self._notices(statistics), self._subscribers(statistics)]
        room = height - len(above) - 5  # two headings, two empty lines, one for the cursor
        lower: list[RenderableType]
        providers = providers_table(statistics, now, rows=max(3, room // 3), wide=wide)
        left = max(3, room - providers.row_count)
        if total <= left:
            marked = frozenset(key for key, since in self._changed.items() if now - since < _FRESH)
            # Of final labels those in underscores are for the scraper, and the same for nearly all.
            hidden = "__" if self._relabel else META_LABEL_PREFIX
            lower = [targets_table(snapshots, marked, hidden=hidden)]
        else:
            hint = f"{total:,} targets are too many to list here; trio-sd check lists them"
            table = events_table([*self._events][1 - left :][::-1], now)
            lower = [table, Text(hint, style="dim", no_wrap=True, overflow="ellipsis")]
        return Group(*above, "", providers, "", *lower)

    def _headline(self, statistics: Sequence[ManagerStatistics], targets: int) -> Text:
        reloads = self._reloads()
        sets = sum(len(one.sets) for one in statistics)
        line = Text(time.strftime("%H:%M:%S  "), style="dim", no_wrap=True, overflow="ellipsis")
        line.append(f"{sets} sets, {targets:,} targets, {max(0, reloads.succeeded - 1)} reloads", style="not dim")
        if reloads.failed:
            line.append(f", {reloads.failed} refused", style="not dim red")
        line.append(f"  {printable(self._title)}", style="not dim bold")
        return line

    def _subscribers(self, statistics: Sequence[ManagerStatistics]) -> Text:
        told = [
            f"{one.name}/{each.name} {each.delivered:,} delivered, {each.skipped:,} skipped, {each.lag:,} behind"
            for one in statistics
            for each in one.subscriptions
        ]
        text = printable(f"subscribers: {'; '.join(told) or 'none'}")
        return Text(text, style="dim", no_wrap=True, overflow="ellipsis")

    def _notices(self, statistics: Sequence[ManagerStatistics]) -> list[Text]:
        files = [one.state_file for one in statistics if one.state_file is not None and one.state_file.last_error]
        notices = [
            (self._reloads().last_error, "bold red"),
            *[(f"state file {file.path}: {file.last_error}", "bold red") for file in files],
            (self._caption, "bold yellow"),
        ]
        return [
            Text(printable(text), style=style, no_wrap=True, overflow="ellipsis") for text, style in notices if text
        ]


class _LogLines(logging.Handler):
    """Appends what is logged, in whatever thread, to ``lines``, and asks for a new picture."""

    def __init__(self, lines: deque[str], redraw_soon: Callable[[], None]) -> None:
        super().__init__()
        self._lines = lines
        self._redraw_soon = redraw_soon
        self._trio = trio.lowlevel.current_trio_token()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        try:
            self._lines.append(self.format(record))
            with suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self._redraw_soon, idempotent=True)
        # What is wrong with a record is told as logging does it, and is not for who logs to handle.
        except Exception:  # noqa: BLE001
            self.handleError(record)
