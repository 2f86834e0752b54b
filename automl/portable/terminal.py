"""Text that others wrote, made safe to show: a terminal obeys some characters, and hides others."""

import re
from typing import IO

_OBEYED = re.compile(
    # Controls (ESC begins most orders, 0x9b and 0x9d some), halves of characters, and what breaks
    # a line or turns the direction in which a part of it reads.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
_BREAKS = {"\n": "\\n", "\t": "\\t"}


def visible(text: str) -> str:
    """Text with each character that a terminal would obey as its number, as in `\\u001b`.

    Lines stay lines. The numbers are also what JSON understands.
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """The same in a single line, so that no part of it can pass for a line of its own."""
    for char, shown in _BREAKS.items():
        text = text.replace(char, shown)
    return visible(text)


class Visible:
    """A stream that shows what is written to it; all else is the stream's own.

    lines: whether each write is a line, whose end alone breaks it.
    """

    def __init__(self, stream: IO[str], lines: bool = False) -> None:
        self.stream = stream
        self._lines = lines

    def write(self, text: str) -> int:
        end = "\n" if self._lines and text.endswith("\n") else ""
        shown = one_line(text.removesuffix(end)) + end if self._lines else visible(text)
        self.stream.write(shown)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def data_on(stream: IO[str]) -> Visible:
    """Where rows of data are written: on a terminal a cell cannot begin a line of its own."""
    return Visible(stream, lines=stream.isatty())
