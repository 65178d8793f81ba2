"""``trio-sd explain``: what each rule did to each target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trio_sd.config import ScrapeJob
from trio_sd.errors import Position
from trio_sd.outputs.explain import (
    ExplainedTarget,
    TargetFilter,
    explain_document,
    explain_text,
    explained_targets,
)
from trio_sd.outputs.table import render, rows_table
from trio_sd.outputs.text import plain_table
from trio_sd.relabel import RelabelConfig
from trio_sd.targets import TargetGroup

from .processes import run_command

RULES = (
    RelabelConfig(("__address__",), regex="drop.*", action="drop"),
    RelabelConfig(("__address__", "zone"), regex="(.+):.*;(.*)", target_label="name", replacement="$2-$1"),
    RelabelConfig(regex="__meta_(.+)", action="labelmap"),
    RelabelConfig(regex="zone", action="labeldrop"),
    RelabelConfig(("__address__",), regex="url.*", target_label="__address__", replacement="http://x/"),
    RelabelConfig(("__address__",), regex="(same).*", target_label="__address__"),
    RelabelConfig(("name",), regex=".*same.*", target_label="name", replacement="same"),
)
POSITIONS = tuple(Position("p.yml", 10 + number, 9) for number in range(len(RULES)))
GROUPS = [
    TargetGroup("0", [{"__address__": "web-1:80"}, {"__address__": "drop:1"}], {"zone": "e", "__meta_k": "v"}),
    TargetGroup("1", [{"__address__": "web-1:80"}], {"zone": "e", "__meta_k": "v"}),
    TargetGroup("2", [{"__address__": "url:1"}, {"__address__": "same:1"}, {"__address__": "same:2"}]),
]


def explained() -> dict[str, ExplainedTarget]:
    labeler = ScrapeJob(job_name="web", relabel_configs=RULES).labeler()
    found = list(explained_targets(GROUPS, labeler))
    assert len(found) == 5  # each different one once
    return {target.discovered["__address__"]: target for target in found}


def lines(*targets: ExplainedTarget) -> list[str]:
    text = "\n".join(explain_text(targets, POSITIONS, plain_table))
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_every_target_has_its_state() -> None:
    assert {address: target.state for address, target in explained().items()} == {
        "web-1:80": "kept",
        "drop:1": "dropped",
        "url:1": "unusable",
        "same:1": "kept",
        "same:2": "duplicate",
    }


def test_every_rule_is_told_with_its_place_what_it_looked_at_and_what_it_did() -> None:
    assert lines(explained()["web-1:80"]) == [
        "web-1:80: kept",
        (
            'discovered: __address__="web-1:80" __meta_k="v" __metrics_path__="/metrics" __scheme__="http" '
            '__scrape_interval__="1m" __scrape_timeout__="10s" job="web" zone="e"'
        ),
        "rules: p.yml",
        "AT RULE LOOKED AT EFFECT",
        '10:9 drop source_labels=[__address__] regex=drop.* "web-1:80" does not match nothing changes',
        (
            "11:9 replace source_labels=[__address__, zone] regex=(.+):.*;(.*) target_label=name "
            'replacement=$2-$1 "web-1:80;e" matches name="e-web-1"'
        ),
        '12:9 labelmap regex=__meta_(.+) k="v"',
        '13:9 labeldrop regex=zone no more zone="e"',
        (
            "14:9 replace source_labels=[__address__] regex=url.* target_label=__address__ "
            'replacement=http://x/ "web-1:80" does not match nothing changes'
        ),
        (
            "15:9 replace source_labels=[__address__] regex=(same).* target_label=__address__ "
            '"web-1:80" does not match nothing changes'
        ),
        (
            "16:9 replace source_labels=[name] regex=.*same.* target_label=name replacement=same "
            '"e-web-1" does not match nothing changes'
        ),
        (
            'kept: __address__="web-1:80" __metrics_path__="/metrics" __scheme__="http" __scrape_interval__="1m" '
            '__scrape_timeout__="10s" instance="web-1:80" job="web" k="v" name="e-web-1"'
        ),
    ]


def test_the_last_rule_of_a_dropped_target_is_the_one_that_dropped_it() -> None:
    *_, rule, end = lines(explained()["drop:1"])
    assert rule == '10:9 drop source_labels=[__address__] regex=drop.* "drop:1" matches drops the target'
    assert end == "dropped"


def test_a_target_that_cant_be_used_says_why() -> None:
    assert lines(explained()["url:1"])[-1] == 'unusable: "http://x/" is not a valid hostname'
    assert '__address__="http://x/", was "url:1"' in "\n".join(lines(explained()["url:1"]))


def test_the_document_has_everything() -> None:
    found = explained()
    chosen = [found["web-1:80"], found["drop:1"], found["url:1"]]
    text = "".join(explain_document(chosen, POSITIONS))
    kept, dropped, unusable = json.loads(text)
    assert text == json.dumps([kept, dropped, unusable], indent=2)
    assert "".join(explain_document([], POSITIONS)) == "[]"
    assert kept["labels"]["name"] == "e-web-1"
    assert kept["state"] == "kept"
    assert kept["steps"][1] == {
        "rule": 1,
        "position": "p.yml:11:9",
        "config": {
            "action": "replace",
            "source_labels": ["__address__", "zone"],
            "regex": "(.+):.*;(.*)",
            "target_label": "name",
            "replacement": "$2-$1",
        },
        "value": "web-1:80;e",
        "matched": True,
        "changes": [{"name": "name", "before": None, "after": "e-web-1"}],
        "kept": True,
    }
    assert (dropped["labels"], dropped["state"], len(dropped["steps"])) == ({}, "dropped", 1)
    assert dropped["steps"][0]["kept"] is False
    assert (unusable["state"], unusable["error"]) == ("unusable", '"http://x/" is not a valid hostname')


@pytest.mark.parametrize(
    ("chosen", "addresses"),
    [
        (TargetFilter(), ["web-1:80", "drop:1", "url:1", "same:1", "same:2"]),
        (TargetFilter(("drop:1",)), ["drop:1"]),
        (TargetFilter(("drop:1", "url:1")), ["drop:1", "url:1"]),
        (TargetFilter(("same",)), ["same:1", "same:2"]),  # after relabeling
        (TargetFilter(("web",)), []),
        (TargetFilter(labels=(("zone", "e"),)), ["web-1:80", "drop:1"]),  # before
        (TargetFilter(labels=(("name", "e-web-1"),)), ["web-1:80"]),  # after
        (TargetFilter(labels=(("zone", "e"), ("name", "same"))), []),
        (TargetFilter(("web-1:80",), (("zone", "f"),)), []),
        (TargetFilter(labels=(("zone", ""), ("name", "same"))), ["same:1", "same:2"]),  # has none
    ],
)
def test_targets_are_chosen_by_address_and_labels(chosen: TargetFilter, addresses: list[str]) -> None:
    labeler = ScrapeJob(job_name="web", relabel_configs=RULES).labeler()
    found = explained_targets(GROUPS, labeler, chosen)
    assert [target.discovered["__address__"] for target in found] == addresses


def test_a_duplicate_is_one_whether_its_like_is_chosen_or_not() -> None:
    labeler = ScrapeJob(job_name="web", relabel_configs=RULES).labeler()
    (found,) = explained_targets(GROUPS, labeler, TargetFilter(("same:2",)))
    assert found.state == "duplicate"


def test_nothing_that_is_discovered_steers_the_terminal() -> None:
    group = TargetGroup("0", [{"__address__": "a\x1b[2J\x9b1m", "x": "\x1b]0;t\x07\u202e"}])
    labeler = ScrapeJob(job_name="web", relabel_configs=RULES).labeler()
    (text,) = explain_text(explained_targets([group], labeler), POSITIONS, plain_table)
    assert all(line.isprintable() for line in text.splitlines())


def test_a_target_is_chosen_by_its_instance_too() -> None:
    rule = RelabelConfig(("__address__",), target_label="instance", replacement="the-one")
    labeler = ScrapeJob(job_name="web", relabel_configs=(rule,)).labeler()
    groups = [TargetGroup("0", [{"__address__": "a:1"}]), TargetGroup("1", [{"__address__": "b:1", "instance": "own"}])]
    for instance, addresses in ("the-one", ["a:1", "b:1"]), ("own", ["b:1"]):
        found = explained_targets(groups, labeler, TargetFilter((instance,)))
        assert [target.discovered["__address__"] for target in found] == addresses


def test_a_target_without_an_address_is_told_of() -> None:
    labeler = ScrapeJob(job_name="web").labeler()
    (text,) = explain_text(explained_targets([TargetGroup("0", [{"x": "y"}])], labeler), (), plain_table)
    assert text.startswith("(no address): unusable")
    assert text.endswith("rules: none\nunusable: no address\n")


def test_labels_are_in_order_in_the_document() -> None:
    labeler = ScrapeJob(job_name="web", relabel_configs=RULES).labeler()
    for entry in json.loads("".join(explain_document(explained_targets(GROUPS, labeler), POSITIONS))):
        assert list(entry["labels"]) == sorted(entry["labels"])
        assert list(entry["discoveredLabels"]) == sorted(entry["discoveredLabels"])


def test_an_expression_can_be_copied_back() -> None:
    rule = RelabelConfig(("a",), regex=r"(\d+)\.x", separator=" ", action="keep")
    labeler = ScrapeJob(job_name="web", relabel_configs=(rule,)).labeler()
    (text,) = explain_text(explained_targets(GROUPS[:1], labeler, TargetFilter(("web-1:80",))), POSITIONS, plain_table)
    assert r'keep source_labels=[a] separator=" " regex=(\d+)\.x' in text


def test_a_long_path_and_a_narrow_terminal_leave_room_for_the_rules() -> None:
    labeler = ScrapeJob(job_name="web", relabel_configs=RULES[:1]).labeler()
    places = [Position("etc/prometheus/production-cluster-eu-west-1/configuration/prometheus.yml", 5, 9)]

    def narrow(headings: Any, rows: Any) -> str:
        return render(rows_table(headings, rows, fold=True), width=80, terminal=False)

    (text,) = explain_text(explained_targets(GROUPS[:1], labeler, TargetFilter(("drop:1",))), places, narrow)
    assert max(map(len, text.splitlines()[3:-1])) <= 80
    assert "drop source_labels" in text
    assert "drops the target" in text


CONFIG = """
scrape_configs:
  - job_name: web
    static_configs: [{targets: ["a:1", "b:1"]}]
    relabel_configs:
      - {source_labels: [__address__], regex: "b:.*", action: drop}
  - job_name: empty
    static_configs: [{targets: []}]
