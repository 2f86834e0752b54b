"""What the parts of a search promise each other; a plugin offers objects of these shapes."""

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from automl.errors import first_line
from automl.plugin.report import Direction, Report
from automl.space.candidate import Candidate, Signature
from automl.state_directory import make_folder, private

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from torch import Tensor


_log = logging.getLogger("automl")


class Split(Enum):
    """The part of a task's data: train on one, choose by the next, look at the last once."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Task(Protocol):
    """Data, a loss and metrics: what a candidate is trained and judged on."""

    @property
    def signature(self) -> Signature:
        """Input and output shapes of one example."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """The metrics that `evaluate` returns; the first is the default objective."""

    def digest(self) -> str:
        """Changes whenever the data or the splits do; results are shared under one digest."""

    def split(self, split: Split) -> "tuple[Tensor, Tensor]":
        """Inputs [n, *input_shape] and targets [n, ...] of a split."""

    def probe(self) -> "tuple[Tensor, Tensor]":
        """About ten training examples, always the same."""

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The mean loss of a batch, a scalar to differentiate."""

    def evaluate(self, outputs: "Tensor", targets: "Tensor") -> Mapping[str, float]:
        """The metrics over a whole split."""


class SearchSpace(Protocol):
    """Turns a trial into a candidate, define-by-run."""

    def candidate(self, trial: "optuna.trial.BaseTrial", task: Task) -> Candidate:
        """Suggest decisions on the trial and return what they make."""


@dataclass
class Run:
    """What the engine gives a trainer for one trial.

    probe: this run only tells candidates apart, on a few examples: train in full precision, at
    the highest learning rate of the schedule, for three steps or more. micro_batches: in how many
    parts to pass each batch, with one optimizer step for all of them; more than one where the
    trial ran out of memory before. checkpoint: the SHA-256 of what an earlier attempt left.
    refit: the validation examples are among those to train on: do not stop or choose by them.
    """

    device: str
    seed: int
    number: int
    attempt: int
    directory: Path
    progress: Callable[[], None] = lambda: None
    announce: Callable[[float], None] = lambda seconds: None
    probe: bool = False
    micro_batches: int = 1
    checkpoint: str | None = None
    refit: bool = False

    def tick(self) -> None:
        """Say that work goes on; call it once a batch. The trial's lease lives on it.

        Raises:
            Interrupted: the search was asked to stop; let it pass.
        """
        self.progress()

    def quiet(self, seconds: float) -> None:
        """Say that no tick may come for so long, as while compiling: the lease outlives it."""
        self.announce(seconds)

    def save(self, state: Mapping[str, Any]) -> str:
        """Store a checkpoint, whole or not at all; returns its SHA-256.

        Raises:
            OSError, RuntimeError: it cannot be written; the one before stays.
        """
        import torch

        make_folder(self.directory)
        partial = self.directory / f"{os.getpid()}.part"
        try:
            with open(partial, "w+b", opener=private) as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            partial.replace(self._file(digest))
        finally:
            partial.unlink(missing_ok=True)
        self.checkpoint = digest
        return digest

    def restore(self) -> Mapping[str, Any] | None:
        """The checkpoint of an earlier attempt at this trial, or None where none can be read.

        Only what has the digest that the ledger remembers is opened.
        """
        if self.checkpoint is None:
            return None
        import torch

        try:
            with self._file(self.checkpoint).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.checkpoint:
                    raise ValueError("its content has changed")
                file.seek(0)
                state: Mapping[str, Any] = torch.load(
                    file, map_location=self.device, weights_only=True
                )
        except Exception as error:
            # Whatever a damaged file makes torch raise: its loss costs time, not the trial.
            what = self.checkpoint
            _log.warning("starting over, checkpoint %s cannot be read: %s", what, first_line(error))
            return None
        return state

    def keep_only_last(self) -> None:
        """Remove the checkpoints before the last one."""
        for file in self.directory.glob("*.pt"):
            if file.stem != self.checkpoint:
                file.unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return checkpoint_file(self.directory, digest)

    def seed_for(self, *parts: object) -> int:
        """A seed of its own for each use (an epoch, a loader), derived from the trial's."""
        return derive_seed(self.seed, *parts)


class Trainer(Protocol):
    """Trains a candidate on a task; subclass it to inherit all but `train`."""

    def opens(self, name: str, distribution: "BaseDistribution") -> bool:
        """Whether this trainer wants that decision left open, to tune it while it trains."""
        return False

    def unread(self, candidate: Candidate) -> Collection[str]:
        """The candidate's hyperparameters that training it does not depend on.

        Candidates that differ in nothing else share one result, so name only what is certain.
        """
        return ()

    def costs(self, candidate: Candidate, task: Task) -> Mapping[str, float]:
        """The candidate's own costs, by names of `automl.COSTS`; they are never shared."""
        return candidate.costs(task.probe()[0][:1])

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        """Train, yielding a Report each step; the last one is the trial's result.

        The engine stores each report, asks the pruner, and closes the generator to stop it:
        clean up in `finally`.
        """


class Context(Protocol):
    """What the engine tells a strategy whose factory takes `context`; plain Optuna gives none."""

    def fingerprint(self, decisions: Mapping[str, Any]) -> str | None:
        """Equal for decisions that make the same function; None where they make no candidate."""

    def means(self) -> Mapping[int, tuple[float, ...]]:
        """Mean values by trial number, where a trial's function was evaluated several times."""


@runtime_checkable
class WorkerHandle(Protocol):
    """A worker that a launcher started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs or waits to; negative where it was killed or lost.

        A worker that was killed or lost is started anew.
        """

    def interrupt(self) -> None:
        """Ask it to stop at its next tick and give its trial back."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raises TimeoutError."""


class Launcher(Protocol):
    """Starts workers somewhere; subclass it to inherit all but `start`.

    elsewhere: whether it finds the machines. If so, it starts all workers, and the search's own
    process only watches; else that process is the first worker.
    """

    elsewhere: ClassVar[bool] = False

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> WorkerHandle:
        """Start one worker: a command line, the environment to add, a file for what it says.

        The environment holds passwords: keep it from command lines, scripts and logs.

        Raises:
            UsageError: it cannot be started.
        """

    def preview(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> str:
        """What `start` would send, as text for `--dry-run`; the environment holds no password."""
        settings = [f"{name}={value}" for name, value in environment.items()]
        return shlex.join([*(["env"] if settings else []), *settings, *command])


def checkpoint_file(directory: Path, digest: str) -> Path:
    """Where a checkpoint of this SHA-256 lies.

    Raises:
        ValueError: it is none. The ledger is data, which must not lead out of the directory.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("it has no SHA-256")
    return directory / f"{digest}.pt"


def derive_seed(*parts: object) -> int:
    """A 32-bit seed from any parts, the same in every process."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
