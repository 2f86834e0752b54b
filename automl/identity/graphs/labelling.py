"""Canonical labelling of labelled directed acyclic graphs.

Isomorphic graphs get equal certificates. Colours are refined until they are stable. Then vertices
of one colour are individualised, one after another, with refinement in between, until all colours
differ; the least encoding found is the certificate. Twins (vertices with the same neighbours) are
individualised at once. Equal encodings reveal automorphisms, which prune equivalent branches of the
search. Source: B. D. McKay and A. Piperno, Practical graph isomorphism, II, arXiv 1301.1493.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Edge = tuple[int, int]
"""A mark (a port or a coefficient) and a vertex."""


class Vertex(NamedTuple):
    """A vertex of a directed acyclic graph.

    Attributes:
        label: Vertices can correspond only if their labels are equal.
        inputs: The edges from the vertices that it reads; edges with equal marks are unordered.
    """

    label: bytes
    inputs: tuple[Edge, ...]


@dataclass(frozen=True)
class Labelling:
    """The result of labelling a graph.

    Attributes:
        certificate: Equal exactly for isomorphic graphs; None if the search hit its limit.
        colouring: Equal exactly for graphs that plain colour refinement cannot distinguish.
    """

    certificate: bytes | None
    colouring: bytes


def labelled(vertices: Sequence[Vertex], max_leaves: int) -> Labelling:
    """Label a graph canonically.

    Args:
        vertices: The vertices; each reads earlier ones only.
        max_leaves: The largest number of complete labellings to compare.
    """
    dag = _Dag.of(vertices)
    partition = _Partition.by(_ranks(dag))
    _refine(dag, partition, partition.unresolved())
    colouring = _encoding(dag, partition)
    if not partition.unresolved():
        return Labelling(colouring, colouring)
    _split_twins(dag, partition)
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


def _coloured(edges: Sequence[Edge], colours: Sequence[int]) -> tuple[Edge, ...]:
    """Edges as colour refinement sees them: marks with the colours of their ends, sorted."""
    if not edges:
        return ()
    if len(edges) == 1:
        ((mark, end),) = edges
        return ((mark, colours[end]),)
    return tuple(sorted([(mark, colours[end]) for mark, end in edges]))


# Ranks: two sweeps see nearly everything that refinement does and visit each vertex only once.
def _ranks(dag: _Dag) -> list[int]:
    """Rank vertices by everything above them and, unless all ranks differ then, below them."""
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
        seen = {vertex: (start[vertex], _coloured(edges[vertex], ranks)) for vertex in level}
        # All items of `start` have one type, so the pairs can be sorted.
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


# Partitions into cells of one colour; a colour is the number of vertices with smaller colours.
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

    def unresolved(self) -> set[int]:
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
    """Split cells until all vertices of one colour have neighbours of equal colours."""
    while pending:
        colour = min(pending)
        pending.remove(colour)
        cell = partition.cells[colour]
        if len(cell) == 1:
            continue
        groups: dict[tuple[tuple[Edge, ...], tuple[Edge, ...]], list[int]] = {}
        for vertex in cell:
            inputs = _coloured(dag.inputs[vertex], partition.colours)
            outputs = _coloured(dag.outputs[vertex], partition.colours)
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


def _split_twins(dag: _Dag, partition: _Partition) -> None:
    """Give twins different colours: exchanging vertices with the same neighbours has no effect."""
    pending: set[int] = set()
    for colour in sorted(partition.unresolved()):
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


def _encoding(dag: _Dag, partition: _Partition) -> bytes:
    """Encode the cells in order: size, label, and the inputs of one of their vertices."""
    parts = [b"%d;" % len(dag.labels)]
    for _, cell in sorted(partition.cells.items()):
        vertex = cell[0]
        label = dag.labels[vertex]
        seen = _coloured(dag.inputs[vertex], partition.colours)
        parts.append(b"%d;%d;%d:%b" % (len(cell), len(seen), len(label), label))
        parts += [b"%d,%d;" % edge for edge in seen]
    return b"".join(parts)


# The search.
Permutation = Mapping[int, int]
"""An automorphism without its fixed points."""


@dataclass(frozen=True)
class _Leaf:
    encoding: bytes
    order: Sequence[int]
    path: Sequence[int]


@dataclass
class _Frame:
    """A partition in the search, and the vertices of its target cell that were individualised."""

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
        """The least encoding of all leaves; None if there are too many leaves."""
        if not partition.unresolved():
            return _encoding(self._dag, partition)
        frames = [_Frame.of(partition)]
        while frames:
            path = [frame.tried[-1] for frame in frames[:-1]]
            vertex = frames[-1].next(self._fixing(path))
            if vertex is None:
                frames.pop()
                continue
            frames[-1].tried.append(vertex)
            below = self._individualised(frames[-1], vertex)
            if below.unresolved():
                frames.append(_Frame.of(below))
                continue
            if not self._left:
                return None
            self._left -= 1
            del frames[self._record(below, [*path, vertex]) :]
        return self._leaves[-1].encoding

    def _individualised(self, frame: _Frame, vertex: int) -> _Partition:
        partition = frame.partition.copy()
        others = [other for other in partition.cells[frame.colour] if other != vertex]
        pending = _split(self._dag, partition, frame.colour, [[vertex], others])
        _refine(self._dag, partition, pending)
        return partition

    def _fixing(self, path: Sequence[int]) -> list[Permutation]:
        return [each for each in self._automorphisms if each.keys().isdisjoint(path)]

    def _record(self, partition: _Partition, path: Sequence[int]) -> int:
        """Record a leaf; returns how many of the frames above it are still worth searching.

        The first leaf and the least one are kept. A leaf with the encoding of a kept one shows that
        the search repeats itself from the point where the two paths diverge, so it returns there.
        """
        leaf = _Leaf(_encoding(self._dag, partition), partition.order(), path)
        for known in self._leaves:
            if known.encoding == leaf.encoding:
                pairs = zip(known.order, leaf.order, strict=True)
                self._automorphisms.append({one: two for one, two in pairs if one != two})
                steps = zip(known.path, path, strict=True)
                return 1 + next(level for level, (one, two) in enumerate(steps) if one != two)
        if not self._leaves or leaf.encoding < self._leaves[-1].encoding:
            self._leaves[1:] = [leaf]
        return len(path)
