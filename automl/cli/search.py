"""`automl search`: start a study and run it."""

from pathlib import Path
from typing import Any

import click

from automl.cli.arguments import (
    Location,
    dry_run_option,
    json_option,
    open_storage,
    request_of,
    request_options,
)
from automl.cli.completing import names
from automl.cli.study_file import StudyFileCommand, require_free, write
from automl.cli.terminal import announce
from automl.study.search_request import SearchRequest


@click.command("search", cls=StudyFileCommand)
@click.argument("space", shell_complete=names("space"))
@request_options(SearchRequest)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write these arguments to a study file, for automl search FILE.",
)
@dry_run_option
@json_option
def command(
    given: dict[str, object], save: Path | None, dry_run: bool, as_json: bool, **arguments: Any
) -> None:
    """Search SPACE for the candidate that does best on a task.

    SPACE is a name (automl plugins list), file.py:function or module:function; or a study file,
    as --save writes it, whose name ends in .toml.
    """
    announce(f"searching {arguments['space']} ...", as_json)

    from automl.plugin.registry import Registry
    from automl.workers.launch import Launch

    registry, request = Registry(), request_of(SearchRequest, arguments)
    # Before anything loads torch, which must see this process's device alone.
    launch = Launch.of(request, registry, pin=not dry_run)

    from automl.cli.running import choose_output, exit_when_hung, run_and_show, show_previews
    from automl.study.creation import create
    from automl.study.limits import Limits
    from automl.study.plan import plan
    from automl.study.study import open_study
    from automl.study.warm_start import first_decisions
    from automl.workers.session import Session, previews

    made = plan(request, registry)
    # Everything is checked before the study is created.
    limits, location = Limits.of(request), Location.of(request)
    opened = open_storage(location)
    earlier = None if request.warm_start is None else open_study(opened, request.warm_start)
    first = first_decisions(made, limits, request.enqueue, earlier)
    if save is not None:
        require_free(save)
    created = None if dry_run else create(opened, made, limits, request.study, first)
    if save is not None:
        write(save, given, location, made.spec)
    if created is None:
        found = previews(launch.launcher, launch.places, request.study or "STUDY")
        show_previews(found, as_json)
        return
    session = Session(
        created, made.parts, registry, launch.launcher, launch.places, exit_when_hung(created)
    )
    run_and_show(session, choose_output(created, as_json))
