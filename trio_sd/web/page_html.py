"""The page's HTML, in the parts that the page is made of and that replace each other. Pure.

Everything that comes from outside is escaped here, and nowhere else: the script puts in what it is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from posixpath import basename
from typing import Final
from urllib.parse import urlencode

from ..errors import Position
from ..manager import SetStatistics
from ..outputs.explain import ExplainedTarget, step_rows
from ..outputs.text import printable
from ..provider import ProviderStatistics
from ..targets import ADDRESS_LABEL, META_LABEL_PREFIX
from .catalogue import STATES, Counts, Row, Selection, SetKey, Window
from .recent import Change

__all__ = [
    "ListedSet",
    "change_row",
    "gone",
    "more_row",
    "notice",
    "pages",
    "provider_rows",
    "set_options",
    "set_row",
    "state_options",
    "summary",
    "target_rows",
    "trace",
]

_LONGEST: Final = 300  # characters of labels in a row; the trace has all
_SETS: Final = 3  # of a provider that are named
_AT_ONCE: Final = 0.001  # seconds; what is younger is right at every moment
_NO_MARK: Final = "–"  # where there is no value


@dataclass(frozen=True)
class ListedSet:
    """What the page tells of a set.

    Attributes:
      key: the set.
      statistics: how it fares.
      counts: what became of its targets, as far as that is known.
      stale: the Unix time at which what it shows from the state file was right, if it shows something from there.
    """

    key: SetKey
    statistics: SetStatistics
    counts: Counts | None
    stale: float | None


def _text(text: str) -> str:
    """Return text that means nothing but itself in HTML."""
    return escape(printable(text))


def _moment(unix: float) -> str:
    """Return a time; the script turns it into an age."""
    return f'<time data-at="{unix:.1f}">{time.strftime("%H:%M:%SZ", time.gmtime(unix))}</time>'


def _link(selection: Selection, **more: str) -> str:
    """Return where the page shows a selection."""
    query = {
        "set": "/".join(selection.key) if selection.key else "",
        "state": selection.state or "",
        "q": selection.search,
        **more,
    }
    text = urlencode({name: value for name, value in query.items() if value}, errors="replace")
    return f"/?{text}" if text else "/"


def set_row(one: ListedSet) -> str:
    """Return a row of the table of sets."""
    statistics, counts = one.statistics, one.counts
    notes = [f"leaving: {', '.join(statistics.leaving)}"] if statistics.leaving else []
    notes += ["from the state file"] if one.stale is not None else []
    note = f'<p class="note">{_text("; ".join(notes))}</p>' if notes else ""
    numbers = [statistics.targets, *[counts[state] if counts else None for state in STATES]]
    cells = "".join([_number(number, bad=place == len(STATES)) for place, number in enumerate(numbers)])
    link = escape(_link(Selection(one.key)))
    name = _text(_set_name(one.key))
    return f'<tr><th scope="row"><a href="{link}" title="{name}">{name}</a>{note}</th>{cells}</tr>'


def _set_name(key: SetKey) -> str:
    """Return what to call a set."""
    manager, name = key
    return name if manager == "scrape" else f"{manager}/{name}"


def _number(number: int | None, *, bad: bool = False) -> str:
    mark = " bad" if bad and number else " zero" if number == 0 else ""
    return f'<td class="number{mark}">{_NO_MARK if number is None else f"{number:,}"}</td>'


def provider_rows(manager: str, provider: ProviderStatistics, now: float) -> list[str]:
    """Return the rows of a provider in the table of providers: one, and another one if there is something to tell.

    Args:
      manager: whose provider it is.
      provider: how it fares.
      now: the present as Unix time.
    """
    heard = "never" if provider.age is None else "now" if provider.age < _AT_ONCE else _moment(now - provider.age)
    sets, more = ", ".join(provider.sets[:_SETS]), len(provider.sets) - _SETS
    row = (
        f'<tr class="{provider.state}"><th scope="row">{_text(_set_name((manager, provider.name)))}</th>'
        f'<td><span class="state {provider.state}">{provider.state}</span></td>'
        f"<td>{heard}</td>{_number(provider.targets)}{_number(provider.updates)}"
        f"<td>{_text(sets)}{f' and {more:,} more' if more > 0 else ''}</td></tr>"
    )
    trouble = _trouble(provider)
    kind = "note bad" if provider.state == "failing" else "note"
    return [row, f'<tr class="more"><td colspan="6" class="{kind}">{_text(trouble)}</td></tr>'] if trouble else [row]


def _trouble(provider: ProviderStatistics) -> str:
    told = ["from the state file"] if provider.stale else []
    if provider.failure_streak and provider.last_error:
        times = f" ({provider.failure_streak:,} times in a row)" if provider.failure_streak > 1 else ""
        told.append(f"{provider.last_error}{times}")
    return "; ".join([*told, *provider.details.errors, *provider.details.notes])


def summary(*, sets: int, targets: int, providers: int, failing: int) -> str:
    """Return how much there is, in one line."""
    bad = f', <b class="bad">{failing:,} failing</b>' if failing else ""
    return f"<b>{targets:,}</b> targets in <b>{sets:,}</b> sets by <b>{providers:,}</b> providers{bad}"


def more_row(count: int) -> str:
    """Return a row that stands for those that there is no room for."""
    return f'<tr><th scope="row" class="note">… and {count:,} more</th></tr>'


def notice(text: str) -> str:
    """Return something that needs attention."""
    return f'<p class="notice">{_text(text)}</p>'


def change_row(change: Change) -> str:
    """Return an item of the list of changes."""
    signs = [f'<b class="came">+{change.came:,}</b>'] if change.came else []
    signs += [f'<b class="went">\N{MINUS SIGN}{change.went:,}</b>'] if change.went else []
    return (
        f"<li>{_moment(change.time)} {' '.join(signs) or '<b>±0</b>'} <b>{_text(_set_name(change.key))}</b> "
        f'<span>{_text(change.what)}</span> <span class="note">{_text(change.source)}</span></li>'
    )


def state_options(selection: Selection) -> str:
    """Return what can be chosen of states."""
    return _options([("", "any state"), *[(state, state) for state in STATES]], selection.state or "")


def set_options(keys: Iterable[SetKey], selection: Selection) -> str:
    """Return what can be chosen of sets."""
    chosen = "/".join(selection.key) if selection.key else ""
    choices = {"": "all sets"} | {"/".join(key): _set_name(key) for key in keys}
    if selection.key:
        choices.setdefault(chosen, _set_name(selection.key))
    return _options(choices.items(), chosen)


def _options(choices: Iterable[tuple[str, str]], chosen: str) -> str:
    return "".join(
        [
            f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{_text(text)}</option>'
            for value, text in choices
        ]
    )


def target_rows(window: Window, selection: Selection) -> list[str]:
    """Return the rows of the table of targets."""
    return [
        _target_row(window.offset + place, key, number, row, selection)
        for place, (key, number, row) in enumerate(window.rows)
    ]


def _target_row(place: int, key: SetKey, number: int, row: Row, selection: Selection) -> str:
    """Return a row of the table of targets.

    Args:
      place: how many rows are before it.
      key: its set.
      number: its place in the set.
      row: what it tells.
      selection: what is looked at besides.
    """
    address, state = row.address, row.state
    final = {name: value for name, value in (row.labels or {}).items() if _is_telling(name, value, key, address)}
    discovered = {name: value for name, value in sorted(row.discovered.items()) if name != ADDRESS_LABEL}
    which = {"of": "/".join(key), "at": str(number), "target": row.identifier}
    link = escape(_link(selection, **which))
    told = f'<span class="error">{_text(row.error)}</span>' if row.error else _labels(final)
    return (
        f'<tr id="t{place}" aria-rowindex="{place + 2}" class="{state}">'
        f'<td><span class="state {state}">{state}</span></td><td class="set">{_text(_set_name(key))}</td>'
        f'<th scope="row"><a href="{link}">{_text(address) or "(no address)"}</a></th>'
        f'<td class="labels">{told}</td><td class="labels discovered">{_labels(discovered)}</td></tr>'
    )


def _is_telling(name: str, value: str, key: SetKey, address: str) -> bool:
    """Tell whether a final label says more than the rest of the row."""
    return not name.startswith("__") and (name, value) not in (("job", key[1]), ("instance", address))


def _labels(labels: Mapping[str, str]) -> str:
    return " ".join(_bounded(labels))


def _bounded(labels: Mapping[str, str]) -> Iterator[str]:
    """Yield labels until there is no more room in a row."""
    room = _LONGEST
    for name, value in labels.items():
        if room <= 0:
            yield "…"
            return
        room -= len(name) + len(value)
        shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        yield f"<span><i>{_text(name[:_LONGEST].removeprefix(META_LABEL_PREFIX))}</i>={_text(shown)}</span>"


def pages(window: Window, selection: Selection) -> str:
    """Return links to what comes before and after a window, for browsers without the script."""
    step = max(1, len(window.rows))
    places = {"previous": window.offset - step, "next": window.offset + step}
    links = [
        f'<a href="{escape(_link(selection, offset=str(max(0, place))))}">{name}</a>'
        for name, place in places.items()
        if -step < place < window.total
    ]
    return " ".join(links)


def trace(key: SetKey, target: ExplainedTarget, positions: Sequence[Position], document: str) -> str:
    """Return what each rule did to a target.

    Args:
      key: its set.
      target: what became of it.
      positions: where each rule stands.
      document: where the same is as JSON.
    """
    address = target.discovered.get(ADDRESS_LABEL, "(no address)")
    error = f'<p class="error">{_text(target.error)}</p>' if target.error else ""
    return (
        f'<h2 id="trace-title">{_text(address)} <span class="state {target.state}">{target.state}</span></h2>'
        f'<p>in {_text(_set_name(key))}, <a href="{escape(document)}">as JSON</a></p>{error}'
        f"<h3>Rules</h3>{_rules_table(target, positions)}<h3>Labels</h3>{_labels_table(target)}"
    )


def gone() -> str:
    """Return what stands in the place of a trace whose target has gone."""
    return '<h2 id="trace-title">This target is not there any more.</h2>'


def _rules_table(target: ExplainedTarget, positions: Sequence[Position]) -> str:
    rows = []
    for step, told in zip(target.steps, step_rows(target), strict=True):
        place = positions[step.index]
        # Nearly always all are in one file, whose path would leave no room.
        name = f"{basename(place.file)}:{place.line}" if place.file else f"{place.line}."
        first = f'<td class="place" title="{_text(str(place) if place.file else "")}">{_text(name)}</td>'
        cells = "".join([f"<td>{_text(cell)}</td>" for cell in told])
        rows.append(f'<tr class="{"" if step.kept else "drops"}">{first}{cells}</tr>')
    return _table(("At", "Rule", "Looked at", "Effect"), rows) if rows else "<p>No rule was applied.</p>"


def _labels_table(target: ExplainedTarget) -> str:
    final = target.labels or {}
    rows = []
    for name in sorted({*target.discovered, *final}):
        before, after = target.discovered.get(name), final.get(name)
        kind = "" if before == after else "came" if before is None else "went" if after is None else "changed"
        cells = "".join([f"<td>{_NO_MARK if value is None else _text(value)}</td>" for value in (before, after)])
        rows.append(f'<tr class="{kind}"><th scope="row">{_text(name)}</th>{cells}</tr>')
    return _table(("Label", "Discovered", "Final"), rows)


def _table(headings: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join([f'<th scope="col">{heading}</th>' for heading in headings])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
