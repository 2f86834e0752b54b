"""A study in a shared database is data, not code: another user must first approve its code."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny

import automl
from automl import PluginError, UntrustedError, UsageError
from automl.plugin.recipe import approved
from automl.plugin.registry import Kind, Registry
from automl.plugin.trust import Code, Source, Trust, sha256, state_directory, trusting
from automl.storage.storage import Storage
from automl.study.study import open_study

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
def test_code_that_a_user_ran_needs_no_approval_from_that_user(made):
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


def test_naming_the_file_again_approves_it_permanently(made, own, another_user):
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


def test_a_changed_file_is_refused_even_for_its_author(made, own):
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
    assert spec.space.code.sha256 == sha256(own.read_bytes())


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


# A study that an attacker planted, with other names in approved files.
def plant(url: str, **changes) -> None:
    """Change the stored spec, as anyone who can write to the database could."""
    study = open_study(Storage(url), "s").optuna
    spec = study.user_attrs["automl"]
    study.set_user_attr("automl", spec | changes)


@pytest.mark.parametrize(("kind", "name"), [("pruner", "Steps"), ("trainer", "Nothing")])
def test_an_approval_covers_only_the_names_that_were_used(made, own, kind, name):
    code = {"sha256": sha256(own.read_bytes()), "beside": {}}
    part = {"reference": f"{own}:{name}", "options": {}, "code": code, "files": {}}
    plant(made, **{kind: part})
    with pytest.raises(UntrustedError, match=r"mine\.py"):
        load(made)


def test_an_approved_file_is_not_approved_as_a_plugin(made, own):
    code = {"sha256": sha256(own.read_bytes()), "beside": {}}
    plant(made, plugins=[{"reference": str(own), "options": {}, "code": code, "files": {}}])
    with pytest.raises(UntrustedError, match=r"mine\.py"):
        load(made)


def test_imported_names_are_not_a_files_own_even_if_everything_is_trusted(own, made, tmp_path):
    own.write_text(own.read_text() + "\nfrom subprocess import Popen\n")
    ran = tmp_path / "ran"
    options = {"args": ["touch", str(ran)]}
    code = {"sha256": sha256(own.read_bytes()), "beside": {}}
    part = {"reference": f"{own}:Popen", "options": options, "code": code, "files": {}}
    plant(made, **dict.fromkeys(("space", "task", "trainer", "pruner"), part))
    for trust in (Trust(), trusting(True, []), trusting(False, [str(own)])):
        with pytest.raises((PluginError, UntrustedError)):
            load(made, trust)
    assert not ran.exists()


def test_a_spec_that_names_code_without_its_digest_is_damaged(made, own):
    part = {"reference": f"{own}:plane", "options": {}, "code": None, "files": {}}
    plant(made, space=part)
    with pytest.raises(automl.StorageError, match="has no SHA-256"):
        load(made, trusting(True, []))


# Files that the user's file imports from its folder.
SPACE = """
from HELPER import near
from automl import Candidate


def space(trial, task):
    import HELPER_late
    return Candidate(lambda: None, {"x": near(trial)})
"""
HELPER = """
import HELPER_inner


def near(trial):
    return trial.suggest_float("x", *HELPER_inner.BOUNDS)
