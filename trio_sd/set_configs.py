"""What a manager is to run: the discoverers of each target set, and how the labels of its targets are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from .discoverer import DiscovererConfig

if TYPE_CHECKING:  # the engine runs without it, and it takes long to import
    from .target_labels import Labeler

__all__ = ["Labeling", "SetConfigs"]


class Labeling(Protocol):
    """What a configuration says about the labels of a set's targets. A value: equal ones make equal labels."""

    def labeler(self) -> Labeler:
        """Return what makes the labels."""


class SetConfigs(Mapping[str, tuple[DiscovererConfig, ...]]):
    """The discoverer configurations of each set; an immutable mapping that also knows how labels are made.

    Args:
      configs: by the name of the set, in the order that sets are to have.
      labeling: by the name of the set. A set that is not named here has no rules: what is discovered are its labels.

    Attributes:
      labeling: as given.

    Raises:
      TypeError: something that is given as labeling can't make a labeler.

    A labeler that raises is a mistake in the program, and ends the manager that uses it.
    """

    __slots__ = ("_configs", "labeling")

    def __init__(
        self, configs: Mapping[str, Iterable[DiscovererConfig]] = {}, labeling: Mapping[str, Labeling] = {}
    ) -> None:
        for name, one in labeling.items():
            if not callable(getattr(one, "labeler", None)):
                raise TypeError(f"the labeling of set {name} has no method labeler: {one!r}")
        self._configs = {name: tuple(members) for name, members in configs.items()}
        self.labeling: Final = MappingProxyType(dict(labeling))

    def __getitem__(self, name: str) -> tuple[DiscovererConfig, ...]:
        return self._configs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)

    def __repr__(self) -> str:
        return repr(self._configs)
