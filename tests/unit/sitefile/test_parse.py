"""What a site file says, and each thing that can be wrong with one, found where it stands."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters.sitefile.parse import load_site, parse_site, read_text
from controlplane.adapters.sitefile.positions import DOCUMENT_BYTES_MAX
from controlplane.domain.deployment import EngineKind, IdleMode
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import StoreKind, TelemetrySource
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import DeploymentName, NodeName, PoolName
from controlplane.kernel.units import KIB, MIB

HEAD = """\
site: {name: lab}
node_pools: [{name: h100, gpu: h100, nodes: 2, gpus_per_node: 8, simulated: true}]
engines: [{name: sim, kind: simulated}]
"""
CHAT = "deployments: [{name: chat, model: llama-3.1-8b, replicas: {min: 1, max: 2}}]\n"

ONE = "    replicas: {min: 1, max: 1}\n"


def problems(text: str, *, models: frozenset[str] | None = None, gpus: frozenset[str] | None = None) -> list[Problem]:
    with pytest.raises(InvalidError) as caught:
        parse_site(text, file="site.yaml", known_models=models, known_gpus=gpus)
    return list(caught.value.problems)


def only_problem(text: str, **known: frozenset[str]) -> Problem:
    found = problems(text, models=known.get("models"), gpus=known.get("gpus"))
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def deployment(fields: str) -> str:
    return f"{HEAD}deployments:\n  - name: chat\n    model: llama-3.1-8b\n{fields}"


def test_the_smallest_site_has_every_default() -> None:
    site = parse_site(HEAD + CHAT, file="site.yaml")
    assert site.name == "lab"
    assert [node.name for node in site.nodes] == ["h100-1", "h100-2"]
    assert site.nodes[0].numa_of_gpu == (0, 0, 0, 0, 1, 1, 1, 1)
    assert site.nodes[0].simulated
    assert site.engines[0].kind is EngineKind.SIMULATED
    chat = site.deployments[0]
    assert chat.engine == "sim"
    assert chat.served_names == ("chat", "llama-3.1-8b")
    assert chat.slo == Slo()
    assert chat.idle_mode is IdleMode.STOP
    assert (site.gateway.host, site.gateway.port) == ("127.0.0.1", 8000)
    assert site.telemetry.source is TelemetrySource.DIRECT
    assert site.store.kind is StoreKind.SQLITE
    assert site.load is None
    assert site.replica_ports == (20000, 20999)


def test_every_field_arrives() -> None:
    text = """
site: {name: lab}
node_pools:
  - name: real
    gpu: h100
    gpus_per_node: 4
    numa: [0, 0, 1, 1]
    nodes:
      - {name: gpu-a, address: 10.0.0.1, agent_url: "http://10.0.0.1:9400"}
      - {name: gpu-b, address: gpu-b.internal}
engines:
  - name: default
    kind: vllm
    command: [/opt/vllm/bin/vllm, serve]
    env: {VLLM_LOGGING_LEVEL: INFO, TOKENIZERS_PARALLELISM: "false"}
    args: {enable_prefix_caching: true, swap-space: 8, compilation-config: {level: 3}}
    memory_utilization: 0.9
  - {name: sim, kind: simulated, speed: 10, cold_start: 6s, wake: 500ms}
deployments:
  - name: chat
    model: llama-3.1-8b
    weights: our-team/llama-3.1-8b-support
    revision: 0e9e39f
    served_names: [chat, gpt-4o]
    replicas: {min: 0, max: 4}
    idle_after: 1h30m
    idle_mode: sleep
    engine: default
    pool: real
    precision: fp8
    tensor_parallel: 2
    context: 16384
    max_num_seqs: 64
    engine_args: {block-size: 32}
    adapters: [{name: chat-legal, path: /srv/adapters/legal}]
    accept_license: true
    slo: {ttft: {p95: 500ms}, inter_token: {p99.9: 50ms}, end_to_end: {p50: 1.5s}}
gateway:
  host: 0.0.0.0
  port: 8001
  hold: {requests: 8, bytes: 1MiB, timeout: 10s}
  queue_timeout: 5s
  body_max: 512KiB
  request_timeout: 2m
  tenants: [{name: ops, keys: [{env: OPS_KEY}, {file: /run/secrets/ops}], requests_per_minute: 60}]
