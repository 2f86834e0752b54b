"""`automl resume`: go on with a study, from the database alone."""

from pathlib import Path
from typing import IO

import click

from automl.cli.arguments import (
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
from automl.errors import UsageError


@click.command("resume")
@click.argument("study")
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
    enqueue: IO[str] | None,
    workers: str,
    device: str,
    launcher: str,
    trust_plugins: bool,
    named: tuple[str, ...],
    storage: str | None,
    data_dir: Path | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Go on with STUDY where it stopped."""
    from automl.cli.output import choose_output
    from automl.cli.running import run_and_show
    from automl.registry import Kind, Registry
    from automl.session import Session, worker_count
    from automl.studies import open_study
    from automl.trust import trusting
    from automl.worker import resolve_device

    registry = Registry(trusting(trust_plugins, named))
    opened = open_study(existing_storage(storage), study)
    parts = opened.load_parts(registry, data_dir)
    given = part_options(options)
    starter = registry.build(Kind.LAUNCHER, launcher, given.pop(Kind.LAUNCHER.value, {})).make()
    if given:
        raise UsageError(
            f"-o {next(iter(given))}.…: a study's own options stand; only launcher.… can be given"
        )
    count, more = worker_count(workers), limits(trials, evaluations, timeout)
    given_trials = queued(enqueue)
    resolve_device(device)
    opened.ledger.extend(more.trials, more.evaluations, more.timeout, given_trials)
    session = Session(opened, parts, registry, starter, count, device)
    run_and_show(session, choose_output(opened, as_json))
