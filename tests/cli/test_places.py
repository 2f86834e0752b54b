"""Each worker is bound to one device, which is shown with its name on the machine."""

import os

import pytest
from commands import PARTS, PLANE, started, study

REPORTING = """
import os, time
from pathlib import Path
from automl import Report, Trainer

class Reporting(Trainer):
    def train(self, candidate, task, run):
        sees = os.environ.get("CUDA_VISIBLE_DEVICES")
        threads = os.environ.get("OMP_NUM_THREADS")
        with Path("reports").open("a") as file:
            file.write(f"{os.getpid()} {run.device} {sees} {threads}\\n")
        # The first worker waits for the others, so that each has a trial.
        for _ in range(600):
            if len({line.split()[0] for line in Path("reports").open()}) >= int(os.environ["MINE"]):
                break
            time.sleep(0.1)
            run.tick()
        yield Report(1, {"score": candidate.hyperparameters["x"], "cost": 0.0})
"""


@pytest.fixture
def reporting(here, monkeypatch):
    (here / "mine.py").write_text(REPORTING)
    monkeypatch.setenv("MINE", "1")
    return (*PARTS[:2], "--trainer", "mine.py:Reporting", "--strategy", "random", "--study", "s")


def reported(here):
    lines = [line.split() for line in (here / "reports").read_text().splitlines()]
    return {int(pid): tuple(rest) for pid, *rest in lines}


def test_each_process_sees_only_its_gpu_and_is_shown_with_the_machines_number(here, reporting):
    options = ("--trials", "6", "--workers", "auto", "--per-device", "1")
    environment = {"CUDA_VISIBLE_DEVICES": "2,3", "MINE": "2"}
    with started(here, "search", PLANE, *reporting, *options, **environment) as command:
        ended = command.wait()
    assert ended.code == 0, ended.err
    views = study("s").views.trials()
    assert {view.device for view in views} == {"cuda:2", "cuda:3"}
    pids = {int(view.worker.rsplit(":", 4)[2]): view.device for view in views}
    for pid, (device, sees, _) in reported(here).items():
        assert (device, f"cuda:{sees}") == ("cuda:0", pids[pid])


def test_workers_share_the_cores(here, reporting):
    options = ("--trials", "4", "--workers", "2", "--device", "cpu")
    with started(
        here, "search", PLANE, *reporting, *options, OMP_NUM_THREADS="", MINE="2"
    ) as command:
        own, ended = command.process.pid, command.wait()
    assert ended.code == 0, ended.err
    (threads,) = {given for pid, (*_, given) in reported(here).items() if pid != own}
    assert 1 <= int(threads) <= max(1, (os.cpu_count() or 1) // 2)


def test_a_worker_started_by_hand_binds_itself(here, reporting, run):
    assert run("search", PLANE, *reporting, "--trials", "1", "--device", "cpu").code == 0
    (here / "reports").unlink()
    study("s").ledger.extend(1, None, None)
    (here / "worker").mkdir()
    options = ("--device", "cuda:3", "--memory-fraction", "0.5", "--plugin", str(here / "mine.py"))
    url = f"sqlite:///{here / 'automl.db'}"
    arguments = ("worker", "s", *options, "--storage", url)
    with started(here / "worker", *arguments, CUDA_VISIBLE_DEVICES="2,3") as command:
        ended = command.wait()
    assert ended.code == 0, ended.err
    assert "joins study s on cuda:3" in ended.out
    assert [(d, sees) for d, sees, _ in reported(here / "worker").values()] == [("cuda:0", "3")]
    shown = run("show", "s", "--trial", "1")
    assert "cuda:3" in shown.out
    assert run("show", "s", "--trial", "1", "--json").of("trial")[0]["device"] == "cuda:3"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--workers", "2", "--per-device", "2"), "--per-device needs --workers auto"),
        (
            ("--workers", "auto", "--per-device", "0"),
            "--per-device: expected a number of at least 1",
        ),
        (("--device", "cuda:7"), "no device 'cuda:7': expected auto or cuda:2 or cpu"),
    ],
)
def test_impossible_devices_are_reported_before_a_study_is_created(run, monkeypatch, options, says):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    ended = run("search", PLANE, *PARTS, *options, "--study", "s")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert says in ended.err
    assert "no studies" in run("studies").out


@pytest.mark.parametrize("share", ["0", "1.5", "half"])
def test_a_share_of_memory_is_a_number_up_to_one(run, share):
    assert run("worker", "s", "--memory-fraction", share).code == 2


# --dry-run
def test_a_dry_run_shows_what_would_be_started_and_creates_nothing(here, run, monkeypatch):
    (here / "automl.db").unlink()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ended = run("search", PLANE, *PARTS, "--workers", "3", "--dry-run")
    assert ended.code == 0, ended.err
    first, own, second, third = ended.out.splitlines()
    assert first == "nothing was started; without --dry-run, this would start:"
    assert own == "worker 0: this process itself, on cuda:2"
    assert "CUDA_VISIBLE_DEVICES=3" in second
    assert second.endswith("-P -m automl worker --device cuda:3 -- STUDY")
    assert third.endswith("--device cuda:2 --memory-fraction 0.5 -- STUDY")
    assert not (here / "automl.db").exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_a_dry_run_for_programs(run):
    arguments = (*PARTS, "--workers", "2", "--device", "cpu", "--study", "my s", "--dry-run")
    own, other = run("search", PLANE, *arguments, "--json").events
    assert own == {"event": "worker", "index": 0, "device": "cpu", "text": None}
    assert other["text"].endswith("worker --device cpu -- 'my s'")


def test_a_dry_run_of_a_resume_changes_no_budget(run):
    assert run("search", PLANE, *PARTS, "--trials", "1", "--study", "s").code == 0
    ended = run("resume", "s", "--trials", "5", "--workers", "2", "--dry-run")
    assert (ended.code, len(ended.out.splitlines())) == (0, 3)
    assert study("s").views.budget().trials == 1


def test_a_dry_run_shows_no_password(run, monkeypatch):
    monkeypatch.setenv("AUTOML_STORAGE", "postgresql://me:secret@127.0.0.1:1/none")
    ended = run("search", PLANE, *PARTS, "--workers", "2", "--dry-run")
    assert ended.code == 0, ended.err
    assert "secret" not in ended.out + ended.err
