"""From what is discovered to the labels of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from trio_sd.durations import Duration
from trio_sd.relabel import RelabelConfig, Relabeler
from trio_sd.target_labels import AlertmanagerLabeler, Outcome, TargetLabeler
from trio_sd.targets import Labels


@dataclass(frozen=True)
class Job:
    """A scrape job, as the configuration says it."""

    job_name: str = "j"
    scheme: str = "http"
    metrics_path: str = "/metrics"
    scrape_interval: object = "1m"
    scrape_timeout: object = "10s"
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """An Alertmanager section."""

    scheme: str = "http"
    path_prefix: str = ""
    api_version: str = "v2"


DEFAULTS = {
    "__metrics_path__": "/metrics",
    "__scheme__": "http",
    "__scrape_interval__": "1m",
    "__scrape_timeout__": "10s",
    "job": "j",
}


def labeler(*rules: RelabelConfig, job: Job | None = None) -> TargetLabeler:
    return TargetLabeler(job or Job(), Relabeler(rules))


def outcome(*rules: RelabelConfig, **labels: str) -> Outcome:
    made = labeler(*rules)
    discovered = made.discovered_labels({"__address__": "h:80", **labels}, {})
    result = made.target_labels(discovered)
    trace, explained = made.explain(discovered)
    assert explained == result
    assert (trace.labels is None) is result.dropped
    return result


# --- Discovered labels ---


def test_the_configuration_says_what_target_and_group_leave_open() -> None:
    found = labeler().discovered_labels({"__address__": "h:80"}, {"zone": "a"})
    assert found == {**DEFAULTS, "__address__": "h:80", "zone": "a"}


def test_target_before_group_before_configuration() -> None:
    target = Labels({"__address__": "h:80", "a": "target", "job": "target"})
    group = Labels({"a": "group", "b": "group", "job": "group", "__scheme__": "https"})
    assert labeler().discovered_labels(target, group) == {
        **DEFAULTS,
        "__address__": "h:80",
        "__scheme__": "https",
        "a": "target",
        "b": "group",
        "job": "target",
    }


def test_an_empty_value_hides_the_group_but_not_the_configuration() -> None:
    found = labeler().discovered_labels({"__address__": "h:80", "a": "", "job": ""}, {"a": "x", "job": "x", "b": ""})
    assert found == {**DEFAULTS, "__address__": "h:80"}


def test_the_first_value_of_a_parameter_becomes_a_label() -> None:
    job = Job(params={"module": ("tcp", "http"), "none": (), "empty": ("",), "own": ("x",)})
    found = labeler(job=job).discovered_labels({"__address__": "h:80", "__param_own": "target"}, {})
    assert found == {**DEFAULTS, "__address__": "h:80", "__param_module": "tcp", "__param_own": "target"}


def test_times_may_be_durations() -> None:
    job = Job(scrape_interval=Duration.of("90s"), scrape_timeout=Duration.of("1500ms"))
    found = labeler(job=job).discovered_labels({}, {})
    assert (found["__scrape_interval__"], found["__scrape_timeout__"]) == ("1m30s", "1s500ms")


def test_nothing_given_is_changed() -> None:
    target, group = {"__address__": "h:80", "a": ""}, {"b": ""}
    made = labeler(RelabelConfig(target_label="c", replacement="x"))
    discovered = made.discovered_labels(target, group)
    before = dict(discovered)
    made.target_labels(discovered)
    assert (target, group, discovered) == ({"__address__": "h:80", "a": ""}, {"b": ""}, before)


# --- Final labels ---


def test_meta_labels_go_and_the_instance_is_the_address() -> None:
    result = outcome(__meta_x="1", __tmp="2", a="3")
    final = {**DEFAULTS, "__address__": "h:80", "__tmp": "2", "a": "3", "instance": "h:80"}
    assert result == Outcome(final)
    assert not result.dropped


def test_an_instance_that_is_there_stays() -> None:
    result = outcome(instance="i")
    assert result.labels is not None
    assert result.labels["instance"] == "i"


def test_the_address_is_the_relabeled_one_and_gets_no_port() -> None:
    result = outcome(RelabelConfig(target_label="__address__", replacement="other"))
    assert result.labels is not None
    assert result.labels["__address__"] == result.labels["instance"] == "other"


def test_a_dropped_target_is_no_error() -> None:
    result = outcome(RelabelConfig(action="drop"))
    assert result == Outcome(None)
    assert result.dropped


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"__address__": ""}, "no address"),
        ({"__address__": "http://x"}, '"http://x" is not a valid hostname'),
        ({"__address__": "x/"}, '"x/" is not a valid hostname'),
        ({"__scrape_interval__": "bad"}, 'error parsing scrape interval: not a valid duration string: "bad"'),
        ({"__scrape_interval__": "1m "}, 'error parsing scrape interval: not a valid duration string: "1m "'),
        ({"__scrape_interval__": "300y"}, 'error parsing scrape interval: duration out of range: "300y"'),
        ({"__scrape_interval__": "9" * 9999 + "y"}, "error parsing scrape interval: duration out of range"),
        ({"__scrape_interval__": "0"}, "scrape interval cannot be 0"),
        ({"__scrape_interval__": "0s"}, "scrape interval cannot be 0"),
        ({"__scrape_timeout__": "x"}, 'error parsing scrape timeout: not a valid duration string: "x"'),
        ({"__scrape_timeout__": "000ms"}, "scrape timeout cannot be 0"),
        ({"__scrape_timeout__": "2m"}, 'scrape timeout cannot be greater than scrape interval ("2m" > "1m")'),
        ({"__scrape_timeout__": "60001ms"}, 'scrape timeout cannot be greater than scrape interval ("60001ms" > "1m")'),
        ({"a": "\udcff", "b": "\udcff"}, 'invalid label value for "a": "\\xff"'),
        (
            {"__scrape_native_histograms__": "yes"},
            'error parsing scrape native histograms: found "yes", expected true or false',
        ),
    ],
)
def test_a_target_that_cant_be_used_says_why(labels: dict[str, str], error: str) -> None:
    result = outcome(**labels)
    assert result.labels is None
    assert not result.dropped
    assert result.error is not None
    assert result.error.startswith(error)


def test_times_that_rules_take_away_are_missed() -> None:
    result = outcome(RelabelConfig(regex="__scrape_interval__", action="labeldrop"))
    assert result.error == "error parsing scrape interval: empty duration string"


@pytest.mark.parametrize(
    ("interval", "timeout"), [("1m", "1m"), ("1m", "60s"), ("1h30m", "5400000ms"), ("292y", "1ms")]
)
def test_times_that_are_good(interval: str, timeout: str) -> None:
    assert outcome(__scrape_interval__=interval, __scrape_timeout__=timeout).error is None


def test_one_targets_times_are_not_anothers() -> None:
    made = labeler()
    errors = []
    for timeout in ("10s", "2m", "10s", "x"):
        found = made.discovered_labels({"__address__": "h:80", "__scrape_timeout__": timeout}, {})
        errors.append(made.target_labels(found).error is not None)
    assert errors == [False, True, False, True]


def test_values_that_are_utf8_pass() -> None:
    assert outcome(a="é").error is None
    assert outcome(__meta_x="\udcff").error is None  # it goes before anyone looks
    assert outcome(__convert_classic_histograms_to_nhcb__="T").error is None


# --- Alertmanagers ---


def alertmanager(*rules: RelabelConfig, section: Section | None = None) -> AlertmanagerLabeler:
    return AlertmanagerLabeler(section or Section(), Relabeler(rules))


def test_alertmanagers_have_a_scheme_and_a_path() -> None:
    made = alertmanager()
    found = made.discovered_labels({"__address__": "am:9093", "__scheme__": "https"}, {"a": "group"})
    assert found == {"__address__": "am:9093", "__alerts_path__": "/api/v2/alerts", "__scheme__": "http", "a": "group"}
    assert made.target_labels({**found, "__meta_x": "1"}) == Outcome({**found, "__meta_x": "1"})


def test_only_a_group_can_change_scheme_and_path() -> None:
    group = {"__scheme__": "https", "__alerts_path__": "/x", "a": "group"}
    found = alertmanager().discovered_labels({"__address__": "am", "__alerts_path__": "/y", "a": ""}, group)
    assert found == {"__address__": "am", "__alerts_path__": "/api/v2/alerts", "__scheme__": "https"}


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("", "/api/v2/alerts"),
        ("/", "/api/v2/alerts"),
        ("am", "/am/api/v2/alerts"),
        ("/am/", "/am/api/v2/alerts"),
        ("//a//b", "/a/b/api/v2/alerts"),
        ("../a/./b/..", "/a/api/v2/alerts"),
    ],
)
def test_the_prefix_of_the_path(prefix: str, path: str) -> None:
    found = alertmanager(section=Section(path_prefix=prefix)).discovered_labels({}, {})
    assert found["__alerts_path__"] == path


def test_alertmanagers_are_dropped_and_refused_one_by_one() -> None:
    made = alertmanager(RelabelConfig(("__address__",), regex="out", action="drop"))
    assert made.target_labels({"__address__": "out"}).dropped
    assert made.target_labels({"__address__": "http://am"}).error == '"http://am" is not a valid hostname'
    assert made.target_labels({}) == Outcome({})


def test_a_target_of_which_rules_make_too_much_cant_be_used() -> None:
    double = RelabelConfig(("__address__", "__address__"), target_label="__address__")
    made = labeler(*[double] * 30)
    found = made.target_labels({"__address__": "a:1"})
    assert found.labels is None
    assert found.error is not None
    assert "expected 1048576 at the most" in found.error
    trace, explained = made.explain({"__address__": "a:1"})
    assert explained == found
    assert trace.error == found.error


def test_of_several_bad_values_the_first_by_name_is_told() -> None:
    labels = {"__address__": "x:1", "c": "\udcff", "b": "\udcfe", "d": "\udcfd"}
    found = labeler().target_labels(labeler().discovered_labels(labels, {}))
    assert found.error == 'invalid label value for "b": "\\xfe"'
