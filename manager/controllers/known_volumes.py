"""Which volumes the cluster knows, and where: of guests, images, hibernations, and of tasks under way. Pure, upon the state.

What is neither here nor read by what is here is an orphan (`manager.services.pool_check`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest
from gugus.cluster.v1.pool_pb2 import Image
from gugus.cluster.v1.task_pb2 import Task

from manager.tasks import ENDED


@dataclass(frozen=True, slots=True)
class Known:
    """A volume that somebody owns. nodes: where it may lie; none means anywhere. due: it must be there."""

    pool: str
    volume: str
    owner: str
    nodes: frozenset[str] = frozenset()
    due: bool = False


def of_guests(guests: Iterable[Guest], busy: frozenset[str]) -> Iterator[Known]:
    """Yield the volumes of guests. busy: guests with a task under way, whose volumes may be anywhere meanwhile."""
    for guest in guests:
        name, status = guest.meta.name, guest.status
        moving = name in busy or status.HasField("migration") or not status.node
        nodes = frozenset() if moving else frozenset({status.node})
        fresh = set(status.new_volumes)
        for disk in guest.spec.disks:
            due = not moving and status.volumes_ready and not guest.meta.deleting and disk.volume not in fresh
            yield from _of_disk(disk, name, nodes, due=due)
        for disk in (*status.leaving_disks, *status.unused_disks):
            yield from _of_disk(disk, name, nodes, due=False)
        if status.hibernation_volume:
            yield Known(status.hibernation_pool, status.hibernation_volume, f"guest/{name}", nodes, due=not moving)


def of_images(images: Iterable[Image]) -> Iterator[Known]:
    """Yield the volumes of images."""
    for image in images:
        nodes = frozenset({image.node}) if image.node else frozenset()
        yield Known(image.pool, image.volume.name, f"image/{image.meta.name}", nodes, due=not image.meta.deleting)


def busy_guests(tasks: Iterable[Task]) -> frozenset[str]:
    """Return the guests that a task is about which has not ended."""
    return frozenset(
        task.target.removeprefix("guest/")
        for task in tasks
        if task.state not in ENDED and task.target.startswith("guest/")
    )


def mentioned(volume: str, tasks: Iterable[Task]) -> str:
    """Return the task under way that may be making a volume: one in whose request, notes or target its name stands; "" if none."""
    word = volume.encode()
    for task in tasks:
        if task.state not in ENDED and (
            word in task.request or word in task.step_notes or task.target.endswith((f"/{volume}", f".{volume}"))
        ):
            return f"task/{task.meta.name}"
    return ""


def _of_disk(disk: DiskSpec, guest: str, nodes: frozenset[str], *, due: bool) -> Iterator[Known]:
    if disk.volume:
        yield Known(disk.pool, disk.volume, f"guest/{guest}", nodes, due=due)
    if disk.base_volume:
        yield Known(disk.pool, disk.base_volume, f"guest/{guest}", nodes)
