"""The ledger: one holder per trial, one evaluation per fingerprint, one end, an exact budget."""

import random
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from databases import KINDS, database
from sqlalchemy import create_engine

from automl import AutoMLError, Outcome, Report, Schedule, State, StorageError
from automl.identity.fingerprint import Identity
from automl.ledger.ledger import Ledger
from automl.ledger.models import StopReason
from automl.ledger.queries import Views
from automl.ledger.values import Claimed, Hit, Lease, LeaseLostError, Parked, Worker
from automl.plugin.report import Reason
from automl.spec import Cache
from automl.storage.storage import Storage

A, B, C = Worker("a"), Worker("b"), Worker("c", "cuda:0")
GOOD = Outcome(State.COMPLETE, (0.75,), {"accuracy": 0.75}, 3)
PRUNED = Outcome(State.PRUNED, (0.25,), {"accuracy": 0.25}, 1)
FAILED = Outcome(State.FAILED, reason=Reason.ERROR, message="boom", traceback="…", cause="x:1")


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tmp_path_factory):
    with database(request.param, tmp_path_factory.mktemp("ledger")) as url:
        engine = Storage(url).engine
        yield engine
        engine.dispose()


@pytest.fixture
def make(engine):
    """Creates a ledger with its own study and budget."""

    def make(trials=None, evaluations=None, timeout=None, **settings) -> Ledger:
        settings = {"objectives": ("accuracy",), **settings}
        ledger = Ledger(engine, str(uuid.uuid4()), **settings)
        ledger.open_study(trials, evaluations, timeout)
        return ledger

    return make


@pytest.fixture
def ledger(make) -> Ledger:
    return make()


def identity(name: str) -> Identity:
    """Return an identity that has only the key of its decisions."""
    return Identity(name)


def views(ledger: Ledger) -> Views:
    return Views(ledger.engine, ledger.study)


def claimed(ledger: Ledger, number: int, fingerprint: str, worker: Worker = A) -> Lease:
    """Reserve and claim a trial that its worker is to evaluate."""
    answer = ledger.claim(ledger.reserve(worker), number, identity(fingerprint), {})
    assert isinstance(answer, Claimed)
    return answer.lease


def settled(ledger: Ledger, number: int, fingerprint: str, outcome: Outcome = GOOD) -> Lease:
    lease = claimed(ledger, number, fingerprint)
    ledger.settle(lease, number, outcome, 2.0)
    return lease


# Claim, park, settle.
def test_a_new_fingerprint_is_claimed_and_its_result_stored(ledger):
    lease = claimed(ledger, 0, "f")
    assert lease.number == 0
    settlement = ledger.settle(lease, 0, GOOD, 1.5, [Report(3, {"accuracy": 0.75})])
    (own,) = settlement.settled
    assert own.outcome == GOOD
    assert (own.number, own.attempt, own.seconds, own.reused_from) == (0, 1, 1.5, None)
    assert settlement.next is None
    assert [(r.step, r.metrics) for r in views(ledger).reports(())] == [(3, {"accuracy": 0.75})]


def test_a_known_fingerprint_is_a_hit_with_the_same_result(ledger):
    settled(ledger, 0, "f")
    answer = ledger.claim(ledger.reserve(B), 1, identity("f"), {})
    assert isinstance(answer, Hit)
    assert answer.settled.outcome == GOOD
    assert (answer.settled.reused_from, answer.settled.level, answer.settled.seconds) == (
        0,
        "L0",
        0,
    )
    assert ledger.open_trials() == 0


def test_a_running_fingerprint_parks_other_trials_that_propose_it(ledger):
    owner = claimed(ledger, 0, "f")
    parked = ledger.claim(waiting := ledger.reserve(B), 1, identity("f"), {})
    assert parked == Parked(waiting.id)
    assert ledger.still_parked({waiting.id, owner.id}) == {waiting.id}
    settlement = ledger.settle(owner, 0, GOOD, 1.0)
    assert [(s.number, s.reused_from, s.outcome) for s in settlement.settled] == [
        (0, None, GOOD),
        (1, 0, GOOD),
    ]
    assert ledger.still_parked({waiting.id}) == set()


def test_a_pruned_result_is_shared_within_the_study(ledger):
    settled(ledger, 0, "f", PRUNED)
    answer = ledger.claim(ledger.reserve(A), 1, identity("f"), {})
    assert answer.settled.outcome == PRUNED


