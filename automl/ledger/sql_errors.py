"""Classifies database errors: what each means, and how to fix it.

There is one table per database system, by that system's own codes, because messages differ
by version and language. An error that is not listed is fatal: the worker ends with one line, its
trial is taken over, and only the attempt counts.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, StatementError

from automl.errors import first_line


class Kind(Enum):
    """The kind of a database error."""

    TRANSIENT = "transient"
    """The call may succeed if it is retried: a deadlock, a lock, a cancelled statement."""
    AWAY = "away"
    """The database cannot be reached or written to at present: restarting, cut off, read-only."""
    OWN = "the trial's own"
    """The database cannot hold a value of the trial."""
    FATAL = "fatal"
    """Only a user can fix it."""


@dataclass(frozen=True)
class Meaning:
    """The meaning of a database error.

    Attributes:
        kind: The kind of the error.
        hint: How a user can fix it.
    """

    kind: Kind
    hint: str = ""


_DEADLOCK = Meaning(Kind.TRANSIENT)
_LOCKED = Meaning(
    Kind.TRANSIENT, "another program holds a lock in this database: wait for it or stop it"
)
_CANCELLED = Meaning(
    Kind.TRANSIENT, "the server cancels statements: raise its time limit for statements"
)
_FILE_LOCKED = Meaning(
    Kind.TRANSIENT, "another program holds the database: close it or use PostgreSQL"
)
_GONE = Meaning(Kind.AWAY)
_UNREACHABLE = Meaning(Kind.AWAY, "start the server, or check its host and port")
_NO_CONNECTION = Meaning(
    Kind.AWAY, "the server has no connection left: raise max_connections, or use fewer workers"
)
_NO_MEMORY = Meaning(Kind.AWAY, "the server is out of memory")
_READ_ONLY_SERVER = Meaning(
    Kind.AWAY,
    "the server is read-only, as after a failover: name the primary, or end the server's "
    "read-only mode",
)
_NO_THREAD = Meaning(
    Kind.AWAY, "the server cannot start another thread: give it more memory, or use fewer workers"
)
_NETWORK = Meaning(
    Kind.AWAY, "check the network, or raise the server's net_read_timeout and net_write_timeout"
)
_CHANGED_TABLES = Meaning(
    Kind.TRANSIENT, "another program is changing the tables: wait until it ends"
)
_TABLE_CACHE = Meaning(Kind.TRANSIENT, "raise the server's table_definition_cache")
_OWN = Meaning(Kind.OWN)
_TOO_DEEP = Meaning(Kind.OWN, "nest values less, or raise the server's max_stack_depth")
_DISK = Meaning(Kind.FATAL, "free some space or check the disk; stored data is not lost")
_LOGIN = Meaning(Kind.FATAL, "check the user and the password")
_TLS = Meaning(Kind.FATAL, "check sslmode and the certificates")
_NO_DATABASE = Meaning(Kind.FATAL, "check the database's name, or create it")
_RIGHTS = Meaning(Kind.FATAL, "get the permission to create and write tables")
_TABLES = Meaning(
    Kind.FATAL,
    "its tables are missing or of another version: use the same version of automl everywhere",
)
# Errors of our own statements, which do not depend on trials.
_TOO_MANY_COLUMNS = Meaning(
    Kind.FATAL, "its tables have columns that automl did not create: use a separate database"
)
_TOO_MANY_ARGUMENTS = Meaning(
    Kind.FATAL, "the server was built for fewer arguments of a function: use another server"
)
_BLOCKED = Meaning(Kind.FATAL, "the server rejects this host: ask its administrator")
_DAMAGED = Meaning(Kind.FATAL, "the file is damaged: restore a copy, or use another file")
_NO_DATABASE_FILE = Meaning(Kind.FATAL, "use another file, or move this one away")
_READ_ONLY_FILE = Meaning(Kind.FATAL, "make the file and its directory writable")
_MOVED_FILE = Meaning(Kind.FATAL, "the file was moved or deleted while it was open: restore it")
_NO_FILE = Meaning(Kind.FATAL, "check that the directory exists and is writable")
_UNKNOWN = Meaning(Kind.FATAL)

POSTGRESQL = {
    "08": _GONE,  # connection exceptions
    "22": _OWN,  # data exceptions
    "25006": _READ_ONLY_SERVER,
    "25P03": _GONE,  # idle in a transaction for too long
    "25P04": _GONE,  # a transaction for too long
    "28": _LOGIN,
    "3D000": _NO_DATABASE,
    "40001": _DEADLOCK,  # serialization failure
    "40003": _GONE,  # it is unknown whether the statement was completed
    "40P01": _DEADLOCK,
    "42501": _RIGHTS,
    "42P01": _TABLES,
    "42703": _TABLES,  # undefined column
    "53100": _DISK,
    "53200": _NO_MEMORY,
    "53300": _NO_CONNECTION,
    "54000": _OWN,  # such as an index row that is too long
    "54001": _TOO_DEEP,
    "54011": _TOO_MANY_COLUMNS,
    "54023": _TOO_MANY_ARGUMENTS,
    "55P03": _LOCKED,
    "57014": _CANCELLED,
    "57P01": _GONE,  # shut down by its administrator
    "57P02": _GONE,  # crashed
    "57P03": _GONE,  # starting
    "57P04": _NO_DATABASE,  # dropped
    "57P05": _GONE,  # idle for too long
    "58": _DISK,  # errors outside of PostgreSQL
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}
"""Meanings by SQLSTATE, or by its class of two characters."""

MYSQL = {
    3: _DISK,  # error writing a file
    1020: _DEADLOCK,  # a record has changed since it was read
    1021: _DISK,
    1030: _DISK,  # an error of the storage engine
    1037: _NO_MEMORY,
    1040: _NO_CONNECTION,
    1041: _NO_MEMORY,
    1044: _RIGHTS,
    1045: _LOGIN,
    1047: _GONE,  # a node of a cluster that is not ready
    1049: _NO_DATABASE,
    1053: _GONE,  # shutting down
    1054: _TABLES,  # unknown column
    1114: _DISK,  # a table is full
    1118: _OWN,  # row too large
    1129: _BLOCKED,
    1130: _BLOCKED,
    1135: _NO_THREAD,
    1142: _RIGHTS,
    1143: _RIGHTS,
    1146: _TABLES,
    1153: _OWN,  # packet too large
    1158: _NETWORK,  # an error in reading
    1159: _NETWORK,  # a timeout in reading
    1160: _NETWORK,  # an error in writing
    1161: _NETWORK,  # a timeout in writing
    1203: _NO_CONNECTION,
    1205: _LOCKED,
    1206: _LOCKED,  # more locks than fit
    1213: _DEADLOCK,
    1226: _NO_CONNECTION,
    1264: _OWN,  # out of range
    1265: _OWN,  # truncated
    1290: _READ_ONLY_SERVER,
    1292: _OWN,  # incorrect value
    1300: _OWN,  # invalid characters
    1317: _CANCELLED,
    1366: _OWN,  # incorrect text
    1406: _OWN,  # too long
    1412: _CHANGED_TABLES,
    1615: _TABLE_CACHE,  # a prepared statement
    1637: _DEADLOCK,  # too many transactions at once
    1690: _OWN,  # out of range in an expression
    1698: _LOGIN,
    1792: _READ_ONLY_SERVER,
    1836: _READ_ONLY_SERVER,
    1927: _GONE,  # killed
    1969: _CANCELLED,  # MariaDB's max_statement_time
    2002: _UNREACHABLE,
    2003: _UNREACHABLE,
    2006: _GONE,
    2013: _GONE,
    2014: _GONE,
    2055: _GONE,
    3024: _CANCELLED,  # MySQL's max_execution_time
    3101: _DEADLOCK,  # rolled back by a cluster
    3140: _OWN,  # invalid JSON
    3572: _LOCKED,
    4025: _OWN,  # MariaDB's check of JSON
    4031: _GONE,  # idle for too long
}
"""Meanings by the error numbers of MySQL and MariaDB."""

SQLITE = {
    "SQLITE_BUSY": _FILE_LOCKED,
    "SQLITE_CANTOPEN": _NO_FILE,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_FULL": _DISK,
    "SQLITE_INTERRUPT": _DEADLOCK,
    "SQLITE_IOERR": _DISK,
    "SQLITE_LOCKED": _FILE_LOCKED,
    "SQLITE_MISMATCH": _OWN,
    "SQLITE_NOLFS": _DISK,
    "SQLITE_NOTADB": _NO_DATABASE_FILE,
    "SQLITE_PERM": _READ_ONLY_FILE,
    "SQLITE_PROTOCOL": _FILE_LOCKED,  # lost many races for the lock of a file in WAL mode
    "SQLITE_READONLY": _READ_ONLY_FILE,
    "SQLITE_READONLY_DBMOVED": _MOVED_FILE,
    "SQLITE_SCHEMA": _DEADLOCK,  # another process made tables meanwhile
    "SQLITE_TOOBIG": _OWN,
}
"""Meanings by SQLite's extended error names, or by the primary ones."""

