"""Last known good over a restart of the process: what is restored, who takes it over, what is saved. No I/O.

A provider is known again by its *identity*: its mechanism and the fingerprint of its configuration. What is restored
is shown under the names of providers that do not run. The first configuration then is a reload like any other: a
configuration of the same identity takes over the name, and with it what is shown; the others leave.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Final

import trio

from .discoverer import DiscovererConfig
from .state import SavedProvider, State, fingerprint
from .store import TargetStore

__all__ = ["LastKnownGood"]

logger = logging.getLogger(__name__)

_Identity = tuple[str, str | None]


class LastKnownGood:
    """What one manager keeps over a restart.

    Args:
      manager: its name.
      store: what it shows.
    """

    def __init__(self, manager: str, store: TargetStore) -> None:
        self._manager: Final = manager
        self._store: Final = store
        self._identities: dict[str, _Identity] = {}  # by the provider's name
        self._restored: tuple[str, ...] = ()  # the providers that nobody has taken over yet

    def restore(self, state: State, max_age: float | None, new_name: Callable[[str], str]) -> None:
        """Show what was saved.

        Args:
          state: what was saved.
          max_age: what was last known to be right longer ago than so many seconds is left out; nothing is if ``None``.
          new_name: names a provider, given its mechanism.
        """
        now, clock = time.time(), trio.current_time()
        names: dict[int, str] = {}
        found = {}
        for number, provider in enumerate(state.providers):
            known_good = min(provider.known_good, now)  # clocks go backwards, too
            age = now - known_good
            if max_age is not None and age > max_age:
                sets = ", ".join([set_name for set_name, numbers in state.sets.items() if number in numbers])
                logger.warning(
                    "manager %s: what %s had found for %s is not restored: last known to be right %.0f s ago, "
                    "which is more than %g s",
                    self._manager,
                    provider.mechanism,
                    sets,
                    age,
                    max_age,
                )
                continue
            names[number] = name = new_name(provider.mechanism)
            self._identities[name] = (provider.mechanism, provider.fingerprint)
            found[name] = (provider.groups, known_good, clock - age)
        sets_restored = {
            set_name: [names[number] for number in numbers if number in names]
            for set_name, numbers in state.sets.items()
        }
        self._store.restore(sets_restored, found)
        self._restored = tuple(found)
        if not state.providers:
            return
        logger.info(
            "manager %s: restored %d of %d providers, %d targets, saved %.0f s ago; stale until they have found out",
            self._manager,
            len(found),
            len(state.providers),
            sum([len(group.targets) for groups, _, _ in found.values() for group in groups]),
            max(0.0, now - state.saved),
        )

    def taken_over(self, configs: Iterable[DiscovererConfig]) -> dict[DiscovererConfig, str]:
        """Return which of the first configurations take over a restored provider, and its name.

        Two that have the same identity, because only their secrets differ, are not taken for each other.
        """
        names: dict[DiscovererConfig, str] = {}
        if self._restored:
            restored = {self._identities[name]: name for name in self._restored}
            saved = Counter([self._identities[name] for name in self._restored])
            by_identity: dict[_Identity, list[DiscovererConfig]] = {}
            for config in dict.fromkeys(configs):
                by_identity.setdefault((config.mechanism, fingerprint(config)), []).append(config)
            for identity, same in by_identity.items():
                if identity[1] is not None and saved[identity] == len(same) == 1:
                    names[same[0]] = restored[identity]
            self._restored = ()
        return names

    def identify(self, name: str, config: DiscovererConfig) -> None:
        """Note what the provider of that name runs."""
        self._identities[name] = (config.mechanism, fingerprint(config))

    def keep_only(self, names: Collection[str]) -> None:
        """Forget providers of other names."""
        self._identities = {name: identity for name, identity in self._identities.items() if name in names}

    def state(self, known_right: Callable[[str], float | None]) -> State:
        """Return what is to be saved at this moment.

        Args:
          known_right: tells of a provider when what it shows was last known to be right, on Trio's clock; ``None`` if
            nothing was ever heard of it.
        """
        now, clock = time.time(), trio.current_time()
        sets = self._store.arrangement()
        numbers: dict[str, int] = {}
        saved: list[SavedProvider] = []
        for name in dict.fromkeys([name for members in sets.values() for name in members]):
            right_at = known_right(name)
            if right_at is None:
                continue
            known_good = self._store.stale_since(name)
            if known_good is None:
                known_good = now - (clock - right_at)
            numbers[name] = len(saved)
            saved.append(SavedProvider(*self._identities[name], known_good, self._store.found(name).values()))
        members = {s: tuple([numbers[n] for n in names if n in numbers]) for s, names in sets.items()}
        return State(self._manager, now, members, tuple(saved))
