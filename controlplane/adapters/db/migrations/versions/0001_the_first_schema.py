"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "claims",
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("resource", name="pk_claims"),
    )
    op.create_table(
        "decisions",
        sa.Column("sequence", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("wanted_before", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("observation", sa.Text(), nullable=False),
        sa.Column("state_before", sa.Text(), nullable=False),
        sa.Column("state_after", sa.Text(), nullable=False),
        sa.Column("params", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_decisions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_decisions_at_us", "decisions", ["at_us"])
    op.create_index("ix_decisions_deployment_sequence", "decisions", ["deployment", "sequence"])

    op.create_table(
        "deployments",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("intent", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_deployments"),
    )
    op.create_table(
        "events",
        sa.Column("sequence", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text()),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_at_us", "events", ["at_us"])
    op.create_index("ix_events_deployment_sequence", "events", ["deployment", "sequence"])
    op.create_index("ix_events_kind_sequence", "events", ["kind", "sequence"])

    op.create_table(
        "idempotent_answers",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_idempotent_answers"),
    )
    op.create_index("ix_idempotent_answers_at_us", "idempotent_answers", ["at_us"])

    op.create_table(
        "nodes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_nodes"),
    )
    op.create_table(
        "policy_states",
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", name="pk_policy_states"),
    )
    op.create_table(
        "replicas",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("phase_since_us", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Text(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("launched_at_us", sa.BigInteger()),
        sa.Column("ready_at_us", sa.BigInteger()),
        sa.Column("sleep_after_drain", sa.Boolean(), nullable=False),
        sa.Column("stop_signals", sa.Integer(), nullable=False),
        sa.Column("stop_signal_at_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", name="pk_replicas"),
        sa.UniqueConstraint("node", "port", name="uq_replicas_node_port"),
    )
    op.create_index("ix_replicas_deployment", "replicas", ["deployment"])

    op.create_table(
        "site",
        sa.Column(
            "id", sa.Integer(), sa.CheckConstraint("id = 1", name="ck_site_single"), autoincrement=False, nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("applied_at_us", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_site"),
    )
    op.create_table(
        "ticks",
        sa.Column("sequence", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("loop", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_ticks"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ticks_loop_sequence", "ticks", ["loop", "sequence"])
    op.create_index("ix_ticks_started_at_us", "ticks", ["started_at_us"])

    op.create_table(
        "deployment_wanted",
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("replicas_wanted", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment"], ["deployments.name"], name="fk_deployment_wanted_deployment_deployments", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("deployment", name="pk_deployment_wanted"),
    )
    op.create_table(
        "node_seen",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("seen_at_us", sa.BigInteger()),
        sa.ForeignKeyConstraint(["node"], ["nodes.name"], name="fk_node_seen_node_nodes", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node", name="pk_node_seen"),
    )
    op.create_table(
        "replica_gpus",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("gpu", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["replica"], ["replicas.name"], name="fk_replica_gpus_replica_replicas", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("node", "gpu", name="pk_replica_gpus"),
    )
    op.create_index("ix_replica_gpus_replica", "replica_gpus", ["replica"])
