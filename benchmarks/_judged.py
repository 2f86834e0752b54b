"""Searches that tune the same regularization by gradient or by trial and error, each judged.

Every arm is a real search. Only the loss on the test split counts, of the trial that an arm would
export: the best by validation loss, trained by `supervised` in all arms. The cost of a tuner
includes its judge.
"""

import argparse
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from automl_plugins.tasks.csv import csv

import automl
from automl import Candidate, Classification, Graph, Task

Made = Callable[[Any, Task], Candidate]


@dataclass(frozen=True)
class Problem:
    """A task and a network whose regularization is searched.

    Attributes:
        task: Makes the task, split by a seed.
        network: Adds layers to a graph and returns its output, given the regularization.
        epochs: The judge's epochs; trial and error may also use `short` ones.
        short: A third of them.
        batch_size: The examples per step.
        lr: The largest learning rate.
    """

    task: Callable[[int], Task]
    network: Callable[[Graph, str, "Regularization"], str]
    epochs: int
    short: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Regularization:
    """Three rates of dropout, and the strength of an operation on the inputs; open or closed."""

    dropouts: tuple[Any, Any, Any]
    augmentation: Any


def regularized(problem: Problem, free_epochs: bool, none: bool) -> Made:
    """Return the space of a problem.

    Args:
        problem: The problem.
        free_epochs: Also search the number of epochs.
        none: Do not regularize; nothing is left to search.
    """

    def space(trial: Any, task: Task) -> Candidate:
        strengths: list[Any] = [0.0] * 4
        if not none:
            names = ("dropout_0", "dropout_1", "dropout_2", "augmentation")
            strengths = [trial.suggest_float(name, 0.0, 0.75) for name in names]
        graph = Graph()
        x = graph.input("x", task.signature.input_shape)
        regularization = Regularization(tuple(strengths[:3]), strengths[3])
        output = problem.network(graph, x, regularization)
        graph.output(output)
        hyperparameters = {}
        if free_epochs:
            choices = [problem.short, problem.epochs]
            hyperparameters["epochs"] = trial.suggest_categorical("epochs", choices)
        return Candidate(graph, hyperparameters)

    return space


def _mlp(graph: Graph, x: str, regularization: Regularization, width: int = 100) -> str:
    first, second, third = regularization.dropouts
    h = graph.add("cutout", x, share=regularization.augmentation)
    h = graph.add("dropout", graph.add("flatten", h), p=first)
    h = graph.add("dropout", graph.add("relu", graph.add("linear", h, features=width)), p=second)
    h = graph.add("dropout", graph.add("relu", graph.add("linear", h, features=width)), p=third)
    return graph.add("linear", h, features=10)


def _cnn(graph: Graph, x: str, regularization: Regularization) -> str:
    first, second, third = regularization.dropouts
    h = graph.add("cutout", x, share=regularization.augmentation)
    for channels, rate in ((8, first), (16, second)):
        h = graph.add("relu", graph.add("batch_norm", graph.add("conv2d", h, channels=channels)))
        h = graph.add("dropout", graph.add("max_pool2d", h), p=rate)
    h = graph.add("dropout", graph.add("flatten", h), p=third)
    return graph.add("linear", h, features=10)


def _table(graph: Graph, x: str, regularization: Regularization) -> str:
    first, second, third = regularization.dropouts
    h = graph.add("gaussian_noise", x, std=regularization.augmentation)
    h = graph.add("dropout", h, p=first)
    h = graph.add("dropout", graph.add("relu", graph.add("linear", h, features=128)), p=second)
    h = graph.add("dropout", graph.add("relu", graph.add("linear", h, features=128)), p=third)
    return graph.add("linear", h, features=26)


def _digits(seed: int) -> Task:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    inputs = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    share = 300 / len(targets)
    return Classification.from_arrays(
        "digits", inputs, targets, validation=share, test=1 - 2 * share, seed=seed
    )


