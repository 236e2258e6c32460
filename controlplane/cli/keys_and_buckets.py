"""Commands beside the loops: keys, buckets, evidence, reading a copy to its last byte. None needs a control plane.

Their work is in `vault_work`: a second of imports that other commands do without.
"""
# ruff: noqa: PLC0415 - see above

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.client import AsJson
from controlplane.cli.down import StateDir
from controlplane.cli.exits import reported
from controlplane.cli.vault_options import BreakGlassOption, SiteOption

bucket = typer.Typer(no_args_is_help=True, help="Buckets as declared, beside the real ones.")
evidence = typer.Typer(no_args_is_help=True, help="What drills proved, verified offline.")

BucketArgument = Annotated[str | None, typer.Argument(metavar="BUCKET", help="One of recovery.buckets; left out: all.")]


def backup_verify(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of the site file.")],
    point: Annotated[str, typer.Argument(metavar="POINT", help="A recovery point (`quarterdeck backup list`).")],
    bucket_name: Annotated[str | None, typer.Option("--bucket", help="In this bucket.")] = None,
    site: SiteOption = None,
    state_dir: StateDir = None,
    break_glass_key: BreakGlassOption = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a copy and authenticate it, without restoring it."""
    from controlplane.cli.vault_work import Place, verify

    with reported():
        place = Place(site=site, state_dir=state_dir, break_glass_key=break_glass_key)
        verify(place, dataset, point, bucket_name, as_json=as_json)


def backup_read_gpg(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="A file, or s3://BUCKET/KEY of a bucket of the site file.")
    ],
    into: Annotated[
        str, typer.Option("--into", metavar="FILE|-", help="A file that is not there yet; `-`: standard output.")
    ],
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", metavar="FILE", help="Its passphrase (mode 600); left out: asked for."),
    ] = None,
    site: SiteOption = None,
    state_dir: StateDir = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Decrypt what `gpg --symmetric` wrote. The file is there when gpg has proven all of it, or not at all."""
    from controlplane.cli.gpg_archive import Wish, read_archive

    with reported():
        read_archive(
            Wish(
                archive=archive,
                into=into,
                passphrase_file=passphrase_file,
                site=site,
                state_dir=state_dir,
                as_json=as_json,
            )
        )


def backup_break_glass(
    private: Annotated[Path, typer.Argument(help="Where the private half goes: onto a medium that leaves the site.")],
    public: Annotated[Path, typer.Argument(help="Where the public half goes: named as recovery.keys.break_glass.")],
    *,
    passphrase: Annotated[bool, typer.Option("--passphrase/--no-passphrase", help="Protect the private half.")] = True,
) -> None:
    """Make the offline key that opens every copy when the site key is gone."""
    from controlplane.cli.vault_work import make_break_glass

    with reported():
        make_break_glass(private, public, passphrase=passphrase)


def backup_rewrap(site: SiteOption = None, state_dir: StateDir = None, *, as_json: AsJson = False) -> None:
    """After a new site key (the former one under `retired`): seal every copy's key for it. Data stay as they are."""
    from controlplane.cli.vault_work import Place, rewrap_all

    with reported():
        rewrap_all(Place(site=site, state_dir=state_dir), as_json=as_json)


@bucket.command("plan")
def bucket_plan(
    name: BucketArgument = None, site: SiteOption = None, state_dir: StateDir = None, *, as_json: AsJson = False
) -> None:
    """What of the real buckets differs from what is declared. Exit code 1: something does."""
    from controlplane.cli.vault_work import Place, show_drift

    with reported():
        show_drift(Place(site=site, state_dir=state_dir), name, as_json=as_json)


@bucket.command("apply")
def bucket_apply(
    name: BucketArgument = None,
    site: SiteOption = None,
    state_dir: StateDir = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Make the real buckets what is declared. Never shortens a lock, never deletes an object."""
    from controlplane.cli.vault_work import Place, mend_drift

    with reported():
        mend_drift(Place(site=site, state_dir=state_dir), name, yes=yes)


@evidence.command("verify")
def evidence_verify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Files from the bucket's evidence/.")],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", metavar="FILE", help="The key that must have signed them.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check signature, contents and chain of evidence. tools/verify_evidence.py does the same with no code of ours."""
    from controlplane.cli.vault_work import verify_evidence

    with reported():
        verify_evidence(bundles, public_key, as_json=as_json)


@evidence.command("key")
def evidence_key(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where the public key goes.")],
    site: SiteOption = None,
    state_dir: StateDir = None,
) -> None:
    """Write the public key that this site's evidence is signed for, to pin it elsewhere."""
    from controlplane.cli.vault_work import Place, write_evidence_key

    with reported():
        write_evidence_key(Place(site=site, state_dir=state_dir), out)
