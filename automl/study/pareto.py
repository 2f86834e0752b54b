"""The best results by one objective, or the Pareto front of several."""

from collections.abc import Sequence

from automl.plugin.report import Direction, Objective

Point = tuple[float, ...]
"""The values of a result, negated if smaller is better."""


def point_of(values: Sequence[float], objectives: Sequence[Objective]) -> Point:
    signs = (1 if o.direction is Direction.MAXIMIZE else -1 for o in objectives)
    return tuple(sign * value for sign, value in zip(signs, values, strict=True))


def beats(one: Point, other: Point) -> bool:
    """Whether one point is better in some objective and worse in none."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def unbeaten(points: Sequence[Point]) -> list[int]:
    """The indices of the points that no other beats, the best by the first objective first.

    With one objective: only the first of the best.
    """
    if points and len(points[0]) == 1:
        return [points.index(max(points))]
    front: list[int] = []
    # A point that beats another comes first in this order, and is on the front or beaten by it.
    for place in sorted(range(len(points)), key=points.__getitem__, reverse=True):
        if not any(beats(points[other], points[place]) for other in front):
            front.append(place)
    return front
