"""API keys and per-tenant rates on the real HAProxy."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from controlplane.domain.secret import SecretRef
from controlplane.domain.site import GatewaySpec, TenantSpec
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import TenantName
from controlplane.kernel.units import MIB
from tests.integration.gateway_lab import Lab, open_lab

KEYS = {"ACME": "sk-acme-1", "ACME_OLD": "sk-acme-0", "SMALL": "sk-small-1"}
ACME = TenantSpec(name=TenantName("acme"), keys=(SecretRef("env", "ACME"), SecretRef("env", "ACME_OLD")))
SMALL = TenantSpec(name=TenantName("small"), keys=(SecretRef("env", "SMALL"),), requests_per_minute=3)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_lab(GatewaySpec(tenants=(ACME, SMALL)), KEYS) as lab:
        await lab.serve("chat", await lab.replica("r0"))
        yield lab


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


CHAT = '{"model":"chat"}'
LONG = json.dumps({"messages": "x" * MIB, "model": "chat"})


@pytest.mark.parametrize("body", [CHAT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("headers", [{}, bearer("sk-acme-2"), bearer(""), {"x-api-key": "no"}, {"Authorization": "x"}])
async def test_without_a_valid_key(lab: Lab, body: str, headers: dict[str, str]) -> None:
    answer = await lab.post(body, headers={**headers, "X-Quarterdeck-Tenant": "acme"})
    assert (answer.status, answer.error_code, answer.headers["WWW-Authenticate"]) == (401, "invalid_api_key", "Bearer")


@pytest.mark.parametrize("body", [CHAT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("headers", [bearer("sk-acme-1"), bearer("sk-acme-0"), {"x-api-key": "sk-acme-1"}])
async def test_with_a_key_the_tenant_is_passed_on_and_the_key_is_not(
    lab: Lab, body: str, headers: dict[str, str]
) -> None:
    answer = await lab.post(body, headers=headers)
    assert answer.status == 200
    seen = answer.json["headers"]
    assert isinstance(seen, dict)
    assert seen["x-quarterdeck-tenant"] == "acme"
    assert not {"authorization", "x-api-key"} & set(seen)


async def test_models_need_a_key_and_health_does_not(lab: Lab) -> None:
    assert (await lab.get("/v1/models")).status == 401
    assert (await lab.get("/v1/models/chat")).status == 401
    assert (await lab.get("/v1/models", headers=bearer("sk-acme-1"))).status == 200
    assert (await lab.get("/health")).status == 200


@pytest.mark.parametrize("body", [CHAT, LONG], ids=["short", "long"])
async def test_a_tenants_rate_counts_what_was_let_through(lab: Lab, body: str) -> None:
    statuses = [(await lab.post(body, headers=bearer("sk-small-1"))).status for _ in range(6)]
    assert statuses == [200, 200, 200, 429, 429, 429]
    refused = await lab.post(body, headers=bearer("sk-small-1"))
    assert (refused.error_code, refused.headers["Retry-After"]) == ("rate_limit_exceeded", "21")
    assert (await lab.post(body, headers=bearer("sk-acme-1"))).status == 200


async def test_keys_are_in_no_file_in_clear(lab: Lab) -> None:
    for file in [*lab.paths.run.iterdir(), *lab.paths.logs.iterdir()]:
        if file.is_file():
            text = file.read_text(errors="replace")
            assert not [key for key in KEYS.values() if key in text], file
    (keys,) = lab.paths.run.glob("keys-*.map")
    assert keys.stat().st_mode & 0o077 == 0


async def test_a_rotated_key_holds_after_the_next_pass(lab: Lab) -> None:
    KEYS_NOW = dict(KEYS)  # noqa: N806 - the secrets of this test
    lab.key_source = lambda reference: KEYS_NOW[reference.name]
    lab.restart_control_plane()
    KEYS_NOW["ACME"] = "sk-acme-9"
    assert (await lab.converge()).reloaded
    assert (await lab.post(CHAT, headers=bearer("sk-acme-9"))).status == 200
    assert (await lab.post(CHAT, headers=bearer("sk-acme-1"))).status == 401


async def test_a_missing_or_shared_key_leaves_the_running_gateway_alone(lab: Lab) -> None:
    good = lab.spec
    for keys, found in ((SecretRef("env", "NOPE"), "env:NOPE"), (SecretRef("env", "SMALL"), "same key")):
        lab.spec = replace(good, tenants=(replace(ACME, keys=(keys,)), SMALL))
        with pytest.raises(TerminalError, match=found):
            await lab.converge()
    assert (await lab.post(CHAT, headers=bearer("sk-acme-1"))).status == 200
