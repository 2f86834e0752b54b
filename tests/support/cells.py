"""All cells of NAS-Bench-201 (4 nodes, 6 edges, 5 operations), and their functions."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NONE, SKIP, CONV1, CONV3, POOL = OPERATIONS = range(5)
CELLS: list[tuple[int, ...]] = list(itertools.product(OPERATIONS, repeat=len(EDGES)))


class Truth:
    """A cell's function, as a sum of objects, each pooled a number of times.

    The cell's input is object 0, and each convolution makes a new object. The convolution of a zero
    is a trainable constant, whatever its kernel. Pooling is linear, and does not change an object
    that is the same at every position: a constant, or a 1x1 convolution of constants.

    Args:
        cell: The operation on each edge.
        trained: Also treat functions as equal if gradient training from the usual initial weights
            makes them equal. A constant is the shift of a normalization, which starts at zero. If a
            convolution reads only such constants, the rectifier before it passes no gradient,
            because its own at zero is zero: the constants stay zero, as if it read a zero.
    """

    def __init__(self, cell: Sequence[int], *, trained: bool = False) -> None:
        self.made: dict[int, tuple[object, Counter]] = {}
        self.flat: set[int] = set()
        self.reads_zero = False
        values = [Counter({(0, 0): 1})]
        for node in (1, 2, 3):
            value: Counter = Counter()
            for (source, target), operation in zip(EDGES, cell, strict=True):
                if target == node:
                    value.update(self._edge(values[source], operation))
            values.append(value)
        self.output = values[3]
        if trained:
            for thing in self._still_readers():
                self.made[thing] = ("constant", Counter())

    def _still_readers(self) -> list[int]:
        """The convolutions that read only constants without any gradient."""
        still = set(self.made)
        while True:
            constant = {t for t, (_, value) in self.made.items() if _things(value) <= still}
            moved = set(_things(self.output))
            for thing in self._needed():
                if thing not in constant:
                    moved |= _things(self.made[thing][1])
            left = (constant & still) - moved
            if left == still:
                return [t for t in constant if self.made[t][1]]
            still = left

    def _edge(self, value: Counter, operation: int) -> Counter:
        if operation == NONE:
            return Counter()
        if operation == SKIP:
            return value
        if operation == POOL:
            pooled: Counter = Counter()
            for (thing, times), count in value.items():
                pooled[thing, times + (thing not in self.flat)] += count
            return pooled
        thing = len(self.made) + 1
        self.made[thing] = (operation if value else "constant", value)
        self.reads_zero |= not value
        if not value or (operation == CONV1 and all(each in self.flat for each, _ in value)):
            self.flat.add(thing)
        return Counter({(thing, 0): 1})

    def form(self) -> object:
        """The smallest form over all numberings of the objects that the output depends on."""
        alike: dict[object, list[int]] = {}
        for thing in sorted(self._needed()):
            alike.setdefault(self._unrolled(thing), []).append(thing)
        groups = [alike[shape] for shape in sorted(alike, key=repr)]
        orders = itertools.product(*map(itertools.permutations, groups))
        return min(map(self._written, orders), key=repr)

    def _needed(self) -> set[int]:
        needed, waiting = set(), [self.output]
        while waiting:
            for thing, _ in waiting.pop():
                if thing and thing not in needed:
                    needed.add(thing)
                    waiting.append(self.made[thing][1])
        return needed

    def _unrolled(self, thing: int) -> object:
        if not thing:
            return "input"
        kind, value = self.made[thing]
        parts = [(self._unrolled(each), times, n) for (each, times), n in value.items()]
        return (kind, tuple(sorted(parts, key=repr)))

    def _written(self, order: Iterable[Sequence[int]]) -> object:
        things = [thing for group in order for thing in group]
        numbers = {0: 0, **{thing: number for number, thing in enumerate(things, 1)}}

        def renamed(value: Counter) -> tuple[tuple[int, int, int], ...]:
            return tuple(sorted((numbers[each], times, n) for (each, times), n in value.items()))

        rows = [(self.made[thing][0], renamed(self.made[thing][1])) for thing in things]
        return (*rows, renamed(self.output))


def _things(value: Counter) -> set[int]:
    return {thing for thing, _ in value}
