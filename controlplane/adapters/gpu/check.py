"""Is this node fit to serve? A pure verdict over one reading, for people and for Slurm's HealthCheckProgram."""

from collections.abc import Sequence

from controlplane.domain.telemetry import GpuSample


def gpu_problems(gpus: Sequence[GpuSample], *, expected: int | None = None) -> tuple[str, ...]:
    """A sentence for each reason to keep work off the node; empty: fit. `expected`: how many GPUs there should be.

    The reasons are those on which DCGM, gpud and Azure's node checks agree that the GPU must not be used before a reset
    or a repair: a GPU that does not answer, an uncorrected ECC error since the driver was loaded, a row remap that
    failed or waits for a reset. An Xid is not among them: what it asks for depends on its code.
    """
    problems: list[str] = []
    if expected is not None and len(gpus) != expected:
        problems.append(f"found {len(gpus)} GPUs, expected {expected}: look for Xid 79 (fallen off the bus) in dmesg")
    if not gpus and expected is None:
        problems.append("found no GPU: check `nvidia-smi` and that this process may see /dev/nvidia*")
    for gpu in gpus:
        problems.extend(f"GPU {gpu.index} ({gpu.uuid or 'no UUID'}): {problem}" for problem in _problems(gpu))
    return tuple(problems)


def _problems(gpu: GpuSample) -> list[str]:
    if gpu.memory_total_bytes is None and gpu.temperature_c is None:
        return ["does not answer; reset it or reboot the node"]
    found: list[str] = []
    if gpu.ecc_uncorrected:
        found.append(f"{gpu.ecc_uncorrected} uncorrected ECC errors since the driver was loaded; reset it")
    if gpu.row_remap_failed:
        found.append("a row remap failed; the GPU needs replacement")
    if gpu.row_remap_pending:
        found.append("a row remap waits for a reset; drain the node and reset the GPU")
    return found
