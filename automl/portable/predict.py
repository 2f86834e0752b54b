"""Predicts with an exported model: rows of a CSV file, images, or an array of inputs."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .columns import Preparation
from .csvfile import read_table
from .pixels import SUFFIXES, images_in, open_image

Answers = dict[str, list[Any]]
"""By column, a value for each example."""

MODEL = "model.pt2"
PREPARATION = "preparation.json"
_BATCH = 1024


class Predictor:
    """The model of an export, ready to be asked.

    Raises:
        ValueError: the directory holds no model that can be loaded.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ValueError(f"no directory {directory}")
        if not (directory / MODEL).is_file():
            raise ValueError(f"{directory} holds no {MODEL}; its README.md says why")
        self._module = torch.export.load(str(directory / MODEL)).module()
        file = directory / PREPARATION
        self.preparation = (
            Preparation.from_json(json.loads(file.read_text(encoding="utf-8")))
            if file.is_file()
            else None
        )

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """What the model makes of inputs [n, *input_shape]."""
        return torch.cat([self._module(part) for part in torch.split(inputs, _BATCH)])

    def answers(self, table: Mapping[str, Sequence[str]]) -> Answers:
        """Answers by column, for the rows of a table.

        Raises:
            ValueError: the model was not made from a table, or a column or cell does not fit.
        """
        how = self.check_reads_tables()
        return how.answers(self.outputs(how.columns.encode(table)))

    def check_reads_tables(self) -> Preparation:
        """How this model reads tables; raises ValueError where it does not."""
        if self.preparation is None or not self.preparation.reads_tables:
            raise ValueError(f"this model reads {self._reads}")
        return self.preparation

    def answers_of_images(self, path: Path) -> Answers:
        """Answers by column, the first of them the file, for an image or a folder of images.

        Raises:
            ValueError: the model was not made from images, there are none, or one of them cannot
                be decoded.
        """
        if self.preparation is None or self.preparation.pixels is None:
            raise ValueError(f"this model reads {self._reads}")
        pixels, files, outputs = self.preparation.pixels, _images(path), []
        for start in range(0, len(files), _BATCH):
            images = [open_image(file, pixels.of) for file in files[start : start + _BATCH]]
            outputs.append(self.outputs(pixels.inputs(images)))
        return {"file": list(map(str, files)), **self.preparation.answers(torch.cat(outputs))}

    def answers_of_array(self, inputs: Tensor) -> Answers:
        """Answers by column, for an array of inputs; outputs by number where none has a name.

        Raises:
            ValueError: its shape is not the one that the model reads.
        """
        try:
            outputs = self.outputs(inputs).flatten(1)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                "the array does not fit this model: README.md beside the model says which shape "
                f"it reads ({str(error).splitlines()[0]})"
            ) from error
        if self.preparation is not None:
            return self.preparation.answers(outputs)
        return {f"output {n}": column.tolist() for n, column in enumerate(outputs.unbind(1))}

    @property
    def _reads(self) -> str:
        if self.preparation is not None and self.preparation.reads_tables:
            return "tables: give it a CSV file"
        if self.preparation is not None and self.preparation.pixels is not None:
            return "images: give it one, or a folder of them, or a .npy file"
        return "arrays: give it a .npy file"


def predicted(directory: Path, data: Path, **reading: Any) -> Answers:
    """Answers by column, for a CSV file, an image, a folder of images or an array in a .npy file.

    Raises:
        ValueError: one of them cannot be read, or they do not fit.
    """
    predictor = Predictor(directory)
    if data.suffix == ".npy":
        return predictor.answers_of_array(_array(data))
    if data.is_dir() or data.suffix.lower() in SUFFIXES:
        return predictor.answers_of_images(data)
    predictor.check_reads_tables()
    return predictor.answers(read_table(data, least=1, **reading))


def _images(path: Path) -> list[Path]:
    try:
        found = images_in(path) if path.is_dir() else [path]
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error
    if not found:
        raise ValueError(f"{path} holds no images, such as .png or .jpg")
    return found


def write(answers: Mapping[str, Sequence[Any]], file: IO[str]) -> None:
    """Write answers as CSV."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(answers)
    writer.writerows(_rows(answers))


def _rows(answers: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    yield from zip(*answers.values(), strict=True)


def _array(path: Path) -> Tensor:
    import numpy as np

    try:
        found = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not found.is_floating_point():
        raise ValueError(
            f"{path} holds {found.dtype}, this model reads floats, scaled as its task had them: "
            "pixels divided by 255, for one"
        )
    return found.float()


def main(directory: Path) -> int:
    """The command line of `predict.py` in an export."""
    parser = argparse.ArgumentParser(description="Predict with the model beside this file.")
    parser.add_argument(
        "data", type=Path, help="CSV file with a header, image, folder of images or .npy array"
    )
    parser.add_argument("--separator", help="by default the most frequent of , ; tab |")
    parser.add_argument("--encoding", default="utf-8")
    given = parser.parse_args()
    try:
        answers = predicted(
            directory, given.data, separator=given.separator, encoding=given.encoding
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(answers, sys.stdout)
    return 0
