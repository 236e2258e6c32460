"""Applying a site: one transaction in which rows, the document and the events of the change are written together."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

from controlplane.domain.deployment import Deployment
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.node import LEFT_SITE, NEVER_SEEN, Node, NodeSpec, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica
from controlplane.domain.site import Site
from controlplane.domain.store import AppliedSite, Store, Transaction
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import NodeName
from controlplane.sites.change import plan_site_change
from controlplane.sites.model import Plans, SiteChange


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    """What the store has, read in one transaction."""

    applied: AppliedSite | None
    nodes: Sequence[Node]
    deployments: Sequence[Deployment]
    replicas: Sequence[Replica]


async def preview_site(
    store: Store, site: Site, document: str, plans: Plans, *, previous: Site | None = None
) -> SiteChange:
    """What `apply_site` would change. ConflictError where it would be refused."""
    async with store.transaction() as tx:
        present = await _read(tx)
    return _planned(present, site, document, plans, previous)


async def apply_site(
    store: Store, site: Site, document: str, plans: Plans, clock: Clock, *, previous: Site | None = None
) -> SiteChange:
    """Make the site what the document says; applying the same once more changes nothing.

    A removed deployment is marked, for its replicas to be drained. A removed node goes at once when nothing is placed
    on it; else it is set to draining with LEFT_SITE as reason, and its row goes once it is empty. A node that
    returns before it is gone begins anew as unknown. ConflictError, with nothing changed, when a node's hardware or
    address would change under running replicas.
    """
    async with store.transaction() as tx:
        present = await _read(tx)
        change = _planned(present, site, document, plans, previous)
        if change.is_empty and not change.document_changed:
            return change
        now = clock.now()
        await _write_nodes(tx, change)
        await _write_deployments(tx, change, now)
        await tx.put_site(name=site.name, document=document, digest=digest_of(document), now=now)
        await tx.append_events(list(_events(change, site, now)))
    return change


def digest_of(document: str) -> str:
    """SHA-256 of the text, in hex."""
    return hashlib.sha256(document.encode("utf-8")).hexdigest()


async def _read(tx: Transaction) -> _Present:
    return _Present(
        applied=await tx.site(),
        nodes=await tx.nodes(),
        deployments=await tx.deployments(),
        replicas=await tx.replicas(),
    )


def _planned(present: _Present, site: Site, document: str, plans: Plans, previous: Site | None) -> SiteChange:
    change = plan_site_change(
        present.nodes,
        present.deployments,
        site,
        plans,
        occupied={replica.node for replica in present.replicas},
        previous=previous,
    )
    _refuse_changes_under_replicas(change, present)
    changed = present.applied is None or present.applied.digest != digest_of(document)
    return replace(change, document_changed=changed)


def _refuse_changes_under_replicas(change: SiteChange, present: _Present) -> None:
    """A running replica keeps its GPUs by index on the node as it was, and is reached at the address it was."""
    before: Mapping[NodeName, NodeSpec] = {node.name: node.spec for node in present.nodes}
    refused = [
        f"{spec.name} ({', '.join(sorted(replica.name for replica in stuck))})"
        for spec in (node.spec for node in change.nodes_changed)
        if (stuck := _stuck(before[spec.name], spec, present.replicas))
    ]
    if refused:
        raise ConflictError(
            f"hardware or address would change under running replicas of {'; '.join(refused)}. Drain these nodes "
            "first (`quarterdeck node drain NODE`, or a file without them), then apply this file"
        )


def _stuck(before: NodeSpec, after: NodeSpec, replicas: Sequence[Replica]) -> list[Replica]:
    mine = [replica for replica in replicas if replica.node == after.name]
    same_machine = (before.gpu_model, before.address) == (after.gpu_model, after.address)
    return [replica for replica in mine if not same_machine or max(replica.gpus, default=-1) >= after.gpus]


async def _write_nodes(tx: Transaction, change: SiteChange) -> None:
    for spec in change.nodes_added:
        await tx.put_node_spec(spec)
    for node in change.nodes_changed:
        await tx.put_node_spec(node.spec)
        if node.returns:
            await tx.set_node_state(node.spec.name, NodeState.UNKNOWN, NEVER_SEEN)
    for removal in change.nodes_removed:
        if removal.drains:
            await tx.set_node_state(removal.name, NodeState.DRAINING, LEFT_SITE)
        else:
            await tx.delete_node(removal.name)


async def _write_deployments(tx: Transaction, change: SiteChange, now: datetime) -> None:
    for addition in change.deployments_added:
        await tx.put_deployment_spec(addition.spec, addition.plan, now)
    for changed in change.deployments_changed:
        await tx.put_deployment_spec(changed.spec, changed.plan, now)
    for name in change.deployments_removed:
        await tx.mark_deployment_removed(name)


def _events(change: SiteChange, site: Site, now: datetime) -> Iterator[NewEvent]:
    """One event for each node and deployment touched, and one for the site."""
    by_subject = groupby(change.lines(), key=lambda line: (line.kind, line.subject, line.reason))
    for (kind, subject, reason), lines in by_subject:
        if kind is not EventKind.SITE:
            yield NewEvent(
                at=now,
                kind=kind,
                subject=subject,
                reason=reason,
                sentence="; ".join(line.sentence for line in lines),
                deployment=subject if kind is EventKind.DEPLOYMENT else None,
            )
    yield NewEvent(
        at=now,
        kind=EventKind.SITE,
        subject=site.name,
        reason=Reason.SITE_APPLIED,
        sentence=f"site {site.name} is applied: {_extent(change)}",
    )


def _extent(change: SiteChange) -> str:
    own = [line.sentence for line in change.lines() if line.kind is EventKind.SITE]
    subjects = len({(line.kind, line.subject) for line in change.lines() if line.kind is not EventKind.SITE})
    if not own and not subjects:
        return "only its text changed"
    return "; ".join([f"{subjects} nodes and deployments touched", *own])
