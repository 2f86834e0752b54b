"""Track which modules are in their forward pass, for handlers of the operations inside."""

from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from automl.identity.probes.values import tensors_in


class RunningModules:
    """A context that tracks all forward passes.

    Attributes:
        stack: The running modules with their arguments, innermost last.
    """

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def __enter__(self) -> "RunningModules":
        self._hooks = [
            register_module_forward_pre_hook(self.enter),
            register_module_forward_hook(self.leave, always_call=True),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self.stack.clear()

    def arguments(self) -> Any:
        """The arguments of the innermost module that received tensors."""
        for _, args in reversed(self.stack):
            if tensors_in(args):
                return args
        return ()

    def enter(self, part: nn.Module, args: tuple[Any, ...]) -> None:
        """Record that a module starts its forward pass."""
        self.stack.append((part, args))

    def leave(self, part: nn.Module, args: Any, output: Any) -> None:
        """Record that the innermost module has finished its forward pass."""
        if self.stack:
            self.stack.pop()
