"""Level L1: equal functions have equal keys, as far as their form shows."""

import itertools
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx
import pytest
from cells import CELLS, CONV1, EDGES, NONE, POOL, SKIP, Truth
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from automl import Algebra, Graph, GraphError, Open, Operation, declare
from automl.identity.graphs.canonical import Canonical, canonical

# Operations without algebra, so that rewriting only drops dead nodes.
ORDERED, SORTED = "test_canonical_ordered", "test_canonical_sorted"


def _declare(name: str, algebra: Algebra) -> None:
    declare(
        Operation(
            name,
            lambda shapes, label=0: nn.Bilinear(1, 1, 1),
            lambda shapes, label=0: shapes[0],
            inputs=None,
            algebra=algebra,
        )
    )


_declare(ORDERED, Algebra(parametric=True))
_declare(SORTED, Algebra(parametric=True, commutative=True))


def vectors(features: int = 4) -> tuple[Graph, str]:
    graph = Graph()
    return graph, graph.input("x", (features,))


def image(channels: int = 4, side: int = 8) -> tuple[Graph, str]:
    graph = Graph()
    return graph, graph.input("x", (channels, side, side))


# Labelled graphs: (operation, label, sources), each node after those it reads.
Step = tuple[str, int, tuple[int, ...]]


def plain(steps: Sequence[Step]) -> Graph:
    """Node 0 is the input; the output reads all nodes that no other node reads, in any order."""
    graph, x = vectors(1)
    names = [x]
    for name, label, sources in steps:
        names.append(graph.add(name, *(names[source] for source in sources), label=label))
    read = {source for _, _, sources in steps for source in sources}
    ends = [name for index, name in enumerate(names) if index not in read]
    graph.output(graph.add(SORTED, *ends, label=99))
    return graph


def shuffled(steps: Sequence[Step], rng: random.Random) -> list[Step]:
    """The same graph in another order, including the sources of unordered nodes."""
    places, made = {0: 0}, []
    waiting = list(enumerate(steps, 1))
    while waiting:
        ready = [each for each in waiting if all(source in places for source in each[1][2])]
        index, (name, label, sources) = rng.choice(ready)
        waiting.remove((index, (name, label, sources)))
        moved = [places[source] for source in sources]
        if name == SORTED:
            rng.shuffle(moved)
        made.append((name, label, tuple(moved)))
        places[index] = len(made)
    return made


def as_networkx(steps: Sequence[Step]) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    graph.add_node(0, label="input")
    for index, (name, label, sources) in enumerate(steps, 1):
        graph.add_node(index, label=(name, label))
        for port, source in enumerate(sources):
            graph.add_edge(source, index, port=port if name == ORDERED else 0)
    return graph


def isomorphic(one: nx.MultiDiGraph, two: nx.MultiDiGraph) -> bool:
    return nx.is_isomorphic(
        one,
        two,
        node_match=lambda a, b: a["label"] == b["label"],
        edge_match=lambda a, b: (
            Counter(e["port"] for e in a.values()) == Counter(e["port"] for e in b.values())
        ),
    )


def some_steps(rng: random.Random) -> list[Step]:
    steps: list[Step] = []
    for index in range(1, rng.randint(2, 6)):
        name = rng.choice([ORDERED, SORTED])
        sources = tuple(rng.randrange(index) for _ in range(rng.randint(1, 2)))
        steps.append((name, rng.randrange(2) if rng.random() < 0.2 else 0, sources))
    return steps


def test_keys_agree_with_isomorphism():
    rng = random.Random(0)
    graphs = [some_steps(rng) for _ in range(400)]
    keys = [canonical(plain(steps)).key for steps in graphs]
    for steps, key in zip(graphs, keys, strict=True):
        assert canonical(plain(shuffled(steps, rng))).key == key
    equal = different = 0
    drawn = [as_networkx(steps) for steps in graphs]
    for one, two in itertools.combinations(range(len(graphs)), 2):
        shape = [(g.number_of_nodes(), g.number_of_edges()) for g in (drawn[one], drawn[two])]
        if shape[0] != shape[1]:
            assert keys[one] != keys[two]
            continue
        same = isomorphic(drawn[one], drawn[two])
        assert (keys[one] == keys[two]) == same, (graphs[one], graphs[two])
        equal, different = equal + same, different + (not same)
    assert equal > 400
    assert different > 2_000


