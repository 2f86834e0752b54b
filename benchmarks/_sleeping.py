"""A search of two decisions whose training only sleeps, for our workers and bare Optuna's.

Studies load it as a user's file too, so it imports only automl's public names, and no torch.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna

from automl import Candidate, Direction, Report, Run, Signature, Task, Trainer

LOG = "SLEEPING_LOG"
"""The environment variable that names a file; each evaluation appends its trial's number to it."""

trained: list[list[float]] = []
"""When each training of this process began and ended; a running one has no end yet."""


class Nothing:
    """A task without data."""

    signature = Signature((1,), (1,))
    metrics: ClassVar = {"value": Direction.MINIMIZE}

    def digest(self) -> str:
        return "nothing"

    def split(self, *_: Any) -> Any:
        raise NotImplementedError

    probe = loss = evaluate = split


def plane(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Two float decisions."""
    x, y = (trial.suggest_float(name, 0.0, 1.0) for name in ("x", "y"))
    return Candidate(_no_module, {"x": x, "y": y})


@dataclass(frozen=True)
class Sleep(Trainer):
    """Sleeps, then reports once."""

    seconds: float = 0.0

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        x, y = candidate.hyperparameters.values()
        sleep(self.seconds, run.number)
        yield Report(1, {"value": x + y})


def bare(seconds: float) -> Callable[[optuna.Trial], float]:
    """Return the same training as an objective for plain Optuna."""

    def objective(trial: optuna.Trial) -> float:
        x, y = (trial.suggest_float(name, 0.0, 1.0) for name in ("x", "y"))
        sleep(seconds, trial.number)
        trial.report(x + y, 1)
        return x + y

    return objective


def sleep(seconds: float, number: int) -> None:
    """Train on both sides: sleep, and record when that began and ended."""
    if log := os.environ.get(LOG):
        write_line(Path(log), str(number))
    trained.append([time.monotonic()])
    time.sleep(seconds)
    trained[-1].append(time.monotonic())


def write_line(path: Path, line: str) -> None:
    """Append a line in one write, so that lines of several processes never mix."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def _no_module() -> Any:
    raise NotImplementedError
