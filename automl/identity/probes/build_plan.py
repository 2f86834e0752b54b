"""Plan how to build a candidate for a probe, with weights in general position.

General position means that no two independent draws have the same seed. Otherwise, a difference
could be zero just because two layers happened to have equal weights.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from automl.errors import CandidateError
from automl.identity.probes.batch_dependence import (
    MetadataAccess,
    depends_on_device,
    depends_on_size,
    depends_on_type,
)
from automl.identity.probes.construction import INCONSISTENT, Builder, Built, slots
from automl.identity.probes.consulted import Consulted, generators
from automl.identity.probes.forward_draws import Noise, seed_noise
from automl.identity.probes.forward_passes import RunningModules
from automl.identity.probes.isolation import reset_state
from automl.identity.probes.symmetry import general_keys, gradients_of
from automl.identity.probes.values import tensors_in
from automl.identity.probes.weight_keys import Keyer
from automl.space.candidate import Candidate

_SEED = 1


@dataclass(frozen=True)
class Plan:
    """How to build a candidate, and what is known about its forward pass.

    Attributes:
        builder: Builds the candidate.
        keys: The key of each draw by its number; all keys differ.
        events: The draws that each build makes.
        followed: For each tensor of the module, whether known draws determine it.
        drawing: The parts that draw in a forward pass, by their positions in `modules()`.
        returns: The shape of the output tensor for the probe; None if the output is not a tensor.
        consulted: What the forward pass reads that a probe cannot show.
        passes: The number of passes it took to tell equal layers apart.
    """

    builder: Builder
    keys: Mapping[int, int]
    events: tuple[str, ...]
    followed: tuple[bool, ...]
    drawing: tuple[int, ...]
    returns: tuple[int, ...] | None
    consulted: Consulted
    passes: int = 0

    def build(self, seed: int, *, garbage: bool = False) -> Built:
        """Build with weights, and noise in the forward pass, that follow from a seed.

        Args:
            seed: The seed.
            garbage: Whether uninitialised memory reads as NaN.

        Raises:
            CandidateError: The candidate draws other weights than before.
            Exception: Any error of the candidate.
        """
        built = self.builder.build(seed, self.keys, garbage=garbage)
        if tuple(built.draws.events) != self.events or len(slots(built.module)) != len(
            self.followed
        ):
            raise CandidateError(INCONSISTENT)
        seed_noise(built.module, self.drawing, seed)
        return built

    def unfollowed(self, one: Built, other: Built) -> str | None:
        """Why two builds with different seeds differ in tensors that no known draw determines.

        Returns:
            The reason; None if they do not.

        Raises:
            CandidateError: The builds hold different tensors.
        """
        held = zip(slots(one.module), slots(other.module), self.followed, strict=True)
        for ours, theirs, followed in held:
            if ours.name != theirs.name or ours.tensor.shape != theirs.tensor.shape:
                raise CandidateError(INCONSISTENT)
            if not followed and not torch.equal(ours.tensor, theirs.tensor):
                return f"holds random numbers in {ours.name} that no torch operation made"
        return None


def plan(propose: Callable[[], Candidate], inputs: Callable[[], Any]) -> Plan:
    """Plan how to build a candidate in general position.

    Args:
        propose: Makes the candidate, once per build.
        inputs: Makes a copy of the probe's batch.

    Raises:
        TooSymmetricError: The candidate has too many equal layers to tell apart.
        Exception: Any error of the candidate.
    """
    builder = Builder(propose, inputs)
    made = _plan(builder)
    return made or _plan(replace(builder, materialize=True)) or _raise_unlike()


def _raise_unlike() -> Plan:
    raise CandidateError(INCONSISTENT)


def _plan(builder: Builder) -> Plan | None:
    """Make a plan; None if the module makes tensors in its first pass without torch's knowledge."""
    reset_state(0)
    before = generators()
    built = builder.build(_SEED, follow=True)
    module, batch = built.module, builder.inputs()
    followed = tuple(bool(built.draws.of(slot.tensor)) for slot in slots(module))
    consulted, access = Consulted(), MetadataAccess()
    if generators() != before:
        consulted.hide("is built from random numbers outside torch")
    if built.seeded:
        consulted.hide("sets the state of torch's generator")
    if built.narrow:
        consulted.hide(f"holds weights of {', '.join(built.narrow)}")
    with RunningModules() as running:
        noise = Noise(_SEED, running)
        keyer = Keyer(built.draws, batch, running, {})
        with torch.enable_grad(), consulted.recording(module, noise, batch, keyer):
            with access:
                output = module.train()(batch)
            gradients_of(tensors_in(output), list(module.parameters()))
        if len(slots(module)) != len(followed):
            return None
        _answer(module, builder.inputs(), consulted, noise, access)
    if depends_on_device(module, access):
        consulted.hide("reads the device")
    if access.outside:
        consulted.hide("computes outside torch")
    if access.size and depends_on_size(module, builder.inputs()):
        consulted.hide("depends on the size of a batch")
    if access.type and depends_on_type(module, builder.inputs()):
        consulted.hide("depends on the type of numbers")
    keys, passes = general_keys(
        lambda: builder.build(_SEED, follow=True), keyer.keys, builder.inputs
    )
    return Plan(
        builder,
        keys,
        tuple(built.draws.events),
        followed,
        tuple(n for n, part in enumerate(module.modules()) if part in noise.drawing),
        tuple(output.shape) if isinstance(output, Tensor) else None,
        consulted,
        passes,
    )


def _answer(
    module: nn.Module, inputs: Any, consulted: Consulted, noise: Noise, access: MetadataAccess
) -> None:
    """Also pass the inputs forward in eval mode, which some modules cannot do."""
    with (
        suppress(Exception),
        torch.no_grad(),
        consulted.recording(module, noise, inputs),
        access,
    ):
        module.eval()(inputs)
    module.train()
