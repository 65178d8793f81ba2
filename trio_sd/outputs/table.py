"""Targets and providers as tables, drawn anew when something changes.

On a terminal the picture stays in its place, and is drawn again every second, because it tells ages; elsewhere each
picture is printed below the one before. Drawing happens in a thread: it takes milliseconds, and a terminal that is
held (Ctrl-S) must hold nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..manager import Manager, ManagerStatistics
from ..provider import ProviderStatistics
from ..store import Snapshot, Update
from ..targets import ADDRESS_LABEL, META_LABEL_PREFIX, TargetGroup

__all__ = ["Tables", "plain_console", "print_table", "targets_table"]

_STATE_STYLE = MappingProxyType({"synced": "green", "starting": "cyan", "failing": "bold red", "stopped": "dim"})
_FRESH = 5.0  # seconds for which a change is marked
_UNLIMITED = 10_000  # columns


class _Reloads(Protocol):
    """What is told of reloads."""

    @property
    def succeeded(self) -> int:
        """Configurations put in force."""

    @property
    def failed(self) -> int:
        """Configurations refused."""

    @property
    def last_error(self) -> str | None:
        """Why the last one was refused, if it was."""


@dataclass(frozen=True)
class _Event:
    """One thing that changed."""

    time: float
    sign: str
    set_name: str
    source: str
    text: str


def plain_console() -> Console:
    """Return a console on stdout that prints text as it is: what is discovered is data, not markup."""
    return Console(markup=False, emoji=False, highlight=False)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, as wide as the terminal; elsewhere as wide as it is."""
    console = plain_console()
    table = _plain_table(*headings)
    for row in rows:
        table.add_row(*[_printable(cell) for cell in row])
    console.print(table, width=None if console.is_terminal else _UNLIMITED, crop=False)


