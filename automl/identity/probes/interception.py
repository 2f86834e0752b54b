"""Interception of torch operations by handlers that observe or change them."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch.utils._python_dispatch import TorchDispatchMode

Call = Callable[[Any, Any, Any], Any]
"""Runs an operation with its arguments and keyword arguments."""


class Handler(Protocol):
    """Handles the operations of an interception."""

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Handle one operation.

        Args:
            call: Runs the operation, through the remaining handlers.
            func: The operation.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            The result of the operation.
        """


class Interception(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which all operations go through handlers, the last one first.

    One context with several handlers costs less than one context per handler.

    Args:
        handlers: The handlers.
    """

    def __init__(self, *handlers: Handler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._call: Call = _run
        for handler in handlers:
            self._call = partial(handler.handle, self._call)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and excluding it from compilation is the most expensive part.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._call(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)
