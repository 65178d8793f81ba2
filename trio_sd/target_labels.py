"""From what is discovered to the labels of a target, as current Prometheus makes them.

First the *discovered* labels: those of the target, below them those of its group, below them what the configuration
says. Then relabeling. Then the result is checked and finished, for a scrape job by other rules than for Alertmanagers.
A target that can't be used is told apart from one that the rules drop, and does not touch its neighbours.

Two things of older releases are left out, as in current ones: no port is added to an address without one, and an
Alertmanager keeps its ``__meta_`` labels.
"""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from .durations import Duration
from .messages import is_utf8, quote
from .relabel import Relabeler, RelabelError, Trace
from .targets import ADDRESS_LABEL, META_LABEL_PREFIX

__all__ = ["AlertmanagerDefaults", "AlertmanagerLabeler", "Labeler", "Outcome", "ScrapeDefaults", "TargetLabeler"]

_JOB: Final = "job"
_INSTANCE: Final = "instance"
_SCHEME: Final = "__scheme__"
_METRICS_PATH: Final = "__metrics_path__"
_INTERVAL: Final = "__scrape_interval__"
_TIMEOUT: Final = "__scrape_timeout__"
_PARAM_PREFIX: Final = "__param_"
_ALERTS_PATH: Final = "__alerts_path__"

_SWITCHES: Final = MappingProxyType(
    {
        "__convert_classic_histograms_to_nhcb__": "convert classic histograms to nhcb",
        "__always_scrape_classic_histograms__": "always scrape classic histograms",
        "__scrape_native_histograms__": "scrape native histograms",
    }
)
"""Labels that switch something for one target, with what to call them in a message."""

_BOOLEANS: Final = frozenset(
    {"1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"},
)


class ScrapeDefaults(Protocol):
    """What a scrape configuration says about targets that say nothing themselves."""

    @property
    def job_name(self) -> str:
        """The name of the job."""

    @property
    def scheme(self) -> str:
        """How targets are spoken to."""

    @property
    def metrics_path(self) -> str:
        """Where targets have their metrics."""

    @property
    def scrape_interval(self) -> object:
        """How often targets are scraped; its ``str`` is the label."""

    @property
    def scrape_timeout(self) -> object:
        """How long one scrape may take; its ``str`` is the label."""

    @property
    def params(self) -> Mapping[str, Sequence[str]]:
        """Query parameters; the first value of each becomes a label."""


class AlertmanagerDefaults(Protocol):
    """What an Alertmanager section says about its targets."""

    @property
    def scheme(self) -> str:
        """How Alertmanagers are spoken to."""

    @property
    def path_prefix(self) -> str:
        """What stands before the path that alerts are sent to."""

    @property
    def api_version(self) -> str:
        """The version in that path."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a target.

    Attributes:
      labels: its final labels; ``None`` if it was dropped or can't be used.
      error: why it can't be used; ``None`` if it can, or was dropped.
    """

    labels: Mapping[str, str] | None
    error: str | None = None

    @property
    def dropped(self) -> bool:
        """Whether the rules dropped the target."""
        return self.labels is None and self.error is None


_DROPPED: Final = Outcome(None)


class _UnusableError(Exception):
    """The target can't be used; the argument says why."""


class Labeler(ABC):
    """Makes the labels of one set's targets: those before relabeling, and of these the final ones.

    Args:
      relabeler: the set's rules.
    """

    __slots__ = ("_relabeler",)

    def __init__(self, relabeler: Relabeler) -> None:
        self._relabeler = relabeler

    @abstractmethod
    def discovered_labels(self, target: Mapping[str, str], group: Mapping[str, str]) -> dict[str, str]:
        """Return the labels of a target before relabeling.

        Args:
          target: the target's own labels.
          group: those of its group.
        """

    def target_labels(self, discovered: Mapping[str, str]) -> Outcome:
        """Return what relabeling and the checks make of the discovered labels of a target."""
        try:
            labels = self._relabeler.relabel(discovered)
        except RelabelError as error:
            return Outcome(None, str(error))
        return self._outcome(labels)

    def explain(self, discovered: Mapping[str, str]) -> tuple[Trace, Outcome]:
        """Return what each rule did, and what :meth:`target_labels` returns."""
        trace = self._relabeler.explain(discovered)
        if trace.error is not None:
            return trace, Outcome(None, trace.error)
        return trace, self._outcome(None if trace.labels is None else dict(trace.labels.items()))

    def _outcome(self, labels: dict[str, str] | None) -> Outcome:
        if labels is None:
            return _DROPPED
        try:
            return Outcome(self._finished(labels))
        except _UnusableError as error:
            return Outcome(None, str(error))

    @abstractmethod
    def _finished(self, labels: dict[str, str]) -> dict[str, str]:
        """Check ``labels`` and turn them into the final ones."""


