"""The site that this instance works with: parse, plan, apply; follow what another instance applied."""

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from controlplane.adapters.sitefile.parse import examine_site, parse_site, read_text
from controlplane.adapters.sitefile.planned import PlannedFile, plan_reading
from controlplane.api.context import SiteChangeAnswer
from controlplane.catalog.files import load_catalog
from controlplane.catalog.planning import plan_serving
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import RiskyAction
from controlplane.domain.site import GatewaySpec, Site
from controlplane.domain.store import AppliedSite, Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError
from controlplane.kernel.ids import DeploymentName
from controlplane.recovery.standing import permission_now
from controlplane.sites.apply import apply_site, digest_of, preview_site
from controlplane.sites.model import ChangeLine

_DOCUMENT_NAME: Final = "site.yaml"
"""What a document that came over HTTP, or out of the store, is called in errors."""
_GATEWAY_PORT: Final = "gateway.port"
_TEXT_ALONE: Final = "only the file's text changes: nothing that runs does"
_NEW_PLAN: Final = "what this version makes of the site"
_OVERRIDE: Final = "If it cannot wait: `quarterdeck recovery override deploy --reason WHY`"
_EXAMPLES: Final = (Path(__file__).parent.parent / "examples", Path(__file__).parents[2] / "examples")
"""In an installed package, and in a checkout."""


