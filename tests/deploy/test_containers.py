"""The image, what runs beside it, and the unit: linted by their own tools, and held to each other and to the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from medrag.serve.measures import Measures

DEPLOY = ROOT / "deploy"
MONITORING = DEPLOY / "monitoring"


def told_by_the_service() -> dict[str, set[str]]:
    """The service's own metrics, with their labels."""
    found = {}
    for one in vars(Measures()).values():
        if isinstance(one, MetricWrapperBase):
            (described,) = one.describe()
            name = described.name + ("_total" if isinstance(one, Counter) else "")
            found[name] = {*one._labelnames} | ({"le"} if isinstance(one, Histogram) else set())
    return found


PROMETHEUS = {"process_resident_memory_bytes": set[str](), "up": set[str]()}
METRICS = {**PROMETHEUS, **told_by_the_service()}
"""what the service (or Prometheus) tells, and by which labels"""


def tool(name: str) -> str:
    """The path of a program beside this Python or on the machine's PATH; the test is skipped where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
    return found


def expressions() -> dict[str, str]:
    """Every query of the dashboard and of the alerts, by where it stands."""
    found = {f"{panel['title']} {target['refId']}": target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]}
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"]:
        found |= {rule["alert"]: rule["expr"] for rule in group["rules"]}
    return found


def instructions() -> list[str]:
    """The instructions of the Dockerfile, each on one line, comments left out."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    return [" ".join(line.split()) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_scripts_are_clean() -> None:
    done = run(tool("shellcheck"), "-x", *sorted(path.relative_to(ROOT) for path in DEPLOY.glob("*.sh")))
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_is_clean() -> None:
    done = run(tool("hadolint"), "deploy/Dockerfile")
    assert done.returncode == 0, done.stdout


def test_each_file_says_what_it_is_for() -> None:
    for path in [*DEPLOY.iterdir(), *MONITORING.iterdir()]:
        if path.is_file() and path.suffix not in (".md", ".json"):
            first = next(line for line in path.read_text("utf-8").splitlines() if not line.startswith(("#!", "#SBATCH")))
            assert re.match(r"# .{20}", first), path


