"""The probe: a candidate's function as a sketch of what it computes while it is trained a little.

Source: R. Gillard et al.: Unified Functional Hashing in Automatic Machine Learning, arXiv
2302.05433, whose hash is of outputs after a few steps; here weights are keyed by values, gradients
and outputs in both modes count, and equality is confirmed.
"""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from automl.identity.fingerprint import Verdict
from automl.identity.probes.batch_dependence import resized
from automl.identity.probes.build_plan import Plan, plan
from automl.identity.probes.construction import Built
from automl.identity.probes.isolation import isolated, jumping_clock, settle
from automl.identity.probes.recorder import EnoughError, ProbeTask, Watch, copied, watching
from automl.identity.probes.sketch import Sketch
from automl.identity.probes.symmetry import MOST_PASSES, TooSymmetricError
from automl.identity.probes.values import tensors_in
from automl.plugin.protocols import Run, Task, Trainer
from automl.space.candidate import Candidate, Signature
from automl.trial_code.boundary import TrialCode

if TYPE_CHECKING:
    from torch import nn

_RUN_SEED = 0
_FEWEST_STEPS = 2
_SKETCHED = 512
# Rows of outputs that differ by less than this share of the largest are the same row.
_CONSTANT = 2.0**-30
_REPEATED = 1
_LARGE = 259


@dataclass(frozen=True)
class Probe:
    """What was found: `reason` is one line for any verdict but a sound one.

    live_parameters: elements of the parameters that any gradient reached. consulted: what a
    probe cannot show and must be equal in equal functions, as texts. passes: what it took to set
    equal layers apart.
    """

    verdict: Verdict
    sketch: Sketch | None
    live_parameters: int | None
    seconds: float
    reason: str | None = None
    consulted: tuple[str, ...] = ()
    passes: int = 0


def probe(
    propose: Callable[[], Candidate],
    task: Task,
    trainer: Trainer,
    *,
    steps: int = 3,
    seeds: int = 2,
) -> Probe:
    """Train a candidate for a few steps on the task's probe and sketch what it computes.

    Runs in float64 on one thread of the CPU and restores all global state; do not run it beside
    other threads that rely on that. A candidate's own errors become a verdict.

    Args:
        propose: makes the candidate, once for each build.
        steps: steps of each training.
        seeds: trainings, each with other weights.
    """
    start = time.perf_counter()
    with isolated():
        found = _Probing(propose, task, trainer, steps, seeds).judge()
    return replace(found, seconds=time.perf_counter() - start)


