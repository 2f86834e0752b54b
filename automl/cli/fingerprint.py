"""`automl fingerprint`: which candidates of a space compute the same."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from automl.cli.arguments import data_dir_option, part_options
from automl.errors import AutoMLError, UsageError


@click.command("fingerprint")
@click.argument("space")
@click.option("--task", default="digits", help="What candidates are probed on [digits].")
@click.option("--trainer", default="supervised", help="What trains them in a probe [supervised].")
@click.option(
    "-o", "options", multiple=True, metavar="PART.OPTION=VALUE", help="Set an option of a part."
)
@click.option(
    "--decisions",
    "file",
    required=True,
    type=click.File(encoding="utf-8"),
    help="One JSON object of decisions a line; - reads standard input.",
)
@click.option("--explain", is_flag=True, help="Say where two lines meet, or where they part.")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE", help="Load a plugin file of yours."
)
@data_dir_option
def command(
    space: str,
    task: str,
    trainer: str,
    options: tuple[str, ...],
    file: Any,
    explain: bool,
    plugins: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Say which candidates of SPACE compute the same: they have one fingerprint.

    Prints one JSON object for each line of decisions. `level` is where it met an earlier line: L0
    by its decisions, L1 by its canonical graph, L2 by what it computes; null where it is new.
    """
    from automl.cli.text import json_line
    from automl.comparison import comparing
    from automl.registry import Kind, Registry
    from automl.studies import plan

    references = {Kind.SPACE: space, Kind.TASK: task, Kind.TRAINER: trainer}
    made = plan(Registry(), references, part_options(options), plugins=plugins, data_dir=data_dir)
    lines = _decisions(file)
    with comparing(made) as comparer:
        if explain:
            two = [decisions for _, decisions in lines]
            if len(two) != 2:
                raise UsageError(f"--explain: expected two lines of decisions, got {len(two)}")
            for line in comparer.explain(*two):
                click.echo(line)
            return
        for where, decisions in lines:
            with _naming(where):
                click.echo(json_line(comparer.fingerprint(decisions)))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say in which line of the file decisions cannot be used."""
    try:
        yield
    except AutoMLError as error:
        raise UsageError(f"{where}: {error}") from error


def _decisions(file: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The decisions of each line that is not empty, with where it stands.

    Raises:
        UsageError: a line is no JSON object; the text names it.
    """
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where}: no JSON: {error}") from None
        if not isinstance(value, dict):
            raise UsageError(
                f'{where}: expected an object such as {{"lr": 0.01}}, got {line.strip()[:60]}'
            )
        yield where, value
