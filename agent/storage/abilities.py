"""What pools in folders can do with volumes of each format, and why not. Pure."""

from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.volume_pb2 import (
    POOL_ABILITY_BLOCK,
    POOL_ABILITY_CLONE,
    POOL_ABILITY_FILESYSTEM,
    POOL_ABILITY_QUOTA,
    POOL_ABILITY_RESIZE,
    POOL_ABILITY_SHARED,
    POOL_ABILITY_SNAPSHOT,
    VOLUME_FORMAT_FILESYSTEM,
    VOLUME_FORMAT_QCOW2,
    VOLUME_FORMAT_RAW,
    AbilityRefusal,
    FormatAbilities,
    PoolAbility,
)

from agent.storage.folders import Folders

PLAIN_FOLDER = "this pool keeps root file systems as plain folders, which cannot be snapshotted. Use a btrfs pool, or copy the guest."
RAW_DISK = "a raw disk in a file cannot be snapshotted. Move the disk to the format qcow2."

_ALWAYS = frozenset({POOL_ABILITY_CLONE, POOL_ABILITY_BLOCK, POOL_ABILITY_FILESYSTEM, POOL_ABILITY_RESIZE})


def of_pool(folders: Folders, *, shared: bool) -> frozenset[PoolAbility.ValueType]:
    """Return what a pool can do with at least one of its formats."""
    found = set(_ALWAYS) | {POOL_ABILITY_SNAPSHOT}
    if folders.can_limit:
        found.add(POOL_ABILITY_QUOTA)
    if shared:
        found.add(POOL_ABILITY_SHARED)
    return frozenset(found)


def of_formats(folders: Folders) -> list[volume_pb2.FormatAbilities]:
    """Return what a pool can do with volumes of each format."""
    qcow2 = FormatAbilities(
        format=VOLUME_FORMAT_QCOW2,
        abilities=[POOL_ABILITY_CLONE, POOL_ABILITY_RESIZE, POOL_ABILITY_BLOCK, POOL_ABILITY_SNAPSHOT],
    )
    raw = FormatAbilities(
        format=VOLUME_FORMAT_RAW,
        abilities=[POOL_ABILITY_CLONE, POOL_ABILITY_RESIZE, POOL_ABILITY_BLOCK],
        refusals=[AbilityRefusal(ability=POOL_ABILITY_SNAPSHOT, reason=RAW_DISK)],
    )
    tree = FormatAbilities(format=VOLUME_FORMAT_FILESYSTEM, abilities=[POOL_ABILITY_FILESYSTEM])
    for able, ability, reason in (
        (folders.can_snapshot, POOL_ABILITY_CLONE, "plain folders can be copied, not cloned. Ask for a full copy."),
        (folders.can_limit, POOL_ABILITY_RESIZE, "plain folders have no size. Use a btrfs pool."),
        (folders.can_snapshot, POOL_ABILITY_SNAPSHOT, PLAIN_FOLDER),
        (folders.can_limit, POOL_ABILITY_QUOTA, "plain folders have no size. Use a btrfs pool."),
    ):
        if able:
            tree.abilities.append(ability)
        else:
            tree.refusals.add(ability=ability, reason=reason)
    return [qcow2, raw, tree]
