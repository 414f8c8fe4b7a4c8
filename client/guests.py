"""The guests of a cluster: one typed method a call, and changes of a spec that lose nobody else's."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from gugus.agent.v1.guest_pb2 import GuestUsage
from gugus.cluster.v1 import guest_pb2, guest_pb2_grpc, task_pb2

from client.caller import Caller, new_request_id
from common.errors import GugusError

SPEC_CHANGED = "SPEC_CHANGED"

CHANGE_ATTEMPTS = 5
"""Times that a change is made anew upon a spec that somebody else changed meanwhile."""

_PAUSE_S = 0.1

Change = Callable[[guest_pb2.GuestSpec], None]

ChangeGuest = Callable[[guest_pb2.Guest], None]


class Guests:
    """Virtual machines and containers. What returns a task goes on by itself: `tasks.wait(task)` waits for its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = guest_pb2_grpc.GuestServiceStub

    async def create(
        self,
        name: str,
        spec: guest_pb2.GuestSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> task_pb2.Task:
        """Make a guest. Raises INVALID_ARGUMENT, ALREADY_EXISTS, NOT_FOUND, RESOURCE_EXHAUSTED."""
        request = guest_pb2.CreateGuestRequest(
            name=name, spec=spec, labels=labels or {}, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "CreateGuest", request, task_pb2.Task)

    async def get(self, name: str) -> guest_pb2.Guest:
        """Return a guest. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetGuest", guest_pb2.GetGuestRequest(name=name), guest_pb2.Guest)

    async def list(
        self,
        *,
        node: str = "",
        tags: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        project: str = "",
    ) -> Sequence[guest_pb2.Guest]:
        """Return guests by name: all, or those that are all of what is given. A label's empty value matches any."""
        request = guest_pb2.ListGuestsRequest(node=node, tags=tags, labels=labels or {}, project=project)
        return (await self._caller.call(self._stub, "ListGuests", request, guest_pb2.ListGuestsResponse)).guests

    async def update(
        self,
        name: str,
        spec: guest_pb2.GuestSpec,
        *,
        spec_number: int = 0,
        labels: Mapping[str, str] | None = None,
        delete_removed_disks: bool = False,
        delete_unused_volumes: Sequence[str] = (),
        request_id: str = "",
    ) -> task_pb2.Task:
        """Give a guest another spec, as a whole, and other labels (None: as they are). The task ends when its node has it.

        spec_number: only if the guest's is this still. Raises as `create`, SPEC_CHANGED, GUEST_PROTECTED.
        """
        request = guest_pb2.UpdateGuestRequest(
            name=name,
            spec=spec,
            spec_number=spec_number,
            labels=labels or {},
            set_labels=labels is not None,
            delete_removed_disks=delete_removed_disks,
            delete_unused_volumes=delete_unused_volumes,
            request_id=request_id or new_request_id(),
        )
        return await self._caller.call(self._stub, "UpdateGuest", request, task_pb2.Task)

    async def change(self, name: str, change: Change, *, delete_removed_disks: bool = False) -> task_pb2.Task | None:
        """Let `change` alter a guest's spec, and update the guest; None when nothing was altered.

        When somebody else was quicker, `change` gets the newer spec. Raises as `update`, and what `change` raises.
        """
        return await self.change_guest(
            name, lambda guest: change(guest.spec), delete_removed_disks=delete_removed_disks
        )

    async def change_guest(
        self, name: str, change: ChangeGuest, *, delete_removed_disks: bool = False
    ) -> task_pb2.Task | None:
        """Do as `change`, for a change of the spec that needs to know the guest's status, too."""
        attempt = 0
        while True:
            guest, changed = await self.get(name), guest_pb2.Guest()
            changed.CopyFrom(guest)
            change(changed)
            if changed.spec == guest.spec:
                return None
            try:
                return await self.update(
                    name, changed.spec, spec_number=guest.spec_number, delete_removed_disks=delete_removed_disks
                )
            except GugusError as error:
                attempt += 1
                if error.reason != SPEC_CHANGED or attempt == CHANGE_ATTEMPTS:
                    raise
            await asyncio.sleep(_PAUSE_S * attempt)

    async def rename(self, name: str, new_name: str, *, request_id: str = "") -> task_pb2.Task:
        """Give a stopped guest another name. Raises NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION (GUEST_RUNNING)."""
        request = guest_pb2.RenameGuestRequest(name=name, new_name=new_name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "RenameGuest", request, task_pb2.Task)

    async def start(self, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Start a guest, from where it was hibernated if it was. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = guest_pb2.StartGuestRequest(name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "StartGuest", request, task_pb2.Task)

    async def stop(
        self, name: str, *, timeout_s: float = 0, force: bool = False, request_id: str = ""
    ) -> task_pb2.Task:
        """Stop a guest: it has `timeout_s` seconds to shut down (0: its own setting) before it is killed. `force` kills at once."""
        request = guest_pb2.StopGuestRequest(
            name=name, timeout_ms=round(timeout_s * 1000), force=force, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "StopGuest", request, task_pb2.Task)

    async def reboot(self, name: str, *, timeout_s: float = 0, request_id: str = "") -> task_pb2.Task:
        """Shut a guest down and start it again; pending changes then hold. Raises FAILED_PRECONDITION (GUEST_NOT_RUNNING)."""
        request = guest_pb2.RebootGuestRequest(
            name=name, timeout_ms=round(timeout_s * 1000), request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "RebootGuest", request, task_pb2.Task)

    async def reset(self, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Press a guest's reset button. Raises FAILED_PRECONDITION (GUEST_NOT_RUNNING)."""
        request = guest_pb2.ResetGuestRequest(name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "ResetGuest", request, task_pb2.Task)

    async def suspend(self, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Hold a guest's CPUs; it stays in memory. Raises FAILED_PRECONDITION (GUEST_NOT_RUNNING)."""
        request = guest_pb2.SuspendGuestRequest(name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "SuspendGuest", request, task_pb2.Task)

    async def resume(self, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Let a held guest go on. Raises FAILED_PRECONDITION (GUEST_NOT_RUNNING)."""
        request = guest_pb2.ResumeGuestRequest(name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "ResumeGuest", request, task_pb2.Task)

    async def hibernate(self, name: str, *, pool: str = "", request_id: str = "") -> task_pb2.Task:
        """Write a guest's memory to a pool (empty: its first disk's) and end it. Raises FAILED_PRECONDITION (NOT_HIBERNATABLE)."""
        request = guest_pb2.HibernateGuestRequest(name=name, pool=pool, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "HibernateGuest", request, task_pb2.Task)

    async def delete(
        self, name: str, *, force: bool = False, keep_disks: bool = False, request_id: str = ""
    ) -> task_pb2.Task:
        """Delete a guest with its volumes; with `keep_disks` they become images. `force`: even if it runs.

        Raises NOT_FOUND, FAILED_PRECONDITION (GUEST_RUNNING, GUEST_PROTECTED).
        """
        request = guest_pb2.DeleteGuestRequest(
            name=name, force=force, keep_disks=keep_disks, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "DeleteGuest", request, task_pb2.Task)

    async def set_ha(self, name: str, ha: guest_pb2.HaSpec, *, request_id: str = "") -> guest_pb2.Guest:
        """Change what HA does with a guest. Raises INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION (POOL_NOT_SHARED)."""
        request = guest_pb2.SetHaRequest(name=name, ha=ha, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "SetHa", request, guest_pb2.Guest)

    async def usage(self, name: str) -> GuestUsage:
        """Return what a running guest has used since it started, as its node says. Raises NOT_FOUND, UNAVAILABLE."""
        request = guest_pb2.GetGuestUsageRequest(name=name)
        return await self._caller.call(self._stub, "GetGuestUsage", request, GuestUsage)

    async def explain(self, name: str) -> guest_pb2.ExplainGuestResponse:
        """Return why a guest is where it is, and where it would be placed now. Raises NOT_FOUND."""
        request = guest_pb2.ExplainGuestRequest(name=name)
        return await self._caller.call(self._stub, "ExplainGuest", request, guest_pb2.ExplainGuestResponse)

    async def console_log(self, name: str, *, max_bytes: int = 0) -> bytes:
        """Return the end of a guest's console log, at most `max_bytes` (0: 64 KiB). Raises NOT_FOUND, UNAVAILABLE."""
        request = guest_pb2.GetConsoleLogRequest(name=name, max_bytes=max_bytes)
        return (await self._caller.call(self._stub, "GetConsoleLog", request, guest_pb2.GetConsoleLogResponse)).data
