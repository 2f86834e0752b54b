"""`automl worker`: join a running study from any machine."""

import os
from pathlib import Path

import click

from automl.cli.arguments import (
    Place,
    data_dir_option,
    existing_storage,
    storage_option,
    trust_options,
)


@click.command("worker")
@click.argument("study")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda:0 … [auto]")
@trust_options
@storage_option
@data_dir_option
def command(
    study: str,
    device: str,
    trust_plugins: bool,
    named: tuple[str, ...],
    storage: Place,
    data_dir: Path | None,
) -> None:
    """Take trials of STUDY until its budget is spent and nothing is open."""
    from automl.errors import Interrupted
    from automl.registry import Registry
    from automl.stopping import Stop
    from automl.studies import open_study
    from automl.trust import trusting
    from automl.worker import resolve_device, stopping_on_signals, work

    registry = Registry(trusting(trust_plugins, named))
    opened = open_study(existing_storage(storage), study)
    parts = opened.load_parts(registry, data_dir)
    found = resolve_device(device)
    stop = Stop()
    click.echo(f"worker {os.getpid()} joins study {study} on {found}")
    try:
        with stopping_on_signals(stop):
            work(opened, parts, registry, found, stop)
    except Interrupted:
        raise Interrupted(f"interrupted; join again by: {opened.command('worker')}") from None
    except KeyboardInterrupt:
        again = opened.command("worker")
        raise Interrupted(f"ended; its trial will be taken over; join again by: {again}") from None
    click.echo(f"nothing is left to do in study {study}; see: {opened.command('best')}")
