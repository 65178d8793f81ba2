"""The targets of a store after relabeling, as states of their own that subscribers follow like the store's.

Theory of operation
===================

*Parts.* What one provider shows in one set is a part. Each part has its own rules: those of its set's configuration,
or, while the provider leaves the set, those that it had there before. New rules are written for new discoverers;
applied to what the old ones had found, they might drop it, and the set would shrink because of a reload.

*Work.* In proportion to what changed: a group that differs is relabeled in each set that it is in, a part whose rules
differ as a whole, and nothing else. Everything else runs in the pauses after every few hundred targets, because a
hundred thousand take seconds. What was relabeled becomes visible in one revision at the end.

*Truth.* The store says at once when it has changed, and an offer of what was true before is withdrawn in that moment.
So what a consumer takes is never older than the last state of which the relabeling is done; ``wait_synced`` waits for
that. Revisions are those of the store; one that changes nothing here is left out.

*Duplicates.* Targets of a set that get equal labels are one target. The first group, in the order of the set, shows it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio
from immutables import Map

from .set_configs import Labeling
from .snapshots import NO_GROUPS, Groups, History, Layout, Snapshot
from .store import TargetStore
from .subscription import Subscribers
from .targets import Labels, TargetGroup

if TYPE_CHECKING:  # the engine runs without it, and it takes long to import
    from .target_labels import Labeler

__all__ = ["Labelings", "RelabelStatistics", "RelabeledTargets"]

logger = logging.getLogger(__name__)

Labelings = Mapping[tuple[str, str], Labeling | None]
"""How the labels of each (set, provider) part are made; ``None`` where there are no rules."""

_PAUSE: Final = 256  # targets, or what takes as long
_GROUPS_AT_ONCE: Final = 256  # merged into what is shown; less would cost much more
_TOLD: Final = 3  # errors

_Todo = dict[tuple[str, str], Collection[str] | None]
"""The sources to look at, by (set, provider) part; ``None`` for all that it has or had."""

_Gone = set[tuple[str, str]]
"""Parts that are not shown any more."""

_Work = Iterator[int]
"""Work in steps. Each yields how many targets it has dealt with; between them everything else may run."""


@dataclass(frozen=True, slots=True)
class RelabelStatistics:
    """What became of the targets of one set.

    Attributes:
      targets: those that are shown.
      dropped: those that the rules drop.
      duplicates: those that have the labels of another one.
      unusable: those that can't be used.
      errors: why, of some of these.
    """

    targets: int
    dropped: int
    duplicates: int
    unusable: int
    errors: tuple[str, ...]


class _Part:
    """What one provider shows in one set."""

    __slots__ = ("entries", "labeler", "labeling", "name", "position")

    def __init__(self, name: str) -> None:
        self.name = name  # in snapshots
        self.position = 0  # in the set
        self.labeling: Labeling | None = None
        self.labeler: Labeler | None = None
        self.entries: dict[str, _Entry] = {}  # by source


class _Entry:
    """What became of one group. Its targets are all different; other groups may have the same."""

    __slots__ = ("dropped", "duplicates", "errors", "group", "labeler", "part", "source", "targets", "unusable")

    def __init__(self, part: _Part, group: TargetGroup) -> None:
        self.part = part
        self.source = group.source
        self.group = group
        self.labeler = part.labeler
        self.targets: tuple[Labels, ...] = ()
        self.errors: tuple[str, ...] = ()  # some that differ
        self.duplicates = 0
        self.dropped = 0
        self.unusable = 0

    @property
    def rank(self) -> tuple[int, str]:
        return self.part.position, self.source

    def relabel(self) -> _Work:
        """Find out what becomes of the group."""
        targets: dict[Labels, None] = {}
        errors: dict[str, None] = {}
        for target in self.group.targets:
            outcome = _outcome(self.labeler, target, self.group.labels)
            if isinstance(outcome, Labels):
                if outcome in targets:
                    self.duplicates += 1
                targets[outcome] = None
            elif outcome is None:
                self.dropped += 1
            else:
                self.unusable += 1
                if len(errors) < _TOLD:
                    errors[outcome] = None
            yield 1
        self.targets, self.errors = tuple(targets), tuple(errors)


def _outcome(labeler: Labeler | None, target: Mapping[str, str], group: Mapping[str, str]) -> Labels | str | None:
    """Return the labels of a target, or why it can't be used, or ``None`` if it is dropped."""
    if labeler is None:
        return Labels({name: value for name, value in {**group, **target}.items() if value})
    outcome = labeler.target_labels(labeler.discovered_labels(target, group))
    return outcome.error if outcome.labels is None else Labels(outcome.labels)


