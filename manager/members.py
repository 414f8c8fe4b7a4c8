"""The managers' figures: this one's own, and those of the others, asked over their API all at once.

Invariant: a look ends within `ASK_TIMEOUT_S`, whoever is silent, and needs no leader.
"""

import asyncio
import importlib.metadata
import time
from collections.abc import Mapping, Sequence

import grpc
from gugus.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Cluster, ManagerLease, MemberStatus
from gugus.cluster.v1.node_pb2 import Node

from common.config import ManagerConfig, join_endpoint
from common.errors import from_rpc_error
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.rpc.channel import open_channel
from manager.acting import Acting
from manager.consensus import Consensus, Leadership, Member, StorageStatus
from manager.consensus import Role as RaftRole
from manager.controllers import spare
from manager.fencing import FenceAgents
from manager.health import Sight
from manager.outlook import Outlook
from manager.scheduler.spare_room import SpareRoom, in_words
from manager.store import Store, StoreState
from manager.store.kinds import LEASE_NAME
from manager.store.rules import QUOTA_BYTES

ASK_TIMEOUT_S = 1.0
"""A manager that has not answered then is shown as silent: a person waits for the status."""

OLDER = "older"
"""Release of a manager that answers, but does not know the question."""

SECONDS_A_DAY = 86_400

_ROLES = {
    RaftRole.FOLLOWER: cluster_pb2.MEMBER_ROLE_FOLLOWER,
    RaftRole.CANDIDATE: cluster_pb2.MEMBER_ROLE_CANDIDATE,
    RaftRole.LEADER: cluster_pb2.MEMBER_ROLE_LEADER,
    RaftRole.STOPPED: cluster_pb2.MEMBER_ROLE_STOPPED,
}


