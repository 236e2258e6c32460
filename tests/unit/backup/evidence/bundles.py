"""A drill that passed, and bundles of its kind."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha3_512
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey

from controlplane.adapters.evidence import EvidenceSigner
from controlplane.domain.dataset import DrillSelection, KeyPurpose, StorageClass
from controlplane.domain.recovery import CheckOutcome, Drill, DrillPhase, DrillTimes, Verdict
from controlplane.kernel.ids import BucketName
from controlplane.recovery.evidence import Objectives, Previous, evidence_key, evidence_of
from controlplane.recovery.manifest import Manifest
from controlplane.testing.effects import START
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.copies import DATASET, POINT, write_copy

OBJECTIVES: Final = Objectives(rpo=timedelta(seconds=5), rto=timedelta(minutes=30))
SOFTWARE: Final = "quarterdeck 0.1.0"


def make_signer(seed: int = 1) -> EvidenceSigner:
    return EvidenceSigner(MLDSA87PrivateKey.from_seed_bytes(bytes([seed]) * 32))


def make_drill(drill: str = "drill-1") -> Drill:
    return Drill(
        drill=drill,
        name="nightly",
        dataset=DATASET,
        selection=DrillSelection.LATEST,
        key=KeyPurpose.SITE,
        bucket=BucketName("main"),
        phase=DrillPhase.RECORDING,
        phase_since=START,
        asked_at=START,
        asked_by="schedule",
        point=POINT,
        key_id="site:0a1b2c3d",
        storage_classes=(StorageClass.STANDARD,),
        fetched_bytes=1000,
        plain_bytes=4000,
        forecast_s=12.5,
        times=DrillTimes(fetch_and_restore_s=4.7, start_and_replay_s=1.25, verify_s=2.0, clean_up_s=0.1),
        newest_at=START - timedelta(seconds=1),
        achieved_rpo=timedelta(seconds=1),
        checks=(CheckOutcome(name="rows", verdict=Verdict.PASSED, sentence="found 20 rows, expected 20"),),
        clean_proof=("the folder of the restored copy", "processes in it"),
        sentence="restored and verified; “quoted” and naïve",
    )


def make_manifest() -> Manifest:
    return replace(write_copy(MemoryBucket()), mac="ab" * 32)


def make_bundles(count: int, signer: EvidenceSigner) -> Sequence[tuple[str, bytes]]:
    """A chain, oldest first."""
    manifest, bundles = make_manifest(), list[tuple[str, bytes]]()
    for number in range(1, count + 1):
        previous = None
        if bundles:
            key, before = bundles[-1]
            previous = Previous(key=key, sequence=number - 1, sha3_512=sha3_512(before).hexdigest())
        document = evidence_of(
            make_drill(f"drill-{number}"),
            manifest,
            objectives=OBJECTIVES,
            previous=previous,
            recorded_at=START + timedelta(days=number),
            software=SOFTWARE,
        )
        bundles.append((evidence_key(f"drill-{number}"), signer.sign(document)))
    return bundles
