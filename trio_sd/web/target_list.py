"""Targets with their labels before and after relabeling, as Prometheus' ``/api/v1/targets`` shows them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from ..set_configs import Labeling
from ..targets import ADDRESS_LABEL, TargetGroup

if TYPE_CHECKING:
    from ..target_labels import Labeler

__all__ = ["Part", "encode_targets"]

_NEVER: Final = "0001-01-01T00:00:00Z"  # how Go says it
_PARAM: Final = "__param_"

Part = tuple[Labeling | None, Mapping[str, TargetGroup]]
"""How labels are made of what one provider shows in a set, and what that is, by source."""


def encode_targets(sets: Mapping[str, Sequence[Part]], *, active: bool, dropped: bool) -> bytes:
    """Return the targets of ``sets`` as JSON. Nobody scrapes them here, so what only a scrape tells is empty.

    Args:
      sets: the parts of each set, in order. Immutable values, so that this may run in a thread.
      active: whether to list those that relabeling keeps.
      dropped: whether to list those that it drops. Those that can't be used are in neither list, as there.
    """
    kept: list[dict[str, object]] = []
    gone: list[dict[str, object]] = []
    counts = {}
    for name, parts in sets.items():
        seen = set()
        count = 0
        for discovered, labels in _targets(parts):
            if labels is None:
                count += 1
                if dropped:
                    gone.append({"discoveredLabels": discovered, "scrapePool": name})
            elif active and (key := frozenset(labels.items())) not in seen:
                seen.add(key)
                kept.append(_active(name, discovered, labels))
        counts[name] = count
    data = {"activeTargets": kept, "droppedTargets": gone, "droppedTargetCounts": counts if dropped else None}
    text = json.dumps({"status": "success", "data": data}, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _targets(parts: Sequence[Part]) -> Iterator[tuple[Mapping[str, str], Mapping[str, str] | None]]:
    """Yield the labels of each target that can be used, before and after relabeling; none after if it is dropped."""
    for labeling, groups in parts:
        labeler = None if labeling is None else labeling.labeler()
        for group in sorted(groups.values(), key=attrgetter("source")):
            for target in group.targets:
                yield from _outcome(labeler, target, group.labels)


def _outcome(
    labeler: Labeler | None, target: Mapping[str, str], group: Mapping[str, str]
) -> Iterator[tuple[Mapping[str, str], Mapping[str, str] | None]]:
    if labeler is None:
        labels = {name: value for name, value in {**group, **target}.items() if value}
        yield labels, labels
        return
    discovered = labeler.discovered_labels(target, group)
    outcome = labeler.target_labels(discovered)
    if outcome.error is None:
        yield discovered, outcome.labels


def _active(name: str, discovered: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, object]:
    url = _url(labels)
    return {
        "discoveredLabels": discovered,
        "labels": {label: value for label, value in labels.items() if not label.startswith("__")},
        "scrapePool": name,
        "scrapeUrl": url,
        "globalUrl": url,
        "lastError": "",
        "lastScrape": _NEVER,
        "lastScrapeDuration": 0,
        "health": "unknown",
        "scrapeInterval": labels.get("__scrape_interval__", ""),
        "scrapeTimeout": labels.get("__scrape_timeout__", ""),
    }


def _url(labels: Mapping[str, str]) -> str:
    params = {label.removeprefix(_PARAM): value for label, value in labels.items() if label.startswith(_PARAM)}
    query = f"?{urlencode(params)}" if params else ""
    path = labels.get("__metrics_path__", labels.get("__alerts_path__", ""))
    return f"{labels.get('__scheme__', 'http')}://{labels.get(ADDRESS_LABEL, '')}{path}{query}"
