"""Seeds that survive interruptions: every random draw of a trial follows from its number."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of random, numpy and torch, and restore them afterwards."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states = (
        random.getstate(),
        numpy.random.get_state() if numpy else None,
        torch.random.get_rng_state() if torch else None,
        # Seeding torch seeds all GPUs, too.
        torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None,
    )
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed)
    if torch:
        torch.manual_seed(seed)
    finder = _TorchSeeder(seed)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        if torch:
            torch.random.set_rng_state(states[2])
        if torch and states[3] is not None:
            torch.cuda.set_rng_state_all(states[3])


@dataclass(eq=False)
class _TorchSeeder(MetaPathFinder):
    """Seeds torch if a trial is the first to load it, as if it had been loaded before."""

    seed: int
    finding: bool = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch" or self.finding:
            return None
        self.finding = True
        try:
            spec = find_spec(name)
        finally:
            self.finding = False
        if spec is not None and spec.loader is not None:
            spec.loader = _SeedingLoader(spec.loader, self.seed)
        return spec


@dataclass
class _SeedingLoader(Loader):
    """Loads torch with another loader, and seeds its generator."""

    loader: Loader
    seed: int

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        module.manual_seed(self.seed)