class _Set:
    """The parts of one set, and who shows what in it."""

    __slots__ = ("_contested", "_duplicates", "_holders", "_owners", "dirty", "dropped", "faulty", "parts", "unusable")

    def __init__(self) -> None:
        self.parts: dict[str, _Part] = {}  # by provider
        self.dropped = 0
        self.unusable = 0
        self.faulty: dict[_Entry, None] = {}  # those with targets that can't be used
        self.dirty: set[_Entry] = set()  # what they show may have changed
        self._duplicates = 0  # all targets that are duplicates in their group, or that are held
        self._holders: dict[Labels, _Entry | dict[_Entry, None]] = {}  # of each target, one or several
        self._owners: dict[Labels, _Entry] = {}  # of targets with several holders, the one that shows it
        self._contested: set[Labels] = set()  # targets whose owner is to be found anew

    def update(self, part: _Part, source: str, group: TargetGroup | None) -> _Work:
        """Find out what becomes of one group, ``None`` if it is gone."""
        old = part.entries.get(source)
        if old is None if group is None else old is not None and old.labeler is part.labeler and old.group == group:
            yield 1
            return
        if old is not None:
            del part.entries[source]
            self._count(old, -1)
            self.dirty.add(old)
            for labels in old.targets:
                self._release(labels, old)
                yield 1
        if group is not None:
            entry = _Entry(part, group)
            yield from entry.relabel()
            part.entries[source] = entry
            self._count(entry, 1)
            self.dirty.add(entry)
            for labels in entry.targets:
                self._claim(labels, entry)
                yield 1

    def _count(self, entry: _Entry, sign: int) -> None:
        self.dropped += sign * entry.dropped
        self.unusable += sign * entry.unusable
        self._duplicates += sign * (entry.duplicates + len(entry.targets))
        if entry.errors and sign > 0:
            self.faulty[entry] = None
        else:
            self.faulty.pop(entry, None)

    def _claim(self, labels: Labels, entry: _Entry) -> None:
        holder = self._holders.setdefault(labels, entry)
        if type(holder) is dict:
            holder[entry] = None
            owner = self._owners.get(labels)
            if owner is None or entry.rank < owner.rank:
                self._contested.add(labels)
        elif type(holder) is _Entry and holder is not entry:
            self._holders[labels] = {holder: None, entry: None}
            self._contested.add(labels)
            self.dirty.add(holder)

    def _release(self, labels: Labels, entry: _Entry) -> None:
        holder = self._holders[labels]
        if type(holder) is dict:
            del holder[entry]
            if len(holder) < 2 or self._owners.get(labels, entry) is entry:
                self._contested.add(labels)
        else:
            del self._holders[labels]

    def settle(self) -> _Work:
        """Find out who shows the targets that several have, or had."""
        while self._contested:
            labels = self._contested.pop()
            before = self._owners.pop(labels, None)
            holders = self._holders[labels]
            assert type(holders) is dict  # from the first contest on, and until this is settled
            yield len(holders)
            if not holders:
                del self._holders[labels]
                continue
            owner = min(holders, key=lambda entry: entry.rank)
            if len(holders) == 1:
                self._holders[labels] = owner
            else:
                self._owners[labels] = owner
            if owner is not before:
                self.dirty.add(owner)
                if before is not None:
                    self.dirty.add(before)

    def reorder(self) -> None:
        """Note that parts have other positions."""
        self._contested.update(self._owners)

    def shown(self, part: _Part, source: str) -> TargetGroup:
        """Return what is shown of a group: nothing, if it is gone."""
        entry = part.entries.get(source)
        if entry is None:
            return TargetGroup(source, ())
        holders, owners = self._holders, self._owners
        return TargetGroup(source, [t for t in entry.targets if holders[t] is entry or owners.get(t) is entry])

    def statistics(self) -> RelabelStatistics:
        """Return what became of the targets of the set."""
        errors = [error for entry in islice(self.faulty, _TOLD) for error in entry.errors]
        return RelabelStatistics(
            targets=len(self._holders),
            dropped=self.dropped,
            duplicates=self._duplicates - len(self._holders),
            unusable=self.unusable,
            errors=tuple(dict.fromkeys(errors))[:_TOLD],
        )


