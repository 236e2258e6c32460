"""Random work on the fake and on a real store side by side: the same answers, the same refusals, the same rows."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.adapters.db.store import SqlStore, open_store
from controlplane.adapters.db.tables import METADATA
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Intent
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.store import IdempotentAnswer, Store, TickRecord, Transaction
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId, NodeName
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import START
from controlplane.testing.memory_store import MemoryStore

type Operation = Callable[[Transaction], Awaitable[Any]]

DEPLOYMENTS = st.sampled_from([DeploymentName("chat"), DeploymentName("embed")])
NODES = st.sampled_from([NodeName("n-1"), NodeName("n1")])
GENERATIONS = st.none() | st.integers(1, 3)
MOMENTS = st.integers(0, 4).map(lambda seconds: START + timedelta(seconds=seconds, microseconds=seconds))
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
RESOURCES = st.sampled_from(["replicas/chat", "gateway/site"])
HOLDERS = st.sampled_from([InstanceId("one"), InstanceId("two")])
TOKENS = st.sampled_from([ClaimToken("t1"), ClaimToken("t2"), ClaimToken("t3")])


@dataclass(frozen=True)
class Call:
    """One call on a transaction, printable when hypothesis shows a failure."""

    method: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, tx: Transaction) -> Awaitable[Any]:
        call: Callable[..., Awaitable[Any]] = getattr(tx, self.method)
        return call(*self.args, **dict(self.options))


def calls(method: str, *args: st.SearchStrategy[Any], **options: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.builds(
        Call, st.just(method), st.tuples(*args), st.fixed_dictionaries(options).map(lambda d: (*d.items(),))
    )


INTENTS = st.builds(Intent, paused=st.booleans(), replicas_pinned=st.none() | st.integers(0, 3))
REPLICAS = st.builds(
    lambda deployment, ordinal, node, gpus, port, phase, sentence: replace(
        make_replica(deployment, ordinal, node=node, gpus=tuple(sorted(gpus)), port=port, phase=phase),
        sentence=sentence,
    ),
    DEPLOYMENTS,
    st.integers(0, 2),
    NODES,
    st.sets(st.integers(0, 3), max_size=2),
    st.integers(20000, 20002),
    st.sampled_from(ReplicaPhase),
    WORDS,
)
EVENTS = st.builds(
    NewEvent,
    at=MOMENTS,
    kind=st.sampled_from(EventKind),
    subject=WORDS,
    reason=st.sampled_from(Reason),
    sentence=WORDS,
    deployment=st.none() | DEPLOYMENTS,
    data=st.lists(
        st.tuples(WORDS, st.text("ab\0é") | st.integers() | st.floats(allow_nan=False) | st.booleans()), max_size=2
    ).map(tuple),
)
DECISIONS = st.builds(
    DecisionRecord,
    deployment=DEPLOYMENTS,
    at=MOMENTS,
    wanted_before=st.integers(0, 3),
    wanted=st.integers(0, 3),
    reason=st.sampled_from(Reason),
    sentence=WORDS,
    policy=st.just("p/1"),
    observation_json=WORDS,
    state_before_json=WORDS,
    state_after_json=WORDS,
    params_json=WORDS,
)
TICKS = st.builds(
    TickRecord,
    loop=st.sampled_from(["replicas", "gateway"]),
    resource=WORDS,
    holder=HOLDERS,
    started_at=MOMENTS,
    duration=st.timedeltas(timedelta(0), timedelta(days=2)),
    outcome=st.just("changed"),
    sentence=WORDS,
)
ANSWERS = st.builds(
    IdempotentAnswer,
    key=st.sampled_from(["k1", "k2"]),
    request_digest=st.sampled_from(["d1", "d2"]),
    status=st.just(202),
    body_json=WORDS,
    at=MOMENTS,
)
AREAS = {
    "site": [
        calls("put_site", name=WORDS, document=WORDS, digest=WORDS, now=MOMENTS),
        calls("put_idempotent_answer", ANSWERS),
    ],
    "nodes": [
        calls("put_node_spec", NODES.map(make_node_spec)),
        calls("set_node_state", NODES, st.sampled_from(NodeState), WORDS, expected_generation=GENERATIONS),
        calls("set_nodes_seen", st.dictionaries(NODES, MOMENTS)),
        calls("delete_node", NODES),
    ],
    "deployments": [
        calls("put_deployment_spec", DEPLOYMENTS.map(make_spec), DEPLOYMENTS.map(make_plan), MOMENTS),
        calls("set_intent", DEPLOYMENTS, INTENTS, expected_generation=GENERATIONS),
        calls("set_replicas_wanted", DEPLOYMENTS, st.integers(0, 3)),
        calls("mark_deployment_removed", DEPLOYMENTS),
        calls("delete_deployment", DEPLOYMENTS),
        calls("put_policy_state", DEPLOYMENTS, WORDS),
    ],
    "replicas": [
        calls("put_replica", REPLICAS),
        calls("delete_replica", REPLICAS.map(lambda replica: replica.name)),
    ],
    "history": [
        calls("append_events", st.lists(EVENTS, max_size=3)),
        calls("append_decision", DECISIONS),
        calls("append_tick", TICKS),
        calls("prune", events_before=MOMENTS, decisions_before=MOMENTS, ticks_before=MOMENTS),
    ],
    "claims": [
        calls("claim", RESOURCES, token=TOKENS, holder=HOLDERS, now=MOMENTS, expires_at=MOMENTS),
        calls("require_claim", RESOURCES, TOKENS),
        calls("release_claim", RESOURCES, TOKENS),
    ],
}
EVERYTHING = [operation for area in AREAS.values() for operation in area]


@dataclass(frozen=True)
class Work:
    """One transaction; `fails` rolls it back at its end."""

    operations: list[Call]
    fails: bool


WORKS = st.sampled_from([*AREAS.values(), EVERYTHING]).flatmap(
    lambda area: st.lists(
        st.builds(Work, st.lists(st.one_of(area), min_size=1, max_size=12), st.booleans()), min_size=1, max_size=4
    )
)
"""Mostly within one area, where calls meet; sometimes across all."""


class OnPurposeError(Exception):
    """Rolls a transaction back."""


async def answers(store: Store, work: Work) -> list[Any]:
    """What each operation returned, or how it was refused."""
    found: list[Any] = []
    with on_purpose():
        async with store.transaction() as tx:
            for operation in work.operations:
                try:
                    found.append(await operation(tx))
                except QuarterdeckError as error:
                    found.append((type(error), str(error)))
            found.append(await contents(tx))
            if work.fails:
                raise OnPurposeError
    async with store.transaction() as tx:
        found.append(await contents(tx))
    return found


@contextmanager
def on_purpose() -> Iterator[None]:
    try:
        yield
    except OnPurposeError:
        return


async def contents(tx: Transaction) -> dict[str, Any]:
    names = [DeploymentName("chat"), DeploymentName("embed")]
    return {
        "site": await tx.site(),
        "nodes": await tx.nodes(),
        "deployments": await tx.deployments(),
        "replicas": await tx.replicas(),
        "of_chat": await tx.replicas(names[0]),
        "states": [await tx.policy_state(name) for name in names],
        "events": [event.event for event in await tx.events()],
        "of_node": [event.event for event in await tx.events(kind="node", newest_first=True, limit=2)],
        "decisions": [replace(decision, sequence=0) for decision in await tx.decisions()],
        "ticks": await tx.ticks(),
        "answers": [await tx.idempotent_answer(key) for key in ("k1", "k2")],
        "claims": await tx.claims(),
    }


@pytest.fixture
async def real(database_url: str) -> AsyncIterator[SqlStore]:
    store = await open_store(database_url)
    yield store
    await store.close()


async def empty(store: SqlStore) -> None:
    async with store._engine.begin() as connection:
        for table in reversed(METADATA.sorted_tables):
            await connection.execute(table.delete())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(works=WORKS)
async def test_the_fake_and_the_real_agree(real: SqlStore, works: list[Work]) -> None:
    await empty(real)
    fake = MemoryStore()
    for work in works:
        assert await answers(fake, work) == await answers(real, work)
