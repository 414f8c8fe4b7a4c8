"""The source of migrations: sends a guest off, and lets go of it when the target has all of it.

Invariant: whether a guest is kept or given away is decided once, in the event loop: after `keep` it is never given, and
once giving has begun `keep` answers that it is gone, when it is. An agent that was restarted meanwhile knows from a file
that a guest was leaving; of one that does not run it then says ABSENT: it may have been given, and it will not run here.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gugus.agent.v1 import guest_pb2, migration_pb2, volume_pb2
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_MODE_LIVE,
    MIGRATION_MODE_OFFLINE,
    MIGRATION_MODE_RESTART,
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_STOPPED,
    MigrationReport,
)

from agent.compute.hypervisor import Progress
from agent.compute.migration import Parcel
from agent.migration import carriers, checkpoints
from agent.migration.departure import Departure, way_of
from agent.migration.host import ANSWER_TIMEOUT_S, FORMATS, Bridge, Here, checked_id, quietly
from agent.migration.pump import Broken
from agent.migration.target import LOOK_S, PEER_TIMEOUT_S
from agent.migration.wire import Channel
from common.errors import GugusError, precondition, unavailable
from common.files import remove_durably, write_atomic
from common.logs import get_logger
from common.waiting import happened

FILE_MODE = 0o600
DEFAULT_SHUTDOWN_MS = 60_000
POST_COPY_LOOK_S = 0.2
STOPPED_LOOKS, STOPPED_LOOK_S = 500, 0.02
RETURN_TIMEOUT_S = 30.0
"""How long libvirt may take to notice that the domain it migrates is no more, while other changes of the guest wait here."""

_log = get_logger("migration.source")


@dataclass(eq=False)
class Leaving:
    """A guest that leaves. `kept` and `given`: see the module. `arrived`: the target said that it has it, for good."""

    request: migration_pb2.MigrateGuestRequest
    spec: guest_pb2.GuestSpec
    departure: Departure
    kept: bool = False
    given: bool = False
    arrived: bool = False
    dumped: bool = False
    """Its processes are in files, and it does not run."""
    restarted: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    stopped_s: float = 0.0
    downtime_ms: int = 0
    runner: "asyncio.Task[object] | None" = None


class Source:
    """Guests that leave this host. Used in the event loop; conversations with targets are in threads."""

    def __init__(self, here: Here, folder: Path) -> None:
        self._here, self._folder = here, folder
        self._leaving: dict[str, Leaving] = {}
        self._returning: set[asyncio.Task[None]] = set()

    async def migrate(self, request: migration_pb2.MigrateGuestRequest, progress: Progress) -> MigrationReport:
        """Send a guest off; returns when the target has it, for good: what is left here is to be removed.

        Can be cancelled (asyncio): then it stays, unless it is over there.
        """
        spec = self._spec(request.name)
        self._check_grant(spec, request.grant.generation, started=request.mode != MIGRATION_MODE_OFFLINE)
        road = way_of(checked_id(request.migration), request.target.way)
        leaving = Leaving(request, spec, Departure(self._here.credentials, road))
        leaving.runner = asyncio.current_task()
        await asyncio.to_thread(write_atomic, self._note(request.migration), b"", FILE_MODE)
        self._leaving[request.migration] = leaving
        self._bridge = Bridge()
        try:
            channel = await asyncio.to_thread(leaving.departure.open)
            try:
                if request.mode == MIGRATION_MODE_LIVE:
                    await self._live(leaving, channel, progress)
                else:
                    await self._copied(leaving, channel, progress)
            finally:
                channel.close()
        except Broken as error:
            raise _lost(leaving, str(error)) from error
        finally:
            leaving.departure.close()
            if leaving.dumped and not leaving.given:
                images = self._images(request.migration)
                await asyncio.shield(checkpoints.back(self._here, spec, request.grant.generation, images))
        if not leaving.arrived:
            raise _lost(leaving, "the target does not say that it runs")
        return self._told(leaving, MIGRATION_PRESENCE_ABSENT)

    async def keep(self, epoch: int, request: migration_pb2.KeepGuestRequest) -> MigrationReport:
        """Keep a guest, under a new generation; or tell that it is gone."""
        leaving = self._leaving.get(request.migration)
        if leaving is not None and leaving.given:
            if not leaving.gone.is_set():  # under way, or it failed: it is given all the same
                await self._give_up(leaving)
            return self._told(leaving, MIGRATION_PRESENCE_ABSENT)
        if leaving is not None:
            leaving.kept = True
            if leaving.runner is not None and not leaving.runner.done():
                leaving.runner.cancel()
                await asyncio.wait({leaving.runner}, timeout=ANSWER_TIMEOUT_S)
        spec = self._spec(request.name)
        raise_it = partial(self._here.state.raise_generation, spec.uid, request.grant.generation)
        await self._here.turns.run(f"guest/{request.name}", epoch, lambda: self._here.state.run(raise_it))
        driver = getattr(self._here.hypervisor(spec), "migration", None)
        if driver is not None and (leaving is None or leaving.runner is None or leaving.runner.done()):
            await driver.bury(request.name)
            if not await driver.lives(request.name):  # it was halted by an agent that had no time to end it
                await driver.end(request.name)
        return await self.report(request.migration, request.name)

    async def report(self, migration: str, name: str) -> MigrationReport:
        """Tell what there is of a guest that leaves."""
        leaving = self._leaving.get(migration)
        if leaving is not None and leaving.given and leaving.gone.is_set():
            return self._told(leaving, MIGRATION_PRESENCE_ABSENT)
        spec = self._here.state.guests.get(name)
        uncertain = leaving is None and await asyncio.to_thread(self._note(migration).exists)
        uncertain |= leaving is not None and leaving.request.policy.post_copy  # libvirt hands over by itself
        if spec is None:
            return MigrationReport(presence=MIGRATION_PRESENCE_ABSENT, reason="it is not defined here")
        hypervisor = self._here.hypervisor(spec)
        driver = getattr(hypervisor, "migration", None)
        runs = await self._here.runs(spec)
        if runs and driver is not None and not await driver.lives(name):
            runs = False  # it was given away before this agent was started
        at_rest = MIGRATION_PRESENCE_ABSENT if uncertain else MIGRATION_PRESENCE_STOPPED
        return MigrationReport(presence=MIGRATION_PRESENCE_RUNNING if runs else at_rest)

    async def forget(self, migration: str) -> None:
        """Forget a migration that is settled."""
        self._leaving.pop(migration, None)
        await asyncio.to_thread(checkpoints.remove, self._images(checked_id(migration)))
        await asyncio.to_thread(remove_durably, self._note(migration))

    def knows(self, migration: str) -> bool:
        """Whether a guest leaves, or left, by this migration."""
        return migration in self._leaving

    # Live

    async def _live(self, leaving: Leaving, channel: Channel, progress: Progress) -> None:
        request = leaving.request
        driver = self._here.migration(leaving.spec)
        parcel = Parcel(
            request.name,
            request.target_grant.generation,
            dict(request.target.places),
            dict(request.target.bridges),
            request.policy,
            [volume.disk for volume in request.volumes],
            request.target.spec if request.target.way.HasField("foreign") else None,
        )
        send = asyncio.create_task(driver.send(parcel, leaving.departure.door, progress))
        talk = asyncio.create_task(asyncio.to_thread(self._talk, leaving, channel, send))
        ahead = asyncio.create_task(self._prepare_end(leaving))
        try:
            await asyncio.wait({talk, send}, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.given and not send.done():
                send.cancel()  # the target is gone, or was told that the guest stays
                await asyncio.wait({send})
            elif not leaving.given and send.exception() is None:  # post-copy: libvirt has handed it over itself
                leaving.given = True
                leaving.gone.set()
            if leaving.given:
                await talk
                return
            if request.policy.post_copy and await driver.bury(request.name):
                raise _torn(request.name)
            await self._explain(leaving, talk, send)
        except asyncio.CancelledError:
            if leaving.given:
                await asyncio.wait({talk})
                return
            leaving.kept = not request.policy.post_copy
            send.cancel()
            await asyncio.wait({send})
            if request.policy.post_copy and not send.cancelled() and send.exception() is None:  # it was over there
                leaving.given = True
                leaving.gone.set()
                await asyncio.wait({talk})
                return
            leaving.kept = True
            raise
        finally:
            channel.close()
            ahead.cancel()
            await quietly(talk)
            await quietly(ahead)
            if leaving.gone.is_set():
                self._look_when_returned(leaving, send)
            else:
                await self._here.observer.look(request.name, self._here.hypervisor(leaving.spec))

    def _look_when_returned(self, leaving: Leaving, send: "asyncio.Task[None]") -> None:
        """Keep the guest's turn here until libvirt's call has returned, which nobody else waits for.

        Until then libvirt has a domain of that name: neither a removal nor an arrival of the same guest would get by. An
        agent that is killed meanwhile changes nothing: the call goes on in libvirtd.
        """
        name = leaving.spec.name

        async def wait() -> None:
            await asyncio.wait({send}, timeout=RETURN_TIMEOUT_S)
            await self._here.observer.look(name, self._here.hypervisor(leaving.spec))

        async def take_turn() -> None:
            try:
                await self._here.turns.run(f"guest/{name}", self._here.state.epoch, wait)
            except GugusError as error:
                _log.info("a guest that left was not looked at", guest=name, reason=str(error))

        send.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # what it says is not asked for any more
        turn = asyncio.create_task(take_turn())
        self._returning.add(turn)
        turn.add_done_callback(self._returning.discard)

    async def _explain(self, leaving: Leaving, talk: "asyncio.Task[None]", send: "asyncio.Task[None]") -> None:
        """Raise why a guest did not get over: what its sending says, else what the conversation says."""
        if not send.cancelled() and (error := send.exception()) is not None:
            raise error
        await asyncio.wait({talk}, timeout=LOOK_S)
        why = talk.exception() if talk.done() else None
        raise _lost(leaving, str(why or "the connection ended"))

    def _talk(self, leaving: Leaving, channel: Channel, send: "asyncio.Task[None]") -> None:
        """Listen to the target, in a thread: when it has all of the guest, end the guest here."""
        while True:
            if not channel.receive(PEER_TIMEOUT_S).get("complete"):
                continue
            while leaving.request.policy.post_copy and not send.done():  # it runs there, and fetches memory from here
                channel.send(waits=True)
                time.sleep(POST_COPY_LOOK_S)
            if leaving.request.policy.post_copy and (send.cancelled() or send.exception() is not None):
                raise Broken("post-copy failed")
            self._let_go(leaving, channel, partial(self._end, leaving))
            return

    def _let_go(self, leaving: Leaving, channel: Channel, end: Callable[[], object]) -> None:
        """Give the guest away, unless it is kept: stop it here for good, then tell the target, and hear that it runs."""
        if not self._bridge.call(self._decide(leaving)):
            channel.send(kept=True)
            raise Broken("the guest is kept")
        end()
        channel.send(gone=True)
        told_s = time.monotonic()
        try:
            answer = channel.receive(ANSWER_TIMEOUT_S)
        finally:
            self._take_down(leaving)
        if not answer.get("runs"):
            raise Broken("the target does not say that it runs")
        leaving.arrived, leaving.restarted = True, str(answer.get("restarted", ""))
        if leaving.request.policy.post_copy:
            return  # it ran there long before: how long it stood still is QEMU's to know
        stopped_s = leaving.stopped_s or told_s
        leaving.downtime_ms = round((told_s - stopped_s) * 1000) + int(answer.get("took_ms", 0))

    def _take_down(self, leaving: Leaving) -> None:
        """Kill what was halted. Nobody waits for it, and the next one who tidies up here does it again."""
        if leaving.request.mode != MIGRATION_MODE_LIVE:
            return
        try:
            self._bridge.call(self._here.migration(leaving.spec).end(leaving.spec.name))
        except (GugusError, TimeoutError, RuntimeError) as error:
            _log.warning("a guest that is halted was not ended", guest=leaving.spec.name, reason=str(error))

    async def _decide(self, leaving: Leaving) -> bool:
        if leaving.kept:
            return False
        leaving.given = True
        return True

    def _end(self, leaving: Leaving) -> None:
        leaving.stopped_s = self._here.migration(leaving.spec).stopped_s(leaving.spec.name)
        self._bridge.call(self._end_live(leaving))
        ended_ms = round((time.monotonic() - leaving.stopped_s) * 1000)
        _log.info("guest ended here, to go on there", guest=leaving.spec.name, stopped_for_ms=ended_ms)

    async def _end_live(self, leaving: Leaving) -> None:
        await self._let_none_start(leaving, self._here.migration(leaving.spec).halt(leaving.spec.name))

    async def _give_up(self, leaving: Leaving) -> None:
        """End a guest that was given away, if it has not ended yet."""
        if leaving.request.mode == MIGRATION_MODE_LIVE:
            await self._end_live(leaving)
            await self._here.migration(leaving.spec).end(leaving.spec.name)
        else:
            await self._let_none_start(leaving, self._refuse_running(leaving))

    async def _prepare_end(self, leaving: Leaving) -> None:
        """While the last of a guest is sent, do what its end would wait for: it stands still until then."""
        await self._here.migration(leaving.spec).standstill(leaving.spec.name)
        await self._here.turns.run(
            f"guest/{leaving.spec.name}", self._here.state.epoch, partial(self._refuse_starts, leaving)
        )

    async def _let_none_start(self, leaving: Leaving, end: Awaitable[object]) -> None:
        """End the guest, and see to it that no start which was asked for before, and comes late, runs it here again.

        In the guest's turn, so that none is in the middle; the higher generation is durable before the target hears of it.
        """

        async def change() -> None:
            await asyncio.gather(end, self._refuse_starts(leaving))
            leaving.gone.set()

        await self._here.turns.run(f"guest/{leaving.spec.name}", self._here.state.epoch, change)

    async def _refuse_starts(self, leaving: Leaving) -> None:
        """Make the target's generation durable here."""
        state, uid, generation = self._here.state, leaving.spec.uid, leaving.request.target_grant.generation
        if state.generation(uid) < generation:
            await state.run(state.raise_generation, uid, generation)

    # By copies

    async def _copied(self, leaving: Leaving, channel: Channel, progress: Progress) -> None:
        """Copy, end the guest, copy what changed, and have the target start it."""
        over = asyncio.Event()
        beat = asyncio.create_task(self._beat(channel, over))
        try:
            with tempfile.TemporaryDirectory(prefix="gugus-doors-") as folder:
                for volume in leaving.request.volumes:
                    leaving.departure.door(Path(folder) / volume.disk, f"volume/{volume.disk}", (0, 0))
                if leaving.request.mode == MIGRATION_MODE_RESTART:
                    await self._copy(leaving, Path(folder), progress, (0, 90), running=True)
                    await self._stop(leaving)
                    await self._copy(leaving, Path(folder), progress, (90, 100), running=False)
                elif leaving.request.mode == MIGRATION_MODE_CHECKPOINT:
                    await self._checkpointed(leaving, Path(folder), progress)
                else:
                    await self._refuse_running(leaving)
                    await self._copy(leaving, Path(folder), progress, (0, 100), running=False)
        finally:
            over.set()
            await asyncio.wait({beat})  # not cancelled: a message must not be cut in two by the next one
        giving = asyncio.create_task(
            asyncio.to_thread(self._let_go, leaving, channel, partial(self._end_copied, leaving))
        )
        try:
            await asyncio.shield(giving)
        except asyncio.CancelledError:
            if not leaving.given:
                leaving.kept = True
                raise
            await asyncio.wait({giving})

    async def _checkpointed(self, leaving: Leaving, doors: Path, progress: Progress) -> None:
        """Copy while it runs, write its processes down and end them, and send them with what changed."""
        images = self._images(leaving.request.migration)
        await self._copy(leaving, doors, progress, (0, 80), running=True)
        leaving.stopped_s = time.monotonic()
        await checkpoints.dump(self._here, leaving.spec, images)
        leaving.dumped = True
        await self._copy(leaving, doors, progress, (80, 90), running=False)
        leaving.departure.door(doors / checkpoints.STREAM, checkpoints.STREAM, (0, 0))
        tell = partial(_part, progress, 90)
        await carriers.send_tree(images, doors / checkpoints.STREAM, tell, running=False)

    def _end_copied(self, leaving: Leaving) -> None:
        self._bridge.call(self._let_none_start(leaving, self._refuse_running(leaving)))

    async def _copy(
        self, leaving: Leaving, doors: Path, progress: Progress, share: tuple[int, int], *, running: bool
    ) -> None:
        volumes = leaving.request.volumes
        for index, volume in enumerate(volumes):
            low, span = share[0], (share[1] - share[0]) / len(volumes)

            def tell(percent: int, words: str, disk: str = volume.disk, at: float = low + span * index) -> None:
                progress(round(at + percent * span / 100), f"{words} {disk}")  # noqa: B023

            path = await self._here.pools.get(volume.pool).path_of(volume.volume)
            door = doors / volume.disk
            if volume.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
                await carriers.send_tree(path, door, tell, running=running)
            elif not running:
                await carriers.send_disk(path, FORMATS[volume.format], door, tell)
                await self._send_companion(leaving, volume, door.with_suffix(".companion"), tell)

    async def _send_companion(
        self, leaving: Leaving, volume: migration_pb2.MovingVolume, door: Path, tell: Progress
    ) -> None:
        """Send what belongs to a disk's machine: UEFI variables, a TPM's state."""
        companion = await self._here.pools.get(volume.pool).companion(volume.volume)
        if await asyncio.to_thread(companion.is_dir):
            leaving.departure.door(door, f"companion/{volume.disk}", (0, 0))
            await carriers.send_tree(companion, door, lambda _, words: tell(100, words), running=False)

    async def _stop(self, leaving: Leaving) -> None:
        """End the guest here, as its turn; gracefully if it obeys in time."""
        leaving.stopped_s = time.monotonic()
        name, limit_ms = leaving.spec.name, leaving.request.policy.shutdown_timeout_ms or DEFAULT_SHUTDOWN_MS
        await self._here.guests.stop(self._here.state.epoch, name, limit_ms / 1000)
        for _ in range(STOPPED_LOOKS):
            if not await self._here.runs(leaving.spec):
                break
            await asyncio.sleep(STOPPED_LOOK_S)  # its monitor takes down what it made
        await self._refuse_running(leaving)

    async def _refuse_running(self, leaving: Leaving) -> None:
        if await self._here.runs(leaving.spec):
            raise precondition(
                "GUEST_RUNNING",
                f'guest "{leaving.spec.name}" runs.',
                remedy="Ask again; it was started meanwhile.",
                subject=f"guest/{leaving.spec.name}",
            )

    async def _beat(self, channel: Channel, over: asyncio.Event) -> None:
        """Tell the target every second that the copying goes on."""
        while not over.is_set():
            await asyncio.to_thread(channel.send, waits=True)
            await happened(over, LOOK_S)

    # Both

    def _note(self, migration: str) -> Path:
        """Return the file that says that a guest leaves, or left, by a migration."""
        return self._folder / f"{migration}.leaving"

    def _images(self, migration: str) -> Path:
        return checkpoints.images_of(self._folder, migration, "leaving")

    def _spec(self, name: str) -> guest_pb2.GuestSpec:
        return self._here.guests.get(name).spec

    def _check_grant(self, spec: guest_pb2.GuestSpec, generation: int, *, started: bool) -> None:
        """Refuse an order for another run than the one here. A guest that was not started here since it was given may have no record."""
        highest = self._here.state.generation(spec.uid)
        if generation < highest or (started and generation != highest):
            raise precondition(
                "STALE_GENERATION",
                f'guest "{spec.name}" is here under generation {highest}, not {generation}.',
                remedy="Ask the manager for its present grant.",
                subject=f"guest/{spec.name}",
                metadata={"generation": str(highest)},
            )

    def _told(self, leaving: Leaving, presence: "migration_pb2.MigrationPresence.ValueType") -> MigrationReport:
        moved = leaving.departure.moved
        return MigrationReport(
            presence=presence,
            downtime_ms=leaving.downtime_ms,
            moved_bytes=moved.sent + moved.received,
            reason="it was handed over",
            restarted=leaving.restarted,
        )


def _torn(name: str) -> GugusError:
    return precondition(
        "POST_COPY_FAILED",
        f'guest "{name}" was lost on its way: the hosts lost each other while its memory was in two places.',
        remedy="It is started anew from its disks. Migrate without --post-copy where the network may fail.",
        subject=f"guest/{name}",
    )


def _part(progress: Progress, low: int, percent: int, words: str) -> None:
    """Tell the progress of the last part of the work."""
    progress(low + percent * (100 - low) // 100, f"{words} memory")


def _lost(leaving: Leaving, why: str) -> GugusError:
    return unavailable(
        "MIGRATION_INTERRUPTED",
        f'guest "{leaving.spec.name}" did not get over: {why.rstrip(".")}.',
        remedy="It stays where it is, unless the manager finds it at the target.",
    )
