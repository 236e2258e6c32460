"""GPU sources: NVML by a library that plays the driver, simulated GPUs by files, and the verdict on both."""

import asyncio
import json
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from controlplane.adapters.gpu.check import gpu_problems
from controlplane.adapters.gpu.nvml import NvmlGpus
from controlplane.adapters.gpu.simulated import GpuStateFolder, SimulatedGpus, simulated_nodes
from controlplane.adapters.gpu.source import GpuReader
from controlplane.domain.telemetry import GpuSample, NodeSample
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.testing.builders import make_node_spec
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.telemetry import make_gpu_sample

GIB = 1024**3


class PlayedNvml:
    """pynvml's functions over GPUs held here; constants and exceptions are pynvml's own."""

    def __init__(self, gpus: int = 2) -> None:
        self.count = gpus
        self.init_error: int | None = None
        self.lost: set[int] = set()
        self.unsupported: set[str] = set()
        self.events: list[tuple[int, int]] = []
        self.shut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    def _check(self, name: str) -> None:
        if name in self.unsupported:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:  # noqa: N802  # the library's name
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut = True

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA B200"

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{handle:02X}:00.0".encode())

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=3 * GIB, total=180 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=42)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 512_250

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return 51

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return 1965

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return 5_000_000

    def nvmlDeviceGetPcieReplayCounter(self, handle: int) -> int:  # noqa: N802
        self._check("pcie")
        return 7

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:  # noqa: N802
        self._check("ecc")
        return 3 if kind == pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED else 0

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, int, int]:  # noqa: N802
        return (1, 2, 0, 0)

    def nvmlDeviceGetFieldValues(self, handle: int, wanted: tuple[int, ...]) -> list[SimpleNamespace]:  # noqa: N802
        good = (pynvml.NVML_SUCCESS, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT)
        bad = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT)
        return [
            SimpleNamespace(
                nvmlReturn=(good if field == pynvml.NVML_FI_DEV_MEMORY_TEMP else bad)[0],
                valueType=good[1],
                value=SimpleNamespace(uiVal=61),
            )
            for field in wanted
        ]

    def nvmlEventSetCreate(self) -> str:  # noqa: N802
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: str) -> None:  # noqa: N802
        self._check("events")

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> SimpleNamespace:  # noqa: N802
        assert timeout_ms == 0, "a reading never waits for events"
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        device, xid = self.events.pop(0)
        return SimpleNamespace(device=device, eventType=pynvml.nvmlEventTypeXidCriticalError, eventData=xid)


def test_nvml_is_read_in_our_units() -> None:
    gpu = NvmlGpus(PlayedNvml()).read()[1]
    assert (gpu.index, gpu.uuid, gpu.model, gpu.pci_bus_id) == (1, "GPU-1", "NVIDIA B200", "00000000:01:00.0")
    assert (gpu.utilization, gpu.memory_used_bytes, gpu.memory_total_bytes) == (0.42, 3 * GIB, 180 * GIB)
    assert (gpu.power_w, gpu.temperature_c, gpu.memory_temperature_c) == (512.25, 51.0, 61.0)
    assert (gpu.sm_clock_mhz, gpu.energy_j, gpu.xid_last) == (1965.0, 5000.0, 0)
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected, gpu.rows_remapped_uncorrected) == (3, 0, 2)
    assert (gpu.row_remap_pending, gpu.row_remap_failed, gpu.nvlink_crc_errors) == (False, False, None)


def test_what_a_gpu_does_not_support_is_none_not_zero() -> None:
    library = PlayedNvml()
    library.unsupported = {"ecc", "pcie", "events"}
    gpu = NvmlGpus(library).read()[0]
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected, gpu.pcie_replays, gpu.xid_last) == (None, None, None, None)
    assert gpu.utilization == 0.42


def test_xids_are_taken_from_events() -> None:
    library = PlayedNvml()
    source = NvmlGpus(library)
    source.read()
    library.events = [(1, 31), (1, 79)]
    assert [gpu.xid_last for gpu in source.read()] == [0, 79]


def test_a_lost_gpu_still_has_its_name() -> None:
    library = PlayedNvml()
    source = NvmlGpus(library)
    source.read()
    library.lost = {1}
    gpu = source.read()[1]
    assert (gpu.uuid, gpu.utilization, gpu.memory_total_bytes) == ("GPU-1", None, None)
    assert gpu_problems([gpu], expected=1) == ("GPU 1 (GPU-1): does not answer; reset it or reboot the node",)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_the_error_says_what_to_do(code: int) -> None:
    library = PlayedNvml()
    library.init_error = code
    with pytest.raises(TerminalError, match="install the driver, or play GPUs with --simulate"):
        NvmlGpus(library).read()


