"""The few statements that SQLAlchemy words differently for each database."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Table, Update, func, insert, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from automl.ledger.models import Base


def table(row: type[Base]) -> Table:
    return cast(Table, row.__table__)


def update_table(row: type[Base]) -> Update:
    """An update past the session: rows that it holds are not told, so read them afterwards."""
    return update(table(row))


def changed(session: Session, statement: Update | Delete) -> bool:
    """Whether an update or a deletion met a row."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount > 0


def insert_row(session: Session, row: type[Base], values: dict[str, Any]) -> Any:
    """Insert a row and return its primary key."""
    result = cast("CursorResult[Any]", session.execute(insert(table(row)).values(values)))
    return (result.inserted_primary_key or (None,))[0]


def insert_if_absent(session: Session, row: type[Base], values: dict[str, Any]) -> Any | None:
    """Insert a row unless one of its unique key is there; its primary key, or None.

    Where another transaction is inserting the same key, it waits for the end of that one.
    """
    return next(iter(insert_absent(session, row, [values])), None)


def insert_absent(session: Session, row: type[Base], rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Insert those rows whose unique key is not there, in order; returns their primary keys."""
    dialect, into = session.get_bind().dialect.name, table(row)
    (identifier,) = into.primary_key.columns
    if dialect == "sqlite":
        quiet = sqlite.insert(into).on_conflict_do_nothing()
        return _returned(session, quiet.returning(identifier), rows)
    if dialect == "postgresql":
        silent = postgresql.insert(into).on_conflict_do_nothing()
        return _returned(session, silent.returning(identifier), rows)
    made = [_inserted(session, row, values) for values in rows]
    return [key for key in made if key is not None]


def _returned(
    session: Session, statement: ReturningInsert[Any], rows: Sequence[dict[str, Any]]
) -> list[Any]:
    """The keys that an insertion gives; one row may hold expressions such as the time now.

    SQLAlchemy compiles a statement of several rows anew each time, and one of one row once.
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
    # A refused insert would leave a shared lock on the row that is there, and two workers that
    # both hold one and both want the row would wait for each other; this takes the exclusive one.
    # MySQL counts an unchanged row as it counts a new one, so that a row that was there is told
    # by the id that the statement sets: none.
    insertion = mysql.insert(table(row)).values(values)
    unchanged = {counter: table(row).c[counter] + func.last_insert_id(0)}
    result = session.execute(insertion.on_duplicate_key_update(unchanged))
    return cast("CursorResult[Any]", result).lastrowid or None
