"""Which head is fitted how: the types by name, what each reads, and `auto`, which tries the cheap ones and tells what it saw."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import View, at_layers
from head_service.errors import DataError
from head_service.training.features import Features
from head_service.training.heads import POOLED_TYPES, TOKEN_TYPES, Fitted, Head, HeadType, quality
from head_service.training.linear import C_GRID, MIN_HELD, NUM_FOLDS, fit_linear, solve_quickly
from head_service.training.targets import Targets, folds

Say = Callable[[str], None]
FloatArray = NDArray[np.float32]
HeadChoice = HeadType | Literal["auto"]
HEAD_CHOICES: Final[tuple[HeadChoice, ...]] = (*POOLED_TYPES, *TOKEN_TYPES, "auto")

MLP_SIZES: Final = (64, 256)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """*balanced*: all labels weigh the same in what is learnt, however rare. *seed* decides everything that is drawn."""

    head_type: HeadChoice = "linear"
    balanced: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a head reads of the trunk: *view*, or *view* at each of *mix_layers*, as in `clients.wire.catalogue.Manifest`."""

    view: View = field(default_factory=View)
    mix_layers: tuple[int, ...] = ()

    @property
    def views(self) -> tuple[View, ...]:
        """Whose vectors lie one behind the other in what goes into the head."""
        return at_layers(self.view, self.mix_layers)


def reading_for(head_type: HeadChoice, view: View, mix_layers: Sequence[int], offered: Sequence[int]) -> Reading:
    """What a head of *head_type* reads where pooled ones read *view*; *mix_layers* empty: mix reads every one of *offered*.

    Raises:
        DataError: the trunk does not offer the layers, in words that say how it would.
    """
    if missing := [layer for layer in (*mix_layers, view.layer) if layer not in offered]:
        said, have = (", ".join(map(str, some)) for some in (missing, offered))
        raise DataError(f"the embedding service computes the layers {have}, not {said}; start it with --layers")
    layers = tuple(mix_layers)
    if not layers and head_type in {"mix", "auto"} and len(offered) > 1:
        # The view's own first: what does not mix reads only that.
        layers = (view.layer, *(layer for layer in offered if layer != view.layer))
    if head_type == "mix" and len(layers) < 2:
        raise DataError("a mix of layers takes two at least; start the embedding service with --layers, such as --layers=[-1,-3]")
    if head_type == "auto" and layers:
        layers = (view.layer, *(layer for layer in layers if layer != view.layer))
    if len(layers) == 1:
        view = View(view.pooling, layers[0], view.normalize, view.dims)
    if head_type in TOKEN_TYPES:
        view = View("tokens", view.layer, normalize=False, dims=view.dims)
    return Reading(view, layers if len(layers) > 1 else ())


def fit(features: Features, targets: Targets, options: FitOptions, num_layers: int = 1, say: Say = lambda _: None) -> Fitted:
    """Fit what *options* ask for; *num_layers* layers lie in *features* one behind the other.

    What "auto" chooses may read the first of these layers alone: its head's width tells.
    """
    if options.head_type == "auto":
        return choose(cast("FloatArray", features), targets, options, num_layers, say)
    if options.head_type == "linear":
        return fit_linear(cast("FloatArray", features), targets, balanced=options.balanced, seed=options.seed)
    from head_service.training.network import fit_network  # noqa: PLC0415 (TensorFlow: seconds, and only where it is needed)

    num_mixed = num_layers if options.head_type == "mix" else 1
    return fit_network(options.head_type, features, targets, num_mixed=num_mixed, balanced=options.balanced, seed=options.seed)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head `auto` may choose. *try_on* fits one for a fold, *fit_all* the one that is kept; both read *num_layers* layers."""

    name: str
    num_layers: int
    try_on: Callable[[FloatArray, Targets], Head]
    fit_all: Callable[[FloatArray, Targets], Fitted]


@dataclass(frozen=True, slots=True)
class Compared:
    """What a candidate reached in each fold, see `heads.quality`."""

    name: str
    reached: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the folds."""
        return statistics.fmean(self.reached)

    @property
    def spread(self) -> float:
        """Their standard deviation."""
        return statistics.stdev(self.reached)

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.4f} ±{self.spread:.4f}"


