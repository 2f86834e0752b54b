"""HTML put together from parts: whatever is not markup already is text, and escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from automl.text.formatting import number
from automl.text.redaction import redact_urls


class Markup(str):
    """Text that is HTML already; only `tag` and `joined` make any."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as text on a page: escaped, and without passwords in URLs."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(redact_urls(shown(value)), quote=True))


def shown(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "none"
    if isinstance(value, float) and value.is_integer() and 1e3 <= abs(value) < 1e12:
        # A count of parameters is exact, though metrics are floats.
        return f"{value:,.0f}"
    return number(value) if isinstance(value, float) else str(value)


def tag(name: str, /, *children: object, **attributes: str) -> Markup:
    """An element; `class_` becomes `class`."""
    said = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{said}>{joined(children)}</{name}>")


def joined(children: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(text(child) for child in children))


def section(title: str, *children: object) -> Markup:
    """A subject of the page, which a link can name."""
    return tag("section", tag("h2", title), *children)


def paragraph(*children: object, **attributes: str) -> Markup:
    return tag("p", *children, **attributes)


def note(*children: object) -> Markup:
    """A line beside a figure or a table: what it leaves out, and why."""
    return paragraph(*children, class_="note")


def definitions(values: Mapping[str, Any]) -> Markup:
    """Names and values side by side."""
    rows = (tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items())
    return tag("dl", *rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table that scrolls by itself where it is wider than the page."""
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def details(summary: object, *children: object) -> Markup:
    """What is there for those who open it."""
    return tag("details", tag("summary", summary), *children)


def code(lines: object) -> Markup:
    return tag("pre", tag("code", lines), tabindex="0")
