"""Finds and chooses the devices of this machine without loading torch."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from automl.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_ENTRY = re.compile(r"\d+|(GPU|MIG)-.+")
_GPU = re.compile(r"GPU (\d+):.*\(UUID: (GPU-[^)]+)\)")
_SLICE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")
_SMI_SECONDS = 60.0
_DRIVERS = (Path("/dev/kfd"), Path("/dev/nvidia0"))
"""The device files of AMD's and NVIDIA's drivers."""


@dataclass(frozen=True)
class Device:
    """A device to train on.

    Attributes:
        name: Its name for users and the ledger: `cpu`, `mps`, or `cuda:` and the machine's name
            for the GPU.
        torch: Torch's name for it in this process.
        alone: Environment variables that make this the only GPU a process can see.
    """

    name: str = "cpu"
    torch: str = "cpu"
    alone: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda:")


CPU = Device()


def accelerators() -> list[Device]:
    """List the devices that this process may train on besides the CPU.

    These are the GPUs of CUDA_VISIBLE_DEVICES if it is set, otherwise those that `nvidia-smi -L`
    lists. Torch is only asked if that program is missing but a driver is present.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return _visible(visible)
    if shutil.which("nvidia-smi"):
        return _listed(_smi())
    return _asked_of_torch()


def choose_devices(asked: str) -> tuple[Device, ...]:
    """Return the devices that `--device` selects; `auto` selects all accelerators, or else the CPU.

    Raises:
        UsageError: This machine has no such device.
    """
    found = accelerators()
    if asked == "auto":
        return tuple(found) or (CPU,)
    named = {device.name: device for device in (*found, CPU)}
    if asked == "cuda" and found and found[0].is_gpu:
        return (found[0],)
    if asked in named:
        return (named[asked],)
    visible = os.environ.get(VISIBLE)
    why = "" if visible is None else f" ({VISIBLE}={visible})"
    raise UsageError(f"no device {asked!r}: expected auto or {' or '.join(named)}{why}")


def resolve_device(asked: str, index: int = 0) -> Device:
    """Return the device of one worker; `auto` assigns the accelerators in turn.

    Args:
        asked: The value of `--device`.
        index: The worker's index.

    Raises:
        UsageError: This machine has no such device.
    """
    chosen = choose_devices(asked)
    return chosen[index % len(chosen)]


def _visible(text: str) -> list[Device]:
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        # As in CUDA, an unknown entry such as -1 ends the list.
        if not _ENTRY.fullmatch(entry):
            break
        if entry not in entries:
            entries.append(entry)
    indices = _indices() if any(not entry.isdigit() for entry in entries) else {}
    return [
        Device(f"cuda:{_name(entry, indices)}", f"cuda:{position}", {VISIBLE: entry})
        for position, entry in enumerate(entries)
    ]


def _name(entry: str, indices: Mapping[str, str]) -> str:
    """Return a GPU's index on the machine; its UUID if the index is unknown."""
    if entry.isdigit():
        return str(int(entry))
    # CUDA accepts the beginning of a UUID.
    return next((index for uuid, index in indices.items() if uuid.startswith(entry)), entry)


def _indices() -> dict[str, str]:
    """Return the index of each GPU by its UUID."""
    found = map(_GPU.match, _smi()) if shutil.which("nvidia-smi") else ()
    return {gpu[2]: gpu[1] for gpu in found if gpu}


def _listed(lines: list[str]) -> list[Device]:
    """Return the GPUs that `nvidia-smi -L` lists; a divided GPU counts as its slices."""
    entries: list[str] = []
    for line in lines:
        if gpu := _GPU.match(line):
            entries.append(gpu[1])
        elif part := _SLICE.match(line):
            if entries and entries[-1].isdigit():
                entries.pop()
            entries.append(part[1])
    # nvidia-smi orders by bus; CUDA orders by speed unless it is set to do the same.
    return [
        Device(f"cuda:{entry}", f"cuda:{position}", {VISIBLE: entry, _ORDER: "PCI_BUS_ID"})
        for position, entry in enumerate(entries)
    ]


def _smi() -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SMI_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _asked_of_torch() -> list[Device]:
    """Return the devices that torch finds, if it is loaded or no other source exists."""
    known = sys.platform == "darwin" or any(driver.exists() for driver in _DRIVERS)
    if "torch" not in sys.modules and not known:
        return []
    import torch

    found = [
        Device(f"cuda:{index}", f"cuda:{index}", {VISIBLE: str(index)})
        for index in range(torch.cuda.device_count())
    ]
    return found or list(_mps(torch.backends.mps.is_available()))


def _mps(available: bool) -> Iterator[Device]:
    if available:
        yield Device("mps", "mps")
