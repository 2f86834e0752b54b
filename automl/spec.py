"""A study's spec: all that is needed to rebuild its parts anywhere, stored with the study."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from automl.errors import StorageError, UsageError
from automl.identity.fingerprint import Level
from automl.plugin.options import options_of, resolve
from automl.plugin.recipe import PART_KINDS, PartSpec, jsonable_deep, part_spec
from automl.plugin.registry import Kind, Registry
from automl.plugin.report import Direction, Objective, Requirement
from automl.trial_code.deadline import TimeLimits

FORMAT = 1
ATTRIBUTE = "automl"
"""The one attribute of ours on Optuna's studies and trials."""
SECONDS = "seconds"
"""The cost of a trial as it is measured, rather than one that its trainer reports."""


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
    time_limits: TimeLimits = field(default_factory=TimeLimits)
    cost_metric: str = SECONDS
    """What counts as a trial's device time: a metric that its trainer reports, or as measured."""
    keep_models: int = 1
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


def load_plugins(spec: Spec, registry: Registry) -> None:
    """Load the plugin files that a study was made with."""
    for plugin in spec.plugins:
        registry.add_file(plugin.reference, plugin.code)


def _read(data: Mapping[str, Any]) -> Spec:
    parts: dict[str, Any] = {kind.value: part_spec(data[kind.value]) for kind in PART_KINDS}
    return Spec(
        uuid=str(data["uuid"]),
        objectives=tuple(
            Objective(item["metric"], Direction(item["direction"])) for item in data["objectives"]
        ),
        seed=int(data["seed"]),
        data=str(data["data"]),
        cache=Cache(**resolve("cache", options_of(Cache, frozenset()), data["cache"])),
        plugins=tuple(part_spec(item) for item in data["plugins"]),
        judge=part_spec(data["judge"]) if data["judge"] else None,
        **parts,
        time_limits=TimeLimits(**data.get("time_limits", {})),
        cost_metric=str(data.get("cost_metric", SECONDS)),
        keep_models=int(data.get("keep_models", data.get("models", 1))),
        requirements=tuple(_requirement(item) for item in data.get("requirements", ())),
    )


def _requirement(data: Mapping[str, Any]) -> Requirement:
    return Requirement(str(data["metric"]), float(data["bound"]), bool(data["at_least"]))
