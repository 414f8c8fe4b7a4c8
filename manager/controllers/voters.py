"""Who votes: promoting, demoting and handing over, one change at a time, and cleaning up after those that were broken off.

Invariant: the voters in force, as consensus has them, decide. `node.status.voter` follows them. `node.status.retiring` is
committed before a manager is made or unmade on a node and cleared when that is done: whatever is killed in between, the
manager of a node that does not vote is stopped in the end, and the one of a voter never.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gugus.agent.v1 import node_pb2 as agent_node
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.config import ManagerConfig, Voter, dump
from common.errors import GugusError, precondition, unavailable
from common.identity.ca import CertificateAuthority
from common.identity.names import Identity, Role
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import Consensus, ConsensusError, Member, MembershipRefused
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.events import INFO, WARNING, record
from manager.ha import rolling_steps
from manager.health import LAG_ENTRIES
from manager.store import Conflict, Txn

AGENT_TIMEOUT_S = 60.0
"""How long an agent may take to start or stop a manager: systemd's own patience with a unit that stops is below it."""

ADD_LEAST_S = 5.0
"""A newcomer has at least so long to catch up, however long its start took."""

REMOVE_TIMEOUT_S = 10.0

PERIOD_S = 5.0
"""Time between two looks at what is left over."""

TAKEOVER_TIMEOUT_S = 15.0
"""How long the next manager may take to act: a lease of 3 s that could not be handed back is waited out, and elections."""

LOOK_S = 0.05

_log = get_logger("voters")


