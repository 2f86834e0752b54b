"""Rewriting: equal functions get equal keys, different functions do not."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from automl import Algebra, Graph, Operation, declare
from automl.identity.graphs.canonical import Canonical, canonical

SHAPE = (3, 5, 5)
Writing = Callable[[Graph, str, str], str]
"""Adds nodes that read two inputs and returns the last one."""


def found(writing: Writing) -> Canonical:
    graph = Graph()
    x, y = graph.input("x", SHAPE), graph.input("y", SHAPE)
    graph.output(writing(graph, x, y))
    return canonical(graph)


def pool(graph: Graph, source: str) -> str:
    return graph.add("avg_pool2d", source, kernel=3, stride=1, padding=1)


def convolution(graph: Graph, source: str, kernel: int = 3, bias: bool = False) -> str:
    return graph.add("conv2d", source, channels=3, kernel=kernel, bias=bias)


def twice(graph: Graph, operation: str, source: str) -> str:
    return graph.add(operation, source, source)


def with_pooled(graph: Graph, source: str) -> str:
    return graph.add("add", source, pool(graph, source))


def shared(graph: Graph, source: str) -> str:
    return twice(graph, "add", convolution(graph, source))


EQUAL: dict[str, tuple[str, Writing, Writing]] = {
    "dead": (
        "dead nodes",
        lambda g, x, y: g.add("relu", x),
        lambda g, x, y: (convolution(g, y), g.add("relu", x))[1],
    ),
    "identity": (
        "identity",
        lambda g, x, y: g.add("tanh", x),
        lambda g, x, y: g.add("tanh", g.add("identity", g.add("add", x))),
    ),
    "dropout of nothing": (
        "identity",
        lambda g, x, y: g.add("tanh", x),
        lambda g, x, y: g.add("tanh", g.add("dropout", x, p=0.0)),
    ),
    "window of one": (
        "identity",
        lambda g, x, y: g.add("tanh", x),
        lambda g, x, y: g.add("tanh", g.add("max_pool2d", x, kernel=1)),
    ),
    "flattened vector": (
        "identity",
        lambda g, x, y: g.add("flatten", x),
        lambda g, x, y: g.add("flatten", g.add("flatten", x)),
    ),
    "zero term": (
        "zero",
        lambda g, x, y: g.add("tanh", x),
        lambda g, x, y: g.add("tanh", g.add("add", x, g.add("zero", y))),
    ),
    "zero through weights": (
        "zero",
        lambda g, x, y: g.add("batch_norm", g.add("zero", x)),
        lambda g, x, y: g.add("batch_norm", convolution(g, g.add("zero", y))),
    ),
    "product with zero": (
        "zero",
        lambda g, x, y: g.add("sigmoid", g.add("zero", x)),
        lambda g, x, y: g.add("sigmoid", g.add("multiply", x, g.add("zero", y))),
    ),
    "nested sums": (
        "sums",
        lambda g, x, y: g.add("tanh", g.add("add", x, y, x)),
        lambda g, x, y: g.add("tanh", g.add("add", x, g.add("add", x, y))),
    ),
    "difference": (
        "sums",
        lambda g, x, y: g.add("tanh", g.add("subtract", x, y)),
        lambda g, x, y: g.add("tanh", g.add("negate", g.add("subtract", y, x))),
    ),
    "cancellation": (
        "like terms",
        lambda g, x, y: g.add("tanh", x),
        lambda g, x, y: g.add("tanh", g.add("subtract", g.add("add", x, y), y)),
    ),
    "factor through weights": (
        "factor",
        lambda g, x, y: g.add("tanh", shared(g, x)),
        lambda g, x, y: g.add("tanh", convolution(g, g.add("add", x, x))),
    ),
    "sign of a product": (
        "factor",
        lambda g, x, y: g.add("tanh", g.add("negate", g.add("multiply", x, y))),
        lambda g, x, y: g.add("tanh", g.add("multiply", y, g.add("negate", x))),
    ),
    "factor of a concatenation": (
        "factor",
        lambda g, x, y: g.add("negate", g.add("concat", x, y)),
        lambda g, x, y: g.add("concat", g.add("negate", x), g.add("negate", y)),
    ),
    "pooled sum": (
        "distributed",
        lambda g, x, y: g.add("add", pool(g, x), pool(g, y)),
        lambda g, x, y: pool(g, g.add("add", x, y)),
    ),
    "polynomial of pooling": (
        "distributed",
        lambda g, x, y: g.add("add", x, pool(g, x), pool(g, x), pool(g, pool(g, x))),
        lambda g, x, y: with_pooled(g, with_pooled(g, x)),
    ),
    "expanded product": (
        "expanded",
        lambda g, x, y: g.add("subtract", g.add("multiply", x, x), g.add("multiply", y, y)),
        lambda g, x, y: g.add("multiply", g.add("add", x, y), g.add("subtract", x, y)),
    ),
    "nested products": (
        "nested",
        lambda g, x, y: g.add("multiply", x, y, x),
        lambda g, x, y: g.add("multiply", g.add("multiply", x, x), y),
    ),
    "nested concatenations": (
        "nested",
        lambda g, x, y: g.add("concat", x, y, x),
        lambda g, x, y: g.add("concat", x, g.add("concat", y, x)),
    ),
    "idempotent": (
        "idempotent",
        lambda g, x, y: g.add("relu", x),
        lambda g, x, y: g.add("relu", g.add("relu", x)),
    ),
    "uniform": (
        "uniform",
        lambda g, x, y: convolution(g, g.add("batch_norm", g.add("zero", x)), 1),
        lambda g, x, y: pool(g, convolution(g, pool(g, g.add("batch_norm", g.add("zero", x))), 1)),
    ),
    "equal parts": (
        "merged",
        lambda g, x, y: twice(g, "concat", g.add("tanh", x)),
        lambda g, x, y: g.add("concat", g.add("tanh", x), g.add("tanh", x)),
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_graphs_match_by_a_rule(name):
    rule, one, two = EQUAL[name]
    assert found(one).key == found(two).key is not None
    assert rule in " ".join(found(two).rewrites)


DIFFERENT: dict[str, tuple[Writing, Writing]] = {
    "two of equal weights": (
        lambda g, x, y: shared(g, x),
        lambda g, x, y: g.add("add", convolution(g, x), convolution(g, x)),
    ),
    "two draws": (
        lambda g, x, y: twice(g, "add", g.add("dropout", x)),
        lambda g, x, y: g.add("add", g.add("dropout", x), g.add("dropout", x)),
    ),
    "subtraction's order": (
        lambda g, x, y: g.add("subtract", x, y),
        lambda g, x, y: g.add("subtract", y, x),
    ),
    "concatenation's order": (
        lambda g, x, y: g.add("concat", x, y),
        lambda g, x, y: g.add("concat", y, x),
    ),
    "a factor that a function keeps": (
        lambda g, x, y: g.add("tanh", g.add("add", x, x)),
        lambda g, x, y: twice(g, "add", g.add("tanh", x)),
    ),
    "a factor that a bias keeps": (
        lambda g, x, y: convolution(g, g.add("add", x, x), bias=True),
        lambda g, x, y: twice(g, "add", convolution(g, x, bias=True)),
    ),
    "a factor before a normalisation": (
        lambda g, x, y: g.add("batch_norm", convolution(g, x)),
        lambda g, x, y: g.add("batch_norm", convolution(g, g.add("add", x, x))),
    ),
    "a zero that a bias moves": (
        lambda g, x, y: g.add("zero", x),
        lambda g, x, y: convolution(g, g.add("zero", x), bias=True),
    ),
    "a zero that a normalisation moves": (
        lambda g, x, y: g.add("tanh", x),
        lambda g, x, y: g.add("tanh", g.add("add", x, g.add("batch_norm", g.add("zero", x)))),
    ),
    "another maximum of a sum": (
        lambda g, x, y: g.add("max_pool2d", g.add("add", x, y)),
        lambda g, x, y: g.add("add", g.add("max_pool2d", x), g.add("max_pool2d", y)),
    ),
    "a border that a constant meets": (
        lambda g, x, y: convolution(g, g.add("batch_norm", g.add("zero", x))),
        lambda g, x, y: pool(g, convolution(g, g.add("batch_norm", g.add("zero", x)))),
    ),
    "pooling of other sizes": (
        lambda g, x, y: pool(g, x),
        lambda g, x, y: g.add("avg_pool2d", x, kernel=5, stride=1, padding=2),
    ),
    "one function in place of another": (
        lambda g, x, y: g.add("gelu", x),
        lambda g, x, y: g.add("silu", x),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_graphs_do_not_match(name):
    one, two = DIFFERENT[name]
    assert None not in (found(one).key, found(two).key)
    assert found(one).key != found(two).key


def test_no_rule_is_reported_if_nothing_changes():
    assert found(lambda g, x, y: g.add("add", g.add("relu", x), convolution(g, y))).rewrites == ()


def test_an_involution_is_undone():
    name = "test_rewriting_flip"
    words = Algebra(involutive=True, linear=True)
    declare(Operation(name, lambda shapes: torch.nn.Identity(), lambda shapes: shapes[0], 1, words))
    twice = found(lambda g, x, y: g.add("tanh", g.add(name, g.add(name, x))))
    assert twice.key == found(lambda g, x, y: g.add("tanh", x)).key
    assert "an involution is undone" in twice.rewrites


def grown(layers: int) -> Graph:
    """Sums and products whose expansion into chains of three poolings would grow exponentially."""
    graph = Graph()
    h = graph.input("x", (2, 9, 9))
    for _ in range(layers):
        sizes = (3, 5, 7)
        pooled = [
            graph.add("avg_pool2d", h, kernel=size, stride=1, padding=size // 2) for size in sizes
        ]
        h = graph.add("add", h, *pooled)
        h = graph.add("multiply", h, h)
    graph.output(h)
    return graph


def test_sums_do_not_grow_exponentially():
    assert canonical(grown(12)).key == canonical(grown(12)).key is not None
    assert canonical(grown(12)).key != canonical(grown(11)).key


# Random graphs of one shape.
@dataclass(frozen=True)
class Step:
    """An operation on earlier values, given by position; positions 0 and 1 are the inputs."""

    operation: str
    sources: tuple[int, ...]
    attributes: tuple[tuple[str, object], ...] = ()


POOL = (("kernel", 3), ("stride", 1), ("padding", 1))
ONE_INPUT = [
    *((name, ()) for name in ("relu", "tanh", "sigmoid", "identity", "zero", "negate")),
    ("avg_pool2d", POOL),
    ("max_pool2d", POOL),
    ("batch_norm", ()),
    *(
        ("conv2d", (("channels", 3), ("kernel", kernel), ("bias", bias)))
        for kernel, bias in [(1, False), (3, False), (3, True)]
    ),
]
WEIGHTED = {"conv2d", "batch_norm"}


@st.composite
def programs(draw: st.DrawFn) -> tuple[Step, ...]:
    steps: list[Step] = []
    for place in range(2, draw(st.integers(4, 9))):
        source = st.integers(0, place - 1)
        name = draw(st.sampled_from(["one", "one", "add", "add", "subtract", "multiply"]))
        if name == "one":
            operation, attributes = draw(st.sampled_from(ONE_INPUT))
            steps.append(Step(operation, (draw(source),), attributes))
        else:
            count = draw(st.integers(2, 3)) if name == "add" else 2
            steps.append(Step(name, tuple(draw(source) for _ in range(count))))
    return tuple(steps)


@dataclass
class Writer:
    """Writes a program as a graph; with a `Random`, as an equal but different one."""

    steps: tuple[Step, ...]
    rng: random.Random | None = None
    graph: Graph = field(default_factory=Graph)
    names: dict[int, str] = field(default_factory=dict)

    def written(self) -> Graph:
        for place, name in enumerate("xy"):
            self.names[place] = self.graph.input(name, SHAPE)
        for place in self._order():
            self.names[place] = self._write(place, self.steps[place - 2])
        # The output reads every value that no step reads, so that little of a program is dead.
        read = {source for step in self.steps for source in step.sources}
        ends = [self.names[place] for place in range(2, len(self.steps) + 2) if place not in read]
        scaled = [self._scaled(end, count) for count, end in enumerate(ends, 1)]
        self.graph.output(self.graph.add("add", *self._mixed(scaled)))
        return self.graph

    def _scaled(self, name: str, count: int) -> str:
        return self.graph.add("add", *[name] * count)

    def _order(self) -> list[int]:
        waiting, order = list(range(2, len(self.steps) + 2)), []
        while waiting:
            ready = [
                place
                for place in waiting
                if all(s < 2 or s in order for s in self.steps[place - 2].sources)
            ]
            order.append(self.rng.choice(ready) if self.rng else ready[0])
            waiting.remove(order[-1])
        return order

    def _mixed(self, names: list[str]) -> list[str]:
        return self.rng.sample(names, len(names)) if self.rng else names

    def _write(self, place: int, step: Step) -> str:
        sources = [self.names[source] for source in step.sources]
        if not self.rng:
            return self._plain(place, step, sources)
        if self.rng.random() < 0.3:
            self.graph.add("linear", self._any(), features=7)
        if step.operation in ("add", "multiply"):
            sources = self._mixed(sources)
        writings = [self._plain, *([self._other] * 2)]
        return self._around(self.rng.choice(writings)(place, step, sources))

    def _plain(self, place: int, step: Step, sources: list[str]) -> str:
        name = f"weights{place}" if step.operation in WEIGHTED else None
        return self.graph.add(step.operation, *sources, name=name, **dict(step.attributes))

    def _any(self) -> str:
        return self.rng.choice(list(self.names.values()))

    def _around(self, name: str) -> str:
        add = self.graph.add
        around = self.rng.randrange(6)
        if around == 0:
            return add("identity", name)
        if around == 1:
            return add("negate", add("negate", name))
        if around == 2:
            return add("add", add("zero", self._any()), name)
        if around == 3:
            other = self._any()
            return add("subtract", add("add", other, name), other)
        return name

    def _other(self, place: int, step: Step, sources: list[str]) -> str:
        add, first = self.graph.add, sources[0]
        if step.operation == "relu":
            return add("relu", add("relu", first))
        if step.operation == "identity":
            return first
        if step.operation == "zero":
            return add("subtract", first, first)
        if step.operation == "negate":
            return add("subtract", add("zero", first), first)
        if step.operation == "subtract":
            return add("add", add("negate", sources[1]), first)
        if step.operation == "add":
            return add("subtract", first, add("negate", add("add", *sources[1:])))
        if step.operation == "multiply":
            other = add("multiply", *sources[1:])
            return add("negate", add("multiply", add("negate", other), first))
        if step.operation == "avg_pool2d":
            whole = pool(self.graph, add("add", first, self.names[0]))
            return add("subtract", whole, pool(self.graph, self.names[0]))
        return self._plain(place, step, sources)


INPUTS = torch.randn(2, 4, *SHAPE, dtype=torch.float64, generator=torch.manual_seed(1))


def in_float64(graph: Graph) -> torch.nn.Module:
    return graph.build().to(torch.float64)


def outputs(module: torch.nn.Module) -> torch.Tensor:
    """The outputs in training mode and then in evaluation mode, with updated normalisations."""
    with torch.no_grad():
        return torch.stack([module.train()(*INPUTS), module.eval()(*INPUTS)])


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Change all weights of a module, so that none has a special value."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, dtype=weight.dtype, generator=generator) / 2)
    return module


@given(programs(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_rewritten_programs_have_the_same_key(steps, rng):
    one, two = Writer(steps).written(), Writer(steps, rng).written()
    assert canonical(one).key == canonical(two).key is not None
    module, other = randomised(in_float64(one)), in_float64(two)
    other.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(outputs(module), outputs(other), rtol=1e-8, atol=1e-8)


def signature(graph: Graph) -> torch.Tensor:
    """Values that do not depend on the naming of weights: outputs and sums of squared gradients.

    Nodes of one kind get the same weights, so they are interchangeable unless one of them is used
    twice: then its gradients are added before they are squared.
    """
    module = in_float64(graph)
    for weight in module.parameters():
        generator = torch.Generator().manual_seed(weight.numel())
        shift = torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        weight.data = 1 + shift / 2 if weight.dim() == 1 else shift / weight[0].numel() ** 0.5
    loss = (module(*INPUTS) * torch.linspace(-1, 2, 5, dtype=torch.float64)).pow(2).mean()
    if loss.requires_grad:
        loss.backward()
    squares = [w.grad.pow(2).sum() for w in module.parameters() if w.grad is not None]
    kept = [value for value in squares if value > 1e-20]
    total = sum(kept, start=torch.zeros((), dtype=torch.float64))
    return torch.cat([outputs(module).flatten(), torch.stack([loss.detach(), total])])


def differs(one: Graph, two: Graph) -> bool:
    return not torch.allclose(signature(one), signature(two), rtol=1e-7, atol=1e-9)


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """A program, and another one that differs from it in one place."""
    steps = draw(programs())
    place = draw(st.integers(0, len(steps) - 1))
    step = steps[place]
    if step.operation in WEIGHTED and draw(st.booleans()):
        # Half of its readers read a second step of the same kind instead.
        readers = [i for i, each in enumerate(steps) if place + 2 in each.sources]
        assume(len(readers) > 1)
        copy = len(steps) + 2
        changed = list(steps)
        reader = changed[readers[-1]]
        sources = tuple(copy if s == place + 2 else s for s in reader.sources)
        changed[readers[-1]] = Step(reader.operation, sources, reader.attributes)
        return steps, (*changed, step)
    if step.operation == "subtract":
        other = Step(step.operation, step.sources[::-1])
    elif len(step.sources) == 1:
        operation, attributes = draw(st.sampled_from(ONE_INPUT))
        other = Step(operation, step.sources, attributes)
    else:
        operation = "multiply" if step.operation == "add" else "add"
        other = Step(operation, step.sources)
    return steps, (*steps[:place], other, *steps[place + 1 :])


@given(near_misses())
@settings(max_examples=150, deadline=None)
def test_near_misses_have_different_keys(pair):
    one, two = (Writer(steps).written() for steps in pair)
    assume(differs(one, two))
    assert None not in (canonical(one).key, canonical(two).key)
    assert canonical(one).key != canonical(two).key


def test_graphs_with_equal_keys_have_equal_signatures():
    rng = random.Random(3)
    of_key: dict[str, list[Graph]] = {}
    for _ in range(600):
        steps = []
        for place in range(2, rng.randint(4, 6)):
            sources = tuple(rng.randrange(place) for _ in range(2))
            if rng.random() < 0.5:
                operation, attributes = rng.choice(ONE_INPUT)
                steps.append(Step(operation, sources[:1], attributes))
            else:
                steps.append(Step(rng.choice(["add", "subtract", "multiply"]), sources))
        graph = Writer(tuple(steps)).written()
        of_key.setdefault(str(canonical(graph).key), []).append(graph)
    groups = [graphs for graphs in of_key.values() if len(graphs) > 1]
    assert len(groups) > 30
    for first, *others in groups:
        assert not any(differs(first, other) for other in others[:5])
