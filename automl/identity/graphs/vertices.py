"""Convert a normal form into a graph of labelled vertices and contract its chains."""

from collections.abc import Sequence
from typing import NamedTuple

from automl.identity.graphs.labelling import Edge, Vertex
from automl.identity.graphs.node_kinds import encoded, netstring
from automl.identity.graphs.rewriting import NormalForm, Value
from automl.space.declared import Algebra, Shape

_SUM = netstring(b"sum")
_ADDS = Algebra(channelwise=True)
_ZERO = Algebra(zero_preserving=True)


class FormVertex(NamedTuple):
    """A term, a sum of terms or a zero, as a vertex that reads earlier vertices.

    Attributes:
        label: What it computes.
        inputs: Edges from the vertices that it reads; edges with equal marks are unordered.
        shape: The shape of its output for one example.
        algebra: The laws that its operation obeys.
    """

    label: bytes
    inputs: tuple[Edge, ...]
    shape: Shape
    algebra: Algebra

    @property
    def is_zero(self) -> bool:
        return self.algebra is _ZERO


def form_vertices(form: NormalForm, terms: Sequence[int]) -> list[FormVertex]:
    """The vertices of a normal form, with the output last.

    Args:
        form: The normal form.
        terms: The terms to include, each after those it reads.
    """
    builder = _Builder()
    for index in terms:
        term = form.terms[index]
        sources = [builder.index(value) for value in term.arguments]
        algebra = term.kind.algebra
        edges = [(0, source) for source in sources] if algebra.commutative else enumerate(sources)
        builder.add(FormVertex(term.kind.label, tuple(edges), term.shape, algebra), index)
    builder.index(form.output)
    return builder.vertices


class _Builder:
    def __init__(self) -> None:
        self.vertices: list[FormVertex] = []
        self._indices: dict[int | Value, int] = {}

    def index(self, value: Value) -> int:
        of: int | Value = value
        if len(value.items) == 1 and value.items[0][1] == 1:
            of = value.items[0][0]
        elif value not in self._indices:
            self.add(self._sum(value) if value.items else self._zero(value.shape), value)
        return self._indices[of]

    def add(self, vertex: FormVertex, of: int | Value) -> None:
        """Add the vertex of a term, or of a value that is not a single term."""
        self._indices[of] = len(self.vertices)
        self.vertices.append(vertex)

    def _sum(self, value: Value) -> FormVertex:
        edges = tuple([(count, self._indices[term]) for term, count in value.items])
        return FormVertex(_SUM, edges, value.shape, _ADDS)

    def _zero(self, shape: Shape) -> FormVertex:
        return FormVertex(netstring(b"zero" + encoded(shape)), (), shape, _ZERO)


def contracted(uncontracted: Sequence[FormVertex]) -> list[Vertex]:
    """Merge chains: a vertex joins its only input if it is the only reader of that input."""
    readers = [0] * len(uncontracted)
    for vertex in uncontracted:
        for _, source in vertex.inputs:
            readers[source] += 1
    vertices: list[Vertex] = []
    indices: list[int] = []
    for vertex in uncontracted:
        if len(vertex.inputs) == 1 and readers[vertex.inputs[0][1]] == 1:
            ((mark, source),) = vertex.inputs
            index = indices[source]
            label, inputs = vertices[index]
            vertices[index] = Vertex(b"%b%d;%b" % (label, mark, vertex.label), inputs)
        else:
            index = len(vertices)
            inputs = tuple([(mark, indices[source]) for mark, source in vertex.inputs])
            vertices.append(Vertex(vertex.label, inputs))
        indices.append(index)
    return vertices
