"""Imports of OCI images: the root file system, with the image's settings in it, becomes an archive volume."""

from gugus.agent.v1 import volume_pb2

from agent.storage import oci
from agent.storage.exports import HASH_TIMEOUT_S, sha256_of
from agent.storage.pool import Progress
from agent.storage.record import VolumeRecord
from agent.storage.store import VolumeStore
from common.errors import invalid

ARCHIVE = volume_pb2.VOLUME_FORMAT_ARCHIVE


is_oci = oci.is_oci


async def import_oci(store: VolumeStore, name: str, source: str, sha256: str, progress: Progress) -> VolumeRecord:
    """Bring an OCI image in. Raises what `oci.unpack` raises, and INVALID_ARGUMENT."""
    if sha256:
        what = "is the checksum of a file, and this source is none."
        raise invalid("sha256", what, remedy="Name the image by its digest: docker://IMAGE@sha256:HEX.")
    async with store.work() as work:
        await oci.unpack(source, work, progress)
        record = VolumeRecord(
            name=name,
            format=ARCHIVE,
            file=store.layout.file_of(name, ARCHIVE, imported=True),
            imported=True,
            source=source,
            sha256=await store.files.work(sha256_of, work, timeout_s=HASH_TIMEOUT_S),
        )
        return await store.files.work(store.layout.commit, work, record)
