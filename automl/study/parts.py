"""The parts of a study in this process, and the candidates that they make."""

import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from automl.errors import (
    PluginError,
    TimeLimitError,
    UnstorableError,
)
from automl.plugin.protocols import Context, SearchSpace, Task, Trainer
from automl.plugin.recipe import PartSpec, Recipe
from automl.plugin.registry import Kind, Part, Registry
from automl.space.candidate import Candidate, propose
from automl.space.files_read import loading, read_by_code
from automl.storable import by_metric_name
from automl.storage.optuna_logging import silence_optuna
from automl.trial_code.boundary import TrialCode

DATA_DIR = "data_dir"
"""A task's option that `--data-dir` fills."""


@dataclass(frozen=True)
class Parts:
    """The parts of a study, built in this process.

    Attributes:
        space: The search space.
        task: The task.
        trainer: The trainer.
        strategy: Makes samplers.
        pruner: The pruner.
        names: The names of the parts.
        side_keys: Everything else that a result depends on.
        recipe: How another process builds the same parts.
        judge: The same parts with the trainer that judges, if there is one.
        data_dir: The folder of the study's data on this machine.
    """

    space: SearchSpace
    task: Task
    trainer: Trainer
    strategy: Part
    pruner: BasePruner
    names: Mapping[Kind, str]
    side_keys: Mapping[str, Any]
    recipe: Recipe
    judge: "Parts | None" = None
    data_dir: Path | None = None

    def sampler(
        self, seed: int, study_seed: int | None = None, context: Context | None = None
    ) -> BaseSampler:
        """Make a sampler of the strategy.

        Args:
            seed: The seed of the trial.
            study_seed: The seed of the study. Default: the same.
            context: Answers a strategy's questions about earlier results.
        """
        seeds = {"seed": seed, "study_seed": seed if study_seed is None else study_seed}
        return cast(BaseSampler, self.strategy.make(**seeds, context=context))


def rebuild(parts: Parts, decisions: Mapping[str, Any], number: int = 0) -> Candidate:
    """Make the candidate of these decisions; missing ones are left open."""
    return propose(
        lambda trial: parts.space.candidate(trial, parts.task),
        optuna.trial.FixedTrial(dict(decisions), number),
        lambda name, distribution: name not in decisions,
        space=parts.names[Kind.SPACE],
        trainer=parts.names[Kind.TRAINER],
    )


def costs_of(parts: Parts, candidate: Candidate) -> Mapping[str, float]:
    """The candidate's own costs; empty if the trainer cannot compute them.

    Raises:
        UnstorableError: A database cannot store their names.
    """
    try:
        with TrialCode():
            costs = parts.trainer.costs(candidate, parts.task)
            return by_metric_name({name: float(value) for name, value in costs.items()})
    except (TimeLimitError, UnstorableError):
        raise
    except Exception:
        return {}  # training will report the error


def lost_decisions(parts: Parts, decisions: Mapping[str, Any], number: int = 0) -> list[str]:
    """Decisions that a space asks for but that neither the trial nor the trainer has."""
    lost: list[str] = []

    def opens(name: str, distribution: BaseDistribution) -> bool:
        if name not in decisions and not parts.trainer.opens(name, distribution):
            lost.append(name)
        return name not in decisions

    trial = optuna.trial.FixedTrial(dict(decisions), number)
    with suppress(Exception), TrialCode():
        propose(lambda deciding: parts.space.candidate(deciding, parts.task), trial, opens)
    return lost


def make_parts(
    built: Mapping[Kind, Part],
    judge: Part | None,
    plugins: tuple[PartSpec, ...],
    registry: Registry,
) -> Parts:
    silence_optuna()
    with loading():
        made = {kind: built[kind].make() for kind in (Kind.SPACE, Kind.TRAINER)}
    made |= {kind: built[kind].make() for kind in (Kind.TASK, Kind.PRUNER)}
    # A wrong option is found here, not in the first trial.
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
    with built[Kind.TASK].offer.naming_errors():
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
