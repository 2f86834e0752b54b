"""A space with several writings of each function, loaded as a user's file by workers and probes.

It imports only automl's public names, because the probing process loads it too.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import nn

from automl import Candidate, Graph, Report, Run, Split, Task, Trainer

WRITINGS = ("plain", "commuted", "dead", "identity", "doubled", "other")
HARD = (
    *("good", "exit", "large", "print", "cut"),
    *("fork", "fork and die", "fork and spin", "escape", "reserve"),
)
LOG = "SHAPES_LOG"
"""The variable that names a log, with a line for each training or process left behind."""


def writings(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Two branches and their sum, written in several ways; only `other` differs."""
    how = trial.suggest_categorical("how", WRITINGS)
    graph = Graph()
    x = graph.input("x", task.signature.input_shape)
    if how == "dead":
        graph.add("relu", graph.add("linear", x, features=9))
    a = graph.add("relu", graph.add("linear", x, features=8))
    b = graph.add("tanh", graph.add("linear", x, features=8))
    if how == "identity":
        a = graph.add("identity", a)
    if how == "other":
        b = graph.add("relu", b)
    both = graph.add("add", b, a) if how == "commuted" else graph.add("add", a, b)
    if how == "doubled":
        both = graph.add("subtract", graph.add("add", both, both), both)
    graph.output(graph.add("linear", both, features=task.signature.output_shape[0]))
    return Candidate(graph)


class Scaled(nn.Module):
    """A linear layer of a multiple of its input, by product or by sum, without a graph."""

    def __init__(self, features: int, classes: int, added: bool, scale: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)
        self.added, self.scale = added, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.added:
            return self.layer(sum([x] * self.scale, torch.zeros_like(x)))
        return self.layer(self.scale * x)


def modules(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Modules that no graph describes: four writings of two functions."""
    added = trial.suggest_categorical("added", [True, False])
    scale = trial.suggest_categorical("scale", [1, 3])
    (features,), (classes,) = task.signature.input_shape, task.signature.output_shape
    return Candidate(lambda: Scaled(features, classes, added, scale))


PROBER = "automl.identity.probes.process"


class Bad(nn.Module):
    """A module that misbehaves, some kinds only in a probe."""

    def __init__(self, features: int, classes: int, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probing = getattr(sys.modules["__main__"].__spec__, "name", "") == PROBER
        if self.how == "kill" and probing:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang" and probing:
            time.sleep(600)
        if self.how == "memory" and probing:
            torch.ones(2**36)
        if self.how == "clock":
            return self.layer(x) * (1 + time.time_ns() % 1000 * 1e-6)
        if self.how == "nan" and probing:
            return self.layer(x) * float("nan")
        return self.layer(x)


def bad(
    trial: optuna.trial.BaseTrial, task: Task, *, kinds: tuple[str, ...] = ("good",), writings: int
) -> Candidate:
    """Candidates that crash, hang, need much memory or are random when they are probed."""
    how = trial.suggest_categorical("how", kinds)
    trial.suggest_int("unused", 1, writings)
    (features,), (classes,) = task.signature.input_shape, task.signature.output_shape
    return Candidate(lambda: Bad(features, classes, how))


def pipes() -> list[int]:
    """This process's pipes beyond the standard ones."""
    links = {int(link.name): link for link in Path("/proc/self/fd").iterdir()}
    return [
        number
        for number, link in links.items()
        if number > 2 and link.is_symlink() and str(link.readlink()).startswith("pipe:")
    ]


def leave_child() -> None:
    """Fork a child that keeps running, and log its process id."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    with Path(os.environ[LOG]).open("a") as file:
        file.write(f"{child}\n")


def act(how: str) -> None:
    """Do something to the process that runs the module."""
    if how in ("fork", "fork and die", "fork and spin"):
        leave_child()
    if how == "escape":
        subprocess.Popen(["sleep", "5"], pass_fds=pipes(), start_new_session=True)
    if how == "cut":
        for number in pipes():
            with suppress(OSError):
                os.write(number, b'{"verdict": "so')
    if how in ("fork and die", "cut"):
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "fork and spin":
        pass
    if how in ("fork", "escape"):
        time.sleep(600)
    if how == "exit":
        os._exit(3)
    if how == "large":
        torch.ones(2**36)
    if how == "print":
        print("printed")
        os.write(1, b"written\n")


class Unruly(nn.Module):
    """A linear layer that first does something to its process."""

    def __init__(self, features: int, classes: int, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        act(self.how)
        return self.layer(x)


KEPT: dict[int, torch.Tensor] = {}


def unruly(trial: optuna.trial.BaseTrial, task: Task) -> Candidate:
    """Candidates that do something to their process; `keeps` megabytes stay allocated in it."""
    how = trial.suggest_categorical("how", HARD)
    number = trial.suggest_int("number", 0, 99)
    keeps = trial.suggest_int("keeps", 0, 4096)
    if keeps and number not in KEPT:
        fill = torch.empty if how == "reserve" else torch.ones
        KEPT[number] = fill(keeps * 2**20, dtype=torch.uint8)
    (features,), (classes,) = task.signature.input_shape, task.signature.output_shape
    return Candidate(lambda: Unruly(features, classes, how))


@dataclass(frozen=True)
class Brief(Trainer):
    """A few steps of gradient descent, and `seconds` of sleep except in probes."""

    lr: float = 0.1
    seconds: float = 0.0

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        if not run.probe and (log := os.environ.get(LOG)):
            with Path(log).open("a") as file:
                file.write(f"{run.number} {dict(candidate.decisions)}\n")
        torch.manual_seed(run.seed)
        module = candidate.build()
        optimizer = torch.optim.SGD(module.parameters(), lr=self.lr)
        inputs, targets = task.split(Split.TRAIN)
        for step in range(1, 4):
            module.train()
            optimizer.zero_grad()
            task.loss(module(inputs), targets).backward()
            optimizer.step()
            module.eval()
            with torch.no_grad():
                outputs = module(task.split(Split.VALIDATION)[0])
            run.tick()
            yield Report(step, task.evaluate(outputs, task.split(Split.VALIDATION)[1]))
        if not run.probe:
            time.sleep(self.seconds)
