"""Processes of a test's own, forked from one that has loaded everything already."""

import multiprocessing.context
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["automl.api", "automl.workers.worker", "psycopg", "tiny"])
_SECONDS = 90.0


Process = multiprocessing.context.ForkServerProcess


def started(function: Callable[..., Any], environment: Mapping[str, str], *args: Any) -> Process:
    """A process that calls the function, under way."""
    process = CONTEXT.Process(target=_call, args=({**_own(), **environment}, function, *args))
    process.start()
    return process


def run(
    function: Callable[..., Any], *args: Any, within: float = _SECONDS, **environment: str
) -> int:
    """The exit code of a process that calls the function; negative: the signal that killed it."""
    codes = run_all(function, [args], within=within, **environment)
    assert codes, f"it did not end within {within:g} s"
    return codes[0]


def run_all(
    function: Callable[..., Any],
    calls: Sequence[Sequence[Any]],
    *,
    within: float = _SECONDS,
    **environment: str,
) -> list[int]:
    """The exit codes of processes that each make one of the calls, all at once.

    Those that have not ended within so many seconds are killed and left out.
    """
    environment = {**_own(), **environment}
    processes = [
        CONTEXT.Process(target=_call, args=(environment, function, *call)) for call in calls
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(within)
        return [code for process in processes if (code := process.exitcode) is not None]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _own() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AUTOML_")}


def _call(environment: Mapping[str, str], function: Callable[..., Any], *args: Any) -> None:
    os.environ.update(environment)
    function(*args)
