"""A search with real training, with and without the cache, compared with the true reuse rate.

Regularised evolution (population 25) in space `nasbench201` with one cell, on task `digits`, by
default 300 trials of a small network; --width and --epochs make trials longer. Both searches have
the same seed and one worker. A reused result is told to the strategy like any other, so their
proposals differ once a function is proposed twice. The reuse rate is compared with the true one:
the share of proposals that repeat a function, as the test suite's own code derives it.

    python benchmarks/real_search.py [--json] [--trials 300] [--width 4] [--epochs 2] [--seed 0]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _cells import cell_of, truth

import automl


def searched(arguments: argparse.Namespace, folder: Path, cache: bool) -> dict[str, Any]:
    """Run one search, and measure how much of it was reused."""
    began = time.perf_counter()
    study, best = automl.search(
        "nasbench201",
        task="digits",
        strategy="evolution",
        options={
            "space": {"cells": 1, "width": arguments.width},
            "strategy": {"population": 25},
            "trainer": {"epochs": arguments.epochs, "lr": 0.01},
        },
        trials=arguments.trials,
        storage=f"sqlite:///{folder / f'{cache}.db'}",
        seed=arguments.seed,
        cache=cache,
        device="cpu",
    )
    seconds = time.perf_counter() - began
    counts = study.views.counts()
    forms = [truth(cell_of(trial.params))[0] for trial in study.optuna.trials]
    return {
        "cache": cache,
        "trials": counts.trials,
        "evaluated": counts.evaluated,
        "reuse_rate": counts.reused / counts.trials,
        "true_rate": 1 - len(set(forms)) / len(forms),
        "training_seconds": counts.seconds,
        "seconds": seconds,
        "best": max(best.values.values()) if best else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOML_STATE_DIR"] = directory
        rows = [searched(arguments, Path(directory), cache) for cache in (True, False)]
    if arguments.as_json:
        print(json.dumps({"benchmark": "real_search", "seed": arguments.seed, "rows": rows}))
        return
    print("cache   trials  evaluated  reused   true  training s  wall s    best")
    for row in rows:
        print(
            f"{row['cache']!s:<6}{row['trials']:>8}{row['evaluated']:>11}{row['reuse_rate']:>8.1%}"
            f"{row['true_rate']:>7.1%}{row['training_seconds']:>12.1f}{row['seconds']:>8.1f}"
            f"{row['best']:>8.4f}"
        )


if __name__ == "__main__":
    main()
