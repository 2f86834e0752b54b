"""Who is dead: only what this process can know for certain."""

import os
import subprocess
import sys

import pytest

from automl.engine.worker_ids import is_dead, this_worker


def renamed(worker: str, **changes: str) -> str:
    names = ("host", "boot", "pid", "start", "rest")
    fields = dict(zip(names, worker.rsplit(":", 4), strict=True)) | changes
    return ":".join(fields.values())


def test_this_process_is_alive():
    assert not is_dead(this_worker())


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc to tell")  # noqa: PTH110
def test_a_process_that_ended_is_dead():
    code = "from automl.engine.worker_ids import this_worker; print(this_worker())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert is_dead(said.stdout.strip())


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc to tell")  # noqa: PTH110
def test_another_process_under_the_same_id_does_not_pass_for_the_worker():
    assert is_dead(renamed(this_worker(), start="1"))


@pytest.mark.parametrize("changes", [{"host": "other"}, {"boot": "other-1"}, {"start": "0"}])
def test_what_only_looks_like_this_machine_is_left_to_its_lease(changes):
    gone = renamed(this_worker(), pid="999999999")
    assert not is_dead(renamed(gone, **changes))


def test_a_name_of_another_form_is_left_to_its_lease():
    assert not is_dead("benchmark")
