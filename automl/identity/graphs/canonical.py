"""Level L1: a key for what a graph computes, equal for all graphs with one normal form."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from automl.identity.graphs.channel_order import unordered_concatenations
from automl.identity.graphs.labelling import labelled
from automl.identity.graphs.node_kinds import encoded, netstring
from automl.identity.graphs.rewriting import NormalForm, Rule, normal_form
from automl.identity.graphs.vertices import FormVertex, contracted, form_vertices
from automl.space.declared import Shape
from automl.space.graph import Graph

_FORMAT = b"automl canonical graph 1"
_ANY_ORDER = netstring(b"any order")


@dataclass(frozen=True)
class Canonical:
    """What a graph computes, as far as its normal form shows.

    Attributes:
        key: 64 hexadecimal digits, equal only for equal functions. None if the search for a
            canonical labelling hit its limit or an attribute cannot be encoded.
        colour: A digest of what plain colour refinement sees; always available.
        rewrites: The rules that changed something, in order of first use.
        parametric: The names of the nodes whose weights the output depends on, in graph order.
        custom_operations: Whether the graph uses operations that automl does not define. The key
            contains the names of these operations but not their code.
    """

    key: str | None
    colour: str
    rewrites: tuple[str, ...]
    parametric: tuple[str, ...]
    custom_operations: bool


def canonical(graph: Graph, max_leaves: int = 64) -> Canonical:
    """Rewrite a graph into its normal form and label that canonically.

    Args:
        graph: The graph.
        max_leaves: The largest number of labellings to compare for a symmetric graph.

    Raises:
        GraphError: The graph has no output.
    """
    form = normal_form(graph)
    terms = _reached(form)
    kinds = [form.terms[term].kind for term in terms]
    vertices = form_vertices(form, terms)
    joins = unordered_concatenations(vertices)
    labelling = labelled(contracted(_unordered(vertices, joins)), max_leaves)
    certificate = labelling.certificate if all(kind.complete for kind in kinds) else None
    head = _head(form.inputs)
    return Canonical(
        key=None if certificate is None else _digest(b"key", head, certificate),
        colour=_digest(b"colour", head, labelling.colouring),
        rewrites=tuple(rule.value for rule in (*form.rules, *[Rule.CHANNELS][: len(joins)])),
        parametric=_parametric(form, terms),
        custom_operations=any(kind.custom for kind in kinds),
    )


@lru_cache(maxsize=256)
def _head(inputs: tuple[Shape, ...]) -> bytes:
    return netstring(_FORMAT) + encoded(inputs)


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(map(netstring, parts)), digest_size=32).hexdigest()


def _parametric(form: NormalForm, terms: Sequence[int]) -> tuple[str, ...]:
    reached = [form.terms[term] for term in terms]
    return tuple(t.node for t in reached if t.node is not None and t.kind.algebra.parametric)


def _reached(form: NormalForm) -> list[int]:
    """The terms that the output depends on, each after those it reads."""
    needed = {term for term, _ in form.output.items}
    for term in range(len(form.terms) - 1, -1, -1):
        if term in needed:
            needed.update([t for value in form.terms[term].arguments for t, _ in value.items])
    return sorted(needed)


def _unordered(vertices: list[FormVertex], joins: Sequence[int]) -> list[FormVertex]:
    for join in joins:
        vertex = vertices[join]
        edges = tuple((0, source) for _, source in vertex.inputs)
        # The mark is needed because the order of inputs may matter to the same operation elsewhere.
        vertices[join] = vertex._replace(label=_ANY_ORDER + vertex.label, inputs=edges)
    return vertices
