"""The manager daemon: a Raft member, the state on it, the API, and the controllers for as long as it acts."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from gugus.cluster.v1 import (
    access_pb2_grpc,
    backup_pb2_grpc,
    clone_pb2_grpc,
    cluster_pb2_grpc,
    enrol_pb2_grpc,
    event_pb2_grpc,
    guest_pb2_grpc,
    heartbeat_pb2_grpc,
    migration_pb2_grpc,
    network_pb2_grpc,
    node_pb2_grpc,
    plan_pb2_grpc,
    pool_pb2_grpc,
    project_pb2_grpc,
    rule_pb2_grpc,
    snapshot_pb2_grpc,
    task_pb2_grpc,
)
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, Node
from prometheus_client import CollectorRegistry

from common import notify
from common.clock import SystemClock
from common.config import AGENT_PORT, ManagerConfig, join_endpoint
from common.identity.ca import key_of
from common.identity.names import Role as IdentityRole
from common.identity.store import Pki
from common.logs import get_logger
from common.metrics import RpcMetrics, start_metrics_server
from common.rpc.server import Service, start_server
from manager import garbage
from manager.acting import Acting
from manager.agents import Agents
from manager.balance_metrics import BalanceCollector
from manager.beats import Beats
from manager.consensus import Consensus, ConsensusConfig, ConsensusError, Member, TlsFiles
from manager.controllers.context import Context
from manager.controllers.voters import Voters
from manager.controllers.work import Work
from manager.events import record
from manager.fencing import FenceAgents
from manager.founding import RAFT_FOLDER, note_founded, refuse_to_found_again
from manager.gateway.passage import Passage
from manager.gateway.server import Gateway
from manager.gateway.tickets import Tickets
from manager.members import Members
from manager.metrics import ManagerCollector
from manager.off_nodes import OffNodes
from manager.recovery.lock import only_user
from manager.recovery.plan import refuse_unfinished
from manager.replica import Replica
from manager.services.access import AccessService
from manager.services.authorise import authorise
from manager.services.backup import BackupService
from manager.services.clone import CloneService
from manager.services.cluster import ClusterService
from manager.services.enrol import EnrolService
from manager.services.event import EventService
from manager.services.forward import Forward
from manager.services.guest import GuestService
from manager.services.heartbeat import HeartbeatService
from manager.services.migration import MigrationService
from manager.services.network import NetworkService
from manager.services.node import NodeService
from manager.services.plan import PlanService
from manager.services.pool import PoolService
from manager.services.project import ProjectService
from manager.services.renewal import Renewal
from manager.services.rule import RuleService
from manager.services.snapshot import SnapshotService
from manager.services.task import TaskService
from manager.store import Store, StoreState, Txn
from manager.store.kinds import new

STATUS_PERIOD_S = 5.0
FAILURE_LOOK_S = 1.0

_API = "gugus.cluster.v1"

_log = get_logger("manager")


class Manager:
    """One manager process."""

    def __init__(self, config: ManagerConfig) -> None:
        self._config = config
        self._pki = Pki(config.pki_dir)
        self._credentials = self._pki.credentials(IdentityRole.MANAGER)
        self._authority = self._pki.load_ca()
        self._state = StoreState()
        self._consensus = Consensus(_consensus_config(config, self._pki), self._state)
        self._work: Work | None = None

    async def run(self) -> None:
        """Serve until cancelled; hand the lease and leadership over at the end."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(only_user(self._config.state_dir))
            refuse_unfinished(self._config.state_dir)
            refuse_to_found_again(self._config)
            await self._consensus.start()
            garbage.settle()
            stack.push_async_callback(self._consensus.stop)
            store = Store(Replica(self._consensus), self._state)
            registry = CollectorRegistry()
            rpc_metrics = RpcMetrics(registry)
            agents = Agents(self._credentials, rpc_metrics)
            stack.push_async_callback(agents.close)
            beats = Beats()
            acting = Acting(self._config.name, store, self._consensus, SystemClock(), self._act)
            self._context = Context(store, acting, agents, beats)
            self._members = Members(
                self._config, self._credentials, self._consensus, store, self._state, acting, self._context.outlook
            )
            stack.push_async_callback(self._members.close)
            self._voters = Voters(self._context, self._config, self._consensus, self._authority)
            stack.push_async_callback(self._voters.close)
            self._off = OffNodes(store, acting.now_ns)
            self._fence_agents = FenceAgents(self._config.fence_agents_dir)
            await stack.enter_async_context(self._serving(rpc_metrics))
            registry.register(ManagerCollector(self._consensus, store, self._state, acting, beats))
            registry.register(BalanceCollector(self._context))
            metrics = start_metrics_server(registry, self._config.address, self._config.metrics_port, self._credentials)
            stack.callback(metrics.close)
            stack.push_async_callback(self._leave)
            async with asyncio.TaskGroup() as group:
                group.create_task(notify.watchdog_task())
                group.create_task(self._tell_status())
                group.create_task(self._stop_when_consensus_fails())
                group.create_task(self._off.run())
                group.create_task(acting.run())
                notify.ready()
                _log.info("serving", address=self._config.address, port=self._config.port)

    async def _act(self, takeover_ns: int) -> None:
        """What this manager does while it acts."""
        self._context.beats.start(takeover_ns)
        self._context.loads.clear()
        self._context.outlook.clear()
        if self._config.bootstrap:
            await self._bootstrap()
            note_founded(self._config)
        self._work = Work(self._context, self._off, self._members, self._voters, self._fence_agents, takeover_ns)
        try:
            await self._work.run()
        finally:
            self._work = None

    async def _bootstrap(self) -> None:
        """Write the cluster and its first node down, once in the life of a cluster."""
        store = self._context.store
        if await store.list(Cluster):
            return
        cluster = new(Cluster, self._config.cluster_name)
        cluster.cluster_id = self._config.cluster_id
        node = new(Node, self._config.name)
        node.spec.address = self._config.address
        node.spec.agent_port = AGENT_PORT
        node.status.state = NODE_STATE_JOINING
        node.status.reason = "founding node, not heard of yet"
        node.status.voter = True
        if self._pki.has(IdentityRole.NODE):
            node.status.key_sha256 = key_of(self._pki.crt(IdentityRole.NODE).read_bytes())
        txn = Txn().put(cluster, expect_absent=True).put(node, expect_absent=True)
        text = f"cluster {cluster.meta.name} was founded on {node.meta.name}"
        await store.txn(record(txn, f"cluster/{cluster.meta.name}", "CLUSTER_FOUNDED", text))

    @contextlib.asynccontextmanager
    async def _serving(self, metrics: RpcMetrics) -> AsyncIterator[None]:
        context, config = self._context, self._config
        forward = Forward(self._credentials, config.port, context.acting, self._consensus)
        agents, tickets = Agents(self._credentials, metrics), Tickets(time.monotonic)
        passage = Passage(context, agents)
        gateway = Gateway(passage, tickets, self._credentials, config.gateway_origins)
        api = [
            Service(cluster_pb2_grpc.add_ClusterServiceServicer_to_server, ClusterService(
                context, config, self._consensus, self._authority, self._members, self._voters,
                lambda: self._endpoints(config.enrol_port),
            ), f"{_API}.ClusterService"),
            Service(node_pb2_grpc.add_NodeServiceServicer_to_server, NodeService(
                context, self._consensus, self._fence_agents, config.name
            ), f"{_API}.NodeService"),
            Service(guest_pb2_grpc.add_GuestServiceServicer_to_server, GuestService(context), f"{_API}.GuestService"),
            Service(pool_pb2_grpc.add_PoolServiceServicer_to_server, PoolService(context), f"{_API}.PoolService"),
            Service(network_pb2_grpc.add_NetworkServiceServicer_to_server, NetworkService(context),
                    f"{_API}.NetworkService"),
            Service(project_pb2_grpc.add_ProjectServiceServicer_to_server, ProjectService(context),
                    f"{_API}.ProjectService"),
            Service(plan_pb2_grpc.add_PlanServiceServicer_to_server, PlanService(context), f"{_API}.PlanService"),
            Service(rule_pb2_grpc.add_RuleServiceServicer_to_server, RuleService(context), f"{_API}.RuleService"),
            Service(task_pb2_grpc.add_TaskServiceServicer_to_server, TaskService(context), f"{_API}.TaskService"),
            Service(event_pb2_grpc.add_EventServiceServicer_to_server, EventService(context), f"{_API}.EventService"),
            Service(access_pb2_grpc.add_AccessServiceServicer_to_server, AccessService(passage, tickets, lambda: (
                f"wss://{join_endpoint(config.address, gateway.port)}"
            )), f"{_API}.AccessService"),
            Service(snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server, SnapshotService(context),
                    f"{_API}.SnapshotService"),
            Service(clone_pb2_grpc.add_CloneServiceServicer_to_server, CloneService(context), f"{_API}.CloneService"),
            Service(migration_pb2_grpc.add_MigrationServiceServicer_to_server, MigrationService(context),
                    f"{_API}.MigrationService"),
            Service(backup_pb2_grpc.add_BackupServiceServicer_to_server, BackupService(
                context, config, self._authority, self._state.snapshot
            ), f"{_API}.BackupService"),
            Service(heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server, HeartbeatService(
                context, self._renews, forward.acting_endpoint, lambda: self._endpoints(config.port),
                Renewal(context.store, self._authority),
            ), f"{_API}.HeartbeatService"),
        ]  # fmt: skip
        enrol = Service(
            enrol_pb2_grpc.add_EnrolServiceServicer_to_server,
            EnrolService(context, config, self._authority, lambda: self._endpoints(config.port)),
            f"{_API}.EnrolService",
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(forward.close)
            stack.push_async_callback(agents.close)
            await gateway.start(config.address, config.gateway_port)
            stack.push_async_callback(gateway.stop)
            server = await start_server(
                api, config.address, config.port, self._credentials,
                authorise=authorise, metrics=metrics, inner=[forward],
            )  # fmt: skip
            stack.push_async_callback(server.stop)
            enrolment = await start_server(
                [enrol], config.address, config.enrol_port, self._credentials,
                require_client_certificate=False, metrics=metrics,
            )  # fmt: skip
            stack.push_async_callback(enrolment.stop)
            yield

    def _renews(self, node: str) -> bool:
        return self._work is not None and self._work.nodes.renews(node)

    def _endpoints(self, port: int) -> list[str]:
        """Return where the managers serve; all managers of a cluster use the same ports."""
        return [join_endpoint(voter.host, port) for voter in self._consensus.leadership().voters]

    async def _tell_status(self) -> None:
        while True:
            view = self._consensus.leadership()
            duty = "acting" if self._context.acting.valid else f"following {view.leader or 'nobody'}"
            notify.status(f"{duty}, term {view.term}, {len(view.voters)} voters, log {view.applied_index}")
            await asyncio.sleep(STATUS_PERIOD_S)

    async def _stop_when_consensus_fails(self) -> None:
        """A member whose disk failed must not go on as if it had a state; systemd restarts it."""
        while True:
            if failure := self._consensus.leadership().failure:
                raise RuntimeError(f"this manager's consensus stopped: {failure}")
            await asyncio.sleep(FAILURE_LOOK_S)

    async def _leave(self) -> None:
        """Let another lead at once instead of after an election."""
        notify.stopping()
        with contextlib.suppress(ConsensusError):
            await self._consensus.transfer_leadership(timeout_s=1.0)


def _consensus_config(config: ManagerConfig, pki: Pki) -> ConsensusConfig:
    return ConsensusConfig(
        me=config.name,
        voters=tuple(Member(voter.name, voter.address, voter.raft_port) for voter in config.voters),
        data_dir=config.state_dir / RAFT_FOLDER,
        tls=TlsFiles(pki.ca_crt, pki.crt(IdentityRole.MANAGER), pki.key(IdentityRole.MANAGER)),
        listen_host=config.address,
        listen_port=config.raft_port,
        joining=not config.bootstrap,
    )
