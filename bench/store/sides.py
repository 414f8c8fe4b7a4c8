"""The two clusters of three: how a member of each is started, killed, started again, and what it uses.

Invariant: no process outlives us, not even when we are killed: the kernel kills a member when its parent dies.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.store.config import MemberConfig
from bench.store.tls import HOST, Files, Pki
from lab.machine import bound_to_us

MEMBERS = 3
_PORTS = (20_000, 32_000)
_MIB = 1024 * 1024


class CannotMeasure(Exception):
    """Why the benchmark cannot be run here, or broke off."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A process's memory, in MiB."""

    resident_mib: float
    peak_mib: float


class Node:
    """One member's process."""

    def __init__(self, name: str, endpoint: str, argv: Sequence[str], log: Path) -> None:
        self.name, self.endpoint = name, endpoint
        self._argv, self._log = argv, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises CannotMeasure when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise CannotMeasure(f"{self.name} does not run:\n{self.last_words()}")
        return self._process.pid

    def start(self) -> None:
        """Start the process, on the folder that it left if it ran before."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                bound_to_us(self._argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill it as a crash would (SIGKILL), and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Stop its threads where they are; `kill` ends it."""
        os.kill(self.pid, signal.SIGSTOP)

    def last_words(self) -> str:
        """Return the end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-5:]) if self._log.exists() else ""

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used, user and system, of all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        """Return its memory now and at its peak since it was started."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return Memory(kib["VmRSS"] * 1024 / _MIB, kib["VmHWM"] * 1024 / _MIB)


class Side:
    """One cluster."""

    def __init__(self, name: str, nodes: Sequence[Node], folder: Path) -> None:
        self.name, self.nodes, self.folder = name, nodes, folder

    def start(self) -> None:
        """Start all members."""
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """Kill all members, and remove their data."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def endpoints(self) -> list[str]:
        """Where the members serve clients."""
        return [node.endpoint for node in self.nodes]

    def at(self, endpoint: str) -> Node:
        """Return the member that serves there."""
        return next(node for node in self.nodes if node.endpoint == endpoint)


def ours(folder: Path, pki: Pki) -> Side:
    """Return our cluster, not started."""
    folder.mkdir()
    names = [f"gugus{number}" for number in range(1, MEMBERS + 1)]
    ports = free_ports(2 * MEMBERS)
    raft_ports = dict(zip(names, ports[:MEMBERS], strict=True))
    nodes = []
    for name, port in zip(names, ports[MEMBERS:], strict=True):
        files = pki.manager(name)
        data = str(folder / name)
        config = MemberConfig(name, raft_ports, port, data, str(files.ca), str(files.certificate), str(files.key))
        argv = [sys.executable, "-m", "bench.store.member", config.dump()]
        nodes.append(Node(name, f"{HOST}:{port}", argv, folder / f"{name}.log"))
    return Side("gugus", nodes, folder)


def etcd(folder: Path, pki: Pki) -> Side:
    """Return etcd's cluster, not started: default timings, default syncs, TLS on both ports as we have it."""
    folder.mkdir()
    program = etcd_program()
    names = [f"etcd{number}" for number in range(1, MEMBERS + 1)]
    ports = free_ports(2 * MEMBERS)
    peers = {name: f"https://{HOST}:{port}" for name, port in zip(names, ports[:MEMBERS], strict=True)}
    cluster = ",".join(f"{name}={url}" for name, url in peers.items())
    nodes = []
    for name, port in zip(names, ports[MEMBERS:], strict=True):
        client = f"https://{HOST}:{port}"
        argv = [
            program, "--name", name, "--data-dir", str(folder / name), "--initial-cluster", cluster,
            "--initial-advertise-peer-urls", peers[name], "--listen-peer-urls", peers[name],
            "--advertise-client-urls", client, "--listen-client-urls", client, "--logger", "zap",
            "--log-level", "warn", *_etcd_tls(pki.manager(name)),
        ]  # fmt: skip
        nodes.append(Node(name, f"{HOST}:{port}", argv, folder / f"{name}.log"))
    return Side("etcd", nodes, folder)


def _etcd_tls(files: Files) -> list[str]:
    paths = ["cert-file", str(files.certificate), "key-file", str(files.key), "trusted-ca-file", str(files.ca)]
    argv = ["--client-cert-auth", "--peer-client-cert-auth"]
    for prefix in ("--", "--peer-"):
        for option, path in zip(paths[::2], paths[1::2], strict=True):
            argv += [prefix + option, path]
    return argv


def etcd_program() -> str:
    """Return etcd's path. Raises CannotMeasure when it is not installed."""
    found = shutil.which("etcd")
    if found is None:
        raise CannotMeasure("etcd is not installed: apt-get install etcd-server")
    return found


def etcd_version() -> str:
    """Return etcd's version."""
    done = subprocess.run([etcd_program(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].rpartition(" ")[2]


def free_ports(count: int) -> list[int]:
    """Return different ports that are free now, below those that the kernel gives to connections: ours stay ours."""
    ports: list[int] = []
    for port in random.sample(range(*_PORTS), _PORTS[1] - _PORTS[0]):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise CannotMeasure(f"no {count} free ports between {_PORTS[0]} and {_PORTS[1]}")
