"""The problems of benchmark `reuse`: the table of NAS-Bench-201, and programs to execute."""

import os
import statistics
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
from _cells import CELLS, OPERATIONS, Cell, Sketches, cell_of, decisions, probed, truth
from automl_plugins.tasks.digits import digits
from optuna.trial import FixedTrial

import automl
from automl.identity.fingerprint import Level, Verdict
from automl.identity.graphs.canonical import Canonical, canonical
from automl.identity.probes.probe import probe
from automl.plugin.registry import Registry
from automl.space.candidate import propose
from automl.study.parts import Parts, rebuild
from automl.study.plan import plan
from automl.study.search_request import SearchRequest

NAMES = tuple(decisions(CELLS[0]))
SMALL = {
    "scalars": 3,
    "vectors": 2,
    "matrices": 0,
    "setup": 1,
    "predict": 3,
    "learn": 2,
    "operations": (
        *("scalar_constant", "scalar_multiply", "vector_mean"),
        *("dot", "vector_scale", "vector_add"),
    ),
    "constants": (0.001, 0.01, 0.1),
}
"""Options of space `program` with which a search makes progress in hundreds of proposals."""
Decisions = Mapping[str, Any]


class Result(NamedTuple):
    """The result of an evaluation; the value is None if it failed."""

    value: float | None
    hours: float


class Problem(Protocol):
    """A problem to search; values are maximized."""

    name: str

    def suggest(self, trial: optuna.trial.BaseTrial) -> None: ...

    def evaluate(self, made: Decisions) -> Result: ...

    def function(self, made: Decisions, level: "Level | None") -> Hashable:
        """Return a key that is equal for candidates with the same function.

        Args:
            made: The candidate's decisions.
            level: The level that recognises functions, None for the truth.

        Raises:
            ValueError: The decisions do not make a candidate.
        """

    def is_constant(self, made: Decisions) -> bool: ...


@dataclass
class NasBench201:
    """The cells of NAS-Bench-201 with the table's values.

    Attributes:
        values: The accuracy of each cell.
        flops: The FLOPs of each cell for one image.
        rate: FLOPs per second of the simulated device.
        probes: How many more functions may be probed.
        name: The problem's name.
        merged: How many functions only probes found to be equal.
    """

    values: Mapping[Cell, float]
    flops: Mapping[Cell, float]
    rate: float
    probes: int
    name: str = "nasbench201"
    merged: int = 0
    _parts: Parts = field(default_factory=lambda: parts_of("nasbench201", cells=1, width=4))
    _graphs: dict[Cell, Canonical] = field(default_factory=dict)
    _functions: dict[str, Hashable] = field(default_factory=dict)
    _colours: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    _sketches: Sketches = field(default_factory=Sketches)

    @property
    def best(self) -> float:
        return max(self.values.values())

    def suggest(self, trial: optuna.trial.BaseTrial) -> None:
        for name in NAMES:
            trial.suggest_categorical(name, OPERATIONS)

    def evaluate(self, made: Decisions) -> Result:
        cell = cell_of(made)
        images = 12 * 25_000
        return Result(self.values[cell], 3 * images * self.flops[cell] / self.rate / 3600)

    def is_constant(self, made: Decisions) -> bool:
        return False

    def function(self, made: Decisions, level: Level | None) -> Hashable:
        cell = cell_of(made)
        if level is None:
            return truth(cell)[0]
        return cell if level is Level.L0 else self._found(cell, level)

    def _found(self, cell: Cell, level: Level) -> Hashable:
        if cell not in self._graphs:
            architecture = rebuild(self._parts, decisions(cell)).architecture
            assert isinstance(architecture, automl.Graph)
            self._graphs[cell] = canonical(architecture)
        graph = self._graphs[cell]
        assert graph.key is not None
        if level is Level.L1:
            return graph.key
        if graph.key not in self._functions:
            self._functions[graph.key] = self._probed(cell, graph)
        return self._functions[graph.key]

    def _probed(self, cell: Cell, graph: Canonical) -> Hashable:
        """Return the key of an earlier function with an equal probe, or the graph's own key."""
        if not self.probes:
            return graph.key
        self.probes -= 1
        found = probed(cell, _digits())
        if found.verdict is not Verdict.SOUND:
            return graph.key
        group = self._sketches.group(found)
        colour, key = self._colours.setdefault(group, (graph.colour, graph.key))
        if key == graph.key or colour == graph.colour:
            return graph.key  # New, or L1 distinguishes graphs that a probe cannot.
        self.merged += 1
        return key


