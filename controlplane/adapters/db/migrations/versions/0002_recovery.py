"""Recovery: backup runs, drills, what was seen in buckets, overrides."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "backup_runs",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("asked_at_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_backup_runs"),
    )
    op.create_index("ix_backup_runs_dataset_asked_at_us", "backup_runs", ["dataset", "asked_at_us"])

    op.create_table(
        "drills",
        sa.Column("drill", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("asked_at_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("drill", name="pk_drills"),
    )
    op.create_index("ix_drills_dataset_asked_at_us", "drills", ["dataset", "asked_at_us"])

    op.create_table(
        "inventories",
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "bucket", name="pk_inventories"),
    )
    op.create_table(
        "overrides",
        sa.Column("sequence", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_overrides"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_overrides_until_us", "overrides", ["until_us"])


def downgrade() -> None:
    for table in ("overrides", "inventories", "drills", "backup_runs"):
        op.drop_table(table)
