"""The keys of a candidate that need no probe: L0 from its decisions, L1 from its graph."""

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
from automl.space.decisions import Open, find_open
from automl.space.findings import digest_of_findings

if TYPE_CHECKING:
    from automl.identity.graphs.canonical import Canonical
    from automl.space.graph import Graph, Node

SPACE = "space"


@dataclass(frozen=True)
class SideKeys:
    """Everything a result depends on besides the candidate, digested once for many candidates.

    Attributes:
        values: The dependencies by name, such as the task, the trainer and the space.
    """

    values: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """The digest of all values, for L0: the space determines what decisions mean."""
        return digest_of(dict(self.values))

    @cached_property
    def shared(self) -> str:
        """The digest of all values except the space, for L1 and L2."""
        return digest_of({k: v for k, v in self.values.items() if k != SPACE})


@dataclass(frozen=True)
class StaticKeys:
    """What is known about a candidate before it is probed.

    Attributes:
        identity: The L0 and L1 keys.
        graph: The canonical form of the candidate's graph, if it has one.
        shared: The content of L1 and L2 keys besides the graph or the function. None if the
            hyperparameters are not plain values; only equal decisions are recognised then.
    """

    identity: Identity
    graph: "Canonical | None"
    shared: Mapping[str, Any] | None


def static_keys(
    candidate: Candidate,
    side_keys: SideKeys,
    unread: Collection[str] = (),
    *,
    graphs: bool = True,
    strict: bool = False,
    files: Sequence[str] = (),
) -> StaticKeys:
    """Compute the keys of a candidate that need no probe.

    Args:
        candidate: The candidate.
        side_keys: Everything else that its result depends on.
        unread: Names of hyperparameters that the trainer does not read; they are left out.
        graphs: Whether to look beyond the decisions.
        strict: Whether candidates whose parameters differ in shape or number always differ.
        files: Digests of the files that the candidate was made from.

    Raises:
        ValueError: A decision has a value that no key can contain, such as NaN.
    """
    began = time.perf_counter()
    content = {
        "version": VERSION,
        "decisions": dict(candidate.decisions),
        "open": sorted(candidate.open_decisions),
        "side_keys": side_keys.digest,
        **_files(files),
        **_found(candidate),
    }
    identity = Identity(digest_of(content), seconds={Level.L0.value: time.perf_counter() - began})
    if not graphs:
        return StaticKeys(identity, None, None)
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
) -> StaticKeys:
    """The static keys without L0."""
    shared = _shared(candidate, side_keys, unread, files)
    if shared is None:
        return StaticKeys(Identity(""), None, None)
    architecture = candidate.architecture
    if callable(architecture):
        parameters = {"parameters": _parameters_of_module(candidate)} if strict else {}
        return StaticKeys(Identity(""), None, {**shared, **parameters})
    # A candidate with a graph has loaded torch already; a plain function may not need it.
    from automl.identity.graphs.canonical import canonical

    graph = canonical(architecture)
    if graph.custom_operations:
        shared["code"] = side_keys.values[SPACE]["code"]
    if strict:
        shared["parameters"] = _parameters_of_graph(architecture, graph)
    l1 = None if graph.key is None else digest_of({**shared, "graph": graph.key})
    return StaticKeys(
        Identity("", l1, digest_of({**shared, "colour": graph.colour})), graph, shared
    )


def _shared(
    candidate: Candidate, side_keys: SideKeys, unread: Collection[str], files: Sequence[str]
) -> dict[str, Any] | None:
    taken = {k: v for k, v in candidate.hyperparameters.items() if k not in unread}
    if any(each.function is not None and each.values() is None for each in find_open(taken)):
        return None  # nothing tells two functions of one decision apart
    read = {k: _plain(v) for k, v in taken.items()}
    shared = {"version": VERSION, "hyperparameters": read, "side_keys": side_keys.shared}
    shared |= _files(files) | _found(candidate)
    try:
        canonical_json(shared)
    except ValueError:
        return None
    return shared


def _files(digests: Sequence[str]) -> dict[str, Any]:
    return {"files": sorted(set(digests))} if digests else {}


def _found(candidate: Candidate) -> dict[str, Any]:
    return {"found": digest_of_findings(candidate.found)} if candidate.found else {}


def _parameters_of_module(candidate: Candidate) -> list[Any]:
    return sorted(list(parameter.shape) for parameter in candidate.build().parameters())


def _parameters_of_graph(graph: "Graph", found: "Canonical") -> list[Any]:
    nodes = (graph.node(name) for name in found.parametric)
    return sorted(canonical_json(_weights(graph, node)) for node in nodes)


def _weights(graph: "Graph", node: "Node") -> list[Any]:
    """Everything that determines the shapes of a node's weights."""
    shapes = [list(graph.node(name).shape) for name in node.inputs]
    return [_plain(node.operation), _plain(node.attributes), shapes]


def _derived(decision: Open) -> dict[str, Any]:
    """What tells a derived value from others of the same decision: all its values."""
    return {} if decision.function is None else {"values": _plain(decision.values())}


def _plain(value: Any) -> Any:
    if isinstance(value, Open):
        distribution = distribution_to_json(value.distribution)
        return {"open": value.name, "distribution": distribution, **_derived(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        # JSON allows text keys only, and the number 1 must differ from the text "1".
        return {"\0mapping": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return {"\0set": sorted(canonical_json(_plain(item)) for item in value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"\0number": repr(value)}
    return jsonable(value)
