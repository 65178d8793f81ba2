"""Mechanisms of other distributions: what an entry point provides, and what one that can't be used does."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trio_sd
from trio_sd import ConfigError, default_registry, load_config
from trio_sd.config import Config
from trio_sd.discovery.file import FileSDConfig
from trio_sd.manager import open_manager
from trio_sd.reload import Reloader
from trio_sd.testing import FakeConfig

from .processes import COMMAND, ENVIRONMENT, PATIENCE

RACKS = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import trio
import trio_sd


@dataclass(frozen=True)
class RacksConfig(trio_sd.DiscovererConfig):
    mechanism: ClassVar[str] = "racks"

    rows: tuple[str, ...]
    interval: trio_sd.Duration = trio_sd.Duration.of("1m")

    def discoverer(self, options: trio_sd.DiscovererOptions) -> "Racks":
        return Racks(self.rows)


class Racks:
    def __init__(self, rows: Sequence[str]) -> None:
        self.rows = rows

    async def run(self, updates: trio.MemorySendChannel[Sequence[trio_sd.TargetGroup]]) -> None:
        await updates.send([trio_sd.TargetGroup(row, [{"__address__": f"{row}:9100"}]) for row in self.rows])
"""
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return what installs a distribution into a directory that this process imports from."""
    before = set(sys.modules)
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, entry_points: str, *, site: Path = site, **modules: str) -> Path:
        metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[trio_sd.discoverers]\n{entry_points}\n")
        for module, text in modules.items():
            (site / f"{module}.py").write_text(text)
        return site

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield install
    for module in sys.modules.keys() - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def job(key: str, item: str = "{rows: [a, b]}") -> str:
    return f"scrape_configs:\n- job_name: j\n  {key}: [{item}]\n"


def load_text(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "p.yml"
    path.write_text(text)
    return load_config(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_the_command_finds_the_targets_of_an_installed_mechanism(tmp_path: Path, install: Install) -> None:
    site = install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    (tmp_path / "p.yml").write_text(job("racks_sd_configs"))
    found = subprocess.run(
        [*COMMAND, "check", "p.yml", "--format", "json"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert [target["labels"]["instance"] for target in json.loads(found.stdout)] == ["a:9100", "b:9100"]
    assert found.stderr == ""


async def test_alertmanagers_and_the_reloader_know_it_as_well(tmp_path: Path, install: Install) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    path = tmp_path / "p.yml"
    path.write_text("alerting: {alertmanagers: [{racks_sd_configs: [{rows: [a]}]}]}\n" + job("racks_sd_configs"))
    with trio.fail_after(PATIENCE):
        async with open_manager() as scrape, open_manager(name="notify") as notify:
            await Reloader(path, scrape=scrape, notify=notify).reload()
            await scrape.wait_synced()
            await notify.wait_synced()
            assert [group.source for group in scrape.snapshot()["j"]] == ["a", "b"]
            assert [group.source for group in notify.snapshot()["config-0"]] == ["a"]
            assert [one.name for one in scrape.statistics().providers] == ["racks/0"]


def test_nothing_is_imported_before_a_configuration_uses_it(tmp_path: Path, install: Install) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    registry = default_registry()
    assert "racks_sd_configs" in registry
    assert list(registry)[-1] == "racks_sd_configs"
    assert len(registry) == len(list(registry)) == len(set(registry))
    assert "shelves_sd_configs" not in registry
    with pytest.raises(KeyError):
        _ = registry["shelves_sd_configs"]
    load_text(tmp_path, "scrape_configs: [{job_name: j, static_configs: [{targets: ['a:1']}]}]")
    assert "racks_module" not in sys.modules
    assert registry["racks_sd_configs"].mechanism == "racks"
    assert "racks_module" in sys.modules


def test_its_fields_are_decoded_and_its_mistakes_placed(tmp_path: Path, install: Install) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    (config,) = load_text(tmp_path, job("racks_sd_configs", "{rows: [a], interval: 5s}")).scrape["j"]
    assert vars(config) == {"rows": ("a",), "interval": trio_sd.Duration.of("5s")}
    assert (
        refusal(tmp_path, job("racks_sd_configs", "{row: [a]}"))
        == "p.yml:3:23: scrape_configs[0].racks_sd_configs[0].row: field row not found in this section; "
        "did you mean rows?"
    )


def test_it_is_among_the_keys_that_messages_name(tmp_path: Path, install: Install) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    assert "did you mean racks_sd_configs?" in refusal(tmp_path, job("rack_sd_configs"))
    assert "nerve_sd_configs, serverset_sd_configs, racks_sd_configs" in refusal(tmp_path, job("triton_sd_configs"))


def test_it_may_be_a_mechanism_of_prometheus_that_is_not_built_in(tmp_path: Path, install: Install) -> None:
    install("trio-sd-triton", "triton = racks_module:RacksConfig", racks_module=RACKS)
    assert load_text(tmp_path, job("triton_sd_configs")).scrape["j"]


CONFIG = """
from dataclasses import dataclass, field
from trio_sd import DiscovererConfig

