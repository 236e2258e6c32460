"""The store's contract, on the fake, on SQLite and on a real PostgreSQL."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Intent
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.store import IdempotentAnswer, Store, TickRecord
from controlplane.kernel.errors import ConflictError, NotFoundError, RetryableError, StaleClaimError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId, NodeName
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import START

CHAT = DeploymentName("chat")
LATER = START + timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)


def make_event(subject: str = "chat", *, minutes: int = 0, deployment: str | None = "chat") -> NewEvent:
    return NewEvent(
        at=START + timedelta(minutes=minutes),
        kind=EventKind.DEPLOYMENT if deployment else EventKind.NODE,
        subject=subject,
        reason=Reason.WANTED,
        sentence=f"something about {subject}",
        deployment=deployment,
        data=(("count", 1), ("share", 1.0), ("yes", True), ("word", "1")),
    )


def make_decision(deployment: str = "chat", *, wanted: int = 1, minutes: int = 0) -> DecisionRecord:
    return DecisionRecord(
        deployment=DeploymentName(deployment),
        at=START + timedelta(minutes=minutes),
        wanted_before=0,
        wanted=wanted,
        reason=Reason.DEMAND_UP,
        sentence="more is asked for",
        policy="learned-capacity/1",
        observation_json='{"b":1,"a":2}',
        state_before_json="{}",
        state_after_json='{"x":0.1}',
        params_json="[]",
    )


def make_tick(loop: str = "replicas", *, minutes: int = 0) -> TickRecord:
    return TickRecord(
        loop=loop,
        resource="chat",
        holder=InstanceId("one"),
        started_at=START + timedelta(minutes=minutes),
        duration=timedelta(microseconds=1234),
        outcome="changed",
        sentence="launched one",
    )


class TestTransaction:
    async def test_an_exception_rolls_everything_back(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("kept"))
            await tx.append_events([make_event("kept")])
        with pytest.raises(RuntimeError, match="on purpose"):
            await self._write_and_fail(store)
        async with store.transaction() as tx:
            assert [node.name for node in await tx.nodes()] == ["kept"]
            assert [event.event.subject for event in await tx.events()] == ["kept"]
            assert await tx.site() is None

    async def _write_and_fail(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("lost"))
            await tx.put_site(name="lost", document="", digest="", now=START)
            await tx.append_events([make_event("lost")])
            await tx.prune(events_before=LATER, decisions_before=LATER, ticks_before=LATER)
            raise RuntimeError("on purpose")

    async def test_a_cancelled_transaction_leaves_nothing_and_the_store_works_on(self, store: Store) -> None:
        for yields in range(12):
            task = asyncio.create_task(self._write(store))
            for _ in range(yields):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with store.transaction() as tx:
                nodes = {node.name for node in await tx.nodes()}
            assert nodes in (set(), {"a", "b"})

    async def _write(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("a"))
            await tx.put_node_spec(make_node_spec("b"))

    async def test_concurrent_increments_are_never_lost(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)

        async def increment() -> int:
            for _ in range(5):
                try:
                    async with store.transaction() as tx:
                        found = await tx.deployment(CHAT)
                        pinned = (found.intent.replicas_pinned or 0) + 1
                        await tx.set_intent(CHAT, Intent(replicas_pinned=pinned))
                except RetryableError:
                    continue
                return 1
            return 0

        done = sum(await asyncio.gather(*(increment() for _ in range(6))))
        async with store.transaction() as tx:
            found = await tx.deployment(CHAT)
        assert done >= 1
        assert found.intent.replicas_pinned == done
        assert found.generation == 1 + done


class TestSite:
    async def test_it_is_absent_then_replaced_with_a_rising_generation(self, store: Store) -> None:
        async with store.transaction() as tx:
            assert await tx.site() is None
            first = await tx.put_site(name="demo", document="a: 1\n", digest="d1", now=START)
            assert (first.generation, first.applied_at) == (1, START)
        async with store.transaction() as tx:
            second = await tx.put_site(name="démo", document="ä: 2\n", digest="d2", now=LATER)
            assert second == await tx.site()
            assert (second.name, second.document, second.generation) == ("démo", "ä: 2\n", 2)


class TestNodes:
    async def test_a_new_one_is_unknown_and_a_new_spec_leaves_the_rest(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("n1"))
            (node,) = await tx.nodes()
            assert (node.state, node.generation, node.seen_at) == (NodeState.UNKNOWN, 1, None)
            assert node.spec == make_node_spec("n1")
            await tx.set_node_state(NodeName("n1"), NodeState.CORDONED, "by a person")
            await tx.set_node_seen(NodeName("n1"), START + MICROSECOND)
            await tx.put_node_spec(make_node_spec("n1", gpus=4))
            (node,) = await tx.nodes()
        assert node.spec == make_node_spec("n1", gpus=4)
        assert (node.state, node.state_reason, node.generation) == (NodeState.CORDONED, "by a person", 2)
        assert node.seen_at == START + MICROSECOND

    async def test_they_come_by_name_as_a_program_sorts_them(self, store: Store) -> None:
        async with store.transaction() as tx:
            for name in ("n-2", "n10", "n1", "n-1"):
                await tx.put_node_spec(make_node_spec(name))
            assert [node.name for node in await tx.nodes()] == ["n-1", "n-2", "n1", "n10"]

    async def test_a_state_change_is_guarded_by_the_generation(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("n1"))
            node = await tx.set_node_state(NodeName("n1"), NodeState.READY, "seen", expected_generation=1)
            assert node.generation == 2
            with pytest.raises(ConflictError, match="generation 2, not 1"):
                await tx.set_node_state(NodeName("n1"), NodeState.UNKNOWN, "", expected_generation=1)
            with pytest.raises(NotFoundError, match="did you mean 'n1'"):
                await tx.set_node_state(NodeName("n11"), NodeState.UNKNOWN, "")

    async def test_seen_at_many_skips_those_that_are_gone(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("n1"))
            await tx.put_node_spec(make_node_spec("n2"))
            await tx.set_nodes_seen({NodeName("n1"): START, NodeName("gone"): START})
            await tx.set_nodes_seen({})
            await tx.set_node_seen(NodeName("gone"), START)
            assert [(node.name, node.seen_at) for node in await tx.nodes()] == [("n1", START), ("n2", None)]

    async def test_a_deleted_one_is_gone_and_deleting_twice_is_fine(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("n1"))
            await tx.delete_node(NodeName("n1"))
            await tx.delete_node(NodeName("n1"))
            assert await tx.nodes() == []


class TestDeployments:
    async def test_a_new_one_starts_at_its_minimum(self, store: Store) -> None:
        async with store.transaction() as tx:
            created = await tx.put_deployment_spec(make_spec("chat", replicas_min=2), make_plan(), START)
            assert (created.replicas_wanted, created.generation, created.intent) == (2, 1, Intent())
            assert (created.created_at, created.removed) == (START, False)
            assert await tx.deployment(CHAT) == created
            assert await tx.deployments() == [created]

    async def test_a_new_spec_keeps_intent_and_wanted_and_revives_a_removed_one(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)
            await tx.set_intent(CHAT, Intent(paused=True))
            await tx.set_replicas_wanted(CHAT, 3)
            await tx.mark_deployment_removed(CHAT)
            await tx.mark_deployment_removed(CHAT)
            removed = await tx.deployment(CHAT)
            assert (removed.removed, removed.generation) == (True, 3)
            revived = await tx.put_deployment_spec(make_spec("chat", replicas_max=9), make_plan(gpus=2), LATER)
        assert (revived.removed, revived.generation, revived.created_at) == (False, 4, START)
        assert (revived.intent, revived.replicas_wanted) == (Intent(paused=True), 3)
        assert revived.spec.replicas_max == 9
        assert revived.plan.gpus_per_replica == 2

    async def test_an_intent_is_guarded_by_the_generation(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)
            changed = await tx.set_intent(CHAT, Intent(replicas_pinned=0), expected_generation=1)
            assert (changed.intent.replicas_pinned, changed.generation) == (0, 2)
            with pytest.raises(ConflictError, match="generation 2, not 1"):
                await tx.set_intent(CHAT, Intent(), expected_generation=1)

    async def test_what_is_wanted_leaves_the_generation(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)
            await tx.set_replicas_wanted(CHAT, 4)
            found = await tx.deployment(CHAT)
        assert (found.replicas_wanted, found.generation) == (4, 1)

    async def test_an_unknown_name_gets_the_nearest_one(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)
            for attempt in (
                tx.deployment(DeploymentName("chatt")),
                tx.set_intent(DeploymentName("chatt"), Intent()),
                tx.set_replicas_wanted(DeploymentName("chatt"), 1),
                tx.mark_deployment_removed(DeploymentName("chatt")),
            ):
                with pytest.raises(NotFoundError, match="no deployment 'chatt'; did you mean 'chat'"):
                    await attempt

    async def test_deleting_takes_the_policy_state_along(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)
            assert await tx.policy_state(CHAT) is None
            await tx.put_policy_state(CHAT, '{"a":1}')
            await tx.put_policy_state(CHAT, '{"a":2}')
            assert await tx.policy_state(CHAT) == '{"a":2}'
            await tx.delete_deployment(CHAT)
            await tx.delete_deployment(CHAT)
            assert await tx.deployments() == []
            assert await tx.policy_state(CHAT) is None


class TestReplicas:
    async def test_they_come_back_as_they_were(self, store: Store) -> None:
        pending = make_replica("chat", 0, phase=ReplicaPhase.PENDING, gpus=(0, 1))
        stopping = replace(
            make_replica("chat", 1, phase=ReplicaPhase.STOPPING, gpus=(7,), port=20001),
            sleep_after_drain=True,
            stop_signals=2,
            stop_signal_at=START + MICROSECOND,
            sentence="ein „Wort“ \U0001f680",
        )
        other = make_replica("embed", 0, node="node-2", gpus=())
        async with store.transaction() as tx:
            for replica in (stopping, other, pending):
                await tx.put_replica(replica)
        async with store.transaction() as tx:
            assert await tx.replicas() == [pending, stopping, other]
            assert await tx.replicas(CHAT) == [pending, stopping]
            ready = replace(pending, phase=ReplicaPhase.READY, ready_at=LATER)
            await tx.put_replica(ready)
            assert await tx.replicas(CHAT) == [ready, stopping]
            await tx.delete_replica(stopping.name)
            await tx.delete_replica(stopping.name)
            assert await tx.replicas(CHAT) == [ready]

    async def test_a_gpu_has_one_holder(self, store: Store) -> None:
        first = make_replica("chat", 0, gpus=(0, 1))
        second = make_replica("embed", 0, gpus=(1, 2), port=20001)
        async with store.transaction() as tx:
            await tx.put_replica(first)
            with pytest.raises(ConflictError, match=f"GPU 1 of node-1: {first.name} holds it"):
                await tx.put_replica(second)
            await tx.put_replica(replace(second, gpus=(2, 3)))
        async with store.transaction() as tx:
            assert [replica.gpus for replica in await tx.replicas()] == [(0, 1), (2, 3)]

    async def test_a_port_of_a_node_has_one_holder(self, store: Store) -> None:
        first = make_replica("chat", 0, gpus=(0,))
        second = make_replica("chat", 1, gpus=(1,))
        async with store.transaction() as tx:
            await tx.put_replica(first)
            with pytest.raises(ConflictError, match=f"port 20000 of node-1: {first.name} holds it"):
                await tx.put_replica(second)
            await tx.put_replica(replace(second, node=NodeName("node-2")))
            await tx.put_replica(replace(second, port=20001))
            assert len(await tx.replicas()) == 2

    async def test_gpus_and_port_are_free_after_deletion_or_move(self, store: Store) -> None:
        first = make_replica("chat", 0, gpus=(0,))
        async with store.transaction() as tx:
            await tx.put_replica(first)
            await tx.put_replica(replace(first, gpus=(1,), port=20009))
            await tx.put_replica(make_replica("chat", 1, gpus=(0,)))
            await tx.delete_replica(first.name)
            await tx.put_replica(make_replica("chat", 2, gpus=(1,), port=20009))
            assert [replica.ordinal for replica in await tx.replicas()] == [1, 2]

    async def test_of_two_that_want_one_gpu_at_once_one_gets_it(self, store: Store) -> None:
        async def take(ordinal: int) -> bool:
            try:
                async with store.transaction() as tx:
                    if await tx.replicas():
                        return False
                    await tx.put_replica(make_replica("chat", ordinal, gpus=(0,), port=20000 + ordinal))
            except ConflictError:
                return False
            return True

        assert sum(await asyncio.gather(*(take(ordinal) for ordinal in range(6)))) == 1


class TestHistory:
    async def test_events_by_number_kind_and_deployment(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.append_events([make_event("a"), make_event("n1", deployment=None)])
            await tx.append_events([])
            assert len(await tx.events()) == 2
        async with store.transaction() as tx:
            await tx.append_events([make_event("b"), make_event("c", deployment="embed")])
        async with store.transaction() as tx:
            every = await tx.events()
            assert [event.event for event in every] == [
                make_event("a"),
                make_event("n1", deployment=None),
                make_event("b"),
                make_event("c", deployment="embed"),
            ]
            numbers = [event.sequence for event in every]
            assert numbers == sorted(set(numbers))
            assert await tx.events(after=numbers[1]) == every[2:]
            assert await tx.events(after=numbers[3]) == []
            assert await tx.events(limit=1) == every[:1]
            assert await tx.events(limit=2, newest_first=True) == [every[3], every[2]]
            assert await tx.events(kind="node") == [every[1]]
            assert await tx.events(deployment="chat", after=numbers[0]) == [every[2]]

    async def test_an_event_keeps_the_types_of_its_data(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.append_events([make_event()])
        async with store.transaction() as tx:
            (event,) = await tx.events()
        assert [type(value) for _, value in event.event.data] == [int, float, bool, str]

    async def test_decisions_newest_first_byte_for_byte(self, store: Store) -> None:
        async with store.transaction() as tx:
            for wanted in (1, 2):
                await tx.append_decision(make_decision(wanted=wanted))
            await tx.append_decision(make_decision("embed", wanted=3))
        async with store.transaction() as tx:
            found = await tx.decisions()
            assert [decision.wanted for decision in found] == [3, 2, 1]
            assert [decision.wanted for decision in await tx.decisions(CHAT)] == [2, 1]
            assert [decision.wanted for decision in await tx.decisions(CHAT, limit=1)] == [2]
            after = await tx.decisions(after=found[2].sequence, newest_first=False)
            assert [decision.wanted for decision in after] == [2, 3]
            assert replace(found[2], sequence=0) == make_decision(wanted=1)

    async def test_ticks_newest_first(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.append_tick(make_tick())
            await tx.append_tick(make_tick("gateway"))
        async with store.transaction() as tx:
            assert await tx.ticks() == [make_tick("gateway"), make_tick()]
            assert await tx.ticks(loop="replicas") == [make_tick()]
            assert await tx.ticks(limit=1) == [make_tick("gateway")]

    async def test_pruning_drops_what_is_older_and_never_reuses_a_number(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.append_events([make_event(minutes=minute) for minute in (0, 10, 20)])
            await tx.append_decision(make_decision(minutes=5))
            await tx.append_tick(make_tick(minutes=5))
            await tx.put_idempotent_answer(make_answer())
        async with store.transaction() as tx:
            last = (await tx.events())[-1].sequence
            before = START + timedelta(minutes=10)
            gone = await tx.prune(events_before=before, decisions_before=before, ticks_before=START)
        assert gone == 3
        async with store.transaction() as tx:
            assert len(await tx.events()) == 2
            assert await tx.decisions() == []
            assert await tx.ticks() == [make_tick(minutes=5)]
            assert await tx.idempotent_answer("k1") is None
            assert await tx.prune(events_before=LATER, decisions_before=LATER, ticks_before=LATER) == 3
        async with store.transaction() as tx:
            await tx.append_events([make_event()])
            (event,) = await tx.events()
        assert event.sequence > last


def make_answer(digest: str = "d1", body: str = "{}") -> IdempotentAnswer:
    return IdempotentAnswer(key="k1", request_digest=digest, status=202, body_json=body, at=START)


class TestIdempotency:
    async def test_the_first_answer_stays_and_another_request_is_a_conflict(self, store: Store) -> None:
        async with store.transaction() as tx:
            assert await tx.idempotent_answer("k1") is None
            await tx.put_idempotent_answer(make_answer())
            await tx.put_idempotent_answer(make_answer(body='{"second":true}'))
            assert await tx.idempotent_answer("k1") == make_answer()
            with pytest.raises(ConflictError, match="'k1' was used before"):
                await tx.put_idempotent_answer(make_answer("d2"))
            assert await tx.idempotent_answer("k1") == make_answer()


ONE, TWO = InstanceId("one"), InstanceId("two")
EXPIRES = START + timedelta(seconds=15)


async def held(store: Store) -> Sequence[tuple[str, str, str]]:
    async with store.transaction() as tx:
        return [(claim.resource, claim.token, claim.holder) for claim in await tx.claims()]


class TestClaims:
    async def test_free_taken_renewed_expired(self, store: Store) -> None:
        async with store.transaction() as tx:
            claim = await tx.claim("r/a", token=ClaimToken("t1"), holder=ONE, now=START, expires_at=EXPIRES)
            assert claim is not None
            assert await tx.claims() == [claim]
            taken = await tx.claim("r/a", token=ClaimToken("t2"), holder=TWO, now=START, expires_at=LATER)
            assert taken is None
            early = EXPIRES - MICROSECOND
            assert await tx.claim("r/a", token=ClaimToken("t2"), holder=TWO, now=early, expires_at=LATER) is None
            renewed = await tx.claim("r/a", token=ClaimToken("t3"), holder=ONE, now=START, expires_at=EXPIRES)
            assert renewed is not None
            assert renewed.token == "t3"
        async with store.transaction() as tx:
            over = await tx.claim("r/a", token=ClaimToken("t2"), holder=TWO, now=EXPIRES, expires_at=LATER)
            assert over is not None
            assert (over.holder, over.expires_at) == (TWO, LATER)
        assert await held(store) == [("r/a", "t2", "two")]

    async def test_only_the_present_token_may_apply(self, store: Store) -> None:
        async with store.transaction() as tx:
            with pytest.raises(StaleClaimError, match="r/a"):
                await tx.require_claim("r/a", ClaimToken("t1"))
            await tx.claim("r/a", token=ClaimToken("t1"), holder=ONE, now=START, expires_at=EXPIRES)
            await tx.require_claim("r/a", ClaimToken("t1"))
            # The expiry alone takes nothing away: nobody else has it yet.
            await tx.claim("r/a", token=ClaimToken("t2"), holder=TWO, now=EXPIRES, expires_at=LATER)
            with pytest.raises(StaleClaimError):
                await tx.require_claim("r/a", ClaimToken("t1"))

    async def test_a_stale_apply_leaves_no_trace(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.claim("r/a", token=ClaimToken("t2"), holder=TWO, now=START, expires_at=EXPIRES)
        with pytest.raises(StaleClaimError):
            await self._apply(store, ClaimToken("t1"))
        async with store.transaction() as tx:
            assert await tx.replicas() == []

    async def _apply(self, store: Store, token: ClaimToken) -> None:
        async with store.transaction() as tx:
            await tx.put_replica(make_replica())
            await tx.require_claim("r/a", token)

    async def test_release_needs_the_token(self, store: Store) -> None:
        async with store.transaction() as tx:
            for resource in ("r/b", "r/a"):
                await tx.claim(resource, token=ClaimToken("t1"), holder=ONE, now=START, expires_at=EXPIRES)
            await tx.release_claim("r/a", ClaimToken("t2"))
            assert [claim.resource for claim in await tx.claims()] == ["r/a", "r/b"]
            await tx.release_claim("r/a", ClaimToken("t1"))
            await tx.release_claim("r/a", ClaimToken("t1"))
        assert await held(store) == [("r/b", "t1", "one")]

    async def test_of_many_that_claim_at_once_one_gets_it(self, store: Store) -> None:
        async def take(number: int) -> bool:
            async with store.transaction() as tx:
                holder = InstanceId(f"i{number}")
                token = ClaimToken(f"t{number}")
                return await tx.claim("r/a", token=token, holder=holder, now=START, expires_at=EXPIRES) is not None

        assert sum(await asyncio.gather(*(take(number) for number in range(8)))) == 1
