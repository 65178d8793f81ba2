"""``trio-sd check`` beside the real ``promtool check service-discovery``, on the same znodes of a real server."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from .processes import run_command
from .zookeeper import ZooKeeperServer, needs_zookeeper, open_tree

pytestmark = needs_zookeeper

DATA = Path(__file__).parent / "data" / "zookeeper"
FACTS = Path(__file__).parents[2] / "shared" / "facts" / "zookeeper_cases.json"

MEMBERS: list[dict[str, Any]] = json.loads((DATA / "members.json").read_text())
TREES: list[dict[str, Any]] = json.loads((DATA / "trees.json").read_text())
OF_BEFORE = {
    "/facts/tree/m1": '{"serviceEndpoint":{"host":"h1","port":1},"status":"ALIVE"}',
    "/facts/tree/pdata": '{"serviceEndpoint":{"host":"parent","port":1},"status":"ALIVE"}',
    "/facts/tree/pdata/m1": '{"serviceEndpoint":{"host":"h1","port":1},"status":"ALIVE"}',
}
"""What the cases without znodes of their own look at."""
DIFFERENT_ON_PURPOSE = {"zk-tree-root-path"}
"""Prometheus can't look at ``/``, or at a path that ends in a slash."""


@pytest.mark.skipif(not FACTS.exists(), reason="this clone is without the shared facts; their copy is tested")
def test_the_copy_of_the_facts_is_true() -> None:
    assert [case for case in json.loads(FACTS.read_text()) if case["type"] == "tree"] == TREES


def write_config(path: Path, kind: str, servers: Iterable[str], paths: Iterable[str]) -> Path:
    """Write a configuration with one job that looks at ``paths``."""
    section = {"servers": list(servers), "paths": list(paths)}
    path.write_text(json.dumps({"scrape_configs": [{"job_name": "job", f"{kind}_sd_configs": [section]}]}))
    return path


def checked(config: Path) -> list[dict[str, Any]]:
    """Return what ``trio-sd check`` prints."""
    done = run_command("check", config, "job")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == (0 if found else 2), done.stderr  # to find nothing is a failure
    return found


@pytest.mark.parametrize("case", [case for case in TREES if "expected_targets" in case], ids=lambda case: case["id"])
async def test_the_facts_about_trees(
    case: dict[str, Any], shared_zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    async with open_tree(shared_zookeeper.hosts) as tree:
        znodes = case["znodes"] or OF_BEFORE
        await tree.create_many({zookeeper_root + path: data.encode() for path, data in znodes.items()})
    chroot = f"{shared_zookeeper.hosts}{zookeeper_root}"
    servers = [server.replace("127.0.0.1:21811", chroot) for server in case["servers"]]
    config = write_config(tmp_path / "prometheus.yml", case["kind"], servers, case["paths"])
    found = [
        {"path": labels[f"__meta_{case['kind']}_path"], "__address__": labels["__address__"]}
        for labels in (entry["discoveredLabels"] for entry in checked(config))
    ]
    if case["id"] in DIFFERENT_ON_PURPOSE:
        assert {"path": "/facts/tree/m1", "__address__": "h1:1"} in found
    else:
        assert sorted(found, key=str) == sorted(case["expected_targets"], key=str)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: nothing to compare with")
@pytest.mark.parametrize("kind", ["serverset", "nerve"])
async def test_check_finds_the_targets_that_promtool_finds(
    kind: str, shared_zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    nodes = {f"{zookeeper_root}/empty/parent": b""}
    for number, case in enumerate(case for case in MEMBERS if "[::1]" not in case.get("payload", "")):
        payload = base64.b64decode(case["payload_base64"]) if "payload_base64" in case else case["payload"].encode()
        nodes[f"{zookeeper_root}/{case['kind']}/{number}"] = payload
        nodes[f"{zookeeper_root}/empty/parent/é {number}"] = payload
    async with open_tree(shared_zookeeper.hosts) as tree:
        await tree.create_many(nodes)
    config = write_config(tmp_path / "prometheus.yml", kind, [shared_zookeeper.hosts], [zookeeper_root])
    promtool = await trio.run_process(
        [
            *("promtool", "--enable-feature=no-default-scrape-port", "check", "service-discovery", "--timeout=3s"),
            *(str(config), "job"),
        ],
        capture_stdout=True,
        capture_stderr=True,
    )

    def entries(targets: list[dict[str, Any]]) -> list[str]:
        for target in targets:
            if target["discoveredLabels"]["__address__"].endswith(":80"):
                del target["labels"]  # Prometheus 2 takes the default port off again, 3 and we don't
        return sorted(json.dumps(target, sort_keys=True) for target in targets)

    theirs = entries(json.loads(promtool.stdout))
    assert len(theirs) > 60
    assert entries(checked(config)) == theirs