# Graphs that plain colour refinement cannot distinguish.
def incidence(pairs: Iterable[tuple[int, int]], count: int) -> list[Step]:
    """`count` nodes that read the input, and one node per pair that reads both."""
    steps: list[Step] = [(ORDERED, 0, (0,)) for _ in range(count)]
    return steps + [(SORTED, 1, (one + 1, two + 1)) for one, two in pairs]


def ring(*vertices: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*vertices, vertices[0]]))


def differ_beyond_colour(one: Canonical, two: Canonical) -> bool:
    """Whether two keys differ although colour refinement sees no difference."""
    return one.colour == two.colour and None not in (one.key, two.key) and one.key != two.key


def test_two_graphs_of_ten_vertices_that_colour_refinement_confuses_differ():
    octagon = incidence(ring(0, 1, 2, 3), 4)
    squares = incidence(ring(0, 1) + ring(2, 3), 4)
    graphs = [plain(steps) for steps in (octagon, squares)]
    assert [len(graph.dag) for graph in graphs] == [10, 10]
    assert differ_beyond_colour(*map(canonical, graphs))


def convolutions_in_pairs(pairs: Iterable[tuple[int, int]]) -> Graph:
    graph, x = image()
    made = [graph.add("conv2d", x, channels=4, bias=False) for _ in range(6)]
    ends = [graph.add("relu", graph.add("add", made[a], made[b])) for a, b in pairs]
    graph.output(graph.add("add", *ends))
    return graph


HEXAGON = ring(0, 1, 2, 3, 4, 5)
TRIANGLES = ring(0, 1, 2) + ring(3, 4, 5)


def test_a_hexagon_of_convolutions_is_not_two_triangles():
    assert differ_beyond_colour(
        canonical(convolutions_in_pairs(HEXAGON)), canonical(convolutions_in_pairs(TRIANGLES))
    )


def test_the_key_of_a_hexagon_does_not_depend_on_order():
    rng = random.Random(1)
    keys = set()
    for _ in range(20):
        names = rng.sample(range(6), 6)
        pairs = [tuple(rng.sample((names[a], names[b]), 2)) for a, b in HEXAGON]
        keys.add(canonical(convolutions_in_pairs(rng.sample(pairs, 6))).key)
    assert len(keys) == 1


def rook() -> list[tuple[int, int]]:
    """The 4x4 rook's graph, strongly regular like Shrikhande's but not isomorphic to it."""
    cells = list(itertools.product(range(4), repeat=2))
    return [
        (cells.index(a), cells.index(b))
        for a, b in itertools.combinations(cells, 2)
        if a[0] == b[0] or a[1] == b[1]
    ]


def shrikhande() -> list[tuple[int, int]]:
    cells = list(itertools.product(range(4), repeat=2))
    steps = {(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)}
    return [
        (cells.index(a), cells.index(b))
        for a, b in itertools.combinations(cells, 2)
        if ((a[0] - b[0]) % 4, (a[1] - b[1]) % 4) in steps
    ]


def test_strongly_regular_graphs_have_different_keys():
    one, two = (canonical(plain(incidence(pairs, 16)), 512) for pairs in (rook(), shrikhande()))
    assert differ_beyond_colour(one, two)
    mixed = shuffled(incidence(rook(), 16), random.Random(2))
    assert canonical(plain(mixed), 512).key == one.key


def test_beyond_the_limit_a_graph_has_a_colour_but_no_key():
    graph = convolutions_in_pairs(HEXAGON)
    assert canonical(graph, 1).key is None
    assert canonical(graph, 1).colour == canonical(graph).colour
    hard = plain(incidence(shrikhande(), 16))
    assert canonical(hard, 3).key is None


# Symmetric graphs, whose cost must not grow with the number of their symmetries.
def chained(cells: int, cell: str) -> Graph:
    graph, h = vectors()
    for _ in range(cells):
        if cell == "twins":
            ends = [graph.add("relu", graph.add("linear", h, features=4)) for _ in range(2)]
        else:
            heads = [graph.add("linear", h, features=4) for _ in range(2)]
            ends = [graph.add("linear", head, features=4) for head in heads * 2]
            ends = [graph.add("tanh", end) for end in ends]
        h = graph.add("add", *ends)
    graph.output(h)
    return graph


@pytest.mark.parametrize("cell", ["twins", "pairs"])
def test_a_chain_of_symmetric_cells_stays_cheap(cell):
    """Of 2^15 equal orders, the search visits one leaf per symmetry besides the first."""
    assert canonical(chained(15, cell), max_leaves=16).key is not None
    assert canonical(chained(15, cell)).key != canonical(chained(14, cell)).key