def test_results_are_not_shared_between_studies(make):
    settled(make(), 0, "f")
    assert claimed(make(), 0, "f")


def test_without_sharing_every_trial_is_evaluated(make):
    ledger = make(cache=Cache(enabled=False))
    first, second = claimed(ledger, 0, "f"), claimed(ledger, 1, "f")
    assert first.id != second.id
    ledger.settle(first, 0, GOOD, 1.0)
    ledger.settle(second, 1, PRUNED, 1.0)
    assert views(ledger).counts().reused == 0


def test_an_outcome_is_stored_unchanged(ledger):
    outcome = replace(GOOD, values=(0.5, -1e-300), closed={"op": "relu", "p": 0.5})
    settled(ledger, 0, "f", outcome)
    settled(ledger, 1, "g", FAILED)
    assert [s.outcome for s in ledger.untold()] == [outcome, FAILED]


def test_metrics_that_json_cannot_hold_become_null(ledger):
    settled(ledger, 0, "f", replace(GOOD, metrics={"loss": float("inf"), "accuracy": 0.5}))
    assert views(ledger).trial(0).metrics == {"loss": None, "accuracy": 0.5}


# A failure promotes a parked trial.
def test_the_oldest_parked_trial_takes_over_from_a_failed_owner(ledger):
    owner = claimed(ledger, 0, "f")
    for number in (1, 2):
        ledger.claim(ledger.reserve(B), number, identity("f"), {})
    assert len(ledger.settle(owner, 0, FAILED, 1.0).settled) == 1
    promoted = ledger.take_over(C)
    assert (promoted.number, promoted.attempt) == (1, 1)
    assert ledger.take_over(C) is None
    assert isinstance(ledger.claim(promoted, 1, identity("f"), {}), Claimed)
    settlement = ledger.settle(promoted, 1, GOOD, 1.0)
    assert [(s.number, s.reused_from) for s in settlement.settled] == [(1, None), (2, 1)]
    assert ledger.open_trials() == 0


def test_a_failure_is_never_a_hit(ledger):
    settled(ledger, 0, "f", FAILED)
    lease = claimed(ledger, 1, "f")
    ledger.settle(lease, 1, GOOD, 1.0)
    assert ledger.claim(ledger.reserve(A), 2, identity("f"), {}).settled.reused_from == 1


def test_a_trial_that_failed_before_its_claim_settles_alone(ledger):
    (own,) = ledger.settle(ledger.reserve(A), 0, FAILED, 0.0).settled
    assert (own.number, own.fingerprint) == (0, None)
    assert ledger.open_trials() == 0


# Leases and their fencing tokens.
def test_a_lease_settles_once(ledger):
    lease = claimed(ledger, 0, "f")
    ledger.settle(lease, 0, GOOD, 1.0)
    with pytest.raises(LeaseLostError):
        ledger.settle(lease, 0, PRUNED, 1.0)
    assert ledger.untold()[0].outcome == GOOD


def test_an_expired_lease_is_taken_over_on_the_same_row(make):
    ledger = make(lease_seconds=0.0)
    old = claimed(ledger, 7, "f")
    new = ledger.take_over(B)
    assert (new.id, new.number, new.attempt) == (old.id, 7, 2)
    assert new.token > old.token
    late = [
        lambda: ledger.settle(old, 7, GOOD, 1.0, [Report(1, {})]),
        lambda: ledger.renew(old, [Report(1, {})]),
        lambda: ledger.claim(old, 7, identity("f"), {}),
    ]
    for act in late:
        with pytest.raises(LeaseLostError) as caught:
            act()
        assert isinstance(caught.value, AutoMLError)
    assert views(ledger).reports(()) == []
    ledger.settle(new, 7, PRUNED, 1.0)
    assert ledger.untold()[0].outcome == PRUNED


def test_a_late_release_changes_nothing(make):
    ledger = make(lease_seconds=0.0)
    old = claimed(ledger, 0, "f")
    new = replace(ledger, lease_seconds=60.0).take_over(B)
    ledger.release(old, 0)
    assert ledger.take_over(C) is None
    ledger.settle(new, 0, GOOD, 1.0)


def test_a_lease_that_has_not_expired_is_not_taken_over(ledger):
    lease = claimed(ledger, 0, "f")
    assert ledger.take_over(B) is None
    ledger.renew(lease)
    assert ledger.take_over(B) is None


