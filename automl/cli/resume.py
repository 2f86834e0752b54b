"""`automl resume`: continue a study from the database alone."""

from typing import Any

import click

from automl.cli.arguments import (
    Location,
    dry_run_option,
    existing_storage,
    json_option,
    request_of,
    request_options,
)
from automl.cli.completing import studies
from automl.cli.terminal import announce
from automl.errors import UsageError
from automl.study.search_request import ResumeRequest


@click.command("resume")
@click.argument("study", shell_complete=studies)
@request_options(ResumeRequest)
@dry_run_option
@json_option
def command(dry_run: bool, as_json: bool, **arguments: Any) -> None:
    """Continue STUDY where it stopped."""
    announce(f"resuming {arguments['study']} ...", as_json)

    from automl.plugin.registry import Kind, Registry
    from automl.plugin.trust import trusting
    from automl.workers.launch import Launch

    request = request_of(ResumeRequest, arguments)
    registry = Registry(trusting(request.trust_plugins, request.plugins))
    for part in request.options:
        if part != Kind.LAUNCHER.value:
            raise UsageError(
                f"-o {part}.…: the study keeps its own options, only launcher.… can be given; "
                "start another search from this one with: automl search … --from STUDY"
            )
    # Before anything loads torch, which must see this process's device alone.
    launch = Launch.of(request, registry, pin=not dry_run)

    from automl.cli.running import choose_output, exit_when_hung, run_and_show, show_previews
    from automl.study.limits import Limits
    from automl.study.study import open_study
    from automl.workers.session import Session, previews

    opened = open_study(existing_storage(Location.of(request)), request.study)
    parts = opened.load_parts(registry, request.data_dir)
    limits = Limits.of(request)
    if dry_run:
        found = previews(launch.launcher, launch.places, opened.name, opened.spec.uuid)
        show_previews(found, as_json)
        return
    opened.extend(limits, request.enqueue)
    session = Session(
        opened, parts, registry, launch.launcher, launch.places, exit_when_hung(opened)
    )
    run_and_show(session, choose_output(opened, as_json))
