"""Transactions of the ledger: run whole, and again where the database asks for it or was away."""

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import Session

from automl.errors import StorageError, UnstorableError, first_line
from automl.ledger.outages import patience_of
from automl.ledger.sql_errors import Kind, explained, is_unstorable, meaning
from automl.text.redaction import redact_urls

P = ParamSpec("P")
T = TypeVar("T")
_TRIES = 8
_SECONDS = 20.0
"""Both must be spent before a deadlock is an error: on a busy machine the one that is sent back is
always the one that has written least, and tries follow each other fast."""
_PAUSE = 1.0
"""The longest pause between two tries, in seconds."""
_AGAIN = "automl_again"
# Not the global generator, whose draws are those of the trial under way.
_draw = random.Random()


class HasEngine(Protocol):
    @property
    def engine(self) -> Engine: ...


L = TypeVar("L", bound=HasEngine)


def transactional(
    method: Callable[Concatenate[L, Session, P], T],
) -> Callable[Concatenate[L, P], T]:
    """Run a method in one transaction, retried on deadlocks and outages; it gets the session.

    A commit whose answer was lost may have gone through: where that matters the method asks
    `again`.

    Raises:
        StorageError: the database refused; nothing was changed.
        UnstorableError: it cannot hold what it was given.
    """
    return _in_session(method)


def transactional_once(
    method: Callable[Concatenate[L, Session, P], T],
) -> Callable[Concatenate[L, P], T]:
    """Run a method in one transaction that is not repeated where its end is not known."""
    return _in_session(method, repeatable=False)


def reading(method: Callable[Concatenate[L, Session, P], T]) -> Callable[Concatenate[L, P], T]:
    """Run a method in a transaction that only reads, and so never waits for a writer."""
    return _in_session(method, read_only=True)


def again(session: Session) -> bool:
    """Whether this very transaction may have gone through already, its answer lost."""
    return bool(session.info[_AGAIN])


def _in_session(
    method: Callable[Concatenate[L, Session, P], T],
    read_only: bool = False,
    repeatable: bool = True,
) -> Callable[Concatenate[L, P], T]:
    def run(self: L, /, *args: P.args, **kwargs: P.kwargs) -> T:
        engine = self.engine.execution_options(automl_read=read_only)

        def once(again: bool) -> T:
            info = {_AGAIN: again}
            with Session(engine, expire_on_commit=False, info=info) as session, session.begin():
                return method(self, session, *args, **kwargs)

        def is_outage(error: Exception) -> bool:
            return is_transient(error) or (repeatable and is_away(error))

        try:
            return patience_of(engine).insist(
                shown(engine), lambda again: past_deadlocks(once, again), is_outage
            )
        except Exception as error:
            if is_unstorable(error):
                raise unstorable(error, shown(engine)) from error
            if isinstance(error, DBAPIError):
                raise storage_error(error, self.engine) from error
            raise

    functools.update_wrapper(run, method)
    return run


def is_transient(error: Exception) -> bool:
    """Whether a transaction may go through if it is tried again at once: a deadlock, a lock."""
    return isinstance(error, DBAPIError) and meaning(error).kind is Kind.TRANSIENT


def is_away(error: Exception) -> bool:
    """Whether a database could not be reached or written to now, rather than refused."""
    return isinstance(error, DBAPIError) and meaning(error).kind is Kind.AWAY


def past_deadlocks(
    once: Callable[[bool], T],
    again: bool,
    is_transient: Callable[[Exception], bool] = is_transient,
) -> T:
    """Call, again and again if need be, until no deadlock is in the way."""
    began = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return once(again)
        except Exception as error:
            spent = attempt >= _TRIES and time.monotonic() - began >= _SECONDS
            if spent or not is_transient(error):
                raise
        time.sleep(_draw.uniform(0.5, 1) * min(0.05 * 2 ** (attempt - 1), _PAUSE))
    raise AssertionError("the last try returned or raised")


def shown(engine: Engine) -> str:
    """A database's URL without its password."""
    return redact_urls(engine.url.render_as_string(hide_password=True))


def storage_error(error: DBAPIError, engine: Engine) -> StorageError:
    """What a database error means, in one line that names the database, not the statement."""
    return StorageError(f"database {shown(engine)}: {explained(error)}")


def unstorable(error: Exception, database: str) -> UnstorableError:
    """What a database could not hold, as a failure of the trial that gave it."""
    cause = explained(error) if isinstance(error, DBAPIError) else first_line(_bare(error))
    return UnstorableError(f"database {database} cannot hold what the trial gave: {cause}")


def _bare(error: Exception) -> BaseException:
    """The driver's error, without the statement that SQLAlchemy adds to it."""
    return error.orig or error if isinstance(error, StatementError) else error


@contextmanager
def explaining(engine: Engine) -> Iterator[None]:
    """Tell a failure of the database below Optuna like one of our own.

    Raises:
        StorageError: the database failed.
    """
    try:
        yield
    except DBAPIError as error:
        raise storage_error(error, engine) from error
    except StorageInternalError as error:
        if isinstance(error.__cause__, DBAPIError):
            raise storage_error(error.__cause__, engine) from error
        raise StorageError(f"database: {' '.join(str(error).split())}") from error
