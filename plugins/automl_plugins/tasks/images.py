"""Images: a folder of pictures for each class (pip install 'automl[images]')."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from automl import (
    Classification,
    Pixels,
    Task,
    UnknownNameError,
    UsageError,
    hookimpl,
    images_in,
    open_image,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger("automl")
_T = TypeVar("_T")

_GREY = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's names for images without colours."""
_LONGEST = 64
"""The longest side of images to which nobody has given a size."""
_ORIENTATION = 0x0112
_MEGABYTE = 2**20


class Channels(Enum):
    """The colours to keep; AUTO: grey where all images are grey, else red, green and blue."""

    AUTO = "auto"
    GREY = "grey"
    RGB = "rgb"


def images(
    *,
    directory: Path,
    size: int | tuple[int, int] | None = None,
    channels: Channels = Channels.AUTO,
    test_dir: Path | None = None,
    skip_broken: bool = False,
    max_megabytes: int = 500,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Classification:
    """The class of an image, from a directory that holds a folder of images for each class.

    Inputs [1 or 3, height, width] lie in [0, 1]. size: what images are stretched to, a side or
    height,width; by default their most frequent size, made smaller where a side exceeds 64.
    channels: by default grey where all images are. test_dir: images to test on, in folders of the
    same names; else a share is set apart. skip_broken: leave out, with a warning, what cannot be
    decoded. max_megabytes: of the inputs, which are all in memory. Folders within a class's belong
    to it; hidden files and those that are no images by their suffix are not looked at.

    Raises:
        UsageError: a folder is not there or holds no images, there is one class only, a file
            cannot be decoded, or the inputs are too large; the text names it.
    """
    _check_pillow()
    own = _by_class(directory)
    labels, reader = tuple(own), _Reader(skip_broken)
    if len(labels) < 2:
        raise UsageError(
            f"task images: {directory} holds the folder of one class, {labels[0]}: expected two or "
            "more"
        )
    files = [*_files(own, labels), *_files(_tested(test_dir, labels), labels, tested=True)]
    headers = reader.read(files, _header)
    height, width = _side_lengths(size) if size is not None else _usual_size(headers)
    grey = channels is Channels.GREY or (
        channels is Channels.AUTO and all(header.grey for _, header in headers)
    )
    pixels = Pixels(1 if grey else 3, height, width)
    _check_memory(len(headers), pixels, max_megabytes)
    decoded = reader.read([file for file, _ in headers], pixels.of)
    kept = [file for file, _ in decoded]
    _check_classes(directory, labels, kept)
    return Classification.from_arrays(
        directory.name,
        pixels.inputs([image for _, image in decoded]),
        [file.number for file in kept],
        validation=validation,
        test=test,
        seed=seed,
        tested=sum(file.tested for file in kept),
        labels=labels,
        pixels=pixels,
    )


def _check_pillow() -> None:
    if find_spec("PIL") is None:
        raise UsageError("task images needs Pillow: pip install 'automl[images]'")


# The files.
@dataclass(frozen=True)
class _File:
    """A file, the number of its class, and whether it is one to test on."""

    path: Path
    number: int
    tested: bool


def _by_class(directory: Path) -> dict[str, list[Path]]:
    """The files of each class, by the names of its folders.

    Raises:
        UsageError: there are none, or a folder holds none.
    """
    try:
        folders = [path for path in sorted(directory.iterdir()) if path.is_dir()]
        found = {path.name: images_in(path) for path in folders if path.name[0] != "."}
    except OSError as error:
        raise UsageError(f"task images: cannot read {error.filename}: {error.strerror}") from error
    if not found:
        raise UsageError(
            f"task images: {directory} holds no folders: expected one for each class, with its "
            "images within"
        )
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise UsageError(
            f"task images: {directory / empty[0]} holds no images, such as .png or .jpg"
        )
    return found


def _tested(test_dir: Path | None, labels: Sequence[str]) -> dict[str, list[Path]]:
    found = _by_class(test_dir) if test_dir else {}
    for name in found:
        if name not in labels:
            raise UnknownNameError(f"class in {test_dir}", name, labels)
    return found


def _files(
    found: Mapping[str, Sequence[Path]], labels: Sequence[str], tested: bool = False
) -> list[_File]:
    return [_File(path, labels.index(name), tested) for name in found for path in found[name]]


# What is in them.
@dataclass(frozen=True)
class _Reader:
    """Opens images, and says which cannot be decoded."""

    skip_broken: bool

    def read(self, files: Iterable[_File], use: "Callable[[Image], _T]") -> list[tuple[_File, _T]]:
        """What `use` makes of each image, but of those that are left out.

        Raises:
            UsageError: one cannot be decoded, and none may be left out.
        """
        found = []
        for file in files:
            try:
                found.append((file, open_image(file.path, use)))
            except ValueError as error:
                self._leave_out(str(error), error)
        return found

    def _leave_out(self, what: str, error: Exception) -> None:
        if not self.skip_broken:
            hint = "mend or remove it, or leave out what is broken by -o task.skip_broken=yes"
            raise UsageError(f"task images: {what}; {hint}") from error
        _log.warning("task images: left out: %s", what)


@dataclass(frozen=True)
class _Header:
    """What an image says of itself: whether it is grey, its height and its width."""

    grey: bool
    size: tuple[int, int]


def _header(image: "Image") -> _Header:
    turned = image.getexif().get(_ORIENTATION, 1) > 4
    height, width = image.size if turned else image.size[::-1]
    return _Header(image.mode in _GREY, (height, width))


def _side_lengths(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UsageError(f"task images: size must be positive, got {height},{width}")
    return height, width


def _usual_size(headers: "Sequence[tuple[_File, _Header]]") -> tuple[int, int]:
    """The most frequent size, made smaller; it is said where an image has another."""
    sizes = Counter(header.size for _, header in headers)
    (height, width), _ = sizes.most_common(1)[0] if sizes else ((1, 1), 0)
    scale = min(1.0, _LONGEST / max(height, width))
    chosen = max(1, round(height * scale)), max(1, round(width * scale))
    if set(sizes) - {chosen}:
        said = f"{chosen[0]},{chosen[1]}"
        _log.warning("task images: stretched to %s; -o task.size=%s says another", said, "H,W")
    return chosen


def _check_memory(count: int, pixels: Pixels, max_megabytes: int) -> None:
    needed = count * math.prod(pixels.shape) * 4 / _MEGABYTE
    if needed > max_megabytes:
        shape = "x".join(map(str, pixels.shape))
        raise UsageError(
            f"task images: {count} images of {shape} take {needed:,.0f} MB: "
            "make them smaller by -o task.size, or raise max_megabytes"
        )


def _check_classes(directory: Path, labels: Sequence[str], files: Sequence[_File]) -> None:
    there = {file.number for file in files if not file.tested}
    for number, label in enumerate(labels):
        if number not in there:
            raise UsageError(f"task images: no image in {directory / label} can be decoded")


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"images": images}
