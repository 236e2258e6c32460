"""Deployments: what is wanted, and what people ask for over it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from controlplane.api.assemble import deployment_detail, deployment_out, is_held_up, last_decisions
from controlplane.api.context import ApiContext, Context
from controlplane.api.idempotency import IdempotencyKey, once
from controlplane.api.wire import NO_INTENT, DeploymentDetail, DeploymentOut, IntentIn, IntentOut, ScaleIn, ShadowIn
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, Intent
from controlplane.domain.event import Event, EventKind, NewEvent
from controlplane.domain.node import Node
from controlplane.domain.reason import Reason
from controlplane.domain.refusals import generation_conflict
from controlplane.domain.replica import Replica
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import ConflictError, InvalidError, Problem
from controlplane.kernel.ids import DeploymentName, NodeName

router = APIRouter(prefix="/deployments", tags=["deployments"])

_TELLING_KINDS: Final = (EventKind.DEPLOYMENT, EventKind.REPLICA)
"""Events that say what a deployment waits for; decisions only say how many replicas it should have."""

_BY_PEOPLE: Final = frozenset(
    {Reason.SCALED_BY_PERSON, Reason.PAUSED_BY_PERSON, Reason.RESUMED_BY_PERSON, Reason.SHADOWED_BY_PERSON}
)
"""What a person asked for does not say what it waits for, and a loop that goes on waiting does not say so twice."""
_EVENTS_LOOKED_AT: Final = 8
"""People change one deployment a few times in a row, not more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a person asks for, and how it is told."""

    intent: Intent
    reason: Reason
    sentence: str
    already: str
    """Told instead where it is so already."""


@router.get("")
async def list_deployments(context: Context) -> list[DeploymentOut]:
    async with context.store.transaction() as tx:
        deployments, replicas = await tx.deployments(), await tx.replicas()
        nodes = {node.name: node for node in await tx.nodes()}
        last: dict[str, DecisionRecord] = {}
        held_up: dict[str, Event | None] = {}
        for deployment in deployments:
            last |= last_decisions(await tx.decisions(deployment.name, limit=1))
            held_up[deployment.name] = await _held_up(tx, deployment, replicas, nodes)
    snapshot = context.telemetry.snapshot()
    return [deployment_out(row, replicas, snapshot, last, context.slo(row), held_up[row.name]) for row in deployments]


@router.get("/{name}")
async def get_deployment(context: Context, name: str) -> DeploymentDetail:
    key = DeploymentName(name)
    async with context.store.transaction() as tx:
        deployment = await tx.deployment(key)
        replicas = await tx.replicas(key)
        last = last_decisions(await tx.decisions(key, limit=1))
        held_up = await _held_up(tx, deployment, replicas, {node.name: node for node in await tx.nodes()})
    out = deployment_out(deployment, replicas, context.telemetry.snapshot(), last, context.slo(deployment), held_up)
    return deployment_detail(out, deployment)


async def _held_up(
    tx: Transaction, deployment: Deployment, replicas: Sequence[Replica], nodes: Mapping[NodeName, Node]
) -> Event | None:
    if not is_held_up(deployment, replicas, nodes):
        return None
    newest = [
        event
        for kind in _TELLING_KINDS
        for event in await tx.events(kind=kind, deployment=deployment.name, limit=_EVENTS_LOOKED_AT, newest_first=True)
        if event.event.reason not in _BY_PEOPLE
    ]
    return max(newest, key=lambda event: event.sequence, default=None)


@router.post("/{name}/scale", status_code=202, response_model=IntentOut)
async def scale_deployment(
    context: Context, request: Request, name: str, body: ScaleIn, key: IdempotencyKey = None
) -> JSONResponse:
    """Pin the number of replicas, or with null give it back to the autoscaler."""

    def scaled(deployment: Deployment) -> _Asked:
        if body.replicas is not None:
            _check_bounds(deployment, body.replicas)
        said = "the autoscaler decides again" if body.replicas is None else f"pinned to {body.replicas} replicas"
        return _Asked(
            intent=replace(deployment.intent, replicas_pinned=body.replicas),
            reason=Reason.SCALED_BY_PERSON,
            sentence=f"Deployment {name}: {said}.",
            already=f"Deployment {name}: {said} already.",
        )

    return await _change_intent(context, request, name, body.generation, key, scaled)


@router.post("/{name}/pause", status_code=202, response_model=IntentOut)
async def pause_deployment(
    context: Context, request: Request, name: str, body: IntentIn = NO_INTENT, key: IdempotencyKey = None
) -> JSONResponse:
    """Hold everything as it is: no launch, no drain, no scaling."""

    def paused(deployment: Deployment) -> _Asked:
        return _Asked(
            intent=replace(deployment.intent, paused=True),
            reason=Reason.PAUSED_BY_PERSON,
            sentence=f"Deployment {name} is paused. {body.reason}".strip(),
            already=f"Deployment {name} is paused already.",
        )

    return await _change_intent(context, request, name, body.generation, key, paused)


@router.post("/{name}/resume", status_code=202, response_model=IntentOut)
async def resume_deployment(
    context: Context, request: Request, name: str, body: IntentIn = NO_INTENT, key: IdempotencyKey = None
) -> JSONResponse:
    """Manage a paused deployment again."""

    def resumed(deployment: Deployment) -> _Asked:
        return _Asked(
            intent=replace(deployment.intent, paused=False),
            reason=Reason.RESUMED_BY_PERSON,
            sentence=f"Deployment {name} is managed again. {body.reason}".strip(),
            already=f"Deployment {name} is not paused.",
        )

    return await _change_intent(context, request, name, body.generation, key, resumed)


@router.post("/{name}/shadow", status_code=202, response_model=IntentOut)
async def shadow_deployment(
    context: Context, request: Request, name: str, body: ShadowIn, key: IdempotencyKey = None
) -> JSONResponse:
    """Let the autoscaler decide and show without acting, or act again; with null as the site file says."""

    def shadowed(deployment: Deployment) -> _Asked:
        intent = replace(deployment.intent, shadow=body.shadow)
        said = (
            "is in shadow: decisions are shown, the number stays"
            if replace(deployment, intent=intent).in_shadow
            else "follows its autoscaler"
        )
        return _Asked(
            intent=intent,
            reason=Reason.SHADOWED_BY_PERSON,
            sentence=f"Deployment {name} {said}. {body.reason}".strip(),
            already=f"Deployment {name} {said}, as before.",
        )

    return await _change_intent(context, request, name, body.generation, key, shadowed)


async def _change_intent(
    context: ApiContext,
    request: Request,
    name: str,
    generation: int | None,
    key: str | None,
    decide: Callable[[Deployment], _Asked],
) -> JSONResponse:
    async def change(tx: Transaction) -> IntentOut:
        deployment = await tx.deployment(DeploymentName(name))
        if deployment.removed:
            raise ConflictError(f"deployment {name!r} is no longer in the site file; it only drains")
        asked = decide(deployment)
        if asked.intent == deployment.intent:
            if generation not in (None, deployment.generation):
                raise generation_conflict("deployment", name, expected=generation, found=deployment.generation)
            return IntentOut(subject=name, generation=deployment.generation, sentence=asked.already)
        after = await tx.set_intent(deployment.name, asked.intent, expected_generation=generation)
        await tx.append_events(
            [
                NewEvent(
                    at=context.clock.now(),
                    kind=EventKind.DEPLOYMENT,
                    subject=name,
                    deployment=name,
                    reason=asked.reason,
                    sentence=asked.sentence,
                )
            ]
        )
        return IntentOut(subject=name, generation=after.generation, sentence=asked.sentence)

    response = await once(context, request, key, change)
    context.hints.hint("replicas")
    context.hints.hint("autoscaler")
    return response


def _check_bounds(deployment: Deployment, replicas: int) -> None:
    low, high = deployment.spec.replicas_min, deployment.spec.replicas_max
    if not low <= replicas <= high:
        raise InvalidError(
            [
                Problem(
                    field="replicas",
                    found=str(replicas),
                    expected=f"{low} to {high}",
                    hint=f"these are replicas.min and replicas.max of {deployment.name} in the site file; "
                    "change them there if they are wrong",
                )
            ]
        )
