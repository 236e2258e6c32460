"""Replicas. Who holds a GPU or a port is decided by the database's own constraints."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError

from controlplane.adapters.db.codecs import (
    gpus_from_text,
    storable,
    text_from_gpus,
    time_from_us,
    time_from_us_or_none,
    us_from_time,
    us_from_time_or_none,
)
from controlplane.adapters.db.remembered import Remembered
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.tables import REPLICA_GPUS, REPLICAS
from controlplane.domain.reason import Reason
from controlplane.domain.refusals import gpu_taken, port_taken
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName, RevisionId

_ALL: Final = select(REPLICAS)
_OF_ONE: Final = _ALL.where(REPLICAS.c.deployment == bindparam("of_deployment"))
_INSERT: Final = REPLICAS.insert()
_INSERT_GPUS: Final = REPLICA_GPUS.insert()
_UPDATE: Final = update(REPLICAS).where(REPLICAS.c.name == bindparam("at_name"))
_UPDATE_IN_PLACE: Final = _UPDATE.where(
    REPLICAS.c.node == bindparam("at_node"),
    REPLICAS.c.gpus == bindparam("at_gpus"),
    REPLICAS.c.port == bindparam("at_port"),
)


class ReplicaRows:
    _session: Session
    _replicas: Remembered[Replica]

    async def replicas(self, deployment: DeploymentName | None = None) -> Sequence[Replica]:
        if deployment is None:
            rows = await self._session.rows(_ALL)
        else:
            rows = await self._session.rows(_OF_ONE, {"of_deployment": deployment})
        return sorted(map(self._replicas.value, rows), key=lambda found: found.name)

    async def put_replica(self, replica: Replica) -> None:
        columns = _columns(replica)
        # Nearly every write changes a phase and leaves the place: one statement.
        if await self._session.run(_UPDATE_IN_PLACE, {**columns, **_place(columns)}):
            return
        try:
            async with self._session.savepoint():
                await self._put_elsewhere(replica, columns)
        except IntegrityError as error:
            raise await self._refusal(replica) from error

    async def delete_replica(self, name: ReplicaName) -> None:
        await self._session.run(delete(REPLICAS).where(REPLICAS.c.name == name))

    async def _put_elsewhere(self, replica: Replica, columns: dict[str, Any]) -> None:
        """A new replica, or one whose node, GPUs or port change."""
        if await self._session.run(_UPDATE, {**columns, "at_name": replica.name}):
            await self._session.run(delete(REPLICA_GPUS).where(REPLICA_GPUS.c.replica == replica.name))
        else:
            await self._session.run(_INSERT, columns)
        if replica.gpus:
            await self._session.run(
                _INSERT_GPUS, [{"node": replica.node, "gpu": gpu, "replica": replica.name} for gpu in replica.gpus]
            )

    async def _refusal(self, replica: Replica) -> ConflictError:
        taken = await self._session.rows(
            select(REPLICA_GPUS)
            .where(
                REPLICA_GPUS.c.node == replica.node,
                REPLICA_GPUS.c.gpu.in_(replica.gpus),
                REPLICA_GPUS.c.replica != replica.name,
            )
            .order_by(REPLICA_GPUS.c.gpu)
        )
        if taken:
            return gpu_taken(replica.name, node=replica.node, gpu=taken[0].gpu, holder=taken[0].replica)
        holder = await self._session.row(
            select(REPLICAS.c.name).where(REPLICAS.c.node == replica.node, REPLICAS.c.port == replica.port)
        )
        # On PostgreSQL the holder may have committed after this transaction's snapshot: it cannot be named then.
        name = "another replica" if holder is None else holder.name
        return port_taken(replica.name, node=replica.node, port=replica.port, holder=name)


def _place(columns: dict[str, Any]) -> dict[str, Any]:
    return {f"at_{name}": columns[name] for name in ("name", "node", "gpus", "port")}


def _columns(replica: Replica) -> dict[str, Any]:
    return {
        "name": replica.name,
        "deployment": replica.deployment,
        "revision": replica.revision,
        "ordinal": replica.ordinal,
        "phase": replica.phase.value,
        "phase_since_us": us_from_time(replica.phase_since),
        "node": replica.node,
        "gpus": text_from_gpus(replica.gpus),
        "port": replica.port,
        "created_at_us": us_from_time(replica.created_at),
        "reason": replica.reason.value,
        "sentence": storable(replica.sentence),
        "launched_at_us": us_from_time_or_none(replica.launched_at),
        "ready_at_us": us_from_time_or_none(replica.ready_at),
        "sleep_after_drain": replica.sleep_after_drain,
        "stop_signals": replica.stop_signals,
        "stop_signal_at_us": us_from_time_or_none(replica.stop_signal_at),
    }


def replica_from_row(row: Row[Any]) -> Replica:
    return Replica(
        name=ReplicaName(row.name),
        deployment=DeploymentName(row.deployment),
        revision=RevisionId(row.revision),
        ordinal=row.ordinal,
        phase=ReplicaPhase(row.phase),
        phase_since=time_from_us(row.phase_since_us),
        node=NodeName(row.node),
        gpus=gpus_from_text(row.gpus),
        port=row.port,
        created_at=time_from_us(row.created_at_us),
        reason=Reason(row.reason),
        sentence=row.sentence,
        launched_at=time_from_us_or_none(row.launched_at_us),
        ready_at=time_from_us_or_none(row.ready_at_us),
        sleep_after_drain=row.sleep_after_drain,
        stop_signals=row.stop_signals,
        stop_signal_at=time_from_us_or_none(row.stop_signal_at_us),
    )
