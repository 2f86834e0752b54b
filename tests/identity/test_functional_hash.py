"""Functional hashes: equal functions have equal hashes, however they are written."""

import collections
import math
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from automl.identity.probes.callables import FunctionError, functional_hash, same_function

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = [(torch.randn(7, generator=GENERATOR), torch.randn(7, generator=GENERATOR))]
NUMBERS = [(0.3, -1.7), (2.1, 0.9), (-0.6, 1.3)]


def imperative(x, y):
    total = torch.zeros_like(x)
    for term in (y, x, x):
        total += term
    return total * 0.5


def in_place(x, y):
    x.add_(x).add_(y).mul_(0.5)
    return x


@pytest.mark.parametrize(
    ("one", "other", "inputs"),
    [
        (lambda x, y: x + y / 2, imperative, VECTORS),
        (lambda x, y: x + y / 2, in_place, VECTORS),
        (lambda x, y: (x + y) ** 2, lambda x, y: x * x + 2 * x * y + y * y, NUMBERS),
        (lambda x, y: [x, (y,)], lambda a, b: (a, [b]), NUMBERS),
        (lambda x, y: {"b": x, "a": y}, lambda x, y: {"a": y, "b": x}, NUMBERS),
        (lambda x, y: x.sum(), lambda x, y: float(x.flip(0).sum()), VECTORS),
        (lambda x, y: x.numpy() * 2, lambda x, y: x + x, VECTORS),
        (lambda x, y: x - x, lambda x, y: (x + y) - y - x, VECTORS),
        (lambda x, y: math.nan, lambda x, y: math.inf - math.inf, NUMBERS),
    ],
)
def test_equal_functions_have_equal_hashes(one, other, inputs):
    assert functional_hash(one, inputs) == functional_hash(other, inputs)
    assert same_function(one, other, inputs)


@pytest.mark.parametrize(
    ("one", "other", "inputs"),
    [
        (lambda x, y: x - y, lambda x, y: y - x, NUMBERS),
        (lambda x, y: x, lambda x, y: x * (1 + 1e-6), NUMBERS),
        (lambda x, y: x, lambda x, y: [x], NUMBERS),
        (lambda x, y: x, lambda x, y: x[None], VECTORS),
        (lambda x, y: math.nan, lambda x, y: 0.0, NUMBERS),
        (lambda x, y: math.inf, lambda x, y: -math.inf, NUMBERS),
        (lambda x, y: math.sqrt(x), lambda x, y: math.sqrt(x) if x > 0 else None, NUMBERS),
        (lambda x, y: 2**70, lambda x, y: 2**70 + 1, NUMBERS),
        (complex, lambda x, y: [x, y], NUMBERS),
        (lambda x, y: {"a": x}, lambda x, y: {"b": x}, NUMBERS),
    ],
)
def test_different_functions_have_different_hashes(one, other, inputs):
    assert functional_hash(one, inputs) != functional_hash(other, inputs)
    assert not same_function(one, other, inputs)


def test_an_exception_counts_by_its_type():
    def of_kind(kind):
        def root(x, y):
            if x < 0:
                raise kind("negative")
            return math.sqrt(x)

        return root

    hashes = {functional_hash(of_kind(kind), NUMBERS) for kind in (ValueError, KeyError)}
    assert len(hashes) == 2
    assert functional_hash(lambda x, y: math.sqrt(x), NUMBERS) in hashes


def test_the_context_counts():
    hashes = {functional_hash(max, NUMBERS, context=context) for context in ("", "a", "b")}
    assert len(hashes) == 3


class Counter:
    calls = 0

    def __call__(self, x, y):
        self.calls += 1
        return self.calls


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, y: torch.rand(3), "returns a different result when called again"),
        (lambda x, y: random.random(), "returns a different result"),
        (lambda x, y: np.random.rand(), "returns a different result"),
        (lambda x, y: time.perf_counter(), "returns a different result"),
        (Counter(), "^Counter returns a different result"),
        (lambda x, y: 1 / 0, "raises ZeroDivisionError on every input: division by zero"),
        (lambda x: x, "raises TypeError on every input"),
        (lambda x, y: object(), "cannot be hashed: it returns a object"),
        (lambda x, y: np.array(["a"]), "cannot be hashed: it returns an array of <U1"),
    ],
)
def test_a_callable_that_cannot_be_hashed_is_refused(function, says):
    with pytest.raises(FunctionError, match=says):
        functional_hash(function, NUMBERS)


def test_hashing_without_inputs_is_refused():
    with pytest.raises(FunctionError, match="max cannot be hashed without inputs"):
        functional_hash(max, [])