def test_renewing_extends_a_lease_and_stores_reports(make):
    ledger = make(lease_seconds=0.0)
    lease = claimed(ledger, 0, "f")
    replace(ledger, lease_seconds=60.0).renew(lease, [Report(1, {"accuracy": 0.5})])
    assert ledger.take_over(B) is None
    assert [r.step for r in views(ledger).reports(())] == [1]


def test_a_dead_holder_is_taken_over_at_once(ledger):
    lease = claimed(ledger, 0, "f", A)
    assert ledger.holders() == {"a"}
    assert ledger.take_over(C, {"b"}) is None
    taken = ledger.take_over(C, {"a"})
    assert (taken.id, taken.attempt) == (lease.id, 2)
    assert ledger.holders() == {"c"}


def test_no_worker_holds_a_parked_trial(make):
    ledger = make(lease_seconds=0.0)
    claimed(ledger, 0, "f")
    ledger.claim(ledger.reserve(B), 1, identity("f"), {})
    assert ledger.take_over(C, {"b"}).number == 0
    assert ledger.holders() == {"c"}


def test_the_owner_that_took_over_may_claim_again(make):
    ledger = make(lease_seconds=0.0)
    claimed(ledger, 0, "f")
    taken = ledger.take_over(B)
    assert isinstance(ledger.claim(taken, 0, identity("f"), {}), Claimed)


def test_giving_up_on_a_taken_over_trial_promotes_a_parked_one(make):
    """The trial is settled without a claim, as if it had lost too many workers."""
    ledger = make(lease_seconds=0.0)
    claimed(ledger, 0, "f")
    ledger.claim(ledger.reserve(B), 1, identity("f"), {})
    ledger.settle(ledger.take_over(C), 0, FAILED, 0.0)
    assert ledger.untold()[0].fingerprint == "f"
    assert ledger.take_over(C).number == 1


def test_a_trial_that_claims_another_function_resumes_the_parked_trials(make):
    """A space that is not a pure function must not block the study."""
    ledger = make(lease_seconds=0.0)
    claimed(ledger, 0, "f")
    ledger.claim(ledger.reserve(B), 1, identity("f"), {})
    long = replace(ledger, lease_seconds=60.0)
    taken = ledger.claim(long.take_over(C), 0, identity("g"), {}).lease
    long.renew(taken)
    promoted = ledger.take_over(C)
    assert promoted is not None
    assert promoted.number == 1
    ledger.settle(promoted, 1, GOOD, 1.0)
    ledger.settle(taken, 0, GOOD, 1.0)
    assert ledger.open_trials() == 0


# Releasing.
def test_any_worker_continues_a_released_trial_in_the_same_attempt(ledger):
    lease = claimed(ledger, 4, "f")
    ledger.release(lease, 4)
    assert ledger.holders() == set()
    taken = ledger.take_over(B)
    assert (taken.id, taken.number, taken.attempt) == (lease.id, 4, 1)
    assert taken.token > lease.token


def test_releasing_a_slot_without_a_trial_frees_it(make):
    ledger = make(trials=1)
    lease = ledger.reserve(A)
    assert ledger.reserve(B) is None
    ledger.release(lease, None)
    assert ledger.open_trials() == 0
    assert ledger.reserve(B) is not None
    assert ledger.reserve(B) is None


# Telling Optuna.
def test_settled_trials_are_untold_until_they_are_marked(ledger):
    leases = [settled(ledger, n, f"f{n}") for n in range(3)]
    assert [s.number for s in ledger.untold()] == [0, 1, 2]
    assert ledger.untold(older_than=3600.0) == []
    ledger.mark_told([leases[1].id])
    assert [s.number for s in ledger.untold()] == [0, 2]
    ledger.mark_told([])


@pytest.mark.parametrize("by", ["reserve", "claim", "settle"])
def test_the_next_transaction_marks_told_trials(ledger, by):
    told = [settled(ledger, 0, "f").id]
    match by:
        case "reserve":
            ledger.reserve(A, told)
        case "claim":
            ledger.claim(ledger.reserve(A), 1, identity("g"), {}, told)
        case "settle":
            ledger.settle(claimed(ledger, 1, "g"), 1, GOOD, 1.0, told=told)
    assert 0 not in [s.number for s in ledger.untold()]


