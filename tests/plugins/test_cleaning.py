"""Task cleaning, and space softmax, in which its labels are cleaned."""

import functools
from pathlib import Path

import pytest
import torch
from automl_plugins.tasks.cleaning import cleaning
from automl_plugins.tasks.digits import digits
from automl_searchspaces.softmax import softmax
from toys import blobs

from automl import Split, UnknownNameError, UsageError, installed_task
from automl.testing import check_space, check_task


def test_it_passes_the_task_suite():
    check_task(cleaning())


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_a_share_of_the_training_labels_is_wrong_and_no_others(noise):
    noisy, clean = cleaning(noise=noise), digits()
    for split in Split:
        assert torch.equal(noisy.split(split)[0], clean.split(split)[0])
        wrong = int((noisy.split(split)[1] != clean.split(split)[1]).sum())
        assert wrong == (round(noise * len(clean.split(split)[1])) if split is Split.TRAIN else 0)
    assert noisy.classes == clean.classes


def test_every_other_class_may_be_drawn():
    noisy, clean = cleaning(noise=1.0), digits()
    rows = clean.splits[Split.TRAIN]
    shifts = (noisy.targets - clean.targets)[rows] % 10
    assert set(shifts.tolist()) == set(range(1, 10))


def test_the_labels_depend_on_the_options():
    digests = {
        each.digest()
        for each in (
            cleaning(),
            cleaning(seed=1),
            cleaning(noise=0.3),
            cleaning(options={"seed": "1"}),
            digits(),
        )
    }
    assert len(digests) == 5
    assert cleaning().digest() in digests
    assert cleaning(noise=0.0).digest() == digits().digest()


def test_the_other_task_takes_options_and_a_file(tmp_path):
    file = tmp_path / "table.csv"
    rows = [f"{x},{'ab'[x % 2]}" for x in range(60)]
    file.write_text("\n".join(["x,y", *rows]))
    task = cleaning(of="csv", options={"target": "y"}, file=file, noise=0.5)
    assert task.signature.output_shape == (2,)
    assert len(cleaning(options={"test": "0.5"}).split(Split.TEST)[0]) == 899


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, "noise must be in"),
        ({"of": "diabetes"}, "diabetes is a Regression"),
        ({"of": "my_task.py:blobs"}, "name of an installed task"),
        ({"of": "csv", "options": {"file": "people.csv"}}, "option file is a path"),
        ({"options": {"sead": "1"}}, "did you mean 'seed'"),
    ],
    ids=["share", "numbers", "file", "hidden path", "option"],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(UsageError, match=message):
        cleaning(**options)


def test_only_installed_tasks_can_be_named():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        installed_task("digit")
    # `--data-dir` reaches every task; only some have such an option.
    assert installed_task("digits", data_dir=Path("unused")).digest() == digits().digest()


@pytest.mark.parametrize(
    ("options", "decisions"),
    [({}, {"lr", "l2"}), ({"weights": True}, {"lr", "l2", "example_weights"})],
)
def test_softmax_passes_the_space_suite_and_may_leave_everything_open(options, decisions):
    assert check_space(functools.partial(softmax, **options), blobs()) == decisions
