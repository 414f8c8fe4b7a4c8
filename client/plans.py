"""What would happen in a cluster, answered from its state."""

from gugus.cluster.v1 import plan_pb2, plan_pb2_grpc
from gugus.cluster.v1.task_pb2 import Task

from client.caller import Caller, new_request_id


class Plans:
    """Questions that change nothing."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = plan_pb2_grpc.PlanServiceStub

    async def what_if(self, request: plan_pb2.WhatIfRequest) -> plan_pb2.WhatIf:
        """Return who would go where, who would have no place, and why. Raises INVALID_ARGUMENT, NOT_FOUND."""
        return await self._caller.call(self._stub, "WhatIf", request, plan_pb2.WhatIf)

    async def balance(self, max_moves: int = 0, *, request_id: str = "") -> Task:
        """Even the cluster out with few migrations (0: at most 10); the task ends when none is worth it any more."""
        request = plan_pb2.BalanceRequest(max_moves=max_moves, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "Balance", request, Task)
