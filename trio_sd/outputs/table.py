"""Tables of providers, targets and changes, as rich renderables. Nothing here writes anywhere."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..manager import ManagerStatistics
from ..provider import ProviderStatistics
from ..snapshots import Snapshot
from ..targets import ADDRESS_LABEL, META_LABEL_PREFIX, TargetGroup
from .health import age
from .text import printable

__all__ = [
    "Event",
    "addresses",
    "events_table",
    "providers_table",
    "render",
    "rows_table",
    "targets_table",
]

_STATE_STYLE = MappingProxyType(
    {"synced": "green", "starting": "cyan", "failing": "bold red", "paused": "yellow", "stopped": "dim"}
)
_RIGHT_ALIGNED = frozenset({"GROUPS", "TARGETS", "UPDATES", "RESTARTS"})
_ELASTIC = frozenset(
    {"", "EFFECT", "JOB", "LABELS", "LATEST CHANGES", "LOOKED AT", "RULE", "SET", "SETS", "SOURCE", "TARGET", "WHICH"}
)


@dataclass(frozen=True)
class Event:
    """One source that changed.

    Attributes:
      time: when, on Trio's clock.
      sign: ``+`` for new or changed, ``-`` for gone.
      set_name: the set that it changed in.
      source: the source of the group.
      text: its addresses.
    """

    time: float
    sign: str
    set_name: str
    source: str
    text: str


def render(picture: RenderableType, *, width: int, terminal: bool) -> str:
    """Return ``picture`` as text, ``width`` columns wide, with colours if it is for a terminal."""
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=terminal,
        legacy_windows=False,
        # What is discovered is data: no part of it is markup, an emoji code or something to highlight.
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def rows_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, fold: bool = False) -> Table:
    """Return a table of plain cells; where a column is too narrow they are cut, or with ``fold`` get more lines."""
    table = _table(*headings)
    for row in rows:
        table.add_row(*[Text(printable(cell), overflow="fold") if fold else _cell(cell) for cell in row])
    return table


def providers_table(statistics: Sequence[ManagerStatistics], now: float, rows: int, *, wide: bool = False) -> Table:
    """Return a table of how each provider fares, those that fail first, in at most ``rows`` rows.

    Args:
      statistics: of the managers.
      now: the time on Trio's clock, for ages.
      rows: how many rows there is room for.
      wide: whether there is room for more columns.
    """
    more = ("UPDATES", "RESTARTS", "LAST ATTEMPT") if wide else ()
    table = _table("PROVIDER", "SETS", "STATE", "GROUPS", "TARGETS", "LAST NEWS", *more, "")
    providers = [provider for one in statistics for provider in one.providers]
    providers.sort(key=lambda provider: provider.state != "failing")  # stable, so the order is kept otherwise
    shown = providers if len(providers) <= rows else providers[: max(1, rows - 1)]
    for provider in shown:
        table.add_row(
            provider.name,
            _cell(_some(provider.sets)),
            Text(provider.state, style=_STATE_STYLE[provider.state]),
            f"{provider.groups:,}",
            f"{provider.targets:,}",
            "never" if provider.age is None else f"{age(provider.age)} ago",
            *_more(provider, now)[: len(more)],
            _cell(_trouble(provider), style="red" if provider.state == "failing" else "dim"),
        )
    if len(shown) < len(providers):
        table.add_row(f"… and {len(providers) - len(shown):,} more", *[""] * (6 + len(more)))
    return table


def _more(provider: ProviderStatistics, now: float) -> tuple[str, str, str]:
    attempt = "never" if provider.last_attempt is None else f"{age(now - provider.last_attempt)} ago"
    return f"{provider.updates:,}", f"{provider.restarts:,}", attempt


def _trouble(provider: ProviderStatistics) -> str:
    told = ["from the state file"] if provider.stale else []
    if provider.failure_streak and provider.last_error:
        again = f" ({provider.failure_streak} times in a row)" if provider.failure_streak > 1 else ""
        told.append(f"{provider.last_error}{again}")
    return "; ".join([*told, *provider.details.errors, *provider.details.notes])


def targets_table(
    snapshots: Sequence[Snapshot],
    marked: frozenset[tuple[str, str]] = frozenset(),
    *,
    hidden: str = META_LABEL_PREFIX,
) -> Table:
    """Return a table of every target with its labels and those of its group.

    Args:
      snapshots: whose targets to list.
      marked: (set, source) pairs to draw as new.
      hidden: labels whose names begin so are left out.
    """
    table = _table("SET", "TARGET", "LABELS", "SOURCE")
    for snapshot in snapshots:
        for set_name, target, group in _targets(snapshot):
            labels = {**group.labels, **target}
            address = labels.pop(ADDRESS_LABEL, "")
            shown = [f"{k}={v}" for k, v in sorted(labels.items()) if not k.startswith(hidden)]
            style = "bold green" if (set_name, group.source) in marked else ""
            table.add_row(*map(_cell, (set_name, address, " ".join(shown), group.source)), style=style)
    return table


def _targets(snapshot: Snapshot) -> Iterator[tuple[str, Mapping[str, str], TargetGroup]]:
    for set_name, groups in snapshot.items():
        for group in groups:
            for target in group.targets:
                yield set_name, target, group


def events_table(events: Sequence[Event], now: float) -> Table:
    """Return a table of what changed, in the order given; ``now`` is the time on Trio's clock, for ages."""
    table = _table("", "SET", "LATEST CHANGES", "SOURCE", "AGE")
    for event in events:
        style = "green" if event.sign == "+" else "red"
        row = [event.set_name, event.text, event.source, f"{age(now - event.time)} ago"]
        table.add_row(Text(event.sign, style=style), *map(_cell, row))
    return table


def _table(*headings: str) -> Table:
    """Return an empty table. If there is too little room, the columns in ``_ELASTIC`` shrink and the others do not."""
    table = Table(box=None, pad_edge=False, header_style="bold underline", padding=(0, 2, 0, 0))
    for heading in headings:
        right = heading in _RIGHT_ALIGNED
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=heading not in _ELASTIC, overflow="ellipsis"
        )
    return table


def _cell(text: str, style: str = "") -> Text:
    """Return one line of text, which is cut where its column is too narrow."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def addresses(group: TargetGroup) -> str:
    """Return the addresses of a group's targets, of many only the first."""
    return _some([target.get(ADDRESS_LABEL, "?") for target in group.targets[:4]], len(group.targets))


def _some(names: Sequence[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    return ", ".join(names) if count <= 3 else f"{', '.join(names[:3])} and {count - 3:,} more"
