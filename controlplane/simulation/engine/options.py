"""The command line: vLLM's own option names where vLLM has the option, --sim-* for what only a simulation has."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final
from zlib import crc32

import orjson

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.units import MIB
from controlplane.simulation.engine.faults import Fault, parse_faults
from controlplane.simulation.engine.scheduler import KV_UNBOUNDED_BLOCKS, SchedulerLimits
from controlplane.simulation.engine.timing import EngineProfile

HOST_DEFAULT: Final = "127.0.0.1"
"""Of the simulation, which is for one machine; launched replicas are given theirs."""
_MODEL_LEN_DEFAULT: Final = 32_768
"""Without --max-model-len; less where the KV cache is smaller. vLLM would take the model's own limit."""

_B200_MEMORY_BYTES: Final = 183_359 * MIB
_WHOLE: Final = re.compile(r"^(\d+(?:\.\d+)?)([kKmMgG]?)$")
_FACTORS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""vLLM's own reading: lower case decimal, upper case binary."""


class Task(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    TRANSCRIBE = "transcribe"
    SPEAK = "speak"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Everything an engine is told, parsed and bounded."""

    model: str
    served_names: tuple[str, ...]
    adapters: tuple[tuple[str, str], ...]
    """LoRA adapters as (served name, path)."""
    host: str
    port: int
    api_key: str | None
    task: Task
    profile: EngineProfile
    limits: SchedulerLimits
    max_model_len: int
    queued_requests_max: int | None
    queued_tokens_max: int | None
    stream_interval: int
    shutdown_timeout_s: float
    sleep_mode: bool
    load_tracking: bool
    gpu_memory_utilization: float
    gpu_memory_bytes: int
    gpu_power_w: float
    embedding_dimensions: int
    speed: float
    cold_start_s: float
    wake_s: float
    seed: int
    gpu_state_dir: Path | None
    faults: Mapping[Fault, float]
    fault_api: bool
    node: str
    gpus: tuple[int, ...]
    replica: str
    ignored: tuple[str, ...]
    """Names of options that were accepted and have no effect here."""

    @property
    def own_seed(self) -> int:
        """Differs between replicas of one deployment, so that they do not all start or fail in step."""
        return self.seed ^ crc32(self.replica.encode())


def parse_options(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> EngineOptions:
    """InvalidError for values that make no sense together; argparse itself exits with 2 on bad syntax."""
    known, rest = option_parser().parse_known_args([_dashed(word) for word in argv])
    unknown_own = [word for word in rest if word.startswith("--sim-")]
    if unknown_own:
        raise InvalidError([Problem(field=unknown_own[0], found="an unknown option", expected="one of --help")])
    model = known.model_flag or known.model
    if not model:
        raise InvalidError([Problem(field="MODEL", found="nothing", expected="a model name as the first argument")])
    profile = _profile(known)
    limits = _limits(known, profile)
    return EngineOptions(
        model=model,
        served_names=tuple(known.served_model_name or (model,)),
        adapters=_adapters(known.lora_modules),
        host=known.host or HOST_DEFAULT,
        port=known.port,
        api_key=known.api_key,
        task=Task(known.sim_task),
        profile=profile,
        limits=limits,
        max_model_len=_max_model_len(known.max_model_len, limits),
        queued_requests_max=known.max_num_queued_reqs,
        queued_tokens_max=known.max_num_queued_tokens,
        stream_interval=known.stream_interval,
        shutdown_timeout_s=known.shutdown_timeout,
        sleep_mode=known.enable_sleep_mode,
        load_tracking=known.enable_server_load_tracking,
        gpu_memory_utilization=known.gpu_memory_utilization,
        gpu_memory_bytes=known.sim_gpu_memory_bytes,
        gpu_power_w=known.sim_gpu_power_watts,
        embedding_dimensions=known.sim_embedding_dimensions,
        speed=known.sim_speed,
        cold_start_s=known.sim_cold_start,
        wake_s=known.sim_wake,
        seed=known.sim_seed,
        gpu_state_dir=known.sim_gpu_state_dir or _folder(environ.get("QUARTERDECK_GPU_STATE_DIR")),
        faults=parse_faults(known.sim_fault),
        fault_api=known.sim_fault_api,
        node=environ.get("QUARTERDECK_NODE", ""),
        gpus=_gpus(environ.get("QUARTERDECK_GPUS", "")),
        replica=environ.get("QUARTERDECK_REPLICA", f"port-{known.port}"),
        ignored=tuple(word.partition("=")[0] for word in rest if word.startswith("-")),
    )


def option_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sim-engine",
        description="An engine that speaks vLLM's HTTP and metrics without a model or a GPU.",
        epilog="Other options of `vllm serve` are accepted and have no effect; they are named at start.",
        allow_abbrev=False,
    )
    _add_vllm_options(parser)
    _add_simulation_options(parser)
    return parser


def _add_vllm_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of vLLM")
    group.add_argument("model", nargs="?", metavar="MODEL")
    group.add_argument("--model", dest="model_flag")
    group.add_argument("--served-model-name", nargs="+", metavar="NAME")
    group.add_argument("--lora-modules", nargs="+", default=(), metavar="NAME=PATH")
    group.add_argument("--host", help=f"address to listen on, {HOST_DEFAULT} without it (vLLM: every address)")
    group.add_argument("--port", type=_whole(low=0, high=65_535), default=8000)
    group.add_argument("--api-key")
    group.add_argument("--max-model-len", type=_whole(low=1))
    group.add_argument("--max-num-seqs", type=_whole(low=1))
    group.add_argument("--max-num-batched-tokens", type=_whole(low=1), default=8192)
    group.add_argument("--max-num-queued-reqs", type=_whole(low=1))
    group.add_argument("--max-num-queued-tokens", type=_whole(low=1))
    group.add_argument("--num-gpu-blocks-override", type=_whole(low=1))
    group.add_argument("--block-size", type=_whole(low=1), default=16)
    group.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--stream-interval", type=_whole(low=1), default=1)
    group.add_argument("--shutdown-timeout", type=_number(low=0.0), default=0.0)
    group.add_argument("--enable-sleep-mode", action="store_true")
    group.add_argument("--enable-server-load-tracking", action="store_true")
    group.add_argument("--gpu-memory-utilization", type=_number(low=0.0, high=1.0), default=0.92)


def _add_simulation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of the simulation")
    group.add_argument(
        "--sim-profile", default="{}", metavar="JSON", help="timing and size, fields of a capacity prior"
    )
    group.add_argument("--sim-speed", type=_number(low=1e-3), default=1.0, help="divides the time of engine steps")
    group.add_argument("--sim-cold-start", type=_number(low=0.0), default=0.0, metavar="S", help="+-10 %%, seeded")
    group.add_argument(
        "--sim-wake", type=_number(low=0.0), default=0.0, metavar="S", help="seconds from asleep to awake"
    )
    group.add_argument("--sim-task", choices=[task.value for task in Task], default=Task.GENERATE.value)
    group.add_argument("--sim-seed", type=int, default=0)
    group.add_argument("--sim-embedding-dimensions", type=_whole(low=1), default=1024)
    group.add_argument(
        "--sim-gpu-state-dir", type=Path, metavar="DIR", help="write the state of the simulated GPUs here"
    )
    group.add_argument("--sim-gpu-memory-bytes", type=_whole(low=1), default=_B200_MEMORY_BYTES, help="of one GPU")
    group.add_argument("--sim-gpu-power-watts", type=_number(low=1.0), default=1000.0, help="of one GPU at full load")
    group.add_argument("--sim-fault", action="append", default=[], metavar="NAME[=VALUE]")
    group.add_argument("--sim-fault-api", action="store_true", help="allow POST /sim/faults")


def _dashed(word: str) -> str:
    """`--max_model_len` becomes `--max-model-len`: vLLM takes both."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


class _whole:  # noqa: N801  # named as argparse shows it in its message
    """A whole number, with vLLM's size suffixes."""

    def __init__(self, *, low: int, high: int = 1 << 62) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        match = _WHOLE.match(text)
        value = int(float(match[1]) * _FACTORS[match[2]]) if match else -1
        if not self._low <= value <= self._high:
            bounds = f">= {self._low}" if self._high == 1 << 62 else f"from {self._low} to {self._high}"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number {bounds}")
        return value


class _number:  # noqa: N801  # as above
    def __init__(self, *, low: float, high: float = float("inf")) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from {self._low:g} to {self._high:g}")
        return value


def _profile(known: argparse.Namespace) -> EngineProfile:
    try:
        mapping = orjson.loads(known.sim_profile)
    except orjson.JSONDecodeError as error:
        raise InvalidError([Problem(field="--sim-profile", found=str(error), expected="a JSON object")]) from None
    if not isinstance(mapping, dict):
        raise InvalidError([Problem(field="--sim-profile", found=known.sim_profile, expected="a JSON object")])
    profile = EngineProfile.from_mapping(mapping)
    if known.max_num_seqs is not None:
        profile = replace(profile, max_num_seqs=known.max_num_seqs)
    return profile


def _limits(known: argparse.Namespace, profile: EngineProfile) -> SchedulerLimits:
    blocks = profile.kv_tokens // known.block_size if profile.kv_tokens else KV_UNBOUNDED_BLOCKS
    if known.max_num_batched_tokens < profile.max_num_seqs:
        found = f"{known.max_num_batched_tokens} with {profile.max_num_seqs} sequences"
        expected = "at least max_num_seqs (vLLM refuses the same)"
        raise InvalidError([Problem(field="--max-num-batched-tokens", found=found, expected=expected)])
    return SchedulerLimits(
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=known.max_num_batched_tokens,
        kv_blocks=known.num_gpu_blocks_override or max(1, blocks),
        block_tokens=known.block_size,
        prefix_caching=known.enable_prefix_caching and profile.kv_tokens > 0,
    )


def _max_model_len(given: int | None, limits: SchedulerLimits) -> int:
    room = limits.kv_blocks * limits.block_tokens
    if given is None:
        return min(_MODEL_LEN_DEFAULT, room)
    if given > room:
        expected = f"at most {room}, the tokens that the KV cache holds (vLLM refuses to start, too)"
        raise InvalidError([Problem(field="--max-model-len", found=str(given), expected=expected)])
    return given


def _adapters(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    adapters: list[tuple[str, str]] = []
    for text in texts:
        name, path = _adapter_of_json(text) if text.startswith("{") else text.partition("=")[::2]
        if not name or not path:
            expected = 'NAME=PATH or {"name": ..., "path": ...}'
            raise InvalidError([Problem(field="--lora-modules", found=repr(text), expected=expected)])
        adapters.append((name, path))
    return tuple(adapters)


def _adapter_of_json(text: str) -> tuple[str, str]:
    """Empty strings for what is not there."""
    try:
        module = orjson.loads(text)
    except orjson.JSONDecodeError:
        return "", ""
    return str(module.get("name", "")), str(module.get("path", ""))


def _folder(text: str | None) -> Path | None:
    return Path(text) if text else None


def _gpus(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        expected = "GPU indices with commas between, as 0,1"
        raise InvalidError([Problem(field="QUARTERDECK_GPUS", found=repr(text), expected=expected)]) from None
