"""The cluster service: how the cluster is, join tokens, and who votes."""

from collections.abc import Callable, Sequence
from typing import Any

from gugus.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Cluster, ClusterStatus, ManagerLease, Token
from gugus.cluster.v1.task_pb2 import Task

from common import validate
from common.config import ManagerConfig
from common.errors import internal, invalid
from common.identity.ca import CertificateAuthority, fingerprint
from common.identity.names import Role
from common.identity.tokens import JoinToken, hash_secret
from common.rpc.interceptors import current_peer
from manager.consensus import Consensus, Member
from manager.controllers import ha_switch
from manager.controllers.context import Context
from manager.controllers.voters import Voters
from manager.damping import key_of
from manager.events import INFO, WARNING, record
from manager.health import Sight, findings, problems
from manager.members import Members
from manager.services import settings
from manager.services.forward import actor
from manager.services.requests import begin, begun, upon_latest
from manager.store import Txn
from manager.store.kinds import LEASE_NAME, new
from manager.tasks import new_task

TOKEN_DEFAULT_MS = 3_600_000
TOKEN_MIN_MS = 60_000
TOKEN_MAX_MS = 7 * 24 * 3_600_000

MAX_REASON = 200
"""Characters of the reason for which HA is switched off."""

PROMOTE_MAX_S = 600.0
"""How long a new voter may take to catch up, whatever the caller's deadline."""

PROMOTE_SPARE_S = 5.0
"""What is left of the caller's deadline for the answer that it did not."""


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Serves `gugus cluster`."""

    def __init__(
        self,
        context: Context,
        config: ManagerConfig,
        consensus: Consensus,
        authority: CertificateAuthority,
        members: Members,
        voters: Voters,
        enrol_endpoints: Callable[[], list[str]],
    ) -> None:
        self._context = context
        self._config = config
        self._consensus = consensus
        self._authority = authority
        self._members = members
        self._voters = voters
        self._enrol_endpoints = enrol_endpoints

    async def GetCluster(self, request: cluster_pb2.GetClusterRequest, context: object) -> Cluster:
        """Return the cluster object."""
        clusters = await self._context.store.list(Cluster)
        if not clusters:
            raise internal(
                "NO_CLUSTER", "the state holds no cluster object; was the first manager's start interrupted?"
            )
        return clusters[0]

    async def GetStatus(self, request: cluster_pb2.GetStatusRequest, context: object) -> ClusterStatus:
        """Return how the cluster is, as this manager sees it and the others say."""
        return await self._status()

    async def GetMember(self, request: cluster_pb2.GetMemberRequest, context: object) -> cluster_pb2.MemberStatus:
        """Return this manager's own figures."""
        return self._members.own()

    async def CreateToken(
        self, request: cluster_pb2.CreateTokenRequest, context: object
    ) -> cluster_pb2.CreateTokenResponse:
        """Make a join token; only a hash of its secret is kept, so a repeated call makes another token."""
        ttl_ms = request.ttl_ms or TOKEN_DEFAULT_MS
        if not TOKEN_MIN_MS <= ttl_ms <= TOKEN_MAX_MS:
            raise invalid("ttl_ms", f"{ttl_ms} is out of range; a token lives between 1 minute and 7 days.")
        if request.node:
            validate.require("node", validate.name(request.node))
        token = JoinToken.new(
            tuple(self._enrol_endpoints()),
            self._config.cluster_name,
            self._config.cluster_id,
            fingerprint(self._authority.cert_pem),
            valid_for_s=ttl_ms // 1000,
        )
        stored = new(Token, token.token_id)
        stored.secret_sha256 = bytes.fromhex(hash_secret(token.secret))
        stored.expires_at.FromSeconds(token.expires_at)
        stored.node = request.node
        await self._context.store.create(stored)
        return cluster_pb2.CreateTokenResponse(token=token.text(), id=token.token_id, expires_at=stored.expires_at)

    async def ListTokens(
        self, request: cluster_pb2.ListTokensRequest, context: object
    ) -> cluster_pb2.ListTokensResponse:
        """Return all tokens without anything of their secrets."""
        tokens = await self._context.store.list(Token)
        for token in tokens:
            token.ClearField("secret_sha256")
        return cluster_pb2.ListTokensResponse(tokens=tokens)

    async def RevokeToken(
        self, request: cluster_pb2.RevokeTokenRequest, context: object
    ) -> cluster_pb2.RevokeTokenResponse:
        """End a token."""
        await self._context.store.delete(Token, request.id)
        return cluster_pb2.RevokeTokenResponse()

    async def Promote(self, request: cluster_pb2.PromoteRequest, context: Any) -> ClusterStatus:
        """Make a node a voter: hand its agent what a manager needs, wait until it has caught up, count it."""
        left_s = context.time_remaining()
        allowed_s = PROMOTE_MAX_S if left_s is None else left_s - PROMOTE_SPARE_S
        await self._voters.promote(request.node, min(allowed_s, PROMOTE_MAX_S))
        return await self._status()

    async def Demote(self, request: cluster_pb2.DemoteRequest, context: object) -> ClusterStatus:
        """Make a voter a plain node: stop counting it, then have its agent stop the manager."""
        peer = current_peer()
        through_it = peer.role is Role.MANAGER and peer.name == request.node
        await self._voters.demote(request.node, stop_later=through_it)
        return await self._status()

    async def TransferLeadership(
        self, request: cluster_pb2.TransferLeadershipRequest, context: object
    ) -> ClusterStatus:
        """Let another voter lead and act."""
        await self._voters.transfer(request.to, request.away_from)
        return await self._status()

    async def DisarmHa(self, request: cluster_pb2.DisarmHaRequest, context: object) -> Task:
        """Switch HA off for the whole cluster."""
        if len(request.reason) > MAX_REASON:
            raise invalid("reason", f"has {len(request.reason)} characters; at most {MAX_REASON}.")
        if request.mode not in cluster_pb2.DisarmMode.values():
            raise invalid("mode", f"{request.mode} is none: 1 to ignore guests under HA, 2 to freeze them.")
        mode = request.mode or cluster_pb2.DISARM_MODE_IGNORE
        switch = cluster_pb2.HaSwitch(disarmed=True, reason=request.reason, actor=str(actor()), mode=mode)
        return await self._switch(ha_switch.DISARM, request, switch)

    async def ArmHa(self, request: cluster_pb2.ArmHaRequest, context: object) -> Task:
        """Switch HA on for the whole cluster."""
        return await self._switch(ha_switch.ARM, request, cluster_pb2.HaSwitch())

    async def UpdateSettings(self, request: cluster_pb2.UpdateSettingsRequest, context: object) -> Cluster:
        """Change settings."""
        return await settings.update(self._context, request)

    async def _switch(
        self,
        kind: str,
        request: cluster_pb2.DisarmHaRequest | cluster_pb2.ArmHaRequest,
        switch: cluster_pb2.HaSwitch,
    ) -> Task:
        store = self._context.store

        async def ask() -> Task:
            cluster = await self.GetCluster(cluster_pb2.GetClusterRequest(), None)
            target = f"cluster/{cluster.meta.name}"
            if done := await begun(store, kind, target, request.request_id):
                return done
            cluster.ha.CopyFrom(switch)
            task = new_task(kind, target, str(actor()), request.request_id, request)
            txn = Txn().put(cluster, expect_revision=cluster.meta.revision)
            word = "disarmed" if switch.disarmed else "armed"
            frozen = ", guests frozen" if switch.mode == cluster_pb2.DISARM_MODE_FREEZE else ""
            text = f"HA was {word} by {actor()}{frozen}" + (f": {switch.reason}" if switch.reason else "")
            record(txn, target, f"HA_{word.upper()}", text, WARNING if switch.disarmed else INFO)
            return await begin(store, task, txn)

        return await upon_latest(ask)

    async def _status(self) -> ClusterStatus:
        sight = await self._members.look()
        status = cluster_status(sight, self._consensus.leadership().voters, self._config.port)
        lease = self._context.store.peek(ManagerLease, LEASE_NAME)
        status.cluster_id, status.epoch = self._config.cluster_id, lease.epoch if lease else 0
        known = {key_of(alarm): alarm for c in self._context.store.peek_all(Cluster) for alarm in c.alarms}
        for finding in status.findings:
            if key_of(finding) in known:
                finding.since.CopyFrom(known[key_of(finding)].since)
        return status


