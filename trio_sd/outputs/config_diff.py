"""What ``trio-sd config-diff`` prints: what a reload from one configuration to another would start, stop and keep."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..config import Config
from ..discoverer import DiscovererConfig
from ..set_configs import SetConfigs
from ..targets import ADDRESS_LABEL, TargetGroup

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
    return " ".join([config.mechanism, *_given(config)])


def _given(value: object) -> list[str]:
    if not dataclasses.is_dataclass(value):  # which the contract asks of a configuration, but mypy can't know
        return []
    pairs = [(field.name, getattr(value, field.name), field.default) for field in dataclasses.fields(value)]
    return [f"{name}={_text(given)}" for name, given, default in pairs if given != default]


def _text(value: object) -> str:
    """Return a value in short. Nothing that is secret shows itself in a text."""
    if isinstance(value, tuple):
        if value and all(isinstance(item, TargetGroup) for item in value):
            return _text(tuple([target.get(ADDRESS_LABEL, "?") for group in value for target in group.targets]))
        more = f" and {len(value) - _SHOWN} more" if len(value) > _SHOWN else ""
        return f"[{', '.join([_text(item) for item in value[:_SHOWN]])}{more}]"
    has_text = not dataclasses.is_dataclass(value) or type(value).__str__ is not object.__str__
    return str(value) if has_text else f"{{{', '.join(_given(value))}}}"


def _described(difference: SetDifference) -> list[tuple[Member, str]]:
    """Return the members with what they are; told apart where that is the same of several, because secrets differ."""
    texts = [describe(member.config) for member in difference.members]
    count = Counter(texts)
    return [
        (member, f"{text} (differs in what is not shown)" if count[text] > 1 else text)
        for member, text in zip(difference.members, texts, strict=True)
    ]


def diff_rows(differences: Sequence[SetDifference]) -> list[tuple[str, str, str, str, str]]:
    """Return a table row for each provider of each set: manager, set, its state, the provider's state, what it is."""
    rows: list[tuple[str, str, str, str, str]] = []
    for one in differences:
        state = f"{one.state} (labels)" if one.labels_differ else one.state
        beginning = one.manager, one.name, state
        rows.extend([(*beginning, member.state, text) for member, text in _described(one)])
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
            "providers": [{"state": member.state, "config": text} for member, text in _described(one)],
        }
        for one in differences
    ]
    return json.dumps(document, indent=2, ensure_ascii=False)
