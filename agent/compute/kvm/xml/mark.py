"""The mark of a domain of ours, in its metadata: whose it is, under which grant it runs, and what it was started with.

libvirt keeps it with the running domain, gives it back after a restart of anything, and takes it along in a migration. So
there is no second record of a run that could be wrong.
"""

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from gugus.agent.v1 import boot_pb2

from agent.compute.definitions import Definition, from_json, to_json

NAMESPACE = "https://gugus.dev/xmlns/guest/1"
"""XML namespace of our element in a domain's metadata."""

PREFIX, TAG = "gugus", "guest"
_SECRETS = ("password_hash", "user_data", "vendor_data", "network_config")
_DIGEST_CHARS = 16


@dataclass(frozen=True, slots=True)
class Mark:
    """What the metadata of a domain of ours says. `running` is None when another version wrote it."""

    uid: str
    generation: int
    mode: str
    running: Definition | None = None
    """What the domain was started with, and what was applied since; first-boot secrets are digests (see `veiled`)."""


def element(mark: Mark) -> ET.Element:
    """Return the element for a domain's metadata."""
    ET.register_namespace(PREFIX, NAMESPACE)
    values = {"uid": mark.uid, "generation": str(mark.generation), "mode": mark.mode}
    made = ET.Element(f"{{{NAMESPACE}}}{TAG}", values)
    if mark.running is not None:
        made.text = json.dumps(to_json(veiled(mark.running)), sort_keys=True, separators=(",", ":"))
    return made


def read_mark(metadata_xml: str) -> Mark:
    """Read the element that `element` made. Raises ValueError when it is not ours."""
    try:
        found = ET.fromstring(metadata_xml)  # noqa: S314  (libvirt's own output)
        return Mark(
            found.get("uid", ""), int(found.get("generation", "0")), found.get("mode", ""), _running(found.text or "")
        )
    except ET.ParseError as error:
        raise ValueError(f"not the metadata of a guest: {error}") from error


def veiled(definition: Definition) -> Definition:
    """Return a definition whose first-boot secrets are replaced by digests: they can be compared, and not read."""
    spec = type(definition.spec)()
    spec.CopyFrom(definition.spec)
    _veil(spec.first_boot, _SECRETS)
    return Definition(spec, definition.disks, definition.nics, definition.files)


def _veil(boot: boot_pb2.FirstBoot, fields: Sequence[str]) -> None:
    for name in fields:
        value = getattr(boot, name)
        if value and not value.startswith("sha256:"):
            setattr(boot, name, "sha256:" + hashlib.sha256(value.encode()).hexdigest()[:_DIGEST_CHARS])


def _running(words: str) -> Definition | None:
    try:
        return from_json(json.loads(words)) if words.strip() else None
    except Exception:  # of a later version: nothing that the agent does rests on it
        return None
