"""The results that no other beats, compared with the definition on all pairs."""

from hypothesis import given
from hypothesis import strategies as some

from automl.plugin.report import Direction, Objective
from automl.study.pareto import beats, point_of, unbeaten

coordinates = some.integers(-3, 3).map(float)
points = some.integers(2, 3).flatmap(
    lambda n: some.lists(some.tuples(*[coordinates] * n), max_size=30)
)


@given(points)
def test_the_front_is_all_that_no_other_beats(points):
    expected = [
        place for place, one in enumerate(points) if not any(beats(other, one) for other in points)
    ]
    found = unbeaten(points)
    assert sorted(found) == expected
    ranked = [points[place] for place in found]
    assert ranked == sorted(ranked, reverse=True)


@given(some.lists(some.tuples(coordinates), min_size=1))
def test_with_one_objective_it_is_the_first_of_the_best(points):
    assert unbeaten(points) == [points.index(max(points))]


def test_minimized_values_are_negated():
    objectives = [Objective("a", Direction.MAXIMIZE), Objective("b", Direction.MINIMIZE)]
    assert point_of([1.0, 2.0], objectives) == (1.0, -2.0)
    assert beats((1.0, -1.0), (1.0, -2.0))
    assert not beats((1.0, -1.0), (1.0, -1.0))
    assert not beats((2.0, -2.0), (1.0, -1.0))
