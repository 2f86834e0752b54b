"""A surrounding that depends on nothing the caller did, and leaves no trace for the caller."""

import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def isolated() -> Iterator[None]:
    """Keep all global state that torch, numpy and random have; put it back whatever happens.

    Within, gradients are on, nothing is cast, no warning is shown, and `torch.manual_seed` seeds
    the CPU alone. Global state belongs to the whole process: run nothing else in other threads
    meanwhile.
    """
    restore = [keep() for keep in _KEPT]
    with ExitStack() as stack:
        # Before CUDA is in use, seeds for it wait in a queue that nobody can put back.
        for module in (torch, torch.random):
            stack.enter_context(replaced(module, "manual_seed", _seed_cpu))
        stack.callback(lambda: [put_back() for put_back in restore])
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def settle(seed: int) -> None:
    """Float64, one thread, and the generators of random and numpy at a seed, torch's at zero."""
    torch.set_default_dtype(torch.float64)
    _set_determinism(False)
    _set_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(0)


@contextmanager
def jumping_clock() -> Iterator[None]:
    """Have Python's clocks jump at each look, by days to years, so that no hour is the same."""
    jumps = random.Random(0)

    def moved(look: Callable[[], Any], unit: int) -> Callable[[], Any]:
        return lambda: look() + jumps.randrange(10**5, 10**8) * unit

    def at_another(tell: Callable[..., Any]) -> Callable[..., Any]:
        now = time.time
        return lambda *given: tell(*(given or (now() + jumps.randrange(10**5, 10**8),)))

    with ExitStack() as stack:
        for name, unit in CLOCKS.items():
            stack.enter_context(replaced(time, name, moved(getattr(time, name), unit)))
        for name in DATES:
            stack.enter_context(replaced(time, name, at_another(getattr(time, name))))
        yield


CLOCKS = {
    name: unit
    for clock in ("time", "monotonic", "perf_counter")
    for name, unit in ((clock, 1), (f"{clock}_ns", 10**9))
}


DATES = ("localtime", "gmtime", "ctime")


def _seed_cpu(seed: int) -> torch.Generator:
    return torch.default_generator.manual_seed(int(seed))


@contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Put something in the place of a module's or a class's own, and take it back."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _keep_generators() -> Callable[[], object]:
    ours: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.default_generator.set_state, torch.default_generator.get_state()),
    ]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        ours.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return lambda: [put_back(state) for put_back, state in ours]


def _keep_dtype() -> Callable[[], object]:
    dtype = torch.get_default_dtype()
    return lambda: torch.set_default_dtype(dtype)


def _keep_threads() -> Callable[[], object]:
    threads = torch.get_num_threads()
    return lambda: _set_threads(threads)


def _set_threads(threads: int) -> None:
    # Setting the number anew costs more than a step of a small model.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _keep_determinism() -> Callable[[], object]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return lambda: _set_determinism(enabled, warns)


def _set_determinism(enabled: bool, warns: bool = False) -> None:
    # Setting it loads much of torch's compiler.
    if enabled != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


_KEPT: list[Callable[[], Callable[[], object]]] = [
    _keep_generators,
    _keep_dtype,
    _keep_threads,
    _keep_determinism,
]
