"""The options with which a site's load is started are options of `quarterdeck load`."""

from datetime import timedelta

import typer

from controlplane.bootstrap.serve import describe_load
from controlplane.bootstrap.site_load import load_arguments
from controlplane.cli.main import app
from controlplane.domain.site import LoadSpec
from controlplane.kernel.ids import DeploymentName
from controlplane.simulation.load.options import LoadOptions, config_of

SPEC = LoadSpec(
    deployment_weights=((DeploymentName("chat"), 3.0), (DeploymentName("embed"), 0.5)),
    peak_rps=32.5,
    trough_rps=2.0,
    day=timedelta(minutes=10),
    duration=timedelta(minutes=30),
)


def test_they_parse() -> None:
    arguments = load_arguments(
        SPEC, "http://127.0.0.1:8000", control_url="http://127.0.0.1:8080", embedding=frozenset({"embed"})
    )
    group = typer.main.get_command(app)
    command = group.commands["load"]  # type: ignore[attr-defined]  # the program is a group
    given = command.make_context("load", arguments).params
    assert (given["model"], given["embed"]) == (["chat=3"], ["embed=0.5"])
    assert (given["peak_rps"], given["trough_rps"], given["seed"]) == (32.5, 2.0, SPEC.seed)
    config = config_of(
        LoadOptions(
            models=given["model"], embed_models=given["embed"], gateway=given["gateway"],
            control_plane=given["control_plane"], trace=given["trace"], speed=given["speed"], day=given["day"],
            peak_rps=given["peak_rps"], trough_rps=given["trough_rps"], prompt_tokens_mean=given["prompt_tokens"],
            output_tokens_mean=given["output_tokens"], duration=given["duration"], requests_max=given["max_requests"],
            concurrency_max=given["concurrency_max"], context_max=given["context_max"],
            request_timeout=given["request_timeout"], slo_ttft=given["slo_ttft"], slo_itl=given["slo_itl"],
            slo_e2e=given["slo_e2e"], api_key_env=given["api_key_env"], seed=given["seed"],
        ),
        {},
    )  # fmt: skip
    assert [share.name for share in config.models] == ["chat", "embed"]


def test_it_is_told_in_words() -> None:
    assert describe_load(SPEC, asked_for=True) == (
        "a day in 10 minutes, 2 to 32.5 requests/s, ends by itself after 30 minutes"
    )
    assert describe_load(SPEC, asked_for=False) == "none (--no-load)"
    assert describe_load(None, asked_for=True) == "none in the site file"
