"""`automl best`: the best trial, its decisions and metrics."""

import click

from automl.cli.arguments import Location, existing_storage, json_option, storage_option
from automl.cli.completing import studies


@click.command("best")
@click.argument("study", shell_complete=studies)
@storage_option
@json_option
def command(study: str, storage: Location, as_json: bool) -> None:
    """Show the best trial of STUDY; with several objectives, all that no other beats."""
    from automl.cli import text
    from automl.cli.events import trial_event
    from automl.studies import open_study

    opened = open_study(existing_storage(storage), study)
    trials = opened.best_trials()
    for trial in trials:
        view = opened.views.trial(trial.number)
        if view is None:
            continue
        event = {**trial_event(opened, view, trial.params), "metrics": view.metrics}
        if as_json:
            click.echo(text.json_line(event))
            continue
        judges = f", which judges trial {event['judges']}" if "judges" in event else ""
        click.echo(f"trial {trial.number} of {study}{judges}")
        click.echo("metrics:")
        click.echo("\n".join(text.decision_lines(view.metrics)))
        click.echo("decisions:")
        click.echo("\n".join(text.all_decision_lines(event)))
    if not trials:
        click.echo(
            f"error: no trial of study {study!r} has completed; look why: {opened.command('show')}",
            err=True,
        )
        raise click.exceptions.Exit(1)
