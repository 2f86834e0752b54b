"""Transactions of the ledger, which are retried after deadlocks, lock timeouts and outages."""

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
from automl.ledger.outages import outage_retry_of
from automl.ledger.sql_errors import Kind, explained, is_unstorable, meaning
from automl.text.redaction import redact_urls

P = ParamSpec("P")
T = TypeVar("T")
_TRIES = 8
_SECONDS = 20.0
"""Both must be used up before a deadlock is an error. On a busy machine, the database always rolls
back the transaction that has written least, and tries follow each other quickly."""
_PAUSE = 1.0
"""The longest pause between two tries, in seconds."""
_RETRY = "automl_retry"
# The global generator is left alone: the running trial draws from it.
_draw = random.Random()


class HasEngine(Protocol):
    @property
    def engine(self) -> Engine: ...


L = TypeVar("L", bound=HasEngine)


def transactional(
    method: Callable[Concatenate[L, Session, P], T],
) -> Callable[Concatenate[L, P], T]:
    """Run a method in one transaction that is retried on deadlocks and outages.

    The method receives the session. A commit may have succeeded although its reply was lost: a
    method for which that matters checks `is_retry`.

    Raises:
        StorageError: The database failed; nothing was changed.
        UnstorableError: The database cannot hold a given value.
    """
    return _in_session(method)


def transactional_once(
    method: Callable[Concatenate[L, Session, P], T],
) -> Callable[Concatenate[L, P], T]:
    """Run a method in one transaction that is not retried if it may have been committed."""
    return _in_session(method, retry_outages=False)


def reading(method: Callable[Concatenate[L, Session, P], T]) -> Callable[Concatenate[L, P], T]:
    """Run a method in a read-only transaction, which never waits for a writer."""
    return _in_session(method, read_only=True)


def is_retry(session: Session) -> bool:
    """Whether the same transaction may have been committed before, with its reply lost."""
    return bool(session.info[_RETRY])


def _in_session(
    method: Callable[Concatenate[L, Session, P], T],
    read_only: bool = False,
    retry_outages: bool = True,
) -> Callable[Concatenate[L, P], T]:
    def run(self: L, /, *args: P.args, **kwargs: P.kwargs) -> T:
        engine = self.engine.execution_options(automl_read=read_only)

        def once(retry: bool) -> T:
            info = {_RETRY: retry}
            with Session(engine, expire_on_commit=False, info=info) as session, session.begin():
                return method(self, session, *args, **kwargs)

        def is_outage(error: Exception) -> bool:
            return is_transient(error) or (retry_outages and is_unavailable(error))

        try:
            return outage_retry_of(engine).run(
                masked_url(engine), lambda retry: retry_deadlocks(once, retry), is_outage
            )
        except Exception as error:
            if is_unstorable(error):
                raise unstorable(error, masked_url(engine)) from error
            if isinstance(error, DBAPIError):
                raise storage_error(error, self.engine) from error
            raise

    functools.update_wrapper(run, method)
    return run


def is_transient(error: Exception) -> bool:
    """Whether a transaction may succeed if it is retried at once, as after a deadlock."""
    return isinstance(error, DBAPIError) and meaning(error).kind is Kind.TRANSIENT


def is_unavailable(error: Exception) -> bool:
    """Whether a database cannot be reached or written to at present."""
    return isinstance(error, DBAPIError) and meaning(error).kind is Kind.AWAY


def retry_deadlocks(
    once: Callable[[bool], T],
    retry: bool,
    is_transient: Callable[[Exception], bool] = is_transient,
) -> T:
    """Call until it succeeds, or fails for another reason than a deadlock.

    Args:
        once: The call; its argument is `retry`.
        retry: Whether an earlier call may have succeeded although its reply was lost.
        is_transient: Whether the call may succeed if it is retried at once.
    """
    began = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return once(retry)
        except Exception as error:
            spent = attempt >= _TRIES and time.monotonic() - began >= _SECONDS
            if spent or not is_transient(error):
                raise
        time.sleep(_draw.uniform(0.5, 1) * min(0.05 * 2 ** (attempt - 1), _PAUSE))
    raise AssertionError("the last try returned or raised")


def masked_url(engine: Engine) -> str:
    """Return a database's URL without its password."""
    return redact_urls(engine.url.render_as_string(hide_password=True))


def storage_error(error: DBAPIError, engine: Engine) -> StorageError:
    """Describe a database error in one line that names the database, not the statement."""
    return StorageError(f"database {masked_url(engine)}: {explained(error)}")


def unstorable(error: Exception, database: str) -> UnstorableError:
    """Return the error of a trial that gave a value which the database cannot hold."""
    cause = explained(error) if isinstance(error, DBAPIError) else first_line(_bare(error))
    return UnstorableError(f"database {database} cannot hold a value of the trial: {cause}")


def _bare(error: Exception) -> BaseException:
    """Return the driver's error, without the statement that SQLAlchemy adds."""
    return error.orig or error if isinstance(error, StatementError) else error


@contextmanager
def translate_errors(engine: Engine) -> Iterator[None]:
    """Raise database errors, including those behind Optuna's, as a StorageError.

    Raises:
        StorageError: The database failed.
    """
    try:
        yield
    except DBAPIError as error:
        raise storage_error(error, engine) from error
    except StorageInternalError as error:
        if isinstance(error.__cause__, DBAPIError):
            raise storage_error(error.__cause__, engine) from error
        raise StorageError(f"database: {' '.join(str(error).split())}") from error
