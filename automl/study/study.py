"""Studies: plan, create, open and extend them, and find their best trials."""

import importlib.metadata
import itertools
import logging
import math
import operator
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import optuna
from optuna import Study as OptunaStudy
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.data.arrays import check_inputs
from automl.errors import (
    PluginError,
    StorageError,
    TimeLimitError,
    UnknownNameError,
    UsageError,
    first_line,
)
from automl.ledger.audits import Audits
from automl.ledger.budget import no_room
from automl.ledger.ledger import LEASE_SECONDS, Ledger
from automl.ledger.queries import TrialView, Views
from automl.ledger.transaction import translate_errors
from automl.plugin.options import options_of, resolve
from automl.plugin.protocols import Context, SearchSpace, Task, Trainer, derive_seed
from automl.plugin.recipe import PART_KINDS, PartSpec, Recipe, approved, load, path_claim
from automl.plugin.registry import Kind, Part, Registry
from automl.plugin.report import COSTS, SHORT, Direction, Objective, Requirement, constraint_key
from automl.space.candidate import Candidate, propose
from automl.space.files_read import loading, read_by_code
from automl.spec import ATTRIBUTE, SECONDS, Cache, Spec, TimeLimits, load_plugins
from automl.state_directory import artifacts_directory
from automl.storable import metric_name, name_fault, short
from automl.storage.collation import name_conflict
from automl.storage.databases import mask
from automl.storage.optuna_logging import silence_optuna
from automl.storage.storage import Storage
from automl.study.pareto import point_of, unbeaten
from automl.text.formatting import counted
from automl.trial_code import TrialCode

_log = logging.getLogger("automl")

DEFAULTS = {
    Kind.TASK: "digits",
    Kind.TRAINER: "supervised",
    Kind.STRATEGY: "tpe",
    Kind.PRUNER: "none",
}
DEFAULT_TRIALS = 20
CACHE = "cache"
JUDGE = "judge"
"""`-o trainer.judge=NAME` names the trainer that judges; its options are `-o judge.…`."""
LEASE = "AUTOML_LEASE_SECONDS"
DATA_DIR = "data_dir"
"""A task's option that `--data-dir` fills."""


@dataclass(frozen=True)
class Limits:
    """What a search may spend; None is without limit."""

    trials: int | None = None
    evaluations: int | None = None
    timeout: float | None = None
    gpu_hours: float | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "evaluations", "timeout", "gpu_hours"):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if not isinstance(value, int | float | None) or isinstance(value, bool):
                raise UsageError(f"{name}: expected a number, got {value!r}")
            if value is not None and not value > 0:
                raise UsageError(f"{option}: expected more than 0, got {value}")

    @property
    def device_seconds(self) -> float | None:
        """The budget of time on devices, summed over all workers."""
        return None if self.gpu_hours is None else self.gpu_hours * 3600

    def room(self, most: int) -> int:
        """How many trials fit in, of so many at most."""
        limits = [limit for limit in (self.trials, self.evaluations) if limit is not None]
        return min([most, *limits])

    def require_room(self, trials: int) -> None:
        """See that so many trials fit in; raises UsageError where they do not."""
        if self.room(trials) < trials:
            raise no_room(trials, self.room(trials))

    def or_default(self) -> "Limits":
        """These limits; 20 trials where there is none at all."""
        return self if self != Limits() else Limits(trials=DEFAULT_TRIALS)


@dataclass(frozen=True)
class Parts:
    """The living parts of a study in this process."""

    space: SearchSpace
    task: Task
    trainer: Trainer
    strategy: Part
    pruner: BasePruner
    names: Mapping[Kind, str]
    side_keys: Mapping[str, Any]
    recipe: Recipe
    judge: "Parts | None" = None
    """The same parts with the trainer that judges, where there is one."""
    data_dir: Path | None = None
    """Where the study's data is sought on this machine."""

    def sampler(
        self, seed: int, study_seed: int | None = None, context: Context | None = None
    ) -> BaseSampler:
        """The strategy made anew under a trial's seed; study_seed: by default the same."""
        seeds = {"seed": seed, "study_seed": seed if study_seed is None else study_seed}
        return cast(BaseSampler, self.strategy.make(**seeds, context=context))


