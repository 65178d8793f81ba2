"""What ``trio-sd explain`` prints: target by target, what each rule did."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from textwrap import indent
from typing import Final, Literal, TypeAlias

from ..errors import Position
from ..messages import printable as readable
from ..messages import quote
from ..relabel import LabelChange, RelabelConfig, Step
from ..target_labels import Labeler, Outcome
from ..targets import ADDRESS_LABEL, TargetGroup
from .text import printable

__all__ = [
    "ExplainedTarget",
    "State",
    "TargetFilter",
    "explain_document",
    "explain_text",
    "explained_targets",
    "step_rows",
]

State: TypeAlias = Literal["kept", "dropped", "duplicate", "unusable"]
"""What becomes of a target."""

_DEFAULT: Final = RelabelConfig()
_HEADINGS: Final = ("AT", "RULE", "LOOKED AT", "EFFECT")


@dataclass(frozen=True)
class ExplainedTarget:
    """One target.

    Attributes:
      discovered: its labels before relabeling.
      steps: what each rule did that was reached.
      labels: its final labels; ``None`` if it was dropped or can't be used.
      state: what became of it; a duplicate has the final labels of a target before it, and counts once.
      error: why it can't be used; ``None`` if it can, or was dropped.
    """

    discovered: Mapping[str, str]
    steps: tuple[Step, ...]
    labels: Mapping[str, str] | None
    state: State
    error: str | None


@dataclass(frozen=True)
class TargetFilter:
    """Which targets to tell of: those for which everything that is given holds.

    Attributes:
      addresses: one of these is the target's address or ``instance``, before or after relabeling. Any, if empty.
      labels: it has each of these labels, before or after relabeling.
    """

    addresses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def admits(self, discovered: Mapping[str, str], final: Mapping[str, str] | None) -> bool:
        """Tell whether a target with these labels before and after relabeling is one of them."""
        both = [discovered, final or {}]
        names = {labels.get(name) for labels in both for name in (ADDRESS_LABEL, "instance")}
        if self.addresses and names.isdisjoint(self.addresses):
            return False
        return all(any(labels.get(name, "") == value for labels in both) for name, value in self.labels)


_EVERY: Final = TargetFilter()


def explained_targets(
    groups: Sequence[TargetGroup], labeler: Labeler, chosen: TargetFilter = _EVERY
) -> Iterator[ExplainedTarget]:
    """Yield every different target of a set, in its order.

    Args:
      groups: the set.
      labeler: makes its labels.
      chosen: which targets to explain.
    """
    seen: set[frozenset[tuple[str, str]]] = set()
    finals: set[frozenset[tuple[str, str]]] = set()
    for group in groups:
        for target in group.targets:
            discovered = labeler.discovered_labels(target, group.labels)
            key = frozenset(discovered.items())
            if key in seen:
                continue
            seen.add(key)
            outcome = labeler.target_labels(discovered)
            state = _state(outcome, finals)
            if chosen.admits(discovered, outcome.labels):  # to explain takes ten times as long as to relabel
                trace, _ = labeler.explain(discovered)
                yield ExplainedTarget(discovered, trace.steps, outcome.labels, state, outcome.error)


def _state(outcome: Outcome, finals: set[frozenset[tuple[str, str]]]) -> State:
    if outcome.labels is None:
        return "dropped" if outcome.dropped else "unusable"
    final = frozenset(outcome.labels.items())
    if final in finals:
        return "duplicate"
    finals.add(final)
    return "kept"


def explain_document(targets: Iterable[ExplainedTarget], positions: Sequence[Position]) -> Iterator[str]:
    """Yield the parts of a JSON list of the targets, each as ``check`` has it, with what its rules did as ``steps``.

    Args:
      targets: what to tell of.
      positions: where each rule stands.
    """
    before = "["
    for target in targets:
        entry = json.dumps(_entry(target, positions), indent=2, ensure_ascii=False)
        yield f"{before}\n{indent(entry, '  ')}"
        before = ","
    yield "[]" if before == "[" else "\n]"


def _entry(target: ExplainedTarget, positions: Sequence[Position]) -> dict[str, object]:
    return {
        "discoveredLabels": dict(sorted(target.discovered.items())),
        "labels": dict(sorted((target.labels or {}).items())),
        "state": target.state,
        **({} if target.error is None else {"error": target.error}),
        "steps": [
            {
                "rule": step.index,
                "position": str(positions[step.index]),
                "config": _given(step.config),
                "value": step.value,
                "matched": step.matched,
                "changes": [{"name": one.name, "before": one.before, "after": one.after} for one in step.changes],
                "kept": step.kept,
            }
            for step in target.steps
        ],
    }


def _given(rule: RelabelConfig) -> dict[str, object]:
    """Return the fields of a rule that are not at their default, and its action."""
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return {"action": rule.action} | {name: value for name, value in values.items() if value != getattr(_DEFAULT, name)}


def explain_text(
    targets: Iterable[ExplainedTarget],
    positions: Sequence[Position],
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
) -> Iterator[str]:
    """Yield a block of text for each target: where its rules stand, and a table of what they did.

    Args:
      targets: what to tell of.
      positions: where each rule stands.
      table: draws a table of headings and rows.
    """
    for number, target in enumerate(targets):
        yield ("\n" if number else "") + _block(target, positions, table)


def _block(
    target: ExplainedTarget,
    positions: Sequence[Position],
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
) -> str:
    places = [positions[step.index] for step in target.steps]
    rows = [(f"{place.line}:{place.column}", *told) for place, told in zip(places, step_rows(target), strict=True)]
    final = target.error or ("" if target.labels is None else _labels(target.labels))
    return "\n".join(
        [
            printable(f"{target.discovered.get(ADDRESS_LABEL, '(no address)')}: {target.state}"),
            printable(f"discovered: {_labels(target.discovered)}"),
            # The rules of a job are all in one file, whose path would leave no room in the table.
            f"rules: {printable(places[0].file)}\n{table(_HEADINGS, rows)}" if rows else "rules: none",
            printable(f"{target.state}: {final}".removesuffix(": ")),
            "",
        ]
    )


def step_rows(target: ExplainedTarget) -> list[tuple[str, str, str]]:
    """Return of each step what the rule says, what it looked at, and what it did."""
    return [(_rule(step.config), _looked_at(step), _effect(step)) for step in target.steps]


def _rule(rule: RelabelConfig) -> str:
    given = _given(rule)
    action = given.pop("action")
    return " ".join([str(action), *[f"{name}={_value(value)}" for name, value in given.items()]])


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(readable, value))}]"
    # Without the escapes of quotes, so that an expression can be copied back.
    return readable(value) if isinstance(value, str) else str(value)


def _looked_at(step: Step) -> str:
    if step.value is None:
        return ""
    return quote(step.value) + {None: "", True: " matches", False: " does not match"}[step.matched]


def _effect(step: Step) -> str:
    if not step.kept:
        return "drops the target"
    return ", ".join([_change(change) for change in step.changes]) or "nothing changes"


def _change(change: LabelChange) -> str:
    if change.before is None:
        return f"{change.name}={quote(change.after or '')}"
    if change.after is None:
        return f"no more {change.name}={quote(change.before)}"
    return f"{change.name}={quote(change.after)}, was {quote(change.before)}"


def _labels(labels: Mapping[str, str]) -> str:
    return " ".join([f"{name}={quote(value)}" for name, value in sorted(labels.items())])
