"""Plugins: found by metadata, loaded when asked for, clashes and breakage named in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

import automl
from automl import PluginError, UnknownNameError, UsageError, registry
from automl.registry import Kind, Registry

OFFER = """
import automl

def line(trial, task, *, depth: int = 2):
    return (trial, task, depth)

@automl.hookimpl
def register_spaces():
    return {NAMES: line}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution: a module and its entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, code: str, points: dict[str, str]) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {module}" for point, module in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[automl]", *lines, ""]))
        registry._all_entry_points.cache_clear()

    yield install
    monkeypatch.undo()
    registry._all_entry_points.cache_clear()
    for module in ("one_dist", "two_dist"):
        sys.modules.pop(module, None)


def offering(name: str) -> str:
    return OFFER.replace("NAMES", repr(name))


# Installed plugins.
def test_an_installed_plugin_is_found_by_its_entry_point(install):
    install("one_dist", offering("line"), {"space.line": "one_dist"})
    offer = Registry().find(Kind.SPACE, "line")
    assert (offer.name, offer.owner) == ("line", "one_dist 1.0")
    assert offer.build({"depth": "5"}).make().candidate(1, 2) == (1, 2, 5)


def test_nothing_is_imported_before_it_is_asked_for(install):
    install("one_dist", "raise RuntimeError('imported')", {"space.line": "one_dist"})
    found = Registry()
    assert "line" in found.names(Kind.SPACE)
    assert found.find(Kind.SPACE, "mlp").name == "mlp"
    assert "one_dist" not in sys.modules


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("def f(:", "syntax error in line 1"),
    ],
)
def test_a_broken_plugin_is_one_line_that_names_it(install, code, says):
    install("one_dist", code, {"space.line": "one_dist"})
    with pytest.raises(PluginError) as caught:
        Registry().find(Kind.SPACE, "line")
    assert "one_dist 1.0" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_hook_that_does_not_exist_is_a_broken_plugin(install):
    code = "import automl\n@automl.hookimpl\ndef register_spaces(wrong): return {}\n"
    install("one_dist", code, {"space.line": "one_dist"})
    with pytest.raises(PluginError, match=r"one_dist 1\.0 is broken"):
        Registry().find(Kind.SPACE, "line")


def test_a_name_offered_twice_names_both_owners(install):
    for name in ("one_dist", "two_dist"):
        install(name, offering("line"), {"space.line": name})
    with pytest.raises(PluginError) as caught:
        Registry().find(Kind.SPACE, "line")
    assert "one_dist 1.0" in str(caught.value)
    assert "two_dist 1.0" in str(caught.value)
    assert Registry().find(Kind.SPACE, "mlp")


def test_a_plugin_that_does_not_offer_what_it_declares(install):
    install("one_dist", offering("curve"), {"space.line": "one_dist"})
    with pytest.raises(PluginError, match=r"declares space 'line'.*offers curve.*register_spaces"):
        Registry().find(Kind.SPACE, "line")


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.COMMAND, Kind.EVENT)])
def test_an_unknown_name_lists_those_there_are(kind):
    found = Registry()
    with pytest.raises(UnknownNameError) as caught:
        found.find(kind, "no-such")
    for name in found.names(kind):
        assert name in str(caught.value)


def test_a_name_nearly_right_is_suggested():
    with pytest.raises(UnknownNameError, match="did you mean 'mlp'"):
        Registry().find(Kind.SPACE, "mpl")


# Files.
@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(offering("line"))
    return path


def test_a_file_and_a_name_in_it(file):
    part = Registry().build(Kind.SPACE, f"{file}:line", {"depth": "3"})
    assert part.make().candidate(0, 0) == (0, 0, 3)
    assert part.offer.source.path == str(file)


def test_a_plugin_file_offers_names(file):
    found = Registry()
    found.add_file(str(file))
    assert found.names(Kind.SPACE)["line"] == [str(file)]
    assert found.find(Kind.SPACE, "line").owner == str(file)


def test_a_plugin_file_cannot_take_an_installed_name(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(offering("mlp"))
    found = Registry()
    found.add_file(str(path))
    with pytest.raises(PluginError, match=r"offered twice.*own\.py"):
        found.find(Kind.SPACE, "mlp")


def test_a_name_that_is_not_in_the_file(file):
    with pytest.raises(UnknownNameError, match=r"'lime'.*did you mean 'line'"):
        Registry().find(Kind.SPACE, f"{file}:lime")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.py: No such file"):
        Registry().find(Kind.SPACE, f"{tmp_path / 'none.py'}:f")


def test_a_file_with_a_syntax_error(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("\n\ndef f(:\n")
    with pytest.raises(PluginError, match=r"own\.py cannot be loaded: syntax error in line 3"):
        Registry().add_file(str(path))
    path.write_text(offering("line"))
    assert Registry().add_file(str(path))


def test_a_file_that_exits_is_a_broken_plugin(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(PluginError, match=r"own\.py"):
        Registry().add_file(str(path))


# Modules.
def test_a_module_and_a_name_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_module.py").write_text(offering("line"))
    offer = Registry().find(Kind.SPACE, "own_module:line")
    assert offer.factory(1, 2) == (1, 2, 2)


def test_a_module_in_a_package_is_found_without_running_the_package(tmp_path, monkeypatch):
    """Its digest is compared with the approved one before anything runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("raise RuntimeError('ran')")
    (tmp_path / "own_package" / "inner.py").write_text(offering("line"))
    with pytest.raises(UsageError, match="has changed since"):
        Registry().find(Kind.SPACE, "own_package.inner:line", "0" * 64)
    with pytest.raises(PluginError, match="RuntimeError: ran"):
        Registry().find(Kind.SPACE, "own_package.inner:line")


def test_a_module_that_is_not_there():
    with pytest.raises(UsageError, match=r"no module named 'no_such\.module'"):
        Registry().find(Kind.SPACE, "no_such.module:f")


# Python objects.
def test_an_object_in_a_file_is_found_again_by_name(file):
    found = Registry()
    space = found.find(Kind.SPACE, f"{file}:line").factory
    reference = found.refer(Kind.SPACE, space)
    assert reference == f"{file}:line"
    assert found.find(Kind.SPACE, reference).factory is space


def test_what_was_typed_interactively_cannot_be_resumed_elsewhere():
    space = eval("lambda trial, task: None")
    found = Registry()
    reference = found.refer(Kind.SPACE, space)
    assert found.find(Kind.SPACE, reference).factory is space
    with pytest.raises(UsageError, match="typed in an interactive session"):
        Registry().find(Kind.SPACE, reference)


# Options.
def test_options_a_factory_refuses_name_it(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def broken(*, x: int = 1):\n    raise ValueError('x is not right')\n")
    with pytest.raises(UsageError, match=r"pruner own\.py:broken.*x is not right"):
        Registry().build(Kind.PRUNER, f"{path}:broken", {}).make()


def test_an_unknown_option_lists_those_there_are(file):
    with pytest.raises(UnknownNameError, match=r"'width'.*known: depth"):
        Registry().build(Kind.SPACE, f"{file}:line", {"width": 1})


# The built-in plugins enter by the same door.
def test_listing_every_plugin_imports_none():
    code = (
        "import sys\n"
        "from automl.registry import Kind, Registry\n"
        "for kind in Kind: Registry().names(kind)\n"
        "print([m for m in sys.modules if m.startswith(('automl_', 'torch'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_defaults_are_there():
    found = Registry()
    for kind, name in automl.studies.DEFAULTS.items():
        assert name in found.names(kind)
