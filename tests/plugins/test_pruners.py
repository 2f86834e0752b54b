"""The built-in pruners stop the right trials at the right steps."""

import optuna
import pytest
from automl_plugins.pruners.asha import asha
from automl_plugins.pruners.hyperband import hyperband
from automl_plugins.pruners.median import median
from automl_plugins.pruners.none import none
from automl_plugins.pruners.patient import patient
from automl_plugins.pruners.threshold import threshold
from automl_plugins.pruners.wilcoxon import wilcoxon

from automl.testing import check_pruner


def stopped_at(pruner, qualities, direction="maximize"):
    """Return the step at which each trial of constant quality is stopped, or None."""
    study = optuna.create_study(direction=direction, pruner=pruner)
    steps = []
    for quality in qualities:
        trial = study.ask()
        stopped = None
        for step in range(1, 9):
            trial.report(quality, step)
            if trial.should_prune():
                stopped = step
                break
        state = optuna.trial.TrialState.PRUNED if stopped else None
        study.tell(trial, None if stopped else quality, state)
        steps.append(stopped)
    return steps


@pytest.mark.parametrize(
    "factory",
    [
        none,
        asha,
        lambda: asha(reduction_factor=2),
        median,
        hyperband,
        patient,
        wilcoxon,
        lambda: threshold(lower=0.0),
    ],
)
def test_it_passes_the_pruner_suite(factory):
    check_pruner(factory)


def test_none_never_stops_a_trial():
    assert stopped_at(none(), [5, 4, 3, 2, 1]) == [None] * 5


def test_asha_continues_the_better_half():
    assert stopped_at(asha(reduction_factor=2), [4, 3, 2, 1]) == [None, 1, 1, 1]
    assert stopped_at(asha(reduction_factor=2), [1, 2, 3, 4]) == [None] * 4


def test_asha_also_minimizes():
    assert stopped_at(asha(reduction_factor=2), [1, 2, 3], "minimize") == [None, 1, 1]


def test_asha_waits_for_its_first_step():
    assert stopped_at(asha(reduction_factor=2, min_resource=4), [4, 3]) == [None, 4]
    late = asha(reduction_factor=2, min_early_stopping_rate=1)
    assert stopped_at(late, [4, 3]) == [None, 2]


def test_asha_stops_the_first_trials_for_comparison():
    assert stopped_at(asha(reduction_factor=2, bootstrap_count=2), [1, 2, 3]) == [1, 1, 2]


def test_median_stops_the_worse_half():
    assert stopped_at(median(startup_trials=2), [1, 3, 2.5, 1.5, 4]) == [None, None, None, 1, None]
    keen = median(startup_trials=2, percentile=25)
    assert stopped_at(keen, [1, 3, 2.4, 4]) == [None, None, 1, None]


def test_thresholds_stop_trials_out_of_range():
    assert stopped_at(threshold(lower=2, warmup_steps=3), [1, 2, 3]) == [3, None, None]
    assert stopped_at(threshold(upper=2), [1, 2, 3]) == [None, None, 1]


def test_patience_stops_a_trial_that_gets_worse():
    study = optuna.create_study(direction="maximize", pruner=patient(patience=3, min_delta=0.5))
    trial, stopped = study.ask(), []
    for step, value in enumerate([1.0, 2.0, 1.8, 1.8, 1.4, 1.4, 1.4, 1.4], 1):
        trial.report(value, step)
        stopped.append(trial.should_prune())
    # The best of four reports in a row is below 2.0 by more than 0.5.
    assert stopped.index(True) == 7


def test_hyperband_stops_some_of_many():
    steps = stopped_at(hyperband(max_resource=8, reduction_factor=2), [1] * 3 + [0] * 30)
    assert None in steps
    assert {step for step in steps if step} <= {1, 2, 4, 8}
    assert any(steps)


def test_wilcoxon_stops_a_trial_that_is_worse_at_every_step():
    worse = wilcoxon(p_threshold=0.1)
    assert stopped_at(worse, [2, 1]) == [None, 4]
