"""Attacks on identity: pairs of candidates that are equal, or different, by construction.

A false merge is a pair of different functions that automl takes for one. A missed pair is one of
equal functions that it does not recognise, which only costs a training. Both sides of each pair
are probed and compared, as `automl fingerprint` does (with an infinite `probe_share`). Then real
searches run, in separate processes:

default: default options, evaluations long enough for probes to pay, some pairs of each kind.
state: `probe_share=inf`, every stateful module twice; the second must be reused.
always: `probe_share=inf`, some pairs of each kind.
files: candidates that read files, in a study, in a second one, and after all files changed.

With --train, both sides of each pair that should differ are trained without the cache, from the
same random draws and under the same seeds, until their outputs differ. `one start` means that all
weights were equal when training began, so only the functions made the difference.

    python benchmarks/identity_attacks.py [--json] [--kind NAME] [--no-searches] [--train]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import automl
from automl.analysis.same_functions import Comparer, comparing
from automl.plugin.protocols import Run, Split
from automl.plugin.registry import Registry
from automl.study.plan import plan
from automl.study.search_request import SearchRequest

TESTS = Path(__file__).parents[1] / "tests" / "support"
SPACE = f"{TESTS / 'attacked.py'}:sides"
BRIEF = f"{TESTS / 'shapes.py'}:Brief"
SLEEP, WORKERS = 20.0, 4
"""Seconds of an evaluation, long enough for probes to pay, and workers, in search `default`."""
SEEDS = (0, 1, 2)
EPOCHS = 20
APART = 2e-5
"""Outputs that differ by more than this share of the largest come from different functions.

Equal functions, written differently but with the same initial weights, differed by 5e-7 at most.
"""
IMPORTING = "importing"


def attacks() -> list[Any]:
    """Return the pairs, which are stored with the tests."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from attacks import PAIRS

    return list(PAIRS)


