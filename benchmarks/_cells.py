"""Cells of NAS-Bench-201 for benchmarks: as decisions, as a small network, and as functions."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from automl_plugins.trainers.supervised import Supervised

import automl
from automl.identity.probes.probe import Probe, probe
from automl.identity.probes.sketch import Sketch
from automl.space.candidate import propose

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations, indexed by their numbers in a cell."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
Cell = tuple[int, ...]
"""The number of the operation on each edge."""
CELLS: list[Cell] = list(itertools.product(range(len(OPERATIONS)), repeat=len(EDGES)))
_NONE, _SKIP, _POOL = 0, 1, 4


def decisions(cell: Cell) -> dict[str, str]:
    """Return the decisions of space `nasbench201` that build a cell."""
    pairs = zip(EDGES, cell, strict=True)
    return {f"edge_{i}_{j}": OPERATIONS[number] for (i, j), number in pairs}


def cell_of(made: Mapping[str, Any]) -> Cell:
    return tuple(OPERATIONS.index(made[f"edge_{i}_{j}"]) for i, j in EDGES)


def one_cell(
    trial: optuna.trial.BaseTrial, task: automl.Task, *, channels: int = 16
) -> automl.Candidate:
    """A space of networks with a stem, one cell and a head."""
    made = {
        name: trial.suggest_categorical(name, OPERATIONS) for name in decisions((0,) * len(EDGES))
    }
    graph = automl.Graph()
    x = graph.input("x", task.signature.input_shape)
    stem = graph.add("conv2d", x, channels=channels, bias=False)
    nodes = [graph.add("batch_norm", stem)]
    for node in (1, 2, 3):
        read = [_edge(graph, nodes[i], made[f"edge_{i}_{node}"]) for i in range(node)]
        nodes.append(graph.add("add", *read))
    pooled = graph.add("global_avg_pool2d", graph.add("relu", nodes[3]))
    graph.output(graph.add("linear", pooled, features=task.signature.output_shape[0]))
    return automl.Candidate(graph)


def _edge(graph: automl.Graph, source: str, operation: str) -> str:
    number = OPERATIONS.index(operation)
    if number == _NONE:
        return graph.add("zero", source)
    if number == _SKIP:
        return graph.add("identity", source)
    if number == _POOL:
        return graph.add("avg_pool2d", source, kernel=3, stride=1, padding=1)
    h = graph.add("relu", source)
    kernel = 1 if operation == "nor_conv_1x1" else 3
    h = graph.add("conv2d", h, channels=graph.node(h).shape[0], kernel=kernel, bias=False)
    return graph.add("batch_norm", h)


def candidate(cell: Cell, task: automl.Task, channels: int) -> automl.Candidate:
    trial = optuna.trial.FixedTrial(decisions(cell))
    return propose(lambda trial: one_cell(trial, task, channels=channels), trial)


def probed(cell: Cell, task: automl.Task, channels: int = 8) -> Probe:
    """Probe a network of one cell, without simplification, with trainer `supervised`."""
    return probe(lambda: candidate(cell, task, channels), task, Supervised())


@dataclass
class Sketches:
    """Assigns probes to groups whose sketches agree, in order of arrival."""

    _known: dict[str, list[tuple[int, Sketch]]] = field(default_factory=dict)
    _groups: Iterator[int] = field(default_factory=itertools.count)

    def group(self, found: Probe) -> int:
        """Return the number of a probe's group; a probe without a sketch gets its own group."""
        if found.sketch is None:
            return next(self._groups)
        digests = found.sketch.digests(f"{found.live_parameters} {found.consulted}")
        for digest in digests:
            for group, sketch in self._known.get(digest, ()):
                if sketch.agrees(found.sketch):
                    return group
        group = next(self._groups)
        for digest in digests:
            self._known.setdefault(digest, []).append((group, found.sketch))
        return group


@cache
def truth(cell: Cell, *, trained: bool = False) -> tuple[object, bool]:
    """Derive a cell's function with the test suite's own code.

    That code knows sums, pooling and constants in such cells, and none of our rules.

    Args:
        cell: The cell.
        trained: Also treat functions as equal if training makes them equal; see `cells.Truth`.

    Returns:
        A hashable form of the function, and whether some convolution reads a zero.
    """
    found = _truth()(cell, trained=trained)
    return found.form(), found.reads_zero


@cache
def _truth() -> Any:
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
    try:
        import cells
    finally:
        sys.path.pop()
    return cells.Truth


def compared(ours: Sequence[object], true: Sequence[object]) -> dict[str, int]:
    """Compare our grouping of some cells with the true one.

    Args:
        ours: Our group of each cell.
        true: The true group of each cell.

    Returns:
        Counts. `missed_pairs` share a true group but not one of ours, `merged_pairs` the reverse.
    """
    both = list(zip(ours, true, strict=True))
    return {
        "cells": len(both),
        "classes": len(set(ours)),
        "true_classes": len(set(true)),
        "missed_pairs": _pairs(true) - _pairs(both),
        "merged_pairs": _pairs(ours) - _pairs(both),
    }


def _pairs(groups: Sequence[object]) -> int:
    sizes: dict[object, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    return sum(size * (size - 1) // 2 for size in sizes.values())
