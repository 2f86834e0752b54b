"""Binds this process to one GPU, before torch is loaded."""

import os
import sys
from dataclasses import replace

from automl.devices.discovery import Device


def pin(device: Device) -> Device:
    """Make the device the only GPU that this process can see; torch then calls it `cuda:0`.

    Call it before torch is loaded. If torch has initialized CUDA already, the device is returned
    unchanged.
    """
    torch = sys.modules.get("torch")
    if not device.alone or (torch is not None and torch.cuda.is_initialized()):
        return device
    os.environ.update(device.alone)
    return replace(device, torch="cuda:0")
