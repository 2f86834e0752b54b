"""Canonical labelling of labelled directed acyclic graphs: one certificate for isomorphic ones.

Colour refinement until it is stable, then individualisation and refinement: a vertex of a colour
class is set apart, and so on until all are; the least writing found is the certificate. Twins
are set apart at once; automorphisms, known by equal writings, prune what they map to
what was searched. Source of the method: McKay and Piperno, arXiv 1301.1493.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Edge = tuple[int, int]
"""A mark (a port, or a coefficient) and a vertex."""


class Vertex(NamedTuple):
    """A label and the edges from the vertices it reads; equal marks stand for any order."""

    label: bytes
    inputs: tuple[Edge, ...]


@dataclass(frozen=True)
class Labelling:
    """certificate: equal exactly for isomorphic graphs; None where the search was cut short.

    colouring: equal exactly where plain colour refinement tells no difference.
    """

    certificate: bytes | None
    colouring: bytes


def labelled(vertices: Sequence[Vertex], max_leaves: int) -> Labelling:
    """The canonical labelling of a graph whose vertices each read earlier ones only.

    max_leaves: how many complete labellings are compared at most.
    """
    dag = _Dag.of(vertices)
    partition = _Partition.by(_ranks(dag))
    _refine(dag, partition, partition.unsettled())
    colouring = _writing(dag, partition)
    if not partition.unsettled():
        return Labelling(colouring, colouring)
    _part_twins(dag, partition)
    return Labelling(_Search(dag, max_leaves).run(partition), colouring)


@dataclass(frozen=True)
class _Dag:
    labels: Sequence[bytes]
    inputs: Sequence[Sequence[Edge]]
    outputs: Sequence[Sequence[Edge]]

    @classmethod
    def of(cls, vertices: Sequence[Vertex]) -> "_Dag":
        outputs: list[list[Edge]] = [[] for _ in vertices]
        for index, vertex in enumerate(vertices):
            for mark, source in vertex.inputs:
                outputs[source].append((mark, index))
        return cls([v.label for v in vertices], [v.inputs for v in vertices], outputs)

    def neighbours(self, vertex: int) -> Iterator[int]:
        for _, other in self.inputs[vertex]:
            yield other
        for _, other in self.outputs[vertex]:
            yield other


def _seen(edges: Sequence[Edge], colours: Sequence[int]) -> tuple[Edge, ...]:
    """Edges as colour refinement sees them: by the colours of their ends, in no order."""
    if not edges:
        return ()
    if len(edges) == 1:
        ((mark, end),) = edges
        return ((mark, colours[end]),)
    return tuple(sorted([(mark, colours[end]) for mark, end in edges]))


# Ranks: two sweeps see nearly all that refinement does, at the cost of one look at each vertex.
def _ranks(dag: _Dag) -> list[int]:
    """Ranks by all that lies above a vertex and, unless that told all apart, below it."""
    count = len(dag.labels)
    above = _sweep(range(count), dag.inputs, dag.labels)
    if len(set(above)) == count:
        return above
    return _sweep(range(count - 1, -1, -1), dag.outputs, above)


def _sweep(
    order: Sequence[int],
    edges: Sequence[Sequence[Edge]],
    start: Sequence[int] | Sequence[bytes],
) -> list[int]:
    ranks = [0] * len(order)
    first = 0
    for level in _levels(order, edges):
        if len(level) == 1:
            ranks[level[0]] = first
            first += 1
            continue
        seen = {vertex: (start[vertex], _seen(edges[vertex], ranks)) for vertex in level}
        # The types of `start` are one within a call, so what is seen can be put in order.
        distinct = sorted(set(seen.values()))
        places = {each: first + place for place, each in enumerate(distinct)}
        for vertex in level:
            ranks[vertex] = places[seen[vertex]]
        first += len(distinct)
    return ranks


def _levels(order: Sequence[int], edges: Sequence[Sequence[Edge]]) -> list[list[int]]:
    depths = [0] * len(order)
    levels: list[list[int]] = []
    for vertex in order:
        depth = 0
        for _, end in edges[vertex]:
            depth = max(depth, depths[end] + 1)
        depths[vertex] = depth
        if depth == len(levels):
            levels.append([])
        levels[depth].append(vertex)
    return levels


# Partitions into cells of one colour; a colour is the number of vertices of lesser ones.
@dataclass(frozen=True)
class _Partition:
    colours: list[int]
    cells: dict[int, Sequence[int]]

    @classmethod
    def by(cls, ranks: Sequence[int]) -> "_Partition":
        members: dict[int, list[int]] = {}
        for vertex, rank in enumerate(ranks):
            members.setdefault(rank, []).append(vertex)
        partition = cls([0] * len(ranks), {})
        partition.split(0, [members[rank] for rank in sorted(members)])
        return partition

    def copy(self) -> "_Partition":
        return _Partition(self.colours.copy(), self.cells.copy())

    def unsettled(self) -> set[int]:
        return {colour for colour, cell in self.cells.items() if len(cell) > 1}

    def split(self, colour: int, parts: Iterable[Sequence[int]]) -> None:
        for part in parts:
            self.cells[colour] = part
            for vertex in part:
                self.colours[vertex] = colour
            colour += len(part)

    def order(self) -> list[int]:
        """One vertex of each cell, by colour."""
        return [self.cells[colour][0] for colour in sorted(self.cells)]


def _refine(dag: _Dag, partition: _Partition, pending: set[int]) -> None:
    """Split cells until vertices of one colour see equal colours around them."""
    while pending:
        colour = min(pending)
        pending.remove(colour)
        cell = partition.cells[colour]
        if len(cell) == 1:
            continue
        groups: dict[tuple[tuple[Edge, ...], tuple[Edge, ...]], list[int]] = {}
        for vertex in cell:
            inputs = _seen(dag.inputs[vertex], partition.colours)
            outputs = _seen(dag.outputs[vertex], partition.colours)
            groups.setdefault((inputs, outputs), []).append(vertex)
        if len(groups) > 1:
            pending |= _split(dag, partition, colour, [groups[seen] for seen in sorted(groups)])


def _split(
    dag: _Dag, partition: _Partition, colour: int, parts: Sequence[Sequence[int]]
) -> set[int]:
    """Split a cell; returns the colours of the vertices that see a difference."""
    partition.split(colour, parts)
    moved = [vertex for part in parts[1:] for vertex in part]
    return {partition.colours[end] for vertex in moved for end in dag.neighbours(vertex)}


def _part_twins(dag: _Dag, partition: _Partition) -> None:
    """Number the twins, for exchanging vertices with the very same neighbours changes nothing."""
    pending: set[int] = set()
    for colour in sorted(partition.unsettled()):
        families: dict[tuple[tuple[Edge, ...], tuple[Edge, ...]], int] = {}
        parts: list[list[int]] = []
        for vertex in partition.cells[colour]:
            family = (tuple(sorted(dag.inputs[vertex])), tuple(sorted(dag.outputs[vertex])))
            number = families[family] = families.get(family, -1) + 1
            if number == len(parts):
                parts.append([])
            parts[number].append(vertex)
        if len(parts) > 1:
            pending |= _split(dag, partition, colour, parts)
            pending |= {partition.colours[part[0]] for part in parts}
    _refine(dag, partition, pending)


def _writing(dag: _Dag, partition: _Partition) -> bytes:
    """The colours in order: how many, their label, and what one of them reads."""
    written = [b"%d;" % len(dag.labels)]
    for _, cell in sorted(partition.cells.items()):
        vertex = cell[0]
        label = dag.labels[vertex]
        seen = _seen(dag.inputs[vertex], partition.colours)
        written.append(b"%d;%d;%d:%b" % (len(cell), len(seen), len(label), label))
        written += [b"%d,%d;" % edge for edge in seen]
    return b"".join(written)


# The search.
Permutation = Mapping[int, int]
"""Of an automorphism only what it moves."""


@dataclass(frozen=True)
class _Leaf:
    writing: bytes
    order: Sequence[int]
    path: Sequence[int]


@dataclass
class _Frame:
    """A partition in the search, and the vertices of its target cell already set apart."""

    partition: _Partition
    colour: int
    tried: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, partition: _Partition) -> "_Frame":
        sizes = [(len(cell), colour) for colour, cell in partition.cells.items() if len(cell) > 1]
        return cls(partition, min(sizes)[1])

    def next(self, automorphisms: Iterable[Permutation]) -> int | None:
        """A vertex that no automorphism maps to one already tried."""
        orbit = set(self.tried)
        if orbit:
            moves = list(automorphisms)
            frontier = list(orbit)
            while frontier:
                vertex = frontier.pop()
                new = {move.get(vertex, vertex) for move in moves} - orbit
                orbit |= new
                frontier += new
        cell = self.partition.cells[self.colour]
        return next((vertex for vertex in cell if vertex not in orbit), None)


class _Search:
    def __init__(self, dag: _Dag, max_leaves: int) -> None:
        self._dag = dag
        self._left = max_leaves
        self._leaves: list[_Leaf] = []
        self._automorphisms: list[Permutation] = []

    def run(self, partition: _Partition) -> bytes | None:
        """The least writing of the leaves, None where there are too many of them."""
        if not partition.unsettled():
            return _writing(self._dag, partition)
        frames = [_Frame.of(partition)]
        while frames:
            path = [frame.tried[-1] for frame in frames[:-1]]
            vertex = frames[-1].next(self._fixing(path))
            if vertex is None:
                frames.pop()
                continue
            frames[-1].tried.append(vertex)
            below = self._apart(frames[-1], vertex)
            if below.unsettled():
                frames.append(_Frame.of(below))
                continue
            if not self._left:
                return None
            self._left -= 1
            del frames[self._reached(below, [*path, vertex]) :]
        return self._leaves[-1].writing

    def _apart(self, frame: _Frame, vertex: int) -> _Partition:
        partition = frame.partition.copy()
        others = [other for other in partition.cells[frame.colour] if other != vertex]
        pending = _split(self._dag, partition, frame.colour, [[vertex], others])
        _refine(self._dag, partition, pending)
        return partition

    def _fixing(self, path: Sequence[int]) -> list[Permutation]:
        return [each for each in self._automorphisms if each.keys().isdisjoint(path)]

    def _reached(self, partition: _Partition, path: Sequence[int]) -> int:
        """Note a leaf; returns how many of the frames above it are still worth searching.

        The leaves kept are the first and the least. What a leaf of equal writing shows to be an
        image of what was searched is left, up to where the two paths part.
        """
        leaf = _Leaf(_writing(self._dag, partition), partition.order(), path)
        for known in self._leaves:
            if known.writing == leaf.writing:
                pairs = zip(known.order, leaf.order, strict=True)
                self._automorphisms.append({one: two for one, two in pairs if one != two})
                steps = zip(known.path, path, strict=True)
                return 1 + next(level for level, (one, two) in enumerate(steps) if one != two)
        if not self._leaves or leaf.writing < self._leaves[-1].writing:
            self._leaves[1:] = [leaf]
        return len(path)
