"""Which adapter stands behind which port, and what runs together."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import controlplane
from controlplane.adapters.cpu import CpuMeter
from controlplane.adapters.db.store import SqlStore
from controlplane.adapters.engines.http import HttpEngines
from controlplane.adapters.gpu.nvml import NvmlGpus
from controlplane.adapters.gpu.simulated import GpuStateFolder
from controlplane.adapters.gpu.source import GpuReader
from controlplane.adapters.haproxy.driver import HaproxyGateway
from controlplane.adapters.haproxy.traffic import HaproxyTraffic
from controlplane.adapters.instance import site_mark
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.adapters.selfmetrics import SelfMetrics
from controlplane.adapters.sitefile.secrets import resolve_secret
from controlplane.adapters.system import SystemClock, SystemRng, UuidIds
from controlplane.adapters.telemetry.collector import GLANCE_PERIOD, TelemetryCollector
from controlplane.adapters.telemetry.direct import DirectEngines, DirectNodes
from controlplane.adapters.telemetry.ports import EngineSource, NodeSource
from controlplane.api.context import ApiContext, LoopAnswer, ReplayAnswer
from controlplane.api.wire import REPLAYED_MAX
from controlplane.autoscaler.reconciler import LOOP as AUTOSCALER
from controlplane.autoscaler.reconciler import AutoscalerReconciler
from controlplane.autoscaler.replay import replay_all
from controlplane.bootstrap.loops import (
    FLEET_PACE,
    GATEWAY_PACE,
    HOUSEKEEPING_PACE,
    REPLICAS_PACE,
    Beat,
    Housekeeping,
    autoscaler_pace,
    gateway_after,
)
from controlplane.bootstrap.recovery_parts import LOOPS as RECOVERY_LOOPS
from controlplane.bootstrap.recovery_parts import RecoveryParts, put_recovery_together
from controlplane.bootstrap.site_work import SiteWork
from controlplane.domain.deployment import Deployment
from controlplane.domain.reason import Reason
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import Site, TelemetrySource
from controlplane.fleet.reconciler import FleetReconciler
from controlplane.gateway.reconciler import GatewayReconciler
from controlplane.kernel.ids import DeploymentName, InstanceId
from controlplane.metering.slo import SloMeter, SloStanding
from controlplane.replicas.limits import DEFAULT_LIMITS
from controlplane.replicas.reconciler import ReplicaReconciler
from controlplane.runtime.driver import Driver
from controlplane.runtime.hints import HintBoard
from controlplane.runtime.reconciler import Pace, Reconciler
from controlplane.runtime.status import SURVEY, TickOutcome
from controlplane.runtime.supervisor import Service

LOOPS: Final = frozenset({"replicas", "autoscaler", "gateway", "fleet", "housekeeping"}) | RECOVERY_LOOPS
FOLLOW_PERIOD: Final = timedelta(seconds=2)
"""How soon an instance notices that another one applied a site."""
EMBEDDED_PERIOD: Final = timedelta(seconds=2)
"""How soon an embedded store or database that died is started again."""
GAUGES_PERIOD: Final = timedelta(seconds=5)
"""How soon a look into a bucket, or a drill's end, is on /metrics."""
GPU_STATE_VARIABLE: Final = "QUARTERDECK_GPU_STATE_DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A control plane put together; nothing of it runs yet."""

    store: SqlStore
    site_work: SiteWork
    launcher: LocalLauncher
    engines: HttpEngines
    gateway: HaproxyGateway
    telemetry: TelemetryCollector
    recovery: RecoveryParts
    drivers: tuple[Driver, ...]
    services: tuple[Service, ...]
    context: ApiContext
    clock: SystemClock


