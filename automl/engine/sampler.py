"""The strategy as Optuna sees it: rebuilt and seeded for each trial, with its name in errors."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.trial import FrozenTrial, TrialState

from automl.engine.failures import is_storage_failure
from automl.errors import CandidateError, Interrupted, StrategyError, TimeLimitError
from automl.ledger.values import LeaseLostError
from automl.space.decisions import given_value
from automl.trial_code.boundary import TrialCode, trial_error_text

_log = logging.getLogger("automl")
_ENGINE_ERRORS = (Interrupted, LeaseLostError, TimeLimitError)
"""Errors that the engine raises when a strategy calls it, or takes too long."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, as a strategy is told."""

    trial: FrozenTrial
    state: TrialState
    values: Sequence[float] | None


class SeededSampler(BaseSampler):
    """Rebuilds its strategy for each trial, with a seed that follows from the trial's number.

    So a resumed search, or one of many workers, makes the draws of an uninterrupted one.

    Args:
        name: The strategy's name, for errors.
        make: Makes the strategy from a seed.
        seed_of: Returns the seed for a trial's number.
        told: Returns what the strategy is told once a trial has ended; None if that is nothing.

    Attributes:
        given: The decisions of the next trial that are given instead of drawn.
        judges: The number of the trial that the next one judges. The strategy then draws nothing.
        failed: What the strategy raised while the last trial was opened.

    Raises:
        StrategyError: The strategy failed while drawing; the trial fails, the search continues.
        CandidateError: A given decision is not in its distribution, or a judge lacks one.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int], BaseSampler],
        seed_of: Callable[[int], int],
        told: Callable[[Ended], Ended | None] = lambda ended: ended,
    ) -> None:
        self.given: Mapping[str, Any] = {}
        self.judges: int | None = None
        self.failed: StrategyError | TimeLimitError | None = None
        self._defers, self._skips_after_trial = False, False
        self._name, self._make, self._seed_of, self._told = name, make, seed_of, told
        self._sampler = make(seed_of(0))

    @contextmanager
    def deferring_errors(self) -> Iterator[None]:
        """Keep the strategy's errors in `failed`, so that the trial is created and can fail."""
        self.failed, self._defers = None, True
        try:
            yield
        finally:
            self._defers = False

    @contextmanager
    def without_strategy(self) -> Iterator[None]:
        """Do not tell the strategy how trials end."""
        self._skips_after_trial = True
        try:
            yield
        finally:
            self._skips_after_trial = False

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if self.judges is not None:
            return
        with self._deferring():
            self._sampler = self._make(self._seed_of(trial.number))
            if self.given:
                self._sampler = PartialFixedSampler(dict(self.given), self._sampler)
            self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {}
        if self.judges is not None:
            return found
        with self._deferring():
            found = self._sampler.infer_relative_search_space(study, trial)
        return found

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        if self.judges is not None:
            return drawn
        with self._deferring():
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
        if self.judges is not None:
            raise CandidateError(
                f"the judge's space asks for decision {param_name!r}, which trial {self.judges} "
                "does not have: its trainer must close every decision that it opens"
            )
        with self._naming():
            return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        ended = None if self._skips_after_trial else self._told(Ended(trial, state, values))
        if ended is None:
            return
        try:
            with self._naming():
                self._sampler.after_trial(study, ended.trial, ended.state, ended.values)
        except (StrategyError, TimeLimitError) as error:
            # The trial is already settled, and the strategy is rebuilt before the next one.
            late = isinstance(error, TimeLimitError)
            message = f"strategy {self._name}, after trial {trial.number}: {error}"
            _log.warning("%s; the search continues", message if late else error)

    def reseed_rng(self) -> None:
        """Do nothing: each trial has its own seed."""

    @contextmanager
    def _deferring(self) -> Iterator[None]:
        try:
            with self._naming():
                yield
        except (StrategyError, TimeLimitError) as error:
            if not self._defers:
                raise
            self.failed = self.failed or error

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the strategy in its errors."""
        try:
            with TrialCode():
                yield
        except Exception as error:
            if is_storage_failure(error) or isinstance(error, _ENGINE_ERRORS):
                raise
            raise StrategyError(f"strategy {self._name}: {trial_error_text(error)}") from error
