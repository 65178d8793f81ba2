"""What ``trio-sd check`` prints: every target, as it was discovered and as it would be scraped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..set_configs import SetConfigs
from ..snapshots import Snapshot
from ..target_labels import Labeler
from ..targets import ADDRESS_LABEL, TargetGroup

__all__ = ["CheckedTarget", "check_document", "check_rows", "checked_targets"]


@dataclass(frozen=True)
class CheckedTarget:
    """One target.

    Attributes:
      discovered: its labels before relabeling.
      labels: its final labels; ``None`` if it was dropped or can't be used.
      error: why it can't be used; ``None`` if it can, or was dropped.
    """

    discovered: Mapping[str, str]
    labels: Mapping[str, str] | None
    error: str | None


def checked_targets(configs: SetConfigs, snapshot: Snapshot) -> dict[str, list[CheckedTarget]]:
    """Return the targets of every set in ``snapshot``, in its order, each different one once.

    Args:
      configs: what the snapshot was discovered by; it says how labels are made.
      snapshot: what was discovered.
    """
    return {name: _checked_set(configs.labeling[name].labeler(), groups) for name, groups in snapshot.items()}


def _checked_set(labeler: Labeler, groups: Sequence[TargetGroup]) -> list[CheckedTarget]:
    seen = set()
    targets = []
    for group in groups:
        for target in group.targets:
            discovered = labeler.discovered_labels(target, group.labels)
            key = frozenset(discovered.items())
            if key not in seen:
                seen.add(key)
                outcome = labeler.target_labels(discovered)
                targets.append(CheckedTarget(discovered, outcome.labels, outcome.error))
    return targets


def check_document(jobs: Mapping[str, Sequence[CheckedTarget]]) -> str:
    """Return what ``promtool check service-discovery`` prints; of several jobs, an object with a list for each."""
    document: dict[str, list[dict[str, object]]] = {
        name: [_entry(target) for target in targets] for name, targets in jobs.items()
    }
    [*lists] = document.values()
    return json.dumps(lists[0] if len(lists) == 1 else document, indent=2, ensure_ascii=False)


def _entry(target: CheckedTarget) -> dict[str, object]:
    entry: dict[str, object] = {
        "discoveredLabels": dict(sorted(target.discovered.items())),
        "labels": dict(sorted((target.labels or {}).items())),
    }
    return entry if target.error is None else {**entry, "error": target.error}


def check_rows(jobs: Mapping[str, Sequence[CheckedTarget]]) -> list[tuple[str, str, str, str]]:
    """Return a table row for each target: its job, address, what became of it, and its final labels."""
    rows = []
    for name, targets in jobs.items():
        for target in targets:
            state = "dropped" if target.labels is None else "ok"
            labels = {k: v for k, v in (target.labels or {}).items() if not k.startswith("__")}
            text = target.error or " ".join([f"{k}={v}" for k, v in sorted(labels.items())])
            address = (target.labels or target.discovered).get(ADDRESS_LABEL, "")
            rows.append((name, address, "error" if target.error else state, text))
    return rows
