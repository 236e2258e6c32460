"""Deployments: what is wanted, and what people ask for over it."""

from collections.abc import Callable
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from controlplane.api.assemble import deployment_detail, deployment_out, last_decisions
from controlplane.api.context import ApiContext, Context
from controlplane.api.idempotency import IdempotencyKey, once
from controlplane.api.wire import DeploymentDetail, DeploymentOut, IntentIn, IntentOut, ScaleIn
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, Intent
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import ConflictError, InvalidError, Problem
from controlplane.kernel.ids import DeploymentName

router = APIRouter(prefix="/deployments", tags=["deployments"])


@router.get("")
async def list_deployments(context: Context) -> list[DeploymentOut]:
    async with context.store.transaction() as tx:
        deployments, replicas = await tx.deployments(), await tx.replicas()
        last: dict[str, DecisionRecord] = {}
        for deployment in deployments:
            last |= last_decisions(await tx.decisions(deployment.name, limit=1))
    snapshot = context.telemetry.snapshot()
    return [deployment_out(deployment, replicas, snapshot, last, context.slo(deployment)) for deployment in deployments]


@router.get("/{name}")
async def get_deployment(context: Context, name: str) -> DeploymentDetail:
    key = DeploymentName(name)
    async with context.store.transaction() as tx:
        deployment = await tx.deployment(key)
        replicas = await tx.replicas(key)
        last = last_decisions(await tx.decisions(key, limit=1))
    out = deployment_out(deployment, replicas, context.telemetry.snapshot(), last, context.slo(deployment))
    return deployment_detail(out, deployment)


@router.post("/{name}/scale", status_code=202, response_model=IntentOut)
async def scale_deployment(
    context: Context, request: Request, name: str, body: ScaleIn, key: IdempotencyKey = None
) -> JSONResponse:
    """Pin the number of replicas, or with null give it back to the autoscaler."""

    def scaled(deployment: Deployment) -> tuple[Intent, Reason, str]:
        if body.replicas is not None:
            _check_bounds(deployment, body.replicas)
        said = "the autoscaler decides again" if body.replicas is None else f"pinned to {body.replicas} replicas"
        return (
            replace(deployment.intent, replicas_pinned=body.replicas),
            Reason.SCALED_BY_PERSON,
            f"Deployment {name}: {said}.",
        )

    return await _change_intent(context, request, name, body.generation, key, scaled)


@router.post("/{name}/pause", status_code=202, response_model=IntentOut)
async def pause_deployment(
    context: Context, request: Request, name: str, body: IntentIn, key: IdempotencyKey = None
) -> JSONResponse:
    """Hold everything as it is: no launch, no drain, no scaling."""

    def paused(deployment: Deployment) -> tuple[Intent, Reason, str]:
        sentence = f"Deployment {name} is paused. {body.reason}".strip()
        return replace(deployment.intent, paused=True), Reason.PAUSED_BY_PERSON, sentence

    return await _change_intent(context, request, name, body.generation, key, paused)


@router.post("/{name}/resume", status_code=202, response_model=IntentOut)
async def resume_deployment(
    context: Context, request: Request, name: str, body: IntentIn, key: IdempotencyKey = None
) -> JSONResponse:
    def resumed(deployment: Deployment) -> tuple[Intent, Reason, str]:
        sentence = f"Deployment {name} is managed again. {body.reason}".strip()
        return replace(deployment.intent, paused=False), Reason.RESUMED_BY_PERSON, sentence

    return await _change_intent(context, request, name, body.generation, key, resumed)


async def _change_intent(
    context: ApiContext,
    request: Request,
    name: str,
    generation: int | None,
    key: str | None,
    decide: Callable[[Deployment], tuple[Intent, Reason, str]],
) -> JSONResponse:
    async def change(tx: Transaction) -> IntentOut:
        deployment = await tx.deployment(DeploymentName(name))
        if deployment.removed:
            raise ConflictError(f"deployment {name!r} is no longer in the site file; it only drains")
        intent, reason, sentence = decide(deployment)
        after = await tx.set_intent(deployment.name, intent, expected_generation=generation)
        await tx.append_events(
            [
                NewEvent(
                    at=context.clock.now(),
                    kind=EventKind.DEPLOYMENT,
                    subject=name,
                    deployment=name,
                    reason=reason,
                    sentence=sentence,
                )
            ]
        )
        return IntentOut(subject=name, generation=after.generation, sentence=sentence)

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
