"""`automl predict`: predicts with an exported model."""

from pathlib import Path
from typing import Any

import click


@click.command("predict")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--separator",
    help="One character, or tab; by default the most frequent of ; tab | , in the header.",
)
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of the CSV file.")
@click.option(
    "--max-megabytes",
    default=500,
    show_default=True,
    help="Largest size of the CSV file, which is read into memory.",
)
def command(directory: Path, data: Path, **reading: Any) -> None:
    """Predict with the export in DIRECTORY for DATA.

    DATA is a CSV file, an image, a folder of images or an array in a .npy file, like the data of
    the task. The predictions are written to standard output as CSV.
    """
    import sys

    from automl.errors import UsageError
    from automl.portable.predict import predicted, write

    try:
        answers = predicted(directory, data, **reading)
    except ValueError as error:
        raise UsageError(str(error)) from error
    write(answers, sys.stdout)
