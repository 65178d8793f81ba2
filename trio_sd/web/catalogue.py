"""Every target of managers with what became of it, for those who look at some of them at a time.

Theory of operation
===================

*Work.* To relabel 50,000 targets takes a second or two. It is done in a thread, once for each target and rules: what
was made of a target is kept for as long as it is there, so that after a change only what is new is relabeled. The first
targets in order can be told soon, without the others, because a duplicate is never the first of its kind. Even that is
done in a thread, and in another one: to put 50,000 groups in order takes some 20 ms.

*Memory.* All of it is let go when nobody looks any more.

One thread works for all who look, and one for the first targets. They are given immutable values, and nobody else
touches what they change meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from ..manager import Manager
from ..outputs.explain import ExplainedTarget, State
from ..set_configs import Labeling
from ..snapshots import Snapshot
from ..targets import ADDRESS_LABEL, Labels, TargetGroup

if TYPE_CHECKING:
    from ..target_labels import Labeler

__all__ = ["STATES", "Catalogue", "Counts", "Row", "Selection", "SetKey", "Window"]

STATES: Final[tuple[State, ...]] = ("kept", "dropped", "duplicate", "unusable")

_WORDS: Final = 10
_SEARCHES: Final = 4  # of each set, whose results are kept

SetKey = tuple[str, str]
"""The name of a manager, and of one of its sets."""

Counts = Mapping[State, int]
"""How many targets of a set are in each state."""

_Known = dict[tuple[Mapping[str, str], Mapping[str, str]], "Row"]
"""The targets of a part, by their labels and those of their group."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Part:
    """What one provider shows in one set."""

    provider: str
    groups: Mapping[str, TargetGroup]  # the same object for as long as they are the same
    labeling: Labeling | None


@dataclass(frozen=True, slots=True)
class _Set:
    """A set at one moment."""

    name: str
    snapshot: Snapshot
    parts: Sequence[_Part]

    def in_order(self) -> Iterator[tuple[_Part, Iterable[TargetGroup]]]:
        """Yield each part with its groups in order, to be taken before the next part. It may take a while."""
        groups = iter(self.snapshot[self.name])
        for part in self.parts:
            yield part, islice(groups, len(part.groups))


@dataclass(slots=True, eq=False)
class Row:
    """One target. Not to be changed.

    Attributes:
      source: the source of its group.
      target: its own labels.
      group: those of its group.
      labels: its final labels; ``None`` if it was dropped or can't be used.
      error: why it can't be used; ``None`` if it can, or was dropped.
      state: what became of it.
      labeling: what says how its labels are made; ``None`` if there are no rules.
    """

    source: str
    target: Mapping[str, str]
    group: Mapping[str, str]
    labels: Labels | None
    error: str | None
    state: State
    labeling: Labeling | None
    _text: str | None = None  # what a search looks at, once there was one

    @property
    def discovered(self) -> dict[str, str]:
        """The labels that it was found with, those of its group included."""
        return {name: value for name, value in {**self.group, **self.target}.items() if value}

    @property
    def address(self) -> str:
        """Its address after relabeling, or before if it has none then."""
        return (self.labels or self.discovered).get(ADDRESS_LABEL, "")

    @property
    def identifier(self) -> str:
        """A short text that tells the target from others of its set."""
        labels = json.dumps([dict(self.target.items()), dict(self.group.items())])
        return hashlib.sha256(labels.encode()).hexdigest()[:24]

    def explained(self) -> ExplainedTarget:
        """Return what each rule did to it."""
        if self.labeling is None:
            return ExplainedTarget(self.discovered, (), self.labels, self.state, self.error)
        labeler = self.labeling.labeler()
        discovered = labeler.discovered_labels(self.target, self.group)
        trace, outcome = labeler.explain(discovered)
        return ExplainedTarget(discovered, trace.steps, outcome.labels, self.state, outcome.error)

    def text(self) -> str:
        """Return what a search looks at: a line for each label, before and after relabeling, and the source."""
        if self._text is None:
            labels = dict.fromkeys([*self.discovered.items(), *(self.labels or {}).items()])
            lines = [f"{name}={value}" for name, value in labels]
            self._text = "\n".join([*lines, f"source={self.source}", self.error or ""]).lower()
        return self._text


