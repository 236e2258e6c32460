"""What a change of the site consists of, and what a check of it found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.event import EventKind
from controlplane.domain.node import NodeSpec
from controlplane.domain.reason import Reason
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import Problem
from controlplane.kernel.ids import DeploymentName, NodeName

type Planner = Callable[[DeploymentSpec, EngineSpec, Sequence[NodeSpec]], ServingPlan]
"""Makes a plan of a deployment, or raises InvalidError with problems whose field is relative to the deployment."""

type Advisor = Callable[[DeploymentSpec, EngineSpec], Sequence[Problem]]
"""What to warn of in a deployment; fields as the planner's."""

type Plans = Mapping[DeploymentName, ServingPlan]


_HOW_A_NODE_GOES: Final[Mapping[bool | None, str]] = {
    True: "drained first, since replicas run on it",
    False: "nothing runs on it",
    None: "drained first where replicas run on it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field, before and after, as people read them."""

    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.field}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionChange:
    """A section or an engine that only one of the two sites has."""

    field: str
    added: bool
    what: str = ""
    """A few words on what is added."""

    def __str__(self) -> str:
        detail = f": {self.what}" if self.what and self.added else ""
        return f"{self.field} is {'added' if self.added else 'removed'}{detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """A node that is there before and after. `returns`: it was being drained because an earlier file left it out."""

    spec: NodeSpec
    fields: tuple[FieldChange, ...] = ()
    returns: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRemoval:
    name: NodeName
    drains: bool | None
    """Replicas run on it: it is drained first, and its row goes once it is empty. False: it goes at once.

    None: not known, since two files were compared.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentChange:
    """A deployment that is there before and after."""

    spec: DeploymentSpec
    plan: ServingPlan
    fields: tuple[FieldChange, ...] = ()
    restarts: bool = False
    """Its revision changed: every replica is replaced, new ones ready before old ones leave."""
    returns: bool = False
    """An earlier file left it out, and it was not gone yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentAddition:
    spec: DeploymentSpec
    plan: ServingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteChange:
    """All that applying a site changes; every tuple in the order of names."""

    nodes_added: tuple[NodeSpec, ...] = ()
    nodes_changed: tuple[NodeChange, ...] = ()
    nodes_removed: tuple[NodeRemoval, ...] = ()
    deployments_added: tuple[DeploymentAddition, ...] = ()
    deployments_changed: tuple[DeploymentChange, ...] = ()
    deployments_removed: tuple[DeploymentName, ...] = ()
    sections_changed: tuple[FieldChange | SectionChange, ...] = ()
    """Of everything without rows: gateway, telemetry, store, load...; known where the site before is known."""
    document_changed: bool = False
    """The text differs from the one applied last, be it in a comment."""

    @property
    def is_empty(self) -> bool:
        """Nothing that runs would change; the text still may."""
        return not any(self.sentences())

    def sentences(self) -> Iterator[str]:
        """The change for people, a sentence each."""
        return (line.sentence for line in self.lines())

    def lines(self) -> Iterator["ChangeLine"]:
        """The sentences with whom they are about."""
        yield from self._node_lines()
        yield from self._deployment_lines()
        for section in self.sections_changed:
            yield ChangeLine(kind=EventKind.SITE, subject="", sentence=str(section), field=section.field)

    def _node_lines(self) -> Iterator["ChangeLine"]:
        for spec in self.nodes_added:
            yield _line(EventKind.NODE, spec.name, f"is added: {spec.gpus} x {spec.gpu_model}")
        for node in self.nodes_changed:
            yield from _changed(EventKind.NODE, node.spec.name, node.fields, returns=node.returns)
        for removal in self.nodes_removed:
            how = _HOW_A_NODE_GOES[removal.drains]
            yield _line(EventKind.NODE, removal.name, f"is removed: {how}", reason=Reason.REMOVED_FROM_SITE)

    def _deployment_lines(self) -> Iterator["ChangeLine"]:
        for addition in self.deployments_added:
            yield _line(EventKind.DEPLOYMENT, addition.spec.name, f"is added: {_summary(addition)}")
        for change in self.deployments_changed:
            name = change.spec.name
            yield from _changed(EventKind.DEPLOYMENT, name, change.fields, returns=change.returns)
            if change.restarts:
                what = "has a new revision: every replica is replaced, new ones ready before old ones leave"
                yield _line(EventKind.DEPLOYMENT, name, what)
        for name in self.deployments_removed:
            what = "is removed: its replicas are drained, then stopped"
            yield _line(EventKind.DEPLOYMENT, name, what, reason=Reason.REMOVED_FROM_SITE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLine:
    """One sentence of a change; `subject` is empty for the site itself."""

    kind: EventKind
    subject: str
    sentence: str
    reason: Reason = Reason.SITE_APPLIED
    field: str = ""
    """Of the site itself: what changed, e.g. `gateway.port`."""


def _line(kind: EventKind, subject: str, what: str, *, reason: Reason = Reason.SITE_APPLIED) -> ChangeLine:
    return ChangeLine(kind=kind, subject=subject, sentence=f"{kind} {subject} {what}", reason=reason)


def _changed(kind: EventKind, subject: str, fields: Sequence[FieldChange], *, returns: bool) -> Iterator[ChangeLine]:
    if returns:
        yield _line(kind, subject, "returns to the site")
    yield from (_line(kind, subject, f"changes {change}") for change in fields)


def _summary(addition: DeploymentAddition) -> str:
    spec, gpus = addition.spec, addition.plan.gpus_per_replica
    bounds = f"{spec.replicas_min} to {spec.replicas_max} replicas"
    return f"{spec.model}, {bounds} of {gpus} GPU{'' if gpus == 1 else 's'}"


class Severity(StrEnum):
    ERROR = "error"
    """The site can never be as declared: it is refused."""
    WARNING = "warning"
    """It can be, but somebody may be surprised."""
    NOTE = "note"
    """How something is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFinding:
    """A problem of a parsed site. `path` leads to it in the document; list entries by their `name`."""

    severity: Severity
    path: tuple[str, ...]
    problem: Problem