@dataclass(frozen=True)
class Plan:
    """A search as it was asked for, with all names found and all options resolved."""

    parts: Parts
    spec: Spec


@dataclass(frozen=True)
class Study:
    """A study in a storage: Optuna's trials, our ledger, and the spec they share."""

    storage: Storage
    name: str
    spec: Spec = field(repr=False)
    optuna: OptunaStudy = field(repr=False)

    @cached_property
    def ledger(self) -> Ledger:
        metrics = tuple(objective.metric for objective in self.objectives)
        uuid, cache = self.spec.uuid, self.spec.cache
        return Ledger(self.storage.engine, uuid, cache, metrics, lease_seconds())

    @cached_property
    def views(self) -> Views:
        metrics = tuple(objective.metric for objective in self.objectives)
        return Views(self.storage.engine, self.spec.uuid, metrics)

    @cached_property
    def audits(self) -> Audits:
        return Audits(self.storage.engine, self.spec.uuid)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.spec.objectives

    def directory(self, number: int) -> Path:
        """Where a trial keeps its checkpoint; made of the study's UUID and the number alone."""
        # A database is data: SQLite gives back any text as a number.
        name = str(operator.index(number))
        return artifacts_directory() / str(uuid.UUID(self.spec.uuid)) / name

    def models_directory(self) -> Path:
        """Where the weights of the best trials are kept."""
        return self.directory(0).parent / "models"

    def remove_checkpoint(self, number: int) -> None:
        """Remove what a trial that has ended kept to go on from."""
        directory = self.directory(number)
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)

    def name_of(self, uuid: str) -> str:
        """The name of a study of this storage; its UUID where it is gone."""
        if uuid not in self._names:
            self._names.update({one.spec.uuid: one.name for one in all_studies(self.storage)})
        return self._names.get(uuid, uuid)

    @cached_property
    def _names(self) -> dict[str, str]:
        return {}

    def trial(self, number: int) -> TrialView:
        """The ledger's trial of this number.

        Raises:
            UsageError: there is none.
        """
        if (view := self.views.trial(number)) is None:
            there = counted(len(self.optuna.get_trials(deepcopy=False)), "trial")
            raise UsageError(f"study {self.name!r} has no trial {number}: it has {there}")
        return view

    def with_uuid(self, uuid: str | None) -> "Study":
        """The study of this storage that has the UUID; this one where it is None.

        Raises:
            UsageError: there is none any more.
        """
        if uuid is None:
            return self
        found = next((s for s in all_studies(self.storage) if s.spec.uuid == uuid), None)
        if found is None:
            raise UsageError(f"the trial was reused from a study that is gone ({uuid})")
        return found

    def decisions(self, number: int) -> dict[str, Any]:
        """The decisions of a trial, those of its trainer not included."""
        study_id = self.storage.trials.get_study_id_from_name(self.name)
        id = self.storage.trials.get_trial_id_from_study_id_trial_number(study_id, number)
        return dict(self.storage.trials.get_trial(id).params)

    def resume_command(self) -> str:
        """The line that goes on with this study."""
        return self.command("resume")

    def command(self, verb: str, *options: str) -> str:
        """An `automl` line on this study, as a person types it; never with a password."""
        return command_line(self.storage, self.name, verb, *options)

    def extend(self, limits: Limits, enqueue: Sequence[Mapping[str, Any]] = ()) -> None:
        """Allow so much more than the study has spent or may spend, and queue these decisions."""
        self.ledger.extend(
            limits.trials,
            limits.evaluations,
            limits.timeout,
            limits.device_seconds,
            enqueue,
        )

    def load_parts(self, registry: Registry, data_dir: Path | None = None) -> Parts:
        """Build the parts from the spec alone.

        data_dir: where its data lies on this machine; a file or folder of the task's that is not
        where it was is sought there, by its name.

        Raises:
            UntrustedError: they name code or paths this user has not approved.
            UsageError: a file is not there, or it or the data changed since the study was made.
        """
        load_plugins(self.spec, registry)
        specs = self.spec.parts()
        if data_dir is not None:
            specs[Kind.TASK] = _found_in(data_dir.resolve(), specs[Kind.TASK], registry)
        judge = load(self.spec.judge, Kind.TRAINER, registry) if self.spec.judge else None
        built = {k: load(s, k, registry) for k, s in specs.items()}
        with _hinting(specs[Kind.TASK], registry):
            parts = _parts(built, judge, self.spec.plugins, registry)
        parts = replace(parts, data_dir=data_dir)
        digest = parts.side_keys["data"]
        if digest != self.spec.data:
            raise UsageError(
                f"the data of task {parts.names[Kind.TASK]} changed since study {self.name!r} was "
                f"made, or this version of automl reads it otherwise (digest {digest[:12]}, the "
                f"study has {self.spec.data[:12]}): put the old back, or start a new study"
            )
        self.storage.vetted(parts.sampler(self.spec.seed))
        return parts

    def best_trials(self) -> list[FrozenTrial]:
        """The best complete trial, or with several objectives those that no other beats.

        Of several, the best by the first objective comes first.
        Only those count that keep to what the study requires, and only judged ones where there
        are any: what a trainer reports of decisions it tunes while it trains says little of what
        they give when trained from the start.
        """
        done = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        judged = [t for t in done if t.user_attrs.get(ATTRIBUTE, {}).get("judges") is not None]
        kept = [trial for trial in judged or done if keeps_to_requirements(trial)]
        points = [point_of(trial.values, self.objectives) for trial in kept]
        return [kept[place] for place in unbeaten(points)]

    def without_best(self) -> str:
        """Why no trial is the best, as a sentence without its end."""
        if self.views.counts().complete:
            required = " and ".join(map(str, self.spec.requirements))
            return f"no trial of study {self.name!r} keeps to what it requires: {required}"
        return f"no trial of study {self.name!r} has completed"


