"""Replicas as they run, and what they print."""

from typing import Annotated

from fastapi import APIRouter, Query

from controlplane.api.assemble import replica_out
from controlplane.api.context import Context
from controlplane.api.wire import LogOut, ReplicaOut
from controlplane.domain.refusals import not_found
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import DeploymentName

router = APIRouter(prefix="/replicas", tags=["replicas"])


@router.get("")
async def list_replicas(context: Context, deployment: str | None = None) -> list[ReplicaOut]:
    async with context.store.transaction() as tx:
        replicas = await tx.replicas(DeploymentName(deployment) if deployment is not None else None)
    snapshot = context.telemetry.snapshot()
    return [replica_out(replica, snapshot) for replica in replicas]


@router.get("/{name}")
async def get_replica(context: Context, name: str) -> ReplicaOut:
    return replica_out(await _replica(context, name), context.telemetry.snapshot())


@router.get("/{name}/log")
async def get_replica_log(context: Context, name: str, lines: Annotated[int, Query(ge=1, le=5000)] = 100) -> LogOut:
    """The last lines that the engine printed."""
    replica = await _replica(context, name)
    return LogOut(replica=replica.name, lines=list(await context.log_tail(replica.name, lines)))


async def _replica(context: Context, name: str) -> Replica:
    async with context.store.transaction() as tx:
        replicas = {str(replica.name): replica for replica in await tx.replicas()}
    if name not in replicas:
        raise not_found("replica", name, replicas)
    return replicas[name]