def test_a_lost_lease_marks_no_trial_as_told(make):
    ledger = make(lease_seconds=0.0)
    told = [settled(ledger, 0, "f").id]
    lost = claimed(ledger, 1, "g")
    ledger.take_over(B)
    with pytest.raises(LeaseLostError):
        ledger.settle(lost, 1, GOOD, 1.0, told=told)
    assert [s.number for s in ledger.untold()] == [0]


# The budget.
def drain(ledger: Ledger, worker: Worker) -> Iterator[Lease]:
    while (lease := ledger.reserve(worker)) is not None:
        yield lease


def test_trials_are_counted_when_they_are_taken(make):
    ledger = make(trials=3)
    assert len(list(drain(ledger, A))) == 3


def test_reused_trials_count_as_trials(make):
    ledger = make(trials=2)
    settled(ledger, 0, "f")
    assert isinstance(ledger.claim(ledger.reserve(A), 1, identity("f"), {}), Hit)
    assert ledger.reserve(A) is None


def test_reused_trials_do_not_count_as_evaluations(make):
    ledger = make(evaluations=2)
    settled(ledger, 0, "f")
    for number in range(1, 4):
        assert isinstance(ledger.claim(ledger.reserve(A), number, identity("f"), {}), Hit)
    settled(ledger, 4, "g")
    assert ledger.reserve(A) is None
    assert (views(ledger).counts().evaluated, views(ledger).counts().reused) == (2, 3)


def test_a_parked_trial_frees_its_evaluation_when_it_is_settled(make):
    ledger = make(evaluations=2)
    owner = claimed(ledger, 0, "f")
    ledger.claim(ledger.reserve(B), 1, identity("f"), {})
    assert ledger.reserve(C) is None
    ledger.settle(owner, 0, GOOD, 1.0)
    assert ledger.reserve(C) is not None
    assert ledger.reserve(C) is None


def test_settling_takes_the_next_slot_within_the_budget(make):
    ledger = make(trials=2)
    first = ledger.settle(claimed(ledger, 0, "f"), 0, GOOD, 1.0, next_for=A).next
    assert first is not None
    assert ledger.settle(first, 1, FAILED, 1.0, next_for=A).next is None


def test_a_passed_deadline_allows_nothing(make):
    assert make(timeout=-1.0).reserve(A) is None
    assert make(timeout=60.0).reserve(A) is not None


def test_extending_adds_to_the_limit(make):
    ledger = make(trials=2)
    assert len(list(drain(ledger, A))) == 2
    ledger.extend(3, None, None)
    assert len(list(drain(ledger, A))) == 3
    ledger.extend(None, None, None)
    assert ledger.reserve(A) is None


def test_extending_a_study_without_a_limit_counts_from_now(make):
    ledger = make(timeout=60.0)
    settled(ledger, 0, "f")
    ledger.extend(2, None, None)
    assert len(list(drain(ledger, A))) == 2


def test_extending_evaluations(make):
    ledger = make(evaluations=1)
    settled(ledger, 0, "f")
    ledger.extend(None, 1, None)
    settled(ledger, 1, "g")
    assert ledger.reserve(A) is None


def test_extending_without_a_limit_keeps_the_deadline(make):
    """Otherwise a search whose only limit is a timeout would never end once resumed."""
    ledger = make(timeout=-1.0)
    ledger.extend(None, None, None)
    assert ledger.reserve(A) is None
    ledger.extend(None, None, 60.0)
    assert ledger.reserve(A) is not None


def test_more_trials_drop_a_passed_deadline(make):
    ledger = make(timeout=-1.0)
    ledger.extend(2, None, None)
    assert len(list(drain(ledger, A))) == 2


def in_threads(function, count: int = 8) -> list:
    """Call function(index) in threads that start together; raise the first error of any."""
    start, results, errors = threading.Barrier(count), [], []

    def run(index: int) -> None:
        start.wait()
        try:
            results.append(function(index))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_the_budget_is_exact_with_threads(make):
    ledger = make(trials=21)
    taken = in_threads(lambda i: len(list(drain(ledger, Worker(str(i))))))
    assert sum(taken) == 21


