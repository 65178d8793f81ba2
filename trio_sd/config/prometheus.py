"""The dialect: a Prometheus configuration file, and the files that it includes.

What concerns discovery and the labels of targets is read; everything else that Prometheus reads is checked as well, and
not kept. A key that nobody knows is an error, so that no typing mistake is taken for a wish.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from ..discoverer import DiscovererConfig, Registry
from ..durations import Duration
from ..errors import ConfigError, FieldError, Position
from ..http_config import HTTPClientConfig
from ..limits import Limits
from ..messages import item_path, key_path, quote
from ..relabel import NameScheme, RelabelConfig, Relabeler
from ..set_configs import SetConfigs
from ..target_labels import AlertmanagerLabeler, TargetLabeler
from .decode import IGNORED, Ignored, decode
from .frozen import FrozenMapping
from .groups import decode_labels
from .nodes import MappingNode, Node, Scalar, is_null, parse_yaml
from .sections import SigV4, check_other_sections
from .shared import Count, Size, items_of, no_section, relabel_rules, sections_of, value_of

__all__ = [
    "DISCOVERY_KEYS",
    "AlertmanagerSection",
    "Config",
    "ScrapeJob",
    "content_digest",
    "load_config",
    "parse_config",
]

_STATIC_KEY: Final = "static_configs"

DISCOVERY_KEYS: Final = frozenset(
    {
        _STATIC_KEY,
        "aws_sd_configs",
        "azure_sd_configs",
        "consul_sd_configs",
        "digitalocean_sd_configs",
        "dns_sd_configs",
        "docker_sd_configs",
        "dockerswarm_sd_configs",
        "ec2_sd_configs",
        "ecs_sd_configs",
        "elasticache_sd_configs",
        "eureka_sd_configs",
        "file_sd_configs",
        "gce_sd_configs",
        "hetzner_sd_configs",
        "http_sd_configs",
        "ionos_sd_configs",
        "kubernetes_sd_configs",
        "kuma_sd_configs",
        "lightsail_sd_configs",
        "linode_sd_configs",
        "marathon_sd_configs",
        "msk_sd_configs",
        "nerve_sd_configs",
        "nomad_sd_configs",
        "oci_sd_configs",
        "openstack_sd_configs",
        "outscale_sd_configs",
        "ovhcloud_sd_configs",
        "puppetdb_sd_configs",
        "rds_sd_configs",
        "scaleway_sd_configs",
        "serverset_sd_configs",
        "stackit_sd_configs",
        "triton_sd_configs",
        "uyuni_sd_configs",
        "vultr_sd_configs",
    }
)
"""The keys of every mechanism that Prometheus has, whether there is one here or not."""

_FILE_PATTERN: Final = re.compile(r"[^*]*(\*[^/]*)?")  # a star in the last element of the path only

_Protocol: TypeAlias = Literal[
    "OpenMetricsText0.0.1", "OpenMetricsText1.0.0", "PrometheusProto", "PrometheusText0.0.4", "PrometheusText1.0.0"
]
_Validation: TypeAlias = Literal["", "legacy", "utf8"]
_Escaping: TypeAlias = Literal["", "allow-utf-8", "underscores", "dots", "values"]

_NO_PARAMS: Final[Mapping[str, tuple[str, ...]]] = FrozenMapping()
_NO_DIGESTS: Final[Mapping[str, str]] = FrozenMapping()
_NO_COUNT: Final = Count()
_NO_SIZE: Final = Size()
_NULL_IS_EMPTY: Final = MappingProxyType({"null": "empty"})  # as in Go: `scheme:` without a value is empty
_NO_TIME: Final = Duration()  # as in Prometheus, a time of zero says nothing
_MINUTE: Final = Duration.of("1m")
_TEN_SECONDS: Final = Duration.of("10s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeJob:
    """What a scrape configuration says about the targets of its job, with everything inherited from ``global``.

    Attributes:
      job_name: the name of the job, and of its target set.
      scheme: how targets are spoken to.
      metrics_path: where targets have their metrics.
      scrape_interval: how often targets are scraped.
      scrape_timeout: how long one scrape may take.
      params: query parameters of a scrape.
      scrape_native_histograms: whether native histograms are scraped.
      always_scrape_classic_histograms: whether classic histograms are scraped although there are native ones.
      convert_classic_histograms_to_nhcb: whether classic histograms are made native ones with custom buckets.
      relabel_configs: the rules that make target labels of discovered ones.
      rule_positions: where each rule stands. Does not count when jobs are compared: a rule may move in its file.
      name_scheme: which label names are valid.
    """

    job_name: str
    scheme: str = "http"
    metrics_path: str = "/metrics"
    scrape_interval: Duration = _MINUTE
    scrape_timeout: Duration = _TEN_SECONDS
    params: Mapping[str, tuple[str, ...]] = _NO_PARAMS
    scrape_native_histograms: bool = False
    always_scrape_classic_histograms: bool = False
    convert_classic_histograms_to_nhcb: bool = False
    relabel_configs: tuple[RelabelConfig, ...] = ()
    rule_positions: tuple[Position, ...] = field(default=(), compare=False)
    name_scheme: NameScheme = "utf8"

    def labeler(self) -> TargetLabeler:
        """Return what makes the labels of the job's targets."""
        return TargetLabeler(self, Relabeler(self.relabel_configs, self.name_scheme))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertmanagerSection:
    """What an item of ``alerting.alertmanagers`` says about its targets.

    Attributes:
      scheme: how Alertmanagers are spoken to.
      path_prefix: what stands before the path that alerts are sent to.
      api_version: the version in that path.
      relabel_configs: the rules that make target labels of discovered ones.
      rule_positions: where each rule stands; does not count when sections are compared.
      name_scheme: which label names are valid.
    """

    scheme: str = "http"
    path_prefix: str = ""
    api_version: str = "v2"
    relabel_configs: tuple[RelabelConfig, ...] = ()
    rule_positions: tuple[Position, ...] = field(default=(), compare=False)
    name_scheme: NameScheme = "utf8"

    def labeler(self) -> AlertmanagerLabeler:
        """Return what makes the labels of the section's Alertmanagers."""
        return AlertmanagerLabeler(self, Relabeler(self.relabel_configs, self.name_scheme))


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that was read and validated whole.

    Attributes:
      scrape: the discoverers of each job, in the order of the configuration, included files last; and how the labels
        of each job's targets are made.
      notify: the same of each Alertmanager section; the sections are named ``config-0``, ``config-1`` and so on.
      jobs: what else each job says about its targets; the same keys as in ``scrape``.
      alertmanagers: what else each Alertmanager section says about its targets; the same keys as in ``notify``.
      files: absolute paths of the files that were read, the main file first.
      digests: for each of these files, the :func:`content_digest` of what was read.
      patterns: absolute paths or patterns of the files to include.
      notes: what an operator should know though nothing is wrong: a pattern that matches no file, say.
    """

    scrape: SetConfigs
    notify: SetConfigs
    jobs: Mapping[str, ScrapeJob]
    alertmanagers: Mapping[str, AlertmanagerSection]
    files: tuple[str, ...] = ()
    digests: Mapping[str, str] = _NO_DIGESTS
    patterns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_DEFAULT_LIMITS: Final = Limits()


def content_digest(content: bytes) -> str:
    """Return a short text that differs wherever ``content`` does, to tell whether a file is still what was read."""
    return hashlib.sha256(content).hexdigest()


def load_config(path: str | os.PathLike[str], *, registry: Registry, limits: Limits = _DEFAULT_LIMITS) -> Config:
    """Read the configuration file at ``path`` and the files that it includes.

    Args:
      path: the main file. Relative paths in a file are taken from the directory of that file.
      registry: the mechanisms to know.
      limits: bounds on what is read.

    Raises:
      ConfigError: a file can't be read, or what it says can't be used.
    """
    file = os.fspath(path)
    return parse_config(_read(file, limits), file=file, registry=registry, limits=limits)


def parse_config(text: bytes, *, file: str, registry: Registry, limits: Limits = _DEFAULT_LIMITS) -> Config:
    """Do as :func:`load_config` does, with the main file's content as ``text``.

    Args:
      text: what the main file contains.
      file: the main file's path: for positions, and to find what relative paths mean.
      registry: the mechanisms to know.
      limits: bounds on what is read.

    Raises:
      ConfigError: an included file can't be read, or what one of them says can't be used.
    """
    return _Loading(registry, limits).load(text, file)


def _read(file: str, limits: Limits) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(limits.file_bytes + 1)
    except OSError as error:
        raise ConfigError(f"can't read {quote(file)}: {error.strerror}") from None
    except ValueError as error:  # a path with a NUL in it
        raise ConfigError(f"can't read {quote(file)}: {error}") from None


def _matches(pattern: str) -> list[str]:
    """Return the files that a pattern matches; a directory that does not exist has none.

    Raises:
      OSError: the directory can't be read.
      ValueError: the pattern has a NUL in it.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.scandir(os.path.dirname(pattern) or ".").close()
    return sorted(glob.glob(pattern, include_hidden=True))


