"""Steps of 64 bits; on MySQL and MariaDB, keys that distinguish case and accents.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STEPS = {"automl_trials": True, "automl_evaluations": True, "automl_reports": False}
"""The tables with steps, and whether the step may be null."""
LARGEST = 2**31 - 1


def upgrade() -> None:
    kind = op.get_bind().dialect.name
    if kind in ("mysql", "mariadb"):
        _compare_bytes()
    if kind != "sqlite":  # whose integers have 64 bits already
        for table, nullable in STEPS.items():
            op.alter_column(
                table,
                "step",
                type_=sa.BigInteger(),
                existing_type=sa.Integer(),
                existing_nullable=nullable,
            )


def _compare_bytes() -> None:
    # Otherwise the database's collation applies, or a character set that lacks most characters.
    # Each statement commits by itself, so that this can be run again after a kill.
    for table in _REFERRING & _referring():
        op.drop_constraint(f"fk_{table}_study", table, type_="foreignkey")
    for statement in _CONVERSIONS:
        op.execute(statement)
    for table in _REFERRING - _referring():
        op.create_foreign_key(
            *(f"fk_{table}_study", table, "automl_studies", ["study"], ["uuid"]),
            ondelete="CASCADE",
        )


_CONVERSIONS = (
    "ALTER TABLE automl_studies CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "ALTER TABLE automl_trials CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "ALTER TABLE automl_evaluations CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "ALTER TABLE automl_functions CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "ALTER TABLE automl_keys CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "ALTER TABLE automl_reports CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "ALTER TABLE automl_workers CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
)
_REFERRING = {"automl_trials", "automl_workers"}


def _referring() -> set[str]:
    """Return the tables that refer to studies at present."""
    look = sa.inspect(op.get_bind())
    return {
        table
        for table in _REFERRING
        if any(key["referred_table"] == "automl_studies" for key in look.get_foreign_keys(table))
    }


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, nullable in STEPS.items():
        step: sa.ColumnClause[int] = sa.column("step")
        op.execute(sa.table(table, step).update().where(step > LARGEST).values(step=LARGEST))
        op.alter_column(
            table,
            "step",
            type_=sa.Integer(),
            existing_type=sa.BigInteger(),
            existing_nullable=nullable,
        )
