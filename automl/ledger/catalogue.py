"""The functions that a database knows, as one study may use them; each method is a transaction."""

from collections.abc import Collection
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from automl.identity.fingerprint import Identity
from automl.ledger import functions
from automl.ledger.functions import Resolved
from automl.ledger.matching import Recognition
from automl.ledger.transaction import reading, transactional
from automl.spec import Cache


@dataclass(frozen=True)
class Functions:
    """What is known of functions; `cache` says at which levels they are recognised."""

    engine: Engine
    study: str = ""
    cache: Cache = field(default_factory=Cache)

    @transactional
    def resolve(self, session: Session, identity: Identity) -> Resolved:
        """The function of an identity, entered where it is new; a claim does so by itself."""
        return functions.resolve(session, identity, self.cache)

    @reading
    def fingerprint(self, session: Session, identity: Identity) -> str:
        """The fingerprint that an identity has, or would have."""
        return functions.look_up(session, identity, self.cache).fingerprint

    @reading
    def is_known(self, session: Session, identity: Identity) -> bool:
        """Whether an identity is recognised by its decisions or graph, so needs no probe."""
        return functions.is_known(session, identity, self.cache)

    @reading
    def unprobed(
        self, session: Session, limit: int, but: Collection[str] = ()
    ) -> list[tuple[str, int]]:
        """Fingerprints of this study that nobody probed, each with the number of a trial.

        but: those to leave out, such as what could not be probed.
        """
        return functions.unprobed(session, self.study, limit, but)

    @transactional
    def add_probe(self, session: Session, fingerprint: str, identity: Identity) -> Recognition:
        """Store what a probe found; a function that turns out to be another becomes that one."""
        return functions.add_probe(session, self.study, fingerprint, identity, self.cache)

    def prune(self, keep: int) -> int:
        """Drop the least recently used functions of the database beyond `keep`; how many.

        Each batch is a transaction, so that no other writer waits for long.
        """
        dropped = 0
        if not self._beyond(keep):
            return 0
        while batch := self._prune(keep):
            dropped += batch
        return dropped

    @reading
    def _beyond(self, session: Session, keep: int) -> bool:
        return functions.count(session) > keep

    @transactional
    def _prune(self, session: Session, keep: int) -> int:
        return functions.prune(session, keep)

    @reading
    def foreign(self, session: Session) -> int:
        """How many functions of the database another version of the hasher wrote."""
        return functions.foreign(session)
