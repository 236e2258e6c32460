"""Applying a site document to a store: parse, plan, compare, write. What start-up and `PUT /api/v1/site` share."""

from dataclasses import dataclass

from controlplane.adapters.sitefile.parse import parse_site, read_site
from controlplane.adapters.sitefile.planned import PlannedFile, plan_site_file
from controlplane.adapters.sitefile.references import Known
from controlplane.domain.site import Site
from controlplane.domain.store import Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import InvalidError
from controlplane.sites.apply import apply_site, preview_site
from controlplane.sites.model import Planner, SiteChange


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentChange:
    """What applying the document changed or, as a dry run, would change."""

    planned: PlannedFile
    change: SiteChange


async def apply_document(
    store: Store, document: str, *, file: str, known: Known, planner: Planner, clock: Clock, dry_run: bool = False
) -> DocumentChange:
    """Apply the document, or with `dry_run` only say what it would change. Applying it again changes nothing.

    InvalidError with every problem in it; ConflictError where running replicas forbid it. Either leaves all as it was.
    """
    read = read_site(document, file=file, known_models=known.models, known_gpus=known.gpus)
    planned = plan_site_file(read, planner)
    previous = await _previous(store)
    if dry_run:
        change = await preview_site(store, planned.site, planned.document, planned.plans, previous=previous)
    else:
        change = await apply_site(store, planned.site, planned.document, planned.plans, clock, previous=previous)
    return DocumentChange(planned=planned, change=change)


async def _previous(store: Store) -> Site | None:
    """The site applied last, for the sentences about sections without rows; None where there is none to read."""
    async with store.transaction() as tx:
        applied = await tx.site()
    if applied is None:
        return None
    try:
        return parse_site(applied.document, file="the site applied last")
    except InvalidError:
        # It was applied by a version with another schema. The rows are compared all the same.
        return None
