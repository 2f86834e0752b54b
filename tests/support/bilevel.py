"""Small bilevel problems with known solutions, in double precision."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from automl import Batch, BilevelProblem, Need, Parts, Split

Tensors = Mapping[str, Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Ridge(BilevelProblem):
    """Least squares with one penalty per feature; the outer loss also depends on the penalties."""

    offers = BilevelProblem.offers | {Need.COMPOSED, Need.DETERMINISTIC, Need.STRONGLY_CONVEX}

    def __init__(self, examples: int = 40, features: int = 6, direct: float = 0.0) -> None:
        self.inputs, self.direct = numbers(2 * examples, features), direct
        self.targets = self.inputs.sum(1) + numbers(2 * examples, seed=1)
        rows = torch.arange(2 * examples)
        self.rows = {Split.TRAIN: rows[:examples], Split.VALIDATION: rows[examples:]}

    def initial(self, generator: Generator) -> tuple[Tensors, Tensors]:
        zeros = torch.zeros(self.inputs.shape[1], dtype=torch.float64)
        return {"w": zeros}, {"log_penalty": zeros - 1}

    def parts(self, weights: Tensors, outer: Tensors, batch: Batch, generator: Generator) -> Parts:
        penalty = (outer["log_penalty"].exp() * weights["w"].square()).sum() / 2
        return Parts(
            batch.inputs @ weights["w"],
            lambda outputs: (outputs - batch.targets).square().mean() / 2,
            penalty,
        )

    def outer_loss(self, weights: Tensors, outer: Tensors, batch: Batch) -> Tensor:
        fit = (batch.inputs @ weights["w"] - batch.targets).square().mean() / 2
        return fit + self.direct * outer["log_penalty"].square().sum()

    def batches(self, split: Split, generator: Generator) -> Iterator[Batch]:
        yield self.batch(split)

    def batch(self, split: Split) -> Batch:
        rows = self.rows[split]
        return Batch(self.inputs[rows], self.targets[rows], rows)

    def solution(self, log_penalty: Tensor) -> Tensor:
        """Return the weights that minimize the inner loss, differentiable in the penalties."""
        x, y = (self.batch(Split.TRAIN).inputs, self.batch(Split.TRAIN).targets)
        return torch.linalg.solve(x.T @ x / len(x) + log_penalty.exp().diag(), x.T @ y / len(x))

    def value(self, log_penalty: Tensor) -> Tensor:
        """Return the outer loss at these weights."""
        weights = {"w": self.solution(log_penalty)}
        return self.outer_loss(weights, {"log_penalty": log_penalty}, self.batch(Split.VALIDATION))


@dataclass
class Quadratic(BilevelProblem):
    """½ wᵀHw - wᵀλ inside, tᵀw outside: the hypergradient is H⁻¹t."""

    hessian: Tensor
    target: Tensor = field(init=False)
    offers = BilevelProblem.offers

    def __post_init__(self) -> None:
        self.target = numbers(len(self.hessian), seed=2)

    @classmethod
    def of_condition(cls, condition: float, size: int = 60) -> "Quadratic":
        basis = torch.linalg.qr(numbers(size, size))[0]
        eigenvalues = torch.logspace(0, float(torch.tensor(condition).log10()), size).double()
        return cls(basis @ eigenvalues.diag() @ basis.T)

    def initial(self, generator: Generator) -> tuple[Tensors, Tensors]:
        return {"w": torch.zeros_like(self.target)}, {"shift": torch.zeros_like(self.target)}

    def inner_loss(
        self, weights: Tensors, outer: Tensors, batch: Batch, generator: Generator
    ) -> Tensor:
        w = weights["w"]
        return w @ self.hessian @ w / 2 - w @ outer["shift"]

    def outer_loss(self, weights: Tensors, outer: Tensors, batch: Batch) -> Tensor:
        return weights["w"] @ self.target

    def batches(self, split: Split, generator: Generator) -> Iterator[Batch]:
        yield self.batch()

    def batch(self) -> Batch:
        return Batch(self.target, self.target, torch.arange(len(self.target)))
