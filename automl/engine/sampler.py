"""The strategy as Optuna sees it: made anew and seeded for each trial, its errors named."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.trial import FrozenTrial, TrialState

from automl.engine.failures import is_storage_failure
from automl.errors import Interrupted, StrategyError, TimeLimitError
from automl.ledger.values import LeaseLostError
from automl.space.decisions import given_value
from automl.trial_code.boundary import TrialCode, trial_error_text

_log = logging.getLogger("automl")
_ENGINES = (Interrupted, LeaseLostError, TimeLimitError)
"""What the engine raises at a strategy that asks it something, or takes too long."""


class ReseedingSampler(BaseSampler):
    """Makes its strategy anew for each trial, under a seed that follows from the trial's number.

    So a resumed search, or one of many workers, draws what an uninterrupted one would have drawn.
    `given` holds the decisions of the next trial that are not the strategy's to draw; `failed` is
    what it raised while that trial was being made.

    Raises:
        StrategyError: the strategy raised while it drew; the trial fails, the search goes on.
        CandidateError: a given decision is not of its distribution.
    """

    def __init__(
        self, name: str, make: Callable[[int], BaseSampler], seed_of: Callable[[int], int]
    ) -> None:
        self.given: Mapping[str, Any] = {}
        self.failed: StrategyError | TimeLimitError | None = None
        self._making, self._deaf = False, False
        self._name, self._make, self._seed_of = name, make, seed_of
        self._sampler = make(seed_of(0))

    @contextmanager
    def making(self) -> Iterator[None]:
        """Keep what the strategy raises in here, so that there is a trial which can fail."""
        self.failed, self._making = None, True
        try:
            yield
        finally:
            self._making = False

    @contextmanager
    def untold(self) -> Iterator[None]:
        """Do not let the strategy know how trials end in here."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        with self._putting_off():
            self._sampler = self._make(self._seed_of(trial.number))
            if self.given:
                self._sampler = PartialFixedSampler(dict(self.given), self._sampler)
            self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {}
        with self._putting_off():
            found = self._sampler.infer_relative_search_space(study, trial)
        return found

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        with self._putting_off():
            drawn = self._sampler.sample_relative(study, trial, search_space)
        return drawn

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if param_name in self.given:
            return given_value(param_name, param_distribution, self.given[param_name])
        with self._naming():
            return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        if self._deaf:
            return
        try:
            with self._naming():
                self._sampler.after_trial(study, trial, state, values)
        except (StrategyError, TimeLimitError) as error:
            # How the trial ended stands already; a strategy that cannot note it loses nothing.
            late = isinstance(error, TimeLimitError)
            said = f"strategy {self._name} was told of trial {trial.number}: {error}"
            _log.warning("%s; the search goes on", said if late else error)

    def reseed_rng(self) -> None:
        """Nothing to do: each trial has a seed of its own."""

    @contextmanager
    def _putting_off(self) -> Iterator[None]:
        try:
            with self._naming():
                yield
        except (StrategyError, TimeLimitError) as error:
            if not self._making:
                raise
            self.failed = self.failed or error

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            with TrialCode():
                yield
        except Exception as error:
            if is_storage_failure(error) or isinstance(error, _ENGINES):
                raise
            raise StrategyError(f"strategy {self._name}: {trial_error_text(error)}") from error
