"""Functions: which keys are of one, which two are one, and which are dropped.

A key is of decisions (L0), of a canonical graph (L1), or of what was computed on a few examples
(L2). Keys hold all else that a result depends on, so that functions are the whole database's.

Where a probe finds two functions to be one, the keys of one become the other's, known through L2.
A study without L2 does not see them: it enters the function anew, under its old name, and so its
evaluations stay where they are. Studies with L2 move theirs, each its own: the one that probed at
once, others before they would evaluate again what they have evaluated under the old name.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, or_, select
from sqlalchemy.orm import Session

from automl.identity.fingerprint import VERSION, Identity, Level, digest_of
from automl.ledger import matching
from automl.ledger.clock import now
from automl.ledger.dialects import (
    changed,
    insert_absent,
    insert_if_absent,
    table,
    update_table,
)
from automl.ledger.matching import Found, Key, Recognition
from automl.ledger.models import EvaluationRow, EvaluationState, FunctionRow, KeyRow, Role, TrialRow
from automl.spec import Cache
from automl.storable import plain_text

NONDETERMINISTIC = "non-deterministic"
"""The verdict on what computes something else each time, and so is shared with nobody."""

_RACES = 16
_BATCH = 500


@dataclass(frozen=True)
class Resolved:
    """The function of an identity; level: where it was recognised, None where it is new.

    named: the level of the key that a new one is named by. verdict: a Verdict's value. Both it and
    live_parameters are None where nobody probed it.
    """

    fingerprint: str
    level: Level | None
    named: Level
    identity: Identity
    verdict: str | None = None
    live_parameters: int | None = None
    recognition: Recognition = field(default_factory=Recognition)

    @property
    def shared(self) -> bool:
        """Whether one evaluation can stand for another at all."""
        return NONDETERMINISTIC not in (self.verdict, self.identity.verdict)

    @property
    def stored_level(self) -> Level:
        """The level of a trial; a new function's is that of the key it is named by."""
        return self.level or self.named

    def to_json(self) -> dict[str, Any]:
        """What a trial stores of this; what did not happen is left out."""
        identity, seen = self.identity, self.recognition
        known = {
            "l0": identity.l0,
            "seconds": dict(identity.seconds),
            "verdict": identity.verdict,
            "reason": identity.reason and plain_text(identity.reason),
            "skipped": identity.skipped if self.level is None else None,
            "not_canonical": identity.colour is not None and identity.l1 is None,
            "collision": seen.collision,
            "near_miss": seen.near_miss,
            "refused": seen.refused,
            "damaged": seen.damaged,
        }
        return {key: value for key, value in known.items() if value}


def unshared(identity: Identity, cache: Cache) -> Resolved:
    """An identity by its own name, compared with nothing."""
    name, level = matching.name_of(identity, cache)
    return Resolved(name, None, level, identity)


def resolve(session: Session, identity: Identity, cache: Cache) -> Resolved:
    """The function of an identity, entered where it is new; keys not known yet become its own.

    Of workers that come at once with a key in common, one enters the function and the others
    find it.
    """
    identity = matching.in_use(identity, cache)
    for race in range(_RACES):
        rows = matching.rows_of(session, matching.texts(identity), cache, lock=race > 0)
        found, seen = matching.match(session, rows, identity, cache, lock=race > 0)
        if found is None:
            if (new := _enter(session, rows, identity, cache)) is not None:
                probed = (identity.verdict, identity.live_parameters)
                return Resolved(new[0], None, new[1], identity, *probed, seen)
        elif _touch(session, found.fingerprint, identity, found.sketched):
            _add_aliases(session, rows, identity, found, cache)
            return _resolved(found, identity, seen)
    raise AssertionError("each lost race leaves a key that the next look finds")


def look_up(session: Session, identity: Identity, cache: Cache) -> Resolved:
    """The function of an identity; nothing is written, and a new one has its own name."""
    identity = matching.in_use(identity, cache)
    rows = matching.rows_of(session, matching.texts(identity), cache)
    found, seen = matching.match(session, rows, identity, cache)
    return unshared(identity, cache) if found is None else _resolved(found, identity, seen)


def is_known(session: Session, identity: Identity, cache: Cache) -> bool:
    """Whether an identity is recognised without a probe."""
    identity = replace(matching.in_use(identity, cache), l2=())
    rows = matching.rows_of(session, matching.texts(identity), cache)
    return matching.by_key(rows, identity, cache) is not None


def add_probe(
    session: Session, study: str, fingerprint: str, identity: Identity, cache: Cache
) -> Recognition:
    """Store what a probe found; a function that turns out to be another one becomes that one.

    The study's first trial of the function says so, too.
    """
    identity = matching.in_use(identity, cache)
    if not _touch(session, fingerprint, identity, probed=False):
        return Recognition()
    for race in range(_RACES):
        rows = matching.rows_of(session, identity.l2, cache, lock=race > 0)
        others = [row for row in rows if row.fingerprint != fingerprint]
        graphs = matching.graphs_of(identity) | matching.graphs_known(session, fingerprint)
        found, seen = matching.by_sketch(session, others, identity, graphs, race > 0)
        if found is None:
            wanted = _wanted(rows, identity, fingerprint, Level.L2)
            if _insert_all(session, [one for one in wanted if one["level"] is Level.L2]):
                _note(session, study, fingerprint, identity, seen)
                return seen
        elif _touch(session, found.fingerprint, identity, found.sketched):
            _note(session, study, fingerprint, identity, seen)
            _merge(session, fingerprint, found.fingerprint)
            adopt(session, study, found.fingerprint)
            return seen
    raise AssertionError("each lost race leaves a key that the next look finds")


