"""Spaces and trainers with values that some databases cannot store, by the trial's number."""

from collections.abc import Iterator, Mapping
from typing import Any

import optuna
import tiny

from automl import Candidate, Direction, Report, Run, Task, Trainer

ENDS = {
    "": "complete",
    "step": "step 1000000000000000000000000000000 cannot be stored: it needs more than the 64 bits",
    "huge step": "step a value of type int that is too long to show cannot be stored",
    "odd step": "a report's step must be a whole number, got 1.5",
    "odd metrics": "a report's metrics must be values by name, got 0",
    "two metrics": "metric '1' cannot be stored: there are two '1'",
    "closed": "a report's closed must be values by name, got 0",
    "metric": "cannot be stored: it has 600 characters, and databases store at most 512",
    "nul metric": "metric 'm\\x00' cannot be stored: it has a NUL character",
    "half metric": "metric 'm\\ud800' cannot be stored: it has half a character",
    "many metrics": "the report of step 1 cannot be stored: it takes",
    "huge number": "must be a number, got",
    "huger number": "must be a number, got a value of type int that is too long to show",
    "error": "boom",
    "name": "cannot be stored: it has 513 characters, and databases store at most 512",
    "nul name": "decision 'n\\x00' cannot be stored: it has a NUL character",
    "half name": "decision 'n\\udc80' cannot be stored: it has half a character",
    "number": "decision 7 cannot be stored: expected text, got 7",
    "choices": "decision 'c' cannot be stored: it takes",
    "big choice": "decision 'c' cannot be stored: it needs more than the 64 bits",
    "endless": "decision 'c' cannot be stored: its bound inf is not a finite number",
    "attribute": "attribute 'k' cannot be stored: it takes 70,002 bytes",
    "key": "cannot be stored: it has 600 characters, and databases store at most 512",
    "ours": "attribute 'AutoML ' is reserved by the engine: use another key",
    "constraint": "cannot be stored: it has 612 characters, and databases store at most 512",
}
"""The act of each trial, and the message about it."""
DEEDS = tuple(ENDS)
LONG_STEPS = (1, 2**31 - 1, 2**31, 10**12, 2**63 - 1)
NAMES: list[str] = ["C", "c"]


def plane(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    x = trial.suggest_float("x", 0.0, 1.0)
    match DEEDS[trial.number]:
        case "name":
            trial.suggest_float("n" * 513, 0.0, 1.0)
        case "nul name":
            trial.suggest_float("n\0", 0.0, 1.0)
        case "half name":
            trial.suggest_float("n\udc80", 0.0, 1.0)
        case "number":
            trial.suggest_float(7, 0.0, 1.0)  # type: ignore[arg-type]
        case "choices":
            trial.suggest_categorical("c", [f"{number:060}" for number in range(2000)])
        case "big choice":
            trial.suggest_categorical("c", [2**63])
        case "endless":
            trial.suggest_float("c", 0.0, float("inf"))
        case "attribute":
            trial.set_user_attr("k", "v" * 70_000)
        case "key":
            trial.set_user_attr("k" * 600, 1)
        case "ours":
            trial.set_user_attr("AutoML ", 1)
        case "constraint":
            trial.set_constraint("k" * 600, 1.0)
    return Candidate(_no_module, {"x": x})


class Reports(Trainer):
    """Reports the values for its trial's number."""

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        metrics: dict[str, Any] = {"score": 1.0, "cost": 1.0}
        yield Report(1, metrics | self._more(run.number))
        match DEEDS[run.number]:
            case "step":
                yield Report(10**30, metrics)
            case "huge step":
                yield Report(10**5000, metrics)
            case "odd step":
                yield Report(1.5, metrics)  # type: ignore[arg-type]
            case "odd metrics":
                yield Report(2, 0)  # type: ignore[arg-type]
            case "closed":
                yield Report(2, metrics, closed=0)  # type: ignore[arg-type]

    def _more(self, number: int) -> Mapping[str, Any]:
        match DEEDS[number]:
            case "metric":
                return {"m" * 600: 1.0}
            case "nul metric":
                return {"m\0": 1.0}
            case "half metric":
                return {"m\ud800": 1.0}
            case "many metrics":
                return {f"{number:0500}": 1.0 for number in range(3000)}
            case "two metrics":
                return {1: 1.0, "1": 2.0}  # type: ignore[dict-item]
            case "huge number":
                return {"m": 10**400}
            case "huger number":
                return {"m": 10**5000}
            case "error":
                raise ValueError("boom \0 \ud800" + "y" * 3_000_000)
        return {}


class Long(Trainer):
    """Counts in steps, some of which are long."""

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        for step in LONG_STEPS:
            yield Report(step, {"score": 1.0, "cost": 1.0})


def graded(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    trial.suggest_float("x", 0.0, 1.0)
    return Candidate(_no_module, {"grade": -trial.number})


class Graded(Trainer):
    """Reports at the same long steps in each trial, each worse than the one before."""

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        for step in (10**12, 2 * 10**12, 3 * 10**12):
            yield Report(step, {"score": float(candidate.hyperparameters["grade"]), "cost": 1.0})


class TwoCases(tiny.Nothing):
    """A task with two metrics that differ only in case."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"score": Direction.MAXIMIZE, "Score": Direction.MAXIMIZE}


def two_names(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    for name in NAMES:
        trial.suggest_float(name, 0.0, 1.0)
    return Candidate(_no_module, {"x": trial.suggest_float("x", 0.0, 1.0)})


def later(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Only its second trial has both names."""
    x = trial.suggest_float("X", 0.0, 1.0)
    if trial.number == 1:
        trial.suggest_float("x", 0.0, 1.0)
    return Candidate(_no_module, {"x": x})


def of_another_kind(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Its second trial has another decision, which MySQL takes for the first trial's."""
    if trial.number == 1:
        return Candidate(_no_module, {"x": trial.suggest_categorical("x", [1, 2])})
    return Candidate(_no_module, {"x": trial.suggest_float("X", 0.0, 1.0)})


def attribute(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    for key in ("Note", "note")[: 1 + trial.number]:
        trial.set_user_attr(key, key)
    return Candidate(_no_module, {"x": trial.suggest_float("x", 0.0, 1.0)})


def _no_module() -> Any:
    raise NotImplementedError
