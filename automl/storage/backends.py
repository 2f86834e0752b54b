"""Where Optuna's trials lie: an SQL database, a journal in a file or in Redis, or a gRPC proxy."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalRedisBackend
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from automl.errors import StorageError, UsageError
from automl.ledger.schema import alone
from automl.ledger.sql_errors import explained
from automl.ledger.transaction import is_away, is_transient
from automl.storage.collation import all_differ, collated_alike, folded_alike
from automl.storage.databases import Database, mask, no_driver, parse

UNTRUSTED = (
    "which whoever writes to it could use to run code here: pass --trust-storage "
    "(trust_storage=True) if you trust all who can write to it"
)


@dataclass(frozen=True, repr=False)
class Backend(ABC):
    """A storage for Optuna's trials, by its URL.

    Raises:
        UsageError: the URL lacks something, or what the storage needs is not installed.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self._checked_url())

    def _checked_url(self) -> str:
        return self.url

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return mask(self.url)

    @property
    def is_local_file(self) -> bool:
        """Whether only who may write to a file of this machine can write to it."""
        return False

    @property
    def holds_ledger(self) -> bool:
        """Whether the ledger's tables can lie there, too."""
        return False

    def exists(self) -> bool:
        """Whether there is something to read; a server is taken to have it."""
        return True

    @abstractmethod
    def open(self, trusted: bool) -> BaseStorage:
        """Optuna's storage; trusted: whether what lies there may be unpickled.

        Raises:
            UsageError: it would unpickle, and is not trusted.
            StorageError: it cannot be reached.
        """

    def is_outage(self, error: Exception) -> bool:
        """Whether the storage could not be reached, or went away."""
        return False

    def is_transient(self, error: Exception) -> bool:
        """Whether the call may go through if it is made again at once."""
        return False

    @property
    def tells_names_apart(self) -> bool:
        """Whether names that differ in any character are two names there."""
        return True

    def alike(self, name: str, others: Sequence[str]) -> Collection[str]:
        """Those of the other names that are one with this one there."""
        return all_differ(name, others)

    @abstractmethod
    def cause(self, error: Exception) -> str | None:
        """One line for a failure of the storage itself; None for any other error."""


class SqlTrials(Backend):
    """Optuna's own tables in a database."""

    def _checked_url(self) -> str:
        return Database(self.url).url

    @property
    def is_local_file(self) -> bool:
        return not Database(self.url).is_server

    @property
    def holds_ledger(self) -> bool:
        return True

    def exists(self) -> bool:
        return Database(self.url).exists()

    def open(self, trusted: bool) -> BaseStorage:
        try:
            storage = self._made_alone()
        except DBAPIError as error:
            raise StorageError(f"database {self.shown}: {explained(error)}") from error
        except ImportError as error:
            raise UsageError(no_driver(parse(self.url).drivername)) from error
        except RuntimeError as error:
            raise StorageError(f"{self.shown}: {' '.join(str(error).split())}") from error
        # Connections made so far lack the settings below.
        storage.engine.dispose()
        Database(self.url).prepare(storage.engine)
        return get_storage(storage)

    def _made_alone(self) -> RDBStorage:
        """Optuna makes its tables without a lock, so that of two who start one would fail."""
        database = Database(self.url)
        engine = database.connect({})
        try:
            # SQLite's lock would keep Optuna out, too.
            with alone(engine) if database.is_server else nullcontext():
                return self._made()
        finally:
            engine.dispose()

    def _made(self) -> RDBStorage:
        for attempt in range(5):
            try:
                return RDBStorage(self.url, engine_kwargs=Database(self.url).settings)
            except DBAPIError:
                # Other programs take no lock; who comes second tries again.
                if attempt == 4:
                    raise
        raise AssertionError("the last try returned or raised")

    @property
    def tells_names_apart(self) -> bool:
        return parse(self.url).get_backend_name() != "mysql"

    def alike(self, name: str, others: Sequence[str]) -> Collection[str]:
        if self.tells_names_apart:
            return all_differ(name, others)
        engine = Database(self.url).connect({})
        try:
            return collated_alike(engine, name, others)
        finally:
            engine.dispose()

    def is_outage(self, error: Exception) -> bool:
        found = _database_error(error)
        # Optuna's session of this thread may notice at its next statement only.
        late = isinstance(error.__cause__, PendingRollbackError)
        return late or (found is not None and is_away(found))

    def is_transient(self, error: Exception) -> bool:
        found = _database_error(error)
        return found is not None and is_transient(found)

    def cause(self, error: Exception) -> str | None:
        found = _database_error(error)
        if found is not None:
            return explained(found)
        return _line(error.__cause__) if isinstance(error, StorageInternalError) else None


