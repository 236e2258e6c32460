"""Options: what they become, and every problem at once."""

from dataclasses import replace

import pytest

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.load.model import ModelShare, Objective, Task
from controlplane.simulation.load.options import LoadOptions, config_of

PLAIN = LoadOptions(
    models=["chat=3"],
    gateway="http://127.0.0.1:8000",
    speed=10.0,
    day="10m",
    peak_rps=10.0,
    trough_rps=1.0,
    prompt_tokens_mean=600,
    output_tokens_mean=120,
    duration="1h",
    requests_max=10,
    concurrency_max=5,
    request_timeout="300s",
    seed=7,
)


def test_words_become_a_config() -> None:
    options = replace(PLAIN, embed_models=["bge"], slo_ttft="500ms", slo_itl="0.05", api_key_env="KEY")
    config = config_of(options, {"KEY": "secret"})
    assert config.models == (
        ModelShare(name="chat", weight=3.0),
        ModelShare(name="bge", weight=1.0, task=Task.EMBED),
    )
    assert (config.day.length_s, config.duration_s, config.request_timeout_s) == (600.0, 3600.0, 300.0)
    assert config.objective == Objective(ttft_s=0.5, inter_token_s=0.05)
    assert config.api_key == "secret"
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"models": []}, "--model"),
        ({"models": ["chat=x"]}, "--model"),
        ({"models": ["chat=-1"]}, "--model"),
        ({"models": ["=2"]}, "--model"),
        ({"models": ["a", "a"]}, "--model"),
        ({"gateway": "127.0.0.1:8000"}, "--gateway"),
        ({"control_plane": "ftp://x"}, "--control-plane"),
        ({"speed": 0.0}, "--speed"),
        ({"peak_rps": -1.0}, "--peak-rps"),
        ({"trough_rps": -1.0}, "--trough-rps"),
        ({"day": "soon"}, "--day"),
        ({"duration": "0"}, "--duration"),
        ({"requests_max": 0}, "--max-requests"),
        ({"concurrency_max": 0}, "--concurrency-max"),
        ({"slo_ttft": "1 s"}, "--slo-ttft"),
        ({"api_key_env": "NONE"}, "--api-key-env"),
    ],
)
def test_a_wrong_option_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        config_of(replace(PLAIN, **changes), {})  # type: ignore[arg-type]  # fields of the dataclass by name
    assert [problem.field for problem in caught.value.problems] == [field]


def test_all_problems_come_together() -> None:
    with pytest.raises(InvalidError) as caught:
        config_of(replace(PLAIN, models=["x=0"], speed=-1.0, duration="x"), {})
    assert len(caught.value.problems) == 3
