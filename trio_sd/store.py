"""The one owner of what has been discovered.

Providers report groups, the manager applies configurations, subscriptions read: all of it sync code, so nothing here
is ever seen half done, and nothing here can wait.

Theory of operation
===================

*State.* ``provider → source → group`` in persistent maps, and a *layout* that says which providers make up which set.
A provider that feeds many sets is held once. Changing one group writes a logarithmic number of map nodes whatever the
number of groups; a :class:`Snapshot` is two references, and stays what it was for as long as somebody holds it.
(A plain ``dict`` copied at each change takes 1.6 ms at 100,000 groups; a shared mutable one would make every snapshot
a copy.)

*Change.* Each revision appends one node, the keys that it touched, to a singly linked list of which the store knows
only the end. Every :class:`Reader` holds the node up to which it has read; what all have read is garbage by itself.
So noting a change costs the same with one reader or a thousand, and there is no log to trim.

*Reload.* Applying a configuration does not touch groups. A provider that stays keeps its groups until the first
report of its new run replaces them. One that has left a set is *leaving* it: it is shown until every provider that
is *joining* the set has reported, or its deadline has passed. Whoever joined a set and has not reported since is
joining, also when it joined by an earlier reload, so that two reloads in a row make no flap either.

*Last known good.* What an earlier process had found is restored as if a configuration had been applied and reported;
so the first configuration of this process is a reload like any other. What was restored is *stale* until its provider
has found it out itself.

*Age.* Of each provider the store knows when everything that it shows was last *known to be right*. A report says so,
but not that of a discoverer that tells of failures: a part that it can't read is shown as it was. What such a one takes
from :meth:`TargetStore.last_known` is as old as it was there, also under another provider.

*Damping.* If removals wait, reports pass through :mod:`~trio_sd.damping`, which says what to show in their place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from types import MappingProxyType
from typing import Final

from immutables import Map

from .damping import Damping
from .targets import TargetGroup

__all__ = ["Changes", "Reader", "Reported", "SetChanges", "Snapshot", "TargetStore", "Update"]


class _Groups:
    """What one provider has found at one moment. Immutable; the order is worked out when first asked for.

    To sort 100,000 groups takes 100 ms. So groups that differ in little from others whose order is known take that
    order, and put right what differs.
    """

    __slots__ = ("_basis", "_changed", "_ordered", "by_source", "targets")

    def __init__(
        self,
        by_source: Map[str, TargetGroup],
        targets: int,
        basis: tuple[TargetGroup, ...] | None = None,
        changed: tuple[str, ...] = (),
    ) -> None:
        self.by_source = by_source
        self.targets = targets
        self._ordered: tuple[TargetGroup, ...] | None = None
        self._basis = basis  # earlier groups, in order, and the sources that differ since
        self._changed = changed

    @property
    def ordered(self) -> tuple[TargetGroup, ...]:
        if self._ordered is None:
            if self._basis is None:
                self._ordered = tuple(sorted(self.by_source.values(), key=_source))
            else:
                self._ordered = tuple(self._put_right(list(self._basis)))
            self._basis, self._changed = None, ()
        return self._ordered

    def _put_right(self, groups: list[TargetGroup]) -> list[TargetGroup]:
        for source in dict.fromkeys(self._changed):
            place = bisect_left(groups, source, key=_source)
            known = place < len(groups) and groups[place].source == source
            groups[place : place + known] = [self.by_source[source]] if source in self.by_source else []
        return groups

    def followed_by(self, by_source: Map[str, TargetGroup], targets: int, changed: Sequence[str]) -> _Groups:
        """Return the groups after ``changed`` sources have changed."""
        basis, before = (self._basis, self._changed) if self._ordered is None else (self._ordered, ())
        if basis is None or len(before) + len(changed) > _PUT_RIGHT:
            return _Groups(by_source, targets)
        return _Groups(by_source, targets, basis, (*before, *changed))


_NO_GROUPS: Final = _Groups(Map(), 0)
_REMEMBERED: Final = 1_000
_PUT_RIGHT: Final = 64
_source: Final = attrgetter("source")

_Touched = Mapping[str, Collection[str] | None]
"""The sources that may differ, by provider; ``None`` for all that it has or had."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which providers make up which set, and the other way round. Sets keep the order of the configuration."""

    order: tuple[str, ...] = ()
    providers: Map[str, tuple[str, ...]] = Map()
    feeds: Map[str, tuple[str, ...]] = Map()

    def without(self, leavers: Iterable[tuple[str, str]]) -> _Layout:
        """Return this layout without the given (set, provider) pairs."""
        gone_from: dict[str, set[str]] = {}
        fed_no_more: dict[str, set[str]] = {}
        for set_name, provider in leavers:
            gone_from.setdefault(set_name, set()).add(provider)
            fed_no_more.setdefault(provider, set()).add(set_name)
        providers, feeds = self.providers, self.feeds
        for set_name, gone in gone_from.items():
            providers = providers.set(set_name, tuple([p for p in providers[set_name] if p not in gone]))
        for provider, names in fed_no_more.items():
            fed = tuple([name for name in feeds[provider] if name not in names])
            feeds = feeds.set(provider, fed) if fed else feeds.delete(provider)
        return _Layout(self.order, providers, feeds)


