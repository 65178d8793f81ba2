"""Removals that wait: what to show of a provider when what it no longer finds stays visible for some time.

Theory of operation
===================

What is shown of a source is what was found in it last, followed by its *lingering* targets: those that went less than
the delay ago. A target lingers in the source where it was found last.

A target is known by its labels: those of its group, and its own above them, without empty ones. It has gone when no
source of the provider has it any more, so one that moves to another source has not; and it lingers no more when it is
found again, wherever. But a target whose labels change has not gone either: it would be shown twice, and scraped twice,
with the old labels and the new. So what went is also taken for what came if they have the same address, and nothing
else that the provider finds, or found less than the delay ago, has it: where many targets share one address (a probe
with parameters), it does not tell which is which.

Everything costs in proportion to what changed. The delay is the same for all, so deadlines come in the order in which
removals are seen, and a queue is enough. Sync code only; times are on whatever clock the caller uses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from immutables import Map

from .targets import ADDRESS_LABEL, Labels, TargetGroup

__all__ = ["Damping"]

Groups = Mapping[str, TargetGroup]
"""Groups by source."""


class _Gone:
    """A target that was found and is found no more: its labels, and what it was in which group."""

    __slots__ = ("deadline", "group_labels", "labels", "over", "source", "target")

    def __init__(self, labels: Labels, group: TargetGroup, target: Labels) -> None:
        self.labels = labels
        self.source = group.source
        self.group_labels = Labels(group.labels)
        self.target = target
        self.deadline = inf
        self.over = False  # found again, or forgotten

    @property
    def address(self) -> str:
        return self.labels.get(ADDRESS_LABEL, "")

    def under(self, group_labels: Labels) -> Labels:
        """Return the target's own labels in a group of other labels; an empty value is as good as no label."""
        if group_labels == self.group_labels:
            return self.target
        blank = {name: "" for name in group_labels if name not in self.group_labels}
        return Labels({**blank, **self.group_labels, **self.target})


class _Provider:
    """What was found of one provider, and what of it lingers."""

    def __init__(self, found: Groups) -> None:
        self.found: Map[str, TargetGroup] = Map()
        self.counts: Counter[Labels] = Counter()  # how often each target is found
        self.addresses: Counter[str] = Counter()  # how many targets of different labels have each address
        self.lingering: dict[Labels, _Gone] = {}
        self.by_source: dict[str, dict[_Gone, None]] = {}  # the same, in the order in which they went
        self.by_address: dict[str, dict[_Gone, None]] = {}  # the same
        self.find(found.values())

    def find(self, groups: Iterable[TargetGroup]) -> tuple[list[_Gone], list[Labels]]:
        """Take what was found in the place of what these sources had; return the targets that went and that came."""
        places: dict[Labels, tuple[TargetGroup, Labels]] = {}
        before: dict[Labels, int] = {}
        with self.found.mutate() as found:
            for group in groups:
                had = found.pop(group.source, TargetGroup(group.source, ()))
                for labels, target in _targets(had):
                    before.setdefault(labels, self.counts[labels])
                    self.counts[labels] -= 1
                    places[labels] = (had, target)
                for labels, _ in _targets(group):
                    before.setdefault(labels, self.counts[labels])
                    self.counts[labels] += 1
                if group.targets:
                    found[group.source] = group
            self.found = found.finish()
        gone, come = [], []
        for labels, count in before.items():
            now = self.counts[labels]
            if not now:
                del self.counts[labels]
            if count and not now:
                gone.append(_Gone(labels, *places[labels]))
            elif now and not count:
                come.append(labels)
        for change, changed in ((-1, [one.labels for one in gone]), (1, come)):
            for labels in changed:
                if address := labels.get(ADDRESS_LABEL, ""):
                    self.addresses[address] += change
                    if not self.addresses[address]:
                        del self.addresses[address]
        return gone, come

    def linger(self, gone: _Gone) -> None:
        self.lingering[gone.labels] = gone
        self.by_source.setdefault(gone.source, {})[gone] = None
        self.by_address.setdefault(gone.address, {})[gone] = None

    def end(self, gone: _Gone) -> None:
        gone.over = True
        del self.lingering[gone.labels]
        for index, key in ((self.by_source, gone.source), (self.by_address, gone.address)):
            del index[key][gone]
            if not index[key]:
                del index[key]

    def shown(self, source: str, before: TargetGroup | None) -> TargetGroup:
        """Return what to show of a source, given what is shown; without targets if there is nothing."""
        found = self.found.get(source)
        lingering = self.by_source.get(source)
        if lingering is None:
            return found if found is not None else TargetGroup(source, ())
        labels = Labels(found.labels) if found is not None else next(iter(lingering)).group_labels
        targets = (*(found.targets if found is not None else ()), *[gone.under(labels) for gone in lingering])
        if before is not None and before.labels == labels and Counter(before.targets) == Counter(targets):
            return before  # a removal that nobody is to see yet does not change the order either
        return TargetGroup(source, targets, labels)


