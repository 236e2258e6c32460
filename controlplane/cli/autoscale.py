"""`quarterdeck autoscale`: what autoscaling would do, did, and does wrong."""

import typer

from controlplane.cli.autoscale_doctor import doctor
from controlplane.cli.autoscale_dry_run import dry_run
from controlplane.cli.autoscale_explain import explain
from controlplane.cli.autoscale_simulate import simulate

app = typer.Typer(help="Check, explain and compare autoscaling.", no_args_is_help=True)
app.command()(doctor)
app.command("dry-run")(dry_run)
app.command()(explain)
app.command()(simulate)
