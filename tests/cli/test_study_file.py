"""Study files, which save a search's arguments, and warm starts on the command line."""

import io
import tomllib

import pytest
from commands import CORNER, FILE, PARTS, PLANE, study

SHORT = f"""
space = "{PLANE}"
task = "{FILE}:Nothing"
trainer = "{FILE}:Steps"
strategy = "random"
trials = 3
study = "s"
objective = ["score", "cost"]
require = "cost<=0.9"

[options.trainer]
steps = 2
"""


@pytest.fixture
def file(here):
    (here / "s.toml").write_text(SHORT, encoding="utf-8")
    return here / "s.toml"


def test_a_file_can_set_all_options_of_the_command_line(run, file):
    ended = run("search", "s.toml", "--json")
    assert ended.code == 0, ended.err
    first = ended.events[0]
    assert (first["study"], first["trials"], first["space"]) == ("s", 3, PLANE)
    assert [each["metric"] for each in first["objectives"]] == ["score", "cost"]
    assert first["requirements"] == ["cost <= 0.9"]
    assert {event["step"] for event in ended.of("report")} == {1, 2}


def test_the_command_line_overrides_the_file(run, file):
    line = ("--trials", "2", "--study", "t", "-o", "trainer.steps=1", "--objective", "score")
    ended = run("search", "s.toml", "--json", *line)
    first = ended.events[0]
    assert (first["study"], first["trials"]) == ("t", 2)
    assert [each["metric"] for each in first["objectives"]] == ["score"]
    assert {event["step"] for event in ended.of("report")} == {1}


def test_the_command_line_adds_to_the_files_options(run, file):
    run("search", "s.toml", "-o", "trainer.seconds=0.01")
    assert study("s").spec.trainer.options == {"steps": 2, "seconds": 0.01}


def test_a_saved_file_gives_the_same_search(run, here):
    line = ("--trials", "4", "--seed", "7", "--no-cache", "-o", "trainer.steps=2", "--study", "a")
    more = ("--objective", "cost", "--require", "score>=-9", "--timeout", "10m")
    assert run("search", CORNER, *PARTS, *line, *more, "--save", "a.toml").code == 0
    saved = tomllib.loads((here / "a.toml").read_text())
    assert saved["options"] == {"trainer": {"steps": 2}}
    assert (saved["cache"], saved["seed"], saved["timeout"]) == (False, 7, "10m")
    assert "study" not in saved
    assert run("search", "a.toml", "--study", "b").code == 0
    a, b = study("a"), study("b")
    assert [t.params for t in a.optuna.trials] == [t.params for t in b.optuna.trials]
    for name in ("space", "task", "trainer", "strategy", "objectives", "requirements", "cache"):
        assert getattr(a.spec, name) == getattr(b.spec, name)


def test_a_dry_run_saves_and_starts_nothing(run, here):
    assert run("search", PLANE, *PARTS, "--dry-run", "--save", "a.toml").code == 0
    assert (here / "a.toml").exists()
    assert run("studies", "--json").out == ""


class Piped(io.BytesIO):
    name = "<stdin>"


def test_a_queue_from_standard_input_is_not_saved(run, here, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Piped(b'{"x": 0.5}'), encoding="utf-8"))
    line = ("--enqueue", "-", "--workers", "2", "--dry-run", "--save", "a.toml")
    ended = run("search", PLANE, *PARTS, *line)
    assert ended.code == 0, ended.err
    saved = tomllib.loads((here / "a.toml").read_text())
    assert "enqueue" not in saved
    assert saved["workers"] == 2
    assert "options" not in saved
    assert "a.toml does not contain --enqueue, which was read from standard input" in ended.err


def test_a_file_overrides_the_environment(run, here, monkeypatch):
    (here / "d.toml").write_text('space = "mlp"\ndata-dir = "mine"')
    monkeypatch.setenv("AUTOML_DATA_DIR", "theirs")
    line = ("--task", "fashion-mnist", "--dry-run")
    assert "mine" in run("search", "d.toml", *line).err
    assert "theirs" in run("search", "mlp", *line).err


def test_an_invalid_study_leaves_no_file(run, here):
    run("search", PLANE, *PARTS, "--trials", "1", "--study", "s")
    ended = run("search", PLANE, *PARTS, "--trials", "1", "--study", "s", "--save", "a.toml")
    assert ended.code == 2
    assert not (here / "a.toml").exists()
    assert "there is no folder" in run("search", PLANE, *PARTS, "--save", "no/a.toml").err


