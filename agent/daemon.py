"""The agent of a host: puts its parts together, runs them until told to stop, and leaves the guests running.

Order matters at the start: the guard first, for without a valid lease HA guests are killed before anything else; then
what runs is looked at, for beats tell of it; then beats go out, for HA guests have no longer than their lease. What may
take its time (pools, networks, facts) comes after that, and only then do managers reach the host. The ports are taken
before the first beat: an agent that can serve nobody must not keep a lease.

At the end the beats stop last: from then on the lease that the next agent takes over runs out.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from gugus.agent.v1 import (
    access_pb2_grpc,
    disk_pb2_grpc,
    guest_pb2_grpc,
    migration_pb2_grpc,
    network_pb2_grpc,
    node_pb2_grpc,
    snapshot_pb2_grpc,
    task_pb2_grpc,
    volume_pb2_grpc,
)
from gugus.cluster.v1.node_pb2 import HOST_EXIT_UNSPECIFIED
from prometheus_client import CollectorRegistry

from agent import shutdown
from agent.certificates import Certificates
from agent.changes import Changes
from agent.compute import registry
from agent.compute.hypervisor import Hypervisor
from agent.disks import Disks
from agent.facts import HostFacts
from agent.fencing import boot, record
from agent.fencing.guard import Guard
from agent.fencing.watchdog_client import WatchdogClient
from agent.guests import Guests
from agent.heartbeat import Heartbeat
from agent.managers import ManagerFiles
from agent.metrics import AgentCollector
from agent.migration.host import Here
from agent.migration.source import Source
from agent.migration.target import Target
from agent.networks import Networks
from agent.observer import Observer
from agent.pools import Pools
from agent.quorum_loss import QuorumLoss
from agent.services.access import AccessService
from agent.services.disk import DiskService
from agent.services.guest import GuestService
from agent.services.migration import MigrationService
from agent.services.network import NetworkService
from agent.services.node import NodeService
from agent.services.snapshot import SnapshotService
from agent.services.task import TaskService
from agent.services.volume import VolumeService
from agent.snapshots import Snapshots
from agent.state import AgentState
from agent.storage import beats as storage_beats
from agent.storage.beats import StorageBeats
from agent.tasks import Tasks
from agent.turns import Turns
from common import notify
from common.config import AgentConfig
from common.errors import unavailable
from common.identity.credentials import Credentials
from common.identity.names import Role
from common.identity.store import Pki
from common.logs import get_logger
from common.metrics import RpcMetrics, start_metrics_server
from common.rpc.interceptors import only
from common.rpc.server import Service, bind_server

STOP_GRACE_S = 0.5
"""Calls under way may take so long when the agent stops; it is back soon, and every call may be repeated."""

EMPTYING_TIMEOUT_S = 3.0
"""Longest wait, at the start, for the guard to kill HA guests of a lease that is over. When the boot id would change
there is no end to it."""

STATE_FOLDER = "records"
"""Folder in state_dir of the agent's own records; the drivers have theirs beside it."""

_log = get_logger("agent")