def _found_in(folder: Path, task: PartSpec, registry: Registry) -> PartSpec:
    """The task with its data in a folder that the user has named, and so approved."""
    options = registry.find(Kind.TASK, task.reference, task.code).options()
    absent = task.absent(options).items()
    # A stored path is data: it must not lead out of the folder.
    sought = {name: folder / path.name for name, path in absent if path.name not in ("", "..")}
    moved = {name: str(path) for name, path in sought.items() if path.exists()}
    if DATA_DIR in task.options:
        moved[DATA_DIR] = str(folder)
    claims = (path_claim(Kind.TASK, name, path) for name, path in moved.items())
    registry.trust = registry.trust.approving(claims)
    return replace(task, options={**task.options, **moved})


@contextmanager
def _hinting(task: PartSpec, registry: Registry) -> Iterator[None]:
    """Say how to find data that lies elsewhere where a task fails for want of it."""
    try:
        yield
    except UsageError as error:
        absent = task.absent(registry.find(Kind.TASK, task.reference, task.code).options())
        absent.pop(DATA_DIR, None)
        if not absent:
            raise
        hint = f"if {next(iter(absent.values())).name} was moved, name its folder by --data-dir"
        raise UsageError(f"{error}; {hint}") from error


def keeps_to_requirements(trial: FrozenTrial) -> bool:
    """Whether a trial that has ended broke none of its study's requirements."""
    return all(excess <= 0 for excess in trial.constraints.values())


