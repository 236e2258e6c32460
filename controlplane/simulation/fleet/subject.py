"""A model on GPUs, from the catalog: what a replica of the simulated fleet is."""

from dataclasses import dataclass
from typing import Final

from controlplane.catalog.files import load_catalog
from controlplane.catalog.model import Catalog
from controlplane.catalog.planning import plan_serving
from controlplane.domain.deployment import CapacityPrior, DeploymentSpec, EngineKind
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec
from controlplane.kernel.ids import DeploymentName, ModelId, NodeName, PoolName, ServedName
from controlplane.simulation.fleet.state import Timing

_NODE_GPUS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One replica's hardware and engine."""

    model: str
    gpu: str
    tensor_parallel: int
    prior: CapacityPrior

    @property
    def name(self) -> str:
        return f"{self.model}/{self.gpu}x{self.tensor_parallel}"

    @property
    def timing(self) -> Timing:
        return Timing.of(self.prior)


def subject_of(
    model: str,
    gpu: str,
    *,
    tensor_parallel: int | None = None,
    precision: str | None = None,
    context_tokens: int | None = None,
    catalog: Catalog | None = None,
) -> Subject:
    """As a site file would plan it; InvalidError names what does not fit and what would."""
    spec = DeploymentSpec(
        name=DeploymentName("simulated"),
        model=ModelId(model),
        served_names=(ServedName("simulated"),),
        replicas_min=1,
        replicas_max=1,
        precision=precision,
        tensor_parallel=tensor_parallel,
        context_tokens=context_tokens,
        accept_license=True,  # nothing is served: whether the weights may be used is not asked
    )
    engine = EngineSpec(name="default", kind=EngineKind.VLLM)
    node = NodeSpec(name=NodeName("simulated"), pool=PoolName("simulated"), gpu_model=gpu, gpus=_NODE_GPUS)
    plan = plan_serving(spec, engine, [node], catalog=catalog or load_catalog())
    return Subject(model=model, gpu=gpu, tensor_parallel=plan.gpus_per_replica, prior=plan.prior)
