"""The few statements that SQLAlchemy words differently for each database."""

from typing import Any, cast

from sqlalchemy import CursorResult, Table, Update, insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from automl.ledger.models import Base


def table(row: type[Base]) -> Table:
    return cast(Table, row.__table__)


def update_table(row: type[Base]) -> Update:
    """An update past the session: rows that it holds are not told, so read them afterwards."""
    return update(table(row))


def changed(session: Session, statement: Update) -> bool:
    """Whether an update met a row."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount > 0


def insert_row(session: Session, row: type[Base], values: dict[str, Any]) -> int:
    """Insert a row and return its id."""
    result = cast("CursorResult[Any]", session.execute(insert(table(row)).values(values)))
    return int((result.inserted_primary_key or (0,))[0])


def insert_if_absent(session: Session, row: type[Base], values: dict[str, Any]) -> int | None:
    """Insert a row unless one of its unique key is there; its id, or None.

    Where another transaction is inserting the same key, it waits for the end of that one.
    """
    dialect, into = session.get_bind().dialect.name, table(row)
    if dialect == "sqlite":
        quiet = sqlite.insert(into).values(values).on_conflict_do_nothing()
        return cast(int | None, session.scalar(quiet.returning(into.c.id)))
    if dialect == "postgresql":
        silent = postgresql.insert(into).values(values).on_conflict_do_nothing()
        return cast(int | None, session.scalar(silent.returning(into.c.id)))
    try:
        with session.begin_nested():
            return insert_row(session, row, values)
    except IntegrityError:
        return None
