"""The service does what its OpenAPI document says: more than a thousand requests that Schemathesis makes from it, good ones and bad ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from commands import ROOT
from served import Service

pytest_plugins = ["service_fixtures"]

EXAMPLES = 120
"""good and bad requests each, made at random for each operation, beside those that go through every rule of its schema"""
CONFIG = f"""
workers = 2
hooks = "{(Path(__file__).parent / "schemathesis_hooks.py").as_posix()}"
[generation]
mode = "all"
deterministic = true
database = "none"
max-examples = {EXAMPLES}
[dictionaries.methods]
values = ["dense", "fid"]
[parameters]
"body.method" = {{dictionary = "methods", probability = 0.8}}
"body.model" = {{dictionary = "methods", probability = 0.8}}
"path.name" = {{dictionary = "methods", probability = 0.8}}
"""
POSTED = ("/v1/answers", "/v1/chat/completions", "/v1/embeddings", "/rerank", "/v1/feedback")


def statuses(service: Service) -> dict[str, dict[int, int]]:
    """How often each route has answered with each status."""
    found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for route, status, count in re.findall(r'medrag_requests_total\{route="(.*?)",status="(\d+)"\} (\d+)', service.ask("/metrics").text):
        found[route][int(status)] = int(count)
    return found


def test_requests_made_from_the_document_are_answered_as_it_says(service: Service, tmp_path: Path) -> None:
    """All of Schemathesis's checks: no 5xx, documented statuses, types, headers and bodies; good data taken, bad data and other methods refused."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG, "utf-8")
    before = statuses(service)
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", "schemathesis.toml", "run", f"{service.address}/openapi.json"]
    command += ["--phases=coverage,fuzzing", "--checks=all", "--report=json", "--report-json-path=report.json", "--no-color"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, errors="replace", timeout=600, check=False
    )
    said = "\n".join(line[:400] for line in (done.stdout + done.stderr).splitlines())
    assert (tmp_path / "report.json").is_file(), said
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    cases = report["test_cases"]
    print(f"{cases['generated']} requests in {report['running_time']:.0f} seconds")
    assert done.returncode == 0 and report["complete"] and not report["failures"] and not report["errors"], said
    assert cases["generated"] >= 1000 and cases["errored"] == 0 and cases["without_checks"] == 0

    now = statuses(service)
    told = {route: {status: count - before[route][status] for status, count in by_status.items()} for route, by_status in now.items()}
    assert sum(count for by_status in told.values() for count in by_status.values()) >= 1000
    assert not [(route, status) for route, by_status in told.items() for status, count in by_status.items() if status >= 500 and count], told
    for route in POSTED:
        taken = told[route].get(200, 0) + told[route].get(204, 0)
        assert taken >= 20 and told[route][422] >= 20 and told[route][415] and told[route][405], (route, told[route])


def test_the_document_lists_every_route(service: Service) -> None:
    document = service.ask("/openapi.json").json
    listed = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert listed == {("post", path) for path in POSTED} | {
        ("get", path) for path in ("/v1/models", "/v1/models/{name}", "/healthz", "/readyz", "/metrics")
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["description"] and {"401", "403"} <= operation["responses"].keys(), path
            for status, response in operation["responses"].items():
                bodies = [content["schema"] for content in response.get("content", {}).values()]
                assert status == "204" or all(body for body in bodies), (path, status)
                assert status < "400" or bodies == [{"$ref": "#/components/schemas/ErrorResponse"}], (path, status)
