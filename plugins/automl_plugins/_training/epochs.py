"""Training by epochs with checkpoints, shared by several trainers."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from automl import Report, Run, TrialError

_log = logging.getLogger("automl")


class Training(Protocol):
    """The training of one candidate."""

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""

    def epoch(self) -> None:
        """Train for one more epoch, then evaluate."""

    def report(self) -> Report:
        """Return the report of the last epoch."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            TrialError: The checkpoint does not fit.
        """


def by_epochs(start: Callable[[], Training], run: Run) -> Iterator[Report]:
    """Train to the end, from a checkpoint if one fits, otherwise from the start.

    Args:
        start: Creates a fresh training.
        run: The trial's run, which stores the checkpoints.
    """
    training = start()
    if (state := run.restore()) is not None:
        try:
            training.load(state)
        except TrialError as error:
            _log.warning("%s; starting over", error)
            training = start()
        # An earlier attempt may have died between its last checkpoint and its end.
        if training.finished:
            yield training.report()
    while not training.finished:
        training.epoch()
        yield training.report()


@contextmanager
def loading(run: Run) -> Iterator[None]:
    """Convert errors while a checkpoint is loaded.

    Raises:
        TrialError: The checkpoint belongs to another candidate, other settings or another trainer.
    """
    try:
        yield
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        what = f"{type(error).__name__}: {first}"
        raise TrialError(f"checkpoint {run.checkpoint} does not fit this trial ({what})") from error
