import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from starlette.testclient import TestClient

from controlplane.api.app import create_app
from controlplane.api.context import ApiContext, ApplySite, LoopAnswer, ReplayAnswer, SiteChangeAnswer
from controlplane.domain.dataset import RecoverySpec
from controlplane.domain.recovery import Drill
from controlplane.domain.site import Site
from controlplane.domain.store import Transaction
from controlplane.domain.telemetry import Fresh, GatewaySample
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import ReplicaName
from controlplane.metering.slo import SloStanding
from controlplane.recovery.removals import Removals
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_site import RecoverySite
from controlplane.testing.telemetry import FakeTelemetry
from controlplane.testing.workshop import FakeWorkshop


@dataclass
class RecordedHints:
    """Remembers which loops were hinted."""

    hinted: list[str] = field(default_factory=list)

    def hint(self, loop: str) -> None:
        self.hinted.append(loop)


@dataclass
class Edge:
    """An API over a store in memory, with one node, one deployment and one replica."""

    client: TestClient
    store: MemoryStore
    clock: FakeClock
    telemetry: FakeTelemetry
    hints: RecordedHints
    loops: list[LoopAnswer]
    known: "Known"
    world: RecoverySite
    """What lies in the buckets, as far as routes look there themselves."""


@dataclass
class Known:
    """What an instance knows beside the store."""

    site: Site | None = None
    break_glass: bool = False
    apply: ApplySite | None = None
    """In place of answers made up here."""

    async def apply_site(self, document: str, dry_run: bool) -> SiteChangeAnswer:
        return await (self.apply or _apply)(document, dry_run)


async def _apply(document: str, dry_run: bool) -> SiteChangeAnswer:
    if document == "broken":
        problem = Problem(
            field="deployments", found="nothing", expected="at least one", file="site.yaml", line=3, column=1
        )
        raise InvalidError([problem])
    return SiteChangeAnswer(changed=True, sentences=("deployment chat is new",))


async def _log(replica: ReplicaName, lines: int) -> list[str]:
    return [f"{replica} line {number}" for number in range(lines)]


async def _evidence(drill: Drill) -> str:
    return f"signed bundle of {drill.drill}\n"


async def _replay(deployment: str | None, limit: int) -> ReplayAnswer:
    return ReplayAnswer(replayed=3, differing=("decision 2: wanted 3, recorded 4",))


async def _fill(tx: Transaction) -> None:
    await tx.put_site(name="demo", document="site: demo", digest="d1", now=START)
    await tx.put_node_spec(make_node_spec())
    await tx.put_deployment_spec(make_spec(), make_plan(), START)
    await tx.put_replica(make_replica())


@pytest.fixture
def edge() -> Iterator[Edge]:
    clock, hints, known = FakeClock(), RecordedHints(), Known()
    world = RecoverySite(clock, RecoverySpec())
    store, telemetry = MemoryStore(), FakeTelemetry(clock)
    telemetry.set_gateway(Fresh(GatewaySample(at=START, epoch="1", routes={}, servers={})))
    loops = [
        LoopAnswer(
            loop="replicas", resource="chat", outcome="quiet", seconds_since_last_tick=0.5, overdue=False,
            failures_in_a_row=0,
            sentence="nothing to do",
        )
    ]  # fmt: skip

    async def prepare() -> None:
        async with store.transaction() as tx:
            await _fill(tx)

    asyncio.run(prepare())
    context = ApiContext(
        store=store,
        telemetry=telemetry,
        clock=clock,
        hints=hints,
        version="0.1.0",
        apply_site=known.apply_site,
        site=lambda: known.site,
        log_tail=_log,
        loops=lambda: loops,
        replay=_replay,
        slo=lambda _deployment: SloStanding(met_at_least=0.97, met_at_most=0.99, objective=0.95, observations=100),
        metrics=lambda: "quarterdeck_build_info 1\n",
        evidence=_evidence,
        has_break_glass=lambda: known.break_glass,
        removals=Removals(store=store, workshop=FakeWorkshop(world), clock=clock, declared=lambda: world.declared),
        gateway_url="http://127.0.0.1:8000",
        links={"docs": "http://127.0.0.1:8080/docs"},
    )
    with TestClient(create_app(context), base_url="http://localhost") as client:
        yield Edge(
            client=client, store=store, clock=clock, telemetry=telemetry, hints=hints, loops=loops, known=known,
            world=world,
        )  # fmt: skip
