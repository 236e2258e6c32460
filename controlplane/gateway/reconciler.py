"""The loop that keeps the gateway as deployments and replicas are. Writes no row but events."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.site import GatewaySpec
from controlplane.domain.store import Claim, Store
from controlplane.gateway.model import RouteTable, ServerMode
from controlplane.gateway.ports import Applied, GatewayDriver
from controlplane.gateway.table import build_route_table
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.runtime.reconciler import TickReport

NAME: Final = "gateway"
SITE: Final = "site"

PENDING_AGAIN: Final = timedelta(milliseconds=250)
"""A drain waits for a replacement to pass HAProxy's check, which comes twice a second."""

type SpecSource = Callable[[], Awaitable[GatewaySpec | None]]
"""The gateway's section of the site as applied; None: no site yet."""


class GatewayReconciler:
    """Implements runtime.reconciler.Reconciler."""

    def __init__(self, store: Store, driver: GatewayDriver, clock: Clock, spec_source: SpecSource) -> None:
        self._store = store
        self._driver = driver
        self._clock = clock
        self._spec_source = spec_source
        self._down = False
        """Whether the last tick failed: the event is written when it begins, not at each tick."""

    @property
    def name(self) -> str:
        return NAME

    async def resources(self) -> Sequence[str]:
        return [SITE]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        assert resource == SITE, f"one gateway for the whole site, asked for {resource}"
        spec = await self._spec_source()
        if spec is None:
            return TickReport(sentence="no site is applied yet")
        async with self._store.transaction() as tx:
            deployments = await tx.deployments()
            replicas = await tx.replicas()
            addresses = {node.name: node.spec.address for node in await tx.nodes()}
        table = build_route_table(deployments, replicas, spec, addresses)
        try:
            applied = await self._driver.converge(table)
        except QuarterdeckError as error:
            await self._tell_once_down(claim, error)
            raise
        await self._tell_changes(claim, table, applied)
        return TickReport(
            sentence=sentence(table, applied),
            changed=applied.changed,
            again_after=PENDING_AGAIN if applied.pending else None,
        )

    async def _tell_once_down(self, claim: Claim, error: QuarterdeckError) -> None:
        if self._down:
            return
        self._down = True
        await self._append(claim, Reason.GATEWAY_DOWN, f"the gateway could not be brought to its routes: {error}")

    async def _tell_changes(self, claim: Claim, table: RouteTable, applied: Applied) -> None:
        self._down = False
        if applied.started:
            await self._append(claim, Reason.GATEWAY_STARTED, sentence(table, applied))
        elif applied.reloaded:
            await self._append(claim, Reason.GATEWAY_RELOADED, sentence(table, applied))

    async def _append(self, claim: Claim, reason: Reason, text: str) -> None:
        event = NewEvent(at=self._clock.now(), kind=EventKind.GATEWAY, subject=SITE, reason=reason, sentence=text)
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await tx.append_events([event])


def sentence(table: RouteTable, applied: Applied) -> str:
    """What was done, then what is so now: `2 changes; serves 3 deployments on 127.0.0.1:8000 with 5 replicas`."""
    ready = sum(server.mode is ServerMode.READY for route in table.routes for server in route.servers)
    draining = sum(len(route.servers) for route in table.routes) - ready
    drains = f", {draining} draining" if draining else ""
    now = (
        f"serves {_count(len(table.routes), 'deployment')} on {table.spec.host}:{table.spec.port}"
        f" with {_count(ready, 'replica')}{drains}"
    )
    if applied.started:
        return f"started; {now}"
    if applied.reloaded:
        return f"reloaded without a dropped connection; {now}"
    if applied.actions:
        return f"{_count(len(applied.actions), 'change')}; {now}"
    return f"nothing to do; {now}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
