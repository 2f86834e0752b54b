"""The quality of a search on a table, compared with scikit-learn's gradient boosting.

Ours: `automl search tabular_mlp --task csv:…` through the Python interface; the best trial by
validation accuracy with its trained weights. Peer: `HistGradientBoostingClassifier` with its
defaults and native categories, on the same training rows. Both are tested on the same test rows.

    python benchmarks/tabular.py [--json] [--data DIR] [--tables adult letter] [--trials 15]
                                 [--epochs 20] [--seeds 1]

DIR contains tabular/adult_train.csv.gz, tabular/adult_test.csv.gz and tabular/letter.csv.gz.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from automl_plugins.tasks.csv import csv
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, roc_auc_score

import automl
from automl import Split
from automl.export.export import Export
from automl.plugin.registry import Registry
from automl.plugin.trust import trusting
from automl.portable.columns import Categories

TABLES: dict[str, dict[str, str]] = {
    "adult": {"file": "adult_train.csv.gz", "test_file": "adult_test.csv.gz"},
    "letter": {"file": "letter.csv.gz"},
}


def ours(options: Mapping[str, Any], trials: int, epochs: int, seed: int) -> dict[str, float]:
    """Measure the best trial of a search on the test rows."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOML_STATE_DIR"] = directory
        study, _ = automl.search(
            "tabular_mlp",
            task="csv",
            options={"task": options, "trainer": {"epochs": epochs}},
            trials=trials,
            seed=seed,
            storage=f"sqlite:///{directory}/automl.db",
        )
        parts = study.load_parts(Registry(trusting(True, ())))
        (best,) = study.best_trials()
        found = Export(study, parts, best).metrics["test"]
        study.storage.engine.dispose()
    return {**found, "seconds": time.perf_counter() - began}


def peer(options: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Measure gradient boosting with its defaults on the same rows."""
    began = time.perf_counter()
    task = csv(**{k: Path(v) if "file" in k else v for k, v in options.items()}, quantiles=False)
    inputs, categorical = as_columns(task)
    rows, tested = (task.splits[split] for split in (Split.TRAIN, Split.TEST))
    model = HistGradientBoostingClassifier(categorical_features=categorical, random_state=seed)
    model.fit(inputs[rows].numpy(), task.targets[rows].numpy())
    likely = model.predict_proba(inputs[tested].numpy())
    targets = task.targets[tested].numpy()
    found = {"accuracy": accuracy_score(targets, likely.argmax(1))}
    if task.classes == 2:
        found["auc"] = roc_auc_score(targets, likely[:, 1])
    return {**found, "seconds": time.perf_counter() - began}


def as_columns(task: Any) -> tuple[torch.Tensor, list[bool]]:
    """Return one column for each of the table's, and which of them are categories."""
    columns, categorical, start = [], [], 0
    for column in task.preparation.columns.columns:
        block = task.inputs[:, start : start + column.width]
        is_category = isinstance(column, Categories)
        columns.append(block.argmax(1).float() if is_category else block[:, 0])
        categorical.append(is_category)
        start += column.width
    return torch.stack(columns, 1), categorical


def compare(folder: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"table": name, "ours": {}, "peer": {}}
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for seed in range(arguments.seeds):
        files = {key: str(folder / value) for key, value in TABLES[name].items()}
        options = {**files, "seed": seed}
        found["ours"].append(ours(options, arguments.trials, arguments.epochs, seed))
        found["peer"].append(peer(options, seed))
    for side, many in found.items():
        for metric in many[0]:
            values = [one[metric] for one in many]
            spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
            row[side][metric] = {"mean": statistics.fmean(values), "standard_error": spread}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--data", type=Path, default=os.environ.get("AUTOML_DATA_DIR"))
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(arguments.data or ".") / "tabular"
    if not folder.is_dir():
        sys.exit(f"no folder {folder}: name its parent with --data or AUTOML_DATA_DIR")
    rows = []
    if not arguments.as_json:
        print(f"{'table':<10}{'metric':<20}{'ours':>9}{'boosting':>10}")
    for name in arguments.tables:
        rows.append(compare(folder, name, arguments))
        if not arguments.as_json:
            print_row(rows[-1])
    if arguments.as_json:
        print(json.dumps({"benchmark": "tabular", "rows": rows}))


def print_row(row: Mapping[str, Any]) -> None:
    for metric, theirs in row["peer"].items():
        mean = row["ours"][metric]["mean"]
        print(f"{row['table']:<10}{metric:<20}{mean:>9.4f}{theirs['mean']:>10.4f}", flush=True)


if __name__ == "__main__":
    main()
