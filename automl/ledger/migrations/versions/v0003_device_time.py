"""Device time in the budget, and the checkpoint from which a trial continues.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("automl_studies", "automl_trials"):
        charged: sa.Column[float] = sa.Column(
            "device_seconds", sa.Double(), nullable=False, server_default="0"
        )
        op.add_column(table, charged)
    op.add_column("automl_studies", sa.Column("device_seconds_limit", sa.Double(), nullable=True))
    op.add_column("automl_trials", sa.Column("checkpoint", sa.String(length=64), nullable=True))
    op.execute("UPDATE automl_trials SET device_seconds = COALESCE(seconds, 0)")
    op.execute(
        "UPDATE automl_studies SET device_seconds = COALESCE((SELECT SUM(device_seconds) "
        "FROM automl_trials WHERE automl_trials.study = automl_studies.uuid), 0)"
    )


def downgrade() -> None:
    for table, columns in (
        ("automl_trials", ("device_seconds", "checkpoint")),
        ("automl_studies", ("device_seconds", "device_seconds_limit")),
    ):
        for column in columns:
            op.drop_column(table, column)