@dataclass(frozen=True)
class Selection:
    """Which targets to look at.

    Attributes:
      key: the set; all if ``None``.
      state: what became of them; whatever did if ``None``.
      search: words that their labels contain, each of them in one as ``name=value``. Case does not count.
    """

    key: SetKey | None = None
    state: State | None = None
    search: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the search."""
        return tuple(sorted(dict.fromkeys(self.search.lower().split())))[:_WORDS]

    @property
    def whole(self) -> bool:
        """Whether every target of the chosen sets is looked at."""
        return self.state is None and not self.words


@dataclass(frozen=True)
class Window:
    """Some targets of those that were selected.

    Attributes:
      total: how many were.
      offset: how many come before the first of ``rows``.
      rows: each with its set, and its number in there.
    """

    total: int
    offset: int
    rows: Sequence[tuple[SetKey, int, Row]]


class _Index:
    """The targets of one set at one moment."""

    def __init__(self, found: _Set, old: _Index | None) -> None:
        self.parts = found.parts
        self._known: dict[str, _Known] = {part.provider: {} for part in found.parts}
        self.rows: Sequence[Row] = list(_rows(found, old, self._known))
        self.counts: Counts = dict.fromkeys(STATES, 0) | _counted(row.state for row in self.rows)
        self._found: dict[tuple[State | None, tuple[str, ...]], Sequence[int]] = {}

    def known(self, part: _Part) -> _Known:
        """Return the targets that a provider showed here, if their labels are still made so."""
        alike = any(one.provider == part.provider and one.labeling == part.labeling for one in self.parts)
        return self._known[part.provider] if alike else {}

    def find(self, selection: Selection) -> Sequence[int]:
        """Return the numbers of the rows that a selection admits."""
        if selection.whole:
            return range(len(self.rows))
        key = selection.state, selection.words
        found = self._found.pop(key, None)
        if found is None:
            found = self._search(*key)
            if len(self._found) == _SEARCHES:
                del self._found[next(iter(self._found))]
        self._found[key] = found
        return found

    def _search(self, state: State | None, words: Sequence[str]) -> Sequence[int]:
        found = [number for number, row in enumerate(self.rows) if state is None or row.state == state]
        for word in words:
            found = [number for number in found if word in self.rows[number].text()]
        return found


def _counted(states: Iterable[State]) -> dict[State, int]:
    counts: dict[State, int] = {}
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    return counts


class Catalogue:
    """Every target of some managers, with what became of it.

    Args:
      managers: by name, in the order to show them.
    """

    def __init__(self, managers: Mapping[str, Manager]) -> None:
        self._managers = managers
        self._indexes: dict[SetKey, _Index] = {}
        self._users = 0
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # not the application's threads
        self._first_limiter = trio.CapacityLimiter(1)  # the first targets wait for no others

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep what was worked out, until the end of the last such block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._indexes = {}

    def counts(self, key: SetKey) -> Counts | None:
        """Return how many targets of a set are in each state, as far as that was worked out."""
        index = self._indexes.get(key)
        return None if index is None else index.counts

    async def first(self, count: int, key: SetKey | None = None) -> Window:
        """Return the first targets (of a set, if given), without waiting for what becomes of the others.

        Cancelled, the thread's work is finished and thrown away.
        """
        sets = {one: found for one, found in self._sets().items() if key in (None, one)}
        total = sum([found.snapshot.target_count(found.name) for found in sets.values()])
        indexes = self._indexes
        rows = (
            (one, number, row)
            for one, found in sets.items()
            for number, row in enumerate(_rows(found, indexes.get(one), defaultdict(dict)))
        )
        shown = await _in_thread(lambda: list(islice(rows, count)), self._first_limiter)
        return Window(total, 0, shown)

    async def update(self) -> None:
        """Catch up with the managers.

        Cancelled, the thread's work is finished and thrown away.
        """
        async with self._turn:
            sets = self._sets()
            stale = {
                key: found
                for key, found in sets.items()
                if not (key in self._indexes and _same(self._indexes[key].parts, found.parts))
            }
            if stale or list(sets) != list(self._indexes):
                old = self._indexes
                made = await _in_thread(partial(_indexed, stale, old), self._limiter)
                self._indexes = {key: made.get(key) or old[key] for key in sets} if self._users else {}

    async def find(self, selection: Selection, offset: int, limit: int) -> Window:
        """Return at most ``limit`` of the targets selected, from the one after ``offset`` others on.

        An offset behind the last one gives the last ones.
        """
        with self.in_use():
            await self.update()
            async with self._turn:
                wanted = [key for key in self._indexes if selection.key in (None, key)]
                chosen = {key: self._indexes[key] for key in wanted}
                find = partial(_found, chosen, selection)
                found = await _in_thread(find, self._limiter)
        total = sum(map(len, found.values()))
        offset = max(0, min(offset, total - limit))
        return Window(total, offset, list(_slice(chosen, found, offset, limit)))

    async def target(self, key: SetKey, identifier: str, number: int) -> Row | None:
        """Return the target of that identifier, which most likely still has that number in its set."""
        with self.in_use():
            await self.update()
            index = self._indexes.get(key)
        if index is None:
            return None
        if 0 <= number < len(index.rows) and index.rows[number].identifier == identifier:
            return index.rows[number]
        same = (row for row in index.rows if row.identifier == identifier)
        return await _in_thread(lambda: next(same, None), self._limiter)

    def _sets(self) -> dict[SetKey, _Set]:
        return {
            (manager_name, name): _set(manager, name)
            for manager_name, manager in self._managers.items()
            for name in manager.snapshot()
        }


async def _in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)


def _set(manager: Manager, name: str) -> _Set:
    snapshot, labelings = manager.snapshot(), manager.labelings()
    providers = snapshot.layout.providers[name]
    parts = [_Part(one, snapshot.groups_of(one), labelings.get((name, one))) for one in providers]
    return _Set(name, snapshot, parts)


def _same(one: Sequence[_Part], other: Sequence[_Part]) -> bool:
    """Tell whether two sets are the same, by the identity of what they are made of."""
    return len(one) == len(other) and all(
        a.provider == b.provider and a.groups is b.groups and a.labeling is b.labeling
        for a, b in zip(one, other, strict=True)
    )


def _indexed(sets: Mapping[SetKey, _Set], old: Mapping[SetKey, _Index]) -> dict[SetKey, _Index]:
    return {key: _Index(found, old.get(key)) for key, found in sets.items()}


def _found(indexes: Mapping[SetKey, _Index], selection: Selection) -> dict[SetKey, Sequence[int]]:
    return {key: index.find(selection) for key, index in indexes.items()}


def _rows(found: _Set, old: _Index | None, made: Mapping[str, _Known]) -> Iterator[Row]:
    """Yield the targets of a set in order, those that were there before as they were.

    Args:
      found: the set.
      old: what was made of it before.
      made: where to note the targets of each provider.
    """
    finals: set[Labels] = set()
    for part, groups in found.in_order():
        known = {} if old is None else old.known(part)
        noted = made[part.provider]
        labeler = None if part.labeling is None else part.labeling.labeler()
        for group in groups:
            for target in group.targets:
                key = target, group.labels
                row = known.get(key)
                labels, error = _outcome(labeler, *key) if row is None else (row.labels, row.error)
                state = _state(labels, error, finals)
                # By identity, because equal rules may have moved in their file.
                same_rules = row is not None and row.labeling is part.labeling
                if row is None or not same_rules or row.state != state or row.source != group.source:
                    row = Row(group.source, target, group.labels, labels, error, state, part.labeling)
                noted[key] = row
                yield row


def _outcome(
    labeler: Labeler | None, target: Mapping[str, str], group: Mapping[str, str]
) -> tuple[Labels | None, str | None]:
    """Return the final labels of a target, or why it can't be used, or neither if it is dropped."""
    if labeler is None:
        return Labels({name: value for name, value in {**group, **target}.items() if value}), None
    outcome = labeler.target_labels(labeler.discovered_labels(target, group))
    return None if outcome.labels is None else Labels(outcome.labels), outcome.error


def _state(labels: Labels | None, error: str | None, finals: set[Labels]) -> State:
    if labels is None:
        return "dropped" if error is None else "unusable"
    if labels in finals:
        return "duplicate"
    finals.add(labels)
    return "kept"


def _slice(
    indexes: Mapping[SetKey, _Index], found: Mapping[SetKey, Sequence[int]], offset: int, limit: int
) -> Iterator[tuple[SetKey, int, Row]]:
    for key, numbers in found.items():
        for number in numbers[offset : offset + limit]:
            yield key, number, indexes[key].rows[number]
            limit -= 1
        offset = max(0, offset - len(numbers))
