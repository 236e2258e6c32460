"""The store in memory: the whole port, rolled back and serialised like a database, for tests and simulations.

The contract suite in tests/contract runs on this and on the real ones; a property test compares them on random work.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, Protocol

from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, DeploymentSpec, Intent, ServingPlan
from controlplane.domain.event import Event, NewEvent
from controlplane.domain.node import NEVER_SEEN, Node, NodeSpec, NodeState
from controlplane.domain.recovery import BackupRun, Drill, Inventory, Override
from controlplane.domain.refusals import (
    claim_lost,
    generation_conflict,
    gpu_taken,
    key_reused,
    not_found,
    port_taken,
)
from controlplane.domain.replica import Replica
from controlplane.domain.store import AppliedSite, Claim, IdempotentAnswer, Store, TickRecord, Transaction
from controlplane.kernel.ids import (
    BucketName,
    ClaimToken,
    DatasetName,
    DeploymentName,
    InstanceId,
    NodeName,
    ReplicaName,
)


class _History[T]:
    """A list that is only appended to. Transactions share it; what one appends is its own until the commit."""

    def __init__(self, kept: list[T] | None = None, last_sequence: int = 0) -> None:
        self._kept: list[T] = [] if kept is None else kept
        self._fresh: list[T] = []
        self._last_sequence = last_sequence

    def __iter__(self) -> Iterator[T]:
        return chain(self._kept, self._fresh)

    def branch(self) -> "_History[T]":
        return _History(self._kept, self._last_sequence)

    def append(self, make: Callable[[int], T]) -> None:
        """What `make` gives for the next sequence number."""
        self._last_sequence += 1
        self._fresh.append(make(self._last_sequence))

    def retain(self, wanted: Callable[[T], bool]) -> int:
        """Drop what is not wanted; how many went. The shared list stays as it is, in case of a rollback."""
        before = list(self)
        self._kept, self._fresh = [item for item in before if wanted(item)], []
        return len(before) - len(self._kept)

    def commit(self) -> None:
        self._kept.extend(self._fresh)
        self._fresh = []


@dataclass(slots=True, kw_only=True)
class _Rows:
    """Everything stored."""

    site: AppliedSite | None = None
    nodes: dict[NodeName, Node] = field(default_factory=dict)
    deployments: dict[DeploymentName, Deployment] = field(default_factory=dict)
    replicas: dict[ReplicaName, Replica] = field(default_factory=dict)
    policy_states: dict[DeploymentName, str] = field(default_factory=dict)
    answers: dict[str, IdempotentAnswer] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    backup_runs: dict[str, BackupRun] = field(default_factory=dict)
    drills: dict[str, Drill] = field(default_factory=dict)
    inventories: dict[tuple[DatasetName, BucketName], Inventory] = field(default_factory=dict)
    overrides: list[Override] = field(default_factory=list)
    events: _History[Event] = field(default_factory=_History)
    decisions: _History[DecisionRecord] = field(default_factory=_History)
    ticks: _History[TickRecord] = field(default_factory=_History)

    def branch(self) -> "_Rows":
        return _Rows(
            site=self.site,
            nodes=dict(self.nodes),
            deployments=dict(self.deployments),
            replicas=dict(self.replicas),
            policy_states=dict(self.policy_states),
            answers=dict(self.answers),
            claims=dict(self.claims),
            backup_runs=dict(self.backup_runs),
            drills=dict(self.drills),
            inventories=dict(self.inventories),
            overrides=list(self.overrides),
            events=self.events.branch(),
            decisions=self.decisions.branch(),
            ticks=self.ticks.branch(),
        )

    def commit(self) -> "_Rows":
        self.events.commit()
        self.decisions.commit()
        self.ticks.commit()
        return self


class MemoryStore:
    """Implements `controlplane.domain.store.Store`. Transactions of concurrent tasks take turns."""

    def __init__(self) -> None:
        self._rows = _Rows()
        self._turn = asyncio.Lock()
        self._owner: asyncio.Task[Any] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        task = asyncio.current_task()
        assert task is None or task is not self._owner, "a transaction was opened inside another one"
        async with self._turn:
            self._owner = task
            try:
                rows = self._rows.branch()
                yield MemoryTransaction(rows)
                self._rows = rows.commit()
            finally:
                self._owner = None

    async def close(self) -> None:
        """Nothing is held."""


class MemoryTransaction:
    """Works on rows of its own; the store takes them at the commit."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows

    # -- site
    async def site(self) -> AppliedSite | None:
        return self._rows.site

    async def put_site(self, *, name: str, document: str, digest: str, now: datetime) -> AppliedSite:
        generation = 1 if self._rows.site is None else self._rows.site.generation + 1
        applied = AppliedSite(name=name, document=document, digest=digest, applied_at=now, generation=generation)
        self._rows.site = applied
        return applied

    # -- nodes
    async def nodes(self) -> Sequence[Node]:
        return _by_name(self._rows.nodes)

    async def put_node_spec(self, spec: NodeSpec) -> None:
        old = self._rows.nodes.get(spec.name)
        fresh = Node(spec=spec, state=NodeState.UNKNOWN, state_reason=NEVER_SEEN, generation=1)
        self._rows.nodes[spec.name] = fresh if old is None else replace(old, spec=spec)

    async def delete_node(self, name: NodeName) -> None:
        self._rows.nodes.pop(name, None)

    async def set_node_state(
        self, name: NodeName, state: NodeState, reason: str, *, expected_generation: int | None = None
    ) -> Node:
        old = self._rows.nodes.get(name)
        if old is None:
            raise not_found("node", name, self._rows.nodes)
        if expected_generation is not None and expected_generation != old.generation:
            raise generation_conflict("node", name, expected=expected_generation, found=old.generation)
        node = replace(old, state=state, state_reason=reason, generation=old.generation + 1)
        self._rows.nodes[name] = node
        return node

    async def set_node_seen(self, name: NodeName, seen_at: datetime) -> None:
        await self.set_nodes_seen({name: seen_at})

    async def set_nodes_seen(self, seen: Mapping[NodeName, datetime]) -> None:
        nodes = self._rows.nodes
        nodes.update({name: replace(nodes[name], seen_at=seen_at) for name, seen_at in seen.items() if name in nodes})

    # -- deployments
    async def deployments(self) -> Sequence[Deployment]:
        return _by_name(self._rows.deployments)

    async def deployment(self, name: DeploymentName) -> Deployment:
        found = self._rows.deployments.get(name)
        if found is None:
            raise not_found("deployment", name, self._rows.deployments)
        return found

    async def put_deployment_spec(self, spec: DeploymentSpec, plan: ServingPlan, now: datetime) -> Deployment:
        old = self._rows.deployments.get(spec.name)
        if old is None:
            deployment = Deployment(
                spec=spec,
                plan=plan,
                intent=Intent(),
                replicas_wanted=spec.replicas_min,
                generation=1,
                created_at=now,
            )
        else:
            deployment = replace(old, spec=spec, plan=plan, generation=old.generation + 1, removed=False)
        return self._keep(deployment)

    async def mark_deployment_removed(self, name: DeploymentName) -> None:
        old = await self.deployment(name)
        if not old.removed:
            self._keep(replace(old, removed=True, generation=old.generation + 1))

    async def delete_deployment(self, name: DeploymentName) -> None:
        self._rows.deployments.pop(name, None)
        self._rows.policy_states.pop(name, None)

    async def set_intent(
        self, name: DeploymentName, intent: Intent, *, expected_generation: int | None = None
    ) -> Deployment:
        old = await self.deployment(name)
        if expected_generation is not None and expected_generation != old.generation:
            raise generation_conflict("deployment", name, expected=expected_generation, found=old.generation)
        return self._keep(replace(old, intent=intent, generation=old.generation + 1))

    async def set_replicas_wanted(self, name: DeploymentName, wanted: int) -> None:
        self._keep(replace(await self.deployment(name), replicas_wanted=wanted))

    # -- replicas
    async def replicas(self, deployment: DeploymentName | None = None) -> Sequence[Replica]:
        return [found for found in _by_name(self._rows.replicas) if deployment in (None, found.deployment)]

    async def put_replica(self, replica: Replica) -> None:
        others = [
            other for other in self._rows.replicas.values() if other.name != replica.name and other.node == replica.node
        ]
        for gpu in replica.gpus:
            for other in others:
                if gpu in other.gpus:
                    raise gpu_taken(replica.name, node=replica.node, gpu=gpu, holder=other.name)
        for other in others:
            if other.port == replica.port:
                raise port_taken(replica.name, node=replica.node, port=replica.port, holder=other.name)
        self._rows.replicas[replica.name] = replica

    async def delete_replica(self, name: ReplicaName) -> None:
        self._rows.replicas.pop(name, None)

    # -- autoscaler's state
    async def policy_state(self, deployment: DeploymentName) -> str | None:
        return self._rows.policy_states.get(deployment)

    async def put_policy_state(self, deployment: DeploymentName, state_json: str) -> None:
        self._rows.policy_states[deployment] = state_json

    # -- append-only
    async def append_events(self, events: Sequence[NewEvent]) -> None:
        for event in events:
            self._rows.events.append(partial(_numbered, event))

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 200,
        kind: str | None = None,
        deployment: str | None = None,
        newest_first: bool = False,
    ) -> Sequence[Event]:
        found = [
            event
            for event in self._rows.events
            if event.sequence > after
            and kind in (None, event.event.kind)
            and deployment in (None, event.event.deployment)
        ]
        return _page(found, limit=limit, newest_first=newest_first)

    async def append_decision(self, decision: DecisionRecord) -> None:
        self._rows.decisions.append(lambda sequence: replace(decision, sequence=sequence))

    async def decisions(
        self,
        deployment: DeploymentName | None = None,
        *,
        after: int = 0,
        limit: int = 100,
        newest_first: bool = True,
        until: datetime | None = None,
    ) -> Sequence[DecisionRecord]:
        found = [
            decision
            for decision in self._rows.decisions
            if decision.sequence > after
            and deployment in (None, decision.deployment)
            and (until is None or decision.at <= until)
        ]
        return _page(found, limit=limit, newest_first=newest_first)

    async def append_tick(self, tick: TickRecord) -> None:
        self._rows.ticks.append(lambda _: tick)

    async def ticks(self, *, limit: int = 100, loop: str | None = None) -> Sequence[TickRecord]:
        found = [tick for tick in self._rows.ticks if loop in (None, tick.loop)]
        return _page(found, limit=limit, newest_first=True)

    async def prune(self, *, events_before: datetime, decisions_before: datetime, ticks_before: datetime) -> int:
        rows = self._rows
        unnumbered = len(rows.answers) + len(rows.backup_runs) + len(rows.overrides)
        rows.answers = {key: kept for key, kept in rows.answers.items() if kept.at >= events_before}
        rows.overrides = [kept for kept in rows.overrides if kept.until >= events_before]
        rows.backup_runs = {
            key: kept for key, kept in rows.backup_runs.items() if kept.asked_at >= events_before or not kept.ended
        }
        return (
            rows.events.retain(lambda event: event.event.at >= events_before)
            + rows.decisions.retain(lambda decision: decision.at >= decisions_before)
            + rows.ticks.retain(lambda tick: tick.started_at >= ticks_before)
            + unnumbered
            - len(rows.answers)
            - len(rows.backup_runs)
            - len(rows.overrides)
        )

    # -- idempotency
    async def idempotent_answer(self, key: str) -> IdempotentAnswer | None:
        return self._rows.answers.get(key)

    async def put_idempotent_answer(self, answer: IdempotentAnswer) -> None:
        kept = self._rows.answers.setdefault(answer.key, answer)
        if kept.request_digest != answer.request_digest:
            raise key_reused(answer.key)

    # -- recovery
    async def backup_runs(self, dataset: DatasetName | None = None, *, limit: int = 100) -> Sequence[BackupRun]:
        found = [run for run in self._rows.backup_runs.values() if dataset in (None, run.dataset)]
        return sorted(found, key=lambda run: (run.asked_at, run.run), reverse=True)[:limit]

    async def put_backup_run(self, run: BackupRun) -> None:
        self._rows.backup_runs[run.run] = run

    async def drills(self, dataset: DatasetName | None = None, *, limit: int = 100) -> Sequence[Drill]:
        found = [drill for drill in self._rows.drills.values() if dataset in (None, drill.dataset)]
        return sorted(found, key=lambda drill: (drill.asked_at, drill.drill), reverse=True)[:limit]

    async def put_drill(self, drill: Drill) -> None:
        self._rows.drills[drill.drill] = drill

    async def inventories(self) -> Sequence[Inventory]:
        return [self._rows.inventories[key] for key in sorted(self._rows.inventories)]

    async def put_inventory(self, inventory: Inventory) -> None:
        self._rows.inventories[inventory.dataset, inventory.bucket] = inventory

    async def delete_inventory(self, dataset: DatasetName, bucket: BucketName) -> None:
        self._rows.inventories.pop((dataset, bucket), None)

    async def overrides(self, *, now: datetime) -> Sequence[Override]:
        return [override for override in self._rows.overrides[::-1] if override.until > now]

    async def append_override(self, override: Override) -> None:
        self._rows.overrides.append(override)

    # -- claims
    async def claim(
        self, resource: str, *, token: ClaimToken, holder: InstanceId, now: datetime, expires_at: datetime
    ) -> Claim | None:
        held = self._rows.claims.get(resource)
        if held is not None and held.holder != holder and held.expires_at > now:
            return None
        claim = Claim(resource=resource, token=token, holder=holder, expires_at=expires_at)
        self._rows.claims[resource] = claim
        return claim

    async def require_claim(self, resource: str, token: ClaimToken) -> None:
        held = self._rows.claims.get(resource)
        if held is None or held.token != token:
            raise claim_lost(resource)

    async def release_claim(self, resource: str, token: ClaimToken) -> None:
        held = self._rows.claims.get(resource)
        if held is not None and held.token == token:
            del self._rows.claims[resource]

    async def claims(self) -> Sequence[Claim]:
        return [self._rows.claims[resource] for resource in sorted(self._rows.claims)]

    def _keep(self, deployment: Deployment) -> Deployment:
        self._rows.deployments[deployment.name] = deployment
        return deployment


def _numbered(event: NewEvent, sequence: int) -> Event:
    return Event(sequence=sequence, event=event)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _by_name[N: _Named](rows: Mapping[Any, N]) -> list[N]:
    return sorted(rows.values(), key=lambda row: row.name)


def _page[T](found: list[T], *, limit: int, newest_first: bool) -> list[T]:
    return (found[::-1] if newest_first else found)[:limit]


def _conforms(store: MemoryStore) -> Store:
    """The type checker's proof that the port is implemented whole."""
    return store
