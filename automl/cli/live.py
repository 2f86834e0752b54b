"""The live view of a search on a terminal."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from automl.cli import text
from automl.cli.events import Event, summary_event
from automl.cli.output import PlainLines
from automl.ledger.models import Phase
from automl.ledger.views import Budget, Counts, WorkerView
from automl.processes import host_and_pid
from automl.report import Direction
from automl.studies import Study
from automl.wording import duration, pairs


class LiveView(PlainLines):
    """Trials scroll by above; below stand progress, best, reuse, time left, and the workers."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._live = Live(console=Console(), refresh_per_second=4, transient=True)
        self._began = time.monotonic()
        self._at_start: int | None = None
        self._best: Event | None = summary_event(study)["best"]

    def showing(self) -> AbstractContextManager[Any]:
        return self._live

    def emit(self, event: Event) -> None:
        if event["event"] == "trial":
            self._keep_best(event)
        if self._live.is_started and event["event"] == "trial":
            self._live.console.print(Text(text.trial_line(event)))
        else:
            super().emit(event)

    def refresh(self, counts: Counts) -> None:
        self._live.update(self._draw(counts, self._study.views.workers()))

    def _draw(self, counts: Counts, workers: list[WorkerView]) -> Group:
        goal = self._goal(counts, self._study.views.budget())
        head = Table.grid(padding=(0, 2))
        head.add_row("trials", goal.bar(), Text(self._progress(counts, goal)))
        if self._best is not None:
            values = pairs(self._best["values"])
            head.add_row("best", Text(f"trial {self._best['number']}"), Text(values))
        share = counts.reused / counts.trials if counts.trials else 0
        rest = [f"{counts.pruned} pruned"] * bool(counts.pruned)
        rest += [f"{counts.failed} failed"] * bool(counts.failed)
        head.add_row("reused", f"{counts.reused} ({share:.0%})", ", ".join(rest))
        return Group(head, _worker_table(workers))

    def _goal(self, counts: Counts, budget: Budget) -> "Goal":
        if budget.trials is not None:
            return Goal(counts.trials, budget.trials, "", budget.seconds_left)
        if budget.evaluations is not None:
            return Goal(counts.evaluated, budget.evaluations, "evaluations", budget.seconds_left)
        return Goal(counts.trials, None, "", budget.seconds_left)

    def _progress(self, counts: Counts, goal: "Goal") -> str:
        passed = time.monotonic() - self._began
        if self._at_start is None:
            self._at_start = goal.done
        done = f"{counts.trials}" if goal.unit else ""
        if goal.total is not None:
            done += f"{', ' if done else ''}{goal.done} of {goal.total} {goal.unit}".rstrip()
        said = [done or str(counts.trials), duration(passed)]
        left = goal.left(passed, goal.done - self._at_start)
        return ", ".join([*said, f"about {duration(left)} left"] if left else said)

    def _keep_best(self, event: Event) -> None:
        objective = self._study.objectives[0]
        if event["state"] != "complete" or event["values"] is None or "breaks" in event:
            return
        sign = 1 if objective.direction is Direction.MAXIMIZE else -1
        new = sign * event["values"][objective.metric]
        if self._best is None or new > sign * self._best["values"][objective.metric]:
            self._best = event


@dataclass(frozen=True)
class Goal:
    """How far a search is: `done` of `total` (None is without limit), and the time it has."""

    done: int
    total: int | None
    unit: str
    seconds_left: float | None

    def bar(self) -> ProgressBar:
        return ProgressBar(total=self.total, completed=self.done, width=30, pulse=not self.total)

    def left(self, passed: float, done_here: int) -> float | None:
        """Seconds until the end, by the pace so far; None where nobody can tell."""
        known = [] if self.seconds_left is None else [max(0.0, self.seconds_left)]
        if self.total is not None and done_here > 0:
            known.append(passed / done_here * max(0, self.total - self.done))
        return min(known, default=None)


def _worker_table(workers: list[WorkerView]) -> Table:
    table = Table.grid(padding=(0, 2))
    for worker in workers:
        doing = "waiting"
        if worker.trial is not None:
            step = f", step {worker.step}" if worker.step else ""
            doing = f"trial {worker.trial}{step}"
        elif worker.phase is Phase.PROPOSING:
            doing = "proposing"
        table.add_row("worker", Text(host_and_pid(worker.id)), worker.device, doing)
    return table
