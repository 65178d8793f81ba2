"""The contract between the engine and a discovery mechanism.

A mechanism is a frozen dataclass that derives from :class:`DiscovererConfig` (what the configuration says) and a
:class:`Discoverer` that it makes (what runs). The decoder fills the dataclass from the configuration by its field
types; the manager runs the discoverer; neither knows any mechanism.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol, Self, runtime_checkable

import trio

from .limits import Limits
from .resources import Resources
from .targets import TargetGroup

__all__ = [
    "Discoverer",
    "DiscovererConfig",
    "DiscovererOptions",
    "DiscovererStatistics",
    "Registry",
    "ReportsStatistics",
]


class Discoverer(Protocol):
    """Finds target groups and sends them until it is cancelled."""

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        """Send what is found.

        The first send carries the full set; it may be empty, which says "looked, and there is nothing". Later sends
        carry whole groups that changed; a group without targets removes its source. A send of no groups says "looked
        again, nothing changed". When finding out fails, send nothing: stale beats partial.

        Resources are opened in here and closed when this is cancelled. ``updates`` is the engine's to close.
        Returning is allowed: what was sent stays. Raising is allowed: what was sent stays, and the engine makes a
        new discoverer after a pause and runs that.
        """


@dataclass(frozen=True, slots=True)
class DiscovererStatistics:
    """What a mechanism tells of itself.

    Attributes:
      errors: what fails at present; what was good before is still shown. Makes the provider's state "failing".
      notes: what an operator should know though nothing fails: a pattern that matches no file, say.
      counters: figures under names of the mechanism's own.
    """

    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class ReportsStatistics(Protocol):
    """A discoverer that knows more about its health than the engine sees from outside."""

    def statistics(self) -> DiscovererStatistics:
        """Return the state of this moment. Cheap; never blocks."""


def _nothing_known() -> Mapping[str, TargetGroup]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DiscovererOptions:
    """What the engine hands to a discoverer that it makes.

    Attributes:
      resources: what the discoverers of one manager share.
      limits: bounds on what is read.
      last_known: returns, by source, the groups that are still shown: of the run before this one, or of what a changed
        configuration replaces. A discoverer whose first full set has parts that can't be read now takes those parts
        from here. The mapping is immutable.
      name: what the provider is called in statistics and in the log.
    """

    resources: Resources
    limits: Limits = field(default_factory=Limits)
    last_known: Callable[[], Mapping[str, TargetGroup]] = _nothing_known
    name: str = "discoverer"


class DiscovererConfig(ABC):
    """What the configuration says about one discoverer: a frozen, hashable dataclass of one mechanism.

    Equal configurations share one provider, so everything that changes what is found is part of the value.
    """

    mechanism: ClassVar[str]
    """The mechanism's name, such as ``file``. Providers are named ``<mechanism>/<n>``."""

    @abstractmethod
    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        """Return a new discoverer for this configuration. Opens nothing; :meth:`Discoverer.run` does.

        Raising counts as the provider's failure: it is told in statistics, and tried again after a pause.
        """

    def validate(self) -> None:  # noqa: B027 (most mechanisms have nothing to add to the field types)
        """Check what the field types can't say, once decoded.

        Raises:
          FieldError: a field's value can't be used.
          ValueError: the fields don't go together.
        """

    @classmethod
    def combine(cls, items: Sequence[Self]) -> Sequence[Self]:
        """Return the configurations that the items of one list make; by default, each item is one."""
        return items

    def with_directory(self, directory: str) -> Self:
        """Return this configuration with relative paths resolved against ``directory``."""
        return self


Registry = Mapping[str, type[DiscovererConfig]]
"""Mechanisms by the key of their list in a scrape configuration, such as ``file_sd_configs``.

An item of that list is decoded by the field types of the dataclass, or by its classmethod ``decode(node, path)`` if it
has one. A registry may load a mechanism when its key is looked up, and raise :class:`~trio_sd.errors.ConfigError` if it
can't; to ask whether there is one, and which there are, loads nothing.
"""
