"""A normal form drawn as a graph of labelled vertices, long chains contracted to one vertex."""

from collections.abc import Sequence
from typing import NamedTuple

from automl.identity.graphs.labelling import Edge, Vertex
from automl.identity.graphs.node_kinds import netstring, written
from automl.identity.graphs.rewriting import NormalForm, Value
from automl.space.graph import Algebra, Shape

_SUM = netstring(b"sum")
_ADDS = Algebra(channelwise=True)
_ZERO = Algebra(zero_preserving=True)


class Spot(NamedTuple):
    """A term, a sum of several or a zero; it reads earlier spots.

    Edges of equal marks stand in any order. `shape` is that of one example's output.
    """

    label: bytes
    inputs: tuple[Edge, ...]
    shape: Shape
    algebra: Algebra

    @property
    def is_zero(self) -> bool:
        return self.algebra is _ZERO


def drawn(form: NormalForm, terms: Sequence[int]) -> list[Spot]:
    """The spots of these terms and of the values they read; the last one is the output."""
    drawing = _Drawing()
    for index in terms:
        term = form.terms[index]
        sources = [drawing.spot(value) for value in term.arguments]
        algebra = term.kind.algebra
        edges = [(0, source) for source in sources] if algebra.commutative else enumerate(sources)
        drawing.add(Spot(term.kind.label, tuple(edges), term.shape, algebra), index)
    drawing.spot(form.output)
    return drawing.spots


class _Drawing:
    def __init__(self) -> None:
        self.spots: list[Spot] = []
        self._places: dict[int | Value, int] = {}

    def spot(self, value: Value) -> int:
        of: int | Value = value
        if len(value.items) == 1 and value.items[0][1] == 1:
            of = value.items[0][0]
        elif value not in self._places:
            self.add(self._sum(value) if value.items else self._zero(value.shape), value)
        return self._places[of]

    def add(self, spot: Spot, of: int | Value) -> None:
        """Add the spot of a term, or of a value that is more or less than one."""
        self._places[of] = len(self.spots)
        self.spots.append(spot)

    def _sum(self, value: Value) -> Spot:
        edges = tuple([(count, self._places[term]) for term, count in value.items])
        return Spot(_SUM, edges, value.shape, _ADDS)

    def _zero(self, shape: Shape) -> Spot:
        return Spot(netstring(b"zero" + written(shape)), (), shape, _ZERO)


def contracted(spots: Sequence[Spot]) -> list[Vertex]:
    """Vertices for spots; one that alone reads another as its only input is joined to it."""
    readers = [0] * len(spots)
    for spot in spots:
        for _, source in spot.inputs:
            readers[source] += 1
    vertices: list[Vertex] = []
    places: list[int] = []
    for spot in spots:
        if len(spot.inputs) == 1 and readers[spot.inputs[0][1]] == 1:
            ((mark, source),) = spot.inputs
            place = places[source]
            label, inputs = vertices[place]
            vertices[place] = Vertex(b"%b%d;%b" % (label, mark, spot.label), inputs)
        else:
            place = len(vertices)
            inputs = tuple([(mark, places[source]) for mark, source in spot.inputs])
            vertices.append(Vertex(spot.label, inputs))
        places.append(place)
    return vertices
