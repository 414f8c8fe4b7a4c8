"""The first host of a cluster: its CA, its certificates and its configuration files, made on the spot.

Invariant: `manager.yaml` is written first and fixes the cluster's name and id; whatever else is missing afterwards is
made by a repetition, and nothing that is there is ever replaced. Private keys are mode 0600 from their first byte.
"""

import dataclasses
import os
import pwd
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client import config as client_config
from common import config
from common.config import AgentConfig, ManagerConfig, Voter
from common.errors import GugusError, precondition
from common.files import write_atomic
from common.identity.ca import CertificateAuthority
from common.identity.names import Identity, Role, new_cluster_id
from common.identity.store import Pki

MANAGER_USER = "gugus"
"""The user that gugus-manager runs as (systemd/gugus.sysusers)."""

OPERATOR = "admin"
"""Name in the first operator's certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstHost:
    """What is asked for. `etc`, `state` and `run` hold the configuration, the durable state and runtime files."""

    cluster_name: str
    address: str
    node: str
    etc: Path
    state: Path
    run: Path
    hypervisors: tuple[str, ...]
    watchdog_device: str


@dataclass(frozen=True, slots=True)
class Made:
    """The files of the first host, and whether this run made any of them."""

    cluster_id: str
    agent: Path
    manager: Path
    client: Path
    changed: bool


@dataclass(frozen=True, slots=True)
class Given:
    """What a cluster that is restored brings along: its CA, under another id yet, and the ports of its managers."""

    ca: CertificateAuthority
    port: int
    raft_port: int
    enrol_port: int
    metrics_port: int
    gateway_port: int


def make(host: FirstHost, given: Given | None = None) -> Made:
    """Make what is missing. Raises GugusError ALREADY_INITIALISED when the host belongs to something else.

    given: of a cluster that is restored. Its manager may not found one out of nothing.
    """
    pki_dir, pki = host.etc / "pki", Pki(host.etc / "pki")
    manager_file, agent_file, client_file = (host.etc / name for name in ("manager.yaml", "agent.yaml", "client.yaml"))
    before = _fingerprints(host.etc)
    manager = _manager(host, manager_file, pki_dir, given)
    write_missing(manager_file, config.dump(manager))
    _pki(host, manager.cluster_id, pki, given)
    endpoint = config.join_endpoint(host.address, manager.port)
    write_missing(agent_file, config.dump(_agent(host, manager.cluster_id, endpoint, pki_dir)))
    settings = client_config.for_pki(host.cluster_name, manager.cluster_id, (endpoint,), pki_dir)
    write_missing(client_file, client_config.dump(settings))
    _folders(host, pki)
    return Made(manager.cluster_id, agent_file, manager_file, client_file, _fingerprints(host.etc) != before)


def write_missing(path: Path, text: str) -> None:
    """Write a file unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())


def _manager(host: FirstHost, file: Path, pki_dir: Path, given: Given | None) -> ManagerConfig:
    """Return the manager's configuration: a fresh one, or the one of a run before that asked for the same."""
    if not file.exists():
        if found := _fingerprints(host.etc):
            raise _taken(
                f"{', '.join(sorted(str(path) for path in found))} exist already: this host is part of a cluster."
            )
        return _wanted(host, new_cluster_id(), pki_dir, given)
    there = config.load_manager(file)
    wanted = _wanted(host, there.cluster_id, pki_dir, given)
    differ = [f.name for f in dataclasses.fields(there) if getattr(there, f.name) != getattr(wanted, f.name)]
    if differ:
        told = ", ".join(
            f"{name} is {_short(getattr(there, name))}, not {_short(getattr(wanted, name))}" for name in differ
        )
        raise _taken(f"{file} is of an earlier `cluster init` that differs: {told}.")
    return there


def _wanted(host: FirstHost, cluster_id: str, pki_dir: Path, given: Given | None) -> ManagerConfig:
    fresh = ManagerConfig(
        name=host.node,
        cluster_id=cluster_id,
        cluster_name=host.cluster_name,
        address=host.address,
        voters=(Voter(name=host.node, address=host.address),),
        bootstrap=True,
        pki_dir=pki_dir,
        state_dir=host.state / "manager",
        run_dir=host.run,
    )
    if given is None:
        return fresh
    return dataclasses.replace(
        fresh,
        voters=(Voter(name=host.node, address=host.address, raft_port=given.raft_port, port=given.port),),
        bootstrap=False,
        port=given.port,
        raft_port=given.raft_port,
        enrol_port=given.enrol_port,
        metrics_port=given.metrics_port,
        gateway_port=given.gateway_port,
    )


def _agent(host: FirstHost, cluster_id: str, endpoint: str, pki_dir: Path) -> AgentConfig:
    return AgentConfig(
        name=host.node,
        cluster_id=cluster_id,
        address=host.address,
        managers=(endpoint,),
        hypervisors=host.hypervisors,
        watchdog_device=host.watchdog_device,
        watchdog_socket=host.run / "watchdog.sock",
        pki_dir=pki_dir,
        state_dir=host.state / "agent",
        run_dir=host.run,
    )


def _pki(host: FirstHost, cluster_id: str, pki: Pki, given: Given | None) -> None:
    """Make the CA and the three certificates that are missing."""
    roles = (Role.NODE, Role.MANAGER, Role.OPERATOR)
    if not pki.ca_key.exists():
        if issued := [str(pki.crt(role)) for role in roles if pki.crt(role).exists()]:
            raise _taken(f"{', '.join(issued)} exist, but {pki.ca_key} does not.")
        # A CA certificate without its key has certified nobody yet.
        name = host.cluster_name
        new = given.ca.renamed(cluster_id, name) if given else CertificateAuthority.create(cluster_id, name)
        pki.save_ca(new, replace=True)
    ca = pki.load_ca()
    if given and ca.key_pem != given.ca.key_pem:
        raise _taken(f"{pki.ca_key} is not the key that the backup holds: another backup was being restored.")
    if ca.cluster_id != cluster_id:
        raise _taken(f"{pki.ca_crt} is of the cluster {ca.cluster_id}, manager.yaml of {cluster_id}.")
    for role in roles:
        if not pki.has(role):  # half of a pair is of no use to anybody, and may be replaced
            name = OPERATOR if role is Role.OPERATOR else host.node
            addresses: Sequence[str] = () if role is Role.OPERATOR else (host.address, host.node)
            pki.save(role, ca.issue(Identity(cluster_id, role, name), addresses=addresses), replace=True)


def _folders(host: FirstHost, pki: Pki) -> None:
    """Make the state folders, and give the manager's user what it must read or write."""
    for name in ("agent", "manager"):
        (host.state / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        pwd.getpwnam(MANAGER_USER)
    except KeyError:
        return
    if os.geteuid() == 0:
        for path in (pki.key(Role.MANAGER), pki.ca_key, host.state / "manager"):
            shutil.chown(path, MANAGER_USER, MANAGER_USER)


def _fingerprints(etc: Path) -> dict[Path, int]:
    """Return the files that make a host part of a cluster, with when they were written."""
    files = (*etc.glob("*.yaml"), *(etc / "pki").glob("*.crt"), *(etc / "pki").glob("*.key"))
    return {path: path.stat().st_mtime_ns for path in files}


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_short(item) for item in value) or "none"
    return value.endpoint if isinstance(value, Voter) else f'"{value}"'


def _taken(message: str) -> GugusError:
    return precondition(
        "ALREADY_INITIALISED",
        message,
        remedy="To give that up for good, stop the gugus services and move these files away; guests' disks stay.",
    )
