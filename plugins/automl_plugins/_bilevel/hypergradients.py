"""Hypergradients by the implicit function theorem: how an outer loss reacts to outer variables.

Source: F. Pedregosa: Hyperparameter optimization with approximate gradient, arXiv 1602.02355. At
weights with ∂g/∂w = 0, dF/dλ = ∂f/∂λ - ∂²g/∂λ∂w q, where ∂²g/∂w² q = ∂f/∂w.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.autograd import grad

from automl import Batch, BilevelProblem, Need
from automl_plugins._bilevel.flat import flat, leaves
from automl_plugins._bilevel.products import (
    FiniteDifferenceProducts,
    GaussNewtonProducts,
    HessianProducts,
)
from automl_plugins._bilevel.solvers import ConjugateGradient, Neumann, OneStep, Solution, Solver

ProductsKind = type[HessianProducts] | type[FiniteDifferenceProducts]


@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient, with how it was found.

    Attributes:
        by_outer: The derivatives of the outer loss, by outer variable.
        outer_loss: The outer loss.
        solution: The solution of the linear system.
        counts: The gradients and products that it took, under the names of `Report.counts`.
    """

    by_outer: Mapping[str, Tensor]
    outer_loss: float
    solution: Solution
    counts: Mapping[str, int]

    def norm(self) -> float:
        """Return its Euclidean norm; NaN or infinite if it is not usable."""
        return float(flat(self.by_outer.values()).norm())


@dataclass(frozen=True)
class Method:
    """A way to compute hypergradients: a solver and the products that it uses.

    Attributes:
        name: Its name, for messages.
        solver: Solves the linear system.
        products: The kind of products.
    """

    name: str
    solver: Solver
    products: ProductsKind

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs from a problem."""
        return self.products.needs

    def hypergradient(
        self,
        problem: BilevelProblem,
        weights: Mapping[str, Tensor],
        outer: Mapping[str, Tensor],
        inner_batch: Batch,
        outer_batch: Batch,
        seed: int = 0,
    ) -> Hypergradient:
        """Compute the hypergradient at weights that (almost) minimize the inner loss.

        Args:
            problem: The problem.
            weights: The weights, by name.
            outer: The outer variables, by name.
            inner_batch: The examples of the inner loss.
            outer_batch: The examples of the outer loss.
            seed: The seed of the inner loss's randomness.

        Raises:
            TrialError: The problem does not meet the method's needs.
        """
        problem.check(self.name, self.needs)
        loss, direct, by_weights = _first_derivatives(problem, weights, outer, outer_batch)
        products = self.products(problem, weights, outer, inner_batch, seed)
        solution = self.solver.solve(products.curvature, by_weights)
        indirect = products.mixed(solution.vector)
        total = {name: direct[name] - indirect[name] for name in direct}
        return Hypergradient(total, loss, solution, dict(products.counts))


def _first_derivatives(
    problem: BilevelProblem,
    weights: Mapping[str, Tensor],
    outer: Mapping[str, Tensor],
    batch: Batch,
) -> tuple[float, dict[str, Tensor], Tensor]:
    """Return the outer loss, ∂f/∂λ by outer variable, and ∂f/∂w as a vector."""
    weights, outer = leaves(weights), leaves(outer)
    loss = problem.outer_loss(weights, outer, batch)
    found = grad(loss, [*outer.values(), *weights.values()], materialize_grads=True)
    direct = dict(zip(outer, found, strict=False))
    return float(loss.detach()), direct, flat(found[len(outer) :])


def conjugate_gradient(
    iterations: int = 20, tolerance: float = 1e-3, damping: float = 0.0, gauss_newton: bool = False
) -> Method:
    """Conjugate gradients; with Gauss-Newton products, also far from a minimum."""
    products: ProductsKind = GaussNewtonProducts if gauss_newton else HessianProducts
    return Method("cg", ConjugateGradient(iterations, tolerance, damping), products)


def neumann(
    iterations: int = 20,
    tolerance: float = 1e-3,
    damping: float = 0.0,
    step: float | None = None,
    gauss_newton: bool = False,
) -> Method:
    """A truncated Neumann series."""
    products: ProductsKind = GaussNewtonProducts if gauss_newton else HessianProducts
    return Method("neumann", Neumann(iterations, tolerance, damping, step), products)


def t1t2(step: float) -> Method:
    """One step of training: the only product is the mixed one."""
    return Method("t1t2", OneStep(step), HessianProducts)


def finite_difference(
    iterations: int = 20, tolerance: float = 1e-3, damping: float = 0.0
) -> Method:
    """Conjugate gradients on differences of gradients, for losses with first derivatives only."""
    solver = ConjugateGradient(iterations, tolerance, damping)
    return Method("finite_difference", solver, FiniteDifferenceProducts)
