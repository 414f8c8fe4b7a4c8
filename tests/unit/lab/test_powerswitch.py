"""The fence agent of a lab as a program, against a switch that answers or lies."""

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import fence_gugus_lab
from lab.fence_gugus_lab import proof
from manager.fencing.metadata import check, parse

SECRET = "s3cret"


class Handler(socketserver.StreamRequestHandler):
    state, error, secret = "off", "", SECRET
    asked: list[dict[str, str]]

    def handle(self) -> None:
        self.wfile.write(json.dumps({"challenge": "c"}).encode() + b"\n")
        request = json.loads(self.rfile.readline())
        self.asked.append(request)
        said = {"state": self.state, "error": self.error}
        said["proof"] = proof(self.secret, "switch", request["challenge"], self.state, self.error)
        self.wfile.write(json.dumps(said).encode() + b"\n")


@pytest.fixture
def switch() -> Iterator[tuple[type[Handler], int]]:
    handler = type("TestHandler", (Handler,), {"asked": []})
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, server.server_address[1]
        server.shutdown()


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    program = Path(fence_gugus_lab.__file__)
    return subprocess.run(
        [sys.executable, "-IS", str(program)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def ask(port: int, action: str) -> int:
    return run("ip=127.0.0.1", f"ipport={port}", f"password={SECRET}", "plug=n2", f"action={action}").returncode


def test_exit_codes_are_those_of_the_fence_agents(switch: tuple[type[Handler], int]) -> None:
    handler, port = switch
    assert [ask(port, action) for action in ("off", "status", "on")] == [0, 2, 1]
    handler.state = "on"
    assert [ask(port, action) for action in ("off", "status", "on")] == [1, 0, 0]
    assert handler.asked[0]["proof"] == proof(SECRET, "client", "c", "off", "n2")
    assert all(SECRET not in str(request) for request in handler.asked)


def test_switch_is_monitored_without_a_plug(switch: tuple[type[Handler], int]) -> None:
    handler, port = switch
    words = ("ip=127.0.0.1", f"ipport={port}", f"password={SECRET}", "action=monitor")
    handler.state = "n1,gl-ci-n1"
    assert run(*words).returncode == 0
    handler.error = "out of order"
    assert run(*words).returncode == 1


def test_error_a_wrong_switch_and_none_at_all_are_failures(switch: tuple[type[Handler], int]) -> None:
    handler, port = switch
    handler.error = "no such plug"
    assert ask(port, "status") == 1
    handler.error, handler.secret = "", "another"
    assert ask(port, "status") == 1, "who does not know the secret may say anything"
    assert ask(1, "off") == 1


def test_metadata_fits_what_is_asked_of_devices() -> None:
    metadata = parse("fence_gugus_lab", run("action=metadata").stdout)
    assert check(metadata, {"ip": "10.77.1.1", "plug": "n1"}, {"password": SECRET}) == []
    assert {wrong.field for wrong in check(metadata, {}, {})} == {
        "parameters.ip",
        "parameters.plug",
        "parameters.password",
    }
