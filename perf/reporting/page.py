"""A run as one HTML page that asks nobody for anything: no script, no font, no picture from elsewhere."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import jinja2
from markupsafe import Markup

from head_service.training.report.pictures import Picture
from head_service.training.report.style import STYLE
from perf.reporting import tables
from perf.reporting.digest import number
from perf.reporting.figures import Drawing, drawings, picture_of
from perf.reporting.tables import Table
from perf.reporting.template import EXTRA_STYLE, TEMPLATE
from perf.reporting.verdicts import headline, losses, no_losses, summary
from perf.results import CALLER, Machine, Results

TITLE: Final = "BERT classifiers, deployed side by side"
HOW_TO_READ: Final = (
    "Every plan has the same encoder weights, heads and texts. Rounds go in turns, and while one system is measured the "
    "others are stopped. Numbers are medians over rounds, with the least and the most in brackets. "
    f"CPU time is that of all processes of a system, without the caller's ({CALLER}), where it has any.",
    "Plans one and four are asked by a lean generator of HTTP requests. Plans two and three are asked by Python callers that "
    "tokenise and call over gRPC in the harness's own process: that CPU time stands in brackets, and is not in CPU ms/text.",
    "In open loops latency counts from the moment a request was meant to be sent. A run whose generator was late is void, "
    "and gives no number. A system whose labels differ from the reference's by more than they may, or were not compared, "
    "is not ranked.",
)


@dataclass(frozen=True, slots=True)
class Top:
    """The first line: *factors* are (title, words)."""

    title: str
    value: str
    where: str
    factors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page; *figures* are (picture, caption), *facts* (name, words)."""

    title: str
    words: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[tuple[Picture, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.tables or self.figures or self.facts or self.words)


@dataclass(frozen=True, slots=True)
class Page:
    """All that the frame is filled with."""

    title: str
    subtitle: str
    headline: Top | None
    summary: tuple[str, ...]
    losses: tuple[str, ...]
    no_losses: str
    sections: tuple[Section, ...]


def render_page(results: Results) -> str:
    """The page of *results*; equal results are equal pages."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    # The style is ours and holds quotes; everything else is escaped.
    return environment.from_string(TEMPLATE).render(page=page_of(results), style=Markup(STYLE + EXTRA_STYLE))  # noqa: S704


def page_of(results: Results) -> Page:
    """What the page of *results* says, in its order."""
    found = drawings(results)
    began = results.started[:16].replace("T", " ")
    sections = (
        Section(
            "The plans beside each other", (), tuple(tables.plan_tables(results)), _figures(found, "plan-throughput", "cost")
        ),
        Section("Latency", (), _known(tables.bound_table(results)), _figures(found, "latency-throughput", "latency-cdf")),
        Section("More heads", (), _known(tables.heads_table(results)), _figures(found, "heads-scaling")),
        Section("Where the time of a request goes", (), _known(tables.stage_table(results)), _figures(found, "waterfall")),
        Section("Answers", (), _known(tables.answer_table(results), tables.difference_table(results))),
        Section("Ratios, peers and the limit", (), _known(tables.ratio_table(results), tables.limit_table(results))),
        Section("Memory and start-up", (), _known(tables.footprint_table(results))),
        Section("Micro-benchmarks", (), _known(tables.micro_table(results))),
        Section("Not measured, and remarks", results.remarks, _known(tables.missing_table(results))),
        Section("How it was measured", HOW_TO_READ, (), (), _facts(results)),
    )
    return Page(
        title=TITLE,
        subtitle=" · ".join((machine_words(results.machine), f"{began} UTC", f"commit {results.commit[:13]}")),
        headline=_top(results),
        summary=tuple(summary(results)),
        losses=tuple(losses(results)),
        no_losses=no_losses(results),
        sections=tuple(
            replace(section, tables=tuple(map(tables.without_empty_columns, section.tables)))
            for section in sections
            if not section.is_empty
        ),
    )


def machine_words(machine: Machine) -> str:
    """What was measured on, in one line."""
    cores = "1 core" if machine.num_cores == 1 else f"{machine.num_cores} cores"
    return f"{machine.cpu}, {cores}, {machine.memory_bytes / 2**30:.0f} GiB"


def _top(results: Results) -> Top | None:
    found = headline(results)
    if found is None:
        return None
    factors = tuple((title, f"{number(factor)}×") for title, factor in found.factors)
    return Top(found.title, found.value, found.where, factors)


def _figures(found: dict[str, Drawing], *names: str) -> tuple[tuple[Picture, str], ...]:
    return tuple((picture_of(found[name]), found[name].caption) for name in names if name in found)


def _known(*given: Table | None) -> tuple[Table, ...]:
    return tuple(table for table in given if table is not None)


def _facts(results: Results) -> tuple[tuple[str, str], ...]:
    machine = results.machine
    facts = (
        ("Command", results.command),
        ("Started and ended", f"{results.started} to {results.ended}"),
        ("Commit", results.commit),
        ("Processor", machine.cpu),
        ("Cores and memory", f"{machine.num_cores}, {machine.memory_bytes / 2**30:.1f} GiB"),
        ("Of its features", " ".join(machine.features)),
        ("Kernel and Python", ", ".join(filter(None, (machine.kernel, machine.python)))),
        ("Price an hour", f"${results.price_per_hour:g}" if results.price_per_hour else ""),
        ("Versions", _pairs(results.versions.items())),
        ("Settings", _pairs(results.settings.items())),
    )
    return tuple((name, words) for name, words in facts if words)


def _pairs(values: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values)
