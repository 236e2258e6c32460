"""Names of engine arguments: mistyped ones are told, whatever a known version takes passes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from controlplane.catalog.arguments import unknown_arguments
from controlplane.catalog.files import load_catalog
from controlplane.domain.deployment import EngineKind
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import Problem
from controlplane.simulation.engine import options
from controlplane.testing.builders import make_spec

CATALOG: Final = load_catalog()
VLLM: Final = EngineSpec(name="default", kind=EngineKind.VLLM)
SIMULATED: Final = EngineSpec(name="default", kind=EngineKind.SIMULATED)


def unknown(*names: str, engine: EngineSpec = VLLM) -> tuple[Problem, ...]:
    spec = replace(make_spec("chat"), engine_args=tuple((name, "1") for name in names))
    return unknown_arguments(spec, engine, catalog=CATALOG)


@pytest.mark.parametrize("engine", [VLLM, SIMULATED])
def test_the_nearest_name_is_told(engine: EngineSpec) -> None:
    (found,) = unknown("stream-intervall", engine=engine)
    assert (found.field, found.hint) == ("engine_args.stream-intervall", 'did you mean "stream-interval"?')
    assert found.expected == "an option of vLLM 0.32"


def test_where_a_field_stands_for_the_option_that_is_told() -> None:
    (found,) = unknown("gpu-memory-utilizatio")
    assert found.hint.endswith("Set the engine's memory_utilization instead")


def test_an_engines_own_arguments_are_looked_at_too() -> None:
    (found,) = unknown(engine=replace(VLLM, args=(("qqqqqqqq", "1"), ("seed", "1"))))
    assert found.field == "engine.args.qqqqqqqq"
    assert "your version of the engine" in found.hint


def test_negated_flags_and_keys_of_json_options_pass() -> None:
    assert not unknown("no-enable-prefix-caching", "compilation-config.mode", "seed", "hf-overrides")


def test_what_only_the_simulation_has() -> None:
    assert not unknown("sim-seed", engine=SIMULATED)
    assert unknown("sim-seed")
    written = Path(options.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'"--(sim-[a-z-]+)"', written))
    assert named == CATALOG.engine(EngineKind.SIMULATED).known_options


def test_every_option_that_plans_render_is_known() -> None:
    card = CATALOG.engine(EngineKind.VLLM)
    rendered = {*card.options.values(), *(name for args in card.task_args.values() for name, _ in args)}
    assert rendered | {name for name, _ in card.sleep.args} <= card.known_options
