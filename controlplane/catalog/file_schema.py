"""Schemas of the catalog's files, and their translation into the values that the rest works with."""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.catalog.engine import Calibration, EngineCard, ProbeRequest, SleepMode, StartFigures, StopBehaviour
from controlplane.catalog.hf_config import CatalogConfig, shape_from
from controlplane.catalog.model import Commercial, Gpu, Interconnect, Licence, ModelCard, PrecisionOffer
from controlplane.catalog.weights import LINEAR_BITS
from controlplane.domain.deployment import EngineKind, TaskKind
from controlplane.kernel.ids import ModelId
from controlplane.kernel.units import GIB, MIB

type Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9.-]{0,38}[a-z0-9])?$")]
type Positive = Annotated[float, Field(gt=0)]
type Arguments = dict[str, str]

_GIGA = 1e9
_TERA = 1e12


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CatalogFile(_File, ABC):
    """A whole file, whose name is that of its entry."""

    @property
    @abstractmethod
    def name_in_file(self) -> str: ...


class LicenceSection(_File):
    name: str
    commercial: Commercial
    condition: str = ""

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.commercial is not Commercial.YES and not self.condition:
            msg = "a licence that does not simply allow commercial use says its condition"
            raise ValueError(msg)
        return self


class PrecisionSection(_File):
    repo: str | None = None
    """None: the model's own repository."""
    quantize_at_start: bool = False


class ModelFile(CatalogFile):
    """One file of model_catalog/models. `config` has the keys of the model's config.json."""

    id: Name
    title: str
    repo: str
    family: str
    task: TaskKind
    engines: list[EngineKind] = Field(min_length=1)
    parameters: int | None = Field(default=None, gt=0)
    parameters_active: int | None = Field(default=None, gt=0)
    context_tokens: int = Field(ge=0)
    context_extended_tokens: int | None = Field(default=None, gt=0)
    licence: LicenceSection
    precisions: dict[str, PrecisionSection] = Field(min_length=1)
    resident_mib: int = Field(default=0, ge=0)
    served_elsewhere: str = ""
    config: CatalogConfig | None = None
    source: str
    unconfirmed: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _can_be_sized(self) -> Self:
        if (self.config is None) == (self.resident_mib == 0):
            msg = "exactly one of `config` and `resident_mib` says what memory the model takes"
            raise ValueError(msg)
        unknown = [name for name in self.precisions if self.config is not None and name not in LINEAR_BITS]
        if unknown:
            msg = f"unknown precision {unknown[0]}: known are {', '.join(LINEAR_BITS)}"
            raise ValueError(msg)
        if EngineKind.VLLM in self.engines and self.config is None:
            msg = "a model that vLLM serves has a `config`"
            raise ValueError(msg)
        return self

    @property
    def name_in_file(self) -> str:
        return self.id

    def to_card(self) -> ModelCard:
        offers = (
            PrecisionOffer(name=name, repo=offer.repo or self.repo, quantize_at_start=offer.quantize_at_start)
            for name, offer in self.precisions.items()
        )
        licence = self.licence
        return ModelCard(
            id=ModelId(self.id),
            title=self.title,
            repo=self.repo,
            family=self.family,
            task=self.task,
            licence=Licence(name=licence.name, commercial=licence.commercial, condition=licence.condition),
            shape=None if self.config is None else shape_from(self.config),
            precisions=tuple(offers),
            engines=frozenset(self.engines),
            context_tokens=self.context_tokens,
            context_extended_tokens=self.context_extended_tokens,
            parameters=self.parameters,
            parameters_active=self.parameters_active,
            resident_bytes=self.resident_mib * MIB,
            served_elsewhere=self.served_elsewhere,
            source=self.source,
            unconfirmed=tuple(self.unconfirmed),
        )


class HardwareFile(CatalogFile):
    """One file of model_catalog/hardware. Rates are dense peak figures."""

    name: Name
    title: str
    tier: bool = False
    memory_mib: int = Field(gt=0)
    reserved_mib: int = Field(ge=0)
    bandwidth_gb_s: Positive
    flops_tera: dict[Literal["bf16", "fp8", "fp4"], Positive]
    interconnect: Interconnect
    interconnect_gb_s: Positive
    gpus_per_node_max: int = Field(gt=0)
    collective_mib: dict[int, int]
    runtime_mib: int = Field(ge=0)
    max_batched_tokens: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    price_usd_per_hour: Positive
    source: str
    unconfirmed: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_bf16(self) -> Self:
        if "bf16" not in self.flops_tera:
            msg = "flops_tera needs bf16: every GPU of the catalog computes in it"
            raise ValueError(msg)
        return self

    @property
    def name_in_file(self) -> str:
        return self.name

    def to_gpu(self) -> Gpu:
        return Gpu(
            name=self.name,
            title=self.title,
            memory_bytes=self.memory_mib * MIB,
            reserved_bytes=self.reserved_mib * MIB,
            bandwidth_bytes_s=self.bandwidth_gb_s * _GIGA,
            flops={precision: tera * _TERA for precision, tera in self.flops_tera.items()},
            interconnect=self.interconnect,
            interconnect_bytes_s=self.interconnect_gb_s * _GIGA,
            gpus_per_node_max=self.gpus_per_node_max,
            collective_bytes={degree: size * MIB for degree, size in self.collective_mib.items()},
            runtime_bytes=self.runtime_mib * MIB,
            max_batched_tokens=self.max_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            price_usd_per_hour=self.price_usd_per_hour,
            tier=self.tier,
            source=self.source,
            unconfirmed=tuple(self.unconfirmed),
        )


