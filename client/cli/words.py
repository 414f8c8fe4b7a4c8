"""Words for people: enums, sizes and times of the API as a terminal shows them, and what people type read back."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from gugus.agent.v1.network_pb2 import DhcpRange
from gugus.cluster.v1.guest_pb2 import DiskSpec

from client.cli.faults import Faults, each
from client.local_files import unreadable
from common import units
from common.errors import GugusError, invalid

REASON_CHARS = 60
MAX_UINT32 = 2**32 - 1


def enum_word(enum: Any, value: int, prefix: str) -> str:
    """Return a value of a generated enum in words: GUEST_PHASE_RUNNING with prefix GUEST_PHASE_ is "running"; unset is ""."""
    name = enum.Name(value) if value in enum.values() else str(value)
    word = name.removeprefix(prefix).lower().replace("_", " ")
    return "" if word == "unspecified" else word


def moment(stamp: Timestamp) -> str:
    """Return a time in the terminal's time zone; "" when unset."""
    if not stamp.seconds:
        return ""
    return datetime.fromtimestamp(stamp.seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short(text: str, limit: int = REASON_CHARS) -> str:
    """Return a text cut to what a column holds."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def yes(value: bool) -> str:
    """Return "yes" or "no"."""
    return "yes" if value else "no"


def size(option: str, text: str) -> int:
    """Read a size ("512MiB") in bytes. Raises GugusError naming the option."""
    try:
        return units.parse_size(text)
    except ValueError as error:
        raise invalid(option, f"{error}.") from None


def duration(option: str, text: str) -> float:
    """Read a duration ("1h") in seconds. Raises GugusError naming the option."""
    try:
        return units.parse_duration(text)
    except ValueError as error:
        raise invalid(option, f"{error}.") from None


def cpu_milli(option: str, text: str) -> int:
    """Read a number of CPUs ("0.5") in thousandths of one. Raises GugusError naming the option."""
    try:
        milli = round(float(text) * 1000)
    except (ValueError, OverflowError):
        milli = 0
    if milli <= 0:
        raise invalid(option, f'"{text}" is not a number of CPUs like 2 or 0.5.')
    return min(milli, MAX_UINT32)


def disk(text: str, option: str = "--disk") -> DiskSpec:
    """Read SIZE/POOL or SIZE/POOL/IMAGE; an empty SIZE is the image's. Raises GugusError naming the option."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not parts[1] or (len(parts) == 2 and not parts[0]):
        raise invalid(option, f'"{text}" is not SIZE/POOL or SIZE/POOL/IMAGE, like 10GiB/local or /local/debian.')
    bytes_ = size(option, parts[0]) if parts[0] else 0
    return DiskSpec(pool=parts[1], image=parts[2] if len(parts) == 3 else "", size_bytes=bytes_)


def labels(texts: Sequence[str]) -> dict[str, str]:
    """Read labels KEY=VALUE. Raises GugusError."""

    def one(text: str) -> tuple[str, str]:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise invalid("--label", f'"{text}" is not KEY=VALUE, like tier=web.')
        return key, value

    return dict(each(one, texts))


def ssh_keys(files: Sequence[Path]) -> list[str]:
    """Read public keys, one a line, from files. Raises GugusError; a private key is refused before it is sent."""
    keys, faults = list[str](), Faults()
    for file in files:
        with faults.gathered():
            keys += _keys_in(file)
    faults.tell()
    return keys


def dhcp_range(text: str) -> DhcpRange:
    """Read FIRST-LAST. Raises GugusError."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        if not dash:
            raise ValueError
        ipaddress.ip_address(first)
        ipaddress.ip_address(last)
    except ValueError:
        raise invalid("--dhcp", f'"{text}" is not FIRST-LAST, like 10.20.0.100-10.20.0.200.') from None
    return DhcpRange(first=first, last=last)


def _keys_in(file: Path) -> list[str]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("--ssh-key", file, error) from None
    if "PRIVATE KEY" in text:
        raise _not_public(file, "holds a private key")
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found or any(len(line.split()) < 2 for line in found):
        raise _not_public(file, "holds no public keys")
    return found


def _not_public(file: Path, why: str) -> GugusError:
    return invalid("--ssh-key", f"{file} {why}.", remedy="Give the .pub file, like ~/.ssh/id_ed25519.pub.")
