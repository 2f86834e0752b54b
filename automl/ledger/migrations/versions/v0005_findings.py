"""What trainers found for open decisions that no single value can hold.

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LONG_BINARY = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    op.add_column("automl_trials", sa.Column("found", sa.String(length=64), nullable=True))
    op.add_column("automl_trials", sa.Column("choices", sa.JSON(), nullable=True))
    op.add_column("automl_evaluations", sa.Column("also_closed", sa.JSON(), nullable=True))
    op.create_table(
        "automl_findings",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study", sa.String(length=36), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("content", LONG_BINARY, nullable=False),
        sa.ForeignKeyConstraint(
            ["study"],
            ["automl_studies.uuid"],
            name=op.f("fk_automl_findings_study"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_automl_findings")),
        sa.UniqueConstraint("study", "digest", name=op.f("uq_automl_findings_study_digest")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )


def downgrade() -> None:
    op.drop_table("automl_findings")
    op.drop_column("automl_evaluations", "also_closed")
    op.drop_column("automl_trials", "choices")
    op.drop_column("automl_trials", "found")
