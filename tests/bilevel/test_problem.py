"""Problems that users write."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from automl_plugins._bilevel.hypergradients import conjugate_gradient
from bilevel import numbers

from automl import Batch, BilevelProblem, Need, Split, TrialError

PAGE = Path(__file__).parents[2] / "docs" / "api" / "bilevel.md"


def test_the_documented_problem_is_short_and_works(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 30
    (tmp_path / "documented_problem.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    documented = importlib.import_module("documented_problem")
    x, y = numbers(30, 4), numbers(30, seed=1)
    train, held = Batch(x[:20], y[:20], torch.arange(20)), Batch(x[20:], y[20:], torch.arange(10))
    problem = documented.Ridge(train, held)
    penalty = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    matrix = train.inputs.T @ train.inputs / 20 + penalty.exp().diag()
    weights = torch.linalg.solve(matrix, train.inputs.T @ train.targets / 20)
    batches = [next(problem.batches(split, None)) for split in (Split.TRAIN, Split.VALIDATION)]
    loss = problem.outer_loss({"w": weights}, {}, batches[1])
    (exact,) = torch.autograd.grad(loss, penalty)
    method = conjugate_gradient(20, 1e-14, gauss_newton=True)
    point = {"w": weights.detach()}, {"log_penalty": penalty.detach()}
    found = method.hypergradient(problem, *point, *batches)
    assert torch.allclose(found.by_outer["log_penalty"], exact, rtol=1e-10)
    assert {*problem.initial(None)[1]} == {"log_penalty"}


def test_all_needs_that_are_not_met_are_named_at_once():
    class Bare(BilevelProblem):
        offers = frozenset({Need.PER_SAMPLE})

    Bare().check("method", {Need.PER_SAMPLE})
    with pytest.raises(TrialError) as refused:
        Bare().check("method", [Need.DETERMINISTIC, Need.STRONGLY_CONVEX, Need.PER_SAMPLE])
    assert str(refused.value) == (
        "method cannot solve Bare: it needs an inner loss without randomness, and an inner loss "
        "that is strongly convex in the weights"
    )
