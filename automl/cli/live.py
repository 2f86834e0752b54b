"""The live view of a search on a terminal."""

import time
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from automl.cli import text
from automl.cli.events import Event
from automl.cli.output import PlainLines
from automl.ledger.models import Phase
from automl.ledger.views import Counts, WorkerView
from automl.processes import host_and_pid
from automl.report import Direction
from automl.studies import Study


class LiveView(PlainLines):
    """Trials scroll by above; below stand progress, best, reuse, time left, and the workers."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._live = Live(console=Console(), refresh_per_second=4, transient=True)
        self._began = time.monotonic()
        self._at_start: int | None = None
        self._best: Event | None = None

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
        if self._at_start is None:
            self._at_start = counts.trials
        self._live.update(self._draw(counts, self._study.views.workers()))

    def _draw(self, counts: Counts, workers: list[WorkerView]) -> Group:
        limit = self._study.views.budget().trials
        head = Table.grid(padding=(0, 2))
        done = f"{counts.trials}" + (f" of {limit}" if limit else "")
        bar = ProgressBar(total=limit or max(counts.trials, 1), completed=counts.trials, width=30)
        head.add_row("trials", bar, f"{done}{self._left(counts, limit)}")
        if self._best is not None:
            values = text.pairs(self._best["values"])
            head.add_row("best", Text(f"trial {self._best['number']}"), Text(values))
        share = counts.reused / counts.trials if counts.trials else 0
        failed = f", {counts.failed} failed" if counts.failed else ""
        head.add_row("reused", f"{counts.reused} ({share:.0%})", f"{counts.pruned} pruned{failed}")
        return Group(head, _worker_table(workers))

    def _left(self, counts: Counts, limit: int | None) -> str:
        done = counts.trials - (self._at_start or 0)
        passed = time.monotonic() - self._began
        if not limit or not done:
            return f", {text.duration(passed)}"
        left = passed / done * (limit - counts.trials)
        return f", {text.duration(passed)}, about {text.duration(max(left, 0))} left"

    def _keep_best(self, event: Event) -> None:
        objective = self._study.objectives[0]
        if event["state"] != "complete" or event["values"] is None:
            return
        sign = 1 if objective.direction is Direction.MAXIMIZE else -1
        new = sign * event["values"][objective.metric]
        if self._best is None or new > sign * self._best["values"][objective.metric]:
            self._best = event


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
