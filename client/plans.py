"""What would happen in a cluster, answered from its state."""

from gugus.cluster.v1 import plan_pb2, plan_pb2_grpc

from client.caller import Caller


class Plans:
    """Questions that change nothing."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = plan_pb2_grpc.PlanServiceStub

    async def what_if(self, request: plan_pb2.WhatIfRequest) -> plan_pb2.WhatIf:
        """Return who would go where, who would have no place, and why. Raises INVALID_ARGUMENT, NOT_FOUND."""
        return await self._caller.call(self._stub, "WhatIf", request, plan_pb2.WhatIf)
