"""The licence gate: what a model's licence asks before it is served. Pure."""

from typing import assert_never

from controlplane.catalog.model import Commercial, ModelCard
from controlplane.kernel.errors import Problem


def licence_problem(model: ModelCard, *, accepted: bool) -> Problem | None:
    """A non-commercial model needs an explicit yes; a conditional one is served, its condition is shown."""
    licence = model.licence
    match licence.commercial:
        case Commercial.YES | Commercial.CONDITIONAL:
            return None
        case Commercial.NO:
            if accepted:
                return None
            return Problem(
                field="accept_license",
                found="false",
                expected=f"true, since {model.id} is under {licence.name}: {licence.condition}",
                hint="set accept_license: true when your use is allowed, or take another model",
            )
        case _:
            assert_never(licence.commercial)


def licence_note(model: ModelCard) -> str:
    """One line for people."""
    licence = model.licence
    return f"{licence.name}: {licence.condition}" if licence.condition else licence.name
