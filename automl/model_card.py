"""The page beside an exported model: what it is, what it scores, how it is used and was found."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from automl.page.commands import search_command
from automl.portable.columns import Preparation
from automl.protocols import Split
from automl.studies import Parts, Study
from automl.wording import duration

WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"
PREPARATION = "preparation.json"


@dataclass(frozen=True)
class ModelCard:
    """What is said of one trial's model.

    refit: whether it was trained again. metrics: by split and name. why_not: why there is no
    program of it, where there is none.
    """

    study: Study
    parts: Parts
    trial: FrozenTrial
    refit: bool
    metrics: Mapping[str, Mapping[str, float]]
    preparation: Preparation | None
    why_not: str | None

    def text(self) -> str:
        """The page, in Markdown."""
        blocks = [self._lead(), self._scores(), "## Use", *self._use(), "## Origin"]
        return "\n\n".join([*blocks, *self._origin()]) + "\n"

    def _lead(self) -> str:
        spec = self.study.spec
        how = (
            "trained again on training and validation data"
            if self.refit
            else "as it was trained in the search"
        )
        return (
            f"# Trial {self.trial.number} of study {self.study.name}\n\n"
            f"A model of space `{spec.space.reference}` for task `{spec.task.reference}`, {how}."
        )

    def _scores(self) -> str:
        test, validation = self.metrics["test"], self.metrics["validation"]
        rows = [f"| {name} | {test[name]:.4g} | {validation[name]:.4g} |" for name in test]
        said = "The test data took no part in the search. " + self._confidence()
        table = ["| metric | test | validation |", "| --- | --- | --- |", *rows]
        return "\n".join([*table, "", said.strip()])

    def _confidence(self) -> str:
        """How sure the accuracy on the test data is, as a 95 % interval; nothing for other metrics.

        Source: E. B. Wilson: Probable Inference, the Law of Succession, 1927.
        """
        accuracy = self.metrics["test"].get("accuracy")
        if accuracy is None:
            return ""
        n, z = len(self.parts.task.split(Split.TEST)[1]), 1.96
        middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) ** 0.5
        low, high = middle - half, middle + half
        return f"With {n} test examples its accuracy lies between {low:.3f} and {high:.3f} (95 %)."

    def _use(self) -> Iterator[str]:
        if self.why_not is None:
            yield from self._predicting()
        yield "\n".join(
            [
                *([f"- {self.why_not}"] if self.why_not else self._program_files()),
                *self._preparation_file(),
                f"- `{WEIGHTS}`: the weights; `candidate.json`: the decisions that rebuild the "
                "model;",
                "  `metrics.json`: what it scores.",
            ]
        )

    def _predicting(self) -> Iterator[str]:
        data, needs = "inputs.npy", "torch and numpy"
        if self._reads_tables:
            data, needs = "data.csv", "torch"
        elif self._reads_images:
            data, needs = "FOLDER_OF_IMAGES", "torch and Pillow"
        yield f"`python predict.py {data}` needs Python, {needs} alone."
        if not self._reads_tables:
            shape = ", ".join(map(str, ("n", *self.parts.task.signature.input_shape)))
            yield f"An array [{shape}] is read as it is, and prepared as the task reads it."

    @property
    def _reads_tables(self) -> bool:
        return self.preparation is not None and self.preparation.reads_tables

    @property
    def _reads_images(self) -> bool:
        return self.preparation is not None and self.preparation.pixels is not None

    def _program_files(self) -> list[str]:
        return [
            f"- `{PROGRAM}`: the model as a program of tensors, for any batch;",
            "  `predict.py`, `portable/`: what runs it.",
        ]

    def _preparation_file(self) -> list[str]:
        if self.preparation is None:
            return []
        said = "the names of the classes, in the order of the outputs"
        if self._reads_tables:
            said = "how rows become inputs, learned from training rows"
        elif self._reads_images:
            said = f"how images become inputs, and {said}"
        return [f"- `{PREPARATION}`: {said}."]

    def _origin(self) -> Iterator[str]:
        counts, spec = self.study.views.counts(), self.study.spec
        yield (
            f"Found among {counts.trials} trials ({counts.evaluated} trained, {counts.reused} "
            f"reused, {duration(counts.seconds)} of training), by"
        )
        yield "\n".join(["```sh", search_command(self.study), "```"])
        versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("automl", "torch"))
        yield f"Data digest `{spec.data}`; {versions}."
