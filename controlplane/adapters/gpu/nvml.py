"""GPUs through NVML, NVIDIA's management library, by its binding `pynvml` (distribution nvidia-ml-py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from controlplane.domain.telemetry import GpuSample
from controlplane.kernel.errors import RetryableError, TerminalError

_PERCENT: Final = 100.0
_MILLI: Final = 1e-3
_NO_XID: Final = 0
_EVENTS_PER_READ_MAX: Final = 256
"""A GPU in trouble can repeat an Xid without end; the rest is taken at the next reading."""


@dataclass(frozen=True, slots=True)
class _Identity:
    uuid: str = ""
    model: str = ""
    pci_bus_id: str = ""


class NvmlGpus:
    """Implements GpuSource on this machine's GPUs. Not for two threads at once (`GpuReader` sees to that).

    What a GPU does not support is None in its sample; a GPU that is lost still has a sample, all None. Xids are those
    seen since the first reading: NVML reports them as events, and keeps none.
    """

    def __init__(self, library: Any = pynvml) -> None:
        """`library`: anything with pynvml's functions."""
        self._nvml = library
        self._ready = False
        self._identities: dict[int, _Identity] = {}
        self._events: Any = None
        self._xids: dict[str, int] = {}

    def read(self) -> Sequence[GpuSample]:
        nvml = self._nvml
        self._start()
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self._ready = False
            raise RetryableError(f"NVML cannot count the GPUs: {error}") from error
        self._drain_events()
        return [self._gpu(index) for index in range(count)]

    def close(self) -> None:
        """Let go of the driver. Reading again starts anew."""
        if self._ready:
            self._ready = False
            self._ask(self._nvml.nvmlShutdown)

    def _start(self) -> None:
        if self._ready:
            return
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
            raise TerminalError(
                f"no NVIDIA driver on this machine ({error}): install the driver, or play GPUs with --simulate"
            ) from error
        except nvml.NVMLError as error:
            raise RetryableError(f"NVML does not start: {error}") from error
        self._ready = True
        self._events = self._ask(nvml.nvmlEventSetCreate)
        for index in range(self._ask(nvml.nvmlDeviceGetCount) or 0):
            self._register(index)

    def _register(self, index: int) -> None:
        """Xid events are not supported everywhere (vGPU, WSL): without them `xid_last` is None."""
        nvml = self._nvml
        handle = self._ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None or self._events is None:
            return
        uuid = self._ask(nvml.nvmlDeviceGetUUID, handle)
        try:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        except nvml.NVMLError:
            return
        if uuid:
            self._xids.setdefault(uuid, _NO_XID)

    def _drain_events(self) -> None:
        nvml = self._nvml
        for _ in range(_EVENTS_PER_READ_MAX if self._events is not None else 0):
            event = self._ask(nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            uuid = self._ask(nvml.nvmlDeviceGetUUID, event.device)
            if uuid and event.eventType == nvml.nvmlEventTypeXidCriticalError:
                self._xids[uuid] = int(event.eventData)

    def _gpu(self, index: int) -> GpuSample:
        nvml, ask = self._nvml, self._ask
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return _lost(index, self._identities.get(index, _Identity()))
        identity = self._identify(index, handle)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        rows = ask(nvml.nvmlDeviceGetRemappedRows, handle)
        fields = self._fields(handle)
        return GpuSample(
            index=index,
            uuid=identity.uuid,
            model=identity.model,
            pci_bus_id=identity.pci_bus_id,
            utilization=None if rates is None else rates.gpu / _PERCENT,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=_scaled(ask(nvml.nvmlDeviceGetPowerUsage, handle)),
            temperature_c=_number(ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)),
            xid_last=self._xids.get(identity.uuid),
            sm_clock_mhz=_number(ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)),
            memory_temperature_c=_number(fields[0]),
            energy_j=_scaled(ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)),
            pcie_replays=ask(nvml.nvmlDeviceGetPcieReplayCounter, handle),
            ecc_corrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            rows_remapped_corrected=None if rows is None else rows[0],
            rows_remapped_uncorrected=None if rows is None else rows[1],
            row_remap_pending=None if rows is None else bool(rows[2]),
            row_remap_failed=None if rows is None else bool(rows[3]),
            nvlink_crc_errors=fields[1],
            nvlink_replay_errors=fields[2],
            nvlink_recovery_errors=fields[3],
        )

    def _identify(self, index: int, handle: Any) -> _Identity:
        """Asked anew each time: after a hot swap or a reset the index may name another GPU."""
        nvml, ask = self._nvml, self._ask
        pci = ask(nvml.nvmlDeviceGetPciInfo, handle)
        identity = _Identity(
            uuid=_text(ask(nvml.nvmlDeviceGetUUID, handle)),
            model=_text(ask(nvml.nvmlDeviceGetName, handle)),
            pci_bus_id="" if pci is None else _text(pci.busId),
        )
        self._identities[index] = identity
        return identity

    def _ecc(self, handle: Any, kind: int) -> int | None:
        count = self._ask(self._nvml.nvmlDeviceGetTotalEccErrors, handle, kind, self._nvml.NVML_VOLATILE_ECC)
        return None if count is None else int(count)

    def _fields(self, handle: Any) -> list[int | None]:
        """Memory temperature, then NVLink CRC, replay and recovery errors over all links."""
        nvml = self._nvml
        wanted = (
            nvml.NVML_FI_DEV_MEMORY_TEMP,
            nvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
            nvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            nvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        )
        values = self._ask(nvml.nvmlDeviceGetFieldValues, handle, wanted)
        if values is None:
            return [None] * len(wanted)
        return [_field_value(nvml, value) for value in values]

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; None where NVML has none: not supported, no permission, no data, GPU lost."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def _lost(index: int, identity: _Identity) -> GpuSample:
    return GpuSample(
        index=index,
        uuid=identity.uuid,
        model=identity.model,
        pci_bus_id=identity.pci_bus_id,
        utilization=None,
        memory_used_bytes=None,
        memory_total_bytes=None,
        power_w=None,
        temperature_c=None,
        xid_last=None,
    )


def _field_value(nvml: Any, field: Any) -> int | None:
    """The member of the union that the value's type names; only the integer ones occur here."""
    if field.nvmlReturn != nvml.NVML_SUCCESS:
        return None
    match field.valueType:
        case nvml.NVML_VALUE_TYPE_UNSIGNED_INT:
            return int(field.value.uiVal)
        case nvml.NVML_VALUE_TYPE_UNSIGNED_LONG:
            return int(field.value.ulVal)
        case nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG:
            return int(field.value.ullVal)
        case nvml.NVML_VALUE_TYPE_SIGNED_INT:
            return int(field.value.siVal)
        case nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG:
            return int(field.value.sllVal)
        case _:
            return None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _scaled(thousandths: Any) -> float | None:
    return None if thousandths is None else float(thousandths) * _MILLI
