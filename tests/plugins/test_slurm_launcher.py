"""Workers as jobs, with submitit's local executor and with stand-ins for Slurm's programs."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from automl_plugins.launchers.slurm import LOST, Executor, SlurmLauncher
from searches import FILE, PARTS, search_command, training, wait_for

from automl import UsageError
from automl.storage.storage import Storage
from automl.study.study import open_study
from automl.testing import check_launcher

pytest.importorskip("submitit", reason="needs the extra slurm")

LOCAL = SlurmLauncher(executor=Executor.LOCAL)
WAITS = """
import pathlib, signal, sys, time
def stop(number, frame):
    print("asked by", signal.Signals(number).name, file=sys.stderr, flush=True)
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """Start a worker that waits to be interrupted, and return when it is ready."""
    monkeypatch.chdir(tmp_path)
    worker = LOCAL.start([sys.executable, "-c", WAITS], {}, tmp_path / "log")
    wait_for((tmp_path / "ready").exists)
    yield worker
    worker.interrupt()
    worker.wait(30)


def test_it_passes_the_launcher_suite(tmp_path):
    check_launcher(LOCAL, tmp_path)


def test_a_preempted_worker_is_interrupted_and_counts_as_lost(waiting, tmp_path):
    """Slurm sends SIGTERM to the job, which submitit would ignore."""
    os.kill(int(waiting.job.job_id), signal.SIGTERM)
    assert waiting.wait(30) == LOST
    assert "asked by SIGHUP" in (tmp_path / "log").read_text()


def test_a_worker_is_interrupted_before_its_time_limit(waiting, tmp_path):
    """With SIGUSR2, on which submitit would requeue the job."""
    tasks = subprocess.run(["pgrep", "-P", waiting.job.job_id], capture_output=True, check=False)
    for task in map(int, tasks.stdout.split()):
        os.kill(task, signal.SIGUSR2)
    assert waiting.wait(30) == LOST
    assert "asked by SIGHUP" in (tmp_path / "log").read_text()


def test_a_password_is_private_and_deleted_when_the_job_starts(waiting, tmp_path):
    folder = tmp_path / "jobs"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(folder.glob("*_submitted.pkl"))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"gpus": 2}, "one GPU or none"), ({"time": 0}, "time must be"), ({"cpus": 0}, "cpus must")],
)
def test_invalid_options(options, says):
    with pytest.raises(UsageError, match=says):
        SlurmLauncher(**options)


def test_a_missing_slurm_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"cannot submit a worker to Slurm: .*srun"):
        SlurmLauncher().start(["true"], {}, tmp_path / "log")


# With stand-ins for Slurm's programs, which run submitit's script.
SBATCH = """#!/bin/sh
cp "$1" {folder}/sent.sh
env > {folder}/environment
setsid sh "$1" > {folder}/out 2>&1 &
echo "Submitted batch job $!"
"""
SRUN = """#!/bin/sh
while [ "${{1#--}}" != "$1" ]; do
  case "$1" in --unbuffered) shift;; *) shift; shift;; esac
done
parent=$PPID
SLURM_JOB_ID=$parent SLURM_PROCID=0 exec "$@"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled
case "$1" in --signal=*) pkill -"${{1#--signal=}}" -P "$2";; esac
exit 0
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
for word in "$@"; do
  case "$word" in -*|JobID*) ;; *)
    if kill -0 "$word" 2>/dev/null; then state=RUNNING; else state=NODE_FAIL; fi
    echo "$word|$state|here";;
  esac
done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scancel": SCANCEL, "sacct": SACCT}.items():
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_the_preview_is_the_script_and_has_no_password(slurm, tmp_path):
    launcher = SlurmLauncher(
        partition="gpu", time=30, gpus=1, cpus=3, memory=1.5, sbatch={"qos": "high"}
    )
    command, log = [sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "log"
    shown = launcher.preview(command, {}, log)
    assert not (tmp_path / "jobs").exists()
    assert launcher.start(command, {"AUTOML_STORAGE": "secret"}, log).wait(60) == 7
    sent = (slurm / "sent.sh").read_text()
    assert shown.startswith(sent.rstrip())
    for word in ("partition=gpu", "time=30", "gpus-per-node=1", "cpus-per-task=3", "mem=1536M"):
        assert f"#SBATCH --{word}\n" in sent
    assert "#SBATCH --qos=high\n" in sent
    assert "#SBATCH --no-requeue\n" in sent
    assert "secret" not in sent + (slurm / "environment").read_text()


def test_slurm_interrupts_a_job(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = SlurmLauncher().start([sys.executable, "-c", WAITS], {}, tmp_path / "log")
    wait_for((tmp_path / "ready").exists)
    worker.interrupt()
    assert worker.wait(60) == 130
    assert "asked by SIGTERM" in (tmp_path / "log").read_text()
    job = worker.job.job_id
    lines = (slurm / "cancelled").read_text().splitlines()
    assert lines == [f"--state=PENDING {job}", f"--signal=INT {job}"]


def test_a_job_whose_node_fails_is_lost(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("automl_plugins.launchers.slurm._ASK_SECONDS", 1.0)
    worker = SlurmLauncher().start([sys.executable, "-c", WAITS], {}, tmp_path / "log")
    wait_for((tmp_path / "ready").exists)
    os.killpg(int(worker.job.job_id), signal.SIGKILL)
    assert worker.wait(60) == LOST
    assert "its state is NODE_FAIL" in (tmp_path / "log").read_text()


# A search.
def test_a_search_with_jobs_only(sqlite_url):
    options = ("--launcher", "slurm", "-o", "launcher.executor=local", "--workers", "2")
    process = search_command(sqlite_url, *options, "--trials", "6", "-o", "trainer.seconds=0.5")
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, said
    study = open_study(Storage(sqlite_url), "s")
    assert study.views.counts().complete == 6
    assert said.count(f"{sqlite_url}: a file serves the workers of one machine") == 1
    assert process.pid not in {int(v.worker.rsplit(":", 4)[2]) for v in study.views.trials()}


def test_a_resume_with_one_job(sqlite_url, tmp_path):
    import automl

    found = automl.search(f"{FILE}:plane", **PARTS, storage=sqlite_url, trials=1)
    options = {"launcher": {"executor": "local", "folder": str(tmp_path / "shared")}}
    automl.resume("s", storage=sqlite_url, trials=2, launcher="slurm", options=options)
    assert found.study.views.counts().complete == 3
    assert list((tmp_path / "shared").glob("*/*.err"))


def test_ctrl_c_stops_the_jobs_of_a_search(sqlite_url):
    options = ("--launcher", "slurm", "-o", "launcher.executor=local", "--workers", "1")
    slow = ("--trials", "3", "-o", "trainer.seconds=60", "-o", "trainer.steps=200")
    process = search_command(sqlite_url, *options, *slow)
    wait_for(lambda: training(sqlite_url), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1].startswith("interrupted; continue with: automl resume s")
    study = open_study(Storage(sqlite_url), "s")
    assert (study.views.counts().open, study.ledger.holders()) == (1, set())
