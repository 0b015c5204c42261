"""Linear heads that teams bring along: a live scikit-learn model, or its numbers in an .npz file. Nothing is ever unpickled."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from head_service.errors import DataError
from head_service.training.linear_head import LinearHead

FloatArray = NDArray[np.float64]

MAX_FILE_BYTES: Final = 512 * 1024 * 1024
"""Of what a file says its arrays take."""

_NO_ARRAYS: Final = (
    zipfile.BadZipFile,  # no archive, or a checksum that is wrong
    zlib.error,  # compressed data that is none
    EOFError,  # cut short
    MemoryError,  # an array that says it is larger than any
    RuntimeError,  # encrypted, or packed in a way that zipfile does not know
    ValueError,  # a member that is no array, or one of objects
)
"""What zipfile and numpy raise of a file that is not an .npz of plain arrays."""

_REQUIRED: Final = ("weights", "bias", "labels")
_OPTIONAL: Final = ("mean", "scale", "one_vs_rest")


def from_sklearn(model: Any, labels: Sequence[str] | None = None) -> LinearHead:
    """A fitted LogisticRegression, SGDClassifier(loss="log_loss"), or Pipeline of a StandardScaler and one of them, as a head.

    The head's scores are the model's `predict_proba`, to float32. *labels* name its classes in their order; absent, they do.

    Raises:
        DataError: the model is of another kind, not fitted, or its labels are not as many as its classes.
    """
    mean: FloatArray | float = 0.0
    scale: FloatArray | float = 1.0
    if isinstance(model, Pipeline):
        *before, model = [step for _, step in model.steps if step not in {None, "passthrough"}]
        if len(before) > 1 or not all(isinstance(step, StandardScaler) for step in before):
            raise DataError("only a StandardScaler may stand before the classifier in a pipeline")
        mean, scale = _standardisation(before[0]) if before else (mean, scale)
    kernel, bias = _solution(model)
    names = [str(name) for name in (model.classes_ if labels is None else labels)]
    return _head(kernel, bias, names, mean, scale, one_vs_rest=isinstance(model, SGDClassifier) and len(names) > 2)


def read_weights(path: Path) -> LinearHead:
    """The head in an .npz file.

    It holds the arrays `weights` [width, labels] (or [width] for two labels), `bias` [labels] (or one number) and `labels`,
    texts; and perhaps `mean` and `scale` [width] of a StandardScaler, and `one_vs_rest`, true where sigmoids are to sum to one.

    Raises:
        DataError: it is not such a file.
    """
    arrays = _arrays(path)
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise DataError(
            f"{path.name} lacks the arrays {', '.join(missing)}; save it with numpy.savez(FILE, weights=…, bias=…, labels=…)"
        )
    if unknown := sorted(arrays.keys() - {*_REQUIRED, *_OPTIONAL}):
        raise DataError(f"{path.name} has {len(unknown)} arrays more than {', '.join((*_REQUIRED, *_OPTIONAL))}; leave them out")
    if arrays["labels"].dtype.kind != "U" or arrays["labels"].ndim != 1:
        raise DataError(f"the labels in {path.name} are not a list of texts")
    if not all(arrays[name].dtype.kind in "fiub" for name in arrays if name != "labels"):
        raise DataError(f"the arrays in {path.name} are not of numbers")
    numbers = {name: array.astype(np.float64) for name, array in arrays.items() if name != "labels"}
    kernel, bias = numbers["weights"], np.atleast_1d(numbers["bias"])
    names = [str(name) for name in arrays["labels"]]
    if kernel.ndim == 1:
        kernel = kernel[:, None]
    one_vs_rest = bool(numbers.get("one_vs_rest", np.zeros(())).any()) and len(names) > 2
    return _head(kernel, bias, names, numbers.get("mean", 0.0), numbers.get("scale", 1.0), one_vs_rest=one_vs_rest)


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_FILE_BYTES:
                raise DataError(f"{path.name} unpacks to more than {MAX_FILE_BYTES // 2**20} MB")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or 'it is not an .npz file'}") from None
    except _NO_ARRAYS as error:
        raise DataError(f"{path.name} is not an .npz file of plain arrays; save it with numpy.savez") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise DataError(f"{path.name} is not an .npz file of plain arrays; save it with numpy.savez")
    return arrays


def _standardisation(scaler: Any) -> tuple[FloatArray | float, FloatArray | float]:
    if not hasattr(scaler, "n_features_in_"):
        raise DataError("the StandardScaler is not fitted yet")
    mean = scaler.mean_ if scaler.with_mean and scaler.mean_ is not None else 0.0
    return mean, scaler.scale_ if scaler.with_std and scaler.scale_ is not None else 1.0


def _solution(model: Any) -> tuple[FloatArray, FloatArray]:
    """(kernel [width, outputs], bias [outputs])."""
    if not isinstance(model, LogisticRegression | SGDClassifier):
        raise DataError(
            f"{type(model).__name__} is not a linear model with probabilities; bring LogisticRegression or "
            "SGDClassifier(loss='log_loss'), alone or behind a StandardScaler"
        )
    if isinstance(model, SGDClassifier) and model.loss != "log_loss":
        raise DataError("this SGDClassifier gives margins, not probabilities; fit it with loss='log_loss'")
    if not hasattr(model, "coef_"):
        raise DataError(f"the {type(model).__name__} is not fitted yet")
    return np.asarray(model.coef_, np.float64).T, np.asarray(model.intercept_, np.float64).reshape(-1)


def _head(
    kernel: FloatArray,
    bias: FloatArray,
    labels: Sequence[str],
    mean: FloatArray | float,
    scale: FloatArray | float,
    *,
    one_vs_rest: bool,
) -> LinearHead:
    """Fold the standardisation into the kernel, and give two labels a column each."""
    outputs = 1 if len(labels) == 2 and kernel.ndim == 2 and kernel.shape[1] == 1 else len(labels)
    if kernel.ndim != 2 or kernel.shape[1] != outputs or len(labels) < 2:
        raise DataError(f"the weights are {list(kernel.shape)}, and there are {len(labels)} labels; they are [width, labels]")
    if bias.shape not in {(1,), (outputs,)}:
        raise DataError(f"the bias is {list(bias.shape)}, and there are {len(labels)} labels; it has one number a label")
    if any(np.shape(one) not in {(), (len(kernel),)} for one in (mean, scale)) or not np.all(np.asarray(scale) > 0):
        raise DataError("mean and scale have one number for each of the weights' rows, and scales are above 0")
    if len(set(labels)) != len(labels) or any(label != " ".join(label.split()) or not label for label in labels):
        raise DataError("a label is empty, there twice, or of more than one line")
    folded = kernel / np.reshape(np.broadcast_to(scale, len(kernel)), (-1, 1))
    shifted = bias - np.broadcast_to(mean, len(kernel)) @ folded
    if outputs == 1:
        # Softmax over (0, z) is the sigmoid of z.
        folded, shifted = np.hstack([np.zeros_like(folded), folded]), np.array([0.0, shifted[0]])
    if not (np.isfinite(folded).all() and np.isfinite(shifted).all()):
        raise DataError("a weight is not a finite number")
    return LinearHead(folded.astype(np.float32), shifted.astype(np.float32), tuple(labels), one_vs_rest=one_vs_rest)