def test_hashing_does_not_change_global_state_or_inputs():
    x = torch.ones(3)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    functional_hash(lambda v: v.mul_(0).add_(torch.ones(3)).sum(), [(x,)])
    assert x.tolist() == [1, 1, 1]
    assert torch.get_default_dtype() is torch.float32
    assert random.getstate() == states[0]
    assert torch.get_rng_state().equal(states[1])
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_function_may_compute_gradients():
    def slope(x):
        (x**3).sum().backward()
        return x.grad

    x = torch.randn(4, generator=GENERATOR, requires_grad=True)
    assert functional_hash(slope, [(x,)]) == functional_hash(lambda x: 3 * x**2, [(x,)])
    assert x.grad is None


TERMS = st.lists(
    st.tuples(st.floats(-3, 3).filter(lambda c: abs(c) > 0.01), st.integers(0, 2)),
    min_size=2,
    max_size=6,
)


@settings(deadline=None)
@given(TERMS, st.randoms(use_true_random=False))
def test_the_order_of_a_sum_does_not_matter(terms, order):
    """Programs that add scaled powers, with terms shuffled, split and cancelled."""
    points = [(torch.linspace(-1.1, 1.3, 9),)]

    def program(parts):
        def run(x):
            total = torch.zeros_like(x)
            for scale, power in parts:
                total = total + scale * x**power
            return total

        return run

    rewritten = [(scale / 2, power) for scale, power in terms for _ in range(2)]
    rewritten += [(1.7, 1), (-1.7, 1)]
    order.shuffle(rewritten)
    assert same_function(program(terms), program(rewritten), points)
    changed = [(terms[0][0] * 1.01, terms[0][1]), *terms[1:]]
    assert not same_function(program(terms), program(changed), points)
    assert functional_hash(program(terms), points) != functional_hash(program(changed), points)


# Imperative programs over registers, against the polynomials they compute.
POINTS = [(0.37, -1.21), (1.43, 0.58), (-0.83, 1.17), (0.91, 0.29), (-1.37, -0.64)]
STEPS = st.lists(
    st.tuples(st.sampled_from("+-*"), st.integers(0, 4), st.integers(0, 4), st.integers(2, 4)),
    min_size=1,
    max_size=6,
)
START = ({(1, 0): 1}, {(0, 1): 1}, {}, {(0, 0): 1}, {(0, 0): 2})
"""The initial registers x, y, 0, 1, 2, each as {(power of x, power of y): coefficient}."""


def run(steps):
    """The program as a Python function; its result is the last register."""

    def program(x, y):
        registers = [x, y, 0.0, 1.0, 2.0]
        for operation, a, b, out in steps:
            left, right = registers[a], registers[b]
            if operation == "*":
                registers[out] = left * right
            else:
                registers[out] = left + right if operation == "+" else left - right
        return registers[4]

    return program


def polynomial(steps):
    """The polynomial that the program computes, with integer coefficients."""
    registers = [dict(one) for one in START]
    for operation, a, b, out in steps:
        registers[out] = combined(operation, registers[a], registers[b])
    return registers[4]


def combined(operation, left, right):
    found = collections.Counter()
    if operation == "*":
        for (i, j), c in left.items():
            for (k, m), d in right.items():
                found[i + k, j + m] += c * d
    else:
        found.update(left)
        (found.update if operation == "+" else found.subtract)(right)
    return {powers: c for powers, c in found.items() if c}


def rewritten(steps, rng):
    """An equal program: commuted, with dead steps before the steps that overwrite them."""
    made = []
    for operation, a, b, out in steps:
        if rng.random() < 0.3:
            made.append((rng.choice("+-*"), rng.randrange(5), rng.randrange(5), out))
            if out in (a, b):
                made.pop()
        swap = operation != "-" and rng.random() < 0.5
        made.append((operation, b, a, out) if swap else (operation, a, b, out))
    return made


@settings(deadline=None, max_examples=200)
@given(STEPS, st.randoms(use_true_random=False))
def test_a_rewritten_program_has_the_same_hash(steps, rng):
    other = rewritten(steps, rng)
    assert polynomial(other) == polynomial(steps)
    assert same_function(run(steps), run(other), POINTS)
    assert functional_hash(run(steps), POINTS) == functional_hash(run(other), POINTS)


@settings(deadline=None, max_examples=300)
@given(STEPS, STEPS, st.data())
def test_two_programs_are_equal_exactly_if_their_polynomials_are(one, other, data):
    if data.draw(st.booleans()):
        index = data.draw(st.integers(0, len(one) - 1))
        operation, a, b, out = one[index]
        near = data.draw(st.sampled_from([(operation, b, a, out), ("-", a, b, out)]))
        other = [*one[:index], near, *one[index + 1 :]]
    ours, theirs = polynomial(one), polynomial(other)
    # A few points distinguish polynomials of low degree; large coefficients hide small ones.
    assume(max((sum(powers) for powers in {**ours, **theirs}), default=0) <= 4)
    assume(max(map(abs, [*ours.values(), *theirs.values()]), default=0) <= 1000)
    assert same_function(run(one), run(other), POINTS) == (ours == theirs)
    hashes = [functional_hash(run(each), POINTS) for each in (one, other)]
    assert (hashes[0] == hashes[1]) == (ours == theirs)
