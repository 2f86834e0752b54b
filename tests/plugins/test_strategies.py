"""The built-in strategies pass the suite for strategies and take their options."""

import statistics

import optuna
import pytest
from automl_plugins.strategies.evolution import Evolution
from automl_plugins.strategies.random import random
from automl_plugins.strategies.tpe import tpe

from automl.testing import check_strategy


@pytest.mark.parametrize("factory", [random, tpe, Evolution])
def test_it_is_a_sound_strategy(factory):
    check_strategy(factory)


def test_small_populations_of_evolution_are_sound():
    check_strategy(lambda seed: Evolution(population=4, tournament=2, seed=seed))


def best_of(sampler):
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: (trial.suggest_float("x", -10, 10) - 2) ** 2, n_trials=40)
    return study.best_value


def test_tpe_comes_closer_than_random():
    closest, drawn = ([best_of(make(seed=seed)) for seed in range(5)] for make in (tpe, random))
    assert statistics.median(closest) < statistics.median(drawn)


def test_tpe_is_random_while_it_starts():
    study = optuna.create_study(sampler=tpe(startup_trials=5, seed=3))
    other = optuna.create_study(sampler=tpe(startup_trials=100, seed=3))
    for each in (study, other):
        each.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8)
    xs, others = ([trial.params["x"] for trial in each.trials] for each in (study, other))
    assert xs[:5] == others[:5]
    assert xs[5:] != others[5:]


def test_tpe_can_group_conditional_decisions():
    check_strategy(lambda seed: tpe(group=True, startup_trials=5, seed=seed))
