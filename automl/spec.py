"""A study's spec: all that is needed to rebuild its parts anywhere, stored with the study."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from automl.errors import StorageError, UsageError
from automl.options import jsonable
from automl.registry import Kind, Part, Registry
from automl.report import Direction, Objective

FORMAT = 1
ATTRIBUTE = "automl"
"""The one attribute of ours on Optuna's studies and trials."""


@dataclass(frozen=True)
class PartSpec:
    """A part as it was asked for: its reference, its options, and the digest of its code.

    options: all of them, so that a default that changes later does not change the study.
    paths: the options that are paths, which another user must approve.
    """

    reference: str
    options: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, part: Part) -> "PartSpec":
        offer = part.offer
        own = offer.source is not None and ":" in offer.name
        name = offer.name.rpartition(":")[2]
        reference = f"{offer.source.reference}:{name}" if own and offer.source else offer.name
        options = {key: jsonable(value) for key, value in part.options.items()}
        digest = offer.source.sha256 if offer.source else None
        return cls(reference, options, digest, tuple(part.paths()))


@dataclass(frozen=True)
class Cache:
    """How results are shared; `-o cache.…` on the command line.

    exhausted_after: known candidates in a row that end a study.
    """

    enabled: bool = True
    exhausted_after: int = 100

    def __post_init__(self) -> None:
        if self.exhausted_after < 1:
            raise UsageError("cache option exhausted_after: expected at least 1")


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


PART_KINDS = (Kind.SPACE, Kind.TASK, Kind.TRAINER, Kind.STRATEGY, Kind.PRUNER)


def load(spec: PartSpec, kind: Kind, registry: Registry) -> Part:
    """Build a part from its spec, checking digests and what this user has approved."""
    offer = registry.find(kind, spec.reference, spec.sha256)
    part = offer.build(spec.options)
    approve_paths(part, kind, registry)
    return part


def approve_paths(part: Part, kind: Kind, registry: Registry) -> None:
    """See that this user has approved the paths among a part's options."""
    for name, path in part.paths().items():
        claim = f"path {kind.value}.{name} {path}"
        registry.trust.require(claim, f"the path {path} (option {kind.value}.{name})", path)


def load_plugins(spec: Spec, registry: Registry) -> None:
    """Load the plugin files that a study was made with."""
    for plugin in spec.plugins:
        registry.add_file(plugin.reference, plugin.sha256)


def jsonable_deep(value: Any) -> Any:
    """Nested mappings and sequences as JSON values."""
    if isinstance(value, Mapping):
        return {key: jsonable_deep(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable_deep(item) for item in value]
    return jsonable(value)


def _read(data: Mapping[str, Any]) -> Spec:
    parts = {kind.value: _part(data[kind.value]) for kind in PART_KINDS}
    return Spec(
        uuid=str(data["uuid"]),
        objectives=tuple(
            Objective(item["metric"], Direction(item["direction"])) for item in data["objectives"]
        ),
        seed=int(data["seed"]),
        data=str(data["data"]),
        cache=Cache(**data["cache"]),
        plugins=tuple(_part(item) for item in data["plugins"]),
        judge=_part(data["judge"]) if data["judge"] else None,
        **parts,
    )


def _part(data: Mapping[str, Any]) -> PartSpec:
    return PartSpec(
        str(data["reference"]), dict(data["options"]), data["sha256"], tuple(data["paths"])
    )
