"""The one owner of what has been discovered.

Providers report groups, the manager applies configurations, subscriptions read: all of it sync code, so nothing here
is ever seen half done, and nothing here can wait.

Theory of operation
===================

*State and change.* See :mod:`~trio_sd.snapshots`, which holds them; here is what they become by reports and reloads.

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

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from .damping import Damping
from .snapshots import NO_GROUPS, Groups, History
from .targets import TargetGroup

__all__ = ["Reported", "TargetStore"]


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


class TargetStore(History):
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
        super().__init__(on_change)
        self._on_deadline = on_deadline
        self._damping = Damping(removal_delay) if removal_delay > 0 else None
        self._reported: set[str] = set()  # providers whose present run has reported
        self._joining: dict[str, set[str]] = {}  # set → providers not heard of since they joined it
        self._leaving: dict[str, dict[str, float]] = {}  # set → provider → deadline
        self._leaving_deadline = inf  # the first of these
        self._known_right: dict[str, float] = {}  # provider → when all that it shows was last known to be right
        self._unconfirmed: dict[str, set[str]] = {}  # stale provider → sources that still show what was restored
        self._confirmed: dict[str, float] = {}  # stale provider → when the first of its sources was found out
        self._lent: dict[str, _Lent] = {}  # provider that shows nothing → what it was given of others, until it reports

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
        self._layout = self._layout.followed_by({name: (*sets[name], *leaving.get(name, ())) for name in sets})
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
        self._layout = self._layout.followed_by({name: tuple(members) for name, members in sets.items()})
        for provider, (groups, known_good, known_right) in found.items():
            held, sources, _ = NO_GROUPS.replaced(tuple(groups))
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
        held = self._providers.get(provider, NO_GROUPS)
        news = provider not in self._providers
        if not failing or provider not in self._known_right or provider in self._stale or provider in self._lent:
            news |= self._note_age(provider, groups, full=first, now=now, failing=failing)
        if self._damping is not None:
            after, changed, duplicates = self._merge_damped(self._damping, provider, held, groups, first, now)
        else:
            after, changed, duplicates = held.replaced(groups) if first else held.merged(groups)
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
            after, changed, _ = self._providers[provider].merged(groups)
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
        self, damping: Damping, provider: str, held: Groups, groups: Sequence[TargetGroup], full: bool, now: float
    ) -> tuple[Groups, Collection[str], int]:
        """As :meth:`Groups.replaced` or :meth:`Groups.merged`, with what to show in the place of what was reported."""
        by_source = {group.source: group for group in groups}
        shown = damping.take(provider, by_source, held.by_source, full=full, now=now)
        self._on_deadline()
        after, changed, _ = held.merged(shown)
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
        self._note_change(provider, sources)
        self._publish(self.revision + 1)
