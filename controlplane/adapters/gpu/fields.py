"""GPU metrics under DCGM's names, in both spellings.

DCGM 4.6 renamed its fields, and since 4.9 (DCGM 4.7) the exporter ships the new names, eleven of them in base units: a
ratio instead of percent, bytes instead of MiB, hertz instead of MHz, joules instead of millijoules. Both are written,
both are read. Sources: NVIDIA DCGM field identifiers, dcgm-exporter `etc/default-counters.csv`, release notes of 4.9.0.
"""

from dataclasses import dataclass
from typing import Final

from controlplane.kernel.units import MIB

_PERCENT: Final = 100.0
_MEGA: Final = 1e6
_MILLI_PER_UNIT: Final = 1e3

PREFIX: Final = "DCGM_FI_DEV_"

GAUGE: Final = "gauge"
COUNTER: Final = "counter"


@dataclass(frozen=True, slots=True)
class Spelling:
    name: str
    factor: float = 1.0
    """Exported number = our number (the unit in the attribute's name) times this."""


@dataclass(frozen=True, slots=True)
class GpuField:
    attribute: str
    """Of GpuSample; memory's `free` and `reserved` are ours only here."""
    kind: str
    help: str
    spellings: tuple[Spelling, ...]
    """The one to believe first, first."""


def _field(attribute: str, kind: str, text: str, *spellings: tuple[str, float]) -> GpuField:
    return GpuField(attribute, kind, text, tuple(Spelling(PREFIX + name, factor) for name, factor in spellings))


RATIO_OR_PERCENT: Final = f"{PREFIX}GPU_UTIL_RATIO"
"""0..1 from DCGM 4.7 on (field 1613), but an alias of the percentage in 4.6 (field 203): above 1 it is percent."""

FIELDS: Final = (
    _field("utilization", GAUGE, "GPU utilization.", ("GPU_UTIL", _PERCENT), ("GPU_UTIL_RATIO", 1.0)),
    _field("memory_used_bytes", GAUGE, "Framebuffer memory used.", ("FB_USED_BYTES", 1.0), ("FB_USED", 1 / MIB)),
    _field("memory_free_bytes", GAUGE, "Framebuffer memory free.", ("FB_FREE_BYTES", 1.0), ("FB_FREE", 1 / MIB)),
    _field(
        "memory_reserved_bytes",
        GAUGE,
        "Framebuffer memory reserved.",
        ("FB_RESERVED_BYTES", 1.0),
        ("FB_RESERVED", 1 / MIB),
    ),
    _field("memory_total_bytes", GAUGE, "Framebuffer memory.", ("FB_CAPACITY_BYTES", 1.0), ("FB_TOTAL", 1 / MIB)),
    _field("power_w", GAUGE, "Power draw of the board.", ("BOARD_POWER_WATTS", 1.0), ("POWER_USAGE", 1.0)),
    _field("temperature_c", GAUGE, "GPU temperature.", ("GPU_TEMP_CELSIUS", 1.0), ("GPU_TEMP", 1.0)),
    _field("memory_temperature_c", GAUGE, "Memory temperature.", ("MEMORY_TEMP_CELSIUS", 1.0), ("MEMORY_TEMP", 1.0)),
    _field("sm_clock_mhz", GAUGE, "SM clock frequency.", ("SM_CLOCK_HERTZ", _MEGA), ("SM_CLOCK", 1.0)),
    _field(
        "energy_j",
        COUNTER,
        "Energy since the driver was loaded.",
        ("TOTAL_ENERGY_CONSUMPTION", _MILLI_PER_UNIT),
        ("GPU_ENERGY_JOULES_TOTAL", 1.0),
    ),
    _field("xid_last", GAUGE, "The last Xid, 0: none.", ("XID_ERROR", 1.0), ("XID_ERRORS", 1.0)),
    _field("pcie_replays", COUNTER, "PCIe retries.", ("PCIE_REPLAY_TOTAL", 1.0), ("PCIE_REPLAY_COUNTER", 1.0)),
    _field("ecc_corrected", COUNTER, "Single-bit volatile ECC errors.", ("ECC_SBE_VOL_TOTAL", 1.0)),
    _field("ecc_uncorrected", COUNTER, "Double-bit volatile ECC errors.", ("ECC_DBE_VOL_TOTAL", 1.0)),
    _field(
        "rows_remapped_uncorrected",
        COUNTER,
        "Rows remapped for uncorrectable errors.",
        ("ROW_REMAP_UNCORRECTABLE_TOTAL", 1.0),
        ("UNCORRECTABLE_REMAPPED_ROWS", 1.0),
    ),
    _field(
        "rows_remapped_corrected",
        COUNTER,
        "Rows remapped for correctable errors.",
        ("ROW_REMAP_CORRECTABLE_TOTAL", 1.0),
        ("CORRECTABLE_REMAPPED_ROWS", 1.0),
    ),
    _field(
        "row_remap_failed",
        GAUGE,
        "Whether remapping of rows has failed.",
        ("ROW_REMAP_FAILED", 1.0),
        ("ROW_REMAP_FAILURE", 1.0),
    ),
    _field("row_remap_pending", GAUGE, "Whether a remap waits for a reset.", ("ROW_REMAP_PENDING", 1.0)),
    _field(
        "nvlink_crc_errors",
        COUNTER,
        "NVLink flow-control CRC errors, all links.",
        ("NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", 1.0),
    ),
    _field(
        "nvlink_replay_errors",
        COUNTER,
        "NVLink retries, all links.",
        ("NVLINK_REPLAY_TOTAL", 1.0),
        ("NVLINK_REPLAY_ERROR_COUNT_TOTAL", 1.0),
    ),
    _field(
        "nvlink_recovery_errors",
        COUNTER,
        "NVLink recoveries, all links.",
        ("NVLINK_RECOVERY_TOTAL", 1.0),
        ("NVLINK_RECOVERY_ERROR_COUNT_TOTAL", 1.0),
    ),
)

WHOLE_NUMBERS: Final = frozenset(
    {
        *("memory_used_bytes", "memory_free_bytes", "memory_reserved_bytes", "memory_total_bytes", "xid_last"),
        *("pcie_replays", "ecc_corrected", "ecc_uncorrected", "rows_remapped_uncorrected", "rows_remapped_corrected"),
        *("nvlink_crc_errors", "nvlink_replay_errors", "nvlink_recovery_errors"),
    }
)
FLAGS: Final = frozenset({"row_remap_failed", "row_remap_pending"})

BLANK_FROM: Final = 2.0**47
"""DCGM's blanks (`DCGM_FP64_BLANK` 2**47 and, larger, `DCGM_INT64_BLANK` 2**63 - 16) say "not supported", "no
permission"..., and an exporter may show them as numbers. Nothing of one GPU is as large as 2**47 in these units."""
