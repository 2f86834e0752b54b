"""Finds plugins by metadata, loads them when asked, and builds them from options."""

import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from automl.candidate import Candidate
from automl.errors import PluginError, UnknownNameError, UsageError
from automl.hookspecs import Hooks
from automl.options import Option, jsonable, options_of, resolve
from automl.protocols import Task
from automl.trust import Source, Trust, sha256

GROUP = "automl"


class Kind(Enum):
    """What a plugin can offer; the value is the first half of an entry point's name."""

    SPACE = "space"
    TASK = "task"
    TRAINER = "trainer"
    STRATEGY = "strategy"
    PRUNER = "pruner"
    LAUNCHER = "launcher"
    COMMAND = "command"
    EVENT = "event"


_HOOK = {
    Kind.SPACE: "register_spaces",
    Kind.TASK: "register_tasks",
    Kind.TRAINER: "register_trainers",
    Kind.STRATEGY: "register_strategies",
    Kind.PRUNER: "register_pruners",
    Kind.LAUNCHER: "register_launchers",
}
_RESERVED = {Kind.STRATEGY: frozenset({"seed", "context"})}
_INTERACTIVE = "__main__"
FACTORY_KINDS = tuple(_HOOK)


@dataclass(frozen=True)
class FunctionSpace:
    """A plain function (trial, task) as a search space."""

    function: Callable[..., object]

    def candidate(self, trial: Any, task: Task) -> Candidate:
        return self.function(trial, task)  # type: ignore[return-value]  # propose() checks it


@dataclass(frozen=True)
class Offer:
    """Something a plugin offers: its name, who owns it, and what makes it."""

    kind: Kind
    name: str
    owner: str
    factory: Callable[..., Any]
    source: Source | None = None

    @property
    def label(self) -> str:
        return f"{self.kind.value} {self.name}"

    def options(self) -> dict[str, Option]:
        if not callable(self.factory):
            return {}
        return options_of(self.factory, _RESERVED.get(self.kind, frozenset()))

    def build(self, given: Mapping[str, object]) -> "Part":
        """Resolve the options; the part makes its object when called."""
        return Part(self, resolve(self.label, self.options(), given))


@dataclass(frozen=True)
class Part:
    """An offer with all its options resolved."""

    offer: Offer
    options: dict[str, Any]

    def make(self, **reserved: Any) -> Any:
        """The object itself; `reserved` are the engine's own arguments (a strategy's seed).

        Raises:
            PluginError: the plugin raised something of its own.
        """
        factory = self.offer.factory
        if not callable(factory):
            return factory
        if self.offer.kind is Kind.SPACE and _is_space_function(factory):
            return FunctionSpace(functools.partial(factory, **self.options))
        known = inspect.signature(factory).parameters
        try:
            return factory(**self.options, **{k: v for k, v in reserved.items() if k in known})
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.offer.label} of {self.offer.owner}: {error}") from error

    def paths(self) -> dict[str, str]:
        """The options that are paths, as text."""
        options = self.offer.options()
        return {
            name: str(value)
            for name, value in self.options.items()
            if options[name].is_path and value is not None
        }

    def identity(self) -> dict[str, Any]:
        """What of this part a result depends on, as JSON values; paths are only where it lies."""
        return {
            "name": self.offer.name,
            "code": self.offer.source.sha256 if self.offer.source else self.offer.owner,
            "options": {n: jsonable(v) for n, v in self.options.items() if n not in self.paths()},
        }


