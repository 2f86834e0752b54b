"""Options of a plugin: read from its factory's signature, converted by annotation."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

from automl.errors import UnknownNameError, UsageError

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Option:
    """One option of a factory."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def is_path(self) -> bool:
        return Path in {self.annotation, *typing.get_args(self.annotation)}


def options_of(factory: Callable[..., Any], reserved: frozenset[str]) -> dict[str, Option]:
    """The options a factory takes: a class's fields, or a function's keyword-only parameters."""
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    kinds: tuple[object, ...] = (inspect.Parameter.KEYWORD_ONLY,)
    if inspect.isclass(factory):
        kinds = (*kinds, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: Option(name, hints.get(name, str), parameter.default)
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind in kinds and name not in reserved
    }


def resolve(
    part: str, options: Mapping[str, Option], given: Mapping[str, object]
) -> dict[str, Any]:
    """All options of a part with their values: those given, converted, then the defaults.

    Raises:
        UnknownNameError: an option the part does not take.
        UsageError: a value that cannot be converted, or a required option that is missing.
    """
    for name in given:
        if name not in options:
            raise UnknownNameError(f"option of {part}", name, options)
    missing = [name for name, o in options.items() if o.required and name not in given]
    if missing:
        kind = part.split(maxsplit=1)[0]
        raise UsageError(f"{part} needs -o {kind}.{missing[0]}=…")
    return {
        name: convert(f"{part} option {name}", given[name], option.annotation)
        if name in given
        else option.default
        for name, option in options.items()
    }


def convert(what: str, value: object, annotation: Any) -> Any:
    """A value as its annotation wants it; text is parsed, JSON values are checked.

    Raises:
        UsageError: naming the option, what was expected and what came.
    """
    try:
        return _convert(value, annotation)
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{what}: expected {spell(annotation)}, got {value!r}") from None


def jsonable(value: Any) -> Any:
    """An option's value as JSON, so that `convert` reads it back."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def _convert(value: Any, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(value, args)
    if origin is Literal:
        return {str(choice): choice for choice in args}[str(value)]
    if origin in (tuple, list):
        return _convert_many(value, origin, args)
    if annotation is Any:
        return value
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return value if isinstance(value, annotation) else annotation(value)
    if annotation is bool:
        return _convert_bool(value)
    return _convert_plain(value, annotation)


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    if types.NoneType in members and (value is None or str(value).lower() == "none"):
        return None
    for member in members:
        if member is not types.NoneType:
            try:
                return _convert(value, member)
            except (ValueError, TypeError, KeyError):
                continue
    raise ValueError(value)


def _convert_many(value: Any, origin: type, args: tuple[Any, ...]) -> Any:
    items = (
        [item.strip() for item in value.split(",") if item.strip()]
        if isinstance(value, str)
        else list(value)
    )
    kinds = [args[0]] * len(items) if origin is list or Ellipsis in args else args
    return origin(_convert(item, kind) for item, kind in zip(items, kinds, strict=True))


def _convert_bool(value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError(value)
    return text in _TRUE


def _convert_plain(value: Any, annotation: Any) -> Any:
    if value is None or isinstance(value, bool):
        raise TypeError(value)
    if annotation is int and isinstance(value, float) and value != int(value):
        raise ValueError(value)
    return annotation(value)


def spell(annotation: Any) -> str:
    """What an annotation allows, as people say it."""
    if typing.get_origin(annotation) is Literal:
        return " or ".join(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(str(member.value) for member in annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(
            "none" if a is types.NoneType else spell(a) for a in typing.get_args(annotation)
        )
    return getattr(annotation, "__name__", str(annotation))
