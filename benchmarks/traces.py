"""The public traces that benchmarks run on: five files, in the folder that QUARTERDECK_TRACES names.

They are not part of the product. Other traces in the shapes of docs/traces.md are read in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import NotFoundError
from controlplane.simulation.trace_columns import Shape

FOLDER: Final = "QUARTERDECK_TRACES"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicTrace:
    file: str
    shape: Shape
    source: str
    licence: str
    series: tuple[str, ...] = ()
    """Models or services of a file that has several, or names its only one."""

    @property
    def names(self) -> tuple[str, ...]:
        """As workloads of it are called."""
        stem = Path(self.file).stem
        return tuple(f"{stem}/{one}" for one in self.series) if self.series else (stem,)


TRACES: Final = (
    PublicTrace(
        file="azure_llm_2023_conv.parquet",
        shape=Shape.REQUESTS,
        source="Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv (Splitwise, ISCA 2024)",
        licence="CC-BY 4.0",
    ),
    PublicTrace(
        file="azure_llm_2023_code.parquet",
        shape=Shape.REQUESTS,
        source="Azure/AzurePublicDataset, AzureLLMInferenceTrace_code (Splitwise, ISCA 2024)",
        licence="CC-BY 4.0",
    ),
    PublicTrace(
        file="mooncake_fast25_synthetic.parquet",
        shape=Shape.REQUESTS,
        source="kvcache-ai/Mooncake, FAST25 release, the authors' own mix",
        licence="Apache-2.0",
    ),
    PublicTrace(
        file="azure_llm_2024_conv_1week_rates.parquet",
        shape=Shape.RATES,
        source="Azure/AzurePublicDataset, 2024 (DynamoLLM, HPCA 2025), digitised from its figures to 2.6 %",
        licence="CC-BY 4.0",
        series=("conv",),
    ),
    PublicTrace(
        file="servegen_rates_10min.parquet",
        shape=Shape.RATES,
        source="alibaba/ServeGen",
        licence="Apache-2.0",
        series=("m-mid", "m-small", "mm-image"),
    ),
)


def traces_folder(environment: Mapping[str, str]) -> Path:
    """Where the files lie. NotFoundError says which are missing, or how to name the folder."""
    told = environment.get(FOLDER, "")
    if not told:
        raise NotFoundError(f"{FOLDER} is not set: name the folder with {', '.join(trace.file for trace in TRACES)}")
    folder = Path(told)
    missing = [trace.file for trace in TRACES if not (folder / trace.file).is_file()]
    if missing:
        raise NotFoundError(f"{FOLDER} names {folder}, which lacks {', '.join(missing)}")
    return folder
