"""Towards less, and away from what must go: drain before stop, and never below what the target needs in service."""

from dataclasses import replace

from controlplane.domain.deployment import IdleMode
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.replicas.draft import Draft
from controlplane.replicas.lifecycle import moved, stopping
from controlplane.replicas.ports import TrafficUnseen
from controlplane.replicas.standing import NodeOutlook, ProcessState, Standing
from controlplane.replicas.steps import Drain, Release, Step, Terminate


def drain_sick(draft: Draft) -> None:
    """A hung replica leaves the gateway at once: what it is sent is lost. A few a tick, in case we are mistaken."""
    sick = [standing for standing in draft.open if standing.sick is not None]
    for standing in sick[: draft.situation.limits.sick_removals_per_tick]:
        reason = standing.sick
        assert reason is not None, "filtered above"
        row = moved(standing.replica, ReplicaPhase.DRAINING, reason, standing.sick_sentence, draft.situation.now)
        row = replace(row, sleep_after_drain=reason is Reason.SLEPT)
        draft.add(standing.replica, Drain(row=row, reason=reason, sentence=standing.sick_sentence))


def drop_coming(draft: Draft) -> None:
    """Replicas not in service yet that are not wanted (any more): nothing is in flight there, so no drain."""
    coming = [standing for standing in draft.open if standing.coming and standing.process is not ProcessState.UNSURE]
    useless = [standing for standing in coming if not standing.keepable or _unlaunchable(draft, standing)]
    excess = len([standing for standing in draft.live if standing not in useless]) - draft.target
    # PENDING first, then the youngest: what has come furthest stays.
    surplus = sorted(
        (standing for standing in coming if standing not in useless),
        key=lambda s: (
            s.replica.phase is not ReplicaPhase.PENDING,
            s.replica.launched_at is not None,
            -s.replica.ordinal,
        ),
    )
    for standing in [*useless, *surplus[: max(0, excess)]]:
        if draft.removals_left > 0:
            draft.removals_left -= 1
            draft.add(standing.replica, _stop_unserving(draft, standing))


def drain_surplus(draft: Draft) -> None:
    """READY replicas beyond the target, of an old revision, or on a leaving node: out of the gateway first."""
    candidates = _drain_candidates(draft)
    if not candidates:
        return
    traffic = draft.situation.traffic
    if draft.target > 0 and isinstance(traffic, TrafficUnseen):
        draft.hold(
            Reason.HOLD_MISSING_DATA,
            f"{len(candidates)} replicas may go, but the gateway cannot say which ones serve: {traffic.why}",
        )
        return
    spare = sum(1 for standing in draft.serving if standing.dependable) - draft.target
    keeper = _keeper(draft)
    for standing in candidates:
        if draft.removals_left <= 0:
            return
        if draft.target > 0 and (spare < 1 if standing.dependable else spare < 0):
            continue
        spare -= int(standing.dependable)
        draft.removals_left -= 1
        draft.add(standing.replica, _drain(draft, standing, sleep=standing is keeper))


def stop_sleepers(draft: Draft) -> None:
    """Sleeping replicas hold GPUs: only the one that an idle deployment wakes from is worth it."""
    sleepers = [
        standing
        for standing in draft.open
        if standing.replica.phase is ReplicaPhase.SLEEPING and standing.process is ProcessState.RUNNING
    ]
    satisfied = sum(1 for standing in draft.serving if standing.keepable) >= draft.target > 0
    kept = 0
    for standing in sleepers:
        if standing.keepable and may_sleep(draft) and not satisfied and (draft.target > 0 or kept == 0):
            kept += 1
        elif draft.removals_left > 0:
            draft.removals_left -= 1
            draft.add(standing.replica, _stop_unserving(draft, standing))


def may_sleep(draft: Draft) -> bool:
    deployment = draft.situation.deployment
    return deployment.spec.idle_mode is IdleMode.SLEEP and not deployment.removed


def _unlaunchable(draft: Draft, standing: Standing) -> bool:
    """Reserved on a node that takes no replica any more, and not started there."""
    node = draft.situation.nodes.get(standing.replica.node)
    return standing.replica.phase is ReplicaPhase.PENDING and (node is None or not node.accepts_replicas)


def _stop_unserving(draft: Draft, standing: Standing) -> Step:
    reason, sentence = _why_away(draft, standing)
    now = draft.situation.now
    if standing.process is ProcessState.GONE:
        row = stopping(standing.replica, reason, sentence, now, signals=0)
        return Release(row=row, reason=reason, sentence=f"{sentence}; it was not started yet")
    phase = standing.replica.phase
    row = stopping(standing.replica, reason, sentence, now, signals=1)
    return Terminate(row=row, reason=reason, sentence=f"{sentence}; it was {phase}: SIGTERM")


def _drain_candidates(draft: Draft) -> list[Standing]:
    """In the order in which they should go: what must go anyway, then of the surplus the doubtful and the youngest."""
    ready = [standing for standing in draft.open if standing.serving and standing.outlook is not NodeOutlook.UNKNOWN]
    leaving = [standing for standing in ready if not standing.keepable]
    surplus = sum(1 for standing in draft.serving if standing.keepable) - draft.target
    youngest = sorted(
        (standing for standing in ready if standing.keepable),
        key=lambda s: (s.dependable, -s.replica.ordinal),
    )
    return [*leaving, *youngest[: max(0, surplus)]]


def _keeper(draft: Draft) -> Standing | None:
    """The replica that goes to sleep instead of stopping: the oldest READY one, if none sleeps or is about to."""
    if draft.target > 0 or not may_sleep(draft):
        return None
    for standing in draft.alive:
        replica = standing.replica
        if standing.keepable and (replica.phase is ReplicaPhase.SLEEPING or replica.sleep_after_drain):
            return None
    return next((standing for standing in draft.open if standing.serving and standing.keepable), None)


def _drain(draft: Draft, standing: Standing, *, sleep: bool) -> Drain:
    reason, sentence = _why_away(draft, standing)
    sentence = f"{sentence}: leaves the gateway, then {'sleeps' if sleep else 'stops'}"
    row: Replica = moved(standing.replica, ReplicaPhase.DRAINING, reason, sentence, draft.situation.now)
    return Drain(row=replace(row, sleep_after_drain=sleep), reason=reason, sentence=sentence)


def _why_away(draft: Draft, standing: Standing) -> tuple[Reason, str]:
    deployment = draft.situation.deployment
    if deployment.removed:
        return Reason.REMOVED_FROM_SITE, "the site file no longer has the deployment"
    if not standing.current:
        old, new = standing.replica.revision, deployment.plan.revision
        return Reason.REVISION_CHANGED, f"revision {old} gives way to {new}"
    if standing.outlook is NodeOutlook.LEAVES:
        return Reason.NODE_DRAINED, f"node {standing.replica.node} is being drained or left the site"
    if _unlaunchable(draft, standing):
        return Reason.NODE_CORDONED, f"node {standing.replica.node} takes no replicas now"
    if draft.target == 0:
        return Reason.IDLE, "none wanted"
    return Reason.SURPLUS, f"{draft.target} wanted, {len(draft.live)} there"
