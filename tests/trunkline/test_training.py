import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clients.wire.catalogue import Metrics, Task
from head_service.training.run import TrainingResult
from trunkline import training
from trunkline.cli import app
from trunkline.stack import Stack, StackSettings


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


@dataclass(slots=True)
class Embedding(Stack):
    """In the place of an embedding service: it takes a few turns of the loop to stop."""

    num_stops: int = 0

    async def start_embedding(self) -> tuple[str, str]:
        return "e:1", ""

    async def stop(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.num_stops += 1


def test_ctrl_c_ends_a_training_at_once_and_what_was_started_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def interrupted(*_: Any, **__: Any) -> None:
        done.append("embedded")
        os.kill(os.getpid(), signal.SIGINT)
        done.append("published")

    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path))
    monkeypatch.setattr(training, "train_head", interrupted)
    stack = Embedding(StackSettings(tmp_path, tmp_path, tmp_path))
    command = training.train_command(
        tmp_path / "a.csv", head="x", text_column=None, label_column=None, test_file=None, stack=stack, say=lambda _: None
    )
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(command)

    assert (["embedded"], 1) == (done, stack.num_stops)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("task", "said"), [("single_label", "accuracy 0.7500, macro F1 0.5000"), ("regression", "R² 0.7500")])
def test_what_came_of_a_training_is_told_in_the_words_of_its_task(task: Task, said: str) -> None:
    result = TrainingResult(3, Metrics(0.75, 0.5, 4, 8, "sha256:0"), None, None)

    assert f"version 3 is published; {said} on 8 held-out texts" == training._said_of(result, task)
