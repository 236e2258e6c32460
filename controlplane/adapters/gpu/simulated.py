"""GPUs that simulated engines play: one small file a second per GPU in use, idle values for the rest."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.domain.node import NodeSpec
from controlplane.domain.telemetry import GpuSample, Missing, NodeSample
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import NodeName
from controlplane.kernel.units import MIB

STATE_AGE_MAX: Final = timedelta(seconds=5)
"""Engines write once a second: a file that is older belongs to one that hangs or is gone."""
_STATE_BYTES_MAX: Final = 4096
_UUIDS: Final = uuid.UUID("6a1f8a52-6c3a-5a0e-9d0c-6f1a54a0b7c1")
"""Namespace of simulated GPUs' UUIDs: the same node and index always have the same one."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What nvidia-smi shows of the real one."""

    model: str
    memory_bytes: int
    idle_power_w: float
    idle_clock_mhz: float


_FACTS: Final[Mapping[str, _Facts]] = {
    "b200": _Facts("NVIDIA B200", 183_359 * MIB, 140.0, 120.0),
    "b300": _Facts("NVIDIA B300 SXM6 AC", 275_040 * MIB, 150.0, 120.0),
    "h200": _Facts("NVIDIA H200", 143_771 * MIB, 75.0, 345.0),
    "h100": _Facts("NVIDIA H100 80GB HBM3", 81_559 * MIB, 70.0, 345.0),
    "a100-80": _Facts("NVIDIA A100-SXM4-80GB", 81_920 * MIB, 60.0, 210.0),
    "a100-40": _Facts("NVIDIA A100-SXM4-40GB", 40_960 * MIB, 50.0, 210.0),
    "l40s": _Facts("NVIDIA L40S", 46_068 * MIB, 35.0, 210.0),
    "rtx-4090": _Facts("NVIDIA GeForce RTX 4090", 24_564 * MIB, 20.0, 210.0),
}
_IDLE_TEMPERATURE_C: Final = 30.0
_BUSY_CLOCK_MHZ: Final = 1_965.0

_CPU_IDLE: Final = 0.02
_CPU_SERVING: Final = 0.25
"""CPUs as played: at full load the engines' servers, schedulers and tokenisers keep a quarter of a node's cores busy.
A judgement; the machine that simulates is no measure, since its CPUs also carry the computing of the engines."""


class _State(BaseModel):
    """One file, `<node>.<gpu>.json`, replaced as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float
    pid: int
    replica: str
    utilization: float = Field(ge=0.0, le=1.0)
    memory_used_bytes: int = Field(ge=0)
    memory_total_bytes: int = Field(ge=0)
    power_w: float = Field(ge=0.0)
    temperature_c: float


type States = Mapping[tuple[str, int], _State]


class GpuStateFolder:
    """The folder in which simulated engines say what their GPUs do."""

    def __init__(self, directory: Path, clock: Clock, *, alive: Callable[[int], bool] = psutil.pid_exists) -> None:
        """`alive`: whether a process id still runs."""
        self._directory = directory
        self._clock = clock
        self._alive = alive

    def read(self) -> States:
        """What is in use now. Blocking. Old files, files of dead processes and files that are no state are left out.

        RetryableError when the folder cannot be read; a folder that is not there yet is an empty one.
        """
        now_s = self._clock.now().timestamp()
        try:
            paths = list(self._directory.glob("*.json"))
        except OSError as error:
            raise RetryableError(f"{self._directory} cannot be read: {error}") from error
        found: dict[tuple[str, int], _State] = {}
        for path in paths:
            node, _, gpu = path.stem.rpartition(".")
            state = _load(path) if gpu.isdecimal() else None
            if state is not None and now_s - state.at <= STATE_AGE_MAX.total_seconds() and self._alive(state.pid):
                found[node, int(gpu)] = state
        return found

    def gpus(self, node: str, gpu_model: str, count: int, states: States) -> tuple[GpuSample, ...]:
        """The GPUs of one node: as played where in use, idle elsewhere. `gpu_model`: catalog name."""
        return tuple(_gpu(node, gpu_model, index, states.get((node, index))) for index in range(count))


class SimulatedGpus:
    """Implements GpuSource for one simulated node."""

    def __init__(self, folder: GpuStateFolder, *, node: str, gpu_model: str, gpus: int) -> None:
        self._folder = folder
        self._node = node
        self._gpu_model = gpu_model
        self._gpus = gpus

    def read(self) -> Sequence[GpuSample]:
        return self._folder.gpus(self._node, self._gpu_model, self._gpus, self._folder.read())


def simulated_nodes(
    specs: Sequence[NodeSpec], folder: GpuStateFolder, at: datetime
) -> Mapping[NodeName, NodeSample | Missing]:
    """Every node's reading from one look into the folder. Blocking."""
    try:
        states = folder.read()
    except RetryableError as error:
        return {spec.name: Missing(str(error)) for spec in specs}
    return {spec.name: _node(folder.gpus(spec.name, spec.gpu_model, spec.gpus, states), at) for spec in specs}


def _node(gpus: tuple[GpuSample, ...], at: datetime) -> NodeSample:
    busy = sum(gpu.utilization or 0.0 for gpu in gpus) / max(len(gpus), 1)
    return NodeSample(at=at, gpus=gpus, cpu_utilization=_CPU_IDLE + _CPU_SERVING * busy)


def _load(path: Path) -> _State | None:
    try:
        with path.open("rb") as file:
            return _State.model_validate_json(file.read(_STATE_BYTES_MAX))
    except (OSError, ValidationError):
        # Removed between listing and opening, or not one of ours.
        return None


def _gpu(node: str, gpu_model: str, index: int, state: _State | None) -> GpuSample:
    facts = _FACTS.get(gpu_model)
    total = state.memory_total_bytes if state else None
    if total is None and facts:
        total = facts.memory_bytes
    idle_power = facts.idle_power_w if facts else None
    idle_clock = facts.idle_clock_mhz if facts else None
    return GpuSample(
        index=index,
        uuid=f"GPU-{uuid.uuid5(_UUIDS, f'{node}/{index}')}",
        model=facts.model if facts else gpu_model,
        utilization=state.utilization if state else 0.0,
        memory_used_bytes=state.memory_used_bytes if state else 0,
        memory_total_bytes=total,
        power_w=state.power_w if state else idle_power,
        temperature_c=state.temperature_c if state else _IDLE_TEMPERATURE_C,
        xid_last=0,
        sm_clock_mhz=_BUSY_CLOCK_MHZ if state else idle_clock,
        ecc_corrected=0,
        ecc_uncorrected=0,
        row_remap_failed=False,
        row_remap_pending=False,
    )
