"""The live view of a search on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from automl.cli import text
from automl.cli.events import Event, summary_event
from automl.cli.output import PlainLines
from automl.cli.terminal import raw, visible_streams
from automl.engine.worker_ids import host_and_pid
from automl.ledger.models import Phase
from automl.ledger.queries import Budget, Counts, WorkerView
from automl.plugin.report import Direction
from automl.portable.terminal import one_line, visible
from automl.study.study import Study
from automl.text.formatting import duration, pairs


class LiveView(PlainLines):
    """Trials scroll by above; below stand progress, best, reuse, time left, and the workers."""

    def __init__(self, study: Study) -> None:
        self._study = study
        console = _Console(file=raw(sys.stdout))
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._began = time.monotonic()
        self._at_start: int | None = None
        self._best: Event | None = summary_event(study)["best"]

    @contextmanager
    def showing(self) -> Iterator[None]:
        # Inside, the streams are the view's, which would take orders in a text for styles.
        with self._live, visible_streams():
            yield

    def emit(self, event: Event) -> None:
        if event["event"] == "trial":
            self._keep_best(event)
        if self._live.is_started and event["event"] == "trial":
            self._live.console.print(_text(text.trial_line(event)))
        else:
            super().emit(event)

    def refresh(self, counts: Counts) -> None:
        self._live.update(self._draw(counts, self._study.views.workers()))

    def _draw(self, counts: Counts, workers: list[WorkerView]) -> Group:
        goal = self._goal(counts, self._study.views.budget())
        head = Table.grid(padding=(0, 2))
        head.add_row("trials", goal.bar(), _text(self._progress(counts, goal)))
        if self._best is not None:
            values = pairs(self._best["values"])
            head.add_row("best", _text(f"trial {self._best['number']}"), _text(values))
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
        name, device = _text(host_and_pid(worker.id)), _text(worker.device)
        table.add_row("worker", name, device, doing)
    return table


def _text(said: str) -> Text:
    """One line as it reads, without the markup and the orders that it may hold."""
    return Text(one_line(said))


class _Console(Console):
    """Shows all text that is drawn, whoever wrote it; only its own orders reach the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
