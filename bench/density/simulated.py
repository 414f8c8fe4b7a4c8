"""One agent with simulated guests: a process of its own, with real TLS, records and volumes."""

import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gugus.agent.v1 import guest_pb2, volume_pb2

from bench.density.figures import Figures
from bench.density.measure import CALL_S, CLUSTER_ID, EPOCH, NODE, POOL, Manager, manager, measure
from common.config import AgentConfig, dump
from common.identity.names import Role
from common.identity.store import Pki
from lab.machine import bound_to_us

ADDRESS = "127.0.0.1"
STOP_S = 30.0


async def measured(folder: Path, count: int) -> Figures:
    """Measure with so many guests, every second under HA; all files are in `folder`."""
    async with manager(ADDRESS) as boss:
        pool = volume_pb2.PoolSpec(name=POOL, dir=volume_pb2.DirPool(path=str(folder / "pool")))
        return await measure(_Process(folder, boss), boss, pool, [_spec(number) for number in range(count)], _disk)


class _Process:
    """The agent as a child of this process."""

    def __init__(self, folder: Path, boss: Manager) -> None:
        ports = _free_ports(3)
        Pki(folder / "pki").save(Role.NODE, boss.for_node(ADDRESS))
        config = AgentConfig(
            name=NODE,
            cluster_id=CLUSTER_ID,
            address=ADDRESS,
            port=ports[0],
            metrics_port=ports[1],
            migration_port=ports[2],
            managers=(f"{ADDRESS}:{boss.port}",),
            hypervisors=("simulated",),
            watchdog_device="",
            watchdog_socket=folder / "run" / "watchdog.sock",
            pki_dir=folder / "pki",
            state_dir=folder / "state",
            run_dir=folder / "run",
        )
        self.endpoint = f"{ADDRESS}:{config.port}"
        self._file = folder / "agent.yaml"
        self._file.write_text(dump(config))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "agent.main", "--config", str(self._file), "--log-level", "WARNING"]
        self._process = subprocess.Popen(bound_to_us(command), stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)

    def pid(self) -> int:
        """Return its process."""
        return self._process.pid if self._process else 0

    def run(self, words: Sequence[str]) -> str:
        """Run a command on this machine."""
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout


async def _disk(volumes: Any, spec: guest_pb2.GuestSpec) -> None:
    request = volume_pb2.CreateVolumeRequest(
        epoch=EPOCH,
        pool=POOL,
        name=spec.disks[0].volume,
        format=volume_pb2.VOLUME_FORMAT_QCOW2,
        size_bytes=1 << 20,
    )
    await volumes.CreateVolume(request, timeout=CALL_S)


def _spec(number: int) -> guest_pb2.GuestSpec:
    name = f"guest-{number:03}"
    spec = guest_pb2.GuestSpec(
        name=name,
        id=100 + number,
        uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        kind=guest_pb2.GUEST_KIND_VIRTUAL_MACHINE if number % 2 else guest_pb2.GUEST_KIND_CONTAINER,
        cpus=2,
        memory_bytes=1 << 30,
        disks=[guest_pb2.GuestDisk(name="disk0", pool=POOL, volume=f"{name}-disk0")],
        ha=number % 2 == 0,
    )
    spec.first_boot.ssh_authorized_keys.append("ssh-ed25519 " + "A" * 68 + " somebody@somewhere")
    return spec


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((ADDRESS, 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
