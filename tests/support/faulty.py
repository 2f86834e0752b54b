"""A search whose workers are killed, stopped and cut off; loaded as a user's file.

Its results depend only on the decisions, so every search must end with the same ones. Each attempt
writes its steps to a file, so that repeated work is noticed.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from automl import Candidate, Direction, Report, Run, Signature, Split, Task, Trainer

LOG = "FAULTY_LOG"
"""The variable that names a log; each step appends its trial's number, attempt and step."""


class Nothing:
    """A task without data."""

    @property
    def signature(self) -> Signature:
        return Signature((1,), (1,))

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"score": Direction.MAXIMIZE}

    def digest(self) -> str:
        return "nothing"

    def split(self, split: Split) -> Any:
        raise NotImplementedError

    probe = loss = evaluate = split


def grid(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Twelve functions, so that some are proposed twice and by two workers at once."""
    x, y = trial.suggest_int("x", 0, 3), trial.suggest_int("y", 0, 2)
    return Candidate(_no_module, {"x": x, "y": y})


@dataclass(frozen=True)
class Steps(Trainer):
    """Adds up its decisions, with a report and a checkpoint at each step.

    Attributes:
        steps: The number of steps.
        seconds: The length of a step.
        size: Kilobytes of a checkpoint.
    """

    steps: int = 6
    seconds: float = 0.1
    size: int = 1

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        state = run.restore() or {"step": 0, "sum": 0}
        add = candidate.hyperparameters["x"] * 10 + candidate.hyperparameters["y"]
        for step in range(state["step"] + 1, self.steps + 1):
            time.sleep(self.seconds)
            run.tick()
            _log(run, step)
            state = {"step": step, "sum": state["sum"] + add, "filling": "x" * 1024 * self.size}
            yield Report(step, {"score": float(state["sum"])}, checkpoint=lambda s=state: s)


def score(decisions: Mapping[str, int], steps: int = 6) -> float:
    """The score that a trial with these decisions must have."""
    return float(steps * (decisions["x"] * 10 + decisions["y"]))


def _no_module() -> Any:
    raise NotImplementedError


def _log(run: Run, step: int) -> None:
    # One write, so that lines of several processes do not mix.
    line = f"{run.number} {run.attempt} {step} {os.getpid()}\n"
    descriptor = os.open(os.environ[LOG], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def log_file(directory: Path) -> Path:
    return directory / "steps.log"
