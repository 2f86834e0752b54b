"""The keys of a candidate at each level, from its writing and from what a probe of it found."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna.distributions import distribution_to_json

from automl.identity.fingerprint import VERSION, Identity, Level, canonical_json, digest_of
from automl.plugin.options import jsonable
from automl.space.candidate import Candidate
from automl.space.decisions import Open

if TYPE_CHECKING:
    from automl.identity.graphs.canonical import Canonical
    from automl.space.graph import Graph, Node

SPACE = "space"


@dataclass(frozen=True)
class SideKeys:
    """All that a result depends on beside the candidate; digested once for many candidates."""

    values: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """Of everything: what decisions make depends on the space."""
        return digest_of(dict(self.values))

    @cached_property
    def shared(self) -> str:
        """Of all but the space: graphs and functions count by themselves."""
        return digest_of({k: v for k, v in self.values.items() if k != SPACE})


@dataclass(frozen=True)
class Writing:
    """A candidate as it is written: its keys by decisions and by graph, and what L2 needs besides.

    shared: what keys of L1 and L2 hold beside the graph or the function; None where the
    hyperparameters are no plain values, so that nothing but equal decisions is recognised.
    """

    identity: Identity
    graph: "Canonical | None"
    shared: Mapping[str, Any] | None


def writing(
    candidate: Candidate,
    side_keys: SideKeys,
    unread: Collection[str] = (),
    *,
    graphs: bool = True,
    strict: bool = False,
    files: Sequence[str] = (),
) -> Writing:
    """The keys of a candidate under its side keys.

    files: digests of what it was read from.

    unread: hyperparameters that do not count. graphs: whether to look beyond decisions. strict:
    whether candidates with other parameters are never one.

    Raises:
        ValueError: a decision that no key can hold, such as NaN.
    """
    began = time.perf_counter()
    content = {
        "version": VERSION,
        "decisions": dict(candidate.decisions),
        "open": sorted(candidate.open_decisions),
        "side_keys": side_keys.digest,
        **_files(files),
    }
    identity = Identity(digest_of(content), seconds={Level.L0.value: time.perf_counter() - began})
    if not graphs:
        return Writing(identity, None, None)
    began = time.perf_counter()
    found = _by_graph(candidate, side_keys, unread, strict, files)
    seconds = {**identity.seconds, Level.L1.value: time.perf_counter() - began}
    return replace(found, identity=replace(found.identity, l0=identity.l0, seconds=seconds))


def _by_graph(
    candidate: Candidate,
    side_keys: SideKeys,
    unread: Collection[str],
    strict: bool,
    files: Sequence[str],
) -> Writing:
    """The writing but for its key by decisions."""
    shared = _shared(candidate, side_keys, unread, files)
    if shared is None:
        return Writing(Identity(""), None, None)
    architecture = candidate.architecture
    if callable(architecture):
        parameters = {"parameters": _parameters_of_module(candidate)} if strict else {}
        return Writing(Identity(""), None, {**shared, **parameters})
    # Who has a graph has loaded torch; a plain function may do without.
    from automl.identity.graphs.canonical import canonical

    graph = canonical(architecture)
    if graph.own_operations:
        shared["code"] = side_keys.values[SPACE]["code"]
    if strict:
        shared["parameters"] = _parameters_of_graph(architecture, graph)
    l1 = None if graph.key is None else digest_of({**shared, "graph": graph.key})
    return Writing(Identity("", l1, digest_of({**shared, "colour": graph.colour})), graph, shared)


def _shared(
    candidate: Candidate, side_keys: SideKeys, unread: Collection[str], files: Sequence[str]
) -> dict[str, Any] | None:
    read = {k: _plain(v) for k, v in candidate.hyperparameters.items() if k not in unread}
    shared = {"version": VERSION, "hyperparameters": read, "side_keys": side_keys.shared}
    shared |= _files(files)
    try:
        canonical_json(shared)
    except ValueError:
        return None
    return shared


def _files(digests: Sequence[str]) -> dict[str, Any]:
    return {"files": sorted(set(digests))} if digests else {}


def _parameters_of_module(candidate: Candidate) -> list[Any]:
    return sorted(list(parameter.shape) for parameter in candidate.build().parameters())


def _parameters_of_graph(graph: "Graph", found: "Canonical") -> list[Any]:
    nodes = (graph.node(name) for name in found.parametric)
    return sorted(canonical_json(_weights(graph, node)) for node in nodes)


def _weights(graph: "Graph", node: "Node") -> list[Any]:
    """What the weights of a node follow from."""
    shapes = [list(graph.node(name).shape) for name in node.inputs]
    return [_plain(node.operation), _plain(node.attributes), shapes]


def _plain(value: Any) -> Any:
    if isinstance(value, Open):
        return {"open": value.name, "distribution": distribution_to_json(value.distribution)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        # JSON knows no other keys, and the number 1 is not the text "1".
        return {"\0mapping": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return {"\0set": sorted(canonical_json(_plain(item)) for item in value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"\0number": repr(value)}
    return jsonable(value)
