"""What the catalog says of an engine: how to start, probe, drain and stop it, and what it is expected to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from controlplane.domain.deployment import EngineKind, TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """The smallest real request of a task. `{model}` in the body is the served name."""

    path: str
    body: str
    """JSON text, or a multipart description for transcriptions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepMode:
    args: tuple[tuple[str, str], ...]
    env: tuple[tuple[str, str], ...]
    sleep_path: str
    wake_path: str
    state_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopBehaviour:
    """How a replica leaves, in the order: out of the gateway, in-flight to zero, SIGTERM, again, kill the group."""

    shutdown_timeout: timedelta
    """Given to the engine: how long it lets in-flight requests finish after SIGTERM."""
    drain_deadline: timedelta
    stop_deadline: timedelta
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFigures:
    """Parts of a cold start, for the prior. Source of each in the engine's file."""

    process_s: float
    """Process, imports, CUDA."""
    collective_s: float
    """NCCL and peer checks, with more than one GPU."""
    load_bytes_s: float
    """Weights from local storage into all GPUs of a replica together."""
    compile_s_per_layer: float
    graphs_s_per_layer: float
    wake_fixed_s: float
    wake_bytes_s: float
    """Weights from host memory into one GPU."""
    deadline_factor: float
    """Start deadline as a multiple of the expected cold start."""
    deadline_min: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measured coefficients of one model, precision, degree and GPU, in milliseconds as published."""

    models: frozenset[str]
    precision: str
    tensor_parallel: int
    gpu: str
    step_base_ms: float
    step_per_seq_ms: float
    step_per_context_token_ms: float
    prefill_base_ms: float
    prefill_per_token_ms: float
    prefill_per_token2_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    kind: EngineKind
    version: str
    program: tuple[str, ...]
    options: Mapping[str, str]
    """From a field of the plan to the engine's option, without dashes."""
    args: tuple[tuple[str, str], ...]
    """Always given; an engine's or a deployment's own win."""
    task_args: Mapping[TaskKind, tuple[tuple[str, str], ...]]
    env: tuple[tuple[str, str], ...]
    health_path: str
    metrics_path: str
    probes: Mapping[TaskKind, ProbeRequest]
    sleep: SleepMode
    stop: StopBehaviour
    start: StartFigures
    metrics: Mapping[str, str]
    """From our word to the engine's metric family."""
    metrics_gone: tuple[str, ...]
    """Names that older recipes use and the engine no longer has."""
    block_tokens: int
    """Tokens of one KV block."""
    known_options: frozenset[str] = frozenset()
    """Every option that the engine has in the version `known_options_of`, without dashes; empty: not known."""
    known_options_of: str = ""
    calibrations: tuple[Calibration, ...] = ()
    source: str = ""
