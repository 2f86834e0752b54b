"""Checks that a study is whole, whatever happened to its workers, and mends what is not.

What must hold: every trial has ended or is somebody's; Optuna was told each end once; no function
is evaluated twice at once; what was served is what was found; checkpoints are there and as they
were written; the budget was kept.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from automl.analysis.overview import silent_since
from automl.engine.optuna_trials import TRIAL_STATE, fail, tell
from automl.engine.worker_ids import host_and_pid
from automl.ledger.checks import Checks, Finding, Rule
from automl.ledger.evaluations import Terms
from automl.ledger.models import Phase
from automl.ledger.queries import TrialView
from automl.plugin.protocols import checkpoint_file
from automl.spec import ATTRIBUTE
from automl.study.study import Study
from automl.text.formatting import moment

_BETWEEN_SECONDS = 0.5


@dataclass(frozen=True)
class Doctor:
    """Looks through one study: the ledger, Optuna's trials, the checkpoints of this machine."""

    study: Study

    def findings(self) -> list[Finding]:
        """All that is not as it must be, or that waits for a worker.

        While workers are at it, a look may see the half of a change; so what is broken counts only
        if another look finds it, too.
        """
        found = self._look()
        if any(finding.broken for finding in found):
            time.sleep(_BETWEEN_SECONDS)
            again = self._look()
            found = [finding for finding in found if not finding.broken or finding in again]
        return found

    def _look(self) -> list[Finding]:
        views = {view.number: view for view in self.study.views.trials()}
        untold = {settled.number for settled in self.study.ledger.untold()}
        return [
            *self._checks.findings(),
            *self._of_workers(),
            *self._of_telling(views, untold),
            *self._of_checkpoints(views),
        ]

    def repair(self) -> None:
        """Mend what can be mended while workers may be at it: no trial's result is touched."""
        ledger, views = self.study.ledger, self.study.views
        self._checks.repair()
        for settled in ledger.untold():
            storage = self.study.storage.trials
            study_id = storage.get_study_id_from_name(self.study.name)
            id = storage.get_trial_id_from_study_id_trial_number(study_id, settled.number)
            tell(self.study.optuna, storage, id, settled, self.study.spec.requirements)
            ledger.mark_told([settled.id])
        for number in self._orphans():
            fail(self.study.optuna, number)
        for view in views.trials():
            if view.phase is Phase.SETTLED:
                self.study.remove_checkpoint(view.number)

    @property
    def _checks(self) -> Checks:
        metrics = tuple(objective.metric for objective in self.study.objectives)
        terms = Terms(self.study.spec.uuid, self.study.spec.cache, metrics)
        return Checks(self.study.storage.engine, terms)

    def _orphans(self) -> list[int]:
        """Optuna's running trials that a worker of ours made and that nobody runs."""
        # In this order: a trial has its row first, then is Optuna's, then its row has the number.
        running = self.study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        waiting = self.study.ledger.unnumbered()
        known = {view.number for view in self.study.views.trials()}
        return [
            trial.number
            for trial in running
            if trial.number not in known and _row(trial) not in {None, *waiting}
        ]

    def _of_workers(self) -> Iterator[Finding]:
        """Trials whose workers are gone: the next worker takes them over."""
        for view in self.study.views.open_trials():
            since = silent_since(view, self.study.ledger.lease_seconds)
            if since is not None:
                number = None if view.number < 0 else view.number
                worker = (
                    f"{'a' if number is None else 'its'} worker {host_and_pid(view.worker or '')}"
                )
                said = f"{worker} has not been heard of since {moment(since)}"
                yield Finding(Rule.PHASE, number, said, broken=False)

    def _of_telling(self, views: dict[int, TrialView], untold: set[int]) -> Iterator[Finding]:
        for number in self._orphans():
            yield Finding(Rule.TOLD, number, "Optuna has it, nobody runs it")
        trials = self.study.optuna.get_trials(deepcopy=False)
        for trial in trials:
            view = views.get(trial.number)
            if view is None:
                continue  # another program's, or an orphan
            if view.phase is not Phase.SETTLED:
                if trial.state.is_finished():
                    yield Finding(Rule.TOLD, trial.number, "another program ended it in Optuna")
            elif trial.number in untold:
                yield Finding(Rule.TOLD, trial.number, "Optuna is yet to be told", broken=False)
            elif not _says_the_same(view, trial):
                said = "Optuna and the ledger disagree on how it ended"
                yield Finding(Rule.TOLD, trial.number, said)
        for number in views.keys() - {trial.number for trial in trials}:
            yield Finding(Rule.TOLD, number, "Optuna does not have it")

    def _of_checkpoints(self, views: dict[int, TrialView]) -> Iterator[Finding]:
        for view in views.values():
            directory = self.study.directory(view.number)
            if view.phase is Phase.SETTLED:
                if directory.exists():
                    said = f"it has ended, and its checkpoint is left in {directory}"
                    yield Finding(Rule.ARTIFACTS, view.number, said, broken=False)
            elif view.checkpoint is not None:
                try:
                    file = checkpoint_file(directory, view.checkpoint)
                except ValueError as error:
                    yield Finding(
                        Rule.ARTIFACTS, view.number, f"its checkpoint is not valid: {error}"
                    )
                    continue
                if not file.exists():
                    said = f"its checkpoint is not on this machine ({file}); it starts over here"
                    yield Finding(Rule.ARTIFACTS, view.number, said, broken=False)
                elif _sha256(file) != view.checkpoint:
                    said = f"its checkpoint has changed ({file}); it starts over"
                    yield Finding(Rule.ARTIFACTS, view.number, said)


def _says_the_same(view: TrialView, trial: FrozenTrial) -> bool:
    if view.state is None or trial.state is not TRIAL_STATE[view.state]:
        return False
    return trial.state is not TrialState.COMPLETE or view.objectives == trial.values


def _row(trial: FrozenTrial) -> int | None:
    row: int | None = trial.user_attrs.get(ATTRIBUTE, {}).get("row")
    return row


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
