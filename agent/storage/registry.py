"""The storage drivers by name. Adding a driver adds a line to DRIVERS."""

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from gugus.agent.v1 import volume_pb2

from agent.storage.pool import StoragePool
from common.errors import invalid

DRIVERS: Mapping[str, str] = {
    "dir": "agent.storage.dir",
    "btrfs": "agent.storage.btrfs",
}
"""Name of the driver's field in PoolSpec -> module, which has `create(spec: PoolSpec) -> StoragePool`."""


def create(spec: volume_pb2.PoolSpec) -> StoragePool:
    """Make the driver of a pool; `activate` it before use. Raises INVALID_ARGUMENT when the spec names none."""
    driver = spec.WhichOneof("driver")
    if driver is None or driver not in DRIVERS:
        raise invalid("spec.driver", "the pool has no driver.", remedy=f"Set one of: {', '.join(DRIVERS)}.")
    return cast(StoragePool, import_module(DRIVERS[driver]).create(spec))
