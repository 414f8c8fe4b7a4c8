"""The power switch of a real lab: what a management board or a power strip is to real hosts, reached from inside the nodes.

Invariant: it says that a node is off only after every process of the node is gone. Who asks must know the lab's secret, which lies in a
file of mode 0600 in the lab's folder and is given to the cluster as a secret parameter of its fence devices.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socketserver
from pathlib import Path

from common.files import write_atomic
from lab import events, machine
from lab.api import load_plan
from lab.container import Container
from lab.fence_gugus_lab import PORT, proof
from lab.plan import LabError, LabPlan
from lab.service import run

#: Longest request line, bytes.
LONGEST_LINE = 4096
#: Seconds in which a client must have said what it wants.
PATIENCE_SECONDS = 5.0
#: Seconds that a node's other power command is waited for.
LOCK_SECONDS = 10.0


def secret_file(plan: LabPlan) -> Path:
    """Where the secret of the lab's switch is."""
    return plan.state / "power.secret"


def secret(plan: LabPlan) -> str:
    """The secret of the lab's switch; made at its first use."""
    file = secret_file(plan)
    if not file.exists():
        write_atomic(file, secrets.token_hex(24).encode(), 0o600)
    return file.read_text()


class Switch:
    """What the switch does, apart from how it is asked."""

    def __init__(self, plan: LabPlan) -> None:
        self._state = plan.state
        self._secret = secret(plan)

    def answer(self, line: bytes, challenge: str) -> dict[str, str]:
        """The answer to a request line: "state" or "error", and its proof."""
        mine, said = "", {"state": "", "error": ""}
        try:
            request = {key: str(value) for key, value in json.loads(line).items()}
            mine, action, plug = request["challenge"], request["action"], request["plug"]
            if not hmac.compare_digest(request["proof"], proof(self._secret, "client", challenge, action, plug)):
                raise LabError("wrong password")
            said["state"] = self._do(action, plug)
        except (ValueError, KeyError, AttributeError, LabError) as error:
            said["error"] = str(error) or repr(error)
        return {**said, "proof": proof(self._secret, "switch", mine, said["state"], said["error"])}

    def _do(self, action: str, plug: str) -> str:
        plan = load_plan(self._state)  # a lab may have grown
        if action in ("list", "monitor"):
            return "\n".join(f"{node.name},{node.container}" for node in plan.nodes())
        container = Container(plan, plan.node(plug))
        with machine.locked(container.node.folder / "lock", LOCK_SECONDS):
            if action == "off":
                if container.on:
                    events.append(plan.log, plug, "power-off", by="fence")
                container.power_off()
            elif action == "on" and container.power_on():
                events.append(plan.log, plug, "power-on", boot=container.boots, by="fence")
            elif action not in ("on", "status"):
                raise LabError(f"unknown action {action}")
        return "on" if container.on else "off"


class _Handler(socketserver.StreamRequestHandler):
    timeout = PATIENCE_SECONDS
    switch: Switch

    def handle(self) -> None:
        """Serve one request."""
        challenge = secrets.token_hex(16)
        try:
            self.wfile.write(json.dumps({"challenge": challenge}).encode() + b"\n")
            line = self.rfile.readline(LONGEST_LINE)
            self.wfile.write(json.dumps(self.switch.answer(line, challenge)).encode() + b"\n")
        except OSError:
            return  # the client has gone


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def serve(plan: LabPlan) -> None:
    """Answer for ever."""
    handler = type("Handler", (_Handler,), {"switch": Switch(plan)})
    with _Server((plan.gateway, PORT), handler) as server:
        server.serve_forever()


def main() -> None:
    """Run as ``python -m lab.powerswitch --lab NAME --state FOLDER``."""
    run("lab.powerswitch", lambda plan, _: serve(plan))


if __name__ == "__main__":
    main()
