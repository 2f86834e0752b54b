"""`automl search`: start a study and run it."""

from pathlib import Path
from typing import IO

import click

from automl.cli.arguments import (
    Location,
    data_dir_option,
    enqueue_option,
    json_option,
    limit_options,
    limits,
    open_storage,
    queued,
    storage_option,
    time_limits,
    training_options,
    worker_options,
)
from automl.cli.completing import names
from automl.cli.study_file import StudyFileCommand, require_free, write


@click.command("search", cls=StudyFileCommand)
@click.argument("space", shell_complete=names("space"))
@click.option(
    "--task",
    default="digits",
    shell_complete=names("task"),
    help="What to train on: a name or file.py:Task [digits].",
)
@click.option(
    "--trainer",
    default="supervised",
    shell_complete=names("trainer"),
    help="How to train [supervised].",
)
@click.option(
    "--strategy", default="tpe", shell_complete=names("strategy"), help="How to propose [tpe]."
)
@click.option(
    "--pruner",
    default="none",
    shell_complete=names("pruner"),
    help="What stops poor trials early [none].",
)
@click.option(
    "-o", "options", multiple=True, metavar="PART.OPTION=VALUE", help="Set an option of a part."
)
@click.option(
    "--objective", "objectives", multiple=True, metavar="METRIC", help="What to optimise."
)
@click.option(
    "--require",
    "requirements",
    multiple=True,
    metavar="METRIC<=X",
    help="Let no trial be the best that breaks this: 'parameters<=1e6', 'accuracy>=0.9'.",
)
@limit_options()
@training_options
@worker_options
@storage_option
@click.option("--study", metavar="NAME", help="The study's name [space-task-number].")
@click.option("--seed", default=0, show_default=True, help="Decides every random draw.")
@click.option("--cache/--no-cache", default=True, help="Reuse results of equal candidates [cache].")
@click.option(
    "--cache-scope",
    type=click.Choice(["study", "storage"]),
    help="Reuse results of this study, or of every study in the storage [study].",
)
@click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE", help="Load a plugin file of yours."
)
@click.option(
    "--keep-models",
    default=1,
    show_default=True,
    metavar="K",
    help="Keep the weights of the K best trials.",
)
@enqueue_option
@click.option(
    "--from",
    "source",
    metavar="STUDY",
    help="Try the five best decisions of this study first.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all this to a study file, for automl search FILE.",
)
@data_dir_option
@json_option
def command(
    space: str,
    task: str,
    trainer: str,
    strategy: str,
    pruner: str,
    options: dict[str, dict[str, object]],
    given: dict[str, object],
    objectives: tuple[str, ...],
    requirements: tuple[str, ...],
    trials: int | None,
    evaluations: int | None,
    timeout: str | None,
    gpu_hours: float | None,
    trial_timeout: str | None,
    epoch_timeout: str | None,
    cost_metric: str,
    keep_models: int,
    workers: str,
    per_device: int | None,
    device: str,
    dry_run: bool,
    launcher: str,
    storage: Location,
    study: str | None,
    seed: int,
    cache: bool,
    cache_scope: str | None,
    plugins: tuple[str, ...],
    enqueue: IO[str] | None,
    source: str | None,
    save: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Search SPACE for the candidate that does best on a task.

    SPACE is a name (automl plugins list), file.py:function or module:function; or a study file,
    such as --save writes, whose name ends in .toml.
    """
    from automl.devices.placement import arrange, pinned
    from automl.plugin.registry import Kind, Registry

    registry = Registry()
    of_parts = dict(options)
    starter = registry.build(Kind.LAUNCHER, launcher, of_parts.pop(Kind.LAUNCHER.value, {})).make()
    places = arrange(starter, workers, device, per_device)
    if not dry_run:
        # Before anything loads torch, which must see this process's device alone.
        places = pinned(places)

    from automl.cli.output import choose_output
    from automl.cli.running import leaving, run_and_show, show_previews
    from automl.study.study import create, open_study, plan
    from automl.study.warm_start import first_decisions
    from automl.workers.session import Session, previews

    made = plan(
        registry,
        {
            Kind.SPACE: space,
            Kind.TASK: task,
            Kind.TRAINER: trainer,
            Kind.STRATEGY: strategy,
            Kind.PRUNER: pruner,
        },
        of_parts,
        objectives=objectives,
        requirements=requirements,
        seed=seed,
        cache=cache,
        cache_scope=cache_scope,
        plugins=plugins,
        data_dir=data_dir,
        time_limits=time_limits(trial_timeout, epoch_timeout),
        cost_metric=cost_metric,
        models=keep_models,
    )
    # Everything that can be wrong is looked at before the study is made.
    budget, opened = limits(trials, evaluations, timeout, gpu_hours), open_storage(storage)
    earlier = None if source is None else open_study(opened, source)
    first = first_decisions(made, budget, queued(enqueue), earlier)
    if save is not None:
        require_free(save)
    created = None if dry_run else create(opened, made, budget, study, first)
    if save is not None:
        write(save, given, storage, made.spec)
    if created is None:
        show_previews(previews(starter, places, study or "STUDY"), as_json)
        return
    session = Session(created, made.parts, registry, starter, places, leaving(created))
    run_and_show(session, choose_output(created, as_json))
