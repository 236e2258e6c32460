"""The CPUs' share: over the time since the last look, on the agent's page and back."""

from collections.abc import Iterator

from controlplane.adapters.cpu import CpuMeter, machine_cpu_times
from controlplane.adapters.gpu.exposition import node_parser, render
from controlplane.domain.telemetry import NodeSample
from controlplane.testing.effects import START
from controlplane.testing.telemetry import make_gpu_sample


def meter(*readings: tuple[float, float]) -> CpuMeter:
    told: Iterator[tuple[float, float]] = iter(readings)
    return CpuMeter(lambda: next(told))


def test_the_share_is_of_the_time_since_the_last_look() -> None:
    made = meter((100.0, 1000.0), (104.0, 1008.0), (104.0, 1016.0))
    assert [made.utilization(), made.utilization()] == [0.5, 0.0]


def test_two_looks_at_once_get_one_answer() -> None:
    made = meter((0.0, 0.0), (6.0, 8.0), (6.1, 8.1), (7.0, 16.0))
    assert [made.utilization(), made.utilization()] == [0.75, 0.75]
    assert made.utilization() == 0.125


def test_nothing_is_said_before_time_has_passed() -> None:
    assert meter((5.0, 10.0), (5.0, 10.0)).utilization() is None


def test_this_machine_tells() -> None:
    busy, total = machine_cpu_times()
    assert 0.0 < busy < total


def test_the_agents_page_carries_it() -> None:
    parser = node_parser()
    gpus = (make_gpu_sample(0), make_gpu_sample(1))
    for share in (0.25, 0.5):
        page = render(gpus, hostname="node-1", cpu_utilization=share)
        sample = parser.parse("node-1", page, START)
        assert isinstance(sample, NodeSample)
        assert (sample.cpu_utilization, len(sample.gpus)) == (share, 2)
    without = parser.parse("node-1", render(gpus, hostname="node-1"), START)
    assert isinstance(without, NodeSample)
    assert without.cpu_utilization is None
