"""Engine arguments that no known version has: warned of, not refused, since another version may have them. Pure."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from controlplane.catalog.launch import OWNED_BY
from controlplane.catalog.model import Catalog
from controlplane.domain.deployment import DeploymentSpec, EngineKind
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import Problem


def unknown_arguments(spec: DeploymentSpec, engine: EngineSpec, *, catalog: Catalog) -> tuple[Problem, ...]:
    """One problem for each argument whose name the engine is not known to have; fields as the planner's."""
    card = catalog.engine(EngineKind.VLLM)
    known = card.known_options
    if engine.kind is EngineKind.SIMULATED:
        # It takes vLLM's options, and its own.
        known |= catalog.engine(engine.kind).known_options
    if not card.known_options:
        return ()
    return (
        *_unknown("engine_args", (name for name, _ in spec.engine_args), known, card.known_options_of),
        *_unknown("engine.args", (name for name, _ in engine.args), known, card.known_options_of),
    )


def _unknown(field: str, names: Iterable[str], known: frozenset[str], version: str) -> Iterator[Problem]:
    for name in names:
        # `compilation-config.mode` sets one key of a JSON option, `no-` negates a flag.
        option = name.partition(".")[0]
        if option in known or option.removeprefix("no-") in known:
            continue
        yield Problem(
            field=f"{field}.{name}",
            found=f"the engine argument {name}",
            expected=f"an option of {version}",
            hint=_next_step(option, known),
        )


def _next_step(option: str, known: frozenset[str]) -> str:
    close = get_close_matches(option, sorted(known), n=1)
    if not close:
        return "check its name; keep it where your version of the engine has it"
    owner = OWNED_BY.get(close[0])
    return f'did you mean "{close[0]}"?' + (f" Set {owner} instead" if owner else "")
