"""Shows the arguments of functions that take a request, such as `automl.search`.

Their signatures and docstrings are made from the request's fields when they are imported, so a tool
that only reads the source would miss them.
"""

import importlib
import inspect
import re
from typing import Any

import griffe

_MODULES = re.compile(r"\b(?:collections\.abc|pathlib|typing)\.")


class Requests(griffe.Extension):
    """Replaces the signature and docstring of functions decorated with `taking`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Take both from the imported function."""
        if not any(str(decorator.value).startswith("taking(") for decorator in func.decorators):
            return
        imported = getattr(importlib.import_module(func.module.path), func.name)
        parameters = inspect.signature(imported).parameters.values()
        func.parameters = griffe.Parameters(*map(_parameter, parameters))
        func.docstring = griffe.Docstring(inspect.getdoc(imported) or "", parent=func)


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    empty = parameter.default is inspect.Parameter.empty
    return griffe.Parameter(
        parameter.name,
        annotation=_MODULES.sub("", inspect.formatannotation(parameter.annotation)),
        kind=griffe.ParameterKind(parameter.kind.description),
        default=None if empty else _default(parameter.default),
    )


def _default(value: object) -> str:
    # The default of a mapping is a factory's.
    return "{}" if value is dict or "factory" in repr(value) else repr(value)
