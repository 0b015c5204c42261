"""SavedModels made by TensorFlow itself, in the forms that people have."""

import warnings
from pathlib import Path

from head_service.serving.servable import tf
from tests.contract.kinds import KINDS

v1 = tf.compat.v1


def make_session_model(directory: Path, offset: float) -> None:
    """TensorFlow 1: a session, a builder, method names of three kinds, inputs that are serialised tf.Examples."""
    with tf.Graph().as_default(), v1.Session() as session:
        slope = v1.get_variable("slope", initializer=0.5)
        examples = v1.placeholder(tf.string, [None], name="examples")
        parsed = v1.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32, default_value=0.0)})
        words = v1.parse_example(examples, {"word": tf.io.FixedLenFeature([], tf.string, default_value="none")})["word"]
        y = tf.multiply(slope, parsed["x"]) + offset
        x = v1.placeholder(tf.float32, [None], name="x")
        scores = tf.stack([y, 1 - y], axis=1)
        classes = tf.stack([words, tf.fill(tf.shape(words), "other")], axis=1)

        def signature(inputs: dict[str, object], outputs: dict[str, object], method: str) -> object:
            infos = [{alias: v1.saved_model.build_tensor_info(t) for alias, t in side.items()} for side in (inputs, outputs)]
            return v1.saved_model.build_signature_def(*infos, f"tensorflow/serving/{method}")

        given = {"inputs": examples}
        signatures = {
            "serving_default": signature({"x": x}, {"y": slope * x + offset}, "predict"),
            "classify_both": signature(given, {"classes": classes, "scores": scores}, "classify"),
            "classify_labels": signature(given, {"classes": classes}, "classify"),
            "classify_scores": signature(given, {"scores": scores}, "classify"),
            "classify_flat": signature(given, {"scores": y}, "classify"),
            "classify_double": signature(given, {"scores": tf.cast(scores, tf.float64)}, "classify"),
            "classify_uneven": signature(given, {"classes": classes, "scores": scores[:, :1]}, "classify"),
            "classify_other": signature({"tf_example": examples}, {"scores": scores}, "classify"),
            "classify_nothing": signature(given, {"guess": scores}, "classify"),
            "regress_flat": signature(given, {"outputs": y}, "regress"),
            "regress_column": signature(given, {"outputs": y[:, tf.newaxis]}, "regress"),
            "regress_matrix": signature(given, {"outputs": scores}, "regress"),
            "regress_whole": signature(given, {"outputs": tf.cast(y, tf.int64)}, "regress"),
            "regress_short": signature(given, {"outputs": y[:1]}, "regress"),
            "regress_other": signature(given, {"guess": y}, "regress"),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], signature_def_map=signatures)
        builder.save()


THREE = tf.constant(3.0)


class Module(tf.Module):
    """TensorFlow 2: one function a signature."""

    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable(0, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.float32, "b")])
    def two(self, a, b):
        return {"sum": a + b, "product": a * b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([], tf.float32, "by")])
    def scaled(self, x, by=THREE):
        return {"y": x * by}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, "text")])
    def upper(self, text):
        return {"text": tf.strings.upper(text), "text_bytes": text, "length": tf.strings.length(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def odd(self, x):
        return {"y": tf.math.log(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def total(self, x):
        return {"y": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def uneven(self, x):
        return {"all": x, "first": x[:1]}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "steps")])
    def slow(self, steps):
        one = tf.constant(0, tf.int64)
        (done,) = tf.while_loop(lambda i: i < steps, lambda i: (i + 1,), (one,))
        return {"steps": done}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "by")])
    def counted(self, by):
        return {"count": self.count.assign_add(by)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classified(self, inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        return {"classes": tf.stack([tf.where(x > 0, "up", "down")], axis=1), "scores": tf.stack([x], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def counted_features(self, inputs):
        x = tf.io.parse_example(inputs, {"n": tf.io.VarLenFeature(tf.int64)})["n"]
        return {"outputs": tf.cast(tf.sparse.reduce_sum(x, axis=1), tf.float32)}


def make_module(directory: Path) -> None:
    module = Module()
    signatures = {
        "serving_default": module.two,
        **{
            name: getattr(module, name)
            for name in ("scaled", "upper", "odd", "total", "uneven", "slow", "counted", "classified", "counted_features")
        },
    }
    for kind in (*KINDS, "string"):
        dtype = tf.as_dtype(kind)
        spec = tf.TensorSpec(None, dtype, "x")
        signatures[kind] = tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec])
    tf.saved_model.save(module, str(directory), signatures=signatures)


def make_keras(directory: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, kernel_initializer="ones", bias_initializer="ones")])
    model.export(str(directory), verbose=False)


def make_models(home: Path) -> None:
    """`session` in two versions, `module` and `keras`, below *home*."""
    with warnings.catch_warnings():
        # What TensorFlow says about its own ways of making them is nothing to these tests.
        warnings.simplefilter("ignore")
        make_session_model(home / "session" / "1", 2.0)
        make_session_model(home / "session" / "2", 3.0)
        make_module(home / "module" / "1")
        make_keras(home / "keras" / "1")
