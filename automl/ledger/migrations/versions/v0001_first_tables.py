"""The ledger's first tables.

Revision: 0001, after None
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LONG_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "automl_evaluations",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study", sa.String(length=36), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("replicate", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "running",
                "complete",
                "pruned",
                "failed",
                name="evaluationstate",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("objectives", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("closed", sa.JSON(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_automl_evaluations")),
        sa.UniqueConstraint(
            "study",
            "fingerprint",
            "replicate",
            name=op.f("uq_automl_evaluations_study_fingerprint_replicate"),
        ),
    )
    op.create_index(
        op.f("ix_automl_evaluations_fingerprint"),
        "automl_evaluations",
        ["fingerprint"],
        unique=False,
    )
    op.create_table(
        "automl_studies",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("trials_limit", sa.Integer(), nullable=True),
        sa.Column("evaluations_limit", sa.Integer(), nullable=True),
        sa.Column("deadline", sa.Double(), nullable=True),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("payable", sa.Integer(), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column(
            "stopped",
            sa.Enum(
                "space-exhausted", "same-failure", name="stopreason", native_enum=False, length=32
            ),
            nullable=True,
        ),
        sa.Column("stopped_because", LONG_TEXT, nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_automl_studies")),
    )
    op.create_table(
        "automl_trials",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column(
            "phase",
            sa.Enum(
                "proposing",
                "training",
                "parked",
                "settled",
                name="phase",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=True),
        sa.Column("device", sa.String(length=64), nullable=True),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("level", sa.String(length=16), nullable=True),
        sa.Column("evaluation", sa.Integer(), nullable=True),
        sa.Column("reused_from", sa.Integer(), nullable=True),
        sa.Column("given", sa.JSON(), nullable=True),
        sa.Column("judges", sa.Integer(), nullable=True),
        sa.Column(
            "state",
            sa.Enum("complete", "pruned", "failed", name="state", native_enum=False, length=32),
            nullable=True,
        ),
        sa.Column("objectives", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("closed", sa.JSON(), nullable=True),
        sa.Column(
            "reason",
            sa.Enum(
                "error",
                "invalid-candidate",
                "out-of-memory",
                "not-finite",
                "worker-lost",
                name="reason",
                native_enum=False,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("message", LONG_TEXT, nullable=True),
        sa.Column("traceback", LONG_TEXT, nullable=True),
        sa.Column("cause", sa.String(length=255), nullable=True),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("settled_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study"],
            ["automl_studies.uuid"],
            name=op.f("fk_automl_trials_study"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_automl_trials")),
        sa.UniqueConstraint("study", "number", name=op.f("uq_automl_trials_study_number")),
    )
    op.create_index(
        op.f("ix_automl_trials_evaluation_phase"),
        "automl_trials",
        ["evaluation", "phase"],
        unique=False,
    )
    op.create_index(
        op.f("ix_automl_trials_study_phase"), "automl_trials", ["study", "phase"], unique=False
    )
    op.create_index(
        op.f("ix_automl_trials_study_told"), "automl_trials", ["study", "told"], unique=False
    )
    op.create_table(
        "automl_workers",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("study", sa.String(length=36), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study"],
            ["automl_studies.uuid"],
            name=op.f("fk_automl_workers_study"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_automl_workers")),
    )
    op.create_index(op.f("ix_automl_workers_study"), "automl_workers", ["study"], unique=False)
    op.create_table(
        "automl_reports",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial"],
            ["automl_trials.id"],
            name=op.f("fk_automl_reports_trial"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_automl_reports")),
    )
    op.create_index(
        op.f("ix_automl_reports_trial_step"), "automl_reports", ["trial", "step"], unique=False
    )


def downgrade() -> None:
    # Dropping tables drops their indexes; MySQL keeps an index that a foreign key needs.
    op.drop_table("automl_reports")
    op.drop_table("automl_workers")
    op.drop_table("automl_trials")
    op.drop_table("automl_studies")
    op.drop_table("automl_evaluations")
