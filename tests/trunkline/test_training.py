from pathlib import Path

import pytest
from typer.testing import CliRunner

from trunkline.cli import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--head-type", "forest"], "--head-type is one of linear, mix, mlp, fasttext, attention, textcnn, auto"),
        (["--task", "ranking"], "--task is one of single_label, multi_label, regression"),
        (["--long-text", "shrink"], "--long-text is one of cut, mean, max"),
        (["--layers", "last"], "--layers are numbers with commas between"),
    ],
)
def test_an_option_that_makes_no_sense_is_told_in_a_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, ["train", str(tmp_path / "data.csv"), "--head", "x", *arguments])

    assert 1 == ended.exit_code
    assert said in ended.stderr
    assert isinstance(ended.exception, SystemExit)
