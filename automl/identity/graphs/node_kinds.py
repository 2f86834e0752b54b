"""What rewriting knows of a node: a label that says all of it but its inputs, and its algebra."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from optuna.distributions import distribution_to_json

from automl.space.decisions import Open
from automl.space.graph import Algebra, Node, Operation, Shape, operation

_STANDARD = "automl.space.operations"
_SCALARS = frozenset({int, float, str, bool, type(None)})


class Kind(NamedTuple):
    """What all nodes have in common that compute alike.

    label: the same for nodes that compute the same of the same inputs with the same weights; a
    netstring.
    alone: two of them are two even on equal inputs. own: declared outside the standard
    operations. told: the label says all; False where an attribute could not be written down.
    """

    label: bytes
    algebra: Algebra
    alone: bool = False
    own: bool = False
    told: bool = True


def kind_of(node: Node, shapes: tuple[Shape, ...]) -> Kind:
    """The kind of a node that reads inputs of these shapes."""
    if isinstance(node.operation, Open):
        return _choice(node, node.operation, shapes)
    declared, values = operation(node.operation), node.attributes.values()
    if _SCALARS.issuperset(map(type, values)):
        return _remembered(declared, shapes, tuple(node.attributes), *values)
    return _kind(declared, shapes, node.attributes)


@lru_cache(maxsize=256)
def input_kind(position: int, shape: Shape) -> Kind:
    """The kind of the input at a position of the module's arguments."""
    return Kind(netstring(netstring(b"input") + written([position, shape])), Algebra())


# Typed, for 1, 1.0 and True are three attributes and one key.
@lru_cache(maxsize=4096, typed=True)
def _remembered(
    declared: Operation, shapes: tuple[Shape, ...], names: tuple[str, ...], *values: Any
) -> Kind:
    return _kind(declared, shapes, dict(zip(names, values, strict=True)))


def _kind(declared: Operation, shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Kind:
    algebra = declared.algebra_of(shapes, attributes)
    label, told = _label(declared.name, {**_defaults(declared), **attributes})
    own = declared.module.__module__ != _STANDARD
    return Kind(label, algebra, algebra.parametric or algebra.stochastic, own, told)


def _choice(node: Node, decision: Open, shapes: Sequence[Shape]) -> Kind:
    options = [(operation(name), taken) for name, taken in node.options()]
    weighted = any(each.algebra_of(shapes, taken).parametric for each, taken in options)
    label, told = _label("", {"": decision, **node.attributes})
    own = any(each.module.__module__ != _STANDARD for each, _ in options)
    return Kind(label, Algebra(parametric=weighted, stochastic=True), True, own, told)


@lru_cache(maxsize=1024)
def _defaults(declared: Operation) -> Mapping[str, Any]:
    """What a missing attribute stands for, where shape and module agree on it."""
    try:
        built = inspect.signature(declared.module).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.default
        for name, parameter in declared.attributes().items()
        if parameter.default is not inspect.Parameter.empty
        and name in built
        and built[name].default == parameter.default
    }


def _label(name: str, attributes: Mapping[str, Any]) -> tuple[bytes, bool]:
    head = netstring(name.encode())
    try:
        return netstring(head + written(attributes)), True
    except TypeError:
        return netstring(head), False


def netstring(content: bytes) -> bytes:
    """Content with its length before it, so that a sequence of them reads in one way only."""
    return b"%d:%b" % (len(content), content)


def written(value: object) -> bytes:
    """An attribute as bytes, equal for equal values of one type; a list is as a tuple.

    Raises:
        TypeError: the value is none of numbers, text, sequences, mappings and open decisions.
    """
    if isinstance(value, Open):
        return _tagged(b"open", [value.name.encode(), _distribution(value)])
    if value is None or isinstance(value, bool | int):
        return _tagged(type(value).__name__.encode(), [repr(value).encode()])
    if isinstance(value, float):
        return _tagged(b"float", [(float(value) + 0.0).hex().encode()])
    if isinstance(value, str):
        return _tagged(b"str", [value.encode()])
    if isinstance(value, Mapping):
        return _tagged(b"map", [written([key, value[key]]) for key in sorted(value)])
    if isinstance(value, list | tuple):
        return _tagged(b"list", map(written, value))
    raise TypeError(f"{type(value).__name__} is no attribute that can be written down")


def _distribution(decision: Open) -> bytes:
    return distribution_to_json(decision.distribution).encode()


def _tagged(tag: bytes, parts: Iterable[bytes]) -> bytes:
    return netstring(b"".join(map(netstring, (tag, *parts))))
