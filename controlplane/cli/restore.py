"""`quarterdeck restore`. Needs no control plane: it is for the day on which there is none."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.client import AsJson
from controlplane.cli.down import StateDir
from controlplane.cli.exits import reported
from controlplane.cli.moments import typed_moment
from controlplane.cli.vault_options import BreakGlassOption, SiteOption


def restore(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of the site file.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="An empty folder, or one that is not there yet.")],
    to_time: Annotated[
        str | None,
        typer.Option(
            "--to-time", metavar="TIME", help="Point in time, UTC without a zone; left out: everything there is."
        ),
    ] = None,
    point: Annotated[str | None, typer.Option(help="This recovery point; left out: the newest that fits.")] = None,
    bucket: Annotated[str | None, typer.Option(help="From this bucket; left out: the dataset's first.")] = None,
    site: SiteOption = None,
    state_dir: StateDir = None,
    break_glass_key: BreakGlassOption = None,
    *,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Start it on the side and check it.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset back, into a folder of its own: nothing live is ever written over."""
    from controlplane.cli.restoring import Wish, carry_out  # noqa: PLC0415 - a second of imports that few commands need

    with reported():
        carry_out(
            Wish(
                dataset=dataset,
                into=into,
                to_time=None if to_time is None else typed_moment("--to-time", to_time),
                point=point,
                bucket=bucket,
                site=site,
                state_dir=state_dir,
                break_glass_key=break_glass_key,
                verify=verify,
                dry_run=dry_run,
                yes=yes,
                as_json=as_json,
            )
        )
