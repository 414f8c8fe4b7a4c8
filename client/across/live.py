"""The doing, for a machine that runs: the two nodes carry it over, each cluster settles its own end, and we tell each what the other knows.

Nothing here decides who has the guest: its source does, once. So this may end at any line, and the same command goes on from what the
two clusters say: a guest that is on its way is followed, one whose going was given up is sent anew, one that has gone is let go of here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MigrationObstacle,
    MigrationPolicy,
    MigrationPresence,
)
from gugus.cluster.v1.guest_pb2 import POWER_ON, Guest
from gugus.cluster.v1.migration_pb2 import ReceiveGuestRequest, SendGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE
from gugus.cluster.v1.task_pb2 import Task

from client.across.obstacles import Obstacle
from client.across.plan import FROM, RAN, Here, There, Wishes, moved_from, placed
from client.across.side import Side, Talk
from client.caller import new_request_id
from client.tasks import ENDED
from common.errors import GugusError, aborted, from_status

LOOK_S = 0.5
"""So often both clusters are asked how it stands."""

SEND, RECEIVE = "send-guest", "receive-guest"
"""Kinds of tasks."""

VERB = "send"
"""Reason of the lock of a guest that SEND works on."""


def is_sent(guest: Guest) -> bool:
    """Whether a guest is on its way to another cluster, or was, and that is not settled."""
    return guest.status.migration.HasField("abroad") and not guest.status.migration.abroad.arriving


def has_gone(guest: Guest, there: There) -> bool:
    """Whether a guest has gone there, so that what is left of it here is about to be deleted."""
    return arrived(guest, there) is not None and (guest.meta.deleting or guest.status.lock.reason == VERB)


def is_coming(guest: Guest) -> bool:
    """Whether a guest is to come from another cluster, and has not come."""
    return guest.status.migration.abroad.arriving


class Crossing:
    """One running guest on its way from `here` to `there`."""

    def __init__(self, here: Side, there: Side, wishes: Wishes, policy: MigrationPolicy, talk: Talk) -> None:
        self._here, self._there, self._wishes, self._talk, self._policy = here, there, wishes, talk, policy

    async def look(self, here: Here, there: There) -> list[Obstacle]:
        """Return what the two nodes have against it. Raises GugusError."""
        found, request = await self._request(here, there)
        if found:
            return found
        answer = await self._there.gugus.migrations.receive(request)
        way = answer.target.way
        told = list(answer.obstacles)
        if not told and way.port:
            again = await self._here.gugus.migrations.survey(
                self._wishes.name, reach_address=way.address, reach_port=way.port
            )
            told += [one for one in again.obstacles if one.reason == "TARGET_UNREACHABLE"]
        return _obstacles(told)

    async def begun(self, name: str) -> None:
        """Wait until a sending that an earlier run asked for is written down, or is over: before, the guest looks as if it stayed."""
        while (task := await self._task(name)) is not None and task.state not in ENDED:
            if is_sent(await self._here.gugus.guests.get(name)):
                return
            self._talk.task(task)
            await asyncio.sleep(LOOK_S)

    async def run(self, here: Here, there: There) -> Guest:
        """Begin, or go on where an earlier run ended; return the guest there. Raises GugusError when it stays here."""
        guest = here.guest
        if not is_sent(guest) and not has_gone(guest, there):
            await self._begin(here, there)
        return await self._settle(guest)

    async def part(self, guest: Guest) -> None:
        """Wait until what is left of it here is deleted, which the cluster does by itself; not for a node that is away."""
        name = guest.meta.name
        if (left := await self._ours(guest)) is None:
            return
        node = next((n for n in await self._here.gugus.nodes.list() if n.meta.name == left.status.node), None)
        if node is not None and node.status.state != NODE_STATE_ONLINE:
            self._talk.say(f"note: what {node.meta.name} has of {name} is deleted when it is back.")
            return
        self._talk.say(f"deleting {name} in {self._here.name}")
        try:
            await self._here.done(await self._here.gugus.guests.delete(name, force=True))
        except GugusError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def _begin(self, here: Here, there: There) -> None:
        """Have the other cluster expect it, then have ours send it."""
        guest = here.guest
        _, request = await self._request(here, there, with_files=True)
        request.dry_run = False
        self._talk.say(f"{self._there.name} makes ready for {request.name}")
        ready = await self._there.gugus.migrations.receive(request)
        send = SendGuestRequest(
            migration=request.migration,
            name=guest.meta.name,
            node=guest.status.node,
            generation=guest.meta.generation,
            target=ready.target,
            target_generation=ready.generation,
            cluster_id=self._there.cluster_id,
            cluster_name=self._there.name,
            policy=self._policy,
            request_id=request.migration,
        )
        self._talk.say(f"{guest.meta.name} goes from {guest.status.node} to {ready.node} of {self._there.name}")
        await self._here.gugus.migrations.send(send)

    async def _request(
        self, here: Here, there: There, *, with_files: bool = False
    ) -> tuple[list[Obstacle], ReceiveGuestRequest]:
        """Return what its node here has against it, and the request for the other cluster, as a dry run."""
        guest = here.guest
        survey = await self._here.gugus.migrations.survey(guest.meta.name, with_files=with_files)
        spec = placed(here, there, self._wishes)
        spec.power = POWER_ON
        labels = {key: value for key, value in guest.meta.labels.items() if key not in (RAN, FROM)}
        request = ReceiveGuestRequest(
            migration=new_request_id(),
            name=self._wishes.name_there,
            spec=spec,
            labels={**labels, FROM: moved_from(guest)},
            uid=guest.meta.uid,
            generation=guest.meta.generation + 1,
            survey=survey,
            cluster_id=self._here.cluster_id,
            cluster_name=self._here.name,
            ca_pem=self._here.ca_pem,
            node=guest.status.node,
            policy=self._policy,
            dry_run=True,
        )
        request.started_at.CopyFrom(guest.status.started_at)
        if guest.status.HasField("cluster_cpu"):
            request.cluster_cpu.CopyFrom(guest.status.cluster_cpu)
        return _obstacles(survey.obstacles), request

    async def _settle(self, guest: Guest) -> Guest:
        """Tell each cluster what the other knows until both have settled; return the guest there. Raises why it stays here."""
        while True:
            task = await self._task(guest.meta.name)  # first: what is read after its end is what it left
            here, there = await self._ours(guest), await self._theirs(guest)
            if here is None or not is_sent(here):
                if there is not None and not is_coming(there):
                    return there
                if task is None or task.state in ENDED or here is None:
                    await self._stays(guest, there, task)
            elif (word := _word_of(there)) is not None:
                await self._tell(self._here, here, word)
            elif there is not None and here.status.migration.abroad.given:
                await self._tell(self._there, there, MIGRATION_PRESENCE_ABSENT)
            if (task := await self._task(guest.meta.name)) is not None:
                self._talk.task(task)
            await asyncio.sleep(LOOK_S)

    async def _stays(self, guest: Guest, there: Guest | None, task: Task | None) -> None:
        """It is settled here that it stays: have the other cluster give it up. Raises why it stays."""
        if there is not None:
            await self.give_up(guest, there)
        if task is not None and task.HasField("error"):
            raise from_status(task.error)
        raise aborted("MIGRATION_INTERRUPTED", f"guest {guest.meta.name} did not get over; it stays where it was.")

    async def give_up(self, guest: Guest, there: Guest) -> None:
        """Have the other cluster remove what came: nobody here sends it, and none of its nodes will run it."""
        name = there.meta.name
        self._talk.say(f"removing what came to {self._there.name}: it stays here")
        await self._tell(self._there, there, MIGRATION_PRESENCE_RUNNING)
        while (left := await self._theirs(guest)) is not None:
            if not is_coming(left):
                what = f"guest {name} runs in {self._there.name} although it was kept here."
                raise aborted("TWO_COPIES", what, remedy="Look at both, and stop one at once.")
            await asyncio.sleep(LOOK_S)

    async def _tell(self, side: Side, guest: Guest, word: MigrationPresence.ValueType) -> None:
        """Tell a cluster what the other one knows for good; one that has settled meanwhile need not be told."""
        if guest.status.migration.abroad.told == word:
            return
        try:
            await side.gugus.migrations.tell(guest.meta.name, guest.status.migration.task, word)
        except GugusError as error:
            if error.reason not in ("MIGRATION_SETTLED", "GUEST_NOT_FOUND"):
                raise

    async def _ours(self, guest: Guest) -> Guest | None:
        return await _found(lambda: self._here.gugus.guests.get(guest.meta.name), guest)

    async def _theirs(self, guest: Guest) -> Guest | None:
        """Return the guest in the other cluster, whatever it is called there by now: its UUID stays."""
        return next((one for one in await self._there.gugus.guests.list() if one.meta.uid == guest.meta.uid), None)

    async def _task(self, name: str) -> Task | None:
        """Return the newest task that sends it."""
        tasks = await self._here.gugus.tasks.list(target=f"guest/{name}")
        return next((task for task in tasks if task.kind == SEND), None)


def coming(guest: Guest, there: There) -> Guest | None:
    """Return the guest there that an earlier run had expected, and that has not come."""
    return next((one for one in there.guests.values() if one.meta.uid == guest.meta.uid and is_coming(one)), None)


def arrived(guest: Guest, there: There) -> Guest | None:
    """Return the guest there that has come while it ran."""
    return next((one for one in there.guests.values() if one.meta.uid == guest.meta.uid and not is_coming(one)), None)


def _word_of(there: Guest | None) -> MigrationPresence.ValueType | None:
    """Return what the other cluster knows for good: it is a guest there, or will never be one; None while it is to come."""
    if there is None:
        return MIGRATION_PRESENCE_ABSENT
    return None if is_coming(there) else MIGRATION_PRESENCE_RUNNING


def _obstacles(found: Sequence[MigrationObstacle]) -> list[Obstacle]:
    return [
        Obstacle(one.subject or one.reason, f"{one.message.rstrip('.')}." + (f" {one.remedy}" if one.remedy else ""))
        for one in found
    ]


async def _found(ask: Callable[[], Awaitable[Guest]], guest: Guest) -> Guest | None:
    """Return a guest, None when it is gone, or another one has its name."""
    try:
        found = await ask()
    except GugusError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            return None
        raise
    return found if found.meta.uid == guest.meta.uid else None
