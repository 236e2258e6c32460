import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.telemetry import Fresh, Missing
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.builders import make_replica
from controlplane.testing.telemetry import make_engine_sample
from tests.conftest import GoldenText
from tests.unit.api.conftest import Edge

SCALE = "/api/v1/deployments/chat/scale"


def test_status_shows_everything_at_a_glance(edge: Edge) -> None:
    status = edge.client.get("/api/v1/status").json()
    assert status["site"] == "demo"
    assert (status["gpus_total"], status["gpus_held"]) == (8, 1)
    assert status["gateway"] == "fresh"
    assert status["deployments"][0]["held_up"] is None
    assert status["deployments"][0]["replicas_by_phase"] == {"ready": 1}
    assert status["deployments"][0]["traffic"] is None


def test_missing_telemetry_is_null_and_never_zero(edge: Edge) -> None:
    replica = make_replica()
    assert edge.client.get(f"/api/v1/replicas/{replica.name}").json()["engine"] is None
    edge.telemetry.set_engine(replica.name, Fresh(make_engine_sample()))
    shown = edge.client.get(f"/api/v1/replicas/{replica.name}").json()
    assert shown["engine_data"] == "fresh"
    assert shown["engine"] is not None


def test_scaling_changes_intent_keeps_an_event_and_hints(edge: Edge) -> None:
    answer = edge.client.post(SCALE, json={"replicas": 3, "generation": 1})
    assert answer.status_code == 202
    assert answer.json()["generation"] == 2
    deployment = edge.client.get("/api/v1/deployments/chat").json()
    assert (deployment["replicas_pinned"], deployment["replicas_target"]) == (3, 3)
    event = edge.client.get("/api/v1/events").json()[-1]
    assert (event["reason"], event["deployment"]) == ("scaled_by_person", "chat")
    assert edge.hints.hinted == ["replicas", "autoscaler"]


def test_a_generation_that_passed_is_refused_and_nothing_changes(edge: Edge) -> None:
    assert edge.client.post(SCALE, json={"replicas": 3}).status_code == 202
    answer = edge.client.post(SCALE, json={"replicas": 2, "generation": 1})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert edge.client.get("/api/v1/deployments/chat").json()["replicas_pinned"] == 3


