"""Fashion-MNIST: 70,000 grey images of clothes, 28x28, ten classes.

Source: H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv 1708.07747.
"""

import gzip
import math
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from automl import (
    Classification,
    Pixels,
    Preparation,
    Scaling,
    Split,
    Task,
    UsageError,
    hookimpl,
)

if TYPE_CHECKING:
    import numpy as np

    Images = tuple[np.ndarray, np.ndarray]
    """Pixels [n, 28, 28] of 0 to 255, and class numbers [n]."""

_SIDE = 28
_TRAINING = 60_000
_VALIDATION_SHARE = 1 / 6
_PARTS = {"train": "training", "t10k": "test"}
_LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion_mnist(
    *, data_dir: Path | None = None, limit: int | None = None, seed: int = 0
) -> Classification:
    """Ten kinds of clothes: 50,000 images to train on, 10,000 to validate on, 10,000 to test on.

    Inputs have shape [1, 28, 28] and are standardized by the training images.

    Args:
        data_dir: The folder of the four original IDX files, or its parent with a folder
            `fashion-mnist`; by default AUTOML_DATA_DIR. Without either, the files are downloaded
            from OpenML.
        limit: Keep only this many training images.
        seed: The seed of the random split of the training images, which keeps the classes in
            proportion.

    Raises:
        UsageError: A file is missing or damaged, or the download failed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"task fashion-mnist: limit must be at least 1, got {limit}")
    given = data_dir or os.environ.get("AUTOML_DATA_DIR")
    folder = _folder(Path(given)) if given else None
    if folder is None and data_dir is not None:
        raise UsageError(
            f"no Fashion-MNIST files in {data_dir} or its folder fashion-mnist: "
            f"put {_file_name('train', 'images')} and the other three there"
        )
    training, test = _read(folder) if folder else _download(given)
    return _task(training, test, limit, seed)


def read_idx(path: Path) -> "np.ndarray":
    """Read an IDX file of bytes, gzipped or not, as an array of the shape in its header.

    Raises:
        UsageError: It cannot be read, is not an IDX file of unsigned bytes, or has the wrong
            length; the message names the file.
    """
    import numpy as np

    content = _content(path)
    dimensions = content[3] if len(content) > 3 else 0
    if content[:3] != b"\x00\x00\x08" or not dimensions:
        raise _damaged(path, "it does not start like an IDX file of unsigned bytes")
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        expected = start + math.prod(shape)
        raise _damaged(path, f"it has {len(content):,} bytes, but its header says {expected:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"not a complete gzip file ({error})") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is truncated or corrupt: {what}; download the file again")


def _file_name(part: str, content: str) -> str:
    return f"{part}-{content}-idx{3 if content == 'images' else 1}-ubyte.gz"


def _file(folder: Path, part: str, content: str) -> Path:
    packed = folder / _file_name(part, content)
    plain = packed.with_suffix("")
    return plain if plain.exists() and not packed.exists() else packed


def _folder(data_dir: Path) -> Path | None:
    """Return the folder with the files: data_dir itself, or its `fashion-mnist`."""
    folders = (data_dir, data_dir / "fashion-mnist")
    return next((f for f in folders if _file(f, "train", "images").exists()), None)


def _read(folder: Path) -> "tuple[Images, Images]":
    training, test = (_read_part(folder, part) for part in _PARTS)
    return training, test


def _read_part(folder: Path, part: str) -> "Images":
    images_file, labels_file = (_file(folder, part, c) for c in ("images", "labels"))
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.shape[1:] != (_SIDE, _SIDE):
        shape = list(images.shape)
        raise UsageError(f"{images_file} has shape {shape}; expected [n, {_SIDE}, {_SIDE}]")
    if labels.shape != images.shape[:1]:
        raise UsageError(
            f"{labels_file} has shape {list(labels.shape)}; expected one label for each of "
            f"the {len(images):,} {_PARTS[part]} images"
        )
    return images, labels


def _download(data_home: str | Path | None) -> "tuple[Images, Images]":
    from sklearn.datasets import fetch_openml

    home = None if data_home is None else str(data_home)
    try:
        pixels, labels = fetch_openml(
            "Fashion-MNIST", version=1, data_home=home, return_X_y=True, as_frame=False
        )
    except Exception as error:  # the network, OpenML or the disk can raise any error
        first = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(
            f"cannot download Fashion-MNIST ({type(error).__name__}: {first}): "
            f"put {_file_name('train', 'images')} and the other three into a folder and name it "
            "with --data-dir or AUTOML_DATA_DIR"
        ) from error
    images, targets = pixels.reshape(-1, _SIDE, _SIDE).astype("uint8"), labels.astype("uint8")
    return (images[:_TRAINING], targets[:_TRAINING]), (images[_TRAINING:], targets[_TRAINING:])


def _task(training: "Images", test: "Images", limit: int | None, seed: int) -> Classification:
    import numpy as np
    import torch
    from sklearn.model_selection import train_test_split

    images, labels = (np.concatenate(both) for both in zip(training, test, strict=True))
    own = len(training[1])
    train, validation = train_test_split(
        np.arange(own), test_size=_VALIDATION_SHARE, stratify=labels[:own], random_state=seed
    )
    parts = {
        Split.TRAIN: np.sort(train)[:limit],
        Split.VALIDATION: np.sort(validation),
        Split.TEST: np.arange(own, len(labels)),
    }
    pixels = torch.from_numpy(images)[:, None]
    # From the training images only, and independent of the limit.
    spread, mean = torch.std_mean(pixels[torch.from_numpy(train)] / 255)
    preparation = Preparation(
        labels=_LABELS,
        pixels=Pixels(1, _SIDE, _SIDE),
        inputs=Scaling((float(mean),), (float(spread),)),
    )
    return Classification(
        "fashion-mnist",
        preparation.of_arrays(pixels),
        torch.from_numpy(labels).long(),
        {split: torch.from_numpy(rows) for split, rows in parts.items()},
        preparation=preparation,
    )


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"fashion-mnist": fashion_mnist}
