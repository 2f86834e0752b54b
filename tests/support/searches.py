"""Real searches on the command line, without data or model, for tests that kill their workers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny

from automl.storage.storage import Storage
from automl.study.study import open_study

FILE = str(Path(tiny.__file__))
PARTS = {
    "task": f"{FILE}:Nothing",
    "trainer": f"{FILE}:Steps",
    "strategy": "random",
    "device": "cpu",
    "study": "s",
}


def search_command(
    url: str, *options: str, space: str = "plane", **environment: str
) -> subprocess.Popen[bytes]:
    """Start a search in a separate process and session; its study is `s`."""
    parts = [word for name, value in PARTS.items() for word in (f"--{name}", value)]
    return subprocess.Popen(
        [sys.executable, "-m", "automl", "search", f"{FILE}:{space}", *parts, *options],
        env={**os.environ, "AUTOML_STORAGE": url, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    """Wait until a condition is true and return its value; fail if the process ends first."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found


def pid_of(worker: str) -> int:
    """The process id in a worker's name in the ledger."""
    return int(worker.rsplit(":", 4)[2])


def training(url: str) -> set[int]:
    """The ids of the processes that are running a trial of the search."""
    try:
        workers = open_study(Storage(url), "s").views.workers()
    except Exception:  # The study does not exist yet.
        return set()
    return {pid_of(worker.id) for worker in workers if worker.trial is not None}
