"""Deployments and the autoscaler's state about them. What the autoscaler wants is a row of its own."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, bindparam, delete, select, update

from controlplane.adapters.db.codecs import DEPLOYMENT_SPEC, INTENT, SERVING_PLAN, time_from_us, us_from_time
from controlplane.adapters.db.remembered import Remembered
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.tables import DEPLOYMENT_WANTED, DEPLOYMENTS, POLICY_STATES
from controlplane.domain.deployment import Deployment, DeploymentSpec, Intent, ServingPlan
from controlplane.domain.refusals import generation_conflict, not_found
from controlplane.kernel.errors import NotFoundError
from controlplane.kernel.ids import DeploymentName

_SELECT: Final = select(DEPLOYMENTS, DEPLOYMENT_WANTED.c.replicas_wanted).join_from(DEPLOYMENTS, DEPLOYMENT_WANTED)
_ONE: Final = _SELECT.where(DEPLOYMENTS.c.name == bindparam("name"))
_SET_WANTED: Final = update(DEPLOYMENT_WANTED).where(DEPLOYMENT_WANTED.c.deployment == bindparam("of_deployment"))
_POLICY_STATE: Final = select(POLICY_STATES.c.state).where(POLICY_STATES.c.deployment == bindparam("of_deployment"))
_SET_POLICY_STATE: Final = update(POLICY_STATES).where(POLICY_STATES.c.deployment == bindparam("of_deployment"))


class DeploymentRows:
    _session: Session
    _deployments: Remembered[Deployment]

    async def deployments(self) -> Sequence[Deployment]:
        return sorted(map(self._deployments.value, await self._session.rows(_SELECT)), key=lambda found: found.name)

    async def deployment(self, name: DeploymentName) -> Deployment:
        row = await self._session.row(_ONE, {"name": name})
        if row is None:
            raise await self._no_deployment(name)
        return self._deployments.value(row)

    async def put_deployment_spec(self, spec: DeploymentSpec, plan: ServingPlan, now: datetime) -> Deployment:
        values = {"spec": DEPLOYMENT_SPEC.encode(spec), "plan": SERVING_PLAN.encode(plan), "removed": False}
        replaced = await self._session.run(
            update(DEPLOYMENTS)
            .where(DEPLOYMENTS.c.name == spec.name)
            .values(**values, generation=DEPLOYMENTS.c.generation + 1)
        )
        if not replaced:
            fresh = {"intent": INTENT.encode(Intent()), "generation": 1, "created_at_us": us_from_time(now)}
            await self._session.run(DEPLOYMENTS.insert(), {"name": spec.name, **values, **fresh})
            wanted = {"deployment": spec.name, "replicas_wanted": spec.replicas_min}
            await self._session.run(DEPLOYMENT_WANTED.insert(), wanted)
        return await self.deployment(spec.name)

    async def mark_deployment_removed(self, name: DeploymentName) -> None:
        deployment = await self.deployment(name)
        if not deployment.removed:
            await self._change(name, removed=True, generation=deployment.generation + 1)

    async def delete_deployment(self, name: DeploymentName) -> None:
        await self._session.run(delete(POLICY_STATES).where(POLICY_STATES.c.deployment == name))
        await self._session.run(delete(DEPLOYMENTS).where(DEPLOYMENTS.c.name == name))

    async def set_intent(
        self, name: DeploymentName, intent: Intent, *, expected_generation: int | None = None
    ) -> Deployment:
        found = (await self.deployment(name)).generation
        if expected_generation not in (None, found):
            raise generation_conflict("deployment", name, expected=expected_generation, found=found)
        await self._change(name, intent=INTENT.encode(intent), generation=found + 1)
        return await self.deployment(name)

    async def set_replicas_wanted(self, name: DeploymentName, wanted: int) -> None:
        if not await self._session.run(_SET_WANTED, {"of_deployment": name, "replicas_wanted": wanted}):
            raise await self._no_deployment(name)

    async def policy_state(self, deployment: DeploymentName) -> str | None:
        row = await self._session.row(_POLICY_STATE, {"of_deployment": deployment})
        return None if row is None else str(row.state)

    async def put_policy_state(self, deployment: DeploymentName, state_json: str) -> None:
        if not await self._session.run(_SET_POLICY_STATE, {"of_deployment": deployment, "state": state_json}):
            await self._session.run(POLICY_STATES.insert(), {"deployment": deployment, "state": state_json})

    async def _change(self, name: DeploymentName, **values: str | int | bool) -> None:
        await self._session.run(update(DEPLOYMENTS).where(DEPLOYMENTS.c.name == name).values(**values))

    async def _no_deployment(self, name: DeploymentName) -> NotFoundError:
        known = await self._session.rows(select(DEPLOYMENTS.c.name))
        return not_found("deployment", name, (other.name for other in known))


def deployment_from_row(row: Row[Any]) -> Deployment:
    return Deployment(
        spec=DEPLOYMENT_SPEC.decode(row.spec),
        plan=SERVING_PLAN.decode(row.plan),
        intent=INTENT.decode(row.intent),
        replicas_wanted=row.replicas_wanted,
        generation=row.generation,
        created_at=time_from_us(row.created_at_us),
        removed=row.removed,
    )
