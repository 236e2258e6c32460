"""Deleting one recovery point, on the wire."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from controlplane.api.wire import Wire
from controlplane.recovery.removal import RemovalPlan

NAME_CHARACTERS_MAX = 300
"""Of a recovery point's name, which may be none of ours. S3's own keys have 1024 bytes at most."""


class RemovalIn(Wire):
    point: Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    dataset: str | None = Field(None, description="Needed for one that no list of recovery points shows.")
    bucket: str | None = Field(None, description="Needed for one that lies in several buckets.")
    by: Annotated[str, Field(min_length=1, max_length=80)]
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class RemovalOut(Wire):
    point: str
    dataset: str
    bucket: str
    listed: bool = Field(description="Whether lists of recovery points show it.")
    consistent_at: datetime | None
    state: str = Field(description="Whether it can be read, and why not.")
    unreadable: bool = Field(description="Its manifest cannot be used, so retention deletes nothing beside it.")
    objects: int
    stored_bytes: int
    locked_until: datetime | None
    dependants: list[str] = Field(description="Recovery points that build on it.")
    allowed: bool
    refusals: list[str] = Field(description="While one of these holds, nothing lets it go.")
    objections: list[str] = Field(description="An override of `retention` lets it go in spite of these.")
    overridden_by: str | None
    deleted: bool
    sentence: str


def removal_out(plan: RemovalPlan, *, deleted: bool, sentence: str) -> RemovalOut:
    situation = plan.situation
    contents, override = situation.contents, situation.override
    return RemovalOut(
        point=situation.point,
        dataset=situation.dataset.name,
        bucket=situation.bucket.name,
        listed=plan.row is not None,
        consistent_at=None if plan.row is None else plan.row.consistent_at,
        state=plan.state,
        unreadable=bool(contents.manifest_problem),
        objects=contents.objects,
        stored_bytes=contents.stored_bytes,
        locked_until=contents.locked_until,
        dependants=list(plan.dependants),
        allowed=plan.allowed,
        refusals=list(plan.refusals),
        objections=list(plan.objections),
        overridden_by=None if override is None or not plan.objections else override.by,
        deleted=deleted,
        sentence=sentence,
    )
