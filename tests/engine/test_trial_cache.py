"""The cache of the running trial answers like the database, and reads the trial once."""

from typing import cast

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial

from automl.engine.optuna_trials import fail
from automl.engine.trial_cache import CachedTrialStorage


class Counting(InMemoryStorage):
    """A storage that counts how often a trial was read."""

    reads = 0

    def get_trial(self, trial_id):
        self.reads += 1
        return super().get_trial(trial_id)


def cached_trial(storage: Counting):
    """A running trial, the storage that caches it, and a study on that storage."""
    optuna.create_study(storage=storage, study_name="s")
    cache = CachedTrialStorage(storage)
    study = optuna.load_study(study_name="s", storage=cast(BaseStorage, cache))
    id = storage.create_new_trial(0, create_trial(state=TrialState.RUNNING))
    storage.reads = 0
    return cache, study, optuna.Trial(study, cache.load(id))


def test_it_has_everything_that_was_written_through_it():
    storage = Counting()
    cache, study, trial = cached_trial(storage)
    trial.suggest_float("x", 0.0, 1.0)
    trial.suggest_categorical("c", ["a", "b"])
    trial.report(0.5, 3)
    trial.set_user_attr("u", [1])
    trial.set_constraint("memory", 1.0)
    known, stored = cache.get_trial(0), storage.get_trial(0)
    assert known == stored
    study.tell(trial, 0.25)
    known, stored = cache.get_trial(0), storage.get_trial(0)
    assert (
        (known.state, known.values)
        == (stored.state, stored.values)
        == (TrialState.COMPLETE, [0.25])
    )
    assert known.datetime_complete is not None


def test_it_reads_a_trial_once():
    storage = Counting()
    _, study, trial = cached_trial(storage)
    trial.suggest_float("x", 0.0, 1.0)
    study.tell(trial, 0.25)
    assert storage.reads == 1


def test_a_returned_trial_is_a_copy():
    cache, _, trial = cached_trial(Counting())
    cache.get_trial(0).params["x"] = 1.0
    cache.get_trial(0).user_attrs["u"] = 1
    assert cache.get_trial(0).params == trial.user_attrs == {}


def test_other_trials_are_read_from_the_storage():
    storage = Counting()
    cache, study, _ = cached_trial(storage)
    other = study.ask()
    storage.set_trial_user_attr(1, "u", 2)
    assert cache.get_trial(1).user_attrs == {"u": 2}
    cache.load(1)
    storage.set_trial_user_attr(0, "u", 3)
    assert cache.get_trial(0).user_attrs == {"u": 3}
    assert other.number == 1


def test_a_trial_ended_by_another_worker_is_not_changed():
    storage = Counting()
    _, study, _ = cached_trial(storage)
    storage.set_trial_state_values(0, TrialState.COMPLETE, [0.25])
    fail(study, 0)
    assert storage.get_trial(0).state is TrialState.COMPLETE
    fail(optuna.load_study(study_name="s", storage=storage), 0)
    assert storage.get_trial(0).values == [0.25]


def test_an_abandoned_trial_fails():
    storage = Counting()
    _, study, _ = cached_trial(storage)
    fail(study, 0)
    assert storage.get_trial(0).state is TrialState.FAIL
