"""What a training run leaves for people: one self-contained HTML page, and the same as report.json for programs."""

from head_service.training.report.facts import Candidate, HardError, LiveVersion, Report, TrainingFacts, build_report
from head_service.training.report.files import HTML_NAME, JSON_NAME, write_report

__all__ = [
    "HTML_NAME",
    "JSON_NAME",
    "Candidate",
    "HardError",
    "LiveVersion",
    "Report",
    "TrainingFacts",
    "build_report",
    "write_report",
]