def _require_regular(file: str) -> None:
    """Refuse what may block for ever. The main file may be a pipe: who names it there means it."""
    if os.path.exists(file) and not os.path.isfile(file):
        raise ConfigError(f"can't read {quote(file)}: not a regular file")


# The sections of a file, as they are written. Null and zero leave a choice to `global`, or to the default.


@dataclass(frozen=True, kw_only=True)
class _ScrapeDefaults:
    """What ``global`` and a scrape configuration both have."""

    scrape_interval: Duration = _NO_TIME
    scrape_timeout: Duration = _NO_TIME
    scrape_protocols: tuple[_Protocol, ...] | None = None
    scrape_native_histograms: bool | None = None
    always_scrape_classic_histograms: bool | None = None
    convert_classic_histograms_to_nhcb: bool | None = None
    extra_scrape_metrics: bool | None = None
    metric_name_validation_scheme: _Validation = ""
    metric_name_escaping_scheme: _Escaping = ""
    scrape_failure_log_file: str = ""
    body_size_limit: Size = _NO_SIZE
    sample_limit: Count = _NO_COUNT
    target_limit: Count = _NO_COUNT
    label_limit: Count = _NO_COUNT
    label_name_length_limit: Count = _NO_COUNT
    label_value_length_limit: Count = _NO_COUNT
    keep_dropped_targets: Count = _NO_COUNT

    def validate(self) -> None:
        """Check the protocols; an empty list is not the same as none."""
        if self.scrape_protocols is None:
            return
        if not self.scrape_protocols:
            raise FieldError("scrape_protocols", "scrape_protocols cannot be empty")
        for index, protocol in enumerate(self.scrape_protocols):
            if protocol in self.scrape_protocols[:index]:
                raise FieldError(("scrape_protocols", index), f"duplicated protocol in scrape_protocols: {protocol}")


