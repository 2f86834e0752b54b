"""State files are private to the user, whatever the umask is."""

import os
import stat
from pathlib import Path

import pytest
import tiny

import automl
from automl.plugin.trust import trusting
from automl.state_directory import artifacts_directory, make_folder, private, state_directory
from automl.storage.storage import Storage
from automl.study.study import open_study

FILE = str(Path(tiny.__file__))
PARTS = {"task": f"{FILE}:Nothing", "trainer": f"{FILE}:Steps", "strategy": "random"}


@pytest.fixture(params=[0o000, 0o022, 0o777])
def state(tmp_path, monkeypatch, request) -> Path:
    monkeypatch.setenv("AUTOML_STATE_DIR", str(tmp_path / "made" / "state"))
    (tmp_path / "made").mkdir()
    before = os.umask(request.param)
    yield tmp_path / "made" / "state"
    os.umask(before)


def open_to_others(state: Path) -> list[str]:
    """List the files and folders whose mode is neither 0700 nor 0600."""
    found = []
    for path in (state, *state.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found.append(f"{path} {mode:o}")
    return found


def write(file: Path) -> None:
    make_folder(file.parent)
    with open(file, "a", opener=private) as opened:
        opened.write("x")


def test_new_files_and_folders_are_private(state):
    write(artifacts_directory() / "a" / "b" / "file")
    trusting(True, ()).require("a claim", "it", "name")
    assert len(list(state.rglob("*"))) == 6
    assert open_to_others(state) == []


def test_existing_files_and_folders_are_made_private(state):
    os.umask(0)
    for folder in (state, state / "logs", state / "logs" / "a"):
        folder.mkdir(mode=0o777)
    (state / "logs" / "a" / "worker-1.log").touch(mode=0o666)
    write(state / "logs" / "a" / "worker-1.log")
    assert open_to_others(state) == []


def test_shared_folders_keep_their_permissions(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("AUTOML_STATE_DIR", str(shared))
    write(shared / "logs" / "file")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert open_to_others(shared / "logs") == []


def test_artifacts_elsewhere_follow_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_ARTIFACTS", str(tmp_path / "artifacts"))
    before = os.umask(0o022)
    try:
        write(artifacts_directory() / "a" / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((artifacts_directory() / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((artifacts_directory() / "a" / "file").stat().st_mode) == 0o644


def test_a_search_with_workers_leaves_only_private_files(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_STATE_DIR", str(tmp_path / "state"))
    before = os.umask(0)
    try:
        automl.search(f"{FILE}:plane", **PARTS, storage=sqlite_url, trials=4, workers=2, study="s")
    finally:
        os.umask(before)
    assert state_directory().is_dir()
    uuid = open_study(Storage(sqlite_url), "s").spec.uuid
    assert (state_directory() / "logs" / uuid).is_dir()
    assert open_to_others(state_directory()) == []
