"""The Python interface: a search in three lines, the same as on the command line.

import automl
study, best = automl.search("mlp", task="digits", trials=30)
print(best.values, best.decisions, best.candidate.build())
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from automl.devices.placement import Place, arrange, starts_elsewhere
from automl.errors import UnknownNameError, UsageError
from automl.plugin.protocols import Launcher
from automl.plugin.registry import TOP_LEVEL, Kind, Registry
from automl.plugin.source import refuse_while_loading
from automl.plugin.trust import trusting
from automl.space.decisions import plain_decisions
from automl.spec import SECONDS, TimeLimits
from automl.storage.storage import storage_from
from automl.study.found import Found, best
from automl.study.study import (
    Limits,
    Study,
    create,
    open_study,
    plan,
)
from automl.study.warm_start import first_decisions
from automl.workers.session import Session


class Result(NamedTuple):
    """A study, and its best candidate; None where no trial completed."""

    study: Study
    best: Found | None


def search(
    space: str | Callable[..., Any],
    *,
    task: str | Callable[..., Any] = "digits",
    trainer: str | Callable[..., Any] = "supervised",
    strategy: str | Callable[..., Any] = "tpe",
    pruner: str | Callable[..., Any] = "none",
    options: Mapping[str, Mapping[str, object]] | None = None,
    objectives: Sequence[str] = (),
    requirements: Sequence[str] = (),
    trials: int | None = None,
    evaluations: int | None = None,
    timeout: float | None = None,
    gpu_hours: float | None = None,
    workers: int | str = 1,
    per_device: int | None = None,
    device: str = "auto",
    storage: str | None = None,
    ledger: str | None = None,
    trust_storage: bool = False,
    study: str | None = None,
    seed: int = 0,
    cache: bool = True,
    cache_scope: str | None = None,
    launcher: str = "local",
    plugins: Sequence[str] = (),
    data_dir: str | Path | None = None,
    trial_timeout: float | None = None,
    epoch_timeout: float | None = None,
    cost_metric: str = SECONDS,
    enqueue: Sequence[Mapping[str, Any]] = (),
    warm_start: str | None = None,
    keep_models: int = 1,
) -> Result:
    """Search a space on a task and return the study with its best candidate.

    space, task, trainer, strategy, pruner: a name, `file.py:name`, `module:name`, or the function
    or class itself. options: by part, {"trainer": {"epochs": 5}}. requirements: bounds that the
    best has to keep to, ["parameters<=1e6"]. timeout, trial_timeout,
    epoch_timeout: seconds. launcher: what starts further workers, with its options under
    "launcher". enqueue: decisions of the first trials, [{"lr": 0.01}, …]; the strategy draws what
    they leave out. warm_start: a study of this storage whose five best decisions come first, too.
    Other arguments are those of `automl search`.

    Raises:
        UsageError: a name, an option or a value is wrong.
        StorageError: the database cannot be used.
        Interrupted: Ctrl-C; `resume` goes on.
    """
    refuse_while_loading("automl.search")
    registry = Registry()
    given = {
        Kind.SPACE: space,
        Kind.TASK: task,
        Kind.TRAINER: trainer,
        Kind.STRATEGY: strategy,
        Kind.PRUNER: pruner,
    }
    references = {kind: registry.refer(kind, value) for kind, value in given.items()}
    of_parts = dict(options or {})
    own = of_parts.pop(Kind.LAUNCHER.value, {})
    started = _starting(registry, launcher, own, workers, device, per_device)
    made = plan(
        registry,
        references,
        of_parts,
        objectives=objectives,
        requirements=requirements,
        seed=seed,
        cache=cache,
        cache_scope=cache_scope,
        plugins=plugins,
        data_dir=None if data_dir is None else Path(data_dir),
        time_limits=TimeLimits(trial_timeout, epoch_timeout),
        cost_metric=cost_metric,
        models=keep_models,
    )
    limits = Limits(trials, evaluations, timeout, gpu_hours)
    opened = storage_from(storage, ledger, trust_storage)
    source = None if warm_start is None else open_study(opened, warm_start)
    first = first_decisions(made, limits, _queued(enqueue), source)
    created = create(opened, made, limits, study, first)
    return _run(Session(created, made.parts, registry, *started))


def resume(
    study: str,
    *,
    storage: str | None = None,
    ledger: str | None = None,
    trust_storage: bool = False,
    trials: int | None = None,
    evaluations: int | None = None,
    timeout: float | None = None,
    gpu_hours: float | None = None,
    workers: int | str = 1,
    per_device: int | None = None,
    device: str = "auto",
    launcher: str = "local",
    options: Mapping[str, Mapping[str, object]] | None = None,
    trust_plugins: bool = False,
    plugins: Sequence[str] = (),
    data_dir: str | Path | None = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
) -> Result:
    """Go on with a study from its database alone; `trials` and `evaluations` are so many more.

    options: those of the launcher, {"launcher": {…}}; the study has all others. plugins: files,
    modules and paths of the study that you approve, or your copies of its files. enqueue: as
    `search` has it.

    Raises:
        UnknownNameError: there is no such study.
        UntrustedError: it names code or paths this user has not approved.
    """
    refuse_while_loading("automl.resume")
    registry = Registry(trusting(trust_plugins, plugins))
    for part in options or {}:
        if part != Kind.LAUNCHER.value:
            raise UnknownNameError("part in options of resume", part, [Kind.LAUNCHER.value])
    own = (options or {}).get(Kind.LAUNCHER.value, {})
    started = _starting(registry, launcher, own, workers, device, per_device)
    opened = open_study(storage_from(storage, ledger, trust_storage), study)
    parts = opened.load_parts(registry, None if data_dir is None else Path(data_dir))
    opened.extend(Limits(trials, evaluations, timeout, gpu_hours), _queued(enqueue))
    return _run(Session(opened, parts, registry, *started))


def _starting(
    registry: Registry,
    launcher: str,
    options: Mapping[str, object],
    workers: int | str,
    device: str,
    per_device: int | None,
) -> tuple[Launcher, tuple[Place, ...]]:
    """What starts workers, and where they work; looked at before a study is made.

    This process is not bound to its device, for the rest of it is the caller's own.
    """
    starter = registry.build(Kind.LAUNCHER, launcher, options).make()
    places = arrange(starter, str(workers), device, per_device)
    if registry.in_process and (len(places) > 1 or starts_elsewhere(starter)):
        raise UsageError(
            f"{registry.in_process[0]} cannot be loaded by other workers: {TOP_LEVEL}, or use one "
            "worker"
        )
    return starter, places


def _queued(enqueue: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(enqueue, Mapping | str):
        raise UsageError(f'enqueue: expected a list such as [{{"lr": 0.01}}], got {enqueue!r}')
    return [plain_decisions(given) for given in enqueue]


def _run(session: Session) -> Result:
    session.run()
    return Result(session.study, next(iter(best(session.study, session.parts)), None))
