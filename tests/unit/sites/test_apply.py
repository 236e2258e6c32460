"""Applying a site: what changes, what is said about it, and that a second time changes nothing."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.deployment import DeploymentSpec, EngineKind, ServingPlan
from controlplane.domain.event import NewEvent
from controlplane.domain.node import LEFT_SITE, NEVER_SEEN, NodeSpec, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.site import EngineSpec, GatewaySpec, Site
from controlplane.domain.store import Store
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import DeploymentName, NodeName, RevisionId
from controlplane.sites.apply import apply_site, digest_of, preview_site
from controlplane.sites.model import Plans, SiteChange
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import FakeClock
from controlplane.testing.memory_store import MemoryStore

CHAT, EMBED = make_spec("chat"), make_spec("embed", replicas_min=0)


def make_site(nodes: Sequence[NodeSpec] = (), specs: Sequence[DeploymentSpec] = ()) -> Site:
    engine = EngineSpec(name="default", kind=EngineKind.SIMULATED)
    return Site(name="lab", nodes=tuple(nodes), engines=(engine,), deployments=tuple(specs))


def plans_of(site: Site, revision: str = "0a1b2c3d") -> Plans:
    return {spec.name: make_plan(spec.name, revision=RevisionId(revision)) for spec in site.deployments}


async def applied(
    store: Store, site: Site, document: str, clock: FakeClock | None = None, plans: Plans | None = None
) -> SiteChange:
    return await apply_site(store, site, document, plans_of(site) if plans is None else plans, clock or FakeClock())


async def events(store: Store) -> list[NewEvent]:
    async with store.transaction() as tx:
        return [event.event for event in await tx.events()]


BOTH = make_site([make_node_spec("n1"), make_node_spec("n2")], [CHAT, EMBED])


async def test_a_first_site_creates_everything() -> None:
    store, clock = MemoryStore(), FakeClock()
    change = await applied(store, BOTH, "first", clock)
    assert list(change.sentences()) == [
        "node n1 is added: 8 x b200",
        "node n2 is added: 8 x b200",
        "deployment chat is added: llama-3-8b, 1 to 4 replicas of 1 GPU",
        "deployment embed is added: llama-3-8b, 0 to 4 replicas of 1 GPU",
    ]
    async with store.transaction() as tx:
        assert [node.name for node in await tx.nodes()] == ["n1", "n2"]
        assert [(row.name, row.replicas_wanted) for row in await tx.deployments()] == [("chat", 1), ("embed", 0)]
        site = await tx.site()
    assert site is not None
    assert (site.document, site.digest, site.applied_at) == ("first", digest_of("first"), clock.now())
    said = await events(store)
    assert [(event.kind, event.subject) for event in said] == [
        ("node", "n1"),
        ("node", "n2"),
        ("deployment", "chat"),
        ("deployment", "embed"),
        ("site", "lab"),
    ]
    assert {event.reason for event in said} == {Reason.SITE_APPLIED}
    assert said[2].deployment == "chat"


async def test_applying_the_same_again_changes_nothing() -> None:
    store, clock = MemoryStore(), FakeClock()
    await applied(store, BOTH, "first", clock)
    before = await events(store)
    async with store.transaction() as tx:
        rows = (await tx.site(), await tx.nodes(), await tx.deployments())
    clock.jump(timedelta(hours=1))
    change = await applied(store, BOTH, "first", clock)
    assert change.is_empty
    assert not change.document_changed
    async with store.transaction() as tx:
        assert (await tx.site(), await tx.nodes(), await tx.deployments()) == rows
    assert await events(store) == before


async def test_a_comment_changes_the_document_alone() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    async with store.transaction() as tx:
        rows = (await tx.nodes(), await tx.deployments())
    change = await applied(store, BOTH, "first # with a comment")
    assert change.is_empty
    assert change.document_changed
    async with store.transaction() as tx:
        assert (await tx.nodes(), await tx.deployments()) == rows
        site = await tx.site()
    assert site is not None
    assert (site.document, site.generation) == ("first # with a comment", 2)
    assert (await events(store))[-1].sentence == "site lab is applied: only its text changed"


async def test_a_preview_changes_nothing_and_says_the_same() -> None:
    store = MemoryStore()
    preview = await preview_site(store, BOTH, "first", plans_of(BOTH))
    async with store.transaction() as tx:
        assert await tx.site() is None
        assert await tx.nodes() == []
    assert preview == await applied(store, BOTH, "first")


async def test_a_changed_bound_needs_no_restart_and_a_new_revision_does() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    wider = make_site(BOTH.nodes, [replace(CHAT, replicas_max=6), EMBED])
    change = await applied(store, wider, "wider")
    assert list(change.sentences()) == ["deployment chat changes replicas_max: 4 -> 6"]
    assert not change.deployments_changed[0].restarts

    longer = make_site(BOTH.nodes, [replace(CHAT, replicas_max=6, context_tokens=8192), EMBED])
    plans = {**plans_of(longer), CHAT.name: make_plan("chat", revision=RevisionId("ffffffff"))}
    change = await applied(store, longer, "longer", plans=plans)
    assert list(change.sentences()) == [
        "deployment chat changes context_tokens: not set -> 8192",
        "deployment chat has a new revision: every replica is replaced, new ones ready before old ones leave",
    ]
    async with store.transaction() as tx:
        chat = await tx.deployment(CHAT.name)
    assert (chat.generation, chat.plan.revision) == (3, "ffffffff")


async def test_what_a_person_pinned_and_the_autoscaler_wants_survives_an_apply() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    async with store.transaction() as tx:
        chat = await tx.deployment(CHAT.name)
        await tx.set_intent(CHAT.name, replace(chat.intent, replicas_pinned=3))
        await tx.set_replicas_wanted(CHAT.name, 2)
    await applied(store, make_site(BOTH.nodes, [replace(CHAT, replicas_max=6), EMBED]), "wider")
    async with store.transaction() as tx:
        chat = await tx.deployment(CHAT.name)
    assert (chat.intent.replicas_pinned, chat.replicas_wanted) == (3, 2)


async def test_a_removed_deployment_is_marked_once_and_may_return() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    without = make_site(BOTH.nodes, [EMBED])
    change = await applied(store, without, "without")
    assert change.deployments_removed == (CHAT.name,)
    assert [event.reason for event in await events(store)][-2:] == [Reason.REMOVED_FROM_SITE, Reason.SITE_APPLIED]
    assert (await applied(store, without, "without")).is_empty
    async with store.transaction() as tx:
        assert (await tx.deployment(CHAT.name)).removed
    change = await applied(store, BOTH, "first")
    assert list(change.sentences()) == ["deployment chat returns to the site"]
    async with store.transaction() as tx:
        assert not (await tx.deployment(CHAT.name)).removed


async def test_an_empty_node_goes_at_once_and_an_occupied_one_is_drained_first() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    async with store.transaction() as tx:
        await tx.put_replica(make_replica("chat", node="n2"))
    none = make_site([], [CHAT, EMBED])
    change = await applied(store, none, "no nodes")
    assert list(change.sentences()) == [
        "node n1 is removed: nothing runs on it",
        "node n2 is removed: drained first, since replicas run on it",
    ]
    async with store.transaction() as tx:
        (node,) = await tx.nodes()
    assert (node.name, node.state, node.state_reason) == ("n2", NodeState.DRAINING, LEFT_SITE)
    assert (await applied(store, none, "no nodes")).is_empty


async def test_a_node_that_returns_before_it_is_gone_begins_anew() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    async with store.transaction() as tx:
        await tx.put_replica(make_replica("chat", node="n2"))
    await applied(store, make_site([make_node_spec("n1")], [CHAT, EMBED]), "without n2")
    change = await applied(store, BOTH, "first")
    assert list(change.sentences()) == ["node n2 returns to the site"]
    async with store.transaction() as tx:
        node = next(node for node in await tx.nodes() if node.name == "n2")
    assert (node.state, node.state_reason) == (NodeState.UNKNOWN, NEVER_SEEN)


async def test_what_a_person_drained_stays_drained() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    async with store.transaction() as tx:
        await tx.set_node_state(NodeName("n1"), NodeState.DRAINING, "fans are replaced")
    change = await applied(store, BOTH, "first # again")
    assert change.is_empty
    async with store.transaction() as tx:
        node = next(node for node in await tx.nodes() if node.name == "n1")
    assert (node.state, node.state_reason) == (NodeState.DRAINING, "fans are replaced")


@pytest.mark.parametrize(
    "changed",
    [
        make_node_spec("n1", gpus=4),
        make_node_spec("n1", gpu_model="h100"),
        replace(make_node_spec("n1"), address="10.0.0.1"),
    ],
)
async def test_hardware_does_not_change_under_running_replicas(changed: NodeSpec) -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    async with store.transaction() as tx:
        await tx.put_replica(make_replica("chat", node="n1", gpus=(6,)))
    other = make_site([changed, make_node_spec("n2")], [EMBED])
    with pytest.raises(ConflictError, match=r"n1 \(qd-chat-0a1b2c3d-0\)"):
        await applied(store, other, "other")
    with pytest.raises(ConflictError):
        await preview_site(store, other, "other", plans_of(other))
    async with store.transaction() as tx:
        site = await tx.site()
        assert not (await tx.deployment(CHAT.name)).removed, "refused as a whole"
    assert site is not None
    assert site.document == "first"


async def test_a_node_may_grow_under_running_replicas() -> None:
    store = MemoryStore()
    await applied(store, make_site([make_node_spec("n1", gpus=4)], [CHAT]), "small")
    async with store.transaction() as tx:
        await tx.put_replica(make_replica("chat", node="n1", gpus=(3,)))
    change = await applied(store, make_site([make_node_spec("n1", gpus=8)], [CHAT]), "large")
    assert [field.field for field in change.nodes_changed[0].fields] == ["gpus", "numa_of_gpu"]


async def test_sections_are_compared_where_the_site_before_is_known() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    moved = replace(BOTH, gateway=GatewaySpec(port=8001, queue_timeout=timedelta(seconds=5)))
    change = await apply_site(store, moved, "moved", plans_of(moved), FakeClock(), previous=BOTH)
    assert list(change.sentences()) == ["gateway.port: 8000 -> 8001", "gateway.queue_timeout: 1m00s -> 5.0s"]
    assert (await events(store))[-1].sentence.endswith(
        "gateway.port: 8000 -> 8001; gateway.queue_timeout: 1m00s -> 5.0s"
    )


async def test_new_figures_from_the_catalog_change_the_plan_without_a_restart() -> None:
    store = MemoryStore()
    await applied(store, BOTH, "first")
    plan: ServingPlan = make_plan("chat")
    plans = {
        **plans_of(BOTH),
        DeploymentName("chat"): replace(plan, memory_bytes_per_gpu=plan.memory_bytes_per_gpu - 1),
    }
    change = await applied(store, BOTH, "first", plans=plans)
    assert not change.is_empty
    assert not change.deployments_changed[0].restarts
    async with store.transaction() as tx:
        assert (await tx.deployment(CHAT.name)).plan.memory_bytes_per_gpu == plan.memory_bytes_per_gpu - 1
