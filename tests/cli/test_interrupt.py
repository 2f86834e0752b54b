"""Ctrl-C once stops a search at the next tick, twice at once; nothing is lost either way."""

import signal
import time

import pytest
import tiny
from commands import PARTS, PLANE, all_dead, started, study, training, wait_for

SLOW = ("-o", "trainer.seconds=60", "-o", "trainer.steps=200")
STUCK = ("-o", "trainer.seconds=60", "-o", "trainer.steps=1")
RESUME = "continue with: automl resume 'my s'"


def results(name):
    return [(t.number, t.state, t.params, t.values) for t in study(name).optuna.trials]


@pytest.mark.parametrize("json", [(), ("--json",)], ids=["plain", "json"])
def test_ctrl_c_once_and_resume_give_the_results_of_an_uninterrupted_search(run, monkeypatch, json):
    assert run("search", PLANE, *PARTS, "--trials", "6", "--study", "undisturbed").code == 0
    monkeypatch.setenv(tiny.INTERRUPT, "2:2")
    ended = run("search", PLANE, *PARTS, "--trials", "6", "--study", "my s", *json)
    assert ended.code == 130
    assert ended.err == f"interrupted; {RESUME}\n"
    counts = study("my s").views.counts()
    assert (counts.complete, counts.failed, counts.open) == (2, 0, 1)
    if json:
        summary = ended.events[-1]
        assert (summary["event"], summary["complete"], summary["open"]) == ("summary", 2, 1)
    monkeypatch.delenv(tiny.INTERRUPT)
    assert run("resume", "my s").code == 0
    assert results("my s") == results("undisturbed")
    assert study("my s").views.counts().trials == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_one_signal_stops_two_workers_at_the_next_tick(here, run, number):
    options = (*SLOW, "--trials", "3", "--workers", "2", "--study", "my s")
    with started(here, "search", PLANE, *PARTS, *options) as command:
        workers = wait_for(lambda: len(t := _training()) == 2 and t)
        command.send(number)
        ended = command.wait(20)
    assert ended.code == 130
    assert ended.err.endswith(f"{RESUME}\n")
    assert len(ended.err.splitlines()) == 1, ended.err
    assert all_dead(workers)
    counts = study("my s").views.counts()
    assert (counts.trials, counts.failed, counts.open) == (0, 0, 2)
    assert not study("my s").ledger.holders()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_twice_ends_at_once(here, workers):
    options = (*STUCK, "--trials", "3", "--workers", workers, "--study", "my s")
    with started(here, "search", PLANE, *PARTS, *options) as command:
        busy = wait_for(lambda: len(t := _training()) == int(workers) and t)
        command.send(signal.SIGINT)
        time.sleep(0.5)
        assert command.process.is_alive()
        command.send(signal.SIGINT)
        ended = command.wait(20)
    assert ended.code == 130
    assert ended.err.endswith(f"{RESUME}\n")
    assert "Traceback" not in ended.err
    assert all_dead(busy)


def test_a_trial_ended_at_once_is_finished_under_its_own_number(here, run, monkeypatch):
    file = here / "mine.py"
    file.write_text(WAITS)
    parts = (*PARTS[:2], "--trainer", "mine.py:Waits", "--strategy", "random")
    arguments = ("search", PLANE, *parts, "--trials", "4", "--study", "my s")
    with started(here, *arguments, MINE_WAITS="1") as command:
        wait_for((here / "waiting").exists)
        for _ in range(2):
            command.send(signal.SIGINT)
            time.sleep(0.3)
        assert command.wait(20).code == 130
    assert run("resume", "my s").code == 0
    views = study("my s").views.trials()
    assert [view.number for view in views] == [0, 1, 2, 3]
    assert [view.attempt for view in views] == [1, 2, 1, 1]
    assert study("my s").views.counts().complete == 4


def test_an_interrupted_worker_shows_how_to_join_again(here, run):
    assert run("search", PLANE, *PARTS, "--trials", "1", "--study", "my s", *SLOW[2:]).code == 0
    study("my s").ledger.extend(1, None, None)
    with started(here, "worker", "my s", TINY_INTERRUPT="1:2") as command:
        ended = command.wait()
    assert ended.code == 130
    assert "join again with: automl worker 'my s'" in ended.err
    assert (study("my s").views.counts().failed, study("my s").views.counts().open) == (0, 1)


def test_a_worker_reports_what_it_joins_and_when_it_is_done(here, run):
    assert run("search", PLANE, *PARTS, "--trials", "1", "--study", "my s").code == 0
    study("my s").ledger.extend(1, None, None)
    (here / "worker").mkdir()
    url = f"sqlite:///{here / 'automl.db'}"
    with started(here / "worker", "worker", "my s", "--storage", url) as command:
        ended = command.wait()
    assert ended.code == 0, ended.err
    assert "joins study my s on cpu" in ended.out
    assert "nothing is left to do" in ended.out


WAITS = """
import os, time
from pathlib import Path
from automl import Report, Trainer

class Waits(Trainer):
    def train(self, candidate, task, run):
        if run.number == 1 and "MINE_WAITS" in os.environ:
            Path("waiting").touch()
            time.sleep(60)
        yield Report(1, {"score": candidate.hyperparameters["x"], "cost": 0.0})
"""


def _training():
    return training("my s", "sqlite:///automl.db")
