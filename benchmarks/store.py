"""What one transaction costs on a SQLite file that holds a whole fleet: reads, claims, the writes of a tick."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.fleet import StandingFleet, standing_fleet
from benchmarks.measuring import exponent, measure_apart, median_us
from benchmarks.report import Cell, Grid, Report
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId

SUMMARY: Final = "transactions on a SQLite file that holds a fleet: reads, claims, writes"
_NODES: Final = (125, 250, 500, 1000, 2000)
_NODES_QUICK: Final = (10, 20)
_TIMES: Final = 30
_TIMES_QUICK: Final = 2
_NAME: Final = DeploymentName("model-0000")
_CLAIMED_FOR: Final = timedelta(seconds=30)


def run(*, quick: bool) -> Report:
    sizes, times = (_NODES_QUICK, _TIMES_QUICK) if quick else (_NODES, _TIMES)
    results = [measure_apart("store", nodes=nodes, times=times) for nodes in sizes]
    rows: list[list[Cell]] = []
    for work in results[0]["us"]:
        us = [result["us"][work] for result in results]
        rows.append([work, *us, f"{exponent(sizes, us):.2f}"])
    heads = ["nodes", *(f"{result['nodes']:,}" for result in results), "grows^"]
    claim_us = results[-1]["us"]["a claim"]
    return Report(
        name="store",
        grids=[Grid(title="One transaction (us of one core, medians)", heads=heads, rows=rows)],
        verdict=f"no aim, but only reading all may grow with the fleet; a claim in the largest takes {claim_us:.0f} us",
        results={"results": results},
    )


def measure(nodes: int, times: int) -> dict[str, Any]:
    """One size; called in a process of its own."""
    return asyncio.run(_measure(nodes, times))


async def _measure(nodes: int, times: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with standing_fleet(nodes, Path(folder)) as fleet:
            us = {name: await _us(work, times) for name, work in _works(fleet).items()}
    return {"nodes": nodes, "us": us}


async def _us(work: Callable[[], Awaitable[None]], times: int) -> float:
    spent: list[float] = []
    await work()
    for _ in range(times):
        began = time.process_time()
        await work()
        spent.append(time.process_time() - began)
    return round(median_us(spent), 1)


def _works(fleet: StandingFleet) -> dict[str, Callable[[], Awaitable[None]]]:
    store, clock = fleet.store, fleet.clock

    async def nothing() -> None:
        async with store.transaction():
            pass

    async def everything() -> None:
        async with store.transaction() as tx:
            await tx.nodes()
            await tx.deployments()
            await tx.replicas()

    async def one() -> None:
        async with store.transaction() as tx:
            await tx.deployment(_NAME)
            await tx.replicas(_NAME)

    async def claim() -> None:
        now = clock.now()
        async with store.transaction() as tx:
            await tx.claim(
                f"replicas/{_NAME}",
                token=ClaimToken("benchmark"),
                holder=InstanceId("benchmark"),
                now=now,
                expires_at=now + _CLAIMED_FOR,
            )

    async def phase() -> None:
        async with store.transaction() as tx:
            row = (await tx.replicas(_NAME))[0]
            await tx.put_replica(replace(row, phase_since=row.phase_since + timedelta(seconds=1)))

    async def policy() -> None:
        async with store.transaction() as tx:
            text = await tx.policy_state(_NAME)
            await tx.put_policy_state(_NAME, text or "{}")

    return {
        "nothing": nothing,
        "all nodes, deployments, replicas": everything,
        "one deployment, 20 replicas": one,
        "a claim": claim,
        "a replica: read, write": phase,
        "a policy state: read, write": policy,
    }
