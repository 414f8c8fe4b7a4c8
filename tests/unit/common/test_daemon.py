"""What a daemon tells the outside: systemd, the journal, Prometheus."""

import asyncio
import io
import json
import logging
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry, Gauge

from common import logs, notify, trace
from common.clock import SystemClock
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of
from common.identity.tls import client_context
from common.metrics import MetricsServer, start_metrics_server

CLUSTER_ID = "0123456789abcdef"

# systemd


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@gugus-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_systemd_hears_of_every_state(systemd: socket.socket) -> None:
    notify.ready("3 guests\nadopted")
    assert systemd.recv(100) == b"READY=1\nSTATUS=3 guests adopted"
    notify.status("leader")
    assert systemd.recv(100) == b"STATUS=leader"
    notify.stopping()
    assert systemd.recv(100) == b"STOPPING=1"


async def test_turning_loop_feeds_the_watchdog(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    task = asyncio.create_task(notify.watchdog_task())
    await asyncio.sleep(0.1)
    task.cancel()
    for _ in range(3):
        assert systemd.recv(100) == b"WATCHDOG=1"


async def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify.ready()
    await asyncio.wait_for(notify.watchdog_task(), 1)
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    notify.ready()


# Logs


@pytest.fixture
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    structlog.configure(**config)
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("restore_logging")
def test_line_carries_ids_and_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = io.StringIO()
    logs.setup("agent", node="n1", stream=out)
    log = logs.get_logger("compute")
    with trace.bound(task="t1", guest="web"):
        log.info("started", join_token="gugus1.x", nested={"Password": "x", "n": 1}, idempotency_key="k")
    log.debug("not shown")
    logging.getLogger("grpc").warning("odd %s", "thing")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first.items() >= {"event": "started", "component": "agent", "node": "n1", "part": "compute",
                             "task": "t1", "guest": "web", "level": "info", "idempotency_key": "k"}.items()  # fmt: skip
    assert first["join_token"] == logs.REDACTED
    assert first["nested"] == {"Password": logs.REDACTED, "n": 1}
    assert second.items() >= {"event": "odd thing", "level": "warning", "part": "grpc"}.items()


@pytest.mark.usefixtures("restore_logging")
def test_journal_gets_the_level_of_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    out = io.StringIO()
    logs.setup("agent", stream=out)
    log = logs.get_logger()
    log.info("a")
    log.warning("b")
    try:
        raise RuntimeError("x\ny")
    except RuntimeError:
        log.exception("c")
    logging.getLogger("grpc").error("d")
    lines = out.getvalue().splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>", "<3>"]
    assert "RuntimeError: x" in json.loads(lines[2][3:])["exception"]


def test_unknown_log_level_is_refused() -> None:
    with pytest.raises(ValueError, match="none of DEBUG"):
        logs.setup("agent", level="loud")


# Metrics


@pytest.fixture
def metrics(node: Credentials) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("gugus_node_up", "Up.", registry=registry).set(1)
    server = start_metrics_server(registry, "127.0.0.1", 0, node)
    yield server
    server.close()


def scrape(server: MetricsServer, credentials: Credentials) -> str:
    tls = client_context(credentials)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
        tls.wrap_socket(plain, server_hostname=any_of(Role.NODE, CLUSTER_ID)) as sock,
    ):
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    return data.decode()


def test_metrics_are_shown_to_a_certificate_of_the_cluster(metrics: MetricsServer, operator: Credentials) -> None:
    answer = scrape(metrics, operator)
    assert answer.startswith("HTTP/1.0 200")
    assert "gugus_node_up 1.0" in answer


def test_silent_client_blocks_no_scrape(metrics: MetricsServer, operator: Credentials) -> None:
    with socket.create_connection(("127.0.0.1", metrics.port)):
        assert "gugus_node_up" in scrape(metrics, operator)


def test_metrics_are_refused_to_strangers_and_to_plain_http(
    metrics: MetricsServer, ca: CertificateAuthority, foreign_ca: CertificateAuthority
) -> None:
    stranger = foreign_ca.issue(Identity(CLUSTER_ID, Role.OPERATOR, "root"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        scrape(metrics, Credentials(ca.cert_pem, stranger.cert_pem, stranger.key_pem))
    with pytest.raises(OSError, match=r"[Rr]eset|closed|[Bb]roken"):
        urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=5)


async def test_clocks_go_forward() -> None:
    clock = SystemClock()
    before = clock.boottime_ns(), clock.monotonic_s(), clock.wall_s()
    await clock.sleep(0.001)
    assert clock.boottime_ns() > before[0]
    assert clock.monotonic_s() > before[1]
