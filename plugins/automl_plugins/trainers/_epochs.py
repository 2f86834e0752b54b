"""Training by epochs that goes on from checkpoints: what several trainers share."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from automl import Report, Run, TrialError

_log = logging.getLogger("automl")


class Training(Protocol):
    """One candidate in training."""

    @property
    def finished(self) -> bool:
        """Whether the last epoch is over."""

    def epoch(self) -> None:
        """Train for one more epoch, then measure."""

    def report(self) -> Report:
        """What was measured after the last epoch."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; raises TrialError where it does not fit."""


def by_epochs(start: Callable[[], Training], run: Run) -> Iterator[Report]:
    """Train to the end from a checkpoint, if there is one that fits, else from the start."""
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
    """Say of a checkpoint that cannot be read that it does not fit.

    Raises:
        TrialError: it is of another candidate, of other settings or of another trainer.
    """
    try:
        yield
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        what = f"{type(error).__name__}: {first}"
        raise TrialError(f"checkpoint {run.checkpoint} does not fit this trial ({what})") from error
