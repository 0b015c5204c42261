"""A report as one HTML page that asks nobody for anything: no script, no font, no picture from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jinja2
from markupsafe import Markup

from head_service.training.metrics import CONFIDENCE, Evaluation, LabelEvaluation
from head_service.training.report.facts import LiveVersion, Report, TrainingFacts
from head_service.training.report.pictures import Picture, confusion_picture, reliability_picture, scatter_picture
from head_service.training.report.style import STYLE
from head_service.training.report.template import TEMPLATE

METRIC_NAMES: Final = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "calibration_error": "Expected calibration error",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "spearman": "Rank correlation (Spearman)",
}
LESS_IS_BETTER: Final = frozenset({"calibration_error", "mae", "rmse"})
TASK_NAMES: Final = {"single_label": "one label a text", "multi_label": "any number of labels a text", "regression": "a number"}
MAX_OPEN_ROWS: Final = 40
"""A table of more rows is folded, and its most telling rows stand above it."""

NUM_WEAKEST: Final = 15
NUM_CHANGES: Final = 10


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell or heading; *share*, 0 to 1, draws a bar; *kind* is a class of the style sheet."""

    words: str
    kind: str = ""
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first cell names its row. *folded*: what to press to see it."""

    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    title: str
    words: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    picture: Picture | None = None
    picture_caption: str = ""


@dataclass(frozen=True, slots=True)
class Big:
    """The metric a version is judged by, in words."""

    name: str
    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class Page:
    """All that the frame is filled with; *summary* has (name, words, whether they are code)."""

    title: str
    subtitle: str
    headline: Big
    summary: tuple[tuple[str, str, bool], ...]
    sections: tuple[Section, ...]


def render_page(report: Report) -> str:
    """The page of *report*; equal reports are equal pages."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    # The style is ours and holds quotes; everything else is escaped.
    return environment.from_string(TEMPLATE).render(page=_page(report), style=Markup(STYLE))  # noqa: S704


def _page(report: Report) -> Page:
    facts, evaluation = report.facts, report.evaluation
    name = METRIC_NAMES[evaluation.headline.name]
    interval = f"{CONFIDENCE:.0%} interval {_ratio(evaluation.headline.low)} to {_ratio(evaluation.headline.high)}"
    sections = (
        _comparison(evaluation, report.live) if report.live else None,
        _candidates(facts, name) if facts.candidates else None,
        _metrics(evaluation),
        _per_label(evaluation) if evaluation.per_label else None,
        _confusion(evaluation) if evaluation.task == "single_label" else None,
        _scatter(report) if report.points else None,
        _reliability(evaluation) if any(each.count for each in evaluation.reliability) else None,
        _distribution(report) if evaluation.per_label else None,
        _errors(report),
    )
    return Page(
        title=f"{facts.head}, version {facts.version}",
        subtitle=f"Training report{f' of {facts.created}' if facts.created else ''}",
        headline=Big(name, _ratio(evaluation.headline.value), f"{interval}, on {evaluation.num_texts:,} held-out texts"),
        summary=_summary(facts, evaluation),
        sections=tuple(section for section in sections if section is not None),
    )


def _summary(facts: TrainingFacts, evaluation: Evaluation) -> tuple[tuple[str, str, bool], ...]:
    labels = "" if evaluation.task == "regression" else f", {len(evaluation.labels):,} labels"
    temperature = () if facts.temperature is None else (("Temperature", f"{facts.temperature:.3f}", False),)
    return (
        ("Head type", facts.head_type, False),
        ("Task", TASK_NAMES[evaluation.task] + labels, False),
        ("Trunk", facts.trunk, False),
        ("View", facts.view, False),
        *((("Preprocessing", ", ".join(facts.preprocess), False),) if facts.preprocess else ()),
        *((("Long texts", f"in windows, {facts.long_text} of their scores", False),) if facts.long_text != "cut" else ()),
        ("Texts", f"{facts.num_train:,} to train, {facts.num_test:,} held out", False),
        ("Time", f"{facts.seconds:.1f} s", False),
        *temperature,
        ("Trunk fingerprint", facts.fingerprint, True),
        ("Training data (SHA-256)", facts.data, True),
        ("Held-out data (SHA-256)", facts.test_data, True),
    )


def _comparison(evaluation: Evaluation, live: LiveVersion) -> Section:
    rows = []
    for key, name, new in _metrics_of(evaluation):
        old = getattr(live.evaluation, key)
        if old is not None:
            better = (new < old) if key in LESS_IS_BETTER else (new > old)
            rows.append((Cell(name), _number(_ratio(new)), _number(_ratio(old)), _change(new - old, better=better)))
    table = Table(
        f"This version beside version {live.version}",
        (Cell("Metric"), _number("This"), _number(f"Version {live.version}"), _number("Difference")),
        tuple(rows),
    )
    changes = _label_changes(evaluation, live) if live.same_data else ()
    return Section("Compared with the live version", (_verdict(evaluation, live),), (table, *changes))


