"""A user's own code: the files and modules it lies in, what they hold, and their loading.

What a file holds is its SHA-256 and that of each file it imports from beside it. Imports are read
from the text, not watched, so that all is known before anything runs.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CellType, CodeType, ModuleType
from typing import Any

from automl.errors import PluginError, UsageError
from automl.trust import Code, Source, Trust, sha256

NOWHERE = "__main__"
"""The place of an object that lies at the top level of no file."""
_PACKAGES = ("site-packages", "dist-packages")
_NOT_OWN = sys.stdlib_module_names | {"automl", "automl_plugins", "automl_searchspaces"}
_DEEP = 6
_HERE = Path(__file__).parent

_loading: ContextVar[str] = ContextVar("_loading")
_loaded: dict[str, str] = {}
"""The SHA-256 under which this process loaded each file: what is imported stays as it was."""


class LoadingError(UsageError):
    """A file does something while it is loaded that it must not do there."""


def refuse_while_loading(what: str) -> None:
    """Raise where a user's file is being loaded: a worker would start the search anew, for ever.

    Raises:
        LoadingError: naming the file.
    """
    if file := _loading.get(None):
        raise LoadingError(
            f"{file} calls {what} while it is loaded, as each worker does: put the call under "
            '`if __name__ == "__main__":`'
        )


def load(
    place: str, expected: Code | None, trust: Trust, claim: Callable[[Source], str]
) -> tuple[ModuleType, Source]:
    """The module of a file or of a dotted name, once it is approved and holds what it should.

    Raises:
        UsageError: it cannot be found, or has changed since the study was made.
        UntrustedError: a study names it and this user has not approved it.
        PluginError: it cannot be loaded.
    """
    is_file = place.endswith(".py") or os.sep in place
    source = _file(place, expected, trust) if is_file else _module(place)
    files = _own_files(source) | ({} if is_file else {place: Path(source.path)})
    if expected is not None:
        _compare(source, expected)
    trust.require(claim(source), f"the code of {source.reference}", source.reference)
    _check_loaded(source, files)
    module = _execute(source) if is_file else _import(source)
    _check_loaded(source, files)
    _loaded.update({str(path): sha256(path.read_bytes()) for path in files.values()})
    return module, source


def source_of(reference: str, file: Path) -> Source:
    """A file under the name it is asked by, with what it and those beside it hold."""
    found = Source(reference, str(file), Code(sha256(file.read_bytes())))
    root = _root(found)
    beside = {
        path.relative_to(root).as_posix(): sha256(path.read_bytes())
        for path in _own_files(found).values()
    }
    return Source(reference, str(file), Code(found.code.sha256, dict(sorted(beside.items()))))


def content_of(module: str) -> str:
    """One digest of a module and of what it imports from its own package.

    Raises:
        UsageError: there is none of that name.
    """
    return _module(module).code.digest()


def home_of(value: object) -> tuple[Source, str] | None:
    """The file and the name under which another process finds this very object, if there is one."""
    made = value.func if isinstance(value, functools.partial) else value
    homes = [sys.modules.get(getattr(made, "__module__", None) or "")]
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        homes.append(sys.modules.get(NOWHERE))
    for home in homes:
        file = Path(getattr(home, "__file__", None) or "")
        name = next((n for n, v in vars(home).items() if v is value), None) if home else None
        if name and home and file.suffix == ".py" and file.is_file():
            file = file.resolve()
            if home.__name__ != NOWHERE or _bound_when_loaded(file, name):
                return source_of(str(file), file), name
    return None


def homeless(value: object) -> Source:
    """The source of an object that only this process has: known by its content alone."""
    return Source(NOWHERE, NOWHERE, Code(sha256(repr(_content(value, _DEEP)).encode())))


def one_line(error: BaseException, file: str = "") -> str:
    """An error in one line, with its last place in a file, or else the last that is not ours."""
    if isinstance(error, SyntaxError) and file in ("", error.filename):
        return f"syntax error in line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if Path(frame.filename).parent != _HERE]
    last = [frame for frame in frames if frame.filename == file] or theirs
    where = f" (line {last[-1].lineno} of {last[-1].filename})" if last else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{where}"


# Finding.
def _file(place: str, expected: Code | None, trust: Trust) -> Source:
    try:
        file = trust.copy_of(expected.sha256 if expected else None) or Path(place).resolve(
            strict=True
        )
        return source_of(str(file), file)
    except OSError as error:
        copy = "; name your copy of it: --plugin FILE" if expected else "; check the path"
        raise UsageError(f"cannot read {place}: {error.strerror}{copy}") from error


def _module(name: str) -> Source:
    on_path, hooked = _specs(name, [*sys.path, str(Path.cwd())]), _specs(name, [], _hooked(name))
    for found in (on_path, hooked):
        if len(found) == len(name.split(".")) and found[-1].origin:
            return source_of(name, Path(found[-1].origin).resolve())
    raise UsageError(f"no module named {name!r} here: check the spelling and the path")


def _specs(name: str, path: Sequence[str], top: ModuleSpec | None = None) -> list[ModuleSpec]:
    """Where each part of a dotted name is found, as far as it is, without running any of them.

    top: where the first part is, if that is known.
    """
    found: list[ModuleSpec] = []
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path) if found or not top else top
        if spec is None:
            break
        found.append(spec)
        path = list(spec.submodule_search_locations or ())
    return found


def _hooked(name: str) -> ModuleSpec | None:
    """Where an import hook finds a package, as it does some that are installed to be edited."""
    with suppress(ValueError):  # it is loaded, and no file's
        spec = importlib.util.find_spec(name.partition(".")[0])
        return spec if spec and spec.has_location else None
    return None


# The files beside it.
def _root(source: Source) -> Path:
    """Where its imports from beside it begin: its folder, or that of its top package."""
    file = Path(source.path)
    if source.reference == source.path:
        return file.parent
    return file.parents[source.reference.count(".") + (file.name == "__init__.py")]


def _own_files(source: Source) -> dict[str, Path]:
    """The files that a file imports from beside it, and those that these import, by module."""
    file, root = Path(source.path), _root(source)
    name = "" if source.reference == source.path else source.reference
    top = name.partition(".")[0] if _in_package(file, root, name) else None
    found: dict[str, Path] = {}
    todo = [(name, file)] if file.suffix == ".py" else []
    importlib.invalidate_caches()
    while todo:
        name, path = todo.pop()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in {name, *_imported(path, package)}:
            for spec in _specs(imported, [str(root)]) if _is_own(imported, top) else ():
                there = Path(spec.origin).resolve() if spec.origin else file
                if there != file and spec.name not in found and there.is_relative_to(root):
                    found[spec.name] = there
                    todo.append((spec.name, there))
    return found


def _in_package(file: Path, root: Path, name: str) -> bool:
    installed = any(folder in root.parts for folder in _PACKAGES)
    return bool(name) and (installed or file.parent != root)


def _is_own(name: str, top: str | None) -> bool:
    first = name.partition(".")[0]
    return first == top if top else bool(first) and first not in _NOT_OWN


def _imported(path: Path, package: str) -> Iterator[str]:
    """Dotted names that a file imports, in functions too; none where it cannot be read."""
    try:
        tree = ast.parse(path.read_bytes()) if path.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            up = parts[: max(0, len(parts) - node.level + 1)]
            base = ".".join(filter(None, [*(up if node.level else ()), node.module or ""]))
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def _compare(source: Source, expected: Code) -> None:
    """Refuse code that is not what the study was made with."""
    _refuse_change(source.path, source.code.sha256, expected.sha256)
    root = _root(source)
    for name in sorted({*source.code.beside, *expected.beside}):
        now, then = source.code.beside.get(name), expected.beside.get(name)
        _refuse_change(str(root / name), now, then)


def _refuse_change(file: str, now: str | None, then: str | None) -> None:
    if now != then:
        spelled = [f"SHA-256 {digest[:12]}" if digest else "no such file" for digest in (now, then)]
        raise UsageError(
            f"{file} has changed since the study was made ({spelled[0]}, the study has "
            f"{spelled[1]}): put it back, or start a new study"
        )


# Running.
def _check_loaded(source: Source, files: Mapping[str, Path]) -> None:
    """What is imported already must be these very files as they are now."""
    for name, path in files.items():
        there = getattr(sys.modules.get(name), "__file__", None)
        if there is not None and Path(there).resolve() != path:
            raise PluginError(
                f"{source.reference} imports {path}, but another {name} is loaded, from {there}: "
                "rename one"
            )
        if there and _loaded.get(str(path)) not in (None, sha256(path.read_bytes())):
            raise UsageError(f"{path} has changed since this process loaded it: start Python anew")


def _execute(source: Source) -> ModuleType:
    file = Path(source.path)
    # Of its place, too: a copy elsewhere has other files beside it.
    name = f"automl_user_{sha256(f'{file} {source.code.digest()}'.encode())[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = importlib.util.module_from_spec(ModuleSpec(name, loader=None, origin=str(file)))
    module.__file__ = str(file)
    _see(str(file.parent))
    sys.modules[name] = module
    try:
        with _running(source.path, f"plugin {file}"):
            code = file.read_bytes()
            _refuse_change(source.path, sha256(code), source.code.sha256)
            exec(compile(code, str(file), "exec"), vars(module))  # noqa: S102 - the user's own file
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(source: Source) -> ModuleType:
    if Path.cwd() == _root(source):
        _see(str(Path.cwd()))
    with _running(source.path, f"module {source.reference}"):
        return importlib.import_module(source.reference)


def _see(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


@contextmanager
def _running(file: str, what: str) -> Iterator[None]:
    token = _loading.set(file)
    try:
        yield
    except LoadingError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{what} cannot be loaded: {one_line(error, file)}") from error
    finally:
        _loading.reset(token)


# Python objects.
def _bound_when_loaded(file: Path, name: str) -> bool:
    """Whether a script has that name also where it is imported, not run."""
    for statement in ast.parse(file.read_bytes()).body:
        if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
            continue
        for node in ast.walk(statement):
            if getattr(node, "name", None) == name:
                return True
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
                return True
    return False


def _content(value: Any, deep: int) -> object:
    """What an object does, as plain values: its code and what it holds, never an address."""
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return repr(value)
    if not deep:
        return type(value).__qualname__
    inner = functools.partial(_content, deep=deep - 1)
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, [inner(const) for const in value.co_consts]]
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(inner(item)) for item in value)
    if isinstance(value, Mapping):
        return [[inner(key), inner(item)] for key, item in value.items()]
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    return [f"{type(value).__module__}.{type(value).__qualname__}", *map(inner, _held(value))]


def _held(value: Any) -> list[object]:
    if inspect.isfunction(value):
        cells = [_captured(cell) for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    if inspect.isclass(value):
        plain = {n: v for n, v in vars(value).items() if not n.startswith("__") or callable(v)}
        return [value.__qualname__, plain]
    return [getattr(value, "__dict__", None)]


def _captured(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def definitions(path: str) -> list[str]:
    """References to what a file defines at its top level, read without running it."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    named = (ast.FunctionDef, ast.ClassDef)
    return [f"{path}:{node.name}" for node in tree.body if isinstance(node, named)]
