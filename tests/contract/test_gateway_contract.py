"""What every GatewayDriver does; on the fake, and on the real HAProxy of the wheel."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

import pytest

from controlplane.adapters.haproxy.processes import leaders
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.site import GatewaySpec
from controlplane.gateway.model import RouteTable
from controlplane.gateway.ports import GatewayDriver
from controlplane.gateway.table import build_route_table
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.ports import Traffic, TrafficSeen, TrafficUnseen
from controlplane.testing.builders import make_deployment, make_replica
from controlplane.testing.effects import FakeClock
from controlplane.testing.gateway import FakeGateway
from tests.integration.gateway_lab import Answer, Lab, Replica, eventually, open_lab

CHAT = DeploymentName("chat")
EMBED = DeploymentName("embed")


class Harness(Protocol):
    """A gateway, and the world around it."""

    @property
    def driver(self) -> GatewayDriver: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def spec(self) -> GatewaySpec: ...

    async def replica(self) -> int:
        """Start one; its port."""
        ...

    async def stop_replica(self, port: int) -> None: ...
    async def open_request(self, deployment: str) -> None:
        """Begin a request that stays in flight."""
        ...

    async def finish_requests(self, port: int) -> None:
        """Let those on that replica end."""
        ...

    async def crash(self) -> None: ...
    def restart_control_plane(self) -> None: ...


class FakeHarness:
    def __init__(self) -> None:
        self._gateway = FakeGateway(FakeClock())
        self._next_port = 20000
        self.spec = GatewaySpec()

    @property
    def driver(self) -> GatewayDriver:
        return self._gateway

    @property
    def traffic(self) -> Traffic:
        return self._gateway

    async def replica(self) -> int:
        self._next_port += 1
        return self._next_port

    async def stop_replica(self, port: int) -> None:
        self._gateway.unhealthy.add(f"127.0.0.1:{port}")
        self._gateway.check()

    async def open_request(self, deployment: str) -> None:
        self._gateway.request(DeploymentName(deployment))

    async def finish_requests(self, port: int) -> None:
        servers = (await self._gateway.sample()).servers
        self._gateway.finish(f"127.0.0.1:{port}", servers[f"127.0.0.1:{port}"].in_flight)

    async def crash(self) -> None:
        self._gateway.crash()

    def restart_control_plane(self) -> None:
        """The fake is the gateway itself; there is nothing that a restart would forget."""


class RealHarness:
    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._open: list[asyncio.Task[Answer]] = []
        self._gates: dict[int, asyncio.Event] = {}

    @property
    def driver(self) -> GatewayDriver:
        return self._lab.gateway

    @property
    def traffic(self) -> Traffic:
        return self._lab.traffic

    @property
    def spec(self) -> GatewaySpec:
        return self._lab.spec

    async def replica(self) -> int:
        gated = GatedReplica("gated")
        await gated.start()
        self._lab.replicas.append(gated)
        self._gates[gated.port] = gated.gate
        return gated.port

    async def stop_replica(self, port: int) -> None:
        for replica in self._lab.replicas:
            if replica.port == port:
                await replica.stop()

    async def open_request(self, deployment: str) -> None:
        before = await self._in_gateway()
        self._open.append(asyncio.create_task(self._lab.ask_model(deployment, query="?tokens=1")))
        await eventually(lambda: self._more_than(before))

    async def finish_requests(self, port: int) -> None:
        self._gates[port].set()

    async def crash(self) -> None:
        (master,) = leaders(f"test:{self._lab.state_dir}", "gateway")
        os.kill(master.pid, signal.SIGKILL)
        await eventually(lambda: not leaders(f"test:{self._lab.state_dir}", "gateway"))

    def restart_control_plane(self) -> None:
        self._lab.restart_control_plane()

    async def close(self) -> None:
        for gate in self._gates.values():
            gate.set()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _in_gateway(self) -> int:
        routes = (await self._lab.gateway.sample()).routes.values()
        return sum(route.in_flight + route.held for route in routes)

    async def _more_than(self, before: int) -> bool:
        return await self._in_gateway() > before


class GatedReplica(Replica):
    """Its streams stay open until the gate opens."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = asyncio.Event()

    async def hold_open(self) -> None:
        await self.gate.wait()


