"""Find concatenations whose order is irrelevant because a renaming of weights undoes it.

The channels of a concatenation are followed through all operations that treat channels alike. If a
permutation of these channels only renames the weights of every other source and every reader, the
order of the concatenation has no effect.
"""

from collections.abc import Sequence

from automl.identity.graphs.vertices import FormVertex


def unordered_concatenations(vertices: Sequence[FormVertex]) -> list[int]:
    """The places of the concatenations whose inputs may be exchanged.

    There is at most one per group of linked channels, so that each has its own permutation.

    Args:
        vertices: The vertices of a normal form; the last one is the output.
    """
    joins = [place for place, vertex in enumerate(vertices) if vertex.algebra.concatenates]
    if not joins:
        return []
    groups = _linked(vertices)
    bound = _bound(vertices, groups)
    return [
        join
        for join in joins
        if len(vertices[join].inputs) > 1
        and groups[join] not in bound
        and all(join == other or groups[join] != groups[other] for other in joins)
        and _aligned(vertices, groups, join)
    ]


def _linked(vertices: Sequence[FormVertex]) -> list[int]:
    """A group number for each vertex; vertices with the same channels share one."""
    parents = list(range(len(vertices)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for place, vertex in enumerate(vertices):
        for _, source in vertex.inputs if vertex.algebra.channelwise else ():
            if not vertices[source].is_zero:
                parents[root(source)] = root(place)
    return [root(place) for place in range(len(vertices))]


def _bound(vertices: Sequence[FormVertex], groups: Sequence[int]) -> set[int]:
    """The groups with a source or a reader for which the order of channels matters."""
    bound = {groups[-1]}
    for place, vertex in enumerate(vertices):
        algebra = vertex.algebra
        if vertex.is_zero or algebra.channelwise or algebra.exchangeable:
            continue
        if not algebra.concatenates:
            bound.add(groups[place])
        bound.update(groups[source] for _, source in vertex.inputs)
    return bound


def _aligned(vertices: Sequence[FormVertex], groups: Sequence[int], join: int) -> bool:
    """Whether all vertices linked to a concatenation have its channels or equal blocks of them."""
    channels = vertices[join].shape[0]
    return channels > 0 and all(
        len(vertex.shape) > 0 and vertex.shape[0] % channels == 0
        for place, vertex in enumerate(vertices)
        if groups[place] == groups[join]
    )
