"""Carries a plan out: projects, networks and pools one after another, then guests many at a time, then deletions."""

import asyncio
from collections.abc import Sequence

from gugus.cluster.v1.task_pb2 import Task

from client.apply.documents import Document
from client.apply.plan import (
    GUEST,
    NETWORK,
    POOL,
    PROJECT,
    Action,
    Present,
    Step,
    wanted_labels,
    wanted_spec,
)
from client.guests import CHANGE_ATTEMPTS, SPEC_CHANGED
from client.sdk import Gugus
from common.errors import GugusError, precondition


async def present(gugus: Gugus, kinds: set[str]) -> Present:
    """Ask for what is there, of these kinds. Raises GugusError."""
    return Present(
        {guest.meta.name: guest for guest in await gugus.guests.list()} if GUEST in kinds else {},
        {pool.meta.name: pool for pool in await gugus.pools.list()} if POOL in kinds else {},
        {network.meta.name: network for network in await gugus.networks.list()} if NETWORK in kinds else {},
        {project.meta.name: project for project in await gugus.projects.list()} if PROJECT in kinds else {},
    )


def groups(actions: Sequence[Action]) -> list[list[str]]:
    """Return the targets of actions in groups that are carried out one after another, each at once."""
    order = (PROJECT, NETWORK, POOL, GUEST)
    made = [[a.target for a in actions if a.kind == kind and a.step is not Step.DELETE] for kind in order]
    return [group for group in [*made, [a.target for a in actions if a.step is Step.DELETE]] if group]


async def begin(gugus: Gugus, action: Action, *, exact: bool, delete_removed_disks: bool) -> Task | None:
    """Begin one action: the task that follows, or None when it is done. Raises GugusError."""
    document = action.document
    if action.step is Step.NOTHING:
        return None
    if document is None:
        return await gugus.guests.delete(action.name, force=True)
    if action.step is Step.CREATE:
        return await _create(gugus, document)
    if document.kind == GUEST:
        return await _update_guest(gugus, document, exact, delete_removed_disks)
    if document.kind == PROJECT:
        project = await gugus.projects.get(document.name)
        await gugus.projects.update(document.name, wanted_spec(document, project), revision=project.meta.revision)
        return None
    changed = ", ".join(difference.path for difference in action.differences)
    raise precondition(
        "CANNOT_CHANGE",
        f"{action.target} cannot be changed in place ({changed}).",
        remedy="Move its guests elsewhere, delete it and apply the file again; or change the file.",
    )


async def _create(gugus: Gugus, document: Document) -> Task | None:
    spec = wanted_spec(document, None)
    if document.kind == GUEST:
        return await gugus.guests.create(document.name, spec, labels=wanted_labels(document, None))
    if document.kind == POOL:
        await gugus.pools.create(spec, nodes=document.nodes or ())
    elif document.kind == NETWORK:
        await gugus.networks.create(spec, nodes=document.nodes or ())
    else:
        await gugus.projects.create(document.name, spec)
    return None


async def _update_guest(gugus: Gugus, document: Document, exact: bool, delete_removed_disks: bool) -> Task | None:
    """Update a guest to what its document names, upon whatever it is by now."""
    attempt = 0
    while True:
        guest = await gugus.guests.get(document.name)
        spec, labels = wanted_spec(document, guest, exact=exact), wanted_labels(document, guest)
        if spec == guest.spec and labels == dict(guest.meta.labels):
            return None
        try:
            return await gugus.guests.update(
                document.name,
                spec,
                spec_number=guest.spec_number,
                labels=labels,
                delete_removed_disks=delete_removed_disks,
            )
        except GugusError as error:
            attempt += 1
            if error.reason != SPEC_CHANGED or attempt == CHANGE_ATTEMPTS:
                raise
        await asyncio.sleep(0.1 * attempt)
