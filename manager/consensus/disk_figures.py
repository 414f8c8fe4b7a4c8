"""What a member tells of its disk, looked at no more often than anyone reads it."""

from .disk import Disk
from .journal import Journal
from .library import now
from .snapshots import Snapshots
from .types import StorageStatus

LOOK_S = 1.0
"""How old the figures may be."""


class DiskFigures:
    """The newest figures of one member's disk."""

    def __init__(self, disk: Disk, journal: Journal, snapshots: Snapshots) -> None:
        self._disk, self._journal, self._snapshots = disk, journal, snapshots
        self._newest = StorageStatus()
        self._due = 0.0

    def status(self) -> StorageStatus:
        """Return figures of the last second; whether the disk is full, as of now."""
        if now() >= self._due or self._newest.full != self._journal.full:
            self._due = now() + LOOK_S
            self._newest = self._look()
        return self._newest

    def _look(self) -> StorageStatus:
        free, total = self._disk.room()
        journal, snapshots = self._journal, self._snapshots
        return StorageStatus(
            journal_bytes=journal.disk_bytes,
            journal_segments=journal.segment_count,
            snapshot_bytes=snapshots.size,
            snapshot_at_s=snapshots.newest.made_at_s,
            syncs=journal.times.count,
            sync_seconds=journal.times.seconds,
            sync_p99_s=journal.times.percentile(0.99),
            free_bytes=free,
            total_bytes=total,
            full=journal.full,
            cut_bytes=journal.cut_bytes,
        )
