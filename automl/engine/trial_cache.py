"""Optuna's storage as the holder of a lease sees it: its own trial is read from memory.

Optuna reads a trial from the database again before and after it is told, six statements each time.
Who holds the lease has written all there is, and so knows it.
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


class HoldingStorage:
    """A storage that knows one trial, which nobody else writes to; all else is the storage's own.

    It has every method of a BaseStorage: those that are not here are the inner storage's. A
    trial's code may call it, but not interrupt it.

    name_like: one of other names that the database takes for a name. shown: the database, for
    people. study_id: the study whose trials are held.
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
        self._held: FrozenTrial | None = None
        self._id = -1
        self._pid = os.getpid()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return partial(self._call, found) if callable(found) else found

    def hold(self, trial_id: int) -> int:
        """Read a trial once, and know it from now on instead of the one before."""
        self._held, self._id = copy.deepcopy(self._storage.get_trial(trial_id)), trial_id
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        held = self._known(trial_id)
        if held is not None:
            return copy.deepcopy(held)
        return self._call(self._storage.get_trial, trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        if (held := self._known(trial_id)) is not None:
            self._check_name("decisions", param_name, held.params)
        given = (trial_id, param_name, param_value_internal, distribution)
        try:
            self._call(self._storage.set_trial_param, *given)
        except ValueError as error:
            # Of another kind than in an earlier trial; but was it the same decision there?
            if (other := self._call(self._like_any, param_name)) is not None:
                raise name_conflict("decisions", other, param_name, self._shown) from error
            raise
        if (held := self._known(trial_id)) is not None:
            value = distribution.to_external_repr(param_value_internal)
            held.params = {**held.params, param_name: value}
            held.distributions = {**held.distributions, param_name: distribution}

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        reported = (trial_id, step, intermediate_value)
        self._call(self._storage.set_trial_intermediate_value, *reported)
        if (held := self._known(trial_id)) is not None:
            held.intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if (held := self._known(trial_id)) is not None:
            self._check_name("attributes", key, held.user_attrs)
        self._call(self._storage.set_trial_user_attr, trial_id, key, value)
        if (held := self._known(trial_id)) is not None:
            held.set_user_attr(key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if is_in_trial_code() and is_reserved(key):
            raise UnstorableError(f"attribute {key!r} cannot be stored: its name is automl's own")
        if (held := self._known(trial_id)) is not None:
            self._check_name("attributes", key, held.system_attrs)
        self._call(self._storage.set_trial_system_attr, trial_id, key, value)
        if (held := self._known(trial_id)) is not None:
            held.system_attrs = {**held.system_attrs, key: value}

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if is_in_trial_code():
            raise TrialError("a trial's code cannot tell how a trial ended: report, or raise")
        done = self._call(self._storage.set_trial_state_values, trial_id, state, values)
        if (held := self._known(trial_id)) is not None and state.is_finished():
            held.state = state
            held.values = None if values is None else list(values)
            held.datetime_complete = datetime.now()
        return done

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != self._pid:
            end_forked()
        with EngineCode():
            return method(*args, **kwargs)

    def _check_name(self, kind: str, name: str, others: Collection[str]) -> None:
        """See that the database does not take a new name for one that the trial has.

        Raises:
            CandidateError: it does.
        """
        if name in others:
            return
        if (other := self._call(self._name_like, name, others)) is not None:
            raise name_conflict(kind, other, name, self._shown)

    def _like_any(self, name: str) -> str | None:
        """A decision of any trial of the study that the database takes for this name."""
        if self._study_id is None:
            return None
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return self._name_like(name, {each for trial in trials for each in trial.params})

    def _known(self, trial_id: int) -> FrozenTrial | None:
        return self._held if trial_id == self._id else None