def unprobed(
    session: Session, study: str, limit: int, but: Collection[str] = ()
) -> list[tuple[str, int]]:
    """A study's functions that nobody probed, each with a trial that computes it.

    Those of judged trials are left out, for another trainer trains them; and those of `but`.
    """
    found = session.execute(
        select(EvaluationRow.fingerprint, func.min(EvaluationRow.number))
        .join(FunctionRow, FunctionRow.fingerprint == EvaluationRow.fingerprint)
        .join(TrialRow, TrialRow.id == EvaluationRow.owner)
        .where(*_own_trials(study), FunctionRow.verdict.is_(None), FunctionRow.version == VERSION)
        .where(EvaluationRow.fingerprint.not_in(but))
        .group_by(EvaluationRow.fingerprint)
        .order_by(func.min(EvaluationRow.id))
        .limit(limit)
    )
    return [(name, number) for name, number in found if number is not None]


def _own_trials(study: str) -> tuple[ColumnElement[bool], ...]:
    """The evaluations of a study's own trials, joined with these."""
    return (
        EvaluationRow.study == study,
        EvaluationRow.source.is_(None),
        EvaluationRow.number.is_not(None),
        TrialRow.judges.is_(None),
    )


def prune(session: Session, keep: int) -> int:
    """Drop some of the least recently used functions beyond `keep`, but none evaluated now.

    Call it until it drops none: each call is short, for it may keep all other writers waiting.
    """
    total = count(session)
    if total <= keep:
        return 0
    running = select(EvaluationRow.fingerprint).where(
        EvaluationRow.state == EvaluationState.RUNNING
    )
    dropped = list(
        session.scalars(
            select(FunctionRow.fingerprint)
            .where(FunctionRow.fingerprint.not_in(running))
            .order_by(FunctionRow.used_at, FunctionRow.fingerprint)
            .limit(min(total - keep, _BATCH))
            .with_for_update(skip_locked=True)
        )
    )
    for row in (KeyRow, FunctionRow):
        columns = table(row)
        session.execute(delete(columns).where(columns.c.fingerprint.in_(dropped)))
    return len(dropped)


def count(session: Session) -> int:
    """How many functions the database holds."""
    return session.scalar(select(func.count()).select_from(FunctionRow)) or 0


def foreign(session: Session) -> int:
    """How many functions another version of the hasher wrote."""
    written = select(func.count()).select_from(FunctionRow).where(FunctionRow.version != VERSION)
    return session.scalar(written) or 0


def former_names(fingerprint: str) -> Select[str]:
    """The names that a function had before it was found, through L2, to be this one."""
    return select(KeyRow.key).where(
        KeyRow.fingerprint == fingerprint,
        KeyRow.through == Level.L2,
        KeyRow.level != Level.L2,
        KeyRow.key != fingerprint,
    )