class Damping:
    """What to show of each provider, where targets stay visible for ``delay`` seconds after they went."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._providers: dict[str, _Provider] = {}
        self._queue: deque[tuple[str, _Gone]] = deque()  # by deadline

    @property
    def next_deadline(self) -> float:
        """When the first lingering target must go; infinity if there is none."""
        while self._queue and self._queue[0][1].over:
            self._queue.popleft()
        return self._queue[0][1].deadline if self._queue else inf

    def found(self, provider: str) -> Map[str, TargetGroup] | None:
        """Return what the provider found last, without what lingers; ``None`` if it has not reported yet."""
        known = self._providers.get(provider)
        return None if known is None else known.found

    def take(self, provider: str, reported: Groups, shown: Groups, *, full: bool, now: float) -> list[TargetGroup]:
        """Take in a report, and return what to show from now on of the sources that it changes.

        Args:
          provider: who reports.
          reported: groups by source; one without targets says that its source has nothing any more.
          shown: what is shown of the provider.
          full: whether ``reported`` is the full set, so that what it does not name has gone.
          now: the time.
        """
        state = self._providers.get(provider)
        if state is None:
            state = self._providers[provider] = _Provider(shown)
        news = [group for source, group in reported.items() if group != state.found.get(source)]
        if full:
            news += [TargetGroup(source, ()) for source in state.found if source not in reported]
        gone, come = state.find(news)
        back = [state.lingering[labels] for labels in come if labels in state.lingering]
        for one in back:
            state.end(one)
        alike = Counter([one.address for one in gone])
        replaced: set[str] = set()
        for address in [labels.get(ADDRESS_LABEL, "") for labels in come]:
            lingering = state.by_address.get(address, {})
            if state.addresses[address] == 1 and alike[address] + len(lingering) == 1:
                replaced.add(address)
                for one in tuple(lingering):
                    state.end(one)
                    back.append(one)
        for one in gone:
            if one.address not in replaced:
                one.deadline = now + self._delay
                state.linger(one)
                self._queue.append((provider, one))
        sources = dict.fromkeys([group.source for group in news] + [one.source for one in back])
        return [state.shown(source, shown.get(source)) for source in sources]

    def expire(self, now: float, shown: Callable[[str], Groups]) -> dict[str, list[TargetGroup]]:
        """Let go what has lingered long enough; return what to show from now on of the sources that this changes.

        Args:
          now: the time.
          shown: returns what is shown of a provider.
        """
        changed: dict[str, dict[str, None]] = {}
        while self.next_deadline <= now:
            provider, gone = self._queue.popleft()
            self._providers[provider].end(gone)
            changed.setdefault(provider, {})[gone.source] = None
        return {
            provider: [self._providers[provider].shown(source, shown(provider).get(source)) for source in sources]
            for provider, sources in changed.items()
        }

    def forget(self, provider: str) -> None:
        """Forget a provider that is shown no more."""
        state = self._providers.pop(provider, None)
        if state is not None:
            for gone in state.lingering.values():
                gone.over = True


def _targets(group: TargetGroup) -> Iterator[tuple[Labels, Labels]]:
    """Yield the labels by which each target of a group is known, and its own labels in the group."""
    group_labels = Labels(group.labels)
    for target in group.targets:
        own = Labels(target)
        labels = Labels({**group_labels, **own}) if group_labels else own
        if "" in (known := dict(labels.items())).values():
            labels = Labels({name: value for name, value in known.items() if value})
        yield labels, own
