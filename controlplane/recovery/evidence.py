"""What a drill proved, as one document: facts that an auditor asks for, and digests that name what was changed.

The document is canonical JSON: sorted keys, two spaces, ASCII, one line end. The same facts give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha3_512
from typing import Final

from controlplane.domain.recovery import Drill, Verdict
from controlplane.recovery.manifest import Manifest

EVIDENCE_FORMAT: Final = "quarterdeck-evidence/1"
EVIDENCE_PREFIX: Final = "evidence/"

type Json = bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """As the dataset declares them, for the recovery point that was drilled."""

    rpo: timedelta
    rto: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Previous:
    """The bundle before this one."""

    key: str
    sequence: int
    sha3_512: str
    """Of its bytes, hexadecimal."""


def evidence_key(drill: str) -> str:
    return f"{EVIDENCE_PREFIX}{drill}.json"


def evidence_of(
    drill: Drill,
    manifest: Manifest | None,
    *,
    objectives: Objectives,
    previous: Previous | None,
    recorded_at: datetime,
    software: str,
) -> Mapping[str, Json]:
    """The unsigned document. `manifest`: None when the drill failed before it was read. `software`: who recorded it."""
    content: Mapping[str, Json] = {
        "checks": [
            {"name": check.name, "sentence": check.sentence, "verdict": check.verdict} for check in drill.checks
        ],
        "clean_up": {"left_over": drill.scratch, "looked_for_and_not_found": drill.clean_proof},
        "drill": _drill(drill, recorded_at, software),
        "objectives": _objectives(drill, objectives),
        "restored": _restored(drill, manifest),
        "times": _times(drill),
        "verdict": {"failure": drill.failure, "passed": passed(drill), "sentence": drill.sentence},
    }
    return {
        "content": content,
        "digests": {section: digest(facts) for section, facts in content.items()},
        "format": EVIDENCE_FORMAT,
        "previous": None if previous is None else {"key": previous.key, "sha3_512": previous.sha3_512},
        "sequence": 1 if previous is None else previous.sequence + 1,
    }


def passed(drill: Drill) -> bool:
    return not drill.failure and not any(check.verdict is Verdict.FAILED for check in drill.checks)


def canonical(document: Json) -> bytes:
    """ValueError for numbers that JSON has not (infinite, not a number)."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def digest(document: Json) -> str:
    return sha3_512(canonical(document)).hexdigest()


def _drill(drill: Drill, recorded_at: datetime, software: str) -> Json:
    return {
        "asked_at": _time(drill.asked_at),
        "asked_by": drill.asked_by,
        "attempt": drill.attempt,
        "dataset": drill.dataset,
        "id": drill.drill,
        "name": drill.name,
        "recorded_at": _time(recorded_at),
        "selection": drill.selection,
        "software": software,
    }


def _restored(drill: Drill, manifest: Manifest | None) -> Json:
    return {
        "bucket": drill.bucket,
        "copy": None if manifest is None else _copy(manifest),
        "fetched_bytes": drill.fetched_bytes,
        "key_id": drill.key_id,
        "key_purpose": drill.key,
        "plain_bytes": drill.plain_bytes,
        "point": drill.point,
        "storage_classes": sorted(drill.storage_classes),
        "to_time": _time(drill.to_time),
    }


def _copy(manifest: Manifest) -> Json:
    """Its MAC stands for every field, and so for the digests of all its streams and packs."""
    return {
        "consistent_at": _time(manifest.consistent_at),
        "engine": manifest.engine,
        "finished_at": _time(manifest.finished_at),
        "kind": manifest.kind,
        "manifest_mac": manifest.mac,
        "parent": manifest.parent,
        "plain_bytes": manifest.plain_bytes,
        "point": manifest.point,
        "started_at": _time(manifest.started_at),
        "stored_bytes": manifest.stored_bytes,
        "streams": len(manifest.streams),
    }


def _objectives(drill: Drill, objectives: Objectives) -> Json:
    rpo, rto, achieved_rpo = objectives.rpo, objectives.rto, drill.achieved_rpo
    return {
        "achieved_rpo_s": None if achieved_rpo is None else achieved_rpo.total_seconds(),
        "achieved_rto_s": drill.times.rto_s,
        "forecast_rto_s": drill.forecast_s,
        "newest_at": _time(drill.newest_at),
        "rpo_met": None if achieved_rpo is None else achieved_rpo <= rpo,
        "rpo_s": rpo.total_seconds(),
        "rto_met": drill.times.rto_s <= rto.total_seconds(),
        "rto_s": rto.total_seconds(),
    }


def _times(drill: Drill) -> Json:
    times = drill.times
    return {
        "clean_up_s": times.clean_up_s,
        "fetch_and_restore_s": times.fetch_and_restore_s,
        "retrieval_wait_s": times.retrieval_wait_s,
        "start_and_replay_s": times.start_and_replay_s,
        "verify_s": times.verify_s,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