def test_threads_pay_for_each_fingerprint_once(make):
    """Many threads run complete trials: the counts add up, and no trial stays open."""
    ledger = make(trials=64)
    numbers = iter(range(64))
    lock = threading.Lock()

    def work(index: int) -> None:
        for lease in drain(ledger, Worker(str(index))):
            with lock:
                number = next(numbers)
            answer = ledger.claim(lease, number, identity(f"f{number % 5}"), {})
            if isinstance(answer, Claimed):
                ledger.settle(answer.lease, number, GOOD, 1.0)

    in_threads(work)
    counts = views(ledger).counts()
    assert (counts.complete, counts.evaluated, counts.reused, counts.open) == (64, 5, 59, 0)


# Stops.
def test_known_candidates_in_a_row_exhaust_the_space(make):
    ledger = make(cache=Cache(exhausted_after=3))
    settled(ledger, 0, "f")
    for number in range(1, 3):
        ledger.claim(ledger.reserve(A), number, identity("f"), {})
    settled(ledger, 3, "g")
    for number in range(4, 7):
        ledger.claim(ledger.reserve(A), number, identity("g"), {})
    assert ledger.reserve(A) is None
    budget = views(ledger).budget()
    assert budget.stopped is StopReason.EXHAUSTED
    assert "last 3 candidates" in budget.stopped_because


def test_extending_an_exhausted_study_undoes_the_stop(make):
    ledger = make(cache=Cache(exhausted_after=1))
    settled(ledger, 0, "f")
    ledger.claim(ledger.reserve(A), 1, identity("f"), {})
    assert ledger.reserve(A) is None
    ledger.extend(None, None, None)
    assert ledger.reserve(A) is not None


def test_first_trials_that_fail_for_the_same_cause_stop_the_study(make):
    ledger = make(same_failures=3)
    for number in range(3):
        ledger.settle(ledger.reserve(A), number, FAILED, 1.0)
    assert ledger.reserve(A) is None
    budget = views(ledger).budget()
    assert budget.stopped is StopReason.SAME_FAILURE
    assert budget.stopped_because == "the first 3 trials failed for the same reason: boom"


@pytest.mark.parametrize("odd", [GOOD, replace(FAILED, cause="y:2")], ids=["success", "other"])
def test_failures_for_different_causes_do_not_stop_the_study(make, odd):
    ledger = make(same_failures=3)
    for number, outcome in enumerate([FAILED, odd, FAILED, FAILED, FAILED]):
        settled(ledger, number, f"f{number}", outcome)
    assert ledger.reserve(A) is not None


def test_equal_failures_that_settle_at_the_same_time_stop_the_study(make):
    """None of them sees the others, so a later trial has to notice."""
    ledger = make(same_failures=3)
    leases = [claimed(ledger, number, f"f{number}") for number in range(5)]
    in_threads(lambda i: ledger.settle(leases[i], i, FAILED, 1.0), 4)
    ledger.settle(leases[4], 4, FAILED, 1.0)
    assert views(ledger).budget().stopped is StopReason.SAME_FAILURE


# Workers.
@pytest.fixture
def worker() -> Worker:
    return Worker(uuid.uuid4().hex, "cuda:0")


def test_workers_enter_and_leave(ledger, worker):
    ledger.enter(worker)
    ledger.enter(worker)
    (view,) = views(ledger).workers()
    assert (view.id, view.device, view.trial) == (worker.id, "cuda:0", None)
    ledger.leave(worker)
    assert views(ledger).workers() == []


def test_a_worker_without_a_heartbeat_is_gone(make, worker):
    ledger = make(lease_seconds=0.0)
    ledger.enter(worker)
    assert views(ledger).workers() == []


def test_a_worker_shows_the_trial_that_it_holds(ledger, worker):
    ledger.enter(worker)
    ledger.renew(claimed(ledger, 5, "f", worker), [Report(2, {})])
    (view,) = views(ledger).workers()
    assert (view.trial, view.step) == (5, 2)


# Queries.
def test_counts_of_a_study(ledger):
    settled(ledger, 0, "f")
    ledger.claim(ledger.reserve(A), 1, identity("f"), {})
    settled(ledger, 2, "g", PRUNED)
    settled(ledger, 3, "h", FAILED)
    claimed(ledger, 4, "i")
    counts = views(ledger).counts()
    assert (counts.complete, counts.pruned, counts.failed, counts.open) == (2, 1, 1, 1)
    assert (counts.trials, counts.evaluated, counts.reused, counts.seconds) == (4, 3, 1, 6.0)
    (level,) = views(ledger).hits()
    assert (level.level, level.hits, level.seconds_saved) == ("L0", 1, 2.0)


