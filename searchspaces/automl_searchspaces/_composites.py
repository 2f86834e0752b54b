"""Operations made of standard ones, as benchmark spaces name them.

A chosen one is written in standard operations, so that equal networks are known as equal; whole,
as an operation of its own name, it stands only where the choice is left open.
"""

from collections.abc import Callable, Mapping

from torch import nn

from automl import Algebra, Graph, Open, Operation, declare

Composites = Mapping[str, Callable[[Graph, str], str]]
"""By name, what adds each to a graph after a node and returns the last node; shapes stay."""


def declare_composites(module: str, composites: Composites) -> None:
    """Declare each as an operation of one input; module: the name of the space's own."""
    for name, part in composites.items():
        declare(Operation(name, _builder(module, part), lambda shapes: shapes[0], algebra=_ALGEBRA))


def add_composite(graph: Graph, composites: Composites, choice: str | Open, h: str) -> str:
    """Add what was chosen, or the open choice itself, after node h."""
    return graph.add(choice, h) if isinstance(choice, Open) else composites[choice](graph, h)


def joined(graph: Graph, operation: str, terms: list[str]) -> str:
    """Several nodes through an operation; a single one as it is."""
    return graph.add(operation, *terms) if len(terms) > 1 else terms[0]


_ALGEBRA = Algebra(parametric=True)
"""Said of all, for it is never wrong to keep two of them apart."""


def _builder(
    module: str, part: Callable[[Graph, str], str]
) -> Callable[[list[tuple[int, ...]]], nn.Module]:
    def build(shapes: list[tuple[int, ...]]) -> nn.Module:
        graph = Graph()
        graph.output(part(graph, graph.input("x", shapes[0])))
        return graph.build()

    # Two spaces that declare one name are told apart by the module that declares it.
    build.__module__ = module
    return build
