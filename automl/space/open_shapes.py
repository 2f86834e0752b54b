"""How open decisions change the shape of a node's output."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from automl.errors import OpenShapeError
from automl.space.decisions import Open, domain_of, find_open

if TYPE_CHECKING:
    from automl.space.declared import Operation, Shape
    from automl.space.graph import Node

OpenShapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""By open decision, the shape for each of its values, the others being as wide as they can be."""


def open_shapes(
    kind: "Operation", sources: Sequence["Node"], attributes: Mapping[str, Any], shape: "Shape"
) -> OpenShapes:
    """Return the shapes of an operation's output for each decision that changes it.

    Args:
        kind: The operation.
        sources: The nodes that it reads.
        attributes: Its attributes, some of them open.
        shape: The widest shape.

    Raises:
        OpenShapeError: The operation cannot compute what some value asks for.
    """
    found: dict[str, tuple[Shape, ...]] = {}
    for name, domain in _decisions(sources, attributes).items():
        shapes = tuple(_shapes(kind, sources, attributes, name, domain))
        if any(each != shape for each in shapes):
            found[name] = shapes
            _check(found, shape, name)
    return found


def _decisions(
    sources: Sequence["Node"], attributes: Mapping[str, Any]
) -> dict[str, Sequence[Any]]:
    """The decisions that matter, with their values; those of the sources have places instead."""
    found: dict[str, Sequence[Any]] = {
        name: range(len(shapes))
        for source in sources
        for name, shapes in source.open_shapes.items()
    }
    for decision in find_open(dict(attributes)):
        domain = domain_of(decision.distribution)
        if domain is None:
            continue
        if len(domain) != len(found.get(decision.name, domain)):
            raise OpenShapeError(
                f"two different decisions are named {decision.name!r}", decision.name
            )
        found[decision.name] = domain
    return found


def _shapes(
    kind: "Operation",
    sources: Sequence["Node"],
    attributes: Mapping[str, Any],
    name: str,
    domain: Sequence[Any],
) -> Iterator["Shape"]:
    widest = [source.shape for source in sources]
    for place, value in enumerate(domain):
        narrower = [
            source.open_shapes[name][place] if name in source.open_shapes else source.shape
            for source in sources
        ]
        try:
            if narrower != widest:
                _accept(kind, widest, narrower)
            yield tuple(kind.shape(narrower, **closed(dict(attributes), {name: value})))
        except (ValueError, TypeError) as error:
            raise OpenShapeError(_described(kind, sources, name, str(error)), name) from error


def _accept(kind: "Operation", widest: Sequence["Shape"], narrower: Sequence["Shape"]) -> None:
    if callable(kind.narrower):
        kind.narrower(widest, narrower)
    elif not kind.narrower:
        raise ValueError("the operation takes no inputs of open width")


def _described(kind: "Operation", sources: Sequence["Node"], name: str, reason: str) -> str:
    widths = [f"{s.name!r}" for s in sources if name in s.open_shapes]
    reads = f" on {', '.join(widths)}, whose width is open," if widths else ""
    return f"{kind.name}{reads} does not fit the open decision {name!r}: {reason}"


def _check(found: OpenShapes, shape: "Shape", name: str) -> None:
    """Check that no shape exceeds the widest one, and that each dimension has one decision."""
    for each in found[name]:
        if len(each) != len(shape) or any(map(int.__gt__, each, shape)):
            raise OpenShapeError(
                f"decision {name!r} makes an output of {each}, larger than the widest {shape}", name
            )
    changed = {other: _dimensions(shapes, shape) for other, shapes in found.items()}
    for other, dimensions in changed.items():
        if other != name and dimensions & changed[name]:
            raise OpenShapeError(
                f"the decisions {other!r} and {name!r} are open and change one dimension", name
            )


def _dimensions(shapes: Sequence["Shape"], widest: "Shape") -> set[int]:
    return {at for shape in shapes for at, size in enumerate(shape) if size != widest[at]}


def closed(value: Any, decisions: Mapping[str, Any]) -> Any:
    """Replace open decisions in a value, at any depth, by those that are given."""
    if isinstance(value, Open):
        return value.value(decisions[value.name]) if value.name in decisions else value
    if isinstance(value, dict):
        return {key: closed(item, decisions) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(closed(item, decisions) for item in value)
    return value
