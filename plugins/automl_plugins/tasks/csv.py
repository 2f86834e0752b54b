"""CSV: a table in a file, one row an example, predicted column by column of the others."""

import csv as format
import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from automl import Goal, Reading, Task, UsageError, hookimpl, table_task

_SEPARATORS = ",;\t|"
_MEGABYTE = 2**20


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
    tested = read_table(test_file, *given) if test_file else None
    return table_task(file.name, read_table(file, *given), reading, tested)


def read_table(
    path: Path, separator: str | None = None, encoding: str = "utf-8", max_megabytes: int = 500
) -> dict[str, list[str]]:
    """The cells of a CSV file by column.

    Raises:
        UsageError: it cannot be read, is too large, or is no table; the text names the line.
    """
    text = _text(path, encoding, max_megabytes)
    header, _, _ = text.partition("\n")
    separator = separator or max(_SEPARATORS, key=header.count)
    rows = format.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    with _naming(path, rows):
        names = [name.strip() for name in next(rows, [])]
        _check_header(path, names)
        body = list(_body(path, rows, len(names)))
    if not body:
        raise UsageError(f"{path} has a header and no rows")
    return {name: list(cells) for name, cells in zip(names, zip(*body, strict=True), strict=True)}


def _text(path: Path, encoding: str, max_megabytes: int) -> str:
    limit = max_megabytes * _MEGABYTE
    try:
        with _opened(path) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {path}: {reason}") from error
    if len(content) > limit:
        raise UsageError(
            f"{path} holds more than {max_megabytes} MB, and takes about ten times as much memory: "
            "give a sample of its rows, or raise -o task.max_megabytes"
        )
    try:
        return content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError as error:
        raise UsageError(f"task csv: encoding: {error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}, line {line}: not {encoding}: name another by -o task.encoding=latin-1"
        ) from error


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # gzip's file is one


def _check_header(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{path} has two columns {twice[0]!r}: rename one of them")
    if len(names) < 2:
        said = f"one column, {names[0][:60]!r}" if names else "nothing"
        raise UsageError(
            f"{path} holds {said}: expected a header and two columns or more; is "
            "-o task.separator another one?"
        )


def _body(path: Path, rows: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for number, row in enumerate(rows, 2):
        if row and len(row) != width:
            raise UsageError(f"{path}, row {number}: {len(row)} cells, the header has {width}")
        if row:
            yield row


@contextmanager
def _naming(path: Path, rows: object) -> Iterator[None]:
    try:
        yield
    except format.Error as error:
        line = getattr(rows, "line_num", 0)
        raise UsageError(f"{path}, line {line}: no CSV: {error}") from error


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"csv": csv}