telemetry: {source: prometheus, prometheus_url: "http://10.0.0.9:9090", interval: 2s, stale_after: 10s}
store: {kind: postgresql, url: {env: DATABASE_URL}}
replica_ports: {first: 30000, last: 30100}
load:
  deployments: {chat: 2.5}
  peak_rps: 10
  trough_rps: 0.5
  day: 5m
  duration: 1h
  prompt_tokens_mean: 100
  output_tokens_mean: 50
  seed: 1
"""
    site = parse_site(text, file="site.yaml")
    first, second = site.nodes
    assert (first.name, first.address, first.agent_url) == ("gpu-a", "10.0.0.1", "http://10.0.0.1:9400")
    assert (second.address, second.agent_url, second.numa_of_gpu) == ("gpu-b.internal", None, (0, 0, 1, 1))
    vllm, sim = site.engines
    assert vllm.command == ("/opt/vllm/bin/vllm", "serve")
    assert vllm.env == (("VLLM_LOGGING_LEVEL", "INFO"), ("TOKENIZERS_PARALLELISM", "false"))
    assert vllm.args == (
        ("enable-prefix-caching", "true"),
        ("swap-space", "8"),
        ("compilation-config", '{"level":3}'),
    )
    assert (sim.speed, sim.cold_start, sim.wake) == (10.0, timedelta(seconds=6), timedelta(milliseconds=500))
    chat = site.deployments[0]
    assert chat.served_names == ("chat", "gpt-4o", "chat-legal")
    assert (chat.replicas_min, chat.replicas_max, chat.idle_after) == (0, 4, timedelta(minutes=90))
    assert (chat.idle_mode, chat.pool, chat.precision) == (IdleMode.SLEEP, PoolName("real"), "fp8")
    assert (chat.tensor_parallel, chat.context_tokens, chat.max_num_seqs) == (2, 16384, 64)
    assert chat.engine_args == (("revision", "0e9e39f"), ("block-size", "32"))
    assert chat.weights == "our-team/llama-3.1-8b-support"
    assert chat.adapters == (("chat-legal", "/srv/adapters/legal"),)
    assert chat.accept_license
    assert chat.slo == Slo(
        ttft=LatencyTarget(percentile=0.95, limit=timedelta(milliseconds=500)),
        inter_token=LatencyTarget(percentile=0.999, limit=timedelta(milliseconds=50)),
        end_to_end=LatencyTarget(percentile=0.5, limit=timedelta(seconds=1.5)),
    )
    gateway = site.gateway
    assert (gateway.hold_requests_max, gateway.hold_bytes_max, gateway.body_bytes_max) == (8, MIB, 512 * KIB)
    assert (gateway.hold_timeout, gateway.queue_timeout) == (timedelta(seconds=10), timedelta(seconds=5))
    assert gateway.request_timeout == timedelta(minutes=2)
    assert gateway.tenants[0].keys == (SecretRef("env", "OPS_KEY"), SecretRef("file", "/run/secrets/ops"))
    assert gateway.tenants[0].requests_per_minute == 60
    assert site.telemetry.prometheus_url == "http://10.0.0.9:9090"
    assert site.store.url == SecretRef("env", "DATABASE_URL")
    assert site.replica_ports == (30000, 30100)
    assert site.load is not None
    assert site.load.deployment_weights == (("chat", 2.5),)
    assert site.load.day == timedelta(minutes=5)


def test_the_models_name_is_served_only_where_nobody_else_goes_by_it() -> None:
    text = f"""{HEAD}deployments:
  - {{name: a, model: m1, replicas: {{min: 1, max: 1}}}}
  - {{name: b, model: m1, replicas: {{min: 1, max: 1}}}}
  - {{name: c, model: m2, replicas: {{min: 1, max: 1}}}}
  - {{name: d, model: m3, served_names: [m2], replicas: {{min: 1, max: 1}}}}
  - {{name: e, model: e, replicas: {{min: 1, max: 1}}}}
  - {{name: f, model: m4, replicas: {{min: 1, max: 1}}}}
