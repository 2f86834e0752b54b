"""Reads images into a model's inputs with Pillow, which is imported on first use."""

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
"""The suffixes of files read as images."""
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats to decode; Pillow starts programs for some others."""


def images_in(folder: Path) -> list[Path]:
    """List the images below a folder by suffix, in the same order on every machine.

    Hidden files are skipped.

    Raises:
        OSError: A folder cannot be read.
    """
    found = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_dir():
            found += images_in(path)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return found


def open_image(path: Path, use: "Callable[[Image], _T]") -> _T:
    """Open an image and return the result of `use`.

    Args:
        path: The image.
        use: Called with the open image.

    Raises:
        ValueError: It cannot be decoded, or is too large to decode safely; the message names it.
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
            raise ValueError(f"{path} cannot be decoded: it is not an image") from None
        except Exception as error:  # a damaged file can raise any error in Pillow
            why = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} cannot be decoded: {why}") from error


@dataclass(frozen=True)
class Pixels:
    """How images become a model's inputs: resized to one size, in grey or in color.

    Attributes:
        channels: 1 for grey, 3 for color.
        height: In pixels.
        width: In pixels.
    """

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def of(self, image: "Image") -> Tensor:
        """Return an upright image as bytes [channels, height, width].

        Raises:
            ValueError: Its values have an unknown range.
        """
        from PIL import Image, ImageOps

        image = _of_eight_bits(ImageOps.exif_transpose(image))
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return values.view(self.height, self.width, self.channels).permute(2, 0, 1)

    @staticmethod
    def inputs(images: Sequence[Tensor]) -> Tensor:
        """Return arrays [n, channels, height, width] in [0, 1] for images as bytes."""
        return Pixels.scaled(torch.stack(list(images)))

    @staticmethod
    def scaled(arrays: Tensor) -> Tensor:
        """Scale bytes to [0, 1]; arrays in [0, 1] are returned unchanged.

        Raises:
            ValueError: The arrays have another range.
        """
        if arrays.dtype == torch.uint8:
            return arrays.float() / 255
        if len(arrays) and (arrays.min() < 0 or arrays.max() > 1):
            raise ValueError(f"expected images as bytes or as floats in [0, 1], got {arrays.dtype}")
        return arrays


def _of_eight_bits(image: "Image") -> "Image":
    """Return the upper eight bits of 16-bit pixels, which Pillow would clip at 255."""
    if image.mode.startswith("I;16"):
        import numpy as np
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and an unknown range; expected 8 or 16 bits")
    return image
