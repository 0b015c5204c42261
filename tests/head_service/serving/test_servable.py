import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from head_service.serving import servable as module
from head_service.serving.giving_way import giving_way
from head_service.serving.servable import Servable
from head_service.serving.trust import LoadError
from tests.head_service.serving.saved_models import WEIGHTS, WIDTH, Linear, save, warmup_record, write_warmup

ROWS = {"embedding": np.ones((1, WIDTH), np.float32)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TensorFlow writes for a head, with a warm-up."""
    path = tmp_path_factory.mktemp("model") / "1"
    save(Linear(WEIGHTS), path)
    write_warmup(path, warmup_record())
    return path


@pytest.fixture(scope="module")
def first_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TensorFlow 1 wrote: its variables stand in the graph's collections."""
    path = tmp_path_factory.mktemp("first") / "1"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        rows = tf.compat.v1.placeholder(tf.float32, [None, WIDTH], name="embedding")
        logits = tf.matmul(rows, tf.compat.v1.get_variable("weights", initializer=tf.constant(WEIGHTS), use_resource=False))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(path), {"embedding": rows}, {"logits": logits})
    return path


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Only what is dropped goes away."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", ["exported", "first_kind"])
def test_session_and_graph_are_gone_once_a_version_is_closed(kind: str, request: pytest.FixtureRequest) -> None:
    servable = Servable("m", 1, request.getfixturevalue(kind))
    np.testing.assert_allclose(servable.run("", ROWS, ("logits",))["logits"], ROWS["embedding"] @ WEIGHTS)
    held = weakref.ref(servable._session), weakref.ref(servable._session.graph)

    servable.close()
    servable.close()

    assert (None, None) == tuple(reference() for reference in held)
    assert {"embedding"} == servable.signatures["serving_default"].inputs.keys()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("broken", ["variables", "no tags"])
def test_a_version_that_does_not_load_leaves_nothing_behind(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    made: list[Any] = []

    class Graph(tf.Graph):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    shutil.copytree(exported, tmp_path / "1")
    options = module.ServableOptions(tags=frozenset({"other"}) if broken == "no tags" else frozenset({"serve"}))
    if broken == "variables":
        data = tmp_path / "1" / "variables" / "variables.data-00000-of-00001"
        data.write_bytes(b"\1" * data.stat().st_size)
    monkeypatch.setattr(tf, "Graph", Graph)
    with pytest.raises(LoadError) as failed:
        Servable("m", 1, tmp_path / "1", options)

    assert ("Checksum" if broken == "variables" else "tags") in str(failed.value)
    assert [None] == [reference() for reference in made]


def test_only_the_steps_in_c_of_a_load_give_way_and_none_of_a_call(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    callers: set[threading.Thread] = set()

    def noted(function: Callable[..., Any], *args: Any) -> Any:
        steps.append(function.__name__)
        callers.add(threading.current_thread())
        return giving_way(function, *args)

    monkeypatch.setattr(module, "giving_way", noted)
    servable = Servable("m", 1, exported)
    assert {"_extend_graph", "_call_tf_sessionrun", "_Callable"} == set(steps)
    # From the thread that loads, or one step would wait for another's thread.
    assert {threading.current_thread()} == callers
    steps.clear()
    servable.run("", ROWS, ("scores",))
    servable.close()

    assert not steps