"""
    served = {spec.name: spec.served_names for spec in parse_site(text, file="s").deployments}
    assert served == {
        DeploymentName("a"): ("a",),
        DeploymentName("b"): ("b",),
        DeploymentName("c"): ("c",),
        DeploymentName("d"): ("m2",),
        DeploymentName("e"): ("e",),
        DeploymentName("f"): ("f", "m4"),
    }


def test_a_deployment_names_its_engine_or_gets_the_default_one() -> None:
    text = (HEAD + CHAT).replace("engines: [", "engines: [{name: default, kind: simulated}, ")
    assert parse_site(text, file="s").deployments[0].engine == "default"


def test_nodes_may_be_named() -> None:
    text = (HEAD + CHAT).replace("nodes: 2", "nodes: [left, {name: right}]")
    assert [node.name for node in parse_site(text, file="s").nodes] == [NodeName("left"), NodeName("right")]


def test_a_board_that_is_no_hgx_has_no_numa_unless_told() -> None:
    text = (HEAD + CHAT).replace("gpus_per_node: 8", "gpus_per_node: 4")
    assert parse_site(text, file="s").nodes[0].numa_of_gpu == ()


@pytest.mark.parametrize(
    ("text", "field", "found", "hint", "place"),
    [
        (HEAD + "gatway: {}\n", "gatway", "unknown key", 'did you mean "gateway"?', (4, 1)),
        (HEAD + "gateway: {prot: 1}\n", "gateway.prot", "unknown key", 'did you mean "port"?', (4, 11)),
        (HEAD + "gateway: {port: '80'}\n", "gateway.port", '"80"', "write 80 without quotes", (4, 17)),
        (HEAD + "gateway: {port: 70000}\n", "gateway.port", "70000", "", (4, 17)),
        (HEAD + "gateway: {port: 8000.5}\n", "gateway.port", "8000.5", "", (4, 17)),
        (HEAD + "gateway: {port: true}\n", "gateway.port", "true", "", (4, 17)),
        (HEAD + "gateway: [1]\n", "gateway", "a list of 1", "", (4, 10)),
        (HEAD + "gateway:\n", "gateway", "nothing", "", (4, 1)),
        (HEAD + "telemetry: {source: dirct}\n", "telemetry.source", '"dirct"', 'did you mean "direct"?', (4, 21)),
        (HEAD + "store: {kind: postgresql}\n", "store.url", "nothing", "add `url: {env:", (4, 1)),
        (HEAD + "store: {url: {env: X}}\n", "store.url", "url without kind", "add kind: postgresql", (4, 9)),
        (HEAD + "telemetry: {source: prometheus}\n", "telemetry.prometheus_url", "nothing", "prometheus_url", (4, 1)),
        (HEAD + "telemetry: {interval: 10s}\n", "telemetry.interval", "interval 10s", "stale_after", (4, 23)),
        (HEAD + "telemetry: {interval: 1}\n", "telemetry.interval", "1", "for example 1s", (4, 23)),
        (HEAD + "replica_ports: {first: 30000}\n", "replica_ports", "first 30000 after last 20999", "", (4, 16)),
        (HEAD + "gateway: {port: 20000}\n", "gateway.port", "the gateway's port 20000 inside", "", (4, 17)),
        (HEAD.replace("h100, gpu", "h, gpu").replace("kind: simulated", "kind: simulated, speed: 0"),
         "engines[sim].speed", "0", "", (3, 47)),
        (HEAD.replace("simulated: true", "simulated: yes"), "node_pools[h100].simulated", '"yes"', "YAML 1.2", (2, 77)),
        (HEAD.replace("nodes: 2", "nodes: 0"), "node_pools[h100].nodes", "0", "", (2, 45)),
        (HEAD.replace("nodes: 2", "nodes: two"), "node_pools[h100].nodes", '"two"', "for example nodes: 2", (2, 45)),
        (HEAD.replace("nodes: 2", "nodes: [A]"), "node_pools[h100].nodes[0]", '"A"', "write a", (2, 46)),
        (HEAD.replace("nodes: 2", "nodes: [{nam: a, name: b}]"), "node_pools[h100].nodes[b].nam", "unknown key",
         'did you mean "name"?', (2, 47)),
        (HEAD.replace("nodes: 2", "numa: [0], nodes: 2"), "node_pools[h100].numa", "a list of 1", "nvidia", (2, 44)),
        (HEAD.replace(", simulated: true", ""), "node_pools[h100].nodes", "real nodes h100-1 and h100-2 both at 127",
         "address: HOST", (2, 45)),
        (HEAD.replace("name: h100", f"name: {'p' * 39}"), f"node_pools[{'p' * 39}].name", "a node called", "shorten",
         (2, 21)),
        (HEAD.replace("kind: simulated", "kind: vllm, cold_start: 5s"), "engines[sim].cold_start",
         "cold_start with kind: vllm", "delete cold_start", (3, 35)),
        (HEAD.replace("engines: [", "engines: [{name: sim, kind: simulated}, "), "engines[sim].name",
         'a second engine "sim"', "rename", (3, 48)),
        (HEAD.replace("site: {name: lab}", "site: {}"), "site.name", "nothing", "`name: demo`", (1, 1)),
        (HEAD.replace("site: {name: lab}\n", ""), "site", "nothing", "{name: demo}", (1, 1)),
    ],
)  # fmt: skip
def test_sections(text: str, field: str, found: str, hint: str, place: tuple[int, int]) -> None:
    problem = only_problem(text)
    assert problem.field == field
    assert found in problem.found
    assert hint in problem.hint
    assert problem.hint
    assert problem.expected
    assert (problem.file, problem.line, problem.column) == ("site.yaml", *place)


@pytest.mark.parametrize(
    ("fields", "field", "found", "place"),
    [
        ("", "replicas", "nothing", (5, 5)),
        ("    replicas: {min: 2, max: 1}\n", "replicas.max", "max 1 below min 2", (7, 29)),
        ("    replicas: {min: 0, max: 1}\n", "replicas.min", "min 0 without idle_after", (7, 21)),
        (ONE + "    idle_after: 5m\n", "idle_after", "idle_after with replicas.min 1", (8, 5)),
        ("    replicas: {min: 1}\n", "replicas.max", "nothing", (7, 5)),
        ("    replicas: 2\n", "replicas", "2", (7, 15)),
        ("    replicas: {min: -1, max: 1}\n", "replicas.min", "-1", (7, 21)),
        (ONE + "    engine: sin\n", "engine", 'an unknown engine "sin"', (8, 13)),
        (ONE + "    pool: h10\n", "pool", 'an unknown pool "h10"', (8, 11)),
        (ONE + "    slo: {ttft: {p95: fast}}\n", "slo.ttft.p95", '"fast"', (8, 23)),
        (ONE + "    slo: {ttft: {p0: 1s}}\n", "slo.ttft.p0", 'the key "p0"', (8, 18)),
        (ONE + "    slo: {ttft: {}}\n", "slo.ttft", "a mapping with 0 keys", (8, 17)),
        (ONE + "    slo: {ttft: {p50: 1s, p95: 2s}}\n", "slo.ttft", "2 keys", (8, 17)),
        (ONE + "    slo: {ttft: {p50: 2h}}\n", "slo.ttft.p50", '"2h"', (8, 23)),
        (ONE + "    engine_args: {port: 1}\n", "engine_args.port", "port", (8, 19)),
        (ONE + "    engine_args: {max_model_len: 1}\n", "engine_args.max_model_len", "", (8, 19)),
        (ONE + "    engine_args: {model: /models/mine}\n", "engine_args.model", "model", (8, 19)),
        (ONE + "    weights: ''\n", "weights", '""', (8, 14)),
        (ONE + "    weights: /\n", "weights", '"/"', (8, 14)),
        (ONE + "    weights: mine\n", "weights", '"mine"', (8, 14)),
        (ONE + "    weights: ./mine\n", "weights", '"./mine"', (8, 14)),
        (ONE + "    weights: s3://bucket/mine\n", "weights", "s3", (8, 14)),
        (ONE + "    weights: a/b/c\n", "weights", '"a/b/c"', (8, 14)),
        (ONE + "    weights: /models/{name}\n", "weights", "{name}", (8, 14)),
        (ONE + "    weights: /models/mine\n    revision: main\n", "revision", "revision with weights", (9, 5)),
        (ONE + "    served_names: [a, a]\n", "served_names[1]", 'a second served name "a"', (8, 23)),
        (ONE + "    adapters: [{name: chat, path: /a}]\n", "adapters[chat].name", "a second", (8, 23)),
    ],
)  # fmt: skip
def test_deployments(fields: str, field: str, found: str, place: tuple[int, int]) -> None:
    problem = only_problem(deployment(fields))
    assert problem.field == f"deployments[chat].{field}"
    assert found in problem.found
    assert problem.hint
    assert (problem.line, problem.column) == place


@pytest.mark.parametrize("weights", ["/models/mine", "/models/with blank/v1.2", "org/name", "Org.1/Name_2-GGUF"])
def test_weights_are_a_folder_or_a_repository(weights: str) -> None:
    text = deployment(ONE + f"    weights: {weights}\n")
    assert parse_site(text, file="s").deployments[0].weights == weights


def test_unknown_models_and_gpus_are_found_where_a_catalog_is_given() -> None:
    found = problems(HEAD + CHAT, models=frozenset({"llama-3.1-70b"}), gpus=frozenset({"h200", "b200"}))
    assert [(problem.field, problem.hint) for problem in found] == [
        ("node_pools[h100].gpu", 'did you mean "h200"?'),
        ("deployments[chat].model", 'did you mean "llama-3.1-70b"?'),
    ]


def test_two_deployments_serve_no_name_twice() -> None:
    text = f"""{HEAD}deployments:
  - {{name: a, model: m, replicas: {{min: 1, max: 1}}}}
  - {{name: b, model: m, served_names: [b, a], replicas: {{min: 1, max: 1}}}}
