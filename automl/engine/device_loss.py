"""Lost devices: errors after which a device fails for the rest of this process."""

from contextlib import suppress

from automl.errors import DeviceLostError, text_of
from automl.trial_code.boundary import TrialCode

# CUDA errors after which every call in this process fails, according to CUDA's documentation.
_STICKY = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "device-side assert",
    "uncorrectable ecc",
    "hardware stack error",
    "invalid program counter",
    "device is lost",
    "context is destroyed",
)


def check_device(error: Exception) -> None:
    """Check that the device still works after an error.

    Raises:
        DeviceLostError: The error is one after which the device fails for good.
    """
    lost = False
    with suppress(Exception), TrialCode():
        lost = _is_device_loss(error)
    if lost:
        line = " ".join(text_of(error).split())
        raise DeviceLostError(
            f"the device was lost: {line}; only a new process can use it again"
        ) from error


def _is_device_loss(error: BaseException) -> bool:
    text = text_of(error).lower()
    return isinstance(error, RuntimeError) and "cuda" in text and any(w in text for w in _STICKY)
