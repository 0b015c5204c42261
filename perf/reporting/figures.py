"""The figures of a report: drawn once, kept as SVG for light and dark pages, or written as PNG. Nothing here is global."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from head_service.training.report import pictures
from head_service.training.report.pictures import INK, MUTED, PAPER, Picture
from perf.reporting import digest
from perf.reporting.digest import Line, number, title_of
from perf.reporting.waterfall import Placed, placed
from perf.results import Results, Run

SERIES: Final = {
    "#0a5fb4": "#6db1ff",
    "#c2570c": "#ff9d57",
    "#15803d": "#5fd08a",
    "#7c3aed": "#b79bff",
    "#be185d": "#ff86b8",
    "#0e7490": "#4fd0e6",
    "#7a4b12": "#d6a86a",
    "#4d7c0f": "#b3dd5a",
    "#475569": "#a9b4c2",
    "#b91c1c": "#ff8d7e",
}
"""Colour of each system on a light page, and on a dark one; the first is plan four's."""

DARK: Final = {**pictures.DARK, **SERIES}
MARKERS: Final = "osD^vPX*<>"
MAX_TITLE: Final = 34
MIN_WIDTH: Final = 560
PNG_DPI: Final = 160

_SETTINGS: Final[dict[Any, Any]] = {
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}
"""Beside those of a training report's pictures."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """*draw* fills a figure of *size* inches; *alt* says what it shows to those who do not see it."""

    name: str
    caption: str
    alt: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]


@dataclass(frozen=True, slots=True)
class _Look:
    """How a system is drawn, the same in every figure."""

    colour: str
    marker: str
    title: str


def drawings(results: Results) -> dict[str, Drawing]:
    """Those for which there is something to draw, by name."""
    found = (
        plan_throughput(results),
        latency_throughput(results),
        latency_cdf(results),
        heads_scaling(results),
        waterfall_drawing(results),
        cost(results),
    )
    return {each.name: each for each in found if each is not None}


def picture_of(drawing: Drawing) -> Picture:
    """As SVG in data: addresses, for light and for dark pages."""
    with pictures.drawing(_SETTINGS):
        figure = Figure(figsize=drawing.size, layout="constrained")
        drawing.draw(figure)
        return pictures.picture_of(figure, drawing.alt, dark=DARK, min_width=MIN_WIDTH)


def png_of(drawing: Drawing) -> bytes:
    """As PNG on white."""
    buffer = io.BytesIO()
    with pictures.drawing(_SETTINGS):
        figure = Figure(figsize=drawing.size, layout="constrained", facecolor=PAPER)
        FigureCanvasAgg(figure)
        drawing.draw(figure)
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_pngs(results: Results, folder: Path) -> list[Path]:
    """<name>.png of every drawing into *folder*, which exists; their paths."""
    written = []
    for name, drawing in drawings(results).items():
        path = folder / f"{name}.png"
        path.write_bytes(png_of(drawing))
        written.append(path)
    return written


def looks_of(results: Results) -> dict[str, _Look]:
    """Plan four has the first colour, the others theirs in order; beyond ten, colours come again with other markers."""
    systems = sorted(digest.systems_of(results), key=lambda system: system != digest.OURS)
    colours = list(SERIES)
    # The first colour is kept for plan four even when it was not measured.
    shift = 0 if digest.OURS in systems else 1
    return {
        system: _Look(
            colours[(place + shift) % len(colours)],
            MARKERS[(place + shift + (place + shift) // len(colours)) % len(MARKERS)],
            _short(title_of(results, system)),
        )
        for place, system in enumerate(systems)
    }


def plan_throughput(results: Results) -> Drawing | None:
    """Texts a second of the ranked systems under the main load, a panel a workload."""
    lines = digest.lines_of(results)
    panels: list[tuple[str, list[Line]]] = []
    for workload in digest.workloads_of(results):
        heads = digest.fewest_heads(results, workload)
        same = [each for each in lines if each.workload == workload and each.num_heads == heads]
        load = digest.main_load(same)
        yes, _ = digest.ranked(results, digest.lines_under(same, load, workload, heads))
        if len(yes) > 1 and heads > digest.VECTORS_ALONE:
            panels.append((f"{workload.upper()}, {digest.heads_words(heads)}, {load}", yes))
    if not panels:
        return None
    looks = looks_of(results)

    def draw(figure: Figure) -> None:
        heights = [len(rows) for _, rows in panels]
        for (title, rows), axes in zip(panels, _column(figure, heights), strict=True):
            _draw_bars(axes, title, [(looks[row.system], row.throughput) for row in rows])
        axes.set_xlabel("texts a second")

    best = panels[0][1][0]
    alt = f"Bars of texts a second. On {panels[0][0]} the most are {_told(results, best)}; " + ", ".join(
        _told(results, each) for each in panels[0][1][1:]
    )
    size = (7.4, sum(0.34 * len(rows) + 0.45 for _, rows in panels) + 0.5)
    return Drawing("plan-throughput", "Texts a second; lines are from the least to the most of the rounds.", alt, size, draw)


def _told(results: Results, line: Line) -> str:
    middle = line.throughput.median if line.throughput else 0.0
    return f"{title_of(results, line.system)} with {number(middle)}"


def latency_throughput(results: Results) -> Drawing | None:
    """p99 over texts a second, a line a system, closed and open loops apart; only loads of one text a request."""
    panels = [(workload, curves) for workload in digest.workloads_of(results) if (curves := _curves(results, workload))]
    if not panels:
        return None
    looks = looks_of(results)

    def draw(figure: Figure) -> None:
        axes_of = _row(figure, len(panels))
        for (workload, curves), axes in zip(panels, axes_of, strict=True):
            for (system, kind), points in curves.items():
                look = looks[system]
                closed = kind == "closed"
                axes.plot(
                    *zip(*points, strict=True),
                    color=look.colour,
                    marker=look.marker,
                    markersize=5,
                    markerfacecolor=look.colour if closed else PAPER,
                    linestyle="-" if closed else ":",
                    linewidth=1.6,
                )
            _log(axes, y=True)
            axes.set(title=workload.upper(), xlabel="texts a second")
            axes.set_xlim(left=0)
            _open(axes)
        axes_of[0].set_ylabel("p99, ms")
        _legend(figure, looks, dict.fromkeys(system for _, curves in panels for system, _ in curves))

    names = ", ".join(dict.fromkeys(title_of(results, system) for _, curves in panels for system, _ in curves))
    alt = f"Curves of the 99th percentile of the latency over texts a second, on {len(panels)} workloads, of {names}."
    caption = "Right and low is good. Solid: so many in flight (closed loop); dotted: requests at random times (open loop)."
    return Drawing("latency-throughput", caption, alt, (7.4, 3.9), draw)


Curves = dict[tuple[str, str], list[tuple[float, float]]]


def _curves(results: Results, workload: str) -> Curves:
    """(texts/s, p99) by system and kind of load, in order of the load, of ranked systems; a lone point is no curve."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    heads = digest.fewest_heads(results, workload)
    for line in digest.lines_of(results):
        is_alike = (line.workload, line.num_heads, line.load.texts_a_request) == (workload, heads, 1)
        if is_alike and line.load.kind in {"closed", "poisson"} and digest.is_ranked(results, line):
            p99 = line.latency_ms.get("p99")
            if line.throughput and p99 and p99.median > 0:
                at = line.load.in_flight if line.load.kind == "closed" else line.load.rate
                found.setdefault((line.system, line.load.kind), []).append((at, line.throughput.median, p99.median))
    curves = {key: [(x, y) for _, x, y in sorted(points)] for key, points in found.items()}
    return curves if any(len(points) > 1 for points in curves.values()) else {}


