"""Tiny real tasks, spaces and trainers that the tests share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from optuna.distributions import CategoricalDistribution
from torch import Tensor

from automl import (
    Candidate,
    Classification,
    Direction,
    Graph,
    Open,
    Report,
    Run,
    Schedule,
    Signature,
    Split,
    Task,
    Trainer,
)
from automl.nn import assigned, open_layers


def blobs(examples: int = 90, features: int = 4, classes: int = 3) -> Classification:
    """Gaussian blobs, one for each class, easy to separate."""
    rng = np.random.default_rng(0)
    targets = np.arange(examples) % classes
    centres = 3 * rng.normal(size=(classes, features))
    inputs = centres[targets] + rng.normal(size=(examples, features))
    return Classification.from_arrays("blobs", inputs, targets)


@dataclass
class Line:
    """Regression on a linear function with noise; its loss is the mean squared error."""

    examples: int = 32
    features: int = 3
    scale: float = 1.0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = self.scale * torch.randn(self.examples, self.features, generator=generator)
        noise = 0.1 * torch.randn(self.examples, 1, generator=generator)
        self.targets = self.inputs.sum(1, keepdim=True) + noise

    @property
    def signature(self) -> Signature:
        return Signature((self.features,), (1,))

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"mse": Direction.MINIMIZE}

    def digest(self) -> str:
        return f"line-{self.examples}-{self.features}-{self.scale}"

    def split(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets

    def probe(self) -> tuple[Tensor, Tensor]:
        return self.inputs[:10], self.targets[:10]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def evaluate(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        return {"mse": float(self.loss(outputs, targets))}


@dataclass
class Scripted(Line):
    """A task whose metric takes the given values, one for each evaluation."""

    values: tuple[float, ...] = ()
    direction: Direction = Direction.MAXIMIZE
    seen: int = field(default=0, init=False)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"score": self.direction}

    def evaluate(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        self.seen += 1
        return {"score": self.values[self.seen - 1]}


def linear(task: Task, *, bias: bool = True, **hyperparameters: object) -> Candidate:
    """A linear model with given hyperparameters."""
    graph = Graph()
    x = graph.input("x", task.signature.input_shape)
    graph.output(graph.add("linear", x, features=task.signature.output_shape[0], bias=bias))
    return Candidate(graph, hyperparameters)


def small_space(trial, task):
    """A hidden layer whose activation and dropout rate may be open."""
    graph = Graph()
    x = graph.input("x", task.signature.input_shape)
    width = int(trial.suggest_int("width", 4, 16))  # computed with, so it cannot be open
    h = graph.add("batch_norm", graph.add("linear", x, features=width))
    h = graph.add(trial.suggest_categorical("activation", ["relu", "tanh", "identity"]), h)
    h = graph.add("dropout", h, p=trial.suggest_float("rate", 0.1, 0.5))
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    return Candidate(graph, {"lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True)})


@dataclass(frozen=True)
class Toy(Trainer):
    """Opens the dropout rate and every categorical decision, and mixes the options.

    The mixture's weights are trained with the model; the rate is drawn for each example. It
    closes both at the end.
    """

    steps: int = 5

    def opens(self, decision: Open) -> bool:
        return decision.name == "rate" or isinstance(decision.distribution, CategoricalDistribution)

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        torch.manual_seed(run.seed)
        inputs, targets = task.split(Split.TRAIN)
        module = candidate.build(task.probe()[0], task.signature)
        logits = {
            name: torch.zeros(len(decision.distribution.choices), requires_grad=True)
            for name, decision in candidate.open_decisions.items()
            if name != "rate"
        }
        optimizer = torch.optim.Adam([*module.parameters(), *logits.values()], lr=0.05)
        for step in range(1, self.steps + 1):
            values = {name: each.softmax(0) for name, each in logits.items()}
            if "rate" in open_layers(module):
                values["rate"] = torch.rand(len(inputs)) / 2
            optimizer.zero_grad()
            with assigned(module, values):
                task.loss(module.train()(inputs), targets).backward()
            optimizer.step()
            run.tick()
            closed = {
                name: candidate.open_decisions[name].distribution.choices[int(each.argmax())]
                for name, each in logits.items()
            }
            if "rate" in candidate.open_decisions:
                closed["rate"] = 0.25
            chosen = {name: each.detach().softmax(0) for name, each in logits.items()}
            with torch.no_grad(), assigned(module, chosen):
                yield Report(step, task.evaluate(module.eval()(inputs), targets), closed=closed)


@dataclass(frozen=True)
class Replaying(Trainer):
    """Reports what it is to replay, and the decisions that it gets open."""

    replays: ClassVar[bool] = True

    def train(self, candidate, task, run):
        schedule = candidate.found.get("rate")
        metrics = {"accuracy": 0.5, "open": len(candidate.open_decisions)}
        if schedule is not None:
            metrics["last"] = schedule.at(1.0) if isinstance(schedule, Schedule) else schedule[-1]
        yield Report(1, metrics)


def a_run(directory: Path, seed: int = 0, **rest: object) -> Run:
    return Run("cpu", seed, 0, 1, directory, **rest)
