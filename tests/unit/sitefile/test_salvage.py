"""What of a broken file is planned all the same: only deployments that nothing broken decides about."""

from collections.abc import Sequence

import pytest

from controlplane.adapters.sitefile.parse import examine_site
from controlplane.adapters.sitefile.planned import check_site_file
from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import InvalidError, Problem

TEXT = """\
site: {name: lab}
node_pools:
  - {name: one, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}
  - {name: two, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}
engines:
  - {name: default, kind: simulated}
  - {name: other, kind: simulated}
deployments:
  - {name: anywhere, model: m, replicas: {min: 1, max: 1}}
  - {name: in-one, model: m, replicas: {min: 1, max: 1}, pool: one}
  - {name: in-two, model: m, replicas: {min: 1, max: 1}, pool: two, engine: other}
gateway: {port: 8000}
"""
NONE = "the fit was not checked: fix these first"


def never_fits(spec: DeploymentSpec, _: EngineSpec, __: Sequence[NodeSpec]) -> ServingPlan:
    raise InvalidError([Problem(field="model", found=spec.model, expected="a smaller one")])


def checked(text: str) -> tuple[list[str], str]:
    """The deployments whose fit was found wanting, and the note about the others."""
    result = check_site_file(examine_site(text, file="site.yaml"), never_fits)
    assert result.planned is None
    unfit = [problem.field for problem in result.problems if problem.expected == "a smaller one"]
    return [field.removeprefix("deployments[").removesuffix("].model") for field in unfit], result.note


@pytest.mark.parametrize(
    ("old", "new", "unfit", "left_out"),
    [
        ("port: 8000", "port: 0", ["anywhere", "in-one", "in-two"], ""),
        ("site: {name: lab}", "sit: {name: lab}", ["anywhere", "in-one", "in-two"], ""),
        ("name: one, gpu: b200", "name: one, gpu: 5", ["in-two"], "anywhere, in-one"),
        ("name: default, kind: simulated", "name: default, kind: 5", ["in-two"], "anywhere, in-one"),
        ("pool: one}", "pool: nowhere}", ["anywhere", "in-two"], "in-one"),
        ("name: in-one, ", "", ["anywhere", "in-two"], "the deployment at index 1"),
    ],
)
def test_a_problem_leaves_out_what_depends_on_it(old: str, new: str, unfit: list[str], left_out: str) -> None:
    assert TEXT.count(old) == 1
    note = f"the fit of {left_out} was not checked: fix these first" if left_out else ""
    assert checked(TEXT.replace(old, new)) == (unfit, note)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        TEXT.replace("node_pools:", "node_pool:"),
        TEXT.replace("deployments:", "engines: []\ndeployments:"),
        TEXT.replace("replicas: {min: 1, max: 1}", "replicas: {min: 1, max: 0}"),
    ],
)
def test_without_anything_sound_that_is_said(text: str) -> None:
    assert checked(text) == ([], NONE)


def test_problems_stand_in_the_order_of_the_file() -> None:
    text = TEXT.replace("pool: one}", "pool: nowhere}").replace("port: 8000", "port: 0")
    result = check_site_file(examine_site(text, file="site.yaml"), never_fits)
    assert [problem.line for problem in result.problems] == [9, 10, 11, 12]
