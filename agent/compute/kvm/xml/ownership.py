"""Whose the files of disks are: QEMU's user's, from a guest's first start on, and not only for as long as it runs.

libvirt gives a file to QEMU's user when a domain begins and takes it back when one ends. Where two hosts reach the same file, the
end at one may come after the beginning at the other, and then takes the file from a machine that has yet to open it: one that is
started elsewhere, or was held when it went over. libvirt knows of that only on file systems that it takes for shared, and only in
migrations (virSecurityDACRestoreImageLabelSingle). So it is told to leave these files alone, and the agent gives them itself:
https://libvirt.org/formatdomain.html#security-label. Device nodes are each host's own, and stay libvirt's.
"""

import xml.etree.ElementTree as ET
from collections.abc import Collection
from pathlib import Path

MODEL = "dac"
"""libvirt's name of the security driver that sets owners."""

_TAG = "seclabel"


def settle(source: ET.Element) -> None:
    """Have libvirt leave the owner of a <source>'s file alone."""
    if not Path(source.get("file", "/dev")).is_relative_to("/dev") and not is_settled(source):
        ET.SubElement(source, _TAG, model=MODEL, relabel="no")


def is_settled(source: ET.Element) -> bool:
    """Whether libvirt was told to."""
    return any(label.get("model") == MODEL and label.get("relabel") == "no" for label in source.findall(_TAG))


def settled_files(part: ET.Element) -> list[Path]:
    """Return the files that libvirt leaves alone in a domain, or in a part of one."""
    return [Path(source.get("file", "")) for source in part.iter("source") if is_settled(source)]


def remove_findings(domain: ET.Element, tags: Collection[str]) -> None:
    """Remove the parts of a live domain that tell what libvirt found or did; what it was told of owners stays."""
    for parent in list(domain.iter()):
        for child in list(parent):
            if child.tag in tags and not (child.tag == _TAG and parent.tag == "source"):
                parent.remove(child)
