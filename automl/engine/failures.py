"""Turns what a trial raised into its outcome: a reason, one line, and the traceback."""

import gc
import resource
import sys
import traceback
from dataclasses import replace

from automl.errors import (
    CandidateError,
    DegenerateError,
    DeviceLostError,
    NotFiniteError,
    StorageError,
    TimeLimitError,
    TrialError,
    described,
    text_of,
)
from automl.plugin.report import Outcome, Reason, State
from automl.storable import plain_text
from automl.text.redaction import redact_urls
from automl.trial_code.boundary import TrialCode

# CUDA errors after which every call in this process fails, as CUDA's own documentation has it.
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
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "alloc_cpu")


def failure(error: BaseException, where: str = "") -> Outcome:
    """The outcome of a trial that raised; where: the part it happened in, for people.

    What the error says is the trial's code, and held to its limit.
    """
    try:
        with TrialCode():
            return _shown(error, where)
    except TimeLimitError as late:
        # Made again, for that one brings along in what it was raised.
        return _shown(TimeLimitError(text_of(late)), where)
    except Exception:
        unknown = TrialError(f"a {type(error).__name__} that cannot be shown")
        return _shown(unknown, where)


def _shown(error: BaseException, where: str) -> Outcome:
    message = described(error)
    message = message if where in message else f"{where}: {message}"
    return Outcome(
        State.FAILED,
        reason=_reason(error),
        message=_storable(message),
        traceback=_storable("".join(traceback.format_exception(error))),
        cause=_cause(error),
    )


def hung(why: str, stack: str) -> Outcome:
    """The outcome of a trial whose process had to be ended; stack: where it was then."""
    error = TimeLimitError(f"{why or 'it took too long'}; its process had to be ended")
    outcome = failure(error)
    # Of the process that says so now, the place of this error says nothing.
    return replace(outcome, traceback=_storable(stack) or outcome.traceback)


def lost(attempts: int) -> Outcome:
    """The outcome of a trial whose workers died, each time."""
    message = (
        f"its worker was lost {attempts} times: killed, out of memory, a crash, a device that "
        "fails, or no run.tick() for minutes"
    )
    return Outcome(
        State.FAILED, reason=Reason.WORKER_LOST, message=message, cause=Reason.WORKER_LOST.value
    )


def free_memory(error: BaseException | None = None) -> None:
    """Give back what a failed trial held, on the accelerator too; its error holds on to frames."""
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and all in whose handling, or because of which, it was raised."""
    found: list[BaseException] = []
    left = [error]
    while left:
        each = left.pop()
        if each is not None and not any(each is known for known in found):
            found.append(each)
            left += [each.__cause__, each.__context__]
    return found


def _reason(error: BaseException) -> Reason:
    if isinstance(error, NotFiniteError):
        return Reason.NOT_FINITE
    if isinstance(error, CandidateError):
        return Reason.INVALID
    if isinstance(error, TimeLimitError):
        return Reason.TIME_LIMIT
    if _is_out_of_memory(error):
        return Reason.OUT_OF_MEMORY
    return Reason.ERROR


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = text_of(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _MEMORY_WORDS)


def is_device_loss(error: BaseException) -> bool:
    """Whether the device fails for the rest of this process, whatever trial comes next."""
    if isinstance(error, DeviceLostError):
        return True
    text = text_of(error).lower()
    return isinstance(error, RuntimeError) and "cuda" in text and any(w in text for w in _STICKY)


def forget_peak_memory(device: str) -> None:
    """Count the most memory on a device anew; a CPU's is that of the whole process."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> str:
    """The most memory this process had on its device; on a CPU the process as a whole."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on {device}"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"


def _cause(error: BaseException) -> str | None:
    """Where it was raised: equal for failures of one origin, whatever numbers they mention.

    None for what says nothing of the candidates to come.
    """
    if isinstance(error, DegenerateError):
        return None
    origin = error.__cause__ or error
    frames = traceback.extract_tb(origin.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return _storable(f"{type(origin).__name__} {where}")[-255:]


def _storable(text: str) -> str:
    """Text that every database takes and anybody may read, without passwords."""
    return redact_urls(plain_text(text))


def is_storage_failure(error: BaseException) -> bool:
    """Whether the database failed, rather than the trial."""
    return isinstance(error, StorageError) or type(error).__name__ == "StorageInternalError"
