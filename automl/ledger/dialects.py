"""Statements that SQLAlchemy writes differently for each database."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Table, Update, func, insert, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from automl.ledger.models import Base


def table(row: type[Base]) -> Table:
    """Return the Core table of a row class."""
    return cast(Table, row.__table__)


def update_table(row: type[Base]) -> Update:
    """Return an update that bypasses the session; reload the session's rows afterwards."""
    return update(table(row))


def changed(session: Session, statement: Update | Delete) -> bool:
    """Run an update or a deletion; return whether it matched a row."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount > 0


def insert_row(session: Session, row: type[Base], values: dict[str, Any]) -> Any:
    """Insert a row and return its primary key."""
    result = cast("CursorResult[Any]", session.execute(insert(table(row)).values(values)))
    return (result.inserted_primary_key or (None,))[0]


def insert_if_absent(session: Session, row: type[Base], values: dict[str, Any]) -> Any | None:
    """Insert a row unless its unique key is taken.

    If another transaction is inserting the same key, wait for that transaction to end.

    Returns:
        The primary key of the new row, or None if the key was taken.
    """
    return next(iter(insert_absent(session, row, [values])), None)


def insert_absent(session: Session, row: type[Base], rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Insert, in order, the rows whose unique key is not taken; return their primary keys."""
    dialect, into = session.get_bind().dialect.name, table(row)
    (identifier,) = into.primary_key.columns
    if dialect == "sqlite":
        statement = sqlite.insert(into).on_conflict_do_nothing()
        return _returned(session, statement.returning(identifier), rows)
    if dialect == "postgresql":
        insertion = postgresql.insert(into).on_conflict_do_nothing()
        return _returned(session, insertion.returning(identifier), rows)
    made = [_inserted(session, row, values) for values in rows]
    return [key for key in made if key is not None]


def _returned(
    session: Session, statement: ReturningInsert[Any], rows: Sequence[dict[str, Any]]
) -> list[Any]:
    """Insert rows and return the keys; a single row may hold expressions such as `now()`.

    SQLAlchemy compiles a statement for several rows every time, and one for a single row once.
    """
    if len(rows) == 1:
        return list(session.scalars(statement.values(rows[0])))
    return list(session.scalars(statement, rows))


def _inserted(session: Session, row: type[Base], values: dict[str, Any]) -> Any | None:
    counter = table(row).autoincrement_column
    if counter is not None and session.get_bind().dialect.name in ("mysql", "mariadb"):
        return _inserted_on_mysql(session, row, counter.name, values)
    try:
        with session.begin_nested():
            return insert_row(session, row, values)
    except IntegrityError:
        return None


def _inserted_on_mysql(
    session: Session, row: type[Base], counter: str, values: dict[str, Any]
) -> int | None:
    # A rejected insert would keep a shared lock on the existing row, and two workers that both
    # hold one and want to write the row would deadlock. This statement takes an exclusive lock.
    # MySQL reports the same row count for an unchanged row as for a new one, so the statement sets
    # the last id to 0 for a row that existed.
    insertion = mysql.insert(table(row)).values(values)
    unchanged = {counter: table(row).c[counter] + func.last_insert_id(0)}
    result = session.execute(insertion.on_duplicate_key_update(unchanged))
    return cast("CursorResult[Any]", result).lastrowid or None
