"""What is shown: tables, the live screen, JSON lines, log lines."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from rich.cells import cell_len

from trio_sd.manager import open_manager
from trio_sd.outputs.check import check_document, check_rows, checked_targets
from trio_sd.outputs.jsonl import GroupEncoder, encode_group, encode_update
from trio_sd.outputs.logfmt import LogfmtFormatter
from trio_sd.outputs.screen import Screen
from trio_sd.outputs.table import render, rows_table, targets_table
from trio_sd.outputs.text import printable
from trio_sd.reload import ReloadStatistics
from trio_sd.snapshots import SetChanges
from trio_sd.testing import FakeDiscoverer, group

from .processes import COMMAND


def test_an_update_is_one_line_of_json() -> None:
    changes = {"web": SetChanges((group("f:0", "ä:1", labels={"zone": "a\nb"}),), ("f:1",)), "new": SetChanges()}
    line = encode_update("scrape", 7, changes, {})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "revision": 7,
        "manager": "scrape",
        "sets": {
            "web": {
                "updated": [{"source": "f:0", "targets": [{"__address__": "ä:1"}], "labels": {"zone": "a\nb"}}],
                "removed": ["f:1"],
            },
            "new": {"updated": [], "removed": []},
        },
    }


def test_what_can_not_be_encoded_is_replaced() -> None:
    line = encode_update("m", 1, {"s": SetChanges((group("x", "bad\udcff"),))}, {})
    assert json.loads(line)["sets"]["s"]["updated"][0]["targets"] == [{"__address__": "bad?"}]


def test_groups_that_are_kept_encoded_are_bounded_by_their_size() -> None:
    small, large = group("s", "a:1"), group("l", *[f"a:{n}" for n in range(100)])
    text = encode_group(small)
    encode = GroupEncoder(3 * len(text))
    assert encode(small) == text
    assert encode(small) is encode(small)
    assert encode(large) == encode_group(large)
    assert encode(large) is not encode(large)  # larger than all that is kept
    others = [group(f"{n}", "a:1") for n in range(3)]
    first = encode(others[0])
    for other in others:
        assert encode(other) == encode_group(other)
    assert encode(others[2]) is encode(others[2])
    encode(group("t", "a:1"))
    assert encode(others[0]) is not first  # all were forgotten meanwhile
    kept = encode(others[0])
    encode.forget()
    assert encode(others[0]) is not kept


@pytest.mark.parametrize(
    ("message", "expected"),
    [("plain", "msg=plain"), ("two words", 'msg="two words"'), ('a "b"\n\x1b', r'msg="a \"b\"\n\x1b"'), ("", 'msg=""')],
)
def test_log_lines_are_logfmt(message: str, expected: str) -> None:
    record = logging.LogRecord("trio_sd.x", logging.INFO, __file__, 1, message, (), None)
    record.created = 0.5
    line = LogfmtFormatter().format(record)
    assert line == f"time=1970-01-01T00:00:00.500Z level=INFO source=trio_sd.x {expected}"


def test_a_traceback_is_told_only_when_debugging() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("trio_sd.traced", logging.INFO, __file__, 1, "m", (), sys.exc_info())
    logger = logging.getLogger("trio_sd.traced")
    logger.setLevel(logging.INFO)
    assert "traceback" not in LogfmtFormatter().format(record)
    logger.setLevel(logging.DEBUG)
    assert "ValueError: no" in LogfmtFormatter().format(record)


def test_cells_are_data_not_markup_and_can_not_steer_the_terminal() -> None:
    text = render(rows_table(("A",), [["[red]x[/red] :smile:"], ["\x1b[2Jy"]]), width=80, terminal=False)
    assert "[red]x[/red] :smile:" in text
    assert "\x1b" not in text
    assert printable("a\x1b\u202eb") == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


async def test_the_table_of_targets_has_labels_without_meta_ones() -> None:
    fake = FakeDiscoverer("a", first=[group("f:0", "h:1", labels={"zone": "x", "__meta_filepath": "f"})])
    async with open_manager({"web": [fake.config]}) as manager:
        await manager.wait_synced()
        text = render(targets_table([manager.snapshot()]), width=80, terminal=False)
    assert [line.split() for line in text.splitlines()] == [
        ["SET", "TARGET", "LABELS", "SOURCE"],
        ["web", "h:1", "zone=x", "f:0"],
    ]


def reloads(error: str | None = None) -> ReloadStatistics:
    return ReloadStatistics(succeeded=1, failed=1 if error else 0, last_success=0, last_error=error)


async def test_the_picture_shows_all_targets_or_the_latest_changes_and_failures_first() -> None:
    good = FakeDiscoverer("good", first=[group(f"s{n:03}", f"h{n}:1") for n in range(100)])
    bad = FakeDiscoverer("bad")
    async with open_manager({"many": [good.config], "none": [bad.config]}) as manager, trio.open_nursery() as nursery:
        read, write = os.pipe()
        screen = Screen("p.yml", [manager], lambda: reloads("p.yml:1:1: no"), fd=write)
        nursery.start_soon(screen.run)
        await manager.wait_synced("many")
        await bad.fail(OSError(errno.EIO, "broken"))
        while "broken" not in (text := render(screen.picture(30), width=150, terminal=False)):
            await trio.lowlevel.checkpoint()
        lines = text.splitlines()
        assert "2 sets, 100 targets" in lines[0]
        assert "1 refused" in lines[0]
        assert "p.yml:1:1: no" in lines[1]
        assert lines[2].startswith("subscribers: scrape/screen ")
        assert [line.split()[0] for line in lines[5:7]] == ["fake/1", "fake/0"]
        assert "LATEST CHANGES" in text
        assert len(lines) <= 30
        assert "h99:1" in render(screen.picture(150), width=150, terminal=False)
        nursery.cancel_scope.cancel()
    os.close(read)
    os.close(write)


async def test_check_drops_duplicates_and_tells_dropped_from_refused(tmp_path: Path) -> None:
    from trio_sd import load_config

    path = tmp_path / "p.yml"
    path.write_text("""
