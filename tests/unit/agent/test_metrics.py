"""The agent's metrics: what they are called, what they say of guests, and that 200 guests are cheap."""

import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gugus.agent.v1 import guest_pb2
from gugus.agent.v1.node_pb2 import Facts
from prometheus_client import CollectorRegistry, generate_latest

from agent.metrics import AgentCollector

PSI = "some avg10=1.60 avg60=2.03 avg300=2.74 total=5391727713\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\n"


def _guest(name: str, kind: guest_pb2.GuestKind.ValueType = guest_pb2.GUEST_KIND_VIRTUAL_MACHINE) -> guest_pb2.Guest:
    guest = guest_pb2.Guest(state=guest_pb2.GUEST_STATE_RUNNING, generation=3, cpu_time_ns=1_500_000_000)
    guest.spec.name, guest.spec.kind, guest.spec.cpus, guest.spec.memory_bytes = name, kind, 2, 1 << 30
    guest.memory_used_bytes = 5 << 20
    usage = guest.usage
    usage.memory_bytes, usage.balloon_bytes, usage.memory_guest_used_bytes = 1 << 30, 768 << 20, 300 << 20
    usage.disks.add(name="root", read_bytes=10, written_bytes=20, reads=1, writes=2)
    usage.nics.add(
        name="eth0",
        received_bytes=30,
        sent_bytes=40,
        received_packets=3,
        sent_packets=4,
        received_drops=5,
        sent_drops=6,
    )
    usage.cpu_pressure.some_us, usage.cpu_pressure.full_us = 1_500_000, 500_000
    guest.pending.add(field="cpus")
    return guest


def _text(guests: list[guest_pb2.Guest], folder: Path) -> str:
    facts = Facts(agent_version="1", boot_id="b")
    facts.hypervisors.add(driver="kvm", ready=True, mode="tcg")
    guard: Any = SimpleNamespace(remaining_ms=9000)
    host: Any = SimpleNamespace(facts=facts)
    known: Any = SimpleNamespace(list=lambda: guests)
    registry = CollectorRegistry()
    registry.register(AgentCollector("n1", known, host, guard, folder))
    return generate_latest(registry).decode()


@pytest.fixture
def pressure(tmp_path: Path) -> Path:
    for name in ("cpu", "memory", "io"):
        (tmp_path / name).write_text(PSI)
    return tmp_path


def test_a_guest_s_use_is_told_by_disk_and_interface(pressure: Path) -> None:
    text = _text([_guest("web")], pressure)
    mine = 'guest="web",kind="virtual_machine"'
    for line in (
        f'gugus_guest_state{{{mine},state="running"}} 1.0',
        f"gugus_guest_cpu_seconds_total{{{mine}}} 1.5",
        f"gugus_guest_virtual_cpus{{{mine}}} 2.0",
        f"gugus_guest_memory_actual_balloon_bytes{{{mine}}} 8.05306368e+08",
        f"gugus_guest_pending_changes{{{mine}}} 1.0",
        f'gugus_guest_disk_write_bytes_total{{disk="root",{mine}}} 20.0',
        f'gugus_guest_disk_read_requests_total{{disk="root",{mine}}} 1.0',
        'gugus_guest_network_receive_bytes_total{guest="web",interface="eth0",kind="virtual_machine"} 30.0',
        f"gugus_guest_pressure_cpu_waiting_seconds_total{{{mine}}} 1.5",
        f"gugus_guest_pressure_cpu_stalled_seconds_total{{{mine}}} 0.5",
        "gugus_host_pressure_io_waiting_seconds_total 5391.727713",
        "gugus_host_pressure_memory_stalled_seconds_total 2.5",
    ):
        assert line in _sorted_labels(text), line


def _sorted_labels(text: str) -> str:
    """Return the metrics with the labels of each line by name."""
    return re.sub(r"\{([^}]*)\}", lambda match: "{" + ",".join(sorted(match[1].split(","))) + "}", text)


def test_what_is_not_known_is_not_told(tmp_path: Path) -> None:
    off = guest_pb2.Guest(state=guest_pb2.GUEST_STATE_STOPPED)
    off.spec.name, off.spec.kind = "off", guest_pb2.GUEST_KIND_CONTAINER
    text = _text([off], tmp_path)
    told = {line.split("{")[0] for line in text.splitlines() if 'guest="off"' in line}
    assert told == {
        "gugus_guest_state",
        "gugus_guest_cpu_seconds_total",
        "gugus_guest_memory_bytes",
        "gugus_guest_virtual_cpus",
        "gugus_guest_maximum_memory_bytes",
        "gugus_guest_generation",
    }
    assert "\ngugus_host_pressure" not in text


def test_containers_tell_processes_and_swap(tmp_path: Path) -> None:
    box = _guest("box", guest_pb2.GUEST_KIND_CONTAINER)
    box.usage.pids, box.usage.swap_bytes = 12, 4096
    text = _text([box], tmp_path)
    assert 'gugus_guest_processes{guest="box",kind="container"} 12.0' in text
    assert 'gugus_guest_memory_swap_bytes{guest="box",kind="container"} 4096.0' in text


def test_every_metric_of_an_agent_is_documented(pressure: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    documented = {
        name for row in page.splitlines() if row.startswith("|") for name in re.findall(r"`(gugus_[a-z_0-9]+)`", row)
    }
    box = _guest("box", guest_pb2.GUEST_KIND_CONTAINER)
    box.usage.pids = 1
    told = {re.split(r"[ {]", line)[0] for line in _text([box], pressure).splitlines() if not line.startswith("#")}
    assert told - documented == set()


@pytest.mark.skipif(not shutil.which("promtool"), reason="the Debian package prometheus is not installed")
def test_promtool_finds_nothing_wrong(pressure: Path) -> None:
    text = _text([_guest("web"), _guest("box", guest_pb2.GUEST_KIND_CONTAINER)], pressure)
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


def test_a_scrape_of_200_guests_is_cheap(pressure: Path) -> None:
    guests = [_guest(f"g{i}") for i in range(200)]
    _text(guests, pressure)
    begun = time.process_time()
    _text(guests, pressure)
    assert time.process_time() - begun < 1.0  # about 0.1 s of CPU time; a scrape every 15 s is then under 1 % of a core
