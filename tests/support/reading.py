"""Spaces whose candidates read files in a folder, each in a different way.

`write` fills the folder; each candidate's function depends on the content of its file. Each one
scales its hidden layer by a different number, so that no two have the same function.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from automl import Candidate

try:
    from safetensors.torch import load_file, save_file
except ImportError:
    load_file = save_file = None

FOLDER = "READING_FOLDER"
"""The environment variable that names the folder."""
WIDTH = 16


def there(name: str) -> str:
    return str(Path(os.environ[FOLDER], name))


def write(seed: int) -> None:
    """Write the files for a seed; `absent.pt` does not exist for seed 0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(WIDTH, 64, generator=generator) / 8
    for name in ("load", "mapped", "cached", "imported", "late", "linked"):
        # Written to another name and renamed, so that the file changes at once.
        torch.save(weight, there(f"{name}.{seed}.pt"))
        Path(there(f"{name}.{seed}.pt")).replace(there(f"{name}.pt"))
    target = there(f"target.{seed}.pt")
    torch.save(weight, target)
    Path(there("linked.pt")).unlink()
    Path(there("linked.pt")).symlink_to(target)
    for name in ("array", "mapped_array"):
        np.save(there(f"{name}.npy"), weight.numpy())
    weight.numpy().tofile(there("raw.bin"))
    weight.numpy().tofile(there("low.bin"))
    Path(there("text.txt")).write_text(" ".join(map(str, weight.flatten().tolist())))
    Path(there("line.csv")).write_text("\n".join(map(str, weight.flatten().tolist())))
    Path(there("config.json")).write_text(json.dumps({"scale": 1 + seed}))
    Path(there("bytes.bin")).write_bytes(weight.numpy().tobytes())
    if save_file is not None:
        save_file({"weight": weight}, there("tensors.safetensors"))
    Path(there("absent.pt")).unlink(missing_ok=True)
    if seed:
        torch.save(weight, there("absent.pt"))


def shaped(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32).copy()).reshape(WIDTH, 64)


def by_number() -> torch.Tensor:
    """Read by file descriptor, as `open` does underneath."""
    file = os.open(there("low.bin"), os.O_RDONLY)
    try:
        return shaped(np.frombuffer(os.read(file, 1 << 20), np.float32))
    finally:
        os.close(file)


@functools.lru_cache
def cached() -> torch.Tensor:
    """Read once per process."""
    return torch.load(there("cached.pt"))


def absent() -> torch.Tensor:
    try:
        return torch.load(there("absent.pt"))
    except FileNotFoundError:
        return torch.eye(WIDTH, 64)


def scaled() -> torch.Tensor:
    with Path(there("config.json")).open() as file:
        return json.load(file)["scale"] * torch.eye(WIDTH, 64)


READERS = {
    "torch.load": lambda: torch.load(there("load.pt")),
    "torch.load, mapped": lambda: torch.load(there("mapped.pt"), mmap=True).clone(),
    "torch.load, through a link": lambda: torch.load(there("linked.pt")),
    "np.load": lambda: shaped(np.load(there("array.npy"))),
    "np.load, mapped": lambda: shaped(np.load(there("mapped_array.npy"), mmap_mode="r")),
    "np.fromfile": lambda: shaped(np.fromfile(there("raw.bin"), np.float32)),
    "np.loadtxt": lambda: shaped(np.loadtxt(there("line.csv"))),
    "read_text": lambda: shaped([float(n) for n in Path(there("text.txt")).read_text().split()]),
    "read_bytes": lambda: shaped(np.frombuffer(Path(there("bytes.bin")).read_bytes(), np.float32)),
    "os.open": by_number,
    "json": scaled,
    "torch.load, cached": cached,
    "torch.load, where it is there": absent,
    **(
        {"safetensors": lambda: load_file(there("tensors.safetensors"))["weight"]}
        if load_file
        else {}
    ),
}
LATE = "torch.load, when first asked"


class Read(nn.Module):
    """A hidden layer whose weight is read from a file, then a layer to train."""

    def __init__(self, read, scale: float, late: bool = False) -> None:
        super().__init__()
        self.weight = None if late else read()
        self.read, self.scale = read, scale
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        if self.weight is None:
            self.weight = self.read()
        h = x.flatten(1) @ self.weight.T.to(x.dtype)
        return self.head((self.scale * h).tanh())


def reading(trial, task) -> Candidate:
    """Candidates that read when they are proposed or built, or in the first forward pass."""
    how = trial.suggest_categorical("how", [*READERS, LATE])
    early = trial.suggest_categorical("early", [True, False])
    scale = 1 + [*READERS, LATE].index(how) / 8 + early / 16
    if how == LATE:
        return Candidate(lambda: Read(lambda: torch.load(there("late.pt")), scale, late=True))
    if early:
        weight = READERS[how]()
        return Candidate(lambda: Read(lambda: weight, scale))
    return Candidate(lambda: Read(READERS[how], scale))