def put_together(
    *,
    store: SqlStore,
    site_work: SiteWork,
    site: Site,
    state_dir: Path,
    control_url: str,
    instance: InstanceId,
    break_glass: Path | None = None,
    break_glass_passphrase: Path | None = None,
) -> Parts:
    """Inside a running event loop."""
    clock, rng, ids = SystemClock(), SystemRng(), UuidIds()
    mark = site_mark(state_dir)
    metrics = SelfMetrics(version=controlplane.__version__)
    gpu_states = state_dir / "gpu-state"
    gpu_states.mkdir(parents=True, exist_ok=True)
    launcher = LocalLauncher(state_dir, environ={**os.environ, GPU_STATE_VARIABLE: str(gpu_states.resolve())})
    engines = HttpEngines()
    gateway = HaproxyGateway(state_dir=state_dir, site_mark=mark, clock=clock, key_source=_secret)
    engine_source, node_source = _sources(site, clock, gpu_states)
    hints, counting = HintBoard(LOOPS), _Counting(metrics)
    telemetry = TelemetryCollector(
        store=store,
        engines=engine_source,
        nodes=node_source,
        gateway=gateway.sample,
        clock=clock,
        spec=site.telemetry,
        metrics=metrics,
        arrivals=gateway.arrivals,
        on_gateway=lambda: hints.hint(AUTOSCALER),
    )
    recovery = put_recovery_together(
        store=store,
        clock=clock,
        rng=rng,
        ids=ids,
        hints=hints,
        declared=lambda: (site_work.site() or site).recovery,
        state_dir=state_dir,
        mark=mark,
        secret=_secret,
        break_glass=break_glass,
        break_glass_passphrase=break_glass_passphrase,
    )
    metrics.register(recovery.collector)
    paced: Sequence[tuple[Reconciler, Pace]] = (
        (FleetReconciler(store=store, telemetry=telemetry, clock=clock), FLEET_PACE),
        (
            ReplicaReconciler(
                store=store,
                launcher=launcher,
                engines=engines,
                traffic=HaproxyTraffic(state_dir),
                telemetry=telemetry,
                clock=clock,
                hints=hints,
                limits=replace(DEFAULT_LIMITS, port_seed=mark),
                ports=lambda: (site_work.site() or site).replica_ports,
            ),
            REPLICAS_PACE,
        ),
        (GatewayReconciler(store, gateway, clock, site_work.gateway_spec), GATEWAY_PACE),
        (
            AutoscalerReconciler(store=store, telemetry=telemetry, clock=clock, hints=hints, observer=counting),
            autoscaler_pace(site.telemetry.interval),
        ),
        (Housekeeping(store=store, clock=clock), HOUSEKEEPING_PACE),
        *recovery.paced,
    )
    drivers = tuple(
        Driver(
            reconciler=reconciler,
            pace=pace,
            store=store,
            clock=clock,
            rng=rng,
            ids=ids,
            instance=instance,
            observer=counting,
        )
        for reconciler, pace in paced
    )
    for driver in drivers:
        hints.subscribe(driver.name, driver.hint)
    slo = SloMeter()
    measuring = _Measuring(telemetry, store, slo)
    interval = site.telemetry.interval
    beats = {
        "telemetry": Beat(body=measuring.round, period=interval, clock=clock),
        "gateway-telemetry": Beat(
            body=telemetry.watch_gateway,
            period=min(interval, GLANCE_PERIOD),
            clock=clock,
            after=gateway_after(interval),
        ),
        "embedded": Beat(body=recovery.embedded.keep, period=EMBEDDED_PERIOD, clock=clock),
        "recovery-gauges": Beat(body=recovery.gauges.tell, period=GAUGES_PERIOD, clock=clock),
        "site": Beat(body=site_work.follow, period=FOLLOW_PERIOD, clock=clock),
    }
    services = tuple(
        [Service(name=name, run=beat.run, stop=beat.stop) for name, beat in beats.items()]
        + [Service(name=driver.name, run=driver.run, stop=driver.stop) for driver in drivers]
    )
    context = ApiContext(
        store=store,
        telemetry=telemetry,
        clock=clock,
        hints=hints,
        version=controlplane.__version__,
        apply_site=site_work.apply_document,
        site=site_work.site,
        log_tail=launcher.log_tail,
        loops=_Loops(drivers, clock).answers,
        replay=_Replaying(store).answer,
        slo=measuring.standing,
        metrics=lambda: metrics.render().decode(),
        evidence=recovery.evidence,
        has_break_glass=lambda: recovery.vault.has_break_glass,
        removals=recovery.removals,
        gateway_url=f"http://{site.gateway.host}:{site.gateway.port}",
        links={"docs": f"{control_url}/docs", "openapi": f"{control_url}/api/v1/openapi.json"},
    )
    return Parts(
        store=store,
        site_work=site_work,
        launcher=launcher,
        engines=engines,
        gateway=gateway,
        telemetry=telemetry,
        recovery=recovery,
        drivers=drivers,
        services=services,
        context=context,
        clock=clock,
    )


