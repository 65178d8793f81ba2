"""What measures: the frame of the benchmarks, the tables, the page, the model, and what the README quotes."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import trio

import benchmarks
from benchmarks import readme, scale
from benchmarks.figures import FLOOR, OURS, Figure, at_least, at_most, interleaved, missing, ratio
from benchmarks.page import page
from benchmarks.report import Results, table, text

PEER = "Prometheus 0.0.0"
MACHINE = dict.fromkeys(("processor", "cores", "memory", "system", "Python", "Prometheus"), "?")
SOURCES = Path(benchmarks.__file__).parent


def results_of(*figures: Figure) -> Results:
    return Results("2020-02-02T00:00:00+00:00", False, MACHINE, {"one": list(figures)})


def some_results() -> Results:
    times = [n / 1e6 for n in range(1, 41)]
    return results_of(
        *(Figure.of("a <change>", times, size=size, aim=at_most(1e-5)) for size in (10, 1_000)),
        Figure.of("a <change>", times, who=FLOOR, note='"bare" & plain'),
        *(Figure.of("memory", 1e6, "B", who=who, size=10) for who in (OURS, PEER)),
        missing("memory", "another", "it is not there"),
    )


# Figures


def test_the_spread_of_few_samples_is_all_and_of_many_the_middle_eight_tenths() -> None:
    assert Figure.of("x", [3, 1, 2]).spread == (1, 3)
    assert Figure.of("x", range(101)).spread == (10, 90)
    assert Figure.of("x", [4, 1, 2, 3]).median == 2.5


def test_an_aim_is_judged_by_the_median_and_without_samples_not_at_all() -> None:
    assert Figure.of("x", [1, 2, 9], aim=at_most(2)).met is True
    assert Figure.of("x", [1, 2, 9], aim=at_most(1.9)).met is False
    assert Figure.of("x", 5, aim=at_least(5)).met is True
    assert Figure.of("x", 4, aim=at_least(5)).met is False
    assert Figure.of("x", 4).met is None
    assert missing("x", OURS, "why").met is None


def test_a_ratio_is_taken_round_by_round_and_of_medians_where_the_rounds_differ() -> None:
    one, other = Figure.of("x", [2, 30]), Figure.of("x", [1, 10], who=FLOOR)
    assert ratio("x", one, other).samples == (2, 3)
    assert ratio("x", one, Figure.of("x", [1, 2, 3], who=FLOOR)).samples == (8,)
    assert ratio("x", one, missing("x", FLOOR, "why")).note == "why"


async def test_contenders_take_turns_and_another_one_begins_each_round() -> None:
    order = []

    async def measure(who: str) -> float:
        await trio.lowlevel.checkpoint()
        order.append(who)
        return float(len(order))

    samples = await interleaved(3, {who: partial(measure, who) for who in "abc"})
    assert "".join(order) == "abcbcacab"
    assert samples == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


# Text


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.0000015, "s", "1.5 µs"),
        (0.99999, "s", "1,000 ms"),
        (1234.0, "s", "1,234 s"),
        (478.0, "B", "478 B"),
        (4e9, "B", "4 GB"),
        (41686.4, "/s", "41,686/s"),
        (2.5, "/s", "2.5/s"),
        (1.5, "×", "1.50 ×"),
        (1000.0, "", "1,000"),
        (0.123456, "", "0.123"),
    ],
)
def test_values_are_told_as_people_read_them(value: float, unit: str, said: str) -> None:
    assert text(value, unit) == said  # type: ignore[arg-type]  # the table above has units only


def test_a_table_is_aligned_and_says_once_what_lines_have_in_common() -> None:
    heading, *lines = table(some_results().benchmarks["one"]).splitlines()
    assert [line.startswith("a <change>") for line in lines] == [True, False, False, False, False, False]
    median_ends = heading.index("median") + len("median")
    for line in lines:
        assert line[median_ends : median_ends + 2] in ("  ", "")
        assert line[median_ends - 1] != " "
    assert lines[0].endswith("≤ 10 µs, missed")
    assert lines[-1].endswith("not measured: it is not there")


# The document


def test_results_come_back_from_json_as_they_were() -> None:
    results = some_results()
    again = Results.from_document(json.loads(results.text()))
    assert again == results
    assert again.text() == results.text()


# The page


class Checker(HTMLParser):
    """Sees that every element is closed in order, that ids are there once, and that nothing is loaded."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith("#"), (tag, name, value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    shown = page(some_results())
    checker = Checker()
    checker.feed(shown)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert not re.search(r"https?:|url\((?!#)|@import", shown)


