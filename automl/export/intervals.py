"""How sure the scores on test data are: intervals that 19 in 20 such data sets would agree with.

Sources: B. Efron: Bootstrap Methods: Another Look at the Jackknife, 1979 (the percentile method);
E. B. Wilson: Probable Inference, the Law of Succession, 1927 (shares).
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from automl.ledger.audits import wilson

if TYPE_CHECKING:
    from torch import Tensor

Evaluate = Callable[["Tensor", "Tensor"], Mapping[str, float]]
_RESAMPLES = 400
_LEAST_RESAMPLES = 50
_WHOLE = 1e-3
"""So near to a whole number a count is one."""
_DRAWN = 20_000_000
"""Of so many examples at most, in all, metrics are measured: of many a few tell as much."""
_ENDS = (0.025, 0.975)
_SHARE = "accuracy"
"""The metric that is a share of the examples, of which Wilson's interval holds at its ends, too."""


def intervals(
    evaluate: Evaluate, outputs: "Tensor", targets: "Tensor", seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each metric that `evaluate` makes of outputs [n, ...] and targets.

    A metric has none that most draws cannot be measured by, as where they lack a class. seed: of
    the examples that are drawn again and again.
    """
    import torch

    draw, n = torch.Generator().manual_seed(seed), len(targets)
    drawn: dict[str, list[float]] = {}
    draws = max(_LEAST_RESAMPLES, min(_RESAMPLES, _DRAWN // n))
    for _ in range(draws):
        rows = torch.randint(n, (n,), generator=draw)
        for name, value in _measured(evaluate, outputs[rows], targets[rows]).items():
            drawn.setdefault(name, []).append(value)
    ends = torch.tensor(_ENDS, dtype=torch.float64)
    found = {}
    for name, values in drawn.items():
        if len(values) > draws / 2:
            low, high = torch.tensor(values, dtype=torch.float64).quantile(ends).tolist()
            found[name] = (low, high)
    right = _measured(evaluate, outputs, targets).get(_SHARE, math.nan) * n
    if _SHARE in found and 0 <= right <= n and abs(right - round(right)) < _WHOLE:
        sure = wilson(round(right), n)
        found[_SHARE] = (sure.low, sure.high)
    return found


def _measured(evaluate: Evaluate, outputs: "Tensor", targets: "Tensor") -> dict[str, float]:
    """The metrics that are finite; none where a task cannot measure these examples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = {name: float(value) for name, value in evaluate(outputs, targets).items()}
        except Exception:  # a user's own code, asked of examples that it may not foresee
            return {}
    return {name: value for name, value in found.items() if math.isfinite(value)}
