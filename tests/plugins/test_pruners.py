"""The built-in pruners: one never stops, one halves."""

import optuna
import pytest
from automl_plugins.pruners.asha import asha
from automl_plugins.pruners.none import none

from automl.testing import check_pruner


def stopped_at(pruner, qualities, direction="maximize"):
    """The step at which each of a row of trials of constant quality is stopped, or None."""
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


@pytest.mark.parametrize("factory", [none, asha, lambda: asha(reduction_factor=2)])
def test_it_is_a_sound_pruner(factory):
    check_pruner(factory)


def test_none_never_stops_a_trial():
    assert stopped_at(none(), [5, 4, 3, 2, 1]) == [None] * 5


def test_asha_goes_on_with_the_better_half():
    assert stopped_at(asha(reduction_factor=2), [4, 3, 2, 1]) == [None, 1, 1, 1]
    assert stopped_at(asha(reduction_factor=2), [1, 2, 3, 4]) == [None] * 4


def test_asha_minimises_as_well():
    assert stopped_at(asha(reduction_factor=2), [1, 2, 3], "minimize") == [None, 1, 1]


def test_asha_waits_for_its_first_step():
    assert stopped_at(asha(reduction_factor=2, min_resource=4), [4, 3]) == [None, 4]
    late = asha(reduction_factor=2, min_early_stopping_rate=1)
    assert stopped_at(late, [4, 3]) == [None, 2]


def test_asha_stops_the_first_ones_to_have_a_comparison():
    assert stopped_at(asha(reduction_factor=2, bootstrap_count=2), [1, 2, 3]) == [1, 1, 2]
