"""A QMP monitor of our own, beside libvirt's, for a domain that comes in: arguments for QEMU, as libvirt passes them on.

libvirt has no element for one; see https://libvirt.org/drvqemu.html, "Pass-through of arbitrary qemu commands".
"""

import xml.etree.ElementTree as ET

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
PREFIX = "qemu"
_LINE = f"{{{NAMESPACE}}}commandline"
_ID = "gugus-monitor"


def add_monitor(domain: ET.Element, path: str) -> None:
    """Have QEMU listen at a UNIX socket, and at no other that a former host may have given it."""
    remove_monitor(domain)
    ET.register_namespace(PREFIX, NAMESPACE)
    line = ET.SubElement(domain, _LINE)
    listens = f"socket,id={_ID},path={path},server=on,wait=off"
    for argument in ("-chardev", listens, "-mon", f"chardev={_ID},mode=control"):
        ET.SubElement(line, f"{{{NAMESPACE}}}arg").set("value", argument)


def remove_monitor(domain: ET.Element) -> None:
    """Take the arguments out again: a domain that is taken up from a file has no use for them, and its folder may be gone."""
    for line in domain.findall(_LINE):
        if any(_ID in argument.get("value", "") for argument in line):
            domain.remove(line)
