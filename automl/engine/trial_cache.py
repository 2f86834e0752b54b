"""Caches the running trial in front of Optuna's storage.

Optuna reads a trial again before and after each tell, with six statements each time.
Only the worker that holds the lease writes to the trial, so it can read it from memory instead.
"""

import copy
import os
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any, ParamSpec, TypeVar

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from automl.errors import TrialError, UnstorableError
from automl.storage.collation import name_conflict
from automl.storage.long_steps import is_reserved
from automl.trial_code.boundary import EngineCode, end_forked, is_in_trial_code

P = ParamSpec("P")
T = TypeVar("T")


class CachedTrialStorage:
    """A storage that caches one trial, which no other process writes to.

    It has every method of a BaseStorage. Those that are not defined here are those of the inner
    storage. A trial's code can call it, but not interrupt it.

    Args:
        storage: The inner storage.
        name_like: Called with a name and others; returns the one of them that the database does
            not distinguish from it, or None.
        shown: The database, for error messages.
        study_id: The study of the cached trials.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name_like: Callable[[str, Collection[str]], str | None] = lambda name, others: None,
        shown: str = "",
        study_id: int | None = None,
    ) -> None:
        self._storage, self._study_id = storage, study_id
        self._name_like, self._shown = name_like, shown
        self._cached: FrozenTrial | None = None
        self._id = -1
        self._pid = os.getpid()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return partial(self._call, found) if callable(found) else found

    def load(self, trial_id: int) -> int:
        """Cache a trial in place of the one before, and return its id."""
        self._cached, self._id = copy.deepcopy(self._storage.get_trial(trial_id)), trial_id
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        cached = self._find(trial_id)
        if cached is not None:
            return copy.deepcopy(cached)
        return self._call(self._storage.get_trial, trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        if (cached := self._find(trial_id)) is not None:
            self._check_name("decisions", param_name, cached.params)
        given = (trial_id, param_name, param_value_internal, distribution)
        try:
            self._call(self._storage.set_trial_param, *given)
        except ValueError as error:
            # Its kind differs from that in an earlier trial, perhaps of a similar name.
            if (other := self._call(self._like_any, param_name)) is not None:
                raise name_conflict("decisions", other, param_name, self._shown) from error
            raise
        if (cached := self._find(trial_id)) is not None:
            value = distribution.to_external_repr(param_value_internal)
            cached.params = {**cached.params, param_name: value}
            cached.distributions = {**cached.distributions, param_name: distribution}

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        reported = (trial_id, step, intermediate_value)
        self._call(self._storage.set_trial_intermediate_value, *reported)
        if (cached := self._find(trial_id)) is not None:
            cached.intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if (cached := self._find(trial_id)) is not None:
            self._check_name("attributes", key, cached.user_attrs)
        self._call(self._storage.set_trial_user_attr, trial_id, key, value)
        if (cached := self._find(trial_id)) is not None:
            cached.set_user_attr(key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if is_in_trial_code() and is_reserved(key):
            raise UnstorableError(
                f"attribute {key!r} cannot be stored: its name is reserved by automl"
            )
        if (cached := self._find(trial_id)) is not None:
            self._check_name("attributes", key, cached.system_attrs)
        self._call(self._storage.set_trial_system_attr, trial_id, key, value)
        if (cached := self._find(trial_id)) is not None:
            cached.system_attrs = {**cached.system_attrs, key: value}

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if is_in_trial_code():
            raise TrialError(
                "a trial's code cannot set how a trial ended: yield a Report, or raise an error"
            )
        done = self._call(self._storage.set_trial_state_values, trial_id, state, values)
        if (cached := self._find(trial_id)) is not None and state.is_finished():
            cached.state = state
            cached.values = None if values is None else list(values)
            cached.datetime_complete = datetime.now()
        return done

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != self._pid:
            end_forked()
        with EngineCode():
            return method(*args, **kwargs)

    def _check_name(self, kind: str, name: str, others: Collection[str]) -> None:
        """Check that the database distinguishes a new name from those that the trial has.

        Raises:
            CandidateError: The database does not.
        """
        if name in others:
            return
        if (other := self._call(self._name_like, name, others)) is not None:
            raise name_conflict(kind, other, name, self._shown)

    def _like_any(self, name: str) -> str | None:
        """A decision of any trial that the database does not distinguish from this name."""
        if self._study_id is None:
            return None
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return self._name_like(name, {each for trial in trials for each in trial.params})

    def _find(self, trial_id: int) -> FrozenTrial | None:
        return self._cached if trial_id == self._id else None