def cluster_status(sight: Sight, voters: Sequence[Member], port: int) -> ClusterStatus:
    """Return what is seen of the managers as the API has it. port: of the API, the same on all."""
    found, own = findings(sight), sight.own
    wrong = problems(found)
    acting = sight.members.get(sight.acting)
    return ClusterStatus(
        name=sight.cluster,
        answered_by=sight.me,
        leader=sight.leader,
        term=own.term,
        commit_index=own.commit_index,
        applied_index=own.applied_index,
        revision=own.revision,
        acting=sight.acting,
        voters=[_voter(sight, voter, port) for voter in voters],
        problems=[f"{finding.sentence} {finding.remedy}" for finding in wrong],
        findings=found,
        healthy=not wrong,
        balance=acting.balance if acting is not None and acting.HasField("balance") else None,
    )


def _voter(sight: Sight, voter: Member, port: int) -> cluster_pb2.Voter:
    connected = {peer.name for peer in sight.own.peers if peer.connected}
    return cluster_pb2.Voter(
        name=voter.name,
        address=voter.host,
        port=port,
        raft_port=voter.port,
        connected=voter.name == sight.me or voter.name in connected,
        leader=voter.name == sight.leader,
        match_index=sight.match_index(voter.name),
        lag_entries=sight.lag(voter.name),
        status=sight.members.get(voter.name),
        silence=sight.silences.get(voter.name, ""),
    )
