"""The hosts of a cluster."""

from collections.abc import Mapping, Sequence

from gugus.cluster.v1 import node_pb2, node_pb2_grpc
from gugus.cluster.v1.task_pb2 import Task

from client.caller import Caller, new_request_id

TEST_TIMEOUT_S = 330.0
"""Longest time-out of a fence device, and a little: the manager ends it."""


class Nodes:
    """The hosts of the cluster."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = node_pb2_grpc.NodeServiceStub

    async def get(self, name: str) -> node_pb2.Node:
        """Return a node. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetNode", node_pb2.GetNodeRequest(name=name), node_pb2.Node)

    async def list(self) -> Sequence[node_pb2.Node]:
        """Return all nodes by name."""
        request = node_pb2.ListNodesRequest()
        return (await self._caller.call(self._stub, "ListNodes", request, node_pb2.ListNodesResponse)).nodes

    async def cluster_cpu(self) -> node_pb2.GetClusterCpuResponse:
        """Return the CPU that all hosts have in common, and which of them keep it from being better."""
        request = node_pb2.GetClusterCpuRequest()
        return await self._caller.call(self._stub, "GetClusterCpu", request, node_pb2.GetClusterCpuResponse)

    async def cordon(self, name: str, cordoned: bool = True) -> node_pb2.Node:
        """Stop (or allow) new guests on a node. Idempotent. Raises NOT_FOUND."""
        request = node_pb2.CordonNodeRequest(name=name, cordoned=cordoned)
        return await self._caller.call(self._stub, "CordonNode", request, node_pb2.Node)

    async def label(self, name: str, labels: Mapping[str, str], removed: Sequence[str] = ()) -> node_pb2.Node:
        """Set labels of a node, and take some away. Idempotent. Raises NOT_FOUND, INVALID_ARGUMENT."""
        request = node_pb2.LabelNodeRequest(name=name, labels=labels, removed=removed)
        return await self._caller.call(self._stub, "LabelNode", request, node_pb2.Node)

    async def drain(
        self,
        name: str,
        *,
        maintenance: bool = False,
        budget_s: float = 0.0,
        parallel: int = 0,
        force: bool = False,
        request_id: str = "",
    ) -> Task:
        """Ask for all guests to be moved off a node, and for none to come to it; the task ends when it is empty.

        maintenance: remember them, for `restore`. budget_s: after so long the task fails; 0 for no limit. force: also when the
        settings refuse to be left with too little room to survive a loss.

        Raises NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION SPARE_ROOM.
        """
        request = node_pb2.DrainNodeRequest(
            name=name,
            maintenance=maintenance,
            budget_ms=round(budget_s * 1000),
            parallel=parallel,
            force=force,
            request_id=request_id or new_request_id(),
        )
        return await self._caller.call(self._stub, "DrainNode", request, Task)

    async def restore(self, name: str, *, leave: bool = False, parallel: int = 0, request_id: str = "") -> Task:
        """End a node's maintenance; the task ends when the guests that left it are back. leave: they stay where they are."""
        request = node_pb2.RestoreNodeRequest(
            name=name, leave=leave, parallel=parallel, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "RestoreNode", request, Task)

    async def reboot(
        self,
        names: Sequence[str],
        *,
        parallel: int = 0,
        drain_budget_s: float = 0.0,
        back_within_s: float = 0.0,
        if_required: bool = False,
        anew: bool = False,
        request_id: str = "",
    ) -> Task:
        """Ask for hosts (none named: all) to be emptied, rebooted and filled again, one after another or so many at a time.

        drain_budget_s: how long emptying one may take, 0 for no limit. back_within_s: how long its reboot may take, 0 for 15 minutes.
        if_required: leave out those that need none. anew: do not go on from a task for the same hosts that was broken off.

        Raises NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION (REBOOT_UNDER_WAY).
        """
        request = node_pb2.RebootNodesRequest(
            nodes=names,
            parallel=parallel,
            drain_budget_ms=round(drain_budget_s * 1000),
            back_within_ms=round(back_within_s * 1000),
            if_required=if_required,
            anew=anew,
            request_id=request_id or new_request_id(),
        )
        return await self._caller.call(self._stub, "RebootNodes", request, Task)

    async def remove(self, name: str, *, off: bool = False) -> None:
        """Remove a node that is off for ever. Idempotent. Raises FAILED_PRECONDITION.

        off: of a node from before a recovery, that somebody has seen to it that the host is off for good: its guests start elsewhere.
        """
        request = node_pb2.RemoveNodeRequest(name=name, off=off)
        await self._caller.call(self._stub, "RemoveNode", request, node_pb2.RemoveNodeResponse)

    async def fence(
        self,
        name: str,
        *,
        after: node_pb2.FenceAfter.ValueType = node_pb2.FENCE_AFTER_UNSPECIFIED,
        request_id: str = "",
    ) -> Task:
        """Begin to fence a node: its HA guests go to others, and its power is cut when it has fence devices.

        after: what becomes of its power, if not what its spec says. Raises NOT_FOUND, FAILED_PRECONDITION.
        """
        request = node_pb2.FenceNodeRequest(name=name, after=after, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "FenceNode", request, Task)

    async def confirm_off(self, node: node_pb2.Node, typed_name: str) -> node_pb2.Node:
        """Say that a host is off, as a person has seen. If that is wrong, guests run twice, unless their pools prove who writes.

        node: as it was shown to the person. typed_name: its name, as they typed it. Raises INVALID_ARGUMENT, FAILED_PRECONDITION.
        """
        request = node_pb2.ConfirmNodeOffRequest(
            name=node.meta.name,
            typed_name=typed_name,
            boot_id=node.status.boot_id,
            lapse_number=node.status.lapse_number,
        )
        return await self._caller.call(self._stub, "ConfirmNodeOff", request, node_pb2.Node)

    async def set_fence_device(
        self, name: str, device: node_pb2.FenceDevice, secrets: Mapping[str, str] | None = None
    ) -> node_pb2.Node:
        """Add a fence device to a node, or replace the one of its name. secrets: parameters that are never shown.

        Raises INVALID_ARGUMENT with every parameter at fault, FAILED_PRECONDITION (FENCE_AGENT_MISSING).
        """
        request = node_pb2.SetFenceDeviceRequest(name=name, device=device, secrets=secrets or {})
        return await self._caller.call(self._stub, "SetFenceDevice", request, node_pb2.Node)

    async def remove_fence_device(self, name: str, device: str) -> node_pb2.Node:
        """Remove a fence device. Idempotent. Raises NOT_FOUND."""
        request = node_pb2.RemoveFenceDeviceRequest(name=name, device=device)
        return await self._caller.call(self._stub, "RemoveFenceDevice", request, node_pb2.Node)

    async def set_fence_after(self, name: str, after: node_pb2.FenceAfter.ValueType) -> node_pb2.Node:
        """Say what becomes of a node's power after its fence devices cut it. Idempotent. Raises NOT_FOUND."""
        request = node_pb2.SetFenceAfterRequest(name=name, after=after)
        return await self._caller.call(self._stub, "SetFenceAfter", request, node_pb2.Node)

    async def test_fence(self, name: str, device: str = "") -> node_pb2.TestFenceResponse:
        """Ask a node's fence devices (or one of them) for the state of its power. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = node_pb2.TestFenceRequest(name=name, device=device)
        answer = node_pb2.TestFenceResponse
        return await self._caller.call(
            self._stub, "TestFence", request, answer, timeout_s=TEST_TIMEOUT_S, attempt_s=TEST_TIMEOUT_S
        )
