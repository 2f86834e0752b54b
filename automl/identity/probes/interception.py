"""Every operation of torch, handled by those who want to see or change what it does."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch.utils._python_dispatch import TorchDispatchMode

Call = Callable[[Any, Any, Any], Any]
"""Runs an operation with its arguments and keyword arguments."""


class Handler(Protocol):
    """Sees the operations of an interception."""

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operation, which `call` runs."""


class Interception(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which all operations go through handlers, the last one first.

    One context for several handlers costs less than one for each.
    """

    def __init__(self, *handlers: Handler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._call: Call = _run
        for handler in handlers:
            self._call = partial(handler.handle, self._call)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and keeping it from being compiled costs more than the rest.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._call(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)
