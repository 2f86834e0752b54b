"""CSV: a table in a file, one row an example, predicted column by column of the others."""

from collections.abc import Callable, Mapping
from pathlib import Path

from automl import Goal, Reading, Task, UsageError, hookimpl, read_table, table_task


def csv(
    *,
    file: Path,
    target: str | None = None,
    goal: Goal = Goal.AUTO,
    test_file: Path | None = None,
    categorical: tuple[str, ...] = (),
    numeric: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    quantiles: bool = True,
    categories: int = 64,
    weighted: bool = False,
    separator: str | None = None,
    encoding: str = "utf-8",
    max_megabytes: int = 500,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Task:
    """Predict one column of a CSV file, gzipped or not, from the others.

    target: by default the last column. goal: classification or regression; a target of words, or
    of at most 20 whole numbers, is classes. test_file: rows to test on; else a share is set apart.
    categorical, numeric: columns to read as such, whatever they hold; ignore: columns to leave
    out. quantiles: map numbers to a normal distribution by rank, else shift and scale them.
    categories: the most that a column may have. weighted: rare classes count as much as frequent
    ones in the loss. separator: by default the most frequent of , ; tab | in the header.
    max_megabytes: of the unpacked file, which is read into memory as a whole.

    Raises:
        UsageError: the file cannot be read, or nothing can be learned from it; the text says
            where.
    """
    given = (separator, encoding, max_megabytes)
    reading = Reading(
        target=target,
        goal=goal,
        categorical=categorical,
        numeric=numeric,
        ignore=ignore,
        quantiles=quantiles,
        categories=categories,
        weighted=weighted,
        validation=validation,
        test=test,
        seed=seed,
    )
    try:
        table, tested = (read_table(f, *given) if f else None for f in (file, test_file))
    except ValueError as error:
        raise UsageError(f"task csv: {error}") from error
    return table_task(file.name, table or {}, reading, tested)


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"csv": csv}
