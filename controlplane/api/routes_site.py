"""The site document: read it, apply another, see what that would change."""

from typing import Annotated

from fastapi import APIRouter, Query

from controlplane.api.context import Context
from controlplane.api.wire import SiteChangeOut, SiteDocument, SiteOut
from controlplane.domain.store import AppliedSite
from controlplane.kernel.errors import NotFoundError

router = APIRouter(prefix="/site", tags=["site"])


@router.get("")
async def get_site(context: Context) -> SiteOut:
    """Which site document is applied."""
    site = await _applied(context)
    return SiteOut(name=site.name, digest=site.digest, generation=site.generation, applied_at=site.applied_at)


@router.get("/document")
async def get_site_document(context: Context) -> SiteDocument:
    """The applied document's text. It holds references to secrets, never secrets."""
    return SiteDocument(document=(await _applied(context)).document)


@router.put("")
async def put_site(context: Context, body: SiteDocument, *, dry_run: Annotated[bool, Query()] = False) -> SiteChangeOut:
    """Apply a site document, or with `dry_run` only say what it would change."""
    answer = await context.apply_site(body.document, dry_run)
    if answer.changed and not dry_run:
        for loop in ("fleet", "autoscaler", "replicas", "gateway"):
            context.hints.hint(loop)
    return SiteChangeOut(changed=answer.changed, dry_run=dry_run, changes=list(answer.sentences))


async def _applied(context: Context) -> AppliedSite:
    async with context.store.transaction() as tx:
        site = await tx.site()
    if site is None:
        raise NotFoundError("no site is applied yet; apply one with `quarterdeck site apply FILE`")
    return site