def choose(features: FloatArray, targets: Targets, options: FitOptions, num_layers: int = 1, say: Say = lambda _: None) -> Fitted:
    """Compare the cheap heads by cross-validation, *say* what each reached, and fit the one that `simplest_of_the_best` names."""
    width = features.shape[1] // num_layers
    compared = []
    found = candidates(options, num_layers)
    parts = folds(targets, NUM_FOLDS, options.seed)
    if sum(len(held) for _, held in parts) < MIN_HELD:
        raise DataError(f"{len(targets)} texts are too few to compare heads on; choose a --head-type")
    for candidate in found:
        mine = features[:, : width * candidate.num_layers]
        reached = []
        for learnt, held in parts:
            head = candidate.try_on(mine[learnt], targets.take(learnt))
            reached.append(quality(targets.take(held), head.logits(mine[held])))
        compared.append(Compared(candidate.name, tuple(reached)))
        say(f"tried {compared[-1]}")
    best = found[simplest_of_the_best(compared)]
    fitted = best.fit_all(features[:, : width * best.num_layers], targets)
    return replace(fitted, told=f"{best.name}, of {', '.join(map(str, compared))}")


def simplest_of_the_best(compared: Sequence[Compared]) -> int:
    """The place of the first, hence the simplest, that is worse than the best by no more than the standard error of that.

    After the rule of one standard error: Breiman, Friedman, Olshen and Stone, Classification and Regression Trees. Taken fold by
    fold, the difference is known better than either mean.
    """
    best = max(compared, key=lambda one: one.mean)
    return next(place for place, one in enumerate(compared) if _is_nearly(one, best))


def _is_nearly(one: Compared, best: Compared) -> bool:
    lost = [high - low for high, low in zip(best.reached, one.reached, strict=True)]
    return statistics.fmean(lost) <= statistics.stdev(lost) / math.sqrt(len(lost))


def candidates(options: FitOptions, num_layers: int) -> list[Candidate]:
    """From the simplest on: linear ones by C and hidden layers by size, each on one layer and on all, and the mix of all."""
    found = [_linear(c, 1, options) for c in C_GRID]
    found += [_network(f"mlp {size}", "mlp", size, 1, options) for size in MLP_SIZES]
    if num_layers > 1:
        found.append(_network(f"mix of {num_layers} layers", "mix", 0, num_layers, options))
        found += [_linear(c, num_layers, options) for c in C_GRID]
        found.append(_network(f"mlp {MLP_SIZES[-1]} on {num_layers} layers", "mlp", MLP_SIZES[-1], num_layers, options))
    return found


def _linear(c: float, num_layers: int, options: FitOptions) -> Candidate:
    def try_on(features: FloatArray, targets: Targets) -> Head:
        return solve_quickly(features, targets, c, options.balanced)

    def fit_all(features: FloatArray, targets: Targets) -> Fitted:
        return fit_linear(features, targets, balanced=options.balanced, seed=options.seed, c=c)

    on = f" on {num_layers} layers" if num_layers > 1 else ""
    return Candidate(f"linear C {c:g}{on}", num_layers, try_on, fit_all)


def _network(name: str, head_type: HeadType, hidden: int, num_layers: int, options: FitOptions) -> Candidate:
    def fit_all(features: FloatArray, targets: Targets, *, refits: bool = True) -> Fitted:
        from head_service.training.network import RECIPES, fit_network  # noqa: PLC0415 (TensorFlow, see `fit`)

        recipe = replace(RECIPES[head_type], hidden=hidden, refits=refits)
        num_mixed = num_layers if head_type == "mix" else 1
        return fit_network(
            head_type, features, targets, num_mixed=num_mixed, recipe=recipe, balanced=options.balanced, seed=options.seed
        )

    def try_on(features: FloatArray, targets: Targets) -> Head:
        return fit_all(features, targets, refits=False).head

    return Candidate(name, num_layers, try_on, fit_all)
