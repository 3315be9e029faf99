"""The Kubernetes manifest: npcd accepts its arguments, and its probes ask paths that the daemon serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.registry import CollectorRegistry

from daemon.config import Config, ServeSettings, check, load
from daemon.main import _config, _parser
from daemon.process.probes import Probes
from tests.deploy.test_image import IMAGE
from tools import dockerfile

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text("utf-8")))
KINDS = {document["kind"]: document for document in DOCUMENTS}
POD: dict[str, Any] = KINDS["StatefulSet"]["spec"]["template"]["spec"]
(NPCD,) = POD["containers"]
PORTS = {port["name"]: port["containerPort"] for port in NPCD["ports"]}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def settings(monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings that npcd makes of the pod's arguments, checked as at a start."""
    monkeypatch.setenv("NPCD_MEMORY__KEEP", "true")
    args = _parser().parse_args(NPCD["args"])
    assert args.no_supervise, "the kubelet starts it again"
    return _config(args)


def test_npcd_takes_the_pods_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pod's arguments npcd listens beyond loopback with TLS and tokens, and serves the probes there."""
    serve = settings(monkeypatch).serve
    assert serve.listen == (f"0.0.0.0:{PORTS['grpc']}",) and serve.http == f"0.0.0.0:{PORTS['http']}"
    mounts = {mount["mountPath"] for mount in NPCD["volumeMounts"] if mount.get("readOnly")}
    for file in (serve.tokens_file, serve.tls_certificate, serve.tls_key):
        assert str(Path(file).parent) in mounts, "a secret's whole folder is mounted, so that it may change"
    assert serve.drain_s < POD["terminationGracePeriodSeconds"]


async def test_probes_ask_what_the_daemon_answers() -> None:
    """The daemon serves every path of the manifest's probes, and Prometheus' path."""
    probes = Probes(lambda: "serving", CollectorRegistry())
    http = await probes.start("127.0.0.1:0")
    paths = {NPCD[probe]["httpGet"]["path"] for probe in PROBES}
    annotations = KINDS["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    async with aiohttp.ClientSession() as session:
        for path in (*paths, annotations["prometheus.io/path"]):
            async with session.get(f"http://{http}{path}") as answer:
                assert answer.status == 200, path
    await probes.stop()
    assert {NPCD[probe]["httpGet"]["port"] for probe in PROBES} == {"http"}
    assert int(annotations["prometheus.io/port"]) == PORTS["http"]
    assert NPCD["livenessProbe"]["httpGet"]["path"] == "/healthz", "a model that loads is no reason to start anew"


def test_a_pod_has_no_more_rights_than_the_image() -> None:
    """The pod runs as the image's user without any of root's rights, and keeps its data in a volume of its own."""
    user, _, group = IMAGE.last("USER").partition(":")
    assert (POD["securityContext"]["runAsUser"], POD["securityContext"]["runAsGroup"]) == (int(user), int(group))
    assert POD["securityContext"]["runAsNonRoot"] and NPCD["securityContext"]["readOnlyRootFilesystem"]
    assert NPCD["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert not NPCD["securityContext"]["allowPrivilegeEscalation"]
    mounts = {mount["mountPath"]: mount["name"] for mount in NPCD["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in KINDS["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert mounts[dockerfile.pairs(IMAGE.last("ENV"))["NPCD_MEMORY__FOLDER"]] in claims
    assert set(mounts.values()) == claims | {volume["name"] for volume in POD["volumes"]}
    assert KINDS["StatefulSet"]["spec"]["replicas"] == 1


def test_probes_are_open_to_nobody_but_monitoring() -> None:
    """The Service has the game servers' port alone. The network policy opens each port to its own callers only."""
    assert [port["targetPort"] for port in KINDS["Service"]["spec"]["ports"]] == ["grpc"]
    rules = KINDS["NetworkPolicy"]["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [["grpc"], ["http"]]
    assert all(rule["from"] for rule in rules)
    labels = KINDS["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        KINDS["Service"]["spec"]["selector"],
        KINDS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        KINDS["StatefulSet"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels


def test_probes_are_on_loopback_until_they_are_asked_for_elsewhere() -> None:
    """The default is loopback. Only serve.http itself, set by file, environment or flag, opens the probes elsewhere."""
    assert ServeSettings().http == "127.0.0.1:50062"
    beyond = load(None, ["serve.listen=0.0.0.0:1", "serve.tokens_file=t.toml"], environment={})
    assert beyond.serve.http == "127.0.0.1:50062", "listening elsewhere does not take the probes along"
    for environment, sets in (({}, ["serve.http=0.0.0.0:8080"]), ({"NPCD_SERVE__HTTP": "[::]:8080"}, [])):
        check(load(None, sets, environment=environment))
