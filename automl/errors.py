"""The errors people see: each is one line that names the thing, what was expected, what to do.

AutoMLError                 anything this package raises on purpose
├── UsageError              what was asked for cannot be done as asked (exit code 2)
│   ├── UnknownNameError    a space, task, trainer, strategy, option or study nobody knows
│   └── UntrustedError      a study names code or paths this user has not approved
├── PluginError             a plugin is broken, or two offer one name
├── StorageError            the database cannot be opened, read or written
├── CandidateError          a search space made something that cannot be trained
│   ├── DegenerateError     its outputs are constant or not finite before it is trained
│   ├── GraphError          an operation of a graph does not fit its inputs
│   └── OpenDecisionError   an open decision was used as a value, or lost
├── TrialError              a trial failed for a reason its trainer could name
│   ├── NotFiniteError      an objective became NaN or infinite
│   ├── TimeLimitError      it took longer than the study allows
│   ├── UncaughtError       its code raised what only a process's end or the engine may raise
│   └── UnstorableError     it gave what some database cannot hold
├── DeviceLostError         the device fails for good: the process must be started anew (75)
└── Interrupted             a person or a signal asked the worker to stop
"""

import difflib
from collections.abc import Iterable

from automl.text.redaction import redact_urls


class AutoMLError(Exception):
    """Anything this package raises on purpose; its text is one line for a person."""

    exit_code = 1


class UsageError(AutoMLError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nobody offers; the text lists the names there are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        there_are = ", ".join(known) if known else "none"
        super().__init__(
            f"unknown {kind} {name!r}: {meant}known: {there_are}{'; ' + hint if hint else ''}"
        )


class UntrustedError(UsageError):
    """A study names code or paths that this user has not approved on this machine."""


class PluginError(AutoMLError):
    """A plugin is broken, or two plugins offer one name."""

    exit_code = 2


class StorageError(AutoMLError):
    """The database cannot be opened, read or written."""

    exit_code = 2


class CandidateError(AutoMLError):
    """A search space made something that cannot be trained."""


class DegenerateError(CandidateError):
    """A candidate whose outputs are constant or not finite in a probe, and so is not trained."""


class GraphError(CandidateError):
    """An operation of a graph does not fit its inputs; the text names the node."""


class OpenDecisionError(CandidateError):
    """An open decision was used as a value, or is nowhere to be found in the candidate."""


class TrialError(AutoMLError):
    """A trial failed for a reason that its trainer or task could name."""


class NotFiniteError(TrialError):
    """An objective became NaN or infinite: training diverged."""


class TimeLimitError(TrialError):
    """A trial, or one step of it, took longer than the study allows."""


class UncaughtError(TrialError):
    """A trial's code raised what only a process's end or the engine itself may raise."""


class UnstorableError(TrialError):
    """A trial gave what a database cannot hold: a name too long, a number out of range."""


class StrategyError(TrialError):
    """A strategy raised while it drew a trial's decisions."""


class DeviceLostError(AutoMLError):
    """The device was lost (a sticky CUDA error): this process must be started anew."""

    exit_code = 75


class Interrupted(AutoMLError):
    """A person or a signal asked the worker to stop; its trial is given back, not failed."""

    exit_code = 130


class EndedAtOnce(KeyboardInterrupt):
    """A person asked a second time: this process ends now, whatever is under way."""


def text_of(error: BaseException) -> str:
    """An error's text, also where its class fails to say it, or asks the process to end."""
    try:
        return str(error)
    except EndedAtOnce:
        raise
    except BaseException:
        return f"a {type(error).__name__} that cannot say what it is"


def described(error: BaseException) -> str:
    """An error in one line; those of ours say themselves what they are."""
    line = " ".join(text_of(error).split()) or "no message"
    return line if isinstance(error, AutoMLError) else f"{type(error).__name__}: {line}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without passwords; its type where it says nothing."""
    return redact_urls((text_of(error).strip() or type(error).__name__).splitlines()[0])
