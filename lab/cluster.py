"""Forms a cluster on a lab that is up, by the commands that a user would type on each host.

Invariant: may be run in any half-way state and repeated; it ends with every node online and every node a voter, or
raises LabError. The operator's keys that it brings to the machine are files of mode 0600 in the lab's own folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, NodeState

from client import config as client_config
from common.config import MANAGER_PORT, AgentConfig, dump, join_endpoint
from common.errors import GugusError
from common.files import write_atomic
from common.identity.tokens import JoinToken
from lab.api import Lab, LabError
from lab.operator import Operator
from lab.plan import LabPlan, NodePlan

#: Voters that a cluster is grown to; a sixth host stays a plain node.
MOST_VOTERS = 5
#: Seconds that one command may take in a node: making a voter starts a manager there.
COMMAND_SECONDS = 150.0
#: Seconds from the last command until every node holds its lease; a node that was fenced waits out its lease first.
ONLINE_SECONDS = 60.0
#: Seconds in which a whole cluster shows that it is whole.
LOOK_SECONDS = 3.0

_UNITS = ("gugus-watchdog.service", "gugus-agent.service")
_FILES = ("ca.crt", "operator.crt", "operator.key")

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Say nothing."""
    del text


def operator_config(plan: LabPlan) -> Path:
    """The client configuration, on the machine itself, of the lab's cluster."""
    return plan.state / "operator" / "client.yaml"


def form(lab: Lab, say: Say = quiet) -> Path:
    """Make one cluster of the lab's nodes, or complete it; return the client configuration on the machine.

    Raises LabError when a step fails or the nodes are not online in time, with what they say.
    """
    plan = lab.plan
    if _is_whole(plan):
        say("the cluster is there already")
        return operator_config(plan)
    nodes = [_Host(lab, node) for node in plan.nodes()]
    first, others = nodes[0], nodes[1:]
    say(f"{first.name}: gugus cluster init --name {plan.name} --address {first.address}")
    first.init()
    _fetch_operator(first, plan)
    with Operator(operator_config(plan)) as operator, ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: _join(first, node, say), others))
        _wait_online(operator, len(nodes), ONLINE_SECONDS)
        _promote(first, [node.name for node in others][: MOST_VOTERS - 1], operator, say)
        _wait_online(operator, len(nodes), ONLINE_SECONDS)
    return operator_config(plan)


class _Host:
    """One node and where its files are: the usual places on a real one, its folder on a simulated one."""

    def __init__(self, lab: Lab, node: NodePlan) -> None:
        self.lab, self.plan, self.node = lab, lab.plan, node
        self.name, self.address = node.name, node.address
        self.simulated = self.plan.kind == "simulated"
        self.etc = node.folder / "etc" if self.simulated else Path("/etc/gugus")

    def run(self, words: Sequence[str], text: str = "") -> str:
        """Run a command in the node and return its output; raises LabError when it fails."""
        return self.lab.exec(self.name, words, text=text, timeout=COMMAND_SECONDS, check=True).stdout

    def has(self, file: str) -> bool:
        """Whether the node has this file of its configuration."""
        return self.lab.exec(self.name, ["test", "-e", str(self.etc / file)]).returncode == 0

    def gugus(self, *words: str) -> str:
        """Run the `gugus` command in the node."""
        where = ["--config", str(self.etc / "client.yaml")] if self.simulated else []
        return self.run(["gugus", *where, *words])

    def init(self) -> None:
        """Make it the first host of the cluster; the command finishes what an earlier one began."""
        words = ["gugus", "cluster", "init", "--name", self.plan.name, "--address", self.address, "--node", self.name]
        if self.simulated:
            folder = self.node.folder
            words += ["--etc", str(self.etc), "--state", str(folder / "lib"), "--run", str(folder / "run")]
            words += ["--hypervisor", "simulated", "--watchdog", "", "--no-start"]
        self.run(words)

    def join(self, token: str) -> None:
        """Make it a node, with a token on standard input: as an argument others on the host could see it."""
        join = ["gugus-agent", "join", "--token-file", "-", "--name", self.name, "--address", self.address]
        if not self.simulated:
            self.run([*join, "--start"], token)
            return
        # A simulated node starts its agent as soon as agent.yaml is there, so that is the last thing to appear.
        draft = self.etc / "agent.draft"
        write_atomic(draft, dump(self._settings(JoinToken.parse(token).cluster_id)).encode())
        self.run([*join, "--config", str(draft)], token)
        draft.rename(self.etc / "agent.yaml")

    def _settings(self, cluster_id: str) -> AgentConfig:
        folder = self.node.folder
        return AgentConfig(
            name=self.name, cluster_id=cluster_id, address=self.address, hypervisors=("simulated",), watchdog_device="",
            watchdog_socket=folder / "run" / "watchdog.sock", pki_dir=self.etc / "pki", run_dir=folder / "run",
            state_dir=folder / "lib" / "agent",
        )  # fmt: skip


