"""No secret in a file, and none in a message about one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters.launchers.local.spawn import environment_of
from controlplane.adapters.sitefile.parse import parse_site
from controlplane.adapters.sitefile.secrets import instead_of_secret, is_secret_name, mask, resolve_secret
from controlplane.domain.secret import SecretRef
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.replicas.ports import LaunchSpec
from controlplane.testing.builders import make_template

HEAD = """\
site: {name: lab}
node_pools: [{name: h100, gpu: h100, nodes: 2, gpus_per_node: 8, simulated: true}]
engines: [{name: sim, kind: simulated}]
"""


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(InvalidError) as caught:
        parse_site(text, file="site.yaml")
    return caught.value.problems


SHAPED = [
    ("sk-proj-Zx81kQ0aZx81", "an API key"),
    ("hf_abcdefghijklmnopQRST", "a Hugging Face token"),
    ("ghp_abcdefghijklmnopqrstuvwx", "a GitHub token"),
    ("AKIAABCDEFGHIJKLMNOP", "an AWS access key"),
    ("postgresql://ops:Zx81kQ0a@db/quarterdeck", "a URL with a password"),
    ("redis://:Zx81kQ0a@cache:6379", "a URL with a password"),
    ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJvcHMifQ.Zx81kQ0a", "a JSON Web Token"),
    ("xoxb-1234567890-abcdef", "a Slack token"),
]


@pytest.mark.parametrize(("secret", "kind"), SHAPED)
@pytest.mark.parametrize(
    "place",
    [
        "# {}\n",
        "gateway: {{host: '{}'}}\n",
        "gateway: {{'{}': 1}}\n",
        "'{}': 1\n",
        "deployments: [{{name: '{}', model: m, replicas: {{min: 1, max: 1}}}}]\n",
        "store: {{kind: postgresql, url: '{}'}}\n",
        "telemetry: {{stale_after: '{}'}}\n",
        "a: [unclosed, '{}'\n",
        "note: |\n  text\n  {}\n",
        "a: 1\na: '{}'\n",
        "gateway: {{tenants: [{{name: a, keys: ['{}']}}]}}\n",
    ],
)
def test_what_looks_like_a_secret_is_refused_anywhere_and_never_repeated(secret: str, kind: str, place: str) -> None:
    text = HEAD + place.format(secret)
    found = problems(text)
    expected = f"{kind} written out (not repeated here)"
    lines = text.splitlines()
    mine = next(problem for problem in found if problem.found == expected)
    assert lines[mine.line - 1][mine.column - 1 :].startswith(secret)
    assert secret not in "\n".join(map(str, found))
    assert "Zx81kQ0a" not in "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("text", "field", "place"),
    [
        ("gateway: {password: hunter2}\n", "gateway.password", (4, 21)),
        ("gateway: {apiKey: hunter2}\n", "gateway.apiKey", (4, 19)),
        ("gateway: {auth: {client-secret: hunter2}}\n", "gateway.auth.client-secret", (4, 33)),
        ("gateway: {tokens: {token: [hunter2]}}\n", "gateway.tokens.token[0]", (4, 28)),
        ("gateway: {password: {value: hunter2}}\n", "gateway.password.value", (4, 29)),
        ("x: {HF_TOKEN: 12345}\n", "x.HF_TOKEN", (4, 15)),
        ("x: [--api-key, hunter2]\n", "x[1]", (4, 16)),
        ("x: [--api-key=hunter2]\n", "x[0]", (4, 5)),
    ],
)
def test_a_literal_under_a_secrets_name(text: str, field: str, place: tuple[int, int]) -> None:
    found = [problem for problem in problems(HEAD + text) if "secret" in problem.expected]
    assert [(problem.field, (problem.line, problem.column)) for problem in found] == [(field, place)]
    message = "\n".join(map(str, problems(HEAD + text)))
    assert "hunter2" not in message
    assert "12345" not in message


@pytest.mark.parametrize(
    "keys",
    [
        "hunter2",
        "[hunter2]",
        "[{env: 1hunter2}]",
        "[{env: hunter2, file: hunter2}]",
        "[{envv: hunter2}]",
        "[[hunter2]]",
    ],
)
def test_where_a_reference_belongs_nothing_found_is_repeated(keys: str) -> None:
    found = problems(f"{HEAD}gateway: {{tenants: [{{name: a, keys: {keys}}}]}}\n")
    assert found
    assert "hunter2" not in "\n".join(map(str, found))
    assert all("{env: " in problem.expected or "{env: " in problem.hint for problem in found)


def test_references_and_harmless_names_pass() -> None:
    engine = "kind: simulated, env: {HF_TOKEN_PATH: /run/hf}, args: {eos-token-id: 2}"
    text = f"""{HEAD.replace("kind: simulated", engine)}
