"""Tasks made of arrays in a file."""

import numpy as np
import pytest
from automl_plugins.tasks.npz import npz

from automl import Classification, Goal, Regression, UsageError
from automl.testing import check_task

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(60, 2, 3))


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_whole_numbers_are_classes_and_others_are_predicted(tmp_path):
    labels = np.arange(60) % 3
    check_task(task := npz(file=saved(tmp_path / "a.npz", x=X, y=labels)))
    assert isinstance(task, Classification)
    assert task.signature.input_shape == (2, 3)
    check_task(task := npz(file=saved(tmp_path / "b.npz", x=X, y=X[:, 0, 0])))
    assert isinstance(task, Regression)
    counted = npz(file=tmp_path / "a.npz", goal=Goal.REGRESSION)
    assert counted.signature.output_shape == (1,)


def test_arrays_have_the_names_that_are_said(tmp_path):
    file = saved(tmp_path / "a.npz", images=X, labels=np.arange(60) % 3)
    with pytest.raises(UsageError, match="no array 'x'; there are: images, labels"):
        npz(file=file)
    assert npz(file=file, inputs="images", targets="labels").classes == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"nothing", "cannot read .* as .npz"),
        (b"PK\x03\x04", "cannot read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, said):
    file = tmp_path / "a.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        npz(file=file)


def test_nothing_is_unpickled(tmp_path):
    file = saved(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.arange(1))
    with pytest.raises(UsageError, match="cannot read"):
        npz(file=file)
