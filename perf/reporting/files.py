"""The files of a run: results.json for programs, report.html for people, and the figures for documents."""

from pathlib import Path
from typing import Final

from head_service.repository import replace_file
from perf.results import Results, encoded

JSON_NAME: Final = "results.json"
HTML_NAME: Final = "report.html"


def save_results(results: Results, folder: Path) -> Path:
    """results.json in *folder*, made when it is not there: the one before it stands until the new one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / JSON_NAME, encoded(results))
    return folder / JSON_NAME


def write_pages(results: Results, folder: Path) -> Path:
    """report.html and the figures as PNG in *folder*, made when it is not there; the path of the page."""
    # Matplotlib and jinja2 take a second and 50 MB beside what is measured: only when all of it is over.
    from perf.reporting.figures import write_pngs  # noqa: PLC0415
    from perf.reporting.page import render_page  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    write_pngs(results, folder)
    replace_file(folder / HTML_NAME, render_page(results).encode())
    return folder / HTML_NAME