_CONNECTING = {
    # These come first: a server that goes away during the TLS handshake also mentions TLS.
    "closed unexpectedly": _GONE,
    "closed the connection": _GONE,
    "reset by peer": _GONE,
    "EOF": _GONE,
    "eof while reading": _GONE,
    "certificate": _TLS,
    "unknown ca": _TLS,
    "does not support SSL": _TLS,
    "sslmode": _TLS,
    "authentication failed": _LOGIN,
    "no password supplied": _LOGIN,
    'role "': _LOGIN,
    "not permitted to log in": _LOGIN,
    "pg_hba": _BLOCKED,
    "permission denied": _RIGHTS,
    "does not exist": _NO_DATABASE,
    "too many": _NO_CONNECTION,
    "connection slots": _NO_CONNECTION,
    "refused": _UNREACHABLE,
    "resolve host": Meaning(Kind.AWAY, "check the host's name"),
    "translate host": Meaning(Kind.AWAY, "check the host's name"),
    "timeout": Meaning(Kind.AWAY, "check the host and the network"),
    "timed out": Meaning(Kind.AWAY, "check the host and the network"),
}
"""Meanings by words: libpq has no codes for errors before there is a connection."""


def meaning(error: DBAPIError) -> Meaning:
    """Classify a database error."""
    found = _by_code(error.orig)
    if found is not None:
        return found
    # Not the other classes: a wrong option in the URL is a ProgrammingError.
    connecting = error.statement is None and isinstance(error, OperationalError | InterfaceError)
    if connecting and "psycopg" in type(error.orig).__module__:
        text = str(error.orig)
        return next((m for word, m in _CONNECTING.items() if word in text), _GONE)
    if error.connection_invalidated:
        return _GONE
    return _OWN if type(error.orig).__name__ == "DataError" else _UNKNOWN