@dataclass(frozen=True, kw_only=True)
class _Global(_ScrapeDefaults):
    evaluation_interval: Duration = _NO_TIME
    rule_query_offset: Duration = _NO_TIME
    query_log_file: str = ""
    external_labels: Ignored = IGNORED

    def validate(self) -> None:
        """Check that a scrape ends before the next one starts."""
        super().validate()
        if self.scrape_timeout > self.interval:
            raise FieldError("scrape_timeout", "global scrape timeout greater than scrape interval")

    @property
    def interval(self) -> Duration:
        return self.scrape_interval if self.scrape_interval != _NO_TIME else _MINUTE

    @property
    def timeout(self) -> Duration:
        return self.scrape_timeout if self.scrape_timeout != _NO_TIME else min(_TEN_SECONDS, self.interval)


_DEFAULT_GLOBAL: Final = _Global()


@dataclass(frozen=True, kw_only=True)
class _Scrape(_ScrapeDefaults, HTTPClientConfig):
    job_name: str = ""
    scheme: str = field(default="http", metadata=_NULL_IS_EMPTY)
    metrics_path: str = field(default="/metrics", metadata=_NULL_IS_EMPTY)
    params: Mapping[str, tuple[str, ...]] = _NO_PARAMS
    honor_labels: bool = False
    honor_timestamps: bool = True
    track_timestamps_staleness: bool = False
    enable_compression: bool = True
    fallback_scrape_protocol: Literal["", _Protocol] = ""
    native_histogram_bucket_limit: Count = _NO_COUNT
    native_histogram_min_bucket_factor: float = 0
    relabel_configs: Ignored = IGNORED  # as all rules: read where the scheme of label names is known
    metric_relabel_configs: Ignored = IGNORED

    def validate(self) -> None:
        """Check what both bases check."""
        _ScrapeDefaults.validate(self)
        HTTPClientConfig.validate(self)


