"""Options of plugins: read from signatures, converted by annotation."""

import json
import string
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl import UnknownNameError, UsageError
from automl.options import convert, jsonable, options_of, resolve


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Painter:
    colour: Colour = Colour.RED
    width: int = 3
    folder: Path | None = None


def paint(trial, task, *, thick: bool = False, sizes: tuple[int, ...] = (1, 2), name: str): ...


VALUES = {
    int: st.integers(),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    Colour: st.sampled_from(Colour),
    Literal["a", 2]: st.sampled_from(["a", 2]),
    int | None: st.none() | st.integers(),
    float | None: st.none() | st.floats(allow_nan=False),
    Colour | None: st.none() | st.sampled_from(Colour),
    tuple[int, ...]: st.lists(st.integers()).map(tuple),
    tuple[int, float]: st.tuples(st.integers(), st.floats(allow_nan=False)),
    list[Colour]: st.lists(st.sampled_from(Colour)),
    str: st.text(string.printable, max_size=20),
    Path: st.sampled_from([Path("a"), Path("/b/c d")]),
}


@given(st.data())
def test_a_value_survives_being_stored_as_json(data):
    annotation = data.draw(st.sampled_from(list(VALUES)))
    value = data.draw(VALUES[annotation])
    stored = json.loads(json.dumps(jsonable(value)))
    again = convert("option", stored, annotation)
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("yes", bool, True),
        ("Off", bool, False),
        ("blue", Colour, Colour.BLUE),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("1, 2,3", tuple[int, ...], (1, 2, 3)),
        ("red,blue", list[Colour], [Colour.RED, Colour.BLUE]),
        ("4,0.5", tuple[int, float], (4, 0.5)),
        ("2", Literal["a", 2], 2),
        ("~/x", Path, Path("~/x")),
    ],
)
def test_text_is_converted_by_annotation(text, annotation, value):
    assert convert("option", text, annotation) == value


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("three", int, "expected int, got 'three'"),
        (2.5, int, "expected int, got 2.5"),
        (True, int, "expected int, got True"),
        ("maybe", bool, "expected bool, got 'maybe'"),
        ("green", Colour, "expected red or blue, got 'green'"),
        ("x", int | None, "expected int or none, got 'x'"),
        ("1", tuple[int, float], "expected"),
        ("b", Literal["a", 2], "expected a or 2, got 'b'"),
    ],
)
def test_what_cannot_be_converted_is_named(value, annotation, expected):
    with pytest.raises(UsageError, match=f"painter option x: {expected}"):
        convert("painter option x", value, annotation)


def test_a_class_offers_its_fields():
    options = options_of(Painter, frozenset())
    assert {name: option.default for name, option in options.items()} == {
        "colour": Colour.RED,
        "width": 3,
        "folder": None,
    }
    assert [name for name, option in options.items() if option.is_path] == ["folder"]


def test_a_function_offers_its_keyword_only_parameters():
    options = options_of(paint, frozenset({"sizes"}))
    assert list(options) == ["thick", "name"]
    assert [name for name, option in options.items() if option.required] == ["name"]


def test_given_options_come_converted_and_the_rest_by_default():
    values = resolve("painter", options_of(Painter, frozenset()), {"colour": "blue"})
    assert values == {"colour": Colour.BLUE, "width": 3, "folder": None}


def test_an_unknown_option_lists_the_known_and_guesses():
    with pytest.raises(UnknownNameError, match=r"did you mean 'width'\?.*colour, folder, width"):
        resolve("painter", options_of(Painter, frozenset()), {"widht": 3})


def test_a_missing_option_is_asked_for():
    with pytest.raises(UsageError, match=r"space paint needs -o space\.name="):
        resolve("space paint", options_of(paint, frozenset()), {})
