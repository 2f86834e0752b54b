"""Looking up: which function of the database an identity is, at the levels that a study uses.

A key is known *through* the highest level it took to find that it is of its function, so that a
study without that level does not see it. Of a key that is known through several, the highest in
use counts: there two functions have been found to be one. A study without L1 finds nothing by the
keys of graphs, but has them written: they tell apart what a probe alone would join.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from automl.identity.fingerprint import VERSION, Identity, Level
from automl.identity.probes.sketch import Sketch, SketchError
from automl.ledger.models import FunctionRow, KeyRow
from automl.spec import Cache

_log = logging.getLogger("automl")

Graph = tuple[str, str | None]
"""The colour and the key of a graph; no key where it has no canonical form."""


@dataclass(frozen=True)
class Recognition:
    """What happened while the sketches of one digest were compared.

    collision: a digest was equal and the sketches were not. near_miss: the sketches agreed and
    some digest was not equal. refused: the sketches agreed, but of two graphs that look alike.
    damaged: stored sketches that could not be read.
    """

    collision: bool = False
    near_miss: bool = False
    refused: bool = False
    damaged: int = 0


@dataclass(frozen=True)
class Key:
    """A key as the database has it; usable: this version and the levels in use found it."""

    key: str
    rank: int
    level: Level
    through: Level
    fingerprint: str
    verdict: str | None
    live_parameters: int | None
    sketched: bool
    usable: bool


@dataclass(frozen=True)
class Found:
    """A function that an identity is of, and the key that said so."""

    fingerprint: str
    level: Level
    through: Level
    verdict: str | None
    live_parameters: int | None
    sketched: bool


def in_use(identity: Identity, cache: Cache) -> Identity:
    """An identity without what the levels in use have no need of."""
    if set(cache.levels) == {Level.L0}:
        identity = replace(identity, l1=None, colour=None)
    if Level.L2 not in cache.levels or identity.sketch is None:
        identity = replace(identity, l2=(), sketch=None)
    return identity


def name_of(identity: Identity, cache: Cache) -> tuple[str, Level]:
    """The fingerprint of a function that is seen for the first time, and its level."""
    if identity.l1 is None or Level.L1 not in cache.levels:
        return identity.l0, Level.L0
    return identity.l1, Level.L1


def texts(identity: Identity) -> list[str]:
    """All keys of an identity."""
    return [key for key in (identity.l0, identity.l1, *identity.l2) if key is not None]


def rows_of(
    session: Session, keys: Collection[str], cache: Cache, lock: bool = False
) -> Sequence[Key]:
    """All that is known of these keys.

    lock: see what others have committed since this transaction began, on every database.
    """
    usable = (FunctionRow.version == VERSION) & KeyRow.through.in_(cache.levels)
    columns = (KeyRow.key, KeyRow.rank, KeyRow.level, KeyRow.through, KeyRow.fingerprint)
    sketched = FunctionRow.sketch.is_not(None).label("sketched")
    known = (FunctionRow.verdict, FunctionRow.live_parameters, sketched)
    statement = (
        select(*columns, *known, usable.label("usable"))
        .join(FunctionRow, FunctionRow.fingerprint == KeyRow.fingerprint)
        .where(KeyRow.key.in_(keys))
        .order_by(KeyRow.rank)
    )
    found = session.execute(statement.with_for_update() if lock else statement)
    return [Key(*row) for row in found]


def match(
    session: Session, rows: Sequence[Key], identity: Identity, cache: Cache, lock: bool = False
) -> tuple[Found | None, Recognition]:
    """The function that an identity is of, by the cheapest of its keys; None where it is new."""
    known = by_key(rows, identity, cache)
    if known is not None:
        return known, Recognition()
    return by_sketch(session, rows, identity, graphs_of(identity), lock)


def graphs_of(identity: Identity) -> set[Graph]:
    """The colour and key of an identity's graph, if it has any."""
    return {(identity.colour, identity.l1)} if identity.colour else set()


def graphs_known(session: Session, fingerprint: str) -> set[Graph]:
    """The colour and key of each graph that a function was written as."""
    return {(colour, key) for _, colour, key in _colours(session, [fingerprint])}


def by_key(rows: Sequence[Key], identity: Identity, cache: Cache) -> Found | None:
    """The function that an identity's decisions or graph are known to be of."""
    met = [
        row
        for level, key in ((Level.L0, identity.l0), (Level.L1, identity.l1))
        for row in rows
        if row.usable and row.level is level and row.key == key and level in cache.levels
    ]
    if not met:
        return None
    row = max(met, key=lambda row: row.through.value)
    probe = (row.verdict, row.live_parameters, row.sketched)
    return Found(row.fingerprint, row.level, row.through, *probe)


def by_sketch(
    session: Session,
    rows: Sequence[Key],
    identity: Identity,
    graphs: Collection[Graph],
    lock: bool,
) -> tuple[Found | None, Recognition]:
    """The oldest function of an equal digest whose sketch agrees and whose graph may be ours."""
    near = [row for row in rows if row.usable and row.level is Level.L2 and row.sketched]
    seen = Recognition()
    if not near or identity.sketch is None:
        return None, seen
    own = Sketch.from_bytes(identity.sketch)
    names = {row.fingerprint for row in near}
    alike = _alike(session, names, graphs)
    for name, data, verdict, live_parameters in _sketches(session, names, lock):
        agrees = _agrees(own, name, data)
        if agrees is None:
            seen = replace(seen, damaged=seen.damaged + 1)
        elif not agrees:
            seen = replace(seen, collision=True)
        elif name in alike:
            seen = replace(seen, refused=True)
        else:
            equal = {row.key for row in near if row.fingerprint == name}
            missed = not equal.issuperset(identity.l2)
            found = Found(name, Level.L2, Level.L2, verdict, live_parameters, sketched=True)
            return found, replace(seen, near_miss=missed)
    return None, seen


def _sketches(
    session: Session, names: Collection[str], lock: bool
) -> Iterator[tuple[str, bytes, str | None, int | None]]:
    columns = (FunctionRow.verdict, FunctionRow.live_parameters)
    statement = (
        select(FunctionRow.fingerprint, FunctionRow.sketch, *columns)
        .where(FunctionRow.fingerprint.in_(names))
        .order_by(FunctionRow.created_at, FunctionRow.fingerprint)
    )
    found = session.execute(statement.with_for_update() if lock else statement)
    for name, sketch, verdict, live_parameters in found:
        yield name, sketch or b"", verdict, live_parameters


def _agrees(own: Sketch, name: str, data: bytes) -> bool | None:
    try:
        return own.agrees(Sketch.from_bytes(data))
    except SketchError as error:
        _log.warning("function %s: its sketch is damaged and matches nothing: %s", name, error)
        return None


def _alike(session: Session, names: Collection[str], graphs: Collection[Graph]) -> set[str]:
    """Functions with a graph that plain colour refinement cannot tell from one of ours.

    Exact certificates did tell them apart, or there is none: no probe may join them.
    """
    if not graphs:
        return set()
    return {
        name
        for name, colour, key in _colours(session, names)
        if any(colour == own and key != own_key for own, own_key in graphs)
    }


def _colours(session: Session, names: Collection[str]) -> list[tuple[str, str, str]]:
    """The function, colour and key of each graph that these functions were written as."""
    found = session.execute(
        select(KeyRow.fingerprint, KeyRow.colour, KeyRow.key).where(
            KeyRow.fingerprint.in_(names), KeyRow.colour.is_not(None)
        )
    )
    return [(name, colour or "", key) for name, colour, key in found]
