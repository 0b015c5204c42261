"""Heads that are learnt step by step: one loop for all types. Same data, same seed, same machine: the same weights, bit for bit.

What is drawn comes from numpy generators and stateless TensorFlow operations, and TensorFlow's own operations are told to be
deterministic, for the whole process. The optimiser is AdamW: Loshchilov and Hutter, Decoupled Weight Decay Regularization.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import Task
from head_service.training.features import Features, even_batches, inputs_of, shuffled_batches, standardisation, take, width_of
from head_service.training.forward import FILTER_WIDTHS, logits_of
from head_service.training.heads import Fitted, HeadSpec, HeadType, loss_of, quality
from head_service.training.quiet_tensorflow import tf
from head_service.training.targets import Targets, label_weights, part

FloatArray = NDArray[np.float32]

VALIDATION_SHARE: Final = 0.15
MIN_VALIDATION: Final = 8
"""With fewer texts to judge by, nothing is held back and every epoch is run."""

MIN_STEPS: Final = 400
"""A little data is gone through more often, and in smaller batches, than a recipe says."""

MIN_BATCH: Final = 8
NUM_QUERIES: Final = 4
_BETAS: Final = (0.9, 0.999)
_LEAST_SPREAD: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a type is learnt. *learning_rate* falls to nothing, in a straight line, over *epochs*; *hidden* 0: there is none.

    After *patience* epochs without a better one it is enough. *refits*: once the best number of epochs is known, everything is
    learnt anew with what had been held back.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    dropout: float
    hidden: int = 0
    patience: int = 6
    refits: bool = False


RECIPES: Final[Mapping[HeadType, Recipe]] = {
    "linear": Recipe(epochs=60, batch=64, learning_rate=3e-3, weight_decay=1e-2, dropout=0.0, refits=True),
    "mix": Recipe(epochs=40, batch=64, learning_rate=3e-3, weight_decay=3e-2, dropout=0.2, refits=True),
    "mlp": Recipe(epochs=30, batch=64, learning_rate=3e-4, weight_decay=1e-1, dropout=0.5, hidden=256, refits=True),
    "fasttext": Recipe(epochs=20, batch=32, learning_rate=3e-4, weight_decay=1e-1, dropout=0.5, hidden=256, patience=4),
    "attention": Recipe(epochs=16, batch=32, learning_rate=2e-4, weight_decay=1e-1, dropout=0.5, hidden=192, patience=4),
    "textcnn": Recipe(epochs=16, batch=32, learning_rate=3e-4, weight_decay=1e-1, dropout=0.5, hidden=96, patience=4),
}


@dataclass(frozen=True, slots=True, eq=False)
class NetworkHead:
    """See `head_service.training.heads.Head`."""

    spec: HeadSpec
    task: Task
    labels: tuple[str, ...]
    weights: Mapping[str, FloatArray]

    @property
    def head_type(self) -> HeadType:
        """How it was made."""
        return self.spec.head_type

    def logits(self, features: Features) -> FloatArray:
        """See `Head`; in batches of texts of about one length."""
        return _logits(self.spec, {name: tf.constant(array) for name, array in self.weights.items()}, features, len(self.labels))


def fit_network(
    head_type: HeadType,
    features: Features,
    targets: Targets,
    *,
    num_mixed: int = 1,
    recipe: Recipe | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> Fitted:
    """Learn a head of *head_type*, stopping at the epoch that is best on a part held back.

    Args:
        head_type: also "linear", though `head_service.training.linear` is the better way to that.
        features: pooled ones, or of tokens, as the type has it.
        targets: one row a text.
        num_mixed: how many layers lie in *features* one behind the other.
        recipe: absent, the type's own of `RECIPES`.
        balanced: all labels weigh the same, however rare.
        seed: of everything that is drawn.
    """
    tf.config.experimental.enable_op_determinism()
    how = fitting(recipe or RECIPES[head_type], len(targets))
    spec = HeadSpec(head_type, width_of(features), num_mixed)
    learnt, held = part(targets, VALIDATION_SHARE, seed)
    if len(held) < MIN_VALIDATION:
        everything = _Learner(spec, how, features, targets, balanced, seed)
        for _ in range(how.epochs):
            everything.learn_epoch()
        nothing = np.zeros((0, len(targets.labels)), np.float32)
        return Fitted(everything.head(), nothing, targets.take(np.arange(0)), f"{how.epochs} epochs")
    known, unseen = targets.take(learnt), targets.take(held)
    learner = _Learner(spec, how, take(features, learnt), known, balanced, seed)
    best = _learn_until_it_gets_no_better(learner, take(features, held), unseen)
    head = best.head
    if how.refits:
        again = _Learner(spec, how, features, targets, balanced, seed)
        for _ in range(best.epochs):
            again.learn_epoch()
        head = again.head()
    return Fitted(head, best.logits, unseen, f"{best.epochs} epochs")


@dataclass(frozen=True, slots=True, eq=False)
class _Best:
    epochs: int
    head: NetworkHead
    logits: FloatArray


def _learn_until_it_gets_no_better(learner: "_Learner", features: Features, targets: Targets) -> _Best:
    best, best_rank = None, (-np.inf, -np.inf)
    for epoch in range(1, learner.recipe.epochs + 1):
        learner.learn_epoch()
        logits = learner.logits(features)
        rank = (quality(targets, logits), -loss_of(targets, logits))
        if best is None or rank > best_rank:
            best, best_rank = _Best(epoch, learner.head(), logits), rank
        elif epoch - best.epochs >= learner.recipe.patience:
            break
    assert best is not None
    return best


class _Learner:
    """The owner of a head's weights while they are being learnt."""

    def __init__(self, spec: HeadSpec, recipe: Recipe, features: Features, targets: Targets, balanced: bool, seed: int) -> None:
        self.recipe = recipe
        self._spec = spec
        self._features = features
        self._targets = targets
        self._balance = label_weights(targets) if balanced and targets.task != "regression" else np.ones(len(targets.labels))
        self._middle, self._spread = _middle_and_spread(targets)
        self._random = np.random.default_rng(seed)
        self._fixed = dict(zip(("shift", "scale"), map(tf.constant, standardisation(features)), strict=True))
        first = initial_weights(spec, recipe.hidden, len(targets.labels), self._random)
        self._variables = {name: tf.Variable(array) for name, array in first.items()}
        self._means = {name: tf.Variable(tf.zeros_like(array)) for name, array in first.items()}
        self._squares = {name: tf.Variable(tf.zeros_like(array)) for name, array in first.items()}
        self._num_steps = 0
        self._seed = seed
        self._step = tf.function(self._learn_step, input_signature=self._signature())

    def learn_epoch(self) -> None:
        """Learn from every text once."""
        batches_an_epoch = -(-len(self._features) // self.recipe.batch)
        for batch in shuffled_batches(self._features, self.recipe.batch, self._random):
            done = self._num_steps / (batches_an_epoch * self.recipe.epochs)
            self._num_steps += 1
            wanted = (self._targets.matrix[batch] - self._middle) / self._spread
            rate = np.float32(self.recipe.learning_rate * max(0.0, 1.0 - done))
            self._step(inputs_of(self._features, batch), wanted.astype(np.float32), rate, np.int32(self._num_steps))

    def logits(self, features: Features) -> FloatArray:
        """Of what it has learnt so far, in the targets' own units."""
        found = _logits(self._spec, self._tensors(), features, len(self._targets.labels))
        return np.asarray(found * self._spread + self._middle, np.float32)

    def head(self) -> NetworkHead:
        """What it has learnt so far."""
        weights = {name: np.array(tensor.numpy()) for name, tensor in self._tensors().items()}
        weights["weights"] = weights["weights"] * self._spread
        weights["bias"] = weights["bias"] * self._spread + self._middle
        return NetworkHead(self._spec, self._targets.task, self._targets.labels, weights)

    def _tensors(self) -> dict[str, Any]:
        return {**self._fixed, **self._variables}

    def _signature(self) -> list[Any]:
        vectors = [None, None, self._spec.width] if self._spec.reads_tokens else [None, self._spec.width]
        inputs: tuple[Any, ...] = (tf.TensorSpec(vectors, tf.float32),)
        if self._spec.reads_tokens:
            inputs += (tf.TensorSpec([None, None], tf.float32),)
        wanted = tf.TensorSpec([None, len(self._targets.labels)], tf.float32)
        return [inputs, wanted, tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)]

    def _learn_step(self, inputs: tuple[Any, ...], wanted: Any, rate: Any, step: Any) -> None:
        with tf.GradientTape() as tape:
            logits = logits_of(self._spec, self._tensors(), inputs, _dropout(self.recipe.dropout, self._seed, step))
            loss = _loss(self._targets.task, logits, wanted, tf.constant(self._balance, tf.float32))
        names = sorted(self._variables)
        gradients = tape.gradient(loss, [self._variables[name] for name in names])
        count = tf.cast(step, tf.float32)
        for name, gradient in zip(names, gradients, strict=True):
            self._move(name, gradient, rate, count)

    def _move(self, name: str, gradient: Any, rate: Any, count: Any) -> None:
        variable, mean, square = self._variables[name], self._means[name], self._squares[name]
        mean.assign(_BETAS[0] * mean + (1.0 - _BETAS[0]) * gradient)
        square.assign(_BETAS[1] * square + (1.0 - _BETAS[1]) * gradient * gradient)
        step = (mean / (1.0 - _BETAS[0] ** count)) / (tf.sqrt(square / (1.0 - _BETAS[1] ** count)) + 1e-8)
        decay = self.recipe.weight_decay if len(variable.shape) > 1 else 0.0
        variable.assign_sub(rate * (step + decay * variable))


