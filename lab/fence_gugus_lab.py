#!/usr/bin/python3 -IS
"""The fence agent of a lab: `fence_gugus_lab` in every node, which asks the lab's power switch to cut or give power.

It follows the FenceAgentAPI (parameters as name=value lines on standard input, the outcome in the exit code) and needs nothing but
Python: it is copied into nodes as it is. Both sides prove that they know the lab's secret, over a fresh challenge each.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import sys

#: Port of the switch, on the machine's address on the lab's bridge: IPMI's, to be recognised.
PORT = 623
#: Seconds that the switch may take: it waits until every process of the node is dead.
PATIENCE_SECONDS = 15.0
ON, FAILED, OFF = 0, 1, 2
ACTIONS = ("on", "off", "status", "monitor", "list", "metadata")

METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_gugus_lab" shortdesc="Fence agent of gugus-lab">
<longdesc>Cuts and gives the power of the nodes of a lab (gugus-lab up) on the machine that it runs on.</longdesc>
<parameters>
	<parameter name="action" unique="0" required="1"><content type="string" default="off" /></parameter>
	<parameter name="ip" required="1"><content type="string" /><shortdesc>The machine on the lab's bridge</shortdesc></parameter>
	<parameter name="ipport" unique="0" required="0"><content type="integer" default="623" /></parameter>
	<parameter name="password" required="1"><content type="string" /><shortdesc>The lab's secret</shortdesc></parameter>
	<parameter name="plug" unique="0" required="1" obsoletes="port"><content type="string" /><shortdesc>Node</shortdesc></parameter>
</parameters>
<actions>
	<action name="on" automatic="0" />
	<action name="off" />
	<action name="status" />
	<action name="monitor" />
	<action name="list" />
	<action name="metadata" />
</actions>
</resource-agent>"""


def proof(secret: str, who: str, *words: str) -> str:
    """What shows that `who` ("client", "switch") knows the secret and means these words."""
    text = json.dumps([who, *words]).encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def ask(told: dict[str, str]) -> dict[str, object]:
    """Ask the switch, and return its answer; raises OSError and ValueError."""
    address = (told["ip"], int(told.get("ipport", PORT)))
    secret, action, plug, mine = told["password"], told["action"], told.get("plug", ""), secrets.token_hex(16)
    with (
        socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection,
        connection.makefile("rwb") as stream,
    ):
        theirs = json.loads(stream.readline())["challenge"]
        request = {
            "action": action,
            "plug": plug,
            "challenge": mine,
            "proof": proof(secret, "client", theirs, action, plug),
        }
        stream.write(json.dumps(request).encode() + b"\n")
        stream.flush()
        answer: dict[str, object] = json.loads(stream.readline())
    said = str(answer.get("state", "")), str(answer.get("error", ""))
    if not hmac.compare_digest(str(answer.get("proof", "")), proof(secret, "switch", mine, *said)):
        raise ValueError("the password is wrong, or this is not the switch of this lab")
    return answer


def main() -> int:
    """Do what standard input says; exit codes as in FenceAgentAPI.md."""
    lines = (line.strip() for line in sys.stdin)
    told = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    told["action"] = told.get("action", "off").lower()
    if told["action"] == "metadata":
        print(METADATA)
        return 0
    try:
        missing = [name for name in ("ip", "password") if not told.get(name)]
        if missing or told["action"] not in ACTIONS:
            raise ValueError(f"missing: {', '.join(missing)}" if missing else f"unknown action {told['action']}")
        answer = ask(told)
        if answer.get("error"):
            raise ValueError(str(answer["error"]))
    except (OSError, ValueError, KeyError) as error:
        print(f"fence_gugus_lab: {error}", file=sys.stderr)
        return FAILED
    state = str(answer.get("state"))
    if told["action"] == "list":
        print(state)
        return 0
    if told["action"] == "monitor":  # of the switch, not of a plug
        return 0
    if told["action"] == "status":
        return {"on": ON, "off": OFF}.get(state, FAILED)
    return 0 if state == told["action"] else FAILED


if __name__ == "__main__":
    sys.exit(main())
