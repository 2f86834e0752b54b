"""Takes a model out of a study: a directory that predicts without this package."""

import importlib.metadata
import importlib.resources
import io
import json
import logging
import math
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optuna.trial import FrozenTrial

from automl.engine.seeding import seeded
from automl.errors import UsageError, first_line
from automl.export.intervals import intervals
from automl.export.model_card import CANDIDATE, PREPARATION, PROGRAM, WEIGHTS, ModelCard
from automl.plugin.protocols import Run, Split, Task
from automl.plugin.registry import Kind
from automl.study.found import Found, found
from automl.study.parts import Parts
from automl.study.study import Study, trial_seed
from automl.study.weights import Models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from automl.portable.columns import Preparation

_FILES = frozenset(
    {
        *(WEIGHTS, PROGRAM, PREPARATION, CANDIDATE, "metrics.json", "README.md"),
        *("predict.py", "portable"),
    }
)
"""All that an export may hold."""
BEST_EPOCH = "best_epoch"
"""The metric by which a trainer says that it ended with the weights of that step."""
_PREDICT = '''"""Predicts with the model beside this file; README.md says from what.

    python predict.py data.csv > predictions.csv
"""

import warnings
from pathlib import Path

# torch tells of a numpy that is not there, and that only arrays in files need.
warnings.filterwarnings("ignore", "Failed to initialize NumPy")

from portable.predict import main  # noqa: E402

raise SystemExit(main(Path(__file__).parent))
'''


@dataclass(frozen=True)
class Export:
    """One trial of a study on its way into a directory.

    refit: train its decisions again, on the training and the validation split, instead of taking
    the weights that it ended with.
    """

    study: Study
    parts: Parts
    trial: FrozenTrial
    device: str = "cpu"
    refit: bool = False

    def write(self, directory: Path, force: bool = False) -> list[str]:
        """Write the export, whole or not at all; returns what could not be written, and why.

        Raises:
            UsageError: the directory exists, or the weights cannot be had.
        """
        with _new_directory(directory, force) as new:
            return list(self._write(new))

    def _write(self, new: Path) -> Iterator[str]:
        from safetensors.torch import save_model

        save_model(self.module, str(new / WEIGHTS))
        _write_json(new / CANDIDATE, self.candidate)
        # safetensors gives a file to its owner alone, whatever the umask says.
        (new / WEIGHTS).chmod((new / CANDIDATE).stat().st_mode & 0o777)
        _write_json(new / "metrics.json", self.metrics)
        if self.preparation is not None:
            _write_json(new / PREPARATION, self.preparation.to_json())
        why_not = self._write_program(new / PROGRAM)
        if why_not is None:
            (new / "predict.py").write_text(_PREDICT, encoding="utf-8")
            _copy_portable(new / "portable")
        else:
            yield why_not
        (new / "README.md").write_text(self._card(why_not).text(), encoding="utf-8")

    # The model.
    @cached_property
    def found(self) -> Found:
        return found(self.study, self.parts, self.trial)

    @cached_property
    def module(self) -> "nn.Module":
        task = self.parts.task
        with seeded(trial_seed(self.study.spec, self.trial.number, "export")):
            module = self.found.candidate.build(task.probe()[0], task.signature)
        weights = self._refitted() if self.refit else Models(self.study).weights(self.trial.number)
        try:
            module.load_state_dict(dict(weights))
        except RuntimeError as error:
            text = f"the weights do not fit the candidate ({first_line(error)}): use --refit"
            raise UsageError(text) from error
        return module.eval()

    def predict(self, inputs: Any) -> "Tensor":
        """The model's outputs for a batch, in evaluation mode."""
        import torch

        with torch.no_grad():
            outputs: Tensor = self.module(torch.as_tensor(inputs))
        return outputs

    def _refitted(self) -> "Mapping[str, Tensor]":
        """The weights after training once more on all but the test split.

        A trainer that chose an epoch by the validation split trains up to that one: the rows to
        choose by are now among those that it learns.
        """
        spec, number = self.study.spec, self.trial.number
        seed, last = trial_seed(spec, number, "train"), None
        best = self.found.metrics.get(BEST_EPOCH, math.inf)
        with tempfile.TemporaryDirectory() as directory, seeded(seed):
            run = Run(self.device, seed, number, 1, Path(directory), refit=True)
            task = cast(Task, _All(self.parts.task))
            for report in self.parts.trainer.train(self.found.candidate, task, run):
                last = report
                if report.step >= best:
                    break
        if last is None or last.weights is None:
            name = self.parts.names[Kind.TRAINER]
            raise UsageError(f"trainer {name} hands over no weights, so nothing can be exported")
        return {key: tensor.detach().cpu() for key, tensor in last.weights().items()}

    def _write_program(self, file: Path) -> str | None:
        """Write the model as a program of tensors; where that cannot be, say why."""
        for what, step in (
            ("torch.export cannot take this model", self._save_program),
            ("predict.py cannot run this model", self._try_program),
        ):
            try:
                step(file)
            except Exception as error:
                file.unlink(missing_ok=True)
                return f"no {PROGRAM} and no predict.py: {what}: {first_line(error)}"
        return None

    def _save_program(self, file: Path) -> None:
        import torch

        batch = torch.export.Dim("batch", min=1)
        with _silent():
            program = torch.export.export(
                _of_one_input(self.module),
                (self.parts.task.probe()[0],),
                dynamic_shapes=({0: batch},),
            )
            torch.export.save(program, str(file))

    def _try_program(self, file: Path) -> None:
        import torch

        from automl.portable.program import Program

        example, again = self.parts.task.probe()[0], Program(file)
        with torch.no_grad():
            for part in (example, example[:1]):
                torch.testing.assert_close(again(part), self.module(part))

    @cached_property
    def preparation(self) -> "Preparation | None":
        return getattr(self.parts.task, "preparation", None)

    # What is said of it.
    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What the model scores on the splits that it did not learn, and what the search said.

        interval: where 95 in 100 such test splits would have the test scores.
        """
        evaluate = self.parts.task.evaluate
        splits = (Split.TEST,) if self.refit else (Split.TEST, Split.VALIDATION)
        answers = {split.value: self._answers(split) for split in splits}
        scores = {
            split: {name: float(value) for name, value in evaluate(*pair).items()}
            for split, pair in answers.items()
        }
        sure = intervals(evaluate, *answers[Split.TEST.value])
        return {**scores, "interval": sure, "search": dict(self.found.metrics)}

    def _answers(self, split: Split) -> "tuple[Tensor, Tensor]":
        """The model's outputs for a split, and its targets."""
        import torch

        inputs, targets = self.parts.task.split(split)
        with torch.no_grad():
            return torch.cat([self.module(part) for part in torch.split(inputs, 1024)]), targets

    @cached_property
    def candidate(self) -> dict[str, Any]:
        """What makes the model again, and where it came from."""
        spec = self.study.spec
        return {
            "study": self.study.name,
            "trial": self.trial.number,
            "decisions": dict(self.found.decisions),
            "hyperparameters": dict(self.found.candidate.hyperparameters),
            "seed": spec.seed,
            **self._training(),
            "refit": self.refit,
            "data": spec.data,
            "versions": _versions(),
            "spec": spec.to_json(),
        }

    def _training(self) -> dict[str, Any]:
        """Which trial was trained, and under which seed."""
        study, number = self.study, self.trial.number
        if not self.refit:
            study, number = Models(study).trained(number)
        seed = trial_seed(study.spec, number, "train")
        return {"trained": {"study": study.name, "trial": number}, "train_seed": seed}

    def _card(self, why_not: str | None) -> ModelCard:
        return ModelCard(
            self.study, self.parts, self.candidate, self.metrics, self.preparation, why_not
        )


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("automl", "torch", "optuna")}
    return {"python": platform.python_version(), **found}