alerting:
  alertmanagers:
    - static_configs: [{targets: ["am:1"]}]
"""


def test_the_command_explains(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text(CONFIG)
    done = run_command("explain", path, "web", "--label", "job=web", "--target", "b:1")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    assert entry["state"] == "dropped"
    assert entry["steps"][0]["position"] == f"{path}:6:9"
    done = run_command("explain", path, "config-0", "--format", "table")
    assert done.returncode == 0
    assert "am:1: kept" in done.stdout
    assert "rules: none" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["web", "--target", "c:1"], 2, "no target of web matches"),
        (["empty"], 2, "no target was discovered for empty"),
        (["other"], 1, "no such job: other; the configuration has: web, empty, config-0"),
        (["web", "--label", "job"], 1, "found 'job', expected NAME=VALUE"),
    ],
)
def test_the_command_fails_when_there_is_nothing_to_explain(
    arguments: list[str], status: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.yml"
    path.write_text(CONFIG)
    done = run_command("explain", path, *arguments)
    assert (done.returncode, done.stdout) == (status, "[]\n" if status == 2 else "")
    assert message in done.stderr


def test_the_command_fails_if_a_provider_has_not_reported_though_targets_are_there(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"')
    path = tmp_path / "p.yml"
    path.write_text(
        "scrape_configs: [{job_name: a, static_configs: [{targets: ['a:1']}], file_sd_configs: [{files: [bad.json]}]}]"
    )
    done = run_command("explain", path, "a", "--timeout", "500ms")
    assert done.returncode == 2
    assert len(json.loads(done.stdout)) == 1
    assert "had not reported after 0.5 s" in done.stderr
