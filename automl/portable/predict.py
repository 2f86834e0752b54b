"""Predicts with an exported model: rows of a CSV file, images, or an array of inputs."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .columns import Preparation
from .csv_file import read_table
from .pixels import SUFFIXES, images_in, open_image
from .program import Program
from .terminal import data_on, one_line

Answers = dict[str, list[Any]]
"""By column, a value for each example."""

MODEL = "model.pt2"
PREPARATION = "preparation.json"
CANDIDATE = "candidate.json"
_EXPORT = "automl best STUDY --export DIR"
_AGAIN = f"export the model again with {_EXPORT}"
_BATCH = 1024


class Predictor:
    """The model of an export, ready to be asked.

    Raises:
        ValueError: the directory holds no model that can be loaded; the text names the file.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ValueError(f"{directory} is not a directory")
        self._file = directory / MODEL
        if not self._file.is_file():
            raise ValueError(_missing(directory))
        self._program = _program(self._file)
        file = directory / PREPARATION
        self.preparation = _preparation(file) if file.exists() else None

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """What the model makes of inputs [n, *input_shape].

        Raises:
            ValueError: they do not fit, or the model calls what its file does not hold.
        """
        try:
            return torch.cat([self._program(part) for part in torch.split(inputs, _BATCH)])
        except Exception as error:  # whatever a damaged program makes torch raise
            raise ValueError(f"{self._file} cannot be run ({_why(error)})") from error

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
            outputs.append(self.outputs(self.preparation.of_arrays(torch.stack(images))))
        return {"file": list(map(str, files)), **self.preparation.answers(torch.cat(outputs))}

    def answers_of_array(self, array: Tensor) -> Answers:
        """Answers by column, for raw examples [n, ...]; outputs by number where none has a name.

        Raises:
            ValueError: its shape or its range is not the one that the model reads.
        """
        how = self.preparation
        bad = (~array.isfinite()).nonzero()
        if len(bad):
            raise ValueError(f"example {int(bad[0, 0])} of the array holds NaN or infinity")
        try:
            inputs = array.float() if how is None else how.of_arrays(array)
            outputs = self.outputs(inputs).flatten(1)
        except (AssertionError, RuntimeError, IndexError, ValueError) as error:
            raise ValueError(
                "the array does not fit this model: README.md beside the model says which shape "
                f"it reads ({_why(error)})"
            ) from error
        if how is not None:
            return how.answers(outputs)
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


def _missing(directory: Path) -> str:
    """What to do about a directory without a program."""
    if (directory / CANDIDATE).is_file():
        return (
            f"{directory / MODEL} is missing: README.md beside it says whether this model has "
            f"one; if so, {_AGAIN}"
        )
    return f"{directory} holds no {MODEL}: expected an export, which {_EXPORT} writes"


def _program(file: Path) -> Program:
    try:
        return Program(file)
    except Exception as error:  # whatever a damaged file raises
        text = f"{file} cannot be loaded ({_why(error)}): {_AGAIN}"
        raise ValueError(text) from error


def _why(error: Exception) -> str:
    """The first line of an error; with its type where the text alone would say little."""
    text = str(error).strip().split("\n", 1)[0]
    own = isinstance(error, ValueError | OSError | RuntimeError)
    return text if text and own else f"{type(error).__name__}: {text}".removesuffix(": ")


def _preparation(file: Path) -> Preparation:
    try:
        return Preparation.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} cannot be read ({why}): {_AGAIN}") from error


def _images(path: Path) -> list[Path]:
    try:
        found = images_in(path) if path.is_dir() else [path]
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error
    if not found:
        raise ValueError(f"{path} holds no images, such as .png or .jpg")
    return found


def write(answers: Mapping[str, Sequence[Any]], file: IO[str]) -> None:
    """Write answers as CSV, up to where the reader stops, as `head` does."""
    writer = csv.writer(data_on(file), lineterminator="\n")
    try:
        writer.writerow(answers)
        writer.writerows(_rows(answers))
        file.flush()
    except BrokenPipeError:
        # What Python still wants to write at its end goes nowhere, and so raises nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _rows(answers: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    yield from zip(*answers.values(), strict=True)


def _array(path: Path) -> Tensor:
    try:
        import numpy as np
    except ImportError:
        raise ValueError("reading arrays needs numpy: pip install numpy") from None
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # whatever a damaged file makes numpy raise
        why = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
        raise ValueError(f"cannot read {path}: {why}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iufb" or not found.ndim:
        kind = getattr(found, "dtype", "several arrays")
        raise ValueError(f"{path} holds {kind}: expected one array of numbers [n, ...]")
    # numpy has kinds of numbers that torch has not; bytes stay, for they may be pixels.
    return torch.from_numpy(found if found.dtype == np.uint8 else found.astype(np.float64))


def main(directory: Path) -> int:
    """The command line of `predict.py` in an export."""
    parser = argparse.ArgumentParser(description="Predict with the model beside this file.")
    parser.add_argument(
        "data", type=Path, help="CSV file with a header, image, folder of images or .npy array"
    )
    parser.add_argument("--separator", help="one character, or tab")
    parser.add_argument("--encoding", default="utf-8", help="of the CSV file")
    parser.add_argument(
        "--max-megabytes", type=int, default=500, help="of the CSV file, which is read as a whole"
    )
    given = vars(parser.parse_args())
    try:
        answers = predicted(directory, given.pop("data"), **given)
        write(answers, sys.stdout)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0
