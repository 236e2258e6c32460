"""May risky work proceed? Not while what it could destroy might not come back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from controlplane.domain.dataset import DatasetSpec, DrillSelection, DrillSpec
from controlplane.domain.recovery import Drill, DrillPhase, Override, RiskyAction
from controlplane.recovery.drill_plan import stale_at
from controlplane.recovery.phrases import moment, seconds, span
from controlplane.recovery.proofs import UNSEEN_MAX, last_passed
from controlplane.recovery.rpo import RpoState, RpoVerdict
from controlplane.recovery.tiering import rule_rto

GRACE_MIN: Final = timedelta(minutes=15)
GRACE_MAX: Final = timedelta(hours=24)
"""A dataset that was just declared has one RPO, within these bounds, to get its first copy."""
OVERRIDE_MAX: Final = timedelta(hours=24)
"""An override is for tonight. What is wrong for longer is to be repaired, or the declaration changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSituation:
    spec: DatasetSpec
    added_at: datetime
    """When it was first declared."""
    verdict: RpoVerdict | None
    """None: it was never judged."""
    drills: tuple[DrillSpec, ...] = ()
    history: tuple[Drill, ...] = ()
    """Drills of this dataset, in any order; those that run are left out of account."""
    restoring: tuple[str, ...] = ()
    """Restores of this dataset that run now."""
    evidence_lost: frozenset[str] = frozenset()
    """Drills whose evidence was looked for in the bucket and not found, or does not verify."""
    evidence_unseen: frozenset[str] = frozenset()
    """Drills whose evidence could not be looked for, for longer than `UNSEEN_MAX`: nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    now: datetime
    datasets: tuple[DatasetSituation, ...]
    overrides: tuple[Override, ...] = ()
    unread: str = ""
    """Why the situation could not be read in full; empty: it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    action: RiskyAction
    allowed: bool
    reasons: tuple[str, ...]
    """Against it, every one. Also there when an override lets it pass."""
    overridden_by: Override | None = None
    notes: tuple[str, ...] = ()
    """What is let pass for now, and until when."""

    @property
    def sentence(self) -> str:
        if self.overridden_by is not None:
            by = self.overridden_by
            return f"{self.action} may proceed, overridden by {by.by} until {moment(by.until)} ({by.reason})"
        return f"{self.action} may {'' if self.allowed else 'not '}proceed"


def may_proceed(action: RiskyAction, situation: Situation) -> Permission:
    """The one question that other features ask before they deploy, break, migrate or delete."""
    reasons = [f"the state of recovery could not be read: {situation.unread}; try again"] if situation.unread else []
    notes: list[str] = []
    for dataset in situation.datasets:
        reasons.extend(_objections(dataset, situation.now, notes))
    override = override_in_force(action, situation.overrides, situation.now) if reasons else None
    return Permission(
        action=action,
        allowed=not reasons or override is not None,
        reasons=tuple(reasons),
        overridden_by=override,
        notes=tuple(notes),
    )


def override_problem(override: Override) -> str | None:
    """What is wrong with an override that somebody asks for; None: nothing."""
    if not override.by.strip():
        return "an override names the person who takes it on"
    if not override.reason.strip():
        return "an override says why"
    if override.until <= override.at:
        return f"an override ends after it begins; this one would end {moment(override.until)}"
    if override.until - override.at > OVERRIDE_MAX:
        return f"an override lasts {span(OVERRIDE_MAX)} at most, this one {span(override.until - override.at)}"
    return None


def rpo_grace_until(dataset: DatasetSituation) -> datetime:
    return dataset.added_at + min(max(dataset.spec.rpo, GRACE_MIN), GRACE_MAX)


def _objections(dataset: DatasetSituation, now: datetime, notes: list[str]) -> Iterator[str]:
    yield from _rpo(dataset, now, notes)
    for name in dataset.restoring:
        yield f"{dataset.spec.name}: the restore {name} is running; wait for it, or stop it"
    ended = sorted((drill for drill in dataset.history if drill.ended), key=lambda drill: drill.asked_at)
    yield from _latest_failed(dataset, ended)
    if not dataset.drills:
        notes.append(f"{dataset.spec.name}: no drill is declared, so nothing proves that it can be restored")
    for drill in dataset.drills:
        yield from _drill(dataset, drill, [row for row in ended if row.name == drill.name], now, notes)


