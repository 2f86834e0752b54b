"""`automl plugins new` writes working plugins, and `automl plugins check` detects broken ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from automl.plugin.registry import Kind
from automl.plugin.scaffold import Scaffold

LONG = "near-best-or-nearly-so-4"
"""A name of the greatest length allowed."""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with two new plugins of each kind, one of them with a long name."""
    folder = tmp_path_factory.mktemp("written")
    for kind in Kind:
        Scaffold(kind, f"my-{kind.value}").write(folder / kind.value)
        Scaffold(kind, LONG).write(folder / f"long-{kind.value}")
    return folder


def done(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_new_plugin_shows_the_next_steps(run, here):
    ended = run("plugins", "new", "near-best", "--kind", "strategy")
    assert (ended.code, ended.err) == (0, "")
    files, _, following = ended.out.partition("next:\n")
    assert all((here / file).is_file() for file in files.splitlines())
    assert "automl-near-best/automl_near_best/plugin.py" in files
    assert "automl search mlp --strategy near-best --trials 5" in following
    checked = run("plugins", "check", "automl-near-best/automl_near_best/plugin.py")
    assert (checked.code, checked.out) == (0, "strategy near-best: ok\n")


def test_it_is_written_to_the_given_folder(run, here):
    assert run("plugins", "new", "automl-sun", "--kind", "task", "--dir", "a/b").code == 0
    assert (here / "a/b/automl_sun/plugin.py").is_file()
    assert '"task.sun" = "automl_sun.plugin"' in (here / "a/b/pyproject.toml").read_text()


def test_nothing_is_overwritten(run, here):
    for taken in ("automl-sun", "file"):
        (here / taken).mkdir() if taken == "automl-sun" else (here / taken).touch()
        ended = run("plugins", "new", "sun", "--kind", "task", "--dir", taken)
        assert (ended.code, ended.out) == (2, "")
        assert f"{taken} already exists: choose a new folder" in ended.err
    assert list((here / "automl-sun").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("Sun", "task", "invalid plugin name 'Sun': use at most 24 lowercase letters"),
        ("3d", "task", "starting with a letter"),
        ("a--b", "task", "single hyphens"),
        ("../up", "task", "invalid plugin name '../up'"),
        ("x" * 25, "task", "at most 24"),
        ("", "task", "invalid plugin name ''"),
        ("plugins", "task", "automl_plugins is a package of automl:"),
        ("digits", "task", "task 'digits' already exists"),
        ("search", "command", "command 'search' already exists"),
        ("sun", "tsak", "unknown kind of plugin 'tsak': did you mean 'task'"),
    ],
)
def test_an_invalid_name_is_reported_in_one_line(run, here, name, kind, says):
    before = sorted(here.iterdir())
    ended = run("plugins", "new", "--kind", kind, "--", name)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1
    assert sorted(here.iterdir()) == before


def test_an_unwritable_folder_is_reported_in_one_line(run, here):
    (here / "file").touch()
    ended = run("plugins", "new", "sun", "--kind", "task", "--dir", "file/sun")
    assert (ended.code, ended.out) == (2, "")
    assert "cannot write file/sun: Not a directory" in ended.err


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_a_new_plugin_passes_its_check(run, written, kind):
    file = written / kind.value / f"automl_my_{kind.value}" / "plugin.py"
    (event,) = run("plugins", "check", str(file), "--json").events
    listens = kind in (Kind.COMMAND, Kind.EVENT)
    name = "plugin.py" if listens else f"my-{kind.value}"
    assert event == {"kind": kind.value, "name": name, "ok": True, "error": None}


def test_the_tests_of_new_plugins_pass(written):
    folders = [written / kind.value for kind in Kind]
    path = os.pathsep.join(map(str, folders))
    options = ("-q", "--import-mode=importlib", "-p", "no:cacheprovider", f"--rootdir={written}")
    ended = done("-m", "pytest", *options, *map(str, folders), PYTHONPATH=path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("tool", [("check",), ("format", "--check")], ids=" ".join)
def test_new_plugins_are_clean(written, tool):
    pytest.importorskip("ruff")
    ended = done("-m", "ruff", *tool, "--no-cache", str(written))
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.long
def test_new_plugins_are_typed(written):
    pytest.importorskip("mypy")
    for kind in Kind:
        folder = written / kind.value
        package = folder / f"automl_my_{kind.value}"
        ended = done("-m", "mypy", "--strict", str(package), str(folder / "tests"))
        assert ended.returncode == 0, ended.stdout + ended.stderr


# Checking.
@pytest.mark.parametrize("name", ["pruner.asha", "strategy.random", "strategy.qmc"])
def test_an_installed_plugin_is_checked_by_its_name(run, name):
    ended = run("plugins", "check", name)
    assert (ended.code, ended.out) == (0, f"{name.replace('.', ' ')}: ok\n")


def test_the_space_and_task_of_a_check_can_be_chosen(run):
    options = ("-o", "trainer.epochs=2", "-o", "space.max_layers=1")
    assert run("plugins", "check", "trainer.supervised", *options).out.endswith(": ok\n")
    ended = run("plugins", "check", "space.cnn", "--task", "diabetes")
    assert ended.code == 1
    assert "space cnn: FAILED: " in ended.out
    ended = run("plugins", "check", "pruner.asha", "-o", "pruner.min_steps=x")
    assert ended.code == 1
    assert "'min_steps'" in ended.out


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "asha",
            "expected FILE.py, FILE.py:NAME or the KIND.NAME of an installed plugin, got 'asha'",
        ),
        ("pruner.asah", "unknown pruner 'asah': did you mean 'asha'"),
        ("prunr.asha", "unknown kind of plugin 'prunr': did you mean 'pruner'"),
        ("event.log", "unknown event 'log'"),
        ("none.py", "cannot read none.py"),
    ],
)
def test_a_missing_plugin_is_a_usage_error(run, what, says):
    ended = run("plugins", "check", what)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err


LISTENERS = """
import click
import automl
IMPORT

@click.command("COMMAND")
def command():
    '''HELP'''

@automl.hookimpl
def register_commands(cli):
    cli.add_command(command)

@automl.hookimpl
def trial_finished(number, outcome):
    LOG
"""


def listeners(here, **parts):
    sound = {"IMPORT": "", "COMMAND": "rank", "HELP": "Rank.", "LOG": "open('log', 'a')"}
    text = LISTENERS
    for word, value in {**sound, **parts}.items():
        text = text.replace(word, value)
    (here / "mine.py").write_text(text)


def test_commands_and_events_of_a_file_are_checked(run, here):
    listeners(here)
    ended = run("plugins", "check", "mine.py")
    assert (ended.code, ended.out) == (0, "command mine.py: ok\nevent mine.py: ok\n")
    assert not (here / "log").exists()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"IMPORT": "import torch"}, "import torch in the command, not at the top"),
        ({"COMMAND": "search"}, "automl has a command 'search' of its own"),
        ({"HELP": ""}, "command 'rank' must have a help text"),
        ({"LOG": "outcome.values[0]"}, "trial_finished raised TypeError"),
    ],
)
def test_broken_commands_and_events_are_named(run, here, parts, says):
    listeners(here, **parts)
    ended = run("plugins", "check", "mine.py")
    assert ended.code == 1
    assert says in ended.out


def test_a_file_whose_names_are_installed_can_be_checked(run, here):
    (here / "mine.py").write_text(
        "import automl, optuna\n\n@automl.hookimpl\ndef register_pruners():\n"
        "    return {'median': optuna.pruners.MedianPruner}\n"
    )
    assert run("plugins", "check", "mine.py").out == "pruner median: ok\n"
