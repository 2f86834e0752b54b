"""Annealing passes the strategy suite, and finds better values than random search."""

import optuna
from automl.testing import check_strategy

from automl_example_plugin.annealing import Annealing


def test_it_passes_the_strategy_suite() -> None:
    check_strategy(Annealing)


def objective(trial: optuna.Trial) -> float:
    x, y = (trial.suggest_float(name, -1.0, 1.0) for name in "xy")
    return (x - 0.3) ** 2 + (y + 0.6) ** 2 + (trial.suggest_categorical("kind", "ab") == "a")


def found(sampler: optuna.samplers.BaseSampler) -> float:
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=40)
    return study.best_value


def test_it_beats_random_search() -> None:
    ours = [found(Annealing(seed=seed)) for seed in range(5)]
    random = [found(optuna.samplers.RandomSampler(seed=seed)) for seed in range(5)]
    assert sum(ours) < sum(random) / 2


def test_it_works_with_several_objectives() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=Annealing(seed=0))
    study.optimize(lambda trial: (objective(trial), trial.params["x"]), n_trials=12)
    assert len(study.trials) == 12
