"""Pool in a folder: qcow2 and raw disks, imported images, and folders that are containers' root file systems.

Nothing half-made is ever a volume (see `agent.storage.layout`), and an image that others were cloned from stays.
"""

import asyncio
import contextlib
import errno
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.compute.idmap import IDMAP
from agent.storage import archive, qemu_img, source
from agent.storage.files import FileWork
from agent.storage.layout import Layout, VolumeRecord, remove_tree, used_bytes, virtual_size
from agent.storage.pool import Progress, VolumeRequest
from common import validate
from common.errors import GugusError, already_exists, internal, invalid, not_found, precondition, resource_exhausted
from common.logs import get_logger
from common.process import CommandFailed
from common.units import format_size

ABILITIES = frozenset(
    {volume_pb2.POOL_ABILITY_CLONE, volume_pb2.POOL_ABILITY_BLOCK, volume_pb2.POOL_ABILITY_FILESYSTEM}
)
PREPARE_TIMEOUT_S = 30.0
"""For making a few folders and one small file, on a slow file system, too."""

TIDY_TIMEOUT_S = 3.0
"""How long anybody waits for the removal of what was half made: an agent that stops does, and beats no more meanwhile."""

SHA256_HEX_CHARS = 64

_QEMU_FORMATS = {volume_pb2.VOLUME_FORMAT_QCOW2: "qcow2", volume_pb2.VOLUME_FORMAT_RAW: "raw"}
_FORMATS = {name: number for number, name in _QEMU_FORMATS.items()}
_NO_SPACE = ("No space left on device", "Disk quota exceeded")
_log = get_logger("storage.dir")


