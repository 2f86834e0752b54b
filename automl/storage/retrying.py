"""Retries calls of Optuna's storage during outages."""

from collections.abc import Callable, Container, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.errors import StorageError
from automl.ledger.outages import OutageRetry
from automl.ledger.sql_errors import is_unstorable
from automl.ledger.transaction import retry_deadlocks, unstorable
from automl.storage.long_steps import attribute_of, is_long, with_long_steps

P = ParamSpec("P")
T = TypeVar("T")


class StorageErrors(Protocol):
    """Classifies the errors that a kind of storage raises."""

    @property
    def shown(self) -> str:
        """The storage's URL without its password."""
        ...

    def is_outage(self, error: Exception) -> bool:
        """Whether an error means that the storage is unavailable."""
        ...

    def is_transient(self, error: Exception) -> bool:
        """Whether the call may succeed if it is retried at once."""
        ...

    def cause(self, error: Exception) -> str | None:
        """Describe a failure of the storage in one line; return None for any other error."""
        ...


class RetryingStorage(BaseStorage):
    """Calls another storage, and retries the call while that storage is unavailable.

    A failure of the storage raises a StorageError. A value that it cannot hold raises an
    UnstorableError, which fails the trial. Most calls overwrite what they wrote before, so they can
    be repeated; a new trial, or the end of one, is looked up first.

    Args:
        storage: The storage to call.
        errors: Classifies that storage's errors.
        outage_retry: How long to wait during outages.
    """

    def __init__(
        self, storage: BaseStorage, errors: StorageErrors, outage_retry: OutageRetry
    ) -> None:
        self._storage, self._errors, self._outage_retry = storage, errors, outage_retry

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._retry(lambda is_retry: method(*args, **kwargs))

    def _retry(self, call: Callable[[bool], T]) -> T:
        errors = self._errors

        def once(is_retry: bool) -> T:
            return retry_deadlocks(call, is_retry, errors.is_transient)

        def is_outage(error: Exception) -> bool:
            return errors.is_outage(error) or errors.is_transient(error)

        try:
            return self._outage_retry.run(errors.shown, once, is_outage)
        except Exception as error:
            if (rejection := _unstorable(error)) is not None:
                raise unstorable(rejection, errors.shown) from error
            cause = errors.cause(error)
            if cause is None:
                raise
            raise StorageError(f"database {errors.shown}: {cause}") from error

    # Studies.
    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self._call(self._storage.create_new_study, directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._call(self._storage.delete_study, study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._call(self._storage.set_study_user_attr, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._call(self._storage.set_study_system_attr, study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._call(self._storage.get_study_id_from_name, study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._call(self._storage.get_study_name_from_id, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._call(self._storage.get_study_directions, study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._call(self._storage.get_study_user_attrs, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._call(self._storage.get_study_system_attrs, study_id)

    def get_all_studies(self) -> list[Any]:
        return self._call(self._storage.get_all_studies)

    # Trials.
    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        def create(is_retry: bool) -> int:
            created = self._created_before(study_id, template_trial) if is_retry else None
            if created is not None:
                return created
            return self._storage.create_new_trial(study_id, template_trial)

        return self._retry(create)

    def _created_before(self, study_id: int, template: FrozenTrial | None) -> int | None:
        """Return the trial that an earlier call created although its reply was lost.

        It is found by its attributes, which hold the id of its row in the ledger.
        """
        if template is None or not template.user_attrs:
            return None
        trials = self._storage.get_all_trials(study_id, deepcopy=False, states=(template.state,))
        for trial in trials:
            if trial.user_attrs == template.user_attrs:
                number = trial.number
                return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return None

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        given = (trial_id, param_name, param_value_internal, distribution)

        def write(is_retry: bool) -> None:
            try:
                self._storage.set_trial_param(*given)
            except KeyError:
                # After a restart, Optuna's proxy only accepts parameters of trials it has read.
                self._read_all()
                self._storage.set_trial_param(*given)

        self._retry(write)

    def _read_all(self) -> None:
        for study in self._storage.get_all_studies():
            id = self._storage.get_study_id_from_name(study.study_name)
            self._storage.get_all_trials(id, deepcopy=False)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        def end(is_retry: bool) -> bool:
            try:
                return self._storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if is_retry and self._storage.get_trial(trial_id).state is state:
                    return True
                raise

        return self._retry(end)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        value = intermediate_value
        if is_long(step):
            self.set_trial_system_attr(trial_id, attribute_of(step), value)
        else:
            self._call(self._storage.set_trial_intermediate_value, trial_id, step, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._call(self._storage.set_trial_user_attr, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._call(self._storage.set_trial_system_attr, trial_id, key, value)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        get = self._storage.get_trial_id_from_study_id_trial_number
        return self._call(get, study_id, trial_number)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self._call(self._storage.get_trial_number_from_id, trial_id)

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        return self._call(self._storage.get_trial_param, trial_id, param_name)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return with_long_steps(self._call(self._storage.get_trial, trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        found = self._call(self._storage.get_all_trials, study_id, deepcopy, states)
        return [with_long_steps(trial) for trial in found]

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        return self._call(self._storage.get_n_trials, study_id, state)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return with_long_steps(self._call(self._storage.get_best_trial, study_id))

    def remove_session(self) -> None:
        self._storage.remove_session()


def _unstorable(error: BaseException) -> Exception | None:
    """Return the error, behind one of Optuna's, of a database that cannot hold a value."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, Exception) and is_unstorable(found):
            return found
        found = found.__cause__
    return None
