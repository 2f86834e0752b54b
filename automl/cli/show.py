"""`automl show`: a study's trials, or one trial in full."""

import click

from automl.cli.arguments import Location, existing_storage, json_option, storage_option
from automl.cli.completing import studies


@click.command("show")
@click.argument("study", shell_complete=studies)
@click.option("--trial", type=int, metavar="N", help="Only this trial, with reports and traceback.")
@storage_option
@json_option
def command(study: str, trial: int | None, storage: Location, as_json: bool) -> None:
    """Show the trials of STUDY."""
    from automl.cli import text
    from automl.cli.events import study_event, summary_event, trial_event
    from automl.errors import UsageError
    from automl.studies import open_study

    opened = open_study(existing_storage(storage), study)
    decisions = {t.number: t.params for t in opened.optuna.get_trials(deepcopy=False)}
    views = [view for view in opened.views.trials() if trial in (None, view.number)]
    if trial is not None and not views:
        raise UsageError(f"study {study!r} has no trial {trial}: it has {len(decisions)} trials")
    events = [trial_event(opened, view, decisions.get(view.number, {})) for view in views]
    if trial is not None:
        # What an interrupted attempt reported past its checkpoint was reported again.
        reports = {r.step: r for r in opened.views.reports(set()) if r.number == trial}.values()
        extra = {
            "metrics": views[0].metrics,
            "fingerprint": views[0].fingerprint,
            "identification": views[0].identification,
            "attempt": views[0].attempt,
            "device": views[0].device,
            "reports": [{"step": r.step, "metrics": r.metrics} for r in reports],
            "traceback": views[0].traceback,
        }
        events = [{**events[0], **extra}]
    if as_json:
        for event in [study_event(opened), *events, summary_event(opened)]:
            click.echo(text.json_line(event))
        return
    click.echo(text.study_line(study_event(opened)))
    for event in events:
        click.echo(text.trial_line(event))
    for line in text.trial_details(events[0]) if trial is not None else ():
        click.echo(line)
    if trial is None:
        for line in text.summary_lines(summary_event(opened)):
            click.echo(line)