@dataclass(frozen=True, kw_only=True)
class _Alertmanager(HTTPClientConfig):
    sigv4: SigV4 | None = None
    scheme: str = field(default="http", metadata=_NULL_IS_EMPTY)
    path_prefix: str = ""
    timeout: Duration = _TEN_SECONDS
    api_version: Literal["v2"] = "v2"
    relabel_configs: Ignored = IGNORED
    alert_relabel_configs: Ignored = IGNORED

    def validate(self) -> None:
        """Check that there is one way at the most to say who to be."""
        super().validate()
        if self.sigv4 is not None and self.authentication:
            raise FieldError("sigv4", "at most one of basic_auth, authorization, oauth2, & sigv4 must be configured")


@dataclass(frozen=True, kw_only=True)
class _Alerting:
    alert_relabel_configs: Ignored = IGNORED
    alertmanagers: Ignored = IGNORED


@dataclass(frozen=True, kw_only=True)
class _Main:
    """A whole file. What is marked as passed over is read by :class:`_Loading`, which knows what that needs."""

    defaults: _Global = field(default=_DEFAULT_GLOBAL, metadata={"key": "global"})
    scrape_configs: Ignored = IGNORED
    scrape_config_files: tuple[str, ...] = ()
    alerting: _Alerting | None = None
    rule_files: tuple[str, ...] = ()
    runtime: Ignored = IGNORED
    storage: Ignored = IGNORED
    tracing: Ignored = IGNORED
    remote_write: Ignored = IGNORED
    remote_read: Ignored = IGNORED
    otlp: Ignored = IGNORED

    def validate(self) -> None:
        """Check the patterns."""
        for index, file in enumerate(self.scrape_config_files):
            if not _FILE_PATTERN.fullmatch(file):
                raise FieldError(("scrape_config_files", index), f"invalid scrape config file path {quote(file)}")
        for index, file in enumerate(self.rule_files):
            if not _FILE_PATTERN.fullmatch(file):
                raise FieldError(("rule_files", index), f"invalid rule file path {quote(file)}")


@dataclass(frozen=True)
class _Included:
    """A file that ``scrape_config_files`` names."""

    scrape_configs: Ignored = IGNORED


