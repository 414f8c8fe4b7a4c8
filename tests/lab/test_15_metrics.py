"""Debian's Prometheus scrapes every agent and manager over mutual TLS and finds the documented metrics."""

import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from common.config import AGENT_METRICS_PORT, MANAGER_METRICS_PORT
from lab import demo_guests
from lab.cluster import operator_config
from tests.lab.conftest import Room

ADDRESS = "127.0.0.1:19095"
NAMES = (
    "gugus_node_up",
    "gugus_guest_state",
    "gugus_lease_seconds",
    "gugus_raft_term",
    "gugus_raft_commit_index",
)


def ask(path: str, **query: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{ADDRESS}{path}?{urlencode(query)}", timeout=5) as answer:
        value: dict[str, object] = json.load(answer)["data"]
    return value


def targets_up() -> int:
    try:
        active = ask("/api/v1/targets")["activeTargets"]
    except OSError:
        return 0
    assert isinstance(active, list)
    return sum(target["health"] == "up" for target in active)


@pytest.mark.skipif(not shutil.which("prometheus"), reason="the Debian package prometheus is not installed")
def test_prometheus_scrapes_every_agent_and_manager(room: Room, tmp_path: Path) -> None:
    room.create("db", demo_guests.container_spec())
    keys = operator_config(room.lab.plan).parent
    nodes = room.lab.plan.nodes()
    tls = {
        "ca_file": str(keys / "ca.crt"),
        "cert_file": str(keys / "operator.crt"),
        "key_file": str(keys / "operator.key"),
    }
    ports = {"agents": AGENT_METRICS_PORT, "managers": MANAGER_METRICS_PORT}
    jobs = [
        {
            "job_name": job,
            "scheme": "https",
            "tls_config": tls,
            "static_configs": [{"targets": [f"{node.address}:{port}" for node in nodes]}],
        }
        for job, port in ports.items()
    ]
    settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={ADDRESS}",
        "--log.level=error",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as prometheus:
        try:
            room.operator.wait("all six targets to be up", lambda: targets_up() == len(ports) * len(nodes), 60)
            for name in NAMES:
                room.operator.wait(f"{name} to be scraped", lambda n=name: ask("/api/v1/query", query=n)["result"], 15)  # type: ignore[misc]
            names = ask("/api/v1/label/__name__/values")
            assert [name for name in names if name.startswith("gugus_") and name.endswith("_seconds_bucket")]
        finally:
            prometheus.terminate()
            prometheus.wait(20)