scrape_configs:
  - job_name: j
    static_configs: [{targets: ["a:1", "a:1", "drop:1", "url:1"]}]
    relabel_configs:
      - {source_labels: [__address__], regex: "drop.*", action: drop}
      - {source_labels: [__address__], regex: "url.*", target_label: __address__, replacement: "http://x/"}
""")
    config = load_config(path)
    async with open_manager(config.scrape) as manager:
        await manager.wait_synced()
        jobs = checked_targets(config.scrape, manager.snapshot())
    assert [(row[1], row[2]) for row in check_rows(jobs)] == [("a:1", "ok"), ("drop:1", "dropped"), ("url:1", "error")]
    document = json.loads(check_document(jobs))
    assert [entry["labels"].get("instance") for entry in document] == ["a:1", None, None]
    assert document[2]["error"] == '"http://x/" is not a valid hostname'


def on_a_terminal(config: Path, **options: object) -> tuple[subprocess.Popen[bytes], int]:
    """Run ``trio-sd run`` on a new terminal; return the process and the terminal's other end."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(  # the caller waits for it
        [*COMMAND, "run", str(config)],
        stdin=terminal,
        stdout=terminal,
        stderr=options.get("stderr", terminal),  # type: ignore[call-overload]  # one of Popen's options
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(terminal)
    return process, controller


def static(tmp_path: Path) -> Path:
    path = tmp_path / "p.yml"
    path.write_text("scrape_configs: [{job_name: alpha, static_configs: [{targets: ['a:1']}]}]\n")
    return path


def read_until(controller: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        try:
            data = os.read(controller, 65536)
        except OSError:
            data = b""
        assert data, f"the terminal was closed, after {seen!r}"
        seen += data
    return seen


def read_to_the_end(controller: int) -> bytes:
    seen = b""
    with suppress(OSError):  # which is how a terminal says that nobody has it open any more
        while data := os.read(controller, 65536):
            seen += data
    return seen


def test_a_terminal_shows_the_picture_and_is_left_as_it_was(tmp_path: Path) -> None:
    process, controller = on_a_terminal(static(tmp_path))
    try:
        read_until(controller, b"a:1")
        process.send_signal(signal.SIGINT)
        seen = read_to_the_end(controller)
        last_picture = seen.partition(b"\x1b[?25h\x1b[?1049l")[2]
        assert b"a:1" in last_picture
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_a_held_terminal_keeps_no_signal_from_working(tmp_path: Path) -> None:
    process, controller = on_a_terminal(static(tmp_path))
    try:
        read_until(controller, b"a:1")
        # Nobody reads on. The terminal takes some more pictures, then blocks whoever writes.
        config = static(tmp_path)
        for number in range(200):
            config.write_text(config.read_text().replace("a:1", f"a:{number}"))
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)  # a burst of changes, not a wait
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_a_terminal_that_is_closed_ends_the_command(tmp_path: Path) -> None:
    process, controller = on_a_terminal(static(tmp_path))
    try:
        read_until(controller, b"a:1")
    finally:
        os.close(controller)
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_log_that_goes_to_a_file_goes_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process, controller = on_a_terminal(static(tmp_path), stderr=file)
        try:
            read_until(controller, b"a:1")
            process.send_signal(signal.SIGTERM)
            read_to_the_end(controller)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
            os.close(controller)
    assert "is in force" in log.read_text()


@pytest.mark.parametrize("size", [(40, 1), (40, 3), (40, 5), (60, 24)])
async def test_a_picture_with_log_lines_fits_the_terminal(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(size))
    async with open_manager({"s": []}) as manager:
        screen = Screen("p.yml", [manager], lambda: reloads(None))
        for number in range(30):
            screen._log.append(f"12:00:00 WARNING {number} 漢字 {'x' * 60}")
        lines = screen._lines()
        assert len(lines) <= max(1, size[1] - 1)
        assert all(cell_len(line) <= size[0] for line in lines if "WARNING" in line)
        if size[1] >= 5:
            assert "29" in lines[-1], "the newest is the last"
        assert not [line for line in screen._lines(log=False) if "WARNING" in line]