"""
    problem = only_problem(text)
    assert (problem.field, problem.line) == ("deployments[b].served_names[1]", 6)


def test_a_real_engine_needs_a_real_gpu() -> None:
    problem = only_problem((HEAD + CHAT).replace("kind: simulated", "kind: vllm"))
    assert "simulated GPUs alone" in problem.found


def test_a_rule_is_reported_beside_wrong_types_elsewhere() -> None:
    text = deployment("    replicas: {min: 3, max: 2}\n    context: 32k\n") + "gateway: {port: x}\n"
    assert [problem.field for problem in problems(text)] == [
        "deployments[chat].replicas.max",
        "deployments[chat].context",
        "gateway.port",
    ]


@pytest.mark.parametrize("text", ["", "# nothing here\n", "\ufeff"])
def test_an_empty_file(text: str) -> None:
    problem = only_problem(text)
    assert problem.field == "document"
    assert "examples/demo/site.yaml" in problem.hint


@pytest.mark.parametrize("text", ["just text", "[1, 2]", "5"])
def test_a_document_that_is_no_mapping(text: str) -> None:
    assert only_problem(text).expected == "a mapping with site, node_pools and engines"


def test_a_byte_order_mark_is_no_problem() -> None:
    assert parse_site("\ufeff" + HEAD + CHAT, file="s").name == "lab"


def test_a_document_beyond_the_bound_is_not_even_parsed() -> None:
    assert "256.0 KiB" in only_problem("#" * (DOCUMENT_BYTES_MAX + 1)).expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_bytes(b"site:\n  name: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * (DOCUMENT_BYTES_MAX + 1))
    cases = {
        tmp_path / "sites.yaml": ("no such file", "did you mean"),
        tmp_path: ("a directory", "site.yaml"),
        tmp_path / "none" / "site.yaml": ("no such file", "no folder"),
        tmp_path / "large.yaml": ("256.0 KiB", "2,000 nodes"),
        tmp_path / "site.yaml": ("not UTF-8", "iconv"),
    }
    for path, (found, hint) in cases.items():
        with pytest.raises(InvalidError) as caught:
            load_site(path)
        (problem,) = caught.value.problems
        assert found in problem.found
        assert hint in problem.hint
        assert problem.file == str(path)
        assert (problem.line, problem.column) == ((2, 12) if path.name == "site.yaml" and path.exists() else (0, 0))


def test_load_gives_the_text_that_was_parsed(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(HEAD + CHAT, encoding="utf-8")
    site, text = load_site(path)
    assert text == HEAD + CHAT == read_text(path)
    assert site.name == "lab"


_WORDS = st.sampled_from(
    [
        "site",
        "name",
        "node_pools",
        "engines",
        "deployments",
        "replicas",
        "min",
        "gateway",
        "tenants",
        "keys",
        "a",
        "5",
        "~",
    ]
)
_PLAIN = st.recursive(
    st.one_of(_WORDS, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_WORDS, inner, max_size=4)),
    max_leaves=20,
)


@given(st.one_of(st.text(max_size=200), _PLAIN.map(repr)))
@settings(max_examples=200, deadline=None)
def test_no_text_gets_more_than_a_refusal(text: str) -> None:
    """Every outcome is a site or an InvalidError whose problems all have a place and a next step."""
    try:
        parse_site(text, file="site.yaml")
    except InvalidError as error:
        for problem in error.problems:
            assert problem.line >= 1
            assert problem.column >= 1
            assert problem.hint
            assert problem.expected


@given(st.dictionaries(_WORDS, _PLAIN, max_size=6))
@settings(max_examples=200, deadline=None)
def test_nor_does_a_document_of_wrong_shapes(document: dict[str, object]) -> None:
    known = {"site": {"name": "lab"}, "engines": [document], "deployments": [document], "gateway": document}
    with pytest.raises(InvalidError) as caught:
        parse_site(repr({**known, **document}).replace("None", "null").replace("\\", ""), file="site.yaml")
    assert caught.value.problems
