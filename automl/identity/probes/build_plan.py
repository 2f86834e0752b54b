"""How to build a candidate for a probe: with weights in general position, and with what it reads.

General position means that no two independent draws have one seed: then equal outputs mean equal
functions, and not that a difference was zero because two layers happened to be equal.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from automl.errors import CandidateError
from automl.identity.probes.batch_dependence import (
    Reading,
    depends_on_device,
    depends_on_size,
    depends_on_type,
)
from automl.identity.probes.construction import UNLIKE, Builder, Built, slots
from automl.identity.probes.consulted import Consulted, generators
from automl.identity.probes.forward_draws import Noise, seed_noise
from automl.identity.probes.forward_passes import Running
from automl.identity.probes.isolation import settle
from automl.identity.probes.symmetry import general_keys, gradients_of
from automl.identity.probes.values import tensors_in
from automl.identity.probes.weight_keys import Keyer
from automl.space.candidate import Candidate

_SEED = 1


@dataclass(frozen=True)
class Plan:
    """How to build a candidate, and what its forward pass is known to do.

    keys: of all draws by their numbers, no two equal. events: the draws of each build. followed:
    for each tensor that the module holds, whether it follows from draws that were followed.
    drawing: the parts that draw in a forward pass, by their numbers in `modules()`. returns: the
    shape of the tensor that it gives for the inputs; None where it gives something else. passes:
    what setting equal layers apart took.
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
        """Build with weights, and with noise in its forward pass, that follow from a seed.

        Raises:
            CandidateError: the candidate draws other weights than before.
            Exception: whatever it raises.
        """
        built = self.builder.build(seed, self.keys, garbage=garbage)
        if tuple(built.draws.events) != self.events or len(slots(built.module)) != len(
            self.followed
        ):
            raise CandidateError(UNLIKE)
        seed_noise(built.module, self.drawing, seed)
        return built

    def unfollowed(self, one: Built, other: Built) -> str | None:
        """Why two builds of other seeds differ in more than draws whose reach is known.

        Raises:
            CandidateError: they hold other tensors.
        """
        held = zip(slots(one.module), slots(other.module), self.followed, strict=True)
        for ours, theirs, followed in held:
            if ours.name != theirs.name or ours.tensor.shape != theirs.tensor.shape:
                raise CandidateError(UNLIKE)
            if not followed and not torch.equal(ours.tensor, theirs.tensor):
                return f"holds random numbers, {ours.name}, that no operation of torch made"
        return None


def plan(propose: Callable[[], Candidate], inputs: Callable[[], Any]) -> Plan:
    """Find how to build a candidate in general position.

    Args:
        propose: makes the candidate, once for each build.
        inputs: a copy of the probe's batch.

    Raises:
        TooSymmetricError: it has too many equal layers to be set apart.
        Exception: whatever the candidate raises.
    """
    builder = Builder(propose, inputs)
    made = _plan(builder)
    return made or _plan(replace(builder, materialize=True)) or _raise_unlike()


def _raise_unlike() -> Plan:
    raise CandidateError(UNLIKE)


def _plan(builder: Builder) -> Plan | None:
    """A plan; None where the module makes tensors in its first pass, unknown to torch."""
    settle(0)
    before = generators()
    built = builder.build(_SEED, follow=True)
    module, batch = built.module, builder.inputs()
    followed = tuple(bool(built.draws.of(slot.tensor)) for slot in slots(module))
    consulted, reading = Consulted(), Reading()
    if generators() != before:
        consulted.hide("is built of random numbers outside torch")
    if built.seeded:
        consulted.hide("sets the state of torch's generator")
    if built.narrow:
        consulted.hide(f"holds weights of {', '.join(built.narrow)}")
    with Running() as running:
        noise = Noise(_SEED, running)
        keyer = Keyer(built.draws, batch, running, {})
        with torch.enable_grad(), consulted.watching(module, noise, batch, keyer):
            with reading:
                output = module.train()(batch)
            gradients_of(tensors_in(output), list(module.parameters()))
        if len(slots(module)) != len(followed):
            return None
        _answer(module, builder.inputs(), consulted, noise, reading)
    if depends_on_device(module, reading):
        consulted.hide("looks at the device")
    if reading.outside:
        consulted.hide("computes outside torch")
    if reading.size and depends_on_size(module, builder.inputs()):
        consulted.hide("depends on the size of a batch")
    if reading.type and depends_on_type(module, builder.inputs()):
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
    module: nn.Module, inputs: Any, consulted: Consulted, noise: Noise, reading: Reading
) -> None:
    """Pass inputs forward in eval mode, too; not every module can."""
    with (
        suppress(Exception),
        torch.no_grad(),
        consulted.watching(module, noise, inputs),
        reading,
    ):
        module.eval()(inputs)
    module.train()
