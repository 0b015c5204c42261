"""Whole models as SavedModels: the encoder, read by keras-hub, with a linear head behind it; token ids in, scores out.

Run by the Python of the environment keras_hub: `python export_whole_model.py --trunk DIRECTORY --weights FILE --check FILE
--place DIRECTORY --heads NAME ...` writes DIRECTORY/NAME/1 of each head that is not there yet.
"""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # type: ignore[import-untyped]
import keras_hub  # type: ignore[import-not-found]
import numpy as np
import tensorflow as tf

MAX_DIFFERENCE = 1e-4
"""Of any number of a vector from the reference's, where vectors have length 1; a wrong GELU is 4e-4, rounding below 1e-6."""

ROWS = 8
"""Of the padded batches that are compared, after each text by itself."""

DIFFERENCE_FILE = "largest-difference"
"""Beside the models: the number that was compared with `MAX_DIFFERENCE`."""

VARIABLES = "variables/variables.data-00000-of-00001"


@dataclass(frozen=True)
class Check:
    """Texts with their vectors: *token_ids* and *padding_mask* int32 [texts, tokens], *vectors* float32 [texts, width]."""

    token_ids: Any
    padding_mask: Any
    vectors: Any


def encoder_of(trunk: str) -> keras.Model:
    """The checkpoint in *trunk* as keras-hub's encoder.

    keras-hub computes GELU by its tanh approximation for every BERT, also where the checkpoint's own, "gelu", is the exact one.
    That alone puts numbers of a vector of the default trunk wrong by up to 0.0004, so the exact one is put in its place.
    """
    encoder = keras_hub.models.BertBackbone.from_preset(trunk)
    for layer in encoder.transformer_layers:
        layer._feedforward_intermediate_dense.activation = keras.activations.gelu  # noqa: SLF001 (no public name for it)
    return encoder


class WholeModel(tf.Module):  # type: ignore[misc]  # TensorFlow is published without types
    """The encoder, the mean of its last layer made length 1, a linear layer and a softmax.

    The head's few numbers are constants of the graph, so that the files of the encoder's variables are the same for all heads.
    """

    def __init__(self, encoder: keras.Model, kernel: Any, bias: Any) -> None:
        super().__init__()
        # TensorFlow's own variables, and not the model around them: Keras's would be saved beside those that the graph reads,
        # which a server that loads by the graph, as all of them do, would then find without values.
        self.variables_of_encoder = [variable.value for variable in encoder.weights]
        self._hidden: Callable[[Any], Any] = lambda given: encoder(given, training=False)["sequence_output"]
        self.kernel, self.bias = kernel, bias

    def vectors(self, token_ids: Any, padding_mask: Any) -> Any:
        """float32 [texts, width] of *token_ids* and *padding_mask*, int32 [texts, tokens]; the latter is 1 where a token is."""
        given = {"token_ids": token_ids, "segment_ids": tf.zeros_like(token_ids), "padding_mask": padding_mask}
        hidden = self._hidden(given)
        weights = tf.cast(padding_mask, tf.float32)[:, :, tf.newaxis]
        return tf.math.l2_normalize(tf.reduce_sum(hidden * weights, axis=1) / tf.reduce_sum(weights, axis=1), axis=-1)

    def scores(self, token_ids: Any, padding_mask: Any) -> dict[str, Any]:
        """`scores`, float32 [texts, labels]; each row sums to 1."""
        return {"scores": tf.nn.softmax(self.vectors(token_ids, padding_mask) @ self.kernel + self.bias)}


def traced(function: Callable[..., Any]) -> Any:
    """*function* of token ids and padding mask as a graph, for any number of texts of any length."""
    names = ("token_ids", "padding_mask")
    return tf.function(function, input_signature=[tf.TensorSpec([None, None], tf.int32, name=name) for name in names])


def largest_difference(vectors: Callable[[Any, Any], Any], check: Check) -> float:
    """Of any number: each text by itself, without padding, and all of them in padded batches of `ROWS`."""
    worst = 0.0
    for rows in (1, ROWS):
        for start in range(0, len(check.vectors), rows):
            place = slice(start, start + rows)
            longest = int(check.padding_mask[place].sum(axis=1).max())
            found = vectors(tf.constant(check.token_ids[place, :longest]), tf.constant(check.padding_mask[place, :longest]))
            worst = max(worst, float(np.abs(found.numpy() - check.vectors[place]).max()))
    return worst


def served_difference(directory: str, check: Check, kernel: Any, bias: Any) -> float:
    """Of any score of the SavedModel in *directory*, loaded as servers load it, from the head's on the reference's vectors."""
    logits = check.vectors[:ROWS] @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], directory).signature_def["serving_default"]
        feeds = {
            signature.inputs["token_ids"].name: check.token_ids[:ROWS],
            signature.inputs["padding_mask"].name: check.padding_mask[:ROWS],
        }
        scores = session.run(signature.outputs["scores"].name, feeds)
    return float(np.abs(scores - expected).max())


def refuse_above(difference: float, what: str) -> None:
    """End the process where *difference* is not a small one."""
    if not difference <= MAX_DIFFERENCE:
        sys.exit(f"the {what} differ by up to {difference:.2g} from the reference's, more than {MAX_DIFFERENCE:g}")


def save(model: WholeModel, place: Path, check: Check) -> None:
    """Write *model* to *place*, which appears complete; where another head's variables are the same, as links to theirs."""
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=place.parent, prefix=".tmp-"))
    try:
        tf.saved_model.save(model, str(staged), signatures={"serving_default": traced(model.scores)})
        refuse_above(served_difference(str(staged), check, model.kernel, model.bias), "scores of the saved model")
        for other in sorted(place.parent.parent.glob(f"*/1/{VARIABLES}")):
            if filecmp.cmp(other, staged / VARIABLES, shallow=False):
                (staged / VARIABLES).unlink()
                os.link(other, staged / VARIABLES)
                break
        staged.chmod(0o755)
        staged.rename(place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def main() -> None:
    """The command line. Exit status 1, and one line, where the vectors differ from the reference's: nothing is written then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", required=True)
    parser.add_argument("--weights", required=True, help="npz: kernel_NAME float32 [width, labels], bias_NAME float32 [labels]")
    parser.add_argument("--check", required=True, help="npz: token_ids, padding_mask and vectors, see `Check`")
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", required=True)
    given = parser.parse_args()
    encoder = encoder_of(given.trunk)
    with np.load(given.weights, allow_pickle=False) as weights, np.load(given.check, allow_pickle=False) as arrays:
        check = Check(arrays["token_ids"], arrays["padding_mask"], arrays["vectors"])
        models = {name: WholeModel(encoder, weights[f"kernel_{name}"], weights[f"bias_{name}"]) for name in given.heads}
    difference = largest_difference(traced(models[given.heads[0]].vectors), check)
    refuse_above(difference, "encoder's vectors")
    given.place.mkdir(parents=True, exist_ok=True)
    (given.place / DIFFERENCE_FILE).write_text(f"{difference:.1g}")
    for name, model in models.items():
        if not (given.place / name / "1").is_dir():
            save(model, given.place / name / "1", check)


if __name__ == "__main__":
    main()
