"""What ``trio-sd config-diff`` prints: what a reload from one configuration to another would start, stop and keep."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..config import Config
from ..discoverer import DiscovererConfig
from ..set_configs import SetConfigs
from ..targets import TargetGroup

__all__ = ["Member", "SetDifference", "config_differences", "describe", "diff_document", "diff_rows", "diff_summary"]

SetState = Literal["added", "removed", "changed", "unchanged"]
MemberState = Literal["starts", "joins", "keeps", "leaves", "stops"]

_SET_STATES: Final = ("added", "removed", "changed", "unchanged")
_SHOWN: Final = 3  # items of a list


@dataclass(frozen=True)
class Member:
    """One provider in one set.

    Attributes:
      state: whether it starts or stops; joins or leaves the set and goes on in others; or keeps being in it.
      config: what it runs.
    """

    state: MemberState
    config: DiscovererConfig


@dataclass(frozen=True)
class SetDifference:
    """One set.

    Attributes:
      manager: ``scrape`` or ``notify``.
      name: of the set.
      state: whether it is there before, after, or both, and then whether anything about it differs.
      labels_differ: whether its targets get other labels: the rules, or what else the section says of them, differ.
      members: its providers, in the order of the new configuration, those that are gone last.
    """

    manager: str
    name: str
    state: SetState
    labels_differ: bool
    members: tuple[Member, ...]


def config_differences(old: Config, new: Config) -> tuple[SetDifference, ...]:
    """Return every set of both configurations, in the order of the new one, those that are gone last."""
    return (*_differences("scrape", old.scrape, new.scrape), *_differences("notify", old.notify, new.notify))


def _differences(manager: str, old: SetConfigs, new: SetConfigs) -> list[SetDifference]:
    before = {config for members in old.values() for config in members}
    after = {config for members in new.values() for config in members}
    return [_difference(manager, name, old, new, before, after) for name in dict.fromkeys([*new, *old])]


def _difference(
    manager: str,
    name: str,
    old: SetConfigs,
    new: SetConfigs,
    before: set[DiscovererConfig],
    after: set[DiscovererConfig],
) -> SetDifference:
    had, has = dict.fromkeys(old.get(name, ())), dict.fromkeys(new.get(name, ()))
    members = [
        Member("keeps" if config in had else "joins" if config in before else "starts", config) for config in has
    ]
    members += [Member("leaves" if config in after else "stops", config) for config in had if config not in has]
    labels_differ = name in old and name in new and old.labeling.get(name) != new.labeling.get(name)
    state: SetState
    if name not in old:
        state = "added"
    elif name not in new:
        state = "removed"
    else:
        state = "changed" if labels_differ or list(had) != list(has) else "unchanged"
    return SetDifference(manager, name, state, labels_differ, tuple(members))


def describe(config: DiscovererConfig) -> str:
    """Return what a discoverer is, in few words: its mechanism, and its fields that are not at their default."""
    given = [f"{name}={_text(value)}" for name, value in _given(config).items()]
    return " ".join([config.mechanism, *given])


def _given(config: DiscovererConfig) -> Mapping[str, object]:
    given: object = config
    if not dataclasses.is_dataclass(given):  # which the contract asks for, but mypy can't know
        return {}
    values = {field.name: (getattr(given, field.name), field.default) for field in dataclasses.fields(given)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        if value and all(isinstance(item, TargetGroup) for item in value):
            return f"{len(value)} ({sum([len(group.targets) for group in value])} targets)"
        more = f" and {len(value) - _SHOWN} more" if len(value) > _SHOWN else ""
        return f"[{', '.join([_text(item) for item in value[:_SHOWN]])}{more}]"
    # Nothing that is secret shows itself in either way.
    return repr(value) if dataclasses.is_dataclass(value) and type(value).__str__ is object.__str__ else str(value)


def diff_rows(differences: Sequence[SetDifference]) -> list[tuple[str, str, str, str, str]]:
    """Return a table row for each provider of each set: manager, set, its state, the provider's state, what it is."""
    rows: list[tuple[str, str, str, str, str]] = []
    for one in differences:
        state = f"{one.state} (labels)" if one.labels_differ else one.state
        beginning = one.manager, one.name, state
        rows.extend([(*beginning, member.state, describe(member.config)) for member in one.members])
        if not one.members:
            rows.append((*beginning, "", "discovers nothing"))
    return rows


def diff_summary(differences: Sequence[SetDifference]) -> str:
    """Return how many sets and providers are in which state."""
    sets = Counter([one.state for one in differences])
    # A provider runs once, whatever the number of its sets.
    running = {(one.manager, member.config): member.state for one in differences for member in one.members}
    providers = Counter([state if state in ("starts", "stops") else "keeps" for state in running.values()])
    told = ", ".join([f"{sets[state]} {state}" for state in _SET_STATES])
    return (
        f"sets: {told}; providers: {providers['starts']} start, {providers['stops']} stop, "
        f"{providers['keeps']} restart and keep their targets"
    )


def diff_document(differences: Sequence[SetDifference]) -> str:
    """Return the differences as JSON."""
    document = [
        {
            "manager": one.manager,
            "set": one.name,
            "state": one.state,
            "labelsDiffer": one.labels_differ,
            "providers": [{"state": member.state, "config": describe(member.config)} for member in one.members],
        }
        for one in differences
    ]
    return json.dumps(document, indent=2, ensure_ascii=False)