def _verdict(evaluation: Evaluation, live: LiveVersion) -> str:
    if not live.same_data:
        return "The two were measured on different texts, so a difference between them says little."
    old, new = live.evaluation.headline, evaluation.headline
    if new.low <= old.value <= new.high:
        return (
            "Both were measured on the same texts. The live version is inside this one's interval: the difference may be chance."
        )
    way = "better" if new.value > old.value else "worse"
    return f"Both were measured on the same texts. This version is {way}: the live one is outside its interval."


def _label_changes(evaluation: Evaluation, live: LiveVersion) -> tuple[Table, ...]:
    before = {each.label: each.f1 for each in live.evaluation.per_label}
    changed = [(each.f1 - before[each.label], each) for each in evaluation.per_label if each.label in before]
    largest = sorted((pair for pair in changed if pair[0]), key=lambda pair: -abs(pair[0]))[:NUM_CHANGES]
    if not largest:
        return ()
    rows = [
        (Cell(each.label), _number(_ratio(each.f1)), _number(_ratio(each.f1 - change)), _change(change, better=change > 0))
        for change, each in largest
    ]
    columns = (Cell("Label"), _number("F1"), _number(f"Version {live.version}"), _number("Difference"))
    return (Table("The labels whose F1 changed most", columns, tuple(rows)),)


def _candidates(facts: TrainingFacts, metric: str) -> Section:
    best_first = sorted(facts.candidates, key=lambda each: -each.value)
    rows = [(Cell(each.head_type), _bar(each.value), _number(f"{each.seconds:.1f} s")) for each in best_first]
    table = Table("Head types by cross-validation", (Cell("Head type"), _number(metric), _number("Time")), tuple(rows))
    return Section("Head types compared", (f"Chosen: {facts.head_type}.",), (table,))


def _metrics(evaluation: Evaluation) -> Section:
    rows = [(Cell(name), _number(_ratio(value))) for _, name, value in _metrics_of(evaluation)]
    words = ("Accuracy is the share of texts with every label right.",) if evaluation.task == "multi_label" else ()
    return Section("Metrics", words, (Table("On the held-out texts", (Cell("Metric"), _number("Value")), tuple(rows)),))


def _metrics_of(evaluation: Evaluation) -> list[tuple[str, str, float]]:
    """(field, name, value) of what the task has. Micro F1 is the accuracy where a text has one label: it is not told twice."""
    twice = {"micro_f1"} if evaluation.task == "single_label" else set()
    found = [(key, name, getattr(evaluation, key)) for key, name in METRIC_NAMES.items() if key not in twice]
    return [(key, name, value) for key, name, value in found if value is not None]


def _per_label(evaluation: Evaluation) -> Section:
    several = evaluation.task == "multi_label"
    words = ("A label is answered where its score is at least its threshold.",) if several else ()
    every = _label_table(f"All {len(evaluation.labels)} labels", evaluation.per_label, thresholds=several)
    if len(evaluation.labels) <= MAX_OPEN_ROWS:
        return Section("Labels", words, (every,))
    weakest = sorted(evaluation.per_label, key=lambda each: each.f1)[:NUM_WEAKEST]
    above = _label_table(f"The {NUM_WEAKEST} labels with the lowest F1", weakest, thresholds=several)
    return Section("Labels", words, (above, _folded(every, f"All {len(evaluation.labels)} labels")))


def _label_table(caption: str, labels: Sequence[LabelEvaluation], *, thresholds: bool) -> Table:
    names = ["F1", "Precision", "Recall", "Texts", "Answered", *(["Threshold"] if thresholds else [])]
    return Table(caption, (Cell("Label"), *map(_number, names)), tuple(_label_row(each) for each in labels))


def _label_row(each: LabelEvaluation) -> tuple[Cell, ...]:
    numbers = [_ratio(each.precision), _ratio(each.recall), f"{each.support:,}", f"{each.found:,}"]
    if each.threshold is not None:
        numbers.append(_ratio(each.threshold))
    return (Cell(each.label), _bar(each.f1), *map(_number, numbers))


def _confusion(evaluation: Evaluation) -> Section:
    most = Table(
        "The labels most often confused",
        (Cell("True label"), Cell("Answered"), _number("Texts")),
        tuple((Cell(each.truth), Cell(each.found), _number(f"{each.count:,}")) for each in evaluation.confusions),
    )
    tables = (most,) if evaluation.confusions else ()
    if not evaluation.confusion:
        words = f"With {len(evaluation.labels)} labels a matrix cannot be read; these are its largest cells."
        return Section("Confusions", (words,) if tables else ("No text was answered wrongly.",), tables)
    matrix = Table(
        "Texts by true label (rows) and answered label (columns)",
        (Cell("True label"), *map(_number, evaluation.labels)),
        tuple(
            (Cell(label), *(_number(str(count)) for count in row))
            for label, row in zip(evaluation.labels, evaluation.confusion, strict=True)
        ),
        folded="The matrix as a table",
    )
    folded = tuple(_folded(table, table.caption) for table in tables)
    caption = "Rows are true labels, columns what was answered; the darker, the more of the row's texts."
    return Section("Confusion matrix", (), (*folded, matrix), confusion_picture(evaluation), caption)


