"""Opens the storage of studies: Optuna's trials and the ledger, in one database or in two."""

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.storages import BaseStorage
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from automl.errors import StorageError, UsageError
from automl.ledger.outages import OPTION, OUTAGE_SECONDS, OutageRetry
from automl.ledger.schema import upgrade
from automl.ledger.transaction import is_transient, is_unavailable
from automl.storage.backends import UNTRUSTED, Backend, backend
from automl.storage.collation import Names
from automl.storage.databases import DEFAULT_URL, Database, has_password, mask, parse
from automl.storage.optuna_logging import silence_optuna
from automl.storage.retrying import RetryingStorage

VARIABLE = "AUTOML_STORAGE"
LEDGER_VARIABLE = "AUTOML_LEDGER"
TRUST_VARIABLE = "AUTOML_TRUST_STORAGE"
WAIT_VARIABLE = "AUTOML_WAIT_FOR_DATABASE"
"""Set for workers that a search starts: its storage was available, so they wait for it."""


@dataclass(frozen=True, repr=False)
class Storage:
    """The storage of Optuna's studies and of the ledger.

    Attributes:
        url: The URL of Optuna's storage.
        ledger: The URL of the ledger's database, if it is another one.
        trusted: Whether Optuna may unpickle the storage's contents.

    Raises:
        UsageError: A URL is invalid, its driver is not installed, or the ledger has no database.
        StorageError: A database cannot be reached, or a newer version wrote it.
    """

    url: str
    ledger: str | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        found = backend(self.url)
        object.__setattr__(self, "url", found.url)
        if self.ledger is not None:
            object.__setattr__(self, "ledger", Database(self.ledger).url)
        elif not found.holds_ledger:
            raise UsageError(
                f"{found.shown} cannot hold the ledger: name a database for it with --ledger or "
                f"{LEDGER_VARIABLE}, such as --ledger sqlite:///ledger.db"
            )

    @property
    def _backend(self) -> Backend:
        return backend(self.url)

    @property
    def _database(self) -> Database:
        return Database(self.ledger or self.url)

    @property
    def masked(self) -> str:
        """The URL of Optuna's storage without its password."""
        return mask(self.url)

    def __repr__(self) -> str:
        return f"Storage({', '.join(map(repr, map(mask, self._urls)))})"

    @property
    def _urls(self) -> list[str]:
        return [self.url] if self.ledger is None else [self.url, self.ledger]

    @property
    def sqlite_files(self) -> list[str]:
        """The databases that are files, which only workers on one machine can share."""
        return [mask(url) for url in self._sqlite_urls]

    @property
    def _sqlite_urls(self) -> list[str]:
        return [url for url in self._urls if parse(url).get_backend_name() == "sqlite"]

    @property
    def open_files(self) -> list[Path]:
        """The files that SQLite keeps open while it is used."""
        files = [parse(url).database for url in self._sqlite_urls]
        return [Path(f"{file}{end}") for file in files for end in ("", "-wal", "-shm")]

    def missing(self) -> str | None:
        """Return the URL, without its password, of a storage that does not exist, if any.

        Servers are assumed to exist.
        """
        if not self._backend.exists():
            return self.masked
        return None if self._database.exists() else mask(self._database.url)

    def option(self) -> str:
        """Return the command-line options that name this storage, never with a password."""
        options = {"--storage": self.url, "--ledger": self.ledger}
        options_text = [
            f" {option} {shlex.quote(url)}"
            for option, url in options.items()
            if url is not None and url != DEFAULT_URL and not has_password(url)
        ]
        return "".join([*options_text, " --trust-storage"] if self.trusted else options_text)

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that must hold the URLs that `option` leaves out."""
        pairs = ((VARIABLE, self.url), (LEDGER_VARIABLE, self.ledger))
        return tuple(name for name, url in pairs if url is not None and has_password(url))

    def environment(self) -> dict[str, str]:
        """Return the variables that pass this storage, with its passwords, to a child process."""
        return {
            VARIABLE: self.url,
            LEDGER_VARIABLE: self.ledger or "",
            TRUST_VARIABLE: "1" if self.trusted else "",
            WAIT_VARIABLE: "1",
        }

    @cached_property
    def outage_retry(self) -> OutageRetry:
        """Retries calls to either database during outages."""
        return OutageRetry(OUTAGE_SECONDS if os.environ.get(WAIT_VARIABLE) else 0.0)

    @cached_property
    def engine(self) -> Engine:
        """The ledger's engine, after its tables have been created or migrated."""
        engine = self._database.connect({OPTION: self.outage_retry})
        shown = mask(self._database.url)
        self.outage_retry.run(shown, lambda is_retry: upgrade(engine), _could_not_connect)
        return engine

    @cached_property
    def trials(self) -> BaseStorage:
        """Optuna's storage."""
        silence_optuna()
        # The ledger is opened first, as it reports an unusable database without a traceback.
        _ = self.engine
        found = self._backend
        opened = self.outage_retry.run(
            found.shown,
            lambda is_retry: found.open(self.trusted),
            lambda error: found.is_outage(_origin(error)),
        )
        return RetryingStorage(opened, found, self.outage_retry)

    @cached_property
    def _names(self) -> Names:
        found = self._backend
        # The server compares names by Optuna's tables, so these must exist.
        _ = self.trials

        def ask(name: str, others: Sequence[str]) -> Collection[str]:
            try:
                return self.outage_retry.run(
                    found.shown, lambda is_retry: found.alike(name, others), found.is_outage
                )
            except DBAPIError as error:
                raise StorageError(f"database {found.shown}: {found.cause(error)}") from error

        return Names(ask)

    @property
    def distinguishes_names(self) -> bool:
        """Whether Optuna's storage distinguishes names that differ in any character."""
        return self._backend.distinguishes_names

    def name_like(self, name: str, others: Collection[str]) -> str | None:
        """Return another name that Optuna's storage treats as equal to this one, if any."""
        return None if self.distinguishes_names else self._names.alike(name, others)

    @property
    def _is_local(self) -> bool:
        """Whether both are files of this machine; a ledger on a server implies other writers."""
        return self._backend.is_local_file and not self._database.is_server

    def vetted(self, sampler: BaseSampler) -> BaseSampler:
        """Return a sampler, unless it would unpickle data that others may have written.

        Raises:
            UsageError: The sampler is or contains CMA-ES, and the trials are not in local files.
        """
        if not (self.trusted or self._is_local) and _unpickles(sampler):
            raise UsageError(
                f"CMA-ES unpickles its state from the trials in {self.masked}, {UNTRUSTED}"
            )
        return sampler


