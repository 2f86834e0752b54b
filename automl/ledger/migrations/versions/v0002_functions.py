"""Functions and their keys, roles of evaluations, and how each trial was recognised.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LONG_BINARY = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, length=32)


def upgrade() -> None:
    _create_functions()
    _create_keys()
    for column in (
        sa.Column("reused_study", sa.String(length=36), nullable=True),
        sa.Column("identification", sa.JSON(), nullable=True),
        sa.Column("costs", sa.JSON(), nullable=True),
        sa.Column("audits", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        # Columns are added one by one, never by copying the table: on SQLite, dropping the old
        # table would delete the reports.
        op.add_column("automl_trials", column)
    role = _enum("role", "shared", "own", "audit")
    with op.batch_alter_table("automl_evaluations") as batch:
        batch.add_column(sa.Column("role", role, nullable=False, server_default="shared"))
        batch.add_column(sa.Column("decisions", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("served", sa.JSON(), nullable=True))
        batch.add_column(sa.Column("source", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("source_study", sa.String(length=36), nullable=True))
        batch.drop_column("objectives")
    # The first version of the hasher wrote the existing rows.
    op.execute(
        "INSERT INTO automl_functions (fingerprint, version, created_at, used_at) "
        "SELECT fingerprint, 1, MIN(started_at), MAX(started_at) FROM automl_trials "
        "WHERE fingerprint IS NOT NULL GROUP BY fingerprint"
    )


def _create_functions() -> None:
    op.create_table(
        "automl_functions",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sketch", LONG_BINARY, nullable=True),
        sa.Column("verdict", sa.String(length=32), nullable=True),
        sa.Column("live_parameters", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_automl_functions")),
    )
    op.create_index(op.f("ix_automl_functions_used_at"), "automl_functions", ["used_at"])


def _create_keys() -> None:
    levels = ("L0", "L1", "L2")
    op.create_table(
        "automl_keys",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("level", _enum("level", *levels), nullable=False),
        sa.Column("through", _enum("level", *levels), nullable=False),
        sa.Column("colour", sa.String(length=64), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_automl_keys")),
        sa.UniqueConstraint("key", "rank", name=op.f("uq_automl_keys_key_rank")),
    )
    op.create_index(op.f("ix_automl_keys_fingerprint"), "automl_keys", ["fingerprint"])


def downgrade() -> None:
    # The first version knows neither audits nor results of other studies.
    op.execute("DELETE FROM automl_evaluations WHERE role <> 'shared' OR source IS NOT NULL")
    with op.batch_alter_table("automl_evaluations") as batch:
        batch.add_column(sa.Column("objectives", sa.JSON(), nullable=True))
        for name in ("role", "decisions", "served", "source", "source_study"):
            batch.drop_column(name)
    op.execute(
        "UPDATE automl_evaluations SET objectives = (SELECT objectives FROM automl_trials "
        "WHERE automl_trials.id = automl_evaluations.owner)"
    )
    for name in ("audits", "costs", "identification", "reused_study"):
        op.drop_column("automl_trials", name)
    op.drop_table("automl_keys")
    op.drop_table("automl_functions")
