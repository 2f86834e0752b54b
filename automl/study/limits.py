"""The limits on what a search may spend."""

from dataclasses import dataclass

from automl.ledger.budget import no_room
from automl.storable import require_amount
from automl.study.request import RunRequest

DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class Limits:
    """What a search may spend; None is without limit."""

    trials: int | None = None
    evaluations: int | None = None
    timeout: float | None = None
    gpu_hours: float | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "evaluations", "timeout", "gpu_hours"):
            if (value := getattr(self, name)) is not None:
                whole = name in ("trials", "evaluations")
                require_amount(f"--{name.replace('_', '-')}", value, whole)

    @classmethod
    def of(cls, request: RunRequest) -> "Limits":
        """The limits that a request asks for."""
        return cls(request.trials, request.evaluations, request.timeout, request.gpu_hours)

    @property
    def device_seconds(self) -> float | None:
        """The budget of time on devices, summed over all workers."""
        return None if self.gpu_hours is None else self.gpu_hours * 3600

    def room(self, most: int) -> int:
        """How many trials fit in, of so many at most."""
        limits = [limit for limit in (self.trials, self.evaluations) if limit is not None]
        return min([most, *limits])

    def require_room(self, trials: int) -> None:
        """See that so many trials fit in; raises UsageError where they do not."""
        if self.room(trials) < trials:
            raise no_room(trials, self.room(trials))

    def or_default(self) -> "Limits":
        """These limits; 20 trials where there is none at all."""
        return self if self != Limits() else Limits(trials=DEFAULT_TRIALS)
