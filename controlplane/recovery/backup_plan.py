"""Whether a backup of a dataset is to begin now, and whether a full copy or an increment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DatasetSpec
from controlplane.domain.recovery import BackupCause, BackupPhase, BackupRun, RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.backoff import wait_after
from controlplane.recovery.classes import coldest, is_archive
from controlplane.recovery.lineage import BrokenChain, Chain, Lineage, lineage_of
from controlplane.recovery.phrases import count_of, moment, span
from controlplane.recovery.rpo import RpoVerdict
from controlplane.recovery.schedule import next_due

CHAIN_MAX: Final = 7
"""Copies of a chain, the full one included: a week of daily increments. Each further one is one more that must be whole
and that a restore has to combine."""
CHAIN_SHARE_MAX: Final = 0.5
"""Once the increments of a chain store so much of what the full copy stores, the next is a full one again."""
RETRY_FIRST: Final = timedelta(minutes=1)
RETRY_MOST: Final = timedelta(hours=1)
RETRY_SHARE_MAX: Final = 0.25
"""Of the RPO: a dataset that may lose an hour is not tried once an hour."""

_ENDED: Final = frozenset({BackupPhase.DONE, BackupPhase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupDecision:
    cause: BackupCause | None
    """None: not now."""
    parent: PointId | None
    """An increment on this one; None: a full copy."""
    sentence: str
    again_at: datetime | None = None
    """When there is something to decide again, if nothing happens before; None: when the running one ends."""

    @property
    def begins(self) -> bool:
        return self.cause is not None


def plan_backup(
    spec: DatasetSpec,
    points: Sequence[RecoveryPoint],
    runs: Sequence[BackupRun],
    verdict: RpoVerdict | None,
    now: datetime,
    *,
    asked_by: str | None = None,
    incremental: bool = False,
) -> BackupDecision:
    """One backup of a dataset at a time; a person's wish comes before the wait after failures, others do not.

    `runs` in any order, of any datasets. `incremental`: the source can copy what changed since a parent.
    """
    own = sorted((run for run in runs if run.dataset == spec.name), key=lambda run: run.asked_at)
    running = next((run for run in own if run.phase not in _ENDED), None)
    if running is not None:
        since = span(max(timedelta(), now - running.asked_at))
        return BackupDecision(cause=None, parent=None, sentence=f"{spec.name}: {running.run} runs since {since}")
    lineage = lineage_of(points, spec.name, spec.buckets[0])
    due_at = next_due(spec.cadence, _last_begun(own, lineage), now)
    cause, why = _cause(spec, verdict, own, due_at, now, asked_by)
    if cause is None:
        return BackupDecision(cause=None, parent=None, sentence=f"{spec.name}: {why}", again_at=due_at)
    ready_at, failures = _ready_at(spec, own)
    if cause is not BackupCause.PERSON and ready_at is not None and ready_at > now:
        sentence = (
            f"{spec.name}: {why}, but the last {count_of(failures, 'try').replace('trys', 'tries')} failed; "
            f"the next at {moment(ready_at)}: {own[-1].sentence or 'no reason was given'}"
        )
        return BackupDecision(cause=None, parent=None, sentence=sentence, again_at=ready_at)
    parent, form = choose_parent(lineage, incremental=incremental)
    return BackupDecision(cause=cause, parent=parent, sentence=f"{spec.name}: {why}; {form}")


def choose_parent(lineage: Lineage, *, incremental: bool) -> tuple[PointId | None, str]:
    """What an increment would be made on, or None for a full copy; and why."""
    if not incremental:
        return None, "a full copy: this source makes no increments"
    newest = lineage.newest_usable
    if newest is None:
        return None, "a full copy: there is none to begin with"
    chain = lineage.chain(newest)
    assert not isinstance(chain, BrokenChain), "a usable point has a whole chain"
    reason = _reason_for_full(chain)
    if reason is not None:
        return None, f"a full copy: {reason}"
    return newest.point, f"an increment on {newest.point}, number {len(chain.links)} of its chain"


def _cause(
    spec: DatasetSpec,
    verdict: RpoVerdict | None,
    own: Sequence[BackupRun],
    due_at: datetime,
    now: datetime,
    asked_by: str | None,
) -> tuple[BackupCause | None, str]:
    if asked_by is not None:
        return BackupCause.PERSON, f"{asked_by} asks for a backup"
    if due_at <= now:
        late = "" if now - due_at < RETRY_FIRST else f", {span(now - due_at)} late"
        return BackupCause.SCHEDULE, f"due by its schedule ({spec.cadence}){late}"
    if verdict is None or not verdict.wants_backup:
        return None, f"next backup at {moment(due_at)}"
    rest = _rest(own)
    done_at = own[-1].phase_since if own else None
    if done_at is not None and own[-1].phase is BackupPhase.DONE and now - done_at < rest:
        return None, f"an extra backup would help, but the last took {span(rest)} and ended {span(now - done_at)} ago"
    return BackupCause.RPO, f"an extra backup: {verdict.sentence.removeprefix(f'{spec.name}: ')}"


def _rest(own: Sequence[BackupRun]) -> timedelta:
    """Between two extra backups at least as long as one takes: the source has other work."""
    return max(timedelta(), own[-1].phase_since - own[-1].asked_at) if own else timedelta()


def _last_begun(own: Sequence[BackupRun], lineage: Lineage) -> datetime | None:
    """When the last good one began, by the runs and, where these were lost, by the bucket."""
    begun = [run.asked_at for run in own if run.phase is BackupPhase.DONE]
    begun += [point.consistent_at for point in lineage.usable[-1:]]
    return max(begun, default=None)


def _ready_at(spec: DatasetSpec, own: Sequence[BackupRun]) -> tuple[datetime | None, int]:
    failures = 0
    for run in reversed(own):
        if run.phase is not BackupPhase.FAILED:
            break
        failures += 1
    if failures == 0:
        return None, 0
    most = max(RETRY_FIRST, min(RETRY_MOST, spec.rpo * RETRY_SHARE_MAX))
    return own[-1].phase_since + wait_after(failures, first=RETRY_FIRST, most=most), failures


def _reason_for_full(chain: Chain) -> str | None:
    full, *increments = chain.links
    if len(chain.links) >= CHAIN_MAX:
        return f"the chain has {CHAIN_MAX} copies"
    storage_class = coldest(chain.storage_classes)
    if is_archive(storage_class):
        return f"the last one lies in {storage_class}, which an increment should not have to wait for"
    stored = sum(link.stored_bytes for link in increments)
    if stored >= full.stored_bytes * CHAIN_SHARE_MAX:
        return f"the increments have grown to {stored / max(full.stored_bytes, 1):.0%} of the full one"
    return None
