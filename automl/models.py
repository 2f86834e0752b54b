"""Keeps the weights of the best trials as artifacts of Optuna's, and finds them again."""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial, TrialState

from automl.errors import UsageError, first_line
from automl.report import Direction
from automl.spec import ATTRIBUTE
from automl.studies import Study

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger("automl")

MODEL = "automl:model"
"""The attribute of a trial whose weights are kept: the artifact's id and its SHA-256."""


@dataclass(frozen=True)
class Models:
    """The kept weights of one study, in a directory of this machine or of a shared disk."""

    study: Study

    @property
    def directory(self) -> Path:
        return self.study.models_directory()

    def keep(
        self,
        trial: optuna.Trial,
        values: tuple[float, ...],
        weights: Callable[[], Mapping[str, "Tensor"]],
    ) -> None:
        """Keep a trial's weights if it is among the best so far; called before it is told."""
        if not self.study.spec.models:
            return
        best = self._best()
        if not self._is_among(best, values):
            return
        try:
            self._write(trial, weights())
        except (OSError, RuntimeError) as error:
            why = first_line(error)
            _log.warning("the weights of trial %d are not kept: %s", trial.number, why)
            return
        for old in best[self.study.spec.models - 1 :]:
            self._remove(old)

    def weights(self, number: int) -> "Mapping[str, Tensor]":
        """The weights that a trial ended with; a reused one has those of the trial that it reused.

        Raises:
            UsageError: they were not kept, lie on another machine, or have changed since.
        """
        import torch

        trial = self.study.optuna.get_trials(deepcopy=False)[number]
        source = trial.user_attrs.get(ATTRIBUTE, {}).get("reused_from")
        if MODEL not in trial.user_attrs and source is not None:
            return self.weights(source)
        file = self._file(trial)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if digest != trial.user_attrs[MODEL]["sha256"]:
                raise UsageError(f"{file} has changed since trial {number} wrote it: use --refit")
            opened.seek(0)
            found: Mapping[str, Tensor] = torch.load(opened, map_location="cpu", weights_only=True)
        return found

    def _file(self, trial: FrozenTrial) -> Path:
        known = trial.user_attrs.get(MODEL)
        if known is None:
            raise UsageError(
                f"the weights of trial {trial.number} were not kept: use --refit to train it again"
            )
        # An id from the storage is data: it must not lead out of the directory.
        file = self.directory / Path(str(known["artifact"])).name
        if not file.is_file():
            raise UsageError(
                f"the weights of trial {trial.number} are not on this machine ({file}): export "
                "where it was trained, or use --refit"
            )
        return file

    # The best.
    def _best(self) -> list[FrozenTrial]:
        """Complete trials, the best first; with several objectives those that no other beats."""
        if len(self.study.objectives) > 1:
            return self.study.best_trials()
        (objective,) = self.study.objectives
        trials = self.study.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        falls = objective.direction is Direction.MAXIMIZE
        return sorted(trials, key=lambda trial: trial.values[0], reverse=falls)

    def _is_among(self, best: list[FrozenTrial], values: tuple[float, ...]) -> bool:
        most = self.study.spec.models
        if len(best) < most or len(values) > 1:
            return True
        (objective,) = self.study.objectives
        sign = 1 if objective.direction is Direction.MAXIMIZE else -1
        better: bool = sign * values[0] > sign * best[most - 1].values[0]
        return better

    # The files.
    def _write(self, trial: optuna.Trial, weights: Mapping[str, "Tensor"]) -> None:
        import torch

        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            file = Path(folder) / f"trial-{trial.number}.pt"
            torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, file)
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            id = upload_artifact(
                artifact_store=self._store, file_path=str(file), study_or_trial=trial
            )
        trial.set_user_attr(MODEL, {"artifact": id, "sha256": digest})

    def _remove(self, trial: FrozenTrial) -> None:
        known: Mapping[str, Any] | None = trial.user_attrs.get(MODEL)
        if known is not None:
            # On another machine, or another worker was quicker.
            with suppress(ArtifactNotFound, OSError):
                self._store.remove(str(known["artifact"]))

    @property
    def _store(self) -> FileSystemArtifactStore:
        return FileSystemArtifactStore(self.directory)
