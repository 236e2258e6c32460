"""The small parts of the simulated engine: options, faults, text, blocks, GPU state, sound."""

from pathlib import Path

import orjson
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from controlplane.cli.sim_engine import register
from controlplane.kernel.errors import InvalidError
from controlplane.kernel.units import GIB
from controlplane.simulation.engine import speech, text
from controlplane.simulation.engine.faults import Fault, parse_faults
from controlplane.simulation.engine.gpu_state import GpuFiles, GpuLoad
from controlplane.simulation.engine.kv_blocks import BlockPool
from controlplane.simulation.engine.options import EngineOptions, Task, parse_options


def options(*argv: str, **environ: str) -> EngineOptions:
    return parse_options(["org/model", *argv], environ)


# options


def test_the_launchers_command_line_is_understood() -> None:
    parsed = options(
        *("--host", "127.0.0.1", "--port", "20001", "--served-model-name", "chat", "chat-v2"),
        *("--tensor-parallel-size", "4", "--max-model-len", "8k", "--max_num_seqs=64", "--dtype", "bfloat16"),
        *("--sim-profile", '{"kv_tokens": 16000, "step_base_s": 0.01}', "--sim-task", "generate", "--sim-speed", "5"),
        *("--shutdown-timeout", "60", "--sim-cold-start", "2.5", "--sim-fault", "slow=2", "--no-enable-prefix-caching"),
        QUARTERDECK_NODE="node-1",
        QUARTERDECK_GPUS="0,1",
        QUARTERDECK_REPLICA="qd-chat-0a1b2c3d-0",
    )
    assert parsed.served_names == ("chat", "chat-v2")
    assert parsed.ignored == ("--tensor-parallel-size", "--dtype")
    assert parsed.max_model_len == 8000
    assert parsed.limits.max_num_seqs == parsed.profile.max_num_seqs == 64
    assert (parsed.limits.kv_blocks, parsed.limits.prefix_caching) == (1000, False)
    assert (parsed.gpus, parsed.node, parsed.task) == ((0, 1), "node-1", Task.GENERATE)
    assert parsed.faults == {Fault.SLOW: 2.0}


def test_the_model_is_served_under_its_own_name_by_default() -> None:
    assert options().served_names == ("org/model",)
    assert parse_options(["--model", "a/b"], {}).model == "a/b"


def test_the_context_is_bounded_by_the_cache() -> None:
    assert options("--num-gpu-blocks-override", "100").max_model_len == 1600
    with pytest.raises(InvalidError, match="at most 1600"):
        options("--num-gpu-blocks-override", "100", "--max-model-len", "2000")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--sim-nonsense",), "unknown option"),
        (("--sim-profile", "{"), "--sim-profile"),
        (("--sim-profile", "[]"), "a JSON object"),
        (("--sim-profile", '{"kv_tokens": -1}'), ">= 0"),
        (("--sim-fault", "hnag"), "Did you mean hang?"),
        (("--sim-fault", "slow"), "slow=VALUE"),
        (("--sim-fault", "error-rate=2"), "<= 1"),
        (("--max-num-seqs", "100", "--max-num-batched-tokens", "50"), "at least max_num_seqs"),
        (("--lora-modules", "tuned"), "NAME=PATH"),
        (("--lora-modules", "{"), "NAME=PATH"),
    ],
)
def test_wrong_options_are_named(argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        options(*argv)
    assert words in str(caught.value)


@pytest.mark.parametrize("argv", [("--port", "99999"), ("--sim-speed", "0"), ("--max-model-len", "many")])
def test_bad_numbers_exit_with_two(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        options(*argv)
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_replicas_of_one_deployment_get_their_own_seeds() -> None:
    seeds = {options(QUARTERDECK_REPLICA=f"qd-chat-0a1b2c3d-{n}").own_seed for n in range(10)}
    assert len(seeds) == 10


def test_adapters_come_as_pairs_or_json() -> None:
    parsed = options("--lora-modules", "a=/x", '{"name": "b", "path": "/y", "base_model_name": "m"}')
    assert parsed.adapters == (("a", "/x"), ("b", "/y"))


def test_fault_values_have_defaults() -> None:
    assert parse_faults(["crash", "flaky-health", "hang"]) == {
        Fault.CRASH: 0.0,
        Fault.FLAKY_HEALTH: 0.5,
        Fault.HANG: 1.0,
    }


def test_the_command_passes_every_word_through() -> None:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["sim-engine", "m", "--sim-fault", "hnag", "--unknown", "x"])
    assert result.exit_code == 2
    helped = CliRunner().invoke(app, ["sim-engine", "--help"])
    assert helped.exit_code == 0
    assert "--sim-cold-start" in helped.output


# text


@given(st.integers(0, 2**32 - 1), st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 3000))
def test_filler_is_four_characters_a_token_and_seamless(fingerprint: int, start: int, one: int, two: int) -> None:
    whole = text.filler(fingerprint, start, one + two)
    assert whole == text.filler(fingerprint, start, one) + text.filler(fingerprint, start + one, two)
    assert len(whole) == 4 * (one + two)
    assert orjson.dumps(whole) == b'"' + whole.encode() + b'"', "it can stand in JSON as it is"


