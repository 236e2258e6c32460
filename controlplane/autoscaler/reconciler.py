"""The loop around the decision: read, decide, write, in one transaction; then say that something changed.

Everything that a decision changes (state, wanted number, record, event) commits together, so a crash anywhere leaves
either the old decision or the new one. Only the hint comes after the commit; losing it costs one period.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Protocol

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.model import Tuning
from controlplane.autoscaler.scaling import Memory, Recorded, Scaling, scale
from controlplane.domain.deployment import Deployment
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.ports import Telemetry
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import InvalidError, NotFoundError
from controlplane.kernel.ids import DeploymentName
from controlplane.runtime.hints import Hints
from controlplane.runtime.reconciler import TickReport

__all__ = ["LOOP", "AutoscalerReconciler", "DecisionObserver", "Memory", "UnobservedDecisions"]

_LOG = logging.getLogger(__name__)

LOOP: Final = "autoscaler"
_REPLICAS_LOOP: Final = "replicas"
_HEARTBEAT: Final = timedelta(seconds=60)
"""An unchanged decision is kept this often, so that `why` always has a fresh answer and history shows quiet times."""
_REASON_SPACING: Final = timedelta(seconds=10)
"""A new reason for the same number is kept at most this often: a reason that flickers must not fill the table."""


class DecisionObserver(Protocol):
    """Is told of each decision that is kept and acted upon, once its transaction is committed: metrics."""

    def on_decision(self, deployment: DeploymentName, reason: Reason, *, wanted_before: int, wanted: int) -> None: ...


class UnobservedDecisions:
    """Implements `DecisionObserver` for those who do not want to know."""

    def on_decision(self, deployment: DeploymentName, reason: Reason, *, wanted_before: int, wanted: int) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    scaling: Scaling
    kept: bool
    """It is in the history, not only in the state."""


class AutoscalerReconciler:
    """Writes `replicas_wanted` and nothing else of a deployment."""

    def __init__(
        self,
        *,
        store: Store,
        telemetry: Telemetry,
        clock: Clock,
        hints: Hints,
        tuning: Tuning | None = None,
        observer: DecisionObserver | None = None,
    ) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._hints = hints
        self._tuning = tuning
        self._observer = observer or UnobservedDecisions()
        self._decoded: dict[DeploymentName, tuple[str, Memory]] = {}
        """Texts of the store and what they mean: a text that is still there is not decoded again, which takes longer
        than the decision. Only ever used for exactly that text, so another instance's or a lost write does no harm."""

    @property
    def name(self) -> str:
        return LOOP

    async def resources(self) -> Sequence[str]:
        """Deployments that the site still has."""
        async with self._store.transaction() as tx:
            names = [deployment.name for deployment in await tx.deployments() if not deployment.removed]
        self._decoded = {name: self._decoded[name] for name in names if name in self._decoded}
        return names

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        name = DeploymentName(resource)
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            try:
                deployment = await tx.deployment(name)
            except NotFoundError:
                return TickReport(sentence="the deployment is gone")
            if deployment.removed:
                return TickReport(sentence="removed from the site; nothing to decide")
            written = await self._decide(tx, deployment)
        decision, wanted = written.scaling.decision, written.scaling.wanted
        if written.kept and not deployment.in_shadow:
            self._observer.on_decision(
                name, decision.reason, wanted_before=deployment.replicas_wanted, wanted=decision.wanted
            )
        changed = wanted != deployment.replicas_wanted
        if changed:
            self._hints.hint(_REPLICAS_LOOP)
            _LOG.info(
                "replicas wanted changed",
                extra={
                    "deployment": name,
                    "wanted_before": deployment.replicas_wanted,
                    "wanted": wanted,
                    "reason": decision.reason.value,
                    "sentence": decision.sentence,
                },
            )
        return TickReport(sentence=decision.sentence, changed=changed)

    async def _decide(self, tx: Transaction, deployment: Deployment) -> _Written:
        name = deployment.name
        memory = await self._remembered(tx, name)
        replicas, now = await tx.replicas(name), self._clock.now()
        scaling = scale(deployment, replicas, self._telemetry.snapshot(), memory, now, self._tuning)
        recorded = memory.recorded
        kept = _worth_keeping(recorded, scaling)
        if kept:
            recorded = Recorded(at_s=scaling.observation.at_s, reason=scaling.decision.reason)
            await tx.append_decision(scaling.record)
        if scaling.decision.wanted != scaling.observation.wanted:
            await tx.append_events([self._event(name, scaling)])
        if scaling.wanted != deployment.replicas_wanted:
            await tx.set_replicas_wanted(name, scaling.wanted)
        left = replace(scaling.memory, recorded=recorded)
        text = encode(left)
        await tx.put_policy_state(name, text)
        self._decoded[name] = (text, left)
        return _Written(scaling=scaling, kept=kept)

    async def _remembered(self, tx: Transaction, name: DeploymentName) -> Memory:
        """What the last tick left; nothing when another version of this program left it."""
        text = await tx.policy_state(name)
        if text is None:
            return Memory()
        known = self._decoded.get(name)
        if known is not None and known[0] == text:
            return known[1]
        try:
            return decode(Memory, text)
        except InvalidError as error:
            _LOG.warning("policy state of another version dropped", extra={"deployment": name, "found": str(error)})
            return Memory()

    def _event(self, name: DeploymentName, scaling: Scaling) -> NewEvent:
        seen, decision = scaling.observation, scaling.decision
        return NewEvent(
            at=self._clock.now(),
            kind=EventKind.DECISION,
            subject=name,
            reason=decision.reason,
            sentence=decision.sentence,
            deployment=name,
            data=(("from", seen.wanted), ("to", decision.wanted), ("policy", scaling.record.policy)),
        )


def _worth_keeping(recorded: Recorded | None, scaling: Scaling) -> bool:
    """Every change of the number; a new reason, unless one was just kept; and a heartbeat."""
    seen, decision = scaling.observation, scaling.decision
    if recorded is None or decision.wanted != seen.wanted:
        return True
    age = timedelta(seconds=seen.at_s - recorded.at_s)
    return age >= (_REASON_SPACING if decision.reason is not recorded.reason else _HEARTBEAT)
