"""Self-tuning networks: what their steps cost, and what they find compared with trial and error.

Each section is an option; without any, all of them run.

--judged: the loss on test data of what `stn` and `delta_stn` find in one trial with its judge, next
to no regularization, and to TPE and random search with the same seconds of training, or three times
the gradients. Trial and error may also choose a third of the epochs. Differences are paired by
seed. The tasks are digits (three dropouts and cutout), Fashion-MNIST at 14x14 with a small
convolutional network, and letters from a table; the last two are left out if DIR lacks them.

--cost: CPU time and saved activations of the steps of `stn` and `delta_stn`, in plain training
steps of the same network from space cnn, with batches of 128 images. Steps take turns, in one
thread; a time is the smallest of all turns, or their median. `2:1` is the cost of a training step
with its share of the steps of the hyperparameters, one for every two.

    python benchmarks/self_tuning.py --judged [--json] [--seeds 10] [--problems NAME …] [--data DIR]
    python benchmarks/self_tuning.py --cost [--json] [--turns 30] [--side 28]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _judged
import numpy as np
import optuna
import torch
from automl_plugins._training.loop import Loop
from automl_plugins.trainers.delta_stn import DeltaStn, DeltaStnTraining
from automl_plugins.trainers.stn import Stn, StnTraining
from automl_plugins.trainers.supervised import Supervised
from automl_searchspaces.cnn import cnn

import automl
from automl.space.candidate import propose

BATCH = 128
NETWORK = {
    "stages": 2,
    "channels": 16,
    "activation": "relu",
    "pooling": "max_pool2d",
    "kernel_0": 3,
    "kernel_1": 3,
    "blocks_0": 2,
    "blocks_1": 2,
    "dropout": 0.2,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "batch_size": BATCH,
}
TARGETS = {
    "stn training": 1.7,
    "stn hyper": 1.5,
    "stn 2:1": 2.3,
    "delta_stn training": 5.5,
    "delta_stn training, not linearised": 3.0,
}
MEMORY_TARGET = 1.5
"""The largest saved activations of STN's training step."""
SAMPLE = automl.Use(automl.UseKind.ATTRIBUTE, "dropout", "p", automl.Scope.SAMPLE)

Step = Callable[[], Any]


# Cost.
def images(side: int) -> automl.Classification:
    """Random images of ten classes."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4 * BATCH, 1, side, side)).astype(np.float32)
    return automl.Classification.from_arrays("images", inputs, rng.integers(0, 10, 4 * BATCH))


def loop(kind: type[Loop], trainer: Any, task: automl.Task, normalization: str) -> Loop:
    """Prepare the training of the network, with its dropout rate open if the trainer tunes it."""

    def opens(decision: automl.Open) -> bool:
        return kind is not Loop and decision.name == "dropout"

    trial = optuna.trial.FixedTrial({**NETWORK, "normalization": normalization})
    candidate = propose(lambda t: cnn(t, task), trial, opens, uses=lambda name, closed: (SAMPLE,))
    closed = {k: v for k, v in candidate.hyperparameters.items() if not isinstance(v, automl.Open)}
    run = automl.Run("cpu", 0, 0, 1, Path(tempfile.gettempdir()))
    made = kind(trainer.configured(closed), candidate, task, run)
    made.epoch()  # also prepares what an epoch prepares
    return made


def training_step(made: Loop) -> Step:
    rows = torch.arange(BATCH)

    def step() -> None:
        made.module.train()
        made._step(rows)

    return step


def hyper_step(made: Any) -> Step:
    rows = torch.arange(min(BATCH, len(made.given)))

    def step() -> None:
        made.module.eval()
        made._outer_step(rows)

    return step


def steps(task: automl.Task, normalization: str) -> dict[str, Step]:
    """Return a plain step and those of both trainers."""
    share = {"outer": "share", "share": 0.4}  # so that a batch of the outer loss is as large
    plain = loop(Loop, Supervised(), task, normalization)
    stn = loop(StnTraining, Stn(**share), task, normalization)
    linear = loop(DeltaStnTraining, DeltaStn(**share), task, normalization)
    exact = loop(DeltaStnTraining, DeltaStn(**share, linearised=False), task, normalization)
    return {
        "plain": training_step(plain),
        "stn training": training_step(stn),
        "stn hyper": hyper_step(stn),
        "delta_stn training": training_step(linear),
        "delta_stn training, not linearised": training_step(exact),
        "delta_stn hyper": hyper_step(linear),
    }


def timed(timed_steps: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """Return the CPU time of each step in each turn, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in timed_steps}
    for _ in range(turns):
        for name, step in timed_steps.items():
            began = time.process_time()
            step()
            times[name].append(time.process_time() - began)
    return times


def saved_bytes(step: Step) -> int:
    """Return the size of all tensors that a step saves for its backward pass, each counted once."""
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor)  # or another tensor could get its address
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def cost_of(task: automl.Task, normalization: str, turns: int) -> list[dict[str, Any]]:
    """Measure each step in plain ones."""
    measured = steps(task, normalization)
    timed(measured, 2)
    times = timed(measured, turns)
    memory = {name: saved_bytes(step) for name, step in measured.items()}
    rows = []
    for name in measured:
        row = {
            "normalization": normalization,
            "step": name,
            "saved": memory[name] / memory["plain"],
        }
        for key, summary in (("smallest", min), ("median", statistics.median)):
            row[key] = summary(times[name]) / summary(times["plain"])
        rows.append(row)
    by_name = {row["step"]: row for row in rows}
    training, hyper = by_name["stn training"], by_name["stn hyper"]
    both = {key: training[key] + hyper[key] / 2 for key in ("smallest", "median")}
    rows.append({"normalization": normalization, "step": "stn 2:1", "saved": None, **both})
    return [{**row, "target": TARGETS.get(row["step"])} for row in rows]


def cost(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    task = images(options.side)
    rows = [
        row
        for normalization in ("batch_norm", "identity")
        for row in cost_of(task, normalization, options.turns)
    ]
    return {"side": options.side, "batch": BATCH, "saved_target": MEMORY_TARGET, "rows": rows}


def show_cost(found: dict[str, Any]) -> None:
    print(f"In plain steps, {found['side']}x{found['side']} images, batches of {found['batch']}:")
    print(f"{'':48} smallest  median  target  saved")
    for row in found["rows"]:
        name = f"{row['normalization']}: {row['step']}"
        target = "" if row["target"] is None else f"{row['target']:.1f}"
        saved = "" if row["saved"] is None else f"{row['saved']:.2f}"
        print(f"{name:48} {row['smallest']:8.2f} {row['median']:7.2f} {target:>7} {saved:>6}")


SECTIONS = {"judged": (_judged.judged, _judged.show_judged), "cost": (cost, show_cost)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name in SECTIONS:
        parser.add_argument(f"--{name}", action="store_true", help=f"run the section {name}")
    parser.add_argument("--turns", type=int, default=30, help="turns of each step (cost)")
    parser.add_argument("--side", type=int, default=28, help="height and width of images (cost)")
    _judged.add_arguments(parser)
    options = parser.parse_args()
    chosen = [name for name in SECTIONS if getattr(options, name)] or list(SECTIONS)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {name: SECTIONS[name][0](options) for name in chosen}
    if options.json:
        print(json.dumps(found))
        return
    for name, result in found.items():
        SECTIONS[name][1](result)


if __name__ == "__main__":
    main()
