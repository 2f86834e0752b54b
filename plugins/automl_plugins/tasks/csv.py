"""CSV: a table in a file, one row an example, predicted column by column of the others."""

from collections.abc import Callable, Mapping
from pathlib import Path

from automl import Reading, Task, UsageError, hookimpl, read_table, table_task, with_reading


@with_reading
def csv(
    *,
    file: Path,
    test_file: Path | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
    max_megabytes: int = 500,
    reading: Reading,
) -> Task:
    """Predict one column of a CSV file, gzipped or not, from the others.

    test_file: rows to test on; else a share is set apart. separator: one character, or tab; by
    default the most frequent of ; tab | , in the header. max_megabytes: of the unpacked file, which
    is read into memory as a whole. All other options are those of `automl.Reading`.

    Raises:
        UsageError: the file cannot be read, or nothing can be learned from it; the text says
            where.
    """
    given = (separator, encoding, max_megabytes)
    try:
        table, tested = (read_table(f, *given) if f else None for f in (file, test_file))
    except ValueError as error:
        raise UsageError(f"task csv: {error}") from error
    return table_task(file.name, table or {}, reading, tested)


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"csv": csv}