class Snapshot(Mapping[str, tuple[TargetGroup, ...]]):
    """Every set and its groups at one revision. Immutable.

    Sets come in the order of the configuration; the groups of a set in the order of its configurations, then of
    their sources. Every configured set is present, if only empty. The tuple of a set is built when first asked for;
    a set of one provider shares it with later snapshots for as long as nothing in it changes.
    """

    __slots__ = ("_layout", "_providers", "_sets", "_stale", "revision")

    def __init__(
        self, revision: int, layout: _Layout, providers: Map[str, _Groups], stale: Map[str, float] = Map()
    ) -> None:
        self.revision = revision
        self._layout = layout
        self._providers = providers
        self._stale = stale
        self._sets: dict[str, tuple[TargetGroup, ...]] = {}

    def __getitem__(self, set_name: str) -> tuple[TargetGroup, ...]:
        groups = self._sets.get(set_name)
        if groups is None:
            parts = [part.ordered for part in self._parts(set_name)]
            groups = parts[0] if len(parts) == 1 else tuple([group for part in parts for group in part])
            self._sets[set_name] = groups
        return groups

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.order)

    def __len__(self) -> int:
        return len(self._layout.order)

    def __contains__(self, set_name: object) -> bool:
        return set_name in self._layout.providers

    def __repr__(self) -> str:
        sets = ", ".join(f"{name}: {self.group_count(name)} groups" for name in self)
        return f"<Snapshot revision {self.revision}: {sets or 'no sets'}>"

    def group_count(self, set_name: str) -> int:
        """Return the number of groups in a set, without building its tuple."""
        return sum([len(part.by_source) for part in self._parts(set_name)])

    def target_count(self, set_name: str) -> int:
        """Return the number of targets in a set, without building its tuple."""
        return sum([part.targets for part in self._parts(set_name)])

    @property
    def stale(self) -> Mapping[str, float]:
        """The sets that show something from the state file which was not confirmed since this process began.

        Each with the Unix time at which the oldest such part was last known to be right.
        """
        since: dict[str, float] = {}
        for provider, known_good in self._stale.items():
            for set_name in self._layout.feeds.get(provider, ()):
                since[set_name] = min(known_good, since.get(set_name, known_good))
        return {set_name: since[set_name] for set_name in self._layout.order if set_name in since} if since else since

    def _parts(self, set_name: str) -> list[_Groups]:
        return [self._providers.get(provider, _NO_GROUPS) for provider in self._layout.providers[set_name]]

    def _by_source(self, provider: str) -> Map[str, TargetGroup]:
        return self._providers.get(provider, _NO_GROUPS).by_source


