import json
from datetime import timedelta

import pytest

from controlplane.domain.telemetry import Fresh
from controlplane.testing.builders import make_replica
from controlplane.testing.telemetry import make_engine_sample
from tests.conftest import GoldenText
from tests.unit.api.conftest import Edge

SCALE = "/api/v1/deployments/chat/scale"


def test_status_shows_everything_at_a_glance(edge: Edge) -> None:
    status = edge.client.get("/api/v1/status").json()
    assert status["site"] == "demo"
    assert (status["gpus_total"], status["gpus_held"]) == (8, 1)
    assert status["gateway"] == "missing"
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


def test_another_host_name_is_refused(edge: Edge) -> None:
    assert edge.client.get("/api/v1/status", headers={"Host": "evil.example"}).status_code == 400


def test_a_form_post_of_a_web_page_changes_nothing(edge: Edge) -> None:
    answer = edge.client.post(SCALE, content=b'{"replicas": 3}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert edge.client.get("/api/v1/deployments/chat").json()["generation"] == 1


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