class Members:
    """The voters as this manager sees them. All managers of a cluster serve their API on the same port."""

    def __init__(
        self,
        config: ManagerConfig,
        credentials: Credentials,
        consensus: Consensus,
        store: Store,
        state: StoreState,
        acting: Acting,
        outlook: Outlook,
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._consensus = consensus
        self._store = store
        self._state = state
        self._acting = acting
        self._spare, self._looking = SpareRoom(), asyncio.Lock()
        self._outlook = outlook
        self._looks = set[asyncio.Task[str]]()
        self._fence_agents = FenceAgents(config.fence_agents_dir)
        self._version = importlib.metadata.version("gugus")
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Close the channels to other managers."""
        for channel in self._channels.values():
            await channel.close()

    def own(self) -> MemberStatus:
        """Return this manager's figures."""
        status = figures(self._consensus.leadership())
        status.name, status.version = self._config.name, self._version
        status.revision, status.acting = self._store.revision, self._acting.valid
        status.state_bytes, status.state_quota_bytes = self._state.size_bytes, QUOTA_BYTES
        status.fence_agents.extend(self._fence_agents.installed())
        status.certificate_ends_at.FromDatetime(self._credentials.not_after)
        if status.acting and self._outlook.status is not None:
            status.balance.CopyFrom(self._outlook.status)
        return status

    async def look(self) -> Sight:
        """Ask every other voter, and return all that is known."""
        own, voters = self.own(), self._consensus.leadership().voters
        others = [voter for voter in voters if voter.name != own.name]
        answers = dict(zip((o.name for o in others), await asyncio.gather(*map(self._ask, others)), strict=True))
        lease, nodes = self._store.peek(ManagerLease, LEASE_NAME), self._store.peek_all(Node)
        told = {name: answer for name, answer in answers.items() if isinstance(answer, MemberStatus)}
        return Sight(
            cluster=self._config.cluster_name,
            me=own.name,
            voters=tuple(voter.name for voter in voters),
            acting=lease.holder if lease else "",
            members={own.name: own, **told},
            silences={name: answer for name, answer in answers.items() if isinstance(answer, str)},
            disarmed=self._disarmed(),
            former=tuple(node.meta.name for node in nodes if node.status.former),
            idle_witnesses=tuple(n.meta.name for n in nodes if n.spec.witness and not n.status.voter),
            certificate_days=_certificate_days(nodes, {own.name: own, **told}),
            fence_agents=frozenset(device.agent for node in nodes for device in node.spec.fence.devices),
            short=await self._short(),
        )

    async def _short(self) -> str:
        """Return who would find no place after losses that must be possible; "" when everybody would.

        A look is ended although nobody waits for it any more: its thread must not meet the next one's.
        """
        look = asyncio.create_task(self._look_for_room())
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        return await asyncio.shield(look)

    async def _look_for_room(self) -> str:
        async with self._looking:
            read = spare.read(self._store)
            if read is None:
                return ""
            room = await asyncio.to_thread(
                self._spare.look, *read
            )  # of a large cluster, after a change of a node, most of a second
            return in_words(room.short())

    def _disarmed(self) -> str:
        """Return who switched HA off for the whole cluster and why; "" while it is on."""
        for cluster in self._store.peek_all(Cluster):
            if cluster.ha.disarmed:
                return f"by {cluster.ha.actor}" + (f": {cluster.ha.reason}" if cluster.ha.reason else "")
        return ""

    async def _ask(self, voter: Member) -> MemberStatus | str:
        """Return what a voter says, or why it says nothing."""
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channel(voter))
        try:
            return await stub.GetMember(cluster_pb2.GetMemberRequest(), timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # an upgrade is under way
                return MemberStatus(name=voter.name, version=OLDER)
            return _why(error)

    def _channel(self, voter: Member) -> grpc.aio.Channel:
        endpoint = join_endpoint(voter.host, self._config.port)
        if (voter.name, endpoint) not in self._channels:
            identity = Identity(self._credentials.identity.cluster_id, Role.MANAGER, voter.name)
            channel = open_channel(endpoint, self._credentials, verify=identity.dns_name)
            self._channels[voter.name, endpoint] = channel
        return self._channels[voter.name, endpoint]


def _certificate_days(nodes: Sequence[Node], members: Mapping[str, MemberStatus]) -> dict[str, float]:
    """Return for how many days the first of each host's certificates is good; nothing of hosts that have not told."""
    ends: dict[str, list[float]] = {}
    for name, at in (
        *((node.meta.name, node.status.facts.certificate_ends_at) for node in nodes),
        *((name, member.certificate_ends_at) for name, member in members.items()),
    ):
        if at.seconds:
            ends.setdefault(name, []).append((at.seconds - time.time()) / SECONDS_A_DAY)
    return {name: min(days) for name, days in ends.items()}


def figures(view: Leadership) -> MemberStatus:
    """Return what consensus tells of this manager as the API has it."""
    status = MemberStatus(
        role=_ROLES[view.role],
        term=view.term,
        leader=view.leader or "",
        commit_index=view.commit_index,
        applied_index=view.applied_index,
        last_log_index=view.last_log_index,
        snapshot_index=view.snapshot_index,
        failure=view.failure or "",
        level=view.level,
        disk=_disk(view.storage),
    )
    for peer in view.peers:
        status.peers.add(name=peer.name, connected=peer.connected, match_index=peer.match_index)
    return status


def _disk(storage: StorageStatus) -> cluster_pb2.MemberDisk:
    disk = cluster_pb2.MemberDisk(
        journal_bytes=storage.journal_bytes,
        journal_segments=storage.journal_segments,
        snapshot_bytes=storage.snapshot_bytes,
        syncs=storage.syncs,
        sync_us=round(storage.sync_seconds * 1e6),
        sync_p99_us=round(storage.sync_p99_s * 1e6),
        free_bytes=storage.free_bytes,
        total_bytes=storage.total_bytes,
        full=storage.full,
        cut_bytes=storage.cut_bytes,
    )
    if storage.snapshot_at_s:
        disk.snapshot_at.FromMilliseconds(round(storage.snapshot_at_s * 1e3))
    return disk


def _why(error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {ASK_TIMEOUT_S:g} s"
    return from_rpc_error(error).message.rpartition(": ")[2].rstrip(".")