_EMPTY_SNAPSHOT: Final = Snapshot(0, _Layout(), Map())


@dataclass(frozen=True, slots=True)
class SetChanges:
    """What changed in one set between two updates, by source.

    Attributes:
      updated: every group of each source that is new or changed. Where two providers of a set use the same source,
        the groups of both are listed though only one has changed, so that "replace what this source had" is right.
      removed: the sources of which nothing is left.
    """

    updated: tuple[TargetGroup, ...] = ()
    removed: tuple[str, ...] = ()


Changes = Mapping[str, SetChanges]
"""What changed between two revisions, by set."""


class Update:
    """The newest state, and how it differs from what the same subscriber was handed before. Immutable.

    Attributes:
      revision: of the snapshot; rises from update to update.
      snapshot: every set and its groups.
    """

    __slots__ = ("_base", "_changes", "_touched", "revision", "snapshot")

    def __init__(self, base: Snapshot, snapshot: Snapshot, touched: _Touched) -> None:
        self.revision = snapshot.revision
        self.snapshot = snapshot
        self._base: Snapshot | None = base
        self._touched = touched
        self._changes: Changes | None = None

    @property
    def changes(self) -> Changes:
        """What differs, by set; work in proportion to what was touched, done when first asked for, in one thread.

        A set is named if groups in it changed, or it is new, or it went away; in the first update all are.
        """
        if self._changes is None:
            assert self._base is not None
            self._changes = MappingProxyType(_differences(self._base, self.snapshot, self._touched))
            self._base = None  # the old groups are not held any longer than needed
        return self._changes

    def __repr__(self) -> str:
        return f"<Update {self.snapshot!r}>"


def _differences(old: Snapshot, new: Snapshot, touched: _Touched) -> dict[str, SetChanges]:
    """Return the changes by set, given the sources that were ``touched`` by provider."""
    before, after = old._layout, new._layout
    affected = {set_name for provider in touched for set_name in after.feeds.get(provider, ())}
    if before is not after:
        affected |= {name for name in after.order if before.providers.get(name) is not after.providers[name]}
        affected |= {name for name in before.order if name not in after.providers}
    if len(affected) == 1:  # the usual case; saves going through the names of all sets
        order = list(affected)
    else:
        gone = [name for name in before.order if name not in after.providers]
        order = [name for name in [*after.order, *gone] if name in affected]
    changes = {}
    for name in order:
        found = _set_differences(old, new, name, touched)
        if found.updated or found.removed or (name in before.providers) != (name in after.providers):
            changes[name] = found
    return changes


def _set_differences(old: Snapshot, new: Snapshot, set_name: str, touched: _Touched) -> SetChanges:
    before = old._layout.providers.get(set_name, ())
    after = new._layout.providers.get(set_name, ())
    if not any(old._by_source(provider) for provider in before):
        return SetChanges(new.get(set_name, ()))  # all that is there is new, and in order
    # What may differ: what was touched in the providers that stay, and everything of those that came or went.
    sources: set[str] = set()
    stayed = set(before).intersection(after)
    for provider in {*before, *after}:
        known = touched.get(provider, ()) if provider in stayed else None
        if known is not None:
            sources.update(known)
        else:
            # One that came or went has nothing in the set on the other side; what it had elsewhere does no harm here.
            for snapshot in old, new:
                sources.update(snapshot._by_source(provider))
    if before == after and len(after) == 1:
        return _provider_differences(old._by_source(after[0]), new._by_source(after[0]), sources)
    had = _groups_of(old, before, sources)
    has = _groups_of(new, after, sources)
    updated: list[tuple[int, str, TargetGroup]] = []
    removed: list[str] = []
    for source in sources:
        now = has.get(source, [])
        if [group for _, group in had.get(source, ())] == [group for _, group in now]:
            continue
        if now:
            updated.extend([(position, source, group) for position, group in now])
        else:
            removed.append(source)
    updated.sort(key=lambda item: item[:2])
    return SetChanges(tuple([group for _, _, group in updated]), tuple(sorted(removed)))


