"""OVA: a tar archive with a description (OVF) and the disks that it names. Only disks are taken, and only by plain names.

Nothing in the archive is trusted: members that are no regular files or have a path in their name are never written, and the
description is small, has no entities, and may only name members of the archive. Source: DMTF DSP0243 (OVF 1.1 and 2.1).
"""

import shutil
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

MOST_OVF_BYTES = 1024 * 1024
"""A description of a hundred disks has some 50 KiB."""

MOST_DISKS = 64
MOST_MEMBERS = 1024

_CHUNK_BYTES = 4 * 1024 * 1024


class BadOva(ValueError):
    """What is wrong with an OVA, in words for a sentence."""


def is_ova(path: Path) -> bool:
    """Whether an uncompressed tar archive begins as an OVA does: the description is its first member. Blocks."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
    except (OSError, tarfile.TarError):
        return False
    return first is not None and first.isreg() and first.name.lower().endswith(".ovf")


def extract_disks(path: Path, folder: Path) -> list[Path]:
    """Write the disks of an OVA into an existing folder as 0, 1, ... in the order of its description. Blocks.

    Raises BadOva, and OSError.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = _members(tar)
            ovf = next(member for name, member in members.items() if name.lower().endswith(".ovf"))
            names = disks_of(_read(tar, ovf))
            return [_extract(tar, members, name, folder / str(number)) for number, name in enumerate(names)]
    except tarfile.TarError as error:
        raise BadOva(f"its archive is damaged ({error})") from error


def disks_of(ovf: bytes) -> list[str]:
    """Return the names of the files of the disks that a description lists. Raises BadOva."""
    if b"<!DOCTYPE" in ovf or b"<!ENTITY" in ovf:
        raise BadOva("its description defines entities, which no OVF needs")
    try:
        root = ET.fromstring(ovf)  # noqa: S314 (entities are refused above)
    except ET.ParseError as error:
        raise BadOva(f"its description is no XML ({error})") from error
    files = {_attribute(item, "id"): item for item in root.iter() if _tag(item) == "File"}
    names = []
    for item in root.iter():
        if _tag(item) != "Disk" or not (reference := _attribute(item, "fileRef")):
            continue  # an empty disk has no file
        file = files.get(reference)
        if file is None:
            raise BadOva(f'its disk refers to the file "{reference}", which it does not list')
        if compression := _attribute(file, "compression"):
            raise BadOva(f"its disk is compressed ({compression}); decompress it and make the OVA anew")
        names.append(_plain(_attribute(file, "href")))
    if not names:
        raise BadOva("its description lists no disk")
    if len(names) > MOST_DISKS:
        raise BadOva(f"it has {len(names)} disks; at most {MOST_DISKS} are taken")
    return names


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the regular files at the archive's top by name; whatever else there is stays where it is."""
    found: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(tar):
        if count >= MOST_MEMBERS:
            raise BadOva(f"its archive has more than {MOST_MEMBERS} members")
        if member.isreg() and "/" not in member.name and member.name not in ("", ".", ".."):
            found.setdefault(member.name, member)
    return found


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MOST_OVF_BYTES:
        raise BadOva(f"its description has {member.size} bytes")
    file = tar.extractfile(member)
    return file.read() if file else b""


def _extract(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, target: Path) -> Path:
    member = members.get(name)
    file = tar.extractfile(member) if member else None
    if file is None:
        raise BadOva(f'its disk "{name}" is not in the archive')
    with file, target.open("xb") as writer:
        shutil.copyfileobj(file, writer, _CHUNK_BYTES)
    return target


def _plain(name: str) -> str:
    if not name or "/" in name or "\\" in name or ":" in name or name in (".", ".."):
        raise BadOva(f'its disk is the file "{name}"; only plain names are followed')
    return name


def _tag(item: ET.Element) -> str:
    return item.tag.rpartition("}")[2]


def _attribute(item: ET.Element, name: str) -> str:
    return next((value for key, value in item.attrib.items() if key.rpartition("}")[2] == name), "")