@dataclass(frozen=True)
class _All:
    """A task whose training split is all that the search has seen."""

    task: Any

    def split(self, split: Split) -> "tuple[Tensor, Tensor]":
        import torch

        if split is not Split.TRAIN:
            return self.task.split(split)  # type: ignore[no-any-return]  # the task's own
        parts = [self.task.split(each) for each in (Split.TRAIN, Split.VALIDATION)]
        inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return inputs, targets

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def _of_one_input(module: "nn.Module") -> "nn.Module":
    """A module whose forward pass has one named input, as torch.export wants it."""
    from torch import nn

    class OneInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: "Tensor") -> Any:
            return self.module(x)

    return OneInput().eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Say nothing of what torch prints, logs and warns of; what it raises says enough."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _new_directory(directory: Path, force: bool) -> Iterator[Path]:
    """A directory that takes its place only when it is whole."""
    try:
        _check_replaceable(directory, force)
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror}") from error
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()  # open to whom the umask says, as a temporary directory is not
        yield new
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        # Whatever came between, Ctrl-C too, the old one is not lost.
        if old.exists() and not directory.exists():
            old.rename(directory)
        shutil.rmtree(beside, ignore_errors=True)


def _check_replaceable(directory: Path, force: bool) -> None:
    """Raise UsageError where there is anything but an export, or one and it may not be replaced."""
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_symlink() or not directory.is_dir():
        raise UsageError(f"{directory} exists and is not a directory: choose another")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return
    if CANDIDATE not in names:
        raise UsageError(f"{directory} exists and is not an export: choose another")
    if foreign := sorted(names - _FILES):
        raise UsageError(
            f"{directory} holds {foreign[0]}, which is not part of an export: move it, "
            "or choose another directory"
        )
    if not force:
        raise UsageError(f"{directory} exists: choose another, or replace it by --force")


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, allow_nan=True) + "\n", encoding="utf-8")


def _copy_portable(to: Path) -> None:
    to.mkdir()
    for file in importlib.resources.files("automl.portable").iterdir():
        if file.name.endswith(".py"):
            (to / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
