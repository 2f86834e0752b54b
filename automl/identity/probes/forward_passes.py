"""Which modules are running their forward pass, for whatever watches the operations inside."""

from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from automl.identity.probes.values import tensors_in


class Running:
    """A context that follows all forward passes; `stack` has modules and arguments, inner last."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def __enter__(self) -> "Running":
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
        """The arguments of the innermost module that was given tensors."""
        for _, args in reversed(self.stack):
            if tensors_in(args):
                return args
        return ()

    def enter(self, part: nn.Module, args: tuple[Any, ...]) -> None:
        """Note that a module begins a forward pass."""
        self.stack.append((part, args))

    def leave(self, part: nn.Module, args: Any, output: Any) -> None:
        """Note that the innermost module has ended its forward pass."""
        if self.stack:
            self.stack.pop()
