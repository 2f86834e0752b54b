"""The ledger's tables, beside Optuna's in one database; rows never leave this package.

No foreign key points to Optuna's tables: one would make deleting a study fail silently on
PostgreSQL, and SQLite gives the id of a deleted trial to the next. A study's UUID stands for it.
Times are seconds since 1970 by the database's clock.
"""

from enum import Enum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from automl.identity.fingerprint import Level
from automl.plugin.report import Reason, State

_JSON = JSON(none_as_null=True)
LongText = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
BigStep = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite's integers are big as they are."""
LongBinary = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


class Phase(Enum):
    """Where a trial stands."""

    PROPOSING = "proposing"
    TRAINING = "training"
    PARKED = "parked"
    SETTLED = "settled"


class EvaluationState(Enum):
    """What is known of a fingerprint."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


class Role(Enum):
    """What an evaluation is for: all who compute the same, its own trial alone, or an audit."""

    SHARED = "shared"
    OWN = "own"
    AUDIT = "audit"


class StopReason(Enum):
    """Why a study ended before its budget."""

    EXHAUSTED = "space-exhausted"
    SAME_FAILURE = "same-failure"


def _enum(kind: type[Enum]) -> EnumType:
    return EnumType(
        kind, native_enum=False, length=32, values_callable=lambda e: [m.value for m in e]
    )


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {float: Double(), dict[str, Any]: _JSON, list[float]: _JSON}


class StudyRow(Base):
    """A study's budget and how much of it is taken; the one row all its workers count on."""

    __tablename__ = "automl_studies"

    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    trials_limit: Mapped[int | None]
    evaluations_limit: Mapped[int | None]
    deadline: Mapped[float | None]
    device_seconds_limit: Mapped[float | None]
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    """Time on devices that trainers took, or have bought for trials under way."""
    slots: Mapped[int] = mapped_column(default=0)
    """Trials proposed so far, those under way included."""
    payable: Mapped[int] = mapped_column(default=0)
    """Slots that were paid for, or may still have to be."""
    repeats: Mapped[int] = mapped_column(default=0)
    """Known fingerprints proposed in a row."""
    stopped: Mapped[StopReason | None] = mapped_column(_enum(StopReason))
    stopped_because: Mapped[str | None] = mapped_column(LongText)
    created_at: Mapped[float]