def test_the_page_draws_what_there_are_figures_for() -> None:
    shown = page(some_results())
    assert shown.count("<figure>") == shown.count('role="img"') == 3
    for caption in ("share of the rounds took", "Medians by size", "shorter is better"):
        assert caption in shown
    assert "a &lt;change&gt;. Medians: trio-sd, 10: 20.5 µs" in shown
    assert "<figure>" not in page(results_of(Figure.of("x", 1)))


def test_the_page_says_in_words_which_aims_are_missed() -> None:
    shown = page(some_results())
    assert "0 of 2 aims are met" in shown
    assert "≤ 10 µs, missed" in shown


def test_the_same_results_make_the_same_page_in_colours_of_the_page() -> None:
    shown = page(some_results())
    assert shown == page(some_results())
    assert not re.search(r"#0000[01]\d", shown)
    assert "var(--who-0)" in shown
    assert "currentColor" in shown


# The model


def test_the_model_finds_the_law_that_the_figures_follow() -> None:
    results = results_of(
        *(Figure.of(scale.CHANGE, 1e-5 * size**0.25, size=size) for size in (100, 1_000, 10_000)),
        *(Figure.of(scale.HEAP, 400 + 1e6 / size, "B", size=size) for size in (10_000, 100_000)),
        *(Figure.of(scale.SYNC, 20_000, "/s", size=size) for size in (1_000, 10_000)),
        Figure.of(scale.SYNC, 10, "/s", who=PEER, size=10),
        Figure.of(scale.RULES, 500_000, "/s"),
    )
    found = {figure.what: figure for figure in scale.run(results)}
    assert found["one change: power of the size that it grows with"].median == pytest.approx(0.25)
    assert found["one change"].median == pytest.approx(1e-5 * 1e6**0.25)
    assert "off by 1.00 ×" in found["one change"].note
    assert found["heap"].median == pytest.approx(1e6 + 400 * 1e6)
    assert "targets until one change takes 5 ms" not in found  # at 500 ** 4, of which three small sizes say nothing
    assert found["targets until the heap is 4 GB"].median == pytest.approx((4e9 - 1e6) / 400)
    assert found["first sync from ZooKeeper, loopback"].median == pytest.approx(50)
    assert found["targets until the first sync from ZooKeeper takes 15 s"].median == pytest.approx(300_000)
    assert found["relabeling all targets"].median == pytest.approx(10)
    busy = found["targets until changes take 50% of a core, if each target changes once an hour"].median
    assert busy / 3600 * 1e-5 * busy**0.25 == pytest.approx(0.5)
    assert found["targets from which on to shard"].median == pytest.approx(300_000)
    assert "first sync" in found["targets from which on to shard"].note


def test_the_model_tells_how_far_it_is_off() -> None:
    assert scale.Power.fit([(1, 1), (10, 20), (100, 100)]).residual == pytest.approx(2 ** (2 / 3))
    assert scale.Line.fit([(0, 10), (1, 16), (2, 10)]).residual == pytest.approx(0.25)


def test_the_model_says_nothing_of_what_was_not_measured_and_no_limit_of_what_does_not_grow() -> None:
    assert list(scale.run(results_of(Figure.of(scale.CHANGE, 1e-5, size=10)))) == []
    assert list(scale.run(results_of(missing(scale.RULES, OURS, "why")))) == []
    assert scale.Power(1e-5, -0.01, 1).size_at(1) == math.inf
    assert scale.Power(1e-5, 1e-9, 1).size_at(1) == math.inf
    assert scale.Line(1, 0, 0).size_at(2) == math.inf


def names() -> list[re.Pattern[str]]:
    """Return what the benchmarks' sources say in strings; any text where a value is put in."""
    found = []
    for path in SOURCES.glob("*.py"):
        if path.stem in ("scale", "readme", "report", "page", "figures", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.JoinedStr(values=values):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else None for part in values]
                case ast.Constant(value=str(value)):
                    parts = [value]
                case _:
                    continue
            if sum(len(part) for part in parts if part) >= 10:  # else it would be anything
                found.append(re.compile("".join(".+" if part is None else re.escape(part) for part in parts)))
    return found


@pytest.mark.parametrize("what", sorted({*scale.NEEDED, *(what for what, _ in readme.ROWS)}))
def test_what_the_model_and_the_readme_take_from_the_benchmarks_is_there(what: str) -> None:
    assert any(name.fullmatch(what) for name in names())


# The README


