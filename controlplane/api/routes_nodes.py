"""Nodes and GPUs: what there is, and keeping replicas away from some of it."""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from controlplane.api.assemble import gpus_out, node_out
from controlplane.api.context import ApiContext, Context
from controlplane.api.drains import without_room
from controlplane.api.idempotency import IdempotencyKey, once
from controlplane.api.wire import NO_INTENT, GpuOut, IntentIn, IntentOut, NodeOut
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.refusals import not_found
from controlplane.domain.replica import Replica
from controlplane.domain.store import Transaction
from controlplane.kernel.ids import NodeName

router = APIRouter(tags=["fleet"])

_INTENTS: Final = {
    NodeState.CORDONED: (Reason.NODE_CORDONED, "cordoned by a person", "takes no new replicas; running ones stay"),
    NodeState.DRAINING: (
        Reason.NODE_DRAINED,
        "drained by a person",
        "takes no new replicas; running ones are replaced elsewhere, then drained",
    ),
    NodeState.UNKNOWN: (
        Reason.NODE_UNCORDONED,
        "uncordoned by a person, not seen since",
        "takes replicas again once it is seen",
    ),
}


@router.get("/nodes")
async def list_nodes(context: Context) -> list[NodeOut]:
    async with context.store.transaction() as tx:
        nodes, replicas = await tx.nodes(), await tx.replicas()
    return [node_out(node, replicas) for node in nodes]


@router.get("/nodes/{name}")
async def get_node(context: Context, name: str) -> NodeOut:
    nodes = {node.name: node for node in await list_nodes(context)}
    if name not in nodes:
        raise not_found("node", name, nodes)
    return nodes[name]


@router.get("/gpus")
async def list_gpus(context: Context) -> list[GpuOut]:
    async with context.store.transaction() as tx:
        nodes, replicas = await tx.nodes(), await tx.replicas()
    return gpus_out(nodes, replicas, context.telemetry.snapshot())


@router.post("/nodes/{name}/cordon", status_code=202, response_model=IntentOut)
async def cordon_node(
    context: Context, request: Request, name: str, body: IntentIn = NO_INTENT, key: IdempotencyKey = None
) -> JSONResponse:
    return await _set_state(context, request, NodeName(name), NodeState.CORDONED, body, key)


@router.post("/nodes/{name}/uncordon", status_code=202, response_model=IntentOut)
async def uncordon_node(
    context: Context, request: Request, name: str, body: IntentIn = NO_INTENT, key: IdempotencyKey = None
) -> JSONResponse:
    return await _set_state(context, request, NodeName(name), NodeState.UNKNOWN, body, key)


@router.post("/nodes/{name}/drain", status_code=202, response_model=IntentOut)
async def drain_node(
    context: Context, request: Request, name: str, body: IntentIn = NO_INTENT, key: IdempotencyKey = None
) -> JSONResponse:
    return await _set_state(context, request, NodeName(name), NodeState.DRAINING, body, key)


async def _set_state(
    context: ApiContext, request: Request, name: NodeName, state: NodeState, body: IntentIn, key: str | None
) -> JSONResponse:
    reason, why, effect = _INTENTS[state]

    async def change(tx: Transaction) -> IntentOut:
        node = await tx.set_node_state(name, state, body.reason or why, expected_generation=body.generation)
        sentence = f"Node {name} {effect}."
        if state is NodeState.DRAINING:
            stranded = without_room(name, await tx.nodes(), await tx.replicas())
            sentence = f"{sentence} {_stranded_sentence(stranded)}".strip()
        await tx.append_events(
            [
                NewEvent(
                    at=context.clock.now(),
                    kind=EventKind.NODE,
                    subject=name,
                    reason=reason,
                    sentence=f"{sentence} {body.reason}".strip(),
                )
            ]
        )
        return IntentOut(subject=name, generation=node.generation, sentence=sentence)

    response = await once(context, request, key, change)
    context.hints.hint("fleet")
    context.hints.hint("replicas")
    return response


def _stranded_sentence(stranded: Sequence[Replica]) -> str:
    if not stranded:
        return ""
    whose = ", ".join(sorted({str(replica.deployment) for replica in stranded}))
    return (
        f"{len(stranded)} of them ({whose}) would find no free GPUs elsewhere now and go on serving here until there "
        "are some: add or uncordon nodes, or scale something down."
    )
