"""The numbers of the page on object storage are those of the program."""

from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.objectstore.s3 import READ_TRIES_MAX, TRIES_MAX
from controlplane.adapters.objectstore.weed import ELECTION_TIMEOUT, MEMORY_MAX_BYTES, VOLUME_MAX_MB
from controlplane.domain.dataset import RetrievalTier, StorageClass
from controlplane.kernel.units import KIB, MIB
from controlplane.recovery.bucket import ABORT_UPLOADS_DAYS, IA_AFTER_DAYS_MIN, NONCURRENT_DAYS, TRANSITION_BYTES_MIN
from controlplane.recovery.classes import CLASS_FACTS, retrieval_wait

PAGE = " ".join((Path(__file__).parents[3] / "docs" / "object-storage.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "sentence",
    [
        f"old versions go after {NONCURRENT_DAYS} days",
        f"aborted after {ABORT_UPLOADS_DAYS} days",
        f"keep {IA_AFTER_DAYS_MIN} days before it",
        f"Only objects above {TRANSITION_BYTES_MIN // MIB} MiB move",
        f"tried {TRIES_MAX} times at most, a body that breaks off is read {READ_TRIES_MAX} times",
        f"closed at {VOLUME_MAX_MB // 1024} GiB",
        f"runtime is {MEMORY_MAX_BYTES // MIB} MiB",
        f"set to {ELECTION_TIMEOUT.removesuffix('ms')} ms",
    ],
)
def test_its_numbers(sentence: str) -> None:
    assert sentence in PAGE


@pytest.mark.parametrize("storage_class", [StorageClass.GLACIER_IR, StorageClass.GLACIER, StorageClass.DEEP_ARCHIVE])
def test_its_table_of_archives(storage_class: StorageClass) -> None:
    facts = CLASS_FACTS[storage_class]
    row = PAGE.split(f"| {storage_class} |")[1].split("| |")[0].split(" | ")
    assert f"{facts.minimum // timedelta(days=1)} days" in PAGE.split(f"| {storage_class} |")[1][:160]
    for tier, column in ((RetrievalTier.STANDARD, 1), (RetrievalTier.BULK, 2)):
        wait = retrieval_wait(storage_class, tier)
        if wait:
            assert f"{wait // timedelta(hours=1)} hours" in row[column]
    if storage_class is StorageClass.GLACIER:
        assert facts.standard_overhead_bytes + facts.archive_overhead_bytes == 40 * KIB