@dataclass
class _Probing:
    """One candidate under probe."""

    propose: Callable[[], Candidate]
    task: Task
    trainer: Trainer
    steps: int
    seeds: int
    data: tuple[Any, Any] = (None, None)
    ready: dict[int, Built] = field(default_factory=dict)

    def judge(self) -> Probe:
        watches: list[Watch] = []
        made: Plan | None = None
        try:
            with TrialCode():
                self.data = self._copied()
                made = plan(self.propose, lambda: copied(self.data[0]))
                self._train_all(made, watches)
            return self._verdict(made, watches)
        except TooSymmetricError:
            reason = f"it takes more than {MOST_PASSES} passes to set equal layers apart"
            return Probe(Verdict.SYMMETRIC, None, None, 0.0, reason)
        except Exception as error:
            if made is not None and any(not watch.finite for watch in watches):
                return self._not_finite(made, watches)
            return _unhashable(_line(error))

    def _copied(self) -> tuple[Any, Any]:
        inputs, targets = self.task.probe()
        return copied(inputs), copied(targets)

    def _train_all(self, made: Plan, watches: list[Watch]) -> None:
        """Train under each seed, then begin once more under the first in other surroundings."""
        self.ready = {seed: _settled(made, seed) for seed in range(1, self.seeds + 1)}
        if self.seeds > 1 and (reason := made.unfollowed(self.ready[1], self.ready[2])):
            made.consulted.hide(reason)
        for seed in range(1, self.seeds + 1):
            watches.append(Watch(self.steps))
            settle(0)
            self._train(made, watches[-1], seed)
            if not watches[-1].finite:
                return
        watches.append(Watch(_REPEATED))
        settle(1)
        with jumping_clock():
            self._train(made, watches[-1], 1, repeated=True)

    def _verdict(self, made: Plan, watches: list[Watch]) -> Probe:
        *trained, repeated = watches
        if any(not watch.finite for watch in watches):
            return self._not_finite(made, watches)
        done = min(watch.done for watch in trained)
        if done < _FEWEST_STEPS:
            return _unhashable(f"the trainer made {done} steps, a probe needs {_FEWEST_STEPS}")
        if not all(watch.outputs for watch in trained):
            return _unhashable("the trainer handed no outputs to the task")
        live = trained[0].live_parameters
        if (where := _difference(trained[0], repeated)) is not None:
            return Probe(Verdict.NONDETERMINISTIC, None, live, 0.0, where)
        if made.consulted.hidden:
            return Probe(Verdict.HIDDEN, None, live, 0.0, made.consulted.hidden)
        sketch = Sketch(tuple(vector for watch in trained for vector in _vectors(watch)))
        known = (made.consulted.texts(), made.passes)
        if all(map(_is_constant, trained)):
            reason = "the outputs are the same for all examples"
            return Probe(Verdict.DEGENERATE, sketch, live, 0.0, reason, *known)
        return Probe(Verdict.SOUND, sketch, live, 0.0, None, *known)

    def _not_finite(self, made: Plan, watches: Sequence[Watch]) -> Probe:
        live = watches[0].live_parameters
        if all(watch.finite for watch in watches[: self.seeds]):
            reason = "a repeat gave numbers that are not finite: it depends on memory never set"
            return Probe(Verdict.NONDETERMINISTIC, None, live, 0.0, reason)
        if made.drawing or made.consulted.hidden:
            # Draws are wider in a probe than in training, which may stay finite.
            reason = made.consulted.hidden or "draws numbers that a probe takes too far"
            return Probe(Verdict.HIDDEN, None, live, 0.0, reason)
        reason = "outputs or gradients are not finite"
        return Probe(Verdict.DEGENERATE, None, live, 0.0, reason)

    def _train(self, made: Plan, watch: Watch, seed: int, *, repeated: bool = False) -> None:
        built = self.ready.pop(seed, None) if not repeated else None
        built = built or made.build(seed, garbage=repeated)
        ready = [built.module]

        def architecture() -> "nn.Module":
            # A trainer may want a second one.
            module = ready.pop() if ready else made.build(seed, garbage=repeated).module
            watch.modules.append(module)
            return module

        task = ProbeTask(self.task, *self.data, watch)
        candidate = _Known(architecture, **_described(built.candidate), returns=made.returns)
        with _directory() as directory, watching(watch):
            run = Run("cpu", _RUN_SEED, 0, 1, directory, probe=True)
            self._follow(watch, self.trainer.train(candidate, task, run))
            if watch.finite and not repeated and watch.modules:
                self._ask_more(watch, larger=seed == 1)

    def _ask_more(self, watch: Watch, larger: bool) -> None:
        """Outputs in eval mode, for a trainer that asked for none, and for a larger batch."""
        module = watch.modules[-1]
        with torch.no_grad():
            if all(outputs.training for outputs in watch.outputs):
                watch.record(module.eval()(copied(self.data[0])))
            if larger:
                size = _larger_size(module.eval(), self.data[0])
                watch.record(module.train()(resized(copied(self.data[0]), size)))
                if size == _LARGE:
                    watch.record(module.eval()(resized(copied(self.data[0]), size)))

    def _follow(self, watch: Watch, reports: Iterator[Any]) -> None:
        try:
            for _ in reports:
                watch.reports += 1
                if watch.done >= watch.steps or not watch.finite:
                    break
        except EnoughError:
            pass
        finally:
            if close := getattr(reports, "close", None):
                close()


