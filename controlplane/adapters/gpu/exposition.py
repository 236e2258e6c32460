"""GPU samples as a metrics page, and back. Reads the pages of dcgm-exporter (3.x, 4.x) as well as the node agent's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from controlplane.adapters.gpu.fields import (
    BLANK_FROM,
    FIELDS,
    FLAGS,
    PREFIX,
    RATIO_OR_PERCENT,
    WHOLE_NUMBERS,
    GpuField,
    Spelling,
)
from controlplane.adapters.telemetry.exposition import Series
from controlplane.adapters.telemetry.remembering import RememberingParser
from controlplane.domain.telemetry import GpuSample, Missing, NodeSample

_PERCENT: Final = 100.0
CPU_NAME: Final = "quarterdeck_node_cpu_utilization"
"""DCGM has none of the machine's own; only the node agent tells it."""

# -- writing ----------------------------------------------------------------------------------------------------------


def render(gpus: Sequence[GpuSample], *, hostname: str, cpu_utilization: float | None = None) -> bytes:
    """The page, format 0.0.4; what a source does not tell is left out, as dcgm-exporter does."""
    lines: list[str] = []
    for field in FIELDS:
        rows = [(gpu, value) for gpu in gpus if (value := _told(gpu, field.attribute)) is not None]
        for spelling in field.spellings if rows else ():
            lines.append(f"# HELP {spelling.name} {field.help}")
            lines.append(f"# TYPE {spelling.name} {field.kind}")
            lines.extend(
                f"{spelling.name}{{{_labels(gpu, hostname)}}} {_number(value * spelling.factor)}" for gpu, value in rows
            )
    if cpu_utilization is not None:
        lines.append(f"# HELP {CPU_NAME} Share of all cores' time in use since the last look (0..1).")
        lines.append(f"# TYPE {CPU_NAME} gauge")
        lines.append(f'{CPU_NAME}{{Hostname="{_escape(hostname)}"}} {_number(cpu_utilization)}')
    return ("\n".join(lines) + "\n").encode()


def _told(gpu: GpuSample, attribute: str) -> float | None:
    match attribute:
        case "memory_free_bytes":
            used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
            return None if used is None or total is None else float(total - used)
        case "memory_reserved_bytes":
            return None
        case _:
            value = getattr(gpu, attribute)
            return None if value is None else float(value)


def _labels(gpu: GpuSample, hostname: str) -> str:
    pairs = (
        ("gpu", str(gpu.index)),
        ("UUID", gpu.uuid),
        ("pci_bus_id", gpu.pci_bus_id),
        ("device", f"nvidia{gpu.index}"),
        ("modelName", gpu.model),
        ("Hostname", hostname),
    )
    return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    position: int
    attribute: str
    spelling: Spelling


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: int
    uuid: str
    model: str
    pci_bus_id: str
    columns: tuple[_Column, ...]


@dataclass(frozen=True, slots=True)
class NodeLayout:
    order: tuple[int, ...]
    gpus: tuple[_Gpu, ...]
    tells_cpu: bool = False
    """The last of `order` is the CPUs' share."""

    def sample(self, values: Sequence[float], at: datetime) -> NodeSample | Missing:
        """A number that is NaN or one of DCGM's blanks is None in the sample."""
        busy = values[-1] if self.tells_cpu and math.isfinite(values[-1]) else None
        return NodeSample(at=at, gpus=tuple(_gpu_sample(gpu, values) for gpu in self.gpus), cpu_utilization=busy)


type NodeParser = RememberingParser[NodeSample]


def node_parser() -> NodeParser:
    """A parser of node agents' /metrics bodies, one layout per node's name."""
    return RememberingParser(starting=(PREFIX.encode(), CPU_NAME.encode()), build=build_layout, epoch=lambda _: 0.0)


def build_layout(series: Sequence[Series]) -> NodeLayout | Missing:
    """One GPU per value of the label `gpu`; series of MIG instances (label GPU_I_ID) are not whole GPUs, so skipped."""
    by_gpu: dict[int, dict[str, int]] = {}
    for position, one in enumerate(series):
        gpu = one.labels.get("gpu", "")
        if gpu.isdecimal() and not one.labels.get("GPU_I_ID"):
            by_gpu.setdefault(int(gpu), {}).setdefault(one.name, position)
    order: list[int] = []
    gpus: list[_Gpu] = []
    for index, names in sorted(by_gpu.items()):
        columns: list[_Column] = []
        for field, spelling in _known(names):
            columns.append(_Column(len(order), field.attribute, spelling))
            order.append(names[spelling.name])
        labels = series[next(iter(names.values()))].labels
        identity = (labels.get("UUID", ""), labels.get("modelName", ""), labels.get("pci_bus_id", ""))
        gpus.append(_Gpu(index, *identity, tuple(columns)))
    if not order:
        return Missing(f"no series {PREFIX}* with a label gpu: is this a node agent's or dcgm-exporter's page?")
    cpu = next((position for position, one in enumerate(series) if one.name == CPU_NAME), None)
    if cpu is not None:
        order.append(cpu)
    return NodeLayout(tuple(order), tuple(gpus), tells_cpu=cpu is not None)


def _known(names: Mapping[str, int]) -> Iterator[tuple[GpuField, Spelling]]:
    for field in FIELDS:
        for spelling in field.spellings:
            if spelling.name in names:
                yield field, spelling
                break


def _gpu_sample(gpu: _Gpu, values: Sequence[float]) -> GpuSample:
    told: dict[str, float | None] = {}
    for column in gpu.columns:
        value = values[column.position]
        told[column.attribute] = _internal(value, column.spelling)
    used, free = told.get("memory_used_bytes"), told.pop("memory_free_bytes", None)
    reserved = told.pop("memory_reserved_bytes", None)
    if told.get("memory_total_bytes") is None and used is not None and free is not None:
        told["memory_total_bytes"] = used + free + (reserved or 0.0)
    typed = {attribute: _typed(attribute, value) for attribute, value in told.items()}
    return GpuSample(index=gpu.index, uuid=gpu.uuid, model=gpu.model, pci_bus_id=gpu.pci_bus_id, **{**_UNTOLD, **typed})


_UNTOLD: Final[Mapping[str, None]] = dict.fromkeys(
    ("utilization", "memory_used_bytes", "memory_total_bytes", "power_w", "temperature_c", "xid_last")
)


def _internal(value: float, spelling: Spelling) -> float | None:
    if not math.isfinite(value) or value >= BLANK_FROM:
        return None
    if spelling.name == RATIO_OR_PERCENT and value > 1.0:
        return value / _PERCENT
    return value / spelling.factor


def _typed(attribute: str, value: float | None) -> Any:
    if value is None:
        return None
    if attribute in FLAGS:
        return value != 0.0
    return round(value) if attribute in WHOLE_NUMBERS else value
