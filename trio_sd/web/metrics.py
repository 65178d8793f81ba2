"""What statistics tell, as metrics: under Prometheus' own names where it has such metrics, and under ours.

Nothing is counted here. Every series is made of the statistics of the moment, so there are as many as the configuration
has sets and providers, and those of what is not configured any more are gone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.registry import Collector

from ..manager import Manager, ManagerStatistics
from ..provider import ProviderStatistics
from ..reload import Reloader, ReloadStatistics

__all__ = ["Exposition", "Observed", "StatisticsCollector", "observe"]

_STATES: Final = ("starting", "synced", "failing", "paused", "stopped")
_FILE: Final = "file/"


@dataclass(frozen=True, slots=True)
class Observed:
    """Statistics of one moment.

    Attributes:
      managers: of each manager.
      reloads: how reloads went; ``None`` where nobody reloads.
      now: that moment on Trio's clock.
    """

    managers: Sequence[ManagerStatistics]
    reloads: ReloadStatistics | None
    now: float


def observe(managers: Iterable[Manager], reloader: Reloader | None) -> Observed:
    """Return the statistics of this moment. Call it in Trio's thread."""
    reloads = reloader.statistics() if reloader is not None else None
    return Observed(tuple([one.statistics() for one in managers]), reloads, trio.current_time())


