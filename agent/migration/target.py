"""The target of migrations: makes ready, takes in, and lets the guest run once its source has let go of it.

Invariant: a guest that comes in runs here only after (1) the source said, over the connection that its ticket opened, that its
process is halted for good, or (2) the manager said that the source is known to be gone; and under the same checks as a start: its
generation, and the node lease if it is under HA.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from gugus.agent.v1 import migration_pb2, volume_pb2
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_MODE_LIVE,
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_COMING,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_STOPPED,
    MIGRATION_PRESENCE_WAITING,
    ArrivalRecord,
    MigrationReport,
)

from agent.migration import carriers, checkpoints
from agent.migration.arrivals import Arrival, Arrivals, Open, join
from agent.migration.host import FORMATS, Bridge, Here, checked_id
from agent.migration.pump import Broken
from agent.migration.records import ArrivalRecords
from agent.migration.wire import Channel
from agent.storage.pool import VolumeRequest
from common.config import AgentConfig
from common.errors import GugusError, invalid, precondition
from common.files import write_atomic
from common.identity.names import Identity, Role
from common.logs import get_logger

LOOK_S = 1.0
"""So often the source hears that the target still waits for the guest to be complete."""

PEER_TIMEOUT_S = 15.0
"""Both ends say something every second; a silence of this length means that the other one is gone."""

TIDY_S = 60.0
FILE_MODE = 0o600
_log = get_logger("migration.target")


class Target:
    """Guests that come to this host. Used in the event loop; conversations with sources are in threads."""

    def __init__(self, here: Here, config: AgentConfig, folder: Path) -> None:
        self._here, self._config = here, config
        self._records, self._folder = ArrivalRecords(folder), folder
        self._arrivals = Arrivals(here.credentials)
        self._restarted: dict[str, str] = {}
        """Migration -> why its guest, which was to go on, was started anew."""
        self._busy: set[str] = set()
        """Migrations that are being made ready."""

    def open(self) -> None:
        """Listen at the migration port. Raises PORT_TAKEN."""
        self._bridge = Bridge()
        self._arrivals.open(self._config.address, self._config.migration_port)

    def close(self) -> None:
        """Listen no more."""
        self._arrivals.close()

    @property
    def port(self) -> int:
        """Port that it listens at."""
        return self._arrivals.port

    def record(self, migration: str) -> ArrivalRecord | None:
        """Return what is known of a guest that comes in."""
        return self._records.get(migration)

    async def prepare(
        self, epoch: int, request: migration_pb2.PrepareMigrationRequest
    ) -> migration_pb2.PrepareMigrationResponse:
        """Make ready for a guest: volumes, definition, record, ticket; in this order, so that what was made is known."""
        spec = request.spec
        checked_id(request.migration)
        if request.grant.generation < 1:
            raise invalid("grant.generation", "is missing; it is at least 1")
        self._busy.add(request.migration)
        try:
            await self._here.turns.run(f"guest/{spec.name}", epoch, partial(self._admit, request))
            for volume in request.volumes:
                await self._make(epoch, volume)
            await self._here.guests.create(epoch, spec)
        finally:
            self._busy.discard(request.migration)
        answer = migration_pb2.PrepareMigrationResponse(
            bridges={nic.mac.lower(): self._here.networks.bridge_of(nic) for nic in spec.nics}
        )
        answer.spec.CopyFrom(spec)
        streams = await self._streams(request)
        if request.mode == MIGRATION_MODE_LIVE:
            places = await self._here.migration(spec).places(spec.name)
            answer.places.update(places)
            await asyncio.to_thread(_write, Path(places["driver"]), list(request.files))
        arrival = self._arrival(request, streams)
        answer.way.CopyFrom(self.way())
        answer.way.ticket = arrival.ticket
        if request.HasField("foreign"):
            own = self._here.credentials
            answer.way.foreign.cluster_id, answer.way.foreign.ca_pem = own.identity.cluster_id, own.ca_pem
        return answer

    def way(self) -> migration_pb2.MigrationWay:
        """Return where sources find this host."""
        return migration_pb2.MigrationWay(
            node=self._config.name, address=self._config.address, port=self._arrivals.port
        )

    def _arrival(self, request: migration_pb2.PrepareMigrationRequest, streams: Mapping[str, Open]) -> Arrival:
        """Expect a guest from its node and nobody else."""
        cluster = request.foreign.cluster_id or self._here.credentials.identity.cluster_id
        try:
            source = Identity(cluster, Role.NODE, request.source)
            arrival = Arrival(request.migration, source, streams, partial(self._host, request.migration))
            arrival.ca_pem = request.foreign.ca_pem
            self._arrivals.expect(arrival)
        except ValueError as error:
            raise invalid("source", str(error)) from error
        return arrival

    async def report(self, migration: str) -> MigrationReport:
        """Tell what there is of a guest that comes in."""
        record = self._records.get(migration)
        if record is None:
            return MigrationReport(presence=MIGRATION_PRESENCE_ABSENT, reason="no such migration is known here")
        spec = record.request.spec
        if record.request.mode == MIGRATION_MODE_LIVE:
            driver = self._here.migration(spec)
            presence = await driver.presence(spec.name)
            if not self._arrivals.expects(migration) and await driver.bury(spec.name):
                presence = MIGRATION_PRESENCE_ABSENT
            if presence == MIGRATION_PRESENCE_RUNNING and not await self._is_this(record):
                presence = MIGRATION_PRESENCE_ABSENT
            if record.copied and presence == MIGRATION_PRESENCE_WAITING:
                presence = MIGRATION_PRESENCE_RUNNING  # it was held when it went over, and is to stay so
            elif record.copied and presence == MIGRATION_PRESENCE_ABSENT:
                presence = MIGRATION_PRESENCE_STOPPED  # it ran here, and has ended since: its disks are here
        elif await self._here.runs(spec):
            presence = MIGRATION_PRESENCE_RUNNING
        elif record.copied:
            presence = MIGRATION_PRESENCE_WAITING if record.request.run else MIGRATION_PRESENCE_STOPPED
        else:
            presence = MIGRATION_PRESENCE_COMING
        why = self._restarted.get(migration, "")
        return MigrationReport(presence=presence, expected=self._arrivals.expects(migration), restarted=why)

    async def _is_this(self, record: ArrivalRecord) -> bool:
        """Whether what runs came by this migration: it has the grant's generation, which no other copy of the guest ever had."""
        spec = record.request.spec
        observation = await self._here.observer.look(spec.name, self._here.hypervisor(spec))
        return observation is not None and observation.generation == record.request.grant.generation

    async def take_over(self, epoch: int, migration: str) -> MigrationReport:
        """Let a complete guest run: the manager knows that the source is gone. Raises MIGRATION_INCOMPLETE."""
        record = self._records.get(migration)
        if record is None:
            raise _incomplete(migration, "no such migration is known here")
        spec = record.request.spec
        await self._here.turns.run(f"guest/{spec.name}", epoch, partial(self._arrive, record))
        return await self.report(migration)

    async def drop(self, epoch: int, migration: str) -> MigrationReport:
        """Remove all that came. Raises GUEST_RUNNING when the guest runs here."""
        record = self._records.get(migration)
        if record is None:
            return MigrationReport(presence=MIGRATION_PRESENCE_ABSENT)
        spec = record.request.spec
        await self._here.turns.run(f"guest/{spec.name}", epoch, partial(self._drop, record))
        await self._here.guests.delete(epoch, spec.name)
        for volume in record.request.volumes:
            await self._here.pools.delete_volume(volume.pool, volume.volume)
        await asyncio.to_thread(self._records.remove, migration)
        _log.info("what had come of a guest was removed", guest=spec.name, migration=migration)
        return MigrationReport(presence=MIGRATION_PRESENCE_ABSENT)

    async def forget(self, migration: str) -> None:
        """Forget a migration that is settled."""
        self._arrivals.forget(migration)
        self._restarted.pop(migration, None)
        await asyncio.to_thread(checkpoints.remove, self._images(checked_id(migration)))
        await asyncio.to_thread(self._records.remove, migration)

    async def run(self) -> None:
        """Remove, for ever, what is left of guests that never arrived: their definitions were removed as stale copies."""
        while True:
            for id_, record in self._records.all().items():
                spec, granted = record.request.spec, record.request.grant.generation
                left = spec.name not in self._here.state.guests or self._here.state.generation(spec.uid) > granted
                if left and id_ not in self._busy:
                    await self._tidy(record)
            await asyncio.sleep(TIDY_S)

    async def _tidy(self, record: ArrivalRecord) -> None:
        """Forget a guest that is here no more; the volumes of one that never arrived are removed, but for those that it has by now."""
        present = self._here.state.guests.get(record.request.spec.name)
        used = {(disk.pool, disk.volume) for disk in present.disks} if present is not None else set()
        for volume in record.request.volumes if not record.copied else ():
            if (volume.pool, volume.volume) in used:
                continue
            try:
                await self._here.pools.delete_volume(volume.pool, volume.volume)
            except GugusError as error:
                _log.warning("a volume is left", pool=volume.pool, volume=volume.volume, error=str(error))
                return
        await asyncio.to_thread(self._records.remove, record.request.migration)

    async def _admit(self, request: migration_pb2.PrepareMigrationRequest) -> None:
        """Refuse what is old or in the way, and keep the record before anything is made."""
        spec, generation = request.spec, request.grant.generation
        highest = self._here.state.generation(spec.uid)
        if generation < highest:
            raise precondition(
                "STALE_GENERATION",
                f'the grant of generation {generation} for guest "{spec.name}" is old: this node was granted {highest}.',
                remedy="The guest was given away since; ask the manager for its present grant.",
                subject=f"guest/{spec.name}",
                metadata={"generation": str(highest)},
            )
        if await self._here.runs(spec):
            raise precondition(
                "GUEST_RUNNING",
                f'a guest "{spec.name}" runs here already.',
                remedy="Ask how the migration stands; it may be over.",
                subject=f"guest/{spec.name}",
            )
        if request.mode == MIGRATION_MODE_LIVE:  # what is left of an earlier migration must not be taken for this one's
            await self._here.migration(spec).drop(spec.name)
        await self._here.state.run(self._here.state.raise_generation, spec.uid, generation)
        record = ArrivalRecord(request=request)
        del record.request.files[:]
        await asyncio.to_thread(self._records.save, record)

    async def _make(self, epoch: int, volume: migration_pb2.MovingVolume) -> None:
        wanted = VolumeRequest(
            name=volume.volume, format=volume.format, size_bytes=volume.size_bytes, privileged=volume.privileged
        )
        make = partial(self._here.pools.get(volume.pool).create_volume, wanted)
        await self._here.turns.run(f"pool/{volume.pool}/volume/{volume.volume}", epoch, make)

    async def _streams(self, request: migration_pb2.PrepareMigrationRequest) -> Mapping[str, Open]:
        if request.mode == MIGRATION_MODE_LIVE:
            joins = await self._here.migration(request.spec).receive(request.spec.name)
            return {name: join(connect) for name, connect in joins.items()}
        streams: dict[str, Open] = {}
        for volume in request.volumes:
            path = await self._here.pools.get(volume.pool).path_of(volume.volume)
            if volume.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
                streams[f"volume/{volume.disk}"] = partial(carriers.receive_tree, path)
                continue
            streams[f"volume/{volume.disk}"] = partial(carriers.receive_disk, path, FORMATS[volume.format])
            companion = await self._here.pools.get(volume.pool).companion(volume.volume)
            streams[f"companion/{volume.disk}"] = partial(carriers.receive_new_tree, companion)
        if request.mode == MIGRATION_MODE_CHECKPOINT:
            streams[checkpoints.STREAM] = partial(carriers.receive_new_tree, self._images(request.migration))
        return streams

    def _images(self, migration: str) -> Path:
        return checkpoints.images_of(self._folder, migration, "arriving")

    def _host(self, migration: str, channel: Channel) -> None:
        """Speak with the source, in the thread of its connection."""
        record = self._records.get(migration)
        if record is None:
            raise Broken("the migration was given up")
        if record.request.mode == MIGRATION_MODE_LIVE:
            self._await_complete(record, channel)
        else:
            self._await_copied(record, channel)
        took_ms = self._bridge.call(self._let_run(record))
        _log.info("guest arrived", guest=record.request.spec.name, source=record.request.source, started_ms=took_ms)
        self._bridge.call(self._written(record))  # before the source is told, which then removes its own
        channel.send(runs=True, took_ms=took_ms, restarted=self._restarted.get(migration, ""))

    def _await_complete(self, record: ArrivalRecord, channel: Channel) -> None:
        """Wait until the guest is complete; then have the source halt it there."""
        spec = record.request.spec
        driver = self._here.migration(spec)
        try:
            while not (driver.wait_complete(spec.name, LOOK_S) or self._bridge.call(driver.is_complete(spec.name))):
                channel.send(waits=True)
            channel.send(complete=True)
            while not (answer := channel.receive(PEER_TIMEOUT_S)).get("gone"):
                if not answer.get("waits"):
                    raise Broken("the source keeps the guest")
        except Broken:
            self._bridge.call(driver.bury(spec.name))
            raise

    def _await_copied(self, record: ArrivalRecord, channel: Channel) -> None:
        """Wait until all is copied and the guest has ended on the source."""
        while not channel.receive(PEER_TIMEOUT_S).get("gone"):
            pass
        self._bridge.call(self._copied(record))

    async def _copied(self, record: ArrivalRecord) -> None:
        record.copied = True
        await asyncio.to_thread(self._records.save, record)

    async def _let_run(self, record: ArrivalRecord) -> int:
        """The source has let go: run the guest, as a change of it in its turn; return how long that took, in milliseconds."""
        began_s, epoch = time.monotonic(), self._here.state.epoch
        ran_s = await self._here.turns.run(f"guest/{record.request.spec.name}", epoch, partial(self._run_here, record))
        return round((ran_s - began_s) * 1000)

    async def _written(self, record: ArrivalRecord) -> None:
        for volume in record.request.volumes:
            path = await self._here.pools.get(volume.pool).path_of(volume.volume)
            await asyncio.to_thread(carriers.sync, path)

    async def _arrive(self, record: ArrivalRecord) -> None:
        request = record.request
        presence = (await self.report(request.migration)).presence
        if presence in (MIGRATION_PRESENCE_RUNNING, MIGRATION_PRESENCE_STOPPED):
            return
        if presence != MIGRATION_PRESENCE_WAITING:
            raise _incomplete(request.migration, "its copy here is not complete")
        await self._run_here(record)

    async def _run_here(self, record: ArrivalRecord) -> float:
        """Run a guest that is complete here; return since when (time.monotonic).

        What lies before its first instruction is time in which it stands still.
        """
        request, name = record.request, record.request.spec.name
        ran_s = 0.0
        if request.mode == MIGRATION_MODE_LIVE and not request.run:
            await self._here.migration(request.spec).hold(name)
            await self._copied(record)
        elif not request.run:
            return time.monotonic()
        elif request.mode == MIGRATION_MODE_LIVE:
            driver = self._here.migration(request.spec)

            async def resume(guest: str, _: int) -> None:
                nonlocal ran_s
                ran_s = await driver.resume(guest)

            await self._here.guests.arrive(name, request.grant.generation, resume)
        elif request.mode == MIGRATION_MODE_CHECKPOINT:
            await self._here.guests.arrive(name, request.grant.generation, partial(self._go_on, request))
        else:
            await self._here.guests.arrive(name, request.grant.generation, self._here.hypervisor(request.spec).start)
        ran_s = ran_s or time.monotonic()
        if not record.copied:
            await self._copied(record)
        return ran_s

    async def _go_on(self, request: migration_pb2.PrepareMigrationRequest, _: str, generation: int) -> None:
        images = self._images(request.migration)
        why = await checkpoints.restore_or_start(self._here, request.spec, generation, images)
        self._restarted[request.migration] = why
        await asyncio.to_thread(checkpoints.remove, images)

    async def _drop(self, record: ArrivalRecord) -> None:
        request, name = record.request, record.request.spec.name
        if (await self.report(request.migration)).presence == MIGRATION_PRESENCE_RUNNING:
            raise precondition(
                "GUEST_RUNNING",
                f'guest "{name}" runs here: its source has let go of it.',
                remedy="Take it over instead.",
                subject=f"guest/{name}",
            )
        self._arrivals.forget(request.migration)
        await asyncio.to_thread(checkpoints.remove, self._images(request.migration))
        if request.mode == MIGRATION_MODE_LIVE:
            await self._here.migration(request.spec).drop(name)


def _write(folder: Path, files: Sequence[migration_pb2.MovingFile]) -> None:
    """Write small files into the driver's folder, where there are none yet."""
    for file in files:
        path = folder / file.path
        if folder.resolve() not in path.resolve().parents:
            raise invalid("files.path", f'"{file.path}" leads out of the folder')
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o711)
            write_atomic(path, file.content, FILE_MODE)


def _incomplete(migration: str, why: str) -> GugusError:
    return precondition(
        "MIGRATION_INCOMPLETE",
        f"migration {migration} cannot be taken over: {why}.",
        remedy="Start the guest anew, from its disks.",
        subject=f"migration/{migration}",
    )
