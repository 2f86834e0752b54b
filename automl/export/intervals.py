"""How certain the scores on test data are: their 95 % intervals.

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
"""A number counts as whole if it is at most this far from a whole number."""
_DRAWN = 20_000_000
"""The largest number of examples in all draws together: large data sets need fewer draws."""
_ENDS = (0.025, 0.975)
_SHARE = "accuracy"
"""The metric that is a share of the examples. Wilson's interval holds near 0 and 1, too."""


def intervals(
    evaluate: Evaluate, outputs: "Tensor", targets: "Tensor", seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each metric.

    A metric that most draws cannot measure has none, for example because a draw lacks a class.

    Args:
        evaluate: Returns the metrics of outputs and targets.
        outputs: A model's outputs, shape [n, ...].
        targets: The true values, shape [n, ...].
        seed: The seed of the draws.
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
    """The metrics that are finite; none if the task cannot measure these examples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = {name: float(value) for name, value in evaluate(outputs, targets).items()}
        except Exception:  # a user's own code, given examples that it may not foresee
            return {}
    return {name: value for name, value in found.items() if math.isfinite(value)}
