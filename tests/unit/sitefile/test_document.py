"""A document goes into a store as a whole, or not at all."""

from collections.abc import Sequence

import pytest

from controlplane.adapters.sitefile.document import DocumentChange, apply_document
from controlplane.adapters.sitefile.references import Known
from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec
from controlplane.domain.store import Store
from controlplane.kernel.errors import InvalidError
from controlplane.testing.builders import make_plan
from controlplane.testing.effects import FakeClock
from controlplane.testing.memory_store import MemoryStore

TEXT = """\
site: {name: lab}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: sim, kind: simulated}]
deployments: [{name: chat, model: m, replicas: {min: 1, max: 2}}]
"""
KNOWN = Known(models=frozenset({"m"}), gpus=frozenset({"b200"}))


def planner(spec: DeploymentSpec, _: EngineSpec, __: Sequence[NodeSpec]) -> ServingPlan:
    return make_plan(spec.name)


async def applied(store: Store, text: str, *, dry_run: bool = False) -> DocumentChange:
    return await apply_document(
        store, text, file="site.yaml", known=KNOWN, planner=planner, clock=FakeClock(), dry_run=dry_run
    )


async def test_apply_then_nothing_then_a_section() -> None:
    store = MemoryStore()
    assert len(list((await applied(store, TEXT)).change.sentences())) == 2
    assert (await applied(store, TEXT)).change.is_empty
    moved = TEXT + "gateway: {port: 8001}\n"
    assert list((await applied(store, moved, dry_run=True)).change.sentences()) == ["gateway.port: 8000 -> 8001"]
    async with store.transaction() as tx:
        site = await tx.site()
    assert site is not None
    assert site.document == TEXT, "a dry run writes nothing"
    assert list((await applied(store, moved)).change.sentences()) == ["gateway.port: 8000 -> 8001"]


async def test_a_broken_document_changes_nothing() -> None:
    store = MemoryStore()
    await applied(store, TEXT)
    with pytest.raises(InvalidError, match=r"site\.yaml:4:35"):
        await applied(store, TEXT.replace("model: m", "model: n"))
    async with store.transaction() as tx:
        site = await tx.site()
    assert site is not None
    assert site.document == TEXT


async def test_a_document_that_this_version_cannot_read_is_replaced_all_the_same() -> None:
    store, clock = MemoryStore(), FakeClock()
    async with store.transaction() as tx:
        await tx.put_site(name="lab", document="an: older schema", digest="x", now=clock.now())
    assert not (await applied(store, TEXT)).change.is_empty
