"""The cluster service: how the cluster is, join tokens, and who votes."""

import asyncio
from collections.abc import Callable

from gugus.agent.v1 import node_pb2 as agent_node
from gugus.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Cluster, ClusterStatus, ManagerLease, Token
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common import validate
from common.config import ManagerConfig, Voter, dump, join_endpoint
from common.errors import internal, invalid, precondition
from common.identity.ca import CertificateAuthority, fingerprint
from common.identity.names import Identity, Role
from common.identity.tokens import JoinToken, hash_secret
from common.logs import get_logger
from manager.consensus import Consensus, ConsensusError, Leadership, Member, MembershipRefused
from manager.controllers.context import Context
from manager.events import INFO, WARNING, record
from manager.services.forward import known_error
from manager.store import Txn
from manager.store.kinds import LEASE_NAME, new

TOKEN_DEFAULT_MS = 3_600_000
TOKEN_MIN_MS = 60_000
TOKEN_MAX_MS = 7 * 24 * 3_600_000

ADD_TIMEOUT_S = 60.0
"""How long a new voter may take to start and to catch up."""

_log = get_logger("cluster")


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Serves `gugus cluster`."""

    def __init__(
        self,
        context: Context,
        config: ManagerConfig,
        consensus: Consensus,
        authority: CertificateAuthority,
        enrol_endpoints: Callable[[], list[str]],
    ) -> None:
        self._context = context
        self._config = config
        self._consensus = consensus
        self._authority = authority
        self._enrol_endpoints = enrol_endpoints
        self._changing = asyncio.Lock()

    async def GetCluster(self, request: cluster_pb2.GetClusterRequest, context: object) -> Cluster:
        """Return the cluster object."""
        clusters = await self._context.store.list(Cluster)
        if not clusters:
            raise internal(
                "NO_CLUSTER", "the state holds no cluster object; was the first manager's start interrupted?"
            )
        return clusters[0]

    async def GetStatus(self, request: cluster_pb2.GetStatusRequest, context: object) -> ClusterStatus:
        """Return how the cluster is, as this manager sees it."""
        raft = self._consensus.leadership()
        lease = self._context.store.peek(ManagerLease, LEASE_NAME)
        status = ClusterStatus(
            name=self._config.cluster_name,
            cluster_id=self._config.cluster_id,
            answered_by=self._config.name,
            leader=raft.leader or "",
            term=raft.term,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            revision=self._context.store.revision,
            acting=lease.holder if lease else "",
            epoch=lease.epoch if lease else 0,
            voters=self._voters(raft),
        )
        status.problems.extend(self._problems(raft, status))
        return status

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

    async def Promote(self, request: cluster_pb2.PromoteRequest, context: object) -> ClusterStatus:
        """Make a node a voter: hand its agent what a manager needs, wait until it has caught up, count it."""
        node = await self._context.store.require(Node, request.node)
        async with self._change():
            if request.node not in self._voter_names():
                if node.status.state != NODE_STATE_ONLINE:
                    raise precondition(
                        "NODE_NOT_ONLINE",
                        f"node {request.node} is not online: {node.status.reason}.",
                        remedy="A voter that is down weakens the cluster; bring the node back first.",
                    )
                await self._activate(node)
                member = Member(request.node, node.spec.address, self._config.raft_port)
                await self._change_voters(self._consensus.add_voter(member, ADD_TIMEOUT_S))
                await self._note(request.node, voter=True)
        return await self.GetStatus(cluster_pb2.GetStatusRequest(), context)

    async def Demote(self, request: cluster_pb2.DemoteRequest, context: object) -> ClusterStatus:
        """Make a voter a plain node: stop counting it, then have its agent stop the manager."""
        node = await self._context.store.require(Node, request.node)
        async with self._change():
            if request.node in self._voter_names():
                if len(self._voter_names()) == 1:
                    raise precondition("LAST_VOTER", f"{request.node} is the only voter; promote another node first.")
                if request.node == self._config.name:
                    raise precondition(
                        "IS_LEADER",
                        f"{request.node} acts for the cluster now.",
                        remedy="`systemctl restart gugus-manager` there hands over; then demote it.",
                    )
                await self._change_voters(self._consensus.remove_voter(request.node))
                await self._note(request.node, voter=False)
            if node.status.state == NODE_STATE_ONLINE:
                await self._context.tell(
                    node,
                    lambda agent, epoch: agent.host.DeactivateManager(
                        agent_node.DeactivateManagerRequest(epoch=epoch), timeout=ADD_TIMEOUT_S
                    ),
                )
        return await self.GetStatus(cluster_pb2.GetStatusRequest(), context)

    def _change(self) -> asyncio.Lock:
        if self._changing.locked():
            raise precondition("CHANGE_UNDER_WAY", "another change of voters is under way.", remedy="Wait for its end.")
        return self._changing

    async def _activate(self, node: Node) -> None:
        identity = Identity(self._config.cluster_id, Role.MANAGER, node.meta.name)
        credentials = self._authority.issue(identity, addresses=[node.spec.address])
        voters = [self._as_voter(member) for member in self._consensus.leadership().voters]
        config = ManagerConfig(
            name=node.meta.name,
            cluster_id=self._config.cluster_id,
            cluster_name=self._config.cluster_name,
            address=node.spec.address,
            port=self._config.port,
            raft_port=self._config.raft_port,
            enrol_port=self._config.enrol_port,
            metrics_port=self._config.metrics_port,
            voters=(*voters, self._as_voter(Member(node.meta.name, node.spec.address, self._config.raft_port))),
        )
        await self._context.tell(
            node,
            lambda agent, epoch: agent.host.ActivateManager(
                agent_node.ActivateManagerRequest(
                    epoch=epoch,
                    config=dump(config),
                    ca_certificate=self._authority.cert_pem,
                    ca_key=self._authority.key_pem,
                    certificate=credentials.cert_pem,
                    key=credentials.key_pem,
                ),
                timeout=ADD_TIMEOUT_S,
            ),
        )

    def _as_voter(self, member: Member) -> Voter:
        return Voter(name=member.name, address=member.host, raft_port=member.port, port=self._config.port)

    async def _change_voters(self, change: "asyncio.Future[None] | object") -> None:
        try:
            await change  # type: ignore[misc]
        except MembershipRefused as error:
            raise precondition("CHANGE_REFUSED", f"{error}.") from None
        except ConsensusError as error:
            raise known_error(error) from error

    async def _note(self, name: str, *, voter: bool) -> None:
        reason, text = ("VOTER_ADDED", "votes now") if voter else ("VOTER_REMOVED", "votes no more")

        def mark(node: Node) -> Node:
            node.status.voter = voter
            return node

        await self._context.store.update(Node, name, mark)
        txn = record(Txn(), f"node/{name}", reason, f"{name} {text}", INFO if voter else WARNING)
        await self._context.store.txn(txn)

    def _voter_names(self) -> set[str]:
        return {voter.name for voter in self._consensus.leadership().voters}

    def _voters(self, raft: Leadership) -> list[cluster_pb2.Voter]:
        peers = {peer.name: peer for peer in raft.peers}
        return [
            cluster_pb2.Voter(
                name=voter.name,
                address=voter.host,
                port=self._config.port,
                raft_port=voter.port,
                connected=voter.name == self._config.name or (voter.name in peers and peers[voter.name].connected),
                leader=voter.name == raft.leader,
                match_index=peers[voter.name].match_index if voter.name in peers else raft.last_log_index,
            )
            for voter in raft.voters
        ]

    def _problems(self, raft: Leadership, status: ClusterStatus) -> list[str]:
        """Return what is wrong, each in a sentence."""
        problems = []
        away = [voter.name for voter in status.voters if not voter.connected]
        if raft.failure:
            problems.append(f"The manager on {self._config.name} stopped taking part: {raft.failure}.")
        if raft.leader is None:
            problems.append("The managers have no leader: nothing can be changed until a majority is connected.")
        elif not status.acting:
            problems.append("No manager acts yet; one will within seconds.")
        if away:
            left = len(status.voters) - len(away)
            majority = len(status.voters) // 2 + 1
            more = "one more loss stops all changes" if left == majority else f"{left} of {len(status.voters)} left"
            problems.append(f"{self._config.name} has no connection with {', '.join(away)}: {more}.")
        if len(status.voters) == 2:
            problems.append("Two voters need each other: promote a third, so that the loss of one stops nothing.")
        return problems


def api_endpoint(member: Member, port: int) -> str:
    """Return a manager's API address."""
    return join_endpoint(member.host, port)