class _Loading:
    """Reads one configuration, and keeps what was found so far."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry = registry
        self._limits = limits
        self._known = DISCOVERY_KEYS | registry.keys()
        self._defaults = _DEFAULT_GLOBAL
        self._scrape: dict[str, tuple[DiscovererConfig, ...]] = {}
        self._notify: dict[str, tuple[DiscovererConfig, ...]] = {}
        self._jobs: dict[str, ScrapeJob] = {}
        self._alertmanagers: dict[str, AlertmanagerSection] = {}
        self._places: dict[str, Position] = {}  # where each job has its name
        self._digests: dict[str, str] = {}  # of the files that were read
        self._patterns: list[str] = []
        self._notes: list[str] = []

    def load(self, text: bytes, file: str) -> Config:
        root = self._parse(text, file)
        if root is not None:
            self._main(root, os.path.dirname(file))
        return Config(
            scrape=SetConfigs(self._scrape, self._jobs),
            notify=SetConfigs(self._notify, self._alertmanagers),
            jobs=MappingProxyType(self._jobs),
            alertmanagers=MappingProxyType(self._alertmanagers),
            files=tuple(self._digests),
            digests=MappingProxyType(self._digests),
            patterns=tuple(self._patterns),
            notes=tuple(self._notes),
        )

    def _parse(self, text: bytes, file: str) -> Node | None:
        root = parse_yaml(text, file=file, limits=self._limits)
        self._digests[os.path.abspath(file)] = content_digest(text)
        return root

    def _main(self, root: Node, directory: str) -> None:
        main = decode(root, _Main)
        self._defaults = main.defaults
        _check_external_labels(value_of(root, "global"), main.defaults)
        check_other_sections(root, main.defaults.metric_name_validation_scheme or "utf8")
        self._scrape_configs(root, directory)
        for index, pattern in enumerate(main.scrape_config_files):
            self._include(root, index, os.path.join(directory, pattern) if pattern else pattern)
        self._alerting(value_of(root, "alerting"), directory)

    def _include(self, root: Node, index: int, pattern: str) -> None:
        self._patterns.append(os.path.abspath(pattern))
        place = item_path("scrape_config_files", index)
        # A pattern that matches nothing is no error to Prometheus: the files may be on their way.
        try:
            files = _matches(pattern)
        except OSError as error:  # a directory that can't be read is not an empty one
            named = items_of(value_of(root, "scrape_config_files"), "")[index]
            raise named.error(f"can't read {quote(error.filename)}: {error.strerror}", place) from None
        except ValueError as error:  # a path with a NUL in it
            named = items_of(value_of(root, "scrape_config_files"), "")[index]
            raise named.error(f"can't read {quote(pattern)}: {error}", place) from None
        if not files:
            self._notes.append(f"{place}: {quote(pattern)} matches no file")
        for file in files:
            try:
                _require_regular(file)
                text = _read(file, self._limits)
            except ConfigError as error:
                named = items_of(value_of(root, "scrape_config_files"), "")[index]
                raise named.error(error.message, place) from None
            included = self._parse(text, file)
            if included is not None:
                decode(included, _Included)
                self._scrape_configs(included, os.path.dirname(file))

    def _scrape_configs(self, root: Node, directory: str) -> None:
        for path, node in sections_of(value_of(root, "scrape_configs"), "scrape_configs"):
            if type(node) is not MappingNode:
                raise no_section(node, path, "scrape config")
            self._job(node, path, directory)

    def _job(self, node: MappingNode, path: str, directory: str) -> None:
        section = decode(node, _Scrape, path=path, elsewhere=self._known)
        discovery = tuple(self._discovery(node, path, directory))
        name = section.job_name
        place, name_path = _place(node, "job_name"), key_path(path, "job_name")
        if not name:
            raise ConfigError("job_name is empty", place, name_path)
        scheme = _name_scheme(section, self._defaults)
        rules, positions = relabel_rules(
            node, path, "relabel_configs", "target relabeling rule in scrape config", scheme
        )
        relabel_rules(node, path, "metric_relabel_configs", "metric relabeling rule in scrape config", scheme)
        job = _job_of(section, self._defaults, node, path)
        job = replace(job, relabel_configs=rules, rule_positions=positions, name_scheme=scheme)
        _check_metric_names(section, self._defaults, node, path)
        if name in self._jobs:
            message = f"found multiple scrape configs with job name {quote(name)}, first found at {self._places[name]}"
            raise ConfigError(message, place, name_path)
        self._scrape[name] = discovery
        self._jobs[name] = job
        self._places[name] = place

    def _alerting(self, alerting: Node | None, directory: str) -> None:
        if type(alerting) is not MappingNode:
            return
        scheme: NameScheme = self._defaults.metric_name_validation_scheme or "utf8"
        relabel_rules(alerting, "alerting", "alert_relabel_configs", "alert relabeling rule", scheme)
        managers = sections_of(alerting.get("alertmanagers"), "alerting.alertmanagers")
        for index, (path, node) in enumerate(managers):
            if type(node) is not MappingNode:
                raise no_section(node, path, "alertmanager config")
            section = decode(node, _Alertmanager, path=path, elsewhere=self._known)
            rules, positions = relabel_rules(
                node, path, "relabel_configs", "Alertmanager target relabeling rule", scheme
            )
            relabel_rules(node, path, "alert_relabel_configs", "Alertmanager alert relabeling rule", scheme)
            name = f"config-{index}"
            self._notify[name] = tuple(self._discovery(node, path, directory))
            self._alertmanagers[name] = AlertmanagerSection(
                scheme=section.scheme,
                path_prefix=section.path_prefix,
                api_version=section.api_version,
                relabel_configs=rules,
                rule_positions=positions,
                name_scheme=scheme,
            )

    def _discovery(self, section: MappingNode, path: str, directory: str) -> Iterator[DiscovererConfig]:
        for key, value in section.entries:
            if key.text in self._registry:
                for config in self._configs(key, value, key_path(path, key.text)):
                    yield config.with_directory(directory)
            elif key.text in DISCOVERY_KEYS:
                raise key.error(
                    f"{key.text} is not supported yet, expected one of: {', '.join(self._registry)}",
                    key_path(path, key.text),
                )
        if not items_of(section.get("relabel_configs"), key_path(path, "relabel_configs")):
            _refuse_urls(section.get(_STATIC_KEY), key_path(path, _STATIC_KEY))

    def _configs(self, key: Scalar, value: Node, path: str) -> tuple[DiscovererConfig, ...]:
        try:
            mechanism = self._registry[key.text]
        except ConfigError as error:  # it is there, but can't be loaded
            raise key.error(error.message, path) from error
        items: list[DiscovererConfig] = []
        for place, item in sections_of(value, path):
            if is_null(item):
                raise item.error(f"empty or null section in {key.text}", place)
            items.append(decode(item, mechanism, path=place))
        try:
            return tuple(mechanism.combine(items))
        except ValueError as error:
            raise value.error(str(error), path) from None


def _place(node: MappingNode, key: str) -> Position:
    """Return where the value of ``key`` is, or the mapping that has no such key."""
    return (node.get(key) or node).position


def _refuse_urls(static: Node | None, path: str) -> None:
    """Refuse targets that are URLs rather than addresses; with rules to relabel them they may become addresses."""
    for place, group in sections_of(static, path):
        targets = key_path(place, "targets")
        for item_place, item in sections_of(value_of(group, "targets"), targets):
            if type(item) is Scalar and "/" in item.text:
                raise item.error(
                    f"{quote(item.text)} is not a valid hostname; expected host:port, without a scheme or a path",
                    item_place,
                )


def _check_external_labels(node: Node | None, defaults: _Global) -> None:
    labels = value_of(node, "external_labels")
    if labels is not None:
        any_name = defaults.metric_name_validation_scheme != "legacy"
        decode_labels(labels, "global.external_labels", any_name=any_name)


def _job_of(section: _Scrape, defaults: _Global, node: MappingNode, path: str) -> ScrapeJob:
    """Return the job that ``section`` says, with what it leaves open taken from ``defaults``."""
    interval = section.scrape_interval if section.scrape_interval != _NO_TIME else defaults.interval
    timeout = section.scrape_timeout if section.scrape_timeout != _NO_TIME else min(defaults.timeout, interval)
    if timeout > interval:
        message = (
            f"scrape timeout greater than scrape interval for scrape config with job name {quote(section.job_name)}"
        )
        raise ConfigError(message, _place(node, "scrape_timeout"), key_path(path, "scrape_timeout"))
    return ScrapeJob(
        job_name=section.job_name,
        scheme=section.scheme,
        metrics_path=section.metrics_path,
        scrape_interval=interval,
        scrape_timeout=timeout,
        params=section.params,
        scrape_native_histograms=_first(section.scrape_native_histograms, defaults.scrape_native_histograms),
        always_scrape_classic_histograms=_first(
            section.always_scrape_classic_histograms, defaults.always_scrape_classic_histograms
        ),
        convert_classic_histograms_to_nhcb=_first(
            section.convert_classic_histograms_to_nhcb, defaults.convert_classic_histograms_to_nhcb
        ),
    )


def _first(own: bool | None, inherited: bool | None) -> bool:
    return bool(inherited) if own is None else own


def _name_scheme(section: _Scrape, defaults: _Global) -> NameScheme:
    return section.metric_name_validation_scheme or defaults.metric_name_validation_scheme or "utf8"


def _check_metric_names(section: _Scrape, defaults: _Global, node: MappingNode, path: str) -> None:
    """Refuse a job that asks for metric names which it then takes for invalid."""
    validation = _name_scheme(section, defaults)
    natural = "underscores" if validation == "legacy" else "allow-utf-8"
    inherited = "" if section.metric_name_validation_scheme else defaults.metric_name_escaping_scheme
    escaping = section.metric_name_escaping_scheme or inherited or natural
    if escaping == "allow-utf-8" and validation == "legacy":
        message = "utf8 metric names requested but validation scheme is not set to UTF8"
        key = "metric_name_escaping_scheme"
        raise ConfigError(message, _place(node, key), key_path(path, key))