class RelabeledTargets(History):
    """Follows a store, for as long as somebody subscribes to it.

    Snapshots have the sets and the groups of the store, in the same order. The targets of the groups have their final
    labels, and the groups have none. What rules drop, or can't be used, is left out, and so are groups without targets.

    Args:
      store: what to follow.
      labelings: returns how the labels of its parts are made at this moment. Another object each time that differs. A
        part that is not named is not shown.
      name: of the manager, for the log.

    Attributes:
      subscribers: those who read this, and are told when it has caught up with the store.
      scope: ends :meth:`run`.
      ended: set when :meth:`run` has ended.
    """

    def __init__(self, store: TargetStore, labelings: Callable[[], Labelings], name: str) -> None:
        super().__init__(lambda: None)
        self._store = store
        self._reader = store.reader()
        self._labelings = labelings
        self._name = name
        self._sets: dict[str, _Set] = {}
        self._statistics: dict[str, RelabelStatistics] = {}
        self._base_layout = Layout()
        self._known_labelings: Labelings | None = None
        self._set_trigger, self._trigger = trio.open_memory_channel[None](1)
        self.subscribers = Subscribers()
        self.scope = trio.CancelScope()
        self._done = -1  # the revision of the store up to which all is done
        self._progress = trio.Event()  # another one each time
        self.ended = trio.Event()
        self.notify()

    def notify(self) -> None:
        """Say that the store has changed. Sync; never waits. What is on offer is withdrawn."""
        if self.ended.is_set():
            return  # the manager is being cancelled, and has not closed yet
        with suppress(trio.WouldBlock):  # said already
            self._set_trigger.send_nowait(None)
        self.subscribers.withdraw()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        try:
            with self.scope, self._set_trigger, self._trigger:
                while True:
                    await self._trigger.receive()
                    for _ in self.follow():
                        await trio.lowlevel.checkpoint()
                    self._note_progress()
                    self.subscribers.notify()
        finally:
            self.ended.set()
            self._note_progress()

    def _note_progress(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    async def wait_caught_up(self) -> None:
        """Wait until everything that the store shows now is relabeled, or until :meth:`run` has ended."""
        now = self._store.revision
        while self._done < now and not self.ended.is_set():
            await self._progress.wait()

    def statistics(self, set_name: str) -> RelabelStatistics | None:
        """Return what became of the targets of a set, as they are shown; ``None`` if it is not."""
        return self._statistics.get(set_name)

    def follow(self) -> Iterator[None]:
        """Catch up with the store, as it is at the first step. Sync, in steps of a few hundred targets."""
        work = 0
        for done in self._follow():
            work += done
            if work >= _PAUSE:
                work = 0
                yield

    def _follow(self) -> _Work:
        update = self._reader.read()
        self._reader.given(update)
        base, labelings = update.snapshot, self._labelings()
        todo: _Todo = {
            (set_name, provider): sources
            for provider, sources in update.touched.items()
            for set_name in base.layout.feeds.get(provider, ())
            if (set_name, provider) in labelings
        }
        arranged = labelings is not self._known_labelings
        if arranged:
            layout, gone = self._arrange(base.layout, labelings, todo)
        else:
            layout, gone = self._let_go(base.layout)
        todo.update(dict.fromkeys(gone))
        self._base_layout, self._known_labelings = base.layout, labelings
        for (set_name, provider), sources in todo.items():
            one_set = self._sets[set_name]
            part = one_set.parts[provider]
            groups: Mapping[str, TargetGroup] = {} if (set_name, provider) in gone else base.groups_of(provider)
            for source in {**part.entries, **groups} if sources is None else sources:
                yield from one_set.update(part, source, groups.get(source))
        changed: dict[str, tuple[Groups, list[str]]] = {
            part.name: (NO_GROUPS, [])  # that there is nothing is news, too
            for set_name, provider in todo
            if (part := self._sets[set_name].parts[provider]).name not in self._providers and base.heard_of(provider)
        }
        affected = list(self._sets) if arranged else list(dict.fromkeys([set_name for set_name, _ in todo]))
        for set_name in affected:
            yield from self._show(self._sets[set_name], changed)
        gone_names = [self._sets[set_name].parts.pop(provider).name for set_name, provider in gone]
        self._finish(base, layout, changed, gone_names, arranged=arranged)
        for set_name in affected:
            self._note_statistics(set_name)
        self._done = base.revision

    def _arrange(self, base: Layout, labelings: Labelings, todo: _Todo) -> tuple[Layout, _Gone]:
        """Return the layout of the parts, and which parts are gone; add to ``todo`` those to be done as a whole."""
        gone = {(set_name, provider) for set_name, one_set in self._sets.items() for provider in one_set.parts}
        sets: dict[str, tuple[str, ...]] = {}
        labelers: dict[int, Labeler] = {}  # made once for all parts of a set, by the identity of what makes them
        for set_name in base.order:
            providers = [p for p in base.providers[set_name] if (set_name, p) in labelings]
            if not providers and base.providers[set_name]:
                continue  # restored, and not configured yet
            if set_name not in self._sets:
                self._sets[set_name] = _Set()
            one_set = self._sets[set_name]
            for position, provider in enumerate(providers):
                key = set_name, provider
                labeling = labelings[key]
                part = one_set.parts.get(provider)
                if part is None:
                    part = one_set.parts[provider] = _Part(f"{set_name}\0{provider}")
                    todo[key] = None
                if part.labeling != labeling:
                    if labeling is not None and id(labeling) not in labelers:
                        labelers[id(labeling)] = labeling.labeler()
                    part.labeling, part.labeler = labeling, None if labeling is None else labelers[id(labeling)]
                    todo[key] = None
                if part.position != position:
                    part.position = position
                    one_set.reorder()
                gone.discard(key)
            sets[set_name] = tuple([one_set.parts[provider].name for provider in providers])
        return self._layout.followed_by(sets), gone

    def _let_go(self, base: Layout) -> tuple[Layout, _Gone]:
        """Return the layout of the parts without those that were leaving and have gone, and which these are."""
        if base is self._base_layout:
            return self._layout, set()
        known = self._base_layout.providers
        gone = {
            (set_name, provider)
            for set_name, providers in base.providers.items()
            if set_name in self._sets and providers is not known[set_name]
            for provider in set(known[set_name]).difference(providers)
        }
        names = [(set_name, self._sets[set_name].parts[provider].name) for set_name, provider in gone]
        return self._layout.without(names), gone

    def _show(self, one_set: _Set, changed: dict[str, tuple[Groups, list[str]]]) -> _Work:
        """Add to ``changed`` what each part of a set shows now, and the sources that differ."""
        yield from one_set.settle()
        dirty: dict[_Part, dict[str, None]] = {}
        while one_set.dirty:
            entry = one_set.dirty.pop()
            dirty.setdefault(entry.part, {})[entry.source] = None
            yield 1
        for part, sources in dirty.items():
            held, differing = self._providers.get(part.name, NO_GROUPS), list[str]()
            remaining = iter(sources)
            while some := list(islice(remaining, _GROUPS_AT_ONCE)):
                groups = []
                for source in some:
                    groups.append(one_set.shown(part, source))
                    yield 1
                held, found, _ = held.merged(groups)
                differing.extend(found)
            if differing:
                changed[part.name] = held, differing

    def _finish(
        self,
        base: Snapshot,
        layout: Layout,
        changed: Mapping[str, tuple[Groups, list[str]]],
        gone: Collection[str],
        *,
        arranged: bool,
    ) -> None:
        """Make what was worked out visible, in one revision."""
        before = self._visible_order(self._layout) if arranged else []
        for name, (groups, sources) in changed.items():
            self._providers = self._providers.set(name, groups)
            self._note_change(name, sources)
        for name in gone:
            if name in self._providers:
                self._providers = self._providers.delete(name)
        differs = bool(changed) or self._done < 0
        if arranged:
            self._sets = {name: one_set for name, one_set in self._sets.items() if name in layout.providers}
            self._statistics = {name: found for name, found in self._statistics.items() if name in self._sets}
            differs |= self._visible_order(layout) != before
        stale = Map(self._stale_parts(base)) if base.stale_providers or self._stale else self._stale
        differs |= stale != self._stale
        self._layout, self._stale = layout, stale
        if differs:
            self._publish(base.revision)

    def _visible_order(self, layout: Layout) -> list[tuple[str, list[str]]]:
        """Return the sets in order, each with its parts that have something to show."""
        return [(name, [part for part in layout.providers[name] if self.counts(part)[0]]) for name in layout.order]

    def _stale_parts(self, base: Snapshot) -> dict[str, float]:
        """Return the parts that show something of the state file, each with the time when that was right."""
        return {
            part.name: since
            for provider, since in base.stale_providers.items()
            for set_name in base.layout.feeds.get(provider, ())
            if set_name in self._sets and (part := self._sets[set_name].parts.get(provider)) is not None
            if self.counts(part.name)[0]
        }

    def _note_statistics(self, set_name: str) -> None:
        """Take the statistics of a set that has changed, and tell of targets that can't be used for other reasons."""
        one_set = self._sets.get(set_name)
        if one_set is None:
            return
        before = self._statistics.get(set_name)
        found = self._statistics[set_name] = one_set.statistics()
        if found.errors and (before is None or found.errors != before.errors):
            logger.warning(
                "manager %s: %d targets of %s can't be used: %s",
                self._name,
                found.unusable,
                set_name,
                "; ".join(found.errors),
            )
