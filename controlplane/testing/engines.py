"""Engines of fake processes, and the telemetry that they would show."""

from datetime import datetime

from controlplane.domain.deployment import LaunchTemplate
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.replica import Replica
from controlplane.domain.telemetry import (
    EngineSample,
    Fresh,
    GatewaySample,
    Histogram,
    Missing,
    Reading,
    TelemetrySnapshot,
)
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import ReplicaName
from controlplane.testing.launcher import FakeLauncher, FakeProcess

_NO_LATENCIES = Histogram(edges=(), counts=(), sum=0.0)


class FakeEngines:
    """Implements `controlplane.replicas.ports.Engines` over the processes of a FakeLauncher."""

    def __init__(self, launcher: FakeLauncher, clock: Clock) -> None:
        self._launcher = launcher
        self._clock = clock

    async def probe(self, replica: Replica, template: LaunchTemplate) -> ProbeResult:
        del template
        self._launcher.settle()
        process = self._at(replica)
        now = self._clock.now()
        if process is None or now - process.started_at < process.behaviour.load:
            return ProbeResult(verdict=ProbeVerdict.STARTING, detail="connection refused")
        if process.hung:
            return ProbeResult(verdict=ProbeVerdict.FAILED, detail="no token within the deadline")
        if process.asleep:
            return ProbeResult(verdict=ProbeVerdict.ASLEEP, detail="is sleeping")
        if not process.up(now):
            return ProbeResult(verdict=ProbeVerdict.STARTING, detail="waking")
        return ProbeResult(verdict=ProbeVerdict.PASSED, detail="one token")

    async def sleep(self, replica: Replica) -> bool:
        process = self._at(replica)
        if process is None or process.hung or process.behaviour.refuses_sleep:
            return False
        process.asleep = True
        return True

    async def wake(self, replica: Replica) -> bool:
        process = self._at(replica)
        if process is None or process.hung:
            return False
        if process.asleep:
            process.asleep = False
            process.awake_at = self._clock.now() + process.behaviour.wake
        return True

    def _at(self, replica: Replica) -> FakeProcess | None:
        process = self._launcher.processes.get(replica.name)
        return process if process is not None and process.alive and process.spec.port == replica.port else None


class FakeTelemetry:
    """Implements `controlplane.domain.ports.Telemetry`: what a scrape of the fake processes would have left."""

    def __init__(self, launcher: FakeLauncher, clock: Clock) -> None:
        self._launcher = launcher
        self._clock = clock
        self.out = False
        """True: no scrape succeeds."""
        self.busy: dict[ReplicaName, int] = {}
        """Requests running by replica; what is absent is idle."""
        self.gateway: Reading[GatewaySample] = Missing("no gateway in this test")

    def snapshot(self) -> TelemetrySnapshot:
        now = self._clock.now()
        return TelemetrySnapshot(
            at=now,
            engines={name: self._reading(name, now) for name in self._launcher.processes},
            gateway=self.gateway,
        )

    def _reading(self, name: ReplicaName, now: datetime) -> Reading[EngineSample]:
        process = self._launcher.processes[name]
        if self.out:
            return Missing("scrapes fail")
        if not process.alive or now - process.started_at < process.behaviour.load:
            return Missing("connection refused")
        served_s = 0.0 if process.hung else (now - process.started_at).total_seconds()
        return Fresh(_sample(process, now, running=self.busy.get(name, 0), tokens=100.0 * served_s))


def _sample(process: FakeProcess, now: datetime, *, running: int, tokens: float) -> EngineSample:
    return EngineSample(
        at=now,
        process_start_s=process.started_at.timestamp(),
        running=running,
        waiting=0,
        kv_usage=0.1,
        sleeping=process.asleep,
        prompt_tokens=0.0,
        generation_tokens=tokens if running else 0.0,
        requests_succeeded=0.0,
        requests_failed=0.0,
        preemptions=0.0,
        ttft=_NO_LATENCIES,
        inter_token=_NO_LATENCIES,
        end_to_end=_NO_LATENCIES,
    )
