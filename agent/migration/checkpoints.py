"""Containers that go over as they run: their images on both hosts, and what becomes of one that cannot be restored.

The hand-over is that of every migration: between the dump at the source and the restore at the target nothing of the
container runs, and it is given away once. One that was written down and not given goes on at the source, from its images.
"""

import shutil
from functools import partial
from pathlib import Path

from gugus.agent.v1 import guest_pb2, migration_pb2

from agent.compute.checkpoints import Checkpoints
from agent.migration.host import Here
from common.errors import GugusError, precondition
from common.logs import get_logger

STREAM = "checkpoint"
"""The stream that carries the images."""

_log = get_logger("migration.checkpoints")


def images_of(folder: Path, migration: str, end: str) -> Path:
    """Return the folder of a migration's images at one end, "leaving" or "arriving"."""
    return folder / f"{migration}.{end}-images"


def ability(here: Here, spec: guest_pb2.GuestSpec) -> Checkpoints | None:
    """Return what can write a guest down and restore it, if its driver has that. Raises HYPERVISOR_MISSING."""
    found: Checkpoints | None = getattr(here.hypervisor(spec), "checkpoints", None)
    return found


def required(here: Here, spec: guest_pb2.GuestSpec) -> Checkpoints:
    """Return what can write a guest down and restore it. Raises NOT_LIVE."""
    if (found := ability(here, spec)) is None:
        raise precondition("NOT_LIVE", f'guest "{spec.name}" cannot be written down.', subject=f"guest/{spec.name}")
    return found


async def dump(here: Here, spec: guest_pb2.GuestSpec, images: Path) -> None:
    """Write a guest down and end it, as its turn. Raises CHECKPOINT_FAILED; then it runs on."""
    work = partial(required(here, spec).dump, spec.name, images)
    try:
        await here.turns.run(f"guest/{spec.name}", here.state.epoch, work)
    finally:
        await here.observer.look(spec.name, here.hypervisor(spec))


async def back(here: Here, spec: guest_pb2.GuestSpec, generation: int, images: Path) -> None:
    """Have a guest that was not given away go on here. Never raises: what fails is left to the manager, which starts it."""

    async def restore(name: str, generation: int) -> None:
        await required(here, spec).restore(name, generation, images)

    try:
        await here.guests.start(here.state.epoch, spec.name, generation, restore)
        _log.info("guest goes on here: it did not get over", guest=spec.name)
    except GugusError as error:
        _log.warning("guest does not go on from where it was", guest=spec.name, error=str(error))


async def restore_or_start(here: Here, spec: guest_pb2.GuestSpec, generation: int, images: Path) -> str:
    """Have a guest go on here, or start it anew when that fails; return why it was started anew, "" when it was not."""
    try:
        await required(here, spec).restore(spec.name, generation, images)
    except GugusError as error:
        _log.warning("guest is started anew", guest=spec.name, error=str(error))
        await here.hypervisor(spec).start(spec.name, generation)
        return error.message
    return ""


async def survey(here: Here, spec: guest_pb2.GuestSpec) -> migration_pb2.ContainerSurvey | None:
    """Return what a target has to know of a running guest to restore it; None for guests that are no containers."""
    able = ability(here, spec)
    return await able.survey(spec.name) if able is not None else None


def remove(images: Path) -> None:
    """Remove images. Blocks."""
    shutil.rmtree(images, ignore_errors=True)
