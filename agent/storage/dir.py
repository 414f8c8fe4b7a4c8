"""Pool in a folder: qcow2 and raw disks, images, and plain folders that are containers' root file systems."""

from gugus.agent.v1 import volume_pb2

from agent.storage.file_pool import FilePool, folder_of
from agent.storage.folders import PlainFolders


class DirPool(FilePool):
    """A driver as `agent.storage.pool.StoragePool` describes it."""

    def __init__(self, spec: volume_pb2.PoolSpec) -> None:
        path = folder_of(spec.dir.path, "spec.dir.path")
        super().__init__(spec, path, PlainFolders(), shared=spec.dir.shared)


def create(spec: volume_pb2.PoolSpec) -> DirPool:
    """Make the driver of a pool. Raises INVALID_ARGUMENT."""
    return DirPool(spec)
