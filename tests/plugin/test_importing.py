"""Approved code runs as it was approved, whatever is in its folder when it is imported."""

import importlib.util
import itertools
import marshal
import py_compile
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import markupsafe._speedups
import pytest
import shapes
import tiny
import toys

import automl
from automl import PluginError, UsageError
from automl.identity.fingerprint import Verdict
from automl.identity.probes.client import Prober
from automl.plugin.registry import Kind, Registry
from automl.plugin.source import load
from automl.plugin.trust import Source, Trust
from automl.study.plan import plan
from automl.study.search_request import SearchRequest

PARTS = {"strategy": "random", "device": "cpu", "trials": 1, "study": "s"}
_numbers = itertools.count()


class Place:
    """A folder with a file, or a package with one, that imports another from the same folder."""

    def __init__(self, folder: Path, packaged: bool) -> None:
        number = next(_numbers)
        self.top = self.folder = folder
        self.ran = folder / "ran"
        self.helper = f"importing_helper_{number}"
        self.package = f"importing_package_{number}"
        if packaged:
            self.folder = folder / self.package
            self.folder.mkdir()
            (self.folder / "__init__.py").write_text("")
        self.beside = self.folder / f"{self.helper}.py"
        self.own = self.folder / "own.py"
        self.beside.write_text("VALUE = 'approved'\n")
        where = "." if packaged else ""
        self.own.write_text(f"from {where}{self.helper} import VALUE\ndef f(trial, task): ...\n")
        self.reference = f"{self.package}.own" if packaged else str(self.own)

    @property
    def evil(self) -> str:
        """Code that leaves a trace if it runs, and otherwise looks right."""
        return f"open({str(self.ran)!r}, 'w').close()\nVALUE = 'planted'\n"

    def load(self, before_import: Callable[[], object] = lambda: None) -> object:
        """Return the imported value; `before_import` runs between approval and import."""

        class Slow(Trust):
            def require(self, claim: str, what: str, name: str) -> None:
                super().require(claim, what, name)
                before_import()

        return load(self.reference, None, Slow(typed=True), claim)[0].VALUE


def claim(source: Source) -> str:
    return source.claim("space", "f")


@pytest.fixture(params=[False, True], ids=["file", "package"])
def place(tmp_path, request, monkeypatch) -> Place:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, request.param)


def plant(place: Place, file: Path, unchecked: bool) -> None:
    """Put bytecode where Python would look for a file's, perhaps unchecked (PEP 552)."""
    cached = Path(importlib.util.cache_from_source(str(file)))
    cached.parent.mkdir(exist_ok=True)
    stat = file.stat()
    valid = struct.pack("<III", 0, int(stat.st_mtime), stat.st_size)
    head = struct.pack("<I8s", 1, b"any hash") if unchecked else valid
    code = marshal.dumps(compile(place.evil, str(file), "exec"))
    cached.write_bytes(importlib.util.MAGIC_NUMBER + head + code)


@pytest.mark.parametrize("unchecked", [False, True])
def test_bytecode_in_pycache_is_not_run(place, unchecked):
    plant(place, place.beside, unchecked)
    plant(place, place.own, unchecked)
    assert place.load() == "approved"
    assert not place.ran.exists()


def test_no_bytecode_is_written(place):
    assert place.load() == "approved"
    assert not list(place.top.rglob("*.pyc"))


def test_an_imported_file_needs_its_source(place):
    place.beside.write_text(place.evil)
    py_compile.compile(str(place.beside), cfile=str(place.beside.with_suffix(".pyc")))
    place.beside.unlink()
    with pytest.raises(PluginError, match=r"helper_\d+\.pyc is bytecode: put its source"):
        place.load()
    assert not place.ran.exists()


@pytest.mark.parametrize("which", ["own", "beside"])
def test_approved_code_runs_even_if_its_file_is_swapped_before_the_import(place, which):
    file = getattr(place, which)
    assert place.load(lambda: file.write_text(place.evil)) == "approved"
    assert not place.ran.exists()


def test_a_file_that_swaps_another_before_importing_it_gets_the_approved_code(place):
    text = place.own.read_text()
    swap = f"from pathlib import Path\nPath({str(place.beside)!r}).write_text({place.evil!r})\n"
    place.own.write_text(swap + text)
    assert place.load() == "approved"
    assert not place.ran.exists()


def test_a_late_import_also_gets_the_approved_code(place):
    where = "." if place.reference.endswith(".own") else ""
    late = (
        f"def late():\n    from {where}{place.helper} import VALUE\n    return VALUE\nVALUE = 0\n"
    )
    place.own.write_text(late)
    module, _ = load(place.reference, None, Trust(typed=True), claim)
    place.beside.write_text(place.evil)
    assert module.late() == "approved"
    assert not place.ran.exists()


def test_a_package_that_appears_later_does_not_replace_a_file(place):
    def shadow() -> None:
        (place.folder / place.helper).mkdir()
        (place.folder / place.helper / "__init__.py").write_text(place.evil)

    assert place.load(shadow) == "approved"
    assert not place.ran.exists()


def test_compiled_code_that_appears_later_does_not_replace_a_file(place):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    native = place.folder / f"{place.helper}{suffix}"
    assert place.load(lambda: native.write_bytes(b"no library")) == "approved"


