"""How everything fares, in words: what SIGUSR1 logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ..manager import ManagerStatistics, SetStatistics
from ..provider import ProviderStatistics
from ..subscription import SubscriptionStatistics

if TYPE_CHECKING:  # who writes none need not import it
    from .file_sd import TargetFilesStatistics

__all__ = ["Reloads", "age", "health_lines", "reloads_line", "target_files_line"]


class Reloads(Protocol):
    """How reloads went."""

    @property
    def succeeded(self) -> int:
        """Configurations put in force."""

    @property
    def failed(self) -> int:
        """Configurations refused."""

    @property
    def last_error(self) -> str | None:
        """Why the last one was refused, if it was."""


def age(seconds: float) -> str:
    """Return a span of time as a short text, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def reloads_line(reloads: Reloads) -> str:
    """Return how reloads went."""
    refused = f": the last one was refused: {reloads.last_error}" if reloads.last_error else ""
    return f"configurations: {reloads.succeeded} put in force, {reloads.failed} refused{refused}"


def target_files_line(statistics: TargetFilesStatistics, now: float) -> str:
    """Return how the target files of a directory fare; ``now`` is the time on Trio's clock."""
    told = [
        f"target files in {statistics.directory}: {statistics.files} files",
        f"{statistics.writes} writes, last {_ago(statistics.last_written, now)}",
        f"{statistics.removals} removals",
        f"{statistics.failures} failures",
    ]
    told += [f"failing: {error}" for error in statistics.errors]
    told += [f"{name} is without labels {', '.join(labels)}" for name, labels in statistics.left_out.items()]
    return ", ".join(told)


def health_lines(statistics: ManagerStatistics, now: float) -> Iterator[str]:
    """Yield a line for the manager, each set, each provider and each subscription.

    Args:
      statistics: of the manager.
      now: the time on Trio's clock.
    """
    targets = sum([one_set.targets for one_set in statistics.sets])
    reload = f", last {_ago(statistics.last_reload, now)}" if statistics.reloads else ""
    yield (
        f"manager {statistics.name}: revision {statistics.revision}, {len(statistics.sets)} sets, {targets} targets, "
        f"{statistics.reloads} configurations applied{reload}"
    )
    if statistics.stuck:
        yield f"manager {statistics.name}: told to stop and still running: {', '.join(statistics.stuck)}"
    if (file := statistics.state_file) is not None:
        error = f", last error: {file.last_error}" if file.last_error else ""
        saved = f"{file.saves} saves, last {_ago(file.last_saved, now)}"
        yield f"state file {file.path}: {saved}, {file.failures} failures{error}"
    for one_set in statistics.sets:
        leaving = f", leaving: {', '.join(one_set.leaving)}" if one_set.leaving else ""
        yield f"set {one_set.name}: {one_set.groups} groups, {one_set.targets} targets{leaving}{_relabeled(one_set)}"
    for provider in statistics.providers:
        yield _provider(provider, now)
    for subscription in statistics.subscriptions:
        yield _subscription(subscription, now)


def _relabeled(one_set: SetStatistics) -> str:
    found = one_set.relabeled
    if found is None:
        return ""
    errors = f" ({'; '.join(found.errors)})" if found.errors else ""
    return (
        f", after relabeling {found.targets} targets, {found.dropped} dropped, {found.duplicates} duplicates, "
        f"{found.unusable} unusable{errors}"
    )


def _provider(provider: ProviderStatistics, now: float) -> str:
    told = [
        f"provider {provider.name} of {', '.join(provider.sets)}: {provider.state}",
        f"{provider.groups} groups",
        f"{provider.targets} targets",
        "nothing heard of it yet" if provider.age is None else f"right as of {age(provider.age)} ago",
        f"{provider.updates} updates",
        f"{provider.restarts} restarts",
        f"last attempt {_ago(provider.last_attempt, now)}",
        f"last success {_ago(provider.last_success, now)}",
    ]
    if provider.stale:
        told.append("what is shown comes from the state file")
    if provider.failure_streak:
        told.append(f"{provider.failure_streak} failures in a row")
    if provider.last_error:
        told.append(f"last error {_ago(provider.last_failure, now)}: {provider.last_error}")
    if provider.duplicates:
        told.append(f"{provider.duplicates} groups lost because of their source")
    told += [f"failing: {error}" for error in provider.details.errors]
    told += [f"note: {note}" for note in provider.details.notes]
    told += [f"{name} {value}" for name, value in provider.details.counters.items()]
    return ", ".join(told)


def _subscription(subscription: SubscriptionStatistics, now: float) -> str:
    behind = "" if subscription.behind_since is None else f" since {age(now - subscription.behind_since)}"
    return (
        f"subscription {subscription.name or '(no name)'}: {subscription.delivered} delivered, "
        f"{subscription.skipped} skipped, lag {subscription.lag}{behind}"
    )


def _ago(moment: float | None, now: float) -> str:
    return "never" if moment is None else f"{age(now - moment)} ago"