def test_twins_stay_cheap():
    graph, x = vectors()
    ends = [graph.add("tanh", graph.add("linear", x, features=4)) for _ in range(7)]
    graph.output(graph.add("add", *ends))
    assert canonical(graph, max_leaves=1).key is not None


# What a label must contain.
def key(graph: Graph) -> str | None:
    return canonical(graph).key


def one_node(kind: str | Open, shape: tuple[int, ...] = (4, 8, 8), **attributes: object) -> Graph:
    graph = Graph()
    graph.output(graph.add(kind, graph.input("x", shape), **attributes))
    return graph


def test_defaults_equal_explicit_attributes():
    omitted = one_node("conv2d", channels=4)
    assert key(omitted) == key(one_node("conv2d", bias=True, stride=1, kernel=3, channels=4))
    assert key(omitted) != key(one_node("conv2d", channels=4, kernel=5))
    assert key(omitted) != key(one_node("conv2d", channels=4, bias=False))


def test_attributes_of_different_types_differ():
    one, truth, real = (
        key(plain([(ORDERED, label, (0,))]))
        for label in (1, True, 1.0)  # type: ignore[list-item]
    )
    assert len({one, truth, real}) == 3
    assert key(plain([(ORDERED, 1, (0,))])) == one


def test_inputs_differ_by_position_and_shape():
    def difference(swap: bool, second: int = 4, third: bool = False) -> Graph:
        graph = Graph()
        x, y = graph.input("x", (4,)), graph.input("y", (second,))
        if third:
            graph.input("z", (4,))
        y = graph.add("linear", y, features=4)
        graph.output(graph.add("subtract", *((y, x) if swap else (x, y))))
        return graph

    keys = [key(difference(False)), key(difference(True)), key(difference(False, 5))]
    assert len({*keys, key(difference(False, third=True))}) == 4
    assert key(one_node("relu", (4,))) != key(one_node("relu", (5,)))


def test_open_choices_differ_by_decision_distribution_and_attributes():
    def opened(name: str = "kind", options: Sequence[str] = ("relu", "linear"), **more: int) -> str:
        return key(one_node(Open(name, CategoricalDistribution(options)), (4,), **more)) or ""

    keys = {
        opened(features=4),
        opened("other", features=4),
        opened(options=("linear", "relu"), features=4),
        opened(options=("tanh", "linear"), features=4),
        key(one_node("relu", (4,))),
    }
    assert len(keys) == 5
    assert opened(features=4) == opened(features=4)


def test_open_attributes_differ_by_decision():
    def dropped(name: str, high: float) -> str | None:
        return key(one_node("dropout", (4,), p=Open(name, FloatDistribution(0, high))))

    assert len({dropped("p", 0.5), dropped("q", 0.5), dropped("p", 0.4)}) == 3
    assert dropped("p", 0.5) == dropped("p", 0.5)