def _rpo(dataset: DatasetSituation, now: datetime, notes: list[str]) -> Iterator[str]:
    name, verdict = dataset.spec.name, dataset.verdict
    if verdict is not None and verdict.state in {RpoState.OK, RpoState.WARNING}:
        return
    grace = rpo_grace_until(dataset)
    # Grace is for a first copy that has not come yet; a copy that grew too old had its time.
    if now < grace and (verdict is None or verdict.covered_at is None):
        notes.append(
            f"{name}: declared {span(now - dataset.added_at)} ago, its first copy may take until {moment(grace)}"
        )
        return
    if verdict is None:
        yield f"{name}: its recovery-point age was never judged; see `quarterdeck recovery status`"
        return
    yield f"{verdict.sentence}; {_next_step(dataset, verdict)}"


def _next_step(dataset: DatasetSituation, verdict: RpoVerdict) -> str:
    match verdict.state:
        case RpoState.UNKNOWN:
            return f"look whether the bucket {verdict.bucket} answers (`quarterdeck bucket plan`)"
        case RpoState.BREACHED | RpoState.NEVER:
            return f"run `quarterdeck backup now {dataset.spec.name}`"
        case RpoState.OK | RpoState.WARNING:
            return "nothing to do"
        case _ as unknown:
            assert_never(unknown)


def _latest_failed(dataset: DatasetSituation, ended: Sequence[Drill]) -> Iterator[str]:
    """The newest drill of all, where it is not one that is judged by its declaration anyway."""
    if ended and ended[-1].phase is DrillPhase.FAILED and ended[-1].name not in {one.name for one in dataset.drills}:
        yield _failed(ended[-1])


def _drill(
    dataset: DatasetSituation, drill: DrillSpec, own: Sequence[Drill], now: datetime, notes: list[str]
) -> Iterator[str]:
    """`own`: its ended runs, oldest first."""
    if own and own[-1].phase is DrillPhase.FAILED:
        yield _failed(own[-1])
    passed = last_passed(drill, own)
    stale = stale_at(drill, dataset.added_at if passed is None else passed.phase_since)
    run = f"run `quarterdeck drill run {drill.name}`"
    if now >= stale:
        last = "never passed" if passed is None else f"last passed {span(now - passed.phase_since)} ago"
        yield f"{dataset.spec.name}: the drill {drill.name} {last} and counted until {moment(stale)}; {run}"
    elif passed is None and not own:
        notes.append(f"{dataset.spec.name}: the drill {drill.name} has not run yet; it has until {moment(stale)}")
    if passed is not None:
        yield from _proof(dataset, passed, run)


def _proof(dataset: DatasetSituation, passed: Drill, run: str) -> Iterator[str]:
    """A pass counts with its evidence, and within the RTO."""
    name = dataset.spec.name
    if passed.evidence_key is None or passed.drill in dataset.evidence_lost:
        where = (
            "none was written" if passed.evidence_key is None else f"{passed.evidence_key} is gone or does not verify"
        )
        yield f"{name}: the drill {passed.drill} passed, but its evidence is missing ({where}); {run}"
    elif passed.drill in dataset.evidence_unseen:
        yield (
            f"{name}: the bucket {passed.bucket} could not tell for more than {span(UNSEEN_MAX)} whether "
            f"{passed.evidence_key} is there, the evidence of the drill {passed.drill}; make it readable"
        )
    rto = rto_of_drill(dataset.spec, passed)
    if passed.times.rto_s > rto.total_seconds():
        took = seconds(passed.times.rto_s)
        yield f"{name}: the drill {passed.drill} took {took}, the RTO is {span(rto)}; make restores faster, or raise it"


def rto_of_drill(spec: DatasetSpec, drill: Drill) -> timedelta:
    """What a drill has to hold.

    With the latest point, which every rule keeps, the dataset's own RTO; with others the longest one of the rules that
    keep points in its classes.
    """
    if drill.selection is DrillSelection.LATEST:
        return spec.rto
    of_classes = [rule_rto(rule, spec) for rule in spec.retention if rule.storage_class in drill.storage_classes]
    return max(of_classes, default=spec.rto)


def _failed(drill: Drill) -> str:
    why = drill.failure or drill.sentence or "no reason was given"
    return (
        f"{drill.dataset}: the last drill {drill.name} ({drill.drill}) failed: {why.rstrip('.')}; "
        f"see `quarterdeck drill show {drill.drill}`, repair it, and run it again"
    )


def override_in_force(action: RiskyAction, overrides: Sequence[Override], now: datetime) -> Override | None:
    """The one that lasts longest of those that hold now."""
    holding = [
        override
        for override in overrides
        if override.action is action and override_problem(override) is None and override.at <= now < override.until
    ]
    return max(holding, key=lambda override: override.until, default=None)
