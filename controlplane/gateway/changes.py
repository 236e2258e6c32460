"""What HAProxy runs now + what the table wants -> runtime commands, or a reload. Pure.

Which slot a server has is read from HAProxy itself (address and port); nothing is kept beside it.

A server that enters starts DOWN (`state ready` and `health down` in one line, in this order: the other order has no
effect and a slot that leaves maintenance is UP at once). The replica has answered a probe of the control plane, but
only HAProxy's own check shows that HAProxy reaches it; the price is at most one check interval. So that a replacement
costs no gap, servers that leave keep their traffic until one of those that stay is UP.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.gateway.model import Route, RouteTable, Server, ServerMode
from controlplane.kernel.ids import DeploymentName

type Assignment = Mapping[DeploymentName, tuple[Server | None, ...]]
"""Per deployment, which server each slot s1..sN has."""


class SlotAdmin(StrEnum):
    """What an operator (we) told HAProxy about a slot; its health is another matter."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSeen:
    endpoint: str
    """`address:port`; a slot in maintenance keeps its last one."""
    admin: SlotAdmin
    up: bool
    weight: int
    maxconn: int
    """0: no limit."""
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySeen:
    structure: str
    """Digest of the configuration that the running worker was started with."""
    slots: Mapping[DeploymentName, tuple[SlotSeen, ...]]
    """In the order s1..sN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The structure differs. `slots` keeps every server where it is, as far as the new structure has the slot."""

    slots: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Runtime commands, possibly none. Each element is one slot's commands, to be sent in one line."""

    lines: tuple[str, ...]
    slots: Assignment
    """As it is after the commands."""
    pending: bool
    """Something waits: a drain for its replacement, or a server for a slot that is being freed."""


type Changes = Reload | Commands


def plan_changes(table: RouteTable, structure: str, seen: GatewaySeen) -> Changes:
    """The way from `seen` to `table`, whose rendered structure has the digest `structure`."""
    if seen.structure != structure:
        return Reload(slots=assign_slots(table, seen.slots))
    entering: list[str] = []
    leaving: list[str] = []
    slots: dict[DeploymentName, tuple[Server | None, ...]] = {}
    pending = False
    for route in table.routes:
        plan = _plan_route(route, seen.slots[route.deployment])
        entering += plan.entering
        leaving += plan.leaving
        pending |= plan.pending
        slots[route.deployment] = tuple(plan.slots)
    return Commands(lines=(*entering, *leaving), slots=slots, pending=pending)


def assign_slots(table: RouteTable, seen: Mapping[DeploymentName, Sequence[SlotSeen]]) -> Assignment:
    """Slots for a configuration file: servers stay where they are, new ones take the first free slots.

    Draining servers get none: a new worker has no request of theirs, the old worker finishes those it has.
    """
    return {route.deployment: _assign_route(route, seen.get(route.deployment, ())) for route in table.routes}


def backend_name(deployment: DeploymentName) -> str:
    """HAProxy's name of a deployment's backend; the prefix keeps it apart from the gateway's own sections."""
    return f"d_{deployment}"


def deployment_of(backend: str) -> DeploymentName | None:
    return DeploymentName(backend[2:]) if backend.startswith("d_") else None


def slot_name(index: int) -> str:
    """Slots count from 1 in HAProxy, from 0 in tuples."""
    return f"s{index + 1}"


@dataclass(slots=True, kw_only=True)
class _RoutePlan:
    slots: list[Server | None]
    entering: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    pending: bool = False


def _plan_route(route: Route, seen: Sequence[SlotSeen]) -> _RoutePlan:
    wanted = {server.endpoint: server for server in route.servers}
    backend = backend_name(route.deployment)
    plan = _RoutePlan(slots=[None] * len(seen))
    placed: set[str] = set()
    replacement_up = False
    going: list[tuple[int, ServerMode | None]] = []
    for index, slot in enumerate(seen):
        if slot.admin is SlotAdmin.MAINT:
            continue
        server = None if slot.endpoint in placed else wanted.get(slot.endpoint)
        if server is not None and server.mode is ServerMode.READY:
            placed.add(slot.endpoint)
            plan.slots[index] = server
            replacement_up |= slot.up
            plan.entering += _adjusted(f"{backend}/{slot_name(index)}", slot, server)
            continue
        placed.add(slot.endpoint)
        going.append((index, None if server is None else server.mode))
    _place_new(
        plan, backend, seen, [s for s in route.servers if s.mode is ServerMode.READY and s.endpoint not in placed]
    )
    replaced = replacement_up or not any(server.mode is ServerMode.READY for server in route.servers)
    for index, mode in going:
        _let_go(plan, f"{backend}/{slot_name(index)}", seen[index], mode, replaced=replaced)
    return plan


def _adjusted(target: str, slot: SlotSeen, server: Server) -> Iterator[str]:
    """Weight, limit and undrain of a server that stays."""
    parts = []
    if slot.weight != server.weight:
        parts.append(f"set server {target} weight {server.weight}")
    if slot.maxconn != server.maxconn:
        parts.append(f"set maxconn server {target} {server.maxconn}")
    if slot.admin is SlotAdmin.DRAIN:
        parts.append(f"set server {target} state ready")
    if parts:
        yield "; ".join(parts)


def _place_new(plan: _RoutePlan, backend: str, seen: Sequence[SlotSeen], servers: Sequence[Server]) -> None:
    free = _free_slots(seen)
    for server in servers:
        index = next(free, None)
        if index is None:
            plan.pending = True  # a slot that is being freed in this pass takes it in the next
            return
        target = f"{backend}/{slot_name(index)}"
        plan.slots[index] = server
        plan.entering.append(
            f"set server {target} addr {server.address} port {server.port}; "
            f"set server {target} weight {server.weight}; set maxconn server {target} {server.maxconn}; "
            f"set server {target} state ready; set server {target} health down"
        )


def _free_slots(seen: Sequence[SlotSeen]) -> Iterator[int]:
    """Slots in maintenance, those without a request left first: a request keeps the slot's old address."""
    resting = [index for index, slot in enumerate(seen) if slot.admin is SlotAdmin.MAINT]
    return iter(sorted(resting, key=lambda index: (seen[index].in_flight > 0, index)))


def _let_go(plan: _RoutePlan, target: str, slot: SlotSeen, mode: ServerMode | None, *, replaced: bool) -> None:
    """Drain a server that should drain; free the slot of one that is not in the table any more."""
    if slot.admin is SlotAdmin.DRAIN and mode is ServerMode.DRAIN:
        return
    if slot.admin is SlotAdmin.READY and slot.up and not replaced:
        plan.pending = True
        return
    state = "drain" if mode is ServerMode.DRAIN else "maint"
    plan.leaving.append(f"set server {target} state {state}")


def _assign_route(route: Route, seen: Sequence[SlotSeen]) -> tuple[Server | None, ...]:
    slots: list[Server | None] = [None] * route.slots
    waiting = {server.endpoint: server for server in route.servers if server.mode is ServerMode.READY}
    for index, slot in enumerate(seen[: route.slots]):
        if slot.admin is not SlotAdmin.MAINT and slot.endpoint in waiting:
            slots[index] = waiting.pop(slot.endpoint)
    free = (index for index, server in enumerate(slots) if server is None)
    for server in waiting.values():
        slots[next(free)] = server  # a route has at least as many slots as servers
    return tuple(slots)
