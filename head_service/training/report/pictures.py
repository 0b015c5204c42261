"""The pictures of a report, as SVG for light and for dark pages. Nothing is set globally."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from head_service.training.calibration import ReliabilityBin
from head_service.training.metrics import Evaluation

INK: Final = "#1d232b"
MUTED: Final = "#667080"
ACCENT: Final = "#0a5fb4"
PAPER: Final = "#fefefe"
DARK: Final = {INK: "#e4e8ee", MUTED: "#98a2b3", ACCENT: "#6db1ff", PAPER: "#12161c"}
"""What each colour is on a dark page: a picture is drawn once, and its colours are exchanged."""

MAX_NAME_LENGTH: Final = 20
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    # Without it identifiers differ from run to run, and so would equal reports.
    "svg.hashsalt": "trunkline",
    # A label such as $x^2$ is a name, no formula.
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
}
_DOCTYPE: Final = re.compile(r"<\?xml[^>]*\?>\s*<!DOCTYPE[^>]*>\s*")
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture twice, as data: URIs, and what it says for those who do not see it. Below *min_width* pixels it scrolls."""

    light: str
    dark: str
    alt: str
    min_width: int = 0


def confusion_picture(evaluation: Evaluation) -> Picture:
    """A square a pair of labels: the count, and as shade the share of the row's texts."""
    labels, matrix = evaluation.labels, evaluation.confusion
    count = len(labels)
    side = min(2.0 + 0.5 * count, 3.5 + 0.27 * count)

    def draw(axes: Axes) -> None:
        for row, counts in enumerate(matrix):
            for column, number in enumerate(counts):
                _draw_cell(axes, row, column, number, sum(counts), size=9.0 if count <= 20 else 6.0)
        _name_axes(axes, labels)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", xlabel="answered", ylabel="true label")

    size = (max(side, 3.2), max(side, 3.2))
    return _picture(draw, size, _confusion_words(evaluation), min_width=min(22 * count + 80, 900))


def reliability_picture(bins: Sequence[ReliabilityBin]) -> Picture:
    """Bars of what came true over what was promised, the diagonal being perfect, and below them how many scores there were."""
    filled = [each for each in bins if each.count]
    total = sum(each.count for each in filled)

    def draw(axes: Axes) -> None:
        width = 1.0 / len(bins)
        axes.bar([each.lower for each in filled], [each.accuracy for each in filled], width * 0.92, align="edge", color=ACCENT)
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
        axes.scatter(
            [each.mean_confidence for each in filled],
            [each.accuracy for each in filled],
            # Areas, so that the eye weighs a bin by its texts.
            s=[12.0 + 110.0 * each.count / total for each in filled],
            color=PAPER,
            edgecolors=INK,
            zorder=3,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score promised", ylabel="share that came true")
        _open(axes)

    return _picture(draw, (4.6, 3.8), _reliability_words(filled))


def scatter_picture(points: Sequence[tuple[float, float]]) -> Picture:
    """A point a text: the true value and the answer; on the diagonal they are equal."""
    truth, found = [point[0] for point in points], [point[1] for point in points]
    low, high = min(*truth, *found), max(*truth, *found)

    def draw(axes: Axes) -> None:
        axes.plot([low, high], [low, high], color=MUTED, linestyle="--", linewidth=1.2)
        axes.scatter(truth, found, s=14, color=ACCENT, alpha=0.45, linewidths=0)
        axes.set(xlabel="true value", ylabel="answered")
        axes.margins(0.04)
        _open(axes)

    words = (
        f"Answers over true values of {len(points)} texts, both between {low:.4g} and {high:.4g}; the dashed line is equality."
    )
    return _picture(draw, (4.6, 4.0), words)


def _picture(draw: Callable[[Axes], None], size: tuple[float, float], alt: str, min_width: int = 0) -> Picture:
    """What *draw* draws on a figure of *size* inches."""
    with drawing():
        figure = Figure(figsize=size)
        draw(figure.add_subplot())
        return picture_of(figure, alt, min_width=min_width, bbox_inches="tight", pad_inches=0.06)


@contextmanager
def drawing(more: dict[Any, Any] | None = None) -> Iterator[None]:
    """Matplotlib's settings for what is drawn and saved meanwhile, *more* among them."""
    with mpl.rc_context({**_SETTINGS, **(more or {})}), warnings.catch_warnings():
        # A label in a script that Matplotlib's own font lacks; the browser has one.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def picture_of(figure: Figure, alt: str, *, dark: Mapping[str, str] = DARK, min_width: int = 0, **saving: Any) -> Picture:
    """*figure* as SVG, and again with the colours that *dark* exchanges; to be called within `drawing`.

    *min_width* in pixels; *saving* as `Figure.savefig` takes it.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, **saving)
    light = _METADATA.sub("", _DOCTYPE.sub("", buffer.getvalue(), count=1), count=1)
    exchanged = re.sub("|".join(dark), lambda colour: dark[colour[0]], light)
    return Picture(_data_uri(light), _data_uri(exchanged), alt, min_width)


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _draw_cell(axes: Axes, row: int, column: int, number: int, of: int, *, size: float) -> None:
    if not number:
        return
    share = number / of
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ACCENT, alpha=0.08 + 0.92 * share, linewidth=0))
    shown = str(number) if number < 10_000 else f"{number / 1_000:.0f}k"
    axes.text(column, row, shown, ha="center", va="center", fontsize=size, color=PAPER if share > 0.5 else INK)


def _name_axes(axes: Axes, labels: Sequence[str]) -> None:
    names = [_name(label) for label in labels]
    places = list(range(len(names)))
    upright = len(names) > 3 or max(map(len, names)) > 8
    size = 9.0 if len(names) <= 20 else 7.0
    axes.set_xticks(places, names, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_linewidth(0.6)


def _name(label: str) -> str:
    """A label short enough for an axis, of characters that XML can hold."""
    kept = "".join(character if character.isprintable() else "\ufffd" for character in label)
    return kept if len(kept) <= MAX_NAME_LENGTH else f"{kept[: MAX_NAME_LENGTH - 1]}…"


def _open(axes: Axes) -> None:
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.grid(visible=True, color=MUTED, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _confusion_words(evaluation: Evaluation) -> str:
    right = sum(row[place] for place, row in enumerate(evaluation.confusion))
    words = f"Confusion matrix of {len(evaluation.labels)} labels: {right} of {evaluation.num_texts} texts are on the diagonal."
    if evaluation.confusions:
        most = evaluation.confusions[0]
        words += f" Most often {_name(most.truth)} was answered {_name(most.found)}: {most.count} times."
    return words


def _reliability_words(filled: Sequence[ReliabilityBin]) -> str:
    widest = max(filled, key=lambda each: abs(each.mean_confidence - each.accuracy))
    return (
        f"Reliability diagram of {sum(each.count for each in filled)} scores in {len(filled)} bins. The bin farthest from the "
        f"diagonal promised {widest.mean_confidence:.0%} and came true in {widest.accuracy:.0%} of {widest.count}."
    )
