"""Uses fence devices: rounds on nodes whose fencing was committed for it, and the power given back afterwards.

Invariant: a device is told to cut the power only while this manager acts and the node is committed FENCING with `fence.fired`. That is
durable before the first shot, so whoever dies in between leaves a node whose power the next manager cuts once more, or gives back.
"""

import asyncio
from collections.abc import Sequence

from gugus.cluster.v1.node_pb2 import FENCE_AFTER_OFF, NODE_STATE_FENCED, NODE_STATE_FENCING, FenceSecrets, Node

from common.errors import GugusError
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.controllers.fencing import Fencing, devices_of, levels_of
from manager.controllers.opinions import Opinions
from manager.events import INFO, WARNING, record
from manager.fencing import Device, FenceDevice
from manager.ha.fence_plan import Action, Answer, Outcome, Round, Shot
from manager.ha.node_machine import Off
from manager.store import Change, Txn

LOOK_S = 0.25
"""Longest time between two looks; a change of a node is looked at once."""

TIMEOUT_S = 20.0
"""Default of FenceDevice.timeout_s: a management board takes up to ten seconds when it is busy."""

ON_PAUSE_S = 10.0
"""Between two tries to give a node its power back."""

_log = get_logger("fencing")


class FenceRounds:
    """The rounds of one reign. `driver`: the way to the devices."""

    def __init__(self, context: Context, fencing: Fencing, driver: FenceDevice) -> None:
        self._context, self._fencing, self._driver = context, fencing, driver
        self._opinions = Opinions(context, fencing)
        self._news = asyncio.Event()
        self._giving_back: set[str] = set()
        self._changed: dict[str, asyncio.Event] = {}

    def changed(self, change: Change) -> None:
        """Take in a change of a node."""
        if change.kind == "node":
            self._news.set()
            if changed := self._changed.get(change.name):
                changed.set()

    async def run(self) -> None:
        """Ask for opinions, cut and give back power until cancelled; then no device is at work for this manager any more."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._news.clear()
                self._opinions.look(group)
                for node in self._context.store.peek_all(Node):
                    self._look(node, group)
                await happened(self._news, LOOK_S)

    def _look(self, node: Node, group: asyncio.TaskGroup) -> None:
        name, fence = node.meta.name, node.status.fence
        if not fence.fired or name in self._fencing.rounds or name in self._giving_back:
            return
        wanted = fence.asked_by or not self._fencing.heard(name)
        if node.status.state == NODE_STATE_FENCING and wanted and not self._fencing.proven(node):
            self._fencing.begun(name)
            group.create_task(self._round(node))
        elif node.status.state == NODE_STATE_FENCED and (fence.after or node.spec.fence.after) != FENCE_AFTER_OFF:
            self._giving_back.add(name)
            group.create_task(self._give_back(node))

    async def _round(self, node: Node) -> None:
        name, off = node.meta.name, None
        try:
            off = await self._shoot(Round(name, node.status.boot_id, node.status.lapse_number, levels_of(node)))
        except Exception:
            _log.exception("a round failed; the lease goes on", node=name)
        finally:
            self._fencing.ended(name, off)
            self._news.set()

    async def _shoot(self, round_: Round) -> Off | None:
        """Fire until there is a proof, or it is not wanted any more."""
        while shots := round_.shots():
            await self._pause(round_)
            node = self._still(round_)
            if node is None:
                return None
            round_, began_ns = round_.fired(), self._context.acting.now_ns()
            answers = await self._fire(node, shots)
            failures = round_.failures
            round_ = round_.took(answers, began_ns, self._context.acting.now_ns())
            if round_.failures != failures and round_.failures:
                await self._tell(round_.node, "FENCE_DEVICE_FAILED", "; ".join(round_.failures))
        return round_.off

    async def _pause(self, round_: Round) -> None:
        changed = self._changed.setdefault(round_.node, asyncio.Event())
        while (wait_ns := round_.not_before_ns - self._context.acting.now_ns()) > 0 and self._still(round_):
            changed.clear()
            await happened(changed, wait_ns / 1e9)

    def _still(self, round_: Round) -> Node | None:
        """Return the node while its power is to be cut still: once proven dead, only because somebody asked, and once."""
        node = self._context.store.peek(Node, round_.node)
        if node is None or not self._context.acting.valid or not node.status.fence.fired:
            return None
        wanted = bool(node.status.fence.asked_by) and not round_.passes
        fencing = node.status.state == NODE_STATE_FENCING or (node.status.state == NODE_STATE_FENCED and wanted)
        return node if fencing else None

    async def _fire(self, node: Node, shots: Sequence[Shot]) -> list[Answer]:
        """Fire shots side by side. A device that was removed meanwhile failed."""
        devices = {device.name: device for device in devices_with_secrets(node, self._secrets(node))}

        async def one(shot: Shot) -> Answer:
            if shot.device not in devices:
                return Answer(shot, Outcome.FAILED, "it was removed")
            outcome, words = await self._driver.act(devices[shot.device], shot.action)
            _log.info("shot", node=node.meta.name, device=shot.device, action=shot.action, outcome=outcome, words=words)
            return Answer(shot, outcome, words)

        return await asyncio.gather(*map(one, shots))

    async def _give_back(self, node: Node) -> None:
        name, first = node.meta.name, True
        try:
            while (now := self._owed(name)) is not None:
                shots = [Shot(device.name, Action.ON) for device in devices_of(now)]
                failed = [answer for answer in await self._fire(now, shots) if answer.outcome is not Outcome.DONE]
                if not failed:
                    await self._given_back(now)
                    return
                if first:
                    words = "; ".join(f"{answer.shot.device}: {answer.words}" for answer in failed)
                    await self._tell(
                        name, "FENCE_POWER_ON_FAILED", f"its power was cut and cannot be given back: {words}"
                    )
                first = False
                await asyncio.sleep(ON_PAUSE_S)
        finally:
            self._giving_back.discard(name)

    def _owed(self, name: str) -> Node | None:
        """Return the node while its power is to be given back: one that is heard has it."""
        node = self._context.store.peek(Node, name)
        if node is None or not self._context.acting.valid or self._fencing.heard(name):
            return None
        return node if node.status.fence.fired and node.status.state == NODE_STATE_FENCED else None

    async def _given_back(self, node: Node) -> None:
        node.status.fence.fired = False
        txn = Txn().put(node, expect_revision=node.meta.revision)
        record(txn, f"node/{node.meta.name}", "FENCE_POWER_ON", "its fence devices switched it on again", INFO)
        await self._commit(node.meta.name, txn)

    async def _tell(self, name: str, reason: str, text: str) -> None:
        await self._commit(name, record(Txn(), f"node/{name}", reason, text, WARNING))

    async def _commit(self, name: str, txn: Txn) -> None:
        try:
            await self._context.store.txn(txn)
        except (ConsensusError, GugusError) as error:
            _log.warning("not committed", node=name, error=str(error))

    def _secrets(self, node: Node) -> FenceSecrets | None:
        return self._context.store.peek(FenceSecrets, node.meta.name)


def devices_with_secrets(node: Node, secrets: FenceSecrets | None) -> list[Device]:
    """Return a node's devices as they are spoken to."""
    return [
        Device(
            device.name,
            device.agent,
            device.timeout_s or TIMEOUT_S,
            {
                **device.parameters,
                **(secrets.devices[device.name].parameters if secrets and device.name in secrets.devices else {}),
            },
            frozenset(device.secret_names),
        )
        for device in devices_of(node)
    ]
