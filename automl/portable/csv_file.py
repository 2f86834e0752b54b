"""Reads text from a file, and a CSV file into columns of text."""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

_SEPARATORS = ";\t|,"
"""A comma is the last: where there are as many of another, it stands in names or numbers."""
_NAMED = {"tab": "\t", "\\t": "\t"}
_MEGABYTE = 2**20
_HEADER = re.compile(r'(?:"[^"]*"|[^"\n])*')
_QUOTED = re.compile(r'"[^"]*"')


def read_table(
    path: Path,
    separator: str | None = None,
    encoding: str = "utf-8",
    max_megabytes: int = 500,
    least: int = 2,
) -> dict[str, list[str]]:
    """The cells of a CSV file, gzipped or not, by column.

    separator: one character, or tab; by default the most frequent of ; tab | , in the header.
    max_megabytes: of the unpacked file, which is read into memory as a whole. least: so many
    columns it must have.

    Raises:
        ValueError: it cannot be read, is too large, or is no table; the text says where.
    """
    separator = None if separator is None else _separator(separator)
    text = read_text(path, encoding, max_megabytes)
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator or _likeliest(text), strict=True
    )
    try:
        names = [name.strip() for name in next(rows, [])]
        _check_header(path, names, least)
        body = list(_body(path, rows, len(names)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from error
    if not body:
        raise ValueError(f"{path} has a header and no rows")
    return {name: list(cells) for name, cells in zip(names, zip(*body, strict=True), strict=True)}


def _separator(given: str) -> str:
    separator = _NAMED.get(given.lower(), given)
    if len(separator) != 1 or separator in '"\r\n':
        raise ValueError(f"separator must be one character or tab, got {given!r}")
    return separator


def _likeliest(text: str) -> str:
    """The separator that a header has most often, outside of quotes."""
    found = _HEADER.match(text)
    header = _QUOTED.sub("", found[0] if found else "")
    return max(_SEPARATORS, key=header.count)


def read_text(path: Path, encoding: str = "utf-8", max_megabytes: int = 500) -> str:
    """The text in a file, gzipped or not; max_megabytes: of the unpacked file.

    Raises:
        ValueError: it cannot be read, is too large, or is in another encoding; the text says where.
    """
    content = _content(path, max_megabytes)
    try:
        return content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError as error:
        raise ValueError(f"no such encoding: {encoding}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        likely = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        raise ValueError(
            f"{path}, line {line}: not in {encoding}: give its encoding, such as {likely}"
        ) from error


def _content(path: Path, max_megabytes: int) -> bytes:
    limit = max_megabytes * _MEGABYTE
    try:
        with _opened(path) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path}: {reason}") from error
    if len(content) > limit:
        raise ValueError(
            f"{path} holds more than {max_megabytes} MB, and takes several times as much memory: "
            "give a part of it, or raise max_megabytes"
        )
    return content


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # gzip's file is one


def _check_header(path: Path, names: Sequence[str], least: int) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one of them")
    if len(names) < least:
        said = f"one column, {names[0][:60]!r}" if names else "nothing"
        raise ValueError(
            f"{path} holds {said}: expected a header and two columns or more; has it another "
            "separator?"
        )


def _body(path: Path, rows: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for number, row in enumerate(rows, 2):
        if row and len(row) != width:
            raise ValueError(f"{path}, row {number}: {len(row)} cells, the header has {width}")
        if row:
            yield row