def quoted() -> Results:
    sizes = {OURS: 2.0, FLOOR: 1.0, PEER: 40.0}
    return results_of(
        *(Figure.of(what, [each] * 5, who=who, size=size) for what, size in readme.ROWS for who, each in sizes.items())
    )


def test_the_section_tells_ours_the_floor_prometheus_and_how_they_compare() -> None:
    what, size = readme.ROWS[0]
    line = f"| {what} | {size:,} | 2 s | 1 s | 40 s | 2.00 × the floor, 0.05 × Prometheus |"
    assert line in readme.section(quoted()).splitlines()


def test_a_section_without_all_of_its_figures_is_refused() -> None:
    results = quoted()
    del results.benchmarks["one"][0]
    with pytest.raises(LookupError, match=re.escape(readme.ROWS[0][0])):
        readme.section(results)


def test_the_section_is_put_between_the_marks_and_again_changes_nothing() -> None:
    before = f"above\n{readme.BEGIN}old\n{readme.END}\nbelow\n"
    after = readme.put(before, "new 1\\1\n")
    assert after == f"above\n{readme.BEGIN}new 1\\1\n{readme.END}\nbelow\n"
    assert readme.put(after, "new 1\\1\n") == after
    with pytest.raises(LookupError, match="0 times"):
        readme.put("no marks", "new")


def test_kept_results_have_the_same_medians_and_spreads_in_three_samples() -> None:
    results = some_results()
    kept = readme.reduced(results)
    assert [figure.median for figure in kept.figures() if figure.samples] == [
        figure.median for figure in results.figures() if figure.samples
    ]
    assert [figure.spread for figure in kept.figures() if figure.samples] == [
        figure.spread for figure in results.figures() if figure.samples
    ]
    assert max(len(figure.samples) for figure in kept.figures()) == 3
    assert readme.reduced(kept) == kept


def test_the_readme_quotes_the_kept_results_and_nothing_else() -> None:
    shown = readme.README.read_text()
    if readme.KEPT.exists():
        assert readme.KEPT.stat().st_size < 100_000
        told = readme.section(Results.from_document(json.loads(readme.KEPT.read_text())))
    else:  # no run was kept, so there is none to quote
        told = ""
    assert readme.put(shown, told) == shown


# The command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, cwd=SOURCES.parent)


def test_the_help_names_the_benchmarks() -> None:
    done = command("-m", "benchmarks", "--help")
    assert done.returncode == 0
    assert "manager" in done.stdout
    assert "zookeeper" in done.stdout


def test_an_unknown_benchmark_is_refused_with_those_that_there_are() -> None:
    done = command("-m", "benchmarks", "manger")
    assert done.returncode == 2
    assert "no such benchmark: manger; there is: manager, " in done.stderr


def test_an_earlier_run_is_told_of_as_text_document_and_page(tmp_path: Path) -> None:
    earlier, again, html = tmp_path / "r.json", tmp_path / "again.json", tmp_path / "r.html"
    earlier.write_text(some_results().text())
    outputs = "--json", str(again), "--html", str(html)
    done = command("-m", "benchmarks", "--from", str(earlier), "--format", "table", *outputs)
    assert done.returncode == 0, done.stderr
    assert table(some_results().benchmarks["one"]) in done.stdout
    assert again.read_text() == earlier.read_text()
    assert html.read_text() == page(some_results())


def test_nothing_is_imported_that_only_other_benchmarks_need() -> None:
    program = (
        "import sys, runpy; sys.argv = ['benchmarks', 'state', '--quick', '--format', 'table']\n"
        "import benchmarks.state as state; state.run = lambda quick: iter(())\n"
        "runpy.run_module('benchmarks', run_name='__main__')\n"
        "print({'kazoo', 'matplotlib', 'numpy', 'hypercorn'} & sys.modules.keys())"
    )
    done = command("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("set()\n")


def test_without_matplotlib_a_page_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    program = (
        "import sys, runpy; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['benchmarks', 'manager', '--html', {str(tmp_path / 'r.html')!r}]\n"
        "runpy.run_module('benchmarks', run_name='__main__')"
    )
    done = command("-c", program)
    assert done.returncode == 1
    assert "pip install 'trio-sd[bench]'" in done.stderr
    assert done.stdout == ""


def test_a_benchmark_measures() -> None:
    done = command(
        "-c",
        "import benchmarks.relabel as relabel, itertools\n"
        "for figure in itertools.islice(relabel.run(quick=True), 3): print(figure.what, figure.median)",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(float(line.rpartition(" ")[2]) > 0 for line in lines)