@pytest.fixture(params=["fake", "haproxy"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    if request.param == "fake":
        yield FakeHarness()
        return
    async with open_lab() as lab:
        real = RealHarness(lab)
        yield real
        await real.close()


def routes(
    harness: Harness, *, ready: tuple[int, ...] = (), draining: tuple[int, ...] = (), names: tuple[str, ...] = ("chat",)
) -> RouteTable:
    rows = [make_replica("chat", port, port=port) for port in ready]
    rows += [make_replica("chat", port, port=port, phase=ReplicaPhase.DRAINING) for port in draining]
    return build_route_table([make_deployment(name, replicas_min=0) for name in names], rows, harness.spec)


async def settle(harness: Harness, table: RouteTable, *, up: int) -> None:
    """Converge until nothing is left to do and as many servers are up."""

    async def settled() -> bool:
        applied = await harness.driver.converge(table)
        sample = await harness.driver.sample()
        return not applied.changed and not applied.pending and sample.routes[CHAT].servers_up == up

    await eventually(settled)


async def test_starts_once(harness: Harness) -> None:
    table = routes(harness)
    assert (await harness.driver.converge(table)).started
    again = await harness.driver.converge(table)
    assert not again.changed
    sample = await harness.driver.sample()
    assert sample.routes[CHAT].servers_up == 0
    assert sample.servers == {}


async def test_cannot_be_asked_before_it_runs(harness: Harness) -> None:
    with pytest.raises(RetryableError):
        await harness.driver.sample()
    assert isinstance(await harness.traffic.servers(), TrafficUnseen)


async def test_replicas_come_and_go_without_a_reload(harness: Harness) -> None:
    first, second = await harness.replica(), await harness.replica()
    await harness.driver.converge(routes(harness))
    applied = await harness.driver.converge(routes(harness, ready=(first,)))
    assert applied.actions
    assert not applied.reloaded
    await settle(harness, routes(harness, ready=(first, second)), up=2)
    await settle(harness, routes(harness, ready=(second,)), up=1)
    assert set((await harness.driver.sample()).servers) == {f"127.0.0.1:{second}"}


async def test_a_drain_takes_nothing_new_and_shows_what_is_left(harness: Harness) -> None:
    leaving, staying = await harness.replica(), await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(leaving,)), up=1)
    await harness.open_request("chat")
    await settle(harness, routes(harness, ready=(staying,), draining=(leaving,)), up=1)
    await harness.open_request("chat")
    seen = await harness.traffic.servers()
    assert isinstance(seen, TrafficSeen)
    old, new = seen.servers[f"127.0.0.1:{leaving}"], seen.servers[f"127.0.0.1:{staying}"]
    assert (old.state, old.in_flight) == ("DRAIN", 1)
    assert new.state.startswith("UP")
    assert new.in_flight == 1
    await harness.finish_requests(leaving)
    await eventually(lambda: _in_flight(harness, leaving, 0))


async def test_the_last_server_stays_until_its_replacement_is_up(harness: Harness) -> None:
    old, new = await harness.replica(), await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(old,)), up=1)
    await harness.stop_replica(new)
    applied = await harness.driver.converge(routes(harness, ready=(new,), draining=(old,)))
    assert applied.pending
    assert (await harness.driver.sample()).servers[f"127.0.0.1:{old}"].state.startswith("UP")


async def test_scale_to_zero_drains_at_once(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(port,)), up=1)
    applied = await harness.driver.converge(routes(harness, draining=(port,)))
    assert not applied.pending
    assert (await harness.driver.sample()).servers[f"127.0.0.1:{port}"].state == "DRAIN"