@dataclass
class Registry:
    """All plugins of this process; nothing is imported before it is asked for."""

    trust: Trust = field(default_factory=lambda: Trust(typed=True))

    def __post_init__(self) -> None:
        self.hooks = pluggy.PluginManager(GROUP)
        self.hooks.add_hookspecs(Hooks)
        self._files: list[tuple[ModuleType, Source]] = []
        self._objects: dict[tuple[Kind, str], Offer] = {}

    def names(self, kind: Kind) -> dict[str, list[str]]:
        """Every name of a kind with its owners, from metadata and the files added."""
        found: dict[str, list[str]] = {}
        for point in _entry_points(kind):
            found.setdefault(point.name.partition(".")[2], []).append(_owner(point))
        for module, source in self._files:
            for name in self._offers(kind, module):
                found.setdefault(name, []).append(source.path)
        return found

    def add_file(self, path: str, expected: str | None = None) -> Source:
        """Load a plugin file; all it offers is known from then on."""
        module, source = self._load_file(path, expected)
        if module not in self.hooks.get_plugins():
            self._register(module, source.path)
            self._files.append((module, source))
        return source

    def add_events(self) -> None:
        """Load the plugins that listen to events."""
        for point in _entry_points(Kind.EVENT):
            self._module(point)

    def find(self, kind: Kind, reference: str, expected: str | None = None) -> Offer:
        """What a reference names: an offered name, `file.py:name` or `module:name`.

        expected: the SHA-256 that the code must have, where a study stored one.

        Raises:
            UnknownNameError: nobody offers it.
            PluginError: two plugins offer it, or the one that does is broken.
            UsageError: the file or module has no such name, or has changed.
            UntrustedError: a study names code this user has not approved.
        """
        if (kind, reference) in self._objects:
            return self._objects[kind, reference]
        if ":" in reference:
            return self._find_own(kind, reference, expected)
        owners = self.names(kind).get(reference, [])
        if not owners:
            hint = f"your own: file.py:{kind.value}_name"
            raise UnknownNameError(kind.value, reference, self.names(kind), hint)
        if len(owners) > 1:
            raise PluginError(
                f"{kind.value} {reference!r} is offered twice, by {' and by '.join(owners)}: "
                "uninstall or rename one"
            )
        return self._find_offered(kind, reference)

    def refer(self, kind: Kind, value: "str | Callable[..., Any]") -> str:
        """A reference to a name, or to a Python object that is used as it is in this process."""
        if isinstance(value, str):
            return value
        name = getattr(value, "__qualname__", type(value).__name__)
        source = _source_of(value)
        self.trust.require(source.claim(), f"the code of {source.reference}", source.reference)
        reference = f"{source.reference}:{name}"
        label = f"{Path(source.reference).name}:{name}"
        self._objects[kind, reference] = Offer(kind, label, source.path, value, source)
        return reference

    def build(self, kind: Kind, reference: str, given: Mapping[str, object]) -> Part:
        return self.find(kind, reference).build(given)

    def _find_offered(self, kind: Kind, name: str) -> Offer:
        for module, source in self._files:
            offers = self._offers(kind, module)
            if name in offers:
                return Offer(kind, name, source.path, offers[name], source)
        point = next(p for p in _entry_points(kind) if p.name == f"{kind.value}.{name}")
        offers = self._offers(kind, self._module(point))
        if name not in offers:
            raise PluginError(
                f"{_owner(point)} declares {kind.value} {name!r}, but {point.value} offers "
                f"{', '.join(offers) or 'none'}: mend its {_HOOK[kind]}"
            )
        return Offer(kind, name, _owner(point), offers[name])

    def _find_own(self, kind: Kind, reference: str, expected: str | None) -> Offer:
        place, _, name = reference.rpartition(":")
        if place == _INTERACTIVE:
            raise UsageError(
                f"{kind.value} {name!r} was typed in an interactive session and lies in no file: "
                "put it into one and start a new study"
            )
        is_file = place.endswith(".py") or os.sep in place
        module, source = (self._load_file if is_file else self._load_module)(place, expected)
        if not hasattr(module, name):
            there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise UnknownNameError(f"{kind.value} in {place}", name, there)
        return Offer(kind, f"{Path(place).name}:{name}", source.path, getattr(module, name), source)

    def _offers(self, kind: Kind, module: ModuleType) -> dict[str, Callable[..., Any]]:
        others = [plugin for plugin in self.hooks.get_plugins() if plugin is not module]
        caller = self.hooks.subset_hook_caller(_HOOK[kind], others) if kind in _HOOK else None
        return {
            name: made for offers in (caller() if caller else ()) for name, made in offers.items()
        }

    def _module(self, point: importlib.metadata.EntryPoint) -> ModuleType:
        try:
            module: ModuleType = point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {_owner(point)} cannot be loaded: {_line(error)}") from error
        if module not in self.hooks.get_plugins():
            self._register(module, _owner(point))
        return module

    def _register(self, module: ModuleType, owner: str) -> None:
        try:
            self.hooks.register(module)
            self.hooks.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {owner} is broken: {_hook_problem(error)}") from error

    def _load_file(self, path: str, expected: str | None) -> tuple[ModuleType, Source]:
        try:
            file = self.trust.copy_of(expected) or Path(path).resolve(strict=True)
            code = file.read_bytes()
        except OSError as error:
            copy = "; name your copy of it: --plugin FILE" if expected else "; check the path"
            raise UsageError(f"cannot read {path}: {error.strerror}{copy}") from error
        source = self._approve(Source(str(file), str(file), sha256(code)), expected)
        # Of its place, too: a copy elsewhere has other files beside it.
        name = f"automl_user_{sha256(source.claim().encode())[:16]}"
        if name in sys.modules:
            return sys.modules[name], source
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        return _execute(name, file, code), source

    def _load_module(self, name: str, expected: str | None) -> tuple[ModuleType, Source]:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        file = _module_file(name)
        if file is None:
            raise UsageError(f"no module named {name!r} here: check the spelling and the path")
        self._approve(source := Source(name, str(file), sha256(file.read_bytes())), expected)
        try:
            return importlib.import_module(name), source
        except (Exception, SystemExit) as error:
            raise PluginError(f"module {name} cannot be loaded: {_line(error)}") from error

    def _approve(self, source: Source, expected: str | None) -> Source:
        if expected is not None and source.sha256 != expected:
            raise UsageError(
                f"{source.reference} has changed since the study was made (SHA-256 "
                f"{source.sha256[:12]}, the study has {expected[:12]}): put it back, or start a "
                "new study"
            )
        self.trust.require(source.claim(), f"the code of {source.reference}", source.reference)
        return source


