"""The devices of this machine, found and chosen without loading torch."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
"""Where the drivers of AMD and NVIDIA show."""


@dataclass(frozen=True)
class Device:
    """A device to train on: `cpu`, `mps`, or `cuda:` and what the machine calls the GPU.

    name: for people and the ledger. torch: torch's name for it in this process. alone: the
    environment variables under which a process sees no other GPU.
    """

    name: str = "cpu"
    torch: str = "cpu"
    alone: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda:")


CPU = Device()


def accelerators() -> list[Device]:
    """What this process may train on beside the CPU.

    These are the GPUs of CUDA_VISIBLE_DEVICES where it is set, else those that `nvidia-smi -L`
    lists. Only where there is no such program, but a driver of some kind, torch is asked.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return _visible(visible)
    if shutil.which("nvidia-smi"):
        return _listed(_smi())
    return _asked_of_torch()


def choose_devices(asked: str) -> tuple[Device, ...]:
    """The devices that `--device` means: with `auto` every accelerator, or else the CPU.

    Raises:
        UsageError: there is no such device here.
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
    raise UsageError(f"no device {asked!r} here: expected auto or {' or '.join(named)}{why}")


def resolve_device(asked: str, index: int = 0) -> Device:
    """The device of the worker of that index: `auto` deals the accelerators round.

    Raises:
        UsageError: there is no such device here.
    """
    chosen = choose_devices(asked)
    return chosen[index % len(chosen)]


def pin(device: Device) -> Device:
    """Let this process see that device alone, which torch then calls `cuda:0`.

    Call it before torch is loaded. Where torch has looked at the GPUs already, it is too late:
    the device keeps its place among those that torch saw.
    """
    torch = sys.modules.get("torch")
    if not device.alone or (torch is not None and torch.cuda.is_initialized()):
        return device
    os.environ.update(device.alone)
    return replace(device, torch="cuda:0")


def _visible(text: str) -> list[Device]:
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        # As CUDA does: what it does not know, such as -1, ends the list.
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
    """A GPU's index on the machine; where only its UUID is known, that."""
    if entry.isdigit():
        return str(int(entry))
    # CUDA takes the beginning of a UUID for the whole.
    return next((index for uuid, index in indices.items() if uuid.startswith(entry)), entry)


def _indices() -> dict[str, str]:
    """The index of each GPU by its UUID."""
    found = map(_GPU.match, _smi()) if shutil.which("nvidia-smi") else ()
    return {gpu[2]: gpu[1] for gpu in found if gpu}


def _listed(lines: list[str]) -> list[Device]:
    """The GPUs of `nvidia-smi -L`; one that is divided counts by its slices."""
    entries: list[str] = []
    for line in lines:
        if gpu := _GPU.match(line):
            entries.append(gpu[1])
        elif part := _SLICE.match(line):
            if entries and entries[-1].isdigit():
                entries.pop()
            entries.append(part[1])
    # The program counts by the bus; CUDA would count by speed unless it is told.
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
    """What torch sees, where it is loaded or where only it can tell."""
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