def demo_site_file() -> Path:
    """NotFoundError when the program came without its examples."""
    for folder in _EXAMPLES:
        if (folder / "demo" / "site.yaml").is_file():
            return folder / "demo" / "site.yaml"
    raise NotFoundError("the program came without its demo site; name a site file with --site FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What an instance begins with."""

    site: Site
    refused: str = ""
    """Why the site that was asked for is not it; empty: it is."""


class SiteWork:
    """Holds the present site. `gateway_port` overrides the file's, for this instance only.

    Sites are compared as their documents have them: an override is no change of the site, and hides none.
    """

    def __init__(self, *, store: Store, clock: Clock, gateway_port: int | None) -> None:
        self._store = store
        self._clock = clock
        self._gateway_port = gateway_port
        self._catalog = load_catalog()
        self._declared: Site | None = None
        """As the document has it."""
        self._digest: str | None = None

    def site(self) -> Site | None:
        return None if self._declared is None else self._own(self._declared)

    async def gateway_spec(self) -> GatewaySpec | None:
        site = self.site()
        return None if site is None else site.gateway

    async def look(self, file: Path | None) -> Site:
        """The site that `begin` would apply, with nothing applied: it may name another store."""
        document, name = await self._first_document(file)
        return (await asyncio.to_thread(self._plan, document, name)).site

    async def begin(self, file: Path | None, *, strict: bool = False) -> Begun:
        """Apply the file; without one the document applied last, and without that the demo.

        The document is planned anew in each case: a newer program may make a better plan of it. InvalidError with
        every problem of the file.

        What would take replicas away that serve asks the gate. While that says no, the site that was applied last goes
        on as it is, since a control plane has to come up; `strict`: ConflictError instead.
        """
        document, name = await self._first_document(file)
        planned = await asyncio.to_thread(self._plan, document, name)
        async with self._store.transaction() as tx:
            applied, serving = await tx.site(), {replica.deployment for replica in await tx.replicas()}
        before = None if applied is None else await asyncio.to_thread(self._planned_again, applied)
        refusal = None if before is None else await self._refusal(planned, before, serving=frozenset(serving))
        if applied is None or before is None or refusal is None:
            await self._apply(planned, dry_run=False)
            return Begun(site=self._own(planned.site))
        wanted = _NEW_PLAN if file is None else str(file)
        if strict:
            raise ConflictError(f"{wanted} is not applied: {refusal}")
        self._declared, self._digest = before, applied.digest
        sentence = (
            f"{wanted} is not applied, the site {applied.name} goes on as it was: {refusal}. Once `quarterdeck "
            f"recovery may-proceed deploy` says yes: `quarterdeck site apply {file or 'FILE'}`. {_OVERRIDE} before that"
        )
        await self._tell_refused(applied, sentence)
        return Begun(site=self._own(before), refused=sentence)

    async def _tell_refused(self, applied: AppliedSite, sentence: str) -> None:
        event = NewEvent(
            at=self._clock.now(),
            kind=EventKind.SITE,
            subject=applied.name,
            reason=Reason.SITE_REFUSED,
            sentence=sentence,
        )
        async with self._store.transaction() as tx:
            await tx.append_events([event])

    async def apply_document(self, document: str, dry_run: bool) -> SiteChangeAnswer:  # noqa: FBT001 - the port's form
        """The API's port: parse, plan, then apply or only say what it would change."""
        planned = await asyncio.to_thread(self._plan, document, _DOCUMENT_NAME)
        refusal = None if self._declared is None else await self._refusal(planned, self._declared)
        if refusal is None:
            return await self._apply(planned, dry_run=dry_run)
        if not dry_run:
            raise ConflictError(f"{refusal}. {_OVERRIDE}")
        answer = await self._apply(planned, dry_run=True)
        return replace(answer, sentences=(*answer.sentences, f"{refusal}. {_OVERRIDE}"))

    async def follow(self) -> str:
        """Take over what another instance applied; a sentence on what was found."""
        async with self._store.transaction() as tx:
            applied = await tx.site()
        if applied is None:
            return "no site is applied"
        if applied.digest == self._digest:
            return f"site {applied.name}, generation {applied.generation}"
        planned = await asyncio.to_thread(self._plan, applied.document, _DOCUMENT_NAME)
        self._declared, self._digest = planned.site, applied.digest
        return f"took over site {applied.name}, generation {applied.generation}, applied by another instance"

    async def _first_document(self, file: Path | None) -> tuple[str, str]:
        if file is not None:
            return await asyncio.to_thread(read_text, file), str(file)
        async with self._store.transaction() as tx:
            applied = await tx.site()
        if applied is not None:
            return applied.document, _DOCUMENT_NAME
        demo = demo_site_file()
        return await asyncio.to_thread(read_text, demo), str(demo)

    def _plan(self, document: str, name: str) -> PlannedFile:
        catalog = self._catalog
        reading = examine_site(
            document, file=name, known_models=frozenset(catalog.models), known_gpus=frozenset(catalog.gpus)
        )
        return plan_reading(reading, partial(plan_serving, catalog=catalog))

    async def _refusal(
        self, planned: PlannedFile, declared: Site, *, serving: frozenset[DeploymentName] | None = None
    ) -> str | None:
        """Replacing or removing what serves is a deploy: not while what must survive might not come back.

        By what is declared now: taking a dataset out in the same file opens no door. `serving`: only of these; None: of
        all. None: it may be.
        """
        if not declared.recovery.datasets:
            return None
        change = await preview_site(self._store, planned.site, planned.document, planned.plans, previous=declared)
        replaced = [changed.spec.name for changed in change.deployments_changed if changed.restarts]
        parts = [
            f"replicas of {', '.join(names)} would be {what}"
            for what, found in (("replaced", replaced), ("removed", change.deployments_removed))
            if (names := [name for name in found if serving is None or name in serving])
        ]
        if not parts:
            return None
        async with self._store.transaction() as tx:
            permission = await permission_now(tx, declared.recovery, RiskyAction.DEPLOY, self._clock.now())
        if permission.allowed:
            return None
        return f"{' and '.join(parts)}, and recovery refuses deploys now: {'; '.join(permission.reasons)}"

    async def _apply(self, planned: PlannedFile, *, dry_run: bool) -> SiteChangeAnswer:
        site, document = planned.site, planned.document
        previous = self._declared or await self._applied_last()
        if dry_run:
            change = await preview_site(self._store, site, document, planned.plans, previous=previous)
        else:
            change = await apply_site(self._store, site, document, planned.plans, self._clock, previous=previous)
            self._declared, self._digest = site, digest_of(document)
        sentences = tuple(self._annotated(line) for line in change.lines())
        if not sentences and change.document_changed:
            sentences = (_TEXT_ALONE,)
        return SiteChangeAnswer(changed=bool(sentences), sentences=sentences)

    def _annotated(self, line: ChangeLine) -> str:
        if self._gateway_port is None or line.field != _GATEWAY_PORT:
            return line.sentence
        return f"{line.sentence} (this control plane keeps {self._gateway_port}, from --port)"

    async def _applied_last(self) -> Site | None:
        """By an earlier run: for the sentences about sections without rows. None where there is none to read."""
        async with self._store.transaction() as tx:
            applied = await tx.site()
        return None if applied is None else await asyncio.to_thread(self._read_again, applied)

    def _planned_again(self, applied: AppliedSite) -> Site | None:
        """What the store has, if this version can still work with it."""
        try:
            return self._plan(applied.document, _DOCUMENT_NAME).site
        except InvalidError:
            return None

    def _read_again(self, applied: AppliedSite) -> Site | None:
        try:
            return parse_site(applied.document, file=_DOCUMENT_NAME)
        except InvalidError:
            # A version with another schema applied it. The rows are compared all the same.
            return None

    def _own(self, site: Site) -> Site:
        if self._gateway_port is None:
            return site
        return replace(site, gateway=replace(site.gateway, port=self._gateway_port))
