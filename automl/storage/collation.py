"""Which names a database takes for one: MySQL's collations ignore case, accents, trailing blanks.

Optuna's tables hold one value for each name of a trial. Of two that a database takes for one, the
second would be lost without a word.
"""

import threading
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine, and_, cast, collate, column, func, or_, select, table
from sqlalchemy.dialects import mysql

from automl.errors import CandidateError
from automl.storable import short

Ask = Callable[[str, Sequence[str]], Collection[str]]
"""Which of these names a database takes for a given one."""

_COLUMNS = (
    ("trial_params", "param_name"),
    ("trial_user_attributes", "key"),
    ("trial_system_attributes", "key"),
)


@dataclass
class Names:
    """The names met so far, each compared once with all others."""

    ask: Ask
    _alike: dict[str, frozenset[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def alike(self, name: str, others: Collection[str]) -> str | None:
        """One of the other names that the database takes for this one, if there is any."""
        with self._lock:
            for each in (*others, name):
                if each not in self._alike:
                    self._meet(each)
            return next((o for o in others if o != name and o in self._alike[name]), None)

    def _meet(self, name: str) -> None:
        known = list(self._alike)
        same = frozenset(self.ask(name, known)) if known else frozenset()
        self._alike[name] = same
        for other in same:
            self._alike[other] |= {name}


def all_differ(name: str, others: Sequence[str]) -> Collection[str]:
    """Compare as most storages do: by every character."""
    return ()


def folded_alike(name: str, others: Sequence[str]) -> Collection[str]:
    """Compare as the database behind a proxy might, which cannot be asked."""
    return {other for other in others if _folded(other) == _folded(name)}


def collated_alike(engine: Engine, name: str, others: Sequence[str]) -> Collection[str]:
    """Ask a MySQL or MariaDB server, by the collations of Optuna's columns."""
    found: set[str] = set()
    with engine.connect() as connection:
        for charset, collation in connection.execute(_COLLATIONS).all():
            kind = mysql.VARCHAR(charset=charset)
            own = collate(cast(name, kind), collation)
            answers = connection.execute(select(*(own == cast(o, kind) for o in others))).one()
            found |= {other for other, same in zip(others, answers, strict=True) if same}
    return found


def lost_name(kind: str, name: str, other: str, where: str) -> CandidateError:
    """Why a trial cannot have both of two names."""
    return CandidateError(
        f"{kind} {short(name)} and {short(other)} are one name in {where}, which ignores case, "
        "accents and trailing blanks, so that one would be lost: rename one of them"
    )


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name)
    return "".join(c for c in plain if not unicodedata.combining(c)).casefold().rstrip()


_columns = table(
    "columns",
    *(column("table_schema"), column("table_name"), column("column_name")),
    *(column("character_set_name"), column("collation_name")),
    schema="information_schema",
)
_COLLATIONS = (
    select(_columns.c.character_set_name, _columns.c.collation_name)
    .where(
        _columns.c.table_schema == func.database(),
        or_(
            *(
                and_(_columns.c.table_name == name, _columns.c.column_name == key)
                for name, key in _COLUMNS
            )
        ),
    )
    .distinct()
)
