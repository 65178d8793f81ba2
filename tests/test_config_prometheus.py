"""A Prometheus configuration is read whole, or refused with what is wrong, where."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from trio_sd.config import (
    DISCOVERY_KEYS,
    Config,
    Duration,
    Node,
    ScrapeJob,
    content_digest,
    decode_target_group,
    load_config,
    parse_config,
    parse_yaml,
)
from trio_sd.discoverer import Discoverer, DiscovererConfig, DiscovererOptions, Registry
from trio_sd.discovery import default_registry
from trio_sd.errors import ConfigError, FieldError
from trio_sd.limits import Limits
from trio_sd.targets import Labels

A_NAME = "; expected letters, digits and _, no digit first"

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared" / "facts"
FACTS = SHARED if SHARED.is_dir() else REPOSITORY / "tests" / "data" / "config"

LIMITS = Limits()


@dataclass(frozen=True)
class FakeStatic(DiscovererConfig):
    mechanism: ClassVar[str] = "static"
    groups: tuple[tuple[tuple[Labels, ...], Labels], ...] = ()

    @classmethod
    def decode(cls, node: Node, path: str) -> Self:
        return cls((decode_target_group(node, path),))

    @classmethod
    def combine(cls, items: Sequence[Self]) -> Sequence[Self]:
        if len(items) > 8:
            raise ValueError("too many")
        return [cls(tuple(group for item in items for group in item.groups))] if items else []

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        raise NotImplementedError


@dataclass(frozen=True)
class FakeFile(DiscovererConfig):
    mechanism: ClassVar[str] = "file"
    files: tuple[str, ...] = ()
    refresh_interval: Duration = Duration(300_000)  # noqa: RUF009 (immutable)

    def validate(self) -> None:
        if not self.files:
            raise FieldError("files", "file service discovery config must contain at least one path name")
        for index, name in enumerate(self.files):
            if not name.endswith((".json", ".yml", ".yaml")):
                raise FieldError(("files", index), f'path name "{name}" is not valid for file discovery')

    def with_directory(self, directory: str) -> Self:
        return dataclasses.replace(self, files=tuple(os.path.join(directory, name) for name in self.files))

    def discoverer(self, options: DiscovererOptions) -> Discoverer:
        raise NotImplementedError


REGISTRY: dict[str, type[DiscovererConfig]] = {
    "static_configs": FakeStatic,
    "file_sd_configs": FakeFile,
    "our_sd_configs": FakeFile,
}


def parse(text: str, limits: Limits = LIMITS) -> Config:
    return parse_config(text.encode(), file="dir/p.yml", registry=REGISTRY, limits=limits)


def refused(text: str, limits: Limits = LIMITS) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, limits)
    return str(caught.value)


def load(path: str | Path) -> Config:
    return load_config(path, registry=REGISTRY)


def load_refused(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def static(*addresses: str, **labels: str) -> FakeStatic:
    return FakeStatic(((tuple(Labels({"__address__": text}) for text in addresses), Labels(labels)),))


# What a configuration says


def test_an_empty_configuration_has_no_sets() -> None:
    config = parse("")
    assert not any([config.scrape, config.notify, config.jobs, config.alertmanagers, config.notes])
    assert config.files == (os.path.abspath("dir/p.yml"),)


@pytest.mark.parametrize("text", ["global:\nscrape_configs:\nalerting:\n", "alerting: {alertmanagers: ~}", "{}"])
def test_sections_may_be_null(text: str) -> None:
    assert not any([parse(text).scrape, parse(text).notify])


def test_discoverers_are_in_the_order_of_the_document() -> None:
    config = parse(
        """
        scrape_configs:
          - job_name: z
            file_sd_configs: [{files: [a.yml], refresh_interval: 10s}, {files: [/b.json]}]
            static_configs:
              - targets: ['a:1', b]
                labels: {x: 010}
            our_sd_configs: [{files: [c.yml]}]
          - job_name: a
          - job_name: e
            static_configs: ~
            file_sd_configs: []
        """
    )
    assert list(config.scrape) == list(config.jobs) == ["z", "a", "e"]
    assert config.scrape == {
        "z": (
            FakeFile(("dir/a.yml",), Duration(10_000)),
            FakeFile(("/b.json",)),
            static("a:1", "b", x="010"),
            FakeFile(("dir/c.yml",)),
        ),
        "a": (),
        "e": (),
    }


def test_the_mappings_of_a_configuration_can_not_be_changed() -> None:
    config = parse("scrape_configs: [{job_name: a}]")
    for mapping in config.scrape, config.notify, config.jobs:
        with pytest.raises(TypeError):
            mapping["b"] = ()  # type: ignore[index]  # what is tested
    assert hash(config.jobs["a"])


def test_alertmanager_sections_are_numbered() -> None:
    config = parse(
        """
        alerting:
          alert_relabel_configs: [{action: drop}]
          alertmanagers:
            - static_configs: [{targets: [a]}]
              scheme: https
              timeout: 5s
              api_version: v2
            - file_sd_configs: [{files: [a.yml]}]
        """
    )
    assert config.notify == {"config-0": (static("a"),), "config-1": (FakeFile(("dir/a.yml",)),)}
    assert config.scrape == {}


def test_a_job_inherits_from_global() -> None:
    config = parse(
        """
        global: {scrape_interval: 20s, scrape_timeout: 15s, scrape_native_histograms: true,
                 always_scrape_classic_histograms: true}
        scrape_configs:
          - job_name: own
            scrape_interval: 1h
            scrape_timeout: 30s
            scheme: https
            metrics_path: /m
            params: {b: [c, d], a: []}
            scrape_native_histograms: false
            always_scrape_classic_histograms: false
            convert_classic_histograms_to_nhcb: true
          - job_name: inherited
          - job_name: short
            scrape_interval: 10s
        """
    )
    assert config.jobs["own"] == ScrapeJob(
        job_name="own",
        scheme="https",
        metrics_path="/m",
        scrape_interval=Duration(3_600_000),
        scrape_timeout=Duration(30_000),
        params={"a": (), "b": ("c", "d")},
        convert_classic_histograms_to_nhcb=True,
    )
    assert config.jobs["inherited"] == ScrapeJob(
        job_name="inherited",
        scrape_interval=Duration(20_000),
        scrape_timeout=Duration(15_000),
        scrape_native_histograms=True,
        always_scrape_classic_histograms=True,
    )
    assert config.jobs["short"].scrape_timeout == Duration(10_000)


@pytest.mark.parametrize(
    ("section", "interval", "timeout"),
    [
        ("", "1m", "10s"),
        ("{scrape_interval: 5s}", "5s", "5s"),
        ("{scrape_interval: 0s, scrape_timeout: 0}", "1m", "10s"),
        ("{scrape_timeout: 1m}", "1m", "1m"),
    ],
)
def test_what_global_leaves_open(section: str, interval: str, timeout: str) -> None:
    job = parse(f"global: {section}\nscrape_configs: [{{job_name: a}}]").jobs["a"]
    assert (str(job.scrape_interval), str(job.scrape_timeout)) == (interval, timeout)


def test_everything_that_prometheus_knows_is_known() -> None:
    rest = """
        runtime: {gogc: 1}
        rule_files: ['a/*.yml']
        remote_write: [{url: x}]
        remote_read: [{url: x}]
        storage: {tsdb: {retention: {time: 1d}}}
        tracing: {endpoint: x}
        otlp: {convert_histograms_to_nhcb: true}
        global:
          evaluation_interval: 1m
          rule_query_offset: 1m
          query_log_file: q
          scrape_failure_log_file: f
          external_labels: {a: b, utf-8: c}
          body_size_limit: 1.5MB2KB
          sample_limit: 1
          target_limit: 1
          label_limit: 1
          label_name_length_limit: 1
          label_value_length_limit: 1
          keep_dropped_targets: 1
          metric_name_validation_scheme: utf8
          metric_name_escaping_scheme: dots
          scrape_protocols: [PrometheusProto, PrometheusText0.0.4]
          extra_scrape_metrics: true
        scrape_configs:
          - job_name: a
            honor_labels: on
            honor_timestamps: off
            track_timestamps_staleness: true
            enable_compression: false
            body_size_limit: 0
            fallback_scrape_protocol: PrometheusText1.0.0
            native_histogram_bucket_limit: 160
            native_histogram_min_bucket_factor: 1.1
            scrape_failure_log_file: f
            relabel_configs: [{action: drop}]
            metric_relabel_configs: [{action: drop}]
            basic_auth: {username: u}
            tls_config: {insecure_skip_verify: true}
            follow_redirects: true
            enable_http2: false
            http_headers: {h: {values: [v]}}
            proxy_url: http://p
            no_proxy: x
            proxy_from_environment: false
            proxy_connect_header: {h: [v]}
          - {job_name: b, authorization: {credentials: c}}
          - {job_name: c, oauth2: {client_id: i, token_url: u}}
          - {job_name: d, bearer_token: t}
          - {job_name: e, bearer_token_file: f}
        alerting:
          alertmanagers:
            - sigv4: {region: r}
              path_prefix: /x
              relabel_configs: [{action: drop}]
              alert_relabel_configs: [{action: drop}]
    """
    assert list(parse(rest).scrape) == ["a", "b", "c", "d", "e"]


def test_null_for_a_scheme_or_a_path_is_the_empty_one() -> None:
    config = parse(JOB + "scheme:\n    metrics_path: ~\n" + ALERTMANAGER + "scheme: ~")
    assert (config.jobs["a"].scheme, config.jobs["a"].metrics_path) == ("", "")
    assert config.alertmanagers["config-0"].scheme == ""


def test_a_scheme_is_taken_as_it_is() -> None:
    assert parse("scrape_configs: [{job_name: a, scheme: ftp}]").jobs["a"].scheme == "ftp"


def test_a_section_can_be_merged_from_another() -> None:
    config = parse(
        """
        scrape_configs:
          - &base
            job_name: a
            scrape_interval: 7s
            static_configs: [{targets: [x]}]
          - <<: *base
            job_name: b
        """
    )
    assert config.scrape["b"] == config.scrape["a"] == (static("x"),)
    assert config.jobs["b"] == dataclasses.replace(config.jobs["a"], job_name="b")


# What is refused, and where

JOB = "scrape_configs:\n  - job_name: a\n    "
ALERTMANAGER = "alerting:\n  alertmanagers:\n  - "
AT = "dir/p.yml:"
PATH = "scrape_configs[0]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]", f"{AT}1:1: found a list, expected a mapping"),
        ("global: [a]", f"{AT}1:9: global: found a list, expected a mapping"),
        ("global: {scrape_interval: 10}", f'{AT}1:27: global.scrape_interval: not a valid duration string: "10"'),
        (
            "global: {scrape_interval: 1s, scrape_timeout: 2s}",
            f"{AT}1:47: global.scrape_timeout: global scrape timeout greater than scrape interval",
        ),
        (
            "global: {external_labels: {a: !!binary /w==}}",
            f'{AT}1:31: global.external_labels.a: "\\xff" is not a valid label value',
        ),
        (
            "global: {metric_name_validation_scheme: legacy, external_labels: {a-b: c}}",
            f'{AT}1:67: global.external_labels.a-b: "a-b" is not a valid label name' + A_NAME,
        ),
        ("global: {scrape_protocols: []}", f"{AT}1:28: global.scrape_protocols: scrape_protocols cannot be empty"),
        ("scrape_configs: {a: b}", f"{AT}1:17: scrape_configs: found a mapping, expected a list"),
        ("scrape_configs: [a]", f'{AT}1:18: {PATH}: found "a", expected a mapping'),
        ("scrape_configs: [~]", f"{AT}1:18: {PATH}: empty or null scrape config section"),
        ("scrape_configs: [{}]", f"{AT}1:18: {PATH}.job_name: job_name is empty"),
        ("scrape_configs: [{job_name: ''}]", f"{AT}1:29: {PATH}.job_name: job_name is empty"),
        (
            "scrape_configs: [{job_name: a}, {job_name: b}, {job_name: a}]",
            (
                f'{AT}1:59: scrape_configs[2].job_name: found multiple scrape configs with job name "a", '
                f"first found at {AT}1:29"
            ),
        ),
        (
            JOB + "scrape_timeout: 2m",
            (
                f"{AT}3:21: {PATH}.scrape_timeout: scrape timeout greater than scrape interval "
                'for scrape config with job name "a"'
            ),
        ),
        (JOB + "sample_limit: -1", f'{AT}3:19: {PATH}.sample_limit: found "-1", expected a whole number that is not'),
        (JOB + "body_size_limit: 1kB", f'{AT}3:22: {PATH}.body_size_limit: found "1kB", expected a size with its unit'),
        (JOB + "body_size_limit: ''", f'{AT}3:22: {PATH}.body_size_limit: found "", expected a size with its unit'),
        (JOB + "body_size_limit: 8EB", f'{AT}3:22: {PATH}.body_size_limit: found "8EB", expected a size of less than'),
        (JOB + "params: {a: b}", f'{AT}3:17: {PATH}.params.a: found "b", expected a list'),
        (
            JOB + "scrape_protocols: [PrometheusProto, PrometheusProto]",
            f"{AT}3:41: {PATH}.scrape_protocols[1]: duplicated protocol in scrape_protocols: PrometheusProto",
        ),
        (
            JOB + "metric_name_validation_scheme: legacy\n    metric_name_escaping_scheme: allow-utf-8",
            f"{AT}4:34: {PATH}.metric_name_escaping_scheme: utf8 metric names requested but validation scheme is not",
        ),
        (
            JOB + "relabel_configs: [{action: drop}, ~]",
            f"{AT}3:39: {PATH}.relabel_configs[1]: empty or null target relabeling rule in scrape config",
        ),
        (
            JOB + "metric_relabel_configs: [~]",
            f"{AT}3:30: {PATH}.metric_relabel_configs[0]: empty or null metric relabeling rule in scrape config",
        ),
        (JOB + "relabel_configs: {}", f"{AT}3:22: {PATH}.relabel_configs: found a mapping, expected a list"),
        (JOB + "static_configs: {}", f"{AT}3:21: {PATH}.static_configs: found a mapping, expected a list"),
        (
            JOB + "static_configs: [~]",
            f"{AT}3:22: {PATH}.static_configs[0]: empty or null section in static_configs",
        ),
        (
            JOB + "file_sd_configs:\n      - files: [a.yml]\n      -",
            f"{AT}5:8: {PATH}.file_sd_configs[1]: empty or null section in file_sd_configs",
        ),
        (
            JOB + "file_sd_configs: [{}]",
            f"{AT}3:23: {PATH}.file_sd_configs[0].files: file service discovery config must contain at least one path",
        ),
        (
            JOB + "file_sd_configs: [{files: [a.yml, b]}]",
            f'{AT}3:39: {PATH}.file_sd_configs[0].files[1]: path name "b" is not valid for file discovery',
        ),
        (
            JOB + "file_sd_configs: [{file: [a.yml]}]",
            f"{AT}3:24: {PATH}.file_sd_configs[0].file: field file not found in this section; did you mean files?",
        ),
        (
            JOB + "static_configs: [{targets: [a, http://bad]}]",
            f'{AT}3:36: {PATH}.static_configs[0].targets[1]: "http://bad" is not a valid hostname',
        ),
        (
            JOB + "relabel_configs: []\n    static_configs: [{targets: [a/b]}]",
            f'{AT}4:33: {PATH}.static_configs[0].targets[0]: "a/b" is not a valid hostname',
        ),
        (
            JOB + "static_configs: [" + "{}, " * 9 + "]",
            f"{AT}3:21: {PATH}.static_configs: too many",
        ),
        (
            JOB + "file_sd_config: [{files: [a.yml]}]",
            (
                f"{AT}3:5: {PATH}.file_sd_config: field file_sd_config not found in this section; "
                "did you mean file_sd_configs?"
            ),
        ),
        (JOB + "scrape_intervall: 1m", f"{AT}3:5: {PATH}.scrape_intervall: field scrape_intervall not found"),
        (JOB + "job_name: b", f"{AT}3:5: field job_name already set in this mapping, first at line 2"),
        (JOB + "consul_sd_configs: []", f"{AT}3:5: {PATH}.consul_sd_configs: consul_sd_configs is not supported yet"),
        (
            JOB + "basic_auth: {username: a, username_file: b}",
            f"{AT}3:46: {PATH}.basic_auth.username_file: at most one of basic_auth username, username_file & username",
        ),
        ("remote_write: [{a: 1, a: 2}]", f"{AT}1:23: field a already set in this mapping, first at line 1"),
        ("rule_files: ['*/a']", f'{AT}1:14: rule_files[0]: invalid rule file path "*/a"'),
        (
            "scrape_config_files: [a, '*/a']",
            f'{AT}1:26: scrape_config_files[1]: invalid scrape config file path "*/a"',
        ),
        ("alerting: {alertmanager: []}", f"{AT}1:12: alerting.alertmanager: field alertmanager not found"),
        (
            "alerting: {alert_relabel_configs: [~]}",
            f"{AT}1:36: alerting.alert_relabel_configs[0]: empty or null alert relabeling rule",
        ),
        (ALERTMANAGER, f"{AT}3:4: alerting.alertmanagers[0]: empty or null alertmanager config section"),
        (
            ALERTMANAGER + "api_version: v1",
            f'{AT}3:18: alerting.alertmanagers[0].api_version: found "v1", expected one of: v2',
        ),
        (
            ALERTMANAGER + "bearer_token: t\n    sigv4: {}",
            (
                f"{AT}4:12: alerting.alertmanagers[0].sigv4: "
                "at most one of basic_auth, authorization, oauth2, & sigv4 must be configured"
            ),
        ),
        (
            ALERTMANAGER + "relabel_configs: [~]",
            (
                f"{AT}3:23: alerting.alertmanagers[0].relabel_configs[0]: "
                "empty or null Alertmanager target relabeling rule"
            ),
        ),
        (
            ALERTMANAGER + "alert_relabel_configs: [~]",
            (
                f"{AT}3:29: alerting.alertmanagers[0].alert_relabel_configs[0]: "
                "empty or null Alertmanager alert relabeling rule"
            ),
        ),
        (
            ALERTMANAGER + "static_configs: [{targets: [http://a]}]",
            f'{AT}3:33: alerting.alertmanagers[0].static_configs[0].targets[0]: "http://a" is not a valid hostname',
        ),
        (ALERTMANAGER + "dns_sd_configs: []", f"{AT}3:5: alerting.alertmanagers[0].dns_sd_configs: dns_sd_configs is"),
        (ALERTMANAGER + "job_name: a", f"{AT}3:5: alerting.alertmanagers[0].job_name: field job_name not found"),
    ],
)
def test_what_is_refused_and_where(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_a_url_may_be_a_target_where_rules_can_change_it() -> None:
    config = parse(JOB + "relabel_configs: [{action: drop}]\n    static_configs: [{targets: [http://ok]}]")
    assert config.scrape["a"] == (static("http://ok"),)


def test_limits_apply() -> None:
    assert "limit file_bytes" in refused("scrape_configs: []", limits=Limits(file_bytes=5))
    assert "limit: depth" in refused("a: [[b]]", limits=Limits(depth=2))


def test_no_secret_is_told() -> None:
    assert "hunter2" not in refused(JOB + "file_sd_configs: hunter2".replace("file_sd_configs", "global"))


@pytest.mark.parametrize("key", sorted(DISCOVERY_KEYS - REGISTRY.keys()))
def test_mechanisms_that_are_not_here_are_told_from_mistakes(key: str) -> None:
    message = f"{AT}3:5: {PATH}.{key}: {key} is not supported yet, expected one of: {', '.join(REGISTRY)}"
    assert refused(JOB + f"{key}: [{{}}]") == message


# Files


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def job(name: str, file: str) -> str:
    return f"scrape_configs: [{{job_name: {name}, file_sd_configs: [{{files: [{file}]}}]}}]"


def test_files_are_included_in_order_and_have_directories_of_their_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "p.yml": "scrape_config_files: [sub/*.yml, none/*.yml, other.yml]\n" + job("main", "t.json"),
            "sub/b.yml": job("b", "t.json"),
            "sub/a.yml": job("a", "t.json"),
            "sub/.hidden.yml": "# nothing",
            "sub/c.txt": "[",
            "other.yml": job("other", "/t.json"),
        },
    )
    config = load(tmp_path / "p.yml")
    assert config.scrape == {
        "main": (FakeFile((f"{tmp_path}/t.json",)),),
        "a": (FakeFile((f"{tmp_path}/sub/t.json",)),),
        "b": (FakeFile((f"{tmp_path}/sub/t.json",)),),
        "other": (FakeFile(("/t.json",)),),
    }
    assert list(config.scrape) == list(config.jobs) == ["main", "a", "b", "other"]
    names = ["p.yml", "sub/.hidden.yml", "sub/a.yml", "sub/b.yml", "other.yml"]
    assert config.files == tuple(f"{tmp_path}/{name}" for name in names)
    assert config.digests == {name: content_digest(Path(name).read_bytes()) for name in config.files}
    assert len(set(config.digests.values())) == len(names)
    assert config.patterns == tuple(f"{tmp_path}/{name}" for name in ("sub/*.yml", "none/*.yml", "other.yml"))
    assert config.notes == (f'scrape_config_files[1]: "{tmp_path}/none/*.yml" matches no file',)


def test_included_jobs_inherit_from_global(tmp_path: Path) -> None:
    write(
        tmp_path, {"p.yml": "{global: {scrape_interval: 7s}, scrape_config_files: [a.yml]}", "a.yml": job("a", "t.yml")}
    )
    assert load(tmp_path / "p.yml").jobs["a"].scrape_interval == Duration(7000)


def test_relative_paths_stay_relative_and_files_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        {"p.yml": "scrape_config_files: [sub/a.yml]\n" + job("main", "t.json"), "sub/a.yml": job("a", "t.json")},
    )
    monkeypatch.chdir(tmp_path)
    config = load("p.yml")
    assert config.scrape == {"main": (FakeFile(("t.json",)),), "a": (FakeFile(("sub/t.json",)),)}
    assert config.files == (f"{tmp_path}/p.yml", f"{tmp_path}/sub/a.yml")


@pytest.mark.parametrize(
    ("included", "message"),
    [
        ("[a", "a.yml:1:3: "),
        (
            "job_name: a",
            "a.yml:1:1: job_name: field job_name not found in this section; expected one of: scrape_configs",
        ),
        ("scrape_configs: [{}]", "a.yml:1:18: scrape_configs[0].job_name: job_name is empty"),
        (
            "scrape_configs: [{job_name: main}]",
            (
                'a.yml:1:29: scrape_configs[0].job_name: found multiple scrape configs with job name "main", '
                "first found at {dir}/p.yml:2:29"
            ),
        ),
    ],
)
def test_mistakes_in_included_files_are_told_with_their_names(tmp_path: Path, included: str, message: str) -> None:
    write(tmp_path, {"p.yml": "scrape_config_files: [a.yml]\n" + job("main", "t.json"), "a.yml": included})
    assert load_refused(tmp_path / "p.yml").startswith(f"{tmp_path}/{message}".replace("{dir}", str(tmp_path)))


def test_a_file_that_is_included_twice_has_its_jobs_twice(tmp_path: Path) -> None:
    write(tmp_path, {"p.yml": "scrape_config_files: [a.yml, a.yml]", "a.yml": job("a", "t.json")})
    assert "found multiple scrape configs with job name" in load_refused(tmp_path / "p.yml")


def test_files_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yml"
    assert load_refused(missing) == f'can\'t read "{missing}": No such file or directory'
    assert load_refused(tmp_path) == f'can\'t read "{tmp_path}": Is a directory'
    assert load_refused("a\0b") == 'can\'t read "a\\u0000b": embedded null byte'


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_include_directory_that_can_not_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path, {"p.yml": "scrape_config_files: [sub/*.yml]\n", "sub/a.yml": ""})
    (tmp_path / "sub").chmod(0)
    try:
        assert f'can\'t read "{tmp_path}/sub": Permission denied' in load_refused(tmp_path / "p.yml")
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_an_include_directory_that_is_a_circle_of_links_is_not_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path, {"p.yml": "scrape_config_files: [sub/*.yml]\n"})
    (tmp_path / "sub").symlink_to("sub")
    assert "Too many levels of symbolic links" in load_refused(tmp_path / "p.yml")


def test_an_included_file_that_can_not_be_read_is_named_where_it_is_included(tmp_path: Path) -> None:
    write(tmp_path, {"p.yml": "scrape_config_files:\n- ''\n- s*\n", "sub/a": ""})
    assert load_refused(tmp_path / "p.yml") == (
        f'{tmp_path}/p.yml:3:3: scrape_config_files[1]: can\'t read "{tmp_path}/sub": not a regular file'
    )


# Conformance

RUN = {
    "jobname.bad.yml",
    "jobname_dup.bad.yml",
    "url_in_targetgroup.bad.yml",
    "empty_static_config.bad.yml",
    "empty_target_relabel_config.bad.yml",
    "empty_alert_relabel_config.bad.yml",
    "empty_rw_relabel_config.bad.yml",
    "bearertoken.bad.yml",
    "bearertoken_basicauth.bad.yml",
    "scrape_config_files_double_import.bad.yml",
    "scrape_config_files_duplicate.bad.yml",
    "file-bad-name",
    "file-ok",
    "regex.bad.yml",
    "modulus_missing.bad.yml",
    "labeldrop.bad.yml",
    "labeldrop2.bad.yml",
    "labeldrop4.bad.yml",
    "labeldrop5.bad.yml",
    "dropequal1.bad.yml",
    "keepequal.bad.yml",
    "keepequal1.bad.yml",
    "lowercase3.bad.yml",
    "uppercase3.bad.yml",
    "target_label_missing.bad.yml",
    "empty_scrape_config_action.bad.yml",
}
RUN_AS_ONE_GROUP = {"static_config.bad.yml"}

RUN_FOR_REAL = {
    "serverset-no-servers",
    "serverset-no-paths",
    "serverset-relative-path",
    "serverset-ok",
    "serverset-ok-timeout",
    "serverset-bad-timeout",
    "serverset-unknown-field",
    "nerve-no-servers",
    "nerve-empty-servers",
    "nerve-no-paths",
    "nerve-relative-path",
    "nerve-empty-path",
    "nerve-ok",
    "http_url_no_scheme.bad.yml",
    "http_url_no_host.bad.yml",
    "http_url_bad_scheme.bad.yml",
    "http-no-url",
    "http-basic-and-bearer",
    "consul-user-and-basic",
    "dns-no-names",
    "dns-port-missing-MX",
    "dns-port-missing-NS",
    "dns-bad-type",
}
"""Cases of mechanisms that are not replaced here: they run with the registry of the package."""

RUN_FROM_TEXT = {
    "scrape_interval.bad.yml": JOB + "scrape_interval: 5s\n    scrape_timeout: 6s",
    "labelname.bad.yml": 'global: {external_labels: {!!binary "/w==": value}}',
    "labelvalue.bad.yml": 'global: {external_labels: {name: !!binary "/w=="}}',
    "rules.bad.yml": "rule_files: ['my/*/rules']",
    "section_key_dup.bad.yml": "scrape_configs: [{job_name: a}]\nscrape_configs: [{job_name: b}]",
    "empty_scrape_config.bad.yml": "scrape_configs:\n  -",
    "scrape_body_size_limit.bad.yml": JOB + "body_size_limit: 100",
    "scrape_config_files_scrape_protocols.bad.yml": JOB + "scrape_protocols: [prometheusproto]",
    "scrape_config_files_scrape_protocols2.bad.yml": JOB
    + "scrape_protocols: [OpenMetricsText1.0.0, PrometheusProto, OpenMetricsText1.0.0]",
    "scrape_config_files_fallback_scrape_protocol2.bad.yml": JOB + "fallback_scrape_protocol: [PrometheusProto]",
    "scrape_config_utf8_conflicting.bad.yml": (
        "global: {metric_name_validation_scheme: legacy, metric_name_escaping_scheme: allow-utf-8}\n" + JOB
    ),
    "metric_name_validation_scheme.bad.yml": "global: {metric_name_validation_scheme: invalid_scheme}",
    "remote_read_url_missing.bad.yml": "remote_read:\n  - url:",
    "remote_read_header.bad.yml": "remote_read: [{url: x, headers: {x-prometheus-remote-write-version: a}}]",
    "remote_read_dup.bad.yml": "remote_read: [{url: x, name: queue1}, {url: y, name: queue1}]",
    "remote_write_url_missing.bad.yml": "remote_write: [{name: x}]",
    "remote_write_header.bad.yml": "remote_write: [{url: x, headers: {x-prometheus-remote-write-version: a}}]",
    "remote_write_authorization_header.bad.yml": "remote_write: [{url: x, headers: {Authorization: a}}]",
    "remote_write_wrong_msg.bad.yml": "remote_write: [{url: x, protobuf_message: io.prometheus.writet.v2.Request}]",
    "remote_write_queue_min_shards_zero.bad.yml": "remote_write: [{url: x, queue_config: {min_shards: 0}}]",
    "remote_write_queue_max_backoff_less_than_min.bad.yml": (
        "remote_write: [{url: x, queue_config: {min_backoff: 2s, max_backoff: 1s}}]"
    ),
    "tracing_invalid_authorization_header.bad.yml": "tracing: {endpoint: x, headers: {authorization: a}}",
    "tracing_invalid_compression.bad.yml": "tracing: {endpoint: x, compression: foo}",
    "tsdb_retention_size.bad.yml": "storage: {tsdb: {retention: {size: -1GB}}}",
    "tsdb_retention_percentage_negative.bad.yml": "storage: {tsdb: {retention: {percentage: -1}}}",
}
"""Cases without a file: texts with the same mistake."""

OWN_WORDS = {
    "section_key_dup.bad.yml": "field scrape_configs already set",
    "serverset-unknown-field": "field path not found in this section; did you mean paths?",
    "scrape_body_size_limit.bad.yml": 'found "100", expected a size with its unit',
    "scrape_config_files_scrape_protocols.bad.yml": 'found "prometheusproto", expected one of: OpenMetricsText0.0.1, '
    "OpenMetricsText1.0.0, PrometheusProto, PrometheusText0.0.4, PrometheusText1.0.0",
    "scrape_config_files_scrape_protocols2.bad.yml": "duplicated protocol in scrape_protocols",
    "scrape_config_files_fallback_scrape_protocol2.bad.yml": "found a list, expected a string",
    "metric_name_validation_scheme.bad.yml": 'found "invalid_scheme", expected one of',
}
"""Cases whose message says the same in other words."""

NOT_BUILT = {
    "kubernetes_http_config_without_api_server.bad.yml",
    "kubernetes_kubeconfig_with_own_namespace.bad.yml",
    "kubernetes_api_server_with_own_namespace.bad.yml",
    "kubernetes_kubeconfig_with_apiserver.bad.yml",
    "kubernetes_bearertoken.bad.yml",
    "kubernetes_role.bad.yml",
    "kubernetes_selectors_ingress.bad.yml",
    "kubernetes_namespace_discovery.bad.yml",
    "kubernetes_selectors_duplicated_role.bad.yml",
    "kubernetes_bearertoken_basicauth.bad.yml",
    "marathon_authtoken_authtokenfile.bad.yml",
    "marathon_authtoken_basicauth.bad.yml",
    "marathon_authtoken_bearertoken.bad.yml",
    "marathon_authtoken_authorization.bad.yml",
    "openstack_availability.bad.yml",
    "ec2_filters_empty_values.bad.yml",
    "ec2_token_file.bad.yml",
    "azure_subscription_id_missing.bad.yml",
    "azure_tenant_id_missing.bad.yml",
    "azure_authentication_method.bad.yml",
    "oci_authentication_method.bad.yml",
    "puppetdb_no_query.bad.yml",
    "puppetdb_bad_url.bad.yml",
    "puppetdb_token_file.bad.yml",
    "hetzner_role.bad.yml",
    "eureka_no_server.bad.yml",
    "eureka_invalid_server.bad.yml",
    "scaleway_role.bad.yml",
    "scaleway_no_secret.bad.yml",
    "scaleway_two_secrets.bad.yml",
    "outscale_no_region.bad.yml",
    "outscale_no_secret.bad.yml",
    "outscale_two_secrets.bad.yml",
    "uyuni_no_server.bad.yml",
    "uyuni_token_file.bad.yml",
    "ionos_datacenter.bad.yml",
    "ovhcloud_no_secret.bad.yml",
    "stackit_endpoint.bad.yml",
    "docker-no-host",
    "docker-bad-url",
    "dockerswarm-bad-role",
    "kubernetes-no-role",
}
"""Cases of mechanisms that the registry of this module lacks: refused as that."""


def facts(name: str) -> list[Any]:  # Any: JSON
    cases: list[Any] = json.loads((FACTS / name).read_text(encoding="utf-8"))
    return cases


CASES = {case["id"]: case for case in facts("config_errors.json") + facts("config_errors_extra.json")}
GOOD = {case["id"]: case for case in facts("config_good.json")}


def load_case(case: Any, registry: Registry = REGISTRY) -> Config:  # Any: JSON
    if "file" in case:
        return load_config(FACTS / case["file"], registry=registry)
    text = json.dumps({"scrape_configs": [case["scrape_config"]]})
    return parse_config(text.encode(), file="dir/p.yml", registry=registry)


def test_every_case_is_in_exactly_one_list() -> None:
    lists = [RUN, RUN_AS_ONE_GROUP, RUN_FOR_REAL, RUN_FROM_TEXT, NOT_BUILT]
    names = sorted(name for names in lists for name in names)
    assert names == sorted(CASES)


@pytest.mark.parametrize("name", sorted(RUN))
def test_cases_are_refused_for_the_same_reason(name: str) -> None:
    check_case(name, REGISTRY)


@pytest.mark.parametrize("name", sorted(RUN_FOR_REAL))
def test_cases_of_this_package_are_refused_for_the_same_reason(name: str) -> None:
    check_case(name, default_registry())


def check_case(name: str, registry: Registry) -> None:
    case = CASES[name]
    if case["error_contains"] is None:
        assert load_case(case, registry).scrape
        return
    with pytest.raises(ConfigError) as caught:
        load_case(case, registry)
    assert OWN_WORDS.get(name, case["error_contains"]) in str(caught.value)
    assert caught.value.position is not None


@pytest.mark.parametrize("name", sorted(RUN_FROM_TEXT))
def test_cases_without_a_file_are_refused_for_the_same_reason(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(RUN_FROM_TEXT[name])
    assert OWN_WORDS.get(name, CASES[name]["error_contains"]) in str(caught.value)
    assert caught.value.position is not None


@pytest.mark.parametrize("name", sorted(RUN_AS_ONE_GROUP))
def test_cases_of_one_group_are_refused(name: str) -> None:
    node = parse_yaml((FACTS / CASES[name]["file"]).read_bytes(), file=name, limits=Limits())
    assert node is not None
    with pytest.raises(ConfigError, match="is not a valid label name"):
        decode_target_group(node)


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_cases_of_other_mechanisms_are_refused_as_not_supported(name: str) -> None:
    with pytest.raises(ConfigError, match="_sd_configs is not supported yet"):
        load_case(CASES[name])


@pytest.mark.parametrize("name", sorted(GOOD))
def test_good_configurations_load_or_name_what_is_not_supported(name: str) -> None:
    case = GOOD[name]
    missing = set(case["sd_mechanisms"]) - REGISTRY.keys()
    if name == "scrape_config_files_glob.good.yml":
        missing = {"vultr_sd_configs"}  # in a file that it includes
    if missing:
        with pytest.raises(ConfigError, match="is not supported yet") as caught:
            load_case(case)
        assert caught.value.path.rpartition(".")[2] in missing
        return
    config = load_case(case)
    for expected in case["jobs"]:
        found = config.scrape[expected["job_name"]]
        assert sum(type(item) is FakeFile for item in found) == expected["sd"].get("file_sd_configs", 0)
        assert sum(len(item.groups) for item in found if isinstance(item, FakeStatic)) == (
            expected["sd"].get("static_configs", 0)
        )
    assert config.notes == ()


def test_the_copies_of_the_cases_are_complete() -> None:
    copies = REPOSITORY / "tests" / "data" / "config"
    for case in [*CASES.values(), *GOOD.values()]:
        assert "file" not in case or (copies / case["file"]).is_file()