def test_the_same_key_is_one_change_and_another_body_under_it_a_conflict(edge: Edge) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = edge.client.post(SCALE, json={"replicas": 2}, headers=headers)
    again = edge.client.post(SCALE, json={"replicas": 2}, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replay"] == "true"
    assert edge.client.get("/api/v1/deployments/chat").json()["generation"] == 2
    assert edge.client.post(SCALE, json={"replicas": 4}, headers=headers).status_code == 409


@pytest.mark.parametrize(
    ("body", "field"),
    [({"replicas": 5}, "replicas"), ({"replicas": -1}, "body.replicas"), ({"replica": 1}, "body.replicas"),
     ({"replicas": 1, "why": "x"}, "body.why"), ([], "body")],
)  # fmt: skip
def test_bad_input_names_field_found_and_expected(edge: Edge, body: object, field: str) -> None:
    answer = edge.client.post(SCALE, json=body)
    assert answer.status_code == 422
    problems = answer.json()["problems"]
    assert field in [problem["field"] for problem in problems]
    assert all(problem["found"] and problem["expected"] for problem in problems)


def test_pause_and_resume(edge: Edge) -> None:
    assert edge.client.post("/api/v1/deployments/chat/pause", json={"reason": "upgrade"}).status_code == 202
    assert edge.client.get("/api/v1/deployments/chat").json()["paused"] is True
    assert edge.client.post("/api/v1/deployments/chat/resume", json={}).status_code == 202
    assert edge.client.get("/api/v1/deployments/chat").json()["paused"] is False


@pytest.mark.parametrize(("verb", "state"), [("cordon", "cordoned"), ("drain", "draining"), ("uncordon", "unknown")])
def test_node_intents(edge: Edge, verb: str, state: str) -> None:
    assert edge.client.post(f"/api/v1/nodes/node-1/{verb}", json={"reason": "fan"}).status_code == 202
    assert edge.client.get("/api/v1/nodes/node-1").json()["state"] == state
    assert edge.hints.hinted == ["fleet", "replicas"]


@pytest.mark.parametrize(
    "path",
    ["/api/v1/deployments/chet", "/api/v1/nodes/x", "/api/v1/replicas/x", "/api/v1/decisions/7",
     "/api/v1/replicas/x/log", "/api/v1/nothing"],
)  # fmt: skip
def test_what_does_not_exist_is_a_problem_with_a_sentence(edge: Edge, path: str) -> None:
    answer = edge.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"]


def test_gpus_name_their_holder_and_say_null_where_nothing_was_measured(edge: Edge) -> None:
    gpus = edge.client.get("/api/v1/gpus").json()
    assert len(gpus) == 8
    assert gpus[0]["replica"] == make_replica().name
    assert gpus[1]["replica"] is None
    assert gpus[0]["utilization"] is None


def test_a_broken_site_document_is_refused_with_its_place(edge: Edge) -> None:
    answer = edge.client.put("/api/v1/site", json={"document": "broken"})
    assert answer.status_code == 422
    assert (answer.json()["problems"][0]["line"], answer.json()["problems"][0]["file"]) == (3, "site.yaml")
    assert edge.hints.hinted == []


def test_a_dry_run_hints_nobody(edge: Edge) -> None:
    answer = edge.client.put("/api/v1/site?dry_run=true", json={"document": "site: x"})
    assert answer.json() == {"changed": True, "dry_run": True, "changes": ["deployment chat is new"]}
    assert edge.hints.hinted == []


def test_readyz_names_the_loop_that_does_not_tick(edge: Edge) -> None:
    assert edge.client.get("/readyz").status_code == 200
    edge.loops[0] = type(edge.loops[0])(
        loop="replicas", resource="chat", outcome="failed", seconds_since_last_tick=300.0, overdue=True,
        failures_in_a_row=9,
        sentence="no list of replicas",
    )  # fmt: skip
    answer = edge.client.get("/readyz")
    assert answer.status_code == 503
    assert "replicas/chat" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0


def test_readyz_says_that_the_gateway_is_not_there(edge: Edge) -> None:
    edge.telemetry.set_gateway(Missing("its socket is not there"))
    answer = edge.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the gateway is not up: its socket is not there"
    edge.loops.append(replace(edge.loops[0], loop="gateway", failures_in_a_row=3, sentence="port 8000 is taken"))
    assert edge.client.get("/readyz").json()["detail"] == "the gateway is not up: port 8000 is taken"


def test_another_host_name_is_refused(edge: Edge) -> None:
    assert edge.client.get("/api/v1/status", headers={"Host": "evil.example"}).status_code == 400


def test_a_form_post_of_a_web_page_changes_nothing(edge: Edge) -> None:
    answer = edge.client.post(SCALE, content=b'{"replicas": 3}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert edge.client.get("/api/v1/deployments/chat").json()["generation"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
    ],
)
def test_a_page_of_another_site_changes_nothing_even_without_a_body(edge: Edge, headers: dict[str, str]) -> None:
    answer = edge.client.post("/api/v1/deployments/chat/pause", headers=headers)
    assert answer.status_code == 403
    assert edge.client.get("/api/v1/deployments/chat").json()["paused"] is False
    assert edge.client.get("/api/v1/status", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}])
def test_an_intent_needs_no_body(edge: Edge, headers: dict[str, str]) -> None:
    assert edge.client.post("/api/v1/deployments/chat/pause", headers=headers).status_code == 202
    assert edge.client.post("/api/v1/nodes/node-1/cordon", headers=headers).status_code == 202
    assert edge.client.post(SCALE, headers=headers).status_code == 422


@pytest.mark.parametrize(("method", "path"), [("PATCH", SCALE), ("BREW", SCALE), ("POST", "/api/v1/status")])
def test_another_method_is_not_allowed(edge: Edge, method: str, path: str) -> None:
    answer = edge.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"]


