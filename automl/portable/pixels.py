"""Reads images into a model's inputs, by Pillow, which is imported where one is read."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_T = TypeVar("_T")

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Of files that are taken for images."""
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded; for some of the other formats Pillow starts programs."""


def images_in(folder: Path) -> list[Path]:
    """The images below a folder, by their suffixes, in an order that is the same everywhere.

    Hidden files are not looked at. Raises OSError where a folder cannot be read.
    """
    found = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_dir():
            found += images_in(path)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return found


def open_image(path: Path, use: "Callable[[Image], _T]") -> _T:
    """What `use` makes of an image.

    Raises:
        ValueError: it cannot be decoded, or is so large that it may be meant to take all memory;
            the text names it.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ValueError("reading images needs Pillow: pip install pillow") from None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return use(image)
        except UnidentifiedImageError:
            raise ValueError(f"{path} cannot be decoded: it holds no image") from None
        except Exception as error:  # whatever a damaged file makes Pillow raise
            why = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} cannot be decoded: {why}") from error


@dataclass(frozen=True)
class Pixels:
    """How images become a model's inputs: stretched to one size, in grey or in three colours.

    channels: 1 for grey, or 3.
    """

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def of(self, image: "Image") -> Tensor:
        """Bytes [channels, height, width] of an image, upright.

        Raises:
            ValueError: its values are of no known range.
        """
        from PIL import Image, ImageOps

        image = _of_eight_bits(ImageOps.exif_transpose(image))
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return values.view(self.height, self.width, self.channels).permute(2, 0, 1)

    @staticmethod
    def inputs(images: Sequence[Tensor]) -> Tensor:
        """Arrays [n, channels, height, width] in [0, 1] of images as bytes."""
        return Pixels.scaled(torch.stack(list(images)))

    @staticmethod
    def scaled(arrays: Tensor) -> Tensor:
        """Arrays in [0, 1], of bytes or of what is so already.

        Raises:
            ValueError: they are neither.
        """
        if arrays.dtype == torch.uint8:
            return arrays.float() / 255
        if len(arrays) and (arrays.min() < 0 or arrays.max() > 1):
            raise ValueError(f"expected images as bytes or as floats in [0, 1], got {arrays.dtype}")
        return arrays


def _of_eight_bits(image: "Image") -> "Image":
    """An image whose values Pillow would cut off at 255 with its upper eight bits of sixteen."""
    if image.mode.startswith("I;16"):
        import numpy as np
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of no known range; expected 8 or 16")
    return image