def latency_cdf(results: Results) -> Drawing | None:
    """How latencies are distributed: one text at a time, and under the main load; ranked systems with quantiles."""
    panels = _cdf_panels(results)
    if not panels:
        return None
    looks = looks_of(results)

    def draw(figure: Figure) -> None:
        axes_of = _row(figure, len(panels))
        for (title, runs), axes in zip(panels, axes_of, strict=True):
            for run in runs:
                shares = [100 * place / (len(run.quantiles_ms) - 1) for place in range(len(run.quantiles_ms))]
                axes.plot(run.quantiles_ms, shares, color=looks[run.system].colour, linewidth=1.7)
            _log(axes, x=True)
            axes.set(title=title, xlabel="latency, ms", ylim=(0, 100))
            _open(axes)
        axes_of[0].set_ylabel("% of texts answered")
        _legend(figure, looks, dict.fromkeys(run.system for _, runs in panels for run in runs), with_markers=False)

    title, runs = panels[0]
    medians = ", ".join(
        f"{title_of(results, run.system)} {number(run.quantiles_ms[len(run.quantiles_ms) // 2])} ms" for run in runs
    )
    alt = f"Cumulative distributions of latency. Half of the texts are answered within, {title}: {medians}."
    return Drawing("latency-cdf", "Share of texts answered within a time, of the round in the middle.", alt, (7.4, 3.8), draw)


