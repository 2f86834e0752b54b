"""A search small enough to run hundreds of times: no data, no model, no torch.

Also loaded as a user's own file (`tests/support/tiny.py:plane`), so it imports only automl's names.
The environment tells what should go wrong, so that the study's spec stays the same.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from automl import Candidate, Direction, Report, Run, Signature, Split, Task, Trainer

LOG = "TINY_LOG"
"""The variable that names a log; each report appends its trial's number, attempt and step."""
INTERRUPT = "TINY_INTERRUPT"
"""The variable for a single Ctrl-C: the trial's number and step, `number:step`."""
KILL = "TINY_KILL"
"""The variable for a `kill -9`: the trial's number and the place, `number:place`."""

EXIT = "TINY_EXIT"
"""The variable for the exit of a started worker in its first training, `file:code`.

It exits once, and creates the file; if the file is named `always`, it exits each time.
"""


class Nothing:
    """A task without data; its first metric is maximised, its second minimised."""

    @property
    def signature(self) -> Signature:
        return Signature((1,), (1,))

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"score": Direction.MAXIMIZE, "cost": Direction.MINIMIZE}

    def digest(self) -> str:
        return "nothing"

    def split(self, split: Split) -> Any:
        raise NotImplementedError

    probe = loss = evaluate = split


def plane(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Three decisions, so that two trials are practically never equal."""
    x = trial.suggest_float("x", -1.0, 1.0)
    _die(trial.number, "space")
    y = trial.suggest_float("y", 1e-3, 1.0, log=True)
    return Candidate(_no_module, {"x": x, "y": y, "z": trial.suggest_int("z", 0, 9)})


def corner(trial: optuna.trial.BaseTrial, task: Task, *, values: int = 3) -> Candidate:
    """One decision with few values, so that trials soon repeat."""
    return Candidate(_no_module, {"x": trial.suggest_int("x", 0, values - 1)})


@dataclass(frozen=True)
class Steps(Trainer):
    """Reports a score that depends only on the decisions, the seed and the step."""

    steps: int = 3
    seconds: float = 0.0

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        x = candidate.hyperparameters["x"]
        for step in range(1, self.steps + 1):
            time.sleep(self.seconds / self.steps)
            _interrupt(run.number, step)
            _die(run.number, "train", step)
            _exit()
            _log(run, step)
            run.tick()
            score = -(x**2) - 1 / step + run.seed_for(step) % 1000 * 1e-6
            yield Report(step, {"score": score, "cost": abs(x)})


class Fatal(optuna.samplers.RandomSampler):
    """Random search whose hooks may kill the process."""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        _die(trial.number, "created")
        super().before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, state: Any, values: Any
    ) -> None:
        _die(trial.number, "settled")
        super().after_trial(study, trial, state, values)


def fatal(*, seed: int | None = None) -> optuna.samplers.BaseSampler:
    return Fatal(seed=seed)


def _no_module() -> Any:
    raise NotImplementedError


def _interrupt(number: int, step: int) -> None:
    if os.environ.get(INTERRUPT) == f"{number}:{step}":
        del os.environ[INTERRUPT]
        os.kill(os.getpid(), signal.SIGINT)


def _die(number: int, place: str, step: int = 2) -> None:
    if step == 2 and os.environ.get(KILL) == f"{number}:{place}":
        os.kill(os.getpid(), signal.SIGKILL)


def _exit() -> None:
    file, _, code = os.environ.get(EXIT, "").rpartition(":")
    if file and "worker" in sys.argv and not Path(file).exists():
        if file != "always":
            Path(file).touch()
        os._exit(int(code))


def _log(run: Run, step: int) -> None:
    if log := os.environ.get(LOG):
        with Path(log).open("a") as file:
            file.write(f"{run.number} {run.attempt} {step}\n")
