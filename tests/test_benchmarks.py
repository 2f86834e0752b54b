"""Each benchmark runs and prints what it promises; its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_overhead_measures_both_sides():
    command = [sys.executable, str(BENCHMARKS / "overhead.py"), "--json"]
    done = subprocess.run(
        [*command, "--trials", "100", "--blocks", "1"], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)["rows"]
    assert rows[0]["storage"] == "sqlite"
    assert all(row["ours_ms"] > 0 and row["bare_ms"] > 0 for row in rows)
    # Two a trial, and those of a worker that comes and goes.
    assert all(row["ledger_transactions"] < 2.3 for row in rows)