def test_a_body_of_unknown_length_is_refused(edge: Edge) -> None:
    headers = {"Content-Type": "application/json"}
    assert edge.client.post(SCALE, content=iter([b"{}"]), headers=headers).status_code == 411


@pytest.mark.parametrize(
    ("verb", "body", "said"),
    [("pause", {}, "is paused already"), ("resume", {}, "is not paused"), ("scale", {"replicas": None}, "already")],
)
def test_what_is_so_already_raises_no_generation(edge: Edge, verb: str, body: dict[str, object], said: str) -> None:
    if verb == "pause":
        edge.client.post("/api/v1/deployments/chat/pause")
    before = edge.client.get("/api/v1/deployments/chat").json()["generation"]
    events = edge.client.get("/api/v1/events").json()
    answer = edge.client.post(f"/api/v1/deployments/chat/{verb}", json=body)
    assert (answer.status_code, answer.json()["generation"]) == (202, before)
    assert said in answer.json()["sentence"]
    assert edge.client.get("/api/v1/events").json() == events
    late = edge.client.post(f"/api/v1/deployments/chat/{verb}", json={**body, "generation": 99})
    assert late.status_code == 409


def test_a_drain_says_who_has_nowhere_to_go(edge: Edge) -> None:
    answer = edge.client.post("/api/v1/nodes/node-1/drain").json()
    assert "1 of them (chat) would find no free GPUs elsewhere now" in answer["sentence"]
    assert edge.client.get("/api/v1/nodes/node-1").json()["state_reason"] == "drained by a person"


def test_a_deployment_that_is_held_up_says_by_what(edge: Edge) -> None:
    async def hold() -> None:
        async with edge.store.transaction() as tx:
            await tx.set_replicas_wanted(DeploymentName("chat"), 2)
            await tx.append_events(
                [
                    NewEvent(
                        at=edge.clock.now(),
                        kind=EventKind.DEPLOYMENT,
                        subject="chat",
                        deployment="chat",
                        reason=Reason.NO_CAPACITY,
                        sentence="1 more replicas wanted, no room",
                    )
                ]
            )

    asyncio.run(hold())
    held_up = edge.client.get("/api/v1/deployments/chat").json()["held_up"]
    assert (held_up["reason"], held_up["sentence"]) == ("no_capacity", "1 more replicas wanted, no room")


def test_the_documentation_needs_nothing_from_elsewhere(edge: Edge) -> None:
    assert edge.client.get("/", follow_redirects=False).headers["location"] == "/docs"
    answer = edge.client.get("/docs")
    page = answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    document = edge.client.get("/openapi.json").json()
    assert document == edge.client.get("/api/v1/openapi.json").json()
    for path, operations in document["paths"].items():
        assert page.count(f"<code>{path}</code>") == len(operations)
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page


def test_a_body_beyond_the_limit_is_refused(edge: Edge) -> None:
    assert edge.client.put("/api/v1/site", json={"document": "x" * 3_000_000}).status_code == 413


def test_usage_needs_times_with_zones(edge: Edge) -> None:
    answer = edge.client.get("/api/v1/usage", params={"since": "2026-01-05T07:00:00"})
    assert answer.status_code == 422
    edge.clock.jump(timedelta(minutes=30))
    usage = edge.client.get("/api/v1/usage").json()
    assert usage["gpu_hours"] == pytest.approx(0.5)
    assert usage["by_deployment"] == {"chat": pytest.approx(0.5)}


def test_decisions_can_be_decided_again(edge: Edge) -> None:
    answer = edge.client.get("/api/v1/decisions/replay").json()
    assert answer == {"replayed": 3, "same": 2, "differing": ["decision 2: wanted 3, recorded 4"]}


def test_no_answer_is_cached_or_framed(edge: Edge) -> None:
    headers = edge.client.get("/api/v1/status").headers
    assert (headers["cache-control"], headers["x-frame-options"]) == ("no-store", "DENY")


def test_the_openapi_document_is_the_golden_one(edge: Edge, golden_text: GoldenText) -> None:
    document = edge.client.get("/api/v1/openapi.json").json()
    golden_text("openapi.json", json.dumps(document, indent=1, sort_keys=True) + "\n")
