import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--head-type", "forest"], "--head-type is one of linear, mix, mlp, fasttext, attention, textcnn, auto"),
        (["--task", "ranking"], "--task is one of single_label, multi_label, regression"),
        (["--layers", "last"], "--layers are numbers with commas between"),
    ],
)
def test_an_option_that_makes_no_sense_is_told_in_a_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "trunkline.cli", "train", str(tmp_path / "data.csv"), "--head", "x", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert 1 == ended.returncode
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
