"""A small fleet behind a real HTTP server, and the whole command line to look at it with."""

import asyncio
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Final

import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from controlplane.api.app import create_app
from controlplane.api.context import ApiContext, LoopAnswer, ReplayAnswer, SiteChangeAnswer
from controlplane.cli.main import app as program
from controlplane.domain.dataset import RecoverySpec
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, Intent
from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, EventKind, NewEvent
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import Drill
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.store import Transaction
from controlplane.domain.telemetry import Fresh, GatewaySample, Missing, NodeSample, RouteTraffic, Stale
from controlplane.kernel.ids import DeploymentName, ModelId, NodeName, ReplicaName, RevisionId, ServedName
from controlplane.kernel.units import GIB
from controlplane.metering.slo import SloStanding
from controlplane.recovery.removals import Removals
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_site import RecoverySite
from controlplane.testing.telemetry import FakeTelemetry, make_engine_sample, make_gpu_sample
from controlplane.testing.workshop import FakeWorkshop

COLUMNS: Final = 100
TERMINAL: Final = {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb", "QUARTERDECK_URL": ""}
NOBODY: Final = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""

_70B: Final = RevisionId("c8a49fd8")
_EMBED: Final = RevisionId("1e813ce5")


class NoHints:
    """Nobody to hint."""

    def hint(self, loop: str) -> None:
        del loop


@dataclass
class Fleet:
    """A control plane that answers at `url`, eight minutes after its site was applied."""

    url: str
    store: MemoryStore
    clock: FakeClock
    telemetry: FakeTelemetry
    app: FastAPI

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
        """As a user types it, at a terminal of 100 columns without colours."""
        return run(*arguments, env={"QUARTERDECK_URL": self.url, **(env or {})})

    def change(self, **fields: object) -> None:
        """Another context for what the store and the telemetry do not hold."""
        context: ApiContext = self.app.state.context
        self.app.state.context = replace(context, **fields)  # type: ignore[arg-type]  # the fields of ApiContext


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    result = CliRunner().invoke(program, [str(argument) for argument in arguments], env={**TERMINAL, **(env or {})})
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, FastAPI]]:
    """Uvicorn on a free port; each test gives its app a context of its own."""
    app = create_app(_context(MemoryStore(), FakeClock(), FakeTelemetry(FakeClock())))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    running.should_exit = True
    thread.join()


@pytest.fixture
def fleet(server: tuple[str, FastAPI]) -> Fleet:
    """Two nodes, three deployments, all phases of life, some figures missing."""
    url, app = server
    clock = FakeClock()
    clock.jump(timedelta(minutes=8))
    store, telemetry = MemoryStore(), FakeTelemetry(clock)
    asyncio.run(_fill(store))
    _measure(telemetry)
    app.state.context = _context(store, clock, telemetry)
    return Fleet(url=url, store=store, clock=clock, telemetry=telemetry, app=app)


@pytest.fixture
def empty(server: tuple[str, FastAPI]) -> Fleet:
    """A control plane to which no site was applied."""
    url, app = server
    store, clock = MemoryStore(), FakeClock()
    telemetry = FakeTelemetry(clock)
    app.state.context = _context(store, clock, telemetry)
    return Fleet(url=url, store=store, clock=clock, telemetry=telemetry, app=app)


def _context(store: MemoryStore, clock: FakeClock, telemetry: FakeTelemetry) -> ApiContext:
    return ApiContext(
        store=store,
        telemetry=telemetry,
        clock=clock,
        hints=NoHints(),
        version="0.1.0",
        apply_site=_apply,
        site=lambda: None,
        log_tail=_log,
        loops=lambda: [
            LoopAnswer(
                loop="replicas", resource="chat-8b", outcome="failed", seconds_since_last_tick=0.5, overdue=False,
                failures_in_a_row=2, sentence="the list of processes could not be read",
            )
        ],
        replay=_replay,
        slo=_standing,
        metrics=lambda: "quarterdeck_build_info 1\n",
        evidence=_evidence,
        has_break_glass=lambda: False,
        removals=removals_of(RecoverySite(clock, RecoverySpec()), store),
        gateway_url="http://127.0.0.1:8000",
        links={"docs": "http://127.0.0.1:8080/docs"},
    )  # fmt: skip