def _settled(made: Plan, seed: int) -> Built:
    settle(0)
    return made.build(seed)


def _larger_size(module: "nn.Module", inputs: Any) -> int:
    """The size of a second batch: few functions of a batch's size are equal on both.

    Half as large again as the first, but much larger where an example's answer depends on others.
    """
    inputs = copied(inputs)
    sizes = {len(each) for each in tensors_in(inputs) if each.dim()}
    count = min(sizes, default=1)
    whole, half = module(inputs), module(resized(inputs, max(count // 2, 1)))
    pairs = zip(tensors_in(whole), tensors_in(half), strict=False)
    alone = all(_is_beginning(ours, theirs) for ours, theirs in pairs)
    return 3 * count // 2 + 1 if alone else _LARGE


def _is_beginning(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the answers for some examples are the first of those for more."""
    beginning = ours[: len(theirs)] if ours.dim() and theirs.dim() else ours
    if beginning.shape != theirs.shape:
        return False
    return bool((beginning - theirs).abs().max() <= _CONSTANT * ours.abs().max())


@dataclass(frozen=True)
class _Known(Candidate):
    """A candidate whose module is known to return tensors of this shape for the task's probe."""

    returns: "tuple[int, ...] | None" = None

    def build(
        self, probe: "Tensor | None" = None, signature: Signature | None = None
    ) -> "nn.Module":
        # A forward pass to check the shape is saved where it would find nothing.
        if probe is None or signature is None:
            return super().build()
        fits = self.returns == (len(probe), *signature.output_shape)
        return super().build() if fits else super().build(probe, signature)


def _described(candidate: Candidate) -> dict[str, Any]:
    return {
        each.name: getattr(candidate, each.name)
        for each in fields(Candidate)
        if each.name != "architecture"
    }


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory for one training, which exists only once somebody makes it, as few do."""
    path = Path(tempfile.gettempdir(), f"automl-probe-{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


def _difference(once: Watch, again: Watch) -> str | None:
    """What a repeat of the first step did otherwise, to the bit."""
    kinds = [(outputs.training, outputs.values.shape) for outputs in once.outputs]
    if kinds[: len(again.outputs)] != [(o.training, o.values.shape) for o in again.outputs]:
        return "a repeat gave outputs of another shape or number"
    pairs = zip(once.outputs, again.outputs, strict=False)
    if any(not torch.equal(ours.values, theirs.values) for ours, theirs in pairs):
        return "a repeat gave other outputs: they depend on time, memory or global random state"
    if once.gradients[: len(again.gradients)] != again.gradients:
        return "a repeat gave other gradients: they depend on time, memory or global random state"
    return None


def _unhashable(reason: str) -> Probe:
    return Probe(Verdict.UNHASHABLE, None, None, 0.0, reason)


def _is_constant(watch: Watch) -> bool:
    return all(map(_rows_are_equal, (outputs.values for outputs in watch.outputs)))


def _rows_are_equal(values: Tensor) -> bool:
    if values.dim() == 0 or len(values) < 2 or not values.numel():
        return values.numel() < 2
    spread = (values - values[:1]).abs().max()
    return bool(spread <= _CONSTANT * values.abs().max())


def _vectors(watch: Watch) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Outputs in their order, then the norms of all steps' gradients, two of a kind each."""
    for outputs in watch.outputs:
        yield _shortened(outputs.values.reshape(-1)).numpy()
    # One scale over all steps: what is left of a gradient that has all but vanished is noise.
    yield np.array([step.squares for step in watch.gradients]) ** 0.5
    yield np.array([step.fourth_powers for step in watch.gradients]) ** 0.25


def _shortened(values: Tensor) -> Tensor:
    """A long vector as random sums of disjoint parts, so that a sketch stays small."""
    if len(values) <= _SKETCHED:
        return values
    padded = torch.nn.functional.pad(values * _factors(len(values)), (0, -len(values) % _SKETCHED))
    return padded.reshape(_SKETCHED, -1).sum(1)


@lru_cache(maxsize=8)
def _factors(length: int) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