class Voters:
    """Changes of voters through this manager while it acts."""

    def __init__(
        self, context: Context, config: ManagerConfig, consensus: Consensus, authority: CertificateAuthority
    ) -> None:
        self._context = context
        self._config = config
        self._consensus = consensus
        self._authority = authority
        self._changing: tuple[str, asyncio.Task[None]] | None = None
        self._hands_on = asyncio.Lock()
        self._left_over = asyncio.Event()

    async def close(self) -> None:
        """Break off what is under way; its repetition at the next acting manager finishes it."""
        if self._changing is not None:
            self._changing[1].cancel()
            await asyncio.gather(self._changing[1], return_exceptions=True)

    # -- what operators ask for

    async def promote(self, name: str, allowed_s: float) -> None:
        """Make a node a voter and return when it counts. Raises GugusError, ConsensusError.

        allowed_s: how long its start and its catching up may take.
        """
        await self._one_change(f"promoting {name}", lambda: self._promote(name, allowed_s))

    async def demote(self, name: str, *, stop_later: bool = False) -> None:
        """Make a voter a plain node, and stop its manager if its node is online. Raises GugusError, ConsensusError.

        stop_later: return before it is stopped, because the answer travels through it.
        """
        await self._one_change(f"demoting {name}", lambda: self._demote(name))
        if stop_later:
            self._left_over.set()
            return
        try:
            await self._settle(name)
        except GugusError as error:
            if error.reason not in TRANSIENT_REASONS:
                raise
            _log.info("its manager is stopped when the node answers", node=name, error=str(error))  # it votes no more

    async def transfer(self, to: str, away_from: str) -> None:
        """Hand over to a voter, or to the most suitable one; return when it acts. Raises GugusError."""
        me = self._config.name
        if to == me or (away_from and away_from != me):
            return  # it was done before
        await self._one_change(f"handing over to {to or 'another'}", lambda: self._transfer(to))

    async def _one_change(self, what: str, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a change, or join the same one. It goes on when its caller goes, so that a repetition finds it done."""
        if self._changing is None or self._changing[1].done():
            self._changing = what, asyncio.create_task(self._with_hands_on(change))
            self._changing[1].add_done_callback(_looked_at)
        if self._changing[0] != what:
            raise precondition("CHANGE_UNDER_WAY", f"{self._changing[0]} is under way.", remedy="Wait for its end.")
        await asyncio.shield(self._changing[1])

    async def _with_hands_on(self, change: Callable[[], Awaitable[None]]) -> None:
        async with self._hands_on:
            await change()

    # -- what others ask

    def names(self) -> set[str]:
        """Return the voters in force."""
        return self._names()

    def follows(self, name: str) -> bool:
        """Return whether a voter is reached and has nearly all of the log; this manager's own is."""
        return name == self._config.name or name in self._ready()

    def majority_without(self, name: str) -> str:
        """Return why the managers would lose their majority were a voter to go down for a while; "" when they would not."""
        return rolling_steps.majority_without(self._names(), self._ready() | {self._config.name}, name)

    # -- the changes

    async def _promote(self, name: str, allowed_s: float) -> None:
        node = await self._context.store.require(Node, name)
        if name not in self._names():
            _require_online(node)
            began_s = asyncio.get_running_loop().time()
            await self._mark(name, retiring=True)
            await self._activate(node)
            left_s = allowed_s - (asyncio.get_running_loop().time() - began_s)
            member = Member(name, node.spec.address, self._config.raft_port)
            await _allowed(self._consensus.add_voter(member, max(left_s, ADD_LEAST_S)))
        await self._note(name)

    async def _demote(self, name: str) -> None:
        await self._context.store.require(Node, name)
        if name in self._names():
            self._require_quorum_without(name)
            if name == self._config.name:
                await self._transfer("")
                raise unavailable(
                    "HANDED_OVER", f"{name} acted, and has handed over.", remedy="Repeat the call; another one goes on."
                )
            await self._mark(name, retiring=True)
            await _allowed(self._consensus.remove_voter(name, REMOVE_TIMEOUT_S))
        else:
            await self._mark(name, retiring=True)
        await self._note(name)

    async def _transfer(self, to: str) -> None:
        self._require_successor(to)
        await self._context.acting.hand_over(to or None)
        try:
            async with asyncio.timeout(TAKEOVER_TIMEOUT_S):
                await self._until_another_acts()
        except TimeoutError:
            remedy = "`gugus cluster status` tells how they are."
            raise unavailable("NO_ACTING_MANAGER", "nobody acts for the cluster yet.", remedy=remedy) from None

    async def _until_another_acts(self) -> None:
        acting, me = self._context.acting, self._config.name
        while acting.holder() in ("", me):
            if acting.valid:  # it was elected again at once
                raise precondition("NOT_HANDED_OVER", f"{me} acts again.", remedy="Try again, or name another voter.")
            await asyncio.sleep(LOOK_S)

    def _require_successor(self, to: str) -> None:
        names, ready = self._names(), self._ready()
        if names == {self._config.name}:
            raise precondition("LAST_VOTER", f"{self._config.name} is the only voter.", remedy="Promote another node.")
        if to and to not in names:
            raise precondition(
                "NOT_A_VOTER",
                f"{to} is no voter; there are {', '.join(sorted(names))}.",
                remedy="Name one of these, or none for the best.",
            )
        if to not in ready and (to or not ready):
            whom = to or f"none of {', '.join(sorted(names - {self._config.name}))}"
            remedy = "Wait until it has caught up, or name another voter; `gugus cluster status` shows them."
            raise precondition("NOT_READY", f"{whom} is reached and has nearly all of the log.", remedy=remedy)

    def _require_quorum_without(self, name: str) -> None:
        rest = self._names() - {name}
        if not rest:
            raise precondition("LAST_VOTER", f"{name} is the only voter.", remedy="Promote another node first.")
        good = rest & (self._ready() | {self._config.name})
        if len(good) <= len(rest) // 2:
            raise precondition(
                "WOULD_LOSE_QUORUM",
                f"without {name} the voters would be {', '.join(sorted(rest))}, of which only "
                f"{', '.join(sorted(good)) or 'none'} can be counted on: no majority.",
                remedy="Bring the others back and let them catch up first.",
            )

    def _ready(self) -> set[str]:
        """Return the other voters that are reached and have nearly all of the log."""
        view = self._consensus.leadership()
        return {p.name for p in view.peers if p.connected and view.last_log_index - p.match_index <= LAG_ENTRIES}

    def _names(self) -> set[str]:
        """Return the voters in force. A change that was just made shows after the next read barrier at the latest."""
        return {voter.name for voter in self._consensus.leadership().voters}

    # -- what is left over

    async def run(self) -> None:
        """Make nodes' status follow the voters in force, and stop managers that are left over; until cancelled."""
        while True:
            for node in self._context.store.peek_all(Node):
                votes = node.meta.name in self._names()
                if node.status.voter != votes or node.status.retiring:
                    await self._tried_later(node.meta.name)
            await happened(self._left_over, PERIOD_S)
            self._left_over.clear()

    async def _tried_later(self, name: str) -> None:
        try:
            await self._settle(name)
        except (ConsensusError, GugusError) as error:
            _log.warning("tried again", node=name, error=str(error))

    async def _settle(self, name: str) -> None:
        """Note whether a node votes, and stop its manager if it is retiring. Raises GugusError, ConsensusError."""
        async with self._hands_on:
            await self._note(name)
            node = self._context.store.peek(Node, name)
            if node is None or not node.status.retiring or node.status.state != NODE_STATE_ONLINE:
                return
            # What was proposed before this commit is in force after it, or will never be: a change of voters of which
            # nobody knows the outcome, too.
            await self._context.store.txn(Txn().expect(Node, name, revision=node.meta.revision))
            await self._context.store.get(Node, name)  # a barrier: see `_names`
            if name not in self._names():
                await self._deactivate(node)
                await self._mark(name, retiring=False)

    async def _note(self, name: str) -> None:
        """Make a node's status say whether it votes, with an event when that changed."""
        while True:
            node = await self._context.store.get(Node, name)
            votes = name in self._names()
            if node is None or (node.status.voter == votes and not (votes and node.status.retiring)):
                return
            txn = Txn()
            if node.status.voter != votes:
                reason, text = ("VOTER_ADDED", "votes now") if votes else ("VOTER_REMOVED", "votes no more")
                record(txn, f"node/{name}", reason, f"{name} {text}", INFO if votes else WARNING)
            node.status.voter, node.status.retiring = votes, node.status.retiring and not votes
            try:
                await self._context.store.txn(txn.put(node, expect_revision=node.meta.revision))
            except Conflict:
                continue
            return

    async def _mark(self, name: str, *, retiring: bool) -> None:
        def mark(node: Node) -> Node:
            node.status.retiring = retiring
            return node

        await self._context.store.update(Node, name, mark)

    # -- managers on nodes

    async def _activate(self, node: Node) -> None:
        credentials = self._authority.issue(
            Identity(self._config.cluster_id, Role.MANAGER, node.meta.name), addresses=[node.spec.address]
        )
        request = agent_node.ActivateManagerRequest(
            config=dump(self._manager_config(node)),
            ca_certificate=self._authority.cert_pem,
            ca_key=self._authority.key_pem,
            certificate=credentials.cert_pem,
            key=credentials.key_pem,
        )

        def activate(agent: Any, epoch: int) -> Any:
            request.epoch = epoch
            return agent.host.ActivateManager(request, timeout=AGENT_TIMEOUT_S)

        await self._context.tell(node, activate)

    def _manager_config(self, node: Node) -> ManagerConfig:
        mine = self._config
        newcomer = Member(node.meta.name, node.spec.address, mine.raft_port)
        voters = (*self._consensus.leadership().voters, newcomer)
        return ManagerConfig(
            name=node.meta.name,
            cluster_id=mine.cluster_id,
            cluster_name=mine.cluster_name,
            address=node.spec.address,
            port=mine.port,
            raft_port=mine.raft_port,
            enrol_port=mine.enrol_port,
            metrics_port=mine.metrics_port,
            gateway_port=mine.gateway_port,
            gateway_origins=mine.gateway_origins,
            voters=tuple(Voter(name=v.name, address=v.host, raft_port=v.port, port=mine.port) for v in voters),
        )

    async def _deactivate(self, node: Node) -> None:
        def deactivate(agent: Any, epoch: int) -> Any:
            request = agent_node.DeactivateManagerRequest(epoch=epoch)
            return agent.host.DeactivateManager(request, timeout=AGENT_TIMEOUT_S)

        await self._context.tell(node, deactivate)
        _log.info("manager stopped", node=node.meta.name)


def _require_online(node: Node) -> None:
    if node.status.state != NODE_STATE_ONLINE:
        raise precondition(
            "NODE_NOT_ONLINE",
            f"node {node.meta.name} is not online: {node.status.reason}.",
            remedy="A voter that is down weakens the cluster; bring the node back first.",
        )


async def _allowed(change: Awaitable[None]) -> None:
    """Make a change of voters. Raises CHANGE_REFUSED when consensus refuses it."""
    try:
        await change
    except MembershipRefused as error:
        raise precondition("CHANGE_REFUSED", f"{error}.", remedy="`gugus cluster status` shows the voters.") from None


def _looked_at(task: asyncio.Task[None]) -> None:
    """Take a change's error in, for its callers may be gone."""
    if not task.cancelled() and (error := task.exception()):
        _log.info("change of voters not made", error=str(error))
