"""The page of a run: for each benchmark its table and its plots, in one HTML document that needs nothing else.

What is plotted follows from what the figures of one ``what`` are, and from nothing that a benchmark would have to say:
the distribution of times where there are samples enough, the cost against the size where there are several sizes, and
memory as bars where there are several to compare.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from itertools import cycle, groupby
from types import MappingProxyType
from typing import Final, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .figures import FLOOR, OURS, Figure, Unit
from .report import HEADINGS, NUMBERS, Results, cells, text

__all__ = ["page"]

ENOUGH: Final = 20
"""Samples, from which on their distribution is drawn."""

_POINTS: Final = 200  # of a distribution's curve: no more can be told apart
_DASHES: Final = ("-", "--", ":", "-.")  # one for each size
_MARKERS: Final = ("o", "s", "^", "D", "v", "P")  # one for each who, for whom colours are not enough

# Drawn with colours that nothing else has, which the document then says by name: so they follow light and dark.
_INK: Final = "#000001"
_GRID: Final = "#000002"
_FLOOR: Final = "#000003"
_WHO: Final = tuple(f"#00001{number}" for number in range(6))
_COLOURS: Final = MappingProxyType(
    {_INK: "currentColor", _GRID: "var(--line)", _FLOOR: "var(--floor)"}
    | {colour: f"var(--who-{number})" for number, colour in enumerate(_WHO)}
)
_AXES: Final[Mapping[Unit, str]] = MappingProxyType(
    {"s": "time (s, log scale)", "B": "memory (B, log scale)", "/s": "rate (1/s, log scale)"}
)

_STYLE: Final = """
:root {
  --paper: #fff; --text: #1c232b; --dim: #5d6875; --line: #d5dae0; --good: #1a7f45; --bad: #bf2727;
  --floor: #7b8794; --who-0: #1f62b8; --who-1: #c2571a; --who-2: #1a7f45; --who-3: #8a3fb0; --who-4: #a8841a;
  --who-5: #c23a78;
  color-scheme: light dark; font: 14px/1.45 system-ui, sans-serif;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14191f; --text: #dde4ec; --dim: #94a1b0; --line: #36414c; --good: #5cc98a; --bad: #ff8080;
    --floor: #8d99a6; --who-0: #7db2f5; --who-1: #f0a05a; --who-2: #5cc98a; --who-3: #cf9bf0; --who-4: #e2c05a;
    --who-5: #f58fb8;
  }
}
body { margin: 0 auto; padding: 1rem 1.5rem 3rem; max-width: 76rem; background: var(--paper); color: var(--text); }
h1 { font-size: 1.5rem; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
a { color: inherit; }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .6rem 0; }
dl div { display: flex; gap: .4rem; }
dt, .note { color: var(--dim); }
dd { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93em; width: 100%; }
th, td { text-align: left; vertical-align: baseline; padding: .22rem .8rem .22rem 0; }
thead th { color: var(--dim); font-weight: 500; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; max-width: 24rem; }
tbody.what { border-bottom: 1px solid var(--line); }
td:not(.note) { white-space: nowrap; }
td.note { min-width: 10rem; font-size: .93em; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.met { color: var(--good); }
.missed { color: var(--bad); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.4rem 2rem; }
div + .plots { margin-top: 1.2rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; }
@media print {
  body { padding: 0; max-width: none; font-size: 11px; }
  .plots { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""


def page(results: Results) -> str:
    """Return the page that tells of a run. The same results make the same page."""
    sections = "".join(_section(name, found) for name, found in results.benchmarks.items())
    machine = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in results.machine.items()
    )
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in results.benchmarks)
    quick = " With --quick: few rounds and small sizes." if results.quick else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmarks of trio-sd</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Benchmarks of trio-sd</h1>
<p>Measured on {escape(results.began[:10])}.{quick} {_aims(results.figures())}</p>
<dl>{machine}</dl>
<nav>{links}</nav>
</header>
<main>
{sections}</main>
</body>
</html>
"""


def _aims(figures: Iterable[Figure]) -> str:
    """Return how many aims are met, and which are not."""
    judged = [figure for figure in figures if figure.met is not None]
    missed = [figure for figure in judged if not figure.met]
    if not judged:
        return ""
    said = f"{len(judged) - len(missed)} of {len(judged)} aims are met."
    if not missed:
        return said
    names = "; ".join(escape(_name(figure)) for figure in missed)
    return f'{said} <span class="missed">Missed: {names}.</span>'


def _name(figure: Figure) -> str:
    return figure.what if figure.size is None else f"{figure.what}, {figure.size:,}"


def _section(name: str, figures: Sequence[Figure]) -> str:
    drawn = "".join(_plots(name, figures))
    plots = f'<div class="plots">\n{drawn}</div>\n' if drawn else ""
    return f'<section id="{escape(name)}">\n<h2>{escape(name)}</h2>\n{_table(figures)}{plots}</section>\n'


def _table(figures: Sequence[Figure]) -> str:
    def classes(column: int, figure: Figure) -> str:
        if column in NUMBERS:
            return ' class="number"'
        match HEADINGS[column]:
            case "aim" if figure.met is not None:
                return f' class="{"met" if figure.met else "missed"}"'
            case "note":
                return ' class="note"'
        return ""

    head = "".join(
        f'<th scope="col"{" class=number" if column in NUMBERS else ""}>{name}</th>'
        for column, name in enumerate(HEADINGS)
    )
    bodies = []
    for what, group in groupby(figures, lambda figure: figure.what):
        rows = []
        for figure in group:
            rest = list(enumerate(cells(figure)))[1:]
            rows.append("".join(f"<td{classes(column, figure)}>{escape(cell)}</td>" for column, cell in rest))
        rows[0] = f'<th scope="rowgroup" rowspan="{len(rows)}">{escape(what)}</th>{rows[0]}'
        bodies.append('<tbody class="what">' + "".join(f"<tr>{row}</tr>\n" for row in rows) + "</tbody>\n")
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n{"".join(bodies)}</table></div>\n'


# The plots


def _plots(name: str, figures: Sequence[Figure]) -> Iterable[str]:
    by_what: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.samples:
            by_what.setdefault(figure.what, []).append(figure)
    for what, found in by_what.items():
        for draw in (_distribution, _against_size, _bars):
            with _style(f"{name} {what} {draw.__name__}"):
                drawing = Drawing(figsize=(6.0, 3.5), layout="constrained")
                caption = draw(drawing, found)
                if caption is not None:
                    yield _figure(_svg(drawing), what, caption, found)


def _style(key: str) -> AbstractContextManager[None]:
    """Have what is drawn meanwhile look like the page, with ids of its own, which are the same every time."""
    return mpl.rc_context(
        {
            "svg.hashsalt": key,
            "svg.fonttype": "none",  # text stays text, in the reader's own font
            "font.family": ["sans-serif"],
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, which asks it how much room text takes
            "font.size": 9.0,
            "text.color": _INK,
            "axes.edgecolor": _GRID,
            "axes.labelcolor": _INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": _GRID,
            "grid.linewidth": 0.6,
            "xtick.color": _GRID,
            "ytick.color": _GRID,
            "xtick.labelcolor": _INK,
            "ytick.labelcolor": _INK,
            "lines.linewidth": 1.6,
            "legend.frameon": False,
        }
    )


def _figure(svg: str, what: str, caption: str, figures: Sequence[Figure]) -> str:
    values = "; ".join(f"{_curve(figure)}: {text(figure.median, figure.unit)}" for figure in figures)
    label = escape(f"{what}. Medians: {values}.")
    return (
        f"<figure>\n<figcaption><strong>{escape(what)}.</strong> {escape(caption)}</figcaption>\n"
        f'<svg role="img" aria-label="{label}" {svg}\n</figure>\n'
    )


def _svg(drawing: Drawing) -> str:
    """Return a drawing as it stands in a page, from its view box on."""
    written = io.StringIO()
    drawing.savefig(
        written, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    # Without the prolog of a document of its own, the names of its formats, and a size that is not the page's.
    found = re.search(r'<svg [^>]*?(viewBox="[^"]*")[^>]*(>.*)', written.getvalue(), re.DOTALL)
    assert found is not None
    body = re.sub(r'<g id="[^"]*"', "<g", found[2].rstrip())  # names that every drawing has, and nothing refers to
    return found[1] + re.sub(r"#0000[01][0-9]", lambda colour: _COLOURS.get(colour[0], colour[0]), body)


def _distribution(drawing: Drawing, figures: Sequence[Figure]) -> str | None:
    """Draw which share of the samples is no more than how much."""
    drawn = [figure for figure in figures if figure.unit == "s" and len(figure.samples) >= ENOUGH]
    if not drawn:
        return None
    axes = drawing.add_subplot()
    colours, dashes = _look(figures)
    for figure in drawn:
        ordered = sorted(figure.samples)
        count = len(ordered)
        step = max(1, count // _POINTS)
        ranks = [*range(0, count - 1, step), count - 1]
        axes.plot(
            [ordered[0], *(ordered[rank] for rank in ranks)],
            [0, *((rank + 1) / count for rank in ranks)],
            drawstyle="steps-post",
            color=colours[figure.who],
            linestyle=dashes[figure.size],
            label=_curve(figure),
        )
    low, high = (function(sample for figure in drawn for sample in figure.samples) for function in (min, max))
    _logarithmic(axes, "x", low, high, "s")
    axes.set_xlabel(_AXES["s"])
    axes.set_ylabel("share of the rounds (%)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f}"))
    axes.set_ylim(0, 1.02)
    drawing.legend(loc="outside lower center", ncols=2)
    return "Which share of the rounds took no longer than that; further left is quicker, steeper is steadier."


def _against_size(drawing: Drawing, figures: Sequence[Figure]) -> str | None:
    """Draw medians against the size, with the spread around them."""
    drawn = [figure for figure in figures if figure.unit in _AXES and figure.median > 0]
    sizes = sorted({figure.size for figure in drawn if figure.size is not None})
    if len(sizes) < 2:
        return None
    axes = drawing.add_subplot()
    colours, _ = _look(figures)
    for marker, who in zip(cycle(_MARKERS), dict.fromkeys(figure.who for figure in drawn)):
        points = sorted((figure.size, figure) for figure in drawn if figure.who == who and figure.size is not None)
        if points:
            at = [size for size, _ in points]
            axes.plot(
                at, [figure.median for _, figure in points], marker=marker, markersize=4, color=colours[who], label=who
            )
            lows, highs = zip(*(figure.spread for _, figure in points), strict=True)
            axes.fill_between(at, lows, highs, color=colours[who], alpha=0.2, linewidth=0)
        for figure in drawn:
            if figure.who == who and figure.size is None:  # it depends on no size
                axes.axhline(figure.median, color=colours[who], linestyle="--", label=f"{who}, at any size")
    unit = drawn[0].unit
    ends = [end for figure in drawn for end in figure.spread if end > 0]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.set_xlabel("size (count, log scale)")
    _logarithmic(axes, "y", min(ends), max(ends), unit)
    axes.set_ylabel(_AXES[unit])
    drawing.legend(loc="outside lower center", ncols=2)
    better = "higher is better" if unit == "/s" else "lower is better, and flat is independent of the size"
    return f"Medians by size; the band holds the middle eight tenths of the rounds; {better}."


def _bars(drawing: Drawing, figures: Sequence[Figure]) -> str | None:
    """Draw who takes how much memory."""
    drawn = [figure for figure in figures if figure.unit == "B"]
    if len({figure.who for figure in drawn}) < 2:
        return None
    drawing.set_size_inches(6.0, 0.9 + 0.34 * len(drawn))
    axes = drawing.add_subplot()
    colours, _ = _look(figures)
    widths = [figure.median for figure in drawn]
    bars = axes.barh(range(len(drawn)), widths, height=0.65, color=[colours[figure.who] for figure in drawn])
    axes.bar_label(bars, [text(width, "B") for width in widths], padding=4)
    axes.set_yticks(range(len(drawn)), [_curve(figure) for figure in drawn])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, "B")))
    axes.set_xlabel("memory (B)")
    return "Medians; shorter is better."


def _look(figures: Sequence[Figure]) -> tuple[Mapping[str, str], Mapping[int | None, str]]:
    """Return the colour of each who, and the dashes of each size."""
    whos = dict.fromkeys(figure.who for figure in figures)
    peers = [who for who in whos if who not in (OURS, FLOOR)]
    colours = {OURS: _WHO[0], FLOOR: _FLOOR}
    colours |= {who: _WHO[1 + number % (len(_WHO) - 1)] for number, who in enumerate(peers)}
    sizes = sorted({figure.size for figure in figures if figure.size is not None})
    dashes: dict[int | None, str] = {size: _DASHES[number % len(_DASHES)] for number, size in enumerate(sizes)}
    return colours, dashes | {None: "-"}


def _curve(figure: Figure) -> str:
    return figure.who if figure.size is None else f"{figure.who}, {figure.size:,}"


def _logarithmic(axes: Axes, name: Literal["x", "y"], low: float, high: float, unit: Unit) -> None:
    """Make an axis logarithmic, with ticks that people read, and more than one of them."""
    middle, factor = math.sqrt(low * high), max(2.0, 1.15 * math.sqrt(high / low))
    axes.set(**{f"{name}scale": "log", f"{name}lim": (middle / factor, middle * factor)})
    axis = axes.xaxis if name == "x" else axes.yaxis
    decades = 2 * math.log10(factor)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value, unit)))
