"""Audits find false merges only, and their arithmetic matches textbooks."""

import math
import random
import statistics
import uuid
from dataclasses import replace

import numpy as np
import pytest
from databases import KINDS, database
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from automl import Outcome, State
from automl.identity.fingerprint import Identity
from automl.identity.probes.sketch import Sketch
from automl.ledger.audits import Audits, two_sided_p, wilson
from automl.ledger.ledger import Ledger
from automl.ledger.queries import Views
from automl.ledger.values import Claimed, Hit, Worker
from automl.spec import Cache
from automl.storage.storage import Storage

NOISE = 0.01


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tmp_path_factory):
    with database(request.param, tmp_path_factory.mktemp("audits")) as url:
        engine = Storage(url).engine
        yield engine
        engine.dispose()


@pytest.fixture
def ledger(engine) -> Ledger:
    """Create a ledger that audits every hit."""
    ledger = Ledger(engine, str(uuid.uuid4()), Cache(audit=1.0), ("score",))
    ledger.open_study(None, None, None)
    return ledger


def trial(ledger: Ledger, number: int, name: str, score: float, graph: str = "g") -> str:
    """Propose a candidate and evaluate it if necessary; return the kind of the answer."""
    mine = f"{ledger.study}/{graph}"
    identity = Identity(f"{name}/{ledger.study}"[:64], mine)
    answer = ledger.claim(ledger.reserve(Worker("w")), number, identity, {})
    if isinstance(answer, Claimed):
        outcome = Outcome(State.COMPLETE, (score,), {"score": score}, 1)
        ledger.settle(answer.lease, number, outcome, 1.0)
    return type(answer).__name__


def play(ledger: Ledger, means: dict[str, float], repeats: int, seed: int = 0) -> None:
    """Run trials of each name in turn, all of the same function as far as the ledger knows."""
    draw = random.Random(seed)
    names = [name for _ in range(repeats) for name in means]
    for number, name in enumerate(names):
        assert trial(ledger, number, name, draw.gauss(means[name], NOISE)) == "Claimed"


# Which trials are audited.
def test_an_audit_is_evaluated_and_stored_separately_and_never_served(ledger):
    trial(ledger, 0, "a", 0.5)
    trial(ledger, 1, "b", 0.75)
    views = Views(ledger.engine, ledger.study)
    assert [(t.audits, t.level, t.objectives) for t in views.trials()] == [
        (False, "L1", [0.5]),
        (True, "L1", [0.75]),
    ]
    assert views.counts().evaluated == 2
    settled = replace(ledger, cache=Cache())
    assert trial(settled, 2, "c", 0.0) == "Hit"
    assert views.trial(2).objectives == [0.5]
    assert views.functions()[0].n == 1


def test_each_study_audits_its_own_random_share(engine):
    found = []
    for name in range(2):
        study = str(uuid.UUID(int=name))
        ledger = Ledger(engine, study, Cache(audit=0.25), ("score",))
        ledger.open_study(None, None, None)
        answers = [trial(ledger, number, f"n{number}", 0.5) for number in range(80)]
        found.append([number for number, kind in enumerate(answers) if kind == "Claimed"][1:])
        assert 8 <= len(found[-1]) <= 35
    assert found[0] != found[1]


def test_an_audit_that_is_taken_over_stays_an_audit(ledger):
    trial(ledger, 0, "a", 0.5)
    short = replace(ledger, lease_seconds=0.0)
    identity = Identity(f"b/{ledger.study}", f"{ledger.study}/g")
    first = short.claim(short.reserve(Worker("w")), 1, identity, {}).lease
    again = ledger.claim(ledger.take_over(Worker("v")), 1, identity, {}).lease
    assert (again.evaluation, again.reevaluates) == (first.evaluation, True)
    assert Views(ledger.engine, ledger.study).trial(1).audits


def test_audited_hits_exhaust_a_space_like_other_hits(engine):
    cache = Cache(audit=1.0, exhausted_after=3)
    ledger = Ledger(engine, str(uuid.uuid4()), cache, ("score",))
    ledger.open_study(None, None, None)
    for number in range(4):
        trial(ledger, number, "a", 0.5)
    assert ledger.reserve(Worker("w")) is None


# Reports.
def test_correct_merges_are_not_called_false(ledger):
    play(ledger, {"a": 0.9, "b": 0.9, "c": 0.9}, 12)
    report = Audits(ledger.engine, ledger.study).report("score")
    assert (report.n, report.merges, report.false, report.rate) == (35, 24, 0, 0.0)
    assert report.degrees == 33
    assert report.noise == pytest.approx(NOISE, rel=0.4)
    assert report.interval == wilson(0, 24)