class ProbeSection(_File):
    path: str
    body: str


class SleepSection(_File):
    args: Arguments
    env: Arguments
    sleep_path: str
    wake_path: str
    state_path: str


class StopSection(_File):
    shutdown_timeout_s: Positive
    drain_deadline_s: Positive
    stop_deadline_s: Positive
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.stop_deadline_s <= self.shutdown_timeout_s:
            msg = "stop_deadline_s must exceed shutdown_timeout_s: the group is killed after it"
            raise ValueError(msg)
        return self


class StartSection(_File):
    process_s: Positive
    collective_s: Positive
    load_gib_s: Positive
    compile_s_per_layer: Positive
    graphs_s_per_layer: Positive
    wake_fixed_s: Positive
    wake_gib_s: Positive
    deadline_factor: Positive
    deadline_min_s: Positive


class CalibrationRow(_File):
    """Milliseconds: step a + b B + c B ctx, prefill p0 + p1 n + p2 n^2."""

    models: list[Name]
    precision: str
    tp: int = Field(gt=0)
    gpu: Name
    a: Positive
    b: Positive
    c: Positive
    p0: Positive
    p1: Positive
    p2: float = Field(default=0.0, ge=0)

    def to_calibration(self) -> Calibration:
        return Calibration(
            models=frozenset(self.models),
            precision=self.precision,
            tensor_parallel=self.tp,
            gpu=self.gpu,
            step_base_ms=self.a,
            step_per_seq_ms=self.b,
            step_per_context_token_ms=self.c,
            prefill_base_ms=self.p0,
            prefill_per_token_ms=self.p1,
            prefill_per_token2_ms=self.p2,
        )


class EngineFile(CatalogFile):
    """One file of model_catalog/engines."""

    kind: EngineKind
    version: str
    program: list[str] = Field(min_length=1)
    options: dict[str, str]
    known_options: list[str] = Field(default_factory=list)
    known_options_of: str = ""
    args: Arguments
    task_args: dict[TaskKind, Arguments]
    env: Arguments
    health_path: str
    metrics_path: str
    probes: dict[TaskKind, ProbeSection]
    sleep: SleepSection
    stop: StopSection
    start: StartSection
    block_tokens: int = Field(gt=0)
    metrics: dict[str, str]
    metrics_gone: list[str]
    calibrations: list[CalibrationRow] = Field(default_factory=list)
    source: str

    @property
    def name_in_file(self) -> str:
        return self.kind.value

    def to_card(self) -> EngineCard:
        return EngineCard(
            kind=self.kind,
            version=self.version,
            program=tuple(self.program),
            options=self.options,
            known_options=frozenset(self.known_options),
            known_options_of=self.known_options_of,
            args=tuple(self.args.items()),
            task_args={task: tuple(args.items()) for task, args in self.task_args.items()},
            env=tuple(self.env.items()),
            health_path=self.health_path,
            metrics_path=self.metrics_path,
            probes={task: ProbeRequest(path=probe.path, body=probe.body) for task, probe in self.probes.items()},
            sleep=SleepMode(
                args=tuple(self.sleep.args.items()),
                env=tuple(self.sleep.env.items()),
                sleep_path=self.sleep.sleep_path,
                wake_path=self.sleep.wake_path,
                state_path=self.sleep.state_path,
            ),
            stop=StopBehaviour(
                shutdown_timeout=timedelta(seconds=self.stop.shutdown_timeout_s),
                drain_deadline=timedelta(seconds=self.stop.drain_deadline_s),
                stop_deadline=timedelta(seconds=self.stop.stop_deadline_s),
                notes=tuple(self.stop.notes),
            ),
            start=_start_figures(self.start),
            metrics=self.metrics,
            metrics_gone=tuple(self.metrics_gone),
            block_tokens=self.block_tokens,
            calibrations=tuple(row.to_calibration() for row in self.calibrations),
            source=self.source,
        )


def _start_figures(section: StartSection) -> StartFigures:
    return StartFigures(
        process_s=section.process_s,
        collective_s=section.collective_s,
        load_bytes_s=section.load_gib_s * GIB,
        compile_s_per_layer=section.compile_s_per_layer,
        graphs_s_per_layer=section.graphs_s_per_layer,
        wake_fixed_s=section.wake_fixed_s,
        wake_bytes_s=section.wake_gib_s * GIB,
        deadline_factor=section.deadline_factor,
        deadline_min=timedelta(seconds=section.deadline_min_s),
    )