def lease_seconds() -> float:
    """How long a worker's lease lasts unless it is renewed (AUTOML_LEASE_SECONDS).

    Raises:
        UsageError: it is no number, or less than a second.
    """
    given = os.environ.get(LEASE, LEASE_SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < math.inf:
        raise UsageError(f"{LEASE}: expected a number of seconds, at least 1, got {given!r}")
    return seconds


def plan(
    registry: Registry,
    references: Mapping[Kind, str],
    options: Mapping[str, Mapping[str, object]],
    *,
    objectives: Sequence[str] = (),
    requirements: Sequence[str] = (),
    seed: int = 0,
    cache: bool = True,
    cache_scope: str | None = None,
    plugins: Sequence[str] = (),
    data_dir: Path | None = None,
    time_limits: TimeLimits | None = None,
    cost_metric: str = SECONDS,
    models: int = 1,
) -> Plan:
    """Find every part of a search, resolve its options and look at its data.

    references: by kind; those left out have the defaults. options: by kind's name, and "cache".
    requirements: such as `parameters<=1e6`. cache_scope: short for the cache's option. models: the
    weights of so many of the best trials are kept.

    Raises:
        UsageError: and its children, where a name or an option is wrong.
    """
    sources = [registry.add_file(path) for path in plugins]
    _reject_unknown_parts(options)
    chosen = {**DEFAULTS, **references}
    split = {kind: registry.with_argument(kind, chosen[kind]) for kind in PART_KINDS}
    offers = {kind: registry.find(kind, name) for kind, (name, _) in split.items()}
    given = {
        kind: _merged(kind, argument, options.get(kind.value, {}))
        for kind, (_, argument) in split.items()
    }
    if data_dir is not None and DATA_DIR in offers[Kind.TASK].options():
        given[Kind.TASK].setdefault(DATA_DIR, data_dir)
    judge = _judge(registry, given[Kind.TRAINER].pop(JUDGE, None), options.get(JUDGE, {}))
    built = {kind: offer.build(given[kind]) for kind, offer in offers.items()}
    built = {kind: approved(part, kind, registry) for kind, part in built.items()}
    files = tuple(PartSpec.of_file(source) for source in sources)
    parts = _parts(built, judge and approved(judge, Kind.TRAINER, registry), files, registry)
    with offers[Kind.TASK].blaming():
        check_inputs(offers[Kind.TASK].label, parts.task)
    aims = _objectives(parts, objectives)
    _check_strategy(parts, aims)
    specs = {kind.value: PartSpec.of(part) for kind, part in built.items()}
    spec = Spec(
        uuid=str(uuid.uuid4()),
        space=specs["space"],
        task=specs["task"],
        trainer=specs["trainer"],
        strategy=specs["strategy"],
        pruner=specs["pruner"],
        objectives=aims,
        requirements=_requirements(parts, requirements),
        seed=seed,
        data=parts.side_keys["data"],
        cache=_cache(cache, options.get(CACHE, {}), cache_scope),
        plugins=files,
        judge=PartSpec.of(judge) if judge else None,
        time_limits=time_limits or TimeLimits(),
        cost_metric=cost_metric,
        models=_at_least_none(models),
    )
    return Plan(parts, spec)


def create(
    storage: Storage,
    plan: Plan,
    limits: Limits,
    name: str | None = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
) -> Study:
    """Enter a new study into the storage.

    enqueue: decisions of trials that come first.

    Raises:
        UsageError: a study of that name exists, or its budget is too small for what is queued.
        StorageError: the database cannot be written.
    """
    if name is not None and not name.strip():
        raise UsageError("--study: expected a name, got none")
    if name is not None and (fault := name_fault(name)) is not None:
        raise UsageError(f"--study: {short(name)} cannot be stored: {fault}")
    storage.vetted(plan.parts.sampler(plan.spec.seed))
    _check_names(storage, plan)
    limits = limits.or_default()
    limits.require_room(len(enqueue))
    with translate_errors(storage.engine):
        made = _create_named(storage, plan, name)
        study = Study(storage, made.study_name, plan.spec, made)
        study.ledger.open_study(
            limits.trials, limits.evaluations, limits.timeout, limits.device_seconds
        )
        study.ledger.enqueue(enqueue)
        made.set_metric_names([objective.metric for objective in plan.spec.objectives])
        # The spec comes last: a study that has one is whole.
        made.set_user_attr(ATTRIBUTE, plan.spec.to_json())
    return study


def open_study(storage: Storage, name: str) -> Study:
    """Open a study by name.

    Raises:
        UnknownNameError: there is none of that name here.
        StorageError: it is not one of ours, or of a newer version.
    """
    with translate_errors(storage.engine):
        try:
            if name_fault(name) is not None or _exact_name(storage, name) != name:
                raise KeyError(name)
            found = optuna.load_study(study_name=name, storage=storage.trials)
        except KeyError:
            known = optuna.get_all_study_names(storage.trials)
            raise UnknownNameError("study", name, known, f"storage {storage.masked}") from None
    if ATTRIBUTE not in found.user_attrs:
        raise StorageError(
            f"study {name!r} has no automl spec: it was made by plain Optuna, or its making was "
            "cut short; choose another name for a new search"
        )
    try:
        spec = Spec.from_json(found.user_attrs[ATTRIBUTE])
    except StorageError as error:
        raise StorageError(f"study {name!r}: {error}") from error
    study = Study(storage, name, spec, found)
    if storage.ledger is not None and not study.ledger.has_study():
        raise StorageError(
            f"study {name!r} is not in the ledger {mask(storage.ledger)}: name the one it was "
            "started with by --ledger or AUTOML_LEDGER"
        )
    return study


def all_studies(storage: Storage) -> list[Study]:
    """Every study of ours in the storage, in the order they were made.

    One that cannot be read, such as that of a newer version, is left out with a warning.
    """
    with translate_errors(storage.engine):
        summaries = storage.trials.get_all_studies()
    studies = []
    for summary in summaries:
        if ATTRIBUTE in summary.user_attrs:
            try:
                studies.append(open_study(storage, summary.study_name))
            except StorageError as error:
                _log.warning("left out: %s", error)
    return studies


def command_line(storage: Storage, study: str, verb: str, *options: str) -> str:
    """An `automl` line on a study, as a person types it; never with a password."""
    given = [word for word in (storage.option().strip(), *options) if word]
    name = shlex.quote(study)
    words = [*given, "--", name] if study.startswith("-") else [name, *given]
    unsaid = " and ".join(storage.variables)
    note = f"  (with {unsaid} set as now)" if unsaid else ""
    return " ".join(["automl", verb, *words]) + note


def rebuild(parts: Parts, decisions: Mapping[str, Any], number: int = 0) -> Candidate:
    """The candidate that these decisions make in a trial; those not given are left open."""
    return propose(
        lambda trial: parts.space.candidate(trial, parts.task),
        optuna.trial.FixedTrial(dict(decisions), number),
        lambda name, distribution: name not in decisions,
        space=parts.names[Kind.SPACE],
        trainer=parts.names[Kind.TRAINER],
    )


def costs_of(parts: Parts, candidate: Candidate) -> Mapping[str, float]:
    """The candidate's own costs; none where they cannot be had.

    Raises:
        UnstorableError: a database cannot hold their names.
    """
    try:
        with TrialCode():
            costs = parts.trainer.costs(candidate, parts.task)
            found = {str(name): float(value) for name, value in costs.items()}
    except TimeLimitError:
        raise
    except Exception:
        return {}  # what is wrong with the candidate, training will say
    for name in found:
        metric_name(name)
    return found


def lost_decisions(parts: Parts, decisions: Mapping[str, Any], number: int = 0) -> list[str]:
    """What a space asks for that neither is among a trial's decisions nor is the trainer's."""
    lost: list[str] = []

    def opens(name: str, distribution: BaseDistribution) -> bool:
        if name not in decisions and not parts.trainer.opens(name, distribution):
            lost.append(name)
        return name not in decisions

    trial = optuna.trial.FixedTrial(dict(decisions), number)
    with suppress(Exception), TrialCode():
        propose(lambda deciding: parts.space.candidate(deciding, parts.task), trial, opens)
    return lost


def _at_least_none(models: int) -> int:
    if models < 0:
        raise UsageError(f"--keep-models: expected 0 or more, got {models}")
    return models


def _merged(
    kind: Kind, argument: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    for name in argument.keys() & options.keys():
        raise UsageError(f"-o {kind.value}.{name} is given twice: after the colon, too")
    return {**argument, **options}


def _judge(registry: Registry, name: object, options: Mapping[str, object]) -> Part | None:
    if name is None:
        if options:
            raise UsageError("-o judge.… needs -o trainer.judge=NAME, such as supervised")
        return None
    return registry.build(Kind.TRAINER, str(name), options)


def _parts(
    built: Mapping[Kind, Part],
    judge: Part | None,
    plugins: tuple[PartSpec, ...],
    registry: Registry,
) -> Parts:
    silence_optuna()
    with loading():
        made = {kind: built[kind].make() for kind in (Kind.SPACE, Kind.TRAINER)}
    made |= {kind: built[kind].make() for kind in (Kind.TASK, Kind.PRUNER)}
    # A wrong option shows here, not in the first trial.
    built[Kind.STRATEGY].make(seed=0, study_seed=0)
    task = made[Kind.TASK]
    probed = {kind: PartSpec.of(built[kind]) for kind in (Kind.SPACE, Kind.TASK, Kind.TRAINER)}
    parts = Parts(
        space=made[Kind.SPACE],
        task=task,
        trainer=made[Kind.TRAINER],
        strategy=built[Kind.STRATEGY],
        pruner=made[Kind.PRUNER],
        names={kind: part.offer.name for kind, part in built.items()},
        side_keys=_side_keys(built, task, plugins),
        recipe=Recipe(probed, plugins, tuple(sorted(registry.trust.named))),
    )
    return replace(parts, judge=_judging(parts, judge)) if judge else parts


def _judging(parts: Parts, judge: Part) -> Parts:
    probed = {**parts.recipe.parts, Kind.TRAINER: PartSpec.of(judge)}
    return replace(
        parts,
        trainer=judge.make(),
        names={**parts.names, Kind.TRAINER: judge.offer.name},
        side_keys={**parts.side_keys, "trainer": judge.identity()},
        recipe=replace(parts.recipe, parts=probed),
    )


def _side_keys(
    built: Mapping[Kind, Part], task: Task, plugins: tuple[PartSpec, ...]
) -> dict[str, Any]:
    with built[Kind.TASK].offer.blaming():
        data, shape, metrics = task.digest(), list(task.signature.input_shape), task.metrics
    if not isinstance(data, str) or not metrics:
        found = f"digest {data!r}" if metrics else "no metrics"
        raise PluginError(
            f"{built[Kind.TASK].offer.label}: expected a digest of text and at least one metric, "
            f"got {found}"
        )
    return {
        "space": built[Kind.SPACE].identity(),
        "task": built[Kind.TASK].identity(),
        "trainer": built[Kind.TRAINER].identity(),
        "data": data,
        "input_shape": shape,
        "torch": ".".join(importlib.metadata.version("torch").split(".")[:2]),
        "automl": importlib.metadata.version("automl"),
        # Plugin files may declare operations that graphs of any space are made of.
        "plugins": sorted(plugin.code.digest() for plugin in plugins if plugin.code),
        **({"files": sorted(set(read_by_code.digests.values()))} if read_by_code.digests else {}),
    }


def _objectives(parts: Parts, asked: Sequence[str]) -> tuple[Objective, ...]:
    known = _metrics(parts)
    found = [_metric("objective", name, parts) for name in asked] or list(known)[:1]
    names = list(dict.fromkeys(found))
    if len(names) > 1 and not isinstance(parts.pruner, NopPruner):
        raise UsageError(
            f"pruner {parts.names[Kind.PRUNER]} cannot compare several objectives: "
            "use --pruner none or one --objective"
        )
    return tuple(Objective(name, known[name]) for name in names)


def _check_strategy(parts: Parts, objectives: Sequence[Objective]) -> None:
    """See that the strategy takes several objectives; some say only in a trial that they do not."""
    if len(objectives) == 1:
        return
    directions = [StudyDirection[objective.direction.name] for objective in objectives]
    try:
        trial = optuna.create_study(directions=directions, sampler=parts.sampler(0)).ask()
        trial.suggest_float("x", 0.0, 1.0, step=0.5)
    except ValueError as error:
        raise UsageError(
            f"strategy {parts.names[Kind.STRATEGY]}: {first_line(error)}: give it one --objective, "
            "or choose another"
        ) from error


def _requirements(parts: Parts, asked: Sequence[str]) -> tuple[Requirement, ...]:
    read = [Requirement.parse(text) for text in asked]
    found = [replace(each, metric=_metric("requirement", each.metric, parts)) for each in read]
    for each in found:
        if (fault := name_fault(constraint_key(each))) is not None:
            raise UsageError(f"--require: {short(str(each))} cannot be stored: {fault}")
    return tuple(found)


def _metric(what: str, name: str, parts: Parts) -> str:
    """The metric that a name asks for."""
    name, known = SHORT.get(name, name), _metrics(parts)
    if name not in known:
        raise UnknownNameError(f"{what} of task {parts.names[Kind.TASK]}", name, known)
    return name


def _metrics(parts: Parts) -> dict[str, Direction]:
    """What can be optimised or required: the task's metrics, and a candidate's costs."""
    return {**parts.task.metrics, **dict.fromkeys(COSTS, Direction.MINIMIZE)}


def _cache(enabled: bool, given: Mapping[str, object], scope: str | None) -> Cache:
    if scope is not None:
        if "scope" in given:
            raise UsageError("-o cache.scope is given twice: by --cache-scope, too")
        given = {**given, "scope": scope}
    known = options_of(Cache, frozenset({"enabled"}))
    return replace(Cache(enabled), **resolve(CACHE, known, given))


def _reject_unknown_parts(options: Mapping[str, object]) -> None:
    known = [*(kind.value for kind in PART_KINDS), Kind.LAUNCHER.value, CACHE, JUDGE]
    for part in options:
        if part not in known:
            raise UnknownNameError("part in -o part.option=value", part, known)


def _create_named(storage: Storage, plan: Plan, name: str | None) -> OptunaStudy:
    directions = [StudyDirection[o.direction.name] for o in plan.spec.objectives]
    stem = f"{_stem(plan.parts.names[Kind.SPACE])}-{_stem(plan.parts.names[Kind.TASK])}"
    taken = set() if name else set(optuna.get_all_study_names(storage.trials))
    while True:
        candidate = name or next(
            f"{stem}-{n}" for n in itertools.count(1) if f"{stem}-{n}" not in taken
        )
        try:
            return optuna.create_study(
                storage=storage.trials,
                study_name=candidate,
                directions=directions,
                sampler=plan.parts.sampler(plan.spec.seed),
                pruner=plan.parts.pruner,
            )
        except optuna.exceptions.DuplicatedStudyError:
            if name and (other := _exact_name(storage, name)) != name:
                raise UsageError(
                    f"study {name!r} and {other!r}, which exists, are one name in "
                    f"{storage.masked}, which ignores case, accents and trailing blanks: choose "
                    "another --study"
                ) from None
            if name:
                raise UsageError(
                    f"study {name!r} exists in {storage.masked}: go on with it by "
                    f"`{command_line(storage, name, 'resume')}`, or choose another --study"
                ) from None
            taken.add(candidate)


def _exact_name(storage: Storage, name: str) -> str:
    """A study's name as it was given; some databases find it by one that differs in case.

    Raises:
        KeyError: there is no such study.
    """
    id = storage.trials.get_study_id_from_name(name)
    return storage.trials.get_study_name_from_id(id)


def _check_names(storage: Storage, plan: Plan) -> None:
    """See that the database tells apart all names of a trial, as far as one proposal shows them.

    Raises:
        UsageError: it takes two for one, so that one value would be lost.
    """
    if storage.distinguishes_names:
        return
    required = [constraint_key(each) for each in plan.spec.requirements]
    proposed = _proposed(plan.parts)
    for kind, names in (
        ("decisions", list(proposed.params)),
        ("attributes", list(proposed.user_attrs)),
        ("requirements", required),
    ):
        for place, name in enumerate(names):
            if (other := storage.name_like(name, names[:place])) is not None:
                raise UsageError(str(name_conflict(kind, other, name, storage.masked)))


def _proposed(parts: Parts) -> FrozenTrial:
    """A trial that a space proposed on outside of any study; what fails there tells nothing."""
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    trial = study.ask()
    with suppress(Exception), TrialCode():
        propose(
            lambda deciding: parts.space.candidate(deciding, parts.task),
            trial,
            parts.trainer.opens,
        )
    return study.trials[0]


def _stem(name: str) -> str:
    last = re.split(r"[:.]", name)[-1]
    return re.sub(r"[\W_]+", "-", last.lower()).strip("-") or "own"


def trial_seed(spec: Spec, number: int, use: str) -> int:
    """The seed of one use in one trial: survives any interruption."""
    return derive_seed(spec.seed, number, use)