def test_a_driver_that_is_busy_may_answer_later() -> None:
    library = PlayedNvml()
    library.init_error = pynvml.NVML_ERROR_UNKNOWN
    source = NvmlGpus(library)
    with pytest.raises(RetryableError):
        source.read()
    library.init_error = None
    assert len(source.read()) == 2
    source.close()
    assert library.shut


def write_state(folder: Path, node: str, gpu: int, **changes: object) -> None:
    state = {
        "at": START.timestamp(),
        "pid": 4711,
        "replica": "qd-chat-0a1b2c3d-0",
        "utilization": 0.75,
        "memory_used_bytes": 150 * GIB,
        "memory_total_bytes": 179 * GIB,
        "power_w": 812.5,
        "temperature_c": 63.0,
        **changes,
    }
    (folder / f"{node}.{gpu}.json").write_text(json.dumps(state))


def simulated(folder: Path, *, alive: bool = True) -> list[GpuSample]:
    states = GpuStateFolder(folder, FakeClock(), alive=lambda _pid: alive)
    return list(SimulatedGpus(states, node="n1.rack", gpu_model="b200", gpus=2).read())


def test_a_gpu_in_use_shows_what_its_engine_wrote(tmp_path: Path) -> None:
    write_state(tmp_path, "n1.rack", 1)
    idle, busy = simulated(tmp_path)
    assert (busy.utilization, busy.memory_used_bytes, busy.power_w) == (0.75, 150 * GIB, 812.5)
    assert (idle.utilization, idle.memory_used_bytes) == (0.0, 0)
    assert idle.memory_total_bytes == 183_359 * 1024**2
    assert idle.model == "NVIDIA B200"
    assert idle.uuid != busy.uuid
    assert idle.uuid == simulated(tmp_path)[0].uuid


@pytest.mark.parametrize("changes", [{"at": START.timestamp() - 6}, {"utilization": 3.0}, {"surplus": 1}])
def test_old_and_wrong_files_are_idle_gpus(tmp_path: Path, changes: dict[str, object]) -> None:
    write_state(tmp_path, "n1.rack", 0, **changes)
    (tmp_path / "n1.rack.1.json").write_text("{")
    (tmp_path / "notes.json").write_text("{}")
    assert [gpu.utilization for gpu in simulated(tmp_path)] == [0.0, 0.0]


def test_a_dead_process_uses_no_gpu(tmp_path: Path) -> None:
    write_state(tmp_path, "n1.rack", 0)
    assert simulated(tmp_path, alive=False)[0].utilization == 0.0
    assert simulated(tmp_path / "not there yet")[0].utilization == 0.0


def test_many_nodes_are_read_with_one_look(tmp_path: Path) -> None:
    write_state(tmp_path, "node-2", 7)
    specs = [make_node_spec("node-1"), make_node_spec("node-2", gpu_model="of the future")]
    states = GpuStateFolder(tmp_path, FakeClock(), alive=lambda _pid: True)
    readings = simulated_nodes(specs, states, START)
    second = readings[specs[1].name]
    assert isinstance(second, NodeSample)
    assert [gpu.utilization for gpu in second.gpus] == [0.0] * 7 + [0.75]
    assert second.gpus[0].memory_total_bytes is None


def test_fit_and_unfit_gpus() -> None:
    fit = make_gpu_sample()
    assert gpu_problems([fit], expected=1) == ()
    assert "found 1 GPUs, expected 8" in gpu_problems([fit], expected=8)[0]
    assert "found no GPU" in gpu_problems([])[0]
    sick = replace(fit, ecc_uncorrected=2, row_remap_failed=True, row_remap_pending=True, xid_last=13)
    assert [problem.split(": ")[1].split(";")[0] for problem in gpu_problems([sick])] == [
        "2 uncorrected ECC errors since the driver was loaded",
        "a row remap failed",
        "a row remap waits for a reset",
    ]


class HangingGpus:
    """A driver that answers when it is let."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.calls = 0

    def read(self) -> list[GpuSample]:
        self.calls += 1
        self.release.wait(10)
        return [make_gpu_sample()]


async def test_readers_at_the_same_time_share_one_reading() -> None:
    source = HangingGpus()
    reader = GpuReader(source, FakeClock())
    readings = [asyncio.create_task(reader.read()) for _ in range(3)]
    await asyncio.sleep(0)
    source.release.set()
    assert {len((await reading).gpus) for reading in readings} == {1}
    assert source.calls == 1


async def test_a_hanging_driver_costs_one_thread_and_says_so() -> None:
    source, clock = HangingGpus(), FakeClock()
    reader = GpuReader(source, clock, deadline=timedelta(milliseconds=20))
    with pytest.raises(RetryableError, match="did not answer within 20ms"):
        await reader.read()
    clock.jump(timedelta(seconds=9))
    with pytest.raises(RetryableError, match=r"has not answered for 9\.0s; it is not asked again"):
        await reader.read()
    assert source.calls == 1
    source.release.set()
