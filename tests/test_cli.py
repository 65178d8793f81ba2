"""The command line, run as a process: what it prints, how it exits, what signals do."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from trio_sd import __version__

from .processes import COMMAND, run_command, running

STATIC = """\
scrape_configs:
  - job_name: alpha
    static_configs:
      - targets: ["a:1", "a:2"]
        labels: {zone: x}
"""
FILES = """\
scrape_configs:
  - job_name: web
    file_sd_configs:
      - files: ["targets/*.json"]
"""


def write(path: Path, text: str) -> Path:
    """Write a file the way that configuration management does: by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)
    return path


def write_targets(path: Path, *targets: str) -> Path:
    return write(path, json.dumps([{"targets": list(targets)}]))


def addresses(found: dict[str, list[dict[str, list[dict[str, str]]]]]) -> list[str]:
    return [target["__address__"] for group in found["updated"] for target in group["targets"]]


# check


def test_check_prints_one_list_for_one_job(tmp_path: Path) -> None:
    done = run_command("check", write(tmp_path / "p.yml", STATIC), "alpha")
    assert done.returncode == 0, done.stderr
    [first, second] = json.loads(done.stdout)
    assert first["discoveredLabels"]["__address__"] == "a:1"
    assert first["discoveredLabels"]["zone"] == "x"
    assert first["labels"]["instance"] == "a:1"
    assert first["labels"]["job"] == "alpha"
    assert second["labels"]["instance"] == "a:2"


def test_check_prints_an_object_for_several_jobs(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", STATIC + "  - job_name: beta\n    static_configs: [{targets: ['b:1']}]\n")
    done = run_command("check", config)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {job: len(targets) for job, targets in document.items()} == {"alpha": 2, "beta": 1}
    assert list(json.loads(run_command("check", config, "beta", "alpha").stdout)) == ["beta", "alpha"]


def test_check_draws_a_table(tmp_path: Path) -> None:
    done = run_command("check", write(tmp_path / "p.yml", STATIC), "--format", "table")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["alpha", "a:1"], ["alpha", "a:2"]]


def test_check_reads_target_files_and_ends_at_once(tmp_path: Path) -> None:
    write_targets(tmp_path / "targets" / "x.json", "w:1")
    done = run_command("check", write(tmp_path / "p.yml", FILES), "web", "--timeout", "25s")
    assert done.returncode == 0, done.stderr
    [entry] = json.loads(done.stdout)
    assert entry["labels"]["instance"] == "w:1"
    assert entry["discoveredLabels"]["__meta_filepath"] == str(tmp_path / "targets" / "x.json")


def test_check_names_the_provider_that_has_not_reported(tmp_path: Path) -> None:
    write(tmp_path / "targets" / "x.json", '[{"targets": [')
    done = run_command("check", write(tmp_path / "p.yml", FILES), "--timeout", "500ms")
    assert done.returncode == 2
    assert "provider file/0 of web had not reported after 0.5 s" in done.stderr
    assert "x.json" in done.stderr
    assert json.loads(done.stdout) == []


def test_check_fails_when_nothing_was_discovered(tmp_path: Path) -> None:
    done = run_command("check", write(tmp_path / "p.yml", FILES))
    assert done.returncode == 2
    assert "targets/*.json: no file matches" in done.stderr
    assert "no target was discovered for web" in done.stderr
    assert json.loads(done.stdout) == []


ALERTING = "alerting: {alertmanagers: [{static_configs: [{targets: ['am:1']}]}]}\n"


@pytest.mark.parametrize("text", ["", ALERTING])
def test_check_fails_when_there_is_nothing_to_discover(tmp_path: Path, text: str) -> None:
    done = run_command("check", write(tmp_path / "p.yml", text))
    assert (done.returncode, done.stdout) == (2, "{}\n")
    assert "there is no job" in done.stderr


