"""Removals that wait: what to show of a provider when what it no longer finds stays visible for some time.

Theory of operation
===================

What is shown of a source is what was found last, followed by its *lingering* targets: those that went less than the
delay ago. A target lingers under the labels that it was shown with.

A target is known by its labels: those of its group, and its own above them. One that is found again, in whatever
source, lingers no more. But a target whose labels change has not gone: it would be shown twice, and scraped twice,
with the old labels and the new. So a target that went is also taken for one that came if they have the same address,
and nothing else that the provider finds has it: where many targets share one address (a probe with parameters), it
does not tell which is which.

Everything costs in proportion to what changed. The delay is the same for all, so deadlines come in the order in which
removals are seen, and a queue is enough. Sync code only; times are on whatever clock the caller uses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from .targets import ADDRESS_LABEL, Labels, TargetGroup

__all__ = ["Damping"]

Groups = Mapping[str, TargetGroup]
"""Groups by source."""


class _Gone:
    """A target that was shown and is found no more."""

    __slots__ = ("deadline", "group_labels", "over", "provider", "source", "target")

    def __init__(self, source: str, group_labels: Labels, target: Labels) -> None:
        self.source = source
        self.group_labels = group_labels
        self.target = target
        self.deadline = inf
        self.over = False  # found again, or forgotten

    @property
    def labels(self) -> Labels:
        return _merged(self.group_labels, self.target)

    @property
    def address(self) -> str:
        return _address(self.group_labels, self.target)

    def under(self, labels: Labels) -> Labels:
        """Return the target's own labels in a group with ``labels``; an empty value is as good as no label."""
        if labels == self.group_labels:
            return self.target
        blank = {name: "" for name in labels if name not in self.group_labels}
        return Labels({**blank, **self.group_labels, **self.target})


class _Provider:
    """What was found of one provider, and what of it lingers."""

    def __init__(self, found: Groups) -> None:
        self.found = dict(found)
        self.lingering: dict[str, list[_Gone]] = {}  # by source
        self.by_address: dict[str, list[_Gone]] = {}  # the same
        self.addresses = Counter(address for group in found.values() for address in _addresses(group))

    def find(self, source: str, before: TargetGroup | None, group: TargetGroup) -> None:
        for address in _addresses(group):
            self.addresses[address] += 1
        for address in _addresses(before):
            self.addresses[address] -= 1
            if not self.addresses[address]:
                del self.addresses[address]
        if group.targets:
            self.found[source] = group
        elif before is not None:
            del self.found[source]

    def linger(self, gone: _Gone) -> None:
        self.lingering.setdefault(gone.source, []).append(gone)
        self.by_address.setdefault(gone.address, []).append(gone)

    def end(self, gone: _Gone) -> None:
        gone.over = True
        for index, key in ((self.lingering, gone.source), (self.by_address, gone.address)):
            index[key].remove(gone)
            if not index[key]:
                del index[key]

    def shown(self, source: str, before: TargetGroup | None) -> TargetGroup:
        """Return what to show of a source, given what is shown; without targets if there is nothing."""
        found = self.found.get(source)
        lingering = self.lingering.get(source)
        if lingering is None:
            return found if found is not None else TargetGroup(source, ())
        labels = _labels(found) if found is not None else lingering[0].group_labels
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

    def found(self, provider: str) -> Groups | None:
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
        news = dict(reported)
        if full:
            news |= {source: TargetGroup(source, ()) for source in state.found if source not in reported}
        gone: list[_Gone] = []
        come: list[tuple[Labels, str]] = []
        changed: dict[str, None] = {}
        for source, group in news.items():
            before = state.found.get(source)
            if before == group:
                continue
            changed[source] = None
            gone += _missing(source, before, group)
            come += [(one.labels, one.address) for one in _missing(source, group, before)]
            state.find(source, before, group)
        for one in _found_again(state, gone, come):
            state.end(one)
            changed[one.source] = None
        for one in gone:
            if not one.over:
                one.deadline = now + self._delay
                state.linger(one)
                self._queue.append((provider, one))
        return [state.shown(source, shown.get(source)) for source in changed]

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
                for one in gone:
                    one.over = True


def _found_again(state: _Provider, gone: list[_Gone], come: list[tuple[Labels, str]]) -> Iterator[_Gone]:
    """Yield the lingering targets that have come back; those of ``gone`` that only changed or moved become ``over``."""
    if not come:
        return
    leaving: dict[str, list[_Gone]] = {}
    for one in gone:
        leaving.setdefault(one.address, []).append(one)
    others: list[str] = []
    for labels, address in come:
        for candidates in (leaving.get(address, ()), state.by_address.get(address, ())):
            same = next((one for one in candidates if not one.over and one.labels == labels), None)
            if same is not None:
                break
        else:
            others.append(address)
            continue
        if same.deadline == inf:
            same.over = True
        else:
            yield same
    for address in others:
        if state.addresses[address] != 1:
            continue  # the address does not tell which target it is
        for one in leaving.get(address, ()):
            one.over = True
        yield from tuple(state.by_address.get(address, ()))


def _missing(source: str, group: TargetGroup | None, other: TargetGroup | None) -> Iterable[_Gone]:
    """Return the targets of ``group`` that ``other`` does not have."""
    if group is None:
        return ()
    labels = _labels(group)
    if other is None or not other.targets:
        return [_Gone(source, labels, _own(target)) for target in group.targets]
    if labels == other.labels:
        rest = Counter(group.targets) - Counter(other.targets)
        return [_Gone(source, labels, _own(target)) for target in rest.elements()]
    known = Counter(_merged(_labels(other), _own(target)) for target in other.targets)
    missing = []
    for target in group.targets:
        merged = _merged(labels, _own(target))
        if known[merged]:
            known[merged] -= 1
        else:
            missing.append(_Gone(source, labels, _own(target)))
    return missing


def _addresses(group: TargetGroup | None) -> list[str]:
    return [] if group is None else [_address(_labels(group), _own(target)) for target in group.targets]


def _address(labels: Labels, target: Labels) -> str:
    return target.get(ADDRESS_LABEL) or labels.get(ADDRESS_LABEL, "")


def _merged(labels: Labels, target: Labels) -> Labels:
    return Labels({**labels, **target}) if labels else target


def _labels(group: TargetGroup) -> Labels:
    return Labels(group.labels)


def _own(target: Mapping[str, str]) -> Labels:
    return Labels(target)
