"""The probe: train a candidate for a few steps and sketch what it computes.

Source: R. Gillard et al.: Unified Functional Hashing in Automatic Machine Learning, arXiv
2302.05433, which hashes outputs after a few steps. Here, weights are keyed by values, gradients and
the outputs in both modes count too, and equality is confirmed.
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
from automl.identity.probes.isolation import isolated, jumping_clock, reset_state
from automl.identity.probes.recorder import EnoughError, ProbeTask, Recording, copied, recorded
from automl.identity.probes.sketch import Sketch
from automl.identity.probes.symmetry import MAX_PASSES, TooSymmetricError
from automl.identity.probes.values import tensors_in
from automl.plugin.protocols import Run, Task, Trainer
from automl.space.candidate import Candidate, Signature
from automl.trial_code.boundary import TrialCode

if TYPE_CHECKING:
    from torch import nn

_RUN_SEED = 0
_FEWEST_STEPS = 2
_SKETCHED = 512
# Rows of outputs are equal if they differ by less than this share of the largest output.
_CONSTANT = 2.0**-30
_REPEATED = 1
_LARGE = 259


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    Attributes:
        verdict: Whether the function can be compared with others.
        sketch: What the candidate computed; None unless it is sound or degenerate.
        live_parameters: The number of parameter elements that a gradient reached.
        seconds: The time the probe took.
        reason: Why the verdict is not `SOUND`, in one line.
        consulted: Descriptions of what a probe cannot show but equal functions have in common.
        passes: The number of passes it took to tell equal layers apart.
    """

    verdict: Verdict
    sketch: Sketch | None
    live_parameters: int | None
    seconds: float
    reason: str | None = None
    consulted: tuple[str, ...] = ()
    passes: int = 0


_IDLE = "the inputs choose between weights, and some are chosen for no example of the probe"


def probe(
    propose: Callable[[], Candidate],
    task: Task,
    trainer: Trainer,
    *,
    steps: int = 3,
    seeds: int = 2,
) -> Probe:
    """Train a candidate for a few steps on the task's probe and sketch what it computes.

    Runs in float64 on one CPU thread and restores all global state. Do not run it beside threads
    that rely on global state. Errors of the candidate become a verdict.

    Args:
        propose: Makes the candidate, once per build.
        task: The task.
        trainer: The trainer that trains the candidate.
        steps: The number of steps of each training.
        seeds: The number of trainings, each with other weights.
    """
    start = time.perf_counter()
    with isolated():
        found = _Probing(propose, task, trainer, steps, seeds).result()
    return replace(found, seconds=time.perf_counter() - start)


