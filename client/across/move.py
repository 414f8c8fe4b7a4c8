"""The doing: a guest goes to another cluster; one that runs by way of both nodes (`client.across.live`), any other through this machine.

Until it is asked to start there, or, if it did not run, to be deleted here, the guest here is the guest, and what fails takes back what was
made there. From then on the guest there is, and running the same command again goes on with what is left to do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import grpc
from gugus.agent.v1.migration_pb2 import MigrationPolicy
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest, GuestSpec
from gugus.cluster.v1.pool_pb2 import UploadImageRequest

from client.across import scratch
from client.across.live import Crossing, coming, has_gone, is_sent
from client.across.obstacles import Obstacle, obstacles, refusal, remarks
from client.across.plan import (
    FROM,
    RAN,
    Here,
    Plan,
    There,
    Transfer,
    Wishes,
    changes,
    image_prefix,
    is_live,
    is_of,
    is_still,
    make,
    moved_from,
    ran,
    started,
)
from client.across.side import Side, Talk
from client.caller import new_request_id
from common.errors import GugusError, aborted, precondition


class Move:
    """One guest on its way from `here` to `there`."""

    def __init__(
        self,
        here: Side,
        there: Side,
        wishes: Wishes,
        folder: Path,
        talk: Talk,
        policy: MigrationPolicy | None = None,
    ) -> None:
        self._here, self._there, self._wishes, self._talk = here, there, wishes, talk
        self._crossing = Crossing(here, there, wishes, policy or MigrationPolicy(), talk)
        self._parent, self._folder = folder, folder
        self._ran = False
        self._committed = False
        """Whether the guest there may have run: it is then the guest."""

    async def look(self) -> tuple[Here, There, list[Obstacle]]:
        """Return how both clusters are, and all that is in the way. Raises GugusError."""
        here, there = self._here.gugus, self._there.gugus
        guest = await here.guests.get(self._wishes.name)
        seen = Here(
            self._here.cluster_id,
            guest,
            await here.guests.list(),
            [snapshot.name for snapshot in await here.snapshots.list(self._wishes.name)],
        )
        other = There(
            self._there.cluster_id,
            self._there.name,
            {item.meta.name: item for item in await there.guests.list()},
            {item.meta.name: item for item in await there.nodes.list()},
            {item.meta.name: item for item in await there.pools.list()},
            {item.meta.name: item for item in await there.networks.list()},
            {item.meta.name: item for item in await there.projects.list()},
            await there.images.list(),
        )
        if is_sent(guest):
            return seen, other, []  # it is on its way: what there was to look at was looked at
        found = obstacles(seen, other, self._wishes)
        if not found and is_live(guest, self._wishes):
            found = await self._crossing.look(seen, other)
        return seen, other, found

    async def run(self) -> Guest:
        """Move it, or go on where an earlier run ended; return the guest there. Raises GugusError with all obstacles, or why it failed."""
        try:
            await self._crossing.begun(self._wishes.name)
            here, there, found = await self.look()
        except GugusError as error:
            if (done := await self._gone(error)) is not None:
                return done
            raise
        sent = is_sent(here.guest) or has_gone(here.guest, there)
        if not sent and (left := coming(here.guest, there)) is not None:
            await self._crossing.give_up(here.guest, left)
            here, there, found = await self.look()
        if found and not sent:
            raise refusal(self._wishes.name, found, live=is_live(here.guest, self._wishes))
        for remark in remarks(here.guest, self._wishes):
            self._talk.say(f"note: {remark}")
        if sent or is_live(here.guest, self._wishes):
            return await self._cross(here, there)
        self._ran = here.guest.status.phase == GUEST_PHASE_RUNNING or ran(here.guest)
        other = there.guests.get(self._wishes.name_there)
        self._committed = other is not None and other.status.HasField("started_at")
        if not self._committed:
            await self._bring(here.guest)
        await asyncio.to_thread(scratch.remove, self._parent / _folder(here.guest))
        await self._part(here.guest)
        return await self._settled()

    async def _cross(self, here: Here, there: There) -> Guest:
        """Move it while it runs, or go on with that."""
        if not is_sent(here.guest):
            for note in changes(here, there, self._wishes):
                self._talk.say(f"note: {note}")
        moved = await self._crossing.run(here, there)
        await self._crossing.part(here.guest)
        return await self._settled(moved.meta.name)

    async def _bring(self, guest: Guest) -> None:
        """Do all that can be taken back, and take it back when it fails."""
        try:
            self._folder = await asyncio.to_thread(scratch.make, self._parent, _folder(guest))
            await self._shut_down(guest)
            here, there, _ = await self.look()
            plan = make(here, there, self._wishes, await self._begun(here.guest, there))
            for note in plan.notes:
                self._talk.say(f"note: {note}")
            if not await self._is_made(here.guest, there, plan):
                await self._there.drop_images(
                    image_prefix(here.guest), but={transfer.image for transfer in plan.transfers}
                )
                for transfer in plan.transfers:
                    await self._carry(transfer, here.guest.status.node)
                self._talk.say(f"making {plan.name} in {self._there.name}")
                task = await self._there.gugus.guests.create(plan.name, plan.spec, labels=plan.labels)
                await self._there.done(task)
            await self._detach(plan)
            await self._there.drop_images(image_prefix(here.guest))
            await self._unchanged(plan)
            if self._ran:
                self._talk.say(f"starting {plan.name} in {self._there.name}")
                self._committed = True
                await self._there.done(await self._there.gugus.guests.start(plan.name))
        except (GugusError, OSError, asyncio.CancelledError) as error:
            await self._take_back(guest, error)
            if isinstance(error, OSError):
                raise scratch.unusable(error) from error
            raise

    async def _shut_down(self, guest: Guest) -> None:
        """Write down that it ran, and have it shut down."""
        if guest.status.phase != GUEST_PHASE_RUNNING:
            return
        here = self._here.gugus
        await self._here.label(self._wishes.name, {RAN: started(guest)})
        self._talk.say(f"shutting {self._wishes.name} down")
        await self._here.done(await here.guests.stop(self._wishes.name, timeout_s=self._wishes.stop_timeout_s))
        if not is_still(await here.guests.get(self._wishes.name)):
            raise aborted("GUEST_NOT_STILL", f"guest {self._wishes.name} does not stay down: somebody else starts it.")

    async def _begun(self, guest: Guest, there: There) -> str:
        """Return the node there that has what an earlier run sent to a pool of its own, "" when none has."""
        prefix = image_prefix(guest)
        if nodes := [image.node for image in there.images if image.volume.name.startswith(prefix) and image.node]:
            return nodes[0]
        for task in await self._there.uploads(image_prefix(guest)):
            if node := UploadImageRequest.FromString(task.request).node:
                return node
        return ""

    async def _is_made(self, guest: Guest, there: There, plan: Plan) -> bool:
        """Return whether an earlier run has made it there, just so; what is another is removed."""
        found = there.guests.get(plan.name)
        if found is None or not is_of(guest, found):
            return False
        if found.meta.labels[FROM] != plan.moved_from or found.meta.deleting:
            self._talk.say(f"removing what an earlier run made in {self._there.name}: the guest was changed here since")
            await self._there.done(await self._there.gugus.guests.delete(plan.name, force=True))
            return False
        for task in await self._there.gugus.tasks.list(target=f"guest/{plan.name}", active=True):
            await self._there.done(task)
        return True

    async def _carry(self, transfer: Transfer, node: str) -> None:
        """Bring a disk's content there as an image: by a file of this machine, in whole pieces that are checked."""
        here, there, file = self._here.gugus, self._there.gugus, self._folder / transfer.image
        if any(i.volume.name == transfer.image for i in await there.images.list(pool=transfer.to_pool)):
            return
        if not await asyncio.to_thread(file.exists):
            self._talk.say(f"taking disk {transfer.disk} out of {self._here.name}")
            task = await here.images.export(
                transfer.pool,
                transfer.volume,
                format_=transfer.format,
                node=node,
                request_id=f"{transfer.image}-{new_request_id()}",
            )
            await self._here.done(task)
            with self._talk.bytes(f"receiving {transfer.disk}") as shown:
                await here.images.download(task.meta.name, file, progress=shown)
        self._talk.say(f"sending disk {transfer.disk} to {self._there.name}")
        with self._talk.bytes(f"sending {transfer.disk}") as shown:
            task = await there.images.upload(
                transfer.to_pool, transfer.image, file, node=transfer.to_node, progress=shown
            )
        await self._there.done(task)
        await asyncio.to_thread(file.unlink)

    async def _detach(self, plan: Plan) -> None:
        """Make every disk there stand alone, and the guest go wherever it may."""
        there = self._there.gugus
        for disk in (await there.guests.get(plan.name)).spec.disks:
            if disk.image or disk.base_volume:
                self._talk.say(f"making disk {disk.name} stand alone")
                await self._there.done(await there.clones.flatten_disk(plan.name, disk.name))
        await self._unpinned(plan.name)

    async def _unchanged(self, plan: Plan) -> None:
        """Raise GUEST_CHANGED unless the guest here is as it was when its disks were read."""
        guest = await self._here.gugus.guests.get(self._wishes.name)
        if moved_from(guest) != plan.moved_from or not is_still(guest):
            what = f"guest {self._wishes.name} was started or changed here while it was copied."
            raise aborted("GUEST_CHANGED", what, remedy="Run the same command again, and leave it alone meanwhile.")

    async def _part(self, guest: Guest) -> None:
        """Delete it here, unless it is to be kept."""
        name, here = self._wishes.name, self._here.gugus
        if self._wishes.keep:
            if RAN in (await here.guests.get(name)).meta.labels:
                await self._here.label(name, {RAN: None})
            return
        self._talk.say(f"deleting {name} in {self._here.name}")
        try:
            await self._end_exports(guest)
            await self._here.done(await here.guests.delete(name))
        except GugusError as error:
            if error.code is grpc.StatusCode.FAILED_PRECONDITION and not self._committed:
                await self._take_back(guest, error)
                raise
            runs = f"it runs in {self._there.name}" if self._ran else f"it is in {self._there.name} as well, stopped"
            what = f"guest {name} could not be deleted in {self._here.name}; {runs}. {error.message}"
            raise precondition(
                "NOT_DELETED", what, remedy="Run the same command again; do not start it here."
            ) from error

    async def _settled(self, name: str = "") -> Guest:
        """Let the guest there go wherever it may, take the mark of the move off it, and return it. name: if it is another one by now."""
        name = name or self._wishes.name_there
        await self._unpinned(name)
        await self._there.label(name, {FROM: None})
        return await self._there.gugus.guests.get(name)

    async def _unpinned(self, name: str) -> None:
        def unpin(spec: GuestSpec) -> None:
            spec.pinned_node, spec.preferred_node = "", self._wishes.node

        if (task := await self._there.gugus.guests.change(name, unpin)) is not None:
            await self._there.done(task)

    async def _gone(self, error: GugusError) -> Guest | None:
        """Return the guest there when it is gone here because an earlier run ended after it had been deleted."""
        if error.metadata.get("kind") != "guest" or error.code is not grpc.StatusCode.NOT_FOUND:
            return None
        found = next((g for g in await self._there.gugus.guests.list() if g.meta.name == self._wishes.name_there), None)
        return await self._settled() if found is not None and FROM in found.meta.labels else None

    async def _take_back(self, guest: Guest, error: BaseException) -> None:
        """Remove what was made there, and give the guest here the power that it had. Says what it could not do."""
        here, name = self._here.gugus, self._wishes.name
        self._talk.say(f"it failed; taking back what was made in {self._there.name}")
        clean = await self._tried(lambda: self._remove_there(guest), f"what was made in {self._there.name} is left")
        await self._tried(lambda: self._end_exports(guest), f"exports of its disks are left in {self._here.name}")
        await asyncio.to_thread(scratch.remove, self._parent / _folder(guest))
        if self._committed and not clean:
            self._talk.say(
                f"{self._wishes.name_there} may run in {self._there.name}, so {name} stays down here. "
                "Run the same command again when that cluster answers."
            )
            return
        self._committed = False
        if not self._ran:
            return

        async def start() -> None:
            if (await here.guests.get(name)).status.phase != GUEST_PHASE_RUNNING:
                await self._here.done(await here.guests.start(name))
            await self._here.label(name, {RAN: None})

        if await self._tried(start, f"{name} could not be started again in {self._here.name}"):
            self._talk.say(f"{name} runs in {self._here.name} again")

    async def _end_exports(self, guest: Guest) -> None:
        """End what an earlier run, or this one, was reading."""
        for disk in guest.spec.disks:
            await self._here.end_exports(disk.pool, disk.volume, image_prefix(guest))

    async def _remove_there(self, guest: Guest) -> None:
        there = self._there.gugus
        for found in await there.guests.list():
            if found.meta.name == self._wishes.name_there and is_of(guest, found):
                await self._there.done(await there.guests.delete(found.meta.name, force=True))
        for task in await self._there.uploads(image_prefix(guest)):
            with suppress(GugusError):
                await there.tasks.cancel(task.meta.name)
            await there.tasks.wait(task.meta.name)
        await self._there.drop_images(image_prefix(guest))

    async def _tried(self, work: Callable[[], Awaitable[None]], failed: str) -> bool:
        try:
            await work()
        except (GugusError, OSError) as error:
            self._talk.say(f"{failed}: {error}")
            return False
        return True


def _folder(guest: Guest) -> str:
    """Return the name of the folder that a guest's disks pass through."""
    return f"gugus-{image_prefix(guest)}disks"