def test_a_job_named_like_a_section_goes_first(tmp_path: Path) -> None:
    job = "scrape_configs: [{job_name: config-0, static_configs: [{targets: ['scraped:1']}]}]\n"
    done = run_command("check", write(tmp_path / "p.yml", ALERTING + job), "config-0")
    (found,) = json.loads(done.stdout)
    assert (found["labels"]["job"], found["labels"]["__address__"]) == ("config-0", "scraped:1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scrape_configs: [", ":1:"),
        (STATIC.replace("targets", "tragets"), ":4:9"),
        (STATIC.replace("static_configs", "ec2_sd_configs"), "not supported"),
        ("scrape_configs: [{job_name: a}, {job_name: a}]", "found multiple scrape configs with job name"),
    ],
)
def test_check_refuses_a_bad_configuration_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path / "p.yml", text)
    done = run_command("check", path)
    assert done.returncode == 1
    assert told in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run_command("check", tmp_path / "none.yml")
    assert done.returncode == 1
    assert "none.yml" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_of_an_unknown_job_names_the_known_ones(tmp_path: Path) -> None:
    done = run_command("check", write(tmp_path / "p.yml", STATIC), "gamma")
    assert done.returncode == 1
    assert "gamma" in done.stderr
    assert "alpha" in done.stderr


def test_usage_errors_do_not_look_like_a_timeout() -> None:
    assert run_command("check").returncode == 1
    assert run_command("nonsense").returncode == 1
    assert run_command("check", "x.yml", "--timeout", "10").returncode == 1


def test_version_and_help() -> None:
    assert __version__ in run_command("--version").stdout
    for command in ("check", "run", "demo"):
        assert "Examples" in run_command(command, "--help").stdout or command == "demo"


# run


async def test_run_prints_each_update_as_a_line_and_ends_on_sigterm(tmp_path: Path) -> None:
    write_targets(tmp_path / "targets" / "x.json", "w:1")
    async with running("run", write(tmp_path / "p.yml", FILES)) as process:
        first = await process.update()
        assert first["manager"] in {"scrape", "notify"}
        assert addresses(await process.update_with("web")) == ["w:1"]
        write_targets(tmp_path / "targets" / "x.json", "w:2")
        assert addresses(await process.update_with("web")) == ["w:2"]
        os.remove(tmp_path / "targets" / "x.json")
        assert (await process.update_with("web"))["removed"] == [f"{tmp_path}/targets/x.json:0"]
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_ends_cleanly_on(tmp_path: Path, number: signal.Signals) -> None:
    async with running("run", write(tmp_path / "p.yml", STATIC), "--output", "none") as process:
        await process.logged("is in force")
        process.signal(number)
        assert await process.end() == 0


