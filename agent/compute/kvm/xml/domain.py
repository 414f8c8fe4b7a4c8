"""The whole domain of a virtual machine.

Invariant: a domain that is ours says so in its metadata; the XML is made for one run (transient domain) and never read
back as a definition.
"""

import xml.etree.ElementTree as ET

from agent.compute.definitions import Definition
from agent.compute.kvm.xml import cpu, devices, disks, memory, nics, system
from agent.compute.kvm.xml.mark import Mark, element
from agent.compute.kvm.xml.run import Run, text, to_text


def build(definition: Definition, run: Run) -> str:
    """Return the XML of a domain. The definition must have passed `kvm.validity.check`."""
    spec = definition.spec
    domain = ET.Element("domain", type=run.domain_type)
    text(domain, "name", spec.name)
    if spec.uid:
        text(domain, "uuid", spec.uid)
    metadata = ET.SubElement(domain, "metadata")
    metadata.append(element(Mark(spec.uid, run.generation, run.mode, definition)))
    memory.add(domain, definition)
    memory.add_tuning(domain, definition, run)
    if threads := disks.io_threads(definition):
        text(domain, "iothreads", str(len(threads)))
    cpu.add(domain, definition, run)
    system.add(domain, definition, run)
    part = ET.SubElement(domain, "devices")
    disks.add(part, definition, run)
    nics.add(part, definition)
    devices.add(part, definition, run)
    return to_text(domain)
