"""Targets that the configuration itself lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import trio

from ..config.groups import decode_target_group
from ..config.nodes import Node
from ..discoverer import DiscovererConfig, DiscovererOptions
from ..targets import TargetGroup

__all__ = ["StaticConfig", "StaticDiscoverer"]


@dataclass(frozen=True, slots=True)
class StaticConfig(DiscovererConfig):
    """All the ``static_configs`` of one job.

    Attributes:
      groups: the target groups; their sources are their places in the list.
    """

    mechanism: ClassVar[str] = "static"

    groups: tuple[TargetGroup, ...] = ()

    @classmethod
    def decode(cls, node: Node, path: str = "") -> Self:
        """Return the configuration that one item of ``static_configs`` makes.

        Args:
          node: the item.
          path: the item's place in the document, for errors.

        Raises:
          ConfigError: it is not a target group.
        """
        return cls((TargetGroup("0", *decode_target_group(node, path)),))

    @classmethod
    def combine(cls, items: Sequence[Self]) -> Sequence[Self]:
        """Return one configuration with the groups of all items, as Prometheus has it."""
        groups = [group for item in items for group in item.groups]
        return [cls(tuple([TargetGroup(str(i), g.targets, g.labels) for i, g in enumerate(groups)]))] if groups else []

    def discoverer(self, options: DiscovererOptions) -> StaticDiscoverer:
        """Return a new discoverer that sends the groups."""
        return StaticDiscoverer(self.groups)


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