def _cdf_panels(results: Results) -> list[tuple[str, list[Run]]]:
    panels = []
    for workload in digest.workloads_of(results)[:1]:
        heads = digest.fewest_heads(results, workload)
        lines = [each for each in digest.lines_of(results) if (each.workload, each.num_heads) == (workload, heads)]
        one = next((each.load for each in lines if each.load.kind == "sequential"), None)
        for load in dict.fromkeys(load for load in (one, digest.main_load(lines)) if load is not None):
            alike = digest.lines_under(lines, load, workload, heads)
            runs = [_middle_run(results, each) for each in alike if digest.is_ranked(results, each)]
            if known := [run for run in runs if run is not None]:
                panels.append((f"{workload.upper()}, {load}", known))
    return panels


def _middle_run(results: Results, line: Line) -> Run | None:
    """Of the rounds that count the one whose p50 is in the middle."""
    key = (line.system, line.num_heads, line.workload, line.load)
    runs = [run for run in results.runs if (run.system, run.num_heads, run.workload, run.load) == key]
    fair = sorted(
        (run for run in runs if not run.void and len(run.quantiles_ms) > 1), key=lambda run: run.latency_ms.get("p50", 0.0)
    )
    return fair[len(fair) // 2] if fair else None


def heads_scaling(results: Results) -> Drawing | None:
    """CPU milliseconds a text over the number of heads, both logarithmic; ranked systems."""
    workload, load, found = digest.scaling(results)
    kept = {system: lines for system, lines in found.items() if digest.standing_of(results, system).is_ranked}
    if load is None or not kept:
        return None
    looks = looks_of(results)
    points = {
        system: [(each.num_heads, each.cpu_ms.median) for each in lines if each.cpu_ms and each.num_heads > 0]
        for system, lines in kept.items()
    }
    counts = sorted({count for line in points.values() for count, _ in line})

    def draw(figure: Figure) -> None:
        [axes] = _row(figure, 1)
        for system, line in points.items():
            look = looks[system]
            axes.plot(*zip(*line, strict=True), color=look.colour, marker=look.marker, markersize=5, linewidth=1.8)
        _log(axes, x=True, y=True)
        axes.xaxis.set_major_locator(mpl.ticker.FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="heads asked for with each text", ylabel="CPU ms per text", title=f"{workload.upper()}, {load}")
        _open(axes)
        _legend(figure, looks, points)

    words = "; ".join(
        f"{title_of(results, system)} from {number(line[0][1])} ms with {digest.heads_words(line[0][0])} "
        f"to {number(line[-1][1])} ms with {digest.heads_words(line[-1][0])}"
        for system, line in points.items()
    )
    caption = "CPU time of all processes per text. Whole models cost as many times as much as there are heads; a trunk is shared."
    return Drawing("heads-scaling", caption, f"CPU time per text by number of heads: {words}.", (7.4, 3.9), draw)


def waterfall_drawing(results: Results) -> Drawing | None:
    """Where the time of one request goes."""
    bars = placed(results.waterfall)
    if not bars:
        return None
    colours = list(SERIES)

    def draw(figure: Figure) -> None:
        [axes] = _row(figure, 1)
        whole = max(bar.start + bar.stage.ms for bar in bars)
        for row, bar in enumerate(bars):
            axes.barh(row, bar.stage.ms, left=bar.start, height=0.62, color=colours[0], alpha=_shade(bar))
            axes.text(
                bar.start + bar.stage.ms + whole * 0.01, row, f"{number(bar.stage.ms)} ms", va="center", fontsize=9, color=INK
            )
        names = [f"{'   ' * bar.depth}{_short(bar.stage.name)}" for bar in bars]
        axes.set_yticks(range(len(bars)), names)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="ms since the request was sent", xlim=(0, whole * 1.14), ylim=(len(bars) - 0.4, -0.6))
        _open(axes, only="x")

    words = ", ".join(f"{each.name} {number(each.ms)} ms" for each in results.waterfall)
    caption = "One text at a time through plan four: each stage under the one that it is part of."
    return Drawing("waterfall", caption, f"Where the time of one request goes: {words}.", (7.4, 0.3 * len(bars) + 0.8), draw)


