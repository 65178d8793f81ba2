"""``trio-sd check`` beside the real ``promtool check service-discovery``, on the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .processes import run_command

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: nothing to compare with"
)

PROMTOOL = ["promtool", "--enable-feature=no-default-scrape-port", "check", "service-discovery", "--timeout=1s"]

CONFIGS = {
    "static": """
      static_configs:
        - targets: ["a:1", "a:2", "b"]
          labels: {zone: x, empty: ""}
        - targets: ["[::1]:9100"]
        - targets: []
    """,
    "file": """
      file_sd_configs:
        - files: ["sd/*.json", "sd/*.yml"]
        - files: ["sd/a.json"]
    """,
    "everything that makes labels": """
      scheme: https
      metrics_path: /federate
      scrape_interval: 90s
      scrape_timeout: 30s
      params: {match: ["{a}", b]}
      static_configs: [{targets: ["s:1"], labels: {__metrics_path__: /own, job: other, __param_x: y}}]
    """,
    "relabeled": """
      static_configs: [{targets: ["web-1:8080", "web-2:8080", "db-1:5432", "bad:1"], labels: {__meta_zone: eu}}]
      relabel_configs:
        - {source_labels: [__address__], regex: "bad.*", action: drop}
        - {source_labels: [__address__], regex: "([a-z]+)-([0-9]+):.*", target_label: tier, replacement: "$1"}
        - {source_labels: [__address__], target_label: shard, modulus: 4, action: hashmod}
        - {regex: "__meta_(.*)", action: labelmap}
        - {source_labels: [tier], regex: web, target_label: __metrics_path__, replacement: /web}
    """,
    "an address that can't be used": """
      static_configs: [{targets: ["a:1", "b:1"]}]
      relabel_configs:
        - {source_labels: [__address__], regex: "a:1", target_label: __address__, replacement: "http://a/x"}
    """,
}


def entries(text: str) -> list[str]:
    """Return what can be compared of each entry: promtool 2.42 writes relabeled values into discoveredLabels."""
    document: list[dict[str, Any]] = json.loads(text)
    return sorted(json.dumps([entry["labels"], bool("error" in entry)], sort_keys=True) for entry in document)


@pytest.mark.parametrize("name", CONFIGS)
def test_check_finds_the_targets_that_promtool_finds(name: str, tmp_path: Path) -> None:
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "a.json").write_text('[{"targets": ["j:1", "j:2"], "labels": {"k": "v"}}, {"targets": ["j:3"]}]')
    (tmp_path / "sd" / "b.yml").write_text("- targets: [y:1]\n  labels: {version: 010, ok: no}\n")
    config = tmp_path / "prometheus.yml"
    config.write_text(f"scrape_configs:\n    - job_name: job\n{CONFIGS[name]}")
    promtool = subprocess.run(
        [*PROMTOOL, str(config), "job"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = run_command("check", config, "job")
    assert ours.returncode == 0, ours.stderr
    assert entries(ours.stdout) == entries(promtool.stdout)
    if "relabel" not in CONFIGS[name]:

        def discovered(text: str) -> list[str]:
            return sorted(json.dumps(entry["discoveredLabels"], sort_keys=True) for entry in json.loads(text))

        assert discovered(ours.stdout) == discovered(promtool.stdout)