def _provider_differences(
    had: Map[str, TargetGroup], has: Map[str, TargetGroup], sources: Collection[str]
) -> SetChanges:
    """Return the changes in a set of one provider, given the sources that may differ. Nearly all sets are such."""
    differing = [source for source in sorted(sources) if had.get(source) != has.get(source)]
    updated = [has[source] for source in differing if source in has]
    return SetChanges(tuple(updated), tuple([source for source in differing if source not in has]))


def _groups_of(
    snapshot: Snapshot, providers: Sequence[str], sources: Collection[str]
) -> dict[str, list[tuple[int, TargetGroup]]]:
    """Return the groups of each of ``sources``, with the positions of their providers."""
    found: dict[str, list[tuple[int, TargetGroup]]] = {}
    for position, provider in enumerate(providers):
        groups = snapshot._by_source(provider)
        for source in sources if len(sources) < len(groups) else groups:
            if source in sources and source in groups:
                found.setdefault(source, []).append((position, groups[source]))
    return found


class _Change:
    """One node of the list of changes. The last one is empty: it will tell of the revision to come."""

    __slots__ = ("next", "provider", "sources")

    def __init__(self) -> None:
        self.provider = ""
        self.sources: Collection[str] = ()
        self.next: _Change | None = None


class Reader:
    """Follows a store for one subscriber: what is the newest state, and what of it has this one not been given?"""

    def __init__(self, store: TargetStore) -> None:
        self._store = store
        self._position = store._changes_end
        self._given = _EMPTY_SNAPSHOT
        self._touched: dict[str, set[str] | None] = {}

    @property
    def behind(self) -> int:
        """The number of revisions that this reader has not been given."""
        return self._store.revision - self._given.revision

    def read(self) -> Update:
        """Return an update from what was last :meth:`given` to the newest state.

        It may be read again, and be thrown away, any number of times: only ``given`` moves on.
        """
        position = self._position
        while position.next is not None:
            self._touch(position.provider, position.sources)
            position = position.next
        self._position = position
        return Update(self._given, self._store.snapshot(), self._touched)

    def _touch(self, provider: str, sources: Collection[str]) -> None:
        touched = self._touched.setdefault(provider, set())
        if touched is None:
            return
        touched.update(sources)
        # Sources come and go for ever while a subscriber takes nothing. Beyond what is held, to compare everything is
        # cheaper than to remember it all.
        if len(touched) > _REMEMBERED + 2 * self._store.counts(provider)[0]:
            self._touched[provider] = None

    def given(self, update: Update) -> None:
        """Note that the subscriber has taken ``update``, the one last read."""
        self._given = update.snapshot
        self._touched = {}


@dataclass(frozen=True, slots=True)
class Reported:
    """What the store made of one report.

    Attributes:
      changed: groups that were added, changed or removed.
      duplicates: groups that were lost because a later one in the same report had the same source.
    """

    changed: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class _Lent:
    """What a provider was given of those that it replaces, in case that it can't read something.

    Attributes:
      groups: by source.
      known_right: when all of it was last known to be right.
      stale: the Unix time when what was restored of it was right, if something was.
      unconfirmed: the sources that still show what was restored.
    """

    groups: Mapping[str, TargetGroup]
    known_right: float
    stale: float | None
    unconfirmed: frozenset[str]


