"""`quarterdeck autoscale`: what autoscaling would do, did, and does wrong."""

import typer

from controlplane.cli.autoscale_doctor import doctor
from controlplane.cli.autoscale_explain import explain

app = typer.Typer(help="Check autoscaling recipes.", no_args_is_help=True)
app.command()(doctor)
app.command()(explain)