async def test_a_drain_can_be_taken_back(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(port,)), up=1)
    await harness.driver.converge(routes(harness, draining=(port,)))
    await settle(harness, routes(harness, ready=(port,)), up=1)
    assert (await harness.driver.sample()).servers[f"127.0.0.1:{port}"].state.startswith("UP")


async def test_an_unhealthy_server_is_down(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(port,)), up=1)
    await harness.stop_replica(port)

    async def down() -> bool:
        sample = await harness.driver.sample()
        return sample.servers[f"127.0.0.1:{port}"].state == "DOWN" and sample.routes[CHAT].servers_up == 0

    await eventually(down)


async def test_arrivals_are_counted_once_held_ones_too(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    await harness.open_request("chat")
    route = (await harness.driver.sample()).routes[CHAT]
    assert (route.arrivals_total, route.held, route.in_flight) == (1, 1, 0)
    await settle(harness, routes(harness, ready=(port,)), up=1)
    await harness.open_request("chat")
    assert (await harness.driver.sample()).routes[CHAT].arrivals_total == 2


async def test_another_structure_is_a_reload_that_loses_no_request(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(port,)), up=1)
    epoch = (await harness.driver.sample()).epoch
    await harness.open_request("chat")
    wider = routes(harness, ready=(port,), names=("chat", "embed"))
    applied = await harness.driver.converge(wider)
    assert applied.reloaded
    await settle(harness, wider, up=1)
    sample = await harness.driver.sample()
    assert set(sample.routes) == {CHAT, EMBED}
    assert sample.epoch != epoch
    assert await _in_flight(harness, port, 1), "the old worker's request is seen"
    await harness.finish_requests(port)
    await eventually(lambda: _in_flight(harness, port, 0))


async def test_limits_change_without_a_new_server(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    table = routes(harness, ready=(port,))
    await settle(harness, table, up=1)
    route = table.routes[0]
    narrower = replace(table, routes=(replace(route, servers=(replace(route.servers[0], maxconn=7, weight=50),)),))
    applied = await harness.driver.converge(narrower)
    assert len(applied.actions) == 1
    assert not applied.reloaded
    assert not (await harness.driver.converge(narrower)).changed


async def test_a_crash_is_followed_by_a_start_with_the_servers_of_now(harness: Harness) -> None:
    first, second = await harness.replica(), await harness.replica()
    await harness.driver.converge(routes(harness))
    await settle(harness, routes(harness, ready=(first, second)), up=2)
    epoch = (await harness.driver.sample()).epoch
    await harness.crash()
    table = routes(harness, ready=(second,))
    assert (await harness.driver.converge(table)).started
    await settle(harness, table, up=1)
    sample = await harness.driver.sample()
    assert sample.epoch != epoch
    assert set(sample.servers) == {f"127.0.0.1:{second}"}


async def test_a_restarted_control_plane_adopts_it_as_it_is(harness: Harness) -> None:
    port = await harness.replica()
    await harness.driver.converge(routes(harness))
    table = routes(harness, ready=(port,))
    await settle(harness, table, up=1)
    epoch = (await harness.driver.sample()).epoch
    harness.restart_control_plane()
    assert not (await harness.driver.converge(table)).changed
    assert (await harness.driver.sample()).epoch == epoch


async def test_stops_and_starts_again(harness: Harness) -> None:
    await harness.driver.converge(routes(harness))
    await harness.driver.stop()
    with pytest.raises(RetryableError):
        await harness.driver.sample()
    assert (await harness.driver.converge(routes(harness))).started


async def _in_flight(harness: Harness, port: int, expected: int) -> bool:
    seen = await harness.traffic.servers()
    assert isinstance(seen, TrafficSeen)
    server = seen.servers.get(f"127.0.0.1:{port}")
    return (server.in_flight if server else 0) == expected
