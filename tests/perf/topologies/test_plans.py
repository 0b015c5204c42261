import subprocess
import sys

from perf.topologies.plans import PLANS


def test_plans_have_names_of_their_own() -> None:
    names = [plan.name for plan in PLANS]

    assert len(names) == len(set(names))


def test_labels_are_held_against_those_of_our_engine_without_any_service() -> None:
    assert "plan-one-engine" == PLANS[0].name


def test_whoever_lists_the_plans_waits_for_no_model_library() -> None:
    heavy = "{'tensorflow', 'torch', 'sklearn', 'openvino', 'transformers', 'keras'}"
    code = f"import sys, perf.topologies.plans; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == found.stdout.strip()
