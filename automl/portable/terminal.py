"""Makes text from others safe to print: terminals act on some characters, and hide others."""

import re
from typing import IO

_OBEYED = re.compile(
    # Control characters (ESC starts most terminal sequences, 0x9b and 0x9d some), surrogates, and
    # characters that break a line or change the direction of text.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
_BREAKS = {"\n": "\\n", "\t": "\\t"}


def visible(text: str) -> str:
    r"""Replace each character that a terminal would act on by its code, as in `\u001b`.

    Line breaks are kept. JSON reads the codes back.
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Like `visible`, but in a single line, so that no part of it looks like another line."""
    for char, shown in _BREAKS.items():
        text = text.replace(char, shown)
    return visible(text)


class Visible:
    """A stream that makes everything written to it visible, and forwards the rest.

    Args:
        stream: The stream to write to.
        lines: Whether each write is one line; only a line break at its end is kept.
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
    """Return a stream for rows of data; on a terminal a cell cannot start a new line."""
    return Visible(stream, lines=stream.isatty())