class DirPool:
    """A driver as `agent.storage.pool.StoragePool` describes it."""

    def __init__(self, spec: volume_pb2.PoolSpec) -> None:
        validate.require("spec.name", validate.name(spec.name))
        self.spec = spec
        self._path = Path(spec.dir.path)
        if not self._path.is_absolute() or ".." in self._path.parts:
            raise invalid("spec.dir.path", f'"{spec.dir.path}" is no absolute path.', remedy="For example: /srv/gugus.")
        self._layout = Layout(self._path)
        self._files = FileWork(spec.name, self._path)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._read: Counter[str] = Counter()

    @property
    def abilities(self) -> frozenset[volume_pb2.PoolAbility.ValueType]:
        """What it can do."""
        return ABILITIES | ({volume_pb2.POOL_ABILITY_SHARED} if self.spec.dir.shared else frozenset())

    async def activate(self) -> None:
        """Make the folders and clean up after a process of this host that was killed."""
        async with self._room(0):
            there = await self._files.look(self._path.is_dir)
            if self.spec.dir.shared and not there:
                raise precondition(
                    "PATH_MISSING",
                    f'pool "{self.spec.name}" is shared, and its path {self._path} does not exist on this node.',
                    remedy="Mount the shared file system there, or create the folder on all nodes.",
                    subject=f"pool/{self.spec.name}",
                )
            await self._files.work(self._layout.prepare, self.spec.name, timeout_s=PREPARE_TIMEOUT_S)
            await self._files.work(self._layout.clean)

    async def status(self) -> volume_pb2.Pool:
        """Tell its room and whether it is ready."""
        pool = volume_pb2.Pool(spec=self.spec, abilities=sorted(self.abilities))
        try:
            room, pool.reason = await self._files.look(self._look)
        except GugusError as error:
            pool.reason = str(error)
        except OSError as error:
            pool.reason = f"{self._path}: {error.strerror}. Check that it is mounted."
        else:
            pool.capacity_bytes, pool.available_bytes = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
        pool.ready = not pool.reason
        return pool

    async def create_volume(self, request: VolumeRequest) -> volume_pb2.Volume:
        """Make a volume, empty or from an imported image."""
        validate.require("name", validate.name(request.name))
        async with self._reading(request.source), self._turns[request.name]:
            known = await self._files.look(self._layout.find, request.name)
            if known is not None:
                asked = (request.format, request.size_bytes, request.source, request.privileged)
                if known.imported or (known.format, known.size_bytes, known.source, known.privileged) != asked:
                    raise self._taken(request.name)
                return await self._describe(known)
            record = VolumeRecord(
                name=request.name,
                format=request.format,
                file=self._layout.file_of(request.name, _makeable(request.format), imported=False),
                source=request.source,
                size_bytes=request.size_bytes,
                privileged=request.privileged,
            )
            async with self._room(request.size_bytes), self._work() as work:
                await self._make(record, work)
                await self._files.work(self._layout.commit, work, record)
            return await self._describe(record)

    async def import_volume(self, name: str, source_: str, sha256: str, progress: Progress) -> volume_pb2.Volume:
        """Bring an image in from a path or an address."""
        validate.require("name", validate.name(name))
        sha256 = sha256.lower()
        if sha256 and (len(sha256) != SHA256_HEX_CHARS or set(sha256) - set("0123456789abcdef")):
            raise invalid("sha256", f'"{sha256}" is no SHA-256.', remedy="Give 64 hexadecimal digits, or nothing.")
        async with self._turns[name]:
            known = await self._files.look(self._layout.find, name)
            if known is not None:
                if not known.imported or known.source != source_ or sha256 not in ("", known.sha256):
                    raise self._taken(name)
                return await self._describe(known)
            async with self._room(0), self._work() as work:
                found = await source.fetch(source_, work, _Percent(progress))
                if sha256 and found != sha256:
                    raise _mismatch(source_, sha256, found)
                progress(95, "checking what it is")
                volume_format = await self._recognise(work, source_)
                file = self._layout.file_of(name, volume_format, imported=True)
                record = VolumeRecord(
                    name=name, format=volume_format, file=file, imported=True, source=source_, sha256=found
                )
                await self._files.work(self._layout.commit, work, record)
            progress(100, "imported")
            return await self._describe(record)

    async def delete_volume(self, name: str) -> None:
        """Delete a volume, unless others read from it."""
        async with self._turns[name]:
            records = await self._files.work(self._layout.all)
            users = [record.name for record in records if record.backing == name]
            if users or self._read[name]:
                who = f"these were cloned from it: {', '.join(users)}" if users else "a volume is being made from it"
                raise precondition(
                    "VOLUME_IN_USE",
                    f'volume "{name}" of pool "{self.spec.name}" is in use: {who}.',
                    remedy="Delete those first." if users else "Try again when that is done.",
                    subject=f"pool/{self.spec.name}/volume/{name}",
                )
            trash = await self._files.work(self._layout.remove, name)
            if trash is not None:
                await self._files.work(remove_tree, trash)

    async def get_volume(self, name: str) -> volume_pb2.Volume:
        """Return a volume."""
        return await self._describe(await self._find(name))

    async def list_volumes(self) -> list[volume_pb2.Volume]:
        """Return all volumes by name."""
        return [await self._describe(record) for record in await self._files.work(self._layout.all)]

    async def path_of(self, name: str) -> Path:
        """Return the file or folder of a volume."""
        return self._layout.path(await self._find(name))

    async def _make(self, record: VolumeRecord, work: Path) -> None:
        if not record.source:
            await self._make_empty(record, work)
            return
        parent = await self._find(record.source)
        if not parent.imported:
            what = f'"{parent.name}" is a disk that a guest may write to; a clone of it would change under its reader.'
            raise invalid("source", what, remedy="Make volumes from imported images.")
        if record.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
            await self._unpack(record, parent, work)
        else:
            await self._clone(record, parent, work)

    async def _make_empty(self, record: VolumeRecord, work: Path) -> None:
        if record.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
            _refuse_size(record)
            await self._make_folder(record, work)
            return
        if record.size_bytes <= 0:
            raise invalid("size_bytes", "an empty disk needs a size.", remedy="For example 10GiB.")
        await qemu_img.create(work, _QEMU_FORMATS[record.format], record.size_bytes)  # type: ignore[index]

    async def _unpack(self, record: VolumeRecord, parent: VolumeRecord, work: Path) -> None:
        if parent.format != volume_pb2.VOLUME_FORMAT_ARCHIVE:
            what = f'"{parent.name}" is a disk image; a file system is made from an archive.'
            raise invalid("source", what, remedy="Import a tar archive of a root file system.")
        _refuse_size(record)
        await self._make_folder(record, work)
        image = self._layout.path(parent)
        program = await self._files.look(archive.compression, image)
        with await self._files.look(lambda: image.open("rb")) as opened:
            await archive.unpack(opened, program or "", work, privileged=record.privileged)

    async def _make_folder(self, record: VolumeRecord, work: Path) -> None:
        """Make an empty folder that belongs to the container's root."""
        await self._files.look(work.mkdir)
        if not record.privileged:
            await archive.ensure_idmap()
            await self._files.look(os.chown, work, IDMAP.host_id(0), IDMAP.host_id(0))

    async def _clone(self, record: VolumeRecord, parent: VolumeRecord, work: Path) -> None:
        if parent.format not in _QEMU_FORMATS:
            what = f'"{parent.name}" is an archive; a disk is made from a disk image.'
            raise invalid("source", what, remedy="Ask for the format FILESYSTEM, or import a disk image.")
        if record.format != volume_pb2.VOLUME_FORMAT_QCOW2:
            raise invalid("format", "a clone reads from its image, which only qcow2 can.", remedy="Ask for QCOW2.")
        image = self._layout.path(parent)
        least = await self._files.look(virtual_size, image, parent.format)
        if record.size_bytes and record.size_bytes < least:
            what = f'{record.size_bytes} bytes are less than the {least} of the image "{parent.name}".'
            raise invalid("size_bytes", what, remedy=f"Ask for {format_size(least)} or more, or 0 for the same.")
        backing = f"../{parent.file}"
        # Relative, so that it is right on every host; from the work folder it would not be found, hence two steps.
        await qemu_img.clone(work, image, _QEMU_FORMATS[parent.format], record.size_bytes or least)  # type: ignore[index]
        await qemu_img.set_backing(work, backing, _QEMU_FORMATS[parent.format])  # type: ignore[index]

    async def _recognise(self, path: Path, source_: str) -> int:
        program = await self._files.look(archive.compression, path)
        if program is not None:
            if problem := await archive.check(path, program):
                raise qemu_img.not_an_image(source_, problem, "Give a tar archive, plain or compressed.")
            return volume_pb2.VOLUME_FORMAT_ARCHIVE
        head = await self._files.look(qemu_img.head_of, path)
        return _FORMATS[(await qemu_img.recognise_image(path, head, source_)).format]

    async def _find(self, name: str) -> VolumeRecord:
        record = await self._files.look(self._layout.find, name) if not validate.name(name) else None
        if record is None:
            raise not_found("volume", name, remedy=f'Pool "{self.spec.name}" has no such volume.')
        return record

    async def _describe(self, record: VolumeRecord) -> volume_pb2.Volume:
        path = self._layout.path(record)
        return volume_pb2.Volume(
            pool=self.spec.name,
            name=record.name,
            format=record.format,  # type: ignore[arg-type]
            size_bytes=await self._files.look(virtual_size, path, record.format),
            used_bytes=await self._files.work(used_bytes, path),
            backing=record.backing,
            sha256=record.sha256,
        )

    def _look(self) -> tuple[os.statvfs_result, str]:
        room = os.statvfs(self._layout.root)
        if room.f_flag & os.ST_RDONLY:
            return room, f"{self._path} is mounted read-only. Remount it for writing."
        return room, "" if os.access(self._layout.root, os.W_OK) else f"{self._path} cannot be written by the agent."

    def _taken(self, name: str) -> GugusError:
        return already_exists("volume", name, remedy="It was made in another way. Choose another name or delete it.")

    @contextlib.asynccontextmanager
    async def _reading(self, name: str) -> AsyncIterator[None]:
        """Keep a source from being deleted; waits for a deletion under way."""
        async with self._turns[name]:
            self._read[name] += 1
        try:
            yield
        finally:
            self._read[name] -= 1

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncIterator[Path]:
        """Give a path to make something at; whatever is still there afterwards is removed."""
        work = await self._files.look(self._layout.work_file)
        try:
            yield work
        finally:
            with contextlib.suppress(GugusError):  # what takes longer goes on, or `clean` ends it one day
                await asyncio.shield(self._files.work(remove_tree, work, timeout_s=TIDY_TIMEOUT_S))

    @contextlib.asynccontextmanager
    async def _room(self, wanted_bytes: int) -> AsyncIterator[None]:
        """Turn whatever means "disk full" into NO_SPACE with numbers, and other failures of files into words."""
        try:
            yield
        except CommandFailed as error:
            if any(text in error.stderr_tail for text in _NO_SPACE):
                raise await self._no_space(wanted_bytes) from error
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise await self._no_space(wanted_bytes) from error
            _log.error("pool failed", pool=self.spec.name, error=str(error))
            raise internal("POOL_FAILED", f'pool "{self.spec.name}" at {self._path}: {error}.') from error

    async def _no_space(self, wanted_bytes: int) -> GugusError:
        room = await self._files.look(os.statvfs, self._path)
        free, size = format_size(room.f_bavail * room.f_frsize), format_size(room.f_blocks * room.f_frsize)
        wanted = f" for a volume of {format_size(wanted_bytes)}" if wanted_bytes else ""
        return resource_exhausted(
            "NO_SPACE",
            f'pool "{self.spec.name}" has not enough room{wanted}: {free} of {size} are free at {self._path}.',
            remedy="Delete volumes or enlarge the file system, then try again.",
        )