class JournalFile(Backend):
    """A file to which all that happens is appended, one JSON object a line."""

    def _checked_url(self) -> str:
        if not parse(self.url).database:
            raise UsageError(
                f"{self.shown!r} names no file: expected, for example, journal:///a.log"
            )
        return self.url

    @property
    def _path(self) -> Path:
        return Path(parse(self.url).database or "")

    @property
    def is_local_file(self) -> bool:
        return True

    def exists(self) -> bool:
        return self._path.exists()

    def open(self, trusted: bool) -> BaseStorage:
        path = str(self._path)
        try:
            return JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.shown}: {self.cause(error)}") from error

    def cause(self, error: Exception) -> str | None:
        if isinstance(error, OSError):
            return f"{error.strerror}; check the file, its directory and the disk"
        broken = isinstance(error, ValueError) and "Invalid log" in str(error)
        return "the journal is damaged: put a copy back, or name another" if broken else None


class RedisJournal(Backend):
    """The same journal in Redis, under the keys that begin with `?prefix=`."""

    def _checked_url(self) -> str:
        _require("redis", "redis")
        return self.url

    def open(self, trusted: bool) -> BaseStorage:
        if not trusted:
            raise UsageError(f"Optuna unpickles a snapshot of {self.shown}, {UNTRUSTED}")
        url = parse(self.url)
        prefix = str(url.query.get("prefix", ""))
        url = url.difference_update_query(["prefix"])
        limits = {name: value for name, value in _REDIS_LIMITS.items() if name not in url.query}
        plain = url.update_query_dict(limits).render_as_string(hide_password=False)
        try:
            return JournalStorage(JournalRedisBackend(plain, prefix=prefix))
        except Exception as error:
            cause = self.cause(error)
            if cause is None:
                raise
            raise StorageError(f"{self.shown}: {cause}") from error

    def is_outage(self, error: Exception) -> bool:
        from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError

        away = isinstance(error, ConnectionError | TimeoutError)
        return away and not isinstance(error, AuthenticationError)

    def cause(self, error: Exception) -> str | None:
        from redis.exceptions import RedisError

        return _line(error) if isinstance(error, RedisError) else None


class GrpcProxy(Backend):
    """A proxy of Optuna before another storage: `optuna.storages.run_grpc_proxy_server`."""

    def _checked_url(self) -> str:
        _require("grpc", "grpc")
        _require("google.protobuf", "grpc")
        if not parse(self.url).host or not parse(self.url).port:
            raise UsageError(f"{self.shown!r}: expected grpc://host:port")
        return self.url

    def open(self, trusted: bool) -> BaseStorage:
        url = parse(self.url)
        storage = GrpcStorageProxy(host=url.host or "", port=url.port or 0)
        try:
            storage.wait_server_ready(timeout=_GRPC_SECONDS)
        except ConnectionError as error:
            raise StorageError(
                f"{self.shown}: no gRPC proxy answers there; start it, or check host and port"
            ) from error
        return storage

    @property
    def tells_names_apart(self) -> bool:
        return False

    def alike(self, name: str, others: Sequence[str]) -> Collection[str]:
        return folded_alike(name, others)

    def is_outage(self, error: Exception) -> bool:
        from grpc import RpcError, StatusCode

        if not isinstance(error, RpcError):
            return isinstance(error, ConnectionError)
        # The proxy does not say what its own storage failed for.
        failed = _STORAGE_FAILED in (error.details() or "")
        return error.code() is StatusCode.UNAVAILABLE or failed

    def cause(self, error: Exception) -> str | None:
        from grpc import RpcError

        return _line(error.details() or error) if isinstance(error, RpcError) else None


_OF_STORAGES = (StorageInternalError, DBAPIError)
_GRPC_SECONDS = 5.0
_REDIS_LIMITS = {"socket_connect_timeout": "10", "socket_timeout": "70"}
"""How many seconds a server may be silent, where the URL does not say."""
_STORAGE_FAILED = "An exception is raised during the commit"
_KINDS: dict[str, type[Backend]] = {
    "journal": JournalFile,
    "redis": RedisJournal,
    "rediss": RedisJournal,
    "grpc": GrpcProxy,
}


def backend(url: str) -> Backend:
    """The kind of storage that a URL names; an SQL database unless its scheme says otherwise."""
    return _KINDS.get(parse(url).drivername, SqlTrials)(url)


def _require(module: str, extra: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise UsageError(f"{extra} is not installed: pip install 'automl[{extra}]'") from error


def _database_error(error: Exception) -> DBAPIError | None:
    """The database's error that one of Optuna's for its storage was raised for."""
    found: BaseException | None = error if isinstance(error, _OF_STORAGES) else None
    while found is not None and not isinstance(found, DBAPIError):
        found = found.__cause__ or found.__context__
    return found


def _line(error: object) -> str:
    return " ".join(str(error).split())
