"""One of the two clusters that a guest moves between, and what is done to it on the way."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from gugus.cluster.v1.guest_pb2 import GuestSpec
from gugus.cluster.v1.pool_pb2 import ExportVolumeRequest
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import ENDED, check

Bytes = Callable[[int, int], None]
"""Called with the bytes done and in all."""

EXPORT, UPLOAD = "export-volume", "upload-image"
"""Kinds of tasks."""


class Talk(Protocol):
    """Tells people how far it is."""

    def say(self, text: str) -> None:
        """Say a sentence."""

    def task(self, task: Task) -> None:
        """Show a change of a task."""

    def bytes(self, words: str) -> AbstractContextManager[Bytes]:
        """Show how far a file is on its way."""


class Side:
    """A cluster, who it is, and whom to tell how far its tasks are."""

    def __init__(self, gugus: Gugus, cluster_id: str, name: str, talk: Talk) -> None:
        self.gugus, self.cluster_id, self.name = gugus, cluster_id, name
        self._talk = talk

    @property
    def ca_pem(self) -> bytes:
        """Certificate of the cluster's authority."""
        return self.gugus.ca_pem

    async def done(self, task: Task) -> Task:
        """Return a task when it has succeeded. Raises GugusError."""
        return check(await self.gugus.tasks.wait(task, self._talk.task))

    async def label(self, name: str, changes: Mapping[str, str | None]) -> None:
        """Set labels of a guest, or take them away (None). Raises GugusError."""
        guest = await self.gugus.guests.get(name)
        labels = {key: value for key, value in guest.meta.labels.items() if key not in changes}
        labels |= {key: value for key, value in changes.items() if value is not None}
        if labels == dict(guest.meta.labels):
            return
        spec = GuestSpec()
        spec.CopyFrom(guest.spec)
        spec.ClearField("power")  # it stays as it is by then
        await self.done(await self.gugus.guests.update(name, spec, spec_number=guest.spec_number, labels=labels))

    async def uploads(self, prefix: str) -> list[Task]:
        """Return the uploads that have not ended of images whose names begin so. Raises GugusError."""
        active = await self.gugus.tasks.list(active=True)
        return [task for task in active if task.kind == UPLOAD and f".{prefix}" in task.target]

    async def end_exports(self, pool: str, volume: str, prefix: str) -> None:
        """End the exports of a volume whose keys begin so: until then nobody can delete it. Raises GugusError."""
        for task in await self.gugus.tasks.list(target=f"volume/{pool}.{volume}"):
            if task.kind != EXPORT or not ExportVolumeRequest.FromString(task.request).request_id.startswith(prefix):
                continue
            if task.state not in ENDED:
                await self.gugus.tasks.cancel(task.meta.name)
                await self.gugus.tasks.wait(task)
            await self.gugus.images.end_export(task.meta.name)

    async def drop_images(self, prefix: str, but: Collection[str] = ()) -> None:
        """Delete the images whose names begin so, with a few exceptions. Raises GugusError."""
        for image in await self.gugus.images.list():
            name = image.volume.name
            if name.startswith(prefix) and name not in but and not image.meta.deleting:
                await self.done(await self.gugus.images.delete(image.pool, name))