class Tables:
    """Draws what managers show and how their providers fare.

    Args:
      title: told above the tables; the configuration's path.
      managers: whose state to draw.
      reloads: returns how reloads went.
      console: where to draw.
    """

    def __init__(
        self,
        title: str,
        managers: Sequence[Manager],
        reloads: Callable[[], _Reloads],
        console: Console | None = None,
    ) -> None:
        self._title = title
        self._managers = managers
        self._reloads = reloads
        self._console = console or plain_console()
        self._caption = ""
        self._events: deque[_Event] = deque(maxlen=500)
        self._changed: dict[tuple[str, str], float] = {}
        self._set_dirty, self._dirty = trio.open_memory_channel[None](1)

    def caption(self, text: str) -> None:
        """Show a line of text above the tables from now on."""
        self._caption = text
        self._redraw_soon()

    async def run(self) -> None:
        """Draw until cancelled."""
        async with trio.open_nursery() as nursery:
            for manager in self._managers:
                nursery.start_soon(self._follow, manager)
            await self._draw()

    async def _follow(self, manager: Manager) -> None:
        async with manager.subscribe(name="table") as updates:
            first = True
            async for update in updates:
                self._note(update, first=first)
                first = False
                self._redraw_soon()

    def _redraw_soon(self) -> None:
        with suppress(trio.WouldBlock):
            self._set_dirty.send_nowait(None)

    def _note(self, update: Update, *, first: bool) -> None:
        now = trio.current_time()
        self._changed = {key: since for key, since in self._changed.items() if now - since < _FRESH}
        for set_name, found in update.changes.items():
            for group in found.updated:
                if not first:
                    self._changed[set_name, group.source] = now
                self._events.append(_Event(now, "+", set_name, group.source, _addresses(group)))
            for source in found.removed:
                self._events.append(_Event(now, "-", set_name, source, ""))

    async def _draw(self) -> None:
        if not self._console.is_terminal:
            async for _ in self._dirty:
                await trio.to_thread.run_sync(self._console.print, self.picture(200), "")
            return
        with Live(console=self._console, auto_refresh=False, transient=False) as live:
            while True:
                picture = self.picture(self._console.size.height)
                await trio.to_thread.run_sync(partial(live.update, picture, refresh=True))
                with trio.move_on_after(1.0):  # the ages go on
                    await self._dirty.receive()

    def picture(self, height: int) -> RenderableType:
        """Return what to draw at this moment in ``height`` lines."""
        statistics = [manager.statistics() for manager in self._managers]
        snapshots = [manager.snapshot() for manager in self._managers]
        now = trio.current_time()
        room = max(8, height - 11 - bool(self._caption))
        providers = _providers_table(statistics, now, max(3, room // 3))
        total = sum(s.targets for one in statistics for s in one.sets)
        left = max(3, room - min(room // 3, providers.row_count))
        if total <= left:
            marked = {key for key, since in self._changed.items() if now - since < _FRESH}
            lower = targets_table(snapshots, marked)
        else:
            lower = _events_table([*self._events][-left:][::-1], now)
        caption = [Text(self._caption, style="bold yellow")] if self._caption else []
        return Group(self._headline(statistics, total), *caption, "", providers, "", lower)

    def _headline(self, statistics: Sequence[ManagerStatistics], targets: int) -> Text:
        reloads = self._reloads()
        sets = sum(len(one.sets) for one in statistics)
        line = Text(f"{self._title}  ", style="bold", no_wrap=True)
        line.append(f"{sets} sets, {targets:,} targets, {max(0, reloads.succeeded - 1)} reloads", style="not bold")
        if reloads.failed:
            line.append(f", {reloads.failed} refused", style="red")
        line.append(time.strftime("   %H:%M:%S"), style="dim")
        if reloads.last_error:
            line.append(f"\n{_printable(reloads.last_error)}", style="bold red")
        return line


def _providers_table(statistics: Sequence[ManagerStatistics], now: float, rows: int) -> Table:
    table = _plain_table("PROVIDER", "SETS", "STATE", "GROUPS", "TARGETS", "LAST NEWS", "")
    providers = [provider for one in statistics for provider in one.providers]
    providers.sort(key=lambda provider: provider.state != "failing")  # stable: what fails comes first
    shown = providers if len(providers) <= rows else providers[: rows - 1]
    for provider in shown:
        table.add_row(
            provider.name,
            _printable(_some(provider.sets)),
            Text(provider.state, style=_STATE_STYLE[provider.state]),
            f"{provider.groups:,}",
            f"{provider.targets:,}",
            "never" if provider.last_success is None else f"{_age(now - provider.last_success)} ago",
            Text(
                _printable(_trouble(provider)),
                style="red" if provider.state == "failing" else "dim",
                overflow="ellipsis",
            ),
        )
    if len(shown) < len(providers):
        table.add_row(f"… and {len(providers) - len(shown):,} more", *[""] * 6)
    return table


def _trouble(provider: ProviderStatistics) -> str:
    if provider.failure_streak and provider.last_error:
        return provider.last_error
    return "; ".join([*provider.details.errors, *provider.details.notes])


def targets_table(snapshots: Sequence[Snapshot], marked: set[tuple[str, str]] | None = None) -> Table:
    """Return a table of every target with the labels that it was discovered with, without ``__meta_`` ones.

    Args:
      snapshots: whose targets to list.
      marked: (set, source) pairs to draw as new.
    """
    table = _plain_table("SET", "TARGET", "LABELS", "SOURCE")
    for snapshot in snapshots:
        for set_name, target, group in _targets(snapshot):
            labels = {**group.labels, **target}
            address = labels.pop(ADDRESS_LABEL, "")
            shown = [f"{k}={v}" for k, v in sorted(labels.items()) if not k.startswith(META_LABEL_PREFIX)]
            style = "bold green" if marked and (set_name, group.source) in marked else ""
            row = [set_name, address, " ".join(shown), group.source]
            table.add_row(*[_printable(cell) for cell in row], style=style)
    return table


def _targets(snapshot: Snapshot) -> Iterator[tuple[str, Mapping[str, str], TargetGroup]]:
    for set_name, groups in snapshot.items():
        for group in groups:
            for target in group.targets:
                yield set_name, target, group


def _events_table(events: Sequence[_Event], now: float) -> Table:
    table = _plain_table("", "SET", "LATEST CHANGES", "SOURCE", "")
    for event in events:
        style = "green" if event.sign == "+" else "red"
        row = [event.set_name, event.text, event.source, f"{_age(now - event.time)} ago"]
        table.add_row(Text(event.sign, style=style), *[_printable(cell) for cell in row])
    return table


def _plain_table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold underline", padding=(0, 2, 0, 0))
    for heading in headings:
        right = heading in {"GROUPS", "TARGETS"}
        table.add_column(heading, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    return table


def _printable(text: str) -> str:
    """Return ``text`` without what would steer the terminal."""
    return (
        text if text.isprintable() else "".join([c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text])
    )


def _addresses(group: TargetGroup) -> str:
    return _some([target.get(ADDRESS_LABEL, "?") for target in group.targets])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3:,} more"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
