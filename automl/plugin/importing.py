"""Imports of approved code: Python compiles exactly the bytes whose digest was approved.

A finder placed before all others holds each approved module with its content. So neither a
cached `__pycache__` file, nor a file that changes between approval and import, is used.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import decode_source, spec_from_file_location
from pathlib import Path
from pkgutil import get_importer
from types import CodeType, ModuleType

_PACKAGE = "__init__.py"


@dataclass(frozen=True)
class ModuleFile:
    """A module's file and its content.

    Attributes:
        path: The file's path, or the folder of a package without `__init__.py`.
        content: The file's content; None for a folder.
    """

    path: Path
    content: bytes | None

    def spec(self, name: str) -> ModuleSpec:
        """Return the spec with which Python imports the module under a name."""
        if self.content is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(self.path)]
            return spec
        loader = (_Extension if self.is_extension else _Source)(name, str(self.path), self.content)
        inside = [str(self.path.parent)] if self.path.name == _PACKAGE else None
        found = spec_from_file_location(
            name, self.path, loader=loader, submodule_search_locations=inside
        )
        assert found is not None
        found.cached = None
        return found

    @property
    def code(self) -> CodeType:
        """The compiled module."""
        return compile(self.content or b"", str(self.path), "exec", dont_inherit=True)

    @property
    def is_extension(self) -> bool:
        return self.path.name.endswith(tuple(EXTENSION_SUFFIXES))


class _Source(SourceFileLoader):
    """Compiles the given content; neither reads nor writes bytecode."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._content, self.path, "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        return decode_source(self._content)


class _Extension(ExtensionFileLoader):
    """Loads compiled code from a copy of the given content."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content = content

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(self.path).name
            copy.write_bytes(self._content)
            return super().create_module(ModuleSpec(spec.name, self, origin=str(copy)))


class _Finder:
    """Finds approved modules, and nothing else in their packages."""

    def __init__(self) -> None:
        self.held: dict[str, ModuleFile] = {}
        self._roots: dict[str, Path] = {}

    def add(self, root: Path, modules: Mapping[str, ModuleFile]) -> None:
        self.held.update(modules)
        self._roots.update({name.partition(".")[0]: root for name in modules})

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        held = self.held.get(name)
        if held is None:
            return None if path is None else self._inside(name, path)
        if path is not None:
            return held.spec(name)
        elsewhere = PathFinder.find_spec(name, self._others(self._roots[name]))
        if elsewhere is not None and elsewhere.loader is not None:
            return None  # installed modules come first, as on Python's path
        return _joined(held.spec(name), elsewhere)

    def _others(self, root: Path) -> list[str]:
        """Return Python's path without the folder of approved code."""
        own = os.path.realpath(root)
        return [entry for entry in sys.path if os.path.realpath(entry) != own]

    def _inside(self, name: str, path: Sequence[str]) -> ModuleSpec | None:
        """Find an unapproved module of an approved package; allowed only as source code."""
        root = self._roots.get(name.partition(".")[0])
        found = PathFinder.find_spec(name, path) if root else None
        if root is None or found is None or not found.origin:
            return None
        file = Path(found.origin)
        if not file.is_relative_to(root):
            return None
        if str(root) in _closed or file.suffix != ".py":
            text = f"{file} is not approved, because no approved code imports {name} by name"
            raise ModuleNotFoundError(text, name=name)
        return ModuleFile(file, file.read_bytes()).spec(name)


def _joined(own: ModuleSpec, other: ModuleSpec | None) -> ModuleSpec:
    """Join our own folder with folders of the same name elsewhere, if they form one package."""
    if own.loader is None and other is not None:
        more = list(other.submodule_search_locations or ())
        own.submodule_search_locations = [*more, *(own.submodule_search_locations or ())]
    return own


class _EmptyFinder:
    """Stands in for Python's own finder in a closed folder, and finds nothing."""

    def find_spec(self, name: str, target: ModuleType | None = None) -> None:
        return None


_finder = _Finder()
_closed: set[str] = set()
"""Folders on Python's path in which only approved code is found."""


def approved_file(name: str) -> ModuleFile | None:
    """Return the file approved under a module's name, if there is one."""
    return _finder.held.get(name)


def approve(root: Path, modules: Mapping[str, ModuleFile]) -> None:
    """Let Python import these modules from their content given here.

    Args:
        root: The folder where their imports start.
        modules: The modules' files, by dotted name.
    """
    _finder.add(root, modules)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def add_folder(folder: str) -> None:
    """Append a folder to Python's path; only approved modules are found in it."""
    if folder not in map(os.path.abspath, sys.path):
        _closed.add(folder)
        sys.path.append(folder)
    if folder in _closed:
        sys.path_importer_cache[folder] = _EmptyFinder()


def own_path() -> list[str]:
    """Return Python's path without the folders of approved code."""
    return [entry for entry in sys.path if entry not in _closed]


def find(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    """Find a module in folders, including closed ones, without running any code."""
    portions: list[str] = []
    for folder in folders:
        finder = FileFinder(folder, *_LOADERS) if folder in _closed else get_importer(folder)
        found = finder.find_spec(name) if finder else None
        if found is not None and found.loader is not None:
            return found
        portions += list(found.submodule_search_locations or ()) if found else []
    if not portions:
        return None
    # A package without `__init__`; Python's own finder would need its parent to be loaded.
    package = ModuleSpec(name, None, is_package=True)
    package.submodule_search_locations = portions
    return package


_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)