deployments:
  - name: chat
    model: sk-learn-embedder
    replicas: {{min: 1, max: 1}}
    slo: {{inter_token: {{p95: 50ms}}}}
    engine_args: {{tokenizer: mistral, max-num-batched-tokens: 2048, reasoning-parser: deepseek_r1}}
gateway: {{tenants: [{{name: a, keys: [{{env: TEAM_KEY}}, {{file: /run/secrets/key}}]}}]}}
telemetry: {{source: prometheus, prometheus_url: "http://prometheus:9090/path"}}
"""
    assert parse_site(text, file="site.yaml").gateway.tenants[0].keys[0] == SecretRef("env", "TEAM_KEY")


def test_a_replicas_environment_is_told_where_to_get_it() -> None:
    text = HEAD.replace("kind: simulated", "kind: simulated, env: {HF_TOKEN: hunter2, DB_PASSWORD: hunter2}")
    token, password = problems(text)
    assert "leave it out here and set HF_TOKEN in the control plane's environment" in token.hint
    assert "DB_PASSWORD_FILE" in password.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: hf_abcdefghijklmnop1234\n", "secrets belong only to gateway.tenants[].keys and store.url"),
        ("# hf_abcdefghijklmnop1234\n", "secrets belong only to gateway.tenants[].keys and store.url"),
        ("gateway: {tenants: [{name: a, keys: [hf_abcdefghijklmnop1234]}]}\n", "write {env: NAME} or {file: PATH}"),
        ("deployments: [{engine_args: {hf-token: hf_abcdefghijklmnop1234}}]\n", "handed on to it"),
    ],
)
def test_what_to_do_instead_depends_on_the_place(text: str, words: str) -> None:
    (hint,) = (problem.hint for problem in problems(HEAD + text) if "written out" in problem.found)
    assert words in hint


def test_an_engines_environment_takes_no_reference_so_none_is_advised() -> None:
    text = HEAD.replace("kind: simulated", "kind: simulated, env: {HF_TOKEN: hf_abcdefghijklmnop1234}")
    (token,) = problems(text)
    assert (
        token.hint
        == "leave it out here and set HF_TOKEN in the control plane's environment: it is handed on to engines"
    )


def test_the_local_launcher_hands_on_what_the_hint_says() -> None:
    spec = LaunchSpec(
        name=ReplicaName("qd-chat-0a1b2c3d-0"), node=NodeName("n1"), gpus=(0,), gpu_model="b200", numa_domain=None,
        port=20000, template=make_template(),
    )  # fmt: skip
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "NCCL_X", "CUDA_X", "NVIDIA_TOKEN", "TORCH_TOKEN")
    given = dict.fromkeys(names, "x")
    assert all("is handed on to engines" in instead_of_secret(("engines", 0, "env", name)) for name in names)
    assert given.items() <= environment_of(spec, "127.0.0.1", "mark", given).items()


@pytest.mark.parametrize(
    "name", ["password", "DB_PASSWORD", "dbPassword", "api_key", "api-key", "apiKey", "HF_TOKEN", "token"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["keys", "tokens", "max_tokens", "tokenizer", "token_file", "eos-token-id", "secret_name", "key", "", "5"]
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=127), min_size=12, max_size=40))
@settings(max_examples=50, deadline=None)
def test_whatever_the_key_is_no_message_has_it(key: str) -> None:
    secret = f"sk-1{key}"
    found = problems(
        f"{HEAD}{secret}: {secret}\ngateway: {{port: {secret}, {secret}: 1}}\nload: {{deployments: {{{secret}: 1}}}}\n"
    )
    assert key not in "\n".join(map(str, found))


def test_mask_leaves_the_rest() -> None:
    assert mask("url http://u:pw@host ok") == "url <a URL with a password, not repeated>host ok"


def test_resolve_from_the_environment() -> None:
    assert resolve_secret(SecretRef("env", "KEY"), {"KEY": "hunter2"}, _no_file) == "hunter2"


def test_resolve_from_a_file_without_its_line_end() -> None:
    assert resolve_secret(SecretRef("file", "/run/key"), {}, lambda path: f"{path}\r\n") == "/run/key"


@pytest.mark.parametrize("env", [{}, {"KEY": ""}])
def test_an_unset_variable_is_named(env: dict[str, str]) -> None:
    with pytest.raises(InvalidError, match=r"environment variable KEY: found nothing.*export KEY"):
        resolve_secret(SecretRef("env", "KEY"), env, _no_file)


def test_an_absent_or_empty_file_is_named() -> None:
    with pytest.raises(InvalidError, match=r"file /run/key: found no readable file \(FileNotFoundError\)"):
        resolve_secret(SecretRef("file", "/run/key"), {}, _no_file)
    with pytest.raises(InvalidError, match=r"file /run/key: found nothing.*write the secret into it"):
        resolve_secret(SecretRef("file", "/run/key"), {}, lambda _: "\n")


def _no_file(path: str) -> str:
    raise FileNotFoundError(path)
