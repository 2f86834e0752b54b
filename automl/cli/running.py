"""What `search`, `resume` and `worker` do alike: run a study and show it."""

import click

from automl.cli.events import Follower, study_event, summary_event
from automl.cli.output import Output, PlainLines
from automl.cli.text import next_lines
from automl.errors import Interrupted
from automl.session import Session


def run_and_show(session: Session, output: Output) -> None:
    """Run a session, show it, and exit 0, 1 (nothing completed) or 130 (interrupted)."""
    study = session.study
    output.emit(study_event(study))
    follower = Follower(study, output.emit, output.refresh)
    follower.skip_past()
    try:
        with output.showing(), follower:
            session.run()
    except Interrupted:
        output.emit(summary_event(study))
        click.echo(f"interrupted; go on with: {study.resume_command()}", err=True)
        raise Interrupted() from None
    summary = summary_event(study)
    output.emit(summary)
    if not summary["complete"]:
        click.echo(f"no trial completed; look why: automl show {study.name}", err=True)
        raise click.exceptions.Exit(1)
    if isinstance(output, PlainLines):
        click.echo("\n".join(next_lines(study.name, study.storage.option())))
