"""The online trainer: the examples it shows and their order, when it stops, and resuming."""

import math

import pytest
import torch
from automl_plugins.tasks.digits import digits
from automl_plugins.trainers.online import Online
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Line, a_run, blobs, linear

from automl import Candidate, NotFiniteError, Split, TrialError
from automl.testing import check_trainer


class Centroids(nn.Module):
    """Learns the running mean of each class and scores by the distance to it."""

    def __init__(self, features=4, classes=3):
        super().__init__()
        self.register_buffer("sums", torch.zeros(classes, features))
        self.register_buffer("counts", torch.zeros(classes))

    def forward(self, x):
        centres = self.sums / self.counts.clamp(min=1).unsqueeze(1)
        return -torch.cdist(x.flatten(1), centres)

    def learn(self, inputs, targets):
        assert self.training
        self.sums.index_add_(0, targets, inputs.flatten(1))
        self.counts.index_add_(0, targets, torch.ones(len(targets)))


class Last(nn.Module):
    """Predicts the last target, and remembers the sums of all inputs that it received."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.register_buffer("last", torch.zeros(1))
        self.shown = []

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.last.expand(len(x), 1)

    def learn(self, inputs, targets):
        for x, y in zip(inputs, targets, strict=True):
            self.shown.append(x.sum().item())
            self.last.copy_(self.factor * y + (self.factor != 1.0) * self.factor * self.last)


def shown(directory, task=None, seed=0, probe=False, **options):
    """Return the examples that a module receives in a training, by epoch."""
    module = Last()
    run = a_run(directory, seed, probe=probe)
    reports = list(Online(**options).train(Candidate(lambda: module), task or Line(), run))
    return reports, module.shown


def centroids(trial, task):
    return Candidate(lambda: Centroids(trial.suggest_int("features", 4, 4)))


def test_it_passes_the_trainer_suite(tmp_path):
    check_trainer(Online(epochs=3, examples=40), centroids, blobs(), tmp_path)


def test_it_shows_the_training_examples(tmp_path):
    task = digits()
    candidate = Candidate(lambda: Centroids(64, 10))
    (report,) = Online().train(candidate, task, a_run(tmp_path))
    assert report.metrics["accuracy"] > 0.85
    assert set(report.metrics) == set(task.metrics)


def test_each_epoch_shows_every_example_once_in_a_new_order(tmp_path):
    task = Line()
    reports, seen = shown(tmp_path, task, epochs=2)
    first, second = seen[: task.examples], seen[task.examples :]
    every = [x.sum().item() for x in task.split(Split.TRAIN)[0]]
    assert sorted(first) == sorted(second) == sorted(every)
    assert first != second
    assert every not in (first, second)
    assert [report.step for report in reports] == [1, 2]


def test_the_order_depends_only_on_the_seed(tmp_path):
    _, first = shown(tmp_path)
    torch.rand(5)
    assert shown(tmp_path)[1] == first
    assert shown(tmp_path, seed=1)[1] != first


@given(epochs=st.integers(1, 3), examples=st.none() | st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_it_shows_at_most_the_given_number_of_examples(tmp_path_factory, epochs, examples):
    task = Line()
    _, seen = shown(tmp_path_factory.mktemp("run"), task, epochs=epochs, examples=examples)
    assert len(seen) == epochs * min(examples or math.inf, task.examples)


def test_a_probe_yields_at_least_three_reports(tmp_path):
    assert len(shown(tmp_path, probe=True)[0]) == 3
    assert len(shown(tmp_path, probe=True, epochs=5)[0]) == 5


def test_it_ticks_for_each_batch(tmp_path):
    ticks = []
    run = a_run(tmp_path, progress=lambda: ticks.append(1))
    list(Online(epochs=2).train(Candidate(Last), Line(examples=130), run))
    assert len(ticks) == 2 * (3 + 1)


def test_divergence_names_the_epoch(tmp_path):
    candidate = Candidate(lambda: Last(factor=1e3))
    with pytest.raises(NotFiniteError, match="outputs became NaN or infinite in epoch 1"):
        list(Online().train(candidate, Line(), a_run(tmp_path)))


def test_a_module_that_cannot_learn_is_named(tmp_path):
    with pytest.raises(TrialError, match=r"Sequential has no learn.*trainer supervised"):
        next(
            Online().train(
                Candidate(lambda: nn.Sequential(nn.Linear(3, 1))), Line(), a_run(tmp_path)
            )
        )


def test_hyperparameters_are_rejected(tmp_path):
    with pytest.raises(TrialError, match="takes no hyperparameters; the candidate has: 'lr'"):
        next(Online().train(linear(Line(), lr=0.1), Line(), a_run(tmp_path)))


# Resuming.
@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_training_is_bit_identical(tmp_path, after):
    task, trainer = blobs(), Online(epochs=4, examples=20)
    whole = list(trainer.train(Candidate(Centroids), task, a_run(tmp_path / "whole")))
    run = a_run(tmp_path / "cut")
    reports = trainer.train(Candidate(Centroids), task, run)
    for _ in range(after):
        report = next(reports)
    run.save(report.checkpoint())
    next(reports)  # an epoch that is lost
    reports.close()
    rest = list(trainer.train(Candidate(Centroids), task, run))
    assert [r.step for r in rest] == list(range(after + 1, 5))
    assert [r.metrics for r in rest] == [r.metrics for r in whole[after:]]
    state, again = whole[-1].checkpoint()["module"], rest[-1].checkpoint()["module"]
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_a_finished_training_repeats_its_last_report(tmp_path):
    task, run = blobs(), a_run(tmp_path)
    (report,) = Online().train(Candidate(Centroids), task, run)
    run.save(report.checkpoint())
    (again,) = Online().train(Candidate(Centroids), task, run)
    assert (again.step, again.metrics) == (report.step, report.metrics)


@pytest.mark.parametrize(
    ("settings", "make"), [({"epochs": 2}, Centroids), ({}, lambda: Centroids(4, 5))]
)
def test_a_foreign_checkpoint_restarts_the_training(tmp_path, caplog, settings, make):
    task, run = blobs(), a_run(tmp_path / "old")
    run.save(next(Online().train(Candidate(Centroids), task, run)).checkpoint())
    task = blobs(classes=make().counts.numel())
    fresh = next(Online(**settings).train(Candidate(make), task, a_run(tmp_path / "none")))
    report = next(Online(**settings).train(Candidate(make), task, run))
    assert (report.step, report.metrics) == (1, fresh.metrics)
    assert "does not fit this trial" in caplog.text
    assert "starting over" in caplog.text


@pytest.mark.parametrize("options", [{"epochs": 0}, {"examples": 0}, {"examples": -1}])
def test_a_value_out_of_its_range_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 1"):
        Online(**options)
