from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from trio_sd.config.nodes import SequenceNode, parse_yaml
from trio_sd.discoverer import DiscovererOptions
from trio_sd.discovery import default_registry
from trio_sd.discovery.static import StaticConfig
from trio_sd.errors import ConfigError
from trio_sd.limits import Limits
from trio_sd.resources import Resources
from trio_sd.targets import TargetGroup


def config(text: str) -> StaticConfig:
    node = parse_yaml(text.encode(), file="c.yml", limits=Limits())
    assert isinstance(node, SequenceNode)
    (made,) = StaticConfig.combine([StaticConfig.decode(item, f"[{i}]") for i, item in enumerate(node.items)])
    return made


TWO = "- targets: [a:1, b:2]\n  labels: {env: prod}\n- targets: [c:3]\n"


def test_all_items_of_a_job_become_one_config_with_numbered_sources() -> None:
    assert config(TWO).groups == (
        TargetGroup("0", ({"__address__": "a:1"}, {"__address__": "b:2"}), {"env": "prod"}),
        TargetGroup("1", ({"__address__": "c:3"},)),
    )


def test_equal_configs_are_equal_and_hash_equal() -> None:
    assert config(TWO) == config(TWO)
    assert hash(config(TWO)) == hash(config(TWO))
    assert config(TWO) != config("- targets: [a:1]\n")


def test_a_null_item_is_refused() -> None:
    with pytest.raises(ConfigError, match="nil target group item found"):
        config("- targets: [a:1]\n-\n")


async def test_sends_everything_once_and_returns_without_closing_the_channel() -> None:
    updates, received = trio.open_memory_channel[Sequence[TargetGroup]](0)
    async with trio.open_nursery() as nursery:
        discoverer = config(TWO).discoverer(DiscovererOptions(Resources(nursery)))
        nursery.start_soon(discoverer.run, updates)
        assert tuple(await received.receive()) == config(TWO).groups
    with pytest.raises(trio.WouldBlock):
        received.receive_nowait()


async def test_an_empty_list_is_sent_too() -> None:
    updates, received = trio.open_memory_channel[Sequence[TargetGroup]](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(StaticConfig().discoverer(DiscovererOptions(Resources(nursery))).run, updates)
        assert list(await received.receive()) == []


def test_the_registry_knows_the_mechanisms_and_can_not_be_changed() -> None:
    registry = default_registry()
    assert {"static_configs", "file_sd_configs"} <= set(registry)
    with pytest.raises(TypeError):
        registry["x"] = StaticConfig  # type: ignore[index]  # that is the point