@dataclass
class Programs:
    """Short programs on task `diabetes`; each is evaluated and probed once in this process.

    Attributes:
        name: The problem's name.
        evaluation_seconds: Seconds of each evaluation.
        probe_seconds: Seconds of each probe.
    """

    name: str = "program"
    evaluation_seconds: list[float] = field(default_factory=list)
    probe_seconds: list[float] = field(default_factory=list)
    _parts: Parts = field(
        default_factory=lambda: parts_of("program", "diabetes", "online", **SMALL)
    )
    _results: dict[Hashable, Result] = field(default_factory=dict)
    _probes: dict[Hashable, tuple[Hashable, Verdict]] = field(default_factory=dict)
    _sketches: Sketches = field(default_factory=Sketches)

    def suggest(self, trial: optuna.trial.BaseTrial) -> None:
        self._parts.space.candidate(trial, self._parts.task)

    def evaluate(self, made: Decisions) -> Result:
        key = self.function(made, Level.L0)
        if key not in self._results:
            began = time.perf_counter()
            value = self._trained(made)
            self.evaluation_seconds.append(time.perf_counter() - began)
            self._results[key] = Result(value, self.evaluation_seconds[-1] / 3600)
        return self._results[key]

    def _trained(self, made: Decisions) -> float | None:
        run = automl.Run("cpu", 0, 0, 1, Path(os.environ["AUTOML_STATE_DIR"]))
        try:
            reports = list(self._parts.trainer.train(self._rebuilt(made), self._parts.task, run))
        except automl.TrialError:
            return None
        return float(reports[-1].metrics["r2"])

    def function(self, made: Decisions, level: Level | None) -> Hashable:
        writing = tuple(sorted(made.items()))
        return self._probed(made, writing)[0] if level is Level.L2 else writing

    def is_constant(self, made: Decisions) -> bool:
        return self._probed(made, tuple(sorted(made.items())))[1] is Verdict.DEGENERATE

    def _probed(self, made: Decisions, writing: Hashable) -> tuple[Hashable, Verdict]:
        if writing not in self._probes:
            self._rebuilt(made)  # Raises, where a probe would only report "unhashable".
            again = partial(self._rebuilt, made)
            found = probe(again, self._parts.task, self._parts.trainer)
            self.probe_seconds.append(found.seconds)
            sound = found.verdict is Verdict.SOUND
            group = self._sketches.group(found) if sound else writing
            self._probes[writing] = (group, found.verdict)
        return self._probes[writing]

    def _rebuilt(self, made: Decisions) -> automl.Candidate:
        """Build the candidate of these decisions.

        Raises:
            ValueError: Some decisions are missing.
        """
        return propose(self._candidate, FixedTrial(dict(made)))

    def _candidate(self, trial: optuna.trial.BaseTrial) -> automl.Candidate:
        return self._parts.space.candidate(trial, self._parts.task)


@cache
def _digits() -> automl.Task:
    return digits()


def parts_of(
    space: str, task: str = "digits", trainer: str = "supervised", **options: object
) -> Parts:
    request = SearchRequest(
        space, task=task, trainer=trainer, strategy="random", options={"space": options}
    )
    return plan(request, Registry()).parts


def table(folder: Path | None) -> Path | None:
    """Return the table's file, None if it does not exist."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    found = (folder or beside) / "nasbench201" / "nb201_12epochs.npz"
    return found if found.exists() else None


def read(path: Path, values: str, rate: float, probes: int) -> NasBench201:
    with np.load(path) as data:
        cells = [tuple(map(int, row)) for row in data["ops"]]
        raw = dict(zip(cells, map(float, data["cifar10_val12"]), strict=True))
        flops = dict(zip(cells, map(float, data["cifar10_flops"]), strict=True))
    return NasBench201(raw if values == "raw" else means(raw), flops, rate, probes)


def means(raw: Mapping[Cell, float]) -> dict[Cell, float]:
    """Return for each cell the mean over all cells that truly compute the same function."""
    members: dict[object, list[float]] = {}
    for cell, value in raw.items():
        members.setdefault(truth(cell)[0], []).append(value)
    return {cell: statistics.fmean(members[truth(cell)[0]]) for cell in raw}