class StatisticsCollector(Collector):
    """A collector of prometheus-client, to register with a registry of one's own.

    Args:
      observe: returns the statistics to tell of, whenever the registry collects.

    Several of them, in one process or one registry, do not meet as long as their managers have different names.
    """

    def __init__(self, observe: Callable[[], Observed]) -> None:
        self._observe = observe

    def describe(self) -> Iterator[Metric]:
        """Return nothing: names are known when they are collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        observed = self._observe()
        yield from _prometheus_metrics(observed.managers)
        yield from _polling_metrics(observed.managers)
        yield from _manager_metrics(observed.managers, observed.now)
        yield from _set_metrics(observed.managers)
        yield from _provider_metrics(observed.managers, observed.now)
        yield from _subscription_metrics(observed.managers, observed.now)
        yield from _state_file_metrics(observed.managers, observed.now)
        if observed.reloads is not None:
            yield from _reload_metrics(observed.reloads, observed.now)


class Exposition:
    """Everything of a registry, and statistics.

    Args:
      registry: what the program itself measures.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def expose(self, observed: Observed, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type. Takes time where much is configured: call it in a thread.

        Args:
          observed: the statistics.
          accept: the header field of the request.
        """
        both = _Both(self._registry, StatisticsCollector(lambda: observed))
        kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
        if "application/openmetrics-text" in kinds:
            return open_metrics(both, version="1.0.0"), OPENMETRICS  # type: ignore[no-untyped-call]
        return plain_text(both), CONTENT_TYPE_PLAIN_0_0_4


class _Both(Collector):
    def __init__(self, *collectors: Collector | CollectorRegistry) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


_Values = Iterable[tuple[tuple[str, ...], float | None]]


def _gauge(name: str, text: str, labels: Sequence[str], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for names, value in values:
        if value is not None:
            family.add_metric(names, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: _Values) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for names, value in values:
        if value is not None:
            family.add_metric(names, value)
    return family


def _unix(moment: float | None, now: float) -> float | None:
    """Return a time of Trio's clock as Unix time."""
    return None if moment is None else time.time() - (now - moment)


def _prometheus_metrics(managers: Sequence[ManagerStatistics]) -> Iterator[Metric]:
    by_name = ("name",)
    yield _gauge(
        "prometheus_sd_discovered_targets",
        "Current number of discovered targets.",
        ("name", "config"),
        [((one.name, each.name), each.targets) for one in managers for each in one.sets],
    )
    yield _counter(
        "prometheus_sd_received_updates_total",
        "Total number of update events received from the SD providers.",
        by_name,
        [((one.name,), one.received) for one in managers],
    )
    yield _counter(
        "prometheus_sd_updates_total",
        "Total number of update events sent to the SD consumers.",
        by_name,
        [((one.name,), one.delivered) for one in managers],
    )
    yield _counter(
        "prometheus_sd_updates_delayed_total",
        "Total number of update events that couldn't be sent immediately.",
        by_name,
        [((one.name,), one.skipped) for one in managers],
    )
    yield _gauge(
        "prometheus_sd_failed_configs",
        "Current number of service discovery configurations that failed to load.",
        by_name,
        [((one.name,), sum([each.state == "failing" for each in one.providers])) for one in managers],
    )
    files = [each for one in managers for each in one.providers if each.name.startswith(_FILE)]
    yield _counter(
        "prometheus_sd_file_read_errors_total",
        "The number of File-SD read errors, by the providers that run; they begin at 0 after a reload.",
        (),
        [((), sum([each.details.counters.get("read_errors", 0) for each in files]))],
    )
    yield SummaryMetricFamily(
        "prometheus_sd_file_scan_duration_seconds",
        "The duration of the File-SD scan in seconds, by the providers that run; they begin at 0 after a reload.",
        count_value=sum([each.details.counters.get("scans", 0) for each in files]),
        sum_value=sum([each.details.counters.get("scan_microseconds", 0) for each in files]) / 1e6,
    )


_REFRESHES: Final = (
    # Prometheus' names, the mechanism whose counter it is, and what the counter is called here.
    ("prometheus_sd_dns_lookups_total", "The number of DNS-SD lookups.", "dns", "looks"),
    ("prometheus_sd_dns_lookup_failures_total", "The number of DNS-SD lookup failures.", "dns", "failures"),
    ("prometheus_sd_http_failures_total", "Number of HTTP service discovery refresh failures.", "http", "failures"),
    ("prometheus_sd_consul_rpc_failures_total", "The number of Consul RPC call failures.", "consul", "failures"),
)


def _polling_metrics(managers: Sequence[ManagerStatistics]) -> Iterator[Metric]:
    """Yield what Prometheus tells of mechanisms that ask again and again."""
    by_set: dict[tuple[str, str], Counter[str]] = {}
    by_mechanism: dict[str, Counter[str]] = {}
    for one in managers:
        for each in one.providers:
            mechanism = each.name.partition("/")[0]
            counters = each.details.counters
            by_mechanism.setdefault(mechanism, Counter()).update(counters)
            # What waits for news, as a query of Consul does, is no refresh.
            if "looks" in counters and mechanism != "consul":
                for name in each.sets:
                    by_set.setdefault((mechanism, name), Counter()).update(counters)
    labels = ("mechanism", "config")
    yield _counter(
        "prometheus_sd_refresh_failures_total",
        "Number of refresh failures for the given SD mechanism, by the providers that run.",
        labels,
        [(names, counters["failures"]) for names, counters in by_set.items()],
    )
    durations = SummaryMetricFamily(
        "prometheus_sd_refresh_duration_seconds",
        "The duration of a refresh in seconds for the given SD mechanism, by the providers that run.",
        labels=labels,
    )
    for names, counters in by_set.items():
        durations.add_metric(names, counters["looks"], counters["look_microseconds"] / 1e6)
    yield durations
    for name, text, mechanism, counter in _REFRESHES:
        if mechanism in by_mechanism:
            yield _counter(name, text, (), [((), by_mechanism[mechanism][counter])])


def _manager_metrics(managers: Sequence[ManagerStatistics], now: float) -> Iterator[Metric]:
    labels = ("manager",)
    yield _gauge(
        "trio_sd_revision", "The number of the newest state.", labels, [((one.name,), one.revision) for one in managers]
    )
    yield _counter(
        "trio_sd_configurations_applied_total",
        "Configurations that were applied.",
        labels,
        [((one.name,), one.reloads) for one in managers],
    )
    yield _gauge(
        "trio_sd_stuck_providers",
        "Providers that were told to stop, and have not within the grace time.",
        labels,
        [((one.name,), len(one.stuck)) for one in managers],
    )


def _set_metrics(managers: Sequence[ManagerStatistics]) -> Iterator[Metric]:
    labels = ("manager", "set")
    sets = [((one.name, each.name), each) for one in managers for each in one.sets]
    yield _gauge("trio_sd_set_groups", "Groups in a set.", labels, [(key, each.groups) for key, each in sets])
    yield _gauge("trio_sd_set_targets", "Targets in a set.", labels, [(key, each.targets) for key, each in sets])
    yield _gauge(
        "trio_sd_set_leaving_providers",
        "Providers that have left a set, and are shown until those that joined it have reported.",
        labels,
        [(key, len(each.leaving)) for key, each in sets],
    )
    relabeled = [(key, each.relabeled) for key, each in sets if each.relabeled is not None]
    yield _gauge(
        "trio_sd_set_relabeled_targets",
        "What becomes of the targets of a set by relabeling, while somebody asks for that.",
        (*labels, "outcome"),
        [
            ((*key, outcome), value)
            for key, each in relabeled
            for outcome, value in (
                ("kept", each.targets),
                ("dropped", each.dropped),
                ("duplicate", each.duplicates),
                ("unusable", each.unusable),
            )
        ],
    )


def _provider_metrics(managers: Sequence[ManagerStatistics], now: float) -> Iterator[Metric]:
    labels = ("manager", "provider")
    providers = [((one.name, each.name), each) for one in managers for each in one.providers]

    def of(take: Callable[[ProviderStatistics], float | None]) -> _Values:
        return [(key, take(each)) for key, each in providers]

    yield _gauge("trio_sd_provider_up", "1 if a provider is synced.", labels, of(lambda p: p.state == "synced"))
    yield _gauge(
        "trio_sd_provider_state",
        "1 for the state that a provider is in, 0 for others.",
        (*labels, "state"),
        [((*key, state), each.state == state) for key, each in providers for state in _STATES],
    )
    yield _gauge(
        "trio_sd_provider_age_seconds",
        "How long ago everything that is shown of a provider was last known to be right.",
        labels,
        of(lambda p: p.age),
    )
    yield _gauge(
        "trio_sd_provider_stale",
        "1 if something that is shown of a provider comes from the state file.",
        labels,
        of(lambda p: p.stale),
    )
    yield _gauge("trio_sd_provider_groups", "Groups held of a provider.", labels, of(lambda p: p.groups))
    yield _gauge("trio_sd_provider_targets", "Targets held of a provider.", labels, of(lambda p: p.targets))
    yield _gauge(
        "trio_sd_provider_failure_streak",
        "Attempts that failed since the last success.",
        labels,
        of(lambda p: p.failure_streak),
    )
    yield _gauge("trio_sd_provider_errors", "What fails at present.", labels, of(lambda p: len(p.details.errors)))
    yield _gauge(
        "trio_sd_provider_last_success_timestamp_seconds",
        "When a provider last sent something, and told of no failure.",
        labels,
        of(lambda p: _unix(p.last_success, now)),
    )
    for name, told, take in (
        ("updates", "Updates that a provider has sent since it was last started by a reload.", _updates),
        ("restarts", "How often a provider was run again after a failure since then.", _restarts),
        ("duplicate_groups", "Groups lost since then, because another one had the same source.", _duplicates),
    ):
        yield _counter(f"trio_sd_provider_{name}_total", told, labels, of(take))
    yield _gauge(
        "trio_sd_provider_detail",
        "What a mechanism counts, under names of its own; begins anew when a provider is started.",
        (*labels, "detail"),
        [((*key, name), value) for key, each in providers for name, value in each.details.counters.items()],
    )


def _updates(provider: ProviderStatistics) -> float:
    return provider.updates


def _restarts(provider: ProviderStatistics) -> float:
    return provider.restarts


def _duplicates(provider: ProviderStatistics) -> float:
    return provider.duplicates


def _subscription_metrics(managers: Sequence[ManagerStatistics], now: float) -> Iterator[Metric]:
    """Yield what is known of subscribers, by their names: clients come and go, and many have the same."""
    labels = ("manager", "name")
    lags: dict[tuple[str, ...], list[int]] = {}
    behind: dict[tuple[str, ...], float] = {}
    for one in managers:
        for each in one.subscriptions:
            key = one.name, each.name
            lags.setdefault(key, []).append(each.lag)
            since = 0.0 if each.behind_since is None else now - each.behind_since
            behind[key] = max(since, behind.get(key, 0.0))
    yield _gauge("trio_sd_subscribers", "Subscribers.", labels, [(key, len(found)) for key, found in lags.items()])
    yield _gauge(
        "trio_sd_subscriber_lag_revisions",
        "Revisions that the subscriber which is most behind has not seen yet.",
        labels,
        [(key, max(found)) for key, found in lags.items()],
    )
    yield _gauge(
        "trio_sd_subscriber_behind_seconds",
        "For how long that subscriber has been behind.",
        labels,
        behind.items(),
    )


def _state_file_metrics(managers: Sequence[ManagerStatistics], now: float) -> Iterator[Metric]:
    labels = ("manager",)
    files = [((one.name,), one.state_file) for one in managers if one.state_file is not None]
    yield _counter(
        "trio_sd_state_file_saves_total", "How often state was saved.", labels, [(key, f.saves) for key, f in files]
    )
    yield _counter(
        "trio_sd_state_file_failures_total", "How often it was not.", labels, [(key, f.failures) for key, f in files]
    )
    yield _gauge(
        "trio_sd_state_file_last_saved_timestamp_seconds",
        "When state was last saved.",
        labels,
        [(key, _unix(f.last_saved, now)) for key, f in files],
    )


def _reload_metrics(reloads: ReloadStatistics, now: float) -> Iterator[Metric]:
    yield _counter(
        "trio_sd_config_reloads_total",
        "Configurations, by what became of them.",
        ("outcome",),
        [(("success",), reloads.succeeded), (("refused",), reloads.failed)],
    )
    yield _gauge(
        "trio_sd_config_last_reload_successful",
        "1 if the last configuration was put in force.",
        (),
        [((), reloads.last_error is None)],
    )
    yield _gauge(
        "trio_sd_config_last_reload_success_timestamp_seconds",
        "When a configuration was last put in force.",
        (),
        [((), _unix(reloads.last_success, now))],
    )
