"""Options of the commands that open copies themselves."""

from pathlib import Path
from typing import Annotated

import typer

SiteOption = Annotated[
    Path | None,
    typer.Option("--site", metavar="FILE", help="The site file; left out: the one last applied in the state folder."),
]
BreakGlassOption = Annotated[
    Path | None,
    typer.Option("--break-glass-key", metavar="FILE", help="Open with the offline key instead of the site key."),
]