def removals_of(world: RecoverySite, store: MemoryStore) -> Removals:
    """Deletes in a world in memory what the rows of the store tell of."""
    return Removals(store=store, workshop=FakeWorkshop(world), clock=world.clock, declared=lambda: world.declared)


async def _apply(document: str, dry_run: bool) -> SiteChangeAnswer:
    del document, dry_run
    return SiteChangeAnswer(changed=False, sentences=())


async def _log(replica: ReplicaName, lines: int) -> list[str]:
    return [f"INFO {replica}: [step {number}] 12 running" for number in range(3)][-lines:]


async def _evidence(drill: Drill) -> str:
    return f"signed bundle of {drill.drill}\n"


async def _replay(deployment: str | None, limit: int) -> ReplayAnswer:
    del deployment, limit
    return ReplayAnswer(replayed=4, differing=())


def _standing(deployment: Deployment) -> SloStanding | None:
    known = {"chat-8b": (0.9984, 0.9984), "chat-70b": (0.91, 0.97)}
    if deployment.name not in known:
        return None
    low, high = known[deployment.name]
    return SloStanding(met_at_least=low, met_at_most=high, objective=0.95, observations=400)


async def _fill(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await tx.put_site(name="lab", document="site: {name: lab}", digest="d1", now=START)
        for name in ("b200-1", "b200-2"):
            await tx.put_node_spec(make_node_spec(name))
        await tx.set_node_state(NodeName("b200-1"), NodeState.READY, "b200-1 is in sight with 8 of 8 GPUs")
        await tx.set_node_state(NodeName("b200-2"), NodeState.CORDONED, "fan 3 is loud")
        await _deployments(tx)
        for replica in _replicas():
            await tx.put_replica(replica)
        await tx.append_events(list(_events()))
        for record in _decisions():
            await tx.append_decision(record)


async def _deployments(tx: Transaction) -> None:
    proof = ("llama-3.1-8b: 8.03 B parameters", "= 146.5 GiB left per GPU for the KV cache")
    argv = ("{python}", "-m", "controlplane.simulation.engine", "--port", "{port}", "--sim-profile", '{"a": 1}')
    plan = make_plan("chat-8b")
    plan = replace(plan, proof=proof, launch=replace(plan.launch, argv=argv))
    chat = replace(
        make_spec("chat-8b", replicas_max=8),
        model=ModelId("llama-3.1-8b"),
        served_names=(ServedName("chat-8b"), ServedName("llama-3.1-8b")),
    )
    big = replace(make_spec("chat-70b", replicas_max=2), model=ModelId("llama-3.1-70b"))
    embed = replace(make_spec("embed", replicas_min=0, replicas_max=2), model=ModelId("bge-m3"))
    await tx.put_deployment_spec(chat, plan, START)
    await tx.put_deployment_spec(big, make_plan("chat-70b", gpus=4, revision=_70B), START)
    await tx.put_deployment_spec(embed, make_plan("embed", revision=_EMBED), START)
    await tx.set_replicas_wanted(DeploymentName("chat-8b"), 3)
    await tx.set_replicas_wanted(DeploymentName("chat-70b"), 1)
    await tx.set_intent(DeploymentName("chat-70b"), Intent(replicas_pinned=1))


def _replicas() -> Iterator[Replica]:
    ready, starting = "ready 6.6s after its launch: a probe was answered", "started on b200-1, GPUs 2, port 20002"
    for ordinal in (0, 1):
        row = make_replica("chat-8b", ordinal, node="b200-1", gpus=(ordinal,), port=20000 + ordinal)
        yield replace(row, ready_at=START + timedelta(seconds=6.6), sentence=ready)
    row = make_replica("chat-8b", 2, phase=ReplicaPhase.STARTING, node="b200-1", gpus=(2,), port=20002)
    yield replace(row, sentence=starting)
    row = make_replica("chat-70b", 0, node="b200-1", gpus=(4, 5, 6, 7), port=20003, revision=_70B)
    yield replace(row, ready_at=START + timedelta(seconds=10.7), sentence=ready.replace("6.6", "10.7"))
    row = make_replica("embed", 0, phase=ReplicaPhase.SLEEPING, node="b200-1", gpus=(3,), port=20004, revision=_EMBED)
    yield replace(row, ready_at=START + timedelta(seconds=4.1), sentence="idle: the engine sleeps")


def _events() -> Iterator[NewEvent]:
    rows = (
        (0, EventKind.SITE, "lab", None, Reason.SITE_APPLIED, "site lab is applied: 5 nodes and deployments touched"),
        (1, EventKind.GATEWAY, "site", None, Reason.GATEWAY_STARTED, "started; serves 3 deployments on 127.0.0.1:8000"),
        (8, EventKind.REPLICA, "qd-chat-8b-0a1b2c3d-0", "chat-8b", Reason.PROBE_PASSED, "ready after 6.6s"),
        (300, EventKind.DECISION, "chat-8b", "chat-8b", Reason.DEMAND_UP, "2 -> 3: 24.60 req/s over 12s; needs 3"),
    )
    for after_s, kind, subject, deployment, reason, sentence in rows:
        yield NewEvent(
            at=START + timedelta(seconds=after_s), kind=kind, subject=subject, deployment=deployment, reason=reason,
            sentence=sentence,
        )  # fmt: skip
    yield NewEvent(
        at=START + timedelta(minutes=6),
        kind=EventKind.REPLICA,
        subject="qd-embed-1e813ce5-1",
        deployment="embed",
        reason=Reason.STOPPED,
        sentence="nothing of it is left, 1.2s after: idle",
        data=((GPUS_KEY, 1), (HELD_SINCE_KEY, START.isoformat())),
    )


def _decisions() -> Iterator[DecisionRecord]:
    rows = (
        (10, "chat-8b", 1, 2, Reason.DEMAND_UP, "1 -> 2: 17.17 req/s over 30s, up to 33.91 in 8s; needs 2; 1 ready"),
        (200, "embed", 1, 0, Reason.IDLE, "1 -> 0: no request for 10s"),
        (300, "chat-8b", 2, 3, Reason.DEMAND_UP, "2 -> 3: 24.60 req/s over 12s, up to 30.10 in 6s; needs 3; 2 ready"),
        (420, "chat-70b", 1, 1, Reason.PINNED, "stays at 1: pinned to 1 by a person"),
    )
    for after_s, name, before, wanted, reason, sentence in rows:
        yield DecisionRecord(
            deployment=DeploymentName(name), at=START + timedelta(seconds=after_s), wanted_before=before, wanted=wanted,
            reason=reason, sentence=sentence, policy="learned-capacity/1", observation_json='{"arrivals_rps":24.6}',
            state_before_json="", state_after_json="{}", params_json='{"replicas_max":8}',
        )  # fmt: skip


def _measure(telemetry: FakeTelemetry) -> None:
    first, second, _, big, embed = (replica.name for replica in _replicas())
    telemetry.set_engine(first, Fresh(make_engine_sample(running=12, waiting=1, kv_usage=0.31)))
    telemetry.set_engine(second, Stale(make_engine_sample(running=9), age=timedelta(seconds=7)))
    telemetry.set_engine(big, Fresh(make_engine_sample(running=3, kv_usage=0.04)))
    telemetry.set_engine(embed, Missing("the engine does not answer"))
    held = [
        replace(
            make_gpu_sample(index, utilization=0.97), memory_used_bytes=165 * GIB, power_w=980.0, temperature_c=71.0
        )
        for index in range(8)
    ]
    telemetry.set_node(NodeName("b200-1"), Fresh(NodeSample(at=START, gpus=tuple(held))))
    routes = {
        "chat-8b": RouteTraffic(
            arrivals_total=5000.0, in_flight=21, queued=2, held=0, responses_5xx_total=0.0, servers_up=2
        ),
        "chat-70b": RouteTraffic(
            arrivals_total=300.0, in_flight=3, queued=0, held=0, responses_5xx_total=1.0, servers_up=1
        ),
        "embed": RouteTraffic(
            arrivals_total=40.0, in_flight=0, queued=0, held=1, responses_5xx_total=0.0, servers_up=0
        ),
    }
    sample = GatewaySample(
        at=START, epoch="1", routes={DeploymentName(name): route for name, route in routes.items()}, servers={}
    )
    telemetry.set_gateway(Fresh(sample))
