"""Workers as processes on this machine."""

import os
import signal
import sys
import time

import pytest
from automl_plugins.launchers.local import LocalLauncher

from automl import UsageError, WorkerHandle

LAUNCHER = LocalLauncher()
FOREVER = "import sys, time; print('ready', file=sys.stderr, flush=True); time.sleep(60)"


def start(code, log, environment=None):
    return LAUNCHER.start([sys.executable, "-c", code], environment or {}, log)


@pytest.fixture
def sleeper(tmp_path):
    worker = start(FOREVER, tmp_path / "log")
    yield worker
    worker.process.kill()
    worker.process.wait()


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_worker_returns_its_exit_code(tmp_path):
    worker = start("raise SystemExit(7)", tmp_path / "log")
    assert isinstance(worker, WorkerHandle)
    assert worker.wait(20) == 7
    assert worker.poll() == 7


def test_only_standard_error_is_appended_to_the_log(tmp_path):
    log = tmp_path / "new" / "folder" / "log"
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    for _ in range(2):
        assert start(code, log).wait(20) == 0
    assert log.read_text().split() == ["err", "err"]


def test_it_extends_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_OURS", "1")
    code = "import os, sys; sys.stderr.write(os.environ['TEST_OURS'] + os.environ['TEST_ADDED'])"
    assert start(code, tmp_path / "log", {"TEST_ADDED": "2"}).wait(20) == 0
    assert (tmp_path / "log").read_text() == "12"
    assert "TEST_ADDED" not in os.environ


def test_it_does_not_read_our_standard_input(tmp_path):
    assert start("import sys; sys.exit(len(sys.stdin.read()))", tmp_path / "log").wait(20) == 0


def test_waiting_ends_with_a_timeout(sleeper):
    with pytest.raises(TimeoutError, match="is still running after"):
        sleeper.wait(0.01)
    assert sleeper.poll() is None


def test_it_runs_in_its_own_session(sleeper):
    assert os.getsid(sleeper.process.pid) != os.getsid(0)


def test_an_interrupt_reaches_it_as_ctrl_c_would(sleeper, tmp_path):
    wait_for(lambda: "ready" in (tmp_path / "log").read_text())
    sleeper.interrupt()
    assert sleeper.wait(20) in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_interrupting_an_ended_worker_does_nothing(tmp_path):
    worker = start("pass", tmp_path / "log")
    worker.wait(20)
    worker.interrupt()
    assert worker.poll() == 0


def test_a_missing_program_or_log_folder_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"cannot start worker .*no-such-program: No such file"):
        LAUNCHER.start([str(tmp_path / "no-such-program")], {}, tmp_path / "log")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot start worker"):
        start("pass", tmp_path / "file" / "log")
