"""What the planner and the capacity check find stands at a line of the file."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from controlplane.adapters.sitefile.parse import read_site
from controlplane.adapters.sitefile.planned import plan_site_file
from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.testing.builders import make_plan

TEXT = """\
site: {name: lab}
node_pools:
  - {name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}
engines:
  - name: sim
    kind: simulated
    args: {stream-interval: 4}
deployments:
  - name: first
    model: m1
    context: 1024
    replicas: {min: 1, max: 1}
  - model: m2
    name: second
    replicas:
      min: 1
      max: 20
"""


def refusing(*fields: str) -> ServingPlan:
    raise InvalidError([Problem(field=field, found="x", expected="y") for field in fields])


def test_problems_of_the_planner_are_placed_at_their_fields() -> None:
    def planner(spec: DeploymentSpec, engine: EngineSpec, nodes: Sequence[NodeSpec]) -> ServingPlan:
        assert engine.name == "sim"
        assert len(nodes) == 1
        if spec.name == "first":
            return refusing("context", "precision", "engine.args.stream-interval")
        return refusing("model", "")

    with pytest.raises(InvalidError) as caught:
        plan_site_file(read_site(TEXT, file="site.yaml"), planner)
    assert [(problem.field, problem.line, problem.column) for problem in caught.value.problems] == [
        ("engines[sim].args.stream-interval", 7, 12),
        ("deployments[first].precision", 9, 5),
        ("deployments[first].context", 11, 5),
        ("deployments[second].model", 13, 5),
        ("deployments[second]", 14, 5),
    ]
    assert {problem.file for problem in caught.value.problems} == {"site.yaml"}


def test_warnings_have_lines_too_and_do_not_refuse() -> None:
    def planner(spec: DeploymentSpec, _: EngineSpec, __: Sequence[NodeSpec]) -> ServingPlan:
        return make_plan(spec.name)

    result = plan_site_file(read_site(TEXT, file="site.yaml"), planner)
    assert [(problem.field, problem.line) for problem in result.warnings] == [
        ("deployments[second].replicas.max", 17),
        ("deployments", 8),
    ]
    assert result.document == TEXT


def test_what_cannot_fit_is_refused_beside_what_the_planner_refuses() -> None:
    def planner(spec: DeploymentSpec, _: EngineSpec, __: Sequence[NodeSpec]) -> ServingPlan:
        return refusing("model") if spec.name == "first" else replace(make_plan(), gpus_per_replica=16)

    with pytest.raises(InvalidError) as caught:
        plan_site_file(read_site(TEXT, file="site.yaml"), planner)
    assert [problem.field for problem in caught.value.problems] == [
        "deployments[first].model",
        "deployments[second].pool",
    ]
