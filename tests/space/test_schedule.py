"""Schedules of values over the share of a training."""

import pytest

from automl import Schedule


def test_a_value_holds_until_the_next_share():
    schedule = Schedule([0, 0.25, 0.5], [1, 2, 3])
    assert [schedule.at(share) for share in (0, 0.2, 0.25, 0.49, 0.5, 1)] == [1, 1, 2, 2, 3, 3]
    assert schedule == Schedule((0.0, 0.25, 0.5), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("shares", "values"),
    [
        ((), ()),
        ((0.1,), (1,)),
        ((0, 0.5), (1,)),
        ((0, 0.5, 0.5), (1, 2, 3)),
        ((0, 1.0), (1, 2)),
        ((0,), (float("nan"),)),
    ],
)
def test_a_schedule_of_another_form_is_refused(shares, values):
    with pytest.raises(ValueError, match="schedule"):
        Schedule(shares, values)
