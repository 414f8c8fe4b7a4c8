"""What `gugus node fence`, `confirm-off`, `fence-device` and `fence-test` ask for.

Invariant: no answer, event or log has a secret of a device; they are in objects of their own, which no call returns.
"""

import asyncio
import time

import grpc
from gugus.cluster.v1 import node_pb2
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_FAIL_OVER, SHUTDOWN_POLICY_FREEZE
from gugus.cluster.v1.node_pb2 import (
    FENCE_AFTER_UNSPECIFIED,
    NODE_STATE_FENCED,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    FenceDeviceSecrets,
    FenceSecrets,
    Node,
)
from gugus.cluster.v1.task_pb2 import Task

from common import validate
from common.errors import GugusError, Violation, invalid, not_found, precondition
from manager.controllers.context import Context
from manager.controllers.fence_rounds import devices_with_secrets
from manager.controllers.fence_tasks import KIND
from manager.events import INFO, WARNING, record
from manager.fencing import Device, FenceAgents, metadata
from manager.ha.fence_plan import Action, Outcome
from manager.ha.node_machine import SUSPECT_AFTER_NS
from manager.services.forward import actor
from manager.services.requests import begin, begun, upon_latest
from manager.store import Txn
from manager.store.kinds import new
from manager.tasks import active, new_task

MOST_DEVICES = 8
MOST_LEVEL = 9
MOST_TIMEOUT_S = 300