@dataclass
class _Probing:
    """The probe of one candidate."""

    propose: Callable[[], Candidate]
    task: Task
    trainer: Trainer
    steps: int
    seeds: int
    data: tuple[Any, Any] = (None, None)
    ready: dict[int, Built] = field(default_factory=dict)

    def result(self) -> Probe:
        recordings: list[Recording] = []
        made: Plan | None = None
        try:
            with TrialCode():
                self.data = self._copied()
                made = plan(self.propose, lambda: copied(self.data[0]))
                self._train_all(made, recordings)
            return self._verdict(made, recordings)
        except TooSymmetricError:
            reason = f"telling equal layers apart takes more than {MAX_PASSES} passes"
            return Probe(Verdict.SYMMETRIC, None, None, 0.0, reason)
        except Exception as error:
            if made is not None and any(not recording.finite for recording in recordings):
                return self._not_finite(made, recordings)
            return _unhashable(_line(error))

    def _copied(self) -> tuple[Any, Any]:
        inputs, targets = self.task.probe()
        return copied(inputs), copied(targets)

    def _train_all(self, made: Plan, recordings: list[Recording]) -> None:
        """Train with each seed, then repeat the first training's start with other global state."""
        self.ready = {seed: _built(made, seed) for seed in range(1, self.seeds + 1)}
        if self.seeds > 1 and (reason := made.unfollowed(self.ready[1], self.ready[2])):
            made.consulted.hide(reason)
        for seed in range(1, self.seeds + 1):
            recordings.append(Recording(self.steps))
            reset_state(0)
            self._train(made, recordings[-1], seed)
            if not recordings[-1].finite:
                return
        recordings.append(Recording(_REPEATED))
        reset_state(1)
        with jumping_clock():
            self._train(made, recordings[-1], 1, repeated=True)

    def _verdict(self, made: Plan, recordings: list[Recording]) -> Probe:
        *trained, repeated = recordings
        if any(not recording.finite for recording in recordings):
            return self._not_finite(made, recordings)
        done = min(recording.done for recording in trained)
        if done < _FEWEST_STEPS:
            return _unhashable(f"the trainer made {done} steps, but a probe needs {_FEWEST_STEPS}")
        if not all(recording.outputs for recording in trained):
            return _unhashable("the trainer passed no outputs to the task")
        live = trained[0].live_parameters
        if (where := _difference(trained[0], repeated)) is not None:
            return Probe(Verdict.NONDETERMINISTIC, None, live, 0.0, where)
        if made.consulted.hidden:
            return Probe(Verdict.HIDDEN, None, live, 0.0, made.consulted.hidden)
        chooses, branches = made.consulted.chooses, made.consulted.branches
        if (chooses or branches) and any(r.has_idle_parameters(branches) for r in trained):
            return Probe(Verdict.HIDDEN, None, live, 0.0, _IDLE)
        sketch = Sketch(tuple(vector for recording in trained for vector in _vectors(recording)))
        known = (made.consulted.texts(), made.passes)
        if all(map(_is_constant, trained)):
            reason = "the outputs are the same for all examples"
            return Probe(Verdict.DEGENERATE, sketch, live, 0.0, reason, *known)
        return Probe(Verdict.SOUND, sketch, live, 0.0, None, *known)

    def _not_finite(self, made: Plan, recordings: Sequence[Recording]) -> Probe:
        live = recordings[0].live_parameters
        if all(recording.finite for recording in recordings[: self.seeds]):
            reason = "a repeat gave numbers that are not finite: it reads uninitialised memory"
            return Probe(Verdict.NONDETERMINISTIC, None, live, 0.0, reason)
        if made.drawing or made.consulted.hidden:
            # Draws are wider in a probe than in training, which may stay finite.
            reason = made.consulted.hidden or "draws numbers whose widened range is not finite"
            return Probe(Verdict.HIDDEN, None, live, 0.0, reason)
        reason = "outputs or gradients are not finite"
        return Probe(Verdict.DEGENERATE, None, live, 0.0, reason)

    def _train(
        self, made: Plan, recording: Recording, seed: int, *, repeated: bool = False
    ) -> None:
        built = self.ready.pop(seed, None) if not repeated else None
        built = built or made.build(seed, garbage=repeated)
        ready = [built.module]

        def architecture() -> "nn.Module":
            # A trainer may build a second module.
            module = ready.pop() if ready else made.build(seed, garbage=repeated).module
            recording.modules.append(module)
            return module

        task = ProbeTask(self.task, *self.data, recording)
        candidate = _CheckedCandidate(
            architecture, **_other_fields(built.candidate), returns=made.returns
        )
        with _directory() as directory, recorded(recording):
            run = Run("cpu", _RUN_SEED, 0, 1, directory, probe=True)
            self._consume(recording, self.trainer.train(candidate, task, run))
            if recording.finite and not repeated and recording.modules:
                self._record_more(recording, larger=seed == 1)

    def _record_more(self, recording: Recording, larger: bool) -> None:
        """Record outputs in eval mode, if the trainer asked for none, and for a larger batch."""
        module = recording.modules[-1]
        with torch.no_grad():
            if all(outputs.training for outputs in recording.outputs):
                recording.record(module.eval()(copied(self.data[0])))
            if larger:
                size = _larger_size(module.eval(), self.data[0])
                recording.record(module.train()(resized(copied(self.data[0]), size)))
                if size == _LARGE:
                    recording.record(module.eval()(resized(copied(self.data[0]), size)))

    def _consume(self, recording: Recording, reports: Iterator[Any]) -> None:
        try:
            for _ in reports:
                recording.reports += 1
                if recording.done >= recording.steps or not recording.finite:
                    break
        except EnoughError:
            pass
        finally:
            if close := getattr(reports, "close", None):
                close()