def initial_weights(spec: HeadSpec, hidden: int, num_labels: int, random: np.random.Generator) -> dict[str, FloatArray]:
    """What learning begins with: kernels uniform by the sum of their two widths (Glorot and Bengio), biases nothing."""

    def kernel(*shape: int) -> FloatArray:
        bound = np.sqrt(6.0 / (np.prod(shape[:-1]) + shape[-1]))
        return random.uniform(-bound, bound, shape).astype(np.float32)

    def zeros(*shape: int) -> FloatArray:
        return np.zeros(shape, np.float32)

    width = spec.width // spec.num_mixed
    made = {"mix": zeros(spec.num_mixed)} if spec.num_mixed > 1 else {}
    last = width
    if spec.head_type == "textcnn":
        for size in FILTER_WIDTHS:
            made |= {f"filters_{size}": kernel(size, width, hidden), f"filters_bias_{size}": zeros(hidden)}
        last = hidden * len(FILTER_WIDTHS)
    elif spec.head_type not in {"linear", "mix"}:
        if spec.head_type == "attention":
            made |= {"key_weights": kernel(width, hidden), "key_bias": zeros(hidden), "queries": kernel(hidden, NUM_QUERIES)}
        into = width * NUM_QUERIES if spec.head_type == "attention" else width
        made |= {"hidden_weights": kernel(into, hidden), "hidden_bias": zeros(hidden)}
        last = hidden
    return made | {"weights": kernel(last, num_labels), "bias": zeros(num_labels)}


