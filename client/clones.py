"""Clones, templates and work on single disks in the SDK: one typed method a call."""

from gugus.cluster.v1 import clone_pb2, clone_pb2_grpc, task_pb2

from client.caller import Caller, new_request_id


class Clones:
    """Guests made from guests. What returns a task goes on by itself: `tasks.wait(task)` waits for its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = clone_pb2_grpc.CloneServiceStub

    async def clone(self, request: clone_pb2.CloneGuestRequest) -> task_pb2.Task:
        """Make a guest from another. Raises INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION."""
        request.request_id = request.request_id or new_request_id()
        return await self._caller.call(self._stub, "CloneGuest", request, task_pb2.Task)

    async def template(self, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Make a stopped guest a template. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = clone_pb2.ConvertToTemplateRequest(name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "ConvertToTemplate", request, task_pb2.Task)

    async def move_disk(
        self, guest: str, disk: str, pool: str, *, bytes_per_s: int = 0, request_id: str = ""
    ) -> task_pb2.Task:
        """Move a disk to another pool. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = clone_pb2.MoveDiskRequest(
            guest=guest, disk=disk, pool=pool, bytes_per_s=bytes_per_s, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "MoveDisk", request, task_pb2.Task)

    async def flatten_disk(self, guest: str, disk: str, *, bytes_per_s: int = 0, request_id: str = "") -> task_pb2.Task:
        """Make a linked disk stand alone. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = clone_pb2.FlattenDiskRequest(
            guest=guest, disk=disk, bytes_per_s=bytes_per_s, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "FlattenDisk", request, task_pb2.Task)
