import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC

from head_service.errors import DataError
from head_service.training.brought import from_sklearn, read_weights
from tests.head_service.training.toys import WIDTH, clusters

TWO, THREE = (clusters(names, noise=0.5) for names in (("a", "b"), ("a", "b", "c")))


@pytest.mark.parametrize("data", [TWO, THREE], ids=["two labels", "three labels"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: LogisticRegression(C=3.0),
        lambda: LogisticRegression(C=3.0, fit_intercept=False),
        lambda: SGDClassifier(loss="log_loss", alpha=0.1, random_state=0),
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        lambda: make_pipeline(StandardScaler(with_mean=False), SGDClassifier(loss="log_loss", alpha=0.1, random_state=0)),
        lambda: make_pipeline(StandardScaler(with_std=False), "passthrough", LogisticRegression()),
    ],
)
def test_the_head_gives_the_models_own_probabilities(data, make) -> None:  # type: ignore[no-untyped-def]
    embeddings, labels = data
    model = make().fit(embeddings * 5 + 1, labels)

    head = from_sklearn(model)

    np.testing.assert_allclose(model.predict_proba(embeddings * 5 + 1), head.scores(embeddings * 5 + 1), atol=1e-5)
    assert tuple(model.classes_) == head.labels


def test_classes_that_are_numbers_may_be_named() -> None:
    embeddings, labels = THREE
    model = LogisticRegression().fit(embeddings, ["abc".index(label) for label in labels])

    assert ("0", "1", "2") == from_sklearn(model).labels
    assert ("art", "body", "car") == from_sklearn(model, ["art", "body", "car"]).labels
    with pytest.raises(DataError, match="2 labels"):
        from_sklearn(model, ["art", "body"])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (LinearSVC(), "LinearSVC is not a linear model with probabilities"),
        (RandomForestClassifier(n_estimators=2), "RandomForestClassifier is not"),
        (SGDClassifier(loss="hinge"), "margins"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), "only a StandardScaler"),
        (make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()), "only a StandardScaler"),
    ],
)
def test_what_has_no_probabilities_or_is_not_linear_is_refused(model, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=reason):
        from_sklearn(model.fit(*TWO))


def test_a_model_that_is_not_fitted_is_refused() -> None:
    for model in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())):
        with pytest.raises(DataError, match="not fitted yet"):
            from_sklearn(model)


def saved(path: Path, **arrays: object) -> Path:
    whole = {"weights": np.ones((WIDTH, 2)), "bias": np.zeros(2), "labels": np.array(["a", "b"])} | arrays
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})  # type: ignore[arg-type]
    return path


def test_a_file_of_arrays_is_the_model_it_was_saved_from(tmp_path: Path) -> None:
    embeddings, labels = THREE
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(embeddings, labels)
    scaler, logistic = model[0], model[1]
    path = saved(
        tmp_path / "head.npz",
        weights=logistic.coef_.T,
        bias=logistic.intercept_,
        labels=np.array(logistic.classes_),
        mean=scaler.mean_,
        scale=scaler.scale_,
    )

    np.testing.assert_allclose(model.predict_proba(embeddings), read_weights(path).scores(embeddings), atol=1e-5)


def test_a_single_column_is_enough_for_two_labels(tmp_path: Path) -> None:
    embeddings, labels = TWO
    model = LogisticRegression().fit(embeddings, labels)
    path = saved(tmp_path / "head.npz", weights=model.coef_[0], bias=model.intercept_[0])

    np.testing.assert_allclose(model.predict_proba(embeddings), read_weights(path).scores(embeddings), atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"labels": None}, "lacks the arrays labels"),
        ({"secrets": np.ones(3)}, "1 arrays more than"),
        ({"labels": np.array([1, 2])}, "not a list of texts"),
        ({"labels": np.array(["a", "a"])}, "there twice"),
        ({"labels": np.array(["a", "b\nc"])}, "more than one line"),
        ({"labels": np.array(["a"])}, "1 labels"),
        ({"weights": np.ones((WIDTH, 3))}, r"\[8, 3\], and there are 2 labels"),
        ({"weights": np.array(["x"])}, "not of numbers"),
        ({"weights": np.full((WIDTH, 2), np.nan)}, "not a finite number"),
        ({"bias": np.zeros(3)}, "one number a label"),
        ({"scale": np.zeros(WIDTH)}, "above 0"),
        ({"mean": np.zeros(WIDTH + 1)}, "one number for each"),
    ],
)
def test_arrays_that_make_no_head_are_told_in_words(tmp_path: Path, arrays: dict[str, object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_weights(saved(tmp_path / "head.npz", **arrays))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    np.savez(path, weights=np.ones((WIDTH, 2)), bias=np.zeros(2), labels=np.array(["a", "b"], object))

    with pytest.raises(DataError, match="file of plain arrays"):
        read_weights(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY", b"a" * 500], ids=["empty", "cut", "npy", "text"]
)
def test_what_is_no_archive_is_told_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "head.npz").write_bytes(content)

    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_weights(tmp_path / "head.npz")


def array_of(shape: tuple[int, ...]) -> bytes:
    """An array that says it has *shape*, and has one number."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return array.getvalue() + bytes(8)


@pytest.mark.parametrize(
    ("content", "change"),
    [
        (b"no array", lambda raw: raw),
        (array_of((10**15,)), lambda raw: raw),
        (array_of((100,)), lambda raw: raw),
        # One letter of the content: its checksum is another then.
        (array_of((1,)), lambda raw: raw.replace(b"NUMPY", b"NUMPI", 1)),
        # In the directory of members: that it is encrypted.
        (array_of((1,)), lambda raw: raw[: raw.index(b"PK\1\2") + 8] + b"\1" + raw[raw.index(b"PK\1\2") + 9 :]),
    ],
    ids=["no array", "too large", "cut", "checksum", "encrypted"],
)
def test_a_member_that_is_no_plain_array_is_told_in_words(
    tmp_path: Path, content: bytes, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "head.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", content)
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(DataError, match="file of plain arrays"):
        read_weights(path)


def test_a_file_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_weights(tmp_path / "head.npz")


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("head_service.training.brought.MAX_FILE_BYTES", 10_000)
    array = io.BytesIO()
    np.save(array, np.zeros(100_000))
    with zipfile.ZipFile(tmp_path / "head.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.npy", array.getvalue())

    with pytest.raises(DataError, match="unpacks to more than"):
        read_weights(tmp_path / "head.npz")
