"""Isolation of global state: probes do not depend on the caller's state and do not change it."""

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
    """Save all global state of torch, numpy and random, and restore it at the end.

    Within the context, gradients are on, autocast is off, warnings are hidden, and
    `torch.manual_seed` seeds the CPU only. Global state belongs to the entire process: do not run
    other threads that rely on it meanwhile.
    """
    restore = [keep() for keep in _KEPT]
    with ExitStack() as stack:
        # Before CUDA is in use, its seeds wait in a queue that cannot be restored.
        for module in (torch, torch.random):
            stack.enter_context(replaced(module, "manual_seed", _seed_cpu))
        stack.callback(lambda: [each() for each in restore])
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


def reset_state(seed: int) -> None:
    """Reset global state: float64, one thread, and fixed states of all generators.

    Args:
        seed: The seed for the generators of random and numpy; torch's gets 0.
    """
    torch.set_default_dtype(torch.float64)
    _set_determinism(False)
    _set_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(0)


@contextmanager
def jumping_clock() -> Iterator[None]:
    """Let Python's clocks jump by days to years at each read, to expose functions of the time."""
    jumps = random.Random(0)

    def shifted_clock(clock: Callable[[], Any], unit: int) -> Callable[[], Any]:
        return lambda: clock() + jumps.randrange(10**5, 10**8) * unit

    def shifted_date(date: Callable[..., Any]) -> Callable[..., Any]:
        now = time.time
        return lambda *given: date(*(given or (now() + jumps.randrange(10**5, 10**8),)))

    with ExitStack() as stack:
        for name, unit in CLOCKS.items():
            stack.enter_context(replaced(time, name, shifted_clock(getattr(time, name), unit)))
        for name in DATES:
            stack.enter_context(replaced(time, name, shifted_date(getattr(time, name))))
        yield


CLOCKS = {
    name: unit
    for clock in ("time", "monotonic", "perf_counter")
    for name, unit in ((clock, 1), (f"{clock}_ns", 10**9))
}
"""The clocks of `time` and their units per second."""


DATES = ("localtime", "gmtime", "ctime")
"""The functions of `time` that read the clock if called without arguments."""


def _seed_cpu(seed: int) -> torch.Generator:
    return torch.default_generator.manual_seed(int(seed))


@contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a module or a class within a context."""
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
    return lambda: [restore(state) for restore, state in ours]


def _keep_dtype() -> Callable[[], object]:
    dtype = torch.get_default_dtype()
    return lambda: torch.set_default_dtype(dtype)


def _keep_threads() -> Callable[[], object]:
    threads = torch.get_num_threads()
    return lambda: _set_threads(threads)


def _set_threads(threads: int) -> None:
    # Setting the number again costs more than a step of a small model.
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
