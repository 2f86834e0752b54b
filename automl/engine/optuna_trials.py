"""Optuna's side of a study: its trials are made, found again, and told how they ended."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from automl.engine.failures import is_storage_failure
from automl.engine.sampler import ReseedingSampler
from automl.engine.trial_cache import HoldingStorage
from automl.errors import first_line
from automl.ledger.values import Lease, Settled
from automl.plugin.protocols import Context
from automl.plugin.registry import Kind
from automl.plugin.report import COSTS, Outcome, Requirement, State, constraint_key
from automl.spec import ATTRIBUTE
from automl.study.parts import Parts
from automl.study.study import Study, trial_seed
from automl.trial_code.boundary import EngineCode

_log = logging.getLogger("automl")
_LONGEST = 2000
"""Characters of an error in Optuna's attribute, which MySQL limits; the ledger has all of them."""
TRIAL_STATE = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


@dataclass
class OptunaTrials:
    """The trials of a study in Optuna.

    told: the ledger's ids of trials that Optuna knows to have ended, but the ledger does not
    know to be told. reused: called with each reused trial that this process told. context: what
    the strategy may ask us.
    """

    study: Study
    parts: Parts
    reused: Callable[[Settled], None]
    context: Context | None = None
    told: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._untold: set[int] = set()
        self._storage = self.study.storage.trials
        self._study_id = self._storage.get_study_id_from_name(self.study.name)
        self._holding = HoldingStorage(
            self._storage,
            self.study.storage.name_like,
            self.study.storage.masked,
            self._study_id,
        )
        self._sampler = ReseedingSampler(
            self.parts.names[Kind.STRATEGY],
            self._strategy,
            lambda number: trial_seed(self.study.spec, number, "strategy"),
        )
        self._optuna = optuna.load_study(
            study_name=self.study.name,
            storage=cast(BaseStorage, self._holding),
            sampler=self._sampler,
            pruner=self.parts.pruner,
        )
        # Optuna's own is for `optimize` alone, and raises here.
        self._optuna.stop = self._exhausted  # type: ignore[method-assign]

    def take_told(self) -> list[int]:
        """The ids to mark as told, handed over to whoever marks them."""
        told, self.told = self.told, []
        return told

    def open(
        self, lease: Lease, known_as: Callable[[int], None] = lambda number: None
    ) -> optuna.Trial:
        """The Optuna trial of a lease: made now, or the one that an earlier attempt made.

        known_as: called with its number before the strategy draws for it.
        """
        self._sampler.given = lease.given or {}
        known = None if lease.fresh else self._find(lease)
        if known is not None:
            return self._trial(self._id(known.number), known_as)
        template = create_trial(state=TrialState.RUNNING, user_attrs={ATTRIBUTE: {"row": lease.id}})
        made = self._storage.create_new_trial(self._study_id, template)
        return self._trial(made, known_as)

    def raise_for_strategy(self) -> None:
        """Raise what the strategy raised while the last trial was opened.

        Raises:
            StrategyError: it did.
            TimeLimitError: it took too long.
        """
        if self._sampler.failed is not None:
            raise self._sampler.failed

    def draw_again(self, trial: optuna.Trial) -> None:
        """Draw what an earlier attempt decided, since the draws that follow depend on these."""
        known = self._storage.get_trial(self._id(trial.number))
        for name, distribution in known.distributions.items():
            if not distribution.single() and name not in trial.relative_params:
                self._sampler.sample_independent(self._optuna, known, name, distribution)

    def is_finished(self, number: int) -> bool:
        return self._storage.get_trial(self._id(number)).state.is_finished()

    def has_told(self, settled: Settled) -> bool:
        """Whether this worker told a trial, or tried to."""
        return settled.id in self.told or settled.id in self._untold

    def tell(
        self, settled: Settled, trial: optuna.Trial | None = None, to_strategy: bool = True
    ) -> None:
        """Tell Optuna how a trial ended; telling twice is harmless, it says the same."""
        id = self._id(settled.number)
        storage, required = cast(BaseStorage, self._holding), self.study.spec.requirements
        try:
            with nullcontext() if to_strategy else self._sampler.untold():
                news = tell(self._optuna, storage, id, settled, required, trial)
        except Exception as error:
            if is_storage_failure(error):
                raise
            # It has ended all the same, and must not end one worker after the other.
            self._untold.add(settled.id)
            said = f"{type(error).__name__}: {first_line(error)}"
            _log.warning(
                "trial %d has ended, but Optuna does not take it: %s", settled.number, said
            )
            return
        self.told.append(settled.id)
        if news and settled.reused_from is not None:
            self.reused(settled)

    def end_orphans(self) -> None:
        """End trials that were made for a slot which another worker had taken over already."""
        for trial in self._storage.get_all_trials(
            self._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        ):
            row = trial.user_attrs.get(ATTRIBUTE, {}).get("row")
            if row is not None:
                self.end_orphan(row, trial.number)

    def end_orphan(self, row: int, number: int | None) -> None:
        """End a trial whose slot has another trial by now."""
        owned = self.study.ledger.number_of(row)
        if owned is None or number is None or owned == number:
            return
        fail(self._optuna, number)

    def _trial(self, id: int, known_as: Callable[[int], None]) -> optuna.Trial:
        self._holding.hold(id)
        known_as(self._holding.get_trial(id).number)
        with self._sampler.making():
            return optuna.Trial(self._optuna, id)

    def _find(self, lease: Lease) -> FrozenTrial | None:
        # A worker can die between making Optuna's trial and writing its number to the ledger;
        # the attribute it was made with tells whose it is.
        for trial in self._storage.get_all_trials(self._study_id, deepcopy=False):
            if trial.number == lease.number:
                return trial
            row = trial.user_attrs.get(ATTRIBUTE, {}).get("row")
            if lease.number is None and row == lease.id and not trial.state.is_finished():
                return trial
        return None

    def _strategy(self, seed: int) -> BaseSampler:
        made = self.parts.sampler(seed, self.study.spec.seed, self.context)
        return self.study.storage.vetted(made)

    def _exhausted(self) -> None:
        name = self.parts.names[Kind.STRATEGY]
        with EngineCode():
            self.study.ledger.stop_exhausted(f"strategy {name} has nothing left to propose")

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def tell(
    study: optuna.Study,
    storage: BaseStorage,
    id: int,
    settled: Settled,
    requirements: Sequence[Requirement] = (),
    trial: optuna.Trial | None = None,
) -> bool:
    """Tell Optuna how a trial, of this id there, ended; returns whether it did not know yet."""
    outcome = settled.outcome
    values = list(outcome.values or ()) if outcome.state is State.COMPLETE else None
    try:
        storage.set_trial_user_attr(id, ATTRIBUTE, _attribute(settled))
        # A pruned trial's value is its last report, so a reused one needs that, too.
        pruned = settled.reused_from is not None and outcome.state is State.PRUNED
        if pruned and outcome.step is not None and outcome.values:
            storage.set_trial_intermediate_value(id, outcome.step, outcome.values[0])
        for name, excess in _constraints(outcome, requirements).items():
            # As Trial.set_constraint writes it, which needs a trial that is being sampled.
            storage.set_trial_system_attr(id, name, excess)
        study.tell(
            trial or settled.number, values, TRIAL_STATE[outcome.state], skip_if_finished=True
        )
    except UpdateFinishedTrialError:
        return False
    return True


def fail(study: optuna.Study, number: int) -> None:
    """End a trial that nobody runs, unless somebody else does so at this moment."""
    with suppress(UpdateFinishedTrialError):
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def _constraints(outcome: Outcome, requirements: Sequence[Requirement]) -> dict[str, float]:
    """By how much a trial breaks what is required; of one that was stopped its costs alone."""
    whole = outcome.state is State.COMPLETE
    ended = outcome.state is not State.FAILED
    known = [each for each in requirements if ended and (whole or each.metric in COSTS)]
    return {constraint_key(each): each.excess(outcome.metrics) for each in known}


def _attribute(settled: Settled) -> dict[str, Any]:
    known = {
        "fingerprint": settled.fingerprint,
        "level": settled.level,
        "reused_from": settled.reused_from,
        "attempt": settled.attempt,
        "judges": settled.judges,
        "seconds": settled.seconds,
        "error": (settled.outcome.message or "")[:_LONGEST] or None,
    }
    return {key: value for key, value in known.items() if value is not None}
