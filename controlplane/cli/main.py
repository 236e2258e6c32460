"""The `quarterdeck` command."""

from collections.abc import Callable
from typing import Annotated, Final

import typer

import controlplane
from controlplane.cli import (
    agent,
    autoscale,
    down,
    history,
    intents,
    keys_and_buckets,
    load,
    models,
    recovery,
    removing,
    restore,
    show,
    sim_engine,
    site,
    up,
    watch,
)

app = typer.Typer(
    name="quarterdeck",
    help="One control plane for a GPU fleet that a team owns.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(controlplane.__version__)
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One control plane for a GPU fleet that a team owns."""


_COMMANDS: Final[tuple[tuple[str, tuple[Callable[..., None], ...]], ...]] = (
    ("Run", (up.up, down.down, load.load)),
    (
        "Look",
        (
            show.status, watch.watch, show.nodes, show.gpus, show.deployments, show.replicas, show.logs,
            history.events, history.decisions, history.usage,
        ),
    ),
    ("Change", (intents.scale, intents.pause, intents.resume, intents.shadow)),
)  # fmt: skip
for _panel, _commands in _COMMANDS:
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(agent.app, name="agent", rich_help_panel="Run")
sim_engine.register(app)
app.add_typer(models.app, name="models", rich_help_panel="Look")
app.add_typer(site.app, name="site", rich_help_panel="Look")
app.add_typer(autoscale.app, name="autoscale", rich_help_panel="Look")
app.add_typer(intents.node, name="node", rich_help_panel="Change")
for _name, _command in (
    ("verify", keys_and_buckets.backup_verify),
    ("rewrap", keys_and_buckets.backup_rewrap),
    ("break-glass", keys_and_buckets.backup_break_glass),
    ("delete", removing.backup_delete),
    ("read-gpg", keys_and_buckets.backup_read_gpg),
):
    recovery.backup.command(_name)(_command)
app.command(rich_help_panel="Recover")(restore.restore)
app.add_typer(recovery.recovery, name="recovery", rich_help_panel="Recover")
app.add_typer(recovery.backup, name="backup", rich_help_panel="Recover")
app.add_typer(recovery.drill, name="drill", rich_help_panel="Recover")
app.add_typer(keys_and_buckets.bucket, name="bucket", rich_help_panel="Recover")
app.add_typer(keys_and_buckets.evidence, name="evidence", rich_help_panel="Recover")