def _sources(site: Site, clock: SystemClock, gpu_states: Path) -> tuple[EngineSource, NodeSource]:
    if site.telemetry.source is TelemetrySource.PROMETHEUS:
        # A tenth of a second of imports that only such a site needs.
        from controlplane.adapters.telemetry.prometheus import PrometheusEngines, PrometheusNodes  # noqa: PLC0415

        assert site.telemetry.prometheus_url is not None, "the site file's schema asks for it"
        url = site.telemetry.prometheus_url
        return PrometheusEngines(url, clock), PrometheusNodes(url, clock)
    simulated = all(node.simulated for node in site.nodes)
    local = None if simulated else GpuReader(NvmlGpus(), clock, cpu=CpuMeter())
    return DirectEngines(clock), DirectNodes(clock, states=GpuStateFolder(gpu_states, clock), local=local)


def _secret(ref: SecretRef) -> str:
    return resolve_secret(ref, os.environ, lambda path: Path(path).read_text(encoding="utf-8"))


class _Counting:
    """A TickObserver and a DecisionObserver that counts into our own metrics."""

    def __init__(self, metrics: SelfMetrics) -> None:
        self._metrics = metrics

    def on_tick(self, loop: str, resource: str, outcome: TickOutcome, duration: timedelta) -> None:
        del resource  # a label per resource would be one series per deployment and loop
        self._metrics.tick(loop, outcome, duration)
        if outcome is TickOutcome.STALE_CLAIM:
            self._metrics.stale_claim(loop)

    def on_decision(self, deployment: DeploymentName, reason: Reason, *, wanted_before: int, wanted: int) -> None:
        self._metrics.decision(deployment, reason, wanted_before=wanted_before, wanted=wanted)


class _Measuring:
    """One round of telemetry, and what it says of the objectives."""

    def __init__(self, telemetry: TelemetryCollector, store: SqlStore, slo: SloMeter) -> None:
        self._telemetry = telemetry
        self._store = store
        self._slo = slo

    async def round(self) -> None:
        await self._telemetry.round()
        async with self._store.transaction() as tx:
            replicas = await tx.replicas()
        self._slo.observe(self._telemetry.snapshot(), replicas)

    def standing(self, deployment: Deployment) -> SloStanding | None:
        return self._slo.standing(deployment.name, deployment.spec.slo, self._telemetry.snapshot().at)


class _Loops:
    """The drivers' status as the API shows it."""

    def __init__(self, drivers: Sequence[Driver], clock: SystemClock) -> None:
        self._drivers = drivers
        self._clock = clock

    def answers(self) -> list[LoopAnswer]:
        now = self._clock.now()
        return [
            LoopAnswer(
                loop=status.loop,
                resource=status.resource,
                outcome=str(status.outcome) if status.outcome is not None else "not yet",
                seconds_since_last_tick=(now - status.last_tick_at).total_seconds() if status.last_tick_at else None,
                overdue=status.overdue,
                failures_in_a_row=status.consecutive_failures,
                sentence=status.sentence,
            )
            for driver in self._drivers
            for status in driver.status()
            if status.resource != SURVEY or status.consecutive_failures
        ]


class _Replaying:
    """Recorded decisions, decided again."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    async def answer(self, deployment: str | None, limit: int) -> ReplayAnswer:
        name = DeploymentName(deployment) if deployment is not None else None
        async with self._store.transaction() as tx:
            records = await tx.decisions(name, limit=min(limit, REPLAYED_MAX))
        report = await asyncio.to_thread(replay_all, records)  # seconds for the most that may be asked for
        return ReplayAnswer(
            replayed=report.total,
            differing=tuple(
                f"decision {one.sequence} of {one.deployment}: {one.field} was {one.recorded}, now {one.replayed}"
                for one in report.differences
            ),
        )