def _could_not_connect(error: Exception) -> bool:
    return is_unavailable(_origin(error)) or is_transient(_origin(error))


def _origin(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _unpickles(sampler: BaseSampler) -> bool:
    """Whether a sampler is or contains CMA-ES, also within lists and dictionaries."""
    seen: set[int] = set()
    waiting: list[object] = [sampler]
    while waiting:
        found = waiting.pop()
        if isinstance(found, CmaEsSampler):
            return True
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, BaseSampler):
            waiting.extend(getattr(found, "__dict__", {}).values())
        elif isinstance(found, dict):
            waiting.extend(found.values())
        elif isinstance(found, list | tuple | set | frozenset):
            waiting.extend(found)
    return False


def storage_from(url: str | None, ledger: str | None = None, trusted: bool = False) -> Storage:
    """Return the requested storage.

    AUTOML_LEDGER belongs to AUTOML_STORAGE: it is ignored if `url` names another storage that can
    hold the ledger itself.

    Args:
        url: The URL of Optuna's storage; by default AUTOML_STORAGE, or a file.
        ledger: The URL of the ledger's database; by default AUTOML_LEDGER.
        trusted: Whether Optuna may unpickle the storage's contents.
    """
    chosen = storage_url(url)
    if not ledger and (not url or not backend(chosen).holds_ledger):
        ledger = os.environ.get(LEDGER_VARIABLE)
    return Storage(chosen, ledger or None, trusted)


def storage_url(url: str | None) -> str:
    """Return the given URL, or AUTOML_STORAGE, or that of a file in this directory."""
    return url or os.environ.get(VARIABLE) or DEFAULT_URL
