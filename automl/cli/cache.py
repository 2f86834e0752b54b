"""`automl cache`: what was reused, at which level, and what that saved."""

import click

from automl.cli.arguments import existing_storage, json_option, storage_option


@click.command("cache")
@click.argument("study", required=False)
@storage_option
@json_option
def command(study: str | None, storage: str | None, as_json: bool) -> None:
    """Show reuse by level, for STUDY or for every study of the storage."""
    from automl.cli.text import duration, json_line
    from automl.studies import all_studies, open_study

    opened = existing_storage(storage)
    for one in [open_study(opened, study)] if study else all_studies(opened):
        counts, hits = one.views.counts(), one.views.hits()
        if as_json:
            levels = {h.level: {"hits": h.hits, "seconds_saved": h.seconds_saved} for h in hits}
            said = {"study": one.name, "trials": counts.trials, "reused": counts.reused}
            click.echo(json_line({**said, "seconds": counts.seconds, "levels": levels}))
            continue
        share = counts.reused / counts.trials if counts.trials else 0
        click.echo(
            f"{one.name}: {counts.reused} of {counts.trials} trials reused ({share:.0%}); "
            f"{duration(counts.seconds)} of training paid"
        )
        for hit in hits:
            click.echo(f"  {hit.level}  {hit.hits} hits, {duration(hit.seconds_saved)} saved")