class Base(DiscovererConfig):
    mechanism = "racks"
    def discoverer(self, options):
        raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import no_such_module", "can't be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "can't be loaded: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "can't be loaded: SystemExit: 3"),
        ("", "can't be loaded: AttributeError: module 'm' has no attribute 'C'"),
        ("C = 1", "can't be used: it is no class that derives from trio_sd.DiscovererConfig"),
        ("class C: pass", "can't be used: it is no class that derives from trio_sd.DiscovererConfig"),
        (
            "from trio_sd import DiscovererConfig\nclass C(DiscovererConfig): mechanism = 'x'",
            "can't be used: C lacks discoverer",
        ),
        (CONFIG + "class C(Base): pass", "can't be used: C is no dataclass"),
        (CONFIG + "@dataclass\nclass C(Base): pass", "can't be used: C is no frozen dataclass"),
        (
            CONFIG + "@dataclass(frozen=True, eq=False)\nclass C(Base): pass",
            "can't be used: C is not compared and hashed by its fields",
        ),
        (
            CONFIG + "@dataclass(frozen=True)\nclass C(Base):\n  __hash__ = None",
            "can't be used: C is not compared and hashed by its fields",
        ),
        (
            CONFIG + "@dataclass(frozen=True)\nclass C(Base):\n  mechanism = ''",
            "can't be used: C has no mechanism; expected a class attribute with its name",
        ),
        (
            CONFIG + "@dataclass(frozen=True)\nclass C(Base):\n  rows: list[str] = None",
            "can't be loaded: TypeError: can't decode a field of type list[str]",
        ),
        (
            CONFIG + "@dataclass(frozen=True)\nclass C(Base):\n  rows: 'Nonsense' = None",
            "can't be loaded: NameError: name 'Nonsense' is not defined",
        ),
    ],
)
def test_one_that_can_not_be_used_is_told_where_it_is_used(
    tmp_path: Path, install: Install, module: str, reason: str
) -> None:
    install("trio-sd-racks", "racks = m:C", m=module)
    assert load_text(tmp_path, "scrape_configs: [{job_name: j}]").scrape, "who does not use it is not disturbed"
    place = "p.yml:3:3: scrape_configs[0].racks_sd_configs"
    told = 'entry point racks = "m:C" of trio-sd-racks 1.0'
    assert refusal(tmp_path, job("racks_sd_configs")) == f"{place}: {told} {reason}"


@pytest.mark.parametrize(
    "fields",
    ["", "  rows: tuple[str, ...]", "  rows: tuple[str, ...] = ()\n  def validate(self): raise ValueError('none')"],
)
def test_one_that_needs_something_can_be_used(tmp_path: Path, install: Install, fields: str) -> None:
    install("trio-sd-racks", "racks = m:C", m=f"{CONFIG}@dataclass(frozen=True)\nclass C(Base):\n{fields}\n  pass")
    assert default_registry()["racks_sd_configs"].mechanism == "racks"


def test_two_distributions_with_one_name_are_refused_by_name(tmp_path: Path, install: Install) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    install("other-racks", "racks = other:C")
    load_text(tmp_path, "scrape_configs: [{job_name: j}]")
    message = refusal(tmp_path, job("racks_sd_configs"))
    assert message.startswith(
        "p.yml:3:3: scrape_configs[0].racks_sd_configs: more than one distribution provides this: "
    )
    assert 'entry point racks = "racks_module:RacksConfig" of trio-sd-racks 1.0' in message
    assert 'entry point racks = "other:C" of other-racks 1.0' in message


def test_one_distribution_that_is_found_twice_is_one(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    monkeypatch.syspath_prepend(str(install("Trio_SD.racks", "racks = other:C", site=tmp_path / "hides")))
    assert "entry point racks" in refusal(tmp_path, job("racks_sd_configs"))
    assert "of Trio_SD.racks 1.0 can't be loaded" in refusal(tmp_path, job("racks_sd_configs"))


def test_no_distribution_replaces_a_mechanism_that_is_there(
    tmp_path: Path, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("trio-sd-racks", "file = racks_module:RacksConfig", racks_module=RACKS)
    load_text(tmp_path, "scrape_configs: [{job_name: j}]")
    assert caplog.messages == []
    files = "file_sd_configs: [{files: [t.json]}]"
    config = load_text(tmp_path, f"scrape_configs: [{{job_name: j, {files}}}, {{job_name: k, {files}}}]")
    assert [type(one) for one in config.scrape["j"]] == [FileSDConfig]
    assert caplog.record_tuples == [
        (
            "trio_sd.discovery.entry_points",
            logging.WARNING,
            (
                'entry point file = "racks_module:RacksConfig" of trio-sd-racks 1.0 is not used: '
                "file_sd_configs is trio_sd.discovery.file.config.FileSDConfig"
            ),
        )
    ]
    assert "racks_module" not in sys.modules


def test_a_program_adds_mechanisms_without_loading_others(install: Install) -> None:
    install("trio-sd-racks", "racks = m:C\nfake = m:C")
    registry = default_registry(fake_sd_configs=FakeConfig, file_sd_configs=FakeConfig)
    assert registry["fake_sd_configs"] is registry["file_sd_configs"] is FakeConfig
    assert "racks_sd_configs" in registry


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[trio_sd.discoverers]\nnonsense\n", True),
        (b"[trio_sd.discoverers]\nracks = m:\xff\n", True),
        (b"nonsense\n[others]\nnonsense\n", False),
    ],
)
def test_broken_metadata_of_a_distribution_do_no_harm(
    tmp_path: Path, install: Install, caplog: pytest.LogCaptureFixture, content: bytes, told: bool
) -> None:
    install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    site = install("broken", "")
    (site / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(content)
    assert load_text(tmp_path, job("racks_sd_configs")).scrape["j"]
    assert len(caplog.messages) == told
    assert all(f" in {site}" in message for message in caplog.messages)


def test_a_distribution_that_is_installed_meanwhile_is_found(tmp_path: Path, install: Install) -> None:
    (tmp_path / "site").mkdir()
    assert "field racks_sd_configs not found" in refusal(tmp_path, job("racks_sd_configs"))
    site = install("trio-sd-racks", "racks = racks_module:RacksConfig", racks_module=RACKS)
    os.utime(site, (1, 1))  # whatever the clock of the file system: the directory is not what it was
    assert load_text(tmp_path, job("racks_sd_configs")).scrape["j"]