async def test_sighup_reloads_and_a_target_that_stays_is_not_touched(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", STATIC)
    async with running("run", config) as process:
        assert addresses(await process.update_with("alpha")) == ["a:1", "a:2"]
        write(config, STATIC + "  - job_name: beta\n    static_configs: [{targets: ['b:1']}]\n")
        process.signal(signal.SIGHUP)
        while "beta" not in (update := await process.update())["sets"] or not update["sets"]["beta"]["updated"]:
            assert "alpha" not in update["sets"]
        assert "alpha" not in update["sets"]
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_sighup_with_a_bad_file_keeps_the_old_configuration_running(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", FILES)
    write_targets(tmp_path / "targets" / "x.json", "w:1")
    async with running("run", config) as process:
        assert addresses(await process.update_with("web")) == ["w:1"]
        write(config, FILES.replace("files", "flies"))
        process.signal(signal.SIGHUP)
        line = await process.logged("reload refused")
        assert f"{config}:4:9" in line
        write_targets(tmp_path / "targets" / "x.json", "w:2")
        assert addresses(await process.update_with("web")) == ["w:2"]
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_run_with_a_bad_file_exits_with_1(tmp_path: Path) -> None:
    async with running("run", write(tmp_path / "p.yml", "nonsense: 1\n")) as process:
        line = await process.logged("nonsense")
        assert "p.yml:1:1" in line
        assert await process.end() == 1


async def test_watch_config_reloads_when_the_file_changes(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", STATIC)
    async with running("run", config, "--watch-config") as process:
        assert addresses(await process.update_with("alpha")) == ["a:1", "a:2"]
        await process.logged("watching")
        write(config, STATIC.replace("a:1", "a:3"))
        assert addresses(await process.update_with("alpha")) == ["a:3", "a:2"]
        write(config, "broken: [")
        await process.logged("reload refused")
        write(config, STATIC.replace("a:1", "a:4"))
        assert addresses(await process.update_with("alpha")) == ["a:4", "a:2"]


async def test_watch_config_follows_scrape_config_files(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", "scrape_config_files: ['jobs/*.yml']\n" + STATIC)
    async with running("run", config, "--watch-config") as process:
        assert addresses(await process.update_with("alpha")) == ["a:1", "a:2"]
        await process.logged("watching")
        write(tmp_path / "jobs" / "beta.yml", STATIC.replace("alpha", "beta"))
        while not addresses(await process.update_with("beta")):
            pass


async def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path: Path) -> None:
    write_targets(tmp_path / "targets" / "x.json", "w:1")
    async with running("run", write(tmp_path / "p.yml", FILES)) as process:
        await process.update_with("web")
        assert process.process.stdout is not None
        await process.process.stdout.aclose()
        write_targets(tmp_path / "targets" / "x.json", "w:2")
        assert await process.end() == 0
        assert not any("Traceback" in line for line in process.log)


async def test_a_reader_that_does_not_read_keeps_no_signal_from_working(tmp_path: Path) -> None:
    many = [f"w:{n}" for n in range(20_000)]  # more than a pipe holds
    write_targets(tmp_path / "targets" / "x.json", *many)
    config = write(tmp_path / "p.yml", FILES)
    async with running("run", config) as process:
        await process.logged("is in force")
        process.signal(signal.SIGHUP)
        await process.logged("is in force")
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_alertmanagers_are_the_notify_manager(tmp_path: Path) -> None:
    text = STATIC + "alerting: {alertmanagers: [{static_configs: [{targets: ['am:9093']}]}]}\n"
    async with running("run", write(tmp_path / "p.yml", text)) as process:
        seen: dict[tuple[str, str], list[str]] = {}
        while len(seen) < 2:
            update = await process.update()
            for name, found in update["sets"].items():
                if found["updated"]:
                    seen[update["manager"], name] = addresses(found)
        assert seen == {("scrape", "alpha"): ["a:1", "a:2"], ("notify", "config-0"): ["am:9093"]}


async def test_the_demo_shows_every_change_and_ends_by_itself() -> None:
    async with running("demo") as process:
        with trio.fail_after(40):
            output = b""
            assert process.process.stdout is not None
            async for data in process.process.stdout:
                output += data
            assert await process.end() == 0
    text = output.decode()
    for seen in ("web-3:80", "web-4:80", "db-1:5432", "half written", "every change was seen"):
        assert seen in text


def test_output_that_can_not_be_written_is_one_line_and_status_1(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", STATIC)
    for command in (["check"], ["run", "--output", "jsonl"], ["run", "--output", "table"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, *command, str(config)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
                check=False,
            )
        assert done.returncode == 1, command
        assert "can't write the output" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run p.yml", "check p.yml", "explain p.yml alpha", "config-diff p.yml p.yml"])
def test_a_closed_stdout_is_told(command: str, tmp_path: Path) -> None:
    write(tmp_path / "p.yml", STATIC)
    script = f"cd {shlex.quote(str(tmp_path))} && exec {shlex.join(COMMAND)} {command} >&-"
    done = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "stdout is closed" in done.stderr


# health, state, damping


async def test_sigusr1_logs_how_everything_fares(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", FILES + "  - job_name: alpha\n    static_configs: [{targets: ['a:1']}]\n")
    write(tmp_path / "targets" / "x.json", "[")
    async with running("--log-level", "warning", "run", config) as process:
        assert addresses(await process.update_with("alpha")) == ["a:1"]
        await process.logged("x.json:1:2")
        process.signal(signal.SIGUSR1)
        assert "1 put in force, 0 refused" in await process.logged("configurations:")
        assert "2 sets, 1 targets, 1 configurations applied" in await process.logged("manager scrape: revision")
        assert "failing" in (line := await process.logged("provider file/0 of web"))
        assert "nothing heard of it yet" in line
        assert "x.json:1:2" in line
        assert "synced, 1 groups, 1 targets, right as of 0s ago, 1 updates" in await process.logged("provider static/1")
        assert "delivered, 0 skipped, lag 0" in await process.logged("subscription jsonl")
        await process.logged("manager notify")
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_a_state_file_outlives_a_kill_and_is_marked_stale_until_the_truth_is_known(tmp_path: Path) -> None:
    config = write(tmp_path / "p.yml", FILES)
    targets = write_targets(tmp_path / "targets" / "x.json", "w:1", "w:2")
    arguments = ("--log-level", "debug", "run", config, "--state-file", tmp_path / "state")
    async with running(*arguments) as process:
        assert addresses(await process.update_with("web")) == ["w:1", "w:2"]
        write_targets(targets, "w:3")
        assert addresses(await process.update_with("web")) == ["w:3"]
        while "w:3" not in (tmp_path / "state").read_text():
            await process.logged(f"{tmp_path}/state was written")
        process.signal(signal.SIGKILL)
        assert await process.end() == -signal.SIGKILL
    write(targets, "[")
    async with running(*arguments) as process:
        update = await process.update()
        while update["manager"] != "scrape":
            update = await process.update()
        assert addresses(update["sets"]["web"]) == ["w:3"], "at once, though its file can't be read"
        assert update["stale"].keys() == {"web"}
        write_targets(targets, "w:3")
        while (update := await process.update())["manager"] != "scrape":
            pass
        assert (update["sets"], "stale" in update) == ({}, False), "what was restored has been found to be true"
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
    assert sorted(os.listdir(tmp_path)) == ["p.yml", "state", "state.notify", "targets"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--state-file", "./p.yml"], "same file"),
        (["--state-file", "missing/state"], "no folder"),
        (["--state-max-age", "1d"], "no use without --state-file"),
    ],
)
def test_state_files_that_can_not_be_meant_are_refused(tmp_path: Path, options: list[str], told: str) -> None:
    config = write(tmp_path / "p.yml", STATIC)
    done = run_command("run", config, *options, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert config.read_text() == STATIC


@pytest.mark.parametrize("name", ["p.notify", "p.new", "p.notify.new"])
def test_the_configuration_is_not_taken_for_what_is_beside_a_state_file(tmp_path: Path, name: str) -> None:
    config = tmp_path / name
    config.write_text(STATIC)
    assert "same file" in run_command("run", config, "--state-file", tmp_path / "p").stderr
    assert config.read_text() == STATIC


async def test_what_is_too_old_is_not_restored(tmp_path: Path) -> None:
    write_targets(tmp_path / "targets" / "x.json", "w:1")
    config, state = write(tmp_path / "p.yml", FILES), tmp_path / "state"
    async with running("run", config, "--state-file", state) as process:
        assert addresses(await process.update_with("web")) == ["w:1"]
        process.signal(signal.SIGTERM)
        assert await process.end() == 0
    write(tmp_path / "targets" / "x.json", "[")
    async with running("run", config, "--state-file", state, "--state-max-age", "1ms") as process:
        await process.logged("what file had found for web is not restored")
        update = await process.update()
        while update["manager"] != "scrape":
            update = await process.update()
        assert update["sets"] == {"web": {"updated": [], "removed": []}}
        assert "stale" not in update
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_removals_wait_and_additions_do_not(tmp_path: Path) -> None:
    targets = write_targets(tmp_path / "targets" / "x.json", "w:1", "w:2")
    config = write(tmp_path / "p.yml", FILES)
    async with running("run", config, "--removal-delay", "500ms") as process:
        assert addresses(await process.update_with("web")) == ["w:1", "w:2"]
        began = trio.current_time()
        write_targets(targets, "w:1", "w:3")
        assert addresses(await process.update_with("web")) == ["w:1", "w:3", "w:2"]
        assert addresses(await process.update_with("web")) == ["w:1", "w:3"]
        assert trio.current_time() - began > 0.5
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_relabel_prints_final_labels_and_follows_files_and_rules(tmp_path: Path) -> None:
    rules = """\
    relabel_configs:
      - {source_labels: [__address__], regex: "b.*", action: drop}
"""
    config = write(tmp_path / "p.yml", FILES + rules)
    write_targets(tmp_path / "targets" / "x.json", "a:1", "b:1")
    async with running("run", config, "--output", "jsonl", "--relabel") as process:
        update = await process.update_with("web")
        assert addresses(update) == ["a:1"]
        (found,) = update["updated"]
        assert (found["targets"][0]["instance"], found["labels"]) == ("a:1", {})
        write_targets(tmp_path / "targets" / "x.json", "b:2")
        assert (await process.update())["sets"]["web"]["removed"] == [f"{tmp_path}/targets/x.json:0"]
        write(config, FILES)
        process.signal(signal.SIGHUP)
        assert addresses(await process.update_with("web")) == ["b:2"]
        process.signal(signal.SIGTERM)
        assert await process.end() == 0


async def test_a_bad_file_is_logged_once_and_again_when_it_is_mended(tmp_path: Path) -> None:
    bad = write(tmp_path / "targets" / "x.json", "[")
    async with running("run", write(tmp_path / "p.yml", FILES)) as process:
        assert "x.json:1:2" in await process.logged("level=WARNING")
        write_targets(bad, "w:1")
        assert "x.json:1:2" in await process.logged("no longer")
        assert addresses(await process.update_with("web")) == ["w:1"]