class _Percent:
    """Turns bytes into the progress of an import: copying is 0 to 94 %; each percent is told once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        percent = done * 94 // total if total else 0
        if percent != self._last:
            self._last = percent
            self._progress(percent, f"copied {format_size(done)}" + (f" of {format_size(total)}" if total else ""))


def _makeable(volume_format: int) -> int:
    if volume_format in (*_QEMU_FORMATS, volume_pb2.VOLUME_FORMAT_FILESYSTEM):
        return volume_format
    raise invalid("format", "a volume is made as QCOW2, RAW or FILESYSTEM.", remedy="Archives are imported.")


def _refuse_size(record: VolumeRecord) -> None:
    if record.size_bytes:
        raise invalid("size_bytes", "a folder has no size limit in a dir pool.", remedy="Leave it 0.")


def _mismatch(source_: str, expected: str, found: str) -> GugusError:
    return precondition(
        "CHECKSUM_MISMATCH",
        f'"{source_}" has the SHA-256 {found}, expected {expected}.',
        remedy="The source has changed or was damaged on its way. Check which checksum is right.",
        subject=source_,
    )


def create(spec: volume_pb2.PoolSpec) -> DirPool:
    """Make the driver of a pool. Raises INVALID_ARGUMENT."""
    return DirPool(spec)
