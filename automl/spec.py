"""A study's spec: all that is needed to rebuild its parts anywhere, stored with the study."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from automl.errors import StorageError, UsageError
from automl.identity.fingerprint import Level
from automl.options import Option, jsonable, options_of, resolve
from automl.registry import Kind, Part, Registry
from automl.report import Direction, Objective, Requirement
from automl.sources import NOWHERE
from automl.trust import Code, Source, sha256, trusting

FORMAT = 1
ATTRIBUTE = "automl"
"""The one attribute of ours on Optuna's studies and trials."""
SECONDS = "seconds"
"""The cost of a trial as it is measured, rather than one that its trainer reports."""


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


class Degenerate(Enum):
    """What becomes of a candidate whose outputs are constant, or not finite, in its probe."""

    EVALUATE = "evaluate"
    FAIL = "fail"


class Scope(Enum):
    """Whose results a study may reuse: its own, or those of every study in its storage."""

    STUDY = "study"
    STORAGE = "storage"


@dataclass(frozen=True)
class Cache:
    """How results are shared; `-o cache.…` on the command line.

    repeats: evaluations of one function, under other seeds, before their mean is served.
    forget: the probability that a hit drops what is known and evaluates anew. audit: the share of
    hits that are evaluated anyway, to measure how often sharing was wrong. strict: functions
    whose canonical graphs have other parameters are not shared. levels: those in use.
    scope: whose results are reused. degenerate: what becomes of candidates whose outputs are
    constant or not finite; none of them is shared by L2. probe_share: the largest share of an
    evaluation's time that a probe may cost; `inf` probes always. probe_seconds,
    probe_megabytes: where a probe is ended. keep: how many functions the storage holds at most;
    the least recently used leave.
    exhausted_after: known candidates in a row that end a study.

    Raises:
        UsageError: a value out of its range.
    """

    enabled: bool = True
    exhausted_after: int = 100
    repeats: int = 1
    forget: float = 0.0
    audit: float = 0.0
    strict: bool = False
    levels: tuple[Level, ...] = tuple(Level)
    scope: Scope = Scope.STUDY
    degenerate: Degenerate = Degenerate.EVALUATE
    probe_share: float = 0.01
    probe_seconds: float = 60.0
    probe_megabytes: int = 4096
    keep: int = 100_000

    def __post_init__(self) -> None:
        for name in ("exhausted_after", "repeats", "keep", "probe_megabytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"cache option {name}: expected at least 1")
        for name in ("forget", "audit"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"cache option {name}: expected a probability from 0 to 1")
        for name in ("probe_share", "probe_seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"cache option {name}: expected a number, at least 0")
        if Level.L0 not in self.levels:
            raise UsageError("cache option levels: L0 is always in use: name it, too")


@dataclass(frozen=True)
class TimeLimits:
    """How long a trial, and a step of it from report to report, may take; None is without limit.

    Raises:
        UsageError: a limit that is not positive.
    """

    trial: float | None = None
    epoch: float | None = None

    def __post_init__(self) -> None:
        for name in ("trial", "epoch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name}-timeout: expected more than 0 s, got {value}")


@dataclass(frozen=True)
class Spec:
    """What a study searches, on what, by what; immutable once the study exists."""

    uuid: str
    space: PartSpec
    task: PartSpec
    trainer: PartSpec
    strategy: PartSpec
    pruner: PartSpec
    objectives: tuple[Objective, ...]
    seed: int
    data: str
    cache: Cache = Cache()
    plugins: tuple[PartSpec, ...] = ()
    judge: PartSpec | None = None
    """The trainer that trains again what the trainer of open decisions found."""
    time_limits: TimeLimits = TimeLimits()
    cost_metric: str = SECONDS
    """What counts as a trial's device time: a metric that its trainer reports, or as measured."""
    models: int = 1
    """The weights of so many of the best trials are kept."""
    requirements: tuple[Requirement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{key: jsonable_deep(value) for key, value in asdict(self).items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Spec":
        """Read a spec from a study's attribute.

        Raises:
            StorageError: it is of a newer format, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else data
            raise StorageError(
                f"the study's spec has format {found!r}, this automl reads {FORMAT}: upgrade automl"
            )
        try:
            return _read(data)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"the study's spec is damaged: {error!r}") from error

    def parts(self) -> dict[Kind, PartSpec]:
        return {kind: getattr(self, kind.value) for kind in PART_KINDS}


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
        parts = {Kind(kind): _part(part) for kind, part in data["parts"].items()}
        return cls(parts, tuple(_part(p) for p in data["plugins"]), tuple(data["named"]))

    def load(self) -> dict[Kind, Part]:
        """Build the parts; raises as `load` does."""
        registry = Registry(trusting(False, self.named))
        for plugin in self.plugins:
            registry.add_file(plugin.reference, plugin.code)
        return {kind: load(part, kind, registry) for kind, part in self.parts.items()}


PART_KINDS = (Kind.SPACE, Kind.TASK, Kind.TRAINER, Kind.STRATEGY, Kind.PRUNER)


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


def load_plugins(spec: Spec, registry: Registry) -> None:
    """Load the plugin files that a study was made with."""
    for plugin in spec.plugins:
        registry.add_file(plugin.reference, plugin.code)


def jsonable_deep(value: Any) -> Any:
    """Nested mappings and sequences as JSON values."""
    if isinstance(value, Mapping):
        return {key: jsonable_deep(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable_deep(item) for item in value]
    return jsonable(value)


def _read(data: Mapping[str, Any]) -> Spec:
    parts: dict[str, Any] = {kind.value: _part(data[kind.value]) for kind in PART_KINDS}
    return Spec(
        uuid=str(data["uuid"]),
        objectives=tuple(
            Objective(item["metric"], Direction(item["direction"])) for item in data["objectives"]
        ),
        seed=int(data["seed"]),
        data=str(data["data"]),
        cache=Cache(**resolve("cache", options_of(Cache, frozenset()), data["cache"])),
        plugins=tuple(_part(item) for item in data["plugins"]),
        judge=_part(data["judge"]) if data["judge"] else None,
        **parts,
        time_limits=TimeLimits(**data.get("time_limits", {})),
        cost_metric=str(data.get("cost_metric", SECONDS)),
        models=int(data.get("models", 1)),
        requirements=tuple(_requirement(item) for item in data.get("requirements", ())),
    )


def _requirement(data: Mapping[str, Any]) -> Requirement:
    return Requirement(str(data["metric"]), float(data["bound"]), bool(data["at_least"]))


def _part(data: Mapping[str, Any]) -> PartSpec:
    code = data["code"]
    return PartSpec(
        str(data["reference"]),
        dict(data["options"]),
        Code(str(code["sha256"]), dict(code["beside"])) if code else None,
        dict(data["files"]),
    )
