"""Tasks from arrays in a file."""

import numpy as np
import pytest
from automl_plugins.tasks.npz import npz

from automl import Classification, Goal, Regression, Split, UsageError
from automl.testing import check_task

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(60, 2, 3))
AS_CLASSES = {"goal": Goal.CLASSIFICATION}


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_integers_are_classes_and_reals_are_regression_targets(tmp_path):
    labels = np.arange(60) % 3
    check_task(task := npz(file=saved(tmp_path / "a.npz", x=X, y=labels)))
    assert isinstance(task, Classification)
    assert task.signature.input_shape == (2, 3)
    check_task(task := npz(file=saved(tmp_path / "b.npz", x=X, y=X[:, 0, 0])))
    assert isinstance(task, Regression)
    counted = npz(file=tmp_path / "a.npz", goal=Goal.REGRESSION)
    assert counted.signature.output_shape == (1,)


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (np.arange(60) % 2 == 1, ("False", "True")),
        ((np.arange(60) % 3)[:, None], ("0", "1", "2")),
        ((np.arange(60) % 2) * 2 - 1, ("-1", "1")),
        (np.arange(60) % 3 + 7, ("7", "8", "9")),
        (np.array(["a", "b"])[np.arange(60) % 2], ("a", "b")),
    ],
)
def test_classes_keep_their_names(tmp_path, targets, labels):
    task = npz(file=saved(tmp_path / "a.npz", x=X, y=targets))
    check_task(task)
    assert task.preparation.labels == labels
    rows = task.splits[Split.TEST].numpy()
    named = [labels[n] for n in task.split(Split.TEST)[1].tolist()]
    assert named == [*map(str, targets[rows].reshape(-1).tolist())]


@pytest.mark.parametrize(
    ("arrays", "given", "said"),
    [
        ({"x": X, "y": np.arange(60)}, {}, "60 classes in 60 rows: to predict numbers, pass -o"),
        ({"x": X, "y": X[:, 0, 0]}, {"goal": Goal.CLASSIFICATION}, "expected classes"),
        ({"x": X.astype(complex), "y": X[:, 0, 0]}, {}, "'x' contains complex128 of shape"),
        ({"x": X.astype(str), "y": X[:, 0, 0]}, {}, "expected numbers"),
        ({"x": np.array(3.0), "y": np.arange(60) % 2}, {}, r"of shape \(\); expected numbers"),
        ({"x": X, "y": np.zeros((60, 2, 2))}, {}, r"expected real numbers \[n\] or"),
        ({"x": X, "y": np.array([0, 1, np.inf] * 20)}, AS_CLASSES, "expected classes"),
        ({"x": X, "y": np.array([0, 1, 1e300] * 20)}, AS_CLASSES, "expected classes"),
        ({"x": X, "y": np.zeros(0)}, {}, "expected real numbers"),
        ({"x": X, "y": np.zeros(0, int)}, {}, "targets are empty"),
        ({"x": X[:, :0], "y": X[:, 0, 0]}, {}, r"of shape \(60, 0, 3\); expected numbers"),
        ({"x": X * np.longdouble("1e4000"), "y": X[:, 0, 0]}, {}, "contains NaN or infinity"),
        ({}, {}, "arrays: none"),
    ],
)
def test_arrays_that_cannot_be_learned(tmp_path, arrays, given, said):
    with pytest.raises(UsageError, match=said):
        npz(file=saved(tmp_path / "a.npz", **arrays), **given)


def test_array_names_are_options(tmp_path):
    file = saved(tmp_path / "a.npz", images=X, labels=np.arange(60) % 3)
    with pytest.raises(UsageError, match="no array 'x'; arrays: images, labels"):
        npz(file=file)
    assert npz(file=file, inputs="images", targets="labels").classes == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"nothing", "cannot read .* as .npz"),
        (b"PK\x03\x04", "cannot read"),
        (b"", "cannot read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, said):
    file = tmp_path / "a.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        npz(file=file)


def test_a_single_array_is_rejected(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(UsageError, match="has one array; expected two named ones"):
        npz(file=tmp_path / "a.npy")


def test_nothing_is_unpickled(tmp_path):
    file = saved(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.arange(1))
    with pytest.raises(UsageError, match="cannot read"):
        npz(file=file)