class Fence:
    """Requests about fencing. host: name of this manager's host."""

    def __init__(self, context: Context, agents: FenceAgents, host: str) -> None:
        self._context, self._store, self._agents, self._host = context, context.store, agents, host

    async def fence(self, request: node_pb2.FenceNodeRequest) -> Task:
        """Begin to fence a node; one that is being fenced already for somebody has that one's task."""
        target = f"node/{request.name}"
        if done := await begun(self._store, KIND, target, request.request_id):
            return done

        async def ask() -> Task:
            node = await self._fenceable(request.name)
            if node.status.state == NODE_STATE_FENCED:
                raise precondition(
                    "NODE_FENCED",
                    f"node {request.name} is fenced already: {node.status.reason}.",
                    remedy="It comes back when it boots, or when its agent has emptied it.",
                )
            if open_ := [task for task in active(self._store, target) if task.kind == KIND]:
                return open_[0]
            task = new_task(KIND, target, str(actor()), request.request_id, request)
            fence = node.status.fence
            fence.asked_by, fence.asked_task, fence.after = str(actor()), task.meta.name, request.after
            txn = Txn().put(node, expect_revision=node.meta.revision)
            record(txn, target, "NODE_FENCE_ASKED", f"{actor()} asked for {request.name} to be fenced", WARNING)
            return await begin(self._store, task, txn)

        return await upon_latest(ask)

    async def confirm_off(self, request: node_pb2.ConfirmNodeOffRequest) -> Node:
        """Note a person's word that a host is off, for the boot that they were shown."""
        if request.typed_name != request.name:
            raise invalid(
                "typed_name",
                f'"{request.typed_name}" is not "{request.name}".',
                remedy="Type the name of the node whose host you have seen off.",
            )

        async def note() -> Node:
            node = await self._fenceable(request.name)
            if node.status.state == NODE_STATE_FENCED:
                return await self._end_freeze(node)
            self._refuse_alive(node)
            fence, status = node.status.fence, node.status
            if (request.boot_id, request.lapse_number) != (status.boot_id, status.lapse_number):
                raise precondition(
                    "NODE_CHANGED",
                    f"node {request.name} has come back since you looked at it.",
                    remedy=f"`gugus node show {request.name}`, look at the host, and say it again.",
                )
            fence.confirmed_by = str(actor())
            fence.confirmed_boot_id, fence.confirmed_lapse_number = status.boot_id, status.lapse_number
            txn = Txn().put(node, expect_revision=node.meta.revision)
            text = (
                f"{actor()} confirmed that the host of {request.name} is off; its guests start elsewhere upon that word"
            )
            await self._store.txn(record(txn, f"node/{request.name}", "NODE_OFF_CONFIRMED", text, WARNING))
            return await self._store.require(Node, request.name)

        return await upon_latest(note)

    async def _end_freeze(self, node: Node) -> Node:
        """Let the guests that wait for a node that went down in order start elsewhere; return the node."""
        if node.status.departure.policy != SHUTDOWN_POLICY_FREEZE:
            return node
        node.status.departure.policy = SHUTDOWN_POLICY_FAIL_OVER
        text = f"{actor()} said that {node.meta.name} stays off: guests that waited for it start elsewhere"
        txn = Txn().put(node, expect_revision=node.meta.revision)
        await self._store.txn(record(txn, f"node/{node.meta.name}", "FREEZE_ENDED", text, WARNING))
        return await self._store.require(Node, node.meta.name)

    async def set_device(self, request: node_pb2.SetFenceDeviceRequest) -> Node:
        """Check a device's parameters against its program's metadata, and store it."""
        device = request.device
        self._check_form(request)
        known = await self._agents.metadata(device.agent)
        if wrong := metadata.check(known, device.parameters, request.secrets):
            raise _all_wrong(wrong)

        async def store() -> Node:
            node = await self._store.require(Node, request.name)
            kept = [d for d in node.spec.fence.devices if d.name != device.name]
            if len(kept) >= MOST_DEVICES:
                raise invalid(
                    "device", f"node {request.name} has {len(kept)} devices; at most {MOST_DEVICES} are allowed."
                )
            device.secret_names[:] = sorted(request.secrets)
            del node.spec.fence.devices[:]
            node.spec.fence.devices.extend(sorted([*kept, device], key=lambda d: (d.level or 1, d.name)))
            secrets = await self._store.get(FenceSecrets, request.name)
            txn = Txn().put(node, expect_revision=node.meta.revision)
            changed = secrets or new(FenceSecrets, request.name)
            changed.devices[device.name].CopyFrom(FenceDeviceSecrets(parameters=request.secrets))
            txn.put(changed, expect_revision=secrets.meta.revision if secrets else None, expect_absent=secrets is None)
            text = f"{actor()} set the fence device {device.name} ({device.agent}, level {device.level or 1})"
            await self._store.txn(record(txn, f"node/{request.name}", "FENCE_DEVICE_SET", text, INFO))
            return await self._store.require(Node, request.name)

        return await upon_latest(store)

    async def remove_device(self, request: node_pb2.RemoveFenceDeviceRequest) -> Node:
        """Forget a device and its secrets."""

        async def store() -> Node:
            node = await self._store.require(Node, request.name)
            kept = [d for d in node.spec.fence.devices if d.name != request.device]
            if len(kept) == len(node.spec.fence.devices):
                return node
            del node.spec.fence.devices[:]
            node.spec.fence.devices.extend(kept)
            txn = Txn().put(node, expect_revision=node.meta.revision)
            if secrets := await self._store.get(FenceSecrets, request.name):
                secrets.devices.pop(request.device, None)
                txn.put(secrets, expect_revision=secrets.meta.revision)
            text = f"{actor()} removed the fence device {request.device}"
            await self._store.txn(record(txn, f"node/{request.name}", "FENCE_DEVICE_REMOVED", text, INFO))
            return await self._store.require(Node, request.name)

        return await upon_latest(store)

    async def set_after(self, request: node_pb2.SetFenceAfterRequest) -> Node:
        """Say what becomes of the power after it was cut."""
        if request.after == FENCE_AFTER_UNSPECIFIED:
            raise invalid("after", "is missing: FENCE_AFTER_REBOOT or FENCE_AFTER_OFF.")

        def change(node: Node) -> Node:
            node.spec.fence.after = request.after
            return node

        return await self._store.update(Node, request.name, change)

    async def test(self, request: node_pb2.TestFenceRequest) -> node_pb2.TestFenceResponse:
        """Ask devices for the state of the power, all at once."""
        node = await self._store.require(Node, request.name)
        secrets = await self._store.get(FenceSecrets, request.name)
        devices = devices_with_secrets(node, secrets)
        if not devices:
            raise precondition(
                "NO_FENCE_DEVICES",
                f"node {request.name} has no fence devices.",
                remedy=f"`gugus node fence-device set {request.name} ...` adds one; see docs/fencing.md.",
            )
        chosen = [device for device in devices if request.device in ("", device.name)]
        if not chosen:
            names = ", ".join(device.name for device in devices)
            raise not_found("fence device", request.device, remedy=f"Node {request.name} has {names}.")
        found = await asyncio.gather(*(self._test(node, device) for device in chosen))
        return node_pb2.TestFenceResponse(devices=found, asked_from=self._host)

    async def _test(self, node: Node, device: Device) -> node_pb2.FenceTest:
        began = time.monotonic()
        outcome, words = await self._agents.act(device, Action.STATUS)
        level = next((d.level or 1 for d in node.spec.fence.devices if d.name == device.name), 1)
        answer = node_pb2.FenceTest(device=device.name, level=level, took_ms=int((time.monotonic() - began) * 1000))
        if outcome is Outcome.FAILED:
            answer.problem = words
        else:
            answer.power = outcome.value
            if outcome is Outcome.IS_OFF and self._heard(node.meta.name):
                answer.problem = f'it says "off", but node {node.meta.name} is heard: it switches another host'
        answer.ok = not answer.problem
        return answer

    async def _fenceable(self, name: str) -> Node:
        node = await self._store.require(Node, name)
        if node.status.former:
            raise precondition(
                "NODE_MAY_BE_ON",
                f"node {name} is from before the recovery of the cluster, and no lease of it is ours to end.",
                remedy=f"Join it anew, or make sure that it is off for good and `gugus node remove {name} --off`.",
            )
        if node.status.state == NODE_STATE_JOINING:
            raise precondition(
                "NODE_NEVER_HEARD",
                f"node {name} was never heard of, so nothing runs there.",
                remedy="It can be removed.",
            )
        return node

    def _refuse_alive(self, node: Node) -> None:
        name = node.meta.name
        if self._heard(name):
            raise precondition(
                "NODE_IS_HEARD",
                f"node {name} is being heard: it is not off.",
                remedy=f"`gugus node fence {name}` ends what runs there, and cuts its power if it has fence devices.",
            )
        if node.status.state == NODE_STATE_ONLINE:
            raise precondition(
                "NODE_ONLINE",
                f"node {name} is not even suspected yet.",
                remedy=f"Wait {SUSPECT_AFTER_NS // 10**9} s without its heartbeats, and say it again.",
            )

    def _heard(self, name: str) -> bool:
        heard_ns = self._context.beats.of(name).heard_ns
        return heard_ns is not None and self._context.acting.now_ns() - heard_ns < SUSPECT_AFTER_NS

    def _check_form(self, request: node_pb2.SetFenceDeviceRequest) -> None:
        device, wrong = request.device, []
        if text := validate.name(device.name):
            wrong.append(Violation("device.name", text))
        if device.level > MOST_LEVEL:
            wrong.append(Violation("device.level", f"is {device.level}; 1 to {MOST_LEVEL} are levels"))
        if device.timeout_s > MOST_TIMEOUT_S:
            wrong.append(Violation("device.timeout_s", f"is {device.timeout_s}; at most {MOST_TIMEOUT_S} are allowed"))
        if wrong:
            raise _all_wrong(wrong)


def _all_wrong(wrong: list[Violation]) -> GugusError:
    words = "; ".join(f"{violation.field} {violation.message}" for violation in wrong)
    return GugusError(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", f"{words}.", field=wrong[0].field, violations=wrong
    )
