"""Opens what a study lies in: Optuna's trials and the ledger, in one database or in two."""

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.storages import BaseStorage
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from automl.errors import StorageError, UsageError
from automl.ledger.outages import OPTION, OUTAGE_SECONDS, Patience
from automl.ledger.schema import upgrade
from automl.ledger.transaction import is_away, is_transient
from automl.storage.backends import UNTRUSTED, Backend, backend
from automl.storage.collation import Names
from automl.storage.databases import DEFAULT_URL, Database, has_password, mask, parse
from automl.storage.optuna_logging import quieten_optuna
from automl.storage.retrying import PatientStorage

VARIABLE = "AUTOML_STORAGE"
LEDGER_VARIABLE = "AUTOML_LEDGER"
TRUST_VARIABLE = "AUTOML_TRUST_STORAGE"
PATIENT_VARIABLE = "AUTOML_PATIENT"
"""Set for workers that a search starts: its storage was there, so that they wait for it, too."""


@dataclass(frozen=True, repr=False)
class Storage:
    """Where Optuna's studies lie, and the ledger: there too, or in a database of its own.

    ledger: the URL of that database. trusted: whether Optuna may unpickle what lies in there.

    Raises:
        UsageError: a URL is none, its driver is not installed, or the ledger has no place.
        StorageError: a database cannot be reached, or a newer version wrote it.
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
                f"{found.shown} cannot hold the ledger: name a database for it by --ledger or "
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
        """The URL of the trials without its password."""
        return mask(self.url)

    def __repr__(self) -> str:
        return f"Storage({', '.join(map(repr, map(mask, self._urls)))})"

    @property
    def _urls(self) -> list[str]:
        return [self.url] if self.ledger is None else [self.url, self.ledger]

    @property
    def sqlite_files(self) -> list[str]:
        """The databases that are files, which workers of one machine alone can share."""
        return [mask(url) for url in self._urls if parse(url).get_backend_name() == "sqlite"]

    def missing(self) -> str | None:
        """What is not there to read, without its password; a server is taken to be there."""
        if not self._backend.exists():
            return self.masked
        return None if self._database.exists() else mask(self._database.url)

    def option(self) -> str:
        """How a person names this storage on the command line; never with a password."""
        options = {"--storage": self.url, "--ledger": self.ledger}
        said = [
            f" {option} {shlex.quote(url)}"
            for option, url in options.items()
            if url is not None and url != DEFAULT_URL and not has_password(url)
        ]
        return "".join([*said, " --trust-storage"] if self.trusted else said)

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that must say what `option` leaves out."""
        pairs = ((VARIABLE, self.url), (LEDGER_VARIABLE, self.ledger))
        return tuple(name for name, url in pairs if url is not None and has_password(url))

    def environment(self) -> dict[str, str]:
        """What names this storage to a process started from here, passwords included."""
        return {
            VARIABLE: self.url,
            LEDGER_VARIABLE: self.ledger or "",
            TRUST_VARIABLE: "1" if self.trusted else "",
            PATIENT_VARIABLE: "1",
        }

    @cached_property
    def patience(self) -> Patience:
        """How long either database may be away."""
        return Patience(OUTAGE_SECONDS if os.environ.get(PATIENT_VARIABLE) else 0.0)

    @cached_property
    def engine(self) -> Engine:
        """The ledger's engine; its tables are made or migrated first."""
        engine = self._database.connect({OPTION: self.patience})
        shown = mask(self._database.url)
        self.patience.insist(shown, lambda again: upgrade(engine), _could_not_connect)
        return engine

    @cached_property
    def trials(self) -> BaseStorage:
        """Optuna's storage."""
        quieten_optuna()
        # The ledger comes first: a database that cannot be used is told by it, without a trace.
        _ = self.engine
        found = self._backend
        opened = self.patience.insist(
            found.shown,
            lambda again: found.open(self.trusted),
            lambda error: found.is_outage(_origin(error)),
        )
        return PatientStorage(opened, found, self.patience)

    @cached_property
    def _names(self) -> Names:
        found = self._backend
        # A server is asked how Optuna's tables compare, so they must be there.
        _ = self.trials

        def ask(name: str, others: Sequence[str]) -> Collection[str]:
            try:
                return self.patience.insist(
                    found.shown, lambda again: found.alike(name, others), found.is_outage
                )
            except DBAPIError as error:
                raise StorageError(f"database {found.shown}: {found.cause(error)}") from error

        return Names(ask)

    @property
    def tells_names_apart(self) -> bool:
        """Whether names that differ in any character are two names among the trials."""
        return self._backend.tells_names_apart

    def name_like(self, name: str, others: Collection[str]) -> str | None:
        """One of the other names that the trials' database takes for this one, if any."""
        return None if self.tells_names_apart else self._names.alike(name, others)

    @property
    def _is_local(self) -> bool:
        """Whether all lies in files of this machine; a ledger on a server says others join in."""
        return self._backend.is_local_file and not self._database.is_server

    def vetted(self, sampler: BaseSampler) -> BaseSampler:
        """A sampler, unless it would unpickle what others may have written.

        Raises:
            UsageError: it is CMA-ES, or holds it, and the trials lie in no local file.
        """
        if not (self.trusted or self._is_local) and _unpickles(sampler):
            raise UsageError(
                f"CMA-ES unpickles its state from trials in {self.masked}, {UNTRUSTED}"
            )
        return sampler


def _could_not_connect(error: Exception) -> bool:
    return is_away(_origin(error)) or is_transient(_origin(error))


def _origin(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _unpickles(sampler: BaseSampler) -> bool:
    """Whether a sampler is CMA-ES or holds it, be it in a list or dictionary."""
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
    """The storage asked for: by options, else by AUTOML_STORAGE and AUTOML_LEDGER, else a file.

    AUTOML_LEDGER belongs to AUTOML_STORAGE: it does not count for another one that was given and
    can hold the ledger itself.
    """
    asked = storage_url(url)
    if not ledger and (not url or not backend(asked).holds_ledger):
        ledger = os.environ.get(LEDGER_VARIABLE)
    return Storage(asked, ledger or None, trusted)


def storage_url(given: str | None) -> str:
    """The storage asked for: the option, else AUTOML_STORAGE, else a file here."""
    return given or os.environ.get(VARIABLE) or DEFAULT_URL
