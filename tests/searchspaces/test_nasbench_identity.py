"""Cells of nasbench101 by function: renumbering, dead branches and identities change nothing."""

import itertools
import random
from collections import Counter, defaultdict

import networkx as nx
import pytest
from automl_plugins.tasks.digits import digits
from automl_searchspaces.nasbench101 import nasbench101
from networkx.algorithms.isomorphism import categorical_node_match
from optuna.trial import FixedTrial

from automl import CandidateError, Graph
from automl.identity.graphs.canonical import canonical
from automl.space.candidate import propose
from automl.space.declared import operation

OPERATIONS = ["conv1x1-bn-relu", "conv3x3-bn-relu", "maxpool3x3"]
PAIRS = list(itertools.combinations(range(7), 2))
OPTIONS = {"stacks": 1, "cells": 2, "width": 60}
"""Two cells, so that one cell's output is another's input; every share of 60 is whole."""
LABELS = categorical_node_match("operation", None)


@pytest.fixture(scope="module")
def task():
    return digits()


def random_cell(rng):
    """Return random edges and operations; there may be no path to the output."""
    edges = rng.sample(PAIRS, rng.randint(2, 9))
    return edges, {v: rng.choice(OPERATIONS) for v in range(1, 6)}


def renumbered(cell, rng):
    """Return the cell with its inner vertices and its edges in another order."""
    edges, operations = cell
    dag = nx.DiGraph(edges)
    dag.add_nodes_from(range(7))
    inner = []
    while len(inner) < 5:
        ready = [
            v for v in range(1, 6) if v not in inner and set(dag.predecessors(v)) <= {0, *inner}
        ]
        inner.append(rng.choice(ready))
    number = {0: 0, 6: 6, **{old: new for new, old in enumerate(inner, 1)}}
    moved = [(number[a], number[b]) for a, b in edges]
    rng.shuffle(moved)
    return moved, {number[v]: operations[v] for v in operations}


def graph_of(cell, task):
    """Return the network's graph, or None if no path leads through the cell."""
    edges, operations = cell
    padded = [*edges, *[edges[0]] * (9 - len(edges))]
    decisions = {f"edge_{k}": f"{a}-{b}" for k, (a, b) in enumerate(padded)}
    decisions |= {f"op_{v}": name for v, name in operations.items()}
    try:
        made = propose(lambda t: nasbench101(t, task, **OPTIONS), FixedTrial(decisions))
    except CandidateError:
        return None
    return made.architecture


def live(cell):
    """Return the live labeled DAG, computed independently of the code under test."""
    edges, operations = cell
    dag = nx.DiGraph(edges)
    on_path = (nx.descendants(dag, 0) | {0}) & (nx.ancestors(dag, 6) | {6})
    found = nx.DiGraph(dag.subgraph(on_path))
    for v in found:
        found.nodes[v]["operation"] = operations.get(v, v)
    return found


def disguised(graph, rng):
    """Return the graph with reordered nodes and terms, dead branches and identities."""
    order = [n.name for n in graph.nodes() if n.is_input]
    left = [n for n in graph.nodes() if not n.is_input]
    made, name = Graph(), {}
    for source in order:
        name[source] = made.input(source, graph.node(source).shape)
    while left:
        node = rng.choice([n for n in left if all(i in name for i in n.inputs)])
        left.remove(node)
        inputs = [name[i] for i in node.inputs]
        inputs = [made.add("identity", i) if rng.random() < 0.1 else i for i in inputs]
        if operation(node.operation).name == "add":
            rng.shuffle(inputs)
        name[node.name] = made.add(node.operation, *inputs, **node.attributes)
        if rng.random() < 0.1:
            made.add("relu", made.add("add", *inputs, *inputs))
    made.output(name[graph.output_node])
    return made


def agreement(task, cells, seed):
    """Count cells, equal keys of non-isomorphic cells, and different keys of isomorphic cells."""
    rng = random.Random(seed)
    by_key, missed, counted = defaultdict(list), 0, 0
    while counted < cells:
        cell = random_cell(rng)
        graph = graph_of(cell, task)
        if graph is None:
            continue
        counted += 1
        key = canonical(graph).key
        other = graph_of(renumbered(cell, rng), task)
        missed += canonical(disguised(other, rng)).key != key or key is None
        by_key[key].append(live(cell))
    merged = sum(not nx.is_isomorphic(g[0], x, LABELS) for g in by_key.values() for x in g[1:])
    return missed, merged, split(by_key)


def split(by_key):
    """Return pairs of keys whose cells are isomorphic."""
    alike = defaultdict(list)
    for found in by_key.values():
        labels = Counter(str(label) for _, label in found[0].nodes("operation"))
        alike[tuple(sorted(labels.items())), found[0].size()].append(found[0])
    return sum(
        nx.is_isomorphic(a, b, LABELS)
        for group in alike.values()
        for a, b in itertools.combinations(group, 2)
    )


def test_random_cells(task):
    assert agreement(task, 150, seed=0) == (0, 0, 0)


@pytest.mark.long
def test_two_thousand_random_cells(task):
    assert agreement(task, 2000, seed=1) == (0, 0, 0)
