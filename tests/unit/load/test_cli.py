"""`quarterdeck load`: the same options as the module, with this program's exit codes."""

import typer
from typer.testing import CliRunner

from controlplane.cli.load import load
from controlplane.simulation.load import command


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(load)
    return app


def test_bad_options_are_usage_errors_in_words() -> None:
    result = CliRunner().invoke(_app(), ["--model", "chat=x", "--speed", "0"])
    assert result.exit_code == 2
    assert "--model" in result.output
    assert "--speed" in result.output


def test_the_wrapper_has_every_option_of_the_command() -> None:
    def options(function: object) -> set[str]:
        app = typer.Typer()
        app.command()(function)  # type: ignore[type-var]  # typer's own view of a function's options is the subject
        return {name for parameter in typer.main.get_command(app).params for name in parameter.opts}

    assert options(load) == options(command.load)
    assert {"--trace", "--speed", "--day", "--concurrency-max", "--json"} <= options(load)
