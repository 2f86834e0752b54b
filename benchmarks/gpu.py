"""Workers on a GPU: sharing one, running out of its memory, and being pinned to it.

sharing: trials per hour of a small network on one GPU with 1, 2 and 4 workers in turn, relative to
one worker. memory: how often a training whose batch does not fit is repeated in micro-batches.
pinning: whether each worker sees only its own device and names it cuda:0. On a machine without a
GPU it prints that it has none, with exit code 0.

    python benchmarks/gpu.py [--json] [--trials 24] [--turns 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import automl
from automl.devices.discovery import accelerators

WORKERS = (1, 2, 4)
FILE = str(Path(__file__).resolve())


class Nothing:
    """A task without data."""

    signature = automl.Signature((1,), (1,))

    @property
    def metrics(self) -> dict[str, automl.Direction]:
        return {"value": automl.Direction.MAXIMIZE}

    def digest(self) -> str:
        return "nothing"

    def split(self, *_: Any) -> Any:
        raise NotImplementedError

    probe = loss = evaluate = split


def space(trial: Any, task: automl.Task) -> automl.Candidate:
    x = trial.suggest_float("x", 0.0, 1.0)
    return automl.Candidate(lambda: None, {"x": x})  # type: ignore[arg-type,return-value]


@dataclass(frozen=True)
class Hungry(automl.Trainer):
    """Allocates four times the GPU's free memory, and an eighth of that with micro-batches."""

    def train(self, candidate: Any, task: Any, run: automl.Run) -> Iterator[automl.Report]:
        import torch

        free, _ = torch.cuda.mem_get_info(run.device)
        rows = 8 // run.micro_batches
        torch.empty(rows * free // 2, dtype=torch.uint8, device=run.device)
        run.tick()
        yield automl.Report(1, {"value": float(run.micro_batches)})


@dataclass(frozen=True)
class Pinned(automl.Trainer):
    """Reports 1 if its process sees one GPU and names it cuda:0, else 0."""

    def train(self, candidate: Any, task: Any, run: automl.Run) -> Iterator[automl.Report]:
        import torch

        run.tick()
        bound = run.device == "cuda:0" and torch.cuda.device_count() == 1
        yield automl.Report(1, {"value": float(bound)})


def searched(folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], float, str]:
    """Run a search on the command line.

    Returns:
        The events of its trials, its wall time in seconds, and its standard error.
    """
    url = f"sqlite:///{folder / 'gpu.db'}"
    command = [sys.executable, "-m", "automl", "search", *arguments, "--storage", url, "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    trials = [event for event in events if event["event"] == "trial"]
    return trials, time.perf_counter() - began, done.stderr


def sharing(trials: int, turns: int, device: str) -> list[dict[str, Any]]:
    """Measure trials per hour by number of workers, as medians over turns."""
    rates: dict[int, list[float]] = {count: [] for count in WORKERS}
    for turn in range(turns):
        for count in WORKERS if turn % 2 else reversed(WORKERS):
            with tempfile.TemporaryDirectory() as folder:
                limits = ("--trials", str(trials), "--strategy", "random", "--no-cache")
                where = ("--device", device, "--workers", str(count))
                epochs = ("-o", "trainer.epochs=20")
                found, seconds, _ = searched(Path(folder), "cnn", *limits, *where, *epochs)
                rates[count].append(3600 * len(found) / seconds)
    alone = statistics.median(rates[1])
    return [
        {"workers": n, "trials_per_hour": (m := statistics.median(r)), "ratio": m / alone}
        for n, r in rates.items()
    ]


def of_trainer(trainer: str, device: str) -> tuple[list[float | None], str]:
    """Search with a trainer of this file; return each trial's value, and standard error."""
    with tempfile.TemporaryDirectory() as folder:
        parts = (f"{FILE}:space", "--task", f"{FILE}:Nothing", "--trainer", f"{FILE}:{trainer}")
        limits = ("--trials", "4", "--strategy", "random", "--device", device)
        found, _, warned = searched(Path(folder), *parts, *limits)
    return [trial["values"] and trial["values"]["value"] for trial in found], warned


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    gpus = [device.name for device in accelerators() if device.is_gpu]
    if not gpus:
        skipped = {"benchmark": "gpu", "skipped": "this machine has no GPU"}
        print(json.dumps(skipped) if arguments.as_json else skipped["skipped"])
        return
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOML_STATE_DIR"] = directory
        shared = sharing(arguments.trials, arguments.turns, gpus[0])
        in_parts, warned = of_trainer("Hungry", gpus[0])
        bound, _ = of_trainer("Pinned", gpus[-1])
    found = {
        "sharing": shared,
        "memory": {"micro_batches": in_parts, "retries": warned.count("once more in")},
        "pinning": {"device": gpus[-1], "bound": bound == [1.0] * len(bound)},
    }
    if arguments.as_json:
        print(json.dumps({"benchmark": "gpu", **found}))
        return
    for row in shared:
        rate = f"{row['trials_per_hour']:.0f} trials per hour"
        print(f"{row['workers']} workers on {gpus[0]}: {rate}, x{row['ratio']:.2f}")
    print(f"out of memory: {found['memory']['retries']} retries, micro-batches: {in_parts}")
    print(f"pinned to {gpus[-1]}: {found['pinning']['bound']}")


if __name__ == "__main__":
    main()
