from dataclasses import replace
from datetime import timedelta

from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.domain.telemetry import Fresh, Histogram, Missing, TelemetrySnapshot
from controlplane.kernel.ids import DeploymentName
from controlplane.metering.slo import WINDOW, SloMeter
from controlplane.testing.builders import make_replica
from controlplane.testing.effects import START
from controlplane.testing.telemetry import make_engine_sample

_REPLICA = make_replica()
_CHAT = DeploymentName("chat")
_SLO = Slo(ttft=LatencyTarget(percentile=0.9, limit=timedelta(milliseconds=500)))


def _snapshot(seconds: float, quick: float, slow: float) -> TelemetrySnapshot:
    """So many requests within 0.5 s and so many above, since the engine started."""
    ttft = Histogram((0.5, 1.0, float("inf")), (quick, quick + slow, quick + slow), 0.1 * quick + 0.7 * slow)
    at = START + timedelta(seconds=seconds)
    sample = replace(make_engine_sample(), at=at, ttft=ttft)
    return TelemetrySnapshot(at=at, engines={_REPLICA.name: Fresh(sample)})


def test_only_what_was_served_since_the_last_look_counts() -> None:
    meter = SloMeter()
    meter.observe(_snapshot(0, quick=1000, slow=1000), [_REPLICA])
    assert meter.standing(_CHAT, _SLO, START) is None
    meter.observe(_snapshot(1, quick=1030, slow=1010), [_REPLICA])
    standing = meter.standing(_CHAT, _SLO, START + timedelta(seconds=1))
    assert standing is not None
    assert (standing.met_at_least, standing.met_at_most, standing.observations) == (0.75, 0.75, 40)
    assert standing.objective == 0.9


def test_a_window_without_requests_says_nothing() -> None:
    meter = SloMeter()
    meter.observe(_snapshot(0, quick=0, slow=0), [_REPLICA])
    meter.observe(_snapshot(1, quick=10, slow=0), [_REPLICA])
    later = START + WINDOW + timedelta(seconds=5)
    assert meter.standing(_CHAT, _SLO, later) is None


def test_a_gap_in_the_readings_loses_nothing() -> None:
    meter = SloMeter()
    meter.observe(_snapshot(0, quick=0, slow=0), [_REPLICA])
    blind = TelemetrySnapshot(at=START + timedelta(seconds=1), engines={_REPLICA.name: Missing("timeout")})
    meter.observe(blind, [_REPLICA])
    meter.observe(_snapshot(2, quick=10, slow=0), [_REPLICA])
    standing = meter.standing(_CHAT, _SLO, START + timedelta(seconds=2))
    assert standing is not None
    assert standing.observations == 10
