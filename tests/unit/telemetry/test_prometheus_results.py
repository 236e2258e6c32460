"""What Prometheus's answers mean: joined by source, dated by the oldest part, quoted safely."""

from datetime import UTC, datetime

from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.adapters.telemetry.prometheus import LabelMapping, _join, _selector, _Vector
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName
from controlplane.testing.builders import make_node_spec

TARGET = EngineTarget(
    replica=ReplicaName("qd-chat-0a1b2c3d-0"),
    deployment=DeploymentName("chat"),
    node=NodeName("node-1"),
    address="10.0.0.1",
    port=20000,
    metrics_path="/metrics",
)


def vector(number: str, **labels: str) -> _Vector:
    return _Vector(
        metric={name.replace("name_", "__name__"): value for name, value in labels.items()}, value=(0, number)
    )


def test_a_source_is_as_old_as_its_oldest_series() -> None:
    values = [
        vector("3", name_="vllm:num_requests_running", instance="a:1", engine="0"),
        vector("5", name_="x", instance="b:1"),
    ]
    times = [vector("1767600005", instance="a:1", engine="0"), vector("1767600003.5", instance="a:1", engine="1")]
    joined = _join(values, times, "instance")
    assert set(joined) == {"a:1"}, "a source that nothing dates is not shown"
    measured = joined["a:1"]
    assert measured.at == datetime.fromtimestamp(1767600003.5, UTC)
    (series,) = measured.series
    assert (series.name, series.value) == ("vllm:num_requests_running", 3.0)
    assert series.labels == {"instance": "a:1", "engine": "0"}


def test_matchers_are_quoted() -> None:
    selector = _selector(["b", "a"], [("site", 'we\\st"')])
    assert selector == '{__name__=~"a|b",site="we\\\\st\\""}'


def test_labels_are_mapped_by_template() -> None:
    assert LabelMapping().of_replica(TARGET) == "10.0.0.1:20000"
    assert LabelMapping().of_node(make_node_spec("node-1")) == "node-1"
    mapping = LabelMapping(replica_value="{replica}", node_value="{node}.rack:9400")
    assert mapping.of_replica(TARGET) == "qd-chat-0a1b2c3d-0"
    assert mapping.of_node(make_node_spec("node-1")) == "node-1.rack:9400"
    assert TARGET.url == "http://10.0.0.1:20000/metrics"
