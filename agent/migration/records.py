"""What an agent keeps of guests that come in: one small file a migration, so that an agent that was restarted can settle it."""

from pathlib import Path

from google.protobuf.message import DecodeError
from gugus.agent.v1.migration_pb2 import ArrivalRecord

from common.files import remove_durably, write_atomic
from common.logs import get_logger

FILE_MODE = 0o600
"""First-boot settings may hold secrets."""

FOLDER_MODE = 0o700
_log = get_logger("migration.records")


class ArrivalRecords:
    """The records, by migration. Methods block and raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._known: dict[str, ArrivalRecord] = {}
        for path in sorted(folder.glob("*.pb")):
            try:
                self._known[path.stem] = ArrivalRecord.FromString(path.read_bytes())
            except (OSError, DecodeError) as error:
                _log.error("the record of a migration cannot be read", path=str(path), error=str(error))

    def get(self, migration: str) -> ArrivalRecord | None:
        """Return a record."""
        return self._known.get(migration)

    def all(self) -> dict[str, ArrivalRecord]:
        """Return all records, by migration."""
        return dict(self._known)

    def save(self, record: ArrivalRecord) -> None:
        """Keep a record, durably."""
        id_ = record.request.migration
        write_atomic(self._folder / f"{id_}.pb", record.SerializeToString(), FILE_MODE)
        self._known[id_] = record

    def remove(self, migration: str) -> None:
        """Forget a record, if there is one."""
        if self._known.pop(migration, None) is not None:
            remove_durably(self._folder / f"{migration}.pb")