def adopt(session: Session, study: str, fingerprint: str) -> bool:
    """Move a study's evaluations under former names of a function; whether there were any."""
    columns = EvaluationRow.fingerprint
    named = or_(columns == fingerprint, columns.in_(former_names(fingerprint)))
    rows = session.scalars(
        select(EvaluationRow)
        .where(EvaluationRow.study == study, named)
        .order_by(EvaluationRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    taken = {row.replicate for row in rows if row.fingerprint == fingerprint}
    moved = [row for row in rows if row.fingerprint != fingerprint]
    for row in moved:
        if row.role is Role.SHARED:
            row.replicate = free_replicate(taken)
        taken.add(row.replicate)
        row.fingerprint = fingerprint
    session.flush()
    return bool(moved)


def free_replicate(taken: Collection[int] | Iterator[int]) -> int:
    """The first number from 0 that no replicate has."""
    known = set(taken)
    return next(number for number in range(len(known) + 1) if number not in known)


def _resolved(found: Found, identity: Identity, seen: Recognition) -> Resolved:
    verdict = found.verdict or identity.verdict
    live_parameters = found.live_parameters if found.verdict else identity.live_parameters
    level = found.level
    return Resolved(found.fingerprint, level, level, identity, verdict, live_parameters, seen)


def _touch(session: Session, fingerprint: str, identity: Identity, probed: bool) -> bool:
    """Say that a function was used, and what a probe found; False where it is gone.

    This locks the function: nobody drops it, or joins it to another, before this transaction ends.
    """
    changes: dict[str, Any] = {"used_at": now()}
    if identity.verdict is not None and (not probed or identity.verdict == NONDETERMINISTIC):
        changes |= _probe_columns(identity)
    columns = table(FunctionRow).c
    mine = columns.fingerprint == fingerprint
    return changed(session, update_table(FunctionRow).where(mine).values(changes))


def _probe_columns(identity: Identity) -> dict[str, Any]:
    return {
        "verdict": identity.verdict,
        "live_parameters": identity.live_parameters,
        "sketch": identity.sketch,
    }


def _enter(
    session: Session, rows: Sequence[Key], identity: Identity, cache: Cache
) -> tuple[str, Level] | None:
    """Enter a new function with all its keys; None where another worker had one of them first."""
    name, level = matching.name_of(identity, cache)
    if any(row.fingerprint == name for row in rows):
        # Another version wrote it, or a level that is not in use found it.
        name = digest_of({"version": VERSION, "key": name})
    if not _insert_all(session, _wanted(rows, identity, name, level)):
        return None
    row = {"fingerprint": name, "version": VERSION, "created_at": now(), "used_at": now()}
    insert_if_absent(session, FunctionRow, {**row, **_probe_columns(identity)})
    return name, level


def _add_aliases(
    session: Session, rows: Sequence[Key], identity: Identity, found: Found, cache: Cache
) -> None:
    if not found.sketched and identity.sketch is None:
        identity = replace(identity, l2=())
    wanted = _wanted(rows, identity, found.fingerprint, found.through)
    exact = {Level.L0, Level.L1}.intersection(cache.levels)
    taken = {row.key for row in rows if row.usable and row.level in exact}
    missing = [entry for entry in wanted if entry["key"] not in taken]
    if missing:
        # Of one that is lost to another worker nothing depends on who has it.
        insert_absent(session, KeyRow, missing)


def _wanted(
    rows: Sequence[Key], identity: Identity, fingerprint: str, through: Level
) -> list[dict[str, Any]]:
    """The keys of ours that this function lacks, in the order in which all workers enter them."""
    keys = {identity.l0: (Level.L0, None if identity.l1 else identity.colour)}
    if identity.l1 is not None:
        keys[identity.l1] = (Level.L1, identity.colour)
    keys |= dict.fromkeys(identity.l2, (Level.L2, None))
    known = {row.key for row in rows if row.fingerprint == fingerprint}
    return [
        {
            "key": key,
            "rank": _free_rank(rows, key),
            "level": level,
            "through": max(level, through, key=lambda one: one.value),
            "colour": colour,
            "fingerprint": fingerprint,
        }
        for key, (level, colour) in sorted(keys.items())
        if key not in known
    ]


def _free_rank(rows: Sequence[Key], key: str) -> int:
    taken = {row.rank for row in rows if row.key == key}
    return next(rank for rank in range(len(taken) + 1) if rank not in taken)


def _insert_all(session: Session, entries: list[dict[str, Any]]) -> bool:
    """Insert all of these keys, or none where one of them is taken."""
    if not entries:
        return True
    made = insert_absent(session, KeyRow, entries)
    if len(made) < len(entries) and made:
        session.execute(delete(table(KeyRow)).where(table(KeyRow).c.id.in_(made)))
    return len(made) == len(entries)


def _merge(session: Session, fingerprint: str, into: str) -> None:
    """Make one function another: all its keys move, its name among them, and it is no more."""
    keys, functions = table(KeyRow), table(FunctionRow)
    had = set(session.scalars(select(KeyRow.key).where(KeyRow.fingerprint == into)))
    columns = select(KeyRow.id, KeyRow.key).where(KeyRow.fingerprint == fingerprint)
    own = [(id, key) for id, key in session.execute(columns)]
    doubled = [id for id, key in own if key in had]
    for start in range(0, len(doubled), _BATCH):
        session.execute(delete(keys).where(keys.c.id.in_(doubled[start : start + _BATCH])))
    moved = {"fingerprint": into, "through": Level.L2}
    session.execute(update_table(KeyRow).where(keys.c.fingerprint == fingerprint).values(moved))
    if fingerprint not in had.union(key for _, key in own):
        # It was named by no key of its own, for that had been another function's.
        name = {"key": fingerprint, "rank": 0, "level": Level.L0}
        insert_if_absent(session, KeyRow, {**name, **moved})
    session.execute(delete(functions).where(functions.c.fingerprint == fingerprint))


def _note(
    session: Session, study: str, fingerprint: str, identity: Identity, seen: Recognition
) -> None:
    """Add to a function's first trial what was found of it since; a probe skipped then stays so."""
    first = session.scalar(
        select(TrialRow.id)
        .join(EvaluationRow, TrialRow.id == EvaluationRow.owner)
        .where(*_own_trials(study), EvaluationRow.fingerprint == fingerprint)
        .order_by(EvaluationRow.number)
        .limit(1)
    )
    if first is None:
        return
    row = session.get_one(TrialRow, first, with_for_update=True, populate_existing=True)
    known = dict(row.identification or {})
    seconds = Counter(known.get("seconds", {}))
    seconds.update(identity.seconds)
    found = Resolved(fingerprint, None, Level.L2, identity, recognition=seen).to_json()
    row.identification = {**found, **known, "seconds": dict(seconds)}
    session.flush()
