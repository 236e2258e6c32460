"""What a simulated engine shows of its GPUs: a small file per GPU, read by the node agent's simulated GPU source.

Linear models, made to look plausible and to move with the load, not to predict: power goes from idle to full with
utilization, temperature with power, memory is the share that vLLM reserves at start.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from controlplane.kernel.units import GIB

_IDLE_POWER_SHARE: Final = 0.14
"""An idle B200 with memory in use draws about 140 of its 1000 W."""
_COOLANT_C: Final = 30.0
_RISE_AT_FULL_C: Final = 42.0
_SLEEPING_BYTES: Final = 2 * GIB
"""The CUDA context and NCCL buffers that vLLM's sleep mode cannot give back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoad:
    utilization: float
    """0..1, of the last second."""
    memory_share: float
    """0..1 of what the engine reserves when it is awake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFiles:
    """Where and for which GPUs an engine writes, and what those GPUs are."""

    directory: Path
    node: str
    gpus: Sequence[int]
    replica: str
    memory_total_bytes: int
    memory_utilization: float
    power_full_w: float

    def write(self, load: GpuLoad, *, pid: int) -> None:
        """Replace each file in one step; a reader sees the old or the new one. OSError as the file system says."""
        self.directory.mkdir(parents=True, exist_ok=True)
        body = orjson.dumps(self.reading(load, pid=pid, at=time.time()))
        for path in self._paths():
            fresh = path.with_suffix(f".{pid}.new")
            fresh.write_bytes(body)
            fresh.replace(path)

    def remove(self) -> None:
        for path in self._paths():
            path.unlink(missing_ok=True)

    def reading(self, load: GpuLoad, *, pid: int, at: float) -> dict[str, object]:
        power_share = _IDLE_POWER_SHARE + (1.0 - _IDLE_POWER_SHARE) * load.utilization
        reserved = self.memory_total_bytes * self.memory_utilization
        kept = min(_SLEEPING_BYTES, reserved)
        return {
            "at": at,
            "pid": pid,
            "replica": self.replica,
            "utilization": round(load.utilization, 4),
            "memory_used_bytes": int(kept + (reserved - kept) * load.memory_share),
            "memory_total_bytes": self.memory_total_bytes,
            "power_w": round(power_share * self.power_full_w, 1),
            "temperature_c": round(_COOLANT_C + _RISE_AT_FULL_C * power_share, 1),
        }

    def _paths(self) -> list[Path]:
        return [self.directory / f"{self.node}.{gpu}.json" for gpu in self.gpus]