def _built(made: Plan, seed: int) -> Built:
    reset_state(0)
    return made.build(seed)


def _larger_size(module: "nn.Module", inputs: Any) -> int:
    """The size of a second batch, which exposes functions of the batch size.

    It is 1.5 times the first batch, but much larger if an example's output depends on others.
    """
    inputs = copied(inputs)
    sizes = {len(each) for each in tensors_in(inputs) if each.dim()}
    count = min(sizes, default=1)
    whole, half = module(inputs), module(resized(inputs, max(count // 2, 1)))
    pairs = zip(tensors_in(whole), tensors_in(half), strict=False)
    alone = all(_is_beginning(ours, theirs) for ours, theirs in pairs)
    return 3 * count // 2 + 1 if alone else _LARGE


def _is_beginning(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the outputs for a part of the batch are a prefix of those for all of it."""
    beginning = ours[: len(theirs)] if ours.dim() and theirs.dim() else ours
    if beginning.shape != theirs.shape:
        return False
    return bool((beginning - theirs).abs().max() <= _CONSTANT * ours.abs().max())


@dataclass(frozen=True)
class _CheckedCandidate(Candidate):
    """A candidate whose module is known to return tensors of this shape for the task's probe."""

    returns: "tuple[int, ...] | None" = None

    def build(
        self, probe: "Tensor | None" = None, signature: Signature | None = None
    ) -> "nn.Module":
        # Skip the forward pass that checks the shape if the shape is known to fit.
        if probe is None or signature is None:
            return super().build()
        fits = self.returns == (len(probe), *signature.output_shape)
        return super().build() if fits else super().build(probe, signature)


def _other_fields(candidate: Candidate) -> dict[str, Any]:
    return {
        each.name: getattr(candidate, each.name)
        for each in fields(Candidate)
        if each.name != "architecture"
    }


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory for one training; it is left to the trainer to make it, because few need it."""
    path = Path(tempfile.gettempdir(), f"automl-probe-{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


def _difference(once: Recording, again: Recording) -> str | None:
    """How a repeat of the first step differs, compared bit by bit; None if it does not."""
    kinds = [(outputs.training, outputs.values.shape) for outputs in once.outputs]
    if kinds[: len(again.outputs)] != [(o.training, o.values.shape) for o in again.outputs]:
        return "a repeat gave another number of outputs, or outputs of other shapes"
    pairs = zip(once.outputs, again.outputs, strict=False)
    if any(not torch.equal(ours.values, theirs.values) for ours, theirs in pairs):
        return "a repeat gave different outputs: they depend on time, memory or global random state"
    if once.gradients[: len(again.gradients)] != again.gradients:
        return (
            "a repeat gave different gradients: they depend on time, memory or global random state"
        )
    return None


def _unhashable(reason: str) -> Probe:
    return Probe(Verdict.UNHASHABLE, None, None, 0.0, reason)


def _is_constant(recording: Recording) -> bool:
    return all(map(_rows_are_equal, (outputs.values for outputs in recording.outputs)))


def _rows_are_equal(values: Tensor) -> bool:
    if values.dim() == 0 or len(values) < 2 or not values.numel():
        return values.numel() < 2
    spread = (values - values[:1]).abs().max()
    return bool(spread <= _CONSTANT * values.abs().max())


def _vectors(recording: Recording) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """All outputs in order, then the 2-norms and the 4-norms of the gradients of all steps."""
    for outputs in recording.outputs:
        yield _shortened(outputs.values.reshape(-1)).numpy()
    # One scale for all steps: a gradient that has nearly vanished is only noise.
    yield np.array([step.squares for step in recording.gradients]) ** 0.5
    yield np.array([step.fourth_powers for step in recording.gradients]) ** 0.25


def _shortened(values: Tensor) -> Tensor:
    """Reduce a long vector to random sums of disjoint parts, so that sketches stay small."""
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
