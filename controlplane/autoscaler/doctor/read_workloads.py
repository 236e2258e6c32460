"""Deployments, Services and monitors: what a document of Kubernetes says about pods and how they are scraped."""

from collections.abc import Iterator
from typing import Final

from controlplane.autoscaler.doctor.model import Document, Field
from controlplane.autoscaler.doctor.recipe import Monitor, Service, Workload

_WORKLOADS: Final = frozenset({"Deployment", "StatefulSet", "ReplicaSet", "StormService"})


def workloads(document: Document) -> Iterator[Workload]:
    if document.kind not in _WORKLOADS:
        return
    yield Workload(
        kind=document.kind,
        name=document.name,
        namespace=document.namespace,
        root=document.root,
        pod=document.root.at("spec", "template"),
    )


def services(document: Document) -> Iterator[Service]:
    if document.kind != "Service" or document.api_version != "v1":
        return
    spec = document.root["spec"]
    yield Service(
        name=document.name,
        namespace=document.namespace,
        root=document.root,
        labels=document.root.at("metadata", "labels").texts(),
        selector=spec["selector"].texts(),
        port_names=frozenset(port["name"].text for port in spec["ports"].items() if port["name"].there),
    )


def monitors(document: Document) -> Iterator[Monitor]:
    if document.kind not in {"ServiceMonitor", "PodMonitor"}:
        return
    spec = document.root["spec"]
    yield Monitor(
        kind=document.kind,
        name=document.name,
        namespace=document.namespace,
        root=document.root,
        match_labels=spec.at("selector", "matchLabels").texts(),
        has_expressions=any(True for _ in spec.at("selector", "matchExpressions").items()),
        namespaces=_namespaces(spec, document.namespace),
        endpoints=tuple(spec["endpoints" if document.kind == "ServiceMonitor" else "podMetricsEndpoints"].items()),
    )


def _namespaces(spec: Field, own: str) -> frozenset[str] | None:
    if spec.at("namespaceSelector", "any").flag:
        return None
    named = frozenset(name.text for name in spec.at("namespaceSelector", "matchNames").items())
    return named or frozenset({own})
