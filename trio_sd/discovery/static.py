"""Targets that the configuration itself lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import trio

from ..config.groups import decode_target_group
from ..config.nodes import Node
from ..discoverer import DiscovererConfig, DiscovererOptions, Mechanism
from ..targets import ADDRESS_LABEL, Labels, TargetGroup

__all__ = ["MECHANISM", "StaticConfig", "StaticDiscoverer", "StaticGroup"]

_NO_LABELS: Final = Labels()


@dataclass(frozen=True, slots=True)
class StaticGroup:
    """One item of ``static_configs``.

    Attributes:
      targets: a label set for each target; its only label is the address.
      labels: labels of every target.
    """

    targets: tuple[Labels, ...] = ()
    labels: Labels = _NO_LABELS

    @classmethod
    def decode(cls, node: Node, path: str = "") -> Self:
        """Return the group that ``node`` says.

        Args:
          node: the item.
          path: the item's place in the document, for errors.

        Raises:
          ConfigError: it is not a target group.
        """
        return cls(*decode_target_group(node, path))


@dataclass(frozen=True, slots=True)
class StaticConfig(DiscovererConfig):
    """All the ``static_configs`` of one job.

    Attributes:
      groups: the target groups; their sources are their places in the list.
    """

    mechanism: ClassVar[str] = "static"

    groups: tuple[TargetGroup, ...] = ()

    def discoverer(self, options: DiscovererOptions) -> StaticDiscoverer:
        """Return a new discoverer that sends the groups."""
        return StaticDiscoverer(self.groups)

    def check_addresses(self) -> None:
        """Check that every target is an address and not a URL. For jobs without rules that could make it one.

        Raises:
          ValueError: a target has a slash.
        """
        for group in self.groups:
            for target in group.targets:
                address = target.get(ADDRESS_LABEL, "")
                if "/" in address:
                    raise ValueError(f'"{address}" is not a valid hostname')


class StaticDiscoverer:
    """Sends what the configuration lists.

    Args:
      groups: the target groups.
    """

    def __init__(self, groups: Sequence[TargetGroup]) -> None:
        self._groups = groups

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        """Send the groups and return. Cancellation sends nothing."""
        await updates.send(self._groups)


def _combine(items: Iterable[StaticGroup]) -> list[StaticConfig]:
    groups = tuple(TargetGroup(str(index), item.targets, item.labels) for index, item in enumerate(items))
    return [StaticConfig(groups)]


MECHANISM: Final = Mechanism("static_configs", StaticGroup, _combine)
