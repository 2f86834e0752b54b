"""Which concatenations may be read in any order, for weights can be renamed to undo it.

The channels of a concatenation are followed through all operations that treat channels alike.
Where every other source of theirs, and every reader, has weights that any permutation only
renames, the order in which they were written means nothing.
"""

from collections.abc import Sequence

from automl.identity.graphs.vertices import Spot


def in_any_order(spots: Sequence[Spot]) -> list[int]:
    """The concatenations, by place, whose inputs may be exchanged; the last spot is the output.

    At most one in each set of linked channels, so that each has a permutation of its own.
    """
    joins = [place for place, spot in enumerate(spots) if spot.algebra.concatenates]
    if not joins:
        return []
    groups = _linked(spots)
    bound = _bound(spots, groups)
    return [
        join
        for join in joins
        if len(spots[join].inputs) > 1
        and groups[join] not in bound
        and all(join == other or groups[join] != groups[other] for other in joins)
        and _aligned(spots, groups, join)
    ]


def _linked(spots: Sequence[Spot]) -> list[int]:
    """For each spot a number that it shares with those whose channels are the same."""
    parents = list(range(len(spots)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for place, spot in enumerate(spots):
        for _, source in spot.inputs if spot.algebra.channelwise else ():
            if not spots[source].is_zero:
                parents[root(source)] = root(place)
    return [root(place) for place in range(len(spots))]


def _bound(spots: Sequence[Spot], groups: Sequence[int]) -> set[int]:
    """The groups with a source or a reader to which the order of channels means something."""
    bound = {groups[-1]}
    for place, spot in enumerate(spots):
        algebra = spot.algebra
        if spot.is_zero or algebra.channelwise or algebra.exchangeable:
            continue
        if not algebra.concatenates:
            bound.add(groups[place])
        bound.update(groups[source] for _, source in spot.inputs)
    return bound


def _aligned(spots: Sequence[Spot], groups: Sequence[int], join: int) -> bool:
    """Whether what is linked to a concatenation has its channels, or equal blocks of them."""
    channels = spots[join].shape[0]
    return channels > 0 and all(
        len(spot.shape) > 0 and spot.shape[0] % channels == 0
        for place, spot in enumerate(spots)
        if groups[place] == groups[join]
    )
