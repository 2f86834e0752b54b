"""Compares the ledger with a model, for any order of workers' actions, losses and retries.

Every test run includes a short run. `pytest -m long tests/ledger/test_ledger_machine.py` makes
20,000 steps, or the number in AUTOML_MACHINE_STEPS.
"""

import os
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, select, update

from automl import Outcome, Report, State, UsageError
from automl.identity.fingerprint import Identity
from automl.ledger.checks import Checks
from automl.ledger.dialects import table
from automl.ledger.evaluations import Terms
from automl.ledger.ledger import Ledger
from automl.ledger.models import EvaluationRow, EvaluationState, Phase, TrialRow
from automl.ledger.queries import Views
from automl.ledger.values import Claimed, Hit, Lease, LeaseLostError, Parked, Settled, Worker
from automl.spec import Cache
from automl.storage.storage import Storage

STEPS_EACH = 50
STEPS = int(os.environ.get("AUTOML_MACHINE_STEPS", "20000"))
NAMES = tuple("fghijklm")
CACHE = Cache(exhausted_after=10**9)
DATA = st.data()
WORKERS = ("a", "b", "c", "d")
OPEN = (Phase.PROPOSING, Phase.TRAINING)
DONE = Counter[str]()
"""How often each rule ran in this process."""


@dataclass
class Trial:
    """The expected contents of a trial's row.

    Attributes:
        waits: Whether it was queued or released, for the next worker that looks.
        result: Its state and values, once it has ended.
        charged: Whether it was charged device time.
    """

    id: int
    phase: Phase = Phase.PROPOSING
    token: int = 1
    attempt: int = 1
    worker: str | None = None
    waits: bool = False
    expired: bool = False
    number: int | None = None
    name: str | None = None
    given: bool = False
    judges: bool = False
    result: tuple[State, tuple[float, ...] | None] | None = None
    told: bool = False
    charged: bool = False
    reports: list[int] = field(default_factory=list)