def _by_code(orig: BaseException | None) -> Meaning | None:
    if (number := _number(orig)) is not None:
        return MYSQL.get(number)
    state = getattr(orig, "sqlstate", None)
    if state is not None:
        return POSTGRESQL.get(state) or POSTGRESQL.get(state[:2])
    name = getattr(orig, "sqlite_errorname", None)
    if name is not None:
        return SQLITE.get(name) or SQLITE.get("_".join(name.split("_")[:2]))
    return None


def _number(orig: BaseException | None) -> int | None:
    """Return the error number, which MySQL's drivers put before the text."""
    first = next(iter(getattr(orig, "args", ())), None)
    return first if isinstance(first, int) else None


def is_unstorable(error: BaseException) -> bool:
    """Whether a database, or its driver, cannot hold a given value."""
    if isinstance(error, DBAPIError):
        return meaning(error).kind is Kind.OWN
    # Drivers reject lone surrogates and numbers beyond 64 bits with Python's own exceptions.
    return isinstance(error, UnicodeError | OverflowError | StatementError)


def is_silence(error: BaseException | None) -> bool:
    """Whether a server or the network does not respond, rather than rejecting requests."""
    while error is not None:
        if isinstance(error, DBAPIError):
            found = meaning(error)
            return found.kind is not Kind.TRANSIENT and found is not _READ_ONLY_SERVER
        error = error.__cause__
    return True


def explained(error: DBAPIError) -> str:
    """Describe a database error, and what to do about it, in one line."""
    cause = first_line(error.orig or error)
    match list(getattr(error.orig, "args", ())):
        case [int(), str() as cause]:  # MySQL's: a number and a text
            cause = " ".join(cause.split())
    found = meaning(error)
    if found is _UNKNOWN:
        return f"{cause}{_code(error.orig)}"
    return f"{cause}; {found.hint}" if found.hint else cause


def _code(orig: Any) -> str:
    """Return the code of an error that is not in the tables, to look it up."""
    if (number := _number(orig)) is not None:
        return f" (error {number})"
    if (state := getattr(orig, "sqlstate", None)) is not None:
        return f" (SQLSTATE {state})"
    name = getattr(orig, "sqlite_errorname", None)
    return f" ({name})" if name else ""
