"""A study in a shared database is data, not code: what another user must approve first."""

import os
import shutil
from pathlib import Path

import pytest
import tiny

import automl
from automl import UntrustedError, UsageError
from automl.registry import Kind, Registry
from automl.storage import Storage
from automl.studies import open_study
from automl.trust import Source, Trust, sha256, state_directory, trusting

PARTS = {"strategy": "random", "device": "cpu", "trials": 1, "study": "s"}
TRAINER = '''
from dataclasses import dataclass
from pathlib import Path

from automl import Report, Trainer


@dataclass(frozen=True)
class Reading(Trainer):
    """Reads a file, which another user's study must not make one do unasked."""

    table: Path

    def train(self, candidate, task, run):
        yield Report(1, {"score": float(self.table.read_text())})
'''


@pytest.fixture
def own(tmp_path) -> Path:
    """A user's file with a space, a task and a trainer."""
    return Path(shutil.copy(tiny.__file__, tmp_path / "mine.py"))


@pytest.fixture
def made(own, sqlite_url):
    """A study of that file, made by this user; its URL."""
    parts = {"task": f"{own}:Nothing", "trainer": f"{own}:Steps"}
    automl.search(f"{own}:plane", **parts, **PARTS, storage=sqlite_url)
    return sqlite_url


@pytest.fixture
def another_user(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_STATE_DIR", str(tmp_path / "another"))


def load(url: str, trust: Trust | None = None):
    return open_study(Storage(url), "s").load_parts(Registry(trust or Trust()))


# User files.
def test_what_a_user_ran_needs_no_approval_from_that_user(made):
    load(made)
    assert automl.resume("s", storage=made, trials=1).study.views.counts().complete == 2


def test_another_user_is_asked_first_and_runs_nothing(made, own, another_user, monkeypatch):
    with pytest.raises(UntrustedError) as caught:
        load(made)
    line = str(caught.value)
    assert str(own) in line
    assert "--trust-plugins" in line
    assert "\n" not in line
    assert caught.value.exit_code == 2


def test_naming_the_file_again_approves_it_for_good(made, own, another_user):
    load(made, trusting(False, [str(own)]))
    load(made)


def test_a_file_may_be_named_by_a_relative_path(made, own, another_user, monkeypatch):
    monkeypatch.chdir(own.parent)
    load(made, trusting(False, ["mine.py"]))


def test_naming_another_file_approves_nothing(made, another_user, tmp_path):
    with pytest.raises(UntrustedError):
        load(made, trusting(False, [str(tmp_path / "other.py")]))


def test_trusting_everything_passes(made, another_user):
    load(made, trusting(True, []))
    load(made)


def test_a_changed_file_is_refused_even_by_who_wrote_it(made, own):
    own.write_text(own.read_text() + "\n# changed\n")
    for trust in (Trust(), trusting(True, []), trusting(False, [str(own)])):
        with pytest.raises(UsageError, match=r"mine\.py has changed since the study was made"):
            load(made, trust)


def test_a_missing_file_is_named(made, own):
    own.unlink()
    with pytest.raises(UsageError, match=r"cannot read .*mine\.py: No such file"):
        load(made)


def test_the_study_stores_no_code_only_its_digest(made, own):
    spec = open_study(Storage(made), "s").spec
    assert spec.space.reference == f"{own}:plane"
    assert spec.space.sha256 == sha256(own.read_bytes())


def test_a_plugin_file_is_approved_like_any_other(own, sqlite_url, another_user, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import automl\nfrom automl_searchspaces.mlp import mlp\n\n"
        "@automl.hookimpl\ndef register_spaces():\n    return {'mine': mlp}\n"
    )
    given = {"task": f"{own}:Nothing", "trainer": f"{own}:Steps", "storage": sqlite_url}
    automl.search("mine", plugins=[str(plugin)], **given, **{**PARTS, "trials": 1})
    load(sqlite_url)
    shutil.rmtree(state_directory())
    with pytest.raises(UntrustedError, match=r"plugin\.py"):
        load(sqlite_url, trusting(False, [str(own)]))


# Paths among the options.
@pytest.fixture
def with_path(own, sqlite_url, tmp_path):
    own.write_text(own.read_text() + TRAINER)
    table = tmp_path / "table.txt"
    table.write_text("0.5")
    parts = {"task": f"{own}:Nothing", "trainer": f"{own}:Reading"}
    options = {"trainer": {"table": str(table)}}
    automl.search(f"{own}:plane", **parts, **PARTS, options=options, storage=sqlite_url)
    return sqlite_url, own, table


def test_a_path_needs_approval_too(with_path, another_user):
    url, own, table = with_path
    with pytest.raises(UntrustedError) as caught:
        load(url, trusting(False, [str(own)]))
    assert str(table) in str(caught.value)
    assert "trainer.table" in str(caught.value)
    load(url, trusting(False, [str(own), str(table)]))
    load(url)


def test_the_user_who_gave_the_path_goes_on(with_path):
    load(with_path[0])


# Approvals.
def test_approvals_are_of_content_not_of_a_name(tmp_path, another_user):
    trust = trusting(False, ["f.py"])
    trust.require(Source("f.py", "f.py", "1" * 64).claim(), "f.py", "f.py")
    Trust().require(Source("f.py", "f.py", "1" * 64).claim(), "f.py", "f.py")
    with pytest.raises(UntrustedError):
        Trust().require(Source("f.py", "f.py", "2" * 64).claim(), "f.py", "f.py")


def test_approvals_lie_in_the_state_directory(another_user, tmp_path):
    Trust(typed=True).require("code f.py 1", "f.py", "f.py")
    (approval,) = (tmp_path / "another" / "approved").iterdir()
    assert "code f.py 1" in approval.read_text()
    assert oct((tmp_path / "another" / "approved").stat().st_mode & 0o777) == oct(0o700)


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOML_STATE_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(automl.StorageError, match="AUTOML_STATE_DIR"):
        Trust(typed=True).require("code f.py 1", "f.py", "f.py")


def test_the_state_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("AUTOML_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "automl"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == Path(os.environ["HOME"]) / ".local/state/automl"


def test_a_named_copy_elsewhere_stands_in_for_a_file_that_is_not_here(tmp_path, monkeypatch):
    original = tmp_path / "here" / "space.py"
    original.parent.mkdir()
    original.write_text("def tiny(trial, task):\n    return None\n")
    reference, digest = f"{original}:tiny", sha256(original.read_bytes())
    copy = tmp_path / "there.py"
    original.rename(copy)
    monkeypatch.setenv("AUTOML_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(UsageError, match="--plugin FILE"):
        Registry(trusting(False, [])).find(Kind.SPACE, reference, digest)
    offer = Registry(trusting(False, [str(copy)])).find(Kind.SPACE, reference, digest)
    assert offer.source.path == str(copy)