def _scatter(report: Report) -> Section:
    rows = [(Cell(each.name), _number(_ratio(each.truth)), _number(_ratio(each.found))) for each in report.quantiles]
    table = Table("True values and answers", (Cell("Quantile"), _number("True value"), _number("Answered")), tuple(rows))
    caption = "A point is a text; on the dashed line the answer is the true value."
    return Section("Answers over true values", (), (table,), scatter_picture(report.points), caption)


def _reliability(evaluation: Evaluation) -> Section:
    filled = [each for each in evaluation.reliability if each.count]
    what = "the score of each label" if evaluation.task == "multi_label" else "the highest score of each text"
    error = evaluation.calibration_error or 0.0
    words = f"What {what} promised, and how often it came true. Expected calibration error: {_ratio(error)}."
    rows = [
        (
            Cell(f"{each.lower:.2f} to {each.upper:.2f}"),
            _number(f"{each.count:,}"),
            _number(_ratio(each.mean_confidence)),
            _number(_ratio(each.accuracy)),
        )
        for each in filled
    ]
    columns = (Cell("Scores"), _number("Count"), _number("Mean score"), _number("Came true"))
    table = Table("Scores by how high they are", columns, tuple(rows), folded="The diagram as a table")
    caption = "A bar is what came true; on the dashed line it is what was promised. Large points stand for many scores."
    return Section("Reliability", (words,), (table,), reliability_picture(evaluation.reliability), caption)


def _distribution(report: Report) -> Section:
    evaluation, trained = report.evaluation, sum(report.train_counts.values())
    held = sum(each.support for each in evaluation.per_label)
    answered = sum(each.found for each in evaluation.per_label)
    rows = [
        (
            Cell(each.label),
            *((_share(report.train_counts.get(each.label, 0), trained),) if trained else ()),
            _share(each.support, held),
            _share(each.found, answered),
        )
        for each in sorted(evaluation.per_label, key=lambda each: -each.support)
    ]
    columns = (Cell("Label"), *((_number("Training"),) if trained else ()), _number("Held out"), _number("Answered"))
    table = Table("Share of each label", columns, tuple(rows))
    words = "Answers that differ much from the held-out labels mean that some labels are preferred and others neglected."
    folded = _folded(table, f"All {len(rows)} labels") if len(rows) > MAX_OPEN_ROWS else table
    return Section("Label distribution", (words,), (folded,))


def _errors(report: Report) -> Section:
    if not report.errors:
        return Section("Hardest errors", ("There is none: every held-out text was answered rightly.",))
    regression = report.evaluation.task == "regression"
    if regression:
        words = f"The {len(report.errors)} texts of {report.num_errors:,} whose answer is farthest from their number."
    else:
        words = f"Of {report.num_errors:,} errors, the {len(report.errors)} with the least score for the truth."
    words += " Some may be labelled wrongly themselves."
    left_out = () if report.with_texts else ("The texts are left out of this report; find them by their line.",)
    columns = (
        Cell("Line"),
        Cell("Truth", "number" if regression else ""),
        Cell("Answered", "number" if regression else ""),
        _number("Error" if regression else "Loss"),
        *((Cell("Text"),) if report.with_texts else ()),
    )
    kind = "number" if regression else ""
    rows = [
        (
            Cell(str(each.line), "brief"),
            Cell(each.truth or "(none)", kind),
            Cell(each.found or "(none)", kind),
            _number(_ratio(each.loss)),
            *((Cell(each.text, "prose"),) if each.text is not None else ()),
        )
        for each in report.errors
    ]
    return Section("Hardest errors", (words, *left_out), (Table("The worst first", columns, tuple(rows)),))


def _folded(table: Table, words: str) -> Table:
    return Table(table.caption, table.columns, table.rows, folded=words)


def _number(words: str) -> Cell:
    return Cell(words, "number")


def _bar(value: float) -> Cell:
    return Cell(_ratio(value), "number", min(max(value, 0.0), 1.0))


def _share(count: int, total: int) -> Cell:
    share = count / max(total, 1)
    return Cell(f"{share:.1%}", "number", share)


def _change(change: float, *, better: bool) -> Cell:
    size = _ratio(abs(change))
    if float(size) < 0.0005:
        return _number("0.000")
    # In words as well: colour is not seen by everybody.
    words = f"{'+' if change > 0.0 else '−'}{size} {'better' if better else 'worse'}"
    return Cell(words, f"number {'better' if better else 'worse'}")


def _ratio(value: float) -> str:
    """Three places; large and tiny numbers of a regression by their leading digits."""
    return f"{value:.3f}" if value == 0.0 or 0.001 <= abs(value) < 1_000 else f"{value:.4g}"
