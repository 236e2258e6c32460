"""The whole at a glance, and what was used."""

from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query

from controlplane.api.assemble import freshness, node_out
from controlplane.api.context import ApiContext, Context
from controlplane.api.routes_deployments import list_deployments
from controlplane.api.wire import LoopOut, StatusOut, UsageOut
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.metering.usage import holdings, measure_usage

router = APIRouter(tags=["status"])

_WINDOW_DEFAULT: Final = timedelta(hours=1)
_EVENTS_READ_MAX: Final = 100_000
"""Replicas that ended, most recent first; a site that ends more in one window asks for a shorter one."""
_DECISIONS_READ_MAX: Final = 100_000


@router.get("/status")
async def get_status(context: Context) -> StatusOut:
    """Everything that `quarterdeck status` and `watch` show, in one call."""
    return await status_of(context)


async def status_of(context: ApiContext) -> StatusOut:
    """The same for a caller inside the process."""
    async with context.store.transaction() as tx:
        site, nodes, replicas = await tx.site(), await tx.nodes(), await tx.replicas()
    snapshot = context.telemetry.snapshot()
    rows = [node_out(node, replicas) for node in nodes]
    return StatusOut(
        site=site.name if site else None,
        version=context.version,
        now=context.clock.now(),
        gateway_url=context.gateway_url,
        gateway=freshness(snapshot.gateway),
        links=dict(context.links),
        nodes=rows,
        deployments=await list_deployments(context),
        gpus_total=sum(row.gpus for row in rows),
        gpus_held=sum(row.gpus_held for row in rows),
        loops=list_loops(context),
    )


@router.get("/loops")
def list_loops(context: Context) -> list[LoopOut]:
    """Every loop's last tick."""
    return [
        LoopOut(
            loop=loop.loop,
            resource=loop.resource,
            outcome=loop.outcome,
            seconds_since_last_tick=loop.seconds_since_last_tick,
            failures_in_a_row=loop.failures_in_a_row,
            sentence=loop.sentence,
        )
        for loop in context.loops()
    ]


@router.get("/usage")
async def get_usage(
    context: Context,
    since: Annotated[datetime | None, Query(description="Default: an hour before `until`.")] = None,
    until: Annotated[datetime | None, Query(description="Default: now.")] = None,
) -> UsageOut:
    """GPU-hours held in a window, beside a static fleet of the same peak."""
    now = context.clock.now()
    end = min(until or now, now)
    start = since or end - _WINDOW_DEFAULT
    if start.tzinfo is None or end.tzinfo is None or start >= end:
        raise InvalidError(
            [
                Problem(
                    field="since",
                    found=str(start),
                    expected=f"a time with a zone, before {end}",
                    hint="2026-01-31T12:00:00Z is such a time",
                )
            ]
        )
    async with context.store.transaction() as tx:
        replicas = await tx.replicas()
        ended = await tx.events(kind="replica", limit=_EVENTS_READ_MAX, newest_first=True)
        decisions = await tx.decisions(limit=_DECISIONS_READ_MAX)
    spans = holdings(replicas, ended, now)
    if since is None:
        # A site that is younger than the default window is not compared with a fleet that stood before it.
        start = max(start, min((span.start for span in spans), default=start))
    usage = measure_usage(spans, start, end)
    return UsageOut(
        since=start,
        until=end,
        gpu_hours=usage.gpu_hours,
        gpu_hours_static_peak=usage.gpu_hours_static_peak,
        gpus_peak=usage.gpus_peak,
        scale_events=sum(
            1 for d in decisions if d.wanted != d.wanted_before and not d.in_shadow and start <= d.at <= end
        ),
        by_deployment=dict(usage.by_deployment),
    )
