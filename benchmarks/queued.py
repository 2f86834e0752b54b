"""How often queued trials are evaluated twice, by automl and by bare Optuna.

Several processes take many queued trials until none is left. Ours: `Ledger.enqueue` and the
engine. Bare: `study.enqueue_trial`, then `ask` and `tell` in each process, with the storage that a
plain script opens; on SQLite it waits for a lock as long as ours does. Each evaluation appends its
trial's number to a file in one write. Every evaluation of a trial after its first is a duplicate;
a trial without any evaluation is missing.

    python benchmarks/queued.py [--json] [--trials 1000] [--processes 8] [--storages …] [--sides …]
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import _sleeping
import optuna
from _databases import KINDS, Database, SkippedError, database
from workers import NAME, SIDES, make_plan, run_ours

from automl.plugin.registry import Registry
from automl.study.creation import create
from automl.study.limits import Limits

CONTEXT = multiprocessing.get_context("forkserver")
SECONDS = 0.002
LIMIT = 900.0


def fill(side: str, where: Database, trials: int) -> None:
    """Create the study with all trials queued."""
    points = [{"x": number / trials, "y": 0.5} for number in range(trials)]
    if side == "ours":
        storage = where.ours()
        create(storage, make_plan(Registry(), SECONDS), Limits(trials=trials), NAME, points)
        storage.engine.dispose()
        return
    study = optuna.create_study(storage=where.plain(), study_name=NAME)
    for point in points:
        study.enqueue_trial(point)


def take(side: str, where: Database, log: str, start: Any) -> None:
    """Evaluate queued trials until none is left."""
    os.environ[_sleeping.LOG] = log
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")  # Optuna warns if two processes report on one trial.
    if side == "ours":
        run_ours(where, SECONDS, start.wait)
        return
    study = optuna.load_study(
        study_name=NAME, storage=where.plain(), sampler=optuna.samplers.RandomSampler()
    )
    start.wait()
    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        trial = study.ask()
        # Another process may have taken the same trial and told its result first.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            study.tell(trial, _sleeping.bare(SECONDS)(trial), skip_if_finished=True)


def measure(side: str, kind: str, trials: int, processes: int) -> dict[str, Any]:
    """Let the processes empty the queue, and count their evaluations."""
    with tempfile.TemporaryDirectory() as directory, database(kind) as where:
        log = Path(directory) / "log"
        fill(side, where, trials)
        start = CONTEXT.Barrier(processes)
        call = (side, where, str(log), start)
        workers = [CONTEXT.Process(target=take, args=call) for _ in range(processes)]
        began = time.perf_counter()
        for one in workers:
            one.start()
        try:
            for one in workers:
                one.join(max(0.0, LIMIT - (time.perf_counter() - began)))
            codes = [one.exitcode for one in workers]
        finally:
            for one in workers:
                one.kill()
                one.join()
        seconds = time.perf_counter() - began
        seen = Counter(map(int, log.read_text().split()))
    return {
        "storage": kind,
        "side": side,
        # Without trials beyond the queue: a bare process creates one if another takes the last.
        "evaluations": sum(seen[number] for number in range(trials)),
        "evaluated_twice": sum(1 for number in range(trials) if seen[number] > 1),
        "duplicates": sum(max(0, seen[number] - 1) for number in range(trials)),
        "missing": sum(1 for number in range(trials) if not seen[number]),
        "failed_processes": sum(code != 0 for code in codes),
        "seconds": seconds,
    }


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for kind in arguments.storages:
        for side in arguments.sides:
            try:
                yield measure(side, kind, arguments.trials, arguments.processes)
            except SkippedError as error:
                yield {"storage": kind, "side": side, "skipped": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--storages", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    CONTEXT.set_forkserver_preload(["_sleeping", "workers", "psycopg", "pymysql"])
    found = []
    if not arguments.as_json:
        print("storage     side   evaluated twice  duplicates  missing  seconds")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOML_STATE_DIR"] = directory
        for row in rows(arguments):
            found.append(row)
            if not arguments.as_json:
                print(line(row))
                sys.stdout.flush()
    if arguments.as_json:
        sizes = {"trials": arguments.trials, "processes": arguments.processes}
        print(json.dumps({"benchmark": "queued", **sizes, "rows": found}))


def line(row: dict[str, Any]) -> str:
    text = f"{row['storage']:<12}{row['side']:<5}"
    if "skipped" in row:
        return f"{text}  {row['skipped']}"
    failed = f"  {row['failed_processes']} processes failed" if row["failed_processes"] else ""
    return (
        f"{text}{row['evaluated_twice']:>17}{row['duplicates']:>12}{row['missing']:>9}"
        f"{row['seconds']:>9.1f}{failed}"
    )


if __name__ == "__main__":
    main()