@cache
def _fashion_arrays(data: Path) -> tuple[np.ndarray, np.ndarray]:
    import gzip

    with gzip.open(data / "fashion-mnist" / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(data / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    return small[:, None].astype(np.float32), labels.astype(np.int64)


def _fashion(data: Path) -> Callable[[int], Task]:
    def task(seed: int) -> Task:
        inputs, targets = _fashion_arrays(data)
        rows = np.random.default_rng(seed).permutation(len(targets))[:5000]
        return Classification.from_arrays(
            "fashion", inputs[rows], targets[rows], validation=0.2, test=0.6, seed=seed
        )

    return task


@cache
def _letter_task(data: Path) -> Task:
    return csv(file=data / "tabular" / "letter.csv.gz")


def _letter(data: Path) -> Callable[[int], Task]:
    def task(seed: int) -> Task:
        known = _letter_task(data)
        rows = np.random.default_rng(seed).permutation(len(known.targets))[:5000]
        inputs, targets = known.inputs[rows].numpy(), known.targets[rows].numpy()
        return Classification.from_arrays(
            "letter", inputs, targets, validation=0.2, test=0.6, seed=seed
        )

    return task


def problems(data: Path) -> dict[str, Problem]:
    """Return the problems whose data is there, by name."""
    known = {"digits": Problem(_digits, _mlp, 150, 50, 32, 3e-3)}
    if (data / "fashion-mnist").is_dir():
        known["fashion"] = Problem(_fashion(data), _cnn, 30, 10, 50, 3e-3)
    if (data / "tabular").is_dir():
        known["letter"] = Problem(_letter(data), _table, 60, 20, 50, 3e-3)
    return known


@dataclass(frozen=True)
class Arm:
    """One way to search.

    Attributes:
        trainer: The trainer.
        strategy: The strategy.
        none: Whether nothing is searched: one training without regularization.
        budget: What trial and error may spend: the `seconds` of `stn`, or three times its
            `gradients`. None if it is one trial of a tuner with its judge.
    """

    trainer: str = "supervised"
    strategy: str = "random"
    none: bool = False
    budget: str | None = None


ARMS = {
    "none": Arm(none=True),
    "stn": Arm("stn"),
    "delta_stn": Arm("delta_stn"),
    "tpe, same seconds": Arm(strategy="tpe", budget="seconds"),
    "tpe, 3x gradients": Arm(strategy="tpe", budget="gradients"),
    "random, same seconds": Arm(budget="seconds"),
    "random, 3x gradients": Arm(budget="gradients"),
}
BUDGETED_BY = "stn"
"""The arm whose cost sets the budgets of trial and error."""


@dataclass(frozen=True)
class Result:
    """What an arm found, and what it cost with its judge.

    Attributes:
        loss: The loss on the test split.
        accuracy: The accuracy on the test split.
        trials: How many trials it ran, judged ones included.
        gradients: Inner gradients and JVPs, over all trials.
        metered: What the budget counts: seconds of training, or gradients if it is in these.
        seconds: CPU seconds of the whole search.
    """

    loss: float
    accuracy: float
    trials: int
    gradients: int
    metered: float
    seconds: float


def run(
    problem: Problem, arm: Arm, seed: int, costs: Mapping[str, Result], fraction: float
) -> Result:
    """Search with one arm.

    Args:
        problem: The problem.
        arm: The arm.
        seed: The seed of the split and of the search.
        costs: The results so far, by arm, which set the budgets of trial and error.
        fraction: The fraction of all epochs to train, for a quick look.
    """
    whole, short = (max(2, round(e * fraction)) for e in (problem.epochs, problem.short))
    shortened = Problem(problem.task, problem.network, whole, short, problem.batch_size, problem.lr)
    trained = {"epochs": whole, "batch_size": problem.batch_size, "lr": problem.lr}
    options: dict[str, dict[str, object]] = {"trainer": dict(trained)}
    if arm.trainer != "supervised":
        options["trainer"]["judge"] = "supervised"
        options["judge"] = trained
    if arm.strategy == "tpe":
        options["strategy"] = {"startup_trials": 3}
    task = problem.task(seed)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOML_STATE_DIR"] = directory
        began = time.process_time()
        study, _ = automl.search(
            regularized(shortened, free_epochs=arm.budget is not None, none=arm.none),
            task=lambda: task,
            trainer=arm.trainer,
            strategy=arm.strategy,
            objectives=["loss"],
            options=options,
            seed=seed,
            storage=f"sqlite:///{directory}/automl.db",
            cache=False,
            **_budget(arm, costs),
        )
        seconds = time.process_time() - began
        found = _result(study, seconds, Path(directory) / "model")
        study.storage.engine.dispose()
    gc.collect()
    return found


def _budget(arm: Arm, costs: Mapping[str, Result]) -> dict[str, Any]:
    """What an arm may spend: one training more than it has, because the last one is cut off."""
    if arm.budget is None:
        return {"trials": 1}
    spent, whole = costs[BUDGETED_BY], costs["none"]
    if arm.budget == "seconds":
        return {"gpu_hours": (spent.metered + whole.metered) / 3600}
    gradients = 3 * spent.gradients + whole.gradients
    return {"gpu_hours": gradients / 3600, "cost_metric": "inner_gradients"}


def _result(study: automl.Study, seconds: float, model: Path) -> Result:
    trained = [view for view in study.views.trials() if view.seconds is not None]
    gradients = sum(
        (view.metrics.get("inner_gradients") or 0) + (view.metrics.get("jvps") or 0)
        for view in trained
    )
    metered = sum(view.seconds or 0.0 for view in trained)
    cost = (len(trained), round(gradients), metered, seconds)
    if study.best is None:
        return Result(math.nan, math.nan, *cost)
    study.export(model)
    test = json.loads((model / "metrics.json").read_text())["test"]
    return Result(test["loss"], test["accuracy"], *cost)


def judged(options: argparse.Namespace) -> dict[str, Any]:
    """Run every arm on every problem and seed."""
    torch.set_num_threads(1)
    known = problems(Path(options.data))
    chosen = options.problems or list(known)
    return {
        "fraction": options.fraction,
        "seeds": options.seeds,
        "problems": {name: _problem(name, known[name], options) for name in chosen},
    }


def _problem(name: str, problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        results: dict[str, Result] = {}
        for arm_name, arm in ARMS.items():
            found = results[arm_name] = run(problem, arm, seed, results, options.fraction)
            rows.append({"arm": arm_name, "seed": seed, **vars(found)})
            line = f"{name} {seed} {arm_name}: {found.loss:.4f} in {found.seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    references = ("none", "tpe, same seconds", "tpe, 3x gradients")
    return {
        "rows": rows,
        "arms": {
            arm: {
                **{key: _mean([row[key] for row in found]) for key in _SUMMED},
                "minus": {
                    other: interval(_differences(found, by_arm[other]))
                    for other in references
                    if other != arm
                },
            }
            for arm, found in by_arm.items()
        },
    }


_SUMMED = ("loss", "accuracy", "trials", "gradients", "seconds")
Row = dict[str, Any]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _differences(mine: Sequence[Row], others: Sequence[Row]) -> list[float]:
    """Return how much larger my losses are, seed by seed."""
    return [m["loss"] - o["loss"] for m, o in zip(mine, others, strict=True)]


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences with its 95 % interval by Student's distribution."""
    from scipy.stats import t

    mean = _mean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(t.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - half, mean + half


def show_judged(found: dict[str, Any]) -> None:
    """Print the loss and cost of each arm, and how its loss differs from others, in pairs."""
    whole = "" if found["fraction"] == 1 else f", {found['fraction']} of the epochs"
    print(f"Judged test loss over {found['seeds']} seeds{whole}; differences are paired.")
    for name, problem in found["problems"].items():
        print(
            f"\n{name:22}  loss accuracy trials gradients seconds  minus none            minus tpe"
        )
        for arm, row in problem["arms"].items():
            minus = [row["minus"].get(other) for other in ("none", "tpe, same seconds")]
            shown = "  ".join(_shown(each) for each in minus)
            print(
                f"{arm:22} {row['loss']:.3f}     {row['accuracy']:.3f} {row['trials']:6.1f} "
                f"{row['gradients']:9.0f} {row['seconds']:7.1f}  {shown}"
            )


def _shown(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return " " * 22
    mean, low, high = difference
    return f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this comparison."""
    parser.add_argument("--seeds", type=int, default=10, help="seeds (judged)")
    parser.add_argument("--fraction", type=float, default=1.0, help="of all epochs (judged)")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="only these (judged)")
    parser.add_argument(
        "--data", default=os.environ.get("AUTOML_DATA_DIR", "."), help="folder of data (judged)"
    )
