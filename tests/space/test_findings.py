"""Findings of trainers, as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl import Schedule
from automl.space.findings import decode, digest_of_findings, encode

NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5)


def schedules():
    return NUMBERS.map(lambda values: Schedule([i / 8 for i in range(len(values))], values))


@given(st.dictionaries(st.text(max_size=3), schedules() | NUMBERS.map(tuple), max_size=3))
def test_findings_survive_as_bytes(findings):
    assert decode(encode(findings)) == findings
    assert digest_of_findings(dict(reversed(findings.items()))) == digest_of_findings(findings)


def test_a_schedule_differs_from_equal_numbers():
    schedule, numbers = {"a": Schedule((0,), (0.5,))}, {"a": (0.0, 0.5)}
    assert digest_of_findings(schedule) != digest_of_findings(numbers)


def test_damaged_findings_are_refused():
    with pytest.raises(ValueError, match="numbers"):
        decode(encode({"a": (1.0, 2.0)})[:-8])
