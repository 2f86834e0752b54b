"""Tiny trainers that leave decisions open, and spaces for them without data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import optuna
import tiny
from torch import nn

from automl import Candidate, Open, Report, Run, Task, Trainer

BOAST = 100.0
"""A tuner's score is better by this much than any that a judge gives."""


def plane(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Three decisions, one of which a trainer may tune."""
    x, z = trial.suggest_float("x", -1.0, 1.0), trial.suggest_int("z", 0, 9)
    return Candidate(nn.Identity, {"x": x, "y": trial.suggest_float("y", 0.0, 1.0), "z": z})


def corner(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """One decision of two values besides the one to tune, so that trials soon repeat."""
    x = trial.suggest_int("x", 0, 1)
    return Candidate(nn.Identity, {"x": x, "y": trial.suggest_float("y", 0.0, 1.0)})


def grid(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Two decisions of few values, besides the one to tune."""
    x, w = trial.suggest_int("x", -3, 3), trial.suggest_float("w", 0, 1, step=0.5)
    return Candidate(nn.Identity, {"x": x, "w": w, "y": trial.suggest_float("y", 0.0, 1.0)})


@dataclass(frozen=True)
class Optimist(Trainer):
    """Opens y, and reports scores that are better than they are, and best where x is worst."""

    steps: int = 3

    def opens(self, decision: Open) -> bool:
        return decision.name == "y"

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        x = candidate.hyperparameters["x"]
        closed = {"y": 0.5} if "y" in candidate.open_decisions else None
        for step in range(1, self.steps + 1):
            run.tick()
            yield Report(step, {"score": BOAST + x**2, "cost": abs(x)}, closed=closed)


class Watching(optuna.samplers.RandomSampler):
    """Random search that keeps what it is shown and told."""

    shown: ClassVar[list[list[optuna.trial.FrozenTrial]]] = []
    told: ClassVar[list[tuple[int, str, tuple[float, ...] | None]]] = []

    def sample_relative(self, study, trial, search_space):
        self.shown.append(study.get_trials(deepcopy=False))
        return super().sample_relative(study, trial, search_space)

    def after_trial(self, study, trial, state, values):
        self.told.append((trial.number, state.name, values and tuple(values)))
        super().after_trial(study, trial, state, values)


def watching(*, seed: int | None = None) -> optuna.samplers.BaseSampler:
    return Watching(seed=seed)


def judging(trial: optuna.trial.FrozenTrial) -> int | None:
    """The number of the trial that this one judges, as Optuna's attribute has it."""
    return trial.user_attrs["automl"].get("judges")


JUDGED = {"trainer": Optimist, "task": tiny.Nothing, "strategy": "random", "device": "cpu"}
"""A search that is judged, but for its space, its storage and its budget."""
JUDGE = {"trainer": {"judge": tiny.Steps}}