# Comparison.
def compared(comparer: Comparer, pair: Any) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether both sides of a pair get one fingerprint, and the findings for each."""
    found = [comparer.fingerprint({"side": side}) for side in pair.sides]
    return found[0]["fingerprint"] == found[1]["fingerprint"], found


def comparisons(pairs: Sequence[Any]) -> Iterator[dict[str, Any]]:
    request = SearchRequest(SPACE, strategy="random", options={"trainer": {"lr": 0.01}})
    with comparing(plan(request, Registry())) as comparer:
        for number, pair in enumerate(pairs, 1):
            progress(f"{number}/{len(pairs)} {pair.kind}: {pair.name}")
            merged, found = compared(comparer, pair)
            yield {
                "kind": pair.kind,
                "name": pair.name,
                "equal": pair.equal,
                "merged": merged,
                "level": found[1]["level"],
                "verdicts": [each.get("verdict", "sound") for each in found],
                "reasons": [each.get("reason") for each in found],
                "ms": [1e3 * each["seconds"] for each in found],
            }


def by_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    results = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        ours = [row for row in rows if row["kind"] == kind]
        equal = [row for row in ours if row["equal"]]
        differ = [row for row in ours if not row["equal"]]
        results.append(
            {
                "kind": kind,
                "differ": len(differ),
                "false_merges": sum(row["merged"] for row in differ),
                "equal": len(equal),
                "missed": sum(not row["merged"] for row in equal),
                "verdicts": dict(Counter(v for row in ours for v in row["verdicts"])),
                "probe_ms": statistics.median(ms for row in ours for ms in row["ms"]),
            }
        )
    return results


def named(rows: Sequence[dict[str, Any]], equal: bool) -> list[str]:
    """List the pairs whose verdict is wrong.

    Args:
        rows: The compared pairs.
        equal: Whether to list equal pairs that were missed, or different ones that were merged.
    """
    return [
        f"{row['kind']}: {row['name']}"
        for row in rows
        if row["equal"] is equal and row["merged"] is not equal
    ]


# Searches, each in a separate process.
def searching(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--search", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def answer(process: "subprocess.Popen[str]") -> Any:
    results, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a search ended with exit code {process.returncode}")
    return json.loads(results)


def some_pairs() -> list[Any]:
    """Return the first different pair and the first equal one of each kind."""
    firsts = {(pair.kind, pair.equal): pair for pair in reversed(attacks())}
    return list(firsts.values())


def search_pairs(
    pairs: Sequence[Any], share: str | None, seconds: float = 0.0, workers: int = 1
) -> dict[str, Any]:
    """Run a search that proposes both sides of each pair.

    Args:
        pairs: The pairs.
        share: The option `cache.probe_share`, None for the default.
        seconds: How long each evaluation sleeps.
        workers: The number of workers.
    """
    asked = [side for pair in pairs for side in pair.sides]
    made = [{"side": side} for side in asked]
    study = searched(SPACE, made, share, {"seconds": seconds}, workers=workers)
    fingerprints = dict(zip(asked, [v.fingerprint for v in study.views.trials()], strict=True))
    rows = [
        {
            **{"kind": pair.kind, "name": pair.name, "equal": pair.equal},
            "merged": len({fingerprints[side] for side in pair.sides}) == 1,
        }
        for pair in pairs
    ]
    return {
        "pairs": len(rows),
        "false_merges": named(rows, equal=False),
        "missed": named(rows, equal=True),
        **recognized(study),
    }


def search_state(share: str) -> dict[str, Any]:
    """Propose each stateful module twice; the second time it must be reused."""
    sides = [side for pair in attacks() if pair.kind == "state" for side in pair.sides]
    study = searched(SPACE, [{"side": side} for side in [*sides, *sides]], share, {})
    again = study.views.trials()[len(sides) :]
    missed = [side for side, view in zip(sides, again, strict=True) if view.reused_from is None]
    return {"repeats": len(sides), "missed": missed, **recognized(study)}


def search_files(space: str, storage: str, share: str) -> dict[str, bool]:
    """Return for each candidate that reads a file whether it was reused."""
    if space == IMPORTING:
        asked: list[dict[str, Any]] = [{"eighths": n} for n in (1, 2)]
    else:
        from reading import LATE, READERS

        asked = [{"how": how, "early": e} for how in [*READERS, LATE] for e in (True, False)]
    file = f"{TESTS / space}.py:{space}"
    study = searched(file, asked, share or None, {}, storage=storage, cache_scope="storage")
    views = study.views.trials()
    return {
        f"{space} {' '.join(map(str, made.values()))}": view.reused_from is not None
        for made, view in zip(asked, views, strict=True)
    }


def searched(
    space: str,
    asked: Sequence[dict[str, Any]],
    share: str | None,
    trainer: dict[str, Any],
    **given: Any,
) -> Any:
    cache = {"probe_share": share} if share else {}
    given.setdefault("storage", f"sqlite:///{os.environ['AUTOML_STATE_DIR']}/{os.getpid()}.db")
    return automl.search(
        space,
        trainer=BRIEF,
        strategy="random",
        options={"cache": cache, "trainer": trainer},
        enqueue=asked,
        trials=len(asked),
        device="cpu",
        **given,
    ).study


def recognized(study: Any) -> dict[str, Any]:
    counts, known = study.views.counts(), study.views.recognized()
    return {
        "trials": counts.trials,
        "evaluated": counts.evaluated,
        "verdicts": dict(known.verdicts),
        "skipped": dict(known.skipped),
    }


def files(share: str | None) -> dict[str, Any]:
    """Search candidates that read files: in a study, in a second one, and after files changed."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["READING_FOLDER"] = folder
        attacks()
        from reading import write

        found = []
        for seed in (0, 0, 1):
            progress(f"files, probe_share {share or 'default'}, content {seed}")
            write(seed)
            begun = [
                searching("files", space, f"sqlite:///{folder}/{space}.db", share or "")
                for space in ("reading", IMPORTING)
            ]
            reading, importing = map(answer, begun)
            found.append({**reading, **importing})
    _, unchanged, changed = found
    return {
        "candidates": len(changed),
        "false_merges": [name for name, reused in changed.items() if reused],
        "missed": [name for name, reused in unchanged.items() if not reused],
    }


def search(arguments: Sequence[str]) -> Any:
    """Run the search that a separate process was started for."""
    what, *rest = arguments
    attacks()
    if what == "files":
        return search_files(*rest)
    if what == "state":
        return search_state(*rest)
    if what == "default":
        # Nothing is probed before the first evaluation ends, or before probes are known to pay.
        pairs = [each for each in some_pairs() if each.kind not in ("state", "writings")]
        return search_pairs([each for each in pairs if not each.equal], None, SLEEP, WORKERS)
    return search_pairs(some_pairs(), "inf")


def searches(default: "subprocess.Popen[str]") -> Iterator[tuple[str, Any]]:
    """Run the searches, while the given one with default options runs and mostly sleeps."""
    progress("searching with state, then always")
    yield "state", answer(searching("state", "inf"))
    yield "always", answer(searching("always"))
    yield "files, default options", files(None)
    yield "files, always", files("inf")
    progress("waiting for the search with default options")
    yield "default", answer(default)


