import pytest

from perf.results import Results
from tests.perf.samples import results_of


@pytest.fixture
def empty() -> Results:
    nothing = dict.fromkeys(
        ("runs", "bounds", "footprints", "wire", "answers", "waterfall", "ratios", "limits", "micro", "missing", "remarks"), ()
    )
    return results_of(**nothing)
