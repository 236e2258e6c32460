"""An in-memory gateway: the same plan of changes as the real one, servers that are up when the test says so."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

from controlplane.domain.telemetry import GatewaySample, RouteTraffic, ServerTraffic
from controlplane.gateway.changes import (
    Assignment,
    Commands,
    GatewaySeen,
    Reload,
    SlotAdmin,
    SlotSeen,
    assign_slots,
    deployment_of,
    plan_changes,
)
from controlplane.gateway.model import RouteTable, Server
from controlplane.gateway.ports import Applied
from controlplane.gateway.render import structure_key
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.ports import TrafficSeen, TrafficSighting, TrafficUnseen

_EMPTY: Final = SlotSeen(endpoint="127.0.0.1:1", admin=SlotAdmin.MAINT, up=False, weight=1, maxconn=0, in_flight=0)


@dataclass(slots=True, kw_only=True)
class _Running:
    """One life of the worker."""

    structure: str
    slots: dict[DeploymentName, list[SlotSeen]]
    arrivals: Counter[DeploymentName]
    held: Counter[DeploymentName]


class FakeGateway:
    """A GatewayDriver and a replicas.ports.Traffic.

    A server's health is what `unhealthy` says when it enters and at each `check`: like HAProxy it starts down and
    passes its first check later, here at the next `converge` or `check`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: _Running | None = None
        self._lives = 0
        self._lingering: Counter[str] = Counter()
        """Requests in flight on workers that a reload left behind, by endpoint."""
        self.unhealthy: set[str] = set()
        """Endpoints that fail the gateway's check."""
        self.unreachable = False
        """It runs, but nobody can ask or tell it anything."""
        self.starts_refused = 0
        """So many starts fail, e.g. because the port is taken."""

    # -- GatewayDriver

    async def converge(self, table: RouteTable) -> Applied:
        self._require_reachable()
        if self._running is None:
            return self._start(table)
        self.check()
        structure = repr(structure_key(table))
        seen = GatewaySeen(
            structure=self._running.structure,
            slots={name: tuple(slots) for name, slots in self._running.slots.items()},
        )
        match plan_changes(table, structure, seen):
            case Reload(slots=slots):
                self._leave_to_old_worker(self._running)
                self._begin(table, slots)
                return Applied(actions=("reload",), reloaded=True)
            case Commands(lines=lines, pending=pending):
                for line in lines:
                    for command in line.split("; "):
                        self._obey(command)
                return Applied(actions=lines, pending=pending)

    async def sample(self) -> GatewaySample:
        self._require_reachable()
        if self._running is None:
            raise RetryableError("the gateway does not run")
        running = self._running
        return GatewaySample(
            at=self._clock.now(),
            epoch=f"life-{self._lives}",
            routes={
                name: RouteTraffic(
                    arrivals_total=running.arrivals[name],
                    in_flight=sum(slot.in_flight for slot in slots),
                    queued=0,
                    held=running.held[name],
                    responses_5xx_total=0,
                    servers_up=sum(slot.up and slot.admin is SlotAdmin.READY for slot in slots),
                )
                for name, slots in running.slots.items()
            },
            servers=self._servers(running),
        )

    async def stop(self) -> None:
        self._running = None

    # -- Traffic

    async def servers(self) -> TrafficSighting:
        if self._running is None or self.unreachable:
            return TrafficUnseen("the gateway does not answer")
        return TrafficSeen(self._servers(self._running))

    # -- what a test does to it

    def crash(self) -> None:
        """Kill -9: everything in flight breaks, counters begin anew."""
        self._running = None
        self._lingering.clear()

    def check(self) -> None:
        """One round of health checks."""
        running = self._require_running()
        for slots in running.slots.values():
            for index, slot in enumerate(slots):
                if slot.admin is not SlotAdmin.MAINT:
                    slots[index] = replace(slot, up=slot.endpoint not in self.unhealthy)

    def request(self, deployment: DeploymentName, requests: int = 1) -> str | None:
        """Requests arrive; the endpoint that all of them went to (least loaded), or None: held."""
        running = self._require_running()
        running.arrivals[deployment] += requests
        slots = running.slots[deployment]
        able = [i for i, slot in enumerate(slots) if slot.up and slot.admin is SlotAdmin.READY]
        if not able:
            running.held[deployment] += requests
            return None
        index = min(able, key=lambda i: slots[i].in_flight)
        slots[index] = replace(slots[index], in_flight=slots[index].in_flight + requests)
        return slots[index].endpoint

    def finish(self, endpoint: str, requests: int = 1) -> None:
        """Requests on that endpoint end."""
        running = self._require_running()
        for slots in running.slots.values():
            for index, slot in enumerate(slots):
                if slot.endpoint == endpoint and slot.in_flight >= requests:
                    slots[index] = replace(slot, in_flight=slot.in_flight - requests)
                    return
        if self._lingering[endpoint] >= requests:
            self._lingering[endpoint] -= requests
            return
        raise AssertionError(f"{endpoint} has no {requests} requests in flight")

    # -- inside

    def _start(self, table: RouteTable) -> Applied:
        if self.starts_refused > 0:
            self.starts_refused -= 1
            raise RetryableError("the gateway did not start: its port is taken")
        self._lingering.clear()
        self._begin(table, assign_slots(table, {}))
        return Applied(actions=("start",), started=True)

    def _begin(self, table: RouteTable, slots: Assignment) -> None:
        self._lives += 1
        self._running = _Running(
            structure=repr(structure_key(table)),
            slots={
                name: [_EMPTY if server is None else self._entered(server) for server in servers]
                for name, servers in slots.items()
            },
            arrivals=Counter(),
            held=Counter(),
        )

    def _leave_to_old_worker(self, running: _Running) -> None:
        for slots in running.slots.values():
            for slot in slots:
                self._lingering[slot.endpoint] += slot.in_flight

    def _entered(self, server: Server) -> SlotSeen:
        """As a configuration file brings it in: up until a check fails."""
        return SlotSeen(
            endpoint=server.endpoint,
            admin=SlotAdmin.READY,
            up=server.endpoint not in self.unhealthy,
            weight=server.weight,
            maxconn=server.maxconn,
            in_flight=0,
        )

    def _obey(self, command: str) -> None:
        """One runtime command of HAProxy, as the plan writes them."""
        words = command.split()
        target = words[3] if words[1] == "maxconn" else words[2]
        backend, _, slot_name = target.partition("/")
        deployment = deployment_of(backend)
        assert deployment is not None, f"no deployment's backend in: {command}"
        slots, index = self._require_running().slots[deployment], int(slot_name[1:]) - 1
        match words:
            case ["set", "server", _, "addr", address, "port", port]:
                slots[index] = replace(slots[index], endpoint=f"{address}:{port}")
            case ["set", "server", _, "weight", weight]:
                slots[index] = replace(slots[index], weight=int(weight))
            case ["set", "server", _, "state", state]:
                up = slots[index].up or slots[index].admin is SlotAdmin.MAINT
                slots[index] = replace(slots[index], admin=SlotAdmin(state), up=up and state != SlotAdmin.MAINT)
            case ["set", "server", _, "health", "down"]:
                slots[index] = replace(slots[index], up=False)
            case ["set", "maxconn", "server", _, limit]:
                slots[index] = replace(slots[index], maxconn=int(limit))
            case _:
                raise AssertionError(f"HAProxy has no such command: {command}")

    def _servers(self, running: _Running) -> dict[str, ServerTraffic]:
        servers = {
            slot.endpoint: _traffic(_status(slot), slot.in_flight)
            for slots in running.slots.values()
            for slot in slots
            if slot.admin is not SlotAdmin.MAINT
        }
        for endpoint, in_flight in self._lingering.items():
            known = servers.get(endpoint)
            if in_flight:
                both = in_flight + (known.in_flight if known else 0)
                servers[endpoint] = _traffic(known.state if known else "DRAIN", both)
        return servers

    def _require_running(self) -> _Running:
        assert self._running is not None, "the gateway does not run"
        return self._running

    def _require_reachable(self) -> None:
        if self.unreachable:
            raise RetryableError("the gateway does not answer")


def _status(slot: SlotSeen) -> str:
    """HAProxy's word."""
    if slot.admin is SlotAdmin.DRAIN:
        return "DRAIN"
    return "UP" if slot.up else "DOWN"


def _traffic(state: str, in_flight: int) -> ServerTraffic:
    return ServerTraffic(state=state, in_flight=in_flight, queued=0, requests_total=0, failures_total=0)
