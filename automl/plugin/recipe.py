"""The parts of a search as they are stored, and how they are made again from that."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from automl.errors import StorageError, UsageError
from automl.plugin.options import Option, jsonable
from automl.plugin.registry import Kind, Part, Registry
from automl.plugin.source import NOWHERE
from automl.plugin.trust import Code, Source, sha256, trusting


@dataclass(frozen=True)
class PartSpec:
    """A part as it was asked for: its reference, its options, and what its code held.

    options: all of them, so that a default that changes later does not change the study.
    files: the SHA-256 of each file among the options, by path, but for a task's.
    """

    reference: str
    options: dict[str, Any] = field(default_factory=dict)
    code: Code | None = None
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, part: Part) -> "PartSpec":
        offer = part.offer
        own = offer.source is not None and ":" in offer.name
        name = offer.name.rpartition(":")[2]
        reference = f"{offer.source.reference}:{name}" if own and offer.source else offer.name
        options = {key: jsonable(value) for key, value in part.options.items()}
        code = offer.source.code if offer.source else None
        return cls(reference, options, code, dict(part.files))

    def absent(self, options: Mapping[str, Option]) -> dict[str, Path]:
        """The paths among these options that are not on this machine."""
        named = {n: Path(v) for n, v in self.options.items() if isinstance(v, str)}
        paths = {n for n, option in options.items() if option.is_path}
        return {n: p for n, p in named.items() if n in paths and not p.exists()}

    @classmethod
    def of_file(cls, source: Source) -> "PartSpec":
        """The spec of a plugin file."""
        return cls(source.reference, {}, source.code)


PART_KINDS = (Kind.SPACE, Kind.TASK, Kind.TRAINER, Kind.STRATEGY, Kind.PRUNER)


START_SECONDS = 120.0
"""How long a process that makes parts from a recipe may take until it is ready."""


@dataclass(frozen=True)
class Recipe:
    """What another process of this machine needs to make the same parts.

    named: files and modules that the user approved on the command line, which may be copies.
    """

    parts: Mapping[Kind, PartSpec]
    plugins: tuple[PartSpec, ...] = ()
    named: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every part lies where another process finds it."""
        return not any(part.reference.startswith(NOWHERE) for part in self.parts.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "parts": {kind.value: jsonable_deep(asdict(part)) for kind, part in self.parts.items()},
            "plugins": [jsonable_deep(asdict(part)) for part in self.plugins],
            "named": list(self.named),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        parts = {Kind(kind): part_spec(part) for kind, part in data["parts"].items()}
        return cls(parts, tuple(part_spec(p) for p in data["plugins"]), tuple(data["named"]))

    def load(self) -> dict[Kind, Part]:
        """Build the parts; raises as `load` does."""
        registry = Registry(trusting(False, self.named))
        for plugin in self.plugins:
            registry.add_file(plugin.reference, plugin.code)
        return {kind: load(part, kind, registry) for kind, part in self.parts.items()}


def load(spec: PartSpec, kind: Kind, registry: Registry) -> Part:
    """Build a part from its spec, checking digests and what this user has approved.

    Raises:
        StorageError: the spec names code without saying what it held.
        UntrustedError: it names code or paths this user has not approved.
        UsageError: the code, or a file among the options, changed since the study was made.
    """
    if ":" in spec.reference and spec.code is None:
        raise StorageError(f"the study's spec is damaged: {spec.reference} has no SHA-256")
    offer = registry.find(kind, spec.reference, spec.code)
    part = approved(offer.build(spec.options), kind, registry)
    for path, digest in spec.files.items():
        if part.files.get(path) != digest:
            raise UsageError(
                f"{path}, an option of {offer.label}, has changed since the study was made: put "
                "it back, or start a new study"
            )
    return replace(part, files=spec.files)


def path_claim(kind: Kind, option: str, path: str) -> str:
    """What is approved of a path: that this option reads it, and nothing else."""
    return f"path {kind.value}.{option} {path}"


def approved(part: Part, kind: Kind, registry: Registry) -> Part:
    """The part with what its files hold, once this user has approved its paths.

    Raises:
        UntrustedError: this user has not.
    """
    for name, path in part.paths():
        claim = path_claim(kind, name, path)
        registry.trust.require(claim, f"the path {path} (option {kind.value}.{name})", path)
    if kind is Kind.TASK:
        return part
    return replace(part, files={path: sha256(found) for path, found in _files(part)})


def _files(part: Part) -> Iterator[tuple[str, bytes]]:
    for name, path in part.paths():
        try:
            if Path(path).is_file():
                yield path, Path(path).read_bytes()
        except OSError as error:
            raise UsageError(
                f"{part.offer.label} option {name}: cannot read {path}: {error.strerror}"
            ) from error


def jsonable_deep(value: Any) -> Any:
    """Nested mappings and sequences as JSON values."""
    if isinstance(value, Mapping):
        return {key: jsonable_deep(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable_deep(item) for item in value]
    return jsonable(value)


def part_spec(data: Mapping[str, Any]) -> PartSpec:
    code = data["code"]
    return PartSpec(
        str(data["reference"]),
        dict(data["options"]),
        Code(str(code["sha256"]), dict(code["beside"])) if code else None,
        dict(data["files"]),
    )