def _join(first: _Host, host: _Host, say: Say) -> None:
    if not host.has("agent.yaml"):
        say(f"{first.name}: gugus cluster token create, and on {host.name}: gugus-agent join")
        host.join(first.gugus("cluster", "token", "create", "--ttl", "10m", "--node", host.name).strip())
    elif not host.simulated:
        host.run(["systemctl", "enable", "--now", *_UNITS])


def _promote(first: _Host, names: Sequence[str], operator: Operator, say: Say) -> None:
    voters = {voter.name for voter in operator.status().voters}
    for name in names:
        if name not in voters:
            say(f"{first.name}: gugus cluster promote {name}")
            first.gugus("cluster", "promote", name)


def _fetch_operator(first: _Host, plan: LabPlan) -> None:
    """Bring the operator's certificate and key to the machine, with every manager's address."""
    target = operator_config(plan)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    for name in _FILES:
        write_atomic(target.parent / name, first.run(["cat", str(first.etc / "pki" / name)]).encode(), 0o600)
    here = target.parent / "first.yaml"
    write_atomic(here, first.run(["cat", str(first.etc / "client.yaml")]).encode(), 0o600)
    theirs = client_config.load(here)
    here.unlink()
    endpoints = tuple(join_endpoint(node.address, MANAGER_PORT) for node in plan.nodes()[:MOST_VOTERS])
    mine = client_config.for_pki(theirs.cluster_name, theirs.cluster_id, endpoints, target.parent)
    write_atomic(target, client_config.dump(mine).encode(), 0o600)


def _is_whole(plan: LabPlan) -> bool:
    if not os.access(operator_config(plan), os.R_OK):
        return False
    voters = min(plan.count, MOST_VOTERS)
    with suppress(GugusError), Operator(operator_config(plan), timeout_s=LOOK_SECONDS) as operator:
        status = operator.status()
        connected = all(voter.connected for voter in status.voters)
        return bool(status.acting) and len(status.voters) == voters and connected and not _missing(operator, plan.count)
    return False


def _wait_online(operator: Operator, count: int, seconds: float) -> None:
    end, problem = time.monotonic() + seconds, "no manager answers"
    while True:
        with suppress(GugusError):
            problem = _missing(operator, count)
            if not problem:
                return
        if time.monotonic() > end:
            raise LabError(f"the cluster is not whole after {seconds:g} s: {problem}")
        time.sleep(0.2)


def _missing(operator: Operator, count: int) -> str:
    """What keeps the cluster from having `count` nodes online; "" when nothing does."""
    nodes = operator.nodes()
    off = [
        f"{node.meta.name} is {NodeState.Name(node.status.state).removeprefix('NODE_STATE_').lower()}"
        f" ({node.status.reason})"
        for node in nodes
        if node.status.state != NODE_STATE_ONLINE
    ]
    return "; ".join(off) or ("" if len(nodes) == count else f"{len(nodes)} of {count} nodes have joined")
