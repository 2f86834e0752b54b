"""Checkpoints: when a trial's state is saved, so that another attempt can continue from it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from automl.engine.reports import plain
from automl.plugin.protocols import Run
from automl.plugin.report import Report
from automl.text.redaction import redact_urls
from automl.trial_code.boundary import TrialCode, trial_error_text

_log = logging.getLogger("automl")

_SHORTEST_SECONDS = 1.0
_SAVE_SHARE = 50
"""The next checkpoint waits this many times as long as the last one took to write."""


@dataclass
class Checkpoints:
    """The checkpoints of one trial.

    Attributes:
        saved: Called with the SHA-256 of each new checkpoint, to record it.
        offered: Whether the last report offered a checkpoint.
    """

    saved: Callable[[str], None]
    offered: bool = True
    _saved_at: float = field(default_factory=time.monotonic, init=False)
    _took: float = field(default=0.0, init=False)

    def take(self, report: Report, run: Run, stopping: bool) -> None:
        """Save the checkpoint that a report offers, if it is time for one.

        Args:
            report: The latest report.
            run: The trainer's run, with the directory to save in.
            stopping: The worker is about to stop, so save in any case.
        """
        self.offered = report.checkpoint is not None
        if self.offered and (stopping or self._is_due()):
            self._save(report, run)

    def _is_due(self) -> bool:
        passed = time.monotonic() - self._saved_at
        return passed >= max(_SHORTEST_SECONDS, _SAVE_SHARE * self._took)

    def _save(self, report: Report, run: Run) -> None:
        if report.checkpoint is None:
            return
        started = time.monotonic()
        try:
            with TrialCode():
                digest = run.save(report.checkpoint(), plain(report))
        except (OSError, RuntimeError) as error:
            why = redact_urls(trial_error_text(error))
            _log.warning("no checkpoint saved in %s: %s", run.directory, why)
        else:
            self.saved(digest)
            run.keep_only_last()
        self._saved_at = time.monotonic()
        self._took = self._saved_at - started
