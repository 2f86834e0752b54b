"""Online: a module that learns by itself is shown the examples one after another.

Source: E. Real, C. Liang, D. So, Q. Le: AutoML-Zero, arXiv 2003.03384, section 3 (the evaluation
of an algorithm: learn on each example in turn, then predict on the validation examples).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from automl import (
    Candidate,
    NotFiniteError,
    Report,
    Run,
    Split,
    Task,
    Trainer,
    TrialError,
    hookimpl,
)
from automl_plugins.trainers._epochs import by_epochs, loading

_CHECKPOINT_FORMAT = 1
_LEARNING_BATCH = 64
"""So many examples are handed over between two ticks."""
_EVALUATION_BATCH = 512
_PROBE_EPOCHS = 3


@dataclass(frozen=True)
class Online(Trainer):
    """Calls the module's own `learn(inputs, targets)`; no gradients, no optimizer.

    Each epoch hands over the training examples once, in a random order and in small batches;
    `learn` takes the examples of a batch one by one. Then the task's metrics are measured on the
    validation examples. It reads no hyperparameters.

    epochs: one report each. examples: at most so many an epoch, drawn anew each time; None
    shows all.

    Raises:
        ValueError: a value below 1.
    """

    epochs: int = 1
    examples: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        """Train, yielding a report with the validation metrics each epoch.

        Raises:
            TrialError: the module has no `learn`, or the candidate has hyperparameters.
            NotFiniteError: an output for a validation example became NaN or infinite.
        """
        settings = replace(self, epochs=max(self.epochs, _PROBE_EPOCHS)) if run.probe else self
        yield from by_epochs(lambda: _Training(settings, candidate, task, run), run)


class _Training:
    """One candidate in training: its module, and how far it is."""

    def __init__(self, settings: Online, candidate: Candidate, task: Task, run: Run) -> None:
        self.settings, self.task, self.run = settings, task, run
        if candidate.hyperparameters:
            names = ", ".join(map(repr, candidate.hyperparameters))
            raise TrialError(f"trainer online reads no hyperparameter; the candidate has: {names}")
        torch.manual_seed(run.seed_for("init"))
        module = candidate.build(task.probe()[0], task.signature)
        if not callable(getattr(module, "learn", None)):
            raise TrialError(
                f"trainer online needs a module that learns by itself, but {type(module).__name__} "
                "has no learn(inputs, targets): train it with trainer supervised"
            )
        self.module: Any = module.to(run.device)
        self.inputs, self.targets = self._moved(Split.TRAIN)
        self.validation = self._moved(Split.VALIDATION)
        self.epochs = 0
        self.metrics: Mapping[str, float] = {}

    @property
    def finished(self) -> bool:
        return self.epochs >= self.settings.epochs

    def report(self) -> Report:
        return Report(self.epochs, self.metrics, checkpoint=self.state)

    def epoch(self) -> None:
        """Show the examples for one more epoch, then measure."""
        self.epochs += 1
        # Seeds of its own let a resumed epoch repeat exactly with no generator's state kept.
        seed = self.run.seed_for("epoch", self.epochs)
        torch.manual_seed(seed)
        self.module.train()
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(seed))
        rows = order[: self.settings.examples].to(self.inputs.device)
        for batch in torch.split(rows, _LEARNING_BATCH):
            self.module.learn(self.inputs[batch], self.targets[batch])
            self.run.tick()
        self.metrics = dict(self.task.evaluate(self._outputs(), self.validation[1]))

    @torch.no_grad()
    def _outputs(self) -> Tensor:
        """The outputs for all validation examples, in single precision at least."""
        self.module.eval()
        parts = []
        for inputs in torch.split(self.validation[0], _EVALUATION_BATCH):
            parts.append(self.module(inputs))
            self.run.tick()
        outputs = torch.cat(parts)
        if not outputs.isfinite().all():
            raise NotFiniteError(
                f"outputs became NaN or infinite in epoch {self.epochs}: learning diverged"
            )
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _moved(self, split: Split) -> tuple[Tensor, Tensor]:
        inputs, targets = self.task.split(split)
        return inputs.to(self.run.device), targets.to(self.run.device)

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on from here, to the bit."""
        return {
            "format": _CHECKPOINT_FORMAT,
            "settings": asdict(self.settings),
            "epochs": self.epochs,
            "metrics": dict(self.metrics),
            "module": self.module.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrialError: it is of another candidate, of other settings or of another trainer.
        """
        with loading(self.run):
            if state["format"] != _CHECKPOINT_FORMAT or state["settings"] != asdict(self.settings):
                raise ValueError("it was written under other settings")
            self.module.load_state_dict(state["module"])
            self.epochs, self.metrics = state["epochs"], state["metrics"]


@hookimpl
def register_trainers() -> Mapping[str, Callable[..., Trainer]]:
    return {"online": Online}
