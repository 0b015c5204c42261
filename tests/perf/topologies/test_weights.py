from pathlib import Path

import numpy as np
import pytest

from perf.topologies.weights import label_of, read_weights, write_weights
from tests.perf.topologies.weighted import head


def test_heads_are_read_as_they_were_written_in_their_order(tmp_path: Path) -> None:
    written = (head("topic-02", "earn", "grain"), head("b", "ja", "näö", "C"), head("a", "x", "y"))
    write_weights(written, tmp_path / "heads.npz")
    read = read_weights(tmp_path / "heads.npz")

    assert [(one.name, one.labels) for one in written] == [(one.name, one.labels) for one in read]
    for one, other in zip(written, read, strict=True):
        np.testing.assert_array_equal(one.kernel, other.kernel)
        np.testing.assert_array_equal(one.bias, other.bias)
        assert ("float32", "float32") == (other.kernel.dtype.name, other.bias.dtype.name)


def test_a_file_with_objects_in_it_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "heads.npz", kernel_a=np.array([{}], dtype=object))

    with pytest.raises((ValueError, KeyError)):
        read_weights(tmp_path / "heads.npz")


def test_the_label_is_the_likeliest() -> None:
    sorter = head("sorter", "left", "right")

    assert "left" == label_of(sorter, np.array([0.9, 0.1], np.float32))
    assert "right" == label_of(sorter, np.array([0.1, 0.9], np.float32))
