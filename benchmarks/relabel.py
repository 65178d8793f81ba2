"""Relabeling and the labels of targets, on one core; and what subscribers get who ask for targets after relabeling.

The pipeline is an ordinary one: a keep on a literal, two replaces, a regular expression with groups, a labelmap. A
target-rule is one rule applied to one target; with five rules, 500,000 of them a second are 100,000 targets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import trio

from trio_sd.config import ScrapeJob
from trio_sd.manager import open_manager
from trio_sd.relabel import RelabelConfig, Relabeler
from trio_sd.set_configs import SetConfigs
from trio_sd.targets import TargetGroup

from .figures import Aim, Figure, at_least, spent
from .manager import UNTHROTTLED, Feeder, FeederConfig

_KEEP = RelabelConfig(("__meta_kubernetes_pod_annotation_prometheus_io_scrape",), regex="true", action="keep")
_NAMESPACE = RelabelConfig(("__meta_kubernetes_namespace",), target_label="namespace")
_POD = RelabelConfig(("__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"), separator="/", target_label="pod")
_HOST = RelabelConfig(("__address__",), regex=r"([^:]+):(\d+)", target_label="instance", replacement="$1-$2")
_PORT = RelabelConfig(
    ("__address__", "__meta_kubernetes_pod_annotation_prometheus_io_port"),
    regex=r"([^:]+)(?::\d+)?;(\d+)",
    target_label="__address__",
    replacement="$1:$2",
)
_MAP = RelabelConfig(regex="__meta_kubernetes_pod_label_(.+)", action="labelmap")

PIPELINES: Mapping[str, Sequence[RelabelConfig]] = {
    "five rules": (_KEEP, _NAMESPACE, _POD, _HOST, _MAP),
    "five rules, one of them left to RE2": (_KEEP, _NAMESPACE, _POD, _PORT, _MAP),
}


def targets(count: int) -> list[dict[str, str]]:
    """Return targets as Kubernetes discovery finds them, each with 16 labels."""
    return [
        {
            "__address__": f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}:8080",
            "__meta_kubernetes_namespace": f"team-{index % 20}",
            "__meta_kubernetes_pod_annotation_prometheus_io_port": "9100",
            "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
            "__meta_kubernetes_pod_container_name": "server",
            "__meta_kubernetes_pod_label_app": "server",
            "__meta_kubernetes_pod_label_version": "v1",
            "__meta_kubernetes_pod_name": f"server-{index}",
            "__meta_kubernetes_pod_node_name": f"node-{index % 100}",
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_uid": f"4c586419-7f6c-448d-aeec-{index:012}",
            "__metrics_path__": "/metrics",
            "__scheme__": "http",
            "__scrape_interval__": "15s",
            "__scrape_timeout__": "10s",
            "job": "pods",
        }
        for index in range(count)
    ]


def run(*, quick: bool) -> Iterator[Figure]:
    """Measure, and yield each figure."""
    count, rounds = (2_000, 3) if quick else (20_000, 7)
    found = targets(count)
    for name, rules in PIPELINES.items():
        relabel = Relabeler(rules).relabel
        assert all(relabel(labels) for labels in found), "a rule drops targets"
        yield _rate(f"relabel, {name}: target-rules", found, relabel, len(rules), rounds, at_least(500_000))
    explain = Relabeler(PIPELINES["five rules"]).explain
    yield _rate("explain, five rules: targets", found, explain, 1, rounds)
    for size in (1_000, 10_000) if quick else (1_000, 100_000):
        yield from trio.run(_subscription, size, 50 if quick else 200)


@dataclass
class _Heartbeat:
    """Notes for how long the loop was held up at most."""

    longest: float = 0.0

    async def run(self) -> None:
        before = time.perf_counter()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.perf_counter()
            self.longest, before = max(self.longest, now - before), now


async def _subscription(size: int, rounds: int) -> list[Figure]:
    """Measure how a subscriber gets targets after relabeling: all of them first, then one change after the other."""

    def group(index: int, version: int) -> TargetGroup:
        return TargetGroup(str(index), [labels[index]], {"zone": str(version)})

    labels = targets(size)
    feeder = Feeder()
    job = ScrapeJob(job_name="pods", relabel_configs=tuple(PIPELINES["five rules"]))
    latencies = []
    async with open_manager(SetConfigs({"set": [FeederConfig(feeder)]}, {"set": job}), throttle=UNTHROTTLED) as manager:
        await feeder.feed.send([group(index, 0) for index in range(size)])
        await manager.wait_synced()
        heartbeat = _Heartbeat()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heartbeat.run)
            await trio.lowlevel.checkpoint()
            began = time.perf_counter()
            async with manager.subscribe(relabel=True) as updates:
                update = await updates.receive()
                first = time.perf_counter() - began
                assert update.snapshot.target_count("set") == size
                longest = heartbeat.longest
                nursery.cancel_scope.cancel()
        async with manager.subscribe(relabel=True) as updates:
            await updates.receive()
            for version in range(1, rounds + 1):
                await feeder.feed.send([group(version * 7919 % size, version)])
                update = await updates.receive()
                latencies.append(time.perf_counter() - feeder.sent)
                assert len(update.changes["set"].updated) == 1
    return [
        Figure.of("subscribe(relabel=True): all targets at first", first, size=size),
        Figure.of("subscribe(relabel=True): the loop held up meanwhile, at the longest", longest, size=size),
        Figure.of("subscribe(relabel=True): one changed, provider → consumer", latencies, size=size),
    ]


def _rate(
    what: str,
    found: Sequence[Mapping[str, str]],
    function: Callable[[Mapping[str, str]], object],
    times: int,
    rounds: int,
    aim: Aim | None = None,
) -> Figure:
    """Return how many ``times`` a second the function is done with a target."""

    def all_of_them() -> None:
        for labels in found:
            function(labels)

    rates = [len(found) * times / spent(all_of_them) for _ in range(rounds)]
    return Figure.of(what, rates, "/s", aim=aim)
