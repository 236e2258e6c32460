"""The store's port: short transactions over rows. Adapters: SQLAlchemy on SQLite and PostgreSQL; fake: in memory.

No transaction is open while anything else is awaited. Leaving the context without an exception commits; an
exception rolls back. Every record is a value; saving replaces the row.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, DeploymentSpec, Intent, ServingPlan
from controlplane.domain.event import Event, NewEvent
from controlplane.domain.node import Node, NodeSpec, NodeState
from controlplane.domain.recovery import BackupRun, Drill, Inventory, Override
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import (
    BucketName,
    ClaimToken,
    DatasetName,
    DeploymentName,
    InstanceId,
    NodeName,
    ReplicaName,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedSite:
    """The site document last applied."""

    name: str
    document: str
    """The YAML text as applied: a restart without the file still knows its site."""
    digest: str
    applied_at: datetime
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Exclusive right to work on a resource, e.g. `replicas/chat-8b`, until it expires."""

    resource: str
    token: ClaimToken
    holder: InstanceId
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TickRecord:
    """One tick of a loop that changed something or failed; quiet ticks only update `last_tick_at` in memory."""

    loop: str
    resource: str
    holder: InstanceId
    started_at: datetime
    duration: timedelta
    outcome: str
    """`changed`, `failed`, `stale_claim`, `timed_out`."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentAnswer:
    """The answer once given under an idempotency key; the same key with another request digest is a conflict."""

    key: str
    request_digest: str
    status: int
    body_json: str
    at: datetime


class Transaction(Protocol):
    # -- site
    async def site(self) -> AppliedSite | None: ...
    async def put_site(self, *, name: str, document: str, digest: str, now: datetime) -> AppliedSite:
        """Replace the applied site; its generation goes up by one."""
        ...

    # -- nodes
    async def nodes(self) -> Sequence[Node]:
        """By name."""
        ...

    async def put_node_spec(self, spec: NodeSpec) -> None:
        """Create as UNKNOWN, or replace only the spec of an existing one."""
        ...

    async def delete_node(self, name: NodeName) -> None: ...
    async def set_node_state(
        self, name: NodeName, state: NodeState, reason: str, *, expected_generation: int | None = None
    ) -> Node:
        """Generation up by one. NotFoundError; ConflictError when the generation is not the expected one."""
        ...

    async def set_node_seen(self, name: NodeName, seen_at: datetime) -> None:
        """Nothing happens when the node is gone: it may leave between the measurement and the write."""
        ...

    async def set_nodes_seen(self, seen: Mapping[NodeName, datetime]) -> None:
        """The same for many at once: one statement for a fleet, every second."""
        ...

    # -- deployments
    async def deployments(self) -> Sequence[Deployment]:
        """By name, removed ones included."""
        ...

    async def deployment(self, name: DeploymentName) -> Deployment:
        """NotFoundError when there is none."""
        ...

    async def put_deployment_spec(self, spec: DeploymentSpec, plan: ServingPlan, now: datetime) -> Deployment:
        """Create (wanted = replicas_min, generation 1) or replace spec and plan (generation + 1, removed off)."""
        ...

    async def mark_deployment_removed(self, name: DeploymentName) -> None:
        """Generation up by one unless it is marked already. NotFoundError."""
        ...

    async def delete_deployment(self, name: DeploymentName) -> None:
        """With its policy state. Nothing happens when it is gone; so with every delete."""
        ...

    async def set_intent(
        self, name: DeploymentName, intent: Intent, *, expected_generation: int | None = None
    ) -> Deployment:
        """Generation up by one. NotFoundError; ConflictError when the generation is not the expected one."""
        ...

    async def set_replicas_wanted(self, name: DeploymentName, wanted: int) -> None:
        """The autoscaler's field alone; the generation stays. NotFoundError."""
        ...

    # -- replicas
    async def replicas(self, deployment: DeploymentName | None = None) -> Sequence[Replica]:
        """By name; of one deployment or of all."""
        ...

    async def put_replica(self, replica: Replica) -> None:
        """Create or replace. ConflictError when another live replica holds one of its GPUs or its (node, port)."""
        ...

    async def delete_replica(self, name: ReplicaName) -> None: ...

    # -- autoscaler's state
    async def policy_state(self, deployment: DeploymentName) -> str | None:
        """Canonical JSON that the policy returned last, or None at the first decision."""
        ...

    async def put_policy_state(self, deployment: DeploymentName, state_json: str) -> None: ...

    # -- append-only
    async def append_events(self, events: Sequence[NewEvent]) -> None: ...
    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 200,
        kind: str | None = None,
        deployment: str | None = None,
        newest_first: bool = False,
    ) -> Sequence[Event]: ...
    async def append_decision(self, decision: DecisionRecord) -> None: ...
    async def decisions(
        self,
        deployment: DeploymentName | None = None,
        *,
        after: int = 0,
        limit: int = 100,
        newest_first: bool = True,
        until: datetime | None = None,
    ) -> Sequence[DecisionRecord]:
        """Those of after a number and, where a moment is given, of at or before that."""
        ...

    async def append_tick(self, tick: TickRecord) -> None: ...
    async def ticks(self, *, limit: int = 100, loop: str | None = None) -> Sequence[TickRecord]:
        """Newest first."""
        ...

    async def prune(self, *, events_before: datetime, decisions_before: datetime, ticks_before: datetime) -> int:
        """Delete history older than the moments; how many rows went.

        Answers under idempotency keys, ended backup runs and overrides go with the events of their time; drills stay.
        """
        ...

    # -- idempotency
    async def idempotent_answer(self, key: str) -> IdempotentAnswer | None: ...
    async def put_idempotent_answer(self, answer: IdempotentAnswer) -> None:
        """The first answer under a key stays. ConflictError when the key was used for another request."""
        ...

    # -- recovery
    async def backup_runs(self, dataset: DatasetName | None = None, *, limit: int = 100) -> Sequence[BackupRun]:
        """Newest first, by when they were asked for."""
        ...

    async def put_backup_run(self, run: BackupRun) -> None:
        """Create or replace; so with every put here."""
        ...

    async def drills(self, dataset: DatasetName | None = None, *, limit: int = 100) -> Sequence[Drill]:
        """Newest first, by when they were asked for."""
        ...

    async def put_drill(self, drill: Drill) -> None: ...
    async def inventories(self) -> Sequence[Inventory]:
        """By dataset and bucket."""
        ...

    async def put_inventory(self, inventory: Inventory) -> None: ...
    async def delete_inventory(self, dataset: DatasetName, bucket: BucketName) -> None: ...
    async def overrides(self, *, now: datetime) -> Sequence[Override]:
        """Those still in force, newest first."""
        ...

    async def append_override(self, override: Override) -> None: ...

    # -- claims
    async def claim(
        self, resource: str, *, token: ClaimToken, holder: InstanceId, now: datetime, expires_at: datetime
    ) -> Claim | None:
        """Take or renew: free, expired at `now`, or held by the same holder. None when another holds it.

        None also when another worker is taking it at this moment: contention is not an error. What the former holder
        applied last is surely seen by the next transaction, not yet by this one.
        """
        ...

    async def require_claim(self, resource: str, token: ClaimToken) -> None:
        """StaleClaimError unless the claim still carries this token; locks the claim until the commit."""
        ...

    async def release_claim(self, resource: str, token: ClaimToken) -> None:
        """Nothing happens when the claim carries another token."""
        ...

    async def claims(self) -> Sequence[Claim]:
        """By resource, expired ones included."""
        ...


class Store(Protocol):
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A short read-write transaction, serialisable in effect for the rows that it touches.

        RetryableError when another transaction got in the way or the store cannot be reached now; TerminalError when
        a person must repair it. Never opened inside another one.
        """
        ...

    async def close(self) -> None: ...