# Training.
def trained(build: Any, task: automl.Task, seed: int) -> tuple[list[Tensor], Tensor, float]:
    """Train a candidate; return its initial tensors, its final outputs and its accuracy."""
    from automl_plugins.trainers.supervised import Supervised

    made: list[nn.Module] = []
    start: list[Tensor] = []

    def architecture() -> nn.Module:
        module = automl.Candidate(build).build()
        made.append(module)
        held = [tensor for tensor in module.state_dict().values() if not is_lazy(tensor)]
        start.extend(tensor.detach().clone() for tensor in held)
        return module

    random.seed(seed)
    np.random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run("cpu", seed, 0, 1, Path(folder))
        trainer = Supervised(lr=0.01, epochs=EPOCHS)
        report = list(trainer.train(automl.Candidate(architecture), task, run))[-1]
    inputs = task.split(Split.VALIDATION)[0]
    with torch.no_grad():
        answers = made[-1].eval()(inputs)
    return start, answers, float(report.metrics["accuracy"])


def trainings(pair: Any, task: automl.Task) -> dict[str, Any]:
    """Train both sides of a pair under one seed after another until their outputs differ."""
    row: dict[str, Any] = {"kind": pair.kind, "name": pair.name, "accuracies": []}
    for seed in SEEDS:
        (start, ours, a), (begin, theirs, b) = (
            trained(build, task, seed) for build in (pair.one, pair.other)
        )
        row["accuracies"].append((a, b))
        shapes = [[t.shape for t in tensors] for tensors in (start, begin)]
        one_start = shapes[0] == shapes[1] and all(map(torch.equal, start, begin))
        apart = float((ours - theirs).abs().max() / ours.abs().max())
        row |= {"one_start": one_start, "apart": apart, "differ": not apart <= APART}
        if row["differ"]:
            break
    return row


def training(pairs: Sequence[Any]) -> list[dict[str, Any]]:
    """Train the pairs that should differ."""
    parts = plan(SearchRequest(SPACE), Registry()).parts
    rows = []
    for pair in pairs:
        if not pair.equal:
            progress(f"training {pair.kind}: {pair.name}")
            rows.append(trainings(pair, parts.task))
    return rows


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--kind", help="only pairs whose kind begins with this")
    parser.add_argument("--no-searches", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--search", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.search:
        print(json.dumps(search(arguments.search)))
        return
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOML_STATE_DIR"] = directory
        results = measured(arguments)
    print(json.dumps(results)) if arguments.as_json else show(results)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    pairs = [each for each in attacks() if each.kind.startswith(arguments.kind or "")]
    default = None if arguments.no_searches else searching("default")
    rows = list(comparisons(pairs))
    results = {
        "benchmark": "identity_attacks",
        "pairs": rows,
        "kinds": by_kind(rows),
        "false_merges": named(rows, equal=False),
        "missed": named(rows, equal=True),
        "searches": {} if default is None else dict(searches(default)),
    }
    if arguments.train:
        results["trained"] = training(pairs)
    return {**results, "seconds": time.perf_counter() - began}


def show(results: dict[str, Any]) -> None:
    print(f"{'kind':<34}{'differ':>8}{'merged':>8}{'equal':>8}{'missed':>8}{'ms':>8}  verdicts")
    for each in results["kinds"]:
        print(
            f"{each['kind']:<34}{each['differ']:>8}{each['false_merges']:>8}{each['equal']:>8}"
            f"{each['missed']:>8}{each['probe_ms']:>8.1f}  {each['verdicts']}"
        )
    for title in ("false_merges", "missed"):
        print(f"\n{title.replace('_', ' ')}: {len(results[title])}")
        for name in results[title]:
            print(f"  {name}")
    for name, found in results["searches"].items():
        print(f"\nsearch, {name}:")
        for key, value in found.items():
            print(f"  {key.replace('_', ' ')}: {value}")
    if "trained" in results:
        show_trained(results["trained"])
    print(f"\n{results['seconds']:.0f} s")


def show_trained(rows: Sequence[dict[str, Any]]) -> None:
    differ = sum(row["differ"] for row in rows)
    print(f"\ntrained: {differ} of {len(rows)} pairs differ")
    for row in rows:
        print(
            f"  {'differ' if row['differ'] else 'ALIKE':<8}{row['apart']:>9.2g}"
            f"  {'one start' if row['one_start'] else '':<10}{row['kind']}: {row['name']}"
        )


if __name__ == "__main__":
    main()
