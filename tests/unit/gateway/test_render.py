"""haproxy.cfg and the files beside it."""

import json
from dataclasses import replace
from datetime import timedelta
from string import Template

import pytest

from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import GatewaySpec, TenantSpec
from controlplane.gateway import replies, sections
from controlplane.gateway.beside import KeyDigest, encoded
from controlplane.gateway.changes import assign_slots
from controlplane.gateway.model import RouteTable
from controlplane.gateway.render import GatewayPlace, Structure, render_config, render_structure, structure_key
from controlplane.gateway.table import build_route_table
from controlplane.kernel.ids import ServedName, TenantName
from controlplane.testing.builders import make_deployment, make_replica
from tests.conftest import GoldenText

PLACE = GatewayPlace(
    files="/state/gateway",
    admin_socket="/state/gateway/admin.sock",
    internal_socket="/state/gateway/internal.sock",
    activator_socket="/state/gateway/activator.sock",
    metrics_port=8404,
    connections_max=16384,
    threads=2,
)
TENANTS = (
    TenantSpec(name=TenantName("acme"), keys=(SecretRef("env", "ACME"),)),
    TenantSpec(name=TenantName("small"), keys=(SecretRef("env", "SMALL"),), requests_per_minute=60),
)
KEYS = (KeyDigest(sha256="A" * 64, tenant=TenantName("acme")), KeyDigest(sha256="B" * 64, tenant=TenantName("small")))


def table_of(spec: GatewaySpec | None = None, *names: str) -> RouteTable:
    replicas = [
        make_replica("chat", 0, port=20000),
        make_replica("chat", 1, port=20001, phase=ReplicaPhase.DRAINING),
        make_replica("chat", 2, port=20002),
    ]
    deployments = [make_deployment(name) for name in names or ("chat", "embed")]
    return build_route_table(deployments, replicas, spec or GatewaySpec())


def config_of(structure: Structure) -> str:
    return render_config(structure, assign_slots(structure.table, {}))


def test_golden(golden_text: GoldenText) -> None:
    structure = render_structure(table_of(GatewaySpec(tenants=TENANTS)), PLACE, KEYS)
    golden_text("haproxy.cfg", config_of(structure))


def test_without_tenants_nobody_is_asked_for_a_key() -> None:
    structure = render_structure(table_of(), PLACE)
    assert "sha2" not in config_of(structure)
    assert not [name for name in structure.beside.names if name.startswith(("keys", "limits"))]


def test_servers_are_not_part_of_the_structure() -> None:
    one, other = table_of(), build_route_table([make_deployment("chat"), make_deployment("embed")], [], GatewaySpec())
    assert structure_key(one) == structure_key(other)
    assert render_structure(one, PLACE).digest == render_structure(other, PLACE).digest


@pytest.mark.parametrize(
    "changed",
    [
        table_of(GatewaySpec(queue_timeout=timedelta(seconds=1))),
        table_of(GatewaySpec(body_bytes_max=1)),
        table_of(GatewaySpec(port=8001)),
        table_of(None, "chat", "embed", "third"),
        table_of(None, "chat"),
    ],
)
def test_everything_else_is(changed: RouteTable) -> None:
    assert structure_key(changed) != structure_key(table_of())
    assert render_structure(changed, PLACE).digest != render_structure(table_of(), PLACE).digest


def test_keys_and_place_are_part_of_it_too() -> None:
    table = table_of(GatewaySpec(tenants=TENANTS))
    first = render_structure(table, PLACE, KEYS)
    assert render_structure(table, PLACE, KEYS[:1]).digest != first.digest
    assert render_structure(table, replace(PLACE, threads=4), KEYS).digest != first.digest


def test_file_names_follow_their_text() -> None:
    first, second = render_structure(table_of(), PLACE), render_structure(table_of(None, "chat"), PLACE)
    assert first.beside.names["models.map"] != second.beside.names["models.map"]
    assert first.beside.names["error-504.json"] == second.beside.names["error-504.json"]


def test_names_with_odd_characters_are_encoded_in_the_map() -> None:
    deployment = make_deployment("chat")
    names = tuple(ServedName(name) for name in ("org/Model 7B", "#x", "nöpe", "a-b._~c"))
    odd = replace(deployment, spec=replace(deployment.spec, served_names=names))
    structure = render_structure(build_route_table([odd], [], GatewaySpec()), PLACE)
    text = structure.beside.texts[structure.beside.names["models.map"]]
    assert text.splitlines() == ["org%2FModel%207B chat", "%23x chat", "n%C3%B6pe chat", "a-b._~c chat"]
    assert encoded("100%") == "100%25"


def test_replies_are_json() -> None:
    structure = render_structure(table_of(GatewaySpec(tenants=TENANTS)), PLACE, KEYS)
    for name, text in structure.beside.texts.items():
        if name.endswith(".json"):
            assert isinstance(json.loads(text.replace("%[", "[")), dict), name


def test_a_percent_sign_in_a_name_does_not_become_a_format() -> None:
    deployment = make_deployment("chat")
    odd = replace(deployment, spec=replace(deployment.spec, served_names=(ServedName("50%[src]"),)))
    structure = render_structure(build_route_table([odd], [], GatewaySpec()), PLACE)
    assert "Served: 50%%[src]." in structure.beside.texts[structure.beside.names["unknown-model.json"]]


def test_ipv6_is_bracketed() -> None:
    structure = render_structure(table_of(GatewaySpec(host="::1")), PLACE)
    assert "  bind [::1]:8000\n" in config_of(structure)


def test_a_limit_of_none_is_not_written() -> None:
    structure = render_structure(table_of(), PLACE)
    (chat, embed) = structure.table.routes
    free = replace(chat, servers=tuple(replace(server, maxconn=0) for server in chat.servers))
    table = replace(structure.table, routes=(free, embed))
    assert " maxconn 320" not in render_config(structure, assign_slots(table, {}))


@pytest.mark.parametrize("section", [name for name in vars(sections) if name.isupper()])
def test_sections_are_templates_without_tabs_or_trailing_blanks(section: str) -> None:
    template = getattr(sections, section)
    assert isinstance(template, Template)
    assert "\t" not in template.template
    assert " \n" not in template.template


def test_a_long_list_of_names_is_cut() -> None:
    names = [ServedName(f"m{number}") for number in range(60)]
    assert replies.names_listed(names).endswith("m39 and 20 more")
    assert replies.names_listed([]) == "none"