class TargetLabeler(Labeler):
    """Makes the labels of a scrape job's targets.

    Args:
      defaults: what the configuration says.
      relabeler: the job's rules.
    """

    __slots__ = ("_defaults", "_good_times")

    def __init__(self, defaults: ScrapeDefaults, relabeler: Relabeler) -> None:
        super().__init__(relabeler)
        labels = {
            _JOB: defaults.job_name,
            _INTERVAL: str(defaults.scrape_interval),
            _TIMEOUT: str(defaults.scrape_timeout),
            _METRICS_PATH: defaults.metrics_path,
            _SCHEME: defaults.scheme,
            **{f"{_PARAM_PREFIX}{name}": values[0] for name, values in defaults.params.items() if values},
        }
        self._defaults = _without_empty(labels)
        self._good_times: tuple[str, str] | None = None  # what was good for one target is good for the next

    def discovered_labels(self, target: Mapping[str, str], group: Mapping[str, str]) -> dict[str, str]:
        """Return the labels of a target before relabeling.

        A label that the target has hides the group's, even with an empty value; then the configuration's is taken.

        Args:
          target: the target's own labels.
          group: those of its group.
        """
        own = dict(group.items())  # items() is quicker than look-ups by name
        own.update(target.items())
        return self._defaults | _without_empty(own)

    def _finished(self, labels: dict[str, str]) -> dict[str, str]:
        address = labels.get(ADDRESS_LABEL)
        if address is None:
            raise _UnusableError("no address")
        _check_address(address)
        times = labels.get(_INTERVAL, ""), labels.get(_TIMEOUT, "")
        if times != self._good_times:
            _check_times(*times)
            self._good_times = times
        for name, what in _SWITCHES.items():
            if name in labels and labels[name] not in _BOOLEANS:
                raise _UnusableError(f"error parsing {what}: found {quote(labels[name])}, expected true or false")
        final = {name: value for name, value in labels.items() if not name.startswith(META_LABEL_PREFIX)}
        final.setdefault(_INSTANCE, address)
        if not all(map(str.isascii, final.values())):
            _check_values(final)
        return final


class AlertmanagerLabeler(Labeler):
    """Makes the labels of the Alertmanagers of one section.

    Args:
      defaults: what the configuration says.
      relabeler: the section's rules.
    """

    __slots__ = ("_defaults",)

    def __init__(self, defaults: AlertmanagerDefaults, relabeler: Relabeler) -> None:
        super().__init__(relabeler)
        path = f"/{defaults.path_prefix}/api/{defaults.api_version}/alerts"
        # normpath() would keep two slashes at the beginning.
        self._defaults = {_SCHEME: defaults.scheme, _ALERTS_PATH: posixpath.normpath("/" + path.lstrip("/"))}

    def discovered_labels(self, target: Mapping[str, str], group: Mapping[str, str]) -> dict[str, str]:
        """Return the labels of an Alertmanager before relabeling.

        Scheme and path are the configuration's whatever the target says; only its group can change them, and only
        where the target says nothing.

        Args:
          target: the target's own labels.
          group: those of its group.
        """
        own = dict(target.items())
        inherited = {name: value for name, value in group.items() if name not in own}
        return _without_empty(own | self._defaults | inherited)

    def _finished(self, labels: dict[str, str]) -> dict[str, str]:
        _check_address(labels.get(ADDRESS_LABEL, ""))
        return labels


def _without_empty(labels: dict[str, str]) -> dict[str, str]:
    return labels if all(labels.values()) else {name: value for name, value in labels.items() if value}


def _check_address(address: str) -> None:
    if "/" in address:  # a URL, most likely
        raise _UnusableError(f"{quote(address)} is not a valid hostname")


def _check_values(labels: Mapping[str, str]) -> None:
    for name, value in sorted(labels.items()):
        if not is_utf8(value):
            raise _UnusableError(f"invalid label value for {quote(name)}: {quote(value)}")


def _check_times(interval: str, timeout: str) -> None:
    if _duration("interval", interval) < _duration("timeout", timeout):
        compared = f"{quote(timeout)} > {quote(interval)}"
        raise _UnusableError(f"scrape timeout cannot be greater than scrape interval ({compared})")


def _duration(what: str, text: str) -> Duration:
    if not text:
        raise _UnusableError(f"error parsing scrape {what}: empty duration string")
    try:
        duration = Duration.of(text)
    except ValueError as error:
        raise _UnusableError(f"error parsing scrape {what}: {error}") from None
    if duration == Duration():
        raise _UnusableError(f"scrape {what} cannot be 0")
    return duration
