"""Our own page, and that docs/telemetry.md lists all that we read and write."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.adapters.gpu.fields import FIELDS
from controlplane.adapters.recovery_metrics import RecoveryCollector
from controlplane.adapters.selfmetrics import SelfMetrics
from controlplane.adapters.telemetry.engine_layout import WANTED
from controlplane.domain.reason import Reason
from controlplane.testing.builders import make_deployment, make_node, make_replica
from controlplane.testing.effects import FakeClock

DOCUMENT = Path(__file__).parents[3] / "docs" / "telemetry.md"


def values(metrics: SelfMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_what_is_told_is_shown() -> None:
    metrics = SelfMetrics(version="0.1.0")
    metrics.tick("autoscaler", "changed", timedelta(milliseconds=30))
    metrics.stale_claim("replicas")
    metrics.decision("chat", Reason.DEMAND_UP, wanted_before=1, wanted=3)
    metrics.rows([make_deployment(wanted=2)], [make_replica()], [make_node()])
    shown = values(metrics)
    assert shown["quarterdeck_ticks_total", frozenset({("loop", "autoscaler"), ("outcome", "changed")})] == 1
    assert shown["quarterdeck_stale_claims_total", frozenset({("loop", "replicas")})] == 1
    labels = frozenset({("deployment", "chat"), ("reason", "demand_up"), ("direction", "up")})
    assert shown["quarterdeck_decisions_total", labels] == 1
    assert shown["quarterdeck_replicas_target", frozenset({("deployment", "chat")})] == 2
    assert shown["quarterdeck_replicas", frozenset({("deployment", "chat"), ("phase", "starting")})] == 0
    assert shown["quarterdeck_build_info", frozenset({("version", "0.1.0")})] == 1


@pytest.mark.parametrize(("wanted", "direction"), [(1, "down"), (2, "hold"), (3, "up")])
def test_a_decision_has_a_direction(wanted: int, direction: str) -> None:
    metrics = SelfMetrics(version="0.1.0")
    metrics.decision("chat", Reason.PINNED, wanted_before=2, wanted=wanted)
    labels = frozenset({("deployment", "chat"), ("reason", "pinned"), ("direction", direction)})
    assert values(metrics)["quarterdeck_decisions_total", labels] == 1


def test_a_deployment_that_is_gone_has_no_value() -> None:
    metrics = SelfMetrics(version="0.1.0")
    metrics.rows([make_deployment("chat"), make_deployment("code")], [], [])
    metrics.rows([make_deployment("chat")], [], [])
    assert ("quarterdeck_replicas_target", frozenset({("deployment", "code")})) not in values(metrics)


def test_two_control_planes_in_one_process_share_nothing() -> None:
    one, other = SelfMetrics(version="1"), SelfMetrics(version="1")
    one.stale_claim("replicas")
    assert ("quarterdeck_stale_claims_total", frozenset({("loop", "replicas")})) not in values(other)


def test_every_metric_is_documented() -> None:
    written = set(re.findall(r"`([A-Za-z][\w:]+)`", DOCUMENT.read_text()))
    metrics = SelfMetrics(version="1")
    metrics.register(RecoveryCollector(FakeClock()))
    ours = metrics.names()
    families = {re.sub(r"(_bucket|_sum)$", "", name) for name in WANTED}
    spellings = {spelling.name for field in FIELDS for spelling in field.spellings}
    for names in (ours, families, spellings):
        assert not names - written, "add them to docs/telemetry.md"
    invented = {name for name in written if name.startswith(("quarterdeck_", "vllm:", "DCGM_FI_"))}
    totals = {f"{name}_total" for name in ours}
    assert not invented - ours - totals - families - spellings, "docs/telemetry.md lists what does not exist"
