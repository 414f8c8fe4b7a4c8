"""Imports: a file from a path, an address or an upload becomes an image, whatever of the known formats it has.

It is copied into the pool's work folder with its checksum, recognised there, converted when no volume has its format, and
committed. Several disks in one source (OVA) become NAME, NAME-2, NAME-3, ...; NAME last, so that it says that all are there.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import ova, qemu_img, recognise, source
from agent.storage.oci_import import import_oci, is_oci
from agent.storage.pool import Progress
from agent.storage.record import ISO, VolumeRecord
from agent.storage.store import VolumeStore
from agent.storage.transfer import UPLOAD_SCHEME, Transfer
from common import validate
from common.errors import invalid
from common.process import CommandFailed
from common.units import format_size

SHA256_HEX_CHARS = 64

FETCHED_PERCENT, CONVERTED_PERCENT = 60, 98
"""Where the parts of an import end, on the way to 100."""


async def run(
    store: VolumeStore, transfer: Transfer, name: str, source_: str, sha256: str, progress: Progress
) -> volume_pb2.Volume:
    """Bring an image in. Idempotent for the same source with the same checksum."""
    validate.require("name", validate.name(name))
    sha256 = sha256.lower()
    if sha256 and (len(sha256) != SHA256_HEX_CHARS or set(sha256) - set("0123456789abcdef")):
        raise invalid("sha256", f'"{sha256}" is no SHA-256.', remedy="Give 64 hexadecimal digits, or nothing.")
    async with store.turns[name]:
        known = await store.known(name)
        if known is not None:
            if not known.imported or known.source != source_ or sha256 not in ("", known.sha256):
                raise store.taken(name)
            return await store.describe(known)
        async with store.room(0, name):
            if is_oci(source_):
                record = await import_oci(store, name, source_, sha256, progress)
            else:
                record = await _import_file(store, transfer, name, source_, sha256, progress)
        if source_.startswith(UPLOAD_SCHEME):
            await transfer.end_upload(source_.removeprefix(UPLOAD_SCHEME))
        progress(100, "imported")
        return await store.describe(record)


async def _import_file(
    store: VolumeStore, transfer: Transfer, name: str, source_: str, sha256: str, progress: Progress
) -> VolumeRecord:
    async with store.work() as work:
        if source_.startswith(UPLOAD_SCHEME):
            found = await transfer.take_upload(source_.removeprefix(UPLOAD_SCHEME), work)
        else:
            found = await source.fetch(source_, work, Percent(progress))
        if sha256 and found != sha256:
            raise recognise.mismatch(source_, sha256, found)
        progress(FETCHED_PERCENT, "checking what it is")
        kind = await recognise.recognise(store.files, work, source_)
        if kind.is_ova:
            return await _import_ova(store, name, work, source_, found, progress)
        async with contextlib.AsyncExitStack() as stack:
            disk = await _convert(store, stack, work, kind, source_, progress)
            return await store.files.work(store.layout.commit, disk, _record(store, name, kind, source_, found))


async def _import_ova(
    store: VolumeStore, name: str, archive: Path, source_: str, sha256: str, progress: Progress
) -> VolumeRecord:
    async with contextlib.AsyncExitStack() as stack:
        folder = await stack.enter_async_context(store.work())
        await store.files.look(folder.mkdir)
        progress(FETCHED_PERCENT, "taking the disks out of the archive")
        try:
            disks = await store.files.work(ova.extract_disks, archive, folder)
        except ova.BadOva as error:
            raise recognise.not_an_image(source_, str(error), "Export the machine anew as OVF 1 or 2.") from error
        await store.files.work(archive.unlink)
        made = []
        for number, disk in enumerate(disks, 1):
            its_name = name if number == 1 else f"{name}-{number}"
            validate.require("name", validate.name(its_name))
            kind = await recognise.disk(store.files, disk, f"{source_} (disk {number})")
            record = _record(store, its_name, kind, source_, sha256, part_of="" if number == 1 else name)
            made.append((await _convert(store, stack, disk, kind, source_, progress), record))
        return await _commit_all(store, made)


async def _commit_all(store: VolumeStore, made: list[tuple[Path, VolumeRecord]]) -> VolumeRecord:
    """Make volumes of the disks of one source, the first last. If one cannot be, none is. Returns the first."""
    (first, record), *others = made
    done: list[str] = []
    try:
        for work, other in reversed(others):
            async with store.turns[other.name]:
                known = await store.known(other.name)
                if known is not None and (known.part_of, known.source) != (other.part_of, other.source):
                    raise store.taken(other.name)
                if known is None:  # else an import that was killed has made it
                    await store.files.work(store.layout.commit, work, other)
                done.append(other.name)
        return await store.files.work(store.layout.commit, first, record)
    except BaseException:
        for other_name in done:
            await store.discard(*await store.files.work(store.layout.remove, other_name))
        raise


async def _convert(
    store: VolumeStore,
    stack: contextlib.AsyncExitStack,
    work: Path,
    kind: recognise.Found,
    source_: str,
    progress: Progress,
) -> Path:
    """Return a file with the disk in a format that volumes have; it is there as long as the stack is."""
    if not kind.converts:
        return work
    target = await stack.enter_async_context(store.work())
    try:
        await qemu_img.convert(work, kind.qemu, target, "qcow2", _converting(progress, kind.qemu))
    except CommandFailed as error:
        if store.is_full(error) or error.returncode is None or error.returncode < 0:
            raise
        raise recognise.not_an_image(source_, f"it cannot be converted ({error.stderr_tail})") from error
    await store.files.work(work.unlink)
    return target


def _record(
    store: VolumeStore, name: str, kind: recognise.Found, source_: str, sha256: str, *, part_of: str = ""
) -> VolumeRecord:
    return VolumeRecord(
        name=name,
        format=kind.format,
        file=store.layout.file_of(name, kind.format, imported=True),
        imported=True,
        source=source_,
        sha256=sha256,
        media=ISO if kind.iso else "",
        part_of=part_of,
    )


def _converting(progress: Progress, qemu: str) -> Callable[[int], None]:
    span = CONVERTED_PERCENT - FETCHED_PERCENT
    return lambda percent: progress(FETCHED_PERCENT + percent * span // 100, f"converting from {qemu} to qcow2")


class Percent:
    """Turns bytes into the progress of an import: fetching is its first part; each percent is told once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        """Tell of so many bytes."""
        percent = done * FETCHED_PERCENT // total if total else 0
        if percent != self._last:
            self._last = percent
            self._progress(percent, f"copied {format_size(done)}" + (f" of {format_size(total)}" if total else ""))
