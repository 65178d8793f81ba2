"""From a request to a configuration in force."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from trio_sd.config import Config
from trio_sd.errors import ConfigError
from trio_sd.manager import open_manager
from trio_sd.reload import Reloader, load, reload_on_sighup


def text(*jobs: str) -> str:
    rows = [f"- {{job_name: {job}, static_configs: [{{targets: ['{job}:1']}}]}}" for job in jobs]
    return "scrape_configs:\n" + "".join(f"{row}\n" for row in rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "prometheus.yml"
    path.write_text(text("a"))
    return path


async def test_the_first_load_is_a_reload_like_any_other(path: Path) -> None:
    async with open_manager() as manager:
        reloader = Reloader(path, scrape=manager)
        config = await reloader.reload()
        await manager.wait_synced()
        assert list(manager.snapshot()) == list(config.scrape) == ["a"]
        assert reloader.statistics().succeeded == 1


async def test_a_refused_configuration_changes_nothing_and_is_told(path: Path) -> None:
    async with open_manager() as manager:
        reloader = Reloader(path, scrape=manager)
        await reloader.reload()
        await manager.wait_synced()
        revision = manager.snapshot().revision
        path.write_text("scrape_configs: [{job_name: ''}]\n")
        with pytest.raises(ConfigError, match="job_name is empty"):
            await reloader.reload()
        assert manager.snapshot().revision == revision
        statistics = reloader.statistics()
        assert (statistics.succeeded, statistics.failed) == (1, 1)
        assert statistics.last_error is not None
        assert f"{path}:1:" in statistics.last_error
        path.write_text(text("b"))
        await reloader.reload()
        assert reloader.statistics().last_error is None


async def test_both_managers_are_reloaded(path: Path) -> None:
    path.write_text(text("a") + "alerting: {alertmanagers: [{static_configs: [{targets: ['am:1']}]}]}\n")
    async with open_manager() as scrape, open_manager(name="notify") as notify:
        await Reloader(path, scrape=scrape, notify=notify).reload()
        await notify.wait_synced()
        assert list(scrape.snapshot()) == ["a"]
        assert notify.snapshot()["config-0"][0].targets[0]["__address__"] == "am:1"


async def test_requests_during_a_reload_cause_one_more(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with open_manager() as manager, trio.open_nursery() as nursery:
        reloader = Reloader(path, scrape=manager)
        nursery.start_soon(reloader.run)
        for _ in range(10):
            reloader.request()
        with trio.fail_after(10):
            async with manager.subscribe() as updates:
                async for _ in updates:
                    if reloader.statistics().succeeded:
                        break
        assert reloader.statistics().succeeded == 1
        nursery.cancel_scope.cancel()


async def test_run_survives_a_bad_file_and_logs_it(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused = trio.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "refused" in record.getMessage():
                refused.set()

    logger = logging.getLogger("trio_sd.reload")
    logger.addHandler(notice := Notice())
    try:
        async with open_manager() as manager, trio.open_nursery() as nursery:
            reloader = Reloader(path, scrape=manager)
            await reloader.reload()
            nursery.start_soon(reloader.run)
            path.write_text("nonsense: 1\n")
            reloader.request()
            with trio.fail_after(10):
                await refused.wait()
            path.write_text(text("b"))
            reloader.request()
            with trio.fail_after(10):
                async with manager.subscribe() as updates:
                    async for update in updates:
                        if "b" in update.snapshot:
                            break
            nursery.cancel_scope.cancel()
    finally:
        logger.removeHandler(notice)
    assert f"{path}:1:1" in caplog.text


async def test_sighup_reloads_an_embedded_manager(path: Path) -> None:
    async with trio.open_nursery() as nursery, open_manager() as manager:
        reloader = await nursery.start(partial(reload_on_sighup, path, scrape=manager))
        await reloader.reload()
        async with manager.subscribe() as updates:
            path.write_text(text("a", "b"))
            os.kill(os.getpid(), signal.SIGHUP)
            with trio.fail_after(10):
                async for update in updates:
                    if "b" in update.snapshot:
                        break
        nursery.cancel_scope.cancel()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


async def test_load_does_not_wait_for_ever(
    path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("trio_sd.reload.load_config", lambda *_, **__: released.wait())
    start = trio.current_time()
    try:
        with pytest.raises(ConfigError, match="not read within 30 s"):
            await load(path)
        assert trio.current_time() - start == 30
    finally:
        released.set()


async def test_cancelling_a_reload_before_it_is_validated_changes_nothing(path: Path) -> None:
    async with open_manager() as manager:
        reloader = Reloader(path, scrape=manager)
        with trio.CancelScope() as scope:
            scope.cancel()
            await reloader.reload()
        assert list(manager.snapshot()) == []
        assert isinstance(await reloader.reload(), Config)


# Watching the configuration's files.


async def test_watch_requests_a_reload_for_a_change_and_not_for_what_was_loaded(path: Path, tmp_path: Path) -> None:
    path.write_text("scrape_config_files: ['jobs/*.yml']\n" + text("a"))
    async with open_manager() as manager, trio.open_nursery() as nursery:
        reloader = Reloader(path, scrape=manager)
        await reloader.reload()
        nursery.start_soon(reloader.watch)
        nursery.start_soon(reloader.run)
        async with manager.subscribe() as updates:

            async def wait_for(job: str, present: bool) -> None:
                with trio.fail_after(10):
                    async for update in updates:
                        if (job in update.snapshot) == present:
                            return

            (tmp_path / "jobs").mkdir()
            (tmp_path / "jobs" / "b.yml").write_text(text("b"))
            await wait_for("b", present=True)
            path.write_text(text("c"))  # no longer includes anything
            await wait_for("c", present=True)
            path.write_text(text("d"))
            await wait_for("d", present=True)
        nursery.cancel_scope.cancel()


# Real files.


async def test_reload_contract_a_changed_configuration_keeps_what_a_bad_file_had(tmp_path: Path) -> None:
    config, good, bad = tmp_path / "prometheus.yml", tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('[{"targets": ["good:1"]}]')
    bad.write_text('[{"targets": ["bad:1"]}]')
    text = "scrape_configs: [{job_name: j, file_sd_configs: [{files: ['*.json'], refresh_interval: %s}]}]\n"
    config.write_text(text % "5m")
    async with open_manager() as manager:
        reloader = Reloader(config, scrape=manager)
        with trio.fail_after(20):
            await reloader.reload()
            await manager.wait_synced()
            assert manager.snapshot().target_count("j") == 2
            bad.write_bytes(b"")
            config.write_text(text % "6m")
            await reloader.reload()
            await manager.wait_synced()
        assert [group.targets[0]["__address__"] for group in manager.snapshot()["j"]] == ["bad:1", "good:1"]
        assert manager.statistics().providers[0].state == "failing"


async def test_reload_contract_nothing_of_file_discovery_outlives_a_reload(tmp_path: Path) -> None:
    def open_files() -> list[str]:
        kinds = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the descriptor of this very listing
                kinds.append(os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0])
        return sorted(kinds)

    for number in range(20):
        (tmp_path / f"{number}.json").write_text('[{"targets": ["a:1"]}]')
    jobs = [f"- {{job_name: j{n}, file_sd_configs: [{{files: ['{n}.json']}}]}}\n" for n in range(20)]
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs:\n" + "".join(jobs))
    before = open_files()
    async with open_manager() as manager:
        reloader = Reloader(config, scrape=manager)
        with trio.fail_after(30):
            for _ in range(5):
                await reloader.reload()
                await manager.wait_synced()
            assert manager.statistics().resources["('inotify',)"] == 20
            config.write_text("scrape_configs: []\n")
            await reloader.reload()
        assert manager.statistics().resources == {}
        assert open_files() == before


async def test_a_thousand_file_jobs_of_ten_targets_yield_all_ten_thousand(tmp_path: Path) -> None:
    targets = ", ".join(f'"h{n}:1"' for n in range(10))
    for number in range(1000):
        (tmp_path / f"{number}.json").write_text(f'[{{"targets": [{targets}]}}]')
    jobs = [f"- {{job_name: j{n}, file_sd_configs: [{{files: ['{n}.json']}}]}}\n" for n in range(1000)]
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs:\n" + "".join(jobs))
    async with open_manager() as manager:
        with trio.fail_after(60):
            await Reloader(config, scrape=manager).reload()
            await manager.wait_synced()
        statistics = manager.statistics()
        assert sum(one.targets for one in statistics.sets) == 10_000
        assert not any(provider.details.notes for provider in statistics.providers)