class TargetStore:
    """Holds what providers have found, arranges it in sets, and numbers every change.

    Providers are known by name. Times are seconds on whatever clock the caller uses.

    Args:
      on_change: called without arguments after every new revision.
      on_deadline: called without arguments when :attr:`next_deadline` may have changed.
      removal_delay: seconds for which a target is shown after its removal was reported.
    """

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        on_deadline: Callable[[], None] = lambda: None,
        removal_delay: float = 0.0,
    ) -> None:
        self._on_change = on_change
        self._on_deadline = on_deadline
        self._damping = Damping(removal_delay) if removal_delay > 0 else None
        self._layout = _EMPTY_SNAPSHOT._layout
        self._providers: Map[str, _Groups] = Map()
        self._snapshot = _EMPTY_SNAPSHOT
        self._reported: set[str] = set()  # providers whose present run has reported
        self._joining: dict[str, set[str]] = {}  # set → providers not heard of since they joined it
        self._leaving: dict[str, dict[str, float]] = {}  # set → provider → deadline
        self._leaving_deadline = inf  # the first of these
        self._known_right: dict[str, float] = {}  # provider → when all that it shows was last known to be right
        self._stale: Map[str, float] = Map()  # provider → the Unix time when what was restored was right
        self._unconfirmed: dict[str, set[str]] = {}  # stale provider → sources that still show what was restored
        self._confirmed: dict[str, float] = {}  # stale provider → when the first of its sources was found out
        self._lent: dict[str, _Lent] = {}  # provider that shows nothing → what it was given of others, until it reports
        self._changes_end = _Change()

    @property
    def revision(self) -> int:
        """The number of the newest state. Rises by one with every change."""
        return self._snapshot.revision

    def snapshot(self) -> Snapshot:
        """Return the newest state; costs nothing."""
        return self._snapshot

    def reader(self) -> Reader:
        """Return a reader for a new subscriber. Its first update is the whole state."""
        return Reader(self)

    def groups(self, provider: str) -> Mapping[str, TargetGroup]:
        """Return what is shown of a provider, by source; an immutable mapping."""
        return self._providers.get(provider, _NO_GROUPS).by_source

    def last_known(self, provider: str) -> Mapping[str, TargetGroup]:
        """Return by source what a new run of a provider may take for its parts that can't be read now.

        That is what is held of it, or, if it has just joined a set, what those have that leave the set: a changed
        configuration mostly finds the same things.
        """
        own = self.found(provider)
        if own:
            return own
        sets = self._layout.feeds.get(provider, ())
        leavers = sorted({leaver for set_name in sets for leaver in self._leaving.get(set_name, ())})
        known = MappingProxyType({s: group for leaver in leavers for s, group in self.found(leaver).items()})
        if known:
            self._lent[provider] = _Lent(
                known,
                min([self._known_right[leaver] for leaver in leavers if leaver in self._known_right]),
                min([self._stale[leaver] for leaver in leavers if leaver in self._stale], default=None),
                frozenset(s for leaver in leavers for s in self._unconfirmed.get(leaver, ())),
            )
        else:
            self._lent.pop(provider, None)
        return known

    def found(self, provider: str) -> Mapping[str, TargetGroup]:
        """Return what a provider has found last, by source, without what is shown only because its removal waits."""
        found = self._damping.found(provider) if self._damping is not None else None
        return self.groups(provider) if found is None else found

    def known_right(self, provider: str) -> float | None:
        """Return when everything that is shown of a provider was last known to be right; ``None`` if never."""
        return self._known_right.get(provider)

    def stale_since(self, provider: str) -> float | None:
        """Return the Unix time when what is shown of the provider was right, if some was restored and still is."""
        return self._stale.get(provider)

    def arrangement(self) -> Mapping[str, tuple[str, ...]]:
        """Return the providers that are shown in each set, those that leave it included, in order."""
        return {set_name: self._layout.providers[set_name] for set_name in self._layout.order}

    def counts(self, provider: str) -> tuple[int, int]:
        """Return the number of groups and of targets that are held of a provider."""
        held = self._providers.get(provider, _NO_GROUPS)
        return len(held.by_source), held.targets

    @property
    def next_deadline(self) -> float | None:
        """When something must go next: a provider that is leaving, or a target whose removal waits; or ``None``."""
        removal = self._damping.next_deadline if self._damping is not None else inf
        deadline = min(self._leaving_deadline, removal)
        return None if deadline == inf else deadline

    @property
    def leaving(self) -> Mapping[str, Collection[str]]:
        """The providers that are still shown in sets that they have left, by set."""
        return {set_name: tuple(leaving) for set_name, leaving in self._leaving.items()}

    def apply(self, sets: Mapping[str, Sequence[str]], *, restarted: Collection[str], deadline: float) -> None:
        """Arrange the sets anew, in one revision.

        Args:
          sets: the names of the providers of each set, in the order of the configuration.
          restarted: providers that begin a new run, whose next report therefore is a first one.
          deadline: until when to show what leaves a set by this call, if those who join it do not report sooner.
        """
        self._reported.difference_update(restarted)
        joining: dict[str, set[str]] = {}
        leaving: dict[str, dict[str, float]] = {}
        for name, members in sets.items():
            shown = self._layout.providers.get(name, ())
            old_leaving = self._leaving.get(name, {})
            old_joining = self._joining.get(name, set())
            stayed = {p for p in shown if p not in old_leaving and p not in old_joining}
            joining[name] = {p for p in members if p not in stayed and p not in self._reported}
            if joining[name]:
                staying = set(members)
                gone = [p for p in shown if p not in staying and p in self._providers]
                if gone:
                    leaving[name] = {p: old_leaving.get(p, deadline) for p in gone}
        self._joining = joining
        self._leaving = leaving
        self._layout = _lay_out(self._layout, {name: (*sets[name], *leaving.get(name, ())) for name in sets})
        self._forget_unused()
        self._lent = {provider: lent for provider, lent in self._lent.items() if provider in self._layout.feeds}
        self._note_deadline()
        self._next_revision()

    def restore(
        self, sets: Mapping[str, Sequence[str]], found: Mapping[str, tuple[Iterable[TargetGroup], float, float]]
    ) -> None:
        """Show what an earlier process has found, in one revision. Only for a store that holds nothing yet.

        Args:
          sets: the names of the providers of each set.
          found: of each provider its groups, the Unix time when they were last known to be right, and the same
            moment on the caller's clock.
        """
        assert self.revision == 0
        self._layout = _lay_out(self._layout, {name: tuple(members) for name, members in sets.items()})
        for provider, (groups, known_good, known_right) in found.items():
            held, sources, _ = _replace(_NO_GROUPS, tuple(groups))
            self._providers = self._providers.set(provider, held)
            self._stale = self._stale.set(provider, known_good)
            self._unconfirmed[provider] = set(held.by_source)
            self._known_right[provider] = known_right
            self._note_change(provider, sources)
        self._forget_unused()
        self._next_revision()

    def begin_run(self, provider: str) -> None:
        """Note that a provider begins anew: its next report is a first one, which replaces what it has."""
        self._reported.discard(provider)

    def report(
        self, provider: str, groups: Sequence[TargetGroup], *, now: float = 0.0, failing: bool = False
    ) -> Reported:
        """Take in what a provider sends.

        The first report of a run is the full set: what it does not name is gone. Later ones replace group by group;
        a group without targets removes its source. It is a new revision if anything changed, or if it is the first
        that is ever heard of the provider in this process: "there is nothing" is news too, and so is "it is still so".

        Reports of a provider that no set knows are ignored.

        Args:
          provider: who reports.
          groups: what it sends.
          now: the time.
          failing: whether it says that something can't be read at present, so that what it sends may be old in part.

        Raises:
          TypeError: ``groups`` holds something else than target groups; nothing was taken in.
        """
        given: object = groups  # from a mechanism, which may send anything
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise TypeError(f"an update is a sequence of target groups, not {type(given).__name__}: {given!r}")
        for group in groups:
            if type(group) is not TargetGroup:
                raise TypeError(f"an update consists of target groups, not {type(group).__name__}: {group!r}")
        if provider not in self._layout.feeds:
            return Reported(0, 0)
        first = provider not in self._reported
        held = self._providers.get(provider, _NO_GROUPS)
        news = provider not in self._providers
        if not failing or provider not in self._known_right or provider in self._stale or provider in self._lent:
            news |= self._note_age(provider, groups, full=first, now=now, failing=failing)
        if self._damping is not None:
            after, changed, duplicates = self._merge_damped(self._damping, provider, held, groups, first, now)
        else:
            after, changed, duplicates = _replace(held, groups) if first else _merge(held, groups)
        self._reported.add(provider)
        if changed or news:
            self._providers = self._providers.set(provider, after)
        settled = first and self._settle(provider)
        if changed or news or settled:
            self._next_revision(provider, changed)
        return Reported(len(changed), duplicates)

    def confirm(self, provider: str, now: float) -> None:
        """Note that all that is shown of a provider is right, though it has nothing to report."""
        if provider in self._known_right and provider not in self._stale:
            self._known_right[provider] = now

    def expire(self, now: float) -> None:
        """Let go, in one revision, what has reached its deadline; without effect if there is nothing."""
        removed = self._damping.expire(now, self.groups) if self._damping is not None else {}
        for provider, groups in removed.items():
            after, changed, _ = _merge(self._providers[provider], groups)
            self._providers = self._providers.set(provider, after)
            self._note_change(provider, changed)
        overdue = [
            (set_name, provider)
            for set_name, leaving in self._leaving.items()
            for provider, deadline in leaving.items()
            if deadline <= now
        ]
        self._let_go(overdue)
        if overdue or removed:
            self._next_revision()
        self._on_deadline()

    def _note_age(self, provider: str, groups: Sequence[TargetGroup], *, full: bool, now: float, failing: bool) -> bool:
        """Note how old is what a provider is about to show; return whether it is stale no more.

        What a discoverer could not read, and took from :meth:`last_known`, is the same object as there. What it has
        found anew is another one, though it may be equal.
        """
        lent = self._lent.pop(provider, None)
        if not failing:
            self._known_right[provider] = now
            return self._is_stale_no_more(provider)
        given = {group.source: group for group in groups}
        if provider in self._stale:
            held, unconfirmed = self.groups(provider), self._unconfirmed[provider]
            confirmed = {s for s in unconfirmed if (s in given or full) and given.get(s) is not held[s]}
            unconfirmed -= confirmed
            if confirmed:
                self._confirmed.setdefault(provider, now)  # it may have become unreadable since
            if not unconfirmed:
                self._known_right[provider] = self._confirmed.get(provider, now)
                self._is_stale_no_more(provider)
            return not unconfirmed
        used = {s for s, group in given.items() if lent.groups.get(s) is group} if lent is not None else set()
        before = self._known_right.get(provider, now)
        self._known_right[provider] = min(before, lent.known_right) if lent is not None and used else before
        if lent is not None and lent.stale is not None and (unconfirmed := used & lent.unconfirmed):
            self._stale = self._stale.set(provider, lent.stale)
            self._unconfirmed[provider] = unconfirmed
        return False

    def _is_stale_no_more(self, provider: str) -> bool:
        if provider not in self._stale:
            return False
        self._stale = self._stale.delete(provider)
        del self._unconfirmed[provider]
        self._confirmed.pop(provider, None)
        return True

    def _merge_damped(
        self, damping: Damping, provider: str, held: _Groups, groups: Sequence[TargetGroup], full: bool, now: float
    ) -> tuple[_Groups, Collection[str], int]:
        """As :func:`_replace` and :func:`_merge`, with what is to be shown in the place of what was reported."""
        by_source = {group.source: group for group in groups}
        shown = damping.take(provider, by_source, held.by_source, full=full, now=now)
        self._on_deadline()
        after, changed, _ = _merge(held, shown)
        return after, changed, len(groups) - len(by_source)

    def _settle(self, provider: str) -> bool:
        """Note that a provider has reported; return whether that let others go."""
        going: list[tuple[str, str]] = []
        for set_name in self._layout.feeds[provider]:
            joining = self._joining[set_name]
            if provider in joining:
                joining.discard(provider)
                if not joining:
                    going.extend([(set_name, leaver) for leaver in self._leaving.get(set_name, ())])
        self._let_go(going)
        return bool(going)

    def _let_go(self, leavers: Collection[tuple[str, str]]) -> None:
        if not leavers:
            return
        for set_name, provider in leavers:
            del self._leaving[set_name][provider]
            if not self._leaving[set_name]:
                del self._leaving[set_name]
        self._layout = self._layout.without(leavers)
        self._forget_unused({provider for _, provider in leavers})
        self._note_deadline()

    def _note_deadline(self) -> None:
        self._leaving_deadline = min((t for leaving in self._leaving.values() for t in leaving.values()), default=inf)
        self._on_deadline()

    def _forget_unused(self, candidates: Collection[str] | None = None) -> None:
        unused = [p for p in candidates or tuple(self._providers) if p not in self._layout.feeds]
        for provider in unused:
            self._note_change(provider, tuple(self.groups(provider)))  # it may be back before a reader looks
            self._providers = self._providers.delete(provider)
            self._reported.discard(provider)
            self._known_right.pop(provider, None)
            self._is_stale_no_more(provider)
            if self._damping is not None:
                self._damping.forget(provider)

    def _next_revision(self, provider: str = "", sources: Collection[str] = ()) -> None:
        self._snapshot = Snapshot(self.revision + 1, self._layout, self._providers, self._stale)
        self._note_change(provider, sources)
        self._on_change()

    def _note_change(self, provider: str, sources: Collection[str]) -> None:
        if sources:
            node = self._changes_end
            node.provider, node.sources, node.next = provider, sources, _Change()
            self._changes_end = node.next


