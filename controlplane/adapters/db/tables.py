"""The schema, as the newest migration leaves it (a test compares the two on both databases).

Typed columns for what is searched, guarded or changed alone; canonical JSON for what is only read whole. Fields that
different loops write often live in rows of their own (`node_seen`, `deployment_wanted`): on PostgreSQL two writers of
one row would make one of them retry. Units are the last part of a name: `_us` is microseconds since 1970, UTC.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

SEQUENCE: Final = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts by itself only in a column declared exactly INTEGER."""

SITE: Final = Table(
    "site",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="single"), primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("applied_at_us", BigInteger, nullable=False),
    Column("generation", Integer, nullable=False),
)

NODES: Final = Table(
    "nodes",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("generation", Integer, nullable=False),
)

NODE_SEEN: Final = Table(
    "node_seen",
    METADATA,
    Column("node", Text, ForeignKey("nodes.name", ondelete="CASCADE"), primary_key=True),
    Column("seen_at_us", BigInteger),
)

DEPLOYMENTS: Final = Table(
    "deployments",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("intent", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("removed", Boolean, nullable=False),
)

DEPLOYMENT_WANTED: Final = Table(
    "deployment_wanted",
    METADATA,
    Column("deployment", Text, ForeignKey("deployments.name", ondelete="CASCADE"), primary_key=True),
    Column("replicas_wanted", Integer, nullable=False),
)

POLICY_STATES: Final = Table(
    "policy_states",
    METADATA,
    Column("deployment", Text, primary_key=True),
    Column("state", Text, nullable=False),
)

REPLICAS: Final = Table(
    "replicas",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("deployment", Text, nullable=False, index=True),
    Column("revision", Text, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("phase_since_us", BigInteger, nullable=False),
    Column("node", Text, nullable=False),
    Column("gpus", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("launched_at_us", BigInteger),
    Column("ready_at_us", BigInteger),
    Column("sleep_after_drain", Boolean, nullable=False),
    Column("stop_signals", Integer, nullable=False),
    Column("stop_signal_at_us", BigInteger),
    UniqueConstraint("node", "port"),
)

REPLICA_GPUS: Final = Table(
    "replica_gpus",
    METADATA,
    Column("node", Text, primary_key=True),
    Column("gpu", Integer, primary_key=True, autoincrement=False),
    Column("replica", Text, ForeignKey("replicas.name", ondelete="CASCADE"), nullable=False, index=True),
)
"""Repeats `replicas.gpus` one row a GPU: the primary key makes a double assignment impossible."""

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("deployment", Text),
    Column("data", Text, nullable=False),
    Index(None, "kind", "sequence"),
    Index(None, "deployment", "sequence"),
    sqlite_autoincrement=True,
)
"""AUTOINCREMENT: a pruned sequence number is never given again, a stream that resumes by number relies on it."""

DECISIONS: Final = Table(
    "decisions",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("deployment", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False, index=True),
    Column("wanted_before", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("observation", Text, nullable=False),
    Column("state_before", Text, nullable=False),
    Column("state_after", Text, nullable=False),
    Column("params", Text, nullable=False),
    Index(None, "deployment", "sequence"),
    sqlite_autoincrement=True,
)

TICKS: Final = Table(
    "ticks",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("loop", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("started_at_us", BigInteger, nullable=False, index=True),
    Column("duration_us", BigInteger, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Index(None, "loop", "sequence"),
    sqlite_autoincrement=True,
)

IDEMPOTENT_ANSWERS: Final = Table(
    "idempotent_answers",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("request_digest", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False, index=True),
)

BACKUP_RUNS: Final = Table(
    "backup_runs",
    METADATA,
    Column("run", Text, primary_key=True),
    Column("dataset", Text, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("asked_at_us", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index(None, "dataset", "asked_at_us"),
)

DRILLS: Final = Table(
    "drills",
    METADATA,
    Column("drill", Text, primary_key=True),
    Column("dataset", Text, nullable=False),
    Column("asked_at_us", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index(None, "dataset", "asked_at_us"),
)

INVENTORIES: Final = Table(
    "inventories",
    METADATA,
    Column("dataset", Text, primary_key=True),
    Column("bucket", Text, primary_key=True),
    Column("body", Text, nullable=False),
)

OVERRIDES: Final = Table(
    "overrides",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False, index=True),
    Column("body", Text, nullable=False),
    sqlite_autoincrement=True,
)

CLAIMS: Final = Table(
    "claims",
    METADATA,
    Column("resource", Text, primary_key=True),
    Column("token", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
)