def test_a_planted_false_merge_is_found_at_its_rate(ledger):
    play(ledger, {"a": 0.9, "b": 0.9, "wrong": 0.7}, 12)
    report = Audits(ledger.engine, ledger.study).report("score")
    assert (report.merges, report.false, report.rate) == (24, 12, 0.5)
    assert report.noise == pytest.approx(NOISE, rel=0.4)
    assert report.mean_difference == pytest.approx(0.1, abs=0.02)
    assert report.interval.low < 0.5 < report.interval.high


def test_the_noise_is_the_pooled_deviation_of_equal_decisions(ledger):
    scores = {"a": [1.0, 2.0, 6.0], "b": [4.0, 8.0]}
    number = 0
    for name, found in scores.items():
        for score in found:
            trial(ledger, number, name, score)
            number += 1
    report = Audits(ledger.engine, ledger.study).report("score")
    squares = sum(statistics.variance(v) * (len(v) - 1) for v in scores.values())
    assert report.degrees == 3
    assert report.noise == pytest.approx(math.sqrt(squares / 3))
    assert report.mean_difference == pytest.approx((3.0 + 7.0) / 2)


def test_without_equal_decisions_the_noise_is_unknown(ledger):
    trial(ledger, 0, "a", 0.5)
    trial(ledger, 1, "b", 0.1)
    report = Audits(ledger.engine, ledger.study).report("score")
    assert (report.merges, report.mean_difference) == (1, pytest.approx(0.4))
    assert (report.noise, report.false, report.rate, report.interval) == (None,) * 4


def test_without_noise_any_difference_is_false(ledger):
    for number, (name, score) in enumerate([("a", 0.5), ("a", 0.5), ("b", 0.5), ("c", 0.51)]):
        trial(ledger, number, name, score)
    report = Audits(ledger.engine, ledger.study).report("score")
    assert (report.merges, report.false, report.noise) == (2, 1, 0.0)


def test_a_served_mean_is_audited_as_a_mean(engine):
    ledger = Ledger(engine, str(uuid.uuid4()), Cache(repeats=4, audit=1.0), ("score",))
    ledger.open_study(None, None, None)
    draw = random.Random(1)
    for number in range(4):
        trial(ledger, number, "a", 0.9 + draw.gauss(0, NOISE))
    trial(ledger, 4, "b", 0.9)
    trial(ledger, 5, "c", 0.5)
    report = Audits(ledger.engine, ledger.study).report("score")
    assert (report.n, report.merges, report.false, report.degrees) == (2, 2, 1, 3)


def test_a_study_without_audits_has_nothing_to_report(ledger):
    report = Audits(ledger.engine, ledger.study).report("score")
    assert (report.n, report.merges, report.rate) == (0, 0, None)


def test_a_false_merge_by_a_probe_is_audited_like_others(ledger):
    sketch = Sketch((np.array([1.0]),)).to_bytes()
    key = ledger.study
    for number, (name, score) in enumerate([("a", 0.5), ("a", 0.5), ("b", 0.2)]):
        found = Identity(f"{name}/{key}", None, None, (f"{key}/d",), sketch, 1, "sound")
        answer = ledger.claim(ledger.reserve(Worker("w")), number, found, {})
        assert not isinstance(answer, Hit)
        outcome = Outcome(State.COMPLETE, (score,), {"score": score}, 1)
        ledger.settle(answer.lease, number, outcome, 1.0)
    assert Views(ledger.engine, ledger.study).trial(2).level == "L2"
    assert Audits(ledger.engine, ledger.study).report("score").false == 1


# Arithmetic.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (1, 10, 0.01788, 0.40415),
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72247, 1.0),
    ],
)
def test_wilson_interval(successes, n, low, high):
    found = wilson(successes, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 10_000), st.data())
def test_the_wilson_interval_solves_its_equation(n, data):
    successes = data.draw(st.integers(0, n))
    z, share = statistics.NormalDist().inv_cdf(0.975), successes / n
    found = wilson(successes, n)
    for bound in (found.low, found.high):
        if 0 < bound < 1:
            away = abs(share - bound) / math.sqrt(bound * (1 - bound) / n)
            assert away == pytest.approx(z, rel=1e-6)


@given(st.integers(1, 2000), st.floats(0, 30))
def test_two_sided_p_of_students_t(degrees, t):
    assert two_sided_p(t, degrees) == pytest.approx(2 * student.sf(t, degrees), abs=1e-10)
