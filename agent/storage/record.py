"""The record of a volume: what a pool remembers of it beside its data. Read leniently: a later version may know more."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gugus.agent.v1 import volume_pb2

from common.files import read_json

ISO = "iso"
"""`media` of an ISO 9660 image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """What a pool remembers of a volume. `size_bytes` and `privileged` are as they were asked for.

    imported: it is an image; frozen: it was a guest's and is a base now. Neither is ever written.
    copied_from: "pool/volume@snapshot" of a full copy. independent: it read from `source` once and does no more.
    snapshots: of a FILESYSTEM volume, name -> when (Unix seconds); those of qcow2 are in the file itself.
    """

    name: str
    format: int
    file: str
    imported: bool = False
    source: str = ""
    sha256: str = ""
    size_bytes: int = 0
    privileged: bool = False
    frozen: bool = False
    independent: bool = False
    copied_from: str = ""
    media: str = ""
    part_of: str = ""
    created: float = 0.0
    snapshots: dict[str, float] = field(default_factory=dict)

    @property
    def backing(self) -> str:
        """Volume that this one still reads from."""
        linked = self.format == volume_pb2.VOLUME_FORMAT_QCOW2 and not self.imported and not self.independent
        return self.source if linked else ""

    @property
    def is_base(self) -> bool:
        """Whether others may be made from it; then it is never written."""
        return self.imported or self.frozen

    @property
    def kind(self) -> volume_pb2.VolumeKind.ValueType:
        """What it is for."""
        if self.imported:
            return volume_pb2.VOLUME_KIND_ISO if self.media == ISO else volume_pb2.VOLUME_KIND_IMAGE
        return volume_pb2.VOLUME_KIND_BASE if self.frozen else volume_pb2.VOLUME_KIND_GUEST


_KNOWN = {part.name for part in fields(VolumeRecord)}


def load(path: Path) -> VolumeRecord:
    """Read a record. Blocks. Raises OSError."""
    values: dict[str, Any] = {key: value for key, value in read_json(path).items() if key in _KNOWN}
    record = VolumeRecord(**values)
    if record.created:
        return record
    return VolumeRecord(**{**values, "created": path.stat().st_mtime})  # of an earlier version


def dump(record: VolumeRecord) -> dict[str, Any]:
    """Return what is written of a record: an earlier version that reads it knows no field that it has no need of."""
    plain = VolumeRecord(name="", format=0, file="")
    late = {"frozen", "independent", "copied_from", "media", "part_of", "snapshots"}
    return {key: value for key, value in asdict(record).items() if key not in late or value != getattr(plain, key)}
