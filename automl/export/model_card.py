"""The page beside an exported model: what it is, what it scores, how it is used and was found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automl.analysis.page.commands import search_command
from automl.plugin.protocols import Split
from automl.portable.columns import Preparation
from automl.study.parts import Parts
from automl.study.study import Study
from automl.text.formatting import counted, duration

WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"
PREPARATION = "preparation.json"
CANDIDATE = "candidate.json"


@dataclass(frozen=True)
class ModelCard:
    """What is said of one trial's model.

    candidate: what makes it again, as the export's file has it. metrics: by split and name, and by
    "interval" their ends. why_not: why there is no program of it, where there is none.
    """

    study: Study
    parts: Parts
    candidate: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    preparation: Preparation | None
    why_not: str | None

    def text(self) -> str:
        """The page, in Markdown."""
        blocks = [self._lead(), self._scores(), "## Use", *self._use(), "## Origin"]
        return "\n\n".join([*blocks, *self._origin()]) + "\n"

    def _lead(self) -> str:
        spec = self.study.spec
        return (
            f"# Trial {self.candidate['trial']} of study {self.study.name}\n\n"
            f"A model of space `{spec.space.reference}` for task `{spec.task.reference}`, "
            f"{self._how_trained()}."
        )

    def _how_trained(self) -> str:
        if self.candidate["refit"]:
            return "trained again on training and validation data"
        trained, own = self.candidate["trained"], self.candidate
        if (trained["study"], trained["trial"]) == (own["study"], own["trial"]):
            return "as it was trained in the search"
        of = f" of study {trained['study']}" if trained["study"] != own["study"] else ""
        return f"as trial {trained['trial']}{of} was trained, which computes the same"

    def _scores(self) -> str:
        test, validation = self.metrics["test"], self.metrics.get("validation")
        head, rows = ["metric", "test", "95 % interval"], []
        for name, value in test.items():
            ends = self.metrics["interval"].get(name)
            between = f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-"
            rows.append([name, f"{value:.4g}", between])
            rows[-1] += [f"{validation[name]:.4g}"] if validation else []
        head += ["validation"] if validation else []
        table = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows)]
        n = len(self.parts.task.split(Split.TEST)[1])
        said = f"The {n} test examples took no part in the search."
        return "\n".join([*(f"| {line} |" for line in table), "", said])

    def _use(self) -> Iterator[str]:
        if self.why_not is None:
            yield from self._predicting()
        yield "\n".join(
            [
                *([f"- {self.why_not}"] if self.why_not else self._program_files()),
                *self._preparation_file(),
                f"- `{WEIGHTS}`: the weights; `{CANDIDATE}`: the decisions that rebuild the model;",
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
            yield f"An array [{shape}] holds {self._of_arrays}."

    @property
    def _reads_tables(self) -> bool:
        return self.preparation is not None and self.preparation.reads_tables

    @property
    def _of_arrays(self) -> str:
        if self._reads_images:
            return "images, as bytes or as floats in [0, 1]"
        if self.preparation is not None and self.preparation.inputs:
            return "raw examples, as the task's data had them"
        return "inputs, as the task has them"

    @property
    def _reads_images(self) -> bool:
        return self.preparation is not None and self.preparation.pixels is not None

    def _program_files(self) -> list[str]:
        return [
            f"- `{PROGRAM}`: the model as a program of tensors, for any batch;",
            "  `predict.py`, `portable/`: what runs it. They are code: where this directory is",
            "  somebody else's, `automl predict` runs none of it.",
        ]

    def _preparation_file(self) -> list[str]:
        if self.preparation is None:
            return []
        said = "the unit of the numbers that are predicted"
        if self.preparation.labels:
            said = "the names of the classes, in the order of the outputs"
        if self._reads_tables:
            said = f"how rows become inputs, learned from training rows, and {said}"
        elif self._reads_images:
            said = f"how images become inputs, and {said}"
        elif self.preparation.inputs:
            said = f"how arrays become inputs, and {said}"
        return [f"- `{PREPARATION}`: {said}."]

    def _origin(self) -> Iterator[str]:
        counts, spec = self.study.views.counts(), self.study.spec
        yield (
            f"Found among {counted(counts.trials, 'trial')} ({counts.evaluated} trained, "
            f"{counts.reused} reused, {duration(counts.seconds)} of training), by"
        )
        yield "\n".join(["```sh", search_command(self.study), "```"])
        made = ", ".join(f"{n} {version}" for n, version in self.candidate["versions"].items())
        seeds = f"seed {spec.seed}, of the training {self.candidate['train_seed']}"
        yield f"Data digest `{spec.data}`; {seeds}; {made}."
