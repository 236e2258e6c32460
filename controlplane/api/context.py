"""What the routes need, handed in by the composition root."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from controlplane.domain.deployment import Deployment
from controlplane.domain.ports import Telemetry
from controlplane.domain.recovery import Drill
from controlplane.domain.site import Site
from controlplane.domain.store import Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import ReplicaName
from controlplane.metering.slo import SloStanding
from controlplane.recovery.removals import Removals
from controlplane.runtime.hints import Hints


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteChangeAnswer:
    """What applying a document did or would do, in sentences."""

    changed: bool
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopAnswer:
    """One loop's health as /readyz and status show it."""

    loop: str
    resource: str
    outcome: str
    seconds_since_last_tick: float | None
    overdue: bool
    """Nothing has ended for much longer than its pace allows."""
    failures_in_a_row: int
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayAnswer:
    """How many recorded decisions were decided again, and which came out different."""

    replayed: int
    differing: tuple[str, ...]


type ApplySite = Callable[[str, bool], Awaitable[SiteChangeAnswer]]
type LogTail = Callable[[ReplicaName, int], Awaitable[Sequence[str]]]
type Loops = Callable[[], Sequence[LoopAnswer]]
type Evidence = Callable[[Drill], Awaitable[str]]
type Replay = Callable[[str | None, int], Awaitable[ReplayAnswer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    store: Store
    telemetry: Telemetry
    clock: Clock
    hints: Hints
    version: str
    apply_site: ApplySite
    """(document, dry_run) -> what changed. InvalidError with every problem in the document."""
    site: Callable[[], Site | None]
    """The site that this instance works with; None before the first one is applied."""
    log_tail: LogTail
    loops: Loops
    replay: Replay
    slo: Callable[[Deployment], SloStanding | None]
    """How the objectives are met lately."""
    metrics: Callable[[], str]
    """The control plane's own exposition text."""
    evidence: Evidence
    """The signed bundle of an ended drill."""
    has_break_glass: Callable[[], bool]
    """Whether the offline key is lent to this control plane now."""
    removals: Removals
    """Deletes one recovery point because a person says so."""
    gateway_url: str
    links: Mapping[str, str]


def context_of(request: Request) -> ApiContext:
    return cast("ApiContext", request.app.state.context)


Context = Annotated[ApiContext, Depends(context_of)]