class LedgerMachine(RuleBasedStateMachine):
    """Workers a to d run one study; `stale` holds leases that their holders have lost."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        storage = Storage(self.url)
        self.engine = storage.engine
        self.stack.callback(self.engine.dispose)
        self.stack.enter_context(storage.outage_retry.enabled(threading.Event(), 60.0))
        self._lose_answers()
        self.study = str(uuid.uuid4())
        self.ledger = Ledger(self.engine, self.study, CACHE, ("score",), same_failures=10**9)
        self.checks = Checks(self.engine, Terms(self.study, CACHE, ("score",)))
        self.trials: dict[int, Trial] = {}
        self.leases: dict[int, Lease] = {}
        self.stale: list[Lease] = []
        self.dead: set[str] = set()
        self.numbers = self.values = 0
        self.slots = self.payable = 0

    @initialize(trials=st.integers(4, 24), evaluations=st.one_of(st.none(), st.integers(4, 16)))
    def open(self, trials: int, evaluations: int | None) -> None:
        self.limits = [trials, evaluations]
        self.ledger.open_study(trials, evaluations, None, 1e9)

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.stack.close()

    # Lost answers: the commit succeeds, but the connection is lost.
    def _lose_answers(self) -> None:
        self.loses, dialect = False, self.engine.dialect
        commit = dialect.do_commit

        def committing(connection: Any) -> None:
            commit(connection)
            if self.loses:
                self.loses = False
                raise sqlite3.OperationalError("the answer is lost")

        dialect.do_commit = committing  # type: ignore[method-assign]

        @event.listens_for(self.engine, "handle_error")
        def lost(context: Any) -> None:
            context.is_disconnect = "the answer is lost" in str(context.original_exception)

    def _call(self, data: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        DONE[method.__name__] += 1
        self.loses = data.draw(st.sampled_from([False] * 4 + [True]), "loses the answer")
        DONE["lost answers"] += self.loses
        try:
            return method(*args, **kwargs)
        finally:
            self.loses = False

    # The state of the model.
    def _room(self, number: int = 1) -> bool:
        trials, evaluations = self.limits
        enough = evaluations is None or self.payable + number <= evaluations
        return self.slots + number <= trials and enough

    def _idle(self) -> list[str]:
        busy = {trial.worker for trial in self.trials.values()}
        return [worker for worker in WORKERS if worker not in busy]

    def _held(self) -> list[Trial]:
        return [t for t in self.trials.values() if t.worker is not None and t.phase in OPEN]

    def _free(self) -> list[Trial]:
        """The trials that another worker may take over."""
        return [
            trial
            for trial in self.trials.values()
            if trial.phase in OPEN and (trial.waits or trial.expired or trial.worker in self.dead)
        ]

    def _owner(self, name: str) -> Trial | None:
        """The trial that evaluates a function, or is to."""
        return next(
            (
                trial
                for trial in self.trials.values()
                if trial.name == name and trial.phase is Phase.TRAINING
            ),
            None,
        )

    def _known(self, name: str) -> tuple[State, tuple[float, ...] | None] | None:
        ended = [t.result for t in self.trials.values() if t.name == name and t.result is not None]
        return next((result for result in ended if result[0] is not State.FAILED), None)

    def _parked(self, name: str) -> list[Trial]:
        return [t for t in self.trials.values() if t.name == name and t.phase is Phase.PARKED]

    def _draw_lease(self, data: Any) -> tuple[Trial, Lease]:
        trial = data.draw(st.sampled_from(self._held()), "trial")
        return trial, self.leases[trial.id]

    def _number(self, trial: Trial) -> int:
        if trial.number is None:
            self.numbers += 1
            trial.number = self.numbers - 1
        return trial.number

    def _outcome(self, state: State) -> Outcome:
        if state is State.FAILED:
            return Outcome(state, message="boom", cause="x:1")
        self.values += 1
        return Outcome(state, (float(self.values),), {"score": float(self.values)}, 10**12)

    # Taking trials.
    def _take(self, lease: Lease | None, worker: str, among: list[Trial]) -> None:
        """Check a lease on the oldest of the available trials."""
        trial = among[0]
        assert lease is not None
        if trial.worker is not None:
            self.stale.append(self.leases[trial.id])
        trial.token, trial.attempt = trial.token + 1, trial.attempt + 1
        trial.worker, trial.waits, trial.expired = worker, False, False
        assert (lease.id, lease.token, lease.attempt) == (trial.id, trial.token, trial.attempt)
        assert (lease.number, lease.given is not None) == (trial.number, trial.given)
        self.leases[trial.id] = lease

    def _reserved(self, lease: Lease | None, worker: str) -> None:
        waiting = [t for t in self.trials.values() if t.waits]
        if waiting:
            self._take(lease, worker, waiting)
        elif not self._room():
            assert lease is None
        else:
            assert lease is not None
            assert lease.id not in self.trials
            self.trials[lease.id] = Trial(lease.id, token=lease.token, worker=worker)
            self.leases[lease.id] = lease
            self.slots, self.payable = self.slots + 1, self.payable + 1

    @precondition(lambda self: self._idle())
    @rule(data=DATA)
    def reserve(self, data: Any) -> None:
        worker = data.draw(st.sampled_from(self._idle()), "worker")
        self._reserved(self._call(data, self.ledger.reserve, Worker(worker)), worker)
        self.dead.discard(worker)

    @precondition(lambda self: self._idle() and self._free())
    @rule(data=DATA)
    def take_over(self, data: Any) -> None:
        worker = data.draw(st.sampled_from(self._idle()), "worker")
        free = self._free()
        lease = self._call(data, self.ledger.take_over, Worker(worker), self.dead)
        self._take(lease, worker, free)
        self.dead.discard(worker)

    @precondition(lambda self: any(not trial.expired for trial in self._held()))
    @rule()
    def expire(self) -> None:
        """Let all leases expire, as if the ledger's clock had advanced."""
        DONE["expire"] += 1
        rows = table(TrialRow)
        with self.engine.begin() as connection:
            past = update(rows).where(rows.c.study == self.study, rows.c.expires_at > 0)
            connection.execute(past.values(expires_at=rows.c.expires_at - 1000))
        for trial in self._held():
            trial.expired = True

    @precondition(lambda self: self._held())
    @rule(data=DATA)
    def crash(self, data: Any) -> None:
        """Let a worker die so that others on its machine know."""
        DONE["crash"] += 1
        self.dead.add(str(self._draw_lease(data)[0].worker))

    # Rules for holders.
    @precondition(lambda self: self._held())
    @rule(data=DATA)
    def claim(self, data: Any) -> None:
        trial, lease = self._draw_lease(data)
        running = [name for name in NAMES if self._owner(name) is not None]
        name = data.draw(st.sampled_from([*NAMES, *running * 3]), "name")
        before, known, owner = trial.name, self._known(name), self._owner(name)
        identity = Identity(f"{self.study}{name}")
        answer = self._call(data, self.ledger.claim, lease, self._number(trial), identity, {})
        trial.name, trial.expired = name, False
        if owner in (None, trial) and known is None:
            assert isinstance(answer, Claimed)
            trial.phase, self.leases[trial.id] = Phase.TRAINING, answer.lease
        elif known is not None:
            assert isinstance(answer, Hit)
            self._served(trial, known)
            assert (answer.settled.outcome.state, answer.settled.outcome.values) == known
        else:
            assert answer == Parked(trial.id)
            trial.phase, trial.worker = Phase.PARKED, None
            self.stale.append(self.leases.pop(trial.id))
        if before not in (None, name):
            self._promote(before)

    def _served(self, trial: Trial, result: tuple[State, tuple[float, ...] | None]) -> None:
        trial.phase, trial.result = Phase.SETTLED, result
        trial.worker = None
        self.payable -= 1
        if trial.id in self.leases:
            self.stale.append(self.leases.pop(trial.id))

    def _promote(self, name: str) -> None:
        """Promote the oldest parked trial if no trial evaluates the function any more."""
        parked = self._parked(name)
        if parked and self._owner(name) is None:
            heir = parked[0]
            heir.phase, heir.attempt, heir.waits = Phase.TRAINING, 0, True
            heir.token += 1

    @precondition(lambda self: self._held())
    @rule(
        data=DATA,
        state=st.sampled_from(State),
        takes_next=st.booleans(),
        judged=st.booleans(),
        unaware=st.booleans(),
    )
    def settle(
        self, data: Any, state: State, takes_next: bool, judged: bool, unaware: bool
    ) -> None:
        """Settle a trial; an unaware holder did not receive the answer to its claim."""
        trial, lease = self._draw_lease(data)
        unclaimed = trial.phase is Phase.PROPOSING
        outcome = self._outcome(State.FAILED if unclaimed else state)
        if unaware:
            lease = replace(lease, evaluation=None, fingerprint=None, level=None)
        judged = judged and outcome.state is State.COMPLETE
        worker = trial.worker if takes_next and trial.worker is not None else None
        step = 10**12 + len(trial.reports)
        arguments = (lease, self._number(trial), outcome, 1.0, [Report(step, {"score": 1.0})])
        settlement = self._call(
            data,
            self.ledger.settle,
            *arguments,
            next_for=Worker(worker) if worker else None,
            judges=[{"x": 1}] if judged else [],
            metered=True,
        )
        self._settled(trial, outcome, step, settlement.settled)
        if judged and self._room_for_evaluation():
            self._added(judges=True)
        if worker:
            self._reserved(settlement.next, worker)

    def _room_for_evaluation(self) -> bool:
        return self.limits[1] is None or self.payable < self.limits[1]

    def _settled(
        self, trial: Trial, outcome: Outcome, step: int, settled: tuple[Settled, ...]
    ) -> None:
        unpaid, name = trial.phase is Phase.PROPOSING, trial.name
        trial.phase, trial.result = Phase.SETTLED, (outcome.state, outcome.values)
        trial.worker, trial.waits = None, False
        trial.reports.append(step)
        self.stale.append(self.leases.pop(trial.id))
        ended = [trial]
        if unpaid:
            self.payable -= 1
        elif outcome.state is State.FAILED:
            self._promote(str(name))
        else:
            for parked in self._parked(str(name)):
                self._served(parked, (outcome.state, outcome.values))
                ended.append(parked)
        found, expected = [one.id for one in settled], [one.id for one in ended]
        # A retried call also returns earlier trials of this evaluation that Optuna was not told of.
        before = [one for one in self.trials.values() if one.id in set(found) - set(expected)]
        assert all(one.phase is Phase.SETTLED and not one.told for one in before)
        assert [id for id in found if id in expected] == expected

    @precondition(lambda self: self._held())
    @rule(data=DATA)
    def renew(self, data: Any) -> None:
        trial, lease = self._draw_lease(data)
        if data.draw(st.booleans(), "buys"):
            # If the answer to a purchase is lost, time is bought again, and returned at the end.
            assert self._call(data, self.ledger.buy_time, lease) > 0
            trial.charged = True
        step = 10**12 + len(trial.reports)
        self._call(data, self.ledger.renew, lease, [Report(step, {"score": 0.5})])
        trial.expired = False
        trial.reports.append(step)

    @precondition(lambda self: self._held())
    @rule(data=DATA, counts=st.booleans(), opened=st.booleans())
    def release(self, data: Any, counts: bool, opened: bool) -> None:
        """Release a trial; `opened` says whether Optuna has it."""
        trial, lease = self._draw_lease(data)
        number = self._number(trial) if opened or trial.number is not None else None
        self._call(data, self.ledger.release, lease, number, 0.5, counts, metered=True)
        self.stale.append(self.leases.pop(trial.id))
        if number is None and trial.attempt == 1 and not (trial.given or trial.charged):
            del self.trials[trial.id]
            self.slots, self.payable = self.slots - 1, self.payable - 1
            return
        trial.charged = True
        trial.attempt -= not counts
        trial.token += 1
        trial.worker, trial.waits, trial.expired = None, True, False

    @precondition(lambda self: self.stale)
    @rule(data=DATA, action=st.sampled_from(["settle", "claim", "renew", "buy_time", "release"]))
    def use_stale_lease(self, data: Any, action: str) -> None:
        """A former holder that uses its lease changes nothing."""
        lease = data.draw(st.sampled_from(self.stale), "lease")
        actions: dict[str, Callable[[], Any]] = {
            "settle": lambda: self.ledger.settle(lease, 99, self._outcome(State.COMPLETE), 1.0),
            "claim": lambda: self.ledger.claim(lease, 99, Identity(f"{self.study}f"), {}),
            "renew": lambda: self.ledger.renew(lease, [Report(1, {"score": 9.0})]),
            "buy_time": lambda: self.ledger.buy_time(lease),
            "release": lambda: self.ledger.release(lease, 99),
        }
        DONE[f"{action} by a former holder"] += 1
        if action == "release":
            actions[action]()
            return
        with pytest.raises(LeaseLostError):
            actions[action]()

    # Rules for the study.
    def _added(self, judges: bool = False) -> None:
        with self.engine.connect() as connection:
            rows = select(TrialRow.id).where(TrialRow.study == self.study)
            (id,) = set(connection.scalars(rows)) - self.trials.keys()
        new = Trial(id, attempt=0, waits=True, given=True, judges=judges)
        self.trials[id] = new
        self.slots += not judges
        self.payable += 1

    @precondition(lambda self: not any(trial.waits for trial in self.trials.values()))
    @rule(number=st.integers(1, 3))
    def enqueue(self, number: int) -> None:
        DONE["enqueue"] += 1
        if not self._room(number):
            with pytest.raises(UsageError):
                self.ledger.enqueue([{"x": 1}] * number)
            return
        for _ in range(number):
            self.ledger.enqueue([{"x": 1}])
            self._added()

    @precondition(lambda self: not self._room())
    @rule(trials=st.integers(0, 3), evaluations=st.integers(0, 3))
    def extend(self, trials: int, evaluations: int) -> None:
        DONE["extend"] += 1
        self.ledger.extend(trials, evaluations if self.limits[1] is not None else None, None)
        self.limits = [
            self.limits[0] + trials,
            None if self.limits[1] is None else self.limits[1] + evaluations,
        ]

    @precondition(lambda self: any(t.phase is Phase.PARKED for t in self.trials.values()))
    @rule(data=DATA)
    def repair(self, data: Any) -> None:
        """Repair a study; an intact one does not change."""
        self._call(data, self.checks.repair)

    @precondition(lambda self: any(t.result and not t.told for t in self.trials.values()))
    @rule(data=DATA)
    def tell(self, data: Any) -> None:
        untold = self.ledger.untold()
        assert {one.id for one in untold} == {
            t.id for t in self.trials.values() if t.result is not None and not t.told
        }
        for one in untold:
            assert (one.outcome.state, one.outcome.values) == self.trials[one.id].result
            self.trials[one.id].told = True
        self._call(data, self.ledger.mark_told, [one.id for one in untold])

    # Invariants.
    @invariant()
    def has_no_broken_finding(self) -> None:
        assert [one for one in self.checks.findings() if one.broken] == []

    @invariant()
    def matches_the_model(self) -> None:
        columns = table(TrialRow).c
        with self.engine.connect() as connection:
            rows = connection.execute(
                select(table(TrialRow)).where(columns.study == self.study).order_by(columns.id)
            ).all()
        assert [row.id for row in rows] == sorted(self.trials)
        for row in rows:
            self._check(row, self.trials[row.id])
        budget = Views(self.engine, self.study).budget()
        counts = (budget.slots, budget.payable, budget.trials, budget.evaluations)
        assert counts == (self.slots, self.payable, *self.limits)

    def _check(self, row: Any, trial: Trial) -> None:
        assert (row.phase, row.token, row.told) == (trial.phase, trial.token, trial.told)
        assert (row.number, row.judges is not None) == (trial.number, trial.judges)
        values = None if row.objectives is None else tuple(row.objectives)
        assert (row.state and (row.state, values)) == trial.result
        if trial.phase in OPEN:
            assert (row.attempt, row.worker) == (trial.attempt, trial.worker)

    @invariant()
    def each_function_is_evaluated_once_at_a_time(self) -> None:
        columns = table(EvaluationRow).c
        runs = (columns.study == self.study, columns.state == EvaluationState.RUNNING)
        with self.engine.connect() as connection:
            found = connection.execute(select(columns.fingerprint, columns.owner).where(*runs))
            running = {name.removeprefix(self.study): owner for name, owner in found}
        owners = {name: owner.id for name in NAMES if (owner := self._owner(name)) is not None}
        assert running == owners

    @invariant()
    def reports_are_stored_once(self) -> None:
        stored = Counter((r.number, r.step) for r in Views(self.engine, self.study).reports(()))
        told = Counter((t.number, s) for t in self.trials.values() for s in t.reports)
        known = {(-1 if number is None else number, step): n for (number, step), n in told.items()}
        assert set(stored) == set(known)

    def _end(self) -> None:
        """Whatever happened before, workers can end every trial."""
        worker, ledger = Worker("last"), self.ledger
        while lease := ledger.take_over(worker, WORKERS):
            number = self._number(self.trials[lease.id])
            answer = ledger.claim(lease, number, Identity(f"{self.study}{number}"), {})
            if isinstance(answer, Claimed):
                ledger.settle(answer.lease, number, self._outcome(State.COMPLETE), 1.0)
        assert ledger.open_trials() == 0
        assert self.checks.findings() == []


def machine(prepared_url: str) -> type[LedgerMachine]:
    return type("Machine", (LedgerMachine,), {"url": prepared_url})


def run(url: str, examples: int, **rest: Any) -> None:
    run_state_machine_as_test(
        machine(url),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS_EACH,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **rest,
        ),
    )


def test_the_ledger_matches_its_model(sqlite_url):
    """Runs 200 steps, the same each time."""
    run(sqlite_url, 200 // STEPS_EACH, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(24 * 3600)
def test_the_ledger_matches_its_model_for_many_steps(sqlite_url, capsys):
    run(sqlite_url, STEPS // STEPS_EACH, derandomize=False, print_blob=True)
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {count}" for name, count in DONE.most_common()))
