"""From what HAProxy has to what it should have, in commands."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.site import GatewaySpec
from controlplane.gateway.changes import (
    Commands,
    GatewaySeen,
    Reload,
    SlotAdmin,
    SlotSeen,
    assign_slots,
    backend_name,
    deployment_of,
    plan_changes,
)
from controlplane.gateway.model import RouteTable, ServerMode
from controlplane.gateway.table import build_route_table
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.builders import make_deployment, make_replica
from controlplane.testing.effects import FakeClock
from controlplane.testing.gateway import FakeGateway

CHAT = DeploymentName("chat")
EMPTY = SlotSeen(endpoint="127.0.0.1:1", admin=SlotAdmin.MAINT, up=False, weight=1, maxconn=0, in_flight=0)


def table_of(phases: Mapping[int, ReplicaPhase], *, replicas_max: int = 4) -> RouteTable:
    """By port."""
    replicas = [make_replica("chat", port, port=port, phase=phase) for port, phase in phases.items()]
    return build_route_table([make_deployment(replicas_max=replicas_max)], replicas, GatewaySpec())


def slot(port: int, admin: SlotAdmin = SlotAdmin.READY, *, up: bool = True, in_flight: int = 0) -> SlotSeen:
    return SlotSeen(endpoint=f"127.0.0.1:{port}", admin=admin, up=up, weight=100, maxconn=320, in_flight=in_flight)


def seen(*slots: SlotSeen) -> GatewaySeen:
    return GatewaySeen(structure="same", slots={CHAT: (*slots, *[EMPTY] * (8 - len(slots)))})


def commands(table: RouteTable, found: GatewaySeen) -> Commands:
    changes = plan_changes(table, "same", found)
    assert isinstance(changes, Commands)
    return changes


def test_nothing_to_do_is_no_command() -> None:
    plan = commands(
        table_of({7: ReplicaPhase.READY, 8: ReplicaPhase.DRAINING}), seen(slot(7), slot(8, SlotAdmin.DRAIN))
    )
    assert (plan.lines, plan.pending) == ((), False)


def test_a_new_server_starts_down_in_one_line() -> None:
    plan = commands(table_of({7: ReplicaPhase.READY}), seen())
    (line,) = plan.lines
    assert line.split("; ") == [
        "set server d_chat/s1 addr 127.0.0.1 port 7",
        "set server d_chat/s1 weight 100",
        "set maxconn server d_chat/s1 320",
        "set server d_chat/s1 state ready",
        "set server d_chat/s1 health down",
    ]


def test_a_slot_without_old_requests_is_taken_first() -> None:
    plan = commands(table_of({9: ReplicaPhase.READY}), seen(slot(7, SlotAdmin.MAINT, in_flight=1), EMPTY))
    assert plan.lines[0].startswith("set server d_chat/s2 ")


def test_new_ones_come_before_old_ones_go() -> None:
    plan = commands(table_of({7: ReplicaPhase.READY, 9: ReplicaPhase.READY}), seen(slot(7), slot(8)))
    assert plan.lines[0].startswith("set server d_chat/s3 addr")
    assert plan.lines[1] == "set server d_chat/s2 state maint"


def test_the_last_one_up_waits_for_its_replacement() -> None:
    table = table_of({7: ReplicaPhase.DRAINING, 9: ReplicaPhase.READY})
    waiting = commands(table, seen(slot(7), slot(9, up=False)))
    assert (waiting.lines, waiting.pending) == ((), True)
    ready = commands(table, seen(slot(7), slot(9)))
    assert (ready.lines, ready.pending) == (("set server d_chat/s1 state drain",), False)


def test_a_dead_one_need_not_wait() -> None:
    plan = commands(table_of({9: ReplicaPhase.READY}), seen(slot(7, up=False), slot(9, up=False)))
    assert plan.lines == ("set server d_chat/s1 state maint",)


def test_with_nothing_wanted_all_go_at_once() -> None:
    plan = commands(table_of({7: ReplicaPhase.DRAINING}), seen(slot(7)))
    assert (plan.lines, plan.pending) == (("set server d_chat/s1 state drain",), False)


def test_a_drain_taken_back_keeps_its_health() -> None:
    plan = commands(table_of({7: ReplicaPhase.READY}), seen(slot(7, SlotAdmin.DRAIN)))
    assert plan.lines == ("set server d_chat/s1 state ready",)


def test_one_endpoint_in_two_slots_is_put_right() -> None:
    plan = commands(table_of({7: ReplicaPhase.READY}), seen(slot(7), slot(7)))
    assert plan.lines == ("set server d_chat/s2 state maint",)


def test_no_free_slot_waits_for_one() -> None:
    old = [slot(port) for port in range(1, 9)]
    table = table_of(dict.fromkeys((1, 20), ReplicaPhase.READY))
    plan = commands(table, seen(*old))
    assert plan.pending
    assert len(plan.lines) == 7


def test_another_structure_keeps_servers_where_they_are() -> None:
    table = table_of({8: ReplicaPhase.READY, 9: ReplicaPhase.READY, 7: ReplicaPhase.DRAINING})
    changes = plan_changes(table, "other", seen(slot(7), slot(8)))
    assert isinstance(changes, Reload)
    servers = changes.slots[CHAT]
    assert [server and server.port for server in servers] == [9, 8, *[None] * 6]


def test_names_of_backends() -> None:
    assert deployment_of(backend_name(CHAT)) == CHAT
    assert deployment_of("slow") is None


PHASES = st.sampled_from([ReplicaPhase.READY, ReplicaPhase.DRAINING, ReplicaPhase.STOPPING])
WORLDS = st.lists(st.dictionaries(st.integers(min_value=10, max_value=17), PHASES, max_size=8), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(worlds=WORLDS, unhealthy=st.sets(st.integers(min_value=10, max_value=17), max_size=3))
async def test_any_history_ends_as_wanted_and_never_drops_the_last_one_up(
    worlds: list[dict[int, ReplicaPhase]], unhealthy: set[int]
) -> None:
    """Whatever came before, some passes later exactly the wanted servers are there, and then nothing is to be done."""
    gateway = FakeGateway(FakeClock())
    gateway.unhealthy = {f"127.0.0.1:{port}" for port in unhealthy}
    table = table_of({})
    await gateway.converge(table)
    wanted_up: set[str] = set()
    can_be_up = False
    for world in worlds:
        table = table_of(world)
        wanted_up = {server.endpoint for server in table.routes[0].servers if server.mode is ServerMode.READY}
        can_be_up = bool(wanted_up - gateway.unhealthy)
        for _ in range(4):
            before = (await gateway.sample()).routes[CHAT].servers_up
            await gateway.converge(table)
            after = (await gateway.sample()).routes[CHAT].servers_up
            assert after > 0 or before == 0 or not can_be_up, "capacity is added before it is removed"
    applied = await gateway.converge(table)
    assert not applied.actions
    servers = (await gateway.sample()).servers
    ready = {endpoint for endpoint, server in servers.items() if server.state in ("UP", "DOWN")}
    assert wanted_up <= ready
    if can_be_up or not wanted_up:
        assert ready == wanted_up
        assert not applied.pending


def test_assignment_of_a_cold_start_is_in_order() -> None:
    table = table_of({9: ReplicaPhase.READY, 8: ReplicaPhase.READY, 7: ReplicaPhase.DRAINING})
    slots = assign_slots(table, {})[CHAT]
    assert [server and server.port for server in slots[:3]] == [8, 9, None]
