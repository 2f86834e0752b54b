"""Random draws in a forward pass: seeded by the values they depend on, and widened.

A mask seeded by the values it masks does not depend on how a module is written. A probe would miss
an event of probability 0.01, so draws are widened: coins are fair, uniform numbers are often near
their bounds, normal numbers often far from zero. `consulted` records the true distribution.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from automl.identity.probes.construction import address, is_random
from automl.identity.probes.forward_passes import RunningModules
from automl.identity.probes.interception import Call, Interception
from automl.identity.probes.values import Values, plain, seed_of, tensors_in

_NEAR = 1e-6
_FAR = 3.0
_FACTORIES = ("empty_like", "new_empty", "zeros_like", "ones_like", "full_like")


class Noise:
    """Seeds and widens all draws of running modules; other draws stay unchanged.

    Args:
        seed: The seed that all draws derive from.
        running: Tracks the modules that are in their forward pass.

    Attributes:
        count: The number of draws so far.
        drawing: The modules that made them.
    """

    def __init__(self, seed: int, running: RunningModules) -> None:
        self._seed, self._running = seed, running
        self._drawn: Counter[bytes] = Counter()
        self._models: dict[int, tuple[Tensor, Tensor]] = {}
        self.count = 0
        self.drawing: set[nn.Module] = set()

    @property
    def is_running(self) -> bool:
        """Whether a module's forward pass is running."""
        return bool(self._running.stack)

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Seed and widen an operation that draws."""
        if self._running.stack and is_random(func):
            return self._drawing(call, func, args, kwargs)
        result = call(func, args, kwargs)
        if func._opname in _FACTORIES and isinstance(result, Tensor) and self._running.stack:
            # Noise is often drawn into memory with the shape of the tensor that it applies to.
            self._models[address(result)] = (result, args[0])
        return result

    def _drawing(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("generator") is not None:
            return self._recorded(func, args, call(func, args, kwargs))
        generator = torch.default_generator
        state = generator.get_state()
        key = Values().of(func._opname, *self._dependencies(func, args, kwargs))
        generator.manual_seed(seed_of(b"forward", self._seed, key, self._drawn[key]))
        before = generator.get_state()
        changed = _fair(func, args)
        result = call(func, changed, kwargs)
        if not generator.get_state().equal(before):
            # Equal draws for equal values are independent, in whatever order they are made.
            self._drawn[key] += 1
            result = self._recorded(func, args, result)
        # Later draws, for example by the trainer, must not depend on the number of draws here.
        generator.set_state(state)
        return result

    def _recorded(self, func: Any, args: Any, result: Any) -> Any:
        """Record a draw; returns its widened result."""
        self.count += 1
        self.drawing.add(self._running.stack[-1][0])
        widen = _WIDENED.get(func._opname)
        return widen(args, result) if widen else result

    def _dependencies(self, func: Any, args: Any, kwargs: Any) -> list[Any]:
        """The values a draw depends on: its own tensors, or else its module's arguments."""
        settings, given = plain(args, kwargs), tensors_in((read(func, args), kwargs))
        written = [each for each in tensors_in(args) if not any(each is one for one in given)]
        models = (self._models.get(address(each)) for each in written)
        given += [model for _, model in filter(None, models)]
        return [settings, *given] if given else [settings, *self._running.arguments()]


def read(func: Any, args: Any) -> list[Any]:
    """The arguments that an operation reads, without those that it only writes to."""
    known = zip(func._schema.arguments, args, strict=False)
    return [each for argument, each in known if not _is_written(argument)]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def seed_noise(module: nn.Module, numbers: Collection[int], seed: int) -> None:
    """Seed and widen all draws of a module whenever it runs from now on.

    Args:
        module: The module.
        numbers: The positions in `modules()` of its parts that draw.
        seed: The seed.
    """
    running = RunningModules()
    noise = Interception(Noise(seed, running))

    # Functions rather than methods, because a copied module must not copy the noise.
    def before(part: nn.Module, args: tuple[Any, ...]) -> None:
        if not running.stack:
            noise.__enter__()  # type: ignore[no-untyped-call]
        running.enter(part, args)

    def after(part: nn.Module, args: Any, output: Any) -> None:
        running.leave(part, args, output)
        if not running.stack:
            noise.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    parts = list(module.modules())
    for number in numbers:
        parts[number].register_forward_pre_hook(before)
        parts[number].register_forward_hook(after, always_call=True)


def _fair(func: Any, args: Any) -> Any:
    """The arguments of a draw with all events made equally likely."""
    name, args = func._opname, list(args)
    if name in ("bernoulli", "bernoulli_"):
        if len(args) > 1:
            args[1] = _half(args[1])
        elif name == "bernoulli":
            args[0] = _half(args[0])
    elif name == "multinomial":
        args[0] = (args[0] > 0).to(args[0].dtype)
    return args


def _half(probability: Any) -> Any:
    if isinstance(probability, Tensor):
        rare = (probability > 0) & (probability < 1)
        return torch.where(rare, 0.5, probability)
    return 0.5 if 0 < probability < 1 else probability


def _widened_uniform(args: Any, result: Tensor) -> Tensor:
    """Move a third of the numbers close to each bound."""
    low, high = 0.0, 1.0
    bounds = [value for value in args if isinstance(value, int | float)]
    if len(bounds) == 2 and not isinstance(args[0], list):
        low, high = bounds
    share = (result - low) / ((high - low) or 1.0)
    third = (share * 3).floor().clamp(0, 2)
    within = share * 3 - third
    near = _NEAR * (within + 0.5) / 1.5
    shown = torch.where(third == 0, near, torch.where(third == 2, 1 - near, within))
    return result.copy_(low + (high - low) * shown)


def _widened_normal(args: Any, result: Tensor) -> Tensor:
    """Move a third of the numbers three times as far from zero."""
    return result.copy_(torch.where((result * 997).remainder(3) < 1, _FAR * result, result))


_WIDENED: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(("rand", "rand_like", "uniform", "uniform_"), _widened_uniform),
    **dict.fromkeys(("randn", "randn_like", "normal_"), _widened_normal),
}