def test_a_ledger_on_another_engine_sees_the_same(ledger):
    lease = claimed(ledger, 0, "f")
    other = create_engine(ledger.engine.url)
    try:
        assert Ledger(other, ledger.study).holders() == {"a"}
    finally:
        other.dispose()
    ledger.settle(lease, 0, GOOD, 1.0)


def test_a_former_holder_cannot_renew_a_released_trial(make):
    ledger = make()
    lease = claimed(ledger, 0, "f")
    ledger.release(lease, 0)
    with pytest.raises(LeaseLostError):
        ledger.renew(lease)
    assert ledger.take_over(B) is not None


def test_a_released_judging_trial_keeps_its_place(make):
    ledger = make(trials=1)
    ledger.settle(claimed(ledger, 0, "f"), 0, GOOD, 1.0, judges=[{"x": 1}])
    lease = ledger.take_over(A)
    ledger.release(lease, None)
    assert ledger.reserve(A).given == {"x": 1}
    assert ledger.reserve(B) is None


def test_findings_reach_the_judges_of_each_candidate(make):
    ledger = make(trials=1)
    generator = random.Random(0)
    found = {
        "rate": Schedule((0.0, 0.5), (0.1, 0.4)),
        "example_weights": tuple(generator.gauss(0, 1) for _ in range(60_000)),
    }
    outcome = replace(GOOD, found=found, choices={"op": (0.25, 0.75)})
    ledger.settle(claimed(ledger, 0, "f"), 0, outcome, 1.0, judges=[{"x": 1}, {"x": 2}])
    first, second = ledger.reserve(A), ledger.reserve(B)
    assert [first.given, second.given] == [{"x": 1}, {"x": 2}]
    assert first.found == second.found
    assert ledger.findings(first.found) == found
    with pytest.raises(StorageError, match="is missing"):
        ledger.findings("0" * 64)


def test_the_recognition_of_an_unclaimed_candidate_is_counted_if_it_is_given(ledger):
    probed = Identity("a", "g", verdict="degenerate", seconds={"L2": 0.5})
    for number, given in enumerate([probed, None]):
        ledger.settle(ledger.reserve(A), number, FAILED, 0.0, identity=given)
    found = views(ledger).recognized()
    assert (found.verdicts, found.seconds) == ({"degenerate": 1}, {"L2": 0.5})


# Answers that a holder may not have received.
def test_the_evaluation_of_a_trial_is_read_from_its_row(ledger):
    lease = ledger.reserve(A)
    assert isinstance(ledger.claim(lease, 0, identity("f"), {}), Claimed)
    assert isinstance(ledger.claim(ledger.reserve(B), 1, identity("f"), {}), Parked)
    # With the lease from before the claim, whose answer was lost.
    settled = ledger.settle(lease, 0, GOOD, 1.0).settled
    assert [(one.number, one.outcome.values) for one in settled] == [(0, (0.75,)), (1, (0.75,))]
    assert settled[0].fingerprint == "f"
    assert ledger.open_trials() == 0


def test_releasing_a_claimed_trial_by_an_old_lease_keeps_it(ledger):
    lease = ledger.reserve(A)
    ledger.claim(lease, 0, identity("f"), {})
    ledger.release(lease, None)
    assert ledger.reserve(B).number == 0


def test_the_former_holder_of_a_freed_slot_does_not_hold_a_slot_with_its_id(ledger):
    """SQLite reuses the ids of deleted rows."""
    freed = ledger.reserve(A)
    ledger.release(freed, None)
    held = ledger.reserve(B)
    ledger.release(freed, None)
    with pytest.raises(LeaseLostError):
        ledger.settle(freed, 0, FAILED, 1.0)
    ledger.renew(held)
    assert ledger.open_trials() == 1


def test_a_worker_that_parked_a_trial_does_not_hold_it_after_its_promotion(ledger):
    owner = claimed(ledger, 0, "f")
    parked = ledger.reserve(B)
    ledger.claim(parked, 1, identity("f"), {})
    ledger.settle(owner, 0, FAILED, 1.0)
    for act in (lambda: ledger.renew(parked), lambda: ledger.settle(parked, 1, GOOD, 1.0)):
        with pytest.raises(LeaseLostError):
            act()
    assert ledger.reserve(C).id == parked.id