"""


@pytest.fixture
def beside(own, sqlite_url, tmp_path, request):
    """A study of a file that imports others; returns its URL and their names."""
    helper = f"helper_{abs(hash(request.node.name))}"
    texts = {"": HELPER, "_inner": "BOUNDS = -1.0, 1.0", "_late": "", "_unused": ""}
    for name, text in texts.items():
        (tmp_path / f"{helper}{name}.py").write_text(text.replace("HELPER", helper))
    (tmp_path / "near.py").write_text(SPACE.replace("HELPER", helper))
    parts = {"task": f"{own}:Nothing", "trainer": f"{own}:Steps"}
    automl.search(f"{tmp_path / 'near.py'}:space", **parts, **PARTS, storage=sqlite_url)
    return sqlite_url, helper


def test_files_imported_from_the_same_folder_are_stored_and_approved(beside, another_user, own):
    url, helper = beside
    names = [f"{helper}{name}.py" for name in ("", "_inner", "_late")]
    assert list(open_study(Storage(url), "s").spec.space.code.beside) == sorted(names)
    load(url, trusting(False, [str(own), str(own.parent / "near.py")]))
    load(url)


@pytest.mark.parametrize("name", ["", "_inner", "_late"])
def test_a_changed_imported_file_is_named_before_anything_runs(beside, tmp_path, name):
    url, helper = beside
    path = tmp_path / f"{helper}{name}.py"
    path.write_text(path.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UsageError, match=rf"{path} has changed since the study was made"):
        load(url, trusting(True, []))
    path.unlink()
    with pytest.raises(UsageError, match=rf"{path} has changed .*no such file"):
        load(url, trusting(True, []))
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_imported_may_change(beside, tmp_path):
    url, helper = beside
    (tmp_path / f"{helper}_unused.py").write_text("x = 1")
    load(url)


def test_imported_files_are_part_of_the_identity(beside, tmp_path):
    url, _ = beside
    spec = open_study(Storage(url), "s").spec.space
    code = load(url).side_keys["space"]["code"]
    assert code != spec.code.sha256
    assert code == spec.code.digest()


def test_two_files_of_one_name_are_an_error_that_names_both(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_helper.py").write_text(f"x = {folder!r}")
        (tmp_path / folder / "own.py").write_text("import same_helper\ndef f(trial, task): ...\n")
    Registry().find(Kind.SPACE, f"{tmp_path / 'one' / 'own.py'}:f")
    with pytest.raises(PluginError, match=r"two/same_helper\.py, but another .*one/same_helper"):
        Registry().find(Kind.SPACE, f"{tmp_path / 'two' / 'own.py'}:f")


def test_an_imported_file_that_changed_in_a_running_python_is_named(tmp_path):
    (tmp_path / "moving_helper.py").write_text("x = 1")
    (tmp_path / "own.py").write_text("import moving_helper\ndef f(trial, task): ...\n")
    Registry().find(Kind.SPACE, f"{tmp_path / 'own.py'}:f")
    (tmp_path / "moving_helper.py").write_text("x = 2")
    with pytest.raises(UsageError, match="has changed since this process loaded it"):
        Registry().find(Kind.SPACE, f"{tmp_path / 'own.py'}:f")


def test_a_module_imports_from_its_package(tmp_path, monkeypatch):
    package = tmp_path / "beside_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("from . import deep\nfrom .deep import f as g\ndef f(): ...")
    (package / "deep.py").write_text("def f(): ...")
    (tmp_path / "beside_outside.py").write_text("")
    monkeypatch.chdir(tmp_path)
    offer = Registry().find(Kind.SPACE, "beside_package.inner:f")
    assert list(offer.source.code.beside) == [
        "beside_package/__init__.py",
        "beside_package/deep.py",
    ]


def test_nothing_is_put_on_the_path_before_it_is_approved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "unapproved.py").write_text("def f(trial, task): ...")
    for reference in ("unapproved:f", f"{tmp_path / 'unapproved.py'}:f"):
        with pytest.raises(UntrustedError):
            Registry(Trust()).find(Kind.SPACE, reference)
    assert str(tmp_path) not in sys.path
    Registry().find(Kind.SPACE, "unapproved:f")
    assert str(tmp_path) in sys.path


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


def test_the_user_who_gave_the_path_can_continue(with_path):
    load(with_path[0])


def test_a_file_among_the_options_that_changed_is_named(with_path):
    url, _, table = with_path
    table.write_text("0.75")
    with pytest.raises(UsageError, match=rf"{table}, an option of trainer .* has changed since"):
        load(url)


def test_a_file_among_the_options_counts_by_its_content(with_path, tmp_path):
    url, _, table = with_path
    options = load(url).side_keys["trainer"]["options"]
    assert options == {"table": sha256(table.read_bytes())}


def test_a_tasks_paths_do_not_count_because_its_digest_does(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from pathlib import Path\ndef task(*, data_dir: Path | None = None, n: int = 1): ...\n"
    )
    for value in (None, str(tmp_path)):
        part = Registry().build(Kind.TASK, f"{own}:task", {"data_dir": value})
        assert part.identity()["options"] == {"n": 1}


def test_paths_within_lists_need_approval_too(own, sqlite_url, tmp_path, another_user):
    own.write_text(own.read_text() + TRAINER.replace("table: Path", "tables: list[Path | int]"))
    part = Registry().build(Kind.TRAINER, f"{own}:Reading", {"tables": [str(tmp_path), 3]})
    assert part.paths() == [("tables", str(tmp_path))]
    trust = trusting(False, [str(own)])
    part = Registry(trust).build(Kind.TRAINER, f"{own}:Reading", {"tables": [str(tmp_path), 3]})
    with pytest.raises(UntrustedError, match=r"trainer\.tables"):
        approved(part, Kind.TRAINER, Registry(trust))


# Approvals.
def test_approvals_cover_content_not_names(tmp_path, another_user):
    trust = trusting(False, ["f.py"])
    one, two = (Source("f.py", "f.py", Code(n * 64)) for n in "12")
    trust.require(one.claim("space", "f"), "f.py", "f.py")
    Trust().require(one.claim("space", "f"), "f.py", "f.py")
    for other in (two.claim("space", "f"), one.claim("space", "g"), one.claim("pruner", "f")):
        with pytest.raises(UntrustedError):
            Trust().require(other, "f.py", "f.py")


def test_approvals_are_stored_in_the_state_directory(another_user, tmp_path):
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


def test_a_named_copy_replaces_a_file_that_does_not_exist_here(tmp_path, monkeypatch):
    original = tmp_path / "here" / "space.py"
    original.parent.mkdir()
    original.write_text("def tiny(trial, task):\n    return None\n")
    reference, digest = f"{original}:tiny", Code(sha256(original.read_bytes()))
    copy = tmp_path / "there.py"
    original.rename(copy)
    monkeypatch.setenv("AUTOML_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(UsageError, match="--plugin FILE"):
        Registry(trusting(False, [])).find(Kind.SPACE, reference, digest)
    offer = Registry(trusting(False, [str(copy)])).find(Kind.SPACE, reference, digest)
    assert offer.source.path == str(copy)
