"""``trio-sd config-diff``: what a reload would start, stop and keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_sd.config import Config, parse_config
from trio_sd.discovery import default_registry
from trio_sd.outputs.config_diff import config_differences, describe, diff_document, diff_rows, diff_summary

from .processes import run_command


def parse(text: str) -> Config:
    return parse_config(text.encode(), file="dir/p.yml", registry=default_registry())


OLD = """
scrape_configs:
  - job_name: same
    file_sd_configs: [{files: [a.json]}]
  - job_name: gone
    file_sd_configs: [{files: [gone.json]}]
  - job_name: edited
    file_sd_configs: [{files: [b.json], refresh_interval: 1m}, {files: [shared.json]}, {files: [a.json]}]
  - job_name: rules
    file_sd_configs: [{files: [shared.json]}]
alerting:
  alertmanagers: [{static_configs: [{targets: [am:1]}]}]
"""
NEW = """
# Something before, so that every rule stands elsewhere.
scrape_configs:
  - job_name: same
    file_sd_configs: [{files: [a.json]}]
  - job_name: edited
    file_sd_configs: [{files: [b.json], refresh_interval: 2m}]
  - job_name: rules
    file_sd_configs: [{files: [shared.json]}]
    relabel_configs: [{source_labels: [x], action: keep, regex: y}]
  - job_name: new
    file_sd_configs: [{files: [a.json]}]
  - job_name: none
alerting:
  alertmanagers: [{static_configs: [{targets: [am:1]}]}]
"""


def test_what_a_reload_would_do() -> None:
    differences = config_differences(parse(OLD), parse(NEW))
    assert diff_rows(differences) == [
        ("scrape", "same", "unchanged", "keeps", "file files=[dir/a.json]"),
        ("scrape", "edited", "changed", "starts", "file files=[dir/b.json] refresh_interval=2m"),
        ("scrape", "edited", "changed", "stops", "file files=[dir/b.json] refresh_interval=1m"),
        ("scrape", "edited", "changed", "leaves", "file files=[dir/shared.json]"),
        ("scrape", "edited", "changed", "leaves", "file files=[dir/a.json]"),
        ("scrape", "rules", "changed (labels)", "keeps", "file files=[dir/shared.json]"),
        ("scrape", "new", "added", "joins", "file files=[dir/a.json]"),
        ("scrape", "none", "added", "", "discovers nothing"),
        ("scrape", "gone", "removed", "stops", "file files=[dir/gone.json]"),
        ("notify", "config-0", "unchanged", "keeps", "static groups=[am:1]"),
    ]
    assert diff_summary(differences) == (
        "sets: 2 added, 1 removed, 2 changed, 2 unchanged; providers: 1 start, 2 stop, 3 restart and keep their targets"
    )
    document = json.loads(diff_document(differences))
    assert document[3] == {
        "manager": "scrape",
        "set": "new",
        "state": "added",
        "labelsDiffer": False,
        "providers": [{"state": "joins", "config": "file files=[dir/a.json]"}],
    }
    assert [one["labelsDiffer"] for one in document] == [False, False, True, False, False, False, False]


def test_equal_configurations_change_nothing() -> None:
    moved = "# One line more.\n" + NEW
    assert all(one.state == "unchanged" for one in config_differences(parse(NEW), parse(moved)))


@pytest.mark.parametrize(
    ("before", "after", "labels_differ"),
    [
        ("", "metrics_path: /m", True),
        ("scrape_interval: 1m", "", False),  # as is the default
        ("relabel_configs: [{action: labeldrop, regex: a}]", "relabel_configs: [{action: labeldrop, regex: b}]", True),
        ("sample_limit: 1", "sample_limit: 2", False),  # nothing that a label tells
        ("params: {a: [b]}", "params: {a: [c]}", True),
    ],
)
def test_settings_that_make_labels_count(before: str, after: str, labels_differ: bool) -> None:
    job = "scrape_configs:\n  - job_name: a\n    "
    (found,) = config_differences(parse(job + before), parse(job + after))
    assert found.labels_differ is labels_differ
    assert found.state == ("changed" if labels_differ else "unchanged")


def test_no_secret_is_told() -> None:
    text = """
scrape_configs:
  - job_name: a
    serverset_sd_configs:
      - {servers: [zk], paths: [/p], digest_auth: {username: u, password: hunter2}}
"""
    differences = config_differences(parse(text), parse(text.replace("hunter2", "hunter3")))
    told = f"{diff_rows(differences)}{diff_document(differences)}"
    assert "hunter" not in told
    (config,) = parse(text).scrape["a"]
    assert describe(config) == "serverset servers=[zk] paths=[/p] digest_auth={username=u, password=<secret>}"
    assert [row[-1].endswith("} (differs in what is not shown)") for row in diff_rows(differences)] == [True, True]


def test_another_order_is_a_change() -> None:
    job = "scrape_configs:\n  - job_name: a\n    "
    before = job + "file_sd_configs: [{files: [a.json]}, {files: [b.json]}]"
    after = job + "file_sd_configs: [{files: [b.json]}, {files: [a.json]}]"
    (found,) = config_differences(parse(before), parse(after))
    assert (found.state, [member.state for member in found.members]) == ("changed", ["keeps", "keeps"])


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (
            "file_sd_configs: [{files: [1.json, 2.json, 3.json, 4.json]}]",
            "[dir/1.json, dir/2.json, dir/3.json and 1 more]",
        ),
        ("static_configs: [{targets: [a, b, c]}, {targets: [d, e]}]", "groups=[a, b, c and 2 more]"),
        ("serverset_sd_configs: [{servers: [a], paths: [/p], tls_config: {ca_file: x}}]", "tls_config={ca_file=dir/x}"),
    ],
)
def test_a_discoverer_is_told_in_few_words(section: str, text: str) -> None:
    (config,) = parse(f"scrape_configs:\n  - job_name: a\n    {section}").scrape["a"]
    assert describe(config).endswith(text)


def test_a_provider_of_either_manager_counts() -> None:
    text = """
scrape_configs: [{job_name: a, file_sd_configs: [{files: [a.json]}]}]
alerting: {alertmanagers: [{file_sd_configs: [{files: [a.json]}]}]}
"""
    assert "2 start, 0 stop" in diff_summary(config_differences(parse(""), parse(text)))
    assert len(diff_rows(config_differences(parse(""), parse(text)))) == 2


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    (tmp_path / "old.yml").write_text(OLD)
    (tmp_path / "new.yml").write_text(NEW)
    done = run_command("config-diff", tmp_path / "old.yml", tmp_path / "new.yml", "--format", "table")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["MANAGER", "SET", "IS", "PROVIDER", "WHICH"]
    assert "sets: 2 added" in done.stdout
    (tmp_path / "new.yml").write_text("scrape_configs: 1")
    done = run_command("config-diff", tmp_path / "old.yml", tmp_path / "new.yml")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/new.yml:1:17: scrape_configs: found" in done.stderr