def _lay_out(old: _Layout, sets: Mapping[str, tuple[str, ...]]) -> _Layout:
    """Return the layout of ``sets``; a set that has not changed keeps its tuple, so that it is seen not to have."""
    providers = {}
    feeds: dict[str, list[str]] = {}
    for name, members in sets.items():
        unique = tuple(dict.fromkeys(members))
        known = old.providers.get(name)
        providers[name] = known if known == unique and known is not None else unique
        for provider in unique:
            feeds.setdefault(provider, []).append(name)
    return _Layout(tuple(sets), Map(providers), Map({p: tuple(names) for p, names in feeds.items()}))


def _replace(held: _Groups, groups: Sequence[TargetGroup]) -> tuple[_Groups, Collection[str], int]:
    """Return the groups after a full set, the sources that differ, and the number of duplicates."""
    old = held.by_source
    by_source = {group.source: group for group in groups}
    duplicates = len(groups) - len(by_source)
    new = {source: group for source, group in by_source.items() if group.targets}
    # Nothing is compared with None: that would run a group's __eq__, ten thousand times for as many new groups.
    changed = [source for source, group in new.items() if source not in old or old[source] != group]
    changed.extend([source for source in old if source not in new])
    if not changed:
        return held, (), duplicates
    return _Groups(Map(new), sum([len(group.targets) for group in new.values()])), changed, duplicates


def _merge(held: _Groups, groups: Sequence[TargetGroup]) -> tuple[_Groups, Collection[str], int]:
    """Return the groups after some have changed, the sources that differ, and the number of duplicates."""
    old = held.by_source
    by_source = {group.source: group for group in groups}
    targets = held.targets
    changed = []
    with old.mutate() as new:
        for source, group in by_source.items():
            known = old.get(source)
            if group.targets:
                if known is not None and known == group:
                    continue
                new[source] = group
            elif known is not None:
                del new[source]
            else:
                continue
            targets += len(group.targets) - (len(known.targets) if known is not None else 0)
            changed.append(source)
        after = new.finish()
    return held.followed_by(after, targets, changed) if changed else held, changed, len(groups) - len(by_source)