def test_a_folder_without_init_stays_a_namespace_package(place):
    inner = place.folder / f"{place.helper}_space"
    inner.mkdir()
    (inner / "deep.py").write_text("VALUE = 'approved'\n")
    where = "." if place.reference.endswith(".own") else ""
    place.own.write_text(f"from {where}{inner.name}.deep import VALUE\ndef f(trial, task): ...\n")
    plant(place, inner / "deep.py", unchecked=True)
    assert place.load(lambda: (inner / "__init__.py").write_text(place.evil)) == "approved"
    assert not place.ran.exists()
    (inner / "__init__.py").unlink()
    source = load(place.reference, None, Trust(typed=True), claim)[1]
    assert any(name.endswith(f"{inner.name}/deep.py") for name in source.code.beside)


def test_a_link_counts_by_its_target(place, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    real = elsewhere / "real.py"
    place.beside.rename(real)
    place.beside.symlink_to(real)
    plant(place, place.beside, unchecked=True)
    expected = load(place.reference, None, Trust(typed=True), claim)[1].code
    assert not place.ran.exists()
    assert any(name.endswith(place.beside.name) for name in expected.beside)
    real.write_text(place.evil)
    with pytest.raises(UsageError, match=r"helper_\d+\.py has changed since"):
        load(place.reference, expected, Trust(typed=True), claim)
    assert not place.ran.exists()


def test_compiled_code_counts_and_its_approved_bytes_are_loaded(tmp_path):
    # An extension module of a dependency, whose file alone is enough.
    library = Path(markupsafe._speedups.__file__)
    copy = tmp_path / library.name
    shutil.copy(library, copy)
    own = tmp_path / "own.py"
    own.write_text("import _speedups\nVALUE = _speedups.__name__\ndef f(trial, task): ...\n")

    class Swapping(Trust):
        def require(self, claim: str, what: str, name: str) -> None:
            super().require(claim, what, name)
            copy.write_bytes(b"no library")

    module, source = load(str(own), None, Swapping(typed=True), claim)
    assert module.VALUE == "_speedups"
    assert list(source.code.beside) == [library.name]


def test_only_imported_modules_are_found_in_an_approved_folder(tmp_path, monkeypatch):
    place = Place(tmp_path, packaged=False)
    other = f"{place.helper}_other"
    (tmp_path / f"{other}.py").write_text(place.evil)
    assert place.load() == "approved"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(other)
    assert importlib.util.find_spec(other) is None
    importlib.invalidate_caches()
    assert importlib.util.find_spec(other) is None
    assert not place.ran.exists()


def test_only_imported_modules_are_found_in_an_approved_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, packaged=True)
    (place.folder / "other.py").write_text(place.evil)
    assert place.load() == "approved"
    with pytest.raises(ModuleNotFoundError, match=r"other\.py is not approved"):
        importlib.import_module(f"{place.package}.other")
    assert not place.ran.exists()


def test_installed_packages_come_before_files_in_the_folder(tmp_path):
    (tmp_path / "markupsafe.py").write_text("VALUE = 'beside'")
    (tmp_path / "own.py").write_text("import markupsafe\ndef f(trial, task): ...\n")
    with pytest.raises(PluginError, match=r"markupsafe\.py, but another markupsafe is loaded"):
        Registry().find(Kind.SPACE, f"{tmp_path / 'own.py'}:f")


def test_tracebacks_and_data_of_a_package_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, packaged=True)
    (place.folder / "data.txt").write_text("some")
    place.beside.write_text(
        "import importlib.resources, inspect\n"
        "VALUE = importlib.resources.files(__package__).joinpath('data.txt').read_text()\n"
        "def g(): ...\nVALUE += inspect.getsource(g)\n"
    )
    assert place.load() == "somedef g(): ...\n"


@pytest.mark.parametrize("verb", ["worker", "resume"])
def test_workers_run_the_approved_code(tmp_path, sqlite_url, verb):
    own = Path(shutil.copy(tiny.__file__, tmp_path / "mine.py"))
    helper = f"importing_helper_{next(_numbers)}"
    (tmp_path / f"{helper}.py").write_text("VALUE = 1\n")
    own.write_text(f"import {helper}\n{own.read_text()}")
    parts = {"task": f"{own}:Nothing", "trainer": f"{own}:Steps"}
    automl.search(f"{own}:plane", **parts, **PARTS, storage=sqlite_url)
    place = Place(tmp_path, packaged=False)
    plant(place, tmp_path / f"{helper}.py", unchecked=True)
    more = ["--trials", "2"] if verb == "resume" else []
    command = [sys.executable, "-m", "automl", verb, "s", "--storage", sqlite_url, *more]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not place.ran.exists()


SPACE = """
from automl import Candidate
from torch import nn
import HELPER


def space(trial, task):
    trial.suggest_int("n", 1, 2)
    width, classes = task.signature.input_shape[0], task.signature.output_shape[0]
    return Candidate(lambda: nn.Linear(width, classes))
"""


def test_the_probing_process_runs_the_approved_code(tmp_path):
    place = Place(tmp_path, packaged=False)
    place.own.write_text(SPACE.replace("HELPER", place.helper))
    request = SearchRequest(
        f"{place.own}:space", task=f"{toys.__file__}:blobs", trainer=f"{shapes.__file__}:Brief"
    )
    recipe = plan(request, Registry()).parts.recipe
    plant(place, place.beside, unchecked=True)
    prober = Prober(recipe)
    try:
        answer = prober.probe({"n": 1})
        assert answer.verdict == Verdict.SOUND.value, answer
    finally:
        prober.close()
    assert not place.ran.exists()