def test_other_formats(run):
    assert "study files are TOML" in run("search", "study.yaml").err


def test_a_password_is_not_saved(run, here):
    url = "postgresql://me:s3cret@127.0.0.1:1/x"
    line = ("--storage", url, "--dry-run", "--save", "a.toml")
    ended = run("search", PLANE, *PARTS, *line)
    assert ended.code == 0, ended.err
    assert "127.0.0.1" not in (here / "a.toml").read_text()
    assert "a.toml does not contain --storage, which has a password" in ended.err


def test_nothing_is_overwritten(run, file):
    ended = run("search", PLANE, *PARTS, "--trials", "1", "--study", "t", "--save", "s.toml")
    assert (ended.code, ended.err) == (2, "error: --save: s.toml exists: choose another\n")
    assert file.read_text() == SHORT
    assert run("show", "t").code == 2


BAD = {
    "no file": (None, "cannot read study file x.toml: No such file"),
    "no TOML": ("space = ", "x.toml is not valid TOML: Invalid value (at end of document)"),
    "binary": ("\x00", "study file x.toml is not valid TOML"),
    "no space": ("trials = 3", "names no space: add a line such as space ="),
    "key": ('space = "mlp"\ntrails = 3', "study file 'trails': did you mean 'trials'"),
    "trust": ('space = "mlp"\ntrust-storage = true', "unknown key in study file 'trust-storage'"),
    "flag": ('space = "mlp"\ncache = "no"', "cache: expected true or false, got 'no'"),
    "several": ('space = "mlp"\ntrials = [1, 2]', "trials: expected one value, got [1, 2]"),
    "number": ('space = "mlp"\ntrials = true', "trials: expected text or numbers, got True"),
    "word": ('space = "mlp"\ntrials = "many"', "'many' is not a valid integer"),
    "options": ('space = "mlp"\noptions = 3', "expected tables such as [options.task]"),
    "part": ('space = "mlp"\n[options.trainr]\nx = 1', "'trainr': did you mean 'trainer'"),
    "option": ('space = "mlp"\n[options.trainer]\nepochs = "x"', "epochs: expected int, got 'x'"),
    "date": ('space = "mlp"\n[options.trainer]\nepochs = 2020-01-01', "epochs"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_invalid_files_are_reported(run, here, text, said):
    if text is not None:
        (here / "x.toml").write_text(text)
    ended = (
        run("search", "x.toml", "--trials", "1")
        if "many" not in str(text)
        else run("search", "x.toml")
    )
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_search_starts_from_another(run):
    run("search", PLANE, *PARTS, "--trials", "6", "--study", "old")
    ended = run("search", PLANE, *PARTS, "--trials", "2", "--study", "new", "--from", "old")
    assert ended.code == 0
    best = study("old").optuna.best_params
    assert study("new").optuna.trials[0].params == best
    ended = run("search", CORNER, *PARTS, "--trials", "2", "--from", "old")
    assert (ended.code, "--from old: it searched space" in ended.err) == (2, True)


def test_the_front_as_a_table(run):
    objectives = ("--objective", "score", "--objective", "cost")
    said = run("search", PLANE, *PARTS, *objectives, "--trials", "8", "--study", "m").out
    assert "automl best m --pareto" in said
    head, names, *rows = run("best", "m", "--pareto").out.splitlines()
    front = study("m").best_trials()
    which = "these" if front[1:] else "this"
    assert head == f"m: maximize score, minimize cost; no other trial beats {which}"
    assert names.split() == ["trial", "score", "cost"]
    assert [int(row.split()[0]) for row in rows] == [trial.number for trial in front]
    scores = [float(row.split()[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--pareto", "--trial", "1"),
            "a table of trials: leave out --pareto or --trial",
        ),
        (("--pareto", "--export", "d"), "leave out --pareto or --export"),
        (("--refit",), "--refit needs --export DIR"),
        (("--force",), "--force needs --export DIR"),
    ],
)
def test_conflicting_options_of_best_are_refused(run, options, said):
    ended = run("best", "s", *options)
    assert (ended.code, said in ended.err) == (2, True)