def _shade(bar: Placed) -> float:
    return (0.35, 0.55, 0.8, 1.0)[min(bar.depth, 3)]


def cost(results: Results) -> Drawing | None:
    """Dollars for a million texts, ranked systems under the main load of the first workload."""
    if results.price_per_hour <= 0 or not results.runs:
        return None
    workload = digest.workloads_of(results)[0]
    heads = digest.fewest_heads(results, workload)
    lines = [each for each in digest.lines_of(results) if (each.workload, each.num_heads) == (workload, heads)]
    load = digest.main_load(lines)
    yes, _ = digest.ranked(results, digest.lines_under(lines, load, workload, heads))
    priced = [
        (each, digest.dollars_per_million(each.throughput.median, results.price_per_hour))
        for each in yes
        if each.throughput and each.throughput.median > 0
    ]
    if not priced:
        return None
    looks = looks_of(results)

    def draw(figure: Figure) -> None:
        [axes] = _row(figure, 1)
        values = [(looks[each.system], digest.Measured(price, price, price, 1)) for each, price in priced]
        _draw_bars(axes, f"{workload.upper()}, {digest.heads_words(heads)}, {load}", values, form="${}")
        axes.set_xlabel("dollars per million texts")

    words = ", ".join(f"{title_of(results, each.system)} ${number(price)}" for each, price in priced)
    caption = f"At ${results.price_per_hour:g} an hour for the machine, busy with nothing else."
    return Drawing("cost", caption, f"Dollars per million texts: {words}.", (7.4, 0.34 * len(priced) + 0.95), draw)


def _draw_bars(axes: Axes, title: str, values: Sequence[tuple[_Look, digest.Measured | None]], form: str = "{}") -> None:
    """A bar a system with its number; a line from the least to the most where there are several rounds."""
    known = [(look, value) for look, value in values if value is not None]
    most = max(value.most for _, value in known)
    for row, (look, value) in enumerate(known):
        axes.barh(row, value.median, height=0.64, color=look.colour)
        if value.num_rounds > 1:
            axes.plot([value.least, value.most], [row, row], color=INK, linewidth=1.4)
        axes.text(value.most + most * 0.012, row, form.format(number(value.median)), va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(known)), [look.title for look, _ in known])
    axes.tick_params(axis="y", length=0)
    axes.set(title=title, xlim=(0, most * 1.13), ylim=(len(known) - 0.4, -0.6))
    _open(axes, only="x")


def _column(figure: Figure, heights: Sequence[int]) -> list[Axes]:
    found = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": [height + 1 for height in heights]})
    return [row[0] for row in found]


def _row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _log(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Logarithmic, with numbers as people write them."""
    for wanted, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if wanted:
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, looks: Mapping[str, _Look], systems: Mapping[str, object], *, with_markers: bool = True) -> None:
    """Below all, so that it covers no line."""
    handles = [
        mpl.lines.Line2D(
            [],
            [],
            color=looks[system].colour,
            marker=looks[system].marker if with_markers else "",
            linewidth=2,
            label=looks[system].title,
        )
        for system in systems
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.8)


def _open(axes: Axes, only: str = "both") -> None:
    for edge in ("top", "right", *(("left",) if only == "x" else ())):
        axes.spines[edge].set_visible(False)
    axes.grid(visible=True, axis="x" if only == "x" else "both", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _short(title: str) -> str:
    """A title short enough for an axis, of characters that XML can hold."""
    kept = "".join(character if character.isprintable() else "\ufffd" for character in title)
    return kept if len(kept) <= MAX_TITLE else f"{kept[: MAX_TITLE - 1]}…"