def fitting(recipe: Recipe, num_texts: int) -> Recipe:
    """*recipe*, changed where *num_texts* are so few that it would end before anything is learnt."""
    batch = min(recipe.batch, max(MIN_BATCH, num_texts // 40))
    stretch = max(1.0, MIN_STEPS / (recipe.epochs * -(-num_texts // batch)))
    return replace(recipe, batch=batch, epochs=round(recipe.epochs * stretch), patience=round(recipe.patience * stretch))


def _middle_and_spread(targets: Targets) -> tuple[np.float32, np.float32]:
    """Numbers are learnt in units of their own spread around their mean."""
    if targets.task != "regression":
        return np.float32(0.0), np.float32(1.0)
    return np.float32(targets.matrix.mean()), np.float32(max(float(targets.matrix.std()), _LEAST_SPREAD))


def _dropout(rate: float, seed: int, step: Any) -> Any:
    """A fresh draw at each place it is used at in a step, by *seed* and *step* alone."""
    if not rate:
        return None
    num_used = 0

    def drop(values: Any) -> Any:
        nonlocal num_used
        num_used += 1
        drawn = tf.random.stateless_uniform(tf.shape(values), [step, np.int32(seed % 2**20 * 16 + num_used)])
        return values * tf.cast(drawn >= rate, tf.float32) / (1.0 - rate)

    return drop


def _loss(task: Task, logits: Any, wanted: Any, balance: Any) -> Any:
    if task == "regression":
        return tf.reduce_mean(tf.square(logits - wanted))
    if task == "multi_label":
        weight = 1.0 + wanted * (balance - 1.0)
        return tf.reduce_mean(weight * tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits))
    each = tf.nn.softmax_cross_entropy_with_logits(wanted, logits)
    return tf.reduce_mean(each * tf.reduce_sum(wanted * balance, axis=1))


def _logits(spec: HeadSpec, weights: Mapping[str, Any], features: Features, num_labels: int) -> FloatArray:
    found = np.zeros((len(features), num_labels), np.float32)
    for batch in even_batches(features):
        found[batch] = logits_of(spec, weights, tuple(map(tf.constant, inputs_of(features, batch)))).numpy()
    return found