def test_open_widths_differ_by_decision_and_by_what_is_derived_from_it():
    width = Open("width", CategoricalDistribution([4, 8]))

    def after(features: int | Open) -> str | None:
        graph, x = vectors()
        graph.output(graph.add("linear", graph.add("linear", x, features=features), features=2))
        return key(graph)

    keys = [
        after(8),
        after(width),
        after(Open("other", CategoricalDistribution([4, 8]))),
        after(Open("width", CategoricalDistribution([6, 8]))),
        after(width.map(lambda w: w // 2)),
        after(width.map(lambda w: w + 4)),
    ]
    assert len({*keys, None}) == 7
    assert after(width) == keys[1]
    assert after(width.map(lambda w: 2 * w // 4)) == keys[4]


def test_open_picks_differ_by_decision_and_closed_ones_are_what_they_pick():
    def picked(index: int | Open | None, swapped: bool = False) -> str | None:
        graph, x = vectors()
        inputs = [graph.add("relu", x), graph.add("tanh", x)]
        inputs = inputs[::-1] if swapped else inputs
        graph.output(inputs[0] if index is None else graph.add("pick", *inputs, index=index))
        return key(graph)

    depth, other = (Open(name, IntDistribution(0, 1)) for name in ("depth", "other"))
    assert picked(0) == picked(None)
    assert len({picked(0), picked(1), picked(depth), picked(other), picked(depth, True)}) == 5


def test_zeros_of_different_open_widths_differ():
    """Nothing but their width shows in the output, and it is that of another decision."""

    def normalized(name: str) -> str | None:
        graph, x = vectors()
        a, b = (
            graph.add("linear", x, features=Open(each, CategoricalDistribution([2, 4])))
            for each in ("a", "b")
        )
        zeros = graph.add("zero", a if name == "a" else b)
        both = graph.add("layer_norm", graph.add("concat", x, zeros))
        graph.output(graph.add("linear", graph.add("relu", both), features=2))
        return key(graph)

    assert normalized("a") is not None
    assert normalized("a") != normalized("b")


def test_a_concatenation_with_an_open_width_keeps_its_order():
    width = Open("width", CategoricalDistribution([2, 4]))

    def joined(order: Sequence[int], last: int | Open) -> str | None:
        graph, x = vectors()
        parts = [graph.add(step, graph.add("linear", x, features=4)) for step in ("relu", "tanh")]
        fixed = [parts[place] for place in order]
        h = graph.add("concat", *fixed, graph.add("linear", x, features=last))
        graph.output(graph.add("linear", h, features=2))
        return key(graph)

    assert joined([0, 1], 4) == joined([1, 0], 4)
    assert joined([0, 1], width) != joined([0, 1], 4)


def test_an_attribute_that_cannot_be_encoded_gives_no_key():
    label: object = object()
    found = canonical(plain([(ORDERED, label, (0,))]))  # type: ignore[list-item]
    assert found.key is None
    assert len(found.colour) == 64


def test_custom_operations_and_live_weights_are_reported():
    graph, x = vectors(1)
    graph.add("linear", x, features=7, name="dead")
    zero = graph.add("zero", x)
    void = graph.add("linear", zero, features=1, bias=False, name="void")
    kept = graph.add("linear", x, features=1, name="kept")
    graph.output(graph.add("add", void, graph.add("relu", kept)))
    found = canonical(graph)
    assert found.parametric == ("kept",)
    assert not found.custom_operations
    assert canonical(plain([(ORDERED, 0, (0,))])).custom_operations


def test_a_redeclared_operation_is_read_again():
    name = "test_canonical_again"

    def add(algebra: Algebra) -> str | None:
        operation = Operation(name, lambda shapes: nn.Tanh(), lambda shapes: shapes[0], 1, algebra)
        declare(operation)
        graph, x = vectors()
        graph.output(graph.add(name, graph.add(name, x)))
        return key(graph)

    twice = add(Algebra())
    assert add(Algebra(idempotent=True)) != twice
    assert add(Algebra()) == twice


def test_a_graph_without_output_is_refused():
    with pytest.raises(GraphError, match="no output"):
        canonical(Graph())


def test_keys_are_the_same_in_another_process():
    code = (
        "from test_canonical import HEXAGON, convolutions_in_pairs, canonical;"
        "print(canonical(convolutions_in_pairs(HEXAGON)).key)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == key(convolutions_in_pairs(HEXAGON))


# Channel order.
@dataclass
class Joined:
    """Two convolutions of different kernel sizes, concatenated in either order."""

    swap: bool
    graph: Graph = field(default_factory=Graph)

    def __post_init__(self) -> None:
        self.x = self.graph.input("x", (8, 6, 6))

    def join(self, source: str, swap: bool | None = None) -> str:
        parts = [self.convolution(source, 1), self.convolution(source, 3)]
        order = self.swap if swap is None else swap
        return self.graph.add("concat", *(reversed(parts) if order else parts))

    def convolution(self, source: str, kernel: int) -> str:
        made = self.graph.add("conv2d", source, channels=4, kernel=kernel, bias=False)
        return self.graph.add("relu", self.graph.add("batch_norm", made))

    def key(self, output: str) -> str | None:
        self.graph.output(output)
        return key(self.graph)


def joined_then(finish: str) -> Iterator[str | None]:
    for swap in (False, True):
        made = Joined(swap)
        graph, h = made.graph, made.join(made.x)
        if finish == "convolution":
            end = graph.add("global_avg_pool2d", graph.add("conv2d", h, channels=3))
        elif finish == "residual convolution":
            end = graph.add("conv2d", h, channels=8)
            end = graph.add("add", end, graph.add("max_pool2d", h, kernel=3, stride=1, padding=1))
            end = graph.add("conv2d", end, channels=3)
        elif finish == "linear":
            end = graph.add("linear", graph.add("flatten", graph.add("relu", h)), features=3)
        elif finish == "output":
            end = h
        elif finish == "input":
            end = graph.add("conv2d", graph.add("add", h, made.x), channels=3)
        elif finish == "two":
            end = graph.add("conv2d", graph.add("add", h, made.join(made.x, False)), channels=3)
        elif finish == "rows":
            end = graph.add("linear", h, features=3)
        yield made.key(end)


@pytest.mark.parametrize("finish", ["convolution", "residual convolution", "linear"])
def test_channels_read_only_by_weights_have_no_order(finish):
    assert len(set(joined_then(finish))) == 1


@pytest.mark.parametrize("finish", ["output", "input", "two", "rows"])
def test_channels_read_by_other_operations_keep_their_order(finish):
    assert len(set(joined_then(finish))) == 2


def test_consecutive_cells_have_independent_channel_orders():
    keys = set()
    for first, second in itertools.product([False, True], repeat=2):
        made = Joined(False)
        h = made.graph.add("conv2d", made.join(made.x, first), channels=8)
        h = made.graph.add("conv2d", made.join(h, second), channels=3)
        keys.add(made.key(made.graph.add("global_avg_pool2d", h)))
    assert len(keys) == 1


def test_channels_bound_by_coarser_blocks_keep_their_order():
    # Both have 32 features: 8 channels of 4, and 4 channels of 8 that cannot be split.
    keys = set()
    for swap in (False, True):
        made = Joined(swap)
        graph = made.graph
        small = graph.add("max_pool2d", made.join(made.x), kernel=3)
        coarse = graph.add("conv2d", made.x, channels=4)
        coarse = graph.add("max_pool2d", coarse, kernel=3)
        coarse = graph.add("concat", coarse, coarse)
        ends = [graph.add("flatten", end) for end in (small, coarse)]
        keys.add(made.key(graph.add("linear", graph.add("add", *ends), features=2)))
    assert len(keys) == 2


# All cells of NAS-Bench-201: 4 nodes, 6 edges, 5 operations.
def network(cell: Sequence[int]) -> Graph:
    graph, x = image()
    nodes = [x]
    for node in (1, 2, 3):
        read = [
            _edge(graph, nodes[source], operation)
            for (source, target), operation in zip(EDGES, cell, strict=True)
            if target == node
        ]
        nodes.append(graph.add("add", *read))
    pooled = graph.add("global_avg_pool2d", graph.add("relu", nodes[3]))
    graph.output(graph.add("linear", pooled, features=10))
    return graph


def _edge(graph: Graph, source: str, operation: int) -> str:
    if operation == NONE:
        return graph.add("zero", source)
    if operation == SKIP:
        return graph.add("identity", source)
    if operation == POOL:
        return graph.add("avg_pool2d", source, kernel=3, stride=1, padding=1)
    h = graph.add("relu", source)
    kernel = 1 if operation == CONV1 else 3
    h = graph.add("conv2d", h, channels=4, kernel=kernel, bias=False)
    return graph.add("batch_norm", h)


def compared(cells: Sequence[Sequence[int]]) -> tuple[int, set[str | None]]:
    """Assert that keys agree with the true functions of cells.

    Returns:
        The number of functions, and the keys of cells in which no convolution reads a zero.
    """
    keys_of: dict[object, set[str | None]] = {}
    forms_of: dict[str | None, set[object]] = {}
    clean = set()
    for cell in cells:
        truth, found = Truth(cell), key(network(cell))
        form = truth.form()
        keys_of.setdefault(form, set()).add(found)
        forms_of.setdefault(found, set()).add(form)
        if not truth.reads_zero:
            clean.add(found)
    assert all(len(keys) == 1 for keys in keys_of.values()), "equal cells missed"
    assert all(len(forms) == 1 for forms in forms_of.values()), "different cells merged"
    return len(keys_of), clean


def test_some_nasbench201_cells_have_equal_keys_exactly_for_equal_functions():
    functions, _ = compared(random.Random(4).sample(CELLS, 3_000))
    assert functions > 1_000


@pytest.mark.long
def test_all_nasbench201_cells_have_equal_keys_exactly_for_equal_functions():
    functions, clean = compared(CELLS)
    assert sum(not Truth(cell).reads_zero for cell in CELLS) == 13_335
    assert (functions, len(clean)) == (5_234, 5_044)


@pytest.mark.parametrize("operation", ["dropout", "gaussian_noise", "cutout", "blend"])
def test_regularization_is_an_operation_of_automl(operation):
    graph, x = image()
    graph.output(graph.add(operation, x))
    assert not canonical(graph).custom_operations
