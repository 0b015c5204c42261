from pathlib import Path

import pytest

from trunkline.stack import Stack, StackSettings


@pytest.mark.parametrize(("layers", "given"), [((), None), ((-2, -4), "[-4, -2, -1]"), ((-1,), "[-1]")])
def test_the_embedding_service_is_told_which_layers_to_compute(
    tmp_path: Path, layers: tuple[int, ...], given: str | None
) -> None:
    command = Stack(StackSettings(tmp_path, tmp_path, tmp_path, layers=layers))._embedding_command()

    assert given == (command[command.index("--layers") + 1] if "--layers" in command else None)