def _execute(name: str, file: Path, code: bytes) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    if spec is None:
        raise PluginError(f"plugin {file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(code, str(file), "exec"), vars(module))  # noqa: S102 - the user's own file
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin {file} cannot be loaded: {_line(error)}") from error
    return module


def _source_of(value: object) -> Source:
    """The file of a Python object; what was typed interactively is known by its text alone."""
    try:
        file = Path(str(inspect.getsourcefile(value))).resolve(strict=True)  # type: ignore[arg-type]
        return Source(str(file), str(file), sha256(file.read_bytes()))
    except (TypeError, OSError):
        code = getattr(value, "__code__", None)
        text = repr((code.co_code, code.co_consts)) if code else repr(value)
        return Source(_INTERACTIVE, _INTERACTIVE, sha256(text.encode()))


def _module_file(name: str) -> Path | None:
    """A module's file, found without running any of its packages."""
    path: Sequence[str] | None = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None or (not spec.origin and end == len(parts)):
            return None
        path = list(spec.submodule_search_locations or ())
    return Path(str(spec.origin)) if spec else None


def _entry_points(kind: Kind) -> Iterable[importlib.metadata.EntryPoint]:
    return [p for p in _all_entry_points() if p.name.startswith(f"{kind.value}.")]


@functools.cache
def _all_entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def _owner(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _is_space_function(factory: Callable[..., Any]) -> bool:
    if inspect.isclass(factory):
        return False
    positional = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return len(positional) == 2


def _hook_problem(error: Exception) -> str:
    """What pluggy found wrong, without the module's made-up name."""
    found = re.search(r"unknown hook '(\w+)'", str(error))
    if found:
        return str(UnknownNameError("hook", found[1], [n for n in vars(Hooks) if n[0] != "_"]))
    return " ".join(str(error).split())


def _line(error: BaseException) -> str:
    """An error in one line, with the place in the plugin where it arose."""
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" (line {last[0].lineno} of {last[0].filename})" if last else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{where}"
