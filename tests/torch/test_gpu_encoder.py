import json
from pathlib import Path

import pytest

from perf.micro.gpu_encoder import SHAPES, batches, flops, main


@pytest.mark.parametrize(("shape", "length", "gflops"), [(SHAPES[0], 128, 22.3), (SHAPES[0], 512, 96.6), (SHAPES[1], 32, 0.689)])
def test_operations_are_counted_as_the_formula_says(shape, length, gflops):
    assert flops(shape, [length]) / 1e9 == pytest.approx(gflops, rel=0.005)
    assert flops(shape, [length, length]) == 2 * flops(shape, [length])


@pytest.mark.parametrize("lengths", [32, (16, 256)])
def test_batches_have_about_the_tokens_asked_for(lengths):
    longest = lengths if isinstance(lengths, int) else lengths[1]
    for rows in batches(lengths, 1_000, 5):
        assert 1_000 <= sum(map(len, rows)) < 1_000 + longest
    assert [1, 1] == [len(rows) for rows in batches(lengths, 0, 2)]


def test_it_runs_on_the_processor_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "cpu", "--quick", "--precision", "fp32", "--json", str(tmp_path / "found.json")])

    found = json.loads((tmp_path / "found.json").read_text())
    assert {"BERT-base", "MiniLM-L6"} == {line["model"] for line in found["lines"]}
    assert {"ours", "transformers, one pass", "transformers, 32 rows a pass"} == {line["way"] for line in found["lines"]}
    assert {"32", "16-256"} == {line["lengths"] for line in found["lines"]}
    assert all(line["tokens_per_second"] > 0 for line in found["lines"])
    assert all(least > 0.9999 for ways in found["least_cosine"].values() for least in ways.values())
    assert "of the matrix rate" in capsys.readouterr().out


def test_what_is_not_measured_in_time_is_left_out(tmp_path: Path) -> None:
    main(["--device", "cpu", "--quick", "--max-seconds", "0", "--json", str(tmp_path / "found.json")])

    assert [] == json.loads((tmp_path / "found.json").read_text())["lines"]
