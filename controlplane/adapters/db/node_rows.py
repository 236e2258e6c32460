"""Nodes. When a node was seen is a row of its own: it changes every second, by another writer than the state."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, bindparam, delete, select, update

from controlplane.adapters.db.codecs import NODE_SPEC, storable, time_from_us_or_none, us_from_time
from controlplane.adapters.db.remembered import Remembered
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.tables import NODE_SEEN, NODES
from controlplane.domain.node import NEVER_SEEN, Node, NodeSpec, NodeState
from controlplane.domain.refusals import generation_conflict, not_found
from controlplane.kernel.ids import NodeName

_SELECT: Final = select(NODES, NODE_SEEN.c.seen_at_us).outerjoin_from(NODES, NODE_SEEN)
_ONE: Final = _SELECT.where(NODES.c.name == bindparam("name"))
_SET_SEEN: Final = update(NODE_SEEN).where(NODE_SEEN.c.node == bindparam("name")).values(seen_at_us=bindparam("at_us"))


class NodeRows:
    _session: Session
    _nodes: Remembered[Node]

    async def nodes(self) -> Sequence[Node]:
        return sorted(map(self._nodes.value, await self._session.rows(_SELECT)), key=lambda node: node.name)

    async def put_node_spec(self, spec: NodeSpec) -> None:
        values = {"spec": NODE_SPEC.encode(spec)}
        if await self._session.run(update(NODES).where(NODES.c.name == spec.name).values(values)):
            return
        fresh = {"state": NodeState.UNKNOWN.value, "state_reason": NEVER_SEEN, "generation": 1}
        await self._session.run(NODES.insert(), {"name": spec.name, **values, **fresh})
        await self._session.run(NODE_SEEN.insert(), {"node": spec.name, "seen_at_us": None})

    async def delete_node(self, name: NodeName) -> None:
        await self._session.run(delete(NODES).where(NODES.c.name == name))

    async def set_node_state(
        self, name: NodeName, state: NodeState, reason: str, *, expected_generation: int | None = None
    ) -> Node:
        row = await self._session.row(_ONE, {"name": name})
        if row is None:
            known = await self._session.rows(select(NODES.c.name))
            raise not_found("node", name, (other.name for other in known))
        if expected_generation not in (None, row.generation):
            raise generation_conflict("node", name, expected=expected_generation, found=row.generation)
        await self._session.run(
            update(NODES)
            .where(NODES.c.name == name)
            .values(state=state.value, state_reason=storable(reason), generation=row.generation + 1)
        )
        changed = await self._session.row(_ONE, {"name": name})
        assert changed is not None, "it was just written"
        return node_from_row(changed)

    async def set_node_seen(self, name: NodeName, seen_at: datetime) -> None:
        await self.set_nodes_seen({name: seen_at})

    async def set_nodes_seen(self, seen: Mapping[NodeName, datetime]) -> None:
        if seen:
            await self._session.run(
                _SET_SEEN, [{"name": name, "at_us": us_from_time(seen_at)} for name, seen_at in seen.items()]
            )


def node_from_row(row: Row[Any]) -> Node:
    return Node(
        spec=NODE_SPEC.decode(row.spec),
        state=NodeState(row.state),
        state_reason=row.state_reason,
        generation=row.generation,
        seen_at=time_from_us_or_none(row.seen_at_us),
    )
