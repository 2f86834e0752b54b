"""The built-in search spaces."""

import optuna
import pytest
import torch
from automl_plugins.tasks.digits import digits
from automl_plugins.trainers.supervised import Supervised
from automl_searchspaces.cnn import cnn
from automl_searchspaces.mlp import mlp
from optuna.trial import FixedTrial
from toys import a_run, blobs

from automl import CandidateError, Classification
from automl.candidate import propose
from automl.testing import check_space

HYPERPARAMETERS = {"optimizer", "lr", "weight_decay", "batch_size"}


@pytest.fixture(scope="module")
def task():
    return digits()


def ask(space, task, seed=0, **options):
    sampler = optuna.samplers.RandomSampler(seed=seed)
    trial = optuna.create_study(sampler=sampler).ask()
    return propose(lambda deciding: space(deciding, task, **options), trial)


@pytest.mark.parametrize(
    ("space", "openable"),
    [
        (mlp, {"activation", "normalization", "dropout"}),
        (cnn, {"activation", "normalization", "dropout", "pooling"}),
    ],
)
def test_it_is_a_sound_space_and_says_what_can_be_open(space, openable, task):
    assert check_space(space, task) == openable | HYPERPARAMETERS


@pytest.mark.parametrize("space", [mlp, cnn])
def test_it_runs_in_plain_optuna(space, task):
    def parameters(trial):
        module = space(trial, task).build()
        return sum(p.numel() for p in module.parameters())

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(parameters, n_trials=5)
    again = [parameters(FixedTrial(trial.params)) for trial in study.trials]
    assert again == [trial.value for trial in study.trials]


@pytest.mark.parametrize("space", [mlp, cnn])
def test_the_trainer_reads_its_hyperparameters(space, task):
    for seed in range(10):
        candidate = ask(space, task, seed)
        assert set(candidate.hyperparameters) == HYPERPARAMETERS
        Supervised().configured(candidate.hyperparameters)


def test_options_bound_an_mlp(task):
    for seed in range(10):
        options = {"max_layers": 1, "min_width": 5, "max_width": 6, "max_dropout": 0.1}
        decisions = ask(mlp, task, seed, **options, min_lr=0.01, max_lr=0.02).decisions
        assert decisions["layers"] == 1
        assert decisions["width_0"] in (5, 6)
        assert decisions["dropout"] <= 0.1
        assert 0.01 <= decisions["lr"] <= 0.02


def test_options_bound_a_cnn(task):
    for seed in range(10):
        options = {"max_stages": 1, "max_blocks": 1, "min_channels": 3, "max_channels": 4}
        decisions = ask(cnn, task, seed, **options).decisions
        assert (decisions["stages"], decisions["blocks_0"]) == (1, 1)
        assert decisions["channels"] in (3, 4)


@pytest.mark.parametrize(("side", "most"), [(2, 1), (3, 1), (4, 2), (9, 3), (28, 4)])
def test_a_cnn_has_no_more_stages_than_its_images_can_be_halved(side, most):
    images = torch.rand(20, 3, side, side)
    task = Classification.from_arrays("noise", images, [0, 1] * 10)
    stages = set()
    for seed in range(12):
        candidate = ask(cnn, task, seed, max_stages=9, max_channels=8)
        candidate.build(task.probe()[0], task.signature)
        stages.add(candidate.decisions["stages"])
    assert max(stages) == most


def test_a_cnn_needs_images():
    with pytest.raises(CandidateError, match=r"cnn needs images.*\(4,\): try space mlp"):
        ask(cnn, blobs())


def test_twenty_random_mlps_reach_95_percent_on_digits(task, tmp_path):
    def accuracy(number):
        run = a_run(tmp_path / str(number), seed=number)
        *_, last = Supervised().train(ask(mlp, task, number), task, run)
        return last.metrics["accuracy"]

    assert any(accuracy(number) >= 0.95 for number in range(20))
