"""GPU pages: what is written reads back the same, and dcgm-exporter's pages of old and new read alike."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from controlplane.adapters.gpu.exposition import node_parser, render
from controlplane.domain.telemetry import GpuSample, Missing, NodeSample
from controlplane.testing.effects import START
from controlplane.testing.telemetry import make_gpu_sample

_LABELS = 'gpu="0",UUID="GPU-1",pci_bus_id="00000000:18:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3"'
OLD = f"""# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).
# TYPE DCGM_FI_DEV_SM_CLOCK gauge
DCGM_FI_DEV_SM_CLOCK{{{_LABELS}}} 1980
DCGM_FI_DEV_MEMORY_TEMP{{{_LABELS}}} 9223372036854775794
DCGM_FI_DEV_GPU_TEMP{{{_LABELS}}} 45
DCGM_FI_DEV_POWER_USAGE{{{_LABELS}}} 310.5
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{_LABELS}}} 5000
DCGM_FI_DEV_GPU_UTIL{{{_LABELS}}} 87
DCGM_FI_DEV_XID_ERRORS{{{_LABELS}}} 0
DCGM_FI_DEV_FB_FREE{{{_LABELS}}} 1000
DCGM_FI_DEV_FB_USED{{{_LABELS}}} 80000
DCGM_FI_DEV_FB_RESERVED{{{_LABELS}}} 559
DCGM_FI_DEV_ROW_REMAP_FAILURE{{{_LABELS}}} 1
""".encode()
"""As dcgm-exporter 3.x and 4.x write it by default."""

NEW = f"""DCGM_FI_DEV_SM_CLOCK_HERTZ{{{_LABELS}}} 1980000000
DCGM_FI_DEV_GPU_TEMP_CELSIUS{{{_LABELS}}} 45
DCGM_FI_DEV_BOARD_POWER_WATTS{{{_LABELS}}} 310.5
DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL{{{_LABELS}}} 5
DCGM_FI_DEV_GPU_UTIL_RATIO{{{_LABELS}}} 0.87
DCGM_FI_DEV_XID_ERROR{{{_LABELS}}} 0
DCGM_FI_DEV_FB_FREE_BYTES{{{_LABELS}}} 1048576000
DCGM_FI_DEV_FB_USED_BYTES{{{_LABELS}}} 83886080000
DCGM_FI_DEV_FB_CAPACITY_BYTES{{{_LABELS}}} 85520809984
DCGM_FI_DEV_ROW_REMAP_FAILED{{{_LABELS}}} 1
""".encode()
"""As dcgm-exporter 4.9 does."""


def gpus(body: bytes) -> tuple[GpuSample, ...]:
    sample = node_parser().parse("node", body, START)
    assert isinstance(sample, NodeSample), sample
    return sample.gpus


def test_the_old_and_the_new_spelling_say_the_same() -> None:
    (old,), (new,) = gpus(OLD), gpus(NEW)
    assert old == new
    assert (old.uuid, old.model, old.pci_bus_id) == ("GPU-1", "NVIDIA H100 80GB HBM3", "00000000:18:00.0")
    assert (old.utilization, old.sm_clock_mhz, old.energy_j) == (0.87, 1980.0, 5.0)
    assert (old.memory_used_bytes, old.memory_total_bytes) == (83_886_080_000, 85_520_809_984)
    assert old.row_remap_failed is True


def test_blanks_of_dcgm_are_not_numbers() -> None:
    assert gpus(OLD)[0].memory_temperature_c is None
    assert gpus(NEW.replace(b" 310.5", b" 140737488355328"))[0].power_w is None
    assert gpus(NEW.replace(b" 310.5", b" NaN"))[0].power_w is None


def test_a_ratio_above_one_is_the_percentage_of_dcgm_4_6() -> None:
    assert gpus(NEW.replace(b" 0.87", b" 87"))[0].utilization == 0.87


def test_instances_of_mig_are_not_gpus() -> None:
    instance = OLD.replace(b'gpu="0",', b'gpu="0",GPU_I_ID="3",').replace(b" 87\n", b" 11\n")
    assert gpus(instance + OLD)[0].utilization == 0.87


@pytest.mark.parametrize("body", [b"# nothing\n", b'up{job="x"} 1\n', b'DCGM_FI_DEV_GPU_TEMP{UUID="x"} 5\n'])
def test_a_page_without_gpus_is_missing(body: bytes) -> None:
    found = node_parser().parse("node", body, START)
    assert isinstance(found, Missing)
    assert "is this a node agent's or dcgm-exporter's page?" in found.why


def test_a_page_of_a_single_series_is_remembered_too() -> None:
    parser = node_parser()
    for celsius in (40, 41):
        sample = parser.parse("node", f'DCGM_FI_DEV_GPU_TEMP{{gpu="3"}} {celsius}\n'.encode(), START)
        assert isinstance(sample, NodeSample)
        assert (sample.gpus[0].index, sample.gpus[0].temperature_c) == (3, celsius)


counts = st.none() | st.integers(0, 10**9)
quantities = st.none() | st.floats(0, 1e5)


@st.composite
def gpu_samples(draw: st.DrawFn, index: int) -> GpuSample:
    total = draw(st.none() | st.integers(1, 300 * 1024**3))
    return replace(
        make_gpu_sample(index),
        uuid=draw(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)),
        utilization=draw(st.none() | st.floats(0, 1)),
        memory_total_bytes=total,
        memory_used_bytes=None if total is None else draw(st.integers(0, total)),
        power_w=draw(quantities),
        temperature_c=draw(quantities),
        xid_last=draw(counts),
        sm_clock_mhz=draw(quantities),
        energy_j=draw(quantities),
        pcie_replays=draw(counts),
        ecc_corrected=draw(counts),
        row_remap_failed=draw(st.none() | st.booleans()),
        nvlink_replay_errors=draw(counts),
    )


@given(gpu_samples(0), gpu_samples(1))
def test_what_is_written_reads_back(first: GpuSample, second: GpuSample) -> None:
    body = render([first, second], hostname="node-1")
    if body == b"\n":
        return
    list(text_string_to_metric_families(body.decode()))
    by_index = {gpu.index: gpu for gpu in gpus(body)}
    for written in (first, second):
        read = by_index.get(written.index)
        if read is None:
            continue
        for field, expected in asdict(written).items():
            found = getattr(read, field)
            assert found == (pytest.approx(expected) if isinstance(expected, float) else expected), field
