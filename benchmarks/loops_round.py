"""The loops themselves, each of their resources once a round, in transactions of their own: the product's second."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from benchmarks.fleet import StandingFleet
from benchmarks.measuring import Stopwatch
from controlplane.autoscaler.reconciler import AutoscalerReconciler
from controlplane.domain.site import GatewaySpec
from controlplane.domain.store import Claim
from controlplane.fleet.reconciler import FleetReconciler
from controlplane.gateway.reconciler import GatewayReconciler
from controlplane.kernel.ids import ClaimToken, InstanceId
from controlplane.replicas.reconciler import ReplicaReconciler
from controlplane.runtime.reconciler import Reconciler
from controlplane.testing.world import NoHints

_CLAIMED_FOR: Final = timedelta(days=1)
"""Longer than the benchmark's own time goes on."""


async def loops_rounds(fleet: StandingFleet, rounds: int) -> Stopwatch:
    loops = _loops(fleet)
    claims = await _claims(fleet, loops)
    first, watch = Stopwatch(), Stopwatch()
    # The first two decode every row, fill caches and start what the first change asks for.
    for number in range(rounds + 2):
        await fleet.next_round(number)
        await _loops_round(loops, claims, first if number < 2 else watch)
    return watch


def _loops(fleet: StandingFleet) -> Sequence[Reconciler]:
    store, clock, world = fleet.store, fleet.clock, fleet.world

    async def gateway_spec() -> GatewaySpec:
        return GatewaySpec()

    return (
        FleetReconciler(store=store, telemetry=world, clock=clock),
        AutoscalerReconciler(store=store, telemetry=world, clock=clock, hints=NoHints()),
        ReplicaReconciler(
            store=store,
            launcher=world,
            engines=world,
            traffic=world.traffic,
            telemetry=world,
            clock=clock,
            hints=NoHints(),
        ),
        GatewayReconciler(store, world, clock, gateway_spec),
    )


async def _claims(fleet: StandingFleet, loops: Sequence[Reconciler]) -> dict[str, Claim]:
    """Held for the whole benchmark: taking and keeping them is the drivers' work, see the benchmark `store`."""
    now = fleet.clock.now()
    held: dict[str, Claim] = {}
    for loop in loops:
        for resource in await loop.resources():
            name = f"{loop.name}/{resource}"
            async with fleet.store.transaction() as tx:
                claim = await tx.claim(
                    name,
                    token=ClaimToken("benchmark"),
                    holder=InstanceId("benchmark"),
                    now=now,
                    expires_at=now + _CLAIMED_FOR,
                )
            assert claim is not None, "nobody else works here"
            held[name] = claim
    return held


async def _loops_round(loops: Sequence[Reconciler], claims: dict[str, Claim], watch: Stopwatch) -> None:
    with watch.round():
        for loop in loops:
            with watch.stage(loop.name):
                for resource in await loop.resources():
                    await loop.tick(resource, claims[f"{loop.name}/{resource}"])