def common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@given(st.text(max_size=300), st.text(max_size=100), st.text(max_size=100))
def test_equal_prefixes_have_equal_keys_and_others_do_not(common: str, one: str, other: str) -> None:
    first, second = (text.prompt_of_text(common + tail, block_tokens=4) for tail in (one, other))
    shared = common_length(common + one, common + other) // 16
    assert first.prefix_keys[:shared] == second.prefix_keys[:shared]
    if len(first.prefix_keys) > shared and len(second.prefix_keys) > shared:
        assert first.prefix_keys[shared] != second.prefix_keys[shared]


def test_an_answer_counts_the_same_as_a_prompt() -> None:
    assert text.count_tokens(text.filler(5, 0, 37)) == 37
    assert text.count_tokens("") == 1


def test_natural_lengths_are_near_a_chats() -> None:
    lengths = [text.natural_length(n * 2_654_435_761 % 2**32, 0) for n in range(2000)]
    assert 200 < sum(lengths) / len(lengths) < 300
    assert 150 < sorted(lengths)[1000] < 210


def test_pictures_in_messages_count() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}]}
    assert text.count_tokens(text.chat_text([message])) > text.IMAGE_TOKENS


# blocks


def test_idle_prefixes_go_least_recently_used_first() -> None:
    pool = BlockPool(3)
    for key in (1, 2):
        assert pool.acquire((), 1)
        assert pool.publish(key)
        pool.release([key], 0)
    assert (pool.used, pool.available) == (0, 3)
    assert pool.acquire([1], 0)
    pool.release([1], 0)
    assert pool.acquire((), 2), "one free block, and the idle prefix 2"
    assert pool.hits([1], 9) == 1
    assert pool.hits([2], 9) == 0
    assert not pool.acquire([1], 1), "waking the idle block takes the last room"
    pool.release((), 2)
    pool.forget_idle()
    assert pool.hits([1], 9) == 0
    assert pool.available == 3


def test_a_prefix_is_shared_by_count() -> None:
    pool = BlockPool(4)
    assert pool.acquire((), 1)
    assert pool.publish(7)
    assert not pool.publish(7), "somebody else was first"
    assert pool.acquire([7], 1)
    assert pool.used == 2
    pool.release([7], 0)
    assert pool.used == 2
    pool.release([7], 1)
    assert pool.used == 0


# GPU state


def test_gpu_files_are_replaced_whole_and_removed(tmp_path: Path) -> None:
    files = GpuFiles(
        directory=tmp_path,
        node="node-1",
        gpus=(0, 3),
        replica="qd-chat-0a1b2c3d-0",
        memory_total_bytes=180 * GIB,
        memory_utilization=0.9,
        power_full_w=1000.0,
    )
    files.write(GpuLoad(utilization=1.0, memory_share=1.0), pid=42)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node-1.0.json", "node-1.3.json"]
    busy = orjson.loads((tmp_path / "node-1.3.json").read_bytes())
    assert set(busy) == {
        *("at", "pid", "replica", "utilization", "memory_used_bytes", "memory_total_bytes", "power_w", "temperature_c")
    }
    assert busy["memory_used_bytes"] == 162 * GIB
    assert (busy["power_w"], busy["temperature_c"]) == (1000.0, 72.0)
    idle = files.reading(GpuLoad(utilization=0.0, memory_share=0.0), pid=42, at=1.0)
    assert idle["memory_used_bytes"] == 2 * GIB
    assert idle["power_w"] == pytest.approx(140.0)
    files.remove()
    files.remove()
    assert not list(tmp_path.iterdir())


# sound


def test_silence_is_as_long_as_asked() -> None:
    wav = speech.silence(1.5, wav=True)
    assert speech.audio_seconds(wav) == pytest.approx(1.5, abs=0.01)
    assert len(speech.silence(1.5, wav=False)) == 72_000


def test_forms_without_what_is_needed_are_none_or_lack_parts() -> None:
    assert speech.parse_form(b"application/json", b"{}") is None
    assert speech.parse_form(b"multipart/form-data", b"") is None
    assert speech.parse_form(b'multipart/form-data; boundary="b"', b"--b\r\nbroken") == {}