class TrialRow(Base):
    """A trial: who holds it, and how it ended. The truth from which Optuna's trial is told."""

    __tablename__ = "automl_trials"
    __table_args__ = (
        UniqueConstraint("study", "number"),
        Index(None, "study", "phase"),
        Index(None, "study", "told"),
        Index(None, "evaluation", "phase"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    study: Mapped[str] = mapped_column(ForeignKey(StudyRow.uuid, ondelete="CASCADE"))
    number: Mapped[int | None]
    phase: Mapped[Phase] = mapped_column(_enum(Phase))
    token: Mapped[int] = mapped_column(default=1)
    attempt: Mapped[int] = mapped_column(default=1)
    worker: Mapped[str | None] = mapped_column(String(255))
    device: Mapped[str | None] = mapped_column(String(64))
    expires_at: Mapped[float | None]
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    level: Mapped[str | None] = mapped_column(String(16))
    evaluation: Mapped[int | None]
    reused_from: Mapped[int | None]
    reused_study: Mapped[str | None] = mapped_column(String(36))
    """The study whose trial `reused_from` is, where it is another one."""
    identification: Mapped[dict[str, Any] | None]
    """How the candidate was recognised; see `automl.ledger.functions.Resolved.to_json`."""
    costs: Mapped[dict[str, Any] | None]
    """The candidate's own costs, which no other trial's result can stand for."""
    audits: Mapped[bool] = mapped_column(default=False)
    """Whether it was evaluated only to check a result that would have been served."""
    given: Mapped[dict[str, Any] | None]
    """Decisions that are given rather than suggested."""
    judges: Mapped[int | None]
    """The number of the trial whose found decisions this one trains again."""
    state: Mapped[State | None] = mapped_column(_enum(State))
    objectives: Mapped[list[float] | None]
    metrics: Mapped[dict[str, Any] | None]
    step: Mapped[int | None] = mapped_column(BigStep)
    closed: Mapped[dict[str, Any] | None]
    reason: Mapped[Reason | None] = mapped_column(_enum(Reason))
    message: Mapped[str | None] = mapped_column(LongText)
    traceback: Mapped[str | None] = mapped_column(LongText)
    cause: Mapped[str | None] = mapped_column(String(255))
    told: Mapped[bool] = mapped_column(default=False)
    seconds: Mapped[float | None]
    """How long its last attempt trained."""
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    """What it took of the budget of device time so far, over all attempts."""
    checkpoint: Mapped[str | None] = mapped_column(String(64))
    """The SHA-256 of what it can go on from."""
    started_at: Mapped[float]
    settled_at: Mapped[float | None]


class EvaluationRow(Base):
    """What was found for a function; `replicate` tells repeated evaluations apart."""

    __tablename__ = "automl_evaluations"
    __table_args__ = (
        UniqueConstraint("study", "fingerprint", "replicate"),
        Index(None, "fingerprint"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    study: Mapped[str] = mapped_column(String(36))
    fingerprint: Mapped[str] = mapped_column(String(64))
    replicate: Mapped[int] = mapped_column(default=0)
    """From 0 where shared; below 0, made of the owner's id, where it is one trial's own."""
    role: Mapped[Role] = mapped_column(_enum(Role), default=Role.SHARED)
    owner: Mapped[int]
    """The id of the trial that evaluates or evaluated it."""
    decisions: Mapped[str | None] = mapped_column(String(64))
    """The owner's key at L0: equal for equal decisions."""
    state: Mapped[EvaluationState] = mapped_column(_enum(EvaluationState))
    number: Mapped[int | None]
    metrics: Mapped[dict[str, Any] | None]
    """Of quality alone: costs belong to a trial."""
    step: Mapped[int | None] = mapped_column(BigStep)
    closed: Mapped[dict[str, Any] | None]
    seconds: Mapped[float | None]
    served: Mapped[dict[str, Any] | None]
    """What was known when it began, for an audit or the first evaluation after forgetting.

    The metrics, the mean of how many evaluations they are, and whether decisions differed.
    """
    source: Mapped[int | None]
    """The evaluation of another study that this one is a copy of."""
    source_study: Mapped[str | None] = mapped_column(String(36))


class FunctionRow(Base):
    """What candidates compute, known to the whole database."""

    __tablename__ = "automl_functions"
    __table_args__ = (Index(None, "used_at"),)

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    """Of the hasher; those of another one are as good as not there."""
    sketch: Mapped[bytes | None] = mapped_column(LongBinary)
    verdict: Mapped[str | None] = mapped_column(String(32))
    live_parameters: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[float]
    used_at: Mapped[float]


class KeyRow(Base):
    """One key of a function; the ranks of a key tell functions apart that share it."""

    __tablename__ = "automl_keys"
    __table_args__ = (UniqueConstraint("key", "rank"), Index(None, "fingerprint"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(String(64))
    rank: Mapped[int] = mapped_column(default=0)
    level: Mapped[Level] = mapped_column(_enum(Level))
    through: Mapped[Level] = mapped_column(_enum(Level))
    """The highest level it took to find that this key is of this function."""
    colour: Mapped[str | None] = mapped_column(String(64))
    """Of the canonical graph; with a key of L0 where the graph has no canonical form."""
    fingerprint: Mapped[str] = mapped_column(String(64))


class ReportRow(Base):
    """One step that a trainer reported."""

    __tablename__ = "automl_reports"
    __table_args__ = (Index(None, "trial", "step"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    trial: Mapped[int] = mapped_column(ForeignKey(TrialRow.id, ondelete="CASCADE"))
    attempt: Mapped[int]
    step: Mapped[int] = mapped_column(BigStep)
    metrics: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """A worker that is at a study now; it removes itself when it leaves."""

    __tablename__ = "automl_workers"
    __table_args__ = (Index(None, "study"),)

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey(StudyRow.uuid, ondelete="CASCADE"))
    device: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[float]
