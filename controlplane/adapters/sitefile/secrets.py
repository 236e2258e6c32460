"""Secrets are named in a site file, never written into it: found and refused here, without repeating their value.

Two nets. `secret_places` looks for the shapes that keys and passwords have, over the raw text: so in comments and in
text that is not even YAML. `secret_findings` looks for literals under names such as `password`. Whatever either
catches is also masked in every other message about the same file.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Never

from controlplane.adapters.sitefile.findings import Finding, Path, Plain
from controlplane.adapters.sitefile.positions import Place
from controlplane.domain.secret import SecretRef
from controlplane.kernel.errors import InvalidError, Problem

HOW: Final = "write {env: NAME} or {file: PATH}, and keep the value out of this file"
"""What to do where the schema takes a secret."""

_NO_PLACE: Final = (
    "take it out: secrets belong only to gateway.tenants[].keys and store.url, as {env: NAME} or {file: PATH}"
)
_FOR_ENGINES: Final = (
    "take it out: what an engine reads from HF_*, VLLM_* or NVIDIA_* variables is handed on to it from the control "
    "plane's environment"
)

REFERENCE_EXPECTED: Final = "a reference to a secret: {env: NAME} or {file: PATH}"
HIDDEN: Final = "a value written out (not repeated here)"

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_FILE_PATH_CHARACTERS_MAX: Final = 4096
"""PATH_MAX of Linux."""

_SECRET_SHAPES: Final = (
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----")),
    ("a URL with a password", re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,30}://[^/\s:@'\"]*:[^/\s@'\"]+@")),
    ("an API key", re.compile(r"\bsk-(?=[A-Za-z_-]{0,64}[0-9]|[A-Za-z_-]{20})[A-Za-z0-9_-]{8,}")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{16,}")),
    ("a GitHub token", re.compile(r"\b(?:gh[opusr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})")),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("a Slack token", re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,}")),
    ("a JSON Web Token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
)
"""Published prefixes of the issuers; the URL form is RFC 3986's userinfo with a password."""

_SECRET_WORDS: Final = frozenset(
    {"password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials"}
)
_SECRET_PAIRS: Final = frozenset({("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key")})
_HARMLESS_LAST_WORDS: Final = frozenset({"path", "file", "id", "ids", "name", "url", "type", "parser"})
"""`token_file` says where a secret is; `eos-token-id` and `tokenizer` are a model's."""

_HANDED_ON: Final = ("HF_", "HUGGING_FACE_", "VLLM_", "NCCL_", "CUDA_", "NVIDIA_", "TORCH_")
"""Variables of the control plane's own environment that the local launcher gives to replicas."""

_HOLDERS: Final = (("gateway", "tenants"), ("store", "url"))
"""Where the schema takes a secret, as a reference."""

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def secret_places(text: str) -> Iterator[tuple[Place, str]]:
    """Where the text holds something that looks like a secret, and what it looks like."""
    for number, line in enumerate(text.splitlines(), start=1):
        for kind, shape in _SECRET_SHAPES:
            for match in shape.finditer(line):
                yield Place(number, match.start() + 1), kind


def mask(text: str) -> str:
    """The text without anything that has a secret's shape."""
    for kind, shape in _SECRET_SHAPES:
        text = shape.sub(f"<{kind}, not repeated>", text)
    return text


def is_secret_name(name: str) -> bool:
    """Whether a key of this name is expected to hold a secret: `HF_TOKEN`, `api-key`, `dbPassword`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _HARMLESS_LAST_WORDS:
        return False
    return not _SECRET_WORDS.isdisjoint(words[-1:]) or tuple(words[-2:]) in _SECRET_PAIRS


def secret_findings(data: Plain, harmless: frozenset[str], path: Path = ()) -> Iterator[Finding]:
    """Literals where a name announces a secret, and values after a flag such as `--api-key` in a list of arguments.

    `harmless`: keys that are no secrets whatever they sound like (`inter_token` is a latency).
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key not in harmless and is_secret_name(key) and not is_reference(value):
                yield from _literals(value, (*path, key))
            else:
                yield from secret_findings(value, harmless, (*path, key))
    elif isinstance(data, Sequence) and not isinstance(data, str):
        yield from _flags(data, path)
        for index, item in enumerate(data):
            yield from secret_findings(item, harmless, (*path, index))


def is_reference(value: Plain) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and reference_of(value) is not None


def reference_of(value: Mapping[str, Plain]) -> SecretRef | None:
    """The reference that a mapping spells, or None when it is none."""
    match value:
        case {"env": str(name)} if len(value) == 1 and _ENV_NAME.fullmatch(name):
            return SecretRef("env", name)
        case {"file": str(path)} if len(value) == 1 and 0 < len(path) <= _FILE_PATH_CHARACTERS_MAX and "\n" not in path:
            return SecretRef("file", path)
        case _:
            return None


def resolve_secret(ref: SecretRef, env: Mapping[str, str], read_file: Callable[[str], str]) -> str:
    """The secret itself, without the line end that files have. InvalidError names the variable or file, no value."""
    match ref.scheme:
        case "env":
            value = env.get(ref.name, "")
            step = f"export {ref.name} before the control plane starts"
        case "file":
            try:
                value = read_file(ref.name).strip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                _refuse(ref, f"no readable file ({type(error).__name__})", "create it, readable by the control plane")
            step = "write the secret into it"
        case _:
            raise AssertionError(f"unknown scheme of a secret: {ref.scheme}")
    if not value:
        _refuse(ref, "nothing", step)
    return value


def _refuse(ref: SecretRef, found: str, hint: str) -> Never:
    what = "environment variable" if ref.scheme == "env" else "file"
    problem = Problem(field=f"{what} {ref.name}", found=found, expected="a secret that is not empty", hint=hint)
    raise InvalidError([problem])


def _literals(value: Plain, path: Path) -> Iterator[Finding]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _literals(inner, (*path, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            if not is_reference(inner):
                yield from _literals(inner, (*path, index))
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        yield inline_secret(path)


def inline_secret(path: Path) -> Finding:
    """The refusal of a secret written out at the path."""
    return Finding(path=path, found=HIDDEN, expected="no secret in the file", hint=instead_of_secret(path))


def instead_of_secret(path: Path) -> str:
    """What to do with a secret that was found at the path; it depends on what reads that place."""
    if path[:2] in _HOLDERS:
        return HOW
    if path[:1] not in {("engines",), ("deployments",)}:
        return _NO_PLACE
    if "env" not in path[:-1]:
        return _FOR_ENGINES
    name = str(path[-1])
    if name.startswith(_HANDED_ON):
        return f"leave it out here and set {name} in the control plane's environment: it is handed on to engines"
    return f"keep it in a file that replicas can read, and give them its path (for example as {name}_FILE)"


def _flags(items: Sequence[Plain], path: Path) -> Iterator[Finding]:
    previous = ""
    for index, item in enumerate(items):
        if not isinstance(item, str):
            previous = ""
            continue
        flag, separator, value = item.partition("=")
        is_value_of_flag = previous.startswith("-") and is_secret_name(previous) and not item.startswith("-")
        if is_value_of_flag or (separator and value and flag.startswith("-") and is_secret_name(flag)):
            yield inline_secret((*path, index))
        previous = "" if separator else item