def test_the_image_is_made_of_files_that_are_there() -> None:
    lines = instructions()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied and set(copied) == let_in
    for name in copied:
        assert (ROOT / name).exists(), name
    named = [name for line in lines if line.startswith("RUN ") for name in re.findall(r"-[cr] (\S+)", line)]
    assert set(named) == {"deploy/constraints.txt"} and set(named) <= set(copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extras in re.findall(r"-e '?\.\[([\w,]+)\]", "\n".join(lines)):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert {project["readme"], *project["license-files"]} <= set(copied)


def test_the_image_has_the_torch_that_is_tested_and_no_model_or_data() -> None:
    (torch,) = re.findall(r"ARG TORCH=(\S+)", "\n".join(instructions()))
    assert f"torch=={torch}" in (ROOT / "Makefile").read_text("utf-8")
    assert not {"store", "corpora", "tests", "."} & {word for line in instructions() if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert "USER 10001:10001" in instructions()


def test_no_registry_is_named() -> None:
    for path in [*DEPLOY.iterdir(), *MONITORING.iterdir()]:
        if path.is_file():
            for host in re.findall(r"https?://([\w.-]+)", path.read_text("utf-8")):
                assert host in ("127.0.0.1", "prometheus", "medrag"), f"{path}: {host}"


def test_compose_is_closed_to_others() -> None:
    found = compose()
    assert set(found["services"]) == {"medrag", "prometheus", "grafana"}
    for name, service in found["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] and service["stop_grace_period"] and "user" not in service, name
        assert set(service["secrets"]) <= found["secrets"].keys(), name
        assert not re.search(
            "(?i)token|password", json.dumps({key: value for key, value in service.get("environment", {}).items() if "__FILE" not in key})
        )
    assert all(set(secret) == {"file"} for secret in found["secrets"].values())


def test_compose_agrees_with_the_files_around_it() -> None:
    found = compose()
    services = found["services"]
    for service in services.values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            declared = {line.split()[1].partition("=")[0] for line in instructions() if line.startswith("ARG ")}
            assert service["build"]["args"].keys() <= declared
        for volume in service["volumes"]:
            if isinstance(volume, str):
                source, _, *mode = volume.split(":")
                assert ((DEPLOY / source).is_file() and mode == ["ro"]) if source.startswith(".") else source in found["volumes"], volume
    (store,) = [volume for volume in services["medrag"]["volumes"] if isinstance(volume, dict)]
    command = json.loads(next(line for line in instructions() if line.startswith("CMD ")).removeprefix("CMD "))
    assert store["read_only"] and f"store={store['target']}" in command
    assert "serve.token_file=/run/secrets/medrag_token" in command
    written = next(word for word in command if word.startswith("serve.feedback=")).partition("=")[2]
    assert str(Path(written).parent) in {volume.split(":")[1] for volume in services["medrag"]["volumes"] if isinstance(volume, str)}
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["medrag:8000"] and "EXPOSE 8000" in instructions()
    assert job["authorization"]["credentials_file"].removeprefix("/run/secrets/") in services["prometheus"]["secrets"]
    mounted = {Path(volume.split(":")[1]) for name in ("prometheus", "grafana") for volume in services[name]["volumes"]}
    assert {Path("/etc/prometheus") / name for name in scraped["rule_files"]} <= mounted
    (provider,) = yaml.safe_load((MONITORING / "grafana-dashboards.yml").read_text("utf-8"))["providers"]
    assert Path(provider["options"]["path"]) / "dashboard.json" in mounted
    (source,) = yaml.safe_load((MONITORING / "grafana-datasource.yml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = {place["datasource"]["uid"] for place in [*dashboard()["panels"], *dashboard()["templating"]["list"]]}
    assert used == {source["uid"]}


def test_queries_ask_for_what_the_service_tells() -> None:
    asked = set()
    for where, text in expressions().items():
        for name, labels in re.findall(r"\b((?:medrag|process)_\w+|up)\b(?:\{([^}]*)\})?", text):
            base = re.sub(r"_(bucket|sum|count)$", "", name) if re.sub(r"_(bucket|sum|count)$", "", name) in METRICS else name
            assert base in METRICS, f"{where}: {name}"
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", labels)) <= METRICS[base] | {"instance", "job"}, f"{where}: {labels}"
            asked.add(base)
        grouped = {label for labels in re.findall(r"by \(([^)]*)\)", text) for label in re.split(r",\s*", labels)}
        assert grouped <= set[str]().union(*METRICS.values()) | {"instance"}, where
    assert asked == METRICS.keys()


def test_the_dashboards_panels_are_apart() -> None:
    panels = dashboard()["panels"]
    places = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_reads_its_files_and_every_query(tmp_path: Path) -> None:
    promtool = tool("promtool")
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    text = (MONITORING / "prometheus.yml").read_text("utf-8").replace("/run/secrets/medrag_token", str(tmp_path / "token"))
    (tmp_path / "token").write_text("0" * 32)
    (tmp_path / "prometheus.yml").write_text(text, "utf-8")
    done = run(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    # Grafana's variables filled in, each query is a rule
    rules = [{"record": f"query:{number}", "expr": filled(text)} for number, text in enumerate(expressions().values())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), "utf-8")
    done = run(promtool, "check", "rules", tmp_path / "queries.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def filled(text: str) -> str:
    return text.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$route", ".*")


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    promtool = tool("promtool")
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    service = 'instance="a", job="medrag"'
    answers = "medrag_requests_total{" + service + ', route="/v1/answers", status="200"}'
    seconds = "medrag_request_seconds_bucket{" + service + ', route="/v1/answers", le='
    quiet = {
        f"up{{{service}}}": "1x240",
        answers: "0+60x240",
        seconds + '"1.0"}': "0+60x240",
        seconds + '"10.0"}': "0+60x240",
        seconds + '"+Inf"}': "0+60x240",
        f'medrag_rejected_total{{{service}, reason="full"}}': "0+1x240",
        f'medrag_rejected_total{{{service}, reason="not_ready"}}': "0x240",
        f"medrag_worker_restarts_total{{{service}}}": "0x240",
        f'medrag_swaps_total{{{service}, result="failed"}}': "0x240",
        f'medrag_answers_total{{{service}, outcome="answered"}}': "0+50x240",
        f'medrag_answers_total{{{service}, outcome="refused"}}': "0+10x240",
    }
    amiss = {
        "MedragDown": {f"up{{{service}}}": "1x180 0x60"},
        "MedragNotReady": {f'medrag_rejected_total{{{service}, reason="not_ready"}}': "0x180 1+1x60"},
        "MedragLatencyHigh": {seconds + '"1.0"}': "0+50x240"},
        "MedragRejectionsHigh": {f'medrag_rejected_total{{{service}, reason="full"}}': "0x180 5+5x60"},
        "MedragWorkersRestart": {f"medrag_worker_restarts_total{{{service}}}": "0x200 1+1x40"},
        "MedragSwapFailed": {f'medrag_swaps_total{{{service}, result="failed"}}': "0x230 1x10"},
        "MedragRefusedShareJumped": {f'medrag_answers_total{{{service}, outcome="refused"}}': "0+10x180 1860+60x60"},
    }
    names = {rule["alert"] for group in yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"] for rule in group["rules"]}
    assert names == amiss.keys()
    tests = []
    for broken in (None, *sorted(names)):
        series = quiet | (amiss[broken] if broken else {})
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
                        "eval_time": "240m",
                        "exp_samples": [{"labels": "{}", "value": int(name == broken)}],
                    }
                    for name in sorted(names)
                ],
            }
        )
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}), "utf-8")
    done = run(promtool, "test", "rules", tmp_path / "tests.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_is_in_order_and_hardened(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    text = (DEPLOY / "medrag.service").read_text("utf-8")
    assert "/opt/medrag/.venv/bin/medrag" in text
    (tmp_path / "medrag.service").write_text(text.replace("/opt/medrag/.venv/bin/medrag", shutil.which("true") or "/bin/true"), "utf-8")
    done = run(analyze, "verify", "--man=no", tmp_path / "medrag.service")
    assert done.returncode == 0 and not done.stderr, done.stderr
    done = run(analyze, "security", "--offline=yes", "--no-pager", "--threshold=20", tmp_path / "medrag.service")
    assert done.returncode == 0, done.stdout[-200:]  # 2.0 of 10


def test_the_unit_and_the_image_serve_the_same_way() -> None:
    unit = (DEPLOY / "medrag.service").read_text("utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)
    image = json.loads(next(line for line in instructions() if line.startswith("CMD ")).removeprefix("CMD "))
    keys = {word.partition("=")[0] for word in command.split()[2:]}
    assert keys | {"serve.host"} == {word.partition("=")[0] for word in image[2:]}  # the unit is reached through nginx on the same machine
    seconds = int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0])
    assert compose()["services"]["medrag"]["stop_grace_period"] == f"{seconds}s"