class Agent:
    """All parts of one agent. `run` returns after SIGTERM or SIGINT."""

    def __init__(
        self, config: AgentConfig, config_path: Path, *, hypervisors: tuple[Hypervisor, ...] | None = None
    ) -> None:
        self.config = config
        for folder in (config.state_dir, config.run_dir):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._credentials: Credentials = Pki(config.pki_dir).credentials(Role.NODE)
        self.state = AgentState(config.state_dir / STATE_FOLDER)
        self.changes = Changes()
        self.turns = Turns(self.state)
        drivers = hypervisors or tuple(registry.create(name, config) for name in config.hypervisors)
        self.observer = Observer(drivers, self.changes)
        self._watchdog = WatchdogClient(config.run_dir, config.watchdog_socket)
        self.pools, self.networks = Pools(self.state), Networks(self.state, config)
        self.guard = Guard(
            self.state.lapse.number,
            self.observer.emergency_kill,
            self._watchdog.publish,
            self.state.save_lapse,
            flush=self.pools.flush,
        )
        self.guests = Guests(self.state, self.observer, self.pools, self.networks, self.guard, self.turns, self.changes)
        self._quorum_loss = QuorumLoss(self.state, self.observer, self.guard, self.guests)
        here = Here(self._credentials, self.state, self.observer, self.pools, self.networks, self.guests, self.turns)
        migrations = config.state_dir / "migrations"
        self._here, self._source, self._target = here, Source(here, migrations), Target(here, config, migrations)
        self._tasks = Tasks()
        self._managers = ManagerFiles(config, config_path)
        self._stop = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None
        self.ports: tuple[int, int] = (0, 0)

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    async def run(self, *, started: Callable[[], None] = lambda: None) -> None:
        """Run until stopped. Raises GugusError when it cannot start (port taken, state damaged)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: a test
                loop.add_signal_handler(number, self.stop)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._watchdog.close)
            stack.callback(self.guard.stop)
            boot_id = await self._secure()
            stack.push_async_callback(self.observer.close)
            await self.observer.open()
            heart = await self._serve(stack, boot_id)
            notify.ready("serving")
            _log.info("agent ready", port=self.ports[0], boot_id=boot_id, guests=len(self.state.guests))
            started()
            await self._stop.wait()
            notify.stopping()
            if (exit_ := await shutdown.system_exit()) != HOST_EXIT_UNSPECIFIED:
                parts = (self.state, self.observer, self.pools, self.guard, self.turns)
                await shutdown.Shutdown(*parts, heart).run(exit_)
            else:
                _log.info("agent stops; guests run on")

    async def _secure(self) -> str:
        """Start the guard, wait while it kills what has no lease, and only then settle the boot id."""
        known = boot.known(self.config.run_dir)
        protected = (s.name for s in self.state.guests.values() if s.ha)
        self.guard.start(protected, self._promised() if known else None, booted=not known)
        while not await asyncio.to_thread(self.guard.wait_emptied, EMPTYING_TIMEOUT_S) and not known:
            _log.error("HA guests do not die, and another boot id would say that they had: not serving until they do")
            if self._stop.is_set():
                raise unavailable("GUESTS_LEFT", "HA guests that this node may not run cannot be killed.")
        return boot.boot_id(self.config.run_dir)

    def _promised(self) -> record.LeaseRecord | None:
        """Return what the agent before this one promised; None when that cannot be told: then HA guests die first."""
        try:
            return record.read(self.config.run_dir)
        except ValueError as error:
            _log.error("the lease record is damaged: no lease counts as held", error=str(error))
            return None

    async def _serve(self, stack: contextlib.AsyncExitStack, boot_id: str) -> Heartbeat:
        metrics_registry = CollectorRegistry()
        metrics = RpcMetrics(metrics_registry)
        facts = HostFacts(
            self.config, boot_id, self.state, self.observer, self.pools, self.networks, self.guard, self._watchdog
        )
        stack.push_async_callback(self._stop_beating)
        beats = StorageBeats(self.config.name, boot_id, self.pools.shared)
        stack.callback(beats.close)
        server = bind_server(
            self._services(facts, beats),
            self.config.address,
            self.config.port,
            self._credentials,
            authorise=only(Role.MANAGER),
            metrics=metrics,
        )
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        metrics_registry.register(AgentCollector(self.config.name, self.guests, facts, self.guard))
        scraped = start_metrics_server(
            metrics_registry, self.config.address, self.config.metrics_port, self._credentials
        )
        stack.callback(scraped.close)
        self.ports = (server.port, scraped.port)
        heart = Heartbeat(
            self.config, self._credentials, boot_id, self.state, self.guests, facts, self.guard, self.turns, metrics
        )
        self._beating = asyncio.create_task(_for_ever("heartbeat", heart.run), name="heartbeat")
        await asyncio.gather(self.pools.open(), self.networks.open())
        await facts.refresh()
        heart.beat_soon()
        stack.push_async_callback(self._tasks.close)
        stack.callback(self._target.close)
        self._target.open()
        restart = (
            self.stop if notify.watchdog_period_s() is not None else None
        )  # a unit of ours, which systemd starts again
        certificates = Certificates(self.config, self.state, self._managers, self._tasks.under_way, restart)
        await server.start()
        for name, work in (
            ("observer", self.observer.run),
            ("facts", lambda: facts.run(heart.beat_soon)),
            ("migrations", self._target.run),
            ("quorum loss", self._quorum_loss.run),
            ("liveness", self._prove_alive),
            ("storage beats", lambda: _follow(beats)),
            ("certificates", certificates.run),
        ):
            task = asyncio.create_task(_for_ever(name, work), name=name)
            stack.push_async_callback(_end, task)
        return heart

    async def _stop_beating(self) -> None:
        if self._beating is not None:
            await _end(self._beating)

    def _services(self, facts: HostFacts, beats: StorageBeats) -> list[Service]:
        changed = facts.refresh_soon
        package = "gugus.agent.v1"
        return [
            Service(
                guest_pb2_grpc.add_GuestServiceServicer_to_server,
                GuestService(self.guests, self._tasks),
                f"{package}.GuestService",
            ),
            Service(
                access_pb2_grpc.add_AccessServiceServicer_to_server,
                AccessService(self.guests, self.observer, self.turns),
                f"{package}.AccessService",
            ),
            Service(
                snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server,
                SnapshotService(Snapshots(self.state, self.observer, self.pools, self.guests, self.turns)),
                f"{package}.SnapshotService",
            ),
            Service(
                migration_pb2_grpc.add_MigrationServiceServicer_to_server,
                MigrationService(self._here, self._source, self._target, self._tasks),
                f"{package}.MigrationService",
            ),
            Service(
                disk_pb2_grpc.add_DiskServiceServicer_to_server,
                DiskService(Disks(self.observer, self.pools, self.turns), self._tasks),
                f"{package}.DiskService",
            ),
            Service(
                volume_pb2_grpc.add_VolumeServiceServicer_to_server,
                VolumeService(self.pools, self._tasks, self.turns, changed),
                f"{package}.VolumeService",
            ),
            Service(
                network_pb2_grpc.add_NetworkServiceServicer_to_server,
                NetworkService(self.networks, self.turns, changed),
                f"{package}.NetworkService",
            ),
            Service(
                task_pb2_grpc.add_TaskServiceServicer_to_server, TaskService(self._tasks), f"{package}.TaskService"
            ),
            Service(
                node_pb2_grpc.add_NodeServiceServicer_to_server,
                NodeService(facts, self._managers, self.turns, beats),
                f"{package}.NodeService",
            ),
        ]

    async def _prove_alive(self) -> None:
        """Feed systemd's watchdog while both the event loop and the fencing thread turn."""
        period_s = notify.watchdog_period_s()
        while period_s is not None:
            if self.guard.alive:
                notify.watchdog()
            await asyncio.sleep(period_s)
        await asyncio.Event().wait()


async def _follow(beats: StorageBeats) -> None:
    while True:
        beats.follow()
        await asyncio.sleep(storage_beats.PERIOD_S)


async def _for_ever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a background part; a fault of it is logged, and it is run again."""
    while True:
        try:
            await work()
        except Exception as error:
            _log.error("background work failed; starting it again", work=name, error=repr(error), exc_info=error)
        await asyncio.sleep(1.0)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=STOP_GRACE_S)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run the daemon's main coroutine in the process's one event loop."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    asyncio.run(main)
