"""`automl resume`: go on with a study, from the database alone."""

from pathlib import Path
from typing import IO

import click

from automl.cli.arguments import (
    Location,
    data_dir_option,
    enqueue_option,
    existing_storage,
    json_option,
    limit_options,
    limits,
    part_options,
    queued,
    storage_option,
    trust_options,
    worker_options,
)
from automl.cli.completing import studies
from automl.errors import UsageError


@click.command("resume")
@click.argument("study", shell_complete=studies)
@limit_options(" more")
@enqueue_option
@worker_options
@trust_options
@storage_option
@data_dir_option
@click.option(
    "-o", "options", multiple=True, metavar="launcher.OPTION=VALUE", help="Set a launcher's option."
)
@json_option
def command(
    study: str,
    trials: int | None,
    evaluations: int | None,
    timeout: str | None,
    gpu_hours: float | None,
    enqueue: IO[str] | None,
    workers: str,
    per_device: int | None,
    device: str,
    dry_run: bool,
    launcher: str,
    trust_plugins: bool,
    named: tuple[str, ...],
    storage: Location,
    data_dir: Path | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Go on with STUDY where it stopped."""
    from automl.devices.placement import arrange, pinned
    from automl.plugin.registry import Kind, Registry
    from automl.plugin.trust import trusting

    registry = Registry(trusting(trust_plugins, named))
    given = part_options(options)
    starter = registry.build(Kind.LAUNCHER, launcher, given.pop(Kind.LAUNCHER.value, {})).make()
    if given:
        raise UsageError(
            f"-o {next(iter(given))}.…: a study's own options stand, only launcher.… can be given; "
            "another search may start from this one: automl search … --from STUDY"
        )
    given_trials = queued(enqueue)
    places = arrange(starter, workers, device, per_device)
    if not dry_run:
        # Before anything loads torch, which must see this process's device alone.
        places = pinned(places)

    from automl.cli.output import choose_output
    from automl.cli.running import leaving, run_and_show, show_previews
    from automl.study.study import open_study
    from automl.workers.session import Session, previews

    opened = open_study(existing_storage(storage), study)
    parts = opened.load_parts(registry, data_dir)
    more = limits(trials, evaluations, timeout, gpu_hours)
    if dry_run:
        show_previews(previews(starter, places, opened.name, opened.spec.uuid), as_json)
        return
    opened.extend(more, given_trials)
    session = Session(opened, parts, registry, starter, places, leaving(opened))
    run_and_show(session, choose_output(opened, as_json))
