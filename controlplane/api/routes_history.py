"""What happened and why: events (also as a stream) and decisions (also decided again)."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from controlplane.api.assemble import decision_detail, decision_out, event_out
from controlplane.api.context import ApiContext, Context
from controlplane.api.wire import REPLAYED_MAX, DecisionDetail, DecisionOut, EventOut, ReplayOut
from controlplane.kernel.errors import InvalidError, NotFoundError, Problem
from controlplane.kernel.ids import DeploymentName

router = APIRouter(tags=["history"])

_POLL_S: Final = 0.5
"""How often an open event stream looks for more: half a tick of the fastest loop."""
_KEEP_ALIVE_POLLS: Final = 30
"""A comment line after this many empty looks (15 s), below the idle limit of common proxies (30-60 s)."""
_BATCH: Final = 200
_A_TIME: Final = "2026-01-31T12:00:00Z is such a time"


@router.get("/events")
async def list_events(
    context: Context,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    kind: str | None = None,
    deployment: str | None = None,
    *,
    newest_first: bool = False,
) -> list[EventOut]:
    """What happened; `/api/v1/events/stream` sends events as they happen."""
    async with context.store.transaction() as tx:
        events = await tx.events(after=after, limit=limit, kind=kind, deployment=deployment, newest_first=newest_first)
    return [event_out(event) for event in events]


@router.get("/events/stream", response_class=StreamingResponse)
async def stream_events(
    context: Context,
    request: Request,
    after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID")] = None,
) -> StreamingResponse:
    """Server-sent events; resumes after `Last-Event-ID` or `after`, else starts with what happens from now on."""
    start = last_event_id if last_event_id is not None else after
    if start is None:
        async with context.store.transaction() as tx:
            newest = await tx.events(limit=1, newest_first=True)
        start = newest[0].sequence if newest else 0
    return StreamingResponse(
        _event_stream(context, request, start),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/decisions")
async def list_decisions(
    context: Context,
    deployment: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    after: Annotated[int, Query(ge=0)] = 0,
    until: Annotated[datetime | None, Query(description="Only those of then or before; a time with a zone.")] = None,
) -> list[DecisionOut]:
    """Newest first."""
    if until is not None and until.tzinfo is None:
        raise InvalidError([Problem(field="until", found=str(until), expected="a time with a zone", hint=_A_TIME)])
    name = DeploymentName(deployment) if deployment is not None else None
    async with context.store.transaction() as tx:
        if name is not None:
            await tx.deployment(name)
        records = await tx.decisions(name, after=after, limit=limit, until=until)
    return [decision_out(record) for record in records]


@router.get("/decisions/replay")
async def replay_decisions(
    context: Context, deployment: str | None = None, limit: Annotated[int, Query(ge=1, le=REPLAYED_MAX)] = REPLAYED_MAX
) -> ReplayOut:
    """Decide the recorded decisions again from what was recorded and compare byte for byte."""
    answer = await context.replay(deployment, limit)
    return ReplayOut(
        replayed=answer.replayed, same=answer.replayed - len(answer.differing), differing=list(answer.differing)
    )


@router.get("/decisions/{sequence}")
async def get_decision(context: Context, sequence: int) -> DecisionDetail:
    """One decision with the observation, parameters and state that it was made from."""
    async with context.store.transaction() as tx:
        records = await tx.decisions(after=sequence - 1, limit=1, newest_first=False)
    if not records or records[0].sequence != sequence:
        raise NotFoundError(f"no decision has the number {sequence}; `quarterdeck decisions` lists them")
    return decision_detail(records[0])


async def _event_stream(context: ApiContext, request: Request, after: int) -> AsyncIterator[bytes]:
    quiet = 0
    yield b": connected\n\n"
    while not await request.is_disconnected():
        async with context.store.transaction() as tx:
            events = await tx.events(after=after, limit=_BATCH)
        for event in events:
            after = event.sequence
            body = event_out(event).model_dump_json()
            yield f"id: {event.sequence}\nevent: {event.event.kind}\ndata: {body}\n\n".encode()
        quiet = 0 if events else quiet + 1
        if quiet >= _KEEP_ALIVE_POLLS:
            quiet = 0
            yield b": still here\n\n"
        if len(events) < _BATCH:
            await asyncio.sleep(_POLL_S)
