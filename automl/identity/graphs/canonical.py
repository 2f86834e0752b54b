"""Level L1: a key for what a graph computes, equal for all writings that rewriting can unite."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from automl.identity.graphs.channel_order import in_any_order
from automl.identity.graphs.labelling import labelled
from automl.identity.graphs.node_kinds import netstring, written
from automl.identity.graphs.rewriting import NormalForm, Rule, rewritten
from automl.identity.graphs.vertices import Spot, contracted, drawn
from automl.space.graph import Graph, Shape

_FORMAT = b"automl canonical graph 1"
_ANY_ORDER = netstring(b"any order")


@dataclass(frozen=True)
class Canonical:
    """What a graph computes, as far as its form tells.

    key: 64 hexadecimal digits, equal only for equal functions; None where the search for a
    canonical labelling was cut short, or an attribute cannot be written down. colour: the same
    of what plain colour refinement sees, always there. rewrites: the rules that changed
    something, in order of first use. parametric: the nodes whose weights the output depends on,
    in the graph's order. own_operations: some operation in it was declared outside the standard
    ones, so the key says its name but not what its code does.
    """

    key: str | None
    colour: str
    rewrites: tuple[str, ...]
    parametric: tuple[str, ...]
    own_operations: bool


def canonical(graph: Graph, max_leaves: int = 64) -> Canonical:
    """The canonical form of a graph: rewritten, contracted, and labelled canonically.

    max_leaves: how many labellings are compared at most where a graph is symmetric.

    Raises:
        GraphError: the graph has no output.
    """
    form = rewritten(graph)
    terms = _reached(form)
    kinds = [form.terms[term].kind for term in terms]
    spots = drawn(form, terms)
    joins = in_any_order(spots)
    labelling = labelled(contracted(_unordered(spots, joins)), max_leaves)
    told = labelling.certificate if all(kind.told for kind in kinds) else None
    head = _head(form.inputs)
    return Canonical(
        key=None if told is None else _digest(b"key", head, told),
        colour=_digest(b"colour", head, labelling.colouring),
        rewrites=tuple(rule.value for rule in (*form.rules, *[Rule.CHANNELS][: len(joins)])),
        parametric=_parametric(form, terms),
        own_operations=any(kind.own for kind in kinds),
    )


@lru_cache(maxsize=256)
def _head(inputs: tuple[Shape, ...]) -> bytes:
    return netstring(_FORMAT) + written(inputs)


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(map(netstring, parts)), digest_size=32).hexdigest()


def _parametric(form: NormalForm, terms: Sequence[int]) -> tuple[str, ...]:
    reached = [form.terms[term] for term in terms]
    return tuple(t.node for t in reached if t.node is not None and t.kind.algebra.parametric)


def _reached(form: NormalForm) -> list[int]:
    """The terms that the output still depends on, each after those it reads."""
    needed = {term for term, _ in form.output.items}
    for term in range(len(form.terms) - 1, -1, -1):
        if term in needed:
            needed.update([t for value in form.terms[term].arguments for t, _ in value.items])
    return sorted(needed)


def _unordered(spots: list[Spot], joins: Sequence[int]) -> list[Spot]:
    for join in joins:
        spot = spots[join]
        edges = tuple((0, source) for _, source in spot.inputs)
        # Marked, for the same operation may elsewhere read two of its inputs in order.
        spots[join] = spot._replace(label=_ANY_ORDER + spot.label, inputs=edges)
    return spots
