"""The decision: from what is wanted and what is seen to the steps of one tick. Pure; the order below is the policy."""

from collections import Counter

from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.replicas.adding import add_capacity
from controlplane.replicas.draft import Draft
from controlplane.replicas.lifecycle import drain_step, truth_step
from controlplane.replicas.ports import Unseen
from controlplane.replicas.removing import drain_sick, drain_surplus, drop_coming, stop_sleepers
from controlplane.replicas.standing import NodeOutlook, ProcessState, Situation, assess
from controlplane.replicas.steps import ReplicaPlan, Retire


def plan_replicas(situation: Situation) -> ReplicaPlan:
    """One tick's steps for one deployment.

    1. Blind: hold all. 2. Write down what is true of each replica. 3. Paused: hold the rest. 4. Take hung ones out of
    routing. 5. Drop what is not in service and not wanted. 6. Add: undrain, wake, launch. 7. Finish drains. 8. Drain
    what is too much. 9. Stop sleepers that nobody will wake.
    """
    if isinstance(situation.sighting, Unseen):
        return _blind(situation, situation.sighting.why)
    draft = Draft(
        situation=situation,
        standings=assess(situation),
        launches_left=situation.limits.launches_per_tick,
        removals_left=situation.limits.removals_per_tick,
    )
    _write_down_truth(draft)
    _tell_lost_nodes(draft)
    if situation.deployment.intent.paused:
        draft.hold(
            Reason.PAUSED,
            "paused: nothing is launched, drained, woken or put to sleep; what was told to stop still stops",
        )
        return _finish(draft)
    drain_sick(draft)
    drop_coming(draft)
    add_capacity(draft)
    _finish_drains(draft)
    drain_surplus(draft)
    stop_sleepers(draft)
    if situation.deployment.removed and not situation.replicas:
        sentence = "left the site, and none of its replicas is left"
        draft.steps.append(
            Retire(deployment=situation.deployment.name, reason=Reason.REMOVED_FROM_SITE, sentence=sentence)
        )
    return _finish(draft)


def state_sentence(situation: Situation) -> str:
    """`2 of 3 ready, 1 starting`; phases that no replica is in are left out."""
    phases = Counter(replica.phase for replica in situation.replicas)
    ready = phases.pop(ReplicaPhase.READY, 0)
    others = [f"{phases[phase]} {phase}" for phase in ReplicaPhase if phases[phase] > 0]
    return ", ".join([f"{ready} of {situation.deployment.replicas_target} ready", *others])


def _blind(situation: Situation, why: str) -> ReplicaPlan:
    draft = Draft(situation=situation, standings=(), launches_left=0, removals_left=0)
    draft.hold(Reason.BLIND, f"what runs cannot be seen: {why}; nothing is launched, stopped or replaced meanwhile")
    return _finish(draft)


def _write_down_truth(draft: Draft) -> None:
    for standing in draft.standings:
        step = truth_step(draft.situation, standing)
        if step is not None:
            draft.add(standing.replica, step)


def _tell_lost_nodes(draft: Draft) -> None:
    lost = sorted(
        {
            standing.replica.node
            for standing in draft.standings
            if standing.outlook is NodeOutlook.UNKNOWN and standing.process is ProcessState.UNSURE
        }
    )
    if lost:
        draft.hold(Reason.BLIND, f"out of sight: {', '.join(lost)}; replicas there are kept as they are")


def _finish_drains(draft: Draft) -> None:
    for standing in draft.open:
        if standing.replica.phase is ReplicaPhase.DRAINING and standing.process is ProcessState.RUNNING:
            step = drain_step(draft.situation, standing)
            if step is not None:
                draft.add(standing.replica, step)


def _finish(draft: Draft) -> ReplicaPlan:
    situation = draft.situation
    return ReplicaPlan(
        deployment=situation.deployment.name,
        template=situation.deployment.plan.launch,
        steps=tuple(draft.steps),
        sentence=state_sentence(situation),
    )
