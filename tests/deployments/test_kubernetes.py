"""Manifests fit the schemas of Kubernetes, and what they name exists: here, in each other, and in eelsflow."""

import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import typer
import yaml
from distributed.cli import dask_scheduler, dask_worker

from eelsflow import cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployments" / "kubernetes"
README = (ROOT / "deployments" / "README.md").read_text()
VERSION = "1.34"
Manifest = dict[str, Any]


def read(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


FILES = {path.name: read(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
(KUSTOMIZATION,) = FILES.pop("kustomization.yaml")
OPERATED = FILES["dask-operator.yaml"][0]
ALL = [document for documents in FILES.values() for document in documents]
NAMED = [pytest.param(one, id=f"{one['kind']} {one['metadata']['name']}") for one in ALL]


def of_kind(kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in ALL if one["kind"] == kind}


def as_core(document: Manifest) -> list[Manifest]:
    """Return what schemas of Kubernetes can judge: of the operator's object, which has none, its pods and service."""
    if document["kind"] != "DaskCluster":
        return [document]
    scheduler, worker = document["spec"]["scheduler"], document["spec"]["worker"]
    assert document["apiVersion"] == "kubernetes.dask.org/v1"
    assert set(document["spec"]) == {"scheduler", "worker"}
    assert set(scheduler) == {"spec", "service"}
    assert set(worker) == {"spec", "replicas"}
    parts = [("Pod", scheduler["spec"]), ("Pod", worker["spec"]), ("Service", scheduler["service"])]
    return [{"apiVersion": "v1", "kind": kind, "metadata": {"name": "part"}, "spec": spec} for kind, spec in parts]


def validate(document: Manifest) -> None:
    for part in as_core(document):
        assert kubernetes_validate.validate(part, VERSION, strict=True) == VERSION


def pods() -> Iterator[Any]:
    for name, one in of_kind("Deployment").items():
        yield pytest.param(one["spec"]["template"]["spec"], id=name)
    for part in ("scheduler", "worker"):
        yield pytest.param(OPERATED["spec"][part]["spec"], id=f"operated {part}")


PODS = list(pods())


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


CONTAINERS = [
    pytest.param(one, id=f"{pod.id} {one['name']}") for pod in PODS for one in containers(pod.values[0])
]  # fmt: skip


@pytest.mark.parametrize("document", NAMED)
def test_a_manifest_fits_its_schema(document: Manifest) -> None:
    validate(document)


def change(document: Manifest, *path: Any, to: Any) -> Manifest:
    changed: Any = copy.deepcopy(document)
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    return changed


WORKER = of_kind("Deployment")["eelsflow-worker"]
IN_POD = ("spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    "broken",
    [
        change(WORKER, *IN_POD, "comand", to=["dask"]),
        change(WORKER, "spec", "replicas", to="four"),
        change(WORKER, "spec", to={"template": WORKER["spec"]["template"]}),
        change(WORKER, *IN_POD, "securityContext", "runAsNonroot", to=True),
        change(OPERATED, "spec", "worker", "spec", "containers", 0, "resources", "limit", to={}),
        change(OPERATED, "spec", "scheduler", "service", "ports", 0, "port", to="comm"),
        change(of_kind("NetworkPolicy")["eelsflow"], "spec", "ingress", 0, "form", to=[]),
    ],
    ids=["unknown field", "wrong type", "nothing selected", "in a context", "operated pod", "operated service", "wall"],
)
def test_a_broken_manifest_is_refused(broken: Manifest) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate(change(WORKER, "apiVersion", to="extensions/v1beta1"))


def test_kustomize_is_given_every_file_but_the_operators_and_names_its_image() -> None:
    assert set(KUSTOMIZATION["resources"]) == set(FILES) - {"dask-operator.yaml"}
    assert list(of_kind("Namespace")) == [KUSTOMIZATION["namespace"]]
    (image,) = KUSTOMIZATION["images"]
    of_deployments = {one["image"] for one in containers_of("Deployment")}
    assert of_deployments == {image["name"]}
    operated = {one["image"] for part in ("scheduler", "worker") for one in containers(OPERATED["spec"][part]["spec"])}
    assert operated == {f"{image['newName']}:{image['newTag']}"}


def containers_of(kind: str) -> list[Manifest]:
    return [one for each in of_kind(kind).values() for one in containers(each["spec"]["template"]["spec"])]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed")
def test_kustomize_renders_valid_manifests() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True)
    rendered = read(done.stdout)
    assert len(rendered) == sum(len(FILES[name]) for name in KUSTOMIZATION["resources"])
    for one in rendered:
        validate(one)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    assert "image: eelsflow\n" not in done.stdout


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_mounts_and_reads_what_exists(pod: Manifest) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    sources = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes.values()]
    assert set(sources) - {None} <= set(of_kind("PersistentVolumeClaim"))
    for one in containers(pod):
        assert {mount["name"] for mount in one["volumeMounts"]} <= set(volumes)
        assert {source["configMapRef"]["name"] for source in one.get("envFrom", [])} <= set(of_kind("ConfigMap"))
        for variable in one.get("env", []):
            if "valueFrom" in variable:
                secret = variable["valueFrom"]["secretKeyRef"]
                created = re.search(rf"create secret generic {secret['name']}\b(.*\\\n)*.*", README)
                assert created is not None
                assert f"--from-file={secret['key']}" in created.group()


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_has_no_more_rights_than_it_needs(pod: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for one in containers(pod):
        context = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert one["securityContext"] == context
        assert {"requests", "limits"} <= set(one["resources"])
        writable = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
        assert "/tmp" in writable
        assert one["workingDir"] in {"/tmp", "/opt/eelsflow"}


def test_deployments_select_their_own_pods_behind_the_wall() -> None:
    wall = of_kind("NetworkPolicy")["eelsflow"]["spec"]
    (inside,) = wall["podSelector"]["matchLabels"].items()
    assert wall["ingress"] == [{"from": [{"podSelector": wall["podSelector"]}]}]
    selectors = []
    for one in of_kind("Deployment").values():
        labels, selector = one["spec"]["template"]["metadata"]["labels"], one["spec"]["selector"]["matchLabels"]
        assert selector.items() <= labels.items()
        assert inside in labels.items()
        selectors.append(selector)
    assert inside in OPERATED["metadata"]["labels"].items()
    assert all(selectors.count(selector) == 1 for selector in selectors)


@pytest.mark.parametrize("service", [pytest.param(one, id=name) for name, one in of_kind("Service").items()])
def test_a_service_leads_to_a_port_of_one_deployment(service: Manifest) -> None:
    selector = service["spec"]["selector"].items()
    (chosen,) = [
        one
        for one in of_kind("Deployment").values()
        if selector <= one["spec"]["template"]["metadata"]["labels"].items()
    ]
    ports = {port["containerPort"] for one in chosen["spec"]["template"]["spec"]["containers"] for port in one["ports"]}
    assert {port.get("targetPort", port["port"]) for port in service["spec"]["ports"]} <= ports


def test_addresses_are_those_of_services() -> None:
    ports = {
        name: {port["port"] for port in one["spec"]["ports"]} for name, one in of_kind("Service").items()
    } | {f"{OPERATED['metadata']['name']}-scheduler": {8786}}  # fmt: skip
    text = "\n".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    section = README.partition("## Kubernetes")[2].partition("\n## ")[0]
    found = re.findall(r"\b(?:tcp|http)://[a-z0-9.-]+:\d+", text + section)
    assert len(set(found)) >= 3
    for address in map(urlsplit, found):
        assert address.hostname == "127.0.0.1" or address.port in ports[str(address.hostname)]


@pytest.mark.parametrize("one", CONTAINERS)
def test_probes_ask_ports_that_exist(one: Manifest) -> None:
    ports = {port["name"] for port in one.get("ports", [])}
    probes = [one[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in one]
    assert {probe["httpGet"]["port"] for probe in probes} <= ports


@pytest.mark.parametrize("one", CONTAINERS)
def test_a_command_exists_with_its_options(one: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    match [*one["command"], *one.get("args", [])]:
        case ["eelsflow", *words]:
            group = typer.main.get_command(cli.app)
            for command in group.commands.values():
                monkeypatch.setattr(command, "callback", lambda **values: None)
            with pytest.raises(SystemExit) as exit_:
                group.main(words, prog_name="eelsflow")
            assert not exit_.value.code
        case ["dask", ("scheduler" | "worker") as name, *words]:
            command = {"scheduler": dask_scheduler, "worker": dask_worker}[name].main
            context = command.make_context(name, list(words))
            assert context.params["preload_argv"] == ()  # where options go that it does not know
        case ["prefect", *words]:
            options = [word for word in words if word.startswith("--")]
            verbs = words[: words.index(options[0])]
            environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
            shown = subprocess.run(
                [sys.executable, "-m", "prefect", *verbs, "--help"],
                capture_output=True, text=True, check=True, env=environment,
            ).stdout  # fmt: skip
            assert {option for option in options if f"{option} " not in shown} == set()
        case ["python", "-m", module, *names]:
            assert importlib.util.find_spec(module) is not None
            described = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
            assert set(names) <= {deployment["name"] for deployment in described["deployments"]}
        case other:
            pytest.fail(f"{other}: what is this?")


def variables() -> dict[str, str | None]:
    found = {}
    for one in of_kind("ConfigMap").values():
        found |= one["data"]
    for container in CONTAINERS:
        found |= {variable["name"]: variable.get("value") for variable in container.values[0].get("env", [])}
    return found


def test_variables_are_known_to_somebody() -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    prefect = {name for name in variables() if name.startswith("PREFECT_")}
    assert prefect
    assert prefect <= _get_valid_setting_names(Settings)
    ours = {name for name in variables() if name.startswith("EELSFLOW_")}
    sources = [*ROOT.glob("eelsflow/**/*.py"), ROOT / "deployments" / "prefect.yaml"]
    assert ours == set(re.findall("|".join(ours), "\n".join(path.read_text() for path in sources)))


def test_no_secret_is_in_a_file() -> None:
    assert "Secret" not in {one["kind"] for one in ALL}
    secret = {name for name, value in variables().items() if value is None}
    assert secret == {
        name for name in variables() if re.search("AUTH|PASSWORD|TOKEN|SECRET|CONNECTION_URL|CATALOGUE", name)
    }  # fmt: skip
    for path in FOLDER.iterdir():
        assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text()), path
