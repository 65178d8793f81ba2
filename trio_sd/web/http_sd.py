"""Target sets in the format that Prometheus' ``http_sd_configs`` reads. Nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from ..targets import ADDRESS_LABEL, Labels, TargetGroup

__all__ = ["SET_LABEL", "SetsEncoder", "http_sd_groups"]

SET_LABEL: Final = "__meta_trio_sd_set"
"""The label that tells which set a target is of, where all sets come in one list."""


def http_sd_groups(groups: Iterable[TargetGroup], more: Mapping[str, str] = {}) -> list[dict[str, object]]:
    """Return groups as http_sd has them, where only a group has labels.

    Targets of a group that have the same labels stay together; others make groups of their own. A target without an
    address has an empty one, which means the same to Prometheus.

    Args:
      groups: in the order to show them.
      more: labels for all of them.
    """
    found: list[dict[str, object]] = []
    for group in groups:
        addresses: dict[Labels, list[str]] = {}
        for target in group.targets:
            labels = dict(group.labels.items()) | dict(target.items())
            address = labels.pop(ADDRESS_LABEL, "")
            addresses.setdefault(Labels(labels), []).append(address)
        found.extend([{"targets": listed, "labels": {**labels, **more}} for labels, listed in addresses.items()])
    return found


class SetsEncoder:
    """Encodes sets as one list of JSON, again and again: only groups that are new since the last time are work.

    For one thread at a time.

    Args:
      tell_set: whether each group gets the label :data:`SET_LABEL`.
    """

    def __init__(self, *, tell_set: bool) -> None:
        self._tell_set = tell_set
        # By set and identity, which the group keeps. Not by pairs of these: ten thousand tuples for each body set off
        # the garbage collector again and again.
        self._known: dict[str, dict[int, tuple[TargetGroup, bytes]]] = {}

    def encode(self, sets: Mapping[str, Iterable[TargetGroup]]) -> bytes:
        """Return the groups of all ``sets``, in order."""
        encoded: dict[str, dict[int, tuple[TargetGroup, bytes]]] = {}
        for name, groups in sets.items():
            known = self._known.get(name, {})
            mine = encoded[name] = {}
            for group in groups:
                mine[id(group)] = known.get(id(group)) or (group, self._encoded(name, group))
        self._known = encoded
        return b"[%s]" % b",".join([chunk for mine in encoded.values() for _, chunk in mine.values() if chunk])

    def _encoded(self, name: str, group: TargetGroup) -> bytes:
        found = http_sd_groups([group], {SET_LABEL: name} if self._tell_set else {})
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))[1:-1].encode("utf-8", "replace")
